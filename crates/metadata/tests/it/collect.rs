//! Which objects a collection keeps and which it removes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use content::{Expected, Store as _};
use kv::testing::{Fault, Storage};
use metadata::{Caller, Container, Event, Notice, Resource, Runtime, Sandbox};
use types::{Digest, ErrorKind, Filters, LeaseId, Namespace, Opaque, Timestamp};

use crate::fixture::{Fixture, caller, default, image, kind, labels, paths};

const ROOT: (&str, &str) = ("containerd.io/gc.root", "yes");

fn container(id: &str, with: &[(&str, &str)], snapshot_key: &str) -> Container {
    Container {
        id: id.parse().unwrap(),
        labels: labels(with),
        image: String::new(),
        runtime: Runtime { name: "r".to_owned(), options: None },
        spec: Some(Opaque { type_url: "s".to_owned(), value: Vec::new() }),
        snapshotter: "remembering".to_owned(),
        snapshot_key: snapshot_key.to_owned(),
        sandbox_id: String::new(),
        extensions: Default::default(),
        created: Timestamp::default(),
        updated: Timestamp::default(),
    }
}

fn sandbox(id: &str, with: &[(&str, &str)]) -> Sandbox {
    Sandbox {
        id: id.parse().unwrap(),
        labels: labels(with),
        runtime: Runtime { name: "r".to_owned(), options: None },
        spec: None,
        sandboxer: "shim".to_owned(),
        extensions: Default::default(),
        created: Timestamp::default(),
        updated: Timestamp::default(),
    }
}

#[test]
fn an_image_keeps_what_its_labels_lead_to() {
    let fixture = Fixture::new();
    let snapshots = fixture.store.snapshots(default(), "remembering").unwrap();
    snapshots.prepare("a", None, labels(&[])).unwrap();
    snapshots.commit("chain1", "a", labels(&[]), None).unwrap();
    snapshots.prepare("b", Some("chain1"), labels(&[])).unwrap();
    snapshots.commit("chain2", "b", labels(&[]), None).unwrap();
    snapshots.prepare("stray", None, labels(&[])).unwrap();
    let layer = fixture.blob(&caller(), "layer", labels(&[]));
    let config =
        fixture.blob(&caller(), "config", labels(&[("containerd.io/gc.ref.snapshot.remembering", "chain2")]));
    let manifest = fixture.blob(
        &caller(),
        "manifest",
        labels(&[
            ("containerd.io/gc.ref.content.config", &config.to_string()),
            ("containerd.io/gc.ref.content.l.0", &layer.to_string()),
        ]),
    );
    let stray = fixture.blob(&caller(), "stray", labels(&[]));
    fixture.image(&caller(), "redis", &manifest, labels(&[]));

    let collected = fixture.store.collect().unwrap();
    assert_eq!((collected.content, collected.snapshots), (1, 1));
    assert_eq!((collected.blobs_swept, collected.snapshots_swept), (1, 1));
    assert!(collected.failures.is_empty(), "{:?}", collected.failures);
    for digest in [&layer, &config, &manifest] {
        assert!(fixture.has_blob(digest));
    }
    assert!(!fixture.has_blob(&stray));
    assert!(fixture.has_snapshot("chain1") && fixture.has_snapshot("chain2"));
    assert!(!fixture.has_snapshot("stray"));

    fixture.store.images(default()).delete("redis", None).unwrap();
    fixture.take_events();
    let collected = fixture.store.collect().unwrap();
    assert_eq!((collected.content, collected.snapshots), (3, 2));
    assert!(fixture.blobs.list().unwrap().is_empty());
    assert!(fixture.snapshotter.keys().is_empty());
    let removed = fixture.take_events();
    let told = |key: &str| {
        let (snapshotter, key) = ("remembering".to_owned(), key.to_owned());
        (default().to_string(), Event::SnapshotRemoved { snapshotter, key })
    };
    assert_eq!(removed, [told("chain2"), told("chain1")], "snapshots are told, content is not");
}

#[test]
fn a_container_keeps_its_snapshot_and_what_its_labels_name() {
    let fixture = Fixture::new();
    let snapshots = fixture.store.snapshots(default(), "remembering").unwrap();
    snapshots.prepare("a", None, labels(&[])).unwrap();
    snapshots.commit("base", "a", labels(&[]), None).unwrap();
    snapshots.prepare("root", Some("base"), labels(&[])).unwrap();
    let blob = fixture.blob(&caller(), "blob", labels(&[]));
    let named = [("containerd.io/gc.ref.content", &*blob.to_string())];
    fixture.store.containers(default()).create(container("c", &named, "root")).unwrap();
    fixture.store.collect().unwrap();
    assert!(fixture.has_blob(&blob) && fixture.has_snapshot("root") && fixture.has_snapshot("base"));
    fixture.store.containers(default()).delete(&"c".parse().unwrap()).unwrap();
    fixture.store.collect().unwrap();
    assert!(!fixture.has_blob(&blob) && !fixture.has_snapshot("root") && !fixture.has_snapshot("base"));
}

