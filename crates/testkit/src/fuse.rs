//! FUSE file systems that a test serves itself, by version 7.31 of the protocol (`linux/fuse.h`), as far as a file
//! system of one file needs it. Numbers are in native byte order.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use linux::mount::{self, Options};
use linux::process::wait_readable;

use crate::wait::DEADLINE;

pub(crate) const WRITE_MAX: u32 = 128 * 1024;
/// The size of the largest write request, with room to spare.
pub(crate) const REQUEST_MAX: usize = WRITE_MAX as usize + 8192;

/// Mounts a FUSE file system, which the caller serves: it reads requests from the returned device.
pub(crate) fn mount(at: &Path) -> File {
    let device = File::options().read(true).write(true).open("/dev/fuse").expect("FUSE in the kernel");
    let options = [
        format!("fd={}", device.as_raw_fd()),
        "rootmode=40000".to_owned(),
        "user_id=0".to_owned(),
        "group_id=0".to_owned(),
        "allow_other".to_owned(),
    ];
    let mounted = mount::new_filesystem("fuse", "testkit", &Options::parse(&options));
    let mounted = mounted.expect("root may mount FUSE");
    mount::attach(mounted.as_fd(), File::open(at).expect("a directory").as_fd()).expect("a directory");
    device
}

/// Sends the answer to `request`, which is given as it was read.
pub(crate) fn reply(device: &mut File, request: &[u8], answer: Result<Vec<u8>, i32>) {
    let (error, payload) = match answer {
        Ok(payload) => (0, payload),
        Err(error) => (error, Vec::new()),
    };
    let mut reply = Vec::with_capacity(16 + payload.len());
    reply.extend_from_slice(&u32::try_from(16 + payload.len()).expect("small").to_ne_bytes());
    reply.extend_from_slice(&error.to_ne_bytes());
    reply.extend_from_slice(&request[8..16]);
    reply.extend_from_slice(&payload);
    // Fails if the request was interrupted meanwhile.
    let _ = device.write_all(&reply);
}

/// `fuse_init_out`.
pub(crate) fn init() -> Vec<u8> {
    const BIG_WRITES: u32 = 1 << 5;
    let mut answer = Vec::new();
    for word in [7, 31, WRITE_MAX, BIG_WRITES, 0, WRITE_MAX, 1] {
        answer.extend_from_slice(&word.to_ne_bytes());
    }
    answer.resize(64, 0);
    answer
}

/// A file system whose server stops answering after the mount: a lookup in it waits until the file system is unmounted,
/// or the caller is killed.
pub struct SilentDisk {
    at: PathBuf,
    device: File,
}

impl SilentDisk {
    /// Mounts it on a directory.
    pub fn over(at: &Path) -> SilentDisk {
        let mut device = mount(at);
        let mut request = vec![0; REQUEST_MAX];
        let len = device.read(&mut request).expect("the kernel begins");
        reply(&mut device, &request[..len], Ok(init()));
        SilentDisk { at: at.to_owned(), device }
    }

    /// Waits until a process waits for the file system.
    pub fn is_asked(&self) {
        let asked = wait_readable(self.device.as_fd(), Some(DEADLINE)).expect("a device that can be polled");
        assert!(asked, "nobody looks into {}", self.at.display());
    }
}

impl Drop for SilentDisk {
    fn drop(&mut self) {
        let _ = mount::unmount_all(&self.at);
    }
}
