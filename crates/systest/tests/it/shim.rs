//! Hoist's shim called as containerd calls it: both versions of the task API, both bootstrap protocols, groups, execs,
//! options, and refused calls.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use api::shim::runc::{CheckpointOptions, Options, ProcessDetails};
use api::shim::task;
use api::shim::types::{Status, TypeUrl};
use linux::cgroup::Cgroup;
use prost::Message;
use prost_types::Any;
use serde_json::json;
use testkit::{ShimHost, ShimTask, eventually, is_root, run, run_shim};
use types::ErrorKind;

#[test]
fn both_versions_of_the_task_api_are_served() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let _events = host.listen();
    for service in [task::SERVICE_V2, task::SERVICE_V3] {
        let task =
            host.container("versions", "exit 7").with(|container| container.service = service).create();
        assert_eq!(task.status(""), Status::Created);
        let pid = task.start("");
        assert_eq!(task.wait(""), 7);
        let state = task.state("").unwrap();
        assert_eq!((state.status(), state.exit_status, state.pid), (Status::Stopped, 7, pid));
        let deleted = task.delete("").unwrap();
        assert_eq!((deleted.exit_status, deleted.pid), (7, pid));
        assert!(task.state("").unwrap_err().is(ErrorKind::NotFound));
        task.shutdown().unwrap();
        eventually("the shim is gone", || task.connect_call().err());
    }
}

#[test]
fn start_answers_in_the_form_of_who_asked() {
    if !is_root("a shim") {
        return;
    }
    let host = ShimHost::new();
    let options = Any { type_url: Options::TYPE_URL.to_owned(), value: Options::default().encode_to_vec() };
    // containerd 1.6 and 1.7 send options or nothing, and read an address.
    for (id, stdin) in [("bare", Vec::new()), ("options", options.encode_to_vec())] {
        let container = host.container(id, "true");
        container.write_bundle();
        let printed = String::from_utf8(container.run_start(&stdin)).expect("an address");
        assert!(printed.starts_with("unix:///run/containerd/s/"), "{printed}");
        assert_eq!(std::fs::read_to_string(host.bundle(id).join("address")).unwrap(), printed);
        let shim = ShimTask::at(id, &printed);
        assert_eq!(shim.connect_call().unwrap().task_pid, 0);
        shim.shutdown().unwrap();
        eventually("the shim is gone and its socket too", || {
            let socket = printed.strip_prefix("unix://").expect("checked");
            (shim.connect_call().is_err() && !Path::new(socket).exists()).then_some(())
        });
    }
    // containerd 2.3 sends parameters, with a directory for the socket, and reads a message. `ShimHost` does so too.
    let address = host.container("params", "true").start_shim();
    assert!(address.contains(&host.dir().join("s").display().to_string()), "{address}");
    ShimTask::at("params", &address).shutdown().unwrap();
}

#[test]
fn the_command_line_says_what_it_is_and_refuses_what_it_does_not_know() {
    let info = Command::new(testkit::shim_program()).arg("-info").output().unwrap();
    let info = api::shim::introspection::RuntimeInfo::decode(info.stdout.as_slice()).unwrap();
    assert_eq!(info.name, "io.containerd.hoist.v2");
    assert!(info.version.is_some_and(|version| !version.version.is_empty()));
    assert!(info.annotations.values().any(|schemes| schemes.contains("binary")), "{:?}", info.annotations);
    assert!(run_shim(&["-v"]).ok().stdout.contains("Version"));
    run_shim(&["-namespace", "../x", "-id", "a", "start"]).expect_code(1).expect_stderr("../x");
    run_shim(&["dance"]).expect_code(1).expect_stderr("start");
    run_shim(&["-namespace", "a", "-id", "a", "serve"]).expect_code(1).expect_stderr("listening socket");
}

/// The kernel does not kill the processes that its first process leaves, since the pid namespace goes on: the shim
/// does.
#[test]
fn a_container_in_the_pid_namespace_of_another_ends_whole() {
    if !is_root("containers") {
        return;
    }
    let host = ShimHost::new();
    let first = host.container("first", "exec sleep 1000").in_group("io.containerd.runc.v2.group", "g").run();
    let pid = first.state("").unwrap().pid;
    let second = host
        .container("second", "sleep 1000 & exit 5")
        .in_group("io.containerd.runc.v2.group", "g")
        .with(|container| {
            container.spec["linux"]["namespaces"][0]["path"] = json!(format!("/proc/{pid}/ns/pid"));
        })
        .run();
    assert_eq!(second.wait(""), 5);
    let cgroup = Cgroup::open(&format!("{}/second", host.cgroup())).unwrap();
    eventually("nothing is left", || cgroup.processes().unwrap().is_empty().then_some(()));
    assert_eq!(first.status(""), Status::Running);
    second.delete("").unwrap();
    first.end();
}

