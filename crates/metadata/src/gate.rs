//! The port for image admission: it decides which images names may be recorded for. The daemon provides it when it
//! opens the records.

use std::pin::Pin;

use types::{Descriptor, Result};

/// A future, so that waiting for it blocks no thread.
pub type IsOpen<'a> = Pin<Box<dyn Future<Output = bool> + Send + 'a>>;

/// Asked before a name is recorded for an image, whichever call does so.
///
/// While [`Gate::is_open`] returns true for a name, [`Gate::admit`] accepts every image under it, until the gate is
/// reconfigured.
pub trait Gate: Send + Sync {
    /// Admits an image under a name. An error refuses it and is returned to the client: `PermissionDenied` for a
    /// decision. May block for long, on registries and programs.
    fn admit(&self, name: &str, image: &Descriptor) -> Result<()>;

    /// Whether the name may stand for any image, so that [`Gate::admit`] need not be called. False is always safe,
    /// and is returned if it cannot be determined.
    fn is_open<'a>(&'a self, name: &'a str) -> IsOpen<'a>;
}
