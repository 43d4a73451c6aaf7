//! Stacked layers that replace, delete and add files of the layers below: in both forms an image shows what
//! containerd's shows, and no command brings back a file that a layer deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, makedev, mknodat, utimensat,
};
use serde_json::json;
use tempfile::TempDir;
use testkit::layout::tar_of;
use testkit::{Containerd, Daemon, Layout, MountsBelow, Registry, eventually, is_root, run};

use crate::archives::{push, shell_layer, upper_layer};
use crate::real_tree::{Seen, see};

const NAME: &str = "localhost/stacked:latest";
const FORMS: [&str; 2] = ["archives", "directories"];

/// A layer in the making: its archive has what is made here, in this order. A directory that is made only because
/// something is in it has no entry.
struct Making {
    dir: TempDir,
    tree: PathBuf,
    names: Vec<PathBuf>,
}

impl Making {
    fn new() -> Making {
        // On a disk that has attributes.
        let dir = TempDir::with_prefix_in("hoist-stacked-", "/var/tmp").expect("a temporary directory");
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).expect("a writable directory");
        Making { dir, tree, names: Vec::new() }
    }

    /// Where the next entry is made.
    fn place(&mut self, name: &[u8]) -> PathBuf {
        let name = Path::new(OsStr::from_bytes(name));
        let place = self.tree.join(name);
        fs::create_dir_all(place.parent().expect("it is in the tree")).expect("a writable directory");
        self.names.push(name.to_owned());
        place
    }

    fn directory(&mut self, name: impl AsRef<[u8]>, mode: u32, owner: u32) {
        let place = self.place(name.as_ref());
        // It is there if its entry comes after one in it.
        fs::create_dir_all(&place).expect("a writable directory");
        chown(&place, Some(owner), Some(owner + 1)).expect("we are root");
        fs::set_permissions(&place, fs::Permissions::from_mode(mode)).expect("a directory of ours");
    }

    /// A whiteout or an opaque marker is a file too.
    fn file(&mut self, name: impl AsRef<[u8]>, text: &str) {
        let place = self.place(name.as_ref());
        fs::write(&place, text).expect("a writable directory");
        fs::set_permissions(&place, fs::Permissions::from_mode(0o640)).expect("a file of ours");
    }

    fn symlink(&mut self, target: &str, name: &str) {
        let place = self.place(name.as_bytes());
        std::os::unix::fs::symlink(target, place).expect("a new name");
    }

    fn link(&mut self, target: &str, name: &str) {
        let place = self.place(name.as_bytes());
        fs::hard_link(self.tree.join(target), place).expect("a new name");
    }

    /// A character device 0:0: in an archive it is one as any other, for overlayfs it is a name that was deleted.
    fn device_of_nothing(&mut self, name: &str) {
        let place = self.place(name.as_bytes());
        mknodat(CWD, place, FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(0, 0))
            .expect("we are root");
    }

    /// Of what was made last.
    fn attribute(&mut self, name: &str, value: &[u8]) {
        let place = self.tree.join(self.names.last().expect("something was made"));
        rustix::fs::lsetxattr(place, name, value, XattrFlags::empty())
            .expect("an attribute that this disk takes");
    }

    /// The archive. Each entry has a time that no other entry of an image has.
    fn pack(self, layer: i64) -> Vec<u8> {
        for (at, name) in self.names.iter().enumerate() {
            let at = i64::try_from(at).expect("a few entries");
            let time = Timespec { tv_sec: 1_000_000_000 + 1000 * layer + at, tv_nsec: 123_456_789 };
            let times = Timestamps { last_access: time, last_modification: time };
            utimensat(CWD, self.tree.join(name), &times, AtFlags::SYMLINK_NOFOLLOW).expect("a file of ours");
        }
        let list = self.dir.path().join("list");
        let names: Vec<u8> =
            self.names.iter().flat_map(|name| [name.as_os_str().as_bytes(), b"\0"].concat()).collect();
        fs::write(&list, names).expect("a writable directory");
        let packed = Command::new("tar")
            .args(["--create", "--format=pax", "--numeric-owner", "--xattrs", "--xattrs-include=user.*"])
            .args(["--file=-", "--directory"])
            .arg(&self.tree)
            .args(["--no-recursion", "--null", "--verbatim-files-from", "--files-from"])
            .arg(&list)
            .output()
            .expect("tar is part of Debian");
        assert!(packed.status.success(), "{packed:?}");
        packed.stdout
    }
}

