//! Sandboxes: shims that serve `containerd.runtime.sandbox.v1`, each of which runs the containers of a pod.
//!
//! ```text
//! create ──▶ bundle ──▶ shim `start` ──▶ CreateSandbox ──▶ start ──▶ ready ──stop──▶ stopped ──shutdown──▶ gone
//!                                                                     └── shim dies ────▲
//! load ────▶ bundle ──▶ connect ──▶ SandboxStatus ────────────────────┘
//! ```
//!
//! Invariants
//! - The shim owns the sandbox; the daemon can recover all it knows from the shim and the bundle.
//! - A sandbox is known until `shutdown`, even if its shim is dead.
//! - An exit is written to the bundle before it is published, so that a restarted daemon does not publish it again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use api::grpc::event::{self, topic};
use api::shim::sandbox as wire;
use api::shim::task::ShutdownRequest;
use prost::Message;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use types::{
    ContainerId, Context, Error, ErrorKind, Labels, Mount, Namespace, Opaque, Platform, Result, SandboxId,
    Timestamp,
};

use crate::bootstrap::{self, Bootstrap};
use crate::bundle::{self, Bundle, UNKNOWN_EXIT};
use crate::connection::Connection;
use crate::program::Program;
use crate::shims::{LOADS_MAX, RETRY_PAUSE, blocking, follow_log, recorded, unbroken};
use crate::{Limits, Shims, convert};

/// How much longer than its timeout the call `StopSandbox` may take.
const STOP_SLACK: Duration = Duration::from_secs(30);
/// Written to the bundle when the sandbox has ended.
const EXIT_FILE: &str = "sandbox-exit.json";
const NO_SPEC: &[u8] = b"{}";

/// Everything needed to create a sandbox.
#[derive(Clone, Debug, Default)]
pub struct CreateSandbox {
    /// The OCI runtime spec, as JSON. A sandbox need not have one.
    pub spec: Vec<u8>,
    /// Mounts that make the root file system of a sandbox that has a process.
    pub rootfs: Vec<Mount>,
    /// `io.containerd.<name>.<version>`, or the absolute path of a shim.
    pub runtime: String,
    /// Runtime options, which the shim reads when it starts.
    pub runtime_options: Option<Opaque>,
    /// Sandbox options, such as a pod's configuration, passed to the shim unread.
    pub options: Option<Opaque>,
    /// Path of a network namespace; empty for none.
    pub netns: String,
    pub annotations: Labels,
}

/// Address of a task service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: String,
    /// Version of the task API: 2 or 3.
    pub version: i32,
}

#[derive(Clone, Debug)]
pub struct SandboxStart {
    pub pid: u32,
    pub created: Timestamp,
    pub endpoint: Endpoint,
    pub spec: Option<Opaque>,
}

#[derive(Clone, Debug)]
pub struct SandboxStatus {
    pub pid: u32,
    /// The shim's state string, such as `SANDBOX_READY`.
    pub state: String,
    pub info: BTreeMap<String, String>,
    pub created: Option<Timestamp>,
    pub exited: Option<Timestamp>,
    pub extra: Option<Opaque>,
    pub endpoint: Endpoint,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxExit {
    pub status: u32,
    pub at: Timestamp,
}

#[derive(Clone, Debug)]
pub struct SandboxMetrics {
    pub at: Timestamp,
    pub data: Option<Opaque>,
}

pub(crate) type Key = (Namespace, SandboxId);
pub(crate) type Slots = BTreeMap<Key, Slot>;

pub(crate) enum Slot {
    /// Being created or removed.
    Reserved,
    Filled(Sandbox),
}

/// A known sandbox. Clones share it.
#[derive(Clone)]
pub(crate) struct Sandbox(Arc<Inner>);

struct Inner {
    key: Key,
    bundle: Bundle,
    program: Program,
    connection: Connection,
    ended: watch::Sender<Option<SandboxExit>>,
    /// Set during shutdown: the shim is expected to close the connection.
    leaving: AtomicBool,
    log: Option<AbortHandle>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(log) = &self.log {
            log.abort();
        }
    }
}

