//! Makes each operation on the records fail in turn, and tries a crash at each: acknowledged snapshots exist, all
//! snapshots are whole, and cleanup removes everything else.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use kv::testing::{Fault, Storage};
use kv::{Db, Table};
use snapshot::{CommitOptions, Kind, LayerFiles, LayerForm, Native, NewLayer, Options, Overlay, Snapshotter};
use types::{Context as _, Labels, Result};

use crate::suite::Place;

pub(crate) type Open = fn(&Path, Db) -> Result<Box<dyn Snapshotter>>;

pub(crate) const ALL: [(&str, Open); 3] = [
    ("overlay", |root, db| Ok(Box::new(Overlay::open(root, db, Options::new(LayerForm::Directories))?))),
    ("overlay of archives", |root, db| {
        Ok(Box::new(Overlay::open(root, db, Options::new(LayerForm::Archives))?))
    }),
    ("native", |root, db| Ok(Box::new(Native::open(root, db)?))),
];

pub(crate) fn open_db(storage: &Storage) -> Result<Db> {
    let storage = storage.clone();
    Db::open_on(move || Ok(storage.clone()), kv::Options::default())
}

/// A user of a snapshotter writes a record of its own after each step, which makes the step durable.
const USER: Table<String, u64> = Table::new("user");

/// Makes two layers and a view, and removes the upper layer. Adds the names of committed snapshots when they are
/// acknowledged; none is used twice, so that the effect of a failed removal does not matter.
pub(crate) fn run(db: Db, root: &Path, open: Open, committed: &mut BTreeSet<&'static str>) -> Result<()> {
    let snapshotter = open(root, db.clone())?;
    let takes_layers = takes_layers(&*snapshotter)?;
    let record = |what: &str| db.write(|tx| USER.put(tx, what, &1));
    let layer = |key: &str, parent: Option<&str>, name: &str| -> Result<()> {
        let mut options = CommitOptions::default();
        let mounts = if takes_layers {
            options.parent = parent.map(str::to_owned);
            snapshotter.prepare(key, None, Labels::new())?
        } else {
            snapshotter.prepare(key, parent, Labels::new())?
        };
        let files = match snapshotter.kept_layers() {
            Some(layers) => layers.files_for(key)?,
            None => None,
        };
        match files {
            Some(files) => write_layer(&files, name)?,
            None => fs::write(tree_of(&mounts).join(name), name).context(|| "write a file")?,
        }
        snapshotter.commit(name, key, options)?;
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

/// Whether it keeps layers as they came. The snapshot that this takes to find out is gone again.
fn takes_layers(snapshotter: &dyn Snapshotter) -> Result<bool> {
    snapshotter.prepare("try", None, Labels::new())?;
    let takes = match snapshotter.kept_layers() {
        Some(layers) => layers.files_for("try")?.is_some(),
        None => false,
    };
    snapshotter.remove("try")?;
    Ok(takes)
}

/// A layer of one file, which contains its name.
fn write_layer(files: &LayerFiles, name: &str) -> Result<()> {
    let mut tree = erofs::Tree::new(erofs::Device { tag: String::new(), len: 1024 });
    let metadata =
        erofs::Metadata { mode: 0o644, uid: 0, gid: 0, mtime: (0, 0), attributes: &Default::default() };
    let kind = erofs::EntryKind::File { len: name.len() as u64, at: 512 };
    tree.add(&erofs::Entry { path: name.as_bytes(), kind, metadata }).unwrap();
    let store = |new: NewLayer<'_>| {
        let what = || "write a layer";
        std::os::unix::fs::FileExt::write_all_at(new.data, name.as_bytes(), 512).context(what)?;
        new.data.set_len(1024).context(what)?;
        Ok(tree)
    };
    files.write(store)
}

/// The topmost of the directories that make a tree, without a mount.
fn tree_of(mounts: &[types::Mount]) -> PathBuf {
    let option = |name| mounts[0].options.iter().find_map(|option| option.strip_prefix(name));
    let lower = || option("lowerdir=").and_then(|lower| lower.split(':').next());
    PathBuf::from(option("upperdir=").or_else(lower).unwrap_or(&mounts[0].source))
}

/// Checks a snapshotter after a failure or a crash.
pub(crate) fn check(snapshotter: &dyn Snapshotter, root: &Path, committed: &BTreeSet<&str>, what: &str) {
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
    assert!(snapshotter.reclaim(&|| true).expect(what), "{what}");
    let removed = root.join("removed");
    assert!(!removed.exists() || fs::read_dir(&removed).unwrap().next().is_none(), "{what}: all is deleted");
    let left = fs::read_dir(root).unwrap().filter(|entry| entry.as_ref().unwrap().path() != removed);
    assert_eq!(left.count(), all.len(), "{what}: a directory for each record");
    snapshotter.prepare("afterwards", None, Labels::new()).expect(what);
}

#[test]
fn any_operation_of_the_records_may_fail() {
    for (name, open) in ALL {
        for fault in [Fault::Once as fn(usize) -> Fault, Fault::From] {
            for at in 0.. {
                let dir = Place::new();
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
fn any_crash_keeps_acknowledged_snapshots() {
    'snapshotters: for (name, open) in ALL {
        for at in 0.. {
            for kept in 0..3 {
                let dir = Place::new();
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
