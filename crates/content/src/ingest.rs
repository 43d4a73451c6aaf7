//! Ingests on disk.
//!
//! ```text
//! ingest/<sha256 of ref>.ref    "hoist-ingest 1\n", total or "-", "\n", the ref to the end of the file
//! ingest/<sha256 of ref>.data   the bytes written so far
//!
//! begin    .ref ▶ .data          started = time of .ref, updated = time of .data, or started if that is later
//! commit   fsync .data ▶ rename to blobs/ ▶ fsync blobs/ ▶ unlink .ref
//! abort    unlink .data, or move it to removed/ if it is large ▶ unlink .ref
//! truncate .data, or exchange it with an empty file if it is large
//! ```
//!
//! An ingest exists if both files do. A crash may leave one of them alone, or a truncated ref: opening the store
//! removes these. No client would: its lease of the ref may be gone, and a file name does not tell the ref.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, MutexGuard};

use linux::writeback::Writeback;
use rustix::fs::{Timespec, Timestamps, futimens};
use stdx::Mutex;
use types::{Algorithm, Context as _, Digest, Error, ErrorKind, Hasher, IngestRef, Result, Timestamp};

use crate::disk::{self, Disk, Name, RefHash};
use crate::store::{Blob, Expected, IngestStatus, IngestWriter};
use crate::{local, recipe};

const MAGIC: &str = "hoist-ingest 1";
const REF_FILE_LEN_MAX: usize = 8192;
const HASH_CHUNK: usize = 256 << 10;

/// The open writers of ingests.
#[derive(Clone, Default)]
pub(crate) struct Writers(Arc<Mutex<HashMap<RefHash, Open>>>);

/// The state of an open writer.
#[derive(Debug, Default)]
struct Open {
    expected: Expected,
    /// Time of its last write. The file's mtime is that of the kernel's last tick, which may be before the call.
    written: Option<Timestamp>,
}

impl Writers {
    /// Takes the right to write an ingest. `Unavailable` if another writer has it.
    pub(crate) fn enter(&self, reference: &IngestRef, expected: Expected) -> Result<Writing> {
        let hash = RefHash::of(reference);
        let mut open = self.lock();
        if open.contains_key(&hash) {
            return Err(Error::unavailable(format!("ref {reference} locked by another writer")));
        }
        open.insert(hash.clone(), Open { expected, written: None });
        Ok(Writing { writers: self.clone(), hash })
    }

    /// The expected size and digest of an ingest and the time of its last write, if a writer has it open.
    fn known(&self, hash: &RefHash) -> (Expected, Option<Timestamp>) {
        let open = self.lock();
        open.get(hash).map(|open| (open.expected.clone(), open.written)).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RefHash, Open>> {
        self.0.lock()
    }
}

/// The right to write one ingest, until dropped.
pub(crate) struct Writing {
    writers: Writers,
    hash: RefHash,
}

impl Writing {
    fn note_write(&self) {
        if let Some(open) = self.writers.lock().get_mut(&self.hash) {
            open.written = Some(Timestamp::now());
        }
    }

    /// Takes the time of the last write, which then only the caller has.
    fn take_written(&self) -> Option<Timestamp> {
        self.writers.lock().get_mut(&self.hash)?.written.take()
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.writers.lock().remove(&self.hash);
    }
}

/// The content of a `.ref` file.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    reference: IngestRef,
    total: Option<u64>,
}

impl Header {
    fn encode(&self) -> String {
        let total = self.total.map_or_else(|| "-".to_owned(), |total| total.to_string());
        format!("{MAGIC}\n{total}\n{}", self.reference)
    }

    /// `None` if a crash cut the file short: the ref must hash to the file's name.
    fn decode(text: &str, hash: &RefHash) -> Option<Header> {
        let (magic, rest) = text.split_once('\n')?;
        let (total, reference) = rest.split_once('\n')?;
        let total = if total == "-" { None } else { Some(total.parse().ok()?) };
        let reference = IngestRef::new(reference).ok()?;
        (magic == MAGIC && RefHash::of(&reference) == *hash).then_some(Header { reference, total })
    }

    fn read(disk: &Disk, hash: &RefHash) -> io::Result<Option<Header>> {
        let name = Name::Ref(hash.clone());
        let file = match disk.open_to_read(&name) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = vec![0; REF_FILE_LEN_MAX];
        let len = disk.read_at(&name, &file, &mut bytes, 0)?;
        let text = std::str::from_utf8(&bytes[..len]).ok();
        Ok(text.and_then(|text| Header::decode(text, hash)))
    }

    fn write(&self, disk: &Disk, hash: &RefHash) -> io::Result<()> {
        let name = Name::Ref(hash.clone());
        let file = disk.create(&name)?;
        let text = self.encode();
        let written = disk.write_at(&name, &file, text.as_bytes(), 0)?;
        if written < text.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        // The kernel's own time is that of its last tick, which may be before the client's call.
        set_times(&file, Timestamp::now())
    }
}

