//! Queued writes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};

use kv::testing::{Fault, Storage};
use kv::{Db, Driver, Options, Table, WriteTxn};
use types::{Error, ErrorKind, Result};

const COUNTS: Table<u64, u64> = Table::new("counts");

fn open(storage: &Storage) -> Db {
    let storage = storage.clone();
    Db::open_on(move || Ok(storage.clone()), Options::default()).unwrap()
}

/// Increments a counter; returns its new value.
fn add(tx: &mut WriteTxn<'_>, key: u64) -> Result<u64> {
    let count = COUNTS.get(tx, key)?.unwrap_or(0) + 1;
    COUNTS.put(tx, key, &count)?;
    Ok(count)
}

fn queue<T: Send + 'static>(
    db: &Db,
    body: impl FnOnce(&mut WriteTxn<'_>) -> Result<T> + Send + 'static,
) -> (Option<Driver>, Receiver<Result<T>>) {
    let (tell, told) = channel();
    let driver = db.write_queued(body, move |done| tell.send(done).unwrap());
    (driver, told)
}

#[test]
fn one_driver_runs_all_in_their_order_with_one_sync() {
    let storage = Storage::default();
    let db = open(&storage);
    let (driver, first) = queue(&db, |tx| add(tx, 0));
    let driver = driver.expect("nobody drives yet");
    let more: Vec<_> = (0..100).map(|_| queue(&db, |tx| add(tx, 0))).collect();
    assert!(more.iter().all(|(driver, _)| driver.is_none()), "one driver is enough");
    assert!(first.try_recv().is_err(), "nothing runs before the driver does");
    let syncs = storage.syncs();
    driver.run();
    let alone = {
        let syncs = storage.syncs();
        db.write(|tx| add(tx, 1)).unwrap();
        storage.syncs() - syncs
    };
    assert_eq!(storage.syncs() - syncs, 2 * alone, "a hundred writes cost what one does");
    assert_eq!(first.try_recv().unwrap().unwrap(), 1);
    for (index, (_, told)) in more.into_iter().enumerate() {
        assert_eq!(told.try_recv().unwrap().unwrap(), index as u64 + 2);
    }
    assert!(queue(&db, |tx| add(tx, 0)).0.is_some(), "the driver has gone");
}

#[test]
fn failures_and_panics_undo_only_themselves() {
    let db = open(&Storage::default());
    let (driver, good) = queue(&db, |tx| add(tx, 0));
    let (_, failed) = queue(&db, |tx| {
        add(tx, 0)?;
        Err::<u64, _>(Error::aborted("on purpose"))
    });
    let (_, panicked) = queue(&db, |tx| -> Result<u64> {
        add(tx, 0)?;
        panic!("on purpose")
    });
    let (_, last) = queue(&db, |tx| add(tx, 0));
    driver.unwrap().run();
    assert_eq!(good.recv().unwrap().unwrap(), 1);
    assert_eq!(failed.recv().unwrap().unwrap_err().kind(), ErrorKind::Aborted);
    assert_eq!(panicked.recv().unwrap().unwrap_err().kind(), ErrorKind::Internal);
    assert_eq!(last.recv().unwrap().unwrap(), 2);
    assert_eq!(db.read(|tx| COUNTS.get(tx, 0)).unwrap(), Some(2));
}

#[test]
fn a_dropped_driver_fails_the_queued_writes() {
    let db = open(&Storage::default());
    let (driver, first) = queue(&db, |tx| add(tx, 0));
    drop(driver);
    assert!(first.recv().unwrap().is_err_and(|error| error.is(ErrorKind::Unavailable)));
    let (driver, second) = queue(&db, |tx| add(tx, 0));
    driver.expect("somebody must drive").run();
    assert_eq!(second.recv().unwrap().unwrap(), 1);
}

