//! Layers that are kept as archives, mixed with others, damaged, and after crashes.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use snapshot::{
    Backing, CommitOptions, LayerFiles, LayerForm, NewLayer, Options, Overlay, Snapshotter, Target,
};
use tempfile::TempDir;
use types::{ErrorKind, Labels, Mount};

use crate::suite::{Place, prepare_with, store, store_tree, unmount_below, with_mounted};
use crate::{open_archives, open_on_loop_devices, open_overlay};

fn is_root() -> bool {
    stdx::testing::is_root("a mount")
}

fn layer(snapshotter: &dyn Snapshotter, name: &str, parent: Option<&str>, fill: impl FnOnce(&Path)) {
    let key = format!("extract {name}");
    // As a pull does: side by side, and parents at the end.
    prepare_with(snapshotter, &key, None, fill);
    let options = CommitOptions { labels: Labels::new(), parent: parent.map(str::to_owned) };
    snapshotter.commit(name, &key, options).unwrap();
}

fn lower_of(mounts: &[Mount]) -> Vec<String> {
    let lower = mounts[0].options.iter().find_map(|option| option.strip_prefix("lowerdir="));
    lower.unwrap_or(&mounts[0].source).split(':').map(str::to_owned).collect()
}

#[test]
fn this_kernel_mounts_archives() {
    if is_root() {
        let dir = Place::new();
        snapshot::probe(dir.path(), Backing::Files).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
    }
}

/// Files begin at 512 bytes, and so must the disk's blocks be able to.
#[test]
fn archives_are_read_directly_where_kernel_and_disk_can() {
    if !is_root() {
        return;
    }
    let dir = Place::new();
    if let Err(error) = snapshot::probe(dir.path(), Backing::FilesDirectly) {
        println!("skipped: {}", error.chain());
        return;
    }
    let db = kv::Db::open(dir.path().join("meta.db"), kv::Options::default()).unwrap();
    let options = Options { backing: Backing::FilesDirectly, ..Options::new(LayerForm::Archives) };
    let snapshotter = Overlay::open(&dir.path().join("overlay"), db, options).unwrap();
    let bytes: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    layer(&snapshotter, "base", None, |tree| {
        for len in [0, 1, 511, 512, 4096, 5000, bytes.len()] {
            fs::write(tree.join(len.to_string()), &bytes[..len]).unwrap();
        }
    });
    let mounts = snapshotter.view("look", Some("base"), Labels::new()).unwrap();
    with_mounted(&mounts, |tree| {
        for len in [0, 1, 511, 512, 4096, 5000, bytes.len()] {
            assert!(fs::read(tree.join(len.to_string())).unwrap() == bytes[..len], "{len}");
        }
    });
}

/// After a pull they are in memory. Whatever takes them out of it, a container that starts then has them read past it,
/// and so has the first one after a start of the machine.
#[test]
fn archives_that_are_not_in_memory_are_read_directly() {
    if !is_root() {
        return;
    }
    let dir = Place::new();
    if let Err(error) = snapshot::probe(dir.path(), Backing::FilesDirectly) {
        println!("skipped: {}", error.chain());
        return;
    }
    let bytes: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let archive = dir.path().join("overlay/1/data.tar");
    let check = |is_direct: bool| {
        let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let lower = dir.path().join("overlay/1/lower").display().to_string();
        let options: Vec<&str> = all.lines().filter(|line| line.contains(&lower)).collect();
        assert!(matches!(options[..], [one] if one.contains("directio") == is_direct), "{options:?}");
    };
    let look = |snapshotter: &dyn Snapshotter, is_direct: bool| {
        let mounts = snapshotter.mounts("run").unwrap();
        check(is_direct);
        with_mounted(&mounts, |tree| assert!(fs::read(tree.join("file")).unwrap() == bytes));
    };
    let forget = || {
        let file = fs::File::open(&archive).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    };
    let snapshotter = open_archives(dir.path());
    layer(&*snapshotter, "base", None, |tree| fs::write(tree.join("file"), &bytes).unwrap());
    snapshotter.prepare("run", Some("base"), Labels::new()).unwrap();
    look(&*snapshotter, false);
    forget();
    look(&*snapshotter, true);
    // It stays so.
    fs::read(&archive).unwrap();
    look(&*snapshotter, true);
    // As after a start of the machine, with and without what is in memory.
    drop(snapshotter);
    unmount_below(dir.path());
    let snapshotter = open_archives(dir.path());
    look(&*snapshotter, false);
    drop(snapshotter);
    unmount_below(dir.path());
    forget();
    look(&*open_archives(dir.path()), true);
    // The daemon's idle check also covers a container that runs for long.
    unmount_below(dir.path());
    fs::read(&archive).unwrap();
    let snapshotter = open_archives(dir.path());
    look(&*snapshotter, false);
    snapshotter.relax();
    check(false);
    forget();
    snapshotter.relax();
    check(true);
    // One that was removed meanwhile is no concern.
    unmount_below(dir.path());
    fs::read(&archive).unwrap();
    let snapshotter = {
        drop(snapshotter);
        open_archives(dir.path())
    };
    look(&*snapshotter, false);
    forget();
    unmount_below(dir.path());
    snapshotter.relax();
    drop(snapshotter);
    // Unless the settings ask for the page cache.
    unmount_below(dir.path());
    forget();
    let db = kv::Db::open(dir.path().join("meta.db"), kv::Options::default()).unwrap();
    let options = Options { backing: Backing::FilesThroughMemory, ..Options::new(LayerForm::Archives) };
    look(&Overlay::open(&dir.path().join("overlay"), db, options).unwrap(), false);
}

