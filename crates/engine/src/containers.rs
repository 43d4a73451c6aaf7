//! The life cycle of a container: stop, signal, wait, rename, remove. Submodules create, start, inspect and exec.

mod binds;
mod config;
mod create;
mod deleted;
mod devices;
mod exec;
mod exposed;
mod filter;
mod log_driver;
mod pid_namespace;
mod prune;
mod show;
mod start;
mod state;
mod streams;
mod top;
mod update;

pub(crate) use self::exec::PROCESS_TYPE;
pub(crate) use self::log_driver::{LOG_DRIVERS, NO_LOG};
pub(crate) use self::show::{attributes, familiar, familiar_with_tag};
pub(crate) use self::start::Starter;
pub(crate) use self::state::{Ends, Phase, State};
pub(crate) use self::streams::once;

use std::time::Duration;

use metadata::Container;
use serde_json::{Value, json};
use task::Status;
use tokio::time::timeout;
use types::{ContainerId, Error, ErrorKind, ExecId, Result, UnlessGone};

use crate::container_locks::{ContainerLock, Copies};
use crate::names::short;
use crate::record::{EXTENSION, Extension};
use crate::{Engine, remove_folder};

/// containerd's label: the time until which the garbage collector keeps an unreferenced object.
const EXPIRE_LABEL: &str = types::label::gc::EXPIRE;
/// The value by which we recognize a label that we have set: any other value is a client's.
const OWN_EXPIRE_LABEL: &str = "hoist.engine/expire";
/// The label of objects that containerd's garbage collector never removes.
pub(crate) const ROOT_LABEL: &str = types::label::gc::ROOT;
/// Default time between the stop signal and SIGKILL.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// In seconds: a stop timeout that means "no limit", as it exceeds any uptime.
const WITHOUT_END: u64 = i32::MAX as u64;
/// How long a container may take to end after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(60);
const SIGINT: u32 = 2;
const SIGQUIT: u32 = 3;
const SIGKILL: u32 = linux::signal::SIGKILL;
const SIGTERM: u32 = 15;

/// Whether a task's first process has not ended.
async fn is_running(task: &task::Task) -> Result<bool> {
    match task.state_or_unknown().await {
        Ok(process) => Ok(process.status != Status::Stopped),
        // Its creation has just failed.
        Err(error) if error.is(ErrorKind::NotFound) => Ok(false),
        Err(error) => Err(error),
    }
}

impl Engine {
    /// The task of a container, if it has one. `Unavailable` if that cannot be determined: the container may be
    /// running.
    pub(crate) fn task_of(&self, id: &ContainerId) -> Result<Option<task::Task>> {
        self.parts().shims.task(&self.0.caller.namespace, id).unless_gone()
    }

    /// Sends the stop signal, and SIGKILL if the container has not ended in time.
    pub async fn stop_container(
        &self,
        text: &str,
        seconds: Option<u64>,
        signal: Option<&str>,
    ) -> Result<Value> {
        let signal = signal.map(signal_number).transpose()?;
        let text = text.to_owned();
        let (id, extension) = self
            .blocking(move |engine| {
                let container = engine.find(&text)?;
                let extension = engine.change(&container.id, |extension| extension.stopped_by_hand = true)?;
                Ok((container.id, extension))
            })
            .await?;
        self.0.restarts.cancel(id.as_str());
        let signal = signal.unwrap_or_else(|| stop_signal_number(&extension.stop_signal));
        let own =
            || extension.create.extras.stop_timeout.map(|own| u64::try_from(own).unwrap_or(WITHOUT_END));
        let seconds = seconds.or_else(own);
        let limit = seconds.map_or(STOP_TIMEOUT, Duration::from_secs);
        let mut task = self.task_of(&id)?;
        if task.is_none() {
            // A container that is being started may have no task yet: the start holds the lock until it has.
            let _ = timeout(limit, self.0.locks.lock(id.as_str())).await;
            task = self.task_of(&id)?;
        }
        let Some(task) = task else { return Ok(json!({})) };
        // An unresponsive shim uses up the timeout, like a program that does not end.
        let end = async {
            self.signal(&task, signal, false).await?;
            self.tell(&id, "kill", &[("signal", signal.to_string())]);
            // A paused process receives no signal until it is resumed.
            let _ = task.resume().await;
            // An error means that the exit code is unknown, which does not matter here.
            let _ = self.wait_until_idle(&id).await;
            Ok(())
        };
        match timeout(limit, end).await {
            Ok(asked) => asked?,
            Err(_) => {
                self.signal(&task, SIGKILL, true).await?;
                self.tell(&id, "kill", &[("signal", SIGKILL.to_string())]);
                self.wait_until_killed(&id).await?;
            }
        }
        self.tell(&id, "stop", &[]);
        Ok(json!({}))
    }

