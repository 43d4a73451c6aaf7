//! The index of a record of spans, its encoding and its validation.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::io::Errno;
use types::{Context, Digest, Error, Result};

use super::PIECES_MAX;
use crate::Compression;
use crate::store::HOLES_AT;

const MAGIC: &[u8; 8] = b"hoistsp\x02";
/// Bytes of the trailer: the index's length and digest, and the magic number.
const TRAILER_LEN: usize = 8 + DIGEST_LEN + MAGIC.len();
const DIGEST_LEN: usize = 32;
const HASH_LEN: usize = blake3::OUT_LEN;
const SPAN_LEN: usize = 8 + 8 + 4 + 2 * HASH_LEN;
const PIECE_LEN: usize = 3 * 8;

/// Most spans: more than a layer of the greatest length has.
const SPANS_MAX: usize = 1 << 16;
/// Most bytes of an index: its spans and pieces, and the fields before them.
const INDEX_LEN_MAX: usize = SPANS_MAX * SPAN_LEN + PIECES_MAX * PIECE_LEN + 1024;
/// Most bytes of a compressed window: more than zstd makes of 32 KiB.
const WINDOW_LEN_MAX: u32 = 33 * 1024;
/// Most plain bytes of a layer.
const PLAIN_LEN_MAX: u64 = HOLES_AT;

/// The index of a record: the spans of one blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spans {
    pub(crate) compression: Compression,
    pub(crate) blob: Digest,
    pub(crate) diff_id: Digest,
    pub(crate) blob_len: u64,
    pub(crate) plain_len: u64,
    pub(crate) spans: Vec<Span>,
    pub(crate) pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Its first bit in the blob.
    pub(crate) bit: u64,
    /// Its first byte in the archive.
    pub(crate) plain: u64,
    /// Bytes of its compressed window; 0 if it needs none.
    pub(crate) window_len: u32,
    /// Hash of the compressed window.
    pub(crate) window_hash: blake3::Hash,
    /// Hash of the blob's bytes that have at least one bit of the span.
    pub(crate) hash: blake3::Hash,
}

impl Span {
    pub(super) fn first() -> Span {
        let nothing = blake3::hash(&[]);
        Span { bit: 0, plain: 0, window_len: 0, window_hash: nothing, hash: nothing }
    }
}

/// A data region of a sparse file, which the data file has twice: in the archive, and in the copy with its holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Offset of the copy in the data file.
    pub(crate) data: u64,
    /// Offset in the archive.
    pub(crate) archive: u64,
    /// Bytes.
    pub(crate) len: u64,
}

impl Spans {
    /// Reads and verifies the index of a record. `DataLoss` if it is damaged.
    pub fn read(record: &File) -> Result<Spans> {
        let len = record.metadata().context(|| "look at the record of spans")?.len();
        let begin = len.checked_sub(TRAILER_LEN as u64).ok_or_else(|| damaged("it is too short"))?;
        let mut trailer = [0; TRAILER_LEN];
        record.read_exact_at(&mut trailer, begin).map_err(unreadable)?;
        let index_len = Spans::index_len(&trailer)?;
        let begin = begin.checked_sub(index_len as u64).ok_or_else(|| damaged("it is cut off"))?;
        let mut bytes = vec![0; index_len + TRAILER_LEN];
        record.read_exact_at(&mut bytes, begin).map_err(unreadable)?;
        Spans::from_bytes(&bytes, begin)
    }

    fn index_len(trailer: &[u8]) -> Result<usize> {
        let Some(rest) = trailer.strip_suffix(MAGIC) else {
            return Err(damaged("it is none of version 2"));
        };
        let len = u64::from_le_bytes(rest[..8].try_into().expect("eight bytes"));
        usize::try_from(len)
            .ok()
            .filter(|len| *len <= INDEX_LEN_MAX)
            .ok_or_else(|| damaged("its index is longer than one can be"))
    }

