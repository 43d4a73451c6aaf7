//! A power cut before every system call. Data that was not synced is kept, lost or corrupted.
//!
//! The test follows the steps of the store, and knows for each file whether its bytes are synced, and for each name
//! whether its directory is. It then changes the real directory to states that a disk could have after the power cut:
//! renames undone, unsynced bytes zeroed or truncated.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use content::{Expected, LocalStore, Step, Store as _, Watch};
use types::{Digest, IngestRef, Result};

/// Enough to be worth a recipe, which is made of the same bytes.
const BYTES: &[u8] = &[b'x'; 400];

#[derive(Default)]
struct Trace {
    steps: usize,
    /// Files with bytes that are not synced, by their present name.
    unsynced: BTreeSet<String>,
    /// Renames whose directory is not synced.
    renames: Vec<(String, String)>,
    crashed: bool,
}

impl Trace {
    fn follow(&mut self, step: &Step) {
        match step {
            Step::Create(name) | Step::Write(name) | Step::Truncate(name) => {
                self.unsynced.insert(name.clone());
            }
            Step::Sync(name) => {
                self.unsynced.remove(name);
            }
            Step::Rename { from, to } => {
                if self.unsynced.remove(from) {
                    self.unsynced.insert(to.clone());
                }
                self.renames.push((from.clone(), to.clone()));
            }
            Step::SyncDir(dir) => {
                self.renames.retain(|(_, to)| Path::new(to).parent() != Some(Path::new(dir)));
            }
            Step::Unlink(name) => {
                self.unsynced.remove(name);
            }
            Step::Link(_) | Step::Open(_) | Step::Read(_) | Step::List(_) => {}
        }
    }
}

fn crashing(at: usize) -> (Watch, Arc<Mutex<Trace>>) {
    let trace = Arc::new(Mutex::new(Trace::default()));
    let shared = Arc::clone(&trace);
    let watch: Watch = Arc::new(move |step| {
        let mut trace = shared.lock().unwrap();
        if trace.steps >= at {
            trace.crashed = true;
            return Err(io::Error::other("no power"));
        }
        trace.steps += 1;
        trace.follow(step);
        Ok(())
    });
    (watch, trace)
}

fn reference() -> IngestRef {
    "r".parse().unwrap()
}

fn run(root: &Path, watch: Watch) -> Result<()> {
    let store = LocalStore::open_watched(root, Some(watch))?;
    let mut writer = store.begin(&reference(), Expected::default())?;
    writer.write(&BYTES[..5])?;
    drop(writer);
    let mut writer = store.begin(&reference(), Expected::default())?;
    writer.write(&BYTES[5..])?;
    writer.commit(Expected::new(Digest::of(BYTES), BYTES.len() as u64))?;
    let plain = root.join("plain");
    std::fs::write(&plain, BYTES).unwrap();
    assert!(store.keep_recipe(&Digest::of(BYTES), &plain, BYTES.len() as u64)?);
    Ok(())
}

type Loss = fn(&Path, &Trace);

/// What the disk does to bytes and names that were not synced.
const LOSSES: [(&str, Loss); 4] = [
    ("all kept", |_, _| ()),
    ("renames undone", undo_renames),
    ("bytes zeroed", |root, trace| spoil(root, trace, |bytes| bytes.fill(0))),
    ("bytes cut", |root, trace| spoil(root, trace, |bytes| bytes.truncate(bytes.len() / 2))),
];

fn undo_renames(root: &Path, trace: &Trace) {
    for (from, to) in trace.renames.iter().rev() {
        if root.join(to).exists() {
            std::fs::rename(root.join(to), root.join(from)).unwrap();
        }
    }
}

fn spoil(root: &Path, trace: &Trace, change: fn(&mut Vec<u8>)) {
    for name in &trace.unsynced {
        if let Ok(mut bytes) = std::fs::read(root.join(name)) {
            change(&mut bytes);
            std::fs::remove_file(root.join(name)).unwrap();
            std::fs::write(root.join(name), bytes).unwrap();
        }
    }
}

fn check(root: &Path, done: bool, what: &str) {
    let store = LocalStore::open(root).unwrap();
    for blob in store.list().unwrap() {
        let bytes = store.reader(&blob.digest).unwrap().read_all(1000).unwrap();
        assert_eq!(Digest::of(&bytes), blob.digest, "{what}: a blob is what its name says");
    }
    let ingests = std::fs::read_dir(root.join("ingest")).unwrap().count();
    assert_eq!(ingests, store.statuses().unwrap().len() * 2, "{what}: files that nobody knows");
    if done {
        store.info(&Digest::of(BYTES)).unwrap_or_else(|_| panic!("{what}: an answered commit is lost"));
        return;
    }
    // A resumed ingest may hold spoilt bytes. Then the commit refuses, and starting anew helps.
    let expected = Expected::new(Digest::of(BYTES), BYTES.len() as u64);
    let Ok(mut writer) = store.begin(&reference(), expected.clone()) else { return };
    if writer.digest() != Digest::of(&BYTES[..usize::try_from(writer.offset()).unwrap()]) {
        writer.truncate().unwrap();
    }
    let offset = usize::try_from(writer.offset()).unwrap();
    writer.write(&BYTES[offset..]).unwrap();
    writer.commit(expected).unwrap();
}

#[test]
fn a_crash_leaves_whole_blobs_and_every_acknowledged_commit() {
    for (name, lose) in LOSSES {
        for at in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let (watch, trace) = crashing(at);
            let done = run(dir.path(), watch).is_ok();
            let trace = trace.lock().unwrap();
            lose(dir.path(), &trace);
            check(dir.path(), done, &format!("crash {at}, {name}"));
            if !trace.crashed {
                assert!(done && at > 20, "{at} steps");
                break;
            }
        }
    }
}
