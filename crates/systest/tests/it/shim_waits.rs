//! Hooks and runtimes that hang: the shim serves all else meanwhile, and the container that waits for them can be
//! killed.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use api::grpc::tasks::tasks_client::TasksClient;
use api::grpc::tasks::{self, GetRequest, WaitRequest};
use api::grpc::types::Status as WireStatus;
use api::shim::runc::Options;
use api::shim::task::{
    self, ConnectRequest, CreateTaskRequest, CreateTaskResponse, KillRequest, PidsRequest, PidsResponse,
    StartRequest, StateRequest,
};
use api::shim::types::{PROCESS_SPEC_URL, Status};
use prost_types::Any;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use testkit::{
    Daemon, SHIM_NAMESPACE, ShimContainer, ShimHost, ShimTask, SilentDisk, eventually, is_root, run,
};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::transport::Channel;
use types::ErrorKind;

use crate::births::{run_spec, spec};
use crate::typed::{ask, on};

const GROUP: &str = "io.containerd.runc.v2.group";

/// A program that makes the file `note` and waits until the test writes to the fifo `door`. Clones share both.
#[derive(Clone)]
pub(crate) struct Waiter {
    note: PathBuf,
    door: PathBuf,
}

impl Waiter {
    fn new(host: &ShimHost, name: &str) -> Waiter {
        Waiter::below(host.dir(), name)
    }

    pub(crate) fn below(dir: &Path, name: &str) -> Waiter {
        let waiter =
            Waiter { note: dir.join(format!("{name}.note")), door: dir.join(format!("{name}.door")) };
        run(Command::new("mkfifo").arg(&waiter.door)).ok();
        waiter
    }

    fn script(&self) -> String {
        let (note, door) = (self.note.display(), self.door.display());
        format!(": > {note}; exec cat {door}")
    }

    pub(crate) fn hook(&self) -> serde_json::Value {
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", self.script()] }])
    }

    pub(crate) fn is_there(&self) {
        eventually("it waits", || self.reads().then_some(()));
    }

    pub(crate) fn goes(&self) {
        eventually("it is gone", || (!self.reads()).then_some(()));
    }

    fn reads(&self) -> bool {
        self.reader().is_some()
    }

    /// The process that has the door among its arguments, in any pid namespace.
    fn reader(&self) -> Option<Pid> {
        let door = self.door.display().to_string();
        let is_ours = |entry: &std::fs::DirEntry| {
            let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            arguments.starts_with(format!("cat\0{door}").as_bytes())
        };
        let entry = std::fs::read_dir("/proc").expect("a proc").flatten().find(is_ours)?;
        entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw)
    }

    /// The worker of the shim that waits for that process, and leads its process group.
    fn worker(&self) -> Pid {
        rustix::process::getpgid(self.reader()).expect("it waits")
    }

    pub(crate) fn open_door(&self) {
        drop(std::fs::OpenOptions::new().write(true).open(&self.door).expect("it reads"));
    }
}

/// The bundle of a container on a small disk of its own.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn of(host: &ShimHost, id: &str) -> SmallDisk {
        let bundle = host.bundle(id);
        std::fs::create_dir_all(&bundle).expect("a writable directory");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(&bundle)).ok();
        SmallDisk(bundle)
    }

    /// A shell command that fills the disk.
    fn fill(&self) -> String {
        format!("cat /dev/zero > {}/noise", self.0.display())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(&self.0));
    }
}

/// Another container in the same shim, which must stay responsive.
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
        // The id can be used again.
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
        let (note, script) = (waiter.note.display(), waiter.script());
        let first = format!("case \"$* \" in *' {verb} '*) [ -e {note} ] || ( {script} );; esac");
        let program = program(&host, &format!("hangs-in-{verb}"), &first);
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
        assert!(left.is_empty(), "{verb}: {left}");
        assert!(
            !host.dir().join("state").join(SHIM_NAMESPACE).join(&id).exists(),
            "{verb}: its name is free"
        );
    }
    neighbour.end();
}

