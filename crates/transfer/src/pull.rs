//! Pulls images from a registry into the stores.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use content::Expected;
use metadata::{Caller, ContentWriter, Image, Metadata};
use registry::Remote;
use stdx::{TRACE, traced};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::field::Empty;
use tracing::info_span;
use tracing::instrument::Instrument;
use types::descriptor::media_type;
use types::spec::image::{Index, Manifest};
use types::{
    Context, Descriptor, Digest, Error, ErrorKind, IngestRef, Labels, Platform, Reference, Result, Timestamp,
    UnlessGone,
};

use crate::admission::Admission;
use crate::download::Download;
use crate::flight::Flights;
use crate::kept::Kept;
use crate::retention::{Retention, Retentions};
use crate::source::Source;
use crate::unpack::{Trees, read};
use crate::{Lease, Progress, Report, Slots, add_labels, blocking, plain, tell, with_client};

/// Documents of a pull, and blobs that its indexes reference directly, at most.
const DOCUMENTS_MAX: usize = 2 * image::CHILDREN_MAX;

/// What to pull, and into what.
#[derive(Clone)]
pub struct PullRequest {
    pub reference: Reference,
    pub platforms: WantedPlatforms,
    /// The trees to make. Empty leaves the layers packed.
    pub unpacks: Vec<Unpack>,
    /// Whether to fetch the documents of all platforms of an index, even without their layers.
    pub all_metadata: bool,
    /// The name of the image record.
    pub name: String,
    /// Labels of the image record.
    pub labels: Labels,
    pub caller: Caller,
    pub remote: Remote,
    /// Bounds what this daemon's pulls fetch at once.
    pub slots: Slots,
    /// The blobs that this daemon's pulls are fetching.
    pub flights: Flights,
    /// Decides whether the image may come in.
    pub admission: Admission,
    /// Whether the blobs of unpacked layers are kept.
    pub retentions: Retentions,
}

/// The platforms of a multi-platform image to fetch.
#[derive(Clone, Debug, PartialEq)]
pub enum WantedPlatforms {
    /// The first `n` manifests of each index, in its order, those with a platform before the others.
    First(usize),
    /// The best image for each of these, as far as the index has one. `NotFound` if it has none at all.
    Each(Vec<Platform>),
}

/// A platform to unpack, and the snapshotter for its trees.
#[derive(Clone, Debug, PartialEq)]
pub struct Unpack {
    pub platform: Platform,
    pub snapshotter: String,
}

/// Pulls an image and makes its trees. Returns the image record.
///
/// Blobs that the store has are not fetched, and partial blobs are resumed.
pub async fn pull(metadata: &Metadata, request: PullRequest, report: Option<Report>) -> Result<Image> {
    let name = request.reference.to_string();
    let span = info_span!(target: TRACE, "pull", reference = %name, error = Empty);
    let pulled = traced(span, Box::pin(run(metadata, request, report))).await;
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
        Ok((target, below)) => pull.images(target, below).await,
        Err(error) => Err(error),
    };
    // On success the lease ended when the image got its name.
    let Err(error) = &pulled else { return pulled };
    // Partial layers are kept for the next try, unless the error is permanent.
    let is_kept = has_documents && is_passing(error.kind());
    let metadata = metadata.clone();
    let settled = blocking(move || if is_kept { metadata.sync() } else { lease.end() }).await;
    if let Err(error) = settled {
        // The pull's error is the one to return: a full disk, say, fails both.
        tracing::warn!("end a pull: {}", error.chain());
    }
    pulled
}

/// Whether the same pull may succeed later.
fn is_passing(kind: ErrorKind) -> bool {
    use ErrorKind::{Aborted, Cancelled, DeadlineExceeded, Internal, ResourceExhausted, Unavailable};
    matches!(kind, Aborted | Cancelled | DeadlineExceeded | Internal | ResourceExhausted | Unavailable)
}

/// A manifest whose layers are pulled, and the snapshotters for its trees.
struct Chosen {
    /// Read from the store again when needed: many manifests may be large.
    manifest: Descriptor,
    snapshotters: BTreeSet<String>,
}

