//! Pulls, from a registry on loopback to a tree on disk, and removals, beside the limit that the machine sets.
//!
//! ```text
//! pull                     all of these
//! pull-50 pull-240 pull-1000   images that are fetched as so many MB; each of few large and of 100,000 small
//!                          files, in gzip and in zstd
//! pull-parts               few large files in 240 MB, in members of gzip and frames of zstd that others can help with
//! ```
//!
//! Each pull, and each stage of the limit after it, begins with nothing in memory: neither what the registry has nor what
//! was written last. Only what is inflated is in memory, as it is for who pulls it.
//!
//! The limit is each stage alone, as fast as this machine does it: the wire and its hash (`curl`, and what the daemon
//! hashes with), one pass of inflate, and as many bytes as are kept written and on disk. Nobody is faster than the
//! slowest of them: `x limit` is how many times longer a side took. `curl | sha256sum` stands beside them and limits
//! nothing: Debian's asks the processor for none of its SHA instructions. `x pull` and `x remove` are how many times
//! longer a side took than ours. Then what the record of spans adds to storing the layers.
//!
//! Below each image stand its marks: times the limit, the daemon's memory, bytes written, what records add; and of those of
//! 240 MB what part of containerd's time and CPU.

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

/// Names of choices, MB of images as they are fetched, and how often each is pulled.
const SIZES: [(&str, u64, usize); 3] = [("pull-50", 50, 3), ("pull-240", 240, 3), ("pull-1000", 1000, 1)];
/// How many times more bytes the files are.
const RATIO: u64 = 3;
const SMALL_FILES: u64 = 100_000;
const LARGE_FILES: u64 = 30;
/// Plain bytes of a member or frame, where there are many.
const PART_LEN: u64 = 4 << 20;

/// Of times the slowest stage of the limit; MB of memory; times the bytes that are kept; times storing without a record.
const LIMIT_MARK: f64 = 1.3;
const PEAK_MARK_MB: f64 = 64.0;
const WRITTEN_MARK: f64 = 1.05;
const RECORDS_MARK: f64 = 1.1;
/// Parts of containerd's, on images of so many MB.
const PEER_MB: u64 = 240;
const PEER_WALL_MARK: f64 = 0.25;
const PEER_CPU_MARK: f64 = 0.5;

pub(crate) fn is_selected(wanted: &[String]) -> bool {
    wanted.is_empty() || wanted.iter().any(|word| word.starts_with("pull"))
}

/// Whose pulls are measured.
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

/// The first of `sides` is ours.
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

/// Of the pulls of one side.
#[derive(Clone, Copy)]
struct Medians {
    wall_ms: f64,
    cpu_s: f64,
    peak_mb: f64,
    written_mb: f64,
    remove_ms: f64,
}

/// The stages that nobody can leave out, each alone. Milliseconds.
struct Limit {
    /// With the hash that the daemon has.
    wire: f64,
    inflate: f64,
    write: f64,
    /// The wire again with a hash that may be slower, as figures of old were taken. It is no stage.
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
        // Whoever pulls has what it inflates in memory.
        forget_files();
        read_all(image);
        let inflate = elapsed_ms(|| inflate(image));
        // On the disk that the daemons have.
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

    /// Each stage by itself, as the machine was meanwhile.
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

/// The digest of a layer, by which its file is named.
fn digest_of(blob: &Path) -> Digest {
    let hex = blob.file_name().expect("a digest").to_string_lossy();
    format!("sha256:{hex}").parse().expect("a digest")
}

/// Has `curl` fetch what is hashed as it comes.
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

/// Of this process, all threads.
fn own_cpu_ms() -> f64 {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    spent.tv_sec as f64 * 1e3 + spent.tv_nsec as f64 / 1e6
}

/// Milliseconds, with nothing in memory at first.
fn time(work: impl FnOnce()) -> f64 {
    forget_files();
    elapsed_ms(work)
}

fn elapsed_ms(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1000.0
}
