//! Pushes images from the stores into a registry.
//!
//! ```text
//! plan    documents from the target down, each with all its descendants in the store ─▶ or left out, or an error
//! send    blobs, some at a time ─▶ documents, children first ─▶ the tag ─▶ referrers
//! ```
//!
//! An index with some platforms missing from the store is pushed without them, under a digest of its own; one
//! platform alone is pushed as its manifest. With [`Scope::Whole`] nothing is left out. Blobs that an index consists
//! of, such as a checkpoint's, always go with it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use image::is_attestation;
use metadata::{Caller, Metadata, Resource};
use registry::{Push, Ranges, Remote, Sent};
use stdx::Mutex;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use types::descriptor::media_type;
use types::filter::Filters;
use types::spec::image::Index;
use types::{Descriptor, Digest, Error, ErrorKind, Platform, Reference, Result, UnlessGone};

use crate::reading::open_blob;
use crate::source::Source;
use crate::unpack::{known_platforms, read};
use crate::{Lease, Slots, blocking, plain};

/// Bytes per read, and how many such pieces wait for the network.
const PIECE_LEN: usize = 256 << 10;
const PIECES_WAITING: usize = 4;
/// Documents of one push at most.
const DOCUMENTS_MAX: usize = 4096;

/// Which platforms of a multi-platform image are pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those that the store has.
    Present,
    /// All; a missing one is an error.
    Whole,
    /// The best image for each of these; a missing one is an error.
    Only(Vec<Platform>),
}

/// What to push, and where to.
pub struct PushRequest {
    pub target: Descriptor,
    /// The repository, and the tag if there is one.
    pub reference: Reference,
    pub scope: Scope,
    /// Whether to push referrers, too: images of the store whose subject is pushed, such as signatures.
    pub referrers: bool,
    /// Bounds what this daemon's pushes send to one registry at once.
    pub slots: Slots,
    pub caller: Caller,
    pub remote: Remote,
}

/// Progress of a blob or document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushProgress {
    /// A platform that the store does not have.
    LeftOut {
        what: String,
    },
    /// All parts of the push, parents before their children.
    Parts(Vec<PushPart>),
    Sending {
        digest: Digest,
        current: u64,
    },
    Sent {
        digest: Digest,
        how: Sent,
    },
    /// A manifest or index is in the registry.
    Document {
        document: Box<Descriptor>,
        /// Whether it was before.
        existed: bool,
    },
    /// A referrer of a pushed document.
    Referrer {
        digest: Digest,
    },
}

/// A document or blob to push, and its parent; the root has none. A part with several parents is listed once for
/// each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushPart {
    pub part: Descriptor,
    pub above: Option<Descriptor>,
}

/// Pushes an image. Returns the descriptor of what is in the registry under its name.
pub async fn push(
    metadata: &Metadata,
    request: PushRequest,
    report: Option<mpsc::Sender<PushProgress>>,
) -> Result<Descriptor> {
    let name = request.reference.to_string();
    let lease = {
        let (metadata, caller) = (metadata.clone(), request.caller.clone());
        blocking(move || Lease::begin(&metadata, &caller)).await?
    };
    let stores = Stores { metadata: metadata.clone(), caller: lease.caller.clone() };
    let pushed = run(stores, request, report).await;
    match blocking(move || lease.end()).await {
        // The push's error is the one to return: a full disk, say, fails both.
        Err(error) if pushed.is_err() => tracing::warn!("end a push: {}", error.chain()),
        ended => ended?,
    }
    pushed.map_err(|error| error.context(format!("push {name}")))
}

async fn run(
    stores: Stores,
    request: PushRequest,
    report: Option<mpsc::Sender<PushProgress>>,
) -> Result<Descriptor> {
    let plan = {
        let (stores, target, scope) = (stores.clone(), request.target.clone(), request.scope.clone());
        blocking(move || stores.plan(&target, &scope)).await?
    };
    let (push, slots) = (Push::new(&request.remote)?, request.slots);
    let uploader = Uploader { stores: stores.clone(), push, report, to: request.reference, slots };
    for what in &plan.left_out {
        uploader.tell(PushProgress::LeftOut { what: what.clone() });
    }
    let tag = uploader.to.tag().map(str::to_owned);
    let root = uploader.deliver(&plan, tag.as_deref()).await?;
    if request.referrers {
        let pushed: BTreeSet<Digest> =
            plan.documents.iter().map(|document| document.descriptor.digest.clone()).collect();
        let plans = blocking(move || stores.referrers(pushed)).await?;
        for plan in plans {
            let referrer = uploader.deliver(&plan, None).await?;
            uploader.tell(PushProgress::Referrer { digest: referrer.digest });
        }
    }
    Ok(root)
}

