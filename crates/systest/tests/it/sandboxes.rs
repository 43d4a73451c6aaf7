//! Pods through containerd's sandbox controller service, without a pause process.

use std::fs;
use std::path::Path;
use std::process::Command;

use api::grpc::containers::containers_client::ContainersClient;
use api::grpc::containers::{Container, CreateContainerRequest, Runtime as ContainerRuntime};
use api::grpc::event::{SandboxCreate, SandboxExit, SandboxStart};
use api::grpc::sandbox::controller::controller_client::ControllerClient;
use api::grpc::sandbox::controller::{
    ControllerCreateRequest, ControllerMetricsRequest, ControllerPlatformRequest, ControllerShutdownRequest,
    ControllerStartRequest, ControllerStartResponse, ControllerStatusRequest, ControllerStatusResponse,
    ControllerStopRequest, ControllerUpdateRequest, ControllerWaitRequest,
};
use api::grpc::sandbox::{Runtime, Sandbox};
use api::grpc::tasks::tasks_client::TasksClient;
use api::grpc::tasks::{CreateTaskRequest, DeleteTaskRequest, KillRequest, StartRequest, WaitRequest};
use api::grpc::types::{Any, Envelope, Mount};
use api::shim::events::TaskExit;
use api::shim::sandbox::{self, CreateSandboxRequest, CreateSandboxResponse, NOT_READY, READY};
use api::shim::types::TypeUrl;
use api::shim::unpack;
use prost::Message;
use serde_json::{Value, json};
use testkit::{Daemon, SHIM_NAMESPACE, ShimHost, ShimTask, eventually, is_root, run};
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use ttrpc::Blocking;

use crate::api::walk::covers;
use crate::typed::{NAMESPACE, ask, code, events, on, topic};

const SPEC_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const SHIM: &str = "shim";

/// The pod `pod`, and its client.
struct Pod {
    controller: ControllerClient<Channel>,
    channel: Channel,
}

fn spec(spec: &Value) -> Option<Any> {
    Some(Any { type_url: SPEC_URL.into(), value: spec.to_string().into_bytes() })
}

fn record(runtime: &str, document: &Value) -> Sandbox {
    Sandbox {
        sandbox_id: "pod".into(),
        runtime: Some(Runtime { name: runtime.into(), options: None }),
        spec: spec(document),
        sandboxer: SHIM.into(),
        ..Sandbox::default()
    }
}

fn creation(document: &Value) -> ControllerCreateRequest {
    ControllerCreateRequest {
        sandbox_id: "pod".into(),
        sandbox: Some(record("io.containerd.hoist.v2", document)),
        sandboxer: SHIM.into(),
        ..ControllerCreateRequest::default()
    }
}

macro_rules! ask_pod {
    ($pod:ident.$method:ident, $request:ident { $($field:ident: $value:expr),* }) => {
        $pod.controller
            .$method(ask($request {
                sandbox_id: "pod".into(),
                sandboxer: SHIM.into(),
                $($field: $value,)*
            }))
            .await
            .map(tonic::Response::into_inner)
    };
}

impl Pod {
    fn new(channel: &Channel) -> Pod {
        Pod { controller: ControllerClient::new(channel.clone()), channel: channel.clone() }
    }

    async fn create(&mut self, request: ControllerCreateRequest) -> Result<(), Status> {
        self.controller.create(ask(request)).await.map(drop)
    }

    async fn start(&mut self) -> Result<ControllerStartResponse, Status> {
        ask_pod!(self.start, ControllerStartRequest {})
    }

    async fn status(&mut self) -> Result<ControllerStatusResponse, Status> {
        ask_pod!(self.status, ControllerStatusRequest { verbose: true })
    }

    async fn stop(&mut self, timeout_secs: u32) -> Result<(), Status> {
        ask_pod!(self.stop, ControllerStopRequest { timeout_secs: timeout_secs }).map(drop)
    }

    async fn wait(&mut self) -> Result<u32, Status> {
        ask_pod!(self.wait, ControllerWaitRequest {}).map(|exit| exit.exit_status)
    }

    async fn shutdown(&mut self) -> Result<(), Status> {
        ask_pod!(self.shutdown, ControllerShutdownRequest {}).map(drop)
    }

    /// Creates and starts a container of the pod that runs `script`.
    async fn run(&self, dir: &Path, id: &str, script: &str) -> Result<u32, Status> {
        let linux = json!({ "namespaces": [{ "type": "pid" }, { "type": "mount" }] });
        self.run_with(dir, id, script, linux).await
    }

