//! The shim itself: the task service, of one container.
//!
//! ```text
//! Create ─▶ created ─ Start ─▶ running ─ it exits, or Kill ─▶ stopped ─ Delete ─▶ gone ─ Shutdown ─▶ the shim ends
//! Exec   ─▶ added   ─ Start ─▶ running ─                  ─▶ stopped ─ Delete ─▶ gone
//! ```
//!
//! An exec id that is empty means the container's first process. When that ends, the others are ended too.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use api::shim::events::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIo, TaskStart, topic,
};
use api::shim::task::*;
use api::shim::types::{ProcessInfo, Status};
use prost::Message;
use tokio::process::Child;
use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;
use ttrpc::Request;
use types::spec::runtime::Spec;
use types::{Context, Error, Result};

use crate::events::Events;
use crate::process::{Ended, Io, Process};
use crate::start::remove_socket;
use crate::{Flags, container, log};

/// How long the last events may take when the shim is told to go. A daemon gives it three seconds.
const FAREWELL_MAX: Duration = Duration::from_secs(2);

struct Shim {
    id: String,
    events: Events,
    container: Mutex<Option<Container>>,
    leave: Notify,
}

struct Container {
    bundle: PathBuf,
    /// By exec id.
    processes: BTreeMap<String, Process>,
}

/// Serves on the socket that is standard input, until `Shutdown`.
pub(crate) fn serve(flags: &Flags) -> Result<()> {
    let listener = std::io::stdin().as_fd().try_clone_to_owned().map(UnixListener::from);
    let listener = listener.context(|| "take the listening socket")?;
    listener.set_nonblocking(true).context(|| "take the listening socket")?;
    let address = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
    // One thread: most of its life a shim does nothing, and there are many of them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context(|| "start the shim")?.block_on(async {
        let listener =
            tokio::net::UnixListener::from_std(listener).context(|| "take the listening socket")?;
        let (events, delivery) = Events::new(&flags.namespace, address);
        let shim = Arc::new(Shim {
            id: flags.id.clone(),
            events,
            container: Mutex::default(),
            leave: Notify::new(),
        });
        let served = shim.clone();
        let serving = tokio::spawn(ttrpc::asynchronous::serve(listener, move |request| {
            let shim = served.clone();
            async move { shim.call(&request).await }
        }));
        shim.leave.notified().await;
        // Before the daemon sees the shim end: it may use the bundle and the id again from then on.
        remove_socket(Path::new("."));
        serving.abort();
        // Once it has ended, its socket and its connections are closed, and the last senders of events dropped.
        let _aborted = serving.await;
        drop(shim);
        let _last = tokio::time::timeout(FAREWELL_MAX, delivery).await;
        Ok(())
    })
}

impl Shim {
    /// Versions 2 and 3 of the task API differ in the name of the service.
    async fn call(self: Arc<Self>, request: &Request) -> Result<Vec<u8>> {
        if ![SERVICE_V2, SERVICE_V3].contains(&request.service.as_str()) {
            return Err(request.unknown_service());
        }
        match request.method.as_str() {
            "Create" => answer(self.create(request.read()?)),
            "Start" => answer(self.start(request.read()?).await),
            "Exec" => answer(self.exec(request.read()?)),
            "State" => answer(self.state(&request.read()?)),
            "Pids" => answer(self.pids()),
            "Kill" => answer(self.kill(&request.read()?)),
            "Wait" => answer(self.wait(request.read()?).await),
            "CloseIO" => answer(self.close_io(&request.read()?)),
            "Delete" => answer(self.delete(request.read()?).await),
            "Connect" => answer(self.connect()),
            "Shutdown" => answer(self.shutdown(&request.read()?)),
            // Pause, Resume, Checkpoint, Update, Stats, ResizePty
            _ => Err(request.unknown_method()),
        }
    }

    fn create(self: &Arc<Self>, request: CreateTaskRequest) -> Result<CreateTaskResponse> {
        let mut place = self.place();
        if place.is_some() {
            return Err(Error::already_exists(format!("container {}", self.id)));
        }
        if !request.checkpoint.is_empty() {
            return Err(Error::unimplemented("containers of checkpoints"));
        }
        let bundle = PathBuf::from(&request.bundle);
        let spec = std::fs::read(bundle.join("config.json")).context(|| "read the container's spec")?;
        let spec: Spec = parse(&spec)?;
        let CreateTaskRequest { stdin, stdout, stderr, .. } = request;
        let io = Io { stdin, stdout, stderr };
        let mut first = Process::new(spec.process.unwrap_or_default(), io.clone())?;
        container::mount(&bundle, request.rootfs.clone())?;
        let child = first.spawn(&bundle).inspect_err(|_| {
            // The first error counts; the daemon runs `delete` afterwards.
            let _left = container::end(&bundle);
        })?;
        let pid = first.pid();
        *place = Some(Container { bundle, processes: [(String::new(), first)].into() });
        let created = TaskCreate {
            container_id: self.id.clone(),
            bundle: request.bundle,
            rootfs: request.rootfs,
            io: Some(TaskIo { stdin: io.stdin, stdout: io.stdout, stderr: io.stderr, terminal: false }),
            checkpoint: String::new(),
            pid,
        };
        self.events.publish(topic::CREATE, &created);
        tokio::spawn(self.clone().watch(String::new(), child));
        Ok(CreateTaskResponse { pid })
    }

