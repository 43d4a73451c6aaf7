//! Rare flags of `run`, by what the container sees.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use serde_json::{Value, json};
use testkit::{Daemon, Layout, digest_of, eventually};

use crate::archives::shell_layer;

/// As Docker's users type them.
#[test]
fn short_flags_are_dockers() {
    let daemon = Daemon::with_busybox();
    assert_eq!(says(&daemon, &["-h", "named"], "hostname"), "named");
    assert!(daemon.hoist(["-v"]).ok().stdout.starts_with("hoist "));
    assert_eq!(daemon.hoist(["-V"]).ok().stdout, daemon.hoist(["--version"]).ok().stdout);
    assert!(daemon.hoist(["run", "--help"]).ok().stdout.contains("-h, --hostname"));
    daemon
        .hoist([
            "run",
            "-d",
            "--name",
            "it",
            "--network",
            "none",
            "busybox",
            "sh",
            "-c",
            "echo 1; echo 2; sleep 1",
        ])
        .ok();
    assert_eq!(daemon.hoist(["wait", "it"]).ok().text(), "0");
    assert_eq!(daemon.hoist(["logs", "--tail", "-1", "it"]).ok().stdout, "1\n2\n");
    daemon.hoist(["start", "it"]).ok();
    // It ends by itself, and is waited for.
    daemon.hoist(["stop", "-t", "-1", "-s", "WINCH", "it"]).ok();
    assert_eq!(daemon.hoist(["inspect", "-f", "{{.State.ExitCode}}", "it"]).ok().text(), "0");
    for words in [&["rm", "-f", ""][..], &["stop", ""], &["inspect", "/"]] {
        let refused = daemon.hoist(words);
        assert!(refused.code != 0 && refused.stderr.contains("it is empty"), "{refused}");
    }
    daemon.hoist(["run", "-d", "--name", "up", "--network", "none", "busybox", "sleep", "1000"]).ok();
    let refused = daemon.hoist(["exec", "-w", "relative", "up", "true"]);
    assert!(refused.code != 0 && refused.stderr.contains("needs to be an absolute path"), "{refused}");
    let refused = daemon.hoist(["exec", "up", "/nosuch"]).expect_code(127);
    assert_eq!(refused.stderr.matches("in container").count(), 1, "{refused}");
}

/// Of a registry that is not there.
const IMAGE: &str = "127.0.0.1:1/busybox:latest";

/// One of the character devices of memory, with the directories that it needs.
pub(crate) fn make_device(path: &Path, minor: u32) {
    fs::create_dir_all(path.parent().expect("it is below a folder")).expect("a writable directory");
    let mode = Mode::from_raw_mode(0o666);
    mknodat(CWD, path, FileType::CharacterDevice, mode, makedev(1, minor)).expect("root makes devices");
}

/// What a program of a container says.
pub(crate) fn says(daemon: &Daemon, flags: &[&str], script: &str) -> String {
    let rest = ["--network", "none", "busybox", "sh", "-c", script];
    daemon.hoist([&["run", "--rm"], flags, &rest].concat()).ok().text().to_owned()
}

#[test]
fn limits_and_devices_are_the_containers() {
    let daemon = Daemon::with_busybox();
    let check = |flags: &[&str], script: &str, expected: &str| {
        assert_eq!(says(&daemon, flags, script), expected, "{flags:?}");
    };
    check(
        &["--ulimit", "nofile=77:88", "--ulimit", "core=0"],
        "ulimit -n; ulimit -Hn; ulimit -c",
        "77\n88\n0",
    );
    check(&["--shm-size", "1m"], "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2", "1024");
    check(&["--sysctl", "net.ipv4.ip_forward=1"], "cat /proc/sys/net/ipv4/ip_forward", "1");
    // Not one of those that every container has.
    let open = "true < /dev/given && echo read; true > /dev/given || echo refused";
    check(&["--device", "/dev/loop-control:/dev/given:r"], open, "read\nrefused");
    let folder = tempfile::tempdir().expect("a temporary directory");
    for (path, minor) in [("first", 7), ("deep/second", 8)] {
        make_device(&folder.path().join(path), minor);
    }
    let given = format!("{}:/dev/many:r", folder.path().display());
    check(
        &["--device", &given],
        "cd /dev/many; stat -c '%n %t %T' first deep/second; head -c 1 deep/second | wc -c",
        "first 1 7\ndeep/second 1 8\n1",
    );
    check(&["--oom-score-adj", "77"], "cat /proc/self/oom_score_adj", "77");
    check(
        &["--cpuset-cpus", "0"],
        "grep Cpus_allowed_list /proc/self/status | tr -d '\\t'",
        "Cpus_allowed_list:0",
    );
}

