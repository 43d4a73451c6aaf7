//! The restart monitor: restarts and stops containers of containerd's clients as their labels request. The engine
//! restarts its own containers.
//!
//! | label `containerd.io/restart.…` | meaning |
//! |---|---|
//! | `status` | `running` or `stopped`: the desired state |
//! | `policy` | `always` (the default), `unless-stopped`, `on-failure[:N]`, `no`: when it is restarted |
//! | `explicitly-stopped` | `true`: a client stopped it, which `unless-stopped` respects |
//! | `count` | number of restarts by the monitor, which writes it |
//! | `loguri` | where its output goes: `file:///…`, `binary:///…`; without it nowhere |
//!
//! ```text
//! the task ended ───────────────▶ pause, doubled each time ──┐
//! each interval, and at the start ─▶ compare all ────────────┴▶ delete the task ▶ count ▶ create ▶ start
//! ```
//!
//! Containers are checked in parallel: one that hangs, because of a hook or a disk, does not delay the others.
//!
//! A container without a task that was not there at the last check is left alone until the next one: its client may be
//! about to create the task. So is one whose task its client has deleted, because the client may be about to remove the
//! container; if a container is removed while the monitor restarts it, the new task is killed. A task of unknown state
//! is left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::grpc::event::ContainerDelete;
use api::grpc::event::topic::CONTAINER_DELETE;
use api::shim::events::{TaskExit, topic};
use events::{Envelope, Exchange, Received};
use linux::signal::SIGKILL;
use metadata::{Caller, Container, Metadata};
use prost::Message;
use serde::Deserialize;
use stdx::Mutex;
use task::{Create, Exit, Io, Shims, Status, Task};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use types::{
    ContainerId, Context, Error, ErrorKind, Filters, Labels, Namespace, Result, SandboxId, UnlessGone,
};

use crate::blocking::blocking;
use crate::task_resources::TaskResources;

const STATUS: &str = "containerd.io/restart.status";
const POLICY: &str = "containerd.io/restart.policy";
const EXPLICITLY_STOPPED: &str = "containerd.io/restart.explicitly-stopped";
const COUNT: &str = "containerd.io/restart.count";
const LOG_URI: &str = "containerd.io/restart.loguri";
/// The deprecated label of a log path.
const LOG_PATH: &str = "containerd.io/restart.logpath";

/// Pause before the first restart; doubled for each further one, up to the interval.
const PAUSE: Duration = Duration::from_millis(100);
/// Containers checked in parallel. A check that takes too long no longer counts.
const COMPARED_AT_ONCE: usize = 16;
const COUNTED_LIMIT: Duration = Duration::from_secs(10);
/// How long a client may take between deleting a task and its container.
const REMOVED_LIMIT: Duration = Duration::from_secs(60);
/// How long a container may take to end when it is stopped.
const KILL_LIMIT: Duration = Duration::from_secs(10);

type Key = (Namespace, ContainerId);

