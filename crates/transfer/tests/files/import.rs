//! Imports of OCI layouts and Docker archives.

use std::fs;
use std::process::Command;

use serde_json::json;
use testkit::layout::{archive_of, tar_entry, tar_of};
use testkit::{Layout, digest_of};
use transfer::{BaseName, ImportOptions, NameRule};
use types::descriptor::media_type;
use types::{Digest, Error};

use crate::fixture::{Fixture, SNAPSHOTTER};
use crate::hostile::compress;

fn small(layout: &Layout, architecture: &str) -> serde_json::Value {
    layout.image_of(architecture, &[tar_of(&[("file", architecture)])], &json!({}))
}

/// The error of a failing import.
#[track_caller]
fn refused(layout: &Layout) -> Error {
    let fixture = Fixture::new();
    let error = fixture.import(layout.path()).expect_err("the layout is refused");
    fixture.assert_empty();
    error
}

#[test]
fn folders_archives_and_compressed_archives_are_the_same() {
    let layout = Layout::new();
    let image = small(&layout, "amd64");
    layout.tag(&image, "same:1");
    let dir = tempfile::TempDir::new().expect("a temporary directory");
    let archive = dir.path().join("archive.tar");
    layout.archive(&archive);
    for program in ["gzip", "zstd"] {
        testkit::run(Command::new(program).arg("-k").arg(&archive)).ok();
    }
    let sources = [
        layout.path().to_owned(),
        archive,
        dir.path().join("archive.tar.gz"),
        dir.path().join("archive.tar.zst"),
    ];
    for source in sources {
        let fixture = Fixture::new();
        let images = fixture.import(&source).expect("an import");
        assert_eq!(images[0].name, "docker.io/library/same:1");
        assert_eq!(images[0].target.digest.to_string(), digest_of(&image), "{}", source.display());
        fixture.metadata.collect().expect("a collection");
        assert!(fixture.has(&digest_of(&image)), "its name keeps it");
    }
}

#[test]
fn other_compressions_are_named() {
    let layout = Layout::new();
    layout.tag(&small(&layout, "amd64"), "x:1");
    let fixture = Fixture::new();
    let archive = fixture.dir.path().join("archive.tar");
    layout.archive(&archive);
    testkit::run(Command::new("xz").arg(&archive)).ok();
    let error = fixture.import(&archive.with_extension("tar.xz")).expect_err("refused");
    assert!(
        error.chain().contains("compressed with xz") && error.chain().contains("xz -d"),
        "{}",
        error.chain()
    );
}

#[test]
fn an_image_for_another_machine_is_kept_without_a_tree() {
    let layout = Layout::new();
    layout.tag(&small(&layout, "s390x"), "other:1");
    let fixture = Fixture::new();
    fixture.import(layout.path()).expect("an import");
    let snapshots = fixture.metadata.snapshots(&fixture.caller, SNAPSHOTTER).expect("a snapshotter");
    assert_eq!(snapshots.list(&types::Filters::all()).expect("a list").len(), 0);
}

#[test]
fn an_index_of_which_a_part_is_there_is_kept_as_it_is() {
    let layout = Layout::new();
    let (mine, other) = (small(&layout, "amd64"), small(&layout, "s390x"));
    let index = layout.index(&[other.clone(), mine.clone()]);
    layout.tag(&index, "part:1");
    fs::remove_file(layout.blob_path(&other)).expect("a file of ours");
    let fixture = Fixture::new();
    let images = fixture.import(layout.path()).expect("an import");
    assert_eq!(images[0].target.digest.to_string(), digest_of(&index));
    let contents =
        transfer::contents(&fixture.metadata, &fixture.caller, &images[0].target).expect("contents");
    let here: Vec<bool> = contents.variants.iter().map(transfer::Variant::is_whole).collect();
    assert_eq!(here, [false, true]);
}

