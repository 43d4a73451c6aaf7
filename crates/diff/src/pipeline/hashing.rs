//! Digests of the plain bytes of layers, two layers at once where two have bytes that wait: together they take a
//! processor little more time than one does alone ([`linux::sha256`]).
//!
//! ```text
//! decoder ─▶ chunks of layer A ─┐             ┌─▶ reader of A
//! decoder ─▶ chunks of layer B ─┴▶ a thread ──┴─▶ reader of B
//!            └────── Table ─────┘  of A or B
//! ```
//!
//! Each layer has a thread that hashes it, and takes along what waits of another layer, which is much where processors are
//! short: of three layers on two processors two chunks in three are hashed with another. None waits for another layer.

use std::collections::VecDeque;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use linux::sha256::{BLOCK_LEN, State, compress_two, has_instructions};
use types::Digest;

use super::Chunk;

/// All layers that are hashed.
pub(super) struct Table(Mutex<Streams>);

#[derive(Default)]
struct Streams {
    list: Vec<Stream>,
    /// How many there have been, which is the next one's number.
    count: u64,
}

/// One layer.
struct Stream {
    number: u64,
    pending: VecDeque<Chunk>,
    /// Of all chunks before those; none while somebody goes on with it.
    hash: Option<Sha256>,
    to: SyncSender<Chunk>,
    has_ended: bool,
    /// Nobody reads any more.
    is_unread: bool,
    changed: Arc<Condvar>,
}

impl Stream {
    /// Whether its thread has something to do.
    fn is_due(&self) -> bool {
        self.hash.is_some() && (self.is_unread || self.has_ended || !self.pending.is_empty())
    }

    fn take(&mut self) -> Option<Work> {
        if self.is_unread || self.pending.is_empty() {
            return None;
        }
        let hash = self.hash.take()?;
        let chunk = self.pending.pop_front()?;
        Some(Work { number: self.number, hash, chunk, to: self.to.clone() })
    }
}

/// A chunk that somebody hashes.
struct Work {
    number: u64,
    hash: Sha256,
    chunk: Chunk,
    to: SyncSender<Chunk>,
}

impl Streams {
    fn find(&mut self, number: u64) -> Option<&mut Stream> {
        self.list.iter_mut().find(|stream| stream.number == number)
    }

    /// Work of the layer that has most of it.
    fn take_any(&mut self) -> Option<Work> {
        let can_be_taken = |stream: &&mut Stream| stream.hash.is_some() && !stream.is_unread;
        self.list.iter_mut().filter(can_be_taken).max_by_key(|stream| stream.pending.len())?.take()
    }

    /// Hands on what was done.
    fn put(&mut self, Work { number, hash, chunk, to }: Work) {
        // It has room for all chunks that a layer has.
        let is_unread = to.send(chunk).is_err();
        if let Some(stream) = self.find(number) {
            stream.hash = Some(hash);
            stream.is_unread |= is_unread; // the reader says why
            stream.changed.notify_one();
        }
    }
}

impl Table {
    pub(super) const fn new() -> Table {
        Table(Mutex::new(Streams { list: Vec::new(), count: 0 }))
    }

    /// Begins a layer, whose chunks are handed on to a channel that has room for all of them.
    pub(super) fn begin(&self, to: SyncSender<Chunk>) -> (Feed<'_>, Worker<'_>) {
        let mut streams = self.lock();
        let (number, changed) = (streams.count, Arc::new(Condvar::new()));
        streams.count += 1;
        streams.list.push(Stream {
            number,
            pending: VecDeque::new(),
            hash: Some(Sha256::new()),
            to,
            has_ended: false,
            is_unread: false,
            changed: changed.clone(),
        });
        (Feed { table: self, number }, Worker { table: self, number, changed })
    }

    fn lock(&self) -> MutexGuard<'_, Streams> {
        // What is taken out is put back whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the decoder of a layer puts chunks. Dropping it is the end of the layer.
pub(super) struct Feed<'a> {
    table: &'a Table,
    number: u64,
}

impl Feed<'_> {
    /// Whether there is still somebody who reads.
    pub(super) fn push(&self, chunk: Chunk) -> bool {
        let mut streams = self.table.lock();
        let Some(stream) = streams.find(self.number).filter(|stream| !stream.is_unread) else { return false };
        stream.pending.push_back(chunk);
        stream.changed.notify_one();
        true
    }
}

