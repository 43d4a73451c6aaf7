//! The container's file systems: built around the root while the host's tree is still there, entered by
//! pivot_root(2), restricted afterwards.
//!
//! ```text
//! build    root bound to itself ─▶ mounts ─▶ devices ─▶ links          every target beneath the root's fd
//! enter    pivot_root ─▶ old tree detached ─▶ root read-only, propagation
//! restrict sysctls ─▶ read-only paths ─▶ masked paths
//! ```
//!
//! Invariants
//! - A target is opened beneath the root and used by that descriptor, so that a symlink in the image leads
//!   to a place in the image or nowhere (CVE-2019-16884, CVE-2021-30465).
//! - Nothing may be mounted on `/proc` but proc itself and a short list of its files.
//! - What masks a path is checked to be the device it is taken for (CVE-2025-31133).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use linux::beneath::{self, proc_path};
use linux::cgroup::ContainerMounts;
use linux::idmap::Owners;
use linux::mount::{self, Attributes, Bind, Options, Propagation};
use linux::ns::NsKind;
use linux::procfs::Proc;
use linux::tty::Pty;
use rustix::fs::{FileType, Mode, OFlags, makedev, mknodat, statat, symlinkat};
use types::spec::runtime::{IdMapping, Linux, LinuxDevice, Mount, Spec};
use types::{Context, Error, ErrorKind, Result};

use crate::cgroup_way::CgroupWay;
use crate::channel::{Channel, Message};
use crate::checkpoint::is_bind;
use crate::copy_up::copy_up;
use crate::create::Plan;
use crate::labels::MountLabel;
use crate::plan::Namespaces;

/// Files of proc that may be covered (as runc allows: what lxcfs and others provide).
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

/// Devices that every container has (`config-linux.md`, "Default Devices"): name, major, minor.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// `config-linux.md`, "Default Devices": links of `/dev`.
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// A mount of the spec, with what only the parent could make.
pub(crate) struct PreparedMount {
    pub(crate) spec: Mount,
    options: Options,
    source: Option<Source>,
}

/// What a bind mount shows.
enum Source {
    /// Cloned before any namespace is left.
    Tree(OwnedFd),
    /// For a caller who may not mount: cloned by the child, who may, in its copy of the caller's tree.
    Path { path: PathBuf, recursive: bool },
}

impl PreparedMount {
    /// Whether to make it takes memory for what it shows, or a device, which are the container's to pay and to have.
    fn takes_what_is_limited(&self) -> bool {
        let is_kernels = ["proc", "sysfs", "tmpfs", "mqueue", "devpts"].contains(&self.spec.kind.as_str());
        self.options.copy_up || self.source.is_none() && !is_kernels
    }

    pub(crate) fn open_source(&self) -> Result<Option<OwnedFd>> {
        match &self.source {
            None => Ok(None),
            Some(Source::Tree(tree)) => tree.try_clone().context(|| "keep the source").map(Some),
            Some(Source::Path { path, recursive }) => mount::clone_path(path, *recursive).map(Some),
        }
    }
}

/// Opens the sources of bind mounts, in the parent, and reads all options.
pub(crate) fn prepare(spec: &Spec, bundle: &Path, namespaces: &Namespaces) -> Result<Vec<PreparedMount>> {
    let host_propagation = host_propagation(spec)?;
    let prepare = Prepare { bundle, namespaces, linux: spec.linux.as_ref(), host_propagation };
    spec.mounts.iter().map(|mount| prepare.one(mount)).collect()
}

struct Prepare<'a> {
    bundle: &'a Path,
    namespaces: &'a Namespaces,
    linux: Option<&'a Linux>,
    host_propagation: Propagation,
}

