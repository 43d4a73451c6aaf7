//! Removing the directories of a cgroup.
//!
//! A directory with processes or children cannot be removed, and a killed process stays in it until it is reaped. So
//! children go first, and the removal is retried for a bounded time.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt, chown};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;
use types::{Context, Error, Result};

use super::file::{self, wait_for_change};
use super::{Cgroup, Member, below};

const PATIENCE: Duration = Duration::from_secs(2);

/// Every directory is tried, even after errors; the first error is reported.
pub(super) fn remove(cgroup: &Cgroup) -> Result<()> {
    remove_those(cgroup, |_| true)
}

/// See [`Cgroup::delete_new`].
pub(super) fn remove_new(cgroup: &Cgroup) -> Result<()> {
    remove_those(cgroup, |member| member.is_new)
}

fn remove_those(cgroup: &Cgroup, is_meant: fn(&Member) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut first = Ok(());
    // The version 2 directory last, as it reports when the processes are gone.
    for member in cgroup.members.iter().filter(|member| is_meant(member)) {
        let result = remove_member(cgroup, member, deadline);
        first = first.and(result);
    }
    first
}

/// See [`Cgroup::remove_if_empty`].
pub(super) fn remove_if_empty(cgroup: &Cgroup) -> Result<()> {
    for member in &cgroup.members {
        match fs::remove_dir(&member.path) {
            Ok(()) => {}
            Err(error) if file::is_gone(&error) => {}
            // The kernel's errors for a cgroup with processes or children.
            Err(error)
                if error.raw_os_error() == Some(Errno::BUSY.raw_os_error())
                    || error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(error) => {
                return Err(error).context(|| format!("remove cgroup {}", member.path.display()));
            }
        }
    }
    Ok(())
}

/// See [`Cgroup::recreate_found`]. Owner and mode are kept.
pub(super) fn recreate_found(cgroup: &Cgroup) -> Result<()> {
    for member in cgroup.members.iter().filter(|member| !member.is_new) {
        let renew = || -> io::Result<()> {
            let before = fs::metadata(&member.path)?;
            if fs::remove_dir(&member.path).is_ok() {
                fs::create_dir(&member.path)?;
                chown(&member.path, Some(before.uid()), Some(before.gid()))?;
                fs::set_permissions(&member.path, before.permissions())?;
            }
            Ok(())
        };
        renew().context(|| format!("make cgroup {} anew", member.path.display()))?;
    }
    Ok(())
}

fn remove_member(cgroup: &Cgroup, member: &Member, deadline: Instant) -> Result<()> {
    let mut step_ms = 1;
    loop {
        let error = match remove_tree(member) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let path = member.path.display();
        if error.raw_os_error() != Some(Errno::BUSY.raw_os_error()) {
            return Err(Error::new(error.kind().into(), format!("remove cgroup {path}")).with_source(error));
        }
        if Instant::now() > deadline {
            let mut pids = Vec::new();
            file::processes(member.dir.as_fd(), &member.path, &mut pids)?;
            let message = format!("remove cgroup {path}: it still has processes {pids:?}");
            return Err(Error::failed_precondition(message).with_source(error));
        }
        step_ms = wait_for_fewer(cgroup, step_ms);
    }
}

/// See [`Cgroup::wait_until_empty`].
pub(super) fn wait_until_empty(cgroup: &Cgroup) -> Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    let mut step_ms = 1;
    while !cgroup.processes()?.is_empty() {
        if Instant::now() > deadline {
            return Ok(false);
        }
        step_ms = wait_for_fewer(cgroup, step_ms);
    }
    Ok(true)
}

/// Waits for this time, or until the kernel reports that processes are gone. Returns the next waiting time.
fn wait_for_fewer(cgroup: &Cgroup, step_ms: i64) -> i64 {
    let events = cgroup.unified().and_then(|unified| unified.open_file("cgroup.events", OFlags::RDONLY).ok());
    wait_for_change(events.as_ref().map(|events| events.as_fd()), step_ms);
    (step_ms * 2).min(20)
}

/// Removes a cgroup and its descendants.
fn remove_tree(member: &Member) -> io::Result<()> {
    match fs::remove_dir(&member.path) {
        Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {}
        Err(error) if file::is_gone(&error) => return Ok(()),
        other => return other,
    }
    below::remove(member.dir.as_fd())?;
    match fs::remove_dir(&member.path) {
        Err(error) if file::is_gone(&error) => Ok(()),
        other => other,
    }
}
