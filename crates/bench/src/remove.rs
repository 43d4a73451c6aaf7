//! Removal of an image of a hundred layers and a million files: how long the caller waits, and when the disk is free.
//!
//! ```text
//! bench remove
//!
//! waited for   `rmi` and `system prune`, as a user types them
//! deleted      from then until the last file is deleted, in the background
//! ```
//!
//! With both storage formats of layers: as archives, and as directories of files.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use testkit::layout::{archive_of, tar_entry};
use testkit::{Daemon, Layout, Registry, images};

use crate::marks;

const LAYERS: usize = 100;
const FILES: usize = 10_000;
/// The mark for the caller's wait.
const MARK_MS: f64 = 1000.0;
/// Between two polls of the files that remain.
const PAUSE: Duration = Duration::from_millis(20);

/// Prints the table.
#[expect(clippy::disallowed_methods, reason = "a benchmark; nobody says that the last file is deleted")]
pub(crate) fn remove() {
    let registry = Registry::start();
    let reference = push(&registry);
    println!("{:<44} {:>12} {:>12}", "milliseconds", "waited for", "deleted");
    for form in ["archives", "directories"] {
        let daemon = Daemon::start_with(&[], &format!("[snapshots]\nlayers = \"{form}\"\n"));
        daemon.hoist(["pull", "-q", &reference]).ok();
        let start = Instant::now();
        daemon.hoist(["rmi", &reference]).ok();
        daemon.hoist(["system", "prune", "--force"]).ok();
        let waited = start.elapsed();
        let removed = daemon.root().join("snapshots/overlayfs/removed");
        while !is_empty(&removed) {
            std::thread::sleep(PAUSE);
        }
        println!(
            "{:<44} {:>12} {:>12}",
            format!("{} files in {LAYERS} layers, {form}", LAYERS * FILES),
            waited.as_millis(),
            (start.elapsed() - waited).as_millis(),
        );
        marks::at_most("milliseconds that are waited for", waited.as_secs_f64() * 1000.0, MARK_MS);
    }
}

fn push(registry: &Registry) -> String {
    let layer = |layer: usize| {
        let file = |file: usize| tar_entry(&format!("{layer}/{}/{file}", file / 100), b'0', "", &[]);
        archive_of(&(0..FILES).map(file).collect::<Vec<_>>())
    };
    let layers: Vec<Vec<u8>> = (0..LAYERS).map(layer).collect();
    let layout = Layout::new();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    layout.tag(&layout.image_of(architecture, &layers, &json!({})), images::TAG);
    registry.push(layout.path(), images::TAG, "bench/remove:1")
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).map_or(true, |mut entries| entries.next().is_none())
}
