//! Path resolution inside a root that another party controls, without ever leaving it.
//!
//! All resolution is the kernel's: openat2(2) with `RESOLVE_IN_ROOT`, so that `..` and absolute symlinks end at the
//! root, and with `RESOLVE_NO_MAGICLINKS`, so that links such as `/proc/PID/fd` are refused. A new file is created by a
//! single name in a directory that is already open.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, fstatfs, mkdirat, open, openat, openat2, readlinkat,
};
use rustix::io::Errno;
use types::{Context, Error, Result};

/// How often a lookup that raced with a rename is retried (`EAGAIN` of openat2).
const RACES_MAX: usize = 128;

/// The kernel's limit of followed symlinks (path_resolution(7)).
const SYMLINKS_MAX: usize = 40;

/// Pseudo file systems, whose content the kernel generates (statfs(2)): procfs, sysfs, cgroups of both versions,
/// debugfs, tracefs, securityfs, bpf.
const PSEUDO_FILE_SYSTEMS: [i64; 8] =
    [0x9fa0, 0x6265_6572, 0x0027_e0eb, 0x6367_7270, 0x6462_6720, 0x7472_6163, 0x7363_6673, 0xcafe_4a11];

/// What is at a path in which no component is a symlink.
pub(crate) enum Found {
    Directory(OwnedFd),
    /// Another file, a symlink among them, or one on the way.
    Other,
    Nothing,
}

