//! `containerd.runtime.sandbox.v1.Sandbox`: the ttrpc service of a shim that runs sandboxes.

use std::collections::BTreeMap;

use prost_types::{Any, Timestamp};

use super::types::{Metric, Mount, Platform};

pub const SERVICE: &str = "containerd.runtime.sandbox.v1.Sandbox";

/// The values of `state`, which are CRI's.
pub const READY: &str = "SANDBOX_READY";
pub const NOT_READY: &str = "SANDBOX_NOTREADY";

#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateSandboxRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(string, tag = "2")]
    pub bundle_path: String,
    #[prost(message, repeated, tag = "3")]
    pub rootfs: Vec<Mount>,
    #[prost(message, optional, tag = "4")]
    pub options: Option<Any>,
    #[prost(string, tag = "5")]
    pub netns_path: String,
    #[prost(btree_map = "string, string", tag = "6")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateSandboxResponse {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StartSandboxRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StartSandboxResponse {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    #[prost(message, optional, tag = "2")]
    pub created_at: Option<Timestamp>,
    #[prost(message, optional, tag = "3")]
    pub spec: Option<Any>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PlatformRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PlatformResponse {
    #[prost(message, optional, tag = "1")]
    pub platform: Option<Platform>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StopSandboxRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(uint32, tag = "2")]
    pub timeout_secs: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StopSandboxResponse {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WaitSandboxRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WaitSandboxResponse {
    #[prost(uint32, tag = "1")]
    pub exit_status: u32,
    #[prost(message, optional, tag = "2")]
    pub exited_at: Option<Timestamp>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SandboxStatusRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(bool, tag = "2")]
    pub verbose: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SandboxStatusResponse {
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
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PingRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PingResponse {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ShutdownSandboxRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ShutdownSandboxResponse {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SandboxMetricsRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SandboxMetricsResponse {
    #[prost(message, optional, tag = "1")]
    pub metrics: Option<Metric>,
}
