//! Other runtimes: the example shim of `docs/extend/runtime.md`, under Hoist's daemon and under Debian's containerd,
//! while it works and when it dies.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use api::grpc::introspection::PluginInfoRequest;
use api::grpc::introspection::introspection_client::IntrospectionClient;
use api::grpc::snapshots::MountsRequest;
use api::grpc::snapshots::snapshots_client::SnapshotsClient;
use api::grpc::tasks::tasks_client::TasksClient;
use api::grpc::tasks::{CreateTaskRequest, StartRequest};
use api::shim::introspection::{RuntimeInfo, RuntimeRequest};
use api::shim::{pack, unpack};
use linux::process::PidFd;
use tempfile::TempDir;
use testkit::{Containerd, Daemon, Finished, eventually, images, is_root};

use crate::typed::{ask, events, on, topic};

const PROGRAM: &str = env!("CARGO_BIN_EXE_containerd-shim-chroot-v1");
const IMAGE: &str = "docker.io/library/busybox:latest";

/// A shell with two children.
const THREE: &str = "sleep 1000 | sleep 1000";

/// A directory that contains the example shim under the name that `com.example.elsewhere.v3` stands for.
fn programs() -> TempDir {
    let dir = TempDir::new().expect("a temporary directory");
    symlink(PROGRAM, dir.path().join("containerd-shim-elsewhere-v3")).expect("a writable directory");
    dir
}

/// A daemon with busybox, and the example shim in its PATH.
fn daemon() -> (Daemon, TempDir) {
    let programs = programs();
    let path = format!("{}:{}", programs.path().display(), std::env::var("PATH").unwrap_or_default());
    let daemon = Daemon::start_in(&[], "", &[("PATH", &path)]);
    daemon.load(&images::busybox_archive());
    (daemon, programs)
}

/// Starts a container with three processes.
fn run_detached(daemon: &Daemon, id: &str) {
    daemon.ctr(["run", "-d", "--runtime", PROGRAM, IMAGE, id, "sh", "-c", THREE]).ok();
    let bundle = bundle(daemon, id);
    eventually("all of it runs", || (processes("root", &bundle).len() == 3).then_some(()));
}

/// The processes whose current directory or root is below `dir`: a shim's current directory is its bundle, and the
/// example's containers have their root there.
fn processes(link: &str, dir: &Path) -> Vec<u32> {
    let all = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| fs::read_link(format!("/proc/{pid}/{link}")).is_ok_and(|at| at.starts_with(dir)))
        .collect()
}

fn shim(bundle: &Path) -> u32 {
    let found = processes("cwd", bundle).into_iter().find(|pid| !processes("root", bundle).contains(pid));
    found.expect("the shim lives")
}

fn mounts() -> String {
    fs::read_to_string("/proc/self/mounts").expect("/proc is mounted")
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).expect("the daemon made it").count()
}

fn bundle(daemon: &Daemon, id: &str) -> PathBuf {
    daemon.state().join("tasks/default").join(id)
}

#[test]
fn a_runtime_is_found_by_its_name_and_by_its_path() {
    if !is_root("a container") {
        return;
    }
    let (daemon, programs) = daemon();
    let say = |runtime: &str, id: &str| {
        daemon.ctr(["run", "--rm", "--runtime", runtime, IMAGE, id, "sh", "-c", "echo here; exit 7"])
    };
    assert_eq!(say("com.example.elsewhere.v3", "by-name").expect_code(7).stdout, "here\n");
    assert_eq!(say(PROGRAM, "by-path").expect_code(7).stdout, "here\n");
    let missing = say("com.example.nowhere.v3", "missing");
    assert_ne!(missing.code, 0);
    missing.expect_stderr("containerd-shim-nowhere-v3");

    let path = programs.path().join("containerd-shim-elsewhere-v3").display().to_string();
    for runtime in ["com.example.elsewhere.v3", path.as_str()] {
        let info = on(&daemon, async |channel| {
            let asked = RuntimeRequest { runtime_path: runtime.to_owned(), options: None };
            let request = PluginInfoRequest {
                r#type: "io.containerd.runtime.v2".into(),
                id: "task".into(),
                options: Some(pack(&asked)),
            };
            IntrospectionClient::new(channel).plugin_info(ask(request)).await.unwrap().into_inner()
        });
        let info: RuntimeInfo = unpack(&info.extra.expect("it says what it is")).unwrap().unwrap();
        assert_eq!(info.name, "io.containerd.chroot.v1");
    }
}

