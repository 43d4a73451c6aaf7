//! Decompresses a layer's blob into its plain bytes.
//!
//! ```text
//! source ─▶ Input ─▶ inflate::Gzip, zstd or nothing ─▶ plain bytes
//!                         └─ consumed bytes, and places to inflate from ─▶ spans::Recorder
//! ```
//!
//! If processors are idle, helper threads inflate parts of the stream ahead of the reader: see `ahead`.

mod ahead;
mod boundary;

use std::io::{self, Read};
use std::ops::Range;

use inflate::{Buffer, Gzip, OUTPUT_LEN, Stop};
use zstd::stream::raw::{InBuffer, Operation, OutBuffer};

use self::ahead::Ahead;
pub use self::ahead::Helpers;
use self::boundary::{HEADER_LEN_MAX as PREFIX_LEN, window_len};
use crate::budget::{Budget, Permit};
use crate::compression::Compression;
use crate::memory;
use crate::spans::{Place, Recorder};

/// Bytes of the input buffer. Reads are large, since the source is often a channel of network chunks.
const BUFFER_LEN: usize = 128 * 1024;

/// Bytes for the zstd windows of all layers of the process that are inflated at a time. Layers from the disk have a
/// budget of their own, so that they never wait for a network. A window longer than its whole budget takes all of it.
static COMING: Budget = Budget::new(16 << 20);
static STORED: Budget = Budget::new(8 << 20);

/// Where the bytes of a layer come from and go to. It decides what the layer does if the process has no memory left for
/// its windows or its metadata: wait for other layers, or fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// From the disk to the disk, so never blocked for long. The layer waits for other stored layers.
    #[default]
    Stored,
    /// From a registry, which may be arbitrarily slow, into a file from which the layer can be read again. The layer
    /// does not wait: it fails with `Unavailable`, and the caller unpacks it from the disk later.
    Passing,
    /// From a registry or a program, and from nowhere else; or to a file system that may hang. The layer waits for
    /// other coming and passing layers.
    Coming,
}

impl Origin {
    /// The budget for windows of all layers of this origin.
    pub(crate) fn windows(self) -> &'static Budget {
        match self {
            Origin::Stored => &STORED,
            Origin::Passing | Origin::Coming => &COMING,
        }
    }
}

/// Reads the plain bytes of a stream, whose compression it detects by the first bytes.
pub struct Decoder<R: Read> {
    input: Input<R>,
    kind: Kind,
    /// Plain bytes read so far.
    plain: u64,
    recorder: Option<Recorder>,
    /// The work of helper threads; `None` without helpers.
    ahead: Option<Ahead>,
}

enum Kind {
    None,
    Gzip(Box<Gzip>),
    Zstd(Box<Zstd>),
}

/// The decoder of a zstd stream, which has one frame after another.
struct Zstd {
    frames: zstd::stream::raw::Decoder<'static>,
    position: Position,
    /// `None` if windows are not budgeted.
    windows: Option<Windows>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Position {
    /// Before the first frame.
    First,
    /// Within a frame.
    Within,
    /// Behind a frame.
    Between,
}

/// The budget for the windows of a stream.
struct Windows {
    take: Box<dyn Fn(u64) -> Option<Permit<'static>> + Send>,
    /// Bytes that the decoder may hold: the longest window so far.
    len: u64,
    taken: Option<Permit<'static>>,
}

impl<R: Read> Decoder<R> {
    /// A decoder without helper threads. Like all constructors it reads the first bytes of the source.
    pub fn new(source: R) -> io::Result<Decoder<R>> {
        Decoder::open(source, None, Helpers::Fixed(0))
    }

    /// A decoder with helper threads. These change how long reading takes, but never its result.
    pub fn with_helpers(source: R, helpers: Helpers) -> io::Result<Decoder<R>> {
        Decoder::open(source, None, helpers)
    }

    /// A decoder that takes a permit for a frame's window before it begins the frame. A thread must not have two of
    /// them open, as they could wait for each other.
    pub(crate) fn within_budget(
        source: R,
        windows: memory::Windows,
        helpers: Helpers,
    ) -> io::Result<Decoder<R>> {
        let windows = Windows { take: Box::new(move |len| windows.take(len)), len: 0, taken: None };
        Decoder::open(source, Some(windows), helpers)
    }

