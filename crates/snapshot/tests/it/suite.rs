//! What every snapshotter does.

use std::fs;
use std::path::Path;

use snapshot::{CommitOptions, Kind, LayerFiles, NewLayer, Snapshotter, Usage};
use tempfile::TempDir;
use types::{ErrorKind, Labels, Mount};

/// A directory in which snapshotters may have left mounts.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Place {
        Place(TempDir::new().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        unmount_below(self.path());
    }
}

/// What a reboot does to mounts.
pub(crate) fn unmount_below(dir: &Path) {
    for point in linux::mount::mount_points().unwrap().into_iter().rev() {
        if point.path.starts_with(dir) {
            linux::mount::unmount_all(&point.path).unwrap();
        }
    }
}

/// Makes an active snapshot and fills it: with an archive if the snapshotter keeps these, else by its mounts.
pub(crate) fn prepare_with(
    snapshotter: &dyn Snapshotter,
    key: &str,
    parent: Option<&str>,
    fill: impl FnOnce(&Path),
) -> Vec<Mount> {
    let mounts = snapshotter.prepare(key, parent, Labels::new()).unwrap();
    let layers = snapshotter.kept_layers().filter(|_| parent.is_none());
    match layers.and_then(|layers| layers.files_for(key).unwrap()) {
        Some(files) => store(&files, fill),
        None => with_mounted(&mounts, fill),
    }
    mounts
}

/// Stores what `fill` makes as a layer.
pub(crate) fn store(files: &LayerFiles, fill: impl FnOnce(&Path)) {
    let tree = TempDir::new().unwrap();
    fill(tree.path());
    store_tree(files, tree.path());
}

/// Stores what is in a directory as a layer.
pub(crate) fn store_tree(files: &LayerFiles, tree: &Path) {
    let tar = std::process::Command::new("tar").arg("-C").arg(tree).args(["-cf", "-", "."]).output();
    let tar = tar.unwrap();
    assert!(tar.status.success(), "{tar:?}");
    let blob = types::Digest::of(&tar.stdout);
    let store = |new: NewLayer<'_>| {
        let record = new.record.map(|to| diff::spans::Record { blob: &blob, to });
        diff::store(&tar.stdout[..], diff::Limits::default(), new.data, record)
    };
    files.write_durably(|new| store(new).map(|stored| stored.tree)).unwrap();
}

/// Runs every case on what `open` gives for a directory of its own; what it gives for one a second time has what was
/// made there before.
pub(crate) fn run(open: impl Fn(&Path) -> Box<dyn Snapshotter>, rebases: bool) {
    if !stdx::testing::is_root("a mount") {
        return;
    }
    let each = |test: &dyn Fn(&dyn Snapshotter, &Path)| {
        let dir = Place::new();
        test(&*open(dir.path()), dir.path());
    };
    each(&|snapshotter, _| layers_are_seen_through(snapshotter));
    each(&|snapshotter, _| errors_have_their_kinds(snapshotter));
    each(&|snapshotter, _| a_snapshot_with_children_cannot_be_removed(snapshotter));
    each(&|snapshotter, _| cleanups_may_run_at_once(snapshotter));
    each(&|snapshotter, _| views_are_read_only(snapshotter));
    each(&|snapshotter, _| usage_counts_what_was_added(snapshotter));
    if rebases {
        each(&|snapshotter, _| layers_made_side_by_side_get_their_parents_at_commit(snapshotter));
    }
    let dir = Place::new();
    open(dir.path()).prepare("kept", None, labels("a", "1")).unwrap();
    open(dir.path()).update("kept", labels("a", "2")).unwrap();
    let found = open(dir.path()).stat("kept").unwrap();
    assert_eq!((found.kind, found.labels), (Kind::Active, labels("a", "2")));
}

fn labels(key: &str, value: &str) -> Labels {
    Labels::from([(key.to_owned(), value.to_owned())])
}

