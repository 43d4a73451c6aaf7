//! Reads plain bytes of a layer with its record of spans, from as few bytes of the blob as possible.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use inflate::{Gzip, Stop, WINDOW_LEN};
use types::{Context, Result};

use super::index::{damaged, unreadable};
use super::{Piece, Spans};
use crate::{Compression, Decoder};

/// Compressed bytes inflated, and plain bytes copied, at a time.
const PIECE_LEN: usize = 128 * 1024;

impl Spans {
    /// Reads bytes of the layer's data file, by the offsets that its metadata image has: bytes of the archive, or of
    /// sparse files. `record` is the file of the record; `fetch` returns a byte range of the blob.
    ///
    /// `DataLoss` if fetched bytes are not those of the blob, or the record is damaged. Errors of `fetch` are returned.
    pub fn read_at(
        &self,
        record: &File,
        at: u64,
        buffer: &mut [u8],
        mut fetch: impl FnMut(Range<u64>) -> Result<Vec<u8>>,
    ) -> Result<()> {
        for part in self.parts(at, buffer.len() as u64) {
            let Part { place, archive, len } = part;
            let to = &mut buffer[place..place + len];
            let Some(mut plain) = archive else {
                to.fill(0);
                continue;
            };
            if plain.checked_add(len as u64).is_none_or(|end| end > self.plain_len) {
                return Err(damaged("bytes behind the archive's end were asked for"));
            }
            let mut done = 0;
            while done < len {
                let span = self.span_of(plain);
                let range = self.plain_range(span);
                let skip = plain - range.start;
                let wanted = usize::try_from(range.end - plain).unwrap_or(len).min(len - done);
                let mut cut = Cut { skip, to: &mut to[done..done + wanted], filled: 0 };
                self.unpack(record, span, &fetch(self.range(span))?, &mut cut)?;
                done += wanted;
                plain += wanted as u64;
            }
        }
        Ok(())
    }

    /// Unpacks a span from its bytes of the blob, those of [`Spans::range`], and writes its plain bytes. All bytes are
    /// verified against the span's hash before the first plain byte is written.
    ///
    /// `DataLoss` if they do not match, or the record is damaged.
    pub fn unpack(&self, record: &File, span: usize, bytes: &[u8], to: &mut impl Write) -> Result<()> {
        let (range, plain) = (self.range(span), self.plain_range(span));
        if bytes.len() as u64 != range.end - range.start || blake3::hash(bytes) != self.spans[span].hash {
            return Err(damaged(&format!("span {span} of {} is not what was fetched", self.blob)));
        }
        let wanted = plain.end - plain.start;
        let mut limited = Limited { to, left: wanted };
        let unpacked = match (self.compression, self.window(record, span)?) {
            (Compression::None, _) => limited.write_all(bytes),
            (Compression::Zstd, _) => decompress(bytes, &mut limited),
            (Compression::Gzip, None) => inflate(Gzip::default(), bytes, wanted, &mut limited),
            (Compression::Gzip, Some(window)) => {
                let bit_count = ((8 - self.spans[span].bit % 8) % 8) as u8;
                let (last, bytes) = bytes.split_at(usize::from(bit_count > 0).min(bytes.len()));
                let last = last.first().copied().unwrap_or_default();
                inflate(Gzip::within(&window, last, bit_count), bytes, wanted, &mut limited)
            }
        };
        unpacked.context(|| format!("unpack span {span} of {}", self.blob))?;
        if limited.left > 0 {
            return Err(damaged(&format!("span {span} of {} unpacks to less", self.blob)));
        }
        Ok(())
    }

    /// Verifies all windows of the record. `DataLoss` if one is damaged.
    pub fn check_windows(&self, record: &File) -> Result<()> {
        (0..self.count()).try_for_each(|span| self.window(record, span).map(drop))
    }

