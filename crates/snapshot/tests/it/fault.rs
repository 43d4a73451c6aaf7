//! The records fail at every operation in turn, and every crash is tried: what was answered is there, what is
//! there is whole, and nothing is left that cleanup does not take.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use kv::testing::{Fault, Storage};
use kv::{Db, Table};
use snapshot::{CommitOptions, Kind, Native, Overlay, Snapshotter};
use types::{Labels, Result};

type Open = fn(&Path, Db) -> Result<Box<dyn Snapshotter>>;

const BOTH: [(&str, Open); 2] = [
    ("overlay", |root, db| Ok(Box::new(Overlay::open(root, db)?))),
    ("native", |root, db| Ok(Box::new(Native::open(root, db)?))),
];

fn open_db(storage: &Storage) -> Result<Db> {
    let storage = storage.clone();
    Db::open_on(move || Ok(storage.clone()), kv::Options::default())
}

/// Who uses a snapshotter: it writes a record of its own after each step, which is what makes the step last.
const USER: Table<String, u64> = Table::new("user");

/// Two layers, a view, and the upper layer's end. Tells the names of committed snapshots as they are answered;
/// none twice, so that what a failed removal did does not matter.
fn run(db: Db, root: &Path, open: Open, committed: &mut BTreeSet<&'static str>) -> Result<()> {
    let snapshotter = open(root, db.clone())?;
    let record = |what: &str| db.write(|tx| USER.put(tx, what, &1));
    let layer = |key: &str, parent: Option<&str>, name: &str| -> Result<()> {
        let mounts = snapshotter.prepare(key, parent, Labels::new())?;
        fs::write(tree_of(&mounts).join(name), name).unwrap();
        snapshotter.commit(name, key, CommitOptions::default())?;
        record(name)
    };
    layer("one", None, "lower")?;
    committed.insert("lower");
    layer("two", Some("lower"), "upper")?;
    committed.insert("upper");
    snapshotter.view("look", Some("upper"), Labels::new())?;
    record("look")?;
    snapshotter.remove("look")?;
    committed.remove("upper");
    snapshotter.remove("upper")?;
    snapshotter.cleanup()
}

/// The topmost of the directories that make a tree, without a mount.
fn tree_of(mounts: &[types::Mount]) -> PathBuf {
    let option = |name| mounts[0].options.iter().find_map(|option| option.strip_prefix(name));
    let lower = || option("lowerdir=").and_then(|lower| lower.split(':').next());
    PathBuf::from(option("upperdir=").or_else(lower).unwrap_or(&mounts[0].source))
}

/// After whatever happened.
fn check(snapshotter: &dyn Snapshotter, root: &Path, committed: &BTreeSet<&str>, what: &str) {
    for name in committed {
        let found = snapshotter.stat(name).expect(what);
        assert_eq!(found.kind, Kind::Committed, "{what}: {name}");
    }
    let all = snapshotter.list().expect(what);
    for found in &all {
        if found.kind == Kind::Committed {
            let key = format!("look at {}", found.key);
            let mounts = snapshotter.view(&key, Some(&found.key), Labels::new()).expect(what);
            let file = tree_of(&mounts).join(&found.key);
            assert_eq!(fs::read_to_string(&file).ok().as_deref(), Some(&*found.key), "{what}: {}", found.key);
            snapshotter.remove(&key).expect(what);
        } else {
            assert!(tree_of(&snapshotter.mounts(&found.key).expect(what)).is_dir(), "{what}: {}", found.key);
        }
    }
    snapshotter.cleanup().expect(what);
    assert_eq!(fs::read_dir(root).unwrap().count(), all.len(), "{what}: a directory for each record");
    snapshotter.prepare("afterwards", None, Labels::new()).expect(what);
}

#[test]
fn any_operation_of_the_records_may_fail() {
    for (name, open) in BOTH {
        for fault in [Fault::Once as fn(usize) -> Fault, Fault::From] {
            for at in 0.. {
                let dir = tempfile::TempDir::new().unwrap();
                let storage = Storage::default();
                drop(open_db(&storage).unwrap());
                storage.fail(fault(at));
                let mut committed = BTreeSet::new();
                // How it fails is not the point.
                let done = open_db(&storage).and_then(|db| run(db, dir.path(), open, &mut committed));
                let struck = storage.has_struck();
                storage.heal();
                let again = open(dir.path(), open_db(&storage).unwrap()).unwrap();
                check(&*again, dir.path(), &committed, &format!("{name}, operation {at} failed ({done:?})"));
                if !struck {
                    done.unwrap();
                    break;
                }
            }
        }
    }
}

#[test]
fn any_crash_leaves_what_was_answered() {
    'snapshotters: for (name, open) in BOTH {
        for at in 0.. {
            for kept in 0..3 {
                let dir = tempfile::TempDir::new().unwrap();
                let storage = Storage::default();
                drop(open_db(&storage).unwrap());
                // From here on nothing reaches the medium: the machine is dead.
                storage.fail(Fault::From(at));
                let mut committed = BTreeSet::new();
                let done = open_db(&storage).and_then(|db| run(db, dir.path(), open, &mut committed));
                let struck = storage.has_struck();
                // None, all, or every other of what the disk had not been made to keep.
                let bytes = storage.after_crash(|index| match kept {
                    0 => false,
                    1 => true,
                    _ => index % 2 == 0,
                });
                let after = Storage::of(bytes);
                let again = open(dir.path(), open_db(&after).unwrap()).unwrap();
                check(&*again, dir.path(), &committed, &format!("{name}, crash at {at}, {kept} ({done:?})"));
                if !struck {
                    done.unwrap();
                    continue 'snapshotters;
                }
            }
        }
    }
}
