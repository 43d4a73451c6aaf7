//! Blobs of unpacked layers that are needed again while they are being dropped, or shared by namespaces with
//! different retentions.

use std::cell::OnceCell;
use std::io::Read;

use content::Form;
use metadata::{Caller, Image, Resource};
use snapshot::{LayerForm, Overlay};
use testkit::{Layout, Registry};
use transfer::{RETENTION_LABEL, Retained, Retention, Retentions, retain};
use types::descriptor::media_type;
use types::{Digest, ErrorKind, Filters, Labels, LeaseId, Namespace};

use crate::fixture::Stores;

/// Imports an image of one layer, unpacked. Returns its record and the layer.
fn unpacked(stores: &Stores) -> (Image, Digest) {
    unpacked_for(stores, &stores.caller())
}

fn unpacked_for(stores: &Stores, caller: &Caller) -> (Image, Digest) {
    let layout = Layout::new();
    let layer = layout.layer("only", 10_000);
    layout.tag(&layout.image("amd64", std::slice::from_ref(&layer)), "one");
    let images = transfer::import(&stores.metadata, caller, Overlay::NAME, layout.path(), None).unwrap();
    (images[0].clone(), testkit::digest_of(&layer).parse().unwrap())
}

/// One retention run over a namespace, with the daemon's default `own`.
fn retained(stores: &Stores, caller: &Caller, own: Retention, go_on: &dyn Fn() -> bool) -> Retained {
    retain(&stores.metadata, caller, &Retentions::new(own), go_on).unwrap()
}

/// Runs [`Retention::Drop`], and calls `happens` once the unneeded blobs were found. Returns how many were dropped.
fn drop_while(stores: &Stores, happens: impl Fn()) -> u64 {
    let once = OnceCell::new();
    let go_on = || {
        once.get_or_init(&happens);
        true
    };
    let Retained { dropped, recipes: 0, .. } = retained(stores, &stores.caller(), Retention::Drop, &go_on)
    else {
        panic!("no recipes are wanted")
    };
    assert!(once.get().is_some(), "there is something to drop");
    dropped
}

#[test]
fn a_blob_that_is_leased_or_named_meanwhile_is_not_dropped() {
    let Some(stores) = Stores::open() else { return };
    let (image, layer) = unpacked(&stores);
    let content = stores.metadata.content(stores.caller());
    let leases = stores.metadata.leases(stores.caller());
    let lease: LeaseId = "another-pull".parse().unwrap();

    let is_leased = || {
        leases.create(&lease, Labels::new()).unwrap();
        leases.add_resource(&lease, &Resource::Content(layer.clone())).unwrap();
    };
    assert_eq!(drop_while(&stores, is_leased), 0);
    content.info(&layer).unwrap();
    leases.delete(&lease).unwrap();
    let is_leased_by_its_document = || {
        leases.create(&lease, Labels::new()).unwrap();
        leases.add_resource(&lease, &Resource::Content(image.target.digest.clone())).unwrap();
    };
    assert_eq!(drop_while(&stores, is_leased_by_its_document), 0);
    let all = || true;
    assert_eq!(retained(&stores, &stores.caller(), Retention::Drop, &all).dropped, 0);
    content.info(&layer).unwrap();
    leases.delete(&lease).unwrap();

    let images = stores.metadata.images(stores.caller());
    let named = || drop(images.assign(image.clone().renamed("another".to_owned())).unwrap());
    assert_eq!(drop_while(&stores, named), 0);
    content.info(&layer).unwrap();
    assert!(
        content.info(&image.target.digest).unwrap().labels.values().any(|value| *value == layer.to_string())
    );

    assert_eq!(drop_while(&stores, || images.delete("another", None).unwrap()), 1);
    assert!(content.info(&layer).unwrap_err().is(ErrorKind::NotFound));
    let kept = content.info(&image.target.digest).unwrap().labels;
    assert!(kept.values().all(|value| *value != layer.to_string()), "{kept:?}");
}

/// A namespace with the same layer and its own retention.
fn another(stores: &Stores, retention: &str) -> Caller {
    let namespace = Namespace::new("another").unwrap();
    let labels = Labels::from([(RETENTION_LABEL.to_owned(), retention.to_owned())]);
    stores.metadata.namespaces().create(&namespace, labels).unwrap();
    let caller = Caller::new(namespace);
    unpacked_for(stores, &caller);
    caller
}

