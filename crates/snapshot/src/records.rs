//! The records and directories of snapshots, which the snapshotters of this crate share: `ROOT/ID/` for each snapshot.
//!
//! The order of operations makes a crash harmless. A directory is created before its record, so that a record always
//! has one; a record is removed before its directory, so that a directory without a record is garbage. Garbage is moved
//! to `ROOT/removed` by one rename(2), and deleted there. Ids count up, and are not reused while their directory
//! exists.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kv::{Db, Read, Reader, Table, Value, WriteTxn, Writer};
use linux::removal;
use stdx::Mutex;
use types::{Context, Error, Labels, Result, Timestamp};

use crate::{Barrier, CommitOptions, Kind, Snapshot, Usage};

/// The directory below the root for directories of removed snapshots, and for replaced archives.
pub(crate) const REMOVED: &str = "removed";
/// Most cached chains, before all are forgotten: more than a machine uses at a time.
const CHAINS_MAX: usize = 256;

/// (snapshotter, key) to record.
const SNAPSHOTS: Table<(String, String), Record> = Table::new("snapshotter_records");
/// (snapshotter, parent, child): answers "has it children".
const CHILDREN: Table<(String, String, String), ()> = Table::new("snapshotter_children");

#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) id: u64,
    pub(crate) parent: Option<String>,
    pub(crate) kind: Kind,
    labels: Labels,
    created: Timestamp,
    updated: Timestamp,
    /// Of committed snapshots, at their commit.
    pub(crate) usage: Usage,
}

impl Value for Record {
    fn encode(&self, to: &mut Writer) {
        to.byte(1);
        to.number(self.id);
        to.option(self.parent.as_ref(), |to, parent| to.text(parent));
        to.byte(match self.kind {
            Kind::View => 0,
            Kind::Active => 1,
            Kind::Committed => 2,
        });
        to.labels(&self.labels);
        to.timestamp(self.created);
        to.timestamp(self.updated);
        to.number(self.usage.bytes);
        to.number(self.usage.inodes);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Record> {
        from.version(1)?;
        Ok(Record {
            id: from.number()?,
            parent: from.option(Reader::string)?,
            kind: match from.byte()? {
                0 => Kind::View,
                1 => Kind::Active,
                2 => Kind::Committed,
                other => return Err(Error::data_loss(format!("snapshot record has kind {other}"))),
            },
            labels: from.labels()?,
            created: from.timestamp()?,
            updated: from.timestamp()?,
            usage: Usage { bytes: from.number()?, inodes: from.number()? },
        })
    }
}

impl Record {
    fn snapshot(self, key: String) -> Snapshot {
        let Record { parent, kind, labels, created, updated, .. } = self;
        Snapshot { key, parent, kind, labels, created, updated }
    }
}

/// A snapshot with the ids of its parents, nearest first.
pub(crate) struct Chain {
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    pub(crate) labels: Labels,
    pub(crate) parents: Vec<u64>,
}

pub(crate) struct Records {
    snapshotter: &'static str,
    db: Db,
    root: PathBuf,
    ids: Mutex<Ids>,
    /// The ids of each committed snapshot and all below it, topmost first, by the topmost. They never change.
    chains: Mutex<HashMap<u64, Arc<[u64]>>>,
    /// Held during [`Records::cleanup`].
    cleaning: Mutex<()>,
    /// Held during [`Records::reclaim`].
    reclaiming: Mutex<()>,
}

struct Ids {
    next: u64,
    /// Ids whose directories have no record yet.
    pending: BTreeSet<u64>,
}

impl Records {
    pub(crate) fn open(snapshotter: &'static str, root: &Path, db: Db) -> Result<Records> {
        fs::create_dir_all(root).context(|| format!("create {}", root.display()))?;
        linux::placement::scatter(root);
        let mut records = Records {
            snapshotter,
            db,
            root: root.to_owned(),
            ids: Mutex::new(Ids { next: 1, pending: BTreeSet::new() }),
            chains: Mutex::default(),
            cleaning: Mutex::new(()),
            reclaiming: Mutex::new(()),
        };
        let known = records.all()?.into_values().map(|record| record.id);
        let found: Vec<u64> = [records.root.clone(), records.root.join(REMOVED)]
            .iter()
            .flat_map(|folder| numbered(folder).map(|found| found.map(|(id, _)| id)))
            .collect::<Result<_>>()?;
        let next = known.chain(found).max().unwrap_or(0) + 1;
        records.ids.get_mut().next = next;
        Ok(records)
    }

