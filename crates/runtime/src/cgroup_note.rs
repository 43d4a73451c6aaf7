//! A note of the cgroup that a creation makes, by which a later call can clean up if the creation is cut off.
//!
//! ```text
//! cgroup.planned ── the cgroup, or a part of it, is made ── renamed ─▶ cgroup
//! ```
//!
//! A planned cgroup may already exist and belong to another container. One that this creation made was empty, so that
//! every process found in it later is this container's; directories that existed before are excluded.

use std::fs;
use std::io;

use linux::cgroup::Cgroup;
use types::{Context, Result, UnlessGone};

use crate::state::StateDir;

pub(crate) const PLANNED_CGROUP: &str = "cgroup.planned";
const CGROUP: &str = "cgroup";

/// A cgroup's path, and the hierarchies in which it existed already, or may have. The file separates them by zero
/// bytes.
pub(crate) struct CgroupNote {
    pub(crate) path: String,
    pub(crate) found: Vec<String>,
}

impl CgroupNote {
    pub(crate) fn plan(&self, dir: &StateDir) -> Result<()> {
        let words: Vec<&str> = std::iter::once(&self.path).chain(&self.found).map(String::as_str).collect();
        dir.write_file(PLANNED_CGROUP, words.join("\0").as_bytes())
    }

    /// Records that the cgroup was made as planned.
    pub(crate) fn own(dir: &StateDir) -> Result<()> {
        let what = || "note that the cgroup was made";
        fs::rename(dir.path(PLANNED_CGROUP), dir.path(CGROUP)).context(what)
    }

    fn read(dir: &StateDir, name: &str) -> Result<Option<CgroupNote>> {
        match fs::read_to_string(dir.path(name)) {
            Ok(text) => {
                let mut words = text.split('\0').map(str::to_owned);
                let path = words.next().unwrap_or_default();
                Ok(Some(CgroupNote { path, found: words.collect() }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context(|| "read which cgroup it has"),
        }
    }

    /// The part of the cgroup that this creation can have made. None if there is none.
    fn open(&self) -> Result<Option<Cgroup>> {
        Cgroup::open(&self.path).unless_gone()
    }
}

/// Kills the processes in the cgroup that a creation made, and removes it. One that was only planned is removed if it
/// is empty.
pub(crate) fn remove_cgroup(dir: &StateDir) -> Result<()> {
    if let Some(note) = CgroupNote::read(dir, PLANNED_CGROUP)?
        && let Some(cgroup) = note.open()?
    {
        cgroup.without(&note.found).remove_if_empty()?;
    }
    if let Some(note) = CgroupNote::read(dir, CGROUP)?
        && let Some(cgroup) = note.open()?
    {
        let made = cgroup.without(&note.found);
        made.kill()?;
        made.delete()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn processes_of_a_cgroup_that_existed_before_are_not_killed() {
        let path = format!("/hoist-note-{}", std::process::id());
        let Ok(theirs) = Cgroup::share(&path) else {
            eprintln!("skipped: no rights to make cgroups");
            return;
        };
        let found: Vec<String> = theirs.locations().into_keys().collect();
        let mut process = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        theirs.add(process.id()).unwrap();
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::create(root.path(), "one").unwrap();
        CgroupNote { path, found }.plan(&dir).unwrap();
        CgroupNote::own(&dir).unwrap();
        remove_cgroup(&dir).unwrap();
        drop(process.stdin.take());
        assert_eq!(process.wait().unwrap().code(), Some(0), "it ends of itself");
        theirs.delete().unwrap();
    }

    #[test]
    fn notes_are_read_as_they_were_written() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::create(root.path(), "one").unwrap();
        let check = |found: &[&str]| {
            let found: Vec<String> = found.iter().map(|name| (*name).to_owned()).collect();
            CgroupNote { path: "/a/b".into(), found: found.clone() }.plan(&dir).unwrap();
            CgroupNote::own(&dir).unwrap();
            assert!(CgroupNote::read(&dir, PLANNED_CGROUP).unwrap().is_none());
            let note = CgroupNote::read(&dir, CGROUP).unwrap().unwrap();
            assert_eq!((note.path.as_str(), note.found), ("/a/b", found));
        };
        check(&[]);
        check(&[""]);
        check(&["cpu,cpuacct", "name=systemd", ""]);
    }
}
