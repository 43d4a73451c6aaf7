//! Activations on a real kernel: mounted, found again after a restart, taken down, collected. Needs root.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use content::LocalStore;
use kv::Db;
use metadata::{Caller, Metadata};
use mounts::{Mounts, Options, Places};
use types::{Error, ErrorKind, Filters, Labels, Mount, Namespace};

struct Fixture {
    metadata: Metadata,
    mounts: Mounts,
    places: PathBuf,
    dir: Directory,
}

/// A temporary directory, removed with all mounts in it.
struct Directory(tempfile::TempDir);

impl Directory {
    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let inside = |point: &PathBuf| point.starts_with(self.path());
        let points = linux::mount::mount_points().unwrap().into_iter().map(|mount| mount.path).filter(inside);
        for point in points.collect::<Vec<_>>().into_iter().rev() {
            linux::mount::unmount_all(&point).unwrap();
        }
    }
}

impl Fixture {
    fn new() -> Option<Fixture> {
        if !testkit::is_root("a mount") {
            return None;
        }
        let fixture = open(Directory(tempfile::tempdir().unwrap()));
        fixture.mounts.reconcile().unwrap();
        Some(fixture)
    }

    /// Opens the stores again, as a new process would.
    fn reopen(self) -> Fixture {
        let Fixture { metadata, mounts, dir, .. } = self;
        drop((metadata, mounts));
        let fixture = open(dir);
        fixture.mounts.reconcile().unwrap();
        fixture
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn directory(&self, name: &str) -> String {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        path
    }

    fn activate(&self, name: &str, mounts: &[Mount]) -> Result<metadata::Activation, Error> {
        self.mounts.activate(&caller(), name, mounts.to_vec(), Options::default())
    }

    fn activate_all(&self, name: &str, mounts: &[Mount]) -> metadata::Activation {
        let options = Options { is_all: true, ..Options::default() };
        self.mounts.activate(&caller(), name, mounts.to_vec(), options).unwrap()
    }

    /// Retries while a mount is in use: a child of another test has this process's descriptors until its execve(2).
    fn deactivate_once_unused(&self, name: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while let Err(error) = self.mounts.deactivate(&caller(), name) {
            assert!(error.is(ErrorKind::FailedPrecondition) && Instant::now() < deadline, "{error:?}");
            std::thread::yield_now();
        }
    }

    /// The number of places, and so of activations.
    fn places(&self) -> usize {
        fs::read_dir(&self.places).unwrap().count()
    }

    fn is_mounted(&self, point: &str) -> bool {
        linux::mount::mount_points().unwrap().iter().any(|mount| mount.path == Path::new(point))
    }
}

fn open(dir: Directory) -> Fixture {
    let root = dir.path().join("root");
    fs::create_dir_all(&root).unwrap();
    let db = Db::open(root.join("meta.db"), kv::Options::default()).unwrap();
    let content = Arc::new(LocalStore::open(root.join("content")).unwrap());
    let places = Places::open(&dir.path().join("state")).unwrap();
    let sweep_mounts = {
        let places = places.clone();
        Box::new(move |live: &dyn Fn() -> _| places.sweep(live))
    };
    let options = metadata::Options { sweep_mounts, ..metadata::Options::default() };
    let metadata = Metadata::open(db, content, BTreeMap::new(), options).unwrap();
    let mounts = Mounts::new(metadata.clone(), places, &root).unwrap();
    Fixture { metadata, mounts, places: dir.path().join("state").canonicalize().unwrap(), dir }
}

fn has(program: &str) -> bool {
    let found = Command::new(program).arg("-V").output().is_ok();
    if !found {
        println!("skipped: {program} is not installed");
    }
    found
}

fn caller() -> Caller {
    Caller::new("test".parse::<Namespace>().unwrap())
}

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        kind: kind.into(),
        source: source.into(),
        target: String::new(),
        options: options.iter().map(ToString::to_string).collect(),
    }
}

fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorKind {
    result.unwrap_err().kind()
}

/// A directory bound below a name of ours, which makes one active mount.
fn bound(fixture: &Fixture) -> [Mount; 2] {
    let shown = fixture.path("shown");
    fs::create_dir_all(&shown).unwrap();
    [mount("bind", &shown, &["rbind"]), mount("format/bind", "{{ mount 0 }}", &["rbind", "ro"])]
}

#[test]
fn a_disk_is_made_formatted_mounted_and_laid_over() {
    let Some(fixture) = Fixture::new() else { return };
    if !has("mkfs.ext4") {
        return;
    }
    let lower = fixture.directory("lower");
    fs::write(Path::new(&lower).join("below"), "below").unwrap();
    let mounts = [
        mount("mkfs/loop", &fixture.path("root/disk"), &["X-containerd.mkfs.size=16MiB"]),
        mount("format/ext4", "{{ mount 0 }}", &[]),
        mount(
            "format/mkdir/overlay",
            "overlay",
            &[
                "X-containerd.mkdir.path={{ mount 1 }}/upper:0755",
                "X-containerd.mkdir.path={{ mount 1 }}/work",
                &format!("lowerdir={lower}"),
                "upperdir={{ mount 1 }}/upper",
                "workdir={{ mount 1 }}/work",
            ],
        ),
    ];
    let activation = fixture.activate("disk", &mounts).unwrap();
    assert_eq!((activation.active.len(), activation.system.len()), (2, 1));
    let device = fs::read_link(&activation.active[0].point).unwrap();
    assert_eq!(activation.active[1].mount.source, activation.active[0].point);
    assert!(fixture.is_mounted(&activation.active[1].point));
    let overlay = &activation.system[0];
    assert_eq!((overlay.kind.as_str(), overlay.options.len()), ("overlay", 3), "{overlay:?}");

    let merged = fixture.directory("merged");
    linux::mount::mount_all(&activation.system, Path::new(&merged)).unwrap();
    assert_eq!(fs::read_to_string(Path::new(&merged).join("below")).unwrap(), "below");
    fs::write(Path::new(&merged).join("above"), "above").unwrap();
    linux::mount::unmount_all(Path::new(&merged)).unwrap();

    // While a file is open nothing is taken down.
    let open = File::open(Path::new(&activation.active[1].point).join("upper/above")).unwrap();
    assert_eq!(kind(fixture.mounts.deactivate(&caller(), "disk")), ErrorKind::FailedPrecondition);
    assert_eq!(fixture.mounts.find(&caller(), "disk").unwrap(), activation);
    assert!(fixture.is_mounted(&activation.active[1].point));
    drop(open);

    fixture.deactivate_once_unused("disk");
    assert_eq!(kind(fixture.mounts.find(&caller(), "disk")), ErrorKind::NotFound);
    assert_eq!(fixture.places(), 0);
    let disk = PathBuf::from(fixture.path("root/disk"));
    assert!(!linux::loopdev::is_shown(&device, &disk).unwrap(), "the device was let go of");

    // What was written is on the disk.
    let again = fixture.activate("disk", &mounts).unwrap();
    let above = Path::new(&again.active[1].point).join("upper/above");
    assert_eq!(fs::read_to_string(above).unwrap(), "above");
    fixture.deactivate_once_unused("disk");
}

