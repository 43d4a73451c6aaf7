//! Differs of others: whoever applies layers in our place (containerd's `[diff] default`). Which there are, and when they
//! are asked, says who opens the records.

use types::{Descriptor, Digest, Mount, Result};

use crate::Caller;

/// A layer that is on a tree, and on disk.
pub struct Applied {
    pub diff_id: Digest,
    /// What the differ is called.
    pub by: String,
}

/// See the module.
pub trait Differs: Send + Sync {
    /// Whether one of them is asked for layers of a media type before they are unpacked here.
    fn are_asked(&self, media_type: &str) -> bool;

    /// Applies a layer whose blob the caller has to a tree. None if none of them knows how, and it is to be unpacked here.
    fn apply(&self, caller: &Caller, layer: &Descriptor, mounts: &[Mount]) -> Result<Option<Applied>>;
}

/// Layers are unpacked here.
pub struct NoDiffers;

impl Differs for NoDiffers {
    fn are_asked(&self, _: &str) -> bool {
        false
    }

    fn apply(&self, _: &Caller, _: &Descriptor, _: &[Mount]) -> Result<Option<Applied>> {
        Ok(None)
    }
}
