//! The ports: what any snapshotter does, and what one does besides that keeps layers whole.

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
    /// Key of an active one, name of a committed one.
    pub key: String,
    pub parent: Option<String>,
    pub kind: Kind,
    pub labels: Labels,
    pub created: Timestamp,
    pub updated: Timestamp,
}

/// What a snapshot itself holds on disk, without its parents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    pub labels: Labels,
    /// Gives a parent to an active snapshot that was prepared without one, so that layers can be unpacked
    /// side by side and committed in order.
    pub parent: Option<String>,
}

/// A commit of which only the records are left to be changed.
pub struct ReadyCommit<'a> {
    db: &'a Db,
    step: Step<'a>,
    tidy: Tidy<'a>,
}

/// Changes the records, in a transaction of the database that they are in.
pub type Step<'a> = Box<dyn FnOnce(&mut WriteTxn<'_>) -> Result<()> + 'a>;
/// What is better done afterwards, and not missed otherwise.
pub type Tidy<'a> = Box<dyn FnOnce() + 'a>;

impl<'a> ReadyCommit<'a> {
    pub(crate) fn new(
        db: &'a Db,
        step: impl FnOnce(&mut WriteTxn<'_>) -> Result<()> + 'a,
        tidy: impl FnOnce() + 'a,
    ) -> ReadyCommit<'a> {
        ReadyCommit { db, step: Box::new(step), tidy: Box::new(tidy) }
    }

    /// Makes it, by itself.
    pub fn make(self) -> Result<()> {
        self.db.write_relaxed(self.step)?;
        (self.tidy)();
        Ok(())
    }

    /// For whoever makes it as a part of a change of this database. None if the records are in another.
    pub fn into_parts(self, db: &Db) -> Option<(Step<'a>, Tidy<'a>)> {
        self.db.is_same(db).then_some((self.step, self.tidy))
    }
}

/// A store of snapshots. Every implementation passes the tests in `tests/it/suite.rs`.
pub trait Snapshotter: Send + Sync {
    /// `NotFound` if there is none of this key.
    fn stat(&self, key: &str) -> Result<Snapshot>;

    /// Replaces the labels.
    fn update(&self, key: &str, labels: Labels) -> Result<()>;

    /// How to mount an active snapshot or a view. `FailedPrecondition` for a committed one.
    fn mounts(&self, key: &str) -> Result<Vec<Mount>>;

    /// Makes a writable snapshot on a committed one, or on nothing. `AlreadyExists` if the key is taken,
    /// `NotFound` without the parent, `InvalidArgument` if the parent is not committed.
    fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>>;

    /// As [`Snapshotter::prepare`], read-only.
    fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>>;

    /// Turns an active snapshot into a committed one of this name; the key is free again. What was written
    /// must be on disk: this only changes records.
    fn commit(&self, name: &str, key: &str, options: CommitOptions) -> Result<()> {
        match self.ready_commit(name, key, options)? {
            Some(ready) => ready.make(),
            None => Err(Error::unimplemented(format!("commit snapshot {key}"))),
        }
    }

