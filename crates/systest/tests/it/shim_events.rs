//! Events of shims are never lost; shims and daemons killed at any instant leave a state that the next daemon can
//! settle.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use api::shim::events::TaskExit;
use prost::Message;
use testkit::{ShimHost, eventually, is_root};

fn topics_of<'a>(told: &'a [(String, String)], ids: &[&str]) -> Vec<&'a str> {
    told.iter().filter(|(_, id)| ids.contains(&id.as_str())).map(|(topic, _)| topic.as_str()).collect()
}

#[test]
fn a_daemon_that_was_away_hears_everything_once_and_in_order() {
    if !is_root("containers") {
        return;
    }
    const CONTAINERS: usize = 8;
    const EXECS: usize = 10;
    let host = ShimHost::new();
    let before = host.listen();
    let tasks: Vec<_> = (0..CONTAINERS)
        .map(|number| {
            // In fours, so that both lone shims and those of pods are there.
            let container = host.container(&format!("c{number}"), "exec sleep 1000");
            if number < 4 { container.in_group("io.containerd.runc.v2.group", "pod") } else { container }
                .run()
        })
        .collect();
    before.wait_for("/tasks/start", "c7");
    let mut told = before.told();
    drop(before);

    std::thread::scope(|scope| {
        for (number, task) in tasks.iter().enumerate() {
            scope.spawn(move || {
                for exec in 0..EXECS {
                    assert_eq!(task.run_exec(&format!("c{number}-e{exec}"), "exit 1"), 1);
                }
                task.kill("", 9).unwrap();
                task.wait("");
                task.delete("").unwrap();
            });
        }
    });
    for number in 0..CONTAINERS {
        let kept = std::fs::metadata(host.bundle(&format!("c{number}")).join("events")).unwrap().len();
        assert!(kept > 0, "c{number} has told nobody, so it is on disk");
    }

    let after = host.listen();
    for number in 0..CONTAINERS {
        after.wait_for("/tasks/delete", &format!("c{number}"));
    }
    told.extend(after.told());
    for number in 0..CONTAINERS {
        let id = format!("c{number}");
        assert_eq!(
            topics_of(&told, &[&id]),
            ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"],
            "{id}"
        );
        for exec in 0..EXECS {
            let of = topics_of(&told, &[&format!("{id}-e{exec}")]);
            assert_eq!(of, ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]);
        }
        let of_all: Vec<&(String, String)> =
            told.iter().filter(|(_, of)| *of == id || of.starts_with(&format!("{id}-"))).collect();
        assert_eq!(of_all[of_all.len() - 2], &("/tasks/exit".to_owned(), id.clone()));
    }
    // Numbered without gaps, shim by shim.
    let mut newest = BTreeMap::<String, u64>::new();
    for event in after.all() {
        let value =
            |key: &str| event.metadata.iter().find(|(found, _)| found == key).map(|(_, value)| value.clone());
        let source = value("hoist-event-source").expect("a source");
        let number: u64 = value("hoist-event-sequence").and_then(|text| text.parse().ok()).expect("a number");
        if let Some(before) = newest.insert(source, number) {
            assert_eq!(number, before + 1);
        }
    }
    assert_eq!(newest.len(), 5, "four lone shims and one of a pod");
    for number in 0..CONTAINERS {
        eventually("the journal is empty", || {
            let kept = std::fs::metadata(host.bundle(&format!("c{number}")).join("events")).unwrap().len();
            (kept == 0).then_some(())
        });
    }
    for task in &tasks {
        task.shutdown().unwrap_or_default();
    }
}

/// Who hears of an exit may be asked for it after both have died.
#[test]
fn an_exit_is_on_disk_before_its_event_leaves() {
    if !is_root("containers") {
        return;
    }
    const CONTAINERS: usize = 50;
    let host = ShimHost::new();
    let (bundles, seen) = (host.bundle(""), Arc::new(Mutex::new(BTreeMap::new())));
    let noted = seen.clone();
    let events = host.listen_with(move |event| {
        if event.envelope.topic == "/tasks/exit" {
            let value = event.envelope.event.as_ref().expect("an event").value.as_slice();
            let exit = TaskExit::decode(value).expect("an exit");
            let record = std::fs::read_to_string(bundles.join(&exit.container_id).join("exit.json"));
            noted.lock().expect("no panic elsewhere").insert(exit.container_id, record.ok());
        }
    });
    for number in 0..CONTAINERS {
        let task = host.container(&format!("c{number}"), "exit 42").run();
        assert_eq!(task.wait(""), 42);
        events.wait_for("/tasks/exit", &format!("c{number}"));
        task.end();
    }
    let seen = seen.lock().expect("no panic elsewhere");
    assert_eq!(seen.len(), CONTAINERS);
    for (id, record) in &*seen {
        let record: serde_json::Value =
            serde_json::from_str(record.as_ref().expect(id)).expect("a record that is whole");
        assert_eq!(record["status"], 42, "{id}: {record}");
    }
}

