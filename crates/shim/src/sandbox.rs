//! The containers of this shim, and what the task API does with them.
//!
//! One owner, no locks: the loop calls these methods one at a time. None waits for a container; what
//! takes time is answered later ([`Sandbox::take_replies`]).
//!
//! Order of events: create < start < exit < delete; exec-added < exec-started < exec's exit; the exit
//! of the first process after those of all execs. An exit is on disk before it is told, and a delete waits
//! until it was.
//!
//! If a daemon asks for a sandbox in its sense, the containers are those of a [`pod`].

mod checkpoint;
mod deletes;
mod namespaces;
mod pod;

use std::collections::BTreeMap;
use std::path::PathBuf;

use api::shim::events::{self, topic};
use api::shim::runc;
use api::shim::task;
use api::shim::types::{ProcessInfo, Status, TypeUrl};
use linux::cgroup::OomWatch;
use linux::signal::{self, Signal};
use prost::Message;
use rustix::process::Pid;
use types::{Error, ErrorKind, Result, Timestamp};

use crate::container::Container;
use crate::log::Log;
use crate::log_driver::Leaving;
use crate::oci::{self, Frozen, Oci};
use crate::poll::{Interest, Poll, Source};
use crate::process::{Exit, Process, ProcessKey, Stage};
use crate::publisher::{JournalKey, Publisher, wire_time};
use crate::record::{self, ExitRecord, RuntimeRecord};
use crate::service::{Outcome, ReplyTo};
use crate::stdio::open::{Inside, Outside, Owner};
use crate::stdio::{Copy, StdioConfig, Stream, Wants};
use crate::{rootfs, stats};

use self::deletes::PendingDelete;
use self::pod::Pod;

/// The loop's buffer for copies that the kernel cannot do alone.
const BUFFER_LEN: usize = 16 << 10;

pub(crate) struct Sandbox {
    namespace: String,
    containers: BTreeMap<String, Container>,
    processes: BTreeMap<ProcessKey, Process>,
    next_key: u32,
    poll: Poll,
    pub publisher: Publisher,
    pub log: Log,
    buffer: Vec<u8>,
    /// Copies that used up their turn.
    turns: Vec<(ProcessKey, Stream)>,
    deletes: Vec<PendingDelete>,
    drivers: Vec<Leaving>,
    replies: Vec<(ReplyTo, Result<Vec<u8>>)>,
    closing: bool,
    pod: Option<Pod>,
}

/// A container's parts, on their way into the shim's tables.
struct Made {
    bundle: PathBuf,
    oci: Oci,
    stage: Stage,
    config: StdioConfig,
    stdio: Inside,
}

impl Sandbox {
    pub(crate) fn new(namespace: &str, poll: Poll, publisher: Publisher, log: Log) -> Sandbox {
        Sandbox {
            namespace: namespace.to_owned(),
            containers: BTreeMap::new(),
            processes: BTreeMap::new(),
            next_key: 0,
            poll,
            publisher,
            log,
            buffer: vec![0; BUFFER_LEN],
            turns: Vec::new(),
            deletes: Vec::new(),
            drivers: Vec::new(),
            replies: Vec::new(),
            closing: false,
            pod: None,
        }
    }

    pub(crate) fn poll(&self) -> &Poll {
        &self.poll
    }

    /// Answers that came due since the last call.
    pub(crate) fn take_replies(&mut self) -> Vec<(ReplyTo, Result<Vec<u8>>)> {
        std::mem::take(&mut self.replies)
    }

    /// Whether `Shutdown` was asked for and nothing is left to serve.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Nobody waits for these answers any more.
    pub(crate) fn forget(&mut self, connection: u32) {
        for process in self.processes.values_mut() {
            process.waiting.retain(|reply| reply.connection != connection);
        }
        self.forget_pod_calls(connection);
    }

    fn key(&mut self) -> u32 {
        self.next_key = self.next_key.checked_add(1).expect("no shim lives through 2^32 processes");
        self.next_key
    }
}