/// `NotFound` if none of the remaining entries fits one of these platforms.
fn is_for_any<'a>(left: impl Iterator<Item = &'a Descriptor> + Clone, platforms: &[Platform]) -> Result<()> {
    let fits = |child: &Descriptor| match &child.platform {
        Some(own) => platforms.iter().any(|platform| platform.fit(own) > 0),
        None => true,
    };
    if left.clone().any(fits) {
        return Ok(());
    }
    let wanted: Vec<String> = platforms.iter().map(ToString::to_string).collect();
    let there: BTreeSet<String> =
        left.filter_map(|child| child.platform.as_ref()).map(ToString::to_string).collect();
    let there = Vec::from_iter(there).join(", ");
    Err(Error::not_found(format!("nothing of it is for {}; there is {there}", wanted.join(", "))))
}

/// A manifest or index to push.
#[derive(Clone)]
struct Document {
    descriptor: Descriptor,
    bytes: Bytes,
}

/// The part of a document's descendants that is pushed.
#[derive(Default)]
struct Visited {
    below: Vec<Arc<Visited>>,
    blobs: Vec<Descriptor>,
    /// `None` for a blob, and for an index replaced by its only image.
    document: Option<Document>,
    left_out: Vec<String>,
}

impl Visited {
    /// The document that is pushed in place of the visited one; `None` for a blob.
    fn root(&self) -> Option<&Descriptor> {
        match &self.document {
            Some(document) => Some(&document.descriptor),
            None => self.below.last()?.root(),
        }
    }

    /// Whether a child of an index is pushed unchanged.
    fn is_for(&self, child: &Descriptor) -> bool {
        self.root().is_none_or(|root| root.digest == child.digest)
    }
}

/// What is pushed: children before parents, the root last, each once.
#[derive(Default)]
struct Plan {
    documents: Vec<Document>,
    blobs: Vec<Descriptor>,
    left_out: Vec<String>,
    /// The same, parents first, for the progress report.
    parts: Vec<PushPart>,
}

impl Plan {
    fn of(root: &Visited) -> Plan {
        let mut plan = Plan::default();
        plan.add(root, None, &mut BTreeSet::new());
        plan
    }

    fn add<'v>(
        &mut self,
        visited: &'v Visited,
        above: Option<&'v Descriptor>,
        seen: &mut BTreeSet<&'v Digest>,
    ) {
        let own = visited.document.as_ref().map(|document| &document.descriptor);
        let going = |part: &Descriptor, above: Option<&Descriptor>| PushPart {
            part: part.clone(),
            above: above.map(plain),
        };
        self.parts.extend(own.map(|own| going(own, above)));
        if own.is_some_and(|own| !seen.insert(&own.digest)) {
            return;
        }
        let above = own.or(above);
        self.parts.extend(visited.blobs.iter().map(|blob| going(blob, above)));
        visited.below.iter().for_each(|below| self.add(below, above, seen));
        self.blobs.extend(visited.blobs.iter().cloned());
        self.left_out.extend(visited.left_out.iter().cloned());
        self.documents.extend(visited.document.clone());
    }
}

/// The stores, as one caller sees them.
#[derive(Clone)]
struct Stores {
    metadata: Metadata,
    caller: Caller,
}

impl Stores {
    fn plan(&self, target: &Descriptor, scope: &Scope) -> Result<Plan> {
        let lease = self.caller.lease.as_ref().expect("a push has a lease");
        // The lease also holds what the target references.
        self.metadata.leases(&self.caller).add_resource(lease, &Resource::Content(target.digest.clone()))?;
        self.visit_all(target, scope)
    }

    fn visit_all(&self, target: &Descriptor, scope: &Scope) -> Result<Plan> {
        let mut planner = Planner { stores: self, scope, visited: BTreeMap::new(), read: 0 };
        Ok(Plan::of(&*planner.visit(target, 0, false)?))
    }

    /// Whether the store has a blob that an index references beside its images, and it fits the platforms.
    fn goes_beside_images(&self, blob: &Descriptor, scope: &Scope) -> Result<bool> {
        if let (Scope::Only(platforms), Some(own)) = (scope, &blob.platform)
            && !platforms.iter().any(|platform| platform.fit(own) > 0)
        {
            return Ok(false);
        }
        Ok(self.check(blob).unless_gone()?.is_some())
    }

