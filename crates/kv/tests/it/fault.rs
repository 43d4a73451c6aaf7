//! Every storage operation fails once, in turn.

use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};

use kv::{Db, Options, Table};

use kv::testing::{Fault, Storage};

const PAIRS: Table<(String, u64), u64> = Table::new("pairs");
const LEFT: Table<u64, u64> = Table::new("left");
const RIGHT: Table<u64, u64> = Table::new("right");
const ROUNDS: u64 = 6;

fn open(storage: &Storage) -> types::Result<Db> {
    let storage = storage.clone();
    Db::open_on(move || Ok(storage.clone()), Options::default())
}

/// A round writes two records, or neither. Returns the acknowledged rounds.
fn run(db: &Db) -> Vec<u64> {
    let round = |number: u64| {
        db.write(|tx| {
            PAIRS.put(tx, ("left", number), &number)?;
            PAIRS.put(tx, ("right", number), &number)
        })
    };
    (0..ROUNDS).filter(|number| round(*number).is_ok()).collect()
}

fn check_whole(db: &Db, answered: &[u64], what: &str) {
    let keys = |side: &str| -> Vec<u64> {
        let all = db.read(|tx| PAIRS.keys(tx, (side,))).unwrap();
        all.into_iter().map(|(_, number)| number).collect()
    };
    let left = keys("left");
    assert_eq!(left, keys("right"), "{what}: a write is whole or not there");
    for number in answered {
        assert!(left.contains(number), "{what}: answered write {number} is lost");
    }
}

fn fail_at_each_operation(fault: impl Fn(usize) -> Fault) -> usize {
    for at in 0.. {
        let storage = Storage::default();
        drop(open(&storage).unwrap());
        storage.fail(fault(at));
        let answered = open(&storage).map(|db| run(&db)).unwrap_or_default();
        let struck = storage.has_struck();
        storage.heal();
        let db = open(&storage).unwrap_or_else(|error| panic!("{at}: {}", error.chain()));
        check_whole(&db, &answered, &format!("fault {at}"));
        if !struck {
            assert_eq!(answered.len() as u64, ROUNDS);
            return at;
        }
    }
    unreachable!("the loop ends with the first fault that does not strike")
}

#[test]
fn no_answered_write_is_lost_when_any_operation_fails_once() {
    let operations = fail_at_each_operation(Fault::Once);
    assert!(operations > 20, "only {operations} operations were tried");
}

#[test]
fn no_answered_write_is_lost_when_storage_fails_for_good() {
    fail_at_each_operation(Fault::From);
}

/// The engine panics at each operation while a closure's changes are applied, up to the first of the commit.
#[test]
fn half_of_a_write_is_not_committed_when_the_engine_breaks_down_in_it() {
    for at in 0.. {
        let storage = Storage::default();
        let db = open(&storage).unwrap();
        db.write(|tx| {
            LEFT.put(tx, 0, &0)?;
            RIGHT.put(tx, 0, &0)
        })
        .unwrap();
        drop(db);
        // The engine does not close itself after a panic.
        let db = ManuallyDrop::new(open(&storage).unwrap());
        let written = catch_unwind(AssertUnwindSafe(|| {
            db.write(|tx| {
                LEFT.put(tx, 1, &1)?;
                RIGHT.put(tx, 1, &1)?;
                storage.fail(Fault::Panic(at));
                Ok(())
            })
        }));
        let after = open(&Storage::of(storage.after_crash(|_| true))).unwrap();
        let has = |table: Table<u64, u64>| after.read(|tx| table.contains(tx, 1)).unwrap();
        assert_eq!(has(LEFT), has(RIGHT), "operation {at}");
        if written.is_ok() {
            assert!(at > 1, "what the tables have is read for it");
            return;
        }
        assert!(!has(LEFT), "operation {at}: the caller panicked, and his write is there");
    }
}

#[test]
fn writes_go_on_after_a_failure_that_passes() {
    let storage = Storage::default();
    let db = open(&storage).unwrap();
    assert_eq!(run(&db).len() as u64, ROUNDS);
    storage.fail(Fault::Once(0));
    db.write(|tx| PAIRS.put(tx, ("left", 100), &1)).unwrap_err();
    db.write(|tx| {
        PAIRS.put(tx, ("left", 101), &1)?;
        PAIRS.put(tx, ("right", 101), &1)
    })
    .unwrap();
    assert_eq!(db.read(|tx| PAIRS.get(tx, ("left", 101))).unwrap(), Some(1));
}

/// A relaxed write is on disk when a later write is acknowledged, even if the engine was reopened in between.
#[test]
fn no_relaxed_write_is_lost_once_a_later_write_is_answered() {
    for fault in [Fault::Once as fn(usize) -> Fault, Fault::From] {
        for at in 0.. {
            let storage = Storage::default();
            let db = open(&storage).unwrap();
            storage.fail(fault(at));
            let relaxed = db.write_relaxed(|tx| PAIRS.put(tx, ("relaxed", 1), &1)).is_ok();
            let answered =
                (0..3).map(|number| db.write(|tx| PAIRS.put(tx, ("later", number), &number)).is_ok());
            let later = answered.filter(|answered| *answered).count() > 0 || db.sync().is_ok();
            let struck = storage.has_struck();
            let after = Storage::of(storage.after_crash(|_| false));
            let found = open(&after).unwrap().read(|tx| PAIRS.contains(tx, ("relaxed", 1))).unwrap();
            assert!(found || !(relaxed && later), "operation {at} failed, and a relaxed write was forgotten");
            if !struck {
                assert!(relaxed && later);
                break;
            }
        }
    }
}

#[test]
fn sync_brings_relaxed_writes_to_disk() {
    let storage = Storage::default();
    let db = open(&storage).unwrap();
    db.write_relaxed(|tx| PAIRS.put(tx, ("relaxed", 1), &1)).unwrap();
    let on_disk = || {
        let after = Storage::of(storage.after_crash(|_| false));
        open(&after).unwrap().read(|tx| PAIRS.contains(tx, ("relaxed", 1))).unwrap()
    };
    assert!(!on_disk(), "a relaxed write costs no fsync");
    db.sync().unwrap();
    assert!(on_disk());
}

#[test]
fn reads_go_on_after_a_failure_that_passes() {
    let storage = Storage::default();
    let own = storage.clone();
    // The cache would hide the failure.
    let options = Options { cache_bytes: 0, ..Options::default() };
    let db = Db::open_on(move || Ok(own.clone()), options).unwrap();
    assert_eq!(run(&db).len() as u64, ROUNDS);
    let read = || db.read(|tx| PAIRS.get(tx, ("left", 0)));
    storage.fail(Fault::From(0));
    db.write(|tx| PAIRS.put(tx, ("left", 100), &1)).unwrap_err();
    read().unwrap_err();
    read().unwrap_err();
    storage.heal();
    // No write reopens the engine in between; one read may fail.
    let _ = read();
    assert_eq!(read().unwrap(), Some(0));
    assert_eq!(db.read(|tx| PAIRS.get(tx, ("left", 100))).unwrap(), None);
}
