//! Applies a layer to a tree.
//!
//! ```text
//! source ─▶ pipeline (inflate, sha256) ──chunks──▶ tar ─▶ files beneath the root
//! ```
//!
//! Invariants
//! - A name is created in an open directory whose path was resolved beneath the root. `..` and absolute names and links
//!   stay inside.
//! - An existing name in the way of an entry is removed first; files are created with `O_EXCL`, so nothing is written
//!   through a link that another entry planted.
//! - Owner, mode, attributes and times are set on the open file, in the order in which none undoes another.
//! - Overlayfs's own attributes are never taken from an archive: they could show files that are not in the image.
//! - Metadata is set only on an inode of the type that was created, since a process may have replaced it:
//!   [`crate::lay`] extracts into trees of running containers.

mod metadata;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{CString, OsStr, OsString};
use std::io::{self, BufRead, Read};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use linux::beneath::{Root, proc_path};
use linux::removal;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, StatxAttributes, StatxFlags, XattrFlags, fstat, ftruncate, futimens,
    linkat, makedev, mkdirat, mknodat, openat, readlinkat, seek, setxattr, statat, statx, symlinkat,
    unlinkat,
};
use rustix::io::Errno;
use types::{Context, Digest, Error, Result};

use self::metadata::{
    attributes, ignorable, make_opaque, remove_attributes, set_metadata_at, set_metadata_of_file, times,
};
use crate::decoder::{Helpers, Origin};
use crate::lay::{LayOptions, Owners};
use crate::memory::Memory;
use crate::pipeline::{Chunks, bad_input, read_plain};
use crate::tar::{Entry, Kind, Reader};
use crate::tree;

/// Bytes of a file written at a time.
const WRITE_LEN: usize = 256 * 1024;

/// Most symlinks followed on the way to a directory (path_resolution(7)).
const SYMLINKS_MAX: usize = 40;

/// Prefix of the files that aufs keeps for itself in the root of a layer. Old layers have them, and hard links to them,
/// so they are extracted and removed at the end.
pub(crate) const AUFS: &[u8] = b".wh..wh.";

/// Times that a layer's files may have, in seconds and nanoseconds since 1970: from 1901, the earliest time of ext4 and
/// XFS, to 2262, the latest of containerd.
const TIMES: RangeInclusive<(i64, u32)> = (-(1 << 31), 0)..=(9_223_372_036, 854_775_807);

/// Largest device numbers of Linux (`linux/kdev_t.h`).
const MAJOR_MAX: u32 = (1 << 12) - 1;
const MINOR_MAX: u32 = (1 << 20) - 1;

/// Most directories that are kept open.
const OPEN_DIRECTORIES_MAX: usize = 64;

/// Bytes of a remembered path beside its text: of the collection, with its spare capacity, and of the allocator.
const PATH_COST: u64 = 96;

/// How deletions of a lower layer's files are applied (image-spec `layer.md`, "Whiteouts").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whiteouts {
    /// For an upper directory of overlayfs: as a device 0:0, or an attribute of an opaque directory.
    Overlay,
    /// For a full tree: by deleting the files.
    Remove,
}

/// Limits on a layer, and the resources that it may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of the plain stream, and of all files with their holes filled.
    pub bytes: u64,
    /// Bytes of the paths that are remembered to the end of the stream: of directories, and, with
    /// [`Whiteouts::Remove`], of all entries.
    pub paths: u64,
    /// Whether the layer waits for memory that other layers hold.
    pub origin: Origin,
    /// Threads that help to decompress.
    pub helpers: Helpers,
}

