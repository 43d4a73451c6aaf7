//! Mounts by file descriptor: made detached, and attached when they are complete.
//!
//! ```text
//! fsopen ─▶ fsconfig… ─▶ fsmount ──┐
//! open_tree (bind) ────────────────┼─▶ mount_setattr ─▶ move_mount ─▶ visible
//! ```
//!
//! The target of a mount is always an open descriptor, never a path that could be swapped meanwhile. [`Options`] parses
//! the options of `mount(8)` and the OCI runtime spec; [`mount_all`] makes the mounts of a snapshotter. Overlay layers
//! are set one by one (`lowerdir+`, Linux 6.8), so that their number is not limited by the 4 KiB of classic mount data.

mod locked;
mod mountinfo;
mod options;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};
use types::{Context, Error, Mount, Result};

use crate::beneath::proc_path;
use crate::idmap::{self, Owners};
use crate::loopdev::LoopDevice;
pub use crate::overlay::maps_owners;
use crate::{overlay, tree_mounts};

pub use self::locked::Locked;
pub(crate) use self::mountinfo::mount_point;
pub use self::mountinfo::{MountPoint, mount_point_of, mount_points};
pub use self::options::{Attributes, Bind, Options, Propagation, option_words};

const ATTR_IDMAP: u64 = libc::MOUNT_ATTR_IDMAP;

/// Changes the mount that `target` is open on, and, if file system options are given, its file system. Attributes that
/// are not named stay, and so does the read-only flag of the file system: it may be the host's, as sysfs is.
pub fn reconfigure(target: BorrowedFd<'_>, options: &Options) -> Result<()> {
    let change = || -> io::Result<()> {
        let flags =
            rustix::mount::FsPickFlags::FSPICK_EMPTY_PATH | rustix::mount::FsPickFlags::FSPICK_CLOEXEC;
        let context = rustix::mount::fspick(target, "", flags)?;
        for word in &options.data {
            match word.split_once('=') {
                Some((key, value)) => fsconfig_set_string(&context, key, value)?,
                None => fsconfig_set_flag(&context, word.as_str())?,
            }
        }
        rustix::mount::fsconfig_reconfigure(&context)?;
        Ok(())
    };
    if options.bind == Bind::No && !options.data.is_empty() {
        change().context(|| format!("remount with {}", options.data.join(",")))?;
    }
    set_attributes(target, options.attributes, false)
}

/// Makes a file system that is not mounted yet.
pub fn new_filesystem(kind: &str, source: &str, options: &Options) -> Result<OwnedFd> {
    if options.is_loop {
        let is_read_only = options.superblock_read_only;
        let access = if is_read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let file = rustix::fs::open(source, access | OFlags::CLOEXEC, Mode::empty())
            .map_err(io::Error::from)
            .context(|| format!("open {source}"))?;
        let device = LoopDevice::attach(file.as_fd(), is_read_only)?;
        let options = Options { is_loop: false, ..options.clone() };
        return new_filesystem(kind, &device.path().display().to_string(), &options);
    }
    let what = || format!("mount {kind}");
    if kind == "overlay" && !overlay::takes_layers() {
        return old_overlay(options);
    }
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(io::Error::from).context(what)?;
    let configured = configure(context.as_fd(), kind, source, options);
    configured.map_err(io::Error::from).map_err(|error| {
        // The kernel explains errors in the context's log (fsopen(2)).
        let words = kernel_words(context.as_fd());
        let text = if words.is_empty() { what() } else { format!("mount {kind}: the kernel says {words:?}") };
        Error::new(error.kind().into(), text).with_source(error)
    })?;
    // A new mount has no attributes to clear.
    let attributes = u32::try_from(options.attributes.set).expect("attributes of mounts");
    let attributes = MountAttrFlags::from_bits_retain(attributes);
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(io::Error::from).context(what)
}

fn old_overlay(options: &Options) -> Result<OwnedFd> {
    let (layers, words): (Vec<String>, Vec<String>) =
        options.data.iter().cloned().partition(|word| word.starts_with("lowerdir="));
    let layers: Vec<String> =
        layers.iter().filter_map(|word| word.strip_prefix("lowerdir=")).flat_map(split_layers).collect();
    let mount = overlay::detached(&layers, &words, options.superblock_read_only)?;
    set_attributes(mount.as_fd(), options.attributes, false).context(|| "mount overlay")?;
    Ok(mount)
}

