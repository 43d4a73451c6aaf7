//! Blobs of unpacked layers that somebody comes to need while they are about to be dropped.

use std::cell::OnceCell;

use metadata::{Image, Resource};
use snapshot::Overlay;
use testkit::Layout;
use transfer::{Retained, Retention, retain};
use types::{Digest, Labels, LeaseId};

use crate::fixture::Stores;

/// Imports an image of one layer, which is unpacked. Gives back its record and the layer.
fn unpacked(stores: &Stores) -> (Image, Digest) {
    let layout = Layout::new();
    let layer = layout.layer("only", 10_000);
    layout.tag(&layout.image("amd64", std::slice::from_ref(&layer)), "one");
    let images =
        transfer::import(&stores.metadata, &stores.caller(), Overlay::NAME, layout.path(), None).unwrap();
    (images[0].clone(), testkit::digest_of(&layer).parse().unwrap())
}

/// Drops what it may, while something happens once the blobs that nobody needs were found.
fn drop_while(stores: &Stores, happens: impl Fn()) -> u64 {
    let once = OnceCell::new();
    let go_on = || {
        once.get_or_init(&happens);
        true
    };
    let Retained { dropped, recipes: 0 } =
        retain(&stores.metadata, &stores.caller(), Retention::Drop, &go_on).unwrap()
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
    assert_eq!(retain(&stores.metadata, &stores.caller(), Retention::Drop, &all).unwrap().dropped, 0);
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
    assert!(content.info(&layer).unwrap_err().is(types::ErrorKind::NotFound));
    let kept = content.info(&image.target.digest).unwrap().labels;
    assert!(kept.values().all(|value| *value != layer.to_string()), "{kept:?}");
}
