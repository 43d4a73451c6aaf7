//! The plain bytes, through a window that is moved along.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use crate::damaged;

/// Bytes that are read at a time: few at first, since many texts are short, and twice as many each time.
const FILL_LEN_MIN: usize = 16 * 1024;
const FILL_LEN_MAX: usize = 1 << 20;
/// Bytes behind the place that are kept: as far as deflate looks back, and one more.
pub(crate) const BEHIND_LEN: usize = 32 * 1024 + 1;
/// Bytes ahead of the place that are there, but at the end.
pub(crate) const AHEAD_LEN: usize = 1024;

/// A part of a file, which is read without moving the file's own place.
#[derive(Clone)]
pub struct Plain<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl<'a> Plain<'a> {
    /// The first `len` bytes.
    pub fn new(file: &'a File, len: u64) -> Plain<'a> {
        Plain { file, at: 0, end: len }
    }

    /// Passes over some bytes.
    pub(crate) fn skip(&mut self, len: u64) {
        self.at = self.at.saturating_add(len).min(self.end);
    }
}

impl Read for Plain<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..left], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

pub(crate) struct Text<R> {
    source: R,
    bytes: Vec<u8>,
    /// Where the bytes begin, in all of the text.
    begin: u64,
    at: u64,
    ended: bool,
    fill_len: usize,
}

impl<R: Read> Text<R> {
    pub(crate) fn new(source: R) -> Text<R> {
        Text { source, bytes: Vec::new(), begin: 0, at: 0, ended: false, fill_len: FILL_LEN_MIN }
    }

    /// Begins anew with another text, in the same memory.
    pub(crate) fn restart(&mut self, source: R) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        *self = Text { bytes, ..Text::new(source) };
    }

    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Sees to it that `len` bytes are there ahead of the place, and [`AHEAD_LEN`] behind them.
    pub(crate) fn fill(&mut self, len: usize) -> io::Result<()> {
        let wanted = len + AHEAD_LEN;
        if self.ended || self.ahead().len() >= wanted {
            return Ok(());
        }
        let behind = usize::try_from(self.at - self.begin).expect("within the buffer");
        let dropped = behind.saturating_sub(BEHIND_LEN);
        self.bytes.drain(..dropped);
        self.begin += dropped as u64;
        let had = self.bytes.len();
        self.bytes.resize(had + self.fill_len.max(wanted), 0);
        self.fill_len = FILL_LEN_MAX.min(self.fill_len * 2);
        let filled = had + stdx::fill(&mut self.source, &mut self.bytes[had..])?;
        self.ended = filled < self.bytes.len();
        self.bytes.truncate(filled);
        Ok(())
    }

    /// The bytes from the place on, as far as they are there.
    pub(crate) fn ahead(&self) -> &[u8] {
        self.from(self.at)
    }

    /// The bytes from some place on, which is not further behind than [`BEHIND_LEN`].
    pub(crate) fn from(&self, at: u64) -> &[u8] {
        let index = at.checked_sub(self.begin).and_then(|index| usize::try_from(index).ok());
        index.and_then(|index| self.bytes.get(index..)).unwrap_or_default()
    }

    pub(crate) fn advance(&mut self, len: usize) -> io::Result<()> {
        if len > self.ahead().len() {
            return Err(damaged("the text ends before what is made of it"));
        }
        self.at += len as u64;
        Ok(())
    }
}