    /// `NotFound` unless the store has a blob.
    fn check(&self, blob: &Descriptor) -> Result<()> {
        let Descriptor { media_type: kind, digest, size, .. } = blob;
        match self.metadata.content(&self.caller).info(digest) {
            Err(error) if error.is(ErrorKind::NotFound) => {
                let way_out = match kind.contains("foreign") || kind.contains("nondistributable") {
                    true => "only its vendor may hand it out",
                    false => "pull the image again to have it",
                };
                Err(Error::not_found(format!("blob {digest} ({kind}, {size} bytes) is not here; {way_out}")))
            }
            other => other.map(drop),
        }
    }

    /// Plans for the images of the store whose subject is one of these, and for their referrers in turn.
    fn referrers(&self, mut subjects: BTreeSet<Digest>) -> Result<Vec<Plan>> {
        let images = self.metadata.images(&self.caller).list(&Filters::all())?;
        let mut left: Vec<(Descriptor, Digest)> = Vec::new();
        for image in images {
            let bytes = read(&self.metadata, &self.caller, &image.target.digest);
            // A malformed image has no known subject.
            if let Ok(subject) = bytes.and_then(|bytes| subject_of(&image.target, &bytes))
                && let Some(subject) = subject
            {
                left.push((image.target, subject.digest));
            }
        }
        let mut plans = Vec::new();
        loop {
            let (found, rest): (Vec<_>, Vec<_>) =
                left.into_iter().partition(|(_, subject)| subjects.contains(subject));
            if found.is_empty() {
                return Ok(plans);
            }
            left = rest;
            for (target, _) in found {
                if subjects.insert(target.digest.clone()) {
                    plans.push(self.visit_all(&target, &Scope::Whole)?);
                }
            }
        }
    }

    /// A source of ranges of a blob for the upload, which reports progress.
    fn ranges(&self, blob: &Descriptor, report: Option<mpsc::Sender<PushProgress>>) -> Ranges {
        let (stores, digest) = (self.clone(), blob.digest.clone());
        Arc::new(move |range| {
            let (send, receive) = mpsc::channel(PIECES_WAITING);
            let (stores, digest, report) = (stores.clone(), digest.clone(), report.clone());
            // Ends when the receiver is dropped, which the upload does.
            tokio::spawn(async move {
                if let Err(error) = stores.read_range(&digest, range, &send, report.as_ref()).await {
                    let _ = send.send(Err(io::Error::other(error))).await;
                }
            });
            receive
        })
    }

    /// Reads piece by piece, so that no thread blocks on the network.
    async fn read_range(
        &self,
        digest: &Digest,
        range: Range<u64>,
        to: &mpsc::Sender<io::Result<Bytes>>,
        report: Option<&mpsc::Sender<PushProgress>>,
    ) -> Result<()> {
        let reader = open_blob(&self.metadata.content(&self.caller), digest).await?;
        let mut at = range.start;
        while at < range.end {
            let len = usize::try_from(range.end - at).unwrap_or(PIECE_LEN).min(PIECE_LEN);
            let reader = reader.clone();
            let piece = blocking(move || {
                let mut piece = vec![0; len];
                let read = reader.read_at(&mut piece, at)?;
                Ok((read == len).then_some(piece))
            });
            let piece = piece.await?.ok_or_else(|| {
                Error::data_loss(format!("blob {digest} is shorter on disk than its record says"))
            })?;
            if to.send(Ok(piece.into())).await.is_err() {
                return Ok(());
            }
            at += len as u64;
            tell(report, PushProgress::Sending { digest: digest.clone(), current: at });
        }
        Ok(())
    }
}

/// Walks everything below a target, and visits each document once, however many parents it has.
struct Planner<'a> {
    stores: &'a Stores,
    scope: &'a Scope,
    /// By digest, and whether platforms may be missing.
    visited: BTreeMap<(Digest, bool), Arc<Visited>>,
    /// How many documents were read.
    read: usize,
}

