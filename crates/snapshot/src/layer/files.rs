//! The files of a layer: storing, checking and replacing them.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use erofs::Tree;
use linux::beneath::proc_path;
use linux::removal;
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, linkat};
use rustix::io::Errno;
use types::{Context, Error, ErrorKind, Result};

use super::tree_cache::TreeCache;
use super::{DATA, PACKED_IMAGE, SPANS, image_name, is_archive};
use crate::records::REMOVED;
use crate::{packed, verity};

/// File extension of an archive that was not stored to its end.
const FAILED: &str = "failed";
/// File extension of files that are to replace damaged ones.
const MENDED: &str = "mended";

/// The paths of the files of a layer that is kept as an archive.
#[derive(Clone, Debug)]
pub struct LayerFiles {
    /// The data file: the plain archive.
    pub data: PathBuf,
    /// The metadata image. It is created last and atomically, and its presence makes the snapshot a layer of this form.
    pub image: PathBuf,
    /// The record of the blob's spans. It is optional, and mounting the layer does not need it.
    pub record: PathBuf,
    /// Whether a layer that is stored gets a record.
    pub(super) wants_record: bool,
    /// The cache for the tree of a new layer that will be merged with others.
    pub(super) trees: Option<Arc<TreeCache>>,
}

/// The empty files that a layer is stored in.
pub struct NewLayer<'a> {
    /// For the plain archive.
    pub data: &'a File,
    /// For the record of the blob's spans, if the layer gets one. It is deleted if it stays empty.
    pub record: Option<&'a File>,
}

impl LayerFiles {
    pub(crate) fn of(directory: &Path) -> LayerFiles {
        LayerFiles {
            data: directory.join(DATA),
            image: directory.join(image_name(directory)),
            record: directory.join(SPANS),
            wants_record: false,
            trees: None,
        }
    }

    /// For a new layer that will not be mounted by itself but merged with others: its image is packed. Mounting it
    /// alone is still possible, by a merged image of this layer only.
    pub fn merged_with_others(self) -> LayerFiles {
        LayerFiles { image: self.image.with_file_name(PACKED_IMAGE), ..self }
    }

    pub(crate) fn wanting_record(self, wants_record: bool) -> LayerFiles {
        LayerFiles { wants_record, ..self }
    }

    /// For a new layer whose tree is cached until it is merged.
    pub(crate) fn keeping_tree(self, trees: Arc<TreeCache>) -> LayerFiles {
        LayerFiles { trees: Some(trees), ..self }
    }

