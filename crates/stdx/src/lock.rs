//! Locks that a panic does not shut.
//!
//! A thread that panics while it has a lock of the standard library's poisons it, and each later lock is an error that
//! somebody has to have an answer to. Here there is one answer: what is behind these locks changes in single steps, so
//! that a panic between two of them leaves it whole, and whoever comes next goes on. What could be left half done must
//! not be behind one of them.
//!
//! They are those of the standard library otherwise, guards included. Its `std::sync::nonpoison` is to have the same,
//! and is not stable.

use std::sync::{self, MutexGuard, PoisonError, TryLockError, WaitTimeoutResult};
use std::time::Duration;

/// [`std::sync::Mutex`] without poison.
#[derive(Debug, Default)]
pub struct Mutex<T>(sync::Mutex<T>);

impl<T> Mutex<T> {
    pub const fn new(value: T) -> Mutex<T> {
        Mutex(sync::Mutex::new(value))
    }

    /// Waits until nobody else has it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock, if nobody else has it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The value, without a lock: nobody else can have one.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

/// [`std::sync::Condvar`] for these locks.
#[derive(Debug, Default)]
pub struct Condvar(sync::Condvar);

impl Condvar {
    pub const fn new() -> Condvar {
        Condvar(sync::Condvar::new())
    }

    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    /// Waits for a notice. It may return without one.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for as long as the condition holds.
    pub fn wait_while<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        condition: impl FnMut(&mut T) -> bool,
    ) -> MutexGuard<'a, T> {
        self.0.wait_while(guard, condition).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for as long as the condition holds, and no longer than that time.
    pub fn wait_timeout_while<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        limit: Duration,
        condition: impl FnMut(&mut T) -> bool,
    ) -> (MutexGuard<'a, T>, WaitTimeoutResult) {
        self.0.wait_timeout_while(guard, limit, condition).unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_panic_of_who_has_it_does_not_shut_it() {
        let (mut lock, notice) = (Mutex::new(1), Condvar::new());
        let ended = thread::scope(|scope| {
            let held = scope.spawn(|| {
                let mut guard = lock.lock();
                *guard = 2;
                panic!("with the lock in hand");
            });
            held.join()
        });
        assert!(ended.is_err());
        assert_eq!(lock.try_lock().as_deref(), Some(&2));
        let held = lock.lock();
        assert!(*held == 2 && lock.try_lock().is_none());
        drop(held);
        assert_eq!(*notice.wait_while(lock.lock(), |value| *value != 2), 2);
        let (guard, waited) = notice.wait_timeout_while(lock.lock(), Duration::ZERO, |_| true);
        assert!(waited.timed_out() && *guard == 2);
        drop(guard);
        assert_eq!(*lock.get_mut(), 2);
    }
}