/// An index of `count` images that share one config, padded by `len` bytes.
fn images_of_one_config(layout: &Layout, count: usize, len: usize) -> serde_json::Value {
    let one = layout.image_of("amd64", &[tar_of(&[("file", "")])], &json!({"author": "a".repeat(len)}));
    let text = fs::read(layout.blob_path(&one)).expect("a file of ours");
    let manifest: serde_json::Value = serde_json::from_slice(&text).expect("a file of ours");
    let named = |number: usize| {
        let mut other = manifest.clone();
        other["annotations"] = json!({"number": number.to_string()});
        layout.document(media_type::OCI_MANIFEST, &other)
    };
    layout.index(&(0..count).map(named).collect::<Vec<_>>())
}

#[test]
fn documents_that_are_named_again_and_again_come_to_an_end() {
    let layout = Layout::new();
    layout.tag(&images_of_one_config(&layout, 40, 1 << 20), "many:1");
    let chain = refused(&layout).chain();
    assert!(chain.contains("documents of more than 33554432 bytes"), "{chain}");

    let layout = Layout::new();
    layout.tag(&images_of_one_config(&layout, 40, 1 << 10), "many:1");
    Fixture::new().import(layout.path()).expect("what images have");
}

#[test]
fn artifacts_are_kept_as_they_are() {
    let layout = Layout::new();
    let subject = small(&layout, "amd64");
    let artifact = layout.artifact("application/vnd.example.report", &subject, "all is well");
    layout.tag(&artifact, "report:1");
    let fixture = Fixture::new();
    let images = fixture.import(layout.path()).expect("an import");
    let contents =
        transfer::contents(&fixture.metadata, &fixture.caller, &images[0].target).expect("contents");
    assert_eq!(contents.variants[0].artifact_type(), Some("application/vnd.example.report"));
    assert!(contents.is_whole());
    let platform = types::Platform::host();
    let described = transfer::describe(&fixture.metadata, &fixture.caller, &images[0].target, &platform);
    let error = described.err().expect("an artifact cannot be run");
    assert!(error.chain().contains("artifact of type application/vnd.example.report"), "{}", error.chain());
}

#[test]
fn layers_of_a_vendor_and_schema_1_are_refused_by_name() {
    let layout = Layout::new();
    let image = small(&layout, "amd64");
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(layout.blob_path(&image)).expect("a blob")).expect("JSON");
    manifest["layers"][0] = json!({
        "mediaType": media_type::DOCKER_FOREIGN_LAYER_GZIP, "size": 1000,
        "digest": format!("sha256:{}", "c".repeat(64)), "urls": ["https://vendor.example/layer"],
    });
    layout.tag(&layout.document(media_type::OCI_MANIFEST, &manifest), "vendor:1");
    let error = refused(&layout);
    assert!(error.chain().contains("only its vendor may hand out"), "{}", error.chain());

    let layout = Layout::new();
    let old = json!({"schemaVersion": 1, "name": "old", "fsLayers": []});
    layout.tag(&layout.document(media_type::DOCKER_SCHEMA1_SIGNED, &old), "old:1");
    let error = refused(&layout);
    assert!(
        error.chain().contains("schema 1") && error.chain().contains("push it again"),
        "{}",
        error.chain()
    );
}