fn first() -> Vec<u8> {
    let mut layer = Making::new();
    layer.directory("swap", 0o755, 1);
    layer.directory("swap/directory", 0o750, 2);
    layer.file("swap/directory/first", "first");
    layer.file("swap/file", "first");
    layer.directory("gone", 0o755, 3);
    layer.file("gone/file", "first");
    layer.directory("gone/directory", 0o700, 4);
    layer.file("gone/directory/first", "first");
    layer.directory("gone/implied", 0o700, 5);
    layer.file("gone/implied/first", "first");
    layer.file("gone/returns", "first");
    layer.file(b"gone/\xff", "first");
    layer.directory("again", 0o711, 6);
    layer.directory("again/directory", 0o755, 7);
    layer.file("again/directory/below", "first");
    layer.directory("opaque", 0o755, 8);
    for (name, owner) in [("before", 9), ("after", 11), ("first", 13), ("implied", 15)] {
        layer.directory(format!("opaque/{name}"), 0o711, owner);
        layer.file(format!("opaque/{name}/old"), "first");
        layer.directory(format!("opaque/{name}/folder"), 0o700, owner);
        layer.file(format!("opaque/{name}/folder/old"), "first");
    }
    layer.directory("implied", 0o710, 17);
    layer.attribute("user.kept", b"of the first\0layer");
    layer.directory("implied/deep", 0o1700, 19);
    layer.attribute("user.deep", b"too");
    layer.file("implied/deep/first", "first");
    layer.directory("implied/twice", 0o701, 21);
    layer.directory("dressed", 0o700, 23);
    layer.attribute("user.gone", b"with the entry of the second layer");
    layer.directory("links", 0o755, 25);
    layer.file("links/one", "linked");
    layer.link("links/one", "links/two");
    layer.file("links/kept", "linked too");
    layer.link("links/kept", "links/replaced");
    layer.file("hidden", "first");
    layer.device_of_nothing("nothing");
    layer.file(b"not \xff\xfe text", "first");
    layer.directory(b"bytes \xc3(", 0o750, 27);
    layer.file(b"bytes \xc3(/first", "first");
    layer.directory("emptied", 0o755, 29);
    layer.directory("emptied/kept", 0o710, 31);
    layer.attribute("user.kept", b"though it is hidden");
    layer.directory("emptied/kept/deep", 0o1701, 33);
    layer.file("emptied/kept/deep/first", "first");
    // Nothing is below it: this layer hides nothing.
    layer.directory("marked", 0o755, 35);
    layer.file("marked/.wh..wh..opq", "");
    layer.file("marked/first", "first");
    layer.directory("led to", 0o700, 37);
    layer.directory("led to/deep", 0o710, 39);
    layer.symlink("led to", "turned");
    layer.pack(1)
}

fn second() -> Vec<u8> {
    let mut layer = Making::new();
    layer.file("swap/directory", "second");
    layer.directory("swap/file", 0o755, 1);
    layer.file("swap/file/second", "second");
    for name in ["file", "directory", "implied", "returns", "never there"] {
        layer.file(format!("gone/.wh.{name}"), "");
    }
    layer.file(b"gone/.wh.\xff", "");
    layer.file("again/.wh.directory", "");
    layer.directory("again/directory", 0o750, 2);
    layer.file("again/directory/above", "second");
    layer.directory("opaque/before", 0o755, 3);
    layer.file("opaque/before/.wh..wh..opq", "");
    layer.file("opaque/before/new", "second");
    layer.directory("opaque/before/folder", 0o755, 4);
    layer.file("opaque/before/folder/new", "second");
    layer.directory("opaque/after", 0o755, 5);
    layer.file("opaque/after/new", "second");
    layer.file("opaque/after/stays", "second");
    layer.file("opaque/after/.wh..wh..opq", "");
    layer.file("opaque/first/.wh..wh..opq", "");
    layer.directory("opaque/first", 0o755, 6);
    layer.file("opaque/first/new", "second");
    layer.file("opaque/implied/.wh..wh..opq", "");
    layer.file("opaque/implied/new", "second");
    layer.file("implied/deep/second", "second");
    layer.file("implied/twice/second", "second");
    layer.file("fresh/implied/second", "second");
    layer.directory("dressed", 0o755, 7);
    layer.file("links/replaced", "second");
    layer.file("links/upper", "second");
    layer.link("links/upper", "links/upper again");
    layer.device_of_nothing("hidden");
    layer.file("emptied/.wh..wh..opq", "");
    layer.file("emptied/kept/deep/second", "second");
    layer.file("marked/second", "second");
    layer.file("turned/deep/second", "second");
    layer.pack(2)
}

