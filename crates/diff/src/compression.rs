//! Compression of layers: which it is, and writing through it.

use std::io::{self, Write};

use types::descriptor::media_type;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// By the first bytes (RFC 1952 section 2.3.1, RFC 8878 section 3.1). In gzip there is one method only; without it they
    /// may begin a name in an archive.
    pub fn detect(prefix: &[u8]) -> Compression {
        match prefix {
            [0x1f, 0x8b, 8, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            // A skippable frame, as zstd:chunked begins with.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            _ => Compression::None,
        }
    }

    /// What a media type says. The bytes may say otherwise, and are believed.
    pub fn of_media_type(name: &str) -> Compression {
        match name {
            media_type::OCI_LAYER_ZSTD | media_type::DOCKER_LAYER_ZSTD => Compression::Zstd,
            _ if name.ends_with("gzip") => Compression::Gzip,
            _ => Compression::None,
        }
    }
}

/// Compresses what is written to it. The same bytes give the same bytes.
pub enum Encoder<W: Write> {
    None(W),
    Gzip(Box<flate2::write::GzEncoder<W>>),
    Zstd(Box<zstd::Encoder<'static, W>>),
}

impl<W: Write> Encoder<W> {
    /// At the levels that the formats' own tools take.
    pub fn new(compression: Compression, to: W) -> io::Result<Encoder<W>> {
        Ok(match compression {
            Compression::None => Encoder::None(to),
            Compression::Gzip => {
                Encoder::Gzip(Box::new(flate2::write::GzEncoder::new(to, flate2::Compression::default())))
            }
            Compression::Zstd => {
                Encoder::Zstd(Box::new(zstd::Encoder::new(to, zstd::DEFAULT_COMPRESSION_LEVEL)?))
            }
        })
    }

    /// Ends the stream, and returns what it was written to.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Encoder::None(to) => Ok(to),
            Encoder::Gzip(encoder) => encoder.finish(),
            Encoder::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Encoder::None(to) => to.write(bytes),
            Encoder::Gzip(encoder) => encoder.write(bytes),
            Encoder::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Encoder::None(to) => to.flush(),
            Encoder::Gzip(encoder) => encoder.flush(),
            Encoder::Zstd(encoder) => encoder.flush(),
        }
    }
}