#[test]
fn containers_of_a_group_share_a_shim_until_the_last_is_gone() {
    if !is_root("containers") {
        return;
    }
    let host = ShimHost::new();
    let events = host.listen();
    for (key, pod) in [("io.containerd.runc.v2.group", "g"), ("io.kubernetes.cri.sandbox-id", "sandbox")] {
        let first = host.container("first", "exec sleep 1000").in_group(key, pod).run();
        let second = host.container("second", "exec sleep 1000").in_group(key, pod).run();
        let alone = host.container("alone", "exec sleep 1000").run();
        assert_eq!(first.shim_pid(), second.shim_pid());
        assert_ne!(first.shim_pid(), alone.shim_pid());
        // The death of one container does not end the others. The bundle in which the shim was started is deleted
        // first.
        first.kill("", 9).unwrap();
        assert_eq!(first.wait(""), 137);
        first.delete("").unwrap();
        std::fs::remove_dir_all(host.bundle("first")).unwrap();
        first.shutdown().unwrap();
        assert_eq!(second.status(""), Status::Running, "a shim with containers does not go");
        assert_eq!(second.run_exec("e", "exit 3"), 3);
        second.end();
        events.wait_for("/tasks/delete", "second");
        eventually("the shim is gone", || second.connect_call().err());
        alone.end();
    }
}

#[test]
fn many_processes_are_added_at_once() {
    if !is_root("a container") {
        return;
    }
    const PROCESSES: u32 = 100;
    let host = ShimHost::new();
    let events = host.listen();
    let task = host.container("many", "exec sleep 1000").run();
    let statuses: Vec<u32> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..PROCESSES)
            .map(|number| {
                let task = task.clone();
                scope.spawn(move || task.run_exec(&format!("e{number}"), &format!("exit {}", number % 100)))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(statuses, (0..PROCESSES).map(|number| number % 100).collect::<Vec<_>>());
    task.end();
    events.wait_for("/tasks/delete", "many");
    let told = events.told();
    for number in 0..PROCESSES {
        let of: Vec<&str> = told
            .iter()
            .filter(|(_, id)| *id == format!("e{number}"))
            .map(|(topic, _)| topic.as_str())
            .collect();
        assert_eq!(of, ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]);
    }
    let exits: Vec<&str> =
        told.iter().filter(|(topic, _)| topic == "/tasks/exit").map(|(_, id)| id.as_str()).collect();
    assert_eq!(exits.last(), Some(&"many"), "the first process's exit comes last");
}

#[test]
fn ids_of_processes_are_used_again_only_after_their_delete() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let task = host.container("ids", "exec sleep 1000").run();
    let kind = |outcome: types::Result<()>| outcome.unwrap_err().kind();
    task.exec("e", "exit 5", |_| {}).unwrap();
    assert_eq!(kind(task.kill("e", 15)), ErrorKind::FailedPrecondition, "it was not started");
    task.start("e");
    assert_eq!(kind(task.try_start("e").map(drop)), ErrorKind::FailedPrecondition);
    assert_eq!(task.wait("e"), 5);
    assert_eq!(kind(task.exec("e", "exit 6", |_| {})), ErrorKind::AlreadyExists);
    assert_eq!(kind(task.kill("e", 15)), ErrorKind::NotFound, "it has ended");
    assert_eq!(task.delete("e").unwrap().exit_status, 5);
    assert_eq!(task.run_exec("e", "exit 6"), 6);

    // An exec that was never started can be deleted as well.
    task.exec("never", "true", |_| {}).unwrap();
    task.delete("never").unwrap();
    assert_eq!(kind(task.exec("../x", "true", |_| {})), ErrorKind::InvalidArgument);
    assert_eq!(kind(task.delete("").map(drop)), ErrorKind::FailedPrecondition, "it runs");

    task.kill("", 9).unwrap();
    assert_eq!(task.wait(""), 137);
    assert_eq!(kind(task.kill("", 9)), ErrorKind::NotFound);
    assert_eq!(kind(task.exec("late", "true", |_| {})), ErrorKind::FailedPrecondition);
    task.delete("").unwrap();
    for outcome in [task.try_wait("").map(drop), task.kill("", 9), task.delete("").map(drop)] {
        assert_eq!(kind(outcome), ErrorKind::NotFound);
    }
}

