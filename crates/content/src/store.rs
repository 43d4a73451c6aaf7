//! The port: what any content store does.

use std::io;
use std::path::Path;

use types::{Digest, Error, IngestRef, Result, Timestamp};

/// A store of blobs. Calls block; any thread may make them.
pub trait Store: Send + Sync {
    /// `NotFound` if there is no such blob, `DataLoss` if it is seen to be lost.
    fn info(&self, digest: &Digest) -> Result<Blob>;

    /// Opens a blob for reading. The reader goes on to work when the blob is deleted meanwhile.
    /// `NotFound` if there is no such blob.
    fn reader(&self, digest: &Digest) -> Result<Box<dyn BlobReader>>;

    /// All blobs, in no order, but those that are seen to be lost.
    fn list(&self) -> Result<Vec<Blob>>;

    /// Removes a blob at once, though the room of a large one may come with [`Store::reclaim`]. `NotFound` if there is no
    /// such blob.
    fn delete(&self, digest: &Digest) -> Result<()>;

    /// Gives back the room of what was removed, until `go_on`, which is asked after each step, says no. Whether there is
    /// no more of it.
    fn reclaim(&self, go_on: &dyn Fn() -> bool) -> Result<bool> {
        let _ = go_on;
        Ok(true)
    }

    /// How the bytes of a blob are kept. `NotFound` if there is no such blob, `DataLoss` if it is seen to be lost.
    fn form(&self, digest: &Digest) -> Result<Form> {
        self.info(digest).map(|_| Form::Whole)
    }

    /// Keeps, in the place of a blob, what it takes to make it again from the first `len` bytes of a file, which
    /// nobody writes to any more; the store keeps that file too, under a name of its own. To users of the store
    /// nothing changes. Whether it is so now: not if it would not save much, or cannot be done.
    ///
    /// The blob goes only after it was made again, was right, and all of it is on disk.
    fn keep_recipe(&self, digest: &Digest, plain: &Path, len: u64) -> Result<bool> {
        let _ = (plain, len);
        self.info(digest).map(|_| false)
    }

    /// Gives back what is kept only so that the next call is quicker.
    fn relax(&self) {}

    /// Opens an ingest for writing: a new one, or the one of that name that was left behind, at the
    /// offset it had. One that was begun with another size is emptied first.
    ///
    /// `Unavailable` while another writer has it open. `AlreadyExists` if `expected.digest` is a blob.
    fn begin(&self, reference: &IngestRef, expected: Expected) -> Result<Box<dyn IngestWriter>>;

    /// `NotFound` if there is no such ingest.
    fn status(&self, reference: &IngestRef) -> Result<IngestStatus>;

    /// All ingests, in no order.
    fn statuses(&self) -> Result<Vec<IngestStatus>>;

    /// Drops an ingest and its bytes. `NotFound` if there is none. While a writer has it open a store may leave it
    /// to him (`Unavailable`), or take it from under him, so that he cannot commit it.
    fn abort(&self, reference: &IngestRef) -> Result<()>;
}

/// The writing end of an ingest. Dropping it keeps the bytes for a later [`Store::begin`].
pub trait IngestWriter: Send {
    /// Appends. An error may leave a part of `bytes` written; [`IngestWriter::offset`] says how much.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Bytes so far.
    fn offset(&self) -> u64;

    /// The digest of the bytes so far.
    fn digest(&self) -> Digest;

    fn status(&self) -> Result<IngestStatus>;

    /// Starts anew with no bytes.
    fn truncate(&mut self) -> Result<()>;

    /// Turns the ingest into a blob, which is on disk for good when this returns.
    ///
    /// `FailedPrecondition` if size or digest differ from `expected`: the ingest stays as it was.
    /// `AlreadyExists` if the blob is there: the ingest is dropped.
    fn commit(self: Box<Self>, expected: Expected) -> Result<Blob>;
}

/// The bytes of a blob, at any offset or in order.
pub trait BlobReader: io::Read + Send + Sync {
    fn size(&self) -> u64;

    /// Fills `buf` from `offset` on; fewer bytes only at the end of the blob. `DataLoss` if the disk does not give
    /// them.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize>;

    /// The file behind the blob, for callers that can hand it to the kernel. Its offset is that of
    /// this reader's `read`.
    fn as_file(&self) -> Option<&std::fs::File> {
        None
    }

    /// All bytes, unless there are more than `limit` (`ResourceExhausted`).
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

/// What the caller knows about a blob before it is complete. `None` is not checked.
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
    Whole,
    /// To be made again, from a recipe of so many bytes and a file that others may have too.
    Recipe {
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
    /// Bytes so far.
    pub offset: u64,
    /// The size given at `begin`.
    pub total: Option<u64>,
    /// The digest given at `begin`; known only while the writer is open.
    pub expected: Option<Digest>,
    pub started: Timestamp,
    pub updated: Timestamp,
}
