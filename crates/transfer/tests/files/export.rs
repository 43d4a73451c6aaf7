//! Exports, by platform.

use serde_json::{Value, json};
use testkit::layout::tar_of;
use testkit::{Layout, digest_of};
use transfer::Platforms;
use types::Result;

use crate::fixture::Fixture;

/// An index of two platforms and an artifact, without the blob named `without`.
fn several(without: Option<&str>) -> (Fixture, Value, [Value; 2]) {
    let layout = Layout::new();
    let image =
        |architecture: &str| layout.image_of(architecture, &[tar_of(&[("file", architecture)])], &json!({}));
    let images = [image("amd64"), image("s390x")];
    let index = layout.index(&images);
    layout.tag(&index, "several:1");
    if let Some(gone) = without {
        let at =
            images.iter().position(|image| image["platform"]["architecture"] == gone).expect("one of them");
        std::fs::remove_file(layout.blob_path(&images[at])).expect("a file of ours");
    }
    let fixture = Fixture::new();
    fixture.import(layout.path()).expect("an import");
    (fixture, index, images)
}

fn export(fixture: &Fixture, platforms: &Platforms) -> Result<Vec<u8>> {
    let images = fixture.metadata.images(&fixture.caller).list(&types::Filters::all()).expect("a list");
    let mut bytes = Vec::new();
    transfer::export(&fixture.metadata, &fixture.caller, &images, &platforms.clone().into(), &mut bytes)?;
    Ok(bytes)
}

/// Exports, and checks the digests in the index. Returns another store that imported the archive.
#[track_caller]
fn check(fixture: &Fixture, platforms: &Platforms, expected: &str) -> Fixture {
    let bytes = export(fixture, platforms).expect("an export");
    assert_eq!(bytes, export(fixture, platforms).expect("an export"), "the same bytes each time");
    let other = Fixture::new();
    let images = other.import(&other.file(&bytes)).expect("what we write can be read");
    assert_eq!(images[0].name, "docker.io/library/several:1");
    assert_eq!(images[0].target.digest.to_string(), expected);
    other
}

fn platform(text: &str) -> types::Platform {
    text.parse().expect("a platform")
}

#[test]
fn the_platforms_in_the_store_are_exported_as_they_are() {
    let (fixture, index, images) = several(None);
    check(&fixture, &Platforms::Here(platform("linux/amd64")), &digest_of(&index));
    check(&fixture, &Platforms::All, &digest_of(&index));
    let (fixture, _, _) = several(Some("s390x"));
    check(&fixture, &Platforms::Here(platform("linux/amd64")), &digest_of(&images[0]));
    let (fixture, _, _) = several(Some("amd64"));
    check(&fixture, &Platforms::Here(platform("linux/amd64")), &digest_of(&images[1]));
}

#[test]
fn one_platform_is_its_manifest_and_several_are_an_index() {
    let (fixture, index, images) = several(None);
    let only = |names: &[&str]| Platforms::Only(names.iter().map(|name| platform(name)).collect());
    let other = check(&fixture, &only(&["linux/s390x"]), &digest_of(&images[1]));
    assert!(!other.has(&digest_of(&images[0])) && !other.has(&digest_of(&index)));
    let both = export(&fixture, &only(&["linux/amd64", "linux/s390x"])).expect("an export");
    let other = Fixture::new();
    other.import(&other.file(&both)).expect("what we write can be read");
    assert!(images.iter().all(|image| other.has(&digest_of(image))), "both manifests, byte for byte");

    let error = export(&fixture, &only(&["linux/riscv64"])).expect_err("there is none");
    assert!(
        error.chain().contains("linux/riscv64") && error.chain().contains("linux/s390x"),
        "{}",
        error.chain()
    );
    let (fixture, _, _) = several(Some("s390x"));
    let error = export(&fixture, &Platforms::All).expect_err("a part is missing");
    assert!(error.chain().contains("linux/s390x missing"), "{}", error.chain());
}

