//! The store in a local directory.
//!
//! ```text
//! blobs/<algorithm>/<hex>         complete, mode 0444
//! recipes/<algorithm>/<hex>.*     the recipe of a blob that is not in blobs/ (see `recipe`)
//! ingest/<sha256 of ref>.{ref,data}
//! removed/<inode number>          a large deleted file, whose disk space is still to be freed
//! ```

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use types::{Context as _, Digest, Error, ErrorKind, IngestRef, Result};

use crate::disk::{self, Disk, Name, RefHash, Watch};
use crate::ingest::{self, LocalWriter, Writers};
use crate::recipe::{self, Rebuilt};
use crate::store::{Blob, BlobReader, Expected, Form, IngestStatus, IngestWriter, Store};

/// The store in a directory of its own. One process at a time may have it open, which the daemon ensures by the lock of
/// its root directory.
pub struct LocalStore {
    disk: Arc<Disk>,
    writers: Writers,
    rebuilt: Rebuilt,
}

impl LocalStore {
    /// Opens the store in `root`, or creates it, and removes what a crash left.
    pub fn open(root: impl AsRef<Path>) -> Result<LocalStore> {
        LocalStore::open_watched(root, None)
    }

    /// [`LocalStore::open`] for tests: `watch` is called before every system call, and may make it fail.
    #[doc(hidden)]
    pub fn open_watched(root: impl AsRef<Path>, watch: Option<Watch>) -> Result<LocalStore> {
        let root = root.as_ref();
        let disk = Disk::open(root, watch).context(|| format!("open content store {}", root.display()))?;
        ingest::remove_halves(&disk).context(|| format!("clean up content store {}", root.display()))?;
        recipe::remove_halves(&disk).context(|| format!("clean up content store {}", root.display()))?;
        Ok(LocalStore { disk: Arc::new(disk), writers: Writers::default(), rebuilt: Rebuilt::default() })
    }

    /// `ResourceExhausted` if the disk has no space for an ingest of this size. Bytes that the ingest already has count
    /// as available.
    fn refuse_too_large(&self, reference: &IngestRef, size: u64) -> Result<()> {
        let data = Name::Data(RefHash::of(reference));
        let begun = self.disk.stat(&data).context(|| format!("stat ingest {reference}"))?;
        let room = begun.map_or(0, |stat| u64::try_from(stat.st_blocks).unwrap_or(0) * 512);
        let free = self.disk.free().context(|| "look for free space")?;
        if size.saturating_sub(room) > free {
            let message = format!("a blob of {size} bytes does not fit: {free} bytes are free");
            return Err(Error::resource_exhausted(message));
        }
        Ok(())
    }
}

/// Whether a blob exists, as a file or as a recipe with a valid header.
pub(crate) fn has(disk: &Disk, digest: &Digest) -> Result<bool> {
    find(disk, digest).map(|blob| blob.is_some())
}

pub(crate) fn find(disk: &Disk, digest: &Digest) -> Result<Option<Blob>> {
    match stat(disk, digest.clone()) {
        Err(error) if error.is(ErrorKind::DataLoss) => Ok(None),
        found => found,
    }
}

fn stat(disk: &Disk, digest: Digest) -> Result<Option<Blob>> {
    let stat = disk.stat(&Name::Blob(digest.clone())).context(|| format!("stat blob {digest}"))?;
    let Some(stat) = stat else { return recipe::stat(disk, digest) };
    let time = disk::modified(&stat);
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    Ok(Some(Blob { digest, size, created: time, updated: time }))
}

fn not_found(digest: &Digest) -> Error {
    Error::not_found(format!("content digest {digest}"))
}

impl Store for LocalStore {
    fn info(&self, digest: &Digest) -> Result<Blob> {
        stat(&self.disk, digest.clone())?.ok_or_else(|| not_found(digest))
    }

