//! One task: calls to its shim.

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

/// How long a shim takes to die after its socket closed.
const DEATH_LIMIT: Duration = Duration::from_secs(1);

/// What a shim said of an end, to be told to several.
type Answered = Option<Result<Exit, (ErrorKind, String)>>;

/// A container that runs, or waits to be started or deleted. Clones are the same task.
#[derive(Clone)]
pub struct Task(Arc<Inner>);

struct Inner {
    namespace: Namespace,
    id: ContainerId,
    bundle: Bundle,
    program: Program,
    connection: Connection,
    /// Of the shim. Set once it has said who it is.
    shim: OnceLock<Arc<OwnedFd>>,
    /// Set when the shim is dead and cleaned up after.
    ended: watch::Sender<Option<Exit>>,
    /// The task was deleted in order: its shim may hang up, or stay for others.
    leaving: watch::Sender<bool>,
    /// The shim itself has told the exit, and the delete.
    exit_told: AtomicBool,
    delete_told: AtomicBool,
    /// See [`Task::will_be_deleted`].
    has_owner: AtomicBool,
    /// The ends that the shim is asked for, each once.
    waits: Mutex<BTreeMap<Option<ExecId>, Asking>>,
    log: Option<AbortHandle>,
}

/// An end that the shim is asked for.
struct Asking {
    tell: Arc<watch::Sender<Answered>>,
    asker: AbortHandle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(log) = &self.log {
            log.abort();
        }
    }
}

