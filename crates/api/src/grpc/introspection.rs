//! `containerd.services.introspection.v1`: the daemon's plugins and identity.

use std::collections::BTreeMap;

use prost_types::{Any, Timestamp};

use super::types::{Platform, RpcStatus};

#[derive(Clone, PartialEq, prost::Message)]
pub struct Plugin {
    #[prost(string, tag = "1")]
    pub r#type: String,
    #[prost(string, tag = "2")]
    pub id: String,
    #[prost(string, repeated, tag = "3")]
    pub requires: Vec<String>,
    #[prost(message, repeated, tag = "4")]
    pub platforms: Vec<Platform>,
    #[prost(btree_map = "string, string", tag = "5")]
    pub exports: BTreeMap<String, String>,
    #[prost(string, repeated, tag = "6")]
    pub capabilities: Vec<String>,
    #[prost(message, optional, tag = "7")]
    pub init_err: Option<RpcStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PluginsRequest {
    #[prost(string, repeated, tag = "1")]
    pub filters: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PluginsResponse {
    #[prost(message, repeated, tag = "1")]
    pub plugins: Vec<Plugin>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ServerResponse {
    #[prost(string, tag = "1")]
    pub uuid: String,
    #[prost(uint64, tag = "2")]
    pub pid: u64,
    #[prost(uint64, tag = "3")]
    pub pidns: u64,
    #[prost(message, repeated, tag = "4")]
    pub deprecations: Vec<DeprecationWarning>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DeprecationWarning {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub message: String,
    #[prost(message, optional, tag = "3")]
    pub last_occurrence: Option<Timestamp>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PluginInfoRequest {
    #[prost(string, tag = "1")]
    pub r#type: String,
    #[prost(string, tag = "2")]
    pub id: String,
    #[prost(message, optional, tag = "3")]
    pub options: Option<Any>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PluginInfoResponse {
    #[prost(message, optional, tag = "1")]
    pub plugin: Option<Plugin>,
    #[prost(message, optional, tag = "2")]
    pub extra: Option<Any>,
}

#[cfg(feature = "grpc")]
super::service!("containerd.services.introspection.v1.Introspection");
