//! `hoist system check`: finds every kind of resource that belongs to no container, and removes it on demand and at the
//! start of a daemon.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use api::grpc::snapshots::snapshots_client::SnapshotsClient;
use api::grpc::snapshots::{Info, PrepareSnapshotRequest, UpdateSnapshotRequest};
use prost_types::FieldMask;
use testkit::{Daemon, eventually, is_root, run};

use crate::bridge::{bridge, links};
use crate::cgroups::HIERARCHIES;
use crate::deleted::{delete_record, lease_tree};
use crate::typed::{ask, on};

fn prepare_tree(daemon: &Daemon, id: &str) {
    on(daemon, async |channel| {
        // As during a creation: the snapshot does not expire yet.
        let end = "2100-01-01T00:00:00Z";
        let labels =
            [("hoist.engine/container", id), ("hoist.engine/expire", end), ("containerd.io/gc.expire", end)];
        let prepare = PrepareSnapshotRequest {
            snapshotter: "overlayfs".into(),
            key: id.to_owned(),
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            ..PrepareSnapshotRequest::default()
        };
        SnapshotsClient::new(channel).prepare(ask(prepare)).await.expect("the id is new");
    });
}

fn expire_tree(daemon: &Daemon, id: &str) {
    on(daemon, async |channel| {
        let labels = [("containerd.io/gc.expire".to_owned(), "2001-01-01T00:00:00Z".to_owned())];
        let snapshot = Info { name: id.to_owned(), labels: labels.into(), ..Info::default() };
        let update = UpdateSnapshotRequest {
            snapshotter: "overlayfs".into(),
            info: Some(snapshot),
            update_mask: Some(FieldMask { paths: vec!["labels.containerd.io/gc.expire".into()] }),
        };
        SnapshotsClient::new(channel).update(ask(update)).await.expect("it has a tree");
    });
}

fn pid(daemon: &Daemon, name: &str) -> String {
    daemon.hoist(["inspect", "-f", "{{.State.Pid}}", name]).ok().text().to_owned()
}

/// Name and hardware address of this machine's link with a number.
fn link_of(number: &str) -> [String; 2] {
    let links = links();
    let line =
        links.lines().find(|line| line.starts_with(&format!("{number}: "))).expect("a link of this machine");
    let words: Vec<&str> = line.split_whitespace().collect();
    let name = words[1].split('@').next().expect("a name");
    let address = words.iter().skip_while(|word| **word != "link/ether").nth(1).expect("an address");
    [name.to_owned(), (*address).to_owned()]
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("a proc file");
    mounts.contains(&format!(" {} ", path.display()))
}

/// A process that the daemon can recognize as a shim by its command line alone.
fn start_stray(daemon: &Daemon, id: &str) -> Child {
    Command::new("sh")
        .args(["-c", "read nothing", "containerd-shim-hoist-v2", "-namespace", "default", "-id", id])
        .arg("-socket")
        .arg(daemon.state().join("s").join(id))
        .arg("-address")
        .arg(daemon.socket())
        .arg("serve")
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell starts")
}

/// Each stray may be about to end, and gets a second for it, all at the same time.
#[test]
fn strays_are_waited_for_together_when_a_daemon_starts() {
    if !is_root("the daemon") {
        return;
    }
    let mut daemon = Daemon::start();
    daemon.kill();
    let mut strays: Vec<Child> = (0..20).map(|at| start_stray(&daemon, &format!("stray-{at}"))).collect();
    let begun = Instant::now();
    daemon.start_again();
    let waited = begun.elapsed();
    for stray in &mut strays {
        assert_eq!(stray.wait().expect("a child of ours").signal(), Some(9));
    }
    assert!(waited < Duration::from_secs(10), "twenty seconds if one after the other: {waited:?}");
}