#[test]
fn files_in_memory_are_as_asked() {
    let daemon = Daemon::with_busybox();
    let mounted = |flags: &[&str], path: &str| {
        let script = format!("grep ' {path} ' /proc/mounts; stat -c %a {path}");
        says(&daemon, flags, &script)
    };
    let plain = mounted(&["--tmpfs", "/new"], "/new");
    assert!(plain.contains("rw,nosuid,nodev,noexec,relatime") && plain.ends_with("1777"), "{plain}");
    let small = mounted(&["--tmpfs", "/new:size=1m,exec,mode=700"], "/new");
    assert!(small.contains("size=1024k") && !small.contains("noexec") && small.ends_with("700"), "{small}");
    let long = mounted(&["--mount", "type=tmpfs,target=/new,tmpfs-size=2m,tmpfs-mode=755"], "/new");
    assert!(long.contains("size=2048k") && long.ends_with("755"), "{long}");
    assert_eq!(says(&daemon, &["--tmpfs", "/new", "-u", "7:7"], "touch /new/a && echo made"), "made");
}

#[test]
fn a_directory_of_files_in_memory_stays_writable_at_the_next_start() {
    let daemon = Daemon::with_busybox();
    let flags = ["run", "--name", "it", "--network", "none", "--tmpfs", "/new", "-u", "7:7"];
    daemon.hoist([&flags[..], &["busybox", "touch", "/new/a"]].concat()).ok();
    daemon.hoist(["start", "-a", "it"]).ok();
}

#[test]
fn what_is_shared_with_the_machine_is() {
    let daemon = Daemon::with_busybox();
    let link = |kind: &str| {
        fs::read_link(format!("/proc/self/ns/{kind}")).expect("a namespace").display().to_string()
    };
    for kind in ["pid", "ipc"] {
        let script = format!("readlink /proc/self/ns/{kind}");
        let flag = format!("--{kind}");
        assert_eq!(says(&daemon, &[&flag, "host"], &script), link(kind));
        assert_ne!(says(&daemon, &[], &script), link(kind));
    }
    // One that sees all processes is stopped all the same, and nobody else is.
    daemon.hoist(["run", "-d", "--name", "box", "--pid", "host", "busybox", "sleep", "1000"]).ok();
    daemon.hoist(["rm", "-f", "box"]).ok();
}

#[test]
fn safety_is_more_or_less_as_asked() {
    let daemon = Daemon::with_busybox();
    let status = |flags: &[&str]| {
        says(&daemon, flags, "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status | tr -d '\\t'")
    };
    assert_eq!(status(&[]), "NoNewPrivs:0\nSeccomp:2");
    assert_eq!(status(&["--security-opt", "no-new-privileges"]), "NoNewPrivs:1\nSeccomp:2");
    assert_eq!(status(&["--security-opt", "seccomp=unconfined"]), "NoNewPrivs:0\nSeccomp:0");
    let masks = "grep -c ' /proc/' /proc/self/mounts || true";
    assert_ne!(says(&daemon, &[], masks), "0");
    assert_eq!(says(&daemon, &["--security-opt", "systempaths=unconfined"], masks), "0");
}

#[test]
fn calls_are_filtered_by_the_profile_of_a_file() {
    let daemon = Daemon::with_busybox();
    let file = daemon.dir().join("filter.json");
    let option = format!("seccomp={}", file.display());
    let run = |profile: &str, flags: &[&str]| {
        fs::write(&file, profile).unwrap();
        let rest = ["--network", "none", "busybox", "sh", "-c", "mkdir /tmp/a; cat /proc/self/comm"];
        daemon.hoist([&["run", "--rm", "--security-opt", option.as_str()], flags, &rest].concat())
    };
    // As the OCI spec has it, and as Docker has it: taken by who has a capability.
    let plain = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls":
        [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#;
    run(plain, &[]).ok().expect_stderr("No space left");
    let docker = r#"{"defaultAction": "SCMP_ACT_ALLOW", "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28, "comment": "",
                      "includes": {"caps": ["CAP_NET_ADMIN"], "minKernel": "3.0"}, "excludes": {"arches": ["s390x"]}}]}"#;
    assert_eq!(run(docker, &[]).ok().stderr, "");
    run(docker, &["--cap-add", "net_admin"]).ok().expect_stderr("No space left");
    for (profile, words) in [
        ("{", "is no JSON"),
        ("{}", "no defaultAction"),
        (r#"{"defaultAction": "SCMP_ACT_ODD"}"#, "SCMP_ACT_ODD"),
    ] {
        run(profile, &[]).expect_code(125).expect_stderr(words).expect_stderr("--security-opt");
    }
    let missing = ["run", "--security-opt", "seccomp=/nosuch.json", "busybox", "true"];
    daemon.hoist(missing).expect_code(125).expect_stderr("/nosuch.json");
    assert_eq!(daemon.hoist(["ps", "-aq"]).ok().stdout, "", "nothing is left");
}

