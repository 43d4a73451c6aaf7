//! The container's file systems: built beneath the root while the host's tree is still there, entered by pivot_root(2),
//! restricted afterwards.
//!
//! ```text
//! build    root bound to itself ─▶ mounts ─▶ devices ─▶ links          every target beneath the root's fd
//! enter    pivot_root ─▶ old tree detached ─▶ root read-only, propagation
//! restrict sysctls ─▶ read-only paths ─▶ masked paths
//! ```
//!
//! Invariants
//! - A target is opened beneath the root and used by that descriptor, so that a symlink in the image leads to a path in
//!   the image or nowhere (CVE-2019-16884, CVE-2021-30465).
//! - Only proc itself, and a short list of its files, may be mounted on `/proc`.
//! - The device that masks a path is checked to be the null device (CVE-2025-31133).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use linux::beneath;
use linux::mount::{self, Propagation};
use linux::ns::NsKind;
use linux::tty::Pty;
use rustix::fs::{FileType, Mode, OFlags};
use types::spec::runtime::{Mount, Spec};
use types::{Context, Error, Result};

use crate::channel::{Channel, Message};
use crate::checkpoint::is_bind;
use crate::create::Plan;
use crate::supplies::Supplies;

mod devices;
mod enter;
mod mounts;
mod prepare;
mod restrict;
mod stage;

pub(crate) use devices::devices;
pub(crate) use enter::enter;
pub(crate) use prepare::{PreparedMount, prepare, stage_mounts, strip_root, take_staged};
pub(crate) use restrict::restrict;
pub(crate) use stage::MountStage;

/// The container's root, before pivot_root(2).
pub(crate) struct Root {
    inside: beneath::Root,
    path: PathBuf,
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inside.as_fd()
    }
}

impl Root {
    /// A terminal of the container's own devpts, which also becomes `/dev/console`.
    pub(crate) fn open_terminal(&self) -> Result<Pty> {
        let pts = self.inside.open_at(Path::new("/dev/pts"), OFlags::PATH | OFlags::DIRECTORY)?;
        let pty = Pty::open(pts.as_fd(), "ptmx")?;
        // Not followed: an image's /dev/console may be a symlink (CVE-2025-52565).
        let dev = self.inside.open_at(Path::new("/dev"), OFlags::PATH | OFlags::DIRECTORY)?;
        let console = open_or_create(dev.as_fd(), "console")?;
        let slave = mount::clone_tree(pty.slave.as_fd(), Path::new(""), false)
            .or_else(|_| mount::clone_tree(pts.as_fd(), Path::new(&pty.number.to_string()), false))?;
        mount::attach(slave.as_fd(), console.as_fd())?;
        Ok(pty)
    }
}

/// Opens or creates a file in an open directory, by a single name; a link is refused.
fn open_or_create(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, name, create, Mode::from_raw_mode(0o644)) {
        Ok(_) | Err(rustix::io::Errno::EXIST) => {}
        Err(errno) => return Err(io::Error::from(errno)).context(|| format!("create {name}")),
    }
    let file =
        rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    let file = file.map_err(io::Error::from).context(|| format!("open {name}"))?;
    if file_type(file.as_fd())? == FileType::Symlink {
        return Err(Error::permission_denied(format!("{name} in the container is a symbolic link")));
    }
    Ok(file)
}

pub(crate) fn is_directory(file: &OwnedFd) -> Result<bool> {
    Ok(file_type(file.as_fd())? == FileType::Directory)
}