/// Makes by hand what an interrupted call may leave, of a container that never existed.
#[test]
fn system_check_repairs_every_kind_of_leftover() {
    if !is_root("a container with a network") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    let daemon = Daemon::with_busybox();
    let kept = ["run", "-d", "--name", "kept", "-p", "127.0.0.1::81", "busybox", "sleep", "1000"];
    daemon.hoist(kept).ok();
    assert_eq!(daemon.hoist(["system", "check"]).ok().text(), "nothing is left over");

    let half = "f".repeat(64);
    prepare_tree(&daemon, &half);
    let folder = daemon.root().join("containers/default").join(&half);
    fs::create_dir(&folder).expect("a writable directory");
    let tree = daemon.state().join("tasks/default").join(&half).join("rootfs");
    fs::create_dir_all(&tree).expect("a writable directory");
    run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&tree)).ok();
    let namespace = daemon.state().join("netns").join(&half);
    fs::write(&namespace, "").expect("a writable directory");
    // The address of a container that is gone, by which its rules are known.
    daemon.hoist(["run", "-d", "--name", "gone", "busybox", "sleep", "1000"]).ok();
    let number = daemon.hoist(["exec", "gone", "cat", "/sys/class/net/eth0/iflink"]).ok().text().to_owned();
    let [link, address] = link_of(&number);
    daemon.hoist(["rm", "-f", "gone"]).ok();
    let add = ["link", "add", &link, "address", &address, "master", &bridge(&daemon), "type", "veth"];
    run(Command::new("ip").args(add)).ok();
    // What a container with a network is noted as is seen when a daemon starts: one that runs takes its own notes.
    let mut rule = linux::nft::Batch::new();
    rule.add_rule(&bridge(&daemon), "prerouting", &[], half.as_bytes());
    linux::nft::Nft::open().and_then(|mut nft| nft.apply("a rule", rule)).expect("the bridge has its table");
    let cgroup = linux::cgroup::Cgroup::open(&daemon.cgroup()).expect("that of its containers");
    let folders = cgroup.locations().values().map(|above| above.join(&half)).collect::<Vec<PathBuf>>();
    for folder in &folders {
        fs::create_dir(folder).expect("a writable hierarchy");
    }
    let mut stray = start_stray(&daemon, "nobody");

    let found = daemon.hoist(["system", "check"]).expect_code(1);
    let kinds = [
        format!("network interface {link}"),
        format!("network namespace {}", namespace.display()),
        format!("packet filter rule of {half}"),
        format!("files of a container, {}", folder.display()),
        format!("tree of a container, snapshot {half}"),
        format!("cgroup {}/{half}", daemon.cgroup()),
        format!("mount on {}", tree.display()),
        format!("shim of default/nobody, process {}", stray.id()),
    ];
    for kind in &kinds {
        assert!(found.stdout.contains(kind), "no {kind:?}\n{found}");
    }
    assert_eq!(found.stdout.matches(&half).count(), 6, "{found}");

    let repaired = daemon.hoist(["system", "check", "--repair"]).ok();
    for kind in &kinds {
        assert!(repaired.stdout.contains(kind), "no {kind:?}\n{repaired}");
    }
    assert_eq!(daemon.hoist(["system", "check"]).ok().text(), "nothing is left over");
    stray.wait().expect("a child of ours");
    assert!(!links().contains(&format!(" {link}@")), "{}", links());
    assert!(!is_mounted(&tree) && !namespace.exists() && !folder.exists());
    assert!(folders.iter().all(|folder| !folder.exists()), "{folders:?}");
    let trees = || daemon.ctr(["snapshots", "ls"]).ok().stdout;
    eventually("the tree is collected", || (!trees().contains(&half)).then_some(()));
    // Resources of a container with a record stay.
    assert_eq!(daemon.hoist(["inspect", "-f", "{{.State.Status}}", "kept"]).ok().text(), "running");
    daemon.hoist(["exec", "kept", "ip", "addr", "show", "eth0"]).ok();
}