    pub async fn kill(&self, text: &str, signal: &str) -> Result<Value> {
        let text = text.to_owned();
        let container = self.blocking(move |engine| engine.find(&text)).await?;
        let signal = signal_number(signal)?;
        let task = self.running(&container.id)?;
        // A client that sends a terminating signal does not want the restart policy to start the container again.
        let stops = |extension: &Extension| {
            [SIGKILL, SIGINT, SIGQUIT, SIGTERM, stop_signal_number(&extension.stop_signal)].contains(&signal)
        };
        if stops(&Extension::of(&container)?) {
            let id = container.id.clone();
            self.blocking(move |engine| {
                engine.change(&id, |extension| extension.stopped_by_hand = true).map(drop)
            })
            .await?;
        }
        self.parts().shims.kill(&task, None, signal, false).await?;
        self.tell(&container.id, "kill", &[("signal", signal.to_string())]);
        Ok(json!({}))
    }

    pub async fn pause(&self, text: &str, pause: bool) -> Result<Value> {
        let text = text.to_owned();
        let container = self.blocking(move |engine| engine.find(&text)).await?;
        let task = self.running(&container.id)?;
        if pause {
            task.pause().await?;
        } else {
            task.resume().await?;
        }
        Ok(json!({}))
    }

    /// Renames a container, running or not.
    pub async fn rename(&self, text: &str, name: &str) -> Result<Value> {
        let text = text.to_owned();
        let container = self.blocking(move |engine| engine.find(&text)).await?;
        // While the lock is held, no other call removes the container.
        let _lock = self.0.locks.lock_with(container.id.as_str(), Copies::Wait).await?;
        let (id, name) = (container.id, name.trim_start_matches('/').to_owned());
        let own = id.clone();
        let before = self.blocking(move |engine| engine.rename_record(&own, &name)).await?;
        self.tell(&id, "rename", &[("oldName", format!("/{before}"))]);
        Ok(json!({}))
    }

    fn running(&self, id: &ContainerId) -> Result<task::Task> {
        self.task_of(id)?
            .ok_or_else(|| Error::failed_precondition(format!("container {} is not running", short(id))))
    }

    /// Changes the kind of the error that a container whose namespace is to be joined does not run: `Unavailable` if its
    /// restart policy will start it.
    fn or_awaited(&self, id: &ContainerId, error: Error) -> Error {
        let container = self.parts().metadata.containers(&self.0.caller).get(id);
        let extension = container.and_then(|container| Extension::of(&container));
        let is_awaited = |extension: Extension| extension.wants_start_at_boot() && !extension.stopped_by_hand;
        if error.is(ErrorKind::FailedPrecondition) && extension.is_ok_and(is_awaited) {
            return error.with_kind(ErrorKind::Unavailable);
        }
        error
    }

    /// Sends a signal to the container's first process, or to all. No error if it has ended.
    async fn signal(&self, task: &task::Task, signal: u32, all: bool) -> Result<()> {
        match self.parts().shims.kill(task, None, signal, all).await {
            Err(error) if error.is(ErrorKind::NotFound) => Ok(()),
            // The container has ended, and its shim has just exited.
            Err(_) if matches!(self.task_of(task.id()), Ok(None)) => Ok(()),
            sent => sent,
        }
    }

    /// Removes a container that does not run; with `force`, kills it first. `volumes`: also removes its anonymous
    /// volumes.
    pub async fn remove(&self, text: &str, force: bool, volumes: bool) -> Result<Value> {
        let text = text.to_owned();
        let container = self.blocking(move |engine| engine.find(&text)).await?;
        let _lock = self.lock_stopped(&container, force).await?;
        let own = container.id.clone();
        self.blocking(move |engine| engine.discard(&own, volumes)).await?;
        Ok(json!({"Id": container.id.as_str()}))
    }

    /// Locks a container that does not run, which cannot be started while the lock is held. With `force`, kills it
    /// first.
    async fn lock_stopped(&self, container: &Container, force: bool) -> Result<ContainerLock> {
        let id = &container.id;
        let refused = |why: &str| {
            let name = Extension::of(container).map(|extension| extension.name).unwrap_or_default();
            Error::failed_precondition(format!(
                "container {name} {why}: stop the container before removing it, or remove it by force (-f)"
            ))
        };
        let mut has_waited = false;
        loop {
            // A start holds the lock as long as it takes: the container is stopped before waiting for the lock.
            if !has_waited && let Some(task) = self.task_of(id)? {
                if !force && is_running(&task).await? {
                    return Err(refused("is running"));
                }
                if force {
                    self.end_by_hand(id, &task).await?;
                }
                // First wait until its watcher has settled the end: the restart policy may start it again.
                self.wait_until_killed(id).await?;
                has_waited = true;
            }
            let copies = if force { Copies::End } else { Copies::Wait };
            let lock = self.0.locks.lock_with(id.as_str(), copies).await?;
            match self.task_of(id)? {
                None => {
                    // What a container left that ended with its shim and whose end no watcher has settled.
                    match self.parts().shims.delete(&self.0.caller.namespace, id).await {
                        Err(error) if !error.is(ErrorKind::NotFound) => return Err(error),
                        _ => self.check_nothing_is_left(id)?,
                    }
                }
                // A task that could not be deleted after its end: `system check` finds what is left of it.
                Some(task) if has_waited && !self.0.watched.has(id) && !is_running(&task).await? => {}
                // Another call started it again before this one got the lock. It may have ended since, without its end
                // being settled.
                Some(_) => {
                    has_waited = false;
                    continue;
                }
            }
            if !force && self.0.restarts.are_planned(id.as_str()) {
                return Err(refused("waits to be started again"));
            }
            self.0.restarts.cancel(id.as_str());
            return Ok(lock);
        }
    }