#[test]
fn a_wait_for_a_deleted_process_returns_at_once() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let task = host.container("waits", "true").create();
    let waiting = std::thread::spawn({
        let task = task.clone();
        move || task.try_wait("")
    });
    // The delete kills the created process, and the wait returns.
    task.delete("").unwrap();
    match waiting.join().unwrap() {
        Ok(status) => assert_eq!(status, 137),
        Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
    }
}

#[test]
fn processes_are_listed_with_the_ids_they_were_added_under() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let task = host.container("pids", "exec sleep 1000").run();
    task.exec("named", "exec sleep 1000", |_| {}).unwrap();
    let pid = task.start("named");
    let pids: task::PidsResponse = task.call("Pids", &task::PidsRequest { id: task.id.clone() }).unwrap();
    let named = pids.processes.iter().find(|process| process.pid == pid).expect("it is listed");
    let details = api::shim::unpack::<ProcessDetails>(named.info.as_ref().unwrap()).unwrap().unwrap();
    assert_eq!((pids.processes.len(), details.exec_id.as_str()), (2, "named"));
}

#[test]
fn a_paused_container_takes_no_processes_and_can_be_killed() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let events = host.listen();
    let task = host.container("paused", "exec sleep 1000").create();
    let call = |method: &str| task.call::<()>(method, &task::PauseRequest { id: task.id.clone() });
    // The runtime can pause a created container, but the shim refuses it.
    let early = call("Pause").unwrap_err();
    assert!(early.is(ErrorKind::FailedPrecondition) && early.to_string().contains("start it"), "{early:?}");
    task.start("");
    task.exec("e", "exit 3", |_| {}).unwrap();
    call("Pause").unwrap();
    assert_eq!(task.status(""), Status::Paused);
    let refused = task.try_start("e").unwrap_err();
    assert!(refused.is(ErrorKind::FailedPrecondition), "{refused:?}");
    assert_eq!(task.wait("e"), 0, "nobody waits for what could not start");
    let late = task.exec("late", "true", |_| {}).unwrap_err();
    assert!(late.is(ErrorKind::FailedPrecondition) && late.to_string().contains("paused"), "{late:?}");
    call("Resume").unwrap();
    assert_eq!(task.status(""), Status::Running);
    task.start("e");
    assert_eq!(task.wait("e"), 3, "it was tried again");
    call("Pause").unwrap();
    task.kill("", 9).unwrap();
    assert_eq!(task.wait(""), 137);
    task.delete("").unwrap();
    events.wait_for("/tasks/delete", "paused");
    let topics: Vec<String> = events.told().into_iter().map(|(topic, _)| topic).collect();
    assert_eq!(topics.iter().filter(|topic| *topic == "/tasks/paused").count(), 2);
    assert_eq!(topics.iter().filter(|topic| *topic == "/tasks/resumed").count(), 1);
}

/// SIGUSR1 makes containerd's shims write the stacks of their threads.
#[test]
fn a_question_by_signal_does_not_end_the_shim() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    // An external runtime passes the signal dispositions that it inherits on to the container.
    for (id, binary) in [("asked", ""), ("asked-runc", "/usr/sbin/runc")] {
        let task = host
            .container(id, "sh -c 'kill -USR1 $$'; exit $?")
            .with(|container| {
                container.options.binary_name = binary.to_owned();
                container.options.root = host.dir().join("state").display().to_string();
            })
            .create();
        let shim =
            i32::try_from(task.shim_pid()).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
        rustix::process::kill_process(shim, rustix::process::Signal::USR1).unwrap();
        task.start("");
        // In the container, the signal has its default action.
        assert_eq!(task.wait(""), 128 + 10, "{id}");
        task.delete("").unwrap();
    }
}

