//! From the stores into a registry.
//!
//! ```text
//! plan    documents from the target down, each with all below it here ─▶ or left out, or an error
//! send    blobs, some at a time ─▶ documents, children first ─▶ the name ─▶ what refers to them
//! ```
//!
//! An index of which some platforms are not here is pushed with those that are, under a digest of its own; one
//! platform alone is pushed as its manifest. With [`Scope::Whole`] nothing is left out. Blobs that an index names
//! itself, as that of a checkpoint does, always go with it.

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

/// Bytes that are read at once, and how many such pieces wait for the network.
const PIECE_LEN: usize = 256 << 10;
const PIECES_WAITING: usize = 4;
/// Documents that are asked for at once, and those of one push.
const DOCUMENTS_MAX: usize = 4096;

/// What is pushed of an image of several platforms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The platforms that are here.
    Present,
    /// All; one that is not here is an error.
    Whole,
    /// The best image for each of these; one that is not here is an error.
    Only(Vec<Platform>),
}

/// What to push, for whom, to where.
pub struct PushRequest {
    pub target: Descriptor,
    /// The repository, and the tag if it has one.
    pub reference: Reference,
    pub scope: Scope,
    /// The images of the store that refer to what is pushed: signatures and the like.
    pub referrers: bool,
    /// What pushes of this daemon may send to one registry at once.
    pub slots: Slots,
    pub caller: Caller,
    pub remote: Remote,
}

/// What is happening to a blob or document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushProgress {
    /// A platform that is not here.
    LeftOut {
        what: String,
    },
    /// What goes: documents before what they name.
    Parts(Vec<Going>),
    Sending {
        digest: Digest,
        current: u64,
    },
    Sent {
        digest: Digest,
        how: Sent,
    },
    /// A manifest or index is there.
    Document {
        document: Box<Descriptor>,
        /// It was there before.
        existed: bool,
    },
    /// A document that refers to one that was pushed.
    Referrer {
        digest: Digest,
    },
}

/// A document or blob that goes, and the document that names it; none names the first. One that several name is there
/// several times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Going {
    pub part: Descriptor,
    pub above: Option<Descriptor>,
}

/// Pushes an image. Returns what its name stands for in the registry then.
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
        // Why it was not pushed is what counts: a disk that is full, say, fails both.
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
    let courier = Courier { stores: stores.clone(), push, report, to: request.reference, slots };
    for what in &plan.left_out {
        courier.tell(PushProgress::LeftOut { what: what.clone() });
    }
    let tag = courier.to.tag().map(str::to_owned);
    let root = courier.deliver(&plan, tag.as_deref()).await?;
    if request.referrers {
        let pushed: BTreeSet<Digest> =
            plan.documents.iter().map(|document| document.descriptor.digest.clone()).collect();
        let plans = blocking(move || stores.referrers(pushed)).await?;
        for plan in plans {
            let referrer = courier.deliver(&plan, None).await?;
            courier.tell(PushProgress::Referrer { digest: referrer.digest });
        }
    }
    Ok(root)
}

/// `NotFound` if nothing is for one of these platforms: neither an image, of which those alone are left, nor a blob.
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

/// A manifest or index on its way.
#[derive(Clone)]
struct Document {
    descriptor: Descriptor,
    bytes: Bytes,
}

/// What goes of a document and those below it.
#[derive(Default)]
struct Visited {
    below: Vec<Arc<Visited>>,
    blobs: Vec<Descriptor>,
    /// None of a blob, and of an index of which one image alone goes.
    document: Option<Document>,
    left_out: Vec<String>,
}

impl Visited {
    /// None of a blob.
    fn root(&self) -> Option<&Descriptor> {
        match &self.document {
            Some(document) => Some(&document.descriptor),
            None => self.below.last()?.root(),
        }
    }

    /// Whether a child of an index goes as it is.
    fn is_for(&self, child: &Descriptor) -> bool {
        self.root().is_none_or(|root| root.digest == child.digest)
    }
}

