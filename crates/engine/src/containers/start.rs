//! Starting a container.
//!
//! ```text
//! lock the container ─▶ settle its last run ─▶ network, snapshot, task ─▶ run its program ─▶ watch
//!                                               └▶ record the start ──┘
//! ```
//!
//! A failed start undoes what it has made. Shortly before the program runs, the start checks once more whether a client
//! has stopped the container.

use std::sync::Arc;
use std::time::Duration;

use api::engine::{Port, Streams};
use linux::tree_mounts::{grounded, throwaway};
use metadata::Container;
use network::{PortRequest, Request, Transport};
use serde_json::{Value, json};
use stdx::Laps;
use task::{OUR_RUNTIME, Status};
use tokio::time::timeout;
use types::{ContainerId, Error, ErrorKind, Result, Timestamp};

use super::SIGKILL;
use crate::container_locks::{ContainerLock, Copies};
use crate::names::short;
use crate::networks::{NetworkMode, mac_address};
use crate::record::{ExitRecord, Extension};
use crate::{Engine, etc};

/// How long to wait for the end of a container whose shim does not answer.
const DOUBT_LIMIT: Duration = Duration::from_secs(2);

/// What initiated a start.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Starter {
    /// A client.
    Hand,
    /// The restart policy, which gives way to a client that stops the container.
    Policy,
}

/// The state of a container's last run when it is started.
enum LastRun {
    /// Nothing is left of it: the container can be started.
    Settled,
    /// The container still runs.
    GoesOn,
    Unsettled(Unsettled),
}

/// What has to finish before a container can be started.
#[derive(Clone, Copy)]
enum Unsettled {
    /// Its shim is dead or exiting, and is being cleaned up after.
    Left,
    /// Its watcher is settling its end.
    Ended,
    /// It was created but its program never ran; the task is being killed.
    CutOff,
    /// Its shim does not answer, and may have just died.
    InDoubt,
}

/// A failed start.
struct Failed {
    error: Error,
    /// Its task was created, and the events of its network and volumes were published.
    had_task: bool,
}

impl Engine {
    /// Starts a container that does not run.
    pub async fn start(&self, text: &str, streams: &Streams, laps: &Laps) -> Result<Value> {
        self.start_for(Starter::Hand, text, streams, laps).await.map(|_| json!({}))
    }

    /// Starts a container that does not run. Returns whether it did: it may be running already, or have been stopped by
    /// hand.
    pub(crate) async fn start_for(
        &self,
        starter: Starter,
        text: &str,
        streams: &Streams,
        laps: &Laps,
    ) -> Result<bool> {
        let text = text.to_owned();
        let id = self.blocking(move |engine| Ok(engine.find(&text)?.id)).await?;
        match self.lock_to_start(&id).await? {
            Some(lock) => self.start_locked(starter, id, lock, streams, laps).await,
            // It runs already, which is what the client wants.
            None => Ok(false),
        }
    }

    /// Locks a container that does not run and whose last run is settled; `None` if it runs. Waits for each kind of
    /// unsettled state once: if it persists, an administrator has to look into it.
    async fn lock_to_start(&self, id: &ContainerId) -> Result<Option<ContainerLock>> {
        let (mut has_waited, mut has_doubted) = (false, false);
        loop {
            let lock = self.0.locks.lock_with(id.as_str(), Copies::End).await?;
            let unsettled = match self.last_run(id).await? {
                LastRun::Settled => return Ok(Some(lock)),
                LastRun::GoesOn => return Ok(None),
                LastRun::Unsettled(what) => what,
            };
            match unsettled {
                Unsettled::Left if has_waited => {
                    return self.check_nothing_is_left(id).map(|()| Some(lock));
                }
                Unsettled::Ended if has_waited => {
                    return Err(Error::unavailable(format!(
                        "what the last start of container {} left cannot be cleared away yet: see the daemon's log, \
                         and try again",
                        short(id)
                    )));
                }
                Unsettled::InDoubt if has_doubted => {
                    return Err(Error::unavailable(format!(
                        "container {} may be running: its shim does not answer; try again, or kill the container",
                        short(id)
                    )));
                }
                Unsettled::Left | Unsettled::Ended => has_waited = true,
                Unsettled::InDoubt => has_doubted = true,
                Unsettled::CutOff => {}
            }
            // Settling the end needs the lock.
            drop(lock);
            match unsettled {
                Unsettled::Left => self.wait_until_settled(id).await,
                Unsettled::Ended | Unsettled::CutOff => {
                    self.wait_for_end(id).await?;
                }
                Unsettled::InDoubt => {
                    let _ended = timeout(DOUBT_LIMIT, self.wait_for_watched(id.as_str())).await;
                }
            }
        }
    }

    /// Examines the last run of a container that the caller has locked. Kills the task of a start that was cut off.
    async fn last_run(&self, id: &ContainerId) -> Result<LastRun> {
        let Some(task) = self.task_of(id)? else {
            let is_left = self.is_left(id);
            return Ok(if is_left { LastRun::Unsettled(Unsettled::Left) } else { LastRun::Settled });
        };
        Ok(match task.state_or_unknown().await?.status {
            Status::Stopped => LastRun::Unsettled(Unsettled::Ended),
            Status::Created => {
                self.end_unstarted(id, &task).await?;
                LastRun::Unsettled(Unsettled::CutOff)
            }
            Status::Unknown => LastRun::Unsettled(Unsettled::InDoubt),
            _ => LastRun::GoesOn,
        })
    }

