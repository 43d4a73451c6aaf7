//! Compaction of a mostly free file, beside readers, writers, crashes and failures.

use kv::testing::{Fault, Storage};
use kv::{Db, Options, Table};

const BLOBS: Table<u64, String> = Table::new("blobs");
/// The first record that stays.
const KEPT: u64 = 180;
const ALL: u64 = 200;
/// Bytes of a record.
const LEN: usize = 4000;

fn open(storage: &Storage) -> Db {
    let storage = storage.clone();
    Db::open_on(move || Ok(storage.clone()), Options::default()).unwrap()
}

fn len(storage: &Storage) -> usize {
    storage.after_crash(|_| true).len()
}

fn fill(db: &Db) {
    db.write(|tx| (0..ALL).try_for_each(|key| BLOBS.put(tx, key, &"x".repeat(LEN)))).unwrap();
}

/// Keeps only the records written last, which are at the end of the file.
fn empty(db: &Db) {
    db.write(|tx| (0..KEPT).try_for_each(|key| BLOBS.delete(tx, key).map(drop))).unwrap();
}

fn check(db: &Db, what: &str) {
    let found = db.read(|tx| BLOBS.keys(tx, ())).unwrap();
    assert_eq!(found, (KEPT..ALL).collect::<Vec<_>>(), "{what}");
    for key in found {
        let value = db.read(|tx| BLOBS.get(tx, key)).unwrap();
        assert_eq!(value.map(|value| value.len()), Some(LEN), "{what}");
    }
}

#[test]
fn compaction_shrinks_a_mostly_free_file() {
    let storage = Storage::default();
    let db = open(&storage);
    fill(&db);
    let full = len(&storage);
    assert_eq!(db.compact(0).unwrap(), 0, "all of it is in use");
    empty(&db);
    assert_eq!(db.compact(u64::MAX).unwrap(), 0, "it is not worth it");
    let given = db.compact(0).unwrap();
    let short = len(&storage);
    assert!(given > 0 && short < full / 4, "{full} bytes became {short}, {given} were given back");
    check(&db, "after it");
    assert_eq!(db.compact(0).unwrap(), 0, "once is enough");
    // The file grows again.
    fill(&db);
    empty(&db);
    check(&db, "after the next");
    assert!(db.compact(0).unwrap() > 0);
    drop(db);
    check(&open(&storage), "opened anew");
}

#[test]
fn compaction_does_not_disturb_an_open_snapshot() {
    let storage = Storage::default();
    let db = open(&storage);
    fill(&db);
    db.read(|tx| {
        empty(&db);
        assert_eq!(db.compact(0).unwrap(), 0, "a reader is open");
        assert_eq!(BLOBS.keys(tx, ()).unwrap().len() as u64, ALL);
        Ok(())
    })
    .unwrap();
    // Pages of a closed snapshot become free with the next change.
    db.write(|tx| BLOBS.put(tx, KEPT, &"x".repeat(LEN))).unwrap();
    assert!(db.compact(0).unwrap() > 0);
    check(&db, "after it");
}

/// Writers wait for the compaction, and relaxed writes before it are not lost.
#[test]
fn writes_run_before_or_after_a_compaction() {
    let storage = Storage::default();
    let db = open(&storage);
    fill(&db);
    empty(&db);
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let db = &db;
            scope.spawn(move || {
                for round in 0..20 {
                    db.write_relaxed(|tx| BLOBS.put(tx, 1000 + writer, &round.to_string())).unwrap();
                }
                db.sync().unwrap();
            });
        }
        for _ in 0..20 {
            db.compact(0).unwrap();
        }
    });
    for writer in 0..4 {
        let last = db.read(|tx| BLOBS.get(tx, 1000 + writer)).unwrap();
        assert_eq!(last.as_deref(), Some("19"));
        db.write(|tx| BLOBS.delete(tx, 1000 + writer).map(drop)).unwrap();
    }
    check(&db, "after all");
}

#[test]
fn a_crash_during_compaction_loses_nothing() {
    try_each_operation(Fault::From);
}

#[test]
fn a_storage_failure_during_compaction_loses_nothing() {
    try_each_operation(Fault::Once);
}

/// The storage fails at each operation in turn, with and without a power cut after it.
fn try_each_operation(fault: fn(usize) -> Fault) {
    let before = Storage::default();
    let db = open(&before);
    fill(&db);
    empty(&db);
    drop(db);
    let bytes = before.after_crash(|_| true);
    for at in 0.. {
        let storage = Storage::of(bytes.clone());
        let db = open(&storage);
        db.write_relaxed(|tx| BLOBS.put(tx, KEPT, &"y".repeat(LEN))).unwrap();
        storage.fail(fault(at));
        let done = db.compact(0);
        let struck = storage.has_struck();
        for (kept, which) in [(0, "nothing"), (1, "half"), (2, "all")] {
            let image = storage.after_crash(|index| kept == 2 || (kept == 1 && index % 2 == 0));
            check(
                &open(&Storage::of(image)),
                &format!("operation {at} failed, {which} of the rest was kept"),
            );
        }
        storage.heal();
        // The engine may report the injected failure once more.
        let _ = db.flush();
        check(&db, &format!("operation {at} failed, and it went on"));
        let relaxed = db.read(|tx| BLOBS.get(tx, KEPT)).unwrap();
        assert!(
            relaxed.is_some_and(|value| value.starts_with('y')),
            "operation {at}: a relaxed write is gone"
        );
        if !struck {
            assert!(done.unwrap() > 0 && at > 20, "only {at} operations were tried");
            return;
        }
    }
}
