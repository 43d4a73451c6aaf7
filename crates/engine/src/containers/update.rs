//! `update`: changes resource limits and the restart policy, even of a running container.

use api::engine::{Create, Restart, Update};
use metadata::Container;
use serde_json::{Value, json};
use task::Status;
use types::spec::runtime::{LinuxResources, Spec};
use types::{ContainerId, Error, Opaque, Result};

use crate::Engine;
use crate::container_locks::Copies;
use crate::record::{EXTENSION, Extension};
use crate::spec::resources;

/// containerd's type URL of resource limits (`typeurl` of a plain Go struct: the value is JSON).
const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

impl Engine {
    /// A change that fails for a running container is not recorded either.
    pub(crate) async fn update(&self, text: &str, mut update: Update) -> Result<Value> {
        // Zero leaves a limit unchanged, as in Docker.
        update.memory = update.memory.filter(|limit| *limit != 0);
        update.memory_swap = update.memory_swap.filter(|limit| *limit != 0);
        update.memory_reservation = update.memory_reservation.filter(|limit| *limit != 0);
        update.milli_cpus = update.milli_cpus.filter(|limit| *limit != 0);
        update.cpu_shares = update.cpu_shares.filter(|shares| *shares != 0);
        update.cpu_period = update.cpu_period.filter(|period| *period != 0);
        update.cpu_quota = update.cpu_quota.filter(|quota| *quota != 0);
        update.blkio_weight = update.blkio_weight.filter(|weight| *weight != 0);
        let (Container { id, .. }, extension) = self.find_own(text).await?;
        let about = |error: Error| error.context(format!("update container {}", extension.name));
        let _lock = self.0.locks.lock_with(id.as_str(), Copies::Wait).await.map_err(about)?;
        if extension.create.auto_remove && update.restart.is_some_and(|restart| restart != Restart::No) {
            return Err(about(Error::invalid_argument(
                "it is removed when it ends (--rm), so that it cannot be restarted",
            )));
        }
        let own = id.clone();
        let limits = limits(&update, &extension.create).map_err(about)?;
        if let Some(limits) = limits.clone()
            && let Some(task) = self.task_of(&id)?
            && task.state_or_unknown().await?.status != Status::Stopped
        {
            let value = serde_json::to_vec(&limits).expect("plain data");
            let limits = Opaque { type_url: RESOURCES_TYPE.into(), value };
            task.update(Some(limits), Default::default()).await.map_err(about)?;
        }
        let recorded = self.blocking(move |engine| {
            engine.record_update(&own, &update, limits)?;
            Extension::of(&engine.parts().metadata.containers(&engine.0.caller).get(&own)?)
        });
        let extension = recorded.await.map_err(about)?;
        // A planned restart is due to the old policy.
        if extension.exit.is_some_and(|exit| !extension.wants_restart(exit.code)) {
            self.0.restarts.cancel(id.as_str());
        }
        self.tell(&id, "update", &[]);
        Ok(json!({}))
    }

    /// Records the new limits for the next start.
    fn record_update(&self, id: &ContainerId, update: &Update, limits: Option<LinuxResources>) -> Result<()> {
        let containers = self.parts().metadata.containers(&self.0.caller);
        let changed = containers.change(id, |container| {
            let mut extension = Extension::of(container)?;
            apply(update, &mut extension.create);
            container.extensions.insert(EXTENSION.to_owned(), extension.to_opaque());
            let (Some(limits), Some(spec)) = (limits, &mut container.spec) else { return Ok(()) };
            let mut document: Spec = serde_json::from_slice(&spec.value)
                .map_err(|error| Error::data_loss("its spec cannot be read").with_source(error))?;
            let own = document.linux.get_or_insert_default().resources.get_or_insert_default();
            merge(own, limits);
            spec.value = serde_json::to_vec(&document).expect("plain data");
            Ok(())
        });
        changed.map(drop)
    }
}

/// Overwrites the limits that `update` sets; a CPU share does not affect the cpuset.
fn merge(own: &mut LinuxResources, update: LinuxResources) {
    if let Some(update) = update.memory {
        let memory = own.memory.get_or_insert_default();
        memory.limit = update.limit.or(memory.limit);
        memory.reservation = update.reservation.or(memory.reservation);
        memory.swap = update.swap.or(memory.swap);
    }
    if let Some(update) = update.cpu {
        let cpu = own.cpu.get_or_insert_default();
        cpu.shares = update.shares.or(cpu.shares);
        cpu.period = update.period.or(cpu.period);
        cpu.quota = update.quota.or(cpu.quota);
        for (own, update) in [(&mut cpu.cpus, update.cpus), (&mut cpu.mems, update.mems)] {
            if !update.is_empty() {
                *own = update;
            }
        }
    }
    if let Some(update) = update.block_io {
        let block_io = own.block_io.get_or_insert_default();
        block_io.weight = update.weight.or(block_io.weight);
    }
    // The pids limit has no other fields.
    own.pids = update.pids.or(own.pids.take());
}

