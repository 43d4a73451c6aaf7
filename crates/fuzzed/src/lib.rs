//! The fuzz targets: functions that run a parser of untrusted bytes on any input. The fuzzers of `fuzz/` call them, and
//! the ordinary tests replay their seeds.
//!
//! A target panics if the parser does, or if its result violates a property: what was parsed can be written and parsed
//! again, and no file is created outside of its directory.
#![forbid(unsafe_code)]

mod archive;
mod blob;
mod erofs;
mod layer;
mod spans;

use std::path::Path;

use types::descriptor::media_type;
use types::{Digest, Reference};

/// A fuzz target, which takes any bytes.
pub type Target = fn(&[u8]);

/// All targets, by the names of their folders of seeds.
pub const TARGETS: [(&str, Target); 18] = [
    ("reference", reference),
    ("digest", digest),
    ("document", document),
    ("layer", layer::layer),
    ("archive", archive::archive),
    ("hosts_toml", hosts_toml),
    ("challenge", challenge),
    ("docker_config", docker_config),
    ("frame", frame),
    ("authority", authority),
    ("payload", payload),
    ("bolt", bolt),
    ("cdi", cdi),
    ("recipe", blob::recipe),
    ("gzip", blob::gzip),
    ("parts", blob::parts),
    ("spans", spans::spans),
    ("erofs", erofs::erofs),
];

/// Runs one target.
pub fn run(name: &str, bytes: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("a target of the list");
    target(bytes);
}

fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(read) = text.parse::<Reference>() {
        let again: Reference = read.to_string().parse().expect("what is written can be read");
        assert_eq!(read, again, "{text:?}");
    }
}

fn digest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(read) = text.parse::<Digest>() {
        assert_eq!(read.to_string(), text);
    }
}

/// The first byte chooses the format. Names of parsed devices must be qualified, so that they cannot be taken for
/// paths.
fn cdi(bytes: &[u8]) {
    let Some((form, bytes)) = bytes.split_first() else { return };
    let form = if form.is_multiple_of(2) { ::cdi::Form::Json } else { ::cdi::Form::Yaml };
    if let Ok(document) = ::cdi::Document::parse(bytes, form) {
        assert!(document.names().all(|name| ::cdi::is_qualified(&name)));
    }
}

/// Walks the database to the depth of containerd's. Keys and values must not be longer than the file.
fn bolt(bytes: &[u8]) {
    fn walk(bucket: ::bolt::Bucket<'_>, depth: usize, len: &mut usize) -> types::Result<()> {
        bucket.each(|key, entry| {
            *len += key.len();
            match entry {
                ::bolt::Entry::Bucket(bucket) if depth < 8 => walk(bucket, depth + 1, len),
                ::bolt::Entry::Bucket(_) => Ok(()),
                ::bolt::Entry::Value(value) => {
                    *len += value.len();
                    Ok(())
                }
            }
        })
    }
    if let Ok(database) = ::bolt::Database::open(bytes) {
        let mut len = 0;
        let _ = walk(database.root(), 0, &mut len);
        assert!(len <= bytes.len(), "{len} bytes of {}", bytes.len());
    }
}

/// The first byte chooses the media type.
fn document(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let kinds = [
        media_type::OCI_INDEX,
        media_type::OCI_MANIFEST,
        media_type::DOCKER_MANIFEST_LIST,
        media_type::DOCKER_MANIFEST,
    ];
    let kind = kinds[usize::from(*kind) % kinds.len()];
    if let Ok(node) = image::Node::parse(kind, bytes) {
        assert!(node.reference_labels().len() <= node.children().len());
        if let image::Node::Index(index) = &node {
            // Every child of the index has these bytes as its document, so that the index contains itself.
            let told = image::Platforms::ask(index, |_| Some(bytes.to_vec()));
            let _ = image::choose(index, &types::Platform::host(), &told);
        }
    }
    let _ = image::parse_config(bytes, 1);
}

fn hosts_toml(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = registry::parsers::hosts_toml(text);
    }
}

fn challenge(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = registry::parsers::challenge(text);
    }
}

fn docker_config(bytes: &[u8]) {
    let _ = registry::DockerConfig::parse(Path::new("config.json"), bytes);
}

/// The first byte is the length of the pieces in which the input arrives. The frames must not depend on it.
fn frame(bytes: &[u8]) {
    let Some((piece_len, bytes)) = bytes.split_first() else { return };
    let mut whole = ttrpc::frame::Inbox::default();
    whole.feed(bytes);
    let mut pieces = ttrpc::frame::Inbox::default();
    let mut frames = 0;
    for piece in bytes.chunks(usize::from(*piece_len).max(1)) {
        pieces.feed(piece);
        while let Some(frame) = pieces.pop() {
            let same = whole.pop().expect("as many frames");
            assert_eq!((frame.header, frame.content), (same.header, same.content));
            frames += 1;
        }
    }
    assert!(whole.pop().is_none() && frames <= bytes.len());
}

/// The first byte is the length of the pieces in which the input arrives, which must not matter. Rewriting must be
/// idempotent.
fn authority(bytes: &[u8]) {
    let Some((piece_len, bytes)) = bytes.split_first() else { return };
    let read = |bytes: &[u8], piece_len: usize| {
        let mut rewriter = h2_authority::Rewriter::default();
        let (mut read, mut held) = (Vec::new(), Vec::new());
        for piece in bytes.chunks(piece_len.max(1)) {
            held.extend_from_slice(piece);
            let passed = rewriter.pass(&mut held);
            read.extend(held.drain(..passed));
            assert!(held.len() <= h2_authority::HELD_MAX);
        }
        read.extend(held);
        read
    };
    let whole = read(bytes, bytes.len());
    assert_eq!(whole.len(), bytes.len());
    assert_eq!(read(bytes, usize::from(*piece_len)), whole);
    assert_eq!(read(&whole, bytes.len()), whole);
}

fn payload(bytes: &[u8]) {
    if let Ok(signed) = policy::parse_payload(bytes) {
        assert!(!signed.repository.is_empty());
    }
}
