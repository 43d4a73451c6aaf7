//! Measures memory and processor time of a million files: as a tree, as an image, read again, and merged from ten
//! layers.
//!
//!     cargo run --release -p erofs --example million

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::Duration;

use erofs::{Device, Entry, EntryKind, Ground, Metadata, Tree};

const FILES: u64 = 1_000_000;
const LAYERS: u64 = 10;

fn main() -> types::Result<()> {
    let mut image = Vec::new();
    let whole = measured("made", || layer(0..FILES))?;
    measured("made and written", || {
        let tree = layer(0..FILES)?;
        tree.write(&mut io::sink())
    })?;
    whole.write(&mut image)?;
    drop(whole);
    measured("read", || Tree::read(&image))?;
    measured("read, the lowest of two, and written", || {
        let layers = [Tree::read(&image), layer(0..1)];
        Tree::stack(layers, Ground::Nothing)?.write(&mut io::sink())
    })?;
    let each = FILES / LAYERS;
    let images: types::Result<Vec<Vec<u8>>> = (0..LAYERS)
        .map(|number| {
            let mut image = Vec::new();
            layer(number * each..(number + 1) * each)?.write(&mut image)?;
            Ok(image)
        })
        .collect();
    let images = images?;
    measured("read of ten layers, merged and written", || {
        let layers = images.iter().map(|image| Tree::read(image));
        Tree::stack(layers, Ground::Nothing)?.write(&mut io::sink())
    })?;
    Ok(())
}

fn layer(files: std::ops::Range<u64>) -> types::Result<Tree> {
    let mut tree = Tree::new(Device { tag: "tag".into(), len: 0 });
    let attributes = BTreeMap::new();
    for file in files {
        let path = format!("usr/lib/folder-{}/file-{:03}.so", file / 1000, file % 1000);
        let metadata =
            Metadata { mode: 0o644, uid: 0, gid: 0, mtime: (file.cast_signed(), 0), attributes: &attributes };
        tree.add(&Entry {
            path: path.as_bytes(),
            kind: EntryKind::File { len: 100, at: file * 512 },
            metadata,
        })?;
    }
    Ok(tree)
}

/// Prints the growth of the process's peak memory and the processor time of some work.
fn measured<T>(what: &str, work: impl FnOnce() -> types::Result<T>) -> types::Result<T> {
    fs::write("/proc/self/clear_refs", "5").expect("proc is mounted");
    let (before, begun) = (memory("VmRSS:"), used());
    let done = work();
    let (grown, used) = (memory("VmHWM:").saturating_sub(before), used().saturating_sub(begun));
    println!("{what}: {} MB, {} ms", grown >> 20, used.as_millis());
    done
}

/// A figure of this process in bytes (proc_pid_status(5)).
fn memory(key: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("proc is mounted");
    let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("a key of Linux");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") << 10
}

/// Processor time of this thread (Linux, `Documentation/scheduler/sched-stats.rst`).
fn used() -> Duration {
    let used = fs::read_to_string("/proc/thread-self/schedstat").expect("proc is mounted");
    Duration::from_nanos(used.split(' ').next().and_then(|used| used.parse().ok()).expect("a number"))
}
