//! Copies of file trees with all metadata, and their disk usage.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Timespec, Timestamps, fstat, mknodat, openat, statat,
    utimensat,
};
use rustix::io::Errno;

/// Copies a directory to a path that does not exist, with owners, modes, times, extended attributes, devices and hard
/// links. Sockets, which belong to processes, are left out.
///
/// A tree may be deeper than a path is long or than there are descriptors. No link inside `from` is followed, but
/// neither tree may be changed meanwhile.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = fs::metadata(from)?;
    fs::create_dir(to)?;
    let open = |path: &Path| openat(CWD, path, PLACE, Mode::empty());
    let mut copying = Copying { top: open(to)?, places: vec![(0, OsString::new())], links: BTreeMap::new() };
    let mut at = Pair { from: open(from)?, to: open(to)? };
    let mut level = copying.directory(&at, 0, metadata)?;
    let mut above = Vec::new();
    loop {
        if let Some(name) = level.unseen.pop() {
            let (source, target) = at.entry(&name);
            let metadata = fs::symlink_metadata(source)?;
            fs::create_dir(target)?;
            at = at.inner(&name)?;
            let place = copying.places.len();
            copying.places.push((level.place, name));
            let inner = copying.directory(&at, place, metadata)?;
            above.push(mem::replace(&mut level, inner));
            continue;
        }
        let Some(outer) = above.pop() else { break };
        at = at.outer(&outer.ids)?;
        // Last, as adding entries changes its times.
        let done = mem::replace(&mut level, outer);
        let (source, target) = at.entry(&copying.places[done.place].1);
        copy_metadata(&source, &target, &done.metadata)?;
    }
    copy_metadata(from, to, &level.metadata)
}

/// How directories are opened that serve as starting points only.
const PLACE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Bytes of a path to which one more name may be added.
const PATH_LEN: usize = 2048;

/// A directory, and its copy.
struct Pair {
    from: OwnedFd,
    to: OwnedFd,
}

impl Pair {
    /// Short paths to an entry of both, however deep they are.
    fn entry(&self, name: &OsStr) -> (PathBuf, PathBuf) {
        (within(&self.from, name), within(&self.to, name))
    }

    fn inner(&self, name: &OsStr) -> Result<Pair, Errno> {
        let open = |parent: &OwnedFd| openat(parent, name, PLACE | OFlags::NOFOLLOW, Mode::empty());
        Ok(Pair { from: open(&self.from)?, to: open(&self.to)? })
    }

    /// The parent pair, which must have these ids.
    fn outer(&self, ids: &[(u64, u64); 2]) -> io::Result<Pair> {
        let outer = self.inner(OsStr::new(".."))?;
        if outer.ids()? != *ids {
            return Err(io::Error::other("a directory was moved while its tree was copied"));
        }
        Ok(outer)
    }

    /// Devices and inodes.
    fn ids(&self) -> Result<[(u64, u64); 2], Errno> {
        let id = |directory: &OwnedFd| fstat(directory).map(|found| (found.st_dev, found.st_ino));
        Ok([id(&self.from)?, id(&self.to)?])
    }
}

fn within(directory: &OwnedFd, name: &OsStr) -> PathBuf {
    Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name)
}

/// A directory that is being copied, on the way from the top to the current one.
struct CopyLevel {
    ids: [(u64, u64); 2],
    /// Its index in `places`.
    place: usize,
    /// To be set on the copy in the end.
    metadata: fs::Metadata,
    /// Its directories that were not visited yet.
    unseen: Vec<OsString>,
}

struct Copying {
    top: OwnedFd,
    /// Directories of the copy: the index of the parent, and the name. The first is the top.
    places: Vec<(usize, OsString)>,
    /// The first name of each file with hard links.
    links: BTreeMap<(u64, u64), (usize, OsString)>,
}

