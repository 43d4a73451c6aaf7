//! What a daemon does when nobody asks it for anything: it gives back memory, room in the file of its records, and the
//! bridge that no container has, once, and sleeps.
//!
//! ```text
//! start, or a call ──▶ QUIET ──▶ called meanwhile? ──no──▶ give back ──▶ wait for a call, a collection,
//!                        ▲                │yes                                 │ or a container's end
//!                        └────────────────┴────────────────────────────────────┘
//! ```
//!
//! An idle daemon has no timer running for this, and a busy one a single wake-up each [`QUIET`]. A pull or a
//! wait that goes on all the while loses nothing by it: pages come back when they are used.

use std::sync::Arc;
use std::time::Duration;

use engine::Engine;
use metadata::Metadata;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;

/// Without a call for so long, a daemon is idle: longer than a script pauses between two commands, shorter
/// than a person looks at a list of processes.
const QUIET: Duration = Duration::from_secs(2);
/// Below that many bytes the file of the records keeps what is free in it, for the next.
const DATABASE_LEAST: u64 = 4 << 20;

/// Told of every call, and of collections. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Idle(Arc<Notify>);

impl Idle {
    pub(crate) fn disturb(&self) {
        self.0.notify_one();
    }

    /// Gives back what is not used whenever it has become quiet, until dropped.
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
            // It costs memory if this fails, and nothing else.
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
