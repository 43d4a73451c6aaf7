//! `containerd.services.sandbox.v1.Controller`: running sandboxes. `sandboxer` names the controller.

use std::collections::BTreeMap;

use prost_types::{Any, Timestamp};

use super::Sandbox;
use crate::shim::types::{Metric, Mount, Platform};

#[derive(Clone, PartialEq, prost::Message)]
pub struct ControllerCreateRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(message, repeated, tag = "2")]
    pub rootfs: Vec<Mount>,
    #[prost(message, optional, tag = "3")]
    pub options: Option<Any>,
    #[prost(string, tag = "4")]
    pub netns_path: String,
    #[prost(btree_map = "string, string", tag = "5")]
    pub annotations: BTreeMap<String, String>,
    /// The record of the sandbox.
    #[prost(message, optional, tag = "6")]
    pub sandbox: Option<Sandbox>,
    #[prost(string, tag = "10")]
    pub sandboxer: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ControllerCreateResponse {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ControllerStartRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(string, tag = "10")]
    pub sandboxer: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ControllerStartResponse {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    #[prost(message, optional, tag = "3")]
    pub created_at: Option<Timestamp>,
    #[prost(btree_map = "string, string", tag = "4")]
    pub labels: BTreeMap<String, String>,
    /// The address of the sandbox's task service.
    #[prost(string, tag = "5")]
    pub address: String,
    /// The version of the sandbox's task service.
    #[prost(uint32, tag = "6")]
    pub version: u32,
    #[prost(message, optional, tag = "7")]
    pub spec: Option<Any>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ControllerPlatformRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(string, tag = "10")]
    pub sandboxer: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ControllerPlatformResponse {
    #[prost(message, optional, tag = "1")]
    pub platform: Option<Platform>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ControllerStopRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(uint32, tag = "2")]
    pub timeout_secs: u32,
    #[prost(string, tag = "10")]
    pub sandboxer: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ControllerStopResponse {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ControllerWaitRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(string, tag = "10")]
    pub sandboxer: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ControllerWaitResponse {
    #[prost(uint32, tag = "1")]
    pub exit_status: u32,
    #[prost(message, optional, tag = "2")]
    pub exited_at: Option<Timestamp>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ControllerStatusRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(bool, tag = "2")]
    pub verbose: bool,
    #[prost(string, tag = "10")]
    pub sandboxer: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ControllerStatusResponse {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    #[prost(string, tag = "3")]
    pub state: String,
    #[prost(btree_map = "string, string", tag = "4")]
    pub info: BTreeMap<String, String>,
    #[prost(message, optional, tag = "5")]
    pub created_at: Option<Timestamp>,
    #[prost(message, optional, tag = "6")]
    pub exited_at: Option<Timestamp>,
    #[prost(message, optional, tag = "7")]
    pub extra: Option<Any>,
    #[prost(string, tag = "8")]
    pub address: String,
    #[prost(uint32, tag = "9")]
    pub version: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ControllerShutdownRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(string, tag = "10")]
    pub sandboxer: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ControllerShutdownResponse {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ControllerMetricsRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(string, tag = "10")]
    pub sandboxer: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ControllerMetricsResponse {
    #[prost(message, optional, tag = "1")]
    pub metrics: Option<Metric>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ControllerUpdateRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(string, tag = "2")]
    pub sandboxer: String,
    #[prost(message, optional, tag = "3")]
    pub sandbox: Option<Sandbox>,
    /// The paths of a field mask.
    #[prost(string, repeated, tag = "4")]
    pub fields: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ControllerUpdateResponse {}

#[cfg(feature = "grpc")]
crate::grpc::service!("containerd.services.sandbox.v1.Controller");
