//! Checkpoints: containers written into images, and brought back from there when they are started.
//!
//! criu does the work, and the shim waits for it: nothing else is done in the meantime.

use std::path::{Path, PathBuf};

use api::shim::events::{self, topic};
use api::shim::runc;
use api::shim::task;
use types::{Error, Result};

use super::births::Made;
use super::{Sandbox, options};
use crate::oci::{self, Frozen, Oci};
use crate::process::{ProcessKey, Stage};
use crate::record;
use crate::stdio::StdioConfig;
use crate::stdio::Stream;
use crate::stdio::open::{Inside, Owner};

impl Sandbox {
    pub(crate) fn checkpoint(&mut self, request: &task::CheckpointTaskRequest) -> Result<()> {
        self.check_init_lives(&request.id, "checkpoint")?;
        let options: runc::CheckpointOptions = options("checkpoint", request.options.as_ref())?;
        let container = self.container_mut(&request.id)?;
        let images = if request.path.is_empty() { &options.image_path } else { &request.path };
        let made = match Path::new(images) {
            images if images.is_absolute() => container.oci.checkpoint(images, &options),
            _ => Err(Error::invalid_argument("the directory for the images must be an absolute path")),
        };
        made.map_err(|error| error.context(format!("checkpoint container {}", request.id)))?;
        let key = container.key;
        let event =
            events::TaskCheckpointed { container_id: request.id.clone(), checkpoint: images.to_owned() };
        self.publish(key, topic::CHECKPOINTED, &event);
        Ok(())
    }

    /// Takes in a container whose processes are in a checkpoint.
    pub(super) fn add_frozen(
        &mut self,
        request: &task::CreateTaskRequest,
        config: StdioConfig,
        bundle: PathBuf,
        frozen: Frozen,
    ) -> Result<()> {
        let images = &frozen.images;
        if !images.is_absolute() || !images.is_dir() {
            return Err(Error::invalid_argument(format!(
                "there is no checkpoint at {}: a directory by its absolute path is expected",
                images.display()
            )));
        }
        let options = frozen.options.clone();
        let oci = Oci::Frozen(Box::new(frozen));
        let made = Made { bundle, oci, stage: Stage::Frozen, config, stdio: Inside::default() };
        let key = self.add_container(request, &options, made);
        self.publish_create(request, key, 0);
        Ok(())
    }

    /// Restores a container. Its streams are spent with the first attempt.
    pub(super) fn bring_back(&mut self, id: &str, init: ProcessKey) -> Result<()> {
        self.try_bring_back(id, init).map_err(|error| error.context(format!("start container {id}")))
    }

    fn try_bring_back(&mut self, id: &str, init: ProcessKey) -> Result<()> {
        let namespace = self.namespace.clone();
        let terminal = self.process(init)?.config.terminal;
        let container = self.container_mut(id)?;
        let bundle = container.bundle.clone();
        let Oci::Frozen(frozen) = &mut container.oci else {
            return Err(Error::internal("a frozen process of a container that is not"));
        };
        let outside = frozen.outside.take();
        let outside = outside.ok_or_else(|| {
            Error::failed_precondition("its restore was tried and failed; delete it, and create it again")
        })?;
        let Frozen { images, root, options, .. } = &**frozen;
        let create = oci::Create { id, bundle: &bundle, root, options };
        let owner = Owner { namespace: &namespace, container: id, uid: options.io_uid, gid: options.io_gid };
        let (ends, streams) = outside.split(terminal, owner)?;
        let mut restored = Oci::restore(create, images, ends.into())?;
        let settled = streams.join(restored.console.take()).and_then(|stdio| {
            record::write_bytes(&bundle, record::INIT_PID, restored.pid.to_string().as_bytes())?;
            Ok(stdio)
        });
        let stdio = match settled {
            Ok(stdio) => stdio,
            Err(error) => {
                self.undo(restored.oci.delete(), id);
                return Err(error);
            }
        };
        container.oci = restored.oci;
        let key = container.key;
        for warning in &restored.warnings {
            self.log.warn(format_args!("container {id}: {warning}"));
        }
        let process = self.process_mut(init)?;
        process.stage = Stage::Running { pid: restored.pid };
        process.stdio = stdio;
        self.watch(id, key, restored.owns_pids)?;
        for stream in Stream::ALL {
            self.advance_copy(init, stream);
        }
        Ok(())
    }
}
