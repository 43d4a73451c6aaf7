//! Layers that the kernel watches over: on a file system that was made for it, where the kernel knows such.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use kv::Db;
use snapshot::{LayerFiles, LayerForm, Options, Overlay, Snapshotter};
use types::{ErrorKind, Labels};

use crate::suite::Place;

const DISK_LEN: u64 = 64 << 20;

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// An ext4 in a file, made for fs-verity and mounted; none, with the reason, where that cannot be.
fn disk(dir: &Path) -> Option<PathBuf> {
    let (image, at) = (dir.join("disk"), dir.join("mounted"));
    fs::File::create(&image).and_then(|file| file.set_len(DISK_LEN)).unwrap();
    fs::create_dir(&at).unwrap();
    let made = run(Command::new("mkfs.ext4").args(["-q", "-F", "-b", "4096", "-O", "verity"]).arg(&image));
    let mounted = made.and_then(|()| run(Command::new("mount").args(["-o", "loop,rw"]).arg(&image).arg(&at)));
    let probed = mounted.and_then(|()| snapshot::probe_verity(&at).map_err(|error| error.chain()));
    match probed {
        Ok(()) => Some(at),
        Err(why) => {
            println!("skipped: this machine has no fs-verity, or mounts no disk with it: {why}");
            None
        }
    }
}

fn open(root: &Path) -> Overlay {
    let db = Db::open(root.join("meta.db"), kv::Options::default()).unwrap();
    Overlay::open(&root.join("overlay"), db, Options { verity: true, ..Options::new(LayerForm::Archives) })
        .unwrap()
}

/// A layer of one file of this many bytes, read by `read` afterwards.
fn store(snapshotter: &Overlay, name: &str, len: usize) -> LayerFiles {
    snapshotter.prepare("extract", None, Labels::new()).unwrap();
    let files = snapshotter.kept_layers().unwrap().files_for("extract").unwrap().unwrap();
    crate::suite::store(&files, |tree| fs::write(tree.join("file"), vec![7; len]).unwrap());
    snapshotter.commit(name, "extract", Default::default()).unwrap();
    snapshotter.kept_layers().unwrap().files_of(name).unwrap().unwrap()
}

#[test]
fn files_of_layers_are_protected_by_fs_verity() {
    if !stdx::testing::is_root("a mount") {
        return;
    }
    let dir = Place::new();
    let Some(root) = disk(dir.path()) else { return };
    let snapshotter = open(&root);
    let files = store(&snapshotter, "layer", 300_000);
    let record = fs::read_to_string(root.join("overlay/1/verity")).unwrap();
    let names: Vec<_> = record.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(names, ["data.tar", "layer.erofs"]);
    assert!(files.is_as_recorded().unwrap());
    files.look().unwrap();
    let write = fs::File::options().write(true).open(&files.data);
    assert_eq!(write.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied, "nobody changes it");

    // A file in the place of another, of the same bytes or of others.
    let right = fs::read(&files.data).unwrap();
    fs::remove_file(&files.data).unwrap();
    fs::write(&files.data, &right).unwrap();
    assert!(!files.is_as_recorded().unwrap(), "nobody watches over it");
    assert_eq!(files.look().unwrap_err().kind(), ErrorKind::DataLoss, "whoever only looks is told as well");
    snapshotter.kept_layers().unwrap().mended("layer").unwrap();
    assert!(files.is_as_recorded().unwrap(), "it was mended, and is watched over again");
    assert_eq!(fs::read_to_string(root.join("overlay/1/verity")).unwrap(), record, "the same bytes");

    // A bit that turns on the disk is an error, not another byte.
    drop(snapshotter);
    run(Command::new("umount").arg(&root)).unwrap();
    let disk = fs::File::options().read(true).write(true).open(dir.path().join("disk")).unwrap();
    let mut bytes = vec![0; usize::try_from(DISK_LEN).unwrap()];
    disk.read_exact_at(&mut bytes, 0).unwrap();
    let pages = bytes.chunks(4096).enumerate().filter(|(_, page)| page.iter().all(|byte| *byte == 7));
    let rotten: Vec<_> = pages.map(|(number, _)| number).collect();
    assert!(!rotten.is_empty());
    for page in rotten {
        disk.write_all_at(&[8], page as u64 * 4096 + 100).unwrap();
    }
    run(Command::new("mount").args(["-o", "loop,rw"]).arg(dir.path().join("disk")).arg(&root)).unwrap();
    assert!(files.is_as_recorded().unwrap(), "that is asked without reading");
    let error = fs::read(&files.data).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{error}");
    let error = diff::reread(&files.open_data().unwrap(), &types::Digest::of(&right)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::DataLoss, "so that it is stored anew");
}

/// A missing fs-verity is an error, which says what it takes.
#[test]
fn a_file_system_without_fs_verity_is_reported() {
    let dir = Path::new("/dev/shm");
    if !dir.is_dir() {
        println!("skipped: there is no tmpfs in /dev/shm");
        return;
    }
    let dir = tempfile::TempDir::new_in(dir).unwrap();
    let error = snapshot::probe_verity(dir.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unimplemented, "{}", error.chain());
    assert!(error.chain().contains("mkfs.ext4 -O verity"), "{}", error.chain());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
}