#[test]
fn a_sandbox_keeps_what_its_labels_name() {
    let fixture = Fixture::new();
    let snapshots = fixture.store.snapshots(default(), "remembering").unwrap();
    snapshots.prepare("pod", None, labels(&[])).unwrap();
    let (kept, stray) =
        (fixture.blob(&caller(), "below", labels(&[])), fixture.blob(&caller(), "stray", labels(&[])));
    let names = [("containerd.io/gc.ref.content.below", &*kept.to_string())];
    let blob = fixture.blob(&caller(), "blob", labels(&names));
    let sandbox = sandbox(
        "pod",
        &[
            ("containerd.io/gc.ref.content", &blob.to_string()),
            ("containerd.io/gc.ref.snapshot.remembering", "pod"),
        ],
    );
    let sandboxes = fixture.store.sandboxes(default());
    sandboxes.create(sandbox).unwrap();
    fixture.store.collect().unwrap();
    assert!(fixture.has_blob(&blob) && fixture.has_blob(&kept) && fixture.has_snapshot("pod"));
    assert!(!fixture.has_blob(&stray), "of this nobody says anything");

    sandboxes.delete(&"pod".parse().unwrap()).unwrap();
    fixture.store.collect().unwrap();
    assert!(!fixture.has_blob(&blob) && !fixture.has_blob(&kept) && !fixture.has_snapshot("pod"));
}

#[test]
fn a_lease_keeps_until_it_ends_or_expires() {
    let fixture = Fixture::new();
    let expires = fixture.in_seconds(60);
    let leased = fixture.lease("short", labels(&[("containerd.io/gc.expire", &expires)]));
    let lasting = fixture.lease("lasting", labels(&[]));
    let inner = fixture.blob(&caller(), "inner", labels(&[]));
    let reference = labels(&[("containerd.io/gc.ref.content", &inner.to_string())]);
    let outer = fixture.blob(&leased, "outer", reference);
    let other = fixture.blob(&lasting, "other", labels(&[]));
    let snapshots = fixture.store.snapshots(&leased, "remembering").unwrap();
    snapshots.prepare("k", None, labels(&[])).unwrap();

    let collected = fixture.store.collect().unwrap();
    assert_eq!(collected.next_expiry.unwrap().to_string(), expires);
    assert!(fixture.has_blob(&inner) && fixture.has_blob(&outer) && fixture.has_snapshot("k"));
    fixture.pass(Duration::from_secs(60));
    let collected = fixture.store.collect().unwrap();
    assert_eq!((collected.leases, collected.next_expiry), (1, None));
    assert!(!fixture.has_blob(&inner) && !fixture.has_blob(&outer) && !fixture.has_snapshot("k"));
    assert!(fixture.has_blob(&other));
    fixture.store.leases(default()).delete(&"lasting".parse().unwrap()).unwrap();
    fixture.store.collect().unwrap();
    assert!(!fixture.has_blob(&other));
}

#[test]
fn labels_of_leases_keep_too() {
    let fixture = Fixture::new();
    let blob = fixture.blob(&caller(), "named", labels(&[]));
    let snapshots = fixture.store.snapshots(default(), "remembering").unwrap();
    snapshots.prepare("k", None, labels(&[])).unwrap();
    let named = [
        ("containerd.io/gc.ref.content.x", &*blob.to_string()),
        ("containerd.io/gc.ref.snapshot.remembering", "k"),
    ];
    fixture.lease("l", labels(&named));
    fixture.store.collect().unwrap();
    assert!(fixture.has_blob(&blob) && fixture.has_snapshot("k"));
    fixture.store.leases(default()).delete(&"l".parse().unwrap()).unwrap();
    fixture.store.collect().unwrap();
    assert!(!fixture.has_blob(&blob) && !fixture.has_snapshot("k"));
}

#[test]
fn a_flat_lease_keeps_only_what_it_lists() {
    let fixture = Fixture::new();
    let leased = fixture.lease("flat", labels(&[("containerd.io/gc.flat", "yes")]));
    let inner = fixture.blob(&caller(), "inner", labels(&[]));
    let outer =
        fixture.blob(&leased, "outer", labels(&[("containerd.io/gc.ref.content", &inner.to_string())]));
    fixture.store.collect().unwrap();
    assert!(!fixture.has_blob(&inner) && fixture.has_blob(&outer));
}

