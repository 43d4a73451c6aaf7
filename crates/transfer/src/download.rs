//! Downloads a layer into the content store and, at the same time, extracts it into its tree.
//!
//! ```text
//! BlobStream ──chunks──▶ writer ─▶ hash ─▶ right: commit
//!     │            └──▶ extraction           wrong: the bytes are dropped, and the next host is asked
//!     └ too slow, while others wait for the layer or the slot: continues behind them, from where it or they stopped
//! ```
//!
//! A host that breaks off and the one that takes over feed one [`BlobStream`], and so one extraction, which ends with
//! the stream: a layer that gave way to others holds neither inflater nor window while it waits, since any number may
//! wait.
//!
//! Partial bytes are kept for the next pull; wrong bytes are not. A layer that could not be extracted while it came,
//! because it was resumed in the middle, its window or its names exceeded the memory limits, or a stream processor
//! reads it, is extracted from the store.

use std::io::{self, Read};
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::Bytes;
use content::Expected;
use diff::Origin;
use metadata::{ContentWriter, Metadata};
use registry::{BlobStream, Endpoint, FetchAttempt, Remote, Sources};
use tokio::sync::{mpsc, oneshot};
use types::{Descriptor, Digest, Error, ErrorKind, Labels, Result};

use crate::flight::Boarded;
use crate::layer_slot::{LayerSlot, listening};
use crate::pull::Pull;
use crate::unpack::Trees;
use crate::window::{Permit, Window};
use crate::{Progress, blocking, tell, with_client};

/// Chunks in a queue at most, which bounds the overhead of small ones.
const CHUNKS_WAITING: usize = 256;
/// Bytes between two progress reports.
const TELL_EVERY: u64 = 256 * 1024;
/// Bytes from which a layer is worth a sync, so that a killed daemon can resume it.
const KEEP_FROM: u64 = 1 << 20;
/// For layers of at least `LONG_FROM` bytes, the program's pages are released once `BEGUN_AT` bytes have come:
/// starting the pull needed them, but they are not used again soon.
const LONG_FROM: u64 = 8 << 20;
const BEGUN_AT: u64 = 1 << 20;

/// Bytes, and the window space that they hold until the last user has dropped them.
#[derive(Clone)]
struct Chunk {
    bytes: Bytes,
    _permit: Arc<Permit>,
}

/// The download of one layer of a pull.
pub(crate) struct Download {
    pub(crate) pull: Pull,
    pub(crate) layer: Descriptor,
    /// The layer's index in the image, and the trees that it is extracted to.
    pub(crate) extract: Option<(usize, Trees)>,
}

/// The open ingest of a blob, and the right to fetch it.
struct OpenIngest {
    writer: ContentWriter,
    // Dropped after the writer, so that the next pull finds the ingest closed.
    _boarded: Boarded,
}

/// The progress of a download.
struct FetchState {
    slot: LayerSlot,
    /// Length of the ingest's valid prefix: where the next request begins.
    begun_at: u64,
    /// Offset at which the current hosts were asked first, over all attempts at them.
    first_at: u64,
    /// The endpoints that sent the bytes since then.
    givers: Vec<Arc<Endpoint>>,
}

impl FetchState {
    /// Starts over at `offset` with other hosts.
    fn begin_at(&mut self, offset: u64) {
        self.begun_at = offset;
        self.first_at = offset;
        self.givers.clear();
    }
}

impl Download {
    /// Fetches the layer from the first host whose bytes are right, unless another pull has fetched it.
    pub(crate) async fn run(self) -> Result<()> {
        let boarded = self.board().await;
        // Only now: the holder of a slot must not wait for other pulls.
        let slot = self.pull.request.slots.layers.take().await;
        let Some(mut begun) = self.begin(boarded).await? else { return self.extract_from_store().await };
        let mut sources = Sources::new(self.pull.request.remote.clone());
        let mut state = FetchState { slot, begun_at: 0, first_at: 0, givers: Vec::new() };
        state.begin_at(begun.writer.offset());
        while let Some(remote) = sources.next_remote() {
            let (fetched, outcome) = loop {
                let attempt = self.attempt(&remote, begun, &mut state).await;
                match (attempt.fetched, attempt.stored) {
                    (Ok(Fetched::GaveWay), Ok(Outcome::Short { begun: open, .. })) => {
                        state.begun_at = open.writer.offset();
                        let Some(open) = self.give_way(open, &mut state).await? else {
                            return self.extract_from_store().await;
                        };
                        begun = open;
                    }
                    (fetched, Ok(outcome)) => break (fetched, outcome),
                    // An error of the stream causes one of the store, and not the other way round.
                    (fetched, Err(error)) => return Err(fetched.err().unwrap_or(error)),
                }
            };
            match outcome {
                Outcome::Committed { is_extracted } => {
                    fetched?;
                    if is_extracted {
                        return Ok(());
                    }
                    if self.is_processed() {
                        state.slot.leave();
                    }
                    return self.extract_from_store().await;
                }
                Outcome::Short { begun: open, missing } => {
                    let short = || Error::unavailable(format!("{missing} bytes are missing"));
                    sources.failed(fetched.err().unwrap_or_else(short));
                    begun = open;
                    state.begin_at(0);
                }
                Outcome::Wrong { begun: open, found } => {
                    let (givers, begun_at) = (&state.givers, state.first_at);
                    sources.wrong(&FetchAttempt { remote: &remote, givers, begun_at }, &found);
                    begun = open;
                    state.begin_at(0);
                    if matches!(fetched, Ok(Fetched::GaveWay)) {
                        // All bytes had come, but the end of the body had not.
                        let Some(open) = self.give_way(begun, &mut state).await? else {
                            return self.extract_from_store().await;
                        };
                        begun = open;
                    }
                }
            }
        }
        Err(sources.into_error())
    }