/// What the documents of an image lead to.
#[derive(Default)]
struct PullPlan {
    chosen: Vec<Chosen>,
    /// Blobs that an index consists of, such as a checkpoint's.
    loose: Vec<IndexBlobs>,
    /// Blobs that an index references beside its images. Not every registry has them.
    beside: Vec<IndexBlobs>,
}

/// Blobs that an index references.
struct IndexBlobs {
    index: Descriptor,
    blobs: Vec<Descriptor>,
}

impl PullPlan {
    /// Adds a manifest, or more snapshotters if another index referenced it before.
    fn choose(&mut self, manifest: Descriptor, unpacks: Vec<Unpack>) {
        let snapshotters = unpacks.into_iter().map(|unpack| unpack.snapshotter);
        match self.chosen.iter_mut().find(|chosen| chosen.manifest.digest == manifest.digest) {
            Some(chosen) => chosen.snapshotters.extend(snapshotters),
            None => self.chosen.push(Chosen { manifest, snapshotters: snapshotters.collect() }),
        }
    }

    fn count_blobs(&self) -> usize {
        self.loose.iter().chain(&self.beside).map(|named| named.blobs.len()).sum()
    }
}

/// What to pull of a document and its descendants.
#[derive(Clone, PartialEq)]
struct Wish {
    platforms: WantedPlatforms,
    unpacks: Vec<Unpack>,
    /// It is below an index that consists of blobs, so an image for the platforms may be missing.
    may_lack: bool,
}

impl Wish {
    /// Whether a blob of an index suits the platforms that are pulled, given which `children` of the index are.
    fn fits(&self, blob: &Descriptor, children: &[(Descriptor, Option<Wish>)]) -> bool {
        let Some(own) = &blob.platform else { return true };
        let fits = |wanted: &Platform| wanted.fit(own) > 0;
        let by_unpack = self.unpacks.iter().any(|unpack| fits(&unpack.platform));
        by_unpack
            || match &self.platforms {
                WantedPlatforms::Each(platforms) => platforms.iter().any(fits),
                WantedPlatforms::First(_) => {
                    let wanted = children.iter().filter(|(_, wish)| wish.is_some());
                    wanted.filter_map(|(child, _)| child.platform.as_ref()).any(fits)
                }
            }
    }

    fn add(&mut self, platform: &Platform) {
        if let WantedPlatforms::Each(platforms) = &mut self.platforms
            && !platforms.contains(platform)
        {
            platforms.push(platform.clone());
        }
    }
}

/// A document that is still to be visited.
struct Pending {
    descriptor: Descriptor,
    /// Set for the root alone, which resolving the name has fetched.
    bytes: Option<Vec<u8>>,
    /// `None` if it is only to be stored.
    wish: Option<Wish>,
    /// The index that references it; `None` for the root.
    above: Option<Descriptor>,
    depth: usize,
}

/// A depth-first walk over an image's documents, and what it found.
struct Walk {
    /// A stack: the last is visited next.
    pending: Vec<Pending>,
    /// The wishes with which each document was visited.
    wishes: BTreeMap<Digest, Vec<Option<Wish>>>,
    visits: usize,
    found: PullPlan,
}

impl Walk {
    fn new(root: Descriptor, bytes: Vec<u8>, wish: Wish) -> Walk {
        let root = Pending { descriptor: root, bytes: Some(bytes), wish: Some(wish), above: None, depth: 0 };
        Walk { pending: vec![root], wishes: BTreeMap::new(), visits: 0, found: PullPlan::default() }
    }

