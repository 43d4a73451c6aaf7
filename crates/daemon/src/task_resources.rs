//! Resources of a task besides its shim, released with it: mounts of its root that the shim cannot make, and the images
//! of the checkpoint it was restored from. Used for tasks of clients and of the restart monitor.

use metadata::Caller;
use mounts::{Mounts, Options};
use task::Shims;
use types::label::gc::OF_CONTAINER;
use types::{ContainerId, ErrorKind, Labels, Mount, Namespace, Result};

use crate::blocking::blocking;
use crate::checkpoint::Checkpoints;

/// Annotation of a runtime: comma-separated mount types that it makes itself.
const ALLOWED_MOUNTS: &str = "containerd.io/runtime-allow-mounts";

/// Clones share state.
#[derive(Clone)]
pub(crate) struct TaskResources {
    shims: Shims,
    mounts: Mounts,
    checkpoints: Checkpoints,
}

impl TaskResources {
    pub(crate) fn new(shims: Shims, mounts: Mounts, checkpoints: Checkpoints) -> TaskResources {
        TaskResources { shims, mounts, checkpoints }
    }

    pub(crate) fn checkpoints(&self) -> &Checkpoints {
        &self.checkpoints
    }

    /// Makes the mounts of a root that the shim cannot make. Returns the mounts left for the shim, and whether any were
    /// made by this call.
    pub(crate) async fn activate(
        &self,
        caller: &Caller,
        id: &ContainerId,
        runtime: &str,
        rootfs: Vec<Mount>,
    ) -> Result<(Vec<Mount>, bool)> {
        if !Mounts::are_needed_for(&rootfs) {
            return Ok((rootfs, false));
        }
        let info = self.shims.runtime_info(runtime, None).await?;
        let allowed = info.annotations.get(ALLOWED_MOUNTS).map_or("", String::as_str);
        let options = Options {
            // Kept as long as the container exists.
            labels: Labels::from([(OF_CONTAINER.to_owned(), id.to_string())]),
            makes_fuse: true,
            allowed: allowed.split(',').map(|kind| kind.trim().to_owned()).collect(),
            ..Options::default()
        };
        let (activations, caller, name) = (self.mounts.clone(), caller.clone(), id.to_string());
        blocking(move || match activations.activate(&caller, &name, rootfs.clone(), options) {
            Ok(activation) => Ok((mounts::left(activation), true)),
            // Left by an earlier task of the container whose release failed; released with this one.
            Err(error) if error.is(ErrorKind::AlreadyExists) => {
                Ok((mounts::left(activations.find(&caller, &name)?), false))
            }
            Err(error) if error.is(ErrorKind::Unimplemented) => Ok((rootfs, false)),
            Err(error) => Err(error),
        })
        .await
    }

    /// Releases everything of a task that is gone.
    pub(crate) async fn release(&self, namespace: &Namespace, id: &ContainerId) {
        self.deactivate(namespace, id).await;
        self.forget_checkpoint(namespace, id).await;
    }

    /// Removes the images that a task was restored from.
    pub(crate) async fn forget_checkpoint(&self, namespace: &Namespace, id: &ContainerId) {
        let (checkpoints, own, task) = (self.checkpoints.clone(), namespace.clone(), id.clone());
        if let Err(error) = blocking(move || checkpoints.forget(&own, &task)).await {
            tracing::warn!(%namespace, %id, "remove the checkpoint of a task: {}", error.chain());
        }
    }

    /// Unmounts what was mounted for a task that is gone. A later check finds what fails.
    pub(crate) async fn deactivate(&self, namespace: &Namespace, id: &ContainerId) {
        let (mounts, caller, name) = (self.mounts.clone(), Caller::new(namespace.clone()), id.to_string());
        match blocking(move || mounts.deactivate(&caller, &name)).await {
            Err(error) if !error.is(ErrorKind::NotFound) => {
                tracing::warn!(%namespace, %id, "take down the mounts of a task: {}", error.chain());
            }
            _ => {}
        }
    }
}
