//! Namespaces, images, containers, sandboxes, leases: validation, updates and events.

use content::Expected;
use kv::testing::Storage;
use metadata::{Caller, Container, Event, Ready, Resource, Runtime, Sandbox};
use types::{ContainerId, Digest, ErrorKind, Filters, Namespace, Opaque, Result, Timestamp};

use crate::fixture::{self, Fixture, at_once, caller, default, image, kind, labels, paths};

fn opaque(value: &str) -> Opaque {
    Opaque { type_url: "test".to_owned(), value: value.as_bytes().to_vec() }
}

pub(super) fn container(id: &str) -> Container {
    Container {
        id: id.parse().unwrap(),
        labels: labels(&[("a", "1")]),
        image: "redis".to_owned(),
        runtime: Runtime { name: "io.containerd.hoist.v2".to_owned(), options: Some(opaque("options")) },
        spec: Some(opaque("{}")),
        snapshotter: "remembering".to_owned(),
        snapshot_key: id.to_owned(),
        sandbox_id: String::new(),
        extensions: [("x".to_owned(), opaque("x"))].into(),
        created: Timestamp::default(),
        updated: Timestamp::default(),
    }
}

fn names(found: &[metadata::Image]) -> Vec<&str> {
    found.iter().map(|image| image.name.as_str()).collect()
}

