//! Schedules garbage collection: some time after deletions, after many changes, and when something expires. What is
//! garbage is determined by `metadata`.
//!
//! ```text
//! deletion_threshold deletions ──▶ schedule_delay ──┐
//! fewer of them, at the next check ─────────────────┤
//! mutation_threshold changes, at the next check ────┼──▶ after the pause since the last one ──▶ collect ─┐
//! next expiry ──────────────────────────────────────┤                 a client requests it ──▶ collect ─┴─▶ reclaim
//! some time after a failed collection ──────────────┘
//! ```
//!
//! A collection only moves files away, which is quick, and callers wait for it. `reclaim` deletes them in the
//! background and leaves the disk to other work half of the time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use metadata::{Collected, Metadata, Notice};
use stdx::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;
use types::{Error, Result, Timestamp};

use crate::config;
use crate::idle::Idle;
use crate::telemetry::Histogram;

/// How often deletions and changes are counted. The only periodic work in an idle daemon.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// Pause before a failed collection is retried; doubled after each further failure. The garbage is still there, and
/// possibly nothing else would trigger a collection.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(15 * 60);

/// How long files are deleted before a pause of the same length.
const RECLAIM_TURN: Duration = Duration::from_millis(20);

/// Notified of deletions and of files moved away. Clones share state.
#[derive(Clone, Default)]
pub(crate) struct Trigger(Arc<Noticed>);

#[derive(Default)]
struct Noticed {
    /// Deletions since the last collection was triggered.
    deletions: AtomicU64,
    /// The earliest expiry of objects created since the last mark phase.
    expiry: Mutex<Option<Timestamp>>,
    news: Notify,
    /// Notified when files wait to be deleted.
    set_aside: Notify,
    /// Notified when an image or layer was created, for the retainer of blobs.
    settled: Arc<Notify>,
    /// Notified when events wait for the disk, for `events::tell_held`.
    held: Arc<Notify>,
}

impl Trigger {
    /// The sink for the metadata store's notices.
    pub(crate) fn notices(&self) -> metadata::NoticeSink {
        let trigger = self.clone();
        Box::new(move |notice| trigger.note(notice))
    }

    /// Notified whenever an image or a layer was created.
    pub(crate) fn settled(&self) -> Arc<Notify> {
        Arc::clone(&self.0.settled)
    }

    /// Notified whenever events wait for the disk.
    pub(crate) fn held(&self) -> Arc<Notify> {
        Arc::clone(&self.0.held)
    }

    fn note(&self, notice: Notice) {
        match notice {
            Notice::Freed => drop(self.0.deletions.fetch_add(1, Ordering::Relaxed)),
            Notice::Expires(at) => {
                let mut expiry = self.0.expiry.lock();
                if expiry.is_some_and(|earlier| earlier <= at) {
                    return;
                }
                *expiry = Some(at);
            }
            Notice::SetAside => return self.0.set_aside.notify_one(),
            Notice::Settled => return self.0.settled.notify_one(),
            Notice::Held => return self.0.held.notify_one(),
        }
        self.0.news.notify_one();
    }

    /// The earlier of a time and the noted expiry.
    fn earliest(&self, known: Option<Timestamp>) -> Option<Timestamp> {
        let noted = *self.0.expiry.lock();
        known.into_iter().chain(noted).min()
    }

    /// Forgets the noted expiry and returns it.
    fn forget(&self) -> Option<Timestamp> {
        self.0.expiry.lock().take()
    }
}

/// Clones share state.
#[derive(Clone)]
pub(crate) struct Collector {
    metadata: Metadata,
    trigger: Trigger,
    config: watch::Sender<config::Collector>,
    figures: Arc<Figures>,
}

/// Totals over all collections.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) collections: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) removed: AtomicU64,
    times: Mutex<Histogram>,
}

impl Figures {
    /// Durations of the successful ones.
    pub(crate) fn times(&self) -> MutexGuard<'_, Histogram> {
        self.times.lock()
    }
}