#[test]
fn an_image_is_mounted_from_its_file() {
    let Some(fixture) = Fixture::new() else { return };
    if !has("mkfs.erofs") {
        return;
    }
    let tree = fixture.directory("tree");
    fs::write(Path::new(&tree).join("file"), "inside").unwrap();
    let image = fixture.path("image.erofs");
    assert!(Command::new("mkfs.erofs").args([&image, &tree]).output().unwrap().status.success());

    let mounts = [
        mount("erofs", &image, &["ro", "loop"]),
        mount("format/overlay", "overlay", &[&format!("lowerdir={{{{ mount 0 }}}}:{tree}")]),
    ];
    let activation = fixture.activate("image", &mounts).unwrap();
    let file = Path::new(&activation.active[0].point).join("file");
    assert_eq!(fs::read_to_string(file).unwrap(), "inside");
    let point = &activation.active[0].point;
    assert_eq!(activation.system[0].options, [format!("lowerdir={point}:{tree}")]);

    // An image with hashes is never mounted without verification.
    let checked = [mount("erofs", &image, &[&format!("X-containerd.dmverity={image}")])];
    assert_eq!(kind(fixture.activate("checked", &checked)), ErrorKind::NotFound);
    fs::write(format!("{image}.dmverity"), r#"{"roothash": "00", "hashoffset": 0}"#).unwrap();
    assert_eq!(kind(fixture.activate("checked", &checked)), ErrorKind::InvalidArgument);
    assert_eq!(fixture.places(), 1);
}

#[test]
fn fuse_programs_are_mounted_and_unmounted() {
    let Some(fixture) = Fixture::new() else { return };
    if !has("bindfs") || !has("mount.fuse3") {
        return;
    }
    let source = fixture.directory("source");
    fs::write(Path::new(&source).join("file"), "shown").unwrap();
    let shown = [mount("fuse3.bindfs", &source, &["ro"])];
    // Clients mount it themselves, as long as they can.
    assert_eq!(kind(fixture.activate("x", &shown)), ErrorKind::Unimplemented);
    let all = Options { makes_fuse: true, ..Options::default() };
    let activate =
        |name: &str, mounts: &[Mount]| fixture.mounts.activate(&caller(), name, mounts.to_vec(), all.clone());
    let activation = activate("shown", &shown).unwrap();
    let point = activation.active[0].point.clone();
    assert_eq!(fs::read_to_string(Path::new(&point).join("file")).unwrap(), "shown");
    let [left] = &mounts::left(activation)[..] else { panic!("one tree") };
    assert_eq!((left.kind.as_str(), &left.source), ("bind", &point));
    let fixture = fixture.reopen();
    fixture.mounts.deactivate(&caller(), "shown").unwrap();
    assert!(!fixture.is_mounted(&point));

    let all = Options { makes_fuse: true, ..Options::default() };
    let activate =
        |name: &str, mounts: &[Mount]| fixture.mounts.activate(&caller(), name, mounts.to_vec(), all.clone());
    // A killed program leaves a mount whose accesses fail.
    let name = format!("{source}-of-the-dead");
    fs::create_dir(&name).unwrap();
    let activation = activate("dead", &[mount("fuse3.bindfs", &name, &[])]).unwrap();
    kill(&name);
    let point = PathBuf::from(&activation.active[0].point);
    assert!(fs::read_dir(&point).is_err());
    fixture.mounts.deactivate(&caller(), "dead").unwrap();
    assert_eq!(fixture.places(), 0);

    let refused = activate("x", &[mount("fuse3.bindfs", "/no/such", &[])]).unwrap_err();
    assert!(refused.is(ErrorKind::FailedPrecondition), "{refused:?}");
    assert!(refused.chain().to_string().contains("/no/such"), "its words: {}", refused.chain());
    assert_eq!(fixture.places(), 0);
}

/// Kills the process that has this word in its command line, and waits until it is gone.
fn kill(word: &str) {
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let has_word = |pid: &String| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|found| found == word.as_bytes())
    };
    let pid =
        processes.filter(|name| name.parse::<u32>().is_ok()).find(has_word).expect("a program that shows it");
    assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    while fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty()) {
        std::thread::yield_now();
    }
}

