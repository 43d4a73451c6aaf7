//! The proc file system, proc(5), protected against impostors.
//!
//! A runtime's writes below `/proc` take effect with its privileges. If a container can mount over a file of `/proc`,
//! or put a symlink there, such a write is redirected: a label meant for `attr/exec` ends in `sysrq-trigger`
//! (CVE-2025-52881, CVE-2019-19921). So `/proc` is opened once, checked to be the root of a proc file system, and all
//! else is resolved by the kernel beneath that descriptor, across no other mount and through no magic link.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use types::{Context, Error, Result};

use crate::beneath;

/// `PROC_SUPER_MAGIC` (`linux/magic.h`).
const MAGIC: u64 = 0x9fa0;

/// `PROC_ROOT_INO` (`linux/proc_fs.h`): a bind mount of a directory of proc is not its root.
const ROOT_INODE: u64 = 1;

/// Bytes read of a file, at most. The longest is the list of mounts.
const LEN_MAX: u64 = 16 << 20;

/// Reads a file of `/proc` in the host's view, which no container can mount over. Short files take one read; the
/// standard library, which sees a length of 0, takes seven for a page.
///
/// Names in it may be any bytes: invalid UTF-8 is replaced.
pub fn read_own(path: &str) -> std::io::Result<String> {
    let mut bytes = Vec::with_capacity(4096);
    File::open(path)?.take(LEN_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// An open proc file system.
#[derive(Debug)]
pub struct Proc(OwnedFd);

impl AsFd for Proc {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Proc {
    /// `/proc` as the calling process sees it.
    pub fn open() -> Result<Proc> {
        Proc::beneath(&beneath::Root::open(Path::new("/"))?)
    }

    /// `/proc` inside a root. `NotFound` if there is none, `PermissionDenied` if it is something else.
    pub fn beneath(root: &beneath::Root) -> Result<Proc> {
        let fd = root.open_at(Path::new("/proc"), OFlags::PATH | OFlags::DIRECTORY)?;
        let kind = rustix::fs::fstatfs(&fd).map_err(std::io::Error::from).context(|| "look at /proc")?.f_type;
        let inode = rustix::fs::fstat(&fd).map_err(std::io::Error::from).context(|| "look at /proc")?.st_ino;
        if u64::try_from(kind) != Ok(MAGIC) || inode != ROOT_INODE {
            return Err(Error::permission_denied("/proc is not the root of a proc file system"));
        }
        Ok(Proc(fd))
    }

    /// Opens a file, such as `self/attr/exec`. `InvalidArgument` or `PermissionDenied` if something is mounted over it
    /// or on the way to it.
    pub fn open_file(&self, path: &str, flags: OFlags) -> Result<File> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        let opened = openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
        opened.map(File::from).map_err(std::io::Error::from).context(|| format!("open /proc/{path}"))
    }

    /// Writes with a single write(2), as files of proc require.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let mut file = self.open_file(path, OFlags::WRONLY)?;
        file.write_all(text.as_bytes()).context(|| format!("write {text:?} to /proc/{path}"))
    }

    /// Reads a file, up to a limit. Errors as [`Proc::open_file`].
    pub fn read(&self, path: &str) -> Result<String> {
        let mut text = String::with_capacity(1024);
        let file = self.open_file(path, OFlags::RDONLY)?;
        file.take(LEN_MAX).read_to_string(&mut text).context(|| format!("read /proc/{path}"))?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use types::ErrorKind;

    use super::*;

    #[test]
    fn files_of_proc_are_read_and_others_are_not_reached() {
        let proc = Proc::open().unwrap();
        assert!(proc.read("self/status").unwrap().contains("Pid:"));
        assert!(proc.read("../etc/passwd").is_err());
        // A magic link leads out of proc.
        assert!(proc.read("self/root/etc/passwd").is_err());
        assert!(proc.open_file("self/exe", OFlags::RDONLY).is_err());
        assert_eq!(proc.read("self/nosuch").unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_directory_called_proc_is_not_proc() {
        let dir = tempfile::TempDir::new().unwrap();
        let root = beneath::Root::open(dir.path()).unwrap();
        assert_eq!(Proc::beneath(&root).unwrap_err().kind(), ErrorKind::NotFound);
        std::fs::create_dir(dir.path().join("proc")).unwrap();
        assert_eq!(Proc::beneath(&root).unwrap_err().kind(), ErrorKind::PermissionDenied);
    }
}