impl Default for Limits {
    /// Ten million entries, 256 GiB, 512 MiB of paths, a stored layer, and spare processors as helpers.
    fn default() -> Limits {
        let (origin, helpers) = (Origin::Stored, Helpers::Spare);
        Limits { entries: 10_000_000, bytes: 256 << 30, paths: 512 << 20, origin, helpers }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct ApplyOptions {
    pub whiteouts: Whiteouts,
    pub limits: Limits,
}

/// A layer that was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The digest of the plain stream, to its very end.
    pub diff_id: Digest,
    /// Bytes of the plain stream.
    pub size: u64,
    /// Directories without an entry in the layer, parents first: those that were created for names in them, and the
    /// root. They have default metadata; on top of other layers, they should get the metadata that these have.
    pub implied: Vec<PathBuf>,
}

/// Applies a layer of any compression to the tree that `root` is open on.
///
/// `InvalidArgument` if the bytes are no layer, `ResourceExhausted` if a limit is exceeded or the disk is full,
/// `Unavailable` if a passing layer gets no memory. After an error the tree is incomplete, and the caller discards it.
pub fn apply(source: impl Read + Send, options: ApplyOptions, root: BorrowedFd<'_>) -> Result<Applied> {
    let extract = |chunks, memory| extract(chunks, memory, options, None, root);
    let (plain, tree) = read_plain(source, options.limits, None, extract)?;
    // Sorted by paths, so a directory comes before the names in it.
    let implied = tree.implied.into_iter().collect();
    Ok(Applied { diff_id: plain.diff_id, size: plain.size, implied })
}

/// Extracts an archive: a layer, or with `laying` an ordinary archive (see [`crate::lay`]).
pub(crate) fn extract(
    chunks: Chunks,
    memory: Memory,
    options: ApplyOptions,
    laying: Option<LayOptions>,
    root: BorrowedFd<'_>,
) -> Result<Tree> {
    let mut archive = Reader::new(chunks);
    let fd = root.try_clone_to_owned().context(|| "keep the root")?;
    let mut tree = Tree {
        root: Root::from_fd(fd, Path::new(if laying.is_some() { "the tree" } else { "the layer's tree" })),
        options,
        laying,
        left_out: Vec::new(),
        open: HashMap::new(),
        times: BTreeMap::new(),
        made: BTreeSet::new(),
        emptied: BTreeSet::new(),
        // The root is implied until its entry comes.
        implied: [PathBuf::new()].into(),
        buffer: vec![0; WRITE_LEN],
        bytes: 0,
        paths: 0,
        memory,
        has_aufs: false,
    };
    let mut entries = 0;
    while let Some(mut entry) = archive.next_entry().map_err(bad_input).context(|| "read layer")? {
        if tree.laying.is_none() {
            entry.mtime = bounded(entry.mtime);
        }
        entries += 1;
        if entries > options.limits.entries {
            let message = format!("more than the {} entries that a layer may have", options.limits.entries);
            return Err(Error::resource_exhausted(message));
        }
        let verb = if tree.laying.is_some() { "write" } else { "unpack" };
        let shown = || format!("{verb} {}", String::from_utf8_lossy(&entry.path));
        tree.apply(&entry, &mut archive).map_err(|error| error.context(shown()))?;
    }
    archive.drain().map_err(bad_input).context(|| "read layer")?;
    tree.remove_aufs()?;
    tree.set_directory_times()?;
    Ok(tree)
}

/// The tree that an archive is extracted into. A "place" is the path of a directory beneath the root without symlinks.
pub(crate) struct Tree {
    root: Root,
    options: ApplyOptions,
    /// `None` for a layer.
    laying: Option<LayOptions>,
    /// Paths of entries that were not extracted.
    pub(crate) left_out: Vec<PathBuf>,
    /// Open directories by cleaned path. Cleared whenever a name is removed, which may change where these paths lead.
    open: HashMap<PathBuf, OwnedFd>,
    /// Times of directories by place. Set at the end, since creating files in a directory changes its time.
    times: BTreeMap<PathBuf, (i64, u32)>,
    /// Paths of this layer's entries, with [`Whiteouts::Remove`]: whiteouts delete names of lower layers only.
    made: BTreeSet<PathBuf>,
    /// Directories that this layer emptied, by device and inode: several paths may lead to one.
    emptied: BTreeSet<(u64, u64)>,
    /// Places of directories without an entry: see [`Applied::implied`].
    implied: BTreeSet<PathBuf>,
    buffer: Vec<u8>,
    /// Bytes of all files so far.
    bytes: u64,
    /// Bytes of all paths remembered so far.
    paths: u64,
    memory: Memory,
    /// Whether the tree may have files of aufs.
    has_aufs: bool,
}

impl Tree {
    fn apply<R: BufRead>(&mut self, entry: &Entry, archive: &mut Reader<R>) -> Result<()> {
        self.bytes = self.bytes.saturating_add(entry.size);
        if self.bytes > self.options.limits.bytes {
            let message = format!("more than the {} bytes that a layer may have", self.options.limits.bytes);
            return Err(Error::resource_exhausted(message));
        }
        let path = clean(&entry.path);
        if self.laying.is_some() {
            return self.lay(entry, path, archive);
        }
        self.has_aufs |= path.as_os_str().as_bytes().starts_with(AUFS);
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            return self.apply_root(entry);
        };
        let parent_path = path.parent().unwrap_or(Path::new("")).to_owned();
        if let Some(rest) = name.as_bytes().strip_prefix(b".wh.") {
            return self.white_out(&parent_path, rest);
        }
        let parent = self.directory(&parent_path)?;
        self.make(entry, &parent, &name, &path, archive)?;
        self.put_back(parent_path, parent);
        if self.options.whiteouts == Whiteouts::Remove {
            self.remember(&path)?;
            self.made.insert(path);
        }
        Ok(())
    }

