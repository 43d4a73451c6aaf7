//! Work beside the workers, for those that are no service: services have `services::blocking`, which answers a status.

use types::{Error, Result};

/// Runs what blocks on a thread for it. It goes on if the caller goes away.
///
/// # Errors
/// Those of the work, and `Internal` if it panicked.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    stdx::blocking(work).await.map_err(Error::broke_down("a worker thread"))?
}
