//! A number of bytes that several share: whoever wants some waits until there are enough, behind those who came before,
//! so that whoever wants much is not passed by again and again.

use std::sync::MutexGuard;
use std::sync::atomic::{AtomicBool, Ordering};

use stdx::{Condvar, Mutex};

pub(crate) struct Budget {
    len: u64,
    state: Mutex<State>,
    /// Something was given back, or whoever was first went through.
    changed: Condvar,
}

struct State {
    /// Bytes.
    free: u64,
    /// How many have come to wait, and how many of them were let through: in the order in which they came.
    came: u64,
    let_through: u64,
}

impl State {
    fn waiting(&self) -> u64 {
        self.came - self.let_through
    }
}

/// A part of a budget, until dropped.
pub(crate) struct Permit<'a> {
    budget: &'a Budget,
    len: u64,
}

impl Budget {
    pub(crate) const fn new(len: u64) -> Budget {
        let state = State { free: len, came: 0, let_through: 0 };
        Budget { len, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Waits for so many bytes, or for all there are if that is less.
    pub(crate) fn take(&self, len: u64) -> Permit<'_> {
        self.take_unless(len, &AtomicBool::new(false))
    }

    /// The same, until it is needless: then it is no bytes. Whoever says so has everybody [`Budget::look_again`].
    ///
    /// Whoever leaves so counts as let through, so that one of those behind may pass one of those before, once.
    pub(crate) fn take_unless(&self, len: u64, is_needless: &AtomicBool) -> Permit<'_> {
        let len = len.min(self.len);
        let mut state = self.lock();
        let turn = state.came;
        state.came += 1;
        let is_early = |state: &State| state.let_through < turn || state.free < len;
        let waits = |state: &mut State| is_early(state) && !is_needless.load(Ordering::SeqCst);
        let mut state = self.changed.wait_while(state, waits);
        let len = if is_early(&state) { 0 } else { len };
        state.let_through += 1;
        state.free -= len;
        drop(state);
        self.changed.notify_all();
        Permit { budget: self, len }
    }

    /// Has everybody who waits look whether that is needless by now.
    pub(crate) fn look_again(&self) {
        // Nobody is between looking and waiting then.
        drop(self.lock());
        self.changed.notify_all();
    }

    /// The same without waiting; none if there are not enough beside what others wait for.
    pub(crate) fn try_take(&self, len: u64) -> Option<Permit<'_>> {
        let mut state = self.lock();
        if state.waiting() > 0 {
            return None;
        }
        state.free = state.free.checked_sub(len)?;
        Some(Permit { budget: self, len })
    }

    /// Bytes that nobody has, once somebody waits for more.
    #[cfg(test)]
    pub(crate) fn free_while_waited_for(&self) -> u64 {
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
    fn whoever_does_not_wait_takes_nothing_from_whoever_does() {
        static BUDGET: Budget = Budget::new(10);
        let part = BUDGET.take(6);
        let waiting = std::thread::spawn(|| BUDGET.take(8));
        BUDGET.free_while_waited_for();
        assert!(BUDGET.try_take(1).is_none(), "what is free is for whoever waits");
        drop(part);
        let waited = waiting.join().unwrap();
        assert!(BUDGET.try_take(1).is_some(), "nobody waits");
        drop(waited);
    }

    #[test]
    fn whoever_wants_much_is_not_passed_by() {
        static BUDGET: Budget = Budget::new(10);
        let part = BUDGET.take(4);
        let large = std::thread::spawn(|| BUDGET.take(8));
        assert_eq!(BUDGET.free_while_waited_for(), 6);
        let small = std::thread::spawn(|| BUDGET.take(6));
        while BUDGET.lock().waiting() < 2 && !small.is_finished() {
            std::thread::yield_now();
        }
        assert!(!small.is_finished(), "six are free, and somebody came before");
        drop(part);
        let large = large.join().unwrap();
        assert_eq!(BUDGET.lock().free, 2);
        assert!(!small.is_finished(), "two are not enough");
        drop(large);
        drop(small.join().unwrap());
        assert_eq!(BUDGET.lock().free, 10);
    }

    #[test]
    fn whoever_need_not_wait_any_more_takes_nothing() {
        static BUDGET: Budget = Budget::new(10);
        static IS_NEEDLESS: AtomicBool = AtomicBool::new(false);
        let part = BUDGET.take(4);
        let leaving = std::thread::spawn(|| BUDGET.take_unless(8, &IS_NEEDLESS));
        assert_eq!(BUDGET.free_while_waited_for(), 6);
        IS_NEEDLESS.store(true, Ordering::SeqCst);
        BUDGET.look_again();
        let nothing = leaving.join().unwrap();
        assert_eq!(nothing.len(), 0);
        let rest = BUDGET.try_take(6).expect("nobody waits");
        drop((part, nothing, rest));
        assert_eq!(BUDGET.lock().free, 10);
    }

    #[test]
    fn there_is_never_more_taken_than_there_is() {
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
