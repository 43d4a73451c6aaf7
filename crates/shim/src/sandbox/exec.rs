//! Further processes of a container: added by `Exec`, run by `Start`.
//!
//! If a step fails, no process is left running that the daemon does not know of.

use api::shim::events::{self, topic};
use api::shim::task;
use linux::process::PidFd;
use prost::Message;
use types::{Error, ErrorKind, Result};

use super::{Sandbox, wait_response};
use crate::oci::{self, Executed};
use crate::process::{Exit, Process, ProcessKey, Stage};
use crate::service::{Outcome, ReplyTo, answer};
use crate::stdio::open::{Inside, Outside, Streams};
use crate::stdio::{StdioConfig, Stream};
use crate::worker::{Answer, Worker};

impl Sandbox {
    pub(crate) fn exec(&mut self, request: task::ExecProcessRequest) -> Result<()> {
        types::ExecId::new(&request.exec_id)?;
        let container = self.container(&request.id)?;
        // Until the exit is published the container counts as running; a process added now is refused at its start.
        if !container.exit_held {
            self.check_init_lives(&request.id, "exec")?;
        }
        // As containerd's shim does. A process that was added before is refused at its start.
        if container.paused {
            return Err(Error::failed_precondition(format!(
                "container {}: cannot exec in a paused container; resume it first",
                request.id
            )));
        }
        if container.execs.contains_key(&request.exec_id) {
            return Err(Error::already_exists(format!("container {}: id {}", request.id, request.exec_id)));
        }
        let spec = request.spec.ok_or_else(|| Error::invalid_argument("exec without a process spec"))?;
        // Checked here, as by containerd's shim: a process that could never start is not added.
        oci::process(&spec.value).map_err(|error| {
            error.context(format!("exec {} in container {}", request.exec_id, request.id))
        })?;
        let key = self.add_process(Process {
            container: request.id.clone(),
            exec_id: request.exec_id.clone(),
            stage: Stage::Added { spec: spec.value, failed: false },
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

    pub(super) fn prepare_exec(&self, request: &task::StartRequest, key: ProcessKey) -> Result<Outside> {
        self.check_init_lives(&request.id, "exec")?;
        let process = self.process(key)?;
        let Stage::Added { .. } = &process.stage else {
            return Err(Error::failed_precondition("the process was started before"));
        };
        let owner = self.container(&request.id)?.owner(&self.namespace);
        self.on_host(|| Outside::open(&process.config, owner))
    }

    pub(super) fn begin_exec(
        &mut self,
        request: task::StartRequest,
        key: ProcessKey,
        outside: Result<Outside>,
        reply: ReplyTo,
    ) -> Result<Outcome> {
        let exec = request.clone();
        outside
            .and_then(|outside| self.try_exec(request, key, outside, reply))
            .map_err(|error| self.exec_failed(&exec, error))
    }

    fn try_exec(
        &mut self,
        request: task::StartRequest,
        key: ProcessKey,
        outside: Outside,
        reply: ReplyTo,
    ) -> Result<Outcome> {
        // The container may have ended while a worker waited for readers.
        self.check_init_lives(&request.id, "exec")?;
        let process = self.process(key)?;
        let Stage::Added { spec, .. } = &process.stage else {
            return Err(Error::failed_precondition("the process was started before"));
        };
        let spec = spec.clone();
        let owner = self.container(&request.id)?.owner(&self.namespace);
        let (ends, streams) = outside.split(process.config.terminal, owner)?;
        let container = self.container_mut(&request.id)?;
        let exec = oci::Exec { exec_id: &request.exec_id, spec: &spec };
        if !container.waits_for_others {
            let executed = container.oci.exec(exec, ends.into())?;
            return answer(self.finish_exec(&request, key, streams, executed));
        }
        let worker =
            Worker::begin_process(ends, |stdio| container.oci.exec(exec, stdio).map(Executed::into_done))?;
        self.begin_job(&request.id.clone(), Some(key), worker, reply, move |sandbox, answer| {
            if matches!(answer, Answer::Lost(_)) {
                sandbox.end_lost_exec(&request);
            }
            let executed = answer.result().and_then(Executed::from_done);
            executed
                .and_then(|executed| sandbox.finish_exec(&request, key, streams, executed))
                .map_err(|error| sandbox.exec_failed(&request, error))
        })
    }

    /// Adds context to the error of a failed start, and answers pending `Wait` calls of the process, as containerd's
    /// shim does: clients wait before they start.
    pub(super) fn exec_failed(&mut self, request: &task::StartRequest, error: Error) -> Error {
        if let Ok(key) = self.find(&request.id, &request.exec_id)
            && let Some(process) = self.processes.get_mut(&key)
            && let Stage::Added { failed, .. } = &mut process.stage
        {
            *failed = true;
            let waiting = std::mem::take(&mut process.waiting);
            let response = wait_response(Exit::NEVER).encode_to_vec();
            self.replies.extend(waiting.into_iter().map(|reply| (reply, Ok(response.clone()))));
        }
        error.context(format!("exec {} in container {}", request.exec_id, request.id))
    }

    /// Kills a further process that a worker may have started before it died.
    fn end_lost_exec(&mut self, request: &task::StartRequest) {
        let ended =
            self.container_mut(&request.id).and_then(|container| container.oci.end_exec(&request.exec_id));
        self.log_failed_kill(&request.id, ended);
        // A process of another worker's is unknown too, until that worker has reported.
        if !self.is_busy(&request.id) {
            let ended = self.kill_unknown_children(&request.id);
            self.log_failed_kill(&request.id, ended);
        }
    }

    /// Kills children of the shim in a container that it does not know. In a container with its own pid namespace, only
    /// processes of a dead worker are reparented to the shim.
    fn kill_unknown_children(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        if !container.owns_pids {
            return Ok(());
        }
        let known: Vec<u32> = self.processes.values().map(Process::pid_number).collect();
        for pid in container.oci.cgroup()?.processes()?.into_iter().filter(|pid| !known.contains(pid)) {
            match PidFd::open(pid) {
                // Only the shim reaps its children, so that the pid cannot be reused.
                Ok(process) if is_our_child(pid) => process.kill()?,
                Ok(_) => {}
                Err(error) if error.is(ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn finish_exec(
        &mut self,
        request: &task::StartRequest,
        key: ProcessKey,
        streams: Streams,
        mut executed: Executed,
    ) -> Result<task::StartResponse> {
        // Not reaped yet, so that its pid cannot be reused.
        let kill = || PidFd::open(oci::pid_number(executed.pid))?.kill();
        let joined = streams.join(executed.console.take());
        let stdio = joined.inspect_err(|_| {
            // The daemon would not know of it. It may have ended already.
            let _gone = kill();
        })?;
        if self.container(&request.id)?.exit_held {
            // The container ended while this process was being started.
            self.log_failed_kill(&request.id, kill());
        }
        for warning in &executed.warnings {
            self.log.warn(format_args!("exec {} in container {}: {warning}", request.exec_id, request.id));
        }
        let process = self.process_mut(key)?;
        process.stage = Stage::Running { pid: executed.pid };
        process.stdio = stdio;
        let pid = process.pid_number();
        let container = self.container(&request.id)?.key;
        self.publish(
            container,
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
        Ok(task::StartResponse { pid })
    }
}

/// Whether a process is a child of the shim, which alone can reap it.
pub(super) fn is_our_child(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    parent.is_some_and(|parent| parent.trim() == std::process::id().to_string())
}
