//! A task's handle, which calls the task's shim.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use api::shim::attach::{self, AttachRequest};
use api::shim::events::topic;
use api::shim::task as wire;
use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use stdx::{Mutex, TRACE, traced};
use tokio::sync::watch;
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::timeout;
use tracing::field::Empty;
use tracing::info_span;
use types::{ContainerId, Error, ErrorKind, ExecId, Labels, Namespace, Opaque, Result, Timestamp};

use crate::bundle::Bundle;
use crate::connection::Connection;
use crate::program::Program;
use crate::{Exec, Exit, Limits, Process, ProcessId, Status, TerminalSize, convert};

/// How long a shim may take to die after its socket closed.
const DEATH_LIMIT: Duration = Duration::from_secs(1);

/// The shim's answer to a wait, cloneable for several waiters.
type Answered = Option<Result<Exit, (ErrorKind, String)>>;

/// A container that runs, or waits to be started or deleted. Clones share the task.
#[derive(Clone)]
pub struct Task(Arc<Inner>);

struct Inner {
    namespace: Namespace,
    id: ContainerId,
    bundle: Bundle,
    program: Program,
    connection: Connection,
    /// Pidfd of the shim. Set once it has told its pid.
    shim: OnceLock<Arc<OwnedFd>>,
    /// Set when the shim is dead and cleaned up after.
    ended: watch::Sender<Option<Exit>>,
    /// Set when the task is deleted: its shim may close the connection, or stay for other tasks.
    leaving: watch::Sender<bool>,
    /// Held while its shim is ended and its bundle removed.
    leave: tokio::sync::Mutex<()>,
    /// Whether the shim itself has published the exit and delete events.
    exit_published: AtomicBool,
    delete_published: AtomicBool,
    /// See [`Task::will_be_deleted`].
    has_owner: AtomicBool,
    /// The `Wait` calls in progress: at most one per process.
    waits: Mutex<BTreeMap<Option<ExecId>, PendingWait>>,
    log: Option<AbortHandle>,
}

/// A `Wait` call in progress.
struct PendingWait {
    tell: Arc<watch::Sender<Answered>>,
    call: AbortHandle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(log) = &self.log {
            log.abort();
        }
    }
}

/// In all methods, `exec` `None` means the container's first process.
impl Task {
    pub(crate) fn new(
        (namespace, id): (Namespace, ContainerId),
        (bundle, program): (Bundle, Program),
        connection: Connection,
        log: Option<AbortHandle>,
    ) -> Task {
        Task(Arc::new(Inner {
            namespace,
            id,
            bundle,
            program,
            connection,
            shim: OnceLock::new(),
            ended: watch::Sender::new(None),
            leaving: watch::Sender::new(false),
            leave: tokio::sync::Mutex::default(),
            exit_published: AtomicBool::new(false),
            delete_published: AtomicBool::new(false),
            has_owner: AtomicBool::new(false),
            waits: Mutex::default(),
            log,
        }))
    }

    pub fn namespace(&self) -> &Namespace {
        &self.0.namespace
    }

    pub fn id(&self) -> &ContainerId {
        &self.0.id
    }

    /// The bundle: the directory that shim and daemon share.
    pub fn bundle(&self) -> &std::path::Path {
        &self.0.bundle.path
    }

    pub(crate) fn socket(&self) -> std::path::PathBuf {
        self.0.connection.socket()
    }

    fn limits(&self) -> &Limits {
        self.0.connection.limits()
    }

    pub(crate) fn bundle_and_program(&self) -> (&Bundle, &Program) {
        (&self.0.bundle, &self.0.program)
    }

    /// Starts the process and returns its pid.
    pub async fn start(&self, exec: Option<&ExecId>) -> Result<u32> {
        let request = wire::StartRequest { id: self.id_text(), exec_id: text(exec) };
        let (id, exec) = (self.id(), exec.map(tracing::field::display));
        let span = info_span!(target: TRACE, "task.start", %id, exec, error = Empty);
        let response: wire::StartResponse = traced(span, self.call("Start", &request, None)).await?;
        Ok(response.pid)
    }

    /// The process's state; an error if the shim does not answer in time.
    pub async fn state(&self, exec: Option<&ExecId>) -> Result<Process> {
        let request = wire::StateRequest { id: self.id_text(), exec_id: text(exec) };
        let response = self.call("State", &request, Some(self.limits().state)).await?;
        Ok(convert::process(self.id(), exec, response))
    }

    /// As [`Task::state`], with `Unknown` for a shim that does not answer.
    pub async fn state_or_unknown(&self) -> Result<Process> {
        match self.state(None).await {
            Err(error) if !error.is(ErrorKind::NotFound) => {
                tracing::warn!(namespace = %self.namespace(), id = %self.id(), "state: {}", error.chain());
                Ok(Process {
                    container: self.id().clone(),
                    exec: None,
                    pid: 0,
                    status: Status::Unknown,
                    io: crate::Io::default(),
                    exit: None,
                })
            }
            outcome => outcome,
        }
    }