#[test]
fn images_are_created_listed_and_deleted() {
    let fixture = Fixture::new();
    let images = fixture.store.images(default());
    let digest = Digest::of(b"m");
    assert_eq!(kind(images.get("redis")), ErrorKind::NotFound);
    let made = fixture.image(&caller(), "redis", &digest, labels(&[("a", "1"), ("empty", "")]));
    assert_eq!(made.created.seconds, fixture::START);
    assert_eq!(made.labels, labels(&[("a", "1")]), "empty labels are not kept");
    assert_eq!(images.get("redis").unwrap(), made);
    assert_eq!(kind(images.create(made.clone(), None)), ErrorKind::AlreadyExists);
    fixture.image(&caller(), "nginx", &digest, labels(&[("a", "2")]));
    assert_eq!(names(&images.list(&Filters::all()).unwrap()), ["nginx", "redis"]);
    let filters = Filters::parse(&["labels.a==1"]).unwrap();
    assert_eq!(names(&images.list(&filters).unwrap()), ["redis"]);
    let filters = Filters::parse(&[format!("target.digest=={digest},name~=^n")]).unwrap();
    assert_eq!(names(&images.list(&filters).unwrap()), ["nginx"]);
    for (filters, found) in [
        (&["name==redis", "name==nginx", "name==none"][..], &["nginx", "redis"][..]),
        (&["name==redis,labels.a==1", "name==nginx,labels.a==1"], &["redis"]),
        (&["name==redis,name==nginx"], &[]),
    ] {
        assert_eq!(names(&images.list(&Filters::parse(filters).unwrap()).unwrap()), found, "{filters:?}");
    }
    assert_eq!(kind(images.delete("redis", Some(&Digest::of(b"other")))), ErrorKind::NotFound);
    images.delete("redis", Some(&digest)).unwrap();
    assert_eq!(kind(images.delete("redis", None)), ErrorKind::NotFound);

    let other = fixture.store.images(Namespace::new("other").unwrap());
    assert!(other.list(&Filters::all()).unwrap().is_empty());
    let topics: Vec<String> = fixture
        .take_events()
        .into_iter()
        .map(|(namespace, event)| match event {
            Event::ImageCreated { name, .. } => format!("{namespace} + {name}"),
            Event::ImageDeleted { name } => format!("{namespace} - {name}"),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(topics, ["default + redis", "default + nginx", "default - redis"]);
}

#[test]
fn images_refused_by_the_gate_are_not_recorded() {
    let fixture = Fixture::new();
    let images = fixture.store.images(default());
    let closed = image(fixture::CLOSED, &Digest::of(b"m"), labels(&[]));
    assert_eq!(kind(images.create(closed.clone(), None)), ErrorKind::PermissionDenied);
    assert_eq!(kind(images.get(&closed.name)), ErrorKind::NotFound);
    // An image that does not exist is `NotFound`, before the gate is asked.
    for mask in [&[][..], &["target"], &["labels.a"]] {
        assert_eq!(kind(images.update(&closed, &paths(mask), None)), ErrorKind::NotFound, "{mask:?}");
    }
    assert!(fixture.take_events().is_empty());
}

#[test]
fn incomplete_images_are_refused() {
    let fixture = Fixture::new();
    let images = fixture.store.images(default());
    let good = image("redis", &Digest::of(b"m"), labels(&[]));
    let mut bad = vec![good.clone(); 4];
    bad[0].name.clear();
    bad[1].target.size = 0;
    bad[2].target.media_type.clear();
    bad[3].labels = labels(&[("a", &"x".repeat(4096))]);
    for bad in bad {
        assert_eq!(kind(images.create(bad.clone(), None)), ErrorKind::InvalidArgument, "{bad:?}");
    }
}

#[test]
fn an_image_update_follows_its_mask() {
    let fixture = Fixture::new();
    let images = fixture.store.images(default());
    let (old, new) = (Digest::of(b"old"), Digest::of(b"new"));
    let mut update = image("redis", &new, labels(&[("a", "2"), ("c.d", "3")]));
    update.target.annotations = labels(&[("note", "n")]);
    assert_eq!(kind(images.update(&update, &[], None)), ErrorKind::NotFound);
    let made = fixture.image(&caller(), "redis", &old, labels(&[("a", "1"), ("b", "1")]));
    fixture.pass(std::time::Duration::from_secs(5));

    let after = images.update(&update, &paths(&["labels.a", "labels.b"]), None).unwrap();
    assert_eq!(after.labels, labels(&[("a", "2")]), "b is not in the update, so it is deleted");
    assert_eq!(after.target.digest, old);
    assert_eq!((after.created, after.updated.seconds), (made.created, made.created.seconds + 5));
    let after = images.update(&update, &paths(&["annotations.note", "labels.c.d"]), None).unwrap();
    assert_eq!(after.target.annotations, labels(&[("note", "n")]));
    assert_eq!(after.labels, labels(&[("a", "2"), ("c.d", "3")]));
    assert_eq!(images.update(&update, &paths(&["target"]), None).unwrap().target.digest, new);
    let error = images.update(&update, &paths(&["name"]), None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let all = images.update(&image("redis", &old, labels(&[])), &[], None).unwrap();
    assert_eq!((all.labels, all.created), (labels(&[]), made.created));
}

#[test]
fn containers_are_checked_updated_and_filtered() {
    let fixture = Fixture::new();
    let containers = fixture.store.containers(default());
    let mut bad = vec![container("c1"); 4];
    bad[0].runtime.name.clear();
    bad[1].spec = None;
    bad[2].snapshotter.clear();
    bad[3].extensions.insert(String::new(), opaque("x"));
    for bad in bad {
        assert_eq!(kind(containers.create(bad)), ErrorKind::InvalidArgument);
    }
    let made = containers.create(container("c1")).unwrap();
    assert_eq!(kind(containers.create(container("c1"))), ErrorKind::AlreadyExists);
    assert_eq!(containers.get(&made.id).unwrap(), made);

    let mut update = container("c1");
    update.labels = labels(&[("b", "2")]);
    update.spec = Some(opaque("{new}"));
    update.extensions.clear();
    let after = containers.update(&update, &paths(&["labels.b", "extensions.x"])).unwrap();
    assert_eq!(after.labels, labels(&[("a", "1"), ("b", "2")]));
    assert_eq!((after.spec, after.extensions.len()), (made.spec, 0));
    let after = containers.update(&update, &[]).unwrap();
    assert_eq!((after.spec, after.labels), (update.spec.clone(), update.labels.clone()));
    for path in ["runtime", "id", "snapshotter", "spec.x"] {
        assert_eq!(kind(containers.update(&update, &paths(&[path]))), ErrorKind::InvalidArgument, "{path}");
    }
    update.runtime.name = "other".to_owned();
    assert_eq!(kind(containers.update(&update, &[])), ErrorKind::InvalidArgument);

    for (filter, count) in [
        ("id==c1", 1),
        ("id==c1,labels.none", 0),
        ("id==\"/\"", 0),
        ("runtime.name~=hoist", 1),
        ("image==redis", 1),
        ("labels.b", 1),
        ("id==c2", 0),
    ] {
        let found = containers.list(&Filters::parse(&[filter]).unwrap()).unwrap();
        assert_eq!(found.len(), count, "{filter}");
    }
    containers.delete(&made.id).unwrap();
    assert_eq!(kind(containers.delete(&made.id)), ErrorKind::NotFound);
    assert_eq!(kind(containers.update(&container("c1"), &[])), ErrorKind::NotFound);
    assert_eq!(fixture.take_events().len(), 4);
}

#[test]
fn changes_of_a_container_at_once_are_all_kept() {
    let fixture = Fixture::new();
    let containers = fixture.store.containers(default());
    containers.create(container("c")).unwrap();
    let id = container("c").id;
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (containers, id) = (&containers, &id);
            scope.spawn(move || {
                for round in 0..25 {
                    let note = |container: &mut Container| {
                        container.extensions.insert(format!("{thread}-{round}"), opaque("noted"));
                        Ok(())
                    };
                    containers.change(id, note).unwrap();
                }
            });
        }
    });
    let kept = containers.get(&id).unwrap();
    assert!(
        (0..4).all(|thread| (0..25).all(|round| kept.extensions.contains_key(&format!("{thread}-{round}"))))
    );
    let refused = containers.change(&id, |_| Err(types::Error::invalid_argument("no")));
    assert!(refused.unwrap_err().is(ErrorKind::InvalidArgument));
    assert_eq!(containers.get(&id).unwrap(), kept);
}

