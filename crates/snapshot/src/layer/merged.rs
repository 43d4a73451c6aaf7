//! The image of a chain of layers that was merged before their snapshots are committed, so that one barrier is enough
//! for the layers and the image.

use std::fs::File;

/// A merged image. It is used only for this chain, and only if none of its layers was mended since. Its file has no name
/// before it is used: dropping it deletes it, and so does a crash.
#[derive(Debug)]
pub struct Merged {
    pub(crate) image: File,
    /// Ids of all snapshots of the chain, topmost first.
    pub(crate) ids: Vec<u64>,
    /// The number of topmost layers that the image merges.
    pub(crate) layers: usize,
    /// The count of mended layers before the image was made.
    pub(crate) forgotten: u64,
}
