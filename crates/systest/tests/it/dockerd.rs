//! Debian's dockerd on Hoist's daemon in place of its containerd: it runs, watches and recovers its containers.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;
use testkit::{Daemon, Docker, Finished, eventually, images, is_root, run};
use types::spec::runtime::Spec;

use crate::cgroups::HIERARCHIES;
use crate::ctr::{STOCK_SHIM, shim_of};
use crate::runtime_callers::NotedRunc;

/// The namespace of dockerd's containers.
const MOBY: &str = "moby";

/// The shim that dockerd runs: it knows one name only.
#[derive(Clone, Copy, Debug)]
enum Shim {
    /// containerd's own.
    Stock,
    /// Hoist's, under that name.
    Ours,
}

/// The fields are dropped in this order.
struct Stage {
    docker: Docker,
    daemon: Daemon,
    _programs: TempDir,
}

impl Stage {
    /// Pulls busybox. None if Docker is not installed.
    fn new(shim: Shim) -> Option<Stage> {
        if !is_root("dockerd") {
            return None;
        }
        let programs = TempDir::new().expect("a temporary directory");
        if matches!(shim, Shim::Ours) {
            let link = programs.path().join("containerd-shim-runc-v2");
            std::os::unix::fs::symlink(testkit::shim_program(), link).expect("a writable directory");
        }
        let path = format!("{}:{}", programs.path().display(), std::env::var("PATH").expect("a path"));
        let daemon = Daemon::start_in(&[], "", &[("PATH", &path)]);
        let docker = Docker::start_on(&daemon.socket())?;
        docker.docker(["load".as_ref(), "-i".as_ref(), images::busybox_archive().as_os_str()]).ok();
        Some(Stage { docker, daemon, _programs: programs })
    }

    /// `docker run` without a network: this dockerd has none.
    #[track_caller]
    fn run(&self, options: &[&str], args: &[&str]) -> Finished {
        let words = ["run", "--network", "none"].iter().chain(options).chain(&["busybox"]).chain(args);
        self.docker.docker(words)
    }

    #[track_caller]
    fn inspect(&self, id: &str, what: &str) -> String {
        self.docker.docker(["inspect", "--format", what, id]).ok().text().to_owned()
    }

    /// As [`Stage::run`], on a terminal.
    fn on_a_terminal(&self, args: &[&str]) -> String {
        let command =
            format!("/usr/bin/docker --host unix://{} {}", self.docker.socket().display(), args.join(" "));
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--command", &command, "/dev/null"]).stdin(Stdio::null());
        run(&mut script).ok().stdout
    }
}

#[test]
fn docker_runs_containers_on_containerds_shim() {
    docker_runs_containers(Shim::Stock);
}

#[test]
fn docker_runs_containers_on_our_shim() {
    docker_runs_containers(Shim::Ours);
}

