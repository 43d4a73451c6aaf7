//! Debian's `ctr` connected to Hoist's daemon, which it takes for containerd.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use linux::cgroup::Cgroup;
use testkit::{Containerd, Daemon, Finished, Registry, eventually, images, is_root, run};

use crate::cgroups::HIERARCHIES;

const OUR_RUNTIME: &str = "io.containerd.hoist.v2";

/// The file name of containerd's own shim.
pub(crate) const STOCK_SHIM: &str = "containerd-shim-runc-v2";

/// The file name of the shim's program, the parent of a container's first process. Empty for Hoist's shim, whose
/// program was unmounted.
pub(crate) fn shim_of(pid: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the container runs");
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("the kernel's format");
    let program = std::fs::read_link(format!("/proc/{}/exe", parent.trim())).expect("its shim runs");
    program.file_name().unwrap_or_default().display().to_string()
}

/// A daemon whose namespace `default` has busybox, pulled by `ctr`.
fn daemon() -> (Daemon, Registry, String) {
    let registry = Registry::start();
    let image = registry.push(&images::busybox(), images::TAG, "busybox") + ":latest";
    let daemon = Daemon::start();
    daemon.ctr(["images", "pull", "--plain-http", &image]).ok();
    (daemon, registry, image)
}

#[test]
fn the_version_is_one_that_clients_understand() {
    let daemon = Daemon::start();
    let version = daemon.ctr(["version"]).ok();
    let server = version.stdout.split("Server:").nth(1).expect("a server part");
    assert!(server.contains("2.3.4+hoist."), "{version}");
    let uuid = |version: &Finished| version.stdout.split("UUID: ").nth(1).map(|uuid| uuid.trim().to_owned());
    assert_eq!(uuid(&version).map(|uuid| uuid.len()), Some(36), "{version}");
    assert_eq!(uuid(&version), uuid(&daemon.ctr(["version"]).ok()));
}

#[test]
fn a_pulled_image_is_listed_checked_and_removed_with_all_it_held() {
    let (daemon, _registry, image) = daemon();
    let listed = daemon.ctr(["images", "ls"]).ok();
    assert!(listed.stdout.contains(&image) && listed.stdout.contains("linux/amd64"), "{listed}");
    let checked = daemon.ctr(["images", "check"]).ok();
    assert!(checked.stdout.contains("complete") && checked.stdout.contains("true"), "{checked}");
    assert!(!daemon.ctr(["snapshots", "ls"]).ok().stdout.contains("Active"));
    assert!(daemon.ctr(["content", "ls"]).ok().stdout.lines().count() > 3);
    assert_eq!(daemon.ctr(["leases", "ls", "-q"]).ok().text(), "", "the pull's lease is gone");

    daemon.ctr(["images", "tag", &image, "again:1"]).ok();
    daemon.ctr(["images", "rm", "--sync", &image]).ok();
    assert!(daemon.ctr(["content", "ls", "-q"]).ok().text().contains("sha256:"), "the other name holds it");
    daemon.ctr(["images", "rm", "--sync", "again:1"]).ok();
    assert_eq!(daemon.ctr(["content", "ls", "-q"]).ok().text(), "");
    let snapshots = daemon.ctr(["snapshots", "ls"]).ok();
    assert_eq!(snapshots.text().lines().count(), 1, "only the heading\n{snapshots}");
}

#[test]
fn images_are_imported_and_exported() {
    let daemon = Daemon::start();
    let archive = daemon.dir().join("in.tar").display().to_string();
    images::archive(&images::busybox(), "oci-archive", "archived:1", archive.as_ref());
    daemon.ctr(["images", "import", &archive]).ok();
    let listed = daemon.ctr(["images", "ls", "-q"]).ok();
    let name = listed.text().lines().next().expect("an image").to_owned();
    let exported = daemon.dir().join("out.tar").display().to_string();
    daemon.ctr(["images", "export", &exported, &name]).ok();
    daemon.ctr(["images", "rm", "--sync", &name]).ok();
    let loaded = daemon.hoist(["load", "-i", &exported]).ok();
    assert!(loaded.stdout.contains("Loaded"), "{loaded}");
}

