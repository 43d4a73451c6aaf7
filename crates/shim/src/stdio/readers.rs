//! Those who look at an output that is logged: pipes that get its bytes as well, from when somebody came until they leave.
//!
//! ```text
//! container ─▶ log
//!            ├▶ reader
//!            └▶ reader   takes as much as fits now; the rest is kept for it, and nothing more is read until it has that
//! ```
//!
//! All get everything. A reader that is slow holds up its container, as one reader alone does, and so the others.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// The pipes must not block.
#[derive(Default)]
pub(crate) struct Readers(Vec<Reader>);

struct Reader {
    pipe: OwnedFd,
    /// What it has not taken, a buffer of the loop at most.
    unsent: Vec<u8>,
}

impl Readers {
    pub(crate) fn add(&mut self, pipe: OwnedFd) {
        self.0.push(Reader { pipe, unsent: Vec::new() });
    }

    /// Those who are still there. Of who has left one hears otherwise with the next bytes, which may never come.
    pub(crate) fn count(&mut self) -> usize {
        self.0.retain(|reader| {
            let mut end = [PollFd::new(&reader.pipe, PollFlags::OUT)];
            let asked = poll(&mut end, Some(&Timespec::default()));
            asked.is_err() || !end[0].revents().contains(PollFlags::ERR)
        });
        self.0.len()
    }

    /// For all, when all have what came before. Who has left is forgotten.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.retain_mut(|reader| {
            assert!(reader.unsent.is_empty(), "nothing is read while somebody is behind");
            match rustix::io::write(&reader.pipe, bytes) {
                Ok(len) => reader.unsent.extend_from_slice(&bytes[len..]),
                Err(Errno::AGAIN | Errno::INTR) => reader.unsent.extend_from_slice(bytes),
                Err(_) => return false,
            }
            true
        });
    }

    /// Sends what some have not taken. True if all have everything now.
    pub(crate) fn catch_up(&mut self) -> bool {
        self.0.retain_mut(Reader::catch_up);
        self.behind().is_none()
    }

    /// One who has to take something first.
    pub(crate) fn behind(&self) -> Option<BorrowedFd<'_>> {
        let behind = self.0.iter().find(|reader| !reader.unsent.is_empty());
        behind.map(|reader| reader.pipe.as_fd())
    }
}

impl Reader {
    /// False if nobody reads it any more.
    fn catch_up(&mut self) -> bool {
        while !self.unsent.is_empty() {
            match rustix::io::write(&self.pipe, &self.unsent) {
                Ok(len) => {
                    self.unsent.drain(..len);
                    self.unsent.shrink_to(0);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        true
    }
}
