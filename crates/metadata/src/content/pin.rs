//! Blobs that are about to be recorded, kept from the sweep meanwhile.

use types::Digest;

use crate::store::Metadata;

/// Keeps the sweep from a blob until dropped.
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