impl Collector {
    pub(crate) fn new(metadata: Metadata, trigger: Trigger, config: config::Collector) -> Collector {
        Collector { metadata, trigger, config: watch::Sender::new(config), figures: Arc::default() }
    }

    /// Applies a new configuration, even to a wait in progress.
    pub(crate) fn reconfigure(&self, config: config::Collector) {
        self.config.send_replace(config);
    }

    pub(crate) fn figures(&self) -> &Figures {
        &self.figures
    }

    fn config(&self) -> config::Collector {
        *self.config.borrow()
    }

    /// Collects when there is a reason, until dropped. A collection counts as activity: it may leave memory to release.
    pub(crate) async fn run(self, idle: Idle) {
        self.pause(|config| config.startup_delay).await;
        let mut seen = self.metadata.mutations();
        let (mut next_expiry, mut failed) = (None, 0);
        loop {
            let begun = Instant::now();
            // An object created from here on and seen by the mark phase is noted twice, which is harmless.
            let noted = self.trigger.forget();
            let (time, is_whole) = match self.collect().await {
                // Deletion does not count: otherwise a longer pause would accumulate more garbage, and the next pause
                // grow further.
                Ok(collected) => {
                    self.figures.times().add(collected.looking);
                    next_expiry = collected.next_expiry;
                    (collected.looking, collected.failures.is_empty())
                }
                Err(error) => {
                    self.figures.failures.fetch_add(1, Ordering::Relaxed);
                    tracing::error!("collect garbage: {}", error.chain());
                    // What has expired already is left to the retry, which is delayed.
                    let now = Timestamp::now();
                    next_expiry = next_expiry.into_iter().chain(noted).filter(|expiry| *expiry > now).min();
                    (begun.elapsed(), false)
                }
            };
            failed = if is_whole { 0 } else { failed + 1 };
            let retry = (failed > 0).then(|| tokio::time::Instant::now() + back_off(failed));
            idle.disturb();
            self.pause(|config| time.div_f64(config.pause_threshold)).await;
            self.wait(&mut seen, next_expiry, retry).await;
        }
    }

    /// Deletes files that collections have moved away, until dropped.
    pub(crate) async fn reclaim(self) {
        loop {
            let metadata = self.metadata.clone();
            if let Err(error) = in_turns(move |go_on| metadata.reclaim(go_on)).await {
                tracing::warn!("delete files of removed objects: {}", error.chain());
            }
            self.trigger.0.set_aside.notified().await;
        }
    }

