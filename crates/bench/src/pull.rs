//! Pulls, from a registry on loopback to an unpacked image on disk, and removals, beside the limit that the machine
//! sets.
//!
//! ```text
//! pull                     all of these
//! pull-50 pull-240 pull-1000   images of so many compressed MB: of few large files and of 100,000 small ones, in
//!                          gzip and in zstd
//! pull-parts               240 MB of few large files, in many gzip members and zstd frames, inflated in parallel
//! ```
//!
//! Each pull, and each stage of the limit after it, begins with a cold page cache: neither the registry's files nor
//! those last written are cached. Only the stage that inflates reads from memory, as a puller does.
//!
//! The limit is each stage alone, as fast as this machine can: receiving and hashing (`curl`, and the daemon's hash
//! function), one pass of inflate, and writing as many bytes as are stored to disk. No puller is faster than the
//! slowest stage: `x limit` is a side's time as a multiple of it. `curl | sha256sum` is shown beside the stages but is
//! not one: Debian's sha256sum does not use the processor's SHA instructions. `x pull` and `x remove` are a side's time
//! as a multiple of ours. The last figure is what recording spans adds to storing the layers.
//!
//! The marks below each image limit: the multiple of the limit, the daemon's memory, bytes written, the cost of spans;
//! and for 240 MB the share of containerd's time and CPU.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use diff::spans::Record;
use diff::{Decoder, Limits};
use testkit::bulk::{Bulk, Compression, Shape};
use testkit::{Registry, images, run};
use types::{Algorithm, Digest, Hasher};

use crate::marks::at_most;
use crate::podman::Podman;
use crate::side::Side;
use crate::work::{Cost, cost, cost_of_command, forget_files};

/// The name of each selection, the compressed size of its images in MB, and the number of pulls of each.
const SIZES: [(&str, u64, usize); 3] = [("pull-50", 50, 3), ("pull-240", 240, 3), ("pull-1000", 1000, 1)];
/// The files' size as a multiple of the compressed size.
const RATIO: u64 = 3;
const SMALL_FILES: u64 = 100_000;
const LARGE_FILES: u64 = 30;
/// The uncompressed bytes of one gzip member or zstd frame, in images that have many.
const PART_LEN: u64 = 4 << 20;

/// Marks: multiples of the slowest stage; MB of memory; multiples of the stored bytes; multiples of storing without
/// spans.
const LIMIT_MARK: f64 = 1.3;
const PEAK_MARK_MB: f64 = 64.0;
const WRITTEN_MARK: f64 = 1.05;
const RECORDS_MARK: f64 = 1.1;
/// The size of the images for which there are marks relative to containerd, in MB, and these marks.
const PEER_MB: u64 = 240;
const PEER_WALL_MARK: f64 = 0.25;
const PEER_CPU_MARK: f64 = 0.5;

pub(crate) fn is_selected(wanted: &[String]) -> bool {
    wanted.is_empty() || wanted.iter().any(|word| word.starts_with("pull"))
}

/// A program whose pulls are measured.
pub(crate) enum Puller<'a> {
    Daemon(&'a dyn Side),
    Podman(&'a Podman),
}

impl Puller<'_> {
    fn version(&self) -> String {
        match self {
            Puller::Daemon(side) => side.version(),
            Puller::Podman(podman) => podman.version(),
        }
    }

    fn pull(&self, image: &str) -> Cost {
        match self {
            Puller::Daemon(side) => cost(side.daemon_pid(), || side.pull(image)),
            Puller::Podman(podman) => cost_of_command(podman.pull(image)),
        }
    }

    fn remove(&self, image: &str) {
        match self {
            Puller::Daemon(side) => side.remove(image),
            Puller::Podman(podman) => drop(podman.remove(image)),
        }
    }
}