impl Planner<'_> {
    /// Visits a document and its descendants. `NotFound` names the first blob that the store does not have.
    /// `may_lack` allows platforms to be missing, as in a checkpoint.
    fn visit(&mut self, descriptor: &Descriptor, depth: usize, may_lack: bool) -> Result<Arc<Visited>> {
        if depth > image::INDEX_DEPTH_MAX {
            return Err(Error::invalid_argument("indexes inside indexes, too deep"));
        }
        self.stores.check(descriptor)?;
        // An index may reference anything; a blob that is not a document is pushed as it is.
        if depth > 0 && !is_document(descriptor) {
            return Ok(Arc::new(Visited { blobs: vec![descriptor.clone()], ..Visited::default() }));
        }
        let key = (descriptor.digest.clone(), may_lack);
        if let Some(visited) = self.visited.get(&key) {
            return Ok(Arc::clone(visited));
        }
        self.read += 1;
        if self.read > DOCUMENTS_MAX {
            return Err(Error::resource_exhausted(format!("more than {DOCUMENTS_MAX} manifests")));
        }
        let bytes = read(&self.stores.metadata, &self.stores.caller, &descriptor.digest)?;
        let visited = match image::Node::parse(&descriptor.media_type, &bytes)? {
            image::Node::Manifest(manifest) => {
                let blobs: Vec<Descriptor> =
                    std::iter::once(manifest.config).chain(manifest.layers).collect();
                blobs.iter().try_for_each(|blob| self.stores.check(blob))?;
                let document = Some(Document { descriptor: plain(descriptor), bytes: bytes.into() });
                Visited { document, blobs, ..Visited::default() }
            }
            image::Node::Index(index) => self.visit_index(descriptor, bytes, &index, depth, may_lack)?,
        };
        let visited = Arc::new(visited);
        self.visited.insert(key, Arc::clone(&visited));
        Ok(visited)
    }

    fn visit_index(
        &mut self,
        descriptor: &Descriptor,
        bytes: Vec<u8>,
        index: &Index,
        depth: usize,
        may_lack: bool,
    ) -> Result<Visited> {
        let choice = Choice::of(self.stores, self.scope, index, may_lack)?;
        let (mut kept, mut left_out) = (Vec::new(), Vec::new());
        for (at, entry) in index.manifests.iter().enumerate() {
            match self.visit_entry(entry, &choice, depth)? {
                Some(below) => kept.push(Kept { at, entry, counts: choice.counts(entry), below }),
                // Its image is missing too, and reported.
                None if is_document(entry) && is_attestation(entry) => {}
                None => left_out.push(shown(entry)),
            }
        }
        if let Scope::Only(platforms) = self.scope
            && choice.is_made_of_blobs
        {
            let left = kept.iter().map(|kept| kept.entry);
            is_for_any(left, platforms).map_err(|error| error.context(descriptor.digest.to_string()))?;
        }
        let root = match Shape::of(&kept, index.manifests.len()) {
            Shape::Nothing => {
                return Err(Error::not_found(format!(
                    "nothing of {} is here: there is {}; pull one first (hoist pull --platform)",
                    descriptor.digest,
                    left_out.join(", ")
                )));
            }
            // Attestations belong to the index, and are not pushed without it.
            Shape::OneImage(place) => {
                let below = kept.swap_remove(place).below;
                return Ok(Visited { below: vec![below], left_out, ..Visited::default() });
            }
            Shape::AsItIs => Document { descriptor: plain(descriptor), bytes: bytes.into() },
            Shape::Reduced => {
                drop_orphaned_attestations(&mut kept);
                let roots = kept.iter().map(|kept| (kept.at, kept.below.root()));
                reduce_index(descriptor, &bytes, &roots.collect())?
            }
        };
        let below = kept.into_iter().map(|kept| kept.below).collect();
        Ok(Visited { below, document: Some(root), left_out, ..Visited::default() })
    }

    /// Visits an entry of an index; `None` if it is left out.
    fn visit_entry(
        &mut self,
        entry: &Descriptor,
        choice: &Choice<'_>,
        depth: usize,
    ) -> Result<Option<Arc<Visited>>> {
        let goes = match is_document(entry) {
            true => !choice.passes_over(entry),
            false if !image::is_blob(entry) => false,
            false => choice.is_made_of_blobs || self.stores.goes_beside_images(entry, self.scope)?,
        };
        if !goes {
            return Ok(None);
        }
        match self.visit(entry, depth + 1, choice.may_lack) {
            Err(error) if error.is(ErrorKind::NotFound) && choice.may_be_missing(entry) => Ok(None),
            below => below.map(Some).map_err(|error| error.context(shown(entry))),
        }
    }
}

