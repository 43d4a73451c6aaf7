use std::fs;
use std::path::Path;
use std::time::Duration;

use api::shim::events::{TaskExit, topic};
use api::shim::runc::Options;
use api::shim::types::TypeUrl;
use events::{Envelope, Exchange, Received, Subscription};
use prost::Message;
use task::{Config, Create, Shims, Status};
use tempfile::TempDir;
use types::{ContainerId, ErrorKind, ExecId, Filters, Namespace, Opaque};

const RUNTIME: &str = "io.containerd.runc.v2";
const DEADLINE: Duration = Duration::from_secs(60);

/// The task layer of a daemon, in a temporary directory.
struct Fixture {
    dir: TempDir,
    shims: Shims,
    events: Subscription,
    endpoint: tokio::task::JoinHandle<()>,
}

impl Fixture {
    fn start(dir: TempDir) -> Fixture {
        let exchange = Exchange::new();
        let socket = dir.path().join("d.sock.ttrpc");
        let listener = ttrpc::asynchronous::listen(&socket).expect("a socket");
        let config = Config {
            bundles: dir.path().join("tasks"),
            sandboxes: dir.path().join("sandboxes"),
            sockets: dir.path().join("s"),
            grpc_address: dir.path().join("d.sock"),
            ttrpc_address: socket,
            publisher: "/bin/false".into(),
            shim: None,
            version: "2.3.4".into(),
            env: Vec::new(),
            limits: task::Limits::default(),
            debug: false,
        };
        let events = exchange.subscribe(Filters::all());
        let shims = Shims::new(config, exchange);
        let endpoint = tokio::spawn(task::serve_events(listener, shims.clone()));
        Fixture { shims, dir, events, endpoint }
    }

    fn new() -> Option<Fixture> {
        let programs = ["/usr/bin/containerd-shim-runc-v2", "/usr/sbin/runc", "/bin/busybox"];
        if !testkit::is_root("a container") {
            return None;
        }
        if programs.iter().any(|path| !Path::new(path).exists()) {
            println!("skipped: needs containerd, runc and busybox-static");
            return None;
        }
        let dir = TempDir::with_prefix_in("task-", "/var/tmp").expect("a temporary directory");
        let rootfs = dir.path().join("rootfs");
        fs::create_dir_all(rootfs.join("bin")).expect("a writable directory");
        fs::create_dir_all(rootfs.join("proc")).expect("a writable directory");
        fs::copy("/bin/busybox", rootfs.join("bin/busybox")).expect("a copy of busybox");
        Some(Fixture::start(dir))
    }

    /// Simulates a daemon that is killed and started again.
    fn restart(self) -> Fixture {
        self.endpoint.abort();
        drop(self.shims);
        Fixture::start(self.dir)
    }

    fn create(&self, id: &ContainerId, script: &str) -> Create {
        let spec = serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": { "uid": 0, "gid": 0 },
                "args": ["/bin/busybox", "sh", "-c", script],
                "env": ["PATH=/bin"],
                "cwd": "/",
            },
            "root": { "path": self.dir.path().join("rootfs"), "readonly": true },
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
            "linux": {
                "cgroupsPath": format!("/hoist-test/{id}-{}", std::process::id()),
                "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }],
            },
        });
        Create { spec: spec.to_string().into_bytes(), runtime: RUNTIME.to_owned(), ..Default::default() }
    }

    async fn event(&mut self, wanted: &str) -> Envelope {
        loop {
            let received = tokio::time::timeout(DEADLINE, self.events.receive()).await;
            match received.unwrap_or_else(|_| panic!("no {wanted}")) {
                Some(Received::Event(event)) if event.topic == wanted => return (*event).clone(),
                Some(_) => {}
                None => panic!("no {wanted}"),
            }
        }
    }
}

