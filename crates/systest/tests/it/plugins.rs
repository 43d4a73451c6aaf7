//! Plugins of others: the examples of `docs/extend/`, as they work, stop answering, and die.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::task::{Context, Poll};

use api::grpc::content::content_client::ContentClient;
use api::grpc::content::{InfoRequest, WriteAction, WriteContentRequest, WriteContentResponse};
use api::grpc::diff::diff_client::DiffClient;
use api::grpc::diff::{ApplyRequest, ApplyResponse, DiffRequest};
use api::grpc::images::ListImagesRequest;
use api::grpc::images::images_client::ImagesClient;
use api::grpc::introspection::PluginsRequest;
use api::grpc::introspection::introspection_client::IntrospectionClient;
use api::grpc::sandbox::Sandbox;
use api::grpc::sandbox::controller::controller_client::ControllerClient;
use api::grpc::sandbox::controller::{
    ControllerCreateRequest, ControllerPlatformRequest, ControllerShutdownRequest, ControllerStartRequest,
    ControllerStatusRequest, ControllerStopRequest, ControllerWaitRequest,
};
use api::grpc::snapshots::snapshots_client::SnapshotsClient;
use api::grpc::snapshots::{PrepareSnapshotRequest, StatSnapshotRequest};
use api::grpc::transfer::transfer_client::TransferClient;
use api::grpc::transfer::{ImageStore, OciRegistry, TransferRequest, UnpackConfiguration};
use api::grpc::types::{Any, Descriptor, Mount};
use api::shim::pack;
use hyper::body::Incoming;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;
use testkit::layout::tar_of;
use testkit::{Daemon, Fault, FaultProxy, Layout, Registry, digest_of, eventually, images, is_root, run};
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Status};
use types::Digest;

use crate::archives::shell_layer;
use crate::typed::{ask, code, events, on, topic};

#[path = "../../plugins/serve.rs"]
#[expect(dead_code, reason = "the examples have a command line")]
mod serve;

const PLAIN_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// No collection but those that are asked for.
const QUIET: &str = "[gc]\nmutation_threshold = 0\nschedule_delay = \"1h\"\nstartup_delay = \"1h\"\n\n";

/// An example that runs, in a directory of its own.
struct Example {
    program: &'static str,
    dir: TempDir,
    process: Option<Child>,
}

impl Example {
    /// Not yet started: the daemon's configuration names its socket first.
    fn new(program: &'static str) -> Example {
        let dir = TempDir::with_prefix_in("hp-", "/var/tmp").expect("a temporary directory");
        Example { program, dir, process: None }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("plugin.sock")
    }

    fn start(&mut self, more: &[&Path]) {
        let started = Command::new(self.program).arg(self.socket()).args(more).stdin(Stdio::null()).spawn();
        self.process = Some(started.expect("the example was built with the tests"));
        eventually("the plugin listens", || UnixStream::connect(self.socket()).ok());
    }

    /// The part of the daemon's configuration that names it.
    fn config(&self, name: &str, kind: &str) -> String {
        format!("[proxy_plugins.{name}]\ntype = \"{kind}\"\naddress = \"{}\"\n\n", self.socket().display())
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("it runs");
        let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("a child of ours");
        if signal == Signal::STOP {
            eventually("all its threads have stopped", || self.is_stopped().then_some(()));
        }
    }

    fn is_stopped(&self) -> bool {
        let process = self.process.as_ref().expect("it runs");
        let threads = fs::read_dir(format!("/proc/{}/task", process.id())).expect("a child of ours");
        threads.flatten().all(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
        })
    }

    fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.process.take().expect("it runs").wait().expect("a child of ours");
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
    }
}

fn snapshotter() -> Example {
    Example::new(env!("CARGO_BIN_EXE_example-snapshotter"))
}

/// A daemon with busybox.
fn daemon(config: &str) -> Daemon {
    let daemon = Daemon::start_with(&[], config);
    daemon.load(&images::busybox_archive());
    daemon
}

fn run_with(daemon: &Daemon, snapshotter: &str, script: &str) -> testkit::Finished {
    let args =
        ["run", "--rm", "--network", "none", "--snapshotter", snapshotter, "busybox", "sh", "-c", script];
    daemon.hoist(args)
}

#[test]
fn a_snapshotter_of_others_keeps_the_trees_of_containers() {
    if !is_root("a container") {
        return;
    }
    let mut copies = snapshotter();
    let trees = copies.dir.path().join("trees");
    copies.start(&[&trees, &trees.with_file_name("layers")]);
    let daemon = daemon(&copies.config("copies", "snapshot"));

    assert_eq!(run_with(&daemon, "copies", "echo it works > /said; cat /said").ok().text(), "it works");
    let kept = ["run", "-d", "--name", "kept", "--network", "none", "--snapshotter", "copies", "busybox"];
    daemon.hoist(kept.iter().chain(&["sh", "-c", "echo here > /mark; exec sleep 1000"])).ok();
    let find = || run(Command::new("find").arg(&trees).args(["-name", "mark"])).stdout;
    eventually("what it writes is in a tree of the plugin", || (find().lines().count() == 1).then_some(()));
    daemon.hoist(["rm", "-f", "kept"]).ok();
    assert!(daemon.ctr(["snapshots", "--snapshotter", "copies", "ls"]).ok().stdout.contains("Committed"));
    eventually("its tree is collected", || find().is_empty().then_some(()));

    // By containerd's API too: `ctr` unpacks and prepares.
    let ctr = ["run", "--rm", "--snapshotter", "copies", "docker.io/library/busybox:latest", "by-ctr"];
    let said = daemon.ctr(ctr.iter().chain(&["echo", "hello"])).ok();
    assert_eq!(said.text(), "hello");
    assert!(daemon.ctr(["plugins", "ls"]).ok().stdout.contains("copies"));
    run_with(&daemon, "nosuch", "true").expect_code(125).expect_stderr("nosuch");
}

