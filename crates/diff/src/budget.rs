//! A fair semaphore over bytes: a thread that takes some waits until enough are free, behind all threads that came
//! before it, so that a large request is not starved by small ones.

use std::sync::MutexGuard;
use std::sync::atomic::{AtomicBool, Ordering};

use stdx::{Condvar, Mutex};

pub(crate) struct Budget {
    len: u64,
    state: Mutex<State>,
    /// Bytes were given back, or the first waiter was admitted.
    changed: Condvar,
}

struct State {
    /// Bytes that no permit has.
    free: u64,
    /// Number of requests so far.
    arrived: u64,
    /// How many of them were admitted, in the order of their arrival.
    admitted: u64,
}

impl State {
    fn waiting(&self) -> u64 {
        self.arrived - self.admitted
    }
}

/// Bytes of a budget, given back when dropped.
pub(crate) struct Permit<'a> {
    budget: &'a Budget,
    len: u64,
}

impl Budget {
    pub(crate) const fn new(len: u64) -> Budget {
        let state = State { free: len, arrived: 0, admitted: 0 };
        Budget { len, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Waits for `len` bytes, or for the whole budget if that is less.
    pub(crate) fn take(&self, len: u64) -> Permit<'_> {
        self.take_unless(len, &AtomicBool::new(false))
    }

    /// Waits like [`Budget::take`], or until `is_needless` is set: then the permit is of 0 bytes. The thread that sets
    /// it must call [`Budget::recheck`].
    ///
    /// A request that ends so counts as admitted, so that one behind it may once overtake one before it.
    pub(crate) fn take_unless(&self, len: u64, is_needless: &AtomicBool) -> Permit<'_> {
        let len = len.min(self.len);
        let mut state = self.lock();
        let turn = state.arrived;
        state.arrived += 1;
        let is_early = |state: &State| state.admitted < turn || state.free < len;
        let waits = |state: &mut State| is_early(state) && !is_needless.load(Ordering::SeqCst);
        let mut state = self.changed.wait_while(state, waits);
        let len = if is_early(&state) { 0 } else { len };
        state.admitted += 1;
        state.free -= len;
        drop(state);
        self.changed.notify_all();
        Permit { budget: self, len }
    }

    /// Wakes all waiting threads to check whether their request has become needless.
    pub(crate) fn recheck(&self) {
        // With the lock held, no thread is between its check and its wait.
        drop(self.lock());
        self.changed.notify_all();
    }

    /// Takes `len` bytes without waiting; `None` if they are not free, or if other threads wait.
    pub(crate) fn try_take(&self, len: u64) -> Option<Permit<'_>> {
        let mut state = self.lock();
        if state.waiting() > 0 {
            return None;
        }
        state.free = state.free.checked_sub(len)?;
        Some(Permit { budget: self, len })
    }

    /// Waits until a thread waits, and returns the free bytes.
    #[cfg(test)]
    pub(crate) fn free_once_waited_for(&self) -> u64 {
        loop {
            let state = self.lock();
            if state.waiting() > 0 {
                return state.free;
            }
            drop(state);
            std::thread::yield_now();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl Permit<'_> {
    pub(crate) fn len(&self) -> u64 {
        self.len
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.budget.lock().free += self.len;
        self.budget.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn try_take_takes_nothing_while_another_waits() {
        static BUDGET: Budget = Budget::new(10);
        let part = BUDGET.take(6);
        let waiting = std::thread::spawn(|| BUDGET.take(8));
        BUDGET.free_once_waited_for();
        assert!(BUDGET.try_take(1).is_none(), "the free bytes are for the waiting thread");
        drop(part);
        let waited = waiting.join().unwrap();
        assert!(BUDGET.try_take(1).is_some(), "nobody waits");
        drop(waited);
    }

    #[test]
    fn a_large_request_is_not_overtaken_by_a_small_one() {
        static BUDGET: Budget = Budget::new(10);
        let part = BUDGET.take(4);
        let large = std::thread::spawn(|| BUDGET.take(8));
        assert_eq!(BUDGET.free_once_waited_for(), 6);
        let small = std::thread::spawn(|| BUDGET.take(6));
        while BUDGET.lock().waiting() < 2 && !small.is_finished() {
            std::thread::yield_now();
        }
        assert!(!small.is_finished(), "six are free, and the large request came before");
        drop(part);
        let large = large.join().unwrap();
        assert_eq!(BUDGET.lock().free, 2);
        assert!(!small.is_finished(), "two are not enough");
        drop(large);
        drop(small.join().unwrap());
        assert_eq!(BUDGET.lock().free, 10);
    }

    #[test]
    fn a_needless_request_takes_nothing() {
        static BUDGET: Budget = Budget::new(10);
        static IS_NEEDLESS: AtomicBool = AtomicBool::new(false);
        let part = BUDGET.take(4);
        let leaving = std::thread::spawn(|| BUDGET.take_unless(8, &IS_NEEDLESS));
        assert_eq!(BUDGET.free_once_waited_for(), 6);
        IS_NEEDLESS.store(true, Ordering::SeqCst);
        BUDGET.recheck();
        let nothing = leaving.join().unwrap();
        assert_eq!(nothing.len(), 0);
        let rest = BUDGET.try_take(6).expect("nobody waits");
        drop((part, nothing, rest));
        assert_eq!(BUDGET.lock().free, 10);
    }

    #[test]
    fn permits_never_exceed_the_budget() {
        static BUDGET: Budget = Budget::new(10);
        let (first, second) = (BUDGET.take(4), BUDGET.take(6));
        assert!(BUDGET.try_take(1).is_none());
        let waiting = std::thread::spawn(|| BUDGET.take(100).len);
        assert_eq!(BUDGET.lock().free, 0);
        drop(first);
        drop(second);
        assert_eq!(waiting.join().unwrap(), 10, "all there is, once it is there");
        assert_eq!(BUDGET.lock().free, 10);
        let third = BUDGET.try_take(10).unwrap();
        assert_eq!(BUDGET.lock().free, 0);
        drop(third);
        assert_eq!(BUDGET.lock().free, 10);
    }
}