    /// Waits for the end of the process, or of a creation that fails. Cancel-safe.
    pub async fn wait(&self, exec: Option<&ExecId>) -> Result<Exit> {
        loop {
            let outcome = tokio::select! {
                biased;
                // First, because afterwards another task with this id may have a shim at the same address.
                exit = self.ended() => return Ok(exit),
                outcome = self.ask_for_end(exec) => outcome,
            };
            match outcome {
                Ok(exit) => return Ok(exit),
                Err(error) if !error.is(ErrorKind::Unavailable) => return Err(error),
                // Either the shim is dead, and its watcher finds out how the task ended, or the connection is made
                // again.
                Err(_) => match timeout(DEATH_LIMIT, self.ended()).await {
                    Ok(exit) => return Ok(exit),
                    Err(_) => continue,
                },
            }
        }
    }

    /// All waiters share one `Wait` call per process: a shim keeps the call until the process ends, even if its client
    /// has disconnected, and limits the number of open calls.
    async fn ask_for_end(&self, exec: Option<&ExecId>) -> Result<Exit> {
        let mut answered = {
            let mut waits = self.waits();
            let ask = || {
                let tell = Arc::new(watch::Sender::new(None));
                let (task, exec, own) = (self.clone(), exec.cloned(), tell.clone());
                let call = tokio::spawn(async move {
                    let request = wire::WaitRequest { id: task.id_text(), exec_id: text(exec.as_ref()) };
                    let outcome: Result<wire::WaitResponse> = task.call("Wait", &request, None).await;
                    // Later waiters call again: the exec id may belong to another process by then.
                    task.waits().retain(|id, asking| *id != exec || !Arc::ptr_eq(&asking.tell, &own));
                    let exit = outcome
                        .map(|response| convert::exit(0, response.exit_status, response.exited_at))
                        .map_err(|error| (error.kind(), error.chain()));
                    own.send_replace(Some(exit));
                });
                PendingWait { tell, call: call.abort_handle() }
            };
            waits.entry(exec.cloned()).or_insert_with(ask).tell.subscribe()
        };
        let answer = answered.wait_for(Option::is_some).await.map(|answer| answer.clone());
        match answer {
            Ok(Some(exit)) => exit.map_err(|(kind, words)| Error::new(kind, words)),
            Ok(None) | Err(_) => Err(Error::internal("the wait for the process was dropped")),
        }
    }

    pub async fn kill(&self, exec: Option<&ExecId>, signal: u32, all: bool) -> Result<()> {
        self.kill_within(None, exec, signal, all).await
    }

    pub(crate) async fn kill_within(
        &self,
        limit: Option<Duration>,
        exec: Option<&ExecId>,
        signal: u32,
        all: bool,
    ) -> Result<()> {
        let request = wire::KillRequest { id: self.id_text(), exec_id: text(exec), signal, all };
        self.call("Kill", &request, limit).await
    }

    /// Adds a process, which runs once it is started.
    pub async fn exec(&self, id: &ExecId, exec: Exec) -> Result<()> {
        let request = wire::ExecProcessRequest {
            id: self.id_text(),
            exec_id: id.to_string(),
            terminal: exec.io.terminal,
            stdin: exec.io.stdin,
            stdout: exec.io.stdout,
            stderr: exec.io.stderr,
            spec: Some(convert::any(exec.spec)),
        };
        self.call("Exec", &request, None).await
    }

    /// Deletes an exec'd process that has ended or never ran.
    pub async fn delete_exec(&self, exec: &ExecId) -> Result<Exit> {
        let exit = self.delete_process(exec.to_string(), None).await?;
        self.end_waits(exec, exit);
        Ok(exit)
    }

    /// Completes the waits for a deleted process: older shims never answer them if it was not started.
    fn end_waits(&self, exec: &ExecId, exit: Exit) {
        let asking = self.waits().remove(&Some(exec.clone()));
        let Some(PendingWait { tell, call }) = asking else { return };
        call.abort();
        let never = || (ErrorKind::NotFound, "the process was deleted".to_owned());
        let has_ended = exit.at.seconds > 0;
        tell.send_replace(Some(has_ended.then_some(Exit { pid: 0, ..exit }).ok_or_else(never)));
    }