/// A hanging exec blocks neither other execs of its container nor its first process.
#[test]
fn an_exec_that_hangs_holds_up_no_other() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let waiter = Waiter::new(&host, "exec");
    let (note, script) = (waiter.note.display(), waiter.script());
    let first = format!("case \"$* \" in *' exec '*) [ -e {note} ] || ( {script} );; esac");
    let program = program(&host, "hangs", &first);
    let task = host
        .container("hung", "exec sleep 1000")
        .with(|container| {
            container.options.binary_name = program.display().to_string();
            container.options.root = host.dir().join("state").display().to_string();
        })
        .run();
    task.exec("hangs", "true", |_| {}).unwrap();
    std::thread::scope(|scope| {
        let hung = scope.spawn(|| task.try_start("hangs").unwrap_err());
        waiter.is_there();
        assert_eq!(task.run_exec("e1", "exit 3"), 3, "it runs, and is deleted");

        // The first process ends by itself: the shim publishes its exit when no call of the container is running any
        // more.
        let first = task.state("").unwrap().pid.cast_signed();
        kill_process(Pid::from_raw(first).expect("a process"), Signal::KILL).expect("it lives");
        let mut tries = 0;
        eventually("the end is known", || {
            tries += 1;
            let late = format!("late{tries}");
            // What is not told has not happened: it is added, and cannot be started.
            task.exec(&late, "true", |_| {}).unwrap();
            task.try_start(&late).unwrap_err().is(ErrorKind::FailedPrecondition).then_some(())
        });
        waiter.open_door();
        assert!(!hung.join().unwrap().chain().is_empty());
    });
    assert_eq!(task.wait(""), 137);
    task.delete("").unwrap();
}

/// The exec's process runs, and the runtime that should report it was killed.
#[test]
fn an_exec_of_a_named_runtime_that_gets_lost_leaves_nothing() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let waiter = Waiter::new(&host, "exec");
    let script = waiter.script();
    let first = format!("case \"$* \" in *' exec '*) /usr/sbin/runc \"$@\" && {{ {script}; }};; esac");
    let program = program(&host, "loses", &first);
    let task = host
        .container("lost", "exec sleep 1000")
        .with(|container| {
            container.options.binary_name = program.display().to_string();
            container.options.root = host.dir().join("state").display().to_string();
        })
        .run();
    for id in ["alone", "by-kill"] {
        task.exec(id, "exec sleep 1000", |_| {}).unwrap();
        std::thread::scope(|scope| {
            let start = scope.spawn(|| task.try_start(id).unwrap_err());
            waiter.is_there();
            assert_eq!(pids(&task).len(), 2, "{id}: it runs");
            match id {
                "alone" => kill_process(waiter.worker(), Signal::KILL).expect("the worker lives"),
                _ => task.kill(id, 9).unwrap(),
            }
            start.join().unwrap();
        });
        waiter.goes();
        eventually("it is ended", || (pids(&task).len() == 1).then_some(()));
        let left = std::fs::read_dir(host.bundle("lost")).unwrap().flatten().map(|entry| entry.file_name());
        let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains(id)).collect();
        assert!(left.is_empty(), "{left:?}");
        task.delete(id).unwrap();
    }
    task.end();
}

/// The exec's process waits for its program's file when its start is killed, and would run it later.
#[test]
fn an_exec_that_gets_lost_leaves_nothing() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let data = host.dir().join("data");
    std::fs::create_dir_all(data.join("silent")).unwrap();
    // What is mounted there later is seen in the container.
    run(Command::new("mount").arg("--bind").args([&data, &data])).ok();
    run(Command::new("mount").arg("--make-shared").arg(&data)).ok();
    let task = host
        .container("lost", "exec sleep 1000")
        .with(|container| {
            // So that a worker does what is done with it.
            container.spec["hooks"] = json!({ "poststart": [{ "path": "/bin/true", "args": ["true"] }] });
            let mounts = container.spec["mounts"].as_array_mut().unwrap();
            let options = ["rbind", "rslave"];
            mounts.push(json!({ "destination": "/tmp", "type": "bind", "source": data, "options": options }));
        })
        .run();
    let disk = SilentDisk::over(&data.join("silent"));
    let mut process = testkit::process("");
    process["args"] = json!(["/tmp/silent/program"]);
    let spec = Any { type_url: PROCESS_SPEC_URL.into(), value: process.to_string().into_bytes() };
    task.exec("e", "", |request| request.spec = Some(spec)).unwrap();
    std::thread::scope(|scope| {
        let start = scope.spawn(|| task.try_start("e").unwrap_err());
        disk.is_asked();
        assert_eq!(pids(&task).len(), 2, "it is on its way");
        task.kill("e", 9).unwrap();
        start.join().unwrap();
    });
    eventually("it is ended", || (pids(&task).len() == 1).then_some(()));
    task.delete("e").unwrap();
    task.end();
    drop(disk);
    run(Command::new("umount").arg("-l").arg(&data)).ok();
}