    /// Stores a layer: `store` fills the archive, and returns the tree of its metadata. `Unavailable` while another
    /// thread or process stores it, `FailedPrecondition` once one has. The files of a failed attempt are deleted with the
    /// snapshot at the latest.
    ///
    /// Nothing is synced: the caller syncs all layers of an image at once before it commits them, and snapshots that
    /// were not committed are not used after a crash.
    pub fn write(&self, store: impl FnOnce(NewLayer<'_>) -> Result<Tree>) -> Result<()> {
        let tree = self.write_with(store, false)?;
        if let Some(trees) = self.trees.as_ref().filter(|_| packed::is_packed(&self.image)) {
            trees.keep(self.directory(), tree);
        }
        Ok(())
    }

    /// Stores a layer and syncs its files, for a snapshot that a client may use again after a power cut.
    pub fn write_durably(&self, store: impl FnOnce(NewLayer<'_>) -> Result<Tree>) -> Result<()> {
        self.write_with(store, true).map(drop)
    }

    /// Checks for damage that shows without reading the layer, as each mount does: `DataLoss` if a file is missing, has
    /// another length than the image says, or another digest than was recorded for fs-verity.
    pub fn look(&self) -> Result<()> {
        self.lens().and_then(|lens| lens.compare(self))?;
        verity::compare(self.directory())
    }

    fn directory(&self) -> &Path {
        self.data.parent().unwrap_or(Path::new("."))
    }

    pub(crate) fn lens(&self) -> Result<Lens> {
        let image = open_kept(&self.image)?;
        let read = |image: &mut dyn Read| {
            let mut head = Vec::new();
            image.take(erofs::HEAD_LEN as u64).read_to_end(&mut head).map(|_| head)
        };
        let read = match packed::is_packed(&self.image) {
            true => packed::open(image).and_then(|(mut image, len)| Ok((read(&mut image)?, Some(len)))),
            false => read(&mut &image).map(|head| (head, None)),
        };
        let (head, packed_len) = read.map_err(|error| unreadable(&self.image, error))?;
        let head = erofs::Head::read(&head).context(|| format!("read {}", self.image.display()))?;
        Ok(Lens { data: head.data_len, image: packed_len.unwrap_or(head.len), inodes: head.inodes })
    }

    /// Opens the archive of a committed layer for reading. `DataLoss` if it is missing.
    pub fn open_data(&self) -> Result<File> {
        open_kept(&self.data)
    }

    /// Whether the files have the digests that were recorded for fs-verity. True without a record.
    pub fn is_as_recorded(&self) -> Result<bool> {
        match verity::compare(self.directory()) {
            Err(error) if error.is(ErrorKind::DataLoss) => Ok(false),
            compared => compared.map(|()| true),
        }
    }

    /// Whether the image equals that of this tree byte for byte.
    pub fn is_image_of(&self, tree: &Tree) -> Result<bool> {
        Ok(self.image_of(tree) == self.image && is_image_of(tree, &self.image)?)
    }

    /// The path of the image of a layer. A layer with whiteouts cannot be mounted by itself, as the mount would show
    /// these as device nodes, so its image is packed and always merged.
    fn image_of(&self, tree: &Tree) -> PathBuf {
        match tree.deletes() {
            true => self.image.with_file_name(PACKED_IMAGE),
            false => self.image.clone(),
        }
    }

    /// Replaces the files of a damaged layer. All is on disk when this returns; a crash before leaves the old files,
    /// the new ones, or the new archive with the old image. The caller must then call [`crate::KeptLayers::mended`].
    /// The old archive is left to [`crate::Snapshotter::reclaim`].
    pub fn replace(&self, store: impl FnOnce(NewLayer<'_>) -> Result<Tree>) -> Result<()> {
        let new = LayerFiles {
            data: self.data.with_extension(MENDED),
            record: self.record.with_extension(MENDED),
            ..self.clone()
        };
        let data = new.own_data()?;
        data.set_len(0).context(|| format!("empty {}", new.data.display()))?;
        let replaced = new.store_in(&data, store, true).and_then(|tree| {
            set_aside(&self.data);
            for (from, to) in [(&new.record, &self.record), (&new.data, &self.data)] {
                match fs::rename(from, to) {
                    // The layer has no record.
                    Err(error) if error.kind() == io::ErrorKind::NotFound && *from == new.record => {}
                    renamed => renamed.context(|| format!("rename {}", from.display()))?,
                }
            }
            self.replace_image(&tree)
        });
        if let Err(error) = &replaced {
            // On a full disk the archive is deleted right away.
            if !error.is(ErrorKind::ResourceExhausted) {
                set_aside(&new.data);
            }
            for path in [&new.data, &new.record] {
                // If it fails, the next writer truncates the file.
                let _ = fs::remove_file(path);
            }
        }
        replaced
    }

    /// Opens the record of the blob's spans for reading. `None` if the layer has none.
    pub fn open_record(&self) -> Result<Option<File>> {
        match File::open(&self.record) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some).context(|| format!("open {}", self.record.display())),
        }
    }

    /// Deletes a damaged record.
    pub fn remove_record(&self) -> Result<()> {
        remove_if_there(&self.record)
    }

    /// Replaces the image of the layer, as durably as [`LayerFiles::replace`].
    pub fn replace_image(&self, tree: &Tree) -> Result<()> {
        let image = self.image_of(tree);
        replace_image(tree, &image, true)?;
        if image == self.image { Ok(()) } else { remove_if_there(&self.image) }
    }

    fn write_with(&self, store: impl FnOnce(NewLayer<'_>) -> Result<Tree>, is_durable: bool) -> Result<Tree> {
        let data = self.own_data()?;
        // The caller may have asked for the files long ago.
        if is_archive(self.directory()) {
            let directory = self.directory().display();
            return Err(Error::failed_precondition(format!(
                "{directory} has a layer, which another has stored"
            )));
        }
        data.set_len(0).context(|| format!("empty {}", self.data.display()))?;
        let stored = self
            .store_in(&data, store, is_durable)
            .and_then(|tree| replace_image(&tree, &self.image_of(&tree), is_durable).map(|()| tree));
        if let Err(error) = &stored {
            self.take_back(error);
        }
        stored
    }

    /// Removes the files of a failed attempt. The archive is only renamed: it may be large, and the caller should not
    /// wait for the file system to free it.
    fn take_back(&self, why: &Error) {
        // If it fails, the next writer truncates the files.
        let _ = fs::remove_file(&self.record);
        let _ = match why.is(ErrorKind::ResourceExhausted) {
            // On a full disk the archive is deleted right away.
            true => fs::remove_file(&self.data),
            false => fs::rename(&self.data, self.data.with_extension(FAILED)),
        };
    }

    /// Has `store` write the archive, and the record if the layer gets one.
    fn store_in(
        &self,
        data: &File,
        store: impl FnOnce(NewLayer<'_>) -> Result<Tree>,
        is_durable: bool,
    ) -> Result<Tree> {
        // An earlier attempt may have left a record of another blob.
        remove_if_there(&self.record)?;
        let record = self.wants_record.then(|| create(&self.record)).transpose()?;
        let tree = store(NewLayer { data, record: record.as_ref() })?;
        if is_durable {
            data.sync_all().context(|| format!("sync {}", self.data.display()))?;
        }
        let Some(record) = record else { return Ok(tree) };
        let what = || format!("keep {}", self.record.display());
        if record.metadata().context(what)?.len() == 0 {
            remove_if_there(&self.record)?;
        } else if is_durable {
            record.sync_all().context(what)?;
        }
        Ok(tree)
    }

    /// Opens the archive, locked for this writer, and creates it if it is missing. `Unavailable` if another one has it.
    fn own_data(&self) -> Result<File> {
        let what = || format!("create {}", self.data.display());
        let data = new_file().truncate(false).open(&self.data).context(what)?;
        let is_own = match flock(&data, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => false,
            locked => {
                locked.map_err(io::Error::from).context(what)?;
                // One who had the lock until now may have renamed the file since it was opened here.
                let own = data.metadata().context(what)?;
                fs::metadata(&self.data).is_ok_and(|named| named.ino() == own.ino())
            }
        };
        if !is_own {
            let message = format!("{} is being written: try again when that is done", self.data.display());
            return Err(Error::unavailable(message));
        }
        Ok(data)
    }
}

/// Gives a large archive a second name among the files that are deleted in the background, so that removing its own
/// name does not wait for the file system to free it. If this fails, the removal is only slower.
fn set_aside(archive: &Path) {
    let directory =
        archive.parent().and_then(|directory| Some((directory.parent()?, directory.file_name()?)));
    let stat = fs::metadata(archive).ok().filter(|stat| stat.len() > removal::PIECE_LEN);
    if let (Some((root, id)), Some(stat)) = (directory, stat) {
        let removed = root.join(REMOVED);
        // The inode number makes the name unique. Directories of removed snapshots are named by their id alone.
        let name = format!("{}.{}", id.display(), stat.ino());
        let _ = fs::create_dir_all(&removed).and_then(|()| fs::hard_link(archive, removed.join(name)));
    }
}

/// The lengths of a layer's files in bytes and its number of inodes, from the image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lens {
    pub(super) data: u64,
    pub(super) image: u64,
    pub(super) inodes: u64,
}

impl Lens {
    pub(crate) fn compare(self, files: &LayerFiles) -> Result<()> {
        compare_len(&files.image, self.image)?;
        compare_len(&files.data, self.data)
    }
}

pub(super) fn compare_len(path: &Path, len: u64) -> Result<()> {
    let found = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(gone(path)),
        metadata => metadata.context(|| format!("look at {}", path.display()))?.len(),
    };
    if found != len {
        return Err(damaged(format!("{} has {found} bytes instead of {len}", path.display())));
    }
    Ok(())
}

/// The error of a failed read: `DataLoss` for EIO, which disks and fs-verity return, and for errors of the
/// decompression; other errors of the kernel say nothing about the file.
fn unreadable(path: &Path, error: io::Error) -> Error {
    if error.raw_os_error().is_none_or(|number| number == Errno::IO.raw_os_error()) {
        return damaged(format!("{} cannot be read: {error}", path.display()));
    }
    Error::new(error.kind().into(), format!("read {}", path.display())).with_source(error)
}

/// Reads an image, packed or not, as a whole.
pub(super) fn read_image(path: &Path) -> Result<Vec<u8>> {
    let read = match packed::is_packed(path) {
        true => open_kept(path).map(packed::read)?,
        false => open_kept(path).map(packed::whole)?,
    };
    read.map_err(|error| unreadable(path, error))
}

fn open_kept(path: &Path) -> Result<File> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(gone(path)),
        opened => opened.context(|| format!("open {}", path.display())),
    }
}

