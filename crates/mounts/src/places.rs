//! The places of mounts: a directory for each activation, with a place for each of its mounts.
//!
//! ```text
//! DIR/17/0        a directory with something mounted on it
//! DIR/17/1        a symlink to a loop device
//! DIR/17/1.file   the path of the loop device's file, so that no other file's device is detached
//! DIR/17/2.verity the name of the dm-verity device that is mounted on DIR/17/2
//! ```
//!
//! The kernel's mount table tells what is mounted, so that an activation is taken down in the same way after a crash:
//! from the last place to the first, deleting only empty directories, symlinks, and files of this module.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use linux::loopdev::{self, LoopDevice};
use linux::mount::{self, Options};
use metadata::{Activation, ActiveMount};
use stdx::Mutex;
use types::{Context, Error, Mount, Result, Timestamp};

use crate::{fuse, verity};

/// The directory of all activations. Clones share it.
#[derive(Clone, Debug)]
pub struct Places {
    directory: PathBuf,
    /// Held while an activation is taken down: a collection and a deactivation may want the same one.
    taking: Arc<Mutex<()>>,
}

impl Places {
    /// Opens the directory, or creates it.
    pub fn open(directory: &Path) -> Result<Places> {
        let what = || format!("open {}", directory.display());
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).context(what)?;
        // The kernel's mount table has paths without symlinks.
        Ok(Places { directory: directory.canonicalize().context(what)?, taking: Arc::default() })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    fn of(&self, number: u64) -> PathBuf {
        self.directory.join(number.to_string())
    }

    /// Performs one mount of an activation.
    pub(crate) fn mount(&self, number: u64, index: usize, mount: Mount) -> Result<ActiveMount> {
        let directory = self.of(number);
        let what = || format!("create {}", directory.display());
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).context(what)?;
        let point = directory.join(index.to_string());
        match mount.kind.as_str() {
            "loop" => show_as_device(&mount, &point)?,
            kind => {
                fs::DirBuilder::new()
                    .mode(0o700)
                    .create(&point)
                    .context(|| format!("create {}", point.display()))?;
                match kind {
                    "erofs" => mount_erofs(&mount, &point)?,
                    kind if fuse::is_fuse(kind) => fuse::mount(&mount, &point)?,
                    _ => mount::mount_all(std::slice::from_ref(&mount), &point)?,
                }
            }
        }
        let point = point.to_str().ok_or_else(|| Error::internal("a state directory that is no text"))?;
        Ok(ActiveMount { point: point.to_owned(), mount, mounted: Timestamp::now() })
    }

    /// Unmounts an activation, from its last mount to the first, as far as it is still mounted. `FailedPrecondition` if
    /// a mount is in use, which then stays with those before it.
    pub(crate) fn take_down(&self, number: u64) -> Result<()> {
        let directory = self.of(number);
        let _alone = self.taking.lock();
        let mut indices: Vec<u32> = names(&directory)?.iter().filter_map(|name| name.parse().ok()).collect();
        indices.sort_unstable();
        for index in indices.into_iter().rev() {
            take_down_one(&directory.join(index.to_string()))?;
        }
        for name in names(&directory)? {
            remove(&directory.join(name))?;
        }
        match fs::remove_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).context(|| format!("remove {}", directory.display()))
            }
            _ => Ok(()),
        }
    }

    /// Unmounts all activations whose numbers are not among those that `live` returns. Tries all, and returns the first
    /// error.
    pub fn sweep(&self, live: &dyn Fn() -> Result<HashSet<u64>>) -> Result<()> {
        // Listed before `live` reads the records: a number is recorded before its directory is created.
        let found: Vec<u64> = names(&self.directory)?.iter().filter_map(|name| name.parse().ok()).collect();
        if found.is_empty() {
            return Ok(());
        }
        let live = live()?;
        let dead = found.into_iter().filter(|number| !live.contains(number));
        let failed = dead.filter_map(|number| self.take_down(number).err()).reduce(|first, _| first);
        failed.map_or(Ok(()), |error| Err(error.context("take down mounts that nobody needs")))
    }
}

/// Whether all mounts of an activation are mounted, given the mount points of the system.
pub(crate) fn is_whole(activation: &Activation, points: &HashSet<PathBuf>) -> Result<bool> {
    for active in &activation.active {
        let point = Path::new(&active.point);
        let is_there = match active.mount.kind.as_str() {
            "loop" => match (fs::read_link(point), shown_file(point)?) {
                (Ok(device), Some(file)) => loopdev::is_shown(&device, &file)?,
                _ => false,
            },
            _ => points.contains(point),
        };
        if !is_there {
            return Ok(false);
        }
    }
    Ok(true)
}