/// The program's file may be on a slow disk; the shim does not wait until it is read.
#[test]
fn a_first_process_that_is_slow_to_begin_counts_as_started() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let task = host.container("slow", "exit 3").create();
    let pid = pids(&task)[0].to_string();
    run(Command::new("kill").args(["-STOP", &pid])).ok();
    task.try_start("").unwrap();
    assert_eq!(task.status(""), Status::Running);
    run(Command::new("kill").args(["-CONT", &pid])).ok();
    assert_eq!(task.wait(""), 3);
    task.delete("").unwrap();
}

fn pids(task: &ShimTask) -> Vec<u32> {
    let request = PidsRequest { id: task.id.clone() };
    let found: PidsResponse = task.call("Pids", &request).unwrap();
    found.processes.into_iter().map(|process| process.pid).collect()
}

/// The disk is full, so the shim cannot record the created container: it removes it, and a hook that hangs meanwhile
/// blocks no other container.
#[test]
fn the_last_hook_of_a_creation_that_fails_late_holds_up_nobody() {
    if !is_root("containers") {
        return;
    }
    let host = ShimHost::new();
    let neighbour = neighbour(&host);
    let disk = SmallDisk::of(&host, "full");
    let waiter = Waiter::new(&host, "poststop");
    let fill = format!("{}; true", disk.fill());
    let container = of_group(&host, "full", "true").with(|container| {
        container.spec["hooks"] = json!({
            "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", fill] }],
            "poststop": waiter.hook(),
        });
        container.options.root = host.dir().join("state").display().to_string();
    });
    let task = ShimTask::at("full", &neighbour.address);
    std::thread::scope(|scope| {
        let creation = scope.spawn(|| container.try_create().unwrap_err());
        waiter.is_there();
        assert_eq!(neighbour.run_exec("e", "exit 3"), 3, "the neighbour is served");
        task.kill("", 9).unwrap();
        let refused = creation.join().unwrap();
        assert!(refused.chain().contains("no space left"), "{}", refused.chain());
    });
    waiter.goes();
    assert!(task.state("").unwrap_err().is(ErrorKind::NotFound));
    neighbour.end();
}

/// The runtime's state directory may be shared with other runtimes.
#[test]
fn a_creation_that_was_killed_leaves_the_container_of_another_bundle() {
    if !is_root("containers") {
        return;
    }
    let (host, other) = (ShimHost::new(), ShimHost::new());
    let options = |program: PathBuf| Options {
        binary_name: program.display().to_string(),
        root: host.dir().join("state").display().to_string(),
        ..Options::default()
    };
    let theirs = other
        .container("same", "exec sleep 1000")
        .with(|container| container.options = options("/usr/sbin/runc".into()))
        .run();
    let waiter = Waiter::new(&host, "create");
    let program =
        program(&host, "hangs", &format!("case \"$* \" in *' create '*) {};; esac", waiter.script()));
    let container = host.container("same", "true").with(|container| {
        container.options = options(program);
        container.request.options = Some(api::shim::pack(&container.options));
    });
    let ours = ShimTask::at("same", &container.start_shim());
    std::thread::scope(|scope| {
        let creation = scope.spawn(|| ours.call::<CreateTaskResponse>("Create", &container.request));
        waiter.is_there();
        ours.kill("", 9).unwrap();
        assert!(creation.join().unwrap().unwrap_err().chain().contains("killed"));
        waiter.goes();
    });
    assert_eq!(theirs.status(""), Status::Running);
    theirs.end();
    ours.shutdown().unwrap();
}

