//! `ctr tasks`: running containers and their processes.

mod attend;

use std::os::fd::AsRawFd;
use std::path::Path;

use api::grpc::containers::Container;
use api::grpc::tasks::tasks_client::TasksClient;
use api::grpc::tasks::{
    CreateTaskRequest, DeleteProcessRequest, DeleteTaskRequest, ExecProcessRequest, GetRequest, KillRequest,
    ListPidsRequest, ListTasksRequest, MetricsRequest, PauseTaskRequest, ResumeTaskRequest, WaitRequest,
};
use api::grpc::types::{Descriptor, Process, Status};
use client::Channel;
use linux::beneath::Root as Tree;
use prost_types::Any;
use serde_json::{Value, json};
use types::spec::runtime::{Process as SpecProcess, Spec, User};
use types::{Context, Error, ErrorKind, Result, UnlessGone};

pub(super) use self::attend::Attended;
use self::attend::{Streams, attend, listen, start_process};

use super::command::{Call, Command, Flag};
use super::connection::{Answer, Connection, present, service};
use super::{checkpoint, cni, containers, events, run, schema, spec, table};
use crate::output::said;
use crate::streams::Attached;

const PROCESS_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const KILL: u32 = 9;

pub(super) const VERBS: &[Command] = &[
    Command::new("attach", "CONTAINER", "attach to a container", &[], |call| Box::pin(attach(call))),
    Command::new(
        "checkpoint",
        "[flags] CONTAINER",
        "checkpoint a running container to an image",
        checkpoint::FLAGS,
        |call| Box::pin(checkpoint::checkpoint(call)),
    ),
    Command::new(
        "delete|del|remove|rm",
        "[flags] CONTAINER [CONTAINER, ...]",
        "delete tasks",
        &[
            Flag::switch("force,f", "kill the task first"),
            Flag::value("exec-id", "an additional process of the container"),
        ],
        |call| Box::pin(delete(call)),
    ),
    Command {
        is_program: true,
        ..Command::new(
            "exec",
            "[flags] CONTAINER CMD [ARG...]",
            "run an additional process in a container",
            &[
                Flag::value("cwd", "the working directory"),
                Flag::switch("tty,t", "allocate a terminal"),
                Flag::switch("detach,d", "do not attach"),
                Flag::value("exec-id", "the id of the process"),
                Flag::value("fifo-dir", "no effect"),
                Flag::value("log-uri", "where output goes, as file:///… or binary:///…"),
                Flag::value("user", "the user, as NAME|UID[:NAME|GID]"),
            ],
            |call| Box::pin(exec(call)),
        )
    },
    Command::new(
        "list|ls",
        "[flags]",
        "list tasks",
        &[Flag::switch("quiet,q", "print only the ids")],
        |call| Box::pin(list(call)),
    ),
    Command::new(
        "kill",
        "[flags] CONTAINER",
        "signal a container",
        &[
            Flag::value("signal,s", "the signal [SIGTERM]"),
            Flag::value("exec-id", "an additional process of the container"),
            Flag::switch("all,a", "all processes of the container"),
        ],
        |call| Box::pin(kill(call)),
    ),
    Command::new("pause", "CONTAINER", "pause a container", &[], |call| Box::pin(pause(call))),
    Command::new("ps", "CONTAINER", "list a container's processes", &[], |call| Box::pin(processes(call))),
    Command::new("resume", "CONTAINER", "resume a paused container", &[], |call| Box::pin(resume(call))),
    Command::new(
        "start",
        "[flags] CONTAINER",
        "start a created container",
        &[
            Flag::switch("null-io", "discard input and output"),
            Flag::value("log-uri", "where output goes, as file:///… or binary:///…"),
            Flag::value("fifo-dir", "no effect"),
            Flag::value("pid-file", "write the pid to this file"),
            Flag::switch("detach,d", "do not attach"),
        ],
        |call| Box::pin(start(call)),
    ),
    Command::new(
        "metrics|metric",
        "CONTAINER",
        "show the resource usage of a container",
        &[Flag::value("format", "table or json")],
        |call| Box::pin(metrics(call)),
    ),
];

pub(super) fn client(connection: &Connection) -> TasksClient<Channel> {
    service!(connection, tasks::tasks_client::TasksClient)
}

