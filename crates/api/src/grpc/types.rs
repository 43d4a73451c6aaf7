//! `containerd.types`, `containerd.v1.types` and `google.rpc`: messages that several services share. Those that shims
//! share too are re-exported.

use std::collections::BTreeMap;

use prost_types::Timestamp;

pub use prost_types::Any;

pub use crate::shim::types::{Envelope, Metric, Mount, Platform, ProcessInfo, Status};

#[derive(Clone, PartialEq, prost::Message)]
pub struct Descriptor {
    #[prost(string, tag = "1")]
    pub media_type: String,
    #[prost(string, tag = "2")]
    pub digest: String,
    #[prost(int64, tag = "3")]
    pub size: i64,
    #[prost(btree_map = "string, string", tag = "5")]
    pub annotations: BTreeMap<String, String>,
}

/// `google.rpc.Status`
#[derive(Clone, PartialEq, prost::Message)]
pub struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
    #[prost(message, repeated, tag = "3")]
    pub details: Vec<Any>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Process {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub id: String,
    #[prost(uint32, tag = "3")]
    pub pid: u32,
    #[prost(enumeration = "Status", tag = "4")]
    pub status: i32,
    #[prost(string, tag = "5")]
    pub stdin: String,
    #[prost(string, tag = "6")]
    pub stdout: String,
    #[prost(string, tag = "7")]
    pub stderr: String,
    #[prost(bool, tag = "8")]
    pub terminal: bool,
    #[prost(uint32, tag = "9")]
    pub exit_status: u32,
    #[prost(message, optional, tag = "10")]
    pub exited_at: Option<Timestamp>,
}

/// An active mount.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ActiveMount {
    #[prost(message, optional, tag = "1")]
    pub mount: Option<Mount>,
    #[prost(message, optional, tag = "2")]
    pub mounted_at: Option<Timestamp>,
    #[prost(string, tag = "3")]
    pub mount_point: String,
    #[prost(btree_map = "string, string", tag = "4")]
    pub data: BTreeMap<String, String>,
}

/// A set of mounts that the daemon keeps active.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ActivationInfo {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, repeated, tag = "2")]
    pub active: Vec<ActiveMount>,
    #[prost(message, repeated, tag = "3")]
    pub system: Vec<Mount>,
    #[prost(btree_map = "string, string", tag = "4")]
    pub labels: BTreeMap<String, String>,
}
