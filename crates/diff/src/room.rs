//! A number of bytes that several share: whoever wants some waits until there are enough.

use std::sync::{Condvar, Mutex, PoisonError};

pub(crate) struct Room {
    len: u64,
    free: Mutex<u64>,
    given_back: Condvar,
}

/// A part of the room, until dropped.
pub(crate) struct Taken<'a> {
    room: &'a Room,
    len: u64,
}

impl Room {
    pub(crate) const fn new(len: u64) -> Room {
        Room { len, free: Mutex::new(len), given_back: Condvar::new() }
    }

    /// Waits for so many bytes, or for all there are if that is less.
    pub(crate) fn take(&self, len: u64) -> Taken<'_> {
        let len = len.min(self.len);
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free =
            self.given_back.wait_while(free, |free| *free < len).unwrap_or_else(PoisonError::into_inner);
        *free -= len;
        Taken { room: self, len }
    }

    /// The same without waiting; none if there are not enough.
    pub(crate) fn try_take(&self, len: u64) -> Option<Taken<'_>> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free = free.checked_sub(len)?;
        Some(Taken { room: self, len })
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.room.free.lock().unwrap_or_else(PoisonError::into_inner) += self.len;
        self.room.given_back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_never_more_taken_than_there_is() {
        static ROOM: Room = Room::new(10);
        let (first, second) = (ROOM.take(4), ROOM.take(6));
        assert!(ROOM.try_take(1).is_none());
        let waiting = std::thread::spawn(|| ROOM.take(100).len);
        assert_eq!(*ROOM.free.lock().unwrap(), 0);
        drop(first);
        drop(second);
        assert_eq!(waiting.join().unwrap(), 10, "all there is, once it is there");
        assert_eq!(*ROOM.free.lock().unwrap(), 10);
        let third = ROOM.try_take(10).unwrap();
        assert_eq!(*ROOM.free.lock().unwrap(), 0);
        drop(third);
        assert_eq!(*ROOM.free.lock().unwrap(), 10);
    }
}