/// A snapshot needs its parents, and an image its target. Their labels do not count.
#[test]
fn a_flat_lease_keeps_parents_and_targets_of_its_resources() {
    let fixture = Fixture::new();
    let leased = fixture.lease("flat", labels(&[("containerd.io/gc.flat", "yes")]));
    let named = fixture.blob(&caller(), "named", labels(&[]));
    let names = labels(&[("containerd.io/gc.ref.content", &named.to_string())]);
    let own = fixture.store.snapshots(default(), "remembering").unwrap();
    own.prepare("a", None, labels(&[])).unwrap();
    own.commit("base", "a", names.clone(), None).unwrap();
    own.prepare("b", Some("base"), labels(&[])).unwrap();
    own.commit("middle", "b", names.clone(), None).unwrap();
    let holding = fixture.store.snapshots(&leased, "remembering").unwrap();
    holding.prepare("top", Some("middle"), names.clone()).unwrap();

    let target = fixture.blob(&caller(), "target", names.clone());
    let expired = ("containerd.io/gc.expire".to_owned(), fixture.in_seconds(60));
    fixture.image(&leased, "redis", &target, names.into_iter().chain([expired]).collect());
    fixture.pass(Duration::from_secs(61));
    assert_eq!(fixture.store.leases(default()).content().unwrap(), [target.clone()].into());

    fixture.store.collect().unwrap();
    assert!(["base", "middle", "top"].iter().all(|key| fixture.has_snapshot(key)));
    fixture.store.images(default()).get("redis").unwrap();
    assert!(fixture.has_blob(&target) && !fixture.has_blob(&named));
}

#[test]
fn roots_and_expiring_objects_stay_until_their_time() {
    let fixture = Fixture::new();
    let expires = fixture.in_seconds(60);
    let root = fixture.blob(&caller(), "root", labels(&[ROOT]));
    let rooted = fixture.blob(&caller(), "rooted", labels(&[("containerd.io/gc.root.pinned-by", "x")]));
    let until = fixture.blob(&caller(), "until", labels(&[("containerd.io/gc.expire", &expires)]));
    let nonsense = fixture.blob(&caller(), "nonsense", labels(&[("containerd.io/gc.expire", "soon")]));
    let snapshots = fixture.store.snapshots(default(), "remembering").unwrap();
    snapshots.prepare("k", None, labels(&[ROOT])).unwrap();
    snapshots.prepare("until", None, labels(&[("containerd.io/gc.expire", &expires)])).unwrap();
    fixture.image(&caller(), "expiring", &root, labels(&[("containerd.io/gc.expire", &expires)]));
    fixture.image(&caller(), "odd", &root, labels(&[("containerd.io/gc.expire", "soon")]));
    fixture.store.collect().unwrap();
    assert!(fixture.has_blob(&root) && fixture.has_blob(&rooted) && fixture.has_blob(&until));
    assert!(fixture.has_snapshot("k") && fixture.has_snapshot("until"));
    assert!(!fixture.has_blob(&nonsense));

    fixture.pass(Duration::from_secs(61));
    fixture.take_events();
    let collected = fixture.store.collect().unwrap();
    assert_eq!((collected.images, collected.content, collected.snapshots), (1, 1, 1));
    assert!(fixture.has_blob(&root) && !fixture.has_blob(&until));
    assert!(fixture.has_snapshot("k") && !fixture.has_snapshot("until"));
    assert_eq!(fixture.store.images(default()).list(&Filters::all()).unwrap().len(), 1);
    let deleted = Event::ImageDeleted { name: "expiring".to_owned() };
    assert!(fixture.take_events().contains(&("default".to_owned(), deleted)));
}

#[test]
fn an_expired_image_lives_while_something_names_it() {
    let fixture = Fixture::new();
    let expires = fixture.in_seconds(60);
    let target = fixture.blob(&caller(), "target", labels(&[]));
    let leased = fixture.lease("l", labels(&[]));
    fixture.image(&leased, "leased", &target, labels(&[("containerd.io/gc.expire", &expires)]));
    fixture.image(&caller(), "named", &target, labels(&[("containerd.io/gc.expire", &expires)]));
    fixture.image(&caller(), "namer", &target, labels(&[("containerd.io/gc.ref.image.x", "named")]));
    fixture.pass(Duration::from_secs(61));
    assert_eq!(fixture.store.collect().unwrap().images, 0);
    fixture.store.images(default()).delete("namer", None).unwrap();
    assert_eq!(fixture.store.collect().unwrap().images, 1);
    assert!(fixture.has_blob(&target));
    fixture.store.leases(default()).delete(&"l".parse().unwrap()).unwrap();
    assert_eq!(fixture.store.collect().unwrap().images, 1);
    assert!(!fixture.has_blob(&target));
}

#[test]
fn an_image_that_comes_to_expire_joins_the_lease_until_it_is_deleted() {
    let fixture = Fixture::new();
    let leased = fixture.lease("l", labels(&[]));
    let target = fixture.blob(&caller(), "target", labels(&[]));
    let images = fixture.store.images(&leased);
    let held = || fixture.store.leases(default()).resources(leased.lease.as_ref().unwrap()).unwrap();
    let mut redis = fixture.image(&leased, "redis", &target, labels(&[]));
    images.update(&redis, &paths(&["labels"]), None).unwrap();
    assert!(held().is_empty(), "it stays without");
    redis.labels = labels(&[("containerd.io/gc.expire", &fixture.in_seconds(60))]);
    images.update(&redis, &paths(&["labels"]), None).unwrap();
    assert_eq!(held(), [Resource::Image("redis".to_owned())]);
    fixture.pass(Duration::from_secs(61));
    fixture.store.collect().unwrap();
    images.get("redis").expect("the lease keeps it");

    images.delete("redis", None).unwrap();
    assert!(held().is_empty());
    // A new image of that name is not in the lease.
    fixture.image(
        &caller(),
        "redis",
        &target,
        labels(&[("containerd.io/gc.expire", &fixture.in_seconds(0))]),
    );
    fixture.store.collect().unwrap();
    assert_eq!(kind(images.get("redis")), ErrorKind::NotFound);
}

