//! The store: opening it, changing records, and handles on each kind of record.

use std::collections::{BTreeMap, HashSet};
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ::snapshot::{Snapshotter, Target};
use kv::{Db, Driver, ReadTxn, WriteTxn};
use stdx::CancelToken;
use types::{Descriptor, Error, ErrorKind, IngestRef, LeaseId, Mount, Namespace, Result, Timestamp};

use crate::differ::{Applied, Differs};
use crate::event::{Event, Events, Sink};
use crate::gate::{Gate, IsOpen};
use crate::gc::graph::Node;
use crate::gc::{self, Collected};
use crate::lease::{self, Resource, Workflows};
use crate::namespace::{self, Namespaces};
use crate::outbox::{Hearing, Outbox, Place};
use crate::processor::{LayerSource, StreamProcessors};
use crate::sequence::Sequence;
use crate::stream::{LeasedStream, Streams};
use crate::{Activations, Containers, Content, Images, Leases, Sandboxes, Snapshots};

/// What the daemon provides to the records.
pub struct Options {
    /// The clock that stamps records and decides what has expired.
    pub now: Box<dyn Fn() -> Timestamp + Send + Sync>,
    pub sink: Sink,
    /// Whether events have subscribers. Without any, events do not wait for their change to be on disk.
    pub is_heard: Hearing,
    /// Decides which images names may be recorded for.
    pub gate: Box<dyn Gate>,
    pub notice: NoticeSink,
    pub sweep_mounts: MountSweep,
    /// The clients' streams, which leases may hold.
    pub streams: Box<dyn Streams>,
    /// Whether a namespace must write the bytes of a blob that another has, unless the other is labelled
    /// `containerd.io/namespace.shareable=true`.
    pub isolates_content: bool,
    /// For layers of media types that Hoist does not know.
    pub processors: Box<dyn StreamProcessors>,
    /// Asked before Hoist unpacks layers itself.
    pub differs: Box<dyn Differs>,
}

/// Unmounts activations that have no record any more. It gets a function for the numbers of recorded activations, and
/// must call it after listing the mounts: a number is recorded before anything is mounted under it.
pub type MountSweep = Box<dyn Fn(&dyn Fn() -> Result<HashSet<u64>>) -> Result<()> + Send + Sync>;

/// Notices of changes, for scheduling collections and other background work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// An object that may have kept others is gone.
    Freed,
    /// An object with this expiry was created or changed.
    Expires(Timestamp),
    /// Files were set aside, for [`Metadata::reclaim`] to delete.
    SetAside,
    /// An image was recorded, a layer was unpacked, or a namespace's retention of them may have changed.
    Settled,
    /// Events wait for their change to be on disk; [`Metadata::sync`] forces it if no other change follows.
    Held,
}

/// Receives notices, after the commit. It must be quick.
pub type NoticeSink = Box<dyn Fn(Notice) + Send + Sync>;

impl Default for Options {
    /// The wall clock, an open gate, shared blobs, layers unpacked by Hoist without processors; events and notices
    /// are dropped, and there are no mounts and streams.
    fn default() -> Options {
        Options {
            now: Box::new(Timestamp::now),
            sink: Box::new(|_, _| ()),
            is_heard: Box::new(|| true),
            gate: Box::new(Nothing),
            notice: Box::new(|_| ()),
            sweep_mounts: Box::new(|_| Ok(())),
            streams: Box::new(Nothing),
            isolates_content: false,
            processors: Box::new(Nothing),
            differs: Box::new(Nothing),
        }
    }
}

/// The ports of [`Options::default`].
struct Nothing;

impl Gate for Nothing {
    fn admit(&self, _: &str, _: &Descriptor) -> Result<()> {
        Ok(())
    }

    fn is_open<'a>(&'a self, _: &'a str) -> IsOpen<'a> {
        Box::pin(ready(true))
    }
}

impl Streams for Nothing {
    fn leased(&self) -> Vec<LeasedStream> {
        Vec::new()
    }

    fn end(&self, _: &LeasedStream) {}
}

impl StreamProcessors for Nothing {
    fn names(&self, _: &str) -> Option<String> {
        None
    }

