//! Creations that hang: clients can list, kill and delete a container while its shim creates it.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::ScopedJoinHandle;

use api::grpc::containers::GetContainerRequest;
use api::grpc::containers::containers_client::ContainersClient;
use api::grpc::tasks::tasks_client::TasksClient;
use api::grpc::tasks::{DeleteTaskRequest, KillRequest, WaitRequest};
use serde_json::{Value, json};
use testkit::{DEADLINE, Daemon, Finished, SilentDisk, clean_up, eventually, is_root, run};
use tokio::time::timeout;

use crate::shim_waits::Waiter;
use crate::typed::{ask, on};

/// Writes a spec whose root file system has a shell.
pub(crate) fn spec(daemon: &Daemon, id: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "process": testkit::process("exec sleep 1000"),
        "root": { "path": root(daemon) },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": {
            "namespaces": [{ "type": "pid" }, { "type": "mount" }],
            "cgroupsPath": format!("{}/{id}", daemon.cgroup()),
        },
    });
    change(&mut spec);
    let file = daemon.dir().join(format!("{id}.json"));
    fs::write(&file, spec.to_string()).expect("a writable directory");
    file
}

pub(crate) fn root(daemon: &Daemon) -> PathBuf {
    let root = daemon.dir().join("root");
    for folder in ["bin", "proc", "dev", "data"] {
        fs::create_dir_all(root.join(folder)).expect("a writable directory");
    }
    let shell = root.join("bin/busybox");
    // An executable that runs cannot be written to (ETXTBSY).
    if !shell.exists() {
        fs::copy("/bin/busybox", shell).expect("busybox-static is installed");
    }
    root
}

/// Runs a container of that spec by Hoist's shim.
pub(crate) fn run_spec(daemon: &Daemon, id: &str, spec: &Path, options: &[&str]) -> Finished {
    let spec = spec.display().to_string();
    let words = ["run", "--detach", "--runtime", "io.containerd.hoist.v2", "--config", &spec];
    daemon.own_ctr(words.iter().chain(options).chain(&[id]))
}

/// Runs `meanwhile` while `ctr run` creates a container. Returns the output of `ctr run`.
fn while_it_is_created(daemon: &Daemon, id: &str, spec: &Path, meanwhile: impl FnOnce()) -> Finished {
    /// Ends the creation when dropped, so that a failed test does not wait for it.
    struct End<'a>(&'a Daemon, &'a str);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                clean_up(|| drop(self.0.own_ctr(["tasks", "kill", "-s", "KILL", self.1])));
            }
        }
    }
    std::thread::scope(|scope| {
        let _end = End(daemon, id);
        let creation = scope.spawn(|| run_spec(daemon, id, spec, &[]));
        meanwhile();
        creation.join().expect("no panic")
    })
}

#[test]
fn a_creation_that_hangs_is_seen_and_ended() {
    if !is_root("containers") {
        return;
    }
    let daemon = Daemon::start();
    for (id, end) in [
        ("killed", &["tasks", "kill", "-s", "KILL", "killed"][..]),
        ("deleted", &["tasks", "delete", "deleted"]),
        ("forced", &["tasks", "delete", "--force", "forced"]),
    ] {
        let waiter = Waiter::below(daemon.dir(), id);
        let spec = spec(&daemon, id, |spec| spec["hooks"] = json!({ "createRuntime": waiter.hook() }));
        let creation = while_it_is_created(&daemon, id, &spec, || {
            waiter.is_there();
            let listed = daemon.own_ctr(["tasks", "ls"]).ok();
            assert!(
                listed.stdout.lines().any(|line| line.contains(id) && line.contains("CREATED")),
                "{listed}"
            );
            daemon.own_ctr(["tasks", "kill", "-s", "TERM", id]).expect_code(1).expect_stderr("not");
            daemon.own_ctr(end);
            waiter.goes();
        });
        assert!(creation.code != 0 && creation.stderr.contains("killed"), "{id}: {creation}");
        assert!(!daemon.own_ctr(["tasks", "ls"]).ok().stdout.contains(id), "{id}");
        assert!(!daemon.state().join("tasks/default").join(id).exists(), "{id}: its bundle is gone");
        // The id can be used again.
        daemon.own_ctr(["containers", "rm", id]);
        let whole = self::spec(&daemon, id, |_| {});
        while_it_is_created(&daemon, id, &whole, || {}).ok();
        daemon.own_ctr(["tasks", "delete", "--force", id]).ok();
    }
}

/// A daemon with an image, a directory of the host, and the argument that makes it a volume.
fn daemon_and_volume() -> (Daemon, PathBuf, String) {
    let daemon = Daemon::with_busybox();
    let dir = daemon.dir().join("data");
    fs::create_dir_all(dir.join("below")).expect("a writable directory");
    let volume = format!("{}:/data", dir.join("below").display());
    (daemon, dir, volume)
}

