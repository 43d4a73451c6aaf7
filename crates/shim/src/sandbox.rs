//! The containers of this shim, and the methods of the task API.
//!
//! One owner, no locks: the loop calls these methods one at a time. None blocks on a container: responses that take
//! time are sent later ([`Sandbox::take_replies`]), and operations that wait for hooks, criu or an external runtime are
//! run by a copy of the shim ([`jobs`]).
//!
//! Order of events: create < start < exit < delete; exec-added < exec-started < exec's exit; the exit of the first
//! process after those of all execs. An exit is on disk before it is published, and a delete waits for that.
//!
//! If a daemon creates a sandbox (sandbox API), the containers are those of a [`pod`].

mod checkpoint;
mod create;
mod deletes;
mod exec;
mod exits;
mod holder;
mod jobs;
mod namespaces;
mod pod;
mod start;

use std::collections::BTreeMap;
use std::io::ErrorKind::PermissionDenied;
use std::time::{Duration, Instant};

use api::shim::attach::AttachRequest;
use api::shim::events::{self, topic};
use api::shim::runc;
use api::shim::task;
use api::shim::types::{ProcessInfo, Status, TypeUrl};
use linux::process::PidFd;
use linux::signal::Signal;
use prost::Message;
use ttrpc::Request;
use types::{Context, Error, Result};

use crate::container::Container;
use crate::log::Log;
use crate::log_driver::Leaving;
use crate::poll::{Interest, Poll, Source};
use crate::process::{Exit, Process, ProcessKey, Stage};
use crate::publisher::{JournalKey, Publisher, wire_time};
use crate::service::{Outcome, ReplyTo};
use crate::stats;
use crate::stdio::open::Joining;
use crate::stdio::{Copy, Stream, Wants};

pub(crate) use self::create::PendingCreate;
use self::deletes::PendingDelete;
use self::jobs::Job;
use self::pod::Pod;

/// The loop's buffer for copies that splice(2) cannot do.
const BUFFER_LEN: usize = 16 << 10;

/// How long copies rest whose descriptors the kernel has no room to watch.
const COPY_PAUSE: Duration = Duration::from_millis(100);

/// Pending `Wait` calls. More are refused, so that there is always room for calls that end processes.
const WAITS_MAX: usize = ttrpc::CALLS_MAX / 2;

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
    /// Copies that cannot be polled for, until when they rest.
    resting: Vec<(ProcessKey, Stream, Instant)>,
    deletes: Vec<PendingDelete>,
    jobs: Vec<Job>,
    /// Calls that wait for the end of a job.
    queued_calls: Vec<(Request, ReplyTo)>,
    queue_moves: bool,
    drivers: Vec<Leaving>,
    replies: Vec<(ReplyTo, Result<Vec<u8>>)>,
    closing: bool,
    pod: Option<Pod>,
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
            resting: Vec::new(),
            deletes: Vec::new(),
            jobs: Vec::new(),
            queued_calls: Vec::new(),
            queue_moves: false,
            drivers: Vec::new(),
            replies: Vec::new(),
            closing: false,
            pod: None,
        }
    }

    pub(crate) fn poll(&self) -> &Poll {
        &self.poll
    }

    /// Responses that became ready since the last call.
    pub(crate) fn take_replies(&mut self) -> Vec<(ReplyTo, Result<Vec<u8>>)> {
        std::mem::take(&mut self.replies)
    }

    /// Whether `Shutdown` was called and nothing is left to serve.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Drops the pending calls of a closed connection.
    pub(crate) fn forget(&mut self, connection: u32) {
        self.each_waiting(&mut |waiting| waiting.retain(|reply| reply.connection != connection));
        self.queued_calls.retain(|(_, reply)| reply.connection != connection);
    }

    /// Answers `Wait` calls whose deadline has passed.
    pub(crate) fn finish_waits(&mut self) {
        let (now, mut late) = (Instant::now(), Vec::new());
        self.each_waiting(&mut |waiting| {
            late.extend(waiting.extract_if(.., |reply| reply.until.is_some_and(|until| until <= now)));
        });
        let over = || Err(Error::deadline_exceeded("it did not end in the time that the caller gave"));
        self.replies.extend(late.into_iter().map(|reply| (reply, over())));
    }

    /// The number of pending `Wait` calls, and when the next deadline is.
    fn waits(&self) -> (usize, Option<Instant>) {
        let (mut count, mut first) = (0, None);
        let of_processes = self.processes.values().map(|process| &process.waiting);
        for reply in of_processes.chain(self.pod.iter().map(|pod| &pod.waiting)).flatten() {
            count += 1;
            first = first.into_iter().chain(reply.until).min();
        }
        (count, first)
    }

    /// Visits all pending `Wait` calls.
    fn each_waiting(&mut self, visit: &mut dyn FnMut(&mut Vec<ReplyTo>)) {
        self.processes.values_mut().for_each(|process| visit(&mut process.waiting));
        self.pod.iter_mut().for_each(|pod| visit(&mut pod.waiting));
    }

    fn check_takes_wait(&self) -> Result<()> {
        if self.waits().0 < WAITS_MAX {
            return Ok(());
        }
        Err(Error::resource_exhausted("too many calls wait already; close the connection to forget them"))
    }

    fn publish<M: Message + TypeUrl>(&mut self, container: u32, topic: &str, event: &M) {
        self.publisher.publish(JournalKey(container), topic, event, &mut self.log);
    }

    fn key(&mut self) -> u32 {
        self.next_key = self.next_key.checked_add(1).expect("no shim lives through 2^32 processes");
        self.next_key
    }
}

