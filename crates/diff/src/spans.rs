//! Spans of a layer's blob: parts that can be fetched, verified and inflated without the parts before them.
//!
//! ```text
//! Decoder ──bytes, places──▶ Recorder ──windows, then the index──▶ layer.spans
//!                                       layer.spans + bytes of the blob ──Spans──▶ any plain bytes
//! ```
//!
//! The metadata image (crate `erofs`) maps a file to its plain bytes; the spans map plain bytes to the blob. With both,
//! a lazy pull fetches one file from as little of the blob as possible. The format is in `docs/design/spans.md`.
//!
//! Invariants
//! - Spans are contiguous, and together they are the whole blob.
//! - A span is inflated only after the hash of all its bytes was verified.
//! - A record is complete or unusable: the index is written last and has its own digest.

mod index;
mod reader;

use std::fs::File;
use std::io::{self, BufWriter, Write};

use types::{Context, Digest, Result};

pub use index::Spans;

use crate::Compression;
use index::{Piece, Span};

/// Least plain bytes of a span. A span that begins at plain byte `n` has at least `n / SPAN_DIVISOR` of them, so that
/// the number of spans of a large layer stays bounded.
const SPAN_LEN: u64 = 4 << 20;
const SPAN_DIVISOR: u64 = 4096;

/// The zstd level of windows, which are at most 32 KiB each.
const LEVEL: i32 = 1;

/// Most pieces of sparse files in one record.
const PIECES_MAX: usize = 1 << 16;

/// A position from which a blob can be inflated.
pub(crate) enum Place<'a> {
    /// The beginning of a gzip member or a zstd frame, or any byte of an uncompressed blob: inflating needs no history.
    Beginning,
    /// The beginning of a deflate block.
    Block {
        /// The plain bytes before the block.
        window: &'a [u8],
        /// Number of upper bits of the last byte that belong to the block.
        bit_count: u8,
    },
}

/// The blob to record, and the file that gets its record.
pub struct Record<'a> {
    /// The digest of the blob that is read.
    pub blob: &'a Digest,
    /// An empty file, open for writing.
    pub to: &'a File,
}

/// Observes a blob while it is inflated, and writes the record of its spans.
pub(crate) struct Recorder {
    to: BufWriter<File>,
    spans: Vec<Span>,
    /// Hashes the bytes of the last span so far.
    hasher: blake3::Hasher,
    /// Shared by all windows: setting up a compressor costs more than compressing a window.
    packer: zstd::bulk::Compressor<'static>,
    /// Bytes of the blob consumed so far.
    taken: u64,
    /// The last of them.
    last: u8,
    /// See [`Recorder::wanted_at`].
    wanted_at: u64,
}

impl Recorder {
    pub(crate) fn new(to: &File) -> io::Result<Recorder> {
        Ok(Recorder {
            to: BufWriter::new(to.try_clone()?),
            spans: vec![Span::first()],
            hasher: blake3::Hasher::new(),
            packer: zstd::bulk::Compressor::new(LEVEL)?,
            taken: 0,
            last: 0,
            wanted_at: SPAN_LEN,
        })
    }

    /// Adds bytes of the blob that the decoder consumed.
    pub(crate) fn took(&mut self, bytes: &[u8]) {
        let Some(last) = bytes.last() else { return };
        self.hasher.update(bytes);
        self.taken += bytes.len() as u64;
        self.last = *last;
    }

    /// The plain offset from which on the next place is wanted.
    pub(crate) fn wanted_at(&self) -> u64 {
        self.wanted_at
    }

    /// Begins a span behind all consumed bytes of the blob, which `plain` plain bytes came from.
    pub(crate) fn place(&mut self, plain: u64, place: Place<'_>) -> io::Result<()> {
        self.wanted_at = plain + SPAN_LEN.max(plain / SPAN_DIVISOR);
        let (window, bit_count) = match place {
            Place::Beginning => (&[][..], 0),
            // A block of a stream that produced no bytes yet has no window to record: a later place will do.
            Place::Block { window: [], .. } => return Ok(()),
            Place::Block { window, bit_count } => (window, bit_count),
        };
        self.end_span();
        if bit_count > 0 {
            self.hasher.update(&[self.last]);
        }
        let packed = if window.is_empty() { Vec::new() } else { self.packer.compress(window)? };
        self.to.write_all(&packed)?;
        self.spans.push(Span {
            bit: self.taken * 8 - u64::from(bit_count),
            plain,
            window_len: u32::try_from(packed.len()).expect("little more than a window"),
            window_hash: blake3::hash(&packed),
            hash: blake3::hash(&[]),
        });
        Ok(())
    }

    fn end_span(&mut self) {
        self.spans.last_mut().expect("there always is one").hash = self.hasher.finalize();
        self.hasher.reset();
    }

    /// Writes the index. The blob must have been read to its end.
    pub(crate) fn finish(mut self, about: About<'_>) -> Result<()> {
        self.end_span();
        let index = Spans {
            compression: about.compression,
            blob: about.blob.clone(),
            diff_id: about.diff_id.clone(),
            blob_len: self.taken,
            plain_len: about.plain_len,
            spans: self.spans,
            pieces: about.pieces,
        };
        let what = || "write the record of spans";
        self.to.write_all(&index.to_bytes()).context(what)?;
        self.to.flush().context(what)
    }
}

/// The layer that a record describes.
pub(crate) struct About<'a> {
    pub(crate) compression: Compression,
    pub(crate) blob: &'a Digest,
    pub(crate) diff_id: &'a Digest,
    pub(crate) plain_len: u64,
    pub(crate) pieces: Vec<Piece>,
}

/// The pieces of sparse files, up to [`PIECES_MAX`].
#[derive(Default)]
pub(crate) struct Pieces {
    list: Vec<Piece>,
    are_too_many: bool,
}

impl Pieces {
    /// Adds a piece: `len` bytes at `archive` in the archive, which the data file has a second time at `data`.
    pub(crate) fn add(&mut self, data: u64, archive: u64, len: u64) {
        if len == 0 {
            return;
        }
        self.are_too_many |= self.list.len() == PIECES_MAX;
        if !self.are_too_many {
            self.list.push(Piece { data, archive, len });
        }
    }

    /// `None` if there were more than [`PIECES_MAX`].
    pub(crate) fn into_list(self) -> Option<Vec<Piece>> {
        (!self.are_too_many).then_some(self.list)
    }
}
