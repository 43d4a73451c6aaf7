//! The image of a chain of layers that was merged before their snapshots are committed, so that one barrier is enough
//! for the layers and the image.

use std::fs;
use std::path::PathBuf;

/// A merged image. It is used only for this chain, and only if none of its layers was mended since. Dropping it deletes
/// its file, unless it was used.
#[derive(Debug)]
pub struct Merged {
    pub(crate) path: PathBuf,
    /// Ids of all snapshots of the chain, topmost first.
    pub(crate) ids: Vec<u64>,
    /// The number of topmost layers that the image merges.
    pub(crate) layers: usize,
    /// The count of mended layers before the image was made.
    pub(crate) forgotten: u64,
}

impl Drop for Merged {
    fn drop(&mut self) {
        // If the image was used, it was renamed. A file that cannot be removed is deleted with its snapshot.
        let _ = fs::remove_file(&self.path);
    }
}
