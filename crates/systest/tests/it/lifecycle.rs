//! The life of a container through the command line: names, ids, states, exit codes, logs, limits.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use testkit::{Daemon, eventually, run};

#[test]
fn a_container_goes_through_its_states() {
    let daemon = Daemon::with_busybox();
    let id = daemon.hoist(["run", "-d", "--name", "life", "busybox", "sleep", "1000"]).ok();
    let state = || daemon.hoist(["inspect", "-f", "{{.State.Status}}", "life"]).ok().text().to_owned();
    assert_eq!(state(), "running");
    // The path at which programs look that know containerd's state directory.
    let bundle = daemon.state().join("io.containerd.runtime.v2.task/default").join(id.text());
    assert!(bundle.join("config.json").is_file(), "{}", bundle.display());
    daemon.hoist(["pause", "life"]).ok();
    assert_eq!(state(), "paused");
    daemon.hoist(["unpause", "life"]).ok();
    daemon.hoist(["kill", "--signal", "TERM", "life"]).ok();
    daemon.hoist(["kill", "life"]).ok();
    assert_eq!(daemon.hoist(["wait", "life"]).ok().text(), "137");
    assert_eq!(state(), "exited");
    daemon.hoist(["start", "life"]).ok();
    assert_eq!(state(), "running");
    daemon.hoist(["rm", "life"]).expect_code(1).expect_stderr("running");
    let short = &id.text()[..12];
    assert!(daemon.hoist(["ps", "-q"]).ok().stdout.contains(short));
    daemon.hoist(["stop", "-t", "0", short]).ok();
    daemon.hoist(["rm", short]).ok();
    daemon.hoist(["inspect", "life"]).expect_code(1).expect_stderr("life");
}

/// A removal and a start both wait for the container's end. A removed container does not run.
#[test]
fn of_a_removal_beside_a_start_either_leaves_the_container_or_nothing() {
    let daemon = Daemon::with_busybox();
    for round in 0..12 {
        let name = format!("both{round}");
        let id = daemon.hoist(["run", "-d", "--name", &name, "busybox", "usleep", "20000"]).ok();
        let (removed, _started) = std::thread::scope(|scope| {
            let started = scope.spawn(|| daemon.hoist(["start", &name]));
            (daemon.hoist(["rm", "-f", &name]), started.join().expect("no panic"))
        });
        removed.ok();
        // The start may have failed: the container was gone before it looked for it, or went after that.
        let tasks = run(&mut daemon.ctr_command(["tasks", "ls", "-q"])).ok();
        assert!(!tasks.stdout.contains(id.text()), "it runs, and nobody knows of it\n{tasks}");
        assert!(!daemon.hoist(["ps", "-a", "--no-trunc"]).ok().stdout.contains(id.text()));
    }
    daemon.hoist(["system", "check"]).ok();
}

#[test]
fn names_are_unique_and_ids_may_be_shortened() {
    let daemon = Daemon::with_busybox();
    daemon.hoist(["run", "-d", "--name", "one", "busybox", "sleep", "1000"]).ok();
    daemon
        .hoist(["run", "-d", "--name", "one", "busybox", "true"])
        .expect_code(125)
        .expect_stderr("already in use");
    daemon
        .hoist(["run", "-d", "--name", "no/slash", "busybox", "true"])
        .expect_code(125)
        .expect_stderr("no/slash");
    daemon.hoist(["rm", "-f", "one"]).ok();
    daemon.hoist(["run", "--rm", "--name", "one", "busybox", "true"]).ok();
}