pub(crate) fn status(disk: &Disk, writers: &Writers, hash: &RefHash) -> Result<Option<IngestStatus>> {
    read_status(disk, writers, hash).context(|| "read the status of an ingest")
}

fn read_status(disk: &Disk, writers: &Writers, hash: &RefHash) -> io::Result<Option<IngestStatus>> {
    let Some(header) = Header::read(disk, hash)? else { return Ok(None) };
    let (Some(begun), Some(data)) =
        (disk.stat(&Name::Ref(hash.clone()))?, disk.stat(&Name::Data(hash.clone()))?)
    else {
        return Ok(None);
    };
    let (expected, written) = writers.known(hash);
    let changed = disk::modified(&data).max(disk::modified(&begun));
    Ok(Some(IngestStatus {
        reference: header.reference,
        offset: u64::try_from(data.st_size).unwrap_or(0),
        total: header.total.or(expected.size),
        expected: expected.digest,
        started: disk::modified(&begun),
        updated: written.map_or(changed, |written| changed.max(written)),
    }))
}

/// Removes both files, and returns whether there was an ingest.
pub(crate) fn remove(disk: &Disk, hash: &RefHash) -> io::Result<bool> {
    let had_data = disk.set_aside(&Name::Data(hash.clone()))?;
    let had_ref = disk.unlink(&Name::Ref(hash.clone()))?;
    Ok(had_data && had_ref)
}

/// Removes files that a crash left: one without the other, or with a truncated ref.
pub(crate) fn remove_halves(disk: &Disk) -> io::Result<()> {
    for name in disk.list_ingests()? {
        match &name {
            Name::Data(hash) if disk.stat(&Name::Ref(hash.clone()))?.is_none() => {
                disk.set_aside(&name)?;
            }
            Name::Ref(hash)
                if disk.stat(&Name::Data(hash.clone()))?.is_none()
                    || Header::read(disk, hash).is_ok_and(|header| header.is_none()) =>
            {
                remove(disk, hash)?;
            }
            _ => {}
        }
    }
    Ok(())
}

pub(crate) struct LocalWriter {
    disk: Arc<Disk>,
    writing: Writing,
    reference: IngestRef,
    file: File,
    offset: u64,
    /// Expected size in bytes.
    total: Option<u64>,
    writeback: Writeback,
    hasher: Hasher,
    algorithm: Algorithm,
}

impl LocalWriter {
    /// Opens an existing ingest, or creates one.
    pub(crate) fn begin(
        disk: Arc<Disk>,
        writing: Writing,
        reference: IngestRef,
        expected: &Expected,
    ) -> Result<LocalWriter> {
        let algorithm = expected.digest.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let opened = match LocalWriter::open(&disk, &writing.hash, expected.size) {
            Ok(None) => LocalWriter::create(&disk, &writing.hash, &reference, expected.size),
            Ok(Some(file)) => Ok(file),
            Err(error) => Err(error),
        };
        let file = opened.context(|| format!("open ingest {reference}"))?;
        let data = Name::Data(writing.hash.clone());
        let (hasher, offset) = hash_file(&disk, &data, &file, algorithm)
            .context(|| format!("hash what there is of ingest {reference}"))?;
        let (total, writeback) = (expected.size, Writeback::default());
        Ok(LocalWriter { disk, writing, reference, file, offset, total, writeback, hasher, algorithm })
    }

    fn open(disk: &Disk, hash: &RefHash, total: Option<u64>) -> io::Result<Option<File>> {
        let Some(header) = Header::read(disk, hash)? else { return Ok(None) };
        let same_total = header.total.is_none() || total.is_none() || header.total == total;
        if !same_total {
            return Ok(None);
        }
        let file = match disk.open_to_write(&Name::Data(hash.clone())) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let fits =
            total.or(header.total).is_none_or(|total| file.metadata().is_ok_and(|data| data.len() <= total));
        Ok(fits.then_some(file))
    }

    fn create(disk: &Disk, hash: &RefHash, reference: &IngestRef, total: Option<u64>) -> io::Result<File> {
        remove(disk, hash)?;
        Header { reference: reference.clone(), total }.write(disk, hash)?;
        disk.create(&Name::Data(hash.clone()))
    }

    fn data(&self) -> Name {
        Name::Data(self.writing.hash.clone())
    }

    /// The digest of all bytes, by the algorithm that the caller expects.
    fn final_digest(&self, expected: &Expected) -> Result<Digest> {
        let wanted = expected.digest.as_ref().map_or(self.algorithm, Digest::algorithm);
        if wanted == self.algorithm {
            return Ok(self.digest());
        }
        let (hasher, _) = hash_file(&self.disk, &self.data(), &self.file, wanted)
            .context(|| format!("hash ingest {}", self.reference))?;
        Ok(hasher.finish())
    }