/// Calls.
impl Sandbox {
    pub(crate) fn create(&mut self, request: task::CreateTaskRequest) -> Result<task::CreateTaskResponse> {
        types::ContainerId::new(&request.id)?;
        if self.closing {
            return Err(Error::unavailable("the shim is about to end; start another"));
        }
        self.check_pod_is_ready()?;
        if self.containers.contains_key(&request.id) {
            return Err(Error::already_exists(format!("container {}", request.id)));
        }
        let options: runc::Options = options("runtime", request.options.as_ref())?;
        let bundle = PathBuf::from(&request.bundle);
        match self.create_in(&request, &options, bundle.clone()) {
            Ok(pid) => Ok(task::CreateTaskResponse { pid }),
            Err(error) => {
                if !request.rootfs.is_empty()
                    && let Err(leftover) = rootfs::unmount(&bundle)
                {
                    self.log.warn(leftover.chain());
                }
                Err(error.context(format!("create container {}", request.id)))
            }
        }
    }

    fn create_in(
        &mut self,
        request: &task::CreateTaskRequest,
        options: &runc::Options,
        bundle: PathBuf,
    ) -> Result<u32> {
        let config = StdioConfig {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let namespace = self.namespace.clone();
        let owner =
            Owner { namespace: &namespace, container: &request.id, uid: options.io_uid, gid: options.io_gid };
        let root = oci::state_root(options, &bundle, &namespace);
        let rootfs_mounted = !request.rootfs.is_empty();
        // Before anything is made that somebody may have to take down.
        record::write(
            &bundle,
            record::RUNTIME,
            &RuntimeRecord {
                version: 1,
                binary: options.binary_name.clone(),
                root: root.clone(),
                systemd_cgroup: options.systemd_cgroup,
                rootfs_mounted,
            },
        )?;
        rootfs::mount(&bundle, &request.rootfs)?;
        let outside = self.at_home(|| Outside::open(&config, owner))?;
        if !request.checkpoint.is_empty() {
            let images = PathBuf::from(&request.checkpoint);
            let frozen = Frozen { images, root, options: options.clone(), outside: Some(outside) };
            self.add_frozen(request, config, bundle, frozen)?;
            return Ok(0);
        }
        let create = oci::Create { id: &request.id, bundle: &bundle, root: &root, options };
        let (created, stdio) = if request.terminal {
            let mut created = Oci::create(create, oci::Stdio::Terminal)?;
            let console = created.take_console()?;
            (created, outside.into_console(console)?)
        } else {
            let (ends, inside) = outside.into_pipes(owner)?;
            (Oci::create(create, oci::Stdio::Pipes(ends))?, inside)
        };
        for warning in &created.warnings {
            self.log.warn(format_args!("container {}: {warning}", request.id));
        }
        let pid = created.pid.as_raw_nonzero().get() as u32;
        record::write_bytes(&bundle, record::INIT_PID, pid.to_string().as_bytes())?;

        let oci = created.oci;
        let stage = Stage::Created { pid: created.pid };
        let key = self.add_container(request, options, Made { bundle, oci, stage, config, stdio });
        self.watch(&request.id, key, created.owns_pids)?;
        self.publish_create(request, key, pid);
        Ok(pid)
    }

    /// Puts a container among the others. Answers with its key.
    fn add_container(
        &mut self,
        request: &task::CreateTaskRequest,
        options: &runc::Options,
        made: Made,
    ) -> u32 {
        let init = self.add_process(Process {
            container: request.id.clone(),
            exec_id: String::new(),
            stage: made.stage,
            config: made.config,
            stdio: made.stdio,
            waiting: Vec::new(),
        });
        let key = self.key();
        let container = Container {
            id: request.id.clone(),
            key,
            bundle: made.bundle,
            owns_pids: false,
            oci: made.oci,
            init,
            execs: BTreeMap::new(),
            paused: false,
            rootfs_mounted: !request.rootfs.is_empty(),
            oom: None,
            oom_seen: linux::cgroup::Oom::default(),
            exit_held: false,
            io_owner: (options.io_uid, options.io_gid),
        };
        self.publisher.open_journal(JournalKey(key), &container.bundle, &mut self.log);
        self.containers.insert(request.id.clone(), container);
        key
    }

    /// Follows what becomes of a container that has processes.
    fn watch(&mut self, id: &str, key: u32, owns_pids: bool) -> Result<()> {
        let watch = self.container(id)?.oci.watch_oom();
        let oom = self.watch_oom(key, watch, id);
        let container = self.container_mut(id)?;
        container.owns_pids = owns_pids;
        container.oom = oom;
        Ok(())
    }

    fn publish_create(&mut self, request: &task::CreateTaskRequest, key: u32, pid: u32) {
        self.publish(
            key,
            topic::CREATE,
            &events::TaskCreate {
                container_id: request.id.clone(),
                bundle: request.bundle.clone(),
                rootfs: request.rootfs.clone(),
                io: Some(events::TaskIo {
                    stdin: request.stdin.clone(),
                    stdout: request.stdout.clone(),
                    stderr: request.stderr.clone(),
                    terminal: request.terminal,
                }),
                checkpoint: request.checkpoint.clone(),
                pid,
            },
        );
    }

    /// Log drivers are the host's programs, not the pod's.
    fn at_home<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        match &self.pod {
            Some(pod) => pod.at_home(work),
            None => work(),
        }
    }

