//! Plans a push: walks an image's documents, and chooses what is pushed of each index.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use image::is_attestation;
use metadata::{Caller, Metadata, Resource};
use types::descriptor::media_type;
use types::filter::Filters;
use types::spec::image::Index;
use types::{Descriptor, Digest, Error, ErrorKind, Platform, Result, UnlessGone};

use super::{PushPart, Scope};
use crate::plain;
use crate::unpack::{known_platforms, read};

/// Documents of one push at most.
const DOCUMENTS_MAX: usize = 4096;

/// The stores, as one caller sees them.
#[derive(Clone)]
pub(super) struct Stores {
    pub(super) metadata: Metadata,
    pub(super) caller: Caller,
}

impl Stores {
    /// Plans the push of an image, and adds it to the lease of the push.
    pub(super) fn plan(&self, target: &Descriptor, scope: &Scope) -> Result<Plan> {
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
    pub(super) fn referrers(&self, mut subjects: BTreeSet<Digest>) -> Result<Vec<Plan>> {
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
}

/// What is pushed: children before parents, the root last, each once.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) documents: Vec<Document>,
    pub(super) blobs: Vec<Descriptor>,
    pub(super) left_out: Vec<String>,
    /// The same, parents first, for the progress report.
    pub(super) parts: Vec<PushPart>,
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

/// A manifest or index to push.
#[derive(Clone)]
pub(super) struct Document {
    pub(super) descriptor: Descriptor,
    pub(super) bytes: Bytes,
}

/// What is pushed of a document and its descendants.
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
                // It only describes an image, which is reported itself if it is missing.
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

pub(super) fn subject_of(descriptor: &Descriptor, bytes: &[u8]) -> Result<Option<Descriptor>> {
    if !is_document(descriptor) {
        return Ok(None);
    }
    Ok(match image::Node::parse(&descriptor.media_type, bytes)? {
        image::Node::Manifest(manifest) => manifest.subject,
        image::Node::Index(index) => index.subject,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn an_index_is_pushed_as_its_kept_entries() {
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
    fn the_scope_decides_which_entries_are_skipped_and_may_be_missing() {
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
}
