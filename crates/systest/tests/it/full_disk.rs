//! A full disk: errors, and how the daemon recovers.

use std::process::Command;

use testkit::bulk::{Bulk, Compression, Shape};
use testkit::{Daemon, MountsBelow, Registry, images, run};

use crate::bridge::{bridge, links};

/// The blobs do not fit, or the layers that are unpacked from them. Nothing incomplete is used, and with more room the
/// same pull succeeds.
#[test]
fn a_pull_onto_a_full_disk_says_so_and_ends_well_when_there_is_room() {
    if !testkit::is_root("a disk of its own") {
        return;
    }
    let registry = Registry::start();
    let image = Bulk::make(Shape { len: 60_000_000, files: 30, compression: Compression::Gzip });
    let reference = registry.push(image.layout.path(), images::TAG, "large:1");
    for room_mb in [12, 40] {
        let mut daemon = Daemon::start();
        let _mounts = MountsBelow(daemon.root());
        daemon.terminate();
        let size = |mb: u64| format!("size={mb}m");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size(room_mb), "tmpfs"]).arg(daemon.root()))
            .ok();
        daemon.start_again();

        let failed = daemon.hoist(["pull", "-q", &reference]).expect_code(1);
        assert!(failed.stderr.contains("no space left on device"), "{room_mb} MB: {failed}");
        assert!(failed.stderr.contains("sha256:") && failed.stderr.trim().lines().count() == 1, "{failed}");
        assert_eq!(daemon.hoist(["images", "-q"]).ok().text(), "");
        // The daemon still answers, also to commands that make room.
        daemon.hoist(["system", "df"]).ok();
        daemon.hoist(["system", "prune", "--force"]).ok();

        run(Command::new("mount").args(["-o", &format!("remount,{}", size(200))]).arg(daemon.root())).ok();
        daemon.hoist(["pull", "-q", &reference]).ok();
        daemon
            .hoist(["run", "--rm", "--network", "none", &reference, "sh", "-c", "test -s /data/0/0/9"])
            .ok();
        let verified = daemon.hoist(["image", "verify"]).ok();
        assert!(verified.stdout.contains("0 mended, 0 broken"), "{verified}");
        daemon.terminate();
    }
}

/// Only the daemon can make room on a full disk, so it must start, and keep its layers.
#[test]
fn a_daemon_starts_on_a_disk_that_is_full_to_the_last_byte() {
    if !testkit::is_root("a disk of its own") {
        return;
    }
    let mut daemon = Daemon::start();
    let _mounts = MountsBelow(daemon.root());
    daemon.terminate();
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=120m", "tmpfs"]).arg(daemon.root())).ok();
    daemon.start_again();
    let archive = daemon.dir().join("busybox.tar");
    images::archive(&images::busybox(), "docker-archive", "busybox:latest", &archive);
    daemon.hoist(["load".as_ref(), "-i".as_ref(), archive.as_os_str()]).ok();
    daemon.hoist(["create", "--network", "none", "--name", "first", "busybox", "true"]).ok();
    let trees = daemon.root().join("snapshots/overlayfs");
    let layers = || {
        let trees = std::fs::read_dir(&trees).unwrap();
        let is_archive = |tree: &std::path::Path| tree.join("data.tar").exists();
        trees.filter(|tree| is_archive(&tree.as_ref().unwrap().path())).count()
    };
    let before = layers();

    // A database that was not closed needs some room to be opened.
    daemon.kill();
    let filler = daemon.root().join("filler");
    let filled =
        run(Command::new("dd").args(["if=/dev/zero", "bs=4k"]).arg(format!("of={}", filler.display())));
    assert!(filled.stderr.contains("No space left on device"), "{filled}");
    daemon.start_again();
    daemon.hoist(["images"]).ok();
    daemon.hoist(["rm", "first"]).ok();
    daemon.hoist(["rmi", "busybox"]).ok();
    daemon.hoist(["system", "prune", "--force"]).ok();

    std::fs::remove_file(filler).unwrap();
    daemon.hoist(["load".as_ref(), "-i".as_ref(), archive.as_os_str()]).ok();
    daemon.hoist(["run", "--rm", "--network", "none", "busybox", "true"]).ok();
    assert_eq!(layers(), before, "layers are kept as they were before the disk was full");
}

/// The daemon cannot write its records, but removes its bridge.
#[test]
fn a_daemon_that_ends_on_a_full_disk_leaves_no_bridge() {
    if !testkit::is_root("a disk of its own") {
        return;
    }
    let mut daemon = Daemon::start();
    let _mounts = MountsBelow(daemon.root());
    daemon.terminate();
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=60m", "tmpfs"]).arg(daemon.root())).ok();
    daemon.start_again();
    daemon.load(&images::busybox_archive());
    daemon.hoist(["run", "-d", "--name", "web", "busybox", "sleep", "1000"]).ok();
    let bridge = bridge(&daemon);
    let is_there = || links().contains(&format!(": {bridge}: "));
    assert!(is_there());
    let fill = format!("of={}", daemon.root().join("fill").display());
    run(Command::new("dd").args(["if=/dev/zero", "bs=4k", &fill]));
    daemon.hoist(["rm", "-f", "web"]);
    daemon.terminate();
    assert!(!is_there(), "{}", daemon.log());
}

/// Failed writes lose no listed container, and removals make room.
#[test]
fn a_full_disk_is_emptied_by_removing_containers() {
    if !testkit::is_root("a disk of its own") {
        return;
    }
    let mut daemon = Daemon::start();
    let _mounts = MountsBelow(daemon.root());
    daemon.terminate();
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=32m", "tmpfs"]).arg(daemon.root())).ok();
    daemon.start_again();
    let names: Vec<String> = (0..6).map(|number| format!("kept-{number}")).collect();
    for name in &names {
        daemon.hoist(["run", "-d", "--network", "none", "--name", name, "hello", "--wait"]).ok();
    }
    let listed = |daemon: &Daemon| {
        let listed = daemon.hoist(["ps", "-a", "--format", "{{.Names}}"]).ok();
        listed.stdout.lines().filter(|name| name.starts_with("kept")).count()
    };
    // Each round fills the disk again, with what the round before has freed.
    let fill = |round: usize| {
        let filler = daemon.root().join(format!("filler-{round}"));
        run(Command::new("dd").args(["if=/dev/zero", "bs=4k"]).arg(format!("of={}", filler.display())));
    };
    for round in 0..30 {
        fill(round);
        let created = daemon.hoist(["create", "--network", "none", "--name", "more", "hello"]);
        if created.code != 0 {
            created.expect_stderr("no space left on device");
        }
        let forced = daemon.hoist(["rm", "-f", "more"]);
        assert_eq!(forced.code, 0, "round {round}: {forced}");
        assert_eq!(listed(&daemon), names.len(), "round {round}");
    }
    daemon.kill();
    daemon.start_again();
    assert_eq!(listed(&daemon), names.len());
    for name in &names {
        daemon.hoist(["rm", "-f", name]).ok();
    }
    assert_eq!(daemon.hoist(["ps", "-aq"]).ok().stdout, "");
    for round in 0..30 {
        std::fs::remove_file(daemon.root().join(format!("filler-{round}"))).unwrap();
    }
    daemon.hoist(["run", "--rm", "--network", "none", "hello"]).ok();
}
