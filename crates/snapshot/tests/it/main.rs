//! All snapshotters pass the same tests; what is special to each comes after.

mod archives;
mod fault;
mod files;
mod suite;
mod verity;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use snapshot::{Backing, LayerForm, Native, Options, Overlay, Snapshotter};

fn open_overlay(dir: &Path) -> Box<dyn Snapshotter> {
    open_with(dir, Options::new(LayerForm::Directories))
}

fn open_archives(dir: &Path) -> Box<dyn Snapshotter> {
    open_with(dir, Options::new(LayerForm::Archives))
}

/// As on a kernel that mounts no files.
fn open_on_loop_devices(dir: &Path) -> Box<dyn Snapshotter> {
    open_with(dir, Options { backing: Backing::LoopDevices, ..Options::new(LayerForm::Archives) })
}

fn open_with(dir: &Path, options: Options) -> Box<dyn Snapshotter> {
    let db = kv::Db::open(dir.join("meta.db"), kv::Options::default()).unwrap();
    Box::new(Overlay::open(&dir.join("overlay"), db, options).unwrap().recording_spans(true))
}

fn open_native(dir: &Path) -> Box<dyn Snapshotter> {
    let db = kv::Db::open(dir.join("meta.db"), kv::Options::default()).unwrap();
    Box::new(Native::open(&dir.join("native"), db).unwrap())
}

#[test]
fn overlay_passes_the_suite() {
    suite::run(open_overlay, true);
}

#[test]
fn overlay_of_archives_passes_the_suite() {
    suite::run(open_archives, true);
}

#[test]
fn overlay_of_archives_on_loop_devices_passes_the_suite() {
    suite::run(open_on_loop_devices, true);
}

#[test]
fn native_passes_the_suite() {
    suite::run(open_native, false);
}

/// A daemon that dies between the directory and the record, or between the record's end and the directory's,
/// leaves a directory without a record.
#[test]
fn directories_without_a_record_are_cleaned_and_their_ids_not_used_twice() {
    let dir = tempfile::TempDir::new().unwrap();
    {
        let overlay = open_overlay(dir.path());
        overlay.prepare("kept", None, Default::default()).unwrap();
    }
    fs::create_dir_all(dir.path().join("overlay/7/fs/left")).unwrap();
    let overlay = open_overlay(dir.path());
    overlay.prepare("new", None, Default::default()).unwrap();
    assert!(dir.path().join("overlay/8").is_dir(), "7 is taken");
    overlay.cleanup().unwrap();
    assert!(!dir.path().join("overlay/7").exists());
    assert!(dir.path().join("overlay/1").is_dir() && dir.path().join("overlay/8").is_dir());
}

/// The time of a cleanup depends on the number of snapshots only; `reclaim` deletes their files in the background.
#[test]
fn cleanup_moves_and_reclaim_deletes() {
    for open in [open_overlay, open_archives, open_native] {
        let dir = tempfile::TempDir::new().unwrap();
        let snapshotter = open(dir.path());
        let tree = snapshotter.prepare("full", None, Default::default()).unwrap().remove(0).source;
        for file in 0..100 {
            fs::write(Path::new(&tree).join(file.to_string()), "").unwrap();
        }
        snapshotter.prepare("kept", None, Default::default()).unwrap();
        snapshotter.remove("full").unwrap();
        snapshotter.cleanup().unwrap();
        assert!(!Path::new(&tree).exists());
        let root = Path::new(&tree).ancestors().find(|path| path.join("2").exists()).unwrap();
        let (aside, in_place) =
            (root.join("removed/1"), Path::new(&tree).strip_prefix(root.join("1")).unwrap());
        assert_eq!(fs::read_dir(aside.join(in_place)).unwrap().count(), 100, "nothing was deleted yet");
        // A daemon that dies meanwhile finds it again, and gives no id twice.
        drop(snapshotter);
        let snapshotter = open(dir.path());
        snapshotter.prepare("new", None, Default::default()).unwrap();
        assert!(root.join("3").exists() && !root.join("1").exists());
        let mut turns = 0;
        while !snapshotter.reclaim(&|| false).unwrap() {
            turns += 1;
        }
        assert!(!aside.exists() && root.join("2").exists());
        assert!(turns >= 100, "{turns}");
    }
}

