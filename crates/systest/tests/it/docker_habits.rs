//! Details of Docker's behaviour that scripts rely on.

use std::fs;
use std::path::Path;

use testkit::{Daemon, eventually};

use crate::run_flags::make_device;

/// A container without network that sleeps.
fn sleeper(daemon: &Daemon, name: &str, flags: &[&str]) {
    let words = ["run", "-d", "--network", "none", "--name", name];
    let program = ["busybox", "sh", "-c", "trap 'exit 3' TERM INT HUP; while :; do sleep 0.1; done"];
    daemon.hoist([&words[..], flags, &program].concat()).ok();
}

fn shown(daemon: &Daemon, name: &str, template: &str) -> String {
    daemon.hoist(["inspect", "-f", template, name]).ok().text().to_owned()
}

#[test]
fn what_comes_after_the_image_is_the_containers() {
    let daemon = Daemon::with_busybox();
    let words =
        ["-c", "x=1", "--help", "-i", "in.mp4", "-H", "X: y", "--rm", "--name=n", "-e", "E", "--", "-v"];
    let run = ["run", "--rm", "--network", "none", "--entrypoint", "echo", "busybox"];
    let said = daemon.hoist([&run[..], &words].concat()).ok();
    assert_eq!(said.text(), words.join(" "));
    sleeper(&daemon, "up", &[]);
    let said = daemon.hoist([&["exec", "-e", "A=1", "up", "echo"][..], &words].concat()).ok();
    assert_eq!(said.text(), words.join(" "));
    for (words, missing) in [(&["run"][..], "IMAGE"), (&["exec", "up"], "COMMAND")] {
        let refused = daemon.hoist(words);
        assert!(refused.code != 0 && refused.stderr.contains(missing), "{refused}");
    }
    let help = daemon.hoist(["run", "--help"]).ok();
    assert!(help.stdout.contains("run [OPTIONS] IMAGE [COMMAND] [ARG...]"), "{help}");
}

/// Boolean flags with a value, as Go's flag parsers take them.
#[test]
fn switches_may_have_values() {
    let daemon = Daemon::with_busybox();
    let run =
        ["run", "--rm=true", "--tty=false", "--privileged=1", "--network", "none", "--entrypoint", "echo"];
    let said = daemon.hoist([&run[..], &["busybox", "--rm=true", "--tty=false"]].concat()).ok();
    assert_eq!(said.text(), "--rm=true --tty=false");
    assert_eq!(daemon.hoist(["ps", "--all=true", "--quiet=true"]).ok().stdout, "");
    let refused = daemon.hoist(["run", "--rm=perhaps", "busybox"]).expect_code(125);
    assert!(refused.stderr.contains("perhaps"), "{refused}");
    let refused =
        daemon.hoist(["run", "--name=true=false", "--rm=t", "--nosuch=true", "busybox"]).expect_code(125);
    assert!(refused.stderr.contains("--nosuch"), "{refused}");
}

#[test]
fn a_privileged_container_has_the_machines_devices() {
    let daemon = Daemon::with_busybox();
    let device = format!("/dev/hoist-{}/null", std::process::id());
    let (path, look) = (Path::new(&device), format!("echo x > {device} && stat -c %t,%T {device}"));
    let run = |flags: &[&str]| {
        let words = ["run", "--rm", "--network", "none"];
        daemon.hoist([&words[..], flags, &["busybox", "sh", "-c", &look]].concat())
    };
    // The device does not exist yet when the container is created.
    daemon
        .hoist(["create", "--name", "late", "--privileged", "--network", "none", "busybox", "stat", &device])
        .ok();
    make_device(path, 3);
    let (seen, late, without) = (run(&["--privileged"]), daemon.hoist(["start", "-a", "late"]), run(&[]));
    fs::remove_file(path).and_then(|()| fs::remove_dir(path.parent().unwrap())).expect("the test made it");
    assert_eq!(seen.ok().text(), "1,3");
    late.ok();
    assert_ne!(without.code, 0, "{without}");
}

