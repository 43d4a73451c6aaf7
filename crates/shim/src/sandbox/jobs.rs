//! Jobs: calls that a [`Worker`] carries out, since they wait for others, and what is done in the meantime.
//!
//! A container has one job at a time, or starts of further processes side by side, as one that hangs must not keep others
//! out. What is asked about a container is answered meanwhile, and it can be killed; calls that change it wait in line, so
//! that nothing comes in between that would not without workers. SIGKILL ends its jobs too.

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

/// What is done with the answer: the rest of the call. Its outcome goes to whoever called, unless a further job has it.
type Then = Box<dyn FnOnce(&mut Sandbox, Answer, ReplyTo) -> Result<Outcome>>;
/// The same, with the streams that were waited for.
pub(super) type WithStreams = Box<dyn FnOnce(&mut Sandbox, Result<Outside>, ReplyTo) -> Result<Outcome>>;

pub(super) struct Job {
    key: u32,
    container: String,
    /// The further process that it starts.
    exec: Option<ProcessKey>,
    worker: Worker,
    then: Then,
    reply: ReplyTo,
    /// SIGKILL came for it.
    killed: bool,
}

impl Sandbox {
    /// Has the loop wait for a worker, and go on with `then`. `exec` is the further process that it starts, if it does.
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

    /// The same for a call that may take more than one job. `then` is told to whom its outcome goes.
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
            // Its end is heard of as that of a child, and the job is lost like any other.
            worker.kill();
        }
        self.jobs.push(Job { key, container, exec, worker, then, reply, killed: false });
    }

    /// Goes on with `then` once clients read the outputs that they named, or have had their time for that. A worker
    /// waits; `exec` is the further process whose outputs they are.
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

    /// Whether a job is in the way of what is to be done with a container, or with a further process of it alone.
    pub(super) fn has_job_in_the_way(&self, container: &str, exec_id: &str) -> bool {
        let is_of_another =
            |exec: ProcessKey| self.processes.get(&exec).is_some_and(|process| process.exec_id != exec_id);
        let is_beside = |job: &Job| !exec_id.is_empty() && job.exec.is_some_and(is_of_another);
        self.jobs.iter().any(|job| job.container == container && !is_beside(job))
    }

    /// Whether a call has to wait until a job of its container is over. Then it is kept, and comes up again in
    /// [`Sandbox::take_line`].
    pub(crate) fn puts_off(&mut self, request: &Request, reply: ReplyTo) -> bool {
        const UNCHANGING: [&str; 9] =
            ["State", "Wait", "Kill", "Pids", "Stats", "Connect", "CloseIO", "ResizePty", "Shutdown"];
        if self.jobs.is_empty() && self.line.is_empty() || UNCHANGING.contains(&request.method.as_str()) {
            return false;
        }
        // Nobody gets in before those who wait.
        let has_line =
            |id: &str| self.line.iter().any(|(other, _)| subject(other).is_some_and(|own| own.id == id));
        let waits = subject(request)
            .is_some_and(|of| self.has_job_in_the_way(&of.id, &of.exec_id) || has_line(&of.id));
        if waits {
            self.line.push((request.clone(), reply));
        }
        waits
    }

    /// Calls that may be carried out now, or have to wait for the next job.
    pub(crate) fn take_line(&mut self) -> Vec<(Request, ReplyTo)> {
        if std::mem::take(&mut self.line_moves) { std::mem::take(&mut self.line) } else { Vec::new() }
    }

    /// Goes on with a job whose worker has answered.
    pub(crate) fn advance_job(&mut self, key: u32) {
        let index = self.jobs.iter().position(|job| job.key == key);
        if let Some(index) = index
            && let Some(answer) = self.jobs[index].worker.answer()
        {
            self.finish_job(index, answer);
        }
    }

    /// A child was reaped. If it was a worker, its job is finished before anything is made of other children.
    pub(super) fn note_worker_end(&mut self, pid: u32) {
        if let Some(index) = self.jobs.iter().position(|job| job.worker.pid() == pid) {
            let answer = self.jobs[index].worker.last_answer();
            self.finish_job(index, answer);
        }
    }

    /// Goes on with all jobs that can.
    pub(super) fn advance_jobs(&mut self) {
        for key in self.jobs.iter().map(|job| job.key).collect::<Vec<_>>() {
            self.advance_job(key);
        }
    }

    fn finish_job(&mut self, index: usize, answer: Answer) {
        let job = self.jobs.remove(index);
        // A process that the worker left may have a copy, which would go on telling.
        let _gone = self.poll.remove(&job.worker);
        if matches!(answer, Answer::Lost(_)) {
            // It may have been killed alone, for want of memory.
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
            // The kill was for all that is done with the container, the job that was begun just now included.
            Ok(Outcome::Later) if job.killed => {
                self.kill_jobs(|next| next.container == job.container);
            }
            Ok(Outcome::Later) => {}
            Ok(Outcome::Now(response)) => {
                if job.killed {
                    // The worker had done its work before the signal, which then is for what it has made.
                    self.kill_made(&job.container, job.exec);
                }
                self.replies.push((job.reply, Ok(response)));
            }
            Err(error) => {
                self.log.debug(format_args!("container {}: {}", job.container, error.chain()));
                self.replies.push((job.reply, Err(error)));
            }
        }
        self.line_moves = true;
        self.release_held_exit(&job.container);
    }

    fn kill_made(&mut self, id: &str, exec: Option<ProcessKey>) {
        let exec = exec.and_then(|key| self.processes.get(&key));
        let exec_id = exec.map(|process| process.exec_id.clone()).unwrap_or_default();
        let request =
            task::KillRequest { id: id.to_owned(), exec_id, signal: SIGKILL, ..task::KillRequest::default() };
        let killed = self.kill(&request);
        self.note_late_kill(id, killed);
    }

    /// Says if something goes on that was to be killed when its job was over.
    pub(super) fn note_late_kill(&mut self, id: &str, killed: Result<()>) {
        if let Err(error) = killed
            && !error.is(ErrorKind::NotFound)
        {
            self.log.warn(format_args!("kill container {id}: {}", error.chain()));
        }
    }

    /// Ends what is under way for a container, or the start of a further process alone.
    pub(super) fn kill_job_of(&mut self, id: &str, exec_id: &str) -> bool {
        if exec_id.is_empty() {
            return self.kill_jobs(|job| job.container == id);
        }
        self.find(id, exec_id).is_ok_and(|exec| self.kill_jobs(|job| job.exec == Some(exec)))
    }

    /// Ends what is under way. False if nothing is.
    ///
    /// A delete among it may hang in a hook; what is left of its container is then taken down without.
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

    /// What is to be said of a container that is being created: nothing but that.
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

/// What a call changes: a container, or a further process of it alone.
#[derive(Clone, PartialEq, Message)]
struct Subject {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    exec_id: String,
}

/// Every request about a container begins with its id. Those about one process of it go on with that one's.
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
