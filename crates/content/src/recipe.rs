//! Blobs that are kept as recipes, and rebuilt byte for byte when they are read.
//!
//! ```text
//! recipes/<algorithm>/<hex>.recipe   "hoist-recipe 1\n", size of the blob, "\n", bytes of .plain, "\n", the recipe
//! recipes/<algorithm>/<hex>.plain    the plain bytes of the blob: a hard link to the data file of a snapshot
//!
//! keep      link .plain ▶ write .new, fsync ▶ rebuild and compare ▶ rename .new to .recipe ▶ fsync ▶ unlink the blob
//! commit    the blob exists again ▶ unlink .recipe and .plain, which also stops a recipe that is being made
//! delete    unlink .recipe ▶ unlink .plain
//! ```
//!
//! As `.plain` is a hard link, the file exists as long as the store or the snapshot needs it, and takes no disk space
//! of its own. The blob exists before the rename and the recipe after it; if both do, the blob counts. Opening the
//! store removes what a crash left: files without a recipe, and recipes of a blob that exists.
//!
//! A reader waits until the blob is rebuilt into a file without a name, and verified: no wrong byte is read. The last
//! rebuilt blobs are kept for readers of another part.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::sync::{Arc, MutexGuard, Weak};

use rustix::fs::{Advice, Timespec, Timestamps, fadvise, futimens};
use stdx::Mutex;
use types::{Context as _, Digest, Error, Hasher, Result};

use crate::disk::{self, Disk, Name};
use crate::store::{Blob, Form};

const MAGIC: &str = "hoist-recipe 1";
const HEADER_LEN_MAX: usize = 128;
/// A recipe is worth it if it takes at most half of the blob.
const SHARE: u64 = 2;
/// Most rebuilt blobs that are kept.
const RECENT_MAX: usize = 2;

/// The first lines of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    /// Bytes of the blob.
    size: u64,
    /// Bytes of the `.plain` file that the recipe uses.
    plain: u64,
}

impl Header {
    fn encode(self) -> String {
        format!("{MAGIC}\n{}\n{}\n", self.size, self.plain)
    }

    /// Reads a header, and returns the offset of the recipe behind it too.
    fn read(disk: &Disk, name: &Name, file: &File) -> io::Result<(Header, u64)> {
        let mut bytes = [0; HEADER_LEN_MAX];
        let len = disk.read_at(name, file, &mut bytes, 0)?;
        let decode = || {
            let mut lines = bytes[..len].split(|byte| *byte == b'\n');
            let mut line = || std::str::from_utf8(lines.next()?).ok();
            if line()? != MAGIC {
                return None;
            }
            let header = Header { size: line()?.parse().ok()?, plain: line()?.parse().ok()? };
            Some((header, header.encode().len() as u64))
        };
        decode().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "this is no recipe of version 1"))
    }
}

/// Opens a recipe. `None` if there is none, `DataLoss` if it is damaged.
fn open(disk: &Disk, digest: &Digest) -> Result<Option<(Header, u64, File)>> {
    let name = Name::Recipe(digest.clone());
    let opened = match disk.open_to_read(&name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.and_then(|file| Ok((Header::read(disk, &name, &file)?, file))),
    };
    match opened {
        Err(error) if disk::is_damage(&error) => Err(lost(digest).with_source(error)),
        Err(error) => Err(error).context(|| format!("open the recipe of blob {digest}")),
        Ok(((header, begin), file)) => Ok(Some((header, begin, file))),
    }
}

fn lost(digest: &Digest) -> Error {
    Error::data_loss(format!("blob {digest} cannot be made again: `hoist image verify` fetches it anew"))
}

pub(crate) fn stat(disk: &Disk, digest: Digest) -> Result<Option<Blob>> {
    let Some((header, _, file)) = open(disk, &digest)? else { return Ok(None) };
    let stat = rustix::fs::fstat(&file).map_err(io::Error::from);
    let stat = stat.context(|| format!("look at the recipe of blob {digest}"))?;
    let time = disk::modified(&stat);
    Ok(Some(Blob { size: header.size, created: time, updated: time, digest }))
}

pub(crate) fn form(disk: &Disk, digest: &Digest) -> Result<Option<Form>> {
    let Some((_, _, file)) = open(disk, digest)? else { return Ok(None) };
    let stat = rustix::fs::fstat(&file).map_err(io::Error::from);
    let stat = stat.context(|| format!("look at the recipe of blob {digest}"))?;
    Ok(Some(Form::Recipe { len: u64::try_from(stat.st_blocks).unwrap_or(0) * 512 }))
}