#[test]
fn records_are_whole_after_the_store_is_opened_again() {
    let fixture = Fixture::new();
    let made = fixture.store.containers(default()).create(container("c1")).unwrap();
    let redis = fixture.image(&caller(), "redis", &Digest::of(b"m"), labels(&[("a", "1")]));
    let fixture = fixture.reopen();
    assert_eq!(fixture.store.containers(default()).get(&made.id).unwrap(), made);
    assert_eq!(fixture.store.images(default()).get("redis").unwrap(), redis);
}

fn sandbox(id: &str) -> Sandbox {
    Sandbox {
        id: id.parse().unwrap(),
        labels: labels(&[("a", "1")]),
        runtime: Runtime { name: "r".to_owned(), options: None },
        spec: Some(opaque("{}")),
        sandboxer: "shim".to_owned(),
        extensions: [("x".to_owned(), opaque("x"))].into(),
        created: Timestamp::default(),
        updated: Timestamp::default(),
    }
}

#[test]
fn sandboxes_are_records_too() {
    let fixture = Fixture::new();
    let sandboxes = fixture.store.sandboxes(default());
    let sandbox = sandbox("s1");
    let made = sandboxes.create(sandbox.clone()).unwrap();
    assert_eq!(sandboxes.get(&made.id).unwrap(), made);
    assert_eq!(kind(sandboxes.create(sandbox.clone())), ErrorKind::AlreadyExists);
    let update = Sandbox { labels: labels(&[("b", "2")]), ..sandbox.clone() };
    assert_eq!(sandboxes.update(&update, &paths(&["labels.b"])).unwrap().labels.len(), 2);
    let options = Runtime { name: "r".to_owned(), options: Some(opaque("o")) };
    let update = Sandbox { runtime: options.clone(), ..update };
    assert_eq!(sandboxes.update(&update, &paths(&["runtime"])).unwrap().runtime, options);
    let other = Sandbox { runtime: Runtime { name: "q".to_owned(), options: None }, ..update };
    assert_eq!(kind(sandboxes.update(&other, &[])), ErrorKind::InvalidArgument);
    let moved = sandboxes.update(&other, &paths(&["runtime"])).unwrap();
    assert_eq!(moved.runtime, other.runtime, "who names it means it");
    assert_eq!(kind(sandboxes.update(&sandbox, &paths(&["sandboxer"]))), ErrorKind::InvalidArgument);
    assert_eq!(sandboxes.list(&Filters::parse(&["labels.b==2"]).unwrap()).unwrap().len(), 1);
    sandboxes.delete(&made.id).unwrap();
    assert_eq!(kind(sandboxes.get(&made.id)), ErrorKind::NotFound);
}

