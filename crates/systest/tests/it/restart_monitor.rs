//! Containers of `ctr` with the labels of containerd's restart monitor.

use std::fs;

use api::grpc::containers::DeleteContainerRequest;
use api::grpc::containers::containers_client::ContainersClient;
use serde_json::json;
use testkit::{Daemon, Registry, eventually, images, is_root};

use crate::births::spec;
use crate::cgroups::HIERARCHIES;
use crate::shim_waits::Waiter;
use crate::typed::{ask, on};

const OUR_RUNTIME: &str = "io.containerd.hoist.v2";

fn daemon(interval: &str) -> (Daemon, Registry, String) {
    let registry = Registry::start();
    let image = registry.push(&images::busybox(), images::TAG, "busybox") + ":latest";
    let daemon = Daemon::start_with(&[], &format!("[restart]\ninterval = {interval:?}\n"));
    daemon.ctr(["images", "pull", "--plain-http", &image]).ok();
    (daemon, registry, image)
}

/// Runs a container with labels `containerd.io/restart.…`.
fn run(daemon: &Daemon, image: &str, id: &str, labels: &[(&str, &str)], program: &str) {
    let mut args =
        vec!["run".to_owned(), "-d".into(), "--null-io".into(), "--runtime".into(), OUR_RUNTIME.into()];
    for (label, value) in labels {
        args.extend(["--label".into(), format!("containerd.io/restart.{label}={value}")]);
    }
    args.extend([image, id, "sh", "-c", program].map(str::to_owned));
    daemon.ctr(args).ok();
}

fn info(daemon: &Daemon, id: &str) -> String {
    daemon.ctr(["containers", "info", id]).ok().stdout
}

fn count(daemon: &Daemon, id: &str) -> u64 {
    let info: serde_json::Value = serde_json::from_str(&info(daemon, id)).expect("JSON");
    let count = info["Labels"]["containerd.io/restart.count"].as_str();
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

fn pid(daemon: &Daemon, id: &str) -> Option<String> {
    let tasks = daemon.ctr(["tasks", "ls"]).ok().stdout;
    let line = tasks.lines().find(|line| line.starts_with(id) && line.contains("RUNNING"))?;
    line.split_whitespace().nth(1).map(str::to_owned)
}

fn remove(daemon: &Daemon, id: &str) {
    daemon.ctr(["containers", "label", id, "containerd.io/restart.status="]).ok();
    daemon.ctr(["tasks", "rm", "--force", id]);
    daemon.ctr(["containers", "rm", id]).ok();
}

#[test]
fn a_container_that_should_run_is_started_again_and_counted() {
    let _hierarchies = HIERARCHIES.read();
    let (mut daemon, _registry, image) = daemon("2s");
    let log = daemon.dir().join("out.log");
    let uri = format!("file://{}", log.display());
    run(&daemon, &image, "rm-kept", &[("status", "running"), ("loguri", &uri)], "echo here; exec sleep 1000");
    let first = eventually("it runs", || pid(&daemon, "rm-kept"));
    daemon.ctr(["tasks", "kill", "--signal", "SIGKILL", "rm-kept"]).ok();
    let second = eventually("it runs again", || pid(&daemon, "rm-kept").filter(|pid| *pid != first));
    assert_eq!(count(&daemon, "rm-kept"), 1);
    // From the monitor on, output goes where the label says.
    eventually("its output is there", || {
        fs::read_to_string(&log).is_ok_and(|text| text == "here\n").then_some(())
    });

    // A daemon that comes back leaves what runs, and starts what ended without it.
    daemon.kill();
    daemon.start_again();
    assert_eq!(pid(&daemon, "rm-kept").as_ref(), Some(&second));
    daemon.kill();
    testkit::run(std::process::Command::new("kill").args(["-KILL", &second])).ok();
    daemon.start_again();
    eventually("it runs for the third time", || pid(&daemon, "rm-kept").filter(|pid| *pid != second));
    remove(&daemon, "rm-kept");
}

/// One whose creation waits for a hook, and one that is looked at after it.
#[test]
fn a_container_that_hangs_at_its_start_delays_no_other() {
    if !is_root("containers") {
        return;
    }
    let daemon = Daemon::start_with(&[], "[restart]\ninterval = \"1s\"\n");
    let waiter = Waiter::below(daemon.dir(), "hook");
    create(&daemon, "rm-a", |spec| spec["hooks"] = json!({ "createRuntime": waiter.hook() }));
    create(&daemon, "rm-b", |_| {});
    waiter.is_there();
    eventually("the other runs", || {
        let tasks = daemon.own_ctr(["tasks", "ls"]).ok().stdout;
        tasks.lines().any(|line| line.starts_with("rm-b") && line.contains("RUNNING")).then_some(())
    });
    daemon.own_ctr(["containers", "label", "rm-a", "containerd.io/restart.status="]).ok();
    daemon.own_ctr(["tasks", "kill", "-s", "KILL", "rm-a"]).ok();
    waiter.goes();
    for id in ["rm-a", "rm-b"] {
        daemon.own_ctr(["containers", "label", id, "containerd.io/restart.status="]).ok();
        daemon.own_ctr(["tasks", "rm", "--force", id]);
        daemon.own_ctr(["containers", "rm", id]).ok();
    }
}

/// Makes a container without a task, which the monitor is to start.
fn create(daemon: &Daemon, id: &str, change: impl FnOnce(&mut serde_json::Value)) {
    let config = spec(daemon, id, change);
    let (config, label) = (config.to_str().expect("plain"), "containerd.io/restart.status=running");
    daemon
        .own_ctr(["containers", "create", "--runtime", OUR_RUNTIME, "--label", label, "--config", config, id])
        .ok();
}

/// Who removes one has looked for its task, and there was none.
#[test]
fn a_container_removed_during_its_restart_does_not_run() {
    if !is_root("containers") {
        return;
    }
    let daemon = Daemon::start_with(&[], "[restart]\ninterval = \"1s\"\n");
    let waiter = Waiter::below(daemon.dir(), "hook");
    create(&daemon, "rm-going", |spec| spec["hooks"] = json!({ "createRuntime": waiter.hook() }));
    waiter.is_there();
    on(&daemon, async |channel| {
        let delete = DeleteContainerRequest { id: "rm-going".into() };
        ContainersClient::new(channel).delete(ask(delete)).await.unwrap();
    });
    waiter.open_door();
    let bundle = daemon.state().join("tasks/default/rm-going");
    eventually("nothing is left of its task", || (!bundle.exists()).then_some(()));
    assert_eq!(daemon.own_ctr(["tasks", "ls", "-q"]).ok().text(), "");
}

#[test]
fn a_restarted_container_has_its_terminal_again() {
    if !is_root("containers") {
        return;
    }
    let daemon = Daemon::start_with(&[], "[restart]\ninterval = \"1s\"\n");
    create(&daemon, "rm-tty", |spec| {
        spec["process"] = testkit::process("test -t 0 && test -t 1 && : > /data/had-one; exec sleep 1000");
        spec["process"]["terminal"] = json!(true);
        let more = [
            json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] }),
            json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"] }),
        ];
        spec["mounts"].as_array_mut().expect("mounts").extend(more);
    });
    let note = daemon.dir().join("root/data/had-one");
    eventually("it has a terminal", || note.exists().then_some(()));
    daemon.own_ctr(["containers", "label", "rm-tty", "containerd.io/restart.status="]).ok();
    daemon.own_ctr(["tasks", "rm", "--force", "rm-tty"]).ok();
    daemon.own_ctr(["containers", "rm", "rm-tty"]).ok();
}

