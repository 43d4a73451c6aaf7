//! Malicious archives.

use std::fs;
use std::io::Write;

use serde_json::{Value, json};
use testkit::Layout;
use testkit::layout::{archive_of, tar_entry, tar_header, tar_of};
use types::descriptor::media_type;

use crate::fixture::Fixture;

/// Checks that importing an archive fails with these words, and leaves nothing behind.
#[track_caller]
fn refuse(archive: &[u8], words: &[&str]) {
    let fixture = Fixture::new();
    let error = fixture.import(&fixture.file(archive)).expect_err("the archive is refused");
    for words in words {
        assert!(error.chain().contains(words), "{words:?} is not in {:?}", error.chain());
    }
    fixture.assert_empty();
}

/// A layout with a valid image, changed by `change`, as entries of an archive.
fn layout(change: impl FnOnce(&Layout, &Value)) -> Vec<Vec<u8>> {
    let layout = Layout::new();
    let image = layout.image_of("amd64", &[tar_of(&[("file", "content")])], &json!({}));
    layout.tag(&image, "good:1");
    change(&layout, &image);
    entries(&layout)
}

fn entries(layout: &Layout) -> Vec<Vec<u8>> {
    let mut entries = Vec::new();
    for name in ["oci-layout", "index.json"] {
        let bytes = fs::read(layout.path().join(name)).expect("a file of ours");
        entries.push(tar_entry(name, b'0', "", &bytes));
    }
    for blob in fs::read_dir(layout.path().join("blobs/sha256")).expect("a folder of ours") {
        let path = blob.expect("an entry").path();
        let name = format!("blobs/sha256/{}", path.file_name().expect("a name").display());
        entries.push(tar_entry(&name, b'0', "", &fs::read(&path).expect("a file of ours")));
    }
    entries
}

/// The manifest of an image, for the test to change.
fn manifest_of(layout: &Layout, image: &Value) -> Value {
    serde_json::from_slice(&fs::read(layout.blob_path(image)).expect("a file of ours")).expect("JSON")
}

/// `index.json` with these descriptors alone.
fn index_with(layout: &Layout, descriptors: &[Value]) {
    let index = json!({"schemaVersion": 2, "manifests": descriptors});
    fs::write(layout.path().join("index.json"), index.to_string()).expect("a writable directory");
}

#[test]
fn a_good_archive_is_imported() {
    let fixture = Fixture::new();
    fixture.import(&fixture.file(&archive_of(&layout(|_, _| {})))).expect("an import");
    assert_eq!(fixture.names(), ["docker.io/library/good:1"]);
}

#[test]
fn names_that_lead_out() {
    for name in ["../outside", "blobs/sha256/../../../outside", "/etc/passwd"] {
        let mut entries = layout(|_, _| {});
        entries.insert(0, tar_entry(name, b'0', "", b"x"));
        refuse(&archive_of(&entries), &[name, "leads out of the archive"]);
    }
}

#[test]
fn links_that_lead_out() {
    for (kind, target) in
        [(b'2', "../../etc/passwd"), (b'2', "/etc/passwd"), (b'1', "/etc/passwd"), (b'1', "../x")]
    {
        let mut entries = layout(|_, _| {});
        entries.insert(0, tar_entry("folder/layer.tar", kind, target, b""));
        refuse(&archive_of(&entries), &["folder/layer.tar", target, "leads out"]);
    }
}

#[test]
fn links_in_circles() {
    let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", "a".repeat(64))]}});
    let manifest = json!([{"Config": "config.json", "RepoTags": ["x:1"], "Layers": ["a/layer.tar"]}]);
    let archive = [
        tar_entry("manifest.json", b'0', "", manifest.to_string().as_bytes()),
        tar_entry("config.json", b'0', "", config.to_string().as_bytes()),
        tar_entry("a/layer.tar", b'2', "../b/layer.tar", b""),
        tar_entry("b/layer.tar", b'2', "../a/layer.tar", b""),
    ];
    refuse(&archive_of(&archive), &["a/layer.tar", "is not in the archive"]);
}