/// The OOM killer may choose the worker alone.
#[test]
fn a_worker_that_is_killed_alone_takes_along_what_it_waited_for() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let waiter = Waiter::new(&host, "hook");
    let container = host
        .container("alone", "true")
        .with(|container| container.spec["hooks"] = json!({ "createRuntime": waiter.hook() }));
    let task = ShimTask::at("alone", &container.start_shim());
    std::thread::scope(|scope| {
        let creation = scope.spawn(|| task.call::<CreateTaskResponse>("Create", &container.request));
        waiter.is_there();
        kill_process(waiter.worker(), Signal::KILL).expect("the worker lives");
        assert!(creation.join().unwrap().unwrap_err().chain().contains("worker process of the shim died"));
    });
    waiter.goes();
    assert!(!host.bundle("alone").join("runtime/alone").exists(), "its state is gone");
    task.shutdown().unwrap();
}

#[test]
fn a_kill_of_an_exec_ends_no_other_job() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let waiter = Waiter::new(&host, "poststart");
    let hooks = json!({ "poststart": waiter.hook() });
    let task =
        host.container("busy", "exec sleep 1000").with(|container| container.spec["hooks"] = hooks).create();
    task.exec("e", "true", |_| {}).unwrap();
    std::thread::scope(|scope| {
        let start = scope.spawn(|| task.try_start(""));
        waiter.is_there();
        let refused = task.kill("e", 9).unwrap_err();
        assert!(refused.is(ErrorKind::FailedPrecondition), "{}", refused.chain());
        waiter.open_door();
        start.join().unwrap().unwrap();
    });
    task.end();
}

/// The worker may have reported its result before the shim handles the kill, which reads it afterwards.
#[test]
fn a_kill_that_finds_the_work_done_is_for_what_was_made() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let waiter = Waiter::new(&host, "hook");
    let container = host
        .container("late", "exec sleep 1000")
        .with(|container| container.spec["hooks"] = json!({ "createRuntime": waiter.hook() }));
    let task = ShimTask::at("late", &container.start_shim());
    create_and_kill_late(&task, &container.request, &waiter).unwrap();
    assert_eq!(task.wait(""), 137);
    task.delete("").unwrap();
    task.shutdown().unwrap();
}

/// As above, for a creation that fails then: its last hook begins after the kill.
#[test]
fn a_kill_that_finds_the_work_done_is_for_what_comes_of_it() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let disk = SmallDisk::of(&host, "late");
    let (waiter, last) = (Waiter::new(&host, "hook"), Waiter::new(&host, "poststop"));
    let container = host.container("late", "exec sleep 1000").with(|container| {
        let fill = format!("{}; {}", disk.fill(), waiter.script());
        container.spec["hooks"] = json!({
            "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", fill] }],
            "poststop": last.hook(),
        });
        container.options.root = host.dir().join("state").display().to_string();
        container.request.options = Some(api::shim::pack(&container.options));
    });
    let task = ShimTask::at("late", &container.start_shim());
    let refused = create_and_kill_late(&task, &container.request, &waiter).unwrap_err();
    assert!(refused.chain().contains("no space left"), "{}", refused.chain());
    last.goes();
    assert!(task.state("").unwrap_err().is(ErrorKind::NotFound));
    task.shutdown().unwrap();
}

/// Has a container created, and killed when the worker that `waiter` holds up has spoken, and was not heard yet.
fn create_and_kill_late(
    task: &ShimTask,
    request: &CreateTaskRequest,
    waiter: &Waiter,
) -> types::Result<CreateTaskResponse> {
    let shim = pid(task.shim_pid());
    // A call that is sent here arrives before anything else that happens while the shim is stopped.
    let mut stream = UnixStream::connect(ttrpc::socket_path(&task.address).unwrap()).unwrap();
    let mut client = ttrpc::Client::new();
    std::thread::scope(|scope| {
        let creation = scope.spawn(|| task.call("Create", request));
        waiter.is_there();
        send(&mut client, &mut stream, &task.request("Connect", &ConnectRequest { id: task.id.clone() }));
        next_answer(&mut client, &mut stream).unwrap();
        kill_process(shim, Signal::STOP).unwrap();
        eventually("the shim is halted", || (stage(shim) == 'T').then_some(()));
        let kill = KillRequest { id: task.id.clone(), signal: 9, ..KillRequest::default() };
        send(&mut client, &mut stream, &task.request("Kill", &kill));
        let worker = waiter.worker();
        waiter.open_door();
        eventually("the worker has ended", || (stage(worker) == 'Z').then_some(()));
        kill_process(shim, Signal::CONT).unwrap();
        next_answer(&mut client, &mut stream).unwrap();
        creation.join().unwrap()
    })
}