    /// Parses an index with its trailer, before which the record has `windows_len` bytes of windows. The bytes may be
    /// untrusted. `DataLoss` if they are no valid index.
    pub fn from_bytes(bytes: &[u8], windows_len: u64) -> Result<Spans> {
        let at = bytes.len().checked_sub(TRAILER_LEN).ok_or_else(|| damaged("it is too short"))?;
        let (index, trailer) = bytes.split_at(at);
        if Spans::index_len(trailer)? != index.len() {
            return Err(damaged("its index is of another length"));
        }
        if raw(&Digest::of(index)) != trailer[8..8 + DIGEST_LEN] {
            return Err(damaged("its index has another digest"));
        }
        let spans = Spans::parse(&mut Fields(index))?;
        spans.check(windows_len)?;
        Ok(spans)
    }

    fn parse(fields: &mut Fields<'_>) -> Result<Spans> {
        let compression = match fields.take::<1>()? {
            [0] => Compression::None,
            [1] => Compression::Gzip,
            [2] => Compression::Zstd,
            _ => return Err(damaged("its compression is of no kind")),
        };
        let [blob_len] = fields.take()?;
        let blob = std::str::from_utf8(fields.slice(usize::from(blob_len))?).unwrap_or_default();
        let blob = blob.parse().map_err(|_| damaged("its blob has no name"))?;
        let mut index = Spans {
            compression,
            blob,
            diff_id: fields.digest()?,
            blob_len: fields.number()?,
            plain_len: fields.number()?,
            spans: Vec::new(),
            pieces: Vec::new(),
        };
        // Counts are checked against the bytes that are left before memory is allocated for them.
        let count = u32::from_le_bytes(fields.take()?) as usize;
        if count > SPANS_MAX || count > fields.0.len() / SPAN_LEN {
            return Err(damaged("more spans than there can be"));
        }
        for _ in 0..count {
            index.spans.push(Span {
                bit: fields.number()?,
                plain: fields.number()?,
                window_len: u32::from_le_bytes(fields.take()?),
                window_hash: fields.hash()?,
                hash: fields.hash()?,
            });
        }
        let count = u32::from_le_bytes(fields.take()?) as usize;
        if count > PIECES_MAX || count * PIECE_LEN != fields.0.len() {
            return Err(damaged("pieces that are not there"));
        }
        for _ in 0..count {
            let (data, archive, len) = (fields.number()?, fields.number()?, fields.number()?);
            index.pieces.push(Piece { data, archive, len });
        }
        Ok(index)
    }

    /// Checks that spans are ordered and within the blob, and pieces ordered and within the archive.
    fn check(&self, windows_len: u64) -> Result<()> {
        let is_gzip = self.compression == Compression::Gzip;
        let first = self.spans.first().ok_or_else(|| damaged("no spans"))?;
        let bits = self.blob_len.checked_mul(8).ok_or_else(|| damaged("a blob without an end"))?;
        let is_ordered =
            self.spans.windows(2).all(|pair| pair[0].bit < pair[1].bit && pair[0].plain < pair[1].plain);
        let last = self.spans.last().expect("there is a first");
        let is_within = last.bit <= bits && last.plain <= self.plain_len && self.plain_len <= PLAIN_LEN_MAX;
        let can_begin = |span: &Span| match span.window_len {
            0 => span.bit.is_multiple_of(8),
            len => is_gzip && len <= WINDOW_LEN_MAX,
        };
        if (first.bit, first.plain, first.window_len) != (0, 0, 0)
            || !is_ordered
            || !is_within
            || !self.spans.iter().all(can_begin)
        {
            return Err(damaged("spans that lie where none can be"));
        }
        if self.spans.iter().map(|span| u64::from(span.window_len)).sum::<u64>() != windows_len {
            return Err(damaged("its windows are not all there"));
        }
        let mut data_end = HOLES_AT;
        for piece in &self.pieces {
            let end = |at: u64| at.checked_add(piece.len).filter(|_| piece.len > 0);
            let is_in_archive = end(piece.archive).is_some_and(|end| end <= self.plain_len);
            match end(piece.data) {
                Some(end) if is_in_archive && piece.data >= data_end => data_end = end,
                _ => return Err(damaged("pieces that lie where none can be")),
            }
        }
        Ok(())
    }

