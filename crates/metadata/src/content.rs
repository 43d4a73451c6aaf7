//! Blobs and ingests as a namespace sees them: the store's bytes, with labels and leases.
//!
//! A blob that another namespace has already is shared: its writer is born complete, and a commit
//! only adds the record. Where namespaces are isolated ([`Options::isolates_content`](crate::Options)) only those that are
//! labelled so share; all other blobs have to be brought whole, and nothing tells whether somebody has them. The store
//! below knows an ingest as `<namespace>/<number>/<ref>`.

mod mending;
mod pin;
mod reader;
mod writer;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use ::content::{BlobReader, Expected, Form, IngestStatus};
use kv::{Read, Reader, Table, Value, Writer};
use types::{
    Digest, Error, ErrorKind, FieldPath, Fields, Filters, Hasher, IngestRef, Labels, Namespace, Result,
    Timestamp, filter,
};

use crate::event::Event;
use crate::gc;
use crate::gc::graph::Node;
use crate::gc::label as gc_label;
use crate::image;
use crate::lease::{self, Resource};
use crate::mask;
use crate::namespace;
use crate::store::{Caller, Change, Metadata};

pub use self::mending::Mending;
use self::pin::Pin;
use self::reader::CancellableReader;
pub use self::writer::ContentWriter;
use self::writer::Inner;

pub(crate) const BLOBS: Table<(Namespace, Digest), BlobRecord> = Table::new("blobs");
pub(crate) const INGESTS: Table<(Namespace, IngestRef), IngestRecord> = Table::new("ingests");
const VERSION: u8 = 1;

/// How long an ingest without a lease is kept.
const INGEST_LIFE: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Clone, Debug, PartialEq)]
pub struct Blob {
    pub digest: Digest,
    pub size: u64,
    pub labels: Labels,
    pub created: Timestamp,
    pub updated: Timestamp,
}

/// A blob without its digest, which is in the key.
pub(crate) struct BlobRecord {
    size: u64,
    pub(crate) labels: Labels,
    created: Timestamp,
    updated: Timestamp,
}

impl BlobRecord {
    pub(crate) fn references(&self) -> Vec<Node> {
        gc_label::references(&self.labels)
    }

    fn named(self, digest: Digest) -> Blob {
        let BlobRecord { size, labels, created, updated } = self;
        Blob { digest, size, labels, created, updated }
    }
}

impl Value for BlobRecord {
    fn encode(&self, to: &mut Writer) {
        to.byte(VERSION);
        to.timestamp(self.created);
        to.timestamp(self.updated);
        to.number(self.size);
        to.labels(&self.labels);
    }

    fn decode(from: &mut Reader<'_>) -> Result<BlobRecord> {
        from.version(VERSION)?;
        Ok(BlobRecord {
            created: from.timestamp()?,
            updated: from.timestamp()?,
            size: from.number()?,
            labels: from.labels()?,
        })
    }
}

/// An ingest without its ref, which is in the key.
pub(crate) struct IngestRecord {
    /// What the store below calls it.
    pub(crate) backend: IngestRef,
    /// `None` while a lease holds it.
    pub(crate) expires: Option<Timestamp>,
    pub(crate) expected: Option<Digest>,
}

impl IngestRecord {
    pub(crate) fn references(&self) -> Vec<Node> {
        self.ground().into_iter().collect()
    }

    /// What a flat lease keeps with it.
    pub(crate) fn ground(&self) -> Option<Node> {
        self.expected.clone().map(Node::Content)
    }
}

impl Value for IngestRecord {
    fn encode(&self, to: &mut Writer) {
        to.byte(VERSION);
        to.text(self.backend.as_str());
        to.option(self.expires.as_ref(), |to, time| to.timestamp(*time));
        to.option(self.expected.as_ref(), Writer::digest);
    }

    fn decode(from: &mut Reader<'_>) -> Result<IngestRecord> {
        from.version(VERSION)?;
        Ok(IngestRecord {
            backend: from.text()?.parse()?,
            expires: from.option(Reader::timestamp)?,
            expected: from.option(Reader::digest)?,
        })
    }
}

