//! Shares of caches and memory bandwidth: the kernel's resctrl file system (`config-linux.md`, "IntelRdt").
//!
//! ```text
//! /sys/fs/resctrl/
//! ├── info/{L3,MB}/      capabilities of the hardware
//! ├── schemata           for processes without a control group
//! └── CLOS/              a control group: `closID`, or the container's id, which is removed with it
//!     ├── schemata       `L3:0=f`, `MB:0=50`
//!     ├── tasks
//!     ├── mon_data/      its usage: `mon_L3_00/llc_occupancy`, …
//!     └── mon_groups/ID  with `enableMonitoring`, with its own mon_data
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use types::spec::runtime::IntelRdt;
use types::{Context, Error, Result};

/// A container's class of service (CLOS): its control group in resctrl, made or found, and the monitoring group in it.
pub(crate) struct Clos {
    dir: PathBuf,
    monitored: Option<PathBuf>,
    /// The directory that is removed with the container.
    pub(crate) own: Option<PathBuf>,
}

/// Where this host has mounted resctrl.
pub(crate) fn mounted() -> Result<PathBuf> {
    let mut points = linux::mount::mount_points()?.into_iter();
    points.find(|point| point.kind == "resctrl").map(|point| point.path).ok_or_else(|| {
        Error::failed_precondition("this host has no resctrl; try: mount -t resctrl resctrl /sys/fs/resctrl")
    })
}

/// The directory of a container's control group.
fn directory(root: &Path, id: &str, wanted: &IntelRdt) -> Result<PathBuf> {
    let name = if wanted.clos_id.is_empty() { id } else { &wanted.clos_id };
    match name {
        "/" => Ok(root.to_owned()),
        "." | ".." => Err(Error::invalid_argument(format!("closID {name:?} is not one name"))),
        _ if name.contains('/') => Err(Error::invalid_argument(format!("closID {name:?} is not one name"))),
        _ => Ok(root.join(name)),
    }
}

impl Clos {
    /// Makes the control group with its schemata, or joins the one that `closID` names. That may be shared, so it is
    /// joined only if its schemata are the wanted ones, or none are given.
    ///
    /// `FailedPrecondition` if they differ, or if there is no such group and no schema to make it with.
    pub(crate) fn prepare(root: &Path, id: &str, wanted: &IntelRdt) -> Result<Clos> {
        let named = !wanted.clos_id.is_empty();
        let dir = directory(root, id, wanted)?;
        let schemata = schemata(wanted);
        if named && schemata.is_empty() && !dir.is_dir() {
            let why = "there is no such class of service, and no schema to make it with";
            return Err(Error::failed_precondition(format!("closID {}: {why}", wanted.clos_id)));
        }
        let made = match fs::create_dir(&dir) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error).context(|| format!("make {}", dir.display())),
        };
        let own = (made && !named).then(|| dir.clone());
        let clos = Clos { own, monitored: None, dir: dir.clone() };
        let filled = if named && !made { compare(root, &dir, &schemata) } else { write(&dir, &schemata) };
        filled.and_then(|()| clos.monitor(id, wanted)).inspect_err(|_| {
            if made {
                // The first error is reported.
                let _ = fs::remove_dir(dir);
            }
        })
    }

    fn monitor(mut self, id: &str, wanted: &IntelRdt) -> Result<Clos> {
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

    /// The groups that each process of the container is put into: the control group, and in it the monitoring group.
    pub(crate) fn groups(&self) -> Vec<PathBuf> {
        std::iter::once(&self.dir).chain(&self.monitored).cloned().collect()
    }

    pub(crate) fn add(&self, pid: u32) -> Result<()> {
        put(&self.groups(), pid)
    }
}

/// Puts a process, and its later children, into [`Clos::groups`]. `NotFound` if one is gone.
pub(crate) fn put(groups: &[PathBuf], pid: u32) -> Result<()> {
    groups.iter().try_for_each(|group| {
        let file = group.join("tasks");
        fs::write(&file, pid.to_string()).context(|| format!("write {pid} to {}", file.display()))
    })
}

/// Changes the schemata of a container's control group, and so of all processes in it.
pub(crate) fn change(root: &Path, id: &str, wanted: &IntelRdt) -> Result<()> {
    write(&directory(root, id, wanted)?, &schemata(wanted))
}

