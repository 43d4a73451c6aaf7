//! Damaged blobs, and the registry that they came from.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use content::Step;
use metadata::Caller;
use serde_json::json;
use testkit::layout::tar_of;
use testkit::{Layout, Registry, digest_of};
use transfer::{Checked, Verdict};
use types::{Filters, Labels, Namespace};

use crate::fixture::Fixture;

/// An image in a store, whose blobs are labelled with a registry that has them.
struct Rotting {
    fixture: Fixture,
    registry: Registry,
    layout: Layout,
}

impl Rotting {
    fn new() -> Rotting {
        Rotting::on(Fixture::new())
    }

    fn on(fixture: Fixture) -> Rotting {
        let layout = Layout::new();
        let image = layout.image_of("amd64", &[tar_of(&[("file", "content")])], &json!({}));
        let index = layout.index(&[image]);
        layout.tag(&index, "rotting:1");
        let registry = Registry::start();
        registry.push(layout.path(), "rotting:1", "some/rotting:1");
        fixture.import(layout.path()).expect("an import");
        Rotting { fixture, registry, layout }
    }

    /// Sets the labels that a pull sets.
    fn came_from(&self, repository: &str) {
        let content = self.fixture.metadata.content(&self.fixture.caller);
        let host = self.registry.host();
        // The label has no port; the image's name has it.
        let (alone, _) = host.split_once(':').expect("a port");
        let key = format!("containerd.io/distribution.source.{alone}");
        let images = self.fixture.metadata.images(&self.fixture.caller);
        let image = images.list(&Filters::all()).expect("a list").swap_remove(0);
        images.assign(image.renamed(format!("{host}/some/rotting:1"))).expect("a name");
        for blob in content.list(&Filters::all()).expect("a list") {
            let labels = Labels::from([(key.clone(), repository.to_owned())]);
            content.update(&blob.digest, &labels, &[format!("labels.{key}")]).expect("a label");
        }
    }

    fn blobs(&self) -> Vec<PathBuf> {
        let folder = self.fixture.dir.path().join("root/content/blobs/sha256");
        fs::read_dir(folder).expect("blobs").map(|blob| blob.expect("a blob").path()).collect()
    }

    fn verify(&self) -> Vec<Checked> {
        let images =
            self.fixture.metadata.images(&self.fixture.caller).list(&Filters::all()).expect("a list");
        let targets = images.into_iter().map(|image| (image.name, image.target)).collect();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an executor");
        let connections = registry::Connections::new(registry::Options::default());
        let remote: transfer::Remotes =
            Arc::new(move |reference| connections.remote(reference, &registry::Keyring::new()));
        let (metadata, caller) = (&self.fixture.metadata, &self.fixture.caller);
        runtime
            .block_on(transfer::verify(metadata, caller, targets, remote, |_, _| {}))
            .expect("it looks at all")
    }
}

fn count(checked: &[Checked], fits: fn(&Verdict) -> bool) -> usize {
    checked.iter().filter(|checked| fits(&checked.verdict)).count()
}

#[test]
fn intact_blobs_are_left_alone() {
    let rotting = Rotting::new();
    let checked = rotting.verify();
    assert_eq!(checked.len(), 5, "an index, a manifest, a config and a layer, and what that was unpacked to");
    assert_eq!(count(&checked, |verdict| *verdict == Verdict::Good), 4);
    assert_eq!(count(&checked, |verdict| *verdict == Verdict::Unseen), 1, "directories have no digest");
}

#[test]
fn rot_is_mended_from_where_the_blob_came_from() {
    let rotting = Rotting::new();
    rotting.came_from("no/such,some/rotting");
    // Same length, truncated, empty, and missing.
    let blobs = rotting.blobs();
    for (at, blob) in blobs.iter().enumerate() {
        let mut bytes = fs::read(blob).expect("a blob");
        match at {
            0 => bytes[0] ^= 1,
            1 => bytes.truncate(10),
            _ => bytes.clear(),
        }
        fs::remove_file(blob).expect("a blob");
        if at < 3 {
            fs::write(blob, bytes).expect("a writable store");
        }
    }
    let checked = rotting.verify();
    assert_eq!(count(&checked, |verdict| matches!(verdict, Verdict::Mended(_))), 4, "{checked:?}");
    for blob in &blobs {
        let name = format!("sha256:{}", blob.file_name().expect("a name").display());
        assert_eq!(types::Digest::of(&fs::read(blob).expect("a blob")).to_string(), name);
    }
    assert_eq!(count(&rotting.verify(), |verdict| *verdict == Verdict::Good), 4);
    let ingests = rotting.fixture.dir.path().join("root/content/ingest");
    assert_eq!(fs::read_dir(ingests).expect("a folder").count(), 0, "nothing is left on the way");
}