#[test]
fn a_runtime_that_is_not_there_keeps_no_name() {
    let (daemon, _registry, image) = daemon();
    for missing in ["/nosuch/runtime", "nosuch-runtime"] {
        let run = |runtime: &str| {
            let words =
                ["run", "--rm", "--runtime", OUR_RUNTIME, "--runc-binary", runtime, &image, "name", "true"];
            // Debian's has the option for the other shim alone.
            daemon.own_ctr(words)
        };
        let refused = run(missing);
        assert!(refused.code != 0 && refused.stderr.contains(missing), "{refused}");
        run("runc").ok();
    }
}

#[test]
fn containers_run_under_our_shim_and_under_containerds() {
    let _hierarchies = HIERARCHIES.read();
    let (daemon, _registry, image) = daemon();
    let by_path = format!("/usr/bin/{STOCK_SHIM}");
    for (runtime, is_stock) in
        [(OUR_RUNTIME, false), ("io.containerd.runc.v2", true), (by_path.as_str(), true)]
    {
        let program = "echo out; echo err >&2; exit 7";
        let once = ["run", "--rm", "--runtime", runtime, &image, "once", "sh", "-c", program];
        let once = daemon.ctr(once).expect_code(7);
        assert_eq!((once.stdout.as_str(), once.stderr.as_str()), ("out\n", "err\n"), "{runtime}");
        assert_eq!(daemon.ctr(["containers", "ls", "-q"]).ok().text(), "", "--rm leaves nothing");

        daemon.ctr(["run", "-d", "--runtime", runtime, &image, "life", "sleep", "1000"]).ok();
        let containers = daemon.ctr(["containers", "ls"]).ok();
        assert!(containers.stdout.contains("life") && containers.stdout.contains(runtime), "{containers}");
        let tasks = daemon.ctr(["tasks", "ls"]).ok();
        assert!(tasks.stdout.contains("life") && tasks.stdout.contains("RUNNING"), "{tasks}");
        let line = tasks.stdout.lines().find(|line| line.starts_with("life")).expect("it is listed");
        let shim = shim_of(line.split_whitespace().nth(1).expect("a task has a process"));
        assert_eq!(shim == STOCK_SHIM, is_stock, "{runtime} is {shim}");
        let second = daemon.ctr(["run", "-d", &image, "life", "true"]);
        assert!(second.code != 0 && second.stderr.contains("already exists"), "{second}");

        let exec = ["tasks", "exec", "--exec-id", "one", "life", "sh", "-c", "echo inside; exit 3"];
        assert_eq!(daemon.ctr(exec).expect_code(3).stdout, "inside\n");
        assert!(daemon.ctr(["tasks", "ps", "life"]).ok().text().lines().count() > 1);
        daemon.ctr(["tasks", "pause", "life"]).ok();
        assert!(daemon.ctr(["tasks", "ls"]).ok().stdout.contains("PAUSED"));
        daemon.ctr(["tasks", "resume", "life"]).ok();
        assert!(daemon.ctr(["tasks", "metrics", "life"]).ok().stdout.contains("memory"));

        let running = daemon.ctr(["tasks", "rm", "life"]);
        assert!(running.code != 0, "a task that runs is not deleted\n{running}");
        daemon.ctr(["tasks", "kill", "--signal", "SIGKILL", "life"]).ok();
        eventually("the task has stopped", || {
            daemon.ctr(["tasks", "ls"]).ok().stdout.contains("STOPPED").then_some(())
        });
        daemon.ctr(["tasks", "rm", "life"]).ok().expect_stderr("exit code 137");
        daemon.ctr(["containers", "rm", "life"]).ok();
        assert_eq!(daemon.ctr(["tasks", "ls", "-q"]).ok().text(), "");
        let snapshots = daemon.ctr(["snapshots", "ls"]).ok();
        assert!(!snapshots.stdout.contains("Active"), "the container's tree is gone\n{snapshots}");
    }
}

#[test]
fn a_container_runs_on_a_terminal() {
    let (daemon, _registry, image) = daemon();
    let command = format!(
        "ctr --address {} run --rm -t --runtime {OUR_RUNTIME} {image} tty sh -c 'test -t 0 && tty && read word && echo got $word'",
        daemon.socket().display(),
    );
    let mut child = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script is part of Debian");
    child.stdin.as_mut().expect("piped").write_all(b"typed\n").expect("script reads");
    let output = child.wait_with_output().expect("a child of ours");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("/dev/") && text.contains("got typed"), "{text}");
}

