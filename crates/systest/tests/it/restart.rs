//! The daemon is killed at any instant: containers run on, and the next daemon knows all of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use api::grpc::snapshots::MountsRequest;
use api::grpc::snapshots::snapshots_client::SnapshotsClient;
use api::grpc::tasks::CreateTaskRequest;
use api::grpc::tasks::tasks_client::TasksClient;
use linux::cgroup::Cgroup;
use testkit::{Daemon, eventually, images};

use crate::typed::{ask, on};

#[test]
fn containers_exit_codes_and_logs_outlive_the_daemon() {
    let mut daemon = Daemon::with_busybox();
    daemon.hoist(["run", "-d", "--name", "stays", "busybox", "sh", "-c", "echo first; exec sleep 1000"]).ok();
    let ends = "echo begun; while [ ! -e /shared/go ]; do usleep 10000; done; echo ended; exit 42";
    let shared = format!("{}:/shared", daemon.dir().display());
    daemon.hoist(["run", "-d", "--name", "ends", "-v", &shared, "busybox", "busybox", "sh", "-c", ends]).ok();
    let pid = daemon.hoist(["inspect", "-f", "{{.State.Pid}}", "stays"]).ok().text().to_owned();

    daemon.kill();
    std::fs::write(daemon.dir().join("go"), "").expect("a writable directory");
    let log = daemon.root();
    eventually("the container ends without a daemon", || {
        let found = std::process::Command::new("grep")
            .args(["-rqs", "ended"])
            .arg(log.join("containers"))
            .status()
            .ok()?;
        found.success().then_some(())
    });
    daemon.start_again();

    assert_eq!(daemon.hoist(["wait", "ends"]).ok().text(), "42");
    assert_eq!(daemon.hoist(["logs", "ends"]).ok().stdout, "begun\nended\n");
    assert_eq!(daemon.hoist(["inspect", "-f", "{{.State.Pid}}", "stays"]).ok().text(), pid);
    assert_eq!(daemon.hoist(["exec", "stays", "echo", "alive"]).ok().text(), "alive");
    daemon.hoist(["rm", "-f", "stays", "ends"]).ok();
    daemon.hoist(["system", "check"]).ok();
}

/// Creates a container's task without starting it, as a daemon leaves it that is killed between the two calls.
fn make_task(daemon: &Daemon, id: &str) {
    let (key, container_id) = (id.to_owned(), id.to_owned());
    on(daemon, async |channel| {
        let wanted = MountsRequest { snapshotter: "overlayfs".into(), key };
        let mounts = SnapshotsClient::new(channel.clone()).mounts(ask(wanted)).await.expect("its tree");
        let rootfs = mounts.into_inner().mounts;
        let task = CreateTaskRequest { container_id, rootfs, ..CreateTaskRequest::default() };
        TasksClient::new(channel).create(ask(task)).await.expect("a task");
    });
}

