//! From compressed bytes to whoever reads the archive in them: stages on threads of their own.
//!
//! ```text
//! source ─▶ inflate ──chunks──▶ sha256 ──chunks──▶ reader: headers, files
//!              ▲                                      │
//!              └────────────── used chunks ◀──────────┘
//! ```
//!
//! A layer on its way takes [`CHUNKS`] chunks of memory at most and what its decoder needs, however large it is: who
//! is fast waits for a chunk that whoever is slow gives back. All layers but for [`OWN_CHUNKS`] each share what there
//! is of them, and none waits for another's.

use std::io::{self, BufRead, Read};
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use types::{Algorithm, Digest, Error, Hasher, Result};

use crate::apply::Limits;
use crate::budget::{Budget, Permit};
use crate::memory::{Memory, Windows};
use crate::spans::Recorder;
use crate::{Compression, Decoder};

/// Chunks of one layer.
const CHUNKS: usize = 6;
/// Chunks that every layer has: one to be filled while another is read.
const OWN_CHUNKS: usize = 2;
/// For all others, of all layers of the process.
static SHARED: Budget = Budget::new(16 * inflate::Buffer::LEN as u64);

/// What a plain stream was, to its very end.
pub(crate) struct Plain {
    /// Its digest, which is the diff id.
    pub(crate) diff_id: Digest,
    /// Bytes.
    pub(crate) size: u64,
    /// Those of them that helpers have inflated.
    pub(crate) helped_len: u64,
    /// The recorder that saw it, and the compression that it had.
    pub(crate) recorded: Option<(Recorder, Compression)>,
}

/// Has `read` read the plain bytes of a layer of any compression, and `recorder` see its own. It must read all of them, and
/// says in its [`Memory`] what it holds of them.
pub(crate) fn read_plain<T>(
    source: impl Read + Send,
    limits: Limits,
    recorder: Option<Recorder>,
    read: impl FnOnce(Chunks, Memory) -> Result<T>,
) -> Result<(Plain, T)> {
    let (give_back, used) = channel();
    let (send_inflated, inflated) = sync_channel(CHUNKS);
    let (send_hashed, hashed) = sync_channel(CHUNKS);
    let windows = Windows::of(limits.origin);
    let memory = Memory::of(windows.clone());
    std::thread::scope(|scope| {
        let decoder = scope.spawn(move || {
            let to = Inflated { used, made: 0, send: send_inflated };
            decode(source, limits, windows, recorder, to)
        });
        let hasher = scope.spawn(move || hash(&inflated, &send_hashed));
        let read = read(Chunks { receive: hashed, give_back, current: None }, memory);
        let decoded = decoder.join().unwrap_or_else(|_| Err(Error::internal("the decoder panicked")));
        let diff_id = hasher.join().map_err(|_| Error::internal("the hasher panicked"))?;
        let (Decoded { size, helped_len, recorded }, read) = both(decoded, read)?;
        Ok((Plain { diff_id, size, helped_len, recorded }, read))
    })
}