const STATE: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";

/// A blob as an entry of an index, for this platform.
fn part(layout: &Layout, kind: &str, content: &str) -> Value {
    let mut part = layout.blob(kind, content.as_bytes());
    part["platform"] = json!({"os": "linux", "architecture": "amd64"});
    part
}

/// The layer of an image of `several`.
fn layer_of(layout: &Layout, image: &Value) -> Value {
    let bytes = std::fs::read(layout.blob_path(image)).expect("a manifest");
    serde_json::from_slice::<Value>(&bytes).expect("JSON")["layers"][0].clone()
}

#[test]
fn a_checkpoint_goes_with_the_images_in_it_that_are_wanted() {
    let layout = Layout::new();
    let image =
        |architecture: &str| layout.image_of(architecture, &[tar_of(&[("file", architecture)])], &json!({}));
    let images = [image("amd64"), image("s390x")];
    let state = part(&layout, STATE, "state");
    let whole = layout.index(&[layout.index(&images), state.clone()]);
    layout.tag(&whole, "several:1");
    let fixture = Fixture::new();
    fixture.import(layout.path()).expect("an import");

    for wanted in 0..2 {
        let name = ["linux/amd64", "linux/s390x"][wanted];
        let other = check(&fixture, &Platforms::Only(vec![platform(name)]), &digest_of(&whole));
        assert!(other.has(&digest_of(&state)) && other.has(&digest_of(&images[wanted])), "{name}");
        assert!(!other.has(&digest_of(&images[1 - wanted])), "{name}");
        assert!(!other.has(&digest_of(&layer_of(&layout, &images[1 - wanted]))), "{name}");
    }
    // No image in it fits, but its own blobs go.
    let other = check(&fixture, &Platforms::Only(vec![platform("linux/riscv64")]), &digest_of(&whole));
    assert!(images.iter().all(|image| !other.has(&digest_of(image))) && other.has(&digest_of(&state)));
    check(&other, &Platforms::Here(platform("linux/amd64")), &digest_of(&whole));
}

#[test]
fn a_checkpoint_without_its_state_is_refused_though_its_image_is_here() {
    let layout = Layout::new();
    let image = layout.image_of("amd64", &[tar_of(&[("file", "x")])], &json!({}));
    let state = part(&layout, STATE, "state");
    layout.tag(&layout.index(&[image, state.clone()]), "several:1");
    std::fs::remove_file(layout.blob_path(&state)).expect("a file of ours");
    let fixture = Fixture::new();
    let error = fixture.import(layout.path()).expect_err("a part is missing");
    assert!(error.chain().contains(&digest_of(&state)), "{}", error.chain());
    fixture.assert_empty();
}

#[test]
fn blobs_beside_an_image_may_be_missing_from_an_export() {
    let layout = Layout::new();
    let image = layout.image_of("amd64", &[tar_of(&[("file", "x")])], &json!({}));
    let disk = part(&layout, "application/x-disk", "a disk");
    let mut old = layout.blob(types::descriptor::media_type::DOCKER_SCHEMA1_SIGNED, b"{}");
    old["platform"] = json!({"os": "linux", "architecture": "arm64"});
    let index = layout.index(&[image, disk.clone(), old.clone()]);
    layout.tag(&index, "several:1");
    std::fs::remove_file(layout.blob_path(&old)).expect("a file of ours");
    let fixture = Fixture::new();
    fixture.import(layout.path()).expect("an import");
    for platforms in [Platforms::All, Platforms::Here(platform("linux/amd64"))] {
        let other = check(&fixture, &platforms, &digest_of(&index));
        assert!(other.has(&digest_of(&disk)), "it was here");
    }
    std::fs::remove_file(layout.blob_path(&disk)).expect("a file of ours");
    let fixture = Fixture::new();
    fixture.import(layout.path()).expect("an import");
    check(&fixture, &Platforms::All, &digest_of(&index));
}