#[test]
fn a_blob_that_another_namespace_keeps_gets_no_recipe() {
    let Some(stores) = Stores::open_with(LayerForm::Archives) else { return };
    let (_, layer) = unpacked(&stores);
    let keeping = another(&stores, "keep");
    let content = stores.metadata.content(stores.caller());
    let pass = |caller: &Caller| retained(&stores, caller, Retention::Recipe, &|| true);
    let relabel = |value: &str| {
        let labels = Labels::from([(RETENTION_LABEL.to_owned(), value.to_owned())]);
        stores.metadata.namespaces().update(&keeping.namespace, &labels, &[]).unwrap();
    };
    let is_whole = || content.form(&layer).unwrap() == Form::Whole;
    assert_eq!(pass(&stores.caller()), Retained::default());
    assert!(is_whole(), "the other namespace keeps it");
    // An invalid label: nothing is removed.
    relabel("both");
    assert_eq!(pass(&stores.caller()), Retained::default());

    // All namespaces want recipes, but one has the blob leased.
    relabel("recipe");
    let leases = stores.metadata.leases(&keeping);
    let lease: LeaseId = "a-push".parse().unwrap();
    leases.create(&lease, Labels::new()).unwrap();
    leases.add_resource(&lease, &Resource::Content(layer.clone())).unwrap();
    assert_eq!(pass(&stores.caller()), Retained::default());
    assert!(is_whole(), "a lease of the other namespace holds it");
    leases.delete(&lease).unwrap();

    assert_eq!(pass(&stores.caller()), Retained { recipes: 1, ..Retained::default() });
    assert!(!is_whole());
    let mut bytes = Vec::new();
    stores.metadata.content(&keeping).reader(&layer).unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!(Digest::of(&bytes), layer, "what they share is made again for each");
}

/// A pull shares existing blobs: a namespace that keeps its blobs can read all of them, also after the one that
/// wanted a recipe has released everything. An import that brings the bytes stores them whole again, for all
/// namespaces.
#[tokio::test]
async fn a_namespace_that_keeps_blobs_reads_those_with_a_recipe() {
    let Some(stores) = Stores::open_with(LayerForm::Archives) else { return };
    let registry = Registry::start();
    let layout = Layout::new();
    let layer = layout.layer("only", 10_000);
    layout.tag(&layout.image("amd64", std::slice::from_ref(&layer)), "one");
    let name = registry.push(layout.path(), "one", "shared:1");
    let layer: Digest = testkit::digest_of(&layer).parse().unwrap();
    stores.pull(&name).await.unwrap();
    let own = retained(&stores, &stores.caller(), Retention::Recipe, &|| true);
    assert_eq!(own, Retained { recipes: 1, ..Retained::default() });

    let keeping = Caller::new(Namespace::new("keeping").unwrap());
    stores.pull_for(keeping.clone(), &name).await.unwrap();
    let content = stores.metadata.content(&keeping);
    let check = || {
        assert_eq!(retained(&stores, &keeping, Retention::Keep, &|| true), Retained::default());
        assert!(matches!(content.form(&layer).unwrap(), Form::Recipe { .. }));
        let mut bytes = Vec::new();
        content.reader(&layer).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, content.info(&layer).unwrap().size);
        assert_eq!(Digest::of(&bytes), layer);
    };
    check();
    stores.metadata.images(stores.caller()).delete(&name, None).unwrap();
    stores.metadata.collect().unwrap();
    let gone = stores.metadata.content(stores.caller()).info(&layer).unwrap_err();
    assert!(gone.is(ErrorKind::NotFound), "{gone}");
    check();

    let bringing = Caller::new(Namespace::new("bringing").unwrap());
    transfer::import(&stores.metadata, &bringing, Overlay::NAME, layout.path(), None).unwrap();
    assert_eq!(content.form(&layer).unwrap(), Form::Whole);
}

/// A record may reference something that is not an image; the images' needs are known nevertheless.
#[test]
fn a_record_of_a_non_image_does_not_stop_retention() {
    let Some(stores) = Stores::open_with(LayerForm::Archives) else { return };
    let (image, _) = unpacked(&stores);
    for (name, kind) in [("odd", "application/vnd.x"), ("old", media_type::DOCKER_SCHEMA1_SIGNED)] {
        let mut odd = image.clone().renamed(name.into());
        odd.target.media_type = kind.into();
        stores.metadata.images(stores.caller()).create(odd, None).unwrap();
    }
    let images = stores.metadata.images(stores.caller()).list(&Filters::default()).unwrap();
    let images: Vec<_> = images.into_iter().map(|image| (image.name, image.target)).collect();
    assert_eq!(images.len(), 3);
    assert!(transfer::damaged(&stores.metadata, &stores.caller(), &images).unwrap().is_empty());
    let pass = retained(&stores, &stores.caller(), Retention::Drop, &|| true);
    assert_eq!(pass, Retained { dropped: 1, ..Retained::default() });
}

#[test]
fn a_blob_that_one_namespace_drops_is_there_for_another() {
    let Some(stores) = Stores::open_with(LayerForm::Archives) else { return };
    let (_, layer) = unpacked(&stores);
    let keeping = another(&stores, "keep");
    let pass = |caller: &Caller| retained(&stores, caller, Retention::Drop, &|| true);
    assert_eq!(pass(&keeping), Retained::default());
    assert_eq!(pass(&stores.caller()), Retained { dropped: 1, ..Retained::default() });
    stores.metadata.collect().unwrap();
    let gone = stores.metadata.content(stores.caller()).info(&layer).unwrap_err();
    assert!(gone.is(ErrorKind::NotFound), "{gone}");
    let kept = stores.metadata.content(&keeping);
    assert_eq!(kept.form(&layer).unwrap(), Form::Whole);
    let mut bytes = Vec::new();
    kept.reader(&layer).unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!(Digest::of(&bytes), layer);
}