#[test]
fn a_directory_of_the_machine_is_made_for_a_volume_and_not_for_a_mount() {
    let daemon = Daemon::with_busybox();
    let missing = daemon.dir().join("data/of/it");
    let run = ["run", "--rm", "--network", "none"];
    let mount = format!("type=bind,source={},target=/x", missing.display());
    let refused = daemon.hoist([&run[..], &["--mount", &mount, "busybox", "true"]].concat()).expect_code(125);
    assert!(
        refused.stderr.contains("does not exist on this machine; make it") && !missing.exists(),
        "{refused}"
    );
    let volume = format!("{}:/x:cached", missing.display());
    daemon.hoist([&run[..], &["-v", &volume, "busybox", "touch", "/x/f"]].concat()).ok();
    assert!(missing.join("f").exists());
}

#[test]
fn a_command_on_a_terminal_knows_its_kind() {
    let daemon = Daemon::with_busybox();
    sleeper(&daemon, "up", &[]);
    let term = |flags: &[&str]| {
        let said = daemon.hoist([&["exec"], flags, &["up", "sh", "-c", "echo ${TERM-none}"]].concat()).ok();
        said.text().to_owned()
    };
    assert_eq!(term(&[]), "none");
    assert_eq!(term(&["-t"]), "xterm");
    assert_eq!(term(&["-t", "-e", "TERM=vt100"]), "vt100");
}

#[test]
fn with_the_machines_network_a_container_has_its_name_and_knows_its_hosts() {
    let daemon = Daemon::with_busybox();
    let run = |flags: &[&str], script: &str| {
        let words = ["run", "--rm", "--network", "host"];
        daemon.hoist([&words[..], flags, &["busybox", "sh", "-c", script]].concat()).ok().text().to_owned()
    };
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    assert_eq!(run(&[], "hostname; cat /etc/hostname"), format!("{host}\n{host}"));
    assert_eq!(run(&["-h", "named"], "hostname"), "named");
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    assert_eq!(run(&[], "cat /etc/hosts"), hosts.trim());
    let more = run(&["--add-host", "other:192.0.2.1"], "cat /etc/hosts");
    assert!(more.starts_with(hosts.trim()) && more.ends_with("192.0.2.1\tother"), "{more}");
    let bridge =
        daemon.hoist(["run", "--rm", "--network", "default", "busybox", "ls", "/sys/class/net"]).ok();
    assert!(bridge.stdout.contains("eth0"), "{bridge}");
}

/// The usual template of scripts that wait until a container is healthy, if it has a health check.
#[test]
fn templates_may_ask_for_what_is_not_said() {
    let daemon = Daemon::with_busybox();
    sleeper(&daemon, "up", &[]);
    let idiom = "{{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}}";
    assert_eq!(shown(&daemon, "up", idiom), "none");
    assert_eq!(
        shown(&daemon, "up", "{{if .Config.Healthcheck}}a{{end}}{{if .Config.StopTimeout}}b{{end}}"),
        ""
    );
}

#[test]
fn wait_prints_the_code_of_each_container() {
    let daemon = Daemon::with_busybox();
    for (name, code) in [("first", 3), ("last", 4)] {
        let run =
            ["run", "--name", name, "--network", "none", "busybox", "sh", "-c", &format!("exit {code}")];
        daemon.hoist(run).expect_code(code);
    }
    let waited = daemon.hoist(["wait", "first", "nosuch", "last"]).expect_code(1);
    assert_eq!(waited.stdout, "3\n4\n");
    waited.expect_stderr("nosuch");
}

#[test]
fn who_is_asked_to_end_does_not_come_back() {
    let daemon = Daemon::with_busybox();
    let start = |name: &str| {
        sleeper(&daemon, name, &["--restart", "always"]);
        eventually("it hears signals", || {
            let top = daemon.hoist(["exec", name, "ps"]);
            top.stdout.contains("sleep 0.1").then_some(())
        });
    };
    for (signal, name) in [("TERM", "asked"), ("2", "interrupted")] {
        start(name);
        daemon.hoist(["kill", "-s", signal, name]).ok();
        assert_eq!(daemon.hoist(["wait", name]).ok().text(), "3");
        assert_eq!(shown(&daemon, name, "{{.State.Status}} {{.RestartCount}}"), "exited 0");
    }
    // A program that ends by itself is started again, here by a SIGHUP that it does not handle.
    start("crashed");
    daemon.hoist(["kill", "-s", "HUP", "crashed"]).ok();
    eventually("it is up again", || (shown(&daemon, "crashed", "{{.RestartCount}}") != "0").then_some(()));
}

