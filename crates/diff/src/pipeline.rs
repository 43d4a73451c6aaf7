//! From compressed bytes to the reader of the archive in them, in stages that each run on their own thread.
//!
//! ```text
//! source ─▶ inflate ──chunks──▶ sha256 ──chunks──▶ reader: headers, files
//!              ▲                                      │
//!              └────────────── used chunks ◀──────────┘
//! ```
//!
//! A layer of any size takes at most [`CHUNKS`] chunks of memory, and what its decoder needs: a fast stage waits until
//! a slower one gives back a chunk. Each layer has [`OWN_CHUNKS`] chunks; the others are from a budget that all layers
//! of the process share, and a layer that finds it empty goes on with the chunks that it has.

use std::io::{self, BufRead, Read};
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use types::{Algorithm, Digest, Error, Hasher, Result};

use crate::apply::Limits;
use crate::budget::{Budget, Permit};
use crate::memory::{Memory, Windows};
use crate::spans::Recorder;
use crate::{Compression, Decoder};

/// Most chunks of one layer.
const CHUNKS: usize = 6;
/// Chunks that every layer has: the decoder fills one while another is read.
const OWN_CHUNKS: usize = 2;
/// Bytes of the chunks beyond these, of all layers of the process.
static SHARED: Budget = Budget::new(16 * inflate::Buffer::LEN as u64);

/// A plain stream that was read to its very end.
pub(crate) struct Plain {
    /// Its digest, which is the diff id.
    pub(crate) diff_id: Digest,
    /// Bytes.
    pub(crate) size: u64,
    /// The bytes among them that helper threads inflated.
    pub(crate) helped_len: u64,
    /// The recorder that observed the blob, and the blob's compression.
    pub(crate) recorded: Option<(Recorder, Compression)>,
}

/// Decompresses a layer, and calls `read` with its plain bytes, while `recorder` observes the compressed ones. `read`
/// must read to the end, and accounts in its [`Memory`] for the memory that it holds.
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

/// The results of the decoder and of the reader of its bytes. If both failed, the cause is returned: a broken stream
/// cuts the archive off, so the decoder's error, unless it is `Aborted`, which means that the reader stopped first.
fn both<D, R>(decoded: Result<D>, read: Result<R>) -> Result<(D, R)> {
    match (decoded, read) {
        (Ok(decoded), Ok(read)) => Ok((decoded, read)),
        (Err(error), Err(second)) if error.is(types::ErrorKind::Aborted) => Err(second),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

/// The memory of a chunk. The decoder inflates right into it, so that plain bytes are not copied.
struct Buffer {
    bytes: inflate::Buffer,
    /// Its part of [`SHARED`]; `None` for a chunk of the layer's own.
    _permit: Option<Permit<'static>>,
}

/// Some bytes of the plain stream.
struct Chunk {
    buffer: Buffer,
    /// The position of the bytes in the buffer.
    range: Range<usize>,
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        &self.buffer.bytes[self.range.clone()]
    }
}

/// The decoder's ends of the channels: inflated chunks go out, used ones come back.
struct Inflated {
    used: Receiver<Buffer>,
    made: usize,
    send: SyncSender<Chunk>,
}

impl Inflated {
    /// A chunk to fill, which may have to be waited for. `None` if the reader is gone.
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

/// What the decoder knows of a [`Plain`] stream.
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

/// Passes all chunks on, and returns their digest.
fn hash(from: &Receiver<Chunk>, to: &SyncSender<Chunk>) -> Digest {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    while let Ok(chunk) = from.recv() {
        hasher.update(chunk.bytes());
        if to.send(chunk).is_err() {
            break; // the reader stopped, and returns why
        }
    }
    hasher.finish()
}

/// Makes malformed or missing bytes an invalid input; errors of the source itself stay as they are.
pub(crate) fn bad_input(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            io::Error::new(io::ErrorKind::InvalidInput, error)
        }
        _ => error,
    }
}

/// The reader's end: the plain bytes, chunk by chunk.
pub(crate) struct Chunks {
    receive: Receiver<Chunk>,
    give_back: Sender<Buffer>,
    /// The current chunk, and how many of its bytes were read.
    current: Option<(Chunk, usize)>,
}

impl Chunks {
    /// The unread bytes of the current chunk.
    fn rest(&self) -> &[u8] {
        self.current.as_ref().map_or(&[], |(chunk, at)| &chunk.bytes()[*at..])
    }

    /// Whether the next read waits for the next chunk.
    pub(crate) fn is_used_up(&self) -> bool {
        self.rest().is_empty()
    }

    /// Gives back the current chunk and waits for the next one. An empty slice is the end of the stream.
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

    /// A source of `left` zeros, which counts the bytes it gave.
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

    /// A slow disk stops reads from the socket: the bytes between them are bounded.
    #[test]
    fn a_slow_reader_holds_up_the_source() {
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
