//! Protects blobs that are about to be recorded from the sweep.

use types::Digest;

use crate::store::Metadata;

/// Protects a blob from the sweep until dropped.
pub(super) struct Pin {
    store: Metadata,
    pub(super) digest: Digest,
}

impl Pin {
    pub(super) fn new(store: &Metadata, digest: &Digest) -> Pin {
        store.0.gc.blobs.pin(digest);
        Pin { store: store.clone(), digest: digest.clone() }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.store.0.gc.blobs.unpin(&self.digest);
    }
}
