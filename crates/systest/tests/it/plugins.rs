//! Plugins in other processes: the examples of `docs/extend/`, while they work, when they stop answering, and when they
//! die.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender};
use std::task::{Context, Poll};

use api::grpc::content::content_client::ContentClient;
use api::grpc::content::{WriteAction, WriteContentRequest, WriteContentResponse};
use api::grpc::diff::diff_client::DiffClient;
use api::grpc::diff::{ApplyRequest, ApplyResponse};
use api::grpc::images::ListImagesRequest;
use api::grpc::images::images_client::ImagesClient;
use api::grpc::sandbox::Sandbox;
use api::grpc::sandbox::controller::controller_client::ControllerClient;
use api::grpc::sandbox::controller::{ControllerCreateRequest, ControllerStartRequest};
use api::grpc::snapshots::PrepareSnapshotRequest;
use api::grpc::snapshots::snapshots_client::SnapshotsClient;
use api::grpc::transfer::transfer_client::TransferClient;
use api::grpc::transfer::{ImageStore, OciRegistry, TransferRequest, UnpackConfiguration};
use api::grpc::types::{Descriptor, Mount};
use api::shim::pack;
use hyper::body::Incoming;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use testkit::{Daemon, eventually, images, is_root, run};
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::typed::{ask, code, on};

mod content;
mod differ;
mod sandboxer;
mod snapshotter;
mod stream_processor;

#[path = "../../plugins/serve.rs"]
#[expect(dead_code, reason = "the examples have a command line")]
mod serve;

const PLAIN_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// One of the example plugins, with a directory of its own for its socket and data.
struct Example {
    program: &'static str,
    dir: TempDir,
    process: Option<Child>,
}

impl Example {
    /// Does not start the plugin: the daemon's configuration may name the socket before it exists.
    fn new(program: &'static str) -> Example {
        let dir = TempDir::with_prefix_in("hp-", "/var/tmp").expect("a temporary directory");
        Example { program, dir, process: None }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("plugin.sock")
    }

    /// Starts the plugin and waits until it listens. Its arguments are the socket and `more`.
    fn start(&mut self, more: &[&Path]) {
        let started = Command::new(self.program).arg(self.socket()).args(more).stdin(Stdio::null()).spawn();
        self.process = Some(started.expect("the example was built with the tests"));
        eventually("the plugin listens", || UnixStream::connect(self.socket()).ok());
    }

    /// The table of the daemon's configuration for this plugin, as a proxy plugin of type `kind`.
    fn config(&self, name: &str, kind: &str) -> String {
        format!("[proxy_plugins.{name}]\ntype = \"{kind}\"\naddress = \"{}\"\n\n", self.socket().display())
    }

    /// Sends a signal. After SIGSTOP, waits until every thread of the plugin has stopped.
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

/// A plugin that answers HTTP/2 pings but never one of its calls; the test receives a message for each such call.
#[derive(Clone)]
struct SilentPlugin {
    /// The end of the path of the call that is never answered, such as `Snapshots/List`.
    call: &'static str,
    received: Sender<()>,
}

impl SilentPlugin {
    /// Serves on a socket in `dir` until the test program ends. Returns the socket, and the receiver of a message for
    /// each `call`.
    fn start(dir: &Path, call: &'static str) -> (PathBuf, Receiver<()>) {
        let socket = dir.join("plugin.sock");
        let (received, calls) = std::sync::mpsc::channel();
        let (server, plugin) = (socket.clone(), SilentPlugin { call, received });
        std::thread::spawn(move || serve::serve(&server, plugin));
        eventually("the plugin listens", || UnixStream::connect(&socket).ok());
        (socket, calls)
    }
}

impl tower_service::Service<http::Request<Incoming>> for SilentPlugin {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Incoming>) -> Self::Future {
        if request.uri().path().ends_with(self.call) {
            // The test may have ended, and dropped the receiver.
            let _ = self.received.send(());
            return Box::pin(std::future::pending());
        }
        Box::pin(async { Ok(Status::unimplemented("the plugin is silent").into_http()) })
    }
}

/// A daemon with the image busybox.
fn daemon(config: &str) -> Daemon {
    let daemon = Daemon::start_with(&[], config);
    daemon.load(&images::busybox_archive());
    daemon
}