    async fn run_with(&self, dir: &Path, id: &str, script: &str, linux: Value) -> Result<u32, Status> {
        self.run_process(dir, id, &testkit::process(script), linux).await
    }

    async fn run_process(
        &self,
        dir: &Path,
        id: &str,
        process: &Value,
        mut linux: Value,
    ) -> Result<u32, Status> {
        // Containers of other daemons may have the same id.
        if linux.get("cgroupsPath").is_none() {
            let daemon = dir.file_name().expect("a directory of its own").display();
            linux["cgroupsPath"] = json!(format!("/{daemon}-{id}"));
        }
        let document = json!({
            "ociVersion": "1.1.0",
            "process": process,
            "root": { "path": root(dir), "readonly": true },
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
            "linux": linux,
        });
        let container = Container {
            id: id.into(),
            runtime: Some(ContainerRuntime { name: "io.containerd.hoist.v2".into(), options: None }),
            spec: spec(&document),
            sandbox: "pod".into(),
            ..Container::default()
        };
        let create = CreateContainerRequest { container: Some(container) };
        ContainersClient::new(self.channel.clone()).create(ask(create)).await?;
        let create = CreateTaskRequest {
            container_id: id.into(),
            stdout: format!("file://{}", dir.join(id).display()),
            ..CreateTaskRequest::default()
        };
        let mut tasks = TasksClient::new(self.channel.clone());
        let pid = tasks.create(ask(create)).await?.into_inner().pid;
        let start = StartRequest { container_id: id.into(), ..StartRequest::default() };
        tasks.start(ask(start)).await?;
        Ok(pid)
    }

    async fn wait_for(&self, id: &str) -> u32 {
        let wait = WaitRequest { container_id: id.into(), ..WaitRequest::default() };
        let exit = TasksClient::new(self.channel.clone()).wait(ask(wait)).await.expect("a task");
        exit.into_inner().exit_status
    }

    async fn delete(&self, id: &str) {
        let delete = DeleteTaskRequest { container_id: id.into() };
        TasksClient::new(self.channel.clone()).delete(ask(delete)).await.expect("a task that ended");
    }
}

/// Makes a root file system with busybox.
fn root(dir: &Path) -> String {
    let root = dir.join("busybox-root");
    for folder in ["bin", "proc", "dev"] {
        fs::create_dir_all(root.join(folder)).expect("a writable directory");
    }
    if !root.join("bin/busybox").exists() {
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    }
    root.display().to_string()
}

fn parent_of(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("the kernel's format");
    line.trim().parse().expect("a number")
}

fn namespace(pid: &str, kind: &str) -> String {
    let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("it runs");
    link.display().to_string()
}

fn cgroup_is_there(cgroup: &str) -> bool {
    let found = |tree: &str| Path::new("/sys/fs/cgroup").join(tree).join(cgroup).exists();
    ["memory", "unified", ""].iter().any(|tree| found(tree))
}

/// The next event, which has this topic.
async fn next<M: Message + Default + TypeUrl>(told: &mut Streaming<Envelope>, topic: &str) -> M {
    let event = told.message().await.expect("the stream lasts").expect("an event");
    assert_eq!((event.namespace.as_str(), event.topic.as_str()), (NAMESPACE, topic));
    unpack(&event.event.expect("it says what it is of")).expect("of this type").expect("a whole one")
}

