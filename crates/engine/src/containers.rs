//! The life of a container: started, stopped, asked about, removed. How it is made, and shown, have files of their own.

mod binds;
mod config;
mod create;
mod deleted;
mod devices;
mod exposed;
mod filter;
mod joins;
mod log_driver;
mod show;
mod state;
mod streams;
mod top;
mod update;

pub(crate) use self::log_driver::{LOG_DRIVERS, NO_LOG};
pub(crate) use self::show::{attributes, familiar, familiar_with_tag};
pub(crate) use self::state::{Ends, Phase, State};
pub(crate) use self::streams::once;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use api::engine::{Exec, Port, Streams};
use linux::recipe::{grounded, throwaway};
use metadata::Container;
use network::{PortRequest, Request, Transport};
use serde_json::{Value, json};
use stdx::Laps;
use task::{Io, OUR_RUNTIME, Status};
use tokio::time::timeout;
use types::spec::runtime::Spec;
use types::{ContainerId, Error, ErrorKind, ExecId, Opaque, Result, Timestamp};

use crate::names::short;
use crate::networks::{NetworkMode, mac_address};
use crate::record::{EXTENSION, ExitRecord, Extension};
use crate::turns::{Copies, Turn};
use crate::{Engine, etc, random_hex, remove_folder, spec, users};

/// containerd's type of a process (`typeurl` of a plain Go struct: the value is JSON).
pub(crate) const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// containerd's label: until when something is kept that nothing refers to.
const EXPIRE_LABEL: &str = "containerd.io/gc.expire";
/// The value of that label which we have set: any other is a client's.
const OWN_EXPIRE_LABEL: &str = "hoist.engine/expire";
/// What it does not take at all.
pub(crate) const ROOT_LABEL: &str = "containerd.io/gc.root";
/// From the stop signal to SIGKILL.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Seconds: more than a machine is up.
const WITHOUT_END: u64 = i32::MAX as u64;
/// How long a container may take to end after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(60);
/// How long the end of a container whose shim does not answer may take to be seen.
const DOUBT_LIMIT: Duration = Duration::from_secs(2);
const SIGINT: u32 = 2;
const SIGQUIT: u32 = 3;
const SIGKILL: u32 = 9;
const SIGTERM: u32 = 15;

/// Who has a container started.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Starter {
    /// A call.
    Hand,
    /// Its restart policy, which gives way to who stops it by hand.
    Policy,
}

