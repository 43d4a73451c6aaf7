//! Concurrent writers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kv::{Db, Options, Table};
use types::{Error, Result};

const COUNTS: Table<u64, u64> = Table::new("counts");
const TOTAL: Table<String, u64> = Table::new("total");

fn add_one(db: &Db, writer: u64) -> Result<u64> {
    db.write(|tx| {
        let total = TOTAL.get(tx, "total")?.unwrap_or(0) + 1;
        TOTAL.put(tx, "total", &total)?;
        let mine = COUNTS.get(tx, writer)?.unwrap_or(0) + 1;
        COUNTS.put(tx, writer, &mine)?;
        Ok(total)
    })
}

#[test]
fn no_increment_is_lost_and_failures_undo_only_themselves() {
    const WRITERS: u64 = 16;
    const ROUNDS: u64 = 50;
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(dir.path().join("meta.db"), Options::default()).unwrap();
    let refused = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (db, refused) = (&db, &refused);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    if (writer + round) % 3 == 0 {
                        let failed: Result<()> = db.write(|tx| {
                            TOTAL.put(tx, "total", &0)?;
                            Err(Error::aborted("on purpose"))
                        });
                        failed.unwrap_err();
                        refused.fetch_add(1, Ordering::SeqCst);
                    }
                    let total = add_one(db, writer).unwrap();
                    let read = db.read(|tx| TOTAL.get(tx, "total")).unwrap().unwrap();
                    assert!(read >= total, "an answered write can be read");
                }
            });
        }
    });
    assert!(refused.load(Ordering::SeqCst) > 0);
    let (total, counts) = db.read(|tx| Ok((TOTAL.get(tx, "total")?, COUNTS.list(tx, ())?))).unwrap();
    assert_eq!(total, Some(WRITERS * ROUNDS));
    assert_eq!(counts, (0..WRITERS).map(|writer| (writer, ROUNDS)).collect::<Vec<_>>());
}

/// Durable writes per second with this many writers.
fn rate(db: &Db, writers: u64, duration: Duration) -> f64 {
    let done = AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for writer in 0..writers {
            let (db, done) = (&db, &done);
            scope.spawn(move || {
                while start.elapsed() < duration {
                    db.write(|tx| COUNTS.put(tx, writer, &writer)).unwrap();
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64()
}

/// The ratio depends on the medium: where an fsync costs nothing there is nothing to share. So this prints figures,
/// and asserts only that sharing happens where it pays.
#[test]
fn many_writers_share_an_fsync() {
    // Not in /tmp, which may be in memory.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let db = Db::open(dir.path().join("meta.db"), Options::default()).unwrap();
    let duration = Duration::from_millis(500);
    let one = rate(&db, 1, duration);
    let many = rate(&db, 64, duration);
    println!("durable writes a second: 1 writer {one:.0}, 64 writers {many:.0}, ratio {:.1}", many / one);
    let fsync_is_slow = one < 2000.0;
    assert!(!fsync_is_slow || many > 3.0 * one, "1 writer {one:.0}/s, 64 writers {many:.0}/s");
}
