//! Programs that call runc, with Hoist's runtime in its place: podman, and Debian's containerd with its own shim.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use testkit::{Containerd, Finished, Registry, eventually, images, run};

use crate::cgroups::HIERARCHIES;
use crate::runtime_bundle::{bundle, read_text};
use crate::runtime_command::called_runc;
use crate::systemd::is_booted;

/// Hoist's runtime behind a script called `runc`, which logs its arguments.
pub(crate) struct NotedRunc {
    dir: TempDir,
}

impl NotedRunc {
    pub(crate) fn new() -> NotedRunc {
        let dir = TempDir::new().expect("a temporary directory");
        fs::create_dir(dir.path().join("own")).expect("writable");
        symlink(testkit::hoist_program(), dir.path().join("own/runc")).expect("writable");
        let text = "#!/bin/sh\necho \"$@\" >> DIR/notes\nexec DIR/own/runc \"$@\"\n";
        let program = dir.path().join("runc");
        testkit::executable(&program, &text.replace("DIR", &dir.path().display().to_string()));
        NotedRunc { dir }
    }

    /// The directory that contains the script, and no other program.
    pub(crate) fn programs(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.dir.path().join("runc")
    }

    /// The arguments of each call, a line per call.
    pub(crate) fn notes(&self) -> String {
        fs::read_to_string(self.dir.path().join("notes")).unwrap_or_default()
    }
}

struct Podman {
    dir: TempDir,
    runtime: PathBuf,
    cgroup_manager: &'static str,
    /// The user that runs podman, unless it is root.
    user: Option<u32>,
}

impl Podman {
    fn new(runtime: PathBuf, cgroup_manager: &'static str) -> Podman {
        let dir = TempDir::new().expect("a temporary directory");
        Podman { dir, runtime, cgroup_manager, user: None }
    }

    /// podman of an unprivileged user with subordinate ids (subuid(5)). The user is known only in podman's mount
    /// namespaces. Its runtime is a copy of Hoist's, called `runc`.
    fn of_user(user: u32) -> Podman {
        let dir = TempDir::new().expect("a temporary directory");
        let place = |name: &str| dir.path().join(name);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("ours");
        fs::create_dir(place("home")).expect("writable");
        fs::create_dir(place("session")).expect("writable");
        testkit::executable_copy(&testkit::hoist_program(), &place("runc"));
        for (file, line) in [
            ("passwd", format!("podder:x:{user}:{user}::{}:/bin/sh\n", place("home").display())),
            ("group", format!("podder:x:{user}:\n")),
            ("subuid", "podder:500000:65536\n".to_owned()),
            ("subgid", "podder:500000:65536\n".to_owned()),
        ] {
            let known =
                fs::read_to_string(Path::new("/etc").join(file)).expect("try: apt-get install uidmap");
            fs::write(place(file), known + &line).expect("writable");
        }
        run(Command::new("chown").args(["-R", &format!("{user}:{user}")]).arg(dir.path())).ok();
        Podman { runtime: place("runc"), dir, cgroup_manager: "cgroupfs", user: Some(user) }
    }

    fn program(&self) -> Command {
        let Some(user) = self.user else { return Command::new("podman") };
        let as_user = format!(
            "for file in passwd group subuid subgid; do mount --bind $0/$file /etc/$file; done; cd $0
             exec setpriv --reuid {user} --regid {user} --clear-groups \
                 env -u USER HOME=$0/home XDG_RUNTIME_DIR=$0/session podman \"$@\""
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &as_user]).arg(self.dir.path());
        command
    }

    /// Imports `image:1`, which contains busybox.
    fn import_image(&self) {
        let tree = bundle(|_| {});
        let archive = self.dir.path().join("root.tar");
        let root = tree.path().join("rootfs");
        run(Command::new("tar").arg("-C").arg(root).arg("-cf").arg(&archive).arg(".")).ok();
        self.run(&["import", archive.to_str().expect("UTF-8"), "image:1"]).ok();
    }

    fn run(&self, words: &[&str]) -> Finished {
        let mut podman = self.program();
        let place = |name: &str| self.dir.path().join(name);
        podman.args(["--storage-driver", "vfs", "--events-backend", "file"]);
        podman.args(["--cgroup-manager", self.cgroup_manager]);
        podman.arg("--root").arg(place("root")).arg("--runroot").arg(place("runroot"));
        podman.arg("--tmpdir").arg(place("tmp")).arg("--runtime").arg(&self.runtime).args(words);
        run(podman.stdin(Stdio::null()))
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.run(&["rm", "--force", "--all", "--time", "0"]);
        // Rootless podman leaves a process that holds its user namespace.
        let holder = fs::read_to_string(self.dir.path().join("tmp/pause.pid")).unwrap_or_default();
        if let Some(holder) = holder.trim().parse().ok().and_then(Pid::from_raw) {
            let _gone = kill_process(holder, Signal::KILL);
        }
    }
}

