//! Layers protected by fs-verity: their files cannot be written any more, and reading a corrupt page is an error.
//!
//! ```text
//! ROOT/ID/verity          digests of the layer's files, recorded at its commit: a line DIGEST NAME for each
//! ROOT/ID/stack.verity    the same for the image that merges it with the layers below, recorded when that was made
//! ```
//!
//! The digests are those of fs-verity, which the kernel returns without reading the files: comparing them at each mount
//! costs two system calls for a file, and detects a file that was replaced by another.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use linux::verity;
use stdx::{Durable, replace};
use types::{Context, Error, Result};

use crate::layer::{DATA, STACK, damaged, image_name, remove_if_there};

const RECORD: &str = "verity";
const STACK_RECORD: &str = "stack.verity";
/// Files of at least this many bytes are not protected: a data file with sparse files behind its archive is mostly a
/// hole, which a hash tree would cover too.
const LEN_MAX: u64 = 1 << 40;

/// Checks that the file system of this directory supports fs-verity. `Unimplemented` if not, with what it takes.
pub fn probe(root: &Path) -> Result<()> {
    fs::create_dir_all(root).context(|| format!("create {}", root.display()))?;
    let path = root.join("probe.verity");
    // The file of an interrupted probe cannot be overwritten.
    let _ = fs::remove_file(&path);
    // Failing to write the file says nothing about fs-verity.
    let file = fs::write(&path, "watched").and_then(|()| File::open(&path));
    let probed = file.as_ref().ok().map_or(Ok(()), |file| verity::enable(file.as_fd()));
    let _ = fs::remove_file(&path); // if it fails, the next probe removes it
    file.context(|| format!("write {}", path.display()))?;
    probed.map_err(|error| {
        if error.kind() == io::ErrorKind::StorageFull {
            return Err::<(), _>(error).context(|| format!("watch {}", path.display())).expect_err("it is one");
        }
        let way = "it takes a kernel with fs-verity, and a file system that was made for it (`mkfs.ext4 -O verity`, \
                   `tune2fs -O verity`, or btrfs)";
        Error::unimplemented(format!("no fs-verity in {}: {way}", root.display())).with_source(error)
    })
}

/// Enables fs-verity for the files of a layer, and records their digests. All is on disk when this returns.
pub(crate) fn watch(directory: &Path) -> Result<()> {
    watch_files(directory, &[DATA, image_name(directory)], RECORD)
}

/// Enables fs-verity for the merged image of a chain with this topmost layer, and records its digest.
pub(crate) fn watch_stack(directory: &Path) -> Result<()> {
    watch_files(directory, &[STACK], STACK_RECORD)
}

fn watch_files(directory: &Path, names: &[&str], record: &str) -> Result<()> {
    let mut lines = String::new();
    for name in names {
        let path = directory.join(name);
        let what = || format!("enable fs-verity of {}", path.display());
        let file = File::open(&path).context(what)?;
        if file.metadata().context(what)?.len() >= LEN_MAX {
            continue;
        }
        verity::enable(file.as_fd()).context(what)?;
        file.sync_all().context(what)?;
        if let Some(digest) = verity::digest(file.as_fd()).context(what)? {
            lines.push_str(&format!("{digest} {name}\n"));
        }
    }
    let written = replace(&directory.join(record), lines.as_bytes(), 0o644, Durable::Now);
    written.context(|| format!("record the digests in {}", directory.display()))
}

/// Whether a layer has a record of its files' digests.
pub(crate) fn is_watched(directory: &Path) -> bool {
    directory.join(RECORD).exists()
}

/// Compares the files of a layer with their record, without reading them. `DataLoss` if one differs.
pub(crate) fn compare(directory: &Path) -> Result<()> {
    compare_files(directory, &[DATA, image_name(directory)], RECORD).map(drop)
}

/// Compares the merged image of a chain with this topmost layer with its record. `DataLoss` if it differs, or has no
/// record while the layer has one.
pub(crate) fn compare_stack(directory: &Path) -> Result<()> {
    match compare_files(directory, &[STACK], STACK_RECORD)? {
        false if is_watched(directory) => {
            Err(damaged(format!("{} has no record", directory.join(STACK).display())))
        }
        _ => Ok(()),
    }
}

/// Removes the record of a merged image. Must be called before the image is removed.
pub(crate) fn forget_stack(directory: &Path) -> Result<()> {
    remove_if_there(&directory.join(STACK_RECORD))
}

/// Compares files with a record, which must name the last of them and may name the others. False without a record.
fn compare_files(directory: &Path, names: &[&str], record: &str) -> Result<bool> {
    let path = directory.join(record);
    let record = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(damaged(format!("{} cannot be read: {error}", path.display()))),
        Ok(record) => record,
    };
    if !names.last().is_some_and(|last| record.lines().any(|line| line.ends_with(&format!(" {last}")))) {
        return Err(damaged(format!("{} is cut off", path.display())));
    }
    for line in record.lines() {
        let (digest, name) =
            line.split_once(' ').ok_or_else(|| damaged(format!("{} is cut off", path.display())))?;
        if !names.contains(&name) {
            return Err(damaged(format!("{} names {name:?}", path.display())));
        }
        let file = directory.join(name);
        let found = File::open(&file).and_then(|file| verity::digest(file.as_fd()));
        match found.map_err(|error| damaged(format!("{} cannot be looked at: {error}", file.display())))? {
            Some(found) if found.to_string() == digest => {}
            Some(_) => return Err(damaged(format!("{} is another file than was stored", file.display()))),
            None => return Err(damaged(format!("{} lost its fs-verity", file.display()))),
        }
    }
    Ok(true)
}
