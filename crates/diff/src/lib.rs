//! Layers: streams of changes to a tree, as tar archives (image-spec `layer.md`).
//!
//! ```text
//! compressed bytes ─▶ Decoder ─▶ hash (diff id) ─▶ tar::Reader ─┬▶ apply ─▶ files beneath a root's fd
//!                                                               └▶ store ─▶ the archive, and a tree of metadata
//! ```
//!
//! Every byte of a layer is hostile: names, links, sizes and counts are what an attacker wrote. Files are
//! made beneath a descriptor of the root and never by a path of the host; limits stand in [`Limits`].
#![forbid(unsafe_code)]

mod apply;
mod compression;
mod store;
pub mod tar;

pub use apply::{Applied, ApplyOptions, Limits, Whiteouts, apply};
pub use compression::{Compression, Decoder};
pub use store::{Stored, store};