/// The lines to write, in order: of two for one resource the last counts. `memBwSchema` replaces all lines of memory
/// bandwidth in `l3CacheSchema`.
fn schemata(wanted: &IntelRdt) -> String {
    let IntelRdt { l3_cache_schema, mem_bw_schema, schemata, .. } = wanted;
    let is_replaced = |line: &&str| !mem_bw_schema.is_empty() && line.trim_start().starts_with("MB:");
    let lines = l3_cache_schema.lines().filter(|line| !is_replaced(line));
    let lines = lines.chain(mem_bw_schema.lines()).chain(schemata.iter().flat_map(|text| text.lines()));
    lines.filter(|line| !line.trim().is_empty()).flat_map(|line| [line, "\n"]).collect()
}

/// One write: the kernel takes all lines or, if it cannot parse one, none.
fn write(dir: &Path, schemata: &str) -> Result<()> {
    if schemata.is_empty() {
        return Ok(());
    }
    let file = dir.join("schemata");
    fs::write(&file, schemata).context(|| format!("write {schemata:?} to {}", file.display()))
}

/// Fails unless a control group has the wanted schemata, as far as they are given.
fn compare(root: &Path, dir: &Path, wanted: &str) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let file = dir.join("schemata");
    let text = fs::read_to_string(&file).context(|| format!("read {}", file.display()))?;
    let step = fs::read_to_string(root.join("info/MB/bandwidth_gran")).ok();
    let step = step.and_then(|step| step.trim().parse().ok()).unwrap_or(1);
    let has = shares(&text);
    let is_there =
        |(place, share): (&Place<'_>, &Share)| has.get(place).is_some_and(|own| own.is(share, step));
    if shares(wanted).iter().all(is_there) {
        return Ok(());
    }
    let has = text.lines().map(str::trim).collect::<Vec<_>>().join(", ");
    let wanted = wanted.trim_end().replace('\n', ", ");
    Err(Error::failed_precondition(format!("class of service {} has {has}, and not {wanted}", dir.display())))
}

/// A resource (`L3`, `MB`) and the id of its domain.
type Place<'a> = (&'a str, &'a str);

/// The value of a domain: a bit mask, unless it is a bandwidth.
enum Share {
    Bits(Option<u64>),
    Bandwidth(Option<u64>),
}

impl Share {
    /// The kernel rounds a percentage up to the hardware's next step.
    fn is(&self, wanted: &Share, step: u64) -> bool {
        match (self, wanted) {
            (Share::Bandwidth(Some(own)), Share::Bandwidth(Some(wanted))) => {
                own == wanted || wanted.checked_next_multiple_of(step) == Some(*own)
            }
            (Share::Bits(Some(own)), Share::Bits(Some(wanted))) => own == wanted,
            _ => false,
        }
    }
}

fn shares(schemata: &str) -> BTreeMap<Place<'_>, Share> {
    let lines = schemata.lines().filter_map(|line| line.split_once(':'));
    let parts = lines.flat_map(|(resource, parts)| parts.split(';').map(move |part| (resource.trim(), part)));
    let shares = parts.map(|(resource, part)| {
        let (id, text) = part.split_once('=').unwrap_or((part, ""));
        let share = match resource {
            "MB" | "SMBA" => Share::Bandwidth(text.trim().parse().ok()),
            _ => Share::Bits(u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()),
        };
        ((resource, id.trim()), share)
    });
    shares.collect()
}

/// Schemata and usage of a container's control group.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Figures {
    pub(crate) cache: Option<Resource>,
    pub(crate) bandwidth: Option<Resource>,
    /// All lines of the group's schemata, for every resource that this kernel knows.
    pub(crate) schemata: Vec<String>,
    /// Usage by cache, in the order of their ids; empty without monitoring hardware.
    pub(crate) used: Vec<Used>,
}

/// A resource that can be allocated.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Resource {
    /// The kernel's files about it, by name (resctrl.rst, "info directory").
    pub(crate) about: BTreeMap<String, String>,
    /// Its lines of `schemata`: of the root group, and of this one.
    pub(crate) schema_root: String,
    pub(crate) schema: String,
}

/// In bytes; None for events that this hardware does not count.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Used {
    pub(crate) cache: Option<u64>,
    pub(crate) transferred: Option<u64>,
    pub(crate) transferred_locally: Option<u64>,
}

impl Figures {
    /// Of the control group of container `id`: its own, or the one that `closID` names.
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
        let schemata = own.lines().map(|line| line.trim().to_owned()).collect();
        Ok(Figures { cache: resource("L3"), bandwidth: resource("MB"), schemata, used })
    }
}

/// The files of a directory; none if it does not exist, as for a resource that the hardware lacks.
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
    // The kernel writes `Unavailable` and `Error` too.
    let read = |cache: &Path, name: &str| fs::read_to_string(cache.join(name)).ok()?.trim().parse().ok();
    let used = caches.iter().map(|cache| Used {
        cache: read(cache, "llc_occupancy"),
        transferred: read(cache, "mbm_total_bytes"),
        transferred_locally: read(cache, "mbm_local_bytes"),
    });
    Ok(used.collect())
}

