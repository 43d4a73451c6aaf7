//! `containerd.services.tasks.v1`: the processes of containers.

use std::collections::BTreeMap;
use std::fs;
use std::future::ready;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use api::grpc::containers::containers_client::ContainersClient;
use api::grpc::containers::{Container, CreateContainerRequest, Runtime};
use api::grpc::tasks::tasks_client::TasksClient;
use api::grpc::tasks::{
    CheckpointTaskRequest, CloseIORequest, CreateTaskRequest, DeleteProcessRequest, DeleteTaskRequest,
    ExecProcessRequest, GetRequest, KillRequest, ListPidsRequest, ListTasksRequest, MetricsRequest,
    PauseTaskRequest, ResizePtyRequest, ResumeTaskRequest, StartRequest, UpdateTaskRequest, WaitRequest,
};
use api::grpc::types::{Any, Mount, Status as State};
use api::shim::runc::{CheckpointOptions, Options};
use api::shim::types::{PROCESS_SPEC_URL, RESOURCES_SPEC_URL};
use api::shim::{pack, task};
use prost::Message;
use rustix::fs::{CWD, Mode, OFlags, mkfifoat};
use serde_json::{Value, json};
use testkit::{Daemon, eventually, is_root};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tonic::Code;

use super::walk::{BAD_FILTERS, Difference, Side, There, Watched, covers, differs, map, within};
use crate::cgroups::HIERARCHIES;
use crate::typed::{ask, on};

const DIFFERENCES: &[Difference] = &[
    differs("metrics without a namespace", There::Code(Code::Unknown), "the same refusal, without a class"),
    differs("start what runs", There::Code(Code::Unknown), "the same refusal, without a class"),
    differs("delete what runs", There::Code(Code::Unknown), "the same refusal, without a class"),
    differs("delete a process that runs", There::Code(Code::Unknown), "the same refusal, without a class"),
    differs(
        "delete the first process while it runs",
        There::Code(Code::Unknown),
        "the same refusal, without a class",
    ),
    differs("pause what is paused", There::Code(Code::Unknown), "the same refusal, without a class"),
    differs("a process in what is paused", There::Code(Code::Unknown), "the same refusal, without a class"),
    differs("resume what runs", There::Code(Code::Unknown), "the same refusal, without a class"),
    differs("start what has ended", There::Code(Code::Unknown), "the same refusal, without a class"),
    differs("a process in what has ended", There::Code(Code::Unknown), "the same refusal, without a class"),
    differs(
        "a process with a spec that is none",
        There::Code(Code::Unknown),
        "the same refusal, without a class",
    ),
    differs("start what cannot be run", There::Code(Code::Unknown), "the same refusal, without a class"),
    differs("a filter that is none", There::Code(Code::Unknown), "the same refusal, without a class"),
];

const SPEC_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const KILL: u32 = 9;
/// When something ended that has not, to clients in Go.
const NEVER: i64 = types::Timestamp::NEVER.seconds;