impl Prepare<'_> {
    fn one(&self, spec: &Mount) -> Result<PreparedMount> {
        let what = || format!("mount {:?} to {:?}", spec.source, spec.destination);
        let mut options = Options::parse(&spec.options);
        let is_bind = spec.kind == "bind" || options.bind != Bind::No;
        let is_mapped =
            options.idmap.is_some() || !spec.uid_mappings.is_empty() || !spec.gid_mappings.is_empty();
        if !is_bind {
            if is_mapped {
                return Err(Error::invalid_argument(format!("{}: only bind mounts can map owners", what())));
            }
            return Ok(PreparedMount { spec: spec.clone(), options, source: None });
        }
        if options.bind == Bind::No {
            options.bind = Bind::Single;
        }
        if let Some(first) = options.foreign_to_bind() {
            return Err(Error::invalid_argument(format!(
                "{}: {first:?} is no option of a bind mount",
                what()
            )));
        }
        if options.remount {
            return Ok(PreparedMount { spec: spec.clone(), options, source: None });
        }
        let path = self.bundle.join(&spec.source);
        let recursive = options.bind == Bind::Recursive;
        let source = match mount::clone_path(&path, recursive) {
            Err(error) if error.is(ErrorKind::PermissionDenied) && self.namespaces.is_new(NsKind::User) => {
                Source::Path { path, recursive }
            }
            other => Source::Tree(other.context(what)?),
        };
        if let Source::Tree(tree) = &source {
            // As if it came from the container's copy of the host's tree. Else what is mounted inside would
            // be seen on the host.
            mount::set_propagation(tree.as_fd(), self.host_propagation, true).context(what)?;
        }
        match &source {
            Source::Tree(tree) if is_mapped => {
                let maps = self.owner_maps(spec).context(what)?;
                mount::set_idmap(tree.as_fd(), maps.as_fd(), options.idmap == Some(true)).context(what)?;
            }
            Source::Path { .. } if is_mapped => {
                return Err(Error::permission_denied(format!("{}: only root can map owners", what())));
            }
            _ => {}
        }
        Ok(PreparedMount { spec: spec.clone(), options, source: Some(source) })
    }

    /// A user namespace with the maps of a mount: its own, or else those of the container.
    fn owner_maps(&self, spec: &Mount) -> Result<OwnedFd> {
        if !spec.uid_mappings.is_empty() || !spec.gid_mappings.is_empty() {
            return user_namespace(&spec.uid_mappings, &spec.gid_mappings);
        }
        match (self.namespaces.joined(NsKind::User), self.linux) {
            (Some(joined), _) => joined.try_clone_to_owned().context(|| "keep the user namespace"),
            (None, Some(linux)) if self.namespaces.is_new(NsKind::User) => {
                user_namespace(&linux.uid_mappings, &linux.gid_mappings)
            }
            _ => Err(Error::invalid_argument(
                "owners can be mapped by uidMappings of the mount, or by the container's user namespace",
            )),
        }
    }
}

fn user_namespace(uids: &[IdMapping], gids: &[IdMapping]) -> Result<OwnedFd> {
    linux::idmap::namespace(&Owners { uids: uids.to_vec(), gids: gids.to_vec() })
}

/// The root of the container, before it is everybody's root.
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

/// A file in a directory that is open, by one name and no link.
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
pub(crate) fn build(plan: &Plan, channel: &Channel, way: &CgroupWay<'_>) -> Result<Root> {
    let spec = &plan.spec;
    isolate_host_tree(spec)?;
    let root = bind_root(&plan.rootfs, host_propagation(spec)?)?;
    for mount in &plan.mounts {
        let what =
            || format!("mount {:?} ({}) to {:?}", mount.spec.source, mount.spec.kind, mount.spec.destination);
        mount_one(&root, mount, plan, way).map_err(|error| error.context(what()))?;
    }
    if wants_devices(spec) {
        make_devices(&root, spec, plan.namespaces.has(NsKind::User))?;
    }
    make_working_directory(&root, spec, channel)?;
    Ok(root)
}

/// A working directory that the image lacks is made, as users of every runtime expect.
fn make_working_directory(root: &Root, spec: &Spec, channel: &Channel) -> Result<()> {
    let cwd = spec.process.as_ref().map_or("/", |process| process.cwd.as_str());
    match root.inside.make_dirs(Path::new(cwd), 0o755) {
        Ok(_) => Ok(()),
        // Entering it will say what is wrong, if it still is.
        Err(error) => channel.send(&Message::Warning(error.chain())),
    }
}

