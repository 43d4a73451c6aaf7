//! Docker events that containerd has no event for: actions of clients on containers, health, and changes of images,
//! volumes and networks.

use std::collections::BTreeMap;

use api::engine::{Create, Mount};
use events::Envelope;
use serde::{Deserialize, Serialize};
use types::{ContainerId, Digest, Opaque, Timestamp};

use crate::Engine;
use crate::containers::familiar_with_tag;
use crate::networks::NetworkMode;
use crate::volumes::VOLUME;

/// Topic of the daemon's exchange on which a [`DockerEvent`] is published, as JSON. Clients of containerd's events see
/// topic and type under these names.
pub const TOPIC: &str = "/hoist/told";
const TYPE: &str = "hoist.engine.v1.Told";

/// An event in Docker's terms.
#[derive(Debug, Serialize, Deserialize)]
pub struct DockerEvent {
    pub subject: Subject,
    /// Id of a container or network, name of a volume, digest of an image; for a pull or push, the image's reference.
    pub id: String,
    /// Such as `stop` or `health_status: healthy`.
    pub action: String,
    pub attributes: BTreeMap<String, String>,
}

/// The kind of object that an event is about.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    Container,
    Image,
    Network,
    Volume,
}

impl Subject {
    /// Docker's `Type`.
    pub fn name(self) -> &'static str {
        match self {
            Subject::Container => "container",
            Subject::Image => "image",
            Subject::Network => "network",
            Subject::Volume => "volume",
        }
    }
}

impl Engine {
    pub(crate) fn tell(&self, id: &ContainerId, action: &str, attributes: &[(&str, String)]) {
        self.tell_of(Subject::Container, id.as_str(), action, attributes);
    }

    /// Publishes an event of the image with this full name. Pulls and pushes pass no digest: then the name is the id.
    pub(crate) fn tell_image(&self, digest: Option<&Digest>, action: &str, name: &str) {
        let name = familiar_with_tag(name);
        let id = digest.map_or_else(|| name.clone(), ToString::to_string);
        self.tell_of(Subject::Image, &id, action, &[("name", name)]);
    }

    /// Publishes that a volume was created or removed.
    pub(crate) fn tell_volume(&self, name: &str, action: &str) {
        self.tell_of(Subject::Volume, name, action, &[("driver", "local".to_owned())]);
    }

    /// Publishes that a container begins (`mount`) or ceases (`unmount`) to use its volumes.
    pub(crate) fn tell_mounts(&self, id: &ContainerId, action: &str, mounts: &[Mount]) {
        for mount in mounts.iter().filter(|mount| mount.kind == VOLUME) {
            let attributes = [
                ("container", id.to_string()),
                ("destination", mount.target.clone()),
                ("driver", "local".to_owned()),
                ("read/write", (!mount.read_only).to_string()),
            ];
            self.tell_of(Subject::Volume, &mount.source, action, &attributes);
        }
    }

    /// Publishes that a container was connected to its network (`connect`) or disconnected. A container that joins
    /// another's network has none of its own.
    pub(crate) fn tell_network(&self, id: &ContainerId, action: &str, create: &Create) {
        let network = NetworkMode::of(create);
        let Some(driver) = network.driver() else { return };
        let attributes =
            [("container", id.to_string()), ("name", network.to_string()), ("type", driver.to_owned())];
        self.tell_of(Subject::Network, &self.network_id(&network), action, &attributes);
    }

    /// Publishes that unused objects were removed.
    pub(crate) fn tell_prune(&self, subject: Subject, bytes: u64) {
        self.tell_of(subject, "", "prune", &[("reclaimed", bytes.to_string())]);
    }

    fn tell_of(&self, subject: Subject, id: &str, action: &str, attributes: &[(&str, String)]) {
        let attributes = attributes.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
        let event = DockerEvent {
            subject,
            id: id.to_owned(),
            action: action.to_owned(),
            attributes: attributes.collect(),
        };
        let value = serde_json::to_vec(&event).expect("plain data");
        let event = Opaque { type_url: TYPE.into(), value };
        let namespace = self.0.caller.namespace.clone();
        match Envelope::new(Timestamp::now(), namespace, TOPIC, event) {
            Ok(envelope) => self.parts().exchange.publish(envelope),
            Err(error) => tracing::warn!(id, "tell of {}'s {action}: {}", subject.name(), error.chain()),
        }
    }
}
