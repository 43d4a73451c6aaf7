//! Converts containerd's events to Docker's, as far as the event alone allows.

use std::collections::BTreeMap;

use api::engine::{Actor, Happened};
use api::grpc::event::{ContainerCreate, ContainerDelete, ImageCreate, ImageDelete, ImageUpdate};
use api::shim::events::{
    TaskExecAdded, TaskExecStarted, TaskExit, TaskOom, TaskPaused, TaskResumed, TaskStart, topic,
};
use engine::docker_events::{self, DockerEvent};
use events::Envelope;
use prost::Message;

/// `None` if Docker has no such event.
pub(super) fn read(envelope: &Envelope) -> Option<Happened> {
    let bytes = envelope.event.value.as_slice();
    let (mut attributes, mut done) = (BTreeMap::new(), None);
    let mut note = |key: &str, value: String| drop(attributes.insert(key.to_owned(), value));
    let (kind, action, id) = match envelope.topic.as_str() {
        "/containers/create" => ("container", "create", ContainerCreate::decode(bytes).ok()?.id),
        "/containers/delete" => ("container", "destroy", ContainerDelete::decode(bytes).ok()?.id),
        "/images/create" => ("image", "create", ImageCreate::decode(bytes).ok()?.name),
        "/images/update" => ("image", "update", ImageUpdate::decode(bytes).ok()?.name),
        "/images/delete" => ("image", "delete", ImageDelete::decode(bytes).ok()?.name),
        topic::START => ("container", "start", TaskStart::decode(bytes).ok()?.container_id),
        topic::OOM => ("container", "oom", TaskOom::decode(bytes).ok()?.container_id),
        topic::PAUSED => ("container", "pause", TaskPaused::decode(bytes).ok()?.container_id),
        topic::RESUMED => ("container", "unpause", TaskResumed::decode(bytes).ok()?.container_id),
        topic::EXIT => {
            let exit = TaskExit::decode(bytes).ok()?;
            note("exitCode", exit.exit_status.to_string());
            if exit.id == exit.container_id {
                ("container", "die", exit.container_id)
            } else {
                note("execID", exit.id);
                ("container", "exec_die", exit.container_id)
            }
        }
        topic::EXEC_ADDED => {
            let added = TaskExecAdded::decode(bytes).ok()?;
            note("execID", added.exec_id);
            ("container", "exec_create", added.container_id)
        }
        topic::EXEC_STARTED => {
            let started = TaskExecStarted::decode(bytes).ok()?;
            note("execID", started.exec_id);
            ("container", "exec_start", started.container_id)
        }
        docker_events::TOPIC => {
            let event: DockerEvent = serde_json::from_slice(bytes).ok()?;
            attributes = event.attributes;
            done = Some(event.action);
            (event.subject.name(), "", event.id)
        }
        _ => return None,
    };
    let mut note = |key: &str, value: String| drop(attributes.insert(key.to_owned(), value));
    if kind == "image" && done.is_none() {
        note("name", id.clone());
    }
    let time = envelope.timestamp;
    Some(Happened {
        kind: kind.to_owned(),
        action: done.unwrap_or_else(|| action.to_owned()),
        actor: Actor { id, attributes },
        scope: "local".to_owned(),
        time: time.seconds,
        time_nano: time.seconds.saturating_mul(1_000_000_000).saturating_add(time.nanos.into()),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use types::{Namespace, Opaque, Timestamp};

    use super::*;

    pub(in super::super) fn exit(id: &str) -> Happened {
        let exit =
            TaskExit { container_id: "c".into(), id: id.into(), exit_status: 3, ..TaskExit::default() };
        let event = Opaque { type_url: String::new(), value: exit.encode_to_vec() };
        let time = Timestamp { seconds: 1, nanos: 2 };
        let namespace = Namespace::new("default").unwrap();
        read(&Envelope::new(time, namespace, topic::EXIT, event).unwrap()).unwrap()
    }

    #[test]
    fn ends_are_of_containers_or_of_further_processes() {
        let first = exit("c");
        assert_eq!((first.action.as_str(), first.time_nano), ("die", 1_000_000_002));
        assert_eq!(first.actor.attributes["exitCode"], "3");
        let further = exit("x");
        assert_eq!((further.action.as_str(), further.actor.attributes["execID"].as_str()), ("exec_die", "x"));
    }
}
