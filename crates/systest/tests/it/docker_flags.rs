//! Rare flags of Docker's: what each does, and which error those give that do not apply to Hoist.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
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

    // Attached clients see the output, and it is not logged.
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
    // Limits that the update does not name stay as they were, also at the next start.
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

#[test]
fn names_of_host_and_domain_are_as_asked() {
    let daemon = Daemon::with_busybox();
    let flags = ["-h", "named", "--domainname", "example.org", "--annotation", "a.b=c=d"];
    let said = run_to_end(
        &daemon,
        "named",
        &flags,
        "cat /proc/sys/kernel/domainname; hostname; grep named /etc/hosts",
    );
    assert_eq!(said, "example.org\nnamed\n127.0.1.1\tnamed.example.org named\n");
    assert_eq!(shown(&daemon, "named", "{{.Config.Hostname}} {{.Config.Domainname}}"), "named example.org");
    assert_eq!(shown(&daemon, "named", "{{json .HostConfig.Annotations}}"), r#"{"a.b":"c=d"}"#);
    let own = fs::read_link("/proc/self/ns/uts").expect("a namespace").display().to_string();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    assert_eq!(
        says(&daemon, &["--uts", "host"], "readlink /proc/self/ns/uts; hostname"),
        format!("{own}\n{host}")
    );
    for (flags, words) in [
        (["--uts=host", "-hname"], "hostname and the UTS mode"),
        (["--uts=host", "--domainname=x"], "--domainname and --uts host"),
        (["--annotation", "nothing"], "KEY=VALUE"),
    ] {
        let refused =
            daemon.hoist([&["run", "--rm"], &flags[..], &["busybox", "true"]].concat()).expect_code(125);
        assert!(refused.stderr.contains(words), "{refused}");
    }
}

#[test]
fn processes_of_another_container_are_seen() {
    let daemon = Daemon::with_busybox();
    sleeper(&daemon, "first", &[]);
    let inside = "readlink /proc/self/ns/pid; pidof sleep";
    let first = daemon.hoist(["exec", "first", "sh", "-c", inside]).ok().text().to_owned();
    assert!(first.ends_with("\n1"), "{first}");
    assert_eq!(says(&daemon, &["--pid", "container:first", "--init"], inside), first);
    sleeper(&daemon, "second", &["--pid", "container:first"]);
    let id = shown(&daemon, "first", "{{.Id}}");
    assert_eq!(shown(&daemon, "second", "{{.HostConfig.PidMode}}"), format!("container:{id}"));
    // The kernel kills all processes of a pid namespace with its first one.
    daemon.hoist(["kill", "first"]).ok();
    assert_eq!(daemon.hoist(["wait", "second"]).ok().text(), "137");
    let refused = daemon.hoist(["start", "second"]).expect_code(1);
    assert!(
        refused.stderr.contains("join its processes") && refused.stderr.contains("not running"),
        "{refused}"
    );
    daemon.hoist(["start", "first", "second"]).ok();
    let nosuch =
        daemon.hoist(["run", "--rm", "--pid", "container:nosuch", "busybox", "true"]).expect_code(125);
    assert!(nosuch.stderr.contains("nosuch"), "{nosuch}");
}

#[test]
fn cgroups_devices_and_shims_are_as_asked() {
    let daemon = Daemon::with_busybox();
    let parent = format!("{}/inner", daemon.cgroup());
    sleeper(&daemon, "box", &["--cgroup-parent", &parent]);
    let (pid, id) = (shown(&daemon, "box", "{{.State.Pid}}"), shown(&daemon, "box", "{{.Id}}"));
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it runs");
    assert!(groups.contains(&format!(":{parent}/{id}\n")), "{groups}");
    let used = daemon.hoist(["stats", "--no-stream", "--format", "{{.PIDs}}", "box"]).ok();
    assert_eq!(used.text(), "1");

    let script = "mknod /it c 10 237; true < /it && echo read; true > /it || echo refused";
    assert_eq!(says(&daemon, &["--device-cgroup-rule", "c 10:* mr"], script), "read\nrefused");
    for (flags, words) in [
        (["--device-cgroup-rule", "c 10 r"], "invalid device cgroup format"),
        (["--cgroup-parent", "/a/../b"], "--cgroup-parent"),
        (["--runtime", "io.containerd.kata.v2"], "io.containerd.hoist.v2"),
        (["--memory-swappiness", "101"], "101"),
    ] {
        let refused =
            daemon.hoist([&["run", "--rm"], &flags[..], &["busybox", "true"]].concat()).expect_code(125);
        assert!(refused.stderr.contains(words), "{refused}");
    }
    let flags = ["--memory-swappiness", "17", "--oom-kill-disable", "--runtime", "runc", "-m", "64m"];
    let rest = ["--name", "swaps", "--network", "none", "busybox", "sh", "-c"];
    let script = "cat /sys/fs/cgroup/memory/memory.swappiness 2>/dev/null || echo machine";
    let ran = daemon.hoist([&["run"], &flags[..], &rest, &[script]].concat()).ok();
    match ran.text() {
        "machine" => assert_eq!(ran.stderr.matches("WARNING: ").count(), 2, "{ran}"),
        own => assert_eq!((own, ran.stderr.as_str()), ("17", "")),
    }
    let template = "{{.HostConfig.MemorySwappiness}} {{.HostConfig.OomKillDisable}} {{.HostConfig.Runtime}}";
    assert_eq!(shown(&daemon, "swaps", template), "17 true runc");
}

#[test]
fn an_interface_has_the_address_that_was_said() {
    let daemon = Daemon::with_busybox();
    let run = ["run", "--name", "box", "--mac-address", "02:42:AC:11:00:09", "busybox"];
    let said = daemon.hoist([&run[..], &["cat", "/sys/class/net/eth0/address"]].concat()).ok();
    assert_eq!(said.text(), "02:42:ac:11:00:09");
    for (network, address) in [("bridge", "01:00:00:00:00:01"), ("none", "02:00:00:00:00:01")] {
        let words = ["run", "--rm", "--network", network, "--mac-address", address, "busybox", "true"];
        daemon.hoist(words).expect_code(125).expect_stderr("--mac-address");
    }
}

#[test]
fn one_port_of_several_is_published() {
    let daemon = Daemon::with_busybox();
    let mut published = BTreeSet::new();
    for name in ["one", "two"] {
        let run = ["run", "-d", "--name", name, "-p", "127.0.0.1:28100-28120:80", "busybox", "sleep", "1000"];
        daemon.hoist(run).ok();
        let port = daemon.hoist(["port", name, "80"]).ok().text().to_owned();
        let number: u16 = port.strip_prefix("127.0.0.1:").and_then(|port| port.parse().ok()).expect("a port");
        assert!((28100..=28120).contains(&number), "{port}");
        published.insert(number);
    }
    assert_eq!(published.len(), 2);
    let asked = shown(&daemon, "one", "{{json .HostConfig.PortBindings}}");
    assert_eq!(asked, r#"{"80/tcp":[{"HostIp":"127.0.0.1","HostPort":"28100-28120"}]}"#);
}

#[test]
fn streams_that_nobody_attaches_are_not_shown() {
    let daemon = Daemon::with_busybox();
    let run = |flags: &[&str]| {
        let rest = ["--network", "none", "busybox", "sh", "-c", "echo out; echo err >&2; cat"];
        daemon.hoist([&["run", "--rm"], flags, &rest].concat())
    };
    let both = |flags: &[&str]| {
        let ran = run(flags).ok();
        (ran.stdout, ran.stderr)
    };
    assert_eq!(both(&["-a", "stdout"]), ("out\n".to_owned(), String::new()));
    assert_eq!(both(&["-a", "STDERR"]), (String::new(), "err\n".to_owned()));
    assert_eq!(both(&["-a", "stdout", "-a", "stderr"]), ("out\n".to_owned(), "err\n".to_owned()));
    for (flags, words) in [(&["-d", "-a", "stdout"][..], "--attach"), (&["-a", "stdin"], "-a stdin alone")] {
        run(flags).expect_code(125).expect_stderr(words);
    }
}

#[test]
fn small_flags_are_dockers() {
    let daemon = Daemon::with_busybox();
    sleeper(&daemon, "box", &[]);
    let file = daemon.dir().join("env");
    fs::write(&file, "# none\nA=1\nB=2\n").expect("a writable directory");
    let file = file.display().to_string();
    let exec = ["exec", "--env-file", &file, "-e", "B=3", "box", "sh", "-c", "echo $A $B"];
    assert_eq!(daemon.hoist(exec).ok().text(), "1 3");
    let sizes = daemon.hoist(["inspect", "-s", "-f", "{{.SizeRw}} {{.SizeRootFs}}", "box"]).ok();
    let [own, all] =
        sizes.text().split(' ').map(|size| size.parse::<u64>().expect("bytes")).collect::<Vec<_>>()[..]
    else {
        panic!("{sizes}")
    };
    assert!(own < all, "{sizes}");
    assert!(!daemon.hoist(["inspect", "box"]).ok().stdout.contains("SizeRw"));
    run_to_end(&daemon, "said", &[], "echo it");
    assert_eq!(daemon.hoist(["logs", "--details", "said"]).ok().stdout, " it\n");
    assert_eq!(daemon.hoist(["volume", "create", "--name", "named"]).ok().text(), "named");
    assert_eq!(daemon.hoist(["container", "remove", "said"]).ok().text(), "said");
    daemon.hoist(["network", "prune", "-f"]).ok();
    daemon.hoist(["tag", "busybox", "other"]).ok();
    assert_eq!(daemon.hoist(["rmi", "--no-prune", "other"]).ok().text(), "Untagged: other");
    for (words, said) in [
        (&["network", "create", "--driver", "bridge", "own"][..], "--network container:NAME"),
        (&["network", "rm", "bridge"], "there are bridge, host and none"),
        (&["network", "connect", "bridge", "box"], "there are bridge, host and none"),
        (&["network", "disconnect", "-f", "bridge", "box"], "--network none"),
        (&["pull", "-a", "127.0.0.1:1/busybox:latest"], "tag can't be used"),
        (&["pull", "-a", "127.0.0.1:1/busybox"], "list the tags of 127.0.0.1:1/busybox"),
        (&["push", "-a", "127.0.0.1:1/busybox:latest"], "tag can't be used"),
        (&["push", "-a", "127.0.0.1:1/nosuch"], "127.0.0.1:1/nosuch"),
        (&["volume", "create", "-o", "type=nfs", "it"], "mount(8)"),
        (&["load", "--platform", "linux/amd64"], "hoist image convert"),
        (&["rmi", "--platform", "linux/amd64", "other"], "hoist image convert"),
        (&["history", "--platform", "linux/amd64", "busybox"], "hoist images --tree"),
        (&["image", "inspect", "--platform", "linux/amd64", "busybox"], "hoist images --tree"),
        (&["rm", "--link", "a/b"], "containers are not linked"),
        (&["run", "--ip", "172.30.0.9", "busybox"], "which `hoist inspect` shows"),
        (&["run", "--network-alias", "a", "busybox"], "--add-host"),
        (&["run", "--link=a:b", "busybox"], "--add-host"),
        (&["run", "--storage-opt", "size=1g", "busybox"], "--tmpfs"),
    ] {
        let refused = daemon.hoist(words);
        assert!(refused.code != 0 && refused.stderr.contains(said), "{refused}");
    }
}

#[test]
fn an_imported_image_has_the_changes_that_were_said() {
    let daemon = Daemon::with_busybox();
    sleeper(&daemon, "box", &[]);
    let tar = daemon.dir().join("tree.tar").display().to_string();
    daemon.hoist(["export", "-o", &tar, "box"]).ok();
    let changes = ["-c", "CMD [\"echo\", \"$A\"]", "--change", "ENV A=1", "-m", "by hand"];
    daemon.hoist([&["import"], &changes[..], &[tar.as_str(), "imported"]].concat()).ok();
    let config = daemon
        .hoist(["image", "inspect", "-f", "{{json .Config.Cmd}} {{json .Config.Env}}", "imported"])
        .ok();
    assert_eq!(config.text(), r#"["echo","$A"] ["A=1"]"#);
    assert!(daemon.hoist(["history", "imported"]).ok().stdout.contains("by hand"));
    let refused = daemon.hoist(["import", "-c", "RUN true", &tar, "other"]);
    assert!(refused.code != 0 && refused.stderr.contains("RUN"), "{refused}");
}

#[test]
fn an_archive_is_imported_by_its_address() {
    let daemon = Daemon::with_busybox();
    sleeper(&daemon, "box", &[]);
    let tar = daemon.dir().join("tree.tar");
    daemon.hoist(["export", "-o", &tar.display().to_string(), "box"]).ok();
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has a free port");
    let address = format!("http://{}/tree.tar", listener.local_addr().expect("it is bound"));
    let bytes = fs::read(&tar).expect("it was written");
    // One answer is complete, one is cut off in the middle.
    let server = std::thread::spawn(move || {
        for len in [bytes.len(), bytes.len() / 2] {
            let (mut stream, _) = listener.accept().expect("somebody asks");
            assert!(stream.read(&mut [0; 4096]).expect("a request") > 0);
            write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", bytes.len())
                .and_then(|()| stream.write_all(&bytes[..len]))
                .expect("it is read");
        }
    });
    daemon.hoist(["import", &address, "fetched"]).ok();
    let comment = daemon.hoist(["image", "inspect", "-f", "{{.Comment}}", "fetched"]).ok();
    assert_eq!(comment.text(), format!("Imported from {address}"));
    let said = daemon.hoist(["run", "--rm", "--network", "none", "fetched", "echo", "here"]).ok();
    assert_eq!(said.text(), "here");
    daemon.hoist(["import", &address, "half"]).expect_code(1).expect_stderr("broke off");
    server.join().expect("no panic");
    daemon.hoist(["image", "inspect", "half"]).expect_code(1);
}