/// A directory that paths are resolved beneath.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    /// For messages only.
    name: PathBuf,
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Root {
    /// Opens a directory of the host as a root.
    pub fn open(path: &Path) -> Result<Root> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(io::Error::from);
        Ok(Root { fd: fd.context(|| format!("open {}", path.display()))?, name: path.to_owned() })
    }

    /// Takes an open directory as a root. The name is for messages.
    pub fn from_fd(fd: OwnedFd, name: &Path) -> Root {
        Root { fd, name: name.to_owned() }
    }

    /// Opens a path inside the root.
    pub fn open_at(&self, path: &Path, flags: OFlags) -> Result<OwnedFd> {
        self.try_open(path, flags).map_err(io::Error::from).context(|| self.what("open", path))
    }

    /// Opens a path; None if it does not exist. A loop of symlinks counts as missing.
    pub fn find(&self, path: &Path, flags: OFlags) -> Result<Option<OwnedFd>> {
        match self.try_open(path, flags) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(io::Error::from(errno)).context(|| self.what("open", path)),
        }
    }

    /// Opens a regular file for reading; None if it does not exist. Other files are refused: opening a device can have
    /// side effects, and pseudo files may reveal what only this process may read.
    pub fn find_file(&self, path: &Path) -> Result<Option<OwnedFd>> {
        let Some(found) = self.find(path, OFlags::PATH)? else { return Ok(None) };
        let about = || self.what("read", path);
        let kind = FileType::from_raw_mode(stat(found.as_fd()).context(about)?.st_mode);
        if !kind.is_file() || is_pseudo_file(found.as_fd()).context(about)? {
            return Err(
                Error::failed_precondition(format!("{} is no regular file", path.display())).context(about())
            );
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = open(proc_path(found.as_fd()), flags, Mode::empty()).map_err(io::Error::from);
        opened.context(about).map(Some)
    }

    /// Opens a path in which no component is a symlink; None if it does not exist.
    pub fn find_without_links(&self, path: &Path, flags: OFlags) -> Result<Option<OwnedFd>> {
        match self.resolve(path, flags, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(io::Error::from(errno)).context(|| self.what("open", path)),
        }
    }

    /// Opens a directory by a path in which no component is a symlink.
    pub(crate) fn find_directory(&self, path: &Path) -> Result<Found> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        match self.resolve(path, flags, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS) {
            Ok(directory) => Ok(Found::Directory(directory)),
            Err(Errno::NOENT) => Ok(Found::Nothing),
            Err(Errno::NOTDIR | Errno::LOOP) => Ok(Found::Other),
            Err(errno) => Err(io::Error::from(errno)).context(|| self.what("open", path)),
        }
    }

    /// Opens a directory, created with its parents if missing.
    pub fn make_dirs(&self, path: &Path, mode: u32) -> Result<OwnedFd> {
        self.make_dirs_and_tell(path, mode, |_| {})
    }

    /// The same, and reports the resolved path of each created directory, the outermost first.
    pub fn make_dirs_and_tell(&self, path: &Path, mode: u32, mut tell: impl FnMut(&Path)) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        // The common case in one call.
        match self.try_open(path, flags) {
            Ok(fd) => return Ok(fd),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(io::Error::from(errno)).context(|| self.what("open directory", path)),
        }
        let what = || self.what("create directory", path);
        let mut names = names(path);
        if let Some(made) = self.make_last(&names, mode, &mut tell).map_err(io::Error::from).context(what)? {
            return Ok(made);
        }
        let mut resolved = PathBuf::new();
        let mut symlinks = 0;
        names.reverse();
        while let Some(name) = names.pop() {
            if name == ".." {
                resolved.pop();
                continue;
            }
            let parent = self.try_open(&resolved, flags).map_err(io::Error::from).context(what)?;
            match mkdirat(&parent, &name, Mode::from_raw_mode(mode)) {
                Ok(()) => tell(&resolved.join(&name)),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(io::Error::from(errno)).context(what),
            }
            // A dangling symlink: its target is created, inside the root.
            match readlinkat(&parent, &name, Vec::new()) {
                Ok(target) => {
                    symlinks += 1;
                    if symlinks > SYMLINKS_MAX {
                        return Err(io::Error::from(Errno::LOOP)).context(what);
                    }
                    let target =
                        PathBuf::from(<OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(target.as_bytes()));
                    if target.is_absolute() {
                        resolved = PathBuf::new();
                    }
                    names.extend(self::names(&target).into_iter().rev());
                }
                Err(_) => resolved.push(&name),
            }
        }
        self.try_open(&resolved, flags).map_err(io::Error::from).context(what)
    }

    /// Creates and opens the last directory of a path whose parents exist and whose names are no links, which is the
    /// common case. None otherwise.
    fn make_last(
        &self,
        names: &[OsString],
        mode: u32,
        tell: &mut impl FnMut(&Path),
    ) -> Result<Option<OwnedFd>, Errno> {
        let Some((last, above)) = names.split_last() else { return Ok(None) };
        if names.iter().any(|name| name == "..") {
            return Ok(None);
        }
        let above: PathBuf = above.iter().collect();
        let straight = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let Ok(parent) = self.resolve(&above, OFlags::PATH | OFlags::DIRECTORY, straight) else {
            return Ok(None);
        };
        match mkdirat(&parent, last, Mode::from_raw_mode(mode)) {
            Ok(()) => tell(&above.join(last)),
            // A dangling link, or another process was faster.
            Err(Errno::EXIST) => return Ok(None),
            Err(errno) => return Err(errno),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&parent, last, flags, Mode::empty()).map(Some)
    }

    /// Opens a file with `O_PATH`, created empty with its parents if missing. For mount points.
    ///
    /// A dangling symlink is followed, inside the root, and its target created. `PermissionDenied` for a link of a
    /// pseudo file system, such as those in `/proc/PID/fd`: they name files of the host.
    pub fn make_file(&self, path: &Path, mode: u32) -> Result<OwnedFd> {
        let what = || self.what("create file", path);
        let mut place = path.to_owned();
        for _ in 0..=SYMLINKS_MAX {
            if let Some(fd) = self.find(&place, OFlags::PATH)? {
                return Ok(fd);
            }
            let name = place.file_name().ok_or_else(|| Error::invalid_argument(what()))?;
            let above = place.parent().unwrap_or(Path::new(""));
            let parent = self.make_dirs(above, 0o755)?;
            let file = make_or_open(parent.as_fd(), name, mode).map_err(io::Error::from).context(what)?;
            if !FileType::from_raw_mode(stat(file.as_fd()).context(what)?.st_mode).is_symlink() {
                return Ok(file);
            }
            if is_pseudo_file(file.as_fd()).context(what)? {
                return Err(Error::permission_denied(format!(
                    "{}: {} is a link that the kernel makes up; name a place outside of its file systems",
                    what(),
                    place.display()
                )));
            }
            let target = readlinkat(&file, "", Vec::new()).map_err(io::Error::from).context(what)?;
            // An absolute target replaces everything before it; paths here always start at the root.
            place = above.join(<OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(target.as_bytes()));
        }
        Err(io::Error::from(Errno::LOOP)).context(what)
    }

    /// Whether `inner`, a directory in this root, is `outer` or lies in it.
    pub fn lies_in(&self, inner: BorrowedFd<'_>, outer: BorrowedFd<'_>) -> io::Result<bool> {
        let id = |fd: BorrowedFd<'_>| stat(fd).map(|stat| (stat.st_dev, stat.st_ino));
        let (root, outer) = (id(self.as_fd())?, id(outer)?);
        let mut here = inner.try_clone_to_owned()?;
        let mut last = None;
        loop {
            let now = id(here.as_fd())?;
            // `/` is its own parent: the directory was moved out of the root.
            if now == outer || now == root || last == Some(now) {
                return Ok(now == outer);
            }
            last = Some(now);
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            here = openat(&here, "..", flags, Mode::empty())?;
        }
    }

    fn try_open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.resolve(path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    }

    fn resolve(&self, path: &Path, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        for _ in 0..RACES_MAX {
            match openat2(&self.fd, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    fn what(&self, verb: &str, path: &Path) -> String {
        format!("{verb} {} in {}", path.display(), self.name.display())
    }
}

/// Opens a file by name in a directory, with `O_PATH` and without following a link; a missing one is created empty.
fn make_or_open(parent: BorrowedFd<'_>, name: &OsStr, mode: u32) -> Result<OwnedFd, Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
    match openat(parent, name, flags, Mode::from_raw_mode(mode)) {
        Ok(_) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// The names of a path, with `..` but without `/` and `.`.
fn names(path: &Path) -> Vec<OsString> {
    let steps = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    steps.collect()
}

/// The path of an open file in `/proc/self/fd`.
pub fn proc_path(fd: BorrowedFd<'_>) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Whether an open file, also with `O_PATH`, is of a pseudo file system.
pub fn is_pseudo_file(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(PSEUDO_FILE_SYSTEMS.contains(&fstatfs(fd)?.f_type))
}

/// Type, permissions and owner of an open file, `O_PATH` ones included.
pub fn stat(fd: BorrowedFd<'_>) -> io::Result<rustix::fs::Stat> {
    Ok(rustix::fs::statat(fd, "", AtFlags::EMPTY_PATH)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_files_are_opened_to_be_read() {
        let dir = tempfile::TempDir::new().unwrap();
        let root = Root::open(dir.path()).unwrap();
        fs::write(dir.path().join("file"), "text").unwrap();
        assert!(root.find_file(Path::new("/file")).unwrap().is_some());
        assert!(root.find_file(Path::new("/nosuch")).unwrap().is_none());
        rustix::fs::mknodat(&root, "pipe", FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        for wrong in ["/", "/pipe"] {
            let refused = root.find_file(Path::new(wrong)).unwrap_err();
            assert!(refused.chain().contains("no regular file"), "{wrong}: {refused}");
        }
        let made_up = Root::open(Path::new("/proc")).unwrap().find_file(Path::new("/version")).unwrap_err();
        assert!(made_up.chain().contains("no regular file"), "{made_up}");
    }

    fn check(links: &[(&str, &str)], path: &str, expected: &str) {
        let dir = tempfile::TempDir::new().unwrap();
        let inside = dir.path().join("root");
        fs::create_dir(&inside).unwrap();
        for (name, target) in links {
            symlink(target, inside.join(name)).unwrap();
        }
        let root = Root::open(&inside).unwrap();
        let made = root.make_dirs(Path::new(path), 0o755).unwrap();
        let found = fs::read_link(proc_path(made.as_fd())).unwrap();
        assert_eq!(found, inside.join(expected), "{path}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing outside the root");
    }

    #[test]
    fn directories_are_made_inside_the_root_whatever_the_path_says() {
        check(&[], "a/b/c", "a/b/c");
        check(&[], "/a/../../../b", "b");
        check(&[("link", "/etc")], "link/x", "etc/x");
        check(&[("link", "../../../out")], "link/x", "out/x");
        check(&[("one", "two"), ("two", "/three/four")], "one/x", "three/four/x");
    }

    #[test]
    fn a_path_through_a_symlink_is_not_found_without_links() {
        let dir = tempfile::TempDir::new().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        symlink("a", dir.path().join("link")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let found = |path: &str| root.find_without_links(Path::new(path), OFlags::PATH).unwrap().is_some();
        assert!(found("") && found("a") && found("a/b"));
        assert!(!found("link") && !found("link/b") && !found("loop/b") && !found("a/nosuch"));
    }

    #[test]
    fn a_directory_lies_in_itself_and_in_those_above_it() {
        let dir = tempfile::TempDir::new().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let made = std::cell::RefCell::new(Vec::new());
        let make = |path: &str| {
            let tell = |made_path: &Path| made.borrow_mut().push(made_path.display().to_string());
            root.make_dirs_and_tell(Path::new(path), 0o755, tell).unwrap()
        };
        symlink("a/b", dir.path().join("link")).unwrap();
        let (inner, outer, aside) = (make("link/c"), make("a"), make("a/c"));
        assert_eq!(*made.borrow(), ["a", "a/b", "a/b/c", "a/c"]);
        let lies_in = |inner: &OwnedFd, outer: &OwnedFd| root.lies_in(inner.as_fd(), outer.as_fd()).unwrap();
        assert!(lies_in(&inner, &outer) && lies_in(&inner, &inner));
        assert!(!lies_in(&outer, &inner) && !lies_in(&inner, &aside));
        assert!(root.lies_in(outer.as_fd(), root.as_fd()).unwrap());
    }

    #[test]
    fn a_loop_of_symlinks_is_an_error() {
        let dir = tempfile::TempDir::new().unwrap();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert!(root.make_dirs(Path::new("a/x"), 0o755).is_err());
        assert!(root.open_at(Path::new("a"), OFlags::PATH).is_err());
        assert!(root.find(Path::new("a"), OFlags::PATH).unwrap().is_none());
    }

    #[test]
    fn files_are_made_where_links_lead_inside_the_root() {
        let check = |links: &[(&str, &str)], expected: &str| {
            let dir = tempfile::TempDir::new().unwrap();
            let inside = dir.path().join("root");
            fs::create_dir_all(inside.join("etc")).unwrap();
            for (name, target) in links {
                symlink(target, inside.join(name)).unwrap();
            }
            let root = Root::open(&inside).unwrap();
            for _ in 0..2 {
                let made = root.make_file(Path::new("/etc/hosts"), 0o644).unwrap();
                assert_eq!(
                    fs::read_link(proc_path(made.as_fd())).unwrap(),
                    inside.join(expected),
                    "{links:?}"
                );
                assert!(fs::symlink_metadata(inside.join(expected)).unwrap().is_file(), "{links:?}");
            }
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing outside the root: {links:?}");
        };
        check(&[("etc/hosts", "/tmp/hosts")], "tmp/hosts");
        check(&[("etc/hosts", "hosts.real")], "etc/hosts.real");
        check(&[("etc/hosts", "/jump/baz/hosts"), ("jump", "/tmp/foo/bar")], "tmp/foo/bar/baz/hosts");
        check(&[("etc/hosts", "../one"), ("one", "two"), ("two", "/three/four")], "three/four");
        check(&[("etc/hosts", "../../../../out/hosts")], "out/hosts");
        check(&[("etc/hosts", "/up/../hosts"), ("up", "../../../out")], "hosts");
    }

    #[test]
    fn files_are_not_made_where_links_lead_in_circles() {
        let dir = tempfile::TempDir::new().unwrap();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let refused = root.make_file(Path::new("a"), 0o644).unwrap_err();
        assert!(refused.chain().contains("create file a"), "{refused}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is made");
        // A descriptor's link has a host path as its target.
        let held = fs::File::open("/dev/null").unwrap();
        let proc = Root::open(Path::new("/proc")).unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&held);
        let refused = proc.make_file(Path::new(&format!("self/fd/{number}")), 0o644).unwrap_err();
        assert!(refused.chain().contains("the kernel makes up"), "{refused}");
    }

    #[test]
    fn mount_points_for_files_are_made_once() {
        let dir = tempfile::TempDir::new().unwrap();
        let root = Root::open(dir.path()).unwrap();
        root.make_file(Path::new("/etc/hosts"), 0o644).unwrap();
        fs::write(dir.path().join("etc/hosts"), "kept").unwrap();
        root.make_file(Path::new("/etc/hosts"), 0o644).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("etc/hosts")).unwrap(), "kept");
        assert!(root.find(Path::new("/etc/nosuch"), OFlags::PATH).unwrap().is_none());
    }
}