impl Copying {
    /// Copies the entries of a directory, except directories, which are left for later.
    fn directory(&mut self, at: &Pair, place: usize, metadata: fs::Metadata) -> io::Result<CopyLevel> {
        let mut level = CopyLevel { ids: at.ids()?, place, metadata, unseen: Vec::new() };
        for entry in fs::read_dir(within(&at.from, OsStr::new(".")))? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                level.unseen.push(entry.file_name());
                continue;
            }
            let (source, target) = at.entry(&entry.file_name());
            if metadata.nlink() > 1 {
                let id = (metadata.dev(), metadata.ino());
                if let Some((first, name)) = self.links.get(&id) {
                    fs::hard_link(within(&self.open(*first)?, name), &target)?;
                    continue;
                }
                self.links.insert(id, (place, entry.file_name()));
            }
            if copy_entry(&source, &target, &metadata)? {
                copy_metadata(&source, &target, &metadata)?;
            }
        }
        Ok(level)
    }

    /// Opens a directory of the copy again, in several steps if its path is too long.
    fn open(&self, mut place: usize) -> Result<OwnedFd, Errno> {
        let mut names = Vec::new();
        while place != 0 {
            let (outer, name) = &self.places[place];
            names.push(name);
            place = *outer;
        }
        let mut at = openat(&self.top, ".", PLACE, Mode::empty())?;
        let mut path = PathBuf::from(".");
        for name in names.into_iter().rev() {
            path.push(name);
            if path.as_os_str().len() > PATH_LEN {
                at = openat(&at, &path, PLACE, Mode::empty())?;
                path = PathBuf::from(".");
            }
        }
        openat(&at, &path, PLACE, Mode::empty())
    }
}

/// Copies an entry that is no directory, without metadata. Returns whether its type is copied.
fn copy_entry(source: &Path, target: &Path, metadata: &fs::Metadata) -> io::Result<bool> {
    let kind = metadata.file_type();
    if kind.is_symlink() {
        symlink(fs::read_link(source)?, target)?;
    } else if kind.is_file() {
        // copy_file_range or reflink, where the file system has it.
        fs::copy(source, target)?;
    } else if kind.is_fifo() || kind.is_char_device() || kind.is_block_device() {
        let kind = FileType::from_raw_mode(metadata.mode());
        mknodat(CWD, target, kind, Mode::from_raw_mode(metadata.mode() & 0o7777), metadata.rdev())?;
    } else {
        return Ok(false); // a socket belongs to a process, not to a tree
    }
    Ok(true)
}

/// Sets the owner, mode, attributes and times of another file.
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

/// Disk usage of a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

/// The disk usage of a directory's content, without the directory itself. Hard links count once.
///
/// The tree may be in use: no link is followed, files that vanish are not counted, and it may be deeper than a path is
/// long or than there are descriptors. If the current directory is moved elsewhere meanwhile, the rest is not counted.
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

/// A directory on the way from the top to the current one.
struct Level {
    id: (u64, u64),
    /// Its directories that were not visited yet.
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

/// Opens a directory; None if it is gone, or no directory any more.
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
    use rustix::fs::{linkat, mkdirat};

    use super::*;

    /// Makes nested directories; returns the deepest.
    fn deepen(directory: &Path, depth: u64) -> OwnedFd {
        let mut at = open_directory(CWD, directory).unwrap().unwrap();
        for _ in 0..depth {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = open_directory(&at, "d").unwrap().unwrap();
        }
        at
    }

    #[test]
    fn hard_links_count_once_and_symlink_targets_do_not() {
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
        drop(deepen(dir.path(), DEPTH));
        fs::create_dir(dir.path().join("last")).unwrap();
        assert_eq!(usage(dir.path()).unwrap().inodes, DEPTH + 1);
        assert!(crate::removal::delete(dir.path(), &|| true).unwrap());
    }

    #[test]
    fn a_tree_that_is_deeper_than_a_path_is_long_is_copied() {
        const DEPTH: u64 = 5000;
        let dir = tempfile::TempDir::new().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        let bottom = deepen(&from, DEPTH);
        let time = Timespec { tv_sec: 1_000_000_000, tv_nsec: 5 };
        let times = Timestamps { last_access: time, last_modification: time };
        // One file with a second name in another directory: whichever comes first, the path to it is long.
        for name in ["x", "y"] {
            mkdirat(&bottom, name, Mode::RWXU).unwrap();
        }
        fs::write(within(&bottom, OsStr::new("x/file")), "deep").unwrap();
        linkat(&bottom, "x/file", &bottom, "y/file", AtFlags::empty()).unwrap();
        utimensat(&bottom, "x", &times, AtFlags::empty()).unwrap();
        drop(bottom);
        copy(&from, &to).unwrap();
        assert_eq!(usage(&to).unwrap().inodes, DEPTH + 3, "two names count as one file");
        let mut at = open_directory(CWD, &to).unwrap().unwrap();
        for _ in 0..DEPTH {
            at = open_directory(&at, "d").unwrap().unwrap();
        }
        assert_eq!(fs::read_to_string(within(&at, OsStr::new("y/file"))).unwrap(), "deep");
        let copied = statat(&at, "x", AtFlags::SYMLINK_NOFOLLOW).unwrap();
        assert_eq!((copied.st_mtime, copied.st_mode & 0o777), (1_000_000_000, 0o700));
        drop(at);
        assert!(crate::removal::delete(dir.path(), &|| true).unwrap());
    }
}
