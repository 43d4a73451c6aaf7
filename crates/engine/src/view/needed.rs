//! Finds out which of a container's bind mounts a path passes through.
//!
//! A bind mount whose source does not respond (a network file system without its server) must not block copies from
//! elsewhere. So the path is walked name by name, as the kernel would, and only the mounts on it are attached:
//!
//! ```text
//! /data/link/file ─▶ /data is a bind: attach ─▶ link leads to /other: attach ─▶ /other/file
//! ```
//!
//! The location of a mount is known once the mounts that contain it are attached; until then it is pending. The walk
//! only decides what is attached: the kernel resolves the names beneath the root, whatever changes concurrently.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use linux::beneath::Root;
use rustix::fs::{OFlags, readlinkat};
use types::Result;

/// The kernel's limit on followed symlinks (path_resolution(7)).
const SYMLINKS_MAX: usize = 40;

/// The part of a container's file system that is needed.
#[derive(Clone, Debug)]
pub(crate) struct Reach {
    pub(crate) path: PathBuf,
    /// Whether a symlink as the last component is followed.
    pub(crate) follows: bool,
    /// Whether everything below the path is needed as well.
    pub(crate) beneath: bool,
}

/// Attaches the needed bind mounts, by their indexes in the container's mounts.
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

/// State of a bind mount.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Bind {
    /// Not attached; its location from the root, without symlinks.
    Waits(PathBuf),
    /// It lies in another mount that is not attached.
    Behind(usize),
    /// Attached, or covered by a later mount.
    Done,
}

/// Result of a walk.
enum Walked {
    To(PathBuf),
    /// The path enters a bind mount that is not attached.
    Into(usize),
}

struct Needed<'a, F> {
    root: &'a Root,
    destinations: &'a [&'a Path],
    binds: Vec<Bind>,
    attach: F,
}

impl<F: FnMut(usize) -> Result<()>> Needed<'_, F> {
    /// Determines where a bind mount lies among the earlier ones.
    fn settle(&mut self, number: usize) -> Result<()> {
        let destination = self.destinations[number];
        self.binds[number] = match self.walk(destination, true, Some(number))? {
            Walked::To(place) => Bind::Waits(place),
            Walked::Into(other) => Bind::Behind(other),
        };
        Ok(())
    }

    /// Walks a path and attaches the mounts on it. With `settled`, only locates that mount: attaches nothing, and only
    /// earlier mounts count.
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
                    // A mount over another one has the same location.
                    Some(_) if ahead.is_empty() => {}
                    Some(_) => return Ok(Walked::Into(number)),
                }
            }
            let is_last = ahead.is_empty();
            let target = if is_last && !follows { None } else { self.link(&place, &name)? };
            match target {
                // Too many symlinks: the kernel's lookup will report the error.
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

    /// The target of a symlink; `None` if there is no symlink.
    fn link(&self, folder: &Path, name: &OsStr) -> Result<Option<PathBuf>> {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let Some(folder) = self.root.find_without_links(folder, OFlags::PATH | OFlags::DIRECTORY)? else {
            return Ok(None);
        };
        let target = readlinkat(&folder, name, Vec::new()).ok();
        Ok(target.map(|target| PathBuf::from(OsStr::from_bytes(target.as_bytes()))))
    }

    /// The mount visible at a location: the last one, of those before `end`.
    fn waiting_at(&self, place: &Path, end: usize) -> Option<usize> {
        self.binds[..end].iter().rposition(|bind| matches!(bind, Bind::Waits(own) if own == place))
    }

    fn next_beneath(&self, place: &Path) -> Option<usize> {
        let lies_there = |bind: &Bind| matches!(bind, Bind::Waits(own) if own.starts_with(place));
        // Outermost first; of several at one location, the visible one.
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
        // Earlier mounts at this location are covered.
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

/// The components of a path relative to the root.
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

    /// Attaches nothing, so that paths below a destination are resolved in the snapshot.
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
    fn binds_on_the_path_or_below_it_are_attached() {
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
    fn symlinks_and_dot_dot_lead_to_other_binds() {
        let binds = ["/data", "/other", "/data/sub"];
        check(&binds, ("/to-data", false, true), &[]);
        check(&binds, ("/to-data", true, false), &[0]);
        check(&binds, ("/to-data/x", false, false), &[0]);
        check(&binds, ("/etc/up/x", false, false), &[0, 2]);
        check(&binds, ("/data/out/x", false, false), &[0, 1]);
        check(&binds, ("/etc/../other/x", false, false), &[1]);
        check(&binds, ("/a/x", false, true), &[]);
        // A destination may be a symlink itself, even a dangling one.
        check(&["/to-data/sub", "/var/x"], ("/data/sub", false, false), &[0]);
        check(&["/to-data/sub", "/var/x"], ("/nowhere/yet/x", false, false), &[1]);
    }

    #[test]
    fn only_the_topmost_of_stacked_binds_is_attached() {
        check(&["/data", "/data"], ("/data/x", false, false), &[1]);
        check(&["/data/sub", "/data"], ("/data/sub/x", false, true), &[1]);
        check(&["/data", "/data/sub", "/data"], ("/data", false, true), &[2]);
    }
}
