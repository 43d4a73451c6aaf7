//! What is told of containers besides what containerd's events say: what people did to them, and how they are.

use std::collections::BTreeMap;

use events::Envelope;
use serde::{Deserialize, Serialize};
use types::{ContainerId, Opaque, Timestamp};

use crate::Engine;

/// On this a [`Told`] is told, as JSON.
pub const TOPIC: &str = "/hoist/container";
const TYPE: &str = "hoist.engine.v1.Told";

/// What happened to a container, in Docker's words.
#[derive(Debug, Serialize, Deserialize)]
pub struct Told {
    pub id: String,
    /// As `stop`, or `health_status: healthy`.
    pub action: String,
    pub attributes: BTreeMap<String, String>,
}

impl Engine {
    pub(crate) fn tell(&self, id: &ContainerId, action: &str, attributes: &[(&str, String)]) {
        let attributes = attributes.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
        let told = Told { id: id.to_string(), action: action.to_owned(), attributes: attributes.collect() };
        let value = serde_json::to_vec(&told).expect("plain data");
        let event = Opaque { type_url: TYPE.into(), value };
        let namespace = self.0.caller.namespace.clone();
        match Envelope::new(Timestamp::now(), namespace, TOPIC, event) {
            Ok(envelope) => self.parts().exchange.publish(envelope),
            Err(error) => tracing::warn!(%id, "tell of a container's {action}: {}", error.chain()),
        }
    }
}
