//! Stores of a test's own, and pulls into them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use content::{LocalStore, Watch};
use kv::Db;
use metadata::{Caller, Event, Image, Metadata};
use registry::Remote;
use rustix::fs::{Mode, OFlags};
use snapshot::{LayerForm, Options, Overlay, Snapshotter};
use tempfile::TempDir;
use transfer::{Admission, AtOnce, Flights, PullRequest, Retentions, Slots, Unpack, WantedPlatforms};
use types::filter::Filters;
use types::{Labels, Namespace, Platform, Result};

pub(crate) struct Stores {
    dir: TempDir,
    pub(crate) metadata: Metadata,
    pub(crate) flights: Flights,
    pub(crate) slots: Slots,
    /// Events of records so far.
    told: Arc<Mutex<Vec<Event>>>,
}

impl Stores {
    /// `None` unless the test runs as root.
    pub(crate) fn open() -> Option<Stores> {
        Stores::open_with(LayerForm::Directories)
    }

    /// With layers in a given form; see [`Stores::open`].
    pub(crate) fn open_with(form: LayerForm) -> Option<Stores> {
        Stores::open_watched(form, None)
    }

    /// Lets a test block operations on blobs; see [`Stores::open`].
    pub(crate) fn open_watched(form: LayerForm, watch: Option<Watch>) -> Option<Stores> {
        Stores::open_around(form, watch, |overlay| Arc::new(overlay))
    }

    /// With a snapshotter of the test's own around the usual one; see [`Stores::open`].
    pub(crate) fn open_around(
        form: LayerForm,
        watch: Option<Watch>,
        around: impl FnOnce(Overlay) -> Arc<dyn Snapshotter>,
    ) -> Option<Stores> {
        if !testkit::is_root("unpacking layers") {
            return None;
        }
        let dir = TempDir::with_prefix_in("transfer-", "/var/tmp").expect("a temporary directory");
        let options = kv::Options { cache_bytes: 1 << 20, verify: false };
        let db = Db::open(dir.path().join("meta.db"), options).expect("a database");
        let store = LocalStore::open_watched(dir.path().join("content"), watch).expect("a content store");
        let options = Options::new(form);
        let overlay =
            Overlay::open(&dir.path().join("snapshots"), db.clone(), options).expect("a snapshotter");
        let snapshotters: BTreeMap<String, Arc<dyn Snapshotter>> =
            BTreeMap::from([(Overlay::NAME.to_owned(), around(overlay))]);
        let told = Arc::<Mutex<Vec<Event>>>::default();
        let telling = told.clone();
        let sink = Box::new(move |_: &Namespace, event| telling.lock().expect("no panic").push(event));
        let options = metadata::Options { sink, ..metadata::Options::default() };
        let metadata = Metadata::open(db, Arc::new(store), snapshotters, options).expect("the stores open");
        // The maximum: these tests are not about the configured limit.
        let all = NonZeroUsize::new(transfer::layers_at_once()).expect("some");
        let slots = Slots::new(AtOnce { downloads: all, uploads: all });
        Some(Stores { dir, metadata, flights: Flights::default(), slots, told })
    }

    pub(crate) fn caller(&self) -> Caller {
        Caller::new(Namespace::new("default").expect("a valid name"))
    }

    pub(crate) async fn pull(&self, reference: &str) -> Result<Image> {
        self.pull_for(self.caller(), reference).await
    }

    pub(crate) async fn pull_for(&self, caller: Caller, reference: &str) -> Result<Image> {
        self.pull_as(caller, reference, "linux/amd64").await
    }

    pub(crate) async fn pull_platform(&self, reference: &str, platform: &str) -> Result<Image> {
        self.pull_as(self.caller(), reference, platform).await
    }

    async fn pull_as(&self, caller: Caller, reference: &str, platform: &str) -> Result<Image> {
        let remote = Remote::new(&reference.parse()?, None);
        self.pull_from(remote, caller, platform).await
    }