fn pid(number: u32) -> Pid {
    i32::try_from(number).ok().and_then(Pid::from_raw).expect("a pid")
}

/// The letter of a process's state (proc(5)).
fn stage(pid: Pid) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).expect("a process");
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).expect("a state")
}

/// The client that should read may have died, which the shim cannot know: its call is carried out in the end, and can
/// be ended before.
#[test]
fn a_reader_that_never_comes_holds_up_its_own_container_alone() {
    if !is_root("containers") {
        return;
    }
    let host = ShimHost::new();
    let neighbour = neighbour(&host);
    let unread = |name: &str| {
        let fifo = host.dir().join(name);
        run(Command::new("mkfifo").arg(&fifo)).ok();
        fifo
    };
    let out = unread("out");
    let container = of_group(&host, "late", "echo said; exec sleep 1000").stdout(&out);
    container.write_bundle();
    let late = ShimTask::at("late", &neighbour.address);
    assert!(is_served_beside(&neighbour, &late.request("Create", &container.request)), "a creation");
    late.start("");
    assert_eq!(first_line(&out), "said\n", "who comes late gets what was said");

    let out = unread("exec");
    late.exec("e", "echo more; exec sleep 1000", |request| request.stdout = out.display().to_string())
        .unwrap();
    let start = StartRequest { id: late.id.clone(), exec_id: "e".into() };
    assert!(is_served_beside(&neighbour, &late.request("Start", &start)), "the start of an exec");
    assert_eq!(first_line(&out), "more\n");
    late.kill("e", 9).unwrap();
    late.wait("e");
    late.delete("e").unwrap();

    let container = of_group(&host, "killed", "true").stdout(unread("killed"));
    container.write_bundle();
    let killed = ShimTask::at("killed", &neighbour.address);
    let kill = KillRequest { id: "killed".into(), signal: 9, ..KillRequest::default() };
    let answers =
        answers(&neighbour, &[killed.request("Create", &container.request), killed.request("Kill", &kill)]);
    let [(1, Ok(_)), (0, Err(refused))] = &answers[..] else { panic!("{answers:?}") };
    assert!(refused.chain().contains("killed"), "{}", refused.chain());
    assert!(killed.state("").unwrap_err().is(ErrorKind::NotFound));
    late.kill("", 9).unwrap();
    late.wait("");
    late.delete("").unwrap();
    neighbour.end();
}

/// Containers that share a pid namespace see each other's processes, also those of a creation, and may stop them.
#[test]
fn a_container_that_another_stops_holds_up_nobody_else() {
    if !is_root("containers") {
        return;
    }
    let host = ShimHost::new();
    let neighbour = neighbour(&host);
    let pids = format!("/proc/{}/ns/pid", neighbour.state("").unwrap().pid);
    let stopped = of_group(&host, "stopped", "exec sleep 1000")
        .with(|container| container.spec["linux"]["namespaces"][0]["path"] = json!(pids))
        .create();
    let stop =
        "for p in /proc/[0-9]*; do p=${p#/proc/}; [ $p -gt 1 ] && [ $p != $$ ] && kill -STOP $p; done; true";
    assert_eq!(neighbour.run_exec("stop", stop), 0);
    let state = StateRequest { id: neighbour.id.clone(), exec_id: String::new() };
    let start = StartRequest { id: stopped.id.clone(), exec_id: String::new() };
    let kill = KillRequest { id: stopped.id.clone(), signal: 9, ..KillRequest::default() };
    let answers = answers(
        &neighbour,
        &[
            stopped.request("Start", &start),
            neighbour.request("State", &state),
            stopped.request("Kill", &kill),
        ],
    );
    let place = |call: usize| answers.iter().position(|(place, _)| *place == call).expect("answered");
    assert!(place(1) < place(0), "{answers:?}");
    assert!(answers[place(2)].1.is_ok(), "{answers:?}");
    assert_eq!(stopped.wait(""), 137);
    stopped.delete("").unwrap();
    neighbour.end();
}