    fn watch_oom(&mut self, key: u32, watch: Result<OomWatch>, id: &str) -> Option<OomWatch> {
        let watch = watch.and_then(|watch| {
            use types::Context;
            self.poll.add(&watch, Source::Oom(key), Interest::Read).context(|| "watch for lost memory")?;
            Ok(watch)
        });
        watch
            .inspect_err(|error| {
                self.log.debug(format_args!("container {id}: no report of lost memory: {}", error.chain()));
            })
            .ok()
    }

    fn add_process(&mut self, process: Process) -> ProcessKey {
        let key = ProcessKey(self.key());
        self.processes.insert(key, process);
        for stream in Stream::ALL {
            self.advance_copy(key, stream);
        }
        key
    }

    pub(crate) fn start(&mut self, request: &task::StartRequest) -> Result<task::StartResponse> {
        let key = self.find(&request.id, &request.exec_id)?;
        let pid = if request.exec_id.is_empty() {
            self.start_init(&request.id, key)?
        } else {
            self.start_exec(request, key).map_err(|error| {
                error.context(format!("exec {} in container {}", request.exec_id, request.id))
            })?
        };
        Ok(task::StartResponse { pid })
    }

    fn start_init(&mut self, id: &str, key: ProcessKey) -> Result<u32> {
        if matches!(self.process(key)?.stage, Stage::Frozen) {
            self.bring_back(id, key)?;
            return self.publish_start(id, key);
        }
        let Some(Stage::Created { pid }) = self.processes.get(&key).map(|process| process.stage.clone())
        else {
            return Err(Error::failed_precondition(format!("container {id} was started before")));
        };
        self.container_mut(id)?
            .oci
            .start()
            .map_err(|error| error.context(format!("start container {id}")))?;
        self.process_mut(key)?.stage = Stage::Running { pid };
        self.publish_start(id, key)
    }

    fn publish_start(&mut self, id: &str, key: ProcessKey) -> Result<u32> {
        let pid = self.process(key)?.pid_number();
        let container = self.container(id)?.key;
        self.publish(container, topic::START, &events::TaskStart { container_id: id.to_owned(), pid });
        Ok(pid)
    }