/// The handshake of stargz, SOCI, nydus and others: they are told which layer of which image is wanted.
#[test]
fn a_layer_that_a_snapshotter_of_others_gets_by_itself_is_not_fetched() {
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

    let mut copies = snapshotter();
    let (trees, at_hand) = (copies.dir.path().join("trees"), copies.dir.path().join("layers"));
    fs::create_dir(&at_hand).expect("a writable directory");
    for (layer, digest) in layers.iter().zip(&digests).take(2) {
        fs::copy(layout.blob_path(layer), at_hand.join(format!("{digest}.tar"))).expect("it was written");
    }
    copies.start(&[&trees, &at_hand]);
    // As their manuals say.
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
    // What it made is built upon, and used.
    let find = run(Command::new("find").arg(&trees).args(["-name", "upmost", "-execdir", "ls", ";"])).ok();
    assert_eq!(find.text(), "lowest\nmiddle\nupmost");

    // Nobody asks again for what is there, and an image that shares layers has them from there.
    daemon.hoist(["pull", &reference]).ok();
    assert_eq!(fetched().len(), 2, "the config and the upmost layer: {:?}", fetched());
    let collected = || {
        daemon.ctr(["leases", "create", "--id", "collected"]).ok();
        daemon.ctr(["leases", "rm", "--sync", "collected"]).ok();
        fs::read_dir(&trees).expect("a folder").next().is_none().then_some(())
    };
    daemon.hoist(["rmi", &reference]).ok();
    eventually("all trees are collected", collected);
    // One that nobody has leaves nothing behind.
    is_lost.store(true, Ordering::SeqCst);
    daemon.hoist(["pull", &reference]).expect_code(1).expect_stderr(upmost);
    eventually("what was made and prepared goes too", collected);
}

#[test]
fn a_plugin_that_is_stuck_is_not_waited_for_and_the_rest_goes_on() {
    if !is_root("a container") {
        return;
    }
    let mut copies = snapshotter();
    let trees = copies.dir.path().join("trees");
    copies.start(&[&trees, &trees.with_file_name("layers")]);
    let daemon = daemon(&copies.config("copies", "snapshot"));
    run_with(&daemon, "copies", "true").ok();

    copies.signal(Signal::STOP);
    let stuck = std::thread::scope(|scope| {
        let stuck = scope.spawn(|| run_with(&daemon, "copies", "true"));
        // Beside it, all is well.
        assert_eq!(run_with(&daemon, "native", "echo fine").ok().text(), "fine");
        daemon.hoist(["system", "df"]).ok();
        stuck.join().expect("the thread of this test")
    });
    assert_ne!(stuck.code, 0);
    let stuck = stuck.expect_stderr("copies").expect_stderr("says nothing");
    assert!(stuck.stderr.contains(&copies.socket().display().to_string()), "{stuck}");
    // Whoever comes next is told so at once.
    let refused = run_with(&daemon, "copies", "true");
    assert!(refused.code != 0, "{refused}");
    refused.expect_stderr("is asked again in");
    // So is who looks at the list of plugins, before the pause is over; each failure makes it longer.
    let is_told = || {
        run_with(&daemon, "copies", "true");
        let listed = daemon.ctr(["plugins", "ls", "--detailed", "id==copies"]).ok();
        listed.stdout.contains("is asked again in").then_some(listed)
    };
    let why = eventually("it is told to be stuck", is_told);
    assert!(why.stdout.contains("Unavailable"), "{why}");

    copies.signal(Signal::CONT);
    eventually("it is used again", || (run_with(&daemon, "copies", "true").code == 0).then_some(()));
    let listed = daemon.ctr(["plugins", "ls", "id==copies"]).ok();
    assert_eq!(listed.stdout.split_whitespace().last(), Some("ok"), "{listed}");
}

/// What its trees take is left out, and the images are told.
#[test]
fn images_are_listed_while_the_snapshotter_is_stuck() {
    if !is_root("trees of containers") {
        return;
    }
    let mut copies = snapshotter();
    let trees = copies.dir.path().join("trees");
    copies.start(&[&trees, &trees.with_file_name("layers")]);
    let daemon = daemon(&format!("snapshotter = \"copies\"\n\n{}", copies.config("copies", "snapshot")));
    daemon.hoist(["create", "busybox", "true"]).ok();
    copies.signal(Signal::STOP);
    let listed = daemon.hoist(["images"]);
    copies.signal(Signal::CONT);
    assert!(listed.code == 0 && listed.stdout.contains("busybox"), "{listed}");
}

