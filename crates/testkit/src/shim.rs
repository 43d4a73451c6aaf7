//! Our shim without a daemon: bundles, calls and events as containerd would make and take them.
//!
//! ```text
//! ShimHost ── exec `start` ──▶ shim ◀── ttrpc ── ShimTask
//!    └── Events ◀── Forward ───┘
//! ```
//!
//! So a test says exactly what a daemon says, when it is there, and when it dies.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use api::shim::bootstrap::{BootstrapParams, BootstrapResult, Extension};
use api::shim::events::{FORWARD, ForwardRequest};
use api::shim::runc::Options;
use api::shim::task;
use api::shim::types::{Envelope, PROCESS_SPEC_URL, Status, TypeUrl};
use linux::cgroup::Cgroup;
use prost::Message;
use prost_types::Any;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use ttrpc::{Blocking, Request, Server};
use types::Result;

use crate::{Finished, eventually, run};

pub const SHIM_NAMESPACE: &str = "test";
/// The longest wait for an answer. The shim's own limits are shorter.
const CALL_MAX: Duration = Duration::from_secs(60);

/// The shim under test: `HOIST_SHIM_BIN`, or the one inside the `hoist` under test.
pub fn shim_program() -> PathBuf {
    static WRITTEN: OnceLock<(PathBuf, Option<TempDir>)> = OnceLock::new();
    let (program, _kept) = WRITTEN.get_or_init(|| {
        if let Some(built) = std::env::var_os("HOIST_SHIM_BIN") {
            return (built.into(), None);
        }
        let folder = TempDir::with_prefix_in("shim-", "/var/tmp").expect("a temporary directory");
        run(Command::new(crate::hoist_program()).args(["daemon", "shim"]).arg(folder.path())).ok();
        (folder.path().join("containerd-shim-hoist-v2"), Some(folder))
    });
    program.clone()
}

/// A daemon's part in the life of shims. Dropping it ends its shims and their containers.
pub struct ShimHost {
    dir: TempDir,
    root: PathBuf,
    cgroup: String,
    program: PathBuf,
    shims: Mutex<Vec<u32>>,
}

impl ShimHost {
    #[expect(clippy::new_without_default, reason = "it writes to the disk")]
    pub fn new() -> ShimHost {
        ShimHost::with_program(shim_program())
    }

    /// A host that runs another program as the shim.
    pub fn with_program(program: PathBuf) -> ShimHost {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = crate::memory_dir();
        let root = dir.path().join("root");
        for folder in ["bin", "proc", "dev", "tmp"] {
            fs::create_dir_all(root.join(folder)).expect("a writable directory");
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("/hoist-shim-test-{}-{number}", std::process::id());
        ShimHost { dir, root, cgroup, program, shims: Mutex::default() }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The cgroup above those of all containers of this host.
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    pub fn bundle(&self, id: &str) -> PathBuf {
        self.dir().join("b").join(id)
    }

    pub fn events_address(&self) -> PathBuf {
        self.dir().join("d.sock.ttrpc")
    }

    /// As [`ShimHost::listen`]; `look` gets each event before the shim has the answer to it.
    pub fn listen_with(&self, look: impl Fn(&Received) + Send + Sync + 'static) -> Events {
        Events::listen(&self.events_address(), Box::new(look))
    }

    /// Begins to receive events. Events that shims have kept come first.
    pub fn listen(&self) -> Events {
        self.listen_with(|_| ())
    }

    /// A container whose first process runs `script` in busybox's shell.
    pub fn container(&self, id: &str, script: &str) -> ShimContainer<'_> {
        let spec = json!({
            "ociVersion": "1.1.0",
            "process": process(script),
            "root": { "path": self.root, "readonly": true },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                  "options": ["newinstance", "ptmxmode=0666", "mode=0620"] },
                { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" },
            ],
            "annotations": {},
            "linux": {
                "cgroupsPath": format!("{}/{id}", self.cgroup),
                "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }],
            },
        });
        let request = task::CreateTaskRequest {
            id: id.to_owned(),
            bundle: self.bundle(id).display().to_string(),
            ..Default::default()
        };
        ShimContainer { host: self, spec, options: Options::default(), request, service: task::SERVICE_V3 }
    }

    /// The shim's command line, in the container's bundle, as containerd runs it.
    pub fn command(&self, id: &str, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        let bundle = self.bundle(id);
        command
            .current_dir(&bundle)
            .args(["-namespace", SHIM_NAMESPACE, "-id", id, "-publish-binary", "/bin/false", "-address"])
            .arg(self.dir().join("d.sock"))
            .arg("-bundle")
            .arg(&bundle)
            .arg(verb)
            .env("TTRPC_ADDRESS", self.events_address())
            // As systemd sets it for a daemon; it must not reach containers.
            .env("NOTIFY_SOCKET", "/run/systemd/notify");
        command
    }

