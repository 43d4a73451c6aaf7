//! Paths in a tree: from the path of an archive's entry to the directory that the entry is in.
//!
//! Invariants
//! - No path leads out of the tree: `..` stops at the root, and symlinks are resolved inside it, as if it were the root
//!   of a process (chroot(2)).
//! - The work for an archive is bounded, also if its symlinks lead to each other.

use types::{Error, Result};

use super::{Content, Id, PATH_LEN_MAX, ROOT, Tree};

/// Most symlinks followed for one path (path_resolution(7)).
const SYMLINKS_MAX: usize = 40;
/// Steps that symlinks may add to the path of one entry before they count, and the most of counted steps of all
/// entries. The bound is needed since a few symlinks of the greatest length make a hundred thousand steps for an entry.
const DETOUR_FROM: usize = 64;
const DETOURS_LEN_MAX: u64 = 1 << 22;

impl Tree {
    /// The parent of an entry, created if it is missing, and the entry's name in it. `None` for the root.
    pub(super) fn place_of<'p>(&mut self, path: &'p [u8]) -> Result<Option<(Id, &'p [u8])>> {
        // Most entries are in the same directory as the one before.
        if let Some((recent, id)) = &self.recent
            && let Some(name) = path.strip_prefix(&recent[..]).and_then(|rest| rest.strip_prefix(b"/"))
            && path.len() <= PATH_LEN_MAX
            && !matches!(name, b"" | b"." | b"..")
            && !name.iter().any(|byte| matches!(byte, b'/' | 0))
        {
            return Ok(Some((*id, name)));
        }
        let mut path = clean(path)?;
        match path.pop() {
            Some(name) => Ok(Some((self.make_parent(&path)?, name))),
            None => Ok(None),
        }
    }

    /// The directory at a path, created with its parents if they are missing.
    pub(super) fn make_parent(&mut self, path: &[&[u8]]) -> Result<Id> {
        let joined = path.join(&b'/');
        if let Some((recent, id)) = &self.recent
            && *recent == joined
        {
            return Ok(*id);
        }
        let way = self.resolve(path, true)?.expect("made where it was missing");
        let id = *way.last().expect("the root stays");
        self.recent = Some((joined, id));
        Ok(id)
    }

    /// Resolves a path to a directory, through symlinks that stay inside the root: its ancestors, the root first, and
    /// the directory itself last. With `make`, creates missing directories, and fails with `FailedPrecondition` if a
    /// name on the way is no directory. Without it, returns `None` in both cases.
    pub(super) fn resolve(&mut self, path: &[&[u8]], make: bool) -> Result<Option<Vec<Id>>> {
        // The directories so far, and the names that are left, the next one last.
        let mut way = vec![ROOT];
        let mut left: Vec<Vec<u8>> = path.iter().rev().map(|name| name.to_vec()).collect();
        let (mut symlinks, mut steps) = (0, 0);
        while let Some(name) = left.pop() {
            if name == b".." {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            let here = *way.last().expect("the root stays");
            let Some(child) = self.child(here, &name) else {
                if !make {
                    return Ok(None);
                }
                way.push(self.make_directory(here, &name, None)?);
                continue;
            };
            match &self.inodes[child as usize].content {
                Content::Directory(_) => way.push(child),
                Content::Symlink(target) => {
                    let target = self.text.of(*target);
                    symlinks += 1;
                    if symlinks > SYMLINKS_MAX {
                        return Err(Error::invalid_argument("too many links lead to each other"));
                    }
                    if target.first() == Some(&b'/') {
                        way.truncate(1);
                    }
                    let before = left.len();
                    left.extend(names(target).rev().map(<[u8]>::to_vec));
                    steps += left.len() - before;
                    if steps > DETOUR_FROM {
                        self.detour_len += (left.len() - before) as u64;
                    }
                    if self.detour_len > DETOURS_LEN_MAX {
                        return Err(Error::resource_exhausted(format!(
                            "links lead further round than the {DETOURS_LEN_MAX} steps that they may together"
                        )));
                    }
                }
                // The layer deletes the lower directory, and creates one with names of its own.
                Content::Whiteout if make => way.push(self.make_directory(here, &name, Some(child))?),
                _ if make => {
                    let name = String::from_utf8_lossy(&name).into_owned();
                    return Err(Error::failed_precondition(format!("{name} is not a directory")));
                }
                _ => return Ok(None),
            }
        }
        Ok(Some(way))
    }
}

/// The names of an entry's path: `..` removes the name before it, and stops at the root.
pub(super) fn clean(path: &[u8]) -> Result<Vec<&[u8]>> {
    if path.len() > PATH_LEN_MAX {
        return Err(Error::invalid_argument(format!("a path of {} bytes is too long", path.len())));
    }
    let mut clean = Vec::new();
    for name in names(path) {
        match name {
            b".." => drop(clean.pop()),
            name if name.contains(&0) => return Err(Error::invalid_argument("a name contains a zero byte")),
            name => clean.push(name),
        }
    }
    Ok(clean)
}

fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."))
}
