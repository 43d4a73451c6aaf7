//! Jobs: calls that a [`Worker`] carries out, since they wait for others, and what is done in the meantime.
//!
//! A container has one job at a time. What is asked about it is answered meanwhile, and it can be killed; calls that
//! change it wait in line, so that nothing comes in between that would not without workers. SIGKILL ends the job too.

use api::shim::task;
use prost::Message;
use ttrpc::Request;
use types::{Context, Error, ErrorKind, Result};

use super::Sandbox;
use crate::poll::{Interest, Source};
use crate::process::Stage;
use crate::service::{Outcome, ReplyTo};
use crate::worker::{Answer, Worker};

/// What is done with the answer: the rest of the call. Its outcome goes to whoever called.
type Then = Box<dyn FnOnce(&mut Sandbox, Answer) -> Result<Vec<u8>>>;

pub(super) struct Job {
    key: u32,
    container: String,
    worker: Worker,
    then: Then,
    reply: ReplyTo,
    killed: bool,
}

impl Sandbox {
    /// Has the loop wait for a worker, and go on with `then`.
    pub(super) fn begin_job<M: Message>(
        &mut self,
        container: &str,
        worker: Worker,
        reply: ReplyTo,
        then: impl FnOnce(&mut Sandbox, Answer) -> Result<M> + 'static,
    ) -> Result<Outcome> {
        let then: Then = Box::new(|sandbox, answer| Ok(then(sandbox, answer)?.encode_to_vec()));
        self.add_job(container.to_owned(), worker, reply, then)
    }

    fn add_job(&mut self, container: String, worker: Worker, reply: ReplyTo, then: Then) -> Result<Outcome> {
        let key = self.key();
        if let Err(error) = self.poll.add(&worker, Source::Worker(key), Interest::Read) {
            worker.kill();
            return Err(error).context(|| "watch a worker");
        }
        self.jobs.push(Job { key, container, worker, then, reply, killed: false });
        Ok(Outcome::Later)
    }

    pub(super) fn is_busy(&self, container: &str) -> bool {
        self.jobs.iter().any(|job| job.container == container)
    }

    /// Whether a call has to wait until a job of its container is over. Then it is kept, and comes up again in
    /// [`Sandbox::take_line`].
    pub(crate) fn puts_off(&mut self, request: &Request, reply: ReplyTo) -> bool {
        /// Every request begins with the container's id.
        #[derive(Clone, PartialEq, Message)]
        struct About {
            #[prost(string, tag = "1")]
            id: String,
        }
        const UNCHANGING: [&str; 9] =
            ["State", "Wait", "Kill", "Pids", "Stats", "Connect", "CloseIO", "ResizePty", "Shutdown"];
        if self.jobs.is_empty() || UNCHANGING.contains(&request.method.as_str()) {
            return false;
        }
        let waits = About::decode(request.payload.as_slice()).is_ok_and(|about| self.is_busy(&about.id));
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
        let answer = match answer {
            Answer::Lost(_) if job.killed => {
                let why = "it was killed while this was under way";
                Answer::Lost(Error::new(ErrorKind::Cancelled, why))
            }
            other => other,
        };
        let outcome = (job.then)(self, answer);
        if let Err(error) = &outcome {
            self.log.debug(format_args!("container {}: {}", job.container, error.chain()));
        }
        self.replies.push((job.reply, outcome));
        self.line_moves = true;
        self.release_held_exit(&job.container);
    }

    /// Ends what is under way for a container, or for the start of a further process.
    pub(super) fn kill_job_of(&mut self, id: &str, exec_id: &str) -> bool {
        let process = self.find(id, exec_id).and_then(|key| self.process(key));
        let is_about_another =
            !exec_id.is_empty() && !process.is_ok_and(|process| matches!(process.stage, Stage::Added { .. }));
        !is_about_another && self.kill_jobs(|container| container == id)
    }

    /// Ends what is under way. False if nothing is.
    pub(super) fn kill_jobs(&mut self, is_meant: impl Fn(&str) -> bool) -> bool {
        let mut any = false;
        for job in self.jobs.iter_mut().filter(|job| is_meant(&job.container)) {
            job.worker.kill();
            job.killed = true;
            any = true;
        }
        any
    }

    /// Containers that are being created.
    pub(super) fn unborn(&self) -> impl Iterator<Item = &str> {
        let busy = self.jobs.iter().map(|job| job.container.as_str());
        busy.filter(|id| !self.containers.contains_key(*id))
    }

    /// What is to be said of a container that is being created: nothing but that.
    pub(super) fn state_of_unborn(&self, request: &task::StateRequest) -> Option<task::StateResponse> {
        let is_unborn = self.unborn().any(|id| id == request.id);
        is_unborn.then(|| task::StateResponse {
            id: request.id.clone(),
            status: api::shim::types::Status::Created.into(),
            ..task::StateResponse::default()
        })
    }
}
