//! What differs between two trees, name by name.
//!
//! ```text
//!            names ◀── guide: the layers in which the two differ, or both trees
//!              │
//! lower ─stat──┼──stat─ upper
//!              ▼
//!   Removed · Added · Modified · Same (of several names only)
//! ```
//!
//! Both trees are walked side by side. Where it is known which overlay layers the two do not share, these are
//! the guide: a name that none of them has is the same in both trees, and so is all below it. What is there
//! is read from the trees themselves all the same, so the guide makes a walk shorter and changes nothing of
//! its result. Below a directory that hides or moves what lies under it, the guide says nothing.
//!
//! Invariants
//! - Changes come in an order that follows from the trees alone: a directory, then its other names by their
//!   bytes, then its directories with all below, by theirs.
//! - One directory of each tree is open at a time, however deep they are.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use linux::beneath::{Root, proc_path};
use rustix::fs::getxattr;
use rustix::io::{Errno, pread};
use types::{Context, Result};

use crate::tar::Kind;
use crate::tree::{Node, Tree, open_file, plain_names};

/// Bytes that are compared at a time.
const BUFFER_LEN: usize = 64 * 1024;

/// By these a directory of a layer hides what lies below it, or shows another directory's (overlayfs.rst).
const HIDING_ATTRIBUTES: [&str; 4] =
    ["trusted.overlay.opaque", "trusted.overlay.redirect", "user.overlay.opaque", "user.overlay.redirect"];

/// How a name changed from the lower tree to the upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    Added,
    Modified,
    /// With everything below it.
    Removed,
    /// It did not, but has other names that may have.
    Same,
}

/// One name that changed.
#[derive(Debug)]
pub struct Change<'a> {
    /// From the root on; the root's own is empty.
    pub path: &'a Path,
    pub kind: ChangeKind,
    /// What was there, and what is. None if nothing.
    pub lower: Option<&'a Node>,
    pub upper: Option<&'a Node>,
}

/// Two trees, and what is known of where they differ.
pub struct Trees {
    pub(crate) lower: Tree,
    pub(crate) upper: Tree,
    /// None if nothing is known.
    pub(crate) guide: Option<Vec<Tree>>,
    /// Not told if they were added and are empty.
    places: BTreeSet<PathBuf>,
}

impl Trees {
    /// Two directories, or nothing in the place of one.
    pub fn new(lower: Option<OwnedFd>, upper: Option<OwnedFd>) -> Trees {
        let tree = |fd: Option<OwnedFd>, name: &str| Tree(fd.map(|fd| Root::from_fd(fd, Path::new(name))));
        Trees {
            lower: tree(lower, "the lower tree"),
            upper: tree(upper, "the upper tree"),
            guide: None,
            places: BTreeSet::new(),
        }
    }

    /// Passes over these paths if they were added and are empty: the places that a runtime makes to mount on.
    #[must_use]
    pub fn without_places(mut self, places: BTreeSet<PathBuf>) -> Trees {
        self.places = places;
        self
    }

