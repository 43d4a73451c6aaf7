//! Layers, which are read and applied to a tree. Nothing outside of the tree may change.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::os::fd::AsFd;

use diff::tar::Reader;
use diff::{ApplyOptions, Decoder, Helpers, Limits, Origin, Whiteouts};
use tempfile::TempDir;

/// Large enough to reach all code paths, and small enough for many runs per second.
const LIMITS: Limits = Limits {
    entries: 64,
    bytes: 1 << 20,
    paths: 1 << 20,
    origin: Origin::Stored,
    helpers: Helpers::Fixed(0),
};

pub(crate) fn layer(bytes: &[u8]) {
    read(bytes);
    for whiteouts in [Whiteouts::Remove, Whiteouts::Overlay] {
        apply(bytes, whiteouts);
    }
}

fn read(bytes: &[u8]) {
    let Ok(decoder) = Decoder::new(bytes) else { return };
    let mut reader = Reader::new(BufReader::new(decoder.take(LIMITS.bytes)));
    for _ in 0..LIMITS.entries {
        match reader.next_entry() {
            Ok(Some(_)) => {}
            _ => return,
        }
    }
}

fn apply(bytes: &[u8], whiteouts: Whiteouts) {
    let memory = std::path::Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let dir = TempDir::new_in(parent).expect("a temporary directory");
    let root = dir.path().join("root");
    fs::create_dir(&root).expect("a writable directory");
    fs::write(dir.path().join("outside"), "untouched").expect("a writable directory");
    let root = File::open(root).expect("it was just made");
    let _ = diff::apply(bytes, ApplyOptions { whiteouts, limits: LIMITS }, root.as_fd());
    let outside = fs::read_to_string(dir.path().join("outside")).expect("it is still there");
    assert_eq!(outside, "untouched");
    let beside = fs::read_dir(dir.path()).expect("a readable directory").count();
    assert_eq!(beside, 2, "nothing is made beside the root");
}