    /// The next document to visit; `None` at the end. `InvalidArgument` if there are too many of them, or they nest
    /// too deeply.
    fn take_next(&mut self) -> Result<Option<Pending>> {
        while let Some(next) = self.pending.pop() {
            if next.depth > image::INDEX_DEPTH_MAX {
                return Err(Error::invalid_argument("indexes inside indexes, too deep"));
            }
            // Several indexes may reference it.
            let before = self.wishes.entry(next.descriptor.digest.clone()).or_default();
            if before.contains(&next.wish) || (next.wish.is_none() && !before.is_empty()) {
                continue;
            }
            before.push(next.wish.clone());
            self.visits += 1;
            if self.visits + self.found.count_blobs() > DOCUMENTS_MAX {
                return Err(Error::invalid_argument(format!(
                    "more than {DOCUMENTS_MAX} manifests and blobs"
                )));
            }
            return Ok(Some(next));
        }
        Ok(None)
    }

    /// Finishes the visit of a manifest: its layers are pulled, unless it is only to be stored.
    fn choose(&mut self, manifest: Pending) {
        if let Some(wish) = manifest.wish {
            self.found.choose(manifest.descriptor, wish.unpacks);
        }
    }

    /// Finishes the visit of an index: visits these children next, each with its wish, and pulls the index's blobs,
    /// unless it is only to be stored.
    fn descend(&mut self, of: &Pending, index: &Index, children: Vec<(Descriptor, Option<Wish>)>) {
        let itself = plain(&of.descriptor);
        if let Some(wish) = &of.wish {
            let blobs = index.manifests.iter().filter(|child| image::is_blob(child)).cloned();
            if image::is_made_of_blobs(index) {
                self.found.loose.push(IndexBlobs { index: itself.clone(), blobs: blobs.collect() });
            } else {
                let blobs = blobs.filter(|blob| wish.fits(blob, &children)).collect();
                self.found.beside.push(IndexBlobs { index: itself.clone(), blobs });
            }
        }
        // The stack's last is visited first.
        self.pending.extend(children.into_iter().rev().map(|(descriptor, wish)| Pending {
            descriptor,
            bytes: None,
            wish,
            above: Some(itself.clone()),
            depth: of.depth + 1,
        }));
    }
}

fn wish_of<'w>(wishes: &'w mut BTreeMap<Digest, Wish>, child: &Descriptor) -> &'w mut Wish {
    let none = || Wish { platforms: WantedPlatforms::Each(Vec::new()), unpacks: Vec::new(), may_lack: false };
    wishes.entry(child.digest.clone()).or_insert_with(none)
}

/// A pull in progress.
#[derive(Clone)]
pub(crate) struct Pull {
    pub(crate) metadata: Metadata,
    pub(crate) caller: Caller,
    pub(crate) request: PullRequest,
    pub(crate) report: Option<Report>,
}

impl Pull {
    /// Resolves the name and stores the documents. Returns the target, and what is to be pulled of it.
    async fn documents(&self) -> Result<(Descriptor, PullPlan)> {
        let span = info_span!(target: TRACE, "pull.resolve", error = Empty);
        let resolved = traced(span, self.request.remote.resolve()).await?;
        let name = self.request.reference.to_string();
        let target = Box::new(resolved.descriptor.clone());
        tell(self.report.as_ref(), Progress::Resolved { name: name.clone(), target });
        let (admission, remote) = (&self.request.admission, &self.request.remote);
        admission.check_ahead(&name, &resolved.descriptor, remote).await?;
        if self.request.name != name {
            // The name of the record.
            admission.check_ahead(&self.request.name, &resolved.descriptor, remote).await?;
        }
        let span = info_span!(target: TRACE, "pull.documents", error = Empty);
        let below = traced(span, self.fetch_documents(&resolved.descriptor, resolved.bytes)).await?;
        Ok((resolved.descriptor, below))
    }

