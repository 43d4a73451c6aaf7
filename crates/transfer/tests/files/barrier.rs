//! Files before records: a barrier is opened before the first file is written, and waited for before the first
//! record.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use content::LocalStore;
use kv::Db;
use metadata::{Caller, Metadata};
use serde_json::json;
use snapshot::{Native, Overlay, Snapshotter};
use testkit::Layout;
use testkit::layout::tar_of;
use types::Namespace;

use crate::spied::Spied;

#[test]
fn a_barrier_is_opened_before_the_first_file_and_waited_for_before_the_first_record() {
    let dir = tempfile::TempDir::new().expect("a temporary directory");
    let db = Db::open(dir.path().join("meta.db"), kv::Options::default()).expect("a database");
    let content = Arc::new(LocalStore::open(dir.path().join("content")).expect("a content store"));
    let inner = Native::open(&dir.path().join("trees"), db.clone()).expect("a snapshotter");
    let asked = Arc::<Mutex<Vec<&str>>>::default();
    // The snapshotter of this name has one barrier for all layers.
    let notes = asked.clone();
    let spied: Arc<dyn Snapshotter> = Arc::new(Spied::new(inner, move |call| {
        if ["barrier", "prepare", "merge_ahead", "wait", "commit"].contains(&call) {
            notes.lock().expect("no panic elsewhere").push(call);
        }
        Ok(())
    }));
    let snapshotters = BTreeMap::from([(Overlay::NAME.to_owned(), spied)]);
    let metadata = Metadata::open(db, content, snapshotters, metadata::Options::default()).expect("stores");
    let caller = Caller::new(Namespace::new("test").expect("a name"));
    let layout = Layout::new();
    let image = layout.image_of("amd64", &[tar_of(&[("file", "content")])], &json!({}));
    layout.tag(&layout.index(&[image]), "image:1");
    transfer::import(&metadata, &caller, Overlay::NAME, layout.path(), None).expect("an import");
    let expected = ["barrier", "prepare", "merge_ahead", "wait", "commit"];
    assert_eq!(*asked.lock().expect("no panic elsewhere"), expected);
}
