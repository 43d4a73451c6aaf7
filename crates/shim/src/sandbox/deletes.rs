//! Deletes, which wait until the exit is published and the output is read.

use std::time::{Duration, Instant};

use api::shim::events::{self, topic};
use api::shim::task;
use linux::process::PidFd;
use linux::signal::Signal;
use types::{Error, Result, UnlessGone as _};

use super::Sandbox;
use super::exec::is_our_child;
use crate::log_driver::{Driver, Leaving};
use crate::oci;
use crate::process::{Process, ProcessKey, Stage};
use crate::publisher::{JournalKey, wire_time};
use crate::record::{self, RuntimeRecord};
use crate::rootfs;
use crate::service::{Outcome, ReplyTo, answer};
use crate::stdio::copy::Copy;
use crate::stdio::open::Inside;
use crate::worker::{Answer, Done, Worker};

/// How long a delete waits for a process's last output to be read.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// A delete that waits for an exit event, or for output to drain.
pub(super) struct PendingDelete {
    reply: ReplyTo,
    process: ProcessKey,
    deadline: Instant,
}

impl Sandbox {
    pub(crate) fn delete(&mut self, request: &task::DeleteRequest, reply: ReplyTo) -> Result<Outcome> {
        let key = self.find(&request.id, &request.exec_id)?;
        match &self.process(key)?.stage {
            Stage::Running { .. } => {
                return Err(Error::failed_precondition("cannot delete a running process"));
            }
            // A created container was never started, and is killed. A process that failed to execute its program ends
            // by itself.
            Stage::Created { pid } => {
                let pid = oci::pid_number(*pid);
                let killed = self.container_mut(&request.id)?.oci.kill(Signal::KILL).unless_gone()?;
                // The runtime program, or its state, may be missing; then the shim kills the process itself.
                if killed.is_none()
                    && let Ok(first) = PidFd::open(pid)
                    && is_our_child(pid)
                {
                    let _gone = first.kill();
                }
            }
            Stage::Added { .. } | Stage::Frozen | Stage::Stopped { .. } => {}
        }
        self.deletes.push(PendingDelete { reply, process: key, deadline: Instant::now() + DRAIN_MAX });
        self.finish_deletes();
        Ok(Outcome::Later)
    }

    /// Carries out all deletes that are ready.
    pub(crate) fn finish_deletes(&mut self) {
        let now = Instant::now();
        let mut index = 0;
        while let Some(delete) = self.deletes.get(index) {
            let drained = |process: &Process| !process.has_output() || now >= delete.deadline;
            let process = self.processes.get(&delete.process);
            if process.is_some_and(|process| !self.is_over(process) || !drained(process)) {
                index += 1;
                continue;
            }
            let PendingDelete { reply, process, .. } = self.deletes.remove(index);
            match self.delete_now(process, reply) {
                Ok(Outcome::Later) => {}
                Ok(Outcome::Now(response)) => self.replies.push((reply, Ok(response))),
                Err(error) => self.replies.push((reply, Err(error))),
            }
        }
    }

