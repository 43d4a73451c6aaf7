//! A stored and mounted layer equals the unpacked one: in every name, inode, attribute and byte.
//!
//! A program of its own, since the neighbouring tests measure the memory of their process.

mod large;
mod operations;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use diff::{ApplyOptions, Helpers, Limits, Whiteouts, apply, store};
use erofs::Tree;
use linux::mount::{mount_all, unmount_all};
use tempfile::TempDir;
use types::{Digest, Mount};

fn is_root() -> bool {
    stdx::testing::is_root("a mount")
}

/// A temporary directory, removed with all mounts in it even if a test fails.
struct Place(TempDir);

impl Place {
    fn new() -> Place {
        Place(TempDir::new().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for point in linux::mount::mount_points().unwrap().into_iter().rev() {
            if point.path.starts_with(self.path()) {
                unmount_all(&point.path).unwrap();
            }
        }
    }
}

/// An archive, entry by entry, with a PAX record for everything.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn add(&mut self, typeflag: u8, path: &str, link: &str, data: &[u8], records: &[(&str, &[u8])]) {
        let mut pax = Vec::new();
        let mut record = |key: &str, value: &[u8]| {
            let rest = key.len() + value.len() + 3;
            let mut len = rest + rest.to_string().len();
            len = rest + len.to_string().len();
            pax.extend_from_slice(format!("{len} {key}=").as_bytes());
            pax.extend_from_slice(value);
            pax.push(b'\n');
        };
        record("path", path.as_bytes());
        if !link.is_empty() {
            record("linkpath", link.as_bytes());
        }
        for (key, value) in records {
            record(key, value);
        }
        self.block(b'x', &pax, 0o644, (0, 0));
        self.data(&pax);
        let device = if matches!(typeflag, b'3' | b'4') { (5, data.len() as u64) } else { (0, 0) };
        let mode =
            records.iter().find(|(key, _)| *key == "mode").map_or(0o755, |(_, mode)| u32::from(mode[0]));
        let data = if typeflag == b'0' { data } else { b"" };
        self.block(typeflag, data, mode, device);
        self.data(data);
    }

    fn block(&mut self, typeflag: u8, data: &[u8], mode: u32, (major, minor): (u64, u64)) {
        let mut block = [0_u8; 512];
        let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(100, &format!("{mode:07o}\0"));
        put(108, "0000003\0");
        put(116, "0000004\0");
        put(124, &format!("{:011o}\0", data.len()));
        put(136, "00000000007\0");
        put(148, "        ");
        put(257, "ustar\x0000");
        put(329, &format!("{major:07o}\0"));
        put(337, &format!("{minor:07o}\0"));
        block[156] = typeflag;
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&block);
    }

    fn data(&mut self, data: &[u8]) {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }
}

/// All that can be seen of a file.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    device: u64,
    /// None where nobody said it.
    mtime: Option<(i64, i64)>,
    links: u64,
    /// The first path of the same file.
    same_as: Option<PathBuf>,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    data: Vec<u8>,
}

fn see(root: &Path, unsaid: &[PathBuf]) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut firsts: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        // Overlayfs lists deletions in directories that cover nothing, and does not find them.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let name = path.strip_prefix(root).unwrap().to_owned();
        let mut data = Vec::new();
        if metadata.is_dir() {
            let mut inside: Vec<PathBuf> =
                fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            inside.sort();
            left.extend(inside.into_iter().rev());
        } else if metadata.is_file() {
            data = fs::read(&path).unwrap();
            assert_eq!(data.len() as u64, metadata.len());
            // Digests make a failure readable.
            data = if data.len() > 64 { Digest::of(&data).hex().as_bytes().to_vec() } else { data };
        } else if metadata.is_symlink() {
            data = fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec();
        }
        let is_whiteout = metadata.mode() & 0o170_000 == 0o020_000 && metadata.rdev() == 0;
        let same_as = match firsts.get(&(metadata.dev(), metadata.ino())) {
            Some(first) => Some(first.clone()),
            None => {
                firsts.insert((metadata.dev(), metadata.ino()), name.clone());
                None
            }
        };
        let attributes = attributes(&path);
        let said = !is_whiteout && !unsaid.contains(&name);
        let found = Seen {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            device: metadata.rdev(),
            mtime: said.then(|| (metadata.mtime(), metadata.mtime_nsec())),
            links: metadata.nlink(),
            same_as,
            attributes,
            data,
        };
        seen.insert(name, found);
    }
    seen
}

fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 64 * 1024];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 64 * 1024];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (name.to_vec(), value[..len].to_vec())
        })
        .collect()
}

/// Stores and mounts an archive, and unpacks it too. True if it is a layer, for both.
fn check(archive: &[u8]) -> bool {
    let dir = Place::new();
    let (image, data, mounted, unpacked) =
        (dir.path().join("image"), dir.path().join("data"), dir.path().join("m"), dir.path().join("u"));
    for folder in [&mounted, &unpacked] {
        fs::create_dir(folder).unwrap();
    }
    let root = fs::File::open(&unpacked).unwrap();
    let options = ApplyOptions { whiteouts: Whiteouts::Overlay, limits: Limits::default() };
    let applied = apply(archive, options, root.as_fd());
    let file = fs::File::create(&data).unwrap();
    let stored = store(archive, Limits::default(), &file, None);
    let (stored, applied) = match (stored, applied) {
        (Ok(stored), Ok(applied)) => (stored, applied),
        (Err(_), Err(_)) => return false,
        (stored, applied) => panic!("stored {:?}, applied {applied:?}", stored.map(|stored| stored.diff_id)),
    };
    assert_eq!((&stored.diff_id, stored.size), (&applied.diff_id, applied.size));
    let mut bytes = Vec::new();
    stored.tree.write(&mut bytes).unwrap();
    let read = Tree::read(&bytes).unwrap();
    let mut again = Vec::new();
    read.write(&mut again).unwrap();
    assert!(again == bytes, "what is written is read");
    fs::File::create(&image).unwrap().write_all(&bytes).unwrap();

    mount_all(&[mount_of(&image, &[&data])], &mounted).unwrap();
    let unsaid: Vec<PathBuf> =
        stored.tree.implied().unwrap().iter().map(|path| PathBuf::from(OsStr::from_bytes(path))).collect();
    assert_eq!(applied.implied, unsaid);
    if unsaid.contains(&PathBuf::new()) {
        fs::set_permissions(&unpacked, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let (left, right) = (see(&mounted, &unsaid), see(&unpacked, &unsaid));
    unmount_all(&mounted).unwrap();
    for (path, seen) in &right {
        assert_eq!(left.get(path), Some(seen), "{}", path.display());
    }
    assert_eq!(left.len(), right.len(), "{:?}", left.keys().collect::<Vec<_>>());
    true
}

fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

#[test]
fn stored_layers_have_extended_attributes_of_every_kind() {
    if !is_root() {
        return;
    }
    const NO_ID: u32 = u32::MAX;
    let access = acl(&[(1, 7, NO_ID), (2, 5, 1000), (4, 5, NO_ID), (16, 5, NO_ID), (32, 5, NO_ID)]);
    let default = acl(&[(1, 7, NO_ID), (2, 1, 7), (4, 0, NO_ID), (8, 7, 9), (16, 7, NO_ID), (32, 0, NO_ID)]);
    let plain = acl(&[(1, 7, NO_ID), (4, 5, NO_ID), (32, 5, NO_ID)]);
    let capabilities = [&[1, 0, 0, 2][..], &[0, 4, 0, 0], &[0; 12]].concat();
    let wrong = [&[1, 0, 0, 9][..], &[0; 16]].concat();
    let (acl_access, acl_default) =
        ("SCHILY.xattr.system.posix_acl_access", "SCHILY.xattr.system.posix_acl_default");
    let mut archive = Archive::default();
    archive.add(b'0', "acl", "", b"x", &[(acl_access, &access), ("SCHILY.xattr.user.x", b"")]);
    archive.add(b'5', "dir", "", b"", &[(acl_access, &access), (acl_default, &default)]);
    archive.add(b'0', "plain", "", b"x", &[(acl_access, &plain)]);
    archive.add(b'6', "fifo", "", b"", &[(acl_access, &access)]);
    archive.add(b'2', "link", "acl", b"", &[(acl_access, &access), ("SCHILY.xattr.trusted.t", b"t")]);
    archive.add(b'0', "can", "", b"x", &[("SCHILY.xattr.security.capability", &capabilities)]);
    archive.add(b'0', "cannot", "", b"x", &[("SCHILY.xattr.security.capability", &wrong)]);
    archive.add(
        b'0',
        "ima",
        "",
        b"x",
        &[("SCHILY.xattr.security.ima.x", b"\0\n="), ("SCHILY.xattr.other.x", b"1")],
    );
    for file in 0..3 {
        let large = vec![7; 3000];
        let name = format!("SCHILY.xattr.user.{}", "n".repeat(200));
        archive.add(
            b'0',
            &format!("shared{file}"),
            "",
            b"x",
            &[(&name, &large), ("SCHILY.xattr.user.y", b"y")],
        );
    }
    assert!(check(&archive.0));
    for value in [&access[..20], &plain[..12], b"", &acl(&[(1, 9, NO_ID), (4, 5, NO_ID), (32, 5, NO_ID)])] {
        let mut archive = Archive::default();
        archive.add(b'0', "file", "", b"x", &[(acl_access, value)]);
        assert_eq!(check(&archive.0), value.is_empty(), "an empty record is none");
    }
}

/// The entry of a device, without a tree around it.
fn device(typeflag: u8, (major, minor): (u32, u32)) -> Vec<u8> {
    let mut entry = Archive::default();
    entry.add(typeflag, &format!("dev{}-{major}-{minor}", char::from(typeflag)), "", b"", &[]);
    let header = entry.0.len() - 512;
    let header = &mut entry.0[header..];
    header[329..337].copy_from_slice(format!("{major:07o}\0").as_bytes());
    header[337..345].copy_from_slice(format!("{minor:07o}\0").as_bytes());
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    entry.0
}

#[test]
fn stored_layers_have_long_names_and_large_directories() {
    if !is_root() {
        return;
    }
    let mut archive = Archive::default();
    let long = "n".repeat(255);
    archive.add(b'0', &long, "", b"long", &[]);
    archive.add(b'5', &format!("{long}2").replacen("nn", "n", 1), "", b"", &[]);
    for len in [1, 383, 384, 385, 512, 513, 1024, 4000] {
        archive.add(b'2', &format!("link{len}"), &"t".repeat(len), b"", &[("SCHILY.xattr.trusted.a", b"1")]);
    }
    for file in 0..3000 {
        archive.add(b'0', &format!("many/{file}{}", &long[..file % 200]), "", b"m", &[]);
    }
    for directory in 0..300 {
        archive.add(b'5', &format!("dirs/{directory}"), "", b"", &[]);
    }
    let mut deep = String::new();
    for _ in 0..200 {
        deep.push_str("d/");
    }
    archive.add(b'0', &format!("{deep}file"), "", b"deep", &[]);
    let devices = [(0, 1), (5, 255), (5, 256), (4095, 1_048_575)];
    for (typeflag, number) in [b'3', b'4'].into_iter().flat_map(|kind| devices.map(|at| (kind, at))) {
        archive.0.extend(device(typeflag, number));
    }
    assert!(check(&archive.0));

    for number in [(4096, 0), (0, 1_048_576)] {
        assert!(!check(&device(b'4', number)), "{number:?} is more than Linux has");
    }
    for path in ["n".repeat(256), "n/".repeat(2100)] {
        let mut archive = Archive::default();
        archive.add(b'0', &path, "", b"", &[]);
        assert!(!check(&archive.0), "too long");
    }
}

/// A disk has its own limits, and an image of metadata nearly none.
#[test]
fn a_time_that_not_every_disk_can_hold_is_1970() {
    if !is_root() {
        return;
    }
    let times = [
        ("-1.5", (-2, 500_000_000)),
        ("-2147483648", (-(1 << 31), 0)),
        ("-2147483648.5", (0, 0)),
        ("9223372036.5", (9_223_372_036, 500_000_000)),
        ("9223372036.9", (0, 0)),
        ("9223372036854775807", (0, 0)),
    ];
    let mut archive = Archive::default();
    for (kind, (said, _)) in [b'0', b'2', b'5'].into_iter().flat_map(|kind| times.map(|time| (kind, time))) {
        let name = format!("{}{said}", char::from(kind));
        let link = if kind == b'2' { "target" } else { "" };
        archive.add(kind, &name, link, b"", &[("mtime", said.as_bytes())]);
    }
    assert!(check(&archive.0));
    with_stored(&archive.0[..], |tree| {
        for (said, shown) in times {
            let metadata = fs::metadata(tree.join(format!("0{said}"))).unwrap();
            assert_eq!((metadata.mtime(), metadata.mtime_nsec()), shown, "{said}");
        }
    });
}

/// A hard link to what its own name replaces, directly or through links.
#[test]
fn a_hard_link_to_a_file_that_it_replaces_is_refused() {
    if !is_root() {
        return;
    }
    let refused = |name: &str, target: &str| {
        let mut archive = Archive::default();
        archive.add(b'0', "a/b/c", "", b"stays", &[]);
        archive.add(b'2', "link", "a/b", b"", &[]);
        archive.add(b'5', "d/e", "", b"", &[]);
        archive.add(b'1', name, target, b"", &[]);
        assert!(!check(&archive.0), "{name} to {target}");
        let dir = TempDir::new().unwrap();
        let options = ApplyOptions { whiteouts: Whiteouts::Overlay, limits: Limits::default() };
        let error = apply(&archive.0[..], options, fs::File::open(dir.path()).unwrap().as_fd()).unwrap_err();
        assert_eq!(error.kind(), types::ErrorKind::InvalidArgument, "{error}");
        assert_eq!(fs::read(dir.path().join("link/c")).unwrap(), b"stays");
        assert!(dir.path().join("d/e").is_dir());
    };
    refused("a", "a/b/c");
    refused("a/b", "a/b/c");
    refused("a", "link/c");
    refused("link/../../a", "/a/./b/c");
    refused("d", "a");
    refused("d/e", "/a/b");
}

/// Its own names go, and files that are linked to from there stay.
#[test]
fn files_of_aufs_are_left_out() {
    if !is_root() {
        return;
    }
    let mut archive = Archive::default();
    archive.add(b'0', ".wh..wh.aufs", "", b"", &[]);
    archive.add(b'5', ".wh..wh.plnk", "", b"", &[]);
    archive.add(b'0', ".wh..wh.plnk/88.1", "", b"linked", &[]);
    archive.add(b'5', ".wh..wh.orph/deep", "", b"", &[]);
    archive.add(b'1', "d/link", ".wh..wh.plnk/88.1", b"", &[]);
    let mut led_there = Archive::default();
    led_there.add(b'2', "link", ".wh..wh.x", b"", &[]);
    led_there.add(b'0', "link/file", "", b"", &[]);
    assert!(check(&led_there.0), "through a link, too");
    assert!(check(&archive.0));
    let dir = TempDir::new().unwrap();
    let options = ApplyOptions { whiteouts: Whiteouts::Overlay, limits: Limits::default() };
    let applied = apply(&archive.0[..], options, fs::File::open(dir.path()).unwrap().as_fd()).unwrap();
    assert_eq!(applied.implied, ["", "d"].map(Path::new));
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["d"]);
    assert_eq!(fs::read(dir.path().join("d/link")).unwrap(), b"linked");
}

/// Whiteouts delete names of lower layers only, wherever they are in the archive.
#[test]
fn whiteouts_do_not_delete_files_of_their_own_layer() {
    if !is_root() {
        return;
    }
    for (whiteout, link, file) in [
        ("c/.wh.d", "c/d", "c/d/e/f"),
        (".wh.c", "c/d", "link/e"),
        (".wh.c", "/c/../d", "link/e"),
        (".wh.c", "c", "link/.wh.x"),
    ] {
        let mut archive = Archive::default();
        archive.add(b'2', "link", link, b"", &[]);
        archive.add(b'0', whiteout, "", b"", &[]);
        archive.add(b'0', file, "", b"there", &[]);
        assert!(check(&archive.0), "{whiteout}, {file} and a link to {link}");
    }
}

/// As some writers do: without the padding of the last file and the blocks of the end. What is cut off in the
/// data is no layer.
#[test]
fn an_archive_may_end_with_its_last_file() {
    if !is_root() {
        return;
    }
    let mut archive = Archive::default();
    archive.add(b'0', "first", "", &[1; 700], &[]);
    archive.add(b'0', "last", "", &[2; 700], &[]);
    let data_end = archive.0.len() - 324;
    assert!(check(&archive.0[..data_end]));
    assert!(check(&archive.0[..data_end + 1]));
    assert!(!check(&archive.0[..data_end - 1]));
}

/// More links than the file systems that layers are unpacked to can hold.
#[test]
fn a_file_may_have_a_hundred_thousand_names() {
    if !is_root() {
        return;
    }
    let mut archive = Archive::default();
    archive.add(b'0', "first", "", b"one file", &[]);
    for link in 0..100_000 {
        archive.add(b'1', &format!("l/{link}"), "first", b"", &[]);
    }
    with_stored(&archive.0[..], |tree| {
        let first = fs::metadata(tree.join("first")).unwrap();
        let last = fs::metadata(tree.join("l/99999")).unwrap();
        assert_eq!((first.ino(), first.nlink()), (last.ino(), 100_001));
        assert_eq!(fs::read(tree.join("l/77777")).unwrap(), b"one file");
        assert_eq!(fs::read_dir(tree.join("l")).unwrap().count(), 100_000);
    });
}

/// Bytes that helpers inflate, as the daemon's layers are read, and what comes of them.
#[test]
fn a_layer_of_many_frames_is_stored_with_help_as_without() {
    let mut archive = Archive::default();
    for file in 0..60_u32 {
        let data: Vec<u8> = (0..100_000_u32).map(|byte| ((byte * (file + 3)) >> 9) as u8).collect();
        archive.add(b'0', &format!("{file}"), "", &data, &[]);
    }
    let frames: Vec<u8> =
        archive.0.chunks(200_000).flat_map(|plain| zstd::encode_all(plain, 1).unwrap()).collect();
    let stored = [0, 2].map(|helpers| {
        let limits = Limits { helpers: Helpers::Fixed(helpers), ..Limits::default() };
        let mut file = tempfile::tempfile().unwrap();
        let stored = store(&frames[..], limits, &file, None).unwrap();
        let mut data = Vec::new();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_end(&mut data).unwrap();
        let mut image = Vec::new();
        stored.tree.write(&mut image).unwrap();
        assert_eq!(stored.size, archive.0.len() as u64);
        (stored.helped_len, stored.diff_id, data, image)
    });
    let [(alone, ..), (helped, ..)] = &stored;
    assert_eq!(*alone, 0);
    assert!(*helped > 1_000_000, "{helped} of {} bytes", archive.0.len());
    let [alone, helped] = stored.map(|(_, diff_id, data, image)| (diff_id, data, image));
    assert!(alone == helped);
}

#[test]
fn sparse_files_of_every_tar_form_are_stored() {
    if !is_root() {
        return;
    }
    let dir = Place::new();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let write = |name: &str, len: u64, pieces: &[(u64, &[u8])]| {
        let file = fs::File::create(source.join(name)).unwrap();
        file.set_len(len).unwrap();
        for (at, bytes) in pieces {
            std::os::unix::fs::FileExt::write_all_at(&file, bytes, *at).unwrap();
        }
    };
    write("holes", 3_000_001, &[(0, &[1; 5000]), (1_000_000, &[2; 9000]), (2_990_000, &[3; 10_001])]);
    write("nothing", 1 << 20, &[]);
    write("tail", 70_000, &[(69_999, b"x")]);
    write("whole", 10_000, &[(0, &[4; 10_000])]);
    for format in [
        "--format=gnu",
        "--format=pax --sparse-version=0.0",
        "--format=pax --sparse-version=0.1",
        "--format=pax --sparse-version=1.0",
    ] {
        let written = std::process::Command::new("tar")
            .args(["-C".as_ref(), source.as_os_str(), "--sparse".as_ref(), "-cf".as_ref(), "-".as_ref()])
            .args(format.split(' '))
            .arg(".")
            .output()
            .unwrap();
        assert!(written.status.success(), "{written:?}");
        assert!(check(&written.stdout), "{format}");
    }
    // Larger than 32 bits can say, and two of them.
    for name in ["huge", "huge2"] {
        write(name, 5 << 30, &[((4 << 30) + 7, b"behind four gibibytes")]);
    }
    let written = std::process::Command::new("tar")
        .args(["-C".as_ref(), source.as_os_str(), "--sparse".as_ref(), "-cf".as_ref(), "-".as_ref()])
        .args(["huge", "huge2"])
        .output()
        .unwrap();
    with_stored(&written.stdout[..], |tree| {
        for name in ["huge", "huge2"] {
            let file = fs::File::open(tree.join(name)).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 5 << 30);
            let mut bytes = [9; 40];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 4 << 30).unwrap();
            assert_eq!(&bytes[..30], b"\0\0\0\0\0\0\0behind four gibibytes\0\0");
        }
    });
}

