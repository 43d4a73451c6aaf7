//! Snapshots of namespaces.

use std::collections::BTreeMap;
use std::sync::Arc;

use content::LocalStore;
use kv::Db;
use metadata::{Caller, Event, Metadata};
use snapshot::{Kind, Native, Snapshotter};
use types::{ErrorKind, Filters};

use crate::fixture::{Fixture, caller, default, kind, labels, paths};

#[test]
fn a_chain_is_prepared_committed_and_removed() {
    let fixture = Fixture::new();
    let snapshots = fixture.store.snapshots(default(), "remembering").unwrap();
    let mounts = snapshots.prepare("active", None, labels(&[("a", "1")])).unwrap();
    assert_eq!(mounts, snapshots.mounts("active").unwrap());
    assert_eq!(kind(snapshots.prepare("active", None, labels(&[]))), ErrorKind::AlreadyExists);
    assert_eq!(kind(snapshots.prepare("x", Some("nobody"), labels(&[]))), ErrorKind::NotFound);
    snapshots.commit("base", "active", labels(&[("b", "2")]), None).unwrap();
    assert_eq!(kind(snapshots.stat("active")), ErrorKind::NotFound);
    let base = snapshots.stat("base").unwrap();
    assert_eq!((base.kind, base.parent.as_str()), (Kind::Committed, ""));
    assert_eq!(base.labels, labels(&[("b", "2"), ("below", "yes")]));

    snapshots.prepare("active", Some("base"), labels(&[])).unwrap();
    snapshots.view("view", Some("base"), labels(&[])).unwrap();
    assert_eq!(kind(snapshots.remove("base")), ErrorKind::FailedPrecondition);
    assert_eq!(kind(snapshots.commit("base", "active", labels(&[]), None)), ErrorKind::AlreadyExists);
    assert_eq!(kind(snapshots.commit("c", "view", labels(&[]), None)), ErrorKind::FailedPrecondition);
    assert_eq!(snapshots.usage("active").unwrap().inodes, 2);
    for (filter, expected) in [
        ("kind==view", vec!["view"]),
        ("parent==base", vec!["active", "view"]),
        ("name==base", vec!["base"]),
        ("labels.b", vec!["base"]),
    ] {
        let found = snapshots.list(&Filters::parse(&[filter]).unwrap()).unwrap();
        assert_eq!(found.iter().map(|snapshot| snapshot.key.as_str()).collect::<Vec<_>>(), expected);
    }
    snapshots.remove("view").unwrap();
    snapshots.remove("active").unwrap();
    snapshots.remove("base").unwrap();
    assert_eq!(kind(snapshots.remove("base")), ErrorKind::NotFound);
    assert_eq!(fixture.snapshotter.keys().len(), 3, "files go with the next collection");
    fixture.store.collect().unwrap();
    assert!(fixture.snapshotter.keys().is_empty());

    let told: Vec<String> = fixture
        .take_events()
        .into_iter()
        .map(|(_, event)| match event {
            Event::SnapshotPrepared { key, parent, .. } => format!("prepare {key} on {parent:?}"),
            Event::SnapshotCommitted { key, name, .. } => format!("commit {key} as {name}"),
            Event::SnapshotRemoved { key, .. } => format!("remove {key}"),
            other => format!("{other:?}"),
        })
        .collect();
    let expected = [
        "prepare active on \"\"",
        "commit active as base",
        "prepare active on \"base\"",
        "remove view",
        "remove active",
        "remove base",
    ];
    assert_eq!(told, expected);
}

#[test]
fn snapshots_without_key_or_with_too_long_labels_are_refused() {
    let fixture = Fixture::new();
    let snapshots = fixture.store.snapshots(default(), "remembering").unwrap();
    assert_eq!(kind(snapshots.prepare("", None, labels(&[]))), ErrorKind::InvalidArgument);
    assert_eq!(kind(snapshots.update("", &labels(&[]), &[])), ErrorKind::InvalidArgument);
    assert_eq!(kind(snapshots.update("none", &labels(&[]), &[])), ErrorKind::NotFound);
    let long = "v".repeat(4096);
    for refused in [
        snapshots.prepare("k", None, labels(&[("long", &long)])).map(drop),
        snapshots.view("k", None, labels(&[("long", &long)])).map(drop),
        snapshots.commit("c", "k", labels(&[("long", &long)]), None),
    ] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
        assert!(refused.chain().starts_with("info.Labels: label key and value"), "{}", refused.chain());
    }
}

#[test]
fn a_key_can_be_used_again_before_its_files_are_gone() {
    let fixture = Fixture::new();
    let snapshots = fixture.store.snapshots(default(), "remembering").unwrap();
    let first = snapshots.prepare("k", None, labels(&[])).unwrap();
    snapshots.remove("k").unwrap();
    assert_ne!(snapshots.prepare("k", None, labels(&[])).unwrap(), first);
}