/// A root file system with busybox.
pub(super) fn root(dir: &Path) -> Vec<Mount> {
    let root = dir.join("busybox-root");
    for folder in ["bin", "proc", "dev"] {
        fs::create_dir_all(root.join(folder)).expect("a writable directory");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    vec![Mount {
        r#type: "bind".into(),
        source: root.display().to_string(),
        options: vec!["rbind".into(), "rw".into()],
        ..Mount::default()
    }]
}

fn json_of(url: &str, document: &Value) -> Option<Any> {
    Some(Any { type_url: url.into(), value: document.to_string().into_bytes() })
}

/// Makes the record of a container that runs `script`.
pub(super) async fn record(side: &Side<'_>, id: &str, script: &str) {
    limited_record(side, id, script, json!({})).await;
}

/// Which runtime is at hand.
pub(super) fn runtime(side: &Side<'_>) -> &'static str {
    if side.is_ours() { "io.containerd.hoist.v2" } else { "io.containerd.runc.v2" }
}

/// The same within the limits of `linux.resources`.
pub(super) async fn limited_record(side: &Side<'_>, id: &str, script: &str, resources: Value) {
    record_within(side, id, script, json!([{ "type": "pid" }, { "type": "mount" }]), resources).await;
}

/// The same in namespaces of its own of these kinds.
async fn record_within(side: &Side<'_>, id: &str, script: &str, namespaces: Value, resources: Value) {
    record_of(side, id, script, namespaces, resources, None).await;
}

/// The same with options for the runtime.
pub(super) async fn record_with(side: &Side<'_>, id: &str, script: &str, options: Option<Any>) {
    let namespaces = json!([{ "type": "pid" }, { "type": "mount" }]);
    record_of(side, id, script, namespaces, json!({}), options).await;
}

async fn record_of(
    side: &Side<'_>,
    id: &str,
    script: &str,
    namespaces: Value,
    resources: Value,
    options: Option<Any>,
) {
    let document = json!({
        "ociVersion": "1.0.2",
        "process": testkit::process(script),
        "root": { "path": "rootfs" },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": format!("/walk-{}-{id}", std::process::id()),
            "resources": resources,
        },
    });
    record_as(side, id, &document, options).await;
}

/// Makes the record of a container that is as its specification says.
async fn record_as(side: &Side<'_>, id: &str, document: &Value, options: Option<Any>) {
    let container = Container {
        id: id.into(),
        runtime: Some(Runtime { name: runtime(side).into(), options }),
        spec: json_of(SPEC_URL, document),
        ..Container::default()
    };
    let create = CreateContainerRequest { container: Some(container) };
    side.ok("make a record", ContainersClient::new(side.channel()).create(ask(create))).await;
}

#[test]
fn tasks_walked() {
    if !is_root("a container") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    let methods = &[
        "Tasks.Create",
        "Tasks.Start",
        "Tasks.Delete",
        "Tasks.DeleteProcess",
        "Tasks.Get",
        "Tasks.List",
        "Tasks.Kill",
        "Tasks.Exec",
        "Tasks.ResizePty",
        "Tasks.CloseIO",
        "Tasks.Pause",
        "Tasks.Resume",
        "Tasks.ListPids",
        "Tasks.Update",
        "Tasks.Metrics",
        "Tasks.Wait",
    ];
    covers(methods).walk(DIFFERENCES, async |side| {
        what_is_not_there_is_not_found(side).await;
        a_task_comes_up(side).await;
        processes_come_and_go(side).await;
        nobody_waits_for_what_could_not_start(side).await;
        input_ends_when_it_is_closed(side).await;
        a_task_is_held_and_changed(side).await;
        a_task_ends(side).await;
    });
}

fn get(id: &str, exec: &str) -> GetRequest {
    GetRequest { container_id: id.into(), exec_id: exec.into() }
}

pub(super) fn create(id: &str, rootfs: Vec<Mount>) -> CreateTaskRequest {
    CreateTaskRequest { container_id: id.into(), rootfs, ..CreateTaskRequest::default() }
}

pub(super) fn start(id: &str, exec: &str) -> StartRequest {
    StartRequest { container_id: id.into(), exec_id: exec.into() }
}

pub(super) fn kill(id: &str, exec: &str) -> KillRequest {
    KillRequest { container_id: id.into(), exec_id: exec.into(), signal: KILL, all: false }
}

pub(super) fn exec(id: &str, exec: &str, script: &str) -> ExecProcessRequest {
    ExecProcessRequest {
        container_id: id.into(),
        exec_id: exec.into(),
        spec: json_of(PROCESS_SPEC_URL, &testkit::process(script)),
        ..ExecProcessRequest::default()
    }
}

fn wait(id: &str, exec: &str) -> WaitRequest {
    WaitRequest { container_id: id.into(), exec_id: exec.into() }
}

async fn state(side: &Side<'_>, tasks: &mut TasksClient<Watched>, exec: &str) -> State {
    let process = side.ok("get", tasks.get(ask(get("web", exec)))).await.process;
    process.unwrap_or_default().status()
}

async fn what_is_not_there_is_not_found(side: &Side<'_>) {
    let mut tasks = TasksClient::new(side.channel());
    let (code, words) = (Code::FailedPrecondition, "namespace is required");
    let answer = tasks.create(within(None, create("web", vec![])));
    side.refused("create without a namespace", answer, code, words).await;
    side.refused("get without a namespace", tasks.get(within(None, get("web", ""))), code, words).await;
    let answer = tasks.list(within(None, ListTasksRequest::default()));
    side.refused("list without a namespace", answer, code, words).await;
    let answer = tasks.metrics(within(None, MetricsRequest::default()));
    side.refused("metrics without a namespace", answer, code, words).await;

    let answer = tasks.create(ask(create("none", vec![])));
    side.refused("a task of no container", answer, Code::NotFound, "none").await;
    for id in ["", "a/b"] {
        let answer = tasks.get(ask(get(id, "")));
        side.refused("a task that cannot be there", answer, Code::NotFound, id).await;
    }
    let id = || "none".to_owned();
    macro_rules! none {
        ($case:literal, $method:ident, $request:expr) => {
            side.refused($case, tasks.$method(ask($request)), Code::NotFound, "none").await;
        };
    }
    none!("start what is not there", start, start("none", ""));
    none!("get what is not there", get, get("none", ""));
    none!("kill what is not there", kill, kill("none", ""));
    none!("delete what is not there", delete, DeleteTaskRequest { container_id: id() });
    none!(
        "delete a process of what is not there",
        delete_process,
        DeleteProcessRequest { container_id: id(), exec_id: "one".into() }
    );
    none!("a process in what is not there", exec, exec("none", "one", "true"));
    let answer = tasks.exec(ask(exec("none", "", "true")));
    side.refused("a process without an id", answer, Code::InvalidArgument, "exec id cannot be empty").await;
    none!("pause what is not there", pause, PauseTaskRequest { container_id: id() });
    none!("resume what is not there", resume, ResumeTaskRequest { container_id: id() });
    none!("pids of what is not there", list_pids, ListPidsRequest { container_id: id() });
    none!("wait for what is not there", wait, wait("none", ""));
    none!(
        "change what is not there",
        update,
        UpdateTaskRequest {
            container_id: id(),
            resources: json_of(RESOURCES_SPEC_URL, &json!({})),
            ..Default::default()
        }
    );
    none!(
        "resize what is not there",
        resize_pty,
        ResizePtyRequest { container_id: id(), ..ResizePtyRequest::default() }
    );
    none!(
        "close streams of what is not there",
        close_io,
        CloseIORequest { container_id: id(), stdin: true, ..CloseIORequest::default() }
    );
}

async fn a_task_comes_up(side: &Side<'_>) {
    let mut tasks = TasksClient::new(side.channel());
    record(side, "web", "trap 'exit 7' TERM; while true; do sleep 0.1; done").await;
    let rootfs = root(side.dir());
    let made = side.ok("create", tasks.create(ask(create("web", rootfs.clone())))).await;
    side.is("a task has a process", (made.container_id.as_str(), made.pid > 0), ("web", true));
    // A runtime may be named where its path is asked for.
    record(side, "named", "true").await;
    let named = CreateTaskRequest { runtime_path: runtime(side).into(), ..create("named", rootfs.clone()) };
    side.ok("create by the name of a runtime", tasks.create(ask(named))).await;
    let delete = DeleteTaskRequest { container_id: "named".into() };
    side.ok("delete what was not started", tasks.delete(ask(delete))).await;
    let answer = tasks.create(ask(create("web", rootfs)));
    side.refused("a task that is there", answer, Code::AlreadyExists, "web").await;
    let answer = tasks.get(within(Some("other"), get("web", "")));
    side.refused("a task of another namespace", answer, Code::NotFound, "web").await;
    let process = side.ok("get", tasks.get(ask(get("web", "")))).await.process.unwrap_or_default();
    side.is("it is created", (process.status(), process.pid), (State::Created, made.pid));
    side.is("it has not ended", process.exited_at.map(|at| at.seconds), Some(NEVER));
    let started = side.ok("start", tasks.start(ask(start("web", "")))).await;
    side.is("it is the same process", started.pid, made.pid);
    side.is("it runs", state(side, &mut tasks, "").await, State::Running);
    let answer = tasks.start(ask(start("web", "")));
    side.refused("start what runs", answer, Code::FailedPrecondition, "").await;
    let listed = side.ok("list", tasks.list(ask(ListTasksRequest::default()))).await.tasks;
    side.is("it is listed", listed.iter().map(|task| task.pid).collect::<Vec<_>>(), vec![made.pid]);
    if side.is_ours() {
        for (filter, count) in [("id==web", 1), ("id==none", 0)] {
            let found = tasks.list(ask(ListTasksRequest { filter: filter.into() }));
            side.is(
                "a filter chooses",
                (filter, side.ok("list some", found).await.tasks.len()),
                (filter, count),
            );
        }
        let broken = tasks.list(ask(ListTasksRequest { filter: "id==".into() }));
        side.refused("list by a filter that is none", broken, Code::InvalidArgument, "").await;
    }
    let elsewhere = tasks.list(within(Some("other"), ListTasksRequest::default()));
    side.is("and not elsewhere", side.ok("list elsewhere", elsewhere).await.tasks.len(), 0);
    let answer = tasks.delete(ask(DeleteTaskRequest { container_id: "web".into() }));
    side.refused("delete what runs", answer, Code::FailedPrecondition, "").await;
}

async fn processes_come_and_go(side: &Side<'_>) {
    let mut tasks = TasksClient::new(side.channel());
    for id in ["-a", "a/b", &"x".repeat(77)] {
        let answer = tasks.exec(ask(exec("web", id, "true")));
        side.refused("an exec id that is none", answer, Code::InvalidArgument, "").await;
    }
    no_process_can_be_called_so(side).await;
    side.ok("exec", tasks.exec(ask(exec("web", "one", "sleep 1000")))).await;
    let answer = tasks.exec(ask(exec("web", "one", "true")));
    side.refused("an exec id that is taken", answer, Code::AlreadyExists, "one").await;
    side.is("it is created", state(side, &mut tasks, "one").await, State::Created);
    let started = side.ok("start a process", tasks.start(ask(start("web", "one")))).await;
    side.is("it runs", state(side, &mut tasks, "one").await, State::Running);
    let found = side.ok("pids", tasks.list_pids(ask(ListPidsRequest { container_id: "web".into() }))).await;
    side.is("it is among the pids", found.processes.iter().any(|found| found.pid == started.pid), true);
    let resize =
        ResizePtyRequest { container_id: "web".into(), exec_id: "none".into(), ..Default::default() };
    side.refused("resize no process", tasks.resize_pty(ask(resize)), Code::NotFound, "").await;
    let close = CloseIORequest { container_id: "web".into(), exec_id: "one".into(), stdin: true };
    side.ok("close its input", tasks.close_io(ask(close.clone()))).await;
    side.ok("close nothing", tasks.close_io(ask(CloseIORequest { stdin: false, ..close.clone() }))).await;
    let none = |stdin| ask(CloseIORequest { exec_id: "none".into(), stdin, ..close.clone() });
    side.refused("close streams of no process", tasks.close_io(none(true)), Code::NotFound, "").await;
    side.refused("close nothing of no process", tasks.close_io(none(false)), Code::NotFound, "").await;
    let delete = DeleteProcessRequest { container_id: "web".into(), exec_id: "one".into() };
    let answer = tasks.delete_process(ask(delete));
    side.refused("delete a process that runs", answer, Code::FailedPrecondition, "").await;
    if side.is_ours() {
        // A peer's shim does not look whether there is one.
        let bare = ExecProcessRequest { spec: None, ..exec("web", "bare", "true") };
        side.refused("a process without a spec", tasks.exec(ask(bare)), Code::InvalidArgument, "spec").await;
    }
    let half = Any { type_url: PROCESS_SPEC_URL.into(), value: b"{".to_vec() };
    let broken = ExecProcessRequest { spec: Some(half), ..exec("web", "broken", "true") };
    let answer = tasks.exec(ask(broken));
    side.refused("a process with a spec that is none", answer, Code::InvalidArgument, "spec").await;
    let answer = tasks.get(ask(get("web", "broken")));
    side.refused("and nothing is left of it", answer, Code::NotFound, "broken").await;
    for process in ["", "one"] {
        let asks = KillRequest { signal: 0, ..kill("web", process) };
        side.ok("signal 0 asks whether it is there", tasks.kill(ask(asks))).await;
    }
    let mut waiting = tasks.clone();
    let waiting = tokio::spawn(async move { waiting.wait(ask(wait("web", "one"))).await });
    side.ok("kill a process", tasks.kill(ask(kill("web", "one")))).await;
    let exit = waiting.await.expect("no panic").expect("it ends").into_inner();
    side.is("it was killed", (exit.exit_status, exit.exited_at.is_some()), (128 + KILL, true));
    side.is("it is stopped", state(side, &mut tasks, "one").await, State::Stopped);
    let answer = tasks.kill(ask(kill("web", "one")));
    side.refused("kill what has ended", answer, Code::NotFound, "").await;
    let asks = KillRequest { signal: 0, ..kill("web", "one") };
    side.refused("ask for what has ended", tasks.kill(ask(asks)), Code::NotFound, "").await;
    let delete = DeleteProcessRequest { container_id: "web".into(), exec_id: "one".into() };
    let gone = side.ok("delete a process", tasks.delete_process(ask(delete.clone()))).await;
    side.is("it says how it ended", (gone.id.as_str(), gone.exit_status), ("one", 128 + KILL));
    let answer = tasks.delete_process(ask(delete));
    side.refused("delete a process that is gone", answer, Code::NotFound, "").await;
    for (case, answer) in [("get no process", get("web", "one")), ("get none that was", get("web", "none"))] {
        side.refused(case, tasks.get(ask(answer)), Code::NotFound, "").await;
    }
    side.refused("wait for no process", tasks.wait(ask(wait("web", "none"))), Code::NotFound, "").await;
    side.refused("start no process", tasks.start(ask(start("web", "none"))), Code::NotFound, "").await;
    side.refused("kill no process", tasks.kill(ask(kill("web", "none"))), Code::NotFound, "").await;
}

/// Clients wait before they start, and would do so for ever.
async fn nobody_waits_for_what_could_not_start(side: &Side<'_>) {
    let mut tasks = TasksClient::new(side.channel());
    let mut process = testkit::process("");
    process["args"] = json!(["not-there"]);
    let spec = json_of(PROCESS_SPEC_URL, &process);
    side.ok("exec", tasks.exec(ask(ExecProcessRequest { spec, ..exec("web", "lost", "") }))).await;
    let mut waiting = tasks.clone();
    let waiting = tokio::spawn(async move { waiting.wait(ask(wait("web", "lost"))).await });
    let answer = tasks.start(ask(start("web", "lost")));
    side.refused("start what cannot be run", answer, Code::NotFound, "not-there").await;
    let told = waiting.await.expect("no panic").expect("an answer").into_inner();
    let at = told.exited_at.map(|at| at.seconds);
    side.is("who waits hears that nothing was", (told.exit_status, at), (0, Some(NEVER)));
    let told = side.ok("wait for what could not start", tasks.wait(ask(wait("web", "lost")))).await;
    side.is("and so later", told.exited_at.map(|at| at.seconds), Some(NEVER));
    side.is("it is still to start", state(side, &mut tasks, "lost").await, State::Created);
    let delete = DeleteProcessRequest { container_id: "web".into(), exec_id: "lost".into() };
    let gone = side.ok("delete what could not start", tasks.delete_process(ask(delete))).await;
    let at = gone.exited_at.map(|at| at.seconds);
    side.is("it ended at no time", (gone.exit_status, at), (0, Some(NEVER)));
}

/// What cannot be the id of a process is that of none, and no id at all that of the first.
async fn no_process_can_be_called_so(side: &Side<'_>) {
    let mut tasks = TasksClient::new(side.channel());
    let container_id = || "web".to_owned();
    for id in ["a/b", "-a", &"x".repeat(77)] {
        let exec_id = || id.to_owned();
        macro_rules! none {
            ($case:literal, $method:ident, $request:expr) => {
                side.refused($case, tasks.$method(ask($request)), Code::NotFound, "").await;
            };
        }
        none!("start what cannot be", start, start("web", id));
        none!("get what cannot be", get, get("web", id));
        none!("kill what cannot be", kill, kill("web", id));
        none!("wait for what cannot be", wait, wait("web", id));
        none!(
            "resize what cannot be",
            resize_pty,
            ResizePtyRequest {
                container_id: container_id(),
                exec_id: exec_id(),
                ..ResizePtyRequest::default()
            }
        );
        none!(
            "close streams of what cannot be",
            close_io,
            CloseIORequest { container_id: container_id(), exec_id: exec_id(), stdin: true }
        );
        none!(
            "delete what cannot be",
            delete_process,
            DeleteProcessRequest { container_id: container_id(), exec_id: exec_id() }
        );
    }
    let first = DeleteProcessRequest { container_id: container_id(), exec_id: String::new() };
    let answer = tasks.delete_process(ask(first));
    side.refused("delete the first process while it runs", answer, Code::FailedPrecondition, "").await;
}

/// The end of input comes when a client says so, and not when it says that another stream is meant.
async fn input_ends_when_it_is_closed(side: &Side<'_>) {
    let mut tasks = TasksClient::new(side.channel());
    let (fifo, file) = (side.dir().join("typed"), side.dir().join("busybox-root/got"));
    mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).expect("a writable directory");
    let reads = exec("web", "reads", "cat > /got; echo end >> /got");
    // A peer's shim waits for ever where only some of the streams are named.
    let said = format!("file://{}", side.dir().join("said").display());
    let stdin = fifo.display().to_string();
    let reads = ExecProcessRequest { stdin, stdout: said.clone(), stderr: said, ..reads };
    side.ok("exec", tasks.exec(ask(reads))).await;
    // Never waits for the other end, as a shim may: it is opened before.
    let mut writer = fs::File::options();
    let mut writer = writer.read(true).write(true).open(&fifo).expect("a fifo of ours");
    side.ok("start a process", tasks.start(ask(start("web", "reads")))).await;
    let close = |stdin| ask(CloseIORequest { container_id: "web".into(), exec_id: "reads".into(), stdin });
    side.ok("close no stream", tasks.close_io(close(false))).await;
    writer.write_all(b"some\n").expect("a fifo that is empty");
    eventually("it has read", || (fs::read_to_string(&file).ok()? == "some\n").then_some(()));
    // A fifo that somebody can write to has no end: the shim keeps it open, whichever client goes.
    drop(writer);
    let mut reader = fs::File::options();
    let reader = reader.read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(&fifo);
    let end = reader.expect("a fifo of ours").read(&mut [0]).map_err(|error| error.kind());
    side.is("its input is open", end, Err(ErrorKind::WouldBlock));
    side.ok("close its input", tasks.close_io(close(true))).await;
    let exit = side.ok("wait", tasks.wait(ask(wait("web", "reads")))).await;
    side.is("it ends", exit.exit_status, 0);
    side.is("it has read all", fs::read_to_string(&file).unwrap_or_default(), "some\nend\n");
    let delete = DeleteProcessRequest { container_id: "web".into(), exec_id: "reads".into() };
    side.ok("delete a process", tasks.delete_process(ask(delete))).await;
}

