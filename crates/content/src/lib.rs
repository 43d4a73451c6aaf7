//! Blobs: immutable bytes under the name of their hash, and ingests, which are blobs on their way in.
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
//! - A blob that is kept as a recipe was made again and compared before its bytes went, and is compared each
//!   time it is made: to users it is as any other.
//! - Nothing here knows namespaces, labels or leases: see the `metadata` crate.
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
