//! Power cuts at any write to the disk: what was answered is there afterwards, and no file has other bytes.

mod steps;
mod watched;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};
use testkit::disk::{RecordedDisk, Recording, mount_image};
use testkit::layout::{archive_of, digest_of, tar_entry};
use testkit::{Daemon, Layout, MountsBelow, Registry, eventually, images, noise, run, unmount_below};
use types::Digest;
use types::descriptor::media_type;

use crate::memory::push_layout;

const DISK_LEN: u64 = 64 << 20;

/// Lists every file of the image with its digest, and nothing else.
const LOOK: &str = "cd /data && find . -type f | sort | xargs sha256sum";

/// An image in a registry, and in an archive.
struct Image {
    pushed: String,
    archive: PathBuf,
    /// Of its layers.
    blobs: Vec<Digest>,
    /// What [`LOOK`] prints in it.
    listing: String,
    layout: Layout,
    /// Its descriptor in the layout.
    manifest: Value,
    _kept: (Registry, TempDir),
}

/// The name of the image in the archive.
const LOADED: &str = "localhost/power:latest";

/// Three layers: the shell, files, and files in the place of some of those, in gzip, so that their blob is another file
/// than what they unpack to.
fn image() -> Image {
    let registry = Registry::start();
    let shell = TempDir::new().expect("a temporary directory");
    fs::create_dir(shell.path().join("bin")).expect("a writable directory");
    fs::copy("/bin/busybox", shell.path().join("bin/busybox")).expect("busybox-static is installed");
    for tool in ["sh", "find", "sort", "xargs", "sha256sum"] {
        std::os::unix::fs::symlink("busybox", shell.path().join("bin").join(tool)).expect("a new name");
    }
    let tar = Command::new("tar").arg("-C").arg(shell.path()).args(["-cf", "-", "."]).output();
    let files = |layer: &str, numbers: std::ops::Range<usize>| {
        let entry = |number: usize| tar_entry(&format!("data/{number}"), b'0', "", &file(layer, number));
        archive_of(&numbers.map(entry).collect::<Vec<_>>())
    };
    let layers = [tar.expect("tar is part of Debian").stdout, files("one", 0..100), files("two", 50..120)];
    let layout = Layout::new();
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let config = json!({
        "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let [shell, one, two] = layers;
    let blobs = [
        layout.blob(media_type::OCI_LAYER, &shell),
        layout.blob(media_type::OCI_LAYER, &one),
        layout.blob(media_type::OCI_LAYER_GZIP, &gzip(&two)),
    ];
    let image = layout.image_of_blobs(&blobs, &config);
    let blobs = blobs.iter().map(|blob| digest_of(blob).parse().expect("a digest")).collect();
    let dir = TempDir::new().expect("a temporary directory");
    let archive = dir.path().join("image.tar");
    layout.tag(&image, LOADED);
    layout.archive(&archive);
    layout.tag(&image, images::TAG);
    let pushed = push_layout(&registry, layout.path());
    let listing = listing((0..120).map(|number| {
        let layer = if number < 50 { "one" } else { "two" };
        (number.to_string(), file(layer, number))
    }));
    Image { pushed, archive, blobs, listing, layout, manifest: image, _kept: (registry, dir) }
}

/// The bytes of a file of a layer.
fn file(layer: &str, number: usize) -> Vec<u8> {
    noise(&format!("{layer} data/{number}"), number * 100)
}

/// What [`LOOK`] prints of these files.
fn listing(files: impl Iterator<Item = (String, Vec<u8>)>) -> String {
    let mut files: Vec<(String, Vec<u8>)> = files.collect();
    files.sort();
    files.iter().map(|(name, bytes)| format!("{}  ./{name}\n", Digest::of(bytes).hex())).collect()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let plain = NamedTempFile::new().expect("a temporary file");
    fs::write(plain.path(), bytes).expect("a file of ours");
    Command::new("gzip").arg("-c").arg(plain.path()).output().expect("gzip is part of Debian").stdout
}

fn look(daemon: &Daemon, reference: &str) -> String {
    let words = ["run", "--rm", "--network", "none", reference, "sh", "-c", LOOK];
    daemon.hoist(words).ok().stdout
}

/// Ends the daemon as a power cut does, as far as the machine is concerned on which it ran.
pub(crate) fn lose_power(daemon: &mut Daemon) {
    daemon.kill();
    unmount_below(&daemon.root());
    let _ = fs::remove_dir_all(daemon.state());
}

/// As a client that unpacks by itself: `Prepare`, `Apply`, `Commit`, layer after layer.
fn pull_by_client(daemon: &Daemon, image: &Image) -> String {
    daemon.ctr(["images", "pull", "--plain-http", "--snapshotter", "overlayfs", &image.pushed]).ok();
    image.pushed.clone()
}

fn pull(daemon: &Daemon, image: &Image) -> String {
    daemon.hoist(["pull", &image.pushed]).ok();
    image.pushed.clone()
}

fn load(daemon: &Daemon, image: &Image) -> String {
    daemon.load(&image.archive);
    LOADED.to_owned()
}

/// Where the power goes.
#[derive(Clone, Copy)]
enum Cuts {
    /// Before each flush, with nothing of what came since the one before, which is what there was right after that, and
    /// with half of it: what the disk was made to keep changes there and nowhere else. At so many of them, in even
    /// distances, if there are more.
    AtFlushes(usize),
    /// After so many writes, in even distances.
    Some(usize),
}

const EACH_FLUSH: Cuts = Cuts::AtFlushes(usize::MAX);
/// Of what takes long to look at.
const SOME_FLUSHES: Cuts = Cuts::AtFlushes(5);

impl Cuts {
    /// After how many operations, and with what loss. `HOIST_TEST_CUTS`, a number or `all`, for whoever has the hours,
    /// tries so many writes with every loss.
    fn places(
        self,
        recording: &Recording,
        begun: usize,
        answered: usize,
        rested: usize,
    ) -> Vec<(usize, usize)> {
        let writes = rested - begun;
        let even = |count: usize| (0..count).map(move |cut| begun + writes * cut / count);
        let ends = [answered, answered, rested];
        let wanted = match std::env::var("HOIST_TEST_CUTS").as_deref() {
            Ok("all") => Some(writes),
            Ok(count) => Some(count.parse().expect("a number of cuts, or \"all\"")),
            Err(_) => None,
        };
        match (wanted, self) {
            (Some(count), _) => {
                even(count).chain(ends).flat_map(|cut| (0..LOSSES).map(move |loss| (cut, loss))).collect()
            }
            (None, Cuts::Some(count)) => even(count).chain(ends).zip((0..LOSSES).cycle()).collect(),
            (None, Cuts::AtFlushes(count)) => {
                let flushes: Vec<usize> =
                    recording.flushes().filter(|flush| (begun..rested).contains(flush)).collect();
                let count = count.min(flushes.len());
                let wanted = (0..count).map(|at| flushes[at * flushes.len() / count]);
                let around = wanted.flat_map(|flush| [(flush, 0), (flush, 2)]);
                around.chain(ends.into_iter().zip(0..LOSSES)).collect()
            }
        }
    }
}

/// What is done while writes are recorded, and what is looked at when the power is back.
struct Scene<'a> {
    config: &'a str,
    cuts: Cuts,
    /// Done before, and on the disk.
    prepare: &'a dyn Fn(&Daemon, &Image),
    /// At whose writes the power goes. Answered when it returns.
    act: &'a dyn Fn(&Daemon, &Image),
    /// Returns when what the daemon does about it on its own is done, at whose writes the power goes too.
    rest: &'a dyn Fn(&Daemon, &Image),
    /// What is to be so afterwards, first thing.
    look: &'a dyn Fn(&Daemon, &Image, &Cut),
}

/// Where the power went.
struct Cut {
    /// Whether the act had been answered.
    is_answered: bool,
    shown: String,
}

fn nothing(_: &Daemon, _: &Image) {}

impl Scene<'_> {
    fn play(&self) {
        let image = image();
        let mut daemon = Daemon::start_with(&[], self.config);
        daemon.terminate();
        let disk = RecordedDisk::new(DISK_LEN);
        let _mounts = MountsBelow(daemon.root());
        run(Command::new("mount").arg("--bind").arg(disk.path()).arg(daemon.root())).ok();
        daemon.start_again();
        (self.prepare)(&daemon, &image);
        fs::File::open(disk.path())
            .and_then(|root| Ok(rustix::fs::syncfs(root)?))
            .expect("a disk that takes all");
        let begun = disk.now();
        (self.act)(&daemon, &image);
        let answered = disk.now();
        (self.rest)(&daemon, &image);
        let rested = disk.now();
        lose_power(&mut daemon);
        let recording = disk.end();
        let cuts = self.cuts.places(&recording, begun, answered, rested);
        println!("{}: {} cuts from {begun} to {answered} and {rested}", self.config.trim_end(), cuts.len());
        for (number, (at, loss)) in cuts.into_iter().enumerate() {
            // Each its own: what still ends of the one before may write to its disk a little longer.
            let left = daemon.dir().join(format!("disk-{number}"));
            cut_at(&recording, at, loss, &left);
            mount_image(&left, &daemon.root());
            daemon.start_again();
            let shown = format!("{}, {at} of {begun} to {answered} and {rested}, loss {loss}", self.config);
            (self.look)(&daemon, &image, &Cut { is_answered: at >= answered, shown });
            lose_power(&mut daemon);
            fs::remove_file(&left).expect("a file of ours");
        }
    }
}