#[test]
fn what_goes_when_it_stops_is_not_restarted() {
    let daemon = Daemon::with_busybox();
    sleeper(&daemon, "once", &["--rm"]);
    let refused = daemon.hoist(["restart", "-t", "0", "once"]);
    assert!(refused.code != 0 && refused.stderr.contains("--rm"), "{refused}");
    assert_eq!(shown(&daemon, "once", "{{.State.Running}}"), "true");
}

#[test]
fn who_has_no_limit_has_the_machines_memory() {
    let daemon = Daemon::with_busybox();
    sleeper(&daemon, "free", &[]);
    sleeper(&daemon, "bound", &["-m", "64m"]);
    let usage = |name: &str| {
        let stats =
            daemon.hoist(["stats", "--no-stream", "--format", "{{.MemUsage}} {{.MemPerc}}", name]).ok();
        stats.text().to_owned()
    };
    let (free, bound) = (usage("free"), usage("bound"));
    let total = fs::read_to_string("/proc/meminfo").expect("the kernel's file");
    let kib: f64 = total.split_whitespace().nth(1).expect("it is the first line").parse().expect("a number");
    let limit: f64 = free.split(['/', 'G']).nth(1).expect("USED / LIMIT").trim().parse().expect("GiB");
    assert!((limit - kib / f64::from(1 << 20)).abs() < 0.1, "{free} of {kib} KiB");
    assert!(bound.contains("/ 64MiB"), "{bound}");
}

/// A container with debugging tools joins the network of another.
#[test]
fn containers_share_the_network_of_one() {
    let daemon = Daemon::with_busybox();
    let run = ["run", "-d", "--name"];
    daemon.hoist([&run[..], &["web", "-h", "web.test", "busybox", "sleep", "1000"]].concat()).ok();
    // An IPv6 address is tentative for a moment.
    let look = "readlink /proc/self/ns/net; hostname; cat /etc/hosts /etc/resolv.conf; \
                ip -o addr show eth0 | sed 's/ tentative//'";
    let own = daemon.hoist(["exec", "web", "sh", "-c", look]).ok();
    daemon
        .hoist([&run[..], &["beside", "--network", "container:web", "busybox", "sleep", "1000"]].concat())
        .ok();
    // Also through a container that has joined the network itself.
    for name in ["web", "beside"] {
        let network = format!("container:{name}");
        let seen = daemon.hoist(["run", "--rm", "--network", &network, "busybox", "sh", "-c", look]).ok();
        assert_eq!(seen.stdout, own.stdout, "{name}");
    }
    let (web, beside) =
        (shown(&daemon, "web", "{{.Id}}"), shown(&daemon, "beside", "{{.HostConfig.NetworkMode}}"));
    assert_eq!(beside, format!("container:{web}"));
    for flags in [&["-p", "80:80"][..], &["-h", "x"], &["--add-host", "a:192.0.2.1"], &["--dns", "192.0.2.1"]]
    {
        let words = [&["run", "--network", "container:web"], flags, &["busybox", "true"]].concat();
        let refused = daemon.hoist(words).expect_code(125);
        assert!(
            refused.stderr.contains("conflicting options") && refused.stderr.contains(flags[0]),
            "{refused}"
        );
    }
    daemon.hoist(["run", "-d", "--name", "alone", "--network", "none", "busybox", "sleep", "1000"]).ok();
    for (other, why) in [("alone", "no network to share"), ("nosuch", "nosuch")] {
        let network = format!("container:{other}");
        let refused = daemon.hoist(["run", "--network", &network, "busybox", "true"]).expect_code(125);
        assert!(refused.stderr.contains(why), "{refused}");
    }
    daemon.hoist(["run", "-d", "--name", "hosts", "--network", "host", "busybox", "sleep", "1000"]).ok();
    let join = ["run", "--rm", "--network", "container:hosts", "busybox", "sh", "-c"];
    let seen = daemon.hoist([&join[..], &["readlink /proc/self/ns/net"]].concat());
    let host = fs::read_link("/proc/self/ns/net").expect("the kernel's link");
    assert_eq!(seen.ok().text(), host.display().to_string());
    daemon.hoist(["stop", "-t", "0", "web", "beside"]).ok();
    let refused = daemon.hoist(["start", "beside"]);
    assert!(refused.code != 0 && refused.stderr.contains("is not running"), "{refused}");
    daemon.hoist(["start", "web", "beside"]).ok();
    let seen = daemon.hoist(["exec", "beside", "ip", "-o", "addr", "show", "eth0"]).ok();
    assert!(seen.stdout.contains("inet "), "{seen}");
}

