//! Events and notices, and when they are published: a subscriber acts on an event, so a crash must not undo its
//! change.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use content::LocalStore;
use kv::Db;
use kv::testing::{Fault, Storage};
use metadata::{Event, Metadata, Notice, Options};
use types::{Namespace, Result};

use crate::fixture::*;
use crate::records::container;

/// Records on `storage`, over existing snapshots and a content store.
fn open(storage: &Storage, (dir, trees): (&Path, &Arc<Remembering>), options: Options) -> Metadata {
    let storage = storage.clone();
    let kv_options = kv::Options { cache_bytes: 0, ..kv::Options::default() };
    let db = Db::open_on(move || Ok(storage.clone()), kv_options).unwrap();
    let blobs = Arc::new(LocalStore::open(dir).unwrap());
    let snapshotters = BTreeMap::from([("remembering".to_owned(), Arc::clone(trees) as _)]);
    Metadata::open(db, blobs, snapshotters, options).unwrap()
}

fn prepare(store: &Metadata, key: &str) -> Result<()> {
    store.snapshots(default(), "remembering")?.prepare_relaxed(key, None, labels(&[])).map(drop)
}

fn lease(store: &Metadata, id: &str) -> Result<()> {
    store.leases(default()).create(&id.parse()?, labels(&[])).map(drop)
}

/// The kind of an event and its object.
fn short(event: &Event) -> String {
    match event {
        Event::SnapshotPrepared { key, .. } => format!("prepared {key}"),
        Event::ContainerCreated { id, .. } => format!("created {id}"),
        Event::ContainerDeleted { id } => format!("deleted {id}"),
        Event::ImageCreated { name, .. } => format!("image {name} created"),
        Event::ImageDeleted { name } => format!("image {name} deleted"),
        other => panic!("{other:?}"),
    }
}

fn told(fixture: &Fixture) -> Vec<String> {
    fixture.take_events().iter().map(|(_, event)| short(event)).collect()
}

#[test]
fn events_of_relaxed_changes_wait_for_the_disk() {
    /// Makes the earlier changes durable, or checks that they are.
    type Settle = fn(&Fixture) -> Result<()>;
    let ways: [(&str, &[&str], Settle); 4] = [
        ("a change with an event", &["created other"], |fixture| {
            fixture.store.containers(default()).create(container("other")).map(drop)
        }),
        ("a change without one", &[], |fixture| lease(&fixture.store, "lease")),
        ("a sync", &[], |fixture| fixture.store.sync()),
        ("being told that it is there", &[], |fixture| {
            let snapshots = fixture.store.snapshots(default(), "remembering")?;
            assert_eq!(kind(snapshots.prepare("a", None, labels(&[]))), types::ErrorKind::AlreadyExists);
            Ok(())
        }),
    ];
    for (way, further, settle) in ways {
        let storage = Storage::default();
        let fixture = Fixture::on(&storage);
        let containers = fixture.store.containers(default());
        containers.create(container("old")).unwrap();
        assert_eq!(told(&fixture), ["created old"]);
        fixture.take_notices();

        let syncs = storage.syncs();
        prepare(&fixture.store, "a").unwrap();
        containers.delete_relaxed(&"old".parse().unwrap()).unwrap();
        assert_eq!(storage.syncs(), syncs, "{way}: who is relaxed does not wait");
        assert_eq!(told(&fixture), [""; 0], "{way}: nobody hears of what may be undone");
        assert!(fixture.store.held_events().is_some(), "{way}");
        let held = fixture.take_notices().into_iter().filter(|notice| *notice == Notice::Held).count();
        assert_eq!(held, 2, "{way}: somebody is to see to them");

        settle(&fixture).unwrap();
        let mut expected = vec!["prepared a", "deleted old"];
        expected.extend(further);
        assert_eq!(told(&fixture), expected, "{way}");
        assert!(storage.syncs() > syncs, "{way}");
        assert_eq!(fixture.store.held_events(), None, "{way}: nothing waits any more");
    }
}

#[test]
fn events_without_subscribers_do_not_wait_for_the_disk() {
    let (storage, dir, trees) = (Storage::default(), tempfile::tempdir().unwrap(), Arc::default());
    let events: Arc<Mutex<Vec<String>>> = Arc::default();
    let notices: Arc<Mutex<Vec<Notice>>> = Arc::default();
    let heard = Arc::new(Mutex::new(false));
    let (sunk, noted, is_heard) = (Arc::clone(&events), Arc::clone(&notices), Arc::clone(&heard));
    let options = Options {
        sink: Box::new(move |_, event| sunk.lock().unwrap().push(short(&event))),
        is_heard: Box::new(move || *is_heard.lock().unwrap()),
        notice: Box::new(move |notice| noted.lock().unwrap().push(notice)),
        ..Options::default()
    };
    let store = open(&storage, (dir.path(), &trees), options);
    prepare(&store, "a").unwrap();
    assert!(!notices.lock().unwrap().contains(&Notice::Held));
    assert_eq!(*events.lock().unwrap(), ["prepared a"], "for who notes what happens");
    *heard.lock().unwrap() = true;
    prepare(&store, "b").unwrap();
    assert!(notices.lock().unwrap().contains(&Notice::Held));
    assert_eq!(events.lock().unwrap().len(), 1, "this one waits");
    store.sync().unwrap();
    assert_eq!(*events.lock().unwrap(), ["prepared a", "prepared b"]);
}

