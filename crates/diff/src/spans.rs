//! Spans of a layer's blob: parts that are fetched, checked and inflated without those before them.
//!
//! ```text
//! Decoder ──bytes, places──▶ Recorder ──windows, then the index──▶ layer.spans
//!                                       layer.spans + bytes of the blob ──Spans──▶ any plain bytes
//! ```
//!
//! What is where in the plain bytes, the image of metadata says (crate `erofs`); this is what it lacks to make one
//! file of a layer from as little of its blob as possible. The format is in `docs/design/spans.md`.
//!
//! Invariants
//! - Spans lie behind each other without a gap, and all of them are the blob.
//! - No byte is inflated before the digest of all its span was found right.
//! - A record is whole or none: the index is written last and has its own digest.

mod index;
mod reader;

use std::fs::File;
use std::io::{self, BufWriter, Write};

use types::{Context, Digest, Result};

pub use index::Spans;

use crate::Compression;
use index::{Piece, Span};

/// Plain bytes of a span, if its blob can be inflated from its end. Further back spans are a part of what is before
/// them, so that there are never too many.
const SPAN_LEN: u64 = 4 << 20;
const PART: u64 = 4096;

/// Windows are of text, and small.
const LEVEL: i32 = 1;

/// Pieces of files with holes that one record has.
const PIECES_MAX: usize = 1 << 16;

/// Where a blob can be inflated from.
pub(crate) enum Place<'a> {
    /// Where a member, a frame or just a byte begins: nothing before it is needed.
    Beginning,
    Block {
        window: &'a [u8],
        /// Upper bits of the last byte that belong to the block.
        bit_count: u8,
    },
}

/// Whose record is kept, and where.
pub struct Record<'a> {
    /// The blob that is read.
    pub blob: &'a Digest,
    /// An empty file.
    pub to: &'a File,
}

/// Sees a blob as it is inflated, and writes down its spans.
pub(crate) struct Recorder {
    to: BufWriter<File>,
    spans: Vec<Span>,
    /// Of the bytes of the last span so far.
    hasher: blake3::Hasher,
    /// One for all windows: each of its own would cost more than they do.
    packer: zstd::bulk::Compressor<'static>,
    /// Bytes of the blob that were taken, and the last of them.
    taken: u64,
    last: u8,
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

    /// More bytes of the blob.
    pub(crate) fn took(&mut self, bytes: &[u8]) {
        let Some(last) = bytes.last() else { return };
        self.hasher.update(bytes);
        self.taken += bytes.len() as u64;
        self.last = *last;
    }

    /// How many plain bytes there are before the next place is wanted.
    pub(crate) fn wanted_at(&self) -> u64 {
        self.wanted_at
    }

    /// Begins a span behind all bytes that were taken, where there were so many plain ones.
    pub(crate) fn place(&mut self, plain: u64, place: Place<'_>) -> io::Result<()> {
        self.wanted_at = plain + SPAN_LEN.max(plain / PART);
        let (window, bit_count) = match place {
            Place::Beginning => (&[][..], 0),
            // A stream that brought nothing yet, in the middle of its blocks: some later place will do.
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

    /// Ends the record: of a blob that was read to its end and unpacked to so many bytes of this digest.
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

/// What a record is of.
pub(crate) struct About<'a> {
    pub(crate) compression: Compression,
    pub(crate) blob: &'a Digest,
    pub(crate) diff_id: &'a Digest,
    pub(crate) plain_len: u64,
    pub(crate) pieces: Vec<Piece>,
}

/// Pieces of files with holes, as many as one record may have.
#[derive(Default)]
pub(crate) struct Pieces {
    list: Vec<Piece>,
    are_too_many: bool,
}

impl Pieces {
    /// So many bytes of the archive from `archive` on stand in the data file at `data` again.
    pub(crate) fn add(&mut self, data: u64, archive: u64, len: u64) {
        if len == 0 {
            return;
        }
        self.are_too_many |= self.list.len() == PIECES_MAX;
        if !self.are_too_many {
            self.list.push(Piece { data, archive, len });
        }
    }

    /// None if there were more.
    pub(crate) fn into_list(self) -> Option<Vec<Piece>> {
        (!self.are_too_many).then_some(self.list)
    }
}
