//! Stream processors: whoever makes archives of layers of media types that nobody here knows (containerd's
//! `[stream_processors]`). Which there are, and how they work, says who opens the records.

use std::io::Read;

use types::{Descriptor, Result};

/// The bytes of a layer on their way.
pub type LayerSource = Box<dyn Read + Send>;

/// Asked, for each layer, before it is unpacked here. What comes out of them is unpacked in its place; its blob stays as
/// it was.
pub trait StreamProcessors: Send + Sync {
    /// The processors that layers of a media type go through, as errors name them; none if they go through none.
    fn names(&self, media_type: &str) -> Option<String>;

    /// The bytes of a layer, `blob`, as they are after all processors of its media type: those of an archive that can be
    /// unpacked. Errors while they are read name the processor that failed. `Unimplemented` if the last processor gives a
    /// media type that nobody knows.
    fn open(&self, layer: &Descriptor, blob: LayerSource) -> Result<LayerSource>;
}

/// No processors: every stream passes through unchanged.
pub struct NoProcessors;

impl StreamProcessors for NoProcessors {
    fn names(&self, _: &str) -> Option<String> {
        None
    }

    fn open(&self, _: &Descriptor, blob: LayerSource) -> Result<LayerSource> {
        Ok(blob)
    }
}
