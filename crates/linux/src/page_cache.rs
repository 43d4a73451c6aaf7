//! The page cache: the cached size of a file, and the read-ahead of file systems.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

/// cachestat(2): the same number on all architectures.
const CACHESTAT: libc::c_long = 451;
/// The kernel's backing devices of files: a directory for each, named by the device number or, without a device, by the
/// file system and a counter (Linux, `Documentation/ABI/testing/sysfs-class-bdi`).
const BACKINGS: &str = "/sys/class/bdi";
const READ_AHEAD: &str = "read_ahead_kb";

/// `cachestat_range`: offset, and number of bytes, 0 for all.
#[repr(C)]
struct Range {
    offset: u64,
    len: u64,
}

/// `cachestat`.
#[repr(C)]
#[derive(Default)]
struct Pages {
    cached: u64,
    dirty: u64,
    under_writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// How many bytes of a file are cached, in whole pages. `Unsupported` before Linux 6.5, and for file systems without
/// page cache.
#[expect(unsafe_code, reason = "rustix has no cachestat")]
pub fn cached_len(file: BorrowedFd<'_>) -> io::Result<u64> {
    let all = Range { offset: 0, len: 0 };
    let mut pages = Pages::default();
    // SAFETY: both are what the call wants, and live through it; it writes the second only.
    let asked = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), &raw const all, &raw mut pages, 0_u32) };
    if asked < 0 {
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error() {
            Some(libc::ENOSYS | libc::EOPNOTSUPP) => io::ErrorKind::Unsupported.into(),
            _ => error,
        });
    }
    Ok(pages.cached * rustix::param::page_size() as u64)
}

/// The backing devices of a file system type, as they are before a new mount.
pub struct Backings {
    prefix: String,
    known: BTreeSet<OsString>,
}

impl Backings {
    /// Those of a type, such as `erofs`.
    pub fn of(kind: &str) -> Backings {
        let prefix = format!("{kind}-");
        Backings { known: found(&prefix), prefix }
    }

    /// Sets the read-ahead of backing devices that were added since to that of a block device, given by its number
    /// ([`std::os::unix::fs::MetadataExt::dev`]). The kernel's default is 128 KiB, whatever device is below.
    ///
    /// A concurrent mount of the same type is set too. Does nothing if the kernel does not tell, or refuses.
    pub fn read_ahead_as(&self, device: u64) {
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let wanted = Path::new(BACKINGS).join(format!("{major}:{minor}")).join(READ_AHEAD);
        let Ok(wanted) = fs::read_to_string(wanted) else { return };
        for new in found(&self.prefix).difference(&self.known) {
            let _ = fs::write(Path::new(BACKINGS).join(new).join(READ_AHEAD), wanted.trim());
        }
    }
}

fn found(prefix: &str) -> BTreeSet<OsString> {
    let all = fs::read_dir(BACKINGS).into_iter().flatten().flatten().map(|entry| entry.file_name());
    all.filter(|name| name.as_encoded_bytes().starts_with(prefix.as_bytes())).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn cached_len_follows_the_page_cache() {
        let mut file = tempfile::tempfile_in(".").unwrap();
        let page = rustix::param::page_size();
        file.write_all(&vec![1; 10 * page]).unwrap();
        let cached = match cached_len(file.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                println!("skipped: the kernel does not tell what is in its memory (cachestat, Linux 6.5)");
                return;
            }
            cached => cached.unwrap(),
        };
        assert_eq!(cached, 10 * page as u64);
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        assert_eq!(cached_len(file.as_fd()).unwrap(), 0);
    }
}