    fn open(source: R, windows: Option<Windows>, helpers: Helpers) -> io::Result<Decoder<R>> {
        let buffer = vec![0; BUFFER_LEN];
        let mut input = Input { source, buffer, seen: 0, at: 0, end: 0, is_all: false, failure: None };
        let ahead = Ahead::new(helpers);
        let kind = match Compression::detect(input.prefix(&mut Recording::none())?) {
            Compression::None => Kind::None,
            Compression::Gzip => {
                let mut gzip = Box::<Gzip>::default();
                gzip.stop_at_members(ahead.is_some());
                Kind::Gzip(gzip)
            }
            Compression::Zstd => {
                let frames = zstd::stream::raw::Decoder::new()?;
                Kind::Zstd(Box::new(Zstd { frames, position: Position::First, windows }))
            }
        };
        Ok(Decoder { input, kind, plain: 0, recorder: None, ahead })
    }

    /// Plain bytes that helper threads inflated so far.
    pub fn helped_len(&self) -> u64 {
        self.ahead.as_ref().map_or(0, Ahead::helped_len)
    }

    /// Sets the recorder that observes the blob. Must be called before the first read.
    pub(crate) fn record(&mut self, recorder: Recorder) {
        self.recorder = Some(recorder);
    }

    /// Reads as many bytes as fit into a buffer, and returns their position in it; an empty one at the end of the
    /// stream. For gzip, the buffer is exchanged with the decoder's own instead of filled.
    pub(crate) fn fill(&mut self, buffer: &mut Buffer) -> io::Result<Range<usize>> {
        if !self.is_helped()?
            && let Decoder { input, kind: Kind::Gzip(gzip), plain, recorder, ahead } = self
        {
            let mut recording = Recording { recorder: recorder.as_mut(), plain: *plain };
            let is_helped = loop {
                match inflate_on(gzip, input, &mut recording)? {
                    Stop::Output | Stop::End => break false,
                    // The caller does not get all of the output now, and the helpers' bytes come behind it.
                    Stop::Member if gzip.output().len() > OUTPUT_LEN => break false,
                    Stop::Member => {
                        let start = |ahead: &mut Ahead| ahead.start(Compression::Gzip, input, &mut recording);
                        if ahead.as_mut().is_some_and(start) {
                            break true;
                        }
                    }
                    Stop::Input | Stop::Block => {}
                }
            };
            let filled = gzip.exchange(buffer);
            *plain += filled.len() as u64;
            if !filled.is_empty() || !is_helped {
                return Ok(filled);
            }
        }
        let len = stdx::fill(self, &mut buffer[..OUTPUT_LEN])?;
        Ok(0..len)
    }

    /// Whether the next plain bytes are those of helpers. Between two parts of the stream, this starts helpers.
    fn is_helped(&mut self) -> io::Result<bool> {
        let Decoder { input, kind, plain, recorder, ahead: Some(ahead) } = self else { return Ok(false) };
        let compression = match kind {
            _ if ahead.has_bytes() => return Ok(true),
            Kind::Gzip(gzip) if gzip.is_between() && gzip.output().is_empty() => Compression::Gzip,
            Kind::Zstd(zstd) if zstd.position == Position::Between => Compression::Zstd,
            _ => return Ok(false),
        };
        let mut recording = Recording { recorder: recorder.as_mut(), plain: *plain };
        ahead.go_on(compression, input, &mut recording)
    }

    /// The recorder, once it has observed all consumed bytes.
    pub(crate) fn into_recorder(mut self) -> Option<Recorder> {
        self.input.show(&mut Recording { recorder: self.recorder.as_mut(), plain: self.plain });
        self.recorder
    }

