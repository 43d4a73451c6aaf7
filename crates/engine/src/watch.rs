//! Watchers: one per running container. They wait for its end and do what follows from it.
//!
//! ```text
//! wait ─▶ exit recorded ─▶ task deleted ─▶ ports given back ─▶ removed, with ─▶ waiters told ─▶ network ─▶ started again,
//!                                                              --rm                             taken      by its policy
//!                                                                                               away
//! ```
//!
//! The exit is recorded first: as long as it is not, the task stays and knows it. While an end is being settled whose
//! policy wants a restart, that restart counts as planned, so that nobody takes the container for one that is done.
//!
//! The kernel takes tens of milliseconds for the network. Nobody waits for them but who wants this container, or to
//! know what is left over.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use api::engine::Streams;
use stdx::{Laps, Mutex};
use task::{Ended, Exit, Status};
use tokio::sync::{Notify, watch};
use types::{ContainerId, Error, ErrorKind, Result, Timestamp};

use crate::Engine;
use crate::containers::Starter;
use crate::names::short;
use crate::record::{ExitRecord, Extension, RESTART_PAUSE_MAX};
use crate::turns::{Copies, Turn};

/// The pause before a shim that did not answer is asked again, and before an end that could not be settled is tried
/// again. It is doubled each time, up to the second of the two.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(60);
/// How long who wants a container waits for what nobody watches of its last run to be cleared away, and between two looks.
const LEFT_LIMIT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long the end of a container is told to those who ask late.
const ANSWER_KEPT: Duration = Duration::from_secs(10);
/// The exit code of a container whose end nobody saw.
const UNKNOWN_EXIT: u32 = 255;

/// Those who run, and how to hear of their exit codes, by container.
#[derive(Default)]
pub(crate) struct Watched(Mutex<BTreeMap<String, watch::Receiver<Option<u32>>>>);

impl Watched {
    /// Whether somebody waits for the end of a container, or has not settled it yet.
    pub(crate) fn has(&self, id: &ContainerId) -> bool {
        self.lock().get(id.as_str()).is_some_and(|exit| exit.borrow().is_none())
    }

    /// Whoever tells the end by what is returned watches the container, and nobody before him any more.
    fn begin(&self, id: &ContainerId) -> watch::Sender<Option<u32>> {
        let (send, receive) = watch::channel(None);
        self.lock().insert(id.to_string(), receive);
        send
    }