    /// Syncs the file, and makes it read-only. After a failed fsync(2) the kernel forgets which bytes it lost, so a
    /// second one would succeed wrongly: the ingest is deleted.
    fn seal(&self) -> Result<()> {
        self.disk.seal(&self.data(), &self.file).map_err(|error| {
            let _ = remove(&self.disk, &self.writing.hash);
            Error::new(error.kind().into(), format!("write ingest {} to disk", self.reference))
                .with_source(error)
        })
    }

    fn publish(&self, digest: &Digest) -> Result<()> {
        self.disk
            .publish(&self.data(), &Name::Blob(digest.clone()))
            .and_then(|()| self.disk.sync_renames(&Name::Blob(digest.clone())))
            .context(|| format!("publish blob {digest}"))?;
        // If this fails, the next open of the store removes the file.
        let _ = self.disk.unlink(&Name::Ref(self.writing.hash.clone()));
        Ok(())
    }
}

impl IngestWriter for LocalWriter {
    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        let data = self.data();
        while !bytes.is_empty() {
            let written = self
                .disk
                .write_at(&data, &self.file, bytes, self.offset)
                .context(|| format!("write to ingest {}", self.reference))?;
            if written == 0 {
                return Err(Error::new(
                    ErrorKind::ResourceExhausted,
                    format!("ingest {} takes no more bytes", self.reference),
                ));
            }
            self.hasher.update(&bytes[..written]);
            self.offset += written as u64;
            bytes = &bytes[written..];
        }
        self.writing.note_write();
        match self.total == Some(self.offset) {
            true => self.writeback.finish(&self.file, self.offset),
            false => self.writeback.advance(&self.file, self.offset),
        }
        Ok(())
    }

    fn offset(&self) -> u64 {
        self.offset
    }

    fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    fn status(&self) -> Result<IngestStatus> {
        status(&self.disk, &self.writing.writers, &self.writing.hash)?
            .ok_or_else(|| Error::not_found(format!("reference {}", self.reference)))
    }

    fn truncate(&mut self) -> Result<()> {
        let data = self.data();
        self.disk.truncate(&data, &mut self.file).context(|| format!("empty ingest {}", self.reference))?;
        self.writing.note_write();
        self.hasher = Hasher::new(self.algorithm);
        self.offset = 0;
        Ok(())
    }

    fn commit(self: Box<Self>, expected: Expected) -> Result<Blob> {
        let digest = self.final_digest(&expected)?;
        expected.check(self.offset, &digest)?;
        let known = local::find(&self.disk, &digest)?;
        if let Some(Blob { created, .. }) = &known {
            set_times(&self.file, *created)
                .context(|| format!("give ingest {} the time of its blob", self.reference))?;
        }
        self.seal()?;
        // The file becomes the blob's, and dropping the writer must not set its time.
        self.writing.take_written();
        let form = self.disk.form(&digest);
        let _alone = form.lock();
        // Also if the blob exists: these bytes are verified, and the disk may have corrupted the existing ones.
        self.publish(&digest)?;
        if known.is_some() {
            recipe::delete(&self.disk, &digest).context(|| format!("drop the recipe of blob {digest}"))?;
            return Err(Error::already_exists(format!("content {digest}")));
        }
        let stat = rustix::fs::fstat(&self.file).map_err(io::Error::from).context(|| "stat blob")?;
        let time = disk::modified(&stat);
        Ok(Blob { digest, size: self.offset, created: time, updated: time })
    }
}

impl Drop for LocalWriter {
    fn drop(&mut self) {
        // Later statuses take the time of the last write from the file. If this fails, it is inexact by a tick.
        if let Some(written) = self.writing.take_written() {
            let _inexact = set_times(&self.file, written);
        }
    }
}

fn set_times(file: &File, time: Timestamp) -> io::Result<()> {
    let time = Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanos) };
    Ok(futimens(file, &Timestamps { last_access: time, last_modification: time })?)
}

fn hash_file(disk: &Disk, name: &Name, file: &File, algorithm: Algorithm) -> io::Result<(Hasher, u64)> {
    let mut hasher = Hasher::new(algorithm);
    let mut offset = 0;
    if file.metadata()?.len() == 0 {
        return Ok((hasher, 0));
    }
    let mut chunk = vec![0; HASH_CHUNK];
    loop {
        let len = disk.read_at(name, file, &mut chunk, offset)?;
        if len == 0 {
            return Ok((hasher, offset));
        }
        hasher.update(&chunk[..len]);
        offset += len as u64;
    }
}
