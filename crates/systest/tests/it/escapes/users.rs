//! Users: files of the image that list them, and the ids that a container's user gets.

use std::fs::{self, File};
use std::process::Command;

use serde_json::json;
use testkit::{Daemon, is_root, run};

use super::{Running, attempt};
use crate::runtime_bundle::{Runtime, bundle, script};

/// CVE-2026-135844: a huge `/etc/passwd`, in which the runtime looks up its user's home.
#[test]
fn users_of_an_image_are_not_read_without_end() {
    let bundle = bundle(|spec| {
        spec["process"]["env"] = json!(["PATH=/bin"]);
        script(spec, "echo home $HOME");
    });
    let etc = bundle.path().join("rootfs/etc");
    fs::create_dir_all(&etc).expect("a writable root");
    let users = File::create(etc.join("passwd")).expect("a writable root");
    users.set_len(1 << 40).expect("a file that takes no room");
    assert_eq!(attempt(&Runtime::ours(), &bundle).ok().text().trim(), "home /");
}

#[test]
fn a_pipe_in_place_of_the_list_of_users_keeps_nobody_waiting() {
    let bundle = bundle(|spec| {
        script(spec, "echo ran");
        let hook = json!([{"path": "/bin/true", "timeout": 5}]);
        spec["hooks"] = json!({"startContainer": hook, "createRuntime": hook, "poststop": hook});
    });
    let etc = bundle.path().join("rootfs/etc");
    fs::create_dir(&etc).unwrap();
    for name in ["passwd", "group"] {
        run(Command::new("mkfifo").arg(etc.join(name))).ok();
    }
    assert_eq!(attempt(&Runtime::ours(), &bundle).ok().text(), "ran");
}

/// Whoever opens some devices has done something to the machine. The daemon looks for users where a container may have put one, and
/// the group of a user is among the further ones, so that what is closed to it stays closed (CVE-2023-25173).
#[test]
fn files_of_users_are_files() {
    if !is_root("a daemon") {
        return;
    }
    let daemon = Daemon::with_busybox();
    let run = ["run", "-d", "--name", "up", "--network", "none", "-u", "0:5", "busybox", "sleep", "1000"];
    daemon.hoist(run).ok();
    assert_eq!(daemon.hoist(["exec", "up", "id", "-G"]).ok().text(), "5");
    for place in ["mknod /etc/passwd c 10 130", "ln -s /proc/kmsg /etc/passwd", "mkfifo /etc/passwd"] {
        let change = format!("rm -f /etc/passwd && {place}");
        daemon.hoist(["exec", "-u", "0:0", "up", "sh", "-c", &change]).ok();
        let refused = daemon.hoist(["exec", "-u", "web", "up", "true"]);
        assert_ne!(refused.code, 0, "{place}: {refused}");
        refused.expect_stderr("/etc/passwd is no regular file");
        daemon.hoist(["exec", "up", "rm", "/etc/passwd"]).ok();
    }
    daemon.hoist(["rm", "-f", "up"]).ok();
}

/// CVE-2024-40635: a number of a user that does not fit becomes another, 0 for one.
#[test]
fn a_user_whose_number_does_not_fit_is_not_root() {
    if !is_root("a daemon") {
        return;
    }
    let daemon = Daemon::with_busybox();
    for user in [
        "4294967296",
        "4294967296:4294967296",
        "-4294967296",
        "18446744073709551616",
        "2147483648",
        "4294967295",
    ] {
        let done =
            daemon.hoist(["run", "--rm", &format!("--user={user}"), "busybox", "sh", "-c", "id -u; id -g"]);
        let is_root = done.stdout.lines().next() == Some("0");
        assert!(done.code != 0 || !is_root, "{user}: {done}");
    }
}

/// The one number that setresuid(2) takes for "leave it": the runtime's own user, root, would be left.
#[test]
fn the_number_that_is_nobodys_leaves_nobody_root() {
    let runtime = Runtime::ours();
    for which in ["uid", "gid"] {
        let bundle = bundle(|spec| {
            spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
            spec["process"]["user"][which] = json!(u32::MAX);
            script(spec, "id -u; id -g");
        });
        let done = attempt(&runtime, &bundle);
        assert_ne!(done.code, 0, "{which}: {done}");
        done.expect_stderr("4294967295");
    }
    let bundle = bundle(|spec| script(spec, "sleep 1000"));
    let running = Running::start(&runtime, &bundle);
    let done = running.exec_with(&["--user", "4294967295:4294967295"], &["id", "-u"]);
    assert!(done.code != 0 && done.stdout.is_empty(), "{done}");
}
