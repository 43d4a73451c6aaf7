//! Files that are written front to back and have to be on disk in the end: the disk begins while more bytes come,
//! so that whoever waits for it at the end waits for the last of them only.

use std::os::fd::{AsFd, AsRawFd};

/// Bytes that are handed to the disk at a time: many requests for it, little to wait for at the end.
const STEP: u64 = 8 << 20;
/// What is begun ends at pages, so that none is written twice.
const PAGE_LEN: u64 = 4096;

/// How much of a file is on its way to the disk. What counts is still the sync at the end: this only makes it
/// short, and says nothing if it cannot.
#[derive(Debug, Default)]
pub struct Writeback {
    begun: u64,
}

impl Writeback {
    /// Begins to write what is new, if it is worth it. The file is whole up to `end`, in bytes.
    ///
    /// It waits only if the disk has more to do than it takes (sync_file_range(2)).
    pub fn advance(&mut self, file: impl AsFd, end: u64) {
        self.begun = self.begun.min(end);
        let new = (end - self.begun) / PAGE_LEN * PAGE_LEN;
        if new >= STEP {
            self.begin(file, new);
        }
    }

    /// Begins to write all of it that was not begun: no more comes, and it is some time before the disk is waited for.
    pub fn finish(&mut self, file: impl AsFd, end: u64) {
        self.begun = self.begun.min(end);
        // No bytes would mean all that there are.
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
