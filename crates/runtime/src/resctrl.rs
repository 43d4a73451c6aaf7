//! Shares of caches and memory bandwidth: the kernel's resctrl file system (`config-linux.md`, "IntelRdt").
//!
//! ```text
//! /sys/fs/resctrl/
//! ├── info/{L3,MB}/      what the hardware can
//! ├── schemata           what is left for those without a class
//! └── CLOS/              the class: `closID`, or the container's id, which is then removed with it
//!     ├── schemata       `L3:0=f`, `MB:0=50`
//!     ├── tasks
//!     ├── mon_data/      what it uses: `mon_L3_00/llc_occupancy`, …
//!     └── mon_groups/ID  with `enableMonitoring`, and again mon_data
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use types::spec::runtime::IntelRdt;
use types::{Context, Error, Result};

/// The class of a container, made or found.
pub(crate) struct Class {
    dir: PathBuf,
    monitored: Option<PathBuf>,
    /// What goes with the container.
    pub(crate) own: Option<PathBuf>,
}

/// Where this host has mounted resctrl.
pub(crate) fn mounted() -> Result<PathBuf> {
    let mut points = linux::mount::mount_points()?.into_iter();
    points.find(|point| point.kind == "resctrl").map(|point| point.path).ok_or_else(|| {
        Error::failed_precondition("this host has no resctrl; try: mount -t resctrl resctrl /sys/fs/resctrl")
    })
}

/// Where the class of a container is.
fn directory(root: &Path, id: &str, wanted: &IntelRdt) -> Result<PathBuf> {
    let name = if wanted.clos_id.is_empty() { id } else { &wanted.clos_id };
    match name {
        "/" => Ok(root.to_owned()),
        "." | ".." => Err(Error::invalid_argument(format!("closID {name:?} is not one name"))),
        _ if name.contains('/') => Err(Error::invalid_argument(format!("closID {name:?} is not one name"))),
        _ => Ok(root.join(name)),
    }
}

impl Class {
    /// Makes the class with its shares, or joins the one that `closID` names.
    pub(crate) fn prepare(root: &Path, id: &str, wanted: &IntelRdt) -> Result<Class> {
        let named = !wanted.clos_id.is_empty();
        let dir = directory(root, id, wanted)?;
        let made = match fs::create_dir(&dir) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error).context(|| format!("make {}", dir.display())),
        };
        let own = (made && !named).then(|| dir.clone());
        let class = Class { own, monitored: None, dir: dir.clone() };
        class.fill(id, wanted).inspect_err(|_| {
            if made {
                // The error that counts is the first one.
                let _ = fs::remove_dir(dir);
            }
        })
    }

    fn fill(mut self, id: &str, wanted: &IntelRdt) -> Result<Class> {
        let shares = [&wanted.l3_cache_schema, &wanted.mem_bw_schema];
        let lines = shares.into_iter().chain(&wanted.schemata).flat_map(|text| text.lines());
        for line in lines.filter(|line| !line.trim().is_empty()) {
            let file = self.dir.join("schemata");
            fs::write(&file, format!("{line}\n"))
                .context(|| format!("write {line:?} to {}", file.display()))?;
        }
        if wanted.enable_monitoring {
            let group = self.dir.join("mon_groups").join(id);
            match fs::create_dir(&group) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(error).context(|| format!("make {}", group.display()));
                }
                _ => {}
            }
            if self.own.is_none() {
                self.own = Some(group.clone());
            }
            self.monitored = Some(group);
        }
        Ok(self)
    }

    pub(crate) fn add(&self, pid: u32) -> Result<()> {
        for dir in std::iter::once(&self.dir).chain(&self.monitored) {
            let file = dir.join("tasks");
            fs::write(&file, pid.to_string()).context(|| format!("write {pid} to {}", file.display()))?;
        }
        Ok(())
    }
}

/// What the class of a container may use of caches and memory bandwidth, and uses.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Figures {
    pub(crate) cache: Option<Resource>,
    pub(crate) bandwidth: Option<Resource>,
    /// Of each cache, in the order of their numbers; empty without hardware that counts.
    pub(crate) used: Vec<Used>,
}

/// One that can be shared out.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Resource {
    /// The kernel's files about it, by name (resctrl.rst, "info directory").
    pub(crate) about: BTreeMap<String, String>,
    /// Its lines of `schemata`: of those without a class, and of this one.
    pub(crate) schema_root: String,
    pub(crate) schema: String,
}

/// Bytes. None is not counted by this hardware.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Used {
    pub(crate) cache: Option<u64>,
    pub(crate) transferred: Option<u64>,
    pub(crate) transferred_locally: Option<u64>,
}

impl Figures {
    /// Of the class of container `id`: its own, or the one that `closID` names.
    pub(crate) fn read(root: &Path, id: &str, wanted: &IntelRdt) -> Result<Figures> {
        let dir = directory(root, id, wanted)?;
        let schemata = |dir: &Path| {
            let file = dir.join("schemata");
            fs::read_to_string(&file).context(|| format!("read {}", file.display()))
        };
        let (all, own) = (schemata(root)?, schemata(&dir)?);
        let resource = |name: &str| {
            let about = about(&root.join("info").join(name));
            let [schema_root, schema] = [&all, &own].map(|text| lines_of(text, name));
            (!about.is_empty()).then_some(Resource { about, schema_root, schema })
        };
        let group = dir.join("mon_groups").join(id);
        let used = used(&if group.is_dir() { group } else { dir.clone() }.join("mon_data"))?;
        Ok(Figures { cache: resource("L3"), bandwidth: resource("MB"), used })
    }
}