/// Removes the directory that was made for a container.
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
    fn a_resctrl_group_is_filled_and_removed_if_it_was_made() {
        let root = tempfile::TempDir::new().unwrap();
        let wanted = IntelRdt {
            l3_cache_schema: "L3:0=f".into(),
            mem_bw_schema: "MB:0=50".into(),
            ..IntelRdt::default()
        };
        let clos = Clos::prepare(root.path(), "id", &wanted).unwrap();
        clos.add(7).unwrap();
        let read = |name: &str| fs::read_to_string(root.path().join("id").join(name)).unwrap();
        assert_eq!((read("schemata").as_str(), read("tasks").as_str()), ("L3:0=f\nMB:0=50\n", "7"));
        assert_eq!(clos.own.as_deref(), Some(root.path().join("id").as_path()));
        // Once more, with another schema.
        let changed = IntelRdt { l3_cache_schema: "L3:0=3".into(), ..IntelRdt::default() };
        assert_eq!(Clos::prepare(root.path(), "id", &changed).unwrap().own, None, "it was there");
        assert_eq!((read("schemata").as_str(), read("tasks").as_str()), ("L3:0=3\n", "7"));

        for wrong in ["..", "a/b"] {
            let wanted = IntelRdt { clos_id: wrong.into(), ..IntelRdt::default() };
            assert!(Clos::prepare(root.path(), "id3", &wanted).is_err(), "{wrong}");
        }
    }

    /// `config-linux.md`, "IntelRdt": which lines are written.
    #[test]
    fn resctrl_schemata_are_those_of_the_specification() {
        let root = tempfile::TempDir::new().unwrap();
        let check = |l3: &str, bandwidth: &str, schemata: &[&str], expected: Option<&str>| {
            let wanted = IntelRdt {
                l3_cache_schema: l3.into(),
                mem_bw_schema: bandwidth.into(),
                schemata: schemata.iter().map(ToString::to_string).collect(),
                ..IntelRdt::default()
            };
            let clos = Clos::prepare(root.path(), "id", &wanted).unwrap();
            let written = fs::read_to_string(root.path().join("id/schemata")).ok();
            assert_eq!(written.as_deref(), expected, "{wanted:?}");
            fs::remove_dir_all(clos.own.unwrap()).unwrap();
        };
        check("", "", &[], None);
        check("L3:0=f", "", &[], Some("L3:0=f\n"));
        check("", "MB:0=50", &[], Some("MB:0=50\n"));
        check("L3:0=f\nMB:0=20", "", &[], Some("L3:0=f\nMB:0=20\n"));
        check("L3:0=f\nMB:0=20\n", "MB:0=50", &[], Some("L3:0=f\nMB:0=50\n"));
        check("MB:0=20", "MB:0=50", &[], Some("MB:0=50\n"));
        // `schemata` comes last.
        check("L3:0=f", "MB:0=50", &["L2:0=3", "MB:0=70\n"], Some("L3:0=f\nMB:0=50\nL2:0=3\nMB:0=70\n"));
        check("", "", &["L3:0=f;1=f"], Some("L3:0=f;1=f\n"));
    }

    /// A shared group is joined or refused, and never changed.
    #[test]
    fn a_shared_resctrl_group_is_not_changed() {
        let root = tempfile::TempDir::new().unwrap();
        let wanted = |l3: &str, bandwidth: &str| IntelRdt {
            clos_id: "shared".into(),
            l3_cache_schema: l3.into(),
            mem_bw_schema: bandwidth.into(),
            ..IntelRdt::default()
        };
        let missing = Clos::prepare(root.path(), "id", &wanted("", "")).map(|_| ()).unwrap_err();
        assert!(missing.is(types::ErrorKind::FailedPrecondition) && !root.path().join("shared").exists());
        // The container that makes a shared group does not remove it.
        assert_eq!(Clos::prepare(root.path(), "id", &wanted("L3:0=f", "")).unwrap().own, None);
        let file = root.path().join("shared/schemata");
        assert_eq!(fs::read_to_string(&file).unwrap(), "L3:0=f\n");

        // As the kernel writes it.
        let before = "    MB:0= 50;1=100\n    L3:0=0000f;1=fffff\n";
        fs::write(&file, before).unwrap();
        fs::create_dir_all(root.path().join("info/MB")).unwrap();
        fs::write(root.path().join("info/MB/bandwidth_gran"), "10\n").unwrap();
        for (l3, bandwidth, is_same) in [
            ("", "", true),
            ("L3:0=f", "", true),
            ("L3:1=FFFFF;0=00f", "MB:0=50", true),
            ("L3:0=f\nMB:0=20", "MB:0=50", true),
            ("", "MB:0=41", true),
            ("", "MB:0=40", false),
            ("", "MB:0=51", false),
            ("L3:0=7", "", false),
            ("L3:0=f;2=f", "", false),
            ("L3:0=f", "MB:1=50", false),
            ("L2:0=f", "", false),
            ("L3:0=word", "", false),
        ] {
            let joined = Clos::prepare(root.path(), "id", &wanted(l3, bandwidth)).map(|clos| clos.own);
            match joined {
                Ok(own) => assert!(is_same && own.is_none(), "{l3} {bandwidth}"),
                Err(error) => assert!(!is_same && error.is(types::ErrorKind::FailedPrecondition), "{error}"),
            }
            assert_eq!(fs::read_to_string(&file).unwrap(), before, "{l3} {bandwidth}");
        }
        // An explicit update changes it.
        change(root.path(), "id", &wanted("L3:0=3", "MB:0=20")).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "L3:0=3\nMB:0=20\n");
        let gone = IntelRdt { clos_id: "gone".into(), ..wanted("L3:0=3", "") };
        assert!(change(root.path(), "id", &gone).is_err() && !root.path().join("gone").exists());
    }

    /// With `enableMonitoring` a container is counted by itself, also in a CLOS that it shares.
    #[test]
    fn a_container_is_monitored_in_a_group_of_its_own() {
        let root = tempfile::TempDir::new().unwrap();
        fs::create_dir_all(root.path().join("shared/mon_groups")).unwrap();
        let wanted = IntelRdt { clos_id: "shared".into(), enable_monitoring: true, ..IntelRdt::default() };
        let clos = Clos::prepare(root.path(), "id", &wanted).unwrap();
        clos.add(7).unwrap();
        let group = root.path().join("shared/mon_groups/id");
        for dir in [&root.path().join("shared"), &group] {
            assert_eq!(fs::read_to_string(dir.join("tasks")).unwrap(), "7", "{}", dir.display());
        }
        // For a process that enters later.
        assert_eq!(clos.groups(), [root.path().join("shared"), group.clone()]);
        put(&clos.groups(), 8).unwrap();
        assert_eq!(fs::read_to_string(group.join("tasks")).unwrap(), "8");
        assert!(put(&[root.path().join("gone")], 8).unwrap_err().is(types::ErrorKind::NotFound));
        assert_eq!(clos.own, Some(group.clone()));
        // The kernel removes such a directory together with its files.
        fs::remove_file(group.join("tasks")).unwrap();
        remove(&group).unwrap();
        remove(&group).unwrap();
        assert!(root.path().join("shared").exists());
    }

    /// The kernel's files on a processor with all features.
    #[test]
    fn resctrl_schemata_and_usage_are_read() {
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
        let schemata = vec!["L3:0=f;1=f".to_owned()];
        assert_eq!(plain, Figures { schemata, ..Figures::default() }, "the hardware can none of it");

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
        assert_eq!(figures.schemata, ["MB:0=50;1=100", "L3:0=f;1=f"]);
        let [cache, bandwidth] = [figures.cache, figures.bandwidth].map(Option::unwrap);
        let about: Vec<_> = cache.about.iter().map(|(name, text)| format!("{name} {text}")).collect();
        assert_eq!(about, ["cbm_mask fffff", "min_cbm_bits 1", "num_closids 16"]);
        assert_eq!([cache.schema_root, cache.schema], ["L3:0=fffff;1=fffff", "L3:0=f;1=f"]);
        assert_eq!(bandwidth.about["bandwidth_gran"], "10");
        assert_eq!([bandwidth.schema_root, bandwidth.schema], ["MB:0=100;1=100", "MB:0=50;1=100"]);
        let first = Used { cache: Some(4096), transferred: Some(2048), transferred_locally: None };
        assert_eq!(figures.used, [first, Used { cache: Some(8192), ..Used::default() }]);
        // A monitoring group in a control group that others share, by name.
        write("shared/schemata", "");
        write("shared/mon_groups/id/mon_data/mon_L3_00/llc_occupancy", "1\n");
        write("shared/mon_data/mon_L3_00/llc_occupancy", "2\n");
        let shared = IntelRdt { clos_id: "shared".into(), ..IntelRdt::default() };
        let figures = Figures::read(root.path(), "id", &shared).unwrap();
        assert_eq!(figures.used, [Used { cache: Some(1), ..Used::default() }]);
    }
}