fn id(call: &Call) -> Result<String> {
    call.word(0, "container id").map(str::to_owned)
}

async fn list(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let request = connection.request(ListTasksRequest::default())?;
    let tasks = client(&connection).list(request).await.answer()?.tasks;
    if call.is("quiet") {
        table::lines(tasks.iter().map(|task| &task.id));
        return Ok(0);
    }
    let row = |task: &Process| vec![task.id.clone(), task.pid.to_string(), status(task).to_owned()];
    table::print(&["TASK", "PID", "STATUS"], &tasks.iter().map(row).collect::<Vec<_>>());
    Ok(0)
}

fn status(process: &Process) -> &'static str {
    match process.status() {
        Status::Unknown => "UNKNOWN",
        Status::Created => "CREATED",
        Status::Running => "RUNNING",
        Status::Stopped => "STOPPED",
        Status::Paused => "PAUSED",
        Status::Pausing => "PAUSING",
    }
}

async fn processes(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let request = connection.request(ListPidsRequest { container_id: id(&call)? })?;
    let found = client(&connection).list_pids(request).await.answer()?.processes;
    let rows: Vec<_> = found
        .iter()
        .map(|process| {
            let details =
                process.info.as_ref().map_or_else(|| "-".to_owned(), |info| schema::any(info).to_string());
            vec![process.pid.to_string(), details]
        })
        .collect();
    table::print(&["PID", "INFO"], &rows);
    Ok(0)
}

async fn pause(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let request = connection.request(PauseTaskRequest { container_id: id(&call)? })?;
    client(&connection).pause(request).await.answer()?;
    Ok(0)
}

async fn resume(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let request = connection.request(ResumeTaskRequest { container_id: id(&call)? })?;
    client(&connection).resume(request).await.answer()?;
    Ok(0)
}

async fn kill(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let number = linux::signal::Signal::parse(call.value("signal").unwrap_or("SIGTERM"))?.number();
    let request = KillRequest {
        container_id: id(&call)?,
        exec_id: call.value("exec-id").unwrap_or_default().to_owned(),
        signal: number.unsigned_abs(),
        all: call.is("all"),
    };
    let (id, is_first) = (request.container_id.clone(), request.exec_id.is_empty());
    client(&connection).kill(connection.request(request)?).await.answer()?;
    if is_first {
        // As with containerd's, whatever the signal is.
        detach_network(&connection, &id).await?;
    }
    Ok(0)
}

/// Removes the CNI network that `run --cni` attached to a container, if it did.
async fn detach_network(connection: &Connection, id: &str) -> Result<()> {
    let Some(container) = containers::get(connection, id).await.unless_gone()? else { return Ok(()) };
    match cni::is_noted(&container) {
        true => cni::Network::first()?.remove(&cni::container_id(&connection.namespace, id), ""),
        false => Ok(()),
    }
}

async fn delete(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let exec_id = call.value("exec-id").unwrap_or_default();
    let mut code = 0;
    for id in call.words_from(0, "container id")? {
        let mut deleted = delete_one(&connection, id, exec_id, call.is("force")).await;
        if exec_id.is_empty() && deleted.is_ok() {
            deleted = detach_network(&connection, id).await.and(deleted);
        }
        match deleted {
            Ok(0) => {}
            Ok(status) => {
                let name = if exec_id.is_empty() { id } else { exec_id };
                eprintln!("ctr: task {name} exit with non-zero exit code {status}");
                // As with containerd's, the exit code of a single process is ours.
                code = if call.words().len() == 1 && !exec_id.is_empty() {
                    u8::try_from(status).unwrap_or(255)
                } else {
                    code
                };
            }
            Err(error) => {
                eprintln!("ctr: unable to delete {id}: {}", said(&error));
                code = 1;
            }
        }
    }
    Ok(code)
}

