//! The map of all tasks: how they are created, found again after a restart, and removed.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use api::shim::events::{TaskDelete, TaskExit, topic};
use api::shim::task::CreateTaskRequest;
use api::shim::types::TypeUrl;
use events::{Envelope, Exchange};
use linux::signal::SIGKILL;
use prost::Message;
use stdx::{Mutex, TRACE, traced};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tracing::field::Empty;
use tracing::info_span;
use tracing::instrument::Instrument;
use types::{ContainerId, Context, Error, ErrorKind, Namespace, Opaque, Result, Timestamp};

use crate::bootstrap::{self, Bootstrap};
use crate::bundle::{self, Bundle, UNKNOWN_EXIT};
use crate::config::Config;
use crate::connection::Connection;
use crate::program::Program;
use crate::sandbox::{self, Endpoint, Sandboxes};
use crate::{Create, Exit, Process, RuntimeInfo, Task, convert};

/// How many bundles are loaded in parallel when the daemon starts.
pub(crate) const LOADS_MAX: usize = 16;
/// Pause before retrying a shim that lives but does not answer.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How many shims are asked for the state of a task in parallel.
const ASKS_MAX: usize = 256;
/// Longest pause between attempts to clean up after a dead shim.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Longer lines of a shim's log are split, in bytes: the shim may quote unbounded output of its container.
const LOG_LINE_LEN_MAX: u64 = 16 << 10;
/// Small, because every task has one and few shims log anything.
const LOG_BUFFER_LEN: usize = 256;
/// How long `delete` waits for the clean-up after a dead shim.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(30);

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
}

/// A task that had ended when the daemon loaded its bundle. It is no longer in the map; every daemon that starts
/// reports it again until it is deleted.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    pub namespace: Namespace,
    pub id: ContainerId,
    pub exit: Exit,
}

impl Shims {
    /// No tasks are known until [`Shims::load`].
    pub fn new(config: Config, exchange: Exchange) -> Shims {
        Shims(Arc::new(Inner { config, exchange, slots: Mutex::default(), sandboxes: Mutex::default() }))
    }

    /// Reconnects to the tasks that an earlier daemon left. Returns the tasks that had ended together with their shim;
    /// their exit and delete events are published as well.
    pub async fn load(&self) -> Result<Vec<Ended>> {
        // Sandboxes first: their shims are in use even without containers.
        self.sandboxes().load().await?;
        let bundles = self.0.config.bundles.clone();
        let mut keys = blocking(move || bundle::list(&bundles)).await?.into_iter();
        let mut loads = JoinSet::new();
        let mut ended = Vec::new();
        loop {
            while loads.len() < LOADS_MAX
                && let Some(key) = keys.next()
            {
                let shims = self.clone();
                loads.spawn(async move { (shims.load_one(&key).await, key) });
            }
            match loads.join_next().await {
                None => return Ok(ended),
                Some(Ok((Ok(Some(exit)), (namespace, id)))) => ended.push(Ended { namespace, id, exit }),
                Some(Ok((Ok(None), _))) => {}
                Some(Ok((Err(error), (namespace, id)))) => {
                    tracing::error!(%namespace, %id, "find a task again: {}", error.chain());
                }
                Some(Err(panic)) => return Err(Error::internal("find a task again").with_source(panic)),
            }
        }
    }

    async fn load_one(&self, key: &Key) -> Result<Option<Exit>> {
        let reservation = self.reserve(key)?;
        let bundle = Bundle::at(&self.0.config.bundles, &key.0, &key.1);
        let (program, bootstrap) = match recorded(&bundle) {
            Ok(Some(recorded)) => recorded,
            // The earlier daemon died before the shim was up.
            Ok(None) => {
                if !self.discard((&key.0, key.1.as_str()), &bundle, Bundle::remove).await {
                    reservation.keep();
                }
                return Ok(None);
            }
            // Its container may be running, so the id stays taken.
            Err(error) => {
                reservation.keep();
                return Err(error);
            }
        };
        let log = follow_log((&key.0, key.1.as_str()), &bundle);
        let connection = Connection::new(bootstrap, key.0.clone(), self.0.config.limits);
        let task = Task::new(key.clone(), (bundle, program), connection, log);
        match self.probe_shim(&task).await {
            ShimState::Alive => {
                tracing::debug!(namespace = %key.0, id = %key.1, "found a task again");
                reservation.fill(task.clone());
                tokio::spawn(self.clone().watch(task));
                Ok(None)
            }
            ShimState::Empty => {
                task.dismiss(self.shim_is_shared(&task)).await;
                let bundle = task.bundle_and_program().0;
                if bundle.noted_exit().is_some() {
                    // The task was deleted, but the client that deleted it may not have received its exit.
                    reservation.keep();
                    return Ok(Some(self.clean_up(&task, Clearing::AllButBundle).await));
                }
                if !self.discard((&key.0, key.1.as_str()), bundle, Bundle::remove).await {
                    reservation.keep();
                }
                Ok(None)
            }
            ShimState::Dead => {
                // `clean_up` frees the slot when the bundle is gone.
                reservation.keep();
                Ok(Some(self.clean_up(&task, Clearing::AllButBundle).await))
            }
        }
    }

