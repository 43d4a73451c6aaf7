//! Makes each system call fail in turn: once, and with all calls after it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use content::{Expected, LocalStore, Store as _, Watch};
use types::{Digest, ErrorKind, IngestRef, Result};

/// Enough to be worth a recipe, which is made of the same bytes.
const BYTES: &[u8] = &[b'x'; 400];

fn reference(text: &str) -> IngestRef {
    text.parse().unwrap()
}

/// A watch that fails the calls for which `fails` says so, and a count of all calls.
fn failing(fails: impl Fn(usize) -> bool + Send + Sync + 'static) -> (Watch, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let calls = Arc::clone(&count);
    let watch: Watch = Arc::new(move |_| {
        let number = calls.fetch_add(1, Ordering::SeqCst);
        if fails(number) { Err(io::Error::other("injected")) } else { Ok(()) }
    });
    (watch, count)
}

/// Downloads a blob in two sessions, replaces it by a recipe, and deletes another blob.
fn run(root: &Path, watch: Watch) -> Result<()> {
    let store = LocalStore::open_watched(root, Some(watch))?;
    let expected = Expected::new(Digest::of(BYTES), BYTES.len() as u64);
    let mut writer = store.begin(&reference("r"), expected.clone())?;
    writer.write(&BYTES[..5])?;
    drop(writer);
    let mut writer = store.begin(&reference("r"), expected.clone())?;
    let rest = usize::try_from(writer.offset()).unwrap();
    writer.write(&BYTES[rest..])?;
    writer.commit(expected)?;
    assert_eq!(store.reader(&Digest::of(BYTES))?.read_all(1000)?, BYTES);
    let plain = root.join("plain");
    std::fs::write(&plain, BYTES).unwrap();
    store.keep_recipe(&Digest::of(BYTES), &plain, BYTES.len() as u64)?;
    assert_eq!(store.reader(&Digest::of(BYTES))?.read_all(1000)?, BYTES);
    store.delete(&Digest::of(b"old"))
}

/// After a failure the store opens, all blobs are whole, and the work can be done again.
fn check(root: &Path, done: bool, what: &str) {
    let store = LocalStore::open(root).unwrap();
    for blob in store.list().unwrap() {
        let bytes = store.reader(&blob.digest).unwrap().read_all(1000).unwrap();
        assert_eq!(Digest::of(&bytes), blob.digest, "{what}");
    }
    if done {
        store.info(&Digest::of(BYTES)).expect("an answered commit is there");
    }
    let expected = Expected::new(Digest::of(BYTES), BYTES.len() as u64);
    match store.begin(&reference("r"), expected.clone()) {
        Ok(mut writer) => {
            let offset = usize::try_from(writer.offset()).unwrap();
            assert_eq!(writer.digest(), Digest::of(&BYTES[..offset]), "{what}: the bytes are those written");
            writer.write(&BYTES[offset..]).unwrap();
            writer.commit(expected).unwrap();
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{what}"),
    }
    assert_eq!(store.reader(&Digest::of(BYTES)).unwrap().read_all(1000).unwrap(), BYTES);
}

fn fail_at_each_call(fails: fn(number: usize, at: usize) -> bool) {
    for at in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let old = LocalStore::open(dir.path()).unwrap();
        let mut writer = old.begin(&reference("old"), Expected::default()).unwrap();
        writer.write(b"old").unwrap();
        writer.commit(Expected::default()).unwrap();
        drop(old);

        let (watch, calls) = failing(move |number| fails(number, at));
        let done = run(dir.path(), watch).is_ok();
        check(dir.path(), done, &format!("fault {at}"));
        if calls.load(Ordering::SeqCst) <= at {
            assert!(done);
            assert!(at > 30, "only {at} calls were tried");
            return;
        }
    }
}

#[test]
fn any_call_may_fail_once() {
    fail_at_each_call(|number, at| number == at);
}

#[test]
fn all_calls_may_fail_from_any_on() {
    fail_at_each_call(|number, at| number >= at);
}