fn docker_runs_containers(shim: Shim) {
    let _hierarchies = HIERARCHIES.read();
    let Some(stage) = Stage::new(shim) else { return };
    let docker = &stage.docker;
    let server = docker.docker(["version", "--format", "{{json .Server.Components}}"]).ok();
    assert!(server.stdout.contains("2.3.4+hoist."), "{server}");

    let once = stage.run(&["--rm"], &["sh", "-c", "echo out; echo err >&2; exit 7"]).expect_code(7);
    assert_eq!((once.stdout.as_str(), once.stderr.as_str()), ("out\n", "err\n"));
    let mut piped = docker.command(["run", "--rm", "-i", "--network", "none", "busybox", "wc", "-c"]);
    let counted = run(piped.stdin(fs::File::open(images::busybox_archive()).expect("an archive"))).ok();
    let len = fs::metadata(images::busybox_archive()).expect("an archive").len();
    assert_eq!(counted.text(), len.to_string(), "all of its input comes, and its end");
    assert!(
        stage.on_a_terminal(&["run", "--rm", "-t", "--network", "none", "busybox", "tty"]).contains("/dev/")
    );
    let strict =
        ["--rm", "--read-only", "--user", "12:34", "--cap-drop", "ALL", "--pids-limit", "50", "--init"];
    let said = stage.run(&strict, &["sh", "-c", "id -u; id -g; touch /x 2>&1; cat /proc/1/comm"]).ok().stdout;
    let said: Vec<&str> = said.lines().collect();
    assert!(
        matches!(said[..], ["12", "34", refused, "docker-init"] if refused.contains("Read-only")),
        "{said:?}"
    );
    let missing = stage.run(&["--rm"], &["/no/such/program"]).expect_code(127);
    missing.expect_stderr("no such file or directory");

    let script = "echo begun; trap 'echo told; exit 5' TERM; while true; do sleep 0.1; done";
    stage.run(&["-d", "--name", "life", "--memory", "64m"], &["sh", "-c", script]).ok();
    let program = shim_of(&stage.inspect("life", "{{.State.Pid}}"));
    assert_eq!(program == STOCK_SHIM, matches!(shim, Shim::Stock), "{program}");
    assert_eq!(docker.docker(["exec", "life", "echo", "inside"]).ok().text(), "inside");
    docker.docker(["exec", "life", "sh", "-c", "exit 3"]).expect_code(3);
    assert!(stage.on_a_terminal(&["exec", "-t", "life", "tty"]).contains("/dev/"));
    docker.docker(["exec", "-d", "life", "sh", "-c", "echo kept > /kept"]).ok();
    eventually("what goes on beside it is done", || {
        (docker.docker(["exec", "life", "cat", "/kept"]).stdout == "kept\n").then_some(())
    });
    assert!(docker.docker(["top", "life"]).ok().stdout.contains("trap"));
    let figures = docker.docker(["stats", "--no-stream", "--format", "{{.MemUsage}}", "life"]).ok();
    assert!(figures.stdout.contains("/ 64MiB") && !figures.stdout.starts_with("0B"), "{figures}");
    docker.docker(["update", "--memory", "32m", "--memory-swap", "32m", "life"]).ok();
    let figures = docker.docker(["stats", "--no-stream", "--format", "{{.MemUsage}}", "life"]).ok();
    assert!(figures.stdout.contains("/ 32MiB"), "{figures}");
    docker.docker(["pause", "life"]).ok();
    assert_eq!(stage.inspect("life", "{{.State.Status}}"), "paused");
    docker.docker(["unpause", "life"]).ok();
    assert_eq!(stage.inspect("life", "{{.State.Status}}"), "running");
    let copy = stage.daemon.dir().join("copy").display().to_string();
    docker.docker(["cp", "life:/kept", &copy]).ok();
    assert_eq!(fs::read_to_string(&copy).expect("it was copied"), "kept\n");
    assert!(docker.docker(["diff", "life"]).ok().stdout.contains("A /kept"));
    docker.docker(["commit", "life", "kept:1"]).ok();
    docker.docker(["restart", "--time", "60", "life"]).ok();
    docker.docker(["stop", "--time", "60", "life"]).ok();
    assert_eq!(stage.inspect("life", "{{.State.Status}} {{.State.ExitCode}}"), "exited 5");
    assert_eq!(docker.docker(["logs", "life"]).ok().stdout, "begun\ntold\nbegun\ntold\n");
    docker.docker(["start", "life"]).ok();
    docker.docker(["kill", "life"]).ok();
    assert_eq!(docker.docker(["wait", "life"]).ok().text(), "137");
    docker.docker(["rm", "--force", "life"]).ok();

    // containerd's shim does not report an OOM kill after the container's end, or before it watches: so the container
    // goes on until docker has reported it. `oom_score_adj` makes the kernel kill `dd`, and not the shell.
    let eats = "until test -e /heard; do \
                (echo 1000 > /proc/self/oom_score_adj; exec dd if=/dev/zero of=/dev/null bs=100M count=1); \
                sleep 0.05; done; exit 3";
    stage.run(&["-d", "--name", "eats", "--memory", "16m"], &["sh", "-c", eats]).ok();
    eventually("docker hears that memory is short", || {
        let told = docker.docker(["events", "--since", "1h", "--until", "0s", "--filter", "event=oom"]).ok();
        told.stdout.contains("name=eats").then_some(())
    });
    // The exec lacks memory too, and its process may be the one that is killed.
    eventually("the container is told", || {
        (docker.docker(["exec", "eats", "touch", "/heard"]).code == 0).then_some(())
    });
    docker.docker(["wait", "eats"]).ok();
    assert_eq!(stage.inspect("eats", "{{.State.OOMKilled}} {{.State.ExitCode}}"), "true 3");
    stage.run(&["-d", "--name", "again", "--restart", "on-failure:2"], &["sh", "-c", "exit 4"]).ok();
    eventually("it was tried three times", || {
        (stage.inspect("again", "{{.State.Status}} {{.RestartCount}} {{.State.ExitCode}}") == "exited 2 4")
            .then_some(())
    });
    let well = ["--health-cmd", "test -e /well", "--health-interval", "100ms"];
    let options: Vec<&str> = ["-d", "--name", "well"].into_iter().chain(well).collect();
    stage.run(&options, &["sh", "-c", "touch /well; exec sleep 1000"]).ok();
    eventually("it is well", || {
        (stage.inspect("well", "{{.State.Health.Status}}") == "healthy").then_some(())
    });
    docker.docker(["rm", "--force", "eats", "again", "well"]).ok();
    let left = stage.daemon.ctr(["--namespace", MOBY, "containers", "ls", "-q"]).ok();
    assert_eq!(left.text(), "", "{shim:?}: what docker removed is gone");
}

