//! Transactions: visibility of changes, rollback, opening and copying.

use std::ops::ControlFlow;

use kv::{Db, Options, Table};
use types::{Error, ErrorKind, Namespace, Result};

const WORDS: Table<(Namespace, String), String> = Table::new("words");
const COUNTS: Table<u64, u64> = Table::new("counts");

fn namespace(name: &str) -> Namespace {
    name.parse().unwrap()
}

fn temporary() -> (tempfile::TempDir, Db) {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(dir.path().join("meta.db"), Options::default()).unwrap();
    (dir, db)
}

fn words(db: &Db, of: &str) -> Vec<String> {
    let all = db.read(|tx| WORDS.list(tx, (&namespace(of),))).unwrap();
    all.into_iter().map(|((_, key), value)| format!("{key}={value}")).collect()
}

/// Simulates creation that a full disk or a crash interrupted.
#[test]
fn an_interrupted_creation_is_started_over() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("meta.db");
    std::fs::write(dir.path().join("meta.db.new"), [0; 10_000]).unwrap();
    drop(Db::open(&path, Options::default()).unwrap());
    drop(Db::open(&path, Options::default()).unwrap());
    let names: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["meta.db"]);
    // A file under the final name is never overwritten, whatever it contains.
    std::fs::write(&path, [0; 10_000]).unwrap();
    assert!(Db::open(&path, Options::default()).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), [0; 10_000]);
}

#[test]
fn records_are_there_after_the_file_is_opened_again() {
    let (dir, db) = temporary();
    db.write(|tx| WORDS.put(tx, (&namespace("a"), "k"), &"v".to_owned())).unwrap();
    drop(db);
    let db = Db::open(dir.path().join("meta.db"), Options { verify: true, ..Options::default() }).unwrap();
    assert_eq!(words(&db, "a"), ["k=v"]);
}

#[test]
fn a_failing_closure_leaves_nothing_behind() {
    let (_dir, db) = temporary();
    let failed: Result<()> = db.write(|tx| {
        WORDS.put(tx, (&namespace("a"), "k"), &"v".to_owned())?;
        Err(Error::aborted("on purpose"))
    });
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::Aborted);
    assert_eq!(words(&db, "a"), [""; 0]);
}

#[test]
fn a_panicking_closure_leaves_nothing_behind_and_the_next_writes() {
    let (_dir, db) = temporary();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = db.write(|tx| -> Result<()> {
            WORDS.put(tx, (&namespace("a"), "k"), &"v".to_owned())?;
            panic!("on purpose")
        });
    }));
    assert!(caught.is_err());
    db.write(|tx| WORDS.put(tx, (&namespace("a"), "l"), &"w".to_owned())).unwrap();
    assert_eq!(words(&db, "a"), ["l=w"]);
}