impl Fields for Blob {
    fn field(&self, path: &FieldPath) -> Option<Cow<'_, str>> {
        match path.head() {
            "digest" => Some(Cow::Owned(self.digest.to_string())),
            "labels" => path.label(&self.labels),
            _ => None,
        }
    }
}

struct ByRef<'a>(&'a IngestRef);

impl Fields for ByRef<'_> {
    fn field(&self, path: &FieldPath) -> Option<Cow<'_, str>> {
        if path.head() == "ref" { filter::present(self.0.as_str()) } else { None }
    }
}

/// Gives back what the store below calls those that are without a record then.
pub(crate) fn delete_all_ingests(
    change: &mut Change<'_, '_>,
    namespace: &Namespace,
) -> Result<Vec<IngestRef>> {
    let records = INGESTS.list(change.tx, (namespace,))?;
    for (key, _) in &records {
        INGESTS.delete(change.tx, (&key.0, &key.1))?;
    }
    Ok(records.into_iter().map(|(_, record)| record.backend).collect())
}

#[derive(Clone)]
pub struct Content {
    store: Metadata,
    caller: Caller,
}

impl Content {
    pub(crate) fn new(store: Metadata, caller: Caller) -> Content {
        Content { store, caller }
    }

    /// `NotFound` also for blobs that only other namespaces have.
    pub fn info(&self, digest: &Digest) -> Result<Blob> {
        self.store.0.read(|tx| self.find(tx, digest))
    }

    /// The blobs that match, by digest.
    pub fn list(&self, filters: &Filters) -> Result<Vec<Blob>> {
        let mut found = Vec::new();
        self.store.0.read(|tx| {
            BLOBS.scan(tx, (self.namespace(),), |(_, digest), record| {
                let blob = record.named(digest);
                if filters.matches(&blob) {
                    found.push(blob);
                }
                Ok(ControlFlow::Continue(()))
            })
        })?;
        Ok(found)
    }

    /// Replaces labels: those that `paths` name (`labels`, `labels.<key>`), or all without paths.
    /// A label whose new value is empty is deleted. Gives back the blob as it is then.
    pub fn update(&self, digest: &Digest, labels: &Labels, paths: &[String]) -> Result<Blob> {
        self.store.0.change_on_disk(self.caller.on_disk, |change| {
            let mut blob = self.find(change.tx, digest)?;
            let refused = |path: &str| mask::refused(path, &format!("content info \"{digest}\""));
            blob.labels = mask::labels("info.Labels", blob.labels, labels, paths, refused)?;
            blob.updated = change.now;
            put(change, self.namespace(), &blob)?;
            Ok(blob)
        })
    }

    /// Drops the blob from the namespace. Its bytes go when no namespace has it.
    pub fn delete(&self, digest: &Digest) -> Result<()> {
        self.store.0.change(|change| self.delete_in(change, digest))?;
        self.store.0.gc.orphan(digest);
        Ok(())
    }

    fn delete_in(&self, change: &mut Change<'_, '_>, digest: &Digest) -> Result<()> {
        if !BLOBS.delete(change.tx, (self.namespace(), digest))? {
            return Err(not_found(digest));
        }
        lease::remove(change, &self.caller, &Resource::Content(digest.clone()))?;
        change.free();
        change.emit(self.namespace(), Event::ContentDeleted { digest: digest.clone() });
        Ok(())
    }

    /// Drops a blob that was found to be of no use to `images`, which are all the namespace had, and what `parents` say of
    /// it to the collector, as if they had been stored without it.
    ///
    /// Not done, and false, if a lease keeps it, be it by a document: somebody is about to use it. `Aborted` if there
    /// are images that were not there.
    pub fn discard(
        &self,
        digest: &Digest,
        parents: &BTreeSet<Digest>,
        images: &BTreeMap<String, Digest>,
    ) -> Result<bool> {
        let namespace = self.namespace();
        let is_discarded = self.store.0.change(|change| {
            if gc::leased(&self.store.0, change.tx, namespace)?.contains(&Node::Content(digest.clone())) {
                return Ok(false);
            }
            if let Some(name) = image::first_beside(change.tx, namespace, images)? {
                return Err(Error::new(
                    ErrorKind::Aborted,
                    format!("image {name:?} is new, and may need blob {digest}"),
                ));
            }
            for parent in parents {
                let Some(record) = BLOBS.get(change.tx, (namespace, parent))? else { continue };
                let mut parent = record.named(parent.clone());
                let known = parent.labels.len();
                parent.labels.retain(|key, value| !gc_label::is_of_content(key, value, digest));
                if parent.labels.len() < known {
                    parent.updated = change.now;
                    put(change, namespace, &parent)?;
                }
            }
            self.delete_in(change, digest)?;
            Ok(true)
        })?;
        if is_discarded {
            self.store.0.gc.orphan(digest);
        }
        Ok(is_discarded)
    }

