//! The mounts of the spec, each at a target beneath the root's descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use linux::beneath::{self, proc_path};
use linux::cgroup::ContainerMounts;
use linux::mount::{self, Attributes, Locked, Options, Propagation};
use linux::ns::NsKind;
use rustix::fs::{FileType, OFlags, statat, symlinkat};
use types::{Context, Error, ErrorKind, Result};

use super::{PROC, PreparedMount, Root, file_type, is_of_kind};
use crate::copy_up::copy_up;
use crate::create::Plan;
use crate::labels::MountLabel;
use crate::supplies::Supplies;

/// Files of proc that may be covered, as with runc: those that lxcfs and others provide.
const COVERABLE_PROC: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

pub(super) fn mount_one(
    root: &Root,
    mount: &PreparedMount,
    plan: &Plan,
    supplies: &Supplies<'_>,
) -> Result<()> {
    let spec = &mount.spec;
    let destination = Path::new(&spec.destination);
    match spec.kind.as_str() {
        "cgroup" | "cgroup2" if mount.source.is_none() => return mount_cgroup(root, mount, plan, supplies),
        "proc" | "sysfs" => refuse_link(root, destination)?,
        _ => {}
    }
    if mount.options.remount {
        let target = root.inside.open_at(destination, OFlags::PATH)?;
        mount::reconfigure(target.as_fd(), &mount.options)?;
        return change_trees(target.as_fd(), &mount.options);
    }
    if mount.uses_limited_resources() {
        supplies.enter_cgroup()?;
    }
    let source = mount.open_source(root)?;
    let is_file = match &source {
        Some(source) => file_type(source.as_fd())? != FileType::Directory,
        None => false,
    };
    let mut was_there = true;
    let target = if is_file {
        root.inside.make_file(destination, 0o644)?
    } else {
        root.inside.make_dirs_and_tell(destination, 0o755, |_| was_there = false)?
    };
    check_target(root, target.as_fd(), mount, source.as_ref())?;
    let in_user_namespace = plan.namespaces.has(NsKind::User);
    let is_bound = source.is_some();
    let fd = match source {
        Some(source) => {
            let attributes = mount.options.of_bind(in_user_namespace);
            if in_user_namespace {
                keep_locked(source.as_fd(), &[attributes, mount.options.recursive])?;
            }
            mount::set_attributes(source.as_fd(), attributes, false)?;
            source
        }
        None if spec.kind == "mqueue" || spec.kind == "sysfs" || spec.kind == "proc" => {
            let fd = new_kernel_filesystem(mount)?;
            match &plan.mount_label {
                Some(label) if spec.kind == "mqueue" => label.apply(fd.as_fd())?,
                _ => {}
            }
            fd
        }
        None => {
            let covered = was_there.then_some(target.as_fd());
            new_with_mode(mount, covered, plan.mount_label.as_ref())?
        }
    };
    if mount.options.copy_up {
        copy_up(target.as_fd(), fd.as_fd())?;
    }
    mount::attach(fd.as_fd(), target.as_fd())?;
    if is_bound && in_user_namespace {
        keep_locked_below(fd.as_fd(), mount.options.recursive)?;
    }
    change_trees(fd.as_fd(), &mount.options)
}

/// Refuses to clear attributes of a bind mount's source that the kernel has locked in a user namespace, and names them,
/// which the kernel's error does not.
fn keep_locked(source: BorrowedFd<'_>, changes: &[Attributes]) -> Result<()> {
    // A file system that does not answer (a dead NFS) is only asked if needed.
    if changes.iter().all(|change| change.is_empty()) {
        return Ok(());
    }
    let locked = Locked::of(source)?;
    changes.iter().try_for_each(|change| locked.check(*change))
}

/// The same for the mounts below an attached one, found by their paths.
fn keep_locked_below(mount: BorrowedFd<'_>, change: Attributes) -> Result<()> {
    if change.is_empty() {
        return Ok(());
    }
    let place = std::fs::read_link(proc_path(mount)).context(|| "find where the mount is")?;
    let points = mount::mount_points()?;
    let below = points.iter().filter(|point| point.path != place && point.path.starts_with(&place));
    below.into_iter().try_for_each(|point| {
        let about = || format!("below it, at {}", point.path.display());
        Locked::of_point(point).check(change).map_err(|error| error.context(about()))
    })
}

