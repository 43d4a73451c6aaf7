//! The engine: Docker's view of containers, with names, published ports, volumes, logs and restart policies.
//!
//! ```text
//! Create ─▶ record + snapshot ──start──▶ namespace, address, task ──exit──▶ exit recorded
//!                                ▲                                  │
//!                                └──────── restart policy ◀─────────┴──▶ removal, with --rm
//! ```
//!
//! An engine container is an ordinary container record in the namespace `default`, with an extension for what the
//! record has no fields for (`docs/design/engine.md`); `ctr` sees it like any other.
//!
//! Invariants
//! - State that must survive the daemon is in the record, in files below the root directory, or with the shim. Memory
//!   holds the names that are taken, the attributes of containers that were just removed, and otherwise only what can
//!   be read again.
//! - Every running container has one watcher, which waits for its end and settles it.
#![forbid(unsafe_code)]

mod answer;
mod cgroups;
mod container_locks;
mod containers;
mod copy;
mod cpus;
pub mod docker_events;
mod embedded;
mod etc;
mod filter;
mod health;
mod images;
mod info;
mod leftovers;
mod logs;
mod names;
mod networks;
mod record;
mod registries;
mod removed_containers;
mod restarts;
mod spec;
mod stats;
mod times;
mod usage;
mod users;
mod view;
mod volumes;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use events::Exchange;
use metadata::{Caller, Metadata};
use network::Network;
use registry::Connections;
use stdx::{CancelOnDrop, Mutex};
use task::Shims;
use tokio::sync::{Notify, RwLock, RwLockWriteGuard};
use transfer::{Admission, Flights, Retentions, Slots};
use types::{Error, Namespace, Result};

pub use crate::filter::FilterWord;
pub use crate::times::time;

use crate::container_locks::ContainerLocks;
use crate::containers::Ends;
use crate::health::Healths;
use crate::removed_containers::RemovedContainers;
use crate::restarts::Restarts;
use crate::volumes::VolumeLocks;
use crate::watch::Watched;

/// The components that the engine works with.
pub struct Parts {
    pub metadata: Metadata,
    pub exchange: Exchange,
    pub shims: Shims,
    pub network: Arc<Network>,
    /// Connections to registries.
    pub connections: Connections,
    /// Downloads of blobs in progress.
    pub flights: Flights,
    /// Limits concurrent transfers of blobs.
    pub slots: Slots,
    /// The policy for images that enter the store.
    pub admission: Admission,
    /// What happens to the blobs of layers that are unpacked.
    pub retentions: Retentions,
    pub snapshotter: String,
    pub root: PathBuf,
    pub state: PathBuf,
    /// The program of the embedded image `hello`.
    pub hello: Option<&'static [u8]>,
    /// Directories with CDI files (Container Device Interface); later ones take precedence.
    pub cdi: Vec<PathBuf>,
    /// Writes the init program for `--init`, if it does not exist, and returns its path.
    pub init: Box<dyn Fn() -> Result<PathBuf> + Send + Sync>,
}

/// How long a search for leftovers waits for starts in progress.
const START_LIMIT: Duration = Duration::from_secs(5);

/// The engine. Clones share everything.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    parts: Parts,
    caller: Caller,
    /// The ids of containers by name. Includes names that are reserved for a creation in progress.
    names: Mutex<BTreeMap<String, String>>,
    /// Locks of containers: held while a container is started, and while its end is settled.
    locks: ContainerLocks,
    /// Locks of containers: held while a container is paused and its snapshot copied.
    copy_locks: ContainerLocks,
    restarts: Restarts,
    ends: Ends,
    healths: Healths,
    watched: Watched,
    removed_containers: RemovedContainers,
    /// Read-locked while a container is started or its end settled, write-locked while leftovers are searched.
    starting: RwLock<()>,
    volumes: VolumeLocks,
    users: users::Known,
    /// Notified when a container has released its network.
    network_released: Notify,
    /// The lowest layer of every container's root: see [`etc`].
    ground: PathBuf,
}

