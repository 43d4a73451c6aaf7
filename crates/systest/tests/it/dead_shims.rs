//! Shims that die or fail while part of their container cannot be removed: no caller waits, nothing is forgotten, and
//! the daemon removes it as soon as it can.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use testkit::{Daemon, ShimHost, eventually, is_root, run};
use types::ErrorKind;

use crate::births::{run_spec, spec};
use crate::deleted::delete_record;

fn bundle(daemon: &Daemon, id: &str) -> PathBuf {
    daemon.state().join("tasks/default").join(id)
}

/// The note of how to remove a container, made unreadable until it is dropped.
struct Torn {
    note: PathBuf,
    text: String,
}

impl Torn {
    fn of(bundle: &Path) -> Torn {
        let note = bundle.join("runtime.json");
        let text = fs::read_to_string(&note).expect("our shim notes what it makes");
        fs::write(&note, "{").expect("a writable bundle");
        Torn { note, text }
    }

    fn mend(self) {
        fs::write(&self.note, &self.text).expect("the bundle is still there, with its notes");
    }
}

fn kill_shim(id: &str) {
    run(Command::new("pkill").args(["-KILL", "-f", "--", &format!("-id {id} .* serve")])).ok();
}

#[test]
fn what_a_dead_shim_leaves_holds_up_nobody() {
    if !is_root("containers") {
        return;
    }
    let daemon = Daemon::with_busybox();
    let run = |name: &str, policy: &str| {
        let words = ["run", "-d", "--name", name, "--restart", policy, "--network", "none"];
        daemon.hoist(words.iter().chain(&["busybox", "sleep", "1000"])).ok().text().to_owned()
    };
    let (one, again) = (run("one", "no"), run("again", "always"));
    let pid = |name: &str| daemon.hoist(["inspect", "-f", "{{.State.Pid}}", name]).ok().text().to_owned();
    let before = pid("again");
    let torn = [&one, &again].map(|id| Torn::of(&bundle(&daemon, id)));
    kill_shim(&one);
    kill_shim(&again);
    assert_eq!(daemon.hoist(["wait", "one"]).ok().text(), "137");
    let state = ["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "one"];
    assert_eq!(daemon.hoist(state).ok().text(), "exited 137");
    // Its processes may still run, so no new ones are started beside them.
    daemon.hoist(["start", "one"]).expect_code(1).expect_stderr("cannot be cleared away yet");
    daemon.hoist(["rm", "again"]).expect_code(1).expect_stderr("cannot be cleared away yet");
    for torn in torn {
        torn.mend();
    }
    eventually("what is left is taken down", || (!bundle(&daemon, &one).exists()).then_some(()));
    eventually("the policy holds", || {
        let now = pid("again");
        (now != "0" && now != before).then_some(())
    });
    eventually("its place is free", || (daemon.hoist(["start", "one"]).code == 0).then_some(()));
    daemon.hoist(["rm", "-f", "one", "again"]).ok();
    daemon.hoist(["system", "check"]).ok();
}

/// Processes that may still run may write to its files and volumes, and have its address.
#[test]
fn of_what_may_still_be_running_nothing_is_taken_away() {
    if !is_root("containers") {
        return;
    }
    let daemon = Daemon::with_busybox();
    let run = |name: &str, flags: &[&str]| {
        let words = ["run", "-d", "--name", name, "-v", "/scratch"];
        daemon.hoist(words.iter().chain(flags).chain(&["busybox", "sleep", "1000"])).ok().text().to_owned()
    };
    let ids = [run("thrown-away", &["--rm"]), run("kept", &[])];
    let address =
        || daemon.hoist(["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "kept"]).ok().text().to_owned();
    let had = address();
    let torn = ids.each_ref().map(|id| Torn::of(&bundle(&daemon, id)));
    ids.iter().for_each(|id| kill_shim(id));
    for id in &ids {
        assert_eq!(daemon.hoist(["wait", id]).ok().text(), "137");
    }
    eventually("neither end is settled", || {
        let log = daemon.log();
        let tried =
            |id: &String| log.lines().any(|line| line.contains("which is tried again") && line.contains(id));
        ids.iter().all(tried).then_some(())
    });
    for words in [&["rm", "kept"][..], &["rm", "-f", "kept"], &["rm", "-f", "thrown-away"]] {
        daemon.hoist(words).expect_code(1).expect_stderr("cannot be cleared away yet");
    }
    daemon.hoist(["system", "prune", "-f"]).ok();
    daemon.hoist(["volume", "prune", "-f"]).ok();
    assert_eq!(daemon.hoist(["ps", "-aq"]).ok().text().lines().count(), 2);
    assert_eq!(daemon.hoist(["volume", "ls", "-q"]).ok().text().lines().count(), 2);
    assert_eq!(address(), had);
    for torn in torn {
        torn.mend();
    }
    eventually("one goes, as it was to", || {
        (daemon.hoist(["ps", "-aq"]).ok().text().lines().count() == 1).then_some(())
    });
    assert_eq!(daemon.hoist(["volume", "ls", "-q"]).ok().text().lines().count(), 1);
    eventually("the other can go", || (daemon.hoist(["rm", "-v", "kept"]).code == 0).then_some(()));
    daemon.hoist(["system", "check"]).ok();
}

#[test]
fn an_exit_that_was_noted_is_told_although_its_container_cannot_be_taken_down() {
    if !is_root("containers") {
        return;
    }
    let mut daemon = Daemon::with_busybox();
    let shared = format!("{}:/shared", daemon.dir().display());
    let ends = "while [ ! -e /shared/go ]; do usleep 10000; done; exit 42";
    let words = ["run", "-d", "--name", "ends", "-v", &shared, "busybox", "sh", "-c", ends];
    let id = daemon.hoist(words).ok().text().to_owned();
    daemon.kill();
    fs::write(daemon.dir().join("go"), "").expect("a writable directory");
    let bundle = bundle(&daemon, &id);
    eventually("its exit is noted", || bundle.join("exit.json").exists().then_some(()));
    let torn = Torn::of(&bundle);
    kill_shim(&id);
    daemon.start_again();
    assert_eq!(daemon.hoist(["wait", "ends"]).ok().text(), "42");
    torn.mend();
    eventually("what is left is taken down", || (!bundle.exists()).then_some(()));
    eventually("its end is settled", || (daemon.hoist(["system", "check"]).code == 0).then_some(()));
}

/// The bundle says which volumes the container has, and it may be lost or incomplete.
#[test]
fn volumes_of_what_may_still_be_running_without_a_record_are_in_use() {
    if !is_root("containers") {
        return;
    }
    let daemon = Daemon::with_busybox();
    let words = ["run", "-d", "--network", "none", "-v", "crop:/crop", "busybox", "sleep", "1000"];
    let id = daemon.hoist(words).ok().text().to_owned();
    let short = &id[..12];
    daemon.hoist(["volume", "create", "bare"]).ok();
    daemon.hoist(["volume", "create", "other"]).ok();
    let torn = Torn::of(&bundle(&daemon, &id));
    delete_record(&daemon, &id);
    kill_shim(&id);
    let (spec, kept) = (bundle(&daemon, &id).join("config.json"), daemon.dir().join("config.json"));
    fs::copy(&spec, &kept).expect("a writable directory");
    fs::remove_file(&spec).expect("a writable bundle");
    eventually("its shim is dead", || daemon.log().contains("clean up after a dead shim").then_some(()));
    daemon.hoist(["volume", "rm", "crop"]).expect_code(1).expect_stderr(short);
    daemon.hoist(["volume", "prune", "--all", "-f"]).ok();
    let listed = daemon.hoist(["volume", "ls", "-q"]).ok().text().to_owned();
    assert_eq!(listed, "crop", "nobody has the others");
    // As from an earlier version, without notes: the container may have any volume.
    daemon.hoist(["volume", "create", "bare"]).ok();
    let note = daemon.root().join("containers/default").join(&id).join("volumes.json");
    fs::remove_file(&note).expect("it was noted which it has");
    for broken in ["", "{"] {
        if !broken.is_empty() {
            fs::write(&spec, broken).expect("a writable bundle");
        }
        for name in ["crop", "bare"] {
            daemon.hoist(["volume", "rm", name]).expect_code(1).expect_stderr(short);
        }
        daemon.hoist(["volume", "prune", "--all", "-f"]).ok();
        assert_eq!(daemon.hoist(["volume", "ls", "-q"]).ok().text(), "bare\ncrop");
        let fill = ["run", "--rm", "--network", "none", "-v", "bare:/etc", "busybox", "true"];
        daemon.hoist(fill).ok();
    }
    fs::copy(&kept, &spec).expect("a writable bundle");
    torn.mend();
    eventually("what is left is taken down", || (!bundle(&daemon, &id).exists()).then_some(()));
    eventually("nobody has it", || (daemon.hoist(["volume", "rm", "crop"]).code == 0).then_some(()));
}

/// The shim has died, and the daemon has not recorded the container's end, when a client starts it again.
#[test]
fn a_start_waits_for_the_end_before() {
    if !is_root("containers") {
        return;
    }
    let daemon = Daemon::with_busybox();
    let words = ["run", "-d", "--name", "one", "--network", "none", "busybox", "sleep", "1000"];
    let id = daemon.hoist(words).ok().text().to_owned();
    let pid = || daemon.hoist(["inspect", "-f", "{{.State.Pid}}", "one"]).ok().text().to_owned();
    for attempt in 0..50 {
        let before = pid();
        kill_shim(&id);
        let started = daemon.hoist(["start", "one"]);
        assert_eq!(started.code, 0, "attempt {attempt}: {started}");
        let now = pid();
        assert!(now != before && now != "0", "attempt {attempt}: {before}, {now}");
    }
    daemon.hoist(["rm", "-f", "one"]).ok();
    assert_eq!(daemon.hoist(["system", "check"]).ok().text(), "nothing is left over");
}

/// The notes are the only record of its processes and mounts.
#[test]
fn what_a_failed_creation_leaves_is_not_forgotten() {
    if !is_root("containers") {
        return;
    }
    let mut daemon = Daemon::start();
    let bundle = bundle(&daemon, "half");
    let (note, kept) = (bundle.join("runtime.json"), daemon.dir().join("kept.json"));
    let tears =
        format!("cp {note} {kept}; echo {{ > {note}; exit 1", note = note.display(), kept = kept.display());
    let hook = json!({ "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", tears] }] });
    let half = spec(&daemon, "half", |spec| spec["hooks"] = hook);
    assert_ne!(run_spec(&daemon, "half", &half, &[]).code, 0);
    assert!(note.exists(), "the note stays");
    daemon.own_ctr(["containers", "rm", "half"]);
    let whole = spec(&daemon, "half", |_| {});
    run_spec(&daemon, "half", &whole, &[]).expect_code(1).expect_stderr("already exists");
    daemon.kill();
    fs::copy(kept, note).expect("the bundle is there");
    daemon.start_again();
    assert!(!bundle.exists(), "a daemon that starts takes it down");
    daemon.own_ctr(["containers", "rm", "half"]);
    run_spec(&daemon, "half", &whole, &[]).ok();
    daemon.own_ctr(["tasks", "delete", "--force", "half"]).ok();
}

