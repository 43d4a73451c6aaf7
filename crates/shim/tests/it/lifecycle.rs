//! Containers and processes from create to delete.

use std::collections::HashMap;

use api::shim::cgroups::v1;
use api::shim::runc::ProcessDetails;
use api::shim::task;
use api::shim::types::{RESOURCES_SPEC_URL, Status};
use types::ErrorKind;

use crate::fixture::{self, Config, Shim, is_possible};

#[test]
fn a_container_goes_from_create_to_delete() {
    if !is_possible() {
        return;
    }
    let config = Config::sh("exit 7");
    let mut shim = Shim::start(&config);
    let pid = shim.create(&config, ["", "", ""]);
    assert_eq!(shim.state("").unwrap().status(), Status::Created);
    assert!(shim.is_rootfs_mounted());
    assert_eq!(shim.start_process(""), pid);
    assert_eq!(shim.wait(""), 7);
    let state = shim.state("").unwrap();
    assert_eq!((state.status(), state.exit_status, state.pid), (Status::Stopped, 7, pid));
    let deleted = shim.delete("").unwrap();
    assert_eq!((deleted.exit_status, deleted.pid), (7, pid));
    assert!(deleted.exited_at.is_some());
    assert!(!shim.is_rootfs_mounted());
    assert_eq!(shim.state("").unwrap_err().kind(), ErrorKind::NotFound);
    let events = shim.events.clone();
    events.wait("delete event", |events| events.iter().any(|event| event.topic == "/tasks/delete"));
    assert_eq!(events.topics(), ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);
}

#[test]
fn signals_are_told_as_128_and_more() {
    if !is_possible() {
        return;
    }
    let mut shim = Shim::run(&Config::sleep());
    shim.exec("e", "kill -15 $$", false, ["", "", ""]).unwrap();
    shim.start_process("e");
    assert_eq!(shim.wait("e"), 128 + 15);
    shim.kill("", 9, false).unwrap();
    assert_eq!(shim.wait(""), 128 + 9);
    assert_eq!(shim.kill("", 9, false).unwrap_err().kind(), ErrorKind::NotFound);
    shim.finish();
}

#[test]
fn processes_are_added_and_told_apart() {
    if !is_possible() {
        return;
    }
    let mut shim = Shim::run(&Config::sleep());
    let stdio = ["", "", ""];
    shim.exec("long", "sleep 1000", false, stdio).unwrap();
    assert_eq!(shim.state("long").unwrap().status(), Status::Created);
    assert_eq!(shim.exec("long", "true", false, stdio).unwrap_err().kind(), ErrorKind::AlreadyExists);
    let pid = shim.start_process("long");
    assert_eq!(shim.try_start("long").unwrap_err().kind(), ErrorKind::FailedPrecondition);
    let details: Vec<(u32, Option<String>)> = shim
        .pids()
        .processes
        .into_iter()
        .map(|process| {
            let details =
                process.info.map(|info| api::shim::unpack::<ProcessDetails>(&info).unwrap().unwrap());
            (process.pid, details.map(|details| details.exec_id))
        })
        .collect();
    assert!(details.contains(&(pid, Some("long".into()))), "{details:?}");
    assert_eq!(shim.delete("long").unwrap_err().kind(), ErrorKind::FailedPrecondition);
    shim.kill("long", 9, false).unwrap();
    assert_eq!(shim.wait("long"), 137);
    assert_eq!(shim.delete("long").unwrap().exit_status, 137);
    assert_eq!(shim.state("long").unwrap_err().kind(), ErrorKind::NotFound);
    shim.finish();
}