impl Sandbox {
    fn new(key: Key, bundle: Bundle, program: Program, bootstrap: Bootstrap, limits: Limits) -> Sandbox {
        let log = follow_log((&key.0, key.1.as_str()), &bundle);
        let connection = Connection::new(bootstrap, key.0.clone(), limits);
        let (ended, leaving) = (watch::Sender::new(None), AtomicBool::new(false));
        Sandbox(Arc::new(Inner { key, bundle, program, connection, ended, leaving, log }))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.connection.socket()
    }

    fn limits(&self) -> &Limits {
        self.0.connection.limits()
    }

    fn endpoint(&self) -> Endpoint {
        let bootstrap = self.0.connection.bootstrap();
        Endpoint { address: bootstrap.address.clone(), version: bootstrap.version }
    }

    fn id(&self) -> String {
        self.0.key.1.to_string()
    }

    fn exit(&self) -> Option<SandboxExit> {
        *self.0.ended.borrow()
    }

    async fn call<M: Message + Default>(
        &self,
        method: &str,
        message: &impl Message,
        limit: Option<Duration>,
    ) -> Result<M> {
        self.0.connection.call_service(wire::SERVICE, method, message, limit).await
    }
}

/// The sandboxes of this daemon.
#[derive(Clone)]
pub struct Sandboxes(pub(crate) Shims);

impl Sandboxes {
    /// Reconnects to the sandboxes that an earlier daemon left.
    pub(crate) async fn load(&self) -> Result<()> {
        let bundles = self.0.config().sandboxes.clone();
        let mut keys = blocking(move || bundle::list(&bundles)).await?.into_iter();
        // In parallel: each shim may use up the time limit.
        let mut loads = JoinSet::new();
        loop {
            while loads.len() < LOADS_MAX
                && let Some((namespace, id)) = keys.next()
            {
                let (sandboxes, key) = (self.clone(), (namespace, SandboxId::new(id.as_str())?));
                loads.spawn(async move {
                    if let Err(error) = sandboxes.load_one(&key).await {
                        tracing::error!(namespace = %key.0, id = %key.1, "find a sandbox again: {}", error.chain());
                    }
                });
            }
            match loads.join_next().await {
                None => return Ok(()),
                Some(Ok(())) => {}
                Some(Err(panic)) => return Err(Error::internal("find a sandbox again").with_source(panic)),
            }
        }
    }

    async fn load_one(&self, key: &Key) -> Result<()> {
        let reservation = self.reserve(key)?;
        let bundle = self.bundle(key);
        let (program, bootstrap) = match recorded(&bundle) {
            Ok(Some(recorded)) => recorded,
            // The earlier daemon died before the shim was up.
            Ok(None) => {
                self.discard(reservation, &bundle).await;
                return Ok(());
            }
            Err(error) => {
                reservation.keep();
                return Err(error);
            }
        };
        let sandbox = Sandbox::new(key.clone(), bundle.clone(), program, bootstrap, self.0.config().limits);
        if let Some(exit) = read_exit(&bundle) {
            sandbox.0.ended.send_replace(Some(exit));
            reservation.fill(sandbox);
            return Ok(());
        }
        let request = wire::SandboxStatusRequest { sandbox_id: sandbox.id(), verbose: false };
        let status: Result<wire::SandboxStatusResponse> =
            sandbox.call("SandboxStatus", &request, Some(sandbox.limits().state)).await;
        match status {
            Err(error) if error.is(ErrorKind::NotFound) => {
                // The earlier daemon died before the shim had created its sandbox: the shim is of no use.
                dismiss(&sandbox).await;
                self.discard(reservation, &bundle).await;
            }
            // Alive, dead or undecided: `watch` finds out.
            _ => {
                reservation.fill(sandbox.clone());
                tokio::spawn(self.clone().watch(sandbox));
            }
        }
        Ok(())
    }

    /// Starts a shim and has it create the sandbox. Continues if the caller's future is dropped.
    pub async fn create(&self, namespace: &Namespace, id: &SandboxId, create: CreateSandbox) -> Result<()> {
        let (sandboxes, key) = (self.clone(), (namespace.clone(), id.clone()));
        unbroken(async move {
            sandboxes.create_one(&key, create).await.context(|| format!("create sandbox {}", key.1))
        })
        .await
    }

