//! Layers that are kept as archives: a tar file, and an image of metadata that the kernel mounts with the archive as
//! its device (`docs/design/erofs.md`).
//!
//! ```text
//! ROOT/ID/
//! ├── data.tar      the plain archive                       written once, when the layer is unpacked
//! ├── layer.erofs   its metadata image                      ditto; packed, as layer.erofs.zst, if merged with others
//! ├── layer.spans   the record of its blob's spans          ditto, unless the configuration says no
//! ├── stack.erofs   this layer merged with those below      made when first needed, and made anew if lost or changed
//! └── lower         mount point of one of the images        until the snapshot is removed, or a reboot
//! ```
//!
//! The disk may corrupt a layer. Each use of its files checks for damage that shows without reading them (a missing or
//! truncated file); a verification reads them all, and replaces damaged ones. Mounts of the damaged files are detached,
//! which running containers keep seeing.
//!
//! Consecutive layers of this form are one mount. Overlayfs stacks it on the directories below, which an older daemon
//! or a client unpacked; directories without an entry in the archives take their metadata from these.

mod direct_io;
mod files;
mod merged;
mod mounting;
mod stack;
mod tree_cache;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use linux::mount;
use rustix::fs::{AtFlags, Mode, OFlags};
use stdx::Mutex;
use types::{Context, Error, Result};

use self::direct_io::DirectIo;
pub use self::files::{LayerFiles, NewLayer};
use self::files::{Lens, compare_len, give_name, is_image_of, replace_image, sync_directory, unnamed_image};
pub(crate) use self::files::{damaged, remove_if_there};
pub use self::merged::Merged;
use self::mounting::detached;
pub use self::mounting::{Backing, probe, reads_files_soundly};
use self::stack::stacked;
use self::tree_cache::TreeCache;
use crate::{Options, Usage, packed, verity};

pub(crate) const DATA: &str = "data.tar";
pub(crate) const IMAGE: &str = "layer.erofs";
pub(crate) const PACKED_IMAGE: &str = "layer.erofs.zst";
const SPANS: &str = "layer.spans";
pub(crate) const STACK: &str = "stack.erofs";
const MOUNTED: &str = "lower";

/// Offset of the sparse files in a data file that has any (`docs/design/erofs.md`).
const HOLES_AT: u64 = 1 << 40;

/// A layer of a chain. Clones share its path, since each start of a container builds the chain, of up to a hundred
/// layers.
#[derive(Clone, Debug)]
pub(crate) struct Archive {
    directory: Arc<Path>,
    lens: Lens,
    is_packed: bool,
}

impl Archive {
    /// Opens the layer in a directory. `DataLoss` if its image is missing or damaged.
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

    /// `DataLoss` if a file of the layer is missing or has another length.
    pub(crate) fn look(&self) -> Result<()> {
        self.lens.compare(&self.files())
    }

    /// Bytes of the data file without holes. Without sparse files this is its length, which needs no stat(2).
    fn len_on_disk(&self) -> u64 {
        match self.lens.data {
            ..=HOLES_AT => self.lens.data,
            _ => fs::metadata(self.files().data).map_or(0, |data| data.blocks() * 512),
        }
    }

    /// Checks the data file alone, for a layer that is mounted by the image of several. `root` is the directory of all
    /// snapshots: each start of a container checks up to a hundred layers, most of which would be path resolution.
    fn look_at_data(&self, root: BorrowedFd<'_>) -> Result<()> {
        let name = Path::new(self.directory.file_name().unwrap_or_default()).join(DATA);
        match rustix::fs::statat(root, &name, AtFlags::empty()) {
            Ok(stat) if u64::try_from(stat.st_size) == Ok(self.lens.data) => Ok(()),
            // Fails with a description of the damage.
            _ => compare_len(&self.directory.join(DATA), self.lens.data),
        }
    }
}

/// Whether a snapshot's directory has a layer of this form.
pub(crate) fn is_archive(directory: &Path) -> bool {
    directory.join(image_name(directory)).exists()
}

/// The file name of a layer's image; the unpacked one's if the image is missing.
pub(crate) fn image_name(directory: &Path) -> &'static str {
    if directory.join(PACKED_IMAGE).exists() { PACKED_IMAGE } else { IMAGE }
}

/// Whether a committed snapshot is a layer of this form, even if some of its files are missing. A snapshot of the other
/// form has a directory `fs`.
pub(crate) fn was_archive(directory: &Path) -> bool {
    is_archive(directory) || directory.join(DATA).exists() || !directory.join("fs").exists()
}

