//! The store's directory, and all system calls on it.
//!
//! File names are made here, from digests and from hashes of refs, and opened beneath directory descriptors: no text of
//! a client becomes a path. A [`Watch`] is called before each system call that can fail or that a crash can interrupt,
//! so that tests can make the n-th of them fail.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use linux::removal;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, Stat, renameat_with};
use stdx::Mutex;
use types::{Algorithm, Context as _, Digest, Error, IngestRef, Result, Timestamp};

/// A system call that is about to be made. File names are relative to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Create(String),
    /// A hard link in the store to a file outside of it.
    Link(String),
    Open(String),
    Read(String),
    Write(String),
    Truncate(String),
    Sync(String),
    Rename {
        from: String,
        to: String,
    },
    Unlink(String),
    List(String),
    SyncDir(String),
}

/// Called before each step; its error becomes that of the step.
pub type Watch = Arc<dyn Fn(&Step) -> io::Result<()> + Send + Sync>;

pub(crate) struct Disk {
    blobs: [Dir; Algorithm::ALL.len()],
    recipes: [Dir; Algorithm::ALL.len()],
    ingests: Dir,
    /// Large deleted files, whose disk space is still to be freed.
    removed: OwnedFd,
    watch: Option<Watch>,
    /// The locks of [`Disk::form`].
    forms: Mutex<HashMap<Digest, Weak<Mutex<()>>>>,
}

struct Dir {
    name: String,
    fd: OwnedFd,
    /// Number of renames into this directory.
    renames: AtomicU64,
    /// How many of them are known to be on disk.
    synced: Mutex<u64>,
}

/// A file of the store.
#[derive(Clone, Debug)]
pub(crate) enum Name {
    Blob(Digest),
    /// The recipe of a blob.
    Recipe(Digest),
    /// A recipe that is being written.
    NewRecipe(Digest),
    /// The plain bytes that a recipe needs.
    Plain(Digest),
    /// The bytes of an ingest.
    Data(RefHash),
    /// The ref and the expected size of an ingest.
    Ref(RefHash),
}

/// The sha256 of a ref in hex: the name of an ingest on disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RefHash(Digest);

impl RefHash {
    pub(crate) fn of(reference: &IngestRef) -> RefHash {
        RefHash(Digest::of(reference.as_str().as_bytes()))
    }
}

impl Name {
    fn file_name(&self) -> String {
        match self {
            Name::Blob(digest) => digest.hex().to_owned(),
            Name::Recipe(digest) => format!("{}.recipe", digest.hex()),
            Name::NewRecipe(digest) => format!("{}.new", digest.hex()),
            Name::Plain(digest) => format!("{}.plain", digest.hex()),
            Name::Data(hash) => format!("{}.data", hash.0.hex()),
            Name::Ref(hash) => format!("{}.ref", hash.0.hex()),
        }
    }

    /// The reverse of `file_name` for files of recipes; `None` for foreign files.
    fn of_recipe(algorithm: Algorithm, file_name: &str) -> Option<Name> {
        let (hex, suffix) = file_name.split_once('.')?;
        let digest: Digest = format!("{}:{hex}", algorithm.name()).parse().ok()?;
        match suffix {
            "recipe" => Some(Name::Recipe(digest)),
            "new" => Some(Name::NewRecipe(digest)),
            "plain" => Some(Name::Plain(digest)),
            _ => None,
        }
    }

    /// The reverse of `file_name` for files of ingests; `None` for foreign files.
    fn of_ingest(file_name: &str) -> Option<Name> {
        let (hex, suffix) = file_name.split_once('.')?;
        let hash = RefHash(format!("sha256:{hex}").parse().ok()?);
        match suffix {
            "data" => Some(Name::Data(hash)),
            "ref" => Some(Name::Ref(hash)),
            _ => None,
        }
    }
}

impl Disk {
    /// The lock of a blob's form. It must be held during the renames and deletions that change whether a blob is a file
    /// or a recipe, so that two threads do not delete each other's result.
    pub(crate) fn form(&self, digest: &Digest) -> Arc<Mutex<()>> {
        let mut forms = self.forms.lock();
        if let Some(form) = forms.get(digest).and_then(Weak::upgrade) {
            return form;
        }
        forms.retain(|_, form| form.strong_count() > 0);
        let form = Arc::default();
        forms.insert(digest.clone(), Arc::downgrade(&form));
        form
    }

    /// Opens the directories below `root`, which are created if they are missing.
    pub(crate) fn open(root: &Path, watch: Option<Watch>) -> io::Result<Disk> {
        std::fs::create_dir_all(root)?;
        let root = rustix::fs::open(root, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let disk = Disk {
            blobs: open_by_algorithm(&root, "blobs")?,
            recipes: open_by_algorithm(&root, "recipes")?,
            ingests: Dir::new("ingest".to_owned(), open_dir(&root, "ingest")?)?,
            removed: open_dir(&root, "removed")?,
            watch,
            forms: Mutex::default(),
        };
        rustix::fs::fsync(&root)?;
        Ok(disk)
    }

    /// Free bytes of the file system.
    pub(crate) fn free(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.ingests.fd)?;
        Ok(stat.f_bfree.saturating_mul(stat.f_frsize))
    }