pub(crate) fn list(disk: &Disk) -> Result<Vec<Digest>> {
    let names = disk.list_recipes().context(|| "list recipes")?;
    let digests = names.into_iter().filter_map(|name| match name {
        Name::Recipe(digest) => Some(digest),
        _ => None,
    });
    Ok(digests.collect())
}

/// Deletes a recipe, and returns whether it existed.
pub(crate) fn delete(disk: &Disk, digest: &Digest) -> io::Result<bool> {
    let was_there = disk.unlink(&Name::Recipe(digest.clone()))?;
    disk.set_aside(&Name::Plain(digest.clone()))?;
    Ok(was_there)
}

/// Removes the leftovers of a crash: all files but those of a recipe without its blob.
pub(crate) fn remove_halves(disk: &Disk) -> io::Result<()> {
    let names = disk.list_recipes()?;
    let has = |name: &Name| disk.stat(name).map(|stat| stat.is_some());
    for name in &names {
        let is_half = match name {
            Name::Recipe(digest) => has(&Name::Blob(digest.clone()))?,
            Name::Plain(digest) => !has(&Name::Recipe(digest.clone()))? || has(&Name::Blob(digest.clone()))?,
            _ => true,
        };
        if is_half {
            disk.unlink(name)?;
        }
    }
    Ok(())
}

/// See [`crate::Store::keep_recipe`].
pub(crate) fn keep(disk: &Disk, digest: &Digest, plain: &Path, len: u64) -> Result<bool> {
    let kept =
        write(disk, digest, plain, len).and_then(|is_worth_it| Ok(is_worth_it && replace(disk, digest)?));
    if !matches!(kept, Ok(true)) {
        // The blob still exists. If this fails, the next open of the store removes the files.
        let _ = disk.unlink(&Name::NewRecipe(digest.clone()));
        let _ = disk.unlink(&Name::Plain(digest.clone()));
        return kept.context(|| "write it");
    }
    Ok(true)
}

/// Replaces a blob by its new recipe. False if the blob was committed again or deleted since the recipe was begun,
/// which removes the `.plain` file.
fn replace(disk: &Disk, digest: &Digest) -> io::Result<bool> {
    let form = disk.form(digest);
    let _alone = form.lock();
    let has = |name: Name| disk.stat(&name).map(|stat| stat.is_some());
    if !has(Name::Plain(digest.clone()))? || !has(Name::Blob(digest.clone()))? {
        return Ok(false);
    }
    let recipe = Name::Recipe(digest.clone());
    disk.publish(&Name::NewRecipe(digest.clone()), &recipe)?;
    disk.sync_renames(&recipe)?;
    disk.unlink(&Name::Blob(digest.clone()))
}

/// Writes and verifies a new recipe. False if there is none, or it is too large.
fn write(disk: &Disk, digest: &Digest, plain: &Path, len: u64) -> io::Result<bool> {
    let (blob_name, new, own) =
        (Name::Blob(digest.clone()), Name::NewRecipe(digest.clone()), Name::Plain(digest.clone()));
    disk.unlink(&own)?;
    match disk.link(plain, &own) {
        // The file is on another file system, has too many links, or is gone: the blob is kept.
        Err(error) if is_no_link(&error) => return Ok(false),
        linked => linked?,
    }
    let plain = disk.open_to_read(&own)?;
    plain.sync_all()?;
    // Drops the file from the page cache, so that the rebuild verifies the bytes on disk.
    fadvise(&plain, 0, None, Advice::DontNeed)?;
    let blob = disk.open_to_read(&blob_name)?;
    let stat = rustix::fs::fstat(&blob)?;
    let header = Header { size: u64::try_from(stat.st_size).unwrap_or(0), plain: len };
    let text = recompress::Plain::new(&plain, len);
    {
        let file = disk.create(&new)?;
        let mut to = BufWriter::new(Steps { disk, name: &new, file: &file, at: 0 });
        to.write_all(header.encode().as_bytes())?;
        if !recompress::make(&blob, &text, &mut to, header.size / SHARE)? {
            return Ok(false);
        }
        to.flush()?;
        drop(to);
        let time =
            Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0) };
        futimens(&file, &Timestamps { last_access: time, last_modification: time })?;
        disk.seal(&new, &file)?;
    }
    // Rebuilds from the files themselves, as for a reader of the blob.
    let file = disk.open_to_read(&new)?;
    let (header, begin) = Header::read(disk, &new, &file)?;
    let mut digested = Digested { hasher: Hasher::new(digest.algorithm()), len: 0, to: io::sink() };
    let steps = Steps { disk, name: &new, file: &file, at: begin };
    match rebuild(header, steps, &plain, &mut digested) {
        Err(error) if disk::is_damage(&error) => return Ok(false),
        rebuilt => rebuilt?,
    }
    Ok(digested.is(digest, header))
}

