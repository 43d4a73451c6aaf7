//! Images without a kernel: reproducible bytes, limits, and detected damage. The tests of `diff` compare mounted images
//! with unpacked layers.

use std::collections::BTreeMap;

use erofs::{Device, Entry, EntryKind, Ground, Metadata, Tree};
use types::ErrorKind;

fn device() -> Device {
    Device { tag: "ab".repeat(32), len: 1 << 20 }
}

fn add(tree: &mut Tree, path: &str, kind: EntryKind<'_>, attributes: &[(&str, &[u8])]) {
    let attributes: BTreeMap<String, Vec<u8>> =
        attributes.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect();
    let metadata = Metadata { mode: 0o644, uid: 1, gid: 2, mtime: (3, 4), attributes: &attributes };
    tree.add(&Entry { path: path.as_bytes(), kind, metadata }).unwrap();
}

fn small() -> Tree {
    let mut tree = Tree::new(device());
    add(&mut tree, "etc", EntryKind::Directory, &[("security.selinux", b"label")]);
    add(&mut tree, "etc/passwd", EntryKind::File { len: 100, at: 1024 }, &[("security.selinux", b"label")]);
    add(&mut tree, "etc/empty", EntryKind::File { len: 0, at: 2048 }, &[("user.own", b"value")]);
    add(&mut tree, "link", EntryKind::Symlink(&[b't'; 600]), &[]);
    add(&mut tree, "null", EntryKind::CharacterDevice { major: 1, minor: 3 }, &[]);
    for file in 0..60 {
        add(&mut tree, &format!("usr/{file}"), EntryKind::HardLink(b"etc/passwd"), &[]);
    }
    tree.white_out(b"gone").unwrap();
    tree.make_opaque(b"usr").unwrap();
    tree
}

fn written(tree: &Tree) -> Vec<u8> {
    let mut bytes = Vec::new();
    assert_eq!(tree.write(&mut bytes).unwrap(), bytes.len() as u64);
    bytes
}

#[test]
fn the_same_entries_give_the_same_bytes() {
    let bytes = written(&small());
    assert_eq!(bytes.len() % 512, 0);
    for _ in 0..5 {
        assert!(written(&small()) == bytes);
    }
    assert!(written(&Tree::read(&bytes).unwrap()) == bytes, "read and written again");
}

#[test]
fn implied_directories_are_listed_and_get_metadata() {
    let mut tree = Tree::new(device());
    add(&mut tree, "a/b/c", EntryKind::Fifo, &[]);
    add(&mut tree, "a/d", EntryKind::Directory, &[]);
    let mut tree = Tree::read(&written(&tree)).unwrap();
    assert_eq!(tree.implied().unwrap(), [&b""[..], b"a", b"a/b"]);
    let attributes = BTreeMap::new();
    let metadata = Metadata { mode: 0o700, uid: 9, gid: 9, mtime: (9, 9), attributes: &attributes };
    for path in ["a/b", "a/d", "nosuch/x", "a/b/c"] {
        tree.set_implied_metadata(path.as_bytes(), &metadata).unwrap();
    }
    assert_eq!(tree.implied().unwrap(), [&b""[..], b"a"]);
}

#[test]
fn damage_is_an_error_and_never_a_panic() {
    let bytes = written(&small());
    for len in 0..bytes.len() {
        if let Err(error) = Tree::read(&bytes[..len]).map(drop) {
            assert_eq!(error.kind(), ErrorKind::DataLoss);
        }
    }
    for at in 0..bytes.len() {
        for flip in [1, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            // Not every bit leads somewhere else; what can be read can be written.
            if let Ok(tree) = Tree::read(&damaged) {
                let _ = tree.write(&mut Vec::new());
            }
        }
    }
}

#[test]
fn entries_that_an_image_cannot_hold_are_refused() {
    let attributes = BTreeMap::new();
    let metadata = || Metadata { mode: 0o644, uid: 0, gid: 0, mtime: (0, 0), attributes: &attributes };
    let refused = |path: &str, kind: EntryKind<'_>| {
        let mut tree = Tree::new(device());
        tree.add(&Entry { path: path.as_bytes(), kind, metadata: metadata() }).unwrap_err().kind()
    };
    assert_eq!(refused("x", EntryKind::File { len: 1, at: 100 }), ErrorKind::InvalidArgument);
    assert_eq!(refused("x", EntryKind::File { len: 1 << 40, at: 0 }), ErrorKind::InvalidArgument);
    assert_eq!(refused("x", EntryKind::File { len: 1, at: 1 << 41 }), ErrorKind::ResourceExhausted);
    assert_eq!(refused("x", EntryKind::Symlink(b"")), ErrorKind::InvalidArgument);
    assert_eq!(refused("x", EntryKind::HardLink(b"y")), ErrorKind::NotFound);
    assert_eq!(refused("x", EntryKind::BlockDevice { major: 4096, minor: 0 }), ErrorKind::InvalidArgument);
    assert_eq!(refused("..", EntryKind::Fifo), ErrorKind::InvalidArgument);

    let large = vec![0; 60_000];
    let many: BTreeMap<String, Vec<u8>> = (0..6).map(|at| (format!("user.{at}"), large.clone())).collect();
    let mut tree = Tree::new(device());
    let metadata = Metadata { mode: 0o644, uid: 0, gid: 0, mtime: (0, 0), attributes: &many };
    tree.add(&Entry { path: b"x", kind: EntryKind::File { len: 0, at: 0 }, metadata }).unwrap();
    assert_eq!(tree.write(&mut Vec::new()).unwrap_err().kind(), ErrorKind::ResourceExhausted);
}

