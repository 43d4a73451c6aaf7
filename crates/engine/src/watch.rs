//! Watchers: one task per running container, which waits for its end and settles it.
//!
//! ```text
//! wait ─▶ record exit ─▶ delete task ─▶ release ports ─▶ remove, with ─▶ tell waiters ─▶ remove ─▶ restart, by
//!                                                        --rm                            network   policy
//! ```
//!
//! The exit is recorded first: until then the task is kept, which knows it. While the end of a container with a restart
//! policy is being settled, its restart counts as planned, so that no client sees it as finished.
//!
//! The kernel takes tens of milliseconds to remove the network. Only calls that need this container, or look for
//! leftovers, wait for that.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use api::engine::Streams;
use stdx::{Laps, Mutex};
use task::{Ended, Exit, Status};
use tokio::sync::{Notify, watch};
use types::{ContainerId, Error, ErrorKind, Result, Timestamp};

use crate::Engine;
use crate::container_locks::{ContainerLock, Copies};
use crate::containers::Starter;
use crate::names::short;
use crate::record::{ExitRecord, Extension, RESTART_PAUSE_MAX};

/// Pause before an unresponsive shim is asked again, and before settling an end is retried. Doubled each time, up to
/// `RETRY_PAUSE_MAX`.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long a call waits for the clean-up of a last run that has no watcher, and how often it checks.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long the exit code of a container is kept for late callers.
const EXIT_CODE_KEPT: Duration = Duration::from_secs(10);
/// The exit code of a container whose end was not observed.
const UNKNOWN_EXIT: u32 = 255;

/// The watched containers, and channels for their exit codes.
#[derive(Default)]
pub(crate) struct Watched(Mutex<BTreeMap<String, watch::Receiver<Option<u32>>>>);

impl Watched {
    /// Whether a container is watched and its end not settled.
    pub(crate) fn has(&self, id: &ContainerId) -> bool {
        self.lock().get(id.as_str()).is_some_and(|exit| exit.borrow().is_none())
    }

    /// Registers a new watcher, which replaces an earlier one and reports the exit code by the returned channel.
    fn begin(&self, id: &ContainerId) -> watch::Sender<Option<u32>> {
        let (send, receive) = watch::channel(None);
        self.lock().insert(id.to_string(), receive);
        send
    }

    /// Whether `own` is still the container's current watcher.
    fn is_by(&self, id: &ContainerId, own: &watch::Receiver<Option<u32>>) -> bool {
        self.lock().get(id.as_str()).is_some_and(|current| current.same_channel(own))
    }

    fn get(&self, id: &str) -> Option<watch::Receiver<Option<u32>>> {
        self.lock().get(id).cloned()
    }