    /// Pulls from `remote`.
    pub(crate) async fn pull_from(&self, remote: Remote, caller: Caller, platform: &str) -> Result<Image> {
        let request = self.request(remote, caller, platform.parse()?);
        transfer::pull(&self.metadata, request, None).await
    }

    /// A pull of one platform, which is unpacked.
    pub(crate) fn request(&self, remote: Remote, caller: Caller, platform: Platform) -> PullRequest {
        PullRequest {
            reference: remote.reference().clone(),
            name: remote.reference().to_string(),
            remote,
            platforms: WantedPlatforms::Each(vec![platform.clone()]),
            unpacks: vec![Unpack { platform, snapshotter: Overlay::NAME.to_owned() }],
            all_metadata: false,
            labels: Labels::new(),
            caller,
            slots: self.slots.clone(),
            flights: self.flights.clone(),
            admission: Admission::default(),
            retentions: Retentions::default(),
        }
    }

    /// The size of a file in some tree, also of a pull in progress.
    pub(crate) fn unpacked(&self, file: &str) -> u64 {
        let trees = std::fs::read_dir(self.dir.path().join("snapshots")).expect("a snapshotter");
        let sizes = trees.filter_map(|tree| tree.ok()?.path().join("fs").join(file).metadata().ok());
        sizes.map(|found| found.len()).max().unwrap_or_default()
    }

    /// The content of a file in a mounted tree.
    pub(crate) fn look(&self, tree: &str, file: &str) -> Vec<u8> {
        let snapshots = self.metadata.snapshots(self.caller(), Overlay::NAME).expect("a snapshotter");
        let mounts = snapshots.view("look", Some(tree), Labels::new()).expect("the tree is there");
        let root = linux::mount::open_mounts(&mounts).expect("it can be mounted");
        let file = rustix::fs::openat(&root, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let mut found = Vec::new();
        File::from(file.expect("a file of the tree")).read_to_end(&mut found).expect("a file of the tree");
        snapshots.remove("look").expect("nobody else has it");
        // The snapshotter keeps its mounts until the daemon ends.
        testkit::unmount_below(self.dir.path());
        found
    }

    /// Names of trees in commit events, in order.
    pub(crate) fn committed(&self) -> Vec<String> {
        let told = self.told.lock().expect("no panic elsewhere");
        let names = told.iter().filter_map(|event| match event {
            Event::SnapshotCommitted { name, .. } => Some(name.clone()),
            _ => None,
        });
        names.collect()
    }

    /// Sizes of the files of ingests.
    fn ingests(&self) -> Vec<u64> {
        let entries = std::fs::read_dir(self.dir.path().join("content/ingest")).expect("a content store");
        let files = entries.filter_map(|entry| entry.ok()?.metadata().ok());
        files.map(|file| file.len()).collect()
    }

    /// Counts of what is left after a collection, once cancelled pulls have closed their files: blobs, ingests,
    /// leases, trees.
    pub(crate) fn left(&self) -> String {
        testkit::eventually("only ingests with a record are left", || {
            self.metadata.collect().expect("nothing holds the collector");
            let recorded = self.metadata.content(self.caller()).statuses(&Filters::all());
            (self.ingests().len() <= recorded.expect("ingests are listed").len()).then_some(())
        });
        let (caller, all) = (self.caller(), Filters::all());
        let content = self.metadata.content(&caller);
        let snapshots = self.metadata.snapshots(&caller, Overlay::NAME).expect("a snapshotter");
        format!(
            "{} blobs, {} ingests, {} leases, {} trees",
            content.list(&all).expect("blobs are listed").len(),
            self.ingests().len(),
            self.metadata.leases(&caller).list(&all).expect("leases are listed").len(),
            snapshots.list(&all).expect("snapshots are listed").len(),
        )
    }
}

/// [`Stores::left`] of empty stores.
pub(crate) const NOTHING: &str = "0 blobs, 0 ingests, 0 leases, 0 trees";