    /// Waits for the end of a container that was killed or has ended. A process that waits inside the kernel may
    /// survive for long.
    async fn wait_until_killed(&self, id: &ContainerId) -> Result<()> {
        timeout(KILL_LIMIT, self.wait_until_idle(id)).await.unwrap_or_else(|_| {
            Err(Error::deadline_exceeded(format!(
                "container {} was killed and has not ended within {} s: its processes may wait for a disk that does not \
                 answer; it ends when they can go on",
                short(id),
                KILL_LIMIT.as_secs()
            )))
        })
    }

    /// Kills a running container and marks it as stopped by hand, so that its restart policy does not start it again.
    async fn end_by_hand(&self, id: &ContainerId, task: &task::Task) -> Result<()> {
        let own = id.clone();
        self.blocking(move |engine| {
            engine.change(&own, |extension| extension.stopped_by_hand = true).map(drop)
        })
        .await?;
        self.signal(task, SIGKILL, true).await?;
        let _ = task.resume().await;
        Ok(())
    }

    /// Removes everything that belongs to a container that does not run; with `volumes`, also its anonymous volumes.
    /// Whatever is gone already is no error.
    pub(crate) fn discard(&self, id: &ContainerId, volumes: bool) -> Result<()> {
        self.parts().network.detach(id.as_str())?;
        self.forget(id, volumes)
    }

    /// As [`Engine::discard`], except for the network.
    pub(crate) fn forget(&self, id: &ContainerId, volumes: bool) -> Result<()> {
        let containers = self.parts().metadata.containers(&self.0.caller);
        let (extension, snapshotter) = match containers.get(id) {
            Ok(container) => (Extension::of(&container).ok(), container.snapshotter),
            Err(error) if error.is(ErrorKind::NotFound) => (None, self.parts().snapshotter.clone()),
            Err(error) => return Err(error),
        };
        if let Some(extension) = &extension {
            self.note_removed(id, extension);
        }
        // The record's deletion is a relaxed write: it reaches the disk together with the removal of the snapshot.
        containers.delete_relaxed(id).unless_gone()?;
        if let Some(extension) = &extension {
            self.release_name(&extension.name, id.as_str());
        }
        let tree = match self.remove_tree(id, &snapshotter) {
            Err(error) if error.is(ErrorKind::NotFound) => self.parts().metadata.sync(),
            removed => removed,
        };
        // Without the record no later call would retry what follows: a failed step does not keep the others from being
        // done.
        let files = remove_folder(&self.files(id.as_str()));
        let volumes = match extension {
            Some(extension) if volumes => self.remove_volumes(&extension.own_volumes),
            _ => Ok(()),
        };
        tree.and(files).and(volumes)
    }

    fn remove_tree(&self, id: &ContainerId, snapshotter: &str) -> Result<()> {
        self.parts().metadata.snapshots(&self.0.caller, snapshotter)?.remove(id.as_str())
    }

    /// Changes the engine's extension of a container's record atomically, and returns the result. No lock is needed:
    /// concurrent changes are not lost.
    pub(crate) fn change(&self, id: &ContainerId, change: impl FnOnce(&mut Extension)) -> Result<Extension> {
        let changed = self.parts().metadata.containers(&self.0.caller).change(id, |container| {
            let mut extension = Extension::of(container)?;
            change(&mut extension);
            container.extensions.insert(EXTENSION.to_owned(), extension.to_opaque());
            Ok(())
        })?;
        Extension::of(&changed)
    }

    /// Waits for a process's end and returns its exit code.
    pub async fn wait(&self, text: &str, exec: Option<&str>) -> Result<u32> {
        if exec.is_none()
            && let Some(code) = self.wait_for_watched(text).await
        {
            return Ok(code);
        }
        let text = text.to_owned();
        let container = self.blocking(move |engine| engine.find(&text)).await?;
        if let Some(exec) = exec {
            let exec = ExecId::new(exec)?;
            let task = self.running(&container.id)?;
            let exit = task.wait(Some(&exec)).await?;
            // The exit code of an exec'd process is queried only once.
            let _ = task.delete_exec(&exec).await;
            return Ok(exit.status);
        }
        self.wait_for_end(&container.id).await
    }
}

fn signal_number(word: &str) -> Result<u32> {
    linux::signal::Signal::parse(word).map(|signal| signal.number().unsigned_abs())
}

/// A stop signal that an image declares falls back to SIGTERM if it is invalid, as in Docker: any container must be
/// stoppable.
fn stop_signal_number(word: &str) -> u32 {
    signal_number(word).unwrap_or(SIGTERM)
}
