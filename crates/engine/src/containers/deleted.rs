//! Containers of the engine whose records are deleted by containerd's API: what no field of a record shows goes too.
//!
//! | | goes |
//! |---|---|
//! | name, restart that is to come | at once: whoever deleted it may give the name to another |
//! | address, ports, log, hosts | at once; of one that runs, with its end |
//! | volumes without a name | as it was made: with `--rm` they go, otherwise they are left to `volume prune` |
//! | tree | as soon as nothing else holds it: who deletes a record may keep its snapshot, by a lease or a label |

use types::{ContainerId, ErrorKind, Labels, Namespace, Result, Timestamp};

use super::{EXPIRE_LABEL, ROOT_LABEL};
use crate::leftovers::TREE_LABEL;
use crate::record::Extension;
use crate::{Engine, remove_folder};

impl Engine {
    /// Whether it is a container of the engine: one that has a name here.
    pub fn owns(&self, namespace: &Namespace, id: &ContainerId) -> bool {
        *namespace == self.0.caller.namespace && self.is_named(id)
    }

    /// Deletes the record of a container of the engine as containerd's API does, which does not look whether it runs,
    /// and lets go of what goes with it.
    pub async fn delete_record(&self, id: ContainerId) -> Result<()> {
        let own = id.clone();
        let volumes = self
            .blocking(move |engine| {
                let containers = engine.parts().metadata.containers(&engine.0.caller);
                let container = containers.get(&own)?;
                let extension = Extension::of(&container);
                if engine.parts().shims.has(&engine.0.caller.namespace, &own) {
                    engine.hold_tree(&own, &container.snapshotter)?;
                }
                containers.delete(&own)?;
                engine.release_names_of(&own);
                let thrown_away = extension.ok().filter(|extension| extension.create.auto_remove);
                Ok(thrown_away.map(|extension| extension.own_volumes).unwrap_or_default())
            })
            .await?;
        // The record is gone, whatever becomes of the rest: that is found by the check.
        if let Err(error) = self.let_go(&id, volumes).await {
            tracing::error!(%id, "let go of a container whose record was deleted: {}", error.chain());
        }
        Ok(())
    }

    async fn let_go(&self, id: &ContainerId, volumes: Vec<String>) -> Result<()> {
        let _turn = self.0.turns.take(id.as_str()).await;
        self.0.restarts.call_off(id.as_str());
        if self.task_of(id)?.is_some() || self.is_left(id) {
            tracing::warn!(%id, "the record of a container that runs was deleted");
            // Who watches it lets go of the rest.
            return Ok(());
        }
        let own = id.clone();
        self.blocking(move |engine| {
            engine.parts().network.detach(own.as_str())?;
            engine.forget_unrecorded(&own)?;
            engine.remove_volumes(&volumes)
        })
        .await
    }

    /// What is left, all but the network, of a container that has ended and has no record.
    pub(crate) fn forget_unrecorded(&self, id: &ContainerId) -> Result<()> {
        self.release_names_of(id);
        remove_folder(&self.files(id.as_str()))?;
        self.parts().metadata.snapshotters().try_for_each(|snapshotter| self.leave_tree(id, snapshotter))
    }

    /// Keeps the tree of a container that runs and loses its record, which has kept it so far, until
    /// [`Engine::forget_unrecorded`].
    pub(crate) fn hold_tree(&self, id: &ContainerId, snapshotter: &str) -> Result<()> {
        let labels = Labels::from([(ROOT_LABEL.to_owned(), Timestamp::now().to_string())]);
        self.change_tree(id, snapshotter, &labels, &[ROOT_LABEL])
    }

    /// Leaves a container's tree to the collector, which takes it at once if nothing holds it.
    fn leave_tree(&self, id: &ContainerId, snapshotter: &str) -> Result<()> {
        let labels = Labels::from([(EXPIRE_LABEL.to_owned(), Timestamp::now().to_string())]);
        self.change_tree(id, snapshotter, &labels, &[EXPIRE_LABEL, TREE_LABEL, ROOT_LABEL])
    }

    /// Sets labels of a tree, if it is there.
    fn change_tree(
        &self,
        id: &ContainerId,
        snapshotter: &str,
        labels: &Labels,
        names: &[&str],
    ) -> Result<()> {
        let paths: Vec<String> = names.iter().map(|name| format!("labels.{name}")).collect();
        let snapshots = self.parts().metadata.snapshots(&self.0.caller, snapshotter)?;
        match snapshots.update(id.as_str(), labels, &paths) {
            Err(error) if error.is(ErrorKind::NotFound) => Ok(()),
            changed => changed.map(drop),
        }
    }
}
