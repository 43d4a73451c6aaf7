//! The map of all tasks. Its modules create tasks, delete them, find them again after a restart, and clean up after
//! shims that died.

mod create;
mod dead;
mod delete;
mod load;
mod log;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use api::shim::types::TypeUrl;
use events::{Envelope, Exchange};
use prost::Message;
use stdx::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::instrument::Instrument;
use types::{ContainerId, Error, Namespace, Opaque, Result, Timestamp};

use crate::bundle::Bundle;
use crate::config::Config;
use crate::program::Program;
use crate::sandbox::{self, Sandboxes};
use crate::{Exit, Process, RuntimeInfo, Task, bootstrap};
pub use load::Ended;
pub(crate) use load::{LOADS_MAX, recorded};
pub(crate) use log::follow_log;

/// Pause before retrying a shim that lives but does not answer.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How many shims are asked for the state of a task in parallel.
const ASKS_MAX: usize = 256;

/// The tasks of this daemon. Clones share them.
#[derive(Clone)]
pub struct Shims(Arc<Inner>);

struct Inner {
    config: Config,
    exchange: Exchange,
    slots: Mutex<HashMap<Key, Slot>>,
    sandboxes: Mutex<sandbox::Slots>,
}

pub(crate) type Key = (Namespace, ContainerId);

enum Slot {
    /// Being removed, or its shim is not up yet.
    Reserved,
    /// An earlier daemon left a bundle that could not be examined: its container may be running.
    Unknown,
    /// Its shim was asked to create it and has not answered. The channel closes when the creation is over.
    Creating(Task, watch::Receiver<()>),
    Filled(Task),
    /// The task has ended with its shim, and everything but the bundle is removed. The bundle, the only durable record
    /// of the exit, is removed by `delete`.
    Ended(Task, Exit),
}

impl Slot {
    fn task(&self) -> Option<&Task> {
        match self {
            Slot::Creating(task, _) | Slot::Filled(task) => Some(task),
            Slot::Reserved | Slot::Unknown | Slot::Ended(..) => None,
        }
    }

    /// Whether it holds this very task, created, and not another one with its id.
    fn is_of(&self, task: &Task) -> bool {
        match self {
            Slot::Filled(held) | Slot::Ended(held, _) => held.is_same(task),
            Slot::Reserved | Slot::Unknown | Slot::Creating(..) => false,
        }
    }
}

impl Shims {
    /// No tasks are known until [`Shims::load`].
    pub fn new(config: Config, exchange: Exchange) -> Shims {
        Shims(Arc::new(Inner { config, exchange, slots: Mutex::default(), sandboxes: Mutex::default() }))
    }

    /// The task with this id, including one whose creation has been requested of its shim; such a task can be queried
    /// and killed. `NotFound` if there is none; `Unavailable` if that cannot be determined.
    pub fn task(&self, namespace: &Namespace, id: &ContainerId) -> Result<Task> {
        match self.0.slots().get(&(namespace.clone(), id.clone())) {
            Some(Slot::Creating(task, _) | Slot::Filled(task)) => Ok(task.clone()),
            Some(Slot::Unknown) => Err(Error::unavailable(format!(
                "what an earlier daemon left of task {id} could not be read, so it may be running: see the \
                 daemon's log, and restart the daemon to look again"
            ))),
            Some(Slot::Reserved | Slot::Ended(..)) | None => {
                Err(Error::not_found(format!("task {id} not found")))
            }
        }
    }

    /// A channel that closes when the task's creation is over; `None` if it is over.
    pub(crate) fn creation_of(&self, task: &Task) -> Option<watch::Receiver<()>> {
        match self.0.slots().get(&(task.namespace().clone(), task.id().clone())) {
            Some(Slot::Creating(_, over)) => Some(over.clone()),
            _ => None,
        }
    }

    /// Whether the kernel's OOM killer killed a process of a container, as our shim recorded at its end. Known until
    /// the task is deleted, even if the shim is dead; false for shims of other makers, which do not record it. Blocks.
    pub fn oom_killed(&self, namespace: &Namespace, id: &ContainerId) -> bool {
        Bundle::at(&self.0.config.bundles, namespace, id).oom_killed()
    }

    /// Whether the id is taken: by a task, or by one that is being created or removed.
    pub fn has(&self, namespace: &Namespace, id: &ContainerId) -> bool {
        self.0.slots().contains_key(&(namespace.clone(), id.clone()))
    }

    /// The ids in a namespace for which [`Shims::has`] is true.
    pub fn ids(&self, namespace: &Namespace) -> Vec<ContainerId> {
        let slots = self.0.slots();
        slots.keys().filter(|(of, _)| of == namespace).map(|(_, id)| id.clone()).collect()
    }

    /// The sandboxes, whose shims run tasks as well.
    pub fn sandboxes(&self) -> Sandboxes {
        Sandboxes(self.clone())
    }

    /// Runtime information from the shim program of a runtime, given by name or absolute path.
    pub async fn runtime_info(&self, runtime: &str, options: Option<Opaque>) -> Result<RuntimeInfo> {
        let program = Program::find(&self.0.config, runtime)?;
        blocking(move || bootstrap::info(&program, options)).await
    }

