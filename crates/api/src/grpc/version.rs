//! `containerd.services.version.v1`

#[derive(Clone, PartialEq, prost::Message)]
pub struct VersionResponse {
    #[prost(string, tag = "1")]
    pub version: String,
    #[prost(string, tag = "2")]
    pub revision: String,
}

#[cfg(feature = "grpc")]
super::service!("containerd.services.version.v1.Version");
