//! A zstd frame (RFC 8878 section 3.1.1) that libzstd wrote, kept as the level at which it writes the same frame again.

use std::io::{self, BufRead, Read, Write};

use zstd::stream::write::Encoder;

use crate::text::Plain;
use crate::{byte, copy, damaged, number, read_number};

pub(crate) const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Bytes, plain and compressed, that are compared to find the level.
const SAMPLE_LEN: u64 = 1 << 20;
/// The levels in the order in which they are tried: the defaults of tools come first.
const LEVELS: [u8; 19] = [3, 1, 2, 19, 9, 6, 10, 4, 5, 7, 8, 11, 12, 13, 14, 15, 16, 17, 18];

/// Bits of the frame header's descriptor.
const SINGLE_SEGMENT: u8 = 1 << 5;
const CHECKSUM: u8 = 1 << 2;
const DICTIONARY: u8 = 3;
const SIZE: u8 = 3 << 6;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Frame {
    level: u8,
    has_checksum: bool,
    /// Whether the compressor was told the length in advance.
    knew_len: bool,
    /// Plain bytes.
    len: u64,
}

/// Finds the level of the frame that `blob` consists of.
pub(crate) fn find(mut blob: impl BufRead, plain: &Plain<'_>) -> io::Result<Frame> {
    let begin = blob.fill_buf()?;
    let descriptor = *begin.get(MAGIC.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
    if descriptor & DICTIONARY != 0 {
        return Err(damaged("the frame needs a dictionary"));
    }
    let mut sample = Vec::new();
    let mut taken = Kept { from: blob, sample: &mut sample };
    let mut decoder = zstd::Decoder::new(&mut taken)?.single_frame();
    let len = io::copy(&mut decoder, &mut io::sink())?;
    drop(decoder);
    let expected = sample;
    for level in LEVELS {
        let frame = Frame {
            level,
            has_checksum: descriptor & CHECKSUM != 0,
            knew_len: descriptor & (SIZE | SINGLE_SEGMENT) != 0,
            len,
        };
        if frame.fits(plain, &expected)? {
            return Ok(frame);
        }
    }
    Err(damaged("no level reproduces this frame"))
}

impl Frame {
    /// Whether the compressed sample equals the beginning of the frame.
    fn fits(self, plain: &Plain<'_>, expected: &[u8]) -> io::Result<bool> {
        let mut given = Vec::new();
        let mut encoder = self.encoder(&mut given)?;
        io::copy(&mut plain.clone().take(SAMPLE_LEN.min(self.len)), &mut encoder)?;
        if self.len <= SAMPLE_LEN {
            encoder.finish()?;
            return Ok(given == expected);
        }
        // Dropped without finishing it: only the bytes written so far can be compared.
        drop(encoder);
        Ok(!given.is_empty() && expected.starts_with(&given))
    }

    fn encoder<W: Write>(self, to: W) -> io::Result<Encoder<'static, W>> {
        let mut encoder = Encoder::new(to, i32::from(self.level))?;
        encoder.include_checksum(self.has_checksum)?;
        if self.knew_len {
            encoder.set_pledged_src_size(Some(self.len))?;
        }
        Ok(encoder)
    }

    pub(crate) fn write(self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(&[self.level, u8::from(self.has_checksum), u8::from(self.knew_len)])?;
        number(to, self.len)
    }

    pub(crate) fn read(from: &mut impl Read) -> io::Result<Frame> {
        Ok(Frame {
            level: byte(from)?,
            has_checksum: byte(from)? != 0,
            knew_len: byte(from)? != 0,
            len: read_number(from)?,
        })
    }

    /// Compresses plain bytes.
    pub(crate) fn rebuild(self, plain: &mut Plain<'_>, to: &mut impl Write) -> io::Result<()> {
        let mut encoder = self.encoder(to)?;
        copy(plain, self.len, &mut encoder)?;
        encoder.finish().map(drop)
    }
}

/// Passes bytes on, and keeps the first [`SAMPLE_LEN`] of them.
struct Kept<'a, R> {
    from: R,
    sample: &'a mut Vec<u8>,
}

impl<R: Read> Read for Kept<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        let room = usize::try_from(SAMPLE_LEN).expect("a mebibyte").saturating_sub(self.sample.len());
        self.sample.extend_from_slice(&buffer[..read.min(room)]);
        Ok(read)
    }
}