impl Drop for Feed<'_> {
    fn drop(&mut self) {
        if let Some(stream) = self.table.lock().find(self.number) {
            stream.has_ended = true;
            stream.changed.notify_one();
        }
    }
}

/// The thread of a layer.
pub(super) struct Worker<'a> {
    table: &'a Table,
    number: u64,
    changed: Arc<Condvar>,
}

impl Worker<'_> {
    /// The digest of all chunks that come, which are handed on.
    pub(super) fn hash(self) -> Digest {
        let mut streams = self.table.lock();
        loop {
            let idle =
                |streams: &mut Streams| streams.find(self.number).is_some_and(|stream| !stream.is_due());
            streams = self.changed.wait_while(streams, idle).unwrap_or_else(PoisonError::into_inner);
            let Some(mut own) = streams.find(self.number).and_then(Stream::take) else { break };
            let other = if has_instructions() { streams.take_any() } else { None };
            drop(streams);
            let other = match other {
                Some(mut other) => {
                    let chunks = [own.chunk.bytes(), other.chunk.bytes()];
                    update_two([&mut own.hash, &mut other.hash], chunks);
                    Some(other)
                }
                None => {
                    own.hash.update(own.chunk.bytes());
                    None
                }
            };
            streams = self.table.lock();
            for work in [Some(own), other].into_iter().flatten() {
                streams.put(work);
            }
        }
        let at = streams.list.iter().position(|stream| stream.number == self.number);
        let stream = streams.list.swap_remove(at.expect("it stays until here"));
        Digest::of_sha256(stream.hash.expect("it is not due while somebody has it").finish())
    }
}

/// SHA-256 (FIPS 180-4) whose state is at hand.
struct Sha256 {
    state: State,
    /// Bytes so far, of which the last few are the beginning of a block.
    len: u64,
    begun: [u8; BLOCK_LEN],
}

impl Sha256 {
    fn new() -> Sha256 {
        // Section 5.3.3.
        let state = [
            0x6a09_e667,
            0xbb67_ae85,
            0x3c6e_f372,
            0xa54f_f53a,
            0x510e_527f,
            0x9b05_688c,
            0x1f83_d9ab,
            0x5be0_cd19,
        ];
        Sha256 { state, len: 0, begun: [0; BLOCK_LEN] }
    }

    fn update(&mut self, bytes: &[u8]) {
        let (blocks, rest) = self.blocks(bytes);
        sha2::block_api::compress256(&mut self.state, blocks);
        self.keep(rest);
    }

    /// Ends the block that has begun, if there are enough bytes for it. Returns the blocks behind it, and what is left.
    fn blocks<'b>(&mut self, bytes: &'b [u8]) -> (&'b [[u8; BLOCK_LEN]], &'b [u8]) {
        let begun = self.begun_len();
        let wanted = if begun == 0 { 0 } else { (BLOCK_LEN - begun).min(bytes.len()) };
        let (first, rest) = bytes.split_at(wanted);
        self.keep(first);
        if begun > 0 && self.begun_len() == 0 {
            sha2::block_api::compress256(&mut self.state, &[self.begun]);
        }
        let (blocks, rest) = rest.as_chunks();
        self.len += (blocks.len() * BLOCK_LEN) as u64;
        (blocks, rest)
    }

    fn begun_len(&self) -> usize {
        (self.len % BLOCK_LEN as u64) as usize
    }

    /// Bytes that are no more than what is left of a block.
    fn keep(&mut self, bytes: &[u8]) {
        let begun = self.begun_len();
        self.begun[begun..begun + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len() as u64;
    }

    fn finish(mut self) -> [u8; 32] {
        // Section 5.1.1: a bit, zeros, and the length in bits at the end of a block.
        const LEN_AT: usize = BLOCK_LEN - 8;
        let (bits, begun) = (self.len * 8, self.begun_len());
        let mut padding = [0; 2 * BLOCK_LEN];
        padding[0] = 0x80;
        let len = if begun < LEN_AT { LEN_AT - begun } else { BLOCK_LEN + LEN_AT - begun };
        padding[len..len + 8].copy_from_slice(&bits.to_be_bytes());
        self.update(&padding[..len + 8]);
        let mut digest = [0; 32];
        for (bytes, word) in digest.as_chunks_mut().0.iter_mut().zip(self.state) {
            *bytes = word.to_be_bytes();
        }
        digest
    }
}