    fn waits(&self) -> MutexGuard<'_, BTreeMap<Option<ExecId>, PendingWait>> {
        self.0.waits.lock()
    }

    /// Deletes the container from its shim.
    pub(crate) async fn delete_init(&self, limit: Option<Duration>) -> Result<Exit> {
        self.delete_process(String::new(), limit).await
    }

    async fn delete_process(&self, exec_id: String, limit: Option<Duration>) -> Result<Exit> {
        let request = wire::DeleteRequest { id: self.id_text(), exec_id };
        let response: wire::DeleteResponse = self.call("Delete", &request, limit).await?;
        Ok(convert::exit(response.pid, response.exit_status, response.exited_at))
    }

    /// Sets the terminal size of the first process or of an exec'd process.
    pub async fn resize(&self, exec: Option<&ExecId>, size: TerminalSize) -> Result<()> {
        let TerminalSize { rows: height, columns: width } = size;
        let request = wire::ResizePtyRequest { id: self.id_text(), exec_id: text(exec), width, height };
        self.call("ResizePty", &request, None).await
    }

    /// Closes standard input, so that the process reads end of file.
    pub async fn close_stdin(&self, exec: Option<&ExecId>) -> Result<()> {
        let request = wire::CloseIoRequest { id: self.id_text(), exec_id: text(exec), stdin: true };
        self.call("CloseIO", &request, None).await
    }

    /// Attaches a client's pipes to the first process: copies of its output, and additional input. The client must have
    /// opened its ends.
    ///
    /// `Unimplemented` if the shim is of another maker or an older version.
    pub async fn attach(&self, stdin: String, stdout: String, stderr: String) -> Result<()> {
        let request = AttachRequest { id: self.id_text(), stdin, stdout, stderr };
        self.0.connection.call_service(attach::SERVICE, "Attach", &request, None).await
    }

    pub async fn pause(&self) -> Result<()> {
        self.call("Pause", &wire::PauseRequest { id: self.id_text() }, None).await
    }

    pub async fn resume(&self) -> Result<()> {
        self.call("Resume", &wire::ResumeRequest { id: self.id_text() }, None).await
    }

    pub async fn pids(&self) -> Result<Vec<ProcessId>> {
        let request = wire::PidsRequest { id: self.id_text() };
        let response: wire::PidsResponse = self.call("Pids", &request, None).await?;
        let process = |found: api::shim::types::ProcessInfo| ProcessId {
            pid: found.pid,
            details: found.info.map(convert::opaque),
        };
        Ok(response.processes.into_iter().map(process).collect())
    }

    /// Changes resource limits: OCI `linux.resources` as an `Any` of JSON.
    pub async fn update(&self, resources: Option<Opaque>, annotations: Labels) -> Result<()> {
        let request = wire::UpdateTaskRequest {
            id: self.id_text(),
            resources: resources.map(convert::any),
            annotations: annotations.into_iter().collect(),
        };
        self.call("Update", &request, None).await
    }

    /// The cgroup's metrics as the shim encodes them; an error if the shim does not answer in time.
    pub async fn stats(&self) -> Result<Option<Opaque>> {
        let request = wire::StatsRequest { id: self.id_text() };
        let response: wire::StatsResponse = self.call("Stats", &request, Some(self.limits().stats)).await?;
        Ok(response.stats.map(convert::opaque))
    }

    pub async fn checkpoint(&self, path: &std::path::Path, options: Option<Opaque>) -> Result<()> {
        let request = wire::CheckpointTaskRequest {
            id: self.id_text(),
            path: path.display().to_string(),
            options: options.map(convert::any),
        };
        self.call("Checkpoint", &request, None).await
    }

    pub(crate) async fn create(&self, request: &wire::CreateTaskRequest) -> Result<u32> {
        let response: wire::CreateTaskResponse = self.call("Create", request, None).await?;
        Ok(response.pid)
    }

    /// Asks the shim for its pid, so that after a lost connection a dead shim can be told from a live one.
    pub(crate) async fn identify_shim(&self) -> Result<()> {
        if self.0.shim.get().is_some() {
            return Ok(());
        }
        let request = wire::ConnectRequest { id: self.id_text() };
        let response: wire::ConnectResponse =
            self.call("Connect", &request, Some(self.limits().state)).await?;
        let pid = i32::try_from(response.shim_pid).ok().and_then(Pid::from_raw);
        let pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        if let Some(pidfd) = pidfd {
            // Concurrent callers get the same answer.
            let _ = self.0.shim.set(Arc::new(pidfd));
        }
        Ok(())
    }

    /// Connects unless there is a connection.
    pub(crate) async fn connect(&self) -> Result<()> {
        self.0.connection.client().await.map(drop)
    }

    /// Completes when the connection closes.
    pub(crate) async fn disconnected(&self) {
        self.0.connection.closed().await;
    }

    /// Whether the shim is dead; false if its pid is not known.
    pub(crate) async fn shim_is_dead(&self) -> bool {
        let Some(pidfd) = self.0.shim.get().cloned() else { return false };
        spawn_blocking(move || ends_soon(&pidfd)).await.unwrap_or(false)
    }

    /// Notes that the shim has published this event of the task's end.
    pub(crate) fn note_published(&self, topic: &str) {
        match topic {
            topic::EXIT => self.0.exit_published.store(true, Ordering::Release),
            topic::DELETE => self.0.delete_published.store(true, Ordering::Release),
            _ => {}
        }
    }

    pub(crate) fn is_published(&self, topic: &str) -> bool {
        match topic {
            topic::EXIT => self.0.exit_published.load(Ordering::Acquire),
            topic::DELETE => self.0.delete_published.load(Ordering::Acquire),
            _ => false,
        }
    }

    /// Tells the shim to exit and waits for that, unless it has other containers.
    pub(crate) async fn dismiss(&self, has_others: bool) {
        self.0.leaving.send_replace(true);
        let request = wire::ShutdownRequest { id: self.id_text(), now: false };
        let asked: Result<()> = self.call("Shutdown", &request, Some(self.limits().shutdown)).await;
        let hung_up = match asked {
            Ok(()) if has_others => return,
            Ok(()) => timeout(self.limits().shutdown, self.disconnected()).await.is_ok(),
            Err(error) => error.is(ErrorKind::Unavailable),
        };
        if !hung_up {
            tracing::debug!(namespace = %self.namespace(), id = %self.id(), "the shim does not go");
        }
    }

    /// Declares that the caller will delete the task after its end, even if the shim dies. Until then the bundle is
    /// kept, so that a daemon which dies earlier does not lose the exit.
    pub fn will_be_deleted(&self) {
        self.0.has_owner.store(true, Ordering::Release);
    }

    pub(crate) fn has_owner(&self) -> bool {
        self.0.has_owner.load(Ordering::Acquire)
    }

    /// Waits until no other call ends the shim for this task.
    pub(crate) async fn leave(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.leave.lock().await
    }

    /// Whether both are handles of one task, and not of two with the same id.
    pub(crate) fn is_same(&self, other: &Task) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether its shim lives and has no such container.
    pub(crate) async fn is_unknown_to_shim(&self) -> bool {
        self.state(None).await.is_err_and(|error| error.is(ErrorKind::NotFound))
    }

    pub(crate) fn is_leaving(&self) -> bool {
        *self.0.leaving.borrow()
    }

    /// Completes when the connection closes or the task is deleted.
    pub(crate) async fn disconnected_or_leaving(&self) {
        let mut leaving = self.0.leaving.subscribe();
        tokio::select! {
            () = self.disconnected() => {}
            // Cannot fail: `self` holds the sender.
            _ = leaving.wait_for(|leaving| *leaving) => {}
        }
    }

    /// Reports the task's exit to all waiters.
    pub(crate) fn end(&self, exit: Exit) {
        self.0.ended.send_replace(Some(exit));
    }

    /// Waits until the shim is dead and cleaned up after.
    pub(crate) async fn ended(&self) -> Exit {
        let mut ended = self.0.ended.subscribe();
        match ended.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => exit,
            // Unreachable: `self` holds the sender, and `wait_for` returns only if the value is set.
            _ => Exit { pid: 0, status: 255, at: Timestamp::default() },
        }
    }

    async fn call<M: Message + Default>(
        &self,
        method: &str,
        message: &impl Message,
        limit: Option<Duration>,
    ) -> Result<M> {
        self.0.connection.call(method, message, limit).await
    }

    fn id_text(&self) -> String {
        self.0.id.to_string()
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Task({}/{})", self.namespace(), self.id())
    }
}