    /// The answer of the shim's `delete` for a container whose shim is gone.
    pub fn delete_orphan(&self, id: &str) -> task::DeleteResponse {
        let output = self.command(id, "delete").output().expect("the shim runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        task::DeleteResponse::decode(output.stdout.as_slice()).expect("a DeleteResponse")
    }
}

impl Drop for ShimHost {
    fn drop(&mut self) {
        // The shims are killed, in case they are broken; `delete` then ends their containers.
        for pid in self.shims.lock().expect("no test panics with this lock").iter() {
            let _gone =
                i32::try_from(*pid).ok().and_then(Pid::from_raw).map(|pid| kill_process(pid, Signal::KILL));
        }
        for bundle in fs::read_dir(self.dir().join("b")).into_iter().flatten().flatten() {
            let id = bundle.file_name().to_string_lossy().into_owned();
            let _best_effort = self.command(&id, "delete").stdin(Stdio::null()).output();
        }
        if let Ok(cgroup) = Cgroup::open(&self.cgroup) {
            // A failure only leaves a cgroup behind.
            let _left = cgroup.kill().and_then(|()| cgroup.delete());
        }
    }
}

/// An OCI `process` that runs `script`.
pub fn process(script: &str) -> Value {
    json!({
        "user": { "uid": 0, "gid": 0 },
        "args": ["/bin/busybox", "sh", "-c", script],
        "env": ["PATH=/bin"],
        "cwd": "/",
    })
}

/// A container that is not created yet.
pub struct ShimContainer<'a> {
    host: &'a ShimHost,
    pub spec: Value,
    pub options: Options,
    pub request: task::CreateTaskRequest,
    /// The task service to call: version 2 or 3 of the task API.
    pub service: &'static str,
}

impl ShimContainer<'_> {
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Puts the container into the shim of a group.
    #[must_use]
    pub fn in_group(self, key: &str, group: &str) -> Self {
        self.with(|container| container.spec["annotations"][key] = group.into())
    }

    #[must_use]
    pub fn stdout(self, target: impl AsRef<Path>) -> Self {
        self.with(|container| container.request.stdout = target.as_ref().display().to_string())
    }

    #[must_use]
    pub fn stderr(self, target: impl AsRef<Path>) -> Self {
        self.with(|container| container.request.stderr = target.as_ref().display().to_string())
    }

    pub fn write_bundle(&self) {
        let bundle = self.host.bundle(&self.request.id);
        fs::create_dir_all(bundle.join("rootfs")).expect("a writable directory");
        fs::write(bundle.join("config.json"), self.spec.to_string()).expect("a writable directory");
    }

    fn packed_options(&self) -> Any {
        Any { type_url: Options::TYPE_URL.to_owned(), value: self.options.encode_to_vec() }
    }

    /// Runs `start` as containerd 2.3 does and returns the shim's address.
    pub fn start_shim(&self) -> String {
        self.write_bundle();
        let params = BootstrapParams {
            instance_id: self.request.id.clone(),
            namespace: SHIM_NAMESPACE.to_owned(),
            containerd_ttrpc_address: self.host.events_address().display().to_string(),
            containerd_grpc_address: self.host.dir().join("d.sock").display().to_string(),
            extensions: vec![Extension { value: Some(self.packed_options()) }],
            socket_dir: Some(self.host.dir().join("s").display().to_string()),
            ..Default::default()
        };
        let started = self.run_start(&params.encode_to_vec());
        let result = BootstrapResult::decode(started.as_slice()).expect("a BootstrapResult");
        assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
        result.address
    }

    /// Runs `start` with `stdin` on standard input and returns its standard output.
    pub fn run_start(&self, stdin: &[u8]) -> Vec<u8> {
        let mut command = self.host.command(&self.request.id, "start");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the shim runs");
        child.stdin.take().expect("piped").write_all(stdin).expect("the shim reads");
        let output = child.wait_with_output().expect("a child of ours");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    pub fn try_create(mut self) -> Result<ShimTask> {
        let address = self.start_shim();
        self.request.options = Some(self.packed_options());
        let task = ShimTask { id: self.request.id.clone(), address, service: self.service };
        self.host.shims.lock().expect("no test panics with this lock").push(task.connect_call()?.shim_pid);
        task.call::<task::CreateTaskResponse>("Create", &self.request)?;
        Ok(task)
    }

    #[track_caller]
    pub fn create(self) -> ShimTask {
        self.try_create().unwrap_or_else(|error| panic!("create: {}", error.chain()))
    }

    /// Creates and starts the container.
    #[track_caller]
    pub fn run(self) -> ShimTask {
        let task = self.create();
        task.start("");
        task
    }
}