/// Flags that ask for what Hoist does anyway.
#[test]
fn words_that_change_nothing_are_taken() {
    let daemon = Daemon::with_busybox();
    let run = ["run", "--rm", "-q", "--log-driver", "json-file", "--cgroupns", "private", "--userns=host"];
    daemon.hoist([&run[..], &["--network", "none", "busybox", "true"]].concat()).ok();
    for (flag, value, way_out) in [
        ("--cgroupns", "host", "-v /sys/fs/cgroup"),
        ("--userns", "private", "-u UID"),
        ("--volume-driver", "nfs", "-v PATH:TARGET"),
    ] {
        let refused = daemon.hoist(["run", "--rm", flag, value, "busybox", "true"]).expect_code(125);
        assert!(refused.stderr.contains(flag) && refused.stderr.contains(way_out), "{refused}");
    }
    let file = daemon.dir().join("env");
    fs::write(&file, "  A=blank at the end \n# not this\n").expect("a writable directory");
    let (file, run) = (file.display().to_string(), ["run", "--rm", "--network", "none", "--env-file"]);
    let said = daemon.hoist([&run[..], &[&file, "busybox", "sh", "-c", "echo \"[$A]\""]].concat()).ok();
    assert_eq!(said.text(), "[blank at the end ]");
}

/// As with `-u "$RUN_AS"` where the variable is empty.
#[test]
fn empty_flag_values_count_as_absent() {
    let daemon = Daemon::with_busybox();
    daemon.hoist(["create", "--name", "maker", "--network", "none", "busybox"]).ok();
    daemon.hoist(["commit", "-c", "USER nobody", "maker", "nobodys"]).ok();
    let empty = ["-u", "", "-w", "", "-h", "", "--platform", "", "--stop-signal", "", "--cidfile", ""];
    let run = ["run", "-d", "--name", "up", "--network", "none"];
    daemon.hoist([&run[..], &empty, &["nobodys", "sleep", "1000"]].concat()).ok();
    let exec = |user: &str| daemon.hoist(["exec", "-u", user, "up", "id", "-u"]).ok().text().to_owned();
    assert_eq!((exec("").as_str(), exec("0").as_str()), ("65534", "0"));
    let id = shown(&daemon, "up", "{{.ID}}");
    assert_eq!(daemon.hoist(["exec", "up", "hostname"]).ok().text(), &id[..12]);
    assert_eq!(shown(&daemon, "up", "{{.Config.User}}"), "nobody");
    assert_eq!(
        daemon.hoist(["run", "--rm", "--name", "", "--network", "none", "busybox", "true"]).ok().stdout,
        ""
    );
    daemon.hoist(["rm", "-f", "up"]).ok();
}

#[test]
fn no_number_of_processes_is_no_limit() {
    let daemon = Daemon::with_busybox();
    for none in ["0", "-1"] {
        let run = ["run", "--rm", "--network", "none", "--pids-limit", none, "busybox", "sh", "-c"];
        let said = daemon.hoist([&run[..], &["true & wait; (echo further)"]].concat()).ok();
        assert_eq!(said.text(), "further", "{none}");
    }
}

#[test]
fn whoever_did_not_start_has_not_failed() {
    let daemon = Daemon::with_busybox();
    daemon.hoist(["create", "--name", "made", "--network", "none", "busybox"]).ok();
    assert_eq!(daemon.hoist(["wait", "made"]).ok().text(), "0");
}

