//! Locks without poisoning.
//!
//! A panic while a thread holds one of the standard library's locks poisons it, and every later `lock` has an error to
//! handle. Here one rule replaces that: data behind these locks changes in single steps, so that a panic between two of
//! them leaves it consistent, and the next holder goes on. Data that could be left half changed must not be behind one
//! of them.
//!
//! Otherwise these are the standard library's locks, guards included. `std::sync::nonpoison` will offer the same; it is
//! not stable yet.

use std::sync::{self, MutexGuard, PoisonError, TryLockError, WaitTimeoutResult};
use std::time::Duration;

/// [`std::sync::Mutex`] without poison.
#[derive(Debug, Default)]
pub struct Mutex<T>(sync::Mutex<T>);

impl<T> Mutex<T> {
    pub const fn new(value: T) -> Mutex<T> {
        Mutex(sync::Mutex::new(value))
    }

    /// Waits until the lock is free.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock, if it is free.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The value without locking: `&mut self` proves that there is no other user.
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

    /// Waits for a notification. It may return without one.
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

    /// Waits for as long as the condition holds, at most for `limit`.
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
    fn a_panic_of_the_holder_does_not_poison_the_lock() {
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