#[test]
fn a_delete_that_fails_says_so_and_can_be_tried_again() {
    if !is_root("containers") {
        return;
    }
    let host = ShimHost::new();
    let events = host.listen();
    // With hooks, the shim deletes the container in a worker process.
    for (id, hooks) in [("plain", json!({})), ("hooked", json!({ "poststop": [{ "path": "/bin/true" }] }))] {
        let task = host.container(id, "exit 7").with(|container| container.spec["hooks"] = hooks).run();
        assert_eq!(task.wait(""), 7);
        let held = host.bundle(id).join("runtime").join(id).join("held");
        fs::create_dir(&held).expect("its state is there");
        run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&held)).ok();
        for _ in 0..2 {
            let error = task.delete("").map(drop).expect_err(id);
            assert!(error.chain().contains("remove"), "{}", error.chain());
            assert_eq!(task.wait(""), 7, "{id}: it is known");
        }
        run(Command::new("umount").arg(&held)).ok();
        assert_eq!(task.delete("").expect("nothing is in the way").exit_status, 7);
        assert!(task.state("").unwrap_err().is(ErrorKind::NotFound));
        events.wait_for("/tasks/delete", id);
        let told = events.told();
        assert_eq!(told.iter().filter(|(topic, of)| topic == "/tasks/delete" && of == id).count(), 1);
    }
}