/// The sandboxes' bundles in the daemon's state directory.
fn bundles(daemon: &Daemon) -> Vec<String> {
    let entries = fs::read_dir(daemon.state().join("sandboxes/default")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Containers may crash again and again in a pod that runs for months. Each has connections and watchers of its own,
/// also in the shim.
#[test]
fn nothing_is_left_of_containers_that_were_deleted_from_a_pod() {
    if !is_root("a pod") {
        return;
    }
    let daemon = Daemon::start();
    let dir = daemon.dir();
    on(&daemon, async |channel| {
        let mut pod = Pod::new(&channel);
        pod.create(creation(&json!({}))).await.unwrap();
        pod.start().await.unwrap();
        let stays = pod.run(dir, "stays", "exec sleep 1000").await.unwrap();
        let open = |pid: u32| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        let held = || [daemon.pid(), parent_of(stays)].map(open);
        let round = async |pod: &Pod, number: usize| {
            let id = format!("crashes-{number}");
            pod.run(dir, &id, "exit 7").await.unwrap();
            assert_eq!(pod.wait_for(&id).await, 7);
            pod.delete(&id).await;
        };
        round(&pod, 0).await;
        let before = held();
        for number in 1..20 {
            round(&pod, number).await;
        }
        eventually("there are no more descriptors than before", || {
            held().iter().zip(before).all(|(now, before)| *now <= before + 2).then_some(())
        });
        pod.stop(0).await.unwrap();
        pod.delete("stays").await;
        pod.shutdown().await.unwrap();
    });
}

#[test]
fn a_pod_has_its_namespaces_from_its_shim_and_ends_with_its_containers() {
    covers(&[
        "Controller.Create",
        "Controller.Start",
        "Controller.Platform",
        "Controller.Stop",
        "Controller.Wait",
        "Controller.Status",
        "Controller.Shutdown",
        "Controller.Metrics",
        "Controller.Update",
    ]);
    if !is_root("a pod") {
        return;
    }
    let daemon = Daemon::start();
    let dir = daemon.dir();
    let cgroup = format!("hoist-pod-test-{}", std::process::id());
    let document = json!({
        "ociVersion": "1.1.0",
        "hostname": "in-the-pod",
        "linux": {
            "namespaces": [{ "type": "ipc" }, { "type": "uts" }, { "type": "network" }, { "type": "pid" }],
            "sysctl": { "net.ipv4.ip_forward": "1", "kernel.shmmni": "123" },
            "cgroupsPath": format!("/{cgroup}"),
        },
    });
    on(&daemon, async |channel| {
        let mut told = events(&channel, &["/sandboxes"]).await;
        let mut ends = events(&channel, &["/tasks/exit"]).await;
        let mut pod = Pod::new(&channel);
        pod.create(creation(&document)).await.unwrap();
        assert_eq!(code(pod.create(creation(&document))).await, Code::AlreadyExists);
        assert_eq!(pod.status().await.unwrap().state, NOT_READY);
        assert_eq!(code(pod.run(dir, "early", "true")).await, Code::FailedPrecondition);

        let started = pod.start().await.unwrap();
        assert_eq!(code(pod.start()).await, Code::FailedPrecondition);
        assert!(started.address.starts_with("unix://") && started.version == 3, "{started:?}");
        for kind in ["ipc", "uts", "net"] {
            assert_ne!(namespace(&started.pid.to_string(), kind), namespace("self", kind), "{kind}");
        }
        // The holder is the first process of the pid namespace, which containers may share. It has no files that they
        // could use.
        let (holder, shim) = (started.pid.to_string(), parent_of(started.pid));
        assert_ne!(namespace(&holder, "pid"), namespace("self", "pid"));
        assert_eq!(namespace(&holder, "user"), namespace("self", "user"));
        assert_eq!(fs::read_dir(format!("/proc/{holder}/root")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(format!("/proc/{holder}/fd")).unwrap().count(), 0);
        let platform = ask_pod!(pod.platform, ControllerPlatformRequest {}).unwrap().platform.unwrap();
        assert_eq!(platform.os, "linux");
        let metrics = ask_pod!(pod.metrics, ControllerMetricsRequest {}).unwrap().metrics.unwrap();
        assert_eq!(metrics.id, "pod");
        assert!(metrics.data.unwrap().type_url.starts_with("io.containerd.cgroups.v"));

        // Both run in one shim, in the pod's namespaces unless their specs name others.
        let asks = "hostname; cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni; trap 'exit 3' TERM; sleep 1000 & wait";
        let first = pod.run(dir, "first", asks).await.unwrap();
        let second = pod.run(dir, "second", "exec sleep 1000").await.unwrap();
        assert_eq!([parent_of(first), parent_of(second)], [shim; 2]);
        eventually("it says where it is", || {
            (fs::read_to_string(dir.join("first")).ok()? == "in-the-pod\n1\n123\n").then_some(())
        });
        let status = pod.status().await.unwrap();
        assert_eq!((status.state.as_str(), status.pid), (READY, started.pid));
        assert_eq!(status.info["containers"], "first second");
        assert_eq!(status.address, started.address);
        let update = ControllerUpdateRequest {
            sandbox_id: "pod".into(),
            sandboxer: SHIM.into(),
            sandbox: Some(record("io.containerd.hoist.v2", &document)),
            fields: Vec::new(),
        };
        assert_eq!(code(pod.controller.update(ask(update.clone()))).await, Code::Ok);
        let wrong = ControllerUpdateRequest { fields: vec!["sandboxer".into()], ..update.clone() };
        assert_eq!(code(pod.controller.update(ask(wrong))).await, Code::InvalidArgument);
        let nothing = ControllerUpdateRequest { sandbox: None, ..update.clone() };
        assert_eq!(code(pod.controller.update(ask(nothing))).await, Code::InvalidArgument);
        let gone = ControllerUpdateRequest { sandbox_id: "gone".into(), ..update };
        assert_eq!(code(pod.controller.update(ask(gone))).await, Code::NotFound);
        assert_eq!(code(pod.shutdown()).await, Code::FailedPrecondition);

        // One ends at SIGTERM, the other is killed after the timeout.
        let mut waiting = Pod::new(&channel);
        let (stopped, exit) = tokio::join!(pod.stop(1), waiting.wait());
        stopped.unwrap();
        assert_eq!(exit.unwrap(), 0);
        assert_eq!([pod.wait_for("first").await, pod.wait_for("second").await], [3, 137]);
        assert_eq!(pod.status().await.unwrap().state, NOT_READY);
        assert_eq!(pod.wait().await.unwrap(), 0);
        pod.stop(0).await.unwrap();
        assert_eq!(code(pod.run(dir, "late", "true")).await, Code::FailedPrecondition);
        pod.delete("first").await;
        pod.delete("second").await;
        assert!(cgroup_is_there(&cgroup));
        pod.shutdown().await.unwrap();
        assert!(!cgroup_is_there(&cgroup));
        eventually("shim and holder are gone", || {
            [started.pid, shim].iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()).then_some(())
        });
        assert_eq!(code(pod.status()).await, Code::NotFound);
        assert_eq!(code(pod.shutdown()).await, Code::NotFound);
        pod.stop(0).await.unwrap();

        let created: SandboxCreate = next(&mut told, "/sandboxes/create").await;
        assert_eq!(created.sandbox_id, "pod");
        let started: SandboxStart = next(&mut told, "/sandboxes/start").await;
        assert_eq!(started.sandbox_id, "pod");
        let exit: SandboxExit = next(&mut told, "/sandboxes/exit").await;
        assert_eq!((exit.sandbox_id.as_str(), exit.exit_status), ("pod", 0));
        assert!(exit.exited_at.is_some());
        let (one, other): (TaskExit, TaskExit) =
            (next(&mut ends, "/tasks/exit").await, next(&mut ends, "/tasks/exit").await);
        let mut ended = [(one.container_id, one.exit_status), (other.container_id, other.exit_status)];
        ended.sort();
        assert_eq!(ended, [("first".to_owned(), 3), ("second".to_owned(), 137)]);
        // One exit event, however many clients wait: the next event belongs to the next pod.
        pod.create(creation(&json!({}))).await.unwrap();
        let _next: SandboxCreate = next(&mut told, "/sandboxes/create").await;
        pod.shutdown().await.unwrap();
    });
    assert!(bundles(&daemon).is_empty());
}

/// As a pod of Kubernetes with `hostUsers: false` and `shareProcessNamespace: true`.
#[test]
fn a_pod_has_a_user_namespace_and_process_numbers_that_are_shared() {
    if !is_root("a pod") {
        return;
    }
    let daemon = Daemon::start();
    let dir = daemon.dir();
    // The pod's root is not root of the host.
    run(Command::new("chmod").arg("755").arg(dir)).ok();
    run(Command::new("chown").args(["-R", "100000:100000"]).arg(root(dir))).ok();
    let maps = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    let document = json!({
        "ociVersion": "1.1.0",
        "hostname": "in-the-pod",
        "linux": {
            "namespaces": [
                { "type": "user" }, { "type": "ipc" }, { "type": "uts" }, { "type": "network" }, { "type": "pid" },
            ],
            "uidMappings": maps,
            "gidMappings": maps,
            "sysctl": { "net.ipv4.ip_forward": "1", "kernel.shmmni": "123" },
        },
    });
    on(&daemon, async |channel| {
        let mut pod = Pod::new(&channel);
        pod.create(creation(&document)).await.unwrap();
        let holder = pod.start().await.unwrap().pid;
        let shim = parent_of(holder);
        assert_eq!(
            run(Command::new("ps").args(["-o", "uid=", "-p", &holder.to_string()])).ok().text(),
            "100000"
        );
        let path = |kind: &str| format!("/proc/{holder}/ns/{kind}");
        let linux = json!({
            "namespaces": [
                { "type": "user", "path": path("user") }, { "type": "pid", "path": path("pid") }, { "type": "mount" },
            ],
            "uidMappings": maps,
            "gidMappings": maps,
        });
        let outside = pod.run(dir, "outside", "true").await.unwrap_err();
        assert_eq!(outside.code(), Code::FailedPrecondition, "{outside}");
        assert!(outside.message().contains(&path("user")), "{outside}");

        let first = pod.run_with(dir, "first", "exec sleep 1234", linux.clone()).await.unwrap();
        for kind in ["user", "pid", "ipc", "uts", "net"] {
            assert_eq!(namespace(&first.to_string(), kind), namespace(&holder.to_string(), kind), "{kind}");
            assert_ne!(namespace(&first.to_string(), kind), namespace("self", kind), "{kind}");
        }
        let attempt = "id -u; hostname; cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni; \
                       busybox grep -q 1234 /proc/[0-9]*/cmdline && echo sees the other; \
                       for what in root cwd fd/0 exe; do busybox ls -L /proc/1/$what && echo WON $what; done 2> /dev/null; \
                       cat /proc/1/environ 2> /dev/null && echo WON environ; \
                       busybox kill -9 1; sleep 1000 & exit 3";
        let traced = linux.clone();
        pod.run_with(dir, "second", attempt, linux).await.unwrap();
        assert_eq!(pod.wait_for("second").await, 3);
        let said = fs::read_to_string(dir.join("second")).unwrap();
        assert_eq!(said, "0\nin-the-pod\n1\n123\nsees the other\n");
        pod.delete("second").await;

        let mut tracer = testkit::process(
            "for what in environ maps mem auxv; do busybox head -c 1 /proc/1/$what > /dev/null && echo WON $what; \
             done 2> /dev/null; busybox head -c 1 /proc/self/environ > /dev/null && echo its own",
        );
        for set in ["bounding", "effective", "permitted"] {
            tracer["capabilities"][set] = json!(["CAP_SYS_PTRACE"]);
        }
        pod.run_process(dir, "tracer", &tracer, traced).await.unwrap();
        assert_eq!(pod.wait_for("tracer").await, 0);
        assert_eq!(fs::read_to_string(dir.join("tracer")).unwrap(), "its own\n");
        pod.delete("tracer").await;
        let status = pod.status().await.unwrap();
        assert_eq!(status.pid, holder, "it lives");
        assert_eq!(status.info["namespaces"], "ipc uts network user pid");
        assert!(is_alive(first), "its end is the second's alone");

        pod.stop(0).await.unwrap();
        assert_eq!(pod.wait_for("first").await, 137);
        pod.delete("first").await;
        pod.shutdown().await.unwrap();
        eventually("shim and holder are gone", || (!is_alive(shim) && !is_alive(holder)).then_some(()));

        // The pod ends with the holder of its namespaces.
        pod.create(creation(&document)).await.unwrap();
        let holder = pod.start().await.unwrap().pid;
        run(Command::new("kill").args(["-KILL", &holder.to_string()])).ok();
        assert_eq!(pod.wait().await.unwrap(), 0);
        assert_eq!(pod.status().await.unwrap().state, NOT_READY);
        pod.shutdown().await.unwrap();

        // The shim is killed, and the daemon runs its `delete`, which ends the holder.
        pod.create(creation(&document)).await.unwrap();
        let holder = pod.start().await.unwrap().pid;
        run(Command::new("kill").args(["-KILL", &parent_of(holder).to_string()])).ok();
        eventually("the holder is gone", || (!is_alive(holder)).then_some(()));
        assert_eq!(pod.wait().await.unwrap(), 255);
        pod.shutdown().await.unwrap();
    });
    assert!(bundles(&daemon).is_empty());
}

/// A container with CAP_SYS_PTRACE can trace the holder, which runs as root of the host.
#[test]
fn the_holder_of_a_pod_has_no_rights() {
    if !is_root("a pod") {
        return;
    }
    let daemon = Daemon::start();
    let dir = daemon.dir();
    let document = json!({
        "ociVersion": "1.1.0",
        "linux": { "namespaces": [{ "type": "pid" }] },
    });
    on(&daemon, async |channel| {
        let mut pod = Pod::new(&channel);
        pod.create(creation(&document)).await.unwrap();
        let holder = pod.start().await.unwrap().pid;
        let shim = parent_of(holder);
        let namespaces =
            json!([{ "type": "pid", "path": format!("/proc/{holder}/ns/pid") }, { "type": "mount" }]);
        let mut process = testkit::process(
            "busybox grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/1/status; \
             busybox tr -d '\\000' < /proc/1/environ; busybox tr -d '\\000' < /proc/1/cmdline; \
             busybox wc -c < /proc/1/environ; sleep 0 & exec sleep 1000",
        );
        for set in ["bounding", "effective", "permitted"] {
            process["capabilities"][set] = json!(["CAP_SYS_PTRACE"]);
        }
        let tracer = pod.run_process(dir, "tracer", &process, json!({ "namespaces": namespaces }));
        let tracer = tracer.await.unwrap();
        let rights =
            ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|set| format!("{set}:\t{:016}\n", 0));
        let length = fs::read(format!("/proc/{shim}/environ")).unwrap().len();
        assert!(length > 0, "there is something to be seen");
        let expected = format!("{}NoNewPrivs:\t1\nSeccomp:\t2\n{length}\n", rights.concat());
        eventually("it has looked", || {
            let said = fs::read_to_string(dir.join("tracer")).ok()?;
            (said.lines().count() >= 8).then(|| assert_eq!(said, expected))
        });
        eventually("the holder sleeps, as it must", || {
            let stat = fs::read_to_string(format!("/proc/{holder}/stat")).ok()?;
            stat.contains(") S ").then_some(())
        });
        // The holder reaps orphans of the containers.
        run(Command::new("kill").args(["-KILL", &tracer.to_string()])).ok();
        assert_eq!(pod.wait_for("tracer").await, 137);
        pod.delete("tracer").await;
        let children = format!("/proc/{holder}/task/{holder}/children");
        eventually("orphans are gone", || fs::read_to_string(&children).ok()?.is_empty().then_some(()));
        pod.stop(0).await.unwrap();
        pod.shutdown().await.unwrap();
        eventually("shim and holder are gone", || (!is_alive(shim) && !is_alive(holder)).then_some(()));
    });
    assert!(bundles(&daemon).is_empty());
}

#[test]
fn a_pod_outlives_its_daemon_and_its_end_is_told_once() {
    if !is_root("a pod") {
        return;
    }
    let mut daemon = Daemon::start();
    let shim = on(&daemon, async |channel| {
        let mut pod = Pod::new(&channel);
        pod.create(creation(&json!({ "ociVersion": "1.1.0" }))).await.unwrap();
        let shim = pod.start().await.unwrap().pid;
        pod.run(daemon.dir(), "inside", "exec sleep 1000").await.unwrap();
        shim
    });
    daemon.kill();
    daemon.start_again();
    on(&daemon, async |channel| {
        let mut told = events(&channel, &["/sandboxes"]).await;
        let mut ends = events(&channel, &["/tasks/exit"]).await;
        let mut pod = Pod::new(&channel);
        let status = pod.status().await.unwrap();
        assert_eq!((status.state.as_str(), status.pid), (READY, shim));
        let mut waiting = Pod::new(&channel);
        let killing = async { run(Command::new("kill").args(["-KILL", &shim.to_string()])).ok() };
        let (exit, _) = tokio::join!(waiting.wait(), killing);
        assert_eq!(exit.unwrap(), 255, "nobody knows how it ended");
        let event = told.message().await.unwrap().unwrap();
        let event = SandboxExit::decode(event.event.unwrap().value.as_slice()).unwrap();
        assert_eq!((event.sandbox_id.as_str(), event.exit_status), ("pod", 255));
        // The test takes their exits from events, since the tasks are gone soon, and cannot be waited for.
        let end = ends.message().await.unwrap().unwrap();
        let end = TaskExit::decode(end.event.unwrap().value.as_slice()).unwrap();
        assert_eq!((end.id.as_str(), end.exit_status), ("inside", 137), "its containers end with it");
    });
    daemon.terminate();
    daemon.start_again();
    on(&daemon, async |channel| {
        let mut told = events(&channel, &["/sandboxes"]).await;
        let mut pod = Pod::new(&channel);
        let status = pod.status().await.unwrap();
        assert_eq!(status.state, NOT_READY);
        assert!(status.exited_at.is_some_and(|at| at.seconds > 0));
        assert_eq!(pod.wait().await.unwrap(), 255);
        pod.shutdown().await.unwrap();
        // The next event belongs to the next pod.
        pod.create(creation(&json!({}))).await.unwrap();
        assert_eq!(topic(&mut told).await, "/sandboxes/create");
        pod.shutdown().await.unwrap();
    });
    assert!(bundles(&daemon).is_empty());
}

/// A shim whose pod could not be recorded is not in the pod's namespaces.
#[test]
fn a_pod_that_cannot_be_recorded_leaves_its_shim_at_home() {
    if !is_root("a shim") {
        return;
    }
    let host = ShimHost::new();
    let container = host.container("pod", "true").with(|container| {
        container.spec["linux"] = json!({ "namespaces": [{ "type": "uts" }, { "type": "pid" }] });
    });
    let shim = ShimTask::at("pod", &container.start_shim());
    let record = host.bundle("pod").join("pod.json");
    fs::create_dir(&record).unwrap();
    let create = || {
        let bundle_path = host.bundle("pod").display().to_string();
        let request =
            CreateSandboxRequest { sandbox_id: "pod".into(), bundle_path, ..CreateSandboxRequest::default() };
        let request = ttrpc::Request::new(sandbox::SERVICE, "CreateSandbox", &request)
            .with_metadata(ttrpc::NAMESPACE_KEY, SHIM_NAMESPACE);
        Blocking::connect(&shim.address)?.call::<CreateSandboxResponse>(&request)
    };
    let refused = create().unwrap_err();
    assert!(refused.chain().contains("pod.json"), "{}", refused.chain());
    let pid = shim.shim_pid().to_string();
    assert_eq!(namespace(&pid, "uts"), namespace("self", "uts"));
    fs::remove_dir(&record).unwrap();
    create().unwrap();
    assert_ne!(namespace(&pid, "uts"), namespace("self", "uts"));
    shim.kill_shim();
    host.delete_orphan("pod");
}

/// The other tests rely on this when they fail.
#[test]
fn a_pod_does_not_outlive_its_test() {
    if !is_root("a pod") {
        return;
    }
    for kill_first in [false, true] {
        let mut daemon = Daemon::start();
        let (shim, inside) = on(&daemon, async |channel| {
            let mut pod = Pod::new(&channel);
            pod.create(creation(&json!({ "ociVersion": "1.1.0" }))).await.unwrap();
            let shim = pod.start().await.unwrap().pid;
            (shim, pod.run(daemon.dir(), "outlived", "exec sleep 1000").await.unwrap())
        });
        if kill_first {
            daemon.kill();
        }
        drop(daemon);
        for pid in [shim, inside] {
            eventually("it has ended", || (!is_alive(pid)).then_some(()));
        }
    }
}

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with(['Z', 'X']))
}