/// The files of a directory, which may not be there, as the kernel has none for what the hardware cannot.
fn about(dir: &Path) -> BTreeMap<String, String> {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    let read = |file: fs::DirEntry| {
        let name = file.file_name().into_string().ok()?;
        Some((name, fs::read_to_string(file.path()).ok()?.trim().to_owned()))
    };
    files.filter_map(read).collect()
}

/// The kernel pads names to one width: `    MB:0=100`.
fn lines_of(schemata: &str, resource: &str) -> String {
    let lines = schemata.lines().map(str::trim);
    lines.filter(|line| line.starts_with(resource)).collect::<Vec<_>>().join("\n")
}

fn used(data: &Path) -> Result<Vec<Used>> {
    let entries = match fs::read_dir(data) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context(|| format!("read {}", data.display()))?,
    };
    let mut caches: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    caches
        .retain(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"mon_L3_")));
    caches.sort();
    // `Unavailable` and `Error` are no numbers.
    let read = |cache: &Path, name: &str| fs::read_to_string(cache.join(name)).ok()?.trim().parse().ok();
    let used = caches.iter().map(|cache| Used {
        cache: read(cache, "llc_occupancy"),
        transferred: read(cache, "mbm_total_bytes"),
        transferred_locally: read(cache, "mbm_local_bytes"),
    });
    Ok(used.collect())
}

/// Removes what was made for a container.
pub(crate) fn remove(own: &Path) -> Result<()> {
    match fs::remove_dir(own) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.context(|| format!("remove {}", own.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_filled_and_one_of_its_own_is_removed() {
        let root = tempfile::TempDir::new().unwrap();
        let wanted = IntelRdt {
            l3_cache_schema: "L3:0=f".into(),
            mem_bw_schema: "MB:0=50".into(),
            ..IntelRdt::default()
        };
        let class = Class::prepare(root.path(), "id", &wanted).unwrap();
        class.add(7).unwrap();
        let read = |name: &str| fs::read_to_string(root.path().join("id").join(name)).unwrap();
        // A plain file keeps the last line only; the kernel's takes one after another.
        assert_eq!((read("schemata").as_str(), read("tasks").as_str()), ("MB:0=50\n", "7"));
        assert_eq!(class.own.as_deref(), Some(root.path().join("id").as_path()));
        // Once more, for other shares.
        let changed = IntelRdt { l3_cache_schema: "L3:0=3".into(), ..IntelRdt::default() };
        assert_eq!(Class::prepare(root.path(), "id", &changed).unwrap().own, None, "it was there");
        assert_eq!((read("schemata").as_str(), read("tasks").as_str()), ("L3:0=3\n", "7"));

        let shared = IntelRdt { clos_id: "shared".into(), ..IntelRdt::default() };
        assert_eq!(Class::prepare(root.path(), "id2", &shared).unwrap().own, None);
        assert!(root.path().join("shared").is_dir());
        for wrong in ["..", "a/b"] {
            let wanted = IntelRdt { clos_id: wrong.into(), ..IntelRdt::default() };
            assert!(Class::prepare(root.path(), "id3", &wanted).is_err(), "{wrong}");
        }
    }

    /// The kernel's files, as a processor with all of it has them.
    #[test]
    fn what_a_class_may_use_and_uses_is_told() {
        let root = tempfile::TempDir::new().unwrap();
        let write = |name: &str, text: &str| {
            let file = root.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        let wanted = IntelRdt::default();
        write("schemata", "    MB:0=100;1=100\n    L3:0=fffff;1=fffff\n");
        write("id/schemata", "    L3:0=f;1=f\n");
        let plain = Figures::read(root.path(), "id", &wanted).unwrap();
        assert_eq!(plain, Figures::default(), "the hardware can none of it");

        for (file, text) in [("cbm_mask", "fffff\n"), ("min_cbm_bits", "1\n"), ("num_closids", "16\n")] {
            write(&format!("info/L3/{file}"), text);
        }
        write("info/MB/bandwidth_gran", "10\n");
        write("id/schemata", "    MB:0=50;1=100\n    L3:0=f;1=f\n");
        write("id/mon_data/mon_L3_01/llc_occupancy", "8192\n");
        write("id/mon_data/mon_L3_00/llc_occupancy", "4096\n");
        write("id/mon_data/mon_L3_00/mbm_total_bytes", "2048\n");
        write("id/mon_data/mon_L3_00/mbm_local_bytes", "Unavailable\n");
        let figures = Figures::read(root.path(), "id", &wanted).unwrap();
        let [cache, bandwidth] = [figures.cache, figures.bandwidth].map(Option::unwrap);
        let about: Vec<_> = cache.about.iter().map(|(name, text)| format!("{name} {text}")).collect();
        assert_eq!(about, ["cbm_mask fffff", "min_cbm_bits 1", "num_closids 16"]);
        assert_eq!([cache.schema_root, cache.schema], ["L3:0=fffff;1=fffff", "L3:0=f;1=f"]);
        assert_eq!(bandwidth.about["bandwidth_gran"], "10");
        assert_eq!([bandwidth.schema_root, bandwidth.schema], ["MB:0=100;1=100", "MB:0=50;1=100"]);
        let first = Used { cache: Some(4096), transferred: Some(2048), transferred_locally: None };
        assert_eq!(figures.used, [first, Used { cache: Some(8192), ..Used::default() }]);
        // A group of its own in a class that others have too, by name.
        write("shared/schemata", "");
        write("shared/mon_groups/id/mon_data/mon_L3_00/llc_occupancy", "1\n");
        write("shared/mon_data/mon_L3_00/llc_occupancy", "2\n");
        let shared = IntelRdt { clos_id: "shared".into(), ..IntelRdt::default() };
        let figures = Figures::read(root.path(), "id", &shared).unwrap();
        assert_eq!(figures.used, [Used { cache: Some(1), ..Used::default() }]);
    }
}
