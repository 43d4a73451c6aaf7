//! Who keeps our shim waiting: hooks and runtimes that do not end. The shim goes on with everything else, and what
//! waits for them can be killed.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use api::shim::runc::Options;
use api::shim::types::Status;
use serde_json::json;
use testkit::{ShimContainer, ShimHost, ShimTask, eventually, is_root, run};
use types::ErrorKind;

const GROUP: &str = "io.containerd.runc.v2.group";

/// A program that makes a file, `note`, and goes on once somebody writes into `door`.
struct Waiter {
    note: PathBuf,
    door: PathBuf,
}

impl Waiter {
    fn new(host: &ShimHost, name: &str) -> Waiter {
        let waiter = Waiter {
            note: host.dir().join(format!("{name}.note")),
            door: host.dir().join(format!("{name}.door")),
        };
        run(Command::new("mkfifo").arg(&waiter.door)).ok();
        waiter
    }

    fn script(&self) -> String {
        let (note, door) = (self.note.display(), self.door.display());
        format!(": > {note}; exec cat {door}")
    }

    fn hook(&self) -> serde_json::Value {
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", self.script()] }])
    }

    fn is_there(&self) {
        eventually("it waits", || self.reads().then_some(()));
    }

    fn goes(&self) {
        eventually("it is gone", || (!self.reads()).then_some(()));
    }

    /// Whether a process with the door among its arguments is there, in whichever pid namespace.
    fn reads(&self) -> bool {
        let door = self.door.display().to_string();
        let is_ours = |entry: std::fs::DirEntry| {
            let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            arguments.starts_with(format!("cat\0{door}").as_bytes())
        };
        std::fs::read_dir("/proc").expect("a proc").flatten().any(is_ours)
    }

    fn open_door(&self) {
        drop(std::fs::OpenOptions::new().write(true).open(&self.door).expect("it reads"));
    }
}

/// A shim with a container that has nothing to do with what else happens in it.
fn neighbour(host: &ShimHost) -> ShimTask {
    host.container("neighbour", "exec sleep 1000").in_group(GROUP, "g").run()
}

fn of_group<'a>(host: &'a ShimHost, id: &str, script: &str) -> ShimContainer<'a> {
    host.container(id, script).in_group(GROUP, "g")
}

#[test]
fn a_hook_that_hangs_holds_up_its_own_creation_alone() {
    if !is_root("containers") {
        return;
    }
    let host = ShimHost::new();
    let neighbour = neighbour(&host);
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let waiter = Waiter::new(&host, kind);
        let container = of_group(&host, kind, "true")
            .with(|container| container.spec["hooks"] = json!({ kind: waiter.hook() }));
        let hung = ShimTask::at(kind, &neighbour.address);
        std::thread::scope(|scope| {
            let creation = scope.spawn(|| container.try_create().unwrap_err());
            waiter.is_there();
            assert_eq!(hung.status(""), Status::Created);
            assert_eq!(neighbour.run_exec(kind, "exit 3"), 3, "{kind}: the neighbour is served");
            assert!(hung.kill("", 15).unwrap_err().is(ErrorKind::NotFound), "nobody is there to be asked");
            hung.kill("", 9).unwrap();
            let refused = creation.join().unwrap();
            assert!(refused.chain().contains("killed"), "{}", refused.chain());
            waiter.goes();
        });
        assert!(hung.state("").unwrap_err().is(ErrorKind::NotFound));
        assert!(!host.bundle(kind).join("runtime").join(kind).exists(), "its state is gone");
        let cgroup = format!("*{}/{kind}", host.cgroup());
        assert_eq!(
            run(Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-path", &cgroup])).stdout,
            ""
        );
        // The id is free.
        let again = of_group(&host, kind, "exit 4").run();
        assert_eq!(again.wait(""), 4);
        again.delete("").unwrap();
    }
    neighbour.end();
}

#[test]
fn a_hook_that_lets_go_ends_no_creation() {
    if !is_root("containers") {
        return;
    }
    let host = ShimHost::new();
    let waiter = Waiter::new(&host, "patient");
    let container =
        host.container("patient", "echo said; exit 4").stdout(host.dir().join("out")).with(|container| {
            container.spec["hooks"] = json!({ "createRuntime": waiter.hook() });
            container.request.stdout = format!("file://{}", host.dir().join("out").display());
        });
    std::thread::scope(|scope| {
        let creation = scope.spawn(|| container.create());
        waiter.is_there();
        waiter.open_door();
        let task = creation.join().unwrap();
        let pid = task.start("");
        assert_eq!(task.wait(""), 4, "a worker's child is reaped by the shim");
        let deleted = task.delete("").unwrap();
        assert_eq!((deleted.pid, deleted.exit_status), (pid, 4));
    });
    assert_eq!(std::fs::read_to_string(host.dir().join("out")).unwrap(), "said\n");
}

#[test]
fn an_exit_during_a_start_is_told_after_it() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let events = host.listen();
    let waiter = Waiter::new(&host, "poststart");
    let hooks = json!({ "poststart": waiter.hook() });
    let task = host.container("short", "exit 5").with(|container| container.spec["hooks"] = hooks).create();
    std::thread::scope(|scope| {
        let start = scope.spawn(|| task.try_start("").unwrap());
        let wait = scope.spawn(|| task.wait(""));
        waiter.is_there();
        eventually("it has ended", || host.bundle("short").join("exit.json").exists().then_some(()));
        assert_eq!(task.status(""), Status::Stopped);
        // In line behind the start.
        let delete = scope.spawn(|| task.delete("").unwrap());
        waiter.open_door();
        assert!(start.join().unwrap() > 1);
        assert_eq!(wait.join().unwrap(), 5);
        assert_eq!(delete.join().unwrap().exit_status, 5);
    });
    events.wait_for("/tasks/delete", "short");
    let told = events.told();
    let topics: Vec<&str> = told.iter().map(|(topic, _)| topic.as_str()).collect();
    assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);
}

