//! Layers that are kept as they came: an archive, and an image of metadata that the kernel mounts with the
//! archive as its device (`docs/design/erofs.md`).
//!
//! ```text
//! ROOT/ID/
//! ├── data.tar      the layer, plain                        written once, by whoever unpacks it
//! ├── layer.erofs   what is where in it                     ditto; packed, as layer.erofs.zst, if others show it
//! ├── layer.spans   how to make parts of it from its blob   ditto, unless the configuration says no
//! ├── stack.erofs   this layer merged with those below      made when first needed, and made anew if lost or changed
//! ├── stack.ahead   what is going to be that                made before the snapshots of a chain are committed
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

mod files;
mod fresh;
mod merged;
mod mounting;
mod reading;
mod stack;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use linux::mount;
use rustix::fs::{AtFlags, Mode, OFlags};
use stdx::Mutex;
use types::{Context, Error, Result};

pub use self::files::{LayerFiles, NewLayer};
use self::files::{Lens, compare_len, is_image_of, replace_image, sync_directory};
pub(crate) use self::files::{damaged, remove_if_there};
use self::fresh::Fresh;
pub use self::merged::Merged;
use self::mounting::detached;
pub use self::mounting::{Backing, probe, reads_files_soundly};
use self::reading::Reading;
use self::stack::stacked;
use crate::{Options, Usage, packed, verity};

pub(crate) const DATA: &str = "data.tar";
pub(crate) const IMAGE: &str = "layer.erofs";
pub(crate) const PACKED_IMAGE: &str = "layer.erofs.zst";
const SPANS: &str = "layer.spans";
pub(crate) const STACK: &str = "stack.erofs";
const AHEAD: &str = "stack.ahead";
const MOUNTED: &str = "lower";

/// Bytes of an archive: one with holes has its files with holes behind them (`docs/design/erofs.md`).
const HOLES_AT: u64 = 1 << 40;

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

    /// Bytes of the archive without its holes. Where it has none nothing is looked for.
    fn len_on_disk(&self) -> u64 {
        match self.lens.data {
            ..=HOLES_AT => self.lens.data,
            _ => fs::metadata(self.files().data).map_or(0, |data| data.blocks() * 512),
        }
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
    /// Of layers that are about to be merged.
    fresh: Arc<Fresh>,
    reading: Reading,
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
            fresh: Arc::default(),
            reading: Reading::new(root, options.backing),
            root: opened,
            options,
        })
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
            // It is as well read through memory, and looked at again at the next start.
            let _ = self.reading.look(&target, &largest(layers));
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

    /// Makes the image of layers that are not a chain yet, under another name than that by which it is believed, and
    /// returns where it is. Nothing is synced. None if they need no image of all of them.
    pub(crate) fn merge_ahead(&self, layers: &[Archive], below: &[PathBuf]) -> Result<Option<PathBuf>> {
        let [top, ..] = layers else { return Ok(None) };
        if !is_stack(layers, below) {
            return Ok(None);
        }
        let path = top.directory.join(AHEAD);
        let made = self.alone(&top.directory, || {
            let _alone = self.merging.lock();
            replace_image(&stacked(layers, below, Some(&self.fresh))?, &path, false)
        });
        made.context(|| format!("merge the layers in {}", top.directory.display()))?;
        Ok(Some(path))
    }

    /// Makes what [`Mounted::mount`] would make on disk: of what was merged ahead, if `ahead` still has it when it is
    /// this chain's turn.
    pub(crate) fn make_stack<'a>(
        &self,
        layers: &[Archive],
        below: &[PathBuf],
        ahead: impl FnOnce() -> Option<&'a Path>,
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
        // What cannot be found out keeps no container from its files.
        let backing = self.reading.backing(&largest).unwrap_or(self.options.backing);
        let mount = detached(&image, &data, backing)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let at = rustix::fs::open(target, flags, Mode::empty()).map_err(io::Error::from);
        mount::attach(mount.as_fd(), at.context(|| format!("open {}", target.display()))?.as_fd())?;
        self.reading.mounted(target, &largest, backing);
        Ok(())
    }

    /// Where a new layer is stored, whose tree is kept until [`Mounted::merge_ahead`] wants it, or for as long as there is
    /// room.
    pub(crate) fn new_files(&self, directory: &Path) -> LayerFiles {
        LayerFiles::of(directory).keeping_tree(Arc::clone(&self.fresh))
    }

    /// Says that a snapshot is about to be committed: its layer is what its files are from then on.
    pub(crate) fn settle(&self, directory: &Path) {
        drop(self.fresh.take(directory));
    }

    /// Looks whether what is mounted is still in memory.
    pub(crate) fn relax(&self) {
        self.fresh.clear();
        self.reading.look_at_all();
    }

    /// The image of several layers, made if it is not there as a whole and was not merged ahead.
    fn stack<'a>(
        &self,
        layers: &[Archive],
        below: &[PathBuf],
        ahead: impl FnOnce() -> Option<&'a Path>,
    ) -> Result<PathBuf> {
        let path = layers[0].directory.join(STACK);
        let of_stack = LayerFiles { image: path.clone(), ..layers[0].files() };
        let looked = of_stack.lens().and_then(|lens| compare_len(&path, lens.image));
        match looked.and_then(|()| verity::compare_stack(&layers[0].directory)) {
            Err(error) if error.is(types::ErrorKind::DataLoss) => {
                // On disk is what it is. That it has this name need not be: it is made anew if it has not.
                let is_made = ahead().is_some_and(|ahead| fs::rename(ahead, &path).is_ok());
                if !is_made {
                    let _alone = self.merging.lock();
                    replace_image(&stacked(layers, below, None)?, &path, true)?;
                    // A crash may have left it.
                    remove_if_there(&layers[0].directory.join(AHEAD))?;
                }
                if self.options.verity || verity::is_watched(&layers[0].directory) {
                    verity::watch_stack(&layers[0].directory)?;
                }
            }
            looked => looked?,
        }
        Ok(path)
    }

    /// Whether the image of several layers, if there is one, is what they give. Not if the kernel watches over another.
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

    fn alone(&self, top: &Path, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let busy = Arc::clone(self.lock().entry(top.to_owned()).or_default());
        let worked = {
            let _alone = busy.lock();
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
        self.busy.lock()
    }
}

