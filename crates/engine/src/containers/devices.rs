//! Devices described by CDI files (Container Device Interface). They are looked up when a container is created, so that
//! errors show at once, and applied to its spec at each start: device numbers, driver paths and the files themselves
//! may change with a reboot.

use std::collections::BTreeSet;
use std::path::Path;

use api::engine::Create;
use cdi::{Catalog, Edits};
use metadata::Container;
use types::spec::runtime::{Process, Spec};
use types::{Error, Result};

use super::pid_namespace::Joined;
use crate::Engine;

impl Engine {
    /// Checks that the CDI devices a container requests exist.
    pub(super) fn check_devices(&self, create: &Create, spec: &Spec) -> Result<()> {
        let Some(edits) = self.edits(create)? else { return Ok(()) };
        edits.apply(&mut spec.clone()).map_err(about)
    }

    /// The spec that a container is started with: the recorded one, with what has changed since its creation.
    pub(super) fn spec_to_run(
        &self,
        container: &Container,
        create: &Create,
        joined: &Joined,
    ) -> Result<Vec<u8>> {
        let stored = container.spec.as_ref().map(|spec| spec.value.clone()).unwrap_or_default();
        let edits = self.edits(create)?;
        if edits.is_none() && !create.privileged && joined.is_none() {
            return Ok(stored);
        }
        let mut spec: Spec = serde_json::from_slice(&stored)
            .map_err(|error| Error::data_loss("the container's spec cannot be read").with_source(error))?;
        if create.privileged {
            give_all(&mut spec).map_err(|error| error.context("--privileged"))?;
        }
        if let Some(edits) = edits {
            edits.apply(&mut spec).map_err(about)?;
        }
        joined.apply(&mut spec);
        Ok(serde_json::to_vec(&spec).expect("plain data"))
    }

    /// Applies the devices' environment and groups to an exec'd process, as to the container's first one. Ignores CDI
    /// files that are gone since.
    pub(super) fn give_devices(&self, create: &Create, process: &mut Process) {
        if let Ok(Some(edits)) = self.edits(create) {
            edits.apply_to_process(process);
        }
    }

    fn edits(&self, create: &Create) -> Result<Option<Edits>> {
        let names = &create.extras.cdi;
        if names.is_empty() {
            return Ok(None);
        }
        Catalog::read(&self.parts().cdi).edits(names).map(Some).map_err(about)
    }
}

/// Gives a privileged container all of the host's devices under their host paths, except those its spec already has.
fn give_all(spec: &mut Spec) -> Result<()> {
    let linux = spec.linux.get_or_insert_default();
    let known: BTreeSet<String> = linux.devices.iter().map(|device| device.path.clone()).collect();
    let place = Path::new("/dev");
    let all = linux::device::nodes(place)?.into_iter().map(|node| node.placed(place));
    linux.devices.extend(all.filter(|device| !known.contains(&device.path)));
    Ok(())
}

fn about(error: Error) -> Error {
    error.context("--device")
}
