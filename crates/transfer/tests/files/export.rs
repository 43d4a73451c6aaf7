//! What is written, and for which platforms.

use serde_json::{Value, json};
use testkit::layout::tar_of;
use testkit::{Layout, digest_of};
use transfer::Platforms;
use types::Result;

use crate::fixture::Fixture;

/// Two platforms and an artifact in one index, of which parts may be missing.
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

/// The digests in the index of what was written, and what another store makes of it.
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
fn what_is_here_goes_as_it_is() {
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