fn apply(update: &Update, create: &mut Create) {
    let is_said = |text: &&String| !text.is_empty();
    create.memory = update.memory.or(create.memory);
    create.milli_cpus = update.milli_cpus.or(create.milli_cpus);
    create.pids_limit = update.pids_limit.or(create.pids_limit);
    create.restart = update.restart.unwrap_or(create.restart);
    let extras = &mut create.extras;
    extras.memory_swap = update.memory_swap.or(extras.memory_swap);
    extras.memory_reservation = update.memory_reservation.or(extras.memory_reservation);
    extras.cpu_shares = update.cpu_shares.or(extras.cpu_shares);
    extras.cpu_period = update.cpu_period.or(extras.cpu_period);
    extras.cpu_quota = update.cpu_quota.or(extras.cpu_quota);
    extras.blkio_weight = update.blkio_weight.or(extras.blkio_weight);
    if let Some(cpuset) = Some(&update.cpuset).filter(is_said) {
        extras.cpuset.clone_from(cpuset);
    }
    if let Some(mems) = Some(&update.cpuset_mems).filter(is_said) {
        extras.cpuset_mems.clone_from(mems);
    }
}

/// The limits to change; `None` if there are none. All memory limits, and likewise all CPU limits, are validated and
/// written together, including the unchanged ones.
fn limits(update: &Update, own: &Create) -> Result<Option<LinuxResources>> {
    let mut all = own.clone();
    apply(update, &mut all);
    let changes = Update { restart: None, ..update.clone() };
    let mut changed = Create::default();
    let extras = &mut changed.extras;
    if changes.memory.is_some() || changes.memory_swap.is_some() || changes.memory_reservation.is_some() {
        changed.memory = all.memory;
        extras.memory_swap = all.extras.memory_swap;
        extras.memory_reservation = all.extras.memory_reservation;
    }
    let of_processors = Update {
        memory: None,
        memory_swap: None,
        memory_reservation: None,
        blkio_weight: None,
        pids_limit: None,
        ..changes.clone()
    };
    if of_processors != Update::default() {
        changed.milli_cpus = all.milli_cpus;
        extras.cpu_shares = all.extras.cpu_shares;
        extras.cpu_period = all.extras.cpu_period;
        extras.cpu_quota = all.extras.cpu_quota;
        extras.cpuset = all.extras.cpuset;
        extras.cpuset_mems = all.extras.cpuset_mems;
    }
    extras.blkio_weight = changes.blkio_weight;
    changed.pids_limit = changes.pids_limit;
    if changes == Update::default() {
        return Ok(None);
    }
    // The device rules do not change.
    Ok(Some(LinuxResources { devices: Vec::new(), ..resources(&changed)? }))
}

#[cfg(test)]
mod tests {
    use api::engine::Extras;

    use super::*;

    #[test]
    fn an_update_keeps_the_other_limits_of_the_same_resource() {
        let extras = Extras {
            cpu_shares: Some(7),
            cpu_quota: Some(2000),
            memory_reservation: Some(8 << 20),
            ..Extras::default()
        };
        let own = Create { memory: Some(16 << 20), pids_limit: Some(9), extras, ..Create::default() };
        let found = |update: Update| limits(&update, &own).unwrap();
        assert_eq!(found(Update::default()), None);
        assert_eq!(found(Update { restart: Some(Restart::Always), ..Update::default() }), None);
        let limits = found(Update { cpu_period: Some(5000), ..Update::default() }).unwrap();
        let cpu = limits.cpu.unwrap();
        assert_eq!((cpu.period, cpu.quota, cpu.shares), (Some(5000), Some(2000), Some(7)));
        assert_eq!((limits.memory, limits.pids), (None, None));
        let limits = found(Update { memory_reservation: Some(9 << 20), ..Update::default() }).unwrap();
        let memory = limits.memory.unwrap();
        assert_eq!((memory.limit, memory.reservation), (Some(16 << 20), Some(9 << 20)));
        assert_eq!(limits.cpu, None);
    }

    #[test]
    fn an_update_keeps_other_resources() {
        let extras = Extras {
            cpu_shares: Some(512),
            cpuset: "0".into(),
            memory_reservation: Some(32 << 20),
            ..Extras::default()
        };
        let own = Create { memory: Some(64 << 20), pids_limit: Some(7), extras, ..Create::default() };
        let mut stored = resources(&own).unwrap();
        stored.memory.as_mut().unwrap().swappiness = Some(10);
        let update = |change: Update, stored: &mut LinuxResources| {
            merge(stored, limits(&change, &own).unwrap().expect("a limit changes"));
        };
        update(Update { milli_cpus: Some(500), ..Update::default() }, &mut stored);
        let cpu = stored.cpu.clone().unwrap();
        assert_eq!((cpu.period, cpu.quota), (Some(100_000), Some(50_000)));
        assert_eq!((cpu.shares, cpu.cpus.as_str()), (Some(512), "0"));
        update(Update { memory: Some(128 << 20), ..Update::default() }, &mut stored);
        let memory = stored.memory.clone().unwrap();
        assert_eq!((memory.limit, memory.swap), (Some(128 << 20), Some(256 << 20)));
        assert_eq!((memory.reservation, memory.swappiness), (Some(32 << 20), Some(10)));
        assert_eq!((stored.cpu, stored.pids.unwrap().limit), (Some(cpu), Some(7)));
        assert!(!stored.devices.is_empty());
    }
}