    async fn create_one(&self, key: &Key, create: CreateSandbox) -> Result<()> {
        let program = Program::find(self.0.config(), &create.runtime)?;
        let reservation = self.reserve(key)?;
        let bundle = self.bundle(key);
        match self.bring_up(key, &bundle, program, create).await {
            Ok(sandbox) => {
                reservation.fill(sandbox);
                let event = event::SandboxCreate { sandbox_id: key.1.to_string() };
                self.0.publish(&key.0, topic::SANDBOX_CREATE, &event);
                Ok(())
            }
            Err(error) => {
                self.discard(reservation, &bundle).await;
                Err(error)
            }
        }
    }

    async fn bring_up(
        &self,
        key: &Key,
        bundle: &Bundle,
        program: Program,
        create: CreateSandbox,
    ) -> Result<Sandbox> {
        let (bootstrap, noted) = {
            let (shims, bundle, program) = (self.0.clone(), bundle.clone(), program.clone());
            let (key, options) = (key.clone(), create.runtime_options);
            let spec = if create.spec.is_empty() { NO_SPEC.to_vec() } else { create.spec };
            blocking(move || {
                bundle.create(&spec, &program)?;
                let log = (&key.0, key.1.as_str());
                let bootstrap = bootstrap::start(shims.config(), &program, &bundle, log, options)
                    .context(|| "start a shim")?;
                let noted = bundle.write_bootstrap(&bootstrap);
                Ok((bootstrap, noted))
            })
            .await?
        };
        let sandbox = Sandbox::new(key.clone(), bundle.clone(), program, bootstrap, self.0.config().limits);
        let request = wire::CreateSandboxRequest {
            sandbox_id: sandbox.id(),
            bundle_path: bundle.path.display().to_string(),
            rootfs: create.rootfs.into_iter().map(convert::mount).collect(),
            options: create.options.map(convert::any),
            netns_path: create.netns,
            annotations: create.annotations.into_iter().collect(),
        };
        let created = match noted {
            Ok(()) => sandbox.call::<wire::CreateSandboxResponse>("CreateSandbox", &request, None).await,
            // No later daemon would find the shim.
            Err(error) => Err(error),
        };
        match created {
            Ok(_) => Ok(sandbox),
            Err(error) => {
                dismiss(&sandbox).await;
                Err(error)
            }
        }
    }

    /// Starts a created sandbox. A sandbox that fails to start is removed.
    pub async fn start(&self, namespace: &Namespace, id: &SandboxId) -> Result<SandboxStart> {
        let (sandboxes, sandbox) = (self.clone(), self.find(namespace, id)?);
        unbroken(async move { sandboxes.start_one(sandbox).await }).await
    }

    async fn start_one(&self, sandbox: Sandbox) -> Result<SandboxStart> {
        let key = &sandbox.0.key;
        let request = wire::StartSandboxRequest { sandbox_id: sandbox.id() };
        let started: Result<wire::StartSandboxResponse> = sandbox.call("StartSandbox", &request, None).await;
        let started = match started {
            Ok(started) => started,
            // The sandbox runs, or has run: nothing to remove.
            Err(error) if error.is(ErrorKind::FailedPrecondition) => return Err(error),
            Err(error) => {
                self.put(key, Slot::Reserved);
                dismiss(&sandbox).await;
                let reservation = Reservation { sandboxes: self.clone(), key: Some(key.clone()) };
                self.discard(reservation, &sandbox.0.bundle).await;
                return Err(error.context(format!("start sandbox {}", key.1)));
            }
        };
        self.0.publish(&key.0, topic::SANDBOX_START, &event::SandboxStart { sandbox_id: sandbox.id() });
        tokio::spawn(self.clone().watch(sandbox.clone()));
        Ok(SandboxStart {
            pid: started.pid,
            created: started.created_at.map(convert::timestamp).unwrap_or_default(),
            endpoint: sandbox.endpoint(),
            spec: started.spec.map(convert::opaque),
        })
    }

