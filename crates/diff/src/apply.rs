//! Applying a layer to a tree.
//!
//! ```text
//! source ─▶ pipeline (inflate, sha256) ──chunks──▶ tar ─▶ files beneath the root
//! ```
//!
//! Invariants
//! - A name is made in a directory that is open, whose path was resolved beneath the root. `..` and absolute
//!   names and links stay inside.
//! - What is in the way of an entry is removed first; files are made with `O_EXCL`, so nothing is written
//!   through a link that another entry planted.
//! - Owner, mode, attributes and times are set on the open file, in the order in which none undoes another.
//! - Attributes of overlayfs itself are never taken from an archive: they could show what is not in the image.
//! - What was made is told apart from what somebody has put in its place since: see [`crate::lay`], whose trees belong
//!   to containers that run.

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
    AtFlags, CWD, FileType, Gid, Mode, OFlags, StatxAttributes, StatxFlags, Timespec, Timestamps, Uid,
    XattrFlags, chmodat, chownat, fchmod, fchown, fsetxattr, fstat, ftruncate, futimens, linkat, lsetxattr,
    makedev, mkdirat, mknodat, openat, readlinkat, seek, setxattr, statat, statx, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::Errno;
use types::{Context, Digest, Error, Result};

use crate::decoder::{Helpers, Origin};
use crate::lay::{LayOptions, Owners};
use crate::memory::Memory;
use crate::pipeline::{Chunks, bad_input, read_plain};
use crate::tar::{Entry, Kind, Reader};
use crate::tree;

/// Bytes of a file that are written at a time.
const WRITE_LEN: usize = 256 * 1024;

/// Links followed on the way to a directory (path_resolution(7)).
const SYMLINKS_MAX: usize = 40;

/// What aufs has in the root of a layer for itself begins so. Old layers have it, and hard links to files in it, so it is
/// there until all was read.
pub(crate) const AUFS: &[u8] = b".wh..wh.";

/// Times that a layer's files may have, in seconds and nanoseconds since 1970: from 1901, where those of ext4 and XFS
/// begin, to 2262, where those of a containerd end.
const TIMES: RangeInclusive<(i64, u32)> = (-(1 << 31), 0)..=(9_223_372_036, 854_775_807);

/// Numbers of devices, as Linux has them (`linux/kdev_t.h`).
const MAJOR_MAX: u32 = (1 << 12) - 1;
const MINOR_MAX: u32 = (1 << 20) - 1;

/// Directories that are kept open.
const OPEN_DIRECTORIES_MAX: usize = 64;

/// Bytes that a path takes beside its text: in a list, with what that has in reserve, and of the allocator.
const PATH_COST: u64 = 96;

/// How deletions of a lower layer's files are written (image-spec `layer.md`, "Whiteouts").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whiteouts {
    /// As overlayfs reads them, into an upper directory: a device 0:0, an attribute on the directory.
    Overlay,
    /// By deleting, on a full tree.
    Remove,
}

/// What a layer may not exceed, what it may wait for, and who helps with it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub entries: u64,
    /// Of the plain stream, and of the files in it with their holes filled.
    pub bytes: u64,
    /// What the paths take that have to be remembered to the end of the stream: of directories, and of all that is made
    /// where whiteouts delete.
    pub paths: u64,
    pub origin: Origin,
    pub helpers: Helpers,
}

impl Default for Limits {
    /// Ten million entries, 256 GiB, 512 MiB of paths, from the disk, with as much help as there is.
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

/// What was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The digest of the plain stream, to its very end.
    pub diff_id: Digest,
    /// Bytes of the plain stream.
    pub size: u64,
    /// Directories that are there without an entry of their own, those above first: made for what is in them, and the root.
    /// They look as nobody said; where the layer lies on others, theirs is how they should look.
    pub implied: Vec<PathBuf>,
}

/// Applies a layer of any compression to the tree that `root` is open on.
///
/// `InvalidArgument` if the bytes are no layer, `ResourceExhausted` if a limit is hit or the disk is full.
/// After an error the tree is half done; its owner discards it.
pub fn apply(source: impl Read + Send, options: ApplyOptions, root: BorrowedFd<'_>) -> Result<Applied> {
    let extract = |chunks, memory| extract(chunks, memory, options, None, root);
    let (plain, tree) = read_plain(source, options.limits, None, extract)?;
    // In the order of paths a directory comes before what is in it.
    let implied = tree.implied.into_iter().collect();
    Ok(Applied { diff_id: plain.diff_id, size: plain.size, implied })
}

/// Returns the tree with what is noted of it.
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
        // The root, until it has an entry.
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