#[test]
fn a_read_only_activation_writes_nothing() {
    let Some(fixture) = Fixture::new() else { return };
    if !has("mkfs.ext4") {
        return;
    }
    let mounts = [
        mount("mkfs/loop", &fixture.path("root/disk"), &["X-containerd.mkfs.size=16MiB"]),
        mount("format/ext4", "{{ mount 0 }}", &[]),
        mount(
            "format/mkdir/bind",
            "{{ mount 1 }}/made",
            &["X-containerd.mkdir.path={{ mount 1 }}/made", "rbind"],
        ),
    ];
    let only_read = Options { is_read_only: true, ..Options::default() };
    let look = || fixture.mounts.activate(&caller(), "look", mounts.to_vec(), only_read.clone());
    assert_eq!(kind(look()), ErrorKind::NotFound, "it makes no disk");
    assert_eq!(fixture.places(), 0);
    fixture.activate("make", &mounts).unwrap();
    fixture.mounts.deactivate(&caller(), "make").unwrap();
    let disk = fixture.path("root/disk");
    let before = fs::read(&disk).unwrap();
    let activation = look().unwrap();
    assert_eq!(activation.system[0].options, ["rbind"]);
    let made = PathBuf::from(&activation.system[0].source);
    assert!(made.is_dir());
    assert!(fs::write(made.join("file"), "").is_err(), "read-only");
    fixture.mounts.deactivate(&caller(), "look").unwrap();
    assert!(fs::read(&disk).unwrap() == before, "not a byte of it has changed");
}

#[test]
fn an_activation_of_all_mounts_is_one_tree() {
    let Some(fixture) = Fixture::new() else { return };
    let (one, two) = (fixture.directory("one"), fixture.directory("two"));
    fs::write(Path::new(&one).join("a"), "1").unwrap();
    fs::write(Path::new(&two).join("b"), "2").unwrap();
    let overlay = mount("overlay", "overlay", &[&format!("lowerdir={one}:{two}")]);
    assert_eq!(kind(fixture.activate("view", std::slice::from_ref(&overlay))), ErrorKind::Unimplemented);
    let activation = fixture.activate_all("view", &[overlay]);
    let [bind] = &activation.system[..] else { panic!("{activation:?}") };
    assert_eq!((bind.kind.as_str(), &bind.source), ("bind", &activation.active[0].point));
    assert_eq!(fs::read_to_string(Path::new(&bind.source).join("a")).unwrap(), "1");
    assert_eq!(fs::read_to_string(Path::new(&bind.source).join("b")).unwrap(), "2");
}

#[test]
fn a_failed_activation_leaves_nothing() {
    let Some(fixture) = Fixture::new() else { return };
    let [bind, _] = bound(&fixture);
    let wrong = mount("format/overlay", "overlay", &["lowerdir={{ mount 7 }}"]);
    assert_eq!(kind(fixture.activate("x", &[bind.clone(), wrong])), ErrorKind::InvalidArgument);
    let missing = mount("bind", "/no/such", &["rbind"]);
    let all = Options { is_all: true, ..Options::default() };
    assert_eq!(
        kind(fixture.mounts.activate(&caller(), "x", vec![bind.clone(), missing], all.clone())),
        ErrorKind::NotFound
    );
    assert_eq!(
        kind(fixture.mounts.activate(&caller(), "", vec![bind.clone()], all.clone())),
        ErrorKind::InvalidArgument
    );
    assert_eq!(
        kind(fixture.mounts.activate(&caller(), "x", vec![bind.clone(); 256], all.clone())),
        ErrorKind::InvalidArgument
    );
    let leased = caller().with_lease("nosuch".parse().unwrap());
    assert_eq!(kind(fixture.mounts.activate(&leased, "x", vec![bind.clone()], all)), ErrorKind::NotFound);
    assert_eq!(fixture.places(), 0);
    // The name is free.
    fixture.activate_all("x", &[bind]);
    let again = bound(&fixture);
    assert_eq!(kind(fixture.activate("x", &again)), ErrorKind::AlreadyExists);
    assert_eq!(kind(fixture.mounts.deactivate(&caller(), "y")), ErrorKind::NotFound);
}