/// Whether a call about one container is answered before one about another that came with it, and before it.
fn is_served_beside(neighbour: &ShimTask, first: &ttrpc::Request) -> bool {
    let state = StateRequest { id: neighbour.id.clone(), exec_id: String::new() };
    let answers = answers(neighbour, &[first.clone(), neighbour.request("State", &state)]);
    for (_, outcome) in &answers {
        outcome.as_ref().unwrap_or_else(|error| panic!("{}", error.chain()));
    }
    answers[0].0 == 1
}

/// The answers to calls that reach a shim at once, in the order in which they come, with the places of the calls.
fn answers(task: &ShimTask, calls: &[ttrpc::Request]) -> Vec<(usize, types::Result<Vec<u8>>)> {
    let mut stream = UnixStream::connect(ttrpc::socket_path(&task.address).unwrap()).unwrap();
    let mut client = ttrpc::Client::new();
    let streams: Vec<_> = calls.iter().map(|call| client.call(call).unwrap()).collect();
    stream.write_all(client.pending()).unwrap();
    client.advance(client.pending().len());
    let mut answers = Vec::new();
    while answers.len() < calls.len() {
        let answer = take_answer(&mut client, &mut stream);
        let place = streams.iter().position(|stream| *stream == answer.stream).expect("an answer to a call");
        answers.push((place, answer.outcome));
    }
    answers
}

fn first_line(fifo: &Path) -> String {
    let mut line = String::new();
    BufReader::new(std::fs::File::open(fifo).unwrap()).read_line(&mut line).unwrap();
    line
}

fn send(client: &mut ttrpc::Client, stream: &mut UnixStream, request: &ttrpc::Request) {
    client.call(request).unwrap();
    let bytes = client.pending().to_vec();
    stream.write_all(&bytes).unwrap();
    client.advance(bytes.len());
}

fn next_answer(client: &mut ttrpc::Client, stream: &mut UnixStream) -> types::Result<Vec<u8>> {
    take_answer(client, stream).outcome
}

fn take_answer(client: &mut ttrpc::Client, stream: &mut UnixStream) -> ttrpc::Answer {
    let mut buffer = [0; 4096];
    loop {
        if let Some(answer) = client.next_answer() {
            return answer;
        }
        let len = stream.read(&mut buffer).expect("the shim answers");
        assert!(len > 0, "the shim hung up");
        client.feed(&buffer[..len]);
    }
}

/// A runtime that does something else first.
fn program(host: &ShimHost, name: &str, first: &str) -> PathBuf {
    let program = host.dir().join(name);
    testkit::executable(&program, &format!("#!/bin/sh\n{first}\nexec /usr/sbin/runc \"$@\"\n"));
    program
}

/// The shim's wait for a runtime's answer has a limit.
#[test]
fn a_named_runtime_that_does_not_answer_is_killed() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let waiter = Waiter::new(&host, "ps");
    let program = program(&host, "runtime", &format!("case \"$* \" in *' ps '*) {};; esac", waiter.script()));
    let task = host
        .container("silent", "exec sleep 1000")
        .with(|container| {
            container.options.binary_name = program.display().to_string();
            container.options.root = host.dir().join("state").display().to_string();
        })
        .run();
    let request = PidsRequest { id: task.id.clone() };
    let refused = task.call::<PidsResponse>("Pids", &request).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::DeadlineExceeded, "{}", refused.chain());
    waiter.goes();
    assert_eq!(task.status(""), Status::Running);
    task.end();
}

/// The space for the exit record is allocated when the container is created.
#[test]
fn an_exit_is_recorded_on_a_full_disk() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let disk = SmallDisk::of(&host, "full");
    let task = host.container("full", "trap 'exit 7' TERM; echo; while :; do sleep 1000 & wait; done");
    let out = host.dir().join("out");
    let task = task.with(|container| container.request.stdout = format!("file://{}", out.display())).run();
    eventually("it listens", || std::fs::metadata(&out).ok().filter(|file| file.len() > 0));
    let noise = vec![b'.'; 512 << 10];
    std::fs::write(disk.0.join("noise"), noise).expect_err("the disk is full");
    task.kill("", 15).unwrap();
    assert_eq!(task.wait(""), 7);
    task.kill_shim();
    let deleted = host.delete_orphan("full");
    assert_eq!(deleted.exit_status, 7);
}

