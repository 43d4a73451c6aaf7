//! Containers as people know them: names, published ports, volumes, logs, restart policies.
//!
//! ```text
//! Create ─▶ record + tree ──start──▶ namespace, address, task ──exit──▶ record says how it ended
//!                              ▲                                 │
//!                              └──────── restart policy ◀────────┴──▶ removal, if asked for
//! ```
//!
//! An engine container is an ordinary container record of the namespace `default`, with one extension that
//! holds what the record has no field for (`docs/design/engine.md`); `ctr` sees it like any other.
//!
//! Invariants
//! - What must survive the daemon is in the record, in files below the root, or with the shim. Memory holds
//!   names that are taken, what is told of containers that have just gone, and nothing else that could not be read again.
//! - Every running container has one watcher, which waits for its end and does what follows from it.
#![forbid(unsafe_code)]

mod answer;
mod cgroups;
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
mod moment;
mod names;
mod networks;
mod record;
mod registries;
mod removed_containers;
mod restarts;
mod spec;
mod stats;
mod turns;
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
pub use crate::moment::time;

use crate::containers::Ends;
use crate::health::Healths;
use crate::removed_containers::RemovedContainers;
use crate::restarts::Restarts;
use crate::turns::Turns;
use crate::volumes::Holds;
use crate::watch::Watched;

/// The parts that the engine works with.
pub struct Parts {
    pub metadata: Metadata,
    pub exchange: Exchange,
    pub shims: Shims,
    pub network: Arc<Network>,
    /// Connections to registries.
    pub connections: Connections,
    /// Blobs that are being fetched from registries.
    pub flights: Flights,
    /// How many blobs may go from and to registries at once.
    pub slots: Slots,
    /// Which images may come in.
    pub admission: Admission,
    /// What becomes of blobs of layers that are unpacked.
    pub retentions: Retentions,
    pub snapshotter: String,
    pub root: PathBuf,
    pub state: PathBuf,
    /// The program of the embedded image `hello`.
    pub hello: Option<&'static [u8]>,
    /// Where makers of devices say what containers need (Container Device Interface); later ones win.
    pub cdi: Vec<PathBuf>,
    /// Writes the program that is the first process of containers with `--init`, unless it is there, and says where.
    pub init: Box<dyn Fn() -> Result<PathBuf> + Send + Sync>,
}

/// How long who looks for leftovers waits for starts to come to their end.
const START_LIMIT: Duration = Duration::from_secs(5);

/// The engine. Clones share everything.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    parts: Parts,
    caller: Caller,
    /// The ids of containers by their names, which are taken.
    names: Mutex<BTreeMap<String, String>>,
    /// Whoever starts a container or settles its end does so alone.
    turns: Turns,
    /// Whoever pauses a container to copy its tree does so alone.
    copies: Turns,
    restarts: Restarts,
    ends: Ends,
    healths: Healths,
    watched: Watched,
    removed_containers: RemovedContainers,
    /// Read by those who start a container or settle its end, written by those who look for leftovers.
    starting: RwLock<()>,
    volumes: Holds,
    users: users::Known,
    /// Told when a container has given its network back.
    network_released: Notify,
    /// The lowest layer of every container's tree: see [`etc`].
    ground: PathBuf,
}

impl Engine {
    /// Reads the records that there are, and takes their names.
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
            turns: Turns::default(),
            users: users::Known::default(),
            copies: Turns::default(),
            restarts: Restarts::default(),
            ends: Ends::default(),
            healths: Healths::default(),
            watched: Watched::default(),
            removed_containers: RemovedContainers::default(),
            starting: RwLock::default(),
            volumes: Holds::default(),
            network_released: Notify::default(),
        }));
        engine.take_names()?;
        Ok(engine)
    }

    /// Takes away what only running containers need, if none runs: the bridge and its rules, and the cgroup above
    /// theirs.
    pub async fn stop(&self) -> Result<()> {
        let _nobody_starts_or_ends = self.nobody_starts_or_ends().await?;
        self.blocking(|engine| {
            let cgroup = engine.remove_cgroup_parent();
            let network = engine.parts().network.remove_if_unused(true).map(drop);
            cgroup.and(network)
        })
        .await
    }

    /// As [`Engine::stop`], of what a daemon that goes on makes again with the next container: the bridge and its rules.
    /// Who starts or ends a container just now is not waited for.
    pub async fn release_idle(&self) -> Result<()> {
        let Ok(_nobody_starts_or_ends) = self.0.starting.try_write() else { return Ok(()) };
        self.blocking(|engine| engine.parts().network.remove_if_unused(false).map(drop)).await
    }

    /// Waits until a container has given its network back.
    pub async fn network_released(&self) {
        self.0.network_released.notified().await;
    }

    /// Waits until no container is being started and no end of one is being settled, which holds until the guard is
    /// dropped. Not for long: one start may hang, behind a volume of a host that is gone, and the others begin after
    /// who waits here.
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

    /// Where the files of a container are: its log, hosts, hostname.
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

    /// Runs what blocks on a thread for it.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Engine) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let engine = self.clone();
        let joined = stdx::blocking(move || work(&engine)).await;
        joined.map_err(Error::broke_down("a call"))?
    }

    /// The same for what may have to wait for the caller too: for what it sends, or until it takes something.
    async fn with_client<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Engine) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let engine = self.clone();
        transfer::with_client(move || work(&engine)).await
    }

    /// The same for whoever waits for the outcome, and goes away without it when it is dropped: the work ends then.
    async fn with_cancel<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Engine, &Caller) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let owner = CancelOnDrop::new();
        let caller = self.0.caller.clone().cancelled_by(owner.token());
        self.with_client(move |engine| work(engine, &caller)).await
    }
}

/// Deletes a folder with everything in it. One that is gone is no error.
fn remove_folder(path: &Path) -> Result<()> {
    // Containers fill volumes, and may have made directories deeper than a stack is.
    linux::removal::delete(path, &|| true).map(drop)
}
