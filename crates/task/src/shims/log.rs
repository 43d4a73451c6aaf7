//! The log of a shim, which its program writes to a pipe in the bundle.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::task::AbortHandle;
use types::Namespace;

use crate::bundle::Bundle;

/// Longer lines of a shim's log are split, in bytes: the shim may quote unbounded output of its container.
const LOG_LINE_LEN_MAX: u64 = 16 << 10;
/// Small, because every task has one and few shims log anything.
const LOG_BUFFER_LEN: usize = 256;

/// Copies a shim's log into the daemon's. Opened for writing too, so that there is no end of file when a shim closes
/// it.
pub(crate) fn follow_log((namespace, id): (&Namespace, &str), bundle: &Bundle) -> Option<AbortHandle> {
    let mut options = tokio::net::unix::pipe::OpenOptions::new();
    let log = match options.read_write(true).open_receiver(bundle.log()) {
        Ok(log) => log,
        Err(error) => {
            tracing::warn!(%namespace, %id, "open the shim's log: {error}");
            return None;
        }
    };
    let (namespace, id) = (namespace.clone(), id.to_owned());
    let following = tokio::spawn(async move {
        let mut log = BufReader::with_capacity(LOG_BUFFER_LEN, log);
        let mut line = Vec::new();
        while let Ok(1..) = (&mut log).take(LOG_LINE_LEN_MAX).read_until(b'\n', &mut line).await {
            tracing::info!(%namespace, %id, "shim: {}", String::from_utf8_lossy(&line).trim_end());
            line = Vec::new();
        }
    });
    Some(following.abort_handle())
}
