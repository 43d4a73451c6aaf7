//! The ports: [`Snapshotter`], and [`KeptLayers`] for snapshotters that keep layers as archives.

use kv::{Db, WriteTxn};
use types::{Error, Labels, Mount, Result, Timestamp};

use crate::{Barrier, LayerFiles, Merged};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    View,
    Active,
    Committed,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Key of an active snapshot or view, name of a committed one.
    pub key: String,
    pub parent: Option<String>,
    pub kind: Kind,
    pub labels: Labels,
    pub created: Timestamp,
    pub updated: Timestamp,
}

/// Disk usage of a snapshot without its parents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    pub labels: Labels,
    /// A parent for an active snapshot that was prepared without one, so that layers can be unpacked in parallel and
    /// committed in order.
    pub parent: Option<String>,
}

/// A prepared commit: only the records are still to be changed.
pub struct ReadyCommit<'a> {
    db: &'a Db,
    step: Step<'a>,
    tidy: Tidy<'a>,
}

/// Changes the records, in a transaction of their database.
pub type Step<'a> = Box<dyn FnOnce(&mut WriteTxn<'_>) -> Result<()> + 'a>;
/// Optional cleanup after the transaction.
pub type Tidy<'a> = Box<dyn FnOnce() + 'a>;

impl<'a> ReadyCommit<'a> {
    pub(crate) fn new(
        db: &'a Db,
        step: impl FnOnce(&mut WriteTxn<'_>) -> Result<()> + 'a,
        tidy: impl FnOnce() + 'a,
    ) -> ReadyCommit<'a> {
        ReadyCommit { db, step: Box::new(step), tidy: Box::new(tidy) }
    }

    /// Commits, in a transaction of its own.
    pub fn make(self) -> Result<()> {
        self.db.write_relaxed(self.step)?;
        (self.tidy)();
        Ok(())
    }

    /// The parts of the commit, for a caller that makes it in a transaction of its own. `None` if the records are in
    /// another database than `db`.
    pub fn into_parts(self, db: &Db) -> Option<(Step<'a>, Tidy<'a>)> {
        self.db.is_same(db).then_some((self.step, self.tidy))
    }
}

/// A store of snapshots. Every implementation passes the tests in `tests/it/suite.rs`.
pub trait Snapshotter: Send + Sync {
    /// Reads a snapshot's record. `NotFound` if there is none of this key, as in all methods that use an existing
    /// snapshot.
    fn stat(&self, key: &str) -> Result<Snapshot>;

    /// Replaces the labels.
    fn update(&self, key: &str, labels: Labels) -> Result<()>;

    /// The mounts of an active snapshot or a view. `FailedPrecondition` for a committed one.
    fn mounts(&self, key: &str) -> Result<Vec<Mount>>;

    /// Creates an active (writable) snapshot, based on a committed one or empty. `AlreadyExists` if the key is taken,
    /// `NotFound` without the parent, `InvalidArgument` if the parent is not committed.
    fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>>;

    /// Creates a read-only snapshot, otherwise like [`Snapshotter::prepare`].
    fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>>;

    /// Turns an active snapshot into a committed one of this name; the key is free again. Only the records are changed:
    /// the caller must have the snapshot's files on disk, see [`Snapshotter::barrier`].
    ///
    /// `AlreadyExists` if the name is taken, `FailedPrecondition` if the snapshot is not active.
    fn commit(&self, name: &str, key: &str, options: CommitOptions) -> Result<()> {
        match self.ready_commit(name, key, options)? {
            Some(ready) => ready.make(),
            None => Err(Error::unimplemented(format!("commit snapshot {key}"))),
        }
    }

