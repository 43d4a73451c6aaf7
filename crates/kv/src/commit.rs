//! Group commit: callers that write at the same time share one engine transaction and one fsync.
//!
//! ```text
//! arrive ──▶ wait for the turn ──▶ run the closure in the open batch ──▶ someone waits for a turn?
//!                                                        yes: leave the batch open to them ◀──┤
//!                                                        no:  commit it, with the turn in hand ◀┘
//! ```
//!
//! While one caller commits, the others queue up; they then run one after another and the last of
//! them commits for all. There is no committer thread and no timer: a lone writer pays one fsync and
//! waits for nobody.
//!
//! A relaxed batch is committed without an fsync: the engine keeps it in memory until the next one that has one.
//! Should the engine have to be opened anew before that, it would be lost, though it was answered; so its changes
//! are also kept in a journal here, which the fresh engine gets first.
//!
//! Invariant: a batch is open and the turn free only while somebody waits for the turn. They see to
//! the batch, whether their own closure succeeds, fails or panics.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use types::{Error, Result};

use crate::error::{Shared, engine};
use crate::transaction::{Journal, WriteTxn, apply};

/// Closures in one batch at most, so that a steady stream of writers cannot keep the first waiting.
const BATCH_LEN_MAX: usize = 256;

/// When a write is answered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    OnDisk,
    Readable,
}

#[derive(Default)]
pub(crate) struct Turns {
    waiting: AtomicUsize,
    batch: Mutex<Option<Batch>>,
    /// What was answered and is not on disk.
    relaxed: Mutex<Journal>,
}

struct Batch {
    transaction: redb::WriteTransaction,
    len: usize,
    changed: bool,
    on_disk: bool,
    /// The changes of its relaxed closures.
    relaxed: Journal,
    /// Set when handing changes to the engine failed: nothing of this batch may be committed.
    broken: Option<Shared>,
    outcome: Arc<Outcome>,
}

/// How a batch ended, for those who wait for it.
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
        begin: impl FnOnce() -> Result<redb::WriteTransaction>,
        body: impl FnOnce(&mut WriteTxn<'_>) -> Result<T>,
    ) -> Result<T> {
        if IN_TURN.get() {
            return Err(Error::internal("a write transaction was begun inside another"));
        }
        let mut turn = self.take();
        if turn.batch.is_none() {
            *turn.batch = Some(Batch::new(begin()?));
        }
        let batch = turn.batch.as_mut().expect("a batch was opened above");
        let outcome = Arc::clone(&batch.outcome);
        let result = batch.run(answer, body);
        drop(turn);
        outcome.wait()?;
        result
    }

    /// Whether something was answered that is not on disk.
    pub(crate) fn has_relaxed(&self) -> bool {
        !self.journal().is_empty()
    }

    /// Gives an engine that was opened anew what the one before it had not on disk. Called with the turn in
    /// hand.
    pub(crate) fn replay(&self, fresh: &redb::Database) -> Result<()> {
        // A copy: nothing is written under the lock, and whoever has the turn is the only one to add to it.
        let journal = self.journal().clone();
        if journal.is_empty() {
            return Ok(());
        }
        let transaction = fresh.begin_write().map_err(engine)?;
        apply(&transaction, journal)?;
        transaction.commit().map_err(engine)?;
        self.journal().clear();
        Ok(())
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.relaxed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Turn<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        // A panic in a closure leaves the batch as it was before that closure.
        let batch = self.batch.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        IN_TURN.set(true);
        Turn { turns: self, batch }
    }
}

/// The right to write. Dropping it ends the batch unless somebody waits for the turn.
struct Turn<'a> {
    turns: &'a Turns,
    batch: MutexGuard<'a, Option<Batch>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        IN_TURN.set(false);
        let full = |batch: &Batch| batch.len >= BATCH_LEN_MAX || batch.broken.is_some();
        let alone = self.turns.waiting.load(Ordering::SeqCst) == 0;
        if let Some(batch) = self.batch.take_if(|batch| alone || full(batch)) {
            batch.end(&self.turns.relaxed);
        }
    }
}

impl Batch {
    fn new(transaction: redb::WriteTransaction) -> Batch {
        Batch {
            transaction,
            len: 0,
            changed: false,
            on_disk: false,
            relaxed: Journal::new(),
            broken: None,
            outcome: Arc::default(),
        }
    }

    fn run<T>(&mut self, answer: Answer, body: impl FnOnce(&mut WriteTxn<'_>) -> Result<T>) -> Result<T> {
        self.len += 1;
        let mut transaction = WriteTxn::new(&self.transaction);
        let value = body(&mut transaction)?;
        if transaction.is_changed() {
            self.changed = true;
            self.on_disk |= answer == Answer::OnDisk;
            if answer == Answer::Readable {
                transaction.copy_changes(&mut self.relaxed);
            }
            if let Err(error) = transaction.apply() {
                self.broken = Some(Shared::new(&error));
            }
        }
        Ok(value)
    }

    /// The journal is brought up to date before anybody is answered.
    fn end(mut self, journal: &Mutex<Journal>) {
        let (outcome, on_disk, changed) = (Arc::clone(&self.outcome), self.on_disk, self.changed);
        let relaxed = std::mem::take(&mut self.relaxed);
        let ended = self.finish();
        if ended.is_ok() && changed {
            let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
            if on_disk {
                journal.clear();
            } else {
                for (table, changes) in relaxed {
                    journal.entry(table).or_default().extend(changes);
                }
            }
        }
        outcome.tell(ended.map_err(|error| Shared::new(&error)));
    }

    fn finish(mut self) -> Result<()> {
        if let Some(error) = self.broken {
            // The engine refuses all use after a failed write; what this abort says adds nothing.
            let _ = self.transaction.abort();
            return Err(error.to_error());
        }
        if !self.changed {
            return self.transaction.abort().map_err(engine);
        }
        if !self.on_disk {
            self.transaction.set_durability(redb::Durability::None).map_err(engine)?;
        }
        self.transaction.commit().map_err(engine)
    }
}

impl Outcome {
    fn tell(&self, result: Result<(), Shared>) {
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        self.known.notify_all();
    }

    fn wait(&self) -> Result<()> {
        let mut result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match &*result {
                Some(result) => return result.as_ref().copied().map_err(Shared::to_error),
                None => result = self.known.wait(result).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}