/// Methods that name a process take `None` for the container's first one.
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
            exit_told: AtomicBool::new(false),
            delete_told: AtomicBool::new(false),
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

    /// The directory that shim and daemon share.
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

    /// What the shim says, if it does in time.
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

    /// Waits for the end of the process, or of a creation that fails. Safe to cancel.
    pub async fn wait(&self, exec: Option<&ExecId>) -> Result<Exit> {
        loop {
            let outcome = tokio::select! {
                biased;
                // Then there may be another task of this id, with a shim at the same place.
                exit = self.ended() => return Ok(exit),
                outcome = self.ask_for_end(exec) => outcome,
            };
            match outcome {
                Ok(exit) => return Ok(exit),
                Err(error) if !error.is(ErrorKind::Unavailable) => return Err(error),
                // Either the shim is dead, and the one who watches it finds out how all this ended,
                // or the connection is made again.
                Err(_) => match timeout(DEATH_LIMIT, self.ended()).await {
                    Ok(exit) => return Ok(exit),
                    Err(_) => continue,
                },
            }
        }
    }

    /// A shim keeps a call until the process ends, also if nobody waits for it any more, and takes so many at most: all who
    /// wait share one.
    async fn ask_for_end(&self, exec: Option<&ExecId>) -> Result<Exit> {
        let mut answered = {
            let mut waits = self.waits();
            let ask = || {
                let tell = Arc::new(watch::Sender::new(None));
                let (task, exec, own) = (self.clone(), exec.cloned(), tell.clone());
                let asker = tokio::spawn(async move {
                    let request = wire::WaitRequest { id: task.id_text(), exec_id: text(exec.as_ref()) };
                    let outcome: Result<wire::WaitResponse> = task.call("Wait", &request, None).await;
                    // Whoever comes now asks anew. Of a process that was deleted meanwhile, another may be asked for.
                    task.waits().retain(|id, asking| *id != exec || !Arc::ptr_eq(&asking.tell, &own));
                    let exit = outcome
                        .map(|response| convert::exit(0, response.exit_status, response.exited_at))
                        .map_err(|error| (error.kind(), error.chain()));
                    own.send_replace(Some(exit));
                });
                Asking { tell, asker: asker.abort_handle() }
            };
            waits.entry(exec.cloned()).or_insert_with(ask).tell.subscribe()
        };
        let answer = answered.wait_for(Option::is_some).await.map(|answer| answer.clone());
        match answer {
            Ok(Some(exit)) => exit.map_err(|(kind, words)| Error::new(kind, words)),
            Ok(None) | Err(_) => Err(Error::internal("nobody asks the shim for the end any more")),
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

    /// Adds a process. It runs once it is started.
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

    /// Forgets a process that was added and has ended or never ran.
    pub async fn delete_exec(&self, exec: &ExecId) -> Result<Exit> {
        let exit = self.delete_process(exec.to_string(), None).await?;
        self.end_waits(exec, exit);
        Ok(exit)
    }

    /// Tells who waits for the end of a process that is deleted: shims of before never answer if it was not started.
    fn end_waits(&self, exec: &ExecId, exit: Exit) {
        let asking = self.waits().remove(&Some(exec.clone()));
        let Some(Asking { tell, asker }) = asking else { return };
        asker.abort();
        let never = || (ErrorKind::NotFound, "the process was deleted".to_owned());
        let has_ended = exit.at.seconds > 0;
        tell.send_replace(Some(has_ended.then_some(Exit { pid: 0, ..exit }).ok_or_else(never)));
    }

    fn waits(&self) -> MutexGuard<'_, BTreeMap<Option<ExecId>, Asking>> {
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

    /// Sets the size of the terminal of the first process, or of a further one.
    pub async fn resize(&self, exec: Option<&ExecId>, size: TerminalSize) -> Result<()> {
        let TerminalSize { rows: height, columns: width } = size;
        let request = wire::ResizePtyRequest { id: self.id_text(), exec_id: text(exec), width, height };
        self.call("ResizePty", &request, None).await
    }

    /// Closes standard input: the process sees its end.
    pub async fn close_stdin(&self, exec: Option<&ExecId>) -> Result<()> {
        let request = wire::CloseIoRequest { id: self.id_text(), exec_id: text(exec), stdin: true };
        self.call("CloseIO", &request, None).await
    }

    /// Lets somebody look at the first process through these pipes, and type. Their other ends must be open.
    ///
    /// `Unimplemented` if the shim is not ours, or of before.
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

    /// Changes limits: OCI `linux.resources` as an `Any` of JSON.
    pub async fn update(&self, resources: Option<Opaque>, annotations: Labels) -> Result<()> {
        let request = wire::UpdateTaskRequest {
            id: self.id_text(),
            resources: resources.map(convert::any),
            annotations: annotations.into_iter().collect(),
        };
        self.call("Update", &request, None).await
    }

    /// The cgroup's metrics as the shim packs them, if it does in time.
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

    /// Asks the shim who it is. Afterwards its death can be told from a lost connection.
    pub(crate) async fn meet(&self) -> Result<()> {
        if self.0.shim.get().is_some() {
            return Ok(());
        }
        let request = wire::ConnectRequest { id: self.id_text() };
        let response: wire::ConnectResponse =
            self.call("Connect", &request, Some(self.limits().state)).await?;
        let pid = i32::try_from(response.shim_pid).ok().and_then(Pid::from_raw);
        let pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        if let Some(pidfd) = pidfd {
            // Two who ask get one answer.
            let _ = self.0.shim.set(Arc::new(pidfd));
        }
        Ok(())
    }

    /// Makes sure that there is a connection.
    pub(crate) async fn connect(&self) -> Result<()> {
        self.0.connection.client().await.map(drop)
    }

    /// Ends when the connection does.
    pub(crate) async fn disconnected(&self) {
        self.0.connection.closed().await;
    }

    /// Whether the shim is dead, as far as it is known who it was.
    pub(crate) async fn shim_is_dead(&self) -> bool {
        let Some(pidfd) = self.0.shim.get().cloned() else { return false };
        spawn_blocking(move || ends_soon(&pidfd)).await.unwrap_or(false)
    }

    /// An event about the end of this task came from its shim.
    pub(crate) fn note_told(&self, topic: &str) {
        match topic {
            topic::EXIT => self.0.exit_told.store(true, Ordering::Release),
            topic::DELETE => self.0.delete_told.store(true, Ordering::Release),
            _ => {}
        }
    }

    pub(crate) fn is_told(&self, topic: &str) -> bool {
        match topic {
            topic::EXIT => self.0.exit_told.load(Ordering::Acquire),
            topic::DELETE => self.0.delete_told.load(Ordering::Acquire),
            _ => false,
        }
    }

    /// Asks the shim to go, and sees it off unless it has other containers to stay for.
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

    /// The caller will have it deleted when it has ended, also with its shim: its bundle is kept until then, so that a daemon
    /// which dies before has not lost how it ended.
    pub fn will_be_deleted(&self) {
        self.0.has_owner.store(true, Ordering::Release);
    }

    pub(crate) fn has_owner(&self) -> bool {
        self.0.has_owner.load(Ordering::Acquire)
    }

    pub(crate) fn is_leaving(&self) -> bool {
        *self.0.leaving.borrow()
    }

    /// Ends when the connection does, or nobody needs it any more.
    pub(crate) async fn disconnected_or_leaving(&self) {
        let mut leaving = self.0.leaving.subscribe();
        tokio::select! {
            () = self.disconnected() => {}
            // The other end is in this task.
            _ = leaving.wait_for(|leaving| *leaving) => {}
        }
    }

    /// Tells whoever waits how all this ended.
    pub(crate) fn end(&self, exit: Exit) {
        self.0.ended.send_replace(Some(exit));
    }

    /// Waits until the shim is dead and cleaned up after.
    pub(crate) async fn ended(&self) -> Exit {
        let mut ended = self.0.ended.subscribe();
        match ended.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => exit,
            // Cannot be: `self` holds the sender, and the condition is that it is there.
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

/// Whether the process behind a pidfd is dead or dies now. Blocks.
pub(crate) fn ends_soon(pidfd: &OwnedFd) -> bool {
    end_soon(&[pidfd]) == [true]
}

/// The same of each of several, which are waited for together.
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
