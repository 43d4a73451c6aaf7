//! The contract of [`Store`], as cases to run against every implementation.
//!
//! ```text
//! content::suite::run(|| Box::new(LocalStore::open(fresh_dir()).unwrap()));
//! ```

use std::io::Read as _;

use types::{Algorithm, Digest, ErrorKind, Hasher, IngestRef, Result, Timestamp};

use crate::store::{Blob, Expected, IngestWriter, Store};

type Case = fn(&dyn Store);

const CASES: &[(&str, Case)] = &[
    ("a committed blob can be read at any offset", committed_blob_can_be_read),
    ("an unknown blob is not found", unknown_blob_is_not_found),
    ("an ingest resumes where it was left", ingest_resumes),
    ("an ingest of another size is begun anew", other_size_begins_anew),
    ("a ref has one writer", ref_has_one_writer),
    ("a wrong size or digest leaves the ingest", mismatch_leaves_the_ingest),
    ("a blob that exists refuses begin and drops the ingest at commit", existing_blob),
    ("truncate starts anew", truncate_starts_anew),
    ("an aborted ingest is gone", aborted_ingest_is_gone),
    ("statuses describe open and kept ingests", statuses_describe_ingests),
    ("delete removes a blob and leaves open readers be", delete_leaves_readers),
    ("every algorithm names blobs", every_algorithm),
    ("refs are only names", refs_are_only_names),
    ("an empty blob is a blob", empty_blob),
];

/// Runs every case, each on a store of its own. Panics, naming the case, if one fails.
pub fn run(make: impl Fn() -> Box<dyn Store>) {
    for (name, case) in CASES {
        println!("contract: {name}");
        case(&*make());
    }
}

fn reference(text: &str) -> IngestRef {
    text.parse().expect("a valid ref")
}

fn begin(store: &dyn Store, name: &str) -> Box<dyn IngestWriter> {
    store.begin(&reference(name), Expected::default()).expect("begin")
}

fn add(store: &dyn Store, bytes: &[u8]) -> Blob {
    let mut writer = begin(store, "add");
    writer.write(bytes).expect("write");
    writer.commit(Expected::new(Digest::of(bytes), bytes.len() as u64)).expect("commit")
}

fn kind<T>(result: Result<T>) -> ErrorKind {
    result.err().expect("an error").kind()
}

fn committed_blob_can_be_read(store: &dyn Store) {
    let bytes: Vec<u8> = (0..100_000u32).map(|number| number as u8).collect();
    let blob = add(store, &bytes);
    assert_eq!(blob.digest, Digest::of(&bytes));
    assert_eq!(blob.size, bytes.len() as u64);
    assert_eq!(store.info(&blob.digest).expect("info"), blob);
    assert_eq!(store.list().expect("list"), std::slice::from_ref(&blob));

    let mut reader = store.reader(&blob.digest).expect("reader");
    assert_eq!(reader.size(), blob.size);
    assert_eq!(reader.read_all(blob.size).expect("read all"), bytes);
    assert_eq!(kind(reader.read_all(blob.size - 1)), ErrorKind::ResourceExhausted);
    let mut middle = [0; 10];
    assert_eq!(reader.read_at(&mut middle, 50_000).expect("read"), 10);
    assert_eq!(middle, bytes[50_000..50_010]);
    assert_eq!(reader.read_at(&mut middle, blob.size - 3).expect("read"), 3);
    assert_eq!(reader.read_at(&mut middle, blob.size + 3).expect("read"), 0);
    let mut in_order = Vec::new();
    reader.read_to_end(&mut in_order).expect("read to end");
    assert_eq!(in_order, bytes);
}

fn unknown_blob_is_not_found(store: &dyn Store) {
    let digest = Digest::of(b"nobody wrote this");
    assert_eq!(kind(store.info(&digest)), ErrorKind::NotFound);
    assert_eq!(kind(store.reader(&digest)), ErrorKind::NotFound);
    assert_eq!(kind(store.delete(&digest)), ErrorKind::NotFound);
    assert!(store.list().expect("list").is_empty());
}

fn ingest_resumes(store: &dyn Store) {
    let mut writer = begin(store, "r");
    writer.write(b"hello ").expect("write");
    drop(writer);
    let mut writer = begin(store, "r");
    assert_eq!(writer.offset(), 6);
    assert_eq!(writer.digest(), Digest::of(b"hello "));
    writer.write(b"world").expect("write");
    let blob = writer.commit(Expected::default()).expect("commit");
    assert_eq!(blob.digest, Digest::of(b"hello world"));
    assert_eq!(kind(store.status(&reference("r"))), ErrorKind::NotFound);
}

fn other_size_begins_anew(store: &dyn Store) {
    let sized = |size| Expected { size: Some(size), digest: None };
    let mut writer = store.begin(&reference("r"), sized(10)).expect("begin");
    writer.write(b"12345").expect("write");
    drop(writer);
    assert_eq!(store.begin(&reference("r"), sized(10)).expect("begin").offset(), 5);
    assert_eq!(store.begin(&reference("r"), sized(20)).expect("begin").offset(), 0);
    assert_eq!(store.status(&reference("r")).expect("status").total, Some(20));
}

fn ref_has_one_writer(store: &dyn Store) {
    let writer = begin(store, "r");
    assert_eq!(kind(store.begin(&reference("r"), Expected::default())), ErrorKind::Unavailable);
    drop(begin(store, "s"));
    drop(writer);
    drop(begin(store, "r"));
}

