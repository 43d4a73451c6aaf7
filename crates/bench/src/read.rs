//! Reads of a container's files: with layers stored as archives, and beside them with layers in plain directories.
//!
//! ```text
//! bench read              all of these, five times
//! bench read large 15     those of one image, small or large, 15 times
//! bench read loop         archives behind loop devices, for kernels that cannot mount files, or read them wrongly
//!
//! find       stat of every file, as `find` does
//! small      open, read and close small files in random order
//! in order   read large files sequentially
//! anywhere   read 4 KiB at random offsets of large files
//! ```
//!
//! Two daemons have the same images, one in each storage format, and one container each. This program reads the
//! containers' root file systems in turn, first with a cold page cache, as when a container starts long after its image
//! was pulled, then with a warm one. A shared disk varies from one moment to the next, so the table has the ratio of
//! the medians and the quartiles of the ratios of single rounds. The mark is for the ratio of the medians.

use std::env;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use testkit::bulk::{Bulk, Compression, Shape};
use testkit::{Daemon, Registry, images};

use crate::work::forget_files;
use crate::{marks, median};

/// The mark: archives' time as a multiple of plain overlayfs'.
const MARK: f64 = 1.05;
/// The default number of rounds.
const ROUNDS: usize = 5;
/// The number of files that are opened, read and closed, and of reads of 4 KiB.
const READS: usize = 10_000;
const SMALL: Shape = Shape { len: 30_000 * 3000, files: 30_000, compression: Compression::Zstd };
const LARGE: Shape = Shape { len: 6 * (64 << 20), files: 6, compression: Compression::Zstd };

/// Prints the table, or the selected rows. The error is a usage text.
pub(crate) fn read(words: &[String]) -> Result<(), &'static str> {
    let (mut selected, mut by_loop, mut rounds) = (None, false, ROUNDS);
    for word in words {
        match (word.as_str(), word.parse()) {
            ("small" | "large", _) => selected = Some(word.as_str()),
            ("loop", _) => by_loop = true,
            (_, Ok(count @ 1..)) => rounds = count,
            _ => return Err("bench read [small|large] [loop] [ROUNDS]"),
        }
    }
    let registry = Registry::start();
    let forms = ["archives", "directories"];
    let shown = if by_loop { "loop_devices = true\n" } else { "" };
    let daemons = [(forms[0], shown), (forms[1], "")]
        .map(|(form, shown)| Daemon::start_with(&[], &format!("[snapshots]\nlayers = \"{form}\"\n{shown}")));
    println!("{:<44} {:>12} {:>12} {:>8} {:>14}", "milliseconds", forms[0], forms[1], "ratio", "quartiles");
    for (name, shape) in [("small", SMALL), ("large", LARGE)] {
        if selected.is_some_and(|selected| selected != name) {
            continue;
        }
        let image = Bulk::make(shape);
        let reference = registry.push(image.layout.path(), images::TAG, &format!("bench/read-{name}:1"));
        drop(image);
        for daemon in &daemons {
            daemon.hoist(["pull", "-q", &reference]).ok();
            daemon.hoist(["create", "--network", "none", "--name", name, &reference, "sleep", "100000"]).ok();
        }
        let sides = Sides { daemons: &daemons, name, rounds, by_loop };
        match name {
            "small" => {
                compare("find", &sides, find);
                compare("small files: open, read, close", &sides, small);
            }
            _ => {
                compare("large files, in order", &sides, in_order);
                compare("large files, 4 KiB anywhere", &sides, anywhere);
            }
        }
        for daemon in &daemons {
            daemon.hoist(["rm", "-f", name]).ok();
        }
    }
    Ok(())
}

/// A container of each daemon.
struct Sides<'a> {
    daemons: &'a [Daemon; 2],
    name: &'a str,
    rounds: usize,
    /// Whether archives are behind loop devices.
    by_loop: bool,
}

