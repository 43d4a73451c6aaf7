//! Hoist's shim under daemons: Debian's containerd, and Hoist's, which may be killed at any time.
//!
//! Container names differ from those of other tests, because `ctr` names cgroups after them, and all daemons of a
//! machine share these.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use testkit::{Containerd, Daemon, eventually, images, run};

use crate::checkpoint::criu_works;

const RUNTIME: &str = "io.containerd.hoist.v2";
const IMAGE: &str = "docker.io/library/busybox:latest";

/// Debian's containerd, with an image, and Hoist's shim in its PATH.
pub(crate) fn containerd() -> (Containerd, tempfile::TempDir) {
    let programs = tempfile::TempDir::new().expect("a temporary directory");
    let program = programs.path().join("containerd-shim-hoist-v2");
    std::os::unix::fs::symlink(testkit::shim_program(), program).expect("a writable directory");
    let containerd = Containerd::start_with_programs(Some(programs.path()))
        .expect("containerd is there; try: apt-get install containerd");
    containerd.ctr(["images".as_ref(), "import".as_ref(), images::busybox_archive().as_os_str()]).ok();
    (containerd, programs)
}

#[test]
fn every_task_command_of_ctr_works_under_containerd() {
    let (containerd, _programs) = containerd();
    let base = ["run", "--runtime", RUNTIME];
    let with = |rest: &[&str]| base.iter().chain(rest).map(ToString::to_string).collect::<Vec<_>>();
    let status = |id: &str, wanted: &str| {
        let tasks = containerd.ctr(["tasks", "ls"]).ok();
        tasks.stdout.lines().any(|line| line.starts_with(id) && line.contains(wanted)).then_some(())
    };
    let once =
        containerd.ctr(with(&["--rm", IMAGE, "cd-once", "sh", "-c", "echo out; exit 7"])).expect_code(7);
    assert_eq!(once.stdout, "out\n");

    // start, ls, exec, ps, metrics
    containerd.ctr(["containers", "create", "--runtime", RUNTIME, IMAGE, "cd-life", "sleep", "1000"]).ok();
    containerd.ctr(["tasks", "start", "--detach", "cd-life"]).ok();
    status("cd-life", "RUNNING").expect("it runs");
    let exec = ["tasks", "exec", "--exec-id", "one", "cd-life", "sh", "-c", "echo inside; exit 3"];
    assert_eq!(containerd.ctr(exec).expect_code(3).stdout, "inside\n");
    let processes = containerd.ctr(["tasks", "ps", "cd-life"]).ok();
    assert!(processes.text().lines().count() > 1, "{processes}");
    let metrics = containerd.ctr(["tasks", "metrics", "cd-life"]).ok();
    assert!(metrics.stdout.contains("memory") && metrics.stdout.contains("pids"), "{metrics}");

    // pause, resume, checkpoint
    containerd.ctr(["tasks", "pause", "cd-life"]).ok();
    status("cd-life", "PAUSED").expect("it is paused");
    let frozen = containerd.ctr(["tasks", "exec", "--exec-id", "two", "cd-life", "true"]);
    assert!(frozen.code != 0 && frozen.stderr.contains("paused"), "{frozen}");
    containerd.ctr(["tasks", "resume", "cd-life"]).ok();
    status("cd-life", "RUNNING").expect("it goes on");
    let checkpoint = containerd.ctr(["tasks", "checkpoint", "cd-life"]);
    if criu_works() {
        checkpoint.ok();
    } else {
        assert!(checkpoint.code != 0 && checkpoint.stderr.contains("checkpoint"), "{checkpoint}");
    }
    status("cd-life", "RUNNING").expect("it goes on, and what cannot be done does no harm");

    // kill, delete
    let running = containerd.ctr(["tasks", "delete", "cd-life"]);
    assert!(running.code != 0, "a task that runs is not deleted\n{running}");
    containerd.ctr(["tasks", "kill", "--signal", "SIGKILL", "cd-life"]).ok();
    eventually("the task has stopped", || status("cd-life", "STOPPED"));
    containerd.ctr(["tasks", "delete", "cd-life"]).ok().expect_stderr("exit code 137");
    containerd.ctr(["containers", "rm", "cd-life"]).ok();
    assert_eq!(containerd.ctr(["tasks", "ls", "-q"]).ok().text(), "");
}

