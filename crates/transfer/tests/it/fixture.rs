//! Stores of their own for a test, and pulls into them.

use std::collections::BTreeMap;
use std::sync::Arc;

use content::LocalStore;
use kv::Db;
use metadata::{Caller, Image, Metadata};
use registry::Remote;
use snapshot::{LayerForm, Options, Overlay, Snapshotter};
use tempfile::TempDir;
use transfer::{Admission, Flights, PullRequest, Retentions, Unpack, Wanted};
use types::filter::Filters;
use types::{Labels, Namespace, Platform, Result};

pub(crate) struct Stores {
    dir: TempDir,
    pub(crate) metadata: Metadata,
    pub(crate) flights: Flights,
}

impl Stores {
    /// None without root.
    pub(crate) fn open() -> Option<Stores> {
        if !testkit::is_root("unpacking layers") {
            return None;
        }
        let dir = TempDir::with_prefix_in("transfer-", "/var/tmp").expect("a temporary directory");
        let options = kv::Options { cache_bytes: 1 << 20, verify: false };
        let db = Db::open(dir.path().join("meta.db"), options).expect("a database");
        let store = LocalStore::open(dir.path().join("content")).expect("a content store");
        let options = Options::new(LayerForm::Directories);
        let overlay =
            Overlay::open(&dir.path().join("snapshots"), db.clone(), options).expect("a snapshotter");
        let snapshotters: BTreeMap<String, Arc<dyn Snapshotter>> =
            BTreeMap::from([(Overlay::NAME.to_owned(), Arc::new(overlay) as _)]);
        let metadata = Metadata::open(db, Arc::new(store), snapshotters, metadata::Options::default())
            .expect("the stores open");
        Some(Stores { dir, metadata, flights: Flights::default() })
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

    /// Pulls from wherever `remote` leads.
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
            platforms: Wanted::Each(vec![platform.clone()]),
            unpacks: vec![Unpack { platform, snapshotter: Overlay::NAME.to_owned() }],
            all_metadata: false,
            labels: Labels::new(),
            caller,
            flights: self.flights.clone(),
            admission: Admission::default(),
            retentions: Retentions::default(),
        }
    }

    /// How many bytes of a file some tree has, of a pull under way or not.
    pub(crate) fn unpacked(&self, file: &str) -> u64 {
        let trees = std::fs::read_dir(self.dir.path().join("snapshots")).expect("a snapshotter");
        let sizes = trees.filter_map(|tree| tree.ok()?.path().join("fs").join(file).metadata().ok());
        sizes.map(|found| found.len()).max().unwrap_or_default()
    }

    /// Sizes of the files of ingests: blobs on their way in.
    fn ingests(&self) -> Vec<u64> {
        let entries = std::fs::read_dir(self.dir.path().join("content/ingest")).expect("a content store");
        let files = entries.filter_map(|entry| entry.ok()?.metadata().ok());
        files.map(|file| file.len()).collect()
    }

    /// What is left after a collection, once those who were given up have closed what they wrote: blobs, ingests,
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

/// What [`Stores::left`] says of stores without anything.
pub(crate) const NOTHING: &str = "0 blobs, 0 ingests, 0 leases, 0 trees";