/// Makes the copy of the host's tree independent: what is mounted here is not seen there.
fn isolate_host_tree(spec: &Spec) -> Result<()> {
    let host_root = beneath::Root::open(Path::new("/"))?;
    mount::set_propagation(host_root.as_fd(), host_propagation(spec)?, true)
}

/// How what happens on the host and in the container's copy of its tree reaches the other.
fn host_propagation(spec: &Spec) -> Result<Propagation> {
    let wanted = spec.linux.as_ref().map_or("", |linux| linux.rootfs_propagation.as_str());
    match Propagation::parse(wanted) {
        _ if wanted.is_empty() => Ok(Propagation::Slave),
        // Unbindable is for the container's root only; the host's tree must stay bindable until we are done.
        Some((Propagation::Unbindable, _)) => Ok(Propagation::Private),
        Some((propagation, _)) => Ok(propagation),
        None => Err(Error::invalid_argument(format!("unknown rootfsPropagation {wanted:?}"))),
    }
}

/// The root as a mount of its own, which pivot_root asks for.
pub(crate) fn bind_root(path: &Path, host: Propagation) -> Result<Root> {
    let what = || format!("bind root file system {}", path.display());
    let target = beneath::Root::open(path)?;
    let tree = mount::clone_tree(target.as_fd(), Path::new(""), true).context(what)?;
    // pivot_root refuses a root that is shared with others.
    mount::set_propagation(tree.as_fd(), Propagation::Private, true).context(what)?;
    // Only then can it still be shared: see `isolate_host_tree`.
    if host == Propagation::Shared {
        make_parent_private(path)?;
    }
    mount::attach(tree.as_fd(), target.as_fd()).context(what)?;
    Ok(Root { inside: beneath::Root::from_fd(tree, path), path: path.to_owned() })
}

/// The mount that the root lies in must not be shared, or the kernel refuses to move into it.
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

