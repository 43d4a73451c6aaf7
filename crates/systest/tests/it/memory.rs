//! The daemon's memory while it pulls, and how many bytes it reads and writes.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use testkit::bulk::{Bulk, Compression, Shape};
use testkit::disk::RecordedDisk;
use testkit::layout::tar_header;
use testkit::{Daemon, Fault, FaultProxy, Layout, MountsBelow, Registry, images, memory, run};
use types::descriptor::media_type;
use types::{Algorithm, Hasher};

/// Bytes that the daemon may hold in memory while it pulls, of which its program takes some 20 MB: pages of its file, as
/// many again without optimization, which is why those that are of no file are looked at.
const OWN_MAX: u64 = 64_000_000 - 20_000_000;

/// Bytes that the trees of all layers that are being read may take together, beside those that each has for itself.
const TREES_MAX: u64 = 256 << 20;
const TREE_MAX: u64 = 16 << 20;
/// Files of a layer for which its tree counts as some 110 MB, so that three of them do not fit into that. The plain
/// archive takes 720 MB of the disk.
const MANY_FILES: u32 = 1_400_000;

const MB: u64 = 1_000_000;
/// Plain bytes of a part that is all of its layer; of the largest that are inflated ahead; of one in BGZF.
const WHOLE: u64 = u64::MAX;
const LARGE: u64 = 4 << 20;
const BLOCK: u64 = 0xff00;

/// However large the layers are, however many files are in them and however they are compressed.
#[test]
fn a_pull_takes_bounded_memory() {
    let registry = Registry::start();
    for compression in [Compression::Gzip, Compression::Zstd] {
        for (len, files) in [(180 * MB, 30), (120 * MB, 100_000)] {
            check(&registry, Shape { len, files, compression }, WHOLE);
        }
    }
}

/// And where there are processors that inflate ahead, as there are in a guest of `guest.rs`.
#[test]
fn a_pull_that_is_helped_takes_bounded_memory() {
    let registry = Registry::start();
    for (compression, len, part) in
        [(Compression::Zstd, 120 * MB, LARGE), (Compression::Gzip, 60 * MB, BLOCK)]
    {
        check(&registry, Shape { len, files: 30, compression }, part);
    }
}

/// Pulls an image, and makes one tree of its layers.
fn check(registry: &Registry, shape: Shape, part: u64) {
    let image = push(registry, &Bulk::make_in_parts(shape, part));
    let daemon = Daemon::start();
    for command in
        [&["pull", "-q", &image][..], &["run", "--rm", "--network", "none", &image, "sh", "-c", "true"]]
    {
        let own = memory::own_peak_while(daemon.pid(), || drop(daemon.hoist(command).ok()));
        println!("{shape:?} in parts of {part}: {own} bytes by {}", command[0]);
        assert!(own < OWN_MAX, "{shape:?} in parts of {part}: {own} bytes by {}", command[0]);
    }
}

/// A blob and what it unpacks to are written once, and neither is read: what the kernel counts as read is of other files.
#[test]
fn a_pull_moves_each_byte_once() {
    let registry = Registry::start();
    for compression in [Compression::Gzip, Compression::Zstd] {
        let shape = Shape { len: 60 * MB, files: 30, compression };
        let bulk = Bulk::make_in_parts(shape, WHOLE);
        let kept = bulk.compressed_len + bulk.plain_len;
        let image = push(&registry, &bulk);
        let daemon = Daemon::start();
        let before = moved(&daemon);
        daemon.hoist(["pull", "-q", &image]).ok();
        let after = moved(&daemon);
        let [read, written] = [0, 1].map(|at| after[at] - before[at]);
        println!("{shape:?}: {read} bytes read, {written} written, {kept} kept");
        assert!(read < bulk.compressed_len / 4, "{shape:?}: {read} bytes read");
        assert!((kept..kept + kept / 20).contains(&written), "{shape:?}: {written} written of {kept}");
    }
}

/// Bytes that a daemon had the kernel read and write for it, but for what it receives and sends (proc_pid_io(5)).
fn moved(daemon: &Daemon) -> [u64; 2] {
    let text = fs::read_to_string(format!("/proc/{}/io", daemon.pid())).expect("the daemon runs");
    ["rchar: ", "wchar: "].map(|key| {
        let value = text.lines().find_map(|line| line.strip_prefix(key));
        value.and_then(|value| value.parse().ok()).expect("a number")
    })
}