/// In order they are read as far ahead as the disk's own files are.
#[test]
fn archives_are_read_ahead_as_files_of_directories() {
    if !is_root() {
        return;
    }
    let dir = Place::new();
    let device = fs::metadata(dir.path()).unwrap().dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let Ok(wanted) = fs::read_to_string(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb")) else {
        println!("skipped: the kernel does not say how far it reads ahead on {major}:{minor}");
        return;
    };
    let snapshotter = open_archives(dir.path());
    layer(&*snapshotter, "base", None, |tree| fs::write(tree.join("file"), "x").unwrap());
    snapshotter.prepare("run", Some("base"), Labels::new()).unwrap();
    let backings = fs::read_dir("/sys/class/bdi").unwrap().map(Result::unwrap);
    let ours = backings.filter(|entry| entry.file_name().to_string_lossy().starts_with("erofs-"));
    // The last one, as they are numbered: other tests' are made by the same program, and have it a moment later.
    let last = ours.max_by_key(|entry| entry.file_name().to_string_lossy()[6..].parse::<u64>().unwrap());
    let Some(last) = last else {
        println!("skipped: this kernel mounts no files");
        return;
    };
    eventually("it is read ahead as far", || {
        fs::read_to_string(last.path().join("read_ahead_kb")).is_ok_and(|found| found == wanted)
    });
}

#[test]
fn a_chain_of_archives_is_one_lower_layer() {
    if is_root() {
        let dir = Place::new();
        let snapshotter = open_archives(dir.path());
        check_chain(&*snapshotter);
    }
}

/// Loop devices that show files below a directory.
fn loop_devices(dir: &Path) -> usize {
    let shown = fs::read_dir("/sys/block")
        .unwrap()
        .filter_map(|device| fs::read_to_string(device.ok()?.path().join("loop/backing_file")).ok());
    shown.filter(|file| Path::new(file.trim_end()).starts_with(dir)).count()
}

/// As where the kernel mounts no files: an image of a hundred layers is a hundred and one devices, which are there
/// again after a reboot, and go with the last snapshot.
#[test]
fn a_chain_of_archives_is_one_lower_layer_from_loop_devices() {
    if !is_root() {
        return;
    }
    let dir = Place::new();
    snapshot::probe(dir.path(), Backing::LoopDevices).unwrap();
    {
        let snapshotter = open_on_loop_devices(dir.path());
        check_chain(&*snapshotter);
        assert_eq!(loop_devices(dir.path()), 101);
    }
    unmount_below(dir.path());
    eventually("a reboot leaves no device", || loop_devices(dir.path()) == 0);

    let snapshotter = open_on_loop_devices(dir.path());
    let mounts = snapshotter.mounts("top").unwrap();
    with_mounted(&mounts, |tree| assert_eq!(fs::read_to_string(tree.join("last")).unwrap(), "own"));
    assert_eq!(loop_devices(dir.path()), 101);
    snapshotter.remove("top").unwrap();
    for at in (0..100).rev() {
        snapshotter.remove(&format!("layer{at}")).unwrap();
    }
    snapshotter.cleanup().unwrap();
    eventually("the devices are given back", || loop_devices(dir.path()) == 0);
}

/// A call that prepares a snapshot on a layer may mount the layer's image while a collection moves its directory away.
#[test]
fn a_layer_that_was_mounted_while_it_was_removed_is_deleted() {
    if !is_root() {
        return;
    }
    let dir = Place::new();
    let snapshotter = open_archives(dir.path());
    snapshotter.prepare("layer", None, Labels::new()).unwrap();
    snapshotter.remove("layer").unwrap();
    snapshotter.cleanup().unwrap();
    let (kept, removed) = (dir.path().join("kept"), dir.path().join("overlay/removed/1"));
    let lower = removed.join("lower");
    fs::create_dir(&kept).unwrap();
    fs::create_dir(&lower).unwrap();
    fs::write(kept.join("file"), "kept").unwrap();
    let bind = Mount {
        kind: "bind".into(),
        source: kept.display().to_string(),
        target: String::new(),
        options: vec!["rbind".into()],
    };
    linux::mount::mount_all(&[bind], &lower).unwrap();
    assert!(snapshotter.reclaim(&|| true).unwrap());
    assert!(!removed.exists());
    assert_eq!(fs::read_to_string(kept.join("file")).unwrap(), "kept");
}

/// Waits for something that the kernel does asynchronously.
fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < std::time::Duration::from_secs(60), "{what}");
        std::thread::yield_now();
    }
}

/// A hundred layers, each a change to the last.
fn check_chain(snapshotter: &dyn Snapshotter) {
    let mut parent: Option<String> = None;
    for at in 0..100 {
        let name = format!("layer{at}");
        layer(snapshotter, &name, parent.as_deref(), |tree| {
            fs::write(tree.join(at.to_string()), "x").unwrap();
            fs::write(tree.join("last"), at.to_string()).unwrap();
        });
        parent = Some(name);
    }
    let mounts = snapshotter.prepare("top", Some("layer99"), Labels::new()).unwrap();
    assert_eq!(lower_of(&mounts).len(), 1, "{mounts:?}");
    with_mounted(&mounts, |tree| {
        assert_eq!(fs::read_dir(tree).unwrap().count(), 101);
        assert_eq!(fs::read_to_string(tree.join("last")).unwrap(), "99");
        fs::write(tree.join("last"), "own").unwrap();
        assert_eq!(fs::read_to_string(tree.join("last")).unwrap(), "own");
    });
}