/// podman takes Hoist's runtime for runc, by its name and by its behaviour.
#[test]
fn podman_runs_containers() {
    let (_programs, runtime) = called_runc();
    let podman = Podman::new(runtime, "cgroupfs");
    podman.import_image();
    let start = |words: &[&str]| podman.run(&[&["run", "--network", "none"], words].concat());

    let said = start(&["--rm", "image:1", "sh", "-c", "echo out; echo err >&2; exit 7"]).expect_code(7);
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("out\n", "err\n"));
    start(&["--rm", "image:1", "/no/such"]).expect_code(127);
    start(&["--rm", "image:1", "nosuch"]).expect_code(127);
    start(&["--rm", "image:1", "/bin"]).expect_code(126);

    let program = "trap 'exit 4' TERM; echo started; while true; do sleep 0.05; done";
    start(&["-d", "--name", "life", "--pids-limit", "50", "--memory", "64m", "image:1", "sh", "-c", program])
        .ok();
    eventually("it has spoken", || (podman.run(&["logs", "life"]).ok().text() == "started").then_some(()));
    podman.run(&["exec", "life", "sh", "-c", "exit 3"]).expect_code(3);
    let exec =
        podman.run(&["exec", "-e", "A=b", "-u", "5:6", "-w", "/bin", "life", "sh", "-c", "id; pwd; echo $A"]);
    assert_eq!(exec.ok().text(), "uid=5 gid=6\n/bin\nb");
    let stats = podman.run(&["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", "life"]).ok();
    assert!(stats.text().starts_with("life "), "{stats}");
    podman.run(&["pause", "life"]).ok();
    let paused = podman.run(&["inspect", "--format", "{{.State.Status}}", "life"]).ok();
    assert_eq!(paused.text(), "paused");
    podman.run(&["unpause", "life"]).ok();
    podman.run(&["update", "--memory", "32m", "life"]).ok();
    podman.run(&["kill", "--signal", "TERM", "life"]).ok();
    assert_eq!(podman.run(&["wait", "life"]).ok().text(), "4");
    podman.run(&["start", "life"]).ok();
    podman.run(&["rm", "--force", "--time", "0", "life"]).ok();

    let look = "grep -E '^(CapEff|NoNewPrivs)' /proc/self/status; cat /proc/self/uid_map | busybox wc -l";
    let said = start(&[
        "--rm",
        "--cap-drop",
        "all",
        "--security-opt",
        "no-new-privileges",
        "--uidmap",
        "0:100000:500",
        "--uidmap",
        "500:200000:500",
        "--read-only",
        "--tmpfs",
        "/scratch:size=1m",
        "image:1",
        "sh",
        "-c",
        look,
    ]);
    assert_eq!(said.ok().text(), "CapEff:\t0000000000000000\nNoNewPrivs:\t1\n2");
    let terminal = start(&["--rm", "-t", "image:1", "sh", "-c", "test -t 1 && echo terminal"]).ok();
    assert_eq!(terminal.text(), "terminal");
    assert_eq!(podman.run(&["ps", "--all", "--quiet"]).ok().text(), "");
}