    pub(crate) fn directory(&self, id: u64) -> PathBuf {
        self.root.join(id.to_string())
    }

    /// The database of the records.
    pub(crate) fn db(&self) -> &Db {
        &self.db
    }

    pub(crate) fn get(&self, key: &str) -> Result<Record> {
        self.db.read(|tx| self.find(tx, key))
    }

    /// The key or name of the snapshot with this id.
    pub(crate) fn key_of(&self, id: u64) -> Result<Option<String>> {
        let mut found = None;
        self.db.read(|tx| {
            SNAPSHOTS.scan(tx, (self.snapshotter,), |(_, key), record| {
                if record.id != id {
                    return Ok(ControlFlow::Continue(()));
                }
                found = Some(key);
                Ok(ControlFlow::Break(()))
            })
        })?;
        Ok(found)
    }

    pub(crate) fn stat(&self, key: &str) -> Result<Snapshot> {
        Ok(self.get(key)?.snapshot(key.to_owned()))
    }

    pub(crate) fn list(&self) -> Result<Vec<Snapshot>> {
        Ok(self.all()?.into_iter().map(|(key, record)| record.snapshot(key)).collect())
    }

    /// Creates a snapshot: `make` gets the path of its directory and the chain, and creates the directory before the
    /// record is written.
    pub(crate) fn create(
        &self,
        key: &str,
        parent: Option<&str>,
        kind: Kind,
        labels: Labels,
        make: impl FnOnce(&Path, &Chain) -> Result<()>,
    ) -> Result<Chain> {
        let what = || format!("make snapshot {key}");
        // Checked here too, so that the usual errors cost no directory.
        let parents = self.db.read(|tx| self.check_new(tx, key, parent)).context(what)?;
        let id = self.take_id();
        let chain = Chain { id, kind, labels: labels.clone(), parents };
        let directory = self.directory(id);
        let recorded = make(&directory, &chain).and_then(|()| {
            let now = Timestamp::now();
            let usage = Usage::default();
            let record = Record {
                id,
                parent: parent.map(str::to_owned),
                kind,
                labels,
                created: now,
                updated: now,
                usage,
            };
            self.db.write_relaxed(|tx| {
                self.check_new(tx, key, parent)?;
                if let Some(parent) = parent {
                    CHILDREN.put(tx, (self.snapshotter, parent, key), &())?;
                }
                SNAPSHOTS.put(tx, (self.snapshotter, key), &record)
            })
        });
        self.forget_id(id);
        match recorded {
            Ok(()) => Ok(chain),
            Err(error) => {
                // Without a record the directory is garbage: what cannot be deleted here is left to cleanup.
                let _ = removal::delete(&directory, &|| true);
                Err(error.context(what()))
            }
        }
    }

    pub(crate) fn chain(&self, key: &str) -> Result<Chain> {
        self.db.read(|tx| {
            let record = self.find(tx, key)?;
            if record.kind == Kind::Committed {
                return Err(Error::failed_precondition(format!(
                    "failed to get active mount: requested snapshot {key} not active or view: what is committed is not mounted"
                )));
            }
            let parents =
                record.parent.as_deref().map_or(Ok(Vec::new()), |parent| self.ids_from(tx, parent))?;
            Ok(Chain { id: record.id, kind: record.kind, labels: record.labels, parents })
        })
    }

    /// Ids of a snapshot and all below it, topmost first.
    pub(crate) fn ids_of(&self, key: &str) -> Result<Vec<u64>> {
        self.db.read(|tx| self.ids_from(tx, key))
    }

    /// Ids of all snapshots that are based on this one, directly or not.
    pub(crate) fn on_top_of(&self, id: u64) -> Result<Vec<u64>> {
        let all = self.all()?;
        let parent = |record: &Record| record.parent.as_ref().and_then(|key| all.get(key));
        let above = all.values().filter(|record| {
            std::iter::successors(parent(record), |below| parent(below)).any(|below| below.id == id)
        });
        Ok(above.map(|record| record.id).collect())
    }

    pub(crate) fn update(&self, key: &str, labels: Labels) -> Result<()> {
        self.db.write(|tx| {
            let mut record = self.find(tx, key)?;
            (record.labels, record.updated) = (labels, Timestamp::now());
            SNAPSHOTS.put(tx, (self.snapshotter, key), &record)
        })
    }

