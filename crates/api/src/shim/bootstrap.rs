//! `containerd.runtime.bootstrap.v1`: how a daemon starts a shim.
//!
//! The daemon runs `shim … start` with [`BootstrapParams`] in protobuf's binary form on stdin; the
//! shim answers on stdout with a [`BootstrapResult`] (or, in older forms, with JSON or an address).

use std::collections::HashMap;

use prost_types::Any;

#[derive(Clone, PartialEq, prost::Message)]
pub struct BootstrapParams {
    #[prost(string, tag = "1")]
    pub instance_id: String,
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// An open set: 0 is info, higher is more severe, lower is more verbose.
    #[prost(int32, tag = "3")]
    pub log_level: i32,
    #[prost(string, tag = "4")]
    pub containerd_version: String,
    #[prost(string, tag = "5")]
    pub containerd_ttrpc_address: String,
    #[prost(string, tag = "6")]
    pub containerd_grpc_address: String,
    #[prost(string, tag = "7")]
    pub containerd_binary: String,
    #[prost(message, repeated, tag = "8")]
    pub extensions: Vec<Extension>,
    #[prost(string, optional, tag = "9")]
    pub socket_dir: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Extension {
    #[prost(message, optional, tag = "1")]
    pub value: Option<Any>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct BootstrapResult {
    /// Version of the task API: 2 or 3.
    #[prost(int32, tag = "1")]
    pub version: i32,
    #[prost(string, tag = "2")]
    pub address: String,
    /// `ttrpc` or `grpc`.
    #[prost(string, tag = "3")]
    pub protocol: String,
    #[prost(int32, repeated, tag = "4")]
    pub capabilities: Vec<i32>,
    #[prost(map = "string, string", tag = "5")]
    pub metadata: HashMap<String, String>,
}

pub const LOG_LEVEL_TRACE: i32 = -8;
pub const LOG_LEVEL_DEBUG: i32 = -4;
pub const LOG_LEVEL_INFO: i32 = 0;
pub const LOG_LEVEL_WARN: i32 = 4;
pub const LOG_LEVEL_ERROR: i32 = 8;
