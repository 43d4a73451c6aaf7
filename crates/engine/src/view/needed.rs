//! Which of a container's binds a path leads through.
//!
//! A bind whose source does not answer (a file system of the network, whose server is gone) must not hold up who asks
//! for something else. So the path is walked name by name, as the kernel would, and only what it meets is attached:
//!
//! ```text
//! /data/link/file ─▶ /data is a bind: attach ─▶ link leads to /other: attach ─▶ /other/file
//! ```
//!
//! Where a bind lies is known once the binds that it lies in are attached; until then it waits behind them. The walk
//! only decides what is attached: names are looked up by the kernel, beneath the root, whatever changes meanwhile.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use linux::beneath::Root;
use rustix::fs::{OFlags, readlinkat};
use types::Result;

/// As many symlinks as the kernel follows (path_resolution(7)).
const SYMLINKS_MAX: usize = 40;

/// What is looked for in a container's tree.
#[derive(Clone, Debug)]
pub(crate) struct Reach {
    pub(crate) path: PathBuf,
    /// The last name, if it is a symlink, is followed.
    pub(crate) follows: bool,
    /// What is below it is looked for as well.
    pub(crate) beneath: bool,
}

/// Attaches the binds that are needed, by their numbers in the order of the container's mounts.
pub(super) fn attach(
    root: &Root,
    destinations: &[&Path],
    reach: &Reach,
    attach: impl FnMut(usize) -> Result<()>,
) -> Result<()> {
    let binds = destinations.iter().map(|_| Bind::Done).collect();
    let mut needed = Needed { root, destinations, binds, attach };
    for number in 0..destinations.len() {
        needed.settle(number)?;
    }
    let Walked::To(end) = needed.walk(&reach.path, reach.follows, None)? else { return Ok(()) };
    while let Some(number) = needed.next_beneath(&end).filter(|_| reach.beneath) {
        needed.attach(number)?;
    }
    Ok(())
}

/// What is known of a bind.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Bind {
    /// Where it lies, without links, from the root on.
    Waits(PathBuf),
    /// It lies in another that is not attached.
    Behind(usize),
    /// It is attached, or covered by a later one.
    Done,
}

/// Where a path leads.
enum Walked {
    To(PathBuf),
    /// Into a bind that is not attached.
    Into(usize),
}

struct Needed<'a, F> {
    root: &'a Root,
    destinations: &'a [&'a Path],
    binds: Vec<Bind>,
    attach: F,
}

impl<F: FnMut(usize) -> Result<()>> Needed<'_, F> {
    /// Finds where a bind lies among those before it.
    fn settle(&mut self, number: usize) -> Result<()> {
        let destination = self.destinations[number];
        self.binds[number] = match self.walk(destination, true, Some(number))? {
            Walked::To(place) => Bind::Waits(place),
            Walked::Into(other) => Bind::Behind(other),
        };
        Ok(())
    }

    /// Walks a path. What it meets is attached; for a bind that is only to be settled, nothing is, and those before it
    /// count.
    fn walk(&mut self, path: &Path, follows: bool, settled: Option<usize>) -> Result<Walked> {
        let mut place = PathBuf::new();
        let mut ahead: VecDeque<OsString> = names(path).collect();
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            if name == ".." {
                place.pop();
                continue;
            }
            let next = place.join(&name);
            if let Some(number) = self.waiting_at(&next, settled.unwrap_or(self.binds.len())) {
                match settled {
                    None => self.attach(number)?,
                    // What is mounted over another lies in the same place.
                    Some(_) if ahead.is_empty() => {}
                    Some(_) => return Ok(Walked::Into(number)),
                }
            }
            let is_last = ahead.is_empty();
            let target = if is_last && !follows { None } else { self.link(&place, &name)? };
            match target {
                // One that leads in circles leads nowhere, as who looks it up is told.
                Some(_) if links == SYMLINKS_MAX => return Ok(Walked::To(next)),
                Some(target) => {
                    links += 1;
                    if target.is_absolute() {
                        place = PathBuf::new();
                    }
                    names(&target).rev().for_each(|name| ahead.push_front(name));
                }
                None => place = next,
            }
        }
        Ok(Walked::To(place))
    }

    /// The target of a symlink. None where there is no such, or nothing at all.
    fn link(&self, folder: &Path, name: &OsStr) -> Result<Option<PathBuf>> {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let Some(folder) = self.root.find_without_links(folder, OFlags::PATH | OFlags::DIRECTORY)? else {
            return Ok(None);
        };
        let target = readlinkat(&folder, name, Vec::new()).ok();
        Ok(target.map(|target| PathBuf::from(OsStr::from_bytes(target.as_bytes()))))
    }

    /// The bind that is seen at a place: the last one, of those before `end`.
    fn waiting_at(&self, place: &Path, end: usize) -> Option<usize> {
        self.binds[..end].iter().rposition(|bind| matches!(bind, Bind::Waits(own) if own == place))
    }

    fn next_beneath(&self, place: &Path) -> Option<usize> {
        let lies_there = |bind: &Bind| matches!(bind, Bind::Waits(own) if own.starts_with(place));
        // The outermost first, and of those of one place the one that is seen.
        let found = self.binds.iter().filter(|bind| lies_there(bind)).min_by_key(|bind| match bind {
            Bind::Waits(own) => own.components().count(),
            _ => usize::MAX,
        })?;
        let Bind::Waits(place) = found else { return None };
        self.waiting_at(place, self.binds.len())
    }

    fn attach(&mut self, number: usize) -> Result<()> {
        let Bind::Waits(place) = std::mem::replace(&mut self.binds[number], Bind::Done) else {
            return Ok(());
        };
        (self.attach)(number)?;
        // What was mounted there before is not seen any more.
        for earlier in 0..number {
            let is_covered = match &self.binds[earlier] {
                Bind::Waits(own) => own.starts_with(&place),
                Bind::Behind(other) => *other < number && self.binds[*other] == Bind::Done,
                Bind::Done => false,
            };
            if is_covered {
                self.binds[earlier] = Bind::Done;
            }
        }
        for later in number + 1..self.binds.len() {
            if self.binds[later] == Bind::Behind(number) {
                self.settle(later)?;
            }
        }
        Ok(())
    }
}