fn third() -> Vec<u8> {
    let mut layer = Making::new();
    layer.directory("swap/directory", 0o711, 1);
    layer.file("swap/directory/third", "third");
    layer.file("swap/file", "third");
    layer.directory("gone/directory", 0o755, 2);
    layer.file("gone/directory/third", "third");
    layer.file("gone/implied/third", "third");
    layer.file("gone/returns", "third");
    layer.file("opaque/after/.wh.new", "");
    layer.file("opaque/first/folder/third", "third");
    layer.file("implied/deep/third", "third");
    layer.file("implied/twice/third", "third");
    layer.file(b"bytes \xc3(/third", "third");
    layer.pack(3)
}

/// What all three show, but for the root.
const SHOWN: &[&[u8]] = &[
    b"again",
    b"again/directory",
    b"again/directory/above",
    b"bytes \xc3(",
    b"bytes \xc3(/first",
    b"bytes \xc3(/third",
    b"dressed",
    b"emptied",
    b"emptied/kept",
    b"emptied/kept/deep",
    b"emptied/kept/deep/second",
    b"fresh",
    b"fresh/implied",
    b"fresh/implied/second",
    b"gone",
    b"gone/directory",
    b"gone/directory/third",
    b"gone/implied",
    b"gone/implied/third",
    b"gone/returns",
    b"implied",
    b"implied/deep",
    b"implied/deep/first",
    b"implied/deep/second",
    b"implied/deep/third",
    b"implied/twice",
    b"implied/twice/second",
    b"implied/twice/third",
    b"led to",
    b"led to/deep",
    b"links",
    b"links/kept",
    b"links/one",
    b"links/replaced",
    b"links/two",
    b"links/upper",
    b"links/upper again",
    b"marked",
    b"marked/first",
    b"marked/second",
    b"not \xff\xfe text",
    b"opaque",
    b"opaque/after",
    b"opaque/after/stays",
    b"opaque/before",
    b"opaque/before/folder",
    b"opaque/before/folder/new",
    b"opaque/before/new",
    b"opaque/first",
    b"opaque/first/folder",
    b"opaque/first/folder/third",
    b"opaque/first/new",
    b"opaque/implied",
    b"opaque/implied/new",
    b"swap",
    b"swap/directory",
    b"swap/directory/third",
    b"swap/file",
    b"turned",
    b"turned/deep",
    b"turned/deep/second",
];

/// Directories that the topmost layer that has them has without an entry. They look as below: owner, mode,
/// attributes and time. A containerd gives them that time before it makes something in them, and not again.
const IMPLIED: &[&[u8]] = &[
    b"again",
    b"bytes \xc3(",
    b"emptied",
    b"emptied/kept",
    b"emptied/kept/deep",
    b"gone",
    b"implied",
    b"implied/deep",
    b"implied/twice",
    b"links",
    b"marked",
    b"opaque",
    b"opaque/after",
    b"opaque/first",
    b"opaque/first/folder",
    b"opaque/implied",
    b"swap",
];

/// Directories of which no layer says anything: when they were made is all that their time can say.
const UNSAID: &[&[u8]] = &[b"fresh", b"fresh/implied", b"gone/implied", b"turned", b"turned/deep"];

/// Of these, those to which a containerd gives looks all the same: in the place of a link those of what it led to.
const SAID_IN_CONTAINERD: &[&[u8]] = &[b"turned", b"turned/deep"];

/// In a containerd alone. The layer deletes the directory and makes it again: containerd puts a directory in the place
/// of the whiteout, and not one that hides what is below, which a whiteout is for (image-spec `layer.md`, "Whiteouts").
const SHINES_THROUGH: &[u8] = b"again/directory/below";

/// A layer above has another file in the place of its second name. Directories still have both names of it, one of them
/// hidden; the image of merged layers has those that are shown.
const KEPT: &[u8] = b"links/kept";

fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// What is seen of files, and their bytes.
type Tree = BTreeMap<PathBuf, (Seen, Vec<u8>)>;

/// A mounted image as it is compared.
fn look(at: &Path) -> Tree {
    let mut tree = see(at);
    // Containerd takes nothing of an entry of the root, and these layers have none.
    tree.remove(Path::new(""));
    let with_bytes = |(name, mut seen): (PathBuf, Seen)| {
        if FileType::from_raw_mode(seen.mode) == FileType::Directory {
            // Overlayfs does not count the directories in one that several layers have.
            seen.links = 0;
        }
        let bytes = seen.len.map(|_| fs::read(at.join(&name)).expect("a file")).unwrap_or_default();
        (name, (seen, bytes))
    };
    tree.into_iter().map(with_bytes).collect()
}

