//! `hoist system check`: what belongs to no container, of every kind, is found, and goes when it is told to.

use std::fs;
use std::process::{Command, Stdio};

use api::grpc::containers::DeleteContainerRequest;
use api::grpc::containers::containers_client::ContainersClient;
use api::grpc::snapshots::PrepareSnapshotRequest;
use api::grpc::snapshots::snapshots_client::SnapshotsClient;
use testkit::{Daemon, images, is_root, run};

use crate::cgroups::HIERARCHIES;
use crate::typed::{ask, on};

/// The record of a container that runs is taken away, so all else that it is made of belongs to nothing.
#[test]
fn system_check_repairs_every_kind_of_leftover() {
    if !is_root("a container with a network") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    let daemon = Daemon::start();
    daemon.hoist(["load".as_ref(), "-i".as_ref(), images::busybox_archive().as_os_str()]).ok();
    let kept = ["run", "-d", "--name", "kept", "-p", "127.0.0.1::81", "busybox", "sleep", "1000"];
    daemon.hoist(kept).ok();
    let lost =
        ["run", "-d", "--name", "lost", "-p", "127.0.0.1::80", "-v", "/data", "busybox", "sleep", "1000"];
    let id = daemon.hoist(lost).ok().text().to_owned();
    let pid = daemon.hoist(["inspect", "-f", "{{.State.Pid}}", "lost"]).ok().text().to_owned();
    let link = daemon.hoist(["exec", "lost", "cat", "/sys/class/net/eth0/iflink"]).ok().text().to_owned();
    assert_eq!(daemon.hoist(["system", "check"]).ok().text(), "nothing is left over");

    let half = "f".repeat(64);
    on(&daemon, async |channel| {
        let mut containers = ContainersClient::new(channel.clone());
        containers.delete(ask(DeleteContainerRequest { id: id.clone() })).await.unwrap();
        // Of one that was never made whole.
        let mut snapshots = SnapshotsClient::new(channel);
        let labels = [("hoist.engine/container", half.as_str()), ("containerd.io/gc.root", "now")];
        let prepare = PrepareSnapshotRequest {
            snapshotter: "overlayfs".into(),
            key: half.clone(),
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            ..PrepareSnapshotRequest::default()
        };
        snapshots.prepare(ask(prepare)).await.unwrap();
    });
    let folder = daemon.root().join("containers/default").join(&half);
    fs::create_dir(&folder).expect("a writable directory");
    // A shim that nobody calls is told by its words alone.
    let address = daemon.socket();
    let mut stray = Command::new("sh")
        .args(["-c", "read nothing", "containerd-shim-hoist-v2", "-namespace", "default", "-id", "nobody"])
        .args(["-socket", "/nowhere", "-address"])
        .arg(&address)
        .arg("serve")
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell starts");

    let found = daemon.hoist(["system", "check"]).expect_code(1);
    let kinds = [
        format!("network attachment of {id}"),
        format!("packet filter rule of {id}"),
        "network interface ".to_owned(),
        "network namespace ".to_owned(),
        format!("files of a container, {}", folder.display()),
        format!("tree of a container, snapshot {half}"),
        "cgroup /".to_owned(),
        format!("mount on {}", daemon.state().join("tasks/default").join(&id).join("rootfs").display()),
        format!("shim of default/nobody, process {}", stray.id()),
    ];
    for kind in &kinds {
        assert!(found.stdout.contains(kind), "no {kind:?}\n{found}");
    }
    let kernel = || -> Vec<String> {
        let rules = run(Command::new("nft").args(["list", "ruleset"])).ok().stdout;
        let links = run(Command::new("ip").args(["-o", "link"])).ok().stdout;
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("a proc file");
        let of_link = format!("{link}: ");
        let lines = rules.lines().chain(mounts.lines()).filter(|line| line.contains(&id));
        lines.chain(links.lines().filter(|line| line.starts_with(&of_link))).map(str::to_owned).collect()
    };
    assert!(kernel().len() > 2, "rules, a link and mounts: {:?}", kernel());

    let repaired = daemon.hoist(["system", "check", "--repair"]).ok();
    for kind in &kinds {
        assert!(repaired.stdout.contains(kind), "no {kind:?}\n{repaired}");
    }
    assert_eq!(daemon.hoist(["system", "check"]).ok().text(), "nothing is left over");
    stray.wait().expect("a child of ours");
    assert_eq!(kernel(), Vec::<String>::new());
    assert!(!folder.exists());
    let trees = daemon.ctr(["snapshots", "ls"]).ok();
    assert!(!trees.stdout.contains(&half), "{trees}");
    assert!(!std::path::Path::new("/proc").join(&pid).exists(), "its processes are gone");
    // What has a record is not touched.
    assert_eq!(daemon.hoist(["inspect", "-f", "{{.State.Status}}", "kept"]).ok().text(), "running");
    daemon.hoist(["exec", "kept", "ip", "addr", "show", "eth0"]).ok();
    daemon.ctr(["tasks", "rm", "--force", &id]);
}
