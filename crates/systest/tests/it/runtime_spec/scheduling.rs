//! Scheduling: policies, priorities, processors of `exec`, memory nodes (NUMA), and the personality.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use testkit::run;

use super::ours;
use crate::runtime_bundle::{Runtime, bundle, read_text, script};

#[test]
fn personality_scheduler_and_priorities_are_set() {
    let said = ours("uname -m", |spec| spec["linux"]["personality"] = json!({"domain": "LINUX32"}));
    assert_eq!(said, "i686");
    // Fields of proc_pid_stat(5): nice and policy.
    let said = ours(
        "busybox cut -d' ' -f19,41 /proc/self/stat; busybox ionice -p $$; hostname; cat /proc/sys/kernel/domainname",
        |spec| {
            spec["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
            spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
            spec["domainname"] = json!("example.org");
            spec["hostname"] = json!("named");
        },
    );
    assert_eq!(said, "5 3\nidle\nnamed\nexample.org");
    // Priority and policy, by the numbers of sched(7).
    for (scheduler, expected) in [
        (json!({"policy": "SCHED_OTHER"}), "0 0"),
        (json!({"policy": "SCHED_FIFO", "priority": 7}), "7 1"),
        (json!({"policy": "SCHED_RR", "priority": 8}), "8 2"),
        (json!({"policy": "SCHED_BATCH"}), "0 3"),
        (json!({"policy": "SCHED_IDLE"}), "0 5"),
    ] {
        let said = ours("busybox cut -d' ' -f40,41 /proc/self/stat", |spec| {
            spec["process"]["scheduler"] = scheduler.clone();
            // Some kernels give groups of version 1 no such time by themselves.
            if Path::new("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").exists() {
                spec["linux"]["resources"]["cpu"] =
                    json!({"realtimePeriod": 1_000_000, "realtimeRuntime": 1000});
            }
        });
        assert_eq!(said, expected, "{scheduler}");
    }
    // Nice and policy, as the shell itself reads them: who has a deadline makes no process, unless that begins without.
    let own = "read -r line < /proc/self/stat; set -- $line; echo ${19} ${41}";
    let with_deadline = |look: &str, flags: &[&str]| {
        ours(look, |spec| {
            spec["process"]["scheduler"] = json!({"policy": "SCHED_DEADLINE", "runtime": 10_000_000,
                "deadline": 100_000_000, "period": 100_000_000, "flags": flags});
        })
    };
    assert_eq!(with_deadline(own, &[]), "0 6");
    let both = format!("{own}; ({own}); true");
    assert_eq!(with_deadline(&both, &["SCHED_FLAG_RESET_ON_FORK"]), "0 6\n0 0");
    for (class, priority, expected) in
        [("IOPRIO_CLASS_BE", 3, "best-effort: prio 3"), ("IOPRIO_CLASS_RT", 2, "realtime: prio 2")]
    {
        let said = ours("busybox ionice -p $$", |spec| {
            spec["process"]["ioPriority"] = json!({"class": class, "priority": priority});
        });
        assert_eq!(said, expected, "{class}");
    }
    for (part, value) in [
        ("scheduler", json!({"policy": "SCHED_NOSUCH"})),
        ("ioPriority", json!({"class": "IOPRIO_NOSUCH", "priority": 1})),
    ] {
        let bundle = bundle(|spec| spec["process"][part] = value.clone());
        let runtime = Runtime::ours();
        let path = bundle.path().display().to_string();
        let refused = runtime.run(&["run", "--bundle", &path, &runtime.id("wrong")]);
        refused.expect_code(1).expect_stderr("NOSUCH");
    }
}

/// Whether the kernel takes one, or has anything to do by it, depends on how it was built; that it is told of it is seen by
/// strace(1).
#[test]
fn flags_of_schedulers_reach_the_kernel() {
    let runtime = Runtime::ours();
    for flag in [
        "RESET_ON_FORK",
        "RECLAIM",
        "DL_OVERRUN",
        "KEEP_POLICY",
        "KEEP_PARAMS",
        "UTIL_CLAMP_MIN",
        "UTIL_CLAMP_MAX",
    ] {
        let flag = format!("SCHED_FLAG_{flag}");
        let bundle = bundle(|spec| {
            script(spec, "true");
            spec["process"]["scheduler"] = json!({"policy": "SCHED_OTHER", "flags": [flag]});
        });
        let (path, calls) = (bundle.path().display().to_string(), bundle.path().join("calls"));
        let start = runtime.command(&["run", "--bundle", &path, &runtime.id("flags")]);
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-e", "trace=sched_setattr", "-o"]).arg(&calls);
        run(strace.arg(start.get_program()).args(start.get_args()).stdin(Stdio::null()));
        let calls = read_text(&calls);
        assert!(calls.contains(&format!("sched_flags={flag},")), "{flag}: {calls}");
        // Without the last two fields the kernel refuses the last two flags.
        assert!(calls.contains("{size=56, "), "{flag}: {calls}");
    }
    let bundle = bundle(|spec| {
        spec["process"]["scheduler"] = json!({"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_NOSUCH"]});
    });
    let path = bundle.path().display().to_string();
    let refused = runtime.run(&["run", "--bundle", &path, &runtime.id("flags")]);
    refused.expect_code(1).expect_stderr("SCHED_FLAG_NOSUCH");
}