/// What a layer that was stored is made of goes one by one too.
#[test]
fn stored_layers_are_deleted_in_turns() {
    let dir = tempfile::TempDir::new().unwrap();
    let snapshotter = open_archives(dir.path());
    snapshotter.prepare("extract", None, Default::default()).unwrap();
    let files = snapshotter.kept_layers().unwrap().files_for("extract").unwrap().unwrap();
    suite::store(&files, |tree| fs::write(tree.join("file"), vec![7; 100_000]).unwrap());
    let layer = files.data.parent().unwrap().to_owned();
    drop(files);
    snapshotter.commit("layer", "extract", Default::default()).unwrap();
    let mut left = fs::read_dir(&layer).unwrap().count();
    assert!(left >= 3, "{left}: bytes, tree and spans");
    snapshotter.remove("layer").unwrap();
    snapshotter.cleanup().unwrap();
    assert!(!layer.exists());
    let aside = dir.path().join("overlay/removed").join(layer.file_name().unwrap());
    assert_eq!(fs::read_dir(&aside).unwrap().count(), left, "nothing was deleted yet");
    while !snapshotter.reclaim(&|| false).unwrap() {
        let still = fs::read_dir(&aside).map_or(0, Iterator::count);
        assert!(left - still <= 1, "{left} files, and {still} after a turn");
        left = still;
    }
    assert!(left <= 1 && !aside.exists(), "{left}");
}

/// The archive of a failed attempt may be large. The caller does not wait for the disk to free it.
#[test]
fn files_of_a_failed_store_are_deleted_with_the_snapshot() {
    const LEN: usize = 130 << 20;
    let dir = tempfile::TempDir::new_in("/var/tmp").unwrap();
    let snapshotter = open_archives(dir.path());
    snapshotter.prepare("extract", None, Default::default()).unwrap();
    let files = snapshotter.kept_layers().unwrap().files_for("extract").unwrap().unwrap();
    for len in [10, LEN] {
        let failed = files.write(|mut new| {
            new.data.write_all(&vec![7; len]).unwrap();
            Err(types::Error::data_loss("it ends here"))
        });
        assert_eq!(failed.unwrap_err().kind(), types::ErrorKind::DataLoss);
        assert!(!files.data.exists(), "no part of a layer");
    }
    snapshotter.remove("extract").unwrap();
    snapshotter.cleanup().unwrap();
    let aside = dir.path().join("overlay/removed/1/data.failed");
    assert_eq!(fs::metadata(&aside).unwrap().len(), LEN as u64, "nothing was deleted yet");
    let mut lens = Vec::new();
    while !snapshotter.reclaim(&|| false).unwrap() {
        lens.extend(fs::metadata(&aside).map(|archive| archive.len()));
    }
    assert!(lens.iter().any(|len| *len < LEN as u64), "a piece goes in a turn: {lens:?}");
    assert!(!aside.exists());
}

/// So may be what a mend that failed has stored, and what one that did not has replaced.
#[test]
fn archives_replaced_by_a_mend_are_deleted_in_turns() {
    const LEN: usize = 130 << 20;
    let dir = tempfile::TempDir::new_in("/var/tmp").unwrap();
    let snapshotter = open_archives(dir.path());
    snapshotter.prepare("extract", None, Default::default()).unwrap();
    let files = snapshotter.kept_layers().unwrap().files_for("extract").unwrap().unwrap();
    suite::store(&files, |tree| fs::write(tree.join("file"), vec![7; LEN]).unwrap());
    snapshotter.commit("layer", "extract", Default::default()).unwrap();
    let files = snapshotter.kept_layers().unwrap().files_of("layer").unwrap().unwrap();
    let stored = fs::metadata(&files.data).unwrap().len();
    let aside = || -> u64 {
        let found = fs::read_dir(dir.path().join("overlay/removed")).into_iter().flatten().flatten();
        found.map(|archive| archive.metadata().unwrap().len()).sum()
    };
    for (kind, given_up) in
        [(types::ErrorKind::DataLoss, LEN as u64), (types::ErrorKind::ResourceExhausted, 0)]
    {
        let failed = files.replace(|mut new| {
            new.data.write_all(&vec![7; LEN]).unwrap();
            Err(types::Error::new(kind, "it ends here"))
        });
        assert_eq!((failed.unwrap_err().kind(), aside()), (kind, given_up));
        while !snapshotter.reclaim(&|| false).unwrap() {
            assert!(aside() < given_up, "a piece goes in a turn");
        }
        assert_eq!(aside(), 0);
    }
    let replaced = files.replace(|new| {
        let old = fs::File::open(&files.data).unwrap();
        diff::store(old, diff::Limits::default(), new.data, None).map(|stored| stored.tree)
    });
    replaced.unwrap();
    assert_eq!(aside(), stored, "nothing was deleted yet");
    let mut turns = 1;
    while !snapshotter.reclaim(&|| false).unwrap() {
        turns += 1;
    }
    assert_eq!((aside(), turns), (0, 3), "a piece, the rest, and a look that finds none");
    files.look().unwrap();
}

