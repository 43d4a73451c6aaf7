//! The content store: blobs, which are immutable bytes named by their digest, and ingests, which are blobs being
//! written.
//!
//! ```text
//! begin ──▶ open ──commit──▶ blob (visible, immutable) ──delete──▶ gone
//!            ├──── abort ──▶ gone
//!            ├──── drop  ──▶ kept; the next begin resumes at its offset
//!            └──── crash ──▶ kept; the next begin hashes the bytes anew
//! ```
//!
//! Invariants
//! - One writer per [`IngestRef`](types::IngestRef). A second `begin` gets `Unavailable`; it does not wait.
//! - A blob appears only by rename, after fsync, under the digest of its bytes.
//! - A blob may be kept as a recipe. It is rebuilt and compared before its bytes are deleted, and compared at each
//!   rebuild, so that readers see no difference.
//! - The store does not know namespaces, labels or leases: see the `metadata` crate.
//!
//! Bytes on disk: `docs/design/content.md`.
#![forbid(unsafe_code)]

mod disk;
mod ingest;
mod local;
mod recipe;
mod store;

#[cfg(feature = "suite")]
pub mod suite;

#[doc(hidden)]
pub use disk::{Step, Watch, is_damage};
pub use local::LocalStore;
pub use store::{Blob, BlobReader, Expected, Form, IngestStatus, IngestWriter, Store};
