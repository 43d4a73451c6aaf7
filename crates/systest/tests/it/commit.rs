//! Layers made from snapshots: by `ctr` through containerd's API, and as images by `hoist commit`.

use std::fs::File;
use std::process::{Command, Stdio};

use testkit::{Daemon, Registry, images, run};

/// The names in a layer that `ctr` prints, as GNU tar lists them.
fn layer(daemon: &Daemon, arguments: &[&str], decompress: &str) -> Vec<String> {
    let path = daemon.dir().join("layer");
    let file = File::create(&path).expect("a writable directory");
    let printed = daemon.ctr_command(arguments).stdout(Stdio::from(file)).status().expect("ctr starts");
    assert!(printed.success(), "ctr {arguments:?}\n{}", daemon.log());
    let listed = run(Command::new("tar").args(["--list", "--verbose", decompress, "--file"]).arg(&path)).ok();
    listed.stdout.lines().map(str::to_owned).collect()
}

fn has(lines: &[String], name: &str) -> bool {
    lines.iter().any(|line| line.ends_with(&format!(" {name}")))
}

#[test]
fn ctr_takes_the_difference_of_snapshots() {
    let registry = Registry::start();
    let image = registry.push(&images::busybox(), images::TAG, "busybox") + ":latest";
    let daemon = Daemon::start();
    daemon.ctr(["images", "pull", "--plain-http", &image]).ok();
    let program = "rm /bin/vi; echo new > /new; ln /new /again; busybox mkfifo /pipe; exec sleep 1000";
    let runtime = "io.containerd.hoist.v2";
    daemon.ctr(["run", "-d", "--runtime", runtime, &image, "compared", "sh", "-c", program]).ok();
    testkit::eventually("the container has made its changes", || {
        let exec = ["tasks", "exec", "--exec-id", "look", "compared", "test", "-p", "/pipe"];
        (daemon.ctr(exec).code == 0).then_some(())
    });

    let compressed = layer(&daemon, &["snapshots", "diff", "compared"], "--gzip");
    assert!(
        has(&compressed, "usr/bin/.wh.vi") && has(&compressed, "again") && has(&compressed, "pipe"),
        "{compressed:?}"
    );
    assert!(has(&compressed, "new link to again"), "a link stays a link: {compressed:?}");
    assert!(
        !compressed.iter().any(|line| line.ends_with("bin/busybox")),
        "only what changed: {compressed:?}"
    );
    let plain_type = "application/vnd.oci.image.layer.v1.tar";
    let plain =
        layer(&daemon, &["snapshots", "diff", "--media-type", plain_type, "compared"], "--no-auto-compress");
    assert_eq!(plain, compressed);
    let zstd_type = format!("{plain_type}+zstd");
    let zstd = layer(&daemon, &["snapshots", "diff", "--media-type", &zstd_type, "compared"], "--zstd");
    assert_eq!(zstd, compressed);
    let refused = daemon.ctr(["snapshots", "diff", "--media-type", "text/plain", "compared"]);
    assert!(refused.code != 0 && refused.stderr.contains("text/plain"), "{refused}");

    // The layer stays in the store, with its label, until its creator deletes it.
    assert_eq!(daemon.ctr(["leases", "ls", "-q"]).ok().text(), "");
    daemon.ctr(["snapshots", "diff", "--keep", "--label", "mine=yes", "compared"]).ok();
    let kept = daemon.ctr(["content", "ls"]).ok();
    let kept = kept.stdout.lines().find(|line| line.contains("mine=yes")).expect("the kept layer");
    assert!(kept.contains("containerd.io/uncompressed=sha256:"), "{kept}");

    daemon.ctr(["tasks", "kill", "--signal", "SIGKILL", "compared"]).ok();
    daemon.ctr(["tasks", "rm", "--force", "compared"]);
    daemon.ctr(["containers", "rm", "compared"]).ok();
}

