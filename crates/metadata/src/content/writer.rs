//! The writer of an ingest in a namespace.

use ::content::{Expected, IngestStatus, IngestWriter};
use types::{Digest, Error, ErrorKind, IngestRef, Labels, Result, Timestamp, label};

use super::pin::Pin;
use super::reader::cancelled;
use super::{BLOBS, Blob, Content, INGESTS, already_exists, put, remove_ingest};
use crate::event::Event;
use crate::gc::graph::Node;
use crate::lease::Resource;
use crate::mask;
use crate::store::{Caller, Metadata, Notice};

/// The writer of an ingest in a namespace. Dropping it keeps the bytes for a later [`Content::begin`].
pub struct ContentWriter {
    pub(super) store: Metadata,
    pub(super) caller: Caller,
    pub(super) reference: IngestRef,
    /// The content store's name of the ingest.
    pub(super) backend: IngestRef,
    /// For the event of the blob. Empty if unknown.
    pub(super) media_type: String,
    /// Creation and update time of the blob; `None` for the time of the record.
    pub(super) times: Option<(Timestamp, Timestamp)>,
    pub(super) inner: Inner,
}

pub(super) enum Inner {
    Own(Box<dyn IngestWriter>),
    /// Another namespace has the blob.
    Shared {
        size: u64,
        started: Timestamp,
        pin: Pin,
    },
}

impl ContentWriter {
    /// Sets creation and update time, for a blob of another store.
    #[must_use]
    pub fn dated(self, created: Timestamp, updated: Timestamp) -> ContentWriter {
        ContentWriter { times: Some((created, updated)), ..self }
    }

    /// Sets the blob's media type, for its event.
    #[must_use]
    pub fn of_type(mut self, media_type: &str) -> ContentWriter {
        media_type.clone_into(&mut self.media_type);
        self
    }