/// Measures pulls. The first of `sides` is Hoist.
pub(crate) fn pull(sides: &[(&str, Puller<'_>)], registry: &Registry, wanted: &[String]) {
    let versions: Vec<String> =
        sides.iter().map(|(name, side)| format!("{name} {}", side.version())).collect();
    println!("{}", versions.join(", "));
    println!(
        "{:<44} {:>9} {:>8} {:>9} {:>11} {:>7} {:>10} {:>8} {:>8} {:>9}",
        "",
        "wall ms",
        "CPU s",
        "peak MB",
        "written MB",
        "x kept",
        "remove ms",
        "x limit",
        "x pull",
        "x remove"
    );
    let is_selected =
        |name: &str| wanted.is_empty() || wanted.iter().any(|word| word == "pull" || word == name);
    let each = |name: &str, megabytes: u64, files: u64, part_len: u64, what: &str, runs: usize| {
        for compression in [Compression::Gzip, Compression::Zstd] {
            let shape = Shape { len: megabytes * 1_000_000 * RATIO, files, compression };
            let image = Bulk::make_in_parts(shape, part_len);
            let what = format!("{megabytes} MB, {what}, {compression:?}").to_lowercase();
            let reference = registry.push(image.layout.path(), images::TAG, &format!("bench/{name}:1"));
            measure(sides, &image, &what, &reference, runs, megabytes == PEER_MB);
        }
    };
    for (name, megabytes, runs) in SIZES.into_iter().filter(|(name, ..)| is_selected(name)) {
        for (files, what) in [(LARGE_FILES, "few files"), (SMALL_FILES, "100,000 files")] {
            each(name, megabytes, files, u64::MAX, what, runs);
        }
    }
    if is_selected("pull-parts") {
        each("pull-parts", 240, LARGE_FILES, PART_LEN, "few files, in parts", 3);
    }
}

fn measure(
    sides: &[(&str, Puller<'_>)],
    image: &Bulk,
    what: &str,
    reference: &str,
    runs: usize,
    is_compared: bool,
) {
    println!(
        "{what}: {} MB to fetch, {} MB of archives",
        image.compressed_len / 1_000_000,
        image.plain_len / 1_000_000
    );
    let mut figures: Vec<Vec<(Cost, f64)>> = vec![Vec::new(); sides.len()];
    let mut limits = Vec::new();
    for _ in 0..runs {
        for ((_, side), figures) in sides.iter().zip(&mut figures) {
            forget_files();
            let pulled = side.pull(reference);
            let start = Instant::now();
            side.remove(reference);
            figures.push((pulled, start.elapsed().as_secs_f64() * 1000.0));
        }
        limits.push(Limit::of(image, reference));
    }
    let limit = Limit::median(&limits);
    let kept_mb = (image.compressed_len + image.plain_len) as f64 / 1e6;
    let mut ours = None;
    let mut theirs = None;
    for ((side, _), figures) in sides.iter().zip(figures) {
        let median = |of: fn(&(Cost, f64)) -> f64| crate::median(figures.iter().map(of).collect());
        let (wall_ms, written_mb) = (median(|(pull, _)| pull.wall_ms), median(|(pull, _)| pull.written_mb));
        let remove_ms = median(|(_, remove)| *remove);
        let (cpu_s, peak_mb) = (median(|(pull, _)| pull.cpu_s), median(|(pull, _)| pull.peak_mb));
        let own = Medians { wall_ms, cpu_s, peak_mb, written_mb, remove_ms };
        let Medians { wall_ms: our_wall_ms, remove_ms: our_remove_ms, .. } = *ours.get_or_insert(own);
        if *side == "containerd" {
            theirs = Some(own);
        }
        println!(
            "{:<44} {wall_ms:>9.0} {:>8.2} {:>9.1} {written_mb:>11.1} {:>7.2} {remove_ms:>10.0} {:>8.2} {:>7.1}x {:>8.1}x",
            format!("  {side}"),
            cpu_s,
            peak_mb,
            written_mb / kept_mb,
            wall_ms / limit.slowest(),
            wall_ms / our_wall_ms,
            remove_ms / our_remove_ms,
        );
    }
    if let Some(ours) = ours {
        at_most("times the slowest stage", ours.wall_ms / limit.slowest(), LIMIT_MARK);
        at_most("MB of the daemon's memory", ours.peak_mb, PEAK_MARK_MB);
        at_most("times the bytes that are kept", ours.written_mb / kept_mb, WRITTEN_MARK);
        if let Some(theirs) = theirs.filter(|_| is_compared) {
            at_most("of containerd's wall time", ours.wall_ms / theirs.wall_ms, PEER_WALL_MARK);
            at_most("of containerd's CPU time", ours.cpu_s / theirs.cpu_s, PEER_CPU_MARK);
        }
    }
    let Limit { wire, inflate, write, wire_by_sha256sum } = limit;
    println!(
        "{:<44} wire and hash {wire:.0} ms, inflate {inflate:.0} ms, write {write:.0} ms; \
         wire and sha256sum {wire_by_sha256sum:.0} ms",
        "  limit"
    );
    records(image);
}

/// The medians of one side's pulls.
#[derive(Clone, Copy)]
struct Medians {
    wall_ms: f64,
    cpu_s: f64,
    peak_mb: f64,
    written_mb: f64,
    remove_ms: f64,
}

/// The stages that every pull has, each measured alone, in milliseconds.
struct Limit {
    /// Receiving, with the daemon's hash function.
    wire: f64,
    inflate: f64,
    write: f64,
    /// Receiving with `sha256sum`, as earlier figures were measured. It may be slower, and is no stage.
    wire_by_sha256sum: f64,
}

impl Limit {
    fn of(image: &Bulk, reference: &str) -> Limit {
        let (host, path) = reference.split_once('/').expect("a host and a path");
        let path = path.split(':').next().expect("the first part");
        let url = |blob: &Path| format!("http://{host}/v2/{path}/blobs/{}", digest_of(blob));
        let wire = time(|| {
            for blob in &image.blobs {
                assert!(fetch(&url(blob)) == digest_of(blob), "other bytes came of {}", blob.display());
            }
        });
        let wire_by_sha256sum = time(|| {
            for blob in &image.blobs {
                let script = format!("curl -s {} | sha256sum", url(blob));
                run(Command::new("sh").args(["-c", &script])).ok();
            }
        });
        // A puller inflates from memory, so cache the compressed image.
        forget_files();
        read_all(image);
        let inflate = elapsed_ms(|| inflate(image));
        // On the same disk as the daemons' directories.
        let written = tempfile::NamedTempFile::new_in("/var/tmp").expect("a temporary file");
        let ready = testkit::noise("ready", 1 << 20);
        let write = time(|| {
            let mut left = image.compressed_len + image.plain_len;
            while left > 0 {
                let len = usize::try_from(left).unwrap_or(usize::MAX).min(ready.len());
                written.as_file().write_all(&ready[..len]).expect("room");
                left -= len as u64;
            }
            written.as_file().sync_all().expect("room");
        });
        Limit { wire, inflate, write, wire_by_sha256sum }
    }

    /// The median of each stage.
    fn median(limits: &[Limit]) -> Limit {
        let of = |stage: fn(&Limit) -> f64| crate::median(limits.iter().map(stage).collect());
        Limit {
            wire: of(|limit| limit.wire),
            inflate: of(|limit| limit.inflate),
            write: of(|limit| limit.write),
            wire_by_sha256sum: of(|limit| limit.wire_by_sha256sum),
        }
    }

    fn slowest(&self) -> f64 {
        self.wire.max(self.inflate).max(self.write)
    }
}

/// The digest of a layer, which is its file's name.
fn digest_of(blob: &Path) -> Digest {
    let hex = blob.file_name().expect("a digest").to_string_lossy();
    format!("sha256:{hex}").parse().expect("a digest")
}

/// Receives with `curl`, and hashes the bytes as they arrive.
fn fetch(url: &str) -> Digest {
    let curl = Command::new("curl").args(["-s", url]).stdout(Stdio::piped()).spawn();
    let mut curl = curl.expect("curl is installed");
    let mut body = curl.stdout.take().expect("a pipe");
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match body.read(&mut buffer).expect("a pipe") {
            0 => break,
            len => hasher.update(&buffer[..len]),
        }
    }
    assert!(curl.wait().expect("a child of ours").success(), "curl {url}");
    hasher.finish()
}

fn read_all(image: &Bulk) {
    for blob in &image.blobs {
        let mut blob = File::open(blob).expect("a file of ours");
        std::io::copy(&mut blob, &mut std::io::sink()).expect("a file of ours");
    }
}

fn inflate(image: &Bulk) {
    let mut buffer = vec![0; 256 * 1024];
    for blob in &image.blobs {
        let mut plain = Decoder::new(File::open(blob).expect("a file of ours")).expect("a layer of ours");
        while plain.read(&mut buffer).expect("a layer of ours") > 0 {}
    }
}

/// The cost of recording spans: the image's layers are stored one after another from local blobs, without and with
/// recording in turn, after a run that warms caches. Milliseconds of CPU, and the bytes of the recorded spans.
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
                let digest = digest_of(blob);
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
    at_most("times storing without records", with / without, RECORDS_MARK);
}

/// CPU time of this process, all threads.
fn own_cpu_ms() -> f64 {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    spent.tv_sec as f64 * 1e3 + spent.tv_nsec as f64 / 1e6
}

/// Runs `work` with a cold page cache. Milliseconds.
fn time(work: impl FnOnce()) -> f64 {
    forget_files();
    elapsed_ms(work)
}

fn elapsed_ms(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1000.0
}