#[test]
fn events_of_a_shim_that_died_too_are_sent_by_delete() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let task = host.container("both", "exit 42").run();
    assert_eq!(task.wait(""), 42);
    task.kill_shim();
    let events = host.listen();
    let deleted = host.delete_orphan("both");
    assert_eq!(deleted.exit_status, 42, "recorded before anybody could be told");
    assert_eq!(topics_of(&events.told(), &["both"]), ["/tasks/create", "/tasks/start", "/tasks/exit"]);
    // Asked again, it answers the same.
    assert_eq!(host.delete_orphan("both").exit_status, 42);
    // A shim that was killed before it renamed the record has left it in the space that was kept for it.
    let record = host.bundle("both").join("exit.json");
    std::fs::rename(&record, host.bundle("both").join(".exit.json.new")).unwrap();
    assert_eq!(host.delete_orphan("both").exit_status, 42);
    assert!(record.exists(), "the daemon reads it as well");
    // A file system without power in the middle of a write may show it later, in its length.
    for damaged in [&[b' '; 1024][..], b"", b"{\"version\": 1, \"id"] {
        std::fs::write(&record, damaged).unwrap();
        assert_eq!(host.delete_orphan("both").exit_status, 137);
    }
}

/// The shim is killed while containers and processes come and go. What it leaves is settled by `delete`:
/// the container's own end if that was recorded, 137 if not; and nothing stays.
#[test]
fn a_shim_killed_at_any_instant_leaves_what_can_be_settled() {
    if !is_root("containers") {
        return;
    }
    let host = ShimHost::new();
    let _events = host.listen();
    for round in 0..24_u32 {
        let id = format!("round{round}");
        // With a root file system that the shim mounts.
        let container = host.container(&id, "sleep 0.01; exit 5").with(|container| {
            let root = container.spec["root"]["path"].as_str().expect("a path").to_owned();
            container.spec["root"]["path"] = "rootfs".into();
            container.request.rootfs = vec![api::shim::types::Mount {
                r#type: "bind".into(),
                source: root,
                options: vec!["rbind".into(), "ro".into()],
                ..Default::default()
            }];
        });
        let address = container.start_shim();
        let shim = testkit::ShimTask::at(&id, &address);
        let pid = shim.shim_pid();
        let killer = std::thread::spawn(move || {
            // Spread over the whole of create, start, exec, exit and delete.
            std::thread::park_timeout(std::time::Duration::from_micros(u64::from(round) * 2_000));
            testkit::run(std::process::Command::new("kill").args(["-KILL", &pid.to_string()]))
        });
        // Any of these may find the shim dead; none may hang.
        let _either = shim.call::<api::shim::task::CreateTaskResponse>("Create", &container.request);
        let _either = shim.try_start("");
        let _either = shim.exec("e", "exit 3", |_| {});
        let _either = shim.try_start("e");
        let waited = shim.try_wait("");
        killer.join().unwrap();
        eventually("the shim is dead", || shim.connect_call().err());
        assert!(std::os::unix::net::UnixStream::connect(address.strip_prefix("unix://").unwrap()).is_err());

        let settled = host.delete_orphan(&id);
        assert!([5, 137].contains(&settled.exit_status), "round {round}: {settled:?}");
        if let Ok(waited) = waited {
            assert_eq!(waited, settled.exit_status, "round {round}: what was told is what is recorded");
        }
        assert_eq!(left_of(&host, &id), Vec::<String>::new(), "round {round}");
    }
}

/// Processes, cgroups and mounts of a container.
fn left_of(host: &ShimHost, id: &str) -> Vec<String> {
    let mut left = Vec::new();
    let cgroup = format!("{}/{id}", host.cgroup());
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let path = hierarchy.path().join(cgroup.trim_start_matches('/'));
        if path.exists() {
            left.push(path.display().to_string());
        }
    }
    if Path::new("/sys/fs/cgroup").join(cgroup.trim_start_matches('/')).exists() {
        left.push(cgroup);
    }
    let bundle = host.bundle(id).display().to_string();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    left.extend(mounts.lines().filter(|line| line.contains(&bundle)).map(str::to_owned));
    if host.bundle(id).join("runtime").join(id).exists() {
        left.push("the runtime's state".to_owned());
    }
    left
}