#[test]
fn leases_hold_resources() {
    let fixture = Fixture::new();
    let leases = fixture.store.leases(default());
    let id = "l1".parse().unwrap();
    assert_eq!(kind(leases.resources(&id)), ErrorKind::NotFound);
    let made = leases.create(&id, labels(&[("a", "1")])).unwrap();
    assert_eq!(leases.get(&id).unwrap(), made);
    assert_eq!(kind(leases.create(&id, labels(&[]))), ErrorKind::AlreadyExists);
    let digest = Digest::of(b"m");
    let resources = [
        Resource::parse("content", &digest.to_string()).unwrap(),
        Resource::parse("images", "redis").unwrap(),
        Resource::parse("ingests", "some/ref").unwrap(),
        Resource::parse("snapshots/overlayfs", "key").unwrap(),
    ];
    for resource in &resources {
        leases.add_resource(&id, resource).unwrap();
        leases.add_resource(&id, resource).unwrap();
    }
    assert_eq!(leases.resources(&id).unwrap(), resources);
    leases.delete_resource(&id, &resources[0]).unwrap();
    leases.delete_resource(&id, &resources[0]).unwrap();
    assert_eq!(leases.resources(&id).unwrap().len(), 3);
    assert_eq!(kind(Resource::parse("content", "nonsense")), ErrorKind::InvalidArgument);
    assert_eq!(kind(Resource::parse("streams", "x")), ErrorKind::Unimplemented);
    assert_eq!(leases.list(&Filters::parse(&["id==l1"]).unwrap()).unwrap(), [made]);
    leases.delete(&id).unwrap();
    assert_eq!(kind(leases.delete(&id)), ErrorKind::NotFound);
    leases.create(&id, labels(&[])).unwrap();
    assert!(leases.resources(&id).unwrap().is_empty(), "a new lease of that name holds nothing");
}

#[test]
fn a_name_may_be_the_last_of_a_lease() {
    let fixture = Fixture::new();
    let leased = fixture.lease("l1", labels(&[]));
    let blob = fixture.blob(&leased, "blob", labels(&[]));
    let images = fixture.store.images(leased);
    images.assign_last(image("named", &blob, labels(&[]))).unwrap();
    assert_eq!(kind(fixture.store.leases(default()).get(&"l1".parse().unwrap())), ErrorKind::NotFound);
    fixture.store.collect().unwrap();
    assert!(fixture.has_blob(&blob), "its name keeps it");
    assert_eq!(kind(images.assign_last(image("other", &blob, labels(&[])))), ErrorKind::NotFound);
    assert_eq!(kind(images.get("other")), ErrorKind::NotFound);
}

#[test]
fn objects_for_an_unknown_lease_are_refused() {
    let fixture = Fixture::new();
    let caller = caller().with_lease("nobody".parse().unwrap());
    let content = fixture.store.content(&caller);
    assert_eq!(kind(content.begin(&"r".parse().unwrap(), Default::default())), ErrorKind::NotFound);
    let snapshots = fixture.store.snapshots(&caller, "remembering").unwrap();
    assert_eq!(kind(snapshots.prepare("k", None, labels(&[]))), ErrorKind::NotFound);
    assert_eq!(kind(snapshots.stat("k")), ErrorKind::NotFound);
}

