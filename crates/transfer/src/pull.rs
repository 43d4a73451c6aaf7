//! From a registry into the stores.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::Bytes;
use content::Expected;
use metadata::{Caller, ContentWriter, Image, Metadata};
use registry::Remote;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use types::descriptor::media_type;
use types::spec::image::Manifest;
use types::{
    Context, Descriptor, Error, ErrorKind, IngestRef, Labels, Platform, Reference, Result, Timestamp,
};

use crate::admission::Admission;
use crate::flight::{Boarded, Flights};
use crate::source::Source;
use crate::unpack::{Trees, read};
use crate::{Lease, Progress, Report, blocking, tell};

/// Layers that are fetched at once.
const LAYERS_AT_ONCE: usize = 3;
/// Network chunks that wait for the disk, and for the inflater.
const CHUNKS_WAITING: usize = 32;
/// Bytes between two reports of progress.
const TELL_EVERY: u64 = 256 * 1024;
/// Bytes of a layer that is worth a write to disk, so that what there is of it is found again.
const KEEP_FROM: u64 = 1 << 20;

/// What to pull, for whom, to where.
#[derive(Clone)]
pub struct PullRequest {
    pub reference: Reference,
    pub platform: Platform,
    pub snapshotter: String,
    pub caller: Caller,
    pub remote: Remote,
    /// What other pulls of this daemon are fetching.
    pub flights: Flights,
    /// Who decides whether the image may come in.
    pub admission: Admission,
}

/// Pulls an image and makes its trees. Returns the image record.
///
/// What is there already is not fetched; a blob that was begun is taken up where it ended.
pub async fn pull(metadata: &Metadata, request: PullRequest, report: Option<Report>) -> Result<Image> {
    let name = request.reference.to_string();
    let pulled = run(metadata, request, report).await;
    pulled.map_err(|error| error.context(format!("pull {name}")))
}

async fn run(metadata: &Metadata, request: PullRequest, report: Option<Report>) -> Result<Image> {
    let lease = {
        let (metadata, caller) = (metadata.clone(), request.caller.clone());
        blocking(move || Lease::begin(&metadata, &caller)).await?
    };
    let pull = Pull { metadata: metadata.clone(), caller: lease.caller.clone(), request, report };
    let documents = pull.documents().await;
    let has_documents = documents.is_ok();
    let pulled = match documents {
        Ok((target, manifest)) => pull.layers(target, manifest).await,
        Err(error) => Err(error),
    };
    // Layers that broke off are kept for the next try; what was refused never gets better.
    let is_kept = pulled.as_ref().is_err_and(|error| has_documents && is_passing(error.kind()));
    if !is_kept {
        blocking(move || lease.end()).await?;
    }
    pulled
}

/// Whether the same pull may work later.
fn is_passing(kind: ErrorKind) -> bool {
    use ErrorKind::{Aborted, Cancelled, DeadlineExceeded, Internal, ResourceExhausted, Unavailable};
    matches!(kind, Aborted | Cancelled | DeadlineExceeded | Internal | ResourceExhausted | Unavailable)
}

#[derive(Clone)]
struct Pull {
    metadata: Metadata,
    caller: Caller,
    request: PullRequest,
    report: Option<Report>,
}

impl Pull {
    /// What the name stands for, and the manifest for the platform.
    async fn documents(&self) -> Result<(Descriptor, Manifest)> {
        let resolved = self.request.remote.resolve().await?;
        let name = self.request.reference.to_string();
        let digest = resolved.descriptor.digest.clone();
        tell(self.report.as_ref(), Progress::Resolved { name: name.clone(), digest });
        self.request.admission.check_ahead(&name, &resolved.descriptor, &self.request.remote).await?;
        let manifest = self.fetch_documents(&resolved.descriptor, resolved.bytes).await?;
        Ok((resolved.descriptor, manifest))
    }

    async fn layers(self, target: Descriptor, manifest: Manifest) -> Result<Image> {
        if !media_type::is_config(&manifest.config.media_type) {
            // An artifact: its blobs are kept as they are, and there is nothing to unpack.
            let sizes = manifest.layers.iter().map(|layer| (layer.digest.clone(), layer.size)).collect();
            tell(self.report.as_ref(), Progress::Layers(sizes));
            self.fetch_beside(&manifest.layers, None).await?;
            for layer in manifest.layers {
                tell(self.report.as_ref(), Progress::Done { digest: layer.digest });
            }
            return blocking(move || self.record(target)).await;
        }
        let trees = {
            let pull = self.clone();
            let manifest = manifest.clone();
            blocking(move || Trees::of(&pull.metadata, &pull.caller, &pull.request.snapshotter, &manifest))
                .await?
        };
        self.fetch_layers(&manifest, &trees).await?;
        blocking(move || {
            trees.keep_by_config(&manifest.config.digest)?;
            self.record(target)
        })
        .await
    }