/// Which entries of an index to push, as far as the index itself tells.
struct Choice<'a> {
    scope: &'a Scope,
    /// The images for the requested platforms; `None` for all.
    wanted: Option<BTreeSet<&'a Digest>>,
    /// The index consists of blobs, as a checkpoint does: they go with it, and suffice without an image.
    is_made_of_blobs: bool,
    /// The index consists of blobs, or is below one that does: requested platforms may be missing.
    may_lack: bool,
}

impl<'a> Choice<'a> {
    fn of(stores: &Stores, scope: &'a Scope, index: &'a Index, may_lack: bool) -> Result<Choice<'a>> {
        let is_made_of_blobs = image::is_made_of_blobs(index);
        let may_lack = may_lack || is_made_of_blobs;
        let Scope::Only(platforms) = scope else {
            return Ok(Choice { scope, wanted: None, is_made_of_blobs, may_lack });
        };
        let known = known_platforms(&stores.metadata, &stores.caller, index);
        let mut wanted = BTreeSet::new();
        for platform in platforms {
            match image::choose(index, platform, &known) {
                Ok(image) => {
                    wanted.insert(&image.digest);
                }
                Err(_) if may_lack => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Choice { scope, wanted: Some(wanted), is_made_of_blobs, may_lack })
    }

    /// Whether an entry is an image that was not requested.
    fn passes_over(&self, entry: &Descriptor) -> bool {
        is_image(entry) && self.wanted.as_ref().is_some_and(|wanted| !wanted.contains(&entry.digest))
    }

    /// Whether an entry that is missing or incomplete is left out. If not, the push fails.
    fn may_be_missing(&self, entry: &Descriptor) -> bool {
        let may_lack_it = self.wanted.is_some() && (is_attestation(entry) || self.may_lack);
        is_document(entry) && (*self.scope == Scope::Present || may_lack_it)
    }

    /// Whether the index is worth pushing for this entry.
    fn counts(&self, entry: &Descriptor) -> bool {
        is_image(entry) || self.is_made_of_blobs
    }
}

/// An entry of an index that is pushed.
struct Kept<'a> {
    /// Its place in the index.
    at: usize,
    entry: &'a Descriptor,
    /// See [`Choice::counts`].
    counts: bool,
    below: Arc<Visited>,
}

/// The form in which an index is pushed.
#[derive(Debug, PartialEq)]
enum Shape {
    /// Nothing that counts remains.
    Nothing,
    /// Its only image, without the index. Holds the position among the kept entries.
    OneImage(usize),
    AsItIs,
    /// An index of the kept entries, with a digest of its own.
    Reduced,
}

impl Shape {
    /// `entries` is how many entries the index has.
    fn of(kept: &[Kept<'_>], entries: usize) -> Shape {
        let is_whole = kept.len() == entries;
        if is_whole {
            let is_as_it_was = kept.iter().all(|kept| kept.below.is_for(kept.entry));
            return if is_as_it_was { Shape::AsItIs } else { Shape::Reduced };
        }
        let mut counting = kept.iter().enumerate().filter(|(_, kept)| kept.counts);
        match (counting.next(), counting.next()) {
            (None, _) => Shape::Nothing,
            (Some((place, only)), None) if is_document(only.entry) => Shape::OneImage(place),
            _ => Shape::Reduced,
        }
    }
}

/// Drops attestations of images that are not pushed.
fn drop_orphaned_attestations(kept: &mut Vec<Kept<'_>>) {
    let images: BTreeSet<String> =
        kept.iter().filter(|kept| kept.counts).map(|kept| kept.entry.digest.to_string()).collect();
    kept.retain(|kept| describes(kept.entry).is_none_or(|image| images.contains(image)));
}

/// Blobs sent at once, counted per registry: a registry that stalls holds its slots until its timeouts, but no push
/// to another registry waits for it.
#[derive(Clone)]
pub(crate) struct Uploads {
    at_once: usize,
    /// Registries with uploads in progress or waiting.
    registries: Arc<Mutex<BTreeMap<String, Weak<Semaphore>>>>,
}

impl Uploads {
    pub(crate) fn new(at_once: usize) -> Uploads {
        Uploads { at_once, registries: Arc::default() }
    }

