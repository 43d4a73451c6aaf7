//! `containerd.types`, `containerd.v1.types`, and the type URLs of messages.

use prost_types::{Any, Timestamp};

/// A message that travels inside a `google.protobuf.Any`.
pub trait TypeUrl {
    /// The full protobuf name, which containerd uses as type URL.
    const TYPE_URL: &'static str;
}

macro_rules! type_urls {
    ($($message:ty => $url:literal),+ $(,)?) => {
        $(impl $crate::shim::types::TypeUrl for $message {
            const TYPE_URL: &'static str = $url;
        })+
    };
}
pub(crate) use type_urls;

/// Type URL of an OCI `process` as JSON: what `Exec` carries.
pub const PROCESS_SPEC_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// Type URL of OCI `linux.resources` as JSON: what `Update` carries.
pub const RESOURCES_SPEC_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// `containerd.types.Mount`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mount {
    #[prost(string, tag = "1")]
    pub r#type: String,
    #[prost(string, tag = "2")]
    pub source: String,
    #[prost(string, tag = "3")]
    pub target: String,
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}

/// `containerd.types.Envelope`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Envelope {
    #[prost(message, optional, tag = "1")]
    pub timestamp: Option<Timestamp>,
    #[prost(string, tag = "2")]
    pub namespace: String,
    #[prost(string, tag = "3")]
    pub topic: String,
    #[prost(message, optional, tag = "4")]
    pub event: Option<Any>,
}

/// `containerd.v1.types.Status`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Status {
    Unknown = 0,
    Created = 1,
    Running = 2,
    Stopped = 3,
    Paused = 4,
    Pausing = 5,
}

/// `containerd.v1.types.ProcessInfo`
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProcessInfo {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// A [`super::runc::ProcessDetails`] for processes that were added by `Exec`.
    #[prost(message, optional, tag = "2")]
    pub info: Option<Any>,
}

/// `containerd.types.Metric`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Metric {
    #[prost(message, optional, tag = "1")]
    pub timestamp: Option<Timestamp>,
    #[prost(string, tag = "2")]
    pub id: String,
    #[prost(message, optional, tag = "3")]
    pub data: Option<Any>,
}

/// `containerd.types.Platform`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Platform {
    #[prost(string, tag = "1")]
    pub os: String,
    #[prost(string, tag = "2")]
    pub architecture: String,
    #[prost(string, tag = "3")]
    pub variant: String,
    #[prost(string, tag = "4")]
    pub os_version: String,
    #[prost(string, repeated, tag = "5")]
    pub os_features: Vec<String>,
}
