//! The port for stream processors: programs that turn layers of unknown media types into archives (containerd's
//! `[stream_processors]`). The daemon provides it when it opens the records.

use std::io::Read;

use types::{Descriptor, Result};

/// The bytes of a layer.
pub type LayerSource = Box<dyn Read + Send>;

/// Asked for each layer before it is unpacked. Its output is unpacked in place of the layer; the blob stays as it is.
pub trait StreamProcessors: Send + Sync {
    /// The processors for layers of a media type, named for errors; `None` if there are none.
    fn names(&self, media_type: &str) -> Option<String>;

    /// Passes the bytes of a layer, `blob`, through all processors for its media type. Returns their output, an
    /// archive that can be unpacked; read errors name the processor that failed. `Unimplemented` if the last
    /// processor's output type is unknown.
    fn open(&self, layer: &Descriptor, blob: LayerSource) -> Result<LayerSource>;
}
