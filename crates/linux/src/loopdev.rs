//! Loop devices: files as block devices (loop(4)), for file systems that cannot mount a file directly.
//!
//! ```text
//! show, attach ──▶ goes with its last user ──keep──▶ stays ──detach──▶ goes with its last user
//! ```

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use types::{Context, Error, Result};

/// Commands of loop(4), `linux/loop.h`.
const CTL_GET_FREE: libc::Ioctl = 0x4C82;
const CONFIGURE: libc::Ioctl = 0x4C0A;
const SET_STATUS: libc::Ioctl = 0x4C04;
const GET_STATUS: libc::Ioctl = 0x4C05;
/// `LO_FLAGS_READ_ONLY`, `LO_FLAGS_AUTOCLEAR`.
const READ_ONLY: u32 = 1;
const GOES_WITH_ITS_LAST_USER: u32 = 4;

/// How often other processes may take a free device first.
const RACES_MAX: usize = 64;

/// A device backed by a file. It is removed when it is no longer open or mounted.
pub struct LoopDevice {
    path: PathBuf,
    open: File,
}

impl LoopDevice {
    /// Attaches a file read-only.
    pub fn show(file: BorrowedFd<'_>) -> Result<LoopDevice> {
        LoopDevice::attach(file, true)
    }

    /// Attaches a file. Writes to the device are written to the file, unless `is_read_only`.
    pub fn attach(file: BorrowedFd<'_>, is_read_only: bool) -> Result<LoopDevice> {
        let (access, read_only) = if is_read_only { (OFlags::RDONLY, READ_ONLY) } else { (OFlags::RDWR, 0) };
        let what = || "set up a loop device";
        let control = File::options().read(true).write(true).open("/dev/loop-control").context(what)?;
        for _ in 0..RACES_MAX {
            let number = free_number(control.as_fd()).context(what)?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = open(&path, access)?;
            match configure(device.as_fd(), file, read_only | GOES_WITH_ITS_LAST_USER) {
                Ok(()) => return Ok(LoopDevice { path, open: device.into() }),
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
                Err(error) => return Err(error).context(what),
            }
        }
        Err(io::Error::from(io::ErrorKind::ResourceBusy)).context(what)
    }

    /// `/dev/loopN`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps the device without users, until [`detach`].
    pub fn keep(&self) -> Result<()> {
        change_flags(self.open.as_fd(), |flags| flags & !GOES_WITH_ITS_LAST_USER)
            .context(|| format!("keep {}", self.path.display()))
    }
}

/// Removes a device that [`LoopDevice::keep`] keeps: now, or with its last user. Returns false, and does nothing, if
/// its backing file is not `file`: then it was removed before, and belongs to another user.
pub fn detach(path: &Path, file: &Path) -> Result<bool> {
    // Opened before the check: an open device cannot be reassigned.
    let device = match open(path, OFlags::RDONLY) {
        Err(error) if error.is(types::ErrorKind::NotFound) => return Ok(false),
        opened => opened?,
    };
    if !is_shown(path, file)? {
        return Ok(false);
    }
    change_flags(device.as_fd(), |flags| flags | GOES_WITH_ITS_LAST_USER)
        .context(|| format!("let {} go", path.display()))?;
    Ok(true)
}

/// Whether the device at `path` is backed by `file`.
pub fn is_shown(path: &Path, file: &Path) -> Result<bool> {
    let name = path.file_name().ok_or_else(|| Error::invalid_argument("a device without a name"))?;
    let said = Path::new("/sys/block").join(name).join("loop/backing_file");
    match std::fs::read_to_string(&said) {
        Ok(shown) => {
            let shown = shown.trim_end_matches('\n');
            Ok(Path::new(shown.strip_suffix(" (deleted)").unwrap_or(shown)) == file)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        // The device was detached between open and read.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(false),
        Err(error) => Err(error).context(|| format!("read {}", said.display())),
    }
}

fn open(path: &Path, access: OFlags) -> Result<OwnedFd> {
    let opened = rustix::fs::open(path, access | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from);
    opened.context(|| format!("open {}", path.display()))
}

#[expect(unsafe_code, reason = "rustix has no loop devices")]
fn change_flags(device: BorrowedFd<'_>, change: impl FnOnce(u32) -> u32) -> io::Result<()> {
    let mut status = Status { before_flags: [0; 52], flags: 0, after_flags: [0; 176] };
    // SAFETY: the kernel writes a structure of the size that is asserted below, which lives until it returns.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), GET_STATUS, std::ptr::from_mut(&mut status)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    status.flags = change(status.flags);
    // SAFETY: the kernel reads the same.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), SET_STATUS, std::ptr::from_ref(&status)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `struct loop_info64`.
#[repr(C, align(8))]
struct Status {
    before_flags: [u8; 52],
    flags: u32,
    after_flags: [u8; 176],
}

const _: () = assert!(size_of::<Status>() == 232, "as in linux/loop.h");

#[expect(unsafe_code, reason = "rustix has no loop devices")]
fn free_number(control: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: this command takes no argument and touches no memory of ours.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), CTL_GET_FREE) };
    if number < 0 { Err(io::Error::last_os_error()) } else { Ok(number) }
}

/// `struct loop_config`: the file, the block size (0 for the usual one), `struct loop_info64`, and what is
/// reserved.
#[repr(C)]
struct Config {
    file: u32,
    block_size: u32,
    /// Device, inode, size limit and so on: filled in by the kernel.
    before_flags: [u8; 52],
    flags: u32,
    after_flags: [u8; 176],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Config>() == 304, "as in linux/loop.h");

#[expect(unsafe_code, reason = "rustix has no loop devices")]
fn configure(device: BorrowedFd<'_>, file: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    let config = Config {
        file: u32::try_from(file.as_raw_fd()).expect("an open fd"),
        block_size: 0,
        before_flags: [0; 52],
        flags,
        after_flags: [0; 176],
        reserved: [0; 8],
    };
    // SAFETY: the kernel reads a structure of the size that is asserted above, which lives until it returns.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE, std::ptr::from_ref(&config)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_loop_device_is_removed_with_its_last_user() {
        if !stdx::testing::is_root("a loop device") {
            return;
        }
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 1024]).unwrap();
        let device = LoopDevice::show(file.as_file().as_fd()).unwrap();
        let mut found = Vec::new();
        File::open(device.path()).unwrap().read_to_end(&mut found).unwrap();
        assert_eq!(found, [7; 1024]);
        let written = File::options()
            .write(true)
            .open(device.path())
            .and_then(|mut file| file.write_all(&[8; 512]).and_then(|()| file.sync_all()));
        assert!(written.is_err(), "read-only");
    }

    #[test]
    fn a_device_that_is_kept_stays_until_it_is_detached() {
        if !stdx::testing::is_root("a loop device") {
            return;
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let device = LoopDevice::attach(file.as_file().as_fd(), false).unwrap();
        device.keep().unwrap();
        let path = device.path().to_owned();
        drop(device);
        let mut opened = File::options().write(true).open(&path).unwrap();
        opened.write_all(&[9; 512]).unwrap();
        opened.sync_all().unwrap();
        drop(opened);
        assert_eq!(std::fs::read(file.path()).unwrap()[..512], [9; 512], "writable");

        assert!(is_shown(&path, file.path()).unwrap());
        assert!(!detach(&path, Path::new("/another")).unwrap(), "it shows another file");
        assert!(is_shown(&path, file.path()).unwrap());
        assert!(detach(&path, file.path()).unwrap());
        assert!(!is_shown(&path, file.path()).unwrap());
        assert!(!detach(&path, file.path()).unwrap(), "it is gone");
    }
}