    fn exec(&self, request: ExecProcessRequest) -> Result<()> {
        let mut place = self.place();
        let container = self.found(&mut place)?;
        let ExecProcessRequest { exec_id, stdin, stdout, stderr, .. } = request;
        if container.processes.contains_key(&exec_id) {
            return Err(Error::already_exists(format!("process {exec_id:?}")));
        }
        let process =
            Process::new(parse(&request.spec.unwrap_or_default().value)?, Io { stdin, stdout, stderr })?;
        container.processes.insert(exec_id.clone(), process);
        self.events.publish(topic::EXEC_ADDED, &TaskExecAdded { container_id: self.id.clone(), exec_id });
        Ok(())
    }

    async fn start(self: &Arc<Self>, request: StartRequest) -> Result<StartResponse> {
        let (outcome, mut ended) = self.try_start(&request.exec_id)?;
        if outcome.is_err() {
            // The process is about to end. A client that gets the error may delete it at once.
            let _ended = ended.wait_for(Option::is_some).await;
        }
        outcome.map(|pid| StartResponse { pid })
    }

    fn try_start(self: &Arc<Self>, exec_id: &str) -> Result<(Result<u32>, watch::Receiver<Option<Ended>>)> {
        let mut place = self.place();
        let container = self.found(&mut place)?;
        let container_id = self.id.clone();
        if !exec_id.is_empty() && container.process("")?.status() != Status::Running {
            return Err(Error::failed_precondition(format!("container {container_id} does not run")));
        }
        let bundle = container.bundle.clone();
        let process = container.process(exec_id)?;
        if process.status() != Status::Created {
            return Err(Error::failed_precondition(format!("process {exec_id:?} was started already")));
        }
        if !exec_id.is_empty() {
            let child = process.spawn(&bundle)?;
            tokio::spawn(self.clone().watch(exec_id.to_owned(), child));
        }
        let (ended, pid) = (process.ended.subscribe(), process.pid());
        let started = process.start().inspect_err(|_| {
            // `init` reports an error, or hangs: in both cases it is killed.
            let _gone = process.signal(9);
        });
        match (&started, exec_id) {
            (Err(_), _) => {}
            (Ok(()), "") => self.events.publish(topic::START, &TaskStart { container_id, pid }),
            (Ok(()), exec_id) => {
                let exec_id = exec_id.to_owned();
                self.events.publish(topic::EXEC_STARTED, &TaskExecStarted { container_id, exec_id, pid });
            }
        }
        Ok((started.map(|()| pid), ended))
    }