#[test]
fn namespaces_come_and_go() {
    let fixture = Fixture::new();
    let namespaces = fixture.store.namespaces();
    let a = Namespace::new("a").unwrap();
    assert_eq!(kind(namespaces.get(&a)), ErrorKind::NotFound);
    namespaces.create(&a, labels(&[("x", "1")])).unwrap();
    assert_eq!(kind(namespaces.create(&a, labels(&[]))), ErrorKind::AlreadyExists);
    let update = labels(&[("x", ""), ("y", "2")]);
    assert_eq!(namespaces.update(&a, &update, &paths(&["labels.x"])).unwrap(), labels(&[]));
    assert_eq!(namespaces.update(&a, &update, &[]).unwrap(), labels(&[("y", "2")]));
    assert_eq!(kind(namespaces.update(&a, &update, &paths(&["name"]))), ErrorKind::InvalidArgument);

    let b = Namespace::new("b").unwrap();
    assert_eq!(namespaces.update(&b, &labels(&[]), &[]).unwrap(), labels(&[]));
    assert_eq!(kind(namespaces.update(&b, &update, &paths(&["name"]))), ErrorKind::InvalidArgument);
    assert_eq!(kind(namespaces.get(&b)), ErrorKind::NotFound);
    assert_eq!(namespaces.update(&b, &update, &paths(&["labels.y"])).unwrap(), labels(&[("y", "2")]));
    assert_eq!(namespaces.get(&b).unwrap(), labels(&[("y", "2")]), "a label makes a namespace");
    namespaces.delete(&b).unwrap();

    fixture.image(&caller(), "redis", &Digest::of(b"m"), labels(&[]));
    fixture.blob(&caller(), "blob", labels(&[]));
    fixture.store.containers(default()).create(container("c1")).unwrap();
    let snapshots = fixture.store.snapshots(default(), "remembering").unwrap();
    snapshots.prepare("k", None, labels(&[])).unwrap();
    fixture.lease("l", labels(&[]));
    let listed: Vec<String> = namespaces.list().unwrap().iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(listed, ["a", "default"], "the first record makes a namespace");
    let error = namespaces.delete(&default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    for what in ["images", "blobs", "containers", "snapshots on \"remembering\" snapshotter"] {
        assert!(error.message().contains(what), "{error}");
    }

    fixture.store.images(default()).delete("redis", None).unwrap();
    fixture.store.content(default()).delete(&Digest::of(b"blob")).unwrap();
    fixture.store.containers(default()).delete(&ContainerId::new("c1").unwrap()).unwrap();
    snapshots.remove("k").unwrap();
    // Sandboxes, like leases, do not block the deletion: they are deleted, too.
    let sandboxes = fixture.store.sandboxes(default());
    sandboxes.create(sandbox("s1")).unwrap();
    namespaces.delete(&default()).unwrap();
    assert_eq!(kind(namespaces.delete(&default())), ErrorKind::NotFound);
    assert!(fixture.store.leases(default()).list(&Filters::all()).unwrap().is_empty());
    assert!(sandboxes.list(&Filters::all()).unwrap().is_empty());
}

/// Waits for a queued change.
fn queued<T: Send + 'static>(ready: Ready<T>) -> Result<T> {
    let (tell, told) = std::sync::mpsc::channel();
    if let Some(driver) = ready.queue(move |done| tell.send(done).unwrap()) {
        driver.run();
    }
    told.recv().unwrap()
}

#[test]
fn queued_changes_equal_direct_ones() {
    let fixture = Fixture::new();
    let images = fixture.store.images(default());
    let made = image("redis", &Digest::of(b"m"), labels(&[("a", "b"), ("empty", "")]));
    let ready = at_once(images.ready_create(&made, None)).unwrap().expect("an open gate");
    let made = queued(ready).unwrap();
    assert_eq!(images.get("redis").unwrap(), made);
    assert_eq!(made.labels, labels(&[("a", "b")]));
    let again = at_once(images.ready_create(&made, None)).unwrap().unwrap();
    assert_eq!(kind(queued(again)), ErrorKind::AlreadyExists);
    assert_eq!(
        kind(at_once(images.ready_create(&image("", &Digest::of(b"m"), labels(&[])), None))),
        ErrorKind::InvalidArgument
    );
    let closed = image(fixture::CLOSED, &Digest::of(b"m"), labels(&[]));
    assert!(at_once(images.ready_create(&closed, None)).unwrap().is_none(), "the gate must be asked");

    let leases = fixture.store.leases(default());
    let lease = queued(leases.ready_create("l".parse().unwrap(), labels(&[])).unwrap()).unwrap();
    let resource = Resource::Image("redis".to_owned());
    queued(leases.ready_add(lease.id.clone(), resource.clone())).unwrap();
    assert_eq!(leases.resources(&lease.id).unwrap(), std::slice::from_ref(&resource));
    queued(leases.ready_remove(lease.id.clone(), resource)).unwrap();
    assert_eq!(leases.resources(&lease.id).unwrap(), []);
    queued(leases.ready_delete(lease.id.clone())).unwrap();
    assert_eq!(kind(queued(leases.ready_delete(lease.id))), ErrorKind::NotFound);

    let containers = fixture.store.containers(default());
    let made = queued(containers.ready_create(container("c1")).unwrap()).unwrap();
    assert_eq!(containers.get(&made.id).unwrap(), made);
    queued(containers.ready_delete(made.id.clone())).unwrap();
    assert_eq!(kind(queued(containers.ready_delete(made.id))), ErrorKind::NotFound);
    let wrong = images.ready_delete("redis".to_owned(), Some(Digest::of(b"other").to_string()));
    assert_eq!(kind(queued(wrong)), ErrorKind::NotFound);
    queued(images.ready_delete("redis".to_owned(), None)).unwrap();
    let events: Vec<Event> = fixture.take_events().into_iter().map(|(_, event)| event).collect();
    assert!(
        matches!(
            &events[..],
            [
                Event::ImageCreated { .. },
                Event::ContainerCreated { .. },
                Event::ContainerDeleted { .. },
                Event::ImageDeleted { .. }
            ]
        ),
        "{events:?}"
    );
}

