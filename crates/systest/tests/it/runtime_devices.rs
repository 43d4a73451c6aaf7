//! Device nodes of the spec (`linux.devices`), compared with Debian's runc.

use std::process::Command;

use serde_json::{Value, json};
use testkit::run;

use crate::runtime_bundle::{Runtime, bundle, same, script};

/// Name, mode, owner, device number and type of each path, in the order of the list.
fn look(paths: &[&str]) -> String {
    format!("busybox stat -c '%n %a %u:%g %t:%T %F' {}", paths.join(" "))
}

/// Adds a user namespace in which root of the host has no id.
fn map_users(spec: &mut Value) {
    spec["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({"type": "user"}));
    for kind in ["uidMappings", "gidMappings"] {
        spec["linux"][kind] = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    }
}

#[test]
fn devices_of_every_kind_are_made() {
    let paths = [
        "/dev/char",
        "/dev/unbuffered",
        "/dev/block",
        "/dev/fifo",
        "/dev/sub/deep/x",
        "/outside/y",
        "/dev/full",
    ];
    let said = same(&look(&paths), |spec| {
        spec["linux"]["devices"] = json!([
            {"path": "/dev/char", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 7, "gid": 8},
            {"path": "/dev/unbuffered", "type": "u", "major": 1, "minor": 3},
            {"path": "/dev/block", "type": "b", "major": 7, "minor": 4095, "fileMode": 0o600, "gid": 6},
            {"path": "/dev/fifo", "type": "p", "fileMode": 0o622, "uid": 9},
            {"path": "/dev/sub/deep/x", "type": "c", "major": 300, "minor": 70_000},
            {"path": "/outside/y", "type": "c", "major": 1, "minor": 5, "fileMode": 0o777},
            // In place of the default device.
            {"path": "/dev/full", "type": "c", "major": 1, "minor": 7, "fileMode": 0o444, "uid": 5},
        ]);
    });
    for line in [
        "/dev/char 640 7:8 a:e5 character special file",
        "/dev/unbuffered 666 0:0 1:3 character special file",
        "/dev/block 600 0:6 7:fff block special file",
        "/dev/fifo 622 9:0 0:0 fifo",
        "/dev/sub/deep/x 666 0:0 12c:11170 character special file",
        "/outside/y 777 0:0 1:5 character special file",
        "/dev/full 444 5:0 1:7 character special file",
    ] {
        assert!(said.contains(line), "{line}\n{said}");
    }
}

/// Device nodes cannot be made in a user namespace, so the host's are bind-mounted, with their mode and owner.
#[test]
fn devices_are_the_hosts_in_a_user_namespace() {
    let said = same(&look(&["/dev/ptmx", "/dev/full", "/dev/kmsg"]), |spec| {
        map_users(spec);
        spec["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["type"] != "cgroup");
        spec["linux"]["devices"] =
            json!([{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o600, "uid": 0}]);
    });
    assert!(said.contains("/dev/kmsg") && said.contains(" 1:b ") && said.contains("65534"), "{said}");
}

/// `config-linux.md`, "Devices": a file that exists must be the device, or the runtime reports an error. Debian's runc
/// leaves it as it is.
#[test]
fn what_is_in_the_place_of_a_device_is_that_device_or_an_error() {
    let device = |kind: &str, major: u32, minor: u32| json!({"path": "/place", "type": kind, "major": major, "minor": minor});
    let null = ["c", "1", "3"];
    let rows: [(&str, Option<[&str; 3]>, Value, bool); 7] = [
        ("the same", Some(null), device("c", 1, 3), true),
        ("the same, unbuffered", Some(null), device("u", 1, 3), true),
        ("a fifo", Some(["p", "", ""]), json!({"path": "/place", "type": "p"}), true),
        ("other numbers", Some(["c", "1", "5"]), device("c", 1, 3), false),
        ("another kind", Some(["b", "1", "3"]), device("c", 1, 3), false),
        ("no fifo", Some(null), json!({"path": "/place", "type": "p"}), false),
        ("a directory", None, device("c", 1, 3), false),
    ];
    for (what, there, device, is_taken) in rows {
        let bundle = bundle(|spec| {
            spec["linux"]["devices"] = json!([device]);
            script(spec, "test -e /place && echo ran");
        });
        let place = bundle.path().join("rootfs/place");
        match there {
            Some(words) => {
                let words = words.iter().filter(|word| !word.is_empty());
                run(Command::new("mknod").arg(&place).args(words)).ok();
            }
            None => std::fs::create_dir(&place).unwrap(),
        }
        let path = bundle.path().display().to_string();
        let runtime = Runtime::ours();
        let done = runtime.run(&["run", "--bundle", &path, &runtime.id("place")]);
        if is_taken {
            assert_eq!(done.ok().text(), "ran", "{what}");
        } else {
            done.expect_code(1).expect_stderr("make device /place: something else is there");
        }
    }
}

#[test]
fn what_is_no_device_is_refused() {
    for (device, words) in [
        (json!({"path": "/dev/x", "type": "s", "major": 1, "minor": 3}), "unknown type \"s\""),
        (json!({"path": "/dev/x", "type": "c", "major": -1, "minor": 3}), "/dev/x"),
        (json!({"path": "/", "type": "c", "major": 1, "minor": 3}), "make device /"),
    ] {
        let bundle = bundle(|spec| spec["linux"]["devices"] = json!([device]));
        let path = bundle.path().display().to_string();
        let runtime = Runtime::ours();
        runtime.run(&["run", "--bundle", &path, &runtime.id("device")]).expect_code(1).expect_stderr(words);
    }
}
