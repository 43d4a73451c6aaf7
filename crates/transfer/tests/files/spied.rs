//! A snapshotter that reports each call to a test.

use std::sync::Arc;

use snapshot::{
    Barrier, CommitOptions, KeptLayers, LayerFiles, Merged, Native, Snapshot, Snapshotter, Target, Usage,
};
use types::{Labels, Mount, Result};

/// Called with the name of a call that succeeded; may make it fail.
type Tell = Arc<dyn Fn(&'static str) -> Result<()> + Send + Sync>;

pub(crate) struct Spied {
    inner: Native,
    tell: Tell,
}

impl Spied {
    pub(crate) fn new(
        inner: Native,
        tell: impl Fn(&'static str) -> Result<()> + Send + Sync + 'static,
    ) -> Spied {
        Spied { inner, tell: Arc::new(tell) }
    }

    fn told<T>(&self, call: &'static str, done: T) -> Result<T> {
        (self.tell)(call).map(|()| done)
    }
}

impl Snapshotter for Spied {
    fn stat(&self, key: &str) -> Result<Snapshot> {
        self.told("stat", self.inner.stat(key)?)
    }

    fn update(&self, key: &str, labels: Labels) -> Result<()> {
        self.told("update", self.inner.update(key, labels)?)
    }

    fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        self.told("mounts", self.inner.mounts(key)?)
    }

    fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.told("prepare", self.inner.prepare(key, parent, labels)?)
    }

    fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.told("view", self.inner.view(key, parent, labels)?)
    }

    fn commit(&self, name: &str, key: &str, options: CommitOptions) -> Result<()> {
        self.told("commit", self.inner.commit(name, key, options)?)
    }

    fn kept_layers(&self) -> Option<&dyn KeptLayers> {
        Some(self)
    }

    fn remove(&self, key: &str) -> Result<()> {
        self.told("remove", self.inner.remove(key)?)
    }

    fn usage(&self, key: &str) -> Result<Usage> {
        self.told("usage", self.inner.usage(key)?)
    }

    fn list(&self) -> Result<Vec<Snapshot>> {
        self.told("list", self.inner.list()?)
    }

    fn barrier(&self) -> Result<Barrier> {
        let (inner, tell) = (self.inner.barrier()?, self.tell.clone());
        self.told("barrier", Barrier::by(move || inner.wait().and_then(|()| tell("wait"))))
    }

    fn cleanup(&self) -> Result<()> {
        self.told("cleanup", self.inner.cleanup()?)
    }

    fn reclaim(&self, go_on: &dyn Fn() -> bool) -> Result<bool> {
        self.told("reclaim", self.inner.reclaim(go_on)?)
    }
}

/// It keeps no layers, and reports the calls about them.
impl KeptLayers for Spied {
    fn claim(&self, key: &str) -> Result<()> {
        self.inner.stat(key).map(drop)
    }

    fn files_for(&self, key: &str) -> Result<Option<LayerFiles>> {
        self.inner.stat(key).map(|_| None)
    }

    fn target(&self, _mounts: &[Mount]) -> Result<Option<Target>> {
        Ok(None)
    }

    fn files_of(&self, key: &str) -> Result<Option<LayerFiles>> {
        self.inner.stat(key).map(|_| None)
    }

    fn mended(&self, key: &str) -> Result<()> {
        self.inner.stat(key).map(drop)
    }

    fn mend_derived(&self, key: &str) -> Result<bool> {
        self.inner.stat(key).map(|_| false)
    }

    fn merge_ahead(&self, keys: &[String], parent: Option<&str>) -> Result<Option<Merged>> {
        keys.iter().map(String::as_str).chain(parent).try_for_each(|key| self.inner.stat(key).map(drop))?;
        self.told("merge_ahead", None)
    }

    fn make_ready(&self, key: &str, _merged: Option<Merged>) -> Result<()> {
        self.inner.stat(key).map(drop)
    }
}