fn mount_one(root: &Root, mount: &PreparedMount, plan: &Plan, way: &CgroupWay<'_>) -> Result<()> {
    let spec = &mount.spec;
    let destination = Path::new(&spec.destination);
    match spec.kind.as_str() {
        "cgroup" | "cgroup2" if mount.source.is_none() => return mount_cgroup(root, mount, plan, way),
        "proc" | "sysfs" => refuse_link(root, destination)?,
        _ => {}
    }
    if mount.options.remount {
        let target = root.inside.open_at(destination, OFlags::PATH)?;
        mount::reconfigure(target.as_fd(), &mount.options)?;
        return change_trees(target.as_fd(), &mount.options);
    }
    if mount.takes_what_is_limited() {
        way.enter()?;
    }
    let source = mount.open_source()?;
    let is_file = match &source {
        Some(source) => file_type(source.as_fd())? != FileType::Directory,
        None => false,
    };
    let target = if is_file {
        root.inside.make_file(destination, 0o644)?
    } else {
        root.inside.make_dirs(destination, 0o755)?
    };
    check_target(root, target.as_fd(), mount, source.as_ref())?;
    let fd = match source {
        Some(source) => {
            mount::set_attributes(source.as_fd(), mount.options.attributes, false)?;
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
        None => new_with_mode(mount, target.as_fd(), plan.mount_label.as_ref())?,
    };
    if mount.options.copy_up {
        copy_up(target.as_fd(), fd.as_fd())?;
    }
    mount::attach(fd.as_fd(), target.as_fd())?;
    change_trees(fd.as_fd(), &mount.options)
}

/// Changes a mount and what is mounted in it.
fn change_trees(mount: BorrowedFd<'_>, options: &Options) -> Result<()> {
    mount::set_attributes(mount, options.recursive, true)?;
    // Without a word a mount is private: what happens inside is not seen outside.
    for (propagation, recursive) in &options.propagation {
        mount::set_propagation(mount, *propagation, *recursive)?;
    }
    Ok(())
}

/// The kernel's own file systems; in a user namespace without its own network or pids sysfs cannot be
/// mounted anew, and the host's is bound.
fn new_kernel_filesystem(mount: &PreparedMount) -> Result<OwnedFd> {
    match mount::new_filesystem(&mount.spec.kind, &mount.spec.source, &mount.options) {
        Err(error) if error.is(ErrorKind::PermissionDenied) && mount.spec.kind == "sysfs" => {
            let fd = mount::clone_path(Path::new("/sys"), true)?;
            // With what is mounted in it: the host's cgroups, which its user may have been given.
            mount::set_attributes(fd.as_fd(), mount.options.attributes, true)?;
            Ok(fd)
        }
        other => other,
    }
}

/// A tmpfs without a mode gets that of the directory it covers.
fn new_with_mode(
    mount: &PreparedMount,
    target: BorrowedFd<'_>,
    label: Option<&MountLabel>,
) -> Result<OwnedFd> {
    let mut options = mount.options.clone();
    options.data.extend(label.map(MountLabel::option));
    if mount.spec.kind == "tmpfs" && !options.data.iter().any(|word| word.starts_with("mode=")) {
        let mode = beneath::stat(target).context(|| "stat")?.st_mode & 0o7777;
        options.data.push(format!("mode={mode:o}"));
    }
    if mount.spec.kind == "tmpfs" {
        // Read-only for the file system would keep us from filling it.
        options.superblock_read_only = false;
    }
    mount::new_filesystem(&mount.spec.kind, &mount.spec.source, &options)
}

/// `/proc` and `/sys` of an image must be directories, not links to where a file system would do harm.
fn refuse_link(root: &Root, destination: &Path) -> Result<()> {
    let relative = destination.strip_prefix("/").unwrap_or(destination);
    if relative.components().count() != 1 {
        return Ok(());
    }
    match statat(&root.inside, relative, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => Err(
            Error::permission_denied(format!("{} in the image is not a directory", destination.display())),
        ),
        _ => Ok(()),
    }
}

/// Nothing but proc itself, and a few of its files, may be covered in `/proc`: what reads it trusts it.
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

/// Magic numbers of file systems (`linux/magic.h`).
const PROC: u64 = 0x9fa0;
const SYSFS: u64 = 0x6265_6572;

fn is_proc(fd: BorrowedFd<'_>) -> bool {
    is_of_kind(fd, PROC)
}

fn is_of_kind(fd: BorrowedFd<'_>, magic: u64) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|stat| u64::try_from(stat.f_type).ok() == Some(magic))
}

/// `/sys/fs/cgroup`, as the container's own cgroup looks from inside.
fn mount_cgroup(root: &Root, mount: &PreparedMount, plan: &Plan, way: &CgroupWay<'_>) -> Result<()> {
    way.enter()?;
    let Some(cgroup) = plan.cgroup.open()? else { return Ok(()) };
    let destination = Path::new(&mount.spec.destination);
    let own_namespace = plan.namespaces.is_new(NsKind::Cgroup);
    let target = root.inside.make_dirs(destination, 0o755)?;
    check_target(root, target.as_fd(), mount, None)?;
    let plain = Options { attributes: mount.options.attributes, ..Options::default() };
    match cgroup.mounts_for_container() {
        ContainerMounts::Unified { source } => {
            let fd = cgroup_tree("cgroup2", "", &source, own_namespace, &plain)?;
            mount::attach(fd.as_fd(), target.as_fd())
        }
        ContainerMounts::V1(trees) => {
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
                let fd = cgroup_tree(tree.kind, &tree.options, &tree.source, own_namespace, &plain)?;
                mount::attach(fd.as_fd(), at.as_fd())?;
                for link in &tree.links {
                    symlinkat(&tree.directory, &inside, link.as_str())
                        .map_err(io::Error::from)
                        .context(|| format!("link {link} to {}", tree.directory))?;
                }
            }
            mount::set_attributes(inside.as_fd(), plain.attributes, false)
        }
    }
}

