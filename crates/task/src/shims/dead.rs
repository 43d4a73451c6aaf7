//! Shims that die before their tasks are deleted: how that is noticed, and how the daemon cleans up after them.
//!
//! Invariants
//! - Only a shim that is known to be dead is cleaned up after. One that does not answer is asked again.
//! - The exit is published at once, even if something cannot be removed yet. Then the clean-up is retried, and the id
//!   stays taken.

use std::time::Duration;

use api::shim::events::{TaskDelete, TaskExit, topic};
use types::{ErrorKind, Result, Timestamp};

use super::{RETRY_PAUSE, Shims, Slot, blocking};
use crate::bundle::UNKNOWN_EXIT;
use crate::{Exit, Task, bootstrap, convert};

/// Longest pause between attempts to clean up after a dead shim.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);

/// How much of a dead shim's task is removed.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Clearing {
    All,
    /// All but the record of its exit, which no client has received yet.
    AllButBundle,
}

impl Shims {
    /// Follows the shim through its life and cleans up if it dies unexpectedly.
    pub(super) async fn watch(self, task: Task) {
        // If it does not tell its pid, only a socket without a listener shows its death.
        let _ = task.identify_shim().await;
        loop {
            // A shared shim stays alive, so the deletion of the task ends this wait as well.
            task.disconnected_or_leaving().await;
            if task.is_leaving() {
                return;
            }
            if task.shim_is_dead().await {
                break;
            }
            match task.connect().await {
                Ok(()) => {}
                Err(error) if error.is(ErrorKind::Unavailable) => break,
                Err(error) => {
                    tracing::warn!(namespace = %task.namespace(), id = %task.id(), "{}", error.chain());
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
            if task.is_leaving() {
                return;
            }
        }
        let key = (task.namespace().clone(), task.id().clone());
        tracing::warn!(namespace = %key.0, id = %key.1, "the shim died");
        let clearing = if task.has_owner() { Clearing::AllButBundle } else { Clearing::All };
        self.clean_up(&task, clearing).await;
    }

    /// Runs `delete` of a dead shim's program, publishes the task's exit, and forgets the task. The exit is published
    /// at once even if something cannot be removed yet: then the clean-up is retried, and the slot stays reserved.
    pub(super) async fn clean_up(&self, task: &Task, clearing: Clearing) -> Exit {
        let key = (task.namespace().clone(), task.id().clone());
        let taken_down = self.take_down(task).await;
        let is_down = taken_down.is_ok();
        let (exit, left) = match taken_down {
            Ok(exit) if clearing == Clearing::AllButBundle => (exit, None),
            Ok(exit) => (exit, self.remove_bundle(task).await.err()),
            Err(error) => (last_known(task).await, Some(error)),
        };
        let exit = if exit.at == Timestamp::default() { Exit { at: Timestamp::now(), ..exit } } else { exit };
        if left.is_some() {
            // Before publishing: a subscriber might create the next task with this id, or query this one.
            self.0.slots().insert(key.clone(), Slot::Reserved);
        }
        self.publish_end(task, exit);
        match left {
            None if clearing == Clearing::AllButBundle => {
                self.0.slots().insert(key, Slot::Ended(task.clone(), exit));
            }
            None => {
                self.0.slots().remove(&key);
            }
            Some(error) => {
                tracing::error!(
                    namespace = %key.0, id = %key.1,
                    "clean up after a dead shim: {}; this is tried again", error.chain()
                );
                tokio::spawn(self.clone().clean_up_later(task.clone(), is_down));
            }
        }
        task.end(exit);
        exit
    }

    /// Retries a clean-up until it succeeds. If the container is down (`is_down`), only the bundle is left.
    async fn clean_up_later(self, task: Task, mut is_down: bool) {
        let (namespace, id) = (task.namespace(), task.id());
        let mut pause = RETRY_PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            let taken_down = if is_down { Ok(()) } else { self.take_down(&task).await.map(drop) };
            is_down = taken_down.is_ok();
            let cleaned = match taken_down {
                Ok(()) => self.remove_bundle(&task).await,
                failed => failed,
            };
            let Err(error) = cleaned else { break };
            tracing::warn!(%namespace, %id, "clean up after a dead shim: {}", error.chain());
            pause = (2 * pause).min(RETRY_PAUSE_MAX);
        }
        tracing::info!(%namespace, %id, "what a dead shim left is gone");
        self.0.slots().remove(&(namespace.clone(), id.clone()));
    }

    /// Runs `delete` of a dead shim's program.
    async fn take_down(&self, task: &Task) -> Result<Exit> {
        let (shims, task) = (self.clone(), task.clone());
        blocking(move || {
            let (bundle, program) = task.bundle_and_program();
            bootstrap::delete(&shims.0.config, program, bundle, (task.namespace(), task.id().as_str()))
        })
        .await
    }

    pub(super) async fn remove_bundle(&self, task: &Task) -> Result<()> {
        let bundle = task.bundle_and_program().0.clone();
        blocking(move || bundle.remove()).await
    }

    /// Publishes the events that the shim did not live to publish.
    fn publish_end(&self, task: &Task, exit: Exit) {
        let (namespace, id) = (task.namespace(), task.id());
        let at = Some(convert::wire_timestamp(exit.at));
        let ended = TaskExit {
            container_id: id.to_string(),
            id: id.to_string(),
            pid: exit.pid,
            exit_status: exit.status,
            exited_at: at,
        };
        let deleted = TaskDelete {
            container_id: id.to_string(),
            id: String::new(),
            pid: exit.pid,
            exit_status: exit.status,
            exited_at: at,
        };
        if !task.is_published(topic::EXIT) {
            self.publish(namespace, topic::EXIT, &ended);
        }
        if !task.is_published(topic::DELETE) {
            self.publish(namespace, topic::DELETE, &deleted);
        }
    }
}

/// The exit of a task whose shim cannot report it.
pub(super) async fn last_known(task: &Task) -> Exit {
    let task = task.clone();
    let read = blocking(move || {
        let (bundle, program) = task.bundle_and_program();
        Ok(bundle.exit(program))
    });
    read.await.unwrap_or(Exit { pid: 0, status: UNKNOWN_EXIT, at: Timestamp::now() })
}