#[test]
fn a_renamed_image_has_a_life_of_its_own() {
    let fixture = Fixture::new();
    let (first, second) =
        (fixture.blob(&caller(), "1", labels(&[])), fixture.blob(&caller(), "2", labels(&[])));
    let images = fixture.store.images(default());
    let now = fixture.in_seconds(0);
    let beside = || {
        labels(&[("containerd.io/gc.bref.image", "all"), ("containerd.io/gc.expire", &now), ("own", "stays")])
    };
    fixture.image(&caller(), "all", &first, labels(&[]));
    fixture.image(&caller(), "pulled", &first, beside());
    fixture.image(&caller(), "left", &first, beside());

    let named = images.assign(image("pulled", &second, labels(&[("new", "too")]))).unwrap();
    assert_eq!(named.labels, labels(&[("new", "too")]));
    assert_eq!((&named.target.digest, images.get("pulled").unwrap()), (&second, named.clone()));
    let tagged = images.assign(images.get("left").unwrap().renamed("tagged".to_owned())).unwrap();
    assert_eq!(tagged.labels, labels(&[("own", "stays")]));

    images.delete("all", None).unwrap();
    assert_eq!(fixture.store.collect().unwrap().images, 1);
    assert_eq!(names(&images), ["pulled", "tagged"]);
    // A label of its own may still bind the image to another.
    images.assign(image("pulled", &second, beside())).unwrap();
    assert_eq!(fixture.store.collect().unwrap().images, 1);
    assert_eq!(names(&images), ["tagged"]);
}

fn names(images: &metadata::Images) -> Vec<String> {
    images.list(&Filters::all()).unwrap().into_iter().map(|image| image.name).collect()
}

#[test]
fn back_references_tie_a_child_to_its_parent() {
    let fixture = Fixture::new();
    let snapshots = fixture.store.snapshots(default(), "remembering").unwrap();
    let parent = fixture.blob(&caller(), "parent", labels(&[ROOT]));
    let of_content =
        fixture.blob(&caller(), "1", labels(&[("containerd.io/gc.bref.content", &parent.to_string())]));
    let of_image = fixture.blob(&caller(), "2", labels(&[("containerd.io/gc.bref.image", "redis")]));
    let of_container = fixture.blob(&caller(), "3", labels(&[("containerd.io/gc.bref.container.x", "c")]));
    snapshots.prepare("k", None, labels(&[ROOT])).unwrap();
    let bearer = [("containerd.io/gc.bref.snapshot.remembering/x", "k")];
    let of_snapshot = fixture.blob(&caller(), "4", labels(&bearer));
    fixture.image(&caller(), "redis", &parent, labels(&[]));
    fixture.store.containers(default()).create(container("c", &[], "")).unwrap();
    fixture.store.collect().unwrap();
    let children = [&of_content, &of_image, &of_container, &of_snapshot];
    assert!(children.iter().all(|child| fixture.has_blob(child)));

    fixture.store.content(default()).delete(&parent).unwrap();
    fixture.store.images(default()).delete("redis", None).unwrap();
    fixture.store.containers(default()).delete(&"c".parse().unwrap()).unwrap();
    snapshots.remove("k").unwrap();
    fixture.store.collect().unwrap();
    assert!(!children.iter().any(|child| fixture.has_blob(child)));
}

#[test]
fn a_condition_keeps_a_snapshot_by_when_it_was_used() {
    let fixture = Fixture::new();
    let snapshots = fixture.store.snapshots(default(), "remembering").unwrap();
    let now = fixture.in_seconds(0);
    for key in ["young", "old", "silent"] {
        let used =
            if key == "silent" { vec![] } else { vec![("containerd.io/gc.cond.value-usedat", now.as_str())] };
        snapshots.prepare(key, None, labels(&used)).unwrap();
    }
    let on_blob = [
        ROOT,
        ("containerd.io/gc.cond.snapshot.remembering/young", "usedat<60s|young"),
        ("containerd.io/gc.cond.snapshot.remembering/silent", "usedat<60s|silent"),
    ];
    let blob = fixture.blob(&caller(), "blob", labels(&on_blob));
    let on_image = [("containerd.io/gc.cond.snapshot.remembering", "usedat>30s|old")];
    fixture.image(&caller(), "redis", &blob, labels(&on_image));
    let has = |key: &str| snapshots.stat(key).is_ok();
    // Kept meanwhile by a label of its own.
    let held = snapshots.update("old", &labels(&[ROOT]), &paths(&["labels.containerd.io/gc.root"]));
    held.unwrap();
    let collected = fixture.store.collect().unwrap();
    assert!(has("young") && has("old") && !has("silent"));
    assert_eq!(collected.next_expiry.map(|at| at.to_string()), Some(fixture.in_seconds(60)));
    snapshots.update("old", &labels(&[]), &paths(&["labels.containerd.io/gc.root"])).unwrap();
    fixture.pass(Duration::from_secs(31));
    fixture.store.collect().unwrap();
    assert!(has("young") && has("old"), "the one is young enough, the other old enough");
    fixture.pass(Duration::from_secs(29));
    fixture.store.collect().unwrap();
    assert!(!has("young") && has("old"));
}

