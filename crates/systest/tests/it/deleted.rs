//! Containers of `hoist run` whose records other clients of the API delete: the engine removes all that it kept for
//! them.

use std::path::{Path, PathBuf};

use api::grpc::containers::DeleteContainerRequest;
use api::grpc::containers::containers_client::ContainersClient;
use api::grpc::leases::leases_client::LeasesClient;
use api::grpc::leases::{AddResourceRequest, CreateRequest, Resource};
use api::grpc::tasks::KillRequest;
use api::grpc::tasks::tasks_client::TasksClient;
use testkit::{Daemon, eventually, is_root};

use crate::cgroups::HIERARCHIES;
use crate::typed::{ask, on};

/// Starts a container, and returns its id and the directory of its files.
fn run(daemon: &Daemon, words: &[&str]) -> (String, PathBuf) {
    let id = daemon.hoist([&["run", "-d"], words].concat()).ok().text().to_owned();
    let files = daemon.root().join("containers/default").join(&id);
    assert!(files.join("json.log").exists());
    (id, files)
}

#[track_caller]
fn nothing_is_left(daemon: &Daemon, id: &str, files: &Path) {
    assert_eq!(daemon.hoist(["system", "check"]).ok().text(), "nothing is left over");
    assert!(!files.exists(), "its log and hosts");
    let trees = || daemon.ctr(["snapshots", "ls"]).ok().stdout;
    eventually("its tree is collected", || (!trees().contains(id)).then_some(()));
    daemon.hoist(["inspect", id]).expect_code(1);
}

pub(crate) fn delete_record(daemon: &Daemon, id: &str) {
    on(daemon, async |channel| {
        let delete = DeleteContainerRequest { id: id.to_owned() };
        ContainersClient::new(channel).delete(ask(delete)).await.expect("it was there");
    });
}