/// What the file says that limits a process in its cgroup of the controller.
fn limit(pid: u32, controller: &str, file: &str) -> String {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it lives");
    let path = |wanted: &str| {
        let mut lines =
            cgroups.lines().filter_map(|line| line.splitn(3, ':').collect::<Vec<_>>().try_into().ok());
        lines.find_map(|[_, of, path]: [&str; 3]| of.split(',').any(|of| of == wanted).then_some(path))
    };
    let of_version_1 = path(controller).map(|path| format!("/sys/fs/cgroup/{controller}{path}/{file}"));
    let file =
        of_version_1.unwrap_or_else(|| format!("/sys/fs/cgroup{}/{file}", path("").unwrap_or_default()));
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}")).trim().to_owned()
}

async fn a_task_is_held_and_changed(side: &Side<'_>) {
    let mut tasks = TasksClient::new(side.channel());
    let id = || "web".to_owned();
    side.ok("pause", tasks.pause(ask(PauseTaskRequest { container_id: id() }))).await;
    side.is("it is paused", state(side, &mut tasks, "").await, State::Paused);
    let again = tasks.pause(ask(PauseTaskRequest { container_id: id() }));
    side.refused("pause what is paused", again, Code::FailedPrecondition, "").await;
    let answer = tasks.exec(ask(exec("web", "held", "true")));
    side.refused("a process in what is paused", answer, Code::FailedPrecondition, "paused").await;
    side.refused("it was not added", tasks.get(ask(get("web", "held"))), Code::NotFound, "").await;
    side.ok("resume", tasks.resume(ask(ResumeTaskRequest { container_id: id() }))).await;
    side.is("it runs on", state(side, &mut tasks, "").await, State::Running);
    let again = tasks.resume(ask(ResumeTaskRequest { container_id: id() }));
    side.refused("resume what runs", again, Code::FailedPrecondition, "").await;
    let resources = json_of(RESOURCES_SPEC_URL, &json!({ "pids": { "limit": 50 } }));
    let update = UpdateTaskRequest { container_id: id(), resources, ..UpdateTaskRequest::default() };
    side.ok("update", tasks.update(ask(update.clone()))).await;
    let process = side.ok("get", tasks.get(ask(get("web", "")))).await.process.unwrap_or_default();
    side.is("the limit is the new one", limit(process.pid, "pids", "pids.max"), "50");
    if side.is_ours() {
        // A peer hands on whatever it is.
        let none = UpdateTaskRequest { resources: None, ..update.clone() };
        side.refused("change nothing", tasks.update(ask(none)), Code::InvalidArgument, "resources").await;
        let other = json_of(SPEC_URL, &json!({ "pids": 1 }));
        let other = UpdateTaskRequest { resources: other, ..update };
        side.refused("change by what is none", tasks.update(ask(other)), Code::InvalidArgument, "").await;
    }
    let found = side.ok("metrics", tasks.metrics(ask(MetricsRequest::default()))).await.metrics;
    let told = found.iter().map(|metric| (metric.id.as_str(), metric.data.is_some())).collect::<Vec<_>>();
    side.is("its figures are told", told, vec![("web", true)]);
    for (filter, count) in [("id==web", 1), ("id==none", 0)] {
        let found = tasks.metrics(ask(MetricsRequest { filters: vec![filter.into()] }));
        let found = side.ok("metrics of some", found).await.metrics;
        side.is("filters choose", (filter, found.len()), (filter, count));
    }
    for (case, filter) in BAD_FILTERS {
        let answer = tasks.metrics(ask(MetricsRequest { filters: vec![(*filter).into()] }));
        side.refused(case, answer, Code::InvalidArgument, "").await;
    }
    // Without a terminal there is nothing to resize, which is no mistake of the caller.
    let resize =
        ResizePtyRequest { container_id: id(), width: 80, height: 25, ..ResizePtyRequest::default() };
    side.ok("resize what has no terminal", tasks.resize_pty(ask(resize))).await;
}

