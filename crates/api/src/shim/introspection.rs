//! The input and output of `shim -info`: `containerd.types.RuntimeRequest` and `RuntimeInfo`.

use std::collections::HashMap;

use prost_types::Any;

use super::types::type_urls;

#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeRequest {
    #[prost(string, tag = "1")]
    pub runtime_path: String,
    #[prost(message, optional, tag = "2")]
    pub options: Option<Any>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeVersion {
    #[prost(string, tag = "1")]
    pub version: String,
    #[prost(string, tag = "2")]
    pub revision: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeInfo {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub version: Option<RuntimeVersion>,
    #[prost(message, optional, tag = "3")]
    pub options: Option<Any>,
    /// The OCI runtime's `features` document as JSON.
    #[prost(message, optional, tag = "4")]
    pub features: Option<Any>,
    #[prost(map = "string, string", tag = "5")]
    pub annotations: HashMap<String, String>,
}

type_urls! {
    RuntimeRequest => "containerd.types.RuntimeRequest",
    RuntimeInfo => "containerd.types.RuntimeInfo",
}