#[test]
fn a_port_that_is_exposed_is_not_published() {
    let daemon = Daemon::with_busybox();
    let run = ["run", "-d", "--name", "web", "--expose", "8000-8001", "--expose", "53/udp", "busybox"];
    daemon.hoist([&run[..], &["sleep", "1000"]].concat()).ok();
    daemon.hoist(["port", "web", "8000"]).expect_code(1).expect_stderr("no public port '8000/tcp'");
    assert_eq!(daemon.hoist(["ps", "--format", "{{.Ports}}"]).ok().text(), "53/udp, 8000/tcp, 8001/tcp");
    assert_eq!(
        shown(&daemon, "web", "{{json .NetworkSettings.Ports}}"),
        r#"{"53/udp":null,"8000/tcp":null,"8001/tcp":null}"#
    );
    let place = shown(&daemon, "web", "{{.NetworkSettings.SandboxKey}}");
    assert!(Path::new(&place).exists(), "{place}");
    daemon.hoist(["rm", "-f", "web"]).ok();
    let lost = daemon.hoist(["create", "--network", "host", "-p", "8080:80", "busybox"]).ok();
    assert!(lost.stderr.contains("WARNING: Published ports are discarded"), "{lost}");
}

#[test]
fn networks_are_looked_for() {
    let daemon = Daemon::with_busybox();
    let names = |filters: &[&str]| {
        let filters = filters.iter().flat_map(|filter| ["--filter", filter]);
        let words: Vec<&str> =
            ["network", "ls", "--format", "{{.Name}}"].into_iter().chain(filters).collect();
        daemon.hoist(words).ok().text().replace('\n', " ")
    };
    assert_eq!(names(&["name=^web$"]), "");
    assert_eq!(names(&["name=o"]), "host none");
    assert_eq!(names(&["driver=bridge", "driver=host", "type=builtin"]), "bridge host");
    assert_eq!(names(&["type=custom"]), "");
    for wrong in ["nosuch=1", "type=nosuch", "name=(", "dangling=perhaps"] {
        daemon.hoist(["network", "ls", "-f", wrong]).expect_code(1).expect_stderr(wrong);
    }
}