async fn a_task_ends(side: &Side<'_>) {
    let mut tasks = TasksClient::new(side.channel());
    let mut waiting = tasks.clone();
    let waiting = tokio::spawn(async move { waiting.wait(ask(wait("web", ""))).await });
    side.ok("kill", tasks.kill(ask(kill("web", "")))).await;
    let exit = waiting.await.expect("no panic").expect("it ends").into_inner();
    side.is("it was killed", (exit.exit_status, exit.exited_at.is_some()), (128 + KILL, true));
    side.is("it is stopped", state(side, &mut tasks, "").await, State::Stopped);
    let again = side.ok("wait for what has ended", tasks.wait(ask(wait("web", "")))).await;
    side.is("it is told again", again.exit_status, 128 + KILL);
    side.refused("kill what has ended", tasks.kill(ask(kill("web", ""))), Code::NotFound, "").await;
    let answer = tasks.start(ask(start("web", "")));
    side.refused("start what has ended", answer, Code::FailedPrecondition, "").await;
    let answer = tasks.exec(ask(exec("web", "late", "true")));
    side.refused("a process in what has ended", answer, Code::FailedPrecondition, "").await;
    let delete = || ask(DeleteTaskRequest { container_id: "web".into() });
    let gone = side.ok("delete", tasks.delete(delete())).await;
    side.is("it says how it ended", (gone.exit_status, gone.exited_at.is_some()), (128 + KILL, true));
    side.refused("delete what is gone", tasks.delete(delete()), Code::NotFound, "web").await;
    side.refused("get what is gone", tasks.get(ask(get("web", ""))), Code::NotFound, "web").await;
}

