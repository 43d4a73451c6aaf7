//! Layers: tar archives of the changes to a directory tree (image-spec `layer.md`).
//!
//! ```text
//! compressed bytes ─▶ pipeline: Decoder ─▶ hash (diff id) ─▶ tar::Reader ─┬▶ apply ─▶ files beneath a root's fd
//!                                                                         └▶ store ─▶ the archive, and a tree of metadata
//! two trees ─▶ changes ─▶ compare ─▶ tar::Writer ─▶ hash (diff id) ─▶ Encoder ─▶ compressed bytes
//! ```
//!
//! The crate also copies files into and out of containers: [`pack`] archives a part of a tree, [`lay_down`] extracts an
//! archive into another.
//!
//! Every byte of a layer is untrusted: an attacker chose its names, links, sizes and counts. Files are created beneath
//! a descriptor of the root, never by a path of the host, and [`Limits`] bound what a layer may use.
#![forbid(unsafe_code)]

mod apply;
mod budget;
mod changes;
mod compare;
mod compression;
mod decoder;
mod lay;
mod memory;
mod mounts;
mod pack;
mod pipeline;
mod reread;
pub mod spans;
mod store;
pub mod tar;
mod tree;

pub use apply::{Applied, ApplyOptions, Limits, Whiteouts, apply};
pub use changes::{Change, ChangeKind, Trees};
pub use compare::{CompareOptions, Compared, compare};
pub use compression::{Compression, Encoder};
pub use decoder::{Decoder, Helpers, Origin};
pub use lay::{Laid, LayOptions, Owners, lay_down};
pub use pack::pack;
pub use reread::reread;
pub use store::{HOLES_AT as ARCHIVE_LEN_MAX, Stored, store};
pub use tree::Node;

use apply::names;