#[test]
fn only_some_labels_reach_the_snapshotter() {
    let fixture = Fixture::new();
    let snapshots = fixture.store.snapshots(default(), "remembering").unwrap();
    let all =
        labels(&[("containerd.io/snapshot/max-size", "1"), ("containerd.io/gc.root", "now"), ("a", "b")]);
    snapshots.prepare("k", None, all.clone()).unwrap();
    assert_eq!(
        fixture.snapshotter.get("/k").unwrap().labels,
        labels(&[("containerd.io/snapshot/max-size", "1")])
    );
    let update = labels(&[("containerd.io/snapshot/max-size", "2"), ("a", "c")]);
    let after = snapshots.update("k", &update, &paths(&["labels.containerd.io/snapshot/max-size"])).unwrap();
    assert_eq!(after.labels["containerd.io/snapshot/max-size"], "2");
    assert_eq!(after.labels["a"], "b");
    assert_eq!(
        fixture.snapshotter.get("/k").unwrap().labels,
        labels(&[("containerd.io/snapshot/max-size", "2")])
    );
    assert_eq!(kind(snapshots.update("k", &update, &paths(&["parent"]))), ErrorKind::InvalidArgument);
}

#[test]
fn an_active_snapshot_without_parent_can_be_given_one_at_commit() {
    let fixture = Fixture::new();
    let snapshots = fixture.store.snapshots(default(), "remembering").unwrap();
    snapshots.prepare("a", None, labels(&[])).unwrap();
    snapshots.prepare("b", None, labels(&[])).unwrap();
    snapshots.commit("base", "a", labels(&[]), None).unwrap();
    assert_eq!(kind(snapshots.commit("top", "b", labels(&[]), Some("nobody"))), ErrorKind::NotFound);
    snapshots.commit("top", "b", labels(&[]), Some("base")).unwrap();
    assert_eq!(snapshots.stat("top").unwrap().parent, "base");
    assert_eq!(kind(snapshots.remove("base")), ErrorKind::FailedPrecondition);
    snapshots.prepare("c", Some("base"), labels(&[])).unwrap();
    let moved = snapshots.commit("c2", "c", labels(&[]), Some("top"));
    assert_eq!(kind(moved), ErrorKind::InvalidArgument);
}

#[test]
fn a_snapshotter_may_have_the_target_already() {
    let fixture = Fixture::new();
    let leased = fixture.lease("l", labels(&[]));
    let snapshots = fixture.store.snapshots(&leased, "remembering").unwrap();
    fixture.snapshotter.provide("sha256:chain");
    let target = labels(&[("containerd.io/snapshot.ref", "sha256:chain")]);
    for _ in 0..2 {
        assert_eq!(kind(snapshots.prepare("extract", None, target.clone())), ErrorKind::AlreadyExists);
        let stat = snapshots.stat("sha256:chain").unwrap();
        assert_eq!((stat.kind, stat.parent.as_str()), (Kind::Committed, ""));
        assert_eq!(kind(snapshots.stat("extract")), ErrorKind::NotFound);
    }
    fixture.store.collect().unwrap();
    snapshots.stat("sha256:chain").unwrap();
    // Its answer may take longer than a collection waits.
    fixture.snapshotter.break_down(Some("list_for_collection"));
    fixture.snapshotter.provide("sha256:late");
    let late = labels(&[("containerd.io/snapshot.ref", "sha256:late")]);
    assert_eq!(kind(snapshots.prepare("extract", None, late)), ErrorKind::AlreadyExists);
    snapshots.stat("sha256:late").unwrap();
    fixture.snapshotter.break_down(None);
    // Without the target it prepares as usual.
    let target = labels(&[("containerd.io/snapshot.ref", "sha256:other")]);
    snapshots.prepare("extract", Some("sha256:chain"), target).unwrap();
}

#[test]
fn a_held_snapshot_stays_with_its_ancestors_as_long_as_the_lease() {
    let fixture = Fixture::new();
    let own = fixture.store.snapshots(default(), "remembering").unwrap();
    own.prepare("a", None, labels(&[])).unwrap();
    own.commit("base", "a", labels(&[]), None).unwrap();
    own.prepare("b", Some("base"), labels(&[])).unwrap();
    own.commit("top", "b", labels(&[]), None).unwrap();
    let leased = fixture.lease("l", labels(&[]));
    let holding = fixture.store.snapshots(&leased, "remembering").unwrap();
    holding.hold("top").unwrap();
    fixture.store.collect().unwrap();
    assert!(fixture.has_snapshot("top") && fixture.has_snapshot("base"));
    fixture.store.leases(default()).delete(leased.lease.as_ref().unwrap()).unwrap();
    fixture.store.collect().unwrap();
    assert!(!fixture.has_snapshot("top") && !fixture.has_snapshot("base"));
    assert_eq!(kind(own.hold("top")), ErrorKind::NotFound);
}

#[test]
fn an_existing_committed_snapshot_joins_the_lease() {
    let fixture = Fixture::new();
    let own = fixture.store.snapshots(default(), "remembering").unwrap();
    own.prepare("a", None, labels(&[])).unwrap();
    own.commit("base", "a", labels(&[]), None).unwrap();
    let leased = fixture.lease("l", labels(&[]));
    let late = fixture.store.snapshots(&leased, "remembering").unwrap();
    late.prepare("b", None, labels(&[])).unwrap();
    assert_eq!(kind(late.commit("base", "b", labels(&[]), None)), ErrorKind::AlreadyExists);
    fixture.store.collect().unwrap();
    assert!(fixture.has_snapshot("base"));
}