    /// Starts a locked container that does not run. The lock is held until it runs.
    async fn start_locked(
        &self,
        starter: Starter,
        id: ContainerId,
        lock: ContainerLock,
        streams: &Streams,
        laps: &Laps,
    ) -> Result<bool> {
        if starter == Starter::Hand {
            self.0.restarts.cancel(id.as_str());
        }
        let own = id.clone();
        // Read the record again: it may have changed before the lock was acquired.
        let (container, extension) = self.blocking(move |engine| engine.begin_start(&own, starter)).await?;
        if extension.stopped_by_hand {
            return Ok(false);
        }
        // Recorded while the shim works. After a crash between the two, the next daemon completes what is missing.
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
            // The container runs, but its record does not say so: a later daemon would believe that it never ran.
            if let Ok(Some(task)) = self.task_of(&id) {
                let _ended_or_watched = self.parts().shims.kill(&task, None, SIGKILL, true).await;
            }
            self.watch(id);
            return Err(why(error));
        }
        laps.lap("record the start");
        self.watch(container.id.clone());
        drop(lock);
        Ok(true)
    }

    /// Reads the record again, and updates it as a start begins: a start by hand clears `stopped_by_hand` and the restart
    /// counters. A stop after this point is not overwritten.
    fn begin_start(&self, id: &ContainerId, starter: Starter) -> Result<(Container, Extension)> {
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

    /// Undoes a failed start. `system check` finds what cannot be undone.
    async fn take_back(&self, id: &ContainerId, before: &Extension, had_task: bool) {
        match self.parts().shims.delete(&self.0.caller.namespace, id).await {
            Err(error) if !error.is(ErrorKind::NotFound) => {
                // Something of the container is left and keeps its network until it ends. Its watcher will release
                // that.
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

    /// Kills a container whose start was cut off between its creation and running its program. Its watcher settles the
    /// rest.
    pub(crate) async fn end_unstarted(&self, id: &ContainerId, task: &task::Task) -> Result<()> {
        self.watch_once(id);
        let killed = self.signal(task, SIGKILL, true).await;
        killed.map_err(|error| error.context("end a start that was cut off"))
    }

    /// Records a container's last start.
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
        // While this is held, `sweep` does not take what is made here and not used yet for a leftover.
        let _busy = self.0.starting.read().await;
        let failed = |had_task| move |error| Failed { error, had_task };
        self.make_task(container, extension, streams, laps).await.map_err(failed(false))?;
        self.run_task(&container.id, laps).await.map_err(failed(true))
    }

    /// Creates a container's task, and publishes the events of its network and volumes.
    async fn make_task(
        &self,
        container: &Container,
        extension: &Extension,
        streams: &Streams,
        laps: &Laps,
    ) -> Result<()> {
        // Held until the container has a task, which shows other calls that it uses its volumes.
        let starting = self.0.volumes.note_start(container.id.as_str());
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

    /// Runs the program of a created task.
    async fn run_task(&self, id: &ContainerId, laps: &Laps) -> Result<()> {
        // A stop that came before the task existed only set `stopped_by_hand`: it is honoured here.
        let own = id.clone();
        let extension = self.blocking(move |engine| {
            Extension::of(&engine.parts().metadata.containers(&engine.0.caller).get(&own)?)
        });
        if extension.await?.stopped_by_hand {
            return Err(Error::failed_precondition("it was stopped while it came up"));
        }
        self.parts().shims.task(&self.0.caller.namespace, id)?.start(None).await?;
        laps.lap("start its program");
        Ok(())
    }

    /// Updates the container's `resolv.conf` from the host's current one, and writes what is lost of its files in `/etc`.
    fn renew_resolvers(&self, id: &ContainerId, extension: &Extension) -> Result<()> {
        let text = etc::resolv_conf(&extension.create);
        if NetworkMode::of(&extension.create) == NetworkMode::Bridge && !etc::names_resolver(&text) {
            tracing::warn!(%id, "/etc/resolv.conf names no resolver that a container on the bridge reaches");
        }
        let (files, hostname) = (self.files(id.as_str()), extension.create.hostname.as_deref());
        etc::write_lost(&files, hostname.unwrap_or_default(), &extension.create, &text)?;
        if etc::renew_resolv_conf(&files, &extension.resolv_conf, &text)? {
            self.change(id, |extension| extension.resolv_conf = etc::digest(text.as_bytes()))?;
        }
        Ok(())
    }

    /// Attaches the container to its network.
    fn connect(&self, container: &Container, extension: &Extension) -> Result<()> {
        let create = &extension.create;
        match NetworkMode::of(create) {
            NetworkMode::Bridge => {}
            // From the host's current /etc/hosts.
            NetworkMode::Host => return etc::write_hosts_of_host(&self.files(container.id.as_str()), create),
            NetworkMode::None => return Ok(()),
            NetworkMode::Of(other) => {
                let other = ContainerId::new(other)?;
                let running = self.running(&other).map_err(|error| self.or_awaited(&other, error));
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