/// A process on a terminal that notes in a file of this name, again and again, how large the terminal is.
fn sized(name: &str) -> Value {
    // Nothing is said of one that has no size yet, which is a line, too.
    let look = "echo \"$(busybox stty size 2>/dev/null)\"";
    let mut process = testkit::process(&format!("while :; do {look} >> /{name}; busybox sleep 0.1; done"));
    process["terminal"] = true.into();
    process
}

/// A fifo for what a terminal shows, and its other end, which is open before a shim may wait for it.
fn shown(dir: &Path, name: &str) -> (String, fs::File) {
    let fifo = dir.join(name);
    mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).expect("a writable directory");
    let end = fs::File::options().read(true).write(true).open(&fifo).expect("a fifo of ours");
    (fifo.display().to_string(), end)
}

/// The first process and another have a terminal each.
#[test]
fn a_terminal_is_as_large_as_its_client_says_and_no_other_is() {
    if !is_root("a container") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    covers(&["Tasks.ResizePty"]).well().walk(&[], async |side| {
        let mut tasks = TasksClient::new(side.channel());
        let document = json!({
            "ociVersion": "1.0.2",
            "process": sized("first"),
            "root": { "path": "rootfs" },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                  "options": ["newinstance", "ptmxmode=0666", "mode=0620"] },
            ],
            "linux": {
                "namespaces": [{ "type": "pid" }, { "type": "mount" }],
                "cgroupsPath": format!("/walk-{}-sized", std::process::id()),
            },
        });
        record_as(side, "sized", &document, None).await;
        let (stdout, _first) = shown(side.dir(), "shown-first");
        let create = CreateTaskRequest { terminal: true, stdout, ..create("sized", root(side.dir())) };
        side.ok("create", tasks.create(ask(create))).await;
        side.ok("start", tasks.start(ask(start("sized", "")))).await;
        let (stdout, _other) = shown(side.dir(), "shown-other");
        let spec = json_of(PROCESS_SPEC_URL, &sized("other"));
        let exec = ExecProcessRequest { terminal: true, stdout, spec, ..exec("sized", "one", "") };
        side.ok("exec", tasks.exec(ask(exec))).await;
        side.ok("start a process", tasks.start(ask(start("sized", "one")))).await;

        let sizes = |name: &str| -> Vec<String> {
            let noted = fs::read_to_string(side.dir().join("busybox-root").join(name));
            noted.unwrap_or_default().lines().map(ToOwned::to_owned).collect()
        };
        let has = |name: &str, size: &str| sizes(name).iter().any(|noted| noted == size);
        let looks_again = |name: &str| {
            let before = sizes(name).len();
            eventually("it looks again", || (sizes(name).len() >= before + 2).then_some(()));
        };
        let resize = |exec_id: &str, width, height| {
            let (container_id, exec_id) = ("sized".to_owned(), exec_id.to_owned());
            ask(ResizePtyRequest { container_id, exec_id, width, height })
        };
        side.ok("resize a process", tasks.resize_pty(resize("one", 91, 37))).await;
        eventually("the process sees it", || has("other", "37 91").then_some(()));
        looks_again("first");
        side.is("and the first does not", has("first", "37 91"), false);
        side.ok("resize the first", tasks.resize_pty(resize("", 66, 20))).await;
        eventually("the first sees it", || has("first", "20 66").then_some(()));
        looks_again("other");
        side.is("and the other does not", has("other", "20 66"), false);

        side.ok("kill", tasks.kill(ask(kill("sized", "")))).await;
        side.ok("wait", tasks.wait(ask(wait("sized", "")))).await;
        side.ok("wait for the process", tasks.wait(ask(wait("sized", "one")))).await;
        let delete = DeleteProcessRequest { container_id: "sized".into(), exec_id: "one".into() };
        side.ok("delete a process", tasks.delete_process(ask(delete))).await;
        side.ok("delete", tasks.delete(ask(DeleteTaskRequest { container_id: "sized".into() }))).await;
    });
}