/// The lease of a failed workflow keeps its objects, but none of them is in use.
#[test]
fn an_ended_workflow_keeps_blobs_but_uses_none() {
    let fixture = Fixture::new();
    let leases = fixture.store.leases(default());
    let id: LeaseId = "transfer".parse().unwrap();
    let workflow = leases.create_for_workflow(&id, labels(&[])).unwrap();
    let made = fixture.blob(&caller().with_lease(id), "made", labels(&[]));
    let client = fixture.blob(&fixture.lease("client", labels(&[])), "client", labels(&[]));
    assert_eq!(leases.content().unwrap(), [made.clone(), client.clone()].into());
    fixture.take_notices();
    drop(workflow);
    assert_eq!(fixture.take_notices(), [Notice::Settled]);
    assert_eq!(leases.content().unwrap(), [client.clone()].into());
    fixture.store.collect().unwrap();
    assert!(fixture.has_blob(&made) && fixture.has_blob(&client));
}

/// The retention of unpacked layers is told when a lease may no longer hold a blob, also by expiry.
#[test]
fn resources_released_by_leases_are_noticed() {
    let fixture = Fixture::new();
    let settled = || fixture.take_notices().contains(&Notice::Settled);
    let expires = fixture.in_seconds(60);
    let leased = fixture.lease("resource", labels(&[]));
    let blob = fixture.blob(&leased, "blob", labels(&[]));
    fixture.lease("whole", labels(&[]));
    fixture.lease("expiring", labels(&[("containerd.io/gc.expire", expires.as_str())]));
    let leases = fixture.store.leases(default());
    assert!(!settled());
    leases.delete_resource(&"resource".parse().unwrap(), &Resource::Content(blob)).unwrap();
    assert!(settled(), "a resource");
    leases.delete(&"whole".parse().unwrap()).unwrap();
    assert!(settled(), "a lease");
    fixture.store.collect().unwrap();
    assert!(!settled(), "a collection");
    fixture.pass(Duration::from_secs(61));
    assert_eq!(fixture.store.collect().unwrap().leases, 1);
    assert!(settled(), "a lease that expires");
}

/// The scheduler of collections is told of all that can make garbage, and of every expiry.
#[test]
fn freed_and_expiring_objects_are_noticed() {
    let fixture = Fixture::new();
    let expires = fixture.in_seconds(60);
    let at = Notice::Expires(expires.parse().unwrap());
    let until = [("containerd.io/gc.expire", expires.as_str())];
    let check = |expected: &[Notice]| {
        let found: Vec<Notice> =
            fixture.take_notices().into_iter().filter(|notice| *notice != Notice::Settled).collect();
        assert_eq!(found, expected);
    };

    let leased = fixture.lease("l", labels(&until));
    check(&[at]);
    fixture.lease("lasting", labels(&[]));
    check(&[]);
    let blob = fixture.blob(&leased, "blob", labels(&until));
    check(&[at]);
    let content = fixture.store.content(default());
    content.update(&blob, &labels(&until), &paths(&["labels"])).unwrap();
    check(&[at]);
    fixture.image(&caller(), "redis", &blob, labels(&until));
    check(&[at]);
    let snapshots = fixture.store.snapshots(default(), "remembering").unwrap();
    snapshots.prepare("k", None, labels(&until)).unwrap();
    check(&[at]);
    snapshots.update("k", &labels(&until), &[]).unwrap();
    check(&[at]);
    drop(content.begin(&"r".parse().unwrap(), Expected::default()).unwrap());
    let day = Timestamp { seconds: fixture.clock.load(Ordering::SeqCst) + 86_400, nanos: 0 };
    check(&[Notice::Expires(day)]);
    drop(content.begin(&"given up".parse().unwrap(), Expected::default()).unwrap());
    content.abort(&"given up".parse().unwrap()).unwrap();
    check(&[Notice::Expires(day), Notice::SetAside]);
    let mut writer = content.begin(&"r".parse().unwrap(), Expected::default()).unwrap();
    check(&[Notice::Expires(day)]);
    for (bytes, expected) in [("", &[][..]), ("begun", &[Notice::SetAside])] {
        writer.write(bytes.as_bytes()).unwrap();
        writer.truncate().unwrap();
        check(expected);
    }
    drop(writer);
    fixture.store.containers(default()).create(container("c", &[], "")).unwrap();
    check(&[]);

    let leases = fixture.store.leases(default());
    leases.delete_resource(&"l".parse().unwrap(), &Resource::Content(blob.clone())).unwrap();
    check(&[Notice::Freed]);
    leases.delete(&"l".parse().unwrap()).unwrap();
    check(&[Notice::Freed]);
    fixture.store.containers(default()).delete(&"c".parse().unwrap()).unwrap();
    check(&[Notice::Freed]);
    snapshots.remove("k").unwrap();
    check(&[Notice::Freed]);
    let other = fixture.blob(&leased_again(&fixture), "other", labels(&[]));
    fixture.take_notices();
    fixture.store.images(default()).update(&image("redis", &other, labels(&[])), &[], None).unwrap();
    check(&[Notice::Freed]);
    fixture.store.images(default()).delete("redis", None).unwrap();
    check(&[Notice::Freed]);
    content.delete(&blob).unwrap();
    check(&[Notice::Freed]);
    // The collector's own removals trigger no collection.
    fixture.pass(Duration::from_secs(100_000));
    let collected = fixture.store.collect().unwrap();
    assert_eq!((collected.content, collected.ingests), (0, 1));
    // Notices for the blobs, the ingest, and both snapshotters, which the first sweep visits.
    check(&[Notice::SetAside; 4]);
}

