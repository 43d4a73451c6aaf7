//! Fills a volume with the contents of the image's directory where it is first mounted.
//!
//! ```text
//! copy ─▶ .draft ─▶ sync ─┬─▶ _data                           a new volume appears complete
//!                         └─▶ .ready ─ file by file ─▶ _data  an existing empty directory is kept: containers may
//!                                                             have it bind mounted
//! ```
//!
//! A draft that a crash left is discarded; `.ready` is completed by the next caller. Files are moved into existing data
//! only while no container uses the volume. This is checked after the draft, the slow part, is complete, and no
//! container begins to use the volume until the move is done (`Filling`).
//!
//! Data may be on another disk, by a mount or a symlink. Then `.ready` is first copied to a hidden directory there.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use linux::beneath::Root;
use rustix::fs::{AtFlags, OFlags, RenameFlags, renameat, renameat_with, statat, syncfs};
use rustix::io::Errno;
use types::{Context, Result};

use super::DATA;
use crate::remove_folder;

const DRAFT: &str = ".draft";
const READY: &str = ".ready";
/// In data on another disk: the copy of `.ready`.
const ARRIVED: &str = ".hoist-filling";

/// Acquires the right to move files into a volume's data, during which no container begins to use it; `None` while one
/// does.
pub(super) type LockData<'a, G> = &'a dyn Fn() -> Result<Option<G>>;

/// Completes a fill that a crash interrupted, unless a container uses the volume.
pub(super) fn end_filling<G>(directory: &Path, lock_data: LockData<'_, G>) -> Result<()> {
    let ready = directory.join(READY);
    if ready.try_exists().context(|| format!("look for {}", ready.display()))?
        && let Some(_lock) = lock_data()?
    {
        move_ready(directory)?;
    }
    Ok(())
}

/// Whether a volume must be filled: it has no data, or it is empty.
pub(super) fn wants_filling(directory: &Path) -> Result<bool> {
    let data = directory.join(DATA);
    match fs::read_dir(&data) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error).context(|| format!("read {}", data.display())),
    }
}

/// Fills a volume with the contents of `target` in the image, if there is an image and it has that directory. An
/// existing volume is left alone while containers use it.
pub(super) fn fill<G>(
    root: Option<&Root>,
    target: &str,
    directory: &Path,
    lock_data: LockData<'_, G>,
) -> Result<()> {
    let (draft, data) = (directory.join(DRAFT), directory.join(DATA));
    let about = || format!("make {}", data.display());
    let is_new = !data.try_exists().context(about)?;
    let find = |root: &Root| root.find(Path::new(target), OFlags::RDONLY | OFlags::DIRECTORY);
    let source = root.map(find).transpose()?.flatten();
    // A draft disturbs no container, so the right is given up while it is made.
    if !is_new && (source.is_none() || lock_data()?.is_none()) {
        return Ok(());
    }
    fs::create_dir_all(directory).context(about)?;
    remove_folder(&draft)?;
    match source {
        Some(source) => {
            // The trailing dot resolves to the directory itself, not the symlink in /proc.
            let source = PathBuf::from(format!("/proc/self/fd/{}/.", source.as_raw_fd()));
            linux::tree::copy(&source, &draft).context(about)?;
            // A volume that is not empty counts as filled, so the contents must be durable first.
            if !names_in(&draft).context(about)?.is_empty() {
                File::open(&draft).and_then(|draft| Ok(syncfs(draft)?)).context(about)?;
            }
        }
        None => fs::create_dir(&draft).context(about)?,
    }
    if is_new {
        fs::rename(&draft, &data).context(about)?;
        sync_directory(directory)?;
        return directory.parent().map_or(Ok(()), sync_directory);
    }
    // A container may have begun to use it since.
    let Some(_lock) = lock_data()? else { return remove_folder(&draft) };
    fs::rename(&draft, directory.join(READY)).context(about)?;
    sync_directory(directory)?;
    move_ready(directory)
}

