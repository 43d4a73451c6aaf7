//! A daemon's side of a shim: a bundle, the shim's program, a client, and a taker of events.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use api::shim::bootstrap::{BootstrapParams, BootstrapResult};
use api::shim::events::{ForwardRequest, TaskExit};
use api::shim::task::{self, SERVICE_V2, SERVICE_V3};
use api::shim::types::{Envelope, Mount, PROCESS_SPEC_URL};
use prost::Message;
use serde_json::{Value, json};
use testkit::DEADLINE;
use ttrpc::{Blocking, Request, Server};
use types::Result;

pub(crate) const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-hoist-v2");

/// True if the tests can run here; says why not otherwise.
pub(crate) fn is_possible() -> bool {
    if !testkit::is_root("the shim") {
        return false;
    }
    let busybox = Path::new("/bin/busybox").exists();
    if !busybox {
        println!("skipped: needs busybox-static");
    }
    busybox
}

/// A root file system with busybox in it, made once.
pub(crate) fn rootfs() -> PathBuf {
    static ROOT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    ROOT.get_or_init(|| {
        let root = testkit::cache_dir().join(format!("shim-rootfs-{}", std::process::id()));
        for directory in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
            std::fs::create_dir_all(root.join(directory)).unwrap();
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in
            ["sh", "cat", "echo", "sleep", "true", "stty", "kill", "head", "tr", "id", "ls", "dd", "grep"]
        {
            let _exists = std::os::unix::fs::symlink("busybox", root.join("bin").join(applet));
        }
        root
    })
    .clone()
}

/// Events that arrived, in order.
#[derive(Clone, Default)]
pub(crate) struct Events(Arc<(Mutex<Vec<Envelope>>, Condvar)>);

impl Events {
    /// Takes events at `path` until the process ends.
    pub(crate) fn listen(path: &Path) -> Events {
        let events = Events::default();
        let listener = UnixListener::bind(path).unwrap();
        let taker = events.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(std::io::Result::ok) {
                let taker = taker.clone();
                std::thread::spawn(move || taker.serve(stream));
            }
        });
        events
    }

    fn serve(&self, mut stream: UnixStream) {
        let mut server = Server::new();
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = stream.read(&mut buffer) {
            server.feed(&buffer[..len]);
            while let Some(call) = server.next_call() {
                let request: ForwardRequest = call.request.read().unwrap();
                self.0.0.lock().unwrap().push(request.envelope.unwrap());
                self.0.1.notify_all();
                server.reply(call.stream, Ok(Vec::new()));
            }
            stream.write_all(server.pending()).unwrap();
            server.advance(server.pending().len());
        }
    }

    /// Waits until `enough` is satisfied with what arrived.
    pub(crate) fn wait(&self, what: &str, enough: impl Fn(&[Envelope]) -> bool) -> Vec<Envelope> {
        let (events, timeout) = self
            .0
            .1
            .wait_timeout_while(self.0.0.lock().unwrap(), DEADLINE, |events| !enough(events))
            .unwrap();
        assert!(!timeout.timed_out(), "{what}: only {:?}", topics(&events));
        events.clone()
    }

    pub(crate) fn topics(&self) -> Vec<String> {
        topics(&self.0.0.lock().unwrap())
    }

    pub(crate) fn wait_for_exit(&self, id: &str) -> TaskExit {
        let exit = |envelope: &Envelope| {
            api::shim::unpack::<TaskExit>(envelope.event.as_ref()?)?.ok().filter(|exit| exit.id == id)
        };
        let events = self.wait("exit event", |events| events.iter().any(|event| exit(event).is_some()));
        events.iter().find_map(exit).unwrap()
    }
}

pub(crate) fn topics(events: &[Envelope]) -> Vec<String> {
    events.iter().map(|event| event.topic.clone()).collect()
}

/// A shim with one container's bundle.
pub(crate) struct Shim {
    pub directory: tempfile::TempDir,
    pub id: String,
    pub address: String,
    pub events: Events,
    pub pid: u32,
    pub client: Blocking,
}

