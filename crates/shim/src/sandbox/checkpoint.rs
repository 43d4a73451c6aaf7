//! Checkpoints: containers written to images, and restored from them when they are started.
//!
//! criu does the work, and a worker waits for it.

use std::path::{Path, PathBuf};

use api::shim::events::{self, topic};
use api::shim::runc;
use api::shim::task;
use types::{Error, Result};

use super::create::{PendingCreate, settle};
use super::{Sandbox, options};
use crate::oci::{Created, Frozen, Oci};
use crate::process::{ProcessKey, Stage};
use crate::service::{Outcome, ReplyTo, answer};
use crate::stdio::Stream;
use crate::stdio::open::{Inside, Outside, Streams};
use crate::worker::{Answer, Done, Worker};

impl Sandbox {
    pub(crate) fn checkpoint(
        &mut self,
        request: task::CheckpointTaskRequest,
        reply: ReplyTo,
    ) -> Result<Outcome> {
        self.check_init_lives(&request.id, "checkpoint")?;
        let what = format!("checkpoint container {}", request.id);
        let options: runc::CheckpointOptions = options("checkpoint", request.options.as_ref())?;
        let container = self.container_mut(&request.id)?;
        let images = if request.path.is_empty() { options.image_path.clone() } else { request.path };
        let directory = Path::new(&images);
        if !directory.is_absolute() {
            let why = "the directory for the images must be an absolute path";
            return Err(Error::invalid_argument(why).context(what));
        }
        let worker =
            Worker::begin(|| container.oci.checkpoint(directory, &options).map(|()| Done::default()))?;
        let key = container.key;
        self.begin_job(&request.id.clone(), None, worker, reply, move |sandbox, answer| {
            if matches!(answer, Answer::Lost(_)) {
                sandbox.thaw(&request.id);
            }
            answer.result().map_err(|error| error.context(what))?;
            let event = events::TaskCheckpointed { container_id: request.id, checkpoint: images };
            sandbox.publish(key, topic::CHECKPOINTED, &event);
            Ok(())
        })
    }

    /// A checkpoint that was cut off may have left the container frozen.
    fn thaw(&mut self, id: &str) {
        if let Some(container) = self.containers.get_mut(id)
            && !container.paused
            && let Err(error) = container.oci.resume()
        {
            // Nearly always because the container was not frozen.
            self.log.debug(format_args!("thaw container {id}: {}", error.chain()));
        }
    }

    /// Adds a container whose processes are in a checkpoint.
    pub(super) fn add_frozen(&mut self, pending: PendingCreate, outside: Outside) -> Result<()> {
        let images = PathBuf::from(&pending.request.checkpoint);
        if !images.is_absolute() || !images.is_dir() {
            return Err(Error::invalid_argument(format!(
                "there is no checkpoint at {}: a directory by its absolute path is expected",
                images.display()
            )));
        }
        let key = self.add_container(&pending, Oci::Frozen(None), Stage::Frozen, Inside::default());
        self.publish_create(&pending.request, key, 0);
        let container = self.container_mut(pending.id())?;
        container.oci = Oci::Frozen(Some(Box::new(Frozen { images, pending, outside })));
        Ok(())
    }

    /// Restores a container. This can be tried once, as its streams are used up by that.
    pub(super) fn restore(&mut self, id: &str, init: ProcessKey, reply: ReplyTo) -> Result<Outcome> {
        self.try_restore(id, init, reply).map_err(|error| error.context(format!("start container {id}")))
    }

    fn try_restore(&mut self, id: &str, init: ProcessKey, reply: ReplyTo) -> Result<Outcome> {
        let namespace = self.namespace.clone();
        let Oci::Frozen(frozen) = &mut self.container_mut(id)?.oci else {
            return Err(Error::internal("the container is not in a checkpoint, but its process is"));
        };
        let Frozen { images, pending, outside } = *frozen.take().ok_or_else(|| {
            Error::failed_precondition("its restore was tried and failed; delete it, and create it again")
        })?;
        let (ends, streams) = outside.split(pending.config.terminal, pending.owner(&namespace))?;
        let worker = Worker::begin_process(ends, |stdio| {
            Oci::restore(pending.create(), &images, stdio).map(Created::into_done)
        })?;
        let about = id.to_owned();
        self.begin_step(id, None, worker, reply, move |sandbox, answer, reply| {
            let restored = sandbox.take_created(&pending.record(), pending.create(), answer);
            let restored =
                restored.and_then(|restored| sandbox.finish_restore(pending, init, streams, restored, reply));
            restored.map_err(|error| error.context(format!("start container {about}")))
        })
    }

    fn finish_restore(
        &mut self,
        pending: PendingCreate,
        init: ProcessKey,
        streams: Streams,
        mut restored: Created,
        reply: ReplyTo,
    ) -> Result<Outcome> {
        let stdio = match settle(&pending, streams, &mut restored) {
            Ok(stdio) => stdio,
            Err(error) => {
                return self.take_back(pending, restored.oci, error, reply, |_, pending, error| {
                    error.context(format!("start container {}", pending.id()))
                });
            }
        };
        let id = pending.id();
        let pid = restored.pid;
        for warning in &restored.warnings {
            self.log.warn(format_args!("container {id}: {warning}"));
        }
        let container = self.container_mut(id)?;
        container.oci = restored.oci;
        let key = container.key;
        let process = self.process_mut(init)?;
        process.stage = Stage::Running { pid };
        process.stdio = stdio;
        self.watch(id, key, restored.owns_pids)?;
        for stream in Stream::ALL {
            self.advance_copy(init, stream);
        }
        answer(self.publish_start(id, init))
    }
}
