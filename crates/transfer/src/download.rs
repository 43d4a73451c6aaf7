//! A layer on its way from hosts into the store and, beside it, into its tree.
//!
//! ```text
//! BlobStream ──chunks──▶ writer ─▶ hash ─▶ right: commit
//!     │            └──▶ extraction           wrong: what came is dropped, and the next host is asked
//!     └ brings next to nothing, and others wait for the place: goes on behind them where it stopped
//! ```
//!
//! Bytes that broke off stay for the next pull; bytes that are wrong stay for nobody. What could not be extracted on
//! the way, because it was taken up in the middle or its window had no room, is extracted from the store.

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
use crate::place::Place;
use crate::unpack::Trees;
use crate::window::{Room, Window};
use crate::{Progress, Report, blocking, tell};

/// Chunks of a layer that wait, which bounds what small ones cost.
const CHUNKS_WAITING: usize = 256;
/// Bytes between two reports of progress.
const TELL_EVERY: u64 = 256 * 1024;
/// Bytes of a layer that is worth a write to disk, so that what there is of it is found again.
const KEEP_FROM: u64 = 1 << 20;

/// Bytes, and the room that they take in the window until the last user has dropped them.
#[derive(Clone)]
struct Chunk {
    bytes: Bytes,
    _room: Arc<Room>,
}

/// What is fetched, and what is made of it.
pub(crate) struct Download {
    pub(crate) metadata: Metadata,
    pub(crate) layer: Descriptor,
    pub(crate) labels: Labels,
    /// Which layer of the image it is, and where its tree is made.
    pub(crate) extract: Option<(usize, Trees)>,
    pub(crate) report: Option<Report>,
}

/// The ingest of a blob, and the right to fetch it.
pub(crate) struct Begun {
    writer: ContentWriter,
    // Let go after the writer: the next pull finds the ingest closed.
    _boarded: Boarded,
}

impl Begun {
    pub(crate) fn new(boarded: Boarded, writer: ContentWriter) -> Begun {
        Begun { writer, _boarded: boarded }
    }
}

