//! Nodes that the spec asks for (`linux.devices`), beside Debian's runc.

use serde_json::{Value, json};

use crate::runtime_bundle::{Runtime, bundle, same};

/// Mode, owner, number and kind of each path, in its order.
fn look(paths: &[&str]) -> String {
    format!("busybox stat -c '%n %a %u:%g %t:%T %F' {}", paths.join(" "))
}

/// For everybody in a user namespace: 0 is nobody's there.
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
            // In place of the one that every container has.
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

/// Where no node may be made, the host's is shown as it is.
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
