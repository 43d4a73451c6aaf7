//! Attributes of containers that were just removed, for the events about their removal.

use std::collections::{BTreeMap, VecDeque};

use stdx::Mutex;
use types::ContainerId;

use crate::Engine;
use crate::containers::attributes;
use crate::record::Extension;

/// How many are kept: most are taken within milliseconds, some never.
const LEN_MAX: usize = 256;

/// Labels, name and image, by id, oldest first.
#[derive(Default)]
pub(crate) struct RemovedContainers(Mutex<VecDeque<(String, BTreeMap<String, String>)>>);

impl Engine {
    /// Called before the record is deleted.
    pub(crate) fn note_removed(&self, id: &ContainerId, extension: &Extension) {
        let mut noted = self.0.removed_containers.0.lock();
        // An earlier attempt to remove it may have failed.
        noted.retain(|(other, _)| other != id.as_str());
        noted.push_back((id.to_string(), attributes(extension)));
        if noted.len() > LEN_MAX {
            noted.pop_front();
        }
    }

    /// The attributes of a container whose record is gone, and forgets them.
    pub fn take_removed(&self, id: &str) -> Option<BTreeMap<String, String>> {
        let mut noted = self.0.removed_containers.0.lock();
        let at = noted.iter().position(|(other, _)| other == id)?;
        noted.remove(at).map(|(_, attributes)| attributes)
    }

    /// As [`Engine::take_removed`], without forgetting.
    pub(crate) fn recall_removed(&self, id: &str) -> Option<BTreeMap<String, String>> {
        let noted = self.0.removed_containers.0.lock();
        noted.iter().find(|(other, _)| other == id).map(|(_, attributes)| attributes.clone())
    }
}