/// Whether layers are shown by an image of all of them, not by that of the only one.
fn is_stack(layers: &[Archive], below: &[PathBuf]) -> bool {
    layers.len() > 1 || !below.is_empty() || layers[0].is_packed
}

/// The archive that has the most of what a container may read, to ask of one where there may be a hundred.
fn largest(layers: &[Archive]) -> PathBuf {
    let largest = layers.iter().max_by_key(|layer| layer.len_on_disk());
    largest.map(|layer| layer.files().data).unwrap_or_default()
}

/// Takes the mount off a snapshot's directory, before that is deleted. Users that are left keep what they see.
pub(crate) fn unmount(directory: &Path) -> Result<()> {
    mount::unmount_all(&directory.join(MOUNTED))
}

/// On disk when it returns: an image that a power cut brought back would be mounted as it is, after somebody was told
/// that it was mended, until the next who has all bytes compared.
fn forget_stack(directory: &Path) -> Result<()> {
    unmount(directory)?;
    verity::forget_stack(directory)?;
    let stack = directory.join(STACK);
    match fs::remove_file(&stack) {
        // Few directories have one.
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
    use std::fs::File;
    use std::io::Write;

    use erofs::Tree;

    use super::*;

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

    /// Two layers, the upper first, and the image that each has. That of the lower is a pipe: whoever reads it goes on
    /// when we let him.
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

    /// It takes as much memory as making the image does.
    #[test]
    fn layers_are_merged_alone_to_compare_their_image_too() {
        let dir = tempfile::TempDir::new().unwrap();
        let mounted = Mounted::new(dir.path(), Options::new(crate::LayerForm::Archives)).unwrap();
        let (layers, image) = held_layers(dir.path());
        fs::write(layers[0].directory().join(STACK), "another").unwrap();
        std::thread::scope(|scope| {
            let comparing = scope.spawn(|| mounted.is_stack_right(&layers, &[]));
            // It is open once the layer is being read.
            let mut reader = File::options().write(true).open(layers[1].files().image).unwrap();
            assert!(mounted.merging.try_lock().is_none());
            reader.write_all(&image).unwrap();
            drop(reader);
            assert!(!comparing.join().unwrap().unwrap());
        });
        assert!(mounted.merging.try_lock().is_some());
    }

    /// Somebody has read a layer for the image of several when it is mended.
    #[test]
    fn what_is_made_of_a_layer_while_that_is_mended_does_not_stay() {
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