/// Runs `meanwhile` while `hoist start` waits for a volume on a silent disk. `meanwhile` owns the disk: if it fails,
/// the disk goes, and the waiting processes with it.
fn while_its_disk_is_silent(
    daemon: &Daemon,
    dir: &Path,
    name: &str,
    meanwhile: impl FnOnce(SilentDisk, ScopedJoinHandle<'_, Finished>),
) {
    std::thread::scope(|scope| {
        let disk = SilentDisk::over(dir);
        let start = scope.spawn(|| daemon.hoist(["start", name]));
        disk.is_asked();
        meanwhile(disk, start);
    });
}

/// The shim is blocked inside the kernel and answers nothing. It is killed: the container has no state yet that could
/// be lost.
#[test]
fn a_creation_that_waits_for_a_silent_disk_is_ended() {
    if !is_root("containers") {
        return;
    }
    let (daemon, dir, volume) = daemon_and_volume();
    for (name, end) in [
        ("killed", &["kill", "killed"][..]),
        ("stopped", &["stop", "-t", "1", "stopped"]),
        ("removed", &["rm", "-f", "removed"]),
    ] {
        daemon.hoist(["create", "--name", name, "-v", &volume, "busybox", "sleep", "1000"]).ok();
        while_its_disk_is_silent(&daemon, &dir, name, |disk, start| {
            daemon.hoist(end).ok();
            let start = start.join().expect("no panic");
            assert_ne!(start.code, 0, "{start}");
            drop(disk);
        });
        if name != "removed" {
            daemon.hoist(["start", name]).ok();
            daemon.hoist(["rm", "-f", name]).ok();
        }
        daemon.hoist(["inspect", name]).expect_code(1).expect_stderr(name);
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("a proc");
        assert!(!mounts.contains(daemon.state().join("tasks").to_str().expect("plain")), "{name}: {mounts}");
    }
}

/// A `stop` while the container starts counts once it runs: the container is stopped, and its restart policy leaves it
/// so.
#[test]
fn a_stop_during_a_start_is_not_forgotten() {
    if !is_root("containers") {
        return;
    }
    let (daemon, dir, volume) = daemon_and_volume();
    let words = ["create", "--name", "one", "--restart", "always", "-v", &volume, "busybox", "sleep", "1000"];
    let id = daemon.hoist(words).ok().text().to_owned();
    while_its_disk_is_silent(&daemon, &dir, "one", |disk, start| {
        let mut stop = daemon.command(["stop", "-t", "3", "one"]).spawn().expect("hoist starts");
        eventually("the stop is recorded", || {
            let id = id.clone();
            let record = on(&daemon, async |channel| {
                ContainersClient::new(channel)
                    .get(ask(GetContainerRequest { id }))
                    .await
                    .expect("a container")
            });
            let kept = record.into_inner().container.unwrap_or_default().extensions;
            let says = |extension: &prost_types::Any| {
                String::from_utf8_lossy(&extension.value).contains("\"stopped_by_hand\":true")
            };
            kept.values().any(says).then_some(())
        });
        drop(disk);
        start.join().expect("no panic");
        assert!(stop.wait().expect("a child of ours").success());
    });
    // Longer than the first pause of a restart policy.
    daemon.hoist(["run", "--rm", "--network", "none", "busybox", "sleep", "1"]).ok();
    let state = daemon.hoist(["inspect", "-f", "{{.State.Running}}", "one"]).ok();
    assert_eq!(state.text(), "false");
    daemon.hoist(["rm", "-f", "one"]).ok();
}

/// A spec with a bind mount below a directory on a silent disk.
fn spec_below(daemon: &Daemon, id: &str, dir: &Path) -> PathBuf {
    fs::create_dir_all(dir.join("below")).expect("a writable directory");
    spec(daemon, id, |spec| {
        let mounts = spec["mounts"].as_array_mut().expect("a list");
        mounts.push(json!({
            "destination": "/data", "type": "bind", "source": dir.join("below"), "options": ["bind"],
        }));
    })
}

#[test]
fn a_wait_for_a_creation_returns_when_it_is_killed() {
    if !is_root("containers") {
        return;
    }
    let daemon = Daemon::start();
    let dir = daemon.dir().join("data");
    let spec = spec_below(&daemon, "waited", &dir);
    let disk = SilentDisk::over(&dir);
    let creation = while_it_is_created(&daemon, "waited", &spec, || {
        disk.is_asked();
        on(&daemon, async |channel| {
            let mut waiter = TasksClient::new(channel.clone());
            let wait =
                waiter.wait(ask(WaitRequest { container_id: "waited".into(), ..WaitRequest::default() }));
            let mut killer = TasksClient::new(channel);
            let kill = KillRequest { container_id: "waited".into(), signal: 9, ..KillRequest::default() };
            // The kill waits until the shim's time for an answer is over, so the wait reaches the shim before the shim
            // dies.
            let both = async { tokio::join!(wait, killer.kill(ask(kill))) };
            let (exit, killed) = timeout(DEADLINE, both).await.expect("both are answered");
            killed.expect("it is killed");
            assert_eq!(exit.expect("it was there").into_inner().exit_status, 137);
        });
    });
    assert_ne!(creation.code, 0, "{creation}");
}

/// Kills the daemon when `hangs` sees that the creation hangs, and starts the next one.
fn leave_to_the_next_daemon(daemon: &mut Daemon, id: &str, spec: &Path, hangs: impl FnOnce()) {
    while_it_is_created(daemon, id, spec, || {
        hangs();
        run(Command::new("kill").args(["-KILL", &daemon.pid().to_string()])).ok();
    });
    daemon.kill();
    daemon.start_again();
}

#[test]
fn a_creation_that_hangs_is_deleted_by_the_next_daemon() {
    if !is_root("containers") {
        return;
    }
    let mut daemon = Daemon::start();
    let dir = daemon.dir().join("data");
    let waiter = Waiter::below(daemon.dir(), "hook");
    let hooked = spec(&daemon, "hook", |spec| spec["hooks"] = json!({ "createRuntime": waiter.hook() }));
    leave_to_the_next_daemon(&mut daemon, "hook", &hooked, || waiter.is_there());
    delete_left(&daemon, "hook");
    waiter.goes();
    let below = spec_below(&daemon, "disk", &dir);
    let disk = SilentDisk::over(&dir);
    leave_to_the_next_daemon(&mut daemon, "disk", &below, || disk.is_asked());
    delete_left(&daemon, "disk");
    drop(disk);
}

/// Deletes a task, and checks that nothing of it is left.
fn delete_left(daemon: &Daemon, id: &str) {
    let exit = on(daemon, async |channel| {
        let mut tasks = TasksClient::new(channel);
        let delete = tasks.delete(ask(DeleteTaskRequest { container_id: id.into() }));
        timeout(DEADLINE, delete).await.expect("it is answered").expect("it is deleted").into_inner()
    });
    assert_eq!(exit.exit_status, 137, "{id}");
    assert!(!daemon.state().join("tasks/default").join(id).exists(), "{id}: its bundle is gone");
    // The id can be used again.
    daemon.own_ctr(["containers", "rm", id]);
    let whole = spec(daemon, id, |_| {});
    while_it_is_created(daemon, id, &whole, || {}).ok();
    daemon.own_ctr(["tasks", "delete", "--force", id]).ok();
}

/// The daemon that began the creation is gone, with all that it knew of it.
#[test]
fn a_creation_that_hangs_is_ended_by_the_next_daemon() {
    if !is_root("containers") {
        return;
    }
    let mut daemon = Daemon::start();
    let dir = daemon.dir().join("data");
    let spec = spec_below(&daemon, "left", &dir);
    let disk = SilentDisk::over(&dir);
    leave_to_the_next_daemon(&mut daemon, "left", &spec, || disk.is_asked());
    daemon.own_ctr(["tasks", "kill", "-s", "KILL", "left"]).ok();
    eventually("it is cleared away", || {
        let listed = daemon.own_ctr(["tasks", "ls"]).ok();
        (!listed.stdout.contains("left")).then_some(())
    });
    assert!(!daemon.state().join("tasks/default/left").exists(), "its bundle is gone");
    drop(disk);
}

/// Whether the source exists cannot be found out; only the callers that name it wait for that.
#[test]
fn a_source_on_a_disk_that_does_not_answer_holds_up_few() {
    if !is_root("a file system in user space") {
        return;
    }
    let daemon = Daemon::with_busybox();
    let silent = daemon.dir().join("silent");
    fs::create_dir(&silent).expect("a writable directory");
    let disk = SilentDisk::over(&silent);
    let bind = format!("type=bind,source={},target=/data", silent.join("source").display());
    let words = ["create", "--network", "none", "--mount", &bind, "busybox", "true"];
    let mut creating = daemon.command(words);
    let mut creating = creating.stderr(Stdio::piped()).spawn().expect("hoist starts");
    disk.is_asked();
    daemon.hoist(["create", "--network", "none", "busybox", "true"]).ok();
    let ended = eventually("it is told", || creating.try_wait().expect("a child of ours"));
    assert!(!ended.success());
    let mut said = String::new();
    creating.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
    assert!(said.contains("does not answer"), "{said}");
    drop(disk);
    daemon.hoist(words).expect_code(125).expect_stderr("does not exist");
}