/// The bytes of a layer's files on disk, and the number of inodes in its image.
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

/// Makes, mounts and drops the images of layers.
pub(crate) struct Mounted {
    /// A lock for each topmost layer whose image is being made, mounted or dropped.
    busy: Mutex<BTreeMap<PathBuf, Arc<Mutex<()>>>>,
    /// Held while layers are merged, which takes memory for each of their files.
    merging: Mutex<()>,
    /// Trees of layers that are about to be merged.
    trees: Arc<TreeCache>,
    direct_io: DirectIo,
    /// The directory of all snapshots.
    root: OwnedFd,
    options: Options,
}

impl Mounted {
    pub(crate) fn new(root: &Path, options: Options) -> Result<Mounted> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(root, flags, Mode::empty()).map_err(io::Error::from);
        let opened = opened.context(|| format!("open {}", root.display()))?;
        Ok(Mounted {
            busy: Mutex::default(),
            merging: Mutex::default(),
            trees: Arc::default(),
            direct_io: DirectIo::new(root, options.backing),
            root: opened,
            options,
        })
    }

    /// Mounts layers, nearest first, as one tree, and returns the mount point. `below` are the directories below them.
    /// `DataLoss` if a file of a layer is missing or has another length.
    pub(crate) fn mount(&self, layers: &[Archive], below: &[PathBuf]) -> Result<PathBuf> {
        let [top, ..] = layers else { return Err(Error::internal("a stack of no layers")) };
        let target = top.directory.join(MOUNTED);
        if is_mount_point(&target)? {
            match is_stack(layers, below) {
                true => layers.iter().try_for_each(|layer| layer.look_at_data(self.root.as_fd()))?,
                false => top.look()?,
            }
            // A failure leaves the mount with the page cache, and the next start tries again.
            let _ = self.direct_io.recheck(&target, &largest(layers));
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

    /// Makes the image of layers that are not a chain yet. It has no name, as an image is trusted by its name, and a
    /// crash leaves nothing of it. Nothing is synced. `None` if they need no merged image.
    pub(crate) fn merge_ahead(&self, layers: &[Archive], below: &[PathBuf]) -> Result<Option<File>> {
        let [top, ..] = layers else { return Ok(None) };
        if !is_stack(layers, below) {
            return Ok(None);
        }
        let merge = || {
            let _alone = self.merging.lock();
            unnamed_image(&stacked(layers, below, Some(&self.trees))?, &top.directory)
        };
        merge().context(|| format!("merge the layers in {}", top.directory.display())).map(Some)
    }

    /// Makes the image that [`Mounted::mount`] would make. It is the one that `ahead` returns, if any; `ahead` is called
    /// with the chain's lock held.
    pub(crate) fn make_stack(
        &self,
        layers: &[Archive],
        below: &[PathBuf],
        ahead: impl FnOnce() -> Option<File>,
    ) -> Result<()> {
        let [top, ..] = layers else { return Ok(()) };
        if !is_stack(layers, below) {
            return Ok(());
        }
        let made = self.alone(&top.directory, || self.stack(layers, below, ahead).map(drop));
        made.context(|| format!("merge the layers in {}", top.directory.display()))
    }

    fn mount_at(&self, layers: &[Archive], below: &[PathBuf], target: &Path) -> Result<()> {
        match fs::create_dir(target) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.context(|| format!("create {}", target.display()))?,
        }
        let image = match is_stack(layers, below) {
            true => self.stack(layers, below, || None)?,
            false => layers[0].files().image,
        };
        let data: Vec<PathBuf> = layers.iter().rev().map(|layer| layer.files().data).collect();
        layers.iter().try_for_each(|layer| verity::compare(&layer.directory))?;
        let largest = largest(layers);
        // If the choice fails, the configured backing still works.
        let backing = self.direct_io.backing(&largest).unwrap_or(self.options.backing);
        let mount = detached(&image, &data, backing)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let at = rustix::fs::open(target, flags, Mode::empty()).map_err(io::Error::from);
        mount::attach(mount.as_fd(), at.context(|| format!("open {}", target.display()))?.as_fd())?;
        self.direct_io.mounted(target, &largest, backing);
        Ok(())
    }

    /// The files to store a new layer in. Its tree is cached for [`Mounted::merge_ahead`] while there is room.
    pub(crate) fn new_files(&self, directory: &Path) -> LayerFiles {
        LayerFiles::of(directory).keeping_tree(Arc::clone(&self.trees))
    }

    /// Drops the cached tree of a snapshot that is about to be committed: from then on its files count, which may be
    /// mended.
    pub(crate) fn forget_tree(&self, directory: &Path) {
        drop(self.trees.take(directory));
    }

    /// Drops cached trees, and switches mounts to direct I/O whose archives are not in the page cache any more.
    pub(crate) fn relax(&self) {
        self.trees.clear();
        self.direct_io.recheck_all();
    }

    /// The merged image of several layers. If it is missing or damaged, the one merged ahead is used, or a new one is
    /// made.
    fn stack(
        &self,
        layers: &[Archive],
        below: &[PathBuf],
        ahead: impl FnOnce() -> Option<File>,
    ) -> Result<PathBuf> {
        let path = layers[0].directory.join(STACK);
        let of_stack = LayerFiles { image: path.clone(), ..layers[0].files() };
        let looked = of_stack.lens().and_then(|lens| compare_len(&path, lens.image));
        match looked.and_then(|()| verity::compare_stack(&layers[0].directory)) {
            Err(error) if error.is(types::ErrorKind::DataLoss) => {
                // The image merged ahead is on disk. Its name need not be: if a crash loses it, the image is made anew.
                let is_made = ahead().is_some_and(|ahead| give_name(ahead, &path).is_ok());
                if !is_made {
                    let _alone = self.merging.lock();
                    replace_image(&stacked(layers, below, None)?, &path, true)?;
                }
                if self.options.verity || verity::is_watched(&layers[0].directory) {
                    verity::watch_stack(&layers[0].directory)?;
                }
            }
            looked => looked?,
        }
        Ok(path)
    }

    /// Whether the merged image of several layers, if there is one, equals a new merge, and the one that fs-verity
    /// recorded.
    pub(crate) fn is_stack_right(&self, layers: &[Archive], below: &[PathBuf]) -> Result<bool> {
        let path = layers[0].directory.join(STACK);
        if !path.exists() {
            return Ok(true);
        }
        match verity::compare_stack(&layers[0].directory) {
            Err(error) if error.is(types::ErrorKind::DataLoss) => return Ok(false),
            compared => compared?,
        }
        let _alone = self.merging.lock();
        is_image_of(&stacked(layers, below, None)?, &path)
    }

    /// Runs `work` with the lock of a topmost layer held.
    fn alone(&self, top: &Path, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let busy = Arc::clone(self.lock().entry(top.to_owned()).or_default());
        let worked = {
            let _alone = busy.lock();
            work()
        };
        // Dropped under the map's lock, or a thread that ends at the same time would still count this reference.
        let mut all = self.lock();
        drop(busy);
        // Removed only if the map has the last reference: a waiting thread has one too, and later threads must wait for
        // it.
        if all.get(top).is_some_and(|busy| Arc::strong_count(busy) == 1) {
            all.remove(top);
        }
        worked
    }

    /// Unmounts and deletes the merged image of a topmost layer, before it gets other layers below or after one of them
    /// was mended. An image that another thread is making meanwhile is waited for and deleted too.
    pub(crate) fn forget(&self, directory: &Path) -> Result<()> {
        self.alone(directory, || forget_stack(directory))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, Arc<Mutex<()>>>> {
        self.busy.lock()
    }
}

/// Whether layers need a merged image: not if there is a single one with an unpacked image and nothing below.
fn is_stack(layers: &[Archive], below: &[PathBuf]) -> bool {
    layers.len() > 1 || !below.is_empty() || layers[0].is_packed
}

/// The data file with the most bytes on disk, which stands for all of a chain, of which there may be a hundred.
fn largest(layers: &[Archive]) -> PathBuf {
    let largest = layers.iter().max_by_key(|layer| layer.len_on_disk());
    largest.map(|layer| layer.files().data).unwrap_or_default()
}

/// Detaches the image that is mounted in a snapshot's directory. Containers that use it keep it.
pub(crate) fn unmount(directory: &Path) -> Result<()> {
    mount::unmount_all(&directory.join(MOUNTED))
}

/// Unmounts and deletes the merged image of a topmost layer. The deletion is on disk when it returns: otherwise, after
/// a power cut, the wrong image would be mounted again although the caller was told that the layer is mended.
fn forget_stack(directory: &Path) -> Result<()> {
    unmount(directory)?;
    verity::forget_stack(directory)?;
    let stack = directory.join(STACK);
    match fs::remove_file(&stack) {
        // Most directories have none, and need no sync.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => {
            removed.context(|| format!("remove {}", stack.display()))?;
            sync_directory(directory)
        }
    }
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use erofs::Tree;

    use super::*;

    /// A file whose reads fail like those of a bad block: the beginning of a process's memory is not mapped.
    fn unreadable_file(at: &Path) {
        std::os::unix::fs::symlink("/proc/self/mem", at).unwrap();
    }

    #[test]
    fn a_read_error_of_the_disk_is_data_loss() {
        let dir = tempfile::TempDir::new().unwrap();
        let files = LayerFiles::of(dir.path());
        unreadable_file(&files.image);
        assert_eq!(files.look().unwrap_err().kind(), types::ErrorKind::DataLoss);
        let lens = Lens { data: 0, image: 0, inodes: 0 };
        let archive = Archive { directory: dir.path().into(), lens, is_packed: false };
        let stacked = stacked(&[archive.clone(), archive], &[], None).err().unwrap();
        assert_eq!(stacked.kind(), types::ErrorKind::DataLoss, "{}", stacked.chain());
    }

    #[test]
    fn the_largest_archive_is_the_one_that_has_the_most_on_the_disk() {
        let dir = tempfile::TempDir::new().unwrap();
        let archive = |name: &str, written: usize, len: u64| {
            let directory = dir.path().join(name);
            fs::create_dir(&directory).unwrap();
            let mut data = File::create(directory.join(DATA)).unwrap();
            data.write_all(&vec![7; written]).unwrap();
            data.set_len(len).unwrap();
            let lens = Lens { data: len, image: 0, inodes: 0 };
            Archive { directory: directory.into(), lens, is_packed: false }
        };
        let with_holes = archive("with holes", 10_000, HOLES_AT + 4096);
        let others = [archive("large", 1_000_000, 1_000_000), archive("small", 10, 512)];
        assert_eq!(
            largest(&[with_holes.clone(), others[0].clone(), others[1].clone()]),
            others[0].files().data
        );
        assert_eq!(largest(&[others[1].clone(), with_holes.clone()]), with_holes.files().data);
    }

    /// If a layer is protected by fs-verity, its merged image must be recorded too.
    #[test]
    fn a_merged_image_without_a_verity_record_is_data_loss() {
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
        // The map itself has a reference.
        mounted.lock().get(directory).map_or(0, |busy| Arc::strong_count(busy) - 1)
    }

    /// Two layers, the upper first, and the image that each has. The lower one's image is a pipe, so that the test
    /// controls when a reader gets it.
    fn held_layers(dir: &Path) -> ([Archive; 2], Vec<u8>) {
        let mut image = Vec::new();
        Tree::new(erofs::Device { tag: "x".into(), len: 0 }).write(&mut image).unwrap();
        let layers = ["top", "base"].map(|name| {
            let directory = dir.join(name);
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join(IMAGE), &image).unwrap();
            Archive::find(&directory).unwrap()
        });
        let read = layers[1].files().image;
        fs::remove_file(&read).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &read, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .unwrap();
        (layers, image)
    }

    /// Comparing a merged image takes as much memory as making it.
    #[test]
    fn comparing_a_merged_image_holds_the_merge_lock() {
        let dir = tempfile::TempDir::new().unwrap();
        let mounted = Mounted::new(dir.path(), Options::new(crate::LayerForm::Archives)).unwrap();
        let (layers, image) = held_layers(dir.path());
        fs::write(layers[0].directory().join(STACK), "another").unwrap();
        std::thread::scope(|scope| {
            let comparing = scope.spawn(|| mounted.is_stack_right(&layers, &[]));
            // The open returns once the comparing thread reads the layer.
            let mut reader = File::options().write(true).open(layers[1].files().image).unwrap();
            assert!(mounted.merging.try_lock().is_none());
            reader.write_all(&image).unwrap();
            drop(reader);
            assert!(!comparing.join().unwrap().unwrap());
        });
        assert!(mounted.merging.try_lock().is_some());
    }

    /// A thread has read the damaged layer for a merged image when the layer is mended.
    #[test]
    fn a_merged_image_that_was_made_while_a_layer_was_mended_is_dropped() {
        let dir = tempfile::TempDir::new().unwrap();
        let mounted = Mounted::new(dir.path(), Options::new(crate::LayerForm::Archives)).unwrap();
        let (layers, image) = held_layers(dir.path());
        let (top, read) = (&layers[0], layers[1].files().image);
        std::thread::scope(|scope| {
            let making = scope.spawn(|| mounted.make_stack(&layers, &[], || None));
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
}