/// How to run a container.
pub(crate) struct Config {
    pub args: Vec<String>,
    pub terminal: bool,
    /// Changes to the spec.
    pub edit: fn(&mut Value),
    pub runtime: &'static str,
}

impl Config {
    pub(crate) fn sh(script: &str) -> Config {
        Config {
            args: vec!["/bin/sh".into(), "-c".into(), script.into()],
            terminal: false,
            edit: |_| {},
            runtime: "",
        }
    }

    pub(crate) fn sleep() -> Config {
        let args = vec!["/bin/sleep".into(), "100000".into()];
        Config { args, terminal: false, edit: |_| {}, runtime: "" }
    }
}

fn unique_id() -> String {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    format!("shimtest-{}-{number}", std::process::id())
}

impl Shim {
    /// A bundle, and a shim started for it with events going to a taker.
    pub(crate) fn start(config: &Config) -> Shim {
        let directory = tempfile::tempdir().unwrap();
        let events = Events::listen(&directory.path().join("d.sock.ttrpc"));
        Shim::start_in(config, directory, events)
    }

    /// The same, with a taker of events that the caller has, or will have later.
    pub(crate) fn start_in(config: &Config, directory: tempfile::TempDir, events: Events) -> Shim {
        let id = unique_id();
        let bundle = directory.path().join("bundle");
        make_bundle(&bundle, &id, config);
        let address = bootstrap(directory.path(), &bundle, &id);
        let client = Blocking::connect(&address).unwrap();
        let mut shim = Shim { directory, id, address, events, pid: 0, client };
        let connect: task::ConnectResponse =
            shim.call("Connect", &task::ConnectRequest { id: shim.id.clone() }).unwrap();
        shim.pid = connect.shim_pid;
        shim
    }

    /// Started, created, and the container running.
    pub(crate) fn run(config: &Config) -> Shim {
        let mut shim = Shim::start(config);
        shim.create(config, ["", "", ""]);
        shim.start_process("");
        shim
    }

    pub(crate) fn bundle(&self) -> PathBuf {
        self.directory.path().join("bundle")
    }

    pub(crate) fn call<M: Message + Default>(&mut self, method: &str, request: &impl Message) -> Result<M> {
        self.client.call(&Request::new(SERVICE_V3, method, request).with_timeout(DEADLINE))
    }

    pub(crate) fn create(&mut self, config: &Config, stdio: [&str; 3]) -> u32 {
        self.try_create(config, stdio).unwrap()
    }