fn file_type(fd: BorrowedFd<'_>) -> Result<FileType> {
    let stat = beneath::stat(fd).context(|| "stat")?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

/// Builds the tree below the root's directory.
pub(crate) fn build(plan: &Plan, channel: &Channel, supplies: &Supplies<'_>) -> Result<Root> {
    let spec = &plan.spec;
    isolate_host_tree(spec)?;
    let root = match &plan.stage {
        Some(stage) if stage.has_root() => {
            mount_root(&plan.rootfs, host_propagation(spec)?, |_| stage::take_root())?
        }
        _ => bind_root(&plan.rootfs, host_propagation(spec)?)?,
    };
    for mount in &plan.mounts {
        let what =
            || format!("mount {:?} ({}) to {:?}", mount.spec.source, mount.spec.kind, mount.spec.destination);
        mounts::mount_one(&root, mount, plan, supplies).map_err(|error| error.context(what()))?;
    }
    if devices::wants_devices(spec) {
        devices::make_devices(&root, spec, plan.namespaces.has(NsKind::User))?;
    }
    make_working_directory(&root, spec, channel)?;
    Ok(root)
}

/// Makes the working directory if the image lacks it, as every runtime does.
fn make_working_directory(root: &Root, spec: &Spec, channel: &Channel) -> Result<()> {
    let cwd = spec.process.as_ref().map_or("/", |process| process.cwd.as_str());
    if cwd == "/" {
        return Ok(());
    }
    match root.inside.make_dirs(Path::new(cwd), 0o755) {
        Ok(_) => Ok(()),
        // Entering it will report the problem, if there still is one.
        Err(error) => channel.send(&Message::Warning(error.chain())),
    }
}

/// Stops propagation from this copy of the host's tree to the host.
fn isolate_host_tree(spec: &Spec) -> Result<()> {
    let host_root = beneath::Root::open(Path::new("/"))?;
    mount::set_propagation(host_root.as_fd(), host_propagation(spec)?, true)
}

/// How mounts propagate between the host and the container's copy of its tree.
fn host_propagation(spec: &Spec) -> Result<Propagation> {
    let wanted = spec.linux.as_ref().map_or("", |linux| linux.rootfs_propagation.as_str());
    match Propagation::parse(wanted) {
        _ if wanted.is_empty() => Ok(Propagation::Slave),
        // Unbindable is for the container's root only; the host's tree must stay bindable until the root is built.
        Some((Propagation::Unbindable, _)) => Ok(Propagation::Private),
        Some((propagation, _)) => Ok(propagation),
        None => Err(Error::invalid_argument(format!("unknown rootfsPropagation {wanted:?}"))),
    }
}

/// The root as a mount of its own, which pivot_root(2) requires.
pub(crate) fn bind_root(path: &Path, host: Propagation) -> Result<Root> {
    mount_root(path, host, |directory| mount::clone_tree(directory, Path::new(""), true))
}

/// Mounts a clone of the root on the root's directory.
fn mount_root(
    path: &Path,
    host: Propagation,
    clone: impl FnOnce(BorrowedFd<'_>) -> Result<OwnedFd>,
) -> Result<Root> {
    let what = || format!("bind root file system {}", path.display());
    let target = beneath::Root::open(path)?;
    let tree = clone(target.as_fd()).context(what)?;
    // pivot_root(2) refuses a shared root. A slave, which receives mounts from the host, is allowed.
    let own = if host == Propagation::Slave { Propagation::Slave } else { Propagation::Private };
    mount::set_propagation(tree.as_fd(), own, true).context(what)?;
    // Only then can it still be shared: see `isolate_host_tree`.
    if host == Propagation::Shared {
        make_parent_private(path)?;
    }
    mount::attach(tree.as_fd(), target.as_fd()).context(what)?;
    Ok(Root { inside: beneath::Root::from_fd(tree, path), path: path.to_owned() })
}

/// The parent mount of the root must not be shared, or pivot_root(2) fails.
fn make_parent_private(path: &Path) -> Result<()> {
    let points = mount::mount_points()?;
    let parent = points
        .iter()
        .filter(|point| path.starts_with(&point.path))
        .max_by_key(|point| point.path.as_os_str().len());
    match parent {
        Some(point) if point.is_shared => {
            let fd = beneath::Root::open(&point.path)?;
            mount::set_propagation(fd.as_fd(), Propagation::Private, false)
        }
        _ => Ok(()),
    }
}

/// Makes a mount point, as [`build`] does, and mounts only what further mount points lie in. Those in a new file system
/// need none.
pub(crate) fn make_mount_point(root: &Root, mount: &PreparedMount, spec: &Spec) -> Result<()> {
    let destination = Path::new(&mount.spec.destination);
    let is_inside = |other: &Mount| {
        let place = Path::new(&other.destination);
        place != destination && destination.starts_with(place) && !is_bind(other)
    };
    if spec.mounts.iter().any(is_inside) {
        return Ok(());
    }
    let Some(source) = mount.open_source(root)? else {
        return match mount.spec.kind.as_str() {
            "cgroup" | "cgroup2" => Ok(()),
            _ => root.inside.make_dirs(destination, 0o755).map(drop),
        };
    };
    let target = if is_directory(&source)? {
        root.inside.make_dirs(destination, 0o755)?
    } else {
        root.inside.make_file(destination, 0o644)?
    };
    // A read-only mount stays so: no mount points are made in it either.
    mount::set_attributes(source.as_fd(), mount.options.of_bind(false), false)?;
    mount::set_attributes(source.as_fd(), mount.options.recursive, true)?;
    mount::attach(source.as_fd(), target.as_fd())
}

/// Magic numbers of file systems (`linux/magic.h`).
const PROC: u64 = 0x9fa0;
const SYSFS: u64 = 0x6265_6572;

fn is_of_kind(fd: BorrowedFd<'_>, magic: u64) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|stat| u64::try_from(stat.f_type).ok() == Some(magic))
}
