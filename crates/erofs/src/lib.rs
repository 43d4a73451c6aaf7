//! EROFS images that hold only metadata: names, inodes, attributes. The bytes of files stay where they are,
//! in the archives that the layers came as, which the kernel takes as further devices of the file system.
//!
//! ```text
//! headers of a tar, in order ─▶ Tree ──write──▶ layer.erofs ─┐
//!                                                            ├─▶ mount -t erofs -o device=data.tar layer.erofs
//! its bytes, as they are ─────────────────────▶ data.tar ────┘
//!
//! Tree of the layers below + Tree of a layer ──stack──▶ Tree of both ──write──▶ one image, a device a layer
//! ```
//!
//! Nothing here opens a file: an image is written to a `Write` and read from bytes. `docs/design/erofs.md`
//! has the format.
//!
//! Invariants
//! - The same entries give the same bytes.
//! - A tree is what unpacking the same archive into an empty directory would give: the last of several
//!   entries of one name wins, parents that are missing are made, links lead to places inside.
//! - The kernel never parses foreign bytes as metadata: every field is made here, from values that were
//!   checked.
#![forbid(unsafe_code)]

mod acl;
mod attribute;
mod format;
mod interned;
mod names;
mod reader;
mod stack;
mod tree;
mod writer;

pub use format::BLOCK_LEN;
pub use reader::{HEAD_LEN, Head};
pub use stack::Ground;
pub use tree::{Device, Entry, EntryKind, Metadata, Placed, Tree};
pub use writer::IMAGE_LEN_MAX;