    pub(crate) fn sandbox_slots(&self) -> MutexGuard<'_, sandbox::Slots> {
        self.0.sandboxes.lock()
    }

    pub(crate) fn config(&self) -> &Config {
        &self.0.config
    }

    pub(crate) fn exchange(&self) -> &Exchange {
        &self.0.exchange
    }

    /// Whether a sandbox or another task uses the same shim, as in a pod.
    pub(crate) fn shim_is_shared(&self, task: &Task) -> bool {
        let socket = task.socket();
        if self.sandbox_sockets().contains(&socket) {
            return true;
        }
        self.tasks(None).iter().any(|other| {
            other.socket() == socket && (other.namespace(), other.id()) != (task.namespace(), task.id())
        })
    }

    /// The sockets of the shims that sandboxes and tasks use.
    pub(crate) fn sockets(&self) -> BTreeSet<PathBuf> {
        let mut sockets = self.sandbox_sockets();
        sockets.extend(self.tasks(None).iter().map(Task::socket));
        sockets
    }

    fn sandbox_sockets(&self) -> BTreeSet<PathBuf> {
        let slots = self.sandbox_slots();
        let filled = slots.values().filter_map(|slot| match slot {
            sandbox::Slot::Filled(sandbox) => Some(sandbox.socket()),
            sandbox::Slot::Reserved => None,
        });
        filled.collect()
    }

    /// The tasks of a namespace, or of all namespaces.
    pub fn tasks(&self, namespace: Option<&Namespace>) -> Vec<Task> {
        let wanted = |task: &&Task| namespace.is_none_or(|namespace| task.namespace() == namespace);
        let slots = self.0.slots();
        let mut tasks: Vec<Task> = slots.values().filter_map(Slot::task).filter(wanted).cloned().collect();
        tasks.sort_by(|a, b| (a.namespace(), a.id()).cmp(&(b.namespace(), b.id())));
        tasks
    }

    /// The state of every task of a namespace, or of all; `Unknown` if its shim does not answer.
    pub async fn states(&self, namespace: Option<&Namespace>) -> Vec<(Namespace, Process)> {
        let (mut asks, mut states) = (JoinSet::new(), Vec::new());
        let mut tasks = self.tasks(namespace).into_iter();
        loop {
            for task in tasks.by_ref().take(ASKS_MAX - asks.len()) {
                asks.spawn(async move { (task.namespace().clone(), task.state_or_unknown().await) });
            }
            match asks.join_next().await {
                Some(Ok((namespace, Ok(process)))) => states.push((namespace, process)),
                Some(_) => {}
                None => break,
            }
        }
        states.sort_by(|a, b| (&a.0, &a.1.container).cmp(&(&b.0, &b.1.container)));
        states
    }

    pub(crate) fn publish<M: Message + TypeUrl>(&self, namespace: &Namespace, topic: &str, message: &M) {
        let event = Opaque { type_url: M::TYPE_URL.to_owned(), value: message.encode_to_vec() };
        self.0.exchange.publish(Envelope {
            timestamp: Timestamp::now(),
            namespace: namespace.clone(),
            topic: topic.to_owned(),
            event,
        });
    }

    /// Removes the bundle of a container that was never created, and returns whether that succeeded. What the shim has
    /// noted and could not take down is left, with its notes, for the next daemon: then the slot must stay reserved.
    pub(crate) async fn discard(
        &self,
        (namespace, id): (&Namespace, &str),
        bundle: &Bundle,
        remove: fn(&Bundle) -> Result<()>,
    ) -> bool {
        let (shims, key, bundle) = (self.clone(), (namespace.clone(), id.to_owned()), bundle.clone());
        let removed = blocking(move || {
            if let Ok(program) = bundle.program() {
                bootstrap::delete_noted(&shims.0.config, &program, &bundle, (&key.0, key.1.as_str()))?;
            }
            remove(&bundle)
        });
        let removed = removed.await;
        if let Err(error) = &removed {
            tracing::warn!(%namespace, %id, "discard a bundle: {}", error.chain());
        }
        removed.is_ok()
    }

    fn reserve(&self, key: &Key) -> Result<Reservation> {
        let mut slots = self.0.slots();
        if slots.contains_key(key) {
            return Err(Error::already_exists(format!("task {}: already exists", key.1)));
        }
        slots.insert(key.clone(), Slot::Reserved);
        Ok(Reservation { shims: self.clone(), key: key.clone(), filled: false, over: watch::Sender::new(()) })
    }
}

impl Inner {
    fn slots(&self) -> MutexGuard<'_, HashMap<Key, Slot>> {
        self.slots.lock()
    }
}

/// A reserved slot in the map; freed when dropped, unless it is filled or kept.
struct Reservation {
    shims: Shims,
    key: Key,
    filled: bool,
    /// Dropped when the slot has its final state.
    over: watch::Sender<()>,
}

impl Reservation {
    /// Makes the task visible, so that clients can query and kill it while its shim creates it.
    fn show(&self, task: &Task) {
        self.put(Slot::Creating(task.clone(), self.over.subscribe()));
    }

    fn hide(&self) {
        self.put(Slot::Reserved);
    }

    fn put(&self, slot: Slot) {
        self.shims.0.slots().insert(self.key.clone(), slot);
    }

    /// The id stays taken until the next daemon examines what is left.
    fn keep(mut self) {
        self.put(Slot::Unknown);
        self.filled = true;
    }

    fn fill(mut self, task: Task) {
        self.put(Slot::Filled(task));
        self.filled = true;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.filled {
            self.shims.0.slots().remove(&self.key);
        }
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    stdx::blocking(work).await.map_err(Error::broke_down("a worker thread"))?
}

/// Runs work that must not be abandoned half way when its caller's future is dropped.
pub(crate) async fn unbroken<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    stdx::unbroken(work.in_current_span()).await.map_err(Error::broke_down("a task"))?
}