#[test]
fn a_callback_of_a_queued_write_may_not_write() {
    let db = open(&Storage::default());
    let ((tell, told), own) = (channel(), db.clone());
    let driver =
        db.write_queued(|tx| add(tx, 0), move |done| tell.send((done, own.write(|tx| add(tx, 0)))).unwrap());
    driver.unwrap().run();
    let (done, written) = told.recv().unwrap();
    assert_eq!(done.unwrap(), 1);
    assert_eq!(written.unwrap_err().kind(), ErrorKind::Internal);
    assert_eq!(db.write(|tx| add(tx, 0)).unwrap(), 2, "others may");
}

#[test]
fn a_panicking_callback_keeps_no_other_writer_waiting() {
    let db = open(&Storage::default());
    let driver = db.write_queued(|tx| add(tx, 0), |_| panic!("on purpose"));
    let (_, told) = queue(&db, |tx| add(tx, 0));
    driver.unwrap().run();
    assert_eq!(told.try_recv().unwrap().unwrap(), 2);
    let (driver, told) = queue(&db, |tx| add(tx, 0));
    driver.expect("the one before has run to its end").run();
    assert_eq!(told.try_recv().unwrap().unwrap(), 3);
}

#[test]
fn a_long_queue_takes_several_batches() {
    let db = open(&Storage::default());
    let (driver, _first) = queue(&db, |tx| add(tx, 0));
    let told: Vec<_> = (0..1000).map(|_| queue(&db, |tx| add(tx, 0)).1).collect();
    driver.unwrap().run();
    assert_eq!(told.last().unwrap().recv().unwrap().unwrap(), 1001);
}

/// Each operation of the storage fails once, in turn, between queued and other writes: a write reported as on disk
/// survives a crash, and every callback is called.
#[test]
fn no_answered_write_is_lost_when_any_operation_fails_once() {
    for at in 0.. {
        let storage = Storage::default();
        let db = open(&storage);
        storage.fail(Fault::Once(at));
        let mut answered = Vec::new();
        for round in 0..4u64 {
            let (driver, first) = queue(&db, move |tx| COUNTS.put(tx, round * 10, &1));
            let (_, second) = queue(&db, move |tx| COUNTS.put(tx, round * 10 + 1, &1));
            driver.expect("nobody drives between rounds").run();
            let direct = db.write(|tx| COUNTS.put(tx, round * 10 + 2, &1));
            let results = [first.recv().unwrap(), second.recv().unwrap(), direct];
            let keys = (round * 10..).zip(results).filter(|(_, result)| result.is_ok());
            answered.extend(keys.map(|(key, _)| key));
        }
        let struck = storage.has_struck();
        let after = open(&Storage::of(storage.after_crash(|_| false)));
        for key in &answered {
            assert!(
                after.read(|tx| COUNTS.contains(tx, *key)).unwrap(),
                "operation {at}: write {key} is lost"
            );
        }
        if !struck {
            assert_eq!(answered.len(), 12);
            assert!(at > 20, "only {at} operations were tried");
            return;
        }
    }
}

#[test]
fn queued_writes_and_others_go_on_beside_each_other() {
    const WRITERS: u64 = 8;
    const ROUNDS: u64 = 100;
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(dir.path().join("meta.db"), Options::default()).unwrap();
    let drivers = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (db, drivers) = (&db, &drivers);
            scope.spawn(move || {
                for round in 1..=ROUNDS {
                    if writer % 2 == 0 {
                        assert_eq!(db.write(|tx| add(tx, writer)).unwrap(), round);
                        continue;
                    }
                    let (driver, told) = queue(db, move |tx| add(tx, writer));
                    if let Some(driver) = driver {
                        drivers.fetch_add(1, Ordering::SeqCst);
                        driver.run();
                    }
                    assert_eq!(told.recv().unwrap().unwrap(), round);
                    assert!(db.read(|tx| COUNTS.get(tx, writer)).unwrap() >= Some(round), "it can be read");
                }
            });
        }
    });
    assert!(drivers.load(Ordering::SeqCst) > 0);
    let counts = db.read(|tx| COUNTS.list(tx, ())).unwrap();
    assert_eq!(counts, (0..WRITERS).map(|writer| (writer, ROUNDS)).collect::<Vec<_>>());
}