#[test]
fn damaged_blobs_are_restored_by_loading_the_image_again() {
    let rotting = Rotting::new();
    for (at, blob) in rotting.blobs().iter().enumerate() {
        let mut bytes = fs::read(blob).expect("a blob");
        bytes[at] ^= 1;
        fs::remove_file(blob).expect("a blob");
        // The last file is missing.
        if at < 3 {
            fs::write(blob, bytes).expect("a writable store");
        }
    }
    rotting.fixture.import(rotting.layout.path()).expect("an import");
    assert_eq!(count(&rotting.verify(), |verdict| *verdict == Verdict::Good), 4);

    // Another namespace, which shares the blobs.
    for blob in rotting.blobs() {
        fs::remove_file(&blob).expect("a blob");
        fs::write(&blob, "other bytes").expect("a writable store");
    }
    let Rotting { mut fixture, registry, layout } = rotting;
    let own = std::mem::replace(&mut fixture.caller, Caller::new(Namespace::new("other").expect("a name")));
    fixture.import(layout.path()).expect("an import");
    fixture.caller = own;
    let rotting = Rotting { fixture, registry, layout };
    assert_eq!(count(&rotting.verify(), |verdict| *verdict == Verdict::Good), 4);
}

#[test]
fn damaged_blobs_without_a_source_are_reported() {
    let rotting = Rotting::new();
    let layer = rotting.layout.image_of("amd64", &[tar_of(&[("file", "content")])], &json!({}));
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(rotting.layout.blob_path(&layer)).expect("a blob")).expect("JSON");
    let digest = digest_of(&manifest["layers"][0]).replace("sha256:", "");
    let blob = rotting.blobs().into_iter().find(|blob| blob.ends_with(&digest)).expect("the layer");
    fs::remove_file(&blob).expect("a blob");
    fs::write(&blob, "other bytes").expect("a writable store");
    let broken = |checked: &[Checked]| -> Vec<String> {
        let why = checked.iter().filter_map(|checked| match &checked.verdict {
            Verdict::Broken(why) => Some(why.clone()),
            _ => None,
        });
        why.collect()
    };
    assert!(broken(&rotting.verify())[0].contains("did not come from a registry"));
    rotting.came_from("no/such");
    let why = broken(&rotting.verify());
    assert!(why[0].contains("/no/such"), "{why:?}");
    assert_eq!(
        fs::read_to_string(&blob).expect("a blob"),
        "other bytes",
        "nothing is taken away for nothing"
    );
}

#[test]
fn unreadable_blobs_are_restored() {
    // Blocks below existing blobs go bad; newly written blocks are good.
    let bad: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let blocks = Arc::clone(&bad);
    let rotting = Rotting::on(Fixture::watched(Arc::new(move |step| {
        let mut bad = blocks.lock().expect("no panic");
        match step {
            Step::Read(name) if bad.contains(name) => return Err(std::io::Error::from_raw_os_error(5)),
            Step::Rename { to, .. } => drop(bad.remove(to)),
            _ => {}
        }
        Ok(())
    })));
    rotting.came_from("some/rotting");
    let name = |blob: &PathBuf| format!("blobs/sha256/{}", blob.file_name().expect("a name").display());
    bad.lock().expect("no panic").extend(rotting.blobs().iter().map(name));
    let checked = rotting.verify();
    assert_eq!(count(&checked, |verdict| matches!(verdict, Verdict::Mended(_))), 4, "{checked:?}");
    assert_eq!(count(&rotting.verify(), |verdict| *verdict == Verdict::Good), 4);
}
