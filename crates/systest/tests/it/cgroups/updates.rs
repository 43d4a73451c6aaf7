//! Rare limits: those of version 1 alone, and each flag of `update`.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use testkit::Bundle;

use super::{directory, is_v2, read};

/// A container in a cgroup directly below the root of each hierarchy, where all of the machine's resources are
/// available.
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
        // Version 2 has neither: swappiness is the machine's, and the OOM killer cannot be disabled.
        let bundle = at_the_top("exit 3", &json!({"memory": memory}));
        bundle.run(&["run"]).expect_code(3);
        let refused = at_the_top("exit 3", &json!({"cpu": realtime})).run(&["run"]).expect_code(1);
        refused.expect_stderr("ealtime");
        return;
    }
    // The kernel may be built without realtime group scheduling.
    let has_realtime = ["/sys/fs/cgroup/cpu/cpu.rt_period_us", "/sys/fs/cgroup/cpu,cpuacct/cpu.rt_period_us"]
        .iter()
        .any(|file| fs::exists(file).unwrap_or(false));
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
            // A weight takes a cgroup out of `cpu.idle`.
            (&["--cpu-share", "1024"], "cpu.weight", "100"),
            (&[], "cpu.idle", "0"),
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
            (&["--cpu-idle", "1", "--cpu-share", "256"], "cpu.idle", "1"),
            // A weight takes a cgroup out of `cpu.idle`.
            (&["--cpu-share", "1024"], "cpu.shares", "1024"),
            (&[], "cpu.idle", "0"),
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
    let has_resctrl = fs::read_to_string("/proc/self/mounts").expect("proc").contains(" resctrl ");
    for flag in ["--l3-cache-schema", "--mem-bw-schema"] {
        if !has_resctrl {
            bundle.run(&["update", flag, "L3:0=f"]).expect_code(1).expect_stderr("resctrl");
        }
    }
}

/// As runc's help says: a document replaces all flags.
#[test]
fn limits_of_a_document_are_the_only_ones() {
    let bundle = at_the_top("sleep 1000", &json!({"pids": {"limit": 20}, "memory": {"limit": 64 << 20}}));
    bundle.start();
    let file = bundle.path().join("resources.json");
    fs::write(&file, json!({"pids": {"limit": 30}}).to_string()).expect("writable");
    let file = file.to_str().expect("UTF-8");
    bundle.run(&["update", "--resources", file, "--pids-limit", "40", "--memory", "48m"]).ok();
    let memory = if is_v2() { "memory.max" } else { "memory.limit_in_bytes" };
    assert_eq!([read(bundle.pid(), "pids.max"), read(bundle.pid(), memory)], ["30", "67108864"]);
    bundle.run(&["update", "--resources", "", "--pids-limit", "40"]).ok();
    assert_eq!(read(bundle.pid(), "pids.max"), "40");
}

/// Updates a container of Hoist's or runc's. Returns whether that succeeded, and the content of the files then; `None`
/// if the kernel lacks one of them.
fn updated(is_runcs: bool, resources: &Value, flags: &[&str], files: &[&str]) -> Option<(bool, Vec<String>)> {
    let bundle = at_the_top("sleep 1000", resources);
    let [root, pid] = ["runc", "pid"].map(|name| bundle.path().join(name));
    let runc = |words: &[&str]| {
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(&root).args(words).arg(bundle.id()).current_dir(bundle.path());
        let done = runc.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        done.expect("try: apt-get install runc").success()
    };
    let pid = if is_runcs {
        assert!(runc(&["run", "-d", "--pid-file", pid.to_str().expect("UTF-8")]), "{resources}");
        fs::read_to_string(pid).expect("runc wrote it").parse().expect("a number")
    } else {
        bundle.start();
        bundle.pid()
    };
    let controller = files[0].split('.').next().expect("a first part");
    let has_all = files.iter().all(|file| directory(pid, controller).join(file).exists());
    let words = [&["update"], flags].concat();
    let is_done = if is_runcs { runc(&words) } else { bundle.run(&words).code == 0 };
    let after = has_all.then(|| (is_done, files.iter().map(|file| read(pid, file)).collect()));
    if is_runcs {
        assert!(runc(&["delete", "--force"]));
    }
    after
}

