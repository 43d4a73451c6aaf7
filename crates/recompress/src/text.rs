//! The plain bytes, read through a sliding window.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use crate::damaged;

/// Bytes read at a time: few at first, since many texts are short, and twice as many each time.
const FILL_LEN_MIN: usize = 16 * 1024;
const FILL_LEN_MAX: usize = 1 << 20;
/// Bytes that are kept behind the position: the largest distance of deflate, and one more.
pub(crate) const BEHIND_LEN: usize = 32 * 1024 + 1;
/// Bytes that are available ahead of the position, except at the end.
pub(crate) const AHEAD_LEN: usize = 1024;

/// A part of a file, read without moving the file's offset.
#[derive(Clone)]
pub struct Plain<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl<'a> Plain<'a> {
    /// The first `len` bytes of a file.
    pub fn new(file: &'a File, len: u64) -> Plain<'a> {
        Plain { file, at: 0, end: len }
    }

    /// Skips bytes, up to the end.
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
    /// The offset of these bytes in the text.
    begin: u64,
    at: u64,
    ended: bool,
    fill_len: usize,
}

impl<R: Read> Text<R> {
    pub(crate) fn new(source: R) -> Text<R> {
        Text { source, bytes: Vec::new(), begin: 0, at: 0, ended: false, fill_len: FILL_LEN_MIN }
    }

    /// Begins another text, in the same memory.
    pub(crate) fn restart(&mut self, source: R) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        *self = Text { bytes, ..Text::new(source) };
    }

    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Reads until `len` bytes are available ahead of the position, and [`AHEAD_LEN`] more.
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

    /// The available bytes from the position on.
    pub(crate) fn ahead(&self) -> &[u8] {
        self.from(self.at)
    }

    /// The available bytes from an offset on, which is at most [`BEHIND_LEN`] behind the position.
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
