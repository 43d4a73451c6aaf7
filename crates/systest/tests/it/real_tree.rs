//! A tree of this machine as one layer: its image shows what GNU tar unpacks, to the last attribute, mounted from files
//! and from loop devices.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, makedev, mknodat, utimensat};
use serde_json::json;
use tempfile::TempDir;
use testkit::{Daemon, Layout, noise, run};

const NAME: &str = "localhost/tree:latest";

/// What is taken of the machine, in this order, until there are about so many bytes: many small files, links and
/// directories, and some large ones.
const TREES: [&str; 3] = ["etc", "usr/lib/python3", "usr/share"];
const TREE_LEN: u64 = 100 << 20;

/// Less would say nothing, wherever this runs.
const FILES_MIN: usize = 2000;

#[test]
fn a_tree_of_this_machine_is_shown_as_gnu_tar_unpacks_it() {
    let dir = TempDir::with_prefix_in("hoist-tree-", "/var/tmp").expect("a temporary directory");
    let [own, layer, unpacked, image] =
        ["own", "layer.tar", "unpacked", "image.tar"].map(|name| dir.path().join(name));
    for folder in [&own, &unpacked] {
        fs::create_dir(folder).expect("a writable directory");
    }
    make_rare_files(&own);
    pack(&names_of_this_machine(), &own, &layer);
    unpack(&layer, &unpacked);
    let layout = Layout::new();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let layer = fs::read(&layer).expect("a file of ours");
    layout.tag(&layout.image_of(architecture, &[layer], &json!({})), NAME);
    layout.archive(&image);

    let expected = see(&unpacked);
    assert!(expected.len() > FILES_MIN, "{} files are too few", expected.len());
    for loop_devices in [false, true] {
        let config = format!("[snapshots]\nlayers = \"archives\"\nloop_devices = {loop_devices}\n");
        let daemon = Daemon::start_with(&[], &config);
        daemon.load(&image);
        let shown = daemon.dir().join("shown");
        fs::create_dir(&shown).expect("a writable directory");
        daemon.hoist([OsStr::new("image"), OsStr::new("mount"), OsStr::new(NAME), shown.as_os_str()]).ok();
        let kind = run(Command::new("findmnt").args(["-no", "FSTYPE", "--target"]).arg(&shown)).ok();
        assert_eq!(kind.text(), "erofs");
        let found = see(&shown);
        for (path, seen) in &expected {
            assert_eq!(found.get(path), Some(seen), "{}, loop devices: {loop_devices}", path.display());
            if seen.len.is_some() {
                let same = fs::read(shown.join(path)).expect("a file")
                    == fs::read(unpacked.join(path)).expect("a file");
                assert!(same, "{} has other bytes, loop devices: {loop_devices}", path.display());
            }
        }
        assert!(found.keys().eq(expected.keys()), "loop devices: {loop_devices}: there is more");
        run(Command::new("umount").arg(&shown)).ok();
    }
}

/// What trees of a machine rarely have.
fn make_rare_files(at: &Path) {
    let write = |name: &[u8], bytes: &[u8], mode: u32| {
        let path = at.join(OsStr::from_bytes(name));
        fs::write(&path, bytes).expect("a writable directory");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a file of ours");
        path
    };
    let set = |path: &Path, name: &str, value: &[u8]| {
        rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
            .expect("an attribute that this disk takes");
    };
    let linked = write(b"linked", &noise("linked", 70_000), 0o640);
    for name in ["again", "once more"] {
        fs::hard_link(&linked, at.join(name)).expect("a new name");
    }
    set(&linked, "user.text", b"value");
    set(&linked, "user.bytes", b"\0\n=".repeat(1000).as_slice());
    set(&linked, "user.empty", b"");
    for number in 0..10_u32 {
        let sharing = write(format!("sharing-{number}").as_bytes(), b"", 0o600);
        set(&sharing, "trusted.same", b"of all");
        set(&sharing, "user.number", &number.to_le_bytes());
    }
    let owned = write(b"owned", &noise("owned", 512), 0o755);
    chown(&owned, Some(4_000_000_000), Some(70_000)).expect("we are root");
    // What a change of the owner takes away comes after it.
    fs::set_permissions(&owned, fs::Permissions::from_mode(0o6755)).expect("a file of ours");
    let capable = write(b"capable", &noise("capable", 4096), 0o755);
    set(&capable, "security.capability", &[&[1, 0, 0, 2, 0, 0x20][..], &[0; 14]].concat());
    set(&capable, "system.posix_acl_access", &acl());
    let folder = at.join("folder");
    fs::create_dir(&folder).expect("a writable directory");
    set(&folder, "system.posix_acl_default", &acl());
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o3777)).expect("a directory of ours");
    write(&[b'n'; 255], b"a long name", 0o444);
    write(b"not \xff\xfe text", b"", 0o400);
    let holes = write(b"holes", b"", 0o644);
    fs::File::options()
        .write(true)
        .open(&holes)
        .and_then(|file| file.set_len(3 << 20))
        .expect("a file of ours");
    let old = write(b"old", b"older than time", 0o644);
    let time = Timespec { tv_sec: -3, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, &old, &times, rustix::fs::AtFlags::empty()).expect("a file of ours");
    for (name, target) in [("link", "linked"), ("long link", &"to/".repeat(1300)), ("nowhere", "/no/such")] {
        symlink(target, at.join(name)).expect("a new name");
        set(&at.join(name), "trusted.link", name.as_bytes());
    }
    for (name, kind, device) in [
        ("null", FileType::CharacterDevice, makedev(1, 3)),
        ("large number", FileType::CharacterDevice, makedev(4095, 70_000)),
        ("block", FileType::BlockDevice, makedev(7, 300)),
        ("pipe", FileType::Fifo, 0),
    ] {
        mknodat(CWD, at.join(name), kind, Mode::from_raw_mode(0o620), device).expect("we are root");
    }
}