    pub(crate) fn try_create(&mut self, config: &Config, stdio: [&str; 3]) -> Result<u32> {
        let options = api::shim::runc::Options {
            root: self.directory.path().join("runtime").to_str().unwrap().into(),
            binary_name: config.runtime.into(),
            ..Default::default()
        };
        let request = task::CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.bundle().to_str().unwrap().into(),
            rootfs: vec![Mount {
                r#type: "bind".into(),
                source: rootfs().to_str().unwrap().into(),
                target: String::new(),
                options: vec!["rbind".into(), "rw".into()],
            }],
            terminal: config.terminal,
            stdin: stdio[0].into(),
            stdout: stdio[1].into(),
            stderr: stdio[2].into(),
            options: Some(api::shim::pack(&options)),
            ..Default::default()
        };
        self.call::<task::CreateTaskResponse>("Create", &request).map(|created| created.pid)
    }

    pub(crate) fn start_process(&mut self, exec_id: &str) -> u32 {
        self.try_start(exec_id).unwrap()
    }

    pub(crate) fn try_start(&mut self, exec_id: &str) -> Result<u32> {
        let request = task::StartRequest { id: self.id.clone(), exec_id: exec_id.into() };
        self.call::<task::StartResponse>("Start", &request).map(|started| started.pid)
    }

    pub(crate) fn exec(
        &mut self,
        exec_id: &str,
        script: &str,
        terminal: bool,
        stdio: [&str; 3],
    ) -> Result<()> {
        let spec = json!({
            "terminal": terminal,
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
        });
        let request = task::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec_id.into(),
            terminal,
            stdin: stdio[0].into(),
            stdout: stdio[1].into(),
            stderr: stdio[2].into(),
            spec: Some(prost_types::Any {
                type_url: PROCESS_SPEC_URL.into(),
                value: spec.to_string().into_bytes(),
            }),
        };
        self.call("Exec", &request)
    }

    /// Adds, starts and waits for a process.
    pub(crate) fn exec_and_wait(&mut self, exec_id: &str, script: &str) -> u32 {
        self.exec(exec_id, script, false, ["", "", ""]).unwrap();
        self.start_process(exec_id);
        self.wait(exec_id)
    }

    pub(crate) fn wait(&mut self, exec_id: &str) -> u32 {
        let request = task::WaitRequest { id: self.id.clone(), exec_id: exec_id.into() };
        self.call::<task::WaitResponse>("Wait", &request).unwrap().exit_status
    }

    pub(crate) fn kill(&mut self, exec_id: &str, signal: u32, all: bool) -> Result<()> {
        let request = task::KillRequest { id: self.id.clone(), exec_id: exec_id.into(), signal, all };
        self.call("Kill", &request)
    }

    pub(crate) fn delete(&mut self, exec_id: &str) -> Result<task::DeleteResponse> {
        self.call("Delete", &task::DeleteRequest { id: self.id.clone(), exec_id: exec_id.into() })
    }

    pub(crate) fn state(&mut self, exec_id: &str) -> Result<task::StateResponse> {
        self.call("State", &task::StateRequest { id: self.id.clone(), exec_id: exec_id.into() })
    }

    pub(crate) fn pids(&mut self) -> task::PidsResponse {
        self.call("Pids", &task::PidsRequest { id: self.id.clone() }).unwrap()
    }

    /// Runs the shim's `delete` command, as a daemon does that found the shim dead.
    pub(crate) fn delete_orphan(&self) -> task::DeleteResponse {
        let output = Command::new(SHIM)
            .args(["-namespace", "test", "-address", "/d.sock", "-id", &self.id, "-bundle"])
            .arg(self.bundle())
            .arg("delete")
            .current_dir(self.bundle())
            .env("TTRPC_ADDRESS", self.directory.path().join("d.sock.ttrpc"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        task::DeleteResponse::decode(output.stdout.as_slice()).unwrap()
    }

    pub(crate) fn is_rootfs_mounted(&self) -> bool {
        let target = self.bundle().join("rootfs");
        std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&format!(" {} ", target.display()))
    }

    /// Ends the container and the shim in order.
    pub(crate) fn finish(mut self) {
        // It may have ended before.
        let _ended = self.kill("", 9, true);
        self.wait("");
        self.delete("").unwrap();
        let shutdown = task::ShutdownRequest { id: self.id.clone(), now: false };
        self.call::<()>("Shutdown", &shutdown).unwrap();
        testkit::eventually("end of the shim", || is_gone(self.pid).then_some(()));
        assert!(!self.is_rootfs_mounted());
    }
}

impl Drop for Shim {
    /// For tests that failed: nothing may stay.
    fn drop(&mut self) {
        if !is_gone(self.pid) {
            kill(self.pid);
        }
        let _left = Command::new(SHIM)
            .args(["-namespace", "test", "-address", "/d.sock", "-id", &self.id, "-bundle"])
            .arg(self.bundle())
            .arg("delete")
            .current_dir(self.bundle())
            .output();
    }
}

/// SIGKILL, then waits for the end.
pub(crate) fn kill(pid: u32) {
    let number = rustix::process::Pid::from_raw(pid as i32).unwrap();
    let _gone = rustix::process::kill_process(number, rustix::process::Signal::KILL);
    testkit::eventually("end of a killed process", || is_gone(pid).then_some(()));
}

pub(crate) fn is_gone(pid: u32) -> bool {
    // A process whose parent does not reap it, as in a container of ours, is gone as well.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| {
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
    })
}