    fn reader(&self, digest: &Digest) -> Result<Box<dyn BlobReader>> {
        let file = match self.disk.open_to_read(&Name::Blob(digest.clone())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let rebuilt = self.rebuilt.open(&self.disk, digest)?;
                return match rebuilt {
                    Some(file) => Ok(Box::new(SharedReader { file, at: 0, digest: digest.clone() })),
                    None => Err(not_found(digest)),
                };
            }
            opened => disk::reading(opened, || format!("open blob {digest}"))?,
        };
        let size = file.metadata().context(|| format!("stat blob {digest}"))?.len();
        let (disk, name) = (Arc::clone(&self.disk), Name::Blob(digest.clone()));
        Ok(Box::new(LocalReader { disk, name, file, size, digest: digest.clone() }))
    }

    fn list(&self) -> Result<Vec<Blob>> {
        let mut digests: BTreeSet<Digest> =
            self.disk.list_blobs().context(|| "list blobs")?.into_iter().collect();
        digests.extend(recipe::list(&self.disk)?);
        let stats = digests.into_iter().filter_map(|digest| stat(&self.disk, digest).transpose());
        let is_told = |found: &Result<Blob>| match found {
            Err(error) if error.is(ErrorKind::DataLoss) => {
                tracing::warn!("left out of a list of blobs: {}", error.chain());
                false
            }
            _ => true,
        };
        stats.filter(is_told).collect()
    }

    fn delete(&self, digest: &Digest) -> Result<()> {
        let form = self.disk.form(digest);
        let _alone = form.lock();
        let found = self.disk.set_aside(&Name::Blob(digest.clone()));
        let is_whole = found.context(|| format!("delete blob {digest}"))?;
        let has_recipe = recipe::delete(&self.disk, digest).context(|| format!("delete blob {digest}"))?;
        self.rebuilt.forget(digest);
        if is_whole || has_recipe { Ok(()) } else { Err(not_found(digest)) }
    }

    fn reclaim(&self, go_on: &dyn Fn() -> bool) -> Result<bool> {
        self.disk.reclaim(go_on).context(|| "delete what was removed from the content store")
    }

    fn form(&self, digest: &Digest) -> Result<Form> {
        let stat = self.disk.stat(&Name::Blob(digest.clone())).context(|| format!("stat blob {digest}"))?;
        if stat.is_some() {
            return Ok(Form::Whole);
        }
        recipe::form(&self.disk, digest)?.ok_or_else(|| not_found(digest))
    }

    fn keep_recipe(&self, digest: &Digest, plain: &Path, len: u64) -> Result<bool> {
        if self.form(digest)? != Form::Whole {
            return Ok(true);
        }
        recipe::keep(&self.disk, digest, plain, len)
            .map_err(|error| error.context(format!("keep a recipe of blob {digest}")))
    }

    fn relax(&self) {
        self.rebuilt.relax();
    }

    fn begin(&self, reference: &IngestRef, expected: Expected) -> Result<Box<dyn IngestWriter>> {
        if let Some(digest) = &expected.digest
            && has(&self.disk, digest)?
        {
            self.disk
                .sync_renames(&Name::Blob(digest.clone()))
                .context(|| format!("publish blob {digest}"))?;
            return Err(Error::already_exists(format!("content {digest}")));
        }
        if let Some(size) = expected.size {
            self.refuse_too_large(reference, size)?;
        }
        let writing = self.writers.enter(reference, expected.clone())?;
        let writer = LocalWriter::begin(Arc::clone(&self.disk), writing, reference.clone(), &expected)?;
        Ok(Box::new(writer))
    }

    fn status(&self, reference: &IngestRef) -> Result<IngestStatus> {
        ingest::status(&self.disk, &self.writers, &RefHash::of(reference))?
            .ok_or_else(|| Error::not_found(format!("reference {reference}")))
    }

    fn statuses(&self) -> Result<Vec<IngestStatus>> {
        let mut statuses = Vec::new();
        for name in self.disk.list_ingests().context(|| "list ingests")? {
            if let Name::Ref(hash) = name {
                statuses.extend(ingest::status(&self.disk, &self.writers, &hash)?);
            }
        }
        Ok(statuses)
    }

    fn abort(&self, reference: &IngestRef) -> Result<()> {
        let _writing = self.writers.enter(reference, Expected::default())?;
        let found = ingest::remove(&self.disk, &RefHash::of(reference));
        if found.context(|| format!("abort ingest {reference}"))? {
            Ok(())
        } else {
            Err(Error::not_found(format!("reference {reference}")))
        }
    }
}

/// Reads a rebuilt blob, whose file several readers share, each at its own offset.
struct SharedReader {
    file: Arc<File>,
    at: u64,
    digest: Digest,
}

impl Read for SharedReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = disk::read_at(&self.file, buf, self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}

impl BlobReader for SharedReader {
    fn size(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        read_all_at(&self.file, buf, offset, &self.digest)
    }
}

fn read_all_at(file: &File, buf: &mut [u8], offset: u64, digest: &Digest) -> Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        let read = disk::read_at(file, &mut buf[filled..], offset + filled as u64);
        let len = disk::reading(read, || format!("read blob {digest}"))?;
        if len == 0 {
            break;
        }
        filled += len;
    }
    Ok(filled)
}

struct LocalReader {
    disk: Arc<Disk>,
    name: Name,
    file: File,
    size: u64,
    digest: Digest,
}

impl Read for LocalReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.disk.before_read(&self.name)?;
        self.file.read(buf)
    }
}

impl BlobReader for LocalReader {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        disk::reading(self.disk.before_read(&self.name), || format!("read blob {}", self.digest))?;
        read_all_at(&self.file, buf, offset, &self.digest)
    }

    fn as_file(&self) -> Option<&File> {
        Some(&self.file)
    }
}