    /// Tells each change.
    pub fn changes(&self, mut tell: impl FnMut(&Change<'_>) -> Result<()>) -> Result<()> {
        self.compare_roots(&mut tell)?;
        let is_guided = self.guide.is_some();
        let mut ahead = vec![Directory { path: PathBuf::new(), is_guided, changed: None }];
        while let Some(directory) = ahead.pop() {
            if let Some((kind, lower, upper)) = &directory.changed {
                tell(&Change {
                    path: &directory.path,
                    kind: *kind,
                    lower: lower.as_ref(),
                    upper: Some(upper),
                })?;
            }
            let mut below = self.compare_directories(&directory, &mut tell)?;
            below.reverse();
            ahead.append(&mut below);
        }
        Ok(())
    }

    /// The time of a root says when its tree was mounted or unpacked, so it is not compared.
    fn compare_roots(&self, tell: &mut dyn FnMut(&Change<'_>) -> Result<()>) -> Result<()> {
        let path = Path::new("");
        let (Some(lower), Some(mut upper)) = (self.lower.node(path)?, self.upper.node(path)?) else {
            return Ok(());
        };
        upper.entry.path.clear();
        let looks = |node: &Node| (node.entry.mode, node.entry.uid, node.entry.gid);
        if looks(&lower) == looks(&upper) && lower.entry.attributes == upper.entry.attributes {
            return Ok(());
        }
        tell(&Change { path, kind: ChangeKind::Modified, lower: Some(&lower), upper: Some(&upper) })
    }

    /// Tells what changed in a directory but the directories in it, which it returns.
    fn compare_directories(
        &self,
        directory: &Directory,
        tell: &mut dyn FnMut(&Change<'_>) -> Result<()>,
    ) -> Result<Vec<Directory>> {
        let what = || format!("compare /{}", directory.path.display());
        let lower = self.lower.directory(&directory.path)?;
        let upper = self.upper.directory(&directory.path)?;
        let names = match &self.guide {
            Some(guide) if directory.is_guided => guided_names(guide, &directory.path).context(what)?,
            _ => {
                let mut names = lower.as_ref().map_or_else(|| Ok(BTreeSet::new()), plain_names)?;
                names.append(&mut upper.as_ref().map_or_else(|| Ok(BTreeSet::new()), plain_names)?);
                names
            }
        };
        let mut below = Vec::new();
        for name in names {
            let look = |folder: &Option<OwnedFd>| match folder {
                Some(folder) => Node::read(folder, &name).context(what),
                None => Ok(None),
            };
            let (old, new) = (look(&lower)?, look(&upper)?);
            let kind = match ((&old, &lower), (&new, &upper)) {
                ((Some(old), Some(lower)), (Some(new), Some(upper))) => {
                    let same = old.entry == new.entry
                        && (old.is_directory() || old.links == new.links)
                        && same_data((old, lower), (new, upper), &name).context(what)?;
                    if same { ChangeKind::Same } else { ChangeKind::Modified }
                }
                ((Some(_), _), _) => ChangeKind::Removed,
                (_, (Some(_), _)) => ChangeKind::Added,
                _ => continue,
            };
            let path = directory.path.join(&name);
            let is_place = kind == ChangeKind::Added && self.places.contains(&path);
            match new {
                Some(new) if is_place && new.entry.kind == Kind::File && new.entry.size == 0 => {}
                Some(new) if new.is_directory() => {
                    let are_directories = old.as_ref().is_some_and(Node::is_directory);
                    let is_guided = directory.is_guided && are_directories && !self.is_hidden(&path)?;
                    let is_told = kind != ChangeKind::Same && !is_place;
                    let changed = is_told.then_some((kind, old, new));
                    below.push(Directory { path, is_guided, changed });
                }
                new => {
                    let has_other_names = new.as_ref().is_some_and(|new| new.links > 1);
                    if kind != ChangeKind::Same || has_other_names {
                        tell(&Change { path: &path, kind, lower: old.as_ref(), upper: new.as_ref() })?;
                    }
                }
            }
        }
        Ok(below)
    }

    /// Whether a layer of the guide hides or moves what lies below it at this path.
    fn is_hidden(&self, path: &Path) -> Result<bool> {
        for layer in self.guide.iter().flatten() {
            let Some(folder) = layer.directory(path)? else { continue };
            let folder = proc_path(folder.as_fd());
            if HIDING_ATTRIBUTES.iter().any(|name| getxattr(&folder, *name, &mut [0_u8; 0]).is_ok()) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// A directory that is still to be looked into.
struct Directory {
    path: PathBuf,
    /// Whether only the names that the guide has can differ.
    is_guided: bool,
    /// How it changed itself, from what, and to what.
    changed: Option<(ChangeKind, Option<Node>, Node)>,
}

fn guided_names(guide: &[Tree], path: &Path) -> Result<BTreeSet<OsString>> {
    let mut names = BTreeSet::new();
    for layer in guide {
        if let Some(folder) = layer.directory(path)? {
            names.append(&mut plain_names(&folder)?);
        }
    }
    Ok(names)
}

/// Whether two files of one size hold the same. Equal times prove nothing: they can be set, and an archive
/// may have rounded them.
fn same_data(lower: (&Node, &OwnedFd), upper: (&Node, &OwnedFd), name: &OsStr) -> Result<bool> {
    let ((old, old_folder), (new, new_folder)) = (lower, upper);
    if old.entry.kind != Kind::File || old.inode == new.inode {
        return Ok(true);
    }
    let (one, other) = (open_file(old_folder, name)?, open_file(new_folder, name)?);
    let (mut left, mut right) = ([0; BUFFER_LEN], [0; BUFFER_LEN]);
    let mut at = 0;
    loop {
        let what = || format!("read {}", Path::new(name).display());
        let len = read_at(&one, &mut left, at).context(what)?;
        if len != read_at(&other, &mut right, at).context(what)? || left[..len] != right[..len] {
            return Ok(false);
        }
        if len < BUFFER_LEN {
            return Ok(true);
        }
        at += len as u64;
    }
}

/// Fills the buffer; less only at the end of the file.
fn read_at(file: &OwnedFd, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match pread(file, &mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(filled)
}