#[test]
fn a_start_that_was_cut_off_is_taken_back() {
    let mut daemon = Daemon::with_busybox();
    let words = ["create", "--name", "half", "--network", "none", "busybox", "echo", "ran"];
    let id = daemon.hoist(words).ok().text().to_owned();
    make_task(&daemon, &id);
    daemon.hoist(["start", "half"]).ok();
    assert_eq!(daemon.hoist(["wait", "half"]).ok().text(), "0");
    assert_eq!(daemon.hoist(["logs", "half"]).ok().stdout, "ran\n");

    make_task(&daemon, &id);
    daemon.kill();
    daemon.start_again();
    assert_eq!(daemon.hoist(["wait", "half"]).ok().text(), "137");
    let state = ["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "half"];
    assert_eq!(daemon.hoist(state).ok().text(), "exited 137");
    daemon.hoist(["system", "check"]).ok();
    daemon.hoist(["rm", "half"]).ok();
    daemon.hoist(["system", "check"]).ok();
}

/// A failed start leaves the record of the run before.
#[test]
fn a_start_that_fails_is_not_recorded() {
    let daemon = Daemon::with_busybox();
    daemon.hoist(["create", "--name", "never", "--network", "none", "busybox", "/no/such/program"]).ok();
    daemon.hoist(["start", "never"]).expect_stderr("/no/such/program");
    let state = ["inspect", "-f", "{{.State.Status}} {{.State.StartedAt}}", "never"];
    let found = daemon.hoist(state).ok();
    assert!(found.text().starts_with("created"), "{}", found.text());
    daemon.hoist(["rm", "never"]).ok();
}

/// Neither daemon nor shim is alive when a client asks for the exit code.
#[test]
fn an_exit_code_is_on_disk_before_anybody_is_told() {
    let mut daemon = Daemon::with_busybox();
    let shared = format!("{}:/shared", daemon.dir().display());
    let ends = "while [ ! -e /shared/go ]; do usleep 10000; done; exit 42";
    let id = daemon.hoist(["run", "-d", "--name", "ends", "-v", &shared, "busybox", "sh", "-c", ends]).ok();
    let id = id.text().to_owned();
    daemon.kill();
    std::fs::write(daemon.dir().join("go"), "").expect("a writable directory");
    let record = daemon.state().join("tasks/default").join(&id).join("exit.json");
    eventually("the exit is recorded without a daemon", || record.exists().then_some(()));
    testkit::run(std::process::Command::new("pkill").args([
        "-KILL",
        "-f",
        "--",
        &format!("-id {id} .* serve"),
    ]))
    .ok();
    daemon.start_again();
    assert_eq!(daemon.hoist(["wait", "ends"]).ok().text(), "42");
    daemon.hoist(["system", "check"]).ok();
}

#[test]
fn a_second_daemon_at_the_same_place_is_refused_and_disturbs_nothing() {
    let daemon = Daemon::with_busybox();
    let mut second = std::process::Command::new(testkit::hoist_program());
    let roots = [daemon.dir().join("root2"), daemon.dir().join("state2")];
    second.args(["daemon", "--address"]).arg(daemon.socket());
    second.arg("--root").arg(&roots[0]).arg("--state").arg(&roots[1]);
    testkit::run(&mut second).expect_code(1).expect_stderr("another program listens");
    let mut same_root = std::process::Command::new(testkit::hoist_program());
    same_root.args(["daemon", "--address"]).arg(daemon.dir().join("other.sock"));
    same_root.arg("--root").arg(daemon.root()).arg("--state").arg(&roots[1]);
    testkit::run(&mut same_root).expect_code(1).expect_stderr("root");
    // The shims still reach the first daemon: a shim that cannot deliver its events takes seconds to end.
    let begun = Instant::now();
    daemon.hoist(["run", "--rm", "--network", "none", "busybox", "true"]).ok();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

/// A daemon killed between the start of a shim and the note of its address leaves a process that no task knows.
#[test]
fn a_shim_that_no_task_knows_is_found_and_ended() {
    let mut daemon = Daemon::with_busybox();
    let id = daemon.hoist(["run", "-d", "--name", "lost", "busybox", "sleep", "1000"]).ok().text().to_owned();
    let bundle = daemon.state().join("tasks/default").join(&id);
    // A process in the container whose command line looks like a shim's.
    let address = daemon.socket().display().to_string();
    let words = ["run", "-d", "--name", "mimic", "busybox", "sh", "-c", "while :; do sleep 1000; done"];
    let mimicry =
        ["-namespace", "default", "-address", &address, "-id", "none", "-socket", "/run/none", "serve"];
    daemon.hoist(words.iter().chain(&mimicry)).ok();
    // As if the note had never been written: without it, the next daemon removes the bundle.
    daemon.kill();
    std::fs::remove_file(bundle.join("bootstrap.json")).expect("the bundle is there");
    daemon.start_again();
    assert!(!bundle.exists(), "a bundle without a note is cleared away");
    let log = daemon.log();
    let ended: Vec<&str> =
        log.lines().filter(|line| line.contains("an interrupted call left: shim of")).collect();
    assert!(matches!(ended[..], [one] if one.contains(&id)), "{log}");
    assert_eq!(daemon.hoist(["inspect", "-f", "{{.State.Running}}", "mimic"]).ok().text(), "true");
    daemon.hoist(["rm", "-f", "mimic"]).ok();
    daemon.hoist(["system", "check"]).ok();
    daemon.hoist(["start", "lost"]).ok();
    daemon.hoist(["rm", "-f", "lost"]).ok();
}

#[test]
fn sigterm_ends_the_daemon_in_order_and_leaves_containers_running() {
    let mut daemon = Daemon::start_with(&["--log-format", "json"], "[grpc]\nmode = \"0600\"\ngid = 1\n");
    let socket = std::fs::metadata(daemon.socket()).expect("the socket is there");
    use std::os::unix::fs::MetadataExt;
    assert_eq!((socket.mode() & 0o777, socket.gid()), (0o600, 1));
    daemon.load(&images::busybox_archive());
    daemon.hoist(["run", "-d", "--name", "goes-on", "busybox", "sleep", "1000"]).ok();
    let before = daemon.hoist(["inspect", "-f", "{{.State.Pid}}", "goes-on"]).ok().text().to_owned();
    let first = daemon.log().lines().next().expect("the daemon logs").to_owned();
    assert!(first.starts_with('{') && first.ends_with('}') && first.contains("ready"), "{first}");
    assert_eq!(daemon.terminate(), Some(0));
    assert!(!daemon.socket().exists() || std::os::unix::net::UnixStream::connect(daemon.socket()).is_err());
    assert!(Cgroup::open(&daemon.cgroup()).is_ok(), "the container is in it");
    daemon.start_again();
    assert_eq!(daemon.hoist(["inspect", "-f", "{{.State.Pid}}", "goes-on"]).ok().text(), before);
    daemon.hoist(["rm", "-f", "goes-on"]).ok();
    daemon.hoist(["system", "check"]).ok();
    assert_eq!(daemon.terminate(), Some(0));
    assert!(Cgroup::open(&daemon.cgroup()).is_err(), "nothing is left in any tree of cgroups");
    daemon.start_again();
    daemon.hoist(["system", "check"]).ok();
    daemon.hoist(["run", "--rm", "busybox", "true"]).ok();
}

/// Resources that cannot be removed do not keep the daemon from starting; it tries again until they are gone.
#[test]
fn an_end_that_cannot_be_settled_is_settled_later() {
    let mut daemon = Daemon::with_busybox();
    let shared = format!("{}:/shared", daemon.dir().display());
    let program = "[ ! -e /shared/go ] || exec sleep 1000; : >/shared/looked; \
                   while [ ! -e /shared/go ]; do usleep 10000; done; exit 42";
    let words = ["run", "-d", "--name", "ends", "--restart", "always", "--network", "none", "-v", &shared];
    let id = daemon.hoist(words.iter().chain(&["busybox", "sh", "-c", program])).ok().text().to_owned();
    eventually("it has looked whether to end", || daemon.dir().join("looked").exists().then_some(()));
    daemon.kill();
    std::fs::write(daemon.dir().join("go"), "").expect("a writable directory");
    let record = daemon.state().join("tasks/default").join(&id).join("exit.json");
    eventually("the exit is recorded without a daemon", || record.exists().then_some(()));
    // In place of the network namespace: it cannot be unmounted.
    let obstacle = daemon.state().join("netns").join(&id);
    std::fs::create_dir_all(&obstacle).expect("the state directory is there");
    testkit::run(std::process::Command::new("pkill").args([
        "-KILL",
        "-f",
        "--",
        &format!("-id {id} .* serve"),
    ]))
    .ok();
    daemon.start_again();
    assert_eq!(daemon.hoist(["wait", "ends"]).ok().text(), "42");
    let state = ["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "ends"];
    assert_eq!(daemon.hoist(state).ok().text(), "restarting 42");
    std::fs::remove_dir(&obstacle).expect("it is empty");
    eventually("it is started again", || {
        daemon.hoist(state).ok().text().starts_with("running").then_some(())
    });
    daemon.hoist(["rm", "-f", "ends"]).ok();
    daemon.hoist(["system", "check"]).ok();
}

/// A note that cannot be read does not tell the container's state: the daemon leaves the container alone until it can
/// read it.
#[test]
fn a_container_of_which_nothing_can_be_known_is_left_alone() {
    let mut daemon = Daemon::with_busybox();
    let words = ["run", "-d", "--rm", "--name", "dark", "-v", "/scratch", "busybox", "sleep", "1000"];
    let id = daemon.hoist(words).ok().text().to_owned();
    let inspect =
        |daemon: &Daemon, what: &str| daemon.hoist(["inspect", "-f", what, "dark"]).ok().text().to_owned();
    let pid = inspect(&daemon, "{{.State.Pid}}");
    let note = daemon.state().join("tasks/default").join(&id).join("bootstrap.json");
    let aside = note.with_file_name("aside");
    daemon.kill();
    std::fs::rename(&note, &aside).and_then(|()| std::fs::create_dir(&note)).expect("the bundle is there");
    daemon.start_again();

    assert_eq!(inspect(&daemon, "{{.State.Status}}"), "unknown");
    assert_eq!(daemon.hoist(["volume", "ls", "-q"]).ok().text().lines().count(), 1);
    daemon.hoist(["system", "prune", "-f"]).ok();
    for words in [&["rm", "dark"][..], &["rm", "-f", "dark"], &["stop", "dark"], &["start", "dark"]] {
        daemon.hoist(words).expect_code(1).expect_stderr("restart the daemon");
    }
    let checked = daemon.hoist(["system", "check", "--repair"]);
    assert!(checked.code == 0, "{checked}");

    daemon.kill();
    std::fs::remove_dir(&note).and_then(|()| std::fs::rename(&aside, &note)).expect("the bundle is there");
    daemon.start_again();
    assert_eq!(inspect(&daemon, "{{.State.Status}} {{.State.Pid}}"), format!("running {pid}"));
    daemon.hoist(["exec", "dark", "touch", "/scratch/file"]).ok();
    daemon.hoist(["rm", "-f", "dark"]).ok();
    daemon.hoist(["system", "check"]).ok();
}

/// SIGKILL at 50 instants during pulls, starts, execs and deletes, while other containers end. Answered calls keep
/// their effect, and the next daemon removes what the others had begun: `system check` finds nothing.
#[test]
fn fifty_kills_lose_nothing_and_leave_nothing() {
    let registry = testkit::Registry::start();
    let reference = registry.push(&images::redis(), images::TAG, "redis");
    let mut daemon = Daemon::with_busybox();
    let is_there = |daemon: &Daemon, verb: &[&str]| daemon.hoist(verb).code == 0;
    let state = |daemon: &Daemon, name: &str| {
        daemon.hoist(["inspect", "-f", "{{.State.Pid}} {{.State.Status}}", name]).ok().text().to_owned()
    };
    let witness = ["run", "-d", "--name", "witness", "busybox", "sh", "-c", "echo here; exec sleep 1000"];
    daemon.hoist(witness).ok();
    // The running containers and their pids.
    let mut running = BTreeMap::from([("witness".to_owned(), state(&daemon, "witness"))]);
    let mut ending = Vec::new();

    let mut delay = 3_u64;
    for round in 0..50 {
        // A different instant every round, up to 120 ms: from before the request to after its end.
        delay = (delay * 37 + 11) % 120;
        if round % 5 == 2 {
            let program = format!("usleep {}; echo {round}; exit {round}", delay * 1000);
            let name = format!("e{round}");
            daemon.hoist(["run", "-d", "--name", &name, "busybox", "sh", "-c", &program]).ok();
            ending.push((name, round));
        }
        let (name, earlier) = (format!("r{round}"), format!("r{}", (round - 3).max(0)));
        let words: &[&str] = match round % 5 {
            0 => &["pull", "-q", &reference],
            1 => &["run", "-d", "--name", &name, "busybox", "sleep", "1000"],
            2 => &["exec", "witness", "true"],
            3 => &["run", "--rm", "--name", &name, "busybox", "true"],
            _ => &["rm", "-f", &earlier],
        };
        if round % 5 == 0 {
            // So that there is something to pull.
            daemon.hoist(["rmi", &reference]);
        }
        let mut child = daemon
            .command(words)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .env("HOIST_NO_AUTOSTART", "1")
            .spawn()
            .expect("hoist starts");
        wait_until(Instant::now() + Duration::from_millis(delay));
        daemon.kill();
        let is_answered = child.wait().expect("a child of ours").success();
        daemon.start_again();

        if round % 5 == 4 {
            let gone = running.remove(&earlier);
            // A call without an answer may have had its effect or not.
            if is_answered {
                assert!(!is_there(&daemon, &["inspect", &earlier]), "round {round}: {earlier} was removed");
            } else if let Some(state) = gone.filter(|_| is_there(&daemon, &["inspect", &earlier])) {
                daemon.hoist(["rm", "-f", &earlier]).ok();
                assert!(!is_there(&daemon, &["inspect", &earlier]), "round {round}: {earlier}, {state}");
            }
        }
        match round % 5 {
            0 if is_answered => {
                assert!(is_there(&daemon, &["image", "inspect", &reference]), "round {round}");
            }
            1 if is_answered => {
                let state = state(&daemon, &name);
                assert!(state.ends_with(" running"), "round {round}: {name} was started, and is {state}");
                running.insert(name, state);
            }
            3 if is_answered => {
                assert!(!is_there(&daemon, &["inspect", &name]), "round {round}: {name} has ended");
            }
            _ => {}
        }
        for (name, before) in &running {
            assert_eq!(&state(&daemon, name), before, "round {round}: {name}");
        }
        assert_eq!(daemon.hoist(["system", "check"]).ok().text(), "nothing is left over", "round {round}");
    }
    assert_eq!(daemon.hoist(["logs", "witness"]).ok().stdout, "here\n");
    for (name, code) in ending {
        assert_eq!(daemon.hoist(["wait", &name]).ok().text(), code.to_string(), "{name}");
        assert_eq!(daemon.hoist(["logs", &name]).ok().stdout, format!("{code}\n"), "{name}");
    }
    let ids = daemon.hoist(["ps", "-aq", "--no-trunc"]).ok();
    let ids: Vec<&str> = ids.stdout.split_whitespace().collect();
    daemon.hoist(["rm", "-f"].iter().chain(&ids)).ok();
    daemon.hoist(["system", "check"]).ok();
}

/// The instant is the point of the test: nothing happens then that could be waited for.
fn wait_until(instant: Instant) {
    while Instant::now() < instant {
        std::thread::yield_now();
    }
}
