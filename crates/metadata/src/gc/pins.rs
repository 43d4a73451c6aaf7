//! Pins: names in the stores below that a caller is about to record, and that the sweep must leave alone.
//!
//! ```text
//! maker    pin ▶ create or find it below ▶ commit the record ▶ unpin
//! sweeper  start the log ▶ list the store below ▶ read the records ▶ for each object without a record:
//!          begin the removal (refused if pinned now, or at any time since the log began) ▶ remove ▶ end
//! ```
//!
//! An object whose pin ended before the log began has a record that the sweeper reads. One that was pinned since is
//! in the log. A maker that pins during the removal waits for its end, and then does not find the object.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::MutexGuard;

use stdx::{Condvar, Mutex};

pub(crate) struct Pins<K> {
    state: Mutex<State<K>>,
    removed: Condvar,
}

struct State<K> {
    pinned: HashMap<K, usize>,
    /// Names pinned since the sweep began, while one runs.
    log: Option<HashSet<K>>,
    removing: HashSet<K>,
}

impl<K> Default for Pins<K> {
    fn default() -> Pins<K> {
        let state = State { pinned: HashMap::new(), log: None, removing: HashSet::new() };
        Pins { state: Mutex::new(state), removed: Condvar::new() }
    }
}

impl<K: Clone + Eq + Hash> Pins<K> {
    /// Protects `key` from being swept until [`Pins::unpin`].
    pub(crate) fn pin(&self, key: &K) {
        let mut state = self.state();
        while state.removing.contains(key) {
            state = self.removed.wait(state);
        }
        *state.pinned.entry(key.clone()).or_default() += 1;
        if let Some(log) = &mut state.log {
            log.insert(key.clone());
        }
    }

    pub(crate) fn unpin(&self, key: &K) {
        let mut state = self.state();
        if let Some(count) = state.pinned.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                state.pinned.remove(key);
            }
        }
    }

    /// Starts the log of pins. Sweeps run one at a time.
    pub(crate) fn start_log(&self) {
        let mut state = self.state();
        state.log = Some(state.pinned.keys().cloned().collect());
    }

    pub(crate) fn stop_log(&self) {
        self.state().log = None;
    }

    /// Runs `remove`, unless `key` is pinned or was since the log began.
    pub(crate) fn remove<T>(&self, key: &K, remove: impl FnOnce() -> T) -> Option<T> {
        {
            let mut state = self.state();
            if state.pinned.contains_key(key) || state.log.as_ref().is_some_and(|log| log.contains(key)) {
                return None;
            }
            state.removing.insert(key.clone());
        }
        let _removal = Removal { pins: self, key };
        Some(remove())
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock()
    }
}

/// A removal in progress. Ends on a panic too, or makers would wait for ever.
struct Removal<'a, K: Clone + Eq + Hash> {
    pins: &'a Pins<K>,
    key: &'a K,
}

impl<K: Clone + Eq + Hash> Drop for Removal<'_, K> {
    fn drop(&mut self) {
        self.pins.state().removing.remove(self.key);
        self.pins.removed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_panicking_removal_blocks_no_maker() {
        let pins = Pins::<&str>::default();
        let broken = catch_unwind(AssertUnwindSafe(|| pins.remove::<()>(&"k", || panic!("on purpose"))));
        assert!(broken.is_err());
        assert!(pins.state().removing.is_empty());
        pins.pin(&"k");
        assert_eq!(pins.remove(&"k", || ()), None, "it is pinned");
        pins.unpin(&"k");
        assert_eq!(pins.remove(&"k", || ()), Some(()));
    }
}
