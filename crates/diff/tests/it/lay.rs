//! Packing parts of trees, and laying them down in trees that another process changes meanwhile.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use diff::tar::Writer;
use diff::{Laid, LayOptions, Owners, lay_down, pack};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tempfile::TempDir;
use types::{Error, ErrorKind, Result};

use super::entry;

fn packed(folder: &Path, name: &str, called: &str) -> Result<Vec<u8>> {
    let mut writer = Writer::new(Vec::new(), 0);
    let folder = File::open(folder).unwrap().into();
    pack(folder, OsStr::new(name), called.as_bytes(), &mut writer, &|| Ok(()))?;
    Ok(writer.finish().unwrap())
}

fn lay(root: &Path, folder: &str, owners: Owners, bytes: &[u8]) -> Result<Laid> {
    let options = LayOptions { folder: PathBuf::from(folder), owners };
    lay_down(bytes, options, File::open(root).unwrap().as_fd())
}

#[test]
fn a_packed_tree_is_laid_down_under_another_name() {
    let dir = TempDir::new().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir_all(from.join("d/.wh.inner/empty")).unwrap();
    fs::create_dir_all(to.join("there")).unwrap();
    fs::write(from.join("d/file"), "bytes").unwrap();
    fs::write(from.join("beside"), "not copied").unwrap();
    fs::hard_link(from.join("d/file"), from.join("d/twin")).unwrap();
    symlink("/nowhere", from.join("d/link")).unwrap();
    let bytes = packed(&from, "d", "new").unwrap();
    lay(&to, "there", Owners::Archive, &bytes).unwrap();
    let new = to.join("there/new");
    assert_eq!(fs::read_to_string(new.join("file")).unwrap(), "bytes");
    assert_eq!(fs::metadata(new.join("file")).unwrap().ino(), fs::metadata(new.join("twin")).unwrap().ino());
    assert_eq!(fs::read_link(new.join("link")).unwrap(), Path::new("/nowhere"));
    assert!(new.join(".wh.inner/empty").is_dir(), "no name is a whiteout here");
    assert_eq!(fs::read_dir(to.join("there")).unwrap().count(), 1);
    // What is in the directory, and a file alone.
    lay(&to, "", Owners::Archive, &packed(&from, "d", ".").unwrap()).unwrap();
    assert!(to.join("twin").exists());
    lay(&to, "", Owners::Archive, &packed(&from, "beside", "file").unwrap()).unwrap();
    assert_eq!(fs::read_to_string(to.join("file")).unwrap(), "not copied");
    assert_eq!(fs::read_to_string(to.join("twin")).unwrap(), "bytes", "replaced, not written through");
    assert_eq!(packed(&from, "nosuch", "x").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(packed(Path::new("/proc"), "uptime", "x").unwrap_err().kind(), ErrorKind::FailedPrecondition);
}

#[test]
fn packing_ends_when_it_is_cancelled() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("file"), vec![0; 1 << 20]).unwrap();
    let mut writer = Writer::new(Vec::new(), 0);
    let folder = File::open(dir.path()).unwrap().into();
    let go_on = || Err(Error::cancelled("enough"));
    let error = pack(folder, OsStr::new("."), b".", &mut writer, &go_on).unwrap_err();
    assert!(error.chain().contains("enough"), "{error:?}");
}

#[test]
fn laying_down_replaces_no_directory_by_a_file_nor_the_reverse() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("d/kept"), "kept").unwrap();
    fs::write(dir.path().join("f"), "kept").unwrap();
    for (bytes, why) in [
        (entry("d", b'0', "", b"x"), "can only be replaced by a directory"),
        (entry("f", b'5', "", b""), "a directory"),
    ] {
        let error = lay(dir.path(), "", Owners::Archive, &bytes).unwrap_err();
        assert!(error.is(ErrorKind::InvalidArgument) && error.chain().contains(why), "{error:?}");
    }
    assert_eq!(fs::read_to_string(dir.path().join("d/kept")).unwrap(), "kept");
    assert_eq!(fs::read_to_string(dir.path().join("f")).unwrap(), "kept");
}

#[test]
fn laying_down_drops_setuid_bits_and_devices() {
    let dir = TempDir::new().unwrap();
    let tool = dir.path().join("tool");
    fs::write(&tool, "#!").unwrap();
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o6755)).unwrap();
    let device = entry("null", b'3', "", b"");
    let bytes = packed(dir.path(), "tool", "own").unwrap();
    let bytes = [&bytes[..bytes.len() - 1024], &device].concat();
    let laid = lay(dir.path(), "", Owners::Maker, &bytes).unwrap();
    assert_eq!(laid.left_out, [Path::new("null")]);
    assert_eq!(fs::metadata(dir.path().join("own")).unwrap().mode() & 0o7777, 0o755);
    let outside = entry("../../x", b'0', "", b"inside");
    lay(dir.path(), "", Owners::Maker, &outside).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("x")).unwrap(), "inside");
}

/// A directory that is a link when it is used again and again.
#[test]
fn laying_down_follows_no_symlink_that_is_swapped_in_meanwhile() {
    let dir = TempDir::new().unwrap();
    let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
    for folder in [root.join("a"), outside.clone()] {
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("file"), "its own").unwrap();
    }
    fs::write(outside.join("secret"), "secret").unwrap();
    fs::set_permissions(outside.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink(&outside, root.join("b")).unwrap();
    let files: Vec<u8> = (0..200).flat_map(|n| entry(&format!("a/new{n}"), b'0', "", b"x")).collect();
    let directories: Vec<u8> = (0..200).flat_map(|_| entry("a", b'5', "", b"")).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let (a, b) = (root.join("a"), root.join("b"));
                renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
            }
        });
        for _ in 0..50 {
            // Some come in the way of the swap, and are refused.
            let _ = lay(&root, "", Owners::Archive, &files);
            let _ = lay(&root, "", Owners::Archive, &directories);
            let bytes = packed(&root, ".", ".").unwrap_or_default();
            assert!(!bytes.windows(6).any(|bytes| bytes == b"secret"));
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 2);
    assert_eq!(fs::metadata(outside.join("secret")).unwrap().mode() & 0o777, 0o600);
}