/// A container in its shim. An empty `exec_id` names its first process.
#[derive(Clone, Debug)]
pub struct ShimTask {
    pub id: String,
    pub address: String,
    service: &'static str,
}

impl ShimTask {
    /// The container `id` of the shim at `address`. Does not ask the shim whether it has the container.
    pub fn at(id: &str, address: &str) -> ShimTask {
        ShimTask { id: id.to_owned(), address: address.to_owned(), service: task::SERVICE_V3 }
    }

    /// Calls the task service, on a new connection.
    pub fn call<M: Message + Default>(&self, method: &str, message: &impl Message) -> Result<M> {
        Blocking::connect(&self.address)?.call(&self.request(method, message))
    }

    pub fn request(&self, method: &str, message: &impl Message) -> Request {
        Request::new(self.service, method, message)
            .with_timeout(CALL_MAX)
            .with_metadata(ttrpc::NAMESPACE_KEY, SHIM_NAMESPACE)
    }

    pub fn connect_call(&self) -> Result<task::ConnectResponse> {
        self.call("Connect", &task::ConnectRequest { id: self.id.clone() })
    }

    #[track_caller]
    pub fn shim_pid(&self) -> u32 {
        self.connect_call().expect("the shim answers").shim_pid
    }

    pub fn try_start(&self, exec_id: &str) -> Result<u32> {
        let request = task::StartRequest { id: self.id.clone(), exec_id: exec_id.to_owned() };
        self.call::<task::StartResponse>("Start", &request).map(|response| response.pid)
    }

    #[track_caller]
    pub fn start(&self, exec_id: &str) -> u32 {
        self.try_start(exec_id).unwrap_or_else(|error| panic!("start: {}", error.chain()))
    }

    pub fn state(&self, exec_id: &str) -> Result<task::StateResponse> {
        self.call("State", &task::StateRequest { id: self.id.clone(), exec_id: exec_id.to_owned() })
    }

    #[track_caller]
    pub fn status(&self, exec_id: &str) -> Status {
        self.state(exec_id).unwrap_or_else(|error| panic!("state: {}", error.chain())).status()
    }

    /// Waits for the end of a process and returns its exit status.
    pub fn try_wait(&self, exec_id: &str) -> Result<u32> {
        let request = task::WaitRequest { id: self.id.clone(), exec_id: exec_id.to_owned() };
        self.call::<task::WaitResponse>("Wait", &request).map(|response| response.exit_status)
    }

    #[track_caller]
    pub fn wait(&self, exec_id: &str) -> u32 {
        self.try_wait(exec_id).unwrap_or_else(|error| panic!("wait: {}", error.chain()))
    }

    pub fn kill(&self, exec_id: &str, signal: u32) -> Result<()> {
        let request =
            task::KillRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), signal, all: false };
        self.call("Kill", &request)
    }

    pub fn delete(&self, exec_id: &str) -> Result<task::DeleteResponse> {
        self.call("Delete", &task::DeleteRequest { id: self.id.clone(), exec_id: exec_id.to_owned() })
    }

    /// Adds a process with `Exec`; [`ShimTask::start`] starts it.
    pub fn exec(
        &self,
        exec_id: &str,
        script: &str,
        change: impl FnOnce(&mut task::ExecProcessRequest),
    ) -> Result<()> {
        let spec =
            Any { type_url: PROCESS_SPEC_URL.to_owned(), value: process(script).to_string().into_bytes() };
        let mut request = task::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            spec: Some(spec),
            ..Default::default()
        };
        change(&mut request);
        self.call("Exec", &request)
    }

    /// Runs a process to its end, deletes it, and returns its exit status.
    #[track_caller]
    pub fn run_exec(&self, exec_id: &str, script: &str) -> u32 {
        self.exec(exec_id, script, |_| {}).unwrap_or_else(|error| panic!("exec: {}", error.chain()));
        self.start(exec_id);
        let status = self.wait(exec_id);
        self.delete(exec_id).unwrap_or_else(|error| panic!("delete: {}", error.chain()));
        status
    }

    /// Calls `Shutdown`. The shim stays as long as it has containers.
    pub fn shutdown(&self) -> Result<()> {
        self.call("Shutdown", &task::ShutdownRequest { id: self.id.clone(), now: false })
    }

    /// Kills and deletes the container, and shuts the shim down.
    #[track_caller]
    pub fn end(&self) {
        let _ended = self.kill("", 9);
        self.wait("");
        self.delete("").unwrap_or_else(|error| panic!("delete: {}", error.chain()));
        self.shutdown().unwrap_or_else(|error| panic!("shutdown: {}", error.chain()));
    }

    /// Sends SIGKILL to the shim and waits until it is dead.
    #[track_caller]
    pub fn kill_shim(&self) {
        let pid = i32::try_from(self.shim_pid()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, Signal::KILL).expect("the shim lives");
        eventually("the shim is dead", || self.connect_call().err());
    }
}

