//! Deletion of a task, with its shim and its bundle.
//!
//! Invariants
//! - The id stays reserved while the bundle is removed, so that no task can be created with it meanwhile.
//! - The exit of a task that ended with its shim is in the bundle until a client deletes the task.

use std::time::Duration;

use stdx::{TRACE, traced};
use tracing::field::Empty;
use tracing::info_span;
use types::{ContainerId, Error, ErrorKind, Namespace, Result};

use super::dead::last_known;
use super::{Shims, Slot, unbroken};
use crate::{Exit, Task};

/// How long `delete` waits for the clean-up after a dead shim.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(30);

impl Shims {
    /// Deletes a task that has stopped, was never started or is being created, and ends its shim. `FailedPrecondition`
    /// while it runs. Continues if the caller's future is dropped.
    pub async fn delete(&self, namespace: &Namespace, id: &ContainerId) -> Result<Exit> {
        if let Some((task, exit)) = self.ended(namespace, id) {
            return unbroken(self.clone().delete_ended(task, exit)).await;
        }
        let (shims, task) = (self.clone(), self.task(namespace, id)?);
        let span = info_span!(target: TRACE, "task.delete", %namespace, %id, error = Empty);
        let work = async move {
            match shims.creation_of(&task) {
                Some(over) => shims.delete_creating(task, over).await,
                None if shims.is_being_created(&task).await => shims.delete_left(task).await,
                None => shims.delete_one(task, None).await,
            }
        };
        traced(span, unbroken(work)).await
    }

    fn ended(&self, namespace: &Namespace, id: &ContainerId) -> Option<(Task, Exit)> {
        match self.0.slots().get(&(namespace.clone(), id.clone())) {
            Some(Slot::Ended(task, exit)) => Some((task.clone(), *exit)),
            _ => None,
        }
    }

    /// Only one caller gets to delete: the slot and its bundle are then free for another task.
    async fn delete_ended(self, task: Task, exit: Exit) -> Result<Exit> {
        let key = (task.namespace().clone(), task.id().clone());
        match self.0.slots().get_mut(&key) {
            Some(slot @ Slot::Ended(..)) => *slot = Slot::Reserved,
            _ => return Err(Error::not_found(format!("task {}: not found", key.1))),
        }
        let removed = self.remove_bundle(&task).await;
        let mut slots = self.0.slots();
        match removed {
            Ok(()) => drop(slots.remove(&key)),
            Err(error) => {
                slots.insert(key, Slot::Ended(task, exit));
                return Err(error);
            }
        }
        Ok(exit)
    }

    /// `limit` bounds the shim's `Delete` call.
    pub(crate) async fn delete_one(self, task: Task, limit: Option<Duration>) -> Result<Exit> {
        let exit = match task.delete_init(limit).await {
            Ok(exit) => exit,
            // The shim is dying or dead: its watcher cleans up and learns the exit.
            Err(error) if error.is(ErrorKind::Unavailable) => {
                let exit = tokio::time::timeout(CLEAN_UP_LIMIT, task.ended()).await.map_err(|_| error)?;
                return match self.ended(task.namespace(), task.id()) {
                    Some((task, exit)) => self.delete_ended(task, exit).await,
                    None => Ok(exit),
                };
            }
            // Its creation was undone, or the answer to an earlier call was lost: no other call would end the shim.
            Err(error) if error.is(ErrorKind::NotFound) && task.is_unknown_to_shim().await => {
                let exit = last_known(&task).await;
                return if self.forget(&task).await? { Ok(exit) } else { Err(error) };
            }
            Err(error) => return Err(error),
        };
        self.forget(&task).await.map(|_| exit)
    }

    /// Ends the shim of a deleted task, unless other tasks or a sandbox use it. False if another call has done so: the
    /// id may have another task by now.
    async fn forget(&self, task: &Task) -> Result<bool> {
        let _one_at_a_time = task.leave().await;
        let key = (task.namespace().clone(), task.id().clone());
        match self.0.slots().get_mut(&key) {
            Some(slot) if slot.is_of(task) => *slot = Slot::Reserved,
            _ => return Ok(false),
        }
        task.dismiss(self.shim_is_shared(task)).await;
        let removed = self.remove_bundle(task).await;
        self.0.slots().remove(&key);
        removed.map(|()| true)
    }
}
