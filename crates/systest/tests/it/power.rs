//! The power goes, at any write: what was answered is there afterwards, and no file is another than it was.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tempfile::{NamedTempFile, TempDir};
use testkit::disk::{RecordedDisk, Recording, mount_image};
use testkit::layout::{archive_of, tar_entry};
use testkit::{Daemon, Layout, Registry, images, noise, run, unmount_below};
use types::Digest;
use types::descriptor::media_type;

const DISK_LEN: u64 = 64 << 20;

/// Lists every file of the image with its digest, and nothing else.
const LOOK: &str = "cd /data && find . -type f | sort | xargs sha256sum";

/// An image in a registry, and in an archive.
struct Image {
    pushed: String,
    archive: PathBuf,
    _kept: (Registry, TempDir),
}

/// The name of the image in the archive.
const LOADED: &str = "localhost/power:latest";

/// Three layers: the shell, files, and files in the place of some of those, in gzip, so that their blob is another file
/// than what they unpack to.
fn image() -> Image {
    let registry = Registry::start();
    let shell = TempDir::new().expect("a temporary directory");
    fs::create_dir(shell.path().join("bin")).expect("a writable directory");
    fs::copy("/bin/busybox", shell.path().join("bin/busybox")).expect("busybox-static is installed");
    for tool in ["sh", "find", "sort", "xargs", "sha256sum"] {
        std::os::unix::fs::symlink("busybox", shell.path().join("bin").join(tool)).expect("a new name");
    }
    let tar = Command::new("tar").arg("-C").arg(shell.path()).args(["-cf", "-", "."]).output();
    let files = |layer: &str, numbers: std::ops::Range<usize>| {
        let entry = |number: usize| {
            let name = format!("data/{number}");
            tar_entry(&name, b'0', "", &noise(&format!("{layer} {name}"), number * 100))
        };
        archive_of(&numbers.map(entry).collect::<Vec<_>>())
    };
    let layers = [tar.expect("tar is part of Debian").stdout, files("one", 0..100), files("two", 50..120)];
    let layout = Layout::new();
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let config = json!({
        "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let [shell, one, two] = layers;
    let blobs = [
        layout.blob(media_type::OCI_LAYER, &shell),
        layout.blob(media_type::OCI_LAYER, &one),
        layout.blob(media_type::OCI_LAYER_GZIP, &gzip(&two)),
    ];
    let image = layout.image_of_blobs(&blobs, &config);
    let dir = TempDir::new().expect("a temporary directory");
    let archive = dir.path().join("image.tar");
    layout.tag(&image, LOADED);
    layout.archive(&archive);
    layout.tag(&image, images::TAG);
    let pushed = registry.push(layout.path(), images::TAG, "power") + ":latest";
    Image { pushed, archive, _kept: (registry, dir) }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let plain = NamedTempFile::new().expect("a temporary file");
    fs::write(plain.path(), bytes).expect("a file of ours");
    Command::new("gzip").arg("-c").arg(plain.path()).output().expect("gzip is part of Debian").stdout
}

fn look(daemon: &Daemon, reference: &str) -> String {
    let words = ["run", "--rm", "--network", "none", reference, "sh", "-c", LOOK];
    daemon.hoist(words).ok().stdout
}

/// Takes what is mounted on and below the daemon's root away again, also from a test that failed.
struct Mounts(PathBuf);

impl Drop for Mounts {
    fn drop(&mut self) {
        unmount_below(&self.0);
    }
}

/// Ends the daemon as a power cut does, as far as the machine is concerned on which it ran.
fn lose_power(daemon: &mut Daemon) {
    daemon.kill();
    unmount_below(&daemon.root());
    let _ = fs::remove_dir_all(daemon.state());
}

/// As a client that unpacks by itself: `Prepare`, `Apply`, `Commit`, layer after layer.
fn pull_by_client(daemon: &Daemon, image: &Image) -> String {
    daemon.ctr(["images", "pull", "--plain-http", "--snapshotter", "overlayfs", &image.pushed]).ok();
    image.pushed.clone()
}

fn pull(daemon: &Daemon, image: &Image) -> String {
    daemon.hoist(["pull", &image.pushed]).ok();
    image.pushed.clone()
}

fn load(daemon: &Daemon, image: &Image) -> String {
    daemon.load(&image.archive);
    LOADED.to_owned()
}

/// Where the power goes.
#[derive(Clone, Copy)]
enum Cuts {
    /// Before each flush, with nothing of what came since the one before, which is what there was right after that, and
    /// with half of it: what the disk was made to keep changes there and nowhere else.
    AtFlushes,
    /// After so many writes, in even distances.
    Some(usize),
}

impl Cuts {
    /// After how many operations, and with what loss. `HOIST_TEST_CUTS`, a number or `all`, for whoever has the hours,
    /// tries so many writes with every loss.
    fn places(self, recording: &Recording, begun: usize, answered: usize) -> Vec<(usize, usize)> {
        let writes = answered - begun;
        let even = |count: usize| (0..count).map(move |cut| begun + writes * cut / count);
        let ends = [answered, answered, recording.len()];
        let wanted = match std::env::var("HOIST_TEST_CUTS").as_deref() {
            Ok("all") => Some(writes),
            Ok(count) => Some(count.parse().expect("a number of cuts, or \"all\"")),
            Err(_) => None,
        };
        match (wanted, self) {
            (Some(count), _) => {
                even(count).chain(ends).flat_map(|cut| (0..LOSSES).map(move |loss| (cut, loss))).collect()
            }
            (None, Cuts::Some(count)) => even(count).chain(ends).zip((0..LOSSES).cycle()).collect(),
            (None, Cuts::AtFlushes) => {
                let between = recording.flushes().filter(|flush| (begun..answered).contains(flush));
                let around = between.flat_map(|flush| [(flush, 0), (flush, 2)]);
                around.chain(ends.into_iter().zip(0..LOSSES)).collect()
            }
        }
    }
}

/// Cuts the power at writes of what brings an image, and looks at what is left each time: at every file of the image, and
/// at every blob and layer by its digest.
fn check(form: &str, cuts: Cuts, bring: impl Fn(&Daemon, &Image) -> String) {
    let image = image();
    let mut daemon = Daemon::start_with(&[], &format!("[snapshots]\nlayers = {form:?}\n"));
    daemon.terminate();
    let _mounts = Mounts(daemon.root());

    let disk = RecordedDisk::new(DISK_LEN);
    run(Command::new("mount").arg("--bind").arg(disk.path()).arg(daemon.root())).ok();
    daemon.start_again();
    let begun = disk.now();
    let reference = bring(&daemon, &image);
    let answered = disk.now();
    let expected = look(&daemon, &reference);
    assert_eq!(expected.lines().count(), 120, "{expected}");
    lose_power(&mut daemon);
    let recording = disk.end();
    let cuts = cuts.places(&recording, begun, answered);
    assert!(answered - begun >= 100, "{begun} to {answered}: a pull is many writes");
    println!("{form}: {} cuts from {begun} to {answered}", cuts.len());
    for (number, (cut, loss)) in cuts.into_iter().enumerate() {
        // Each its own: what still ends of the one before may write to its disk a little longer.
        let left = daemon.dir().join(format!("disk-{number}"));
        cut_at(&recording, cut, loss, &left);
        mount_image(&left, &daemon.root());
        daemon.start_again();
        let listed = daemon.hoist(["images", "-q"]).ok();
        let what = format!("{form}, {cut} of {begun} to {answered}, loss {loss}");
        assert!(cut < answered || !listed.text().is_empty(), "{what}: the pull was answered");
        if !listed.text().is_empty() {
            assert_eq!(look(&daemon, &reference), expected, "{what}: as it was left");
        }
        bring(&daemon, &image);
        assert_eq!(look(&daemon, &reference), expected, "{what}: pulled again");
        let verified = daemon.hoist(["image", "verify"]).ok();
        assert!(verified.stdout.contains("0 mended, 0 broken"), "{what}: {verified}");
        daemon.hoist(["system", "check"]).ok();
        lose_power(&mut daemon);
        fs::remove_file(&left).expect("a file of ours");
    }
}

#[test]
fn a_power_cut_at_any_write_of_a_pull_leaves_no_wrong_file() {
    check("archives", Cuts::AtFlushes, pull);
}

#[test]
fn a_power_cut_at_any_write_of_a_pull_to_directories_leaves_no_wrong_file() {
    check("directories", Cuts::Some(5), pull);
}

#[test]
fn a_power_cut_at_any_write_of_a_clients_pull_leaves_no_wrong_file() {
    check("archives", Cuts::Some(5), pull_by_client);
    check("directories", Cuts::Some(2), pull_by_client);
}

#[test]
fn a_power_cut_at_any_write_of_a_load_leaves_no_wrong_file() {
    check("archives", Cuts::AtFlushes, load);
}

/// What of the writes that the disk had not been made to keep is there: none, all, or every other.
const LOSSES: usize = 3;

fn cut_at(recording: &Recording, cut: usize, loss: usize, image: &Path) {
    let kept = |index: usize| match loss {
        0 => false,
        1 => true,
        _ => index.is_multiple_of(2),
    };
    recording.after_cut(cut, kept, image);
}
