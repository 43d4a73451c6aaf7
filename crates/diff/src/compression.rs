//! The compression of layers: its detection, and an encoder.

use std::io::{self, Write};

use types::descriptor::media_type;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// The compression of a stream that begins with these bytes (RFC 1952 section 2.3.1, RFC 8878 section 3.1). The
    /// gzip magic number counts only with the method deflate, the only one: otherwise it may begin a name in a tar
    /// archive.
    pub fn detect(prefix: &[u8]) -> Compression {
        match prefix {
            [0x1f, 0x8b, 8, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            // A skippable frame, which may come first (RFC 8878 section 3.1.2).
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            _ => Compression::None,
        }
    }

    /// The compression that a media type names. Decoders go by the bytes instead, see [`Compression::detect`].
    pub fn of_media_type(name: &str) -> Compression {
        match name {
            media_type::OCI_LAYER_ZSTD | media_type::DOCKER_LAYER_ZSTD => Compression::Zstd,
            _ if name.ends_with("gzip") => Compression::Gzip,
            _ => Compression::None,
        }
    }
}

/// Compresses the bytes written to it. Its output depends on these bytes alone, so that layers are reproducible.
pub enum Encoder<W: Write> {
    None(W),
    Gzip(Box<flate2::write::GzEncoder<W>>),
    Zstd(Box<zstd::Encoder<'static, W>>),
}

impl<W: Write> Encoder<W> {
    /// An encoder at the default level of gzip(1) or zstd(1).
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

    /// Ends the stream, and returns the underlying writer.
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