    /// The slots of a registry.
    fn to(&self, registry: &str) -> Arc<Semaphore> {
        let mut registries = self.registries.lock();
        if let Some(slots) = registries.get(registry).and_then(Weak::upgrade) {
            return slots;
        }
        registries.retain(|_, slots| slots.strong_count() > 0);
        let slots = Arc::new(Semaphore::new(self.at_once));
        registries.insert(registry.to_owned(), Arc::downgrade(&slots));
        slots
    }
}

/// Uploads plans to a repository.
#[derive(Clone)]
struct Uploader {
    stores: Stores,
    push: Push,
    report: Option<mpsc::Sender<PushProgress>>,
    to: Reference,
    slots: Slots,
}

impl Uploader {
    /// Uploads everything, and tags the root.
    async fn deliver(&self, plan: &Plan, tag: Option<&str>) -> Result<Descriptor> {
        self.tell(PushProgress::Parts(plan.parts.clone()));
        self.send_blobs(&plan.blobs).await?;
        let (root, below) = plan.documents.split_last().expect("a plan has a root");
        for document in below {
            let existed = self.push.has_document(&document.descriptor.digest).await?;
            if !existed {
                self.send_document(document, None).await?;
            }
            self.tell(PushProgress::Document { document: Box::new(document.descriptor.clone()), existed });
        }
        self.send_document(root, tag).await?;
        self.tell(PushProgress::Document { document: Box::new(root.descriptor.clone()), existed: false });
        Ok(root.descriptor.clone())
    }

    async fn send_blobs(&self, blobs: &[Descriptor]) -> Result<()> {
        let mut seen = BTreeSet::new();
        let blobs: Vec<&Descriptor> = blobs.iter().filter(|blob| seen.insert(&blob.digest)).collect();
        let mut working = JoinSet::new();
        for blob in blobs {
            let (uploader, blob) = (self.clone(), blob.clone());
            let slots = self.slots.uploads.to(self.push.host());
            working.spawn(async move {
                let _slot = slots.acquire_owned().await.expect("nobody closes it");
                uploader.send_blob(&blob).await
            });
        }
        while let Some(joined) = working.join_next().await {
            // Dropping the set cancels the others.
            joined.map_err(Error::broke_down("a blob"))??;
        }
        Ok(())
    }

    async fn send_blob(&self, blob: &Descriptor) -> Result<()> {
        let (stores, digest) = (self.stores.clone(), blob.digest.clone());
        let labels = blocking(move || stores.metadata.content(&stores.caller).info(&digest)).await?.labels;
        let sources = Source::of(&self.to).others(&labels);
        let ranges = self.stores.ranges(blob, self.report.clone());
        let how = self.push.blob(blob, &sources, &ranges).await?;
        let (uploader, digest) = (self.clone(), blob.digest.clone());
        blocking(move || {
            Source::of(&uploader.to).note(&uploader.stores.metadata, &uploader.stores.caller, &digest)
        })
        .await?;
        self.tell(PushProgress::Sent { digest: blob.digest.clone(), how });
        Ok(())
    }

    async fn send_document(&self, document: &Document, tag: Option<&str>) -> Result<()> {
        let Descriptor { media_type: kind, digest, .. } = &document.descriptor;
        let object = tag.map_or_else(|| digest.to_string(), str::to_owned);
        let is_noted = self.push.document(&object, kind, document.bytes.to_vec()).await?;
        match subject_of(&document.descriptor, &document.bytes)? {
            Some(subject) if !is_noted => {
                let referrer = as_referrer(document)?;
                self.push.note_referrer(&subject.digest, referrer).await
            }
            _ => Ok(()),
        }
    }