#[test]
fn a_blob_that_is_missing() {
    let mut missing = String::new();
    let entries = layout(|layout, image| {
        let manifest = manifest_of(layout, image);
        missing = manifest["layers"][0]["digest"].as_str().expect("a digest").to_owned();
        fs::remove_file(layout.blob_path(&manifest["layers"][0])).expect("a file of ours");
    });
    refuse(&archive_of(&entries), &["good:1", &missing, "is missing"]);
}

#[test]
fn bytes_that_are_not_those_of_the_name() {
    let entries = layout(|layout, image| {
        let layer = layout.blob_path(&manifest_of(layout, image)["layers"][0]);
        fs::write(layer, "other bytes").expect("a writable directory");
    });
    refuse(&archive_of(&entries), &["the bytes are sha256:"]);
}

#[test]
fn a_size_that_is_not_that_of_the_blob() {
    let entries = layout(|layout, image| {
        let mut manifest = manifest_of(layout, image);
        manifest["layers"][0]["size"] = 5.into();
        let twisted = layout.document(media_type::OCI_MANIFEST, &manifest);
        index_with(layout, &[twisted]);
    });
    refuse(&archive_of(&entries), &["what names it says 5"]);
}

#[test]
fn a_layer_that_is_not_what_the_config_says() {
    let entries = layout(|layout, image| {
        let mut manifest = manifest_of(layout, image);
        manifest["layers"][0] = layout.blob(media_type::OCI_LAYER, &tar_of(&[("file", "another")]));
        index_with(layout, &[layout.document(media_type::OCI_MANIFEST, &manifest)]);
    });
    refuse(&archive_of(&entries), &["layer 0 unpacks to"]);
}

#[test]
fn the_same_name_twice() {
    let mut entries = layout(|_, _| {});
    let copy = entries[1].clone();
    entries.push(copy);
    refuse(&archive_of(&entries), &["index.json is there twice"]);

    let config =
        json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": []}});
    let manifest = json!([{"Config": "config.json", "RepoTags": ["x:1"], "Layers": []}]);
    let archive = [
        tar_entry("manifest.json", b'0', "", manifest.to_string().as_bytes()),
        tar_entry("config.json", b'0', "", config.to_string().as_bytes()),
        tar_entry("config.json", b'0', "", b"{}"),
    ];
    refuse(&archive_of(&archive), &["config.json is there twice, and differs"]);
}

#[test]
fn indexes_that_name_each_other() {
    // Digests make a true circle impossible: one of the two must lie about the other.
    let entries = layout(|layout, _| {
        let other = json!({"mediaType": media_type::OCI_INDEX, "digest": format!("sha256:{}", "b".repeat(64)), "size": 300});
        let first = layout.index(std::slice::from_ref(&other));
        let second = layout.index(std::slice::from_ref(&first));
        let place = layout.path().join("blobs/sha256").join("b".repeat(64));
        fs::copy(layout.blob_path(&second), place).expect("a writable directory");
        index_with(layout, &[first]);
    });
    refuse(&archive_of(&entries), &["the bytes are sha256:"]);
}

#[test]
fn indexes_inside_indexes() {
    let entries = layout(|layout, image| {
        let mut inner = image.clone();
        for _ in 0..8 {
            inner = layout.index(std::slice::from_ref(&inner));
        }
        index_with(layout, &[inner]);
    });
    refuse(&archive_of(&entries), &["indexes inside indexes"]);
}

/// A naive walk would make 1,000⁴ visits.
#[test]
fn an_index_that_names_the_same_many_times_over() {
    let fixture = Fixture::new();
    let entries = layout(|layout, image| {
        let mut inner = image.clone();
        for _ in 0..3 {
            inner = layout.index(&vec![inner; 1000]);
        }
        index_with(layout, &[inner]);
    });
    let images = fixture.import(&fixture.file(&archive_of(&entries))).expect("an import");
    let found = transfer::contents(&fixture.metadata, &fixture.caller, &images[0].target).expect("contents");
    assert_eq!(found.variants.len(), 1);
}

