//! Conversion of images.

use diff::Compression;
use serde_json::{Value, json};
use testkit::layout::tar_of;
use testkit::{Layout, digest_of};
use transfer::{Conversion, Format, Platforms};
use types::descriptor::media_type;
use types::{Descriptor, Platform, Reference, Result};

use crate::fixture::{Fixture, SNAPSHOTTER};

/// An index of two platforms that share a layer.
fn several() -> (Fixture, Value) {
    let layout = Layout::new();
    let common = tar_of(&[("common", &"the same text over and over; ".repeat(200))]);
    let image = |architecture: &str| {
        let own = tar_of(&[("own", architecture)]);
        layout.image_of(architecture, &[common.clone(), own], &json!({}))
    };
    let index = layout.index(&[image("amd64"), image("s390x")]);
    layout.tag(&index, "several:1");
    let fixture = Fixture::new();
    fixture.import(layout.path()).expect("an import");
    (fixture, index)
}

fn as_it_is() -> Conversion {
    Conversion { compression: None, format: None, platforms: Platforms::Here(Platform::host()) }
}

fn convert(fixture: &Fixture, from: &str, to: &str, conversion: &Conversion) -> Result<Descriptor> {
    let name: Reference = to.parse().expect("a name");
    let from: Reference = from.parse().expect("a name");
    let image = fixture.metadata.images(&fixture.caller).get(&from.to_string()).expect("an image");
    let names = (&image, &name);
    transfer::convert(&fixture.metadata, &fixture.caller, SNAPSHOTTER, names, conversion, None)
        .map(|image| image.target)
}

/// The layers of all platforms, with their media types.
fn layers(fixture: &Fixture, target: &Descriptor) -> Vec<(String, String)> {
    let contents = transfer::contents(&fixture.metadata, &fixture.caller, target).expect("contents");
    let manifests = contents.variants.iter().filter_map(|variant| variant.manifest.as_ref());
    manifests
        .flat_map(|manifest| &manifest.layers)
        .map(|layer| (layer.media_type.clone(), layer.digest.to_string()))
        .collect()
}

fn configs(fixture: &Fixture, target: &Descriptor) -> Vec<String> {
    let contents = transfer::contents(&fixture.metadata, &fixture.caller, target).expect("contents");
    let manifests = contents.variants.iter().filter_map(|variant| variant.manifest.as_ref());
    manifests.map(|manifest| manifest.config.digest.to_string()).collect()
}

#[test]
fn compressions_lead_to_each_other_and_back() {
    let (fixture, index) = several();
    let compressed = |compression| Conversion { compression: Some(compression), ..as_it_is() };
    let gzip = convert(&fixture, "several:1", "gz:1", &compressed(Compression::Gzip)).expect("gzip");
    assert!(layers(&fixture, &gzip).iter().all(|(kind, _)| kind == media_type::OCI_LAYER_GZIP));
    assert_eq!(layers(&fixture, &gzip)[0], layers(&fixture, &gzip)[2], "the layer in common stays one");
    let zstd = convert(&fixture, "gz:1", "zst:1", &compressed(Compression::Zstd)).expect("zstd");
    assert!(layers(&fixture, &zstd).iter().all(|(kind, _)| kind == media_type::OCI_LAYER_ZSTD));
    let plain = convert(&fixture, "zst:1", "plain:1", &compressed(Compression::None)).expect("plain");
    let original = Descriptor::new(
        media_type::OCI_INDEX,
        digest_of(&index).parse().expect("a digest"),
        index["size"].as_u64().expect("a size"),
    );
    assert_eq!(layers(&fixture, &plain), layers(&fixture, &original), "the bytes that it began with");
    assert_eq!(configs(&fixture, &zstd), configs(&fixture, &original), "and the same ids all the way");
    // The needed blobs are kept, and no others.
    fixture.metadata.collect().expect("a collection");
    convert(&fixture, "zst:1", "again:1", &compressed(Compression::None)).expect("all of it is still there");

    let (other, _) = several();
    let again = convert(&other, "several:1", "gz:1", &compressed(Compression::Gzip)).expect("gzip");
    assert_eq!(again, gzip, "elsewhere the same bytes");
}

#[test]
fn formats_lead_to_each_other_and_back() {
    let (fixture, _) = several();
    let docker = Conversion { format: Some(Format::Docker), ..as_it_is() };
    let target = convert(&fixture, "several:1", "docker:1", &docker).expect("Docker's format");
    assert_eq!(target.media_type, media_type::DOCKER_MANIFEST_LIST);
    assert!(layers(&fixture, &target).iter().all(|(kind, _)| kind == media_type::DOCKER_LAYER));
    let oci = Conversion { format: Some(Format::Oci), ..as_it_is() };
    let back = convert(&fixture, "docker:1", "oci:1", &oci).expect("the OCI format");
    let straight = convert(&fixture, "several:1", "straight:1", &oci).expect("the OCI format");
    assert_eq!(back, straight);
    let packed = Conversion { compression: Some(Compression::Zstd), ..as_it_is() };
    let target = convert(&fixture, "docker:1", "zst:1", &packed).expect("Docker's format has no zstd");
    assert_eq!(target.media_type, media_type::OCI_INDEX);
    assert!(layers(&fixture, &target).iter().all(|(kind, _)| kind == media_type::OCI_LAYER_ZSTD));

    let zstd = Conversion { compression: Some(Compression::Zstd), ..docker };
    let error = convert(&fixture, "several:1", "no:1", &zstd).expect_err("there is no such type");
    assert!(error.chain().contains("no zstd layers"), "{}", error.chain());
}

#[test]
fn platforms_can_be_left_out() {
    let (fixture, _) = several();
    let only = |platform: &str| Conversion {
        platforms: Platforms::Only(vec![platform.parse().expect("a platform")]),
        ..as_it_is()
    };
    let target = convert(&fixture, "several:1", "one:1", &only("linux/s390x")).expect("one platform");
    assert_eq!(target.media_type, media_type::OCI_MANIFEST);
    assert_eq!(configs(&fixture, &target).len(), 1);
    let error = convert(&fixture, "several:1", "no:1", &only("linux/riscv64")).expect_err("there is none");
    assert!(error.chain().contains("there is linux/amd64, linux/s390x"), "{}", error.chain());
    assert!(!fixture.names().iter().any(|name| name.contains("no:1")));
}