#[test]
fn its_user_is_in_further_groups() {
    let daemon = Daemon::with_busybox();
    let groups = |flags: &[&str]| {
        let flags = [flags, &["--group-add", "nogroup", "--group-add", "77"]].concat();
        says(&daemon, &flags, "grep Groups: /proc/self/status | cut -f2").trim().to_owned()
    };
    assert_eq!(groups(&[]), "0 77 65534");
    assert_eq!(groups(&["-u", "7:8"]), "8 77 65534");
    let nosuch = ["run", "--rm", "--group-add", "nosuch", "busybox", "true"];
    daemon.hoist(nosuch).expect_code(125).expect_stderr("unable to find group nosuch");
    let run = ["run", "-d", "--name", "box", "--network", "none", "--group-add", "nogroup", "busybox"];
    daemon.hoist([&run[..], &["sleep", "1000"]].concat()).ok();
    let script = "grep Groups: /proc/self/status | cut -f2";
    for (user, expected) in [(&[][..], "0 65534"), (&["-u", ""], "0 65534"), (&["-u", "nobody"], "65534")] {
        let exec = daemon.hoist([&["exec"], user, &["box", "sh", "-c", script]].concat()).ok();
        assert_eq!(exec.text().trim(), expected, "{user:?}");
    }
    daemon.hoist(["rm", "-f", "box"]).ok();
}

#[test]
fn memory_and_swap_are_limited_together() {
    let daemon = Daemon::with_busybox();
    let shown = |format: &str| daemon.hoist(["inspect", "-f", format, "box"]).ok().text().to_owned();
    let swap = || shown("{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}}");
    let run = |flags: &[&str]| {
        let rest = ["--name", "box", "--network", "none", "busybox", "sleep", "1000"];
        daemon.hoist([&["run", "-d"], flags, &rest].concat()).ok();
    };
    let limit = || {
        let group = format!("{}/{}", daemon.cgroup(), shown("{{.Id}}"));
        let first = format!("/sys/fs/cgroup/memory/{group}/memory.memsw.limit_in_bytes");
        let (text, is_alone) = match fs::read_to_string(first) {
            Ok(text) => (text, false),
            Err(_) => (fs::read_to_string(format!("/sys/fs/cgroup/{group}/memory.swap.max")).ok()?, true),
        };
        let own = if is_alone { shown("{{.HostConfig.Memory}}").parse().unwrap() } else { 0 };
        // Without a limit version 1 says the largest number of pages.
        Some(text.trim().parse::<u64>().ok().map(|bytes| bytes + own).filter(|bytes| *bytes < 1 << 60))
    };
    let check = |expected: &str, bytes: Option<u64>| {
        assert_eq!(swap(), expected);
        // A kernel that counts no swap has none to limit.
        assert!(limit().is_none_or(|found| found == bytes), "{:?}", limit());
    };
    run(&["-m", "16m"]);
    check("16777216 33554432", Some(32 << 20));
    daemon.hoist(["update", "-m", "32m", "box"]).ok();
    check("33554432 67108864", Some(64 << 20));
    daemon.hoist(["update", "--memory-swap", "33m", "box"]).ok();
    check("33554432 34603008", Some(33 << 20));
    daemon.hoist(["update", "-m", "64m", "box"]).expect_code(1).expect_stderr("--memory-swap");
    daemon.hoist(["update", "-m", "64m", "--memory-swap=-1", "box"]).ok();
    check("67108864 -1", None);
    daemon.hoist(["rm", "-f", "box"]).ok();
    run(&["-m", "16m", "--memory-swap", "16m"]);
    check("16777216 16777216", Some(16 << 20));
    daemon.hoist(["rm", "-f", "box"]).ok();
}