    async fn images(self, target: Descriptor, PullPlan { chosen, loose, beside }: PullPlan) -> Result<Image> {
        for IndexBlobs { index, blobs } in &loose {
            self.blobs(blobs, index).await?;
        }
        for Chosen { manifest, snapshotters } in chosen {
            let gone =
                || Error::not_found(format!("manifest {} was removed during the pull", manifest.digest));
            let bytes = self.stored(&manifest).await?.ok_or_else(gone)?;
            if let image::Node::Manifest(parsed) = image::Node::parse(&manifest.media_type, &bytes)? {
                self.layers(&parsed, &manifest, &snapshotters).await?;
            }
        }
        for IndexBlobs { index, blobs } in &beside {
            for blob in blobs {
                match self.blobs(std::slice::from_ref(blob), index).await {
                    // A registry need not have these blobs or serve them to everyone: the image is complete without.
                    Err(error) if error.is(ErrorKind::NotFound) || error.is(ErrorKind::PermissionDenied) => {
                        tracing::debug!("left out of {}: {}", self.request.reference, error.chain());
                    }
                    fetched => fetched?,
                }
            }
        }
        blocking(move || self.record(target)).await
    }

    /// Fetches the layers of a manifest, and makes its trees.
    async fn layers(
        &self,
        manifest: &Manifest,
        descriptor: &Descriptor,
        snapshotters: &BTreeSet<String>,
    ) -> Result<()> {
        if snapshotters.is_empty() || !media_type::is_config(&manifest.config.media_type) {
            // An artifact: nothing to unpack.
            return self.blobs(&manifest.layers, descriptor).await;
        }
        for snapshotter in snapshotters {
            let (pull, read, name) = (self.clone(), manifest.clone(), snapshotter.clone());
            let (image, digest) = (self.request.reference.to_string(), descriptor.digest.clone());
            let trees = blocking(move || {
                Trees::of(&pull.metadata, &pull.caller, &name, &read)?.of_image(&image, &digest)
            });
            let trees = trees.await?;
            self.fetch_layers(&manifest.layers, descriptor, &trees).await?;
            let config = manifest.config.digest.clone();
            blocking(move || trees.keep_by_config(&config)).await?;
        }
        Ok(())
    }

    fn tell_layers(&self, layers: &[Descriptor], of: &Descriptor, unpacked: usize) {
        let (layers, of) = (layers.to_vec(), Box::new(of.clone()));
        tell(self.report.as_ref(), Progress::Layers { layers, of, unpacked });
    }

    /// Fetches blobs that a document references, without unpacking them.
    async fn blobs(&self, blobs: &[Descriptor], of: &Descriptor) -> Result<()> {
        self.tell_layers(blobs, of, 0);
        self.fetch_all(blobs, None, |_| true).await?;
        for blob in blobs {
            tell(self.report.as_ref(), Progress::Done { digest: blob.digest.clone() });
        }
        Ok(())
    }

    /// Stores the documents from the root down to the configs. Returns the manifests whose layers are to be pulled,
    /// and the blobs beside them.
    async fn fetch_documents(&self, root: &Descriptor, bytes: Vec<u8>) -> Result<PullPlan> {
        let (platforms, unpacks) = (self.request.platforms.clone(), self.request.unpacks.clone());
        let mut walk = Walk::new(root.clone(), bytes, Wish { platforms, unpacks, may_lack: false });
        while let Some(mut next) = walk.take_next()? {
            self.tell_document(&next.descriptor, next.above.take());
            match self.node(&next.descriptor, next.bytes.take()).await? {
                image::Node::Manifest(manifest) => {
                    check_config(&manifest.config)?;
                    self.tell_document(&manifest.config, Some(plain(&next.descriptor)));
                    self.obtain(&manifest.config).await?;
                    walk.choose(next);
                }
                image::Node::Index(index) => {
                    let known = match next.wish {
                        Some(_) => image::Platforms::gather(&index, |child| self.look(child)).await?,
                        None => image::Platforms::default(),
                    };
                    let children = self.children(&index, next.wish.as_ref(), &known)?;
                    walk.descend(&next, &index, children);
                }
            }
        }
        Ok(walk.found)
    }

    /// Fetches, parses and stores a document. The bytes of the root are known from resolving its name.
    async fn node(&self, descriptor: &Descriptor, known: Option<Vec<u8>>) -> Result<image::Node> {
        let Some(bytes) = known else {
            let bytes = self.obtain(descriptor).await?;
            return image::Node::parse(&descriptor.media_type, &bytes);
        };
        let node = image::Node::parse(&descriptor.media_type, &bytes)?;
        self.store(descriptor, bytes, node.reference_labels()).await?;
        Ok(node)
    }

