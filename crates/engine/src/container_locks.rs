//! Locks of containers: at most one call at a time works on a container; calls on other containers do not wait.
//!
//! Copying files holds the lock while it waits for a client's pipe or for a disk that the container has mounted.
//! Therefore the lock records that it is held for a copy, and other calls wait for a copy only for a limited time, or
//! cancel it.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use stdx::{CancelOnDrop, CancelToken, Mutex};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use types::{Error, Result};

/// How long a call waits behind a copy, and how often it checks whether a copy holds the lock.
const COPY_LIMIT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The locks, by container id.
#[derive(Clone, Default)]
pub(crate) struct ContainerLocks(Arc<Mutex<BTreeMap<String, Arc<Queue>>>>);

#[derive(Default)]
struct Queue {
    mutex: Arc<AsyncMutex<()>>,
    copy: Mutex<Option<Copying>>,
}

/// A copy that holds the lock.
struct Copying {
    since: Instant,
    handle: CopyHandle,
}

/// Cancels a copy: when its call's future is dropped, or by another call.
#[derive(Clone)]
pub(crate) struct CopyHandle(Arc<Mutex<Option<CancelOnDrop>>>);

/// A held lock; released when dropped.
pub(crate) struct ContainerLock {
    locks: ContainerLocks,
    id: String,
    queue: Arc<Queue>,
    guard: Option<OwnedMutexGuard<()>>,
}

/// How a call treats a copy that holds the lock.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copies {
    /// Waits until it is done.
    Wait,
    /// Cancels it where it waits for its pipe.
    End,
}

impl ContainerLocks {
    /// Waits for the lock of a container. Cancel-safe.
    pub(crate) async fn lock(&self, id: &str) -> ContainerLock {
        let queue = self.queues().entry(id.to_owned()).or_default().clone();
        let mutex = queue.mutex.clone();
        // Created before the wait, so that a cancelled call cleans up like any other.
        let mut lock = ContainerLock { locks: self.clone(), id: id.to_owned(), queue, guard: None };
        lock.guard = Some(mutex.lock_owned().await);
        lock
    }

    /// As [`ContainerLocks::lock`], but waits for a copy only for a limited time: then `Unavailable`.
    pub(crate) async fn lock_with(&self, id: &str, copies: Copies) -> Result<ContainerLock> {
        let mut lock_future = std::pin::pin!(self.lock(id));
        let mut behind = Duration::ZERO;
        loop {
            if copies == Copies::End {
                self.end_copy(id);
            }
            if let Ok(lock) = tokio::time::timeout(LOOK_EVERY, &mut lock_future).await {
                return Ok(lock);
            }
            let Some(since) = self.copied_since(id) else { continue };
            behind += LOOK_EVERY;
            if behind >= COPY_LIMIT {
                return Err(Error::unavailable(format!(
                    "files of container {} are being copied since {} s: wait for that, or end it, and try again",
                    &id[..id.len().min(12)],
                    since.elapsed().as_secs()
                )));
            }
        }
    }

    /// Since when the lock has been held for a copy, if it is.
    fn copied_since(&self, id: &str) -> Option<Instant> {
        let queue = self.queues().get(id)?.clone();
        queue.copy().as_ref().map(|copy| copy.since)
    }

    fn end_copy(&self, id: &str) {
        let queue = self.queues().get(id).cloned();
        if let Some(queue) = queue
            && let Some(copy) = queue.copy().as_ref()
        {
            copy.handle.cancel();
        }
    }

    fn queues(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Queue>>> {
        self.0.lock()
    }
}

impl Queue {
    fn copy(&self) -> MutexGuard<'_, Option<Copying>> {
        self.copy.lock()
    }
}

impl ContainerLock {
    /// Records that the lock is held for a copy, until it is released.
    pub(crate) fn copies(&self, handle: &CopyHandle) {
        *self.queue.copy() = Some(Copying { since: Instant::now(), handle: handle.clone() });
    }
}

impl CopyHandle {
    pub(crate) fn new() -> CopyHandle {
        CopyHandle(Arc::new(Mutex::new(Some(CancelOnDrop::new()))))
    }

    pub(crate) fn token(&self) -> CancelToken {
        // The handle was cancelled: a token whose owner is dropped is cancelled too.
        self.owner().as_ref().map_or_else(|| CancelOnDrop::new().token(), CancelOnDrop::token)
    }

    pub(crate) fn cancel(&self) {
        *self.owner() = None;
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.owner().is_none()
    }

    fn owner(&self) -> MutexGuard<'_, Option<CancelOnDrop>> {
        self.0.lock()
    }
}

impl Drop for ContainerLock {
    fn drop(&mut self) {
        if self.guard.is_some() {
            *self.queue.copy() = None;
        }
        self.guard = None;
        let mut queues = self.locks.queues();
        // Only the map and this guard refer to the queue: no other call waits.
        if queues.get(&self.id).is_some_and(|queue| Arc::strong_count(queue) <= 2) {
            queues.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn locks_of_one_container_exclude_each_other_and_leave_nothing() {
        let locks = ContainerLocks::default();
        let first = locks.lock("one").await;
        let other = locks.lock("other").await;
        let second = tokio::spawn({
            let locks = locks.clone();
            async move { drop(locks.lock("one").await) }
        });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        drop(first);
        second.await.unwrap();
        drop(other);
        assert!(locks.queues().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_waits_for_a_copy_of_files_for_a_limited_time() {
        let locks = ContainerLocks::default();
        let copy = locks.lock("one").await;
        let handle = CopyHandle::new();
        copy.copies(&handle);
        let token = handle.token();
        let refused = locks.lock_with("one", Copies::Wait).await.err().expect("it goes on");
        assert!(refused.to_string().contains("are being copied"), "{refused}");
        assert!(token.check().is_ok());
        let ended = locks.lock_with("one", Copies::End).await.err().expect("it does not hear");
        assert_eq!(ended.kind(), types::ErrorKind::Unavailable);
        assert!(token.check().is_err());
        drop(copy);
        // A holder that does not copy is waited for without limit.
        let other = locks.lock("one").await;
        let next = tokio::spawn({
            let locks = locks.clone();
            async move { locks.lock_with("one", Copies::Wait).await.map(drop) }
        });
        tokio::time::sleep(2 * COPY_LIMIT).await;
        assert!(!next.is_finished());
        drop(other);
        next.await.unwrap().unwrap();
        assert!(locks.queues().is_empty());
    }
}