/// The container's root may send signals to a process that enters. The shim must go on working, since only it can end
/// the container.
#[test]
fn a_container_that_stops_whatever_enters_it_does_not_stop_the_shim() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let stops = "trap '' STOP; while :; do for p in /proc/[0-9]*; do p=${p#/proc/}; \
                 [ $p -gt 1 ] && kill -STOP $p 2>/dev/null; done; done";
    let task = host.container("hostile", stops).run();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for number in 0..2 {
            let task = task.clone();
            scope.spawn(move || {
                task.exec(&format!("e{number}"), "exit 0", |_| {}).unwrap();
                // The process starts, or is stopped while it enters: then the call ends with an error.
                let _either = task.try_start(&format!("e{number}"));
            });
        }
    });
    task.kill("", 9).unwrap();
    assert_eq!(task.wait(""), 137);
    task.delete("").unwrap();
    assert!(begun.elapsed() < Duration::from_secs(40), "took {:?}", begun.elapsed());
}

#[test]
fn metrics_are_those_of_the_hosts_cgroup_version() {
    use api::shim::cgroups::{v1, v2};
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let disk = tempfile::TempDir::new_in("/var/tmp").unwrap();
    let script = "dd if=/dev/zero of=/disk/file bs=64k count=1 oflag=direct; : > /disk/up; exec sleep 1000";
    let task = host
        .container("stats", script)
        .with(|container| {
            let mount =
                json!({ "destination": "/disk", "type": "bind", "source": disk.path(), "options": ["bind"] });
            container.spec["mounts"].as_array_mut().unwrap().push(mount);
        })
        .run();
    eventually("it has written", || disk.path().join("up").exists().then_some(()));
    let stats: task::StatsResponse = task.call("Stats", &task::StatsRequest { id: task.id.clone() }).unwrap();
    let stats = stats.stats.unwrap();
    let (pids, usage) = if stats.type_url == v2::Metrics::TYPE_URL {
        let metrics = v2::Metrics::decode(stats.value.as_slice()).unwrap();
        let cgroup = format!("/sys/fs/cgroup{}/stats", host.cgroup());
        let is_told = |file: &str| std::fs::read(Path::new(&cgroup).join(file)).is_ok();
        let psi = |psi: &Option<v2::PsiStats>| {
            psi.as_ref().is_some_and(|psi| psi.some.is_some() && psi.full.is_some())
        };
        assert_eq!(psi(&metrics.cpu.as_ref().unwrap().psi), is_told("cpu.pressure"));
        assert_eq!(psi(&metrics.memory.as_ref().unwrap().psi), is_told("memory.pressure"));
        assert_eq!(psi(&metrics.io.as_ref().unwrap().psi), is_told("io.pressure"));
        let is_guest = std::env::var_os("HOIST_GUEST").is_some();
        assert!(is_told("cpu.pressure") || !is_guest, "the guest's kernel tells of pressure");
        (metrics.pids.unwrap().current, metrics.memory.unwrap().usage)
    } else {
        assert_eq!(stats.type_url, v1::Metrics::TYPE_URL);
        let metrics = v1::Metrics::decode(stats.value.as_slice()).unwrap();
        let transfers = metrics.blkio.unwrap().io_service_bytes_recursive;
        if transfers.is_empty() {
            println!("skipped: nothing was transferred to a disk");
        }
        for entry in transfers {
            let device = std::fs::metadata(&entry.device).unwrap_or_else(|_| panic!("{entry:?} has a name"));
            let number =
                rustix::fs::makedev(entry.major.try_into().unwrap(), entry.minor.try_into().unwrap());
            assert_eq!(std::os::unix::fs::MetadataExt::rdev(&device), number, "{entry:?}");
        }
        (metrics.pids.unwrap().current, metrics.memory.unwrap().usage.unwrap().usage)
    };
    assert_eq!(pids, 1);
    assert!(usage > 0);
}

/// A container may use a fifth of a processor, and more for a moment after it was idle (`cpu.cfs_burst_us`).
#[test]
fn bursts_of_version_2_are_counted() {
    use api::shim::cgroups::v2;
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let script = "while :; do usleep 300000; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; done";
    let task = host
        .container("bursts", script)
        .with(|container| {
            container.spec["linux"]["resources"]["cpu"] =
                json!({ "quota": 20000, "period": 100_000, "burst": 10000 });
        })
        .run();
    let file = format!("/sys/fs/cgroup{}/bursts/cpu.stat", host.cgroup());
    if !std::fs::read_to_string(file).is_ok_and(|text| text.contains("nr_bursts")) {
        assert!(std::env::var_os("HOIST_GUEST").is_none(), "the guest's kernel counts bursts");
        println!("skipped: the processor is not limited by version 2 here");
        return;
    }
    eventually("a burst is counted", || {
        let request = task::StatsRequest { id: task.id.clone() };
        let stats = task.call::<task::StatsResponse>("Stats", &request).unwrap().stats.unwrap();
        let cpu = v2::Metrics::decode(stats.value.as_slice()).unwrap().cpu.unwrap();
        (cpu.nr_bursts > 0 && cpu.burst_usec > 0).then_some(())
    });
}

