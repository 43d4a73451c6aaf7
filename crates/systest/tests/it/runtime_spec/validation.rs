//! Validation of a spec: what is refused, and what is a warning because the container can run without it.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use testkit::run;

use super::add_namespace;
use crate::runtime_bundle::{Runtime, add_mount, bundle, script};

/// What a host forbids or lacks is said, and the container runs all the same.
#[test]
fn what_the_host_cannot_do_is_a_warning() {
    let has_module = |path: &str| Path::new(path).exists();
    if has_module("/sys/module/apparmor") || has_module("/sys/fs/selinux/enforce") {
        println!("skipped: this host has the modules whose absence is tested");
        return;
    }
    let bundle = bundle(|spec| {
        script(spec, "echo ran");
        spec["process"]["apparmorProfile"] = json!("docker-default");
        spec["process"]["selinuxLabel"] = json!("system_u:system_r:container_t:s0");
        spec["linux"]["mountLabel"] = json!("system_u:object_r:container_file_t:s0");
    });
    let runtime = Runtime::ours();
    let path = bundle.path().display().to_string();
    let done = runtime.run(&["run", "--bundle", &path, &runtime.id("warned")]).ok();
    assert_eq!(done.text(), "ran");
    done.expect_stderr("AppArmor profile docker-default").expect_stderr("SELinux label system_u");
    let bundle = crate::runtime_bundle::bundle(|spec| spec["linux"]["intelRdt"] = json!({"closID": "x"}));
    let path = bundle.path().display().to_string();
    let has_resctrl = run(Command::new("grep").args(["-q", " - resctrl ", "/proc/self/mountinfo"])).code == 0;
    if !has_resctrl {
        let refused = runtime.run(&["run", "--bundle", &path, &runtime.id("rdt")]);
        refused.expect_code(1).expect_stderr("resctrl");
    }
}

/// What a specification or a newer runc refuses, and Debian's runc takes.
#[test]
fn what_could_not_be_meant_is_refused() {
    type Change = fn(&mut Value);
    let rows: [(Change, &str); 21] = [
        (
            |spec| {
                let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
                namespaces.retain(|namespace| namespace["type"] != "mount");
            },
            "a container needs a mount namespace of its own",
        ),
        (
            |spec| spec["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 5}}),
            "timeOffsets need a time namespace of the container's own",
        ),
        (
            |spec| {
                spec["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 5}});
                add_namespace(spec, json!({"type": "time", "path": "/proc/self/ns/time"}));
            },
            "timeOffsets need a time namespace of the container's own",
        ),
        (|spec| spec["linux"]["uidMappings"] = one_id(), "uidMappings and gidMappings need a user namespace"),
        (|spec| spec["linux"]["gidMappings"] = one_id(), "uidMappings and gidMappings need a user namespace"),
        (
            |spec| {
                add_namespace(spec, json!({"type": "user"}));
                spec["linux"]["uidMappings"] = one_id();
            },
            "a user namespace needs uidMappings and gidMappings",
        ),
        (|spec| filter(spec, json!({"names": []})), "names no system call"),
        (|spec| filter(spec, json!({"names": [""]})), "names no system call"),
        (
            |spec| filter(spec, json!({"action": "SCMP_ACT_ALLOW", "errnoRet": 5})),
            "SCMP_ACT_ALLOW has no errnoRet",
        ),
        (
            |spec| filter(spec, json!({"action": "SCMP_ACT_KILL", "errnoRet": 5})),
            "SCMP_ACT_KILL has no errnoRet",
        ),
        (
            |spec| {
                filter(spec, json!({}));
                spec["linux"]["seccomp"]["defaultErrnoRet"] = json!(5);
            },
            "SCMP_ACT_ALLOW has no errnoRet",
        ),
        (
            |spec| spec["process"]["scheduler"] = json!({"policy": "SCHED_OTHER", "nice": 20}),
            "scheduler.nice 20 is not from -20 to 19",
        ),
        (
            |spec| spec["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "priority": 3}),
            "scheduler.priority is for SCHED_FIFO and SCHED_RR",
        ),
        (
            |spec| spec["process"]["scheduler"] = json!({"policy": "SCHED_OTHER", "period": 3}),
            "scheduler.runtime, deadline and period are for SCHED_DEADLINE",
        ),
        (
            |spec| spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 8}),
            "ioPriority 8 is not from 0 to 7",
        ),
        (
            |spec| spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": -1}),
            "ioPriority -1 is not from 0 to 7",
        ),
        // In the words of newer runcs.
        (|spec| spec["linux"]["memoryPolicy"] = json!({}), "invalid memory policy mode"),
        (
            |spec| {
                let flags = ["MPOL_F_RELATIVE_NODES", "badflag"];
                spec["linux"]["memoryPolicy"] =
                    json!({"mode": "MPOL_PREFERRED", "nodes": "0", "flags": flags});
            },
            "invalid memory policy flag",
        ),
        (
            |spec| spec["linux"]["memoryPolicy"] = json!({"mode": "MPOL_DEFAULT", "nodes": "0-7"}),
            "mode requires 0 nodes but got 8",
        ),
        (
            |spec| {
                filter(spec, json!({"names": ["write"], "action": "SCMP_ACT_NOTIFY"}));
                spec["linux"]["seccomp"]["listenerPath"] = json!("/nosuch");
            },
            "SCMP_ACT_NOTIFY cannot be used for the write syscall",
        ),
        (
            |spec| {
                filter(spec, json!({"action": "SCMP_ACT_NOTIFY"}));
                spec["linux"]["seccomp"]["listenerPath"] = json!("/nosuch");
            },
            "failed to connect with seccomp agent",
        ),
    ];
    let runtime = Runtime::ours();
    for (change, words) in rows {
        let bundle = bundle(|spec| {
            script(spec, "true");
            change(spec);
        });
        let path = bundle.path().display().to_string();
        runtime.run(&["run", "--bundle", &path, &runtime.id("meant")]).expect_code(1).expect_stderr(words);
        assert_eq!(runtime.run(&["list", "-q"]).ok().text(), "", "nothing is left");
    }
}

fn one_id() -> Value {
    json!([{"containerID": 0, "hostID": 0, "size": 1}])
}

/// A filter of one rule, changed by `rule`.
fn filter(spec: &mut Value, rule: Value) {
    let mut whole = json!({"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"});
    let changes = rule.as_object().expect("a rule").clone();
    whole.as_object_mut().expect("a rule").extend(changes);
    spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [whole]});
}

