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
pub(crate) struct Holds {
    held: Mutex<BTreeMap<String, Hold>>,
    filling: Mutex<BTreeSet<String>>,
    filled: Condvar,
    starting: Mutex<BTreeSet<String>>,
}

enum Hold {
    Shared(usize),
    Alone,
}

/// Locked volumes; released when dropped.
pub(crate) struct Held<'a> {
    holds: &'a Holds,
    names: Vec<String>,
}

/// A container that is being started; counts as running until this is dropped.
pub(crate) struct Starting<'a> {
    holds: &'a Holds,
    id: String,
}

/// The exclusive right to create or fill a volume, until dropped.
pub(crate) struct Filling<'a> {
    holds: &'a Holds,
    name: String,
}

impl Holds {
    pub(super) fn hold(&self, names: Vec<String>, alone: bool) -> Result<Held<'_>> {
        let mut held = self.held();
        for name in &names {
            let is_free = match held.get(name) {
                None => true,
                Some(Hold::Shared(_)) => !alone,
                Some(Hold::Alone) => false,
            };
            if !is_free {
                let other = if alone { "given to a container" } else { "removed" };
                return Err(Error::unavailable(format!("volume {name} is just being {other}: try again")));
            }
        }
        for name in &names {
            match held.get_mut(name) {
                Some(Hold::Shared(count)) => *count += 1,
                _ => {
                    held.insert(name.clone(), if alone { Hold::Alone } else { Hold::Shared(1) });
                }
            }
        }
        drop(held);
        Ok(Held { holds: self, names })
    }

    /// From here on no files are moved into the container's volumes, except by a move in progress: see [`Holds::pour`].
    pub(crate) fn start(&self, id: &str) -> Starting<'_> {
        self.starting().insert(id.to_owned());
        Starting { holds: self, id: id.to_owned() }
    }

    pub(super) fn is_starting(&self, id: &str) -> bool {
        self.starting().contains(id)
    }

    /// Waits until no call moves files into the volume, which is short: the last part of a fill, with a lock of its
    /// own.
    pub(super) fn pour(&self, name: &str) -> Result<Filling<'_>> {
        // No volume's name begins with a slash.
        self.fill(&format!("/{name}"))
    }

    /// Waits until no call fills the volume. `Unavailable` if that takes too long.
    pub(super) fn fill(&self, name: &str) -> Result<Filling<'_>> {
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
        Ok(Filling { holds: self, name: name.to_owned() })
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, Hold>> {
        self.held.lock()
    }

    fn starting(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.starting.lock()
    }

    fn filling(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.filling.lock()
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = self.holds.held();
        for name in &self.names {
            match held.get_mut(name) {
                Some(Hold::Shared(count)) if *count > 1 => *count -= 1,
                _ => drop(held.remove(name)),
            }
        }
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.holds.starting().remove(&self.id);
    }
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        self.holds.filling().remove(&self.name);
        self.holds.filled.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn who_removes_a_volume_is_alone() {
        let (holds, name) = (Holds::default(), || vec!["v".to_owned()]);
        let (first, second) = (holds.hold(name(), false).unwrap(), holds.hold(name(), false).unwrap());
        drop(first);
        assert!(holds.hold(name(), true).is_err());
        drop(second);
        let alone = holds.hold(name(), true).unwrap();
        assert!(holds.hold(name(), false).is_err() && holds.hold(name(), true).is_err());
        drop(alone);
        holds.hold(name(), false).unwrap();
    }

    #[test]
    fn one_at_a_time_fills_a_volume_and_nobody_waits_for_another() {
        let (holds, at_it) = (Holds::default(), AtomicUsize::new(0));
        let other = holds.fill("other").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let filling = holds.fill("v").unwrap();
                        assert_eq!(at_it.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        at_it.fetch_sub(1, Ordering::SeqCst);
                        drop(filling);
                    }
                });
            }
        });
        drop(other);
        assert!(holds.filling().is_empty());
    }
}
