//! Blobs and ingests as namespaces see them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use content::{Expected, IngestStatus, LocalStore, Store};
use kv::Db;
use metadata::{Caller, Content, Event, Metadata, Options};
use types::{Digest, ErrorKind, Filters, IngestRef, Namespace};

use crate::fixture::{Fixture, caller, default, kind, labels, paths};

fn reference(text: &str) -> IngestRef {
    text.parse().unwrap()
}

fn other() -> Caller {
    Caller::new(Namespace::new("other").unwrap())
}

#[test]
fn a_blob_belongs_to_its_namespace_and_is_shared_by_digest() {
    let fixture = Fixture::new();
    let digest = fixture.blob(&caller(), "hello", labels(&[("a", "1"), ("empty", "")]));
    let content = fixture.store.content(default());
    let blob = content.info(&digest).unwrap();
    assert_eq!((blob.size, &blob.labels), (5, &labels(&[("a", "1")])));
    assert_eq!(content.reader(&digest).unwrap().read_all(5).unwrap(), b"hello");

    let theirs = fixture.store.content(other());
    assert_eq!(kind(theirs.info(&digest)), ErrorKind::NotFound);
    assert_eq!(kind(theirs.reader(&digest)), ErrorKind::NotFound);
    let expected = Expected::new(digest.clone(), 5);
    let mut writer = theirs.begin(&reference("r"), expected.clone()).unwrap();
    assert!(writer.is_shared());
    assert_eq!((writer.offset(), writer.digest()), (5, digest.clone()));
    assert_eq!(kind(writer.write(b"x")), ErrorKind::OutOfRange);
    writer.commit(expected, labels(&[])).unwrap();
    assert_eq!(theirs.info(&digest).unwrap().labels, labels(&[]));
    assert_eq!(kind(theirs.status(&reference("r"))), ErrorKind::NotFound);

    content.delete(&digest).unwrap();
    assert_eq!(kind(content.delete(&digest)), ErrorKind::NotFound);
    assert_eq!(theirs.reader(&digest).unwrap().read_all(5).unwrap(), b"hello");
    let created = (
        default().to_string(),
        Event::ContentCreated { digest: digest.clone(), size: 5, media_type: String::new() },
    );
    let events = fixture.take_events();
    assert_eq!(events[0], created);
    assert_eq!(events[2].1, Event::ContentDeleted { digest });
    assert_eq!(events.len(), 3);
}

/// As containerd with `content_sharing_policy = "isolated"`.
#[test]
fn isolated_namespaces_have_only_blobs_they_write_or_that_are_shareable() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Arc::new(LocalStore::open(dir.path().join("content")).unwrap());
    let db = Db::open(dir.path().join("meta.db"), kv::Options::default()).unwrap();
    let options = Options { isolates_content: true, ..Options::default() };
    let store = Metadata::open(db, blobs, BTreeMap::new(), options).unwrap();
    let expected = Expected::new(Digest::of(b"hello"), 5);
    let bring = |content: &Content| {
        let mut writer = content.begin(&reference("r"), expected.clone()).unwrap();
        assert_eq!((writer.offset(), writer.is_shared()), (0, false));
        let alike = IngestStatus { reference: reference("none"), ..writer.status().unwrap() };
        let unknown = Expected::new(Digest::of(b"other"), 5);
        let unknown = content.begin(&reference("none"), unknown).unwrap().status().unwrap();
        assert_eq!(
            (alike.offset, alike.total, alike.expected),
            (unknown.offset, unknown.total, unknown.expected)
        );
        writer.write(b"hello").unwrap();
        writer.commit(expected.clone(), labels(&[])).unwrap();
    };
    let (owner, own) = (default(), store.content(default()));
    bring(&own);
    let theirs = store.content(other());
    let mut wrong = theirs.begin(&reference("w"), expected.clone()).unwrap();
    wrong.write(b"holla").unwrap();
    assert_eq!(kind(wrong.commit(expected.clone(), labels(&[]))), ErrorKind::FailedPrecondition);
    assert_eq!(kind(theirs.info(&Digest::of(b"hello"))), ErrorKind::NotFound);
    bring(&theirs);
    assert_eq!(theirs.reader(&Digest::of(b"hello")).unwrap().read_all(5).unwrap(), b"hello");
    theirs.delete(&Digest::of(b"hello")).unwrap();

    // Only the label of the namespace that has the blob counts, and only with this value.
    let label = |namespace: &Namespace, value: &str| {
        let labels = labels(&[("containerd.io/namespace.shareable", value)]);
        store.namespaces().update(namespace, &labels, &[]).unwrap();
    };
    label(&other().namespace, "true");
    label(&owner, "yes");
    assert_eq!(theirs.begin(&reference("r"), expected.clone()).unwrap().offset(), 0);
    label(&owner, "true");
    let writer = theirs.begin(&reference("r"), expected.clone()).unwrap();
    assert_eq!((writer.offset(), writer.is_shared()), (5, true));
    writer.commit(expected, labels(&[])).unwrap();
}