/// The user is root of a user namespace, and unprivileged outside of it.
#[test]
fn podman_of_a_user_runs_containers() {
    let podman = Podman::of_user(23_456);
    podman.import_image();
    let data = TempDir::new().expect("a temporary directory");
    fs::set_permissions(data.path(), fs::Permissions::from_mode(0o777)).expect("ours");
    fs::write(data.path().join("file"), "of the host\n").expect("writable");
    let volume = format!("{}:/data:ro", data.path().display());
    let look = "id; cat /proc/self/uid_map /data/file; touch /data/new 2>/dev/null || echo read-only";
    let start = |words: &[&str]| podman.run(&[&["run", "--network", "none"], words].concat());
    let said = start(&["--rm", "-v", &volume, "image:1", "sh", "-c", look]).ok();
    let words = said.text().split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(words, "uid=0 gid=0 0 23456 1 1 500000 65536 of the host read-only", "{said}");
    let id = start(&["-d", "--name", "life", "image:1", "sleep", "1000"]).ok().text().to_owned();
    assert!(podman.dir.path().join("session/runc").join(&id).exists(), "states are the user's");
    podman.run(&["exec", "life", "sh", "-c", "exit 3"]).expect_code(3);
    assert_eq!(podman.run(&["exec", "-u", "5:6", "life", "id"]).ok().text(), "uid=5 gid=6");
    podman.run(&["stop", "--time", "0", "life"]).ok();
    podman.run(&["rm", "life"]).ok();
    assert!(!podman.dir.path().join("session/runc").join(&id).exists());
}

/// podman with `--cgroup-manager systemd`, its default on hosts that systemd has booted.
#[test]
fn podman_has_its_cgroups_from_systemd() {
    if !is_booted() {
        println!("skipped: the first process is not systemd");
        return;
    }
    if !Path::new("/usr/bin/podman").exists() {
        println!("skipped: podman is not installed");
        return;
    }
    let (_programs, runtime) = called_runc();
    let podman = Podman::new(runtime, "systemd");
    podman.import_image();
    let life = ["run", "--network", "none", "-d", "--name", "life", "--pids-limit", "50", "image:1"];
    let id = podman.run(&[&life[..], &["sleep", "1000"]].concat()).ok().text().to_owned();
    let unit = format!("libpod-{id}.scope");
    let pid = podman.run(&["inspect", "--format", "{{.State.Pid}}", "life"]).ok().text().to_owned();
    let own = read_text(&Path::new("/proc").join(&pid).join("cgroup"));
    assert!(own.lines().all(|line| line.contains("/machine.slice/") && line.contains(&unit)), "{own}");
    let told = |property: &str| {
        let words = ["show", &unit, &format!("--property={property}")];
        run(Command::new("systemctl").args(words)).ok().text().to_owned()
    };
    assert_eq!(told("TasksMax"), "TasksMax=50");
    let entered = podman.run(&["exec", "life", "cat", "/proc/1/cgroup", "/proc/self/cgroup"]).ok();
    let mut lines: Vec<&str> = entered.text().lines().collect();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), own.lines().count(), "who enters is where the first process is\n{entered}");
    podman.run(&["update", "--memory", "32m", "life"]).ok();
    assert_eq!(told("MemoryMax"), format!("MemoryMax={}", 32 << 20));
    podman.run(&["rm", "--force", "--time", "0", "life"]).ok();
    eventually("the scope is gone", || (told("LoadState") == "LoadState=not-found").then_some(()));
}

