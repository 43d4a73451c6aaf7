//! The restrictions that follow the change of the root: sysctls set, paths made read-only, paths masked.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use linux::beneath;
use linux::mount::{self, Attributes, Options};
use linux::procfs::Proc;
use rustix::fs::{FileType, OFlags, makedev};
use types::spec::runtime::Spec;
use types::{Context, Error, Result};

use super::is_directory;
use crate::labels::MountLabel;
use crate::plan::sysctl_path;

/// Restricts what the container can see and change. The root is the container's by now.
pub(crate) fn restrict(spec: &Spec, label: Option<&MountLabel>) -> Result<()> {
    let Some(linux) = &spec.linux else { return Ok(()) };
    let root = beneath::Root::open(Path::new("/"))?;
    if !linux.sysctl.is_empty() {
        let proc = Proc::beneath(&root)?;
        linux.sysctl.iter().try_for_each(|(key, value)| write_sysctl(&proc, key, value))?;
    }
    // A read-only tmpfs was left writable to be filled.
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
    proc.write(&format!("sys/{}", sysctl_path(key)), value)
        .context(|| format!("set sysctl {key} to {value:?}"))
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
    for (index, path) in paths.iter().enumerate() {
        // A second cover adds nothing.
        if paths[..index].contains(path) {
            continue;
        }
        let what = || format!("mask {path}");
        let Some(target) = root.find(Path::new(path), OFlags::PATH).map_err(|error| error.context(what()))?
        else {
            continue;
        };
        cover.put_on(&target).map_err(|error| error.context(what()))?;
    }
    Ok(())
}

/// The covers of masked paths: one file system and one device for all.
struct Cover<'a> {
    root: &'a beneath::Root,
    label: Option<&'a MountLabel>,
    /// Set once it is attached: before Linux 6.15 a mount that is in no mount namespace cannot be cloned.
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

/// The container's `/dev/null`, checked to be the null device.
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