    pub fn reader(&self, digest: &Digest) -> Result<Box<dyn BlobReader>> {
        self.info(digest)?;
        let reader = self.store.0.content.reader(digest)?;
        let cancel = &self.caller.cancel;
        if cancel.is_never() {
            return Ok(reader);
        }
        Ok(Box::new(CancellableReader { reader, cancel: cancel.clone() }))
    }

    /// How the blob is kept.
    pub fn form(&self, digest: &Digest) -> Result<Form> {
        self.info(digest)?;
        self.store.0.content.form(digest)
    }

    /// Keeps a recipe in the place of the blob, if that is worth it; see [`::content::Store::keep_recipe`]. All
    /// namespaces that have the blob share it.
    pub fn keep_recipe(&self, digest: &Digest, plain: &Path, len: u64) -> Result<bool> {
        let _pin = Pin::new(&self.store, digest);
        self.info(digest)?;
        self.store.0.content.keep_recipe(digest, plain, len)
    }

    /// Opens an ingest, new or left behind. It joins the caller's lease; without one it expires
    /// after 24 hours.
    ///
    /// `AlreadyExists` if the namespace has the expected blob, which then joins the lease.
    /// `Unavailable` while another writer has the ref open, whose ingest it stays.
    pub fn begin(&self, reference: &IngestRef, expected: Expected) -> Result<ContentWriter> {
        if let Some(digest) = &expected.digest {
            self.refuse_existing(digest)?;
        }
        let Recorded { backend, is_new } = self.record_ingest(reference, &expected)?;
        let opened = self.open(&backend, &expected);
        match &opened {
            // Another was quicker to open what we made.
            Err(error) if is_new && error.is(ErrorKind::Unavailable) => self.leave_ingest(reference)?,
            Ok(Inner::Own(_)) if !is_new => self.join_ingest(reference, &backend, expected.digest)?,
            _ => {}
        }
        Ok(ContentWriter {
            media_type: String::new(),
            times: None,
            store: self.store.clone(),
            caller: self.caller.clone(),
            reference: reference.clone(),
            backend,
            inner: opened?,
        })
    }

    /// Begins to bring right bytes for a blob of the namespace whose own were found to be wrong, or gone.
    /// `Unavailable` while somebody else does.
    pub fn mend(&self, digest: &Digest, size: u64) -> Result<Mending> {
        self.info(digest)?;
        let pin = Pin::new(&self.store, digest);
        let backend = IngestRef::new(format!("mend/{digest}"))?;
        let mut writer = self.store.0.content.begin(&backend, Expected { size: Some(size), digest: None })?;
        writer.truncate()?;
        let (store, hasher) = (self.store.clone(), Hasher::new(digest.algorithm()));
        Ok(Mending { store, pin, size, hasher, backend, writer: Some(writer) })
    }

    pub fn status(&self, reference: &IngestRef) -> Result<IngestStatus> {
        let record = self.store.0.read(|tx| self.find_ingest(tx, reference))?;
        let status = self.store.0.content.status(&record.backend);
        status.map(|status| IngestStatus { reference: reference.clone(), ..status })
    }