    /// Stores the documents from the root down to the config, and returns the manifest for the platform.
    async fn fetch_documents(&self, root: &Descriptor, bytes: Vec<u8>) -> Result<Manifest> {
        let (mut descriptor, mut bytes) = (root.clone(), bytes);
        for depth in 0..=image::INDEX_DEPTH_MAX {
            let node = image::Node::parse(&descriptor.media_type, &bytes)?;
            if depth == 0 {
                self.store(&descriptor, bytes, node.reference_labels()).await?;
            }
            match node {
                image::Node::Manifest(manifest) => {
                    check_config(&manifest.config)?;
                    self.obtain(&manifest.config).await?;
                    return Ok(*manifest);
                }
                image::Node::Index(index) => {
                    descriptor = image::choose(&index, &self.request.platform)?.clone();
                    bytes = self.obtain(&descriptor).await?;
                }
            }
        }
        Err(Error::invalid_argument("indexes inside indexes, too deep"))
    }

    /// A document by its digest: what is there already is not fetched.
    async fn obtain(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let _boarded = self.request.flights.board(&descriptor.digest).await;
        let kind = &descriptor.media_type;
        let is_document = media_type::is_index(kind) || media_type::is_manifest(kind);
        let bytes = match self.stored(descriptor).await? {
            Some(bytes) => bytes,
            None if is_document => self.request.remote.manifest(descriptor).await?,
            None => self.fetch_config(descriptor).await?,
        };
        let labels = match is_document {
            true => image::Node::parse(kind, &bytes)?.reference_labels(),
            false => Labels::new(),
        };
        self.store(descriptor, bytes.clone(), labels).await?;
        Ok(bytes)
    }

    async fn stored(&self, descriptor: &Descriptor) -> Result<Option<Vec<u8>>> {
        let (metadata, caller, digest) =
            (self.metadata.clone(), self.caller.clone(), descriptor.digest.clone());
        blocking(move || match read(&metadata, &caller, &digest) {
            Err(error) if error.is(ErrorKind::NotFound) => Ok(None),
            other => other.map(Some),
        })
        .await
    }

    async fn fetch_config(&self, config: &Descriptor) -> Result<Vec<u8>> {
        let mut stream = self.request.remote.blob(config, 0).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    async fn store(&self, descriptor: &Descriptor, bytes: Vec<u8>, mut labels: Labels) -> Result<()> {
        let (pull, descriptor) = (self.clone(), descriptor.clone());
        blocking(move || {
            let expected = Expected::new(descriptor.digest.clone(), descriptor.size);
            let content = pull.metadata.content(&pull.caller);
            let written = pull.begin(&descriptor).and_then(|mut writer| {
                writer.truncate()?;
                writer.write(&bytes)?;
                labels.extend(pull.source().label());
                writer.commit(expected, labels.clone())
            });
            match written {
                Err(error) if error.is(ErrorKind::AlreadyExists) => {
                    let paths: Vec<String> = labels.keys().map(|key| format!("labels.{key}")).collect();
                    content.update(&descriptor.digest, &labels, &paths)?;
                    pull.source().note(&pull.metadata, &pull.caller, &descriptor.digest)
                }
                other => other.map(drop),
            }
        })
        .await
        .context(|| "store a document")
    }

    fn source(&self) -> Source<'_> {
        Source::of(&self.request.reference)
    }

    /// Opens the ingest of a blob, where an earlier pull left it.
    fn begin(&self, descriptor: &Descriptor) -> Result<ContentWriter> {
        let expected = Expected::new(descriptor.digest.clone(), descriptor.size);
        let (content, reference) = (self.metadata.content(&self.caller), ingest_ref(descriptor)?);
        match content.begin(&reference, expected.clone()) {
            // No pull has it, or we had not boarded: a client of the API does, and may hold it for ever.
            Err(error) if error.is(ErrorKind::Unavailable) => {
                let lease = self.caller.lease.as_ref().map(ToString::to_string).unwrap_or_default();
                content.begin(&IngestRef::new(format!("{lease}-{reference}"))?, expected)
            }
            begun => begun,
        }
    }