    pub fn compression(&self) -> Compression {
        match self.kind {
            Kind::None => Compression::None,
            Kind::Gzip(_) => Compression::Gzip,
            Kind::Zstd(_) => Compression::Zstd,
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let is_helped = self.is_helped()?;
        let Decoder { input, kind, plain, recorder, ahead } = self;
        if let (true, Some(ahead)) = (is_helped, ahead) {
            let len = ahead.read(buffer);
            *plain += len as u64;
            return Ok(len);
        }
        let mut recording = Recording { recorder: recorder.as_mut(), plain: *plain };
        let len = match kind {
            Kind::None => copy(input, &mut recording, buffer),
            Kind::Gzip(gzip) => inflate(gzip, input, &mut recording, buffer),
            Kind::Zstd(zstd) => decompress(zstd, input, &mut recording, buffer),
        }?;
        self.plain += len as u64;
        Ok(len)
    }
}

fn copy(input: &mut Input<impl Read>, recording: &mut Recording<'_>, to: &mut [u8]) -> io::Result<usize> {
    if !input.has_more(recording)? {
        return Ok(0);
    }
    if recording.left() == Some(0) {
        input.show(recording);
        recording.place(0, Place::Beginning)?;
    }
    let len = to.len().min(input.rest().len()).min(recording.left().unwrap_or(usize::MAX));
    to[..len].copy_from_slice(&input.rest()[..len]);
    input.at += len;
    Ok(len)
}

fn inflate(
    gzip: &mut Gzip,
    input: &mut Input<impl Read>,
    recording: &mut Recording<'_>,
    to: &mut [u8],
) -> io::Result<usize> {
    while gzip.output().is_empty() {
        if inflate_on(gzip, input, recording)? == Stop::End {
            return Ok(0);
        }
    }
    let len = gzip.output().len().min(to.len());
    to[..len].copy_from_slice(&gzip.output()[..len]);
    gzip.take(len);
    Ok(len)
}

/// Runs the inflater until it stops. Handles the stops that the caller need not know: missing input, and a place to
/// record.
fn inflate_on(
    gzip: &mut Gzip,
    input: &mut Input<impl Read>,
    recording: &mut Recording<'_>,
) -> io::Result<Stop> {
    let (taken, stop) = gzip.run(input.rest(), input.is_all, recording.left())?;
    input.at += taken;
    match stop {
        Stop::Input => input.fill(recording)?,
        Stop::Block => {
            let place = match gzip.place() {
                inflate::Place::Member => Place::Beginning,
                inflate::Place::Block { window, bit_count } => Place::Block { window, bit_count },
            };
            input.show(recording);
            recording.place(gzip.output().len(), place)?;
        }
        Stop::Output | Stop::Member | Stop::End => {}
    }
    Ok(stop)
}

fn decompress(
    zstd: &mut Zstd,
    input: &mut Input<impl Read>,
    recording: &mut Recording<'_>,
    to: &mut [u8],
) -> io::Result<usize> {
    loop {
        let has_more = input.has_more(recording)?;
        if zstd.position != Position::Within {
            if !has_more {
                return Ok(0);
            }
            zstd.reserve_window(window_len(input.prefix(recording)?))?;
            if recording.left() == Some(0) {
                input.show(recording);
                recording.place(0, Place::Beginning)?;
            }
        }
        let mut from = InBuffer::around(input.rest());
        let mut into = OutBuffer::around(&mut *to);
        let wanted = zstd.frames.run(&mut from, &mut into)?;
        let (taken, len) = (from.pos(), into.pos());
        input.at += taken;
        zstd.position = if wanted == 0 { Position::Between } else { Position::Within };
        if zstd.position == Position::Between {
            zstd.frames.reinit()?;
        }
        if len > 0 {
            return Ok(len);
        }
        if taken == 0 && !has_more && zstd.position == Position::Within {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the last zstd frame is cut off"));
        }
    }
}

impl Zstd {
    /// Takes a permit for the window of the next frame, if it is the longest so far. The decoder's memory and its
    /// permit are released first, so that a waiting layer holds nothing.
    fn reserve_window(&mut self, len: u64) -> io::Result<()> {
        let Some(windows) = self.windows.as_mut().filter(|windows| len > windows.len) else { return Ok(()) };
        if windows.taken.take().is_some() {
            // Frees the memory of the window so far.
            self.frames = zstd::stream::raw::Decoder::new()?;
        }
        windows.taken = Some((windows.take)(len).ok_or_else(|| {
            let message = format!("a zstd window of {len} bytes does not fit beside those of other layers");
            io::Error::new(io::ErrorKind::WouldBlock, message)
        })?);
        windows.len = len;
        Ok(())
    }
}

/// The recorder, if any.
struct Recording<'a> {
    recorder: Option<&'a mut Recorder>,
    /// Plain bytes read so far.
    plain: u64,
}

impl Recording<'_> {
    fn none() -> Recording<'static> {
        Recording { recorder: None, plain: 0 }
    }

    /// Plain bytes until the recorder wants the next place; `None` without a recorder.
    fn left(&self) -> Option<usize> {
        let recorder = self.recorder.as_ref()?;
        Some(usize::try_from(recorder.wanted_at().saturating_sub(self.plain)).unwrap_or(usize::MAX))
    }

    /// Records a place, `ahead` plain bytes behind those that were read.
    fn place(&mut self, ahead: usize, place: Place<'_>) -> io::Result<()> {
        let plain = self.plain + ahead as u64;
        self.recorder.as_mut().map_or(Ok(()), |recorder| recorder.place(plain, place))
    }
}

/// The buffered source. Its buffer grows if finding the end of a part needs more bytes in one piece.
struct Input<R> {
    source: R,
    buffer: Vec<u8>,
    /// End of the bytes that the recorder has observed.
    seen: usize,
    /// End of the consumed bytes.
    at: usize,
    /// End of the bytes from the source.
    end: usize,
    /// Whether the source has ended.
    is_all: bool,
    /// An error of the source, which [`Input::fill`] returns once the bytes before it were consumed.
    failure: Option<io::Error>,
}

