//! A layer on its way from hosts into the store and, beside it, into its tree.
//!
//! ```text
//! BlobStream ──chunks──▶ writer ─▶ hash ─▶ right: commit
//!     │            └──▶ extraction           wrong: what came is dropped, and the next host is asked
//!     └ brings next to nothing, and others wait for the layer or the slot: goes on behind them where it, or they, stopped
//! ```
//!
//! Hosts that break off, and those that take over, are one [`BlobStream`], and so one extraction. It ends with the
//! stream: a layer that gave way to others holds no inflater and no window while it waits, since any number may wait.
//!
//! Bytes that broke off stay for the next pull; bytes that are wrong stay for nobody. What could not be extracted on
//! the way, because it was taken up in the middle, its window or its names had no room, or a program reads it, is extracted
//! from the store.

use std::io::{self, Read};
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::Bytes;
use content::Expected;
use diff::Origin;
use metadata::{ContentWriter, Metadata};
use registry::{BlobStream, Brought, Endpoint, Remote, Sources};
use tokio::sync::mpsc;
use types::{Descriptor, Digest, Error, ErrorKind, Labels, Result};

use crate::flight::Boarded;
use crate::layer_slot::{LayerSlot, listening};
use crate::pull::Pull;
use crate::unpack::Trees;
use crate::window::{Permit, Window};
use crate::{Progress, blocking, tell, with_client};

/// Chunks of a layer that wait, which bounds what small ones cost.
const CHUNKS_WAITING: usize = 256;
/// Bytes between two reports of progress.
const TELL_EVERY: u64 = 256 * 1024;
/// Bytes of a layer that is worth a write to disk, so that what there is of it is found again.
const KEEP_FROM: u64 = 1 << 20;
/// Bytes of a layer that is long enough on its way for what began it, which is not used again soon, to be let go of; and how
/// many of them have come by then.
const LONG_FROM: u64 = 8 << 20;
const BEGUN_AT: u64 = 1 << 20;

/// Bytes, and the room that they take in the window until the last user has dropped them.
#[derive(Clone)]
struct Chunk {
    bytes: Bytes,
    _permit: Arc<Permit>,
}

/// What is fetched, and what is made of it.
pub(crate) struct Download {
    pub(crate) pull: Pull,
    pub(crate) layer: Descriptor,
    /// Which layer of the image it is, and where its tree is made.
    pub(crate) extract: Option<(usize, Trees)>,
}

/// The ingest of a blob, and the right to fetch it.
struct Begun {
    writer: ContentWriter,
    // Let go after the writer: the next pull finds the ingest closed.
    _boarded: Boarded,
}

/// How far a layer is.
struct Course {
    slot: LayerSlot,
    /// Bytes of the ingest that count.
    begun_at: u64,
    /// Those that were there before the hosts at hand were asked, in all attempts at them.
    first_at: u64,
    /// Whose bytes came since.
    givers: Vec<Arc<Endpoint>>,
}

impl Course {
    /// What comes from now on comes from others.
    fn begin_at(&mut self, offset: u64) {
        self.begun_at = offset;
        self.first_at = offset;
        self.givers.clear();
    }
}