#[test]
fn a_shared_writer_that_is_truncated_takes_its_own_bytes() {
    let fixture = Fixture::new();
    let digest = fixture.blob(&caller(), "hello", labels(&[]));
    let expected = Expected::new(digest.clone(), 5);
    let mut writer = fixture.store.content(other()).begin(&reference("r"), expected.clone()).unwrap();
    writer.truncate().unwrap();
    assert_eq!(writer.offset(), 0);
    writer.write(b"hello").unwrap();
    assert_eq!(writer.commit(expected, labels(&[])).unwrap().digest, digest);
}

#[test]
fn an_ingest_resumes_in_its_namespace() {
    let fixture = Fixture::new();
    let content = fixture.store.content(default());
    let mut writer = content.begin(&reference("r"), Expected::default()).unwrap();
    writer.write(b"hel").unwrap();
    assert_eq!(writer.status().unwrap().reference, reference("r"));
    let busy = content.begin(&reference("r"), Expected::default());
    assert_eq!(kind(busy), ErrorKind::Unavailable);
    let theirs = fixture.store.content(other());
    assert_eq!(theirs.begin(&reference("r"), Expected::default()).unwrap().offset(), 0);
    drop(writer);
    assert_eq!(content.status(&reference("r")).unwrap().offset, 3);
    assert_eq!(content.statuses(&Filters::parse(&["ref~=^r$"]).unwrap()).unwrap().len(), 1);
    assert_eq!(content.statuses(&Filters::parse(&["ref==x"]).unwrap()).unwrap().len(), 0);

    drop((content, theirs));
    let fixture = fixture.reopen();
    let content = fixture.store.content(default());
    let mut writer = content.begin(&reference("r"), Expected::default()).unwrap();
    assert_eq!(writer.offset(), 3);
    writer.write(b"lo").unwrap();
    let wrong = Expected::new(Digest::of(b"other"), 5);
    assert_eq!(kind(writer.commit(wrong, labels(&[]))), ErrorKind::FailedPrecondition);
    let writer = content.begin(&reference("r"), Expected::default()).unwrap();
    writer.commit(Expected::new(Digest::of(b"hello"), 5), labels(&[])).unwrap();
    assert_eq!(kind(content.status(&reference("r"))), ErrorKind::NotFound);
}

#[test]
fn a_blob_that_is_there_joins_the_lease() {
    let fixture = Fixture::new();
    let leased = fixture.lease("l", labels(&[]));
    let digest = fixture.blob(&caller(), "hello", labels(&[]));
    let content = fixture.store.content(&leased);
    let begun = content.begin(&reference("r"), Expected::new(digest.clone(), 5));
    assert_eq!(kind(begun), ErrorKind::AlreadyExists);
    fixture.store.collect().unwrap();
    assert!(fixture.has_blob(&digest));

    // Without an expected digest it is found at the commit.
    let second = fixture.blob(&caller(), "second", labels(&[]));
    let mut writer = content.begin(&reference("s"), Expected::default()).unwrap();
    writer.write(b"second").unwrap();
    assert_eq!(kind(writer.commit(Expected::default(), labels(&[]))), ErrorKind::AlreadyExists);
    fixture.store.collect().unwrap();
    assert!(fixture.has_blob(&second));
}

#[test]
fn labels_follow_the_mask_and_the_limit() {
    let fixture = Fixture::new();
    let digest = fixture.blob(&caller(), "hello", labels(&[("a", "1"), ("b", "1")]));
    let content = fixture.store.content(default());
    let update = labels(&[("a", "2"), ("b", ""), ("c", "3")]);
    let after = content.update(&digest, &update, &paths(&["labels.a", "labels.b"])).unwrap();
    assert_eq!(after.labels, labels(&[("a", "2")]));
    assert_eq!(content.update(&digest, &update, &[]).unwrap().labels, labels(&[("a", "2"), ("c", "3")]));
    assert_eq!(kind(content.update(&digest, &update, &paths(&["size"]))), ErrorKind::InvalidArgument);
    let long = labels(&[("a", &"x".repeat(5000))]);
    assert_eq!(kind(content.update(&digest, &long, &[])), ErrorKind::InvalidArgument);
    assert_eq!(kind(content.update(&Digest::of(b"x"), &update, &[])), ErrorKind::NotFound);
    for (filter, count) in
        [(format!("digest=={digest}"), 1), ("labels.c==3".to_owned(), 1), ("x".to_owned(), 0)]
    {
        assert_eq!(content.list(&Filters::parse(&[filter]).unwrap()).unwrap().len(), count);
    }
}

