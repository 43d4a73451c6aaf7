//! Finding the tasks of an earlier daemon again, by the bundles that it left.
//!
//! Invariants
//! - Only a bundle without a shim, or one whose shim has no container, is removed.
//! - The id of a bundle that cannot be read stays taken: its container may be running.

use tokio::task::JoinSet;
use types::{ContainerId, Error, ErrorKind, Namespace, Result};

use super::dead::Clearing;
use super::log::follow_log;
use super::{Key, Shims, blocking};
use crate::bootstrap::Bootstrap;
use crate::bundle::{self, Bundle};
use crate::connection::Connection;
use crate::program::Program;
use crate::{Exit, Task};

/// How many bundles are loaded in parallel when the daemon starts.
pub(crate) const LOADS_MAX: usize = 16;

/// A task that had ended when the daemon loaded its bundle. It is no longer in the map; every daemon that starts
/// reports it again until it is deleted.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    pub namespace: Namespace,
    pub id: ContainerId,
    pub exit: Exit,
}

impl Shims {
    /// Reconnects to the tasks that an earlier daemon left. Returns the tasks that had ended together with their shim;
    /// their exit and delete events are published as well.
    pub async fn load(&self) -> Result<Vec<Ended>> {
        // Sandboxes first: their shims are in use even without containers.
        self.sandboxes().load().await?;
        let bundles = self.0.config.bundles.clone();
        let mut keys = blocking(move || bundle::list(&bundles)).await?.into_iter();
        let mut loads = JoinSet::new();
        let mut ended = Vec::new();
        loop {
            while loads.len() < LOADS_MAX
                && let Some(key) = keys.next()
            {
                let shims = self.clone();
                loads.spawn(async move { (shims.load_one(&key).await, key) });
            }
            match loads.join_next().await {
                None => return Ok(ended),
                Some(Ok((Ok(Some(exit)), (namespace, id)))) => ended.push(Ended { namespace, id, exit }),
                Some(Ok((Ok(None), _))) => {}
                Some(Ok((Err(error), (namespace, id)))) => {
                    tracing::error!(%namespace, %id, "find a task again: {}", error.chain());
                }
                Some(Err(panic)) => return Err(Error::internal("find a task again").with_source(panic)),
            }
        }
    }

    async fn load_one(&self, key: &Key) -> Result<Option<Exit>> {
        let reservation = self.reserve(key)?;
        let bundle = Bundle::at(&self.0.config.bundles, &key.0, &key.1);
        let (program, bootstrap) = match recorded(&bundle) {
            Ok(Some(recorded)) => recorded,
            // The earlier daemon died before the shim was up.
            Ok(None) => {
                if !self.discard((&key.0, key.1.as_str()), &bundle, Bundle::remove).await {
                    reservation.keep();
                }
                return Ok(None);
            }
            // Its container may be running, so the id stays taken.
            Err(error) => {
                reservation.keep();
                return Err(error);
            }
        };
        let log = follow_log((&key.0, key.1.as_str()), &bundle);
        let connection = Connection::new(bootstrap, key.0.clone(), self.0.config.limits);
        let task = Task::new(key.clone(), (bundle, program), connection, log);
        match self.probe_shim(&task).await {
            ShimState::Alive => {
                tracing::debug!(namespace = %key.0, id = %key.1, "found a task again");
                reservation.fill(task.clone());
                tokio::spawn(self.clone().watch(task));
                Ok(None)
            }
            ShimState::Empty => {
                task.dismiss(self.shim_is_shared(&task)).await;
                let bundle = task.bundle_and_program().0;
                if bundle.noted_exit().is_some() {
                    // The task was deleted, but the client that deleted it may not have received its exit.
                    reservation.keep();
                    return Ok(Some(self.clean_up(&task, Clearing::AllButBundle).await));
                }
                if !self.discard((&key.0, key.1.as_str()), bundle, Bundle::remove).await {
                    reservation.keep();
                }
                Ok(None)
            }
            ShimState::Dead => {
                // `clean_up` frees the slot when the bundle is gone.
                reservation.keep();
                Ok(Some(self.clean_up(&task, Clearing::AllButBundle).await))
            }
        }
    }

    async fn probe_shim(&self, task: &Task) -> ShimState {
        // Twice, because a shim may die between connection and answer.
        for _ in 0..2 {
            match task.connect().await {
                Ok(()) => {}
                Err(error) if error.is(ErrorKind::Unavailable) => return ShimState::Dead,
                Err(_) => return ShimState::Alive,
            }
            // An old shim may not implement this call; then only a lost connection tells of its death.
            let _ = task.identify_shim().await;
            match task.state(None).await {
                Err(error) if error.is(ErrorKind::NotFound) => return ShimState::Empty,
                Err(error) if error.is(ErrorKind::Unavailable) => {}
                _ => return ShimState::Alive,
            }
        }
        ShimState::Alive
    }
}

/// What answered at a shim's address.
enum ShimState {
    /// A shim with the container, or one whose state is undecided.
    Alive,
    /// A shim without a container.
    Empty,
    Dead,
}

/// Program and address of a bundle's shim; `None` if the shim did not come up. An error, if the files cannot be read or
/// parsed, leaves that open.
pub(crate) fn recorded(bundle: &Bundle) -> Result<Option<(Program, Bootstrap)>> {
    match (bundle.program(), bundle.bootstrap()) {
        (Ok(program), Ok(Some(bootstrap))) => Ok(Some((program, bootstrap))),
        (_, Ok(None)) => Ok(None),
        (Err(error), _) if error.is(ErrorKind::NotFound) => Ok(None),
        (_, Err(error)) | (Err(error), _) => Err(error),
    }
}