    fn dir(&self, name: &Name) -> &Dir {
        match name {
            Name::Blob(digest) => of_algorithm(&self.blobs, digest.algorithm()),
            Name::Recipe(digest) | Name::NewRecipe(digest) | Name::Plain(digest) => {
                of_algorithm(&self.recipes, digest.algorithm())
            }
            Name::Data(_) | Name::Ref(_) => &self.ingests,
        }
    }

    fn step(&self, step: impl FnOnce() -> Step) -> io::Result<()> {
        self.watch.as_ref().map_or(Ok(()), |watch| watch(&step()))
    }

    fn label(&self, name: &Name) -> String {
        format!("{}/{}", self.dir(name).name, name.file_name())
    }

    /// Creates an empty file, or empties an existing one.
    pub(crate) fn create(&self, name: &Name) -> io::Result<File> {
        self.step(|| Step::Create(self.label(name)))?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.dir(name).fd, name.file_name(), flags, Mode::from(0o600))?.into())
    }

    /// Makes a hard link in the store to a file outside of it.
    pub(crate) fn link(&self, from: &Path, to: &Name) -> io::Result<()> {
        self.step(|| Step::Link(self.label(to)))?;
        let dir = &self.dir(to).fd;
        Ok(rustix::fs::linkat(rustix::fs::CWD, from, dir, to.file_name(), AtFlags::empty())?)
    }

    /// Creates a file without a name (`O_TMPFILE`), which the kernel deletes when it is closed.
    pub(crate) fn create_nameless(&self) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.ingests.fd, ".", flags, Mode::from(0o600))?.into())
    }

    pub(crate) fn open_to_read(&self, name: &Name) -> io::Result<File> {
        self.open_file(name, OFlags::RDONLY)
    }

    pub(crate) fn open_to_write(&self, name: &Name) -> io::Result<File> {
        self.open_file(name, OFlags::RDWR)
    }

    fn open_file(&self, name: &Name, access: OFlags) -> io::Result<File> {
        self.step(|| Step::Open(self.label(name)))?;
        let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.dir(name).fd, name.file_name(), flags, Mode::empty())?.into())
    }

    /// `None` if there is no such file.
    pub(crate) fn stat(&self, name: &Name) -> io::Result<Option<Stat>> {
        self.step(|| Step::Open(self.label(name)))?;
        match rustix::fs::statat(&self.dir(name).fd, name.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Calls the watch for a read that the caller makes itself.
    pub(crate) fn before_read(&self, name: &Name) -> io::Result<()> {
        self.step(|| Step::Read(self.label(name)))
    }

    pub(crate) fn read_at(&self, name: &Name, file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.before_read(name)?;
        read_at(file, buf, offset)
    }

    /// Writes some of `bytes` at `offset`, and returns how many.
    pub(crate) fn write_at(&self, name: &Name, file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.step(|| Step::Write(self.label(name)))?;
        Ok(rustix::io::retry_on_intr(|| rustix::io::pwrite(file, bytes, offset))?)
    }

    /// Empties an open file. A large one, whose disk space takes long to free, is moved away for [`Disk::reclaim`]
    /// instead, and `file` is replaced by the new, empty one.
    pub(crate) fn truncate(&self, name: &Name, file: &mut File) -> io::Result<()> {
        self.step(|| Step::Truncate(self.label(name)))?;
        let stat = rustix::fs::fstat(&*file)?;
        if u64::try_from(stat.st_size).unwrap_or(0) > removal::PIECE_LEN
            // This fails on a full disk, and on file systems without `RENAME_EXCHANGE`.
            && let Ok(empty) = self.exchange(name, &stat)
        {
            *file = empty;
            return Ok(());
        }
        file.set_len(0)
    }

    /// Exchanges a file with a new, empty one in the directory of deleted files.
    fn exchange(&self, name: &Name, stat: &Stat) -> rustix::io::Result<File> {
        let (dir, aside) = (&self.dir(name).fd, stat.st_ino.to_string());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let empty = rustix::fs::openat(&self.removed, &aside, flags, Mode::from(0o600))?;
        renameat_with(&self.removed, &aside, dir, name.file_name(), RenameFlags::EXCHANGE)?;
        Ok(empty.into())
    }

    /// Makes a file read-only, and its bytes durable.
    pub(crate) fn seal(&self, name: &Name, file: &File) -> io::Result<()> {
        self.step(|| Step::Sync(self.label(name)))?;
        rustix::fs::fchmod(file, Mode::from(0o444))?;
        file.sync_all()
    }

    /// Renames an ingest's bytes to a blob. Not durable before [`Disk::sync_renames`].
    pub(crate) fn publish(&self, from: &Name, to: &Name) -> io::Result<()> {
        self.step(|| Step::Rename { from: self.label(from), to: self.label(to) })?;
        let (source, target) = (self.dir(from), self.dir(to));
        rustix::fs::renameat(&source.fd, from.file_name(), &target.fd, to.file_name())?;
        target.renames.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Returns when all renames into the directory of this name made before the call are on disk.
    /// Callers at the same time share one fsync.
    pub(crate) fn sync_renames(&self, name: &Name) -> io::Result<()> {
        let dir = self.dir(name);
        let wanted = dir.renames.load(Ordering::SeqCst);
        let mut synced = dir.synced.lock();
        if *synced >= wanted {
            return Ok(());
        }
        let covered = dir.renames.load(Ordering::SeqCst);
        self.step(|| Step::SyncDir(dir.name.clone()))?;
        rustix::fs::fsync(&dir.fd)?;
        *synced = covered;
        Ok(())
    }

    /// Removes a file, and returns whether it existed.
    pub(crate) fn unlink(&self, name: &Name) -> io::Result<bool> {
        self.step(|| Step::Unlink(self.label(name)))?;
        match rustix::fs::unlinkat(&self.dir(name).fd, name.file_name(), AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// [`Disk::unlink`], except that a large file, whose disk space takes long to free, is moved away for
    /// [`Disk::reclaim`].
    pub(crate) fn set_aside(&self, name: &Name) -> io::Result<bool> {
        let large =
            self.stat(name)?.filter(|stat| u64::try_from(stat.st_size).unwrap_or(0) > removal::PIECE_LEN);
        let Some(stat) = large else { return self.unlink(name) };
        self.step(|| Step::Unlink(self.label(name)))?;
        // The inode number makes the name unique. If the rename fails, as on a full disk, the file is unlinked.
        match rustix::fs::renameat(
            &self.dir(name).fd,
            name.file_name(),
            &self.removed,
            stat.st_ino.to_string(),
        ) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(_) => self.unlink(name),
        }
    }

    /// Deletes the files that were moved away, until `go_on` returns false. Returns whether all are deleted.
    pub(crate) fn reclaim(&self, go_on: &dyn Fn() -> bool) -> io::Result<bool> {
        removal::empty(self.removed.as_fd(), go_on)
    }

    pub(crate) fn list_blobs(&self) -> io::Result<Vec<Digest>> {
        let mut digests = Vec::new();
        for algorithm in Algorithm::ALL {
            let dir = of_algorithm(&self.blobs, algorithm);
            for name in self.list(dir)? {
                digests.extend(format!("{}:{name}", algorithm.name()).parse::<Digest>().ok());
            }
        }
        Ok(digests)
    }

    /// All files of recipes.
    pub(crate) fn list_recipes(&self) -> io::Result<Vec<Name>> {
        let mut names = Vec::new();
        for algorithm in Algorithm::ALL {
            let found = self.list(of_algorithm(&self.recipes, algorithm))?;
            names.extend(found.iter().filter_map(|name| Name::of_recipe(algorithm, name)));
        }
        Ok(names)
    }

    pub(crate) fn list_ingests(&self) -> io::Result<Vec<Name>> {
        Ok(self.list(&self.ingests)?.iter().filter_map(|name| Name::of_ingest(name)).collect())
    }

    fn list(&self, dir: &Dir) -> io::Result<Vec<String>> {
        self.step(|| Step::List(dir.name.clone()))?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&dir.fd)? {
            names.extend(entry?.file_name().to_str().map(str::to_owned).ok());
        }
        Ok(names)
    }
}

impl Dir {
    /// Renames of an earlier process may not be on disk yet, so that the first sync must not be skipped.
    fn new(name: String, fd: OwnedFd) -> io::Result<Dir> {
        Ok(Dir { name, fd, renames: AtomicU64::new(1), synced: Mutex::new(0) })
    }
}

fn of_algorithm(dirs: &[Dir; Algorithm::ALL.len()], algorithm: Algorithm) -> &Dir {
    let [sha256, sha384, sha512] = dirs;
    match algorithm {
        Algorithm::Sha256 => sha256,
        Algorithm::Sha384 => sha384,
        Algorithm::Sha512 => sha512,
    }
}

fn open_by_algorithm(root: &OwnedFd, name: &str) -> io::Result<[Dir; Algorithm::ALL.len()]> {
    let parent = open_dir(root, name)?;
    let open = |algorithm: Algorithm| {
        Dir::new(format!("{name}/{}", algorithm.name()), open_dir(&parent, algorithm.name())?)
    };
    let [sha256, sha384, sha512] = Algorithm::ALL;
    let dirs = [open(sha256)?, open(sha384)?, open(sha512)?];
    rustix::fs::fsync(&parent)?;
    Ok(dirs)
}

fn open_dir(parent: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(parent, name, Mode::from(0o711)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

/// Whether an error means that bytes are corrupt, or that the disk cannot read them.
pub fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// The result of a read, with `DataLoss` for an error that means damage.
pub(crate) fn reading<T>(read: io::Result<T>, what: impl FnOnce() -> String) -> Result<T> {
    match read {
        Err(error) if is_damage(&error) => Err(Error::data_loss(what()).with_source(error)),
        read => read.context(what),
    }
}

pub(crate) fn read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    Ok(rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *buf, offset))?)
}

pub(crate) fn modified(stat: &Stat) -> Timestamp {
    Timestamp { seconds: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) }
}