#[test]
fn what_cannot_be_a_sandbox_is_refused_and_leaves_nothing() {
    if !is_root("a shim") {
        return;
    }
    let daemon = Daemon::start();
    on(&daemon, async |channel| {
        let mut pod = Pod::new(&channel);
        let with = |change: &dyn Fn(&mut ControllerCreateRequest)| {
            let mut request = creation(&json!({ "ociVersion": "1.1.0" }));
            change(&mut request);
            request
        };
        let runtime = |name: &str| Some(record(name, &json!({})));
        let linux = |linux: Value| Some(record("io.containerd.hoist.v2", &json!({ "linux": linux })));
        for (expected, request) in [
            (Code::InvalidArgument, with(&|asked| asked.sandboxer.clear())),
            (Code::NotFound, with(&|asked| asked.sandboxer = "podsandbox".into())),
            (Code::InvalidArgument, with(&|asked| asked.sandbox_id = "../up".into())),
            // Without a record, the daemon does not know the pod's runtime.
            (Code::NotFound, with(&|asked| asked.sandbox = None)),
            (Code::NotFound, with(&|asked| asked.sandbox = runtime("io.containerd.nosuch.v1"))),
            (Code::Unimplemented, with(&|asked| asked.rootfs = vec![Mount::default()])),
            (Code::NotFound, with(&|asked| asked.netns_path = "/run/netns/nosuch".into())),
            // A user namespace needs mappings.
            (
                Code::InvalidArgument,
                with(&|asked| asked.sandbox = linux(json!({ "namespaces": [{ "type": "user" }] }))),
            ),
            (
                Code::Unimplemented,
                with(&|asked| {
                    let joined = json!([{ "type": "user", "path": "/proc/self/ns/user" }]);
                    asked.sandbox = linux(json!({ "namespaces": joined }));
                }),
            ),
            (
                Code::InvalidArgument,
                with(&|asked| asked.sandbox = linux(json!({ "sysctl": { "net.ipv4.ip_forward": "1" } }))),
            ),
            // The host's network, by its path: refused even for the value that it has.
            (
                Code::InvalidArgument,
                with(&|asked| {
                    asked.netns_path = "/proc/self/ns/net".into();
                    let as_it_is = fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
                    asked.sandbox = linux(json!({ "sysctl": { "net.ipv4.ip_forward": as_it_is.trim() } }));
                }),
            ),
            (Code::InvalidArgument, with(&|asked| asked.sandbox = linux(json!({ "cgroupsPath": "a:b:c" })))),
            // Debian's shim does not support sandboxes.
            (Code::Unimplemented, with(&|asked| asked.sandbox = runtime("io.containerd.runc.v2"))),
        ] {
            assert_eq!(code(pod.create(request.clone())).await, expected, "{request:?}");
        }
        let nameless = pod.controller.create(Request::new(creation(&json!({}))));
        assert_eq!(code(nameless).await, Code::FailedPrecondition);
        for nothing in [code(pod.start()).await, code(pod.wait()).await, code(pod.status()).await] {
            assert_eq!(nothing, Code::NotFound);
        }
        assert_eq!(ask_pod!(pod.metrics, ControllerMetricsRequest {}).unwrap_err().code(), Code::NotFound);
        // The pod has no cgroup, so there are no metrics.
        pod.create(creation(&json!({}))).await.unwrap();
        assert_eq!(
            ask_pod!(pod.metrics, ControllerMetricsRequest {}).unwrap_err().code(),
            Code::Unimplemented
        );
        pod.shutdown().await.unwrap();
    });
    assert!(bundles(&daemon).is_empty());
    let shims = run(Command::new("pgrep").args(["-f", &daemon.socket().display().to_string()]));
    assert_eq!(shims.text(), daemon.pid().to_string(), "no shim is left");
}