fn show_as_device(mount: &Mount, point: &Path) -> Result<()> {
    let is_read_only = mount.is_read_only();
    let what = || format!("show {} as a device", mount.source);
    let mut open = File::options();
    let file = open.read(true).write(!is_read_only).open(&mount.source).context(what)?;
    let source = Path::new(&mount.source).canonicalize().context(what)?;
    let note = note(point);
    let mut noted = File::create_new(&note).context(|| format!("create {}", note.display()))?;
    noted.write_all(source.as_os_str().as_encoded_bytes()).context(|| format!("write {}", note.display()))?;
    let device = LoopDevice::attach(file.as_fd(), is_read_only).context(what)?;
    symlink(device.path(), point).context(what)?;
    // From here on the device outlives the daemon, as it can be found by the symlink.
    device.keep().context(what)
}

/// Mounts an EROFS image with its additional files (`device=`). Kernels that cannot mount files get loop devices of
/// them. An image with hashes is mounted from a dm-verity device.
fn mount_erofs(mount: &Mount, point: &Path) -> Result<()> {
    let mut plain = mount.clone();
    plain.options.retain(|option| option != "loop" && !option.starts_with(verity::OPTION));
    let checked = mount.options.iter().find_map(|option| option.strip_prefix(verity::OPTION));
    if checked.is_some() && mount.options.iter().any(|option| option.starts_with("device=")) {
        return Err(Error::invalid_argument(format!(
            "{}: the hashes of {} are those of one file, and device= names others, which nobody would check",
            mount.source,
            verity::OPTION.trim_end_matches('=')
        )));
    }
    let device = checked.map(|hashes| verity::Device::show(&mount.source, hashes, &verity_note(point)));
    let device = device.transpose()?;
    if let Some(device) = &device {
        plain.source = device.path.display().to_string();
    }
    match mount::mount_all(std::slice::from_ref(&plain), point) {
        Err(error) if wants_block_devices(&error) => {}
        mounted => return mounted,
    }
    let show = |path: &str| {
        let what = || format!("show {path} as a device");
        LoopDevice::show(File::open(path).context(what)?.as_fd()).context(what)
    };
    let mut devices = Vec::new();
    if device.is_none() {
        devices.push(show(&plain.source)?);
        plain.source = devices[0].path().display().to_string();
    }
    for option in &mut plain.options {
        if let Some(path) = option.strip_prefix("device=") {
            let device = show(path)?;
            *option = format!("device={}", device.path().display());
            devices.push(device);
        }
    }
    let mounted = mount::new_filesystem("erofs", &plain.source, &Options::parse(&plain.options))?;
    mount::attach(mounted.as_fd(), File::open(point).context(|| format!("open {}", point.display()))?.as_fd())
}

fn wants_block_devices(error: &Error) -> bool {
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        let io = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        if io == Some(rustix::io::Errno::NOTBLK.raw_os_error()) {
            return true;
        }
        next = cause.source();
    }
    false
}

fn take_down_one(point: &Path) -> Result<()> {
    let what = || format!("look at {}", point.display());
    // readlink(2) does not ask the mounted file system, whose FUSE program may hang.
    match fs::read_link(point) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::InvalidInput => Err(error).context(what),
        Ok(device) => {
            if let Some(file) = shown_file(point)? {
                loopdev::detach(&device, &file)?;
            }
            remove(point)
        }
        _ => {
            while mount::unmount_one(point)? {}
            verity::remove(&verity_note(point))?;
            fs::remove_dir(point).context(|| format!("remove {}", point.display()))
        }
    }
}

/// The file with the name of a place's dm-verity device.
fn verity_note(point: &Path) -> PathBuf {
    point.with_extension("verity")
}

/// The file with the path of the file that a place's loop device shows.
fn note(point: &Path) -> PathBuf {
    point.with_extension("file")
}

fn shown_file(point: &Path) -> Result<Option<PathBuf>> {
    let note = note(point);
    match fs::read(&note) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => Ok(Some(OsString::from_vec(read.context(|| format!("read {}", note.display()))?).into())),
    }
}

fn remove(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context(|| format!("remove {}", file.display()))
        }
        _ => Ok(()),
    }
}

/// The names in a directory; none if it does not exist.
fn names(directory: &Path) -> Result<Vec<String>> {
    let what = || format!("list {}", directory.display());
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => {
            let names = entries.context(what)?.map(|entry| entry.map(|entry| entry.file_name()));
            let names: Vec<_> = names.collect::<io::Result<_>>().context(what)?;
            Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
        }
    }
}
