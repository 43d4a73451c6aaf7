//! Output without a reader: readers that close, disks that are full, clients that die. The process goes on, and the
//! command that asked for the output gets an error.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use testkit::{Daemon, eventually};

use crate::cgroups::HIERARCHIES;

const OUR_RUNTIME: &str = "io.containerd.hoist.v2";

/// A client whose output the test reads.
fn piped(daemon: &Daemon, words: &[&str]) -> Child {
    let mut command: Command = daemon.command(words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("it starts")
}

fn wait_for_file(daemon: &Daemon, container: &str, path: &str) {
    let is_there = || daemon.hoist(["exec", container, "ls", path]).code == 0;
    eventually(path, || is_there().then_some(()));
}

/// A device node like full(4) of the test's own, in case a command removes the file that it could not fill.
fn full_device(dir: &Path) -> PathBuf {
    let path = dir.join("full");
    let mode = Mode::from_raw_mode(0o600);
    mknodat(CWD, &path, FileType::CharacterDevice, mode, makedev(1, 7)).expect("root may");
    path
}

#[test]
fn an_archive_for_a_device_leaves_the_device_as_it_is() {
    let daemon = Daemon::with_busybox();
    let device = full_device(daemon.dir());
    let path = device.display().to_string();
    let is_device = || fs::metadata(&device).is_ok_and(|there| there.file_type().is_char_device());
    let image = daemon.own_ctr(["-n", "default", "images", "ls", "-q"]).ok().text().to_owned();
    for failed in [
        daemon.hoist(["save", "-o", &path, &image]),
        daemon.own_ctr(["-n", "default", "images", "export", &path, &image]),
    ] {
        assert_ne!(failed.code, 0);
        failed.expect_stderr("no space left");
        assert!(is_device(), "{path} is what it was");
    }
    let link = daemon.dir().join("link");
    std::os::unix::fs::symlink("archive.tar", &link).expect("a writable directory");
    fs::write(daemon.dir().join("archive.tar"), "").expect("a writable directory");
    daemon.hoist(["save", "-o", &link.display().to_string(), &image]).ok();
    assert!(fs::symlink_metadata(&link).expect("it is there").is_symlink());
    assert!(fs::metadata(&link).expect("it leads on").len() > 0);
}

fn with_sleeper() -> Daemon {
    let daemon = Daemon::with_busybox();
    let run = ["run", "-d", "--name", "it", "--network", "none", "busybox", "sleep", "100000"];
    daemon.hoist(run).ok();
    daemon
}

#[test]
fn a_process_goes_on_when_its_reader_leaves() {
    let daemon = with_sleeper();
    for (how, arguments) in [("closed", &["exec"][..]), ("tty", &["exec", "-t"])] {
        let script = format!("seq 100000; touch /{how}");
        let words = [arguments, &["it", "sh", "-c", &script]].concat();
        let mut client = piped(&daemon, &words);
        let mut first = String::new();
        BufReader::new(client.stdout.take().expect("piped")).read_line(&mut first).expect("text");
        assert_eq!(first.trim_end(), "1");
        assert_eq!(client.wait().expect("a child of ours").code(), Some(141), "as by SIGPIPE: {how}");
        wait_for_file(&daemon, "it", &format!("/{how}"));
    }
}

#[test]
fn a_process_goes_on_when_its_client_is_killed_and_its_input_ends() {
    let daemon = with_sleeper();
    let script = "echo begun; cat >/taken; seq 100000; touch /done";
    let mut client = piped(&daemon, &["exec", "-i", "it", "sh", "-c", script]);
    let mut first = String::new();
    BufReader::new(client.stdout.as_mut().expect("piped")).read_line(&mut first).expect("text");
    client.stdin.as_mut().expect("piped").write_all(b"typed").expect("it reads");
    eventually("it is typed", || {
        (daemon.hoist(["exec", "it", "cat", "/taken"]).stdout == "typed").then_some(())
    });
    client.kill().expect("it is there");
    client.wait().expect("a child of ours");
    wait_for_file(&daemon, "it", "/done");
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let daemon = with_sleeper();
    let device = full_device(daemon.dir());
    let full = || File::options().write(true).open(&device).expect("a device");
    let run = ["run", "--rm", "--network", "none", "busybox", "echo", "hi"];
    for words in [&run[..], &["exec", "it", "echo", "hi"], &["ps"], &["images"], &["inspect", "it"]] {
        let output = daemon.command(words).stdout(full()).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
        assert!(said.contains("write to standard output: no space left"), "{words:?}: {said}");
        assert!(!said.contains("panicked"), "{words:?}: {said}");
    }
    assert_eq!(daemon.hoist(["ps", "-aq"]).ok().stdout.lines().count(), 1, "what was to go has gone");
}

#[test]
fn a_run_whose_reader_leaves_keeps_its_container_running() {
    let daemon = Daemon::with_busybox();
    let script = "while :; do echo line; done";
    let mut client =
        piped(&daemon, &["run", "--name", "it", "--network", "none", "busybox", "sh", "-c", script]);
    let mut first = [0; 4];
    client.stdout.take().expect("piped").read_exact(&mut first).expect("it writes");
    assert_eq!(client.wait().expect("a child of ours").code(), Some(141));
    assert_eq!(daemon.hoist(["inspect", "-f", "{{.State.Status}}", "it"]).ok().text(), "running");
    daemon.hoist(["kill", "it"]).ok();
}

#[test]
fn events_end_once_nobody_reads_them() {
    let daemon = Daemon::start();
    let mut events = daemon.own_ctr_command(["events"]).stdout(Stdio::piped()).spawn().expect("it starts");
    drop(events.stdout.take());
    let mut round = 0;
    let code = eventually("ctr ends", || {
        daemon.own_ctr(["namespaces", "create", &format!("n{round}")]).ok();
        round += 1;
        events.try_wait().expect("a child of ours").map(|ended| ended.code())
    });
    assert_eq!(code, Some(141));
}

#[test]
fn what_ctr_runs_outlives_its_reader_and_no_full_disk() {
    let _hierarchies = HIERARCHIES.read();
    let daemon = Daemon::with_busybox();
    let image = daemon.own_ctr(["images", "ls", "-q"]).ok().text().to_owned();
    let run = |id: &str, script: &str| {
        daemon.own_ctr_command(["run", "--rm", "--runtime", OUR_RUNTIME, &image, id, "sh", "-c", script])
    };
    let state = || daemon.own_ctr(["tasks", "ls"]).ok().stdout;

    let mut client = run("lost-read", "while :; do echo line; done");
    let mut client = client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut first = [0; 4];
    client.stdout.take().expect("piped").read_exact(&mut first).expect("it writes");
    let ended = client.wait_with_output().expect("a child of ours");
    assert_eq!((ended.status.code(), ended.stderr), (Some(141), Vec::new()), "as by SIGPIPE");
    assert!(state().contains("RUNNING"), "it goes on\n{}", state());
    daemon.own_ctr(["tasks", "rm", "-f", "lost-read"]).ok();
    daemon.own_ctr(["containers", "rm", "lost-read"]).ok();

    let device = full_device(daemon.dir());
    let run = run("lost-full", "echo hi; exit 3");
    for mut command in [run, daemon.own_ctr_command(["images", "ls"]), daemon.own_ctr_command(["version"])] {
        let full = File::options().write(true).open(&device).expect("a device");
        let output = command.stdout(full).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
        assert!(said.contains("ctr: write to standard output: no space left"), "{command:?}: {said}");
        assert!(!said.contains("panicked"), "{command:?}: {said}");
    }
    assert_eq!(daemon.own_ctr(["containers", "ls", "-q"]).ok().text(), "", "what was to go has gone");
}

/// The state `exited` and the exit code appear at the same time.
#[test]
fn an_end_is_seen_in_one_step() {
    let daemon = Daemon::with_busybox();
    let format = "{{.State.Status}} {{.State.ExitCode}} {{if ne .State.FinishedAt \"0001-01-01T00:00:00Z\"}}ended{{end}}";
    for round in 0..8 {
        let name = format!("n{round}");
        daemon.hoist(["run", "-d", "--name", &name, "--network", "none", "busybox", "sleep", "1000"]).ok();
        let mut kill = daemon.command(["kill", &name]).stdout(Stdio::null()).spawn().expect("it starts");
        let mut seen = Vec::new();
        while seen.last().is_none_or(|last| last == "running 0") {
            let text = daemon.hoist(["inspect", "-f", format, &name]).ok().text().trim().to_owned();
            let row =
                daemon.hoist(["ps", "-a", "--filter", &format!("name={name}"), "--format", "{{.Status}}"]);
            let row = row.ok().text().to_owned();
            assert!(row.starts_with("Up") || row.starts_with("Exited (137) "), "{row}");
            seen.push(text);
        }
        kill.wait().expect("a child of ours");
        assert_eq!(seen.last().map(String::as_str), Some("exited 137 ended"), "{seen:?}");
    }
}

/// A second daemon at the same address, started by hand with another root, must not take the first one's shims for
/// strays.
#[test]
fn a_daemon_leaves_the_shims_of_another_alone() {
    let mut daemon = with_sleeper();
    let pid = daemon.hoist(["inspect", "-f", "{{.State.Pid}}", "it"]).ok().text().to_owned();
    daemon.kill();
    let refused = daemon.hoist(["ps"]).expect_code(1);
    assert!(refused.stderr.contains("HOIST_CONFIG"), "no other daemon is put in its place\n{refused}");

    let dir = tempfile::TempDir::with_prefix_in("ht-", "/var/tmp").expect("a temporary directory");
    let config = dir.path().join("config.toml");
    let (root, state) = (dir.path().join("root"), dir.path().join("state"));
    fs::write(&config, format!("root = {root:?}\nstate = {state:?}\n")).expect("a writable directory");
    let mut other = daemon.command(["ps", "-aq"]);
    assert_eq!(testkit::run(other.env("HOIST_CONFIG", &config)).ok().text(), "");
    let other = fs::read_to_string(state.join("daemon.pid")).expect("the daemon's pid file");
    testkit::run(Command::new("kill").arg(other.trim())).ok();
    let process = format!("/proc/{}", other.trim());
    eventually("the other ends", || (!fs::exists(&process).ok()?).then_some(()));
    testkit::unmount_below(dir.path());

    assert!(fs::exists(format!("/proc/{pid}")).expect("/proc"), "the container goes on");
    daemon.start_again();
    assert_eq!(daemon.hoist(["inspect", "-f", "{{.State.Status}}", "it"]).ok().text(), "running");
}