    /// Prepares a commit up to the change of records, which a caller with records in the same database can make
    /// together with its own. `None` if the snapshotter's records are in no database of this process.
    fn ready_commit<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        options: CommitOptions,
    ) -> Result<Option<ReadyCommit<'a>>> {
        let _ = (name, key, options);
        Ok(None)
    }

    /// The port for layers that are kept as archives. `None` if this snapshotter keeps only trees of files.
    fn kept_layers(&self) -> Option<&dyn KeptLayers> {
        None
    }

    /// Removes a snapshot from the records. `FailedPrecondition` if others are based on it.
    fn remove(&self, key: &str) -> Result<()>;

    /// The disk usage of a snapshot, as du(1) counts it: an active snapshot's now, a committed one's at its commit. A
    /// view uses nothing.
    fn usage(&self, key: &str) -> Result<Usage>;

    /// Counts the current usage of a committed snapshot that is a tree of files. `None` for every other.
    fn recount(&self, key: &str) -> Result<Option<Usage>> {
        self.stat(key).map(|_| None)
    }

    fn list(&self) -> Result<Vec<Snapshot>>;

    /// [`Snapshotter::list`] for the garbage collector, which callers wait for: a snapshotter of another program may
    /// have a shorter deadline here.
    fn list_for_collection(&self) -> Result<Vec<Snapshot>> {
        self.list()
    }

    /// Whether the snapshots are in another program, which may be slow or hang.
    fn is_elsewhere(&self) -> bool {
        false
    }

    /// Whether a puller should label the snapshots that it prepares with their image and layer, so that the snapshotter
    /// can fetch the layer itself (a remote snapshotter).
    fn wants_origin(&self) -> bool {
        false
    }

    /// A barrier for the files of snapshots that are written from now on: after [`Barrier::wait`] they are on disk. It
    /// does nothing if another program has the files.
    fn barrier(&self) -> Result<Barrier> {
        Ok(Barrier::default())
    }

    /// Moves away the directories of removed snapshots, and leftovers of a crash. It is one rename(2) for a snapshot,
    /// however many files this has.
    fn cleanup(&self) -> Result<()>;

    /// Deletes the files that [`Snapshotter::cleanup`] moved away, until `go_on`, which is called after each file,
    /// returns false. Returns whether all are deleted.
    fn reclaim(&self, go_on: &dyn Fn() -> bool) -> Result<bool> {
        let _ = go_on;
        Ok(true)
    }

    /// Gives back memory that is not needed now. The daemon calls it when it is idle.
    fn relax(&self) {}
}

/// Layers that a snapshotter keeps as archives with an image of their metadata, instead of trees of files.
///
/// All methods return `NotFound` without a snapshot of the key.
pub trait KeptLayers: Send + Sync {
    /// Makes an active snapshot the caller's alone, until it is committed or removed: no layer is applied to it for
    /// another who has its mounts ([`KeptLayers::target`]). `FailedPrecondition` if somebody has written to it already.
    fn claim(&self, key: &str) -> Result<()>;

    /// The files to store a layer in, for an active snapshot that takes it as an archive. `None` if it takes only a
    /// tree. `FailedPrecondition` if it is claimed, and one who asked before that has written to it since.
    fn files_for(&self, key: &str) -> Result<Option<LayerFiles>>;

    /// [`KeptLayers::files_for`] for a caller that has only the mounts of an active snapshot, as the snapshotter
    /// returned them. `None` if they are not the mounts of an active snapshot of this snapshotter, `FailedPrecondition`
    /// if they are those of a claimed one.
    fn target(&self, mounts: &[Mount]) -> Result<Option<Target>>;

    /// The files of a committed snapshot that is kept as an archive, damaged or not. `None` for every other.
    fn files_of(&self, key: &str) -> Result<Option<LayerFiles>>;

    /// Must be called after damaged files of [`KeptLayers::files_of`] were replaced: drops the merged images that were
    /// made of them. Existing mounts of these stay; mounts that were returned before must be requested again.
    fn mended(&self, key: &str) -> Result<()>;

    /// Compares the merged image of a committed snapshot's chain with the layers, and drops it if it is wrong; it is
    /// made anew when it is needed. Returns whether it was wrong. `DataLoss` if a layer cannot be read.
    fn mend_derived(&self, key: &str) -> Result<bool>;

    /// Makes the merged image of a chain before its snapshots are committed, which is most of the work of
    /// [`KeptLayers::make_ready`]. `keys` are active snapshots without a parent, the lowest first; each will be
    /// committed on the one before, and the first on `parent`. The caller's barrier for the commits puts the image on
    /// disk too. `None` if no image is needed, or it cannot be made ahead.
    fn merge_ahead(&self, keys: &[String], parent: Option<&str>) -> Result<Option<Merged>>;

    /// Makes the merged image of a committed snapshot's chain, and has it on disk, so that the first use need not. Uses
    /// `merged` if that is still valid; the caller must have waited for a barrier since it was made.
    fn make_ready(&self, key: &str, merged: Option<Merged>) -> Result<()>;
}

/// Where to apply a layer that a client wants on some mounts.
#[derive(Debug)]
pub enum Target {
    /// Store it as an archive in these files.
    Layer(LayerFiles),
    /// Unpack it into the tree of these mounts, which include a layer that was stored in the snapshot before.
    Tree(Vec<Mount>),
}