/// Calls about existing containers.
impl Sandbox {
    pub(crate) fn state(&self, request: &task::StateRequest) -> Result<task::StateResponse> {
        if let Some(being_created) = self.state_while_created(request) {
            return Ok(being_created);
        }
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
            exited_at: Some(wire_time(process.exited_at())),
            exec_id: request.exec_id.clone(),
        })
    }

    pub(crate) fn wait(&mut self, request: &task::WaitRequest, reply: ReplyTo) -> Result<Outcome> {
        let key = self.find(&request.id, &request.exec_id)?;
        let held = request.exec_id.is_empty() && self.container(&request.id)?.exit_held;
        if let Some(exit) = self.process(key)?.exit().filter(|_| !held) {
            return Ok(Outcome::Now(wait_response(exit).encode_to_vec()));
        }
        if matches!(self.process(key)?.stage, Stage::Added { failed: true, .. }) {
            return Ok(Outcome::Now(wait_response(Exit::NEVER).encode_to_vec()));
        }
        self.check_takes_wait()?;
        self.process_mut(key)?.waiting.push(reply);
        Ok(Outcome::Later)
    }

    pub(crate) fn kill(&mut self, request: &task::KillRequest) -> Result<()> {
        if request.signal == 0 {
            return self.look_for(&request.id, &request.exec_id);
        }
        let signal = Signal::new(request.signal)?;
        let ended_job = signal == Signal::KILL && self.kill_job_of(&request.id, &request.exec_id);
        let key = match self.find(&request.id, &request.exec_id) {
            // Its job, which was still creating it, was killed.
            Err(_) if ended_job => return Ok(()),
            found => found?,
        };
        let process = self.process(key)?;
        match &process.stage {
            Stage::Added { .. } | Stage::Frozen | Stage::Stopped { .. } if ended_job => Ok(()),
            Stage::Added { .. } | Stage::Frozen => {
                Err(Error::failed_precondition("the process was not started"))
            }
            // `all` is also for processes that the first one may have left.
            Stage::Stopped { .. } if request.all && request.exec_id.is_empty() => {
                self.container_mut(&request.id)?.oci.kill_all(signal)
            }
            Stage::Stopped { .. } => Err(Error::not_found("process already finished")),
            Stage::Created { .. } | Stage::Running { .. } if !request.exec_id.is_empty() => {
                // Not reaped yet, so that its pid cannot be reused.
                PidFd::open(process.pid_number())?.signal(signal.number().unsigned_abs())
            }
            Stage::Created { .. } | Stage::Running { .. } => {
                let oci = &mut self.container_mut(&request.id)?.oci;
                if request.all { oci.kill_all(signal) } else { oci.kill(signal) }
            }
        }
    }

    /// Signal 0 (kill(2)): whether the process exists.
    fn look_for(&self, id: &str, exec_id: &str) -> Result<()> {
        match &self.process(self.find(id, exec_id)?)?.stage {
            Stage::Created { .. } | Stage::Running { .. } => Ok(()),
            Stage::Added { .. } | Stage::Frozen => {
                Err(Error::failed_precondition("the process was not started"))
            }
            Stage::Stopped { .. } => Err(Error::not_found("process already finished")),
        }
    }

    pub(crate) fn pids(&self, request: &task::PidsRequest) -> Result<task::PidsResponse> {
        let container = self.container(&request.id)?;
        // The pid of a process that has ended may have been reused.
        let alive = |key: &ProcessKey| self.processes.get(key).filter(|process| process.is_alive());
        let execs: BTreeMap<u32, &str> = container
            .execs
            .iter()
            .filter_map(|(id, key)| Some((alive(key)?.pid_number(), id.as_str())))
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
        let init = self.container(&request.id)?.init;
        // As containerd's shim does, whatever the runtime would do.
        if !matches!(self.process(init)?.stage, Stage::Running { .. }) {
            let why =
                format!("pause container {}: it is created, and not running; start it first", request.id);
            return Err(Error::failed_precondition(why));
        }
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

    /// Attaches a client to the streams of a container's first process.
    pub(crate) fn attach(&mut self, request: &AttachRequest) -> Result<()> {
        self.check_init_lives(&request.id, "attach to")?;
        let key = self.container(&request.id)?.init;
        let joining = Joining::open(&request.stdin, &request.stdout, &request.stderr)?;
        let about = || format!("attach to container {}", request.id);
        self.process_mut(key)?.stdio.join(joining).context(about)?;
        self.advance_copy(key, Stream::Stdin);
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
        self.closing |= self.containers.is_empty() && self.jobs.is_empty() && self.pod.is_none();
        Ok(())
    }
}