/// Where nothing is mounted for a task's root, its runtime makes places to mount on in the bundle.
#[test]
fn nothing_is_left_of_a_task_that_has_no_root() {
    if !is_root("a container") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    let differences =
        &[differs("create without a root", There::Code(Code::Unknown), "the same refusal, without a class")];
    covers(&["Tasks.Create", "Tasks.Get"]).refusals().walk(differences, async |side| {
        let mut tasks = TasksClient::new(side.channel());
        record(side, "bare", "true").await;
        let bare = || ask(create("bare", vec![]));
        side.refused("create without a root", tasks.create(bare()), Code::NotFound, "/bin/busybox").await;
        let answer = tasks.get(ask(get("bare", "")));
        side.refused("get what was not made", answer, Code::NotFound, "bare").await;
        if side.is_ours() {
            // A peer leaves the bundle, which is in the way of the next one.
            let answer = tasks.create(bare());
            side.refused("create without a root again", answer, Code::NotFound, "/bin/busybox").await;
        }
        let listed = side.ok("list", tasks.list(ask(ListTasksRequest::default()))).await.tasks;
        side.is("nothing is listed", listed.len(), 0);
    });
}

/// What `Tasks.Create` says of the runtime counts before what the record says.
#[test]
fn options_of_a_task_come_before_those_of_its_record() {
    if !is_root("a container") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    covers(&["Tasks.Create"]).well().walk(&[], async |side| {
        let options = |name: &str| {
            let program = side.dir().join(name);
            let script = format!("#!/bin/sh\n: > {}.called\nexec /usr/sbin/runc \"$@\"\n", program.display());
            testkit::executable(&program, &script);
            Some(pack(&Options { binary_name: program.display().to_string(), ..Options::default() }))
        };
        let called = |name: &str| side.dir().join(format!("{name}.called")).exists();
        record_with(side, "chosen", "exec sleep 1000", options("of-the-record")).await;
        let create =
            CreateTaskRequest { options: options("of-the-call"), ..create("chosen", root(side.dir())) };
        let mut tasks = TasksClient::new(side.channel());
        side.ok("create", tasks.create(ask(create))).await;
        side.is("who is called", (called("of-the-call"), called("of-the-record")), (true, false));
        side.ok("start", tasks.start(ask(start("chosen", "")))).await;
        side.ok("kill", tasks.kill(ask(kill("chosen", "")))).await;
        side.ok("wait", tasks.wait(ask(wait("chosen", "")))).await;
        side.ok("delete", tasks.delete(ask(DeleteTaskRequest { container_id: "chosen".into() }))).await;
    });
}