/// Whether there is an image of this name.
fn is_there(daemon: &Daemon, reference: &str) -> bool {
    let listed = daemon.hoist(["images", "--format", "{{.Repository}}:{{.Tag}}"]).ok();
    listed.stdout.lines().any(|name| name == reference)
}

/// Every file is as it was, every blob and layer what its digest says, and every record and file in its place.
fn check_whole(daemon: &Daemon, reference: &str, listing: &str, what: &str) {
    check_right(daemon, reference, listing, what);
    daemon.hoist(["system", "check"]).ok();
}

/// Every file is as it was, and every blob and layer that is there what its digest says.
fn check_right(daemon: &Daemon, reference: &str, listing: &str, what: &str) {
    assert_eq!(look(daemon, reference), listing, "{what}");
    let verified = daemon.hoist(["image", "verify"]).ok();
    assert!(verified.stdout.contains("0 mended, 0 broken"), "{what}: {verified}");
}

/// Cuts the power at writes of what brings an image, and looks at what is left each time: at every file of the image, and
/// at every blob and layer by its digest.
fn check(form: &str, cuts: Cuts, bring: impl Fn(&Daemon, &Image) -> String) {
    check_with(&format!("[snapshots]\nlayers = {form:?}\n"), cuts, bring);
}

/// The same with any configuration.
fn check_with(config: &str, cuts: Cuts, bring: impl Fn(&Daemon, &Image) -> String) {
    Scene {
        config,
        cuts,
        prepare: &nothing,
        act: &|daemon, image| drop(bring(daemon, image)),
        rest: &nothing,
        look: &|daemon, image, cut| {
            let listed = daemon.hoist(["images", "--format", "{{.Repository}}:{{.Tag}}"]).ok();
            assert!(!cut.is_answered || !listed.text().is_empty(), "{}: the pull was answered", cut.shown);
            for reference in listed.stdout.lines() {
                assert_eq!(look(daemon, reference), image.listing, "{}: as it was left", cut.shown);
            }
            let reference = bring(daemon, image);
            check_whole(daemon, &reference, &image.listing, &cut.shown);
        },
    }
    .play();
}

