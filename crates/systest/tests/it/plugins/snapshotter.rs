//! Snapshotters in other processes (`docs/extend/snapshotter.md`), local and remote: containers, timeouts, garbage
//! collection.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use api::grpc::content::content_client::ContentClient;
use api::grpc::content::{WriteAction, WriteContentRequest};
use api::grpc::snapshots::snapshots_client::SnapshotsClient;
use api::grpc::snapshots::{PrepareSnapshotRequest, StatSnapshotRequest};
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;
use testkit::{Daemon, Fault, FaultProxy, Layout, Registry, digest_of, eventually, is_root, run};
use types::Digest;

use super::{Example, SilentPlugin, chunk, daemon, run_with};
use crate::typed::{ask, on};

/// No garbage collection but those that a test asks for.
const QUIET: &str = "[gc]\nmutation_threshold = 0\nschedule_delay = \"1h\"\nstartup_delay = \"1h\"\n\n";

/// The example snapshotter, not yet started, and the directory where it will keep its trees.
fn stopped_example() -> (Example, PathBuf) {
    let copies = Example::new(env!("CARGO_BIN_EXE_example-snapshotter"));
    let trees = copies.dir.path().join("trees");
    (copies, trees)
}

/// The example snapshotter, running, without layers of its own, and the directory where it keeps its trees.
fn example() -> (Example, PathBuf) {
    let (mut copies, trees) = stopped_example();
    copies.start(&[&trees, &trees.with_file_name("layers")]);
    (copies, trees)
}

#[test]
fn containers_run_on_a_proxy_snapshotter() {
    if !is_root("a container") {
        return;
    }
    let (copies, trees) = example();
    let daemon = daemon(&copies.config("copies", "snapshot"));

    assert_eq!(run_with(&daemon, "copies", "echo it works > /said; cat /said").ok().text(), "it works");
    let kept = ["run", "-d", "--name", "kept", "--network", "none", "--snapshotter", "copies", "busybox"];
    daemon.hoist(kept.iter().chain(&["sh", "-c", "echo here > /mark; exec sleep 1000"])).ok();
    let find = || run(Command::new("find").arg(&trees).args(["-name", "mark"])).stdout;
    eventually("what the container writes is in a tree of the plugin", || {
        (find().lines().count() == 1).then_some(())
    });
    daemon.hoist(["rm", "-f", "kept"]).ok();
    assert!(daemon.ctr(["snapshots", "--snapshotter", "copies", "ls"]).ok().stdout.contains("Committed"));
    eventually("the tree of the container is collected", || find().is_empty().then_some(()));

    // Through containerd's API too, where `ctr` unpacks the image and prepares the snapshot.
    let ctr = ["run", "--rm", "--snapshotter", "copies", "docker.io/library/busybox:latest", "by-ctr"];
    let said = daemon.ctr(ctr.iter().chain(&["echo", "hello"])).ok();
    assert_eq!(said.text(), "hello");
    assert!(daemon.ctr(["plugins", "ls"]).ok().stdout.contains("copies"));
    run_with(&daemon, "nosuch", "true").expect_code(125).expect_stderr("nosuch");
}