    fn forget(&self, id: &ContainerId) {
        self.lock().remove(id.as_str());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, watch::Receiver<Option<u32>>>> {
        self.0.lock()
    }
}

impl Engine {
    /// Resumes what an earlier daemon left. `ended` are tasks that had ended with their shims.
    pub async fn resume(&self, ended: &[Ended]) -> Result<()> {
        let containers = self.blocking(Engine::all).await?;
        let mut others: Vec<&Ended> = ended.iter().collect();
        for container in containers {
            let Ok(extension) = Extension::of(&container) else { continue };
            let id = container.id.clone();
            let task = match self.task_of(&id) {
                Ok(task) => task,
                Err(error) => {
                    tracing::error!(%id, "leave a container as it is: {}", error.chain());
                    continue;
                }
            };
            if task.is_some() {
                // Locked immediately: the daemon is starting, so no other call holds the lock.
                let lock = self.0.locks.lock(id.as_str()).await;
                self.watch(id.clone());
                // The shim may not answer; only calls that change this container wait for that.
                let engine = self.clone();
                tokio::spawn(async move {
                    if let Err(error) = engine.take_up(&id, lock).await {
                        tracing::warn!(%id, "take up a container: {}", error.chain());
                    }
                });
                continue;
            }
            let is_it = |one: &&Ended| one.id == id && one.namespace == self.0.caller.namespace;
            let seen = ended.iter().find(is_it);
            others.retain(|one| !is_it(one));
            if seen.is_none() && (extension.started.is_none() || extension.exit.is_some()) {
                if let Err(error) = self.start_at_boot(&id, extension).await {
                    tracing::error!(%id, "start a container with the daemon: {}", error.chain());
                }
                continue;
            }
            let exit =
                seen.map_or(Exit { pid: 0, status: UNKNOWN_EXIT, at: Timestamp::now() }, |one| one.exit);
            let send = self.0.watched.begin(&id);
            tokio::spawn(self.clone().settle_until_done(id.clone(), exit, send));
            // Returns when the end is settled, or settling it has failed once.
            self.wait_for_watched(id.as_str()).await;
        }
        // The others are tasks of containers that are not the engine's: it does not record their exits.
        for one in others {
            if let Err(error) = self.parts().shims.delete(&one.namespace, &one.id).await
                && !error.is(ErrorKind::NotFound)
            {
                tracing::error!(namespace = %one.namespace, id = %one.id, "forget a task: {}", error.chain());
            }
        }
        let unrecorded = self.blocking(|engine| {
            let unrecorded = engine.unrecorded()?;
            // Failing to keep the snapshots does not prevent watching the containers.
            if !unrecorded.is_empty()
                && let Err(error) = engine.hold_trees(&unrecorded)
            {
                tracing::error!("hold trees of containers without records: {}", error.chain());
            }
            Ok(unrecorded)
        });
        for id in unrecorded.await? {
            self.watch(id.clone());
            tokio::spawn(self.clone().take_up_unrecorded(id));
        }
        match self.sweep().await {
            Ok(leftovers) => {
                for leftover in leftovers {
                    tracing::info!("removed what an interrupted call left: {leftover}");
                }
            }
            // Leftovers that cannot be removed do not prevent serving; `system check` shows them.
            Err(error) => tracing::error!("remove what interrupted calls left: {}", error.chain()),
        }
        if let Err(error) = self.blocking(|engine| engine.parts().network.restore()).await {
            tracing::error!("{}", error.chain());
        }
        Ok(())
    }

    /// Completes what an earlier daemon had begun with an existing, watched container.
    async fn take_up(&self, id: &ContainerId, mut lock: ContainerLock) -> Result<()> {
        loop {
            let Some(task) = self.task_of(id)? else { return Ok(()) };
            let (_, extension) = self.find_own(id.as_str()).await?;
            let recorded = match task.state_or_unknown().await?.status {
                Status::Created => return self.end_unstarted(id, &task).await,
                // The container runs, so its start was complete; the daemon died before it had recorded that.
                Status::Running | Status::Paused
                    if extension.started.is_none() || extension.exit.is_some() =>
                {
                    self.record_start(id, Some(Timestamp::now()), None).await
                }
                Status::Unknown => {
                    drop(lock);
                    tokio::time::sleep(RETRY_PAUSE).await;
                    lock = self.0.locks.lock(id.as_str()).await;
                    continue;
                }
                _ => Ok(()),
            };
            let copied = if extension.paused_for_copy { self.end_copy(id).await } else { Ok(()) };
            return recorded.and(copied);
        }
    }

    /// As [`Engine::take_up`], if the record was deleted: a task that was never started will not be.
    async fn take_up_unrecorded(self, id: ContainerId) {
        let _lock = self.0.locks.lock(id.as_str()).await;
        let taken_up = async {
            let Some(task) = self.task_of(&id)? else { return Ok(()) };
            match task.state_or_unknown().await?.status {
                Status::Created => self.end_unstarted(&id, &task).await,
                _ => Ok(()),
            }
        };
        if let Err(error) = taken_up.await {
            tracing::warn!(%id, "take up a container without a record: {}", error.chain());
        }
    }