/// What the first user of a chain would wait for is there before, also where a chain grew in between.
#[test]
fn a_chain_is_made_ready_and_what_is_used_of_it_is_looked_at() {
    if !is_root() {
        return;
    }
    let dir = Place::new();
    let snapshotter = open_archives(dir.path());
    let path = |id: u32, name: &str| dir.path().join("overlay").join(id.to_string()).join(name);
    for (name, parent) in [("one", None), ("two", Some("one")), ("three", Some("two"))] {
        layer(&*snapshotter, name, parent, |tree| fs::write(tree.join(name), name).unwrap());
    }
    for name in ["one", "two"] {
        snapshotter.kept_layers().unwrap().make_ready(name, None).unwrap();
    }
    assert!(!path(1, "stack.erofs").exists(), "one layer is its own image");
    let before = fs::metadata(path(2, "stack.erofs")).unwrap();
    snapshotter.kept_layers().unwrap().make_ready("two", None).unwrap();
    assert_eq!(fs::metadata(path(2, "stack.erofs")).unwrap().ino(), before.ino(), "made once");
    snapshotter.kept_layers().unwrap().make_ready("three", None).unwrap();
    let whole = fs::read(path(3, "stack.erofs")).unwrap();
    assert!(linux::mount::mount_points().unwrap().iter().all(|at| !at.path.starts_with(dir.path())));

    // Nobody is shown what a power cut left of it: it says nothing that the layers do not.
    fs::write(path(3, "stack.erofs"), &whole[..whole.len() - 512]).unwrap();
    let mounts = snapshotter.view("look", Some("three"), Labels::new()).unwrap();
    with_mounted(&mounts, |tree| assert_eq!(names(tree), ["one", "three", "two"]));
    assert!(fs::read(path(3, "stack.erofs")).unwrap() == whole);

    // Every archive of the chain is used, whether it is mounted or not; the images of single layers are not any more.
    fs::rename(path(2, "layer.erofs"), path(2, "away")).unwrap();
    assert_eq!(snapshotter.mounts("look").unwrap(), mounts);
    fs::rename(path(2, "away"), path(2, "layer.erofs")).unwrap();
    let data = fs::File::options().write(true).open(path(1, "data.tar")).unwrap();
    let len = data.metadata().unwrap().len();
    data.set_len(len - 512).unwrap();
    let refused = |key: &str| {
        let error = snapshotter.prepare(key, Some("three"), Labels::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DataLoss);
        assert!(error.chain().contains("overlay/1/data.tar has"), "{}", error.chain());
    };
    refused("mounted");
    unmount_below(dir.path());
    refused("not mounted");
    data.set_len(len).unwrap();
    snapshotter.prepare("run", Some("three"), Labels::new()).unwrap();
}

/// Before layers are committed on each other they can be merged, so that one barrier has all of it on disk. What was
/// merged is used for that chain alone, and has no name that anybody believes before.
#[test]
fn layers_that_are_going_to_be_a_chain_are_merged_ahead() {
    if !is_root() {
        return;
    }
    let dir = Place::new();
    let snapshotter = open_archives(dir.path());
    let extract = |name: &str| {
        let mounts =
            prepare_with(&*snapshotter, name, None, |tree| fs::write(tree.join(name), name).unwrap());
        Path::new(&mounts[0].source).parent().unwrap().to_owned()
    };
    let merge = |keys: &[&str], parent: Option<&str>| {
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        snapshotter.kept_layers().unwrap().merge_ahead(&keys, parent).unwrap()
    };
    let commit = |name: &str, parent: Option<&str>| {
        let options = CommitOptions { labels: Labels::new(), parent: parent.map(str::to_owned) };
        snapshotter.commit(&format!("{name} done"), name, options).unwrap();
    };
    // Whether the image of a chain is the one that was merged ahead. While that is open, no other has its number.
    let check = |name: &str, ahead: &fs::File, directory: &Path, is_it: bool, shown: &[&str]| {
        let made = fs::metadata(directory.join("stack.erofs")).unwrap();
        assert_eq!(made.ino() == ahead.metadata().unwrap().ino(), is_it, "{name}");
        let key = format!("look at {name}");
        let mounts = snapshotter.view(&key, Some(&format!("{name} done")), Labels::new()).unwrap();
        with_mounted(&mounts, |tree| assert_eq!(names(tree), shown));
    };
    // It has no name: it is looked for among the open files of this program.
    let ahead = |directory: &Path| {
        let directory = directory.canonicalize().unwrap();
        let is_it = |file: &PathBuf| {
            let target = fs::read_link(file).unwrap_or_default();
            target.parent() == Some(&*directory) && target.to_string_lossy().ends_with(" (deleted)")
        };
        let mut open = fs::read_dir("/proc/self/fd").unwrap().map(|file| file.unwrap().path());
        fs::File::open(open.find(is_it).expect("an image that was merged ahead")).unwrap()
    };

    extract("one");
    let two = extract("two");
    assert!(merge(&["one"], None).is_none(), "one layer is its own image");
    let merged = merge(&["one", "two"], None);
    let made = ahead(&two);
    assert!(!two.join("stack.erofs").exists(), "it is no chain yet");
    commit("one", None);
    commit("two", Some("one done"));
    snapshotter.kept_layers().unwrap().make_ready("two done", merged).unwrap();
    check("two", &made, &two, true, &["one", "two"]);

    // On layers that are there, and then not on those that it was made for.
    for (name, parent, shown) in
        [("three", "two done", &["one", "three", "two"][..]), ("four", "one done", &["four", "one"][..])]
    {
        let directory = extract(name);
        let merged = merge(&[name], Some("two done"));
        let made = ahead(&directory);
        commit(name, Some(parent));
        snapshotter.kept_layers().unwrap().make_ready(&format!("{name} done"), merged).unwrap();
        check(name, &made, &directory, parent == "two done", shown);
    }

    // One of its layers was mended since: it may be made of what was wrong.
    let five = extract("five");
    let merged = merge(&["five"], Some("two done"));
    let made = ahead(&five);
    snapshotter.kept_layers().unwrap().mended("one done").unwrap();
    commit("five", Some("two done"));
    snapshotter.kept_layers().unwrap().make_ready("five done", merged).unwrap();
    check("five", &made, &five, false, &["five", "one", "two"]);

    // Nobody uses it, as after a kill: there is nothing of it even before it is dropped.
    let six = extract("six");
    let before = names(&six);
    let merged = merge(&["six"], Some("two done"));
    assert!(merged.is_some());
    assert_eq!(names(&six), before);
    drop(merged);
    // It cannot be made: the snapshot was written to.
    fs::write(six.join("fs/own"), "x").unwrap();
    assert!(merge(&["six"], Some("two done")).is_none());
    assert!(merge(&[], Some("two done")).is_none());
}

