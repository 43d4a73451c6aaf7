//! Limits that few ask for: those of version 1 alone, and each by its flag of `update`.

use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};
use testkit::Bundle;

use super::{directory, is_v2, read};

/// A container below the root of each tree, where all of the machine's is to be had.
fn at_the_top(script: &str, resources: &Value) -> Bundle {
    let bundle = Bundle::new(script).with_resources(resources.clone());
    let path = format!("/{}", bundle.id());
    bundle.change(|spec| spec["linux"]["cgroupsPath"] = json!(path))
}

#[test]
fn limits_of_version_1_alone() {
    let memory = json!({"limit": 64 << 20, "swappiness": 17, "disableOOMKiller": true});
    let realtime = json!({"realtimeRuntime": 5000, "realtimePeriod": 500_000});
    if is_v2() {
        // Without a meaning there: it is the machine's, and nobody's.
        let bundle = at_the_top("exit 3", &json!({"memory": memory}));
        bundle.run(&["run"]).expect_code(3);
        let refused = at_the_top("exit 3", &json!({"cpu": realtime})).run(&["run"]).expect_code(1);
        refused.expect_stderr("ealtime");
        return;
    }
    // A kernel may have been built without them.
    let has_realtime = ["/sys/fs/cgroup/cpu/cpu.rt_period_us", "/sys/fs/cgroup/cpu,cpuacct/cpu.rt_period_us"]
        .iter()
        .any(|file| std::fs::exists(file).unwrap_or(false));
    let cpu = if has_realtime { realtime } else { json!({}) };
    let bundle = at_the_top("sleep 1000", &json!({"memory": memory, "cpu": cpu}));
    bundle.start();
    let pid = bundle.pid();
    assert_eq!(read(pid, "memory.swappiness"), "17");
    assert!(
        read(pid, "memory.oom_control").contains("oom_kill_disable 1"),
        "{}",
        read(pid, "memory.oom_control")
    );
    if has_realtime {
        let both = || (read(pid, "cpu.rt_runtime_us"), read(pid, "cpu.rt_period_us"));
        assert_eq!(both(), ("5000".into(), "500000".into()));
        bundle.run(&["update", "--cpu-rt-runtime", "6000", "--cpu-rt-period", "600000"]).ok();
        assert_eq!(both(), ("6000".into(), "600000".into()));
    } else {
        println!("skipped: this kernel has no real-time limits of cgroups");
    }
    let wrong = at_the_top("true", &json!({"memory": {"swappiness": 101}})).run(&["run"]).expect_code(1);
    wrong.expect_stderr("swappiness 101");
}

#[test]
fn a_limit_below_what_is_in_use_is_refused_where_it_is_asked_for() {
    let bundle = at_the_top("sleep 1000", &json!({"memory": {"limit": 64 << 20}}));
    bundle.start();
    let update = |resources: Value| {
        let mut update = bundle.command(&["update", "--resources", "-", bundle.id()]);
        let mut update = update.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("hoist starts");
        let mut stdin = update.stdin.take().expect("piped");
        stdin.write_all(resources.to_string().as_bytes()).expect("it reads");
        drop(stdin);
        let output = update.wait_with_output().expect("a child of ours");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (done, words) = update(json!({"memory": {"limit": 4096, "checkBeforeUpdate": true}}));
    assert!(!done && words.contains("below what is in use"), "{words}");
    assert_eq!(bundle.state()["status"], "running");
    let (done, words) = update(json!({"memory": {"limit": 48 << 20, "checkBeforeUpdate": true}}));
    assert!(done, "{words}");
    let file = if is_v2() { "memory.max" } else { "memory.limit_in_bytes" };
    assert_eq!(read(bundle.pid(), file), "50331648");
}

#[test]
fn every_flag_of_update_changes_its_limit() {
    let bundle = at_the_top("sleep 1000", &json!({"cpu": {"quota": 50_000, "period": 100_000}}));
    bundle.start();
    let pid = bundle.pid();
    let rows: &[(&[&str], &str, &str)] = if is_v2() {
        &[
            (&["--memory", "64m"], "memory.max", "67108864"),
            (&["--memory-reservation", "32m"], "memory.low", "33554432"),
            (&["--cpu-burst", "20000"], "cpu.max.burst", "20000"),
            (&["--cpu-quota", "60000"], "cpu.max", "60000 100000"),
            (&["--cpu-period", "200000"], "cpu.max", "60000 200000"),
            (&["--cpu-share", "512"], "cpu.weight", "59"),
            (&["--cpuset-cpus", "0", "--cpuset-mems=0"], "cpuset.cpus", "0"),
            (&[], "cpuset.mems", "0"),
            (&["--pids-limit", "40"], "pids.max", "40"),
            (&["--pids-limit=-1"], "pids.max", "max"),
            (&["--cpu-idle", "1"], "cpu.idle", "1"),
        ]
    } else {
        &[
            (&["--memory", "64m"], "memory.limit_in_bytes", "67108864"),
            (&["--memory-reservation", "32m"], "memory.soft_limit_in_bytes", "33554432"),
            (&["--cpu-burst", "20000"], "cpu.cfs_burst_us", "20000"),
            (&["--cpu-quota", "60000"], "cpu.cfs_quota_us", "60000"),
            (&["--cpu-period", "200000"], "cpu.cfs_period_us", "200000"),
            (&["--cpu-share", "512"], "cpu.shares", "512"),
            (&["--cpuset-cpus", "0", "--cpuset-mems=0"], "cpuset.cpus", "0"),
            (&[], "cpuset.mems", "0"),
            (&["--pids-limit", "40"], "pids.max", "40"),
            (&["--pids-limit=-1"], "pids.max", "max"),
            (&["--cpu-idle", "1"], "cpu.idle", "1"),
            // Ignored, as by runc.
            (&["--kernel-memory", "1m", "--kernel-memory-tcp", "1m"], "memory.limit_in_bytes", "67108864"),
        ]
    };
    for (flags, file, text) in rows {
        bundle.run(&[&["update"], *flags].concat()).ok();
        assert_eq!(read(pid, file), *text, "{flags:?}");
    }
    let (controller, files) = if is_v2() {
        ("io", ["io.bfq.weight", "io.weight"])
    } else {
        ("blkio", ["blkio.weight", "blkio.bfq.weight"])
    };
    let done = bundle.run(&["update", "--blkio-weight", "500"]);
    match files.iter().find(|file| directory(pid, controller).join(file).exists()) {
        Some(file) => assert!(done.ok().code == 0 && read(pid, file).contains('5'), "{file}"),
        None => drop(done.expect_code(1).expect_stderr("weight")),
    }
    let has_resctrl = std::fs::read_to_string("/proc/self/mounts").expect("proc").contains(" resctrl ");
    for flag in ["--l3-cache-schema", "--mem-bw-schema"] {
        if !has_resctrl {
            bundle.run(&["update", flag, "L3:0=f"]).expect_code(1).expect_stderr("resctrl");
        }
    }
}