#[test]
fn an_index_without_end() {
    let mut entries = layout(|_, _| {});
    entries[1] = tar_header("index.json", b'0', "", 1 << 32);
    // It must be refused before it is read.
    refuse(&entries.concat(), &["index.json", "are more than"]);

    let fixture = Fixture::new();
    let folder = Layout::new();
    let file = fs::File::create(folder.path().join("index.json")).expect("a writable directory");
    file.set_len(1 << 32).expect("a file with a hole");
    let error = fixture.import(folder.path()).expect_err("refused");
    assert!(error.chain().contains("index.json has more than"), "{}", error.chain());
    fixture.assert_empty();
}

#[test]
fn a_file_larger_than_the_disk() {
    let mut entries = layout(|_, _| {});
    // A petabyte, in GNU tar's base-256 encoding of sizes.
    let mut header = tar_header("layer.tar", b'0', "", 0);
    header[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0]);
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    entries.push(header);
    refuse(&compress(&entries.concat()), &["layer.tar", "are free"]);
}

#[test]
fn compressed_zeros() {
    refuse(&compress(&vec![0; 64 << 20]), &["neither index.json nor manifest.json"]);
}

#[test]
fn an_archive_that_breaks_off() {
    let archive = archive_of(&layout(|_, _| {}));
    let compressed = compress(&archive);
    for cut in [&archive[..archive.len() / 2], &archive[..700], &compressed[..compressed.len() / 2]] {
        refuse(cut, &["archive"]);
    }
    refuse(b"", &["neither index.json nor manifest.json"]);
    refuse(b"this is no archive at all", &["archive"]);
}

#[test]
fn a_folder_with_links_and_pipes() {
    // A link to a missing path within the directory.
    for (kind, words) in [("link", "is missing"), ("pipe", "it is no file")] {
        let fixture = Fixture::new();
        let layout = Layout::new();
        let image = layout.image_of("amd64", &[tar_of(&[("file", "content")])], &json!({}));
        layout.tag(&image, "good:1");
        let layer = layout.blob_path(&manifest_of(&layout, &image)["layers"][0]);
        let elsewhere = fixture.dir.path().join("elsewhere");
        fs::rename(&layer, &elsewhere).expect("a writable directory");
        if kind == "link" {
            std::os::unix::fs::symlink(&elsewhere, &layer).expect("a writable directory");
        } else {
            testkit::run(std::process::Command::new("mkfifo").arg(&layer)).ok();
        }
        let error = fixture.import(layout.path()).expect_err("refused");
        assert!(error.chain().contains(words), "{}", error.chain());
        fixture.assert_empty();
    }
}

pub(crate) fn compress(bytes: &[u8]) -> Vec<u8> {
    let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    to.write_all(bytes).expect("room in memory");
    to.finish().expect("room in memory")
}

/// An entry whose path, or link target, comes in a preceding entry.
fn long(kind: u8, header: u8, name: &str) -> Vec<u8> {
    [tar_entry("long", header, "", name.as_bytes()), tar_entry("short", kind, "target", b"")].concat()
}

#[test]
fn paths_that_no_system_takes_are_refused() {
    let path = "p".repeat(5000);
    for entry in [long(b'0', b'L', &path), long(b'2', b'L', &path), long(b'2', b'K', &path)] {
        let mut entries = layout(|_, _| {});
        entries.insert(0, entry);
        refuse(&archive_of(&entries), &["5000 bytes", "more than the 4096"]);
    }
}

#[test]
fn paths_of_an_archive_are_bounded_together() {
    let mut entries = layout(|_, _| {});
    entries.extend((0..4500).map(|at| long(b'2', b'L', &format!("{at}/{}", "p".repeat(4000)))));
    refuse(&archive_of(&entries), &["the paths", "16777216"]);
}