    fn open(&self, _: &Descriptor, blob: LayerSource) -> Result<LayerSource> {
        Ok(blob)
    }
}

impl Differs for Nothing {
    fn are_asked(&self, _: &str) -> bool {
        false
    }

    fn apply(&self, _: &Caller, _: &Descriptor, _: &[Mount]) -> Result<Option<Applied>> {
        Ok(None)
    }
}

/// Namespace, lease and cancellation of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub namespace: Namespace,
    /// Objects that the call makes are added to this lease. `NotFound` if it does not exist.
    pub lease: Option<LeaseId>,
    /// Whether the caller has gone away. Reads and writes of content end then.
    pub cancel: CancelToken,
    /// When the call's changes are on disk.
    pub(crate) on_disk: OnDisk,
}

impl Caller {
    pub fn new(namespace: Namespace) -> Caller {
        Caller { namespace, lease: None, cancel: CancelToken::never(), on_disk: OnDisk::Now }
    }

    #[must_use]
    pub fn with_lease(mut self, lease: LeaseId) -> Caller {
        self.lease = Some(lease);
        self
    }

    /// For a workflow whose last step is on disk before it is acknowledged: the blobs, ingests, snapshots and leases
    /// that it makes before are on disk with the next change, or with [`Metadata::sync`]. A crash before that undoes
    /// them, in order. Deletions, and image records, are on disk as usual.
    #[must_use]
    pub fn relaxed(mut self) -> Caller {
        self.on_disk = OnDisk::WithTheNext;
        self
    }

    #[must_use]
    pub fn cancelled_by(mut self, cancel: CancelToken) -> Caller {
        self.cancel = cancel;
        self
    }
}

impl From<Namespace> for Caller {
    fn from(namespace: Namespace) -> Caller {
        Caller::new(namespace)
    }
}

impl From<&Namespace> for Caller {
    fn from(namespace: &Namespace) -> Caller {
        Caller::new(namespace.clone())
    }
}

impl From<&Caller> for Caller {
    fn from(caller: &Caller) -> Caller {
        caller.clone()
    }
}

/// The records. Clones share them.
#[derive(Clone)]
pub struct Metadata(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) db: Db,
    pub(crate) content: Arc<dyn ::content::Store>,
    pub(crate) snapshotters: BTreeMap<String, Arc<dyn Snapshotter>>,
    pub(crate) sequence: Sequence,
    pub(crate) gc: gc::State,
    pub(crate) workflows: Workflows,
    now: Box<dyn Fn() -> Timestamp + Send + Sync>,
    outbox: Outbox,
    pub(crate) gate: Box<dyn Gate>,
    pub(crate) notice: NoticeSink,
    pub(crate) sweep_mounts: MountSweep,
    pub(crate) streams: Box<dyn Streams>,
    pub(crate) isolates_content: bool,
    processors: Box<dyn StreamProcessors>,
    differs: Box<dyn Differs>,
    mutations: AtomicU64,
}

impl Metadata {
    /// Opens the records in `db` over the content store and the snapshotters.
    pub fn open(
        db: Db,
        content: Arc<dyn ::content::Store>,
        snapshotters: BTreeMap<String, Arc<dyn Snapshotter>>,
        options: Options,
    ) -> Result<Metadata> {
        let sequence = Sequence::open(&db)?;
        Ok(Metadata(Arc::new(Inner {
            db,
            content,
            snapshotters,
            sequence,
            gc: gc::State::default(),
            workflows: Workflows::default(),
            now: options.now,
            outbox: Outbox::new(options.sink, options.is_heard),
            gate: options.gate,
            notice: options.notice,
            sweep_mounts: options.sweep_mounts,
            streams: options.streams,
            isolates_content: options.isolates_content,
            processors: options.processors,
            differs: options.differs,
            mutations: AtomicU64::new(0),
        })))
    }

    pub fn namespaces(&self) -> Namespaces {
        Namespaces::new(self.clone())
    }

    pub fn images(&self, caller: impl Into<Caller>) -> Images {
        Images::new(self.clone(), caller.into())
    }

