//! Layers that a client unpacks in parallel over the API: each into a snapshot without a parent, which gets it at its
//! commit (containerd's `rebase`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use api::grpc::diff::ApplyRequest;
use api::grpc::diff::diff_client::DiffClient;
use api::grpc::snapshots::snapshots_client::SnapshotsClient;
use api::grpc::snapshots::{CommitSnapshotRequest, PrepareSnapshotRequest, ViewSnapshotRequest};
use api::grpc::types::Mount;
use testkit::layout::tar_of;
use testkit::{Daemon, is_root};
use tonic::transport::Channel;

use crate::mounts::put;
use crate::typed::{ask, on};

const SNAPSHOTTER: &str = "overlayfs";

/// The mounts by which containerd's client says that the parent comes with the commit, so that deletions become
/// whiteouts.
fn upper_alone(mounts: &[Mount]) -> Vec<Mount> {
    let [bind] = mounts else { panic!("one mount: {mounts:?}") };
    assert_eq!(bind.r#type, "bind", "{bind:?}");
    let mut options = bind.options.clone();
    options.retain(|word| word != "rbind");
    options.push(format!("upperdir={}", bind.source));
    vec![Mount { r#type: "overlay".into(), source: "overlay".into(), options, ..Mount::default() }]
}

/// Garbage collection keeps objects with these labels.
fn kept() -> BTreeMap<String, String> {
    [("containerd.io/gc.root".to_owned(), "now".to_owned())].into()
}

async fn unpack(channel: &Channel, key: &str, layer: &[u8], parent: &str) {
    let mut snapshots = SnapshotsClient::new(channel.clone());
    let prepare = PrepareSnapshotRequest {
        snapshotter: SNAPSHOTTER.into(),
        key: format!("{key}-active"),
        labels: kept(),
        ..PrepareSnapshotRequest::default()
    };
    let mounts = snapshots.prepare(ask(prepare)).await.expect("a snapshot").into_inner().mounts;
    let apply = ApplyRequest {
        diff: Some(put(channel, layer).await),
        mounts: if parent.is_empty() { mounts } else { upper_alone(&mounts) },
        ..ApplyRequest::default()
    };
    DiffClient::new(channel.clone()).apply(ask(apply)).await.expect("a layer that is applied");
    let commit = CommitSnapshotRequest {
        snapshotter: SNAPSHOTTER.into(),
        name: key.into(),
        key: format!("{key}-active"),
        labels: kept(),
        parent: parent.into(),
    };
    snapshots.commit(ask(commit)).await.expect("a committed snapshot");
}

/// Paths in the tree of a view.
fn names(tree: &[types::Mount]) -> Vec<PathBuf> {
    let tree = linux::mount::open_to_read(tree).expect("a tree");
    let root = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&tree)));
    let mut found = Vec::new();
    walk(&root, Path::new(""), &mut found);
    found.sort();
    found
}

fn walk(root: &Path, below: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(root.join(below)).expect("a directory") {
        let entry = entry.expect("an entry");
        let path = below.join(entry.file_name());
        if entry.file_type().expect("a file").is_dir() {
            walk(root, &path, found);
        }
        found.push(path);
    }
}

#[test]
fn layers_that_get_their_parents_later_delete_what_is_in_them() {
    if !is_root("mounts") {
        return;
    }
    for layers in ["archives", "directories"] {
        let daemon = Daemon::start_with(&[], &format!("[snapshots]\nlayers = {layers:?}\n"));
        let base = tar_of(&[("a/", ""), ("a/gone", "1"), ("a/kept", "2"), ("b/", ""), ("b/old", "3")]);
        let next =
            tar_of(&[("a/", ""), ("a/.wh.gone", ""), ("b/", ""), ("b/.wh..wh..opq", ""), ("b/new", "4")]);
        on(&daemon, async |channel| {
            unpack(&channel, "base", &base, "").await;
            unpack(&channel, "next", &next, "base").await;
            let view = ViewSnapshotRequest {
                snapshotter: SNAPSHOTTER.into(),
                key: "view".into(),
                parent: "next".into(),
                labels: kept(),
            };
            let mounts =
                SnapshotsClient::new(channel).view(ask(view)).await.expect("a view").into_inner().mounts;
            let own = |mount: Mount| types::Mount {
                kind: mount.r#type,
                source: mount.source,
                target: mount.target,
                options: mount.options,
            };
            let tree: Vec<types::Mount> = mounts.into_iter().map(own).collect();
            let expected = ["a", "a/kept", "b", "b/new"].map(PathBuf::from);
            assert_eq!(names(&tree), expected, "{layers}: {tree:?}");
        });
    }
}
