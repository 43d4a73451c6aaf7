//! Shares of caches and memory bandwidth: the kernel's resctrl file system (`config-linux.md`, "IntelRdt").
//!
//! ```text
//! /sys/fs/resctrl/
//! └── CLOS/              the class: `closID`, or the container's id, which is then removed with it
//!     ├── schemata       `L3:0=f`, `MB:0=50`
//!     ├── tasks
//!     └── mon_groups/ID  with `enableMonitoring`
//! ```

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

impl Class {
    /// Makes the class with its shares, or joins the one that `closID` names.
    pub(crate) fn prepare(root: &Path, id: &str, wanted: &IntelRdt) -> Result<Class> {
        let named = !wanted.clos_id.is_empty();
        let name = if named { wanted.clos_id.as_str() } else { id };
        let is_plain = name == "/" || !name.contains('/') && name != "." && name != "..";
        if !is_plain {
            return Err(Error::invalid_argument(format!("closID {name:?} is not one name")));
        }
        let dir = if name == "/" { root.to_owned() } else { root.join(name) };
        let made = match fs::create_dir(&dir) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error).context(|| format!("make {}", dir.display())),
        };
        let class = Class { own: (made && !named).then(|| dir.clone()), monitored: None, dir };
        class.fill(id, wanted).inspect_err(|_| {
            if made {
                // The error that counts is the first one.
                let _ = fs::remove_dir(root.join(name));
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
}