    /// The bytes of the index and its trailer, which follow the windows in a record.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![match self.compression {
            Compression::None => 0,
            Compression::Gzip => 1,
            Compression::Zstd => 2,
        }];
        let blob = self.blob.to_string();
        bytes.push(u8::try_from(blob.len()).expect("an algorithm and its hash"));
        bytes.extend_from_slice(blob.as_bytes());
        bytes.extend(raw(&self.diff_id));
        bytes.extend(self.blob_len.to_le_bytes());
        bytes.extend(self.plain_len.to_le_bytes());
        bytes.extend(u32::try_from(self.spans.len()).expect("some thousands").to_le_bytes());
        for span in &self.spans {
            bytes.extend(span.bit.to_le_bytes());
            bytes.extend(span.plain.to_le_bytes());
            bytes.extend(span.window_len.to_le_bytes());
            bytes.extend(span.window_hash.as_bytes());
            bytes.extend(span.hash.as_bytes());
        }
        bytes.extend(u32::try_from(self.pieces.len()).expect("some thousands").to_le_bytes());
        for piece in &self.pieces {
            for number in [piece.data, piece.archive, piece.len] {
                bytes.extend(number.to_le_bytes());
            }
        }
        let digest = raw(&Digest::of(&bytes));
        let len = bytes.len() as u64;
        bytes.extend(len.to_le_bytes());
        bytes.extend(digest);
        bytes.extend_from_slice(MAGIC);
        bytes
    }

    /// The digest of the blob.
    pub fn blob(&self) -> &Digest {
        &self.blob
    }

    /// The digest of the blob's plain bytes.
    pub fn diff_id(&self) -> &Digest {
        &self.diff_id
    }

    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// The number of the blob's plain bytes.
    pub fn plain_len(&self) -> u64 {
        self.plain_len
    }

    /// The number of spans: at least one.
    pub fn count(&self) -> usize {
        self.spans.len()
    }

    /// The byte range of a span in the blob. Two adjacent spans may share a byte.
    pub fn range(&self, span: usize) -> Range<u64> {
        let end = self.spans.get(span + 1).map_or(self.blob_len, |next| next.bit.div_ceil(8));
        self.spans[span].bit / 8..end
    }

    /// The range of the plain bytes that a span unpacks to.
    pub fn plain_range(&self, span: usize) -> Range<u64> {
        let end = self.spans.get(span + 1).map_or(self.plain_len, |next| next.plain);
        self.spans[span].plain..end
    }

    /// The span that has a plain byte.
    pub fn span_of(&self, plain: u64) -> usize {
        self.spans.partition_point(|span| span.plain <= plain) - 1
    }

    /// The offset of a span's window in the record.
    pub(super) fn window_at(&self, span: usize) -> u64 {
        self.spans[..span].iter().map(|span| u64::from(span.window_len)).sum()
    }
}

/// The error of a failed read: `DataLoss` if the disk cannot read the record (EIO), else that of the failure.
pub(super) fn unreadable(error: io::Error) -> Error {
    match error.raw_os_error() == Some(Errno::IO.raw_os_error()) {
        true => damaged(&format!("it cannot be read: {error}")),
        false => Error::new(error.kind().into(), "read the record of spans").with_source(error),
    }
}

pub(super) fn damaged(why: &str) -> Error {
    Error::data_loss(format!("the record of a layer's spans: {why}"))
}

/// The 32 bytes of a sha256 digest.
fn raw(digest: &Digest) -> [u8; DIGEST_LEN] {
    let mut bytes = [0; DIGEST_LEN];
    let hex = digest.hex().as_bytes();
    let value = |digit: u8| if digit.is_ascii_digit() { digit - b'0' } else { digit - b'a' + 10 };
    for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = value(pair[0]) << 4 | value(pair[1]);
    }
    bytes
}

/// The bytes of an index that are still to be parsed.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn slice(&mut self, len: usize) -> Result<&'a [u8]> {
        let (slice, rest) = self.0.split_at_checked(len).ok_or_else(|| damaged("its index is cut off"))?;
        self.0 = rest;
        Ok(slice)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.slice(N)?.try_into().expect("so many bytes"))
    }

    fn number(&mut self) -> Result<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn hash(&mut self) -> Result<blake3::Hash> {
        self.take::<HASH_LEN>().map(blake3::Hash::from_bytes)
    }

    fn digest(&mut self) -> Result<Digest> {
        self.take::<DIGEST_LEN>().map(|hash| Digest::from_sha256(&hash))
    }
}
