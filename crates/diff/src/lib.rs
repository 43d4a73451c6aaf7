//! Layers: streams of changes to a tree, as tar archives (image-spec `layer.md`).
//!
//! ```text
//! compressed bytes ─▶ pipeline: Decoder ─▶ hash (diff id) ─▶ tar::Reader ─┬▶ apply ─▶ files beneath a root's fd
//!                                                                         └▶ store ─▶ the archive, and a tree of metadata
//! two trees ─▶ changes ─▶ compare ─▶ tar::Writer ─▶ hash (diff id) ─▶ Encoder ─▶ compressed bytes
//! ```
//!
//! And archives that are no layers: a part of a tree [`pack`]ed, and [`lay_down`] on another.
//!
//! Every byte of a layer is hostile: names, links, sizes and counts are what an attacker wrote. Files are
//! made beneath a descriptor of the root and never by a path of the host; limits stand in [`Limits`].
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
