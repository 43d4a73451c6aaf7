//! A container: a root file system, and the processes that have it as their root.
//!
//! Nothing is written down: who belongs to it is asked of the kernel, so it can be ended by a program that knows no
//! more than the bundle. A runtime that is meant for more has a cgroup, which no process can leave.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use api::shim::types::Mount;
use linux::process::{PidFd, wait_readable};
use types::{Context, Error, ErrorKind, Result};

/// Carries out the mounts of the daemon's snapshotter on `rootfs` in the bundle.
pub(crate) fn mount(bundle: &Path, mounts: Vec<Mount>) -> Result<()> {
    if mounts.is_empty() {
        // The root, a mount point, tells the container's processes from others.
        return Err(Error::unimplemented("a container without mounts for its root file system"));
    }
    let own = |mount: Mount| types::Mount {
        kind: mount.r#type,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    };
    let mounts: Vec<_> = mounts.into_iter().map(own).collect();
    linux::mount::mount_all(&mounts, &bundle.join("rootfs"))
}

/// Kills every process and unmounts the root. Succeeds if there are none.
pub(crate) fn end(bundle: &Path) -> Result<()> {
    kill(bundle)?;
    linux::mount::unmount_all(&bundle.join("rootfs"))
}

/// Kills every process, and those that they fork meanwhile.
pub(crate) fn kill(bundle: &Path) -> Result<()> {
    loop {
        let members = members(bundle)?;
        if members.is_empty() {
            return Ok(());
        }
        for (_, process) in &members {
            match process.kill() {
                Err(error) if !error.is(ErrorKind::NotFound) => return Err(error),
                _ => {}
            }
        }
        for (pid, process) in &members {
            wait_readable(process.as_fd(), None).context(|| format!("wait for the end of process {pid}"))?;
        }
    }
}

/// The pids of the container's processes, with pidfds.
pub(crate) fn members(bundle: &Path) -> Result<Vec<(u32, PidFd)>> {
    let root = bundle.join("rootfs");
    // The path as `/proc/PID/root` shows it.
    let root = root.canonicalize().context(|| format!("find {}", root.display()))?;
    // A process that has ended has no root any more (proc_pid_root(5)).
    let is_member = |pid: u32| fs::read_link(format!("/proc/{pid}/root")).is_ok_and(|its| its == root);
    let mut members = Vec::new();
    for entry in fs::read_dir("/proc").context(|| "list processes")? {
        let name = entry.context(|| "list processes")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // Checked again with the pidfd open: another process may have got the pid before.
        if is_member(pid)
            && let Ok(process) = PidFd::open(pid)
            && is_member(pid)
        {
            members.push((pid, process));
        }
    }
    Ok(members)
}
