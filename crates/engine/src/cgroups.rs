//! Paths of the containers' cgroups.
//!
//! ```text
//! /hoist/DIGEST/ID     DIGEST is of the daemon's root directory
//! /PARENT/ID           with `--cgroup-parent PARENT`
//! ```

use api::engine::Extras;
use linux::cgroup::Cgroup;
use types::{Digest, ErrorKind, Result};

use crate::Engine;

impl Engine {
    /// The parent of the containers' cgroups, relative to the hierarchies' roots. Two daemons on one host have
    /// different parents.
    pub(crate) fn cgroup_parent(&self) -> String {
        let root = self.parts().root.as_os_str().as_encoded_bytes();
        format!("/hoist/{}", Digest::of(root).short())
    }

    /// The cgroup of a container, relative to the hierarchies' roots.
    pub(crate) fn cgroup_of(&self, id: &str, extras: &Extras) -> String {
        match extras.cgroup_parent.trim_matches('/') {
            "" => format!("{}/{id}", self.cgroup_parent()),
            parent => format!("/{parent}/{id}"),
        }
    }

    /// Removes the parent of the containers' cgroups if it is empty.
    pub(crate) fn remove_cgroup_parent(&self) -> Result<()> {
        match Cgroup::open(&self.cgroup_parent()) {
            Ok(parent) => parent.remove_if_empty(),
            // No container was ever started, or this host has no cgroups.
            Err(error) if error.is(ErrorKind::NotFound) || error.is(ErrorKind::FailedPrecondition) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