    fn tell(&self, progress: PushProgress) {
        tell(self.report.as_ref(), progress);
    }
}

fn tell(report: Option<&mpsc::Sender<PushProgress>>, progress: PushProgress) {
    if let Some(report) = report {
        // Dropped if the receiver is too slow: newer progress replaces it.
        let _ = report.try_send(progress);
    }
}

/// An index reduced to some of its children, in their order, each replaced by the document that is pushed for it.
fn reduce_index(
    descriptor: &Descriptor,
    bytes: &[u8],
    kept: &BTreeMap<usize, Option<&Descriptor>>,
) -> Result<Document> {
    let broken = |error| Error::invalid_argument("an index cannot be read").with_source(error);
    let mut index: serde_json::Value = serde_json::from_slice(bytes).map_err(broken)?;
    if let Some(children) = index["manifests"].as_array_mut() {
        for (at, root) in kept {
            if let (Some(child), Some(root)) = (children.get_mut(*at), root) {
                child["mediaType"] = root.media_type.as_str().into();
                child["digest"] = root.digest.to_string().into();
                child["size"] = root.size.into();
            }
        }
        let mut at = 0..;
        children.retain(|_| at.next().is_some_and(|at| kept.contains_key(&at)));
    }
    let bytes = serde_json::to_vec(&index).expect("what was read can be written");
    let kind = descriptor.media_type.clone();
    let descriptor = Descriptor::new(kind, Digest::of(&bytes), bytes.len() as u64);
    Ok(Document { descriptor, bytes: bytes.into() })
}

fn is_document(child: &Descriptor) -> bool {
    media_type::is_document(&child.media_type)
}

fn is_image(child: &Descriptor) -> bool {
    is_document(child) && !is_attestation(child)
}

/// The digest of the image that an attestation of the same index is about, as BuildKit writes it.
fn describes(child: &Descriptor) -> Option<&str> {
    child.annotations.get("vnd.docker.reference.digest").map(String::as_str)
}

/// A readable name for a child of an index.
fn shown(child: &Descriptor) -> String {
    let platform = child.platform.as_ref().map(ToString::to_string);
    platform.unwrap_or_else(|| format!("manifest {}", child.digest))
}

fn subject_of(descriptor: &Descriptor, bytes: &[u8]) -> Result<Option<Descriptor>> {
    if !is_document(descriptor) {
        return Ok(None);
    }
    Ok(match image::Node::parse(&descriptor.media_type, bytes)? {
        image::Node::Manifest(manifest) => manifest.subject,
        image::Node::Index(index) => index.subject,
    })
}

/// A document's descriptor in the referrers list of its subject (distribution-spec 1.1, "Listing Referrers").
fn as_referrer(document: &Document) -> Result<Descriptor> {
    let mut referrer = document.descriptor.clone();
    (referrer.artifact_type, referrer.annotations) =
        match image::Node::parse(&referrer.media_type, &document.bytes)? {
            image::Node::Manifest(manifest) => {
                (Some(manifest.artifact_type.unwrap_or(manifest.config.media_type)), manifest.annotations)
            }
            image::Node::Index(index) => (index.artifact_type, index.annotations),
        };
    Ok(referrer)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use content::{Expected, LocalStore};
    use kv::Db;
    use types::{Labels, Namespace};

    use super::*;

    /// A content store with one blob of these bytes.
    fn stores(dir: &std::path::Path, bytes: &[u8]) -> (Stores, Descriptor) {
        let db = Db::open(dir.join("meta.db"), kv::Options::default()).unwrap();
        let store = Arc::new(LocalStore::open(dir.join("content")).unwrap());
        let metadata = Metadata::open(db, store, BTreeMap::new(), metadata::Options::default()).unwrap();
        let caller = Caller::new(Namespace::new("default").unwrap());
        let blob = Descriptor::new(media_type::OCI_LAYER, Digest::of(bytes), bytes.len() as u64);
        let expected = Expected::new(blob.digest.clone(), blob.size);
        let mut writer = metadata.content(&caller).begin(&"blob".parse().unwrap(), expected.clone()).unwrap();
        writer.write(bytes).unwrap();
        writer.commit(expected, Labels::new()).unwrap();
        (Stores { metadata, caller }, blob)
    }

    const MANIFEST: &str = media_type::OCI_MANIFEST;
    const STATE: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";

    fn descriptor(kind: &str, name: &str) -> Descriptor {
        Descriptor::new(kind, Digest::of(name.as_bytes()), 1)
    }

    fn attestation(name: &str, of: &Descriptor) -> Descriptor {
        let mut descriptor = descriptor(MANIFEST, name);
        let notes = [
            ("vnd.docker.reference.type", "x".to_owned()),
            ("vnd.docker.reference.digest", of.digest.to_string()),
        ];
        descriptor.annotations.extend(notes.map(|(key, value)| (key.to_owned(), value)));
        descriptor
    }

    /// An entry that is pushed as `root`.
    fn kept<'a>(at: usize, entry: &'a Descriptor, counts: bool, root: &Descriptor) -> Kept<'a> {
        let document = is_document(root).then(|| Document { descriptor: root.clone(), bytes: Bytes::new() });
        Kept { at, entry, counts, below: Arc::new(Visited { document, ..Visited::default() }) }
    }

    /// All entries of an index with images.
    fn all(scope: &Scope) -> Choice<'_> {
        Choice { scope, wanted: None, is_made_of_blobs: false, may_lack: false }
    }

    #[test]
    fn an_index_goes_as_what_is_left_of_it() {
        let (one, two, blob) =
            (descriptor(MANIFEST, "one"), descriptor(MANIFEST, "two"), descriptor(STATE, "state"));
        let about_one = attestation("about one", &one);
        let whole = |entry| kept(0, entry, true, entry);
        assert_eq!(Shape::of(&[whole(&one), whole(&two)], 2), Shape::AsItIs);
        assert_eq!(Shape::of(&[whole(&one), kept(1, &two, true, &one)], 2), Shape::Reduced, "another below");
        assert_eq!(Shape::of(&[whole(&one), whole(&two)], 3), Shape::Reduced);
        let about = kept(0, &about_one, false, &about_one);
        assert_eq!(Shape::of(&[about, whole(&one)], 3), Shape::OneImage(1));
        assert_eq!(Shape::of(&[kept(0, &about_one, false, &about_one)], 2), Shape::Nothing);
        assert_eq!(Shape::of(&[], 1), Shape::Nothing);
        assert_eq!(Shape::of(&[whole(&blob)], 2), Shape::Reduced, "a blob has no index but this one");
        assert_eq!(Shape::of(&[], 0), Shape::AsItIs);
    }

    #[test]
    fn attestations_are_pushed_with_their_image_only() {
        let (one, two) = (descriptor(MANIFEST, "one"), descriptor(MANIFEST, "two"));
        let (about_one, about_two) = (attestation("about one", &one), attestation("about two", &two));
        let mut left = vec![
            kept(0, &one, true, &one),
            kept(2, &about_one, false, &about_one),
            kept(3, &about_two, false, &about_two),
        ];
        drop_orphaned_attestations(&mut left);
        assert_eq!(left.iter().map(|kept| kept.at).collect::<Vec<_>>(), [0, 2]);
    }

    #[test]
    fn the_scope_says_what_is_passed_over_and_what_may_be_missing() {
        let (image, blob) = (descriptor(MANIFEST, "image"), descriptor(STATE, "state"));
        let about = attestation("about", &image);
        let check = |choice: Choice<'_>, passed_over: [bool; 2], missing: [bool; 3]| {
            assert_eq!([&image, &about].map(|entry| choice.passes_over(entry)), passed_over);
            assert_eq!([&image, &about, &blob].map(|entry| choice.may_be_missing(entry)), missing);
        };
        let only = Scope::Only(Vec::new());
        check(all(&Scope::Present), [false, false], [true, true, false]);
        check(all(&Scope::Whole), [false, false], [false, false, false]);
        check(Choice { wanted: Some(BTreeSet::new()), ..all(&only) }, [true, false], [false, true, false]);
        let wanted = Some(BTreeSet::from([&image.digest]));
        check(Choice { wanted, ..all(&only) }, [false, false], [false, true, false]);
        let lacks = Choice { wanted: Some(BTreeSet::new()), may_lack: true, ..all(&only) };
        check(lacks, [true, false], [true, true, false]);
    }

    #[test]
    fn a_registry_that_keeps_its_slots_keeps_none_of_another() {
        let uploads = Uploads::new(2);
        let is_free = |registry: &str| uploads.to(registry).try_acquire_owned().is_ok();
        let silent = [uploads.to("silent.example"), uploads.clone().to("silent.example")];
        let kept = silent.map(|slots| slots.try_acquire_owned().unwrap());
        assert!(!is_free("silent.example"), "the slots are those of all pushes");
        assert!(is_free("other.example"));
        drop(kept);
        assert!(is_free("silent.example"));
        assert!(is_free("third.example"));
        assert_eq!(uploads.registries.lock().len(), 1, "those that nobody sends to are forgotten");
    }

    #[test]
    fn a_registry_that_takes_nothing_holds_no_thread() {
        let dir = tempfile::TempDir::new().unwrap();
        let bytes = testkit::noise("blob", 3 * PIECES_WAITING * PIECE_LEN + 1000);
        let (stores, blob) = stores(dir.path(), &bytes);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let pushes = async {
            let ranges = stores.ranges(&blob, None);
            let mut slow: Vec<_> = (0..4).map(|_| ranges(0..blob.size)).collect();
            for network in &mut slow {
                network.recv().await.expect("a piece").unwrap();
            }
            let mut quick = ranges(1000..blob.size);
            let mut sent = Vec::new();
            while let Some(piece) = quick.recv().await {
                sent.extend_from_slice(&piece.unwrap());
            }
            assert!(sent == bytes[1000..]);
            blocking(|| Ok(())).await.unwrap();
        };
        let pushed = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), pushes).await });
        pushed.expect("others have their turn");
    }
}
