//! Replacing damaged bytes of a blob.

use ::content::{Expected, IngestWriter};
use types::{Digest, Error, ErrorKind, Hasher, IngestRef, Result};

use super::pin::Pin;
use crate::store::{Metadata, Notice};

/// The replacement of a blob's damaged bytes. Dropped before [`Mending::finish`] it changes nothing.
pub struct Mending {
    pub(super) store: Metadata,
    pub(super) pin: Pin,
    pub(super) size: u64,
    pub(super) hasher: Hasher,
    pub(super) backend: IngestRef,
    pub(super) writer: Option<Box<dyn IngestWriter>>,
}

impl Mending {
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.writer.as_mut().expect("only finishing takes it").write(bytes)
    }

    /// The digest of the bytes written so far.
    pub fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    /// Replaces the blob's bytes. `DataLoss` if the new ones are wrong, too.
    pub fn finish(mut self) -> Result<()> {
        let digest = self.pin.digest.clone();
        let found = std::mem::replace(&mut self.hasher, Hasher::new(digest.algorithm())).finish();
        if found != digest {
            return Err(Error::data_loss(format!("content {digest}: the new bytes are {found}")));
        }
        // A crash in between leaves a record without bytes, which is no worse than with wrong ones.
        match self.store.0.content.delete(&digest) {
            Err(error) if !error.is(ErrorKind::NotFound) => return Err(error),
            _ => (self.store.0.notice)(Notice::SetAside),
        }
        let writer = self.writer.take().expect("taken here alone");
        writer.commit(Expected::new(digest, self.size)).map(drop)
    }
}

impl Drop for Mending {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.take() {
            drop(writer);
            // If this fails, the next mending of the blob truncates the leftovers.
            let _ = self.store.0.abort_ingest(&self.backend);
        }
    }
}