    /// As [`Snapshotter::commit`], up to the change of records, which whoever has records in the same database can
    /// make together with its own. None if the records are not in a database of ours.
    fn ready_commit<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        options: CommitOptions,
    ) -> Result<Option<ReadyCommit<'a>>> {
        let _ = (name, key, options);
        Ok(None)
    }

    /// The layers that it keeps whole, as they came. None if it keeps trees of files alone.
    fn kept_layers(&self) -> Option<&dyn KeptLayers> {
        None
    }

    /// Takes a snapshot out of the records. `FailedPrecondition` if others are made on it.
    fn remove(&self, key: &str) -> Result<()>;

    /// What du(1) counts of its tree: of an active snapshot now, of a committed one when it was committed. A view holds
    /// nothing.
    fn usage(&self, key: &str) -> Result<Usage>;

    /// Counts what a committed snapshot holds by now, if its files are there one by one. None for every other.
    fn recount(&self, key: &str) -> Result<Option<Usage>> {
        self.stat(key).map(|_| None)
    }

    fn list(&self) -> Result<Vec<Snapshot>>;

    /// As [`Snapshotter::list`], for a collection, which others wait for: it may give up earlier.
    fn list_for_collection(&self) -> Result<Vec<Snapshot>> {
        self.list()
    }

    /// Whether another program keeps them, which may be slow or silent.
    fn is_elsewhere(&self) -> bool {
        false
    }

    /// Whether labels of a layer that is prepared are to say of which image it is: it may get the layer by itself then.
    fn wants_origin(&self) -> bool {
        false
    }

    /// What to wait for so that the files of snapshots that are written from now on are on disk. Files that another program
    /// keeps are that one's duty.
    fn barrier(&self) -> Result<Barrier> {
        Ok(Barrier::default())
    }

    /// Takes the files of removed snapshots out of the way, and what a crash left. However many they are, it is
    /// one step a snapshot.
    fn cleanup(&self) -> Result<()>;

    /// Deletes what [`Snapshotter::cleanup`] took out of the way, until `go_on`, which is asked after each file,
    /// says no. Whether all is gone.
    fn reclaim(&self, go_on: &dyn Fn() -> bool) -> Result<bool> {
        let _ = go_on;
        Ok(true)
    }

    /// Called when nobody has asked for anything for a while: gives back memory that is of no use.
    fn relax(&self) {}
}

/// Layers that a snapshotter keeps whole, as they came: an archive, and what is in it. Few do, and who asks does not know
/// which.
///
/// `NotFound` of a key that there is not.
pub trait KeptLayers: Send + Sync {
    /// Where an active snapshot takes a layer whole, in place of a tree of its files. None if it takes only a tree.
    fn files_for(&self, key: &str) -> Result<Option<LayerFiles>>;

    /// As [`KeptLayers::files_for`], for a caller that has only the mounts of an active snapshot, as they were answered: one
    /// that takes only a tree is said to. None if they are not those of a snapshot of this snapshotter, or there is nothing to say of it.
    fn target(&self, mounts: &[Mount]) -> Result<Option<Target>>;

    /// The files of a committed snapshot that is a layer as it came, whatever state they are in. None for every
    /// other.
    fn files_of(&self, key: &str) -> Result<Option<LayerFiles>>;

    /// Says that wrong files of [`KeptLayers::files_of`] were replaced: what was made of them is not used
    /// any more, but by those who have it mounted. Mounts that were answered before must be asked for again.
    fn mended(&self, key: &str) -> Result<()>;

    /// Compares what was made of a committed snapshot and of those below with what they give, and drops it if
    /// it is wrong; it is made anew when it is needed. Whether it was wrong. `DataLoss` if one of them cannot
    /// be read.
    fn mend_derived(&self, key: &str) -> Result<bool>;

    /// Makes most of what [`KeptLayers::make_ready`] will have to make of a chain that is not committed yet: of active
    /// snapshots without a parent, the lowest first, each of which gets the one before as its parent, and the first
    /// `parent`. It is on disk by the barrier that whoever commits them waits for. None if there is nothing to make, or
    /// it cannot be made ahead.
    fn merge_ahead(&self, keys: &[String], parent: Option<&str>) -> Result<Option<Merged>>;

    /// Makes ahead what the first use of a committed snapshot would have to make, and has it on disk: of what was merged of
    /// its chain, if that is still right. Whoever gives it has waited for a barrier since.
    fn make_ready(&self, key: &str, merged: Option<Merged>) -> Result<()>;
}

/// Where a layer goes that is for the tree of some mounts.
#[derive(Debug)]
pub enum Target {
    /// Into these files, whole, as it came.
    Layer(LayerFiles),
    /// Onto the tree of these mounts, which show all that the snapshot has by now.
    Tree(Vec<Mount>),
}