#[test]
fn a_beginning_that_fits_several_ids_is_refused_with_all_of_them() {
    let daemon = Daemon::with_busybox();
    let create = || {
        let created = daemon.hoist(["create", "--network", "none", "busybox", "true"]).ok();
        created.text().to_owned()
    };
    // After sixteen others one has a first digit that was there.
    let mut ids: Vec<String> = Vec::new();
    let (one, other) = loop {
        let id = create();
        match ids.iter().find(|known| known[..1] == id[..1]) {
            Some(known) => break (known.clone(), id),
            None => ids.push(id),
        }
    };
    let shared = one.bytes().zip(other.bytes()).take_while(|(one, other)| one == other).count();
    let refused = daemon.hoist(["inspect", "-f", "{{.Id}}", &one[..1]]);
    let refused = refused.expect_code(1);
    let removed =
        daemon.hoist(["rm", &one[..1]]).expect_code(1).expect_stderr("is the beginning of several ids");
    for said in [&refused.stderr, &removed.stderr] {
        assert!(said.contains(&one[..12]) && said.contains(&other[..12]), "{said}");
    }
    for id in [&one, &other] {
        let found = daemon.hoist(["inspect", "-f", "{{.Id}}", &id[..=shared]]).ok();
        assert_eq!(found.text(), id, "a digit more is enough");
    }
}

/// Docker's form, two words, and each given once.
#[test]
fn a_container_without_a_name_is_given_one() {
    let daemon = Daemon::with_busybox();
    for _ in 0..5 {
        daemon.hoist(["create", "--network", "none", "busybox", "true"]).ok();
    }
    let listed = daemon.hoist(["ps", "-a", "--format", "{{.Names}}"]).ok();
    let mut names: Vec<&str> = listed.text().lines().collect();
    for name in &names {
        let words: Vec<&str> = name.split('_').collect();
        let is_word = |word: &&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
        // A third part stands behind a pair that was taken.
        assert!(words.len() >= 2 && words[..2].iter().all(is_word), "{name}");
        assert_eq!(daemon.hoist(["inspect", "-f", "{{.Name}}", name]).ok().text(), format!("/{name}"));
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 5, "{listed}");
}

