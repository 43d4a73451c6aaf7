//! Commands that need no daemon, and commands whose daemon does not start.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use testkit::{Finished, hoist_program, run};

/// A command for a daemon below this directory, started by a configuration if there is one.
fn called(dir: &TempDir, config: Option<&str>, words: &[&str]) -> Finished {
    let mut command = Command::new(hoist_program());
    command.arg("-H").arg(dir.path().join("hoist.sock")).args(words);
    command.env("HOME", dir.path()).env_remove("DOCKER_CONFIG").env_remove("HOIST_NO_AUTOSTART");
    match config {
        Some(text) => {
            let file = dir.path().join("config.toml");
            fs::write(&file, text).expect("a writable directory");
            command.env("HOIST_CONFIG", file);
        }
        None => {
            command.env_remove("HOIST_CONFIG");
        }
    }
    run(&mut command)
}

#[test]
fn what_needs_no_daemon_is_had_without() {
    let dir = TempDir::new().expect("a temporary directory");
    let left = called(&dir, None, &["logout", "localhost:5000"]).ok();
    assert_eq!(left.text(), "Not logged in to localhost:5000");
    let folder = dir.path().join("docker");
    fs::create_dir(&folder).expect("a writable directory");
    let login = r#"{"auths": {"localhost:5000": {"auth": "YTpi"}}}"#;
    fs::write(folder.join("config.json"), login).expect("a writable directory");
    let folder = folder.display().to_string();
    let left = called(&dir, None, &["--config", &folder, "-l", "error", "logout", "localhost:5000"]).ok();
    assert_eq!(left.text(), "Removing login credentials for localhost:5000");
    let version = called(&dir, None, &["version"]).expect_code(1);
    version.expect_stderr("hoist daemon at");
    let version = called(&dir, None, &["version", "-f", "{{.Client.Os}}"]).expect_code(1);
    assert_eq!(version.text(), "linux");
}

#[test]
fn a_daemon_that_does_not_come_up_is_not_waited_for() {
    let dir = TempDir::new().expect("a temporary directory");
    let begun = Instant::now();
    let failed = called(&dir, Some("nonsense = true"), &["ps"]).expect_code(1);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    failed.expect_stderr("has failed").expect_stderr("nonsense");
}

#[test]
fn what_is_done_without_a_daemon_starts_none() {
    let dir = TempDir::new().expect("a temporary directory");
    // With this a daemon would be started, and fail.
    let called = |words: &[&str]| called(&dir, Some("nonsense = true"), words);
    let missing = called(&["system", "import-containerd"]).expect_code(1);
    missing.expect_stderr("DIR is missing: hoist system import-containerd /var/lib/containerd");
    let missing = called(&["-D", "--config", "/x", "system", "import-containerd"]).expect_code(1);
    missing.expect_stderr("DIR is missing");
    for (words, shown) in [
        (&["system", "unmount", "--help"][..], "Take down what a daemon left mounted"),
        (&["system", "import-containerd", "/var/lib/containerd", "-h"], "Take over images and blobs"),
        (
            &["-D", "-l", "info", "system", "unmount", "--root", "/x", "--help"],
            "Take down what a daemon left mounted",
        ),
    ] {
        let help = called(words).ok();
        assert!(help.stdout.starts_with(shown) && help.stdout.contains("--config FILE"), "{help}");
    }
}

#[test]
fn each_part_shows_its_help() {
    let shown = |words: &[&str]| run(Command::new(hoist_program()).args(words)).ok();
    for (part, title) in [
        ("daemon", "Usage: hoist daemon"),
        ("ctr", "ctr - a client for containerd's API"),
        ("runtime", "hoist runtime"),
    ] {
        for words in [["help", part], [part, "--help"]] {
            let help = shown(&words);
            assert!(help.stdout.contains(title), "{words:?}: {help}");
        }
    }
    assert!(shown(&["help", "ctr", "images"]).stdout.contains("ctr images"));
    // Help does nothing else, as it would say if it could not read the file.
    let help = shown(&["daemon", "--config", "/nonexistent", "unmount", "--help"]);
    assert!(help.stdout.contains("Usage: hoist daemon"), "{help}");
}

/// What Docker's users type first: told why, before any daemon is started.
#[test]
fn commands_that_are_none_here_say_what_there_is() {
    let dir = TempDir::new().expect("a temporary directory");
    let called = |words: &[&str]| called(&dir, Some("nonsense = true"), words);
    for (words, way_out) in [
        (&["build", "-t", "x", "."][..], "hoist load"),
        (&["compose", "up", "-d"], "dockerd --containerd"),
        (&["search", "x"], "hoist pull"),
        (&["secret", "ls"], "no clusters"),
        (&["ctr", "images", "ls"], "are the first word"),
    ] {
        called(words).expect_code(1).expect_stderr(way_out);
    }
    assert!(called(&["compose", "--help"]).ok().stdout.starts_with("there is no compose"));
    let help = called(&["--help"]).ok();
    for (word, is_listed) in [("daemon", true), ("ctr", true), ("runtime", true), ("compose", false)] {
        assert_eq!(help.stdout.contains(&format!("\n  {word} ")), is_listed, "{word}: {help}");
    }
}

#[test]
fn where_no_daemon_is_one_way_out_is_told() {
    let dir = TempDir::new().expect("a temporary directory");
    let refused = called(&dir, None, &["ps"]).expect_code(1).expect_stderr("HOIST_CONFIG=FILE");
    assert!(!refused.stderr.contains("hint:"), "{refused}");
    let refused = run(Command::new(hoist_program()).args(["-H", "tcp://10.0.0.5:2376", "ps"])).expect_code(1);
    refused.expect_stderr("only unix sockets are spoken to");
}

/// `ctr` begins with containerd's words, for which scripts look, and says on a second line who starts the daemon.
#[test]
fn ctr_says_what_containerds_does_and_how_the_daemon_is_started() {
    let dir = TempDir::new().expect("a temporary directory");
    let (ctr, socket) = (dir.path().join("ctr"), dir.path().join("none.sock"));
    std::os::unix::fs::symlink(hoist_program(), &ctr).expect("a writable directory");
    let refused =
        |words: &[&str]| run(Command::new(&ctr).arg("--address").arg(&socket).args(words)).expect_code(1);
    let shown = socket.display();
    let hint = format!("hint: start the daemon of this socket, as root: hoist daemon --address {shown}\n");
    let missing =
        format!("ctr: cannot access socket {shown}: stat {shown}: no such file or directory\n{hint}");
    assert_eq!(refused(&["images", "ls"]).stderr, missing);
    let version = refused(&["version"]);
    assert_eq!(version.stderr, missing);
    assert!(version.stdout.starts_with("Client:"), "{version}");

    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a writable directory"));
    let unanswered = format!(
        "ctr: connection error: desc = \"transport: Error while dialing: dial unix {shown}: connect: connection \
         refused\": unavailable\n{hint}"
    );
    assert_eq!(refused(&["images", "ls"]).stderr, unanswered);
}
