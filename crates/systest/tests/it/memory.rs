//! What the daemon holds in memory while it works.

use std::process::Command;
use std::time::Duration;

use testkit::bulk::{Bulk, Compression, Shape};
use testkit::disk::RecordedDisk;
use testkit::{Daemon, Fault, FaultProxy, Registry, images, memory, run, unmount_below};

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

/// Takes the disk away from the daemon's root, also from a test that failed.
struct Mounts(std::path::PathBuf);

impl Drop for Mounts {
    fn drop(&mut self) {
        unmount_below(&self.0);
    }
}

/// Eight pulls at once, of 24 layers that have nothing in common, have no more than one may: from a registry that is
/// fast, and slow, and onto a disk that is slow.
#[test]
fn pulls_at_once_share_what_they_may_take() {
    let registry = Registry::start();
    let push = |name: &str, len: u64, files: u64| {
        let image = Bulk::make(Shape { len, files, compression: Compression::Gzip });
        registry.push(image.layout.path(), images::TAG, name)
    };
    let first = push("at-once-first:1", MB, 3);
    // Of other lengths each, so that no blob is another's.
    let images: Vec<String> =
        (0..8).map(|at| push(&format!("at-once-{at}:1"), (12 + at) * MB, 12 + 3 * at)).collect();
    let share = Fault::Throttle { bytes: 64 << 10, every: Duration::from_millis(20) };
    let proxy = FaultProxy::start(&registry, move |asked| match asked.blob() {
        Some(_) => vec![share.clone()],
        None => Vec::new(),
    });
    let mut grown = Vec::new();
    for what in ["fast", "slow registry", "slow disk"] {
        let mut daemon = Daemon::start();
        let disk = (what == "slow disk").then(|| {
            daemon.terminate();
            let disk = RecordedDisk::new(320 << 20);
            run(Command::new("mount").arg("--bind").arg(disk.path()).arg(daemon.root())).ok();
            daemon.start_again();
            disk
        });
        // Gone before the disk, which waits for its last user.
        let _mounts = Mounts(daemon.root());
        daemon.hoist(["pull", "-q", &first]).ok();
        if let Some(disk) = &disk {
            disk.slow_down(Duration::from_millis(2));
        }
        let before = memory::rollup(daemon.pid(), "Rss");
        memory::forget_peak(daemon.pid());
        std::thread::scope(|scope| {
            for image in &images {
                let name = if what == "slow registry" { proxy.through(image) } else { image.clone() };
                let daemon = &daemon;
                scope.spawn(move || daemon.hoist(["pull", "-q", &name]).ok());
            }
        });
        grown.push((what, memory::peak(daemon.pid()).saturating_sub(before)));
        daemon.terminate();
    }
    println!("{grown:?}");
    assert!(grown.iter().all(|(_, bytes)| *bytes < PULL_MAX), "{grown:?}");
}