/// Moves the ready files into the data, without replacing files that exist by now.
fn move_ready(directory: &Path) -> Result<()> {
    let (ready, data) = (directory.join(READY), directory.join(DATA));
    let arrived = data.join(ARRIVED);
    let about = || format!("fill {}", data.display());
    let is_elsewhere = fs::metadata(&ready).and_then(|ready| Ok(ready.dev() != fs::metadata(&data)?.dev()));
    let is_elsewhere = is_elsewhere.context(about)?;
    let from = if is_elsewhere {
        remove_folder(&arrived)?;
        linux::tree::copy(&ready, &arrived).context(about)?;
        File::open(&arrived).and_then(|arrived| Ok(syncfs(arrived)?)).context(about)?;
        &arrived
    } else {
        &ready
    };
    let move_all = || -> io::Result<()> {
        let (names, from, to) = (names_in(from)?, File::open(from)?, File::open(&data)?);
        for name in names {
            let moved = match renameat_with(&from, &name, &to, &name, RenameFlags::NOREPLACE) {
                // Not every file system supports RENAME_NOREPLACE (renameat2(2)).
                Err(Errno::INVAL) if statat(&to, &name, AtFlags::SYMLINK_NOFOLLOW).is_err() => {
                    renameat(&from, &name, &to, &name)
                }
                moved => moved,
            };
            match moved {
                Err(Errno::EXIST | Errno::INVAL) => {}
                moved => moved?,
            }
        }
        linux::tree::copy_own_metadata(&ready, &data)?;
        to.sync_all()
    };
    move_all().context(about)?;
    if is_elsewhere {
        remove_folder(&arrived)?;
    }
    remove_folder(&ready)
}

pub(super) fn sync_directory(directory: &Path) -> Result<()> {
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.context(|| format!("sync {}", directory.display()))
}