/// The record of a new snapshot is on disk before its directories are. After a power cut it is as it was when it was
/// made.
#[test]
fn directories_of_a_snapshot_lost_in_a_power_cut_are_made_anew() {
    let dir = tempfile::TempDir::new().unwrap();
    let snapshotter = open_overlay(dir.path());
    snapshotter.prepare("base", None, Default::default()).unwrap();
    let base = dir.path().join("overlay/1");
    fs::set_permissions(base.join("fs"), fs::Permissions::from_mode(0o711)).unwrap();
    snapshotter.commit("done", "base", Default::default()).unwrap();
    for (key, id, lost) in [("whole", 2, ""), ("tree", 3, "fs"), ("work", 4, "work")] {
        let mounts = snapshotter.prepare(key, Some("done"), Default::default()).unwrap();
        let directory = dir.path().join(format!("overlay/{id}"));
        fs::remove_dir_all(directory.join(lost)).unwrap();
        assert_eq!(snapshotter.mounts(key).unwrap(), mounts, "{key}");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&directory), mode(&directory.join("fs"))), (0o700, 0o711), "{key}");
        assert!(directory.join("work").is_dir(), "{key}");
    }
    // What was committed is not made up.
    fs::remove_dir_all(&base).unwrap();
    snapshotter.mounts("whole").unwrap();
    assert!(!base.exists());
}

/// What a copy held is not made up.
#[test]
fn an_empty_directory_of_native_lost_in_a_power_cut_is_made_anew() {
    let dir = tempfile::TempDir::new().unwrap();
    let snapshotter = open_native(dir.path());
    snapshotter.prepare("base", None, Default::default()).unwrap();
    snapshotter.commit("done", "base", Default::default()).unwrap();
    snapshotter.prepare("empty", None, Default::default()).unwrap();
    snapshotter.view("nothing", None, Default::default()).unwrap();
    snapshotter.prepare("copy", Some("done"), Default::default()).unwrap();
    for (key, id, comes_back) in [("empty", 2, true), ("nothing", 3, true), ("copy", 4, false)] {
        let directory = dir.path().join(format!("native/{id}"));
        fs::remove_dir(&directory).unwrap();
        snapshotter.mounts(key).unwrap();
        assert_eq!(directory.is_dir(), comes_back, "{key}");
    }
}

/// Or deletion would fall behind, and the further the slower it is.
#[test]
fn the_cost_of_a_reclaim_turn_does_not_depend_on_the_number_of_files() {
    let dir = tempfile::TempDir::new().unwrap();
    let snapshotter = open_native(dir.path());
    let removed = dir.path().join("native/removed");
    let turns = 50;
    for id in 1..=20_000 + turns {
        fs::create_dir_all(removed.join(id.to_string())).unwrap();
    }
    // Of this thread, in nanoseconds (Linux, `Documentation/scheduler/sched-stats.rst`).
    let used = || {
        let used = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        Duration::from_nanos(used.split(' ').next().unwrap().parse().unwrap())
    };
    let before = used();
    for _ in 0..turns {
        snapshotter.reclaim(&|| false).unwrap();
    }
    let turn = (used() - before) / turns;
    assert!(turn < Duration::from_millis(5), "{turn:?} of a processor's time for one directory");
}

#[test]
fn chains_of_many_layers_show_all_of_them() {
    if !stdx::testing::is_root("a mount") {
        return;
    }
    let dir = tempfile::TempDir::new().unwrap();
    let overlay = open_overlay(dir.path());
    let mut parent: Option<String> = None;
    for layer in 0..120 {
        let mounts = overlay.prepare("extract", parent.as_deref(), Default::default()).unwrap();
        suite::with_mounted(&mounts, |tree| fs::write(tree.join(layer.to_string()), "").unwrap());
        let name = format!("layer{layer}");
        overlay.commit(&name, "extract", Default::default()).unwrap();
        parent = Some(name);
    }
    for count in [50, 120] {
        let top = format!("layer{}", count - 1);
        let mounts = overlay.view(&format!("look{count}"), Some(&top), Default::default()).unwrap();
        suite::with_mounted(&mounts, |tree| assert_eq!(fs::read_dir(tree).unwrap().count(), count));
    }
}