/// The handshake of stargz, SOCI, nydus and other remote snapshotters: labels of `Prepare` tell them the image and the
/// layer, which counts as unpacked if they answer that it exists.
#[test]
fn a_pull_skips_layers_that_a_remote_snapshotter_provides() {
    if !is_root("snapshots") {
        return;
    }
    let layout = Layout::new();
    let mut layers = ["lowest", "middle", "upmost"].map(|name| layout.layer(name, 1000));
    let digests = layers.each_ref().map(digest_of);
    layers[0]["annotations"] = json!({"containerd.io/snapshot/toc": "of-the-lowest", "org.example": "no"});
    let manifest = layout.image("amd64", &layers);
    layout.tag(&manifest, "lazy");
    let registry = Registry::start();
    registry.push(layout.path(), "lazy", "lazy:1");
    let is_lost = Arc::new(AtomicBool::new(false));
    let (lost, gone) = (digests[2].clone(), is_lost.clone());
    let proxy = FaultProxy::start(&registry, move |asked| {
        let is_lost = gone.load(Ordering::SeqCst) && asked.blob() == Some(&lost);
        is_lost.then(|| Fault::answer(404)).into_iter().collect()
    });
    let reference = format!("{}/lazy:1", proxy.host());
    let fetched = || -> BTreeSet<String> {
        proxy.log().iter().filter_map(|served| served.asked.blob().map(str::to_owned)).collect()
    };

    let (mut copies, trees) = stopped_example();
    let at_hand = copies.dir.path().join("layers");
    fs::create_dir(&at_hand).expect("a writable directory");
    for (layer, digest) in layers.iter().zip(&digests).take(2) {
        fs::copy(layout.blob_path(layer), at_hand.join(format!("{digest}.tar"))).expect("it was written");
    }
    copies.start(&[&trees, &at_hand]);
    // As the manuals of remote snapshotters configure containerd.
    let exports = "exports = { enable_remote_snapshot_annotations = \"true\" }\n";
    let config = copies.config("copies", "snapshot");
    let config = format!("snapshotter = \"copies\"\n{}\n{exports}", config.trim_end());
    let daemon = Daemon::start_with(&[], &config);

    daemon.hoist(["pull", &reference]).ok();
    let [lowest, middle, upmost] = &digests;
    assert!(fetched().contains(upmost), "{:?}", fetched());
    assert!(!fetched().contains(lowest) && !fetched().contains(middle), "{:?}", fetched());
    let upon = |below: &str, digest: &str| Digest::of(format!("{below} {digest}").as_bytes()).to_string();
    let second = upon(lowest, middle);
    let chain = [lowest.clone(), second.clone(), upon(&second, upmost)];
    let digest = digest_of(&manifest);
    on(&daemon, async |channel| {
        let mut snapshots = SnapshotsClient::new(channel.clone());
        for (at, name) in chain.iter().enumerate() {
            let request = StatSnapshotRequest { snapshotter: "copies".into(), key: name.clone() };
            let found = snapshots.stat(ask(request)).await.unwrap().into_inner().info.unwrap();
            let list = digests[at..].join(",");
            let mut expected = BTreeMap::from([
                ("containerd.io/snapshot.ref", name.as_str()),
                ("containerd.io/snapshot/diff-id", &digests[at]),
                ("containerd.io/snapshot/cri.image-ref", &reference),
                ("containerd.io/snapshot/cri.manifest-digest", digest.as_str()),
                ("containerd.io/snapshot/cri.layer-digest", &digests[at]),
                ("containerd.io/snapshot/cri.image-layers", &list),
            ]);
            match at.checked_sub(1) {
                None => drop(expected.insert("containerd.io/snapshot/toc", "of-the-lowest")),
                Some(below) => drop(expected.insert("containerd.io/snapshot/parent-chain-id", &chain[below])),
            }
            let found: BTreeMap<_, _> =
                found.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            assert_eq!(found, expected, "layer {at}");
        }
    });
    // The layer that was pulled is unpacked on top of those that the snapshotter provided.
    let find = run(Command::new("find").arg(&trees).args(["-name", "upmost", "-execdir", "ls", ";"])).ok();
    assert_eq!(find.text(), "lowest\nmiddle\nupmost");

    // A second pull fetches nothing more.
    daemon.hoist(["pull", &reference]).ok();
    assert_eq!(fetched().len(), 2, "the config and the upmost layer: {:?}", fetched());
    let collected = || {
        daemon.ctr(["leases", "create", "--id", "collected"]).ok();
        daemon.ctr(["leases", "rm", "--sync", "collected"]).ok();
        fs::read_dir(&trees).expect("a folder").next().is_none().then_some(())
    };
    daemon.hoist(["rmi", &reference]).ok();
    eventually("all trees are collected", collected);
    // If the registry lacks a layer too, the pull fails and leaves no snapshot.
    is_lost.store(true, Ordering::SeqCst);
    daemon.hoist(["pull", &reference]).expect_code(1).expect_stderr(upmost);
    eventually("the snapshots of the failed pull are collected", collected);
}

