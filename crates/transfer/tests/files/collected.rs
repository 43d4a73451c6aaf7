//! Trees of an image that was removed, which a late collection takes while another image of the same layers comes.

use std::fs;
use std::sync::{Arc, Mutex, OnceLock};

use metadata::Metadata;
use serde_json::json;
use snapshot::{CommitOptions, Native, Snapshot, Snapshotter, Usage};
use testkit::Layout;
use testkit::layout::tar_of;
use types::{Labels, Mount, Platform, Result};

use crate::fixture::{Fixture, SNAPSHOTTER};

/// Has the records collected as soon as somebody has found a snapshot, once.
struct Unlucky {
    inner: Native,
    metadata: Arc<OnceLock<Metadata>>,
    /// How many snapshots the collection took; none before it.
    taken: Arc<Mutex<Option<usize>>>,
}

impl Snapshotter for Unlucky {
    fn stat(&self, key: &str) -> Result<Snapshot> {
        let found = self.inner.stat(key)?;
        let mut taken = self.taken.lock().expect("no panic elsewhere");
        if let (Some(metadata), None) = (self.metadata.get(), *taken) {
            *taken = Some(metadata.collect()?.snapshots);
        }
        Ok(found)
    }

    fn update(&self, key: &str, labels: Labels) -> Result<()> {
        self.inner.update(key, labels)
    }

    fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        self.inner.mounts(key)
    }

    fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.inner.prepare(key, parent, labels)
    }

    fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.inner.view(key, parent, labels)
    }

    fn commit(&self, name: &str, key: &str, options: CommitOptions) -> Result<()> {
        self.inner.commit(name, key, options)
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

    fn reclaim(&self, go_on: &dyn Fn() -> bool) -> Result<bool> {
        self.inner.reclaim(go_on)
    }
}

#[test]
fn an_image_that_comes_during_a_late_collection_has_its_trees() {
    let (metadata, taken) = (Arc::new(OnceLock::new()), Arc::new(Mutex::new(None)));
    let (unlucky, took) = (metadata.clone(), taken.clone());
    let fixture = Fixture::over(|inner| Arc::new(Unlucky { inner, metadata: unlucky, taken: took }));
    let layers = [tar_of(&[("low", "low")]), tar_of(&[("high", "high")])];
    // The configs differ, so that of the one that comes does not keep the trees from the start.
    let import = |name: &str| {
        let layout = Layout::new();
        layout.tag(&layout.image_of("amd64", &layers, &json!({"author": name})), name);
        fixture.import(layout.path()).expect("an import").remove(0)
    };
    let before = import("before:1");
    fixture.metadata.images(&fixture.caller).delete(&before.name, None).expect("it is there");

    metadata.set(fixture.metadata.clone()).ok().expect("set once");
    let image = import("after:1");
    assert_eq!(*taken.lock().expect("no panic elsewhere"), Some(2), "the collection was late");

    fixture.metadata.collect().expect("a collection");
    let platform: Platform = "linux/amd64".parse().expect("a platform");
    let described = transfer::describe(&fixture.metadata, &fixture.caller, &image.target, &platform);
    let top = described.expect("its documents").top.expect("it has layers");
    let snapshots = fixture.metadata.snapshots(&fixture.caller, SNAPSHOTTER).expect("a snapshotter");
    let recipe = snapshots.view("look", Some(&top), Labels::new()).expect("its trees");
    for name in ["low", "high"] {
        let file = std::path::Path::new(&recipe[0].source).join(name);
        assert_eq!(fs::read_to_string(&file).expect("a file of the image"), name);
    }
}