#[test]
fn what_an_update_leaves_unsaid_stays_as_it_is() {
    const M64: u32 = 64 << 20;
    let v2 = is_v2();
    let pair = |one: &'static str, other: &'static str| vec![one.to_owned(), other.to_owned()];
    let memory = if v2 {
        ["memory.max", "memory.swap.max"]
    } else {
        ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
    };
    let both = json!({"memory": {"limit": M64, "swap": M64}});
    let check_memory = |resources: &Value, flags: &[&str], expected: (bool, Vec<String>)| {
        let Some(ours) = updated(false, resources, flags, &memory) else {
            return println!("skipped: this kernel counts no swap");
        };
        assert_eq!(ours, expected, "{resources} {flags:?}");
        // Debian's runc does otherwise on version 2; newer versions do as Hoist.
        if !v2 {
            assert_eq!(updated(true, resources, flags, &memory), Some(ours), "{resources} {flags:?}");
        }
    };
    let less = if v2 { pair("33554432", "33554432") } else { pair("33554432", "67108864") };
    check_memory(&both, &["--memory", "32m"], (true, less));
    let same = if v2 { pair("67108864", "0") } else { pair("67108864", "67108864") };
    check_memory(&both, &["--memory", "128m"], (false, same));
    let swap = if v2 { pair("67108864", "33554432") } else { pair("67108864", "100663296") };
    check_memory(&json!({"memory": {"limit": M64}}), &["--memory-swap", "96m"], (true, swap));
    if v2 {
        let by_file = json!({"memory": {"limit": M64}, "unified": {"memory.swap.max": "0"}});
        check_memory(&by_file, &["--memory", "128m"], (true, pair("134217728", "0")));
    }

    let cpu: &[&str] = if v2 { &["cpu.max"] } else { &["cpu.cfs_quota_us", "cpu.cfs_period_us"] };
    let resources = json!({"cpu": {"quota": 50_000, "period": 200_000}});
    let check_quota = |flags: &[&str], quota: &str, period: &str| {
        let [ours, theirs] = [false, true].map(|is_runcs| updated(is_runcs, &resources, flags, cpu));
        let expected =
            if v2 { vec![format!("{quota} {period}")] } else { vec![quota.to_owned(), period.to_owned()] };
        assert_eq!(ours, Some((true, expected)), "{flags:?}");
        assert_eq!(ours, theirs, "{flags:?}");
    };
    check_quota(&["--cpu-period", "100000"], "50000", "100000");
    check_quota(&["--cpu-quota", "20000"], "20000", "200000");
}

#[test]
fn an_update_that_fails_changes_nothing() {
    let bundle = at_the_top(
        "sleep 1000",
        &json!({"memory": {"limit": 64 << 20}, "cpu": {"shares": 1024, "quota": 50_000, "period": 100_000}}),
    );
    bundle.start();
    let pid = bundle.pid();
    let files: &[&str] = if is_v2() {
        &["cpu.weight", "cpu.max", "memory.max", "pids.max"]
    } else {
        &["cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us", "memory.limit_in_bytes", "pids.max"]
    };
    let all = || files.iter().map(|file| read(pid, file)).collect::<Vec<_>>();
    let before = all();
    let path = bundle.path().join("resources.json");
    let update = |wrong: Value| {
        let mut resources = json!({
            "memory": {"limit": 48 << 20},
            "cpu": {"shares": 512, "quota": 20_000, "period": 40_000},
            "pids": {"limit": 9},
        });
        for (name, value) in wrong.as_object().expect("an object") {
            resources[name] = value.clone();
        }
        fs::write(&path, resources.to_string()).expect("writable");
        bundle.run(&["update", "--resources", path.to_str().expect("UTF-8")])
    };
    update(json!({"cpu": {"shares": 512, "cpus": "4000"}})).expect_code(1).expect_stderr("cpuset.cpus");
    assert_eq!(all(), before);
    update(json!({"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]}))
        .expect_code(1)
        .expect_stderr("hugetlb");
    assert_eq!(all(), before);
    update(json!({})).ok();
    assert!(all().iter().zip(&before).all(|(after, before)| after != before), "each of them can be changed");
}
