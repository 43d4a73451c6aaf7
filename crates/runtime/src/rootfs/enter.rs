//! The change of the root: by pivot_root(2), or by moving the mount where that fails (`--no-pivot`).

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use linux::beneath;
use linux::mount::{self, Attributes, Options, Propagation};
use types::{Context, ErrorKind, Result};

use super::{PROC, Root, SYSFS, host_propagation, is_of_kind};
use crate::create::Plan;

/// Makes the root this mount namespace's root, and detaches the host's tree.
pub(crate) fn enter(plan: &Plan, root: Root) -> Result<()> {
    let change = |errno: rustix::io::Errno| io::Error::from(errno);
    if plan.no_pivot {
        rustix::process::fchdir(&root).map_err(change).context(|| "enter the root")?;
        hide_kernel_filesystems(&root.path)?;
        let host = beneath::Root::open(Path::new("/"))?;
        mount::attach(root.as_fd(), host.as_fd()).context(|| "move the root")?;
        rustix::process::chroot(".").map_err(change).context(|| "change the root")?;
    } else {
        let old = beneath::Root::open(Path::new("/"))?;
        rustix::process::fchdir(&root).map_err(change).context(|| "enter the root")?;
        // The old root is stacked on the new one: no directory in the image is needed for it.
        rustix::process::pivot_root(".", ".").map_err(change).context(|| "pivot_root")?;
        rustix::process::fchdir(&old).map_err(change).context(|| "enter the old root")?;
        // The unmount must not propagate to the host.
        if host_propagation(&plan.spec)? == Propagation::Shared {
            mount::set_propagation(old.as_fd(), Propagation::Slave, true)?;
        }
        rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH)
            .map_err(change)
            .context(|| "unmount the old root")?;
    }
    rustix::process::chdir("/").map_err(change).context(|| "enter the root")?;
    if plan.spec.root.as_ref().is_some_and(|root| root.readonly) {
        mount::set_attributes(root.as_fd(), Attributes::READ_ONLY, false)
            .context(|| "make the root read-only")?;
    }
    let wanted = plan.spec.linux.as_ref().map_or("", |linux| linux.rootfs_propagation.as_str());
    // Only the root's propagation: each mount has its own option.
    if let Some((propagation, _)) = Propagation::parse(wanted) {
        mount::set_propagation(root.as_fd(), propagation, false)?;
    }
    Ok(())
}

/// Takes the host's proc and sysfs out of the tree below a root that is moved instead of pivoted.
///
/// No path leads there, but a process with its own user namespace may mount proc or sysfs anew if the mount namespace
/// has one with nothing mounted over it (the kernel's `mount_too_revealing`): that would be a `/proc` without masks.
fn hide_kernel_filesystems(root: &Path) -> Result<()> {
    let is_whole = |point: &&mount::MountPoint| {
        matches!(point.kind.as_str(), "proc" | "sysfs") && point.root == Path::new("/")
    };
    let points = mount::mount_points()?;
    for point in points.iter().filter(is_whole).filter(|point| !point.path.starts_with(root)).rev() {
        let what = || format!("take {} away", point.path.display());
        let place = match beneath::Root::open(&point.path) {
            // It lies under another mount.
            Err(error) if error.is(ErrorKind::NotFound) => continue,
            other => other?,
        };
        // Another mount covers it, and stays there.
        if !is_of_kind(place.as_fd(), if point.kind == "proc" { PROC } else { SYSFS }) {
            continue;
        }
        // The unmount must not propagate to the host.
        mount::set_propagation(place.as_fd(), Propagation::Private, true).context(what)?;
        let unmounted = rustix::mount::unmount(&point.path, rustix::mount::UnmountFlags::DETACH);
        match unmounted {
            Ok(()) => {}
            // This user namespace may not unmount it: then it is covered.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM) => {
                let cover = mount::new_filesystem("tmpfs", "tmpfs", &Options::default()).context(what)?;
                mount::attach(cover.as_fd(), place.as_fd()).context(what)?;
            }
            Err(errno) => return Err(io::Error::from(errno)).context(what),
        }
    }
    Ok(())
}