#[test]
fn a_power_cut_at_any_write_of_a_pull_leaves_no_wrong_file() {
    check("archives", EACH_FLUSH, pull);
}

#[test]
fn a_power_cut_at_any_write_of_a_pull_to_directories_leaves_no_wrong_file() {
    check("directories", Cuts::Some(5), pull);
}

#[test]
fn a_power_cut_at_any_write_of_a_clients_pull_leaves_no_wrong_file() {
    check("archives", Cuts::AtFlushes(6), pull_by_client);
    check("directories", Cuts::Some(2), pull_by_client);
    // What containers write need not be kept, but layers are.
    let volatile = "[snapshots]\nlayers = \"directories\"\nmount_options = [\"volatile\"]\n";
    check_with(volatile, Cuts::Some(0), pull_by_client);
}

#[test]
fn a_power_cut_at_any_write_of_a_load_leaves_no_wrong_file() {
    check("archives", EACH_FLUSH, load);
}

/// The image that merges layers was cut off, and is made anew for the first container that needs it: it is there whole, or is
/// made once more.
#[test]
fn a_power_cut_at_any_write_of_a_first_use_leaves_no_half_of_what_is_merged() {
    let cut_off = |daemon: &Daemon, image: &Image| {
        pull(daemon, image);
        let stacks = files_of_trees(daemon, "stack.erofs");
        assert_eq!(stacks.len(), 1, "one, of the topmost layer: {stacks:?}");
        let file = fs::File::options().write(true).open(&stacks[0]).expect("a file of ours");
        let len = file.metadata().expect("a file").len();
        file.set_len(len / 2).expect("a writable file");
    };
    let create = |daemon: &Daemon, image: &Image| {
        daemon.hoist(["create", "--network", "none", "--name", "first", &image.pushed]).ok();
    };
    Scene {
        config: "[snapshots]\nlayers = \"archives\"\n",
        cuts: SOME_FLUSHES,
        prepare: &cut_off,
        act: &create,
        rest: &nothing,
        look: &|daemon, image, cut| {
            let is_there = daemon.hoist(["inspect", "first"]).code == 0;
            assert!(!cut.is_answered || is_there, "{}: the container was answered", cut.shown);
            check_right(daemon, &image.pushed, &image.listing, &cut.shown);
        },
    }
    .play();
}