#[test]
fn events_arrive_in_their_order() {
    let (daemon, _registry, image) = daemon();
    let mut listener = daemon
        .ctr_command(["events", "topic~=/(tasks|containers)/"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("ctr starts");
    let mut lines = BufReader::new(listener.stdout.take().expect("piped")).lines();
    // `events` shows nothing from before it listens, so containers are made until it prints one.
    let mut heard = Vec::new();
    let (tell, told) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        while let Some(Ok(line)) = lines.next() {
            if tell.send(line).is_err() {
                return;
            }
        }
    });
    let mut round = 0;
    eventually("the listener hears", || {
        let name = format!("probe{round}");
        round += 1;
        daemon.ctr(["containers", "create", &image, &name]).ok();
        daemon.ctr(["containers", "rm", &name]).ok();
        told.try_recv().ok()
    });
    daemon.ctr(["run", "--rm", "--runtime", OUR_RUNTIME, &image, "seen", "true"]).ok();
    while let Ok(line) = told.recv_timeout(testkit::DEADLINE) {
        let topic = line.split_whitespace().find(|word| word.starts_with('/')).unwrap_or_default().to_owned();
        if line.contains("\"seen\"") {
            heard.push(topic.clone());
            if topic == "/containers/delete" {
                break;
            }
        }
    }
    listener.kill().expect("ctr is a child of ours");
    listener.wait().expect("ctr is a child of ours");
    reader.join().expect("the reader ends with its pipe");
    let expected = [
        "/containers/create",
        "/tasks/create",
        "/tasks/start",
        "/tasks/exit",
        "/tasks/delete",
        "/containers/delete",
    ];
    assert_eq!(heard, expected);
}

#[test]
fn namespaces_keep_tenants_apart() {
    let (daemon, _registry, image) = daemon();
    daemon.ctr(["namespaces", "create", "other", "team=blue"]).ok();
    assert!(daemon.ctr(["namespaces", "ls"]).ok().stdout.contains("team=blue"));
    assert_eq!(daemon.ctr(["--namespace", "other", "images", "ls", "-q"]).ok().text(), "");
    let missing = daemon.ctr(["--namespace", "other", "run", "--rm", &image, "x", "true"]);
    assert!(missing.code != 0 && missing.stderr.contains("not found"), "{missing}");
    let full = daemon.ctr(["namespaces", "rm", "default"]);
    assert!(full.code != 0 && full.stderr.contains("must be empty"), "{full}");
    daemon.ctr(["namespaces", "rm", "other"]).ok();
    assert!(!daemon.ctr(["namespaces", "ls", "-q"]).ok().stdout.contains("other"));
}

#[test]
fn what_ctr_runs_and_what_hoist_runs_do_not_disturb_each_other() {
    let (daemon, _registry, image) = daemon();
    daemon.ctr(["run", "-d", "--runtime", OUR_RUNTIME, &image, "theirs", "sleep", "1000"]).ok();
    daemon.hoist(["run", "-d", "--name", "ours", "--network", "none", &image, "sleep", "1000"]).ok();
    assert_eq!(daemon.ctr(["tasks", "ls", "-q"]).ok().text().lines().count(), 2);
    assert!(!daemon.hoist(["ps", "-a"]).ok().stdout.contains("theirs"), "it is not a container of hoist's");
    daemon.hoist(["rm", "-f", "ours"]).ok();
    assert_eq!(daemon.ctr(["tasks", "ls", "-q"]).ok().text(), "theirs");
    let check = daemon.hoist(["system", "check"]);
    assert_eq!(check.code, 0, "what ctr runs is nothing left over\n{check}");
    daemon.ctr(["tasks", "rm", "--force", "theirs"]);
    daemon.ctr(["containers", "rm", "theirs"]).ok();
}

#[test]
fn every_restart_finds_what_ctr_runs() {
    let (mut daemon, _registry, image) = daemon();
    daemon.ctr(["run", "-d", "--runtime", OUR_RUNTIME, &image, "lasting", "sleep", "1000"]).ok();
    daemon.kill();
    daemon.start_again();
    assert!(daemon.ctr(["tasks", "ls"]).ok().stdout.contains("RUNNING"));
    let exec = ["tasks", "exec", "--exec-id", "e", "lasting", "echo", "still here"];
    assert_eq!(daemon.ctr(exec).ok().stdout, "still here\n");
    daemon.ctr(["tasks", "rm", "--force", "lasting"]);
    daemon.ctr(["containers", "rm", "lasting"]).ok();
}

