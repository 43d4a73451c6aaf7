//! Room that is kept for a disk that is full.
//!
//! Whoever makes room removes records, which takes some: the engine writes a page anew, never in its place. So a file
//! beside the database holds some MiB that nobody reads, and gives them up block by block, as they are needed:
//!
//! ```text
//! write of a page ──▶ no space ──▶ take as much off the reserve, write again ──▶ none left: the write fails
//! next batch      ──▶ make the reserve whole ──▶ cannot: what adds to the records is refused, what takes away goes on
//! ```
//!
//! Invariants
//! - A batch that began with a whole reserve takes half of it at most. The other half is for what was answered and has
//!   to be written again, and for removals.
//! - It is room, not truth: a reserve that is not there, or was cut by a crash, costs nothing but what it is for.
//!
//! Where blocks cannot be had without being written (`fallocate(2)` says so) there is no reserve, and on file systems
//! that copy on write what it gives up may not be enough.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};
use rustix::fs::{FallocateFlags, fallocate, fstatvfs};
use stdx::Mutex;

const LEN: u64 = 4 << 20;
/// Free bytes from which on there is one.
const PLENTY: u64 = 4 * LEN;
/// What is given up at a time is a multiple of this, as file systems give out whole blocks.
const BLOCK: u64 = 4 << 10;

#[derive(Debug)]
pub(crate) struct Reserve {
    file: File,
    /// What it shall hold: nothing where there is no room for one.
    full: u64,
    /// What it holds.
    len: Mutex<u64>,
    /// What it holds at least until the next batch.
    floor: AtomicU64,
}

impl Reserve {
    /// The one at `path`, which is made if there is plenty of room for it.
    pub(crate) fn open(path: &Path) -> io::Result<Reserve> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let len = file.metadata()?.len();
        let disk = fstatvfs(&file)?;
        let is_plenty = disk.f_bavail.saturating_mul(disk.f_frsize) >= PLENTY;
        let full = if len > 0 || is_plenty { LEN } else { 0 };
        let mut reserve = Reserve { file, full, len: Mutex::new(len), floor: AtomicU64::new(0) };
        match reserve.fill() {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => reserve.full = 0,
            // On a disk that is full it is what is left of it.
            _ => {}
        }
        Ok(reserve)
    }

    /// Makes it whole for the next batch. Whether it is: if not, all of it is there for what takes records away.
    pub(crate) fn settle(&self) -> bool {
        let is_whole = self.fill().is_ok();
        self.floor.store(if is_whole { self.full / 2 } else { 0 }, Ordering::Relaxed);
        is_whole
    }

    /// Lets all of it be used, for what has been answered.
    pub(crate) fn open_up(&self) {
        self.floor.store(0, Ordering::Relaxed);
    }

    fn fill(&self) -> io::Result<()> {
        let mut len = self.len();
        if *len < self.full {
            let filled = fallocate(&self.file, FallocateFlags::empty(), *len, self.full - *len);
            if let Err(error) = filled {
                // Part of it may be there.
                self.file.set_len(*len)?;
                return Err(error.into());
            }
            *len = self.full;
        }
        Ok(())
    }

    /// Gives up at least `wanted` bytes, if they are to be had. Whether it gave up any.
    fn give(&self, wanted: u64) -> io::Result<bool> {
        let mut len = self.len();
        let least = self.floor.load(Ordering::Relaxed);
        let left = len.saturating_sub(wanted.next_multiple_of(BLOCK)).max(least);
        if left >= *len {
            return Ok(false);
        }
        self.file.set_len(left)?;
        *len = left;
        Ok(true)
    }

    fn len(&self) -> MutexGuard<'_, u64> {
        self.len.lock()
    }
}

/// A file that has a reserve.
#[derive(Debug)]
pub(crate) struct Reserved {
    pub(crate) file: FileBackend,
    pub(crate) reserve: Option<Arc<Reserve>>,
}

type Locked<T> = Result<T, BackendError>;

impl StorageBackend for Reserved {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        // Others may be quicker to take what is given up, or the file system needs more than the bytes.
        let mut wanted = data.len() as u64;
        loop {
            let written = self.file.write(offset, data);
            let (Err(error), Some(reserve)) = (&written, &self.reserve) else { return written };
            if !matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
                || !reserve.give(wanted)?
            {
                return written;
            }
            wanted = wanted.saturating_mul(2);
        }
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<bool> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<bool> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<()> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<()> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<()> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<bool> {
        self.file.query_lock_range(start, end)
    }
}
