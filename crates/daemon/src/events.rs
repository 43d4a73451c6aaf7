//! From changes of records to containerd's events.

use api::grpc::event::{self, topic};
use api::shim::types::TypeUrl;
use events::{Envelope, Exchange};
use metadata::Event;
use prost::Message;
use types::{Namespace, Opaque, Timestamp};

/// Publishes what happens to records.
pub(crate) fn sink(exchange: Exchange) -> metadata::Sink {
    Box::new(move |namespace, event| exchange.publish(envelope(namespace, event)))
}

fn envelope(namespace: &Namespace, event: Event) -> Envelope {
    let name = namespace.to_string();
    let (topic, event) = match event {
        Event::NamespaceCreated { labels } => {
            (topic::NAMESPACE_CREATE, pack(&event::NamespaceCreate { name, labels }))
        }
        Event::NamespaceUpdated { labels } => {
            (topic::NAMESPACE_UPDATE, pack(&event::NamespaceUpdate { name, labels }))
        }
        Event::NamespaceDeleted => (topic::NAMESPACE_DELETE, pack(&event::NamespaceDelete { name })),
        Event::ImageCreated { name, labels } => {
            (topic::IMAGE_CREATE, pack(&event::ImageCreate { name, labels }))
        }
        Event::ImageUpdated { name, labels } => {
            (topic::IMAGE_UPDATE, pack(&event::ImageUpdate { name, labels }))
        }
        Event::ImageDeleted { name } => (topic::IMAGE_DELETE, pack(&event::ImageDelete { name })),
        Event::ContainerCreated { id, image, runtime } => {
            let options = runtime.options.map(any);
            let runtime = Some(event::ContainerRuntime { name: runtime.name, options });
            (topic::CONTAINER_CREATE, pack(&event::ContainerCreate { id: id.to_string(), image, runtime }))
        }
        Event::ContainerUpdated { id, image, labels, snapshot_key } => {
            let id = id.to_string();
            (topic::CONTAINER_UPDATE, pack(&event::ContainerUpdate { id, image, labels, snapshot_key }))
        }
        Event::ContainerDeleted { id } => {
            (topic::CONTAINER_DELETE, pack(&event::ContainerDelete { id: id.to_string() }))
        }
        Event::ContentCreated { digest, size, media_type } => {
            let (digest, size) = (digest.to_string(), i64::try_from(size).unwrap_or(i64::MAX));
            (topic::CONTENT_CREATE, pack(&event::ContentCreate { digest, size, media_type }))
        }
        Event::ContentDeleted { digest } => {
            (topic::CONTENT_DELETE, pack(&event::ContentDelete { digest: digest.to_string() }))
        }
        Event::SnapshotPrepared { snapshotter, key, parent } => {
            (topic::SNAPSHOT_PREPARE, pack(&event::SnapshotPrepare { key, parent, snapshotter }))
        }
        Event::SnapshotCommitted { snapshotter, key, name } => {
            (topic::SNAPSHOT_COMMIT, pack(&event::SnapshotCommit { key, name, snapshotter }))
        }
        Event::SnapshotRemoved { snapshotter, key } => {
            (topic::SNAPSHOT_REMOVE, pack(&event::SnapshotRemove { key, snapshotter }))
        }
    };
    Envelope { timestamp: Timestamp::now(), namespace: namespace.clone(), topic: topic.to_owned(), event }
}

fn pack<M: Message + TypeUrl>(message: &M) -> Opaque {
    Opaque { type_url: M::TYPE_URL.to_owned(), value: message.encode_to_vec() }
}

fn any(opaque: Opaque) -> prost_types::Any {
    prost_types::Any { type_url: opaque.type_url, value: opaque.value }
}
