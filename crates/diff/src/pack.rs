//! A name of a directory, with all that is below it, as an archive.
//!
//! Whoever works in the tree meanwhile may be hostile: directories are opened by their whole path without links, files
//! only once they are known to be files, and what is gone by then is left out. One directory and one file are open at a
//! time, however deep the tree is.

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

/// Writes what is at a name of a directory. In the archive it is called `called`; the names below follow. A directory that is
/// called nothing is not there itself, and the names in it are the first. Of what the
/// kernel makes up, the directories that it is mounted on are written and nothing else. `go_on` is asked again and again,
/// and its error ends the work.
///
/// `NotFound` if nothing is at the name, `FailedPrecondition` if it cannot be in an archive.
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
    if is_made_up(&folder, name, &top)? {
        return Err(Error::failed_precondition(format!(
            "{shown} is made up by the kernel for whoever reads it, and cannot be copied: read it with `exec`"
        )));
    }
    let tree = Tree(Some(Root::from_fd(folder, Path::new("the tree"))));
    let mut packing = Packing { tree, to, go_on, known: HashMap::new() };
    let path = PathBuf::from(name);
    if !top.is_directory() {
        let folder = packing.tree.directory(Path::new(""))?;
        let folder = folder.ok_or_else(|| Error::not_found(format!("{shown} is gone")))?;
        return packing.write(&folder, name, called.to_vec(), top);
    }
    // Directories that are still to be written, the next one last.
    let mut waiting = vec![Directory { path, called: called.to_vec(), above: top.inode.0, node: top }];
    while let Some(directory) = waiting.pop() {
        packing.directory(directory, &mut waiting)?;
    }
    Ok(())
}

struct Directory {
    path: PathBuf,
    called: Vec<u8>,
    node: Node,
    /// The device of the directory that it is in.
    above: u64,
}

struct Packing<'a, W: Write> {
    tree: Tree,
    to: &'a mut Writer<W>,
    go_on: &'a dyn Fn() -> Result<()>,
    /// Files with several names, by device and number, and the first of these names in the archive.
    known: HashMap<(u64, u64), Vec<u8>>,
}

impl<W: Write> Packing<'_, W> {
    /// Writes a directory and what is in it, but for its directories, which wait.
    fn directory(&mut self, directory: Directory, waiting: &mut Vec<Directory>) -> Result<()> {
        let Directory { path, called, node, above } = directory;
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
        if device != above && made_up(&folder)? {
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
                below.push(Directory { path: path.join(&name), called, node, above: device });
            } else {
                self.write(&folder, &name, called, node)?;
            }
        }
        waiting.extend(below.into_iter().rev());
        Ok(())
    }

    /// Writes what is no directory.
    fn write(&mut self, folder: &OwnedFd, name: &OsStr, called: Vec<u8>, node: Node) -> Result<()> {
        let what = || format!("copy {}", String::from_utf8_lossy(&called));
        let mut entry = Entry { path: called.clone(), ..node.entry };
        if entry.kind != Kind::File {
            return self.to.entry(&entry, &mut io::empty()).context(what);
        }
        if node.links > 1
            && let Some(first) = self.known.get(&node.inode)
        {
            entry.kind = Kind::HardLink(first.clone());
            return self.to.entry(&entry, &mut io::empty()).context(what);
        }
        if entry.size > 0 {
            let file = match open_file(folder, name) {
                // It was taken away, or replaced by what is no file.
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
            self.known.insert(node.inode, called.clone());
        }
        Ok(())
    }
}

/// The data of a file, as long as it is wanted.
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

/// Whether what is at a name is not kept anywhere.
fn is_made_up(folder: &OwnedFd, name: &OsStr, node: &Node) -> Result<bool> {
    use rustix::fs::{Mode, OFlags, openat};
    if !node.is_file() && !node.is_directory() {
        return Ok(false);
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let what = || format!("look at {}", Path::new(name).display());
    let found = openat(folder, name, flags, Mode::empty()).map_err(io::Error::from).context(what)?;
    made_up(&found)
}

fn made_up(fd: &OwnedFd) -> Result<bool> {
    linux::beneath::is_pseudo_file(fd.as_fd()).context(|| "look at the file system")
}
