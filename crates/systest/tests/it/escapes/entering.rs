//! Processes that enter a container, whose own processes lay traps on their way.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Stdio;

use serde_json::json;
use tempfile::TempDir;
use testkit::{ShimHost, eventually, is_root};

use super::{Race, Running, Runtime, add_mount, attempt, bundle, script};

/// A link in `/dev` through `/proc` leads wherever a process of the container, or the one that enters, has
/// something open.
#[test]
fn terminals_and_streams_are_not_looked_for_through_magic_links() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let _events = host.listen();
    for (link, works) in [("../tmp", true), ("/proc/self/root/tmp", false), ("/proc/1/root/tmp", false)] {
        let task = host
            .container("links", &format!("busybox ln -s {link} /dev/pts; exec busybox sleep 1000"))
            .with(|container| {
                for mount in container.spec["mounts"].as_array_mut().expect("mounts") {
                    match mount["destination"].as_str() {
                        // The terminals are there, but not where they are looked for.
                        Some("/dev/pts") => mount["destination"] = json!("/tmp"),
                        Some("/tmp") => mount["destination"] = json!("/dev/shm"),
                        _ => {}
                    }
                }
            })
            .run();
        eventually("the link is there", || (task.run_exec("look", "test -L /dev/pts") == 0).then_some(()));
        task.exec("terminal", "exit 3", |exec| exec.terminal = true).unwrap();
        match task.try_start("terminal") {
            Ok(_) => assert!(works && task.wait("terminal") == 3, "{link}"),
            Err(error) => {
                assert!(!works && error.message().contains("/dev/pts"), "{link}: {}", error.chain());
            }
        }
        task.delete("terminal").unwrap();
        task.end();
    }
}

/// CVE-2021-30465's sibling: a tmpfs that takes what it covers reads a directory that another container exchanges
/// for a link to the host.
#[test]
fn a_tmpfs_takes_nothing_of_the_host_along() {
    let runtime = Runtime::ours();
    let host = TempDir::new().expect("a temporary directory");
    fs::write(host.path().join("secret"), "of the host").expect("writable");
    let bundle = bundle(|spec| {
        add_mount(
            spec,
            json!({"destination": "/shared", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}),
        );
        script(spec, "test -L /shared/dir || cat /shared/dir/secret 2>/dev/null; echo done");
    });
    let shared = bundle.path().join("rootfs/shared");
    fs::create_dir_all(shared.join("dir")).expect("a writable root");
    let (dir, link) = (shared.join("dir"), bundle.path().join("link"));
    symlink(host.path(), &link).expect("writable");
    let race = Race::start(move || {
        let exchange = rustix::fs::RenameFlags::EXCHANGE;
        let _ = rustix::fs::renameat_with(rustix::fs::CWD, &dir, rustix::fs::CWD, &link, exchange);
    });
    for _ in 0..60 {
        let done = attempt(&runtime, &bundle);
        // What vanished on the way may be an error.
        assert!(done.code != 0 || done.text() == "done", "{done}");
    }
    race.stop();
}

/// A container that was told to start is never taken for one that may be deleted without a word: whoever tells it may
/// be killed in between.
#[test]
fn a_container_whose_starter_was_killed_is_not_deleted_without_force() {
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| {
        script(spec, "exec sleep 1000");
        spec["hooks"] = json!({"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "echo > /begun; exec sleep 1000"]}]});
    });
    let path = bundle.path().display().to_string();
    let id = runtime.id("starter");
    let create = runtime.command(&["create", "--bundle", &path, &id]).stdout(Stdio::null()).status();
    assert!(create.expect("it runs").success());
    let running = Running { runtime: &runtime, id: id.clone() };
    let mut start = runtime.command(&["start", &id]).stdout(Stdio::null()).spawn().expect("it runs");
    eventually("it was told", || bundle.path().join("rootfs/begun").exists().then_some(()));
    start.kill().expect("a child of ours");
    start.wait().expect("a child of ours");
    assert_ne!(runtime.run(&["delete", &id]).code, 0, "it was deleted");
    assert_ne!(runtime.run(&["start", &id]).code, 0, "it was started twice");
    drop(running);
    assert_eq!(runtime.run(&["list", "-q"]).ok().text(), "");
}