    /// Waits, for a limited time, while something is left of a container without a task: until its watcher has settled
    /// its end or failed to, or, without a watcher, as when another client deletes the task, until that is done.
    pub(crate) async fn wait_until_settled(&self, id: &ContainerId) {
        if self.wait_for_watched(id.as_str()).await.is_some() {
            return;
        }
        let gone = async {
            while self.is_left(id) {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        let _ = tokio::time::timeout(CLEAN_UP_LIMIT, gone).await;
    }

    /// Watches a container, unless it is watched already.
    pub(crate) fn watch_once(&self, id: &ContainerId) {
        if !self.0.watched.has(id) {
            self.watch(id.clone());
        }
    }

    /// Watches a container, replacing an earlier watcher.
    pub(crate) fn watch(&self, id: ContainerId) {
        let send = self.0.watched.begin(&id);
        tokio::spawn(self.clone().run_health_checks(id.clone(), send.subscribe()));
        let engine = self.clone();
        tokio::spawn(async move {
            let exit = engine.wait_for_exit(&id).await;
            engine.settle_until_done(id, exit, send).await;
        });
    }

    /// Settles the end of a container and reports it to waiters, for a while even to late ones. If that fails, as on a
    /// full disk, retries until it succeeds or the container has another watcher.
    async fn settle_until_done(self, id: ContainerId, exit: Exit, send: watch::Sender<Option<u32>>) {
        let own = send.subscribe();
        let is_ours = || self.0.watched.is_by(&id, &own);
        // There may be no waiter yet: a short-lived container ends before its client asks, and with `--rm` is already
        // gone then.
        let tell = || {
            send.send_replace(Some(exit.status));
        };
        let record =
            ExitRecord { code: exit.status, at: exit.at, oom_killed: self.was_short_of_memory(&id).await };
        let planned = self.expect_restart(&id, exit.status).await;
        self.0.ends.begin(&id, record);
        let mut pause = RETRY_PAUSE;
        loop {
            let lock = self.0.locks.lock(id.as_str()).await;
            // A call that started it again has registered another watcher.
            if !is_ours() {
                break;
            }
            match self.settle(&id, lock, record, tell).await {
                Ok(()) => break,
                // The container was removed meanwhile.
                Err(error) if error.is(ErrorKind::NotFound) => {
                    tracing::warn!(%id, "after a container's end: {}", error.chain());
                    break;
                }
                Err(error) => {
                    tracing::error!(%id, "after a container's end, which is tried again: {}", error.chain());
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
        self.0.ends.over(&id, &record);
        if let Some(planned) = planned {
            self.0.restarts.end(id.as_str(), &planned);
        }
        tell();
        tokio::time::sleep(EXIT_CODE_KEPT).await;
        if is_ours() {
            self.0.watched.forget(&id);
        }
    }

    /// The exit code of a container that has just ended, even if it has been removed.
    pub(crate) async fn wait_for_watched(&self, id: &str) -> Option<u32> {
        let mut receiver = self.0.watched.get(id)?;
        receiver.wait_for(Option::is_some).await.ok().and_then(|code| *code)
    }

    async fn wait_for_exit(&self, id: &ContainerId) -> Exit {
        let mut pause = RETRY_PAUSE;
        loop {
            let unknown = Exit { pid: 0, status: UNKNOWN_EXIT, at: Timestamp::now() };
            let waited = match self.task_of(id) {
                Ok(Some(task)) => {
                    task.will_be_deleted();
                    task.wait(None).await
                }
                Ok(None) => return unknown,
                Err(error) => Err(error),
            };
            match waited {
                Ok(exit) => return exit,
                Err(error) if error.is(ErrorKind::NotFound) => return unknown,
                // An error does not mean that the container has ended.
                Err(error) => {
                    tracing::warn!(%id, "wait for a container: {}", error.chain());
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_PAUSE_MAX);
                }
            }
        }
    }

    /// Marks a restart as planned if the policy requests one after this exit. Replaced by the actual plan when the end
    /// is settled.
    async fn expect_restart(&self, id: &ContainerId, code: u32) -> Option<Arc<Notify>> {
        match self.extension(id).await {
            Ok(extension) if !extension.wants_restart(code) => None,
            Err(error) if error.is(ErrorKind::NotFound) => None,
            // An unreadable record may request a restart.
            _ => Some(self.0.restarts.plan(id.as_str())),
        }
    }

    /// Records a container's end and cleans up after it. Calls `tell` when that is done or has failed, and before the
    /// network is removed.
    async fn settle(
        &self,
        id: &ContainerId,
        _lock: ContainerLock,
        exit: ExitRecord,
        tell: impl FnOnce(),
    ) -> Result<()> {
        let _nobody_sweeps = self.0.starting.read().await;
        let settled = self.settle_all_but_network(id, exit).await;
        if settled.is_ok() {
            // The next holder of the lock may start the container, whose state must not be the old end then.
            self.0.ends.over(id, &exit);
        }
        tell();
        // Processes of a container whose end is not settled may still use the network.
        settled?;
        let own = id.clone();
        self.blocking(move |engine| engine.parts().network.detach(own.as_str())).await?;
        self.0.network_released.notify_one();
        match self.extension(id).await {
            Ok(extension) if extension.wants_restart(exit.code) => {
                self.plan_restart(id, extension.restart_pause());
                // A stop notes itself first, and cancels what is planned second. One that came between the look at the
                // record and the plan has found nothing to cancel.
                let is_stopped = match self.extension(id).await {
                    Ok(extension) => !extension.wants_restart(exit.code),
                    Err(error) => error.is(ErrorKind::NotFound),
                };
                if is_stopped {
                    self.0.restarts.cancel(id.as_str());
                }
                Ok(())
            }
            // The container was removed with its end (`--rm`), or by a client.
            Err(error) if error.is(ErrorKind::NotFound) => Ok(()),
            read => read.map(drop),
        }
    }

    async fn settle_all_but_network(&self, id: &ContainerId, exit: ExitRecord) -> Result<()> {
        let own = id.clone();
        let recorded = self.blocking(move |engine| engine.record_end(&own, exit)).await;
        let extension = match recorded {
            // Another client has deleted the record while the task was running.
            Err(error) if error.is(ErrorKind::NotFound) => None,
            recorded => Some(recorded?),
        };
        match self.parts().shims.delete(&self.0.caller.namespace, id).await {
            Err(error) if !error.is(ErrorKind::NotFound) => return Err(error),
            _ => {}
        }
        // Nothing is removed while processes of the container may exist.
        self.check_nothing_is_left(id)?;
        let own = id.clone();
        self.blocking(move |engine| {
            engine.parts().network.unpublish(own.as_str())?;
            if let Some(extension) = &extension {
                engine.tell_network(&own, "disconnect", &extension.create);
                engine.tell_mounts(&own, "unmount", &extension.create.mounts);
            }
            match extension {
                Some(extension) if !extension.create.auto_remove => Ok(()),
                Some(_) => engine.forget(&own, true),
                // The record is gone: remove what its deletion had to leave while the container ran.
                None => engine.forget_unrecorded(&own),
            }
        })
        .await
    }

    /// Records how a container ended, and returns its extension.
    fn record_end(&self, id: &ContainerId, exit: ExitRecord) -> Result<Extension> {
        let container = self.parts().metadata.containers(&self.0.caller).get(id)?;
        let extension = Extension::of(&container)?;
        if extension.create.auto_remove {
            // With `--rm` the record is removed at once: waiters are told the exit code.
            return Ok(extension);
        }
        self.change(id, |extension| extension.end(exit))
    }

    /// `Unavailable` while something is left of a container without a task, as after its shim died: processes may
    /// exist. The caller holds the container's lock, because a container that is being created has no task either.
    pub(crate) fn check_nothing_is_left(&self, id: &ContainerId) -> Result<()> {
        if !self.is_left(id) {
            return Ok(());
        }
        Err(Error::unavailable(format!(
            "what is left of the last run of container {} cannot be cleared away yet, and may have processes: this is \
             tried again, see the daemon's log",
            short(id)
        )))
    }

    pub(crate) async fn extension(&self, id: &ContainerId) -> Result<Extension> {
        let id = id.clone();
        self.blocking(move |engine| {
            Extension::of(&engine.parts().metadata.containers(&engine.0.caller).get(&id)?)
        })
        .await
    }

    /// Whether the OOM killer killed a process of a container that has ended, as far as is known.
    pub(crate) async fn was_short_of_memory(&self, id: &ContainerId) -> bool {
        let id = id.clone();
        let recorded = self.blocking(move |engine| {
            let namespace = &engine.0.caller.namespace;
            Ok(engine.parts().shims.oom_killed(namespace, &id))
        });
        recorded.await.unwrap_or(false)
    }

    /// Starts a stopped container when the daemon starts, if its policy requests that.
    async fn start_at_boot(&self, id: &ContainerId, mut extension: Extension) -> Result<()> {
        if !extension.wants_start_at_boot() {
            return Ok(());
        }
        if extension.stopped_by_hand {
            // At daemon start the policy `always` overrides an earlier stop by hand; a later stop counts again.
            let own = id.clone();
            extension = self.blocking(move |engine| engine.change(&own, Extension::begin_anew)).await?;
        }
        self.plan_restart(id, extension.restart_pause());
        Ok(())
    }

    /// Restarts a container after a pause, unless cancelled. If that fails for a reason that may pass, tries again.
    fn plan_restart(&self, id: &ContainerId, pause: Duration) {
        let planned = self.0.restarts.plan(id.as_str());
        let (engine, id) = (self.clone(), id.clone());
        tokio::spawn(async move {
            let mut pause = pause;
            while tokio::time::timeout(pause, planned.notified()).await.is_err()
                && let Err(error) = engine.restart(&id).await
            {
                tracing::warn!(%id, "start a container again: {}", error.chain());
                if !engine.is_left(&id) && !may_pass(error.kind()) {
                    break;
                }
                pause = (2 * pause).min(RESTART_PAUSE_MAX);
            }
            engine.0.restarts.end(id.as_str(), &planned);
        });
    }

    /// Whether the clean-up after a dead shim is in progress: the container can be started after that.
    pub(crate) fn is_left(&self, id: &ContainerId) -> bool {
        let (shims, namespace) = (&self.parts().shims, &self.0.caller.namespace);
        shims.has(namespace, id) && shims.task(namespace, id).is_err()
    }

    async fn restart(&self, id: &ContainerId) -> Result<()> {
        // Waits for a copy of files without limit: no other call would start the container later.
        while self.0.locks.lock_with(id.as_str(), Copies::End).await.is_err() {}
        if !self.start_for(Starter::Policy, id.as_str(), &Streams::default(), &Laps::start()).await? {
            return Ok(());
        }
        let own = id.clone();
        // Counted once the container runs, so that a client which sees the new count finds it running.
        let count = |extension: &mut Extension| {
            extension.restarts += 1;
            extension.short_runs = extension.short_runs.saturating_add(1);
        };
        self.blocking(move |engine| engine.change(&own, count).map(drop)).await
    }

    /// Waits until a container neither runs nor is being started.
    pub(crate) async fn wait_until_idle(&self, id: &ContainerId) -> Result<()> {
        // A start holds the lock: once that is free, the container runs or the start has been undone.
        drop(self.0.locks.lock(id.as_str()).await);
        match self.task_of(id)? {
            Some(_) => self.wait_for_end(id).await.map(drop),
            None => Ok(()),
        }
    }

    /// Waits until a container does not run, and returns its exit code.
    pub(crate) async fn wait_for_end(&self, id: &ContainerId) -> Result<u32> {
        if let Some(code) = self.wait_for_watched(id.as_str()).await {
            return Ok(code);
        }
        let (_, extension) = self.find_own(id.as_str()).await?;
        // As in Docker, a container that was never started counts as ended.
        Ok(extension.exit.map_or(0, |exit| exit.code))
    }
}

/// Whether a start that failed with this kind of error may succeed without a change of the container: something is used up,
/// as disk, memory or addresses, or does not answer.
fn may_pass(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ResourceExhausted | ErrorKind::DeadlineExceeded | ErrorKind::Unavailable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_watcher_counts_until_the_end_is_told() {
        let (watched, id) = (Watched::default(), ContainerId::new("a").unwrap());
        assert!(!watched.has(&id) && watched.get("a").is_none());
        let first = watched.begin(&id);
        let second = watched.begin(&id);
        assert!(!watched.is_by(&id, &first.subscribe()) && watched.is_by(&id, &second.subscribe()));
        first.send_replace(Some(1));
        assert!(watched.has(&id), "nobody hears the first any more");
        second.send_replace(Some(2));
        assert!(!watched.has(&id));
        assert_eq!(*watched.get("a").unwrap().borrow(), Some(2), "who asks late is told");
        assert!(!Watched::default().has(&id), "each engine watches its own");
        watched.forget(&id);
        assert!(watched.get("a").is_none());
    }
}
