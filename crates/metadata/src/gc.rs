//! Garbage collection: removes objects that nothing refers to.
//!
//! ```text
//! 1 mark     on a snapshot of the records, while changes go on and are noted     graph
//! 2 revive   in a write transaction: objects touched since, and all they reach
//! 3 remove   some of the records that are still dead, in the same transaction; repeat 2 and 3 until none is left
//! 4 sweep    afterwards, the stores below: objects without a record in any namespace       sweep, pins
//! ```
//!
//! Why nothing live is lost: an object that was dead in the snapshot can become live only by a change that creates or
//! updates a record which refers to it, or by a lease that lists it. Every such change notes the record
//! ([`Change::touch`](crate::store::Change::touch)) within its write turn, so step 2 sees it. An object created after
//! the snapshot was not marked dead, so it stays.
//!
//! An object is removed before those that it keeps, so one that becomes live between two removal turns still has all
//! that it refers to.
//!
//! Writers wait only for one turn of steps 2 and 3, which is bounded: changes noted while many objects were marked
//! are processed outside of a write turn first, and only the last of them within one.

mod condition;
pub mod graph;
pub(crate) mod label;
mod mark;
mod names;
mod pins;
mod sweep;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use stdx::Mutex;
use types::{Digest, Error, IngestRef, Namespace, Result, Timestamp};

use crate::store::Inner;
use crate::stream::LeasedStream;
use graph::Node;
pub(crate) use mark::leased;
use pins::Pins;

/// The result of a collection.
#[derive(Debug, Default)]
pub struct Collected {
    /// Removed records, over all namespaces.
    pub content: usize,
    pub snapshots: usize,
    pub images: usize,
    pub leases: usize,
    pub ingests: usize,
    pub mounts: usize,
    /// Blobs and snapshots removed from the stores below.
    pub blobs_swept: usize,
    pub snapshots_swept: usize,
    /// When the next lease, image or ingest expires: no earlier collection is needed because of time.
    pub next_expiry: Option<Timestamp>,
    /// Failed removals from the stores below, to be retried by the next collection.
    pub failures: Vec<Error>,
    pub turns: Turns,
    /// Time spent examining records and our own stores: the fixed cost of a collection. Excludes removals, which cost
    /// the same in one collection or many, and time in snapshotters of other programs.
    pub looking: Duration,
}

/// Write turns, for which other writers waited.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turns {
    pub count: u32,
    /// All turns together.
    pub time: Duration,
    pub longest: Duration,
    /// The most records examined in one turn.
    pub records_max: usize,
}

impl Turns {
    fn add(&mut self, time: Duration, records: usize) {
        self.count += 1;
        self.time += time;
        self.longest = self.longest.max(time);
        self.records_max = self.records_max.max(records);
    }
}

/// Records removed per write turn, which bounds how long a writer waits.
const REMOVALS_PER_TURN: usize = 128;

/// Noted changes processed in a write turn at most; more are processed beforehand.
const REVIVALS_PER_TURN: usize = 64;

/// How often that is tried, so that fast writers cannot hold up the collection for ever.
const LOOKS_MAX: usize = 16;

#[derive(Default)]
pub(crate) struct State {
    /// Held during a collection.
    running: Mutex<History>,
    /// Noted changes, while a collection runs.
    touched: Mutex<Option<Vec<(Namespace, Node)>>>,
    orphans: Mutex<Orphans>,
    pub(crate) blobs: Pins<Digest>,
    /// By snapshotter, and its name for the snapshot.
    pub(crate) snapshots: Pins<(String, String)>,
}

#[derive(Default)]
struct History {
    /// Whether the stores below have been compared with the records since the start. A crash may have left objects
    /// there without a record.
    compared: bool,
}

/// Work for the next sweep: names in the stores below that lost a record.
#[derive(Debug, Default)]
struct Orphans {
    blobs: HashSet<Digest>,
    /// By the content store's names.
    ingests: HashSet<IngestRef>,
    snapshotters: HashSet<String>,
    /// Whether an activation lost its record.
    mounts: bool,
    /// Dead streams. They have no records, and stay open until the sweep ends them.
    streams: Vec<LeasedStream>,
}

impl Orphans {
    fn add(&mut self, more: Orphans) {
        self.blobs.extend(more.blobs);
        self.ingests.extend(more.ingests);
        self.snapshotters.extend(more.snapshotters);
        self.mounts |= more.mounts;
        self.streams.extend(more.streams);
    }
}