/// Makes a lease refer to a container's snapshot.
pub(crate) fn lease_tree(daemon: &Daemon, id: &str) {
    on(daemon, async |channel| {
        let mut leases = LeasesClient::new(channel);
        let lease = format!("of-{id}");
        let create = CreateRequest { id: lease.clone(), ..CreateRequest::default() };
        leases.create(ask(create)).await.expect("a new id");
        let tree = Resource { id: id.to_owned(), r#type: "snapshots/overlayfs".into() };
        let add = AddResourceRequest { id: lease, resource: Some(tree) };
        leases.add_resource(ask(add)).await.expect("the lease is there");
    });
}

fn kill(daemon: &Daemon, id: &str) {
    // Without `ctr`, which would look for the record first.
    on(daemon, async |channel| {
        let kill = KillRequest { container_id: id.to_owned(), signal: 9, ..KillRequest::default() };
        TasksClient::new(channel).kill(ask(kill)).await.expect("it runs");
    });
}

/// A client that deletes a record may keep the snapshot by a label or a lease.
#[test]
fn a_tree_that_a_client_holds_is_kept() {
    if !is_root("containers") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    let daemon = Daemon::with_busybox();
    let held_by = |hold: &str, id: &str| match hold.split_once('=') {
        Some(_) => drop(daemon.ctr(["snapshots", "label", id, hold]).ok()),
        None => lease_tree(&daemon, id),
    };
    for hold in ["containerd.io/gc.root=mine", "containerd.io/gc.expire=2100-01-01T00:00:00Z", "a lease"] {
        let words = ["create", "--network", "none", "busybox", "sleep", "1000"];
        let rests = daemon.hoist(words).ok().text().to_owned();
        let (runs, files) = run(&daemon, &["--network", "none", "busybox", "sleep", "1000"]);
        held_by(hold, &rests);
        held_by(hold, &runs);
        daemon.ctr(["containers", "rm", "--keep-snapshot", &rests]).ok();
        delete_record(&daemon, &runs);
        kill(&daemon, &runs);
        eventually("its end is settled", || (!files.exists()).then_some(()));
        daemon.ctr(["content", "prune", "references"]).ok();
        let trees = daemon.ctr(["snapshots", "ls"]).ok().stdout;
        assert!(trees.contains(&rests), "{hold}: one that rested\n{trees}");
        assert!(trees.contains(&runs), "{hold}: one that ran\n{trees}");
        if let Some((key, value)) = hold.split_once('=') {
            for id in [&rests, &runs] {
                let told = daemon.ctr(["snapshots", "info", id]).ok().stdout;
                assert!(told.contains(key) && told.contains(value), "{told}");
            }
        }
        assert_eq!(daemon.hoist(["system", "check"]).ok().text(), "nothing is left over");
    }
    assert!(!daemon.ctr(["leases", "ls"]).ok().stdout.contains("hoist.engine"), "ours went");
}

#[test]
fn what_hoist_made_goes_with_its_record() {
    if !is_root("a container with a network") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    let daemon = Daemon::with_busybox();
    for removal in [&["containers", "rm"][..], &["containers", "rm", "--keep-snapshot"]] {
        let published = ["--name", "web", "-p", "127.0.0.1::80", "-v", "crop:/crop", "--restart", "always"];
        let (id, files) = run(&daemon, &[&published[..], &["busybox", "sleep", "1000"]].concat());
        let running = daemon.ctr([removal, &[&id]].concat());
        assert_ne!(running.code, 0, "ctr asks for its task first\n{running}");
        daemon.hoist(["volume", "rm", "crop"]).expect_code(1).expect_stderr("web");
        daemon.hoist(["stop", "-t", "0", "web"]).ok();
        daemon.ctr([removal, &[&id]].concat()).ok();
        nothing_is_left(&daemon, &id, &files);
        daemon.hoist(["volume", "rm", "crop"]).ok();
    }
    // Another container has the name, and keeps it.
    let (id, files) = run(&daemon, &["--name", "web", "--network", "none", "busybox", "sleep", "1000"]);
    assert_eq!(daemon.hoist(["inspect", "-f", "{{.Id}}", "web"]).ok().text(), id);
    daemon.hoist(["rm", "-f", "web"]).ok();
    nothing_is_left(&daemon, &id, &files);
}

#[test]
fn a_restart_that_is_to_come_is_called_off_with_the_record() {
    if !is_root("containers") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    let daemon = Daemon::with_busybox();
    let (id, files) =
        run(&daemon, &["--name", "again", "--network", "none", "--restart", "always", "busybox", "false"]);
    // ctr refuses while the container has a task.
    eventually("its record is deleted", || (daemon.ctr(["containers", "rm", &id]).code == 0).then_some(()));
    nothing_is_left(&daemon, &id, &files);
    assert_eq!(daemon.ctr(["tasks", "ls", "-q"]).ok().text(), "");
    assert!(!daemon.log().contains("start a container again"), "{}", daemon.log());
}

#[test]
fn volumes_of_a_container_that_was_to_be_thrown_away_go_with_its_record() {
    if !is_root("a mount to fill a volume from") {
        return;
    }
    let daemon = Daemon::with_busybox();
    let id = daemon.hoist(["create", "--rm", "-v", "/own", "busybox", "true"]).ok().text().to_owned();
    let listed = || daemon.hoist(["volume", "ls", "-q"]).ok().text().to_owned();
    assert_ne!(listed(), "");
    daemon.ctr(["containers", "rm", &id]).ok();
    assert_eq!(listed(), "");
}

/// containerd deletes the record of a running container too, and its clients rely on that.
#[test]
fn deleting_the_record_of_a_running_container_frees_its_name_at_once() {
    if !is_root("a container with a network") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    let daemon = Daemon::with_busybox();
    let (id, files) = run(&daemon, &["--name", "lost", "-p", "127.0.0.1::80", "busybox", "sleep", "1000"]);
    delete_record(&daemon, &id);
    let (other, _) = run(&daemon, &["--name", "lost", "--network", "none", "busybox", "sleep", "1000"]);
    assert!(daemon.ctr(["tasks", "ls", "-q"]).ok().stdout.contains(&id), "it runs on");
    kill(&daemon, &id);
    eventually("its end is settled", || (!files.exists()).then_some(()));
    nothing_is_left(&daemon, &id, &files);
    assert_eq!(daemon.hoist(["inspect", "-f", "{{.Id}}", "lost"]).ok().text(), other);
}