#[test]
fn differs_and_controllers_that_are_stuck_are_not_waited_for_either() {
    if !is_root("a container") {
        return;
    }
    let (mut notes, mut records) = (
        Example::new(env!("CARGO_BIN_EXE_example-differ")),
        Example::new(env!("CARGO_BIN_EXE_example-sandboxer")),
    );
    let differs = "[diff]\ndefault = [\"notes\", \"walking\"]\n\n";
    let plugins = [notes.config("notes", "diff"), records.config("records", "sandbox")].concat();
    let daemon = Daemon::start_with(&[], &format!("{differs}{plugins}"));
    notes.start(&[&daemon.socket()]);
    records.start(&[]);
    // Who unpacks asks the differ too: the image is unpacked before.
    daemon.load(&images::busybox_archive());
    run_with(&daemon, "native", "true").ok();
    on(&daemon, async |channel| {
        let mounts = tree(&channel, "a").await;
        let note = layer(&channel, "application/vnd.example.note", b"remember").await;
        let request = ApplyRequest { diff: Some(note), mounts, ..ApplyRequest::default() };
        let (id, sandboxer) = ("pod".to_owned(), "records".to_owned());
        let create = ControllerCreateRequest {
            sandbox_id: id.clone(),
            sandboxer: sandboxer.clone(),
            sandbox: Some(Sandbox::default()),
            ..ControllerCreateRequest::default()
        };
        let mut controller = ControllerClient::new(channel.clone());
        controller.create(ask(create)).await.unwrap();
        let start = ControllerStartRequest { sandbox_id: id, sandboxer };
        let both = async || {
            let mut controller = controller.clone();
            let started = controller.start(ask(start.clone()));
            tokio::join!(code(apply(&channel, request.clone())), code(started))
        };
        for stuck in [&notes, &records] {
            stuck.signal(Signal::STOP);
        }
        assert_eq!(both().await, (Code::DeadlineExceeded, Code::DeadlineExceeded));
        assert_eq!(
            both().await,
            (Code::Unavailable, Code::Unavailable),
            "whoever comes next is told so at once"
        );
        let images =
            ImagesClient::new(channel.clone()).list(ask(ListImagesRequest::default())).await.unwrap();
        assert!(!images.into_inner().images.is_empty());
        assert_eq!(run_with(&daemon, "native", "echo fine").ok().text(), "fine");

        for stuck in [&notes, &records] {
            stuck.signal(Signal::CONT);
        }
        // It may have begun what nobody waited for.
        let is_back = |code| matches!(code, Code::Ok | Code::AlreadyExists | Code::FailedPrecondition);
        while !matches!(both().await, (Code::Ok, started) if is_back(started)) {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_content_store_that_is_stuck_is_not_waited_for_either() {
    if !is_root("a container") {
        return;
    }
    let mut memory = Example::new(env!("CARGO_BIN_EXE_example-content"));
    memory.start(&[]);
    let daemon = daemon(&format!("[content]\nstore = \"memory\"\n\n{}", memory.config("memory", "content")));
    daemon.hoist(["run", "-d", "--name", "runs", "--network", "none", "busybox", "sleep", "1000"]).ok();
    on(&daemon, async |channel| {
        let mut at = 0;
        let mut begin = async || {
            at += 1;
            code(write(&channel, &[chunk(&format!("r{at}"), 0, b"bytes")])).await
        };
        assert_eq!(begin().await, Code::Ok);
        memory.signal(Signal::STOP);
        assert_eq!(begin().await, Code::DeadlineExceeded);
        assert_eq!(begin().await, Code::Unavailable);
        // What needs no bytes goes on.
        ImagesClient::new(channel.clone()).list(ask(ListImagesRequest::default())).await.unwrap();
        assert_eq!(daemon.hoist(["exec", "runs", "echo", "fine"]).ok().text(), "fine");
        memory.signal(Signal::CONT);
        while begin().await != Code::Ok {
            tokio::task::yield_now().await;
        }
    });
    daemon.hoist(["rm", "-f", "runs"]).ok();
}

/// A life sign is no answer: what looks something up has a limit of its own.
#[test]
fn a_controller_that_lives_and_does_not_answer_is_stuck_when_its_time_is_over() {
    let dir = TempDir::with_prefix_in("hp-", "/var/tmp").expect("a temporary directory");
    let socket = dir.path().join("plugin.sock");
    let (tell, _told) = std::sync::mpsc::channel();
    let deaf = Deaf { to: "Controller/Status", tell };
    let server = socket.clone();
    // Serves as long as the tests run.
    std::thread::spawn(move || serve::serve(&server, deaf));
    eventually("the plugin listens", || UnixStream::connect(&socket).ok());
    let daemon = Daemon::start_with(
        &[],
        &format!(
            "[proxy_plugins.deaf]\ntype = \"sandbox\"\naddress = \"{}\"\ntimeout = \"1s\"\n\n",
            socket.display()
        ),
    );
    on(&daemon, async |channel| {
        let mut controller = ControllerClient::new(channel);
        let status = ControllerStatusRequest {
            sandbox_id: "pod".into(),
            sandboxer: "deaf".into(),
            ..ControllerStatusRequest::default()
        };
        let asked = code(controller.status(ask(status.clone())));
        let answer = tokio::time::timeout(testkit::DEADLINE, asked).await;
        assert_eq!(answer, Ok(Code::DeadlineExceeded));
        assert_eq!(code(controller.status(ask(status))).await, Code::Unavailable);
    });
}

/// A plugin that is alive and never answers one of its calls. Tells of each time that it is asked to.
#[derive(Clone)]
struct Deaf {
    /// The end of the call's path.
    to: &'static str,
    tell: Sender<()>,
}

impl tower_service::Service<http::Request<Incoming>> for Deaf {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Incoming>) -> Self::Future {
        if request.uri().path().ends_with(self.to) {
            // The test may be over.
            let _ = self.tell.send(());
            return Box::pin(std::future::pending());
        }
        Box::pin(async { Ok(Status::unimplemented("it is deaf").into_http()) })
    }
}

#[test]
fn a_snapshotter_that_does_not_list_holds_up_no_collection_and_nobody_else() {
    if !is_root("a container") {
        return;
    }
    let dir = TempDir::with_prefix_in("hp-", "/var/tmp").expect("a temporary directory");
    let socket = dir.path().join("plugin.sock");
    let (tell, told) = std::sync::mpsc::channel();
    // Serves as long as the tests run.
    let server = socket.clone();
    let deaf = Deaf { to: "Snapshots/List", tell };
    std::thread::spawn(move || serve::serve(&server, deaf));
    eventually("the plugin listens", || UnixStream::connect(&socket).ok());
    let plugin = format!(
        "[proxy_plugins.deaf]\ntype = \"snapshot\"\naddress = \"{}\"\ntimeout = \"2s\"\n\n",
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
        // The first collection compares all stores with the records.
        let collected = scope.spawn(|| daemon.ctr(["leases", "rm", "--sync", "held"]));
        told.recv_timeout(testkit::DEADLINE).expect("the collection asks it");
        assert!(!tree.exists(), "what others keep was swept before");
        daemon.hoist(["images"]).ok();
        assert_eq!(run_with(&daemon, "native", "echo fine").ok().text(), "fine");
        collected.join().expect("the thread of this test").ok();
    });
    // Who is late is not taken for stuck: it is asked again, by the next collection too.
    assert!(daemon.ctr(["plugins", "ls", "id==deaf"]).ok().stdout.trim_end().ends_with("ok"));
    run_with(&daemon, "deaf", "true").expect_stderr("it is deaf");
    daemon.ctr(["leases", "create", "--id", "another"]).ok();
    daemon.ctr(["leases", "rm", "--sync", "another"]).ok();
    told.recv_timeout(testkit::DEADLINE).expect("the next collection asks it, too");
}

#[test]
fn a_plugin_that_is_dead_keeps_nobody_and_is_found_when_it_comes() {
    if !is_root("a container") {
        return;
    }
    let mut copies = snapshotter();
    let mut daemon = daemon(&copies.config("copies", "snapshot"));
    let dead = run_with(&daemon, "copies", "true");
    assert_ne!(dead.code, 0);
    dead.expect_stderr("copies").expect_stderr("connection failed");
    assert_eq!(run_with(&daemon, "native", "echo fine").ok().text(), "fine");

    let trees = copies.dir.path().join("trees");
    copies.start(&[&trees, &trees.with_file_name("layers")]);
    assert_eq!(run_with(&daemon, "copies", "echo alive").ok().text(), "alive");
    copies.kill();
    assert_ne!(run_with(&daemon, "copies", "true").code, 0);
    // A daemon starts without it, too.
    daemon.kill();
    daemon.start_again();
    assert_eq!(run_with(&daemon, "native", "echo fine").ok().text(), "fine");
}

/// Records go at once everywhere; what the snapshotters below keep of them goes from each that can be asked.
#[test]
fn a_collection_sweeps_every_snapshotter_that_answers_and_the_stuck_one_later() {
    if !is_root("snapshots") {
        return;
    }
    let mut copies = snapshotter();
    let trees = copies.dir.path().join("trees");
    copies.start(&[&trees, &trees.with_file_name("layers")]);
    let daemon = Daemon::start_with(&[], &format!("{QUIET}{}", copies.config("copies", "snapshot")));
    let places =
        [trees.clone(), daemon.root().join("snapshots/native"), daemon.root().join("snapshots/overlayfs")];
    // Each tree is a folder with a number for a name.
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
    assert_eq!((left(), blob.exists()), (vec![1, 1, 1], true), "a lease holds them");

    copies.signal(Signal::STOP);
    daemon.ctr(["leases", "rm", "--sync", "held"]).ok();
    assert_eq!((left(), blob.exists()), (vec![1, 0, 0], false), "one of them says nothing");
    copies.signal(Signal::CONT);
    eventually("the last one is swept", || {
        collect();
        (left() == [0, 0, 0]).then_some(())
    });
}

/// A request whose call makes what it makes in a lease.
fn in_lease<T>(lease: &str, message: T) -> tonic::Request<T> {
    let mut request = ask(message);
    request.metadata_mut().insert(api::grpc::LEASE_KEY, lease.parse().expect("plain text"));
    request
}

#[test]
fn a_content_store_of_others_keeps_the_blobs() {
    if !is_root("a container") {
        return;
    }
    let mut memory = Example::new(env!("CARGO_BIN_EXE_example-content"));
    memory.start(&[]);
    let config = format!("[content]\nstore = \"memory\"\n\n{}", memory.config("memory", "content"));
    let daemon = daemon(&config);
    assert_eq!(run_with(&daemon, "native", "echo from memory").ok().text(), "from memory");
    let blobs = daemon.ctr(["content", "ls", "-q"]).ok();
    assert!(blobs.text().lines().count() >= 3, "{blobs}");
    assert!(!daemon.root().join("content").exists(), "nothing is kept here");
    let saved = daemon.dir().join("saved.tar").display().to_string();
    daemon.hoist(["save", "-o", &saved, "busybox"]).ok();
    let listed = run(Command::new("tar").args(["-tf", &saved])).ok();
    assert!(listed.stdout.contains("manifest.json"), "{listed}");
    // An ingest that was left goes on where it was.
    on(&daemon, async |channel| {
        let (first, rest) = (vec![1; 3 << 20], vec![2; 10]);
        let whole = [first.clone(), rest.clone()].concat();
        let total = whole.len() as i64;
        let begin = WriteContentRequest { total, ..chunk("left", 0, &first) };
        let begun = write(&channel, &[begin]).await.unwrap();
        assert_eq!(begun.offset, 3 << 20);
        let asked = WriteContentRequest { r#ref: "left".into(), total, ..WriteContentRequest::default() };
        assert_eq!(write(&channel, &[asked]).await.unwrap().offset, 3 << 20);
        let digest = Digest::of(&whole).to_string();
        let last = WriteContentRequest {
            action: WriteAction::Commit.into(),
            total,
            expected: digest.clone(),
            ..chunk("left", 3 << 20, &rest)
        };
        assert_eq!(write(&channel, &[last]).await.unwrap().digest, digest);
        let wrong = WriteContentRequest {
            action: WriteAction::Commit.into(),
            offset: 4,
            expected: Digest::of(b"other").to_string(),
            ..WriteContentRequest::default()
        };
        let messages = [chunk("wrong", 0, b"else"), wrong];
        assert_eq!(code(write(&channel, &messages)).await, Code::FailedPrecondition);
    });
    memory.kill();
    daemon.hoist(["save", "-o", &saved, "busybox"]).expect_stderr("memory");
    daemon.hoist(["ps"]).ok();
}

fn chunk(reference: &str, offset: i64, data: &[u8]) -> WriteContentRequest {
    WriteContentRequest {
        action: WriteAction::Write.into(),
        r#ref: reference.into(),
        offset,
        data: data.to_vec().into(),
        ..WriteContentRequest::default()
    }
}

/// Sends messages of one ingest and returns the last answer.
async fn write(channel: &Channel, messages: &[WriteContentRequest]) -> Result<WriteContentResponse, Status> {
    let mut client = ContentClient::new(channel.clone());
    let mut answers = client.write(ask(tokio_stream::iter(messages.to_vec()))).await?.into_inner();
    let mut last = None;
    while let Some(answer) = answers.message().await? {
        last = Some(answer);
    }
    last.ok_or_else(|| Status::internal("no answer"))
}

/// Collections pass over it.
fn kept() -> BTreeMap<String, String> {
    [("containerd.io/gc.root".to_owned(), "test".to_owned())].into()
}

/// Writes a blob and returns it as a layer of `media_type`.
async fn layer(channel: &Channel, media_type: &str, bytes: &[u8]) -> Descriptor {
    let labels = kept();
    let commit =
        WriteContentRequest { action: WriteAction::Commit.into(), labels, ..chunk("a layer", 0, bytes) };
    let written = write(channel, &[commit]).await.expect("it is written");
    Descriptor {
        media_type: media_type.into(),
        digest: written.digest,
        size: bytes.len() as i64,
        ..Descriptor::default()
    }
}

/// A new tree of the native snapshotter, which is one directory.
async fn tree(channel: &Channel, key: &str) -> Vec<Mount> {
    let prepare = PrepareSnapshotRequest {
        snapshotter: "native".into(),
        key: key.into(),
        labels: kept(),
        ..PrepareSnapshotRequest::default()
    };
    let made = SnapshotsClient::new(channel.clone()).prepare(ask(prepare)).await.expect("a new key");
    made.into_inner().mounts
}

async fn apply(channel: &Channel, request: ApplyRequest) -> Result<ApplyResponse, Status> {
    DiffClient::new(channel.clone()).apply(ask(request)).await.map(tonic::Response::into_inner)
}

fn archive(dir: &Path) -> Vec<u8> {
    fs::write(dir.join("file"), "in a layer").expect("a writable directory");
    let tar = Command::new("tar").arg("-C").arg(dir).args(["-cf", "-", "file"]).output().expect("tar runs");
    tar.stdout
}

#[test]
fn a_differ_of_others_is_asked_first_and_ours_for_what_it_does_not_know() {
    if !is_root("the daemon") {
        return;
    }
    let mut notes = Example::new(env!("CARGO_BIN_EXE_example-differ"));
    let config = format!("[diff]\ndefault = [\"notes\", \"walking\"]\n\n{}", notes.config("notes", "diff"));
    let daemon = Daemon::start_with(&[], &config);
    notes.start(&[&daemon.socket()]);
    on(&daemon, async |channel| {
        let mounts = tree(&channel, "a").await;
        let root = PathBuf::from(&mounts[0].source);
        let note = layer(&channel, "application/vnd.example.note", b"remember").await;
        let request = ApplyRequest { diff: Some(note.clone()), mounts, ..ApplyRequest::default() };
        let applied = apply(&channel, request.clone()).await.unwrap().applied.unwrap();
        assert_eq!(applied.digest, note.digest);
        assert_eq!(fs::read_to_string(root.join("NOTE")).unwrap(), "remember");

        // And back: what it knows it makes, in the caller's namespace, and ours makes the rest.
        fs::write(root.join("NOTE"), "another").unwrap();
        let (differ, empty) = (DiffClient::new(channel.clone()), tree(&channel, "empty").await);
        let compare = async |media_type: &str| {
            let (left, right) = (empty.clone(), request.mounts.clone());
            let labels = kept();
            let (media_type, r#ref) = (media_type.to_owned(), String::new());
            let asked = DiffRequest { left, right, media_type, r#ref, labels, source_date_epoch: None };
            differ.clone().diff(ask(asked)).await.map(|made| made.into_inner().diff.unwrap_or_default())
        };
        let made = compare("application/vnd.example.note").await.unwrap();
        assert_eq!((made.media_type.as_str(), made.size), ("application/vnd.example.note", 7));
        assert_eq!(made.digest, Digest::of(b"another").to_string());
        let info = InfoRequest { digest: made.digest };
        ContentClient::new(channel.clone()).info(ask(info)).await.expect("the blob is the caller's");
        assert_eq!(compare(PLAIN_LAYER).await.unwrap().media_type, PLAIN_LAYER);
        fs::remove_file(root.join("NOTE")).unwrap();
        let refused = compare("application/vnd.example.note").await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "what it knows and cannot do nobody else is asked");
        assert!(refused.message().contains("a tree without a note"), "{refused}");

        let plain = layer(&channel, PLAIN_LAYER, &archive(notes.dir.path())).await;
        let request = ApplyRequest { diff: Some(plain.clone()), ..request };
        assert_eq!(apply(&channel, request.clone()).await.unwrap().applied.unwrap().digest, plain.digest);
        assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "in a layer");
        let unknown = Descriptor { media_type: "application/vnd.example.song".into(), ..note };
        let request = ApplyRequest { diff: Some(unknown), ..request };
        assert_eq!(code(apply(&channel, request.clone())).await, Code::Unimplemented);
        notes.kill();
        assert_eq!(code(apply(&channel, request)).await, Code::Unavailable, "who is not there knows nothing");
    });
}

fn new_sandbox(id: &str, sandboxer: &str) -> ControllerCreateRequest {
    ControllerCreateRequest {
        sandbox_id: id.to_owned(),
        sandboxer: sandboxer.to_owned(),
        sandbox: Some(Sandbox::default()),
        ..ControllerCreateRequest::default()
    }
}

#[test]
fn a_controller_of_others_runs_sandboxes() {
    if !is_root("the daemon") {
        return;
    }
    let mut records = Example::new(env!("CARGO_BIN_EXE_example-sandboxer"));
    records.start(&[]);
    let daemon = Daemon::start_with(&[], &records.config("records", "sandbox"));
    on(&daemon, async |channel| {
        let mut told = events(&channel, &["/sandboxes"]).await;
        let mut controller = ControllerClient::new(channel.clone());
        let (id, name) = ("pod".to_owned(), "records".to_owned());
        let create = new_sandbox(&id, &name);
        controller.create(ask(create.clone())).await.unwrap();
        assert_eq!(code(controller.create(ask(create))).await, Code::AlreadyExists);
        assert_eq!(topic(&mut told).await, "/sandboxes/create");
        let start = ControllerStartRequest { sandbox_id: id.clone(), sandboxer: name.clone() };
        controller.start(ask(start)).await.unwrap();
        assert_eq!(topic(&mut told).await, "/sandboxes/start");
        let platform = ControllerPlatformRequest { sandbox_id: id.clone(), sandboxer: name.clone() };
        let platform = controller.platform(ask(platform)).await.unwrap().into_inner().platform.unwrap();
        assert_eq!(platform.architecture, "riscv64");
        let wait = ControllerWaitRequest { sandbox_id: id.clone(), sandboxer: name.clone() };
        let mut waiting = (controller.clone(), controller.clone(), controller.clone());
        let stop = ControllerStopRequest { sandbox_id: id.clone(), sandboxer: name.clone(), timeout_secs: 1 };
        let (first, second, stopped) = tokio::join!(
            waiting.0.wait(ask(wait.clone())),
            waiting.1.wait(ask(wait)),
            waiting.2.stop(ask(stop))
        );
        assert!(first.is_ok() && second.is_ok() && stopped.is_ok());
        assert_eq!(topic(&mut told).await, "/sandboxes/exit");
        let shutdown = ControllerShutdownRequest { sandbox_id: id, sandboxer: name };
        controller.shutdown(ask(shutdown.clone())).await.unwrap();
        assert_eq!(code(controller.shutdown(ask(shutdown))).await, Code::NotFound);

        let filters = vec!["id==records".into()];
        let mut introspection = IntrospectionClient::new(channel);
        let listed = introspection.plugins(ask(PluginsRequest { filters })).await.unwrap().into_inner();
        assert_eq!(listed.plugins[0].r#type, "io.containerd.sandbox.controller.v1");
        assert_eq!(listed.plugins[0].exports["address"], records.socket().display().to_string());
    });
}

/// Who waits for the end of a sandbox keeps nobody from using the plugin, as many as they are.
#[test]
fn a_controller_of_others_has_more_sandboxes_than_calls_may_wait() {
    if !is_root("the daemon") {
        return;
    }
    let mut records = Example::new(env!("CARGO_BIN_EXE_example-sandboxer"));
    records.start(&[]);
    let daemon = Daemon::start_with(&[], &records.config("records", "sandbox"));
    on(&daemon, async |channel| {
        let mut told = events(&channel, &["/sandboxes/exit"]).await;
        let mut controller = ControllerClient::new(channel.clone());
        let name = || "records".to_owned();
        let ids: Vec<String> = (0..70).map(|n| format!("pod{n}")).collect();
        for id in &ids {
            controller.create(ask(new_sandbox(id, "records"))).await.unwrap();
            let start = ControllerStartRequest { sandbox_id: id.clone(), sandboxer: name() };
            controller.start(ask(start)).await.unwrap();
        }
        for id in &ids {
            let stop = ControllerStopRequest { sandbox_id: id.clone(), sandboxer: name(), timeout_secs: 1 };
            controller.stop(ask(stop)).await.unwrap();
            assert_eq!(topic(&mut told).await, "/sandboxes/exit");
        }
    });
}

/// The indented lines of the page for those who write one, behind a line that ends so.
fn page_of_stream_processors(behind: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/extend/stream-processor.md");
    let page = fs::read_to_string(path).expect("the manual is there");
    let lines = page.lines().skip_while(|line| !line.ends_with(behind)).skip(1);
    let block = lines.skip_while(|line| line.is_empty()).map_while(|line| line.strip_prefix("    "));
    block.map(|line| format!("{line}\n")).collect()
}

/// The tables of each page stand in one file: they are for one plugin.
#[test]
fn the_daemon_understands_the_tables_of_the_manuals() {
    let dir = TempDir::new().expect("a temporary directory");
    let file = dir.path().join("config.toml");
    let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/extend");
    let mut tables = 0;
    for page in fs::read_dir(pages).expect("the manuals are there") {
        let page = page.expect("the manuals are there").path();
        let text = fs::read_to_string(&page).expect("a page");
        let is_table = |block: &&str| block.starts_with("    [");
        let table: String = text.split("\n\n").filter(is_table).flat_map(|block| [block, "\n"]).collect();
        tables += table.lines().filter(|line| line.starts_with("    [")).count();
        fs::write(&file, table).expect("a writable directory");
        let mut check = Command::new(testkit::hoist_program());
        let checked = run(check.arg("daemon").arg("--config").arg(&file).args(["config", "check"])).ok();
        assert_eq!(checked.stderr, "", "{}", page.display());
    }
    assert!(tables >= 7, "they are read: {tables}");
}

/// Its program and its table, word for word but for the place.
#[test]
fn the_stream_processor_of_the_manual_is_one() {
    if !is_root("the daemon") {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let program = dir.path().join("rot");
    testkit::executable(&program, &page_of_stream_processors("This is a whole one:"));
    let table = page_of_stream_processors("# A stream processor");
    let table = table.replace("/usr/local/bin/rot", &program.display().to_string());
    assert!(table.contains("/rot\"") && !table.contains("/usr/local"), "{table}");
    let daemon = Daemon::start_with(&[], &table);
    let plain = archive(dir.path());
    on(&daemon, async |channel| {
        let mounts = tree(&channel, "a").await;
        let root = PathBuf::from(&mounts[0].source);
        let rot = layer(&channel, "application/vnd.example.rot", &turned(&plain)).await;
        let request = ApplyRequest { diff: Some(rot), mounts, ..ApplyRequest::default() };
        let applied = apply(&channel, request).await.unwrap().applied.unwrap();
        assert_eq!(applied.digest, Digest::of(&plain).to_string());
        assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "in a layer");
    });
}

/// As the programs here turn letters.
fn turned(plain: &[u8]) -> Vec<u8> {
    let turn = |byte: &u8| match byte {
        b'a'..=b'm' | b'A'..=b'M' => byte + 13,
        b'n'..=b'z' | b'N'..=b'Z' => byte - 13,
        other => *other,
    };
    plain.iter().map(turn).collect()
}

#[test]
fn layers_of_foreign_kinds_go_through_stream_processors() {
    /// The letters of a payload of the type `key` with `secret` in it: its other bytes are numbers of the encoding.
    const KEYED: &str = "[ $(tr -cd a-z <&3) = keysecret ] || exit 4";
    if !is_root("the daemon") {
        return;
    }
    let config = format!(
        "[stream_processors.rot]\naccepts = [\"application/vnd.example.rot\"]\nreturns = \"{PLAIN_LAYER}\"\n\
         path = \"sh\"\nargs = [\"-c\", \"{KEYED}; LC_ALL=C tr A-Za-z N-ZA-Mn-za-m\"]\n\
         [stream_processors.fails]\naccepts = [\"application/vnd.example.fails\"]\nreturns = \"{PLAIN_LAYER}\"\n\
         path = \"sh\"\nargs = [\"-c\", \"echo no key >&2; exit 3\"]\n\n"
    );
    let daemon = Daemon::start_with(&[], &config);
    let dir = TempDir::new().expect("a temporary directory");
    let plain = archive(dir.path());
    on(&daemon, async |channel| {
        let mounts = tree(&channel, "a").await;
        let root = PathBuf::from(&mounts[0].source);
        let rot = layer(&channel, "application/vnd.example.rot", &turned(&plain)).await;
        let payload = Any { type_url: "key".into(), value: b"secret".to_vec() };
        let request = ApplyRequest {
            diff: Some(rot.clone()),
            mounts,
            payloads: [("rot".to_owned(), payload)].into(),
            ..ApplyRequest::default()
        };
        let applied = apply(&channel, request.clone()).await.unwrap().applied.unwrap();
        assert_eq!(
            (applied.digest, applied.media_type.as_str()),
            (Digest::of(&plain).to_string(), PLAIN_LAYER)
        );
        assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "in a layer");

        let keyless = ApplyRequest { payloads: BTreeMap::new(), ..request.clone() };
        let failed = apply(&channel, keyless).await.unwrap_err();
        assert!(failed.message().contains("stream processor rot: exit status: 4"), "{failed}");

        let fails = Descriptor { media_type: "application/vnd.example.fails".into(), ..rot.clone() };
        let failed =
            apply(&channel, ApplyRequest { diff: Some(fails), ..request.clone() }).await.unwrap_err();
        assert!(failed.message().contains("fails") && failed.message().contains("no key"), "{failed}");
        let unknown = Descriptor { media_type: "application/vnd.example.none".into(), ..rot };
        let unknown = apply(&channel, ApplyRequest { diff: Some(unknown), ..request }).await.unwrap_err();
        assert_eq!(unknown.code(), Code::Unimplemented);
        assert!(unknown.message().contains("application/vnd.example.none"), "{unknown}");
    });
}

/// Programs that turn letters, and such that go wrong in one way or the other.
fn turning() -> String {
    let stage = |name: &str, script: &str| {
        format!(
            "[stream_processors.{name}]\naccepts = [\"application/vnd.example.{name}\"]\nreturns = \"{PLAIN_LAYER}\"\n\
             path = \"sh\"\nargs = [\"-c\", \"{script}\"]\n"
        )
    };
    let turn = "LC_ALL=C tr A-Za-z N-ZA-Mn-za-m";
    let more = format!("{turn}; head -c 512 /dev/zero");
    let stages = [("rot", turn), ("fails", "echo no key >&2; exit 3"), ("lies", &more)];
    stages.map(|(name, script)| stage(name, script)).concat() + "\n"
}

/// An image of a shell and, on top of it, a layer of a foreign kind, which changes it and takes a file away. What a
/// registry or an archive has of the upper one is turned.
fn foreign_image(layout: &Layout, kind: &str) {
    let lower = shell_layer();
    let upper = tar_of(&[("etc/base", "turned"), ("etc/.wh.gone", "")]);
    let diff_ids = [&lower, &upper].map(|layer| Digest::of(layer).to_string());
    let layers = [layout.blob(PLAIN_LAYER, &lower), layout.blob(kind, &turned(&upper))];
    let image = layout.image_of_blobs(&layers, &json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}}));
    layout.tag(&image, "foreign");
}

