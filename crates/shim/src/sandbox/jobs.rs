//! Jobs: calls that a [`Worker`] carries out because they block on other programs.
//!
//! A container has one job at a time, or several starts of execs side by side, as one that hangs must not block others.
//! In the meantime queries are answered, and the container can be killed, with its jobs; calls that change the
//! container are queued, so that they are executed in the same order as without workers.

use api::shim::task;
use linux::signal::SIGKILL;
use prost::Message;
use ttrpc::Request;
use types::{Error, ErrorKind, Result, Timestamp};

use super::Sandbox;
use crate::poll::{Interest, Source};
use crate::process::ProcessKey;
use crate::publisher::wire_time;
use crate::service::{Outcome, ReplyTo};
use crate::stdio::open::Outside;
use crate::worker::{Answer, Done, Worker};

/// Continues a call with the worker's answer. Its outcome is the call's response, unless another job follows.
type Then = Box<dyn FnOnce(&mut Sandbox, Answer, ReplyTo) -> Result<Outcome>>;
/// The same, with the opened streams.
pub(super) type WithStreams = Box<dyn FnOnce(&mut Sandbox, Result<Outside>, ReplyTo) -> Result<Outcome>>;

pub(super) struct Job {
    key: u32,
    container: String,
    /// The exec that it starts.
    exec: Option<ProcessKey>,
    worker: Worker,
    then: Then,
    reply: ReplyTo,
    /// It was killed by a SIGKILL for its container or exec.
    killed: bool,
}

impl Sandbox {
    /// Adds a job: when the worker answers, the loop calls `then`. `exec` is the exec that the worker starts, if any.
    pub(super) fn begin_job<M: Message>(
        &mut self,
        container: &str,
        exec: Option<ProcessKey>,
        worker: Worker,
        reply: ReplyTo,
        then: impl FnOnce(&mut Sandbox, Answer) -> Result<M> + 'static,
    ) -> Result<Outcome> {
        self.begin_step(container, exec, worker, reply, |sandbox, answer, _| {
            crate::service::answer(then(sandbox, answer))
        })
    }

    /// The same for a call that may take several jobs. `then` gets the address of the response.
    pub(super) fn begin_step(
        &mut self,
        container: &str,
        exec: Option<ProcessKey>,
        worker: Worker,
        reply: ReplyTo,
        then: impl FnOnce(&mut Sandbox, Answer, ReplyTo) -> Result<Outcome> + 'static,
    ) -> Result<Outcome> {
        self.add_job(container.to_owned(), exec, worker, reply, Box::new(then));
        Ok(Outcome::Later)
    }

    fn add_job(
        &mut self,
        container: String,
        exec: Option<ProcessKey>,
        worker: Worker,
        reply: ReplyTo,
        then: Then,
    ) {
        let key = self.key();
        if let Err(error) = self.poll.add(&worker, Source::Worker(key), Interest::Read) {
            self.log.warn(format_args!("container {container}: watch a worker: {error}"));
            // SIGCHLD will report its end, and the job is lost like any other.
            worker.kill();
        }
        self.jobs.push(Job { key, container, exec, worker, then, reply, killed: false });
    }

    /// Calls `then` once clients have opened the outputs that they named for reading, or a timeout is over, for which a
    /// worker waits. `exec` is the exec whose outputs they are.
    pub(super) fn when_read(
        &mut self,
        container: &str,
        exec: Option<ProcessKey>,
        outside: Outside,
        reply: ReplyTo,
        then: WithStreams,
    ) -> Result<Outcome> {
        let unread = outside.unread();
        if unread.is_empty() {
            return then(self, Ok(outside), reply);
        }
        let wait = || {
            outside.wait_for_readers();
            Ok(Done::default())
        };
        match Worker::begin_with(&unread, Box::new(wait)) {
            Ok(worker) => self.begin_step(container, exec, worker, reply, |sandbox, answer, reply| {
                then(sandbox, answer.result().and_then(|_| outside.settle()), reply)
            }),
            Err(error) => then(self, Err(error), reply),
        }
    }

    pub(super) fn is_busy(&self, container: &str) -> bool {
        self.jobs.iter().any(|job| job.container == container)
    }

    /// Whether a job blocks an operation on a container, or on one of its execs alone.
    pub(super) fn has_job_in_the_way(&self, container: &str, exec_id: &str) -> bool {
        let is_of_another =
            |exec: ProcessKey| self.processes.get(&exec).is_some_and(|process| process.exec_id != exec_id);
        let is_beside = |job: &Job| !exec_id.is_empty() && job.exec.is_some_and(is_of_another);
        self.jobs.iter().any(|job| job.container == container && !is_beside(job))
    }

    /// Whether a call has to wait for a job of its container. Then it is queued for [`Sandbox::take_queue`].
    pub(crate) fn defers(&mut self, request: &Request, reply: ReplyTo) -> bool {
        const UNCHANGING: [&str; 9] =
            ["State", "Wait", "Kill", "Pids", "Stats", "Connect", "CloseIO", "ResizePty", "Shutdown"];
        if self.jobs.is_empty() && self.queued_calls.is_empty()
            || UNCHANGING.contains(&request.method.as_str())
        {
            return false;
        }
        // Calls for one container stay in order.
        let has_queued = |id: &str| {
            self.queued_calls.iter().any(|(other, _)| subject(other).is_some_and(|own| own.id == id))
        };
        let waits = subject(request)
            .is_some_and(|of| self.has_job_in_the_way(&of.id, &of.exec_id) || has_queued(&of.id));
        if waits {
            self.queued_calls.push((request.clone(), reply));
        }
        waits
    }

