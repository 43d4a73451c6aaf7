//! A late collection removes the trees of a deleted image while another image with the same layers is imported.

use std::fs;
use std::sync::{Arc, Mutex, OnceLock};

use metadata::Metadata;
use serde_json::json;
use testkit::Layout;
use testkit::layout::tar_of;
use types::{Labels, Platform};

use crate::fixture::{Fixture, SNAPSHOTTER};
use crate::spied::Spied;

#[test]
fn an_image_that_comes_during_a_late_collection_has_its_trees() {
    let (metadata, taken) = (Arc::new(OnceLock::new()), Arc::new(Mutex::new(None::<usize>)));
    let (unlucky, took) = (metadata.clone(), taken.clone());
    // The collection runs right after the first lookup of a snapshot, once.
    let collect = move |call| {
        if let (Some(metadata), "stat") = (unlucky.get(), call) {
            let mut took = took.lock().expect("no panic elsewhere");
            if took.is_none() {
                *took = Some(Metadata::collect(metadata)?.snapshots);
            }
        }
        Ok(())
    };
    let fixture = Fixture::over(|inner| Arc::new(Spied::new(inner, collect)));
    let layers = [tar_of(&[("low", "low")]), tar_of(&[("high", "high")])];
    // The configs differ, so the new image's config does not keep the trees from the start.
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
    let mounts = snapshots.view("look", Some(&top), Labels::new()).expect("its trees");
    for name in ["low", "high"] {
        let file = std::path::Path::new(&mounts[0].source).join(name);
        assert_eq!(fs::read_to_string(&file).expect("a file of the image"), name);
    }
}
