//! The files of an image, from its layers.

use serde_json::json;
use testkit::Layout;
use testkit::layout::{archive_of, tar_entry, tar_of};
use types::Platform;

use crate::fixture::Fixture;

/// Checks `(path, layer, size)` of an image with these layers.
#[track_caller]
fn check(layers: &[Vec<u8>], expected: &[(&str, usize, u64)]) {
    let layout = Layout::new();
    layout.tag(&layout.image_of("amd64", layers, &json!({})), "files:1");
    let fixture = Fixture::new();
    let images = fixture.import(layout.path()).expect("an import");
    let described =
        transfer::describe(&fixture.metadata, &fixture.caller, &images[0].target, &Platform::host())
            .expect("an image");
    let files = transfer::files(&fixture.metadata, &fixture.caller, &described.manifest).expect("files");
    let found: Vec<(&str, usize, u64)> =
        files.iter().map(|file| (file.path.as_str(), file.layer, file.size)).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_file_is_of_the_layer_that_brought_it_last() {
    let layers = [tar_of(&[("a", "1"), ("b", "22")]), tar_of(&[("./b", "333"), ("c/", ""), ("c/d", "4")])];
    check(&layers, &[("a", 0, 1), ("b", 1, 3), ("c", 1, 0), ("c/d", 1, 1)]);
}

#[test]
fn whiteouts_take_away_what_is_below_them() {
    let base = tar_of(&[("dir/", ""), ("dir/a", "1"), ("dir/b", "2"), ("dir-like", "3"), ("file", "4")]);
    check(
        &[base.clone(), tar_of(&[("dir/.wh.a", ""), (".wh.file", "")])],
        &[("dir", 0, 0), ("dir-like", 0, 1), ("dir/b", 0, 1)],
    );
    check(&[base.clone(), tar_of(&[(".wh.dir", "")])], &[("dir-like", 0, 1), ("file", 0, 1)]);
    // Regardless of its place in the layer.
    let opaque = tar_of(&[("dir/new", "5"), ("dir/.wh..wh..opq", "")]);
    check(&[base.clone(), opaque], &[("dir", 0, 0), ("dir-like", 0, 1), ("dir/new", 1, 1), ("file", 0, 1)]);
    // A file replaces a directory.
    check(&[base, tar_of(&[("dir", "now a file")])], &[("dir", 1, 10), ("dir-like", 0, 1), ("file", 0, 1)]);
}

#[test]
fn a_hard_link_has_the_attributes_of_its_target() {
    let layer = archive_of(&[tar_entry("a", b'0', "", b"four"), tar_entry("b", b'1', "a", b"")]);
    check(&[layer], &[("a", 0, 4), ("b", 0, 4)]);
}