/// A daemon with busybox, and its image.
fn daemon() -> (Daemon, String) {
    let registry = Registry::start();
    let image = registry.push(&images::busybox(), images::TAG, "busybox");
    let daemon = Daemon::start();
    daemon.hoist(["pull", "-q", &image]).ok();
    (daemon, image)
}

#[test]
fn a_container_becomes_an_image_that_runs_as_it_ran() {
    let (daemon, image) = daemon();
    let program = "echo kept > /kept; rm /bin/vi; trap 'exit 0' TERM; while true; do sleep 0.1; done";
    let arguments =
        ["run", "-d", "--name", "made", "-e", "MADE=yes", "-w", "/data", "-u", "0:0", "--label", "l=v"];
    let command = [image.as_str(), "sh", "-c", program];
    daemon.hoist(arguments.iter().chain(&command)).ok();
    testkit::eventually("the container has made its changes", || {
        (daemon.hoist(["exec", "made", "test", "!", "-e", "/bin/vi"]).code == 0).then_some(())
    });
    let changed = daemon.hoist(["diff", "made"]).ok();
    // The container's hosts, hostname and resolv.conf are not in the image, and have not changed `/etc` there.
    assert_eq!(changed.text(), "A /kept\nC /usr\nC /usr/bin\nD /usr/bin/vi");
    let named = daemon.hoist(["exec", "made", "cat", "/etc/hostname"]).ok();
    assert_eq!(daemon.hoist(["inspect", "-f", "{{.Config.Hostname}}", "made"]).ok().text(), named.text());

    let flags = [
        "commit",
        "-a",
        "A Person",
        "-m",
        "a test",
        "-c",
        "CMD [\"cat\", \"/kept\"]",
        "--change",
        "ENV MORE=\"a b\"",
    ];
    let id = daemon.hoist(flags.iter().chain(&["made", "made:1"])).ok();
    assert!(id.text().starts_with("sha256:"), "{id}");
    let state = daemon.hoist(["inspect", "-f", "{{.State.Status}}", "made"]).ok();
    assert_eq!(state.text(), "running", "it goes on");
    assert_eq!(daemon.hoist(["run", "--rm", "made:1"]).ok().stdout, "kept\n");
    let look = "echo $MADE $MORE; pwd; test -e /bin/vi || echo gone; ls /proc | grep -cx self";
    let inside = daemon.hoist(["run", "--rm", "made:1", "sh", "-c", look]).ok();
    assert_eq!(inside.stdout, "yes a b\n/data\ngone\n1\n");

    // The image can be saved and loaded as any other.
    let archive = daemon.dir().join("made.tar").display().to_string();
    daemon.hoist(["save", "-o", &archive, "made:1"]).ok();
    let target = daemon.dir().join("unpacked").display().to_string();
    let layout = format!("oci:{}:made", daemon.dir().join("layout").display());
    run(Command::new("skopeo").args(["copy", "--quiet", &format!("oci-archive:{archive}"), &layout])).ok();
    run(Command::new("umoci").args(["unpack", "--image", layout.trim_start_matches("oci:"), &target])).ok();
    let rootfs = std::path::Path::new(&target).join("rootfs");
    assert_eq!(std::fs::read_to_string(rootfs.join("kept")).expect("the new file"), "kept\n");
    assert!(std::fs::symlink_metadata(rootfs.join("bin/vi")).is_err(), "what was deleted is gone");
    let config = run(Command::new("skopeo").args(["inspect", "--config", &layout])).ok();
    for text in ["A Person", "a test", "MADE=yes"] {
        assert!(config.stdout.contains(text), "{text} in {config}");
    }
}