    /// Extracts an entry of an archive that is no layer. The target directory itself keeps its metadata.
    fn lay<R: BufRead>(&mut self, entry: &Entry, path: PathBuf, archive: &mut Reader<R>) -> Result<()> {
        let laying = self.laying.as_ref().expect("only called for an archive that is no layer");
        let (Some(name), Some(inner)) = (path.file_name().map(OsStr::to_owned), path.parent()) else {
            return Ok(());
        };
        let Some(entry) = laying.owners.adapt(entry) else {
            self.left_out.push(path);
            return Ok(());
        };
        let parent_path = laying.folder.join(inner);
        let path = laying.folder.join(&path);
        let parent = self.directory(&parent_path)?;
        self.make(&entry, &parent, &name, &path, archive)?;
        self.put_back(parent_path, parent);
        Ok(())
    }

    /// Whether files belong to the user of this process.
    fn is_owned_by_maker(&self) -> bool {
        self.laying.as_ref().is_some_and(|laying| laying.owners == Owners::Maker)
    }

    /// Creates an entry's name in an open directory.
    fn make<R: BufRead>(
        &mut self,
        entry: &Entry,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        archive: &mut Reader<R>,
    ) -> Result<()> {
        match &entry.kind {
            Kind::File => {
                if let Some(mounted) = self.take_mounted(parent, name)? {
                    return self.write_data(entry, &mounted, archive);
                }
                let file = self.create(parent, name, |parent| {
                    let flags =
                        OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    openat(parent, name, flags, Mode::from_raw_mode(0o600))
                })?;
                self.write_data(entry, &file, archive)?;
                set_metadata_of_file(entry, &file, self.is_owned_by_maker())
            }
            Kind::Directory => {
                match mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
                    Ok(()) => {}
                    Err(Errno::EXIST) if self.is_directory(parent, name)? => {
                        if self.is_owned_by_maker() {
                            return Ok(());
                        }
                        if self.laying.is_none() {
                            remove_attributes(entry, parent, name)?;
                        }
                    }
                    Err(Errno::EXIST) if self.laying.is_some() => {
                        return Err(Error::invalid_argument(
                            "a directory cannot replace something that is no directory",
                        ));
                    }
                    Err(Errno::EXIST) => {
                        let was_whiteout = self.is_whiteout(parent, name)?;
                        self.remove(parent, name)?;
                        mkdirat(parent, name, Mode::from_raw_mode(0o700))
                            .map_err(io::Error::from)
                            .context(|| "mkdir")?;
                        if was_whiteout {
                            // The lower directory stays deleted.
                            make_opaque(&proc_path(parent.as_fd()).join(name))?;
                        }
                    }
                    Err(errno) => return Err(io::Error::from(errno)).context(|| "mkdir"),
                }
                let place = self.place(parent).map_or_else(|| path.to_owned(), |place| place.join(name));
                self.implied.remove(&place);
                self.remember(&place)?;
                self.times.insert(place, entry.mtime);
                set_metadata_at(entry, parent, name, self.is_owned_by_maker())
            }
            Kind::Symlink(target) => {
                let target = c_string(target)?;
                self.create(parent, name, |parent| symlinkat(&target, parent, name))?;
                set_metadata_at(entry, parent, name, self.is_owned_by_maker())
            }
            Kind::HardLink(target) => self.hard_link(target, parent, name),
            Kind::CharacterDevice { major, minor } => {
                self.device(entry, parent, name, FileType::CharacterDevice, *major, *minor)
            }
            Kind::BlockDevice { major, minor } => {
                self.device(entry, parent, name, FileType::BlockDevice, *major, *minor)
            }
            Kind::Fifo => self.device(entry, parent, name, FileType::Fifo, 0, 0),
        }
    }

    /// Accounts for the memory of a path that is kept to the end of the stream.
    fn remember(&mut self, path: &Path) -> Result<()> {
        self.paths += PATH_COST + path.as_os_str().len() as u64;
        match self.paths <= self.options.limits.paths {
            // Not from the memory of layers: the client that sends the archive may stop sending for any time, and no
            // layer should wait for it.
            true if self.laying.is_some() => Ok(()),
            true => self.memory.grow_to(self.paths),
            false => Err(Error::resource_exhausted(format!(
                "its paths exceed the {} bytes that a layer may have of them",
                self.options.limits.paths
            ))),
        }
    }

    /// Creates a name, replacing an existing one.
    fn create<T>(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        make: impl Fn(&OwnedFd) -> Result<T, Errno>,
    ) -> Result<T> {
        match make(parent) {
            Ok(made) => Ok(made),
            Err(Errno::EXIST) => {
                match &self.laying {
                    Some(_) => unlink_existing(parent, name)?,
                    None => self.remove(parent, name)?,
                }
                make(parent).map_err(io::Error::from).context(|| "create")
            }
            Err(errno) => Err(io::Error::from(errno)).context(|| "create"),
        }
    }

    /// Opens and truncates a file that is mounted at a name of a container's tree: a mount point cannot be replaced, so
    /// the data goes into the mounted file.
    fn take_mounted(&self, parent: &OwnedFd, name: &OsStr) -> Result<Option<OwnedFd>> {
        if self.laying.is_none() || !is_mounted(parent, name)? {
            return Ok(None);
        }
        let file = tree::open_file_for(parent, name, OFlags::WRONLY)?;
        ftruncate(&file, 0).map_err(io::Error::from).context(|| "empty the mounted file")?;
        Ok(Some(file))
    }

    fn device(
        &mut self,
        entry: &Entry,
        parent: &OwnedFd,
        name: &OsStr,
        kind: FileType,
        major: u64,
        minor: u64,
    ) -> Result<()> {
        // The kernel would truncate larger numbers, and create another device.
        let fits = |value: u64, max: u32| u32::try_from(value).ok().filter(|value| *value <= max);
        let device = fits(major, MAJOR_MAX).zip(fits(minor, MINOR_MAX));
        let (major, minor) = device
            .ok_or_else(|| Error::invalid_argument(format!("device number {major}:{minor} is too large")))?;
        let device = makedev(major, minor);
        self.create(parent, name, |parent| mknodat(parent, name, kind, Mode::from_raw_mode(0o600), device))?;
        set_metadata_at(entry, parent, name, self.is_owned_by_maker())
    }

    fn hard_link(&mut self, target: &[u8], parent: &OwnedFd, name: &OsStr) -> Result<()> {
        let folder = self.laying.as_ref().map(|laying| laying.folder.clone()).unwrap_or_default();
        let target = folder.join(clean(target));
        let shown = || format!("link to {}", target.display());
        let Some(target_name) = target.file_name().map(OsStr::to_owned) else {
            return Err(Error::invalid_argument(format!("{}: a directory cannot be linked", shown())));
        };
        let folder =
            self.root.find(target.parent().unwrap_or(Path::new("")), OFlags::PATH | OFlags::DIRECTORY)?;
        let folder =
            folder.ok_or_else(|| Error::not_found(format!("{}: it is not in the layer", shown())))?;
        let same = |one: &OwnedFd, other: &OwnedFd| -> Result<bool> {
            let id = |fd: &OwnedFd| linux::beneath::stat(fd.as_fd()).map(|stat| (stat.st_dev, stat.st_ino));
            Ok(id(one).context(shown)? == id(other).context(shown)?)
        };
        // A link to itself would remove what it links to.
        if target_name == name && same(&folder, parent)? {
            return Ok(());
        }
        let link = |parent: &OwnedFd| linkat(&folder, &target_name, parent, name, AtFlags::empty());
        match link(parent) {
            Err(Errno::NOENT) => Err(Error::not_found(format!("{}: it is not in the layer", shown()))),
            Err(Errno::EXIST) => {
                let wrong = |why: &str| Err(Error::invalid_argument(format!("{}: {why}", shown())));
                if self.is_directory(&folder, &target_name)? {
                    return wrong("a directory cannot be linked");
                }
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let replaced = openat(parent, name, flags, Mode::empty()).map_err(io::Error::from);
                if self.root.lies_in(folder.as_fd(), replaced.context(shown)?.as_fd()).context(shown)? {
                    return wrong("the link would replace it");
                }
                match &self.laying {
                    Some(_) => unlink_existing(parent, name)?,
                    None => self.remove(parent, name)?,
                }
                link(parent).map_err(io::Error::from).context(shown)
            }
            other => other.map_err(io::Error::from).context(shown),
        }
    }

    fn write_data<R: BufRead>(
        &mut self,
        entry: &Entry,
        file: &OwnedFd,
        archive: &mut Reader<R>,
    ) -> Result<()> {
        let whole = [(0, entry.size)];
        let regions = entry.sparse.as_deref().unwrap_or(&whole);
        for (at, len) in regions {
            if entry.sparse.is_some() {
                seek(file, rustix::fs::SeekFrom::Start(*at)).map_err(io::Error::from).context(|| "seek")?;
            }
            let mut left = *len;
            while left > 0 {
                let want = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
                let read =
                    archive.read_data(&mut self.buffer[..want]).map_err(bad_input).context(|| "read")?;
                if read == 0 {
                    return Err(Error::invalid_argument("the data is shorter than its size"));
                }
                write_all(file, &self.buffer[..read]).context(|| "write")?;
                left -= read as u64;
            }
        }
        if entry.sparse.is_some() {
            ftruncate(file, entry.size).map_err(io::Error::from).context(|| "set the size")?;
        }
        Ok(())
    }

    fn white_out(&mut self, parent_path: &Path, name: &[u8]) -> Result<()> {
        let opaque = name == b".wh..opq";
        if !opaque && name.starts_with(b".wh.") {
            return Ok(()); // a file of aufs itself
        }
        match (self.options.whiteouts, opaque) {
            (Whiteouts::Overlay, true) => {
                let parent = self.directory(parent_path)?;
                // Through /proc, because the descriptor is `O_PATH`.
                make_opaque(&proc_path(parent.as_fd()))?;
                self.put_back(parent_path.to_owned(), parent);
                Ok(())
            }
            (Whiteouts::Overlay, false) => {
                let name = checked_name(name)?;
                let parent = self.directory(parent_path)?;
                let made = mknodat(&parent, name, FileType::CharacterDevice, Mode::empty(), makedev(0, 0));
                // A name that the layer has itself stays: whiteouts delete names of lower layers only.
                let made = match made {
                    Ok(()) => Ok(()),
                    Err(Errno::EXIST) if self.is_directory(&parent, name)? => {
                        make_opaque(&proc_path(parent.as_fd()).join(name))
                    }
                    Err(Errno::EXIST) => Ok(()),
                    Err(errno) => Err(io::Error::from(errno)).context(|| "make a whiteout"),
                };
                self.put_back(parent_path.to_owned(), parent);
                made
            }
            (Whiteouts::Remove, true) => self.empty_directory(parent_path, OFlags::empty()),
            (Whiteouts::Remove, false) => {
                let name = checked_name(name)?;
                let path = parent_path.join(name);
                if self.is_ours(&path) {
                    return self.empty_directory(&path, OFlags::NOFOLLOW);
                }
                match self.root.find(parent_path, OFlags::PATH | OFlags::DIRECTORY)? {
                    Some(parent) => self.remove(&parent, name),
                    None => Ok(()),
                }
            }
        }
    }

    /// Whether this layer has an entry of this path, or below it.
    fn is_ours(&self, path: &Path) -> bool {
        self.made.range(path.to_owned()..).next().is_some_and(|made| made.starts_with(path))
    }

    /// Deletes the names of lower layers in a directory, and in the subdirectories that this layer has as well. Does
    /// nothing if the path is no directory.
    fn empty_directory(&mut self, path: &Path, mut links: OFlags) -> Result<()> {
        let mut left = vec![path.to_owned()];
        while let Some(path) = left.pop() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | links;
            // A symlink below leads out of this directory.
            links = OFlags::NOFOLLOW;
            let Some(folder) = self.root.find(&path, flags)? else { continue };
            let found = fstat(&folder).map_err(io::Error::from).context(|| "look at a directory")?;
            if !self.emptied.insert((found.st_dev, found.st_ino)) {
                continue;
            }
            for name in names(&folder)? {
                let inside = path.join(&name);
                if !self.is_ours(&inside) {
                    self.remove(&folder, &name)?;
                } else if self.is_directory(&folder, &name)? {
                    left.push(inside);
                }
            }
        }
        Ok(())
    }

    /// Removes a name, if it exists, with everything below it.
    fn remove(&mut self, parent: &OwnedFd, name: &OsStr) -> Result<()> {
        self.open.clear();
        if let Some(place) = self.place(parent) {
            self.forget(&place.join(name));
        }
        remove_at(parent, name)
            .map_err(|error| error.context(format!("replace {}", Path::new(name).display())))
    }

    /// Forgets the directories at a place and below: later entries may create others there.
    fn forget(&mut self, place: &Path) {
        let here = |path: &&PathBuf| path.starts_with(place);
        let times = self.times.range(place.to_owned()..).map(|(path, _)| path);
        for path in times.take_while(here).cloned().collect::<Vec<_>>() {
            self.times.remove(&path);
        }
        let implied = self.implied.range(place.to_owned()..);
        for path in implied.take_while(here).cloned().collect::<Vec<_>>() {
            self.implied.remove(&path);
        }
    }

    fn is_directory(&self, parent: &OwnedFd, name: &OsStr) -> Result<bool> {
        Ok(FileType::from_raw_mode(stat(parent, name)?.st_mode) == FileType::Directory)
    }

    fn is_whiteout(&self, parent: &OwnedFd, name: &OsStr) -> Result<bool> {
        let stat = stat(parent, name)?;
        let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
        Ok(self.options.whiteouts == Whiteouts::Overlay && is_device && stat.st_rdev == makedev(0, 0))
    }

    /// Takes an open directory out of the cache, or opens it. The caller gives it back with [`Tree::put_back`].
    fn directory(&mut self, path: &Path) -> Result<OwnedFd> {
        match self.open.remove(path) {
            Some(fd) => Ok(fd),
            None => self.make_directory(path),
        }
    }

    fn put_back(&mut self, path: PathBuf, fd: OwnedFd) {
        if self.open.len() >= OPEN_DIRECTORIES_MAX {
            self.open.clear();
        }
        self.open.insert(path, fd);
    }

    /// Opens a directory, creating it and its parents if they are missing.
    fn make_directory(&mut self, path: &Path) -> Result<OwnedFd> {
        loop {
            let mut made_now = Vec::new();
            let made = self.root.make_dirs_and_tell(path, 0o755, |made| made_now.push(made.to_owned()));
            for made in made_now {
                // A symlink of the layer may lead to such a path.
                self.has_aufs |= self.laying.is_none() && made.as_os_str().as_bytes().starts_with(AUFS);
                self.remember(&made)?;
                self.implied.insert(made);
            }
            match made {
                Err(_) if self.replace_whiteouts(path)? => {}
                made => return made,
            }
        }
    }

    /// Replaces the overlayfs whiteouts on the way of a path by directories, and returns whether there were any.
    fn replace_whiteouts(&mut self, path: &Path) -> Result<bool> {
        if self.options.whiteouts != Whiteouts::Overlay {
            return Ok(false);
        }
        let (mut place, mut links, mut are_some) = (PathBuf::new(), 0, false);
        let mut left: Vec<OsString> = path.iter().rev().map(OsStr::to_owned).collect();
        while let Some(name) = left.pop() {
            match name.as_bytes() {
                b"/" => place.clear(),
                b"." => {}
                b".." => {
                    place.pop();
                }
                _ => {
                    let parent = self.root.find(&place, OFlags::PATH | OFlags::DIRECTORY)?;
                    let Some(parent) = parent else { return Ok(are_some) };
                    if let Ok(target) = readlinkat(&parent, &name, Vec::new()) {
                        links += 1;
                        if links > SYMLINKS_MAX {
                            return Ok(are_some);
                        }
                        let target = Path::new(OsStr::from_bytes(target.as_bytes()));
                        left.extend(target.iter().rev().map(OsStr::to_owned));
                        continue;
                    }
                    place.push(&name);
                    match self.is_whiteout(&parent, &name) {
                        Ok(true) => self.replace_whiteout(&parent, &name, &place)?,
                        Ok(false) => continue,
                        // The rest of the path does not exist.
                        Err(_) => return Ok(are_some),
                    }
                    are_some = true;
                }
            }
        }
        Ok(are_some)
    }

    fn replace_whiteout(&mut self, parent: &OwnedFd, name: &OsStr, place: &Path) -> Result<()> {
        self.remove(parent, name)?;
        mkdirat(parent, name, Mode::from_raw_mode(0o755)).map_err(io::Error::from).context(|| "mkdir")?;
        // The lower directory stays deleted.
        make_opaque(&proc_path(parent.as_fd()).join(name))?;
        self.remember(place)?;
        self.implied.insert(place.to_owned());
        Ok(())
    }

    /// The path of a directory without symlinks: those in an entry's path may be gone when the directory's time is set,
    /// and several entries may name one directory. `None` if the path is too long for readlink(2) on /proc.
    fn place(&self, directory: &OwnedFd) -> Option<PathBuf> {
        let read = |fd: BorrowedFd<'_>| std::fs::read_link(proc_path(fd)).ok();
        Some(read(directory.as_fd())?.strip_prefix(read(self.root.as_fd())?).ok()?.to_owned())
    }

    /// Applies the entry of the root itself.
    fn apply_root(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != Kind::Directory {
            return Err(Error::invalid_argument("the root can only be a directory"));
        }
        self.implied.remove(Path::new(""));
        self.times.insert(PathBuf::new(), entry.mtime);
        let path = proc_path(self.root.as_fd());
        std::os::unix::fs::chown(&path, Some(entry.uid), Some(entry.gid)).context(|| "chown")?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(entry.mode);
        std::fs::set_permissions(&path, mode).context(|| "chmod")?;
        for (name, value) in attributes(entry) {
            setxattr(&path, name, value, XattrFlags::empty()).or_else(|errno| ignorable(name, errno))?;
        }
        Ok(())
    }

    fn remove_aufs(&mut self) -> Result<()> {
        if !self.has_aufs {
            return Ok(());
        }
        let Some(root) = self.root.find(Path::new(""), OFlags::RDONLY | OFlags::DIRECTORY)? else {
            return Ok(());
        };
        for name in names(&root)?.iter().filter(|name| name.as_bytes().starts_with(AUFS)) {
            self.remove(&root, name)?;
        }
        Ok(())
    }

    fn set_directory_times(&mut self) -> Result<()> {
        for (path, mtime) in std::mem::take(&mut self.times) {
            // A later entry of the layer may have replaced the directory.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let Some(fd) = self.root.find(&path, flags)? else { continue };
            futimens(&fd, &times(mtime))
                .map_err(io::Error::from)
                .context(|| format!("set the time of {}", path.display()))?;
        }
        Ok(())
    }
}