fn configure(context: BorrowedFd<'_>, kind: &str, source: &str, options: &Options) -> Result<(), Errno> {
    if !source.is_empty() {
        fsconfig_set_string(context, "source", source)?;
    }
    if options.superblock_read_only {
        fsconfig_set_flag(context, "ro")?;
    }
    for word in &options.data {
        match word.split_once('=') {
            Some(("lowerdir", layers)) if kind == "overlay" => set_layers(context, layers)?,
            Some((key, value)) => fsconfig_set_string(context, key, value)?,
            None => fsconfig_set_flag(context, word.as_str())?,
        }
    }
    fsconfig_create(context)
}

/// Sets layers from top to bottom, one by one (see [`overlay::takes_layers`]).
fn set_layers(context: BorrowedFd<'_>, layers: &str) -> Result<(), Errno> {
    split_layers(layers).try_for_each(|layer| fsconfig_set_string(context, "lowerdir+", layer.as_str()))
}

/// Splits the value of `lowerdir` at colons that are not escaped by a backslash (overlayfs's rule).
pub fn split_layers(layers: &str) -> impl Iterator<Item = String> {
    let mut parts = vec![String::new()];
    let mut characters = layers.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => parts.last_mut().expect("never empty").extend(characters.next()),
            ':' => parts.push(String::new()),
            other => parts.last_mut().expect("never empty").push(other),
        }
    }
    parts.into_iter()
}

fn kernel_words(context: BorrowedFd<'_>) -> String {
    let mut words = Vec::new();
    let mut buffer = [0; 512];
    while let Ok(len @ 1..) = rustix::io::read(context, &mut buffer) {
        let line = String::from_utf8_lossy(&buffer[..len]).trim().to_owned();
        // `e overlay: …`: the letter is the log level.
        words.push(line.split_once(' ').map_or(line.clone(), |(_, text)| text.to_owned()));
    }
    words.join("; ")
}

/// A detached clone of the mount at `dir`/`path`. An empty path means `dir` itself.
pub fn clone_tree(dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(dir, path, flags).map_err(io::Error::from).context(|| format!("bind {}", path.display()))
}

/// [`clone_tree`] for a path of the host.
pub fn clone_path(path: &Path, recursive: bool) -> Result<OwnedFd> {
    clone_tree(CWD, path, recursive)
}

/// Changes attributes of a mount, or of all its submounts too.
pub fn set_attributes(mount: BorrowedFd<'_>, attributes: Attributes, recursive: bool) -> Result<()> {
    if attributes.is_empty() {
        return Ok(());
    }
    let change =
        MountAttr { attr_set: attributes.set, attr_clr: attributes.clear, propagation: 0, userns_fd: 0 };
    mount_setattr(mount, &change, recursive).context(|| "set mount attributes")
}

/// Sets the propagation type of a mount, or of all its submounts too (mount_namespaces(7)).
pub fn set_propagation(mount: BorrowedFd<'_>, propagation: Propagation, recursive: bool) -> Result<()> {
    let change = MountAttr { attr_set: 0, attr_clr: 0, propagation: propagation.flag(), userns_fd: 0 };
    mount_setattr(mount, &change, recursive).context(|| format!("set propagation {propagation:?}"))
}

/// Maps the owners of a detached mount by a user namespace.
pub fn set_idmap(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>, recursive: bool) -> Result<()> {
    let userns_fd = u64::try_from(user_namespace.as_raw_fd()).expect("an open fd");
    let change = MountAttr { attr_set: ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd };
    let what = "map the owners of a mount";
    match mount_setattr(mount, &change, recursive) {
        // Other causes of EINVAL are this code's to avoid.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(Error::failed_precondition(format!(
            "{what}: this kernel cannot do that for its file system (overlayfs: Linux 5.19, tmpfs: 6.3)"
        ))),
        other => other.context(|| what),
    }
}

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

