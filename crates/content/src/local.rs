//! The store in a local directory.
//!
//! ```text
//! blobs/<algorithm>/<hex>         complete, mode 0444
//! ingest/<sha256 of ref>.{ref,data}
//! ```

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use types::{Context as _, Digest, Error, IngestRef, Result};

use crate::disk::{self, Disk, Name, RefHash, Watch};
use crate::ingest::{self, LocalWriter, Writers};
use crate::store::{Blob, BlobReader, Expected, IngestStatus, IngestWriter, Store};

/// The store in a directory of its own. One process at a time may have it open; the daemon sees to
/// that with the lock on its root.
pub struct LocalStore {
    disk: Arc<Disk>,
    writers: Writers,
}

impl LocalStore {
    /// Opens the store in `root`, or makes it.
    pub fn open(root: impl AsRef<Path>) -> Result<LocalStore> {
        LocalStore::open_watched(root, None)
    }

    /// As [`LocalStore::open`], with somebody who is told of every system call and may fail it.
    #[doc(hidden)]
    pub fn open_watched(root: impl AsRef<Path>, watch: Option<Watch>) -> Result<LocalStore> {
        let root = root.as_ref();
        let disk = Disk::open(root, watch).context(|| format!("open content store {}", root.display()))?;
        ingest::remove_halves(&disk).context(|| format!("clean up content store {}", root.display()))?;
        Ok(LocalStore { disk: Arc::new(disk), writers: Writers::default() })
    }

    /// A size that cannot be true, or cannot be kept, is refused before its first byte is written.
    fn refuse_too_large(&self, size: u64) -> Result<()> {
        let free = self.disk.free().context(|| "look for free space")?;
        if size > free {
            let message = format!("a blob of {size} bytes does not fit: {free} bytes are free");
            return Err(Error::resource_exhausted(message));
        }
        Ok(())
    }

    fn stat(&self, digest: Digest) -> Result<Option<Blob>> {
        let stat = self.disk.stat(&Name::Blob(digest.clone())).context(|| format!("stat blob {digest}"))?;
        Ok(stat.map(|stat| {
            let time = disk::modified(&stat);
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            Blob { digest, size, created: time, updated: time }
        }))
    }
}

fn not_found(digest: &Digest) -> Error {
    Error::not_found(format!("content {digest}"))
}

impl Store for LocalStore {
    fn info(&self, digest: &Digest) -> Result<Blob> {
        self.stat(digest.clone())?.ok_or_else(|| not_found(digest))
    }

    fn reader(&self, digest: &Digest) -> Result<Box<dyn BlobReader>> {
        let file = match self.disk.open_to_read(&Name::Blob(digest.clone())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(not_found(digest)),
            opened => opened.context(|| format!("open blob {digest}"))?,
        };
        let size = file.metadata().context(|| format!("stat blob {digest}"))?.len();
        Ok(Box::new(LocalReader { file, size, digest: digest.clone() }))
    }

    fn list(&self) -> Result<Vec<Blob>> {
        let digests = self.disk.list_blobs().context(|| "list blobs")?;
        digests.into_iter().filter_map(|digest| self.stat(digest).transpose()).collect()
    }

    fn delete(&self, digest: &Digest) -> Result<()> {
        let found = self.disk.unlink(&Name::Blob(digest.clone()));
        if found.context(|| format!("delete blob {digest}"))? { Ok(()) } else { Err(not_found(digest)) }
    }

    fn begin(&self, reference: &IngestRef, expected: Expected) -> Result<Box<dyn IngestWriter>> {
        if let Some(digest) = &expected.digest
            && self.stat(digest.clone())?.is_some()
        {
            self.disk.sync_renames(digest.algorithm()).context(|| format!("publish blob {digest}"))?;
            return Err(Error::already_exists(format!("content {digest}")));
        }
        if let Some(size) = expected.size {
            self.refuse_too_large(size)?;
        }
        let writing = self.writers.enter(reference, expected.clone())?;
        let writer = LocalWriter::begin(Arc::clone(&self.disk), writing, reference.clone(), &expected)?;
        Ok(Box::new(writer))
    }

    fn status(&self, reference: &IngestRef) -> Result<IngestStatus> {
        ingest::status(&self.disk, &self.writers, &RefHash::of(reference))?
            .ok_or_else(|| Error::not_found(format!("ingest {reference}")))
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
            Err(Error::not_found(format!("ingest {reference}")))
        }
    }
}

struct LocalReader {
    file: File,
    size: u64,
    digest: Digest,
}

impl Read for LocalReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read(buf)
    }
}

impl BlobReader for LocalReader {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            let len = disk::read_at(&self.file, &mut buf[filled..], offset + filled as u64)
                .context(|| format!("read blob {}", self.digest))?;
            if len == 0 {
                break;
            }
            filled += len;
        }
        Ok(filled)
    }

    fn as_file(&self) -> Option<&File> {
        Some(&self.file)
    }
}