/// Whoever gives options counts on what they say.
#[test]
fn options_of_another_kind_than_the_runtimes_are_refused() {
    if !is_root("a container") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    let why = "the same refusal, without a class";
    let differences = &[
        differs("options that nobody knows", There::Code(Code::Unknown), why),
        differs("options of another kind", There::Code(Code::Unknown), why),
        differs("options of a record that nobody knows", There::Code(Code::Unknown), why),
    ];
    covers(&["Tasks.Create", "Tasks.Get"]).refusals().walk(differences, async |side| {
        let mut tasks = TasksClient::new(side.channel());
        let unknown = Any { type_url: "example.com/Options".into(), value: b"x".to_vec() };
        let other = pack(&CheckpointOptions { exit: true, ..CheckpointOptions::default() });
        record(side, "odd", "true").await;
        let code = Code::InvalidArgument;
        let given = |options: &Any| {
            ask(CreateTaskRequest { options: Some(options.clone()), ..create("odd", root(side.dir())) })
        };
        let answer = tasks.create(given(&unknown));
        side.refused("options that nobody knows", answer, code, "\"example.com/Options\"").await;
        let answer = tasks.create(given(&other));
        side.refused("options of another kind", answer, code, "CheckpointOptions").await;
        record_with(side, "old", "true", Some(unknown)).await;
        let answer = tasks.create(ask(create("old", root(side.dir()))));
        side.refused("options of a record that nobody knows", answer, code, "\"example.com/Options\"").await;
        for id in ["odd", "old"] {
            let answer = tasks.get(ask(get(id, "")));
            side.refused("no task came of it", answer, Code::NotFound, id).await;
        }
    });
}