/// Clients with a sandbox controller of their own give the address of the task service.
#[test]
fn a_task_is_made_by_the_shim_at_the_address_that_its_client_gives() {
    if !is_root("a pod") {
        return;
    }
    let daemon = Daemon::start();
    let dir = daemon.dir();
    let document = json!({ "ociVersion": "1.1.0", "linux": { "namespaces": [{ "type": "ipc" }] } });
    on(&daemon, async |channel| {
        let mut pod = Pod::new(&channel);
        pod.create(creation(&document)).await.unwrap();
        let started = pod.start().await.unwrap();
        let spec_of_task = json!({
            "ociVersion": "1.1.0",
            "process": testkit::process("exec sleep 1000"),
            "root": { "path": root(dir), "readonly": true },
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
            "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }] },
        });
        // The container's record does not name the pod.
        let container = Container {
            id: "task".into(),
            runtime: Some(ContainerRuntime { name: "io.containerd.hoist.v2".into(), options: None }),
            spec: spec(&spec_of_task),
            ..Container::default()
        };
        let create = CreateContainerRequest { container: Some(container) };
        ContainersClient::new(channel.clone()).create(ask(create)).await.unwrap();
        let create = |address: &str, version| {
            ask(CreateTaskRequest {
                container_id: "task".into(),
                task_api_address: address.into(),
                task_api_version: version,
                ..CreateTaskRequest::default()
            })
        };
        let mut tasks = TasksClient::new(channel);
        let nowhere = format!("unix://{}", dir.join("nobody.sock").display());
        assert_eq!(code(tasks.create(create(&started.address, 9))).await, Code::InvalidArgument);
        assert_eq!(code(tasks.create(create(&nowhere, 3))).await, Code::Unavailable);
        let made = tasks.create(create(&started.address, started.version)).await.unwrap().into_inner();
        assert_eq!(parent_of(made.pid), started.pid, "a pod without namespaces of processes is its shim");
        let start = StartRequest { container_id: "task".into(), ..StartRequest::default() };
        tasks.start(ask(start)).await.unwrap();
        let kill = KillRequest { container_id: "task".into(), signal: 9, ..KillRequest::default() };
        tasks.kill(ask(kill)).await.unwrap();
        assert_eq!(pod.wait_for("task").await, 137);
        pod.delete("task").await;
        pod.stop(1).await.unwrap();
        pod.shutdown().await.unwrap();
    });
}
