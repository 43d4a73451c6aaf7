//! Loop devices: files as block devices (loop(4)), for file systems that mount no file themselves.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use types::{Context, Result};

/// Commands of loop(4), `linux/loop.h`.
const CTL_GET_FREE: libc::Ioctl = 0x4C82;
const CONFIGURE: libc::Ioctl = 0x4C0A;
/// `LO_FLAGS_READ_ONLY`, `LO_FLAGS_AUTOCLEAR`.
const READ_ONLY: u32 = 1;
const GOES_WITH_ITS_LAST_USER: u32 = 4;

/// How often a free device may be taken by others before we have it.
const RACES_MAX: usize = 64;

/// A device that shows a file, read-only. It goes when nobody has it open or mounted any more.
pub struct LoopDevice {
    path: PathBuf,
    _open: File,
}

impl LoopDevice {
    pub fn show(file: BorrowedFd<'_>) -> Result<LoopDevice> {
        let what = || "set up a loop device";
        let control = File::options().read(true).write(true).open("/dev/loop-control").context(what)?;
        for _ in 0..RACES_MAX {
            let number = free_number(control.as_fd()).context(what)?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let device = rustix::fs::open(&path, flags, Mode::empty()).map_err(io::Error::from);
            let device = device.context(|| format!("open {}", path.display()))?;
            match configure(device.as_fd(), file) {
                Ok(()) => return Ok(LoopDevice { path, _open: device.into() }),
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
                Err(error) => return Err(error).context(what),
            }
        }
        Err(io::Error::from(io::ErrorKind::ResourceBusy)).context(what)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

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
    /// Device, inode, size limit and so on: the kernel fills these in.
    before_flags: [u8; 52],
    flags: u32,
    after_flags: [u8; 176],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Config>() == 304, "as in linux/loop.h");

#[expect(unsafe_code, reason = "rustix has no loop devices")]
fn configure(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<()> {
    let config = Config {
        file: u32::try_from(file.as_raw_fd()).expect("an open fd"),
        block_size: 0,
        before_flags: [0; 52],
        flags: READ_ONLY | GOES_WITH_ITS_LAST_USER,
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
    fn a_file_is_a_device_until_nobody_has_it() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: loop devices need root");
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
}