#[test]
fn a_restart_keeps_mounted_activations_and_forgets_others() {
    let Some(fixture) = Fixture::new() else { return };
    let kept = fixture.activate("kept", &bound(&fixture)).unwrap();
    let lost = fixture.activate("lost", &bound(&fixture)).unwrap();
    // Cut off in the middle: a record that is not complete, with something mounted.
    let number = fixture.metadata.activations(caller()).begin("cut off", Labels::new()).unwrap();
    let half = fixture.places.join(number.to_string()).join("0");
    fs::create_dir_all(&half).unwrap();
    linux::mount::mount_all(&bound(&fixture)[..1], &half).unwrap();
    // What an administrator unmounted.
    linux::mount::unmount_all(Path::new(&lost.active[0].point)).unwrap();

    let fixture = fixture.reopen();
    assert_eq!(fixture.mounts.list(&caller(), &Filters::default()).unwrap(), std::slice::from_ref(&kept));
    assert_eq!(fixture.places(), 1);
    assert!(fixture.is_mounted(&kept.active[0].point));
    assert!(!fixture.is_mounted(&half.display().to_string()));

    // As after a reboot: the directories may be there, the mounts are not.
    linux::mount::unmount_all(Path::new(&kept.active[0].point)).unwrap();
    let fixture = fixture.reopen();
    assert_eq!(fixture.mounts.list(&caller(), &Filters::default()).unwrap(), []);
    assert_eq!(fixture.places(), 0);
}

#[test]
fn activations_without_a_reference_are_collected() {
    let Some(fixture) = Fixture::new() else { return };
    let leases = fixture.metadata.leases(caller());
    leases.create(&"l".parse().unwrap(), Labels::new()).unwrap();
    let labelled = |key: &str, value: &str| Options {
        labels: Labels::from([(key.to_owned(), value.to_owned())]),
        ..Options::default()
    };
    let leased = caller().with_lease("l".parse().unwrap());
    fixture.mounts.activate(&leased, "leased", bound(&fixture).to_vec(), Options::default()).unwrap();
    let root = labelled("containerd.io/gc.root", "now");
    fixture.mounts.activate(&caller(), "rooted", bound(&fixture).to_vec(), root).unwrap();
    let gone = labelled("containerd.io/gc.bref.container", "no-such-container");
    fixture.mounts.activate(&caller(), "orphan", bound(&fixture).to_vec(), gone).unwrap();
    let names = || -> Vec<String> {
        let found = fixture.mounts.list(&caller(), &Filters::default()).unwrap();
        found.into_iter().map(|activation| activation.name).collect()
    };
    let collected = fixture.metadata.collect().unwrap();
    assert_eq!((collected.mounts, collected.failures.len()), (1, 0), "{collected:?}");
    assert_eq!(names(), ["leased", "rooted"]);
    assert_eq!(fixture.places(), 2);

    // What is in use is gone from the records, and taken down when it is not.
    let point = fixture.mounts.find(&caller(), "leased").unwrap().active[0].point.clone();
    fs::write(fixture.dir.path().join("shown/file"), "").unwrap();
    let open = File::open(Path::new(&point).join("file")).unwrap();
    leases.delete(&"l".parse().unwrap()).unwrap();
    let collected = fixture.metadata.collect().unwrap();
    assert_eq!((collected.mounts, collected.failures.len()), (1, 1), "{collected:?}");
    assert!(fixture.is_mounted(&point));
    drop(open);
    assert_eq!(fixture.metadata.collect().unwrap().failures.len(), 0);
    assert!(!fixture.is_mounted(&point));

    let none = Labels::new();
    fixture.mounts.update(&caller(), "rooted", &none, &["labels.containerd.io/gc.root".into()]).unwrap();
    fixture.metadata.collect().unwrap();
    assert_eq!((names().len(), fixture.places()), (0, 0));
}
