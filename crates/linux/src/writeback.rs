//! Early writeback of files that are written sequentially and synced in the end: the disk starts while more bytes come,
//! so that the final sync waits for the last of them only.

use std::os::fd::{AsFd, AsRawFd};

/// Bytes that are submitted at a time: many requests for the disk, and little to wait for at the end.
const STEP: u64 = 8 << 20;
/// Submitted ranges end at page boundaries, so that no page is written twice.
const PAGE_LEN: u64 = 4096;

/// How much of a file was submitted. Only the final sync makes it durable; this makes that short, and ignores errors.
#[derive(Debug, Default)]
pub struct Writeback {
    begun: u64,
}

impl Writeback {
    /// Submits new bytes, if there are enough. The file is complete up to `end`, in bytes.
    ///
    /// Blocks only if the disk's queue is full (sync_file_range(2)).
    pub fn advance(&mut self, file: impl AsFd, end: u64) {
        self.begun = self.begun.min(end);
        let new = (end - self.begun) / PAGE_LEN * PAGE_LEN;
        if new >= STEP {
            self.begin(file, new);
        }
    }

    /// Submits the rest of the file, some time before the final sync.
    pub fn finish(&mut self, file: impl AsFd, end: u64) {
        self.begun = self.begun.min(end);
        // A length of 0 would mean everything.
        if self.begun < end {
            self.begin(file, end - self.begun);
        }
    }

    fn begin(&mut self, file: impl AsFd, new: u64) {
        let offset = |bytes: u64| libc::off64_t::try_from(bytes).unwrap_or(libc::off64_t::MAX);
        let (at, len) = (offset(self.begun), offset(new));
        #[expect(unsafe_code, reason = "rustix has no such call")]
        // SAFETY: takes numbers only; the descriptor is open as long as `file` is borrowed.
        unsafe {
            libc::sync_file_range(file.as_fd().as_raw_fd(), at, len, libc::SYNC_FILE_RANGE_WRITE);
        }
        self.begun += new;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    #[test]
    fn writeback_starts_in_whole_pages() {
        let mut file: File = tempfile::tempfile().unwrap();
        let mut writeback = Writeback::default();
        let mut advance = |end: u64| {
            file.set_len(end).unwrap();
            file.write_all(b"x").unwrap();
            writeback.advance(&file, end);
            writeback.begun
        };
        assert_eq!(advance(STEP - 1), 0);
        assert_eq!(advance(STEP + 100), STEP);
        assert_eq!(advance(2 * STEP), STEP * 2);
        assert_eq!(advance(10), 10, "a file that was emptied begins anew");
        assert_eq!(advance(STEP + 10 + PAGE_LEN), STEP + 10 + PAGE_LEN);
        for end in [STEP + 11 + PAGE_LEN, STEP + 11 + PAGE_LEN, 20] {
            file.set_len(end).unwrap();
            writeback.finish(&file, end);
            assert_eq!(writeback.begun, end, "all of it");
        }
    }
}