fn text(exec: Option<&ExecId>) -> String {
    exec.map(ToString::to_string).unwrap_or_default()
}

/// Whether the process of a pidfd is dead or dies within [`DEATH_LIMIT`]. Blocks.
pub(crate) fn ends_soon(pidfd: &OwnedFd) -> bool {
    end_soon(&[pidfd]) == [true]
}

/// The same for several processes, which are waited for together.
pub(crate) fn end_soon(pidfds: &[impl AsFd]) -> Vec<bool> {
    let begun = Instant::now();
    let mut ended = vec![false; pidfds.len()];
    while ended.contains(&false) {
        let waited: Vec<usize> = (0..ended.len()).filter(|at| !ended[*at]).collect();
        let left = DEATH_LIMIT.saturating_sub(begun.elapsed());
        let left = Timespec::try_from(left).expect("a second fits");
        let mut polled: Vec<_> = waited.iter().map(|at| PollFd::new(&pidfds[*at], PollFlags::IN)).collect();
        match poll(&mut polled, Some(&left)) {
            Err(Errno::INTR) => {}
            Ok(1..) => {
                for (at, polled) in waited.into_iter().zip(&polled) {
                    ended[at] = !polled.revents().is_empty();
                }
            }
            _ => break,
        }
    }
    ended
}
