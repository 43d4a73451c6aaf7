//! The first commands of a new user: no registry, no running daemon, no image.

use std::fs;
use std::process::{Command, Stdio};

use testkit::memory::rollup;
use testkit::{Daemon, eventually, hoist_program, run};

#[test]
fn hello_runs_and_tells_what_it_sees() {
    let daemon = Daemon::start();
    let finished = daemon.hoist(["run", "--rm", "--hostname", "lighthouse", "hello"]).ok();
    for word in ["lighthouse", "pid", "kernel", "cgroup", "mount"] {
        assert!(finished.stdout.to_lowercase().contains(word), "no {word:?}\n{finished}");
    }
    let row = |name: &str| {
        let mut lines = finished.stdout.lines().map(str::trim);
        lines.find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default()
    };
    assert_eq!(row("user"), "uid 0, gid 0", "{finished}");
    let took = row("started in").split(" ms").next().and_then(|number| number.parse::<f64>().ok());
    assert!(took.is_some_and(|took| took > 0.0 && took < 60_000.0), "how long its start took\n{finished}");
    let other = daemon.hoist(["run", "--rm", "-u", "12:34", "hello"]).ok();
    assert!(other.stdout.contains("uid 12, gid 34"), "{other}");
    assert_eq!(daemon.hoist(["ps", "-aq"]).ok().text(), "");
}

#[test]
fn the_command_line_starts_a_daemon_when_none_listens() {
    let dir = tempfile::TempDir::with_prefix_in("ht-", "/var/tmp").expect("a temporary directory");
    let config = dir.path().join("config.toml");
    let (root, state) = (dir.path().join("root"), dir.path().join("state"));
    fs::write(&config, format!("root = {root:?}\nstate = {state:?}\n")).expect("a writable directory");
    // The daemon must not keep other descriptors of the command line than it needs.
    let held = dir.path().join("held");
    let mut hoist = Command::new("sh");
    hoist.args(["-c", "exec 9>\"$1\"; exec \"$0\" run --rm hello"]).stdin(Stdio::null());
    hoist.arg(hoist_program()).arg(&held);
    hoist.env("HOIST_ADDRESS", dir.path().join("hoist.sock")).env("HOIST_CONFIG", &config);
    let finished = run(&mut hoist).ok();
    let pid = fs::read_to_string(state.join("daemon.pid")).expect("the daemon's pid file");
    let open = fs::read_dir(format!("/proc/{}/fd", pid.trim())).expect("the daemon runs");
    let leaked = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).any(|file| file == held);
    // The daemon runs on, and the test stops it as an operator would.
    run(Command::new("kill").arg(pid.trim())).ok();
    eventually("the daemon ends", || (!fs::exists(format!("/proc/{}", pid.trim())).ok()?).then_some(()));
    // Its mounts stay when it ends.
    testkit::unmount_below(dir.path());
    assert!(!leaked, "the daemon holds what was open to the command line");
    let told: Vec<&str> = finished.stderr.lines().filter(|line| line.contains("daemon")).collect();
    assert_eq!(told.len(), 1, "one line says that a daemon was started\n{finished}");
}

/// The program runs on a system without a C library: a copy of the file is enough.
#[test]
fn the_program_needs_no_other_file() {
    let program = hoist_program();
    if program.parent().and_then(|dir| dir.file_name()).is_none_or(|dir| dir != "release") {
        println!("skipped: the C library is inside what `cargo xtask build` makes; try: cargo xtask test");
        return;
    }
    let system = tempfile::TempDir::with_prefix_in("ht-", "/var/tmp").expect("a temporary directory");
    fs::copy(program, system.path().join("hoist")).expect("room for the program");
    let finished = run(Command::new("chroot").arg(system.path()).args(["/hoist", "--version"])).ok();
    assert!(finished.stdout.starts_with("hoist "), "{finished}");
}

#[test]
fn a_run_tells_where_its_time_went() {
    let daemon = Daemon::start();
    let plain = daemon.hoist(["run", "--rm", "hello", "--exit-code", "7"]);
    let finished = daemon.hoist(["run", "--rm", "--timing", "hello", "--exit-code", "7"]).expect_code(7);
    assert!(!plain.stderr.contains(" ms  "), "unasked\n{plain}");
    let rows: Vec<(f64, &str)> = finished
        .stderr
        .lines()
        .filter_map(|line| line.trim().split_once(" ms  "))
        .map(|(took, step)| (took.parse().expect("a number"), step))
        .collect();
    let steps = [
        "prepare the tree",
        "connect to the network",
        "start the shim",
        "start its program",
        "run to its end",
    ];
    for step in steps {
        assert!(rows.iter().any(|row| row.1 == step), "no {step:?}\n{finished}");
    }
    let ((whole, "all"), rest) = rows.split_last().map(|(last, rest)| (*last, rest)).expect("rows") else {
        panic!("the last row is the sum\n{finished}");
    };
    let sum: f64 = rest.iter().map(|row| row.0).sum();
    // Each row is rounded to a hundredth.
    assert!((whole - sum).abs() <= 0.01 * rows.len() as f64, "{sum} of {whole} ms\n{finished}");
}

#[test]
fn a_daemon_at_rest_is_small() {
    const MARK: u64 = 15_000_000;
    let daemon = Daemon::start();
    let becomes_small = |when: &str| {
        eventually(&format!("the daemon is small {when}"), || {
            (rollup(daemon.pid(), "Rss") <= MARK).then_some(())
        });
    };
    becomes_small("at first");
    // Memory that was returned is used again for work, and returned again.
    daemon.hoist(["run", "--rm", "hello"]).ok();
    becomes_small("after work");
}

#[test]
fn the_exit_code_is_the_containers() {
    let daemon = Daemon::start();
    daemon.hoist(["run", "--rm", "hello", "--exit-code", "7"]).expect_code(7);
    daemon.hoist(["run", "--rm", "hello:nosuchtag"]).expect_code(125);
    daemon
        .hoist(["run", "--rm", "--entrypoint", "/nosuch", "hello"])
        .expect_code(127)
        .expect_stderr("/nosuch");
    daemon.hoist(["run", "--rm", "--entrypoint", "/etc", "hello"]).expect_code(126);
    daemon.hoist(["run", "--no-such-flag", "hello"]).expect_code(125);
}

#[test]
fn shells_get_completions_without_a_daemon() {
    for shell in ["bash", "zsh", "fish"] {
        let script =
            run(Command::new(hoist_program()).args(["completion", shell]).env("HOIST_ADDRESS", "/nowhere"))
                .ok();
        assert!(script.stdout.contains("HOIST_COMPLETE") && script.stdout.contains("hoist"), "{shell}");
    }
}
