//! The port of content stores.

use std::io;
use std::path::Path;

use types::{Digest, Error, IngestRef, Result, Timestamp};

/// A store of blobs. Its methods block, and may be called from any thread.
pub trait Store: Send + Sync {
    /// Describes a blob. `NotFound` if there is no such blob, `DataLoss` if its recipe is damaged.
    fn info(&self, digest: &Digest) -> Result<Blob>;

    /// Opens a blob for reading. The reader keeps working if the blob is deleted meanwhile. `NotFound` if there is no
    /// such blob, `DataLoss` if it cannot be rebuilt.
    fn reader(&self, digest: &Digest) -> Result<Box<dyn BlobReader>>;

    /// All blobs, in no order, except those whose recipe is damaged.
    fn list(&self) -> Result<Vec<Blob>>;

    /// Deletes a blob. The disk space of a large one may be freed only by [`Store::reclaim`]. `NotFound` if there is no
    /// such blob.
    fn delete(&self, digest: &Digest) -> Result<()>;

    /// Frees the disk space of deleted blobs and ingests, until `go_on`, which is called after each step, returns
    /// false. Returns whether all is freed.
    fn reclaim(&self, go_on: &dyn Fn() -> bool) -> Result<bool> {
        let _ = go_on;
        Ok(true)
    }

    /// How the bytes of a blob are kept. `NotFound` if there is no such blob, `DataLoss` if its recipe is damaged.
    fn form(&self, digest: &Digest) -> Result<Form> {
        self.info(digest).map(|_| Form::Whole)
    }

    /// Replaces the bytes of a blob by a recipe, from which the store rebuilds them with the first `len` bytes of the
    /// file `plain`: the plain bytes of the blob. The caller must not write to this file any more; the store keeps a
    /// hard link to it. Readers see no difference. Returns whether the blob is kept as a recipe: not if this would save
    /// little, or is not possible.
    ///
    /// The blob's bytes are deleted only after the recipe is on disk, and a rebuild with it gave the right digest.
    fn keep_recipe(&self, digest: &Digest, plain: &Path, len: u64) -> Result<bool> {
        let _ = (plain, len);
        self.info(digest).map(|_| false)
    }

    /// Drops caches. The daemon calls it when it is idle.
    fn relax(&self) {}

    /// Opens an ingest for writing: an existing one at its offset, or a new one. An ingest that was begun with another
    /// size begins anew.
    ///
    /// `Unavailable` while another writer has it open, `AlreadyExists` if `expected.digest` is a blob,
    /// `ResourceExhausted` if the disk has no space for the expected size.
    fn begin(&self, reference: &IngestRef, expected: Expected) -> Result<Box<dyn IngestWriter>>;

    /// Describes an ingest. `NotFound` if there is none.
    fn status(&self, reference: &IngestRef) -> Result<IngestStatus>;

    /// All ingests, in no order.
    fn statuses(&self) -> Result<Vec<IngestStatus>>;

    /// Deletes an ingest with its bytes. `NotFound` if there is none. While a writer has it open, a store may refuse
    /// with `Unavailable`, or delete it so that the writer's commit fails.
    fn abort(&self, reference: &IngestRef) -> Result<()>;
}

/// The writer of an ingest. Dropping it keeps the bytes for a later [`Store::begin`].
pub trait IngestWriter: Send {
    /// Appends bytes. After an error a part of them may be written: see [`IngestWriter::offset`].
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Bytes written so far.
    fn offset(&self) -> u64;

    /// The digest of the bytes so far.
    fn digest(&self) -> Digest;

    fn status(&self) -> Result<IngestStatus>;

    /// Discards all bytes, so that the ingest begins anew.
    fn truncate(&mut self) -> Result<()>;

    /// Turns the ingest into a blob, which is durable when this returns.
    ///
    /// `FailedPrecondition` if size or digest differ from `expected`: the ingest stays as it was.
    /// `AlreadyExists` if the blob exists: the ingest is deleted.
    fn commit(self: Box<Self>, expected: Expected) -> Result<Blob>;
}

/// Reads the bytes of a blob, in order or at any offset.
pub trait BlobReader: io::Read + Send + Sync {
    /// Bytes of the blob.
    fn size(&self) -> u64;

    /// Fills `buf` from `offset` on, and returns how many bytes were read: fewer only at the end of the blob.
    /// `DataLoss` if the disk cannot read them.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize>;

    /// The file of the blob, for callers that can pass it to the kernel. It shares its offset with this reader's
    /// `read`.
    fn as_file(&self) -> Option<&std::fs::File> {
        None
    }

    /// Reads all bytes. `ResourceExhausted` if there are more than `limit`.
    fn read_all(&self, limit: u64) -> Result<Vec<u8>> {
        let too_large =
            || Error::resource_exhausted(format!("blob of {} bytes, at most {limit} expected", self.size()));
        let len = usize::try_from(self.size()).map_err(|_| too_large())?;
        if self.size() > limit {
            return Err(too_large());
        }
        let mut bytes = vec![0; len];
        let read = self.read_at(&mut bytes, 0)?;
        if read < len {
            return Err(Error::data_loss(format!("blob ended after {read} of {len} bytes")));
        }
        Ok(bytes)
    }
}

/// The size and digest that a blob must have, as far as the caller knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    pub size: Option<u64>,
    pub digest: Option<Digest>,
}

impl Expected {
    pub fn new(digest: Digest, size: u64) -> Expected {
        Expected { size: Some(size), digest: Some(digest) }
    }

    /// `FailedPrecondition` unless `size` and `digest` are as expected.
    pub fn check(&self, size: u64, digest: &Digest) -> Result<()> {
        if let Some(expected) = self.size
            && expected != size
        {
            return Err(Error::failed_precondition(format!(
                "unexpected commit size {size}, expected {expected}"
            )));
        }
        if let Some(expected) = &self.digest
            && expected != digest
        {
            return Err(Error::failed_precondition(format!(
                "unexpected commit digest {digest}, expected {expected}"
            )));
        }
        Ok(())
    }
}

/// How a blob is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As a file.
    Whole,
    /// As a recipe and a file of plain bytes, which a snapshot may share.
    Recipe {
        /// Bytes of the recipe on disk.
        len: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    pub digest: Digest,
    pub size: u64,
    pub created: Timestamp,
    pub updated: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestStatus {
    pub reference: IngestRef,
    /// Bytes written so far.
    pub offset: u64,
    /// The size given at `begin`.
    pub total: Option<u64>,
    /// The digest given at `begin`; known only while the writer is open.
    pub expected: Option<Digest>,
    pub started: Timestamp,
    pub updated: Timestamp,
}
