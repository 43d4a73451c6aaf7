//! Recipes, with which the exact bytes of a compressed layer are rebuilt from its plain bytes.
//!
//! ```text
//! blob + plain bytes ──make──▶ recipe        recipe + plain bytes ──rebuild──▶ the blob, byte for byte
//!
//! recipe   "hoistrcp" 1, then pieces in the order of the blob:
//!          1 COUNT BYTES      literal bytes: headers, checksums, and bytes behind the end
//!          2 COUNT            plain bytes, uncompressed
//!          3 …                a deflate stream (RFC 1951): its differences from the predicted one
//!          4 LEVEL FLAGS …    a zstd frame that libzstd wrote
//!          0                  the end
//! ```
//!
//! A deflate stream of any compressor can be rebuilt: the recipe has its differences (`deflate`, `coder`) from the
//! tokens that a usual compressor would write for the same text (`predictor`). For a compressor like zlib's these are
//! some thousandths of the stream, for others some hundredths. A zstd frame can be rebuilt only if libzstd reproduces
//! it; the caller keeps other blobs as they are.
//!
//! Invariants
//! - The crate guarantees nothing: before the caller deletes a blob, it must rebuild it and compare the digest.
//! - Memory is bounded for any blob.
//! - The format is stable, since blobs were deleted for it: tables are only appended to, and the behaviour of the
//!   predictor is part of the format.
#![forbid(unsafe_code)]

mod bits;
mod coder;
mod deflate;
mod huffman;
mod predictor;
mod text;
mod zstd_frame;

pub use text::Plain;

use std::io::{self, BufRead, BufReader, Read, Write};

use deflate::{Dissector, Parser, compose};
use predictor::{HABITS, Predictor};

const MAGIC: &[u8; 9] = b"hoistrcp\x01";
const END: u8 = 0;
const BYTES: u8 = 1;
const PLAIN: u8 = 2;
const DEFLATE: u8 = 3;
const ZSTD: u8 = 4;

/// Most literal bytes of one piece: a header, or bytes behind the end.
const BYTES_LEN_MAX: u64 = 1 << 20;
const COPY_LEN: usize = 64 * 1024;
/// The magic number of a gzip header, and its flags (RFC 1952 section 2.3).
const GZIP: [u8; 3] = [0x1f, 0x8b, 8];
const GZIP_CHECKSUM: u8 = 2;
const GZIP_EXTRA: u8 = 4;
const GZIP_NAME: u8 = 8;
const GZIP_COMMENT: u8 = 16;
const GZIP_TRAILER_LEN: u64 = 8;