#[test]
fn policies_say_when() {
    let _hierarchies = HIERARCHIES.read();
    let (daemon, _registry, image) = daemon("1s");
    let on_failure = [("status", "running"), ("policy", "on-failure:2")];
    run(&daemon, &image, "rm-fails", &on_failure, "exit 3");
    run(&daemon, &image, "rm-ends", &on_failure, "exit 0");
    let explicitly = [("status", "running"), ("policy", "unless-stopped"), ("explicitly-stopped", "true")];
    run(&daemon, &image, "rm-stopped", &explicitly, "exit 3");
    run(&daemon, &image, "rm-never", &[("status", "running"), ("policy", "no")], "exit 3");
    run(&daemon, &image, "rm-always", &[("status", "running"), ("policy", "always")], "exit 0");
    run(&daemon, &image, "rm-plain", &[], "exit 3");
    eventually("it fails for the last time", || (count(&daemon, "rm-fails") == 2).then_some(()));
    // What always runs was started some times meanwhile: the others had their chances.
    eventually("another is started again and again", || (count(&daemon, "rm-always") >= 3).then_some(()));
    for id in ["rm-ends", "rm-stopped", "rm-never", "rm-plain"] {
        assert_eq!(count(&daemon, id), 0, "{id}");
    }
    assert_eq!(count(&daemon, "rm-fails"), 2);

    // A label makes the monitor end one that runs.
    run(&daemon, &image, "rm-wanted", &[("status", "running")], "exec sleep 1000");
    eventually("it runs", || pid(&daemon, "rm-wanted"));
    daemon.ctr(["containers", "label", "rm-wanted", "containerd.io/restart.status=stopped"]).ok();
    eventually("its task is gone", || {
        (!daemon.ctr(["tasks", "ls", "-q"]).ok().stdout.contains("rm-wanted")).then_some(())
    });
    for id in ["rm-fails", "rm-ends", "rm-stopped", "rm-never", "rm-always", "rm-plain", "rm-wanted"] {
        remove(&daemon, id);
    }
}