#[expect(unsafe_code, reason = "rustix has no mount_setattr")]
fn mount_setattr(mount: BorrowedFd<'_>, change: &MountAttr, recursive: bool) -> io::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a static empty string; pointer and size describe `change`, which the kernel only
    // reads.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(change),
            size_of::<MountAttr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Attaches a detached mount on top of what `target` is open on.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    let attached = move_mount(mount, "", target, "", flags);
    attached.map_err(|errno| io::Error::from(as_mount_error(errno, mount, target))).context(|| {
        let target = std::fs::read_link(proc_path(target)).unwrap_or_default();
        format!("attach mount to {}", target.display())
    })
}

/// move_mount(2) answers EINVAL for a file on a directory, or the reverse, as for much else. mount(2) answers ENOTDIR,
/// which callers expect.
fn as_mount_error(errno: Errno, mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Errno {
    let is_dir = |fd: BorrowedFd<'_>| {
        rustix::fs::fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    };
    match (is_dir(mount), is_dir(target)) {
        (Ok(mount), Ok(target)) if errno == Errno::INVAL && mount != target => Errno::NOTDIR,
        _ => errno,
    }
}

/// Makes the mounts of a snapshotter on a directory, in order. The target of each is below it.
///
/// On failure everything is unmounted again.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<()> {
    for (done, mount) in mounts.iter().enumerate() {
        if let Err(error) = mount_one(mount, target) {
            for _ in 0..done {
                // The first error is reported; a busy mount goes with its last user.
                let _ = unmount(target, UnmountFlags::DETACH);
            }
            return Err(error.context(format!("mount root file system on {}", target.display())));
        }
    }
    Ok(())
}

fn mount_one(mount: &Mount, target: &Path) -> Result<()> {
    let options = Options::parse(&mount.options);
    let fd = detached(mount, &options)?;
    let target = if mount.target.is_empty() {
        open_path(target)?
    } else {
        let root = crate::beneath::Root::open(target)?;
        root.open_at(Path::new(&mount.target), OFlags::PATH)?
    };
    attach(fd.as_fd(), target.as_fd())?;
    for (propagation, recursive) in options.propagation {
        set_propagation(fd.as_fd(), propagation, recursive)?;
    }
    Ok(())
}

/// Opens the tree of these mounts for reading; it may be in use.
///
/// `InvalidArgument` as [`open_mounts`].
pub fn open_to_read(mounts: &[Mount]) -> Result<OwnedFd> {
    open_mounts(&tree_mounts::read_only(mounts))
}

/// Opens the tree of these mounts without attaching it: it goes with the descriptor, so that a process that dies leaves
/// nothing behind.
///
/// `InvalidArgument` unless it is a single mount: several need a directory to be combined on.
pub fn open_mounts(mounts: &[Mount]) -> Result<OwnedFd> {
    let [mount] = mounts else {
        return Err(Error::invalid_argument(format!("a tree of {} mounts, one expected", mounts.len())));
    };
    let mounted = detached(mount, &Options::parse(&mount.options))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(&mounted, ".", flags, Mode::empty())
        .map_err(io::Error::from)
        .context(|| format!("open the tree at {}", mount.source))
}

/// Makes a mount, not attached yet. With the options `uidmap=` and `gidmap=`, the owners of its lower layers, or of its
/// bind source, are mapped.
pub fn detached(mount: &Mount, options: &Options) -> Result<OwnedFd> {
    let is_bind = options.bind != Bind::No || mount.kind == "bind";
    let (owners, options) = &take_owners(options)?;
    if !is_bind {
        let make = || new_filesystem(&mount.kind, &mount.source, options);
        return match owners {
            None => make(),
            Some(owners) if mount.kind == "overlay" => {
                let layers = options.data.iter().filter_map(|word| word.strip_prefix("lowerdir="));
                let mapped = |path| Layer { path, owners: Some(owners.clone()) };
                let layers: Vec<Layer> = layers.flat_map(split_layers).map(mapped).collect();
                overlay::with_owners(&layers, make)
            }
            Some(_) => Err(Error::invalid_argument(format!("mount {}: it cannot map owners", mount.kind))),
        };
    }
    let recursive = options.bind == Bind::Recursive;
    let fd = clone_path(Path::new(&mount.source), recursive)?;
    if let Some(owners) = owners {
        set_idmap(fd.as_fd(), idmap::namespace(owners)?.as_fd(), recursive)?;
    }
    set_attributes(fd.as_fd(), options.attributes, false)?;
    set_attributes(fd.as_fd(), options.recursive, true)?;
    Ok(fd)
}

