//! The store as a whole: opening, changing records, handing out handles.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ::snapshot::{Snapshotter, Target};
use kv::{Db, Driver, ReadTxn, WriteTxn};
use stdx::CancelToken;
use types::{Error, ErrorKind, IngestRef, LeaseId, Mount, Namespace, Result, Timestamp};

use crate::differ::{Differs, NoDiffers};
use crate::event::{Event, Events, Sink};
use crate::gate::{Gate, OpenGate};
use crate::gc::graph::Node;
use crate::gc::{self, Collected};
use crate::lease::{self, Resource, Workflows};
use crate::namespace::{self, Namespaces};
use crate::outbox::{Hearing, Outbox, Place};
use crate::processor::{NoProcessors, StreamProcessors};
use crate::sequence::Sequence;
use crate::stream::{NoStreams, Streams};
use crate::{Activations, Containers, Content, Images, Leases, Sandboxes, Snapshots};

/// What comes from outside.
pub struct Options {
    /// The clock that stamps records and decides what has expired.
    pub now: Box<dyn Fn() -> Timestamp + Send + Sync>,
    pub sink: Sink,
    /// Whether anybody listens to events. If nobody does, they do not wait for their change to be on disk.
    pub is_heard: Hearing,
    /// Which images names may come to stand for.
    pub gate: Box<dyn Gate>,
    pub notice: NoticeSink,
    pub sweep_mounts: MountSweep,
    /// Of the clients, as leases hold them.
    pub streams: Box<dyn Streams>,
    /// Whether a namespace must bring the bytes of a blob that another has, unless that one is labelled
    /// `containerd.io/namespace.shareable=true`.
    pub isolates_content: bool,
    /// Of layers that nobody here can read.
    pub processors: Box<dyn StreamProcessors>,
    /// Who is asked before layers are unpacked here.
    pub differs: Box<dyn Differs>,
}

/// Takes down what is mounted for activations that are gone. It is given a way to ask for the numbers of those that
/// are there, which it uses after it has looked at what is mounted: a number is recorded before anything is
/// mounted under it.
pub type MountSweep = Box<dyn Fn(&dyn Fn() -> Result<HashSet<u64>>) -> Result<()> + Send + Sync>;

/// What whoever decides when to collect wants to know of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Something that could keep other things is gone.
    Freed,
    /// Something was made, or changed, that ends at this time.
    Expires(Timestamp),
    /// Files were taken out of the way, which [`Metadata::reclaim`] deletes.
    SetAside,
    /// A name stands for an image, a layer is unpacked, or what a namespace wants of them changed.
    Settled,
    /// Events wait for their change to be on disk, which [`Metadata::sync`] sees to if no other change does.
    Held,
}

/// Takes notices, after the commit. It must be quick.
pub type NoticeSink = Box<dyn Fn(Notice) + Send + Sync>;

impl Default for Options {
    /// The wall clock, events and notices into the void, a gate that is open, nothing mounted, no streams, blobs shared, and
    /// layers that are unpacked here, without processors.
    fn default() -> Options {
        Options {
            now: Box::new(Timestamp::now),
            sink: Box::new(|_, _| ()),
            is_heard: Box::new(|| true),
            gate: Box::new(OpenGate),
            notice: Box::new(|_| ()),
            sweep_mounts: Box::new(|_| Ok(())),
            streams: Box::new(NoStreams),
            isolates_content: false,
            processors: Box::new(NoProcessors),
            differs: Box::new(NoDiffers),
        }
    }
}

