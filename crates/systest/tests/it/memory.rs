//! What the daemon holds in memory while it works.

use testkit::bulk::{Bulk, Compression, Shape};
use testkit::{Daemon, Registry, images, memory};

/// Bytes that a pull may take beside what the daemon has anyway. It is to stay below 64 MB altogether, of which its
/// program and the records take some 14.
const PULL_MAX: u64 = 44_000_000;

const MB: u64 = 1_000_000;

/// However large the layers are, however many files are in them and however they are compressed.
#[test]
fn a_pull_takes_bounded_memory() {
    let registry = Registry::start();
    let mut grown = Vec::new();
    for (what, len, files) in [("few", 180 * MB, 30), ("many", 120 * MB, 100_000)] {
        for compression in [Compression::Gzip, Compression::Zstd] {
            let push = |name: &str, len: u64, files: u64| {
                let image = Bulk::make(Shape { len, files, compression });
                registry.push(image.layout.path(), images::TAG, name)
            };
            let first = push("first:1", len / 100, files / 100 + 3);
            let image = push("image:1", len, files);
            let daemon = Daemon::start();
            // What a pull needs of the program is in memory after one of the same kind.
            daemon.hoist(["pull", "-q", &first]).ok();
            let before = memory::rollup(daemon.pid(), "Rss");
            memory::forget_peak(daemon.pid());
            daemon.hoist(["pull", "-q", &image]).ok();
            grown.push((what, compression, memory::peak(daemon.pid()).saturating_sub(before)));
            // The layers become one tree.
            memory::forget_peak(daemon.pid());
            daemon.hoist(["run", "--rm", "--network", "none", &image, "sh", "-c", "true"]).ok();
            grown.push((what, compression, memory::peak(daemon.pid()).saturating_sub(before)));
        }
    }
    println!("{grown:?}");
    assert!(grown.iter().all(|(.., bytes)| *bytes < PULL_MAX), "{grown:?}");
}