    async fn fetch_layers(&self, manifest: &Manifest, trees: &Trees) -> Result<()> {
        let layers = &manifest.layers;
        let sizes = layers.iter().map(|layer| (layer.digest.clone(), layer.size)).collect();
        tell(self.report.as_ref(), Progress::Layers(sizes));
        let first = {
            let trees = trees.clone();
            blocking(move || trees.first_missing()).await?
        };
        for layer in &layers[..first] {
            tell(self.report.as_ref(), Progress::Exists { digest: layer.digest.clone() });
        }
        self.fetch_beside(layers, Some((trees, first))).await?;
        let (trees, count, digests) = (trees.clone(), layers.len(), layers.clone());
        let report = self.report.clone();
        blocking(move || {
            if first < count {
                if trees.can_rebase() {
                    trees.sync_extracted()?;
                }
                for (at, layer) in digests.iter().enumerate().skip(first) {
                    if !trees.can_rebase() {
                        trees.extract_stored(at, &layer.digest)?;
                    }
                    trees.commit(at)?;
                    tell(report.as_ref(), Progress::Done { digest: layer.digest.clone() });
                }
                trees.sync()?;
            }
            Ok(())
        })
        .await
    }

    /// Fetches blobs, some at once. Those from a place on are extracted.
    async fn fetch_beside(&self, layers: &[Descriptor], extract: Option<(&Trees, usize)>) -> Result<()> {
        let slots = Arc::new(Semaphore::new(LAYERS_AT_ONCE));
        let mut working = JoinSet::new();
        for (at, layer) in layers.iter().enumerate() {
            let (pull, layer, slots) = (self.clone(), layer.clone(), slots.clone());
            let trees = extract.filter(|(_, first)| at >= *first).map(|(trees, _)| trees.clone());
            working.spawn(async move {
                let _slot = slots.acquire_owned().await.expect("nobody closes it");
                let done = pull.fetch_layer(at, &layer, trees.as_ref()).await;
                done.map_err(|error| error.context(format!("layer {}", layer.digest)))
            });
        }
        while let Some(joined) = working.join_next().await {
            // Dropping the set ends the others; what they began stays for the next pull.
            joined.unwrap_or_else(|panic| Err(Error::internal("a layer broke down").with_source(panic)))?;
        }
        Ok(())
    }

    /// Gets a layer's blob, and extracts it on the way if its tree is missing.
    async fn fetch_layer(&self, at: usize, layer: &Descriptor, trees: Option<&Trees>) -> Result<()> {
        let extract = trees.filter(|trees| trees.can_rebase()).cloned();
        let boarded = self.request.flights.board(&layer.digest).await;
        let begun = {
            let (pull, layer) = (self.clone(), layer.clone());
            blocking(move || pull.begin(&layer)).await
        };
        match begun {
            Ok(writer) => self.download(at, layer, (boarded, writer), extract).await,
            Err(error) if error.is(ErrorKind::AlreadyExists) => {
                drop(boarded);
                tell(self.report.as_ref(), Progress::Extracting { digest: layer.digest.clone() });
                let (pull, digest) = (self.clone(), layer.digest.clone());
                blocking(move || {
                    pull.source().note(&pull.metadata, &pull.caller, &digest)?;
                    extract.map_or(Ok(()), |trees| trees.extract_stored(at, &digest))
                })
                .await
            }
            Err(error) => Err(error),
        }
    }

    async fn download(
        &self,
        at: usize,
        layer: &Descriptor,
        begun: (Boarded, ContentWriter),
        extract: Option<Trees>,
    ) -> Result<()> {
        let begun_at = begun.1.offset();
        let (chunks, receive) = mpsc::channel::<Bytes>(CHUNKS_WAITING);
        // A blob taken up in the middle cannot be inflated on the way; it is read again when it is whole.
        let live = extract.clone().filter(|_| begun_at == 0);
        let storing = Storing {
            metadata: self.metadata.clone(),
            expected: Expected::new(layer.digest.clone(), layer.size),
            labels: self.source().label(),
            extract: live.map(|trees| (at, trees)),
        };
        // It must run while we fetch, so it is a task and not a future that waits for us. It ends when the
        // channel does, and the flight with it: the next pull finds the ingest closed.
        let stored = tokio::spawn(blocking(move || {
            let (_boarded, writer) = begun;
            storing.run(writer, receive)
        }));
        let fetched = self.fetch(layer, begun_at, chunks).await;
        tell(self.report.as_ref(), Progress::Extracting { digest: layer.digest.clone() });
        let stored = stored
            .await
            .unwrap_or_else(|panic| Err(Error::internal("storing broke down").with_source(panic)));
        fetched?;
        stored?;
        if let Some(trees) = extract.filter(|_| begun_at > 0) {
            let digest = layer.digest.clone();
            blocking(move || trees.extract_stored(at, &digest)).await?;
        }
        Ok(())
    }

