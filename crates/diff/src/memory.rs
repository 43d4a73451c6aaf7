//! Accounts for memory that layers hold to the end of their streams: names, inodes and attributes of a metadata tree,
//! or paths of directories.
//!
//! Each layer has a little of its own. Beyond that it takes from a budget that all layers of the process share. If that
//! is used up, a layer that can be read from the disk later fails with `Unavailable`, and any other waits for its turn:
//! one layer of its kind at a time may exceed the budget, up to the limits of a layer.
//!
//! There is no deadlock. The layer that has the turn waits for no other: it needs nothing of the shared budget and no
//! permits for its windows (see [`Windows`]), so its turn ends whatever the waiting layers hold. A layer without a turn
//! waits for windows and turns only. Layers from the disk ([`Origin::Stored`]) have a turn apart from those that a slow
//! registry or client may hold up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use types::{Error, Result};

use crate::budget::{Budget, Permit};
use crate::decoder::Origin;

/// Bytes that every layer has. Nearly all need no more.
const OWN_LEN: u64 = 16 << 20;
/// Bytes beyond those, of all layers of the process.
static SHARED: Budget = Budget::new(256 << 20);
/// Bytes of [`SHARED`] that are taken at a time.
const STEP_LEN: u64 = 4 << 20;

/// The turns of stored and of coming layers. A turn is a permit for the only unit of its budget.
static STORED: Budget = Budget::new(1);
static COMING: Budget = Budget::new(1);

/// Gives permits for the windows of one layer's stream.
#[derive(Clone)]
pub(crate) struct Windows {
    origin: Origin,
    /// Whether the layer has the turn.
    has_turn: Arc<AtomicBool>,
}

impl Windows {
    pub(crate) fn of(origin: Origin) -> Windows {
        Windows { origin, has_turn: Arc::default() }
    }

    /// A permit for `len` bytes. Passing layers do not wait for it: they get `None` if it is not free. Others do,
    /// unless the layer has the turn or gets it meanwhile.
    pub(crate) fn take(&self, len: u64) -> Option<Permit<'static>> {
        let budget = self.origin.windows();
        match self.origin {
            Origin::Passing => budget.try_take(len),
            Origin::Stored | Origin::Coming => Some(budget.take_unless(len, &self.has_turn)),
        }
    }

    fn begin_turn(&self) {
        self.has_turn.store(true, Ordering::SeqCst);
        // The layer's decoder may be waiting for a permit that a layer holds which waits for the turn.
        self.origin.windows().recheck();
    }
}

/// The memory of one layer, given back when dropped.
pub(crate) struct Memory {
    windows: Windows,
    shared: &'static Budget,
    /// `None` for a layer that waits for no turn.
    turns: Option<&'static Budget>,
    /// Bytes that the layer may hold without another permit.
    len: u64,
    taken: Vec<Permit<'static>>,
    turn: Option<Permit<'static>>,
}

impl Memory {
    pub(crate) fn of(windows: Windows) -> Memory {
        let turns = match windows.origin {
            Origin::Stored => Some(&STORED),
            Origin::Coming => Some(&COMING),
            Origin::Passing => None,
        };
        Memory::beside(windows, &SHARED, turns)
    }

    fn beside(windows: Windows, shared: &'static Budget, turns: Option<&'static Budget>) -> Memory {
        Memory { windows, shared, turns, len: OWN_LEN, taken: Vec::new(), turn: None }
    }

    /// Accounts for `len` bytes in all, which may have to be waited for. `Unavailable` if a passing layer gets no
    /// memory.
    pub(crate) fn grow_to(&mut self, len: u64) -> Result<()> {
        while self.len < len && self.turn.is_none() {
            match self.shared.try_take(STEP_LEN) {
                Some(taken) => {
                    self.taken.push(taken);
                    self.len += STEP_LEN;
                }
                None => self.take_turn()?,
            }
        }
        Ok(())
    }

    fn take_turn(&mut self) -> Result<()> {
        let Some(turns) = self.turns else {
            return Err(Error::unavailable(
                "its names, inodes and attributes do not fit in memory beside those of other layers",
            ));
        };
        self.turn = Some(turns.take(1));
        self.windows.begin_turn();
        self.taken.clear();
        Ok(())
    }
}

impl Drop for Memory {
    /// The layer that had the turn may have held much: its memory goes back to the kernel before the next turn begins.
    fn drop(&mut self) {
        if self.turn.is_some() {
            linux::memory::trim_heap();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(len: u64) -> &'static Budget {
        Box::leak(Box::new(Budget::new(len)))
    }

    #[test]
    fn a_passing_layer_fails_if_the_shared_memory_is_used_up() {
        let shared = budget(2 * STEP_LEN);
        let passing = || Memory::beside(Windows::of(Origin::Passing), shared, None);
        let (mut first, mut second) = (passing(), passing());
        first.grow_to(OWN_LEN + STEP_LEN + 1).unwrap();
        second.grow_to(OWN_LEN).unwrap();
        let refused = second.grow_to(OWN_LEN + 1).unwrap_err();
        assert!(refused.is(types::ErrorKind::Unavailable), "{refused}");
        drop(first);
        second.grow_to(OWN_LEN + 2 * STEP_LEN).unwrap();
        drop(second);
        assert!(shared.try_take(2 * STEP_LEN).is_some(), "all is given back");
    }

    /// However long a layer from a registry keeps its turn.
    #[test]
    fn layers_from_the_disk_have_a_turn_of_their_own() {
        let turns = |origin| Memory::of(Windows::of(origin)).turns.unwrap();
        assert!(!std::ptr::eq(turns(Origin::Stored), turns(Origin::Coming)));
    }

    /// A layer that waits for the turn keeps its memory and windows, and does not hold up the layer that has the turn.
    #[test]
    fn one_layer_at_a_time_exceeds_the_shared_memory() {
        let (shared, turns) = (budget(2 * STEP_LEN), budget(1));
        let stored = || Memory::beside(Windows::of(Origin::Stored), shared, Some(turns));
        let (mut first, mut second) = (stored(), stored());
        first.grow_to(OWN_LEN + STEP_LEN).unwrap();
        second.grow_to(OWN_LEN + STEP_LEN).unwrap();
        first.grow_to(100 * OWN_LEN).unwrap();
        assert!(
            shared.try_take(STEP_LEN).is_some(),
            "the layer that has the turn takes nothing of the shared memory"
        );
        std::thread::scope(|scope| {
            let waiting = scope.spawn(move || {
                second.grow_to(OWN_LEN + 3 * STEP_LEN).unwrap();
                second
            });
            assert_eq!(turns.free_once_waited_for(), 0);
            assert!(!waiting.is_finished());
            // A window that does not fit beside the other's.
            let window = Windows::of(Origin::Stored).take(1).unwrap();
            assert!(first.windows.take(u64::MAX).is_some());
            drop((window, first));
            drop(waiting.join().unwrap());
        });
        assert!(shared.try_take(2 * STEP_LEN).is_some() && turns.try_take(1).is_some(), "all is given back");
    }
}