/// What the decoder and its listener say together. A stream that broke off is why the archive was cut off:
/// the cause comes first. A decoder whose listener went away says `Aborted`.
fn both<D, L>(decoded: Result<D>, listened: Result<L>) -> Result<(D, L)> {
    match (decoded, listened) {
        (Ok(decoded), Ok(listened)) => Ok((decoded, listened)),
        (Err(error), Err(second)) if error.is(types::ErrorKind::Aborted) => Err(second),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

/// Memory of a chunk: what a decoder makes plain bytes in, so that they are not copied.
struct Buffer {
    bytes: inflate::Buffer,
    /// What it takes of the budget that is shared.
    _permit: Option<Permit<'static>>,
}

/// Some bytes of the plain stream.
struct Chunk {
    buffer: Buffer,
    /// Where in the buffer they are.
    range: Range<usize>,
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        &self.buffer.bytes[self.range.clone()]
    }
}

/// Where inflated chunks go, and where empty ones come from.
struct Inflated {
    used: Receiver<Buffer>,
    made: usize,
    send: SyncSender<Chunk>,
}

impl Inflated {
    /// An empty chunk; none if nobody reads any more.
    fn empty(&mut self) -> Option<Buffer> {
        if let Ok(buffer) = self.used.try_recv() {
            return Some(buffer);
        }
        let permit = match self.made {
            0..OWN_CHUNKS => None,
            OWN_CHUNKS..CHUNKS => match SHARED.try_take(inflate::Buffer::LEN as u64) {
                None => return self.used.recv().ok(),
                permit => permit,
            },
            _ => return self.used.recv().ok(),
        };
        self.made += 1;
        Some(Buffer { bytes: inflate::Buffer::default(), _permit: permit })
    }
}

/// The same as its decoder knows it.
struct Decoded {
    size: u64,
    helped_len: u64,
    recorded: Option<(Recorder, Compression)>,
}

fn decode(
    source: impl Read,
    limits: Limits,
    windows: Windows,
    recorder: Option<Recorder>,
    mut to: Inflated,
) -> Result<Decoded> {
    let unread = || Error::aborted("decompress layer: nobody takes the bytes");
    let mut decoder = Decoder::within_budget(source, windows, limits.helpers).map_err(undecoded)?;
    if let Some(recorder) = recorder {
        decoder.record(recorder);
    }
    let mut size = 0_u64;
    loop {
        let mut buffer = to.empty().ok_or_else(unread)?;
        let range = decoder.fill(&mut buffer.bytes).map_err(undecoded)?;
        if range.is_empty() {
            let (compression, helped_len) = (decoder.compression(), decoder.helped_len());
            let recorded = decoder.into_recorder().map(|recorder| (recorder, compression));
            return Ok(Decoded { size, helped_len, recorded });
        }
        size += range.len() as u64;
        if size > limits.bytes {
            let message =
                format!("decompress layer: more than the {} bytes that a layer may have", limits.bytes);
            return Err(Error::resource_exhausted(message));
        }
        to.send.send(Chunk { buffer, range }).map_err(|_| unread())?;
    }
}

fn undecoded(error: io::Error) -> Error {
    let what = "decompress layer";
    if error.kind() == io::ErrorKind::WouldBlock {
        return Error::unavailable(what).with_source(error);
    }
    let error = bad_input(error);
    Error::new(error.kind().into(), what).with_source(error)
}

/// The digest of all chunks that came, which are handed on.
fn hash(from: &Receiver<Chunk>, to: &SyncSender<Chunk>) -> Digest {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    while let Ok(chunk) = from.recv() {
        hasher.update(chunk.bytes());
        if to.send(chunk).is_err() {
            break; // the reader says why
        }
    }
    hasher.finish()
}

/// Bytes that are wrong are the caller's mistake, unless the error came from the source itself.
pub(crate) fn bad_input(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            io::Error::new(io::ErrorKind::InvalidInput, error)
        }
        _ => error,
    }
}

/// The plain bytes, as they come.
pub(crate) struct Chunks {
    receive: Receiver<Chunk>,
    give_back: Sender<Buffer>,
    /// The chunk at hand, and how many of its bytes were read.
    current: Option<(Chunk, usize)>,
}

impl Chunks {
    /// The chunk at hand, if not all of it was read.
    fn rest(&self) -> &[u8] {
        self.current.as_ref().map_or(&[], |(chunk, at)| &chunk.bytes()[*at..])
    }

    /// Whether the next read waits for the next chunk.
    pub(crate) fn is_used_up(&self) -> bool {
        self.rest().is_empty()
    }

    /// Waits for the next chunk, in place of the one at hand. No bytes are the end.
    pub(crate) fn next_chunk(&mut self) -> &[u8] {
        if let Some((chunk, _)) = self.current.take() {
            // The decoder may have ended already.
            let _ = self.give_back.send(chunk.buffer);
        }
        self.current = self.receive.recv().ok().map(|chunk| (chunk, 0));
        self.rest()
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.is_used_up() {
            self.next_chunk();
        }
        Ok(self.rest())
    }

    fn consume(&mut self, len: usize) {
        if let Some((_, at)) = &mut self.current {
            *at += len;
        }
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.fill_buf()?.read(buffer)?;
        self.consume(len);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// So many zeros, and how many of them somebody took.
    struct Zeros<'a> {
        left: u64,
        given: &'a AtomicU64,
    }

    impl Read for Zeros<'_> {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            let len = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
            bytes[..len].fill(0);
            self.left -= len as u64;
            self.given.fetch_add(len as u64, Ordering::SeqCst);
            Ok(len)
        }
    }

    /// A disk that takes no data stops the socket: what is on its way between them is bounded.
    #[test]
    fn who_takes_nothing_holds_up_the_source() {
        let given = AtomicU64::new(0);
        let source = Zeros { left: 32 << 20, given: &given };
        let (plain, most) = read_plain(source, Limits::default(), None, |mut chunks, _| {
            let (mut taken, mut most) = (0, 0);
            loop {
                let len = chunks.next_chunk().len() as u64;
                most = most.max(given.load(Ordering::SeqCst) - taken);
                if len == 0 {
                    return Ok(most);
                }
                taken += len;
            }
        })
        .unwrap();
        assert_eq!(plain.size, 32 << 20);
        assert!(most < 3 << 20, "{most} bytes came and were not taken");
    }
}