fn key(id: &str) -> (Namespace, ContainerId) {
    (Namespace::new("test").unwrap(), ContainerId::new(id).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_lives_and_ends_and_leaves_nothing() {
    let Some(mut fixture) = Fixture::new() else { return };
    let (namespace, id) = key("whole");
    let create = fixture.create(&id, "exit 7");
    let pid = fixture.shims.create(&namespace, &id, create.clone()).await.unwrap();
    let again = fixture.shims.create(&namespace, &id, create).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists);

    let task = fixture.shims.task(&namespace, &id).unwrap();
    assert_eq!(task.state(None).await.unwrap().status, Status::Created);
    assert_eq!(task.start(None).await.unwrap(), pid);
    assert_eq!(task.wait(None).await.unwrap().status, 7);
    let stopped = task.state(None).await.unwrap();
    assert_eq!((stopped.status, stopped.exit.unwrap().status), (Status::Stopped, 7));
    assert_eq!(fixture.shims.delete(&namespace, &id).await.unwrap().status, 7);

    for topic in [topic::CREATE, topic::START, topic::EXIT, topic::DELETE] {
        assert_eq!(fixture.event(topic).await.namespace, namespace);
    }
    assert_eq!(fixture.shims.task(&namespace, &id).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(fs::read_dir(fixture.dir.path().join("tasks/test")).unwrap().count(), 0);
}

/// The shim reads its cgroup from the input of `start`; the `Create` call would be too late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_goes_to_the_cgroup_that_its_options_name() {
    let Some(fixture) = Fixture::new() else { return };
    let (namespace, id) = key("placed");
    let path = format!("/hoist-shims-{}", std::process::id());
    let trees = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(Path::new);
    let tree = trees.into_iter().find(|tree| tree.join("cgroup.procs").exists()).expect("a tree of cgroups");
    let cgroup = tree.join(&path[1..]);
    fs::create_dir(&cgroup).unwrap();
    let options = Options { shim_cgroup: path.clone(), ..Options::default() };
    let create = Create {
        options: Some(Opaque { type_url: Options::TYPE_URL.into(), value: options.encode_to_vec() }),
        ..fixture.create(&id, "exec sleep 1000")
    };
    let created = fixture.shims.create(&namespace, &id, create).await;
    let members = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
    if created.is_ok() {
        fixture.shims.task(&namespace, &id).unwrap().kill(None, 9, true).await.unwrap();
        fixture.shims.delete(&namespace, &id).await.unwrap();
    }
    let deadline = std::time::Instant::now() + DEADLINE;
    // The shim exits only after its answer.
    while let Err(error) = fs::remove_dir(&cgroup) {
        assert!(std::time::Instant::now() < deadline, "{}: {error}", cgroup.display());
        tokio::task::yield_now().await;
    }
    created.unwrap();
    assert_ne!(members, "", "nobody is in {}", cgroup.display());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_further_process_runs_and_is_deleted() {
    let Some(fixture) = Fixture::new() else { return };
    let (namespace, id) = key("exec");
    fixture.shims.create(&namespace, &id, fixture.create(&id, "exec sleep 1000")).await.unwrap();
    let task = fixture.shims.task(&namespace, &id).unwrap();
    task.start(None).await.unwrap();

    let exec = ExecId::new("more").unwrap();
    let process = serde_json::json!({
        "user": { "uid": 0, "gid": 0 }, "args": ["/bin/busybox", "sh", "-c", "exit 5"], "cwd": "/",
    });
    let spec = Opaque {
        type_url: api::shim::types::PROCESS_SPEC_URL.to_owned(),
        value: process.to_string().into_bytes(),
    };
    task.exec(&exec, task::Exec { spec, io: task::Io::default() }).await.unwrap();
    task.start(Some(&exec)).await.unwrap();
    assert_eq!(task.wait(Some(&exec)).await.unwrap().status, 5);
    assert_eq!(task.delete_exec(&exec).await.unwrap().status, 5);

    assert!(!task.pids().await.unwrap().is_empty());
    let running = fixture.shims.delete(&namespace, &id).await.unwrap_err();
    assert!(matches!(running.kind(), ErrorKind::FailedPrecondition | ErrorKind::Unknown), "{running:?}");
    task.kill(None, 9, true).await.unwrap();
    assert_eq!(task.wait(None).await.unwrap().status, 137);
    fixture.shims.delete(&namespace, &id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_daemon_finds_the_tasks_of_the_old_one() {
    let Some(fixture) = Fixture::new() else { return };
    let (namespace, id) = key("again");
    fixture.shims.create(&namespace, &id, fixture.create(&id, "exec sleep 1000")).await.unwrap();
    fixture.shims.task(&namespace, &id).unwrap().start(None).await.unwrap();

    let mut fixture = fixture.restart();
    assert!(fixture.shims.tasks(None).is_empty());
    assert_eq!(fixture.shims.load().await.unwrap(), []);
    let task = fixture.shims.task(&namespace, &id).unwrap();
    assert_eq!(task.state(None).await.unwrap().status, Status::Running);
    task.kill(None, 15, false).await.unwrap();
    task.kill(None, 9, false).await.unwrap();
    assert_eq!(task.wait(None).await.unwrap().status, 137);
    fixture.event(topic::EXIT).await;
    fixture.shims.delete(&namespace, &id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_that_dies_is_cleaned_up_after_and_everybody_is_told() {
    let Some(mut fixture) = Fixture::new() else { return };
    let (namespace, id) = key("dies");
    fixture.shims.create(&namespace, &id, fixture.create(&id, "exec sleep 1000")).await.unwrap();
    let task = fixture.shims.task(&namespace, &id).unwrap();
    let pid = task.start(None).await.unwrap();
    let waiting = tokio::spawn({
        let task = task.clone();
        async move { task.wait(None).await }
    });
    kill_shim_of(pid);
    assert_eq!(waiting.await.unwrap().unwrap().status, 137);
    let exit = TaskExit::decode(fixture.event(topic::EXIT).await.event.value.as_slice()).unwrap();
    assert_eq!((exit.container_id.as_str(), exit.exit_status), ("dies", 137));
    fixture.event(topic::DELETE).await;
    assert_eq!(fixture.shims.task(&namespace, &id).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(fs::read_dir(fixture.dir.path().join("tasks/test")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_that_died_with_the_daemon_is_cleaned_up_after() {
    let Some(fixture) = Fixture::new() else { return };
    let (namespace, id) = key("both");
    // The first daemon dies before the shim, so that it cannot notice the shim's death.
    let first = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (shims, create) = (fixture.shims.clone(), fixture.create(&id, "exec sleep 1000"));
    let life = first.spawn(async move {
        shims.create(&namespace, &id, create).await.unwrap();
        shims.task(&namespace, &id).unwrap().start(None).await.unwrap()
    });
    let pid = life.await.unwrap();
    tokio::task::spawn_blocking(|| first.shutdown_timeout(Duration::from_secs(10))).await.unwrap();
    fixture.endpoint.abort();
    kill_shim_of(pid);

    let mut fixture = fixture.restart();
    let ended = fixture.shims.load().await.unwrap();
    assert_eq!(ended.len(), 1);
    assert_eq!((ended[0].id.as_str(), ended[0].exit.status), ("both", 137));
    fixture.event(topic::EXIT).await;
    // A daemon that dies before the task is deleted does not take the exit with it.
    let fixture = fixture.restart();
    let again = fixture.shims.load().await.unwrap();
    assert_eq!((again.len(), again[0].exit.status), (1, 137));
    let (namespace, id) = key("both");
    assert_eq!(fixture.shims.task(&namespace, &id).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(fixture.shims.has(&namespace, &id));
    assert_eq!(fixture.shims.delete(&namespace, &id).await.unwrap().status, 137);
    assert!(!fixture.shims.has(&namespace, &id));
    assert_eq!(fs::read_dir(fixture.dir.path().join("tasks/test")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_cannot_start_says_why_and_leaves_nothing() {
    let Some(fixture) = Fixture::new() else { return };
    let (namespace, id) = key("broken");
    let mut create = fixture.create(&id, "");
    create.spec =
        String::from_utf8(create.spec).unwrap().replace("/bin/busybox", "/bin/nothing").into_bytes();
    let error = fixture.shims.create(&namespace, &id, create).await.unwrap_err();
    assert!(error.chain().contains("/bin/nothing"), "{error:?}");
    assert_eq!(fs::read_dir(fixture.dir.path().join("tasks/test")).unwrap().count(), 0);
    let missing = Create { runtime: "io.containerd.none.v1".into(), ..fixture.create(&id, "") };
    let error = fixture.shims.create(&namespace, &id, missing).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

/// If no root is mounted, the runtime creates mount points and devices in the bundle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_has_no_root_leaves_nothing() {
    let Some(fixture) = Fixture::new() else { return };
    let (namespace, id) = key("rootless");
    let mut create = fixture.create(&id, "");
    let mut spec: serde_json::Value = serde_json::from_slice(&create.spec).unwrap();
    spec["root"] = serde_json::json!({ "path": "rootfs" });
    create.spec = spec.to_string().into_bytes();
    let error = fixture.shims.create(&namespace, &id, create).await.unwrap_err();
    assert!(error.chain().contains("/bin/busybox"), "{error:?}");
    assert_eq!(fixture.shims.task(&namespace, &id).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!fixture.shims.has(&namespace, &id));
    assert_eq!(fs::read_dir(fixture.dir.path().join("tasks/test")).unwrap().count(), 0);
}

/// Sends SIGKILL to the parent of a container's first process, which is its shim.
fn kill_shim_of(pid: u32) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim();
    let parent = rustix::process::Pid::from_raw(parent.parse().unwrap()).unwrap();
    rustix::process::kill_process(parent, rustix::process::Signal::KILL).unwrap();
}

/// An unreadable bundle proves nothing about the container: it is kept, and its id stays taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_that_is_not_understood_is_left_alone() {
    let Some(fixture) = Fixture::new() else { return };
    let (namespace, id) = key("puzzle");
    fixture.shims.create(&namespace, &id, fixture.create(&id, "exec sleep 1000")).await.unwrap();
    let pid = fixture.shims.task(&namespace, &id).unwrap().start(None).await.unwrap();
    let bootstrap = fixture.dir.path().join("tasks/test/puzzle/bootstrap.json");
    let understood = fs::read(&bootstrap).unwrap();
    fs::write(&bootstrap, br#"{"version":9,"address":"unix:///x","protocol":"ttrpc"}"#).unwrap();

    let fixture = fixture.restart();
    assert_eq!(fixture.shims.load().await.unwrap(), []);
    assert!(Path::new(&format!("/proc/{pid}")).exists(), "the container runs");
    let taken = fixture.shims.create(&namespace, &id, fixture.create(&id, "true")).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);

    fs::write(&bootstrap, understood).unwrap();
    let fixture = fixture.restart();
    fixture.shims.load().await.unwrap();
    let task = fixture.shims.task(&namespace, &id).unwrap();
    task.kill(None, 9, false).await.unwrap();
    assert_eq!(task.wait(None).await.unwrap().status, 137);
    fixture.shims.delete(&namespace, &id).await.unwrap();
}