/// The runtime path in `Tasks.Create` takes precedence over the container's record.
#[test]
fn a_task_is_made_by_the_runtime_at_the_path_that_its_client_gives() {
    if !is_root("a container") {
        return;
    }
    let (daemon, _programs) = daemon();
    let create = ["containers", "create", "--snapshotter", "native", "--runtime", "io.containerd.hoist.v2"];
    daemon.ctr([&create[..], &[IMAGE, "other", "sleep", "1000"]].concat()).ok();
    on(&daemon, async |channel| {
        let mounts = MountsRequest { snapshotter: "native".into(), key: "other".into() };
        let mounts =
            SnapshotsClient::new(channel.clone()).mounts(ask(mounts)).await.unwrap().into_inner().mounts;
        let create = |path: &str| {
            ask(CreateTaskRequest {
                container_id: "other".into(),
                rootfs: mounts.clone(),
                runtime_path: path.into(),
                ..CreateTaskRequest::default()
            })
        };
        let mut tasks = TasksClient::new(channel);
        for nowhere in ["/nosuch/containerd-shim-elsewhere-v3", "relative/containerd-shim-elsewhere-v3"] {
            assert!(tasks.create(create(nowhere)).await.is_err(), "{nowhere}");
        }
        tasks.create(create(PROGRAM)).await.unwrap();
        let at = bundle(&daemon, "other");
        let program = fs::read_link(format!("/proc/{}/exe", shim(&at))).unwrap();
        assert_eq!(program, fs::canonicalize(PROGRAM).unwrap());
        tasks
            .start(ask(StartRequest { container_id: "other".into(), exec_id: String::new() }))
            .await
            .unwrap();
    });
    daemon.ctr(["tasks", "rm", "-f", "other"]).ok();
    daemon.ctr(["containers", "rm", "other"]).ok();
}

/// A container's life, by `ctr`.
fn live(ctr: &dyn Fn(&[&str]) -> Finished, runtime: &str) {
    let status = |wanted: &str| {
        let tasks = ctr(&["tasks", "ls"]).ok();
        tasks.stdout.lines().any(|line| line.starts_with("life ") && line.contains(wanted)).then_some(())
    };
    ctr(&["run", "-d", "--runtime", runtime, IMAGE, "life", "sh", "-c", THREE]).ok();
    status("RUNNING").expect("it runs");
    let exec = |id: &str, script: &str| ctr(&["tasks", "exec", "--exec-id", id, "life", "sh", "-c", script]);
    assert_eq!(exec("one", "echo inside; exit 3").expect_code(3).stdout, "inside\n");
    exec("two", "kill -TERM $$").expect_code(128 + 15);
    eventually("all of it runs", || {
        let processes = ctr(&["tasks", "ps", "life"]).ok();
        (processes.text().lines().count() == 4).then_some(())
    });
    let paused = ctr(&["tasks", "pause", "life"]);
    assert_ne!(paused.code, 0, "what it cannot do it refuses");
    paused.expect_stderr("method Pause");
    let running = ctr(&["tasks", "delete", "life"]);
    assert_ne!(running.code, 0, "a task that runs is not deleted\n{running}");
    ctr(&["tasks", "kill", "--signal", "SIGKILL", "life"]).ok();
    eventually("the task has stopped", || status("STOPPED"));
    ctr(&["tasks", "delete", "life"]).ok().expect_stderr("exit code 137");
    ctr(&["containers", "rm", "life"]).ok();
    assert_eq!(ctr(&["tasks", "ls", "-q"]).ok().text(), "");
    let nothing = ctr(&["run", "--rm", "--runtime", runtime, IMAGE, "nothing", "nosuchprogram"]);
    assert_ne!(nothing.code, 0, "what cannot be started says why");
    nothing.expect_stderr("run nosuchprogram");
}

