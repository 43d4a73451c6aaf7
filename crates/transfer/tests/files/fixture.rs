//! Stores on a temporary directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use content::{LocalStore, Watch};
use kv::Db;
use metadata::{Caller, Image, Metadata};
use snapshot::{Native, Snapshotter};
use types::{Digest, Filters, Namespace, Reference, Result};

pub(crate) struct Fixture {
    pub(crate) metadata: Metadata,
    pub(crate) caller: Caller,
    pub(crate) dir: tempfile::TempDir,
}

/// The name of a snapshotter that needs no mounts.
pub(crate) const SNAPSHOTTER: &str = Native::NAME;

impl Fixture {
    pub(crate) fn new() -> Fixture {
        Fixture::over(|native| Arc::new(native))
    }

    /// Wraps the snapshotter.
    pub(crate) fn over(make: impl FnOnce(Native) -> Arc<dyn Snapshotter>) -> Fixture {
        Fixture::on(None, make)
    }

    /// Lets a test fail operations on blobs.
    pub(crate) fn watched(watch: Watch) -> Fixture {
        Fixture::on(Some(watch), |native| Arc::new(native))
    }

    fn on(watch: Option<Watch>, make: impl FnOnce(Native) -> Arc<dyn Snapshotter>) -> Fixture {
        let dir = tempfile::TempDir::new().expect("a temporary directory");
        let root = dir.path().join("root");
        fs::create_dir(&root).expect("a writable directory");
        let db = Db::open(root.join("meta.db"), kv::Options { cache_bytes: 1 << 20, verify: false });
        let db = db.expect("a database");
        let content =
            Arc::new(LocalStore::open_watched(root.join("content"), watch).expect("a content store"));
        let native = Native::open(&root.join("snapshots"), db.clone()).expect("a snapshotter");
        let snapshotters: BTreeMap<String, Arc<dyn Snapshotter>> =
            BTreeMap::from([(SNAPSHOTTER.to_owned(), make(native))]);
        let metadata = Metadata::open(db, content, snapshotters, metadata::Options::default());
        let caller = Caller::new(Namespace::new("test").expect("a name"));
        let metadata = metadata.expect("stores");
        metadata.namespaces().create(&caller.namespace, BTreeMap::new()).expect("a new namespace");
        Fixture { metadata, caller, dir }
    }

    pub(crate) fn import(&self, source: &Path) -> Result<Vec<Image>> {
        let fallback: Reference = "fallback".parse().expect("a name");
        transfer::import(&self.metadata, &self.caller, SNAPSHOTTER, source, Some(&fallback))
    }

    /// Path of a file to import.
    pub(crate) fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join("archive");
        fs::write(&path, bytes).expect("a writable directory");
        path
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let images = self.metadata.images(&self.caller).list(&Filters::all()).expect("a list");
        images.into_iter().map(|image| image.name).collect()
    }

    pub(crate) fn has(&self, digest: &str) -> bool {
        let digest: Digest = digest.parse().expect("a digest");
        self.metadata.content(&self.caller).info(&digest).is_ok()
    }

    /// Panics if anything is left after a collection: a blob, an ingest, a tree, a lease, an image.
    #[track_caller]
    pub(crate) fn assert_empty(&self) {
        self.metadata.collect().expect("a collection");
        let all = Filters::all();
        assert_eq!(self.names(), Vec::<String>::new());
        let content = self.metadata.content(&self.caller);
        assert_eq!(content.list(&all).expect("a list"), []);
        assert_eq!(content.statuses(&all).expect("a list").len(), 0);
        assert_eq!(self.metadata.leases(&self.caller).list(&all).expect("a list"), []);
        let snapshots = self.metadata.snapshots(&self.caller, SNAPSHOTTER).expect("a snapshotter");
        assert_eq!(snapshots.list(&all).expect("a list").len(), 0);
        for folder in ["content/blobs/sha256", "content/ingest"] {
            let path = self.dir.path().join("root").join(folder);
            let left: Vec<_> =
                fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }
}
