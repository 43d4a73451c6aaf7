//! The files of a layer: written whole, looked at for damage, replaced.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use erofs::Tree;
use linux::removal;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use types::{Context, Error, ErrorKind, Result};

use super::fresh::Fresh;
use super::{DATA, PACKED_IMAGE, SPANS, image_name};
use crate::records::REMOVED;
use crate::{packed, verity};

/// Of the name of an archive that was not stored to its end.
const FAILED: &str = "failed";
/// The same of one that is to be the layer's.
const MENDED: &str = "mended";

/// Where an active snapshot takes a layer as it came, instead of its files one by one.
#[derive(Clone, Debug)]
pub struct LayerFiles {
    /// The plain archive.
    pub data: PathBuf,
    /// Written last, and whole: its presence makes the snapshot such a layer.
    pub image: PathBuf,
    /// The record of the spans of its blob. Nothing here needs it, and there may be none.
    pub record: PathBuf,
    /// Whether a layer that is stored gets a record.
    pub(super) wants_record: bool,
    /// Where the tree of a layer is kept that is going to be merged with others.
    pub(super) fresh: Option<Arc<Fresh>>,
}

/// The empty files that a layer is stored in.
pub struct NewLayer<'a> {
    /// For the plain archive.
    pub data: &'a File,
    /// For the record of its blob's spans, if one is wanted. What stays empty is none.
    pub record: Option<&'a File>,
}

impl LayerFiles {
    pub(crate) fn of(directory: &Path) -> LayerFiles {
        LayerFiles {
            data: directory.join(DATA),
            image: directory.join(image_name(directory)),
            record: directory.join(SPANS),
            wants_record: false,
            fresh: None,
        }
    }

    /// The same for a new layer that will not be mounted by itself, but merged with others: its image is packed. If it
    /// is wanted alone all the same, it is merged with none.
    pub fn merged_with_others(self) -> LayerFiles {
        LayerFiles { image: self.image.with_file_name(PACKED_IMAGE), ..self }
    }

    pub(crate) fn wanting_record(self, wants_record: bool) -> LayerFiles {
        LayerFiles { wants_record, ..self }
    }

    /// The same for a new layer whose tree is kept for who merges it.
    pub(crate) fn keeping_tree(self, fresh: Arc<Fresh>) -> LayerFiles {
        LayerFiles { fresh: Some(fresh), ..self }
    }

