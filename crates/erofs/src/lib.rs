//! EROFS images that hold only metadata: names, inodes, attributes. The data of files stays in the layers' tar
//! archives, which the kernel uses as additional devices of the file system.
//!
//! ```text
//! headers of a tar, in order ─▶ Tree ──write──▶ layer.erofs ─┐
//!                                                            ├─▶ mount -t erofs -o device=data.tar layer.erofs
//! its bytes, as they are ─────────────────────▶ data.tar ────┘
//!
//! Tree of the layers below + Tree of a layer ──stack──▶ Tree of both ──write──▶ one image, a device a layer
//! ```
//!
//! The crate does no file I/O of its own: it writes images to a `Write`, and reads them from bytes. The format is in
//! `docs/design/erofs.md`.
//!
//! Invariants
//! - The same entries give the same bytes.
//! - A tree equals the result of unpacking its archive into an empty directory: of several entries of one name the last
//!   wins, missing parents are created, and links are resolved inside the root.
//! - The kernel never parses untrusted bytes as metadata: this crate writes every field, from validated values.
#![forbid(unsafe_code)]

mod acl;
mod attribute;
mod entry;
mod format;
mod interned;
mod names;
mod reader;
mod stack;
mod tree;
mod writer;

pub use entry::{Entry, EntryKind, Metadata};
pub use format::BLOCK_LEN;
pub use reader::{HEAD_LEN, Head};
pub use stack::Ground;
pub use tree::{Device, Placed, Tree};
pub use writer::IMAGE_LEN_MAX;