#[test]
fn docker_builds_with_both_of_its_builders() {
    let _hierarchies = HIERARCHIES.read();
    let Some(stage) = Stage::new(Shim::Ours) else { return };
    let context = TempDir::new().expect("a temporary directory");
    let text =
        "FROM busybox\nCOPY given /given\nRUN cat /given > /made && echo more >> /made\nCMD cat /made\n";
    fs::write(context.path().join("Dockerfile"), text).expect("a writable directory");
    fs::write(context.path().join("given"), "given\n").expect("a writable directory");
    for kit in ["0", "1"] {
        let name = format!("made:{kit}");
        let words = ["build", "--network", "none", "--tag", &name];
        let mut build = stage.docker.command(words.map(Path::new).into_iter().chain([context.path()]));
        run(build.env("DOCKER_BUILDKIT", kit)).ok();
        let made = stage.docker.docker(["run", "--rm", "--network", "none", &name]).ok();
        assert_eq!(made.stdout, "given\nmore\n", "DOCKER_BUILDKIT={kit}");
    }
}

/// dockerd with its own containerd, which finds Hoist's runtime as `runc`, as do both of its builders.
#[test]
fn docker_runs_and_builds_on_our_runtime() {
    let _hierarchies = HIERARCHIES.read();
    if !is_root("dockerd") {
        return;
    }
    let noted = NotedRunc::new();
    let Some(docker) = Docker::start_with_programs(noted.programs()) else { return };
    docker.docker(["load".as_ref(), "-i".as_ref(), images::busybox_archive().as_os_str()]).ok();
    let start = |words: &[&str]| docker.docker([&["run", "--network", "none"], words].concat());
    let once = start(&["--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7"]).expect_code(7);
    assert_eq!((once.stdout.as_str(), once.stderr.as_str()), ("out\n", "err\n"));
    start(&["--rm", "busybox", "/no/such"]).expect_code(127);
    start(&["--rm", "busybox", "/bin"]).expect_code(126);
    start(&["-d", "--name", "life", "--memory", "64m", "--pids-limit", "50", "busybox", "sleep", "1000"])
        .ok();
    docker.docker(["exec", "-u", "5:6", "life", "sh", "-c", "test $(id -u) = 5 && exit 3"]).expect_code(3);
    assert!(docker.docker(["top", "life"]).ok().stdout.contains("sleep 1000"));
    docker.docker(["pause", "life"]).ok();
    docker.docker(["unpause", "life"]).ok();
    docker.docker(["update", "--memory", "32m", "--memory-swap", "32m", "life"]).ok();
    docker.docker(["kill", "life"]).ok();
    assert_eq!(docker.docker(["wait", "life"]).ok().text(), "137");
    docker.docker(["rm", "--force", "life"]).ok();
    let context = TempDir::new().expect("a temporary directory");
    let text = "FROM busybox\nUSER 12:34\nRUN id -u > /tmp/made && id -g >> /tmp/made\nCMD cat /tmp/made\n";
    fs::write(context.path().join("Dockerfile"), text).expect("a writable directory");
    for kit in ["0", "1"] {
        let before = noted.notes().lines().count();
        let name = format!("made:{kit}");
        let words = ["build", "--network", "none", "--tag", &name];
        let mut build = docker.command(words.map(Path::new).into_iter().chain([context.path()]));
        run(build.env("DOCKER_BUILDKIT", kit)).ok();
        assert!(noted.notes().lines().count() > before, "DOCKER_BUILDKIT={kit}: another runtime was called");
        assert_eq!(start(&["--rm", &name]).ok().stdout, "12\n34\n", "DOCKER_BUILDKIT={kit}");
    }
    // BuildKit calls the runtime directly, without a shim.
    let direct = |line: &str| line.contains(" run ") && line.contains("--bundle");
    assert!(noted.notes().lines().any(direct), "{}", noted.notes());
    for command in ["create", "start", "exec", "pause", "resume", "update", "kill", "delete"] {
        assert!(noted.notes().contains(&format!(" {command} ")), "{command} is missing\n{}", noted.notes());
    }
}

