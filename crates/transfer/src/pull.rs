//! From a registry into the stores.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use content::Expected;
use metadata::{Caller, Image, Metadata};
use registry::Remote;
use tokio::sync::mpsc;
use types::descriptor::media_type;
use types::spec::image::Manifest;
use types::{
    Context, Descriptor, Error, ErrorKind, IngestRef, Labels, Platform, Reference, Result, Timestamp,
};

use crate::unpack::Trees;
use crate::{Lease, Progress, Report, blocking, tell};

/// Layers that are fetched at once.
const LAYERS_AT_ONCE: usize = 3;
/// Network chunks that wait for the disk, and for the inflater.
const CHUNKS_WAITING: usize = 32;
/// How often somebody else's download of the same blob is looked after.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// What to pull, for whom, to where.
#[derive(Clone)]
pub struct PullRequest {
    pub reference: Reference,
    pub platform: Platform,
    pub snapshotter: String,
    pub caller: Caller,
    pub remote: Remote,
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
    let image = pull.run().await?;
    blocking(move || lease.end()).await?;
    Ok(image)
}

#[derive(Clone)]
struct Pull {
    metadata: Metadata,
    caller: Caller,
    request: PullRequest,
    report: Option<Report>,
}

impl Pull {
    async fn run(self) -> Result<Image> {
        let resolved = self.request.remote.resolve().await?;
        let name = self.request.reference.to_string();
        tell(self.report.as_ref(), Progress::Resolved { name, digest: resolved.descriptor.digest.clone() });
        let manifest = self.fetch_documents(&resolved.descriptor, resolved.bytes).await?;
        let trees = {
            let pull = self.clone();
            let manifest = manifest.clone();
            blocking(move || Trees::of(&pull.metadata, &pull.caller, &pull.request.snapshotter, &manifest))
                .await?
        };
        self.fetch_layers(&manifest, &trees).await?;
        let target = resolved.descriptor;
        blocking(move || {
            trees.keep_by_config(&manifest.config.digest)?;
            self.record(target)
        })
        .await
    }

    /// Stores the documents from the root down to the config, and returns the manifest for the platform.
    async fn fetch_documents(&self, root: &Descriptor, bytes: Vec<u8>) -> Result<Manifest> {
        let (mut descriptor, mut bytes) = (root.clone(), bytes);
        for _ in 0..=image::INDEX_DEPTH_MAX {
            let node = image::Node::parse(&descriptor.media_type, &bytes)?;
            self.store(&descriptor, bytes, node.reference_labels()).await?;
            match node {
                image::Node::Manifest(manifest) => {
                    let config = self.fetch_config(&manifest.config).await?;
                    self.store(&manifest.config, config, Labels::new()).await?;
                    return Ok(*manifest);
                }
                image::Node::Index(index) => {
                    descriptor = image::choose(&index, &self.request.platform)?.clone();
                    bytes = self.request.remote.manifest(&descriptor).await?;
                }
            }
        }
        Err(Error::invalid_argument("indexes inside indexes, too deep"))
    }

