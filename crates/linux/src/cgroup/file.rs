//! Files of a cgroup: short texts behind a directory descriptor.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use types::{Context as _, Error, Result};

use super::below;

pub(super) fn open(dir: BorrowedFd<'_>, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(dir, name, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?)
}

/// Opens a path of several parts. Cgroup file systems have no symbolic links, so it stays below.
pub(super) fn open_beneath(dir: &OwnedFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let beneath = rustix::fs::ResolveFlags::BENEATH | rustix::fs::ResolveFlags::NO_SYMLINKS;
    Ok(rustix::fs::openat2(dir, path, flags, Mode::empty(), beneath)?)
}

pub(super) fn read(dir: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    let mut text = String::with_capacity(64);
    // Whoever takes only a part is not asked how much there is, which the kernel does not know.
    File::from(open(dir, name, OFlags::RDONLY)?).take(u64::MAX).read_to_string(&mut text)?;
    text.truncate(text.trim_end().len());
    Ok(text)
}

/// One `write`, because each is one command for the kernel.
pub(super) fn write(dir: BorrowedFd<'_>, name: &str, value: &str) -> io::Result<()> {
    let file = open(dir, name, OFlags::WRONLY)?;
    let written = rustix::io::write(&file, value.as_bytes())?;
    if written != value.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}

/// The number a file holds; `max`, and anything that is no number, is the greatest.
pub(super) fn number(text: &str) -> u64 {
    text.parse().unwrap_or(u64::MAX)
}

/// The kernel answers so for files of controllers that are there in name only.
pub(super) fn is_unsupported(error: &Error) -> bool {
    has_errno(error, Errno::OPNOTSUPP) || has_errno(error, Errno::NODEV)
}

pub(super) fn has_errno(error: &Error, errno: Errno) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    source.and_then(io::Error::raw_os_error) == Some(errno.raw_os_error())
}

/// Adds the processes of a cgroup and of those below it.
pub(super) fn processes(dir: BorrowedFd<'_>, path: &Path, pids: &mut Vec<u32>) -> Result<()> {
    let mut add = |dir: BorrowedFd<'_>| {
        let text = match read(dir, "cgroup.procs") {
            // A cgroup that was removed meanwhile, or one of threads, whose processes its parent lists.
            Err(error)
                if is_gone(&error) || error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) =>
            {
                String::new()
            }
            text => text?,
        };
        pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0));
        Ok(())
    };
    let added = add(dir).and_then(|()| below::for_each(dir, add));
    added.context(|| format!("read cgroup.procs of {} and of those below it", path.display()))
}

/// How the kernel says that a cgroup was removed while it was looked at.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::NODEV.raw_os_error())
}

/// Waits until the file changes, or for so many milliseconds. Files of version 1 never tell; with those
/// this is a plain pause.
pub(super) fn wait_for_change(file: Option<BorrowedFd<'_>>, timeout_ms: i64) {
    let timeout = Timespec { tv_sec: timeout_ms / 1000, tv_nsec: timeout_ms % 1000 * 1_000_000 };
    let mut watched: Vec<PollFd<'_>> =
        file.iter().map(|file| PollFd::from_borrowed_fd(*file, PollFlags::PRI)).collect();
    // An interrupted wait is a short one; callers look again anyway.
    let _ = rustix::event::poll(&mut watched, Some(&timeout));
}