#[test]
fn containers_of_docker_outlive_dockerd_and_its_containerd() {
    for shim in [Shim::Stock, Shim::Ours] {
        containers_of_docker_outlive_both(shim);
    }
}

fn containers_of_docker_outlive_both(shim: Shim) {
    let _hierarchies = HIERARCHIES.read();
    let Some(mut stage) = Stage::new(shim) else { return };
    let told = TempDir::new().expect("a temporary directory");
    let volume = format!("{}:/told", told.path().display());
    let waits = "until test -e /told/$0; do sleep 0.05; done; exit 9";
    for name in ["first", "second"] {
        stage.run(&["-d", "--name", name, "--volume", &volume], &["sh", "-c", waits, name]).ok();
    }
    let counts = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.1; done";
    stage.run(&["-d", "--name", "lasting"], &["sh", "-c", counts]).ok();
    let stopped = |stage: &Stage| {
        let tasks = stage.daemon.ctr(["--namespace", MOBY, "tasks", "ls"]).ok().stdout;
        tasks.lines().filter(|line| line.contains("STOPPED")).count()
    };

    // One container ends while dockerd is away, the other while the daemon is away too.
    stage.docker.kill();
    fs::write(told.path().join("first"), "").expect("a writable directory");
    eventually("the first has ended", || (stopped(&stage) == 1).then_some(()));
    stage.docker.start_again();
    assert_eq!(stage.docker.docker(["wait", "first"]).ok().text(), "9", "{shim:?}");
    stage.docker.kill();
    stage.daemon.kill();
    fs::write(told.path().join("second"), "").expect("a writable directory");
    stage.daemon.start_again();
    eventually("the second has ended", || (stopped(&stage) >= 1).then_some(()));
    stage.docker.start_again();
    assert_eq!(stage.docker.docker(["wait", "second"]).ok().text(), "9", "{shim:?}");

    // The running container is the same, and docker still gets its events and controls it.
    let count = || -> Option<u32> {
        stage.docker.docker(["logs", "--tail", "1", "lasting"]).ok().text().parse().ok()
    };
    let before = eventually("it counts", count);
    eventually("it counts on", || count().filter(|count| *count > before));
    assert_eq!(stage.docker.docker(["exec", "lasting", "echo", "here"]).ok().text(), "here");
    // dockerd survives a restart of the daemon.
    stage.daemon.kill();
    stage.daemon.start_again();
    eventually("dockerd has found it again", || {
        let said = stage.docker.docker(["exec", "lasting", "echo", "here"]);
        (said.code == 0 && said.text() == "here").then_some(())
    });
    stage.docker.docker(["kill", "lasting"]).ok();
    assert_eq!(stage.docker.docker(["wait", "lasting"]).ok().text(), "137", "{shim:?}");
    stage.docker.docker(["rm", "first", "second", "lasting"]).ok();
}