    /// Brings a blob's bytes from an offset on into a channel, which it closes.
    async fn fetch(&self, layer: &Descriptor, begun_at: u64, chunks: mpsc::Sender<Bytes>) -> Result<()> {
        if begun_at >= layer.size {
            return Ok(()); // another namespace has it, or a pull was killed before its commit
        }
        let mut stream = self.request.remote.blob(layer, begun_at).await?;
        let (mut current, mut told) = (begun_at, begun_at);
        while let Some(chunk) = stream.next().await? {
            current += chunk.len() as u64;
            if current - told >= TELL_EVERY || current == layer.size {
                told = current;
                tell(self.report.as_ref(), Progress::Downloading { digest: layer.digest.clone(), current });
            }
            if chunks.send(chunk).await.is_err() {
                break; // the storing side says why
            }
        }
        Ok(())
    }

    /// Writes the image record, which makes the pull visible.
    fn record(&self, target: Descriptor) -> Result<Image> {
        let images = self.metadata.images(&self.caller);
        let now = Timestamp::now();
        let name = self.request.reference.to_string();
        let image = Image { name, labels: Labels::new(), target, created: now, updated: now };
        match images.create(image.clone(), None) {
            Err(error) if error.is(ErrorKind::AlreadyExists) => {
                images.update(&image, &["target".to_owned()], None)
            }
            other => other,
        }
    }
}

impl Trees {
    /// Extracts a layer whose blob is there.
    pub(crate) fn extract_stored(&self, at: usize, digest: &types::Digest) -> Result<()> {
        let source = self.reader(digest)?;
        self.extract(at, source, at.checked_sub(1))
    }
}

/// Writes chunks as they come, and hands them to the extraction beside it.
struct Storing {
    metadata: Metadata,
    expected: Expected,
    labels: Labels,
    /// Which layer it is, and where its tree is made.
    extract: Option<(usize, Trees)>,
}

impl Storing {
    fn run(self, mut writer: ContentWriter, mut receive: mpsc::Receiver<Bytes>) -> Result<()> {
        std::thread::scope(|scope| {
            let (send, chunks) = sync_channel::<Bytes>(CHUNKS_WAITING);
            let extraction = self
                .extract
                .map(|(at, trees)| scope.spawn(move || trees.extract(at, Chunks::new(chunks), None)));
            let mut tee = extraction.is_some().then_some(send);
            let mut write = || -> Result<()> {
                if self.expected.size.is_some_and(|size| size >= KEEP_FROM) {
                    // The ingest's record is relaxed: a daemon that was killed would not find the bytes.
                    self.metadata.sync()?;
                }
                while let Some(chunk) = receive.blocking_recv() {
                    writer.write(&chunk)?;
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
            if writer.offset() < size {
                return Err(Error::unavailable(format!("{} of {size} bytes came", writer.offset())));
            }
            let found = writer.digest();
            if self.expected.check(size, &found).is_err() {
                // Bytes that are wrong must not be taken up by the next pull.
                writer.truncate()?;
                return Err(Error::data_loss(format!("the bytes that came have the digest {found}")));
            }
            // The blob is committed even if it could not be extracted: its own digest is right or it is not.
            match writer.commit(self.expected, self.labels) {
                Ok(_) => extracted,
                Err(error) if error.is(ErrorKind::AlreadyExists) => extracted,
                Err(error) => Err(error),
            }
        })
    }
}

/// An extraction that failed takes no more; its error is asked for at the end.
fn forward(tee: &mut Option<SyncSender<Bytes>>, chunk: Bytes) {
    if let Some(send) = tee
        && send.send(chunk).is_err()
    {
        *tee = None;
    }
}

/// The receiving end as a reader.
struct Chunks {
    receive: Receiver<Bytes>,
    current: Bytes,
}

impl Chunks {
    fn new(receive: Receiver<Bytes>) -> Chunks {
        Chunks { receive, current: Bytes::new() }
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() {
            match self.receive.recv() {
                Ok(chunk) => self.current = chunk,
                Err(_) => return Ok(0),
            }
        }
        let len = buffer.len().min(self.current.len());
        buffer[..len].copy_from_slice(&self.current.split_to(len));
        Ok(len)
    }
}

fn check_config(config: &Descriptor) -> Result<()> {
    if config.size > image::DOCUMENT_LEN_MAX {
        return Err(Error::invalid_argument(format!("a config of {} bytes is too large", config.size)));
    }
    Ok(())
}

/// The same for all pulls of a blob, so that each takes up what another began.
pub(crate) fn ingest_ref(descriptor: &Descriptor) -> Result<IngestRef> {
    let kind = match descriptor.media_type.as_str() {
        kind if media_type::is_layer(kind) => "layer",
        kind if media_type::is_config(kind) => "config",
        kind if media_type::is_index(kind) => "index",
        _ => "manifest",
    };
    IngestRef::new(format!("{kind}-{}", descriptor.digest))
}