#[test]
fn lost_memory_is_told_and_counted_in_the_exit_record() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let events = host.listen();
    let task = host
        .container("oom", "exec dd if=/dev/zero of=/dev/null bs=256M count=1")
        .with(|container| {
            container.spec["linux"]["resources"]["memory"] =
                serde_json::json!({ "limit": 16 << 20, "swap": 16 << 20 });
        })
        .run();
    assert_eq!(task.wait(""), 137);
    events.wait_for("/tasks/oom", "oom");
    let record = std::fs::read_to_string(host.bundle("oom").join("exit.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["oom_killed"], true, "{record}");
    assert!(record["oom_kills"].as_u64() >= Some(1) && record["oom_events"].as_u64() >= Some(1), "{record}");
    let told = events.told();
    let place = |topic: &str| told.iter().position(|(found, _)| found == topic);
    events.wait_for("/tasks/exit", "oom");
    assert!(place("/tasks/oom") < place("/tasks/exit") || place("/tasks/exit").is_none(), "{told:?}");
}

#[test]
fn options_reach_the_shim_and_the_runtime() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    // A runtime that logs its arguments, and is runc otherwise.
    let program = host.dir().join("runtime");
    let notes = host.dir().join("notes");
    let script = format!(
        "#!/bin/sh\necho \"$@\" notices:$NOTIFY_SOCKET >> {}\nexec /usr/sbin/runc \"$@\"\n",
        notes.display()
    );
    testkit::executable(&program, &script);
    let shim_cgroup = format!("{}/shim", host.cgroup());
    let task = host
        .container("options", "exec sleep 1000")
        .with(|container| {
            container.options = Options {
                no_pivot_root: true,
                no_new_keyring: true,
                shim_cgroup: shim_cgroup.clone(),
                binary_name: program.display().to_string(),
                root: host.dir().join("state").display().to_string(),
                ..Options::default()
            };
        })
        .run();
    let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", task.shim_pid())).unwrap();
    assert!(cgroups.contains(&shim_cgroup), "{cgroups}");
    assert!(host.dir().join("state/test/options").is_dir(), "the option names where state is");
    // Several shims can have the same cgroup.
    let second = host
        .container("second", "true")
        .with(|container| container.options.shim_cgroup = shim_cgroup.clone());
    second.run().end();
    task.end();
    let notes = std::fs::read_to_string(notes).unwrap();
    let create = notes.lines().find(|line| line.contains(" create ")).expect("it was called");
    for flag in ["--no-pivot", "--no-new-keyring", "--root"] {
        assert!(create.contains(flag), "{create}");
    }
    // The daemon's `NOTIFY_SOCKET` is not the container's: runc would wait for a message of the container to it.
    assert!(notes.lines().all(|line| line.ends_with(" notices:")), "{notes}");
    eventually("the shim is gone", || task.connect_call().err());
}

/// The same for the runtime that is linked into the shim.
#[test]
fn options_reach_the_built_in_runtime() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    for (id, is_asked_for) in [("pivoted", false), ("moved", true)] {
        let (calls, output) = (host.dir().join(format!("{id}.calls")), host.dir().join(format!("{id}.out")));
        let container =
            host.container(id, "grep -c _ses.moved. /proc/keys; grep -c _ses.pivoted. /proc/keys");
        let container = container.stdout(format!("file://{}", output.display())).with(|container| {
            container.options.no_pivot_root = is_asked_for;
            container.options.no_new_keyring = is_asked_for;
        });
        // The shim runs before its container is created, so that strace can attach to it.
        let shim = ShimTask::at(id, &container.start_shim());
        let mut strace = Command::new("strace");
        strace.args(["-f", "-e", "trace=pivot_root,chroot", "-o"]).arg(&calls);
        strace.args(["-p", &shim.shim_pid().to_string()]).stderr(std::process::Stdio::piped());
        let mut strace = strace.spawn().expect("strace is part of Debian");
        let mut said = String::new();
        let mut words = std::io::BufReader::new(strace.stderr.take().expect("piped"));
        std::io::BufRead::read_line(&mut words, &mut said).expect("text");
        assert!(said.contains("attached"), "{said}");
        let task = container.run();
        task.wait("");
        task.end();
        eventually("the shim is gone", || task.connect_call().err());
        strace.wait().expect("a child of ours");
        let calls = std::fs::read_to_string(calls).unwrap();
        assert_eq!(calls.contains("pivot_root("), !is_asked_for, "{calls}");
        assert_eq!(calls.contains("chroot("), is_asked_for, "{calls}");
        let own = if is_asked_for { "0\n0\n" } else { "0\n1\n" };
        assert_eq!(std::fs::read_to_string(output).unwrap(), own, "{id}");
    }
}