    /// Whether the container has no other watcher since.
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
    /// Takes up what an earlier daemon left. `ended` are tasks that had ended with their shims.
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
                // Taken at once: the daemon is starting, and nobody has begun anything with the container yet.
                let turn = self.0.turns.take(id.as_str()).await;
                self.watch(id.clone());
                // Its shim may not answer; nobody waits for that but who would change something of it.
                let engine = self.clone();
                tokio::spawn(async move {
                    if let Err(error) = engine.take_up(&id, turn).await {
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
            tokio::spawn(self.clone().see_off(id.clone(), exit, send));
            // Returns when the end is settled, or when settling it has failed for the first time.
            self.wait_for_watched(id.as_str()).await;
        }
        // The rest are tasks of no container of ours: their ends are recorded nowhere.
        for one in others {
            if let Err(error) = self.parts().shims.delete(&one.namespace, &one.id).await
                && !error.is(ErrorKind::NotFound)
            {
                tracing::error!(namespace = %one.namespace, id = %one.id, "forget a task: {}", error.chain());
            }
        }
        let unrecorded = self.blocking(|engine| {
            let unrecorded = engine.unrecorded()?;
            // A tree that cannot be held is no reason not to watch the containers.
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
            // What cannot be removed is no reason not to serve; `system check` shows it.
            Err(error) => tracing::error!("remove what interrupted calls left: {}", error.chain()),
        }
        if let Err(error) = self.blocking(|engine| engine.parts().network.restore()).await {
            tracing::error!("{}", error.chain());
        }
        Ok(())
    }

    /// Makes up for what an earlier daemon had begun with a container that is there, and is watched.
    async fn take_up(&self, id: &ContainerId, mut turn: Turn) -> Result<()> {
        loop {
            let Some(task) = self.task_of(id)? else { return Ok(()) };
            let (_, extension) = self.find_own(id.as_str()).await?;
            let recorded = match task.state_or_unknown().await?.status {
                Status::Created => return self.end_unstarted(id, &task).await,
                // It runs, so it was started; the daemon died before it had written that down.
                Status::Running | Status::Paused
                    if extension.started.is_none() || extension.exit.is_some() =>
                {
                    self.record_start(id, Some(Timestamp::now()), None).await
                }
                Status::Unknown => {
                    drop(turn);
                    tokio::time::sleep(ASK_AGAIN).await;
                    turn = self.0.turns.take(id.as_str()).await;
                    continue;
                }
                _ => Ok(()),
            };
            let copied = if extension.paused_for_copy { self.end_copy(id).await } else { Ok(()) };
            return recorded.and(copied);
        }
    }

    /// As [`Engine::take_up`], of one whose record was deleted: what was never started has nobody who would start it.
    async fn take_up_unrecorded(self, id: ContainerId) {
        let _turn = self.0.turns.take(id.as_str()).await;
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

    /// Waits, not for ever, while something is left of a container that has no task: until its watcher has settled its end, or
    /// has failed to; or, if it has none, as of a task that another client deletes, until that is done.
    pub(crate) async fn wait_until_settled(&self, id: &ContainerId) {
        if self.wait_for_watched(id.as_str()).await.is_some() {
            return;
        }
        let gone = async {
            while self.is_left(id) {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        let _ = tokio::time::timeout(LEFT_LIMIT, gone).await;
    }

    /// Begins to watch a container, unless somebody does.
    pub(crate) fn watch_once(&self, id: &ContainerId) {
        if !self.0.watched.has(id) {
            self.watch(id.clone());
        }
    }

    /// Begins to watch a container.
    pub(crate) fn watch(&self, id: ContainerId) {
        let send = self.0.watched.begin(&id);
        tokio::spawn(self.clone().look_after(id.clone(), send.subscribe()));
        let engine = self.clone();
        tokio::spawn(async move {
            let exit = engine.wait_for_exit(&id).await;
            engine.see_off(id, exit, send).await;
        });
    }

    /// Settles the end of a container, and tells it to those who wait and for a while to those who come late. What
    /// cannot be settled, as on a full disk, is tried again until it can, or until the container has another watcher.
    async fn see_off(self, id: ContainerId, exit: Exit, send: watch::Sender<Option<u32>>) {
        let own = send.subscribe();
        let is_ours = || self.0.watched.is_by(&id, &own);
        // Nobody may be waiting yet: a short container ends before its caller asks, and is gone by then if it was to
        // be removed.
        let tell = || {
            send.send_replace(Some(exit.status));
        };
        let record =
            ExitRecord { code: exit.status, at: exit.at, oom_killed: self.was_short_of_memory(&id).await };
        let planned = self.expect_restart(&id, exit.status).await;
        self.0.ends.begin(&id, record);
        let mut pause = ASK_AGAIN;
        loop {
            let turn = self.0.turns.take(id.as_str()).await;
            // Whoever started it again watches it since.
            if !is_ours() {
                break;
            }
            match self.settle(&id, turn, record, tell).await {
                Ok(()) => break,
                // It was removed meanwhile.
                Err(error) if error.is(ErrorKind::NotFound) => {
                    tracing::warn!(%id, "after a container's end: {}", error.chain());
                    break;
                }
                Err(error) => {
                    tracing::error!(%id, "after a container's end, which is tried again: {}", error.chain());
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(ASK_AGAIN_MAX);
        }
        self.0.ends.over(&id, &record);
        if let Some(planned) = planned {
            self.0.restarts.end(id.as_str(), &planned);
        }
        tell();
        tokio::time::sleep(ANSWER_KEPT).await;
        if is_ours() {
            self.0.watched.forget(&id);
        }
    }

    /// The exit code of a container that ended a moment ago, even if it is gone.
    pub(crate) async fn wait_for_watched(&self, id: &str) -> Option<u32> {
        let mut receiver = self.0.watched.get(id)?;
        receiver.wait_for(Option::is_some).await.ok().and_then(|code| *code)
    }

    async fn wait_for_exit(&self, id: &ContainerId) -> Exit {
        let mut pause = ASK_AGAIN;
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
                // An error does not say that the container has ended: it is asked again.
                Err(error) => {
                    tracing::warn!(%id, "wait for a container: {}", error.chain());
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(ASK_AGAIN_MAX);
                }
            }
        }
    }

    /// Notes that a container will be started again, if its policy wants that after such an exit. The restart itself is
    /// planned when the end is settled, in the place of this.
    async fn expect_restart(&self, id: &ContainerId, code: u32) -> Option<Arc<Notify>> {
        match self.extension(id).await {
            Ok(extension) if !extension.wants_restart(code) => None,
            Err(error) if error.is(ErrorKind::NotFound) => None,
            // A record that cannot be read may want a restart.
            _ => Some(self.0.restarts.plan(id.as_str())),
        }
    }

    /// Records a container's end and clears up after it. `tell` is called when that is known to be done or to have
    /// failed, and before the network goes.
    async fn settle(
        &self,
        id: &ContainerId,
        _turn: Turn,
        exit: ExitRecord,
        tell: impl FnOnce(),
    ) -> Result<()> {
        let _nobody_sweeps = self.0.starting.read().await;
        let settled = self.settle_all_but_network(id, exit).await;
        if settled.is_ok() {
            // Whoever has the turn next may start the container, and its state must not be the old end then.
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
            // Another client has removed its record, which its task outlives.
            Err(error) if error.is(ErrorKind::NotFound) => None,
            recorded => Some(recorded?),
        };
        match self.parts().shims.delete(&self.0.caller.namespace, id).await {
            Err(error) if !error.is(ErrorKind::NotFound) => return Err(error),
            _ => {}
        }
        // As long as processes of the container may be there, nothing of it is taken away.
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
                // The record is gone: what its deletion could not take along while the container ran goes now.
                None => engine.forget_unrecorded(&own),
            }
        })
        .await
    }

    /// Records how a container ended, and returns what is kept of it.
    fn record_end(&self, id: &ContainerId, exit: ExitRecord) -> Result<Extension> {
        let container = self.parts().metadata.containers(&self.0.caller).get(id)?;
        let extension = Extension::of(&container)?;
        if extension.create.auto_remove {
            // The record goes with the container at once: those who wait are told how it ended.
            return Ok(extension);
        }
        self.change(id, |extension| extension.end(exit))
    }

    /// `Unavailable` while something is left of a container that has no task, as of one whose shim died: there may be
    /// processes. Asked with the turn on the container, as one that is being made has no task either.
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

    /// Whether the kernel killed something in a container that has ended, as far as is known.
    pub(crate) async fn was_short_of_memory(&self, id: &ContainerId) -> bool {
        let id = id.clone();
        let recorded = self.blocking(move |engine| {
            let namespace = &engine.0.caller.namespace;
            Ok(engine.parts().shims.oom_killed(namespace, &id))
        });
        recorded.await.unwrap_or(false)
    }

    /// Starts a container that does not run as the daemon begins, if its policy says so.
    async fn start_at_boot(&self, id: &ContainerId, mut extension: Extension) -> Result<()> {
        if !extension.wants_start_at_boot() {
            return Ok(());
        }
        if extension.stopped_by_hand {
            // The policy `always` overrides an earlier stop by hand; a later one counts.
            let own = id.clone();
            extension = self.blocking(move |engine| engine.change(&own, Extension::begin_anew)).await?;
        }
        self.plan_restart(id, extension.restart_pause());
        Ok(())
    }

    /// Has a container started again after a pause, unless that is called off.
    fn plan_restart(&self, id: &ContainerId, pause: Duration) {
        let planned = self.0.restarts.plan(id.as_str());
        let (engine, id) = (self.clone(), id.clone());
        tokio::spawn(async move {
            let mut pause = pause;
            while tokio::time::timeout(pause, planned.notified()).await.is_err()
                && let Err(error) = engine.restart(&id).await
            {
                tracing::warn!(%id, "start a container again: {}", error.chain());
                if !engine.is_left(&id) {
                    break;
                }
                pause = (2 * pause).min(RESTART_PAUSE_MAX);
            }
            engine.0.restarts.end(id.as_str(), &planned);
        });
    }

    /// Whether what its dead shim left is still being cleared away: it can be started after that.
    pub(crate) fn is_left(&self, id: &ContainerId) -> bool {
        let (shims, namespace) = (&self.parts().shims, &self.0.caller.namespace);
        shims.has(namespace, id) && shims.task(namespace, id).is_err()
    }

    async fn restart(&self, id: &ContainerId) -> Result<()> {
        // A restart waits for copies of files as long as they take: nobody else would start the container later.
        while self.0.turns.take_from(id.as_str(), Copies::End).await.is_err() {}
        if !self.start_for(Starter::Policy, id.as_str(), &Streams::default(), &Laps::start()).await? {
            return Ok(());
        }
        let own = id.clone();
        // Counted when the container runs, so that whoever sees the number finds it running.
        let count = |extension: &mut Extension| {
            extension.restarts += 1;
            extension.short_runs = extension.short_runs.saturating_add(1);
        };
        self.blocking(move |engine| engine.change(&own, count).map(drop)).await
    }

    /// Waits until a container neither runs nor is being started.
    pub(crate) async fn wait_until_idle(&self, id: &ContainerId) -> Result<()> {
        // A start has the turn: once that is free the container runs, or the start has taken back what it made.
        drop(self.0.turns.take(id.as_str()).await);
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
        // One that was never started does not run either, as Docker has it.
        Ok(extension.exit.map_or(0, |exit| exit.code))
    }
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
