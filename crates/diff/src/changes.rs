//! The differences between two trees, name by name.
//!
//! ```text
//!            names ◀── guide: the layers in which the two differ, or both trees
//!              │
//! lower ─stat──┼──stat─ upper
//!              ▼
//!   Removed · Added · Modified · Same (only for inodes with several links)
//! ```
//!
//! Both trees are walked side by side. If the overlay layers that only one of the trees has are known, they guide the
//! walk: a name that none of these layers has is the same in both trees, and so is everything below it. Entries are
//! still read from the trees, so the guide only shortens the walk and never changes its result. Below an opaque or
//! redirected directory the guide is not used.
//!
//! Invariants
//! - The order of changes depends on the trees alone: a directory, then its non-directories sorted by the bytes of
//!   their names, then its subdirectories in the same order, each with everything below it.
//! - One directory of each tree is open at a time, at any depth.

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

/// Bytes compared at a time.
const BUFFER_LEN: usize = 64 * 1024;

/// Attributes that make a layer's directory hide the lower one of its path, or show another (overlayfs.rst).
const HIDING_ATTRIBUTES: [&str; 4] =
    ["trusted.overlay.opaque", "trusted.overlay.redirect", "user.overlay.opaque", "user.overlay.redirect"];

/// How a name changed from the lower tree to the upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    Added,
    Modified,
    /// With everything below it.
    Removed,
    /// Unchanged, reported because its inode has other links, which may have changed.
    Same,
}

/// One name that changed.
#[derive(Debug)]
pub struct Change<'a> {
    /// Relative to the root; empty for the root itself.
    pub path: &'a Path,
    pub kind: ChangeKind,
    /// The node of the lower tree; `None` if it has no such name.
    pub lower: Option<&'a Node>,
    /// The node of the upper tree; `None` if it has no such name.
    pub upper: Option<&'a Node>,
}

/// Two trees to compare, with the layers that may differ if these are known.
pub struct Trees {
    pub(crate) lower: Tree,
    pub(crate) upper: Tree,
    /// The layers that only one of the trees has; `None` if they are not known.
    pub(crate) guide: Option<Vec<Tree>>,
    /// Paths that are not reported if they were added and are empty.
    mount_points: BTreeSet<PathBuf>,
}

impl Trees {
    /// The trees of two directories; `None` is an empty tree.
    pub fn new(lower: Option<OwnedFd>, upper: Option<OwnedFd>) -> Trees {
        let tree = |fd: Option<OwnedFd>, name: &str| Tree(fd.map(|fd| Root::from_fd(fd, Path::new(name))));
        Trees {
            lower: tree(lower, "the lower tree"),
            upper: tree(upper, "the upper tree"),
            guide: None,
            mount_points: BTreeSet::new(),
        }
    }

    /// Skips these paths if they were added and are empty: the mount points that a runtime creates in a root file
    /// system.
    #[must_use]
    pub fn without_mount_points(mut self, mount_points: BTreeSet<PathBuf>) -> Trees {
        self.mount_points = mount_points;
        self
    }

    /// Calls `report` with each change, and stops at its first error.
    pub fn changes(&self, mut report: impl FnMut(&Change<'_>) -> Result<()>) -> Result<()> {
        self.compare_roots(&mut report)?;
        let is_guided = self.guide.is_some();
        let mut pending = vec![Directory { path: PathBuf::new(), is_guided, changed: None }];
        while let Some(directory) = pending.pop() {
            if let Some((kind, lower, upper)) = &directory.changed {
                report(&Change {
                    path: &directory.path,
                    kind: *kind,
                    lower: lower.as_ref(),
                    upper: Some(upper),
                })?;
            }
            let mut below = self.compare_directories(&directory, &mut report)?;
            below.reverse();
            pending.append(&mut below);
        }
        Ok(())
    }

    /// Compares the roots but for their times, which only say when a tree was mounted or unpacked.
    fn compare_roots(&self, report: &mut dyn FnMut(&Change<'_>) -> Result<()>) -> Result<()> {
        let path = Path::new("");
        let (Some(lower), Some(mut upper)) = (self.lower.node(path)?, self.upper.node(path)?) else {
            return Ok(());
        };
        upper.entry.path.clear();
        let permissions = |node: &Node| (node.entry.mode, node.entry.uid, node.entry.gid);
        if permissions(&lower) == permissions(&upper) && lower.entry.attributes == upper.entry.attributes {
            return Ok(());
        }
        report(&Change { path, kind: ChangeKind::Modified, lower: Some(&lower), upper: Some(&upper) })
    }

    /// Reports the changes in a directory, except those of its subdirectories, which it returns.
    fn compare_directories(
        &self,
        directory: &Directory,
        report: &mut dyn FnMut(&Change<'_>) -> Result<()>,
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
            let read = |folder: &Option<OwnedFd>| match folder {
                Some(folder) => Node::read(folder, &name).context(what),
                None => Ok(None),
            };
            let (old, new) = (read(&lower)?, read(&upper)?);
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
            let is_mount_point = kind == ChangeKind::Added && self.mount_points.contains(&path);
            match new {
                Some(new) if is_mount_point && new.entry.kind == Kind::File && new.entry.size == 0 => {}
                Some(new) if new.is_directory() => {
                    let are_directories = old.as_ref().is_some_and(Node::is_directory);
                    let is_guided = directory.is_guided && are_directories && !self.is_hidden(&path)?;
                    let is_reported = kind != ChangeKind::Same && !is_mount_point;
                    let changed = is_reported.then_some((kind, old, new));
                    below.push(Directory { path, is_guided, changed });
                }
                new => {
                    let has_other_links = new.as_ref().is_some_and(|new| new.links > 1);
                    if kind != ChangeKind::Same || has_other_links {
                        report(&Change { path: &path, kind, lower: old.as_ref(), upper: new.as_ref() })?;
                    }
                }
            }
        }
        Ok(below)
    }

    /// Whether the directory at this path is opaque or redirected in a layer of the guide.
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

/// A directory whose names are still to be compared.
struct Directory {
    path: PathBuf,
    /// Whether only names in layers of the guide can differ.
    is_guided: bool,
    /// The change of the directory itself: its kind, the old node and the new one.
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

/// Whether two files of one size have the same data. Equal times prove nothing: a program can set them, and an archive
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

/// Fills the buffer, or reads less at the end of the file.
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