    /// When deletes, stops, `Wait` calls or resting copies have to be looked at again, at the latest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let over = |delete: &&PendingDelete| {
            self.processes.get(&delete.process).is_none_or(|process| self.is_over(process))
        };
        let deletes = self.deletes.iter().filter(over).map(|delete| delete.deadline);
        let drivers = self.drivers.iter().map(Leaving::deadline);
        let copies = self.resting.iter().map(|(_, _, until)| *until);
        deletes.chain(drivers).chain(copies).chain(self.stop_deadline()).chain(self.waits().1).min()
    }

    /// Whether the process does not run, its exit is published, and no job is using it.
    pub(super) fn is_over(&self, process: &Process) -> bool {
        if self.has_job_in_the_way(&process.container, &process.exec_id) {
            return false;
        }
        let container = self.containers.get(&process.container);
        let is_held = process.exec_id.is_empty() && container.is_some_and(|container| container.exit_held);
        !process.is_alive() && !is_held
    }

    /// Signals log drivers that do not exit in time after their streams have ended.
    pub(crate) fn signal_late_drivers(&mut self) {
        self.drivers.retain_mut(Leaving::is_running);
    }

    /// The log drivers that have not exited yet, to be waited for when the shim ends.
    pub(crate) fn take_drivers(&mut self) -> Vec<Leaving> {
        std::mem::take(&mut self.drivers)
    }

    fn delete_now(&mut self, key: ProcessKey, reply: ReplyTo) -> Result<Outcome> {
        let process = self.processes.get(&key).ok_or_else(|| Error::not_found("the process was deleted"))?;
        let response = task::DeleteResponse {
            pid: process.pid_number(),
            exit_status: process.exit().map_or(0, |exit| exit.status),
            exited_at: Some(wire_time(process.exited_at())),
        };
        let (id, exec_id) = (process.container.clone(), process.exec_id.clone());
        if exec_id.is_empty() {
            return self.delete_container(&id, response, reply);
        }
        self.forget_process(key);
        if let Some(container) = self.containers.get_mut(&id) {
            container.execs.remove(&exec_id);
        }
        answer(Ok(response))
    }

    /// Removes everything that was set up. If something remains, the container is kept, so that another delete can try
    /// again: the record of what remains is the container itself.
    fn delete_container(
        &mut self,
        id: &str,
        response: task::DeleteResponse,
        reply: ReplyTo,
    ) -> Result<Outcome> {
        let container = self.container_mut(id)?;
        if !container.waits_for_others {
            let warnings = container.oci.delete(false)?;
            return answer(Ok(self.finish_delete(id, response, warnings)));
        }
        let work = || Ok(Done { warnings: container.oci.delete(true)?, ..Done::default() });
        let worker = Worker::begin(work)?;
        let about = id.to_owned();
        self.begin_job(id, None, worker, reply, move |sandbox, answer| {
            let warnings = match answer {
                Answer::Lost(error) => sandbox.take_down(&about).map(|()| vec![error.chain()])?,
                answer => answer.result()?.warnings,
            };
            Ok(sandbox.finish_delete(&about, response, warnings))
        })
    }

    /// Completes a delete that was cut off, without its hooks.
    fn take_down(&self, id: &str) -> Result<()> {
        let bundle = &self.container(id)?.bundle;
        let Some(runtime) = record::read::<RuntimeRecord>(bundle, record::RUNTIME)? else { return Ok(()) };
        oci::take_down(id, bundle, &runtime)
    }

    fn finish_delete(
        &mut self,
        id: &str,
        response: task::DeleteResponse,
        warnings: Vec<String>,
    ) -> task::DeleteResponse {
        for words in warnings {
            self.log.warn(format_args!("delete container {id}: {words}"));
        }
        let Some(container) = self.containers.remove(id) else { return response };
        for key in container.processes() {
            self.forget_process(key);
        }
        if container.rootfs_mounted
            && let Err(error) = rootfs::unmount(&container.bundle)
        {
            self.log.warn(format_args!("delete container {id}: {}", error.chain()));
        }
        self.publish(
            container.key,
            topic::DELETE,
            &events::TaskDelete {
                container_id: id.to_owned(),
                pid: response.pid,
                exit_status: response.exit_status,
                exited_at: response.exited_at,
                // Set for execs only, whose deletes are not published.
                id: String::new(),
            },
        );
        self.publisher.close_journal(JournalKey(container.key));
        response
    }

    /// Closes a deleted process's streams. Its log driver gets time to write the rest of its input; pending `Wait`
    /// calls, as for a process that never started, are answered.
    fn forget_process(&mut self, key: ProcessKey) {
        let Some(process) = self.processes.remove(&key) else { return };
        let gone = || Err(Error::not_found("the process was deleted"));
        self.replies.extend(process.waiting.into_iter().map(|reply| (reply, gone())));
        let Inside { mut copies, stdin_held, console, driver } = process.stdio;
        copies.iter_mut().flatten().for_each(Copy::leave);
        drop((copies, stdin_held, console));
        self.drivers.extend(driver.map(Driver::leave));
    }
}
