//! `hoist.shim.v1.Attach`: a service of our own shim, beside containerd's. Its one call, `Attach`, has an empty answer.

pub const SERVICE: &str = "hoist.shim.v1.Attach";

/// Attaches a client to the first process of a container, through named pipes. An empty path leaves a stream
/// unattached.
///
/// The client must have the other ends open: the shim takes a pipe without a peer for that of a client that has left.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AttachRequest {
    /// The container's id.
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub stdin: String,
    #[prost(string, tag = "3")]
    pub stdout: String,
    #[prost(string, tag = "4")]
    pub stderr: String,
}
