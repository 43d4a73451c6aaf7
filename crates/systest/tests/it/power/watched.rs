//! Power cuts while the daemon enables fs-verity for layers: a layer whose files have it only in part is unpacked anew,
//! no mounted file fails to read, and in the end all files have it.
//!
//! These scenes are smaller than the others, since they run on the emulated processor of a guest (`guest.rs`): no
//! registry, two layers, a few cuts among the last flushes, where fs-verity is enabled. Each step has a deadline, and
//! fails with the daemon's kernel stacks.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use testkit::disk::RecordedDisk;
use testkit::{Daemon, Finished, Layout, MountsBelow, run_within};

use super::{DISK_LEN, cut_at, files_of_trees, lose_power};
use crate::verity;

/// What takes longer stands still, also on a processor that is emulated.
const STEP_MAX: Duration = Duration::from_secs(180);

/// Flushes at the end of a load among which the power goes, and at how many of them.
const LAST_FLUSHES: usize = 24;
const CUTS: usize = 6;

/// A daemon whose answers are waited for so long and no longer, and the image that is loaded into it.
struct Scene {
    daemon: Daemon,
    layout: Layout,
}

impl Scene {
    #[track_caller]
    fn hoist(&self, words: &[&str]) -> Finished {
        run_within(STEP_MAX, &mut self.daemon.command(words), || self.give_up()).ok()
    }

    /// In which calls the daemon is that does not answer. It is killed: whoever takes it down is not to wait for it too.
    fn give_up(&self) -> String {
        let threads = self.daemon.threads();
        let pid = i32::try_from(self.daemon.pid()).ok().and_then(Pid::from_raw).expect("a pid");
        let _gone = kill_process(pid, Signal::KILL);
        threads
    }

    /// Returns the name of the image.
    fn load(&self) -> String {
        let loaded = self.hoist(&["load", "-i", &self.layout.path().display().to_string()]);
        loaded.text().split_whitespace().last().expect("what was loaded").to_owned()
    }

    /// Whether there is an image. There is no other.
    fn is_loaded(&self) -> bool {
        !self.hoist(&["images", "--quiet"]).text().is_empty()
    }

    /// Every file is as it was.
    fn look(&self, name: &str, what: &str) {
        let files = ["/rots", "/stays"];
        let command = ["run", "--rm", "--network", "none", name, "sha256sum"];
        let read = self.hoist(&[&command[..], &files].concat());
        let expected = files.map(|file| format!("{}  {file}\n", verity::sum(&file[1..]))).concat();
        assert_eq!(read.stdout, expected, "{what}");
    }

    /// All is right, and watched over.
    fn check_watched(&self, what: &str) {
        let verified = self.hoist(&["image", "verify"]);
        assert!(verified.stdout.contains("0 mended, 0 broken"), "{what}: {verified}");
        self.hoist(&["system", "check"]);
        // A tree that an earlier attempt left unfinished has no stack.erofs, and is not looked at.
        let stacks = files_of_trees(&self.daemon, "stack.erofs");
        assert!(!stacks.is_empty(), "{what}");
        for stack in stacks {
            for (file, record) in [("stack.erofs", "stack.verity"), ("data.tar", "verity")] {
                assert!(stack.with_file_name(record).exists(), "{what}: {record}");
                let refused = File::options().write(true).open(stack.with_file_name(file));
                let refused = refused.expect_err("nobody writes to it");
                assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{what}: {file}");
            }
        }
    }
}

#[test]
fn a_power_cut_leaves_no_layer_that_is_watched_over_by_half() {
    if !verity::is_known() {
        println!("skipped: this kernel has no fs-verity");
        return;
    }
    let mut daemon = Daemon::start_with(&[], "[snapshots]\nlayers = \"archives\"\nverity = false\n");
    daemon.terminate();
    verity::watch_over(&daemon);
    let mut scene = Scene { daemon, layout: verity::layout() };
    let disk = RecordedDisk::for_verity(DISK_LEN);
    let _mounts = MountsBelow(scene.daemon.root());
    let mut bind = Command::new("mount");
    bind.arg("--bind").arg(disk.path()).arg(scene.daemon.root());
    run_within(STEP_MAX, &mut bind, String::new).ok();
    scene.daemon.start_again();
    let begun = disk.now();
    let name = scene.load();
    let answered = disk.now();
    scene.look(&name, "before");
    lose_power(&mut scene.daemon);
    let recording = disk.end();

    let flushes: Vec<usize> = recording.flushes().filter(|flush| (begun..answered).contains(flush)).collect();
    assert!(flushes.len() > CUTS, "a load waits for the disk more often than {flushes:?}");
    let last = &flushes[flushes.len().saturating_sub(LAST_FLUSHES)..];
    // With every other of the writes that came since the flush before, and with none of them.
    let cuts =
        (0..CUTS).map(|cut| (last[cut * last.len() / CUTS], if cut.is_multiple_of(2) { 2 } else { 0 }));
    for (at, loss) in cuts.chain([(answered, 0)]) {
        let what = format!("{at} of {begun} to {answered}, loss {loss}");
        println!("the power goes after {what}");
        // Each its own: what still ends of the one before may write to its disk a little longer.
        let left = scene.daemon.dir().join(format!("disk-{at}"));
        cut_at(&recording, at, loss, &left);
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(&left).arg(scene.daemon.root());
        run_within(STEP_MAX, &mut mount, String::new).ok();
        scene.daemon.start_again();
        let is_loaded = scene.is_loaded();
        assert!(at < answered || is_loaded, "{what}: the load was answered");
        if is_loaded {
            scene.look(&name, &what);
        }
        assert_eq!(scene.load(), name, "{what}");
        scene.look(&name, &what);
        scene.check_watched(&what);
        lose_power(&mut scene.daemon);
        fs::remove_file(&left).expect("a file of ours");
    }
}