#[test]
fn lists_tell_what_their_templates_ask_for() {
    let daemon = Daemon::with_busybox();
    sleeper(&daemon, "big", &[]);
    daemon.hoist(["exec", "big", "sh", "-c", "head -c 3000000 /dev/zero > /file"]).ok();
    let size = daemon.hoist(["ps", "--format", "{{.Names}} {{.Size}}"]).ok();
    assert!(size.text().starts_with("big 3") && size.text().contains("MB (virtual "), "{size}");
    for image in ["older", "newer"] {
        daemon.hoist(["commit", "big", image]).ok();
    }
    daemon.hoist(["rm", "-f", "big"]).ok();
    let images = daemon.hoist(["images", "--format", "{{.Repository}}"]).ok();
    assert_eq!(images.text().lines().take(2).collect::<Vec<_>>(), ["newer", "older"]);
    daemon.hoist(["volume", "create", "--label", "tier=front", "data"]).ok();
    let volumes = |format: &str| daemon.hoist(["volume", "ls", "--format", format]).ok().text().to_owned();
    assert_eq!(volumes(r#"{{.Name}} {{.Labels}} {{.Label "tier"}}"#), "data tier=front front");
    assert_eq!(volumes(r"table {{.Name}}\t{{.Driver}}"), "VOLUME NAME   DRIVER\ndata          local");
}

#[test]
fn a_file_of_variables_is_no_script() {
    let daemon = Daemon::with_busybox();
    let file = daemon.dir().join("variables");
    let path = file.display().to_string();
    let run = ["run", "--rm", "--network", "none", "--env-file", &path, "busybox", "env"];
    fs::write(&file, "export A=1\n").expect("the test's folder");
    let refused = daemon.hoist(run).expect_code(125);
    assert!(refused.stderr.contains("\"export A\" contains whitespaces"), "{refused}");
    fs::write(&file, "\u{feff}A=1\n").expect("the test's folder");
    assert!(daemon.hoist(run).ok().stdout.lines().any(|line| line == "A=1"));
}

#[test]
fn what_people_do_is_told_as_it_happens() {
    let daemon = Daemon::with_busybox();
    sleeper(&daemon, "box", &[]);
    daemon.hoist(["kill", "-s", "USR1", "box"]).expect_code(0);
    daemon.hoist(["rename", "box", "other"]).ok();
    daemon.hoist(["update", "--pids-limit", "50", "other"]).ok();
    daemon.hoist(["stop", "other"]).ok();
    let wanted = ["kill", "rename", "update", "stop"];
    let events = daemon.hoist(["events", "--since", "1h", "--until", "0s", "--format", "json"]).ok();
    for action in wanted {
        let status = format!("\"status\":\"{action}\"");
        assert!(events.stdout.lines().any(|line| line.contains(&status)), "{action}: {events}");
    }
    assert!(events.stdout.contains(r#""oldName":"/box""#), "{events}");
    daemon.hoist(["rm", "-f", "other"]).ok();
}

#[test]
fn what_becomes_of_images_volumes_and_networks_is_told() {
    let daemon = Daemon::with_busybox();
    let told = |filter: &str, format: &str| {
        let words = ["events", "--since", "1h", "--until", "0s", "--filter", filter, "--format", format];
        daemon.hoist(words).ok().stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let archive = daemon.dir().join("other.tar").display().to_string();
    daemon.hoist(["tag", "busybox", "other"]).ok();
    daemon.hoist(["save", "-o", &archive, "other"]).ok();
    daemon.hoist(["rmi", "other"]).ok();
    daemon.hoist(["load", "-i", &archive]).ok();
    let of_images = told("image=other:latest", "{{.Action}}");
    for action in ["tag", "save", "untag", "load"] {
        assert!(of_images.iter().any(|told| told == action), "{action}: {of_images:?}");
    }

    daemon.hoist(["volume", "create", "data"]).ok();
    daemon.hoist(["volume", "create", "data"]).ok();
    let run = ["run", "--rm", "--network", "none", "-v", "data:/data:ro", "-v", "/own", "busybox", "true"];
    daemon.hoist(run).ok();
    daemon.hoist(["volume", "rm", "data"]).ok();
    daemon.hoist(["volume", "prune", "--force"]).ok();
    let format = r#"{{.Action}} {{index .Actor.Attributes "read/write"}} {{.Actor.Attributes.destination}}"#;
    let lines = told("volume=data", format);
    let lines: Vec<&str> = lines.iter().map(|line| line.trim_end()).collect();
    assert_eq!(lines, ["create", "mount false /data", "unmount false /data", "destroy"]);
    let all = told("type=volume", "{{.Action}}");
    let others = ["create", "create", "mount", "mount", "unmount", "unmount", "destroy", "destroy", "prune"];
    assert_eq!(all, others, "the nameless one goes with its container");
    let of_networks = told("network=none", "{{.Type}} {{.Action}} {{.Actor.Attributes.type}}");
    assert_eq!(of_networks, ["network connect null", "network disconnect null"]);
}

/// The events take back what the failed start had announced.
#[test]
fn a_start_that_fails_tells_the_ends_of_what_it_told() {
    let daemon = Daemon::with_busybox();
    let program = daemon.dir().join("program");
    testkit::executable(&program, "neither a program nor a script\n");
    let mounted = format!("{}:/program", program.display());
    let create = ["create", "--name", "box", "--network", "none", "-v", "data:/data", "-v", &mounted];
    daemon.hoist(create.iter().chain(&["busybox", "/program"])).ok();
    // Repeated, since the first process may end by itself just when it is killed.
    const TIMES: usize = 8;
    for _ in 0..TIMES {
        daemon.hoist(["start", "box"]).expect_code(1).expect_stderr("exec format error");
    }
    let told = |filter: &str| {
        let words =
            ["events", "--since", "1h", "--until", "0s", "--filter", filter, "--format", "{{.Action}}"];
        daemon.hoist(words).ok().stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(told("volume=data"), [vec!["create"], ["mount", "unmount"].repeat(TIMES)].concat());
    assert_eq!(told("network=none"), ["connect", "disconnect"].repeat(TIMES));
}
