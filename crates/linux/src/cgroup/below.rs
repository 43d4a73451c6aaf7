//! Walks over the cgroups below one, however many and deep they are.
//!
//! A container may nest thousands of cgroups, deeper than a path or a table of descriptors reaches, or make millions
//! side by side. So one directory is open at a time, and the walk returns by `..`: a cgroup never moves to another
//! parent.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, openat, unlinkat};
use rustix::io::Errno;

use super::file::is_gone;

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Calls `each` with every descendant's directory, parents first. Those that vanish meanwhile are skipped.
pub(super) fn for_each(
    top: BorrowedFd<'_>,
    mut each: impl FnMut(BorrowedFd<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let Some(top) = open(top, c".")? else { return Ok(()) };
    let mut list = List::new(top)?;
    // The position in the list of each ancestor, which is all that is kept of it.
    let mut above = Vec::new();
    loop {
        if let Some(child) = list.next()? {
            let Some(dir) = open(list.dir()?, &child.name)? else { continue };
            each(dir.as_fd())?;
            above.push(child.place);
            list = List::new(dir)?;
        } else {
            let Some(place) = above.pop() else { return Ok(()) };
            list = list.of_parent(place)?;
        }
    }
}

/// Removes all descendants. Fails with `EBUSY` at the first that has processes.
pub(super) fn remove(top: BorrowedFd<'_>) -> io::Result<()> {
    let Some(mut dir) = open(top, c".")? else { return Ok(()) };
    let mut depth = 0_u64;
    // The child that was just left, with nothing below it any more.
    let mut emptied = None;
    loop {
        match remove_until_one_stays(&dir)? {
            Some(child) if emptied == Some(child.inode) => return Err(Errno::BUSY.into()),
            Some(child) => {
                if let Some(below) = open(dir.as_fd(), &child.name)? {
                    (dir, depth, emptied) = (below, depth + 1, None);
                }
            }
            None if depth == 0 => return Ok(()),
            None => {
                emptied = Some(fstat(&dir)?.st_ino);
                (dir, depth) = (parent(dir.as_fd())?, depth - 1);
            }
        }
    }
}

/// Removes children until one cannot be removed, because it is not empty.
fn remove_until_one_stays(dir: &OwnedFd) -> io::Result<Option<Child>> {
    let Some(own) = open(dir.as_fd(), c".")? else { return Ok(None) };
    let mut list = List::new(own)?;
    while let Some(child) = list.next()? {
        match unlinkat(dir, &child.name, AtFlags::REMOVEDIR).map_err(io::Error::from) {
            Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => return Ok(Some(child)),
            Err(error) if !is_gone(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(None)
}

/// A cgroup in the list of its parent.
struct Child {
    name: CString,
    inode: u64,
    /// Its position in the list: reading from there returns it first.
    place: i64,
}

/// The children of a cgroup.
struct List {
    entries: Dir,
    place: i64,
}

impl List {
    fn new(dir: OwnedFd) -> io::Result<List> {
        Ok(List { entries: Dir::new(dir)?, place: 0 })
    }

    fn dir(&self) -> io::Result<BorrowedFd<'_>> {
        Ok(self.entries.fd()?)
    }

    fn next(&mut self) -> io::Result<Option<Child>> {
        while let Some(entry) = self.entries.read() {
            let entry = match entry.map_err(io::Error::from) {
                Err(error) if is_gone(&error) => return Ok(None),
                entry => entry?,
            };
            let place = std::mem::replace(&mut self.place, entry.offset());
            let name = entry.file_name();
            if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
                return Ok(Some(Child { name: name.to_owned(), inode: entry.ino(), place }));
            }
        }
        Ok(None)
    }

    /// The parent's list, positioned right behind this cgroup.
    fn of_parent(&self, place: i64) -> io::Result<List> {
        let inode = fstat(self.dir()?)?.st_ino;
        let mut list = List::new(parent(self.dir()?)?)?;
        // Positions are hashes of names, and names can be chosen to collide, so the reading starts one earlier.
        list.go_to((place - 1).max(0))?;
        while let Some(child) = list.next()? {
            if child.inode == inode {
                break;
            }
            if child.place > place {
                // It was removed, and this is the next one.
                list.go_to(child.place)?;
                break;
            }
        }
        Ok(list)
    }

    fn go_to(&mut self, place: i64) -> io::Result<()> {
        self.place = place;
        Ok(self.entries.seek(place)?)
    }
}

/// Opens a directory for reading; None if it was removed meanwhile.
fn open(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<OwnedFd>> {
    match openat(dir, name, FLAGS, Mode::empty()).map_err(io::Error::from) {
        Err(error) if is_gone(&error) => Ok(None),
        opened => opened.map(Some),
    }
}

/// The parent, also of a directory that was removed meanwhile.
fn parent(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(openat(dir, c"..", FLAGS, Mode::empty())?)
}
