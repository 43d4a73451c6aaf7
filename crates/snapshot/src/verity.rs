//! Layers that the kernel watches over with fs-verity: nobody changes their files any more, and a page that rotted is
//! an error to whoever reads it.
//!
//! ```text
//! ROOT/ID/verity          what the files of the layer were when they were committed: DIGEST NAME, a line each
//! ROOT/ID/stack.verity    the same of the image that merges it with those below, when that was made
//! ```
//!
//! The digests are fs-verity's own, which the kernel knows without reading the files: comparing them at each mount costs
//! two calls a file, and tells a file that was put in the place of another.

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
/// Bytes of a file from which on there is no hash tree of it: one that has files with holes beyond its archive is mostly
/// a hole, and a tree covers holes too.
const LEN_MAX: u64 = 1 << 40;

/// Whether the file system of this directory has it. `Unimplemented` if it has not, with the way there.
pub fn probe(root: &Path) -> Result<()> {
    fs::create_dir_all(root).context(|| format!("create {}", root.display()))?;
    let path = root.join("probe.verity");
    // One that an earlier probe left cannot be written to any more.
    let _ = fs::remove_file(&path);
    // What fails here says nothing of the kernel.
    let file = fs::write(&path, "watched").and_then(|()| File::open(&path));
    let probed = file.as_ref().ok().map_or(Ok(()), |file| verity::enable(file.as_fd()));
    let _ = fs::remove_file(&path); // the next probe does it otherwise
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

/// Has the kernel watch over the files of a layer, and records what they are. All is on disk when this returns.
pub(crate) fn watch(directory: &Path) -> Result<()> {
    watch_files(directory, &[DATA, image_name(directory)], RECORD)
}

/// The same of the image of several layers, of which this is the topmost.
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

/// Whether a layer has a record of what its files were.
pub(crate) fn is_watched(directory: &Path) -> bool {
    directory.join(RECORD).exists()
}

/// `DataLoss` if a file of a layer is not the one that was recorded. Nothing is read of it.
pub(crate) fn compare(directory: &Path) -> Result<()> {
    compare_files(directory, &[DATA, image_name(directory)], RECORD).map(drop)
}

/// The same of the image of several layers, of which this is the topmost. One that is not recorded is none, if the
/// layer itself is.
pub(crate) fn compare_stack(directory: &Path) -> Result<()> {
    match compare_files(directory, &[STACK], STACK_RECORD)? {
        false if is_watched(directory) => {
            Err(damaged(format!("{} has no record", directory.join(STACK).display())))
        }
        _ => Ok(()),
    }
}

/// Forgets what the image of several layers was, before it is removed.
pub(crate) fn forget_stack(directory: &Path) -> Result<()> {
    remove_if_there(&directory.join(STACK_RECORD))
}

/// Whether there is a record. It names some of these files, the last of them in any case.
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
