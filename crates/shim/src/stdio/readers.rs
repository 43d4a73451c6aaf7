//! Clients that follow a logged output: pipes that get its bytes too, from their attach until they close.
//!
//! ```text
//! container ─▶ log
//!            ├▶ reader
//!            └▶ reader   takes what fits now; the rest is kept for it, and the output is not read on until it is taken
//! ```
//!
//! Every reader gets all bytes. A slow one blocks the container, as a single reader does, and so the other readers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// The pipes must be non-blocking.
#[derive(Default)]
pub(crate) struct Readers(Vec<Reader>);

struct Reader {
    pipe: OwnedFd,
    /// Bytes that the pipe did not take: one buffer of the loop at most.
    unsent: Vec<u8>,
}

impl Readers {
    pub(crate) fn add(&mut self, pipe: OwnedFd) {
        self.0.push(Reader { pipe, unsent: Vec::new() });
    }

    /// How many readers are connected. Otherwise a closed one would only be noticed at the next write, which may never
    /// come.
    pub(crate) fn count(&mut self) -> usize {
        self.0.retain(|reader| {
            let mut end = [PollFd::new(&reader.pipe, PollFlags::OUT)];
            let asked = poll(&mut end, Some(&Timespec::default()));
            asked.is_err() || !end[0].revents().contains(PollFlags::ERR)
        });
        self.0.len()
    }

    /// Sends bytes to all readers, which must have taken all earlier ones. Closed ones are removed.
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

    /// Sends the rest of earlier bytes. True if every reader has taken everything.
    pub(crate) fn catch_up(&mut self) -> bool {
        self.0.retain_mut(Reader::catch_up);
        self.behind().is_none()
    }

    /// A reader that has not taken everything.
    pub(crate) fn behind(&self) -> Option<BorrowedFd<'_>> {
        let behind = self.0.iter().find(|reader| !reader.unsent.is_empty());
        behind.map(|reader| reader.pipe.as_fd())
    }
}

impl Reader {
    /// False if the reader has closed its end.
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
