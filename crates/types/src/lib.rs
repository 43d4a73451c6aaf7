//! The vocabulary of Hoist as plain data: what every crate above needs to name, without any IO. Only data that two
//! crates use belongs here.
//!
//! Reading order: [`error`], [`digest`] and [`descriptor`] (names of blobs), [`id`] (names of records), [`label`],
//! [`filter`], [`mount`], [`time`], then the OCI documents under [`spec`].
#![forbid(unsafe_code)]

pub mod descriptor;
pub mod digest;
pub mod error;
pub mod filter;
pub mod id;
pub mod label;
pub mod mount;
mod platform;
pub mod reference;
pub mod spec;
pub mod time;

pub use descriptor::Descriptor;
pub use digest::{Algorithm, Digest, Hasher};
pub use error::{Context, Error, ErrorKind, Result, UnlessGone, spelled};
pub use filter::{FieldPath, Fields, Filters};
pub use id::{ContainerId, ExecId, IngestRef, LeaseId, Namespace, SandboxId};
pub use label::Labels;
pub use mount::Mount;
pub use reference::Reference;
pub use spec::image::Platform;
pub use time::Timestamp;

/// A typed value that Hoist stores without decoding it: `google.protobuf.Any`.
///
/// The type URL may or may not begin with `type.googleapis.com/`, and the value is JSON if the type is a plain Go
/// struct. Both are kept byte for byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opaque {
    pub type_url: String,
    pub value: Vec<u8>,
}
