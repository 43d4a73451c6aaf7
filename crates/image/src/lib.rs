//! The meaning of blobs: which JSON is an index, a manifest or a config, which image of several is meant,
//! and what a blob keeps alive.
//!
//! Everything here is a pure function of bytes that came from a registry or an archive, so sizes and counts
//! are bounded and media types are believed only if the document is one.
//!
//! - `node`: indexes and manifests, and what they keep alive.
//! - `index`: what the entries of an index are.
//! - `platforms`: which image of an index is meant.
//! - `config`: configs, and the names of the trees that layers make.
//! - `check`: what is an image to run, and which layers can be unpacked.
#![forbid(unsafe_code)]

mod check;
mod config;
mod index;
mod node;
mod platforms;

pub use check::{artifact_type, check_distributable, check_layer};
pub use config::{chain_ids, parse_config, read_config};
pub use index::{is_attestation, is_blob, is_made_of_blobs};
pub use node::Node;
pub use platforms::{Platforms, choose};

/// Bytes of a manifest, index or config.
pub const DOCUMENT_LEN_MAX: u64 = 8 << 20;

/// Manifests in an index, and layers in a manifest.
pub const CHILDREN_MAX: usize = 4096;

/// Indexes inside indexes.
pub const INDEX_DEPTH_MAX: usize = 4;

/// A digest that is this hexadecimal digit 64 times.
#[cfg(test)]
fn digest(letter: &str) -> types::Digest {
    format!("sha256:{}", letter.repeat(64)).parse().unwrap()
}
