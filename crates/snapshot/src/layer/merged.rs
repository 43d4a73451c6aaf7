//! What was merged of a chain of layers before their snapshots were committed, so that one barrier has all of it on disk.

use std::fs;
use std::path::PathBuf;

/// The image of such a chain, which is used for no other, and not if one of its layers was mended since. Its file goes
/// with it, unless it was used.
#[derive(Debug)]
pub struct Merged {
    pub(crate) path: PathBuf,
    /// Of all snapshots of the chain, topmost first.
    pub(crate) ids: Vec<u64>,
    /// How many of them, the topmost, are shown by the image.
    pub(crate) layers: usize,
    /// How often a layer had been mended before it was made.
    pub(crate) forgotten: u64,
}

impl Drop for Merged {
    fn drop(&mut self) {
        // It has another name by now if it was used. What cannot be removed goes with its snapshot.
        let _ = fs::remove_file(&self.path);
    }
}
