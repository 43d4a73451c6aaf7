//! Containers that have ended, before the daemon has recorded it: no command takes them for stopped, and the exit code
//! is not lost.

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use api::engine::{Call, Streams};
use api::grpc::tasks::GetRequest;
use api::grpc::tasks::tasks_client::TasksClient;
use testkit::{Daemon, MountsBelow, eventually, is_root, run};
use tonic::Code;

use crate::typed::{ask, code, on};

const DEADLINE: Duration = Duration::from_secs(30);

/// A program that exits with `code` when the test lets it go, and runs on after a restart. It says when it has checked
/// which of the two applies.
fn ends_once(code: u32) -> String {
    format!(
        "[ ! -e /shared/go ] || exec sleep 1000; : >/shared/looked; \
         while [ ! -e /shared/go ]; do usleep 10000; done; exit {code}"
    )
}

/// Starts a container with that program, and returns its id when it can be let go.
fn start(daemon: &Daemon, name: &str, policy: &str, code: u32) -> String {
    let shared = format!("{}:/shared", daemon.dir().display());
    let words = ["run", "-d", "--name", name, "--restart", policy, "--network", "none", "-v", &shared];
    let program = ends_once(code);
    let id = daemon.hoist(words.iter().chain(&["busybox", "sh", "-c", &program])).ok().text().to_owned();
    eventually("it has looked whether to end", || daemon.dir().join("looked").exists().then_some(()));
    id
}

fn let_go(daemon: &Daemon) {
    fs::write(daemon.dir().join("go"), "").expect("a writable directory");
}

fn state(daemon: &Daemon, name: &str) -> String {
    let words = ["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", name];
    daemon.hoist(words).ok().text().to_owned()
}

/// Between its end and the decision to restart it, a container does not run, and is not stopped either.
#[test]
fn a_container_between_its_end_and_its_restart_is_not_removed() {
    if !is_root("mounts") {
        return;
    }
    let daemon = Daemon::with_busybox();
    let id = start(&daemon, "again", "always", 3);
    // The task cannot be deleted, so the daemon cannot record its end.
    let held = daemon.state().join("tasks/default").join(&id).join("runtime").join(&id).join("held");
    fs::create_dir(&held).expect("its state is there");
    run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&held)).ok();
    let _mounts = MountsBelow(daemon.state());
    let_go(&daemon);
    eventually("its end is not settled", || daemon.log().contains("which is tried again").then_some(()));

    assert_eq!(state(&daemon, "again"), "restarting 3");
    daemon.hoist(["rm", "again"]).expect_code(1).expect_stderr("waits to be started again");
    daemon.hoist(["system", "prune", "-f"]).ok();
    run(Command::new("umount").arg(&held)).ok();
    eventually("it is started again", || state(&daemon, "again").starts_with("running").then_some(()));
    daemon.hoist(["rm", "-f", "again"]).ok();
    daemon.hoist(["system", "check"]).ok();
}

/// A removal while the daemon records the end waits for that, and is refused.
#[test]
fn a_removal_at_the_instant_of_an_end_does_not_keep_it_from_being_started_again() {
    let daemon = Daemon::with_busybox();
    let words = ["run", "-d", "--name", "ends", "--restart", "always", "--network", "none", "busybox"];
    daemon.hoist(words.iter().chain(&["usleep", "30000"])).ok();
    let restarts = || {
        let count = daemon.hoist(["inspect", "-f", "{{.RestartCount}}", "ends"]).ok();
        count.text().parse::<u32>().expect("a number")
    };
    let before = restarts();
    // Each removal hits another instant of the container's life.
    eventually("restarts", || {
        daemon.hoist(["rm", "ends"]).expect_code(1);
        (restarts() >= before + 4).then_some(())
    });
    daemon.hoist(["rm", "-f", "ends"]).ok();
}

/// The daemon dies between the deletion of the task and the shutdown of the shim: the exit code is in the bundle alone.
#[test]
fn an_exit_code_outlives_a_daemon_that_dies_before_the_shim_goes() {
    let mut daemon = Daemon::with_busybox();
    let id = start(&daemon, "job", "on-failure", 0);
    let bundle = daemon.state().join("tasks/default").join(&id);
    let bootstrap = fs::read(bundle.join("bootstrap.json")).expect("its shim is up");
    let bootstrap: serde_json::Value = serde_json::from_slice(&bootstrap).expect("JSON");
    daemon.kill();
    let_go(&daemon);
    eventually("its exit is noted", || bundle.join("exit.json").exists().then_some(()));
    let address = bootstrap["address"].as_str().expect("an address");
    testkit::ShimTask::at(&id, address).delete("").expect("it has ended");
    daemon.start_again();
    assert_eq!(daemon.hoist(["wait", "job"]).ok().text(), "0");
    assert_eq!(state(&daemon, "job"), "exited 0");
    assert!(!bundle.exists(), "its exit is recorded");
    daemon.hoist(["rm", "job"]).ok();
    daemon.hoist(["system", "check"]).ok();
}

/// A shim is killed, and the daemon fails at its first write after that.
#[test]
fn the_end_of_a_dead_shims_container_outlives_the_daemon_too() {
    if !is_root("a limit for another process") {
        return;
    }
    let mut daemon = Daemon::with_busybox();
    let id = start(&daemon, "job", "no", 0);
    let limit = format!("--fsize={}", daemon.log().len() + 4096);
    run(Command::new("prlimit").args(["--pid", &daemon.pid().to_string(), &limit])).ok();
    run(Command::new("pkill").args(["-KILL", "-f", "--", &format!("-id {id} .* serve")])).ok();
    eventually("the daemon dies", || UnixStream::connect(daemon.socket()).is_err().then_some(()));
    daemon.kill();
    daemon.start_again();
    assert_eq!(daemon.hoist(["wait", "job"]).ok().text(), "137");
    daemon.hoist(["rm", "job"]).ok();
    daemon.hoist(["system", "check"]).ok();
}