    /// The platform that the sandbox's containers run on.
    pub async fn platform(&self, namespace: &Namespace, id: &SandboxId) -> Result<Platform> {
        let sandbox = self.find(namespace, id)?;
        let request = wire::PlatformRequest { sandbox_id: sandbox.id() };
        let answer: wire::PlatformResponse =
            sandbox.call("Platform", &request, Some(sandbox.limits().state)).await?;
        let platform = answer.platform.unwrap_or_default();
        Ok(Platform {
            os: platform.os,
            architecture: platform.architecture,
            variant: platform.variant,
            os_version: platform.os_version,
            os_features: platform.os_features,
        })
    }

    /// Stops a sandbox and its containers, which are killed after `patience`. No error if the sandbox does not exist or
    /// has ended.
    pub async fn stop(&self, namespace: &Namespace, id: &SandboxId, patience: Duration) -> Result<()> {
        let Ok(sandbox) = self.find(namespace, id) else { return Ok(()) };
        let seconds = u32::try_from(patience.as_secs()).unwrap_or(u32::MAX);
        let request = wire::StopSandboxRequest { sandbox_id: sandbox.id(), timeout_secs: seconds };
        let limit = Some(patience + STOP_SLACK);
        match sandbox.call::<wire::StopSandboxResponse>("StopSandbox", &request, limit).await {
            Err(error) if !error.is(ErrorKind::NotFound) && !error.is(ErrorKind::Unavailable) => {
                Err(error.context(format!("stop sandbox {id}")))
            }
            _ => Ok(()),
        }
    }