#[test]
fn a_process_cannot_be_added_to_a_container_that_ended() {
    if !is_possible() {
        return;
    }
    let mut shim = Shim::run(&Config::sh("true"));
    shim.wait("");
    let refused = shim.exec("e", "true", false, ["", "", ""]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    shim.finish();
}

#[test]
fn no_exit_of_many_quick_processes_is_lost() {
    if !is_possible() {
        return;
    }
    let mut shim = Shim::run(&Config::sleep());
    for number in 0..50 {
        let id = format!("e{number}");
        assert_eq!(shim.exec_and_wait(&id, &format!("exit {number}")), number);
        assert_eq!(shim.events.wait_for_exit(&id).exit_status, number);
        shim.delete(&id).unwrap();
    }
    shim.finish();
}

#[test]
fn the_first_process_exits_after_all_others() {
    if !is_possible() {
        return;
    }
    let mut shim = Shim::run(&Config::sleep());
    for id in ["a", "b", "c"] {
        shim.exec(id, "sleep 1000", false, ["", "", ""]).unwrap();
        shim.start_process(id);
    }
    shim.kill("", 9, false).unwrap();
    assert_eq!(shim.wait(""), 137);
    shim.events.wait_for_exit(&shim.id.clone());
    let events = shim.events.wait("events", |_| true);
    let exits: Vec<_> = events
        .iter()
        .filter_map(|event| api::shim::unpack::<api::shim::events::TaskExit>(event.event.as_ref()?)?.ok())
        .collect();
    assert_eq!(exits.len(), 4);
    assert_eq!(exits[3].id, shim.id);
    shim.finish();
}

#[test]
fn a_container_that_was_never_started_can_be_deleted() {
    if !is_possible() {
        return;
    }
    let config = Config::sleep();
    let mut shim = Shim::start(&config);
    shim.create(&config, ["", "", ""]);
    assert_eq!(shim.delete("").unwrap().exit_status, 137);
    assert!(!shim.is_rootfs_mounted());
}

#[test]
fn a_create_that_fails_leaves_nothing_behind() {
    if !is_possible() {
        return;
    }
    let config = Config::sleep();
    let mut shim = Shim::start(&config);
    let missing = shim.try_create(&config, ["", "/nowhere/fifo", ""]).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound, "{}", missing.chain());
    assert!(!shim.is_rootfs_mounted());
    shim.create(&config, ["", "", ""]);
    assert_eq!(shim.try_create(&config, ["", "", ""]).unwrap_err().kind(), ErrorKind::AlreadyExists);
    shim.finish();
}

#[test]
fn a_program_that_is_not_there_is_said_so() {
    if !is_possible() {
        return;
    }
    let mut config = Config::sleep();
    config.args = vec!["/bin/no-such-program".into()];
    let mut shim = Shim::start(&config);
    let created = shim.try_create(&config, ["", "", ""]);
    let error = created.and_then(|_| shim.try_start("")).unwrap_err();
    assert!(error.chain().contains("no-such-program"), "{}", error.chain());
}

#[test]
fn pausing_stops_time_for_a_container() {
    if !is_possible() {
        return;
    }
    let mut shim = Shim::run(&Config::sleep());
    let id = shim.id.clone();
    shim.call::<()>("Pause", &task::PauseRequest { id: id.clone() }).unwrap();
    assert_eq!(shim.state("").unwrap().status(), Status::Paused);
    shim.call::<()>("Resume", &task::ResumeRequest { id }).unwrap();
    assert_eq!(shim.state("").unwrap().status(), Status::Running);
    shim.events.wait("resume event", |events| events.iter().any(|event| event.topic == "/tasks/resumed"));
    assert!(shim.events.topics().contains(&"/tasks/paused".to_owned()));
    shim.finish();
}

#[test]
fn limits_and_figures_are_those_of_the_cgroup() {
    if !is_possible() {
        return;
    }
    let mut shim = Shim::run(&Config::sleep());
    let id = shim.id.clone();
    let update = task::UpdateTaskRequest {
        id: id.clone(),
        resources: Some(prost_types::Any {
            type_url: RESOURCES_SPEC_URL.into(),
            value: br#"{"memory":{"limit":67108864},"pids":{"limit":99}}"#.to_vec(),
        }),
        annotations: HashMap::new(),
    };
    shim.call::<()>("Update", &update).unwrap();
    let stats: task::StatsResponse = shim.call("Stats", &task::StatsRequest { id }).unwrap();
    let stats = stats.stats.unwrap();
    if let Some(metrics) = api::shim::unpack::<v1::Metrics>(&stats) {
        let metrics = metrics.unwrap();
        assert_eq!(metrics.memory.unwrap().usage.unwrap().limit, 67_108_864);
        assert_eq!(metrics.pids.unwrap().limit, 99);
        assert!(metrics.cpu.unwrap().usage.unwrap().total > 0);
    }
    shim.finish();
}

