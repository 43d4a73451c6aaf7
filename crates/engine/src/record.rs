//! What the engine keeps of a container beside the fields of its record.

use api::engine::{Create, Restart};
use metadata::Container;
use serde::{Deserialize, Serialize};
use types::{Error, Opaque, Result, Timestamp};

/// The key of the extension, and its type.
pub(crate) const EXTENSION: &str = "hoist.engine.v1";

/// The extension, as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Extension {
    pub(crate) name: String,
    pub(crate) create: Create,
    /// The image's full name, and what it stood for then.
    pub(crate) image: String,
    pub(crate) image_digest: String,
    /// The whole command line.
    pub(crate) command: Vec<String>,
    pub(crate) stop_signal: String,
    #[serde(default)]
    pub(crate) started: Option<Timestamp>,
    #[serde(default)]
    pub(crate) exit: Option<ExitRecord>,
    #[serde(default)]
    pub(crate) restarts: u64,
    /// A person stopped it, so no policy starts it again.
    #[serde(default)]
    pub(crate) stopped_by_hand: bool,
    /// Its processes wait while its tree is copied. A daemon that finds this lets them go on.
    #[serde(default)]
    pub(crate) paused_for_copy: bool,
    /// Volumes that were made for it, as nobody gave their names. A record of before has none, and leaves its volumes
    /// to `volume prune`.
    #[serde(default)]
    pub(crate) own_volumes: Vec<String>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    pub(crate) code: u32,
    pub(crate) at: Timestamp,
    /// The kernel killed something in it for want of memory.
    #[serde(default)]
    pub(crate) oom_killed: bool,
}

impl Extension {
    pub(crate) fn of(container: &Container) -> Result<Extension> {
        let broken = || Error::data_loss(format!("container {} was not made by this engine", container.id));
        let opaque = container.extensions.get(EXTENSION).ok_or_else(broken)?;
        serde_json::from_slice(&opaque.value).map_err(|error| broken().with_source(error))
    }

    pub(crate) fn to_opaque(&self) -> Opaque {
        Opaque { type_url: EXTENSION.into(), value: serde_json::to_vec(self).expect("plain data") }
    }

    /// Whether it should be started again after this exit.
    pub(crate) fn wants_restart(&self, code: u32) -> bool {
        match self.create.restart {
            Restart::No => false,
            Restart::Always | Restart::UnlessStopped => !self.stopped_by_hand,
            Restart::OnFailure(max) => {
                !self.stopped_by_hand && code != 0 && (max == 0 || self.restarts < max)
            }
        }
    }
}
