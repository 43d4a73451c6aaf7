//! Collection: removing what nothing refers to.
//!
//! ```text
//! 1 mark     on a snapshot of the records, while changes go on and are noted     graph
//! 2 revive   in a write transaction: what was touched since, and all it reaches
//! 3 remove   some of the records that are still dead, in the same transaction; 2 and 3 again until none is left
//! 4 sweep    after it, the stores below: what no namespace has a record of       sweep, pins
//! ```
//!
//! Why nothing live is lost: an object that was dead in the snapshot can come to life only by a change
//! that makes a record which refers to it, or by a lease that lists it. Every such change names the
//! record ([`Change::touch`](crate::store::Change::touch)), within its turn of writing, so step 2
//! sees it. An object made since the snapshot is not among those that were marked, so it stays.
//!
//! An object is removed before those that it keeps, so one that comes to life between two turns of removal still
//! has all that it refers to.
//!
//! Writers wait only for one turn of steps 2 and 3, whose length has a bound: what was touched while many objects were
//! marked is looked at beside the writers before, and only the last of it in a turn of writing.

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

/// What a collection removed, and when the next thing expires.
#[derive(Debug, Default)]
pub struct Collected {
    /// Records, over all namespaces.
    pub content: usize,
    pub snapshots: usize,
    pub images: usize,
    pub leases: usize,
    pub ingests: usize,
    pub mounts: usize,
    /// Blobs and file systems removed from the stores below.
    pub blobs_swept: usize,
    pub snapshots_swept: usize,
    /// When the next lease, image or ingest ends: a collection before has nothing to do with time.
    pub next_expiry: Option<Timestamp>,
    /// What could not be removed from the stores below. It is tried again next time.
    pub failures: Vec<Error>,
    pub turns: Turns,
    /// Time for what there was to look at, in the records and in our own stores: what each collection costs, whatever
    /// it finds. Removing is not in it, which costs the same in one collection or in many, nor is what other programs
    /// took who keep snapshots.
    pub looking: Duration,
}

/// Turns of writing, for which other writers waited.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turns {
    pub count: u32,
    /// All turns together.
    pub time: Duration,
    pub longest: Duration,
    /// Records that were looked at in the turn that had most of them.
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

/// Records that are removed in one turn of writing: what a writer may have to wait for.
const REMOVALS_PER_TURN: usize = 128;

/// Noted changes that are looked at in a turn of writing; when there are more, they are looked at before.
const REVIVALS_PER_TURN: usize = 64;

/// How often that is tried: writers that are quicker than the look must not hold up the collection.
const LOOKS_MAX: usize = 16;

#[derive(Default)]
pub(crate) struct State {
    /// Held during a collection.
    running: Mutex<History>,
    /// Noted changes, while a collection wants to know.
    touched: Mutex<Option<Vec<(Namespace, Node)>>>,
    todo: Mutex<Todo>,
    pub(crate) blobs: Pins<Digest>,
    /// Snapshotter and name in it.
    pub(crate) snapshots: Pins<(String, String)>,
}

#[derive(Default)]
struct History {
    /// Whether the stores below have been compared with the records since the start. A crash may
    /// have left things there that no record knows.
    compared: bool,
}

/// What the next sweep has to look at: names in the stores below that lost a record.
#[derive(Debug, Default)]
struct Todo {
    blobs: HashSet<Digest>,
    /// By their names below.
    ingests: HashSet<IngestRef>,
    snapshotters: HashSet<String>,
    /// Whether activations were among them.
    mounts: bool,
    /// Streams have no records: those that are to be ended stay open until the sweep ends them.
    streams: Vec<LeasedStream>,
}

impl Todo {
    fn add(&mut self, more: Todo) {
        self.blobs.extend(more.blobs);
        self.ingests.extend(more.ingests);
        self.snapshotters.extend(more.snapshotters);
        self.mounts |= more.mounts;
        self.streams.extend(more.streams);
    }
}

impl State {
    /// Called with the writer's turn in hand.
    pub(crate) fn touch(&self, nodes: Vec<(Namespace, Node)>) {
        let mut touched = self.touched.lock();
        if let Some(touched) = &mut *touched {
            touched.extend(nodes);
        }
    }

    /// Says that a namespace gave up a blob.
    pub(crate) fn orphan(&self, digest: &Digest) {
        self.todo.lock().blobs.insert(digest.clone());
    }

    /// Says that the record of an ingest is gone, and its bytes are not.
    pub(crate) fn orphan_ingest(&self, backend: IngestRef) {
        self.todo.lock().ingests.insert(backend);
    }

    /// Says that a namespace gave up a snapshot.
    pub(crate) fn orphan_snapshot(&self, snapshotter: &str) {
        let mut todo = self.todo.lock();
        todo.snapshotters.insert(snapshotter.to_owned());
    }

    /// Says that an activation of mounts is gone.
    pub(crate) fn orphan_mounts(&self) {
        self.todo.lock().mounts = true;
    }

    /// Says that a collection gave all this up, or could not look at it.
    fn orphan_all(&self, removed: Todo) {
        self.todo.lock().add(removed);
    }

    fn start_noting(&self) {
        *self.touched.lock() = Some(Vec::new());
    }

    fn noted_len(&self) -> usize {
        let touched = self.touched.lock();
        touched.as_ref().map_or(0, Vec::len)
    }

    /// What was noted since the last time; the noting goes on.
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
    let mut removed = Todo::default();
    let marked = mark_and_remove(store, &mut removed, &mut collected);
    store.gc.stop_noting();
    // What earlier turns removed has lost its record, whatever became of the later ones.
    store.gc.orphan_all(removed);
    marked?;
    sweep::sweep(store, !history.compared, &mut collected);
    history.compared |= collected.failures.is_empty();
    Ok(collected)
}

fn mark_and_remove(store: &Inner, removed: &mut Todo, collected: &mut Collected) -> Result<()> {
    store.gc.start_noting();
    // Before the records are looked at: the lease of each was there then, if it is not over.
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
            look_again(store, &mut marks)?;
            looks += 1;
        }
    }
    // Bytes go only after their records, on disk too.
    store.sync()
}

/// Removes what is dead still. Whether it was done: not if so many changes were noted that writers would wait for the
/// look at them, as long as there is `patience`.
fn remove_in_turn(
    store: &Inner,
    marks: &mut mark::Marks,
    dead: &[(Namespace, Node)],
    patience: bool,
    removed: &mut Todo,
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
        change.be_unnoticed();
        collected.turns.add(start.elapsed(), records);
        Ok(true)
    })
}

/// Looks at what was noted, beside the writers.
fn look_again(store: &Inner, marks: &mut mark::Marks) -> Result<()> {
    let noted = store.gc.take_noted();
    // A change is noted in its turn, and can be read when its batch is committed.
    store.db.flush()?;
    store.read(|tx| marks.revive(tx, noted))
}
