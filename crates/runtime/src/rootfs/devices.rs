//! `/dev`: the devices that every container has, those of the spec, and links.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use linux::mount;
use rustix::fs::{AtFlags, FileType, Mode, makedev, mknodat, statat, symlinkat};
use types::spec::runtime::{LinuxDevice, Spec};
use types::{Context, Error, Result};

use super::Root;
use crate::checkpoint::is_bind;

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

/// The paths of all devices, including the default ones.
pub(crate) fn devices(spec: &Spec) -> Vec<String> {
    let standard = DEVICES.map(|(name, ..)| format!("/dev/{name}"));
    standard.into_iter().chain(further(spec).map(|device| device.path.clone())).collect()
}

/// Devices of the spec. `/dev/ptmx` always leads to the container's own devpts, as with runc.
fn further(spec: &Spec) -> impl Iterator<Item = &LinuxDevice> + Clone {
    spec.linux.iter().flat_map(|linux| &linux.devices).filter(|device| device.path != "/dev/ptmx")
}

/// Devices are made unless the host's `/dev` is bound.
pub(super) fn wants_devices(spec: &Spec) -> bool {
    !spec.mounts.iter().any(|mount| Path::new(&mount.destination) == Path::new("/dev") && is_bind(mount))
}

pub(super) fn make_devices(root: &Root, spec: &Spec, in_user_namespace: bool) -> Result<()> {
    // The umask must not change the modes.
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
    let extra = further(spec);
    let standard = standard.iter().filter(|device| !extra.clone().any(|other| other.path == device.path));
    let wanted = standard
        .map(|device| (device, IfThere::Keep))
        .chain(extra.clone().map(|device| (device, IfThere::Compare)));
    let dev = root.inside.make_dirs(Path::new("/dev"), 0o755)?;
    for (device, if_there) in wanted {
        make_device(root, dev.as_fd(), device, if_there, in_user_namespace)
            .map_err(|error| error.context(format!("make device {}", device.path)))?;
    }
    // As runc does, if the kernel has this file; it is masked.
    let core = Path::new("/proc/kcore").exists().then_some(("/proc/kcore", "core"));
    for (target, name) in LINKS.into_iter().chain(core) {
        match symlinkat(target, &dev, name) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(io::Error::from(errno)).context(|| format!("link /dev/{name}")),
        }
    }
    Ok(())
}

/// What to do with a file at the path of a device.
#[derive(Clone, Copy)]
enum IfThere {
    /// Keep it: the image has a `/dev` of its own.
    Keep,
    /// `config-linux.md`, "Devices": it must be the same device, or it is an error.
    Compare,
}

/// Makes a device. `dev` is the open `/dev`, which most devices are in.
fn make_device(
    root: &Root,
    dev: BorrowedFd<'_>,
    device: &LinuxDevice,
    if_there: IfThere,
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
        Err(rustix::io::Errno::EXIST) => {
            return match if_there {
                IfThere::Compare if !is_device(dir, name, kind, number)? => {
                    Err(Error::failed_precondition("something else is there"))
                }
                _ => Ok(()),
            };
        }
        Err(rustix::io::Errno::PERM) => return bind_device(root, device),
        Err(errno) => return Err(io::Error::from(errno)).context(|| "mknod"),
    }
    let (uid, gid) = (device.uid.unwrap_or(0), device.gid.unwrap_or(0));
    if (uid, gid) != (0, 0) {
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(io::Error::from)
            .context(|| "chown")?;
    }
    Ok(())
}

fn is_device(dir: BorrowedFd<'_>, name: &OsStr, kind: FileType, number: u64) -> Result<bool> {
    let there = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from).context(|| "stat")?;
    let is_kind = FileType::from_raw_mode(there.st_mode) == kind;
    Ok(is_kind && (kind == FileType::Fifo || there.st_rdev == number))
}

/// Without the right to make device nodes, the host's is bound.
fn bind_device(root: &Root, device: &LinuxDevice) -> Result<()> {
    let source = mount::clone_path(Path::new(&device.path), false)?;
    let target = root.inside.make_file(Path::new(&device.path), 0o644)?;
    mount::attach(source.as_fd(), target.as_fd())
}
