//! Pulls, from a registry on loopback to a tree on disk, and removals, beside the limit that the machine sets.
//!
//! ```text
//! pull                     all of these
//! pull-50 pull-240 pull-1000   images that are fetched as so many MB; each of few large and of 100,000 small
//!                          files, in gzip and in zstd
//! ```
//!
//! The limit is each stage alone, as fast as this machine does it: the wire and its hash (`curl | sha256sum`), one
//! pass of inflate, the bytes written and on disk. Nobody is faster than the slowest of them. Then what the record of spans
//! adds to storing the layers.

use std::fs::File;
use std::io::{self, Read, Write};
use std::process::Command;
use std::time::Instant;

use diff::spans::Record;
use diff::{Decoder, Limits};
use testkit::bulk::{Bulk, Compression, Shape};
use testkit::{Registry, images, run};

use crate::side::Side;
use crate::work::{Cost, cost};

/// Names of choices, MB of images as they are fetched, and how often each is pulled.
const SIZES: [(&str, u64, usize); 3] = [("pull-50", 50, 3), ("pull-240", 240, 3), ("pull-1000", 1000, 1)];
/// How many times more bytes the files are.
const RATIO: u64 = 3;
const SMALL_FILES: u64 = 100_000;
const LARGE_FILES: u64 = 30;

pub(crate) fn is_selected(wanted: &[String]) -> bool {
    wanted.is_empty() || wanted.iter().any(|word| word.starts_with("pull"))
}

pub(crate) fn pull(sides: &[(&str, &dyn Side)], registry: &Registry, wanted: &[String]) {
    println!(
        "{:<44} {:>9} {:>8} {:>9} {:>11} {:>7} {:>10}",
        "", "wall ms", "CPU s", "peak MB", "written MB", "x kept", "remove ms"
    );
    for (name, megabytes, runs) in SIZES {
        let selected = wanted.is_empty() || wanted.iter().any(|word| word == "pull" || word == name);
        if !selected {
            continue;
        }
        for (files, what) in [(LARGE_FILES, "few files"), (SMALL_FILES, "100,000 files")] {
            for compression in [Compression::Gzip, Compression::Zstd] {
                let image = Bulk::make(Shape { len: megabytes * 1_000_000 * RATIO, files, compression });
                let what = format!("{megabytes} MB, {what}, {compression:?}").to_lowercase();
                let reference = registry.push(image.layout.path(), images::TAG, &format!("bench/{name}:1"));
                measure(sides, &image, &what, &reference, runs);
            }
        }
    }
}

fn measure(sides: &[(&str, &dyn Side)], image: &Bulk, what: &str, reference: &str, runs: usize) {
    println!(
        "{what}: {} MB to fetch, {} MB of archives",
        image.compressed_len / 1_000_000,
        image.plain_len / 1_000_000
    );
    let mut figures: Vec<Vec<(Cost, f64)>> = vec![Vec::new(); sides.len()];
    for _ in 0..runs {
        for ((_, side), figures) in sides.iter().zip(&mut figures) {
            let pulled = cost(side.daemon_pid(), || side.pull(reference));
            let start = Instant::now();
            side.remove(reference);
            figures.push((pulled, start.elapsed().as_secs_f64() * 1000.0));
        }
    }
    let kept_mb = (image.compressed_len + image.plain_len) as f64 / 1e6;
    for ((side, _), figures) in sides.iter().zip(figures) {
        let median = |of: fn(&(Cost, f64)) -> f64| crate::median(figures.iter().map(of).collect());
        let written_mb = median(|(pull, _)| pull.written_mb);
        println!(
            "{:<44} {:>9.0} {:>8.2} {:>9.1} {:>11.1} {:>7.2} {:>10.0}",
            format!("  {side}"),
            median(|(pull, _)| pull.wall_ms),
            median(|(pull, _)| pull.cpu_s),
            median(|(pull, _)| pull.peak_mb),
            written_mb,
            written_mb / kept_mb,
            median(|(_, remove)| *remove),
        );
    }
    limit(image, reference);
    records(image);
}

/// The stages that nobody can leave out, each alone.
fn limit(image: &Bulk, reference: &str) {
    let (host, path) = reference.split_once('/').expect("a host and a path");
    let path = path.split(':').next().expect("the first part");
    let wire = time(|| {
        for blob in &image.blobs {
            let hex = blob.file_name().expect("a digest").to_string_lossy();
            let script = format!("curl -s http://{host}/v2/{path}/blobs/sha256:{hex} | sha256sum");
            run(Command::new("sh").args(["-c", &script])).ok();
        }
    });
    let inflate = time(|| each_plain_chunk(image, |_| Ok(())));
    let written = tempfile::NamedTempFile::new().expect("a temporary file");
    let write = time(|| {
        for blob in &image.blobs {
            io::copy(&mut File::open(blob).expect("a file of ours"), &mut written.as_file()).expect("room");
        }
        each_plain_chunk(image, |chunk| written.as_file().write_all(chunk));
        written.as_file().sync_all().expect("room");
    });
    println!(
        "{:<44} curl | sha256sum {wire:.0} ms, inflate {inflate:.0} ms, inflate and write {write:.0} ms",
        "  limit"
    );
}

/// What it costs to record spans: the image's layers stored one after another from local blobs, without and with a record,
/// in turn and both behind a run that warms caches. Milliseconds of CPU and the bytes of the records.
fn records(image: &Bulk) {
    const RUNS: usize = 5;
    let mut cpu = [Vec::new(), Vec::new()];
    let mut kept = 0;
    for run in 0..=RUNS {
        for (with_record, cpu) in cpu.iter_mut().enumerate() {
            let before = own_cpu_ms();
            kept = 0;
            for blob in &image.blobs {
                let (data, to) = (tempfile::tempfile().expect("room"), tempfile::tempfile().expect("room"));
                let hex = blob.file_name().expect("a digest").to_string_lossy();
                let digest = format!("sha256:{hex}").parse().expect("a digest");
                let record = (with_record == 1).then_some(Record { blob: &digest, to: &to });
                let source = File::open(blob).expect("a file of ours");
                diff::store(source, Limits::default(), &data, record).expect("a layer of ours");
                kept += to.metadata().expect("a file of ours").len();
            }
            if run > 0 {
                cpu.push(own_cpu_ms() - before);
            }
        }
    }
    let [without, with] = cpu.map(crate::median);
    println!(
        "{:<44} store {without:.0} ms of CPU, with records {with:.0} ms: x {:.3}; records {:.2} MB, x {:.4} of the blobs",
        "  spans",
        with / without,
        kept as f64 / 1e6,
        kept as f64 / image.compressed_len as f64
    );
}

/// Of this process, all threads.
fn own_cpu_ms() -> f64 {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    spent.tv_sec as f64 * 1e3 + spent.tv_nsec as f64 / 1e6
}

fn each_plain_chunk(image: &Bulk, mut work: impl FnMut(&[u8]) -> io::Result<()>) {
    let mut buffer = vec![0; 256 * 1024];
    for blob in &image.blobs {
        let mut plain = Decoder::new(File::open(blob).expect("a file of ours")).expect("a layer of ours");
        loop {
            match plain.read(&mut buffer).expect("a layer of ours") {
                0 => break,
                len => work(&buffer[..len]).expect("room"),
            }
        }
    }
}

/// Milliseconds.
fn time(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1000.0
}