fn is_no_link(error: &io::Error) -> bool {
    use io::ErrorKind::{CrossesDevices, NotFound, TooManyLinks, Unsupported};
    matches!(error.kind(), CrossesDevices | NotFound | TooManyLinks | Unsupported)
}

/// Rebuilds a blob; `recipe` is at the offset behind its header.
fn rebuild(header: Header, recipe: Steps<'_>, plain: &File, to: &mut impl Write) -> io::Result<()> {
    recompress::rebuild(recipe, &recompress::Plain::new(plain, header.plain), to)
}

/// Reads or writes a file of the store, with a watched step for each call.
struct Steps<'a> {
    disk: &'a Disk,
    name: &'a Name,
    file: &'a File,
    at: u64,
}

impl Read for Steps<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.disk.read_at(self.name, self.file, buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Write for Steps<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.disk.write_at(self.name, self.file, bytes, self.at)?;
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hashes and counts the bytes that are written through it.
struct Digested<W> {
    hasher: Hasher,
    len: u64,
    to: W,
}

impl<W> Digested<W> {
    fn is(self, digest: &Digest, header: Header) -> bool {
        self.len == header.size && self.hasher.finish() == *digest
    }
}

impl<W: Write> Write for Digested<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The rebuilt blobs.
#[derive(Default)]
pub(crate) struct Rebuilt {
    made: Mutex<Made>,
}

#[derive(Default)]
struct Made {
    /// Locks that are held during rebuilds, so that a blob is rebuilt once for all its readers.
    turns: HashMap<Digest, Weak<Turn>>,
    /// The last rebuilt blobs, newest first.
    recent: VecDeque<(Digest, Arc<File>)>,
}

type Turn = Mutex<Weak<File>>;

impl Rebuilt {
    /// Opens a blob, rebuilding it if necessary. `None` if it has no recipe, `DataLoss` if it cannot be rebuilt.
    pub(crate) fn open(&self, disk: &Disk, digest: &Digest) -> Result<Option<Arc<File>>> {
        let turn = self.turn(digest);
        let mut last = turn.lock();
        if let Some(file) = last.upgrade() {
            return Ok(Some(file));
        }
        let Some(file) = make(disk, digest)? else { return Ok(None) };
        let file = Arc::new(file);
        *last = Arc::downgrade(&file);
        let mut made = self.lock();
        made.recent.push_front((digest.clone(), Arc::clone(&file)));
        made.recent.truncate(RECENT_MAX);
        Ok(Some(file))
    }

    pub(crate) fn forget(&self, digest: &Digest) {
        let mut made = self.lock();
        made.recent.retain(|(known, _)| known != digest);
        made.turns.remove(digest);
    }

    pub(crate) fn relax(&self) {
        self.lock().recent.clear();
    }

    fn turn(&self, digest: &Digest) -> Arc<Turn> {
        let mut made = self.lock();
        if let Some(turn) = made.turns.get(digest).and_then(Weak::upgrade) {
            return turn;
        }
        made.turns.retain(|_, turn| turn.strong_count() > 0);
        let recent = made.recent.iter().find(|(known, _)| known == digest);
        let turn = Arc::new(Mutex::new(recent.map_or_else(Weak::new, |(_, file)| Arc::downgrade(file))));
        made.turns.insert(digest.clone(), Arc::downgrade(&turn));
        turn
    }

    fn lock(&self) -> MutexGuard<'_, Made> {
        self.made.lock()
    }
}

fn make(disk: &Disk, digest: &Digest) -> Result<Option<File>> {
    let what = || format!("make blob {digest} again from its recipe");
    let Some((header, begin, file)) = open(disk, digest)? else { return Ok(None) };
    let free = disk.free().context(what)?;
    if header.size > free {
        let message = format!("{}: it has {} bytes, and {free} are free", what(), header.size);
        return Err(Error::resource_exhausted(message));
    }
    let plain = disk.open_to_read(&Name::Plain(digest.clone())).context(what)?;
    let to = disk.create_nameless().context(what)?;
    let mut digested = Digested { hasher: Hasher::new(digest.algorithm()), len: 0, to: BufWriter::new(&to) };
    let name = Name::Recipe(digest.clone());
    let steps = Steps { disk, name: &name, file: &file, at: begin };
    let rebuilt = rebuild(header, steps, &plain, &mut digested).and_then(|()| digested.flush());
    match rebuilt {
        Err(error) if disk::is_damage(&error) => return Err(lost(digest).with_source(error)),
        rebuilt => rebuilt.context(what)?,
    }
    if !digested.is(digest, header) {
        return Err(lost(digest));
    }
    Ok(Some(to))
}
