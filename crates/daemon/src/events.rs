//! Converts changes of records to containerd's events, and publishes them.

use std::sync::Arc;
use std::time::Duration;

use api::grpc::event::{self, topic};
use api::shim::types::TypeUrl;
use events::{Envelope, Exchange};
use metadata::{Event, Metadata};
use prost::Message;
use tokio::sync::Notify;
use tokio::time::sleep;
use types::{Namespace, Opaque, Result, Timestamp};

use crate::blocking::blocking;

/// How long events wait for another change whose sync makes theirs durable too. During a start or removal such a change
/// follows within milliseconds, and a sync of our own would delay it; during a pull it may take minutes.
const HOLD: Duration = Duration::from_millis(50);

/// Pause after a failed sync, such as on a full disk.
const RETRY: Duration = Duration::from_secs(10);

/// A sink that publishes changes of records.
pub(crate) fn sink(exchange: Exchange) -> metadata::Sink {
    Box::new(move |namespace, event| exchange.publish(envelope(namespace, event)))
}

/// Tells the metadata store whether events have subscribers.
pub(crate) fn hearing(exchange: Exchange) -> metadata::Hearing {
    Box::new(move || exchange.is_heard())
}

/// Syncs events whose changes no other change makes durable, until dropped. `held` is notified of each.
pub(crate) async fn tell_held(metadata: Metadata, held: Arc<Notify>) {
    loop {
        held.notified().await;
        while let Some(first) = metadata.held_events() {
            sleep(HOLD).await;
            // Newer events get the full time as well.
            if metadata.held_events() == Some(first)
                && let Err(error) = sync(&metadata).await
            {
                tracing::warn!("tell events, whose changes have to be on disk first: {}", error.chain());
                sleep(RETRY).await;
            }
        }
    }
}

async fn sync(metadata: &Metadata) -> Result<()> {
    let metadata = metadata.clone();
    blocking(move || metadata.sync()).await
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use content::LocalStore;
    use events::Received;
    use kv::Db;
    use kv::testing::{Fault, Storage};
    use metadata::{Container, Notice, Options, Runtime};
    use tokio::time::Instant;
    use types::{ContainerId, Filters};

    use super::*;

    /// A metadata store on storage that can fail, and the task that publishes held events.
    fn stage(storage: &Storage, exchange: &Exchange, dir: &std::path::Path) -> Metadata {
        let (held, storage) = (Arc::new(Notify::new()), storage.clone());
        let notified = Arc::clone(&held);
        let options = Options {
            sink: sink(exchange.clone()),
            notice: Box::new(move |notice| {
                if notice == Notice::Held {
                    notified.notify_one();
                }
            }),
            ..Options::default()
        };
        let db = Db::open_on(move || Ok(storage.clone()), kv::Options::default()).unwrap();
        let content = Arc::new(LocalStore::open(dir).unwrap());
        let metadata = Metadata::open(db, content, BTreeMap::new(), options).unwrap();
        tokio::spawn(tell_held(metadata.clone(), held));
        metadata
    }

    /// Creates and deletes a container; no change follows.
    fn make_and_take(metadata: &Metadata, id: &ContainerId) {
        let containers = metadata.containers(Namespace::new("default").unwrap());
        let container = Container {
            id: id.clone(),
            labels: BTreeMap::new(),
            image: String::new(),
            runtime: Runtime { name: "r".to_owned(), options: None },
            spec: Some(Opaque { type_url: "s".to_owned(), value: Vec::new() }),
            snapshotter: String::new(),
            snapshot_key: String::new(),
            sandbox_id: String::new(),
            extensions: BTreeMap::new(),
            created: Timestamp::default(),
            updated: Timestamp::default(),
        };
        containers.create(container).unwrap();
        containers.delete_relaxed(id).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn held_events_are_published_soon_without_another_change() {
        let (storage, exchange, dir) = (Storage::default(), Exchange::new(), tempfile::tempdir().unwrap());
        let mut listener = exchange.subscribe(Filters::all());
        let metadata = stage(&storage, &exchange, dir.path());
        let mut next = async || match listener.receive().await {
            Some(Received::Event(envelope)) => envelope.topic.clone(),
            other => panic!("{other:?}"),
        };
        let begun = Instant::now();
        make_and_take(&metadata, &"a".parse().unwrap());
        assert_eq!(next().await, topic::CONTAINER_CREATE);
        assert!(begun.elapsed() < HOLD);
        assert_eq!(next().await, topic::CONTAINER_DELETE);
        assert!(begun.elapsed() >= HOLD && begun.elapsed() < HOLD * 2, "{:?}", begun.elapsed());

        // An event that came while another waited, and that a change has followed, waits the full time.
        make_and_take(&metadata, &"b".parse().unwrap());
        assert_eq!(next().await, topic::CONTAINER_CREATE);
        assert!(tokio::time::timeout(HOLD / 2, next()).await.is_err());
        let begun_later = Instant::now();
        make_and_take(&metadata, &"c".parse().unwrap());
        assert_eq!([next().await, next().await], [topic::CONTAINER_DELETE, topic::CONTAINER_CREATE]);
        assert_eq!(next().await, topic::CONTAINER_DELETE);
        assert!(begun_later.elapsed() >= HOLD, "{:?}", begun_later.elapsed());

        // On a failing disk the sync is retried.
        make_and_take(&metadata, &"d".parse().unwrap());
        assert_eq!(next().await, topic::CONTAINER_CREATE);
        storage.fail(Fault::From(0));
        assert!(tokio::time::timeout(RETRY / 2, next()).await.is_err());
        storage.heal();
        assert_eq!(next().await, topic::CONTAINER_DELETE);
        assert!(begun.elapsed() < RETRY * 2, "{:?}", begun.elapsed());
    }
}
