//! Disk space kept in reserve for a full disk.
//!
//! Freeing space means removing records, which itself takes space: the engine writes changed pages anew, never in
//! place. So a file beside the database preallocates some MiB, and gives them up block by block as they are needed:
//!
//! ```text
//! write of a page ──▶ no space ──▶ shrink the reserve by as much, write again ──▶ none left: the write fails
//! next batch      ──▶ refill the reserve ──▶ fails: writes that add records are refused, removals go on
//! ```
//!
//! Invariants
//! - A batch that began with a full reserve takes at most half of it. The other half is for replaying acknowledged
//!   writes, and for removals.
//! - The reserve holds no data: if it is missing or was truncated by a crash, only its space is lost.
//!
//! On file systems that cannot preallocate (`EOPNOTSUPP`, fallocate(2)) there is no reserve, and on those that copy
//! on write the space it gives up may not be enough.

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
/// Free bytes from which on a reserve is created.
const PLENTY: u64 = 4 * LEN;
/// The reserve shrinks by multiples of this, as file systems allocate whole blocks.
const BLOCK: u64 = 4 << 10;

#[derive(Debug)]
pub(crate) struct Reserve {
    file: File,
    /// Target length in bytes; 0 if there is no reserve.
    full: u64,
    /// Current length in bytes.
    len: Mutex<u64>,
    /// Length in bytes below which it must not shrink until the next batch.
    floor: AtomicU64,
}

impl Reserve {
    /// Opens the reserve at `path`, or creates it if there is plenty of space.
    pub(crate) fn open(path: &Path) -> io::Result<Reserve> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let len = file.metadata()?.len();
        let disk = fstatvfs(&file)?;
        let is_plenty = disk.f_bavail.saturating_mul(disk.f_frsize) >= PLENTY;
        let full = if len > 0 || is_plenty { LEN } else { 0 };
        let mut reserve = Reserve { file, full, len: Mutex::new(len), floor: AtomicU64::new(0) };
        match reserve.fill() {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => reserve.full = 0,
            // On a full disk the reserve stays as long as it is.
            _ => {}
        }
        Ok(reserve)
    }

    /// Refills the reserve for the next batch. Returns whether it is full; if not, removals may use all that is left
    /// of it.
    pub(crate) fn settle(&self) -> bool {
        let is_whole = self.fill().is_ok();
        self.floor.store(if is_whole { self.full / 2 } else { 0 }, Ordering::Relaxed);
        is_whole
    }

    /// Lets all of it be used, for replaying acknowledged writes.
    pub(crate) fn open_up(&self) {
        self.floor.store(0, Ordering::Relaxed);
    }

    fn fill(&self) -> io::Result<()> {
        let mut len = self.len();
        if *len < self.full {
            let filled = fallocate(&self.file, FallocateFlags::empty(), *len, self.full - *len);
            if let Err(error) = filled {
                // A failed fallocate(2) may have allocated a part.
                self.file.set_len(*len)?;
                return Err(error.into());
            }
            *len = self.full;
        }
        Ok(())
    }

    /// Gives up at least `wanted` bytes, if it still has them. Returns whether it gave up any.
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

/// A database file with a reserve.
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
        // Other processes may take the freed blocks first, or the file system may need more than the bytes alone.
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