/// The desired state of a container, from its labels.
#[derive(Clone, Copy, Debug, PartialEq)]
enum DesiredState {
    Stopped,
    Running(Policy),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Policy {
    Never,
    Always,
    UnlessStopped,
    /// After a failure, at most this many times; 0 is no limit.
    OnFailure(u64),
}

/// The monitored containers, as of a number of changes to the metadata store. They are listed again only after further
/// changes, so that an idle daemon does nothing.
#[derive(Default)]
struct Monitored {
    as_of: Option<u64>,
    keys: Vec<Key>,
}

impl DesiredState {
    /// `None` for containers that are not monitored. `InvalidArgument` for malformed labels.
    fn of(labels: &Labels) -> Result<Option<DesiredState>> {
        let wrong = |label: &str, value: &str| Err(Error::invalid_argument(format!("label {label}={value}")));
        match labels.get(STATUS).map(String::as_str) {
            None => return Ok(None),
            Some("stopped") => return Ok(Some(DesiredState::Stopped)),
            Some("running") => {}
            // Other task states are not supported, and containerd's monitor ignores them as well.
            Some(_) => return Ok(None),
        }
        let text = labels.get(POLICY).map_or("", String::as_str);
        let policy = match text.split_once(':').map_or((text, None), |(name, max)| (name, Some(max))) {
            ("" | "always", None) => Policy::Always,
            ("no", None) => Policy::Never,
            ("unless-stopped", None) => Policy::UnlessStopped,
            ("on-failure", None) => Policy::OnFailure(0),
            ("on-failure", Some(max)) => match max.parse() {
                Ok(max) => Policy::OnFailure(max),
                Err(_) => return wrong(POLICY, text),
            },
            _ => return wrong(POLICY, text),
        };
        Ok(Some(DesiredState::Running(policy)))
    }
}

impl Policy {
    /// Whether a container that does not run is started. `exit` is its exit code, if known.
    fn starts(self, labels: &Labels, exit: Option<u32>) -> bool {
        match self {
            Policy::Never => false,
            Policy::Always => true,
            Policy::UnlessStopped => {
                // The values that Go's `strconv.ParseBool` takes for true.
                let stopped = labels.get(EXPLICITLY_STOPPED).map(String::as_str);
                !matches!(stopped, Some("1" | "t" | "T" | "true" | "TRUE" | "True"))
            }
            Policy::OnFailure(max) => exit.is_some_and(|code| code != 0) && (max == 0 || count(labels) < max),
        }
    }
}

fn count(labels: &Labels) -> u64 {
    labels.get(COUNT).and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// The monitor. Clones share state.
#[derive(Clone)]
pub(crate) struct RestartMonitor {
    metadata: Metadata,
    shims: Shims,
    task_resources: TaskResources,
    exchange: Exchange,
    interval: watch::Sender<Duration>,
    compared: Arc<Compared>,
    begun: Arc<Begun>,
}

/// Tasks that the monitor has just started, whose containers may be in the process of being removed.
#[derive(Default)]
struct Begun(Mutex<BTreeMap<Key, (Instant, Task)>>);

impl Begun {
    fn note(&self, key: &Key, task: &Task) {
        let mut begun = self.0.lock();
        begun.retain(|_, (at, _)| at.elapsed() < REMOVED_LIMIT);
        begun.insert(key.clone(), (Instant::now(), task.clone()));
    }

    fn take(&self, key: &Key) -> Option<Task> {
        let (at, task) = self.0.lock().remove(key)?;
        (at.elapsed() < REMOVED_LIMIT).then_some(task)
    }
}

/// The containers being checked now.
struct Compared {
    keys: Mutex<BTreeSet<Key>>,
    places: Semaphore,
}

impl Compared {
    /// `None` if it is being checked already.
    fn begin(self: &Arc<Compared>, key: &Key) -> Option<Comparison> {
        let is_new = self.keys.lock().insert(key.clone());
        is_new.then(|| Comparison { all: self.clone(), key: key.clone() })
    }
}

/// The check of one container, until dropped.
struct Comparison {
    all: Arc<Compared>,
    key: Key,
}

impl Drop for Comparison {
    fn drop(&mut self) {
        self.all.keys.lock().remove(&self.key);
    }
}

impl RestartMonitor {
    pub(crate) fn new(
        metadata: Metadata,
        shims: Shims,
        task_resources: TaskResources,
        exchange: Exchange,
        interval: Duration,
    ) -> RestartMonitor {
        let compared = Compared { keys: Mutex::default(), places: Semaphore::new(COMPARED_AT_ONCE) };
        let (interval, compared) = (watch::Sender::new(interval), Arc::new(compared));
        RestartMonitor {
            metadata,
            shims,
            task_resources,
            exchange,
            interval,
            compared,
            begun: Arc::default(),
        }
    }

    /// Applies a new interval.
    pub(crate) fn reconfigure(&self, interval: Duration) {
        self.interval.send_replace(interval);
    }

    /// Runs until dropped. `Shims::load` must be complete, so that running containers are not started twice.
    pub(crate) async fn run(self) {
        let mut exits = self.exchange.subscribe_topic(topic::EXIT);
        let mut removals = self.exchange.subscribe_topic(CONTAINER_DELETE);
        let mut interval = self.interval.subscribe();
        let mut due: BTreeMap<Key, Instant> = BTreeMap::new();
        // No client is connected yet, so none is about to create a task.
        let mut monitored = Monitored::default();
        let mut without_task = self.compare_all(&mut monitored, None).await;
        let mut next_look = Instant::now() + *interval.borrow_and_update();
        loop {
            let wake = due.values().min().copied().unwrap_or(next_look).min(next_look);
            tokio::select! {
                received = exits.receive() => match received {
                    Some(Received::Event(envelope)) => {
                        if let Some(key) = ended(&envelope)
                            && let Some(pause) = self.pause(&key).await
                        {
                            due.insert(key, Instant::now() + pause.min(*interval.borrow()));
                        }
                    }
                    // The next check finds what was missed.
                    Some(Received::Lagged(_)) => {}
                    None => return,
                },
                received = removals.receive() => {
                    if let Some(Received::Event(envelope)) = received
                        && let Some(key) = removed(&envelope)
                    {
                        self.end_begun(key);
                    }
                }
                _ = interval.changed() => next_look = Instant::now() + *interval.borrow_and_update(),
                () = tokio::time::sleep_until(wake) => {
                    let now = Instant::now();
                    if now >= next_look {
                        without_task = self.compare_all(&mut monitored, Some(&without_task)).await;
                        next_look = Instant::now() + *interval.borrow();
                    }
                    let ripe: Vec<Key> = due.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
                    for key in ripe {
                        due.remove(&key);
                        // If its client has deleted the task, it may be about to remove the container: leave it to the
                        // next check.
                        if self.shims.has(&key.0, &key.1) {
                            self.begin_to_compare(&key);
                        }
                    }
                }
            }
        }
    }

    /// Pause before a container that ended is checked; `None` if it is not monitored.
    async fn pause(&self, key: &Key) -> Option<Duration> {
        let container = self.container(key).await.ok()?;
        let exponent = u32::try_from(count(&container.labels)).unwrap_or(u32::MAX).min(16);
        container.labels.contains_key(STATUS).then(|| PAUSE * 2_u32.pow(exponent))
    }

    /// Checks every monitored container. Returns those without a task; of these, only those in `earlier` are checked.
    async fn compare_all(&self, monitored: &mut Monitored, earlier: Option<&BTreeSet<Key>>) -> BTreeSet<Key> {
        let mut without_task = BTreeSet::new();
        let mutations = self.metadata.mutations();
        if monitored.as_of != Some(mutations) {
            match self.keys().await {
                Ok(keys) => *monitored = Monitored { as_of: Some(mutations), keys },
                Err(error) => tracing::warn!("look for containers to start again: {}", error.chain()),
            }
        }
        for key in monitored.keys.clone() {
            if !self.shims.has(&key.0, &key.1) {
                without_task.insert(key.clone());
                if earlier.is_some_and(|earlier| !earlier.contains(&key)) {
                    continue;
                }
            }
            self.begin_to_compare(&key);
        }
        without_task
    }

    /// A container that is being checked already is left to the next check.
    fn begin_to_compare(&self, key: &Key) {
        let Some(comparison) = self.compared.begin(key) else { return };
        let monitor = self.clone();
        tokio::spawn(async move {
            let place = monitor.compared.places.acquire().await.expect("it is never closed");
            let comparing = monitor.compare_logged(&comparison.key);
            tokio::pin!(comparing);
            if tokio::time::timeout(COUNTED_LIMIT, &mut comparing).await.is_err() {
                drop(place);
                comparing.await;
            }
        });
    }

    async fn compare_logged(&self, key: &Key) {
        match self.compare(key).await {
            Err(error) if !error.is(ErrorKind::NotFound) => {
                tracing::warn!(namespace = %key.0, id = %key.1, "restart monitor: {}", error.chain());
            }
            _ => {}
        }
    }

    /// Brings a container to its desired state.
    async fn compare(&self, key: &Key) -> Result<()> {
        let container = self.container(key).await?;
        let Some(desired) = DesiredState::of(&container.labels)? else { return Ok(()) };
        let process = match self.shims.task(&key.0, &key.1).unless_gone()? {
            Some(task) => Some(task.state_or_unknown().await?),
            None => None,
        };
        let status = process.as_ref().map(|process| process.status);
        match (desired, status) {
            (_, Some(Status::Unknown | Status::Created | Status::Pausing)) => Ok(()),
            (DesiredState::Stopped, Some(Status::Running | Status::Paused)) => self.stop(key).await,
            (DesiredState::Stopped, _)
            | (DesiredState::Running(_), Some(Status::Running | Status::Paused)) => Ok(()),
            (DesiredState::Running(policy), Some(Status::Stopped) | None) => {
                let exit = process.and_then(|process| process.exit);
                if policy.starts(&container.labels, exit.map(|Exit { status, .. }| status)) {
                    self.start(key, container).await.context(|| "start it again")?;
                    tracing::info!(namespace = %key.0, id = %key.1, "started a container again");
                }
                Ok(())
            }
        }
    }

    /// Kills a task and deletes it.
    async fn stop(&self, key: &Key) -> Result<()> {
        self.stop_task(key, &self.shims.task(&key.0, &key.1)?).await
    }

    async fn stop_task(&self, key: &Key, task: &Task) -> Result<()> {
        self.shims.kill(task, None, SIGKILL, true).await.context(|| "stop it")?;
        match tokio::time::timeout(KILL_LIMIT, task.wait(None)).await {
            Ok(ended) => ended.context(|| "wait for its end")?,
            Err(_) => return Err(Error::deadline_exceeded("it was killed and does not end")),
        };
        self.shims.delete(&key.0, &key.1).await?;
        self.task_resources.release(&key.0, &key.1).await;
        Ok(())
    }

    async fn start(&self, key: &Key, container: Container) -> Result<()> {
        match self.shims.delete(&key.0, &key.1).await {
            Err(error) if !error.is(ErrorKind::NotFound) => return Err(error),
            _ => self.task_resources.forget_checkpoint(&key.0, &key.1).await,
        }
        let caller = Caller::new(key.0.clone());
        let mut create = self.recreate(&caller, container).await?;
        let (runtime, rootfs) = (create.runtime.clone(), std::mem::take(&mut create.rootfs));
        let (rootfs, is_activated) = self.task_resources.activate(&caller, &key.1, &runtime, rootfs).await?;
        create.rootfs = rootfs;
        if let Err(error) = self.shims.create(&key.0, &key.1, create).await {
            if is_activated {
                self.task_resources.deactivate(&key.0, &key.1).await;
            }
            return Err(error);
        }
        let task = self.shims.task(&key.0, &key.1)?;
        self.begun.note(key, &task);
        // The container may have been removed meanwhile; a removal from now on is seen as an event.
        let started = match self.is_recorded(key).await {
            Ok(true) => task.start(None).await.map(drop),
            Ok(false) => Err(Error::not_found("the container was removed while it was started again")),
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            // Like a task that ended, it is created again next time.
            let _ = self.shims.delete(&key.0, &key.1).await;
            self.task_resources.release(&key.0, &key.1).await;
            return Err(error);
        }
        Ok(())
    }

    async fn is_recorded(&self, key: &Key) -> Result<bool> {
        Ok(self.container(key).await.unless_gone()?.is_some())
    }

    /// Kills a task that was just started if its container has been removed: the client deleted the container because
    /// it had no task when the client checked.
    fn end_begun(&self, key: Key) {
        let Some(task) = self.begun.take(&key) else { return };
        let monitor = self.clone();
        tokio::spawn(async move {
            let ended = async {
                // There may be a new container of this id.
                if monitor.is_recorded(&key).await? {
                    return Ok(());
                }
                monitor.stop_task(&key, &task).await
            };
            match ended.await {
                Err(error) if !error.is(ErrorKind::NotFound) => {
                    tracing::warn!(namespace = %key.0, id = %key.1, "end what was removed: {}", error.chain());
                }
                _ => {}
            }
        });
    }

    /// Increments the restart count, and returns how to create the task.
    async fn recreate(&self, caller: &Caller, container: Container) -> Result<Create> {
        let log = log_uri(&container.labels);
        let (metadata, caller) = (self.metadata.clone(), caller.clone());
        // In its sandbox, if that exists.
        let sandbox = SandboxId::new(&container.sandbox_id).ok();
        let shim = sandbox.and_then(|id| self.shims.sandboxes().endpoint(&caller.namespace, &id));
        blocking(move || {
            let count = (count(&container.labels) + 1).to_string();
            let labels = Labels::from([(COUNT.to_owned(), count)]);
            let update = Container { labels, ..container.clone() };
            metadata.containers(&caller).update(&update, &[format!("labels.{COUNT}")])?;
            let rootfs = match container.snapshot_key.as_str() {
                "" => Vec::new(),
                key => metadata.snapshots(&caller, &container.snapshotter)?.mounts(key)?,
            };
            let spec = container.spec.ok_or_else(|| Error::failed_precondition("it has no spec"))?;
            let terminal = has_terminal(&spec.value);
            Ok(Create {
                spec: spec.value,
                rootfs,
                io: Io { stdout: log.clone(), stderr: log, terminal, ..Io::default() },
                runtime: container.runtime.name,
                options: container.runtime.options,
                shim,
                ..Create::default()
            })
        })
        .await
    }

    async fn container(&self, (namespace, id): &Key) -> Result<Container> {
        let containers = self.metadata.containers(namespace);
        let id = id.clone();
        blocking(move || containers.get(&id)).await
    }

    /// The monitored containers of all namespaces.
    async fn keys(&self) -> Result<Vec<Key>> {
        let metadata = self.metadata.clone();
        blocking(move || {
            let filters = Filters::parse(&[format!("labels.{STATUS:?}")])?;
            let mut keys = Vec::new();
            for (namespace, _) in metadata.namespaces().list()? {
                let found = metadata.containers(&namespace).list(&filters)?;
                keys.extend(found.into_iter().map(|container| (namespace.clone(), container.id)));
            }
            Ok(keys)
        })
        .await
    }
}

/// The container whose first process ended.
fn ended(envelope: &Envelope) -> Option<Key> {
    let exit = TaskExit::decode(&*envelope.event.value).ok()?;
    let is_first = exit.id == exit.container_id;
    is_first.then_some((envelope.namespace.clone(), exit.container_id.parse().ok()?))
}

fn removed(envelope: &Envelope) -> Option<Key> {
    let removed = ContainerDelete::decode(&*envelope.event.value).ok()?;
    Some((envelope.namespace.clone(), removed.id.parse().ok()?))
}

fn log_uri(labels: &Labels) -> String {
    match (labels.get(LOG_URI), labels.get(LOG_PATH)) {
        (Some(uri), _) => uri.clone(),
        (None, Some(path)) => format!("file://{path}"),
        (None, None) => String::new(),
    }
}

/// Whether the first process has a terminal. An invalid spec is left for the shim to refuse.
fn has_terminal(spec: &[u8]) -> bool {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Spec {
        process: Process,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Process {
        terminal: bool,
    }
    serde_json::from_slice(spec).is_ok_and(|Spec { process }| process.terminal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(entries: &[(&str, &str)]) -> Labels {
        entries
            .iter()
            .map(|(key, value)| (format!("containerd.io/restart.{key}"), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn labels_say_whether_a_container_that_is_down_is_started() {
        let check = |entries: &[(&str, &str)], exit: Option<u32>, expected: Option<bool>| {
            let labels = labels(entries);
            let found = DesiredState::of(&labels).unwrap().map(|desired| match desired {
                DesiredState::Running(policy) => policy.starts(&labels, exit),
                DesiredState::Stopped => false,
            });
            assert_eq!(found, expected, "{entries:?} {exit:?}");
        };
        let running = ("status", "running");
        check(&[], Some(1), None);
        check(&[("policy", "always")], Some(1), None);
        check(&[("status", "created")], None, None);
        check(&[("status", "stopped")], Some(1), Some(false));
        for exit in [None, Some(0), Some(1)] {
            check(&[running], exit, Some(true));
            check(&[running, ("policy", "always"), ("explicitly-stopped", "true")], exit, Some(true));
            check(&[running, ("policy", "no")], exit, Some(false));
            check(&[running, ("policy", "unless-stopped")], exit, Some(true));
            check(
                &[running, ("policy", "unless-stopped"), ("explicitly-stopped", "false")],
                exit,
                Some(true),
            );
            check(
                &[running, ("policy", "unless-stopped"), ("explicitly-stopped", "true")],
                exit,
                Some(false),
            );
        }
        let twice = [running, ("policy", "on-failure:2")];
        check(&twice, Some(0), Some(false));
        check(&twice, None, Some(false));
        check(&twice, Some(1), Some(true));
        check(&[twice[0], twice[1], ("count", "1")], Some(1), Some(true));
        check(&[twice[0], twice[1], ("count", "2")], Some(1), Some(false));
        check(&[running, ("policy", "on-failure"), ("count", "99")], Some(1), Some(true));
        for policy in ["sometimes", "on-failure:many", "always:3"] {
            DesiredState::of(&labels(&[running, ("policy", policy)])).unwrap_err();
        }
    }

    #[test]
    fn output_goes_where_labels_say() {
        assert_eq!(log_uri(&labels(&[])), "");
        assert_eq!(log_uri(&labels(&[("logpath", "/x")])), "file:///x");
        assert_eq!(log_uri(&labels(&[("logpath", "/x"), ("loguri", "binary:///y")])), "binary:///y");
    }
}