/// What a containerd shows; none without one.
fn seen_in_containerd(image: &Path) -> Option<Tree> {
    let containerd = Containerd::start()?;
    let shown = containerd.dir().join("shown");
    fs::create_dir(&shown).expect("a writable directory");
    // The mount has it unpacked, layer by layer.
    let import = ["images", "import", "--no-unpack"].map(OsStr::new);
    containerd.ctr(import.into_iter().chain([image.as_os_str()])).ok();
    let _mounted = MountsBelow(shown.clone());
    let mount = ["images", "mount", NAME].map(OsStr::new);
    containerd.ctr(mount.into_iter().chain([shown.as_os_str()])).ok();
    Some(look(&shown))
}

#[test]
fn layers_on_each_other_are_shown_as_containerd_shows_them() {
    if !is_root("layers") {
        return;
    }
    let layout = Layout::new();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let layers = [first(), second(), third()];
    layout.tag(&layout.image_of(architecture, &layers, &json!({})), NAME);
    let dir = TempDir::new().expect("a temporary directory");
    let image = dir.path().join("image.tar");
    layout.archive(&image);

    let ours = FORMS.map(|form| {
        let daemon = Daemon::start_with(&[], &format!("[snapshots]\nlayers = {form:?}\n"));
        daemon.load(&image);
        let shown = daemon.dir().join("shown");
        fs::create_dir(&shown).expect("a writable directory");
        daemon.hoist([OsStr::new("image"), OsStr::new("mount"), OsStr::new(NAME), shown.as_os_str()]).ok();
        let seen = look(&shown);
        run(Command::new("umount").arg(&shown)).ok();
        seen
    });
    let expected: BTreeSet<&Path> = SHOWN.iter().map(|name| path(name)).collect();
    for (form, seen) in FORMS.iter().zip(&ours) {
        let names: BTreeSet<&Path> = seen.keys().map(PathBuf::as_path).collect();
        assert_eq!(names, expected, "{form}");
    }
    let mut left: Vec<_> = FORMS.into_iter().zip(ours).collect();
    for (form, seen) in &mut left {
        let kept = &mut seen.get_mut(path(KEPT)).expect("it is shown").0.links;
        assert_eq!(*kept, if *form == "archives" { 1 } else { 2 }, "{form}");
        *kept = 2;
        for name in UNSAID {
            seen.get_mut(path(name)).expect("it is shown").0.mtime = (0, 0);
        }
    }
    assert_same(&left[1], &left[0]);

    let Some(mut theirs) = seen_in_containerd(&image) else { return };
    assert!(theirs.remove(path(SHINES_THROUGH)).is_some(), "there is one difference less to tell of");
    for name in SAID_IN_CONTAINERD {
        theirs.remove(path(name));
        left.iter_mut().for_each(|(_, seen)| drop(seen.remove(path(name))));
    }
    for name in [IMPLIED, UNSAID].concat().iter().filter(|name| !SAID_IN_CONTAINERD.contains(name)) {
        theirs.get_mut(path(name)).expect("it is shown").0.mtime = (0, 0);
        for (_, seen) in &mut left {
            seen.get_mut(path(name)).expect("it is shown").0.mtime = (0, 0);
        }
    }
    let theirs = ("containerd", theirs);
    for ours in &left {
        assert_same(ours, &theirs);
    }
}

/// Compares trees, each with the name of who shows it.
#[track_caller]
fn assert_same((one, left): &(&str, Tree), (other, right): &(&str, Tree)) {
    assert!(left.keys().eq(right.keys()), "{one} shows {:?}, {other} {:?}", left.keys(), right.keys());
    for (name, seen) in left {
        assert_eq!(Some(seen), right.get(name), "{} by {one} and {other}", name.display());
    }
}

/// Lines of a listing, of what the layers have in these directories.
fn of_layers(listing: &str) -> Vec<&str> {
    let mut lines: Vec<&str> =
        listing.lines().filter(|line| line.contains("etc") || line.contains("opt")).collect();
    lines.sort_unstable();
    lines
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).expect("a directory");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

