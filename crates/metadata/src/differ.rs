//! The port for differs of other programs, which apply layers instead of Hoist (containerd's `[diff] default`). The
//! daemon provides it when it opens the records.

use types::{Descriptor, Digest, Mount, Result};

use crate::Caller;

/// A layer that was applied and is on disk.
pub struct Applied {
    pub diff_id: Digest,
    /// The name of the differ.
    pub by: String,
}

/// Asked for each layer before Hoist unpacks it itself: in pulls, loads and imports.
pub trait Differs: Send + Sync {
    /// Whether a differ is asked for layers of a media type.
    fn are_asked(&self, media_type: &str) -> bool;

    /// Applies a layer, whose blob the caller's namespace has, to the tree of `mounts`. Blocks until it is on disk.
    /// `None` if no differ accepts it, and Hoist is to unpack it; `Unimplemented` if Hoist may not. After another
    /// error the tree may contain a part of the layer.
    fn apply(&self, caller: &Caller, layer: &Descriptor, mounts: &[Mount]) -> Result<Option<Applied>>;
}
