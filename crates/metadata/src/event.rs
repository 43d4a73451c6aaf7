//! Events about changes of records. [`Outbox`](crate::outbox::Outbox) decides when they are published.

use types::{ContainerId, Digest, Labels, Namespace};

use crate::container::Runtime;

/// A change of a record. Each variant names containerd's topic.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// `/namespaces/create`
    NamespaceCreated { labels: Labels },
    /// `/namespaces/update`
    NamespaceUpdated { labels: Labels },
    /// `/namespaces/delete`
    NamespaceDeleted,
    /// `/images/create`
    ImageCreated { name: String, labels: Labels },
    /// `/images/update`
    ImageUpdated { name: String, labels: Labels },
    /// `/images/delete`, also for images that expired
    ImageDeleted { name: String },
    /// `/containers/create`
    ContainerCreated { id: ContainerId, image: String, runtime: Runtime },
    /// `/containers/update`
    ContainerUpdated { id: ContainerId, image: String, labels: Labels, snapshot_key: String },
    /// `/containers/delete`
    ContainerDeleted { id: ContainerId },
    /// `/content/create`
    /// The media type is empty if the blob's writer did not say it.
    ContentCreated { digest: Digest, size: u64, media_type: String },
    /// `/content/delete`
    ContentDeleted { digest: Digest },
    /// `/snapshot/prepare`
    SnapshotPrepared { snapshotter: String, key: String, parent: String },
    /// `/snapshot/commit`
    SnapshotCommitted { snapshotter: String, key: String, name: String },
    /// `/snapshot/remove`, also for snapshots that were collected
    SnapshotRemoved { snapshotter: String, key: String },
}

/// Receives events. Called with a lock held: it must be quick and must not call back.
pub type Sink = Box<dyn Fn(&Namespace, Event) + Send + Sync>;

pub(crate) type Events = Vec<(Namespace, Event)>;