/// One that names a user and so says more than permissions do (`linux/posix_acl_xattr.h`).
fn acl() -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let entries = [(1, 7, NOBODY), (2, 5, 1000), (4, 5, NOBODY), (16, 5, NOBODY), (32, 1, NOBODY)];
    let entry = |(tag, permissions, id): (u16, u16, u32)| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    [&2_u32.to_le_bytes()[..], &entries.map(entry).concat()].concat()
}

/// Paths from the root of this machine, directories before what they hold.
fn names_of_this_machine() -> Vec<PathBuf> {
    let mut names = vec![PathBuf::from("usr"), PathBuf::from("usr/lib")];
    let mut len = 0;
    let mut left: Vec<PathBuf> = TREES.iter().rev().map(PathBuf::from).collect();
    while let Some(name) = left.pop() {
        let path = Path::new("/").join(&name);
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if metadata.is_dir() {
            let mut inside: Vec<_> =
                fs::read_dir(&path).expect("we are root").flatten().map(|entry| entry.file_name()).collect();
            inside.sort();
            left.extend(inside.iter().rev().map(|entry| name.join(entry)));
        }
        len += if metadata.is_file() { metadata.len() } else { 0 };
        names.push(name);
        if len > TREE_LEN {
            break;
        }
    }
    names
}

fn pack(names: &[PathBuf], own: &Path, to: &Path) {
    let list = own.with_extension("list");
    let bytes: Vec<u8> =
        names.iter().flat_map(|name| [name.as_os_str().as_bytes(), b"\0"].concat()).collect();
    fs::write(&list, bytes).expect("a writable directory");
    let packed = Command::new("tar")
        .args([
            "--create",
            "--format=pax",
            "--sparse",
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
            "--file",
        ])
        .arg(to)
        .args(["--directory=/", "--no-recursion", "--null", "--verbatim-files-from", "--files-from"])
        .arg(&list)
        .args(["--recursion", "--directory"])
        .arg(own)
        .arg(".")
        .output()
        .expect("tar is part of Debian");
    // 1: a file changed meanwhile. The archive is what counts.
    assert!(packed.status.code().is_some_and(|code| code <= 1), "{packed:?}");
}

fn unpack(archive: &Path, to: &Path) {
    let mut tar = Command::new("tar");
    tar.args([
        "--extract",
        "--same-owner",
        "--same-permissions",
        "--numeric-owner",
        "--xattrs",
        "--xattrs-include=*",
    ]);
    // Directories get their times when all is in them, whatever comes later by another way.
    tar.args(["--delay-directory-restore", "--warning=no-timestamp", "--file"]);
    run(tar.arg(archive).arg("--directory").arg(to)).ok();
}

/// All that can be seen of a file but its bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) mode: u32,
    owner: (u32, u32),
    device: u64,
    pub(crate) mtime: (i64, i64),
    pub(crate) links: u64,
    /// The first path of the same file.
    first: PathBuf,
    /// Of a file; that of a directory is up to the file system.
    pub(crate) len: Option<u64>,
    target: Option<PathBuf>,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

pub(crate) fn see(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut firsts = HashMap::new();
    let mut left = vec![PathBuf::new()];
    while let Some(name) = left.pop() {
        let path = root.join(&name);
        let metadata = path.symlink_metadata().expect("a file that was listed");
        if metadata.is_dir() {
            let mut inside: Vec<_> = fs::read_dir(&path)
                .expect("a directory")
                .map(|entry| entry.expect("an entry").file_name())
                .collect();
            inside.sort();
            left.extend(inside.iter().rev().map(|entry| name.join(entry)));
        }
        let found = Seen {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            device: metadata.rdev(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            links: metadata.nlink(),
            first: firsts.entry(metadata.ino()).or_insert_with(|| name.clone()).clone(),
            len: metadata.is_file().then_some(metadata.len()),
            target: metadata.is_symlink().then(|| fs::read_link(&path).expect("a link")),
            attributes: attributes(&path),
        };
        seen.insert(name, found);
    }
    seen
}

fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = [0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names[..]).expect("a file with attributes");
    let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = [0; 4096];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).expect("an attribute that was listed");
        (name.to_vec(), value[..len].to_vec())
    };
    names.map(value).collect()
}