    fn start_exec(&mut self, request: &task::StartRequest, key: ProcessKey) -> Result<u32> {
        self.check_init_lives(&request.id, "exec")?;
        let namespace = self.namespace.clone();
        let process = self.process_mut(key)?;
        let Stage::Added { spec } = &process.stage else {
            return Err(Error::failed_precondition("the process was started before"));
        };
        let (spec, config) = (spec.clone(), process.config.clone());
        let container = self.container(&request.id)?;
        let (container_key, (uid, gid)) = (container.key, container.io_owner);
        let owner = Owner { namespace: &namespace, container: &request.id, uid, gid };
        let outside = self.at_home(|| Outside::open(&config, owner))?;
        let oci = &mut self.container_mut(&request.id)?.oci;
        let exec = oci::Exec { exec_id: &request.exec_id, spec: &spec };
        let (executed, stdio) = if config.terminal {
            let mut executed = oci.exec(exec, oci::Stdio::Terminal)?;
            let console = executed.console.take();
            let console = console.ok_or_else(|| Error::internal("the runtime gave no console"))?;
            (executed, outside.into_console(console)?)
        } else {
            let (ends, inside) = outside.into_pipes(owner)?;
            (oci.exec(exec, oci::Stdio::Pipes(ends))?, inside)
        };
        for warning in &executed.warnings {
            self.log.warn(format_args!("exec {} in container {}: {warning}", request.exec_id, request.id));
        }
        let process = self.process_mut(key)?;
        process.stage = Stage::Running { pid: executed.pid };
        process.stdio = stdio;
        let pid = process.pid_number();
        self.publish(
            container_key,
            topic::EXEC_STARTED,
            &events::TaskExecStarted {
                container_id: request.id.clone(),
                exec_id: request.exec_id.clone(),
                pid,
            },
        );
        for stream in Stream::ALL {
            self.advance_copy(key, stream);
        }
        Ok(pid)
    }

    pub(crate) fn exec(&mut self, request: task::ExecProcessRequest) -> Result<()> {
        types::ExecId::new(&request.exec_id)?;
        self.check_init_lives(&request.id, "exec")?;
        let container = self.container(&request.id)?;
        if container.execs.contains_key(&request.exec_id) {
            return Err(Error::already_exists(format!(
                "exec {} in container {}",
                request.exec_id, request.id
            )));
        }
        let spec = request.spec.ok_or_else(|| Error::invalid_argument("exec without a process spec"))?;
        let key = self.add_process(Process {
            container: request.id.clone(),
            exec_id: request.exec_id.clone(),
            stage: Stage::Added { spec: spec.value },
            config: StdioConfig {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            stdio: Inside::default(),
            waiting: Vec::new(),
        });
        let container = self.container_mut(&request.id)?;
        container.execs.insert(request.exec_id.clone(), key);
        let container = container.key;
        self.publish(
            container,
            topic::EXEC_ADDED,
            &events::TaskExecAdded { container_id: request.id, exec_id: request.exec_id },
        );
        Ok(())
    }

    pub(crate) fn state(&self, request: &task::StateRequest) -> Result<task::StateResponse> {
        let container = self.container(&request.id)?;
        let process = self.process(self.find(&request.id, &request.exec_id)?)?;
        let exit = process.exit();
        let status = match process.stage {
            Stage::Stopped { .. } => Status::Stopped,
            _ if container.paused => Status::Paused,
            Stage::Added { .. } | Stage::Frozen | Stage::Created { .. } => Status::Created,
            Stage::Running { .. } => Status::Running,
        };
        Ok(task::StateResponse {
            id: request.id.clone(),
            bundle: container.bundle.to_string_lossy().into_owned(),
            pid: process.pid_number(),
            status: status.into(),
            stdin: process.config.stdin.clone(),
            stdout: process.config.stdout.clone(),
            stderr: process.config.stderr.clone(),
            terminal: process.config.terminal,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| wire_time(exit.at)),
            exec_id: request.exec_id.clone(),
        })
    }

    pub(crate) fn wait(&mut self, request: &task::WaitRequest, reply: ReplyTo) -> Result<Outcome> {
        let key = self.find(&request.id, &request.exec_id)?;
        let held = request.exec_id.is_empty() && self.container(&request.id)?.exit_held;
        let process = self.process_mut(key)?;
        match process.exit() {
            Some(exit) if !held => Ok(Outcome::Now(wait_response(exit).encode_to_vec())),
            _ => {
                process.waiting.push(reply);
                Ok(Outcome::Later)
            }
        }
    }

    pub(crate) fn kill(&mut self, request: &task::KillRequest) -> Result<()> {
        let key = self.find(&request.id, &request.exec_id)?;
        let signal = Signal::new(request.signal)?;
        let process = self.process(key)?;
        match &process.stage {
            Stage::Added { .. } | Stage::Frozen => {
                Err(Error::failed_precondition("the process was not started"))
            }
            // The kill of all is for what the first process may have left.
            Stage::Stopped { .. } if request.all && request.exec_id.is_empty() => {
                self.container_mut(&request.id)?.oci.kill_all(signal)
            }
            Stage::Stopped { .. } => Err(Error::not_found("process already finished")),
            Stage::Created { .. } | Stage::Running { .. } if !request.exec_id.is_empty() => {
                let pid = process.pid().expect("a process that lives has a pid");
                signal::send(pid, signal)
            }
            Stage::Created { .. } | Stage::Running { .. } => {
                let oci = &mut self.container_mut(&request.id)?.oci;
                if request.all { oci.kill_all(signal) } else { oci.kill(signal) }
            }
        }
    }