    pub fn containers(&self, caller: impl Into<Caller>) -> Containers {
        Containers::new(self.clone(), caller.into())
    }

    pub fn sandboxes(&self, caller: impl Into<Caller>) -> Sandboxes {
        Sandboxes::new(self.clone(), caller.into())
    }

    pub fn activations(&self, caller: impl Into<Caller>) -> Activations {
        Activations::new(self.clone(), caller.into())
    }

    pub fn leases(&self, caller: impl Into<Caller>) -> Leases {
        Leases::new(self.clone(), caller.into())
    }

    /// The blobs and ingests of the caller's namespace.
    pub fn content(&self, caller: impl Into<Caller>) -> Content {
        Content::new(self.clone(), caller.into())
    }

    /// The snapshots that the caller's namespace has in `snapshotter`, by any of its names. `NotFound` if there is no
    /// such snapshotter.
    pub fn snapshots(&self, caller: impl Into<Caller>, snapshotter: &str) -> Result<Snapshots> {
        let own_name = ::snapshot::canonical_name(snapshotter);
        let Some((name, backend)) = self.0.snapshotters.get_key_value(own_name) else {
            return Err(Error::not_found(format!("snapshotter not loaded: {snapshotter}")));
        };
        Ok(Snapshots::new(self.clone(), caller.into(), name.clone(), Arc::clone(backend)))
    }

    /// Where to store a layer for the active snapshot of these mounts; `None` if no snapshotter knows the mounts.
    pub fn target(&self, mounts: &[Mount]) -> Result<Option<Target>> {
        for layers in self.0.snapshotters.values().filter_map(|backend| backend.kept_layers()) {
            if let Some(target) = layers.target(mounts)? {
                return Ok(Some(target));
            }
        }
        Ok(None)
    }

    pub fn differs(&self) -> &dyn Differs {
        &*self.0.differs
    }

    pub fn processors(&self) -> &dyn StreamProcessors {
        &*self.0.processors
    }

    pub fn snapshotters(&self) -> impl Iterator<Item = &str> {
        self.0.snapshotters.keys().map(String::as_str)
    }

    /// Removes objects that nothing refers to: see the [`graph`](crate::graph) module. Collections run one at a time;
    /// other calls go on meanwhile.
    pub fn collect(&self) -> Result<Collected> {
        gc::collect(&self.0)
    }

    /// Deletes the files of removed blobs and snapshots that were set aside, until `go_on`, which is called after
    /// each step, returns false. Returns whether all are gone. An error of one store, which is returned in the end,
    /// keeps no files of the others.
    pub fn reclaim(&self, go_on: &dyn Fn() -> bool) -> Result<bool> {
        let content = std::iter::once_with(|| self.0.content.reclaim(go_on));
        let snapshotters = self.0.snapshotters.values().map(|backend| backend.reclaim(go_on));
        let mut first_error = None;
        for reclaimed in content.chain(snapshotters) {
            match reclaimed {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error) => drop(first_error.get_or_insert(error)),
            }
        }
        first_error.map_or(Ok(true), Err)
    }

    /// Releases memory that the stores keep only as a cache.
    pub fn relax(&self) {
        self.0.content.relax();
        for backend in self.0.snapshotters.values() {
            backend.relax();
        }
    }

    /// Shrinks the file of the records, if it has at least `least` bytes and most of it is free ([`Db::compact`]).
    /// Returns by how many bytes.
    pub fn compact(&self, least: u64) -> Result<u64> {
        self.0.db.compact(least)
    }

    /// Waits until every acknowledged record is on disk, relaxed ones included.
    pub fn sync(&self) -> Result<()> {
        self.0.sync()
    }

    /// The number of the first change whose events wait for it to be on disk; `None` if there is none.
    pub fn held_events(&self) -> Option<u64> {
        self.0.outbox.held()
    }

    /// Counts changes of records, for scheduling collections.
    pub fn mutations(&self) -> u64 {
        self.0.mutations.load(Ordering::Relaxed)
    }
}