    fn window(&self, record: &File, span: usize) -> Result<Option<Vec<u8>>> {
        let len = self.spans[span].window_len as usize;
        if len == 0 {
            return Ok(None);
        }
        let mut packed = vec![0; len];
        record.read_exact_at(&mut packed, self.window_at(span)).map_err(unreadable)?;
        if blake3::hash(&packed) != self.spans[span].window_hash {
            return Err(damaged(&format!("the window of span {span} does not match its hash")));
        }
        zstd::bulk::decompress(&packed, WINDOW_LEN)
            .map(Some)
            .map_err(|_| damaged(&format!("the window of span {span} cannot be decompressed")))
    }

    /// Maps a range of the data file to ranges of the archive, and holes.
    fn parts(&self, at: u64, len: u64) -> Vec<Part> {
        let end = at.saturating_add(len);
        if at < crate::ARCHIVE_LEN_MAX {
            return vec![Part { place: 0, archive: Some(at), len: len as usize }];
        }
        let mut parts = Vec::new();
        let mut next = at;
        let first = self.pieces.partition_point(|piece| piece.data + piece.len <= at);
        for Piece { data, archive, len } in self.pieces[first..].iter().take_while(|piece| piece.data < end) {
            if next < *data {
                parts.push(Part { place: (next - at) as usize, archive: None, len: (data - next) as usize });
                next = *data;
            }
            let stop = end.min(data + len);
            let archive = archive + (next - data);
            parts.push(Part {
                place: (next - at) as usize,
                archive: Some(archive),
                len: (stop - next) as usize,
            });
            next = stop;
        }
        if next < end {
            parts.push(Part { place: (next - at) as usize, archive: None, len: (end - next) as usize });
        }
        parts
    }
}

/// A part of a requested range: bytes of the archive, or a hole.
struct Part {
    /// Offset in the request.
    place: usize,
    /// Offset in the archive; `None` for a hole.
    archive: Option<u64>,
    /// Bytes.
    len: usize,
}

/// Inflates a span. It ends at the block boundary behind `wanted` plain bytes, or with the stream; the bits behind this
/// boundary belong to the next span.
fn inflate(mut gzip: Gzip, bytes: &[u8], wanted: u64, to: &mut impl Write) -> io::Result<()> {
    let (mut at, mut left) = (0, wanted);
    loop {
        let end = bytes.len().min(at + PIECE_LEN);
        let block_at = usize::try_from(left).unwrap_or(usize::MAX);
        let (taken, stop) = gzip.run(&bytes[at..end], end == bytes.len(), Some(block_at))?;
        at += taken;
        let len = gzip.output().len();
        to.write_all(gzip.output())?;
        gzip.take(len);
        left = left.saturating_sub(len as u64);
        if let Stop::Block | Stop::End = stop {
            return Ok(());
        }
    }
}

/// Decompresses a span of whole zstd frames.
fn decompress(bytes: &[u8], to: &mut impl Write) -> io::Result<()> {
    let mut plain = Decoder::new(bytes)?;
    let mut buffer = vec![0; PIECE_LEN];
    loop {
        match plain.read(&mut buffer)? {
            0 => return Ok(()),
            len => to.write_all(&buffer[..len])?,
        }
    }
}

/// Passes on up to `left` bytes; a write beyond them makes no progress.
struct Limited<'a, W> {
    to: &'a mut W,
    left: u64,
}

impl<W: Write> Write for Limited<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        self.to.write_all(&bytes[..len])?;
        self.left -= len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps the part of the written bytes that fits into `to`, behind `skip` bytes.
struct Cut<'a> {
    skip: u64,
    to: &'a mut [u8],
    filled: usize,
}

impl Write for Cut<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        self.skip -= skipped as u64;
        let rest = &bytes[skipped..];
        let len = rest.len().min(self.to.len() - self.filled);
        self.to[self.filled..self.filled + len].copy_from_slice(&rest[..len]);
        self.filled += len;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