#[test]
fn events_keep_the_order_of_the_changes() {
    let fixture = Fixture::new();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let fixture = &fixture;
            scope.spawn(move || {
                for round in 0..20 {
                    let name = format!("i{}", (thread + round) % 4);
                    let images = fixture.store.images(default());
                    let image = image(&name, &Digest::of(b"m"), labels(&[]));
                    if thread % 2 == 0 {
                        let _ = images.create(image, None);
                        let _ = images.delete(&name, None);
                    } else {
                        let _ = queued(
                            at_once(images.ready_create(&image, None)).unwrap().expect("an open gate"),
                        );
                        let _ = queued(images.ready_delete(name, None));
                    }
                }
            });
        }
    });
    let mut there = std::collections::HashSet::new();
    for (_, event) in fixture.take_events() {
        match event {
            Event::ImageCreated { name, .. } => assert!(there.insert(name.clone()), "{name} created twice"),
            Event::ImageDeleted { name } => {
                assert!(there.remove(&name), "{name} deleted before its creation");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(there.is_empty());
}

/// A caller that gets `AlreadyExists` goes on as if it had made the object, so a power cut must not undo it, even if
/// another caller made it relaxed.
#[test]
fn an_object_that_already_exists_is_on_disk() {
    /// Creates an object with a name, for the n-th time.
    type Make = fn(&Fixture, Caller, usize) -> Result<()>;
    let makes: [(&str, Make); 4] = [
        ("lease", |fixture, caller, _| {
            fixture.store.leases(caller).create(&"lease".parse()?, labels(&[])).map(drop)
        }),
        ("blob", |fixture, caller, _| {
            let expected = Expected::new(Digest::of(b"hello"), 5);
            let mut writer = fixture.store.content(caller).begin(&"r".parse()?, expected.clone())?;
            writer.write(b"hello")?;
            writer.commit(expected, labels(&[])).map(drop)
        }),
        ("active snapshot", |fixture, caller, _| {
            let snapshots = fixture.store.snapshots(caller, "remembering")?;
            snapshots.prepare("active", None, labels(&[])).map(drop)
        }),
        ("committed snapshot", |fixture, caller, at| {
            let snapshots = fixture.store.snapshots(caller, "remembering")?;
            snapshots.commit("base", &at.to_string(), labels(&[]), None)
        }),
    ];
    for (what, make) in makes {
        let storage = Storage::default();
        let fixture = Fixture::on(&storage);
        for at in 0..3 {
            let snapshots = fixture.store.snapshots(default(), "remembering").unwrap();
            snapshots.prepare(&at.to_string(), None, labels(&[])).unwrap();
        }
        make(&fixture, caller().relaxed(), 0).unwrap();
        let syncs = storage.syncs();
        assert_eq!(kind(make(&fixture, caller().relaxed(), 1)), ErrorKind::AlreadyExists, "{what}");
        assert_eq!(storage.syncs(), syncs, "{what}: who is relaxed does not wait");
        assert_eq!(kind(make(&fixture, caller(), 1)), ErrorKind::AlreadyExists, "{what}");
        let fixture = fixture.after_power_cut(&storage);
        assert_eq!(kind(make(&fixture, caller(), 2)), ErrorKind::AlreadyExists, "{what}: it is gone");
    }
}
