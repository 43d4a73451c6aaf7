//! `hoist.shim.v1.Attach`: a service of our own shim beside containerd's. It has one call, `Attach`, which is answered with
//! nothing.

pub const SERVICE: &str = "hoist.shim.v1.Attach";

/// Named pipes of somebody who looks at the first process of a container from now on, and types. Empty is nowhere.
///
/// The other ends must be open: who reads or writes nothing at the time of the call is taken for somebody who has left.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AttachRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub stdin: String,
    #[prost(string, tag = "3")]
    pub stdout: String,
    #[prost(string, tag = "4")]
    pub stderr: String,
}
