//! The vocabulary of Hoist as plain data: what every crate above needs to name, and nothing that
//! does IO. Only data with two users belongs here.
//!
//! Reading order: [`error`] (how anything fails), [`digest`] and [`descriptor`] (how bytes are
//! named), [`id`] (how records are named), [`label`], [`filter`], [`mount`], [`time`], then the OCI documents
//! under [`spec`].
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

/// A typed value that Hoist carries but does not read: containerd's `google.protobuf.Any`.
///
/// Both forms of type URL occur in the field (with and without `type.googleapis.com/`), and the
/// value is JSON where the type is a plain Go struct, so the bytes are kept as they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opaque {
    pub type_url: String,
    pub value: Vec<u8>,
}