fn leased_again(fixture: &Fixture) -> Caller {
    fixture.lease("again", labels(&[("containerd.io/gc.flat", "yes"), ("containerd.io/gc.expire", "soon")]))
}

/// More than one turn's removals: an object that becomes live between two turns still has all that it refers to.
#[test]
fn long_chains_are_removed_from_their_heads() {
    const LEN: usize = 1000;
    let fixture = Fixture::new();
    let mut digests = Vec::new();
    let mut reference = labels(&[]);
    for number in 0..LEN {
        let digest = fixture.blob(&caller(), &format!("link {number}"), reference);
        reference = labels(&[("containerd.io/gc.ref.content.next", &digest.to_string())]);
        digests.push(digest);
    }
    let head = digests.last().unwrap().clone();
    std::thread::scope(|scope| {
        let collection = scope.spawn(|| fixture.store.collect().unwrap());
        // Refers to one of them during the removal, if it still exists then.
        scope.spawn(|| {
            let wanted = &digests[LEN / 2];
            let lease = fixture.lease("holder", labels(&[]));
            let again = fixture.store.content(&lease).begin(
                &"again".parse().unwrap(),
                Expected::new(wanted.clone(), format!("link {}", LEN / 2).len() as u64),
            );
            drop(again);
        });
        collection.join().unwrap();
    });
    let has = |digest: &Digest| fixture.store.content(default()).info(digest).is_ok();
    if has(&digests[LEN / 2]) {
        let missing = digests[..LEN / 2].iter().filter(|digest| !has(digest)).count();
        assert_eq!(missing, 0, "it lives without {missing} of those it leads to");
    }
    assert!(!has(&head), "nothing keeps the first");
}

#[test]
fn an_expired_ingest_goes_when_its_writer_is_dropped() {
    let fixture = Fixture::new();
    let content = fixture.store.content(default());
    let mut writer = content.begin(&"given up".parse().unwrap(), Expected::default()).unwrap();
    writer.write(b"half").unwrap();
    fixture.pass(Duration::from_secs(2 * 24 * 3600));
    let left = || content::Store::statuses(&*fixture.blobs).unwrap().len();
    assert_eq!(fixture.store.collect().unwrap().ingests, 1);
    assert_eq!(left(), 1, "its writer has it open");
    drop(writer);
    fixture.store.collect().unwrap();
    assert_eq!(left(), 0);
}

#[test]
fn an_ingest_without_lease_expires_after_a_day() {
    let fixture = Fixture::new();
    let leased = fixture.lease("l", labels(&[]));
    for (caller, name) in [(caller(), "alone"), (leased, "leased")] {
        let mut writer =
            fixture.store.content(caller).begin(&name.parse().unwrap(), Expected::default()).unwrap();
        writer.write(b"half").unwrap();
    }
    let left = |fixture: &Fixture| -> Vec<String> {
        let statuses = fixture.store.content(default()).statuses(&Filters::all()).unwrap();
        statuses.iter().map(|status| status.reference.to_string()).collect()
    };
    fixture.store.collect().unwrap();
    assert_eq!(left(&fixture), ["alone", "leased"]);
    fixture.pass(Duration::from_secs(24 * 60 * 60));
    assert_eq!(fixture.store.collect().unwrap().ingests, 1);
    assert_eq!(left(&fixture), ["leased"]);
    fixture.store.leases(default()).delete(&"l".parse().unwrap()).unwrap();
    assert_eq!(fixture.store.collect().unwrap().ingests, 1);
    assert!(fixture.blobs.statuses().unwrap().is_empty());
}

