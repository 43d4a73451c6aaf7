//! Reads a tree to compare or archive: the names in its directories, and each name as an archive's entry.

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

/// Most bytes of an extended attribute, and of the names of a file's attributes (xattr(7)).
const XATTRS_LEN_MAX: usize = 64 * 1024;

/// A file, directory or other inode at a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its entry in an archive. The path is the name alone, and only a file has a size.
    pub entry: Entry,
    /// The inode's link count. For a directory it has no meaning.
    pub(crate) links: u64,
    /// Device and inode number.
    pub(crate) inode: (u64, u64),
}

impl Node {
    pub fn is_directory(&self) -> bool {
        self.entry.kind == Kind::Directory
    }

    pub fn is_file(&self) -> bool {
        self.entry.kind == Kind::File
    }

    /// Reads the node at a name without following a symlink. `None` if there is none, for sockets, which no archive can
    /// hold, and for overlayfs whiteouts, which delete a name.
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
                // The symlink was removed or replaced since the stat: the name counts as deleted.
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

/// A tree that is only read. Without a root it is empty.
pub(crate) struct Tree(pub(crate) Option<Root>);

impl Tree {
    /// Opens a directory for reading. `None` if the path is no directory, or has a symlink in it.
    pub(crate) fn directory(&self, path: &Path) -> Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        self.0.as_ref().map_or(Ok(None), |root| root.find_without_links(path, flags))
    }

    /// The node at a path; the root's path is empty.
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

    /// Opens a file for reading. `Aborted` if it is gone.
    pub(crate) fn file(&self, path: &Path) -> Result<OwnedFd> {
        let gone = || Error::aborted(format!("{} is gone", path.display()));
        let folder = self.directory(path.parent().unwrap_or(Path::new("")))?.ok_or_else(gone)?;
        open_file(&folder, path.file_name().unwrap_or_default())
    }
}

/// Opens a file in a directory for reading. `Aborted` if the name is no regular file any more.
pub(crate) fn open_file(folder: &OwnedFd, name: &OsStr) -> Result<OwnedFd> {
    open_file_for(folder, name, OFlags::RDONLY)
}

/// Opens a file with the given access mode. Other types are not opened: opening a pipe may block, and opening some
/// devices has side effects.
pub(crate) fn open_file_for(folder: &OwnedFd, name: &OsStr, access: OFlags) -> Result<OwnedFd> {
    let what = || format!("open {}", Path::new(name).display());
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat(folder, name, flags, Mode::empty()).map_err(io::Error::from).context(what)?;
    let stat = linux::beneath::stat(found.as_fd()).context(what)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::aborted(format!("{}: it is no file any more", what())));
    }
    // `NONBLOCK`: the open must not wait for a process that holds a lease on the file (fcntl(2)).
    let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = rustix::fs::open(proc_path(found.as_fd()), flags, Mode::empty());
    opened.map_err(io::Error::from).context(what)
}

/// The names in a directory, except `.wh.` names, which would be whiteouts in a layer.
pub(crate) fn plain_names(folder: &OwnedFd) -> Result<BTreeSet<OsString>> {
    let plain = names(folder)?.into_iter().filter(|name| !name.as_bytes().starts_with(b".wh."));
    Ok(plain.collect())
}

/// The extended attributes of a file, or of a symlink itself, that belong in a layer.
pub(crate) fn attributes(path: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut names = [0; 1024];
    let mut more = Vec::new();
    let names: &[u8] = match llistxattr(path, &mut names) {
        Ok(len) => &names[..len],
        // A file that is gone counts as one without attributes: the caller's next access reports it.
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

/// Whether an attribute is part of the file, unlike those of this machine: overlayfs's own, and labels of security
/// modules. Names with `=` cannot be written as PAX records.
fn belongs_to_content(name: &str) -> bool {
    let kept_by_overlay = name.starts_with("trusted.overlay.") || name.starts_with("user.overlay.");
    let known = name.starts_with("user.")
        || name.starts_with("trusted.")
        || matches!(name, "security.capability" | "system.posix_acl_access" | "system.posix_acl_default");
    known && !kept_by_overlay && !name.contains('=')
}