#[test]
fn memory_comes_from_the_nodes_of_the_policy() {
    // Behind the address of a range is its policy (numa(7)).
    let look = "busybox head -n 1 /proc/self/numa_maps | busybox cut -d' ' -f2-";
    let shows = |policy: Value, expected: &str| {
        let said = ours(look, |spec| spec["linux"]["memoryPolicy"] = policy.clone());
        let (shown, _) = said.split_once(" file=").or(said.split_once(" anon=")).unwrap_or((&said, ""));
        assert_eq!(shown, expected, "{policy}");
    };
    let policy = |mode: &str, nodes: &str, flag: &str| {
        let flags = if flag.is_empty() { json!([]) } else { json!([flag]) };
        json!({"mode": mode, "nodes": nodes, "flags": flags})
    };
    shows(Value::Null, "default");
    shows(policy("MPOL_DEFAULT", "", ""), "default");
    shows(policy("MPOL_PREFERRED", "0", ""), "prefer:0");
    shows(policy("MPOL_BIND", "0", "MPOL_F_STATIC_NODES"), "bind=static:0");
    shows(policy("MPOL_BIND", "0", "MPOL_F_RELATIVE_NODES"), "bind=relative:0");
    shows(policy("MPOL_BIND", "0", "MPOL_F_NUMA_BALANCING"), "bind=balancing:0");
    shows(policy("MPOL_INTERLEAVE", "0", ""), "interleave:0");
    shows(policy("MPOL_LOCAL", "", ""), "local");
    shows(policy("MPOL_PREFERRED_MANY", "0", ""), "prefer (many):0");
    if linux::release() >= (6, 9, 0) {
        shows(policy("MPOL_WEIGHTED_INTERLEAVE", "0", ""), "weighted interleave:0");
    }
}

/// A process that enters starts on some processors and ends on others.
#[test]
fn who_enters_runs_on_its_processors() {
    let processors = read_text(Path::new("/sys/devices/system/cpu/online"));
    if processors == "0" {
        println!("skipped: this machine has one processor");
        return;
    }
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| {
        script(spec, "sleep 1000");
        spec["linux"]["personality"] = json!({"domain": "LINUX32"});
    });
    let id = runtime.id("affinity");
    let path = bundle.path().display().to_string();
    runtime.command(&["run", "-d", "--bundle", &path, &id]).stdout(Stdio::null()).status().expect("it runs");
    let process = bundle.path().join("process.json");
    let description = json!({"args": ["sh", "-c", "grep Cpus_allowed_list /proc/self/status; uname -m"], "cwd": "/",
        "env": ["PATH=/bin"], "execCPUAffinity": {"initial": "0", "final": "1"}});
    fs::write(&process, description.to_string()).expect("writable");
    let exec = runtime.command(&["exec", "--process", &process.display().to_string(), &id]);
    let calls = bundle.path().join("calls");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-y", "-qq", "-e", "trace=sched_setaffinity,write", "-o"]).arg(&calls);
    strace.arg(exec.get_program()).args(exec.get_args()).stdin(Stdio::null());
    let said = run(&mut strace).ok();
    assert_eq!(said.text(), "Cpus_allowed_list:\t1\ni686", "the personality is the container's");
    let calls = read_text(&calls);
    let kind = |line: &str| match line {
        line if line.contains("sched_setaffinity(") && line.contains("[0]") => Some("initial"),
        line if line.contains("sched_setaffinity(") && line.contains("[1]") => Some("final"),
        line if line.contains("write(") && line.contains("</sys/fs/cgroup/") => Some("in the cgroup"),
        _ => None,
    };
    let mut order: Vec<&str> = calls.lines().filter_map(kind).collect();
    order.dedup();
    assert_eq!(order, ["initial", "in the cgroup", "final"], "{calls}");
    runtime.run(&["delete", "--force", &id]).ok();
}

/// Of the process in the configuration, where whoever enters brings none.
#[test]
fn who_enters_runs_on_the_processors_of_the_configuration() {
    if read_text(Path::new("/sys/devices/system/cpu/online")) == "0" {
        println!("skipped: this machine has one processor");
        return;
    }
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| {
        script(spec, "sleep 1000");
        spec["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "1"});
    });
    let id = runtime.id("affinity");
    let path = bundle.path().display().to_string();
    runtime.command(&["run", "-d", "--bundle", &path, &id]).stdout(Stdio::null()).status().expect("it runs");
    let look = ["sh", "-c", "grep Cpus_allowed_list /proc/self/status"];
    let said = runtime.run(&[&["exec", &id][..], &look].concat()).ok();
    assert_eq!(said.text(), "Cpus_allowed_list:\t1");
    let look = ["sh", "-c", "grep Cpus_allowed_list /proc/1/status"];
    let said = runtime.run(&[&["exec", &id][..], &look].concat()).ok();
    assert_ne!(said.text(), "Cpus_allowed_list:\t1", "it is about those who enter");
    runtime.run(&["delete", "--force", &id]).ok();
}