/// System calls that Docker versions allow since Debian's 20.10, and those that they no longer do: changes of
/// `profiles/seccomp`.
const PASS_SINCE: &[(u16, &str)] = &[
    (303, "name_to_handle_at"),
    (310, "process_vm_readv"),
    (311, "process_vm_writev"),
    (329, "pkey_mprotect"),
    (330, "pkey_alloc"),
    (331, "pkey_free"),
    (335, "uretprobe"),
    (451, "cachestat"),
    (452, "fchmodat2"),
    (453, "map_shadow_stack"),
    (454, "futex_wake"),
    (455, "futex_wait"),
    (456, "futex_requeue"),
    (457, "statmount"),
    (458, "listmount"),
    (462, "mseal"),
    (463, "setxattrat"),
    (464, "getxattrat"),
    (465, "listxattrat"),
    (466, "removexattrat"),
];
const REFUSED_SINCE: &[(u16, &str)] =
    &[(425, "io_uring_setup"), (426, "io_uring_enter"), (427, "io_uring_register")];
/// `socket`, whose family AF_ALG is the kernel's cryptography, and AF_VSOCK the hypervisor.
const SOCKET: u16 = 41;
const FAMILIES_REFUSED_SINCE: [u64; 2] = [38, 40];
/// The last address family of Linux. Of a larger number the kernel reads 32 bits, and filters 64.
const FAMILY_MAX: u64 = 45;
/// The last system call of x86-64.
const CALL_MAX: u16 = 480;

/// The filter that Docker passes to the shim for its default capabilities, compared with Hoist's: every system call
/// gets the same verdict, with every first argument that either filter checks, except where Docker has changed since.
#[test]
fn the_default_filter_is_dockers() {
    let Some(stage) = Stage::new(Shim::Ours) else { return };
    let id = stage.run(&["-d"], &["sleep", "1000"]).ok().text().to_owned();
    let path = stage.daemon.state().join("tasks").join(MOBY).join(&id).join("config.json");
    let spec: Spec = serde_json::from_slice(&fs::read(path).expect("a bundle")).expect("a spec");
    let theirs = spec.linux.and_then(|linux| linux.seccomp).expect("Docker sets one");
    let capabilities =
        spec.process.and_then(|process| process.capabilities).expect("Docker sets them").bounding;
    let ours = linux::seccomp::default_profile(&capabilities);
    let [ours, theirs] = [ours, theirs].map(|profile| linux::seccomp::compile(&profile).expect("a filter"));
    let firsts = [
        0,
        1,
        2,
        8,
        16,
        17,
        37,
        38,
        39,
        40,
        41,
        0x2_0000,
        0x2_0008,
        0x40_0000,
        0x1_0000_0026,
        0x1000_0000,
        0x7e02_0000,
        0xffff_ffff,
    ];
    let known = |calls: &[(u16, &str)], number| calls.iter().any(|(known, _)| *known == number);
    for number in 0..CALL_MAX {
        for first in firsts {
            let [ours, theirs] =
                [&ours, &theirs].map(|filter| filter.allows(number.into(), [first, 0, 0, 0, 0, 0]));
            let expected = match number {
                SOCKET if FAMILIES_REFUSED_SINCE.contains(&first) || first > FAMILY_MAX => false,
                number => (theirs || known(PASS_SINCE, number)) && !known(REFUSED_SINCE, number),
            };
            assert_eq!(ours, expected, "call {number} with {first:#x}");
        }
    }
}
