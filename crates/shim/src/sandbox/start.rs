//! Starts of created containers and added execs.

use api::shim::events::{self, topic};
use api::shim::task;
use linux::signal::Signal;
use types::{Error, Result};

use super::Sandbox;
use super::jobs::WithStreams;
use crate::process::{ProcessKey, Stage};
use crate::service::{Outcome, ReplyTo, answer};
use crate::worker::{Answer, Done, Worker};

impl Sandbox {
    pub(crate) fn start(&mut self, request: task::StartRequest, reply: ReplyTo) -> Result<Outcome> {
        let key = self.find(&request.id, &request.exec_id)?;
        if request.exec_id.is_empty() {
            return self.start_init(&request.id, key, reply);
        }
        match self.prepare_exec(&request, key) {
            Ok(outside) => {
                // `Wait` calls from here on are about this start.
                if let Stage::Added { failed, .. } = &mut self.process_mut(key)?.stage {
                    *failed = false;
                }
                let id = request.id.clone();
                let begin: WithStreams =
                    Box::new(move |sandbox, outside, reply| sandbox.begin_exec(request, key, outside, reply));
                self.when_read(&id, Some(key), outside, reply, begin)
            }
            Err(error) => Err(self.exec_failed(&request, error)),
        }
    }

    fn start_init(&mut self, id: &str, key: ProcessKey, reply: ReplyTo) -> Result<Outcome> {
        if matches!(self.process(key)?.stage, Stage::Frozen) {
            return self.restore(id, key, reply);
        }
        if !matches!(self.process(key)?.stage, Stage::Created { .. }) {
            return Err(Error::failed_precondition(format!("container {id} was started before")));
        }
        let container = self.container_mut(id)?;
        if !container.waits_for_others {
            let started = container.oci.start();
            return answer(self.finish_start(id, key, started));
        }
        let worker = Worker::begin(|| container.oci.start().map(|()| Done::default()))?;
        let about = id.to_owned();
        self.begin_job(id, None, worker, reply, move |sandbox, answer| {
            if matches!(answer, Answer::Lost(_)) {
                // It may be running, half started.
                let killed =
                    sandbox.container_mut(&about).and_then(|container| container.oci.kill(Signal::KILL));
                sandbox.log_failed_kill(&about, killed);
            }
            sandbox.finish_start(&about, key, answer.result().map(drop))
        })
    }

    fn finish_start(
        &mut self,
        id: &str,
        key: ProcessKey,
        started: Result<()>,
    ) -> Result<task::StartResponse> {
        started.map_err(|error| error.context(format!("start container {id}")))?;
        let process = self.process_mut(key)?;
        // It may have ended while a worker waited for a hook.
        if let Stage::Created { pid } = process.stage {
            process.stage = Stage::Running { pid };
        }
        self.publish_start(id, key)
    }

    pub(super) fn publish_start(&mut self, id: &str, key: ProcessKey) -> Result<task::StartResponse> {
        let pid = self.process(key)?.pid_number();
        let container = self.container(id)?.key;
        self.publish(container, topic::START, &events::TaskStart { container_id: id.to_owned(), pid });
        Ok(task::StartResponse { pid })
    }
}
