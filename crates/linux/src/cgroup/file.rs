//! Files of a cgroup: short texts, opened relative to a directory descriptor.

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

/// Opens a relative path of several parts. Cgroup file systems have no symbolic links, so it stays below.
pub(super) fn open_beneath(dir: &OwnedFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let beneath = rustix::fs::ResolveFlags::BENEATH | rustix::fs::ResolveFlags::NO_SYMLINKS;
    Ok(rustix::fs::openat2(dir, path, flags, Mode::empty(), beneath)?)
}

pub(super) fn read(dir: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    let mut text = String::with_capacity(64);
    // With `take`, the standard library does not ask for the file's size, which the kernel does not know.
    File::from(open(dir, name, OFlags::RDONLY)?).take(u64::MAX).read_to_string(&mut text)?;
    text.truncate(text.trim_end().len());
    Ok(text)
}

/// A single write(2), as the kernel takes each as one command.
pub(super) fn write(dir: BorrowedFd<'_>, name: &str, value: &str) -> io::Result<()> {
    let file = open(dir, name, OFlags::WRONLY)?;
    let written = rustix::io::write(&file, value.as_bytes())?;
    if written != value.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}

/// Parses a number; `max`, and anything else that is no number, is `u64::MAX`.
pub(super) fn number(text: &str) -> u64 {
    text.parse().unwrap_or(u64::MAX)
}

/// The kernel's answer for files of controllers that exist in name only.
pub(super) fn is_unsupported(error: &Error) -> bool {
    has_errno(error, Errno::OPNOTSUPP) || has_errno(error, Errno::NODEV)
}

pub(super) fn has_errno(error: &Error, errno: Errno) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    source.and_then(io::Error::raw_os_error) == Some(errno.raw_os_error())
}

/// Adds the processes of a cgroup and its descendants.
pub(super) fn processes(dir: BorrowedFd<'_>, path: &Path, pids: &mut Vec<u32>) -> Result<()> {
    let mut add = |dir: BorrowedFd<'_>| {
        let text = match read(dir, "cgroup.procs") {
            // A cgroup that was removed meanwhile, or a threaded one, whose processes its parent lists.
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

/// The kernel's errors for a cgroup that was removed meanwhile.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::NODEV.raw_os_error())
}

/// Waits until the file changes, or for so many milliseconds. Files of version 1 do not notify; for them this is a
/// pause.
pub(super) fn wait_for_change(file: Option<BorrowedFd<'_>>, timeout_ms: i64) {
    let timeout = Timespec { tv_sec: timeout_ms / 1000, tv_nsec: timeout_ms % 1000 * 1_000_000 };
    let mut watched: Vec<PollFd<'_>> =
        file.iter().map(|file| PollFd::from_borrowed_fd(*file, PollFlags::PRI)).collect();
    // An interrupted wait is a short one; callers check again anyway.
    let _ = rustix::event::poll(&mut watched, Some(&timeout));
}