#[test]
fn a_blob_goes_when_the_last_namespace_gives_it_up() {
    let fixture = Fixture::new();
    let other = Caller::new(Namespace::new("other").unwrap());
    let digest = fixture.blob(&caller(), "shared", labels(&[ROOT]));
    fixture.blob(&other, "shared", labels(&[ROOT]));
    fixture.store.content(default()).delete(&digest).unwrap();
    fixture.store.collect().unwrap();
    assert!(fixture.blobs.info(&digest).is_ok());
    fixture.store.content(&other).delete(&digest).unwrap();
    assert_eq!(fixture.store.collect().unwrap().blobs_swept, 1);
    assert!(fixture.blobs.info(&digest).is_err());
}

#[test]
fn the_first_collection_removes_objects_without_records_after_a_crash() {
    let fixture = Fixture::new();
    fixture.store.collect().unwrap();
    let fixture = fixture.reopen();
    let mut writer = fixture.blobs.begin(&"default/7/r".parse().unwrap(), Expected::default()).unwrap();
    writer.write(b"orphan").unwrap();
    writer.commit(Expected::default()).unwrap();
    drop(fixture.blobs.begin(&"default/8/s".parse().unwrap(), Expected::default()).unwrap());
    snapshot::Snapshotter::prepare(&*fixture.snapshotter, "default/9/k", None, labels(&[])).unwrap();
    let kept = fixture.blob(&caller(), "kept", labels(&[ROOT]));
    let collected = fixture.store.collect().unwrap();
    assert_eq!((collected.blobs_swept, collected.snapshots_swept), (1, 1));
    assert!(fixture.blobs.info(&Digest::of(b"orphan")).is_err());
    assert!(fixture.blobs.statuses().unwrap().is_empty());
    assert!(fixture.snapshotter.keys().is_empty());
    assert!(fixture.has_blob(&kept));
}

/// Creates a snapshot in each snapshotter, and a blob, that nothing holds. Returns the blob.
fn garbage(fixture: &Fixture, name: &str) -> Digest {
    for snapshotter in ["remembering", "second"] {
        let snapshots = fixture.store.snapshots(default(), snapshotter).unwrap();
        snapshots.prepare(name, None, labels(&[])).unwrap();
    }
    fixture.blob(&caller(), name, labels(&[]))
}

#[test]
fn a_collection_sweeps_each_snapshotter_and_the_content() {
    let fixture = Fixture::new();
    // The first collection compares everything with the records, later ones only what lost a record.
    fixture.store.collect().unwrap();
    let held = fixture.lease("l", labels(&[]));
    for snapshotter in ["remembering", "second"] {
        let snapshots = fixture.store.snapshots(&held, snapshotter).unwrap();
        snapshots.prepare("held", None, labels(&[])).unwrap();
    }
    let kept = fixture.blob(&held, "held", labels(&[]));
    let gone = garbage(&fixture, "gone");
    let collected = fixture.store.collect().unwrap();
    assert_eq!((collected.snapshots, collected.content), (2, 1));
    assert_eq!((collected.snapshots_swept, collected.blobs_swept), (2, 1));
    assert!(collected.failures.is_empty(), "{:?}", collected.failures);
    for snapshotter in [&fixture.snapshotter, &fixture.second] {
        let left = snapshotter.keys();
        assert!(matches!(&left[..], [key] if key.ends_with("/held")), "{left:?}");
    }
    assert!(fixture.has_blob(&kept) && !fixture.has_blob(&gone));
}

#[test]
fn a_broken_snapshotter_holds_up_no_other_and_is_swept_when_it_works_again() {
    for call in ["list", "remove", "cleanup"] {
        let fixture = Fixture::new();
        fixture.store.collect().unwrap();
        fixture.snapshotter.break_down(Some(call));
        let gone = garbage(&fixture, "gone");
        let collected = fixture.store.collect().unwrap();
        assert_eq!((collected.snapshots, collected.content), (2, 1), "{call}: records go");
        let failures: Vec<String> = collected.failures.iter().map(types::Error::chain).collect();
        assert!(matches!(&failures[..], [failure] if failure.contains(call)), "{call}: {failures:?}");
        assert!(fixture.second.keys().is_empty(), "{call}: the other is swept");
        assert!(!fixture.has_blob(&gone), "{call}: so is the content");
        // The collector must remember the leftovers: nothing else is deleted there meanwhile.
        fixture.snapshotter.break_down(None);
        let collected = fixture.store.collect().unwrap();
        assert!(collected.failures.is_empty(), "{call}: {:?}", collected.failures);
        assert!(fixture.snapshotter.keys().is_empty(), "{call}: {:?}", fixture.snapshotter.keys());
    }
}