    /// Waits for a reason to collect.
    async fn wait(
        &self,
        seen: &mut u64,
        next_expiry: Option<Timestamp>,
        retry: Option<tokio::time::Instant>,
    ) {
        let mut look = tokio::time::Instant::now() + LOOK_INTERVAL;
        let mut changes = self.config.subscribe();
        loop {
            let deletions = || self.trigger.0.deletions.load(Ordering::Relaxed);
            let expiry = self.trigger.earliest(next_expiry);
            let left = expiry.map_or(LOOK_INTERVAL, |expiry| Timestamp::now().until(expiry));
            tokio::select! {
                () = self.trigger.0.news.notified() => {}
                _changed = changes.changed() => {}
                () = tokio::time::sleep_until(look) => {
                    // Deletions below the threshold leave garbage as well.
                    if deletions() > 0 {
                        break;
                    }
                    look += LOOK_INTERVAL;
                }
                () = tokio::time::sleep(left) => {}
                () = tokio::time::sleep_until(retry.unwrap_or(look)), if retry.is_some() => break,
            }
            if deletions() >= self.config().deletion_threshold.max(1) {
                self.pause(|config| config.schedule_delay).await;
                break;
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

    /// Waits for a configured time, which may change meanwhile.
    async fn pause(&self, length: impl Fn(config::Collector) -> Duration) {
        let (begun, mut changes) = (tokio::time::Instant::now(), self.config.subscribe());
        loop {
            let left = length(self.config()).saturating_sub(begun.elapsed());
            if tokio::time::timeout(left, changes.changed()).await.is_err() {
                return;
            }
        }
    }

    async fn collect(&self) -> Result<Collected> {
        let metadata = self.metadata.clone();
        let collected = spawn_blocking(move || metadata.collect())
            .await
            .map_err(|error| Error::internal("collect garbage").with_source(error))??;
        self.figures.collections.fetch_add(1, Ordering::Relaxed);
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
        Ok(collected)
    }
}

/// Pause after `failed` consecutive failures, one or more.
fn back_off(failed: u32) -> Duration {
    RETRY_FIRST.saturating_mul(2_u32.saturating_pow(failed - 1)).min(RETRY_MAX)
}

/// Runs work in slices, with a pause of the same length after each, until it returns true for done. The work asks after
/// each small step whether to continue.
async fn in_turns(work: impl Fn(&dyn Fn() -> bool) -> Result<bool> + Clone + Send + 'static) -> Result<()> {
    loop {
        let work = work.clone();
        let turn = spawn_blocking(move || {
            let start = Instant::now();
            work(&|| start.elapsed() < RECLAIM_TURN)
        });
        match turn.await.map_err(Error::broke_down("a turn of it"))? {
            Ok(false) => tokio::time::sleep(RECLAIM_TURN).await,
            done => return done.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use content::LocalStore;
    use kv::Db;
    use kv::testing::{Fault, Storage};
    use metadata::Options;
    use tokio::time;
    use types::{Labels, Namespace};

    use super::*;

    /// How often the test checks, on its clock.
    const STEP: Duration = Duration::from_millis(5);
    /// Tolerance: two checks, and microseconds of real time.
    const SLACK: Duration = Duration::from_millis(30);
    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    /// A metadata store and its collector. The test's clock advances when all tasks wait.
    struct Stage {
        metadata: Metadata,
        collector: Collector,
        leases: u32,
        _dir: tempfile::TempDir,
    }

    impl Stage {
        fn new(config: config::Collector) -> Stage {
            Stage::with(config, Storage::default(), |_| Ok(()))
        }

        /// With this storage and this sweep of mounts.
        fn with(
            config: config::Collector,
            storage: Storage,
            sweep_mounts: impl Fn(&dyn Fn() -> Result<HashSet<u64>>) -> Result<()> + Send + Sync + 'static,
        ) -> Stage {
            let dir = tempfile::tempdir().unwrap();
            let trigger = Trigger::default();
            let options = kv::Options { cache_bytes: 0, ..kv::Options::default() };
            let db = Db::open_on(move || Ok(storage.clone()), options).unwrap();
            let content = Arc::new(LocalStore::open(dir.path().join("content")).unwrap());
            let sweep_mounts = Box::new(sweep_mounts);
            let options = Options { notice: trigger.notices(), sweep_mounts, ..Options::default() };
            let metadata = Metadata::open(db, content, BTreeMap::new(), options).unwrap();
            let collector = Collector::new(metadata.clone(), trigger, config);
            tokio::spawn(collector.clone().run(Idle::default()));
            Stage { metadata, collector, leases: 0, _dir: dir }
        }

        /// A stage after the first collection.
        async fn begun(config: config::Collector) -> Stage {
            let stage = Stage::new(config);
            stage.collected(1, config.startup_delay + STEP).await.expect("it collects after the start");
            stage
        }

        fn failures(&self) -> u64 {
            self.collector.figures.failures.load(Ordering::Relaxed)
        }

        fn change(&mut self) {
            self.leases += 1;
            let id = format!("l{}", self.leases).parse().unwrap();
            self.metadata.leases(namespace()).create(&id, Labels::new()).unwrap();
        }

        fn delete(&mut self) {
            self.change();
            let id = format!("l{}", self.leases).parse().unwrap();
            self.metadata.leases(namespace()).delete(&id).unwrap();
        }

        /// The time until there were `collections` collections; `None` if that exceeded the limit.
        async fn collected(&self, collections: u64, limit: Duration) -> Option<Duration> {
            let begun = time::Instant::now();
            while self.collector.figures.collections.load(Ordering::Relaxed) < collections {
                if begun.elapsed() > limit {
                    return None;
                }
                time::sleep(STEP).await;
            }
            Some(begun.elapsed())
        }

        /// The pause after the only collection so far.
        fn pause(&self) -> Duration {
            let time = self.collector.figures.times().sum();
            time.div_f64(self.collector.config().pause_threshold)
        }
    }

    fn namespace() -> Namespace {
        Namespace::new("default").unwrap()
    }

    /// Only the start and a deletion trigger collections, without delay.
    const PROMPT: config::Collector = config::Collector {
        startup_delay: Duration::ZERO,
        schedule_delay: Duration::ZERO,
        deletion_threshold: 0,
        mutation_threshold: 0,
        pause_threshold: 0.5,
    };

    /// Files are deleted half of the time, however many there are. The test's clock advances only during pauses.
    #[tokio::test(start_paused = true)]
    async fn turns_of_deletion_have_pauses_between_them() {
        let turns = Arc::<Mutex<Vec<time::Instant>>>::default();
        let noted = turns.clone();
        let work = move |go_on: &dyn Fn() -> bool| {
            let mut turns = noted.lock();
            turns.push(time::Instant::now());
            let is_done = turns.len() == 4;
            let begun = Instant::now();
            while !is_done && go_on() {}
            assert!(is_done || begun.elapsed() < 50 * RECLAIM_TURN, "a turn has an end");
            Ok(is_done)
        };
        in_turns(work).await.unwrap();
        let turns = turns.lock();
        assert_eq!(turns.len(), 4);
        for pair in turns.windows(2) {
            assert!(pair[1] - pair[0] >= RECLAIM_TURN, "{turns:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_startup_delay_is_when_the_first_collection_runs() {
        for startup_delay in [100 * MS, 90 * SECOND] {
            let stage = Stage::new(config::Collector { startup_delay, ..PROMPT });
            let found = stage.collected(1, startup_delay + STEP).await.expect("it collects");
            assert!(found >= startup_delay, "{found:?} of {startup_delay:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_schedule_delay_lies_between_a_deletion_and_its_collection() {
        for schedule_delay in [Duration::ZERO, 2 * SECOND, 90 * SECOND] {
            let mut stage = Stage::begun(config::Collector { schedule_delay, ..PROMPT }).await;
            stage.delete();
            let limit = schedule_delay + stage.pause() + SLACK;
            let found = stage.collected(2, limit).await.expect("it collects");
            assert!(found >= schedule_delay, "{found:?} of {schedule_delay:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_deletion_threshold_is_how_many_deletions_do_not_wait_for_the_next_look() {
        for (deletion_threshold, deletions, waits) in
            [(0, 1, false), (1, 1, false), (3, 2, true), (3, 3, false), (3, 4, false)]
        {
            let mut stage = Stage::begun(config::Collector { deletion_threshold, ..PROMPT }).await;
            for _ in 0..deletions {
                stage.delete();
            }
            let limit = stage.pause() + SLACK;
            let found = stage.collected(2, limit + LOOK_INTERVAL).await.expect("it collects");
            assert_eq!(found > limit, waits, "{deletions} of {deletion_threshold}: {found:?}");
            let more = stage.collected(3, 3 * LOOK_INTERVAL).await;
            assert_eq!(more, None, "{deletions} of {deletion_threshold}: there is no reason for another");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_mutation_threshold_is_how_many_changes_are_a_reason_at_the_next_look() {
        for (mutation_threshold, changes, is_reason) in
            [(0, 9, false), (5, 4, false), (5, 5, true), (5, 6, true)]
        {
            let mut stage = Stage::begun(config::Collector { mutation_threshold, ..PROMPT }).await;
            for _ in 0..changes {
                stage.change();
            }
            let found = stage.collected(2, stage.pause() + LOOK_INTERVAL + SLACK).await;
            assert_eq!(found.is_some(), is_reason, "{changes} of {mutation_threshold}: {found:?}");
            let more = stage.collected(3, 3 * LOOK_INTERVAL).await;
            assert_eq!(more, None, "{changes} of {mutation_threshold}: they count once");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_configuration_applies_to_a_wait_in_progress() {
        let day = 24 * 3600 * SECOND;
        let stage = Stage::new(config::Collector { startup_delay: day, ..PROMPT });
        assert_eq!(stage.collected(1, SECOND).await, None);
        // A change of other values does not end the wait.
        let config =
            config::Collector { startup_delay: day, schedule_delay: day, deletion_threshold: 2, ..PROMPT };
        stage.collector.reconfigure(config);
        assert_eq!(stage.collected(1, SECOND).await, None);
        stage.collector.reconfigure(config::Collector { startup_delay: SECOND, ..config });
        stage.collected(1, STEP).await.expect("the start is so long ago");

        let mut stage = stage;
        stage.delete();
        assert_eq!(stage.collected(2, stage.pause() + SLACK).await, None, "one does not count yet");
        stage.collector.reconfigure(config::Collector { deletion_threshold: 1, ..config });
        assert_eq!(stage.collected(2, LOOK_INTERVAL).await, None, "it waits a day");
        stage.collector.reconfigure(PROMPT);
        stage.collected(2, STEP).await.expect("it waits no more");
    }

    #[tokio::test(start_paused = true)]
    async fn the_pause_threshold_is_the_share_of_time_that_collections_take_at_most() {
        for pause_threshold in [0.5, 0.02, 0.000_1] {
            let mut stage = Stage::begun(config::Collector { pause_threshold, ..PROMPT }).await;
            stage.delete();
            let pause = stage.pause();
            let found = stage.collected(2, pause + SLACK).await.expect("it collects");
            assert!(found + SLACK >= pause, "{found:?} of {pause:?}");
        }
    }

    /// No deletion, change or expiry triggers the next collection.
    #[tokio::test(start_paused = true)]
    async fn a_collection_that_leaves_something_is_tried_again_until_it_does_not() {
        let broken = Arc::new(AtomicU64::new(3));
        let left = Arc::clone(&broken);
        let sweep = move |_: &dyn Fn() -> Result<HashSet<u64>>| {
            let is_broken = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            is_broken.map_or(Ok(()), |_| Err(Error::internal("it is out of order")))
        };
        let stage = Stage::with(PROMPT, Storage::default(), sweep);
        stage.collected(1, STEP).await.expect("it collects after the start");
        for (collections, back_off) in [(2, SECOND), (3, 2 * SECOND), (4, 4 * SECOND)] {
            let found = stage.collected(collections, back_off + SLACK).await.expect("it tries again");
            assert!(found + SLACK >= back_off, "{found:?} of {back_off:?}");
        }
        assert_eq!(broken.load(Ordering::SeqCst), 0);
        assert_eq!(stage.collected(5, 3 * LOOK_INTERVAL).await, None, "nothing is left to try again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_collection_that_fails_is_tried_again_and_less_and_less_often() {
        let storage = Storage::default();
        let stage =
            Stage::with(config::Collector { startup_delay: SECOND, ..PROMPT }, storage.clone(), |_| Ok(()));
        storage.fail(Fault::From(0));
        assert_eq!(stage.collected(1, 10 * SECOND).await, None, "the records cannot be read");
        // At 1 s, and 1, 2 and 4 s later.
        assert_eq!(stage.failures(), 4);
        storage.heal();
        stage.collected(1, 8 * SECOND).await.expect("it tries again");
        assert_eq!(stage.collected(2, 3 * LOOK_INTERVAL).await, None, "there is no reason for another");
        assert_eq!(stage.failures(), 4);
    }

    #[test]
    fn the_time_before_a_retry_has_a_limit() {
        assert_eq!([1, 2, 3].map(back_off), [SECOND, 2 * SECOND, 4 * SECOND]);
        assert_eq!([20, u32::MAX].map(back_off), [RETRY_MAX; 2]);
    }
}
