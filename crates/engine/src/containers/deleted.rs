//! Cleans up after engine containers whose records are deleted through containerd's API, beyond what the record refers
//! to.
//!
//! | | when it is released |
//! |---|---|
//! | name, planned restart | at once: the client may reuse the name |
//! | address, ports, log, hosts | at once; if the container runs, with its end |
//! | anonymous volumes | as it was created: removed with `--rm`, otherwise left to `volume prune` |
//! | snapshot | once nothing else refers to it: the client may keep it by a lease or a label |
//!
//! While a container without a record runs, a lease of ours keeps its snapshot, and a file beside its log lists its
//! volumes. Leases and labels of clients are not changed.

use metadata::Resource;
use types::filter::Filters;
use types::{ContainerId, ErrorKind, Labels, LeaseId, Namespace, Result, Timestamp, UnlessGone};

use super::{EXPIRE_LABEL, OWN_EXPIRE_LABEL};
use crate::container_locks::Copies;
use crate::leftovers::TREE_LABEL;
use crate::record::Extension;
use crate::{Engine, remove_folder};

/// Prefix of the lease that keeps the snapshot of a container without a record; the container's id follows.
const HOLD: &str = "hoist.engine/unrecorded-";

impl Engine {
    /// Whether this is a container of the engine: one that has a name here.
    pub fn owns(&self, namespace: &Namespace, id: &ContainerId) -> bool {
        *namespace == self.0.caller.namespace && self.is_named(id)
    }

    /// Deletes the record of an engine container. Like containerd's API, does not check whether it runs. Releases what
    /// belongs to the container.
    pub async fn delete_record(&self, id: ContainerId) -> Result<()> {
        let own = id.clone();
        let volumes = self
            .blocking(move |engine| {
                let containers = engine.parts().metadata.containers(&engine.0.caller);
                let container = containers.get(&own)?;
                let extension = Extension::of(&container);
                if engine.parts().shims.has(&engine.0.caller.namespace, &own) {
                    engine.hold_tree(&own, &container.snapshotter)?;
                    if let Ok(extension) = &extension {
                        engine.note_volumes(&own, &extension.create.mounts)?;
                    }
                }
                if let Ok(extension) = &extension {
                    engine.note_removed(&own, extension);
                }
                containers.delete(&own)?;
                engine.release_names_of(&own);
                let thrown_away = extension.ok().filter(|extension| extension.create.auto_remove);
                Ok(thrown_away.map(|extension| extension.own_volumes).unwrap_or_default())
            })
            .await?;
        // The record is deleted even if the rest fails: `system check` finds what is left.
        if let Err(error) = self.let_go(&id, volumes).await {
            tracing::error!(%id, "let go of a container whose record was deleted: {}", error.chain());
        }
        Ok(())
    }

    async fn let_go(&self, id: &ContainerId, volumes: Vec<String>) -> Result<()> {
        let _lock = self.0.locks.lock_with(id.as_str(), Copies::End).await?;
        self.0.restarts.cancel(id.as_str());
        if self.task_of(id)?.is_some() || self.is_left(id) {
            tracing::warn!(%id, "the record of a container that runs was deleted");
            // Its watcher releases the rest.
            return Ok(());
        }
        let own = id.clone();
        let let_go = self.blocking(move |engine| {
            engine.parts().network.detach(own.as_str())?;
            engine.forget_unrecorded(&own)?;
            engine.remove_volumes(&volumes)
        });
        let outcome = let_go.await;
        self.0.network_released.notify_one();
        outcome
    }

    /// Removes what is left, except the network, of a container that has ended and has no record.
    pub(crate) fn forget_unrecorded(&self, id: &ContainerId) -> Result<()> {
        self.release_names_of(id);
        remove_folder(&self.files(id.as_str()))?;
        self.parts()
            .metadata
            .snapshotters()
            .try_for_each(|snapshotter| self.leave_tree(id.as_str(), snapshotter))
    }

    /// Keeps the snapshot of a running container whose record, which has kept it so far, is being deleted. Until
    /// [`Engine::leave_tree`].
    pub(crate) fn hold_tree(&self, id: &ContainerId, snapshotter: &str) -> Result<()> {
        let (leases, lease) = (self.parts().metadata.leases(&self.0.caller), lease_of(id.as_str())?);
        match leases.create(&lease, Labels::from([(TREE_LABEL.to_owned(), id.to_string())])) {
            Err(error) if error.is(ErrorKind::AlreadyExists) => {}
            created => drop(created?),
        }
        let tree = Resource::Snapshot { snapshotter: snapshotter.to_owned(), key: id.to_string() };
        leases.add_resource(&lease, &tree)
    }

    /// The ids of the containers whose snapshots are kept.
    pub(crate) fn held(&self) -> Result<Vec<String>> {
        let ours = Filters::parse(&[format!("labels.{TREE_LABEL:?}")])?;
        let held = self.parts().metadata.leases(&self.0.caller).list(&ours)?;
        let id_of = |id: &LeaseId| id.as_str().strip_prefix(HOLD).map(str::to_owned);
        Ok(held.iter().filter_map(|lease| id_of(&lease.id)).collect())
    }

    pub(crate) fn let_go_of_tree(&self, id: &str) -> Result<()> {
        let leases = self.parts().metadata.leases(&self.0.caller);
        leases.delete(&lease_of(id)?).unless_gone().map(drop)
    }

    /// Leaves a container's snapshot to the garbage collector, which removes it unless something refers to it. An
    /// expiry that a client has set is kept.
    pub(crate) fn leave_tree(&self, id: &str, snapshotter: &str) -> Result<()> {
        let snapshots = self.parts().metadata.snapshots(&self.0.caller, snapshotter)?;
        let Some(tree) = snapshots.stat(id).unless_gone()? else { return self.let_go_of_tree(id) };
        if tree.labels.contains_key(TREE_LABEL) {
            let expiry = tree.labels.get(EXPIRE_LABEL);
            let is_ours = expiry.is_none() || expiry == tree.labels.get(OWN_EXPIRE_LABEL);
            let mut labels = Labels::new();
            let mut paths = vec![TREE_LABEL, OWN_EXPIRE_LABEL];
            if is_ours {
                labels.insert(EXPIRE_LABEL.to_owned(), Timestamp::now().to_string());
                paths.push(EXPIRE_LABEL);
            }
            let paths: Vec<String> = paths.iter().map(|name| format!("labels.{name}")).collect();
            snapshots.update(id, &labels, &paths).unless_gone()?;
        }
        self.let_go_of_tree(id)
    }
}

fn lease_of(id: &str) -> Result<LeaseId> {
    LeaseId::new(format!("{HOLD}{id}"))
}