/// Debian's containerd and its shim, which find Hoist's runtime as `runc` in PATH.
#[test]
fn containerds_own_shim_runs_containers() {
    let _hierarchies = HIERARCHIES.read();
    let (programs, _) = called_runc();
    let registry = Registry::start();
    let image = registry.push(&images::busybox(), images::TAG, "busybox") + ":latest";
    let containerd = Containerd::start_with_programs(Some(programs.path())).expect("containerd is installed");
    containerd.ctr(["images", "pull", "--plain-http", &image]).ok();
    let once =
        containerd.ctr(["run", "--rm", &image, "own-once", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    let once = once.expect_code(7);
    // The ctr of containerd 2.x warns of hosts with cgroup version 1.
    let told: Vec<&str> = once.stderr.lines().filter(|line| !line.contains("DEPRECATION")).collect();
    assert_eq!((once.stdout.as_str(), told), ("out\n", vec!["err"]));
    containerd.ctr(["run", "-d", &image, "own-life", "sleep", "1000"]).ok();
    let exec =
        containerd.ctr(["tasks", "exec", "--exec-id", "one", "own-life", "sh", "-c", "echo inside; exit 3"]);
    assert_eq!(exec.expect_code(3).stdout, "inside\n");
    assert!(containerd.ctr(["tasks", "ps", "own-life"]).ok().text().lines().count() > 1);
    containerd.ctr(["tasks", "pause", "own-life"]).ok();
    assert!(containerd.ctr(["tasks", "ls"]).ok().stdout.contains("PAUSED"));
    containerd.ctr(["tasks", "resume", "own-life"]).ok();
    assert!(containerd.ctr(["tasks", "metrics", "own-life"]).ok().stdout.contains("memory"));
    let missing = containerd.ctr(["run", "--rm", &image, "own-missing", "/no/such"]);
    assert!(missing.code != 0 && missing.stderr.contains("/no/such"), "{missing}");
    // The runtime is Hoist's: this field is in its state, and not in runc's.
    assert!(find(Path::new("/run/containerd/runc/default/own-life/state.json"), "started_at_ticks"));
    containerd.ctr(["tasks", "kill", "--signal", "SIGKILL", "own-life"]).ok();
    eventually("the task has stopped", || {
        containerd.ctr(["tasks", "ls"]).ok().stdout.contains("STOPPED").then_some(())
    });
    containerd.ctr(["tasks", "rm", "own-life"]).ok().expect_stderr("137");
    containerd.ctr(["containers", "rm", "own-life"]).ok();
}

/// As above, with the program named by the option `BinaryName`, and Debian's runc in PATH.
#[test]
fn containerds_own_shim_calls_the_runtime_that_its_option_names() {
    let _hierarchies = HIERARCHIES.read();
    let noted = NotedRunc::new();
    let registry = Registry::start();
    let image = registry.push(&images::busybox(), images::TAG, "busybox") + ":latest";
    let containerd = Containerd::start().expect("containerd is installed");
    containerd.ctr(["images", "pull", "--plain-http", &image]).ok();
    let program = noted.program().display().to_string();
    let named = |words: &[&str]| containerd.ctr([&["run", "--runc-binary", &program], words].concat());
    let once = named(&["--rm", &image, "named-once", "sh", "-c", "echo out; exit 7"]).expect_code(7);
    assert_eq!(once.stdout, "out\n");
    named(&["-d", &image, "named-life", "sleep", "1000"]).ok();
    let exec = containerd.ctr(["tasks", "exec", "--exec-id", "one", "named-life", "sh", "-c", "exit 3"]);
    exec.expect_code(3);
    containerd.ctr(["tasks", "pause", "named-life"]).ok();
    containerd.ctr(["tasks", "resume", "named-life"]).ok();
    assert!(find(Path::new("/run/containerd/runc/default/named-life/state.json"), "started_at_ticks"));
    containerd.ctr(["tasks", "kill", "--signal", "SIGKILL", "named-life"]).ok();
    eventually("the task has stopped", || {
        containerd.ctr(["tasks", "ls"]).ok().stdout.contains("STOPPED").then_some(())
    });
    containerd.ctr(["tasks", "rm", "named-life"]).ok().expect_stderr("137");
    containerd.ctr(["containers", "rm", "named-life"]).ok();
    for command in ["create", "start", "exec", "pause", "resume", "kill", "delete"] {
        assert!(noted.notes().contains(&format!(" {command} ")), "{command} is missing\n{}", noted.notes());
    }
}

fn find(file: &Path, word: &str) -> bool {
    read_text(file).contains(word)
}
