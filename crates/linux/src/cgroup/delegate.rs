//! Delegation of cgroups to a user, and entering one that its processes have divided.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, OFlags, Uid};
use types::{Context as _, Error, Result};

use super::{Cgroup, Entry, Hierarchies, Member, Version, file};

/// The kernel's own list of what an owner needs to write (cgroup-v2.rst, "Model of Delegation").
const FILES: &str = "/sys/kernel/cgroup/delegate";
/// For kernels without such a list (before Linux 4.15).
const FILES_ALWAYS: [&str; 3] = ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"];

/// Makes `uid` the owner of the directory, and of the files by which it is divided, not of the limits. Without effect
/// in version 1, which does not support delegation.
pub(super) fn delegate(cgroup: &Cgroup, uid: u32) -> Result<()> {
    let (Version::V2, Some(member)) = (cgroup.version(), cgroup.unified()) else { return Ok(()) };
    let list = fs::read_to_string(FILES).unwrap_or_else(|_| FILES_ALWAYS.join("\n"));
    for name in std::iter::once(".").chain(list.lines().filter(|name| !name.contains('/'))) {
        let owned = rustix::fs::chownat(
            &member.dir,
            name,
            Some(Uid::from_raw(uid)),
            None::<Gid>,
            AtFlags::SYMLINK_NOFOLLOW,
        );
        match owned.map_err(io::Error::from) {
            // Files of controllers that this cgroup lacks.
            Err(error) if file::is_gone(&error) => {}
            result => result.context(|| format!("give {} to user {uid}", member.file(name).display()))?,
        }
    }
    Ok(())
}

/// Descriptors for a process that enters after `first`.
///
/// A cgroup of version 2 takes no processes once it has divided its controllers among children ("no internal
/// processes"). Then the process enters the cgroup of `first`.
pub(super) fn entry_with(cgroup: &Cgroup, first: u32) -> Result<Entry> {
    let mut entry = cgroup.entry()?;
    if let Some(member) = cgroup.unified()
        && member.read_optional("cgroup.subtree_control")?.is_some_and(|divided| !divided.is_empty())
    {
        let below = place_below(member, first)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let dir = file::open_beneath(&member.dir, &below, flags);
        entry.unified = Some(dir.context(|| format!("open cgroup {}", member.path.join(&below).display()))?);
    }
    Ok(entry)
}

/// The path below the cgroup of one of its processes.
fn place_below(member: &Member, pid: u32) -> Result<PathBuf> {
    let path = format!("/proc/{pid}/cgroup");
    let text = fs::read_to_string(&path).context(|| format!("read {path}"))?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    let hierarchies = Hierarchies::detect()?;
    let unified = hierarchies.iter().find(|hierarchy| hierarchy.kind.is_unified());
    let full = unified.map(|unified| unified.mountpoint.join(own.trim_start_matches('/')));
    let below = full.as_deref().and_then(|full| full.strip_prefix(&member.path).ok());
    below.map(Path::to_owned).ok_or_else(|| {
        let cgroup = member.path.display();
        Error::failed_precondition(format!("process {pid} left cgroup {cgroup}: it is in {own}"))
    })
}