/// One hierarchy: a new mount shows the namespace's own root; a shared namespace needs a bind mount. So does a
/// tree of version 1, of which the kernel takes 0.3 ms to make a mount, and there are nine: the container's own
/// directory, mounted, looks the same from inside.
fn cgroup_tree(
    kind: &str,
    options: &str,
    source: &Path,
    own_namespace: bool,
    plain: &Options,
) -> Result<OwnedFd> {
    if own_namespace && kind != "cgroup" {
        let data: Vec<String> =
            options.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        match mount::new_filesystem(kind, "cgroup", &Options { data, ..plain.clone() }) {
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

/// Makes the place for a mount, as [`build`] does, without mounting more than what further places lie in. What
/// lies in a file system that is made anew needs none.
pub(crate) fn make_mount_point(root: &Root, mount: &PreparedMount, spec: &Spec) -> Result<()> {
    let destination = Path::new(&mount.spec.destination);
    let is_inside = |other: &Mount| {
        let place = Path::new(&other.destination);
        place != destination && destination.starts_with(place) && !is_bind(other)
    };
    let Some(source) = mount.open_source()? else {
        return match mount.spec.kind.as_str() {
            "cgroup" | "cgroup2" => Ok(()),
            _ if spec.mounts.iter().any(is_inside) => Ok(()),
            _ => root.inside.make_dirs(destination, 0o755).map(drop),
        };
    };
    if spec.mounts.iter().any(is_inside) {
        return Ok(());
    }
    let target = if is_directory(&source)? {
        root.inside.make_dirs(destination, 0o755)?
    } else {
        root.inside.make_file(destination, 0o644)?
    };
    mount::attach(source.as_fd(), target.as_fd())
}

/// The paths of all devices, those of every container included.
pub(crate) fn devices(spec: &Spec) -> Vec<String> {
    let standard = DEVICES.map(|(name, ..)| format!("/dev/{name}"));
    let further = spec.linux.iter().flat_map(|linux| &linux.devices).map(|device| device.path.clone());
    standard.into_iter().chain(further).collect()
}

/// Devices are made unless the whole of `/dev` is the host's.
fn wants_devices(spec: &Spec) -> bool {
    !spec.mounts.iter().any(|mount| Path::new(&mount.destination) == Path::new("/dev") && is_bind(mount))
}

fn make_devices(root: &Root, spec: &Spec, in_user_namespace: bool) -> Result<()> {
    // Modes are exact here, whatever the caller's umask.
    let umask = rustix::process::umask(Mode::empty());
    let made = make_all_devices(root, spec, in_user_namespace);
    rustix::process::umask(umask);
    made
}

fn make_all_devices(root: &Root, spec: &Spec, in_user_namespace: bool) -> Result<()> {
    let standard = DEVICES.map(|(name, major, minor)| LinuxDevice {
        path: format!("/dev/{name}"),
        kind: "c".into(),
        major: major.into(),
        minor: minor.into(),
        file_mode: Some(0o666),
        uid: None,
        gid: None,
    });
    let extra = spec.linux.as_ref().map_or(&[][..], |linux| &linux.devices);
    let wanted =
        standard.iter().filter(|device| !extra.iter().any(|other| other.path == device.path)).chain(extra);
    let dev = root.inside.make_dirs(Path::new("/dev"), 0o755)?;
    for device in wanted {
        make_device(root, dev.as_fd(), device, in_user_namespace)
            .map_err(|error| error.context(format!("make device {}", device.path)))?;
    }
    // As runc does, where the kernel has such a file at all; it is masked.
    let core = Path::new("/proc/kcore").exists().then_some(("/proc/kcore", "core"));
    for (target, name) in LINKS.into_iter().chain(core) {
        match symlinkat(target, &dev, name) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(io::Error::from(errno)).context(|| format!("link /dev/{name}")),
        }
    }
    Ok(())
}

/// Makes a device, most of which are in `/dev`, which is open.
fn make_device(
    root: &Root,
    dev: BorrowedFd<'_>,
    device: &LinuxDevice,
    in_user_namespace: bool,
) -> Result<()> {
    let path = Path::new(&device.path);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::invalid_argument("the path names no file"));
    };
    let elsewhere;
    let dir = if parent == Path::new("/dev") {
        dev
    } else {
        elsewhere = root.inside.make_dirs(parent, 0o755)?;
        elsewhere.as_fd()
    };
    if in_user_namespace {
        return bind_device(root, device);
    }
    let kind = match device.kind.as_str() {
        "c" | "u" => FileType::CharacterDevice,
        "b" => FileType::BlockDevice,
        "p" => FileType::Fifo,
        other => return Err(Error::invalid_argument(format!("unknown type {other:?}"))),
    };
    let number = |value: i64| {
        u32::try_from(value).map_err(|_| Error::invalid_argument(format!("device number {value}")))
    };
    let number =
        if kind == FileType::Fifo { 0 } else { makedev(number(device.major)?, number(device.minor)?) };
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
    match mknodat(dir, name, kind, mode, number) {
        Ok(()) => {}
        Err(rustix::io::Errno::EXIST) => return Ok(()),
        Err(rustix::io::Errno::PERM) => return bind_device(root, device),
        Err(errno) => return Err(io::Error::from(errno)).context(|| "mknod"),
    }
    let (uid, gid) = (device.uid.unwrap_or(0), device.gid.unwrap_or(0));
    if (uid, gid) != (0, 0) {
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        rustix::fs::chownat(dir, name, Some(uid), Some(gid), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .map_err(io::Error::from)
            .context(|| "chown")?;
    }
    Ok(())
}

/// Where no node may be made, the host's is shown.
fn bind_device(root: &Root, device: &LinuxDevice) -> Result<()> {
    let source = mount::clone_path(Path::new(&device.path), false)?;
    let target = root.inside.make_file(Path::new(&device.path), 0o644)?;
    mount::attach(source.as_fd(), target.as_fd())
}

/// Makes the root everybody's root, and lets go of the host's tree.
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
        // Old root and new root are stacked on one place: no directory in the image is needed for it.
        rustix::process::pivot_root(".", ".").map_err(change).context(|| "pivot_root")?;
        rustix::process::fchdir(&old).map_err(change).context(|| "enter the old root")?;
        // So that what we unmount stays mounted for the host.
        let here = beneath::Root::open(Path::new("."))?;
        mount::set_propagation(here.as_fd(), Propagation::Slave, true)?;
        rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH)
            .map_err(change)
            .context(|| "unmount the old root")?;
    }
    rustix::process::chdir("/").map_err(change).context(|| "enter the root")?;
    let new = beneath::Root::open(Path::new("/"))?;
    if plan.spec.root.as_ref().is_some_and(|root| root.readonly) {
        mount::set_attributes(new.as_fd(), Attributes::READ_ONLY, false)
            .context(|| "make the root read-only")?;
    }
    let wanted = plan.spec.linux.as_ref().map_or("", |linux| linux.rootfs_propagation.as_str());
    // Of the root alone: each mount has what its own options say.
    if let Some((propagation, _)) = Propagation::parse(wanted) {
        mount::set_propagation(new.as_fd(), propagation, false)?;
    }
    Ok(())
}

