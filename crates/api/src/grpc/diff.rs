//! `containerd.services.diff.v1`: applies layers to mounts, and makes layers from the difference of mounts.

use std::collections::BTreeMap;

use prost_types::{Any, Timestamp};

use super::types::{Descriptor, Mount};

#[derive(Clone, PartialEq, prost::Message)]
pub struct ApplyRequest {
    #[prost(message, optional, tag = "1")]
    pub diff: Option<Descriptor>,
    #[prost(message, repeated, tag = "2")]
    pub mounts: Vec<Mount>,
    #[prost(btree_map = "string, message", tag = "3")]
    pub payloads: BTreeMap<String, Any>,
    #[prost(bool, tag = "4")]
    pub sync_fs: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ApplyResponse {
    #[prost(message, optional, tag = "1")]
    pub applied: Option<Descriptor>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DiffRequest {
    #[prost(message, repeated, tag = "1")]
    pub left: Vec<Mount>,
    #[prost(message, repeated, tag = "2")]
    pub right: Vec<Mount>,
    #[prost(string, tag = "3")]
    pub media_type: String,
    #[prost(string, tag = "4")]
    pub r#ref: String,
    #[prost(btree_map = "string, string", tag = "5")]
    pub labels: BTreeMap<String, String>,
    #[prost(message, optional, tag = "6")]
    pub source_date_epoch: Option<Timestamp>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DiffResponse {
    #[prost(message, optional, tag = "3")]
    pub diff: Option<Descriptor>,
}

#[cfg(feature = "grpc")]
super::service!("containerd.services.diff.v1.Diff");
