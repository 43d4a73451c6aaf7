//! Group commit: concurrent writers share one engine transaction and one fsync.
//!
//! ```text
//! arrive ──▶ wait for the turn ──▶ run the closure in the open batch ──▶ does another caller wait for a turn?
//!                                                        yes: leave the batch open to it ◀──────┤
//!                                                        no:  commit it, still holding the turn ◀┘
//! ```
//!
//! While one caller commits, the others queue up; they then run one after another and the last of them commits for
//! all. There is no committer thread and no timer: a lone writer pays one fsync and waits for nobody.
//!
//! A caller that must not block leaves its closure in a queue. While the queue is not empty there is one
//! [`Driver`](crate::Driver), which takes turns like any other caller and runs, in each, the closures queued so far:
//!
//! ```text
//! enqueue ──▶ queue ──▶ driver: wait for the turn ──▶ run all of them in the open batch ──▶ (as above) ──▶ call back
//!                          ▲                                                                     │
//!                          └────────────── more were queued ◀────────────────────────────────────┘
//! ```
//!
//! A relaxed batch is committed without an fsync: the engine keeps it in memory until the next batch with one.
//! Reopening the engine before that would lose writes that were already acknowledged, so their changes are also kept
//! in a journal here, which is replayed into the reopened engine.
//!
//! Invariant: a batch is open and the turn free only while a caller waits for the turn. That caller finishes the
//! batch, whether its own closure succeeds, fails or panics.

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard};

use stdx::{Condvar, Mutex};
use types::{Error, Result};

use crate::error::{Shared, engine};
use crate::transaction::{Journal, WriteTxn};

/// Closures per batch at most, so that a steady stream of writers cannot keep the first waiting.
const BATCH_LEN_MAX: usize = 256;

/// When a write is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    OnDisk,
    Readable,
}

#[derive(Default)]
pub(crate) struct Turns {
    waiting: AtomicUsize,
    batch: Mutex<Option<Batch>>,
    /// Changes that were acknowledged and are not yet on disk.
    relaxed: Mutex<Journal>,
    /// A batch with relaxed changes is being committed: readers can see it just before it is acknowledged.
    is_relaxing: AtomicBool,
    queue: Mutex<Queue>,
}

/// Unbounded: callers of [`enqueue`](Turns::enqueue) bound how many writes they queue.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Whether a driver exists.
    is_driven: bool,
}