#[test]
fn an_existing_active_snapshot_joins_the_lease() {
    let fixture = Fixture::new();
    let own = fixture.store.snapshots(default(), "remembering").unwrap();
    let leased = fixture.lease("l", labels(&[]));
    let late = fixture.store.snapshots(&leased, "remembering").unwrap();
    own.prepare("a", None, labels(&[])).unwrap();
    own.prepare("b", None, labels(&[])).unwrap();
    assert_eq!(kind(late.prepare("a", None, labels(&[]))), ErrorKind::AlreadyExists);
    assert_eq!(kind(late.view("b", None, labels(&[]))), ErrorKind::AlreadyExists);
    // Another caller takes the key while the snapshotter is asked.
    let store = fixture.store.clone();
    fixture.snapshotter.meanwhile("prepare", move || {
        store.snapshots(default(), "remembering").unwrap().view("c", None, labels(&[])).unwrap();
    });
    assert_eq!(kind(late.prepare("c", None, labels(&[]))), ErrorKind::AlreadyExists);
    assert_eq!(own.stat("c").unwrap().kind, Kind::View, "the other's");
    fixture.store.collect().unwrap();
    assert!(["a", "b", "c"].iter().all(|key| fixture.has_snapshot(key)));
    assert_eq!(fixture.snapshotter.keys().len(), 3, "what came too late is swept");
}

#[test]
fn a_target_that_another_records_first_joins_the_lease() {
    let fixture = Fixture::new();
    let own = fixture.store.snapshots(default(), "remembering").unwrap();
    own.prepare("others", None, labels(&[])).unwrap();
    let leased = fixture.lease("l", labels(&[]));
    let late = fixture.store.snapshots(&leased, "remembering").unwrap();
    fixture.snapshotter.provide("sha256:chain");
    // While the snapshotter lists its snapshots.
    let store = fixture.store.clone();
    fixture.snapshotter.meanwhile("list", move || {
        let own = store.snapshots(default(), "remembering").unwrap();
        own.commit("sha256:chain", "others", labels(&[]), None).unwrap();
    });
    let target = labels(&[("containerd.io/snapshot.ref", "sha256:chain")]);
    assert_eq!(kind(late.prepare("extract", None, target)), ErrorKind::AlreadyExists);
    fixture.snapshotter.meanwhile("nothing", || ());
    fixture.store.collect().unwrap();
    assert_eq!(own.stat("sha256:chain").unwrap().kind, Kind::Committed);
}

/// Commits with a lease that has ended, and then without one.
fn refuse_a_commit(store: &Metadata, snapshotter: &str) {
    let own = store.snapshots(default(), snapshotter).unwrap();
    own.prepare("a", None, labels(&[])).unwrap();
    let late = Caller::new(default()).with_lease("gone".parse().unwrap());
    let late = store.snapshots(&late, snapshotter).unwrap();
    assert_eq!(kind(late.commit("base", "a", labels(&[]), None)), ErrorKind::NotFound);
    own.mounts("a").expect("it is as it was");
    own.commit("base", "a", labels(&[]), None).unwrap();
    assert_eq!(own.stat("base").unwrap().kind, Kind::Committed);
    assert_eq!(kind(own.mounts("a")), ErrorKind::NotFound);
}

#[test]
fn a_commit_that_is_refused_leaves_the_active_snapshot() {
    refuse_a_commit(&Fixture::new().store, "remembering");
    // A snapshotter with its records in the same database.
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(dir.path().join("meta.db"), kv::Options::default()).unwrap();
    let native: Arc<dyn Snapshotter> = Arc::new(Native::open(&dir.path().join("trees"), db.clone()).unwrap());
    let blobs = Arc::new(LocalStore::open(dir.path().join("content")).unwrap());
    let snapshotters = BTreeMap::from([("native".to_owned(), native)]);
    let store = Metadata::open(db, blobs, snapshotters, metadata::Options::default()).unwrap();
    refuse_a_commit(&store, "native");
}

#[test]
fn a_record_whose_files_were_lost_does_not_hold_its_key() {
    let fixture = Fixture::new();
    let snapshots = fixture.store.snapshots(default(), "remembering").unwrap();
    snapshots.prepare("k", None, labels(&[])).unwrap();
    fixture.snapshotter.lose("/k");
    snapshots.prepare("k", None, labels(&[])).unwrap();
    assert!(fixture.has_snapshot("k"));
}

#[test]
fn an_unknown_snapshotter_is_not_found() {
    let fixture = Fixture::new();
    assert_eq!(kind(fixture.store.snapshots(caller(), "zfs")), ErrorKind::NotFound);
    assert_eq!(fixture.store.snapshotters().collect::<Vec<_>>(), ["remembering", "second"]);
}
