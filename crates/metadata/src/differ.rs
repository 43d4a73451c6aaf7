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

/// Asked, for each layer, before it is unpacked here: in pulls, loads and imports.
pub trait Differs: Send + Sync {
    /// Whether one of them is asked for layers of a media type before they are unpacked here.
    fn are_asked(&self, media_type: &str) -> bool;

    /// Applies a layer, whose blob the caller has, to the tree that `mounts` make. Blocks until it is on disk. None if none
    /// of them knows how, and it is to be unpacked here; `Unimplemented` if it is to be unpacked nowhere else. After another
    /// error the tree may have a part of the layer.
    fn apply(&self, caller: &Caller, layer: &Descriptor, mounts: &[Mount]) -> Result<Option<Applied>>;
}

/// No differs: every layer is unpacked here.
pub struct NoDiffers;

impl Differs for NoDiffers {
    fn are_asked(&self, _: &str) -> bool {
        false
    }

    fn apply(&self, _: &Caller, _: &Descriptor, _: &[Mount]) -> Result<Option<Applied>> {
        Ok(None)
    }
}