fn gone(path: &Path) -> Error {
    damaged(format!("{} is gone", path.display()))
}

/// The error of a damaged layer, with the command that mends it.
pub(crate) fn damaged(why: String) -> Error {
    Error::data_loss(format!("{why}: `hoist image verify` mends the layer"))
}

/// Writes an image under another name and renames it when it is complete, and synced if it is to be durable: an image
/// is trusted by its name.
pub(super) fn replace_image(tree: &Tree, path: &Path, is_durable: bool) -> Result<()> {
    let new = path.with_extension("new");
    remove_if_there(&new)?;
    let written = write_new(tree, path, &new, is_durable);
    if written.is_err() {
        // The incomplete file may have filled the disk.
        let _ = fs::remove_file(&new);
    }
    written?;
    match path.parent() {
        Some(directory) if is_durable => sync_directory(directory),
        _ => Ok(()),
    }
}

/// Syncs the names in a directory: those created and those removed.
pub(super) fn sync_directory(directory: &Path) -> Result<()> {
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.context(|| format!("sync {}", directory.display()))
}

fn write_new(tree: &Tree, path: &Path, new: &Path, is_durable: bool) -> Result<()> {
    let image = match packed::is_packed(path) {
        true => create(new)
            .and_then(|to| packed::write(tree, to))
            .context(|| format!("write {}", new.display()))?,
        false => write_image(tree, new)?,
    };
    if is_durable {
        image.sync_all().context(|| format!("sync {}", new.display()))?;
    }
    fs::rename(new, path).context(|| format!("rename {}", new.display()))
}

