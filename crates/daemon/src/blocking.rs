//! Blocking work outside of services. Services use `services::blocking`, which returns a gRPC status.

use types::{Error, Result};

/// Runs blocking work on a thread of the blocking pool. The work continues if the caller's future is dropped.
///
/// # Errors
/// The work's own, and `Internal` if it panicked.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    stdx::blocking(work).await.map_err(Error::broke_down("a worker thread"))?
}