#[test]
fn what_our_shim_warns_of_is_in_the_daemons_log() {
    if !is_root("a container") {
        return;
    }
    let daemon = Daemon::start();
    let hook = json!({ "poststop": [{ "path": "/bin/false" }] });
    let spec = spec(&daemon, "warns", |spec| {
        spec["hooks"] = hook;
        spec["process"]["args"] = json!(["/bin/busybox", "true"]);
    });
    run_spec(&daemon, "warns", &spec, &[]).ok();
    eventually("it is deleted", || (daemon.own_ctr(["tasks", "delete", "warns"]).code == 0).then_some(()));
    eventually("it is logged", || {
        let log = daemon.log();
        log.lines().any(|line| line.contains("warns") && line.contains("poststop")).then_some(())
    });
}

/// As where the daemon's connection broke after the shim had deleted the container, and before its answer.
#[test]
fn a_task_whose_deletion_was_not_answered_can_be_deleted() {
    if !is_root("a container") {
        return;
    }
    let daemon = Daemon::start();
    let spec = spec(&daemon, "unanswered", |spec| {
        spec["process"]["args"] = json!(["/bin/busybox", "sh", "-c", "exit 42"]);
    });
    run_spec(&daemon, "unanswered", &spec, &[]).ok();
    let bundle = bundle(&daemon, "unanswered");
    eventually("its exit is noted", || bundle.join("exit.json").exists().then_some(()));
    let bootstrap = fs::read(bundle.join("bootstrap.json")).expect("its shim is up");
    let bootstrap: serde_json::Value = serde_json::from_slice(&bootstrap).expect("JSON");
    let address = bootstrap["address"].as_str().expect("an address");
    let shim = testkit::ShimTask::at("unanswered", address);
    eventually("the shim deletes it", || shim.delete("").is_ok().then_some(()));
    let deleted = daemon.own_ctr(["tasks", "delete", "unanswered"]).ok();
    assert!(deleted.stderr.contains("exit code 42"), "{deleted}");
    assert!(!bundle.exists() && shim.connect_call().is_err(), "the shim is gone");
    let listed = daemon.own_ctr(["tasks", "ls"]).ok();
    assert!(!listed.stdout.contains("unanswered"), "{listed}");
}