/// Names of the trees of an image of ours that were made.
fn committed(daemon: &Daemon) -> usize {
    daemon.ctr(["snapshots", "ls"]).ok().stdout.matches("Committed").count()
}

fn pull_by_transfer(daemon: &Daemon, reference: &str) -> Result<(), Status> {
    on(daemon, async |channel| {
        let source = pack(&OciRegistry { reference: reference.into(), resolver: None });
        let unpacks = vec![UnpackConfiguration::default()];
        let store = ImageStore { name: reference.into(), unpacks, ..ImageStore::default() };
        let (source, destination) = (Some(source), Some(pack(&store)));
        let request = TransferRequest { source, destination, options: None };
        TransferClient::new(channel).transfer(ask(request)).await.map(drop)
    })
}

/// The same trees, in either form, whichever way the image came in.
#[test]
fn images_with_layers_of_foreign_kinds_are_pulled_loaded_and_run() {
    if !is_root("containers") {
        return;
    }
    let (registry, layout) = (Registry::start(), Layout::new());
    foreign_image(&layout, "application/vnd.example.rot");
    let reference = registry.push(layout.path(), "foreign", "foreign:1");
    for form in ["archives", "directories"] {
        let config = format!("[snapshots]\nlayers = \"{form}\"\n\n{}", turning());
        let check = |take: &dyn Fn(&Daemon) -> String| {
            let daemon = Daemon::start_with(&[], &config);
            let name = take(&daemon);
            assert_eq!(committed(&daemon), 2, "{form}: made when it came in");
            let run = [
                "run",
                "--rm",
                "--network",
                "none",
                &name,
                "sh",
                "-c",
                "cat /etc/base; ls /etc/gone || echo -gone",
            ];
            assert_eq!(daemon.hoist(run).ok().stdout, "turned-gone\n", "{form}");
            let files = daemon.hoist(["image", "ls-files", &name]).ok();
            assert!(files.stdout.contains("etc/base") && !files.stdout.contains("etc/gone"), "{files}");
            daemon.hoist(["image", "verify", &name]).ok();
        };
        check(&|daemon| {
            daemon.hoist(["pull", &reference]).ok();
            reference.clone()
        });
        check(&|daemon| {
            pull_by_transfer(daemon, &reference).expect("a pull");
            reference.clone()
        });
        check(&|daemon| {
            let loaded = daemon.hoist([Path::new("load"), Path::new("-i"), layout.path()]).ok();
            loaded.text().rsplit(": ").next().expect("a name").to_owned()
        });
    }
}