pub(crate) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Whether a file equals the image of a tree byte for byte. False if it is missing.
pub(super) fn is_image_of(tree: &Tree, path: &Path) -> Result<bool> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file.context(|| format!("open {}", path.display()))?,
    };
    let image: Box<dyn Read> = match packed::is_packed(path) {
        true => match packed::open(file) {
            Ok((image, len)) if fs::metadata(path).is_ok_and(|metadata| metadata.len() == len) => {
                Box::new(image)
            }
            _ => return Ok(false),
        },
        false => Box::new(file),
    };
    let mut compared = Compared { image: BufReader::new(image), found: Vec::new(), is_same: true };
    tree.write(&mut compared)?;
    Ok(compared.is_same && compared.image.read(&mut [0]).unwrap_or(1) == 0)
}

/// Compares the bytes written to it with those of an image.
struct Compared {
    image: BufReader<Box<dyn Read>>,
    /// Buffer for bytes of the image.
    found: Vec<u8>,
    is_same: bool,
}

impl Write for Compared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_same {
            self.found.resize(bytes.len(), 0);
            // A read error counts as a difference.
            self.is_same = self.image.read_exact(&mut self.found).is_ok() && self.found == bytes;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn write_image(tree: &Tree, path: &Path) -> Result<File> {
    write_to(create(path)?, tree, path)
}

/// Writes an image to a file without a name in a directory. The file is gone once it is closed, unless it is given a
/// name by then.
pub(super) fn unnamed_image(tree: &Tree, directory: &Path) -> Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR).map_err(io::Error::from);
    let file = file.context(|| format!("create a file in {}", directory.display()))?;
    write_to(file.into(), tree, directory)
}

/// Gives a file without a name one, in place of the file that has it, and closes it.
pub(super) fn give_name(file: File, path: &Path) -> Result<()> {
    remove_if_there(path)?;
    linkat(CWD, proc_path(file.as_fd()), CWD, path, AtFlags::SYMLINK_FOLLOW)
        .map_err(io::Error::from)
        .context(|| format!("name a file {}", path.display()))
}

fn write_to(file: File, tree: &Tree, path: &Path) -> Result<File> {
    let mut to = BufWriter::with_capacity(256 * 1024, file);
    let what = || format!("write {}", path.display());
    tree.write(&mut to).context(what)?;
    to.flush().context(what)?;
    to.into_inner().map_err(io::IntoInnerError::into_error).context(what)
}

fn create(path: &Path) -> Result<File> {
    new_file().truncate(true).open(path).context(|| format!("create {}", path.display()))
}

fn new_file() -> fs::OpenOptions {
    let mut options = File::options();
    options.read(true).write(true).create(true).mode(0o600);
    options
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::fd::AsRawFd;

    use linux::mount;

    use super::*;
    use crate::layer::{IMAGE, STACK};

    #[test]
    fn an_image_that_does_not_fit_leaves_nothing() {
        if !stdx::testing::is_root("a mount") {
            return;
        }
        let options = mount::Options::parse(&["size=64k".to_owned()]);
        let disk = mount::new_filesystem("tmpfs", "tmpfs", &options).unwrap();
        let directory = PathBuf::from(format!("/proc/self/fd/{}", disk.as_raw_fd()));
        let mut tree = Tree::new(erofs::Device { tag: "x".into(), len: 512 });
        for number in 0..5000 {
            let metadata = erofs::Metadata {
                mode: 0o600,
                uid: number,
                gid: 0,
                mtime: (i64::from(number) * 1_000_003, number),
                attributes: &BTreeMap::new(),
            };
            let path = types::Digest::of(&number.to_le_bytes()).hex().to_owned();
            let kind = erofs::EntryKind::File { len: 0, at: 0 };
            tree.add(&erofs::Entry { path: path.as_bytes(), kind, metadata }).unwrap();
        }
        for name in [IMAGE, PACKED_IMAGE, STACK] {
            let error = replace_image(&tree, &directory.join(name), false).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{}", error.chain());
            assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "{name}");
        }
    }
}