/// Of copies, archives, comparisons, and images of containers, in either form.
#[test]
fn what_a_layer_deleted_comes_back_by_no_command() {
    if !is_root("layers") {
        return;
    }
    let registry = Registry::start();
    let lower = tar_of(&[("opt/", ""), ("opt/old", "old"), ("opt/folder/", ""), ("opt/folder/old", "old")]);
    let top = tar_of(&[("opt/.wh..wh..opq", ""), ("opt/new", "new")]);
    let image = push(&registry, &[shell_layer(), lower, upper_layer(), top], "stacked");
    for form in FORMS {
        let daemon = Daemon::start_with(&[], &format!("[snapshots]\nlayers = {form:?}\n"));
        daemon.hoist(["pull", "-q", &image]).ok();
        let begin = |verb: &[&str], name: &str, command: &[&str]| {
            let flags = ["--name", name, "--network", "none", &image];
            daemon.hoist([verb, &flags, command].concat()).ok().text().to_owned()
        };
        begin(&["create"], "made", &["true"]);
        // It makes again what a layer deleted, and deletes what a layer has.
        let script = "rm /etc/base; echo again > /etc/gone; echo own > /opt/own; echo ready; exec sleep 1000";
        let id = begin(&["run", "-d"], "runs", &["sh", "-c", script]);
        eventually("it has made its changes", || {
            daemon.hoist(["logs", "runs"]).ok().stdout.contains("ready").then_some(())
        });

        let out = |name: &str| daemon.dir().join(name);
        let copy = |from: &str, to: &Path| daemon.hoist(["cp", "-q", from, &to.display().to_string()]);
        for gone in ["made:/etc/gone", "made:/opt/old", "made:/opt/folder", "runs:/opt/old", "runs:/etc/base"]
        {
            copy(gone, &out("none")).expect_code(1).expect_stderr("Could not find the file");
        }
        let containers: [(&str, &[&str]); 2] = [("made", &[]), ("runs", &["own"])];
        for (container, own) in containers {
            let opt = out(&format!("opt-{container}"));
            copy(&format!("{container}:/opt"), &opt).ok();
            let expected: BTreeSet<String> = ["new"].iter().chain(own).map(ToString::to_string).collect();
            assert_eq!(names(&opt), expected, "{form}: {container}");
            let etc = out(&format!("etc-{container}"));
            copy(&format!("{container}:/etc"), &etc).ok();
            let (etc, is_made) = (names(&etc), container == "made");
            let found = ["base", "gone", "upper"].map(|name| etc.contains(name));
            assert_eq!(found, [is_made, !is_made, true], "{form}: {container}: {etc:?}");

            let archive = out(&format!("{container}.tar"));
            let to = archive.display().to_string();
            daemon.hoist(["export", "-o", &to, container]).ok();
            let listed = run(Command::new("tar").args(["--list", "--file", &to])).ok().stdout;
            let has = |name: &str| listed.lines().any(|line| line == name);
            let found = ["etc/base", "etc/gone", "etc/upper", "opt/new"].map(has);
            assert_eq!(found, [is_made, !is_made, true, true], "{form}: {container}: {listed}");
            assert!(!has("opt/old") && !has("opt/folder/") && !listed.contains(".wh."), "{form}: {listed}");
        }

        let changes = ["A /etc/gone", "A /opt/own", "C /etc", "C /opt", "D /etc/base"];
        assert_eq!(of_layers(&daemon.hoist(["diff", "runs"]).ok().stdout), changes, "{form}");
        assert_eq!(of_layers(&daemon.hoist(["diff", "made"]).ok().stdout), [""; 0], "{form}");
        let layer = out("layer");
        let mut compare = daemon.ctr_command(["snapshots", "diff", &id]);
        compare.stdout(Stdio::from(File::create(&layer).expect("a writable directory")));
        assert!(compare.status().expect("ctr starts").success(), "{form}: {}", daemon.log());
        let listed = run(Command::new("tar").args(["--list", "--gzip", "--file"]).arg(&layer)).ok().stdout;
        // Files that are mounted over are there without a byte.
        let is_mounted = |name: &str| ["etc/hostname", "etc/hosts", "etc/resolv.conf"].contains(&name);
        let mut files = of_layers(&listed);
        files.retain(|name| !name.ends_with('/') && !is_mounted(name));
        assert_eq!(files, ["etc/.wh.base", "etc/gone", "opt/own"], "{form}");

        daemon.hoist(["commit", "runs", "changed"]).ok();
        let look = ["sh", "-c", "ls /etc/base; cat /etc/gone; ls /opt"];
        let run_changed = ["run", "--rm", "--network", "none", "changed"];
        let inside = daemon.hoist([&run_changed[..], &look].concat()).ok();
        assert_eq!(inside.stdout, "again\nnew\nown\n", "{form}");
        let compared =
            daemon.hoist(["image", "diff", "--format", "{{.Kind}} {{.Path}}", &image, "changed"]).ok();
        let mut files = of_layers(&compared.stdout);
        files.retain(|row| !row.starts_with('C'));
        assert_eq!(files, ["A /etc/gone", "A /opt/own", "D /etc/base"], "{form}");
    }
}
