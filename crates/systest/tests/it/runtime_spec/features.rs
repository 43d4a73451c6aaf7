//! `runtime features`: all that runc reports, and only words that a bundle may use.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{add_namespace, map_users, mappable_disk, ours};
use crate::runtime_bundle::{Runtime, add_mount, missing, read_text};

/// `features` tells what is there: all that runc tells, and only words that a bundle may use.
#[test]
fn features_are_true() {
    let [ours, theirs] = Runtime::both().map(|runtime| -> Value {
        serde_json::from_str(&runtime.run(&["features"]).ok().stdout).expect("JSON")
    });
    let words = |features: &Value, pointer: &str| -> Vec<String> {
        let list = features.pointer(pointer).and_then(Value::as_array);
        list.into_iter().flatten().map(|word| word.as_str().expect("a word").to_owned()).collect()
    };
    let mut missing = missing(&theirs, &ours);
    // What is no promise: names and versions of its parts, processors that we do not run on.
    missing.retain(|path| {
        let other_processor = path.starts_with("/linux/seccomp/archs")
            && !["X86_64", "X86", "X32"].iter().any(|known| path.ends_with(&format!("SCMP_ARCH_{known}\"")));
        let other_part =
            ["libseccomp.version", "runc.commit", "runc.version"].iter().any(|part| path.ends_with(part));
        !other_processor && !other_part
    });
    assert!(missing.is_empty(), "{missing:?}\n{ours}");
    assert_eq!(ours["ociVersionMax"], "1.3.0");
    // All annotations that change what is done.
    let unsafe_ones = words(&ours, "/potentiallyUnsafeConfigAnnotations");
    assert_eq!(unsafe_ones, ["org.criu.config", "org.systemd.property."]);
    for seen in [
        "cgroup/v1",
        "cgroup/v2",
        "cgroup/rdma",
        "intelRdt/enabled",
        "intelRdt/schemata",
        "intelRdt/monitoring",
    ]
    .into_iter()
    .chain(["mountExtensions/idmap/enabled", "netDevices/enabled"])
    {
        assert_eq!(ours.pointer(&format!("/linux/{seen}")), Some(&json!(true)), "{seen}");
    }
    // A bundle may name each filter flag and each action.
    let flags = words(&ours, "/linux/seccomp/supportedFlags");
    assert_eq!(flags, words(&ours, "/linux/seccomp/knownFlags"));
    for architecture in words(&ours, "/linux/seccomp/archs") {
        let said = self::ours("grep Seccomp: /proc/self/status", |spec| {
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": [architecture],
                "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]});
        });
        assert_eq!(said, "Seccomp:\t2", "{architecture}");
    }
    // Each capability is one that a process can be given.
    let names = words(&ours, "/linux/capabilities");
    let said = self::ours("grep -E 'CapEff|CapBnd' /proc/self/status", |spec| {
        spec["process"]["capabilities"] = json!({"bounding": names, "effective": names, "permitted": names});
    });
    // This host's own may be fewer than its kernel's.
    let own = read_text(Path::new("/proc/self/status"));
    let all = own.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).expect("proc(5)");
    assert_eq!(said, format!("CapEff:\t{all}\nCapBnd:\t{all}"));
    // Each option is one that a mount takes.
    let options = words(&ours, "/mountOptions");
    let host = mappable_disk();
    let said = self::ours("busybox grep -c ' /m' /proc/self/mountinfo", |spec| {
        for (number, option) in options.iter().enumerate() {
            let mut mount = json!({"destination": format!("/m{number}"), "type": "bind", "source": host.path(), "options": ["bind", option]});
            if ["remount", "tmpcopyup"].contains(&option.as_str()) {
                continue;
            }
            if option.ends_with("idmap") {
                for kind in ["uidMappings", "gidMappings"] {
                    mount[kind] = json!([{"containerID": 0, "hostID": 5, "size": 1}]);
                }
            }
            add_mount(spec, mount);
        }
    });
    assert_eq!(said, (options.len() - 2).to_string());
    for namespace in words(&ours, "/linux/namespaces") {
        let file = match namespace.as_str() {
            "network" => "net",
            "mount" => "mnt",
            other => other,
        };
        let said = self::ours(&format!("readlink /proc/self/ns/{file}"), |spec| match namespace.as_str() {
            "user" => map_users(spec, &[(0, 100_000, 1000)]),
            kind => add_namespace(spec, json!({"type": kind})),
        });
        let own = fs::read_link(format!("/proc/self/ns/{file}")).expect("the kernel has it");
        assert_ne!(said, own.display().to_string(), "{namespace}");
    }
}