#[test]
fn shims_that_start_together_share_a_cgroup() {
    if !is_root("shims") {
        return;
    }
    let host = ShimHost::new();
    let shim_cgroup = format!("{}/shims", host.cgroup());
    let start = |number: u32| {
        let id = format!("together-{number}");
        let container =
            host.container(&id, "true").with(|container| container.options.shim_cgroup = shim_cgroup.clone());
        let address = container.start_shim();
        (id, address)
    };
    let start = &start;
    let addresses: Vec<(String, String)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|number| scope.spawn(move || start(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("each finds it or makes it")).collect()
    });
    for (id, address) in addresses {
        let shim = ShimTask::at(&id, &address);
        let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", shim.shim_pid())).unwrap();
        assert!(cgroups.contains(&shim_cgroup), "{cgroups}");
        shim.shutdown().unwrap();
        eventually("the shim is gone", || shim.connect_call().err());
    }
}

/// Otherwise a test's cgroups would stay until the machine is restarted.
#[test]
fn a_host_of_shims_takes_its_cgroups_along() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let cgroup = format!("*{}*", host.cgroup());
    let found = || run(Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-path", &cgroup])).stdout;
    host.container("ended", "true").run().end();
    host.container("left", "exec sleep 1000").run();
    assert!(found().contains("/left"), "{}", found());
    drop(host);
    assert_eq!(found(), "");
}

/// As on a full disk: the container is created, but its pid file cannot be written.
#[test]
fn a_creation_that_fails_late_leaves_no_container() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    for (id, binary) in [("late", ""), ("late-runc", "/usr/sbin/runc")] {
        // A directory takes the place of the file.
        std::fs::create_dir_all(host.bundle(id).join(".init.pid.new")).unwrap();
        let refused = host
            .container(id, "exec sleep 1000")
            .with(|container| {
                container.options.binary_name = binary.to_owned();
                container.options.root = host.dir().join("state").display().to_string();
            })
            .try_create()
            .unwrap_err();
        assert!(refused.chain().contains("init.pid"), "{}", refused.chain());
        let cgroup = format!("*{}/{id}", host.cgroup());
        let left = run(Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-path", &cgroup])).stdout;
        assert_eq!(left, "", "{id}: its cgroups are gone, and its processes with them");
        assert!(!host.dir().join("state/test").join(id).exists(), "{id}: and its state");
    }
}

/// criu may not support this kernel, so a script takes the runtime's call.
#[test]
fn a_checkpoint_is_made_by_a_runtime_that_can() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let events = host.listen();
    let program = host.dir().join("runtime");
    let notes = host.dir().join("notes");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *' checkpoint --image-path '*) echo \"$@\" >> {}; exit 0;; esac\nexec /usr/sbin/runc \"$@\"\n",
        notes.display()
    );
    testkit::executable(&program, &script);
    let task = host
        .container("frozen", "exec sleep 1000")
        .with(|container| {
            container.options = Options {
                binary_name: program.display().to_string(),
                root: host.dir().join("state").display().to_string(),
                criu_work_path: "/var/work".into(),
                ..Options::default()
            };
        })
        .run();
    let options = CheckpointOptions { open_tcp: true, cgroups_mode: "soft".into(), ..Default::default() };
    let mut request = task::CheckpointTaskRequest {
        id: task.id.clone(),
        path: "/var/images".into(),
        options: Some(Any {
            type_url: CheckpointOptions::TYPE_URL.to_owned(),
            value: options.encode_to_vec(),
        }),
    };
    task.call::<()>("Checkpoint", &request).unwrap();
    events.wait_for("/tasks/checkpointed", "frozen");
    let noted = std::fs::read_to_string(&notes).unwrap();
    let expected = "checkpoint --image-path /var/images --work-path /var/work --tcp-established --leave-running \
                    --manage-cgroups-mode soft frozen\n";
    assert!(noted.ends_with(expected), "{noted}");
    // An incremental checkpoint, whose predecessor containerd and the runtime call its parent.
    let options = CheckpointOptions { parent_path: "../before".into(), ..Default::default() };
    request.options.as_mut().unwrap().value = options.encode_to_vec();
    task.call::<()>("Checkpoint", &request).unwrap();
    let noted = std::fs::read_to_string(&notes).unwrap();
    assert!(noted.lines().last().unwrap().contains(" --parent-path ../before "), "{noted}");
    request.path = "relative".into();
    assert!(task.call::<()>("Checkpoint", &request).unwrap_err().is(ErrorKind::InvalidArgument));
    assert_eq!(task.status(""), Status::Running);
    task.end();
}