/// Names, inodes and attributes count as memory of a tree.
#[test]
fn the_memory_of_a_tree_has_a_limit() {
    let mut tree = Tree::new(device());
    let attributes = BTreeMap::new();
    let target = vec![b't'; 4000];
    let mut refused = None;
    for at in 0..200_000_u32 {
        let metadata = Metadata { mode: 0, uid: 0, gid: 0, mtime: (0, 0), attributes: &attributes };
        let name = at.to_string();
        let entry = Entry { path: name.as_bytes(), kind: EntryKind::Symlink(&target), metadata };
        if let Err(error) = tree.add(&entry) {
            refused = Some(error.kind());
            break;
        }
    }
    assert_eq!(refused, Some(ErrorKind::ResourceExhausted));
}

/// Attributes that files share are interned, in one layer and in a merged tree.
#[test]
fn attributes_that_files_share_are_counted_once() {
    let value = vec![7; 60_000];
    let layer = |layer: u32| {
        let mut tree = Tree::new(device());
        for at in 0..10_000 {
            let file = EntryKind::File { len: 0, at: 0 };
            add(&mut tree, &format!("{layer}-{at}"), file, &[("user.large", &value)]);
        }
        Ok(tree)
    };
    Tree::stack((0..2).map(layer), Ground::Nothing).unwrap();
}

/// An inode can refer to 255 shared attributes; those beyond are written with each inode.
#[test]
fn attributes_that_cannot_be_shared_have_a_limit_on_the_disk() {
    let value = vec![7; 60_000];
    let mut attributes: BTreeMap<String, Vec<u8>> =
        (0..255).map(|at| (format!("user.{at:03}"), vec![1])).collect();
    attributes.insert("user.zzz".to_owned(), value);
    let written = |files: u32| {
        let mut tree = Tree::new(device());
        for at in 0..files {
            let metadata = Metadata { mode: 0o644, uid: 0, gid: 0, mtime: (0, 0), attributes: &attributes };
            let (name, kind) = (at.to_string(), EntryKind::File { len: 0, at: 0 });
            tree.add(&Entry { path: name.as_bytes(), kind, metadata }).unwrap();
        }
        tree.write(&mut std::io::sink())
    };
    assert!(written(100).unwrap() > 6_000_000, "each has its own");
    let error = written(14_000).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{}", error.chain());
    assert!(error.chain().contains("fewer attributes"), "{}", error.chain());
}

/// Layers within the memory limit may exceed it when they are merged.
#[test]
fn merged_layers_have_the_memory_limit_of_one() {
    let target = vec![b't'; 4000];
    let layer = |layer: u32| {
        let mut tree = Tree::new(device());
        for at in 0..50_000 {
            add(&mut tree, &format!("{layer}-{at}"), EntryKind::Symlink(&target), &[]);
        }
        Ok(tree)
    };
    let error = Tree::stack((0..3).map(layer), Ground::Nothing).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{}", error.chain());
}

#[test]
fn devices_of_merged_layers_are_numbered_in_order() {
    let mut upper = Tree::new(Device { tag: "upper".into(), len: 512 });
    add(&mut upper, "etc/group", EntryKind::File { len: 5, at: 512 }, &[("security.selinux", b"label")]);
    upper.white_out(b"null").unwrap();
    let stacked = Tree::stack([Ok(small()), Ok(upper)], Ground::Nothing).unwrap();
    // The root, etc with three, link, usr: the names in usr are those of etc/passwd.
    assert_eq!(stacked.inode_count(), 7);
    let read = Tree::read(&written(&stacked)).unwrap();
    assert_eq!(read.inode_count(), 7);
    assert!(read.implied().unwrap().len() <= 2, "etc looks as the lower layer says");
}

#[test]
fn the_steps_of_long_symlinks_are_limited() {
    let mut tree = Tree::new(device());
    add(&mut tree, "d", EntryKind::Directory, &[]);
    let round = "d/../".repeat(800);
    add(&mut tree, "round", EntryKind::Symlink(format!("{round}d").as_bytes()), &[]);
    // One of a usual length costs nothing.
    add(&mut tree, "short", EntryKind::Symlink(b"d/../d"), &[]);
    let attributes = BTreeMap::new();
    let mut fill = |link: &str| -> types::Result<()> {
        (0..10_000).try_for_each(|at| {
            // Another directory each time, as the last one is remembered.
            for path in [format!("{link}/{at}"), format!("{at}")] {
                let metadata =
                    Metadata { mode: 0o644, uid: 0, gid: 0, mtime: (0, 0), attributes: &attributes };
                tree.add(&Entry { path: path.as_bytes(), kind: EntryKind::Fifo, metadata })?;
            }
            Ok(())
        })
    };
    fill("short").unwrap();
    let error = fill("round").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{}", error.chain());
}