/// What goes: children before those that name them, the root last, each once.
#[derive(Default)]
struct Plan {
    documents: Vec<Document>,
    blobs: Vec<Descriptor>,
    left_out: Vec<String>,
    /// The same, from the root down.
    parts: Vec<Going>,
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
        let going = |part: &Descriptor, above: Option<&Descriptor>| Going {
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

/// What is here, for one caller.
#[derive(Clone)]
struct Stores {
    metadata: Metadata,
    caller: Caller,
}

impl Stores {
    fn plan(&self, target: &Descriptor, scope: &Scope) -> Result<Plan> {
        let lease = self.caller.lease.as_ref().expect("a push has a lease");
        // What it refers to is held with it.
        self.metadata.leases(&self.caller).add_resource(lease, &Resource::Content(target.digest.clone()))?;
        self.visit_all(target, scope)
    }

    fn visit_all(&self, target: &Descriptor, scope: &Scope) -> Result<Plan> {
        let mut planner = Planner { stores: self, scope, visited: BTreeMap::new(), read: 0 };
        Ok(Plan::of(&*planner.visit(target, 0, false)?))
    }

    /// Whether a blob that an index names beside its images is here, and of use for the platforms.
    fn goes_beside_images(&self, blob: &Descriptor, scope: &Scope) -> Result<bool> {
        if let (Scope::Only(platforms), Some(own)) = (scope, &blob.platform)
            && !platforms.iter().any(|platform| platform.fit(own) > 0)
        {
            return Ok(false);
        }
        Ok(self.check(blob).unless_gone()?.is_some())
    }

    /// `NotFound` unless a blob is here.
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

    /// The images of the store that refer to one of these, and to those in turn.
    fn referrers(&self, mut subjects: BTreeSet<Digest>) -> Result<Vec<Plan>> {
        let images = self.metadata.images(&self.caller).list(&Filters::all())?;
        let mut left: Vec<(Descriptor, Digest)> = Vec::new();
        for image in images {
            let bytes = read(&self.metadata, &self.caller, &image.target.digest);
            // An image that cannot be read refers to nothing that we know.
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

    /// Gives ranges of a blob to the network, and tells how far it is.
    fn ranges(&self, blob: &Descriptor, report: Option<mpsc::Sender<PushProgress>>) -> Ranges {
        let (stores, digest) = (self.clone(), blob.digest.clone());
        Arc::new(move |range| {
            let (send, receive) = mpsc::channel(PIECES_WAITING);
            let (stores, digest, report) = (stores.clone(), digest.clone(), report.clone());
            // It ends when nobody listens any more, which the network sees to.
            tokio::spawn(async move {
                if let Err(error) = stores.read_range(&digest, range, &send, report.as_ref()).await {
                    let _ = send.send(Err(io::Error::other(error))).await;
                }
            });
            receive
        })
    }

    /// Piece by piece: no thread waits for the network.
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

/// Looks at everything below a target, at each document once, whoever names it.
struct Planner<'a> {
    stores: &'a Stores,
    scope: &'a Scope,
    /// By digest, and whether it may lack platforms.
    visited: BTreeMap<(Digest, bool), Arc<Visited>>,
    /// Documents that were read.
    read: usize,
}

impl Planner<'_> {
    /// Everything from a document down. `NotFound` names the first blob that is not here. What is in a checkpoint may lack
    /// platforms.
    fn visit(&mut self, descriptor: &Descriptor, depth: usize, may_lack: bool) -> Result<Arc<Visited>> {
        if depth > image::INDEX_DEPTH_MAX {
            return Err(Error::invalid_argument("indexes inside indexes, too deep"));
        }
        self.stores.check(descriptor)?;
        // An index may name anything; what is no document goes as it is.
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
                // It only describes another, whose absence is told.
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
            // What describes it goes with the index only, so it stays behind with it.
            Shape::OneImage(place) => {
                let below = kept.swap_remove(place).below;
                return Ok(Visited { below: vec![below], left_out, ..Visited::default() });
            }
            Shape::AsItIs => Document { descriptor: plain(descriptor), bytes: bytes.into() },
            Shape::Lessened => {
                leave_out_strangers(&mut kept);
                let roots = kept.iter().map(|kept| (kept.at, kept.below.root()));
                lessen(descriptor, &bytes, &roots.collect())?
            }
        };
        let below = kept.into_iter().map(|kept| kept.below).collect();
        Ok(Visited { below, document: Some(root), left_out, ..Visited::default() })
    }

    /// What goes of an entry of an index; none if the entry is left out.
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

/// Which entries of an index are to go, as far as that can be told before anybody looks below them.
struct Choice<'a> {
    scope: &'a Scope,
    /// The images for the platforms that were asked for; none if all are to go.
    wanted: Option<BTreeSet<&'a Digest>>,
    /// The index is that of a checkpoint or the like: its blobs go with it, and it is worth something for them alone.
    is_made_of_blobs: bool,
    /// The index is made of blobs, or below one that is: it may lack platforms that were asked for.
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

    /// Whether an image is none of those that were asked for.
    fn passes_over(&self, entry: &Descriptor) -> bool {
        is_image(entry) && self.wanted.as_ref().is_some_and(|wanted| !wanted.contains(&entry.digest))
    }

    /// Whether an entry that is not here, or not all of it, is left out. If not, the push fails.
    fn may_be_missing(&self, entry: &Descriptor) -> bool {
        let may_lack_it = self.wanted.is_some() && (is_attestation(entry) || self.may_lack);
        is_document(entry) && (*self.scope == Scope::Present || may_lack_it)
    }

    /// Whether the index is worth pushing for this entry.
    fn counts(&self, entry: &Descriptor) -> bool {
        is_image(entry) || self.is_made_of_blobs
    }
}

/// An entry of an index that goes.
struct Kept<'a> {
    /// Its place in the index.
    at: usize,
    entry: &'a Descriptor,
    /// See [`Choice::counts`].
    counts: bool,
    below: Arc<Visited>,
}

/// What an index goes as.
#[derive(Debug, PartialEq)]
enum Shape {
    /// There is nothing of it that counts.
    Nothing,
    /// Its only image that is here, without the index. The place is that among what is kept.
    OneImage(usize),
    AsItIs,
    /// An index of what is kept, which has a digest of its own.
    Lessened,
}

impl Shape {
    /// `entries` is how many the index has.
    fn of(kept: &[Kept<'_>], entries: usize) -> Shape {
        let is_whole = kept.len() == entries;
        if is_whole {
            let is_as_it_was = kept.iter().all(|kept| kept.below.is_for(kept.entry));
            return if is_as_it_was { Shape::AsItIs } else { Shape::Lessened };
        }
        let mut counting = kept.iter().enumerate().filter(|(_, kept)| kept.counts);
        match (counting.next(), counting.next()) {
            (None, _) => Shape::Nothing,
            (Some((place, only)), None) if is_document(only.entry) => Shape::OneImage(place),
            _ => Shape::Lessened,
        }
    }
}

/// Leaves out what describes an image that does not go.
fn leave_out_strangers(kept: &mut Vec<Kept<'_>>) {
    let images: BTreeSet<String> =
        kept.iter().filter(|kept| kept.counts).map(|kept| kept.entry.digest.to_string()).collect();
    kept.retain(|kept| describes(kept.entry).is_none_or(|image| images.contains(image)));
}

/// Blobs that are sent at once, for each registry by itself: one that takes nothing keeps its slots for as long as it is
/// borne with, and no push to another waits for it.
#[derive(Clone)]
pub(crate) struct Uploads {
    at_once: usize,
    /// Of registries that somebody sends to, or is about to.
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

/// Brings plans to a repository.
#[derive(Clone)]
struct Courier {
    stores: Stores,
    push: Push,
    report: Option<mpsc::Sender<PushProgress>>,
    to: Reference,
    slots: Slots,
}

impl Courier {
    /// Sends everything, and names the root.
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
            let (courier, blob) = (self.clone(), blob.clone());
            let slots = self.slots.uploads.to(self.push.host());
            working.spawn(async move {
                let _slot = slots.acquire_owned().await.expect("nobody closes it");
                courier.send_blob(&blob).await
            });
        }
        while let Some(joined) = working.join_next().await {
            // Dropping the set ends the others.
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
        let (courier, digest) = (self.clone(), blob.digest.clone());
        blocking(move || {
            Source::of(&courier.to).note(&courier.stores.metadata, &courier.stores.caller, &digest)
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
        // Progress that nobody reads in time is worth nothing.
        let _ = report.try_send(progress);
    }
}

/// An index with some of its children, in the order that they have, each as what it goes as.
fn lessen(
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

/// The digest of the image of the same index that a child describes, as BuildKit's attestations do.
fn describes(child: &Descriptor) -> Option<&str> {
    child.annotations.get("vnd.docker.reference.digest").map(String::as_str)
}

/// How a person knows a child of an index.
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

/// A document as the list of its subject shows it (distribution-spec 1.1, "Listing Referrers").
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

    /// A store with one blob of such bytes.
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

    /// An entry that goes as `root`.
    fn kept<'a>(at: usize, entry: &'a Descriptor, counts: bool, root: &Descriptor) -> Kept<'a> {
        let document = is_document(root).then(|| Document { descriptor: root.clone(), bytes: Bytes::new() });
        Kept { at, entry, counts, below: Arc::new(Visited { document, ..Visited::default() }) }
    }