    async fn fetch_config(&self, config: &Descriptor) -> Result<Vec<u8>> {
        if !media_type::is_config(&config.media_type) {
            return Err(Error::unimplemented(format!(
                "this is an artifact of type {}, not an image to run",
                config.media_type
            )));
        }
        if config.size > image::DOCUMENT_LEN_MAX {
            return Err(Error::invalid_argument(format!("a config of {} bytes is too large", config.size)));
        }
        let mut stream = self.request.remote.blob(config, 0).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    async fn store(&self, descriptor: &Descriptor, bytes: Vec<u8>, mut labels: Labels) -> Result<()> {
        labels.extend(self.source_label());
        let (metadata, caller, descriptor) = (self.metadata.clone(), self.caller.clone(), descriptor.clone());
        blocking(move || {
            let expected = Expected::new(descriptor.digest.clone(), descriptor.size);
            let reference = ingest_ref(&descriptor)?;
            let content = metadata.content(&caller);
            let written = content.begin(&reference, expected.clone()).and_then(|mut writer| {
                writer.truncate()?;
                writer.write(&bytes)?;
                writer.commit(expected, labels.clone())
            });
            match written {
                Err(error) if error.is(ErrorKind::AlreadyExists) => {
                    let paths: Vec<String> = labels.keys().map(|key| format!("labels.{key}")).collect();
                    content.update(&descriptor.digest, &labels, &paths).map(drop)
                }
                other => other.map(drop),
            }
        })
        .await
        .context(|| "store a document")
    }

    /// Where a blob came from, as containerd's clients say it.
    fn source_label(&self) -> Labels {
        let reference = &self.request.reference;
        let key = format!("containerd.io/distribution.source.{}", reference.host());
        Labels::from([(key, reference.repository().to_owned())])
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
        let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(LAYERS_AT_ONCE));
        let mut working = tokio::task::JoinSet::new();
        for (at, layer) in layers.iter().enumerate() {
            let (pull, trees, layer, slots) = (self.clone(), trees.clone(), layer.clone(), slots.clone());
            working.spawn(async move {
                let _slot = slots.acquire_owned().await.expect("nobody closes it");
                let is_missing = at >= first;
                let done = pull.fetch_layer(at, &layer, is_missing.then_some(&trees)).await;
                done.map_err(|error| error.context(format!("layer {}", layer.digest)))
            });
        }
        while let Some(joined) = working.join_next().await {
            // Dropping the set ends the others; what they began stays for the next pull.
            joined.unwrap_or_else(|panic| Err(Error::internal("a layer broke down").with_source(panic)))?;
        }
        let (trees, count, digests) = (trees.clone(), layers.len(), layers.clone());
        let report = self.report.clone();
        blocking(move || {
            if first < count {
                if trees.can_rebase() {
                    trees.sync_extracted(count - 1)?;
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

    /// Gets a layer's blob, and extracts it on the way if its tree is missing.
    async fn fetch_layer(&self, at: usize, layer: &Descriptor, trees: Option<&Trees>) -> Result<()> {
        let extract = trees.filter(|trees| trees.can_rebase()).cloned();
        loop {
            let (metadata, caller, wanted) = (self.metadata.clone(), self.caller.clone(), layer.clone());
            let begun = blocking(move || {
                let expected = Expected::new(wanted.digest.clone(), wanted.size);
                metadata.content(&caller).begin(&ingest_ref(&wanted)?, expected)
            })
            .await;
            match begun {
                Ok(writer) => return self.download(at, layer, writer, extract).await,
                Err(error) if error.is(ErrorKind::AlreadyExists) => {
                    let (digest, report) = (layer.digest.clone(), self.report.clone());
                    let Some(trees) = extract else { return Ok(()) };
                    tell(report.as_ref(), Progress::Extracting { digest: digest.clone() });
                    return blocking(move || trees.extract_stored(at, &digest)).await;
                }
                // Another pull is at it: its bytes will be ours too.
                Err(error) if error.is(ErrorKind::Unavailable) => tokio::time::sleep(BUSY_PAUSE).await,
                Err(error) => return Err(error),
            }
        }
    }

    async fn download(
        &self,
        at: usize,
        layer: &Descriptor,
        writer: metadata::ContentWriter,
        extract: Option<Trees>,
    ) -> Result<()> {
        let begun_at = writer.offset();
        let (chunks, receive) = mpsc::channel::<Bytes>(CHUNKS_WAITING);
        let (labels, expected) = (self.source_label(), Expected::new(layer.digest.clone(), layer.size));
        // A blob taken up in the middle cannot be inflated on the way; it is read again when it is whole.
        let live = extract.clone().filter(|_| begun_at == 0);
        // It must run while we fetch, so it is a task and not a future that waits for us.
        let stored =
            tokio::spawn(blocking(move || store_and_extract(at, writer, receive, live, expected, labels)));
        let mut stream = self.request.remote.blob(layer, begun_at).await?;
        let (mut current, mut told) = (begun_at, begun_at);
        let mut broken = None;
        loop {
            match stream.next().await {
                Ok(Some(chunk)) => {
                    current += chunk.len() as u64;
                    if current - told >= 1 << 18 || current == layer.size {
                        told = current;
                        tell(
                            self.report.as_ref(),
                            Progress::Downloading { digest: layer.digest.clone(), current },
                        );
                    }
                    if chunks.send(chunk).await.is_err() {
                        break; // the storing side says why
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    broken = Some(error);
                    break;
                }
            }
        }
        drop(chunks);
        tell(self.report.as_ref(), Progress::Extracting { digest: layer.digest.clone() });
        let stored = stored
            .await
            .unwrap_or_else(|panic| Err(Error::internal("storing broke down").with_source(panic)));
        broken.map_or(Ok(()), Err)?;
        stored?;
        if let Some(trees) = extract.filter(|_| begun_at > 0) {
            let digest = layer.digest.clone();
            blocking(move || trees.extract_stored(at, &digest)).await?;
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
fn store_and_extract(
    at: usize,
    mut writer: metadata::ContentWriter,
    mut receive: mpsc::Receiver<Bytes>,
    extract: Option<Trees>,
    expected: Expected,
    labels: Labels,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (send, chunks) = sync_channel::<Bytes>(CHUNKS_WAITING);
        let extraction =
            extract.map(|trees| scope.spawn(move || trees.extract(at, Chunks::new(chunks), None)));
        let mut tee = extraction.is_some().then_some(send);
        let mut write = || -> Result<()> {
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
        // The blob is committed even if it could not be extracted: its own digest is right or it is not.
        match writer.commit(expected, labels) {
            Ok(_) => extracted,
            Err(error) if error.is(ErrorKind::AlreadyExists) => extracted,
            Err(error) => Err(error),
        }
    })
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