    /// Waits until a sandbox has ended.
    pub async fn wait(&self, namespace: &Namespace, id: &SandboxId) -> Result<SandboxExit> {
        let sandbox = self.find(namespace, id)?;
        let mut ended = sandbox.0.ended.subscribe();
        match ended.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => Ok(exit),
            // Unreachable: `sandbox` holds the sender, and `wait_for` returns only if the value is set.
            _ => Err(Error::internal(format!("sandbox {id}: its end was lost"))),
        }
    }

    pub async fn status(
        &self,
        namespace: &Namespace,
        id: &SandboxId,
        verbose: bool,
    ) -> Result<SandboxStatus> {
        let sandbox = self.find(namespace, id)?;
        let request = wire::SandboxStatusRequest { sandbox_id: sandbox.id(), verbose };
        let status: Result<wire::SandboxStatusResponse> =
            sandbox.call("SandboxStatus", &request, Some(sandbox.limits().state)).await;
        let (status, exit) = match (status, sandbox.exit()) {
            (Ok(status), exit) => (status, exit),
            // The shim is dead, and the sandbox's exit is known.
            (Err(_), Some(exit)) => {
                let state = wire::NOT_READY.to_owned();
                (wire::SandboxStatusResponse { state, ..Default::default() }, Some(exit))
            }
            (Err(error), None) => return Err(error.context(format!("ask sandbox {id} for its status"))),
        };
        Ok(SandboxStatus {
            pid: status.pid,
            state: status.state,
            info: status.info,
            created: status.created_at.map(convert::timestamp),
            exited: status.exited_at.map(convert::timestamp).or(exit.map(|exit| exit.at)),
            extra: status.extra.map(convert::opaque),
            endpoint: sandbox.endpoint(),
        })
    }

    pub async fn metrics(&self, namespace: &Namespace, id: &SandboxId) -> Result<SandboxMetrics> {
        let sandbox = self.find(namespace, id)?;
        let request = wire::SandboxMetricsRequest { sandbox_id: sandbox.id() };
        let answer: wire::SandboxMetricsResponse =
            sandbox.call("SandboxMetrics", &request, Some(sandbox.limits().stats)).await?;
        let metrics = answer.metrics.unwrap_or_default();
        Ok(SandboxMetrics {
            at: metrics.timestamp.map_or_else(Timestamp::now, convert::timestamp),
            data: metrics.data.map(convert::opaque),
        })
    }

    /// Ends a sandbox and its shim, and forgets it. `FailedPrecondition` if its shim reports that it still has
    /// containers. Continues if the caller's future is dropped.
    pub async fn shutdown(&self, namespace: &Namespace, id: &SandboxId) -> Result<()> {
        let (sandboxes, sandbox) = (self.clone(), self.find(namespace, id)?);
        unbroken(async move { sandboxes.shutdown_one(sandbox).await }).await
    }

    async fn shutdown_one(&self, sandbox: Sandbox) -> Result<()> {
        let key = sandbox.0.key.clone();
        sandbox.0.leaving.store(true, Ordering::Release);
        let request = wire::ShutdownSandboxRequest { sandbox_id: sandbox.id() };
        let asked: Result<wire::ShutdownSandboxResponse> =
            sandbox.call("ShutdownSandbox", &request, Some(STOP_SLACK)).await;
        let is_dead = match asked {
            Ok(_) => false,
            Err(error) if error.is(ErrorKind::Unavailable) => true,
            Err(error) => {
                sandbox.0.leaving.store(false, Ordering::Release);
                return Err(error.context(format!("shut down sandbox {}", key.1)));
            }
        };
        self.put(&key, Slot::Reserved);
        if is_dead {
            if let Err(error) = self.clean_up(&sandbox).await {
                // What is left is noted in the bundle, which the next attempt needs.
                self.put(&key, Slot::Filled(sandbox));
                return Err(
                    error.context(format!("shut down sandbox {}: end what its dead shim left", key.1))
                );
            }
        } else if timeout(sandbox.limits().shutdown, sandbox.0.connection.closed()).await.is_err() {
            tracing::debug!(namespace = %key.0, id = %key.1, "the shim does not go");
        }
        if sandbox.exit().is_none() {
            self.end(&sandbox, SandboxExit { status: 0, at: Timestamp::now() }).await;
        }
        let bundle = sandbox.0.bundle.clone();
        let removed = blocking(move || bundle.remove()).await;
        self.remove(&key);
        removed
    }

    /// The address of the sandbox's task service; `None` if there is no such sandbox.
    pub fn endpoint(&self, namespace: &Namespace, id: &SandboxId) -> Option<Endpoint> {
        self.find(namespace, id).ok().map(|sandbox| sandbox.endpoint())
    }

    /// Follows a sandbox to its end.
    async fn watch(self, sandbox: Sandbox) {
        let request = wire::WaitSandboxRequest { sandbox_id: sandbox.id() };
        loop {
            let ended: Result<wire::WaitSandboxResponse> = sandbox.call("WaitSandbox", &request, None).await;
            if sandbox.0.leaving.load(Ordering::Acquire) {
                return;
            }
            let error = match ended {
                Ok(ended) => {
                    let at = ended.exited_at.map_or_else(Timestamp::now, convert::timestamp);
                    return self.end(&sandbox, SandboxExit { status: ended.exit_status, at }).await;
                }
                Err(error) => error,
            };
            let is_dead = error.is(ErrorKind::NotFound)
                || matches!(sandbox.0.connection.client().await,
                    Err(error) if error.is(ErrorKind::Unavailable));
            let (namespace, id) = &sandbox.0.key;
            if is_dead {
                tracing::warn!(%namespace, %id, "the shim of a sandbox died");
                if let Err(error) = self.clean_up(&sandbox).await {
                    // `shutdown` tries again.
                    tracing::warn!(%namespace, %id, "end what a dead shim left: {}", error.chain());
                }
                let exit = SandboxExit { status: UNKNOWN_EXIT, at: Timestamp::now() };
                return self.end(&sandbox, exit).await;
            }
            tracing::warn!(%namespace, %id, "wait for a sandbox: {}", error.chain());
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Records the exit of a sandbox and publishes it, once.
    async fn end(&self, sandbox: &Sandbox, exit: SandboxExit) {
        if sandbox.exit().is_some() {
            return;
        }
        let (namespace, id) = &sandbox.0.key;
        let (bundle, text) = (sandbox.0.bundle.clone(), serde_json::to_vec(&exit).unwrap_or_default());
        if let Err(error) = blocking(move || bundle.write_whole(EXIT_FILE, &text)).await {
            tracing::warn!(%namespace, %id, "note the end of a sandbox: {}", error.chain());
        }
        let is_first = sandbox.0.ended.send_if_modified(|ended| {
            let is_first = ended.is_none();
            ended.get_or_insert(exit);
            is_first
        });
        if is_first {
            let event = event::SandboxExit {
                sandbox_id: id.to_string(),
                exit_status: exit.status,
                exited_at: Some(convert::wire_timestamp(exit.at)),
            };
            self.0.publish(namespace, topic::SANDBOX_EXIT, &event);
        }
    }

    /// Runs `delete` of a dead shim's program.
    async fn clean_up(&self, sandbox: &Sandbox) -> Result<()> {
        let (shims, sandbox) = (self.0.clone(), sandbox.clone());
        blocking(move || {
            let Inner { key, bundle, program, .. } = &*sandbox.0;
            bootstrap::delete_noted(shims.config(), program, bundle, (&key.0, key.1.as_str()))
        })
        .await
    }

    /// Removes the bundle of a sandbox that was never created. If something is left, the id stays reserved.
    async fn discard(&self, reservation: Reservation, bundle: &Bundle) {
        let Some((namespace, id)) = &reservation.key else { return };
        if !self.0.discard((namespace, id.as_str()), bundle, Bundle::remove).await {
            reservation.keep();
        }
    }

    fn bundle(&self, (namespace, id): &Key) -> Bundle {
        // Sandbox ids and container ids follow the same rule.
        let id = ContainerId::new(id.as_str()).expect("a sandbox's id is a container's id");
        Bundle::at(&self.0.config().sandboxes, namespace, &id)
    }

    /// `NotFound` if there is no such sandbox, or it is still being created.
    fn find(&self, namespace: &Namespace, id: &SandboxId) -> Result<Sandbox> {
        match self.0.sandbox_slots().get(&(namespace.clone(), id.clone())) {
            Some(Slot::Filled(sandbox)) => Ok(sandbox.clone()),
            Some(Slot::Reserved) | None => Err(Error::not_found(format!("sandbox {id} not found"))),
        }
    }

    fn reserve(&self, key: &Key) -> Result<Reservation> {
        let mut slots = self.0.sandbox_slots();
        if slots.contains_key(key) {
            return Err(Error::already_exists(format!("sandbox {} already running", key.1)));
        }
        slots.insert(key.clone(), Slot::Reserved);
        Ok(Reservation { sandboxes: self.clone(), key: Some(key.clone()) })
    }

    fn put(&self, key: &Key, slot: Slot) {
        self.0.sandbox_slots().insert(key.clone(), slot);
    }

    fn remove(&self, key: &Key) {
        self.0.sandbox_slots().remove(key);
    }
}

/// Tells a shim that has no sandbox to exit.
async fn dismiss(sandbox: &Sandbox) {
    let request = wire::ShutdownSandboxRequest { sandbox_id: sandbox.id() };
    let asked: Result<wire::ShutdownSandboxResponse> =
        sandbox.call("ShutdownSandbox", &request, Some(sandbox.limits().shutdown)).await;
    if asked.is_err() {
        // The shim does not serve sandboxes, or does not know this one: then it exits as a shim without containers.
        let request = ShutdownRequest { id: sandbox.id(), now: true };
        let asked: Result<()> =
            sandbox.0.connection.call("Shutdown", &request, Some(sandbox.limits().shutdown)).await;
        if asked.is_err() {
            return;
        }
    }
    if timeout(sandbox.limits().shutdown, sandbox.0.connection.closed()).await.is_err() {
        tracing::debug!(id = sandbox.id(), "the shim does not go");
    }
}

/// `None` if the sandbox has not ended or the file cannot be read: then the shim is asked.
fn read_exit(bundle: &Bundle) -> Option<SandboxExit> {
    let text = std::fs::read(bundle.path.join(EXIT_FILE)).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Reserves an id; releases it when dropped, unless it is filled or kept.
struct Reservation {
    sandboxes: Sandboxes,
    key: Option<Key>,
}

impl Reservation {
    fn fill(mut self, sandbox: Sandbox) {
        if let Some(key) = self.key.take() {
            self.sandboxes.put(&key, Slot::Filled(sandbox));
        }
    }

    /// The id stays taken until the next daemon examines what is left.
    fn keep(mut self) {
        self.key = None;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            self.sandboxes.remove(key);
        }
    }
}