/// The same as updating one after the other.
fn update_two([first, second]: [&mut Sha256; 2], [of_first, of_second]: [&[u8]; 2]) {
    let (blocks, rest) = first.blocks(of_first);
    let (other_blocks, other_rest) = second.blocks(of_second);
    let done = compress_two([&mut first.state, &mut second.state], [blocks, other_blocks]);
    sha2::block_api::compress256(&mut first.state, &blocks[done..]);
    sha2::block_api::compress256(&mut second.state, &other_blocks[done..]);
    first.keep(rest);
    second.keep(other_rest);
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, sync_channel};

    use super::super::Buffer;
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut state = len as u64 + 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    fn digest(hash: Sha256) -> Digest {
        Digest::of_sha256(hash.finish())
    }

    #[test]
    fn digests_do_not_depend_on_how_bytes_come() {
        for len in [0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 1000, 70_000] {
            let bytes = noise(len);
            for part in [1, 63, 64, 65, 1000, 70_000] {
                let (mut alone, mut first, mut second) = (Sha256::new(), Sha256::new(), Sha256::new());
                let other = noise(len / 2 + 100);
                let mut others = other.chunks(part + 1);
                for bytes in bytes.chunks(part) {
                    alone.update(bytes);
                    update_two([&mut first, &mut second], [bytes, others.next().unwrap_or_default()]);
                }
                others.for_each(|bytes| second.update(bytes));
                assert_eq!(digest(alone), Digest::of(&bytes), "{len} bytes, {part} at a time");
                assert_eq!(digest(first), Digest::of(&bytes), "{len} bytes, {part} at a time, with others");
                assert_eq!(digest(second), Digest::of(&other), "those others");
            }
        }
    }

    fn chunk(bytes: &[u8]) -> Chunk {
        let mut buffer = Buffer { bytes: inflate::Buffer::default(), _room: None };
        buffer.bytes[..bytes.len()].copy_from_slice(bytes);
        Chunk { buffer, range: 0..bytes.len() }
    }

    fn begin(table: &Table) -> (Feed<'_>, Worker<'_>, Receiver<Chunk>) {
        let (to, from) = sync_channel(100);
        let (feed, worker) = table.begin(to);
        (feed, worker, from)
    }

    /// Chunks that wait are hashed by whoever hashes others, and their own thread finds them done.
    #[test]
    fn what_waits_is_taken_along() {
        let table = Table::new();
        let (feed, worker, read) = begin(&table);
        let (other_feed, other_worker, other_read) = begin(&table);
        for at in 0..10_u8 {
            feed.push(chunk(&[at; 1000]));
            other_feed.push(chunk(&[at; 2000]));
        }
        drop((feed, other_feed));
        let all = |len| Digest::of(&(0..10_u8).flat_map(|at| vec![at; len]).collect::<Vec<_>>());
        assert_eq!(worker.hash(), all(1000));
        assert_eq!(read.iter().count(), 10);
        let taken_along = other_read.try_iter().count();
        assert_eq!(taken_along, if has_instructions() { 10 } else { 0 });
        assert_eq!(other_worker.hash(), all(2000));
        assert_eq!(taken_along + other_read.iter().count(), 10);
    }

    /// A layer whose next chunk does not come stops no other.
    #[test]
    fn nobody_waits_for_another_layer() {
        let table = Table::new();
        let (_silent, _worker, _read) = begin(&table);
        let (feed, worker, read) = begin(&table);
        std::thread::scope(|scope| {
            let hashed = scope.spawn(|| worker.hash());
            feed.push(chunk(b"one"));
            assert_eq!(read.recv().unwrap().bytes(), b"one");
            feed.push(chunk(b"two"));
            drop(feed);
            assert_eq!(read.recv().unwrap().bytes(), b"two");
            assert_eq!(hashed.join().unwrap(), Digest::of(b"onetwo"));
        });
    }

    #[test]
    fn a_decoder_hears_that_nobody_reads() {
        let table = Table::new();
        let (feed, worker, read) = begin(&table);
        drop(read);
        assert!(feed.push(chunk(b"one")));
        std::thread::scope(|scope| scope.spawn(|| worker.hash()).join().map(drop).unwrap());
        assert!(!feed.push(chunk(b"two")));
    }
}
