//! Archiving a file or a directory tree, for copies out of a container.
//!
//! A hostile program may change the tree meanwhile: directories are opened by their path from the root without
//! following symlinks, files only after their type was checked, and names that vanish meanwhile are left out. One
//! directory and one file are open at a time, at any depth.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use linux::beneath::Root;
use types::{Context, Error, ErrorKind, Result};

use crate::names;
use crate::tar::{Entry, Kind, Writer};
use crate::tree::{Node, Tree, open_file};

/// Archives `name` of `folder` with everything below it, as `called` in the archive. If `called` is empty, the
/// directory itself gets no entry, and the names in it are at the top of the archive. A pseudo file system (procfs,
/// sysfs) mounted below contributes its mount point alone. `go_on` is called before each name and read, and its error
/// ends the work.
///
/// `NotFound` if there is no such name, or it is a socket; `FailedPrecondition` if it is in a pseudo file system.
pub fn pack<W: Write>(
    folder: OwnedFd,
    name: &OsStr,
    called: &[u8],
    to: &mut Writer<W>,
    go_on: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let shown = String::from_utf8_lossy(called).into_owned();
    let top = Node::read(&folder, name)?.ok_or_else(|| {
        Error::not_found(format!("{shown} is gone, or is a socket, which no archive can hold"))
    })?;
    if is_in_pseudo_file_system(&folder, name, &top)? {
        return Err(Error::failed_precondition(format!(
            "{shown} is made up by the kernel for whoever reads it, and cannot be copied: read it with `exec`"
        )));
    }
    let tree = Tree(Some(Root::from_fd(folder, Path::new("the tree"))));
    let mut packing = Packing { tree, to, go_on, links: HashMap::new() };
    let path = PathBuf::from(name);
    if !top.is_directory() {
        let folder = packing.tree.directory(Path::new(""))?;
        let folder = folder.ok_or_else(|| Error::not_found(format!("{shown} is gone")))?;
        return packing.write(&folder, name, called.to_vec(), top);
    }
    // Directories that are still to be written, the next one last.
    let mut waiting =
        vec![Directory { path, called: called.to_vec(), parent_device: top.inode.0, node: top }];
    while let Some(directory) = waiting.pop() {
        packing.directory(directory, &mut waiting)?;
    }
    Ok(())
}

/// A directory that is still to be written.
struct Directory {
    /// Its path in the tree.
    path: PathBuf,
    /// Its path in the archive.
    called: Vec<u8>,
    node: Node,
    parent_device: u64,
}

struct Packing<'a, W: Write> {
    tree: Tree,
    to: &'a mut Writer<W>,
    go_on: &'a dyn Fn() -> Result<()>,
    /// The path in the archive of each inode with several links, by its device and number.
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl<W: Write> Packing<'_, W> {
    /// Writes a directory and the names in it; its subdirectories are added to `waiting`.
    fn directory(&mut self, directory: Directory, waiting: &mut Vec<Directory>) -> Result<()> {
        let Directory { path, called, node, parent_device } = directory;
        (self.go_on)()?;
        let what = || format!("copy {}", path.display());
        if !called.is_empty() {
            let entry = Entry { path: called.clone(), ..node.entry };
            self.to.entry(&entry, &mut io::empty()).context(what)?;
        }
        let Some(folder) = self.tree.directory(&path).map_err(|error| error.context(what()))? else {
            return Ok(());
        };
        let device = node.inode.0;
        if device != parent_device && is_pseudo_file_system(&folder)? {
            return Ok(());
        }
        let mut below = Vec::new();
        let mut names = names(&folder)?;
        names.sort_unstable();
        names.dedup();
        for name in names {
            (self.go_on)()?;
            let Some(node) = Node::read(&folder, &name).map_err(|error| error.context(what()))? else {
                continue;
            };
            let called = match &called[..] {
                [] => name.as_bytes().to_vec(),
                above => [above, b"/", name.as_bytes()].concat(),
            };
            if node.is_directory() {
                below.push(Directory { path: path.join(&name), called, node, parent_device: device });
            } else {
                self.write(&folder, &name, called, node)?;
            }
        }
        waiting.extend(below.into_iter().rev());
        Ok(())
    }

    /// Writes a name that is no directory.
    fn write(&mut self, folder: &OwnedFd, name: &OsStr, called: Vec<u8>, node: Node) -> Result<()> {
        let what = || format!("copy {}", String::from_utf8_lossy(&called));
        let mut entry = Entry { path: called.clone(), ..node.entry };
        if entry.kind != Kind::File {
            return self.to.entry(&entry, &mut io::empty()).context(what);
        }
        if node.links > 1
            && let Some(first) = self.links.get(&node.inode)
        {
            entry.kind = Kind::HardLink(first.clone());
            return self.to.entry(&entry, &mut io::empty()).context(what);
        }
        if entry.size > 0 {
            let file = match open_file(folder, name) {
                // The file was removed, or replaced by something that is no file.
                Err(error) if error.is(ErrorKind::NotFound) || error.is(ErrorKind::Aborted) => return Ok(()),
                file => File::from(file.map_err(|error| error.context(what()))?),
            };
            entry.size = file.metadata().context(what)?.len();
            let mut data = Data { file, go_on: self.go_on };
            self.to.entry(&entry, &mut data).context(what)?;
        } else {
            self.to.entry(&entry, &mut io::empty()).context(what)?;
        }
        if node.links > 1 {
            self.links.insert(node.inode, called.clone());
        }
        Ok(())
    }
}

/// The data of a file, until `go_on` fails.
struct Data<'a> {
    file: File,
    go_on: &'a dyn Fn() -> Result<()>,
}

impl Read for Data<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        (self.go_on)().map_err(io::Error::other)?;
        self.file.read(bytes)
    }
}

/// Whether a file or directory is in a pseudo file system, whose content the kernel generates.
fn is_in_pseudo_file_system(folder: &OwnedFd, name: &OsStr, node: &Node) -> Result<bool> {
    use rustix::fs::{Mode, OFlags, openat};
    if !node.is_file() && !node.is_directory() {
        return Ok(false);
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let what = || format!("look at {}", Path::new(name).display());
    let found = openat(folder, name, flags, Mode::empty()).map_err(io::Error::from).context(what)?;
    is_pseudo_file_system(&found)
}

fn is_pseudo_file_system(fd: &OwnedFd) -> Result<bool> {
    linux::beneath::is_pseudo_file(fd.as_fd()).context(|| "look at the file system")
}