    async fn board(&self) -> Boarded {
        let request = &self.pull.request;
        request.flights.board(&self.layer.digest, request.reference.host()).await
    }

    /// Opens the ingest; `None` if the store has the blob.
    async fn begin(&self, boarded: Boarded) -> Result<Option<OpenIngest>> {
        let (pull, layer) = (self.pull.clone(), self.layer.clone());
        blocking(move || match pull.begin(&layer) {
            Ok(writer) => Ok(Some(OpenIngest { writer, _boarded: boarded })),
            Err(error) if error.is(ErrorKind::AlreadyExists) => {
                pull.source().note(&pull.metadata, &pull.caller, &layer.digest)?;
                Ok(None)
            }
            Err(error) => Err(error),
        })
        .await
    }

    /// Lets pulls that wait for the layer or for a slot go first. `None` if the store has the blob afterwards.
    async fn give_way(&self, begun: OpenIngest, state: &mut FetchState) -> Result<Option<OpenIngest>> {
        state.slot.leave();
        if !self.should_yield(state.slot.is_stalled()) {
            state.slot.give_way().await;
            return Ok(Some(begun));
        }
        drop(begun);
        let boarded = self.board().await;
        state.slot.give_way().await;
        let begun = self.begin(boarded).await?;
        if let Some(begun) = &begun {
            state.begin_at(begun.writer.offset());
        }
        Ok(begun)
    }

    /// Whether other pulls that may be faster wait for the layer.
    fn should_yield(&self, is_stalled: bool) -> bool {
        let request = &self.pull.request;
        request.flights.should_yield(&self.layer.digest, request.reference.host(), is_stalled)
    }

    async fn extract_from_store(&self) -> Result<()> {
        let digest = self.layer.digest.clone();
        let Some((at, trees)) = self.extract.clone() else { return Ok(()) };
        tell(self.pull.report.as_ref(), Progress::Extracting { digest: digest.clone() });
        let extract = move || trees.extract_stored(at, &digest).map(drop);
        // Stream processors set the pace.
        if self.is_processed() { with_client(extract).await } else { blocking(extract).await }
    }

    fn is_processed(&self) -> bool {
        self.extract.as_ref().is_some_and(|(at, trees)| trees.is_processed(*at))
    }

    /// Fetches the rest of the blob from some hosts.
    async fn attempt(&self, remote: &Remote, begun: OpenIngest, state: &mut FetchState) -> Attempt {
        // Before the storing thread starts, which takes memory.
        let (begun, asked) = match self.ask(remote, begun, state).await {
            Ok(Some(asked)) => asked,
            ended => {
                let stored = ended.map(|_| Outcome::Committed { is_extracted: false });
                return Attempt { fetched: Ok(Fetched::All), stored };
            }
        };
        let begun_at = state.begun_at;
        let (chunks, receive) = mpsc::channel::<Chunk>(CHUNKS_WAITING);
        let (is_last, was_last) = oneshot::channel();
        let storing = Storing {
            metadata: self.pull.metadata.clone(),
            digest: self.layer.digest.clone(),
            expected: Expected::new(self.layer.digest.clone(), self.layer.size),
            labels: self.pull.source().label(),
            begun_at,
            extract: self.extract.clone().filter(|(at, trees)| begun_at == 0 && !trees.is_processed(*at)),
            is_last,
        };
        // A task of its own, so that it runs while this one fetches. It ends when the channel closes, and with it the
        // flight.
        let stored = tokio::spawn(blocking(move || storing.run(begun, receive)));
        let fetched = self.fetch(asked, chunks, state).await;
        if self.extract.is_some() {
            tell(self.pull.report.as_ref(), Progress::Extracting { digest: self.layer.digest.clone() });
        }
        let (stored, merged) = tokio::join!(stored, self.merge_after(was_last, &mut state.slot));
        let stored =
            stored.unwrap_or_else(|panic| Err(Error::internal("storing broke down").with_source(panic)));
        Attempt { fetched, stored: merged.and(stored) }
    }