/// Deletes a task or an additional process. Returns its exit code.
async fn delete_one(connection: &Connection, id: &str, exec_id: &str, force: bool) -> Result<u32> {
    if force {
        let wait = wait(connection, id, exec_id).await?;
        let request = KillRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            signal: KILL,
            all: exec_id.is_empty(),
        };
        match client(connection).kill(connection.request(request)?).await.answer() {
            Err(error) if !error.is(ErrorKind::NotFound) && !error.is(ErrorKind::FailedPrecondition) => {
                return Err(error);
            }
            // A task that was still being created has no end to wait for.
            Ok(()) => drop(code_of(wait.await)),
            Err(_) => wait.abort(),
        }
    }
    let container_id = id.to_owned();
    if exec_id.is_empty() {
        let request = connection.request(DeleteTaskRequest { container_id })?;
        return client(connection).delete(request).await.answer().map(|deleted| deleted.exit_status);
    }
    let request = connection.request(DeleteProcessRequest { container_id, exec_id: exec_id.to_owned() })?;
    client(connection).delete_process(request).await.answer().map(|deleted| deleted.exit_status)
}

/// Deletes the task of a container, if there is one. `FailedPrecondition` while it runs.
pub(super) async fn delete_stopped(connection: &Connection, id: &str) -> Result<()> {
    let request = connection.request(GetRequest { container_id: id.to_owned(), exec_id: String::new() })?;
    let process = match client(connection).get(request).await.answer() {
        Err(error) if error.is(ErrorKind::NotFound) => return Ok(()),
        process => present(process?.process, "process")?,
    };
    if !matches!(process.status(), Status::Stopped | Status::Created) {
        let what =
            format!("cannot delete a non stopped container: {} is {}", id, status(&process).to_lowercase());
        return Err(Error::failed_precondition(what));
    }
    delete_one(connection, id, "", false).await?;
    detach_network(connection, id).await
}

type Waiting = tokio::task::JoinHandle<Result<u32>>;

/// Begins to wait for the end of a process.
async fn wait(connection: &Connection, id: &str, exec_id: &str) -> Result<Waiting> {
    let request =
        connection.request(WaitRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned() })?;
    let mut client = client(connection);
    Ok(tokio::spawn(async move { client.wait(request).await.answer().map(|ended| ended.exit_status) }))
}

/// The exit code of a process that was waited for.
fn code_of(waited: Result<Result<u32>, tokio::task::JoinError>) -> Result<u32> {
    waited.map_err(Error::broke_down("the wait"))?
}

fn spec_of(container: &Container) -> Result<Spec> {
    let bytes = container.spec.as_ref().map_or(&[][..], |spec| &spec.value);
    serde_json::from_slice(bytes).map_err(|error| {
        Error::invalid_argument(format!("container {} has a broken spec", container.id)).with_source(error)
    })
}

async fn start(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let id = id(&call)?;
    start_new(&call, &connection, &id).await.map(Attended::code)
}

/// Creates and starts the task of a container, and attends it unless `--detach` is given.
pub(super) async fn start_new(call: &Call, connection: &Connection, id: &str) -> Result<Attended> {
    let detach = call.is("detach");
    launch(call, connection, id, None, |_| detach).await
}

/// As [`start_new`], from a checkpoint if one is given. Attends the task only with a terminal.
pub(super) async fn start_from_checkpoint(
    call: &Call,
    connection: &Connection,
    id: &str,
    processes: Option<Descriptor>,
) -> Result<u8> {
    launch(call, connection, id, processes, |terminal| !terminal).await.map(Attended::code)
}

async fn launch(
    call: &Call,
    connection: &Connection,
    id: &str,
    checkpoint: Option<Descriptor>,
    detaches: impl FnOnce(bool) -> bool,
) -> Result<Attended> {
    let container = containers::get(connection, id).await?;
    let spec = spec_of(&container)?;
    let terminal = spec.process.is_some_and(|process| process.terminal);
    let detach = detaches(terminal);
    let streams = Streams::of(call, terminal, detach)?;
    let (stdin, stdout, stderr) = streams.paths();
    let request = CreateTaskRequest {
        container_id: id.to_owned(),
        rootfs: run::rootfs(connection, &container).await?,
        stdin,
        stdout,
        stderr,
        terminal,
        checkpoint,
        ..CreateTaskRequest::default()
    };
    let created = client(connection).create(connection.request(request)?).await.answer();
    let created = streams.unless_failed(created)?;
    if let Some(path) = call.value("pid-file") {
        std::fs::write(path, created.pid.to_string()).context(|| format!("write {path}"))?;
    }
    let network = match call.is("cni") {
        false => None,
        true => match streams.unless_failed(attach_network(connection, id, created.pid).await) {
            Ok(network) => Some(network),
            Err(error) => {
                let _ = delete_one(connection, id, "", true).await;
                return Err(error);
            }
        },
    };
    let ran = start_created(connection, id, terminal, detach, streams).await;
    match network {
        // A task that goes on keeps its network until it is killed.
        Some(network) if !matches!(ran, Ok(Attended::Detached(_))) => {
            let removed = network.remove(&cni::container_id(&connection.namespace, id), "");
            ran.and_then(|stayed| removed.map(|()| stayed))
        }
        _ => ran,
    }
}