#[test]
fn abort_drops_an_ingest() {
    let fixture = Fixture::new();
    let content = fixture.store.content(default());
    let writer = content.begin(&reference("r"), Expected::default()).unwrap();
    drop(writer);
    content.abort(&reference("r")).unwrap();
    assert_eq!(kind(content.abort(&reference("r"))), ErrorKind::NotFound);
    assert!(Store::statuses(&*fixture.blobs).unwrap().is_empty());
}

/// As in containerd: a writer does not block an abort.
#[test]
fn an_ingest_that_is_written_can_be_dropped() {
    let fixture = Fixture::new();
    let content = fixture.store.content(default());
    let mut writer = content.begin(&reference("r"), Expected::default()).unwrap();
    writer.write(b"hello").unwrap();
    content.abort(&reference("r")).unwrap();
    assert_eq!(kind(content.status(&reference("r"))), ErrorKind::NotFound);
    assert!(content.statuses(&Filters::all()).unwrap().is_empty());
    // The ref is free at once, for a new ingest.
    let mut another = content.begin(&reference("r"), Expected::default()).unwrap();
    assert_eq!(another.offset(), 0);
    another.write(b"other").unwrap();
    writer.write(b"!").unwrap();
    assert_eq!(kind(writer.commit(Expected::default(), labels(&[]))), ErrorKind::Aborted);
    assert_eq!(kind(content.info(&Digest::of(b"hello!"))), ErrorKind::NotFound);
    another.commit(Expected::default(), labels(&[])).unwrap();
    let given_up = content.begin(&reference("r"), Expected::default()).unwrap();
    content.abort(&reference("r")).unwrap();
    drop(given_up);
    fixture.image(&caller(), "keeps", &Digest::of(b"other"), labels(&[]));
    fixture.store.collect().unwrap();
    assert!(Store::statuses(&*fixture.blobs).unwrap().is_empty());
    let left: Vec<Digest> = fixture.blobs.list().unwrap().into_iter().map(|blob| blob.digest).collect();
    assert_eq!(left, [Digest::of(b"other")]);
}

#[test]
fn a_caller_refused_an_ingest_leaves_it_to_its_writer() {
    let fixture = Fixture::new();
    let content = fixture.store.content(default());
    let mut writer = content.begin(&reference("r"), Expected::default()).unwrap();
    writer.write(b"hello").unwrap();
    let leased = fixture.lease("l", labels(&[]));
    let refused = fixture.store.content(&leased).begin(&reference("r"), Expected::default());
    assert_eq!(kind(refused), ErrorKind::Unavailable);
    let (leases, lease) = (fixture.store.leases(default()), leased.lease.as_ref().unwrap());
    assert!(leases.resources(lease).unwrap().is_empty());
    leases.delete(lease).unwrap();
    fixture.store.collect().unwrap();
    writer.commit(Expected::default(), labels(&[])).unwrap();
}

#[test]
fn a_caller_that_resumes_an_ingest_keeps_it() {
    let fixture = Fixture::new();
    let content = fixture.store.content(default());
    content.begin(&reference("r"), Expected::default()).unwrap().write(b"hel").unwrap();
    let leased = fixture.lease("l", labels(&[]));
    let mut writer = fixture.store.content(&leased).begin(&reference("r"), Expected::default()).unwrap();
    fixture.pass(Duration::from_secs(25 * 60 * 60));
    fixture.store.collect().unwrap();
    writer.write(b"lo").unwrap();
    writer.commit(Expected::default(), labels(&[])).unwrap();
    assert!(fixture.has_blob(&Digest::of(b"hello")));
}

/// Another caller may have opened it since.
#[test]
fn ingests_dropped_with_a_lease_spare_one_that_another_writes() {
    let fixture = Fixture::new();
    let leased = fixture.lease("l", labels(&[]));
    let ours = fixture.store.content(&leased);
    ours.begin(&reference("r"), Expected::default()).unwrap().write(b"hel").unwrap();
    let mut theirs = fixture.store.content(default()).begin(&reference("r"), Expected::default()).unwrap();
    theirs.write(b"lo").unwrap();
    ours.abort_unwritten(&reference("r")).unwrap();
    let (leases, lease) = (fixture.store.leases(default()), leased.lease.as_ref().unwrap());
    assert!(leases.resources(lease).unwrap().is_empty());
    theirs.commit(Expected::default(), labels(&[])).unwrap();

    ours.begin(&reference("r"), Expected::default()).unwrap().write(b"hel").unwrap();
    ours.abort_unwritten(&reference("r")).unwrap();
    assert_eq!(kind(ours.status(&reference("r"))), ErrorKind::NotFound);
    let writer = ours.begin(&reference("r"), Expected::default()).unwrap();
    assert_eq!(writer.offset(), 0);
    writer.abort().unwrap();
    assert_eq!(kind(ours.status(&reference("r"))), ErrorKind::NotFound);
    assert!(Store::statuses(&*fixture.blobs).unwrap().is_empty());
}