#[test]
fn output_goes_to_files_and_to_nowhere() {
    let (daemon, _registry, image) = daemon();
    let log = daemon.dir().join("out.log");
    let uri = format!("file://{}", log.display());
    let run =
        ["run", "-d", "--runtime", OUR_RUNTIME, "--log-uri", &uri, &image, "logged", "echo", "into a file"];
    daemon.ctr(run).ok();
    eventually("the file has it", || {
        std::fs::read_to_string(&log).is_ok_and(|text| text == "into a file\n").then_some(())
    });
    let silent = [
        "run",
        "--rm",
        "--null-io",
        "--runtime",
        OUR_RUNTIME,
        &image,
        "silent",
        "sh",
        "-c",
        "echo x; exit 4",
    ];
    assert_eq!(daemon.ctr(silent).expect_code(4).stdout, "");
    daemon.ctr(["tasks", "rm", "--force", "logged"]);
    daemon.ctr(["containers", "rm", "logged"]).ok();
}

/// Scripts and service files call the daemon `containerd`.
#[test]
fn the_program_answers_to_its_other_names() {
    let folder = tempfile::TempDir::new().expect("a temporary directory");
    for name in ["containerd", "hoistd", "runc"] {
        let link = folder.path().join(name);
        std::os::unix::fs::symlink(testkit::hoist_program(), &link).expect("a writable directory");
        let said = run(Command::new(&link).arg("--version")).ok();
        assert!(said.stdout.contains(if name == "runc" { "runc version 1." } else { "2.3.4" }), "{said}");
    }
    // Scripts take the third word of containerd's own output for the version.
    let said = |program: &Path| {
        let said = run(Command::new(program).arg("--version")).ok().text().to_owned();
        said.split(' ').map(str::to_owned).collect::<Vec<_>>()
    };
    let is_version = |word: &str| {
        let core = word.trim_start_matches('v').split(['+', '-', '~']).next().unwrap_or_default();
        core.split('.').count() == 3 && core.split('.').all(|number| number.parse::<u64>().is_ok())
    };
    std::os::unix::fs::symlink(testkit::hoist_program(), folder.path().join("ctr"))
        .expect("a directory of ours");
    for (name, count) in [("containerd", 4), ("ctr", 3)] {
        let ours = said(&folder.path().join(name));
        assert!(ours.len() == count && ours[0] == name && is_version(&ours[2]), "{ours:?}");
        if Containerd::is_installed() {
            let theirs = said(Path::new(name));
            assert!(theirs.len() == count && theirs[0] == name && is_version(&theirs[2]), "{theirs:?}");
        }
    }
    let config = run(Command::new(folder.path().join("containerd")).args(["config", "default"])).ok();
    assert!(config.stdout.contains("version = 4"), "{config}");
}

/// Under that name the program runs as the daemon without a subcommand, with a configuration of its own.
#[test]
fn a_daemon_runs_under_its_own_name() {
    let daemon = Daemon::start_as("hoistd", |places| {
        let (root, state, socket) = (&places.root, &places.state, &places.socket);
        format!("root = {root:?}\nstate = {state:?}\n[grpc]\naddress = {socket:?}\n")
    });
    daemon.hoist(["run", "--rm", "--network", "none", "hello"]).ok();
    assert!(daemon.ctr(["version"]).ok().stdout.contains("2.3.4+hoist."));
    assert!(daemon.root().join("meta.db").exists(), "the root is the one that the file names");
}

/// Otherwise a test would leave tasks of other namespaces, and shims without a task.
#[test]
fn a_containerd_takes_its_shims_along() {
    if !is_root("containers") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    let Some(containerd) = Containerd::start() else { return };
    let root = containerd.dir().join("rootfs/bin");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::copy("/bin/busybox", root.join("busybox")).unwrap();
    let root = root.parent().unwrap().display().to_string();
    // containerd makes a cgroup named after the namespace above its containers, and leaves it.
    let namespace = format!("left-{}", std::process::id());
    let words =
        ["--namespace", &namespace, "run", "-d", "--rootfs", &root, "left", "/bin/busybox", "sleep", "1000"];
    containerd.ctr(words).ok();
    let socket = containerd.socket().display().to_string();
    let shims = || run(Command::new("pgrep").args(["-f", &format!("shim.*{socket}")])).stdout;
    assert_ne!(shims(), "");
    drop(containerd);
    eventually("its shims are gone", || shims().is_empty().then_some(()));
    let above = Cgroup::open(&format!("/{namespace}")).expect("containerd made it");
    above.delete().expect("nothing runs in it");
}
