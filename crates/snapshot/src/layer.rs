//! Layers that are kept as they came: an archive, and an image of metadata that the kernel mounts with the
//! archive as its device (`docs/design/erofs.md`).
//!
//! ```text
//! ROOT/ID/
//! ├── data.tar      the layer, plain                        written once, by whoever unpacks it
//! ├── layer.erofs   what is where in it                     ditto; packed, as layer.erofs.zst, if others show it
//! ├── layer.spans   how to make parts of it from its blob   ditto, unless the configuration says no
//! ├── stack.erofs   this layer merged with those below      made when first needed, and made anew if lost or changed
//! └── lower         where one of the images is mounted      until the snapshot is removed, or a reboot
//! ```
//!
//! A layer may rot. What shows without reading it all (a file that is gone or cut off) is looked for in what is
//! used of it, whenever it is used; whoever reads it all puts right files in the place of wrong ones. What was mounted of
//! the wrong ones is detached, which leaves running containers what they see.
//!
//! Layers of this form that lie on each other are one mount. What lies below them (directories that an older
//! daemon or a client unpacked) is overlayfs's business, and decides how directories look that no entry of
//! the archives names.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use erofs::{Ground, Looks, Tree};
use linux::beneath::{Root, proc_path};
use linux::loopdev::LoopDevice;
use linux::mount;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, fgetxattr, flistxattr, flock};
use rustix::io::Errno;
use types::{Context, Error, Mount, Result};

use crate::{Options, Usage, packed, verity};

pub(crate) const DATA: &str = "data.tar";
pub(crate) const IMAGE: &str = "layer.erofs";
pub(crate) const PACKED_IMAGE: &str = "layer.erofs.zst";
const SPANS: &str = "layer.spans";
pub(crate) const STACK: &str = "stack.erofs";
const MOUNTED: &str = "lower";

