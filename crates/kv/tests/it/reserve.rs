//! Full disks: removals go on, using the reserve.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use kv::{Db, Options, Table};
use tempfile::TempDir;
use types::ErrorKind;

const RECORDS: Table<u64, String> = Table::new("records");
const DISK_LEN: u64 = 32 << 20;
const WHOLE: u64 = 4 << 20;

/// A small tmpfs of the test's own.
struct Disk(TempDir);

impl Disk {
    /// `None`, after printing why, if the test does not run as root.
    fn mount() -> Option<Disk> {
        if !stdx::testing::is_root("a disk of its own") {
            return None;
        }
        let disk = Disk(TempDir::new().expect("a temporary directory"));
        let size = format!("size={DISK_LEN}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(disk.0.path()).status();
        assert!(mounted.expect("mount(8)").success());
        Some(disk)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open(&self) -> types::Result<Db> {
        Db::open_reserved(self.path("db"), &self.path("reserve"), Options::default())
    }

    fn reserve(&self) -> u64 {
        fs::metadata(self.path("reserve")).expect("it is made with the database").blocks() * 512
    }

    /// Takes every free byte, as long as `go_on` returns true.
    fn fill(&self, name: &str, go_on: impl Fn() -> bool) {
        let mut filler = File::create(self.path(name)).expect("a place for a name");
        while go_on() {
            match filler.write_all(&[1; 4096]) {
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::StorageFull),
            }
        }
    }

    fn fill_up(&self) {
        let filled = fs::write(self.path("filler"), vec![1; DISK_LEN as usize]).unwrap_err();
        assert_eq!(filled.kind(), io::ErrorKind::StorageFull);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn add(db: &Db, key: u64) -> types::Result<()> {
    db.write(|tx| RECORDS.put(tx, key, &"a record of some length".repeat(20)))
}

fn remove(db: &Db, key: u64) -> types::Result<()> {
    db.write(|tx| RECORDS.delete(tx, key).map(drop))
}

fn len(db: &Db) -> usize {
    db.read(|tx| RECORDS.keys(tx, ())).unwrap().len()
}

/// Adds records until the disk is full. Returns how many there are then.
fn add_until_full(db: &Db) -> u64 {
    let refused = (0..).map(|key| (key, add(db, key))).find(|(_, added)| added.is_err());
    let (key, Err(error)) = refused.expect("a disk has an end") else { unreachable!() };
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{}", error.chain());
    assert!(error.chain().contains("no space left on device"), "{}", error.chain());
    key
}

#[test]
fn records_can_be_removed_on_a_full_disk() {
    let Some(disk) = Disk::mount() else { return };
    let db = disk.open().unwrap();
    assert_eq!(disk.reserve(), WHOLE);
    (0..2_000).for_each(|key| add(&db, key).unwrap());
    disk.fill_up();
    let there = 2_000.max(add_until_full(&db));
    assert!(disk.reserve() < WHOLE, "it gave up some");

    for key in 0..there {
        remove(&db, key).unwrap_or_else(|error| panic!("{key} of {there}: {}", error.chain()));
        // A writer that retries meanwhile takes no space from the remover.
        if key % 100 == 0 {
            assert!(add(&db, 1_000_000).is_err_and(|error| error.is(ErrorKind::ResourceExhausted)));
        }
    }
    assert_eq!(len(&db), 0);
    fs::remove_file(disk.path("filler")).unwrap();
    add(&db, 1).unwrap();
    assert_eq!(disk.reserve(), WHOLE, "it is whole again before anything is added");
}

#[test]
fn the_reserve_is_not_for_writes_that_add_records() {
    let Some(disk) = Disk::mount() else { return };
    let db = disk.open().unwrap();
    (0..500).for_each(|key| add(&db, key).unwrap());
    let is_filling = AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| disk.fill("log", || is_filling.load(Ordering::Relaxed)));
        let there = 500.max(add_until_full(&db));
        let removed: Vec<_> = (0..there).map(|key| remove(&db, key)).collect();
        is_filling.store(false, Ordering::Relaxed);
        removed.into_iter().for_each(|removed| removed.unwrap());
    });
    assert_eq!(len(&db), 0);
}

/// A write that needs more space than the reserve has fails alone: writes acknowledged before it survive, even
/// relaxed ones, and records can be removed.
#[test]
fn a_change_that_is_too_large_is_refused_and_nothing_that_was_answered_is_lost() {
    let Some(disk) = Disk::mount() else { return };
    let db = disk.open().unwrap();
    (0..100).for_each(|key| add(&db, key).unwrap());
    disk.fill_up();
    db.write_relaxed(|tx| RECORDS.put(tx, 1_000, &"answered".to_owned())).unwrap();
    let large = db.write(|tx| (2_000..2_100).try_for_each(|key| RECORDS.put(tx, key, &"x".repeat(60_000))));
    assert_eq!(large.unwrap_err().kind(), ErrorKind::ResourceExhausted);
    assert_eq!(len(&db), 101);
    for key in (0..100).chain([1_000]) {
        remove(&db, key).unwrap_or_else(|error| panic!("{key}: {}", error.chain()));
    }
    assert_eq!(len(&db), 0);
}

#[test]
fn a_database_that_was_not_closed_is_opened_on_a_full_disk() {
    let Some(disk) = Disk::mount() else { return };
    let db = disk.open().unwrap();
    (0..1_000).for_each(|key| add(&db, key).unwrap());
    // Simulates a killed process.
    let left = fs::read(disk.path("db")).unwrap();
    drop(db);
    fs::write(disk.path("db"), left).unwrap();
    disk.fill_up();
    let db = disk.open().unwrap();
    (0..1_000).for_each(|key| remove(&db, key).unwrap());
}

/// A disk too small for a reserve works without one.
#[test]
fn a_small_disk_has_no_reserve() {
    let Some(disk) = Disk::mount() else { return };
    fs::write(disk.path("others"), vec![1; (DISK_LEN - (10 << 20)) as usize]).unwrap();
    let db = disk.open().unwrap();
    assert_eq!(disk.reserve(), 0);
    add(&db, 1).unwrap();
    remove(&db, 1).unwrap();
}
