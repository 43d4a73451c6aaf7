//! Containers of the engine whose records are deleted by containerd's API: what no field of a record shows goes too.
//!
//! | | goes |
//! |---|---|
//! | name, restart that is to come | at once: whoever deleted it may give the name to another |
//! | address, ports, log, hosts | at once; of one that runs, with its end |
//! | volumes without a name | as it was made: with `--rm` they go, otherwise they are left to `volume prune` |
//! | tree | as soon as nothing else holds it: who deletes a record may keep its snapshot, by a lease or a label |
//!
//! While one without a record runs, its tree is held by a lease of ours, and a file beside its log says which volumes it has.
//! Leases and labels of clients are left as they are.

use metadata::Resource;
use types::filter::Filters;
use types::{ContainerId, ErrorKind, Labels, LeaseId, Namespace, Result, Timestamp, UnlessGone};

use super::{EXPIRE_LABEL, OWN_EXPIRE_LABEL};
use crate::leftovers::TREE_LABEL;
use crate::record::Extension;
use crate::turns::Copies;
use crate::{Engine, remove_folder};

/// How the lease that holds the tree of a container without a record is called, with the container's id.
const HOLD: &str = "hoist.engine/unrecorded-";

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
        // The record is gone, whatever becomes of the rest: `system check` finds what is left.
        if let Err(error) = self.let_go(&id, volumes).await {
            tracing::error!(%id, "let go of a container whose record was deleted: {}", error.chain());
        }
        Ok(())
    }

    async fn let_go(&self, id: &ContainerId, volumes: Vec<String>) -> Result<()> {
        let _turn = self.0.turns.take_from(id.as_str(), Copies::End).await?;
        self.0.restarts.call_off(id.as_str());
        if self.task_of(id)?.is_some() || self.is_left(id) {
            tracing::warn!(%id, "the record of a container that runs was deleted");
            // Who watches it lets go of the rest.
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

    /// What is left, all but the network, of a container that has ended and has no record.
    pub(crate) fn forget_unrecorded(&self, id: &ContainerId) -> Result<()> {
        self.release_names_of(id);
        remove_folder(&self.files(id.as_str()))?;
        self.parts()
            .metadata
            .snapshotters()
            .try_for_each(|snapshotter| self.leave_tree(id.as_str(), snapshotter))
    }

    /// Keeps the tree of a container that runs and loses its record, which has kept it so far, until
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

    /// Containers whose trees are held, by id.
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

    /// Leaves a container's tree to the collector, which takes it at once if nothing holds it. What a client has made of
    /// its expiry stays.
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
