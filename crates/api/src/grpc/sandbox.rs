//! `containerd.services.sandbox.v1`: records of sandboxes, and in [`controller`] the controllers that run them.

pub mod controller;

use std::collections::BTreeMap;

use prost_types::{Any, Timestamp};

/// `containerd.types.Sandbox.Runtime`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Runtime {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub options: Option<Any>,
}

/// `containerd.types.Sandbox`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Sandbox {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    pub runtime: Option<Runtime>,
    #[prost(message, optional, tag = "3")]
    pub spec: Option<Any>,
    #[prost(btree_map = "string, string", tag = "4")]
    pub labels: BTreeMap<String, String>,
    #[prost(message, optional, tag = "5")]
    pub created_at: Option<Timestamp>,
    #[prost(message, optional, tag = "6")]
    pub updated_at: Option<Timestamp>,
    #[prost(btree_map = "string, message", tag = "7")]
    pub extensions: BTreeMap<String, Any>,
    #[prost(string, tag = "10")]
    pub sandboxer: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StoreCreateRequest {
    #[prost(message, optional, tag = "1")]
    pub sandbox: Option<Sandbox>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StoreCreateResponse {
    #[prost(message, optional, tag = "1")]
    pub sandbox: Option<Sandbox>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StoreUpdateRequest {
    #[prost(message, optional, tag = "1")]
    pub sandbox: Option<Sandbox>,
    /// The paths of a field mask.
    #[prost(string, repeated, tag = "2")]
    pub fields: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StoreUpdateResponse {
    #[prost(message, optional, tag = "1")]
    pub sandbox: Option<Sandbox>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StoreDeleteRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StoreDeleteResponse {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StoreListRequest {
    #[prost(string, repeated, tag = "1")]
    pub filters: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StoreListResponse {
    #[prost(message, repeated, tag = "1")]
    pub list: Vec<Sandbox>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StoreGetRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StoreGetResponse {
    #[prost(message, optional, tag = "1")]
    pub sandbox: Option<Sandbox>,
}

#[cfg(feature = "grpc")]
super::service!("containerd.services.sandbox.v1.Store");