#[test]
fn names_are_resolved_as_asked() {
    let daemon = Daemon::with_busybox();
    let flags = ["--add-host", "there:192.0.2.7", "--add-host", "six=[2001:db8::1]", "--dns", "192.0.2.53"];
    let flags = [&flags[..], &["--dns-search", "example.org", "--dns-option", "ndots:3"]].concat();
    let said = says(&daemon, &flags, "cat /etc/hosts /etc/resolv.conf");
    for line in [
        "192.0.2.7\tthere",
        "2001:db8::1\tsix",
        "nameserver 192.0.2.53",
        "search example.org",
        "options ndots:3",
    ] {
        assert!(said.lines().any(|own| own == line), "{line}: {said}");
    }
    assert_eq!(said.matches("nameserver").count(), 1, "{said}");
    // On the bridge the machine has an address, also for a container that is started again.
    let script = "grep gate /etc/hosts; ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p'";
    let run = ["run", "--name", "box", "--add-host", "gate:host-gateway", "busybox", "sh", "-c", script];
    let first = daemon.hoist(run).ok().text().to_owned();
    let (hosts, gateway) = first.split_once('\n').expect("two lines");
    assert_eq!(hosts, format!("{gateway}\tgate"));
    assert_eq!(daemon.hoist(["start", "-a", "box"]).ok().text(), first);
}

#[test]
fn images_are_fetched_when_asked_and_ids_are_written() {
    let daemon = Daemon::with_busybox();
    let file = daemon.dir().join("id");
    let path = file.display().to_string();
    let create = |flags: &[&str]| {
        let rest = ["--network", "none", IMAGE, "true"];
        daemon.hoist([&["create", "--cidfile", path.as_str()], flags, &rest].concat())
    };
    daemon.hoist(["tag", "busybox", IMAGE]).ok();
    create(&["--pull", "always"]).expect_code(125).expect_stderr("127.0.0.1:1");
    assert!(!file.exists(), "there is no container");
    create(&["--stop-signal", "SIGNOSUCH"]).expect_code(125).expect_stderr("--stop-signal");
    let id = create(&["--stop-signal", "INT", "--cpu-shares", "7", "--memory-reservation", "6m"])
        .ok()
        .text()
        .to_owned();
    assert_eq!(fs::read_to_string(&file).expect("it is written"), id);
    create(&[]).expect_code(125).expect_stderr(&path);
    let shown: Value = serde_json::from_str(&daemon.hoist(["inspect", &id]).ok().stdout).expect("JSON");
    assert_eq!(shown[0]["Config"]["StopSignal"], "INT");
    assert_eq!(shown[0]["HostConfig"]["CpuShares"], 7);
    assert_eq!(shown[0]["HostConfig"]["MemoryReservation"], 6 << 20);
    let missing = daemon.hoist(["run", "--pull", "never", "nosuch:latest"]).expect_code(125);
    missing.expect_stderr("No such image: ").expect_stderr("`hoist images` lists");
}

fn inspected(daemon: &Daemon, name: &str) -> Value {
    let shown: Value = serde_json::from_str(&daemon.hoist(["inspect", name]).ok().stdout).expect("JSON");
    shown[0].clone()
}