/// `docker save` until 2023: a directory per layer, links between them, and manifest.json.
#[test]
fn the_old_form_of_docker_save() {
    let layers = [tar_of(&[("a", "1")]), tar_of(&[("b", "2")])];
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [diff_ids[0], diff_ids[1], diff_ids[0]]}});
    let manifest = json!([{
        "Config": "c0.json", "RepoTags": ["old:1", "old:2"],
        "Layers": ["l1/layer.tar", "l2/layer.tar", "l3/layer.tar"],
    }]);
    let archive = [
        tar_entry("l1/VERSION", b'0', "", b"1.0"),
        tar_entry("l1/json", b'0', "", b"{}"),
        tar_entry("l1/layer.tar", b'0', "", &layers[0]),
        tar_entry("l2/layer.tar", b'0', "", &layers[1]),
        tar_entry("l3/layer.tar", b'2', "../l1/layer.tar", b""),
        tar_entry("c0.json", b'0', "", config.to_string().as_bytes()),
        tar_entry("repositories", b'0', "", b"{}"),
        tar_entry("manifest.json", b'0', "", manifest.to_string().as_bytes()),
    ];
    let fixture = Fixture::new();
    let images = fixture.import(&fixture.file(&archive_of(&archive))).expect("an import");
    let names: Vec<&str> = images.iter().map(|image| image.name.as_str()).collect();
    assert_eq!(names, ["docker.io/library/old:1", "docker.io/library/old:2"]);
    assert_eq!(images[0].target, images[1].target);

    let fixture = Fixture::new();
    let before = archive_of(&[tar_entry("repositories", b'0', "", b"{}"), archive[2].clone()]);
    let error = fixture.import(&fixture.file(&before)).expect_err("refused");
    assert!(error.chain().contains("before 1.10"), "{}", error.chain());
    fixture.assert_empty();
}

/// What `docker save` writes of an image with these layers, given as their files and as the archives inside them.
fn saved(layers: &[(&[u8], &[u8])], tags: &[&str]) -> (Vec<u8>, String) {
    let diff_ids: Vec<String> = layers.iter().map(|(_, plain)| Digest::of(plain).to_string()).collect();
    let rootfs = json!({"type": "layers", "diff_ids": diff_ids});
    let config = json!({"os": "linux", "architecture": "x86_64", "rootfs": rootfs}).to_string();
    let paths: Vec<String> = (0..layers.len()).map(|at| format!("{at}/layer.tar")).collect();
    let manifest = json!([{"Config": "c.json", "RepoTags": tags, "Layers": paths}]).to_string();
    let mut entries: Vec<Vec<u8>> =
        layers.iter().zip(&paths).map(|((file, _), path)| tar_entry(path, b'0', "", file)).collect();
    entries.push(tar_entry("c.json", b'0', "", config.as_bytes()));
    entries.push(tar_entry("manifest.json", b'0', "", manifest.as_bytes()));
    (archive_of(&entries), config)
}

/// The documents that containerd makes of such an archive, byte for byte.
#[test]
fn documents_of_docker_archives_are_containerds() {
    let (first, second) = (tar_of(&[("a", "1")]), tar_of(&[("b", "2")]));
    let packed = compress(&second);
    let (archive, config) = saved(&[(&first, &first), (&packed, &second)], &["old:1", "host:5000/a/old"]);
    let part = |kind: &str, bytes: &[u8]| {
        let (digest, size) = (Digest::of(bytes), bytes.len());
        format!(r#"{{"mediaType":"application/vnd.docker.{kind}","digest":"{digest}","size":{size}"#)
    };
    let manifest_type = "distribution.manifest.v2+json";
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.docker.{manifest_type}","config":{}}},"layers":[{}}},{}}}]}}"#,
        part("container.image.v1+json", config.as_bytes()),
        part("image.rootfs.diff.tar", &first),
        part("image.rootfs.diff.tar.gzip", &packed),
    );
    let of = |full: &str, tag: &str| {
        let target = part(manifest_type, manifest.as_bytes());
        let names =
            format!(r#"{{"io.containerd.image.name":"{full}","org.opencontainers.image.ref.name":"{tag}"}}"#);
        format!(r#"{target},"annotations":{names},"platform":{{"architecture":"amd64","os":"linux"}}}}"#)
    };
    let both = [of("docker.io/library/old:1", "1"), of("host:5000/a/old:latest", "latest")].join(",");
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{both}]}}"#);

    let fixture = Fixture::new();
    let base = BaseName { name: "any".into(), takes_others: true, ..BaseName::default() };
    let options = ImportOptions {
        index_name: Some("index:1".into()),
        rules: vec![NameRule::Base(base)],
        ..ImportOptions::default()
    };
    let images = transfer::import_stream(&fixture.metadata, &fixture.caller, &options, &archive[..]);
    let images = images.expect("an import");
    let names: Vec<&str> = images.iter().map(|image| image.name.as_str()).collect();
    assert_eq!(names, ["index:1", "docker.io/library/old:1", "host:5000/a/old:latest"]);
    for (image, expected) in images.iter().zip([&index, &manifest, &manifest]) {
        let path = fixture.dir.path().join("root/content/blobs/sha256").join(image.target.digest.hex());
        assert_eq!(&fs::read_to_string(path).expect("a blob"), expected, "{}", image.name);
    }
    assert_eq!(images[1].target.annotations["org.opencontainers.image.ref.name"], "1");

    let fixture = Fixture::new();
    let loaded = fixture.import(&fixture.file(&archive)).expect("an import");
    assert_eq!(loaded[0].target.digest, Digest::of(manifest.as_bytes()), "a load makes the same");
}