#[test]
fn a_commit_says_what_is_wrong_with_it() {
    let (daemon, image) = daemon();
    daemon.hoist(["create", "--name", "made", &image, "true"]).ok();
    let refused = |arguments: &[&str], words: &str| {
        let refused = daemon.hoist(arguments);
        assert!(refused.code == 1 && refused.stderr.contains(words), "{refused}");
    };
    refused(&["commit", "nosuch"], "No such container: nosuch");
    refused(&["commit", "-c", "RUN make", "made"], "RUN belongs to a build");
    refused(&["commit", "made", "Bad Name"], "invalid image reference");
    daemon.hoist(["rmi", "-f", &image]).ok();
    refused(&["commit", "made"], "pull it again");
    assert_eq!(daemon.ctr(["leases", "ls", "-q"]).ok().text(), "", "nothing is left of what was refused");
}

#[test]
fn an_image_without_changes_has_no_layer_more() {
    let (daemon, image) = daemon();
    daemon.hoist(["create", "--name", "made", &image, "true"]).ok();
    daemon.hoist(["commit", "made", "same"]).ok();
    let layers = |name: &str| daemon.hoist(["inspect", "-f", "{{json .RootFS.Layers}}", name]).ok().stdout;
    assert_eq!(layers("same"), layers(&image));
    assert_eq!(
        daemon.hoist(["image", "diff", &image, "same"]).ok().text().lines().count(),
        1,
        "a heading alone"
    );
    assert_eq!(daemon.hoist(["diff", "made"]).ok().text(), "");
}