/// The trees of layers that were just stored are cached: the merged image equals that of their images byte for byte.
#[test]
fn layers_merged_from_cached_trees_equal_those_merged_from_images() {
    if !is_root() {
        return;
    }
    let dir = Place::new();
    let snapshotter = open_archives(dir.path());
    for name in ["low", "high"] {
        let tree = TempDir::new().unwrap();
        let at = |path: &str| tree.path().join(path);
        fs::create_dir_all(at("both/deep")).unwrap();
        fs::write(at("both/file"), name).unwrap();
        fs::write(at("both/empty"), "").unwrap();
        fs::hard_link(at("both/file"), at(&format!("both/deep/{name}"))).unwrap();
        std::os::unix::fs::symlink("both/file", at(&format!("{name} link"))).unwrap();
        fs::write(at(if name == "low" { "gone" } else { ".wh.gone" }), "").unwrap();
        let tar =
            std::process::Command::new("tar").arg("-C").arg(tree.path()).args(["-cf", "-", "."]).output();
        let tar = tar.unwrap().stdout;
        snapshotter.prepare(name, None, Labels::new()).unwrap();
        let files = snapshotter.kept_layers().unwrap().files_for(name).unwrap().unwrap().merged_with_others();
        let store = |new: NewLayer<'_>| diff::store(&tar[..], diff::Limits::default(), new.data, None);
        files.write(|new| store(new).map(|stored| stored.tree)).unwrap();
    }
    let kept = snapshotter.kept_layers().unwrap();
    let merged = kept.merge_ahead(&["low".to_owned(), "high".to_owned()], None).unwrap();
    assert!(merged.is_some());
    for (name, parent) in [("low", None), ("high", Some("low done".to_owned()))] {
        let options = CommitOptions { labels: Labels::new(), parent };
        snapshotter.commit(&format!("{name} done"), name, options).unwrap();
    }
    kept.make_ready("high done", merged).unwrap();
    assert!(dir.path().join("overlay/2/stack.erofs").exists());
    assert!(!kept.mend_derived("high done").unwrap());
    let mounts = snapshotter.view("look", Some("high done"), Labels::new()).unwrap();
    with_mounted(&mounts, |tree| {
        assert_eq!(names(tree), ["both", "high link", "low link"]);
        assert_eq!(names(&tree.join("both/deep")), ["high", "low"]);
        assert_eq!(fs::read_to_string(tree.join("low link")).unwrap(), "high");
        assert_eq!(fs::read_to_string(tree.join("both/deep/low")).unwrap(), "low");
    });
}

/// Layers of one image are shown by one image of all of them: what each is by itself is only read, and rarely.
#[test]
fn the_images_of_layers_that_are_merged_are_packed() {
    if !is_root() {
        return;
    }
    let fill = |name: &'static str| {
        move |tree: &Path| {
            for file in 0..2000 {
                fs::write(tree.join(format!("{name}-{file}")), file.to_string()).unwrap();
            }
            fs::write(tree.join("both"), name).unwrap();
            if name == "top" {
                fs::write(tree.join(".wh.base-7"), "").unwrap();
            }
        }
    };
    let trees = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    fill("base")(trees[0].path());
    fill("top")(trees[1].path());
    let make = |dir: &Path, is_packed: bool| {
        let snapshotter = open_archives(dir);
        for (at, name, parent) in [(0, "base", None), (1, "top", Some("base done".to_owned()))] {
            snapshotter.prepare(name, None, Labels::new()).unwrap();
            let files = snapshotter.kept_layers().unwrap().files_for(name).unwrap().unwrap();
            let files = if is_packed { files.merged_with_others() } else { files };
            store_tree(&files, trees[at].path());
            let options = CommitOptions { labels: Labels::new(), parent };
            snapshotter.commit(&format!("{name} done"), name, options).unwrap();
        }
        snapshotter.kept_layers().unwrap().make_ready("top done", None).unwrap();
        snapshotter
    };
    let (plain, dir) = (Place::new(), Place::new());
    let path = |dir: &Place, name: &str| dir.path().join("overlay").join(name);
    let older = make(plain.path(), false);
    let snapshotter = make(dir.path(), true);
    let image = fs::read(path(&plain, "1/layer.erofs")).unwrap();
    let packed = path(&dir, "1/layer.erofs.zst");
    assert!(fs::metadata(&packed).unwrap().len() * 4 < image.len() as u64);
    assert!(!path(&dir, "1/layer.erofs").exists());
    let mut unpacked = Vec::new();
    diff::Decoder::new(fs::File::open(&packed).unwrap()).unwrap().read_to_end(&mut unpacked).unwrap();
    assert!(unpacked == image, "it is the same image");
    let deletes = |dir: &Place| fs::read(path(dir, "2/layer.erofs.zst")).unwrap();
    assert!(deletes(&plain) == deletes(&dir), "one that deletes something is never shown by itself");
    assert!(!path(&plain, "2/layer.erofs").exists());
    // It was not always so: what is there from before is found to be wrong, and made anew.
    let mut image = Vec::new();
    diff::Decoder::new(&deletes(&plain)[..]).unwrap().read_to_end(&mut image).unwrap();
    fs::write(path(&plain, "2/layer.erofs"), image).unwrap();
    fs::remove_file(path(&plain, "2/layer.erofs.zst")).unwrap();
    let files = older.kept_layers().unwrap().files_of("top done").unwrap().unwrap();
    let tree = diff::reread(&files.open_data().unwrap(), &archive_digest(&files)).unwrap();
    assert!(!files.is_image_of(&tree).unwrap());
    files.replace_image(&tree).unwrap();
    assert!(deletes(&plain) == deletes(&dir) && !path(&plain, "2/layer.erofs").exists());
    let merged = |dir: &Place| fs::read(path(dir, "2/stack.erofs")).unwrap();
    assert!(merged(&dir) == merged(&plain), "and gives the same merged one");

    // One of them alone is shown too, by an image that is made for it.
    for (key, of, count) in [("all", "top done", 4000), ("below", "base done", 2001)] {
        let mounts = snapshotter.view(key, Some(of), Labels::new()).unwrap();
        with_mounted(&mounts, |tree| {
            assert_eq!(fs::read_dir(tree).unwrap().count(), count);
            assert_eq!(fs::read_to_string(tree.join("both")).unwrap(), of.split(' ').next().unwrap());
            assert_eq!(fs::read_to_string(tree.join("base-1999")).unwrap(), "1999");
        });
    }
    assert!(path(&dir, "1/stack.erofs").exists());

    // Damage that shows without reading it is named, and all other is found by comparing.
    let files = snapshotter.kept_layers().unwrap().files_of("top done").unwrap().unwrap();
    let right = fs::read(&files.image).unwrap();
    let tree = || diff::reread(&files.open_data().unwrap(), &archive_digest(&files)).unwrap();
    assert!(files.is_image_of(&tree()).unwrap());
    for at in [0, 9, 16, 40, right.len() / 2, right.len() - 1] {
        let mut wrong = right.clone();
        wrong[at] ^= 1;
        fs::write(&files.image, &wrong).unwrap();
        assert!(!files.is_image_of(&tree()).unwrap(), "byte {at}");
    }
    fs::remove_file(&files.image).unwrap();
    let gone = snapshotter.kept_layers().unwrap().files_of("top done").unwrap().unwrap();
    assert_eq!(gone.image, files.image, "it is made anew as it was");
    assert_eq!(gone.look().unwrap_err().kind(), ErrorKind::DataLoss);
    for len in [0, 10, 300, right.len() - 1] {
        fs::write(&files.image, &right[..len]).unwrap();
        assert_eq!(files.look().unwrap_err().kind(), ErrorKind::DataLoss, "{len} bytes");
        assert!(!files.is_image_of(&tree()).unwrap());
    }
    let kept = path(&dir, "2/stack.erofs");
    let stack = fs::read(&kept).unwrap();
    snapshotter.kept_layers().unwrap().mended("top done").unwrap();
    let error = snapshotter.prepare("run", Some("top done"), Labels::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss, "{}", error.chain());
    assert!(error.chain().contains("overlay/2/layer.erofs.zst"), "{}", error.chain());
    files.replace_image(&tree()).unwrap();
    assert!(fs::read(&files.image).unwrap() == right, "still packed");
    snapshotter.kept_layers().unwrap().mended("top done").unwrap();
    snapshotter.prepare("run", Some("top done"), Labels::new()).unwrap();
    assert!(fs::read(&kept).unwrap() == stack);
}

