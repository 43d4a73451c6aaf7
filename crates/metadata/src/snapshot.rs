//! Snapshots of a namespace: the snapshotter's file systems, with labels and leases.
//!
//! The snapshotter's name of a snapshot is `<namespace>/<number>/<key>`; the number tells a reused key from its
//! removed predecessor, whose files go at the next collection.
//!
//! A snapshotter gets only labels that begin with `containerd.io/snapshot/`, and `containerd.io/snapshot.ref`. The
//! latter is a handshake: the caller of `prepare` names the committed snapshot that it is about to build; a
//! snapshotter that has it answers `AlreadyExists`, and its snapshot is recorded under that name.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use ::snapshot::{Barrier, CommitOptions, KeptLayers, Kind, LayerFiles, Merged, Snapshotter, Usage};
use kv::{Read, Reader, Table, Value, Writer};
use types::{
    Error, ErrorKind, FieldPath, Fields, Filters, Labels, Mount, Namespace, Result, Timestamp, filter, label,
};

use crate::event::Event;
use crate::gc::graph::Node;
use crate::gc::label as gc_label;
use crate::lease::{self, Resource};
use crate::mask;
use crate::store::{Caller, Change, Metadata, Notice, OnDisk};

/// Key: namespace, snapshotter, key.
pub(crate) const SNAPSHOTS: Table<(Namespace, String, String), Record> = Table::new("snapshots");
/// Key: namespace, snapshotter, parent, child.
const CHILDREN: Table<(Namespace, String, String, String), ()> = Table::new("snapshot_children");
const VERSION: u8 = 1;

const LABELS_BELOW: &str = "containerd.io/snapshot/";
const TARGET: &str = "containerd.io/snapshot.ref";

#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Key of an active snapshot or a view, name of a committed one.
    pub key: String,
    /// Empty if there is none.
    pub parent: String,
    pub kind: Kind,
    pub labels: Labels,
    pub created: Timestamp,
    pub updated: Timestamp,
}

/// The stored form of a snapshot. Its key is in the table's key.
pub(crate) struct Record {
    /// The snapshotter's name of the snapshot.
    pub(crate) backend: String,
    parent: String,
    kind: Kind,
    pub(crate) labels: Labels,
    created: Timestamp,
    updated: Timestamp,
}

impl Record {
    pub(crate) fn references(&self, snapshotter: &str) -> Vec<Node> {
        let mut nodes = gc_label::references(&self.labels);
        nodes.extend(self.ground(snapshotter));
        nodes
    }

    /// The object that a flat lease keeps together with this one.
    pub(crate) fn ground(&self, snapshotter: &str) -> Option<Node> {
        (!self.parent.is_empty()).then(|| Node::Snapshot(snapshotter.to_owned(), self.parent.clone()))
    }

    fn named(self, key: String) -> Snapshot {
        let Record { parent, kind, labels, created, updated, .. } = self;
        Snapshot { key, parent, kind, labels, created, updated }
    }
}

impl Value for Record {
    fn encode(&self, to: &mut Writer) {
        to.byte(VERSION);
        to.text(&self.backend);
        to.text(&self.parent);
        to.byte(match self.kind {
            Kind::View => 1,
            Kind::Active => 2,
            Kind::Committed => 3,
        });
        to.timestamp(self.created);
        to.timestamp(self.updated);
        to.labels(&self.labels);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Record> {
        from.version(VERSION)?;
        Ok(Record {
            backend: from.string()?,
            parent: from.string()?,
            kind: match from.byte()? {
                1 => Kind::View,
                2 => Kind::Active,
                3 => Kind::Committed,
                other => return Err(Error::data_loss(format!("a snapshot record has unknown kind {other}"))),
            },
            created: from.timestamp()?,
            updated: from.timestamp()?,
            labels: from.labels()?,
        })
    }
}

impl Fields for Snapshot {
    fn field(&self, path: &FieldPath) -> Option<Cow<'_, str>> {
        match path.head() {
            "name" => filter::present(&self.key),
            // Present even if empty, as in containerd.
            "parent" => Some(Cow::Borrowed(&self.parent)),
            "kind" => Some(Cow::Borrowed(match self.kind {
                Kind::View => "view",
                Kind::Active => "active",
                Kind::Committed => "committed",
            })),
            "labels" => path.label(&self.labels),
            _ => None,
        }
    }
}