#[test]
fn hooks_that_hang_after_the_birth_are_killed_with_the_container() {
    if !is_root("containers") {
        return;
    }
    let host = ShimHost::new();
    let neighbour = neighbour(&host);
    let (poststart, poststop) = (Waiter::new(&host, "poststart"), Waiter::new(&host, "poststop"));
    let hooks = json!({ "poststart": poststart.hook(), "poststop": poststop.hook() });
    let task =
        of_group(&host, "hung", "exec sleep 1000").with(|container| container.spec["hooks"] = hooks).create();
    std::thread::scope(|scope| {
        let start = scope.spawn(|| task.try_start("").unwrap_err());
        poststart.is_there();
        assert_eq!(neighbour.run_exec("e1", "exit 3"), 3);
        task.kill("", 9).unwrap();
        assert_eq!(task.wait(""), 137);
        assert!(start.join().unwrap().chain().contains("killed"));
        poststart.goes();

        let delete = scope.spawn(|| task.delete("").unwrap());
        poststop.is_there();
        assert_eq!(neighbour.run_exec("e2", "exit 3"), 3);
        assert_eq!(task.status(""), Status::Stopped);
        task.kill("", 9).unwrap();
        assert_eq!(delete.join().unwrap().exit_status, 137);
        poststop.goes();
    });
    assert!(task.state("").unwrap_err().is(ErrorKind::NotFound));
    neighbour.end();
}

#[test]
fn a_named_runtime_that_hangs_holds_up_its_own_container_alone() {
    if !is_root("containers") {
        return;
    }
    let host = ShimHost::new();
    let neighbour = neighbour(&host);
    for verb in ["create", "start", "exec", "delete"] {
        let (id, waiter) = (format!("in-{verb}"), Waiter::new(&host, verb));
        let program = host.dir().join(format!("hangs-in-{verb}"));
        let script = format!(
            "#!/bin/sh\ncase \"$* \" in *' {verb} '*) [ -e {} ] || ( {} );; esac\nexec /usr/sbin/runc \"$@\"\n",
            waiter.note.display(),
            waiter.script(),
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let options = Options {
            binary_name: program.display().to_string(),
            root: host.dir().join("state").display().to_string(),
            ..Options::default()
        };
        let container = of_group(&host, &id, "exec sleep 1000").with(|container| container.options = options);
        let task = ShimTask::at(&id, &neighbour.address);
        std::thread::scope(|scope| {
            let life = scope.spawn(|| -> types::Result<()> {
                let task = container.try_create()?;
                task.try_start("")?;
                task.exec("e", "exit 3", |_| {})?;
                task.try_start("e")?;
                task.kill("", 9)?;
                assert_eq!(task.wait(""), 137);
                task.delete("").map(drop)
            });
            waiter.is_there();
            assert_eq!(neighbour.run_exec(verb, "exit 3"), 3, "{verb}: the neighbour is served");
            task.status("");
            task.kill("", 9).unwrap();
            waiter.goes();
            assert_eq!(life.join().unwrap().is_ok(), verb == "delete", "{verb}");
        });
        if task.state("").is_ok() {
            assert_eq!(task.wait(""), 137);
            task.delete("").unwrap();
        }
        let cgroup = format!("*{}/{id}", host.cgroup());
        let left = run(Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-path", &cgroup])).stdout;
        assert!(verb == "delete" || left.is_empty(), "{verb}: {left}");
    }
    neighbour.end();
}

/// What is asked of a runtime while the loop waits has a bound.
#[test]
fn a_named_runtime_that_does_not_answer_is_killed() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let waiter = Waiter::new(&host, "ps");
    let program = host.dir().join("runtime");
    let script = format!(
        "#!/bin/sh\ncase \"$* \" in *' ps '*) {};; esac\nexec /usr/sbin/runc \"$@\"\n",
        waiter.script()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let task = host
        .container("silent", "exec sleep 1000")
        .with(|container| {
            container.options.binary_name = program.display().to_string();
            container.options.root = host.dir().join("state").display().to_string();
        })
        .run();
    let request = api::shim::task::PidsRequest { id: task.id.clone() };
    let refused = task.call::<api::shim::task::PidsResponse>("Pids", &request).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::DeadlineExceeded, "{}", refused.chain());
    waiter.goes();
    assert_eq!(task.status(""), Status::Running);
    task.end();
}

/// The room for it is taken when the container is created.
#[test]
fn an_exit_is_recorded_on_a_full_disk() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let bundle = host.bundle("full");
    std::fs::create_dir_all(&bundle).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(&bundle)).ok();
    let task = host.container("full", "trap 'exit 7' TERM; echo; while :; do sleep 1000 & wait; done");
    let out = host.dir().join("out");
    let task = task.with(|container| container.request.stdout = format!("file://{}", out.display())).run();
    eventually("it listens", || std::fs::metadata(&out).ok().filter(|file| file.len() > 0));
    let noise = vec![b'.'; 512 << 10];
    std::fs::write(bundle.join("noise"), noise).expect_err("the disk is full");
    task.kill("", 15).unwrap();
    assert_eq!(task.wait(""), 7);
    task.kill_shim();
    let deleted = host.delete_orphan("full");
    assert_eq!(deleted.exit_status, 7);
    run(Command::new("umount").arg("-l").arg(&bundle)).ok();
}