#[test]
fn ctr_attaches_under_containerd() {
    let (containerd, _programs) = containerd();
    // Output before somebody attaches may go to the client that started the container.
    let waits = "while [ ! -e /go ]; do echo ready; usleep 10000; done; echo attached; exit 9";
    containerd.ctr(["run", "--runtime", RUNTIME, "-d", IMAGE, "cd-waits", "sh", "-c", waits]).ok();
    let mut attached = containerd
        .ctr_command(["tasks", "attach", "cd-waits"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ctr starts");
    let mut lines = BufReader::new(attached.stdout.take().expect("piped")).lines();
    let mut line = || lines.next().map(|line| line.expect("text"));
    assert_eq!(line().as_deref(), Some("ready"), "it is attached");
    // The exec that makes the container end may be killed with it.
    containerd.ctr(["tasks", "exec", "--exec-id", "go", "cd-waits", "touch", "/go"]);
    let last = std::iter::from_fn(line).find(|said| said != "ready");
    assert_eq!(last.as_deref(), Some("attached"));
    let output = attached.wait_with_output().expect("a child of ours");
    assert_eq!(output.status.code(), Some(9), "{output:?}");
    containerd.ctr(["tasks", "delete", "cd-waits"]);
    containerd.ctr(["containers", "rm", "cd-waits"]).ok();
}

fn daemon() -> Daemon {
    let daemon = Daemon::start();
    let archive = daemon.dir().join("busybox.tar");
    images::archive(&images::busybox(), "docker-archive", "busybox:latest", &archive);
    daemon.load(&archive);
    daemon
}

fn kill_shim_of(container: &str, daemon: &Daemon) {
    let pid = daemon.hoist(["inspect", "-f", "{{.State.Pid}}", container]).ok();
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.text())).expect("it runs");
    let shim =
        status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("the kernel's format").trim();
    run(Command::new("kill").args(["-KILL", shim])).ok();
}

#[test]
fn a_shim_killed_under_its_daemon_is_settled() {
    let daemon = daemon();
    daemon.hoist(["run", "-d", "--name", "dies", "--network", "none", "busybox", "sleep", "1000"]).ok();
    daemon.hoist(["run", "-d", "--name", "lives", "--network", "none", "busybox", "sleep", "1000"]).ok();
    let waiting = daemon.command(["wait", "dies"]).stdout(Stdio::piped()).spawn().expect("hoist starts");
    kill_shim_of("dies", &daemon);
    let waited = waiting.wait_with_output().expect("a child of ours");
    assert_eq!(String::from_utf8_lossy(&waited.stdout).trim(), "137");
    let state =
        |name: &str| daemon.hoist(["inspect", "-f", "{{.State.Status}}", name]).ok().text().to_owned();
    eventually("it is known to have ended", || (state("dies") == "exited").then_some(()));
    assert_eq!(state("lives"), "running");
    daemon.hoist(["system", "check"]).ok();
    daemon.hoist(["start", "dies"]).ok();
    assert_eq!(state("dies"), "running");
}

#[test]
fn many_containers_that_end_while_the_daemon_is_away_are_all_heard_of() {
    const CONTAINERS: usize = 12;
    let mut daemon = daemon();
    let shared = format!("{}:/shared", daemon.dir().display());
    let names: Vec<String> = (0..CONTAINERS).map(|number| format!("c{number}")).collect();
    let mut ids = Vec::new();
    for (number, name) in names.iter().enumerate() {
        let ends = format!("while [ ! -e /shared/go ]; do usleep 10000; done; exit {number}");
        let words =
            ["run", "-d", "--network", "none", "--name", name, "-v", &shared, "busybox", "sh", "-c", &ends];
        ids.push(daemon.hoist(words).ok().text().to_owned());
    }
    daemon.kill();
    std::fs::write(daemon.dir().join("go"), "").expect("a writable directory");
    for id in &ids {
        let record = daemon.state().join("tasks/default").join(id).join("exit.json");
        eventually("the exit is recorded without a daemon", || record.exists().then_some(()));
    }
    // One of the shims is killed as well, before it could report the exit.
    let id = &ids[5];
    run(Command::new("pkill").args(["-KILL", "-f", "--", &format!("-id {id} .* serve")])).ok();
    daemon.start_again();
    for (number, name) in names.iter().enumerate() {
        assert_eq!(daemon.hoist(["wait", name]).ok().text(), number.to_string(), "{name}");
    }
    daemon.hoist(["rm"].into_iter().chain(names.iter().map(String::as_str))).ok();
    daemon.hoist(["system", "check"]).ok();
}
