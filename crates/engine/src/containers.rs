//! The life of a container: stopped, signalled, waited for, removed. How it is made, started and shown, and how further
//! processes get into it, have files of their own.

mod binds;
mod config;
mod create;
mod deleted;
mod devices;
mod exec;
mod exposed;
mod filter;
mod joins;
mod log_driver;
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

use crate::names::short;
use crate::record::{EXTENSION, Extension};
use crate::turns::{Copies, Turn};
use crate::{Engine, remove_folder};

/// containerd's label: the time until which the collector keeps an object that nothing refers to.
const EXPIRE_LABEL: &str = types::label::gc::EXPIRE;
/// The value of that label which we have set: any other is a client's.
const OWN_EXPIRE_LABEL: &str = "hoist.engine/expire";
/// The label by which containerd's collector never removes an object.
pub(crate) const ROOT_LABEL: &str = types::label::gc::ROOT;
/// How long a container has from the stop signal to SIGKILL, where nobody says otherwise.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// In seconds: a time to stop in that has no end, as it is longer than a machine is up.
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
        // It was being created, which has just failed.
        Err(error) if error.is(ErrorKind::NotFound) => Ok(false),
        Err(error) => Err(error),
    }
}

impl Engine {
    /// The task of a container, if it has one. `Unavailable` if that cannot be told: it may well be running.
    pub(crate) fn task_of(&self, id: &ContainerId) -> Result<Option<task::Task>> {
        self.parts().shims.task(&self.0.caller.namespace, id).unless_gone()
    }

