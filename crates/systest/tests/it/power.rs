//! The power goes, at any write: what was answered is there afterwards, and no file is another than it was.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;
use testkit::disk::{RecordedDisk, Recording, mount_image};
use testkit::layout::{archive_of, tar_entry};
use testkit::{Daemon, Layout, Registry, images, noise, run, unmount_below};

const DISK_LEN: u64 = 64 << 20;

/// Lists every file of the image with its digest, and nothing else.
const LOOK: &str = "cd /data && find . -type f | sort | xargs sha256sum";

/// Three layers: the shell, files, and files in the place of some of those.
fn push(registry: &Registry) -> String {
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
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({"config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]}});
    let image = layout.image_of(architecture, &layers, &config);
    layout.tag(&image, images::TAG);
    registry.push(layout.path(), images::TAG, "power") + ":latest"
}

fn look(daemon: &Daemon, reference: &str) -> String {
    let words = ["run", "--rm", "--network", "none", reference, "sh", "-c", LOOK];
    daemon.hoist(words).ok().stdout
}

/// Takes what is mounted on and below the daemon's root away again, also from a test that failed.
struct Mounts(std::path::PathBuf);

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
fn pull_by_client(daemon: &Daemon, reference: &str) {
    daemon.ctr(["images", "pull", "--plain-http", "--snapshotter", "overlayfs", reference]).ok();
}

fn pull(daemon: &Daemon, reference: &str) {
    daemon.hoist(["pull", reference]).ok();
}

/// How many of the writes of a pull are the last, one after another, and whether each is tried with every loss:
/// `HOIST_TEST_CUTS`, a number or `all`, for whoever has the hours.
fn cuts(usual: usize, writes: usize) -> (usize, bool) {
    match std::env::var("HOIST_TEST_CUTS").as_deref() {
        Ok("all") => (writes, true),
        Ok(count) => (count.parse().expect("a number of cuts, or \"all\""), true),
        Err(_) => (usual, false),
    }
}

/// Cuts the power at writes of what brings an image, and looks at what is left each time: at every file of the image, and
/// at every blob and layer by its digest.
fn check(form: &str, usual_cuts: usize, bring: impl Fn(&Daemon, &str)) {
    let registry = Registry::start();
    let reference = push(&registry);
    let mut daemon = Daemon::start_with(&[], &format!("[snapshots]\nlayers = {form:?}\n"));
    daemon.terminate();
    let _mounts = Mounts(daemon.root());

    let disk = RecordedDisk::new(DISK_LEN);
    run(Command::new("mount").arg("--bind").arg(disk.path()).arg(daemon.root())).ok();
    daemon.start_again();
    let begun = disk.now();
    bring(&daemon, &reference);
    let answered = disk.now();
    let expected = look(&daemon, &reference);
    assert_eq!(expected.lines().count(), 120, "{expected}");
    lose_power(&mut daemon);
    let recording = disk.end();
    let (count, with_all_losses) = cuts(usual_cuts, answered - begun);
    assert!(answered - begun >= count, "{begun} to {answered}: a pull is many writes");

    let cuts = (0..count).map(|cut| begun + (answered - begun) * cut / count);
    let cuts = cuts.chain([answered, answered, recording.len()]);
    let cuts: Vec<(usize, usize)> = match with_all_losses {
        false => cuts.zip((0..LOSSES).cycle()).collect(),
        true => cuts.flat_map(|cut| (0..LOSSES).map(move |loss| (cut, loss))).collect(),
    };
    for (number, (cut, loss)) in cuts.into_iter().enumerate() {
        // Each its own: what still ends of the one before may write to its disk a little longer.
        let image = daemon.dir().join(format!("disk-{number}"));
        cut_at(&recording, cut, loss, &image);
        mount_image(&image, &daemon.root());
        daemon.start_again();
        let listed = daemon.hoist(["images", "-q"]).ok();
        let what = format!("{form}, {cut} of {begun} to {answered}, loss {loss}");
        assert!(cut < answered || !listed.text().is_empty(), "{what}: the pull was answered");
        if !listed.text().is_empty() {
            assert_eq!(look(&daemon, &reference), expected, "{what}: as it was left");
        }
        bring(&daemon, &reference);
        assert_eq!(look(&daemon, &reference), expected, "{what}: pulled again");
        let verified = daemon.hoist(["image", "verify"]).ok();
        assert!(verified.stdout.contains("0 mended, 0 broken"), "{what}: {verified}");
        daemon.hoist(["system", "check"]).ok();
        lose_power(&mut daemon);
        fs::remove_file(&image).expect("a file of ours");
    }
}

#[test]
fn a_power_cut_at_any_write_of_a_pull_leaves_no_wrong_file() {
    check("archives", 14, pull);
}

#[test]
fn a_power_cut_at_any_write_of_a_pull_to_directories_leaves_no_wrong_file() {
    check("directories", 5, pull);
}

#[test]
fn a_power_cut_at_any_write_of_a_clients_pull_leaves_no_wrong_file() {
    check("archives", 5, pull_by_client);
    check("directories", 2, pull_by_client);
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