    /// Merges the layers of the image if this was the last of them, while its blob is committed. That has no place among
    /// the layers in flight, nor on the blob's flight: it may wait for the merges of other images.
    async fn merge_after(&self, was_last: oneshot::Receiver<()>, slot: &mut LayerSlot) -> Result<()> {
        match (was_last.await, self.extract.clone()) {
            (Ok(()), Some((_, trees))) => {
                slot.leave();
                blocking(move || {
                    trees.merge();
                    Ok(())
                })
                .await
            }
            _ => Ok(()),
        }
    }

    /// Requests the rest of the blob. No stream if there is nothing left to fetch; `None` if another pull fetched the
    /// blob.
    ///
    /// A layer that gives way meanwhile keeps waiting for the same answer, so that a host that asked for a delay is
    /// not asked again too early.
    async fn ask(
        &self,
        remote: &Remote,
        mut begun: OpenIngest,
        state: &mut FetchState,
    ) -> Result<Option<Asked>> {
        loop {
            let offset = state.begun_at;
            if offset >= self.layer.size {
                // Another namespace has the blob, or a pull was killed before its commit.
                return Ok(Some((begun, Ok(None))));
            }
            let mut asked = pin!(remote.blob(&self.layer, offset));
            loop {
                let should_yield = |is_stalled| self.should_yield(is_stalled);
                let mut came = state.slot.wait_for(asked.as_mut(), should_yield).await;
                if came.is_none() {
                    let gave_way;
                    (gave_way, came) = listening(asked.as_mut(), self.give_way(begun, state)).await;
                    let Some(open) = gave_way? else { return Ok(None) };
                    begun = open;
                }
                if state.begun_at != offset {
                    // Other pulls added bytes meanwhile.
                    break;
                }
                if let Some(stream) = came {
                    return Ok(Some((begun, stream.map(Some))));
                }
            }
        }
    }

    /// Sends the bytes of a stream into a channel, and closes it.
    async fn fetch(
        &self,
        asked: Result<Option<BlobStream>>,
        chunks: mpsc::Sender<Chunk>,
        state: &mut FetchState,
    ) -> Result<Fetched> {
        let Some(mut stream) = asked? else { return Ok(Fetched::All) };
        let fetched = self.pump(&mut stream, chunks, state).await;
        for giver in stream.givers() {
            if !state.givers.iter().any(|known| Arc::ptr_eq(known, giver)) {
                state.givers.push(giver.clone());
            }
        }
        fetched
    }

    async fn pump(
        &self,
        stream: &mut BlobStream,
        chunks: mpsc::Sender<Chunk>,
        state: &mut FetchState,
    ) -> Result<Fetched> {
        let (layer, report) = (&self.layer, self.pull.report.as_ref());
        let (mut current, mut told) = (state.begun_at, state.begun_at);
        let window = Window::new();
        loop {
            let should_yield = |is_stalled| self.should_yield(is_stalled);
            let bytes = match state.slot.wait_for(stream.next(), should_yield).await {
                Some(next) => next?,
                None => return Ok(Fetched::GaveWay),
            };
            let Some(bytes) = bytes else { return Ok(Fetched::All) };
            state.slot.brought(bytes.len());
            current += bytes.len() as u64;
            if current - told >= TELL_EVERY || current == layer.size {
                told = current;
                tell(report, Progress::Downloading { digest: layer.digest.clone(), current });
            }
            let permit = window.reserve(bytes.len()).await;
            if chunks.send(Chunk { bytes, _permit: Arc::new(permit) }).await.is_err() {
                return Ok(Fetched::All); // the storing side says why
            }
        }
    }
}

/// An open ingest, and the stream for the rest of it.
type Asked = (OpenIngest, Result<Option<BlobStream>>);

/// The results of fetching from some hosts, and of storing their bytes.
struct Attempt {
    fetched: Result<Fetched>,
    stored: Result<Outcome>,
}

/// Why fetching ended without an error.
enum Fetched {
    All,
    /// Other pulls wait for the layer, or for the slot.
    GaveWay,
}

/// The result of storing.
enum Outcome {
    Committed {
        /// Whether its tree was extracted along the way.
        is_extracted: bool,
    },
    Short {
        begun: OpenIngest,
        /// How many bytes are missing.
        missing: u64,
    },
    /// All bytes came, but their digest is wrong. They have been dropped.
    Wrong { begun: OpenIngest, found: Digest },
}