/// Bytes that the kernel takes as a value of an option of a mount.
const PATH_LEN_MAX: usize = 255;
/// Bytes of an attribute, and of the names of all of a directory's (xattr(7)).
const XATTRS_LEN_MAX: usize = 64 * 1024;

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
    wants_record: bool,
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

    /// Stores a layer: `store` fills the archive and says what is where in it. `Unavailable` while somebody
    /// else does.
    ///
    /// Nothing is synced: whoever commits syncs all layers of an image at once, and a snapshot that was not
    /// committed is not looked at again.
    pub fn write(&self, store: impl FnOnce(NewLayer<'_>) -> Result<Tree>) -> Result<()> {
        self.write_with(store, false)
    }

    /// The same for a snapshot that others may look at again after a power cut.
    pub fn write_durably(&self, store: impl FnOnce(NewLayer<'_>) -> Result<Tree>) -> Result<()> {
        self.write_with(store, true)
    }

    /// Looks for damage that shows without reading the layer: `DataLoss` if a file of it is gone, or is not as
    /// long as the image says.
    pub fn look(&self) -> Result<()> {
        self.lens().and_then(|lens| lens.compare(self))
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
        let directory = self.data.parent().unwrap_or(Path::new("."));
        match verity::compare(directory) {
            Err(error) if error.is(types::ErrorKind::DataLoss) => Ok(false),
            compared => compared.map(|()| true),
        }
    }

    /// Whether the image is, byte for byte, that of this tree.
    pub fn is_image_of(&self, tree: &Tree) -> Result<bool> {
        is_image_of(tree, &self.image)
    }

    /// Puts a layer in the place of one whose files are wrong. All is on disk when this returns; a crash before
    /// leaves wrong files, or right ones, or the new archive with the old image. Whoever calls tells the
    /// snapshotter ([`crate::Snapshotter::layer_mended`]).
    pub fn replace(&self, store: impl FnOnce(NewLayer<'_>) -> Result<Tree>) -> Result<()> {
        let new = LayerFiles {
            data: self.data.with_extension("mended"),
            record: self.record.with_extension("mended"),
            ..self.clone()
        };
        let data = new.own_data()?;
        let replaced = new.store_in(&data, store, true).and_then(|tree| {
            for (from, to) in [(&new.record, &self.record), (&new.data, &self.data)] {
                match fs::rename(from, to) {
                    // There is none of it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound && *from == new.record => {}
                    renamed => renamed.context(|| format!("rename {}", from.display()))?,
                }
            }
            self.replace_image(&tree)
        });
        if replaced.is_err() {
            new.remove_new();
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
        replace_image(tree, &self.image, true)
    }

    fn write_with(&self, store: impl FnOnce(NewLayer<'_>) -> Result<Tree>, is_durable: bool) -> Result<()> {
        let data = self.own_data()?;
        let stored = self
            .store_in(&data, store, is_durable)
            .and_then(|tree| replace_image(&tree, &self.image, is_durable));
        if stored.is_err() {
            self.remove_new();
        }
        stored
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

    /// Takes back what an attempt has written.
    fn remove_new(&self) {
        for path in [&self.data, &self.record] {
            // Only tidiness: the next writer truncates it.
            let _ = fs::remove_file(path);
        }
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

/// How long the files of a layer are, as its image says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lens {
    data: u64,
    image: u64,
    inodes: u64,
}

impl Lens {
    pub(crate) fn compare(self, files: &LayerFiles) -> Result<()> {
        compare_len(&files.image, self.image)?;
        compare_len(&files.data, self.data)
    }
}

fn compare_len(path: &Path, len: u64) -> Result<()> {
    let found = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(gone(path)),
        metadata => metadata.context(|| format!("look at {}", path.display()))?.len(),
    };
    if found != len {
        return Err(damaged(format!("{} has {found} bytes instead of {len}", path.display())));
    }
    Ok(())
}

/// A layer of a chain. Clones share its path: a chain of a hundred is put together at each start of a container.
#[derive(Clone, Debug)]
pub(crate) struct Archive {
    directory: Arc<Path>,
    lens: Lens,
    is_packed: bool,
}

impl Archive {
    /// `DataLoss` if its image is gone, or is none.
    pub(crate) fn find(directory: &Path) -> Result<Archive> {
        let files = LayerFiles::of(directory);
        let is_packed = packed::is_packed(&files.image);
        Ok(Archive { directory: directory.into(), lens: files.lens()?, is_packed })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    fn files(&self) -> LayerFiles {
        LayerFiles::of(&self.directory)
    }

    /// Refuses a layer that is visibly damaged.
    pub(crate) fn look(&self) -> Result<()> {
        self.lens.compare(&self.files())
    }

    /// The same of what is used of it where an image of several layers shows it. `root` is the directory of all
    /// snapshots: a hundred layers are looked at at each start of a container, and most of that is finding them.
    fn look_at_data(&self, root: BorrowedFd<'_>) -> Result<()> {
        let name = Path::new(self.directory.file_name().unwrap_or_default()).join(DATA);
        match rustix::fs::statat(root, &name, AtFlags::empty()) {
            Ok(stat) if u64::try_from(stat.st_size) == Ok(self.lens.data) => Ok(()),
            // And says what it is.
            _ => compare_len(&self.directory.join(DATA), self.lens.data),
        }
    }
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
fn read_image(path: &Path) -> Result<Vec<u8>> {
    let read = match packed::is_packed(path) {
        true => open_kept(path).map(packed::read)?,
        false => fs::read(path),
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

/// Whether a snapshot's directory holds a layer of this form.
pub(crate) fn is_archive(directory: &Path) -> bool {
    directory.join(image_name(directory)).exists()
}

/// How the image of a layer is called, or was if it is gone.
pub(crate) fn image_name(directory: &Path) -> &'static str {
    if directory.join(PACKED_IMAGE).exists() { PACKED_IMAGE } else { IMAGE }
}

/// The same for a committed one, of which a part may be gone: one of the other form has its tree.
pub(crate) fn was_archive(directory: &Path) -> bool {
    is_archive(directory) || directory.join(DATA).exists() || !directory.join("fs").exists()
}

/// What the layer takes on disk, and how many inodes are in it.
pub(crate) fn usage(directory: &Path) -> Result<Usage> {
    let files = LayerFiles::of(directory);
    let lens = files.lens()?;
    lens.compare(&files)?;
    let mut usage = Usage { inodes: lens.inodes, ..Usage::default() };
    for path in [&files.data, &files.image, &files.record] {
        usage.bytes += match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && *path == files.record => 0,
            metadata => metadata.context(|| format!("look at {}", path.display()))?.blocks() * 512,
        };
    }
    Ok(usage)
}

/// The images that are mounted, or about to be.
pub(crate) struct Mounted {
    /// Held while an image is made and mounted, so that two callers do not do it twice.
    busy: Mutex<BTreeMap<PathBuf, Arc<Mutex<()>>>>,
    /// Held while layers are merged, which takes memory for each of their files.
    merging: Mutex<()>,
    /// The directory of all snapshots.
    root: OwnedFd,
    options: Options,
}

impl Mounted {
    pub(crate) fn new(root: &Path, options: Options) -> Result<Mounted> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(root, flags, Mode::empty()).map_err(io::Error::from);
        let root = opened.context(|| format!("open {}", root.display()))?;
        Ok(Mounted { busy: Mutex::default(), merging: Mutex::default(), root, options })
    }

    /// Mounts layers, nearest first, as one tree, and returns where it is. `below` are the trees below them.
    /// `DataLoss` if one of them is visibly damaged.
    pub(crate) fn mount(&self, layers: &[Archive], below: &[PathBuf]) -> Result<PathBuf> {
        let [top, ..] = layers else { return Err(Error::internal("a stack of no layers")) };
        let target = top.directory.join(MOUNTED);
        if is_mount_point(&target)? {
            match is_stack(layers, below) {
                true => layers.iter().try_for_each(|layer| layer.look_at_data(self.root.as_fd()))?,
                false => top.look()?,
            }
            return Ok(target);
        }
        layers.iter().try_for_each(Archive::look)?;
        let mounted = self.alone(&top.directory, || match is_mount_point(&target) {
            Ok(false) => self.mount_at(layers, below, &target),
            other => other.map(drop),
        });
        mounted.context(|| format!("mount the layer in {}", top.directory.display()))?;
        Ok(target)
    }

    /// Makes what [`Mounted::mount`] would make on disk.
    pub(crate) fn make_stack(&self, layers: &[Archive], below: &[PathBuf]) -> Result<()> {
        let [top, ..] = layers else { return Ok(()) };
        if !is_stack(layers, below) {
            return Ok(());
        }
        let made = self.alone(&top.directory, || self.stack(layers, below).map(drop));
        made.context(|| format!("merge the layers in {}", top.directory.display()))
    }

    fn mount_at(&self, layers: &[Archive], below: &[PathBuf], target: &Path) -> Result<()> {
        match fs::create_dir(target) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.context(|| format!("create {}", target.display()))?,
        }
        let image = match is_stack(layers, below) {
            true => self.stack(layers, below)?,
            false => layers[0].files().image,
        };
        let data: Vec<PathBuf> = layers.iter().rev().map(|layer| layer.files().data).collect();
        layers.iter().try_for_each(|layer| verity::compare(&layer.directory))?;
        let mount = detached(&image, &data, self.options.direct_reads)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let at = rustix::fs::open(target, flags, Mode::empty()).map_err(io::Error::from);
        mount::attach(mount.as_fd(), at.context(|| format!("open {}", target.display()))?.as_fd())
    }

    /// The image of several layers, made if it is not there as a whole.
    fn stack(&self, layers: &[Archive], below: &[PathBuf]) -> Result<PathBuf> {
        let path = layers[0].directory.join(STACK);
        let of_stack = LayerFiles { image: path.clone(), ..layers[0].files() };
        let looked = of_stack.lens().and_then(|lens| compare_len(&path, lens.image));
        match looked.and_then(|()| verity::compare_stack(&layers[0].directory)) {
            Err(error) if error.is(types::ErrorKind::DataLoss) => {
                let _alone = self.merging.lock().unwrap_or_else(PoisonError::into_inner);
                replace_image(&stacked(layers, below)?, &path, true)?;
                if self.options.verity || verity::is_watched(&layers[0].directory) {
                    verity::watch_stack(&layers[0].directory)?;
                }
            }
            looked => looked?,
        }
        Ok(path)
    }

    fn alone(&self, top: &Path, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let busy = Arc::clone(self.lock().entry(top.to_owned()).or_default());
        let worked = {
            let _alone = busy.lock().unwrap_or_else(PoisonError::into_inner);
            work()
        };
        // Ours goes under the lock, or who ends at the same time would still count it.
        let mut all = self.lock();
        drop(busy);
        // The map's alone: who waits has another one, and who comes next must wait for that.
        if all.get(top).is_some_and(|busy| Arc::strong_count(busy) == 1) {
            all.remove(top);
        }
        worked
    }

    /// Takes back what was made of a layer together with those below it, before it gets others or after one of them was
    /// mended. What somebody is making of files that are no more is taken back too, once it is made.
    pub(crate) fn forget(&self, directory: &Path) -> Result<()> {
        self.alone(directory, || forget_stack(directory))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, Arc<Mutex<()>>>> {
        // Changes are single steps; a panic elsewhere leaves them whole.
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether layers are shown by an image of all of them, not by that of the only one.
fn is_stack(layers: &[Archive], below: &[PathBuf]) -> bool {
    layers.len() > 1 || !below.is_empty() || layers[0].is_packed
}

/// Takes the mount off a snapshot's directory, before that is deleted. Users that are left keep what they see.
pub(crate) fn unmount(directory: &Path) -> Result<()> {
    mount::unmount_all(&directory.join(MOUNTED))
}

fn forget_stack(directory: &Path) -> Result<()> {
    unmount(directory)?;
    verity::forget_stack(directory)?;
    remove_if_there(&directory.join(STACK))
}

/// Whether this kernel mounts images from files of this file system, directly or as loop devices.
///
/// With `direct_reads` also whether it reads archives past its memory of files (Linux 6.13), at the places where
/// files begin in them. `Unimplemented` if it does not, with its reason.
pub fn probe(root: &Path, direct_reads: bool) -> Result<()> {
    fs::create_dir_all(root).context(|| format!("create {}", root.display()))?;
    let (data, image) = (root.join("probe.tar"), root.join("probe.erofs"));
    let probed = probe_with(&data, &image, direct_reads);
    for path in [&data, &image] {
        let _ = fs::remove_file(path); // overwritten by the next probe otherwise
    }
    probed.map_err(|error| Error::unimplemented("layers cannot be mounted from archives").with_source(error))
}

fn probe_with(data: &Path, image: &Path, direct_reads: bool) -> Result<()> {
    const SAID: &[u8] = b"what is written is read";
    let what = || "probe";
    let mut archive = vec![0; 512];
    archive.extend_from_slice(SAID);
    archive.resize(1024, 0);
    fs::write(data, &archive).context(what)?;
    let mut tree = Tree::new(erofs::Device { tag: "probe".into(), len: archive.len() as u64 });
    let looks = Looks { mode: 0o600, uid: 0, gid: 0, mtime: (0, 0), attributes: &BTreeMap::new() };
    let kind = erofs::EntryKind::File { len: SAID.len() as u64, at: 512 };
    tree.add(&erofs::Entry { path: b"said", kind, looks })?;
    write_image(&tree, image)?;
    File::open(data).and_then(|data| data.sync_all()).context(what)?;
    let mount = detached(image, &[data.to_owned()], direct_reads)?;
    let mut found = Vec::new();
    let said = rustix::fs::openat(&mount, "said", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    File::from(said.map_err(io::Error::from).context(what)?).read_to_end(&mut found).context(what)?;
    if found != SAID {
        return Err(Error::data_loss("a file of the image is not what was written"));
    }
    Ok(())
}

/// An image with its devices, mounted nowhere yet. Kernels that mount no files (`ENOTBLK`) get block devices
/// that show them.
fn detached(image: &Path, data: &[PathBuf], direct_reads: bool) -> Result<OwnedFd> {
    match from_files(image, data, direct_reads) {
        Err(error) if !direct_reads && is_want_of_block_devices(&error) => from_loop_devices(image, data),
        mounted => mounted,
    }
}

fn from_files(image: &Path, data: &[PathBuf], direct_reads: bool) -> Result<OwnedFd> {
    // What is too long for an option is opened here and named by its number, until it is mounted.
    let mut open = Vec::new();
    let mut shown = |path: &Path| -> Result<String> {
        match path.to_str() {
            Some(text) if text.len() < PATH_LEN_MAX => Ok(text.to_owned()),
            _ => {
                let file = File::open(path).context(|| format!("open {}", path.display()))?;
                let text = format!("/proc/self/fd/{}", file.as_raw_fd());
                open.push(file);
                Ok(text)
            }
        }
    };
    let source = shown(image)?;
    let data = data.iter().map(|path| shown(path)).collect::<Result<Vec<_>>>()?;
    new_mount(&source, &data, if direct_reads { &["directio"] } else { &[] })
}

fn from_loop_devices(image: &Path, data: &[PathBuf]) -> Result<OwnedFd> {
    let show = |path: &PathBuf| {
        let what = || format!("show {} as a device", path.display());
        LoopDevice::show(File::open(path).context(what)?.as_fd()).context(what)
    };
    let image = show(&image.to_owned())?;
    let data = data.iter().map(show).collect::<Result<Vec<_>>>()?;
    let path = |device: &LoopDevice| device.path().display().to_string();
    new_mount(&path(&image), &data.iter().map(path).collect::<Vec<_>>(), &[])
}

fn new_mount(source: &str, devices: &[String], words: &[&str]) -> Result<OwnedFd> {
    let devices = devices.iter().map(|device| format!("device={device}"));
    let words = ["ro"].iter().chain(words).map(ToString::to_string);
    let options: Vec<String> = words.chain(devices).collect();
    mount::new_filesystem("erofs", source, &mount::Options::parse(&options))
}

fn is_want_of_block_devices(error: &Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    cause.and_then(io::Error::raw_os_error) == Some(Errno::NOTBLK.raw_os_error())
}

/// Whether the image of several layers, if there is one, is what they give. Not if they cannot be read.
pub(crate) fn is_stack_right(layers: &[Archive], below: &[PathBuf]) -> Result<bool> {
    let path = layers[0].directory.join(STACK);
    if !path.exists() {
        return Ok(true);
    }
    match verity::compare_stack(&layers[0].directory) {
        Err(error) if error.is(types::ErrorKind::DataLoss) => Ok(false),
        compared => compared.and_then(|()| is_image_of(&stacked(layers, below)?, &path)),
    }
}

fn stacked(layers: &[Archive], below: &[PathBuf]) -> Result<Tree> {
    let trees = layers.iter().rev().map(|layer| {
        let path = layer.files().image;
        Tree::read(&read_image(&path)?).context(|| path.display().to_string())
    });
    let ground = if below.is_empty() { Ground::Nothing } else { Ground::Layers };
    let mut tree = Tree::stack(trees, ground)?;
    if !below.is_empty() {
        dress(&mut tree, below)?;
    }
    Ok(tree)
}

/// Gives directories that no entry of the layers names the looks that they have below.
fn dress(tree: &mut Tree, below: &[PathBuf]) -> Result<()> {
    let implied = tree.implied();
    if implied.is_empty() {
        return Ok(());
    }
    let shown = Root::from_fd(mount::open_recipe(&[overlaid(below)])?, Path::new("the layers below"));
    for path in implied {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let path = Path::new(std::ffi::OsStr::from_bytes(&path));
        let Some(directory) = shown.find(path, flags)? else { continue };
        let what = || format!("look at {} in the layers below", path.display());
        let metadata = fs::metadata(proc_path(directory.as_fd())).context(what)?;
        let attributes = attributes(&directory).map_err(io::Error::from).context(what)?;
        let looks = Looks {
            mode: u16::try_from(metadata.mode() & 0o7777).expect("twelve bits"),
            uid: metadata.uid(),
            gid: metadata.gid(),
            mtime: (metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap_or(0)),
            attributes: &attributes,
        };
        tree.dress_implied(path.as_os_str().as_bytes(), &looks)?;
    }
    Ok(())
}

/// Trees on each other, the nearest first, read-only.
pub(crate) fn overlaid(trees: &[PathBuf]) -> Mount {
    let shown = |tree: &PathBuf| tree.display().to_string();
    match trees {
        [only] => Mount {
            kind: "bind".into(),
            source: shown(only),
            target: String::new(),
            options: vec!["ro".to_owned(), "rbind".to_owned()],
        },
        _ => Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options: vec![format!("lowerdir={}", trees.iter().map(shown).collect::<Vec<_>>().join(":"))],
        },
    }
}

fn attributes(directory: &OwnedFd) -> Result<BTreeMap<String, Vec<u8>>, Errno> {
    let mut names = vec![0; XATTRS_LEN_MAX];
    let len = match flistxattr(directory, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        listed => listed?,
    };
    let mut found = BTreeMap::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        let mut value = vec![0; XATTRS_LEN_MAX];
        let len = fgetxattr(directory, name, &mut value[..])?;
        value.truncate(len);
        found.insert(name.to_owned(), value);
    }
    Ok(found)
}

fn is_mount_point(path: &Path) -> Result<bool> {
    let what = || format!("look at {}", path.display());
    let device = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        metadata => metadata.context(what)?.dev(),
    };
    let around = path.parent().unwrap_or(Path::new("/"));
    Ok(device != fs::symlink_metadata(around).context(what)?.dev())
}

/// Writes an image under its name only when it is whole, and on disk if it is to be durable: whoever finds it
/// believes it.
fn replace_image(tree: &Tree, path: &Path, is_durable: bool) -> Result<()> {
    let new = path.with_extension("new");
    remove_if_there(&new)?;
    let image = match packed::is_packed(path) {
        true => create(&new)
            .and_then(|to| packed::write(tree, to))
            .context(|| format!("write {}", new.display()))?,
        false => write_image(tree, &new)?,
    };
    if is_durable {
        image.sync_all().context(|| format!("sync {}", new.display()))?;
    }
    fs::rename(&new, path).context(|| format!("rename {}", new.display()))?;
    match path.parent() {
        Some(directory) if is_durable => {
            let synced = File::open(directory).and_then(|directory| directory.sync_all());
            synced.context(|| format!("sync {}", directory.display()))
        }
        _ => Ok(()),
    }
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
fn is_image_of(tree: &Tree, path: &Path) -> Result<bool> {
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

fn write_image(tree: &Tree, path: &Path) -> Result<File> {
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
    use super::*;

    /// What a kernel before 6.12 is given, tried on this one.
    #[test]
    fn images_are_mounted_from_loop_devices_too() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: mounting needs root");
            return;
        }
        let dir = tempfile::TempDir::new().unwrap();
        let files = LayerFiles::of(dir.path());
        let mut tree = Tree::new(erofs::Device { tag: "x".into(), len: 1024 });
        let looks = Looks { mode: 0o600, uid: 0, gid: 0, mtime: (0, 0), attributes: &BTreeMap::new() };
        let kind = erofs::EntryKind::File { len: 3, at: 512 };
        tree.add(&erofs::Entry { path: b"file", kind, looks }).unwrap();
        files
            .write(|new| {
                std::os::unix::fs::FileExt::write_all_at(new.data, b"abc", 512).unwrap();
                new.data.set_len(1024).unwrap();
                Ok(tree)
            })
            .unwrap();
        let mount = from_loop_devices(&files.image, std::slice::from_ref(&files.data)).unwrap();
        let file = rustix::fs::openat(&mount, "file", OFlags::RDONLY, Mode::empty()).unwrap();
        assert_eq!(io::read_to_string(File::from(file)).unwrap(), "abc");
    }

    /// A file whose reads fail as those of a bad block: nothing is at the beginning of our memory.
    fn unreadable_file(at: &Path) {
        std::os::unix::fs::symlink("/proc/self/mem", at).unwrap();
    }

    #[test]
    fn what_the_disk_does_not_give_is_damage() {
        let dir = tempfile::TempDir::new().unwrap();
        let files = LayerFiles::of(dir.path());
        unreadable_file(&files.image);
        assert_eq!(files.look().unwrap_err().kind(), types::ErrorKind::DataLoss);
        let lens = Lens { data: 0, image: 0, inodes: 0 };
        let archive = Archive { directory: dir.path().into(), lens, is_packed: false };
        let stacked = stacked(&[archive.clone(), archive], &[]).err().unwrap();
        assert_eq!(stacked.kind(), types::ErrorKind::DataLoss, "{}", stacked.chain());
    }

    /// Of a layer that the kernel watches over, the image that merges it is believed only as it was recorded.
    #[test]
    fn an_image_of_several_layers_without_a_record_is_none() {
        let dir = tempfile::TempDir::new().unwrap();
        let directory = dir.path();
        fs::write(directory.join(STACK), "an image").unwrap();
        verity::compare_stack(directory).unwrap();
        let kind = |compared: Result<()>| compared.unwrap_err().kind();
        fs::write(directory.join("verity"), "").unwrap();
        assert_eq!(kind(verity::compare_stack(directory)), types::ErrorKind::DataLoss);
        fs::remove_file(directory.join("verity")).unwrap();
        fs::write(directory.join("stack.verity"), format!("{} {STACK}\n", types::Digest::of(b"x"))).unwrap();
        assert_eq!(kind(verity::compare_stack(directory)), types::ErrorKind::DataLoss, "nobody watches it");
        forget_stack(directory).unwrap();
        assert_eq!(fs::read_dir(directory).unwrap().count(), 0);
    }

    fn waiting(mounted: &Mounted, directory: &Path) -> usize {
        // The map has one itself.
        mounted.lock().get(directory).map_or(0, |busy| Arc::strong_count(busy) - 1)
    }

    /// Somebody has read a layer for the image of several when it is mended.
    #[test]
    fn what_is_made_of_a_layer_while_that_is_mended_does_not_stay() {
        let dir = tempfile::TempDir::new().unwrap();
        let mounted = Mounted::new(dir.path(), Options::new(crate::LayerForm::Archives)).unwrap();
        let mut image = Vec::new();
        Tree::new(erofs::Device { tag: "x".into(), len: 0 }).write(&mut image).unwrap();
        let layers = ["top", "base"].map(|name| {
            let directory = dir.path().join(name);
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join(IMAGE), &image).unwrap();
            Archive::find(&directory).unwrap()
        });
        let [top, base] = &layers;
        // Whoever reads it goes on when we let him.
        let read = base.files().image;
        fs::remove_file(&read).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &read, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .unwrap();
        std::thread::scope(|scope| {
            let making = scope.spawn(|| mounted.make_stack(&layers, &[]));
            let mut reader = File::options().write(true).open(&read).unwrap();
            let forgetting = scope.spawn(|| mounted.forget(top.directory()));
            while !forgetting.is_finished() && waiting(&mounted, top.directory()) < 2 {
                std::thread::yield_now();
            }
            reader.write_all(&image).unwrap();
            drop(reader);
            making.join().unwrap().unwrap();
            forgetting.join().unwrap().unwrap();
        });
        assert!(!top.directory().join(STACK).exists(), "it was made of what is wrong");
        assert_eq!(waiting(&mounted, top.directory()), 0);
        assert!(mounted.lock().is_empty());
    }

    #[test]
    fn only_the_want_of_a_block_device_leads_to_loop_devices() {
        let failed = |errno: Errno| Err::<(), _>(io::Error::from(errno)).context(|| "mount").unwrap_err();
        assert!(is_want_of_block_devices(&failed(Errno::NOTBLK)));
        assert!(!is_want_of_block_devices(&failed(Errno::INVAL)));
    }
}
