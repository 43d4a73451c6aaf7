//! Blobs and ingests of a namespace: the content store's bytes, with labels and leases.
//!
//! A blob that another namespace has is shared: its writer starts complete, and a commit only adds the record. With
//! isolated namespaces ([`Options::isolates_content`](crate::Options)) only those labelled as shareable do so; all
//! other blobs must be written in full, and a client cannot find out whether another namespace has them. The content
//! store's name of an ingest is `<namespace>/<number>/<ref>`.

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

/// The stored form of a blob. Its digest is in the key.
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

/// The stored form of an ingest. Its ref is in the key.
pub(crate) struct IngestRecord {
    /// The content store's name of the ingest.
    pub(crate) backend: IngestRef,
    /// When it expires; `None` while a lease holds it.
    pub(crate) expires: Option<Timestamp>,
    pub(crate) expected: Option<Digest>,
}

impl IngestRecord {
    pub(crate) fn references(&self) -> Vec<Node> {
        self.ground().into_iter().collect()
    }

    /// The object that a flat lease keeps together with this one.
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

/// Deletes the ingest records of a namespace. Returns the content store's names of the ingests.
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

    /// A blob of the namespace. `NotFound` also if only other namespaces have it.
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

    /// Replaces labels: those that `paths` name (`labels`, `labels.<key>`), or all without paths. A label with an
    /// empty value is deleted. Returns the updated blob.
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

    /// Deletes the blob's record. Its bytes are deleted once no namespace has it.
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

    /// Deletes a blob that none of `images`, the namespace's images when the caller looked, needs as bytes, and
    /// removes the garbage collection labels of `parents` for it.
    ///
    /// Returns false, without a change, if a lease holds the blob, directly or through a document: a client may be
    /// about to use it. `Aborted` if the namespace has other images by now.
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
            if let Some(name) = image::first_unknown(change.tx, namespace, images)? {
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

    /// How the content store keeps the blob.
    pub fn form(&self, digest: &Digest) -> Result<Form> {
        self.info(digest)?;
        self.store.0.content.form(digest)
    }

    /// Replaces the blob's bytes by a recipe, if that is small enough; see [`::content::Store::keep_recipe`]. This
    /// concerns all namespaces that have the blob.
    pub fn keep_recipe(&self, digest: &Digest, plain: &Path, len: u64) -> Result<bool> {
        let _pin = Pin::new(&self.store, digest);
        self.info(digest)?;
        self.store.0.content.keep_recipe(digest, plain, len)
    }

    /// Opens an ingest, new or partial. It joins the caller's lease; without one it expires after 24 hours.
    ///
    /// `AlreadyExists` if the namespace has the expected blob, which then joins the lease. `Unavailable` while
    /// another writer has the ingest open, which keeps it.
    pub fn begin(&self, reference: &IngestRef, expected: Expected) -> Result<ContentWriter> {
        if let Some(digest) = &expected.digest {
            self.refuse_existing(digest)?;
        }
        let Recorded { backend, is_new } = self.record_ingest(reference, &expected)?;
        let opened = self.open(&backend, &expected);
        match &opened {
            // Another caller opened the new ingest first.
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

    /// Starts replacing the bytes of a blob that are damaged or missing. `Unavailable` while another caller does so.
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

    /// Drops an ingest. If a writer has it open, its commit will fail; the ref is free at once.
    pub fn abort(&self, reference: &IngestRef) -> Result<()> {
        let backend = self.store.0.change(|change| {
            let record = self.find_ingest(change.tx, reference)?;
            remove_ingest(change, &self.caller, reference)?;
            Ok(record.backend)
        })?;
        match self.store.0.abort_ingest(&backend) {
            Err(error) if error.is(ErrorKind::NotFound) => Ok(()),
            // A writer has it open. The collection removes it once the writer is dropped.
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

    /// As [`Content::abort`], but leaves an ingest that another writer has open, and only removes it from the
    /// caller's lease.
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

    /// Finds or creates the record. An existing one may be another caller's, and is not changed.
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

    /// Takes over an existing ingest, which the caller has opened: its lease and expected digest become the caller's.
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
        lease::join(change, &self.caller, &Resource::Ingest(reference.clone()))?;
        let expires = self.caller.lease.is_none().then(|| change.now.plus(INGEST_LIFE));
        let record = IngestRecord { backend: backend.clone(), expires, expected };
        INGESTS.put(change.tx, (self.namespace(), reference), &record)?;
        change.expires(expires);
        change.touch(self.namespace(), Node::Ingest(reference.clone()));
        Ok(())
    }

    /// Removes another caller's ingest from the caller's lease.
    ///
    /// Both may use the same lease, which cannot tell them apart: so an ingest that only leases held gets an expiry,
    /// lest its writer lose it.
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
            // The content store does not know namespaces, so it must not be asked for the digest.
            None if self.store.0.isolates_content => {
                let expected = Expected { digest: None, ..expected.clone() };
                Ok(Inner::Own(self.store.0.content.begin(backend, expected)?))
            }
            None => self.open_backend(backend, expected),
        }
    }

    /// A complete writer, if another namespace has the expected blob and shares it.
    fn share(&self, expected: &Expected) -> Result<Option<Inner>> {
        let Some(digest) = &expected.digest else { return Ok(None) };
        if self.store.0.isolates_content && !self.store.0.read(|tx| is_shareable(tx, digest))? {
            return Ok(None);
        }
        let pin = Pin::new(&self.store, digest);
        match self.store.0.content.info(digest) {
            Ok(blob) => Ok(Some(Inner::Shared { size: blob.size, started: blob.created, pin })),
            // A lost blob is fetched again.
            Err(error) if error.is(ErrorKind::NotFound) || error.is(ErrorKind::DataLoss) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open_backend(&self, backend: &IngestRef, expected: &Expected) -> Result<Inner> {
        match self.store.0.content.begin(backend, expected.clone()) {
            Err(error) if error.is(ErrorKind::AlreadyExists) => {
                // The blob was committed meanwhile; if it is gone again, a collection has removed it.
                let gone = || Error::unavailable(format!("ingest {backend} lost a race, try again"));
                self.share(expected)?.ok_or_else(gone)
            }
            writer => Ok(Inner::Own(writer?)),
        }
    }
}

/// Whether a namespace that shares its blobs has this one.
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

/// The record of an ingest: the content store's name of it, and whether it was just created.
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