/// The daemon fails at its first write after the end of a container.
#[test]
fn an_exit_code_outlives_a_daemon_that_dies_as_it_records_it() {
    if !is_root("a limit for another process") {
        return;
    }
    let mut daemon = Daemon::with_busybox();
    start(&daemon, "job", "on-failure", 0);
    let log_len = daemon.log().len();
    // The limit leaves room for the log, and none for the database.
    let limit = format!("--fsize={}", log_len + 4096);
    run(Command::new("prlimit").args(["--pid", &daemon.pid().to_string(), &limit])).ok();
    let_go(&daemon);
    eventually("the daemon dies", || UnixStream::connect(daemon.socket()).is_err().then_some(()));
    daemon.kill();
    daemon.start_again();
    assert_eq!(daemon.hoist(["wait", "job"]).ok().text(), "0");
    assert_eq!(state(&daemon, "job"), "exited 0");
    daemon.hoist(["rm", "job"]).ok();
    daemon.hoist(["system", "check"]).ok();
}

/// An image's stop signal may be a real-time signal, or invalid.
#[test]
fn every_container_can_be_stopped_and_a_wrong_word_stops_none() {
    let daemon = Daemon::with_busybox();
    daemon.hoist(["create", "--name", "maker", "--network", "none", "busybox", "true"]).ok();
    let program =
        |signal: &str| format!("trap 'exit 7' {signal}; echo ready; while :; do usleep 10000; done");
    for (number, (word, caught)) in [("SIGRTMIN+3", "37"), ("SIGNONE", "TERM")].into_iter().enumerate() {
        let (image, name) = (format!("stops:{number}"), format!("stops{number}"));
        daemon.hoist(["commit", "--change", &format!("STOPSIGNAL {word}"), "maker", &image]).ok();
        let words = ["run", "-d", "--name", &name, "--restart", "always", "--network", "none", &image];
        daemon.hoist(words.iter().chain(&["sh", "-c", &program(caught)])).ok();
        eventually("it listens", || {
            daemon.hoist(["logs", &name]).ok().stdout.contains("ready").then_some(())
        });
        daemon.hoist(["stop", "--signal", "NOSUCH", &name]).expect_code(1).expect_stderr("NOSUCH");
        assert_eq!(state(&daemon, &name), "running 0");
        daemon.hoist(["stop", &name]).ok();
        assert_eq!(state(&daemon, &name), "exited 7");
    }
}

/// An obstacle in one part of a removal keeps neither the name nor the other parts, and the daemon tries again.
#[test]
fn what_a_removal_cannot_take_along_goes_later() {
    if !is_root("mounts") {
        return;
    }
    let daemon = Daemon::with_busybox();
    let _mounts = MountsBelow(daemon.root());
    let files = |id: &str| daemon.root().join("containers/default").join(id);
    let hold = |id: &str| {
        let held = files(id).join("held");
        fs::create_dir(&held).expect("its files are there");
        run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&held)).ok();
        held
    };
    let words = ["create", "--name", "one", "--network", "none", "-v", "/scratch", "busybox", "true"];
    let id = daemon.hoist(words).ok().text().to_owned();
    let held = hold(&id);
    daemon.hoist(["rm", "-v", "one"]).expect_code(1).expect_stderr(&id);
    assert_eq!(daemon.hoist(["volume", "ls", "-q"]).ok().text(), "");
    daemon.hoist(words).ok();
    daemon.hoist(["rm", "-v", "one"]).ok();
    run(Command::new("umount").arg(held)).ok();
    daemon.hoist(["system", "check", "--repair"]).ok();

    let words = ["run", "-d", "--rm", "--name", "one", "--network", "none", "busybox", "sleep", "1000"];
    let id = daemon.hoist(words).ok().text().to_owned();
    let held = hold(&id);
    daemon.hoist(["stop", "-t", "0", "one"]).ok();
    eventually("its end is not settled", || daemon.log().contains("which is tried again").then_some(()));
    run(Command::new("umount").arg(held)).ok();
    eventually("all of it goes", || (!files(&id).exists()).then_some(()));
    daemon.hoist(["system", "check"]).ok();
}

/// A shim keeps the exit status of an exec until the daemon deletes it.
#[test]
fn a_process_that_nobody_waits_for_is_forgotten_when_it_ends() {
    let daemon = Daemon::with_busybox();
    let words = ["run", "-d", "--name", "host", "--network", "none", "busybox", "sleep", "1000"];
    let container_id = daemon.hoist(words).ok().text().to_owned();
    let exec = api::engine::Exec {
        id: "host".into(),
        command: vec!["true".into()],
        env: Vec::new(),
        workdir: None,
        user: None,
        tty: false,
        privileged: false,
        detach: true,
        streams: Streams::default(),
    };
    on(&daemon, async |channel| {
        let client = client::Client::connect(&daemon.socket()).await.expect("the daemon listens");
        let mut tasks = TasksClient::new(channel);
        for _ in 0..10 {
            let started = client.call(&Call::Exec(Box::new(exec.clone()))).await.expect("it starts");
            let exec_id = started["ExecId"].as_str().expect("an id").to_owned();
            let wanted = GetRequest { container_id: container_id.clone(), exec_id };
            let begun = Instant::now();
            while code(tasks.get(ask(wanted.clone()))).await != Code::NotFound {
                assert!(begun.elapsed() < DEADLINE, "it ended, and is still there");
                tokio::task::yield_now().await;
            }
        }
    });
    daemon.hoist(["rm", "-f", "host"]).ok();
}
