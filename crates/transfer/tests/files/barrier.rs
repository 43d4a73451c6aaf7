//! Files before records: what is waited for is there before the first file is written.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use content::LocalStore;
use kv::Db;
use metadata::{Caller, Metadata};
use serde_json::json;
use snapshot::{Barrier, CommitOptions, Native, Overlay, Snapshot, Snapshotter, Usage};
use testkit::Layout;
use testkit::layout::tar_of;
use types::{Labels, Mount, Namespace, Result};

/// Notes in which order it is asked.
struct Noting {
    inner: Native,
    asked: Arc<Mutex<Vec<&'static str>>>,
}

impl Noting {
    fn note(&self, what: &'static str) {
        self.asked.lock().expect("no panic elsewhere").push(what);
    }
}

impl Snapshotter for Noting {
    fn stat(&self, key: &str) -> Result<Snapshot> {
        self.inner.stat(key)
    }

    fn update(&self, key: &str, labels: Labels) -> Result<()> {
        self.inner.update(key, labels)
    }

    fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        self.inner.mounts(key)
    }

    fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.note("prepare");
        self.inner.prepare(key, parent, labels)
    }

    fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.inner.view(key, parent, labels)
    }

    fn commit(&self, name: &str, key: &str, options: CommitOptions) -> Result<()> {
        self.note("commit");
        self.inner.commit(name, key, options)
    }

    fn barrier(&self) -> Result<Barrier> {
        self.note("barrier");
        self.inner.barrier()
    }

    fn remove(&self, key: &str) -> Result<()> {
        self.inner.remove(key)
    }

    fn usage(&self, key: &str) -> Result<Usage> {
        self.inner.usage(key)
    }

    fn list(&self) -> Result<Vec<Snapshot>> {
        self.inner.list()
    }

    fn cleanup(&self) -> Result<()> {
        self.inner.cleanup()
    }
}

#[test]
fn a_barrier_is_there_before_the_first_layer_is_written() {
    let dir = tempfile::TempDir::new().expect("a temporary directory");
    let db = Db::open(dir.path().join("meta.db"), kv::Options::default()).expect("a database");
    let content = Arc::new(LocalStore::open(dir.path().join("content")).expect("a content store"));
    let inner = Native::open(&dir.path().join("trees"), db.clone()).expect("a snapshotter");
    let asked = Arc::<Mutex<Vec<&str>>>::default();
    // By this name all layers have one barrier.
    let noting: Arc<dyn Snapshotter> = Arc::new(Noting { inner, asked: asked.clone() });
    let snapshotters = BTreeMap::from([(Overlay::NAME.to_owned(), noting)]);
    let metadata = Metadata::open(db, content, snapshotters, metadata::Options::default()).expect("stores");
    let caller = Caller::new(Namespace::new("test").expect("a name"));
    let layout = Layout::new();
    let image = layout.image_of("amd64", &[tar_of(&[("file", "content")])], &json!({}));
    layout.tag(&layout.index(&[image]), "image:1");
    transfer::import(&metadata, &caller, Overlay::NAME, layout.path(), None).expect("an import");
    assert_eq!(*asked.lock().expect("no panic elsewhere"), ["barrier", "prepare", "commit"]);
}