#[test]
fn a_program_that_makes_no_layer_of_an_image_is_named_and_leaves_no_tree() {
    if !is_root("the daemon") {
        return;
    }
    let registry = Registry::start();
    let cases = [
        ("fails", &["stream processor fails", "no key"][..]),
        ("lies", &["stream processor lies", "unpacks to"]),
        ("none", &["application/vnd.example.none"]),
    ];
    for (kind, words) in cases {
        let layout = Layout::new();
        foreign_image(&layout, &format!("application/vnd.example.{kind}"));
        let reference = registry.push(layout.path(), "foreign", &format!("{kind}:1"));
        for form in ["archives", "directories"] {
            let config = format!("[snapshots]\nlayers = \"{form}\"\n\n{}", turning());
            let daemon = Daemon::start_with(&[], &config);
            let pulled = daemon.hoist(["pull", &reference]).expect_code(1);
            assert!(words.iter().all(|word| pulled.stderr.contains(word)), "{form}: {pulled}");
            let refused = pull_by_transfer(&daemon, &reference).unwrap_err();
            assert!(words.iter().all(|word| refused.message().contains(word)), "{form}: {refused}");
            assert_eq!((committed(&daemon), daemon.hoist(["images", "-q"]).ok().text()), (0, ""), "{form}");
            daemon.hoist(["system", "prune", "-f"]).ok();
            let listed = daemon.ctr(["snapshots", "ls"]).ok();
            assert_eq!(listed.stdout.lines().count(), 1, "{form}: {listed}");
        }
    }
}