fn stat(parent: &OwnedFd, name: &OsStr) -> Result<rustix::fs::Stat> {
    statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from).context(|| "stat")
}

/// The path inside the root that an entry names: `..` ends at the root.
pub(crate) fn clean(path: &[u8]) -> PathBuf {
    let mut clean = PathBuf::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                clean.pop();
            }
            name => clean.push(OsStr::from_bytes(name)),
        }
    }
    clean
}

/// The time of a layer's file: 1970 in place of times that not every file system can store. containerd replaces all
/// times before 1970; those from 1901 on are kept here, as every file system stores them.
pub(crate) fn bounded(mtime: (i64, u32)) -> (i64, u32) {
    if TIMES.contains(&mtime) { mtime } else { (0, 0) }
}

/// The name that a whiteout deletes. `InvalidArgument` if it is empty, `.` or `..`.
pub(crate) fn checked_name(name: &[u8]) -> Result<&OsStr> {
    match name {
        b"" | b"." | b".." => Err(Error::invalid_argument("a whiteout of no name")),
        name => Ok(OsStr::from_bytes(name)),
    }
}

/// Whether a name is a mount point. Must be checked before unlinking it: the kernel refuses that only to processes in
/// the mount's own namespace; for others it removes the mount with the name (mount_namespaces(7)).
fn is_mounted(parent: &OwnedFd, name: &OsStr) -> Result<bool> {
    match statx(parent, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty()) {
        Ok(found) => Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(io::Error::from(errno)).context(|| "look what is there"),
    }
}

/// Removes an existing name that is neither a directory nor a mount point.
fn unlink_existing(parent: &OwnedFd, name: &OsStr) -> Result<()> {
    if is_mounted(parent, name)? {
        return Err(Error::invalid_argument(
            "it is a mount point, which cannot be replaced: only data can be written to a mounted file",
        ));
    }
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => Err(Error::invalid_argument("a directory can only be replaced by a directory")),
        Err(errno) => Err(io::Error::from(errno)).context(|| "replace"),
    }
}

fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::invalid_argument("a link contains a zero byte"))
}

fn write_all(file: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::io::write(file, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Deletes a name with everything below, following nothing, however deep it is.
fn remove_at(parent: &OwnedFd, name: &OsStr) -> Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => removal::delete(&proc_path(parent.as_fd()).join(name), &|| true).map(drop),
        Err(errno) => Err(io::Error::from(errno)).context(|| "delete"),
    }
}

/// The names in a directory, in no order.
pub(crate) fn names(folder: &OwnedFd) -> Result<Vec<OsString>> {
    let read = || -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(folder)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        Ok(names)
    };
    read().context(|| "read directory")
}