    async fn probe_shim(&self, task: &Task) -> ShimState {
        // Twice, because a shim may die between connection and answer.
        for _ in 0..2 {
            match task.connect().await {
                Ok(()) => {}
                Err(error) if error.is(ErrorKind::Unavailable) => return ShimState::Dead,
                Err(_) => return ShimState::Alive,
            }
            // An old shim may not implement this call; then only a lost connection tells of its death.
            let _ = task.identify_shim().await;
            match task.state(None).await {
                Err(error) if error.is(ErrorKind::NotFound) => return ShimState::Empty,
                Err(error) if error.is(ErrorKind::Unavailable) => {}
                _ => return ShimState::Alive,
            }
        }
        ShimState::Alive
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

    /// Starts a shim and has it create the container. Returns the pid of its first process, which waits for `start`.
    /// Continues if the caller's future is dropped.
    pub async fn create(&self, namespace: &Namespace, id: &ContainerId, create: Create) -> Result<u32> {
        let (shims, key) = (self.clone(), (namespace.clone(), id.clone()));
        let span = info_span!(target: TRACE, "task.create", %namespace, %id, error = Empty);
        traced(span, unbroken(async move { shims.create_one(key, create).await })).await
    }

    async fn create_one(self, key: Key, create: Create) -> Result<u32> {
        let program = Program::find(&self.0.config, &create.runtime)?;
        let reservation = self.reserve(&key)?;
        let bundle = Bundle::at(&self.0.config.bundles, &key.0, &key.1);
        match self.bring_up(&reservation, &bundle, &program, create).await {
            Ok((task, pid)) => {
                reservation.fill(task.clone());
                tokio::spawn(self.clone().watch(task));
                Ok(pid)
            }
            Err(error) => {
                if !self.discard((&key.0, key.1.as_str()), &bundle, Bundle::remove_unborn).await {
                    reservation.keep();
                }
                Err(error)
            }
        }
    }

    async fn bring_up(
        &self,
        reservation: &Reservation,
        bundle: &Bundle,
        program: &Program,
        create: Create,
    ) -> Result<(Task, u32)> {
        let key = &reservation.key;
        let request = create_request(&key.1, bundle, &create);
        {
            let (bundle, program) = (bundle.clone(), program.clone());
            let span = info_span!(target: TRACE, "task.bundle", error = Empty);
            traced(span, blocking(move || bundle.create(&create.spec, &program))).await?;
        }
        create.laps.lap("write the bundle");
        let log = follow_log((&key.0, key.1.as_str()), bundle);
        let span = info_span!(target: TRACE, "task.shim", error = Empty);
        let bootstrap = match create.shim {
            Some(endpoint) => traced(span, join_shim(bundle, endpoint)).await?,
            None => traced(span, self.start_shim(key, bundle, program, create.options)).await?,
        };
        create.laps.lap("start the shim");
        let connection = Connection::new(bootstrap, key.0.clone(), self.0.config.limits);
        let task = Task::new(key.clone(), (bundle.clone(), program.clone()), connection, log);
        let span = info_span!(target: TRACE, "task.make", error = Empty);
        let made = async {
            task.connect().await?;
            // In this order, so that the shim gets the create request before requests of clients that find the task in
            // the map.
            let (_, made, ()) = tokio::join!(
                biased;
                task.identify_shim(),
                task.create(&request),
                async { reservation.show(&task) },
            );
            made
        };
        match traced(span, made).await {
            Ok(pid) => {
                create.laps.lap("make the container");
                Ok((task, pid))
            }
            Err(error) => {
                reservation.hide();
                task.dismiss(self.shim_is_shared(&task)).await;
                // Clients that wait for this task must not end up waiting for the next one with this id.
                task.end(Exit { pid: 0, status: 128 + SIGKILL, at: Timestamp::now() });
                Err(error)
            }
        }
    }

    async fn start_shim(
        &self,
        key: &Key,
        bundle: &Bundle,
        program: &Program,
        options: Option<Opaque>,
    ) -> Result<Bootstrap> {
        let (shims, key, bundle, program) = (self.clone(), key.clone(), bundle.clone(), program.clone());
        blocking(move || {
            let config = &shims.0.config;
            let bootstrap = bootstrap::start(config, &program, &bundle, (&key.0, key.1.as_str()), options)
                .context(|| "start a shim")?;
            bundle.write_bootstrap(&bootstrap)?;
            Ok(bootstrap)
        })
        .await
    }

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
            Err(error) => return Err(error),
        };
        self.forget(&task).await.map(|()| exit)
    }

    /// Ends the shim of a deleted task, unless other tasks or a sandbox use it.
    pub(crate) async fn forget(&self, task: &Task) -> Result<()> {
        let key = (task.namespace().clone(), task.id().clone());
        self.0.slots().insert(key.clone(), Slot::Reserved);
        task.dismiss(self.shim_is_shared(task)).await;
        let removed = self.remove_bundle(task).await;
        self.0.slots().remove(&key);
        removed
    }

    /// Follows the shim through its life and cleans up if it dies unexpectedly.
    async fn watch(self, task: Task) {
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
    async fn clean_up(&self, task: &Task, clearing: Clearing) -> Exit {
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

    async fn remove_bundle(&self, task: &Task) -> Result<()> {
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

/// How much of a dead shim's task is removed.
#[derive(Clone, Copy, PartialEq)]
enum Clearing {
    All,
    /// All but the record of its exit, which no client has received yet.
    AllButBundle,
}

/// What answered at a shim's address.
enum ShimState {
    /// A shim with the container, or one whose state is undecided.
    Alive,
    /// A shim without a container.
    Empty,
    Dead,
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

/// The exit of a task whose shim cannot report it.
async fn last_known(task: &Task) -> Exit {
    let task = task.clone();
    let read = blocking(move || {
        let (bundle, program) = task.bundle_and_program();
        Ok(bundle.exit(program))
    });
    read.await.unwrap_or(Exit { pid: 0, status: UNKNOWN_EXIT, at: Timestamp::now() })
}

/// Program and address of a bundle's shim; `None` if the shim did not come up. An error, if the files cannot be read or
/// parsed, leaves that open.
pub(crate) fn recorded(bundle: &Bundle) -> Result<Option<(Program, Bootstrap)>> {
    match (bundle.program(), bundle.bootstrap()) {
        (Ok(program), Ok(Some(bootstrap))) => Ok(Some((program, bootstrap))),
        (_, Ok(None)) => Ok(None),
        (Err(error), _) if error.is(ErrorKind::NotFound) => Ok(None),
        (_, Err(error)) | (Err(error), _) => Err(error),
    }
}

fn create_request(id: &ContainerId, bundle: &Bundle, create: &Create) -> CreateTaskRequest {
    let text = |path: &Path| path.display().to_string();
    CreateTaskRequest {
        id: id.to_string(),
        bundle: text(&bundle.path),
        rootfs: create.rootfs.iter().cloned().map(convert::mount).collect(),
        terminal: create.io.terminal,
        stdin: create.io.stdin.clone(),
        stdout: create.io.stdout.clone(),
        stderr: create.io.stderr.clone(),
        checkpoint: create.checkpoint.as_deref().map(text).unwrap_or_default(),
        parent_checkpoint: String::new(),
        options: create.options.clone().map(convert::any),
    }
}

/// Assigns the container to an existing shim, such as a sandbox's.
async fn join_shim(bundle: &Bundle, endpoint: Endpoint) -> Result<Bootstrap> {
    let bundle = bundle.clone();
    blocking(move || {
        let bootstrap = Bootstrap::at(endpoint)?;
        bundle.write_bootstrap(&bootstrap)?;
        Ok(bootstrap)
    })
    .await
}

/// Copies a shim's log into the daemon's. Opened for writing too, so that there is no end of file when a shim closes
/// it.
pub(crate) fn follow_log((namespace, id): (&Namespace, &str), bundle: &Bundle) -> Option<AbortHandle> {
    let mut options = tokio::net::unix::pipe::OpenOptions::new();
    let log = match options.read_write(true).open_receiver(bundle.log()) {
        Ok(log) => log,
        Err(error) => {
            tracing::warn!(%namespace, %id, "open the shim's log: {error}");
            return None;
        }
    };
    let (namespace, id) = (namespace.clone(), id.to_owned());
    let following = tokio::spawn(async move {
        let mut log = BufReader::with_capacity(LOG_BUFFER_LEN, log);
        let mut line = Vec::new();
        while let Ok(1..) = (&mut log).take(LOG_LINE_LEN_MAX).read_until(b'\n', &mut line).await {
            tracing::info!(%namespace, %id, "shim: {}", String::from_utf8_lossy(&line).trim_end());
            line = Vec::new();
        }
    });
    Some(following.abort_handle())
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
