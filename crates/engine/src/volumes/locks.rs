//! Locks of volumes, by name: shared by calls that are about to use a volume, exclusive for its removal, and one for
//! filling it. Also tracks the containers that are being started, which will use their volumes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::MutexGuard;
use std::time::Duration;

use stdx::{Condvar, Mutex};
use types::{Error, Result};

/// How long a call waits for a volume that another call fills. It occupies a thread meanwhile.
const FILL_WAIT_MAX: Duration = Duration::from_secs(60);

/// The locks of all volumes: many calls may be about to use a volume, or one may remove it; one may create or fill it
/// while others wait.
#[derive(Default)]
pub(crate) struct VolumeLocks {
    locked: Mutex<BTreeMap<String, Mode>>,
    filling: Mutex<BTreeSet<String>>,
    filled: Condvar,
    starting: Mutex<BTreeSet<String>>,
}

enum Mode {
    Shared(usize),
    Exclusive,
}

/// Locked volumes; released when dropped.
pub(crate) struct VolumeLock<'a> {
    locks: &'a VolumeLocks,
    names: Vec<String>,
}

/// A container that is being started; counts as running until this is dropped.
pub(crate) struct Starting<'a> {
    locks: &'a VolumeLocks,
    id: String,
}

/// The exclusive right to create or fill a volume, until dropped.
pub(crate) struct Filling<'a> {
    locks: &'a VolumeLocks,
    name: String,
}

impl VolumeLocks {
    pub(super) fn lock(&self, names: Vec<String>, exclusive: bool) -> Result<VolumeLock<'_>> {
        let mut locked = self.locked();
        for name in &names {
            let is_free = match locked.get(name) {
                None => true,
                Some(Mode::Shared(_)) => !exclusive,
                Some(Mode::Exclusive) => false,
            };
            if !is_free {
                let other = if exclusive { "given to a container" } else { "removed" };
                return Err(Error::unavailable(format!("volume {name} is just being {other}: try again")));
            }
        }
        for name in &names {
            match locked.get_mut(name) {
                Some(Mode::Shared(count)) => *count += 1,
                _ => {
                    locked.insert(name.clone(), if exclusive { Mode::Exclusive } else { Mode::Shared(1) });
                }
            }
        }
        drop(locked);
        Ok(VolumeLock { locks: self, names })
    }

    /// From here on no files are moved into the container's volumes, except by a move in progress: see
    /// [`VolumeLocks::lock_data`].
    pub(crate) fn note_start(&self, id: &str) -> Starting<'_> {
        self.starting().insert(id.to_owned());
        Starting { locks: self, id: id.to_owned() }
    }

    pub(super) fn is_starting(&self, id: &str) -> bool {
        self.starting().contains(id)
    }

    /// Waits until no call moves files into the volume, which is short: the last part of a fill, with a lock of its
    /// own.
    pub(super) fn lock_data(&self, name: &str) -> Result<Filling<'_>> {
        // No volume's name begins with a slash.
        self.lock_filling(&format!("/{name}"))
    }

    /// Waits until no call fills the volume. `Unavailable` if that takes too long.
    pub(super) fn lock_filling(&self, name: &str) -> Result<Filling<'_>> {
        let is_busy = |filling: &mut BTreeSet<String>| filling.contains(name);
        let (mut filling, waited) = self.filled.wait_timeout_while(self.filling(), FILL_WAIT_MAX, is_busy);
        if waited.timed_out() {
            return Err(Error::unavailable(format!(
                "volume {name} is being filled for another container, since more than {} s: try again",
                FILL_WAIT_MAX.as_secs()
            )));
        }
        filling.insert(name.to_owned());
        drop(filling);
        Ok(Filling { locks: self, name: name.to_owned() })
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<String, Mode>> {
        self.locked.lock()
    }

    fn starting(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.starting.lock()
    }

    fn filling(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.filling.lock()
    }
}

impl Drop for VolumeLock<'_> {
    fn drop(&mut self) {
        let mut locked = self.locks.locked();
        for name in &self.names {
            match locked.get_mut(name) {
                Some(Mode::Shared(count)) if *count > 1 => *count -= 1,
                _ => drop(locked.remove(name)),
            }
        }
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.locks.starting().remove(&self.id);
    }
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        self.locks.filling().remove(&self.name);
        self.locks.filled.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn removing_a_volume_excludes_its_use() {
        let (locks, name) = (VolumeLocks::default(), || vec!["v".to_owned()]);
        let (first, second) = (locks.lock(name(), false).unwrap(), locks.lock(name(), false).unwrap());
        drop(first);
        assert!(locks.lock(name(), true).is_err());
        drop(second);
        let exclusive = locks.lock(name(), true).unwrap();
        assert!(locks.lock(name(), false).is_err() && locks.lock(name(), true).is_err());
        drop(exclusive);
        locks.lock(name(), false).unwrap();
    }

    #[test]
    fn only_one_call_at_a_time_fills_a_volume() {
        let (locks, at_it) = (VolumeLocks::default(), AtomicUsize::new(0));
        let other = locks.lock_filling("other").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let filling = locks.lock_filling("v").unwrap();
                        assert_eq!(at_it.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        at_it.fetch_sub(1, Ordering::SeqCst);
                        drop(filling);
                    }
                });
            }
        });
        drop(other);
        assert!(locks.filling().is_empty());
    }
}
