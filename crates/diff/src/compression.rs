//! Compression of layers: which it is, and reading and writing through it.

use std::io::{self, BufReader, Cursor, Read, Write};

use types::descriptor::media_type;

use crate::room::{Room, Taken};

/// Bytes. Large reads, since the source is often a channel of network chunks.
const BUFFER_LEN: usize = 128 * 1024;

/// Bytes of a stream's beginning that say what it is: more than the longest header of a zstd frame.
const PREFIX_LEN: usize = 18;

/// Bytes for the windows of all layers of a process that are inflated at once. One that wants more than all is
/// inflated alone.
static WINDOWS: Room = Room::new(16 << 20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// By the first bytes (RFC 1952 section 2.3.1, RFC 8878 section 3.1).
    pub fn detect(prefix: &[u8]) -> Compression {
        match prefix {
            [0x1f, 0x8b, ..] => Compression::Gzip,
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

/// Reads the plain bytes of a stream whose compression is found out from its beginning.
pub struct Decoder<R: Read> {
    kind: Kind<R>,
    /// For the window, if there is not to be more of them than there is room for.
    _room: Option<Taken<'static>>,
}

/// The whole stream, whose beginning was looked at.
type Source<R> = BufReader<io::Chain<Cursor<Vec<u8>>, R>>;

enum Kind<R: Read> {
    None(Source<R>),
    /// All members of the file, one after another.
    Gzip(Box<flate2::bufread::MultiGzDecoder<Source<R>>>),
    Zstd(Box<zstd::Decoder<'static, Source<R>>>),
}

impl<R: Read> Decoder<R> {
    pub fn new(source: R) -> io::Result<Decoder<R>> {
        Decoder::open(source, |_| None)
    }

    /// The same, but waits until the window that the stream asks for fits beside those of others. For whoever
    /// has no other decoder open, and reads to the end whatever others do: they wait for it.
    pub(crate) fn within_room(source: R) -> io::Result<Decoder<R>> {
        Decoder::open(source, |prefix| Some(WINDOWS.take(window_len(prefix))))
    }

    fn open(
        mut source: R,
        take_room: impl FnOnce(&[u8]) -> Option<Taken<'static>>,
    ) -> io::Result<Decoder<R>> {
        let mut prefix = Vec::with_capacity(PREFIX_LEN);
        source.by_ref().take(PREFIX_LEN as u64).read_to_end(&mut prefix)?;
        let compression = Compression::detect(&prefix);
        let room = if compression == Compression::Zstd { take_room(&prefix) } else { None };
        let source = BufReader::with_capacity(BUFFER_LEN, Cursor::new(prefix).chain(source));
        let kind = match compression {
            Compression::None => Kind::None(source),
            Compression::Gzip => Kind::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(source))),
            Compression::Zstd => Kind::Zstd(Box::new(zstd::Decoder::with_buffer(source)?)),
        };
        Ok(Decoder { kind, _room: room })
    }

    pub fn compression(&self) -> Compression {
        match self.kind {
            Kind::None(_) => Compression::None,
            Kind::Gzip(_) => Compression::Gzip,
            Kind::Zstd(_) => Compression::Zstd,
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.kind {
            Kind::None(source) => source.read(buffer),
            Kind::Gzip(source) => source.read(buffer),
            Kind::Zstd(source) => source.read(buffer),
        }
    }
}

/// Bytes of history that the first frame of a zstd stream asks for (RFC 8878, section 3.1.1.1). Frames behind it
/// are nearly always of the same kind. What does not say it is taken for the most that a decoder accepts.
fn window_len(prefix: &[u8]) -> u64 {
    const MAX: u64 = 1 << 27;
    let [0x28, 0xb5, 0x2f, 0xfd, descriptor, rest @ ..] = prefix else { return MAX };
    let (content_len_flag, is_single_segment) = (descriptor >> 6, descriptor & 0x20 != 0);
    if !is_single_segment {
        let Some(window) = rest.first() else { return MAX };
        let base = 1_u64 << (10 + (window >> 3));
        return (base + base / 8 * u64::from(window & 7)).min(MAX);
    }
    // The content is the window; its length stands behind the dictionary's id.
    let dictionary_len = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let len = [1, 2, 4, 8][usize::from(content_len_flag)];
    let Some(field) = rest.get(dictionary_len..dictionary_len + len) else { return MAX };
    let number = field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    if len == 2 { number + 256 } else { number.min(MAX) }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(level: i32, len: usize, with_len: bool) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), level).unwrap();
        encoder.include_contentsize(with_len).unwrap();
        if with_len {
            encoder.set_pledged_src_size(Some(len as u64)).unwrap();
        }
        encoder.write_all(&vec![7; len]).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn the_window_of_a_frame_is_what_its_header_says() {
        for (frame, expected) in [
            (frame(3, 10, true), 10),
            (frame(3, 300, true), 300),
            (frame(3, 100_000, true), 100_000),
            (frame(3, 10 << 20, true), 2 << 20),
            (frame(3, 1000, false), 2 << 20),
            (frame(19, 1000, false), 8 << 20),
            (vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0x58 | 3], (2 << 20) + (2 << 20) / 8 * 3),
            (vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0xff], 1 << 27),
            (vec![0x28, 0xb5, 0x2f, 0xfd], 1 << 27),
            (vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0, 1, 2], 1 << 27),
            (vec![0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0], 1 << 27),
        ] {
            assert_eq!(window_len(&frame[..frame.len().min(PREFIX_LEN)]), expected, "{frame:x?}");
        }
    }

    /// Gives one byte at a time, as a network may.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len = buffer.len().min(1);
            self.0.read(&mut buffer[..len])
        }
    }

    #[test]
    fn a_stream_that_trickles_is_known_all_the_same() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let mut encoder = Encoder::new(compression, Vec::new()).unwrap();
            encoder.write_all(b"plain").unwrap();
            let bytes = encoder.finish().unwrap();
            let mut decoder = Decoder::new(Trickle(&bytes)).unwrap();
            assert_eq!(decoder.compression(), compression);
            assert_eq!(io::read_to_string(&mut decoder).unwrap(), "plain");
        }
    }
}