/// Nobody can read it, and that is what is said: not that its bytes are wrong.
#[test]
fn an_encrypted_layer_without_its_program_is_told_as_such() {
    if !is_root("the daemon") {
        return;
    }
    let (registry, layout) = (Registry::start(), Layout::new());
    foreign_image(&layout, "application/vnd.oci.image.layer.v1.tar+encrypted");
    let reference = registry.push(layout.path(), "foreign", "encrypted:1");
    let daemon = Daemon::start();
    daemon.hoist(["pull", &reference]).expect_code(1).expect_stderr("stream processor");
}

/// As imgcrypt's decoder has it: what wraps the key is an annotation of the layer, of which the program is told.
#[test]
fn the_decoder_of_encrypted_layers_is_told_of_each_layer() {
    const KIND: &str = "application/vnd.oci.image.layer.v1.tar+encrypted";
    if !is_root("the daemon") {
        return;
    }
    let (registry, layout) = (Registry::start(), Layout::new());
    let (lower, upper) = (shell_layer(), tar_of(&[("etc/base", "decrypted")]));
    let diff_ids = [&lower, &upper].map(|layer| Digest::of(layer).to_string());
    let mut encrypted = layout.blob(KIND, &turned(&upper));
    encrypted["annotations"] = json!({ "org.opencontainers.image.enc.keys.jwe": "wrapped-key" });
    let layers = [layout.blob(PLAIN_LAYER, &lower), encrypted];
    let config = json!({ "rootfs": { "type": "layers", "diff_ids": diff_ids } });
    layout.tag(&layout.image_of_blobs(&layers, &config), "encrypted");
    let reference = registry.push(layout.path(), "encrypted", "encrypted:2");
    let config = format!(
        "[stream_processors.\"io.containerd.ocicrypt.decoder.v1.tar\"]\naccepts = [\"{KIND}\"]\n\
         returns = \"{PLAIN_LAYER}\"\npath = \"sh\"\n\
         args = [\"-c\", \"grep -q wrapped-key <&3 || exit 4; LC_ALL=C tr A-Za-z N-ZA-Mn-za-m\"]\n\n"
    );
    let daemon = Daemon::start_with(&[], &config);
    daemon.hoist(["pull", &reference]).ok();
    let shown =
        daemon.hoist(["run", "--rm", "--network", "none", &reference, "sh", "-c", "cat /etc/base"]).ok();
    assert_eq!(shown.stdout, "decrypted");
    daemon.hoist(["rmi", &reference]).ok();
    daemon.hoist(["system", "prune", "-f"]).ok();
    pull_by_transfer(&daemon, &reference).expect("a pull");
}

