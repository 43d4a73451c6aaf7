//! A snapshotter whose merges of several layers wait for a test.

use snapshot::{
    Barrier, CommitOptions, KeptLayers, LayerFiles, Merged, Overlay, ReadyCommit, Snapshot, Snapshotter,
    Target, Usage,
};
use testkit::Gate;
use types::{Labels, Mount, Result};

pub(crate) struct HeldMerge {
    pub(crate) inner: Overlay,
    pub(crate) gate: Gate,
}

impl Snapshotter for HeldMerge {
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
        self.inner.prepare(key, parent, labels)
    }

    fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.inner.view(key, parent, labels)
    }

    fn ready_commit<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        options: CommitOptions,
    ) -> Result<Option<ReadyCommit<'a>>> {
        self.inner.ready_commit(name, key, options)
    }

    fn kept_layers(&self) -> Option<&dyn KeptLayers> {
        Some(self)
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

    fn barrier(&self) -> Result<Barrier> {
        self.inner.barrier()
    }

    fn cleanup(&self) -> Result<()> {
        self.inner.cleanup()
    }
}

impl KeptLayers for HeldMerge {
    fn claim(&self, key: &str) -> Result<()> {
        self.inner.claim(key)
    }

    fn files_for(&self, key: &str) -> Result<Option<LayerFiles>> {
        self.inner.files_for(key)
    }

    fn target(&self, mounts: &[Mount]) -> Result<Option<Target>> {
        self.inner.target(mounts)
    }

    fn files_of(&self, key: &str) -> Result<Option<LayerFiles>> {
        self.inner.files_of(key)
    }

    fn mended(&self, key: &str) -> Result<()> {
        self.inner.mended(key)
    }

    fn mend_derived(&self, key: &str) -> Result<bool> {
        self.inner.mend_derived(key)
    }

    fn merge_ahead(&self, keys: &[String], parent: Option<&str>) -> Result<Option<Merged>> {
        if keys.len() > 1 {
            self.gate.pass();
        }
        self.inner.merge_ahead(keys, parent)
    }

    fn make_ready(&self, key: &str, merged: Option<Merged>) -> Result<()> {
        self.inner.make_ready(key, merged)
    }
}