/// A blob that is dropped is not needed any more: at no cut is there neither it nor what it was unpacked to.
#[test]
fn a_power_cut_at_any_write_of_a_drop_loses_no_layer() {
    let dropped = |daemon: &Daemon, image: &Image| {
        let blobs = daemon.root().join("content/blobs/sha256");
        eventually("the blobs of layers are gone", || {
            image.blobs.iter().all(|digest| !blobs.join(digest.hex()).exists()).then_some(())
        });
    };
    Scene {
        config: "[content]\nunpacked = \"drop\"\n[snapshots]\nlayers = \"archives\"\n",
        cuts: SOME_FLUSHES,
        prepare: &nothing,
        act: &|daemon, image| drop(pull(daemon, image)),
        rest: &dropped,
        look: &|daemon, image, cut| {
            let is_there = is_there(daemon, &image.pushed);
            assert!(!cut.is_answered || is_there, "{}: the pull was answered", cut.shown);
            if is_there {
                check_right(daemon, &image.pushed, &image.listing, &format!("{}: as it was left", cut.shown));
            }
            pull(daemon, image);
            dropped(daemon, image);
            check_whole(daemon, &image.pushed, &image.listing, &cut.shown);
        },
    }
    .play();
}

/// Where an image was and is to be no more: it comes back whole if its removal was not answered, and never after that. What
/// a removal left is deleted, also what the one before the cut had taken out of the way.
#[test]
fn a_power_cut_at_any_write_of_a_removal_brings_back_all_or_nothing() {
    for form in ["archives", "directories"] {
        let is_empty = |daemon: &Daemon| {
            let trees = daemon.root().join("snapshots/overlayfs");
            let mut left = fs::read_dir(&trees).expect("a directory of trees").flatten();
            let count = |at: PathBuf| fs::read_dir(at).map_or(0, Iterator::count);
            left.all(|tree| tree.file_name() == "removed")
                && count(trees.join("removed")) + count(daemon.root().join("content/removed")) == 0
                && count(daemon.root().join("content/blobs/sha256")) == 0
        };
        let remove = |daemon: &Daemon, image: &Image| {
            daemon.hoist(["rmi", &image.pushed]).ok();
            daemon.hoist(["system", "prune", "--force"]).ok();
        };
        let until_empty = |daemon: &Daemon, _: &Image| {
            eventually("all is deleted", || is_empty(daemon).then_some(()));
        };
        Scene {
            config: &format!("[snapshots]\nlayers = {form:?}\n"),
            cuts: if form == "archives" { SOME_FLUSHES } else { Cuts::Some(3) },
            prepare: &|daemon, image| drop(pull(daemon, image)),
            act: &remove,
            rest: &until_empty,
            look: &|daemon, image, cut| {
                let is_there = is_there(daemon, &image.pushed);
                assert!(!cut.is_answered || !is_there, "{}: the removal was answered", cut.shown);
                if is_there {
                    check_whole(daemon, &image.pushed, &image.listing, &cut.shown);
                }
                pull(daemon, image);
                check_whole(daemon, &image.pushed, &image.listing, &cut.shown);
                remove(daemon, image);
                until_empty(daemon, image);
            },
        }
        .play();
    }
}

/// The image of a container is there whole if it was answered, and the container is there to be made one again.
#[test]
fn a_power_cut_at_any_write_of_a_commit_leaves_no_half_of_an_image() {
    const MADE: &str = "localhost/made:latest";
    let commit = |daemon: &Daemon, _: &Image| drop(daemon.hoist(["commit", "made", MADE]).ok());
    let prepare = |daemon: &Daemon, image: &Image| {
        pull(daemon, image);
        let program = "cd /data; rm 7 60; cat 9 8 > own; sync";
        let words = ["run", "--network", "none", "--name", "made", &image.pushed, "sh", "-c", program];
        daemon.hoist(words).ok();
    };
    let files = (0..120).filter(|number| ![7, 60].contains(number)).map(|number| {
        let layer = if number < 50 { "one" } else { "two" };
        (number.to_string(), file(layer, number))
    });
    let own = ("own".to_owned(), [file("one", 9), file("one", 8)].concat());
    let expected = listing(files.chain([own]));
    Scene {
        config: "[snapshots]\nlayers = \"archives\"\n",
        cuts: SOME_FLUSHES,
        prepare: &prepare,
        act: &commit,
        rest: &nothing,
        look: &|daemon, image, cut| {
            let is_made = is_there(daemon, MADE);
            assert!(!cut.is_answered || is_made, "{}: the commit was answered", cut.shown);
            if is_made {
                check_whole(daemon, MADE, &expected, &cut.shown);
            }
            commit(daemon, image);
            check_whole(daemon, MADE, &expected, &cut.shown);
            assert_eq!(look(daemon, &image.pushed), image.listing, "{}: what it was made of", cut.shown);
        },
    }
    .play();
}