/// The digest of the archive that a layer is kept as: those of tar end at a whole block.
fn archive_digest(files: &LayerFiles) -> types::Digest {
    types::Digest::of(&fs::read(&files.data).unwrap())
}

/// Directories of an older daemon, layers of this one, and what a client unpacked by itself on top.
#[test]
fn forms_are_mixed_in_one_chain() {
    if !is_root() {
        return;
    }
    let dir = Place::new();
    layer(&*open_overlay(dir.path()), "old", None, |tree| {
        for name in ["etc", "var"] {
            fs::create_dir(tree.join(name)).unwrap();
            fs::write(tree.join(name).join("old"), "old").unwrap();
        }
        fs::set_permissions(tree.join("etc"), fs::Permissions::from_mode(0o751)).unwrap();
        chown(tree.join("etc"), Some(7), Some(8)).unwrap();
        rustix::fs::setxattr(tree.join("etc"), "trusted.kept", b"1", rustix::fs::XattrFlags::empty())
            .unwrap();
    });
    let snapshotter = open_archives(dir.path());
    for (name, parent) in [("one", "old"), ("two", "one done")] {
        snapshotter.prepare(name, None, Labels::new()).unwrap();
        let files = snapshotter.kept_layers().unwrap().files_for(name).unwrap().unwrap();
        // Of `etc` it says only what is in it, and of `var` that nothing below is.
        let mut tree = erofs::Tree::new(erofs::Device { tag: String::new(), len: 1024 });
        let metadata =
            erofs::Metadata { mode: 0o640, uid: 1, gid: 2, mtime: (3, 4), attributes: &Default::default() };
        let kind = erofs::EntryKind::File { len: 3, at: 512 };
        tree.add(&erofs::Entry { path: format!("etc/{name}").as_bytes(), kind, metadata }).unwrap();
        if name == "one" {
            tree.make_opaque(b"var").unwrap();
        } else {
            tree.white_out(b"etc/old").unwrap();
        }
        files
            .write(|new| {
                std::os::unix::fs::FileExt::write_all_at(new.data, name.as_bytes(), 512).unwrap();
                new.data.set_len(1024).unwrap();
                Ok(tree)
            })
            .unwrap();
        let options = CommitOptions { labels: Labels::new(), parent: Some(parent.into()) };
        snapshotter.commit(&format!("{name} done"), name, options).unwrap();
    }
    let mounts = snapshotter.prepare("client", Some("two done"), Labels::new()).unwrap();
    assert_eq!(lower_of(&mounts).len(), 2, "{mounts:?}");
    with_mounted(&mounts, |tree| {
        let etc = fs::metadata(tree.join("etc")).unwrap();
        assert_eq!((etc.mode() & 0o7777, etc.uid(), etc.gid()), (0o751, 7, 8), "as the layer below says");
        let mut value = [0; 8];
        assert_eq!(rustix::fs::getxattr(tree.join("etc"), "trusted.kept", &mut value[..]).unwrap(), 1);
        assert_eq!(fs::read_to_string(tree.join("etc/one")).unwrap(), "one");
        assert_eq!(fs::read_to_string(tree.join("etc/two")).unwrap(), "two");
        assert!(!tree.join("etc/old").exists(), "deleted");
        assert_eq!(fs::read_dir(tree.join("var")).unwrap().count(), 0, "nothing of below");
        fs::write(tree.join("etc/client"), "c").unwrap();
    });
    snapshotter.commit("client done", "client", CommitOptions::default()).unwrap();
    let mounts = snapshotter.view("look", Some("client done"), Labels::new()).unwrap();
    assert_eq!(lower_of(&mounts).len(), 3);
    with_mounted(&mounts, |tree| {
        assert_eq!(fs::read_dir(tree.join("etc")).unwrap().count(), 3);
    });
}