/// A shim of the test's own, which notes what it is told to change.
#[test]
fn an_update_reaches_the_shim_with_its_annotations() {
    covers(&["Tasks.Update"]);
    let daemon = Daemon::start();
    on(&daemon, async |channel| {
        let socket = daemon.dir().join("noting.sock");
        let listener = UnixListener::bind(&socket).expect("a writable directory");
        let (noted, mut updates) = mpsc::unbounded_channel();
        let shim = tokio::spawn(ttrpc::asynchronous::serve(listener, move |request| {
            let pid = std::process::id();
            let answer = match request.method.as_str() {
                "Create" => Ok(task::CreateTaskResponse { pid }.encode_to_vec()),
                "Connect" => Ok(task::ConnectResponse { shim_pid: pid, task_pid: pid, ..Default::default() }
                    .encode_to_vec()),
                "Update" => request.read::<task::UpdateTaskRequest>().map(|update| {
                    noted.send(update).expect("the test waits for it");
                    Vec::new()
                }),
                "Kill" => Ok(Vec::new()),
                "Delete" => Ok(task::DeleteResponse { pid, ..Default::default() }.encode_to_vec()),
                _ => Err(request.unknown_method()),
            };
            ready(answer)
        }));
        let container = Container {
            id: "noted".into(),
            runtime: Some(Runtime { name: "io.containerd.hoist.v2".into(), options: None }),
            spec: json_of(SPEC_URL, &json!({ "ociVersion": "1.1.0" })),
            ..Container::default()
        };
        let record = CreateContainerRequest { container: Some(container) };
        ContainersClient::new(channel.clone()).create(ask(record)).await.unwrap();
        let mut tasks = TasksClient::new(channel);
        let create = CreateTaskRequest {
            task_api_address: format!("unix://{}", socket.display()),
            task_api_version: 3,
            ..create("noted", Vec::new())
        };
        tasks.create(ask(create)).await.unwrap();
        let resources = json_of(RESOURCES_SPEC_URL, &json!({ "pids": { "limit": 50 } }));
        let annotations = map(&[("com.example/reason", "asked")]);
        let update = UpdateTaskRequest {
            container_id: "noted".into(),
            resources: resources.clone(),
            annotations: annotations.clone(),
        };
        tasks.update(ask(update)).await.unwrap();
        let heard = updates.recv().await.unwrap();
        assert_eq!((heard.id.as_str(), heard.resources), ("noted", resources));
        assert_eq!(heard.annotations.into_iter().collect::<BTreeMap<_, _>>(), annotations);
        tasks.delete(ask(DeleteTaskRequest { container_id: "noted".into() })).await.unwrap();
        shim.abort();
    });
}

/// Checkpoints themselves take criu, which kernels and hosts often lack.
#[test]
fn checkpoints_are_of_tasks() {
    covers(&["Tasks.Checkpoint"]).refusals().walk(&[], async |side| {
        let mut tasks = TasksClient::new(side.channel());
        let checkpoint =
            |id: &str| CheckpointTaskRequest { container_id: id.into(), ..CheckpointTaskRequest::default() };
        let (code, words) = (Code::FailedPrecondition, "namespace is required");
        let answer = tasks.checkpoint(within(None, checkpoint("none")));
        side.refused("checkpoint without a namespace", answer, code, words).await;
        let answer = tasks.checkpoint(ask(checkpoint("none")));
        side.refused("checkpoint no container", answer, Code::NotFound, "none").await;
        record(side, "bare", "true").await;
        let answer = tasks.checkpoint(ask(checkpoint("bare")));
        side.refused("checkpoint no task", answer, Code::NotFound, "bare").await;
        let answer = tasks.checkpoint(within(Some("other"), checkpoint("bare")));
        side.refused("checkpoint in another namespace", answer, Code::NotFound, "bare").await;
    });
}

/// A loop that notes each signal that it gets.
fn listener(name: &str) -> String {
    format!("trap 'echo {name} >> /heard' USR1; echo ready >> /heard; while :; do sleep 0.1; done")
}

/// Where processes are not in a namespace of their own, they are the container's by its cgroup.
#[test]
fn a_signal_is_for_one_process_or_for_all() {
    const USR1: u32 = 10;
    if !is_root("a container") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    covers(&["Tasks.Kill"]).well().walk(&[], async |side| {
        let mut tasks = TasksClient::new(side.channel());
        let script = format!("({}) & {}", listener("second"), listener("first"));
        record_within(side, "all", &script, json!([{ "type": "mount" }]), json!({})).await;
        side.ok("create", tasks.create(ask(create("all", root(side.dir()))))).await;
        side.ok("start", tasks.start(ask(start("all", "")))).await;
        side.ok("exec", tasks.exec(ask(exec("all", "third", &listener("third"))))).await;
        side.ok("start a process", tasks.start(ask(start("all", "third")))).await;
        let file = side.dir().join("busybox-root/heard");
        let heard = |word: &str| {
            let text = fs::read_to_string(&file).unwrap_or_default();
            text.lines().filter(|line| *line == word).count()
        };
        let until = |what, is_heard: &dyn Fn() -> bool| eventually(what, || is_heard().then_some(()));
        until("all listen", &|| heard("ready") == 3);
        let usr1 = |exec: &str, all| KillRequest { signal: USR1, all, ..kill("all", exec) };
        side.ok("signal the first", tasks.kill(ask(usr1("", false)))).await;
        until("the first hears it", &|| heard("first") == 1);
        side.ok("signal a process", tasks.kill(ask(usr1("third", false)))).await;
        until("it hears it", &|| heard("third") == 1);
        side.ok("signal all", tasks.kill(ask(usr1("", true)))).await;
        until("all hear it", &|| heard("first") >= 2 && heard("second") >= 1 && heard("third") >= 2);
        side.is("each heard what was for it", (heard("first"), heard("second"), heard("third")), (2, 1, 2));

        let pids = ListPidsRequest { container_id: "all".into() };
        let pids = side.ok("pids", tasks.list_pids(ask(pids))).await.processes;
        side.is("all are its processes", pids.len() >= 3, true);
        let killed = KillRequest { all: true, ..kill("all", "") };
        side.ok("kill all", tasks.kill(ask(killed))).await;
        side.ok("wait", tasks.wait(ask(wait("all", "")))).await;
        until("all are gone", &|| !pids.iter().any(|process| is_alive(process.pid)));
        let delete = DeleteProcessRequest { container_id: "all".into(), exec_id: "third".into() };
        side.ok("delete a process", tasks.delete_process(ask(delete))).await;
        side.ok("delete", tasks.delete(ask(DeleteTaskRequest { container_id: "all".into() }))).await;
    });
}

/// Whether a process runs; what has ended and was not looked after does not.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}