    pub(crate) fn pids(&self, request: &task::PidsRequest) -> Result<task::PidsResponse> {
        let container = self.container(&request.id)?;
        let execs: BTreeMap<u32, &str> = container
            .execs
            .iter()
            .filter_map(|(id, key)| Some((self.processes.get(key)?.pid_number(), id.as_str())))
            .collect();
        let processes = container
            .oci
            .pids()?
            .into_iter()
            .map(|pid| ProcessInfo {
                pid,
                info: execs
                    .get(&pid)
                    .map(|id| api::shim::pack(&runc::ProcessDetails { exec_id: (*id).to_owned() })),
            })
            .collect();
        Ok(task::PidsResponse { processes })
    }

    pub(crate) fn pause(&mut self, request: &task::PauseRequest) -> Result<()> {
        self.check_init_lives(&request.id, "pause")?;
        let container = self.container_mut(&request.id)?;
        container.oci.pause()?;
        container.paused = true;
        let key = container.key;
        self.publish(key, topic::PAUSED, &events::TaskPaused { container_id: request.id.clone() });
        Ok(())
    }

    pub(crate) fn resume(&mut self, request: &task::ResumeRequest) -> Result<()> {
        self.check_init_lives(&request.id, "resume")?;
        let container = self.container_mut(&request.id)?;
        container.oci.resume()?;
        container.paused = false;
        let key = container.key;
        self.publish(key, topic::RESUMED, &events::TaskResumed { container_id: request.id.clone() });
        Ok(())
    }

    pub(crate) fn resize_pty(&mut self, request: &task::ResizePtyRequest) -> Result<()> {
        let key = self.find(&request.id, &request.exec_id)?;
        let clamp = |size: u32| u16::try_from(size).unwrap_or(u16::MAX);
        match &self.process(key)?.stdio.console {
            Some(console) => console.resize(clamp(request.width), clamp(request.height)),
            None => Ok(()),
        }
    }

    pub(crate) fn close_io(&mut self, request: &task::CloseIoRequest) -> Result<()> {
        let key = self.find(&request.id, &request.exec_id)?;
        if request.stdin {
            self.process_mut(key)?.stdio.stdin_held = None;
            self.advance_copy(key, Stream::Stdin);
        }
        Ok(())
    }

    pub(crate) fn update(&mut self, request: &task::UpdateTaskRequest) -> Result<()> {
        self.check_init_lives(&request.id, "update")?;
        let resources =
            request.resources.as_ref().ok_or_else(|| Error::invalid_argument("update without resources"))?;
        self.container_mut(&request.id)?.oci.update(&resources.value)
    }

    pub(crate) fn stats(&self, request: &task::StatsRequest) -> Result<task::StatsResponse> {
        let figures = self.container(&request.id)?.oci.stats()?;
        Ok(task::StatsResponse { stats: Some(stats::pack(&figures)) })
    }

