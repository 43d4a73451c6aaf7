//! Reading through compression: a layer's plain bytes from those of its blob.
//!
//! ```text
//! source ─▶ Input ─▶ inflate::Gzip, zstd or nothing ─▶ plain bytes
//!                         └─ bytes as they are used up, and places to begin again ─▶ spans::Recorder
//! ```

use std::io::{self, Read};

use inflate::{Gzip, Stop};
use zstd::stream::raw::{InBuffer, Operation, OutBuffer};

use crate::compression::Compression;
use crate::room::{Room, Taken};
use crate::spans::{Place, Recorder};

/// Bytes. Large reads, since the source is often a channel of network chunks.
const BUFFER_LEN: usize = 128 * 1024;

/// Bytes of a stream's beginning that say what it is: more than the longest header of a zstd frame.
const PREFIX_LEN: usize = 18;

/// Bytes for the windows of all layers of a process that are inflated at once. One that wants more than all is
/// inflated alone.
static WINDOWS: Room = Room::new(16 << 20);

/// Reads the plain bytes of a stream whose compression is found out from its beginning.
pub struct Decoder<R: Read> {
    input: Input<R>,
    kind: Kind,
    /// Plain bytes that were read.
    plain: u64,
    recorder: Option<Recorder>,
    /// For the window, if there is not to be more of them than there is room for.
    _room: Option<Taken<'static>>,
}

enum Kind {
    None,
    /// All members of the file, one after another.
    Gzip(Box<Gzip>),
    Zstd {
        frames: Box<zstd::stream::raw::Decoder<'static>>,
        /// Whether no frame has begun, or the last one has ended.
        is_between: bool,
    },
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

    fn open(source: R, take_room: impl FnOnce(&[u8]) -> Option<Taken<'static>>) -> io::Result<Decoder<R>> {
        let mut input = Input { source, buffer: vec![0; BUFFER_LEN].into(), at: 0, end: 0, is_all: false };
        while input.rest().len() < PREFIX_LEN && !input.is_all {
            input.fill()?;
        }
        let prefix = &input.rest()[..input.rest().len().min(PREFIX_LEN)];
        let compression = Compression::detect(prefix);
        let room = if compression == Compression::Zstd { take_room(prefix) } else { None };
        let kind = match compression {
            Compression::None => Kind::None,
            Compression::Gzip => Kind::Gzip(Box::default()),
            Compression::Zstd => {
                let frames = Box::new(zstd::stream::raw::Decoder::new()?);
                Kind::Zstd { frames, is_between: true }
            }
        };
        Ok(Decoder { input, kind, plain: 0, recorder: None, _room: room })
    }

    /// Has a recorder see all that is read from now on: nothing was yet.
    pub(crate) fn record(&mut self, recorder: Recorder) {
        self.recorder = Some(recorder);
    }

    /// The recorder, which has seen all that was read.
    pub(crate) fn into_recorder(self) -> Option<Recorder> {
        self.recorder
    }