    /// Asks a container to stop, and makes it stop when its time is over.
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
        self.0.restarts.call_off(id.as_str());
        let signal = signal.unwrap_or_else(|| stop_signal_number(&extension.stop_signal));
        let own =
            || extension.create.extras.stop_timeout.map(|own| u64::try_from(own).unwrap_or(WITHOUT_END));
        let seconds = seconds.or_else(own);
        let limit = seconds.map_or(STOP_TIMEOUT, Duration::from_secs);
        let mut task = self.task_of(&id)?;
        if task.is_none() {
            // A container that is being started may have no task yet: the start has the turn until there is one.
            let _ = timeout(limit, self.0.turns.take(id.as_str())).await;
            task = self.task_of(&id)?;
        }
        let Some(task) = task else { return Ok(json!({})) };
        // A shim that does not hear uses up the time as a program does that does not end.
        let end = async {
            self.signal(&task, signal, false).await?;
            self.tell(&id, "kill", &[("signal", signal.to_string())]);
            // A paused process takes no signal until it is resumed.
            let _ = task.resume().await;
            // An error says that the exit code is not known, which does not matter here.
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
        // Whoever sends a signal that ends a container does not want its policy to start it again.
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

    /// Gives a container another name, also if it runs.
    pub async fn rename(&self, text: &str, name: &str) -> Result<Value> {
        let text = text.to_owned();
        let container = self.blocking(move |engine| engine.find(&text)).await?;
        // With the turn, nobody removes the container meanwhile.
        let _turn = self.0.turns.take_from(container.id.as_str(), Copies::Wait).await?;
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

    /// Sends a signal to a container's first process, or to all. One that has ended is no error.
    async fn signal(&self, task: &task::Task, signal: u32, all: bool) -> Result<()> {
        match self.parts().shims.kill(task, None, signal, all).await {
            Err(error) if error.is(ErrorKind::NotFound) => Ok(()),
            // The container has ended, and its shim was just sent away.
            Err(_) if matches!(self.task_of(task.id()), Ok(None)) => Ok(()),
            sent => sent,
        }
    }

    /// Removes a container that does not run; with `force` stops it first. `volumes`: those without a name too.
    pub async fn remove(&self, text: &str, force: bool, volumes: bool) -> Result<Value> {
        let text = text.to_owned();
        let container = self.blocking(move |engine| engine.find(&text)).await?;
        let _turn = self.turn_at_rest(&container, force).await?;
        let own = container.id.clone();
        self.blocking(move |engine| engine.discard(&own, volumes)).await?;
        Ok(json!({"Id": container.id.as_str()}))
    }

    /// The turn on a container that does not run, which nobody starts while it is held. With `force` ends it first.
    async fn turn_at_rest(&self, container: &Container, force: bool) -> Result<Turn> {
        let id = &container.id;
        let refused = |why: &str| {
            let name = Extension::of(container).map(|extension| extension.name).unwrap_or_default();
            Error::failed_precondition(format!(
                "container {name} {why}: stop the container before removing it, or remove it by force (-f)"
            ))
        };
        let mut has_waited = false;
        loop {
            // A start holds the turn as long as it takes: the container is stopped before the turn is waited for.
            if !has_waited && let Some(task) = self.task_of(id)? {
                if !force && is_running(&task).await? {
                    return Err(refused("is running"));
                }
                if force {
                    self.end_by_hand(id, &task).await?;
                }
                // Its end is settled first: it may have to be started again.
                self.wait_until_killed(id).await?;
                has_waited = true;
            }
            let copies = if force { Copies::End } else { Copies::Wait };
            let turn = self.0.turns.take_from(id.as_str(), copies).await?;
            match self.task_of(id)? {
                None => {
                    // What is left of a container that ended with its shim and whose end nobody has settled.
                    match self.parts().shims.delete(&self.0.caller.namespace, id).await {
                        Err(error) if !error.is(ErrorKind::NotFound) => return Err(error),
                        _ => self.check_nothing_is_left(id)?,
                    }
                }
                // A task that could not be deleted after its end: `system check` finds what is left of it.
                Some(task) if has_waited && !self.0.watched.has(id) && !is_running(&task).await? => {}
                // Somebody was first, and has started it again. It may have ended since, and nobody have settled that yet.
                Some(_) => {
                    has_waited = false;
                    continue;
                }
            }
            if !force && self.0.restarts.are_planned(id.as_str()) {
                return Err(refused("waits to be started again"));
            }
            self.0.restarts.call_off(id.as_str());
            return Ok(turn);
        }
    }

    /// Waits for the end of what was killed or has ended. A process that waits inside the kernel may not go for long.
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

    /// Kills what runs of a container, which no policy starts again.
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

    /// Takes away everything of a container that does not run; with `volumes`, those too that were
    /// made for it alone. What is gone already is no error.
    pub(crate) fn discard(&self, id: &ContainerId, volumes: bool) -> Result<()> {
        self.parts().network.detach(id.as_str())?;
        self.forget(id, volumes)
    }

    /// As [`Engine::discard`], of everything but the network.
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
        // The record's deletion is a relaxed write: it reaches the disk together with the removal of the tree.
        containers.delete_relaxed(id).unless_gone()?;
        if let Some(extension) = &extension {
            self.release_name(&extension.name, id.as_str());
        }
        let tree = match self.remove_tree(id, &snapshotter) {
            Err(error) if error.is(ErrorKind::NotFound) => self.parts().metadata.sync(),
            removed => removed,
        };
        // Without the record nobody would come back for what follows: a step that fails holds up no other.
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

    /// Changes what the engine keeps of a container, and returns it. Others may change it at any time, with or
    /// without its turn: none of it is lost.
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
            // The exit code of a further process is asked for once.
            let _ = task.delete_exec(&exec).await;
            return Ok(exit.status);
        }
        self.wait_for_end(&container.id).await
    }
}

fn signal_number(word: &str) -> Result<u32> {
    linux::signal::Signal::parse(word).map(|signal| signal.number().unsigned_abs())
}

/// What an image asks for is taken as far as it is a signal, as Docker does: a container must be one that can be stopped.
fn stop_signal_number(word: &str) -> u32 {
    signal_number(word).unwrap_or(SIGTERM)
}
