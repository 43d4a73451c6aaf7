//! Releases resources when the daemon is idle: memory, free space in the database file, and an unused bridge. Once per
//! idle period.
//!
//! ```text
//! start, or a call ──▶ QUIET ──▶ called meanwhile? ──no──▶ release ──▶ wait for a call, a collection,
//!                        ▲                │yes                               │ or a container's end
//!                        └────────────────┴──────────────────────────────────┘
//! ```
//!
//! An idle daemon has no timer for this, and a busy one a single wake-up per [`QUIET`]. A long-running pull or wait
//! does not suffer: released pages are loaded again when used.

use std::sync::Arc;
use std::time::Duration;

use engine::Engine;
use metadata::Metadata;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;

/// A daemon without a call for this long is idle: longer than a script's pause between two commands, shorter than it
/// takes an administrator to look at the process list.
const QUIET: Duration = Duration::from_secs(2);
/// Free space below this many bytes stays in the database file, for reuse.
const DATABASE_LEAST: u64 = 4 << 20;

/// Notified of every call and collection. Clones share state.
#[derive(Clone, Default)]
pub(crate) struct Idle(Arc<Notify>);

impl Idle {
    pub(crate) fn disturb(&self) {
        self.0.notify_one();
    }

    /// Releases resources whenever the daemon becomes idle, until dropped.
    pub(crate) async fn run(self, metadata: Metadata, engine: Engine) {
        loop {
            tokio::time::sleep(QUIET).await;
            let disturbed = tokio::time::timeout(Duration::ZERO, self.0.notified()).await.is_ok();
            if disturbed {
                continue;
            }
            if let Err(error) = engine.release_idle().await {
                tracing::warn!("at rest: {}", error.chain());
            }
            // A failure costs memory, nothing else.
            let metadata = metadata.clone();
            match spawn_blocking(move || give_back(&metadata)).await {
                Ok(Ok(bytes)) => tracing::debug!(bytes, "at rest: let go of pages of the program"),
                Ok(Err(error)) => tracing::debug!("at rest: {}", error.chain()),
                Err(panic) => tracing::warn!("at rest: {panic}"),
            }
            tokio::select! {
                () = self.0.notified() => {}
                () = engine.network_released() => {}
            }
        }
    }
}

fn give_back(metadata: &Metadata) -> types::Result<u64> {
    match metadata.compact(DATABASE_LEAST) {
        Ok(0) => {}
        Ok(bytes) => tracing::debug!(bytes, "at rest: made the file of the records shorter"),
        Err(error) => tracing::warn!("at rest: {}", error.chain()),
    }
    metadata.relax();
    linux::memory::trim_heap();
    linux::memory::release_program()
}