/// A lease does not record which of its users holds a resource.
#[test]
fn leaving_an_ingest_spares_a_writer_with_the_same_lease() {
    let fixture = Fixture::new();
    let content = fixture.store.content(fixture.lease("l", labels(&[])));
    let mut writer = content.begin(&reference("r"), Expected::default()).unwrap();
    writer.write(b"hel").unwrap();
    content.abort_unwritten(&reference("r")).unwrap();
    fixture.store.collect().unwrap();
    writer.write(b"lo").unwrap();
    writer.commit(Expected::default(), labels(&[])).unwrap();
    assert!(fixture.has_blob(&Digest::of(b"hello")));

    // An ingest that is never finished expires.
    drop(content.begin(&reference("r"), Expected::default()).unwrap());
    let writer = content.begin(&reference("r"), Expected::default()).unwrap();
    content.abort_unwritten(&reference("r")).unwrap();
    drop(writer);
    fixture.pass(Duration::from_secs(25 * 60 * 60));
    fixture.store.collect().unwrap();
    assert_eq!(kind(content.status(&reference("r"))), ErrorKind::NotFound);
}

#[test]
fn the_blob_of_a_refused_commit_is_swept() {
    let fixture = Fixture::new();
    let leased = fixture.lease("l", labels(&[]));
    // From here on only objects that lost a record are examined.
    fixture.store.collect().unwrap();
    let digest = Digest::of(b"hello");
    let expected = Expected::new(digest.clone(), 5);
    let mut writer = fixture.store.content(&leased).begin(&reference("r"), expected.clone()).unwrap();
    writer.write(b"hello").unwrap();
    fixture.store.leases(default()).delete(leased.lease.as_ref().unwrap()).unwrap();
    assert_eq!(kind(writer.commit(expected, labels(&[]))), ErrorKind::NotFound);
    assert_eq!(fixture.store.collect().unwrap().blobs_swept, 1);
    assert!(!fixture.has_blob(&digest));
}

#[test]
fn leftover_ingests_of_shared_blobs_and_deleted_namespaces_are_swept() {
    let fixture = Fixture::new();
    let theirs = fixture.store.content(other());
    let leave = || theirs.begin(&reference("r"), Expected::default()).unwrap().write(b"hel").unwrap();
    leave();
    fixture.store.collect().unwrap();
    let digest = fixture.blob(&caller(), "hello", labels(&[]));
    let expected = Expected::new(digest.clone(), 5);
    let writer = theirs.begin(&reference("r"), expected.clone()).unwrap();
    assert!(writer.is_shared());
    writer.commit(expected, labels(&[])).unwrap();
    fixture.store.collect().unwrap();
    assert_eq!(Store::statuses(&*fixture.blobs).unwrap().len(), 0);

    leave();
    theirs.delete(&digest).ok();
    fixture.store.namespaces().delete(&other().namespace).unwrap();
    fixture.store.collect().unwrap();
    assert_eq!(Store::statuses(&*fixture.blobs).unwrap().len(), 0);
}

#[test]
fn a_cancelled_caller_cannot_read_or_write_content() {
    let fixture = Fixture::new();
    let digest = fixture.blob(&caller(), "hello", labels(&[]));
    let owner = stdx::CancelOnDrop::new();
    let content = fixture.store.content(caller().cancelled_by(owner.token()));
    let mut reader = content.reader(&digest).unwrap();
    let mut writer = content.begin(&reference("r"), Expected::default()).unwrap();
    let mut bytes = [0; 2];
    assert_eq!(std::io::Read::read(&mut reader, &mut bytes).unwrap(), 2);
    writer.write(b"x").unwrap();
    drop(owner);
    let error = std::io::Read::read(&mut reader, &mut bytes).unwrap_err();
    assert!(error.to_string().contains("gone away"), "{error}");
    assert_eq!(kind(reader.read_at(&mut bytes, 0)), ErrorKind::Cancelled);
    assert_eq!(kind(writer.write(b"x")), ErrorKind::Cancelled);
}