/// On whose behalf a call is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub namespace: Namespace,
    /// What the call makes is added to this lease. `NotFound` if there is no such lease.
    pub lease: Option<LeaseId>,
    /// Whether the caller still waits for the outcome. Reading and writing content ends when it does not.
    pub cancel: CancelToken,
    /// When what it makes is on disk.
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

    /// For work of several steps, of which the last is on disk before it is answered: blobs, ingests, snapshots and leases
    /// that are made for it meanwhile are so with the next change of others, or with [`Metadata::sync`]. A crash before
    /// that undoes them, in order. What is taken away, and names of images, wait for the disk as ever.
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
    /// Opens the records in `db` over the stores of bytes and of file systems.
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

    /// The snapshots that the caller's namespace has with `snapshotter`, by any of its names. `NotFound` if
    /// there is no such snapshotter.
    pub fn snapshots(&self, caller: impl Into<Caller>, snapshotter: &str) -> Result<Snapshots> {
        let own_name = ::snapshot::canonical_name(snapshotter);
        let Some((name, backend)) = self.0.snapshotters.get_key_value(own_name) else {
            return Err(Error::not_found(format!("snapshotter not loaded: {snapshotter}")));
        };
        Ok(Snapshots::new(self.clone(), caller.into(), name.clone(), Arc::clone(backend)))
    }

    /// Where a layer goes that is for the tree of an active snapshot's mounts; none if no snapshotter knows it.
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

    /// Removes what nothing refers to: see the [`graph`](crate::graph) module. Collections run one
    /// at a time; other calls go on meanwhile.
    pub fn collect(&self) -> Result<Collected> {
        gc::collect(&self.0)
    }

    /// Deletes the files of removed blobs and snapshots that were taken out of the way, until `go_on`, which is asked
    /// after each step, says no. Whether all are gone.
    pub fn reclaim(&self, go_on: &dyn Fn() -> bool) -> Result<bool> {
        if !self.0.content.reclaim(go_on)? {
            return Ok(false);
        }
        for backend in self.0.snapshotters.values() {
            if !backend.reclaim(go_on)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Gives back what is kept only so that the next call is quicker.
    pub fn relax(&self) {
        self.0.content.relax();
        for backend in self.0.snapshotters.values() {
            backend.relax();
        }
    }

    /// Makes the file of the records shorter, if it has `least` bytes or more and most of it is free ([`Db::compact`]).
    pub fn compact(&self, least: u64) -> Result<u64> {
        self.0.db.compact(least)
    }

    /// Waits until every record that was answered is on disk, those that a crash may undo included.
    pub fn sync(&self) -> Result<()> {
        self.0.sync()
    }

    /// The first change whose events wait for it to be on disk, by its number. None if there is no such.
    pub fn held_events(&self) -> Option<u64> {
        self.0.outbox.held()
    }

    /// Counts changes to records, for whoever decides when to collect.
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

    /// Takes the bytes of an ingest away, or out of the way.
    pub(crate) fn abort_ingest(&self, backend: &IngestRef) -> Result<()> {
        self.content.abort(backend)?;
        (self.notice)(Notice::SetAside);
        Ok(())
    }

    /// Waits until every change that was answered is on disk, and its events are out.
    pub(crate) fn sync(&self) -> Result<()> {
        let answered = self.outbox.answered();
        self.db.sync()?;
        self.outbox.on_disk(answered);
        Ok(())
    }

    /// Changes records. Returns when the change is on disk and its events are out.
    pub(crate) fn change<T>(&self, body: impl FnOnce(&mut Change<'_, '_>) -> Result<T>) -> Result<T> {
        self.change_on_disk(OnDisk::Now, body)
    }

    /// As `change`, for records that a crash may undo: on disk with the next change, before which their events wait.
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

    /// Why a change is not made. That something is there already is said once it is on disk, if the change would be: a
    /// caller goes on as if it had made it, and a crash must not undo what another made relaxed.
    pub(crate) fn refusal(&self, on_disk: OnDisk, error: Error) -> Error {
        if on_disk == OnDisk::Now && error.is(ErrorKind::AlreadyExists) {
            return self.sync().err().unwrap_or(error);
        }
        error
    }

    /// As `change`, in the queue: see [`Ready::queue`].
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
        // To change nothing puts nothing on disk.
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

/// A change of records that is ready to be made.
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

    /// Makes it. Returns when it is on disk and its events are out.
    pub fn make(self) -> Result<T> {
        self.make_on_disk(OnDisk::Now)
    }

    pub(crate) fn make_on_disk(self, on_disk: OnDisk) -> Result<T> {
        self.store.0.change_on_disk(on_disk, self.body)
    }

    /// Has it made together with what others have queued, and holds no thread meanwhile. `tell` is called when it is
    /// on disk and its events are out, or when it has failed; it must be quick. A driver that is given back must be
    /// run, on a thread that may block.
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

/// What is told of a change once it is committed.
#[derive(Default)]
struct Announcement {
    events: Option<(Place, Events)>,
    /// The change is on disk, and with it what has places before this one.
    on_disk: Option<u64>,
    notices: Vec<Notice>,
}

/// A change in the making: the transaction, what it will tell, and what the collector must look at
/// again.
pub(crate) struct Change<'a, 't> {
    pub(crate) tx: &'a mut WriteTxn<'t>,
    pub(crate) now: Timestamp,
    events: Events,
    touched: Vec<(Namespace, Node)>,
    notices: Vec<Notice>,
}

impl Change<'_, '_> {
    /// Says that something is gone, or refers to less.
    pub(crate) fn free(&mut self) {
        if !self.notices.contains(&Notice::Freed) {
            self.notices.push(Notice::Freed);
        }
    }

    /// Says that an image or a layer is there, is wanted otherwise, or may be wanted by fewer.
    pub(crate) fn settle(&mut self) {
        if !self.notices.contains(&Notice::Settled) {
            self.notices.push(Notice::Settled);
        }
    }

    /// Says when something ends, if it does.
    pub(crate) fn expires(&mut self, expiry: Option<Timestamp>) {
        self.notices.extend(expiry.map(Notice::Expires));
    }

    /// Keeps the change from being a reason to collect: it is the collector's own.
    pub(crate) fn be_unnoticed(&mut self) {
        self.notices.retain(|notice| *notice == Notice::Settled);
    }

    pub(crate) fn emit(&mut self, namespace: &Namespace, event: Event) {
        self.events.push((namespace.clone(), event));
    }

    /// Tells the collector that a record was made or has new references. Every change that can make
    /// something reachable must say so.
    pub(crate) fn touch(&mut self, namespace: &Namespace, node: Node) {
        self.touched.push((namespace.clone(), node));
    }

    /// What every call that makes a record does: see to its namespace and to the caller's lease.
    pub(crate) fn admit(&mut self, caller: &Caller, resource: Option<Resource>) -> Result<()> {
        namespace::ensure(self, &caller.namespace)?;
        if let (Some(lease), Some(resource)) = (&caller.lease, resource) {
            lease::add(self, &caller.namespace, lease, &resource)?;
        }
        Ok(())
    }
}