/// The labels of its image are the container's too; what was asked for comes first, and of that what stands on the command
/// line.
#[test]
fn labels_come_from_images_and_files() {
    let layout = Layout::new();
    let labels = json!({
        "of": "image", "image": "image", "file": "image", "containerd.io/gc.bref.container": "x", "long": "x".repeat(5000),
    });
    let config = json!({"Cmd": ["sh"], "Labels": labels});
    let layer = layout.blob("application/vnd.oci.image.layer.v1.tar", &shell_layer());
    let rootfs = json!({"type": "layers", "diff_ids": [digest_of(&layer)]});
    layout.tag(&layout.image_of_blobs(&[layer], &json!({"config": config, "rootfs": rootfs})), "labelled:1");
    let daemon = Daemon::start();
    daemon.load(layout.path());
    let file = daemon.dir().join("labels");
    fs::write(&file, "\u{feff}# none\n\n  file=file = x \nboth=file\nalone\n").expect("a writable directory");
    let file = file.display().to_string();
    let create =
        ["create", "--name", "box", "--label-file", &file, "--label", "both=line", "--label", "image="];
    daemon.hoist(create.iter().chain(&["labelled:1"])).ok();
    let shown = inspected(&daemon, "box")["Config"]["Labels"].clone();
    let expected = [("of", "image"), ("image", ""), ("file", "file = x "), ("both", "line")];
    for (key, value) in expected {
        assert_eq!(shown[key], value, "{key}: {shown}");
    }
    assert!(shown.get("alone").is_none() && shown["long"].as_str().is_some_and(|text| text.len() == 5000));
    let listed = |label: &str| {
        let filter = format!("label={label}");
        daemon.hoist(["ps", "-a", "--format", "{{.Names}}", "--filter", &filter]).ok().text() == "box"
    };
    assert!(["of=image", "of", "image=", "both=line"].iter().all(|label| listed(label)));
    assert!(!["of=x", "image=image", "both=file", "alone"].iter().any(|label| listed(label)));
    // The record that clients of containerd see has those that one can have, and none that say when it goes.
    let record = daemon.ctr(["containers", "info", "box"]);
    let record = if record.code == 0 {
        record
    } else {
        daemon.ctr(["containers", "info", &id_of(&daemon, "box")]).ok()
    };
    assert!(record.stdout.contains("\"of\": \"image\""), "{record}");
    assert!(!record.stdout.contains("gc.bref") && !record.stdout.contains("\"long\""), "{record}");
    for (flag, wrong) in [("--label-file", "a key=1"), ("--env-file", "=1")] {
        fs::write(&file, wrong).expect("a writable directory");
        let refused = daemon.hoist(["create", flag, &file, "labelled:1"]).expect_code(125);
        refused.expect_stderr(flag).expect_stderr(wrong);
    }
}

fn id_of(daemon: &Daemon, name: &str) -> String {
    inspected(daemon, name)["Id"].as_str().expect("an id").to_owned()
}

#[test]
fn ports_are_exposed_as_asked() {
    let daemon = Daemon::with_busybox();
    let expose = ["--expose", "80", "--expose", "90-91/udp", "--expose", "80/tcp"];
    daemon.hoist(["create", "--name", "box"].iter().chain(&expose).chain(&["busybox"])).ok();
    let shown = inspected(&daemon, "box");
    assert_eq!(shown["Config"]["ExposedPorts"], json!({"80/tcp": {}, "90/udp": {}, "91/udp": {}}));
    let run = ["run", "-d", "--name", "all", "-P"].iter().chain(&expose);
    daemon.hoist(run.chain(&["busybox", "sleep", "1000"])).ok();
    let ports = daemon.hoist(["port", "all"]).ok();
    let ports: BTreeSet<&str> = ports.stdout.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(ports, BTreeSet::from(["80/tcp", "90/udp", "91/udp"]));
}

/// In place of the ten seconds that are usual, and of whatever else when it is stopped or begins anew.
#[test]
fn a_container_says_how_long_it_may_take_to_stop() {
    let daemon = Daemon::with_busybox();
    let deaf = "trap '' TERM; trap 'echo told; exit 7' USR1; echo up; while :; do sleep 1000 & wait $!; done";
    let run = ["run", "-d", "--name", "deaf", "--network", "none", "--stop-timeout", "1", "busybox"];
    daemon.hoist(run.iter().chain(&["sh", "-c", deaf])).ok();
    assert_eq!(inspected(&daemon, "deaf")["Config"]["StopTimeout"], 1);
    let said = |count: usize, word: &str| {
        eventually("it says so", || {
            (daemon.hoist(["logs", "deaf"]).ok().stdout.matches(word).count() == count).then_some(())
        });
    };
    said(1, "up");
    let begun = Instant::now();
    daemon.hoist(["stop", "deaf"]).ok();
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    assert_eq!(inspected(&daemon, "deaf")["State"]["ExitCode"], 137);
    daemon.hoist(["start", "deaf"]).ok();
    said(2, "up");
    daemon.hoist(["restart", "-t", "-1", "--signal", "USR1", "deaf"]).ok();
    said(1, "told");
    said(3, "up");
    assert_eq!(inspected(&daemon, "deaf")["State"]["Running"], true);
}