    /// Waits for the end of a process, and publishes the exit.
    async fn watch(self: Arc<Self>, exec_id: String, mut child: Child) {
        let pid = child.id().unwrap_or_default();
        let status = match child.wait().await {
            Ok(status) => status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()),
            // Cannot happen: nothing else reaps this child.
            Err(_) => 255,
        };
        let ended = Ended { status: status.cast_unsigned(), at: SystemTime::now().into() };
        if exec_id.is_empty() {
            self.end_others().await;
        }
        let mut place = self.place();
        let process = self.found(&mut place).and_then(|container| container.process(&exec_id));
        if let Ok(process) = process {
            process.ended.send_replace(Some(ended));
        }
        let id = if exec_id.is_empty() { self.id.clone() } else { exec_id };
        let exited = TaskExit {
            container_id: self.id.clone(),
            id,
            pid,
            exit_status: ended.status,
            exited_at: Some(ended.at),
        };
        self.events.publish(topic::EXIT, &exited);
    }

    /// The end of the first process is that of the container: its exit is the last.
    async fn end_others(&self) {
        let (bundle, others) = {
            let mut place = self.place();
            let Ok(container) = self.found(&mut place) else { return };
            let spawned =
                container.processes.iter().filter(|(id, process)| !id.is_empty() && process.pid() != 0);
            let others: Vec<_> = spawned.map(|(_, process)| process.ended.subscribe()).collect();
            (container.bundle.clone(), others)
        };
        if let Err(error) = kill(bundle).await {
            log(&error.context("end the other processes"));
        }
        for mut other in others {
            // An error means that the process was deleted meanwhile.
            let _ended = other.wait_for(Option::is_some).await;
        }
    }

    fn state(&self, request: &StateRequest) -> Result<StateResponse> {
        let mut place = self.place();
        let container = self.found(&mut place)?;
        let bundle = container.bundle.display().to_string();
        let process = container.process(&request.exec_id)?;
        let ended = *process.ended.borrow();
        let Io { stdin, stdout, stderr } = process.io.clone();
        Ok(StateResponse {
            id: self.id.clone(),
            bundle,
            pid: process.pid(),
            status: process.status().into(),
            stdin,
            stdout,
            stderr,
            terminal: false,
            exit_status: ended.map_or(0, |ended| ended.status),
            exited_at: ended.map(|ended| ended.at),
            exec_id: request.exec_id.clone(),
        })
    }

    fn pids(&self) -> Result<PidsResponse> {
        let mut place = self.place();
        let members = container::members(&self.found(&mut place)?.bundle)?;
        let processes = members.into_iter().map(|(pid, _)| ProcessInfo { pid, info: None }).collect();
        Ok(PidsResponse { processes })
    }

    fn kill(&self, request: &KillRequest) -> Result<()> {
        let mut place = self.place();
        let container = self.found(&mut place)?;
        if !request.all {
            return container.process(&request.exec_id)?.signal(request.signal);
        }
        for (_, process) in container::members(&container.bundle)? {
            // A process that has ended meanwhile needs no signal.
            let _gone = process.signal(request.signal);
        }
        Ok(())
    }

    async fn wait(&self, request: WaitRequest) -> Result<WaitResponse> {
        let mut ended = self.found(&mut self.place())?.process(&request.exec_id)?.ended.subscribe();
        let ended = ended.wait_for(Option::is_some).await.ok().and_then(|ended| *ended);
        let ended = ended.ok_or_else(|| Error::not_found("the process was deleted"))?;
        Ok(WaitResponse { exit_status: ended.status, exited_at: Some(ended.at) })
    }

    fn close_io(&self, request: &CloseIoRequest) -> Result<()> {
        if request.stdin {
            self.found(&mut self.place())?.process(&request.exec_id)?.close_stdin();
        }
        Ok(())
    }

    async fn delete(&self, request: DeleteRequest) -> Result<DeleteResponse> {
        let exec_id = request.exec_id;
        let (bundle, pid, mut ended) = {
            let mut place = self.place();
            let container = self.found(&mut place)?;
            let bundle = container.bundle.clone();
            let process = container.process(&exec_id)?;
            match process.status() {
                Status::Running => {
                    return Err(Error::failed_precondition(format!(
                        "process {exec_id:?} runs; kill it first"
                    )));
                }
                // A process that waits to be started does not have the root yet by which `kill` finds it.
                Status::Created if exec_id.is_empty() => process.signal(9)?,
                _ => {}
            }
            (bundle, process.pid(), process.ended.subscribe())
        };
        if exec_id.is_empty() {
            kill(bundle.clone()).await?;
        }
        let ended = match pid {
            // An exec that was never started.
            0 => Ended::default(),
            _ => ended.wait_for(Option::is_some).await.ok().and_then(|ended| *ended).unwrap_or_default(),
        };
        let deleted = DeleteResponse { pid, exit_status: ended.status, exited_at: Some(ended.at) };
        let mut place = self.place();
        if !exec_id.is_empty() {
            self.found(&mut place)?.processes.remove(&exec_id);
            return Ok(deleted);
        }
        container::end(&bundle)?;
        *place = None;
        let event = TaskDelete {
            container_id: self.id.clone(),
            pid,
            exit_status: ended.status,
            exited_at: Some(ended.at),
            id: String::new(),
        };
        self.events.publish(topic::DELETE, &event);
        Ok(deleted)
    }

    fn connect(&self) -> Result<ConnectResponse> {
        let task_pid = self.found(&mut self.place())?.process("")?.pid();
        Ok(ConnectResponse { shim_pid: std::process::id(), task_pid, version: String::new() })
    }

    /// Daemons ask after each container; a shim of a pod would stay for the others.
    fn shutdown(&self, request: &ShutdownRequest) -> Result<()> {
        if request.now || self.place().is_none() {
            self.leave.notify_one();
        }
        Ok(())
    }

    fn place(&self) -> MutexGuard<'_, Option<Container>> {
        self.container.lock().expect("no panic holds this lock")
    }

    fn found<'p>(&self, place: &'p mut Option<Container>) -> Result<&'p mut Container> {
        place.as_mut().ok_or_else(|| Error::not_found(format!("container {}", self.id)))
    }
}

impl Container {
    fn process(&mut self, exec_id: &str) -> Result<&mut Process> {
        let found = self.processes.get_mut(exec_id);
        found.ok_or_else(|| Error::not_found(format!("process {exec_id:?}")))
    }
}

async fn kill(bundle: PathBuf) -> Result<()> {
    let killed = spawn_blocking(move || container::kill(&bundle)).await;
    killed.map_err(|panic| Error::internal("end the processes").with_source(panic))?
}

fn parse<T: serde::de::DeserializeOwned>(text: &[u8]) -> Result<T> {
    serde_json::from_slice(text)
        .map_err(|error| Error::invalid_argument("read an OCI spec").with_source(error))
}

fn answer<M: Message>(outcome: Result<M>) -> Result<Vec<u8>> {
    outcome.map(|message| message.encode_to_vec())
}