/// Runs a shell script in a container of busybox on a snapshotter, without a network.
fn run_with(daemon: &Daemon, snapshotter: &str, script: &str) -> testkit::Finished {
    let args =
        ["run", "--rm", "--network", "none", "--snapshotter", snapshotter, "busybox", "sh", "-c", script];
    daemon.hoist(args)
}

/// One message of `Content.Write` that writes `data` at `offset` of the ingest `reference`.
fn chunk(reference: &str, offset: i64, data: &[u8]) -> WriteContentRequest {
    WriteContentRequest {
        action: WriteAction::Write.into(),
        r#ref: reference.into(),
        offset,
        data: data.to_vec().into(),
        ..WriteContentRequest::default()
    }
}

/// Sends the messages of one `Content.Write` and returns its last answer.
async fn write(channel: &Channel, messages: &[WriteContentRequest]) -> Result<WriteContentResponse, Status> {
    let mut client = ContentClient::new(channel.clone());
    let mut answers = client.write(ask(tokio_stream::iter(messages.to_vec()))).await?.into_inner();
    let mut last = None;
    while let Some(answer) = answers.message().await? {
        last = Some(answer);
    }
    last.ok_or_else(|| Status::internal("no answer"))
}

/// Labels of an object that garbage collection keeps.
fn kept() -> BTreeMap<String, String> {
    [("containerd.io/gc.root".to_owned(), "test".to_owned())].into()
}

/// Writes a blob and returns its descriptor, as that of a layer of `media_type`.
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

/// Mounts of a new active snapshot of the native snapshotter: a bind mount of one directory.
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

/// A tar archive of one file, which is written into `dir`.
fn archive(dir: &Path) -> Vec<u8> {
    fs::write(dir.join("file"), "in a layer").expect("a writable directory");
    let tar = Command::new("tar").arg("-C").arg(dir).args(["-cf", "-", "file"]).output().expect("tar runs");
    tar.stdout
}

/// How many committed snapshots the default snapshotter has.
fn committed(daemon: &Daemon) -> usize {
    daemon.ctr(["snapshots", "ls"]).ok().stdout.matches("Committed").count()
}

/// Pulls and unpacks an image through containerd's transfer service.
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

fn new_sandbox(id: &str, sandboxer: &str) -> ControllerCreateRequest {
    ControllerCreateRequest {
        sandbox_id: id.to_owned(),
        sandboxer: sandboxer.to_owned(),
        sandbox: Some(Sandbox::default()),
        ..ControllerCreateRequest::default()
    }
}

/// The tables of a page are checked as one file: they configure one plugin.
#[test]
fn configuration_in_the_plugin_manuals_is_valid() {
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
    assert!(tables >= 7, "tables are found: {tables}");
}

#[test]
fn a_stuck_differ_and_a_stuck_sandbox_controller_time_out() {
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
    // Unpacking asks the differ too, so the image is unpacked before the differ stops.
    daemon.load(&images::busybox_archive());
    run_with(&daemon, "native", "true").ok();
    on(&daemon, async |channel| {
        let mounts = tree(&channel, "a").await;
        let note = layer(&channel, "application/vnd.example.note", b"remember").await;
        let request = ApplyRequest { diff: Some(note), mounts, ..ApplyRequest::default() };
        let (id, sandboxer) = ("pod".to_owned(), "records".to_owned());
        let mut controller = ControllerClient::new(channel.clone());
        controller.create(ask(new_sandbox(&id, &sandboxer))).await.unwrap();
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
        assert_eq!(both().await, (Code::Unavailable, Code::Unavailable), "the next caller does not wait");
        let images =
            ImagesClient::new(channel.clone()).list(ask(ListImagesRequest::default())).await.unwrap();
        assert!(!images.into_inner().images.is_empty());
        assert_eq!(run_with(&daemon, "native", "echo fine").ok().text(), "fine");

        for stuck in [&notes, &records] {
            stuck.signal(Signal::CONT);
        }
        // The plugin may have carried out the calls whose caller had given up.
        let is_back = |code| matches!(code, Code::Ok | Code::AlreadyExists | Code::FailedPrecondition);
        while !matches!(both().await, (Code::Ok, started) if is_back(started)) {
            tokio::task::yield_now().await;
        }
    });
}
