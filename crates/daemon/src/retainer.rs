//! When blobs of unpacked layers are dropped, or kept as recipes: some time after something was unpacked, one
//! namespace after another, beside everything else. What is done to them, `transfer` knows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metadata::{Caller, Metadata};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use transfer::{Retained, Retention, Retentions};
use types::{Error, Result};

/// A pull that goes on unpacks one layer after another; it is not disturbed for each.
const SETTLE_DELAY: Duration = Duration::from_secs(1);

/// Clones are the same.
#[derive(Clone)]
pub(crate) struct Retainer {
    metadata: Metadata,
    settled: Arc<Notify>,
    retentions: Retentions,
    stopping: Arc<AtomicBool>,
    /// That recipes are wanted of layers of which none can be made was said.
    warned: Arc<AtomicBool>,
}

impl Retainer {
    /// `settled` is told whenever an image or a layer came to be.
    pub(crate) fn new(metadata: Metadata, settled: Arc<Notify>, retentions: Retentions) -> Retainer {
        Retainer { metadata, settled, retentions, stopping: Arc::default(), warned: Arc::default() }
    }

    pub(crate) fn retentions(&self) -> Retentions {
        self.retentions.clone()
    }

    /// Goes by another retention from now on. Blobs that are gone stay so.
    pub(crate) fn reconfigure(&self, retention: Retention) {
        self.retentions.reconfigure(retention);
        self.settled.notify_one();
    }

    /// Before the next blob.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Goes through all namespaces, now and whenever something changed, until dropped.
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
                // One namespace's trouble is not that of the others.
                Err(error) => drop(
                    first_error
                        .get_or_insert_with(|| -> Error { error.context(format!("namespace {namespace}")) }),
                ),
            }
        }
        first_error.map_or(Ok(()), Err)
    }
}
