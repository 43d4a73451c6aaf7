//! `containerd.services.mounts.v1`: mounts that the daemon activates and keeps.

use std::collections::BTreeMap;

use prost_types::FieldMask;

use super::types::{ActivationInfo, Mount};

#[derive(Clone, PartialEq, prost::Message)]
pub struct ActivateRequest {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, repeated, tag = "2")]
    pub mounts: Vec<Mount>,
    #[prost(btree_map = "string, string", tag = "3")]
    pub labels: BTreeMap<String, String>,
    #[prost(bool, tag = "4")]
    pub temporary: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ActivateResponse {
    #[prost(message, optional, tag = "1")]
    pub info: Option<ActivationInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DeactivateRequest {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct InfoRequest {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct InfoResponse {
    #[prost(message, optional, tag = "1")]
    pub info: Option<ActivationInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateRequest {
    #[prost(message, optional, tag = "1")]
    pub info: Option<ActivationInfo>,
    #[prost(message, optional, tag = "2")]
    pub update_mask: Option<FieldMask>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateResponse {
    #[prost(message, optional, tag = "1")]
    pub info: Option<ActivationInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListRequest {
    #[prost(string, repeated, tag = "1")]
    pub filters: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListMessage {
    #[prost(message, optional, tag = "1")]
    pub info: Option<ActivationInfo>,
}

#[cfg(feature = "grpc")]
super::service!("containerd.services.mounts.v1.Mounts");