fn mismatch_leaves_the_ingest(store: &dyn Store) {
    let wrong = [
        Expected { size: Some(4), digest: None },
        Expected { size: None, digest: Some(Digest::of(b"other")) },
        Expected::new(Digest::of(b"hello"), 6),
    ];
    for expected in wrong {
        let mut writer = begin(store, "r");
        if writer.offset() == 0 {
            writer.write(b"hello").expect("write");
        }
        assert_eq!(kind(writer.commit(expected)), ErrorKind::FailedPrecondition);
        assert_eq!(store.status(&reference("r")).expect("status").offset, 5);
    }
    assert!(store.list().expect("list").is_empty());
    begin(store, "r").commit(Expected::new(Digest::of(b"hello"), 5)).expect("commit");
}

fn existing_blob(store: &dyn Store) {
    let blob = add(store, b"hello");
    let expected = Expected::new(blob.digest.clone(), blob.size);
    assert_eq!(kind(store.begin(&reference("r"), expected.clone())), ErrorKind::AlreadyExists);
    let mut writer = begin(store, "r");
    writer.write(b"hello").expect("write");
    assert_eq!(kind(writer.commit(expected)), ErrorKind::AlreadyExists);
    assert_eq!(kind(store.status(&reference("r"))), ErrorKind::NotFound);
    assert_eq!(store.list().expect("list"), [blob]);
}

fn truncate_starts_anew(store: &dyn Store) {
    let mut writer = begin(store, "r");
    writer.write(b"wrong").expect("write");
    writer.truncate().expect("truncate");
    assert_eq!(writer.offset(), 0);
    assert_eq!(writer.digest(), Digest::of(b""));
    writer.write(b"ok").expect("write");
    assert_eq!(writer.commit(Expected::default()).expect("commit").digest, Digest::of(b"ok"));
}

fn aborted_ingest_is_gone(store: &dyn Store) {
    let mut writer = begin(store, "r");
    writer.write(b"hello").expect("write");
    drop(writer);
    store.abort(&reference("r")).expect("abort");
    assert_eq!(kind(store.abort(&reference("r"))), ErrorKind::NotFound);
    assert_eq!(kind(store.status(&reference("r"))), ErrorKind::NotFound);
    assert_eq!(begin(store, "r").offset(), 0);
}

fn statuses_describe_ingests(store: &dyn Store) {
    assert!(store.statuses().expect("statuses").is_empty());
    let expected = Expected::new(Digest::of(b"hello"), 5);
    let before = Timestamp::now();
    let mut writer = store.begin(&reference("a"), expected.clone()).expect("begin");
    let after = Timestamp::now();
    // More often than the kernel's clock for mtimes ticks.
    for _ in 0..100 {
        writer.truncate().expect("truncate");
        let before = Timestamp::now();
        writer.write(b"he").expect("write");
        let (status, after) = (writer.status().expect("status"), Timestamp::now());
        assert!(before <= status.updated && status.updated <= after, "{before:?} {status:?} {after:?}");
    }
    drop(begin(store, "b"));
    let status = store.status(&reference("a")).expect("status");
    assert_eq!(status, writer.status().expect("status"));
    assert_eq!((status.offset, status.total), (2, Some(5)));
    assert_eq!(status.expected, expected.digest);
    assert!(before <= status.started && status.started <= after, "{before:?} {status:?} {after:?}");
    assert!(status.started <= status.updated);
    let mut names: Vec<String> =
        store.statuses().expect("statuses").iter().map(|status| status.reference.to_string()).collect();
    names.sort();
    assert_eq!(names, ["a", "b"]);
    let written = writer.status().expect("status").updated;
    drop(writer);
    assert_eq!(store.status(&reference("a")).expect("status").updated, written, "also once nobody writes");
}

fn delete_leaves_readers(store: &dyn Store) {
    let blob = add(store, b"hello");
    let reader = store.reader(&blob.digest).expect("reader");
    store.delete(&blob.digest).expect("delete");
    assert_eq!(kind(store.info(&blob.digest)), ErrorKind::NotFound);
    assert_eq!(reader.read_all(5).expect("read"), b"hello");
    assert_eq!(add(store, b"hello").digest, blob.digest);
}

fn every_algorithm(store: &dyn Store) {
    for algorithm in Algorithm::ALL {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(b"hello");
        let digest = hasher.finish();
        for expected in [Expected::new(digest.clone(), 5), Expected::default()] {
            let mut writer = store.begin(&reference("r"), expected).expect("begin");
            writer.write(b"hello").expect("write");
            let blob = writer.commit(Expected::new(digest.clone(), 5)).expect("commit");
            assert_eq!(blob.digest, digest);
            store.delete(&digest).expect("delete");
        }
    }
}

fn refs_are_only_names(store: &dyn Store) {
    for name in ["../../etc/passwd", "/", ".", "a/b/c", "a\nb", "x\0y", &"long".repeat(1000)] {
        let mut writer = begin(store, name);
        writer.write(b"12").expect("write");
        drop(writer);
        assert_eq!(store.status(&reference(name)).expect("status").reference.as_str(), name);
        store.abort(&reference(name)).expect("abort");
    }
}

fn empty_blob(store: &dyn Store) {
    let blob = begin(store, "r").commit(Expected::new(Digest::of(b""), 0)).expect("commit");
    assert_eq!(blob.size, 0);
    assert_eq!(store.reader(&blob.digest).expect("reader").read_all(0).expect("read"), b"");
}
