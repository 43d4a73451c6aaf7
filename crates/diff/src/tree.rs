//! A tree to be compared: what its directories hold, and what a layer would say of each name.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use linux::beneath::{Root, proc_path};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, lgetxattr, llistxattr, major, minor, openat, readlinkat, statat,
};
use rustix::io::Errno;
use types::{Context, Error, Result};

use crate::names;
use crate::tar::{Entry, Kind};

/// Bytes of an attribute, and of the names of all of a file's (xattr(7)).
const XATTRS_LEN_MAX: usize = 64 * 1024;

/// What is at a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// As a layer says it. The path is the name alone, and a directory has no size.
    pub entry: Entry,
    /// Names that the inode has. More than one of a directory means nothing.
    pub(crate) links: u64,
    /// Device and number.
    pub(crate) inode: (u64, u64),
}

impl Node {
    pub fn is_directory(&self) -> bool {
        self.entry.kind == Kind::Directory
    }

    pub fn is_file(&self) -> bool {
        self.entry.kind == Kind::File
    }

    /// Reads what is at a name, following nothing. None for what no layer can hold: sockets, and overlayfs's
    /// own whiteouts, which mean that nothing is there.
    pub(crate) fn read(folder: &OwnedFd, name: &OsStr) -> Result<Option<Node>> {
        let what = || format!("look at {}", Path::new(name).display());
        let stat = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(None),
            stat => stat.map_err(io::Error::from).context(what)?,
        };
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => match readlinkat(folder, name, Vec::new()) {
                // It was replaced since; whoever reads a tree that changes gets what was there at some time.
                Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
                target => Kind::Symlink(target.map_err(io::Error::from).context(what)?.into_bytes()),
            },
            FileType::CharacterDevice if stat.st_rdev == 0 => return Ok(None),
            FileType::CharacterDevice => {
                Kind::CharacterDevice { major: major(stat.st_rdev).into(), minor: minor(stat.st_rdev).into() }
            }
            FileType::BlockDevice => {
                Kind::BlockDevice { major: major(stat.st_rdev).into(), minor: minor(stat.st_rdev).into() }
            }
            FileType::Fifo => Kind::Fifo,
            _ => return Ok(None),
        };
        let attributes = attributes(&proc_path(folder.as_fd()).join(name)).context(what)?;
        Ok(Some(Node::of(name, kind, &stat, attributes)))
    }

    fn of(name: &OsStr, kind: Kind, stat: &Stat, attributes: BTreeMap<String, Vec<u8>>) -> Node {
        let size = if kind == Kind::File { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 };
        let entry = Entry {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            size,
            attributes,
            ..Entry::new(name.as_bytes(), kind)
        };
        Node { entry, links: stat.st_nlink, inode: (stat.st_dev, stat.st_ino) }
    }
}

/// A tree that is read only. One that is not there has nothing in it.
pub(crate) struct Tree(pub(crate) Option<Root>);

impl Tree {
    /// Opens a directory for its names. None if there is no directory of that path: one to which a symlink
    /// leads is another.
    pub(crate) fn directory(&self, path: &Path) -> Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        self.0.as_ref().map_or(Ok(None), |root| root.find_without_links(path, flags))
    }

    /// What is at a path. The root's is empty.
    pub(crate) fn node(&self, path: &Path) -> Result<Option<Node>> {
        match path.file_name() {
            Some(name) => match self.directory(path.parent().unwrap_or(Path::new("")))? {
                Some(folder) => Node::read(&folder, name),
                None => Ok(None),
            },
            None => match self.directory(path)? {
                Some(root) => Node::read(&root, OsStr::new(".")),
                None => Ok(None),
            },
        }
    }

    /// Opens a file for its data.
    pub(crate) fn file(&self, path: &Path) -> Result<OwnedFd> {
        let gone = || Error::aborted(format!("{} is gone", path.display()));
        let folder = self.directory(path.parent().unwrap_or(Path::new("")))?.ok_or_else(gone)?;
        open_file(&folder, path.file_name().unwrap_or_default())
    }
}

/// Opens a file in a directory for reading. `Aborted` if it is something else by now.
pub(crate) fn open_file(folder: &OwnedFd, name: &OsStr) -> Result<OwnedFd> {
    open_file_for(folder, name, OFlags::RDONLY)
}

/// The same for other purposes. What is no file is not opened: a pipe would wait, and to some devices that alone does
/// something.
pub(crate) fn open_file_for(folder: &OwnedFd, name: &OsStr, access: OFlags) -> Result<OwnedFd> {
    let what = || format!("open {}", Path::new(name).display());
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat(folder, name, flags, Mode::empty()).map_err(io::Error::from).context(what)?;
    let stat = linux::beneath::stat(found.as_fd()).context(what)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::aborted(format!("{}: it is no file any more", what())));
    }
    // Whoever has a lease of the file (fcntl(2)) is not waited for.
    let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = rustix::fs::open(proc_path(found.as_fd()), flags, Mode::empty());
    opened.map_err(io::Error::from).context(what)
}

/// The names in a directory, except those that mean something else in a layer.
pub(crate) fn plain_names(folder: &OwnedFd) -> Result<BTreeSet<OsString>> {
    let plain = names(folder)?.into_iter().filter(|name| !name.as_bytes().starts_with(b".wh."));
    Ok(plain.collect())
}

/// The attributes of a file that belong to its content; of a symlink its own.
pub(crate) fn attributes(path: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut names = [0; 1024];
    let mut more = Vec::new();
    let names: &[u8] = match llistxattr(path, &mut names) {
        Ok(len) => &names[..len],
        // Of a file that is gone, too: the next look says so.
        Err(Errno::NOTSUP | Errno::NOENT) => &[],
        Err(Errno::RANGE) => {
            more.resize(XATTRS_LEN_MAX, 0);
            let len = llistxattr(path, &mut more[..])?;
            &more[..len]
        }
        Err(errno) => return Err(errno.into()),
    };
    for name in names.split(|byte| *byte == 0) {
        let Some(name) = std::str::from_utf8(name).ok().filter(|name| belongs_to_content(name)) else {
            continue;
        };
        let mut value = vec![0; XATTRS_LEN_MAX];
        let c_name = CString::new(name).expect("split at zeros");
        match lgetxattr(path, &c_name, &mut value[..]) {
            Ok(len) => value.truncate(len),
            Err(Errno::NODATA | Errno::NOENT) => continue,
            Err(errno) => return Err(errno.into()),
        }
        found.insert(name.to_owned(), value);
    }
    Ok(found)
}

/// Whether an attribute is a part of what a file is, or of how this machine keeps it: overlayfs's own, and
/// labels of security modules. A name with `=` has no place in PAX.
fn belongs_to_content(name: &str) -> bool {
    let kept_by_overlay = name.starts_with("trusted.overlay.") || name.starts_with("user.overlay.");
    let known = name.starts_with("user.")
        || name.starts_with("trusted.")
        || matches!(name, "security.capability" | "system.posix_acl_access" | "system.posix_acl_default");
    known && !kept_by_overlay && !name.contains('=')
}
