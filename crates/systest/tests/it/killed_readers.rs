//! Readers that are killed while they wait for the disk. Pages that the kernel began to read for them reach other
//! readers with the content of the file (before eade54040384, Linux filled them with zeros).

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use testkit::disk::{RecordedDisk, forget};
use testkit::layout::{archive_of, tar_entry};
use testkit::{Daemon, Layout, MountsBelow, eventually, is_root, noise, run};
use types::Digest;
use types::descriptor::media_type;

const NAME: &str = "localhost/slow:latest";
const LEN: usize = 2 << 20;
/// What a read of at most 128 KiB takes.
const READ_TIME: Duration = Duration::from_millis(1);
/// How many readers are killed for each way of mounting archives.
const KILLED: usize = 60;

fn archive(content: &[u8], to: &Path) {
    let layout = Layout::new();
    let layer = archive_of(&[tar_entry("file", b'0', "", content)]);
    let config = json!({
        "config": {}, "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer).to_string()]},
    });
    let blob = layout.blob(media_type::OCI_LAYER, &layer);
    layout.tag(&layout.image_of_blobs(&[blob], &config), NAME);
    layout.archive(to);
}

/// The archive of the layer.
fn data(daemon: &Daemon) -> PathBuf {
    let trees = fs::read_dir(daemon.root().join("snapshots/overlayfs")).expect("a directory of trees");
    let mut found = trees.map(|entry| entry.expect("an entry").path().join("data.tar"));
    found.find(|path| path.exists()).expect("a layer")
}

fn check(config: &str) {
    let content = noise("slow", LEN);
    // Dropped after the daemon, also if the test fails: it waits for its last user.
    let disk = RecordedDisk::new(64 << 20);
    let mut daemon = Daemon::start_with(&[], &format!("[snapshots]\nlayers = \"archives\"\n{config}"));
    daemon.terminate();
    let image = daemon.dir().join("image.tar");
    archive(&content, &image);
    let mounted = daemon.dir().join("mounted");
    fs::create_dir(&mounted).expect("a directory of ours");
    let _mounts = [daemon.root(), mounted.clone()].map(MountsBelow);
    run(Command::new("mount").arg("--bind").arg(disk.path()).arg(daemon.root())).ok();
    daemon.start_again();
    daemon.load(&image);
    daemon.own_ctr(["images", "mount", NAME, &mounted.display().to_string()]).ok();
    let (file, data) = (mounted.join("file"), data(&daemon));
    disk.slow_down_reads(READ_TIME);

    let mut killed = 0;
    for round in 0..KILLED {
        forget(&file);
        forget(&data);
        disk.forget();
        let begun = disk.reads();
        let mut reader = Command::new("cat").arg(&file).stdout(Stdio::null()).spawn().expect("a reader");
        // At another place of the file each time.
        let wanted = begun + 1 + round % 16;
        eventually("the reader reads", || {
            let is_done = reader.try_wait().expect("a child of ours").is_some();
            (is_done || disk.reads() >= wanted).then_some(())
        });
        let reading = || assert!(fs::read(&file).expect("a file") == content, "{config}: round {round}");
        std::thread::scope(|scope| {
            // Another reader reads the same pages at the same time, or afterwards.
            let other = round.is_multiple_of(2).then(|| scope.spawn(reading));
            reader.kill().expect("a child of ours");
            let ended = reader.wait().expect("a child of ours");
            killed += usize::from(ended.signal().is_some());
            if let Some(other) = other {
                other.join().expect("what is in the file");
            }
        });
        reading();
    }
    println!("{config}: {killed} were killed while they read");
    assert!(killed > KILLED / 4, "{config}: only {killed} were killed while they read");
    daemon.terminate();
}

#[test]
fn readers_that_are_killed_leave_to_others_what_is_in_the_file() {
    if !is_root("mounts") {
        return;
    }
    for config in ["direct_reads = \"never\"\n", "direct_reads = \"always\"\n", "loop_devices = true\n"] {
        check(config);
    }
}