/// An event, with the metadata of its call.
#[derive(Clone, Debug)]
pub struct Received {
    pub envelope: Envelope,
    /// The metadata of the ttrpc call.
    pub metadata: Vec<(String, String)>,
}

/// The server for the events of shims. Dropping it closes all connections.
pub struct Events {
    path: PathBuf,
    shared: Arc<Shared>,
    acceptor: Option<std::thread::JoinHandle<()>>,
}

/// Called with each event before its call is answered.
type Look = Box<dyn Fn(&Received) + Send + Sync>;

struct Shared {
    look: Look,
    received: Mutex<Vec<Received>>,
    peers: Mutex<Vec<UnixStream>>,
    closed: std::sync::atomic::AtomicBool,
}

impl Events {
    fn listen(path: &Path, look: Look) -> Events {
        let _old = fs::remove_file(path);
        let listener = UnixListener::bind(path).expect("a free address");
        let shared = Arc::new(Shared {
            look,
            received: Mutex::default(),
            peers: Mutex::default(),
            closed: false.into(),
        });
        let acceptor = std::thread::spawn({
            let shared = shared.clone();
            move || accept(&listener, &shared)
        });
        Events { path: path.to_owned(), shared, acceptor: Some(acceptor) }
    }

    pub fn all(&self) -> Vec<Received> {
        self.shared.received.lock().expect("no panic holds this lock").clone()
    }

    /// Topics and subjects of all events so far, in order.
    pub fn told(&self) -> Vec<(String, String)> {
        self.all().iter().map(|event| (event.envelope.topic.clone(), subject(&event.envelope))).collect()
    }

    /// Waits for an event with this topic and subject.
    #[track_caller]
    pub fn wait_for(&self, topic: &str, id: &str) {
        eventually(&format!("{topic} of {id}"), || {
            self.told().iter().any(|(found, of)| found == topic && of == id).then_some(())
        });
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        let _wake = UnixStream::connect(&self.path);
        let _gone = fs::remove_file(&self.path);
        if let Some(acceptor) = self.acceptor.take() {
            let _ended = acceptor.join();
        }
        for peer in self.shared.peers.lock().expect("no panic holds this lock").iter() {
            let _gone = peer.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    let mut readers = Vec::new();
    while let Ok((peer, _)) = listener.accept() {
        if shared.closed.load(Ordering::Acquire) {
            return;
        }
        let ours = peer.try_clone().expect("descriptors are left");
        shared.peers.lock().expect("no panic holds this lock").push(ours);
        let shared = shared.clone();
        readers.push(std::thread::spawn(move || take_events(peer, &shared)));
    }
}

fn take_events(mut peer: UnixStream, shared: &Shared) {
    let mut server = Server::new();
    let mut buffer = [0; 4096];
    while let Ok(len @ 1..) = peer.read(&mut buffer) {
        server.feed(&buffer[..len]);
        while let Some(call) = server.next_call() {
            assert_eq!(call.request.method, FORWARD);
            let request: ForwardRequest = call.request.read().expect("a ForwardRequest");
            let metadata = call.request.metadata.iter().map(|pair| (pair.key.clone(), pair.value.clone()));
            let received =
                Received { envelope: request.envelope.expect("an envelope"), metadata: metadata.collect() };
            (shared.look)(&received);
            shared.received.lock().expect("no panic holds this lock").push(received);
            server.reply(call.stream, Ok(Vec::new()));
        }
        if peer.write_all(server.pending()).is_err() {
            return;
        }
        server.advance(server.pending().len());
    }
}

/// The exec's id for events of execs, else the container's id.
fn subject(envelope: &Envelope) -> String {
    use api::shim::events::{TaskDelete, TaskExecAdded, TaskExit, topic};
    let value = envelope.event.as_ref().map(|event| event.value.as_slice()).unwrap_or_default();
    let id = match envelope.topic.as_str() {
        topic::EXIT => TaskExit::decode(value).map(|event| event.id),
        topic::DELETE => TaskDelete::decode(value).map(|event| event.container_id),
        topic::EXEC_ADDED | topic::EXEC_STARTED => TaskExecAdded::decode(value).map(|event| event.exec_id),
        // The first field of all other events is the container's id.
        _ => FirstText::decode(value).map(|event| event.text),
    };
    id.expect("an event of the task API")
}

#[derive(Clone, PartialEq, Message)]
struct FirstText {
    #[prost(string, tag = "1")]
    text: String,
}

/// Runs the shim with `args` to its end.
pub fn run_shim(args: &[&str]) -> Finished {
    run(Command::new(shim_program()).args(args).stdin(Stdio::null()))
}
