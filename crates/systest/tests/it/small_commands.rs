//! containerd's small commands, which shims and hooks call: `publish` and `oci-hook`.

use std::fs;
use std::process::{Command, Stdio};

use api::shim::events::TaskExit;
use api::shim::{pack, unpack};
use prost::Message;
use tempfile::TempDir;
use testkit::{Daemon, Finished, hoist_program, run};

use crate::typed::{events, on};

/// The program by containerd's name, or by its own.
fn called(dir: &TempDir, name: &str) -> Command {
    let link = dir.path().join(name);
    if !link.exists() {
        std::os::unix::fs::symlink(hoist_program(), &link).expect("a writable directory");
    }
    Command::new(link)
}

/// Runs a command with these bytes as its standard input.
fn told(dir: &TempDir, command: &mut Command, bytes: &[u8]) -> Finished {
    let file = dir.path().join("input");
    fs::write(&file, bytes).expect("a writable directory");
    run(command.stdin(Stdio::from(fs::File::open(file).expect("it was written"))))
}

#[test]
fn an_event_is_published_by_the_program_that_shims_know() {
    let (daemon, dir) = (Daemon::start(), TempDir::new().expect("a temporary directory"));
    on(&daemon, async |channel| {
        let mut heard = events(&channel, &["/tasks/exit", "/of/ours"]).await;
        let exit = TaskExit { container_id: "c1".into(), pid: 42, exit_status: 3, ..TaskExit::default() };
        let event = pack(&exit).encode_to_vec();
        // As shims call it: by the path of the daemon's program, whatever its name is.
        for (name, address) in [
            ("containerd", daemon.socket().display().to_string()),
            ("hoist", daemon.socket().display().to_string()),
            ("containerd", format!("unix://{}", daemon.socket().display())),
        ] {
            let mut publish = called(&dir, name);
            publish.args([
                "--address",
                &address,
                "publish",
                "--topic",
                "/tasks/exit",
                "--namespace",
                "theirs",
            ]);
            told(&dir, &mut publish, &event).ok();
            let envelope = heard.message().await.expect("the stream lasts").expect("an event");
            assert_eq!(
                (&*envelope.topic, &*envelope.namespace),
                ("/tasks/exit", "theirs"),
                "{name} {address}"
            );
            assert_eq!(unpack::<TaskExit>(&envelope.event.expect("an event")), Some(Ok(exit.clone())));
        }
        let socket = daemon.socket();
        let socket = socket.to_str().expect("a plain path");
        for (words, input, said) in [
            (&["--namespace", "n"][..], &event[..], "--topic"),
            (&["--topic", "/of/ours"], &event, "namespace is required"),
            (&["--topic", "/of/ours", "--namespace", "n"], b"\xff", "google.protobuf.Any"),
            (&["--topic", "no topic", "--namespace", "n"], &event, "no topic"),
        ] {
            let mut publish = called(&dir, "containerd");
            let refused = told(&dir, publish.args(["--address", socket, "publish"]).args(words), input);
            assert!(refused.code != 0 && refused.stderr.contains(said), "{words:?} {refused}");
        }
    });
}

#[test]
fn a_hook_is_told_of_its_container_in_its_words() {
    let dir = TempDir::new().expect("a temporary directory");
    fs::write(dir.path().join("config.json"), r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"}}"#)
        .expect("a writable directory");
    let state = |bundle: &str| {
        format!(
            r#"{{"ociVersion":"1.0.2","id":"c1","status":"created","pid":42,"bundle":{bundle:?},"annotations":{{"a":"x y"}}}}"#
        )
    };
    let bundle = dir.path().to_str().expect("a plain path");
    let mut hook = called(&dir, "containerd");
    hook.args(["oci-hook", "/bin/sh", "-c", "echo \"$0|$1|$2|$3|$TOLD\"; exit 3"])
        .args(["{{id}}", "--pid={{pid}}", "{{rootfs}}", "{{annotation \"a\"}}"])
        .env("TOLD", "{{status}}");
    let finished = told(&dir, &mut hook, state(bundle).as_bytes()).expect_code(3);
    assert_eq!(finished.text(), format!("c1|--pid=42|{bundle}/rootfs|x y|created"));

    for (words, state, said) in [
        (&["/bin/true", "{{name}}"][..], state(bundle), "{{name}}"),
        (&["/bin/true"], state("/nosuch"), "/nosuch/config.json"),
        (&["/bin/true"], "none".to_owned(), "standard input"),
        (&["/nosuch/program"], state(bundle), "/nosuch/program"),
        (&[], state(bundle), "oci-hook PROGRAM"),
    ] {
        let mut hook = called(&dir, "containerd");
        let refused = told(&dir, hook.arg("oci-hook").args(words), state.as_bytes());
        assert!(refused.code != 0 && refused.stderr.contains(said), "{words:?} {refused}");
    }
}