/// Attaches the CNI network to a created container.
async fn attach_network(connection: &Connection, id: &str, pid: u32) -> Result<cni::Network> {
    let network = cni::Network::first()?;
    let path = format!("/proc/{pid}/ns/net");
    let namespace = std::fs::File::open(&path).context(|| format!("open {path}"))?;
    // If the process still exists, its pid was not reused, and the open namespace is its own: plugins must not change
    // another.
    let request = connection.request(GetRequest { container_id: id.to_owned(), exec_id: String::new() })?;
    let process = present(client(connection).get(request).await.answer()?.process, "process")?;
    if process.pid != pid || process.status() != Status::Created {
        return Err(Error::aborted(format!("container {id} ended before it had a network")));
    }
    let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
    network.add(&cni::container_id(&connection.namespace, id), &path)?;
    Ok(network)
}

async fn start_created(
    connection: &Connection,
    id: &str,
    terminal: bool,
    detach: bool,
    streams: Streams,
) -> Result<Attended> {
    let waiting = wait(connection, id, "").await?;
    let mut signals = (!detach).then(|| listen(terminal)).transpose()?;
    let started = start_process(connection, (id, ""), signals.as_mut()).await;
    if let Err(error) = streams.unless_failed(started) {
        waiting.abort();
        // A task that did not start is useless.
        let _ = delete_one(connection, id, "", false).await;
        return Err(error);
    }
    let Some(signals) = signals else {
        waiting.abort();
        return Ok(Attended::Detached(0));
    };
    attend(connection, (id, ""), terminal, streams, waiting, signals).await
}

async fn exec(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let id = id(&call)?;
    let command = call.words_from(1, "command")?.to_vec();
    let exec_id = match call.value("exec-id") {
        Some(exec_id) if !exec_id.is_empty() => exec_id.to_owned(),
        _ => return Err(Error::invalid_argument("exec id must be provided: --exec-id")),
    };
    let container = containers::get(&connection, &id).await?;
    let terminal = call.is("tty");
    let mut process: SpecProcess = spec_of(&container)?.process.unwrap_or_default();
    (process.terminal, process.args) = (terminal, command);
    if let Some(cwd) = call.value("cwd") {
        cwd.clone_into(&mut process.cwd);
    }
    if let Some(user) = call.value("user") {
        process.user = user_within(&connection, &id, user).await?;
    }
    let detach = call.is("detach");
    let streams = Streams::of(&call, terminal, detach)?;
    let (stdin, stdout, stderr) = streams.paths();
    let request = ExecProcessRequest {
        container_id: id.clone(),
        stdin,
        stdout,
        stderr,
        terminal,
        spec: Some(Any {
            type_url: PROCESS_URL.to_owned(),
            value: serde_json::to_vec(&process).expect("a process has a JSON form"),
        }),
        exec_id: exec_id.clone(),
    };
    let added = client(&connection).exec(connection.request(request)?).await.answer();
    streams.unless_failed(added)?;
    let waiting = wait(&connection, &id, &exec_id).await?;
    let mut signals = (!detach).then(|| listen(terminal)).transpose()?;
    let started = start_process(&connection, (&id, &exec_id), signals.as_mut()).await;
    if let Err(error) = streams.unless_failed(started) {
        waiting.abort();
        let _ = delete_one(&connection, &id, &exec_id, false).await;
        return Err(error);
    }
    let Some(signals) = signals else {
        waiting.abort();
        return Ok(0);
    };
    attend(&connection, (&id, &exec_id), terminal, streams, waiting, signals).await.map(Attended::code)
}

