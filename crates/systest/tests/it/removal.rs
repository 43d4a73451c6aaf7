//! Removing an image does not wait until the disk has freed its files.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use testkit::layout::{archive_of, tar_entry};
use testkit::{Daemon, Layout, eventually};
use types::Digest;
use types::descriptor::media_type;

const NAME: &str = "localhost/large:latest";
const LAYERS: usize = 10;
const FILES: usize = 10_000;
/// More than the daemon frees in one step.
const LARGE_LEN: usize = 150 << 20;
/// The longest that the command may take.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// A busy machine may slow down one or two removals, but not all.
const TRIES: usize = 3;

/// The archive of an image of 100,000 files and a large one.
fn archive(to: &Path) {
    let layout = Layout::new();
    let files = |layer: usize| {
        let file = |file: usize| tar_entry(&format!("{layer}/{}/{file}", file / 100), b'0', "", &[]);
        archive_of(&(0..FILES).map(file).collect::<Vec<_>>())
    };
    let mut layers: Vec<Vec<u8>> = (0..LAYERS).map(files).collect();
    layers.push(archive_of(&[tar_entry("large", b'0', "", &vec![7; LARGE_LEN])]));
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let blobs: Vec<_> = layers.iter().map(|layer| layout.blob(media_type::OCI_LAYER, layer)).collect();
    let config = json!({"config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    layout.tag(&layout.image_of_blobs(&blobs, &config), NAME);
    layout.archive(to);
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).map_or(true, |mut entries| entries.next().is_none())
}

#[test]
fn removing_many_files_and_large_ones_is_quick_and_all_of_it_goes() {
    let dir = TempDir::with_prefix_in("hoist-removal-", "/var/tmp").expect("a temporary directory");
    let image = dir.path().join("image.tar");
    archive(&image);
    for form in ["archives", "directories"] {
        let daemon = Daemon::start_with(&[], &format!("[snapshots]\nlayers = {form:?}\n"));
        let mut waits: Vec<Duration> = Vec::new();
        while waits.len() < TRIES && waits.iter().all(|waited| *waited >= WAIT_MAX) {
            daemon.load(&image);
            let begun = Instant::now();
            daemon.hoist(["rmi", NAME]).ok();
            daemon.hoist(["system", "prune", "--force"]).ok();
            waits.push(begun.elapsed());
            for aside in ["content/removed", "content/blobs/sha256", "snapshots/overlayfs/removed"] {
                eventually(aside, || is_empty(&daemon.root().join(aside)).then_some(()));
            }
        }
        println!("{form}: {waits:?} were waited for");
        assert!(waits.iter().any(|waited| *waited < WAIT_MAX), "{form}: {waits:?}");
    }
}