/// Neither a repair nor the next daemon ends it.
#[test]
fn a_container_without_a_record_runs_on() {
    if !is_root("a container with a network") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    let mut daemon = Daemon::with_busybox();
    let lost = [
        "run",
        "-d",
        "--name",
        "lost",
        "-p",
        "127.0.0.1::80",
        "-v",
        "crop:/crop",
        "busybox",
        "sleep",
        "1000",
    ];
    let id = daemon.hoist(lost).ok().text().to_owned();
    let process = Path::new("/proc").join(pid(&daemon, "lost"));
    let link = daemon.hoist(["exec", "lost", "cat", "/sys/class/net/eth0/iflink"]).ok().text().to_owned();
    let link_is_there = || links().lines().any(|line| line.starts_with(&format!("{link}: ")));
    let tree = daemon.state().join("tasks/default").join(&id).join("rootfs");
    let files = daemon.root().join("containers/default").join(&id);
    // As for a container that has run for long: nothing but its record refers to its snapshot.
    expire_tree(&daemon, &id);
    daemon.hoist(["exec", "lost", "sh", "-c", "echo written > /written"]).ok();
    delete_record(&daemon, &id);
    let runs = |daemon: &Daemon| {
        daemon.ctr(["content", "prune", "references"]).ok();
        let written = process.join("root/written");
        assert_eq!(fs::read_to_string(&written).expect("its tree is whole"), "written\n");
        assert_eq!(daemon.hoist(["system", "check", "--repair"]).ok().text(), "nothing is left over");
        assert!(daemon.ctr(["tasks", "ls", "-q"]).ok().stdout.contains(&id));
        assert!(process.exists() && link_is_there() && is_mounted(&tree) && files.exists());
        daemon.hoist(["volume", "rm", "crop"]).expect_code(1).expect_stderr(&id[..12]);
    };
    runs(&daemon);
    daemon.kill();
    daemon.start_again();
    runs(&daemon);
    // As an earlier version left it: nothing refers to its snapshot.
    daemon.ctr(["snapshots", "label", &id, "containerd.io/gc.root=meanwhile"]).ok();
    daemon.ctr(["leases", "rm", "--sync", &format!("hoist.engine/unrecorded-{id}")]).ok();
    daemon.kill();
    daemon.start_again();
    daemon.ctr(["snapshots", "label", &id, "containerd.io/gc.root="]).ok();
    runs(&daemon);
    // When the container ends, its resources are removed.
    run(Command::new("kill").args(["-KILL", &process.file_name().expect("a pid").to_string_lossy()])).ok();
    eventually("its end is settled", || (!files.exists()).then_some(()));
    assert_eq!(daemon.hoist(["system", "check"]).ok().text(), "nothing is left over");
    assert!(!link_is_there() && !is_mounted(&tree));
    daemon.hoist(["volume", "rm", "crop"]).ok();
    let trees = || daemon.ctr(["snapshots", "ls"]).ok().stdout;
    eventually("its tree is collected", || (!trees().contains(&id)).then_some(()));
}

/// Its processes died with the daemon, as after a reboot, and it has no record.
#[test]
fn a_daemon_that_starts_takes_away_what_is_left_of_one_without_a_record() {
    if !is_root("a container with a network") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    let mut daemon = Daemon::with_busybox();
    let lost = ["run", "-d", "--name", "lost", "-p", "127.0.0.1::80", "busybox", "sleep", "1000"];
    let id = daemon.hoist(lost).ok().text().to_owned();
    let held =
        daemon.hoist(["run", "-d", "--network", "none", "busybox", "sleep", "1000"]).ok().text().to_owned();
    lease_tree(&daemon, &held);
    delete_record(&daemon, &held);
    let table = bridge(&daemon);
    let port = daemon.hoist(["port", "lost", "80"]).ok().text().to_owned();
    let (_, port) = port.rsplit_once(':').expect("an address and a port");
    let publishes = || {
        let rules = run(Command::new("nft").args(["list", "table", "ip", &table])).stdout;
        rules.split_whitespace().any(|word| word == port)
    };
    delete_record(&daemon, &id);
    daemon.kill();
    for id in [&id, &held] {
        run(Command::new("pkill").args(["-KILL", "-f", "--", &format!("-id {id} .* serve")])).ok();
    }
    assert!(publishes());
    daemon.start_again();
    for kind in [
        format!("network attachment of {id}"),
        format!("packet filter rule of {id}"),
        "network interface ".to_owned(),
        "network namespace ".to_owned(),
        format!("files of a container, {}", daemon.root().join("containers/default").join(&id).display()),
        format!("tree of a container, snapshot {id}"),
    ] {
        assert!(daemon.log().contains(&format!("what an interrupted call left: {kind}")), "{kind}");
    }
    assert_eq!(daemon.hoist(["system", "check"]).ok().text(), "nothing is left over");
    assert!(!publishes());
    assert_eq!(daemon.ctr(["tasks", "ls", "-q"]).ok().text(), "");
    daemon.ctr(["content", "prune", "references"]).ok();
    let trees = || daemon.ctr(["snapshots", "ls"]).ok().stdout;
    eventually("one tree is collected", || (!trees().contains(&id)).then_some(()));
    assert!(trees().contains(&held), "a lease of a client has the other");
    assert!(!daemon.ctr(["leases", "ls"]).ok().stdout.contains("hoist.engine"), "ours went");
}