fn make_bundle(bundle: &Path, id: &str, config: &Config) {
    std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
    let mut spec = spec(id, config);
    (config.edit)(&mut spec);
    std::fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
}

fn spec(id: &str, config: &Config) -> Value {
    json!({
        "ociVersion": "1.1.0",
        "process": {
            "terminal": config.terminal,
            "user": {"uid": 0, "gid": 0},
            "args": config.args,
            "env": ["PATH=/bin"],
            "cwd": "/",
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
        ],
        "linux": {
            "cgroupsPath": format!("/hoist-shim-test/{id}"),
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"},
            ],
        },
    })
}

/// Starts the shim by containerd 2.3's protocol and returns its address.
fn bootstrap(directory: &Path, bundle: &Path, id: &str) -> String {
    let params = BootstrapParams {
        instance_id: id.into(),
        namespace: "test".into(),
        log_level: -4,
        containerd_ttrpc_address: directory.join("d.sock.ttrpc").to_str().unwrap().into(),
        containerd_grpc_address: directory.join("d.sock").to_str().unwrap().into(),
        socket_dir: Some(directory.join("s").to_str().unwrap().into()),
        ..Default::default()
    };
    let mut child = Command::new(SHIM)
        .args(["-namespace", "test", "-id", id, "-address"])
        .arg(directory.join("d.sock"))
        .arg("start")
        .current_dir(bundle)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&params.encode_to_vec()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let result = BootstrapResult::decode(output.stdout.as_slice()).unwrap();
    assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
    result.address
}

/// Starts another container's shim by the protocol before 2.3; returns what it printed.
pub(crate) fn bootstrap_by_flags(directory: &Path, id: &str, annotations: HashMap<&str, &str>) -> String {
    let bundle = directory.join(id);
    std::fs::create_dir_all(&bundle).unwrap();
    let config = json!({"ociVersion": "1.1.0", "annotations": annotations});
    std::fs::write(bundle.join("config.json"), config.to_string()).unwrap();
    let output = Command::new(SHIM)
        .args(["-namespace", "test", "-id", id, "-publish-binary", "/bin/true", "-address"])
        .arg(directory.join("d.sock"))
        .arg("start")
        .current_dir(&bundle)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn shutdown(address: &str) {
    let mut client = Blocking::connect(address).unwrap();
    let call = |client: &mut Blocking, method: &str, message: &task::ShutdownRequest| {
        client
            .call::<task::ConnectResponse>(&Request::new(SERVICE_V2, method, message).with_timeout(DEADLINE))
    };
    let pid = call(&mut client, "Connect", &task::ShutdownRequest::default()).unwrap().shim_pid;
    call(&mut client, "Shutdown", &task::ShutdownRequest::default()).unwrap();
    testkit::eventually("end of the shim", || is_gone(pid).then_some(()));
}

/// A fifo, open for reading and writing so that nobody waits for the other end.
pub(crate) struct Fifo {
    pub path: PathBuf,
    file: std::fs::File,
}

impl Fifo {
    pub(crate) fn new(directory: &Path, name: &str) -> Fifo {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let path = directory.join(name);
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        Fifo { path, file }
    }

    pub(crate) fn name(&self) -> &str {
        self.path.to_str().unwrap()
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.file.write_all(bytes).unwrap();
    }

    /// Reads until `end` occurs.
    pub(crate) fn read_until(&mut self, end: &str) -> String {
        let mut text = String::new();
        let mut buffer = [0; 4096];
        while !text.contains(end) {
            let mut fds = [rustix::event::PollFd::new(&self.file, rustix::event::PollFlags::IN)];
            let timeout = rustix::event::Timespec { tv_sec: DEADLINE.as_secs() as i64, tv_nsec: 0 };
            let ready = rustix::event::poll(&mut fds, Some(&timeout)).unwrap();
            assert_eq!(ready, 1, "no {end:?} in {text:?}");
            let len = self.file.read(&mut buffer).unwrap();
            text.push_str(&String::from_utf8_lossy(&buffer[..len]));
        }
        text
    }
}