/// The files in which the snapshot of these mounts stores a layer.
fn files_for(snapshotter: &dyn Snapshotter, mounts: &[Mount]) -> LayerFiles {
    match snapshotter.kept_layers().unwrap().target(mounts).unwrap() {
        Some(Target::Layer(files)) => files,
        other => panic!("{other:?}"),
    }
}

fn names(tree: &Path) -> Vec<String> {
    let entries = fs::read_dir(tree).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// As clients unpack: layer upon layer, each known by the mounts that were answered.
#[test]
fn a_layer_is_taken_whole_for_the_mounts_of_a_new_snapshot() {
    if !is_root() {
        return;
    }
    let dir = Place::new();
    let snapshotter = open_archives(dir.path());
    let mut parent = None;
    for name in ["one", "two"] {
        let mounts = snapshotter.prepare("extract", parent, Labels::new()).unwrap();
        store(&files_for(&*snapshotter, &mounts), |tree| {
            fs::write(tree.join(name), name).unwrap();
            fs::set_permissions(tree, fs::Permissions::from_mode(0o711)).unwrap();
            if name == "two" {
                // What no directory can be told: a layer's own word for a deletion.
                fs::write(tree.join(".wh.one"), "").unwrap();
            }
        });
        snapshotter.commit(name, "extract", CommitOptions::default()).unwrap();
        parent = Some(name);
    }
    let mounts = snapshotter.view("look", Some("two"), Labels::new()).unwrap();
    assert_eq!(lower_of(&mounts).len(), 1, "{mounts:?}");
    with_mounted(&mounts, |tree| {
        assert_eq!(names(tree), ["two"]);
        assert_eq!(fs::metadata(tree).unwrap().mode() & 0o7777, 0o711);
    });
}

/// Whether a layer for the snapshot of these mounts goes onto the tree of just these.
fn is_tree_of(snapshotter: &dyn Snapshotter, mounts: &[Mount]) -> bool {
    let target = snapshotter.kept_layers().unwrap().target(mounts).unwrap();
    matches!(target, Some(Target::Tree(tree)) if tree == mounts)
}

/// A snapshot that is not new any more, or not asked for by its own mounts, gets files one by one.
#[test]
fn only_new_snapshots_take_layers_whole() {
    if !is_root() {
        return;
    }
    let dir = Place::new();
    let snapshotter = open_archives(dir.path());
    let mut mounts = snapshotter.prepare("written", None, Labels::new()).unwrap();
    with_mounted(&mounts, |tree| fs::write(tree.join("a"), "a").unwrap());
    assert!(is_tree_of(&*snapshotter, &mounts), "it holds something");
    mounts[0].options = vec!["ro".into(), "rbind".into()];
    assert!(snapshotter.kept_layers().unwrap().target(&mounts).unwrap().is_none(), "not as it was answered");
    mounts[0].source = "/tmp".into();
    assert!(snapshotter.kept_layers().unwrap().target(&mounts).unwrap().is_none(), "nothing of ours");

    layer(&*snapshotter, "base", None, |tree| fs::write(tree.join("base"), "b").unwrap());
    let view = snapshotter.view("view", Some("base"), Labels::new()).unwrap();
    assert!(snapshotter.kept_layers().unwrap().target(&view).unwrap().is_none(), "nobody writes to a view");
    let mounts = snapshotter.prepare("new", Some("base"), Labels::new()).unwrap();
    let other = Place::new();
    assert!(
        open_archives(other.path()).kept_layers().unwrap().target(&mounts).unwrap().is_none(),
        "another's"
    );
    files_for(&*snapshotter, &mounts);
}

#[test]
fn a_second_layer_for_one_snapshot_at_the_same_time_is_refused() {
    let dir = Place::new();
    let snapshotter = open_archives(dir.path());
    snapshotter.prepare("one", None, Labels::new()).unwrap();
    let files = snapshotter.kept_layers().unwrap().files_for("one").unwrap().unwrap();
    let mut second = None;
    let first = files.write(|new| {
        use std::os::unix::fs::FileExt;
        second = Some(files.write(|_| unreachable!("somebody is at it")));
        new.data.write_all_at(b"kept", 0).unwrap();
        Err(types::Error::data_loss("broken off"))
    });
    assert_eq!(first.unwrap_err().kind(), ErrorKind::DataLoss);
    assert_eq!(second.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    // And what is left of the first is in nobody's way.
    assert!(!files.data.exists() && !files.image.exists());
    let files = snapshotter.kept_layers().unwrap().files_for("one").unwrap().unwrap();
    store(&files, |tree| fs::write(tree.join("file"), "second").unwrap());
    // One who asked for the files before does not replace a layer that is there.
    let late = files.write(|_| unreachable!("there is one"));
    assert_eq!(late.unwrap_err().kind(), ErrorKind::FailedPrecondition);
    files.look().unwrap();
}

/// As a pull does with those that it unpacks its layers into: a client that finds them can apply nothing to them, which
/// would be committed by the name of the pull's layer.
#[test]
fn a_claimed_snapshot_takes_no_layer_of_others() {
    if !is_root() {
        return;
    }
    for open in [open_archives, open_overlay] {
        let dir = Place::new();
        let snapshotter = open(dir.path());
        let layers = || snapshotter.kept_layers().unwrap();
        let refused = |mounts: &[Mount]| {
            let error = layers().target(mounts).map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        };
        let prepare = |parent: Option<&str>| {
            let mounts = snapshotter.prepare("own", parent, Labels::new()).unwrap();
            assert!(layers().target(&mounts).unwrap().is_some(), "nobody has claimed it");
            layers().claim("own").unwrap();
            refused(&mounts);
            mounts
        };
        let mounts = prepare(None);
        match layers().files_for("own").unwrap() {
            Some(files) => store(&files, |tree| fs::write(tree.join("file"), "own").unwrap()),
            None => with_mounted(&mounts, |tree| fs::write(tree.join("file"), "own").unwrap()),
        }
        refused(&mounts);
        snapshotter.commit("done", "own", CommitOptions::default()).unwrap();
        for _ in 0..2 {
            prepare(Some("done"));
            snapshotter.remove("own").unwrap();
        }
        // Somebody was faster.
        prepare_with(&*snapshotter, "late", None, |tree| fs::write(tree.join("file"), "foreign").unwrap());
        assert_eq!(layers().claim("late").unwrap_err().kind(), ErrorKind::FailedPrecondition);
        assert_eq!(layers().claim("nosuch").unwrap_err().kind(), ErrorKind::NotFound);
        // Who asked before the claim writes after it.
        let mounts = snapshotter.prepare("asked", None, Labels::new()).unwrap();
        let asked = layers().target(&mounts).unwrap().expect("nobody has claimed it");
        layers().claim("asked").unwrap();
        let write = |tree: &Path| fs::write(tree.join("file"), "foreign").unwrap();
        match asked {
            Target::Layer(files) => store(&files, write),
            Target::Tree(mounts) => with_mounted(&mounts, write),
        }
        let found = layers().files_for("asked").map(drop).unwrap_err();
        assert_eq!(found.kind(), ErrorKind::FailedPrecondition);
    }
}

/// Layers applied on each other, and files written by hand, in one snapshot.
#[test]
fn files_written_after_a_layer_was_stored_lie_on_top_of_it() {
    if !is_root() {
        return;
    }
    let dir = Place::new();
    let snapshotter = open_archives(dir.path());
    layer(&*snapshotter, "base", None, |tree| fs::write(tree.join("base"), "b").unwrap());
    let bare = snapshotter.prepare("mixed", None, Labels::new()).unwrap();
    store(&files_for(&*snapshotter, &bare), |tree| {
        for name in ["kept", "gone"] {
            fs::write(tree.join(name), name).unwrap();
        }
        fs::set_permissions(tree, fs::Permissions::from_mode(0o750)).unwrap();
        chown(tree, Some(5), Some(6)).unwrap();
    });
    let Some(Target::Tree(mounts)) = snapshotter.kept_layers().unwrap().target(&bare).unwrap() else {
        panic!("it has a layer")
    };
    assert_eq!(mounts, snapshotter.mounts("mixed").unwrap());
    let before = snapshotter.usage("mixed").unwrap();
    with_mounted(&mounts, |tree| {
        assert_eq!(names(tree), ["gone", "kept"]);
        let root = fs::metadata(tree).unwrap();
        assert_eq!((root.mode() & 0o7777, root.uid(), root.gid()), (0o750, 5, 6), "as the layer's");
        fs::remove_file(tree.join("gone")).unwrap();
        fs::write(tree.join("written"), "w").unwrap();
    });
    let usage = snapshotter.usage("mixed").unwrap();
    assert!(usage.inodes > before.inodes && usage.bytes > before.bytes, "{before:?} {usage:?}");
    // It gets what lies below it only now, after it was shown without.
    let options = CommitOptions { labels: Labels::new(), parent: Some("base".into()) };
    snapshotter.commit("mixed done", "mixed", options).unwrap();
    assert_eq!(snapshotter.usage("mixed done").unwrap(), usage);
    let look = |snapshotter: &dyn Snapshotter, key: &str| {
        let mounts = snapshotter.view(key, Some("mixed done"), Labels::new()).unwrap();
        with_mounted(&mounts, |tree| {
            assert_eq!(names(tree), ["base", "kept", "written"]);
            assert_eq!(fs::metadata(tree).unwrap().mode() & 0o7777, 0o750);
        });
    };
    look(&*snapshotter, "look");
    // And as a part of a longer chain, and after a reboot.
    layer(&*snapshotter, "top", Some("mixed done"), |tree| fs::write(tree.join("top"), "t").unwrap());
    let mounts = snapshotter.view("all", Some("top"), Labels::new()).unwrap();
    with_mounted(&mounts, |tree| assert_eq!(names(tree), ["base", "kept", "top", "written"]));
    drop(snapshotter);
    unmount_below(dir.path());
    look(&*open_archives(dir.path()), "again");
}

#[test]
fn mounts_come_back_after_a_reboot_and_stay_after_a_crash() {
    if !is_root() {
        return;
    }
    let dir = Place::new();
    let answered = {
        let snapshotter = open_archives(dir.path());
        layer(&*snapshotter, "base", None, |tree| fs::write(tree.join("a"), "a").unwrap());
        layer(&*snapshotter, "top", Some("base"), |tree| fs::write(tree.join("b"), "b").unwrap());
        snapshotter.prepare("run", Some("top"), Labels::new()).unwrap()
    };
    let look = |answered: &[Mount]| {
        with_mounted(answered, |tree| assert_eq!(fs::read_to_string(tree.join("b")).unwrap(), "b"));
    };
    // The daemon died; what it mounted is there, and its successor takes it for what it is.
    let snapshotter = open_archives(dir.path());
    look(&answered);
    let mounts =
        || linux::mount::mount_points().unwrap().iter().filter(|at| at.path.starts_with(dir.path())).count();
    let before = mounts();
    assert_eq!(snapshotter.mounts("run").unwrap(), answered);
    assert_eq!(mounts(), before, "mounted once");
    // The machine died, while the merged image was written.
    drop(snapshotter);
    unmount_below(dir.path());
    let stack = dir.path().join("overlay/2/stack.erofs");
    fs::rename(&stack, stack.with_extension("new")).unwrap();
    let snapshotter = open_archives(dir.path());
    assert_eq!(snapshotter.mounts("run").unwrap(), answered);
    look(&answered);
    // And a daemon that makes directories has the same tree.
    drop(snapshotter);
    unmount_below(dir.path());
    assert_eq!(open_overlay(dir.path()).mounts("run").unwrap(), answered);
    look(&answered);
}

#[test]
fn removal_takes_mounts_and_files_with_it() {
    if !is_root() {
        return;
    }
    let dir = Place::new();
    let snapshotter = open_archives(dir.path());
    layer(&*snapshotter, "base", None, |tree| fs::write(tree.join("a"), "a").unwrap());
    layer(&*snapshotter, "top", Some("base"), |tree| fs::write(tree.join("b"), "b").unwrap());
    let mounts = snapshotter.view("look", Some("top"), Labels::new()).unwrap();
    let user = linux::mount::open_mounts(&mounts).unwrap();
    for key in ["look", "top", "base"] {
        snapshotter.remove(key).unwrap();
    }
    snapshotter.cleanup().unwrap();
    assert!(snapshotter.reclaim(&|| true).unwrap());
    assert_eq!(fs::read_dir(dir.path().join("overlay/removed")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(dir.path().join("overlay")).unwrap().count(), 1);
    assert!(linux::mount::mount_points().unwrap().iter().all(|at| !at.path.starts_with(dir.path())));
    let file = rustix::fs::openat(&user, "b", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
    assert_eq!(std::io::read_to_string(fs::File::from(file)).unwrap(), "b", "users keep what they see");
}

#[test]
fn a_record_of_spans_lives_as_long_as_its_layer() {
    if !is_root() {
        return;
    }
    let dir = Place::new();
    let snapshotter = open_archives(dir.path());
    let noise: Vec<u8> = (0..3_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    layer(&*snapshotter, "base", None, |tree| fs::write(tree.join("a"), noise).unwrap());
    let files = snapshotter.kept_layers().unwrap().files_of("base").unwrap().unwrap();
    let record = files.open_record().unwrap().expect("a record was wanted");
    let spans = diff::spans::Spans::read(&record).unwrap();
    assert!(spans.plain_len() <= fs::metadata(&files.data).unwrap().len());
    let on_disk = [&files.data, &files.image, &files.record].map(|path| {
        let metadata = fs::metadata(path).unwrap();
        metadata.blocks() * 512
    });
    assert_eq!(snapshotter.usage("base").unwrap().bytes, on_disk.iter().sum::<u64>());

    // A layer that is stored anew gets its record anew, or keeps the one it has.
    let replace = |recorded: &[u8]| {
        files
            .replace(|new| {
                use std::io::Write;
                new.record.expect("it is wanted").write_all(recorded).unwrap();
                let old = fs::File::open(&files.data).unwrap();
                diff::store(old, diff::Limits::default(), new.data, None).map(|stored| stored.tree)
            })
            .unwrap();
    };
    replace(b"");
    assert!(diff::spans::Spans::read(&files.open_record().unwrap().unwrap()).unwrap() == spans);
    replace(b"another");
    assert_eq!(fs::read(&files.record).unwrap(), b"another");
    files.look().unwrap();
    // The layer does not need it.
    files.remove_record().unwrap();
    files.look().unwrap();
    assert!(files.open_record().unwrap().is_none());
    replace(b"again");
    assert_eq!(fs::read_dir(files.data.parent().unwrap()).unwrap().count(), 3);

    snapshotter.remove("base").unwrap();
    snapshotter.cleanup().unwrap();
    assert!(snapshotter.reclaim(&|| true).unwrap());
    assert!(!files.record.exists());
}

#[test]
fn concurrent_mounts_of_one_chain_share_one_mount() {
    if !is_root() {
        return;
    }
    let dir = Place::new();
    let snapshotter = open_archives(dir.path());
    layer(&*snapshotter, "base", None, |tree| fs::write(tree.join("a"), "a").unwrap());
    layer(&*snapshotter, "top", Some("base"), |tree| fs::write(tree.join("b"), "b").unwrap());
    std::thread::scope(|scope| {
        for user in 0..16 {
            let snapshotter = &snapshotter;
            scope.spawn(move || {
                let mounts = snapshotter.prepare(&format!("run{user}"), Some("top"), Labels::new()).unwrap();
                with_mounted(&mounts, |tree| assert!(tree.join("a").exists() && tree.join("b").exists()));
            });
        }
    });
    let points = linux::mount::mount_points().unwrap();
    assert_eq!(points.iter().filter(|at| at.path.starts_with(dir.path())).count(), 1);
}

#[test]
fn a_damaged_image_is_named_and_nothing_is_shown() {
    if !is_root() {
        return;
    }
    let dir = Place::new();
    let snapshotter = open_archives(dir.path());
    let image = |id: u32| dir.path().join(format!("overlay/{id}/layer.erofs"));
    prepare_with(&*snapshotter, "cut", None, |tree| fs::write(tree.join("a"), "a").unwrap());
    let file = fs::File::options().write(true).open(image(1)).unwrap();
    file.set_len(file.metadata().unwrap().len() - 512).unwrap();
    let error = snapshotter.commit("x", "cut", CommitOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss, "{error:?}");

    layer(&*snapshotter, "base", None, |tree| fs::write(tree.join("a"), "a").unwrap());
    layer(&*snapshotter, "top", Some("base"), |tree| fs::write(tree.join("b"), "b").unwrap());
    fs::write(image(3), vec![0; 4096]).unwrap();
    let error = snapshotter.prepare("run", Some("top"), Labels::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss);
    assert!(error.chain().contains("overlay/3/layer.erofs"), "{}", error.chain());
    assert_eq!(snapshotter.stat("run").unwrap_err().kind(), ErrorKind::NotFound);
}

/// Paths longer than the kernel takes as options of a mount.
#[test]
fn paths_longer_than_a_mount_option_are_mounted() {
    if !is_root() {
        return;
    }
    let dir = Place::new();
    let deep = dir.path().join("d".repeat(200)).join("e".repeat(100));
    fs::create_dir_all(&deep).unwrap();
    let snapshotter = open_archives(&deep);
    layer(&*snapshotter, "base", None, |tree| fs::write(tree.join("a"), "a").unwrap());
    let mounts = snapshotter.view("look", Some("base"), Labels::new()).unwrap();
    with_mounted(&mounts, |tree| assert_eq!(fs::read_to_string(tree.join("a")).unwrap(), "a"));
}

#[test]
fn a_probe_that_cannot_be_written_is_not_unimplemented() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("probe.tar")).unwrap();
    let error = snapshot::probe(dir.path(), Backing::Files).unwrap_err();
    assert_ne!(error.kind(), ErrorKind::Unimplemented, "{}", error.chain());
}