/// Splits the id maps of a mount from its other options.
fn take_owners(options: &Options) -> Result<(Option<Owners>, Options)> {
    let mut options = options.clone();
    let mut take = |key: &str| {
        let at = options.data.iter().position(|word| word.starts_with(key))?;
        Some(options.data.remove(at)[key.len()..].to_owned())
    };
    let owners = match (take("uidmap="), take("gidmap=")) {
        (Some(uids), Some(gids)) => Some(Owners::parse(&uids, &gids)?),
        (None, None) => None,
        _ => return Err(Error::invalid_argument("of uidmap and gidmap a mount has both or none")),
    };
    Ok((owners, options))
}

/// A lower layer of an overlay.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    pub path: String,
    /// Maps its owners.
    pub owners: Option<Owners>,
}

/// Opens a read-only overlay of layers, the uppermost first, not attached.
pub fn open_layers(layers: &[Layer]) -> Result<OwnedFd> {
    let escaped = layers.iter().map(|layer| layer.path.replace('\\', "\\\\").replace(':', "\\:"));
    let lower = format!("lowerdir={}", escaped.collect::<Vec<_>>().join(":"));
    let options = Options { data: vec![lower], ..Options::default() };
    overlay::with_owners(layers, || {
        let mount = new_filesystem("overlay", "overlay", &options)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&mount, ".", flags, Mode::empty()).map_err(io::Error::from);
        opened.context(|| "open an overlay")
    })
}

fn open_path(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(io::Error::from)
        .context(|| format!("open {}", path.display()))
}

/// Unmounts the topmost mount on `target`, and returns whether there was one. `FailedPrecondition` while it is in use.
pub fn unmount_one(target: &Path) -> Result<bool> {
    match unmount(target, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOENT) => Ok(false),
        Err(Errno::BUSY) => Err(Error::failed_precondition(format!(
            "unmount {}: it is in use: end the programs that have files of it open, or their working directory in it",
            target.display()
        ))),
        Err(errno) => Err(io::Error::from(errno)).context(|| format!("unmount {}", target.display())),
    }
}

/// Unmounts everything on `target`, lazily: current users keep it. A path that is no mount point, or does not exist, is
/// no error.
pub fn unmount_all(target: &Path) -> Result<()> {
    loop {
        match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(errno) => {
                return Err(io::Error::from(errno)).context(|| format!("unmount {}", target.display()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_split_at_bare_colons() {
        let layers: Vec<String> = split_layers(r"/a:/b\:c:/d\\e").collect();
        assert_eq!(layers, ["/a", "/b:c", r"/d\e"]);
    }

    #[test]
    fn a_hundred_and_twenty_layers_are_one_tree() {
        if !stdx::testing::is_root("a mount") {
            return;
        }
        let dir =
            tempfile::TempDir::with_prefix("a-rather-long-name-so-that-the-sum-exceeds-a-page-").unwrap();
        let layers: Vec<String> = (0..120)
            .map(|layer| {
                let path = dir.path().join(format!("layer{layer}"));
                std::fs::create_dir(&path).unwrap();
                std::fs::write(path.join(format!("file{layer}")), "").unwrap();
                path.display().to_string()
            })
            .collect();
        for name in ["upper", "work", "merged"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let options = vec![
            format!("lowerdir={}", layers.join(":")),
            format!("upperdir={}", dir.path().join("upper").display()),
            format!("workdir={}", dir.path().join("work").display()),
        ];
        let overlay =
            Mount { kind: "overlay".into(), source: "overlay".into(), target: String::new(), options };
        let merged = dir.path().join("merged");
        mount_all(std::slice::from_ref(&overlay), &merged).unwrap();
        assert_eq!(std::fs::read_dir(&merged).unwrap().count(), 120);
        unmount_all(&merged).unwrap();
        assert_eq!(std::fs::read_dir(&merged).unwrap().count(), 0);

        let wrong = Mount { options: vec!["lowerdir=/nosuch".into()], ..overlay };
        let error = mount_all(&[wrong], &merged).unwrap_err();
        assert!(error.chain().contains("overlay"), "{error:?}");
    }
}