/// A start that failed.
struct Failed {
    error: Error,
    /// Its task was made, and it was told that it has its network and volumes.
    had_task: bool,
}

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
        match self.parts().shims.task(&self.0.caller.namespace, id) {
            Err(error) if error.is(ErrorKind::NotFound) => Ok(None),
            found => found.map(Some),
        }
    }

    /// Starts a container that does not run.
    pub async fn start(&self, text: &str, streams: &Streams, laps: &Laps) -> Result<Value> {
        self.start_for(Starter::Hand, text, streams, laps).await.map(|_| json!({}))
    }

    /// Whether it was started: it may run already, or have been stopped by hand.
    pub(crate) async fn start_for(
        &self,
        starter: Starter,
        text: &str,
        streams: &Streams,
        laps: &Laps,
    ) -> Result<bool> {
        let text = text.to_owned();
        let id = self.blocking(move |engine| Ok(engine.find(&text)?.id)).await?;
        let (mut has_waited, mut has_doubted) = (false, false);
        let turn = loop {
            let turn = self.0.turns.take_from(id.as_str(), Copies::End).await?;
            let Some(task) = self.task_of(&id)? else {
                if !has_waited && self.is_left(&id) {
                    // Its shim is dead, or just being sent away.
                    has_waited = true;
                    drop(turn);
                    self.wait_until_settled(&id).await;
                    continue;
                }
                self.check_nothing_is_left(&id)?;
                break turn;
            };
            match task.state_or_unknown().await?.status {
                Status::Stopped if has_waited => {
                    return Err(Error::unavailable(format!(
                        "what the last start of container {} left cannot be cleared away yet: see the daemon's log, \
                         and try again",
                        short(&id)
                    )));
                }
                Status::Stopped => has_waited = true,
                Status::Created => self.end_unstarted(&id, &task).await?,
                // Its shim may have died this moment.
                Status::Unknown if !has_doubted => {
                    has_doubted = true;
                    drop(turn);
                    let _ended = timeout(DOUBT_LIMIT, self.wait_for_watched(id.as_str())).await;
                    continue;
                }
                Status::Unknown => {
                    return Err(Error::unavailable(format!(
                        "container {} may be running: its shim does not answer; try again, or kill the container",
                        short(&id)
                    )));
                }
                // It runs already, which is what was asked for.
                _ => return Ok(false),
            }
            // It has just ended: its end is settled first.
            drop(turn);
            self.wait_for_end(&id).await?;
        };
        if starter == Starter::Hand {
            self.0.restarts.call_off(id.as_str());
        }
        let own = id.clone();
        // As it is now that nobody else changes it.
        let (container, extension) = self.blocking(move |engine| engine.wish(&own, starter)).await?;
        if extension.stopped_by_hand {
            return Ok(false);
        }
        // The disk writes while the shim works. Whichever a crash leaves undone, the next daemon makes up for it.
        let (started, recorded) = tokio::join!(
            self.start_task(&container, &extension, streams, laps),
            self.record_start(&id, Some(Timestamp::now()), None),
        );
        let why = |error: Error| error.context(format!("start container {}", extension.name));
        if let Err(Failed { error, had_task }) = started {
            self.take_back(&id, &extension, had_task).await;
            return Err(why(error));
        }
        if let Err(error) = recorded {
            // It runs, and no later daemon would know of it.
            if let Ok(Some(task)) = self.task_of(&id) {
                let _ended_or_watched = self.parts().shims.kill(&task, None, SIGKILL, true).await;
            }
            self.watch(id);
            return Err(why(error));
        }
        laps.lap("record the start");
        self.watch(container.id.clone());
        drop(turn);
        Ok(true)
    }

    /// What is wanted of a container as its start begins: who starts it by hand takes back that it was stopped so, and
    /// what was counted since. Who stops it from here on is not forgotten.
    fn wish(&self, id: &ContainerId, starter: Starter) -> Result<(Container, Extension)> {
        let container = self.parts().metadata.containers(&self.0.caller).get(id)?;
        let extension = Extension::of(&container)?;
        match starter {
            Starter::Hand if extension.stopped_by_hand || extension.restarts > 0 => {
                let extension = self.change(id, Extension::begin_anew)?;
                Ok((container, extension))
            }
            _ => Ok((container, extension)),
        }
    }

    /// Takes back what a start has reached that failed. What cannot be taken back is found by the check.
    async fn take_back(&self, id: &ContainerId, before: &Extension, had_task: bool) {
        match self.parts().shims.delete(&self.0.caller.namespace, id).await {
            Err(error) if !error.is(ErrorKind::NotFound) => {
                // There is something left of it, which keeps its network until it ends. Who watches it tells that, too.
                tracing::warn!(%id, "take back a start: {}", error.chain());
                self.watch(id.clone());
                return;
            }
            _ => {}
        }
        let own = id.clone();
        let _ = self.blocking(move |engine| engine.parts().network.detach(own.as_str())).await;
        self.0.network_released.notify_one();
        if had_task {
            self.tell_network(id, "disconnect", &before.create);
            self.tell_mounts(id, "unmount", &before.create.mounts);
        }
        let _ = self.record_start(id, before.started, before.exit).await;
    }

    /// Ends a container whose start was cut off between making it and running its program. Who watches it settles the
    /// rest.
    pub(crate) async fn end_unstarted(&self, id: &ContainerId, task: &task::Task) -> Result<()> {
        self.watch_once(id);
        let killed = self.signal(task, SIGKILL, true).await;
        killed.map_err(|error| error.context("end a start that was cut off"))
    }

    /// Records what is known of a container's last start.
    pub(crate) async fn record_start(
        &self,
        id: &ContainerId,
        started: Option<Timestamp>,
        exit: Option<ExitRecord>,
    ) -> Result<()> {
        let id = id.clone();
        self.blocking(move |engine| {
            let change = |extension: &mut Extension| {
                extension.started = started;
                extension.exit = exit;
            };
            engine.change(&id, change).map(drop)
        })
        .await
    }

    async fn start_task(
        &self,
        container: &Container,
        extension: &Extension,
        streams: &Streams,
        laps: &Laps,
    ) -> Result<(), Failed> {
        // Nothing is taken for left over between its making and its use.
        let _busy = self.0.starting.read().await;
        let failed = |had_task| move |error| Failed { error, had_task };
        self.make_task(container, extension, streams, laps).await.map_err(failed(false))?;
        self.run_task(&container.id, laps).await.map_err(failed(true))
    }

    /// Makes a container's task, and tells what it has from then on.
    async fn make_task(
        &self,
        container: &Container,
        extension: &Extension,
        streams: &Streams,
        laps: &Laps,
    ) -> Result<()> {
        // Until it has a task, by which others see that it works in its volumes.
        let starting = self.0.volumes.start(container.id.as_str());
        let joined = Arc::new(self.open_joined(&extension.create).await?);
        let (record, own, clock) = (container.clone(), extension.clone(), laps.clone());
        let (streams, namespaces) = (streams.clone(), joined.clone());
        let (io, rootfs, spec) = self
            .blocking(move |engine| {
                engine.settle_volumes(&record.id, &own.create.mounts)?;
                engine.renew_resolvers(&record.id, &own)?;
                engine.connect(&record, &own)?;
                clock.lap("connect to the network");
                let snapshots = engine.parts().metadata.snapshots(&engine.0.caller, &record.snapshotter)?;
                let tree = grounded(snapshots.mounts(record.id.as_str())?, &engine.0.ground);
                let tree = if own.create.auto_remove { throwaway(tree)? } else { tree };
                let spec = engine.spec_to_run(&record, &own.create, &namespaces)?;
                Ok((engine.io(record.id.as_str(), &own, &streams)?, tree, spec))
            })
            .await?;
        let create = task::Create {
            spec,
            rootfs,
            io,
            runtime: OUR_RUNTIME.into(),
            laps: laps.clone(),
            ..task::Create::default()
        };
        self.parts().shims.create(&self.0.caller.namespace, &container.id, create).await?;
        self.tell_network(&container.id, "connect", &extension.create);
        self.tell_mounts(&container.id, "mount", &extension.create.mounts);
        drop((starting, joined));
        Ok(())
    }

    /// Has a task that was made run its program.
    async fn run_task(&self, id: &ContainerId, laps: &Laps) -> Result<()> {
        // Who stopped it until now may have found nothing to stop.
        let own = id.clone();
        let (_, wanted) = self.blocking(move |engine| engine.wish(&own, Starter::Policy)).await?;
        if wanted.stopped_by_hand {
            return Err(Error::failed_precondition("it was stopped while it came up"));
        }
        self.parts().shims.task(&self.0.caller.namespace, id)?.start(None).await?;
        laps.lap("start its program");
        Ok(())
    }

    /// Tells the container who resolves names for the machine now.
    fn renew_resolvers(&self, id: &ContainerId, extension: &Extension) -> Result<()> {
        let text = etc::resolv_conf(&extension.create);
        if NetworkMode::of(&extension.create) == NetworkMode::Bridge && !etc::names_resolver(&text) {
            tracing::warn!(%id, "/etc/resolv.conf names no resolver that a container on the bridge reaches");
        }
        if etc::renew_resolv_conf(&self.files(id.as_str()), &extension.resolv_conf, &text)? {
            self.change(id, |extension| extension.resolv_conf = etc::digest(text.as_bytes()))?;
        }
        Ok(())
    }

    /// Gives the container its network.
    fn connect(&self, container: &Container, extension: &Extension) -> Result<()> {
        let create = &extension.create;
        match NetworkMode::of(create) {
            NetworkMode::Bridge => {}
            // As the machine knows others now.
            NetworkMode::Host => return etc::write_hosts_of_host(&self.files(container.id.as_str()), create),
            NetworkMode::None => return Ok(()),
            NetworkMode::Of(other) => {
                let running = ContainerId::new(other).and_then(|other| self.running(&other));
                return running.map(drop).map_err(|error| error.context("join its network"));
            }
        }
        let network = &self.parts().network;
        let id = container.id.as_str();
        network.detach(id)?;
        network.create_namespace(id)?;
        let ports = create.ports.iter().map(port_request).collect::<Result<Vec<_>>>()?;
        let mac = mac_address(create)?;
        let attachment = network.attach(id, &Request { ports, mac })?;
        let hostname = create.hostname.as_deref().unwrap_or_default();
        let (address, gateway) = (attachment.address.to_string(), attachment.gateway.to_string());
        etc::write_hosts(&self.files(id), &address, hostname, create, &gateway)
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
            // It may be on its way, and have nothing yet that can be stopped.
            let _ = timeout(limit, self.0.turns.take(id.as_str())).await;
            task = self.task_of(&id)?;
        }
        let Some(task) = task else { return Ok(json!({})) };
        // A shim that does not hear uses up the time as a program does that does not end.
        let end = async {
            self.signal(&task, signal, false).await?;
            self.tell(&id, "kill", &[("signal", signal.to_string())]);
            // A frozen process cannot hear.
            let _ = task.resume().await;
            // Whether it is known how it ended makes no difference here.
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
        // Whoever asks it to end does not want it back.
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
        // Nobody removes it meanwhile.
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
            // Its shim is just being sent away, since it has ended.
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
            // Who starts it has the turn as long as that takes, and can be stopped without.
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
                    // One that ended with its shim, and has not been settled.
                    match self.parts().shims.delete(&self.0.caller.namespace, id).await {
                        Err(error) if !error.is(ErrorKind::NotFound) => return Err(error),
                        _ => self.check_nothing_is_left(id)?,
                    }
                }
                // What could not be deleted after its end is found by the check.
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

    /// The same, all but the network.
    pub(crate) fn forget(&self, id: &ContainerId, volumes: bool) -> Result<()> {
        let containers = self.parts().metadata.containers(&self.0.caller);
        let gone = |outcome: Result<()>| match outcome {
            Err(error) if error.is(ErrorKind::NotFound) => Ok(()),
            other => other,
        };
        let (extension, snapshotter) = match containers.get(id) {
            Ok(container) => (Extension::of(&container).ok(), container.snapshotter),
            Err(error) if error.is(ErrorKind::NotFound) => (None, self.parts().snapshotter.clone()),
            Err(error) => return Err(error),
        };
        if let Some(extension) = &extension {
            self.note_last_words(id, extension);
        }
        // The two go to the disk together, with the second.
        gone(containers.delete_relaxed(id))?;
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

    /// Starts a further process.
    pub async fn exec(&self, exec: Exec) -> Result<Value> {
        let text = exec.id.clone();
        let container = self.blocking(move |engine| engine.find(&text)).await?;
        let task = self.running(&container.id)?;
        let wanted = exec.clone();
        let record = container.clone();
        let process = match exec.user.as_deref() {
            None | Some("") => None,
            // As the container sees itself: its tree is mounted there, and must not be a second time.
            Some(_) => self.root_of_task(&task, short(&container.id)).await?,
        };
        let (process, root) = process.unzip();
        let described = self.blocking(move |engine| engine.exec_process(&record, root, &wanted)).await?;
        drop(process);
        let id = ExecId::new(random_hex(16)?)?;
        let io = Io {
            stdin: once(&exec.streams.stdin),
            stdout: once(&exec.streams.stdout),
            stderr: once(&exec.streams.stderr),
            terminal: exec.tty,
        };
        let spec = Opaque {
            type_url: PROCESS_TYPE.into(),
            value: serde_json::to_vec(&described).expect("plain data"),
        };
        task.exec(&id, task::Exec { spec, io }).await?;
        if let Err(error) = task.start(Some(&id)).await {
            // A process that never began leaves its record with the shim.
            let _ = task.delete_exec(&id).await;
            return Err(error);
        }
        if exec.detach {
            let own = id.clone();
            // Nobody will ask how it ended, and its shim keeps that until it is told so.
            tokio::spawn(async move {
                if task.wait(Some(&own)).await.is_ok() {
                    let _ = task.delete_exec(&own).await;
                }
            });
        }
        Ok(json!({"Id": container.id.as_str(), "ExecId": id.as_str()}))
    }

    pub(crate) fn exec_process(
        &self,
        container: &Container,
        root: Option<OwnedFd>,
        exec: &Exec,
    ) -> Result<types::spec::runtime::Process> {
        let spec = container.spec.as_ref().map(|spec| serde_json::from_slice::<Spec>(&spec.value));
        let spec = spec.and_then(std::result::Result::ok);
        let mut process = spec
            .and_then(|spec| spec.process)
            .ok_or_else(|| Error::data_loss("the container's spec cannot be read"))?;
        process.args.clone_from(&exec.command);
        process.terminal = exec.tty;
        let create = Extension::of(container)?.create;
        if let Some(user) = exec.user.as_ref().filter(|user| !user.is_empty()) {
            let root = || root.ok_or_else(|| Error::failed_precondition("the container does not run"));
            let (user, home) = users::resolve(user, &create.extras.groups, root)?;
            process.user = user;
            let own_home = |entry: &String| entry.starts_with("HOME=");
            if !exec.env.iter().any(own_home) && !create.env.iter().any(own_home) {
                process.env.retain(|entry| !own_home(entry));
                process.env.push(format!("HOME={home}"));
            }
        }
        // Whoever it is: the groups of devices are those of all users of the container.
        self.give_devices(&create, &mut process);
        process
            .env
            .retain(|entry| !exec.env.iter().any(|own| own.split('=').next() == entry.split('=').next()));
        process.env.extend(exec.env.iter().filter(|entry| entry.contains('=')).cloned());
        if exec.tty && !process.env.iter().any(|entry| entry.starts_with("TERM=")) {
            process.env.push("TERM=xterm".to_owned());
        }
        if let Some(workdir) = exec.workdir.as_ref().filter(|workdir| !workdir.is_empty()) {
            spec::check_working_directory(workdir)?;
            process.cwd.clone_from(workdir);
        }
        if exec.privileged {
            let all = linux::cap::CapSet::bounding().names();
            let sets = process.capabilities.get_or_insert_default();
            (sets.bounding, sets.effective, sets.permitted) = (all.clone(), all.clone(), all);
        }
        Ok(process)
    }

    pub async fn resize(&self, text: &str, exec: Option<&str>, rows: u16, columns: u16) -> Result<Value> {
        let text = text.to_owned();
        let container = self.blocking(move |engine| engine.find(&text)).await?;
        let exec = exec.map(ExecId::new).transpose()?;
        self.running(&container.id)?.resize(exec.as_ref(), columns.into(), rows.into()).await?;
        Ok(json!({}))
    }

    pub async fn close_stdin(&self, text: &str, exec: Option<&str>) -> Result<Value> {
        let text = text.to_owned();
        let container = self.blocking(move |engine| engine.find(&text)).await?;
        let exec = exec.map(ExecId::new).transpose()?;
        self.running(&container.id)?.close_stdin(exec.as_ref()).await?;
        Ok(json!({}))
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
            // Nobody asks for it again.
            let _ = task.delete_exec(&exec).await;
            return Ok(exit.status);
        }
        self.wait_for_end(&container.id).await
    }
}

fn port_request(port: &Port) -> Result<PortRequest> {
    let address = if port.host_ip.is_empty() { "0.0.0.0" } else { port.host_ip.as_str() };
    let host_address = address
        .parse()
        .map_err(|_| Error::invalid_argument(format!("publish port: {address:?} is not an IPv4 address")))?;
    let transport = match port.protocol.as_str() {
        "" | "tcp" => Transport::Tcp,
        "udp" => Transport::Udp,
        other => {
            return Err(Error::invalid_argument(format!(
                "publish port: protocol {other:?} is neither tcp nor udp"
            )));
        }
    };
    Ok(PortRequest {
        host_address,
        host_ports: port.host_port.map(|first| (first, port.host_port_last.unwrap_or(first))),
        container_port: port.container_port,
        transport,
    })
}

fn signal_number(word: &str) -> Result<u32> {
    linux::signal::Signal::parse(word).map(|signal| signal.number().unsigned_abs())
}

/// What an image asks for is taken as far as it is a signal, as Docker does: a container must be one that can be stopped.
fn stop_signal_number(word: &str) -> u32 {
    signal_number(word).unwrap_or(SIGTERM)
}
