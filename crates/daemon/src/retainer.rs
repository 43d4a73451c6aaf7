//! Applies the retention of unpacked layers' blobs in the background: drops them or converts them to recipes, some time
//! after layers were unpacked, one namespace after another. Implemented by `transfer`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metadata::{Caller, Metadata};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use transfer::{Retained, Retention, Retentions};
use types::{Error, Result};

/// Delay that avoids interfering with a pull, which unpacks one layer after another.
const SETTLE_DELAY: Duration = Duration::from_secs(1);

/// Clones share state.
#[derive(Clone)]
pub(crate) struct Retainer {
    metadata: Metadata,
    settled: Arc<Notify>,
    retentions: Retentions,
    stopping: Arc<AtomicBool>,
    /// Whether it was logged that recipes are requested for layers of which none can be made.
    warned: Arc<AtomicBool>,
}

impl Retainer {
    /// `settled` is notified whenever an image or a layer is created.
    pub(crate) fn new(metadata: Metadata, settled: Arc<Notify>, retentions: Retentions) -> Retainer {
        Retainer { metadata, settled, retentions, stopping: Arc::default(), warned: Arc::default() }
    }

    pub(crate) fn retentions(&self) -> Retentions {
        self.retentions.clone()
    }

    /// Applies a new retention. Dropped blobs are not restored.
    pub(crate) fn reconfigure(&self, retention: Retention) {
        self.retentions.reconfigure(retention);
        self.settled.notify_one();
    }

    /// Stops before the next blob.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Processes all namespaces, now and after each notification, until dropped.
    pub(crate) async fn run(self) {
        loop {
            let retainer = self.clone();
            match spawn_blocking(move || retainer.pass()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!("blobs of unpacked layers: {}", error.chain()),
                Err(panic) => tracing::error!("blobs of unpacked layers: {panic}"),
            }
            self.settled.notified().await;
            tokio::time::sleep(SETTLE_DELAY).await;
        }
    }

    fn pass(&self) -> Result<()> {
        let mut first_error = None;
        for (namespace, _) in self.metadata.namespaces().list()? {
            let go_on = || !self.stopping.load(Ordering::Relaxed);
            let caller = Caller::new(namespace.clone());
            match transfer::retain(&self.metadata, &caller, &self.retentions, &go_on) {
                Ok(Retained { dropped, recipes, without_archive }) => {
                    if dropped + recipes > 0 {
                        tracing::info!(%namespace, dropped, recipes, "blobs of unpacked layers");
                    }
                    if without_archive > 0 && !self.warned.swap(true, Ordering::Relaxed) {
                        tracing::warn!(
                            "content.unpacked: recipes are made of layers that are kept as archives \
                             (snapshots.layers): the blobs of those that are directories are kept"
                        );
                    }
                }
                // An error in one namespace does not affect the others.
                Err(error) => drop(
                    first_error
                        .get_or_insert_with(|| -> Error { error.context(format!("namespace {namespace}")) }),
                ),
            }
        }
        first_error.map_or(Ok(()), Err)
    }
}