#[test]
fn a_closure_sees_its_own_changes_merged_with_what_is_there() {
    let (_dir, db) = temporary();
    let a = namespace("a");
    db.write(|tx| {
        for key in ["b", "d", "f"] {
            WORDS.put(tx, (&a, key), &"old".to_owned())?;
        }
        WORDS.put(tx, (&namespace("b"), "x"), &"other".to_owned())
    })
    .unwrap();
    db.write(|tx| {
        for key in ["a", "c", "d", "z"] {
            WORDS.put(tx, (&a, key), &"new".to_owned())?;
        }
        assert!(WORDS.delete(tx, (&a, "b"))?);
        assert!(!WORDS.delete(tx, (&a, "b"))?);
        assert!(!WORDS.contains(tx, (&a, "b"))?);
        assert_eq!(WORDS.get(tx, (&a, "d"))?.as_deref(), Some("new"));
        let seen: Vec<String> = WORDS.keys(tx, (&a,))?.into_iter().map(|(_, key)| key).collect();
        assert_eq!(seen, ["a", "c", "d", "f", "z"]);
        let mut first = Vec::new();
        WORDS.scan_keys(tx, (&a,), |(_, key)| {
            first.push(key);
            Ok(if first.len() == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        assert_eq!(first, ["a", "c"]);
        Ok(())
    })
    .unwrap();
    assert_eq!(words(&db, "a"), ["a=new", "c=new", "d=new", "f=old", "z=new"]);
    assert_eq!(words(&db, "b"), ["x=other"]);
}

#[test]
fn a_prefix_is_not_the_prefix_of_a_longer_name() {
    let (_dir, db) = temporary();
    db.write(|tx| {
        WORDS.put(tx, (&namespace("ab"), "k"), &"v".to_owned())?;
        assert!(!WORDS.any(tx, (&namespace("a"),))?);
        assert!(WORDS.any(tx, (&namespace("ab"),))?);
        Ok(())
    })
    .unwrap();
    assert!(words(&db, "a").is_empty());
}

#[test]
fn a_reader_keeps_its_snapshot() {
    let (_dir, db) = temporary();
    db.write(|tx| COUNTS.put(tx, 1, &1)).unwrap();
    db.read(|tx| {
        assert_eq!(COUNTS.get(tx, 1)?, Some(1));
        std::thread::scope(|scope| {
            scope.spawn(|| db.write(|tx| COUNTS.put(tx, 1, &2)).unwrap());
        });
        assert_eq!(COUNTS.get(tx, 1)?, Some(1));
        Ok(())
    })
    .unwrap();
    assert_eq!(db.read(|tx| COUNTS.get(tx, 1)).unwrap(), Some(2));
}

#[test]
fn a_relaxed_write_can_be_read_at_once() {
    let (_dir, db) = temporary();
    db.write_relaxed(|tx| COUNTS.put(tx, 1, &1)).unwrap();
    assert_eq!(db.read(|tx| COUNTS.get(tx, 1)).unwrap(), Some(1));
}

#[test]
fn a_write_inside_a_write_is_refused() {
    let (_dir, db) = temporary();
    let inner = db.write(|_| Ok(db.write(|tx| COUNTS.put(tx, 1, &1)))).unwrap();
    assert_eq!(inner.unwrap_err().kind(), ErrorKind::Internal);
    db.write(|tx| COUNTS.put(tx, 1, &1)).unwrap();
}

#[test]
fn a_second_opener_is_refused() {
    let (dir, _db) = temporary();
    let error = Db::open(dir.path().join("meta.db"), Options::default()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{}", error.chain());
}

#[test]
fn a_file_of_a_newer_schema_is_refused() {
    const SCHEMA: Table<String, u64> = Table::new("schema");
    let (dir, db) = temporary();
    db.write(|tx| SCHEMA.put(tx, "version", &(kv::SCHEMA_VERSION + 1))).unwrap();
    drop(db);
    let error = Db::open(dir.path().join("meta.db"), Options::default()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(error.chain().contains("schema version 2"), "{}", error.chain());
}

#[test]
fn a_file_that_is_no_database_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.db");
    let text = "something else entirely ".repeat(1000);
    std::fs::write(&path, &text).unwrap();
    assert!(Db::open(&path, Options::default()).is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn the_file_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let (dir, _db) = temporary();
    let mode = std::fs::metadata(dir.path().join("meta.db")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_copy_holds_what_was_committed_when_it_began() {
    let (dir, db) = temporary();
    db.write(|tx| (0..1000).try_for_each(|number| COUNTS.put(tx, number, &number))).unwrap();
    let copy = dir.path().join("copy.db");
    db.copy_to(&copy).unwrap();
    db.write(|tx| COUNTS.put(tx, 5, &0)).unwrap();
    let copied = Db::open(&copy, Options { verify: true, ..Options::default() }).unwrap();
    let counts = copied.read(|tx| COUNTS.list(tx, ())).unwrap();
    assert_eq!(counts, (0..1000).map(|number| (number, number)).collect::<Vec<_>>());
    assert!(!dir.path().join("copy.partial").exists());
}

/// Scans of many records use a second thread: each record is visited once and in order, until the visitor fails.
#[test]
fn stored_records_are_visited_in_order_on_either_thread() {
    let (_dir, db) = temporary();
    let caller = std::thread::current().id();
    let value = |number: u64| "v".repeat(usize::try_from(number % 300).unwrap());
    // Keys, and whether this thread visited any of them, and another thread.
    let visit = |until: usize| {
        let (mut keys, mut here, mut elsewhere) = (Vec::new(), false, false);
        let visited = db.read(|tx| {
            WORDS.scan_stored(tx, (&namespace("a"),), |mut key, mut stored| {
                let number = key.text()?.parse().unwrap();
                assert_eq!(stored.text()?, value(number), "{number}");
                if keys.len() == until {
                    return Err(Error::aborted("on purpose"));
                }
                keys.push(number);
                let is_here = std::thread::current().id() == caller;
                (here, elsewhere) = (here | is_here, elsewhere | !is_here);
                Ok(())
            })
        });
        (visited, keys, here, elsewhere)
    };
    let fill = |from: u64, to: u64| {
        db.write(|tx| {
            (from..to).try_for_each(|n| WORDS.put(tx, (&namespace("a"), &format!("{n:06}")), &value(n)))
        })
        .unwrap();
    };
    // A record of another namespace, sorted after all others.
    db.write(|tx| WORDS.put(tx, (&namespace("b"), "none"), &"v".to_owned())).unwrap();
    assert_eq!(visit(usize::MAX).1, [0; 0]);
    fill(0, 100);
    let (visited, keys, here, elsewhere) = visit(usize::MAX);
    assert_eq!((visited.is_ok(), here, elsewhere), (true, true, false));
    assert_eq!(keys, (0..100).collect::<Vec<_>>());
    fill(100, 10_000);
    let (visited, keys, _, elsewhere) = visit(usize::MAX);
    assert_eq!((visited.is_ok(), elsewhere), (true, true));
    assert_eq!(keys, (0..10_000).collect::<Vec<_>>());
    for until in [0, 1, 5_000, 9_999] {
        let (visited, keys, ..) = visit(until);
        assert_eq!(visited.unwrap_err().kind(), ErrorKind::Aborted);
        assert_eq!(keys.len(), until);
    }
    let broken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        db.read(|tx| WORDS.scan_stored(tx, (&namespace("a"),), |_, _| panic!("on purpose")))
    }));
    assert!(broken.is_err(), "a panic is the caller's");
}
