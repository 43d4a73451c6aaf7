//! `containerd.events`, except the events of tasks, which shims publish: [`crate::shim::events`].

use std::collections::BTreeMap;

use prost_types::{Any, Timestamp};

use crate::shim::types::type_urls;

#[derive(Clone, PartialEq, prost::Message)]
pub struct NamespaceCreate {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct NamespaceUpdate {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct NamespaceDelete {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageCreate {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageUpdate {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageDelete {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerRuntime {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub options: Option<Any>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerCreate {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub image: String,
    #[prost(message, optional, tag = "3")]
    pub runtime: Option<ContainerRuntime>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerUpdate {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub image: String,
    #[prost(btree_map = "string, string", tag = "3")]
    pub labels: BTreeMap<String, String>,
    #[prost(string, tag = "4")]
    pub snapshot_key: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerDelete {
    #[prost(string, tag = "1")]
    pub id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ContentCreate {
    #[prost(string, tag = "1")]
    pub digest: String,
    #[prost(int64, tag = "2")]
    pub size: i64,
    /// Since containerd 2.4. Empty if the writer of the blob gave no media type.
    #[prost(string, tag = "3")]
    pub media_type: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ContentDelete {
    #[prost(string, tag = "1")]
    pub digest: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotPrepare {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub parent: String,
    #[prost(string, tag = "5")]
    pub snapshotter: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotCommit {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, tag = "5")]
    pub snapshotter: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotRemove {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "5")]
    pub snapshotter: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SandboxCreate {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SandboxStart {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SandboxExit {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(uint32, tag = "2")]
    pub exit_status: u32,
    #[prost(message, optional, tag = "3")]
    pub exited_at: Option<Timestamp>,
}

type_urls! {
    NamespaceCreate => "containerd.events.NamespaceCreate",
    NamespaceUpdate => "containerd.events.NamespaceUpdate",
    NamespaceDelete => "containerd.events.NamespaceDelete",
    ImageCreate => "containerd.services.images.v1.ImageCreate",
    ImageUpdate => "containerd.services.images.v1.ImageUpdate",
    ImageDelete => "containerd.services.images.v1.ImageDelete",
    ContainerCreate => "containerd.events.ContainerCreate",
    ContainerRuntime => "containerd.events.ContainerCreate.Runtime",
    ContainerUpdate => "containerd.events.ContainerUpdate",
    ContainerDelete => "containerd.events.ContainerDelete",
    ContentCreate => "containerd.events.ContentCreate",
    ContentDelete => "containerd.events.ContentDelete",
    SnapshotPrepare => "containerd.events.SnapshotPrepare",
    SnapshotCommit => "containerd.events.SnapshotCommit",
    SnapshotRemove => "containerd.events.SnapshotRemove",
    SandboxCreate => "containerd.events.SandboxCreate",
    SandboxStart => "containerd.events.SandboxStart",
    SandboxExit => "containerd.events.SandboxExit",
}

/// Topics, as containerd names them.
pub mod topic {
    pub const NAMESPACE_CREATE: &str = "/namespaces/create";
    pub const NAMESPACE_UPDATE: &str = "/namespaces/update";
    pub const NAMESPACE_DELETE: &str = "/namespaces/delete";
    pub const IMAGE_CREATE: &str = "/images/create";
    pub const IMAGE_UPDATE: &str = "/images/update";
    pub const IMAGE_DELETE: &str = "/images/delete";
    pub const CONTAINER_CREATE: &str = "/containers/create";
    pub const CONTAINER_UPDATE: &str = "/containers/update";
    pub const CONTAINER_DELETE: &str = "/containers/delete";
    pub const CONTENT_CREATE: &str = "/content/create";
    pub const CONTENT_DELETE: &str = "/content/delete";
    pub const SNAPSHOT_PREPARE: &str = "/snapshot/prepare";
    pub const SNAPSHOT_COMMIT: &str = "/snapshot/commit";
    pub const SNAPSHOT_REMOVE: &str = "/snapshot/remove";
    pub const SANDBOX_CREATE: &str = "/sandboxes/create";
    pub const SANDBOX_START: &str = "/sandboxes/start";
    pub const SANDBOX_EXIT: &str = "/sandboxes/exit";
}