/// Whether the medium has, at this moment, the record of an event.
fn is_on_medium(storage: &Storage, below: (&Path, &Arc<Remembering>), event: &Event) -> bool {
    let left = open(&Storage::of(storage.after_crash(|_| false)), below, Options::default());
    let containers = left.containers(default());
    match event {
        Event::SnapshotPrepared { key, .. } => {
            left.snapshots(default(), "remembering").unwrap().stat(key).is_ok()
        }
        // It may be deleted by then, as the next event says.
        Event::ContainerCreated { id, .. } => id.as_str().starts_with("old") || containers.get(id).is_ok(),
        Event::ContainerDeleted { id } => containers.get(id).is_err(),
        _ => true,
    }
}

/// Every event is published once, in the order of the changes, with its change on the medium; also for writers that
/// share a batch.
#[test]
fn published_events_outlive_a_crash() {
    const THREADS: usize = 4;
    const ROUNDS: usize = 6;
    let (storage, dir, trees) = (Storage::default(), tempfile::tempdir().unwrap(), Arc::default());
    let events: Arc<Mutex<Vec<(String, bool)>>> = Arc::default();
    let sink = {
        let (storage, trees, events) = (storage.clone(), Arc::clone(&trees), Arc::clone(&events));
        let below = dir.path().join("below");
        Box::new(move |_: &Namespace, event: Event| {
            let is_there = is_on_medium(&storage, (&below, &trees), &event);
            events.lock().unwrap().push((short(&event), is_there));
        })
    };
    let store = open(&storage, (dir.path(), &trees), Options { sink, ..Options::default() });
    let all = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let store = &store;
                scope.spawn(move || {
                    let (containers, mut expected) = (store.containers(default()), Vec::new());
                    for round in 0..ROUNDS {
                        let id = format!("{thread}-{round}");
                        containers.create(container(&format!("old-{id}"))).unwrap();
                        prepare(store, &id).unwrap();
                        containers.delete_relaxed(&format!("old-{id}").parse().unwrap()).unwrap();
                        match (thread + round) % 4 {
                            0 => lease(store, &id).unwrap(),
                            1 => store.sync().unwrap(),
                            _ => {}
                        }
                        containers.create(container(&id)).unwrap();
                        expected.extend([format!("created old-{id}"), format!("prepared {id}")]);
                        expected.extend([format!("deleted old-{id}"), format!("created {id}")]);
                    }
                    expected
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    store.sync().unwrap();
    let (events, are_there): (Vec<_>, Vec<_>) = events.lock().unwrap().drain(..).unzip();
    for expected in all {
        let mine: Vec<_> = events.iter().filter(|event| expected.contains(event)).cloned().collect();
        assert_eq!(mine, expected);
    }
    assert_eq!(events.len(), THREADS * ROUNDS * 4);
    let wrong: Vec<_> = events.iter().zip(are_there).filter(|(_, is_there)| !is_there).collect();
    assert!(wrong.is_empty(), "told before they were on the medium: {wrong:?}");
}

/// An event that waits while the disk fails is published once, when the disk works again.
#[test]
fn a_disk_that_fails_holds_events_back() {
    for at in 0.. {
        let storage = Storage::default();
        let fixture = Fixture::on(&storage);
        lease(&fixture.store, "first").unwrap();
        prepare(&fixture.store, "a").unwrap();
        told(&fixture);
        storage.fail(Fault::Once(at));
        let changed = lease(&fixture.store, "second");
        let heard = told(&fixture);
        assert_eq!(heard.is_empty(), changed.is_err(), "operation {at}: {changed:?}, {heard:?}");
        let has_struck = storage.has_struck();
        storage.heal();
        fixture.store.sync().unwrap();
        let later = told(&fixture);
        assert_eq!([heard, later].concat(), ["prepared a"], "operation {at}: {changed:?}");
        if !has_struck {
            assert!(at > 10, "there were {at} operations");
            return;
        }
    }
}

#[test]
fn events_of_collected_objects_wait_for_the_disk() {
    let (storage, dir, trees) = (Storage::default(), tempfile::tempdir().unwrap(), Arc::default());
    let events: Arc<Mutex<Vec<(String, usize)>>> = Arc::default();
    let (sunk, looked_at) = (Arc::clone(&events), storage.clone());
    let options = Options {
        sink: Box::new(move |_, event| sunk.lock().unwrap().push((short(&event), looked_at.syncs()))),
        ..Options::default()
    };
    let store = open(&storage, (dir.path(), &trees), options);
    let expired = labels(&[("containerd.io/gc.expire", "2001-01-01T00:00:00Z")]);
    store.images(default()).create(image("old", &types::Digest::of(b"x"), expired), None).unwrap();
    events.lock().unwrap().clear();
    let syncs = storage.syncs();
    store.collect().unwrap();
    let events = events.lock().unwrap();
    assert_eq!(events[0].0, "image old deleted");
    assert!(events[0].1 > syncs);
}