#[test]
fn output_goes_where_it_belongs_and_into_the_log() {
    let daemon = Daemon::with_busybox();
    let run =
        daemon.hoist(["run", "--name", "talk", "busybox", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    let run = run.expect_code(3);
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("out\n", "err\n"));
    let logs = daemon.hoist(["logs", "talk"]).ok();
    assert_eq!((logs.stdout.as_str(), logs.stderr.as_str()), ("out\n", "err\n"));
    let many = "for i in $(seq 1 1000); do echo line $i; done";
    daemon.hoist(["run", "-d", "--name", "many", "busybox", "sh", "-c", many]).ok();
    daemon.hoist(["wait", "many"]).ok();
    assert_eq!(daemon.hoist(["logs", "many"]).ok().stdout.lines().count(), 1000);
    assert_eq!(daemon.hoist(["logs", "--tail", "2", "many"]).ok().stdout, "line 999\nline 1000\n");
}

/// The unmount of an overlay writes all that anybody has written on its disk, and `volatile` spares that.
#[test]
fn a_tree_that_goes_with_its_container_need_not_reach_the_disk() {
    let daemon = Daemon::with_busybox();
    let own_root = ["busybox", "grep", " / ", "/proc/self/mounts"];
    let thrown_away = daemon.hoist(["run", "--rm"].iter().chain(&own_root)).ok();
    assert!(thrown_away.stdout.contains("volatile"), "{thrown_away}");
    let kept = daemon.hoist(["run", "--name", "kept"].iter().chain(&own_root)).ok();
    assert!(!kept.stdout.contains("volatile"), "{kept}");

    // Others look at it while it runs.
    let script = "echo data > /file; exec sleep 1000";
    daemon.hoist(["run", "-d", "--rm", "--name", "looked", "busybox", "sh", "-c", script]).ok();
    eventually("the file is written", || {
        (daemon.hoist(["exec", "looked", "test", "-s", "/file"]).code == 0).then_some(())
    });
    assert!(daemon.hoist(["diff", "looked"]).ok().stdout.contains("A /file"));
    daemon.hoist(["commit", "looked", "looked-at"]).ok();
    daemon.hoist(["rm", "-f", "looked"]).ok();
    assert_eq!(daemon.hoist(["run", "--rm", "looked-at", "cat", "/file"]).ok().text(), "data");

    // A start that fails leaves a mark in the tree, for which the kernel would refuse the next.
    daemon.hoist(["create", "--rm", "--name", "wrong", "busybox", "/nosuch"]).ok();
    for _ in 0..2 {
        daemon.hoist(["start", "wrong"]).expect_code(1).expect_stderr("/nosuch");
    }
}

#[test]
fn standard_input_reaches_the_container_and_its_end_too() {
    use std::io::Write;
    let daemon = Daemon::with_busybox();
    let mut command = daemon.command(["run", "--rm", "-i", "busybox", "cat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("hoist starts");
    let text = "a line\n".repeat(100_000);
    let mut stdin = child.stdin.take().expect("piped");
    let sent = text.clone();
    let writer = std::thread::spawn(move || stdin.write_all(sent.as_bytes()));
    let output = child.wait_with_output().expect("a child of ours");
    writer.join().expect("no panic").expect("hoist reads");
    assert!(output.status.success());
    assert!(output.stdout == text.as_bytes(), "{} of {} bytes came back", output.stdout.len(), text.len());
}

#[test]
fn exec_runs_beside_the_first_process() {
    let daemon = Daemon::with_busybox();
    daemon.hoist(["run", "-d", "--name", "host", "-e", "A=1", "busybox", "sleep", "1000"]).ok();
    let exec =
        daemon.hoist(["exec", "-e", "B=2", "-w", "/tmp", "host", "sh", "-c", "echo $A $B $(pwd) $$; exit 5"]);
    let exec = exec.expect_code(5);
    assert!(exec.stdout.starts_with("1 2 /tmp "), "{exec}");
    daemon.hoist(["exec", "host", "/nosuch"]).expect_code(127);
    daemon.hoist(["exec", "nosuch", "true"]).expect_code(1).expect_stderr("nosuch");
    let other = ["exec", "-u", "nobody", "host", "sh", "-c", "id -u; echo $HOME"];
    let other = daemon.hoist(other).ok();
    assert!(
        other.stdout.starts_with("65534\n/") && !other.stdout.contains("/root"),
        "not root's home: {other}"
    );
    let seccomp = daemon.hoist(["exec", "host", "grep", "Seccomp:", "/proc/self/status"]).ok();
    assert!(seccomp.stdout.contains('2'), "exec has a filter\n{seccomp}");
}

#[test]
fn flags_shape_the_container() {
    let daemon = Daemon::with_busybox();
    let check = |flags: &[&str], script: &str, expected: &str| {
        let command = ["busybox", "sh", "-c", script];
        let words = ["run", "--rm"].iter().chain(flags).chain(&command);
        let finished = daemon.hoist(words);
        assert_eq!(finished.text(), expected, "{finished}");
    };
    check(&["-e", "X=y"], "echo $X", "y");
    check(&["-w", "/var/new"], "pwd", "/var/new");
    check(&["-u", "nobody"], "id -u", "65534");
    check(&["-u", "1000:1000"], "id -u; id -g", "1000\n1000");
    check(&["--hostname", "h1"], "hostname; cat /etc/hostname", "h1\nh1");
    check(&["--read-only"], "touch /x 2>/dev/null || echo refused", "refused");
    check(
        &["--memory", "64m"],
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max",
        "67108864",
    );
    check(&["--pids-limit", "77"], "cat /sys/fs/cgroup/pids/pids.max || cat /sys/fs/cgroup/pids.max", "77");
    check(
        &["--cpus", "0.5"],
        "cd /sys/fs/cgroup; echo $(cat cpu.max 2>/dev/null || cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us)",
        "50000 100000",
    );
    let capabilities = "grep CapEff /proc/self/status | cut -f2";
    check(&["--cap-drop", "ALL"], capabilities, "0000000000000000");
    check(&["--cap-drop", "ALL", "--cap-add", "NET_RAW"], capabilities, "0000000000002000");
    // Docker's fourteen, and what is asked for beside them (SYS_TIME is number 25).
    check(&[], capabilities, "00000000a80425fb");
    check(&["--cap-add", "SYS_TIME"], capabilities, "00000000aa0425fb");
    check(&["--mount", "type=tmpfs,target=/t"], "mount | grep -c ' /t type tmpfs'", "1");
    let shared = tempfile::TempDir::new().expect("a temporary directory");
    std::fs::write(shared.path().join("in"), "from outside").expect("a writable directory");
    let bind = format!("type=bind,source={},target=/m", shared.path().display());
    check(&["--mount", &bind], "cat /m/in; echo from inside > /m/out", "from outside");
    let out = std::fs::read_to_string(shared.path().join("out"));
    assert_eq!(out.expect("the container wrote it"), "from inside\n");
    let try_to_write = "cat /m/out; touch /m/in /m/new 2>/dev/null || echo refused";
    check(&["--mount", &format!("{bind},readonly")], try_to_write, "from inside\nrefused");
    let volume = "type=volume,src=crop,dst=/m";
    check(&["--mount", volume], "echo sown > /m/out; echo $?", "0");
    check(&["--mount", &format!("{volume},ro")], try_to_write, "sown\nrefused");
    check(
        &[],
        "grep NoNewPrivs /proc/self/status >/dev/null && grep -c Seccomp_filters /proc/self/status",
        "1",
    );
    check(&["--privileged"], "mount -t tmpfs none /tmp && echo mounted", "mounted");
    check(&[], "mount -t tmpfs none /tmp 2>/dev/null || echo refused", "refused");
    check(&["--network", "host"], "ls /sys/class/net | grep -c lo", "1");
}

#[test]
fn restart_policies_are_kept() {
    let daemon = Daemon::with_busybox();
    daemon
        .hoist([
            "run",
            "-d",
            "--name",
            "fails",
            "--restart",
            "on-failure:2",
            "busybox",
            "sh",
            "-c",
            "echo ran; exit 1",
        ])
        .ok();
    // A restart is counted before it begins: the state alone does not tell the last end from the one before.
    eventually("two restarts, and their ends", || {
        let count = daemon.hoist(["inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "fails"]).ok();
        let has_run = daemon.hoist(["logs", "fails"]).ok().stdout == "ran\nran\nran\n";
        (count.text() == "2 exited" && has_run).then_some(())
    });
}

/// A container that waits to be started again is neither running nor done: what clears up passes it over.
#[test]
fn prune_keeps_a_container_that_waits_for_its_restart() {
    let daemon = Daemon::with_busybox();
    let state = || {
        let words = ["inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "fails"];
        let shown = daemon.hoist(words).ok().text().to_owned();
        let (count, status) = shown.split_once(' ').expect("two words");
        (count.parse::<u32>().expect("a number"), status.to_owned())
    };
    daemon.hoist(["create", "--name", "done", "--network", "none", "busybox", "true"]).ok();
    let words =
        ["run", "-d", "--name", "fails", "--restart", "always", "--network", "none", "busybox", "false"];
    daemon.hoist(words).ok();
    // Its pauses grow: by then they are seconds, and what follows happens within one.
    eventually("a long pause", || (state().0 >= 7 && state().1 == "restarting").then_some(()));
    let listed = daemon.hoist(["ps", "--format", "{{.Names}} {{.State}}"]).ok();
    assert_eq!(listed.text(), "fails restarting");
    daemon.hoist(["rm", "fails"]).expect_code(1).expect_stderr("waits to be started again");
    daemon.hoist(["system", "prune", "-f"]).ok();
    assert_eq!(daemon.hoist(["ps", "-a", "--format", "{{.Names}}"]).ok().text(), "fails");

    daemon.hoist(["stop", "fails"]).ok();
    assert_eq!(state().1, "exited", "nothing waits any more");
    // Started by hand it begins anew: what was counted is forgotten, and the pauses are short.
    daemon.hoist(["start", "fails"]).ok();
    eventually("a restart soon after the start", || (1..7).contains(&state().0).then_some(()));
    daemon.hoist(["rm", "-f", "fails"]).ok();
    daemon.hoist(["system", "check"]).ok();
}

/// What is used up may be free again.
#[test]
fn a_restart_that_finds_no_free_address_is_tried_again() {
    let mut daemon = Daemon::with_busybox();
    daemon.terminate();
    let config = daemon.dir().join("config.toml");
    let text = std::fs::read_to_string(&config).expect("it was written");
    // Five addresses for containers.
    std::fs::write(&config, text.replace(".0/24\"", ".0/29\"")).expect("a writable directory");
    daemon.start_again();
    let begin = |daemon: &Daemon, name: &str| {
        daemon.hoist(["run", "-d", "--name", name, "--restart", "always", "busybox", "sleep", "1000"])
    };
    let state = |daemon: &Daemon| {
        daemon.hoist(["inspect", "-f", "{{.State.Status}}", "waits"]).ok().text().to_owned()
    };
    for name in ["waits", "one", "two", "three", "four"] {
        begin(&daemon, name).ok();
    }
    begin(&daemon, "five").expect_stderr("are in use");
    daemon.hoist(["stop", "-t", "0", "waits"]).ok();
    // The address is free a moment after the end.
    eventually("its address is another's", || (begin(&daemon, "five").code == 0).then_some(()));
    daemon.terminate();
    daemon.start_again();
    eventually("a start fails", || daemon.log().contains("start a container again").then_some(()));
    assert_eq!(state(&daemon), "restarting");
    daemon.hoist(["rm", "-f", "five"]).ok();
    eventually("it is started again", || (state(&daemon) == "running").then_some(()));
}

/// The daemon starts all of them at once.
#[test]
fn containers_come_back_with_the_one_whose_namespaces_they_join() {
    let mut daemon = Daemon::with_busybox();
    let begin = |name: &str, joined: &[&str]| {
        let words = ["run", "-d", "--name", name, "--restart", "always"];
        daemon.hoist(words.iter().chain(joined).chain(&["busybox", "sleep", "1000"])).ok();
    };
    begin("owner", &[]);
    let others = ["first", "second", "third"];
    for name in others {
        begin(name, &["--network", "container:owner"]);
    }
    begin("beside", &["--network", "none", "--pid", "container:owner"]);
    let all: Vec<&str> = others.into_iter().chain(["beside", "owner"]).collect();
    for name in all.iter().copied() {
        daemon.hoist(["stop", "-t", "0", name]).ok();
    }
    daemon.terminate();
    daemon.start_again();
    for name in all {
        let state = ["inspect", "-f", "{{.State.Status}}", name];
        eventually("it comes back", || (daemon.hoist(state).ok().text() == "running").then_some(()));
    }
}

/// As Docker has it: stopped by hand, `always` comes back with the daemon, and `unless-stopped` does not.
#[test]
fn what_was_stopped_by_hand_comes_back_with_the_daemon_if_always_is_its_policy() {
    let mut daemon = Daemon::with_busybox();
    let state = |daemon: &Daemon, name: &str| {
        daemon.hoist(["inspect", "-f", "{{.State.Status}}", name]).ok().text().to_owned()
    };
    for policy in ["always", "unless-stopped"] {
        let words = ["run", "-d", "--name", policy, "--restart", policy, "--network", "none", "busybox"];
        daemon.hoist(words.iter().chain(&["sleep", "1000"])).ok();
        daemon.hoist(["stop", "-t", "0", policy]).ok();
        assert_eq!(state(&daemon, policy), "exited");
    }
    daemon.terminate();
    daemon.start_again();
    eventually("one comes back", || (state(&daemon, "always") == "running").then_some(()));
    assert_eq!(state(&daemon, "unless-stopped"), "exited");
    // Whoever stops it again has it stopped, for as long as the daemon lives.
    daemon.hoist(["stop", "-t", "0", "always"]).ok();
    assert_eq!(state(&daemon, "always"), "exited");
}

/// A command in a container is left by a signal, as `docker exec` is.
#[test]
fn exec_without_a_terminal_ends_by_a_signal() {
    let daemon = Daemon::with_busybox();
    daemon.hoist(["run", "-d", "--name", "host", "--network", "none", "busybox", "sleep", "1000"]).ok();
    for (signal, number) in [(Signal::TERM, 15), (Signal::INT, 2)] {
        let mut exec = daemon.command(["exec", "host", "sh", "-c", "echo here; exec sleep 2000"]);
        let mut exec = exec.stdout(Stdio::piped()).spawn().expect("hoist starts");
        let mut said = String::new();
        BufReader::new(exec.stdout.as_mut().expect("a pipe")).read_line(&mut said).expect("a line");
        assert_eq!(said, "here\n");
        kill_process(Pid::from_child(&exec), signal).expect("a child of ours");
        let ended = eventually("it ends", || exec.try_wait().expect("a child of ours"));
        // By itself, or by the signal where that comes before it listens: a shell sees no difference.
        assert!(ended.code() == Some(128 + number) || ended.signal() == Some(number), "{ended}");
    }
    daemon.hoist(["rm", "-f", "host"]).ok();
}

/// Who follows a log and goes away leaves nothing behind that goes on reading it.
#[test]
fn a_log_that_nobody_follows_any_more_is_not_read() {
    let daemon = Daemon::with_busybox();
    let program = "echo first; exec sleep 1000";
    daemon.hoist(["run", "-d", "--name", "quiet", "--network", "none", "busybox", "sh", "-c", program]).ok();
    let open = || {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("the daemon runs");
        let links = fds.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
        links.filter(|link| link.ends_with("json.log")).count()
    };
    let mut following = daemon.command(["logs", "-f", "quiet"]);
    let mut following = following.stdout(Stdio::piped()).spawn().expect("hoist starts");
    let mut said = String::new();
    BufReader::new(following.stdout.as_mut().expect("a pipe")).read_line(&mut said).expect("a line");
    assert_eq!((said.as_str(), open()), ("first\n", 1));
    following.kill().expect("a child of ours");
    following.wait().expect("a child of ours");
    eventually("the daemon leaves the log", || (open() == 0).then_some(()));
}

/// A client of the API may give a container any id.
#[test]
fn ids_of_others_may_be_short() {
    let daemon = Daemon::with_busybox();
    daemon.ctr(["container", "create", "docker.io/library/busybox:latest", "wee"]).ok();
    daemon.hoist(["exec", "wee", "true"]).expect_code(1).expect_stderr("container wee is not running");
}

#[test]
fn stats_and_lists_are_tables_or_json() {
    let daemon = Daemon::with_busybox();
    daemon.hoist(["run", "-d", "--name", "busy", "busybox", "sleep", "1000"]).ok();
    let stats = daemon.hoist(["stats", "--no-stream"]).ok();
    assert!(
        stats
            .stdout
            .lines()
            .next()
            .is_some_and(|head| head.contains("CPU %") && head.contains("MEM USAGE / LIMIT")),
        "{stats}"
    );
    assert!(stats.stdout.contains("busy"), "{stats}");
    let head = daemon.hoist(["ps"]).ok().stdout.lines().next().unwrap_or_default().to_owned();
    for column in ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"] {
        assert!(head.contains(column), "{head}");
    }
    let json = daemon.hoist(["ps", "--format", "json"]).ok();
    let row: serde_json::Value = serde_json::from_str(json.text()).expect("one JSON object a line");
    assert_eq!(row["Names"], "busy");
}

/// A reader that does not read holds up its container, and nobody else.
#[test]
fn a_slow_reader_holds_up_only_its_container_and_misses_nothing() {
    use std::io::Read;
    let daemon = Daemon::with_busybox();
    let mut run = daemon
        .command(["run", "--name", "flood", "busybox", "dd", "if=/dev/zero", "bs=65536", "count=512"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("hoist starts");
    let running = || daemon.hoist(["ps", "--format", "{{.Names}}"]).ok().stdout.contains("flood");
    eventually("the flood runs", || running().then_some(()));
    // The shim answers while its pipe is full.
    assert_eq!(daemon.hoist(["exec", "flood", "echo", "still here"]).ok().text(), "still here");
    assert!(running(), "32 MiB do not fit into a pipe");
    let mut bytes = Vec::new();
    run.stdout.take().expect("piped").read_to_end(&mut bytes).expect("a pipe");
    assert!(run.wait().expect("a child of ours").success());
    assert_eq!((bytes.len(), bytes.iter().any(|byte| *byte != 0)), (512 * 65536, false));
}

#[test]
fn a_shim_that_is_killed_leaves_a_container_that_ended_and_nothing_else() {
    let daemon = Daemon::with_busybox();
    let id =
        daemon.hoist(["run", "-d", "--name", "orphan", "busybox", "sleep", "1000"]).ok().text().to_owned();
    let pid = daemon.hoist(["inspect", "-f", "{{.State.Pid}}", "orphan"]).ok().text().to_owned();
    let is_shim = |pid: &str| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).collect();
        words.contains(&id.as_bytes()) && words.contains(&&b"serve"[..])
    };
    let processes = std::fs::read_dir("/proc").expect("proc is mounted");
    let names = processes.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let shims: Vec<String> = names.filter(|name| is_shim(name)).collect();
    assert_eq!(shims.len(), 1, "{shims:?}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", shims[0])).expect("the shim lives");
    assert!(status.contains("Threads:\t1\n"), "a shim has one thread\n{status}");
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", shims[0])).expect("the shim lives");
    assert!(!maps.contains(".so"), "a shim is static\n{maps}");
    run(std::process::Command::new("kill").args(["-KILL", &shims[0]])).ok();

    assert_eq!(daemon.hoist(["wait", "orphan"]).ok().text(), "137");
    // Whoever inherited it may not have reaped it yet.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    assert!(status.is_empty() || status.contains("zombie"), "its processes ended with it: {status}");
    daemon.hoist(["system", "check"]).ok();
    daemon.hoist(["start", "orphan"]).ok();
    daemon.hoist(["rm", "-f", "orphan"]).ok();
}

#[test]
fn a_container_that_eats_too_much_is_killed_and_says_so() {
    let daemon = Daemon::with_busybox();
    let eat = "x=0123456789; while true; do x=$x$x; done";
    let limits = ["run", "--name", "hungry", "--memory", "32m"];
    daemon.hoist(limits.iter().chain(&["busybox", "sh", "-c", eat])).expect_code(137);
    let state = daemon.hoist(["inspect", "-f", "{{.State.OOMKilled}} {{.State.ExitCode}}", "hungry"]).ok();
    assert_eq!(state.text(), "true 137");
    daemon.hoist(["run", "--name", "modest", "--memory", "32m", "busybox", "false"]).expect_code(1);
    assert_eq!(daemon.hoist(["inspect", "-f", "{{.State.OOMKilled}}", "modest"]).ok().text(), "false");
}

/// `hoist ps | head -1`, where `head` is always the faster one.
#[test]
fn output_that_nobody_reads_any_more_ends_a_command_quietly() {
    if !testkit::is_root("a daemon") {
        return;
    }
    let daemon = Daemon::start();
    let commands: [(&[&str], i32); 8] = [
        (&["ps"], 141),
        (&["images"], 141),
        (&["ps", "--format", "json", "--all"], 0),
        (&["completion", "bash"], 141),
        (&["runtime", "spec", "--help"], 141),
        (&["runtime", "features"], 141),
        (&["--help"], 0),
        (&["ctr", "images", "ls"], 141),
    ];
    for (words, code) in commands {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = daemon.command(words);
        if words[0] == "ctr" {
            command.env("CONTAINERD_ADDRESS", daemon.socket());
        }
        let ended = command.stdout(writer).stderr(Stdio::piped()).output().expect("it runs");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!((ended.status.code(), said.as_ref()), (Some(code), ""), "{words:?}");
    }
}
