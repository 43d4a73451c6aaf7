//! Records with a settable clock, and the events they published.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use content::{Expected, LocalStore};
use kv::Db;
use kv::testing::Storage;
use metadata::{Caller, Event, Gate, Image, IsOpen, Metadata, Notice, Options};
use snapshot::{CommitOptions, Kind, Snapshot, Snapshotter, Usage};
use types::{Descriptor, Digest, Error, ErrorKind, Labels, LeaseId, Mount, Namespace, Result, Timestamp};

pub(crate) struct Fixture {
    pub(crate) store: Metadata,
    pub(crate) blobs: Arc<LocalStore>,
    pub(crate) snapshotter: Arc<Remembering>,
    pub(crate) second: Arc<Remembering>,
    pub(crate) events: Arc<Mutex<Vec<(String, Event)>>>,
    pub(crate) clock: Arc<AtomicI64>,
    pub(crate) notices: Arc<Mutex<Vec<Notice>>>,
    dir: tempfile::TempDir,
}

pub(crate) const START: i64 = 1_800_000_000;

impl Fixture {
    pub(crate) fn new() -> Fixture {
        Fixture::with(None)
    }

    /// Records on storage that can fail, without a page cache.
    pub(crate) fn on(storage: &Storage) -> Fixture {
        Fixture::with(Some(storage))
    }

    fn with(storage: Option<&Storage>) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let (snapshotter, second) = Default::default();
        let clock = Arc::new(AtomicI64::new(START));
        let events = Arc::default();
        let notices = Arc::default();
        let (store, blobs) = open(dir.path(), storage, [&snapshotter, &second], &clock, &events, &notices);
        Fixture { store, blobs, snapshotter, second, events, clock, notices, dir }
    }

    /// Closes everything and opens it again, like a new process.
    pub(crate) fn reopen(self) -> Fixture {
        let Fixture { store, blobs, snapshotter, second, events, clock, notices, dir } = self;
        drop((store, blobs));
        let (store, blobs) = open(dir.path(), None, [&snapshotter, &second], &clock, &events, &notices);
        Fixture { store, blobs, snapshotter, second, events, clock, notices, dir }
    }

    /// Opens everything again after a power cut, with only the synced bytes of the records.
    pub(crate) fn after_power_cut(self, storage: &Storage) -> Fixture {
        let Fixture { store, blobs, snapshotter, second, events, clock, notices, dir } = self;
        let left = Storage::of(storage.after_crash(|_| false));
        drop((store, blobs));
        let (store, blobs) =
            open(dir.path(), Some(&left), [&snapshotter, &second], &clock, &events, &notices);
        Fixture { store, blobs, snapshotter, second, events, clock, notices, dir }
    }

    pub(crate) fn pass(&self, time: Duration) {
        self.clock.fetch_add(i64::try_from(time.as_secs()).unwrap(), Ordering::SeqCst);
    }

    /// The time `seconds` from now, as a label's value.
    pub(crate) fn in_seconds(&self, seconds: i64) -> String {
        Timestamp { seconds: self.clock.load(Ordering::SeqCst) + seconds, nanos: 0 }.to_string()
    }

    pub(crate) fn take_notices(&self) -> Vec<Notice> {
        std::mem::take(&mut *self.notices.lock().unwrap())
    }

    pub(crate) fn take_events(&self) -> Vec<(String, Event)> {
        std::mem::take(&mut *self.events.lock().unwrap())
    }

    /// Adds a blob; returns its digest.
    pub(crate) fn blob(&self, caller: &Caller, bytes: &str, blob_labels: Labels) -> Digest {
        let digest = Digest::of(bytes.as_bytes());
        let expected = Expected::new(digest.clone(), bytes.len() as u64);
        let content = self.store.content(caller);
        let reference = format!("add {bytes}").parse().unwrap();
        let mut writer = loop {
            match content.begin(&reference, expected.clone()) {
                // Another thread adds the same blob: retry, as clients do.
                Err(error) if error.kind() == ErrorKind::Unavailable => std::thread::yield_now(),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => return digest,
                writer => break writer.unwrap(),
            }
        };
        if !writer.is_shared() {
            let offset = usize::try_from(writer.offset()).unwrap();
            writer.write(&bytes.as_bytes()[offset..]).unwrap();
        }
        match writer.commit(expected, blob_labels) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            result => drop(result.unwrap()),
        }
        digest
    }

    pub(crate) fn image(&self, caller: &Caller, name: &str, target: &Digest, image_labels: Labels) -> Image {
        self.store.images(caller).create(image(name, target, image_labels), None).unwrap()
    }

    pub(crate) fn lease(&self, name: &str, lease_labels: Labels) -> Caller {
        let id: LeaseId = name.parse().unwrap();
        self.store.leases(default()).create(&id, lease_labels).unwrap();
        Caller::new(default()).with_lease(id)
    }

    pub(crate) fn has_blob(&self, digest: &Digest) -> bool {
        let recorded = self.store.content(default()).info(digest).is_ok();
        assert_eq!(
            recorded,
            content::Store::info(&*self.blobs, digest).is_ok(),
            "record and bytes of {digest}"
        );
        recorded
    }

    pub(crate) fn has_snapshot(&self, key: &str) -> bool {
        let snapshots = self.store.snapshots(default(), "remembering").unwrap();
        let recorded = snapshots.stat(key).is_ok();
        let suffix = format!("/{key}");
        let below = self.snapshotter.keys().iter().any(|name| name.ends_with(&suffix));
        assert_eq!(recorded, below, "record and files of {key}");
        recorded
    }
}