    /// The ingests whose `ref` matches.
    pub fn statuses(&self, filters: &Filters) -> Result<Vec<IngestStatus>> {
        let records = self.store.0.read(|tx| INGESTS.list(tx, (self.namespace(),)))?;
        let mut statuses = Vec::new();
        for ((_, reference), record) in records {
            if !filters.matches(&ByRef(&reference)) {
                continue;
            }
            match self.store.0.content.status(&record.backend) {
                Ok(status) => statuses.push(IngestStatus { reference, ..status }),
                Err(error) if error.is(ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(statuses)
    }

    /// Drops an ingest. A writer that has it open writes for nobody from then on: its commit is refused, and the name
    /// is free for another at once.
    pub fn abort(&self, reference: &IngestRef) -> Result<()> {
        let backend = self.store.0.change(|change| {
            let record = self.find_ingest(change.tx, reference)?;
            remove_ingest(change, &self.caller, reference)?;
            Ok(record.backend)
        })?;
        match self.store.0.abort_ingest(&backend) {
            Err(error) if error.is(ErrorKind::NotFound) => Ok(()),
            // Its writer has it. The collection takes it when that one has let go.
            Err(error) if error.is(ErrorKind::Unavailable) => {
                self.store.0.gc.orphan_ingest(backend);
                Ok(())
            }
            Err(error) => {
                self.store.0.gc.orphan_ingest(backend);
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    /// As [`Content::abort`], but leaves an ingest that somebody else has open to its writer, and only takes it from
    /// the caller's lease then.
    pub fn abort_unwritten(&self, reference: &IngestRef) -> Result<()> {
        match self.begin(reference, Expected::default()) {
            Ok(writer) => writer.abort(),
            Err(error) if error.is(ErrorKind::Unavailable) => self.leave_ingest(reference),
            Err(error) => Err(error),
        }
    }

    fn namespace(&self) -> &Namespace {
        &self.caller.namespace
    }

    fn find(&self, tx: &impl Read, digest: &Digest) -> Result<Blob> {
        let record = BLOBS.get(tx, (self.namespace(), digest))?;
        record.map(|record| record.named(digest.clone())).ok_or_else(|| not_found(digest))
    }

    fn find_ingest(&self, tx: &impl Read, reference: &IngestRef) -> Result<IngestRecord> {
        INGESTS
            .get(tx, (self.namespace(), reference))?
            .ok_or_else(|| Error::not_found(format!("reference {reference}")))
    }

    fn refuse_existing(&self, digest: &Digest) -> Result<()> {
        if !self.store.0.read(|tx| BLOBS.contains(tx, (self.namespace(), digest)))? {
            return Ok(());
        }
        let found = self.caller.lease.is_none()
            || self.store.0.change_on_disk(self.caller.on_disk, |change| {
                let found = BLOBS.contains(change.tx, (self.namespace(), digest))?;
                if found {
                    change.admit(&self.caller, Some(Resource::Content(digest.clone())))?;
                }
                Ok(found)
            })?;
        if found { Err(self.store.0.refusal(self.caller.on_disk, already_exists(digest))) } else { Ok(()) }
    }

    /// Finds or makes the record. One that is found may be another's, and stays as it is.
    fn record_ingest(&self, reference: &IngestRef, expected: &Expected) -> Result<Recorded> {
        let number = self.store.0.sequence.next()?;
        self.store.0.change_relaxed(|change| {
            if let Some(found) = INGESTS.get(change.tx, (self.namespace(), reference))? {
                return Ok(Recorded { backend: found.backend, is_new: false });
            }
            change.admit(&self.caller, None)?;
            let backend = IngestRef::new(format!("{}/{number}/{reference}", self.namespace()))?;
            self.put_ingest(change, reference, &backend, expected.digest.clone())?;
            Ok(Recorded { backend, is_new: true })
        })
    }

    /// Makes an ingest that was found the caller's, who has it open.
    fn join_ingest(
        &self,
        reference: &IngestRef,
        backend: &IngestRef,
        expected: Option<Digest>,
    ) -> Result<()> {
        self.store.0.change_relaxed(|change| {
            let record = INGESTS.get(change.tx, (self.namespace(), reference))?;
            if record.is_none_or(|record| record.backend != *backend) {
                return Err(Error::unavailable(format!(
                    "ingest {reference} was dropped just now, try again"
                )));
            }
            self.put_ingest(change, reference, backend, expected)
        })
    }

    fn put_ingest(
        &self,
        change: &mut Change<'_, '_>,
        reference: &IngestRef,
        backend: &IngestRef,
        expected: Option<Digest>,
    ) -> Result<()> {
        if let Some(lease) = &self.caller.lease {
            lease::add(change, self.namespace(), lease, &Resource::Ingest(reference.clone()))?;
        }
        let expires = self.caller.lease.is_none().then(|| change.now.plus(INGEST_LIFE));
        let record = IngestRecord { backend: backend.clone(), expires, expected };
        INGESTS.put(change.tx, (self.namespace(), reference), &record)?;
        change.expires(expires);
        change.touch(self.namespace(), Node::Ingest(reference.clone()));
        Ok(())
    }

    /// Takes an ingest that is another's from the caller's lease.
    ///
    /// That one may have the same lease, which does not tell the two apart: an ingest that a lease holds is kept as one
    /// without from here on, so that its writer does not lose it.
    fn leave_ingest(&self, reference: &IngestRef) -> Result<()> {
        if self.caller.lease.is_none() {
            return Ok(());
        }
        self.store.0.change_relaxed(|change| {
            lease::remove(change, &self.caller, &Resource::Ingest(reference.clone()))?;
            let Some(record) = INGESTS.get(change.tx, (self.namespace(), reference))? else { return Ok(()) };
            if record.expires.is_none() {
                let expires = Some(change.now.plus(INGEST_LIFE));
                let record = IngestRecord { expires, ..record };
                INGESTS.put(change.tx, (self.namespace(), reference), &record)?;
                change.expires(expires);
                change.touch(self.namespace(), Node::Ingest(reference.clone()));
            }
            Ok(())
        })
    }

    fn open(&self, backend: &IngestRef, expected: &Expected) -> Result<Inner> {
        match self.share(expected)? {
            Some(shared) => Ok(shared),
            // The store below does not know whose blobs are whose, and is not asked.
            None if self.store.0.isolates_content => {
                let expected = Expected { digest: None, ..expected.clone() };
                Ok(Inner::Own(self.store.0.content.begin(backend, expected)?))
            }
            None => self.open_backend(backend, expected),
        }
    }

    /// A writer that is complete, if another namespace has the expected blob and shares it.
    fn share(&self, expected: &Expected) -> Result<Option<Inner>> {
        let Some(digest) = &expected.digest else { return Ok(None) };
        if self.store.0.isolates_content && !self.store.0.read(|tx| is_shareable(tx, digest))? {
            return Ok(None);
        }
        let pin = Pin::new(&self.store, digest);
        match self.store.0.content.info(digest) {
            Ok(blob) => Ok(Some(Inner::Shared { size: blob.size, started: blob.created, pin })),
            // What is lost is fetched anew.
            Err(error) if error.is(ErrorKind::NotFound) || error.is(ErrorKind::DataLoss) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open_backend(&self, backend: &IngestRef, expected: &Expected) -> Result<Inner> {
        match self.store.0.content.begin(backend, expected.clone()) {
            Err(error) if error.is(ErrorKind::AlreadyExists) => {
                // It came while we looked; if it is gone again, a collection was quick.
                let gone = || Error::unavailable(format!("ingest {backend} lost a race, try again"));
                self.share(expected)?.ok_or_else(gone)
            }
            writer => Ok(Inner::Own(writer?)),
        }
    }
}

/// Whether a namespace that shares what it has has the blob.
fn is_shareable(tx: &impl Read, digest: &Digest) -> Result<bool> {
    for namespace in namespace::sharing(tx)? {
        if BLOBS.contains(tx, (&namespace, digest))? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn put(change: &mut Change<'_, '_>, namespace: &Namespace, blob: &Blob) -> Result<()> {
    let Blob { digest, size, labels, created, updated } = blob.clone();
    change.expires(gc_label::expiry(&labels));
    let record = BlobRecord { size, labels, created, updated };
    BLOBS.put(change.tx, (namespace, &digest), &record)?;
    change.touch(namespace, Node::Content(digest));
    Ok(())
}

fn remove_ingest(change: &mut Change<'_, '_>, caller: &Caller, reference: &IngestRef) -> Result<()> {
    INGESTS.delete(change.tx, (&caller.namespace, reference))?;
    lease::remove(change, caller, &Resource::Ingest(reference.clone()))
}

/// The record of an ingest, by what the store below calls it.
struct Recorded {
    backend: IngestRef,
    is_new: bool,
}

fn not_found(digest: &Digest) -> Error {
    Error::not_found(format!("content digest {digest}"))
}

fn already_exists(digest: &Digest) -> Error {
    Error::already_exists(format!("content {digest}"))
}