fn push(registry: &Registry, image: &Bulk) -> String {
    push_layout(registry, image.layout.path())
}

/// Sends the image of a layout to a registry by means that guests have too.
pub(crate) fn push_layout(registry: &Registry, layout: &Path) -> String {
    let (daemon, name) = (Daemon::start(), format!("{}/image", registry.host()));
    let archive = daemon.dir().join("image.tar");
    run(Command::new("tar").arg("-C").arg(layout).arg("-cf").arg(&archive).arg(".")).ok();
    let import = ["images", "import", "--no-unpack", "--base-name", &name].map(OsStr::new);
    daemon.own_ctr(import.into_iter().chain([archive.as_os_str()])).ok();
    let name = format!("{name}:{}", images::TAG);
    daemon.own_ctr(["images", "push", "--plain-http", &name]).ok();
    name
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
    let mut owned = Vec::new();
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
        let _mounts = MountsBelow(daemon.root());
        daemon.hoist(["pull", "-q", &first]).ok();
        if let Some(disk) = &disk {
            disk.slow_down(Duration::from_millis(2));
        }
        let pull_all = || {
            std::thread::scope(|scope| {
                for image in &images {
                    let name = if what == "slow registry" { proxy.through(image) } else { image.clone() };
                    let daemon = &daemon;
                    scope.spawn(move || daemon.hoist(["pull", "-q", &name]).ok());
                }
            });
        };
        owned.push((what, memory::own_peak_while(daemon.pid(), pull_all)));
        daemon.terminate();
    }
    println!("{owned:?}");
    assert!(owned.iter().all(|(_, bytes)| *bytes < OWN_MAX), "{owned:?}");
}

/// Layers of which there is nothing but metadata: trees that are made at once share what they may take.
#[test]
fn layers_of_a_million_files_take_bounded_memory() {
    let layers = std::thread::scope(|scope| {
        let making = ['a', 'b', 'c'].map(|name| scope.spawn(move || empty_files(name, MANY_FILES)));
        making.map(|layer| layer.join().expect("memory takes all"))
    });
    let layout = Layout::new();
    let blobs = layers.each_ref().map(|(blob, _)| layout.blob(media_type::OCI_LAYER_ZSTD, blob));
    let diff_ids = layers.each_ref().map(|(_, diff_id)| diff_id.as_str());
    let config = json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}});
    layout.tag(&layout.image_of_blobs(&blobs, &config), images::TAG);
    let registry = Registry::start();
    let image = registry.push(layout.path(), images::TAG, "many-files:1");
    // Of directories the disk has the metadata.
    let daemon = Daemon::start_with(&[], "[snapshots]\nlayers = \"archives\"\n");
    let own = memory::own_peak_while(daemon.pid(), || drop(daemon.hoist(["pull", "-q", &image]).ok()));
    let own_max = OWN_MAX + TREES_MAX + layers.len() as u64 * TREE_MAX;
    println!("{} layers of {MANY_FILES} files: {own} bytes of {own_max}", layers.len());
    assert!(own < own_max, "{own} bytes, and {own_max} are allowed");
}

/// A layer of empty files, a thousand in each directory below the one of this name, in zstd, and its diff id.
fn empty_files(name: char, count: u32) -> (Vec<u8>, String) {
    // Of a header only digits of the path change, and the sum over its bytes.
    let mut header = tar_header(&format!("{name}/0000/000"), b'0', "", 0);
    let (digits, sum_at) = ((2..6).chain(7..10), 148..154);
    let sum = std::str::from_utf8(&header[sum_at.clone()]).expect("digits");
    let sum = u32::from_str_radix(sum, 8).expect("a number");
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut to = diff::Encoder::new(Compression::Zstd, Vec::new()).expect("memory takes all");
    let mut put = |bytes: &[u8]| {
        hasher.update(bytes);
        to.write_all(bytes).expect("memory takes all");
    };
    for number in 0..count {
        let text = format!("{number:07}");
        for (at, digit) in digits.clone().zip(text.bytes()) {
            header[at] = digit;
        }
        let more: u32 = text.bytes().map(|digit| u32::from(digit - b'0')).sum();
        header[sum_at.clone()].copy_from_slice(format!("{:06o}", sum + more).as_bytes());
        put(&header);
    }
    put(&[0; 1024]);
    (to.finish().expect("memory takes all"), hasher.finish().to_string())
}