#[test]
fn images_are_compared_file_by_file() {
    let (daemon, image) = daemon();
    let program = "echo 12345 > /data/new; rm /bin/vi; echo more >> /etc/passwd";
    daemon.hoist(["run", "--name", "made", &image, "sh", "-c", program]).ok();
    daemon.hoist(["commit", "made", "changed"]).ok();
    let rows = |from: &str, to: &str| {
        let shown = daemon.hoist(["image", "diff", "--format", "json", from, to]).ok();
        let rows = shown.stdout.lines().map(|line| serde_json::from_str(line).expect("a line of JSON"));
        let rows: Vec<serde_json::Value> = rows.collect();
        rows.into_iter().filter(|row| row["Path"] != "/etc" && row["Path"] != "/data").collect::<Vec<_>>()
    };
    let there = rows(&image, "changed");
    let short: Vec<_> = there.iter().map(|row| format!("{} {}", row["Kind"], row["Path"])).collect();
    assert_eq!(
        short,
        [r#""A" "/data/new""#, r#""C" "/etc/passwd""#, r#""C" "/usr/bin""#, r#""D" "/usr/bin/vi""#]
    );
    assert_eq!(there[0]["Size"], 6);
    assert_eq!(there[1]["Size"].as_u64(), there[1]["SizeBefore"].as_u64().map(|size| size + 5));
    let back: Vec<_> = rows("changed", &image).iter().map(|row| row["Kind"].clone()).collect();
    assert_eq!(back, ["D", "C", "C", "A"]);
    let table = daemon.hoist(["image", "diff", &image, "changed"]).ok();
    assert!(table.stdout.starts_with("CHANGE") && table.stdout.contains("removed"), "{table}");
}

/// The daemon was killed during the copy, for which it had paused the container.
#[test]
fn a_daemon_that_dies_while_it_copies_leaves_nothing_paused() {
    let (mut daemon, image) = daemon();
    // So much data that the copy is still running when the test looks.
    let program =
        "dd if=/dev/urandom of=/data/large bs=1M count=300 2>/dev/null; echo ready; exec sleep 1000";
    daemon.hoist(["run", "-d", "--name", "large", &image, "sh", "-c", program]).ok();
    testkit::eventually("the file is there", || {
        daemon.hoist(["logs", "large"]).ok().stdout.contains("ready").then_some(())
    });
    let mut commit = daemon.command(["commit", "large", "copied"]).spawn().expect("hoist starts");
    testkit::eventually("the container is paused", || {
        let state = daemon.hoist(["inspect", "-f", "{{.State.Status}}", "large"]).ok();
        (state.text() == "paused").then_some(())
    });
    daemon.kill();
    assert!(!commit.wait().expect("a child of ours").success());
    daemon.start_again();
    testkit::eventually("it goes on", || {
        let state = daemon.hoist(["inspect", "-f", "{{.State.Status}}", "large"]).ok();
        (state.text() == "running").then_some(())
    });
    let images = daemon.hoist(["images"]).ok();
    assert!(!images.stdout.contains("copied"), "{images}");
    daemon.hoist(["system", "check"]).ok();
}

/// Files that are deleted before they are read would be missing in the image.
#[test]
fn a_container_that_is_removed_while_it_is_copied_becomes_no_image() {
    let (daemon, image) = daemon();
    // So much data that the copy is still running when the container is gone, and a file that is read after it.
    let program = "dd if=/dev/urandom of=/data/large bs=1M count=300 2>/dev/null; echo kept > /data/small; \
                   echo ready; exec sleep 1000";
    daemon.hoist(["run", "-d", "--name", "large", &image, "sh", "-c", program]).ok();
    testkit::eventually("the files are there", || {
        daemon.hoist(["logs", "large"]).ok().stdout.contains("ready").then_some(())
    });
    let mut commit = daemon.command(["commit", "large", "copied"]);
    let commit = commit.stderr(Stdio::piped()).spawn().expect("hoist starts");
    testkit::eventually("the container is paused", || {
        let state = daemon.hoist(["inspect", "-f", "{{.State.Status}}", "large"]).ok();
        (state.text() == "paused").then_some(())
    });
    daemon.hoist(["rm", "-f", "large"]).ok();
    let commit = commit.wait_with_output().expect("a child of ours");
    let said = String::from_utf8_lossy(&commit.stderr);
    assert!(!commit.status.success() && said.contains("commit container large"), "{said}");
    let images = daemon.hoist(["images"]).ok();
    assert!(!images.stdout.contains("copied"), "{images}");
    daemon.hoist(["system", "check"]).ok();
}

/// The first of two commits must not resume the container while the second copies.
#[test]
fn images_that_are_made_at_once_each_show_a_container_that_stood_still() {
    let (daemon, image) = daemon();
    // So much data that the copies overlap in any order.
    let program = "dd if=/dev/urandom of=/data/large bs=1M count=100 2>/dev/null; echo ready; i=0; \
                   while :; do i=$((i+1)); for f in 0 1 2 3 z0 z1 z2 z3; do echo $i > /data/$f; done; done";
    daemon.hoist(["run", "-d", "--name", "busy", &image, "sh", "-c", program]).ok();
    testkit::eventually("the file is there", || {
        daemon.hoist(["logs", "busy"]).ok().stdout.contains("ready").then_some(())
    });
    let commit = |name: &str| daemon.command(["commit", "busy", name]).spawn().expect("hoist starts");
    let mut first = commit("first");
    testkit::eventually("the container is paused", || {
        let state = daemon.hoist(["inspect", "-f", "{{.State.Status}}", "busy"]).ok();
        (state.text() == "paused").then_some(())
    });
    let mut second = commit("second");
    assert!(first.wait().expect("a child of ours").success() && second.wait().expect("one more").success());
    assert_eq!(daemon.hoist(["inspect", "-f", "{{.State.Status}}", "busy"]).ok().text(), "running");
    daemon.hoist(["rm", "-f", "busy"]).ok();
    for name in ["first", "second"] {
        let counts = daemon.hoist(["run", "--rm", name, "sh", "-c", "cat /data/[0-3] /data/z?"]).ok();
        // The file may be empty, as the program truncates it before each write.
        let counts: Vec<u64> =
            counts.stdout.split_whitespace().map(|text| text.parse().expect("a number")).collect();
        let (least, most) = (counts.iter().min().expect("a count"), counts.iter().max().expect("a count"));
        assert!(counts.len() >= 7 && most - least <= 1, "{name}: {counts:?}");
    }
}