/// The names of a path, which counts from the root whether it says so or not.
fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> + '_ {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Attaches nothing: what is below a destination is as in the tree.
    #[track_caller]
    fn check(destinations: &[&str], (path, follows, beneath): (&str, bool, bool), expected: &[usize]) {
        let dir = tempfile::TempDir::new().unwrap();
        for name in ["data/sub", "other", "etc"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        for (name, target) in [
            ("to-data", "/data"),
            ("etc/up", "../data/sub"),
            ("data/out", "../../other"),
            ("a", "b"),
            ("b", "a"),
            ("var", "nowhere/yet"),
        ] {
            symlink(target, dir.path().join(name)).unwrap();
        }
        let root = Root::open(dir.path()).unwrap();
        let destinations: Vec<&Path> = destinations.iter().map(Path::new).collect();
        let mut attached = Vec::new();
        let reach = Reach { path: path.into(), follows, beneath };
        attach(&root, &destinations, &reach, |number| {
            attached.push(number);
            Ok(())
        })
        .unwrap();
        assert_eq!(attached, expected, "{destinations:?} {reach:?}");
    }

    #[test]
    fn what_lies_on_the_path_or_below_it_is_attached() {
        let binds = ["/data", "/other", "/data/sub", "/etc/hosts", "/missing/place"];
        check(&binds, ("/etc/hostname", false, true), &[]);
        check(&binds, ("/etc/hosts", false, false), &[3]);
        check(&binds, ("etc", false, true), &[3]);
        check(&binds, ("etc", false, false), &[]);
        check(&binds, ("/data/file", false, true), &[0]);
        check(&binds, ("/data", false, true), &[0, 2]);
        check(&binds, ("/data/sub/x", false, true), &[0, 2]);
        check(&binds, ("/missing", false, true), &[4]);
        check(&binds, ("/", true, true), &[0, 1, 2, 3, 4]);
    }

    #[test]
    fn links_and_steps_back_lead_to_others() {
        let binds = ["/data", "/other", "/data/sub"];
        check(&binds, ("/to-data", false, true), &[]);
        check(&binds, ("/to-data", true, false), &[0]);
        check(&binds, ("/to-data/x", false, false), &[0]);
        check(&binds, ("/etc/up/x", false, false), &[0, 2]);
        check(&binds, ("/data/out/x", false, false), &[0, 1]);
        check(&binds, ("/etc/../other/x", false, false), &[1]);
        check(&binds, ("/a/x", false, true), &[]);
        // A destination may be a link itself, also one that leads nowhere.
        check(&["/to-data/sub", "/var/x"], ("/data/sub", false, false), &[0]);
        check(&["/to-data/sub", "/var/x"], ("/nowhere/yet/x", false, false), &[1]);
    }

    #[test]
    fn of_what_is_mounted_over_something_only_that_is_attached() {
        check(&["/data", "/data"], ("/data/x", false, false), &[1]);
        check(&["/data/sub", "/data"], ("/data/sub/x", false, true), &[1]);
        check(&["/data", "/data/sub", "/data"], ("/data", false, true), &[2]);
    }
}