    /// All of an index that is no checkpoint.
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
        assert_eq!(Shape::of(&[whole(&one), kept(1, &two, true, &one)], 2), Shape::Lessened, "another below");
        assert_eq!(Shape::of(&[whole(&one), whole(&two)], 3), Shape::Lessened);
        let about = kept(0, &about_one, false, &about_one);
        assert_eq!(Shape::of(&[about, whole(&one)], 3), Shape::OneImage(1));
        assert_eq!(Shape::of(&[kept(0, &about_one, false, &about_one)], 2), Shape::Nothing);
        assert_eq!(Shape::of(&[], 1), Shape::Nothing);
        assert_eq!(Shape::of(&[whole(&blob)], 2), Shape::Lessened, "a blob has no index but this one");
        assert_eq!(Shape::of(&[], 0), Shape::AsItIs);
    }

    #[test]
    fn what_describes_an_image_goes_with_it() {
        let (one, two) = (descriptor(MANIFEST, "one"), descriptor(MANIFEST, "two"));
        let (about_one, about_two) = (attestation("about one", &one), attestation("about two", &two));
        let mut left = vec![
            kept(0, &one, true, &one),
            kept(2, &about_one, false, &about_one),
            kept(3, &about_two, false, &about_two),
        ];
        leave_out_strangers(&mut left);
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
