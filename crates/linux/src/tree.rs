//! Trees of files, copied with all that the kernel keeps of them, and measured.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Timespec, Timestamps, fstat, mknodat, openat, statat,
    utimensat,
};
use rustix::io::Errno;

/// Copies a directory to a path where nothing is, with owners, modes, times, extended attributes, devices and
/// hard links. Sockets, which belong to processes, are left out.
///
/// No link inside `from` is followed, but nobody may change either tree meanwhile.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    let mut links = BTreeMap::new();
    copy_into(from, to, &mut links)?;
    copy_metadata(from, to, &fs::metadata(from)?)
}

fn copy_into(from: &Path, to: &Path, links: &mut BTreeMap<(u64, u64), PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let metadata = entry.metadata()?;
        if !metadata.is_dir() && metadata.nlink() > 1 {
            if let Some(first) = links.get(&(metadata.dev(), metadata.ino())) {
                fs::hard_link(first, &target)?;
                continue;
            }
            links.insert((metadata.dev(), metadata.ino()), target.clone());
        }
        let kind = metadata.file_type();
        if kind.is_dir() {
            fs::create_dir(&target)?;
            copy_into(&source, &target, links)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_file() {
            // copy_file_range or reflink, where the file system has it.
            fs::copy(&source, &target)?;
        } else if kind.is_fifo() || kind.is_char_device() || kind.is_block_device() {
            let kind = FileType::from_raw_mode(metadata.mode());
            mknodat(CWD, &target, kind, Mode::from_raw_mode(metadata.mode() & 0o7777), metadata.rdev())?;
        } else {
            continue; // a socket belongs to a process, not to a tree
        }
        copy_metadata(&source, &target, &metadata)?;
    }
    Ok(())
}

/// Gives a file the owner, mode, attributes and times of another.
pub fn copy_own_metadata(from: &Path, to: &Path) -> io::Result<()> {
    copy_metadata(from, to, &fs::symlink_metadata(from)?)
}

fn copy_metadata(from: &Path, to: &Path, metadata: &fs::Metadata) -> io::Result<()> {
    lchown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    if !metadata.is_symlink() {
        fs::set_permissions(to, metadata.permissions())?;
    }
    copy_attributes(from, to)?;
    let time = |seconds, nanos| Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps {
        last_access: time(metadata.atime(), metadata.atime_nsec()),
        last_modification: time(metadata.mtime(), metadata.mtime_nsec()),
    };
    Ok(utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn copy_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let mut names = vec![0; 64 * 1024];
    let len = match rustix::fs::llistxattr(from, &mut names) {
        Err(Errno::NOTSUP) => return Ok(()),
        other => other?,
    };
    let mut value = vec![0; 64 * 1024];
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let len = rustix::fs::lgetxattr(from, name, &mut value)?;
        rustix::fs::lsetxattr(to, name, &value[..len], rustix::fs::XattrFlags::empty())?;
    }
    Ok(())
}

/// What a tree takes on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

/// Measures what is in a directory, which counts for nothing itself. Hard links count once.
///
/// Others may go on working in it: no link is followed, what goes meanwhile is not counted, and a tree may be deeper
/// than a path is long or than there are descriptors. When the directory that is looked at is moved to another place
/// meanwhile, the rest is not counted.
pub fn usage(path: &Path) -> io::Result<Usage> {
    let mut measure = Measure::default();
    let Some(mut at) = open_directory(CWD, path)? else { return Ok(measure.usage) };
    let mut above = vec![measure.directory(&at)?];
    while let Some(level) = above.last_mut() {
        if let Some(name) = level.unseen.pop() {
            if let Some(inner) = open_directory(&at, &name)? {
                above.push(measure.directory(&inner)?);
                at = inner;
            }
            continue;
        }
        above.pop();
        if let Some(level) = above.last() {
            let Some(outer) = open_directory(&at, c"..")? else { break };
            let found = fstat(&outer)?;
            if (found.st_dev, found.st_ino) != level.id {
                break;
            }
            at = outer;
        }
    }
    Ok(measure.usage)
}

#[derive(Default)]
struct Measure {
    usage: Usage,
    linked: BTreeSet<(u64, u64)>,
}

/// A directory on the way from the top to where the walk is.
struct Level {
    id: (u64, u64),
    /// Directories in it.
    unseen: Vec<CString>,
}

impl Measure {
    fn directory(&mut self, directory: &OwnedFd) -> Result<Level, Errno> {
        let own = fstat(directory)?;
        let mut level = Level { id: (own.st_dev, own.st_ino), unseen: Vec::new() };
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let found = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                found => found?,
            };
            if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
                level.unseen.push(name.to_owned());
            } else if found.st_nlink > 1 && !self.linked.insert((found.st_dev, found.st_ino)) {
                continue;
            }
            self.usage.inodes += 1;
            self.usage.bytes += u64::try_from(found.st_blocks).unwrap_or(0) * 512;
        }
        Ok(level)
    }
}

/// A directory; none if it is gone, or is none any more.
pub(crate) fn open_directory(
    parent: impl AsFd,
    name: impl rustix::path::Arg,
) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(parent, name, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        opened => opened.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn what_is_linked_counts_once_and_what_is_linked_to_does_not() {
        let dir = tempfile::TempDir::new().unwrap();
        let tree = dir.path().join("tree");
        assert_eq!(usage(&tree).unwrap(), Usage::default(), "it is gone");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::create_dir(tree.join("c")).unwrap();
        fs::write(dir.path().join("away"), [1; 1 << 20]).unwrap();
        fs::write(tree.join("a/b/file"), [1; 100_000]).unwrap();
        fs::hard_link(tree.join("a/b/file"), tree.join("c/file")).unwrap();
        symlink(dir.path(), tree.join("c/link")).unwrap();
        let found = usage(&tree).unwrap();
        assert_eq!(found.inodes, 5);
        assert!((100_000..200_000).contains(&found.bytes), "{found:?}");
        symlink(&tree, dir.path().join("link")).unwrap();
        assert_eq!(usage(&dir.path().join("link")).unwrap(), Usage::default());
    }

    /// As containers can make them.
    #[test]
    fn a_tree_that_is_deeper_than_a_path_is_long_has_its_measure() {
        const DEPTH: u64 = 5000;
        let dir = tempfile::TempDir::new().unwrap();
        let mut at = open_directory(CWD, dir.path()).unwrap().unwrap();
        for _ in 0..DEPTH {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = open_directory(&at, "d").unwrap().unwrap();
        }
        drop(at);
        fs::create_dir(dir.path().join("last")).unwrap();
        assert_eq!(usage(dir.path()).unwrap().inodes, DEPTH + 1);
        assert!(crate::removal::delete(dir.path(), &|| true).unwrap());
    }
}