#[test]
fn a_runtime_runs_execs_kills_and_deletes() {
    if !is_root("a container") {
        return;
    }
    let (daemon, _programs) = daemon();
    live(&|words| daemon.ctr(words), PROGRAM);
    // The program reads the client's input until its end.
    let words = ["run", "--rm", "--runtime", PROGRAM, IMAGE, "typed", "sh", "-c", "cat; echo ended"];
    let mut typed = daemon.own_ctr_command(words);
    let mut typed = typed.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("ctr starts");
    typed.stdin.take().expect("piped").write_all(b"typed\n").expect("it reads");
    let typed = typed.wait_with_output().expect("a child of ours");
    assert_eq!((typed.status.code(), typed.stdout.as_slice()), (Some(0), &b"typed\nended\n"[..]));
    // The shim ends a moment after its task, and nothing is left.
    eventually("the shims end", || processes("cwd", &daemon.state()).is_empty().then_some(()));
    assert_eq!(processes("root", &daemon.state()), Vec::<u32>::new(), "processes of containers");
    assert!(!mounts().contains(&daemon.state().display().to_string()));
    assert_eq!(count(&daemon.state().join("tasks/default")), 0, "bundles");
    assert_eq!(count(&daemon.state().join("s")), 0, "sockets");
}

#[test]
fn the_same_runtime_serves_containerd() {
    if !is_root("a container") {
        return;
    }
    let programs = programs();
    let containerd = Containerd::start_with_programs(Some(programs.path()))
        .expect("containerd is there; try: apt-get install containerd");
    containerd.ctr(["images".as_ref(), "import".as_ref(), images::busybox_archive().as_os_str()]).ok();
    live(&|words| containerd.ctr(words), "com.example.elsewhere.v3");
}

#[test]
fn a_shim_of_others_that_dies_is_noticed_and_cleaned_up_after() {
    if !is_root("a container") {
        return;
    }
    let (daemon, _programs) = daemon();
    run_detached(&daemon, "crash");
    let bundle = bundle(&daemon, "crash");
    on(&daemon, async |channel| {
        let mut told = events(&channel, &["/tasks"]).await;
        PidFd::open(shim(&bundle)).unwrap().kill().unwrap();
        let exit = told.message().await.unwrap().unwrap();
        assert_eq!(exit.topic, "/tasks/exit");
        let exit = unpack::<api::shim::events::TaskExit>(&exit.event.unwrap()).unwrap().unwrap();
        assert_eq!((exit.container_id.as_str(), exit.id.as_str(), exit.exit_status), ("crash", "crash", 137));
        assert_eq!(topic(&mut told).await, "/tasks/delete");
    });
    eventually("the task is gone", || daemon.ctr(["tasks", "ls", "-q"]).ok().text().is_empty().then_some(()));
    assert_eq!(processes("root", &bundle), Vec::<u32>::new(), "its processes are ended");
    assert!(!bundle.exists());
    assert!(!mounts().contains(&bundle.display().to_string()));
    assert_eq!(count(&daemon.state().join("s")), 0, "sockets");
    // The container can be started again.
    daemon.ctr(["tasks", "start", "--detach", "crash"]).ok();
    daemon.ctr(["tasks", "rm", "--force", "crash"]).ok();
}

#[test]
fn a_shim_of_others_outlives_the_daemon_and_tells_it_what_it_missed() {
    if !is_root("a container") {
        return;
    }
    let (mut daemon, _programs) = daemon();
    run_detached(&daemon, "stays");
    run_detached(&daemon, "ends");
    let ends = bundle(&daemon, "ends");
    daemon.kill();
    for pid in processes("root", &ends) {
        // The shim may have ended the other processes already.
        let _gone = PidFd::open(pid).and_then(|process| process.kill());
    }
    daemon.start_again();
    let status = |id: &str, wanted: &str| {
        let tasks = daemon.ctr(["tasks", "ls"]).ok();
        tasks.stdout.lines().any(|line| line.starts_with(id) && line.contains(wanted)).then_some(())
    };
    status("stays", "RUNNING").expect("it is found again");
    eventually("it has stopped", || status("ends", "STOPPED"));
    daemon.ctr(["tasks", "delete", "ends"]).ok().expect_stderr("exit code 137");
    daemon.ctr(["tasks", "rm", "--force", "stays"]).ok();
}