/// A collection of several turns in which one database operation fails: the next collection removes the rest. Returns
/// the number of operations.
fn collect_with(fault: Fault) -> usize {
    let storage = Storage::default();
    let fixture = Fixture::on(&storage);
    fixture.store.collect().unwrap();
    garbage(&fixture, "gone");
    let snapshots = fixture.store.snapshots(default(), "second").unwrap();
    for number in 0..128 {
        snapshots.prepare(&format!("more {number}"), None, labels(&[])).unwrap();
    }
    drop(fixture.store.content(default()).begin(&"half".parse().unwrap(), Expected::default()).unwrap());
    fixture.pass(Duration::from_secs(2 * 24 * 3600));
    storage.fail(fault);
    drop(fixture.store.collect());
    let operations = storage.operations();
    storage.heal();
    let collected = fixture.store.collect().unwrap();
    assert!(collected.failures.is_empty(), "{fault:?}: {:?}", collected.failures);
    assert!(fixture.blobs.list().unwrap().is_empty(), "{fault:?}: a blob is left");
    assert!(fixture.blobs.statuses().unwrap().is_empty(), "{fault:?}: an ingest is left");
    for snapshotter in [&fixture.snapshotter, &fixture.second] {
        assert_eq!(snapshotter.keys().len(), 0, "{fault:?}: snapshots are left");
    }
    operations
}

#[test]
fn a_failed_collection_is_finished_by_the_next() {
    let count = collect_with(Fault::Once(usize::MAX));
    // The last operations include the sync after all turns, and the sweep's reads.
    for at in (0..count).step_by(41).chain(count.saturating_sub(48)..count) {
        collect_with(Fault::Once(at));
    }
}

#[test]
fn snapshotters_of_other_programs_are_swept_last() {
    for _ in 0..8 {
        let fixture = Fixture::new();
        garbage(&fixture, "gone");
        let second = Arc::clone(&fixture.second);
        fixture.snapshotter.move_elsewhere();
        fixture.snapshotter.meanwhile("list_for_collection", move || {
            assert!(second.keys().is_empty(), "ours is swept already");
        });
        let collected = fixture.store.collect().unwrap();
        assert!(collected.failures.is_empty(), "{:?}", collected.failures);
        assert!(fixture.snapshotter.keys().is_empty());
    }
}

/// If removals counted, the pause before the next collection would grow with them, and garbage without end.
#[test]
fn the_cost_of_a_collection_excludes_removals_and_other_programs() {
    const SLOW: Duration = Duration::from_millis(250);
    for (call, is_elsewhere, counts) in [
        ("list_for_collection", false, true),
        ("list_for_collection", true, false),
        ("remove", false, false),
        ("cleanup", false, false),
    ] {
        let fixture = Fixture::new();
        garbage(&fixture, "gone");
        if is_elsewhere {
            fixture.snapshotter.move_elsewhere();
        }
        fixture.snapshotter.meanwhile(call, || {
            let begun = Instant::now();
            while begun.elapsed() < SLOW {
                std::thread::yield_now();
            }
        });
        let (begun, collected) = (Instant::now(), fixture.store.collect().unwrap());
        assert!(begun.elapsed() >= SLOW, "{call}: it was called");
        let looking = collected.looking;
        assert_eq!(looking >= SLOW, counts, "{call}, elsewhere: {is_elsewhere}: {looking:?}");
    }
}

/// Else one file that cannot be deleted would keep the disk full.
#[test]
fn a_broken_snapshotter_keeps_no_files_of_others_from_being_deleted() {
    let fixture = Fixture::new();
    let is_asked = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&is_asked);
    fixture.second.meanwhile("reclaim", move || noted.store(true, Ordering::Relaxed));
    fixture.snapshotter.break_down(Some("reclaim"));
    assert_eq!(kind(fixture.store.reclaim(&|| true)), ErrorKind::Internal);
    assert!(is_asked.load(Ordering::Relaxed), "the second snapshotter comes after the broken one");
    fixture.snapshotter.break_down(None);
    assert!(fixture.store.reclaim(&|| true).unwrap());
}

#[test]
fn leases_can_list_missing_resources() {
    let fixture = Fixture::new();
    let leases = fixture.store.leases(default());
    fixture.lease("l", labels(&[]));
    for (kind, id) in [("images", "ghost"), ("snapshots/zfs", "ghost"), ("ingests", "ghost")] {
        leases.add_resource(&"l".parse().unwrap(), &Resource::parse(kind, id).unwrap()).unwrap();
    }
    assert!(fixture.store.collect().unwrap().failures.is_empty());
}

#[test]
fn an_image_may_be_named_before_its_content_is_there() {
    let fixture = Fixture::new();
    let digest = Digest::of(b"later");
    fixture.store.images(default()).create(image("redis", &digest, labels(&[])), None).unwrap();
    fixture.store.collect().unwrap();
    fixture.blob(&caller(), "later", labels(&[]));
    fixture.store.collect().unwrap();
    assert!(fixture.has_blob(&digest));
}