fn names_in(directory: &Path) -> io::Result<Vec<OsString>> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn root(path: &Path) -> Root {
        Root::open(path).unwrap()
    }

    fn idle() -> Result<Option<()>> {
        Ok(Some(()))
    }

    /// An image whose `/data` has a file and a symlink to it, and a volume's directory.
    fn image(dir: &Path) -> (PathBuf, PathBuf) {
        let (image, volume) = (dir.join("image"), dir.join("volume"));
        fs::create_dir_all(image.join("data/deep")).unwrap();
        fs::write(image.join("data/deep/file"), "kept").unwrap();
        symlink("deep/file", image.join("data/link")).unwrap();
        fs::set_permissions(image.join("data"), fs::Permissions::from_mode(0o1777)).unwrap();
        (image, volume)
    }

    #[test]
    fn a_new_volume_holds_what_the_image_has_there() {
        let dir = tempfile::tempdir().unwrap();
        let (image, volume) = image(dir.path());
        // The rest of an interrupted copy must not end up in the volume.
        fs::create_dir_all(volume.join(DRAFT).join("rest")).unwrap();
        assert!(wants_filling(&volume).unwrap());
        fill::<()>(Some(&root(&image)), "/data", &volume, &|| unreachable!("nobody can have it")).unwrap();
        let data = volume.join(DATA);
        assert_eq!(fs::read_to_string(data.join("link")).unwrap(), "kept");
        assert_eq!(fs::metadata(&data).unwrap().mode() & 0o7777, 0o1777);
        assert_eq!(names_in(&volume).unwrap(), [DATA]);
        assert!(!data.join("rest").exists() && !wants_filling(&volume).unwrap());
    }

    #[test]
    fn an_empty_volume_is_filled_where_it_stands_and_not_beside_others() {
        let dir = tempfile::tempdir().unwrap();
        let (image, volume) = image(dir.path());
        let data = volume.join(DATA);
        fs::create_dir_all(&data).unwrap();
        let bound = File::open(&data).unwrap();
        for (target, lock_data) in [("/nowhere", Some(())), ("/data", None)] {
            fill(Some(&root(&image)), target, &volume, &|| Ok(lock_data)).unwrap();
            assert!(wants_filling(&volume).unwrap());
        }
        // A container begins to use it while the draft is made.
        let asked = std::cell::Cell::new(0);
        let only_at_first = || Ok((asked.replace(asked.get() + 1) == 0).then_some(()));
        fill(Some(&root(&image)), "/data", &volume, &only_at_first).unwrap();
        assert!(asked.get() == 2 && wants_filling(&volume).unwrap());
        assert_eq!(names_in(&volume).unwrap(), [DATA]);
        fill(Some(&root(&image)), "/data", &volume, &idle).unwrap();
        assert_eq!(bound.metadata().unwrap().ino(), fs::metadata(&data).unwrap().ino());
        assert_eq!(fs::read_to_string(data.join("link")).unwrap(), "kept");
        assert_eq!(fs::metadata(&data).unwrap().mode() & 0o7777, 0o1777);
        assert_eq!(names_in(&volume).unwrap(), [DATA]);
    }

    #[test]
    fn an_interrupted_volume_fill_is_completed_without_replacing_files() {
        let dir = tempfile::tempdir().unwrap();
        let (image, volume) = image(dir.path());
        fill(Some(&root(&image)), "/data", &volume, &idle).unwrap();
        // The symlink had been moved, and a container wrote the file.
        fs::rename(volume.join(DATA), volume.join(READY)).unwrap();
        fs::create_dir_all(volume.join(DATA).join("deep")).unwrap();
        fs::write(volume.join(DATA).join("deep/file"), "of another").unwrap();
        fs::rename(volume.join(READY).join("link"), volume.join(DATA).join("link")).unwrap();
        end_filling::<()>(&volume, &|| Ok(None)).unwrap();
        assert!(volume.join(READY).join("deep").exists(), "somebody works in it");
        end_filling(&volume, &idle).unwrap();
        assert!(!wants_filling(&volume).unwrap());
        assert_eq!(fs::read_to_string(volume.join(DATA).join("link")).unwrap(), "of another");
        assert_eq!(names_in(&volume).unwrap(), [DATA]);
    }

    #[test]
    fn data_on_another_disk_is_filled_too() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
        let devices = [dir.path(), other.path()].map(|path| fs::metadata(path).unwrap().dev());
        if devices[0] == devices[1] {
            println!("skipped: needs two file systems");
            return;
        }
        let (image, volume) = image(dir.path());
        let data = other.path().join("data");
        fs::create_dir_all(&volume).unwrap();
        fs::create_dir(&data).unwrap();
        symlink(&data, volume.join(DATA)).unwrap();
        // The rest of an interrupted copy.
        fs::create_dir_all(data.join(ARRIVED).join("rest")).unwrap();
        fs::create_dir_all(volume.join(READY)).unwrap();
        end_filling(&volume, &idle).unwrap();
        assert!(wants_filling(&volume).unwrap());
        fill(Some(&root(&image)), "/data", &volume, &idle).unwrap();
        assert_eq!(fs::read_to_string(data.join("link")).unwrap(), "kept");
        assert_eq!(fs::metadata(&data).unwrap().mode() & 0o7777, 0o1777);
        assert_eq!(fs::read_dir(&data).unwrap().count(), 2, "the link and what it leads to");
        assert_eq!(names_in(&volume).unwrap(), [DATA]);
    }

    #[test]
    fn a_link_in_the_image_does_not_lead_out_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let (image, volume) = (dir.path().join("image"), dir.path().join("volume"));
        fs::create_dir_all(dir.path().join("secrets")).unwrap();
        fs::write(dir.path().join("secrets/key"), "secret").unwrap();
        fs::create_dir(&image).unwrap();
        symlink("../secrets", image.join("up")).unwrap();
        symlink(dir.path().join("secrets"), image.join("away")).unwrap();
        for target in ["/up", "/away", "/nowhere"] {
            fill(Some(&root(&image)), target, &volume, &idle).unwrap();
            assert_eq!(fs::read_dir(volume.join(DATA)).unwrap().count(), 0, "{target}");
        }
    }
}
