//! The meaning of blobs: which JSON is an index, a manifest or a config, which image of an index fits a platform, and
//! which blobs a blob keeps alive.
//!
//! Everything here is a pure function of untrusted bytes, from a registry or an archive: sizes and counts are
//! bounded, and a document must be what its media type says.
//!
//! - `node`: indexes and manifests, and the labels that keep their children alive.
//! - `index`: the kinds of entries in an index.
//! - `platforms`: which image of an index fits a platform.
//! - `config`: configs and chain ids.
//! - `check`: which images can be run, and which layers can be unpacked.
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

/// Bytes of a manifest, index or config at most.
pub const DOCUMENT_LEN_MAX: u64 = 8 << 20;

/// Manifests in an index, and layers in a manifest, at most.
pub const CHILDREN_MAX: usize = 4096;

/// Nesting depth of indexes at most.
pub const INDEX_DEPTH_MAX: usize = 4;

/// A digest that repeats this hexadecimal digit 64 times.
#[cfg(test)]
fn digest(letter: &str) -> types::Digest {
    format!("sha256:{}", letter.repeat(64)).parse().unwrap()
}
