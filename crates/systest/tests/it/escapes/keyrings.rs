//! Session keyrings: a container has its own, which its processes share with those that enter, and with nobody else.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use testkit::{eventually, run};

use super::Running;
use crate::runtime_bundle::{Runtime, bundle, compile, read_text, script};

/// Like CVE-2014-3499: keys of the caller's session keyring.
#[test]
fn the_session_keyring_is_the_containers_own() {
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| {
        spec["linux"]["maskedPaths"] = json!([]);
        script(spec, "cat /proc/keys");
    });
    let path = bundle.path().display().to_string();
    for (flags, own) in [(&[][..], true), (&["--no-new-keyring"], false)] {
        let id = runtime.id("keyring");
        let keys = runtime.run(&[&["run", "--bundle", &path], flags, &[&id]].concat()).ok();
        assert_eq!(keys.stdout.contains(&format!("_ses.{id}.")), own, "{flags:?} {keys}");
    }
    // An exec is in the session keyring of the first process, not in the caller's.
    let bundle = self::bundle(|spec| {
        spec["linux"]["maskedPaths"] = json!([]);
        script(spec, "/session > /first; sleep 1000");
    });
    let path = bundle.path().display().to_string();
    let (program, first) = (bundle.path().join("rootfs/session"), bundle.path().join("rootfs/first"));
    compile(SESSION, &program);
    let outside = run(&mut Command::new(&program)).ok();
    for (flags, own) in [(&[][..], true), (&["--no-new-keyring"], false)] {
        let id = runtime.id("entered");
        let words = [&["run", "-d", "--bundle", &path], flags, &[&id]].concat();
        assert!(runtime.command(&words).stdout(Stdio::null()).status().expect("it runs").success());
        let _running = Running { runtime: &runtime, id: id.clone() };
        let first = eventually("the first process has spoken", || {
            fs::read_to_string(&first).ok().filter(|text| text.ends_with('\n'))
        });
        fs::remove_file(bundle.path().join("rootfs/first")).expect("just read");
        let entered = runtime.run(&["exec", &id, "/session"]).ok();
        assert_eq!(entered.stdout, first, "{flags:?}");
        assert_eq!(entered.stdout != outside.stdout, own, "{flags:?} {entered}");
        if own {
            // An exec does not change the permissions that the container has set on the keyring.
            runtime.run(&["exec", &id, "/session", "close"]).ok();
            let keys = runtime.run(&["exec", &id, "busybox", "grep", "_ses.", "/proc/keys"]).ok();
            assert!(keys.stdout.contains(" 3f090000 "), "{keys}");
        }
    }
}

/// As after a restore, since criu does not restore keyrings: the first exec makes the keyring.
#[test]
fn those_who_enter_are_in_one_keyring_though_nobody_made_it() {
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| script(spec, "sleep 1000"));
    compile(SESSION, &bundle.path().join("rootfs/session"));
    let running = Running::start(&runtime, &bundle);
    let id = running.id.clone();
    let file = runtime.root().join(&id).join("state.json");
    let mut state: Value = serde_json::from_str(&read_text(&file)).expect("state is JSON");
    state["keyring_name"] = json!(format!("_ses.{id}.another"));
    fs::write(&file, state.to_string()).expect("root may write it");
    let mut first = runtime.command(&["exec", &id, "sh", "-c", "/session; exec sleep 1000"]);
    let mut first = first.stdout(Stdio::piped()).spawn().expect("it runs");
    let mut keyring = String::new();
    BufReader::new(first.stdout.take().expect("a pipe")).read_line(&mut keyring).expect("it speaks");
    assert_eq!(running.exec(&["/session"]).ok().stdout, keyring);
    drop(running);
    first.wait().expect("a child of ours");
}

/// runc puts all containers of the same id and user namespace into one keyring.
#[test]
fn no_container_joins_the_keyring_of_another() {
    let runtimes = [Runtime::ours(), Runtime::ours()];
    let id = runtimes[0].id("same");
    let bundles = ["one", "other"].map(|name| {
        let bundle = bundle(|spec| {
            spec["linux"]["maskedPaths"] = json!([]);
            spec["linux"]["cgroupsPath"] = json!(format!("/{id}-{name}"));
            script(spec, "sleep 1000");
        });
        compile(SESSION, &bundle.path().join("rootfs/session"));
        compile(JOIN, &bundle.path().join("rootfs/join"));
        bundle
    });
    let mut running = Vec::new();
    for (runtime, bundle) in runtimes.iter().zip(&bundles) {
        let path = bundle.path().display().to_string();
        let mut command = runtime.command(&["run", "-d", "--bundle", &path, &id]);
        assert!(command.stdout(Stdio::null()).status().expect("it runs").success());
        running.push(Running { runtime, id: id.clone() });
    }
    let keyrings = [0, 1].map(|index| running[index].exec(&["/session"]).ok().stdout);
    assert_ne!(keyrings[0], keyrings[1]);
    let own = format!(" _ses.{id}");
    let seen = running[1].exec(&["busybox", "grep", "-c", &own, "/proc/keys"]).ok();
    assert_eq!(seen.text(), "1", "the other's is not to be seen");
    for name in [own.trim_start(), "_ses."] {
        let joined = running[1].exec(&["/join", name]).ok();
        assert_ne!(joined.stdout, keyrings[0], "{name}");
    }
}

/// A program that joins the session keyring of a name, and prints its serial number.
const JOIN: &str = r#"
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int argc, char **argv) { return printf("%ld\n", syscall(SYS_keyctl, 1, argv[1])) < 0; }
"#;

/// A program that prints the serial number of its session keyring. With an argument, it restricts the keyring to be
/// seen and searched by its owner.
const SESSION: &str = r#"
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int argc, char **argv) {
    if (argc > 1 && syscall(SYS_keyctl, 5, -3, 0x3f090000) < 0) return 1;
    return printf("%ld\n", syscall(SYS_keyctl, 0, -3, 0)) < 0;
}
"#;