#[test]
fn pipes_belong_to_whom_the_options_name() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let (first, further) = (host.dir().join("first"), host.dir().join("further"));
    // As with runc, the streams then get the container's user, root, as their owner, and keep the group of the options.
    let tell = "stat -L -c %u:%g /proc/self/fd/1";
    let task = host
        .container("owner", &format!("{tell}; exec sleep 1000"))
        .stdout(format!("file://{}", first.display()))
        .with(|container| {
            container.options = Options { io_uid: 1234, io_gid: 2345, ..Options::default() };
        })
        .run();
    eventually("the container says who owns its output", || {
        std::fs::read_to_string(&first).is_ok_and(|text| text == "0:2345\n").then_some(())
    });
    task.exec("e", tell, |exec| exec.stdout = format!("file://{}", further.display())).unwrap();
    task.start("e");
    assert_eq!(task.wait("e"), 0);
    task.delete("e").unwrap();
    assert_eq!(std::fs::read_to_string(&further).unwrap(), "0:2345\n");
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let task = host.container("refuses", "exec sleep 1000").run();
    let unknown = task.call::<()>("Dance", &()).unwrap_err();
    assert!(unknown.is(ErrorKind::Unimplemented) && unknown.message().contains("Dance"), "{unknown:?}");
    let windows = host.container("npipe", "true").stdout("npipe:////./pipe/x").try_create().unwrap_err();
    assert!(windows.is(ErrorKind::Unimplemented) && windows.message().contains("npipe"), "{windows:?}");
    let twice =
        task.call::<()>("Create", &task::CreateTaskRequest { id: "refuses".into(), ..Default::default() });
    assert!(twice.unwrap_err().is(ErrorKind::AlreadyExists));
    let signal = task.kill("", 99).unwrap_err();
    assert!(signal.is(ErrorKind::InvalidArgument), "{signal:?}");
}

#[test]
fn a_shim_that_is_about_to_end_makes_no_containers() {
    if !is_root("a shim") {
        return;
    }
    // Nobody receives its events, so that the shim waits a moment before it ends.
    let host = ShimHost::new();
    let task = host.container("one", "true").in_group("io.containerd.runc.v2.group", "g").run();
    let mut open = UnixStream::connect(task.address.strip_prefix("unix://").unwrap()).unwrap();
    task.end();
    let two = host.container("two", "true");
    two.write_bundle();
    let request = task.request("Create", &two.request);
    let outcome = ttrpc::Blocking::new(open.try_clone().unwrap()).call::<task::CreateTaskResponse>(&request);
    assert!(outcome.unwrap_err().is(ErrorKind::Unavailable));
    // The shim still ends in time.
    open.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    assert!(matches!(open.read(&mut [0]), Ok(0)));
    assert!(!host.dir().join("b/two/runtime.json").exists());
}

/// If the limit on open files is reached, new connections wait, and the shim does not spin.
#[test]
fn a_shim_without_descriptors_left_goes_on_when_some_are_free_again() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let task = host.container("few", "exec sleep 1000").run();
    let shim = task.shim_pid();
    run(Command::new("prlimit").args([format!("--pid={shim}"), "--nofile=24:24".into()])).ok();
    let socket = task.address.strip_prefix("unix://").unwrap();
    let peers: Vec<UnixStream> = (0..40).map(|_| UnixStream::connect(socket).unwrap()).collect();
    let (begun, at) = (cpu_ticks(shim), Instant::now());
    while at.elapsed() < Duration::from_millis(500) {
        std::thread::park_timeout(Duration::from_millis(100));
    }
    assert!(cpu_ticks(shim) - begun < 25, "the loop spins");
    drop(peers);
    assert_eq!(task.status(""), Status::Running);
    task.end();
}

