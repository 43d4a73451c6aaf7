//! Sets the metadata of extracted files: owner, mode, times and extended attributes.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use linux::beneath::proc_path;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    fchmod, fchown, fsetxattr, futimens, lsetxattr, openat, setxattr, utimensat,
};
use rustix::io::Errno;
use types::{Context, Error, Result};

use crate::tar::{Entry, Kind};
use crate::tree;

/// Sets the metadata of a file that this process created. With `is_owned_by_maker` it stays the process's.
pub(super) fn set_metadata_of_file(entry: &Entry, file: &OwnedFd, is_owned_by_maker: bool) -> Result<()> {
    let set = || -> Result<(), Errno> {
        if !is_owned_by_maker {
            fchown(file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
        }
        // After the owner: chown(2) clears the setuid bit.
        fchmod(file, Mode::from_raw_mode(entry.mode))?;
        futimens(file, &times(entry.mtime))
    };
    for (name, value) in attributes(entry) {
        fsetxattr(file, name, value, XattrFlags::empty()).or_else(|errno| ignorable(name, errno))?;
    }
    set().map_err(io::Error::from).context(|| "set owner, mode and time")?;
    // After the owner: chown(2) also removes the capabilities.
    if let Some(value) = entry.attributes.get("security.capability") {
        fsetxattr(file, "security.capability", value, XattrFlags::empty())
            .or_else(|errno| ignorable("security.capability", errno))?;
    }
    Ok(())
}

/// Sets the metadata of a name that is no regular file. A process may have replaced the name since it was created: no
/// symlink is followed, and `Aborted` is returned if the type is another.
pub(super) fn set_metadata_at(
    entry: &Entry,
    parent: &OwnedFd,
    name: &OsStr,
    is_owned_by_maker: bool,
) -> Result<()> {
    let is_link = matches!(entry.kind, Kind::Symlink(_));
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = openat(parent, name, flags, Mode::empty()).map_err(io::Error::from).context(|| "open")?;
    let stat = linux::beneath::stat(made.as_fd()).context(|| "stat")?;
    if FileType::from_raw_mode(stat.st_mode) != type_of(&entry.kind) {
        return Err(Error::aborted("it was replaced by something else meanwhile"));
    }
    let path = proc_path(made.as_fd());
    let set = || -> Result<(), Errno> {
        if !is_owned_by_maker {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            chownat(&made, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        }
        if !is_link {
            chmodat(CWD, &path, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
        }
        match entry.kind {
            Kind::Directory => Ok(()),
            Kind::Symlink(_) => utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW),
            _ => utimensat(CWD, &path, &times(entry.mtime), AtFlags::empty()),
        }
    };
    set().map_err(io::Error::from).context(|| "set owner, mode and time")?;
    for (attribute, value) in attributes(entry) {
        let set = if is_link {
            lsetxattr(proc_path(parent.as_fd()).join(name), attribute, value, XattrFlags::empty())
        } else {
            setxattr(&path, attribute, value, XattrFlags::empty())
        };
        match set {
            // Only files and directories can have `user.` attributes (xattr(7)).
            Err(Errno::PERM) if entry.kind != Kind::Directory && attribute.starts_with("user.") => {}
            set => set.or_else(|errno| ignorable(attribute, errno))?,
        }
    }
    Ok(())
}

fn type_of(kind: &Kind) -> FileType {
    match kind {
        Kind::File | Kind::HardLink(_) => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink(_) => FileType::Symlink,
        Kind::CharacterDevice { .. } => FileType::CharacterDevice,
        Kind::BlockDevice { .. } => FileType::BlockDevice,
        Kind::Fifo => FileType::Fifo,
    }
}

/// Makes overlayfs hide the lower directories of a path (overlayfs.rst, "whiteouts and opaque directories").
pub(super) fn make_opaque(path: &Path) -> Result<()> {
    setxattr(path, c"trusted.overlay.opaque", b"y", XattrFlags::empty())
        .map_err(io::Error::from)
        .context(|| "make the directory opaque")
}

/// Removes the attributes of an existing directory that its entry does not have.
pub(super) fn remove_attributes(entry: &Entry, parent: &OwnedFd, name: &OsStr) -> Result<()> {
    let path = proc_path(parent.as_fd()).join(name);
    let existing = tree::attributes(&path).context(|| "read attributes")?;
    for name in existing.keys().filter(|name| !entry.attributes.contains_key(*name)) {
        match rustix::fs::lremovexattr(&path, name.as_str()) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(errno) => {
                return Err(io::Error::from(errno)).context(|| format!("remove attribute {name}"));
            }
        }
    }
    Ok(())
}

/// The extended attributes that an archive may set.
pub(super) fn attributes(entry: &Entry) -> impl Iterator<Item = (&str, &[u8])> {
    let is_overlay = |name: &str| name.starts_with("trusted.overlay.") || name.starts_with("user.overlay.");
    entry
        .attributes
        .iter()
        .filter(move |(name, _)| !is_overlay(name))
        .map(|(name, value)| (name.as_str(), &value[..]))
}

/// Ignores the errors of a file system or host that does not support this kind of attribute, as other runtimes do.
pub(super) fn ignorable(name: &str, errno: Errno) -> Result<()> {
    match errno {
        Errno::NOTSUP => Ok(()),
        Errno::PERM | Errno::INVAL if name.starts_with("security.") || name.starts_with("trusted.") => Ok(()),
        errno => Err(io::Error::from(errno)).context(|| format!("set attribute {name}")),
    }
}

pub(super) fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}
