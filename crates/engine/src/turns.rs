//! Turns: at most one caller at a time works on one container; others wait, those on other containers
//! do not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// Who is at it, by container.
#[derive(Clone, Default)]
pub(crate) struct Turns(Arc<Mutex<BTreeMap<String, Arc<AsyncMutex<()>>>>>);

/// A turn, until dropped.
pub(crate) struct Turn {
    turns: Turns,
    id: String,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    /// Waits for the turn on a container. Safe to cancel.
    pub(crate) async fn take(&self, id: &str) -> Turn {
        let queue = self.queues().entry(id.to_owned()).or_default().clone();
        // Made before the wait: a caller that goes away cleans up like any other.
        let mut turn = Turn { turns: self.clone(), id: id.to_owned(), guard: None };
        turn.guard = Some(queue.lock_owned().await);
        turn
    }

    fn queues(&self) -> MutexGuard<'_, BTreeMap<String, Arc<AsyncMutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.guard = None;
        let mut queues = self.turns.queues();
        // The map's own is the last: nobody waits.
        if queues.get(&self.id).is_some_and(|queue| Arc::strong_count(queue) == 1) {
            queues.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turns_on_one_container_follow_each_other_and_leave_nothing() {
        let turns = Turns::default();
        let first = turns.take("one").await;
        let other = turns.take("other").await;
        let second = tokio::spawn({
            let turns = turns.clone();
            async move { drop(turns.take("one").await) }
        });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        drop(first);
        second.await.unwrap();
        drop(other);
        assert!(turns.queues().is_empty());
    }
}
