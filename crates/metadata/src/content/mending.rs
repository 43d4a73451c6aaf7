//! Right bytes in the place of wrong ones.

use ::content::{Expected, IngestWriter};
use types::{Digest, Error, ErrorKind, Hasher, IngestRef, Result};

use super::pin::Pin;
use crate::store::{Metadata, Notice};

/// Right bytes for a blob whose own are wrong. Dropped before [`Mending::finish`] it leaves everything as it
/// was.
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

    /// The digest of the bytes that were written so far.
    pub fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    /// Puts the bytes in the place of the wrong ones. `DataLoss` if they are wrong too.
    pub fn finish(mut self) -> Result<()> {
        let digest = self.pin.digest.clone();
        let found = std::mem::replace(&mut self.hasher, Hasher::new(digest.algorithm())).finish();
        if found != digest {
            return Err(Error::data_loss(format!("content {digest}: the new bytes are {found}")));
        }
        // Between the two, a crash leaves a record without bytes, which is as bad as wrong ones and no worse.
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
            // What is left of it is in nobody's way: the next mending of the blob begins with it.
            let _ = self.store.0.abort_ingest(&self.backend);
        }
    }
}