/// Takes the host's proc and sysfs out of the tree that stays below a root which is moved instead of pivoted.
///
/// Nobody reaches them there, but the kernel lets whoever makes a user namespace mount the like anew where it
/// finds one without anything mounted over it (`mount_too_revealing`): that would be a `/proc` without masks.
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
        // Something else covers it, and stays there.
        if !is_of_kind(place.as_fd(), if point.kind == "proc" { PROC } else { SYSFS }) {
            continue;
        }
        // So that it stays mounted for the host.
        mount::set_propagation(place.as_fd(), Propagation::Private, true).context(what)?;
        let unmounted = rustix::mount::unmount(&point.path, rustix::mount::UnmountFlags::DETACH);
        match unmounted {
            Ok(()) => {}
            // This user namespace may not take it off: then it is covered.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM) => {
                let cover = mount::new_filesystem("tmpfs", "tmpfs", &Options::default()).context(what)?;
                mount::attach(cover.as_fd(), place.as_fd()).context(what)?;
            }
            Err(errno) => return Err(io::Error::from(errno)).context(what),
        }
    }
    Ok(())
}

/// Takes away what the container must not see or change. The root is the container's by now.
pub(crate) fn restrict(spec: &Spec, label: Option<&MountLabel>) -> Result<()> {
    let Some(linux) = &spec.linux else { return Ok(()) };
    let root = beneath::Root::open(Path::new("/"))?;
    if !linux.sysctl.is_empty() {
        let proc = Proc::beneath(&root)?;
        linux.sysctl.iter().try_for_each(|(key, value)| write_sysctl(&proc, key, value))?;
    }
    // A tmpfs that was asked for read-only was left writable while it was filled.
    for mount in spec.mounts.iter().filter(|mount| mount.kind == "tmpfs") {
        if mount.options.iter().any(|word| word == "ro")
            && let Some(target) = root.find(Path::new(&mount.destination), OFlags::PATH)?
        {
            mount::set_attributes(target.as_fd(), Attributes::READ_ONLY, false)?;
        }
    }
    for path in &linux.readonly_paths {
        make_read_only(&root, path).map_err(|error| error.context(format!("make {path} read-only")))?;
    }
    mask(&root, &linux.masked_paths, label)
}