    pub(crate) fn connect(&self, request: &task::ConnectRequest) -> Result<task::ConnectResponse> {
        let init = self.containers.get(&request.id).map(|container| container.init);
        let init = init.and_then(|key| self.processes.get(&key));
        Ok(task::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: init.map_or(0, Process::pid_number),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    /// Ends the shim, unless it has containers or a pod.
    pub(crate) fn shutdown(&mut self, _request: &task::ShutdownRequest) -> Result<()> {
        self.closing |= self.containers.is_empty() && self.pod.is_none();
        Ok(())
    }
}

/// What happens to processes.
impl Sandbox {
    fn publish<M: Message + TypeUrl>(&mut self, container: u32, topic: &str, event: &M) {
        self.publisher.publish(JournalKey(container), topic, event, &mut self.log);
    }

    /// Reaps every child that has ended: processes of containers, and orphans that came to us.
    pub(crate) fn reap(&mut self) {
        let mut ended = Vec::new();
        while let Ok(Some((pid, status))) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
            let status = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => code,
                (None, Some(signal)) => 128 + signal,
                (None, None) => continue,
            };
            let at = Timestamp::now();
            if let Some(key) = self.living(pid) {
                ended.push((key, Exit { status: status as u32, at }));
            }
        }
        // Execs first, so that a first process's exit is not held up by what ended before it.
        ended.sort_by_key(|(key, _)| {
            self.processes.get(key).is_some_and(|process| process.exec_id.is_empty())
        });
        for (key, exit) in ended {
            self.take_exit(key, exit);
        }
        self.finish_deletes();
    }

    fn living(&self, pid: Pid) -> Option<ProcessKey> {
        self.processes
            .iter()
            .find(|(_, process)| process.is_alive() && process.pid() == Some(pid))
            .map(|(key, _)| *key)
    }

    fn take_exit(&mut self, key: ProcessKey, exit: Exit) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.advance_copy(key, stream);
        }
        let Some(process) = self.processes.get_mut(&key) else { return };
        process.stage = Stage::Stopped { pid: process.pid(), exit };
        // Nobody reads its input any more.
        process.stdio.stdin_held = None;
        process.stdio.copies[Stream::Stdin as usize] = None;
        let (id, is_init) = (process.container.clone(), process.exec_id.is_empty());
        if is_init {
            self.take_init_exit(&id, exit);
        } else {
            self.tell_exit(key);
        }
        self.release_held_exit(&id);
    }

    fn take_init_exit(&mut self, id: &str, exit: Exit) {
        self.take_oom(id);
        let Some(container) = self.containers.get_mut(id) else { return };
        container.exit_held = true;
        container.paused = false;
        if !container.owns_pids
            && let Err(error) = container.oci.kill_all(Signal::KILL)
            && !error.is(ErrorKind::NotFound)
        {
            self.log.warn(format_args!("end what container {id} left: {}", error.chain()));
        }
        let record = ExitRecord {
            version: 1,
            id: id.to_owned(),
            pid: self.processes.get(&container.init).map_or(0, Process::pid_number),
            status: exit.status,
            exited_at: exit.at,
            oom_killed: container.oom_seen.kills > 0,
            oom_kills: container.oom_seen.kills,
            oom_events: container.oom_seen.events,
        };
        if let Err(error) = record::write(&container.bundle, record::EXIT, &record) {
            self.log.warn(format_args!("container {id}: {}", error.chain()));
        }
    }

    /// Tells the first process's exit once all execs have ended.
    fn release_held_exit(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let alive = |key: &ProcessKey| self.processes.get(key).is_some_and(Process::is_alive);
        if container.exit_held && !container.execs.values().any(alive) {
            container.exit_held = false;
            let init = container.init;
            self.tell_exit(init);
        }
    }

    /// Publishes an exit and answers those who waited for it.
    fn tell_exit(&mut self, key: ProcessKey) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        let Some(exit) = process.exit() else { return };
        let response = wait_response(exit).encode_to_vec();
        let waiting = std::mem::take(&mut process.waiting);
        self.replies.extend(waiting.into_iter().map(|reply| (reply, Ok(response.clone()))));
        let Some(container) = self.containers.get(&process.container) else { return };
        let event = events::TaskExit {
            container_id: process.container.clone(),
            id: process.event_id().to_owned(),
            pid: process.pid_number(),
            exit_status: exit.status,
            exited_at: Some(wire_time(exit.at)),
        };
        let container = container.key;
        self.publish(container, topic::EXIT, &event);
    }

    /// The kernel says that a container ran out of memory.
    pub(crate) fn oom(&mut self, key: u32) {
        let id = self.containers.values().find(|container| container.key == key);
        if let Some(id) = id.map(|container| container.id.clone()) {
            self.take_oom(&id);
        }
    }

    fn take_oom(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(watch) = &mut container.oom else { return };
        match watch.take() {
            Ok(oom) if oom.events > 0 || oom.kills > 0 => {
                container.oom_seen.events += oom.events;
                container.oom_seen.kills += oom.kills;
                let container = container.key;
                self.publish(container, topic::OOM, &events::TaskOom { container_id: id.to_owned() });
            }
            Ok(_) => {}
            Err(error) => {
                // It would be reported again and again.
                container.oom = None;
                self.log.warn(format_args!("container {id}: {}", error.chain()));
            }
        }
    }
}