impl Sides<'_> {
    /// Starts a container with a cold page cache and returns the path of its root file system.
    fn start(&self, at: usize) -> PathBuf {
        let daemon = &self.daemons[at];
        env::set_current_dir("/").expect("a root");
        daemon.hoist(["stop", "-t", "0", self.name]).ok();
        forget_files();
        daemon.hoist(["start", self.name]).ok();
        let pid = daemon.hoist(["inspect", "-f", "{{.State.Pid}}", self.name]).ok();
        Path::new("/proc").join(pid.text()).join("root/data")
    }
}

/// Prints two rows: with a cold and with a warm page cache.
fn compare(what: &str, sides: &Sides<'_>, work: fn(&[PathBuf])) {
    let mut cold = [Vec::new(), Vec::new()];
    let mut warm = [Vec::new(), Vec::new()];
    for round in 0..=sides.rounds {
        for turn in 0..2 {
            // The sides take turns to be first.
            let at = (turn + round) % 2;
            // Relative paths, so that the walk to the container's root is not measured.
            env::set_current_dir(sides.start(at)).expect("the container runs");
            let files = files();
            forget_files();
            let first = time(|| work(&files));
            let again = time(|| work(&files));
            if round > 0 {
                cold[at].push(first);
                warm[at].push(again);
            }
        }
    }
    env::set_current_dir("/").expect("a root");
    let by = if sides.by_loop { ", loop" } else { "" };
    for (how, figures) in [("cold", cold), ("warm", warm)] {
        let mut ratios: Vec<f64> =
            figures[0].iter().zip(&figures[1]).map(|(ours, plain)| ours / plain).collect();
        ratios.sort_by(f64::total_cmp);
        let [low, high] = [1, 3].map(|quarter| ratios[(ratios.len() - 1) * quarter / 4]);
        let [archives, directories] = figures.map(median);
        println!(
            "{:<44} {archives:>12.2} {directories:>12.2} {:>8.2} {:>14}",
            format!("{what}{by}, {how}"),
            archives / directories,
            format!("{low:.2} to {high:.2}")
        );
        marks::at_most("times as long as directories", archives / directories, MARK);
    }
}

/// All files below the working directory, in a fixed pseudo-random order.
fn files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![PathBuf::from(".")];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).expect("a directory of the image") {
            let entry = entry.expect("a directory of the image");
            match entry.file_type().expect("a file of the image").is_dir() {
                true => left.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    found.sort_by_cached_key(|path| types::Digest::of(path.as_os_str().as_encoded_bytes()).to_string());
    found
}

fn find(_: &[PathBuf]) {
    let mut left = vec![PathBuf::from(".")];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).expect("a directory of the image") {
            let path = entry.expect("a directory of the image").path();
            if fs::symlink_metadata(&path).expect("a file of the image").is_dir() {
                left.push(path);
            }
        }
    }
}

fn small(files: &[PathBuf]) {
    let mut buffer = vec![0; 64 << 10];
    for path in files.iter().cycle().take(READS) {
        let mut file = File::open(path).expect("a file of the image");
        while file.read(&mut buffer).expect("a file of the image") > 0 {}
    }
}

fn in_order(files: &[PathBuf]) {
    let mut buffer = vec![0; 256 << 10];
    for path in files {
        let mut file = File::open(path).expect("a file of the image");
        while file.read(&mut buffer).expect("a file of the image") > 0 {}
    }
}

fn anywhere(files: &[PathBuf]) {
    const PAGE: u64 = 4096;
    let files: Vec<(File, u64)> = files
        .iter()
        .map(|path| File::open(path).expect("a file of the image"))
        .map(|file| {
            let pages = file.metadata().expect("a file of the image").len() / PAGE;
            (file, pages)
        })
        .collect();
    let mut buffer = [0; PAGE as usize];
    let mut state = 1_u64;
    for (file, pages) in files.iter().cycle().take(READS) {
        // xorshift with a fixed seed: the same offsets in each round.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.read_exact_at(&mut buffer, state % pages * PAGE).expect("a file of the image");
    }
}

/// Runs `work`. Milliseconds.
fn time(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1000.0
}