    pub fn compression(&self) -> Compression {
        match self.kind {
            Kind::None => Compression::None,
            Kind::Gzip(_) => Compression::Gzip,
            Kind::Zstd { .. } => Compression::Zstd,
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let Decoder { input, kind, plain, recorder, .. } = self;
        let mut recording = Recording { recorder: recorder.as_mut(), plain: *plain };
        let len = match kind {
            Kind::None => copy(input, &mut recording, buffer),
            Kind::Gzip(gzip) => inflate(gzip, input, &mut recording, buffer),
            Kind::Zstd { frames, is_between } => {
                decompress(frames, is_between, input, &mut recording, buffer)
            }
        }?;
        self.plain += len as u64;
        Ok(len)
    }
}

fn copy(input: &mut Input<impl Read>, recording: &mut Recording<'_>, to: &mut [u8]) -> io::Result<usize> {
    if !input.has_more()? {
        return Ok(0);
    }
    if recording.left() == Some(0) {
        recording.place(0, Place::Beginning)?;
    }
    let len = to.len().min(input.rest().len()).min(recording.left().unwrap_or(usize::MAX));
    to[..len].copy_from_slice(&input.rest()[..len]);
    input.take(len, recording);
    Ok(len)
}

fn inflate(
    gzip: &mut Gzip,
    input: &mut Input<impl Read>,
    recording: &mut Recording<'_>,
    to: &mut [u8],
) -> io::Result<usize> {
    loop {
        let ready = gzip.output();
        if !ready.is_empty() {
            let len = ready.len().min(to.len());
            to[..len].copy_from_slice(&ready[..len]);
            gzip.take(len);
            return Ok(len);
        }
        let (taken, stop) = gzip.run(input.rest(), input.is_all, recording.left())?;
        input.take(taken, recording);
        match stop {
            Stop::Input => input.fill()?,
            Stop::Output => {}
            Stop::Block => {
                let place = match gzip.place() {
                    inflate::Place::Member => Place::Beginning,
                    inflate::Place::Block { window, bit_count } => Place::Block { window, bit_count },
                };
                recording.place(gzip.output().len(), place)?;
            }
            Stop::End => return Ok(0),
        }
    }
}

fn decompress(
    frames: &mut zstd::stream::raw::Decoder<'static>,
    is_between: &mut bool,
    input: &mut Input<impl Read>,
    recording: &mut Recording<'_>,
    to: &mut [u8],
) -> io::Result<usize> {
    loop {
        let has_more = input.has_more()?;
        if *is_between {
            if !has_more {
                return Ok(0);
            }
            if recording.left() == Some(0) {
                recording.place(0, Place::Beginning)?;
            }
        }
        let mut from = InBuffer::around(input.rest());
        let mut into = OutBuffer::around(&mut *to);
        let wanted = frames.run(&mut from, &mut into)?;
        let (taken, len) = (from.pos(), into.pos());
        input.take(taken, recording);
        *is_between = wanted == 0;
        if *is_between {
            frames.reinit()?;
        }
        if len > 0 {
            return Ok(len);
        }
        if taken == 0 && !has_more && !*is_between {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the last zstd frame is cut off"));
        }
    }
}

/// The recorder, if there is one, and how many plain bytes were read.
struct Recording<'a> {
    recorder: Option<&'a mut Recorder>,
    plain: u64,
}

impl Recording<'_> {
    /// Plain bytes until the next place to begin again is wanted.
    fn left(&self) -> Option<usize> {
        let recorder = self.recorder.as_ref()?;
        Some(usize::try_from(recorder.wanted_at().saturating_sub(self.plain)).unwrap_or(usize::MAX))
    }

    /// Notes one, behind some more plain bytes.
    fn place(&mut self, ahead: usize, place: Place<'_>) -> io::Result<()> {
        let plain = self.plain + ahead as u64;
        self.recorder.as_mut().map_or(Ok(()), |recorder| recorder.place(plain, place))
    }
}

/// A source's bytes, as many of them in one piece as a machine wants to look at.
struct Input<R> {
    source: R,
    buffer: Box<[u8]>,
    at: usize,
    end: usize,
    /// Whether the source has ended.
    is_all: bool,
}

impl<R: Read> Input<R> {
    fn rest(&self) -> &[u8] {
        &self.buffer[self.at..self.end]
    }

    fn take(&mut self, len: usize, recording: &mut Recording<'_>) {
        if let Some(recorder) = &mut recording.recorder {
            recorder.took(&self.buffer[self.at..self.at + len]);
        }
        self.at += len;
    }

    /// Waits for more bytes if all are taken; whether there are some.
    fn has_more(&mut self) -> io::Result<bool> {
        if self.rest().is_empty() && !self.is_all {
            self.fill()?;
        }
        Ok(!self.rest().is_empty())
    }

    /// Waits for more bytes, or for the end.
    fn fill(&mut self) -> io::Result<()> {
        self.buffer.copy_within(self.at..self.end, 0);
        self.end -= self.at;
        self.at = 0;
        loop {
            match self.source.read(&mut self.buffer[self.end..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => {
                    let len = read?;
                    self.is_all = len == 0;
                    self.end += len;
                    return Ok(());
                }
            }
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::Encoder;

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