    /// Which children of an index are fetched, each with its wish: `None` for those that are only stored.
    fn children(
        &self,
        index: &Index,
        wish: Option<&Wish>,
        told: &image::Platforms,
    ) -> Result<Vec<(Descriptor, Option<Wish>)>> {
        let mut wishes: BTreeMap<Digest, Wish> = BTreeMap::new();
        let mut missing = None;
        if let Some(Wish { platforms, unpacks, may_lack }) = wish {
            let may_lack = *may_lack || image::is_made_of_blobs(index);
            match platforms {
                WantedPlatforms::First(count) => {
                    let (named, others): (Vec<_>, Vec<_>) =
                        documents(index).partition(|child| child.platform.is_some());
                    let wish =
                        || Wish { platforms: WantedPlatforms::First(*count), unpacks: Vec::new(), may_lack };
                    let first = named.into_iter().chain(others).take(*count);
                    wishes.extend(first.map(|child| (child.digest.clone(), wish())));
                }
                WantedPlatforms::Each(platforms) => {
                    for platform in platforms {
                        match image::choose(index, platform, told) {
                            Ok(child) => wish_of(&mut wishes, child).add(platform),
                            Err(error) => missing = Some(error),
                        }
                    }
                }
            }
            for unpack in unpacks {
                match image::choose(index, &unpack.platform, told) {
                    Ok(child) => {
                        let wish = wish_of(&mut wishes, child);
                        wish.add(&unpack.platform);
                        wish.unpacks.push(unpack.clone());
                    }
                    Err(error) => missing = Some(error),
                }
            }
            if let Some(error) = missing.filter(|_| wishes.is_empty() && !may_lack) {
                return Err(error);
            }
            for wish in wishes.values_mut() {
                wish.may_lack = may_lack;
            }
        }
        let is_fetched =
            |child: &&Descriptor| self.request.all_metadata || wishes.contains_key(&child.digest);
        let mut fetched: Vec<&Descriptor> = documents(index).filter(is_fetched).collect();
        // Several entries may reference the same manifest, for different platforms.
        let mut seen = BTreeSet::new();
        fetched.retain(|child| seen.insert(child.digest.clone()));
        Ok(fetched.into_iter().map(|child| (child.clone(), wishes.remove(&child.digest))).collect())
    }

    fn tell_document(&self, descriptor: &Descriptor, above: Option<Descriptor>) {
        let (document, above) = (Box::new(descriptor.clone()), above.map(Box::new));
        tell(self.report.as_ref(), Progress::Document { document, above });
    }

    /// The bytes of a document, from the store or else from the registry.
    async fn obtain(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let request = &self.request;
        let _boarded = request.flights.board_or_leave(&descriptor.digest, request.reference.host()).await;
        let kind = &descriptor.media_type;
        let is_document = media_type::is_document(kind);
        let bytes = match self.stored(descriptor).await? {
            Some(bytes) => bytes,
            None if is_document => request.remote.manifest(descriptor).await?,
            None => request.remote.small_blob(descriptor).await?,
        };
        let labels = match is_document {
            true => image::Node::parse(kind, &bytes)?.reference_labels(),
            false => Labels::new(),
        };
        self.store(descriptor, bytes.clone(), labels).await?;
        Ok(bytes)
    }

    /// A document that tells an image's platform; `None` if the registry does not have it, since that image need not
    /// be the one that is pulled.
    async fn look(&self, descriptor: Descriptor) -> Result<Option<Vec<u8>>> {
        self.obtain(&descriptor).await.unless_gone()
    }

    async fn stored(&self, descriptor: &Descriptor) -> Result<Option<Vec<u8>>> {
        let (metadata, caller, digest) =
            (self.metadata.clone(), self.caller.clone(), descriptor.digest.clone());
        blocking(move || read(&metadata, &caller, &digest).unless_gone()).await
    }

