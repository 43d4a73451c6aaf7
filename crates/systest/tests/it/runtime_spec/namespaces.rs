//! Namespaces, new and joined ones, and what is set in them: user mappings, clocks, loopback, network devices.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use testkit::{eventually, run};

use super::{add_namespace, map_users, ours};
use crate::runtime_bundle::{Runtime, bundle, give, same, script};

#[test]
fn user_namespaces_have_several_ranges() {
    let said = same("cat /proc/self/uid_map /proc/self/gid_map; id -u; stat -c %u /proc/1", |spec| {
        map_users(spec, &[(0, 100_000, 500), (500, 200_000, 500), (1000, 300_000, 1)]);
        spec["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["type"] != "cgroup");
        spec["process"]["user"] = json!({"uid": 500, "gid": 1000, "additionalGids": [3]});
        spec["root"]["readonly"] = json!(true);
    });
    assert!(said.contains("300000") && said.contains("\n500\n"), "{said}");
}

/// A second container in the namespaces of a first, as the containers of a pod are.
#[test]
fn namespaces_are_joined() {
    let runtime = Runtime::ours();
    for with_user in [false, true] {
        let first = bundle(|spec| {
            script(spec, "echo up; sleep 1000");
            spec["hostname"] = json!("of-the-first");
            if with_user {
                map_users(spec, &[(0, 100_000, 65_536)]);
            }
        });
        let id = runtime.id("first");
        let path = first.path().display().to_string();
        runtime
            .command(&["run", "-d", "--bundle", &path, &id])
            .stdout(Stdio::null())
            .status()
            .expect("it runs");
        let state: Value = serde_json::from_str(&runtime.run(&["state", &id]).ok().stdout).expect("JSON");
        let pid = state["pid"].to_string();
        let join = |kind: &str, file: &str| json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")});
        let look = "for n in user net ipc uts; do readlink /proc/self/ns/$n; done; hostname; echo $$; id -u";
        let second = bundle(|spec| {
            script(spec, look);
            spec["hostname"] = json!("");
            for (kind, file) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts")] {
                add_namespace(spec, join(kind, file));
            }
            if with_user {
                add_namespace(spec, join("user", "user"));
            }
        });
        if with_user {
            give(&second, 100_000);
        }
        let second_path = second.path().display().to_string();
        let said = runtime.run(&["run", "--bundle", &second_path, &runtime.id("second")]).ok();
        let link = |file: &str| {
            fs::read_link(format!("/proc/{pid}/ns/{file}")).expect("it runs").display().to_string()
        };
        let expected = format!(
            "{}\n{}\n{}\n{}\nof-the-first\n1\n0",
            link("user"),
            link("net"),
            link("ipc"),
            link("uts")
        );
        assert_eq!(said.text(), expected, "with a user namespace: {with_user}");
        // The pid namespace too, and a process that enters.
        let third = bundle(|spec| {
            script(spec, "readlink /proc/self/ns/pid");
            add_namespace(spec, join("pid", "pid"));
            if with_user {
                add_namespace(spec, join("user", "user"));
            }
        });
        if with_user {
            give(&third, 100_000);
        }
        let third_path = third.path().display().to_string();
        let said = runtime.run(&["run", "--bundle", &third_path, &runtime.id("third")]).ok();
        assert_eq!(said.text(), link("pid"), "with a user namespace: {with_user}");
        let exec = runtime.run(&["exec", &id, "sh", "-c", look]).ok();
        assert!(exec.text().starts_with(&link("user")), "{exec}");
        runtime.run(&["delete", "--force", &id]).ok();
    }
}

/// `config-linux.md`, "Namespaces": it is an error, and nothing of the container is made in another one.
#[test]
fn a_namespace_of_another_kind_is_not_joined() {
    let kinds = ["network", "ipc", "uts", "pid", "user", "mount", "cgroup", "time"];
    for kind in kinds {
        let other = if kind == "network" { "ipc" } else { "net" };
        for path in [format!("/proc/self/ns/{other}"), "/etc/hostname".to_owned()] {
            let bundle = bundle(|spec| {
                script(spec, "echo ran");
                add_namespace(spec, json!({"type": kind, "path": path}));
            });
            let bundle_path = bundle.path().display().to_string();
            let runtime = Runtime::ours();
            let refused = runtime.run(&["run", "--bundle", &bundle_path, &runtime.id("kind")]);
            assert_eq!((refused.code, refused.text()), (1, ""), "{kind} {path}: {refused}");
            refused.expect_stderr(&format!("join {kind} namespace"));
            assert_eq!(runtime.run(&["list", "-q"]).ok().text(), "", "nothing is left");
        }
    }
}