pub(crate) struct Tree {
    root: Root,
    options: ApplyOptions,
    /// It is no layer that comes.
    laying: Option<LayOptions>,
    /// What was not laid down.
    pub(crate) left_out: Vec<PathBuf>,
    /// Directories by cleaned path, until one of them might be another.
    open: HashMap<PathBuf, OwnedFd>,
    /// By the places of directories. Set at the end: making files in a directory changes its time.
    times: BTreeMap<PathBuf, (i64, u32)>,
    /// What this layer made, where whiteouts delete: they mean lower layers only.
    made: BTreeSet<PathBuf>,
    /// Directories that this layer emptied, by device and inode: once is enough, however many ways lead there.
    emptied: BTreeSet<(u64, u64)>,
    /// The places of directories that were made for what is in them, and of the root, if they have no entry.
    implied: BTreeSet<PathBuf>,
    buffer: Vec<u8>,
    bytes: u64,
    /// Bytes that the paths take that were ever remembered.
    paths: u64,
    memory: Memory,
    /// Whether there may be something of aufs.
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

    /// The same for an archive that is no layer. The directory that it is laid down in stays as it is.
    fn lay<R: BufRead>(&mut self, entry: &Entry, path: PathBuf, archive: &mut Reader<R>) -> Result<()> {
        let laying = self.laying.as_ref().expect("only called then");
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

    /// Whether what is made belongs to who makes it.
    fn is_makers(&self) -> bool {
        self.laying.as_ref().is_some_and(|laying| laying.owners == Owners::Maker)
    }

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
                set_metadata_of_file(entry, &file, self.is_makers())
            }
            Kind::Directory => {
                match mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
                    Ok(()) => {}
                    Err(Errno::EXIST) if self.is_directory(parent, name)? => {
                        if self.is_makers() {
                            return Ok(());
                        }
                        if self.laying.is_none() {
                            remove_attributes(entry, parent, name)?;
                        }
                    }
                    Err(Errno::EXIST) if self.laying.is_some() => {
                        return Err(Error::invalid_argument(
                            "a directory cannot take the place of what is there and is none",
                        ));
                    }
                    Err(Errno::EXIST) => {
                        let was_whiteout = self.is_whiteout(parent, name)?;
                        self.remove(parent, name)?;
                        mkdirat(parent, name, Mode::from_raw_mode(0o700))
                            .map_err(io::Error::from)
                            .context(|| "mkdir")?;
                        if was_whiteout {
                            // Deleted below and made here: nothing of below shows through.
                            make_opaque(&proc_path(parent.as_fd()).join(name))?;
                        }
                    }
                    Err(errno) => return Err(io::Error::from(errno)).context(|| "mkdir"),
                }
                let place = self.place(parent).map_or_else(|| path.to_owned(), |place| place.join(name));
                self.implied.remove(&place);
                self.remember(&place)?;
                self.times.insert(place, entry.mtime);
                set_metadata_at(entry, parent, name, self.is_makers())
            }
            Kind::Symlink(target) => {
                let target = c_string(target)?;
                self.create(parent, name, |parent| symlinkat(&target, parent, name))?;
                set_metadata_at(entry, parent, name, self.is_makers())
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

    fn remember(&mut self, path: &Path) -> Result<()> {
        self.paths += PATH_COST + path.as_os_str().len() as u64;
        match self.paths <= self.options.limits.paths {
            // Whoever sends it may stop for as long as it likes: no layer is to wait for that.
            true if self.laying.is_some() => Ok(()),
            true => self.memory.grow_to(self.paths),
            false => Err(Error::resource_exhausted(format!(
                "its paths exceed the {} bytes that a layer may have of them",
                self.options.limits.paths
            ))),
        }
    }

    /// Makes a name; what is in the way is removed.
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
                    Some(_) => take_away(parent, name)?,
                    None => self.remove(parent, name)?,
                }
                make(parent).map_err(io::Error::from).context(|| "create")
            }
            Err(errno) => Err(io::Error::from(errno)).context(|| "create"),
        }
    }

    /// Opens a file that a container has mounted here, emptied: it cannot be replaced, and is written to.
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
        // The kernel would take what has room, and make another device.
        let fits = |value: u64, max: u32| u32::try_from(value).ok().filter(|value| *value <= max);
        let device = fits(major, MAJOR_MAX).zip(fits(minor, MINOR_MAX));
        let (major, minor) = device
            .ok_or_else(|| Error::invalid_argument(format!("device number {major}:{minor} is too large")))?;
        let device = makedev(major, minor);
        self.create(parent, name, |parent| mknodat(parent, name, kind, Mode::from_raw_mode(0o600), device))?;
        set_metadata_at(entry, parent, name, self.is_makers())
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
                    Some(_) => take_away(parent, name)?,
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
            return Ok(()); // aufs's own files
        }
        match (self.options.whiteouts, opaque) {
            (Whiteouts::Overlay, true) => {
                let parent = self.directory(parent_path)?;
                // Through /proc, because the descriptor is by path only.
                make_opaque(&proc_path(parent.as_fd()))?;
                self.put_back(parent_path.to_owned(), parent);
                Ok(())
            }
            (Whiteouts::Overlay, false) => {
                let name = checked_name(name)?;
                let parent = self.directory(parent_path)?;
                let made = mknodat(&parent, name, FileType::CharacterDevice, Mode::empty(), makedev(0, 0));
                // The layer has the name itself, and whiteouts mean lower layers.
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

    /// Whether this layer made something of this path, or below it.
    fn is_ours(&self, path: &Path) -> bool {
        self.made.range(path.to_owned()..).next().is_some_and(|made| made.starts_with(path))
    }

    /// Deletes what lower layers had in a directory, and in those below that this layer has as well. What is no directory
    /// has nothing of them.
    fn empty_directory(&mut self, path: &Path, mut links: OFlags) -> Result<()> {
        let mut left = vec![path.to_owned()];
        while let Some(path) = left.pop() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | links;
            // Whatever a link further down leads to is not in this directory.
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

    /// Removes a name with all below it. One that is not there is no error.
    fn remove(&mut self, parent: &OwnedFd, name: &OsStr) -> Result<()> {
        self.open.clear();
        if let Some(place) = self.place(parent) {
            self.forget(&place.join(name));
        }
        remove_at(parent, name)
            .map_err(|error| error.context(format!("replace {}", Path::new(name).display())))
    }

    /// What is made at this place later is not what was said of the directories that were here.
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

    /// Makes what is missing of a directory and those above it.
    fn make_directory(&mut self, path: &Path) -> Result<OwnedFd> {
        loop {
            let mut made_now = Vec::new();
            let made = self.root.make_dirs_and_tell(path, 0o755, |made| made_now.push(made.to_owned()));
            for made in made_now {
                // A link may lead there.
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

    /// Makes directories of the names on the way of a path that this layer deletes from those below; whether there are some.
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
                        // From here on nothing is there.
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
        // Deleted below and made here: nothing of below shows through.
        make_opaque(&proc_path(parent.as_fd()).join(name))?;
        self.remember(place)?;
        self.implied.insert(place.to_owned());
        Ok(())
    }

    /// The path of a directory without links: those on the way of an entry may be gone when its time is set,
    /// and several entries may name one directory. None if the path is longer than the kernel tells.
    fn place(&self, directory: &OwnedFd) -> Option<PathBuf> {
        let read = |fd: BorrowedFd<'_>| std::fs::read_link(proc_path(fd)).ok();
        Some(read(directory.as_fd())?.strip_prefix(read(self.root.as_fd())?).ok()?.to_owned())
    }

    /// The entry of the root itself.
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
            // Replaced by something else later in the layer.
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

/// Has overlayfs hide what layers below have in a directory.
fn make_opaque(path: &Path) -> Result<()> {
    setxattr(path, c"trusted.overlay.opaque", b"y", XattrFlags::empty())
        .map_err(io::Error::from)
        .context(|| "make the directory opaque")
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

/// The time that a layer's file has: 1970 where some disk could not hold it and would make it another. A containerd
/// makes all times before 1970 that; those from 1901 on are kept here, as every disk holds them.
pub(crate) fn bounded(mtime: (i64, u32)) -> (i64, u32) {
    if TIMES.contains(&mtime) { mtime } else { (0, 0) }
}

pub(crate) fn checked_name(name: &[u8]) -> Result<&OsStr> {
    match name {
        b"" | b"." | b".." => Err(Error::invalid_argument("a whiteout of no name")),
        name => Ok(OsStr::from_bytes(name)),
    }
}

/// `makers`: it stays its maker's.
fn set_metadata_of_file(entry: &Entry, file: &OwnedFd, makers: bool) -> Result<()> {
    let set = || -> Result<(), Errno> {
        if !makers {
            fchown(file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
        }
        // After the owner: a change of owner takes the setuid bit away.
        fchmod(file, Mode::from_raw_mode(entry.mode))?;
        futimens(file, &times(entry.mtime))
    };
    for (name, value) in attributes(entry) {
        fsetxattr(file, name, value, XattrFlags::empty()).or_else(|errno| ignorable(name, errno))?;
    }
    set().map_err(io::Error::from).context(|| "set owner, mode and time")?;
    // The owner's change also takes the capabilities away.
    if let Some(value) = entry.attributes.get("security.capability") {
        fsetxattr(file, "security.capability", value, XattrFlags::empty())
            .or_else(|errno| ignorable("security.capability", errno))?;
    }
    Ok(())
}

/// Of what is no file. Whoever works in the tree meanwhile may have put something else in its place: a link is never
/// followed, and what is not of the kind that was made is left alone.
fn set_metadata_at(entry: &Entry, parent: &OwnedFd, name: &OsStr, makers: bool) -> Result<()> {
    let is_link = matches!(entry.kind, Kind::Symlink(_));
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = openat(parent, name, flags, Mode::empty()).map_err(io::Error::from).context(|| "open")?;
    let stat = linux::beneath::stat(made.as_fd()).context(|| "stat")?;
    if FileType::from_raw_mode(stat.st_mode) != type_of(&entry.kind) {
        return Err(Error::aborted("somebody has put something else in its place"));
    }
    let path = proc_path(made.as_fd());
    let set = || -> Result<(), Errno> {
        if !makers {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            chownat(&made, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        }
        if !is_link {
            chmodat(CWD, &path, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
        }
        match entry.kind {
            Kind::Directory => Ok(()),
            Kind::Symlink(_) => utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW),
            _ => utimensat(CWD, &path, &times(entry.mtime), AtFlags::empty()),
        }
    };
    set().map_err(io::Error::from).context(|| "set owner, mode and time")?;
    for (attribute, value) in attributes(entry) {
        let set = if is_link {
            lsetxattr(proc_path(parent.as_fd()).join(name), attribute, value, XattrFlags::empty())
        } else {
            setxattr(&path, attribute, value, XattrFlags::empty())
        };
        match set {
            // Only files and directories have users' attributes (xattr(7)).
            Err(Errno::PERM) if entry.kind != Kind::Directory && attribute.starts_with("user.") => {}
            set => set.or_else(|errno| ignorable(attribute, errno))?,
        }
    }
    Ok(())
}

fn type_of(kind: &Kind) -> FileType {
    match kind {
        Kind::File | Kind::HardLink(_) => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink(_) => FileType::Symlink,
        Kind::CharacterDevice { .. } => FileType::CharacterDevice,
        Kind::BlockDevice { .. } => FileType::BlockDevice,
        Kind::Fifo => FileType::Fifo,
    }
}

/// Whether something is mounted under a name. To be asked before it is removed: the kernel refuses that only to who is
/// in the mount's own namespace, and takes the mount away with the name for all others.
fn is_mounted(parent: &OwnedFd, name: &OsStr) -> Result<bool> {
    match statx(parent, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty()) {
        Ok(found) => Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(io::Error::from(errno)).context(|| "look what is there"),
    }
}

/// Removes what is no directory, and nothing is mounted on.
fn take_away(parent: &OwnedFd, name: &OsStr) -> Result<()> {
    if is_mounted(parent, name)? {
        return Err(Error::invalid_argument(
            "something is mounted there, which only a file can be written to",
        ));
    }
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => {
            Err(Error::invalid_argument("what is no directory cannot take the place of one that is there"))
        }
        Err(errno) => Err(io::Error::from(errno)).context(|| "replace"),
    }
}

/// Takes from a directory that is there the attributes that its entry does not have.
fn remove_attributes(entry: &Entry, parent: &OwnedFd, name: &OsStr) -> Result<()> {
    let path = proc_path(parent.as_fd()).join(name);
    let there = tree::attributes(&path).context(|| "read attributes")?;
    for name in there.keys().filter(|name| !entry.attributes.contains_key(*name)) {
        match rustix::fs::lremovexattr(&path, name.as_str()) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(errno) => {
                return Err(io::Error::from(errno)).context(|| format!("remove attribute {name}"));
            }
        }
    }
    Ok(())
}

/// Attributes that an archive may set.
fn attributes(entry: &Entry) -> impl Iterator<Item = (&str, &[u8])> {
    let ours = |name: &str| name.starts_with("trusted.overlay.") || name.starts_with("user.overlay.");
    entry
        .attributes
        .iter()
        .filter(move |(name, _)| !ours(name))
        .map(|(name, value)| (name.as_str(), &value[..]))
}

/// A file system or host without this kind of attribute shows the image without it, as others do.
fn ignorable(name: &str, errno: Errno) -> Result<()> {
    match errno {
        Errno::NOTSUP => Ok(()),
        Errno::PERM | Errno::INVAL if name.starts_with("security.") || name.starts_with("trusted.") => Ok(()),
        errno => Err(io::Error::from(errno)).context(|| format!("set attribute {name}")),
    }
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
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