#[test]
fn what_another_container_has_mounted_is_mounted_too() {
    let daemon = Daemon::with_busybox();
    let (folder, other) = (daemon.dir().join("folder"), daemon.dir().join("other"));
    for (path, text) in [(&folder, "folder"), (&other, "other")] {
        fs::create_dir(path).expect("a writable directory");
        fs::write(path.join("file"), text).expect("a writable directory");
    }
    let bound = |path: &Path, rest: &str| format!("{}:{rest}", path.display());
    let (read_only, over) = (bound(&folder, "/folder:ro"), bound(&other, "/folder"));
    let first = ["-v", "named:/named", "-v", "/nameless", "-v", &read_only, "--tmpfs", "/memory"];
    let run = ["run", "--name", "first", "--network", "none"].iter().chain(&first);
    daemon.hoist(run.chain(&["busybox", "sh", "-c", "echo a > /named/a; echo b > /nameless/b"])).ok();
    let look = |flags: &[&str], script: &str| says(&daemon, flags, script);
    let from = ["--volumes-from", "first"];
    assert_eq!(look(&from, "cat /named/a /nameless/b /folder/file"), "a\nb\nfolder");
    assert_eq!(look(&from, "touch /named/c /nameless/c && touch /folder/c || echo no"), "no");
    assert_eq!(look(&["--volumes-from", "first:ro"], "touch /named/d || ls /named"), "a\nc");
    assert_eq!(look(&["--volumes-from", "first", "-v", &over], "cat /folder/file; cat /named/a"), "othera");
    assert_eq!(look(&from, "test -e /memory || echo none"), "none");
    // A volume without a name goes with the last container that has it.
    daemon.hoist(["create", "--name", "second"].iter().chain(&from).chain(&["busybox"])).ok();
    daemon.hoist(["rm", "-v", "first"]).ok();
    assert_eq!(look(&["--volumes-from", "second"], "cat /nameless/b"), "b");
    daemon.hoist(["rm", "-v", "second"]).ok();
    assert_eq!(daemon.hoist(["volume", "ls", "-q"]).ok().text(), "named");
    daemon.hoist(["create", "--volumes-from", "nosuch", "busybox"]).expect_code(125).expect_stderr("nosuch");
}

#[test]
fn what_cannot_be_is_refused_by_its_flag() {
    let daemon = Daemon::with_busybox();
    for (flags, words) in [
        (["--ulimit", "files=1"], "--ulimit files"),
        (["--device", "/etc/hostname"], "is not a device"),
        (["--pid", "container:x"], "--pid"),
        (["--security-opt", "odd"], "no-new-privileges"),
        (["--dns", "nobody"], "--dns"),
        (["--add-host", "x:nobody"], "host-gateway"),
        (["--tmpfs", "/x:bogus=1"], "bogus"),
        (["--tmpfs", "/bin/.."], "root of the container"),
        (["-v", "/etc:/"], "root of the container"),
        (["--cpus", "0.0001"], "0.01"),
        (["-w", "relative"], "needs to be an absolute path"),
        (["-v", ":/x"], "invalid volume"),
        (["-p", "80:80:80:80"], "is not an IPv4 address"),
        (["-p", "1:1/sctp"], "neither tcp nor udp"),
        (["--cpus", "9999"], "range of CPUs is from 0.01"),
        (["--cpuset-cpus", "9999"], "CPUs are not available"),
        (["-m=10m", "--memory-reservation=1g"], "less than the memory reservation"),
        (["-m", "99999999999999g"], "invalid size"),
        (["-e", "=C"], "no name"),
        (["--memory-swap", "1g"], "needs --memory"),
        (["-m=1g", "--memory-swap=512m"], "not less"),
        (["--memory-swap", "-2"], "invalid size"),
        (["--rm", "--restart=always"], "conflicting options"),
        (["--expose", "x"], "--expose x"),
        (["--expose", "80/icmp"], "--expose 80/icmp"),
        (["--volumes-from", "x:rx"], "invalid mode"),
        (["--network", "nosuch"], "network nosuch does not exist"),
    ] {
        let refused = daemon.hoist([&["run"], &flags[..], &["busybox", "true"]].concat());
        assert_ne!(refused.code, 0);
        refused.expect_stderr(words);
        assert_eq!(daemon.hoist(["ps", "-aq"]).ok().stdout, "", "nothing is left: {flags:?}");
    }
    // Before the image is looked for.
    let absent = ["create", "--pull", "never", "--network", "nosuch", "absent:1", "true"];
    daemon.hoist(absent).expect_code(125).expect_stderr("network nosuch does not exist");
}