/// Changes the attributes and propagation of a mount and of those in it.
fn change_trees(mount: BorrowedFd<'_>, options: &Options) -> Result<()> {
    mount::set_attributes(mount, options.recursive, true)?;
    // A mount is private by default: what is mounted inside is not seen outside.
    for (propagation, recursive) in &options.propagation {
        mount::set_propagation(mount, *propagation, *recursive)?;
    }
    Ok(())
}

/// Makes one of the kernel's file systems. In a user namespace without its own network namespace sysfs cannot be
/// mounted anew, and the host's is bound.
fn new_kernel_filesystem(mount: &PreparedMount) -> Result<OwnedFd> {
    match mount::new_filesystem(&mount.spec.kind, &mount.spec.source, &mount.options) {
        Err(error) if error.is(ErrorKind::PermissionDenied) && mount.spec.kind == "sysfs" => {
            let fd = mount::clone_path(Path::new("/sys"), true)?;
            // Recursive, as the host's cgroups are mounted in it, and may be delegated to its user.
            mount::set_attributes(fd.as_fd(), mount.options.attributes, true)?;
            Ok(fd)
        }
        other => other,
    }
}

/// A tmpfs without a mode gets that of the directory it covers, if the image has one, or else the kernel's default.
fn new_with_mode(
    mount: &PreparedMount,
    covered: Option<BorrowedFd<'_>>,
    label: Option<&MountLabel>,
) -> Result<OwnedFd> {
    let mut options = mount.options.clone();
    options.data.extend(label.map(MountLabel::option));
    if let Some(covered) = covered
        && mount.spec.kind == "tmpfs"
        && !options.data.iter().any(|word| word.starts_with("mode="))
    {
        let mode = beneath::stat(covered).context(|| "stat")?.st_mode & 0o7777;
        options.data.push(format!("mode={mode:o}"));
    }
    if mount.spec.kind == "tmpfs" {
        // Read-only, it could not be filled, nor could further mount points be made in it: see `restrict`.
        options.superblock_read_only = false;
        options.attributes.set &= !Attributes::READ_ONLY.set;
    }
    mount::new_filesystem(&mount.spec.kind, &mount.spec.source, &options)
}

/// `/proc` and `/sys` of an image must be directories: a link could lead the mount elsewhere.
fn refuse_link(root: &Root, destination: &Path) -> Result<()> {
    let relative = destination.strip_prefix("/").unwrap_or(destination);
    if relative.components().count() != 1 {
        return Ok(());
    }
    match statat(&root.inside, relative, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => {
            Err(Error::permission_denied(format!(
                "{} in the image is not a directory: it must be mounted on ordinary directory",
                destination.display()
            )))
        }
        _ => Ok(()),
    }
}

/// Only proc itself, and a few of its files, may be mounted in `/proc`: programs trust what they read there.
fn check_target(
    root: &Root,
    target: BorrowedFd<'_>,
    mount: &PreparedMount,
    source: Option<&OwnedFd>,
) -> Result<()> {
    let found = std::fs::read_link(proc_path(target)).context(|| "find where the target is")?;
    let inside = found.strip_prefix(&root.path).map_err(|_| {
        Error::permission_denied(format!(
            "the target is outside of the root file system, at {}",
            found.display()
        ))
    })?;
    let inside = Path::new("/").join(inside);
    let Ok(below) = inside.strip_prefix("/proc") else { return Ok(()) };
    if below.as_os_str().is_empty() {
        let is_proc = match source {
            None => mount.spec.kind == "proc",
            Some(source) => is_proc(source.as_fd()),
        };
        return if is_proc {
            Ok(())
        } else {
            Err(Error::permission_denied("only proc may be mounted on /proc"))
        };
    }
    if COVERABLE_PROC.iter().any(|file| Path::new(file) == inside) {
        return Ok(());
    }
    Err(Error::permission_denied(format!("{} must not be covered", inside.display())))
}

fn is_proc(fd: BorrowedFd<'_>) -> bool {
    is_of_kind(fd, PROC)
}