/// Runs all the same, as under runc, and both say what was left out or is likely not meant.
#[test]
fn what_is_likely_not_meant_is_a_warning() {
    type Change = fn(&mut Value);
    let rows: [(Change, &str, &[&str]); 3] = [
        (
            |spec| spec["process"]["capabilities"]["bounding"] = json!(["CAP_CHOWN", "CAP_NOSUCH"]),
            "CapBnd:\t0000000000000001",
            &["unknown", "CAP_NOSUCH"],
        ),
        (
            |spec| {
                add_mount(
                    spec,
                    json!({"destination": "some/../sub/dir", "type": "tmpfs", "source": "tmpfs"}),
                );
                script(spec, "busybox awk '$3 == \"tmpfs\" && $2 ~ /sub/ { print $2 }' /proc/mounts");
            },
            "/sub/dir",
            &["some/../sub/dir", "not absolute"],
        ),
        // The last counts, which the specification forbids and runc does.
        (
            |spec| {
                let limit = |number: u32| json!({"type": "RLIMIT_NOFILE", "soft": number, "hard": number});
                spec["process"]["rlimits"] = json!([limit(99), limit(77)]);
                script(spec, "ulimit -n");
            },
            "77",
            &[],
        ),
    ];
    for (change, expected, words) in rows {
        let bundle = bundle(|spec| {
            script(spec, "grep CapBnd /proc/self/status");
            change(spec);
        });
        let path = bundle.path().display().to_string();
        for runtime in Runtime::both() {
            let done = runtime.run(&["run", "--bundle", &path, &runtime.id("likely")]).ok();
            assert_eq!(done.text(), expected, "{}", runtime.name);
            words.iter().fold(done, |done, word| done.expect_stderr(word));
        }
    }
    // Debian's runc says nothing of letters that no access has.
    let letters = bundle(|spec| {
        script(spec, "echo ran");
        spec["linux"]["resources"]["devices"] =
            json!([{"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwa"}]);
    });
    let path = letters.path().display().to_string();
    for runtime in Runtime::both() {
        let done = runtime.run(&["run", "--bundle", &path, &runtime.id("likely")]).ok();
        assert_eq!(done.text(), "ran", "{}", runtime.name);
        if runtime.name == "hoist" {
            done.expect_stderr("\"rwa\"").expect_stderr("left out");
        }
    }
    // Who enters is told as well.
    let bundle = bundle(|spec| script(spec, "sleep 1000"));
    let path = bundle.path().display().to_string();
    for runtime in Runtime::both() {
        let id = runtime.id("entered");
        let started = runtime
            .command(&["run", "--detach", "--bundle", &path, &id])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(started.expect("it runs").success());
        let done = runtime.run(&["exec", "--cap", "CAP_NOSUCH", &id, "true"]).ok();
        done.expect_stderr("unknown").expect_stderr("CAP_NOSUCH");
        runtime.run(&["delete", "--force", &id]).ok();
    }
}