impl<R: Read> Input<R> {
    fn rest(&self) -> &[u8] {
        &self.buffer[self.at..self.end]
    }

    /// Shows the recorder the consumed bytes, in pieces as long as possible, which hash faster.
    fn show(&mut self, recording: &mut Recording<'_>) {
        if let Some(recorder) = &mut recording.recorder {
            recorder.took(&self.buffer[self.seen..self.at]);
        }
        self.seen = self.at;
    }

    /// The next bytes, enough for the header of a frame or member; fewer at the end of the source.
    fn prefix(&mut self, recording: &mut Recording<'_>) -> io::Result<&[u8]> {
        while self.rest().len() < PREFIX_LEN && !self.is_all {
            self.fill(recording)?;
        }
        Ok(&self.rest()[..self.rest().len().min(PREFIX_LEN)])
    }

    /// Reads more bytes if all were consumed. False at the end of the source.
    fn has_more(&mut self, recording: &mut Recording<'_>) -> io::Result<bool> {
        if self.rest().is_empty() && !self.is_all {
            self.fill(recording)?;
        }
        Ok(!self.rest().is_empty())
    }

    /// Reads until `len` bytes are unconsumed. False if the source ends or fails before.
    fn wait_for(&mut self, len: usize, recording: &mut Recording<'_>) -> bool {
        while self.rest().len() < len && !self.is_all && self.failure.is_none() {
            self.failure = self.fill(recording).err();
        }
        self.rest().len() >= len
    }

    /// Consumes bytes that the caller shows the recorder itself.
    fn take(&mut self, len: usize) -> &[u8] {
        assert_eq!(self.seen, self.at, "all that was taken before was shown");
        self.at += len;
        self.seen = self.at;
        &self.buffer[self.at - len..self.at]
    }

    /// Puts consumed bytes back in front of the others.
    fn put_back(&mut self, mut bytes: Vec<u8>) {
        bytes.extend_from_slice(self.rest());
        (self.seen, self.at, self.end) = (0, 0, bytes.len());
        bytes.resize(bytes.len().max(BUFFER_LEN), 0);
        self.buffer = bytes;
    }

    /// Reads once from the source: more bytes, or its end.
    fn fill(&mut self, recording: &mut Recording<'_>) -> io::Result<()> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        self.show(recording);
        self.buffer.copy_within(self.at..self.end, 0);
        self.end -= self.at;
        (self.seen, self.at) = (0, 0);
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
            (vec![0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0], 0),
        ] {
            assert_eq!(window_len(&frame[..frame.len().min(PREFIX_LEN)]), expected, "{frame:x?}");
        }
    }

    fn within(budget: &'static Budget, waits: bool, stream: &[u8]) -> io::Result<usize> {
        let take = move |len| if waits { Some(budget.take(len)) } else { budget.try_take(len) };
        let windows = Windows { take: Box::new(take), len: 0, taken: None };
        Decoder::open(stream, Some(windows), Helpers::Fixed(0))?.read_to_end(&mut Vec::new())
    }

    #[test]
    fn each_zstd_frame_takes_a_permit_for_its_own_window() {
        let budget: &'static Budget = Box::leak(Box::new(Budget::new(8 << 20)));
        let skipped = vec![0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
        let (small, large) = (frame(3, 10, true), frame(19, 1000, false));
        let stream = [skipped.clone(), small.clone(), large, skipped, small.clone()].concat();
        let other = budget.try_take(1 << 20).unwrap();
        let refused = within(budget, false, &stream).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock, "{refused}");
        assert_eq!(within(budget, false, &small).unwrap(), 10);
        // The stream that waits for the larger window holds nothing: all but the other's permit is free.
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| within(budget, true, &stream));
            assert_eq!(budget.free_once_waited_for(), 7 << 20);
            drop(other);
            assert_eq!(waiting.join().unwrap().unwrap(), 1020);
        });
        assert!(budget.try_take(8 << 20).is_some(), "all is given back");
    }

    #[test]
    fn windows_of_stored_layers_do_not_wait_for_those_of_layers_from_a_registry() {
        let take = |origin, len| memory::Windows::of(origin).take(len);
        let all = take(Origin::Coming, u64::MAX);
        assert!(take(Origin::Passing, 1).is_none());
        assert!(take(Origin::Stored, 1 << 20).is_some());
        drop(all);
    }

    /// A source that gives one byte at a time, as a network may.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len = buffer.len().min(1);
            self.0.read(&mut buffer[..len])
        }
    }

    #[test]
    fn the_compression_of_a_slow_stream_is_detected() {
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