/// A queued write: runs in the given batch, or reports to its caller why no batch could be opened.
type Job = Box<dyn FnOnce(Result<(&mut Ledger, &mut WriteTxn<'_>), Shared>) + Send>;

/// A batch without closures yet.
pub(crate) struct Begun {
    pub(crate) transaction: redb::WriteTransaction,
    /// The error for closures that add to the records, if the disk is full.
    pub(crate) no_room: Option<Error>,
}

struct Batch {
    transaction: redb::WriteTransaction,
    ledger: Ledger,
}

/// The state of a batch while it is open.
#[derive(Default)]
struct Ledger {
    len: usize,
    changed: bool,
    on_disk: bool,
    no_room: Option<Shared>,
    /// The changes of its relaxed closures.
    relaxed: Journal,
    /// Set when applying changes to the engine failed or panicked: nothing of this batch may be committed.
    broken: Option<Shared>,
    outcome: Arc<Outcome>,
    /// Called with the outcome of the batch.
    callbacks: Vec<Callback>,
}

type Callback = Box<dyn FnOnce(Result<(), Shared>) + Send>;

/// The outcome of a batch, for the callers that wait for it.
#[derive(Default)]
struct Outcome {
    result: Mutex<Option<Result<(), Shared>>>,
    known: Condvar,
}

thread_local! {
    static IN_TURN: Cell<bool> = const { Cell::new(false) };
}

impl Turns {
    /// Runs `body` in the open batch, or in a new one from `begin`, and returns when that batch is
    /// committed.
    pub(crate) fn write<T>(
        &self,
        answer: Answer,
        begin: impl FnOnce() -> Result<Begun>,
        body: impl FnOnce(&mut WriteTxn<'_>) -> Result<T>,
    ) -> Result<T> {
        if IN_TURN.get() {
            return Err(Error::internal("a write transaction was begun inside another"));
        }
        let mut turn = self.take();
        if turn.batch.is_none() {
            *turn.batch = Some(Batch::new(begin()?));
        }
        let Batch { transaction, ledger } = turn.batch.as_mut().expect("a batch was opened above");
        let outcome = Arc::clone(&ledger.outcome);
        let result = ledger.run(&mut WriteTxn::new(transaction), answer, body);
        drop(turn);
        outcome.wait()?;
        result
    }

    /// Queues `body` for the driver, which calls `tell` when its batch is committed. Returns whether the caller must
    /// call [`Turns::drive`] because there is no driver yet.
    pub(crate) fn enqueue<T: Send + 'static>(
        &self,
        body: impl FnOnce(&mut WriteTxn<'_>) -> Result<T> + Send + 'static,
        tell: impl FnOnce(Result<T>) + Send + 'static,
    ) -> bool {
        let job: Job = Box::new(move |batch| {
            let (ledger, transaction) = match batch {
                Ok(batch) => batch,
                Err(error) => return tell(Err(error.to_error())),
            };
            let run = || ledger.run(transaction, Answer::OnDisk, body);
            // For the other closures of the batch a panic counts as an error.
            let result = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
                transaction.take_changes();
                Err(Error::internal("a queued write panicked"))
            });
            ledger.callbacks.push(Box::new(move |ended| {
                tell(ended.map_err(|error| error.to_error()).and(result));
            }));
        });
        let mut queue = self.queue();
        queue.jobs.push_back(job);
        !std::mem::replace(&mut queue.is_driven, true)
    }

    /// Runs queued writes, in as many batches as it takes, until the queue is empty.
    pub(crate) fn drive(&self, begin: impl Fn() -> Result<Begun>) {
        while self.has_queued() {
            let mut turn = self.take();
            if turn.batch.is_none() {
                match begin() {
                    Ok(begun) => *turn.batch = Some(Batch::new(begun)),
                    Err(error) => {
                        drop(turn);
                        let jobs = std::mem::take(&mut self.queue().jobs);
                        jobs.into_iter().for_each(|job| job(Err(Shared::new(&error))));
                        continue;
                    }
                }
            }
            let Batch { transaction, ledger } = turn.batch.as_mut().expect("a batch was opened above");
            let mut transaction = WriteTxn::new(transaction);
            while !ledger.is_full() {
                let Some(job) = self.queue().jobs.pop_front() else { break };
                job(Ok((&mut *ledger, &mut transaction)));
            }
        }
    }

    /// Records that there is no driver any more, and fails the queued writes.
    pub(crate) fn abandon(&self) {
        let jobs = {
            let mut queue = self.queue();
            queue.is_driven = false;
            std::mem::take(&mut queue.jobs)
        };
        let error = Shared::new(&Error::unavailable("the driver of the queued writes was dropped"));
        jobs.into_iter().for_each(|job| job(Err(error.clone())));
    }

    /// Whether writes are queued. If not, the next call of [`Turns::enqueue`] must drive.
    fn has_queued(&self) -> bool {
        let mut queue = self.queue();
        queue.is_driven = !queue.jobs.is_empty();
        queue.is_driven
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    /// Runs `work` while holding the turn. `None` if a batch is open: its writers go first.
    pub(crate) fn idle<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let turn = self.take();
        turn.batch.is_none().then(work)
    }

    /// Whether readers can see changes that are not on disk.
    pub(crate) fn has_relaxed(&self) -> bool {
        self.is_relaxing.load(Ordering::SeqCst) || !self.journal().is_empty()
    }

    /// Replays into a reopened engine the changes that the previous one had not synced. The caller holds the turn.
    pub(crate) fn replay(&self, fresh: &redb::Database) -> Result<()> {
        // A copy, so that the lock is not held during IO; only the holder of the turn adds to the journal.
        let journal = self.journal().clone();
        if journal.is_empty() {
            return Ok(());
        }
        let transaction = fresh.begin_write().map_err(engine)?;
        WriteTxn::new(&transaction).apply(journal)?;
        transaction.commit().map_err(engine)?;
        self.journal().clear();
        Ok(())
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.relaxed.lock()
    }

    fn take(&self) -> Turn<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        // A panic in a closure leaves the batch as it was before that closure, so it can be used further.
        let batch = self.batch.lock();
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        IN_TURN.set(true);
        Turn { turns: self, batch }
    }
}