impl State {
    /// The caller holds the write turn.
    pub(crate) fn touch(&self, nodes: Vec<(Namespace, Node)>) {
        let mut touched = self.touched.lock();
        if let Some(touched) = &mut *touched {
            touched.extend(nodes);
        }
    }

    /// Records that a namespace deleted a blob.
    pub(crate) fn orphan(&self, digest: &Digest) {
        self.orphans.lock().blobs.insert(digest.clone());
    }

    /// Records that an ingest has bytes but no record any more.
    pub(crate) fn orphan_ingest(&self, backend: IngestRef) {
        self.orphans.lock().ingests.insert(backend);
    }

    /// Records that a namespace deleted a snapshot.
    pub(crate) fn orphan_snapshot(&self, snapshotter: &str) {
        let mut orphans = self.orphans.lock();
        orphans.snapshotters.insert(snapshotter.to_owned());
    }

    /// Records that an activation was deleted.
    pub(crate) fn orphan_mounts(&self) {
        self.orphans.lock().mounts = true;
    }

    /// Adds work that a collection found, or could not finish.
    fn orphan_all(&self, removed: Orphans) {
        self.orphans.lock().add(removed);
    }

    fn start_noting(&self) {
        *self.touched.lock() = Some(Vec::new());
    }

    fn noted_len(&self) -> usize {
        let touched = self.touched.lock();
        touched.as_ref().map_or(0, Vec::len)
    }

    /// Takes the changes noted so far; noting continues.
    fn take_noted(&self) -> Vec<(Namespace, Node)> {
        let mut touched = self.touched.lock();
        touched.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn stop_noting(&self) {
        *self.touched.lock() = None;
    }
}

pub(crate) fn collect(store: &Inner) -> Result<Collected> {
    let mut history = store.gc.running.lock();
    let mut collected = Collected::default();
    let mut removed = Orphans::default();
    let marked = mark_and_remove(store, &mut removed, &mut collected);
    store.gc.stop_noting();
    // Earlier turns have removed records even if a later one failed.
    store.gc.orphan_all(removed);
    marked?;
    sweep::sweep(store, !history.compared, &mut collected);
    history.compared |= collected.failures.is_empty();
    Ok(collected)
}

fn mark_and_remove(store: &Inner, removed: &mut Orphans, collected: &mut Collected) -> Result<()> {
    store.gc.start_noting();
    // Before the records are read: so a stream's lease is among them, unless it has ended.
    let streams = store.streams.leased();
    // A change that had its turn before the noting began may not be readable yet.
    store.db.flush()?;
    let now = store.now();
    let begun = Instant::now();
    let mut marks = store.read(|tx| mark::mark(tx, now, streams))?;
    collected.looking += begun.elapsed();
    collected.next_expiry = marks.next_expiry;
    for turn in marks.dead().chunks(REMOVALS_PER_TURN) {
        let mut looks = 0;
        while !remove_in_turn(store, &mut marks, turn, looks < LOOKS_MAX, removed, collected)? {
            revive_noted(store, &mut marks)?;
            looks += 1;
        }
    }
    // Bytes are removed only after their records are gone from the disk.
    store.sync()
}

/// Removes the records that are still dead. Returns false, without removing any, if too many changes were noted to
/// process them while writers wait, as long as there is `patience`.
fn remove_in_turn(
    store: &Inner,
    marks: &mut mark::Marks,
    dead: &[(Namespace, Node)],
    patience: bool,
    removed: &mut Orphans,
    collected: &mut Collected,
) -> Result<bool> {
    store.change_relaxed(|change| {
        if patience && store.gc.noted_len() > REVIVALS_PER_TURN {
            return Ok(false);
        }
        let (start, noted) = (Instant::now(), store.gc.take_noted());
        let records = noted.len() + dead.len();
        marks.revive(change.tx, noted)?;
        mark::remove(change, marks, dead, removed, collected)?;
        change.drop_notices();
        collected.turns.add(start.elapsed(), records);
        Ok(true)
    })
}

/// Processes noted changes while writers go on.
fn revive_noted(store: &Inner, marks: &mut mark::Marks) -> Result<()> {
    let noted = store.gc.take_noted();
    // A change is noted in its turn, but readable only once its batch is committed.
    store.db.flush()?;
    store.read(|tx| marks.revive(tx, noted))
}