    /// The step that commits a snapshot, for a transaction of [`Records::db`].
    pub(crate) fn commit_step<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        options: CommitOptions,
        usage: Usage,
    ) -> impl FnOnce(&mut WriteTxn<'_>) -> Result<()> + 'a {
        move |tx| {
            let committed = self.commit_in(tx, name, key, options, usage);
            committed.context(|| format!("failed to commit snapshot {key}"))
        }
    }

    fn commit_in(
        &self,
        tx: &mut WriteTxn<'_>,
        name: &str,
        key: &str,
        options: CommitOptions,
        usage: Usage,
    ) -> Result<()> {
        if SNAPSHOTS.contains(tx, (self.snapshotter, name))? {
            return Err(Error::already_exists(format!("snapshot {name} already exists")));
        }
        let mut record = self.find(tx, key)?;
        if record.kind != Kind::Active {
            return Err(Error::failed_precondition(format!("snapshot {key:?} is not active")));
        }
        if let Some(parent) = options.parent {
            match &record.parent {
                None => self.require_committed(tx, &parent)?,
                Some(own) if *own == parent => {}
                Some(own) => {
                    let message =
                        format!("snapshot {key} was made on {own} and cannot be committed on {parent}");
                    return Err(Error::invalid_argument(message));
                }
            }
            record.parent = Some(parent);
        }
        SNAPSHOTS.delete(tx, (self.snapshotter, key))?;
        if let Some(parent) = &record.parent {
            CHILDREN.delete(tx, (self.snapshotter, parent.as_str(), key))?;
            CHILDREN.put(tx, (self.snapshotter, parent.as_str(), name), &())?;
        }
        (record.kind, record.labels, record.usage) = (Kind::Committed, options.labels, usage);
        record.updated = Timestamp::now();
        SNAPSHOTS.put(tx, (self.snapshotter, name), &record)
    }

    pub(crate) fn remove(&self, key: &str) -> Result<()> {
        let removed = self.db.write_relaxed(|tx| {
            let record = self.find(tx, key)?;
            if CHILDREN.any(tx, (self.snapshotter, key))? {
                return Err(Error::failed_precondition("others are made on it"));
            }
            if let Some(parent) = &record.parent {
                CHILDREN.delete(tx, (self.snapshotter, parent.as_str(), key))?;
            }
            SNAPSHOTS.delete(tx, (self.snapshotter, key)).map(drop)
        });
        removed.context(|| format!("remove snapshot {key}"))
    }

    /// A barrier for the files of all snapshots.
    pub(crate) fn barrier(&self) -> Result<Barrier> {
        Barrier::open(&self.root)
    }

    /// Moves directories without a record away, after calling `before` with each.
    pub(crate) fn cleanup(&self, before: impl Fn(&Path) -> Result<()>) -> Result<()> {
        // One at a time: two would find the same directories.
        let _alone = self.cleaning.lock();
        // Directories first and records second: a directory that is listed has a record by then, or is pending.
        let found = self.directories()?;
        let pending = self.lock().pending.clone();
        let known: BTreeSet<u64> = self.all()?.into_values().map(|record| record.id).collect();
        // The removal itself must be on disk before files go, or a power cut would bring back the record.
        self.db.sync()?;
        let mut first_error = None;
        for (id, path) in found.into_iter().filter(|(id, _)| !known.contains(id) && !pending.contains(id)) {
            if let Err(error) = before(&path).and_then(|()| self.set_aside(id, &path)) {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    fn set_aside(&self, id: u64, path: &Path) -> Result<()> {
        let removed = self.root.join(REMOVED);
        let moved =
            fs::create_dir_all(&removed).and_then(|()| fs::rename(path, removed.join(id.to_string())));
        moved.context(|| format!("take {} out of the way", path.display()))
    }

    /// Deletes the directories that were moved away, after calling `before` with each, until `go_on` returns false.
    /// Returns whether all are deleted.
    pub(crate) fn reclaim(
        &self,
        before: impl Fn(&Path) -> Result<()>,
        go_on: &dyn Fn() -> bool,
    ) -> Result<bool> {
        // One at a time: two would delete the same files.
        let _alone = self.reclaiming.lock();
        let mut first_error = None;
        // Listed lazily: there may be very many, while a call may delete only a few.
        for found in entries(&self.root.join(REMOVED)) {
            let path = found?;
            match before(&path).and_then(|()| removal::delete(&path, go_on)) {
                Ok(true) if go_on() => {}
                Ok(_) => return Ok(false),
                Err(error) => drop(first_error.get_or_insert(error)),
            }
        }
        first_error.map_or(Ok(true), Err)
    }

    fn all(&self) -> Result<BTreeMap<String, Record>> {
        let mut all = BTreeMap::new();
        self.db.read(|tx| {
            SNAPSHOTS.scan(tx, (self.snapshotter,), |(_, key), record| {
                all.insert(key, record);
                Ok(ControlFlow::Continue(()))
            })
        })?;
        Ok(all)
    }

    fn directories(&self) -> Result<Vec<(u64, PathBuf)>> {
        numbered(&self.root).collect()
    }

    fn find(&self, tx: &impl Read, key: &str) -> Result<Record> {
        let record = SNAPSHOTS.get(tx, (self.snapshotter, key))?;
        record.ok_or_else(|| Error::not_found(format!("snapshot {key} does not exist")))
    }

    fn check_new(&self, tx: &impl Read, key: &str, parent: Option<&str>) -> Result<Vec<u64>> {
        if key.is_empty() {
            return Err(Error::invalid_argument("the key is empty"));
        }
        if SNAPSHOTS.contains(tx, (self.snapshotter, key))? {
            return Err(Error::already_exists(format!("snapshot {key} already exists")));
        }
        match parent {
            Some(parent) => {
                self.require_committed(tx, parent)?;
                self.ids_from(tx, parent)
            }
            None => Ok(Vec::new()),
        }
    }

    fn require_committed(&self, tx: &impl Read, parent: &str) -> Result<()> {
        match self.find(tx, parent)?.kind {
            Kind::Committed => Ok(()),
            _ => Err(Error::invalid_argument(format!("parent {parent:?} is not committed snapshot"))),
        }
    }

    /// Ids of a snapshot and all below it, topmost first.
    fn ids_from(&self, tx: &impl Read, key: &str) -> Result<Vec<u64>> {
        let top = self.find(tx, key)?;
        if let Some(known) = self.chains().get(&top.id) {
            return Ok(known.to_vec());
        }
        let (mut ids, mut next) = (vec![top.id], top.parent);
        while let Some(key) = next {
            let record = self.find(tx, &key)?;
            ids.push(record.id);
            next = record.parent;
        }
        if top.kind == Kind::Committed {
            let mut chains = self.chains();
            if chains.len() >= CHAINS_MAX {
                chains.clear();
            }
            chains.insert(top.id, ids.clone().into());
        }
        Ok(ids)
    }

    fn chains(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<[u64]>>> {
        self.chains.lock()
    }

    fn take_id(&self) -> u64 {
        let mut ids = self.lock();
        let id = ids.next;
        ids.next += 1;
        ids.pending.insert(id);
        id
    }

    fn forget_id(&self, id: u64) {
        self.lock().pending.remove(&id);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ids> {
        self.ids.lock()
    }
}

/// The directories in a folder whose names are ids, in no order. Empty if the folder is missing.
fn numbered(folder: &Path) -> impl Iterator<Item = Result<(u64, PathBuf)>> {
    entries(folder).filter_map(|entry| match entry {
        Ok(path) => {
            let id = path.file_name().and_then(|name| name.to_str()?.parse().ok());
            id.map(|id| Ok((id, path)))
        }
        Err(error) => Some(Err(error)),
    })
}

/// The paths in a folder. Empty if the folder is missing.
fn entries(folder: &Path) -> impl Iterator<Item = Result<PathBuf>> {
    let what = || format!("read {}", folder.display());
    let (read, failed) = match fs::read_dir(folder) {
        Ok(read) => (Some(read), None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (None, None),
        Err(error) => (None, Some(Err(error).context(what))),
    };
    let entries = read.into_iter().flatten().map(move |entry| entry.map(|entry| entry.path()).context(what));
    failed.into_iter().chain(entries)
}

/// The disk usage of the files below a directory, without the directory itself. Hard links are counted once.
pub(crate) fn count(tree: &Path) -> Result<Usage> {
    let counted = linux::tree::usage(tree).context(|| format!("measure {}", tree.display()))?;
    Ok(Usage { bytes: counted.bytes, inodes: counted.inodes })
}

/// Adds the directory itself to the usage of the files in it: records have it without, and clients get it with.
pub(crate) fn with_top(tree: &Path, inside: Usage) -> Result<Usage> {
    match fs::symlink_metadata(tree) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(inside),
        top => {
            let top = top.context(|| format!("measure {}", tree.display()))?;
            Ok(Usage { bytes: inside.bytes + top.blocks() * 512, inodes: inside.inodes + 1 })
        }
    }
}
