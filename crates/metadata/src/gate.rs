//! The gate: whoever decides which images names may come to stand for. What it goes by, says who opens the records.

use std::future::ready;
use std::pin::Pin;

use types::{Descriptor, Result};

/// An answer that is waited for on no thread.
pub type IsOpen<'a> = Pin<Box<dyn Future<Output = bool> + Send + 'a>>;

/// Asked before a name comes to stand for an image, whoever gives it that name.
///
/// Where [`Gate::is_open`] says yes, [`Gate::admit`] keeps nothing out, as long as nobody reconfigures the gate.
pub trait Gate: Send + Sync {
    /// Lets a name stand for an image. An error keeps it out, and is the caller's answer: `PermissionDenied` where that
    /// is the decision. May block for long: registries and programs may have to be asked.
    fn admit(&self, name: &str, image: &Descriptor) -> Result<()>;

    /// Whether the name may stand for whatever it likes, so that [`Gate::admit`] need not be called. "No" costs only time,
    /// and is said where it cannot be found out.
    fn is_open<'a>(&'a self, name: &'a str) -> IsOpen<'a>;
}

/// Every name may stand for every image.
pub struct OpenGate;

impl Gate for OpenGate {
    fn admit(&self, _: &str, _: &Descriptor) -> Result<()> {
        Ok(())
    }

    fn is_open<'a>(&'a self, _: &'a str) -> IsOpen<'a> {
        Box::pin(ready(true))
    }
}