#[test]
fn a_new_network_has_its_loopback() {
    let new = json!({"type": "network"});
    let flags = same("cat /sys/class/net/lo/flags", |spec| add_namespace(spec, new.clone()));
    assert_eq!(flags, "0x9\n", "up, and loopback (netdevice(7))");
    let mapped = ours("cat /sys/class/net/lo/flags", |spec| {
        add_namespace(spec, new.clone());
        map_users(spec, &[(0, 100_000, 1000)]);
    });
    assert_eq!(mapped, "0x9");
}

#[test]
fn clocks_are_set_off() {
    let look = "cat /proc/self/timens_offsets; busybox cut -d. -f1 /proc/uptime";
    let mut uptime = String::new();
    for with_user in [false, true] {
        uptime = ours(look, |spec| {
            add_namespace(spec, json!({"type": "time"}));
            spec["linux"]["timeOffsets"] =
                json!({"monotonic": {"secs": 86_400}, "boottime": {"secs": 1_000_000, "nanosecs": 5}});
            if with_user {
                map_users(spec, &[(0, 100_000, 1000)]);
            }
        });
        let fields: Vec<&str> = uptime.split_whitespace().collect();
        assert_eq!(&fields[..6], ["monotonic", "86400", "0", "boottime", "1000000", "5"], "{uptime}");
    }
    let seconds: u64 = uptime.split_whitespace().last().and_then(|last| last.parse().ok()).expect("a number");
    assert!(seconds >= 1_000_000, "{uptime}");
}

#[test]
fn network_devices_move_in_with_their_addresses() {
    let (device, peer) = (format!("hd{}", std::process::id()), format!("hp{}", std::process::id()));
    let ip = |words: &[&str]| run(Command::new("ip").args(words));
    ip(&["link", "add", &device, "type", "veth", "peer", "name", &peer]).ok();
    ip(&["address", "add", "192.0.2.7/24", "dev", &device]).ok();
    ip(&["address", "add", "2001:db8::7/64", "dev", &device, "nodad"]).ok();
    let said = ours("busybox ip -o address show eth7; ls /sys/class/net", |spec| {
        spec["linux"]["netDevices"] = json!({device.as_str(): {"name": "eth7"}});
    });
    assert!(said.contains("192.0.2.7/24") && said.contains("2001:db8::7/64"), "{said}");
    assert!(said.ends_with("eth7\nlo"), "{said}");
    assert_ne!(ip(&["link", "show", &device]).code, 0, "it went with its namespace");
    // Its other end goes with it, when the kernel takes the namespace down: some time after the container's end.
    eventually("its peer is gone", || (ip(&["link", "show", &peer]).code != 0).then_some(()));
    // A template, after names that are no templates.
    ip(&["link", "add", &device, "type", "veth", "peer", "name", &peer]).ok();
    let said = ours("ls /sys/class/net", |spec| {
        spec["linux"]["netDevices"] =
            json!({device.as_str(): {"name": "net%d"}, peer.as_str(): {"name": "net0"}});
    });
    assert_eq!(said, "lo\nnet0\nnet1");
    // An alternative name is taken too.
    ip(&["link", "add", &device, "type", "veth", "peer", "name", &peer]).ok();
    ip(&["link", "property", "add", "dev", &device, "altname", "other0"]).ok();
    let said = ours("ls /sys/class/net", |spec| {
        spec["linux"]["netDevices"] =
            json!({device.as_str(): {"name": "lan"}, peer.as_str(): {"name": "other%d"}});
    });
    assert_eq!(said, "lan\nlo\nother1");
    // A sysctl of one, whose name has a dot.
    ip(&["link", "add", &device, "type", "veth", "peer", "name", &peer]).ok();
    let said = ours("cat /proc/sys/net/ipv4/conf/eth7.100/tag", |spec| {
        spec["linux"]["netDevices"] = json!({device.as_str(): {"name": "eth7.100"}});
        spec["linux"]["sysctl"] = json!({"net.ipv4.conf.eth7/100.tag": "7"});
    });
    assert_eq!(said, "7");
    for (devices, words) in
        [(json!({"hd-none": {}}), "not there"), (json!({"lo": {"name": "a/b"}}), "no name")]
    {
        let bundle = bundle(|spec| spec["linux"]["netDevices"] = devices.clone());
        let runtime = Runtime::ours();
        let path = bundle.path().display().to_string();
        let refused = runtime.run(&["run", "--bundle", &path, &runtime.id("netdev")]);
        refused.expect_code(1).expect_stderr(words);
        assert_eq!(runtime.run(&["list", "-q"]).ok().text(), "", "nothing is left");
    }
}