impl Inner {
    pub(crate) fn now(&self) -> Timestamp {
        (self.now)()
    }

    pub(crate) fn read<T>(&self, body: impl FnOnce(&ReadTxn) -> Result<T>) -> Result<T> {
        self.db.read(body)
    }

    /// Removes the bytes of an ingest, or sets them aside.
    pub(crate) fn abort_ingest(&self, backend: &IngestRef) -> Result<()> {
        self.content.abort(backend)?;
        (self.notice)(Notice::SetAside);
        Ok(())
    }

    /// Waits until every acknowledged change is on disk and its events are published.
    pub(crate) fn sync(&self) -> Result<()> {
        let answered = self.outbox.answered();
        self.db.sync()?;
        self.outbox.on_disk(answered);
        Ok(())
    }

    /// Changes records. Returns when the change is on disk and its events are published.
    pub(crate) fn change<T>(&self, body: impl FnOnce(&mut Change<'_, '_>) -> Result<T>) -> Result<T> {
        self.change_on_disk(OnDisk::Now, body)
    }

    /// As `change`, for records that a crash may undo: on disk with the next change, and their events with it.
    pub(crate) fn change_relaxed<T>(&self, body: impl FnOnce(&mut Change<'_, '_>) -> Result<T>) -> Result<T> {
        self.change_on_disk(OnDisk::WithTheNext, body)
    }

    pub(crate) fn change_on_disk<T>(
        &self,
        on_disk: OnDisk,
        body: impl FnOnce(&mut Change<'_, '_>) -> Result<T>,
    ) -> Result<T> {
        let mut told = Announcement::default();
        let value = match on_disk {
            OnDisk::Now => self.db.write(|tx| self.run(tx, on_disk, body, &mut told)),
            OnDisk::WithTheNext => self.db.write_relaxed(|tx| self.run(tx, on_disk, body, &mut told)),
        };
        let value = value.map_err(|error| self.refusal(on_disk, error))?;
        self.tell(told);
        Ok(value)
    }

    /// The error of a change that was not made. `AlreadyExists` is returned once the existing object is on disk, if
    /// the change would have been: the caller goes on as if it had made it, and a crash must not undo another
    /// caller's relaxed change.
    pub(crate) fn refusal(&self, on_disk: OnDisk, error: Error) -> Error {
        if on_disk == OnDisk::Now && error.is(ErrorKind::AlreadyExists) {
            return self.sync().err().unwrap_or(error);
        }
        error
    }

    /// As `change`, queued: see [`Ready::queue`].
    fn change_queued<T: Send + 'static>(
        self: &Arc<Inner>,
        body: impl FnOnce(&mut Change<'_, '_>) -> Result<T> + Send + 'static,
        tell: impl FnOnce(Result<T>) + Send + 'static,
    ) -> Option<Driver> {
        let (running, telling) = (Arc::clone(self), Arc::clone(self));
        self.db.write_queued(
            move |tx| {
                let mut told = Announcement::default();
                let value = running.run(tx, OnDisk::Now, body, &mut told)?;
                Ok((value, told))
            },
            move |done| {
                tell(done.map(|(value, told)| {
                    telling.tell(told);
                    value
                }));
            },
        )
    }

    fn run<T>(
        &self,
        tx: &mut WriteTxn<'_>,
        on_disk: OnDisk,
        body: impl FnOnce(&mut Change<'_, '_>) -> Result<T>,
        told: &mut Announcement,
    ) -> Result<T> {
        let (events, touched, notices) = (Vec::new(), Vec::new(), Vec::new());
        let mut change = Change { tx, now: self.now(), events, touched, notices };
        let value = body(&mut change)?;
        let Change { events, touched, notices, .. } = change;
        self.gc.touch(touched);
        told.notices = notices;
        if !events.is_empty() {
            told.events = Some((self.outbox.reserve(), events));
        }
        // Without changes nothing is synced.
        told.on_disk = (on_disk == OnDisk::Now && tx.has_changes()).then(|| self.outbox.end());
        Ok(value)
    }

    fn tell(&self, told: Announcement) {
        self.mutations.fetch_add(1, Ordering::Relaxed);
        let held = told.events.is_some_and(|(place, events)| match told.on_disk {
            Some(_) => {
                place.fill(events);
                false
            }
            None => place.hold(events),
        });
        if let Some(end) = told.on_disk {
            self.outbox.on_disk(end);
        }
        if held {
            (self.notice)(Notice::Held);
        }
        told.notices.into_iter().for_each(|notice| (self.notice)(notice));
    }
}

