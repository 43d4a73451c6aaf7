//! When garbage is collected: some time after deletions, after many changes, and when something
//! expires. What garbage is, `metadata` knows.
//!
//! ```text
//! deleted ──▶ schedule_delay ──┐
//! mutation_threshold changes ──┼──▶ not before the pause after the last one ──▶ collect ─┐
//! next expiry ─────────────────┘                     whoever asks for it ──▶ collect ─┴─▶ reclaim
//! ```
//!
//! Collecting takes files out of the way, which is quick, and is waited for. Deleting them is not: it goes on
//! beside everything else, and leaves the disk to others half of the time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use metadata::{Metadata, Notice};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use types::{Error, Result, Timestamp};

use crate::config;

/// How often changes are counted. Nothing else happens in an idle daemon, and rarely this.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// How long files are deleted at a time, before as long a pause.
const RECLAIM_TURN: Duration = Duration::from_millis(20);

/// Told of deletions, and of files that were set aside. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Trigger(Arc<Noticed>);

#[derive(Default)]
struct Noticed {
    /// Deletions since the last collection was decided on.
    deletions: AtomicU64,
    /// The earliest end of something that was made since the last mark.
    expiry: Mutex<Option<Timestamp>>,
    news: Notify,
    /// Files wait to be deleted.
    set_aside: Notify,
    /// Something was unpacked, for whoever looks after blobs.
    settled: Arc<Notify>,
}

impl Trigger {
    /// What the records tell.
    pub(crate) fn notices(&self) -> metadata::NoticeSink {
        let trigger = self.clone();
        Box::new(move |notice| trigger.note(notice))
    }

    /// Told whenever an image or a layer came to be.
    pub(crate) fn settled(&self) -> Arc<Notify> {
        Arc::clone(&self.0.settled)
    }

    fn note(&self, notice: Notice) {
        match notice {
            Notice::Freed => drop(self.0.deletions.fetch_add(1, Ordering::Relaxed)),
            Notice::Expires(at) => {
                let mut expiry = self.0.expiry.lock().unwrap_or_else(PoisonError::into_inner);
                if expiry.is_some_and(|earlier| earlier <= at) {
                    return;
                }
                *expiry = Some(at);
            }
            Notice::SetAside => return self.0.set_aside.notify_one(),
            Notice::Settled => return self.0.settled.notify_one(),
        }
        self.0.news.notify_one();
    }

    /// The earlier of a time and the ends that were noted.
    fn earliest(&self, known: Option<Timestamp>) -> Option<Timestamp> {
        let noted = *self.0.expiry.lock().unwrap_or_else(PoisonError::into_inner);
        known.into_iter().chain(noted).min()
    }

    fn forget(&self) {
        *self.0.expiry.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Clones are the same.
#[derive(Clone)]
pub(crate) struct Collector {
    metadata: Metadata,
    trigger: Trigger,
    config: Arc<Mutex<config::Collector>>,
    figures: Arc<Figures>,
}

/// What collections did so far.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) collections: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) time_us: AtomicU64,
    pub(crate) removed: AtomicU64,
}

impl Collector {
    pub(crate) fn new(metadata: Metadata, trigger: Trigger, config: config::Collector) -> Collector {
        Collector { metadata, trigger, config: Arc::new(Mutex::new(config)), figures: Arc::default() }
    }

    /// Goes by other times and thresholds from now on.
    pub(crate) fn reconfigure(&self, config: config::Collector) {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
    }

    pub(crate) fn figures(&self) -> &Figures {
        &self.figures
    }

    fn config(&self) -> config::Collector {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Collects from time to time until dropped.
    pub(crate) async fn run(self) {
        tokio::time::sleep(self.config().startup_delay).await;
        let mut seen = self.metadata.mutations();
        loop {
            let start = Instant::now();
            // What is made from here on and seen by the mark is noted once too often, and never too seldom.
            self.trigger.forget();
            let next_expiry = match self.collect().await {
                Ok(next_expiry) => next_expiry,
                Err(error) => {
                    self.figures.failures.fetch_add(1, Ordering::Relaxed);
                    tracing::error!("collect garbage: {}", error.chain());
                    None
                }
            };
            let pause = start.elapsed().div_f64(self.config().pause_threshold);
            tokio::time::sleep(pause).await;
            self.wait(&mut seen, next_expiry).await;
        }
    }

    /// Deletes what collections took out of the way, whenever there is some, until dropped.
    pub(crate) async fn reclaim(self) {
        loop {
            let metadata = self.metadata.clone();
            let turn = spawn_blocking(move || {
                let start = Instant::now();
                metadata.reclaim(&|| start.elapsed() < RECLAIM_TURN)
            });
            match turn.await {
                Ok(Ok(false)) => {
                    tokio::time::sleep(RECLAIM_TURN).await;
                    continue;
                }
                Ok(Ok(true)) => {}
                Ok(Err(error)) => {
                    tracing::warn!("delete the files of removed snapshots: {}", error.chain());
                }
                Err(panic) => tracing::error!("delete the files of removed snapshots: {panic}"),
            }
            self.trigger.0.set_aside.notified().await;
        }
    }

    /// Waits for a reason to collect.
    async fn wait(&self, seen: &mut u64, next_expiry: Option<Timestamp>) {
        loop {
            let expiry = self.trigger.earliest(next_expiry);
            let look = expiry
                .map(|expiry| Timestamp::now().until(expiry))
                .map_or(LOOK_INTERVAL, |left| left.min(LOOK_INTERVAL));
            tokio::select! {
                () = self.trigger.0.news.notified() => {
                    let config = self.config();
                    let deletions = self.trigger.0.deletions.load(Ordering::Relaxed);
                    if deletions > 0 && deletions >= config.deletion_threshold {
                        tokio::time::sleep(config.schedule_delay).await;
                        break;
                    }
                }
                () = tokio::time::sleep(look) => {}
            }
            let expired = self.trigger.earliest(next_expiry).is_some_and(|expiry| expiry <= Timestamp::now());
            let threshold = self.config().mutation_threshold;
            let busy = threshold > 0 && self.metadata.mutations() - *seen >= threshold;
            if expired || busy {
                break;
            }
        }
        *seen = self.metadata.mutations();
        self.trigger.0.deletions.store(0, Ordering::Relaxed);
    }

    async fn collect(&self) -> Result<Option<Timestamp>> {
        let metadata = self.metadata.clone();
        let begun = Instant::now();
        let collected = spawn_blocking(move || metadata.collect())
            .await
            .map_err(|error| Error::internal("collect garbage").with_source(error))??;
        let time_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.figures.collections.fetch_add(1, Ordering::Relaxed);
        self.figures.time_us.fetch_add(time_us, Ordering::Relaxed);
        let removed =
            collected.content + collected.snapshots + collected.images + collected.leases + collected.mounts;
        self.figures.removed.fetch_add(removed as u64, Ordering::Relaxed);
        for failure in &collected.failures {
            tracing::warn!("collect garbage: {}", failure.chain());
        }
        tracing::debug!(
            content = collected.content,
            snapshots = collected.snapshots,
            images = collected.images,
            leases = collected.leases,
            ingests = collected.ingests,
            mounts = collected.mounts,
            blobs_swept = collected.blobs_swept,
            snapshots_swept = collected.snapshots_swept,
            longest_turn_us = collected.turns.longest.as_micros(),
            "collected garbage"
        );
        Ok(collected.next_expiry)
    }
}
