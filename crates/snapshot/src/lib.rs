//! Snapshots: states of a file system, each made on top of another.
//!
//! ```text
//! prepare(key, parent) ─▶ active ──commit(name)──▶ committed ◀── parent of others
//! view(key, parent)    ─▶ view (read-only)
//! remove(key) ─▶ gone from the records; its files are taken out of the way by cleanup() and deleted by reclaim()
//! ```
//!
//! [`Snapshotter`] is the port. A snapshotter gives mounts and leaves carrying them out to others. Keys of
//! active snapshots and names of committed ones share one space. `docs/design/snapshots.md` has the format
//! on disk and what a crash leaves.
//!
//! - [`Overlay`]: a directory or an archive per snapshot, stacked by overlayfs.
//! - [`Native`]: a full copy per snapshot, for file systems that overlayfs cannot use.
#![forbid(unsafe_code)]

mod barrier;
mod layer;
mod native;
mod overlay;
mod packed;
mod records;
mod verity;

pub use barrier::Barrier;
pub use layer::{Backing, LayerFiles, NewLayer, probe, reads_files_soundly};
pub use native::Native;
pub use overlay::{LayerForm, Options, Overlay, probe as probe_overlay};
pub use verity::probe as probe_verity;

/// Parsers of files that a disk may have changed, for those who try what they do with any.
#[doc(hidden)]
pub mod parsers {
    pub use crate::packed::{read as unpack_image, write as pack_image};
}

use kv::{Db, WriteTxn};
use types::{Error, Labels, Mount, Result, Timestamp};

/// The name by which a snapshotter is known here, of all that clients call it by: who asks for layers as
/// EROFS images gets them from [`Overlay`].
pub fn canonical_name(name: &str) -> &str {
    match name {
        Overlay::OTHER_NAME => Overlay::NAME,
        own => own,
    }
}

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

/// Where a layer goes that is for the tree of some mounts.
#[derive(Debug)]
pub enum Target {
    /// Into these files, whole, as it came.
    Layer(LayerFiles),
    /// Onto the tree of these mounts, which show all that the snapshot has by now.
    Tree(Vec<Mount>),
}

/// A store of snapshots. Every implementation passes the tests in `tests/it/suite.rs`.
///
/// Some methods are about layers that are kept whole, as they came: [`Snapshotter::layer_files`],
/// [`Snapshotter::kept_layer`], [`Snapshotter::layer_mended`], [`Snapshotter::mend_derived`], [`Snapshotter::make_ready`]
/// and [`Snapshotter::target`]. One that keeps trees of files has their defaults, which say so of a snapshot that there
/// is, and `NotFound` of others.
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

    /// Where an active snapshot takes a layer whole, as it came, in place of a tree of its files. None if it
    /// takes only a tree.
    fn layer_files(&self, key: &str) -> Result<Option<LayerFiles>> {
        self.stat(key).map(|_| None)
    }

    /// The files of a committed snapshot that is a layer as it came, whatever state they are in. None for every
    /// other.
    fn kept_layer(&self, key: &str) -> Result<Option<LayerFiles>> {
        self.stat(key).map(|_| None)
    }

    /// Says that wrong files of [`Snapshotter::kept_layer`] were replaced: what was made of them is not used
    /// any more, but by those who have it mounted. Mounts that were answered before must be asked for again.
    fn layer_mended(&self, key: &str) -> Result<()> {
        self.stat(key).map(drop)
    }

    /// Compares what was made of a committed snapshot and of those below with what they give, and drops it if
    /// it is wrong; it is made anew when it is needed. Whether it was wrong. `DataLoss` if one of them cannot
    /// be read.
    fn mend_derived(&self, key: &str) -> Result<bool> {
        self.stat(key).map(|_| false)
    }

    /// Makes ahead what the first use of a committed snapshot would have to make, and has it on disk.
    fn make_ready(&self, key: &str) -> Result<()> {
        self.stat(key).map(drop)
    }

    /// As [`Snapshotter::layer_files`], for whoever has only the mounts of an active snapshot, as they were answered.
    /// None if they are not those of a snapshot of this snapshotter, or there is nothing to say of it.
    fn target(&self, mounts: &[Mount]) -> Result<Option<Target>> {
        let _ = mounts;
        Ok(None)
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
