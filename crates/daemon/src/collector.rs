//! When garbage is collected: some time after a deletion, after many changes, and when something
//! expires. What garbage is, `metadata` knows.
//!
//! ```text
//! deleted ──▶ schedule_delay ──┐
//! mutation_threshold changes ──┼──▶ not before the pause after the last one ──▶ collect
//! next expiry ─────────────────┘
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use metadata::Metadata;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use types::{Error, Result, Timestamp};

use crate::config;

/// How often changes are counted. Nothing else happens in an idle daemon, and rarely this.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// Told of deletions. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Trigger(Arc<Notify>);

impl Trigger {
    pub(crate) fn deleted(&self) {
        self.0.notify_one();
    }
}

#[derive(Clone)]
pub(crate) struct Collector {
    metadata: Metadata,
    trigger: Trigger,
    config: config::Collector,
}

impl Collector {
    pub(crate) fn new(metadata: Metadata, trigger: Trigger, config: config::Collector) -> Collector {
        Collector { metadata, trigger, config }
    }

    /// Collects from time to time until dropped.
    pub(crate) async fn run(self) {
        tokio::time::sleep(self.config.startup_delay).await;
        let mut seen = self.metadata.mutations();
        loop {
            let start = Instant::now();
            let next_expiry = match self.collect().await {
                Ok(next_expiry) => next_expiry,
                Err(error) => {
                    tracing::error!("collect garbage: {}", error.chain());
                    None
                }
            };
            let pause = start.elapsed().div_f64(self.config.pause_threshold);
            tokio::time::sleep(pause).await;
            self.wait(&mut seen, next_expiry).await;
        }
    }

    /// Waits for a reason to collect.
    async fn wait(&self, seen: &mut u64, next_expiry: Option<Timestamp>) {
        loop {
            let look = next_expiry
                .map(|expiry| Timestamp::now().until(expiry))
                .map_or(LOOK_INTERVAL, |left| left.min(LOOK_INTERVAL));
            tokio::select! {
                () = self.trigger.0.notified() => {
                    tokio::time::sleep(self.config.schedule_delay).await;
                    break;
                }
                () = tokio::time::sleep(look) => {}
            }
            let expired = next_expiry.is_some_and(|expiry| expiry <= Timestamp::now());
            let threshold = self.config.mutation_threshold;
            let busy = threshold > 0 && self.metadata.mutations() - *seen >= threshold;
            if expired || busy {
                break;
            }
        }
        *seen = self.metadata.mutations();
    }

    async fn collect(&self) -> Result<Option<Timestamp>> {
        let metadata = self.metadata.clone();
        let collected = spawn_blocking(move || metadata.collect())
            .await
            .map_err(|error| Error::internal("collect garbage").with_source(error))??;
        for failure in &collected.failures {
            tracing::warn!("collect garbage: {}", failure.chain());
        }
        tracing::debug!(
            content = collected.content,
            snapshots = collected.snapshots,
            images = collected.images,
            leases = collected.leases,
            ingests = collected.ingests,
            blobs_swept = collected.blobs_swept,
            snapshots_swept = collected.snapshots_swept,
            "collected garbage"
        );
        Ok(collected.next_expiry)
    }
}
