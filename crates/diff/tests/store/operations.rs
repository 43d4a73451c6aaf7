//! Layers of random entries, alone and on top of each other: the same whether they are unpacked or stored, in every
//! mixture of directories and images below overlayfs.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use diff::{ApplyOptions, Limits, Whiteouts, apply, store};
use erofs::{Ground, Tree};
use linux::mount::{mount_all, unmount_all};
use proptest::prelude::*;
use types::Mount;

use super::{Archive, Place, Seen, check, is_root, mount_of, see};

const PATHS: [&str; 14] =
    ["a", "b", "a/b", "a/b/c", "b/c", "-", ".-", "a/.-", "a/../b/x", "/c", "c/d/e/f", "", "./", "d"];

const LINKS: [&str; 9] = ["a", "b", "/a/b", "../b", "..", "c/d", ".", "/", "nosuch/deep"];

/// Kind, path, link, length, time, whether it has attributes.
type Operation = (u8, usize, usize, usize, i64, bool);

fn operation() -> impl Strategy<Value = Operation> {
    (0..10_u8, 0..PATHS.len(), 0..LINKS.len(), 0..5000_usize, -5..5_i64, any::<bool>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_layer_is_the_same_both_ways(operations in prop::collection::vec(operation(), 1..14)) {
        if is_root() {
            check(&archive_of(&operations));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn layers_that_are_merged_look_as_overlayfs_shows_them(
        layers in prop::collection::vec(prop::collection::vec(operation(), 1..10), 3)
    ) {
        if is_root() {
            check_stack(&layers);
        }
    }
}

/// A link that leads to the root, and an entry behind it that hides all below.
#[test]
fn a_root_that_hides_all_below_does_so_by_any_name() {
    if !is_root() {
        return;
    }
    for name in ["", "./", "up/"] {
        let mut lower = Archive::default();
        lower.add(b'0', "a", "", b"", &[]);
        let mut upper = Archive::default();
        upper.add(b'2', "up", "..", b"", &[]);
        upper.add(b'0', &format!("{name}.wh..wh..opq"), "", b"", &[]);
        let trees = [&lower, &upper].map(|archive| {
            Ok(store(&archive.0[..], Limits::default(), &tempfile::tempfile().unwrap(), None).unwrap().tree)
        });
        let mut image = Vec::new();
        Tree::stack(trees, Ground::Nothing).unwrap().write(&mut image).unwrap();
        let dir = Place::new();
        let (path, data, tree) = (dir.path().join("image"), dir.path().join("data"), dir.path().join("tree"));
        fs::write(&path, &image).unwrap();
        fs::write(&data, "").unwrap();
        fs::create_dir(&tree).unwrap();
        mount_all(&[mount_of(&path, &[&data, &data])], &tree).unwrap();
        let names: Vec<_> = fs::read_dir(&tree).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        unmount_all(&tree).unwrap();
        assert_eq!(names, ["up"], "{name:?}");
    }
}

/// Unpacks layers side by side, and shows them in every mixture of directories and images.
fn check_stack(layers: &[Vec<Operation>]) {
    let dir = Place::new();
    let place = |name: String| dir.path().join(name);
    let mut archives = Vec::new();
    let mut unsaid = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        // Overlayfs takes the roots of all its layers, whatever they say; we know better, as the image-spec.
        let hides_all = |operation: &Operation| operation.0 == 9 && matches!(PATHS[operation.1], "" | "./");
        let layer: Vec<Operation> = layer.iter().copied().filter(|operation| !hides_all(operation)).collect();
        let archive = archive_of(&layer);
        let (plain, data) = (place(format!("plain{at}")), place(format!("data{at}")));
        fs::create_dir(&plain).unwrap();
        let options = ApplyOptions { whiteouts: Whiteouts::Overlay, limits: Limits::default() };
        if apply(&archive[..], options, fs::File::open(&plain).unwrap().as_fd()).is_err() {
            return;
        }
        // A link to the root may say it too.
        if at > 0 && rustix::fs::lgetxattr(&plain, "trusted.overlay.opaque", &mut [0; 1][..]).is_ok() {
            return;
        }
        let stored = store(&archive[..], Limits::default(), &fs::File::create(data).unwrap(), None).unwrap();
        unsaid.extend(
            stored.tree.implied().unwrap().into_iter().map(|path| PathBuf::from(OsStr::from_bytes(&path))),
        );
        archives.push(archive);
    }
    let image = |name: &str, from: Range<usize>, ground: Ground| {
        let trees = from.clone().map(|at| {
            let data = tempfile::tempfile().unwrap();
            Ok(store(&archives[at][..], Limits::default(), &data, None).unwrap().tree)
        });
        let mut bytes = Vec::new();
        Tree::stack(trees, ground).unwrap().write(&mut bytes).unwrap();
        let mut again = Vec::new();
        Tree::read(&bytes).unwrap().write(&mut again).unwrap();
        assert!(again == bytes, "what is written is read");
        let path = place(format!("{name}.image"));
        fs::write(&path, &bytes).unwrap();
        let data: Vec<PathBuf> = from.map(|at| place(format!("data{at}"))).collect();
        let mounted = place(name.to_owned());
        fs::create_dir(&mounted).unwrap();
        mount_all(&[mount_of(&path, &data.iter().map(PathBuf::as_path).collect::<Vec<_>>())], &mounted)
            .unwrap();
        mounted
    };
    let plain = |at: usize| place(format!("plain{at}"));
    let all = image("all", 0..3, Ground::Nothing);
    let (lower, upper) = (image("lower", 0..2, Ground::Nothing), image("upper", 1..3, Ground::Layers));
    let each: Vec<PathBuf> =
        (0..3).map(|at| image(&format!("each{at}"), at..at + 1, Ground::Layers)).collect();
    let overlaid = |layers: &[&Path], name: &str| {
        let target = place(name.to_owned());
        fs::create_dir(&target).unwrap();
        let layers: Vec<String> = layers.iter().map(|layer| layer.display().to_string()).collect();
        let options = vec![format!("lowerdir={}", layers.join(":"))];
        let overlay =
            Mount { kind: "overlay".into(), source: "overlay".into(), target: String::new(), options };
        mount_all(&[overlay], &target).unwrap();
        let seen = see_blurred(&target, &unsaid);
        unmount_all(&target).unwrap();
        seen
    };
    let expected = overlaid(&[&plain(2), &plain(1), &plain(0)], "overlay");
    let found = [
        ("one image", see_blurred(&all, &unsaid)),
        ("images", overlaid(&[&each[2], &each[1], &each[0]], "overlay of images")),
        ("images on a directory", overlaid(&[&upper, &plain(0)], "overlay on a directory")),
        ("a directory on images", overlaid(&[&plain(2), &lower], "overlay on an image")),
    ];
    for mounted in [&all, &lower, &upper].into_iter().chain(&each) {
        unmount_all(mounted).unwrap();
    }
    for (what, found) in found {
        for (path, seen) in &expected {
            assert_eq!(found.get(path), Some(seen), "{what}: {}", path.display());
        }
        assert_eq!(found.len(), expected.len(), "{what}: {:?}", found.keys().collect::<Vec<_>>());
    }
}

/// Without what overlayfs does not know: links that are hidden, how directories look that no entry names.
fn see_blurred(root: &Path, unsaid: &[PathBuf]) -> BTreeMap<PathBuf, Seen> {
    let mut seen = see(root, unsaid);
    for (path, seen) in &mut seen {
        seen.links = 0;
        if unsaid.contains(path) && seen.mode & 0o170_000 == 0o040_000 {
            (seen.mode, seen.owner, seen.attributes) = (0o040_000, (0, 0), BTreeMap::new());
        }
    }
    seen
}

fn archive_of(operations: &[Operation]) -> Vec<u8> {
    let mut archive = Archive::default();
    for (kind, path, link, len, time, attributed) in operations {
        let (path, link) = (PATHS[*path], LINKS[*link]);
        let time = format!("{time}.{:09}", len * 1000);
        let mut records: Vec<(&str, &[u8])> = vec![("mtime", time.as_bytes())];
        if *attributed {
            records.push(("SCHILY.xattr.trusted.one", b"1"));
            records.push(("SCHILY.xattr.security.two", time.as_bytes()));
            records.push(("SCHILY.xattr.trusted.overlay.opaque", b"y"));
        }
        let data: Vec<u8> = (0..*len).map(|byte| u8::try_from(byte % 251).unwrap()).collect();
        match kind {
            0..=1 => archive.add(b'0', path, "", &data, &records),
            2..=3 => archive.add(b'5', path, "", b"", &records),
            4 => archive.add(b'2', path, link, b"", &records),
            5 => archive.add(b'1', path, link, b"", &[]),
            6 => archive.add(if len % 2 == 0 { b'3' } else { b'4' }, path, "", &data, &records),
            7 => archive.add(b'6', path, "", b"", &records),
            8 => archive.add(b'0', &format!("{}/.wh.{}", path, ["a", "b", "c", "d"][len % 4]), "", b"", &[]),
            _ => archive.add(b'0', &format!("{path}/.wh..wh..opq"), "", b"", &[]),
        }
    }
    archive.0
}