/// The lowest layer is a note, which the example knows; the others are ours, whoever is asked before.
#[test]
fn layers_of_pulls_and_loads_go_to_differs_too() {
    if !is_root("containers") {
        return;
    }
    let (registry, note) = (Registry::start(), b"remember");
    let layout = |diff_id: &str| {
        let layout = Layout::new();
        let upper = [shell_layer(), tar_of(&[("etc/base", "upmost"), ("etc/.wh.gone", "")])];
        let mut layers = vec![layout.blob("application/vnd.example.note", note)];
        layers.extend(upper.iter().map(|layer| layout.blob(PLAIN_LAYER, layer)));
        let mut diff_ids = vec![diff_id.to_owned()];
        diff_ids.extend(upper.iter().map(|layer| Digest::of(layer).to_string()));
        let config = json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}});
        layout.tag(&layout.image_of_blobs(&layers, &config), "noted");
        layout
    };
    let (right, wrong) = (layout(&Digest::of(note).to_string()), layout(&Digest::of(b"other").to_string()));
    let [good, bad] = [(&right, "noted:1"), (&wrong, "noted:2")]
        .map(|(layout, name)| registry.push(layout.path(), "noted", name));
    for form in ["archives", "directories"] {
        let mut notes = Example::new(env!("CARGO_BIN_EXE_example-differ"));
        let differs = "[diff]\ndefault = [\"notes\", \"walking\"]\n\n";
        let plugin = notes.config("notes", "diff");
        let daemon =
            Daemon::start_with(&[], &format!("[snapshots]\nlayers = \"{form}\"\n\n{differs}{plugin}"));
        notes.start(&[&daemon.socket()]);
        let check = |name: &str| {
            assert_eq!(committed(&daemon), 3, "{form}");
            let run = [
                "run",
                "--rm",
                "--network",
                "none",
                name,
                "sh",
                "-c",
                "cat /NOTE /etc/base; ls /etc/gone || echo -gone",
            ];
            assert_eq!(daemon.hoist(run).ok().stdout, "rememberupmost-gone\n", "{form}");
            daemon.hoist(["rmi", name]).ok();
            daemon.hoist(["system", "prune", "-f"]).ok();
            eventually("its trees are collected", || (committed(&daemon) == 0).then_some(()));
        };
        daemon.hoist(["pull", &good]).ok();
        check(&good);
        pull_by_transfer(&daemon, &good).expect("a pull");
        check(&good);
        let loaded = daemon.hoist([Path::new("load"), Path::new("-i"), right.path()]).ok();
        check(loaded.text().rsplit(": ").next().expect("a name"));

        let refused = daemon.hoist(["pull", &bad]).expect_code(1);
        assert!(
            refused.stderr.contains("differ notes") && refused.stderr.contains("unpacks to"),
            "{refused}"
        );
        assert_eq!(committed(&daemon), 0, "{form}");
        notes.kill();
        daemon.hoist(["pull", &good]).expect_code(1).expect_stderr("proxy plugin notes");
        assert_eq!(committed(&daemon), 0, "{form}");
    }
}
