//! Layers with bit rot on disk: detected, refused, and repaired.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use testkit::{Daemon, Registry, images};

const ARCHIVES: &str = "[snapshots]\nlayers = \"archives\"\n";

/// The one layer of the image on disk: its archive and its image.
fn layer(daemon: &Daemon) -> (PathBuf, PathBuf) {
    let trees = fs::read_dir(daemon.root().join("snapshots/overlayfs")).expect("a directory of trees");
    let mut folders = trees.map(|entry| entry.expect("an entry").path());
    let folder = folders.find(|folder| folder.join("layer.erofs").exists()).expect("a layer");
    (folder.join("data.tar"), folder.join("layer.erofs"))
}

/// Turns a bit around, as a disk would, behind the back of everybody.
fn rot(path: &std::path::Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).expect("a file of ours");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("bytes");
    file.write_all_at(&[byte[0] ^ 0x40], at).expect("a writable file");
}

fn truncate(path: &std::path::Path, len: u64) {
    fs::File::options().write(true).open(path).expect("a file of ours").set_len(len).expect("a length");
}

#[test]
fn a_layer_that_rotted_is_stored_anew() {
    let registry = Registry::start();
    let reference = registry.push(&images::busybox(), images::TAG, "rotten");
    let daemon = Daemon::start_with(&[], ARCHIVES);
    daemon.hoist(["pull", "-q", &reference]).ok();
    let (data, image) = layer(&daemon);
    let right = (fs::read(&data).expect("an archive"), fs::read(&image).expect("an image"));
    let good = daemon.hoist(["image", "verify"]).ok();
    assert!(good.stdout.contains("1 unpacked layers") && good.stdout.contains("1 good, 0 mended"), "{good}");

    // Somebody uses the layer, and goes on to see what it saw.
    daemon.hoist(["run", "-d", "--name", "user", &reference, "sleep", "1000"]).ok();
    assert_eq!(daemon.hoist(["exec", "user", "echo", "still"]).ok().text(), "still");
    let greet = ["run", "--rm", reference.as_str(), "echo", "well"];
    let check = |what: &str, from: &str| {
        let mended = daemon.hoist(["image", "verify", &reference]).ok();
        let row = mended.stdout.lines().find(|line| line.contains("unpacked layer")).unwrap_or_default();
        assert!(row.contains("mended") && row.contains(from), "{what}: {mended}");
        let (data, image) = layer(&daemon);
        assert!(fs::read(data).expect("an archive") == right.0, "{what}");
        assert!(fs::read(image).expect("an image") == right.1, "{what}");
        assert_eq!(daemon.hoist(greet).ok().text(), "well", "{what}");
        let again = daemon.hoist(["image", "verify"]).ok();
        assert!(again.stdout.ends_with("1 good, 0 mended, 0 broken\n"), "{what}: {again}");
    };
    rot(&data, right.0.len() as u64 / 2);
    check("a bit of the archive", "its blob");
    assert_eq!(daemon.hoist(["exec", "user", "echo", "still"]).ok().text(), "still");
    rot(&image, right.1.len() as u64 - 700);
    check("a bit of the image", "its archive");
    // Nobody needs the record of spans; a wrong one is still not kept.
    let record = image.with_extension("spans");
    let recorded = fs::read(&record).expect("a record");
    for at in [0, recorded.len() as u64 - 1] {
        rot(&record, at);
        assert_eq!(daemon.hoist(greet).ok().text(), "well");
        check("a bit of the record", "its blob");
        assert!(fs::read(&record).expect("a record") == recorded);
    }
    // What ends half way is told as what it is: the name of the image that is to come is taken.
    let taken = image.with_extension("new");
    fs::create_dir(&taken).expect("a directory");
    rot(&record, 0);
    check("a record that cannot be made again", "without the record of its spans: store it from its blob: ");
    assert!(!record.exists());
    fs::remove_dir(&taken).expect("a directory");
    rot(&data, 1000);
    check("an archive without a record", "its blob");
    assert!(fs::read(&record).expect("a record") == recorded);

    // What can be seen without reading is refused before anything runs, and named.
    truncate(&data, right.0.len() as u64 - 512);
    let refused = daemon.hoist(greet).expect_code(125).expect_stderr("data.tar has ");
    refused.expect_stderr("hoist image verify");
    let found = daemon.hoist(["system", "check"]).expect_code(1);
    assert!(found.stdout.contains("damaged: layer sha256:"), "{found}");
    check("an archive that was cut off", "its blob");
    fs::remove_file(&image).expect("an image");
    daemon.hoist(greet).expect_code(125).expect_stderr("layer.erofs is gone");
    check("an image that is gone", "its archive");
    fs::remove_file(&data).expect("an archive");
    daemon.hoist(greet).expect_code(125).expect_stderr("data.tar is gone");
    check("an archive that is gone", "its blob");

    // So is a pull again, and a repair of the whole.
    truncate(&image, 512);
    daemon.hoist(["pull", "-q", &reference]).ok();
    assert_eq!(daemon.hoist(greet).ok().text(), "well");
    fs::remove_file(&data).expect("an archive");
    fs::remove_file(&image).expect("an image");
    let repaired = daemon.hoist(["system", "check", "--repair"]).ok();
    assert!(repaired.stdout.contains("mended: layer sha256:"), "{repaired}");
    assert_eq!(daemon.hoist(greet).ok().text(), "well");
    daemon.hoist(["system", "check"]).ok();

    // The blob is gone too: the registry has it.
    let blobs = daemon.root().join("content/blobs/sha256");
    let largest = fs::read_dir(blobs).expect("blobs").map(|blob| blob.expect("a blob").path());
    let blob = largest.max_by_key(|blob| blob.metadata().map_or(0, |blob| blob.len())).expect("a layer");
    let digest = format!("sha256:{}", blob.file_name().and_then(|name| name.to_str()).expect("hex"));
    daemon.ctr(["content", "rm", &digest]).ok();
    rot(&record, 0);
    check("a record that cannot be made again", "without the record");
    assert!(!record.exists());
    rot(&data, 1000);
    check_from_registry(&daemon, &reference, &registry);
    drop(registry);
    rot(&data, 2000);
    let broken = daemon.hoist(["image", "verify", &reference]).expect_code(1);
    assert!(broken.stdout.contains("1 broken") && broken.stdout.contains("its blob is not kept"), "{broken}");
}

