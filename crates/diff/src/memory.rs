//! Memory that layers hold to the end of their streams: names, inodes and attributes of a tree, or paths of directories.
//!
//! Each layer has a little of its own. Beyond that it takes from what all layers of the process share, while there is some.
//! Where there is none, a layer that can be read from the disk later gives way, and any other waits for its turn: one of its
//! kind at a time goes on without, up to all that a layer may take.
//!
//! Whoever has the turn waits for no other layer any more: it takes nothing of what is shared, and its windows need no room
//! (see [`Windows`]). So the turn comes to its end whatever those hold who wait for it; and whoever has no turn waits
//! for windows of others and for turns only. Layers that go from the disk to snapshots have a turn apart from those that
//! somebody may keep waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use types::{Error, Result};

use crate::budget::{Budget, Permit};
use crate::decoder::Origin;

/// Bytes that every layer has: what more than nearly all want.
const OWN_LEN: u64 = 16 << 20;
/// Bytes beyond those, of all layers of the process, and how many of them are taken at a time.
static SHARED: Budget = Budget::new(256 << 20);
const STEP_LEN: u64 = 4 << 20;

/// Turns of layers that are read from the disk, and of those that come.
static STORED: Budget = Budget::new(1);
static COMING: Budget = Budget::new(1);

/// Room for the windows of one layer's streams.
#[derive(Clone)]
pub(crate) struct Windows {
    origin: Origin,
    /// Whether it is the layer's turn.
    has_turn: Arc<AtomicBool>,
}

impl Windows {
    pub(crate) fn of(origin: Origin) -> Windows {
        Windows { origin, has_turn: Arc::default() }
    }

    /// Room for so many bytes, once there is or at once, as the layer's origin is. None of it is needed while it is the
    /// layer's turn.
    pub(crate) fn take(&self, len: u64) -> Option<Permit<'static>> {
        let budget = self.origin.windows();
        match self.origin {
            Origin::Passing => budget.try_take(len),
            Origin::Stored | Origin::Coming => Some(budget.take_unless(len, &self.has_turn)),
        }
    }

    fn begin_turn(&self) {
        self.has_turn.store(true, Ordering::SeqCst);
        // Its decoder may be waiting already, for what somebody holds who waits for the turn.
        self.origin.windows().look_again();
    }
}

/// What one layer takes, until dropped.
pub(crate) struct Memory {
    windows: Windows,
    shared: &'static Budget,
    /// None for a layer that waits for no turn.
    turns: Option<&'static Budget>,
    /// Bytes that it may take so far.
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

    /// Says that the layer takes so many bytes by now. `Unavailable` if it is to give way.
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
    /// Who had the turn may have had much: it goes back to the kernel before the next one begins.
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
    fn a_layer_that_passes_gives_way_beyond_its_own() {
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

    /// However long whoever comes from elsewhere, or goes there, keeps its turn.
    #[test]
    fn layers_from_the_disk_have_a_turn_of_their_own() {
        let turns = |origin| Memory::of(Windows::of(origin)).turns.unwrap();
        assert!(!std::ptr::eq(turns(Origin::Stored), turns(Origin::Coming)));
    }

    /// Whoever waits for the turn keeps what it holds, of memory and of windows, and holds up nobody who has the turn.
    #[test]
    fn one_layer_at_a_time_goes_on_without_room() {
        let (shared, turns) = (budget(2 * STEP_LEN), budget(1));
        let stored = || Memory::beside(Windows::of(Origin::Stored), shared, Some(turns));
        let (mut first, mut second) = (stored(), stored());
        first.grow_to(OWN_LEN + STEP_LEN).unwrap();
        second.grow_to(OWN_LEN + STEP_LEN).unwrap();
        first.grow_to(100 * OWN_LEN).unwrap();
        assert!(shared.try_take(STEP_LEN).is_some(), "whoever has the turn takes nothing of what is shared");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(move || {
                second.grow_to(OWN_LEN + 3 * STEP_LEN).unwrap();
                second
            });
            assert_eq!(turns.free_while_waited_for(), 0);
            assert!(!waiting.is_finished());
            // More than there is while somebody else has some.
            let window = Windows::of(Origin::Stored).take(1).unwrap();
            assert!(first.windows.take(u64::MAX).is_some());
            drop((window, first));
            drop(waiting.join().unwrap());
        });
        assert!(shared.try_take(2 * STEP_LEN).is_some() && turns.try_take(1).is_some(), "all is given back");
    }
}