impl Download {
    /// Fetches the layer from the first of the hosts whose bytes are right, unless somebody else did.
    pub(crate) async fn run(self) -> Result<()> {
        let boarded = self.board().await;
        // Not before: whoever has a slot waits for nobody.
        let slot = self.pull.request.slots.layers.take().await;
        let Some(mut begun) = self.begin(boarded).await? else { return self.extract_from_store().await };
        let mut sources = Sources::new(self.pull.request.remote.clone());
        let mut course = Course { slot, begun_at: 0, first_at: 0, givers: Vec::new() };
        course.begin_at(begun.writer.offset());
        while let Some(remote) = sources.next_remote() {
            let (fetched, outcome) = loop {
                let attempt = self.attempt(&remote, begun, &mut course).await;
                match (attempt.fetched, attempt.stored) {
                    (Ok(Fetched::GaveWay), Ok(Outcome::Short { begun: open, .. })) => {
                        course.begun_at = open.writer.offset();
                        let Some(open) = self.give_way(open, &mut course).await? else {
                            return self.extract_from_store().await;
                        };
                        begun = open;
                    }
                    (fetched, Ok(outcome)) => break (fetched, outcome),
                    // A stream that broke is why nothing could be stored, and not the other way round.
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
                        course.slot.leave();
                    }
                    return self.extract_from_store().await;
                }
                Outcome::Short { begun: open, missing } => {
                    let short = || Error::unavailable(format!("{missing} bytes are missing"));
                    sources.failed(fetched.err().unwrap_or_else(short));
                    begun = open;
                    course.begin_at(0);
                }
                Outcome::Wrong { begun: open, found } => {
                    let (givers, begun_at) = (&course.givers, course.first_at);
                    sources.wrong(&Brought { remote: &remote, givers, begun_at }, &found);
                    begun = open;
                    course.begin_at(0);
                    if matches!(fetched, Ok(Fetched::GaveWay)) {
                        // All had come, only the end of the body had not.
                        let Some(open) = self.give_way(begun, &mut course).await? else {
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

    /// Opens the ingest; none if the blob is there.
    async fn begin(&self, boarded: Boarded) -> Result<Option<Begun>> {
        let (pull, layer) = (self.pull.clone(), self.layer.clone());
        blocking(move || match pull.begin(&layer) {
            Ok(writer) => Ok(Some(Begun { writer, _boarded: boarded })),
            Err(error) if error.is(ErrorKind::AlreadyExists) => {
                pull.source().note(&pull.metadata, &pull.caller, &layer.digest)?;
                Ok(None)
            }
            Err(error) => Err(error),
        })
        .await
    }

    /// Lets those go first who wait for the layer or for a slot. None if the blob is there afterwards.
    async fn give_way(&self, begun: Begun, course: &mut Course) -> Result<Option<Begun>> {
        course.slot.leave();
        if !self.is_called(course.slot.is_stalled()) {
            course.slot.give_way().await;
            return Ok(Some(begun));
        }
        drop(begun);
        let boarded = self.board().await;
        course.slot.give_way().await;
        let begun = self.begin(boarded).await?;
        if let Some(begun) = &begun {
            course.begin_at(begun.writer.offset());
        }
        Ok(begun)
    }

    /// Whether others wait for the layer, who may do better.
    fn is_called(&self, is_stalled: bool) -> bool {
        let request = &self.pull.request;
        request.flights.calls(&self.layer.digest, request.reference.host(), is_stalled)
    }

    async fn extract_from_store(&self) -> Result<()> {
        let digest = self.layer.digest.clone();
        let Some((at, trees)) = self.extract.clone() else { return Ok(()) };
        tell(self.pull.report.as_ref(), Progress::Extracting { digest: digest.clone() });
        let extract = move || trees.extract_stored(at, &digest).map(drop);
        // Programs decide how fast that goes.
        if self.is_processed() { with_client(extract).await } else { blocking(extract).await }
    }

    fn is_processed(&self) -> bool {
        self.extract.as_ref().is_some_and(|(at, trees)| trees.is_processed(*at))
    }

    /// Asks some hosts for what is missing of the blob.
    async fn attempt(&self, remote: &Remote, begun: Begun, course: &mut Course) -> Attempt {
        // Before there is anybody who stores, which takes memory.
        let (begun, asked) = match self.ask(remote, begun, course).await {
            Ok(Some(asked)) => asked,
            ended => {
                let stored = ended.map(|_| Outcome::Committed { is_extracted: false });
                return Attempt { fetched: Ok(Fetched::All), stored };
            }
        };
        let begun_at = course.begun_at;
        let (chunks, receive) = mpsc::channel::<Chunk>(CHUNKS_WAITING);
        let storing = Storing {
            metadata: self.pull.metadata.clone(),
            digest: self.layer.digest.clone(),
            expected: Expected::new(self.layer.digest.clone(), self.layer.size),
            labels: self.pull.source().label(),
            begun_at,
            extract: self.extract.clone().filter(|(at, trees)| begun_at == 0 && !trees.is_processed(*at)),
        };
        // It must run while we fetch, so it is a task and not a future that waits for us. It ends when the
        // channel does, and the flight with it.
        let stored = tokio::spawn(blocking(move || storing.run(begun, receive)));
        let fetched = self.bring(asked, chunks, course).await;
        if self.extract.is_some() {
            tell(self.pull.report.as_ref(), Progress::Extracting { digest: self.layer.digest.clone() });
        }
        let stored = stored
            .await
            .unwrap_or_else(|panic| Err(Error::internal("storing broke down").with_source(panic)));
        Attempt { fetched, stored }
    }

    /// Asks for what is missing of the blob. No stream if there is nothing to ask for, nothing at all if somebody
    /// else brought it.
    ///
    /// Who gives way meanwhile goes on waiting for the same answer: a host that wants to be asked later is not asked
    /// again before that.
    async fn ask(&self, remote: &Remote, mut begun: Begun, course: &mut Course) -> Result<Option<Asked>> {
        loop {
            let offset = course.begun_at;
            if offset >= self.layer.size {
                // Another namespace has it, or a pull was killed before its commit.
                return Ok(Some((begun, Ok(None))));
            }
            let mut asked = pin!(remote.blob(&self.layer, offset));
            loop {
                let is_called = |is_stalled| self.is_called(is_stalled);
                let mut came = course.slot.wait_for(asked.as_mut(), is_called).await;
                if came.is_none() {
                    let gave_way;
                    (gave_way, came) = listening(asked.as_mut(), self.give_way(begun, course)).await;
                    let Some(open) = gave_way? else { return Ok(None) };
                    begun = open;
                }
                if course.begun_at != offset {
                    // Others brought something meanwhile.
                    break;
                }
                if let Some(stream) = came {
                    return Ok(Some((begun, stream.map(Some))));
                }
            }
        }
    }

    /// Brings the bytes of a stream into a channel, which it closes.
    async fn bring(
        &self,
        asked: Result<Option<BlobStream>>,
        chunks: mpsc::Sender<Chunk>,
        course: &mut Course,
    ) -> Result<Fetched> {
        let Some(mut stream) = asked? else { return Ok(Fetched::All) };
        let fetched = self.bring_from(&mut stream, chunks, course).await;
        for giver in stream.givers() {
            if !course.givers.iter().any(|known| Arc::ptr_eq(known, giver)) {
                course.givers.push(giver.clone());
            }
        }
        fetched
    }

    async fn bring_from(
        &self,
        stream: &mut BlobStream,
        chunks: mpsc::Sender<Chunk>,
        course: &mut Course,
    ) -> Result<Fetched> {
        let (layer, report) = (&self.layer, self.pull.report.as_ref());
        let (mut current, mut told) = (course.begun_at, course.begun_at);
        let window = Window::new();
        loop {
            let is_called = |is_stalled| self.is_called(is_stalled);
            let bytes = match course.slot.wait_for(stream.next(), is_called).await {
                Some(next) => next?,
                None => return Ok(Fetched::GaveWay),
            };
            let Some(bytes) = bytes else { return Ok(Fetched::All) };
            course.slot.brought(bytes.len());
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

/// An ingest, and what comes for it.
type Asked = (Begun, Result<Option<BlobStream>>);

/// How it went to ask some hosts.
struct Attempt {
    fetched: Result<Fetched>,
    stored: Result<Outcome>,
}

/// Why nothing more comes.
enum Fetched {
    All,
    /// Others wait for the layer, or for the slot.
    GaveWay,
}

/// What became of the bytes that came.
enum Outcome {
    Committed {
        /// Whether its tree was made on the way.
        is_extracted: bool,
    },
    Short {
        begun: Begun,
        /// Bytes.
        missing: u64,
    },
    /// All came, and have another digest. They are gone.
    Wrong { begun: Begun, found: Digest },
}

/// Writes chunks as they come, and hands them to the extraction beside it.
struct Storing {
    metadata: Metadata,
    digest: Digest,
    expected: Expected,
    labels: Labels,
    /// Bytes of the ingest that count.
    begun_at: u64,
    extract: Option<(usize, Trees)>,
}

impl Storing {
    fn run(self, mut begun: Begun, mut receive: mpsc::Receiver<Chunk>) -> Result<Outcome> {
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
                    // The ingest's record is relaxed: a daemon that was killed would not find the bytes.
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
            if let Some((_, trees)) = extract.filter(|(at, trees)| extracted.is_ok() && trees.is_last(*at)) {
                // While the disk is waited for.
                scope.spawn(move || trees.merge());
            }
            // The blob is committed even if it could not be extracted: its own digest is right or it is not.
            let unpacked = extract.filter(|_| extracted.is_ok()).map(|(at, trees)| trees.label_of_blob(*at));
            let labels = self.labels.into_iter().chain(unpacked.unwrap_or_default()).collect();
            match begun.writer.commit(self.expected, labels) {
                Err(error) if !error.is(ErrorKind::AlreadyExists) => return Err(error),
                _ => {}
            }
            if is_worth_keeping {
                // So is the blob's, and files without a record are swept when a daemon starts.
                self.metadata.sync()?;
            }
            match extracted {
                Err(error) if !error.is(ErrorKind::Unavailable) => Err(error),
                extracted => Ok(Outcome::Committed { is_extracted: extract.is_some() && extracted.is_ok() }),
            }
        })
    }
}

/// Lets go of the program's pages: a pull has touched most of it by now, and goes on with little of it.
fn release_program() {
    // It costs memory if this fails, and nothing else.
    if let Err(error) = linux::memory::release_program() {
        tracing::debug!("a long layer: {}", error.chain());
    }
}

/// An extraction that failed takes no more; its error is asked for at the end.
fn forward(tee: &mut Option<SyncSender<Chunk>>, chunk: Chunk) {
    if let Some(send) = tee
        && send.send(chunk).is_err()
    {
        *tee = None;
    }
}

/// The receiving end as a reader.
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
        // No bytes would mean the end.
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
