//! Archives that are malformed, or too large.

use serde_json::{Value, json};
use snapshot::Overlay;
use testkit::Layout;
use testkit::layout::tar_of;
use transfer::{BaseName, ImportOptions, NameRule, import, import_stream};
use types::filter::Filters;
use types::{Digest, Error, ErrorKind};

use crate::fixture::{NOTHING, Stores};

/// The error of importing an archive with these files under its own names.
fn refused(stores: &Stores, files: &[(&str, &str)]) -> Error {
    let base = BaseName { name: "any".to_owned(), takes_others: true, ..BaseName::default() };
    let options = ImportOptions { rules: vec![NameRule::Base(base)], ..ImportOptions::default() };
    let error = import_stream(&stores.metadata, &stores.caller(), &options, &tar_of(files)[..]).unwrap_err();
    assert_eq!(stores.left(), NOTHING);
    error
}

#[test]
fn a_broken_image_keeps_the_whole_archive_out() {
    let Some(stores) = Stores::open() else { return };
    let layout = Layout::new();
    layout.tag(&layout.image("amd64", &[layout.layer("whole", 1000)]), "whole");
    let lost = layout.layer("lost", 1000);
    layout.tag(&layout.image("amd64", std::slice::from_ref(&lost)), "broken");
    std::fs::remove_file(layout.blob_path(&lost)).unwrap();
    let error = import(&stores.metadata, &stores.caller(), Overlay::NAME, layout.path(), None).unwrap_err();
    assert!(error.is(ErrorKind::NotFound), "{}", error.chain());
    assert_eq!(stores.metadata.images(stores.caller()).list(&Filters::all()).unwrap(), []);
    assert_eq!(stores.left(), NOTHING);
}

/// An image may be imported without being unpacked, whatever its config; but it cannot be run.
#[test]
fn a_config_of_other_layers_is_refused_only_when_unpacking() {
    let Some(stores) = Stores::open() else { return };
    let layout = Layout::new();
    let config = json!({"rootfs": {"type": "layers", "diff_ids": []}});
    layout.tag(&layout.image_of_blobs(&[layout.layer("only", 1000)], &config), "odd");

    let error = import(&stores.metadata, &stores.caller(), Overlay::NAME, layout.path(), None).unwrap_err();
    assert!(error.is(ErrorKind::InvalidArgument), "{}", error.chain());
    assert!(error.chain().contains("names 0 layers, its manifest 1"), "{}", error.chain());
    assert_eq!(stores.left(), NOTHING);

    let base = BaseName { name: "any".to_owned(), takes_others: true, ..BaseName::default() };
    let options = ImportOptions { rules: vec![NameRule::Base(base)], ..ImportOptions::default() };
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("archive.tar");
    layout.archive(&archive);
    let archive = std::fs::File::open(archive).unwrap();
    let images = import_stream(&stores.metadata, &stores.caller(), &options, archive).unwrap();
    assert_eq!(images.len(), 1);
}

#[test]
fn the_index_may_be_named_by_its_digest() {
    let Some(stores) = Stores::open() else { return };
    let layout = Layout::new();
    layout.tag(&layout.image("amd64", &[layout.layer("only", 1000)]), "one");
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("archive.tar");
    layout.archive(&archive);
    let options =
        ImportOptions { index_names_with_digest: vec!["any/index".to_owned()], ..ImportOptions::default() };
    let archive = std::fs::File::open(archive).unwrap();
    let images = import_stream(&stores.metadata, &stores.caller(), &options, archive).unwrap();
    let index = Digest::of(&std::fs::read(layout.path().join("index.json")).unwrap());
    let names: Vec<&str> = images.iter().map(|image| image.name.as_str()).collect();
    assert_eq!(names, [format!("any/index@{index}")]);
}

#[test]
fn images_and_names_in_an_archive_are_bounded() {
    let Some(stores) = Stores::open() else { return };
    let config = r#"{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}"#;
    let names: Vec<String> = (0..5000).map(|at| format!("a:{at}")).collect();
    for docker in [
        json!([{"Config": "c", "Layers": [], "RepoTags": names}]),
        json!([{"Config": "c", "Layers": vec!["c"; 5000]}]),
        Value::from(vec![json!({"Config": "c", "Layers": []}); 5000]),
    ] {
        let error = refused(&stores, &[("c", config), ("manifest.json", &docker.to_string())]);
        assert!(error.is(ErrorKind::InvalidArgument), "{}", error.chain());
        assert!(error.chain().contains("manifest.json has 5000"), "{}", error.chain());
    }
    let layout = Layout::new();
    let image = layout.image("amd64", &[]);
    let index = json!({"schemaVersion": 2, "manifests": vec![image; 5000]}).to_string();
    let error = refused(&stores, &[("index.json", &index)]);
    assert!(error.chain().contains("it has 5000 images, and 4096 are read"), "{}", error.chain());
}

#[test]
fn image_names_with_control_characters_are_refused() {
    let Some(stores) = Stores::open() else { return };
    let layout = Layout::new();
    let mut image = layout.image("amd64", &[]);
    let files: Vec<(String, String)> = std::fs::read_dir(layout.path().join("blobs/sha256"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.strip_prefix(layout.path()).unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .collect();
    for name in ["a/\u{1b}[2Jb".to_owned(), format!("a/{}", "b".repeat(2000))] {
        image["annotations"] = json!({"io.containerd.image.name": name});
        let index = json!({"schemaVersion": 2, "manifests": [image]}).to_string();
        let mut files: Vec<(&str, &str)> =
            files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        files.push(("index.json", &index));
        let error = refused(&stores, &files);
        assert!(error.is(ErrorKind::InvalidArgument), "{}", error.chain());
        assert!(error.chain().contains("no control characters"), "{}", error.chain());
        assert!(!error.chain().contains('\u{1b}') && error.chain().len() < 500, "{}", error.chain());
    }
}