/// The right to write. Dropping it ends the batch unless another caller waits for the turn.
struct Turn<'a> {
    turns: &'a Turns,
    batch: MutexGuard<'a, Option<Batch>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let alone = self.turns.waiting.load(Ordering::SeqCst) == 0;
        if let Some(batch) = self.batch.take_if(|batch| alone || batch.ledger.is_full()) {
            batch.end(self.turns);
        }
        // Only now: callbacks run while the turn is held, and a write in one of them would deadlock; this flag
        // refuses it.
        IN_TURN.set(false);
    }
}

impl Ledger {
    /// Whether the batch takes no more closures.
    fn is_full(&self) -> bool {
        self.len >= BATCH_LEN_MAX || self.broken.is_some()
    }

    fn run<T>(
        &mut self,
        transaction: &mut WriteTxn<'_>,
        answer: Answer,
        body: impl FnOnce(&mut WriteTxn<'_>) -> Result<T>,
    ) -> Result<T> {
        self.len += 1;
        let result = body(transaction);
        let changes = transaction.take_changes();
        if result.is_ok() && !changes.is_empty() {
            if let Some(no_room) = &self.no_room
                && transaction.adds(&changes)?
            {
                return Err(no_room.to_error());
            }
            self.changed = true;
            self.on_disk |= answer == Answer::OnDisk;
            if answer == Answer::Readable {
                for (table, changes) in &changes {
                    self.relaxed.entry(table).or_default().extend(changes.clone());
                }
            }
            // Cleared once all changes are applied: if the engine panics in between, the shared batch contains half
            // of this closure's changes.
            self.broken = Some(Shared::new(&Error::internal("the engine panicked in a write")));
            self.broken = transaction.apply(changes).err().map(|error| Shared::new(&error));
        }
        result
    }
}

impl Batch {
    fn new(Begun { transaction, no_room }: Begun) -> Batch {
        let no_room = no_room.as_ref().map(Shared::new);
        Batch { transaction, ledger: Ledger { no_room, ..Ledger::default() } }
    }

    /// Updates the journal before any caller gets its answer.
    fn end(mut self, turns: &Turns) {
        let ledger = &mut self.ledger;
        let (outcome, callbacks) = (Arc::clone(&ledger.outcome), std::mem::take(&mut ledger.callbacks));
        let (on_disk, changed, relaxed) =
            (ledger.on_disk, ledger.changed, std::mem::take(&mut ledger.relaxed));
        turns.is_relaxing.store(changed && !on_disk, Ordering::SeqCst);
        // Waiting callers must get an answer even if the engine panics.
        let ended = catch_unwind(AssertUnwindSafe(|| self.finish()))
            .unwrap_or_else(|_| Err(Error::internal("the engine panicked in a commit")))
            .map_err(|error| Shared::new(&error));
        if ended.is_ok() && changed {
            let mut journal = turns.journal();
            if on_disk {
                journal.clear();
            } else {
                for (table, changes) in relaxed {
                    journal.entry(table).or_default().extend(changes);
                }
            }
        }
        turns.is_relaxing.store(false, Ordering::SeqCst);
        for tell in callbacks {
            // A panicking callback must not keep the others waiting. The panic hook has already logged it.
            let _ = catch_unwind(AssertUnwindSafe(|| tell(ended.clone())));
        }
        outcome.tell(ended);
    }

    fn finish(mut self) -> Result<()> {
        if let Some(error) = self.ledger.broken {
            // The engine refuses all use after a failed write, so the result of this abort adds nothing.
            let _ = self.transaction.abort();
            return Err(error.to_error());
        }
        if !self.ledger.changed {
            return self.transaction.abort().map_err(engine);
        }
        if !self.ledger.on_disk {
            self.transaction.set_durability(redb::Durability::None).map_err(engine)?;
        }
        self.transaction.commit().map_err(engine)
    }
}

impl Outcome {
    fn tell(&self, result: Result<(), Shared>) {
        *self.result.lock() = Some(result);
        self.known.notify_all();
    }

    fn wait(&self) -> Result<()> {
        let mut result = self.result.lock();
        loop {
            match &*result {
                Some(result) => return result.as_ref().copied().map_err(Shared::to_error),
                None => result = self.known.wait(result),
            }
        }
    }
}