#[test]
fn a_layer_beyond_its_limits_is_refused() {
    let mut archive = Archive::default();
    archive.add(b'0', "one", "", &[0; 1000], &[]);
    archive.add(b'0', "two", "", &[0; 1000], &[]);
    let refused = |entries, bytes| {
        let file = tempfile::tempfile().unwrap();
        let limits = Limits { entries, bytes, ..Limits::default() };
        store(&archive.0[..], limits, &file, None).map(|_| ()).unwrap_err().kind()
    };
    assert_eq!(refused(1, 1 << 20), types::ErrorKind::ResourceExhausted);
    assert_eq!(refused(10, 3000), types::ErrorKind::ResourceExhausted);
}

/// Shows a stored layer for as long as `look` runs.
fn with_stored(archive: impl Read + Send, look: impl FnOnce(&Path)) {
    let dir = Place::new();
    let (image, data, tree) = (dir.path().join("image"), dir.path().join("data"), dir.path().join("tree"));
    fs::create_dir(&tree).unwrap();
    let stored = store(archive, Limits::default(), &fs::File::create(&data).unwrap(), None).unwrap();
    stored.tree.write(&mut std::io::BufWriter::new(fs::File::create(&image).unwrap())).unwrap();
    mount_all(&[mount_of(&image, &[&data])], &tree).unwrap();
    look(&tree);
    unmount_all(&tree).unwrap();
}

fn mount_of(image: &Path, data: &[&Path]) -> Mount {
    let devices = data.iter().map(|data| format!("device={}", data.display()));
    let options = std::iter::once("ro".to_owned()).chain(devices).collect();
    Mount { kind: "erofs".into(), source: image.display().to_string(), target: String::new(), options }
}