/// Standard streams.
impl Sandbox {
    /// Copies that had their turn and want another.
    pub(crate) fn has_turns(&self) -> bool {
        !self.turns.is_empty()
    }

    pub(crate) fn take_turns(&mut self) {
        for (key, stream) in std::mem::take(&mut self.turns) {
            self.advance_copy(key, stream);
        }
    }

    /// Moves what can be moved, then has the loop call again when there is more.
    pub(crate) fn advance_copy(&mut self, key: ProcessKey, stream: Stream) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        let slot = &mut process.stdio.copies[stream as usize];
        let Some(copy) = slot else { return };
        let wants = copy.advance(stream == Stream::Stdin, &mut self.buffer);
        let armed = arm(&self.poll, copy, wants, Source::Copy(key, stream));
        match (wants, armed) {
            (Wants::Nothing, _) => {
                *slot = None;
                self.finish_deletes();
            }
            (Wants::Turn, _) | (_, Err(_)) => self.turns.push((key, stream)),
            (Wants::Source | Wants::Sink, Ok(())) => {}
        }
    }
}

/// `Err` for a descriptor that is always ready.
fn arm(poll: &Poll, copy: &Copy, wants: Wants, source: Source) -> std::io::Result<()> {
    match (wants, copy.sink()) {
        (Wants::Source, _) => poll.arm(copy.source(), source, Interest::Read),
        (Wants::Sink, Some(sink)) => poll.arm(sink, source, Interest::Write),
        (Wants::Sink, None) | (Wants::Turn | Wants::Nothing, _) => Ok(()),
    }
}

/// Lookups.
impl Sandbox {
    fn container(&self, id: &str) -> Result<&Container> {
        self.containers.get(id).ok_or_else(|| no_container(id))
    }

    fn container_mut(&mut self, id: &str) -> Result<&mut Container> {
        self.containers.get_mut(id).ok_or_else(|| no_container(id))
    }

    fn find(&self, id: &str, exec_id: &str) -> Result<ProcessKey> {
        let container = self.container(id)?;
        if exec_id.is_empty() {
            return Ok(container.init);
        }
        let key = container.execs.get(exec_id).copied();
        key.ok_or_else(|| Error::not_found(format!("process {exec_id} does not exist in container {id}")))
    }

    fn process(&self, key: ProcessKey) -> Result<&Process> {
        self.processes.get(&key).ok_or_else(|| Error::not_found("the process was deleted"))
    }

    fn process_mut(&mut self, key: ProcessKey) -> Result<&mut Process> {
        self.processes.get_mut(&key).ok_or_else(|| Error::not_found("the process was deleted"))
    }

    fn check_init_lives(&self, id: &str, what: &str) -> Result<()> {
        let init = self.process(self.container(id)?.init)?;
        match init.stage {
            Stage::Frozen => {
                Err(Error::failed_precondition(format!("cannot {what} a container in a checkpoint")))
            }
            _ if init.is_alive() => Ok(()),
            _ => Err(Error::failed_precondition(format!("cannot {what} a stopped container"))),
        }
    }
}

fn no_container(id: &str) -> Error {
    Error::not_found(format!("container {id} does not exist"))
}

fn wait_response(exit: Exit) -> task::WaitResponse {
    task::WaitResponse { exit_status: exit.status, exited_at: Some(wire_time(exit.at)) }
}

/// Options of another kind than this are for another runtime, and not ours to read.
fn options<M: Message + TypeUrl + Default>(what: &str, any: Option<&prost_types::Any>) -> Result<M> {
    match any.and_then(api::shim::unpack::<M>) {
        None => Ok(M::default()),
        Some(options) => options
            .map_err(|error| Error::invalid_argument(format!("malformed {what} options")).with_source(error)),
    }
}