/// Resolves `USER[:GROUP]` in a running container, by its current files.
async fn user_within(connection: &Connection, id: &str, text: &str) -> Result<User> {
    // Numbers need no lookup.
    if let Ok(user) = spec::user(text, || Err(Error::unavailable("not looked into"))) {
        return Ok(user);
    }
    let pid = running(connection, id).await?;
    let tree = Tree::open(Path::new(&format!("/proc/{pid}/root")))?;
    // If the process still exists, its pid was not reused, and the open tree is its own.
    if running(connection, id).await? != pid {
        return Err(Error::aborted(format!("container {id} was started anew meanwhile; try again")));
    }
    spec::user(text, || Ok(tree))
}

/// The pid of a container's first process.
async fn running(connection: &Connection, id: &str) -> Result<u32> {
    let request = connection.request(GetRequest { container_id: id.to_owned(), exec_id: String::new() })?;
    let process = present(client(connection).get(request).await.answer()?.process, "process")?;
    match process.status() {
        Status::Stopped => Err(Error::failed_precondition(format!("container {id} has ended"))),
        _ => Ok(process.pid),
    }
}

/// Attaches to a container whose pipes another client created.
async fn attach(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let id = id(&call)?;
    let request = connection.request(GetRequest { container_id: id.clone(), exec_id: String::new() })?;
    let process = present(client(&connection).get(request).await.answer()?.process, "process")?;
    let Process { stdin, stdout, stderr, terminal, .. } = process;
    let streams = Streams::Attached(Attached::join(api::engine::Streams { stdin, stdout, stderr }));
    let waiting = wait(&connection, &id, "").await?;
    attend(&connection, (&id, ""), terminal, streams, waiting, listen(terminal)?).await.map(Attended::code)
}

async fn metrics(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let id = id(&call)?;
    let request = connection.request(MetricsRequest { filters: vec![format!("id=={id:?}")] })?;
    let found = client(&connection).metrics(request).await.answer()?.metrics.into_iter().next();
    let metric = found.ok_or_else(|| Error::not_found(format!("no metrics of {id}: it does not run")))?;
    let data = metric.data.as_ref().map_or(Value::Null, schema::any);
    match call.value("format").unwrap_or("table") {
        "json" => table::json(&data),
        "table" => {
            let time = events::go_time(metric.timestamp.as_ref());
            table::print(&["ID", "TIMESTAMP"], &[vec![id, time]]);
            table::lines([""]);
            table::print(&["METRIC", "VALUE"], &rows(&data));
        }
        other => return Err(Error::invalid_argument(format!("--format {other}: expected table or json"))),
    }
    Ok(0)
}

/// The metrics in containerd's table, for both cgroup versions.
fn rows(data: &Value) -> Vec<Vec<String>> {
    let number = |path: &str| data.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    if data.pointer("/cpu/usage_usec").is_some() || data.pointer("/memory/usage_limit").is_some() {
        let figures = [
            "pids.current",
            "pids.limit",
            "cpu.usage_usec",
            "cpu.user_usec",
            "cpu.system_usec",
            "cpu.nr_periods",
            "cpu.nr_throttled",
            "cpu.throttled_usec",
            "memory.usage",
            "memory.usage_limit",
            "memory.swap_usage",
            "memory.swap_limit",
        ];
        let value = |name: &&str| row(name, number(&format!("/{}", name.replace('.', "/"))).to_string());
        return figures.iter().map(value).collect();
    }
    let mut rows = vec![
        row("memory.usage_in_bytes", number("/memory/usage/usage").to_string()),
        row("memory.limit_in_bytes", number("/memory/usage/limit").to_string()),
        row("memory.stat.cache", number("/memory/cache").to_string()),
        row("cpuacct.usage", number("/cpu/usage/total").to_string()),
    ];
    let each = data.pointer("/cpu/usage/per_cpu").cloned().unwrap_or(json!([]));
    let each: Vec<String> = each.as_array().into_iter().flatten().map(ToString::to_string).collect();
    rows.push(row("cpuacct.usage_percpu", format!("[{}]", each.join(" "))));
    rows.push(row("pids.current", number("/pids/current").to_string()));
    rows.push(row("pids.limit", number("/pids/limit").to_string()));
    rows
}