#[test]
fn a_stuck_snapshotter_fails_its_callers_and_no_others() {
    if !is_root("a container") {
        return;
    }
    let (copies, _) = example();
    let daemon = daemon(&copies.config("copies", "snapshot"));
    run_with(&daemon, "copies", "true").ok();

    copies.signal(Signal::STOP);
    let stuck = std::thread::scope(|scope| {
        let stuck = scope.spawn(|| run_with(&daemon, "copies", "true"));
        // Other snapshotters, and commands that need none, work meanwhile.
        assert_eq!(run_with(&daemon, "native", "echo fine").ok().text(), "fine");
        daemon.hoist(["system", "df"]).ok();
        stuck.join().expect("the thread of this test")
    });
    assert_ne!(stuck.code, 0);
    let stuck = stuck.expect_stderr("copies").expect_stderr("says nothing");
    assert!(stuck.stderr.contains(&copies.socket().display().to_string()), "{stuck}");
    // The next caller fails at once: the daemon does not ask the plugin again before a pause is over.
    let refused = run_with(&daemon, "copies", "true");
    assert!(refused.code != 0, "{refused}");
    refused.expect_stderr("is asked again in");
    // `ctr plugins ls` shows the error until the pause is over; each failure makes the pause longer.
    let listed_as_stuck = || {
        run_with(&daemon, "copies", "true");
        let listed = daemon.ctr(["plugins", "ls", "--detailed", "id==copies"]).ok();
        listed.stdout.contains("is asked again in").then_some(listed)
    };
    let why = eventually("the plugin is listed as stuck", listed_as_stuck);
    assert!(why.stdout.contains("Unavailable"), "{why}");

    copies.signal(Signal::CONT);
    eventually("the plugin is used again", || (run_with(&daemon, "copies", "true").code == 0).then_some(()));
    let listed = daemon.ctr(["plugins", "ls", "id==copies"]).ok();
    assert_eq!(listed.stdout.split_whitespace().last(), Some("ok"), "{listed}");
}

/// `hoist images` lists the images without the size of their snapshots.
#[test]
fn images_are_listed_while_the_snapshotter_is_stuck() {
    if !is_root("trees of containers") {
        return;
    }
    let (copies, _) = example();
    let daemon = daemon(&format!("snapshotter = \"copies\"\n\n{}", copies.config("copies", "snapshot")));
    daemon.hoist(["create", "busybox", "true"]).ok();
    copies.signal(Signal::STOP);
    let listed = daemon.hoist(["images"]);
    copies.signal(Signal::CONT);
    assert!(listed.code == 0 && listed.stdout.contains("busybox"), "{listed}");
}

#[test]
fn a_snapshotter_that_never_answers_list_delays_no_collection() {
    if !is_root("a container") {
        return;
    }
    let dir = TempDir::with_prefix_in("hp-", "/var/tmp").expect("a temporary directory");
    let (socket, lists) = SilentPlugin::start(dir.path(), "Snapshots/List");
    let plugin = format!(
        "[proxy_plugins.silent]\ntype = \"snapshot\"\naddress = \"{}\"\ntimeout = \"2s\"\n\n",
        socket.display()
    );
    let daemon = daemon(&format!("{QUIET}{plugin}"));
    let tree = on(&daemon, async |channel| {
        daemon.ctr(["leases", "create", "--id", "held"]).ok();
        let prepare = PrepareSnapshotRequest {
            snapshotter: "native".into(),
            key: "held".into(),
            ..PrepareSnapshotRequest::default()
        };
        let made =
            SnapshotsClient::new(channel).prepare(in_lease("held", prepare)).await.expect("a snapshot");
        PathBuf::from(&made.into_inner().mounts[0].source)
    });
    assert!(tree.exists());
    std::thread::scope(|scope| {
        // The first collection lists every snapshotter, to compare them with the metadata database.
        let collected = scope.spawn(|| daemon.ctr(["leases", "rm", "--sync", "held"]));
        lists.recv_timeout(testkit::DEADLINE).expect("the collection lists the plugin's snapshots");
        assert!(!tree.exists(), "the native snapshotter was swept before");
        daemon.hoist(["images"]).ok();
        assert_eq!(run_with(&daemon, "native", "echo fine").ok().text(), "fine");
        collected.join().expect("the thread of this test").ok();
    });
    // A timeout of `List` does not mark the plugin as stuck: the next caller and the next collection ask it again.
    assert!(daemon.ctr(["plugins", "ls", "id==silent"]).ok().stdout.trim_end().ends_with("ok"));
    run_with(&daemon, "silent", "true").expect_stderr("the plugin is silent");
    daemon.ctr(["leases", "create", "--id", "another"]).ok();
    daemon.ctr(["leases", "rm", "--sync", "another"]).ok();
    lists.recv_timeout(testkit::DEADLINE).expect("the next collection lists the plugin's snapshots too");
}