/// The gate refuses this name.
pub(crate) const CLOSED: &str = "closed";

/// Admits every name but [`CLOSED`].
struct ClosedToOne;

impl Gate for ClosedToOne {
    fn admit(&self, name: &str, _: &Descriptor) -> Result<()> {
        match name {
            CLOSED => Err(Error::permission_denied("the gate is closed")),
            _ => Ok(()),
        }
    }

    fn is_open<'a>(&'a self, name: &'a str) -> IsOpen<'a> {
        Box::pin(std::future::ready(name != CLOSED))
    }
}

fn open(
    dir: &std::path::Path,
    storage: Option<&Storage>,
    [snapshotter, second]: [&Arc<Remembering>; 2],
    clock: &Arc<AtomicI64>,
    events: &Arc<Mutex<Vec<(String, Event)>>>,
    notices: &Arc<Mutex<Vec<Notice>>>,
) -> (Metadata, Arc<LocalStore>) {
    let blobs = Arc::new(LocalStore::open(dir.join("content")).unwrap());
    let db = match storage.cloned() {
        None => Db::open(dir.join("meta.db"), kv::Options::default()),
        Some(storage) => {
            let options = kv::Options { cache_bytes: 0, ..kv::Options::default() };
            Db::open_on(move || Ok(storage.clone()), options)
        }
    };
    let db = db.unwrap();
    let snapshotter: Arc<dyn Snapshotter> = Arc::clone(snapshotter) as _;
    let second: Arc<dyn Snapshotter> = Arc::clone(second) as _;
    let snapshotters =
        BTreeMap::from([("remembering".to_owned(), snapshotter), ("second".to_owned(), second)]);
    let (clock, events, notices) = (Arc::clone(clock), Arc::clone(events), Arc::clone(notices));
    let options = Options {
        now: Box::new(move || Timestamp { seconds: clock.load(Ordering::SeqCst), nanos: 0 }),
        sink: Box::new(move |namespace, event| {
            events.lock().unwrap().push((namespace.to_string(), event));
        }),
        notice: Box::new(move |notice| notices.lock().unwrap().push(notice)),
        gate: Box::new(ClosedToOne),
        ..Options::default()
    };
    let store = Metadata::open(db, Arc::clone(&blobs) as _, snapshotters, options).unwrap();
    (store, blobs)
}

pub(crate) fn default() -> Namespace {
    Namespace::new("default").unwrap()
}

pub(crate) fn caller() -> Caller {
    Caller::new(default())
}

pub(crate) fn labels(entries: &[(&str, &str)]) -> Labels {
    entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub(crate) fn paths(paths: &[&str]) -> Vec<String> {
    paths.iter().map(|path| (*path).to_owned()).collect()
}

pub(crate) fn image(name: &str, target: &Digest, labels: Labels) -> Image {
    Image {
        name: name.to_owned(),
        labels,
        target: Descriptor::new("application/vnd.oci.image.manifest.v1+json", target.clone(), 5),
        created: Timestamp::default(),
        updated: Timestamp::default(),
    }
}

/// The result of a future that is ready at once.
pub(crate) fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("it waits"),
    }
}

pub(crate) fn kind<T>(result: Result<T>) -> ErrorKind {
    result.err().expect("an error").kind()
}