impl Engine {
    /// Reads the existing records and takes their names.
    pub fn open(parts: Parts) -> Result<Engine> {
        let caller = Caller::new(Namespace::new("default").expect("a valid name"));
        match parts.metadata.namespaces().create(&caller.namespace, BTreeMap::new()) {
            Err(error) if !error.is(types::ErrorKind::AlreadyExists) => return Err(error),
            _ => {}
        }
        let ground = etc::lay_ground(&parts.root)?;
        let engine = Engine(Arc::new(Inner {
            ground,
            parts,
            caller,
            names: Mutex::default(),
            locks: ContainerLocks::default(),
            users: users::Known::default(),
            copy_locks: ContainerLocks::default(),
            restarts: Restarts::default(),
            ends: Ends::default(),
            healths: Healths::default(),
            watched: Watched::default(),
            removed_containers: RemovedContainers::default(),
            starting: RwLock::default(),
            volumes: VolumeLocks::default(),
            network_released: Notify::default(),
        }));
        engine.take_names()?;
        Ok(engine)
    }

    /// Removes what only running containers need, if none runs: the bridge with its rules, and the parent cgroup.
    pub async fn stop(&self) -> Result<()> {
        let _nobody_starts_or_ends = self.nobody_starts_or_ends().await?;
        self.blocking(|engine| {
            let cgroup = engine.remove_cgroup_parent();
            let network = engine.parts().network.remove_if_unused(true).map(drop);
            cgroup.and(network)
        })
        .await
    }

    /// As [`Engine::stop`], for a daemon that continues: removes the bridge and its rules, which the next container
    /// recreates. Does nothing while a container is being started or its end settled.
    pub async fn release_idle(&self) -> Result<()> {
        let Ok(_nobody_starts_or_ends) = self.0.starting.try_write() else { return Ok(()) };
        self.blocking(|engine| engine.parts().network.remove_if_unused(false).map(drop)).await
    }

    /// Waits until a container has released its network.
    pub async fn network_released(&self) {
        self.0.network_released.notified().await;
    }

    /// Waits until no container is being started and no end is being settled, which holds until the guard is dropped.
    /// The wait is limited: a start may hang, for example on the volume of an unreachable server, and new starts queue
    /// behind the waiter.
    async fn nobody_starts_or_ends(&self) -> Result<RwLockWriteGuard<'_, ()>> {
        tokio::time::timeout(START_LIMIT, self.0.starting.write()).await.map_err(|_| {
            let limit = START_LIMIT.as_secs();
            Error::unavailable(format!(
                "look for what belongs to nothing: a container has been starting or ending for {limit} s; \
                 try again when `hoist ps -a` shows none"
            ))
        })
    }

    fn parts(&self) -> &Parts {
        &self.0.parts
    }

    /// The directory of a container's files: log, hosts, hostname.
    fn files(&self, id: &str) -> PathBuf {
        self.parts().root.join("containers").join(self.0.caller.namespace.as_str()).join(id)
    }

    /// The bundles of this namespace.
    fn tasks(&self) -> PathBuf {
        self.parts().state.join("tasks").join(self.0.caller.namespace.as_str())
    }

    fn volumes(&self) -> PathBuf {
        self.parts().root.join("volumes")
    }

    /// Runs blocking work on a thread of the blocking pool.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Engine) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let engine = self.clone();
        let joined = stdx::blocking(move || work(&engine)).await;
        joined.map_err(Error::broke_down("a call"))?
    }

    /// As [`Engine::blocking`], for work that may also wait for the client to send or receive.
    async fn with_client<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Engine) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let engine = self.clone();
        transfer::with_client(move || work(&engine)).await
    }

    /// As [`Engine::blocking`]; dropping the future cancels the work.
    async fn with_cancel<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Engine, &Caller) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let owner = CancelOnDrop::new();
        let caller = self.0.caller.clone().cancelled_by(owner.token());
        self.with_client(move |engine| work(engine, &caller)).await
    }
}

/// Deletes a directory tree. No error if it is gone.
fn remove_folder(path: &Path) -> Result<()> {
    // Containers fill volumes, and may have nested directories too deep for recursion.
    linux::removal::delete(path, &|| true).map(drop)
}