    /// Appends bytes. A writer that shares another namespace's blob takes none: its offset is the blob's size from
    /// the start.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.caller.cancel.check().map_err(cancelled)?;
        match &mut self.inner {
            Inner::Own(writer) => writer.write(bytes),
            Inner::Shared { .. } if bytes.is_empty() => Ok(()),
            Inner::Shared { .. } => {
                Err(Error::out_of_range(format!("ingest {} is complete already", self.reference)))
            }
        }
    }

    pub fn offset(&self) -> u64 {
        match &self.inner {
            Inner::Own(writer) => writer.offset(),
            Inner::Shared { size, .. } => *size,
        }
    }

    /// The digest of the bytes so far.
    pub fn digest(&self) -> Digest {
        match &self.inner {
            Inner::Own(writer) => writer.digest(),
            Inner::Shared { pin, .. } => pin.digest.clone(),
        }
    }

    /// Whether another namespace already had the bytes.
    pub fn is_shared(&self) -> bool {
        matches!(self.inner, Inner::Shared { .. })
    }

    pub fn status(&self) -> Result<IngestStatus> {
        match &self.inner {
            Inner::Own(writer) => {
                let status = writer.status()?;
                Ok(IngestStatus { reference: self.reference.clone(), ..status })
            }
            Inner::Shared { size, started, pin } => Ok(IngestStatus {
                reference: self.reference.clone(),
                offset: *size,
                total: Some(*size),
                expected: Some(pin.digest.clone()),
                started: *started,
                updated: *started,
            }),
        }
    }

    /// Starts over without bytes. A writer that shared another namespace's blob takes bytes of its own from then on.
    pub fn truncate(&mut self) -> Result<()> {
        let had_bytes = self.offset() > 0;
        if let Inner::Shared { size, .. } = &self.inner {
            let expected = Expected { size: Some(*size), digest: None };
            self.inner = Inner::Own(self.store.0.content.begin(&self.backend, expected)?);
            let content = Content::new(self.store.clone(), self.caller.clone());
            content.join_ingest(&self.reference, &self.backend, None)?;
        }
        match &mut self.inner {
            Inner::Own(writer) => writer.truncate()?,
            Inner::Shared { .. } => unreachable!("made an own writer above"),
        }
        if had_bytes {
            (self.store.0.notice)(Notice::SetAside);
        }
        Ok(())
    }

    /// Drops the ingest, before this writer releases it to others.
    pub fn abort(self) -> Result<()> {
        let ContentWriter { store, caller, reference, inner, backend, .. } = self;
        store.0.change(|change| {
            // The ref may name another ingest by now.
            let record = INGESTS.get(change.tx, (&caller.namespace, &reference))?;
            match record.is_some_and(|record| record.backend == backend) {
                true => remove_ingest(change, &caller, &reference),
                false => Ok(()),
            }
        })?;
        drop(inner);
        match store.0.abort_ingest(&backend) {
            Err(error) if !error.is(ErrorKind::NotFound) => {
                store.0.gc.orphan_ingest(backend);
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Turns the ingest into a blob of the namespace, with `labels`, in the caller's lease.
    ///
    /// `FailedPrecondition` if size or digest differ from `expected`: the ingest stays. `AlreadyExists` if the
    /// namespace has the blob: the ingest is dropped, and the blob joins the lease. `Aborted` if another caller
    /// dropped the ingest.
    pub fn commit(self, expected: Expected, labels: Labels) -> Result<Blob> {
        label::check(&labels).map_err(|error| error.context("info.Labels"))?;
        let labels = mask::without_empty(labels);
        let ContentWriter { store, caller, reference, media_type, times, inner, backend } = self;
        let is_shared = matches!(inner, Inner::Shared { .. });
        // The pin is held until the record exists.
        let (pin, size) = inner.complete(&store, &backend, expected)?;
        let digest = pin.digest.clone();
        let added = store.0.change_on_disk(caller.on_disk, |change| {
            // The ref may name another ingest by now.
            let record = INGESTS.get(change.tx, (&caller.namespace, &reference))?;
            let is_there = record.is_some_and(|record| record.backend == backend);
            if is_there {
                remove_ingest(change, &caller, &reference)?;
            }
            change.admit(&caller, Some(Resource::Content(digest.clone())))?;
            if BLOBS.contains(change.tx, (&caller.namespace, &digest))? {
                change.touch(&caller.namespace, Node::Content(digest.clone()));
                return Ok(None);
            }
            // A shared blob needs no ingest of its own.
            if !is_there && !is_shared {
                return Err(Error::new(
                    ErrorKind::Aborted,
                    format!("ingest {reference} was dropped meanwhile"),
                ));
            }
            let (created, updated) = times.unwrap_or((change.now, change.now));
            let blob = Blob { digest: digest.clone(), size, labels, created, updated };
            put(change, &caller.namespace, &blob)?;
            let event = Event::ContentCreated { digest: digest.clone(), size, media_type };
            change.emit(&caller.namespace, event);
            Ok(Some(blob))
        });
        match &added {
            // An earlier writer of the ref may have left bytes.
            Ok(_) if is_shared => store.0.gc.orphan_ingest(backend),
            Ok(_) => {}
            // The content store may have the blob without a record.
            Err(_) => store.0.gc.orphan(&digest),
        }
        added?.ok_or_else(|| store.0.refusal(caller.on_disk, already_exists(&digest)))
    }
}

impl Inner {
    /// Makes sure that the content store has the blob. Returns its pin and size.
    fn complete(self, store: &Metadata, backend: &IngestRef, expected: Expected) -> Result<(Pin, u64)> {
        match self {
            Inner::Shared { size, pin, .. } => {
                expected.check(size, &pin.digest)?;
                // Another writer may be committing it; the store answers `AlreadyExists` once it is on disk.
                let whole = Expected { size: None, digest: Some(pin.digest.clone()) };
                match store.0.content.begin(backend, whole) {
                    Err(error) if error.is(ErrorKind::AlreadyExists) => Ok((pin, size)),
                    begun => {
                        begun?;
                        Err(Error::data_loss(format!("content {} is lost; bring it again", pin.digest)))
                    }
                }
            }
            Inner::Own(writer) => {
                let size = writer.offset();
                let same_algorithm = |digest: &Digest| digest.algorithm() == writer.digest().algorithm();
                let digest = match expected.digest.clone() {
                    Some(digest) if !same_algorithm(&digest) => digest,
                    _ => writer.digest(),
                };
                let pin = Pin::new(store, &digest);
                match writer.commit(expected) {
                    Err(error) if !error.is(ErrorKind::AlreadyExists) => Err(error),
                    _ => Ok((pin, size)),
                }
            }
        }
    }
}