    async fn store(&self, descriptor: &Descriptor, bytes: Vec<u8>, labels: Labels) -> Result<()> {
        let (pull, descriptor) = (self.clone(), descriptor.clone());
        let digest = descriptor.digest.clone();
        let existed = blocking(move || {
            let expected = Expected::new(descriptor.digest.clone(), descriptor.size);
            let content = pull.metadata.content(&pull.caller);
            let written = pull.begin(&descriptor).and_then(|mut writer| {
                // Another pull may have written all of it, and not committed it yet.
                if writer.digest() != descriptor.digest {
                    writer.truncate()?;
                    writer.write(&bytes)?;
                }
                let source = pull.source().label();
                writer.commit(expected, labels.clone().into_iter().chain(source).collect())
            });
            match written {
                Err(error) if error.is(ErrorKind::AlreadyExists) => {
                    add_labels(&content, &descriptor.digest, &labels)?;
                    pull.source().note(&pull.metadata, &pull.caller, &descriptor.digest)?;
                    Ok(true)
                }
                other => other.map(|_| false),
            }
        })
        .await
        .context(|| "store a document")?;
        tell(self.report.as_ref(), Progress::Stored { digest, existed });
        Ok(())
    }

    pub(crate) fn source(&self) -> Source<'_> {
        Source::of(&self.request.reference)
    }

    /// Opens the ingest of a blob, at the offset where an earlier pull left it.
    pub(crate) fn begin(&self, descriptor: &Descriptor) -> Result<ContentWriter> {
        let expected = Expected::new(descriptor.digest.clone(), descriptor.size);
        let (content, reference) = (self.metadata.content(&self.caller), ingest_ref(descriptor)?);
        let begun = match content.begin(&reference, expected.clone()) {
            // The ingest is locked, but not by a pull that boarded: a client of the API may hold it for ever.
            Err(error) if error.is(ErrorKind::Unavailable) => {
                let lease = self.caller.lease.as_ref().map(ToString::to_string).unwrap_or_default();
                content.begin(&IngestRef::new(format!("{lease}-{reference}"))?, expected)
            }
            begun => begun,
        };
        begun.map(|writer| writer.of_type(&descriptor.media_type))
    }

    async fn fetch_layers(&self, layers: &[Descriptor], of: &Descriptor, trees: &Trees) -> Result<()> {
        let (first, damaged, is_kept) = {
            let (pull, trees) = (self.clone(), trees.clone());
            blocking(move || {
                let first = trees.first_missing()?;
                let damaged = trees.damaged_below(first)?;
                let retention = pull.request.retentions.of(&pull.metadata, &pull.caller.namespace)?;
                // Blobs of a remote snapshotter's layers need not be in the store.
                let is_kept = retention != Retention::Drop && !trees.is_elsewhere();
                Ok((trees.offer(first)?, damaged, is_kept))
            })
            .await?
        };
        self.tell_layers(layers, of, first);
        let made = self.fetch_missing(layers, trees, first, damaged, is_kept).await;
        if made.is_err() && trees.is_elsewhere() && first < layers.len() {
            let trees = trees.clone();
            // `offer` prepared its snapshot. The first error counts; if this fails, the lease expires and releases
            // it.
            let _ = blocking(move || trees.discard(first)).await;
        }
        made
    }

    /// Fetches the layers from index `first`, those below it that are damaged, and the others if their blobs are
    /// kept.
    async fn fetch_missing(
        &self,
        layers: &[Descriptor],
        trees: &Trees,
        first: usize,
        damaged: Vec<(usize, Kept)>,
        is_kept: bool,
    ) -> Result<()> {
        for layer in &layers[..first] {
            tell(self.report.as_ref(), Progress::Exists { digest: layer.digest.clone() });
        }
        let is_wanted = |at: usize| {
            let is_damaged = damaged.iter().any(|(damaged, _)| *damaged == at);
            at >= first || is_damaged || is_kept
        };
        trees.expect(first..layers.len());
        self.fetch_all(layers, Some((trees, first)), is_wanted).await?;
        let (trees, count, digests) = (trees.clone(), layers.len(), layers.to_vec());
        let report = self.report.clone();
        let span = info_span!(target: TRACE, "pull.commit", layers = count - first, error = Empty);
        let waits_for_others = !trees.can_rebase() && trees.waits_for_others(first..count);
        let commit = move || {
            for (at, kept) in damaged {
                kept.replace(&digests[at])?;
            }
            let done =
                |at: usize| tell(report.as_ref(), Progress::Done { digest: digests[at].digest.clone() });
            if trees.can_rebase() {
                return trees.commit_all(first..count, done);
            }
            let extract = |at: usize| {
                tell(report.as_ref(), Progress::Extracting { digest: digests[at].digest.clone() });
                trees.extract_stored(at, &digests[at].digest)
            };
            trees.make(first..count, extract, done)
        };
        match waits_for_others {
            true => traced(span, with_client(commit)).await,
            false => traced(span, blocking(commit)).await,
        }
    }

    /// Fetches the blobs for which `is_wanted`, no more at once than there are slots, and extracts those from an
    /// index on.
    async fn fetch_all(
        &self,
        layers: &[Descriptor],
        extract: Option<(&Trees, usize)>,
        is_wanted: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let slots = Arc::new(Semaphore::new(self.request.slots.layers.count()));
        let mut working = JoinSet::new();
        for (at, layer) in layers.iter().enumerate().filter(|(at, _)| is_wanted(*at)) {
            let (pull, layer, slots) = (self.clone(), layer.clone(), slots.clone());
            let trees = extract.filter(|(_, first)| at >= *first).map(|(trees, _)| trees.clone());
            let work = async move {
                let _slot = slots.acquire_owned().await.expect("nobody closes it");
                let (digest, size) = (&layer.digest, layer.size);
                let span = info_span!(target: TRACE, "pull.layer", %digest, size, error = Empty);
                let done = traced(span, Box::pin(pull.fetch_layer(at, &layer, trees.as_ref()))).await;
                done.map_err(|error| error.context(format!("layer {}", layer.digest)))
            };
            working.spawn(work.in_current_span());
        }
        while let Some(joined) = working.join_next().await {
            // Dropping the set cancels the others; their partial blobs stay for the next pull.
            joined.map_err(Error::broke_down("a layer"))??;
        }
        Ok(())
    }

    /// Fetches a layer's blob, and extracts it along the way if its tree is missing.
    async fn fetch_layer(&self, at: usize, layer: &Descriptor, trees: Option<&Trees>) -> Result<()> {
        let extract = trees.filter(|trees| trees.can_rebase()).map(|trees| (at, trees.clone()));
        Download { pull: self.clone(), layer: layer.clone(), extract }.run().await
    }

    /// Writes the image record, which makes the pull visible, and ends the lease.
    fn record(&self, target: Descriptor) -> Result<Image> {
        let images = self.metadata.images(&self.caller);
        let now = Timestamp::now();
        let (name, labels) = (self.request.name.clone(), self.request.labels.clone());
        let image = Image { name, labels, target, created: now, updated: now };
        images.assign_last(image)
    }
}