/// A call, and the action that runs in it.
type Meanwhile = (&'static str, Box<dyn Fn() + Send>);

/// A snapshotter without files. It can pretend to have a snapshot already, as remote ones do, and to fail.
#[derive(Default)]
pub(crate) struct Remembering {
    snapshots: Mutex<BTreeMap<String, Snapshot>>,
    remote: Mutex<Vec<String>>,
    broken: Mutex<Option<&'static str>>,
    meanwhile: Mutex<Option<Meanwhile>>,
    elsewhere: AtomicBool,
}

impl Remembering {
    pub(crate) fn keys(&self) -> Vec<String> {
        self.snapshots.lock().unwrap().keys().cloned().collect()
    }

    pub(crate) fn get(&self, key_end: &str) -> Option<Snapshot> {
        let snapshots = self.snapshots.lock().unwrap();
        snapshots.values().find(|snapshot| snapshot.key.ends_with(key_end)).cloned()
    }

    /// Makes a prepare for this target create the committed snapshot itself.
    pub(crate) fn provide(&self, target: &str) {
        self.remote.lock().unwrap().push(target.to_owned());
    }

    /// Makes this call fail from now on; `None` for no call.
    pub(crate) fn break_down(&self, call: Option<&'static str>) {
        *self.broken.lock().unwrap() = call;
    }

    /// Runs this action in each such call from now on.
    pub(crate) fn meanwhile(&self, call: &'static str, done: impl Fn() + Send + 'static) {
        *self.meanwhile.lock().unwrap() = Some((call, Box::new(done)));
    }

    /// Pretends to be a remote snapshotter from now on.
    pub(crate) fn move_elsewhere(&self) {
        self.elsewhere.store(true, Ordering::Relaxed);
    }

    fn works(&self, call: &str) -> Result<()> {
        match &*self.meanwhile.lock().unwrap() {
            Some((slow, done)) if *slow == call => done(),
            _ => {}
        }
        match *self.broken.lock().unwrap() {
            Some(broken) if broken == call => Err(Error::internal(format!("{call} is out of order"))),
            _ => Ok(()),
        }
    }

    pub(crate) fn lose(&self, key_end: &str) {
        self.snapshots.lock().unwrap().retain(|key, _| !key.ends_with(key_end));
    }

    fn add(&self, key: &str, parent: Option<&str>, kind: Kind, labels: Labels) -> Result<()> {
        let mut snapshots = self.snapshots.lock().unwrap();
        if snapshots.contains_key(key) {
            return Err(Error::already_exists(format!("snapshot {key}")));
        }
        if let Some(parent) = parent
            && snapshots.get(parent).is_none_or(|parent| parent.kind != Kind::Committed)
        {
            return Err(Error::not_found(format!("parent {parent}")));
        }
        let time = Timestamp::default();
        let parent = parent.map(str::to_owned);
        let snapshot = Snapshot { key: key.to_owned(), parent, kind, labels, created: time, updated: time };
        snapshots.insert(key.to_owned(), snapshot);
        Ok(())
    }

    fn find(&self, key: &str) -> Result<Snapshot> {
        let snapshots = self.snapshots.lock().unwrap();
        snapshots.get(key).cloned().ok_or_else(|| Error::not_found(format!("snapshot {key}")))
    }

    fn mount(key: &str) -> Vec<Mount> {
        vec![Mount { kind: "bind".to_owned(), source: key.to_owned(), ..Mount::default() }]
    }
}

impl Snapshotter for Remembering {
    fn stat(&self, key: &str) -> Result<Snapshot> {
        let mut snapshot = self.find(key)?;
        snapshot.labels.insert("below".to_owned(), "yes".to_owned());
        Ok(snapshot)
    }

    fn update(&self, key: &str, labels: Labels) -> Result<()> {
        self.find(key)?;
        self.snapshots.lock().unwrap().get_mut(key).expect("found above").labels = labels;
        Ok(())
    }

    fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        self.find(key).map(|_| Remembering::mount(key))
    }

    fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.works("prepare")?;
        let target = labels.get("containerd.io/snapshot.ref").cloned();
        if let Some(target) = target.filter(|target| self.remote.lock().unwrap().contains(target)) {
            self.add(&format!("remote/{target}"), parent, Kind::Committed, labels)?;
            return Err(Error::already_exists(format!("target {target}")));
        }
        self.add(key, parent, Kind::Active, labels).map(|()| Remembering::mount(key))
    }

    fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.add(key, parent, Kind::View, labels).map(|()| Remembering::mount(key))
    }

    fn commit(&self, name: &str, key: &str, options: CommitOptions) -> Result<()> {
        let active = self.find(key)?;
        if active.kind != Kind::Active {
            return Err(Error::failed_precondition(format!("snapshot {key} is not active")));
        }
        let parent = options.parent.or(active.parent);
        self.add(name, parent.as_deref(), Kind::Committed, options.labels)?;
        self.snapshots.lock().unwrap().remove(key);
        Ok(())
    }

    fn remove(&self, key: &str) -> Result<()> {
        self.works("remove")?;
        self.find(key)?;
        let mut snapshots = self.snapshots.lock().unwrap();
        if snapshots.values().any(|snapshot| snapshot.parent.as_deref() == Some(key)) {
            return Err(Error::failed_precondition(format!("snapshot {key} has children")));
        }
        snapshots.remove(key);
        Ok(())
    }

    fn usage(&self, key: &str) -> Result<Usage> {
        self.find(key).map(|_| Usage { bytes: 1, inodes: 2 })
    }

    fn list_for_collection(&self) -> Result<Vec<Snapshot>> {
        self.works("list_for_collection")?;
        self.list()
    }

    fn is_elsewhere(&self) -> bool {
        self.elsewhere.load(Ordering::Relaxed)
    }

    fn list(&self) -> Result<Vec<Snapshot>> {
        self.works("list")?;
        Ok(self.snapshots.lock().unwrap().values().cloned().collect())
    }

    fn cleanup(&self) -> Result<()> {
        self.works("cleanup")
    }

    fn reclaim(&self, _: &dyn Fn() -> bool) -> Result<bool> {
        self.works("reclaim").map(|()| true)
    }
}
