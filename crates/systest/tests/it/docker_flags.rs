//! Flags that Docker has and that few type: what each does, and what is said of those that have nothing to do here.

use std::path::PathBuf;

use testkit::Daemon;

use crate::run_flags::says;

fn shown(daemon: &Daemon, name: &str, template: &str) -> String {
    daemon.hoist(["inspect", "-f", template, name]).ok().text().to_owned()
}

/// Runs a container without network to its end, and keeps it.
fn run_to_end(daemon: &Daemon, name: &str, flags: &[&str], script: &str) -> String {
    let rest = ["--name", name, "--network", "none", "busybox", "sh", "-c", script];
    daemon.hoist([&["run"], flags, &rest].concat()).ok().stdout
}

/// A container without network that sleeps.
fn sleeper(daemon: &Daemon, name: &str, flags: &[&str]) {
    let rest = ["--name", name, "--network", "none", "busybox", "sleep", "1000"];
    daemon.hoist([&["run", "-d"], flags, &rest].concat()).ok();
}

#[test]
fn logs_are_as_long_as_asked() {
    let daemon = Daemon::with_busybox();
    let options = ["--log-opt", "max-size=1k", "--log-opt", "max-file=3"];
    run_to_end(&daemon, "short", &options, "for i in $(seq 100); do echo line $i; done");
    let log = PathBuf::from(shown(&daemon, "short", "{{.LogPath}}"));
    let aged = |age: u32| log.with_file_name(format!("json.log.{age}"));
    assert!(aged(1).exists() && aged(2).exists() && !aged(3).exists());
    assert!(log.metadata().expect("a log").len() <= 1000);
    let kept = daemon.hoist(["logs", "short"]).ok().stdout;
    let count = kept.lines().count();
    assert!(kept.ends_with("line 99\nline 100\n") && (20..100).contains(&count), "{kept}");
    assert_eq!(daemon.hoist(["logs", "--tail", "25", "short"]).ok().stdout.lines().count(), count.min(25));
    let config = shown(&daemon, "short", "{{json .HostConfig.LogConfig}}");
    assert_eq!(config, r#"{"Config":{"max-file":"3","max-size":"1k"},"Type":"json-file"}"#);

    run_to_end(&daemon, "local", &["--log-driver", "local"], "echo kept");
    assert_eq!(daemon.hoist(["logs", "local"]).ok().stdout, "kept\n");
    assert_eq!(shown(&daemon, "local", "{{.HostConfig.LogConfig.Type}}"), "local");

    // Who is attached sees it, and that is all.
    let none = ["--log-driver", "none"];
    assert_eq!(run_to_end(&daemon, "none", &none, "echo out; echo err >&2"), "out\n");
    let refused = daemon.hoist(["logs", "none"]);
    assert!(refused.code != 0 && refused.stderr.contains("does not support reading"), "{refused}");
    assert!(
        !log.parent()
            .expect("a folder")
            .with_file_name(shown(&daemon, "none", "{{.Id}}"))
            .join("json.log")
            .exists()
    );
    assert_eq!(shown(&daemon, "none", "{{.LogPath}}"), "");
}

#[test]
fn drivers_and_options_of_logs_that_are_not_there_are_named() {
    let daemon = Daemon::with_busybox();
    for (flags, words) in [
        (&["--log-driver", "syslog"][..], "json-file, local and none"),
        (
            &["--log-opt", "labels=a"],
            "unknown log opt 'labels' for json-file log driver: there are max-size and max-file",
        ),
        (&["--log-opt", "max-size=0"], "--log-opt max-size=0"),
        (&["--log-driver", "none", "--log-opt", "max-size=1m"], "driver none"),
    ] {
        let refused = daemon.hoist([&["run", "--rm"], flags, &["busybox", "true"]].concat()).expect_code(125);
        assert!(refused.stderr.contains(words), "{refused}");
    }
    assert_eq!(daemon.hoist(["ps", "-aq"]).ok().stdout, "", "nothing is left");
}

#[test]
fn times_and_shares_of_processors_are_limited_and_updated() {
    let daemon = Daemon::with_busybox();
    let flags = [
        "--cpu-period",
        "50000",
        "--cpu-quota",
        "20000",
        "-c",
        "512",
        "--cpuset-cpus",
        "0",
        "--cpuset-mems",
        "0",
    ];
    sleeper(&daemon, "box", &flags);
    // As version 2 of cgroups has it, or version 1.
    let inside = "cd /sys/fs/cgroup; cat cpu.max 2>/dev/null || echo $(cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us)";
    let times = || daemon.hoist(["exec", "box", "sh", "-c", inside]).ok().text().to_owned();
    assert_eq!(times(), "20000 50000");
    let template = "{{.HostConfig.CpuPeriod}} {{.HostConfig.CpuQuota}} {{.HostConfig.CpuShares}} \
                    {{.HostConfig.CpusetCpus}} {{.HostConfig.CpusetMems}} {{.HostConfig.MemoryReservation}}";
    let changed = ["update", "--cpu-quota", "30000", "-c", "256", "--memory-reservation", "8m", "box"];
    daemon.hoist(changed).ok();
    assert_eq!(times(), "30000 50000");
    assert_eq!(shown(&daemon, "box", template), "50000 30000 256 0 0 8388608");
    // What was not said of then is as it was, also at the next start.
    daemon.hoist(["stop", "-t", "0", "box"]).ok();
    daemon.hoist(["update", "--cpu-period", "100000", "box"]).ok();
    daemon.hoist(["start", "box"]).ok();
    assert_eq!(times(), "30000 100000");
    for (flags, words) in [
        (&["--cpus", "0.5"][..], "--cpus and --cpu-period"),
        (&["--cpuset-mems", "99"], "memory nodes are not available"),
        (&["--cpu-quota", "10"], "--cpu-quota 10"),
        (&["--blkio-weight", "7"], "from 10 to 1000"),
    ] {
        let refused = daemon.hoist([&["update"], flags, &["box"]].concat()).expect_code(1);
        assert!(refused.stderr.contains(words), "{refused}");
    }
}