/// The manifests and indexes among an index's entries, attestations included.
fn documents(index: &Index) -> impl Iterator<Item = &Descriptor> {
    index.manifests.iter().filter(|child| media_type::is_document(&child.media_type))
}

fn check_config(config: &Descriptor) -> Result<()> {
    if config.size > image::DOCUMENT_LEN_MAX {
        return Err(Error::invalid_argument(format!("a config of {} bytes is too large", config.size)));
    }
    Ok(())
}

/// The same for all pulls of a blob, so that each resumes what another began.
pub(crate) fn ingest_ref(descriptor: &Descriptor) -> Result<IngestRef> {
    IngestRef::new(ingest_name(descriptor))
}

/// What containerd's clients call the ingest of an image's part, and the part itself in their output.
pub fn ingest_name(part: &Descriptor) -> String {
    let kind = match part.media_type.as_str() {
        kind if media_type::is_manifest(kind) => "manifest",
        kind if media_type::is_index(kind) => "index",
        kind if media_type::is_layer(kind) => "layer",
        kind if media_type::is_config(kind) => "config",
        media_type::CHECKPOINT | media_type::CHECKPOINT_CONFIG => "config",
        media_type::IN_TOTO => "attestation",
        _ => "unknown",
    };
    format!("{kind}-{}", part.digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(kind: &str, name: &str) -> Descriptor {
        Descriptor::new(kind, Digest::of(name.as_bytes()), 1)
    }

    fn wish(count: usize) -> Wish {
        Wish { platforms: WantedPlatforms::First(count), unpacks: Vec::new(), may_lack: false }
    }

    fn index(manifests: Vec<Descriptor>) -> Index {
        Index {
            schema_version: 2,
            media_type: None,
            artifact_type: None,
            manifests,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    /// A walk whose root, an index, is being visited.
    fn begun() -> (Walk, Pending) {
        let mut walk = Walk::new(descriptor(media_type::OCI_INDEX, "root"), Vec::new(), wish(1));
        let root = walk.take_next().unwrap().unwrap();
        (walk, root)
    }

    #[test]
    fn a_document_is_looked_at_once_for_each_wish() {
        let (mut walk, root) = begun();
        let child = |name: &str, wish| (descriptor(media_type::OCI_MANIFEST, name), wish);
        let children = vec![
            child("first", None),
            child("first", Some(wish(1))),
            child("second", Some(wish(1))),
            child("second", Some(wish(2))),
            child("second", Some(wish(1))),
            // The config is stored by then.
            child("second", None),
        ];
        walk.descend(&root, &index(Vec::new()), children);
        let mut taken = Vec::new();
        while let Some(next) = walk.take_next().unwrap() {
            assert_eq!(next.above, Some(root.descriptor.clone()));
            taken.push((next.descriptor.digest, next.wish.is_some()));
        }
        let [first, second] = ["first", "second"].map(|name| Digest::of(name.as_bytes()));
        assert_eq!(taken, [(first.clone(), false), (first, true), (second.clone(), true), (second, true)]);
    }

    #[test]
    fn blobs_of_an_index_are_wanted_with_it() {
        let blob = descriptor("application/x-disk", "disk");
        let image = descriptor(media_type::OCI_MANIFEST, "image");
        let check = |manifests: &[&Descriptor], is_wanted: bool, loose: usize, beside: usize| {
            let (mut walk, mut root) = begun();
            root.wish = root.wish.filter(|_| is_wanted);
            walk.descend(&root, &index(manifests.iter().map(|entry| (*entry).clone()).collect()), Vec::new());
            let count = |named: &[IndexBlobs]| named.iter().map(|named| named.blobs.len()).sum::<usize>();
            assert_eq!((count(&walk.found.loose), count(&walk.found.beside)), (loose, beside));
        };
        check(&[&blob], true, 1, 0);
        check(&[&image, &blob], true, 0, 1);
        check(&[&image, &blob], false, 0, 0);
    }

    #[test]
    fn the_way_down_has_an_end() {
        let (mut walk, mut next) = begun();
        for depth in 1.. {
            let below = descriptor(media_type::OCI_INDEX, &format!("at {depth}"));
            walk.descend(&next, &index(Vec::new()), vec![(below, Some(wish(1)))]);
            match walk.take_next() {
                Ok(taken) => next = taken.expect("it is no end yet"),
                Err(error) => {
                    assert!(error.is(ErrorKind::InvalidArgument) && depth == image::INDEX_DEPTH_MAX + 1);
                    break;
                }
            }
        }
        let (mut walk, root) = begun();
        let many =
            (0..=DOCUMENTS_MAX).map(|at| (descriptor(media_type::OCI_MANIFEST, &at.to_string()), None));
        walk.descend(&root, &index(Vec::new()), many.collect());
        let last = std::iter::repeat_with(|| walk.take_next()).find(|taken| !matches!(taken, Ok(Some(_))));
        assert!(last.is_some_and(|last| last.is_err_and(|error| error.is(ErrorKind::InvalidArgument))));
    }
}