/// Writes chunks as they come, and passes them to the extraction beside it.
struct Storing {
    metadata: Metadata,
    digest: Digest,
    expected: Expected,
    labels: Labels,
    /// Length of the ingest's valid prefix.
    begun_at: u64,
    extract: Option<(usize, Trees)>,
    /// Told once the layer is extracted and its digest is right, if it is the last layer of the image.
    is_last: oneshot::Sender<()>,
}

impl Storing {
    fn run(self, mut begun: OpenIngest, mut receive: mpsc::Receiver<Chunk>) -> Result<Outcome> {
        let digest = &self.digest.clone();
        std::thread::scope(|scope| {
            let (send, chunks) = sync_channel::<Chunk>(CHUNKS_WAITING);
            let extract = self.extract.as_ref();
            let extraction = extract.map(|(at, trees)| {
                scope
                    .spawn(move || trees.extract(*at, digest, Chunks::new(chunks), Origin::Passing).map(drop))
            });
            let mut tee = extraction.is_some().then_some(send);
            let writer = &mut begun.writer;
            let [is_worth_keeping, is_long] =
                [KEEP_FROM, LONG_FROM].map(|from| self.expected.size.is_some_and(|size| size >= from));
            let mut write = || -> Result<()> {
                if self.begun_at < writer.offset() {
                    writer.truncate()?;
                }
                if is_worth_keeping {
                    // The ingest's record is relaxed: after a kill the daemon would not find the bytes without this.
                    self.metadata.sync()?;
                }
                let mut is_begun = false;
                while let Some(chunk) = receive.blocking_recv() {
                    writer.write(&chunk.bytes)?;
                    forward(&mut tee, chunk);
                    if is_long && !is_begun && writer.offset() >= BEGUN_AT {
                        is_begun = true;
                        release_program();
                    }
                }
                Ok(())
            };
            let written = write();
            drop(tee);
            let extracted = extraction.map_or(Ok(()), |thread| {
                thread.join().unwrap_or_else(|_| Err(Error::internal("the extraction broke down")))
            });
            written?;
            let size = self.expected.size.unwrap_or_default();
            let found = writer.digest();
            let missing = size.saturating_sub(writer.offset());
            if missing > 0 || self.expected.check(size, &found).is_err() {
                if let (Some((at, trees)), Ok(())) = (extract, extracted) {
                    trees.discard(*at)?;
                }
                return match missing {
                    1.. => Ok(Outcome::Short { begun, missing }),
                    0 => writer.truncate().map(|()| Outcome::Wrong { begun, found }),
                };
            }
            if extract.is_some_and(|(at, trees)| extracted.is_ok() && trees.is_last(*at)) {
                // A pull that was cancelled does not wait for it.
                let _ = self.is_last.send(());
            }
            // The blob is committed even if it could not be extracted: only its own digest matters.
            let unpacked = extract.filter(|_| extracted.is_ok()).map(|(at, trees)| trees.label_of_blob(*at));
            let labels = self.labels.into_iter().chain(unpacked.unwrap_or_default()).collect();
            match begun.writer.commit(self.expected, labels) {
                Err(error) if !error.is(ErrorKind::AlreadyExists) => return Err(error),
                _ => {}
            }
            if is_worth_keeping {
                // The blob's record is relaxed too, and a starting daemon removes files without a record.
                self.metadata.sync()?;
            }
            match extracted {
                Err(error) if !error.is(ErrorKind::Unavailable) => Err(error),
                extracted => Ok(Outcome::Committed { is_extracted: extract.is_some() && extracted.is_ok() }),
            }
        })
    }
}

/// Releases the program's pages: by now the pull has touched most of them, and it goes on with few.
fn release_program() {
    // A failure only costs memory.
    if let Err(error) = linux::memory::release_program() {
        tracing::debug!("a long layer: {}", error.chain());
    }
}

/// Stops forwarding once the extraction has failed; its error is collected at the end.
fn forward(tee: &mut Option<SyncSender<Chunk>>, chunk: Chunk) {
    if let Some(send) = tee
        && send.send(chunk).is_err()
    {
        *tee = None;
    }
}

/// The receiving end of the channel, as a blocking reader.
struct Chunks {
    receive: Receiver<Chunk>,
    current: Option<Chunk>,
}

impl Chunks {
    fn new(receive: Receiver<Chunk>) -> Chunks {
        Chunks { receive, current: None }
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // An empty chunk would be read as the end.
        let waiting = self.current.take().into_iter();
        let Some(mut chunk) = waiting.chain(self.receive.iter()).find(|chunk| !chunk.bytes.is_empty()) else {
            return Ok(0);
        };
        let len = buffer.len().min(chunk.bytes.len());
        buffer[..len].copy_from_slice(&chunk.bytes.split_to(len));
        self.current = Some(chunk);
        Ok(len)
    }
}
