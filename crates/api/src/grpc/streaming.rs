//! `containerd.services.streaming.v1`: streams of messages, which other calls refer to by name.

use crate::shim::types::type_urls;

/// The first message of a stream, which gives its name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StreamInit {
    #[prost(string, tag = "1")]
    pub id: String,
}

type_urls! {
    StreamInit => "containerd.services.streaming.v1.StreamInit",
}

#[cfg(feature = "grpc")]
super::service!("containerd.services.streaming.v1.Streaming");