#[test]
fn lost_memory_is_reported() {
    if !is_possible() {
        return;
    }
    let mut config = Config::sh("read x; head -c 100000000 /dev/zero | tr '\\0' x | sort >/dev/null; exit 3");
    config.args[2] = "x=$(dd if=/dev/zero bs=1M count=100 | tr '\\0' x); exit 3".into();
    config.edit = |spec| {
        spec["linux"]["resources"] = serde_json::json!({"memory": {"limit": 16 << 20, "swap": 16 << 20}});
    };
    let mut shim = Shim::run(&config);
    assert_eq!(shim.wait(""), 137);
    shim.events.wait("oom event", |events| events.iter().any(|event| event.topic == "/tasks/oom"));
    let record = std::fs::read_to_string(shim.bundle().join("exit.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!((record["status"].as_u64(), record["oom_killed"].as_bool()), (Some(137), Some(true)));
    shim.finish();
}

#[test]
fn a_container_begins_with_clean_signals() {
    if !is_possible() {
        return;
    }
    let mut shim = Shim::run(&Config::sleep());
    let script = "grep -q 'SigBlk:.0000000000000000' /proc/self/status && \
                  grep -q 'SigIgn:.0000000000000000' /proc/self/status";
    assert_eq!(shim.exec_and_wait("e", script), 0);
    shim.finish();
}

#[test]
fn unknown_calls_are_refused_as_unimplemented() {
    if !is_possible() {
        return;
    }
    let mut shim = Shim::start(&Config::sleep());
    let unknown = shim.call::<()>("Dance", &()).unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::Unimplemented);
    let checkpoint = shim.call::<()>("Checkpoint", &task::CheckpointTaskRequest::default()).unwrap_err();
    assert_eq!(checkpoint.kind(), ErrorKind::Unimplemented);
}

#[test]
fn containers_of_one_pod_share_a_shim() {
    if !is_possible() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let pod = || HashMap::from([("io.kubernetes.cri.sandbox-id", "pod-1")]);
    let first = fixture::bootstrap_by_flags(directory.path(), "one", pod());
    assert!(first.starts_with("unix:///run/containerd/s/"), "{first}");
    assert_eq!(fixture::bootstrap_by_flags(directory.path(), "two", pod()), first);
    let other = fixture::bootstrap_by_flags(directory.path(), "three", HashMap::new());
    assert_ne!(other, first);
    let written = std::fs::read_to_string(directory.path().join("two/address")).unwrap();
    assert_eq!(written, first);
    fixture::shutdown(&first);
    fixture::shutdown(&other);
    assert!(!std::path::Path::new(first.trim_start_matches("unix://")).exists());
}

#[test]
fn a_dead_shim_is_cleaned_up_after() {
    if !is_possible() {
        return;
    }
    let mut shim = Shim::run(&Config::sleep());
    let init = shim.state("").unwrap().pid;
    fixture::kill(shim.pid);
    let deleted = shim.delete_orphan();
    assert_eq!((deleted.pid, deleted.exit_status), (init, 137));
    assert!(!shim.is_rootfs_mounted());
    testkit::eventually("end of the container", || fixture::is_gone(init).then_some(()));
    let cgroup = format!("/sys/fs/cgroup/memory/hoist-shim-test/{}", shim.id);
    assert!(!std::path::Path::new(&cgroup).exists(), "{cgroup} is left");
}

#[test]
fn the_exit_of_a_dead_shims_container_is_on_disk() {
    if !is_possible() {
        return;
    }
    let mut shim = Shim::run(&Config::sh("exit 5"));
    shim.wait("");
    fixture::kill(shim.pid);
    assert_eq!(shim.delete_orphan().exit_status, 5);
}

#[test]
fn a_container_cannot_write_to_the_shims_program() {
    if !is_possible() {
        return;
    }
    let shim = Shim::run(&Config::sleep());
    let program = format!("/proc/{}/exe", shim.pid);
    let error = std::fs::OpenOptions::new().write(true).open(program).unwrap_err();
    assert!(
        matches!(
            error.kind(),
            std::io::ErrorKind::ReadOnlyFilesystem | std::io::ErrorKind::ExecutableFileBusy
        ),
        "{error}"
    );
    shim.finish();
}

#[test]
fn another_runtime_can_be_named() {
    if !is_possible() {
        return;
    }
    for runtime in ["runc", "crun"] {
        if !std::path::Path::new("/usr/bin").join(runtime).exists()
            && !std::path::Path::new("/usr/sbin").join(runtime).exists()
        {
            println!("skipped: needs {runtime}");
            continue;
        }
        let mut config = Config::sleep();
        config.runtime = runtime;
        let mut shim = Shim::run(&config);
        assert_eq!(shim.exec_and_wait("e", "exit 9"), 9);
        assert!(shim.pids().processes.len() == 1);
        shim.kill("", 9, false).unwrap();
        assert_eq!(shim.wait(""), 137);
        shim.finish();
    }
}
