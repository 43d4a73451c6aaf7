//! Stream processors: whoever makes archives of layers of media types that nobody here knows (containerd's
//! `[stream_processors]`). Which there are, and how they work, says who opens the records.

use std::io::Read;

use types::{Descriptor, Result};

/// The bytes of a layer on their way.
pub type LayerSource = Box<dyn Read + Send>;

/// See the module.
pub trait StreamProcessors: Send + Sync {
    /// What those are called that layers of a media type go through; none if they go through none.
    fn names(&self, media_type: &str) -> Option<String>;

    /// A layer as one that can be unpacked. Errors while it is read name who is to blame. `Unimplemented` if what comes
    /// out is nothing that anybody knows.
    fn open(&self, layer: &Descriptor, blob: LayerSource) -> Result<LayerSource>;
}

/// Layers are what they are.
pub struct NoProcessors;

impl StreamProcessors for NoProcessors {
    fn names(&self, _: &str) -> Option<String> {
        None
    }

    fn open(&self, _: &Descriptor, blob: LayerSource) -> Result<LayerSource> {
        Ok(blob)
    }
}