/// Carries out mounts on a directory, for as long as `work` runs.
pub(crate) fn with_mounted(mounts: &[Mount], work: impl FnOnce(&Path)) {
    let target = TempDir::new().unwrap();
    linux::mount::mount_all(mounts, target.path()).unwrap();
    work(target.path());
    linux::mount::unmount_all(target.path()).unwrap();
}

fn layers_are_seen_through(snapshotter: &dyn Snapshotter) {
    prepare_with(snapshotter, "one", None, |tree| {
        fs::write(tree.join("a"), "from one").unwrap();
        fs::write(tree.join("b"), "from one").unwrap();
    });
    snapshotter.commit("base", "one", CommitOptions { labels: labels("l", "v"), parent: None }).unwrap();
    assert_eq!(snapshotter.stat("one").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(snapshotter.stat("base").unwrap().labels, labels("l", "v"));

    let second = prepare_with(snapshotter, "two", Some("base"), |tree| {
        assert_eq!(fs::read_to_string(tree.join("a")).unwrap(), "from one");
        fs::write(tree.join("a"), "from two").unwrap();
        fs::remove_file(tree.join("b")).unwrap();
    });
    assert_eq!(snapshotter.mounts("two").unwrap(), second);
    snapshotter.commit("top", "two", CommitOptions::default()).unwrap();
    let look = snapshotter.view("look", Some("top"), Labels::new()).unwrap();
    with_mounted(&look, |tree| {
        assert_eq!(fs::read_to_string(tree.join("a")).unwrap(), "from two");
        assert!(!tree.join("b").exists());
    });
    let below = snapshotter.view("below", Some("base"), Labels::new()).unwrap();
    with_mounted(&below, |tree| assert_eq!(fs::read_to_string(tree.join("a")).unwrap(), "from one"));
    assert_eq!(snapshotter.list().unwrap().len(), 4);
}

fn errors_have_their_kinds(snapshotter: &dyn Snapshotter) {
    snapshotter.prepare("active", None, Labels::new()).unwrap();
    let kind = |result: types::Result<Vec<Mount>>| result.unwrap_err().kind();
    assert_eq!(kind(snapshotter.prepare("active", None, Labels::new())), ErrorKind::AlreadyExists);
    assert_eq!(kind(snapshotter.prepare("x", Some("nosuch"), Labels::new())), ErrorKind::NotFound);
    assert_eq!(kind(snapshotter.prepare("x", Some("active"), Labels::new())), ErrorKind::InvalidArgument);
    assert_eq!(kind(snapshotter.mounts("nosuch")), ErrorKind::NotFound);
    snapshotter.commit("done", "active", CommitOptions::default()).unwrap();
    assert_eq!(kind(snapshotter.mounts("done")), ErrorKind::FailedPrecondition);
    let commit =
        |name: &str, key: &str| snapshotter.commit(name, key, CommitOptions::default()).unwrap_err().kind();
    assert_eq!(commit("other", "active"), ErrorKind::NotFound);
    assert_eq!(commit("other", "done"), ErrorKind::FailedPrecondition);
    snapshotter.prepare("again", None, Labels::new()).unwrap();
    assert_eq!(commit("done", "again"), ErrorKind::AlreadyExists);
}

fn a_snapshot_with_children_cannot_be_removed(snapshotter: &dyn Snapshotter) {
    snapshotter.prepare("one", None, Labels::new()).unwrap();
    snapshotter.commit("base", "one", CommitOptions::default()).unwrap();
    snapshotter.prepare("child", Some("base"), Labels::new()).unwrap();
    assert_eq!(snapshotter.remove("base").unwrap_err().kind(), ErrorKind::FailedPrecondition);
    snapshotter.remove("child").unwrap();
    snapshotter.remove("base").unwrap();
    assert_eq!(snapshotter.remove("base").unwrap_err().kind(), ErrorKind::NotFound);
    snapshotter.cleanup().unwrap();
    assert!(snapshotter.list().unwrap().is_empty());
    snapshotter.prepare("one", None, Labels::new()).unwrap();
}

fn cleanups_may_run_at_once(snapshotter: &dyn Snapshotter) {
    for number in 0..20 {
        snapshotter.prepare(&number.to_string(), None, Labels::new()).unwrap();
        snapshotter.remove(&number.to_string()).unwrap();
    }
    std::thread::scope(|scope| {
        let cleanups: Vec<_> = (0..4).map(|_| scope.spawn(|| snapshotter.cleanup())).collect();
        for cleanup in cleanups {
            cleanup.join().unwrap().unwrap();
        }
    });
}

fn views_are_read_only(snapshotter: &dyn Snapshotter) {
    snapshotter.prepare("one", None, Labels::new()).unwrap();
    snapshotter.commit("base", "one", CommitOptions::default()).unwrap();
    let view = snapshotter.view("view", Some("base"), Labels::new()).unwrap();
    with_mounted(&view, |tree| assert!(fs::write(tree.join("x"), "").is_err()));
    let error = snapshotter.commit("other", "view", CommitOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
}

fn usage_counts_what_was_added(snapshotter: &dyn Snapshotter) {
    prepare_with(snapshotter, "empty", None, |_| {});
    snapshotter.commit("nothing", "empty", CommitOptions::default()).unwrap();
    let nothing = snapshotter.usage("nothing").unwrap();
    assert!(nothing.bytes < 50_000 && nothing.inodes == 1, "the top is one: {nothing:?}");
    snapshotter.view("view", Some("nothing"), Labels::new()).unwrap();
    assert_eq!(snapshotter.usage("view").unwrap(), Usage::default());
    prepare_with(snapshotter, "layer", None, |tree| fs::write(tree.join("big"), vec![1; 100_000]).unwrap());
    snapshotter.commit("committed", "layer", CommitOptions::default()).unwrap();
    let committed = snapshotter.usage("committed").unwrap();
    assert!(
        committed.bytes >= 100_000 && committed.bytes < 150_000 && committed.inodes == 2,
        "{committed:?}"
    );
    let mounts = snapshotter.prepare("one", Some("nothing"), Labels::new()).unwrap();
    with_mounted(&mounts, |tree| fs::write(tree.join("big"), vec![1; 100_000]).unwrap());
    let active = snapshotter.usage("one").unwrap();
    assert!(active.bytes >= 100_000 && active.inodes == 2, "{active:?}");
    snapshotter.commit("base", "one", CommitOptions::default()).unwrap();
    assert_eq!(snapshotter.usage("base").unwrap(), active);
}

fn layers_made_side_by_side_get_their_parents_at_commit(snapshotter: &dyn Snapshotter) {
    for name in ["lower", "upper"] {
        prepare_with(snapshotter, &format!("extract-{name}"), None, |tree| {
            fs::write(tree.join(name), name).unwrap();
        });
    }
    snapshotter.commit("lower", "extract-lower", CommitOptions::default()).unwrap();
    let on_lower = || CommitOptions { labels: Labels::new(), parent: Some("lower".into()) };
    snapshotter.commit("upper", "extract-upper", on_lower()).unwrap();
    assert_eq!(snapshotter.stat("upper").unwrap().parent.as_deref(), Some("lower"));
    assert_eq!(snapshotter.remove("lower").unwrap_err().kind(), ErrorKind::FailedPrecondition);
    let look = snapshotter.view("look", Some("upper"), Labels::new()).unwrap();
    with_mounted(&look, |tree| {
        for name in ["lower", "upper"] {
            assert_eq!(fs::read_to_string(tree.join(name)).unwrap(), name);
        }
    });
    snapshotter.prepare("has-one", Some("upper"), Labels::new()).unwrap();
    let error = snapshotter.commit("x", "has-one", on_lower()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}