/// A change of records that is ready to be made or queued.
#[must_use = "nothing is changed yet"]
pub struct Ready<T> {
    store: Metadata,
    body: Body<T>,
}

type Body<T> = Box<dyn FnOnce(&mut Change<'_, '_>) -> Result<T> + Send>;

impl<T: Send + 'static> Ready<T> {
    pub(crate) fn new(
        store: &Metadata,
        body: impl FnOnce(&mut Change<'_, '_>) -> Result<T> + Send + 'static,
    ) -> Ready<T> {
        Ready { store: store.clone(), body: Box::new(body) }
    }

    /// Makes the change. Returns when it is on disk and its events are published.
    pub fn make(self) -> Result<T> {
        self.make_on_disk(OnDisk::Now)
    }

    pub(crate) fn make_on_disk(self, on_disk: OnDisk) -> Result<T> {
        self.store.0.change_on_disk(on_disk, self.body)
    }

    /// Queues the change, without blocking a thread. `tell` is called when it is on disk and its events are
    /// published, or when it has failed; it must be quick. If a [`Driver`] is returned, the caller must run it on a
    /// thread that may block.
    pub fn queue(self, tell: impl FnOnce(Result<T>) + Send + 'static) -> Option<Driver> {
        self.store.0.change_queued(self.body, tell)
    }
}

/// When a change is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnDisk {
    /// Before the call returns.
    Now,
    WithTheNext,
}

/// What to announce of a change once it is committed.
#[derive(Default)]
struct Announcement {
    events: Option<(Place, Events)>,
    /// If the change is on disk: the number before which all changes are.
    on_disk: Option<u64>,
    notices: Vec<Notice>,
}

/// A change in progress: the transaction, and what to announce and to note for the collector after it.
pub(crate) struct Change<'a, 't> {
    pub(crate) tx: &'a mut WriteTxn<'t>,
    pub(crate) now: Timestamp,
    events: Events,
    touched: Vec<(Namespace, Node)>,
    notices: Vec<Notice>,
}

impl Change<'_, '_> {
    /// Notes that an object is gone, or refers to less.
    pub(crate) fn free(&mut self) {
        if !self.notices.contains(&Notice::Freed) {
            self.notices.push(Notice::Freed);
        }
    }

    /// Notes that an image or layer was added, or may be needed by fewer.
    pub(crate) fn settle(&mut self) {
        if !self.notices.contains(&Notice::Settled) {
            self.notices.push(Notice::Settled);
        }
    }

    /// Notes when an object expires, if it does.
    pub(crate) fn expires(&mut self, expiry: Option<Timestamp>) {
        self.notices.extend(expiry.map(Notice::Expires));
    }

    /// Drops the notices that would trigger a collection, since the change is the collector's own. Keeps
    /// [`Notice::Settled`].
    pub(crate) fn drop_notices(&mut self) {
        self.notices.retain(|notice| *notice == Notice::Settled);
    }

    pub(crate) fn emit(&mut self, namespace: &Namespace, event: Event) {
        self.events.push((namespace.clone(), event));
    }

    /// Tells the collector that a record was created or has new references. Every change that can make an object
    /// reachable must call this.
    pub(crate) fn touch(&mut self, namespace: &Namespace, node: Node) {
        self.touched.push((namespace.clone(), node));
    }

    /// Common to all calls that create a record: creates its namespace, and adds it to the caller's lease.
    pub(crate) fn admit(&mut self, caller: &Caller, resource: Option<Resource>) -> Result<()> {
        namespace::ensure(self, &caller.namespace)?;
        match resource {
            Some(resource) => lease::join(self, caller, &resource),
            None => Ok(()),
        }
    }
}