/// Mounts `/sys/fs/cgroup` as the container's own cgroup looks from inside: for `cgroup` with the host's hierarchies,
/// for `cgroup2` that of version 2 alone.
fn mount_cgroup(root: &Root, mount: &PreparedMount, plan: &Plan, supplies: &Supplies<'_>) -> Result<()> {
    supplies.enter_cgroup()?;
    let Some(cgroup) = plan.cgroup.open()? else { return cover_hosts_cgroups(root, mount) };
    let destination = Path::new(&mount.spec.destination);
    let own_namespace = plan.namespaces.is_new(NsKind::Cgroup);
    let target = root.inside.make_dirs(destination, 0o755)?;
    check_target(root, target.as_fd(), mount, None)?;
    let plain = Options { attributes: mount.options.attributes, ..Options::default() };
    match cgroup.mounts_for_container() {
        ContainerMounts::V1(trees) if mount.spec.kind == "cgroup" => {
            let mut words = vec!["mode=755".to_owned(), "size=64k".to_owned()];
            words.extend(plan.mount_label.as_ref().map(MountLabel::option));
            let writable =
                Attributes { set: plain.attributes.set & !Attributes::READ_ONLY.set, ..plain.attributes };
            let tmpfs = mount::new_filesystem(
                "tmpfs",
                "tmpfs",
                &Options { data: words, attributes: writable, ..Options::default() },
            )?;
            mount::attach(tmpfs.as_fd(), target.as_fd())?;
            let inside = beneath::Root::from_fd(tmpfs, destination);
            for tree in &trees {
                let at = inside.make_dirs(Path::new(&tree.directory), 0o755)?;
                let fd = cgroup_tree(tree.kind, "cgroup", &tree.source, own_namespace, &plain)?;
                mount::attach(fd.as_fd(), at.as_fd())?;
                for link in &tree.links {
                    symlinkat(&tree.directory, &inside, link.as_str())
                        .map_err(io::Error::from)
                        .context(|| format!("link {link} to {}", tree.directory))?;
                }
            }
            mount::set_attributes(inside.as_fd(), plain.attributes, false)
        }
        mounts => {
            let source = mounts.unified().ok_or_else(|| {
                Error::failed_precondition(format!(
                    "mount cgroup2 to {:?}: this host has no cgroups of version 2",
                    mount.spec.destination
                ))
            })?;
            let fd = cgroup_tree("cgroup2", &mount.spec.source, source, own_namespace, &plain)?;
            mount::attach(fd.as_fd(), target.as_fd())
        }
    }
}

/// A container without its own cgroup sees the host's, with all mounts in it. They become read-only if asked for, or a
/// user with a delegated cgroup could write to it from inside.
fn cover_hosts_cgroups(root: &Root, mount: &PreparedMount) -> Result<()> {
    let Some(target) = root.inside.find(Path::new(&mount.spec.destination), OFlags::PATH)? else {
        return Ok(());
    };
    let tree = mount::clone_tree(target.as_fd(), Path::new(""), true)?;
    mount::set_attributes(tree.as_fd(), mount.options.attributes, true)?;
    mount::attach(tree.as_fd(), target.as_fd())
}

/// One hierarchy. In its own cgroup namespace a new mount shows the namespace's root; otherwise a bind mount is needed.
/// So it is for version 1, where the kernel takes 0.3 ms to make a mount, and there are nine: the bound directory looks
/// the same from inside. `name` is the mount's source in mount lists.
fn cgroup_tree(
    kind: &str,
    name: &str,
    source: &Path,
    own_namespace: bool,
    plain: &Options,
) -> Result<OwnedFd> {
    if own_namespace && kind != "cgroup" {
        match mount::new_filesystem(kind, if name.is_empty() { "cgroup" } else { name }, plain) {
            Ok(fd) => return Ok(fd),
            // In a user namespace that does not own the cgroup namespace.
            Err(error) if error.is(ErrorKind::PermissionDenied) => {}
            Err(error) => return Err(error),
        }
    }
    let fd = mount::clone_path(source, false)?;
    mount::set_propagation(fd.as_fd(), Propagation::Private, false)?;
    mount::set_attributes(fd.as_fd(), plain.attributes, false)?;
    Ok(fd)
}