#[test]
fn a_dead_snapshotter_is_used_once_it_starts() {
    if !is_root("a container") {
        return;
    }
    let (mut copies, trees) = stopped_example();
    let mut daemon = daemon(&copies.config("copies", "snapshot"));
    let dead = run_with(&daemon, "copies", "true");
    assert_ne!(dead.code, 0);
    dead.expect_stderr("copies").expect_stderr("connection failed");
    assert_eq!(run_with(&daemon, "native", "echo fine").ok().text(), "fine");

    copies.start(&[&trees, &trees.with_file_name("layers")]);
    assert_eq!(run_with(&daemon, "copies", "echo alive").ok().text(), "alive");
    copies.kill();
    assert_ne!(run_with(&daemon, "copies", "true").code, 0);
    // The daemon starts without the plugin, too.
    daemon.kill();
    daemon.start_again();
    assert_eq!(run_with(&daemon, "native", "echo fine").ok().text(), "fine");
}

/// A collection removes every record at once, and then the files of each snapshotter that answers.
#[test]
fn a_collection_sweeps_every_snapshotter_that_answers_and_the_stuck_one_later() {
    if !is_root("snapshots") {
        return;
    }
    let (copies, trees) = example();
    let daemon = Daemon::start_with(&[], &format!("{QUIET}{}", copies.config("copies", "snapshot")));
    let places =
        [trees.clone(), daemon.root().join("snapshots/native"), daemon.root().join("snapshots/overlayfs")];
    // A snapshotter keeps the files of a snapshot in a directory whose name is a number.
    let is_tree = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().parse::<u64>().is_ok();
    let trees_in = |place: &PathBuf| fs::read_dir(place).expect("a folder").flatten().filter(is_tree).count();
    let left = || places.iter().map(trees_in).collect::<Vec<_>>();
    let collect = || {
        daemon.ctr(["leases", "create", "--id", "collected"]).ok();
        daemon.ctr(["leases", "rm", "--sync", "collected"]).ok();
    };
    let digest = Digest::of(b"held");
    let blob = daemon.root().join("content/blobs/sha256").join(digest.hex());
    daemon.ctr(["leases", "create", "--id", "held"]).ok();
    on(&daemon, async |channel| {
        let mut snapshots = SnapshotsClient::new(channel.clone());
        for snapshotter in ["copies", "native", "overlayfs"] {
            let prepare = PrepareSnapshotRequest {
                snapshotter: snapshotter.into(),
                key: "held".into(),
                ..PrepareSnapshotRequest::default()
            };
            snapshots.prepare(in_lease("held", prepare)).await.expect("a snapshot");
        }
        let whole = WriteContentRequest {
            action: WriteAction::Commit.into(),
            expected: digest.to_string(),
            ..chunk("held", 0, b"held")
        };
        let stream = in_lease("held", tokio_stream::iter([whole]));
        let mut answers = ContentClient::new(channel).write(stream).await.expect("a blob").into_inner();
        while answers.message().await.expect("it is written").is_some() {}
    });
    collect();
    assert_eq!((left(), blob.exists()), (vec![1, 1, 1], true), "the lease keeps the snapshots and the blob");

    copies.signal(Signal::STOP);
    daemon.ctr(["leases", "rm", "--sync", "held"]).ok();
    assert_eq!(
        (left(), blob.exists()),
        (vec![1, 0, 0], false),
        "only the files of the stuck snapshotter are left"
    );
    copies.signal(Signal::CONT);
    eventually("the last snapshotter is swept", || {
        collect();
        (left() == [0, 0, 0]).then_some(())
    });
}

/// A request whose results the lease keeps.
fn in_lease<T>(lease: &str, message: T) -> tonic::Request<T> {
    let mut request = ask(message);
    request.metadata_mut().insert(api::grpc::LEASE_KEY, lease.parse().expect("plain text"));
    request
}