/// Standard streams.
impl Sandbox {
    /// Whether copies wait for another turn, or calls no longer wait for a job.
    pub(crate) fn has_turns(&self) -> bool {
        !self.turns.is_empty() || self.queue_moves
    }

    pub(crate) fn take_turns(&mut self) {
        let now = Instant::now();
        let rested = self.resting.extract_if(.., |(_, _, until)| *until <= now);
        self.turns.extend(rested.map(|(key, stream, _)| (key, stream)));
        for (key, stream) in std::mem::take(&mut self.turns) {
            self.advance_copy(key, stream);
        }
    }

    /// Copies what can be copied now, then polls for more.
    pub(crate) fn advance_copy(&mut self, key: ProcessKey, stream: Stream) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        let slot = &mut process.stdio.copies[stream as usize];
        let Some(copy) = slot else { return };
        let wants = copy.advance(stream == Stream::Stdin, &mut self.buffer);
        let armed = arm(&self.poll, copy, wants, Source::Copy(key, stream));
        self.resting.retain(|(of, its, _)| (*of, *its) != (key, stream));
        match (wants, armed) {
            (Wants::Nothing, _) => {
                *slot = None;
                self.finish_deletes();
            }
            // Out of memory, or of epoll's `max_user_watches`: a turn at once, and the next, would use up a processor.
            (Wants::Source | Wants::Sink, Err(error)) if error.kind() != PermissionDenied => {
                self.resting.push((key, stream, Instant::now() + COPY_PAUSE));
            }
            (Wants::Turn, _) | (_, Err(_)) => self.turns.push((key, stream)),
            (Wants::Source | Wants::Sink, Ok(())) => {}
        }
    }
}

/// `PermissionDenied` for a descriptor that is always ready.
fn arm(poll: &Poll, copy: &Copy, wants: Wants, source: Source) -> std::io::Result<()> {
    match (wants, copy.sink()) {
        (Wants::Source, _) => copy.sources().try_for_each(|from| poll.arm(from, source, Interest::Read)),
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
        key.ok_or_else(|| Error::not_found(format!("container {id}: process does not exist {exec_id}")))
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

/// Decodes options; empty ones are the defaults. Options of another type are for another runtime, and are refused as by
/// containerd's own shim, since they would have no effect.
fn options<M: Message + TypeUrl + Default>(what: &str, any: Option<&prost_types::Any>) -> Result<M> {
    let Some(any) = any.filter(|any| !any.value.is_empty()) else { return Ok(M::default()) };
    let Some(options) = api::shim::unpack::<M>(any) else {
        let (found, taken) = (&any.type_url, M::TYPE_URL);
        return Err(Error::invalid_argument(format!(
            "{what} options of type {found:?}: this shim takes {taken}"
        )));
    };
    options.map_err(|error| Error::invalid_argument(format!("malformed {what} options")).with_source(error))
}

#[cfg(test)]
mod tests {
    use api::shim::pack;

    use super::*;

    #[test]
    fn options_of_another_kind_are_refused_where_they_say_something() {
        let read = |any: &prost_types::Any| options::<runc::Options>("runtime", Some(any));
        let own = runc::Options { no_pivot_root: true, ..runc::Options::default() };
        assert_eq!(read(&pack(&own)).unwrap(), own);
        assert_eq!(options::<runc::Options>("runtime", None).unwrap(), runc::Options::default());
        // Default options encode to no bytes, whatever their type.
        assert_eq!(read(&pack(&runc::CheckpointOptions::default())).unwrap(), runc::Options::default());
        let other = runc::ConfigPath { config_path: "/etc/own.toml".into() };
        let error = read(&pack(&other)).unwrap_err();
        assert_eq!(error.kind(), types::ErrorKind::InvalidArgument);
        assert!(error.chain().contains("\"runtimeoptions.v1.Options\""), "{error:?}");
        let broken = prost_types::Any { value: vec![0xff], ..pack(&own) };
        assert!(read(&broken).unwrap_err().chain().contains("malformed runtime options"));
    }
}
