//! `run --init`: a first process that reaps orphans, forwards signals, and exits with its program's code.

use std::path::Path;

use serde_json::Value;
use testkit::{Daemon, Terminal, eventually};

fn inspected(daemon: &Daemon, name: &str) -> Value {
    let shown: Value = serde_json::from_str(&daemon.hoist(["inspect", name]).ok().stdout).expect("JSON");
    shown[0].clone()
}

#[test]
fn the_program_runs_below_it_and_its_end_is_the_containers() {
    let daemon = Daemon::with_busybox();
    let run = |flags: &[&str], script: &str| {
        let rest = ["--network", "none", "busybox", "sh", "-c", script];
        daemon.hoist([&["run", "--rm", "--init"], flags, &rest].concat())
    };
    let first = "cat /proc/1/comm; echo $$";
    assert_eq!(run(&[], first).ok().text(), "hoist-init\n2");
    assert_eq!(run(&["--read-only", "-u", "7:7", "-w", "/tmp"], first).ok().text(), "hoist-init\n2");
    // What starts others must not be theirs to change.
    run(&[], "echo x > /sbin/hoist-init").expect_code(1).expect_stderr("Read-only");
    run(&["--cap-add", "all"], "true > /proc/1/exe").expect_code(1);
    run(&[], "exit 7").expect_code(7);
    run(&[], "kill -9 $$").expect_code(137);
    let nosuch = daemon.hoist(["run", "--rm", "--init", "--network", "none", "busybox", "nosuch", "--", "x"]);
    nosuch.expect_code(127).expect_stderr("nosuch");
    daemon.hoist(["run", "--rm", "--init", "--network", "none", "busybox", "/tmp"]).expect_code(126);
    // Who sees the machine's processes has the machine's init.
    let shared = run(&["--pid", "host"], "cat /proc/1/comm").ok().text().to_owned();
    assert_ne!(shared, "hoist-init");
    assert_eq!(daemon.hoist(["ps", "-aq"]).ok().stdout, "");
}

#[test]
fn what_others_leave_is_reaped_and_signals_reach_the_program() {
    let mut daemon = Daemon::with_busybox();
    let run = |name: &str, flags: &[&str]| {
        let rest = ["--name", name, "--network", "none", "busybox", "sleep", "1000"];
        daemon.hoist([&["run", "-d"], flags, &rest].concat()).ok();
        let exec = |script: &str| daemon.hoist(["exec", name, "sh", "-c", script]).ok();
        exec("sh -c 'until test -e /tmp/end; do usleep 1000; done' > /dev/null 2>&1 & echo $! > /tmp/orphan");
        // Its parent is gone when it ends, so it is the first process's to reap.
        exec("true > /tmp/end");
    };
    let state = |name: &str| {
        let script = "cut -d' ' -f3 /proc/$(cat /tmp/orphan)/stat 2> /dev/null || echo gone";
        daemon.hoist(["exec", name, "sh", "-c", script]).ok().text().to_owned()
    };
    run("bare", &[]);
    eventually("a program that does not reap has a zombie", || (state("bare") == "Z").then_some(()));
    run("kept", &["--init"]);
    eventually("init reaps it", || (state("kept") == "gone").then_some(()));
    // As a first process it would not be ended by a signal that it does not know.
    daemon.hoist(["stop", "-t", "600", "kept"]).ok();
    let shown = inspected(&daemon, "kept");
    assert_eq!(shown["State"]["ExitCode"], 143);
    assert_eq!((&shown["Path"], &shown["Args"][0]), (&Value::from("sleep"), &Value::from("1000")));
    assert_eq!(shown["HostConfig"]["Init"], true);
    // The next start needs no more than the record says.
    daemon.kill();
    daemon.start_again();
    daemon.hoist(["start", "kept"]).ok();
    assert_eq!(daemon.hoist(["exec", "kept", "cat", "/proc/1/comm"]).ok().text(), "hoist-init");
    daemon.hoist(["kill", "-s", "USR1", "kept"]).ok();
    assert_eq!(daemon.hoist(["wait", "kept"]).ok().text(), "138");
}

#[test]
fn its_memory_is_small() {
    let daemon = Daemon::with_busybox();
    daemon
        .hoist(["run", "-d", "--init", "--name", "box", "--network", "none", "busybox", "sleep", "1000"])
        .ok();
    let pid = inspected(&daemon, "box")["State"]["Pid"].as_u64().expect("it runs");
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).unwrap();
    let own = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("proc(5)");
    let kib: u64 = own.trim().trim_end_matches("kB").trim().parse().expect("a number");
    assert!(kib <= 256, "{kib} KiB of its own");
    daemon.hoist(["rm", "-f", "box"]).ok();
}

#[test]
fn keys_and_typing_reach_the_program() {
    let daemon = Daemon::with_busybox();
    let script = "trap 'echo caught; exit 5' INT; test -t 0 || exit 9
        until stty size | grep -q '^33 101$'; do usleep 10000; done; echo as it was
        read word; echo got-$word
        while true; do usleep 10000; done";
    let run =
        daemon.command(["run", "-it", "--rm", "--init", "--network", "none", "busybox", "sh", "-c", script]);
    let mut terminal = Terminal::run_session(&run, 33, 101);
    terminal.wait_for("as it was");
    terminal.type_in("typed\n");
    terminal.wait_for("got-typed");
    terminal.type_in("\x03");
    terminal.wait_for("caught");
    assert_eq!(terminal.end(), (Some(5), true));
}
