//! Layers from the differences of two trees, found with and without the guide of overlay layers.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use diff::tar::{Entry, Kind, Reader};
use diff::{
    ApplyOptions, ChangeKind, CompareOptions, Compared, Compression, Limits, Trees, Whiteouts, apply, compare,
};
use linux::beneath::proc_path;
use linux::mount::open_mounts;
use proptest::prelude::*;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, makedev, mknodat, utimensat,
};
use tempfile::TempDir;
use types::{Digest, Mount, Result};

/// A lower tree, and a container's overlay on top of it.
struct Stack {
    dir: TempDir,
    merged: Option<OwnedFd>,
}

impl Stack {
    /// In /dev/shm if there is one, since tests create many.
    fn new() -> Stack {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap();
        for name in ["lower", "upper", "work"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Stack { dir, merged: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn below(&self) -> Vec<Mount> {
        let options = vec!["ro".to_owned(), "rbind".to_owned()];
        let source = self.path("lower").display().to_string();
        vec![Mount { kind: "bind".into(), source, target: String::new(), options }]
    }

    fn mounts(&self) -> Vec<Mount> {
        let option = |key: &str, name: &str| format!("{key}={}", self.path(name).display());
        vec![overlay(vec![
            option("workdir", "work"),
            option("upperdir", "upper"),
            option("lowerdir", "lower"),
        ])]
    }

    /// The mounted overlay, as a container sees it.
    fn merged(&mut self) -> PathBuf {
        let mounts = self.mounts();
        proc_path(self.merged.get_or_insert_with(|| open_mounts(&mounts).unwrap()).as_fd())
    }

    /// The layer of the container's changes, found with the overlay's layers as a guide and without it: both must be
    /// equal.
    fn layer(&mut self) -> Vec<u8> {
        self.merged();
        let guided = layer_of(&Trees::open(&self.below(), &self.mounts()).unwrap()).unwrap();
        let trees = Trees::new(open(&self.path("lower")), open(&self.merged()));
        let whole = layer_of(&trees).unwrap();
        assert_eq!(entries(&guided), entries(&whole));
        whole
    }
}

const PLAIN: CompareOptions = CompareOptions { compression: Compression::None, mtime_max: None };

fn layer_of(trees: &Trees) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let compared = compare(trees, PLAIN, &mut bytes)?;
    assert_eq!(compared, Compared { diff_id: Digest::of(&bytes), size: bytes.len() as u64 });
    Ok(bytes)
}

fn overlay(options: Vec<String>) -> Mount {
    Mount { kind: "overlay".into(), source: "overlay".into(), target: String::new(), options }
}

fn open(path: &Path) -> Option<OwnedFd> {
    Some(File::open(path).unwrap().into())
}

/// The entries of an archive with their data.
fn entries(bytes: &[u8]) -> Vec<(Entry, Vec<u8>)> {
    let mut reader = Reader::new(bytes);
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let data = reader.read_all(64 << 20).unwrap();
        found.push((entry, data));
    }
    found
}

fn names(bytes: &[u8]) -> Vec<String> {
    entries(bytes).iter().map(|(entry, _)| String::from_utf8_lossy(&entry.path).into_owned()).collect()
}

fn apply_to(tree: &Path, bytes: &[u8], whiteouts: Whiteouts) -> Result<()> {
    let options = ApplyOptions { whiteouts, limits: Limits::default() };
    apply(bytes, options, File::open(tree).unwrap().as_fd()).map(drop)
}

/// All metadata and data that a layer can have, by name.
type Listing = BTreeMap<PathBuf, String>;

fn list(root: &Path) -> Listing {
    let mut listing = Listing::new();
    let mut inodes = BTreeMap::new();
    let mut ahead = vec![PathBuf::new()];
    while let Some(path) = ahead.pop() {
        let is_root = path.as_os_str().is_empty();
        // With a slash at its end, a path of /proc is followed.
        let full = if is_root { root.join("") } else { root.join(&path) };
        let metadata = fs::symlink_metadata(&full).unwrap();
        let kind = metadata.file_type();
        if kind.is_dir() {
            ahead.extend(fs::read_dir(&full).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        }
        let data = if kind.is_file() {
            Digest::of(&fs::read(&full).unwrap()).to_string()
        } else if kind.is_symlink() {
            format!("{:?}", fs::read_link(&full).unwrap())
        } else {
            String::new()
        };
        let time = if is_root { (0, 0) } else { (metadata.mtime(), metadata.mtime_nsec()) };
        let text = format!(
            "{kind:?} {:o} {}:{} {time:?} {} {data} {:?}",
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.rdev(),
            attributes(&full),
        );
        if !kind.is_dir() {
            inodes.entry(metadata.ino()).or_insert_with(Vec::new).push(path.clone());
        }
        listing.insert(path, text);
    }
    for mut names in inodes.into_values() {
        names.sort();
        for name in &names {
            let first = names[0].display().to_string();
            listing.get_mut(name).unwrap().push_str(&format!(" as {first} of {}", names.len()));
        }
    }
    listing
}

fn attributes(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = [0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names).unwrap_or(0);
    let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let names = names.map(|name| String::from_utf8_lossy(name).into_owned());
    names
        .filter(|name| !name.starts_with("trusted.overlay."))
        .map(|name| {
            let mut value = [0; 4096];
            let len = rustix::fs::lgetxattr(path, name.as_str(), &mut value).unwrap();
            (name, value[..len].to_vec())
        })
        .collect()
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").args(["-a", "--"]).args([from, to]).status().unwrap();
    assert!(copied.success());
}

fn is_root() -> bool {
    stdx::testing::is_root("an overlay with owners")
}

/// Changes the container's tree, and checks that the layer turns the lower tree into it, unpacked on
/// top of it and unpacked on its own. Returns the layer.
fn check(prepare: impl FnOnce(&Path), change: impl FnOnce(&Path)) -> Vec<u8> {
    let mut stack = Stack::new();
    prepare(&stack.path("lower"));
    change(&stack.merged());
    let expected = list(&stack.merged());
    let bytes = stack.layer();

    copy(&stack.path("lower"), &stack.path("full"));
    apply_to(&stack.path("full"), &bytes, Whiteouts::Remove).unwrap();
    assert_eq!(list(&stack.path("full")), expected, "applied to the tree");

    fs::create_dir(stack.path("alone")).unwrap();
    let metadata = fs::metadata(stack.path("lower")).unwrap();
    fs::set_permissions(stack.path("alone"), metadata.permissions()).unwrap();
    apply_to(&stack.path("alone"), &bytes, Whiteouts::Overlay).unwrap();
    let layers = format!("lowerdir={}:{}", stack.path("alone").display(), stack.path("lower").display());
    let mounted = open_mounts(&[overlay(vec![layers])]).unwrap();
    assert_eq!(list(&proc_path(mounted.as_fd())), expected, "applied on its own");
    bytes
}

fn write(path: PathBuf, text: &str) {
    fs::write(path, text).unwrap();
}

#[test]
fn equal_trees_give_an_empty_layer() {
    if is_root() {
        let bytes = check(|lower| write(lower.join("file"), "x"), |_| {});
        assert_eq!(bytes, [0; 1024]);
    }
}

#[test]
fn a_file_that_is_as_it_was_is_not_in_the_layer() {
    if !is_root() {
        return;
    }
    let bytes = check(
        |lower| write(lower.join("file"), "x"),
        |merged| {
            let mode =
                |bits| fs::set_permissions(merged.join("file"), fs::Permissions::from_mode(bits)).unwrap();
            let before = fs::metadata(merged.join("file")).unwrap().mode();
            mode(0o600);
            mode(before);
        },
    );
    assert!(names(&bytes).is_empty());
}

#[test]
fn a_layer_has_changed_files_with_the_directories_above() {
    if !is_root() {
        return;
    }
    let bytes = check(
        |lower| {
            fs::create_dir_all(lower.join("a/b")).unwrap();
            fs::create_dir_all(lower.join("z")).unwrap();
            for name in ["a/b/gone", "a/b/kept", "z/changed", "replaced"] {
                write(lower.join(name), name);
            }
        },
        |merged| {
            fs::remove_file(merged.join("a/b/gone")).unwrap();
            File::options()
                .write(true)
                .open(merged.join("z/changed"))
                .unwrap()
                .write_all_at(b"Z", 0)
                .unwrap();
            fs::remove_file(merged.join("replaced")).unwrap();
            fs::create_dir(merged.join("replaced")).unwrap();
            write(merged.join("replaced/new"), "new");
        },
    );
    let expected = ["a/", "a/b/", "a/b/.wh.gone", "replaced/", "replaced/new", "z/", "z/changed"];
    assert_eq!(names(&bytes), expected);
}

#[test]
fn a_recreated_directory_gets_whiteouts_and_is_not_opaque() {
    if !is_root() {
        return;
    }
    let bytes = check(
        |lower| {
            fs::create_dir_all(lower.join("d/deep")).unwrap();
            write(lower.join("d/old"), "old");
            write(lower.join("d/deep/er"), "old");
        },
        |merged| {
            fs::remove_dir_all(merged.join("d")).unwrap();
            fs::create_dir(merged.join("d")).unwrap();
            write(merged.join("d/new"), "new");
        },
    );
    assert_eq!(names(&bytes), ["d/", "d/.wh.deep", "d/new", "d/.wh.old"]);
}

#[test]
fn links_of_one_file_stay_hard_links() {
    if !is_root() {
        return;
    }
    let bytes = check(
        |lower| {
            fs::create_dir(lower.join("d")).unwrap();
            write(lower.join("d/old"), "x");
            write(lower.join("one"), "y");
            fs::hard_link(lower.join("one"), lower.join("two")).unwrap();
        },
        |merged| {
            fs::hard_link(merged.join("d/old"), merged.join("new")).unwrap();
            symlink("nowhere", merged.join("link")).unwrap();
            fs::hard_link(merged.join("link"), merged.join("same link")).unwrap();
            fs::remove_file(merged.join("two")).unwrap();
        },
    );
    let links = entries(&bytes).into_iter().filter(|(entry, _)| matches!(entry.kind, Kind::HardLink(_)));
    let links: Vec<_> = links.map(|(entry, _)| String::from_utf8_lossy(&entry.path).into_owned()).collect();
    assert_eq!(links, ["same link", "d/old"]);
}

#[test]
fn holes_are_not_read_and_times_are_exact() {
    if !is_root() {
        return;
    }
    check(
        |_| {},
        |merged| {
            let sparse = File::create(merged.join("sparse")).unwrap();
            sparse.set_len(3 << 20).unwrap();
            sparse.write_all_at(b"middle", 1 << 20).unwrap();
            let time = |seconds, nanos| Timespec { tv_sec: seconds, tv_nsec: nanos };
            let times = Timestamps { last_access: time(0, 0), last_modification: time(-5, 123_456_789) };
            symlink("x", merged.join("link")).unwrap();
            for name in ["sparse", "link"] {
                utimensat(CWD, merged.join(name), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            }
        },
    );
}

#[test]
fn a_layer_has_attributes_of_files_but_no_labels_of_the_host() {
    if !is_root() {
        return;
    }
    let bytes = check(
        |_| {},
        |merged| {
            let set = |path: &Path, name: &str, value: &[u8]| {
                rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
            };
            write(merged.join("program"), "x");
            std::os::unix::fs::chown(merged.join("program"), Some(7), Some(8)).unwrap();
            // Version 2: permitted cap_net_raw (capability.h).
            let capability =
                [&0x0200_0001_u32.to_le_bytes()[..], &0x2000_u32.to_le_bytes(), &[0; 12]].concat();
            set(&merged.join("program"), "security.capability", &capability);
            set(&merged.join("program"), "user.empty", b"");
            fs::create_dir(merged.join("shared")).unwrap();
            let acl = |path: &Path, text: &str| {
                Command::new("setfacl").args(["-m", text]).arg(path).status().is_ok_and(|set| set.success())
            };
            // Where the tool is: the attribute's format is the kernel's own.
            if acl(&merged.join("shared"), "u:1234:rwx,d:u:1234:rx") {
                assert!(attributes(&merged.join("shared")).contains_key("system.posix_acl_default"));
            }
        },
    );
    let program = entries(&bytes).into_iter().find(|(entry, _)| entry.path == b"program").unwrap().0;
    let kept: Vec<_> = program.attributes.keys().map(String::as_str).collect();
    assert_eq!(kept, ["security.capability", "user.empty"]);
    for (entry, _) in entries(&bytes) {
        assert!(!entry.attributes.keys().any(|name| name.contains("overlay")), "{entry:?}");
    }
}

#[test]
fn files_that_a_layer_cannot_hold_are_left_out() {
    if !is_root() {
        return;
    }
    let mut stack = Stack::new();
    let merged = stack.merged();
    write(merged.join(".wh.passwd"), "a deletion, if it were read back");
    std::os::unix::net::UnixListener::bind(merged.join("socket")).unwrap();
    write(merged.join("file"), "");
    assert_eq!(names(&stack.layer()), ["file"]);
}

#[test]
fn mtimes_are_clamped_to_the_source_date_epoch() {
    if !is_root() {
        return;
    }
    let mut stack = Stack::new();
    write(stack.path("lower").join("gone"), "");
    let merged = stack.merged();
    fs::remove_file(merged.join("gone")).unwrap();
    write(merged.join("new"), "");
    write(merged.join("old"), "");
    let old = Timespec { tv_sec: 100, tv_nsec: 5 };
    let times = Timestamps { last_access: old, last_modification: old };
    utimensat(CWD, merged.join("old"), &times, AtFlags::empty()).unwrap();
    let options = CompareOptions { mtime_max: Some((1000, 0)), ..PLAIN };
    let mut bytes = Vec::new();
    compare(&Trees::open(&stack.below(), &stack.mounts()).unwrap(), options, &mut bytes).unwrap();
    let times: Vec<_> = entries(&bytes).into_iter().map(|(entry, _)| (entry.path, entry.mtime)).collect();
    assert_eq!(
        times,
        [(b".wh.gone".to_vec(), (0, 0)), (b"new".to_vec(), (1000, 0)), (b"old".to_vec(), (100, 5))]
    );
}

#[test]
fn compressed_layers_are_reproducible() {
    let (source, target) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    write(source.path().join("file"), &"text ".repeat(100_000));
    let trees = Trees::new(None, open(source.path()));
    let plain = layer_of(&trees).unwrap();
    for compression in [Compression::Gzip, Compression::Zstd] {
        let options = CompareOptions { compression, ..PLAIN };
        let mut twice = [Vec::new(), Vec::new()];
        for bytes in &mut twice {
            let compared = compare(&trees, options, bytes).unwrap();
            assert_eq!(compared.diff_id, Digest::of(&plain));
        }
        assert_eq!(twice[0], twice[1]);
        assert_eq!(Compression::detect(&twice[0]), compression);
        assert!(twice[0].len() < 5_000);
        apply_to(target.path(), &twice[0], Whiteouts::Remove).unwrap();
        assert_eq!(fs::metadata(target.path().join("file")).unwrap().len(), 500_000);
    }
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_an_error() {
    let dir = TempDir::new().unwrap();
    let file = File::create(dir.path().join("log")).unwrap();
    file.write_all_at(&vec![b'l'; 1 << 20], 0).unwrap();
    write(dir.path().join("zzz"), "");
    /// Cuts the file off as soon as its header is written.
    struct Cutting<'a>(&'a File);
    impl std::io::Write for Cutting<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.set_len(100)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let trees = Trees::new(None, open(dir.path()));
    let error = compare(&trees, PLAIN, Cutting(&file)).unwrap_err();
    assert_eq!(error.kind(), types::ErrorKind::Aborted);
    assert!(error.chain().contains("/log changed while it was read"), "{error:?}");
}

#[test]
fn deep_trees_need_no_stack_and_few_descriptors() {
    let dir = TempDir::new().unwrap();
    let deep: PathBuf = std::iter::repeat_n("d", 500).collect();
    fs::create_dir_all(dir.path().join(&deep)).unwrap();
    write(dir.path().join(&deep).join("f"), "deep");
    let trees = Trees::new(None, open(dir.path()));
    let bytes = layer_of(&trees).unwrap();
    let target = TempDir::new().unwrap();
    apply_to(target.path(), &bytes, Whiteouts::Remove).unwrap();
    assert_eq!(fs::read_to_string(target.path().join(&deep).join("f")).unwrap(), "deep");
}

#[test]
fn changes_are_reported_by_kind() {
    let (before, after) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    write(before.path().join("gone"), "");
    for (dir, text) in [(&before, "one"), (&after, "two")] {
        write(dir.path().join("same size"), text);
        utimensat(
            CWD,
            dir.path().join("same size"),
            &Timestamps {
                last_access: Timespec { tv_sec: 1, tv_nsec: 0 },
                last_modification: Timespec { tv_sec: 1, tv_nsec: 0 },
            },
            AtFlags::empty(),
        )
        .unwrap();
    }
    fs::create_dir(after.path().join("new")).unwrap();
    let mut told = Vec::new();
    let trees = Trees::new(open(before.path()), open(after.path()));
    trees
        .changes(|change| {
            told.push((change.path.display().to_string(), change.kind));
            Ok(())
        })
        .unwrap();
    assert_eq!(
        told,
        [
            ("gone".to_owned(), ChangeKind::Removed),
            ("same size".to_owned(), ChangeKind::Modified),
            ("new".to_owned(), ChangeKind::Added)
        ]
    );
}

#[test]
fn empty_mount_points_are_not_reported_as_changes() {
    let dir = TempDir::new().unwrap();
    for name in ["proc", "data/full"] {
        fs::create_dir_all(dir.path().join(name)).unwrap();
    }
    for (name, text) in [("hosts", ""), ("written", "x"), ("data/full/file", "")] {
        write(dir.path().join(name), text);
    }
    let places = ["proc", "data/full", "hosts", "written", "absent"].map(PathBuf::from);
    let trees = Trees::new(None, open(dir.path())).without_mount_points(places.into());
    assert_eq!(names(&layer_of(&trees).unwrap()), ["written", "data/", "data/full/", "data/full/file"]);
}

/// Something that a container does to a tree. Names are few, so that they meet.
#[derive(Clone, Debug)]
enum Act {
    Directory(u8),
    File(u8, u8),
    Symlink(u8, u8),
    HardLink(u8, u8),
    Fifo(u8),
    Device(u8),
    Mode(u8, u32),
    Owner(u8, u32),
    Attribute(u8, u8),
    Time(u8, i64),
    Remove(u8),
    Rename(u8, u8),
}

/// Five directories inside each other in two branches, with names in each.
fn place(number: u8) -> PathBuf {
    let folders = ["", "a", "a/b", "a/b/c", "d"];
    let names = ["a", "b", "c", "d", "e"];
    let number = usize::from(number);
    Path::new(folders[number / 5 % 5]).join(names[number % 5])
}

fn act(root: &Path, act: &Act) {
    let at = |number: &u8| root.join(place(*number));
    // What cannot be done in this tree is not done.
    let _ = match act {
        Act::Directory(path) => fs::create_dir_all(at(path)),
        Act::File(path, text) => {
            let _ = fs::create_dir_all(at(path).parent().unwrap());
            let is_plain = fs::symlink_metadata(at(path)).map_or(true, |metadata| metadata.is_file());
            if is_plain { fs::write(at(path), [*text; 3]) } else { Ok(()) }
        }
        Act::Symlink(path, target) => symlink(place(*target), at(path)),
        Act::HardLink(path, target) => fs::hard_link(at(target), at(path)),
        Act::Fifo(path) => node(&at(path), FileType::Fifo, 0),
        Act::Device(path) => node(&at(path), FileType::CharacterDevice, makedev(1, 3)),
        Act::Mode(path, mode) => {
            let is_link = fs::symlink_metadata(at(path)).is_ok_and(|metadata| metadata.is_symlink());
            if is_link { Ok(()) } else { fs::set_permissions(at(path), fs::Permissions::from_mode(*mode)) }
        }
        Act::Owner(path, owner) => std::os::unix::fs::lchown(at(path), Some(*owner), Some(owner / 2)),
        Act::Attribute(path, value) => {
            let name = format!("trusted.test{}", value % 2);
            let set = rustix::fs::lsetxattr(at(path), name, &[*value], XattrFlags::empty());
            set.map_err(Into::into)
        }
        Act::Time(path, seconds) => {
            let time = Timespec { tv_sec: *seconds, tv_nsec: 7 };
            let times = Timestamps { last_access: time, last_modification: time };
            utimensat(CWD, at(path), &times, AtFlags::SYMLINK_NOFOLLOW).map_err(Into::into)
        }
        Act::Remove(path) => fs::remove_dir_all(at(path)).or_else(|_| fs::remove_file(at(path))),
        Act::Rename(from, to) => fs::rename(at(from), at(to)),
    };
}

fn node(path: &Path, kind: FileType, device: u64) -> std::io::Result<()> {
    let name = OsStr::from_bytes(path.as_os_str().as_bytes());
    mknodat(CWD, name, kind, Mode::from_raw_mode(0o640), device).map_err(Into::into)
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let place = || 0..25_u8;
    let one = prop_oneof![
        3 => place().prop_map(Act::Directory),
        5 => (place(), 0..3_u8).prop_map(|(path, text)| Act::File(path, text)),
        1 => (place(), place()).prop_map(|(path, target)| Act::Symlink(path, target)),
        3 => (place(), place()).prop_map(|(path, target)| Act::HardLink(path, target)),
        1 => place().prop_map(Act::Fifo),
        1 => place().prop_map(Act::Device),
        1 => (place(), 0..0o10000_u32).prop_map(|(path, mode)| Act::Mode(path, mode)),
        1 => (place(), 0..5000_u32).prop_map(|(path, owner)| Act::Owner(path, owner)),
        1 => (place(), 0..4_u8).prop_map(|(path, value)| Act::Attribute(path, value)),
        2 => (place(), 0..2_i64).prop_map(|(path, seconds)| Act::Time(path, seconds)),
        3 => place().prop_map(Act::Remove),
        3 => (place(), place()).prop_map(|(from, to)| Act::Rename(from, to)),
    ];
    prop::collection::vec(one, 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// The layer of any changes to any tree gives the changed tree.
    #[test]
    fn a_layer_leads_from_one_tree_to_the_other((before, after) in (acts(), acts())) {
        if !is_root() {
            return Ok(());
        }
        check(
            |lower| before.iter().for_each(|one| act(lower, one)),
            |merged| after.iter().for_each(|one| act(merged, one)),
        );
    }

    /// Two trees that have nothing to do with each other.
    #[test]
    fn a_layer_leads_to_a_tree_of_its_own((before, after) in (acts(), acts())) {
        if !is_root() {
            return Ok(());
        }
        let stack = Stack::new();
        let (lower, upper) = (stack.path("lower"), stack.path("upper"));
        before.iter().for_each(|one| act(&lower, one));
        after.iter().for_each(|one| act(&upper, one));
        let bytes = layer_of(&Trees::new(open(&lower), open(&upper))).unwrap();
        apply_to(&lower, &bytes, Whiteouts::Remove).unwrap();
        prop_assert_eq!(list(&lower), list(&upper));
    }
}