impl Download {
    /// Fetches the layer from the first of the hosts whose bytes are right.
    pub(crate) async fn run(self, remote: &Remote, mut begun: Begun, mut place: Place) -> Result<()> {
        let mut sources = Sources::new(remote.clone());
        let mut begun_at = begun.writer.offset();
        while let Some(remote) = sources.next_remote() {
            // Of all attempts at these hosts: a layer that gave way goes on with them.
            let (first_at, mut givers) = (begun_at, Vec::new());
            let (fetched, outcome) = loop {
                let attempt = self.attempt(&remote, begun, begun_at, &mut place).await;
                for giver in attempt.givers {
                    if !givers.iter().any(|known| Arc::ptr_eq(known, &giver)) {
                        givers.push(giver);
                    }
                }
                match (attempt.fetched, attempt.stored) {
                    (Ok(Fetched::GaveWay), Ok(Outcome::Short { begun: open, .. })) => {
                        place = place.give_way().await;
                        begun_at = open.writer.offset();
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
                    return if is_extracted { Ok(()) } else { self.extract_from_store().await };
                }
                Outcome::Short { begun: open, missing } => {
                    let short = || Error::unavailable(format!("{missing} bytes are missing"));
                    sources.failed(fetched.err().unwrap_or_else(short));
                    begun = open;
                }
                Outcome::Wrong { begun: open, found } => {
                    if matches!(fetched, Ok(Fetched::GaveWay)) {
                        // All had come, only the end of the body had not.
                        place = place.give_way().await;
                    }
                    sources.wrong(&Brought { remote: &remote, givers: &givers, begun_at: first_at }, &found);
                    begun = open;
                }
            }
            begun_at = 0;
        }
        Err(sources.into_error())
    }

    async fn extract_from_store(&self) -> Result<()> {
        let Some((at, trees)) = self.extract.clone() else { return Ok(()) };
        let digest = self.layer.digest.clone();
        blocking(move || trees.extract_stored(at, &digest)).await
    }

    /// Asks some hosts for the blob from an offset on.
    async fn attempt(&self, remote: &Remote, begun: Begun, begun_at: u64, place: &mut Place) -> Attempt {
        // Before there is anybody who stores, which takes memory.
        let asked = self.ask(remote, begun_at, place).await;
        let (chunks, receive) = mpsc::channel::<Chunk>(CHUNKS_WAITING);
        let storing = Storing {
            metadata: self.metadata.clone(),
            digest: self.layer.digest.clone(),
            expected: Expected::new(self.layer.digest.clone(), self.layer.size),
            labels: self.labels.clone(),
            begun_at,
            extract: self.extract.clone().filter(|_| begun_at == 0),
        };
        // It must run while we fetch, so it is a task and not a future that waits for us. It ends when the
        // channel does, and the flight with it.
        let stored = tokio::spawn(blocking(move || storing.run(begun, receive)));
        let (givers, fetched) = self.bring(asked, begun_at, chunks, place).await;
        tell(self.report.as_ref(), Progress::Extracting { digest: self.layer.digest.clone() });
        let stored = stored
            .await
            .unwrap_or_else(|panic| Err(Error::internal("storing broke down").with_source(panic)));
        Attempt { givers, fetched, stored }
    }

    /// Asks for the blob from an offset on; none if there is nothing to ask for.
    ///
    /// Who gives way meanwhile goes on waiting for the same answer: a host that wants to be asked later is not asked
    /// again before that.
    async fn ask(&self, remote: &Remote, begun_at: u64, place: &mut Place) -> Result<Option<BlobStream>> {
        if begun_at >= self.layer.size {
            // Another namespace has it, or a pull was killed before its commit.
            return Ok(None);
        }
        let mut asked = pin!(remote.blob(&self.layer, begun_at));
        loop {
            match place.wait_for(asked.as_mut()).await {
                Some(stream) => return stream.map(Some),
                None => {
                    if let Some(stream) = place.let_others_go_first(asked.as_mut()).await {
                        return stream.map(Some);
                    }
                }
            }
        }
    }

    /// Brings the blob's bytes from an offset on into a channel, which it closes, and says who gave them.
    async fn bring(
        &self,
        asked: Result<Option<BlobStream>>,
        begun_at: u64,
        chunks: mpsc::Sender<Chunk>,
        place: &mut Place,
    ) -> (Vec<Arc<Endpoint>>, Result<Fetched>) {
        let mut stream = match asked {
            Ok(Some(stream)) => stream,
            Ok(None) => return (Vec::new(), Ok(Fetched::All)),
            Err(error) => return (Vec::new(), Err(error)),
        };
        let fetched = self.bring_from(&mut stream, begun_at, chunks, place).await;
        (stream.givers().to_vec(), fetched)
    }

    async fn bring_from(
        &self,
        stream: &mut BlobStream,
        begun_at: u64,
        chunks: mpsc::Sender<Chunk>,
        place: &mut Place,
    ) -> Result<Fetched> {
        let layer = &self.layer;
        let (mut current, mut told) = (begun_at, begun_at);
        let window = Window::new();
        loop {
            let bytes = match place.wait_for(stream.next()).await {
                Some(next) => next?,
                None => return Ok(Fetched::GaveWay),
            };
            let Some(bytes) = bytes else { return Ok(Fetched::All) };
            place.brought(bytes.len());
            current += bytes.len() as u64;
            if current - told >= TELL_EVERY || current == layer.size {
                told = current;
                tell(self.report.as_ref(), Progress::Downloading { digest: layer.digest.clone(), current });
            }
            let room = window.room(bytes.len()).await;
            if chunks.send(Chunk { bytes, _room: Arc::new(room) }).await.is_err() {
                return Ok(Fetched::All); // the storing side says why
            }
        }
    }
}

/// How it went to ask some hosts.
struct Attempt {
    /// Whose bytes came.
    givers: Vec<Arc<Endpoint>>,
    fetched: Result<Fetched>,
    stored: Result<Outcome>,
}

/// Why nothing more comes.
enum Fetched {
    All,
    /// Others wait for the place.
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
                scope.spawn(move || trees.extract(*at, digest, Chunks::new(chunks), Origin::Passing))
            });
            let mut tee = extraction.is_some().then_some(send);
            let writer = &mut begun.writer;
            let mut write = || -> Result<()> {
                if self.begun_at < writer.offset() {
                    writer.truncate()?;
                }
                if self.expected.size.is_some_and(|size| size >= KEEP_FROM) {
                    // The ingest's record is relaxed: a daemon that was killed would not find the bytes.
                    self.metadata.sync()?;
                }
                while let Some(chunk) = receive.blocking_recv() {
                    writer.write(&chunk.bytes)?;
                    forward(&mut tee, chunk);
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
            // The blob is committed even if it could not be extracted: its own digest is right or it is not.
            let unpacked = extract.filter(|_| extracted.is_ok()).map(|(at, trees)| trees.label_of_blob(*at));
            let labels = self.labels.into_iter().chain(unpacked.unwrap_or_default()).collect();
            match begun.writer.commit(self.expected, labels) {
                Err(error) if !error.is(ErrorKind::AlreadyExists) => return Err(error),
                _ => {}
            }
            match extracted {
                Err(error) if !error.is(ErrorKind::Unavailable) => Err(error),
                extracted => Ok(Outcome::Committed { is_extracted: extract.is_some() && extracted.is_ok() }),
            }
        })
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