fn write_sysctl(proc: &Proc, key: &str, value: &str) -> Result<()> {
    let path = if key.contains('/') { key.to_owned() } else { key.replace('.', "/") };
    proc.write(&format!("sys/{path}"), value).context(|| format!("set sysctl {key} to {value:?}"))
}

fn make_read_only(root: &beneath::Root, path: &str) -> Result<()> {
    let Some(target) = root.find(Path::new(path), OFlags::PATH)? else { return Ok(()) };
    let tree = mount::clone_tree(target.as_fd(), Path::new(""), true)?;
    mount::set_attributes(tree.as_fd(), Attributes::READ_ONLY, true)?;
    mount::attach(tree.as_fd(), target.as_fd())
}

/// Directories are covered by an empty file system, files by the null device.
fn mask(root: &beneath::Root, paths: &[String], label: Option<&MountLabel>) -> Result<()> {
    let mut cover = Cover { root, label, empty: None, null: None };
    for path in paths {
        let what = || format!("mask {path}");
        let Some(target) = root.find(Path::new(path), OFlags::PATH).map_err(|error| error.context(what()))?
        else {
            continue;
        };
        cover.put_on(&target).map_err(|error| error.context(what()))?;
    }
    Ok(())
}

/// What paths are masked with: one file system and one device for all.
struct Cover<'a> {
    root: &'a beneath::Root,
    label: Option<&'a MountLabel>,
    /// Once it lies on a directory: of a mount that is in no tree no clone can be made before Linux 6.15.
    empty: Option<OwnedFd>,
    null: Option<OwnedFd>,
}

impl Cover<'_> {
    fn put_on(&mut self, target: &OwnedFd) -> Result<()> {
        if !is_directory(target)? {
            let null = match &self.null {
                Some(null) => null,
                None => self.null.insert(null_device(self.root)?),
            };
            return mount::attach(clone_mount(null)?.as_fd(), target.as_fd());
        }
        if let Some(empty) = &self.empty {
            return mount::attach(clone_mount(empty)?.as_fd(), target.as_fd());
        }
        let mut words = vec!["size=0k".to_owned(), "mode=555".to_owned()];
        words.extend(self.label.map(MountLabel::option));
        let options = Options {
            data: words,
            attributes: Attributes::READ_ONLY,
            superblock_read_only: true,
            ..Options::default()
        };
        let empty = mount::new_filesystem("tmpfs", "tmpfs", &options)?;
        mount::attach(empty.as_fd(), target.as_fd())?;
        self.empty = Some(empty);
        Ok(())
    }
}

fn clone_mount(fd: &OwnedFd) -> Result<OwnedFd> {
    mount::clone_tree(fd.as_fd(), Path::new(""), false)
}

/// `/dev/null` of the container, if it is one.
fn null_device(root: &beneath::Root) -> Result<OwnedFd> {
    let device = root.open_at(Path::new("/dev/null"), OFlags::PATH | OFlags::NOFOLLOW)?;
    let stat = beneath::stat(device.as_fd()).context(|| "stat /dev/null")?;
    let is_null =
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == makedev(1, 3);
    if is_null {
        Ok(device)
    } else {
        Err(Error::permission_denied("/dev/null of the container is not the null device"))
    }
}