    /// Stores a layer: `store` fills the archive and says what is where in it. `Unavailable` while somebody
    /// else does. What a failed attempt has written goes with its snapshot.
    ///
    /// Nothing is synced: whoever commits syncs all layers of an image at once, and a snapshot that was not
    /// committed is not looked at again.
    pub fn write(&self, store: impl FnOnce(NewLayer<'_>) -> Result<Tree>) -> Result<()> {
        let tree = self.write_with(store, false)?;
        if let Some(fresh) = self.fresh.as_ref().filter(|_| packed::is_packed(&self.image)) {
            fresh.keep(self.directory(), tree);
        }
        Ok(())
    }

    /// The same for a snapshot that others may look at again after a power cut.
    pub fn write_durably(&self, store: impl FnOnce(NewLayer<'_>) -> Result<Tree>) -> Result<()> {
        self.write_with(store, true).map(drop)
    }

    /// Looks for damage that shows without reading the layer: `DataLoss` if a file of it is gone, is not as long as the
    /// image says, or is not the one that fs-verity says it was: a layer that would not be mounted.
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

    /// The archive of a committed layer, to be read. `DataLoss` if it is gone.
    pub fn open_data(&self) -> Result<File> {
        open_kept(&self.data)
    }

    /// Whether the files are those that fs-verity says they were; also where it does not watch over them.
    pub fn is_as_recorded(&self) -> Result<bool> {
        match verity::compare(self.directory()) {
            Err(error) if error.is(ErrorKind::DataLoss) => Ok(false),
            compared => compared.map(|()| true),
        }
    }

    /// Whether the image is, byte for byte, that of this tree.
    pub fn is_image_of(&self, tree: &Tree) -> Result<bool> {
        Ok(self.image_of(tree) == self.image && is_image_of(tree, &self.image)?)
    }

    /// Where the image of a layer goes. What is shown by itself lies on nothing, and one that deletes something would show
    /// what it has for that: it is merged, with others or with none.
    fn image_of(&self, tree: &Tree) -> PathBuf {
        match tree.deletes() {
            true => self.image.with_file_name(PACKED_IMAGE),
            false => self.image.clone(),
        }
    }

    /// Puts a layer in the place of one whose files are wrong. All is on disk when this returns; a crash before
    /// leaves wrong files, or right ones, or the new archive with the old image. Whoever calls tells the
    /// snapshotter ([`crate::KeptLayers::mended`]). Archives that are no part of the layer afterwards are left to
    /// [`crate::Snapshotter::reclaim`].
    pub fn replace(&self, store: impl FnOnce(NewLayer<'_>) -> Result<Tree>) -> Result<()> {
        let new = LayerFiles {
            data: self.data.with_extension(MENDED),
            record: self.record.with_extension(MENDED),
            ..self.clone()
        };
        let data = new.own_data()?;
        let replaced = new.store_in(&data, store, true).and_then(|tree| {
            set_aside(&self.data);
            for (from, to) in [(&new.record, &self.record), (&new.data, &self.data)] {
                match fs::rename(from, to) {
                    // There is none of it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound && *from == new.record => {}
                    renamed => renamed.context(|| format!("rename {}", from.display()))?,
                }
            }
            self.replace_image(&tree)
        });
        if let Err(error) = &replaced {
            // What is to be written to a full disk next needs the room.
            if !error.is(ErrorKind::ResourceExhausted) {
                set_aside(&new.data);
            }
            for path in [&new.data, &new.record] {
                // Only tidiness: the next writer truncates it.
                let _ = fs::remove_file(path);
            }
        }
        replaced
    }

    /// The record of the spans of the layer's blob, to be read; none if there is none.
    pub fn open_record(&self) -> Result<Option<File>> {
        match File::open(&self.record) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some).context(|| format!("open {}", self.record.display())),
        }
    }

    /// Takes away a record that is of no use.
    pub fn remove_record(&self) -> Result<()> {
        remove_if_there(&self.record)
    }

    /// Puts the image of the layer's archive in the place of one that is wrong, as [`LayerFiles::replace`].
    pub fn replace_image(&self, tree: &Tree) -> Result<()> {
        let image = self.image_of(tree);
        replace_image(tree, &image, true)?;
        if image == self.image { Ok(()) } else { remove_if_there(&self.image) }
    }

    fn write_with(&self, store: impl FnOnce(NewLayer<'_>) -> Result<Tree>, is_durable: bool) -> Result<Tree> {
        let data = self.own_data()?;
        let stored = self
            .store_in(&data, store, is_durable)
            .and_then(|tree| replace_image(&tree, &self.image_of(&tree), is_durable).map(|()| tree));
        if let Err(error) = &stored {
            self.take_back(error);
        }
        stored
    }

    /// Makes what an attempt has written no part of a layer. Its archive may be large, and whoever waits for the error is
    /// not to wait until the disk has freed it.
    fn take_back(&self, why: &Error) {
        // Only tidiness: the next writer truncates them.
        let _ = fs::remove_file(&self.record);
        let _ = match why.is(ErrorKind::ResourceExhausted) {
            // What is to be written to a full disk next needs the room.
            true => fs::remove_file(&self.data),
            false => fs::rename(&self.data, self.data.with_extension(FAILED)),
        };
    }

    /// Has the archive and the record written, if one is wanted.
    fn store_in(
        &self,
        data: &File,
        store: impl FnOnce(NewLayer<'_>) -> Result<Tree>,
        is_durable: bool,
    ) -> Result<Tree> {
        // Of an attempt before, which may have been about another blob.
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

    /// The archive, empty, for one writer alone.
    fn own_data(&self) -> Result<File> {
        let what = || format!("create {}", self.data.display());
        let data = new_file().truncate(false).open(&self.data).context(what)?;
        match flock(&data, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                let message =
                    format!("{} is being written: try again when that is done", self.data.display());
                return Err(Error::unavailable(message));
            }
            locked => locked.map_err(io::Error::from).context(what)?,
        }
        data.set_len(0).context(what)?;
        Ok(data)
    }
}

/// Gives a large archive another name, among what is deleted beside all else: whoever takes its own away does not wait until
/// the disk has freed it. If that cannot be, he does.
fn set_aside(archive: &Path) {
    let directory =
        archive.parent().and_then(|directory| Some((directory.parent()?, directory.file_name()?)));
    let stat = fs::metadata(archive).ok().filter(|stat| stat.len() > removal::PIECE_LEN);
    if let (Some((root, id)), Some(stat)) = (directory, stat) {
        let removed = root.join(REMOVED);
        // No two files have the same number, and a directory that was taken out of the way has no such name.
        let name = format!("{}.{}", id.display(), stat.ino());
        let _ = fs::create_dir_all(&removed).and_then(|()| fs::hard_link(archive, removed.join(name)));
    }
}

/// How long the files of a layer are, as its image says.
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

/// A file of a layer that the disk does not give, of which fs-verity says that it rotted, or that is not what was
/// packed, is damaged; of another failure of the kernel's nothing is known.
fn unreadable(path: &Path, error: io::Error) -> Error {
    if error.raw_os_error().is_none_or(|number| number == Errno::IO.raw_os_error()) {
        return damaged(format!("{} cannot be read: {error}", path.display()));
    }
    Error::new(error.kind().into(), format!("read {}", path.display())).with_source(error)
}

/// Bytes of an image, whole.
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

/// A layer that cannot be used, and the way out.
pub(crate) fn damaged(why: String) -> Error {
    Error::data_loss(format!("{why}: `hoist image verify` mends the layer"))
}

/// Writes an image under its name only when it is whole, and on disk if it is to be durable: whoever finds it
/// believes it.
pub(super) fn replace_image(tree: &Tree, path: &Path, is_durable: bool) -> Result<()> {
    let new = path.with_extension("new");
    remove_if_there(&new)?;
    let written = write_new(tree, path, &new, is_durable);
    if written.is_err() {
        // On a full disk it would take what is left, for nobody.
        let _ = fs::remove_file(&new);
    }
    written?;
    match path.parent() {
        Some(directory) if is_durable => sync_directory(directory),
        _ => Ok(()),
    }
}

/// Returns when the names in a directory are on disk, and those that were taken out of it are not.
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

/// Whether a file is, byte for byte, the image of a tree. One that is gone is not.
pub(super) fn is_image_of(tree: &Tree, path: &Path) -> Result<bool> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file.context(|| format!("open {}", path.display()))?,
    };
    let there: Box<dyn Read> = match packed::is_packed(path) {
        true => match packed::open(file) {
            Ok((image, len)) if fs::metadata(path).is_ok_and(|metadata| metadata.len() == len) => {
                Box::new(image)
            }
            _ => return Ok(false),
        },
        false => Box::new(file),
    };
    let mut compared = Compared { image: BufReader::new(there), there: Vec::new(), is_same: true };
    tree.write(&mut compared)?;
    Ok(compared.is_same && compared.image.read(&mut [0]).unwrap_or(1) == 0)
}

/// Takes what an image should be, and compares it with what it is.
struct Compared {
    image: BufReader<Box<dyn Read>>,
    there: Vec<u8>,
    is_same: bool,
}

impl Write for Compared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_same {
            self.there.resize(bytes.len(), 0);
            // What cannot be read is not what it should be.
            self.is_same = self.image.read_exact(&mut self.there).is_ok() && self.there == bytes;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn write_image(tree: &Tree, path: &Path) -> Result<File> {
    let mut to = BufWriter::with_capacity(256 * 1024, create(path)?);
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
