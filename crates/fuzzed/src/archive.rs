//! Image archives, which are imported into temporary stores.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use content::LocalStore;
use kv::Db;
use metadata::{Caller, Metadata};
use snapshot::{Native, Snapshotter};
use tempfile::TempDir;
use types::{Namespace, Reference};

struct Stores {
    dir: TempDir,
    metadata: Metadata,
    caller: Caller,
}

pub(crate) fn archive(bytes: &[u8]) {
    // Shared by all runs: opening a database takes longer than an import.
    static STORES: OnceLock<Stores> = OnceLock::new();
    let stores = STORES.get_or_init(open);
    let path = stores.dir.path().join("archive.tar");
    std::fs::write(&path, bytes).expect("a writable directory");
    let fallback: Reference = "fuzzed".parse().expect("a name");
    let imported = transfer::import(&stores.metadata, &stores.caller, Native::NAME, &path, Some(&fallback));
    for image in imported.into_iter().flatten() {
        let recorded = stores.metadata.images(&stores.caller).get(&image.name);
        assert_eq!(recorded.expect("what was imported is recorded").target, image.target);
    }
}

fn open() -> Stores {
    let memory = std::path::Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let dir = TempDir::new_in(parent).expect("a temporary directory");
    let options = kv::Options { cache_bytes: 1 << 20, verify: false };
    let db = Db::open(dir.path().join("meta.db"), options).expect("a database");
    let store = LocalStore::open(dir.path().join("content")).expect("a content store");
    let native = Native::open(&dir.path().join("snapshots"), db.clone()).expect("a snapshotter");
    let snapshotters: BTreeMap<String, Arc<dyn Snapshotter>> =
        BTreeMap::from([(Native::NAME.to_owned(), Arc::new(native) as _)]);
    let metadata = Metadata::open(db, Arc::new(store), snapshotters, metadata::Options::default());
    let caller = Caller::new(Namespace::new("default").expect("a valid name"));
    let metadata = metadata.expect("the stores open");
    metadata.namespaces().create(&caller.namespace, BTreeMap::new()).expect("a new namespace");
    Stores { dir, metadata, caller }
}