/// The files of this name that trees have.
fn files_of_trees(daemon: &Daemon, name: &str) -> Vec<PathBuf> {
    let trees = fs::read_dir(daemon.root().join("snapshots/overlayfs")).expect("a directory of trees");
    let files = trees.map(|tree| tree.expect("an entry").path().join(name));
    files.filter(|file| file.exists()).collect()
}

/// Has files of this name rot, and cuts the power at writes of what mends them. What rotted is as it was or mended, and is
/// mended by whoever looks next; what was found mended does not rot again.
fn check_mend(name: &str, count: usize) {
    let prepare = |daemon: &Daemon, image: &Image| {
        pull(daemon, image);
        let files = files_of_trees(daemon, name);
        assert_eq!(files.len(), count, "{files:?}");
        for path in files {
            let file = fs::File::options().read(true).write(true).open(path).expect("a file of ours");
            let at = file.metadata().expect("a file").len() / 2;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("a byte");
            file.write_all_at(&[byte[0] ^ 1], at).expect("a writable file");
        }
    };
    Scene {
        config: "[snapshots]\nlayers = \"archives\"\n",
        cuts: SOME_FLUSHES,
        prepare: &prepare,
        act: &|daemon, _| drop(daemon.hoist(["image", "verify"]).ok()),
        rest: &nothing,
        look: &|daemon, image, cut| {
            let verified = daemon.hoist(["image", "verify"]).ok();
            let is_mended = verified.stdout.contains("0 mended, 0 broken");
            assert!(!cut.is_answered || is_mended, "{}: it was answered: {verified}", cut.shown);
            check_whole(daemon, &image.pushed, &image.listing, &cut.shown);
        },
    }
    .play();
}

#[test]
fn a_power_cut_at_any_write_of_a_mend_leaves_what_can_be_mended() {
    check_mend("data.tar", 3);
}

#[test]
fn a_power_cut_at_any_write_of_a_mend_brings_back_no_image_that_rotted() {
    check_mend("stack.erofs", 1);
}

/// The blobs of an image in which they are made of its layers are those of its digests, whatever form they were in. What a
/// pull left that the cut ended keeps none of them from it.
#[test]
fn a_power_cut_at_any_write_of_a_recipe_loses_no_blob() {
    let recipes = |daemon: &Daemon, image: &Image| {
        let blob = |blob: &Digest| daemon.root().join("content/blobs/sha256").join(blob.hex());
        eventually("recipes stand for the blobs", || {
            image.blobs.iter().all(|digest| !blob(digest).exists()).then_some(())
        });
    };
    let check_blobs = |daemon: &Daemon, image: &Image, what: &str| {
        for digest in &image.blobs {
            let read =
                daemon.ctr_command(["content", "get", &digest.to_string()]).output().expect("ctr runs");
            assert_eq!(
                Digest::of(&read.stdout),
                *digest,
                "{what}: {}",
                String::from_utf8_lossy(&read.stderr)
            );
        }
    };
    Scene {
        config: "[content]\nunpacked = \"recipe\"\n[snapshots]\nlayers = \"archives\"\n",
        cuts: SOME_FLUSHES,
        prepare: &nothing,
        act: &|daemon, image| drop(pull(daemon, image)),
        rest: &recipes,
        look: &|daemon, image, cut| {
            let is_there = is_there(daemon, &image.pushed);
            assert!(!cut.is_answered || is_there, "{}: the pull was answered", cut.shown);
            if is_there {
                check_blobs(daemon, image, &cut.shown);
                assert_eq!(look(daemon, &image.pushed), image.listing, "{}: as it was left", cut.shown);
            }
            pull(daemon, image);
            recipes(daemon, image);
            check_blobs(daemon, image, &cut.shown);
            check_whole(daemon, &image.pushed, &image.listing, &cut.shown);
        },
    }
    .play();
}

/// What of the writes that the disk had not been made to keep is there: none, all, or every other.
const LOSSES: usize = 3;

fn cut_at(recording: &Recording, cut: usize, loss: usize, image: &Path) {
    let kept = |index: usize| match loss {
        0 => false,
        1 => true,
        _ => index.is_multiple_of(2),
    };
    recording.after_cut(cut, kept, image);
}