/// The snapshotters in which a namespace has snapshots.
pub(crate) fn snapshotters_used(tx: &impl Read, namespace: &Namespace) -> Result<Vec<String>> {
    let mut names = BTreeSet::new();
    SNAPSHOTS.scan_keys(tx, (namespace,), |(_, snapshotter, _)| {
        names.insert(snapshotter);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(names.into_iter().collect())
}

/// Deletes a record. Returns whether it existed.
pub(crate) fn delete(
    change: &mut Change<'_, '_>,
    namespace: &Namespace,
    snapshotter: &str,
    key: &str,
) -> Result<bool> {
    let Some(record) = SNAPSHOTS.get(change.tx, (namespace, snapshotter, key))? else { return Ok(false) };
    SNAPSHOTS.delete(change.tx, (namespace, snapshotter, key))?;
    if !record.parent.is_empty() {
        CHILDREN.delete(change.tx, (namespace, snapshotter, record.parent.as_str(), key))?;
    }
    change.free();
    let event = Event::SnapshotRemoved { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
    change.emit(namespace, event);
    Ok(true)
}

pub struct Snapshots {
    store: Metadata,
    caller: Caller,
    snapshotter: String,
    backend: Arc<dyn Snapshotter>,
}

impl Snapshots {
    pub(crate) fn new(
        store: Metadata,
        caller: Caller,
        snapshotter: String,
        backend: Arc<dyn Snapshotter>,
    ) -> Snapshots {
        Snapshots { store, caller, snapshotter, backend }
    }

    pub fn stat(&self, key: &str) -> Result<Snapshot> {
        let record = self.store.0.read(|tx| self.find(tx, key))?;
        // The snapshotter may add labels, such as the path of the upper directory.
        let mut labels = self.backend.stat(&record.backend)?.labels;
        let mut snapshot = record.named(key.to_owned());
        labels.append(&mut snapshot.labels);
        Ok(Snapshot { labels, ..snapshot })
    }

    /// Adds an existing snapshot to the caller's lease, so that it and its ancestors are not collected. `NotFound` if
    /// there is none of this key.
    pub fn hold(&self, key: &str) -> Result<()> {
        // A record whose files a crash has lost does not count.
        self.stat(key)?;
        if self.join_lease(key)? { Ok(()) } else { Err(not_found(key)) }
    }

    /// The snapshots that match, by key, with the labels of their records.
    pub fn list(&self, filters: &Filters) -> Result<Vec<Snapshot>> {
        let mut found = Vec::new();
        self.store.0.read(|tx| {
            SNAPSHOTS.scan(tx, (self.namespace(), self.snapshotter.as_str()), |(_, _, key), record| {
                let snapshot = record.named(key);
                if filters.matches(&snapshot) {
                    found.push(snapshot);
                }
                Ok(ControlFlow::Continue(()))
            })
        })?;
        Ok(found)
    }

    pub fn usage(&self, key: &str) -> Result<Usage> {
        let record = self.store.0.read(|tx| self.find(tx, key))?;
        self.backend.usage(&record.backend)
    }

    /// The usage of a committed snapshot, counted anew, if it is a directory of files; see
    /// [`::snapshot::Snapshotter`].
    pub fn recount(&self, key: &str) -> Result<Option<Usage>> {
        let record = self.store.0.read(|tx| self.find(tx, key))?;
        self.backend.recount(&record.backend)
    }

    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let record = self.store.0.read(|tx| self.find(tx, key))?;
        self.backend.mounts(&record.backend)
    }

    /// Keeps layers of other callers out of an active snapshot, where the snapshotter can; see [`KeptLayers`].
    pub fn claim(&self, key: &str) -> Result<()> {
        self.ask_kept_layers(key, |layers, backend| layers.claim(backend))
    }

    /// The files in which an active snapshot takes a whole layer; `None` if it takes only a tree.
    pub fn layer_files(&self, key: &str) -> Result<Option<LayerFiles>> {
        self.ask_kept_layers(key, |layers, backend| layers.files_for(backend))
    }

    /// Whether the snapshotter is remote: it may have layers that no client extracted.
    pub fn is_elsewhere(&self) -> bool {
        self.backend.is_elsewhere()
    }

    /// Whether the labels of a prepared layer should name its image.
    pub fn wants_origin(&self) -> bool {
        self.backend.wants_origin()
    }

    /// The files of a committed snapshot that is kept as its layer; `None` for any other.
    pub fn kept_layer(&self, key: &str) -> Result<Option<LayerFiles>> {
        self.ask_kept_layers(key, |layers, backend| layers.files_of(backend))
    }

    /// Tells the snapshotter that wrong files of a layer were replaced.
    pub fn layer_mended(&self, key: &str) -> Result<()> {
        self.ask_kept_layers(key, |layers, backend| layers.mended(backend))?;
        self.set_aside();
        Ok(())
    }

    /// Gives notice that there are files to reclaim.
    pub fn set_aside(&self) {
        (self.store.0.notice)(Notice::SetAside);
    }

    /// Removes an image derived from a snapshot and its ancestors, if it is wrong; see [`KeptLayers`].
    pub fn mend_derived(&self, key: &str) -> Result<bool> {
        self.ask_kept_layers(key, |layers, backend| layers.mend_derived(backend))
    }

    /// Does most of the work of [`Snapshots::make_ready`] for snapshots that are about to be committed on each other
    /// and on `parent`; see [`KeptLayers`].
    pub fn merge_ahead(&self, keys: &[String], parent: Option<&str>) -> Result<Option<Merged>> {
        let (keys, parent) = self.store.0.read(|tx| {
            let backend = |key: &str| self.find(tx, key).map(|record| record.backend);
            let keys = keys.iter().map(|key| backend(key)).collect::<Result<Vec<String>>>()?;
            Ok((keys, parent.map(backend).transpose()?))
        })?;
        match self.backend.kept_layers() {
            Some(layers) => layers.merge_ahead(&keys, parent.as_deref()),
            None => Ok(None),
        }
    }

    /// Prepares the first use of a committed snapshot, with the result of [`Snapshots::merge_ahead`] if there is one.
    pub fn make_ready(&self, key: &str, merged: Option<Merged>) -> Result<()> {
        self.ask_kept_layers(key, |layers, backend| layers.make_ready(backend, merged))
    }

    /// Asks a snapshotter that keeps layers; the default for others. `NotFound` if the snapshot does not exist.
    fn ask_kept_layers<T: Default>(
        &self,
        key: &str,
        ask: impl FnOnce(&dyn KeptLayers, &str) -> Result<T>,
    ) -> Result<T> {
        let record = self.store.0.read(|tx| self.find(tx, key))?;
        match self.backend.kept_layers() {
            Some(layers) => ask(layers, &record.backend),
            None => Ok(T::default()),
        }
    }

    /// Replaces labels: those that `paths` name (`labels`, `labels.<key>`), or all without paths. A label with an
    /// empty value is deleted. Returns the updated snapshot. `InvalidArgument` if the key is empty.
    pub fn update(&self, key: &str, labels: &Labels, paths: &[String]) -> Result<Snapshot> {
        if key.is_empty() {
            return Err(Error::invalid_argument("snapshot key must not be empty"));
        }
        let (backend, snapshot) = self.store.0.change(|change| {
            let mut record = self.find(change.tx, key)?;
            let refused = |path: &str| mask::refused(path, &format!("snapshot {key:?}"));
            record.labels = mask::labels("info.Labels", record.labels, labels, paths, refused)?;
            record.updated = change.now;
            SNAPSHOTS.put(change.tx, self.key(key), &record)?;
            change.expires(gc_label::expiry(&record.labels));
            change.touch(self.namespace(), self.node(key));
            Ok((record.backend.clone(), record.named(key.to_owned())))
        })?;
        self.backend.update(&backend, labels_below(&snapshot.labels))?;
        Ok(snapshot)
    }

    /// Creates an active snapshot on `parent`, a committed one, and returns its mounts.
    ///
    /// `AlreadyExists` if the key is taken, or if the snapshot that `containerd.io/snapshot.ref` names exists: the
    /// existing snapshot joins the caller's lease.
    pub fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.create(key, parent, labels, Kind::Active, self.caller.on_disk)
    }

    /// As [`Snapshots::prepare`], but a crash may undo the record until the next change is on disk: for a caller that
    /// goes on to record what needs it.
    pub fn prepare_relaxed(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.create(key, parent, labels, Kind::Active, OnDisk::WithTheNext)
    }

    /// Creates a read-only view of `parent` and returns its mounts.
    pub fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.create(key, parent, labels, Kind::View, self.caller.on_disk)
    }

    /// Turns the active snapshot `key` into the committed one `name`. If it was prepared without a parent, `parent`
    /// becomes its parent, if the snapshotter supports that.
    ///
    /// `AlreadyExists` if the name is taken: the existing snapshot joins the caller's lease.
    pub fn commit(&self, name: &str, key: &str, labels: Labels, parent: Option<&str>) -> Result<()> {
        let labels = checked(labels)?;
        if name.is_empty() {
            return Err(Error::invalid_argument("snapshot name must not be empty"));
        }
        // A client repeats a commit whose answer was lost. By then the name is taken and the key is gone; the error
        // must be about the name, so that is checked first.
        self.refuse_joining(name)?;
        let active = self.store.0.read(|tx| self.find(tx, key))?;
        let parent = match parent.filter(|parent| !parent.is_empty()) {
            Some(parent) if !active.parent.is_empty() && active.parent != parent => {
                return Err(Error::invalid_argument(format!(
                    "snapshot {key:?} has parent {:?}, cannot be committed with parent {parent:?}",
                    active.parent
                )));
            }
            Some(parent) => parent.to_owned(),
            None => active.parent.clone(),
        };
        let rebase_to = if parent == active.parent { None } else { Some(self.backend_of(&parent)?) };

        let target = self.new_backend_key(name)?;
        let _pin = self.pin(&target);
        let options = CommitOptions { labels: labels_below(&labels), parent: rebase_to };
        let ready = self.backend.ready_commit(&target, &active.backend, options.clone())?;
        let parts = ready.and_then(|ready| ready.into_parts(&self.store.0.db));
        let is_elsewhere = parts.is_none();
        if is_elsewhere {
            // This commit cannot be undone, so conditions of the record are checked first.
            if let Some(lease) = &self.caller.lease {
                let is_there = self.store.0.read(|tx| lease::require(tx, self.namespace(), lease));
                is_there.map_err(lease::missing)?;
            }
            self.backend.commit(&target, &active.backend, options)?;
        }
        let (step, tidy) = parts.unzip();
        let committed = self.store.0.change_on_disk(self.caller.on_disk, |change| {
            if self.join_lease_in(change, name)? {
                return Ok(false);
            }
            let current = self.find(change.tx, key)?;
            if current.backend != active.backend {
                return Err(not_found(key));
            }
            self.require_parent(change.tx, &parent)?;
            if let Some(step) = step {
                step(change.tx)?;
            }
            change.admit(&self.caller, Some(self.resource(name)))?;
            lease::remove(change, &self.caller, &self.resource(key))?;
            SNAPSHOTS.delete(change.tx, self.key(key))?;
            self.remove_child(change, &current.parent, key)?;
            let record = Record {
                backend: target.clone(),
                parent,
                kind: Kind::Committed,
                labels,
                created: change.now,
                updated: change.now,
            };
            self.put(change, name, &record)?;
            change.settle();
            change.emit(
                self.namespace(),
                Event::SnapshotCommitted {
                    snapshotter: self.snapshotter.clone(),
                    key: key.to_owned(),
                    name: name.to_owned(),
                },
            );
            Ok(true)
        });
        if is_elsewhere && !matches!(committed, Ok(true)) {
            self.store.0.gc.orphan_snapshot(&self.snapshotter);
        }
        if !committed? {
            return Err(self.refusal(already_exists(name)));
        }
        if let Some(tidy) = tidy {
            tidy();
        }
        Ok(())
    }

    /// Deletes a snapshot's record; its files go at the next collection. `FailedPrecondition` if it has children.
    pub fn remove(&self, key: &str) -> Result<()> {
        self.store.0.change(|change| {
            let prefix = (self.namespace(), self.snapshotter.as_str(), key);
            if CHILDREN.any(change.tx, prefix)? {
                return Err(Error::failed_precondition("cannot remove snapshot with child"));
            }
            if !delete(change, self.namespace(), &self.snapshotter, key)? {
                return Err(not_found(key));
            }
            lease::remove(change, &self.caller, &self.resource(key))
        })?;
        self.store.0.gc.orphan_snapshot(&self.snapshotter);
        Ok(())
    }

    /// A barrier for files written from now on: files before records.
    pub fn barrier(&self) -> Result<Barrier> {
        self.backend.barrier()
    }

    /// Lets the snapshotter remove the files that it has set aside.
    pub fn cleanup(&self) -> Result<()> {
        let cleaned = self.backend.cleanup();
        self.set_aside();
        cleaned
    }

    fn create(
        &self,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
        kind: Kind,
        on_disk: OnDisk,
    ) -> Result<Vec<Mount>> {
        let labels = checked(labels)?;
        if key.is_empty() {
            return Err(Error::invalid_argument("snapshot key must not be empty"));
        }
        let parent = parent.unwrap_or_default();
        if let Some(target) = labels.get(TARGET) {
            self.refuse_target(target)?;
        }
        self.refuse_joining(key)?;
        let parent_below = if parent.is_empty() { None } else { Some(self.backend_of(parent)?) };

        let backend = self.new_backend_key(key)?;
        let _pin = self.pin(&backend);
        let mounts = match self.create_below(kind, &backend, parent_below.as_deref(), &labels) {
            Err(error) if error.is(ErrorKind::AlreadyExists) => {
                let Some(target) = labels.get(TARGET) else { return Err(error) };
                self.adopt(target, parent, parent_below.as_deref(), &labels)?;
                return Err(error);
            }
            mounts => mounts?,
        };
        let record = |now| Record {
            backend: backend.clone(),
            parent: parent.to_owned(),
            kind,
            labels: labels.clone(),
            created: now,
            updated: now,
        };
        let recorded = self.store.0.change_on_disk(on_disk, |change| {
            self.require_parent(change.tx, parent)?;
            if !self.admit_new(change, key, &record(change.now))? {
                return Ok(false);
            }
            if kind == Kind::Active {
                let event = Event::SnapshotPrepared {
                    snapshotter: self.snapshotter.clone(),
                    key: key.to_owned(),
                    parent: parent.to_owned(),
                };
                change.emit(self.namespace(), event);
            }
            Ok(true)
        });
        if !matches!(recorded, Ok(true)) {
            self.store.0.gc.orphan_snapshot(&self.snapshotter);
        }
        if recorded? { Ok(mounts) } else { Err(self.refusal(already_exists(key))) }
    }

    fn create_below(
        &self,
        kind: Kind,
        backend: &str,
        parent: Option<&str>,
        labels: &Labels,
    ) -> Result<Vec<Mount>> {
        match kind {
            Kind::View => self.backend.view(backend, parent, labels_below(labels)),
            _ => self.backend.prepare(backend, parent, labels_below(labels)),
        }
    }

    /// Records the committed snapshot that the snapshotter has for `target`, unless another caller has recorded it.
    fn adopt(&self, target: &str, parent: &str, parent_below: Option<&str>, labels: &Labels) -> Result<()> {
        let found = self.backend.list()?.into_iter().find(|snapshot| {
            snapshot.kind == Kind::Committed
                && snapshot.labels.get(TARGET).is_some_and(|label| label == target)
                && snapshot.parent.as_deref() == parent_below
        });
        let Some(found) = found else {
            return Err(Error::not_found(format!("snapshot for target {target:?} in snapshotter")));
        };
        let _pin = self.pin(&found.key);
        self.backend.stat(&found.key)?;
        self.store.0.change(|change| {
            self.require_parent(change.tx, parent)?;
            let record = Record {
                backend: found.key.clone(),
                parent: parent.to_owned(),
                kind: Kind::Committed,
                labels: labels.clone(),
                created: change.now,
                updated: change.now,
            };
            self.admit_new(change, target, &record).map(drop)
        })
    }

    /// Records a snapshot, in the caller's lease. Returns false if the name is taken: the existing one joins the
    /// lease.
    fn admit_new(&self, change: &mut Change<'_, '_>, key: &str, record: &Record) -> Result<bool> {
        if self.join_lease_in(change, key)? {
            return Ok(false);
        }
        change.admit(&self.caller, Some(self.resource(key)))?;
        self.put(change, key, record).map(|()| true)
    }

    fn put(&self, change: &mut Change<'_, '_>, key: &str, record: &Record) -> Result<()> {
        SNAPSHOTS.put(change.tx, self.key(key), record)?;
        change.expires(gc_label::expiry(&record.labels));
        if !record.parent.is_empty() {
            let child = (self.namespace(), self.snapshotter.as_str(), record.parent.as_str(), key);
            CHILDREN.put(change.tx, child, &())?;
        }
        change.touch(self.namespace(), self.node(key));
        Ok(())
    }

    fn remove_child(&self, change: &mut Change<'_, '_>, parent: &str, key: &str) -> Result<()> {
        let child = (self.namespace(), self.snapshotter.as_str(), parent, key);
        CHILDREN.delete(change.tx, child).map(drop)
    }

    /// `AlreadyExists` if the key is taken. A record whose snapshot the snapshotter lost in a crash is deleted
    /// instead.
    fn refuse_taken(&self, key: &str) -> Result<()> {
        let Some(record) = self.store.0.read(|tx| SNAPSHOTS.get(tx, self.key(key)))? else { return Ok(()) };
        match self.backend.stat(&record.backend) {
            Err(error) if error.is(ErrorKind::NotFound) => self.forget_lost(key, &record.backend),
            _ => Err(self.refusal(already_exists(key))),
        }
    }

    fn refusal(&self, error: Error) -> Error {
        self.store.0.refusal(self.caller.on_disk, error)
    }

    fn forget_lost(&self, key: &str, backend: &str) -> Result<()> {
        self.store.0.change(|change| {
            let record = SNAPSHOTS.get(change.tx, self.key(key))?;
            if record.is_some_and(|record| record.backend == backend) {
                delete(change, self.namespace(), &self.snapshotter, key)?;
            }
            Ok(())
        })
    }

    /// `AlreadyExists` if the target exists; it then joins the caller's lease.
    fn refuse_target(&self, target: &str) -> Result<()> {
        match self.join_lease(target)? {
            true => Err(self.refusal(Error::already_exists(format!("target snapshot {target:?}")))),
            false => Ok(()),
        }
    }

    /// As [`Snapshots::refuse_taken`], but the existing snapshot joins the caller's lease.
    fn refuse_joining(&self, name: &str) -> Result<()> {
        match self.refuse_taken(name) {
            // Unless a collection has just removed it.
            Err(error) if error.is(ErrorKind::AlreadyExists) && !self.join_lease(name)? => Ok(()),
            other => other,
        }
    }

    /// Adds a snapshot to the caller's lease, if it exists. Returns whether it does.
    fn join_lease(&self, key: &str) -> Result<bool> {
        if !self.store.0.read(|tx| SNAPSHOTS.contains(tx, self.key(key)))? {
            return Ok(false);
        }
        self.store.0.change_on_disk(self.caller.on_disk, |change| self.join_lease_in(change, key))
    }

    fn join_lease_in(&self, change: &mut Change<'_, '_>, key: &str) -> Result<bool> {
        let is_there = SNAPSHOTS.contains(change.tx, self.key(key))?;
        if is_there {
            change.admit(&self.caller, Some(self.resource(key)))?;
        }
        Ok(is_there)
    }

    fn require_parent(&self, tx: &impl Read, parent: &str) -> Result<()> {
        if parent.is_empty() || SNAPSHOTS.contains(tx, self.key(parent))? {
            return Ok(());
        }
        Err(Error::not_found(format!("parent snapshot {parent} does not exist")))
    }

    fn backend_of(&self, parent: &str) -> Result<String> {
        let record = self.store.0.read(|tx| SNAPSHOTS.get(tx, self.key(parent)))?;
        let record =
            record.ok_or_else(|| Error::not_found(format!("parent snapshot {parent} does not exist")))?;
        Ok(record.backend)
    }

    fn find(&self, tx: &impl Read, key: &str) -> Result<Record> {
        SNAPSHOTS.get(tx, self.key(key))?.ok_or_else(|| not_found(key))
    }

    fn new_backend_key(&self, key: &str) -> Result<String> {
        Ok(format!("{}/{}/{key}", self.namespace(), self.store.0.sequence.next()?))
    }

    fn pin(&self, backend: &str) -> Pin {
        let name = (self.snapshotter.clone(), backend.to_owned());
        self.store.0.gc.snapshots.pin(&name);
        Pin { store: self.store.clone(), name }
    }

    fn namespace(&self) -> &Namespace {
        &self.caller.namespace
    }

    fn key<'a>(&'a self, key: &'a str) -> (&'a Namespace, &'a str, &'a str) {
        (self.namespace(), &self.snapshotter, key)
    }

    fn node(&self, key: &str) -> Node {
        Node::Snapshot(self.snapshotter.clone(), key.to_owned())
    }

    fn resource(&self, key: &str) -> Resource {
        Resource::Snapshot { snapshotter: self.snapshotter.clone(), key: key.to_owned() }
    }
}

/// Protects a snapshot from the sweep until dropped.
struct Pin {
    store: Metadata,
    name: (String, String),
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.store.0.gc.snapshots.unpin(&self.name);
    }
}

/// Checks labels, and drops those that are not stored.
fn checked(labels: Labels) -> Result<Labels> {
    label::check(&labels).map_err(|error| error.context("info.Labels"))?;
    Ok(mask::without_empty(labels))
}

fn labels_below(labels: &Labels) -> Labels {
    let below = labels.iter().filter(|(key, _)| key.starts_with(LABELS_BELOW) || *key == TARGET);
    below.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn not_found(key: &str) -> Error {
    Error::not_found(format!("snapshot {key} does not exist"))
}

fn already_exists(key: &str) -> Error {
    Error::already_exists(format!("snapshot {key:?}"))
}