#[test]
fn a_layer_of_a_docker_archive_that_is_stored_compressed_is_not_stored_again() {
    let plain = tar_of(&[("a", "1")]);
    let packed = compress(&plain);
    let fixture = Fixture::new();
    let load = |layer: &[u8], tag: &str| {
        let archive = saved(&[(layer, &plain)], &[tag]).0;
        fixture.import(&fixture.file(&archive)).expect("an import").swap_remove(0).target.digest
    };
    let first = load(&packed, "one:1");
    assert_eq!(load(&plain, "two:1"), first);
    fixture.metadata.collect().expect("a collection");
    assert!(!fixture.has(&Digest::of(&plain).to_string()));

    // What is damaged is not used.
    let path = fixture.dir.path().join("root/content/blobs/sha256").join(Digest::of(&packed).hex());
    fs::write(path, vec![0; packed.len()]).expect("a file of ours");
    assert_ne!(load(&plain, "three:1"), first);
}

/// The index counts only in an OCI layout, as in containerd.
#[test]
fn an_index_without_a_layout_is_no_list_of_images() {
    let plain = tar_of(&[("a", "1")]);
    let (archive, _) = saved(&[(&plain, &plain)], &["old:1"]);
    let index = tar_entry("index.json", b'0', "", br#"{"schemaVersion": 2, "manifests": []}"#);
    let fixture = Fixture::new();
    fixture.import(&fixture.file(&[index, archive].concat())).expect("an import");
    assert_eq!(fixture.names(), ["docker.io/library/old:1"]);
}

#[test]
fn names_come_from_where_they_are_written() {
    let index = |descriptors: serde_json::Value| {
        let layout = Layout::new();
        let image = small(&layout, "amd64");
        let mut list = descriptors;
        for descriptor in list.as_array_mut().expect("a list") {
            let annotations = descriptor["annotations"].take();
            *descriptor = image.clone();
            descriptor["annotations"] = annotations;
        }
        let index = json!({"schemaVersion": 2, "manifests": list});
        fs::write(layout.path().join("index.json"), index.to_string()).expect("a writable directory");
        let fixture = Fixture::new();
        fixture.import(layout.path()).expect("an import");
        fixture.names()
    };
    let spec = "org.opencontainers.image.ref.name";
    let containerd = "io.containerd.image.name";
    assert_eq!(index(json!([{"annotations": {spec: "1.2"}}])), ["docker.io/library/fallback:1.2"]);
    assert_eq!(index(json!([{"annotations": {spec: "host:5000/a:b"}}])), ["host:5000/a:b"]);
    assert_eq!(
        index(json!([{"annotations": {spec: "1.2", containerd: "docker.io/library/full:3"}}])),
        ["docker.io/library/full:3"]
    );
    assert_eq!(index(json!([{"annotations": {}}])), ["docker.io/library/fallback:latest"]);
}