/// Frames of peers that do not speak ttrpc, or break its rules.
#[test]
fn hostile_frames_do_not_disturb_the_others() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let task = host.container("frames", "exec sleep 1000").run();
    let socket = task.address.strip_prefix("unix://").unwrap().to_owned();
    let connect = || UnixStream::connect(&socket).unwrap();
    let frame = |len: u32, stream: u32, kind: u8| {
        let mut bytes = len.to_be_bytes().to_vec();
        bytes.extend(stream.to_be_bytes());
        bytes.extend([kind, 0]);
        bytes
    };
    let mut peers = Vec::new();
    for bytes in [
        vec![0xff; 70_000],
        frame(u32::MAX, 1, 1),
        frame(4 << 20, 1, 1),
        frame(0, 2, 1),
        frame(3, 1, 1),
        [frame(3, 1, 1), vec![0xff; 3]].concat(),
        frame(1, 1, 77),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ] {
        let mut peer = connect();
        peer.write_all(&bytes).unwrap();
        peers.push(peer);
    }
    // A peer that sends requests, and never reads the answers.
    let mut deaf = connect();
    deaf.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let bad = frame(0, 2, 1).repeat(1000);
    while deaf.write_all(&bad).is_ok() {}
    let before = testkit::memory::rollup(task.shim_pid(), "Rss");
    assert_eq!(task.status(""), Status::Running);
    assert_eq!(task.run_exec("e", "exit 4"), 4);
    assert!(before < 30 << 20, "{before} bytes");
    // The shim waits for it without spinning.
    let ticks = || cpu_ticks(task.shim_pid());
    let (begun, at) = (ticks(), Instant::now());
    while at.elapsed() < Duration::from_millis(500) {
        assert_eq!(task.status(""), Status::Running);
        std::thread::park_timeout(Duration::from_millis(100));
    }
    assert!(ticks() - begun < 25, "the loop spins: {} ticks", ticks() - begun);
    drop(peers);
}

/// User and system time in clock ticks, of 10 ms each (proc_pid_stat(5)).
fn cpu_ticks(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a living process");
    let fields: Vec<&str> = text[text.rfind(')').expect("a name") + 2..].split(' ').collect();
    fields[11].parse::<u64>().expect("a number") + fields[12].parse::<u64>().expect("a number")
}

/// As with rootlesskit, the shim is root only in a user namespace. What needs more rights is left out: its OOM score,
/// and cgroups that do not belong to the user.
#[test]
fn a_shim_of_a_user_without_privileges_runs_containers() {
    if !is_root("a user namespace for another user") {
        return;
    }
    const USER: u32 = 4242;
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (shim, program) = (dir.path().join("shim"), dir.path().join("as-user"));
    testkit::executable_copy(&testkit::shim_program(), &shim);
    // By its path, since busybox's `setpriv` has other flags. The state directory, which the daemon of that user would
    // have made, is given to the user.
    let script = format!(
        "#!/bin/sh\nchown -R {USER}:{USER} ../..\nexec /usr/bin/setpriv --reuid {USER} --regid {USER} --clear-groups \
         /usr/bin/unshare --user --map-root-user --mount {} \"$@\"\n",
        shim.display()
    );
    testkit::executable(&program, &script);
    let host = ShimHost::with_program(program);
    std::fs::set_permissions(host.dir(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // With and without a cgroup in the spec.
    for (id, cgroup) in [("unnamed", String::new()), ("named", format!("{}/named", host.cgroup()))] {
        let output = host.dir().join(id);
        let task = host
            .container(id, "id -u; cat /proc/self/uid_map; exec sleep 1000")
            .stdout(format!("file://{}", output.display()))
            .with(|container| container.spec["linux"]["cgroupsPath"] = json!(cgroup))
            .run();
        eventually("the container says who it is", || {
            let text = std::fs::read_to_string(&output).ok()?;
            let words: Vec<&str> = text.split_whitespace().collect();
            (words == ["0", "0", &USER.to_string(), "1"]).then_some(())
        });
        assert_eq!(task.run_exec("e", "exit 3"), 3);
        let status = std::fs::read_to_string(format!("/proc/{}/status", task.shim_pid())).unwrap();
        assert!(status.contains(&format!("\nUid:\t{USER}\t{USER}\t")), "{status}");
        task.end();
        eventually("the shim is gone", || task.connect_call().err());
    }
}
