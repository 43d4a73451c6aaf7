//! `containerd.services.transfer.v1` and `containerd.types.transfer`: transfers of images between a source and a
//! destination.

use std::collections::BTreeMap;

use prost_types::{Any, Timestamp};

use super::types::{Descriptor, Platform};
use crate::shim::types::type_urls;

#[derive(Clone, PartialEq, prost::Message)]
pub struct TransferRequest {
    #[prost(message, optional, tag = "1")]
    pub source: Option<Any>,
    #[prost(message, optional, tag = "2")]
    pub destination: Option<Any>,
    #[prost(message, optional, tag = "3")]
    pub options: Option<TransferOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct TransferOptions {
    /// The name of a stream on which the daemon sends [`Progress`].
    #[prost(string, tag = "1")]
    pub progress_stream: String,
}

/// An image in a registry.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OciRegistry {
    #[prost(string, tag = "1")]
    pub reference: String,
    #[prost(message, optional, tag = "2")]
    pub resolver: Option<RegistryResolver>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct RegistryResolver {
    /// The name of a stream on which the client answers [`AuthRequest`] with [`AuthResponse`].
    #[prost(string, tag = "1")]
    pub auth_stream: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub headers: BTreeMap<String, String>,
    #[prost(string, tag = "3")]
    pub host_dir: String,
    #[prost(string, tag = "4")]
    pub default_scheme: String,
    #[prost(enumeration = "HttpDebug", tag = "5")]
    pub http_debug: i32,
    #[prost(string, tag = "6")]
    pub logs_stream: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct AuthRequest {
    #[prost(string, tag = "1")]
    pub host: String,
    #[prost(string, tag = "2")]
    pub reference: String,
    #[prost(string, repeated, tag = "3")]
    pub wwwauthenticate: Vec<String>,
}

/// Which parts of the HTTP exchange with a registry are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum HttpDebug {
    Disabled = 0,
    Debug = 1,
    Trace = 2,
    Both = 3,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum AuthType {
    None = 0,
    /// A user name and a password.
    Credentials = 1,
    /// An identity token.
    Refresh = 2,
    /// The value of the `Authorization` header.
    Header = 3,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct AuthResponse {
    #[prost(enumeration = "AuthType", tag = "1")]
    pub auth_type: i32,
    #[prost(string, tag = "2")]
    pub secret: String,
    #[prost(string, tag = "3")]
    pub username: String,
    #[prost(message, optional, tag = "4")]
    pub expire_at: Option<Timestamp>,
}

/// An image record of the daemon, as source or destination.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageStore {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: BTreeMap<String, String>,
    #[prost(message, repeated, tag = "3")]
    pub platforms: Vec<Platform>,
    #[prost(bool, tag = "4")]
    pub all_metadata: bool,
    #[prost(uint32, tag = "5")]
    pub manifest_limit: u32,
    #[prost(message, repeated, tag = "6")]
    pub extra_references: Vec<ImageReference>,
    #[prost(message, repeated, tag = "10")]
    pub unpacks: Vec<UnpackConfiguration>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct UnpackConfiguration {
    #[prost(message, optional, tag = "1")]
    pub platform: Option<Platform>,
    #[prost(string, tag = "2")]
    pub snapshotter: String,
}

/// How an import names its images, or by which names an export selects images.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageReference {
    #[prost(string, tag = "1")]
    pub name: String,
    /// `name` is a prefix, to which the tag or digest of the image is added.
    #[prost(bool, tag = "2")]
    pub is_prefix: bool,
    #[prost(bool, tag = "3")]
    pub allow_overwrite: bool,
    #[prost(bool, tag = "4")]
    pub add_digest: bool,
    #[prost(bool, tag = "5")]
    pub skip_named_digest: bool,
}

/// An image archive that the client sends.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageImportStream {
    #[prost(string, tag = "1")]
    pub stream: String,
    #[prost(string, tag = "2")]
    pub media_type: String,
    #[prost(bool, tag = "3")]
    pub force_compress: bool,
}

/// An image archive that the client receives.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageExportStream {
    #[prost(string, tag = "1")]
    pub stream: String,
    #[prost(string, tag = "2")]
    pub media_type: String,
    #[prost(message, repeated, tag = "3")]
    pub platforms: Vec<Platform>,
    #[prost(bool, tag = "4")]
    pub all_platforms: bool,
    #[prost(bool, tag = "5")]
    pub skip_compatibility_manifest: bool,
    #[prost(bool, tag = "6")]
    pub skip_non_distributable: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Progress {
    #[prost(string, tag = "1")]
    pub event: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, repeated, tag = "3")]
    pub parents: Vec<String>,
    #[prost(int64, tag = "4")]
    pub progress: i64,
    #[prost(int64, tag = "5")]
    pub total: i64,
    #[prost(message, optional, tag = "6")]
    pub desc: Option<Descriptor>,
}

/// Bytes of a stream.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Data {
    #[prost(bytes = "bytes", tag = "1")]
    pub data: bytes::Bytes,
}

/// Flow control: how many more bytes the receiver accepts.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WindowUpdate {
    #[prost(int32, tag = "1")]
    pub update: i32,
}

type_urls! {
    OciRegistry => "containerd.types.transfer.OCIRegistry",
    ImageStore => "containerd.types.transfer.ImageStore",
    ImageImportStream => "containerd.types.transfer.ImageImportStream",
    ImageExportStream => "containerd.types.transfer.ImageExportStream",
    Progress => "containerd.types.transfer.Progress",
    Data => "containerd.types.transfer.Data",
    WindowUpdate => "containerd.types.transfer.WindowUpdate",
    AuthRequest => "containerd.types.transfer.AuthRequest",
    AuthResponse => "containerd.types.transfer.AuthResponse",
}

#[cfg(feature = "grpc")]
super::service!("containerd.services.transfer.v1.Transfer");
