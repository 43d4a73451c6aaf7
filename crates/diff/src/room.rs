//! A number of bytes that several share: whoever wants some waits until there are enough.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

pub(crate) struct Room {
    len: u64,
    state: Mutex<State>,
    given_back: Condvar,
}

struct State {
    /// Bytes.
    free: u64,
    /// How many wait for more.
    waiting: usize,
}

/// A part of the room, until dropped.
pub(crate) struct Taken<'a> {
    room: &'a Room,
    len: u64,
}

impl Room {
    pub(crate) const fn new(len: u64) -> Room {
        Room { len, state: Mutex::new(State { free: len, waiting: 0 }), given_back: Condvar::new() }
    }

    /// Waits for so many bytes, or for all there are if that is less.
    pub(crate) fn take(&self, len: u64) -> Taken<'_> {
        let len = len.min(self.len);
        let mut state = self.lock();
        state.waiting += 1;
        let enough = self.given_back.wait_while(state, |state| state.free < len);
        let mut state = enough.unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        state.free -= len;
        Taken { room: self, len }
    }

    /// The same without waiting; none if there are not enough beside what others wait for.
    pub(crate) fn try_take(&self, len: u64) -> Option<Taken<'_>> {
        let mut state = self.lock();
        if state.waiting > 0 {
            return None;
        }
        state.free = state.free.checked_sub(len)?;
        Some(Taken { room: self, len })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.room.lock().free += self.len;
        self.room.given_back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_does_not_wait_takes_nothing_from_whoever_does() {
        static ROOM: Room = Room::new(10);
        let part = ROOM.take(6);
        let waiting = std::thread::spawn(|| ROOM.take(8));
        while ROOM.lock().waiting == 0 {
            std::thread::yield_now();
        }
        assert!(ROOM.try_take(1).is_none(), "what is free is for whoever waits");
        drop(part);
        let waited = waiting.join().unwrap();
        assert!(ROOM.try_take(1).is_some(), "nobody waits");
        drop(waited);
    }

    #[test]
    fn there_is_never_more_taken_than_there_is() {
        static ROOM: Room = Room::new(10);
        let (first, second) = (ROOM.take(4), ROOM.take(6));
        assert!(ROOM.try_take(1).is_none());
        let waiting = std::thread::spawn(|| ROOM.take(100).len);
        assert_eq!(ROOM.lock().free, 0);
        drop(first);
        drop(second);
        assert_eq!(waiting.join().unwrap(), 10, "all there is, once it is there");
        assert_eq!(ROOM.lock().free, 10);
        let third = ROOM.try_take(10).unwrap();
        assert_eq!(ROOM.lock().free, 0);
        drop(third);
        assert_eq!(ROOM.lock().free, 10);
    }
}