fn check_from_registry(daemon: &Daemon, reference: &str, registry: &Registry) {
    let mended = daemon.hoist(["image", "verify", reference]).ok();
    let row = mended.stdout.lines().find(|line| line.contains("unpacked layer")).unwrap_or_default();
    assert!(row.contains("mended") && row.contains(&registry.host()), "{mended}");
    assert_eq!(daemon.hoist(["run", "--rm", reference, "echo", "well"]).ok().text(), "well");
}

/// Nothing says what the files of a directory should hold, and so is said; a file that is gone is seen.
#[test]
fn of_directories_the_files_are_counted() {
    let registry = Registry::start();
    let reference = registry.push(&images::busybox(), images::TAG, "directories");
    let daemon = Daemon::start_with(&[], "[snapshots]\nlayers = \"directories\"\n");
    daemon.hoist(["pull", "-q", &reference]).ok();
    let verified = daemon.hoist(["image", "verify"]).ok();
    let said = "1 unpacked layers are directories: their files were counted, nothing says what is in them\n";
    assert!(verified.stdout.ends_with(said) && !verified.stdout.contains("unpacked layers of"), "{verified}");
    let rows = daemon.hoist(["image", "verify", "--all"]).ok();
    assert!(
        rows.stdout.lines().any(|row| row.contains("unpacked layer ") && row.contains("not seen")),
        "{rows}"
    );

    let trees = fs::read_dir(daemon.root().join("snapshots/overlayfs")).expect("a directory of trees");
    let mut shells = trees.map(|entry| entry.expect("an entry").path().join("fs/bin/sh"));
    let shell = shells.find(|shell| shell.symlink_metadata().is_ok()).expect("a layer with a shell");
    fs::remove_file(shell).expect("a file of the layer");
    let broken = daemon.hoist(["image", "verify", &reference]).expect_code(1);
    let row = broken.stdout.lines().find(|line| line.contains("unpacked layer")).unwrap_or_default();
    assert!(row.contains("broken") && row.contains("remove the image and pull it again"), "{broken}");
    daemon.hoist(["rmi", &reference]).ok();
    daemon.hoist(["system", "prune", "--force"]).ok();
    daemon.hoist(["pull", "-q", &reference]).ok();
    daemon.hoist(["image", "verify"]).ok();
}

/// The image of several layers is made of them, and made anew.
#[test]
fn what_was_made_of_layers_that_rotted_is_made_anew() {
    let registry = Registry::start();
    let reference = registry.push(&images::hundred_layers(), images::TAG, "stack");
    let daemon = Daemon::start_with(&[], ARCHIVES);
    daemon.hoist(["pull", "-q", &reference]).ok();
    let stacks = || {
        let trees = fs::read_dir(daemon.root().join("snapshots/overlayfs")).expect("a directory of trees");
        let stacks = trees.map(|entry| entry.expect("an entry").path().join("stack.erofs"));
        stacks.filter(|stack| stack.exists()).collect::<Vec<_>>()
    };
    let stack = stacks().pop().expect("the pull made the image of the whole");
    let look = ["run", "--rm", reference.as_str(), "sh", "-c", "ls /layer | wc -l; cat /last"];
    let expected = daemon.hoist(look).ok().stdout;
    assert_eq!(stacks(), [stack.as_path()], "the first container made no other");
    rot(&stack, fs::metadata(&stack).expect("a stack").len() - 1000);
    let mended = daemon.hoist(["image", "verify"]).ok();
    assert!(mended.stdout.contains("the layers of the image"), "{mended}");
    assert_eq!(daemon.hoist(look).ok().stdout, expected);
    let good = daemon.hoist(["image", "verify"]).ok();
    assert!(good.stdout.ends_with(" 0 mended, 0 broken\n"), "{good}");
}