/// As a client that repeats a call with a deadline: the shim keeps a `Wait` until the process ends, and serves four
/// thousand calls at a time.
#[test]
fn repeated_waits_with_deadlines_use_up_no_calls() {
    const AT_ONCE: usize = 100;
    const ROUNDS: usize = 50;
    if !is_root("containers") {
        return;
    }
    let daemon = Daemon::start();
    run_spec(&daemon, "long", &spec(&daemon, "long", |_| {}), &[]).ok();
    on(&daemon, async |channel| {
        let tasks = TasksClient::new(channel);
        let wait = async |mut tasks: TasksClient<Channel>| {
            let wait = WaitRequest { container_id: "long".into(), ..WaitRequest::default() };
            tasks.wait(ask(wait)).await.map(|exit| exit.into_inner().exit_status)
        };
        for _ in 0..ROUNDS {
            let mut waits: JoinSet<_> =
                (0..AT_ONCE).map(|_| timeout(Duration::from_millis(50), wait(tasks.clone()))).collect();
            while let Some(given_up) = waits.join_next().await {
                given_up.expect("no panic").expect_err("it does not end");
            }
        }
        let ended = tokio::spawn(wait(tasks.clone()));
        let get = GetRequest { container_id: "long".into(), ..GetRequest::default() };
        let found = tasks.clone().get(ask(get)).await.expect("it is answered").into_inner();
        assert_eq!(found.process.expect("there is one").status(), WireStatus::Running);
        let kill = tasks::KillRequest { container_id: "long".into(), signal: 9, ..Default::default() };
        tasks.clone().kill(ask(kill)).await.expect("it is killed");
        assert_eq!(ended.await.expect("no panic").expect("it is told"), 137);
    });
    daemon.own_ctr(["tasks", "rm", "long"]).ok();
}

/// As from a daemon whose one connection carries calls of clients that are gone: ttrpc has no message to cancel a call.
#[test]
fn abandoned_waits_leave_room_for_other_calls() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let task = host.container("long", "exec sleep 1000").run();
    let message = task::WaitRequest { id: task.id.clone(), exec_id: String::new() };
    let wait = |timeout_nano| ttrpc::Request { timeout_nano, ..task.request("Wait", &message) };
    let mut stream = UnixStream::connect(ttrpc::socket_path(&task.address).unwrap()).unwrap();
    let mut client = ttrpc::Client::new();

    // A wait with a timeout is answered when that is over, and leaves room for another.
    for timeout_nano in [-1, 1, 50_000_000] {
        send(&mut client, &mut stream, &wait(timeout_nano));
        let late = next_answer(&mut client, &mut stream).unwrap_err();
        assert_eq!(late.kind(), ErrorKind::DeadlineExceeded, "{timeout_nano}: {}", late.chain());
    }

    const KEPT: usize = ttrpc::CALLS_MAX / 2;
    for _ in 0..KEPT {
        send(&mut client, &mut stream, &wait(0));
    }
    send(&mut client, &mut stream, &wait(0));
    let refused = next_answer(&mut client, &mut stream).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted, "{}", refused.chain());

    // The others get in, and the end is told to all who wait.
    let kill = KillRequest { id: task.id.clone(), signal: 9, ..KillRequest::default() };
    send(&mut client, &mut stream, &task.request("Kill", &kill));
    for _ in 0..=KEPT {
        next_answer(&mut client, &mut stream).unwrap();
    }
    assert_eq!(task.wait(""), 137);
    task.end();
}

/// The wait fails with `NotFound`, and the id can be used again.
#[test]
fn who_waits_for_a_process_that_is_deleted_before_its_start_is_told() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let task = host.container("waits", "exec sleep 1000").run();
    task.exec("never", "true", |_| {}).unwrap();
    let (id, exec_id) = (task.id.clone(), "never".to_owned());
    let wait = task::WaitRequest { id: id.clone(), exec_id: exec_id.clone() };
    let delete = task::DeleteRequest { id, exec_id };
    let mut answers = answers(&task, &[task.request("Wait", &wait), task.request("Delete", &delete)]);
    answers.sort_by_key(|(place, _)| *place);
    assert_eq!(answers[0].1.as_ref().unwrap_err().kind(), ErrorKind::NotFound);
    assert!(answers[1].1.is_ok());
    assert_eq!(task.run_exec("never", "exit 6"), 6);
    task.end();
}