pub(crate) fn damaged(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

/// Writes the recipe of a blob that unpacks to the beginning of `plain`. Returns false if the blob cannot be rebuilt,
/// or if its recipe would have more than `len_max` bytes.
///
/// Only errors of reading and writing are returned.
pub fn make(blob: impl Read, plain: &Plain<'_>, to: &mut impl Write, len_max: u64) -> io::Result<bool> {
    let mut to = Limited { to, left: len_max };
    match write(BufReader::with_capacity(COPY_LEN, blob), plain, &mut to) {
        Ok(()) => Ok(true),
        Err(error) if is_refusal(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether an error means that the blob has no recipe.
fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, InvalidData, UnexpectedEof};
    matches!(error.kind(), InvalidData | UnexpectedEof | FileTooLarge)
}

fn write(mut blob: impl BufRead, plain: &Plain<'_>, to: &mut impl Write) -> io::Result<()> {
    to.write_all(MAGIC)?;
    let begin = blob.fill_buf()?;
    if begin.starts_with(&GZIP) {
        gzip(blob, plain, to)?;
    } else if begin.starts_with(&zstd_frame::MAGIC) {
        let frame = zstd_frame::find(blob, plain)?;
        to.write_all(&[ZSTD])?;
        frame.write(to)?;
    } else {
        // Not compressed. Whether the blob equals the plain bytes is verified by the caller's rebuild.
        let len = io::copy(&mut blob, &mut io::sink())?;
        to.write_all(&[PLAIN])?;
        number(to, len)?;
    }
    to.write_all(&[END])
}

/// Writes the pieces of a gzip file: its members, and the bytes behind them.
fn gzip(blob: impl BufRead, plain: &Plain<'_>, to: &mut impl Write) -> io::Result<()> {
    let mut parser = Parser::new(blob);
    let mut plain = plain.clone();
    let mut dissector = Dissector::new(plain.clone());
    let mut bytes = Vec::new();
    let mut wanted = header(&mut parser, &mut bytes)?;
    loop {
        if !wanted {
            return put_bytes(to, &bytes);
        }
        put_bytes(to, &bytes)?;
        bytes.clear();
        to.write_all(&[DEFLATE])?;
        plain.skip(dissector.dissect(&mut parser, &plain, to)?);
        for _ in 0..GZIP_TRAILER_LEN {
            bytes.extend(parser.byte()?);
        }
        // The trailer and the bytes behind it, up to the next stream, are one piece.
        wanted = header(&mut parser, &mut bytes)?;
    }
}

/// Reads a member's header, and returns whether there is one. If not, all remaining bytes are read.
fn header<R: Read>(parser: &mut Parser<R>, bytes: &mut Vec<u8>) -> io::Result<bool> {
    let at = bytes.len();
    let is_whole = take(parser, bytes, 10)?;
    if !is_whole || !bytes[at..].starts_with(&GZIP) {
        while let Some(byte) = parser.byte()? {
            bytes.push(byte);
            if bytes.len() as u64 > BYTES_LEN_MAX {
                return Err(damaged("much more behind the end than belongs there"));
            }
        }
        return Ok(false);
    }
    let flags = bytes[at + 3];
    if flags & GZIP_EXTRA != 0 {
        take_all(parser, bytes, 2)?;
        let len = u16::from_le_bytes([bytes[bytes.len() - 2], bytes[bytes.len() - 1]]);
        take_all(parser, bytes, usize::from(len))?;
    }
    for text in [GZIP_NAME, GZIP_COMMENT] {
        if flags & text != 0 {
            take_all(parser, bytes, 1)?;
            while bytes.last() != Some(&0) {
                take_all(parser, bytes, 1)?;
                if bytes.len() as u64 > BYTES_LEN_MAX {
                    return Err(damaged("a name that does not end"));
                }
            }
        }
    }
    if flags & GZIP_CHECKSUM != 0 {
        take_all(parser, bytes, 2)?;
    }
    Ok(true)
}

/// Reads bytes, and returns whether there were as many.
fn take<R: Read>(parser: &mut Parser<R>, bytes: &mut Vec<u8>, count: usize) -> io::Result<bool> {
    for _ in 0..count {
        match parser.byte()? {
            Some(byte) => bytes.push(byte),
            None => return Ok(false),
        }
    }
    Ok(true)
}

fn take_all<R: Read>(parser: &mut Parser<R>, bytes: &mut Vec<u8>, count: usize) -> io::Result<()> {
    if take(parser, bytes, count)? { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn put_bytes(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(&[BYTES])?;
    number(to, bytes.len() as u64)?;
    to.write_all(bytes)
}

/// Rebuilds a blob. `InvalidData` or `UnexpectedEof` if the recipe is damaged or does not fit `plain`. That is not
/// always detected: the caller must compare the digest of the result.
pub fn rebuild(recipe: impl Read, plain: &Plain<'_>, to: &mut impl Write) -> io::Result<()> {
    let mut recipe = BufReader::with_capacity(COPY_LEN, recipe);
    let mut plain = plain.clone();
    let mut predictor = Predictor::new(plain.clone(), HABITS[0]);
    let mut magic = [0; MAGIC.len()];
    recipe.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(damaged("this is no recipe of version 1"));
    }
    loop {
        match byte(&mut recipe)? {
            END => return Ok(()),
            BYTES => {
                let len = read_number(&mut recipe)?;
                copy(&mut recipe, len, to)?;
            }
            PLAIN => {
                let len = read_number(&mut recipe)?;
                copy(&mut plain, len, to)?;
            }
            DEFLATE => plain.skip(compose(&mut recipe, &plain, &mut predictor, to)?),
            ZSTD => zstd_frame::Frame::read(&mut recipe)?.rebuild(&mut plain, to)?,
            _ => return Err(damaged("a piece of an unknown kind")),
        }
    }
}

fn copy(from: &mut impl Read, len: u64, to: &mut impl Write) -> io::Result<()> {
    let copied = io::copy(&mut from.take(len), to)?;
    if copied < len { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

/// Writes a number in LEB128, as in the daemon's records.
fn number(to: &mut impl Write, mut value: u64) -> io::Result<()> {
    loop {
        let low = u8::try_from(value & 0x7f).expect("seven bits");
        value >>= 7;
        if value == 0 {
            return to.write_all(&[low]);
        }
        to.write_all(&[low | 0x80])?;
    }
}

fn read_number(from: &mut impl Read) -> io::Result<u64> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let next = byte(from)?;
        value |= u64::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(damaged("a number that is too large"))
}

fn byte(from: &mut impl Read) -> io::Result<u8> {
    let mut byte = [0];
    from.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// Fails with `FileTooLarge` beyond `left` bytes.
struct Limited<'a, W> {
    to: &'a mut W,
    left: u64,
}

impl<W: Write> Write for Limited<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let written = self.to.write(bytes)?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
