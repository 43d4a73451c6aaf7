//! The first thing a stranger runs: no registry, no daemon, no image.

use std::fs;
use std::process::{Command, Stdio};

use testkit::{Daemon, eventually, hoist_program, run};

#[test]
fn hello_runs_and_tells_what_it_sees() {
    let daemon = Daemon::start();
    let finished = daemon.hoist(["run", "--rm", "--hostname", "lighthouse", "hello"]).ok();
    for word in ["lighthouse", "pid", "kernel", "cgroup", "mount"] {
        assert!(finished.stdout.to_lowercase().contains(word), "no {word:?}\n{finished}");
    }
    assert_eq!(daemon.hoist(["ps", "-aq"]).ok().text(), "");
}

#[test]
fn the_command_line_starts_a_daemon_when_none_listens() {
    let dir = tempfile::TempDir::with_prefix_in("ht-", "/var/tmp").expect("a temporary directory");
    let config = dir.path().join("config.toml");
    let (root, state) = (dir.path().join("root"), dir.path().join("state"));
    fs::write(&config, format!("root = {root:?}\nstate = {state:?}\n")).expect("a writable directory");
    // What is open to the command line beside its streams is not for a daemon that outlives it.
    let held = dir.path().join("held");
    let mut hoist = Command::new("sh");
    hoist.args(["-c", "exec 9>\"$1\"; exec \"$0\" run --rm hello"]).stdin(Stdio::null());
    hoist.arg(hoist_program()).arg(&held);
    hoist.env("HOIST_ADDRESS", dir.path().join("hoist.sock")).env("HOIST_CONFIG", &config);
    let finished = run(&mut hoist).ok();
    let pid = fs::read_to_string(state.join("daemon.pid")).expect("the daemon's pid file");
    let open = fs::read_dir(format!("/proc/{}/fd", pid.trim())).expect("the daemon runs");
    let leaked = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).any(|file| file == held);
    // The daemon stays; stop it as an operator would.
    run(Command::new("kill").arg(pid.trim())).ok();
    eventually("the daemon ends", || (!fs::exists(format!("/proc/{}", pid.trim())).ok()?).then_some(()));
    assert!(!leaked, "the daemon holds what was open to the command line");
    let told: Vec<&str> = finished.stderr.lines().filter(|line| line.contains("daemon")).collect();
    assert_eq!(told.len(), 1, "one line says that a daemon was started\n{finished}");
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
        assert!(script.stdout.contains("logs") && script.stdout.contains("hoist"), "{shell}");
    }
}