    /// Queued calls, once a job has ended. Some may have to wait again.
    pub(crate) fn take_queue(&mut self) -> Vec<(Request, ReplyTo)> {
        if std::mem::take(&mut self.queue_moves) {
            std::mem::take(&mut self.queued_calls)
        } else {
            Vec::new()
        }
    }

    /// Continues a job whose worker has answered.
    pub(crate) fn advance_job(&mut self, key: u32) {
        let index = self.jobs.iter().position(|job| job.key == key);
        if let Some(index) = index
            && let Some(answer) = self.jobs[index].worker.answer()
        {
            self.finish_job(index, answer);
        }
    }

    /// A child was reaped. If it was a worker, its job is finished before other children's ends are handled.
    pub(super) fn note_worker_end(&mut self, pid: u32) {
        if let Some(index) = self.jobs.iter().position(|job| job.worker.pid() == pid) {
            let answer = self.jobs[index].worker.last_answer();
            self.finish_job(index, answer);
        }
    }

    /// Continues all jobs whose workers have answered.
    pub(super) fn advance_jobs(&mut self) {
        for key in self.jobs.iter().map(|job| job.key).collect::<Vec<_>>() {
            self.advance_job(key);
        }
    }

    fn finish_job(&mut self, index: usize, answer: Answer) {
        let job = self.jobs.remove(index);
        // A process that the worker left may hold a copy of the socket, which would keep reporting events.
        let _gone = self.poll.remove(&job.worker);
        if matches!(answer, Answer::Lost(_)) {
            // Only the worker may have been killed, as by the OOM killer; its children go too.
            job.worker.kill();
            job.worker.wait();
        }
        let answer = match answer {
            Answer::Lost(_) if job.killed => {
                let why = "it was killed while this was under way";
                Answer::Lost(Error::new(ErrorKind::Cancelled, why))
            }
            other => other,
        };
        match (job.then)(self, answer, job.reply) {
            // The kill was for every job of the container, including the one that was just added.
            Ok(Outcome::Later) if job.killed => {
                self.kill_jobs(|next| next.container == job.container);
            }
            Ok(Outcome::Later) => {}
            Ok(Outcome::Now(response)) => {
                if job.killed {
                    // The worker had finished before the signal, which is then for the process that it has made.
                    self.kill_made(&job.container, job.exec);
                }
                self.replies.push((job.reply, Ok(response)));
            }
            Err(error) => {
                self.log.debug(format_args!("container {}: {}", job.container, error.chain()));
                self.replies.push((job.reply, Err(error)));
            }
        }
        self.queue_moves = true;
        self.release_held_exit(&job.container);
    }

    fn kill_made(&mut self, id: &str, exec: Option<ProcessKey>) {
        let exec = exec.and_then(|key| self.processes.get(&key));
        let exec_id = exec.map(|process| process.exec_id.clone()).unwrap_or_default();
        let request =
            task::KillRequest { id: id.to_owned(), exec_id, signal: SIGKILL, ..task::KillRequest::default() };
        let killed = self.kill(&request);
        self.log_failed_kill(id, killed);
    }

    /// Logs that a process could not be killed after its job was.
    pub(super) fn log_failed_kill(&mut self, id: &str, killed: Result<()>) {
        if let Err(error) = killed
            && !error.is(ErrorKind::NotFound)
        {
            self.log.warn(format_args!("kill container {id}: {}", error.chain()));
        }
    }

    /// Kills the jobs of a container, or the start of one exec.
    pub(super) fn kill_job_of(&mut self, id: &str, exec_id: &str) -> bool {
        if exec_id.is_empty() {
            return self.kill_jobs(|job| job.container == id);
        }
        self.find(id, exec_id).is_ok_and(|exec| self.kill_jobs(|job| job.exec == Some(exec)))
    }

    /// Kills the matching jobs. False if there are none.
    ///
    /// A delete among them may hang in a hook; the rest of its container is then removed without hooks.
    pub(super) fn kill_jobs(&mut self, is_meant: impl Fn(&Job) -> bool) -> bool {
        let mut any = false;
        for job in self.jobs.iter_mut().filter(|job| is_meant(job)) {
            job.worker.kill();
            job.killed = true;
            any = true;
        }
        any
    }

    /// Containers that are being created.
    pub(super) fn being_created(&self) -> impl Iterator<Item = &str> {
        let busy = self.jobs.iter().map(|job| job.container.as_str());
        busy.filter(|id| !self.containers.contains_key(*id))
    }

    /// The state of a container that is being created: its status alone.
    pub(super) fn state_while_created(&self, request: &task::StateRequest) -> Option<task::StateResponse> {
        let is_being_created = self.being_created().any(|id| id == request.id);
        is_being_created.then(|| task::StateResponse {
            id: request.id.clone(),
            status: api::shim::types::Status::Created.into(),
            exited_at: Some(wire_time(Timestamp::NEVER)),
            ..task::StateResponse::default()
        })
    }
}

/// The object of a call: a container, or one of its execs.
#[derive(Clone, PartialEq, Message)]
struct Subject {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    exec_id: String,
}

/// Every request about a container has its id as field 1. Those about one process have the exec id as field 2.
fn subject(request: &Request) -> Option<Subject> {
    let payload = request.payload.as_slice();
    match request.method.as_str() {
        "Exec" | "Start" | "Delete" => Subject::decode(payload).ok(),
        _ => {
            let id = task::ConnectRequest::decode(payload).ok()?.id;
            Some(Subject { id, exec_id: String::new() })
        }
    }
}
