//! Imports the images and blobs of another containerd, by namespace, while neither daemon runs.
//!
//! ```text
//! meta.db (opened read-only) ─▶ [`records`] ─▶ per namespace: blobs ─▶ hashed into our store ─▶ image records
//!                                                                                      └─▶ unexpired leases
//! ```
//!
//! Invariants
//! - Nothing below the other root is written, not even a lock file; only the state of bbolt's lock is checked.
//! - A blob is recorded only if its contents match its digest; an image only if its target was imported and no blob
//!   that it refers to failed. Damaged objects are reported and skipped.
//! - An interrupted import can be repeated: existing objects are skipped, and partial ones completed.
//!
//! Snapshots are recreated from the blobs by the first pull or run. Containers are not imported, because their data is
//! in snapshots. Neither are snapshots and ingests that leases refer to; their number is reported.

mod records;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind as IoErrorKind, Read};
use std::path::{Path, PathBuf};

use content::Expected;
use metadata::{Caller, Image, Lease, Metadata};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use types::label::gc::{CONTENT, EXPIRE, SNAPSHOT};
use types::{Context, Digest, Error, ErrorKind, IngestRef, Labels, Namespace, Result, Timestamp};

use records::{BlobRecord, ImageRecord, LeaseRecord, NamespaceRecords};

/// containerd's database and blobs, relative to its root.
const RECORDS: &str = "io.containerd.metadata.v1.bolt/meta.db";
const BLOBS: &str = "io.containerd.content.v1.content/blobs";
/// Largest database that is read into memory, in bytes.
const RECORDS_LEN_MAX: u64 = 8 << 30;
const CHUNK_LEN: usize = 1 << 20;

/// What was imported and what was not.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) images: usize,
    pub(crate) blobs: usize,
    pub(crate) bytes: u64,
    pub(crate) leases: usize,
    /// Objects that existed here before.
    pub(crate) present: usize,
    /// What could not be imported, and why.
    pub(crate) failures: Vec<String>,
    /// Containers, which are not imported.
    pub(crate) containers_left: usize,
    /// Snapshots and ingests in leases, which are not imported.
    pub(crate) resources_left: usize,
}

/// Another containerd's root, opened for reading.
pub(crate) struct Source {
    root: PathBuf,
    /// Holds bbolt's lock, shared, while we read.
    _database: File,
    bytes: Vec<u8>,
}

impl Source {
    /// `FailedPrecondition` while a containerd has its database open, `NotFound` if there is none.
    pub(crate) fn open(root: &Path) -> Result<Source> {
        let path = root.join(RECORDS);
        let what = || format!("read {}", path.display());
        let mut file = File::open(&path)
            .context(|| format!("{} is no root of containerd's: open {}", root.display(), path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(Error::failed_precondition(format!(
                    "a containerd runs on {}; stop it first (systemctl stop containerd)",
                    root.display()
                )));
            }
            Err(errno) => {
                return Err(std::io::Error::from(errno)).context(|| format!("lock {}", path.display()));
            }
        }
        let len = file.metadata().context(what)?.len();
        if len > RECORDS_LEN_MAX {
            return Err(Error::failed_precondition(format!(
                "{} has {len} bytes, more than are read",
                path.display()
            )));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).context(what)?;
        Ok(Source { root: root.to_owned(), _database: file, bytes })
    }

    /// All readable records, and descriptions of the others.
    fn records(&self) -> Result<(Vec<NamespaceRecords>, Vec<String>)> {
        let database = bolt::Database::open(&self.bytes);
        let what = || format!("read {}", self.root.join(RECORDS).display());
        records::read(database.context(what)?).context(what)
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join(BLOBS).join(digest.algorithm().name()).join(digest.hex())
    }
}

/// Describes what would be imported.
pub(crate) fn describe(source: &Source) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let (namespaces, broken) = source.records()?;
    for namespace in namespaces {
        let NamespaceRecords { name, images, blobs, leases, containers, broken, .. } = &namespace;
        // The sizes in the other containerd's records.
        let bytes = blobs.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.size));
        lines.push(format!(
            "namespace {name}: {} images, {} blobs of {bytes} bytes, {} leases; {containers} containers stay, and {} \
             snapshots and ingests that leases hold",
            images.len(),
            blobs.len(),
            leases.len(),
            leases.iter().map(|lease| lease.left).sum::<usize>()
        ));
        lines.extend(images.iter().map(|image| format!("  {} ({})", image.name, image.target.digest)));
        lines.extend(broken.iter().map(|what| format!("  cannot be read: {what}")));
    }
    lines.extend(broken.iter().map(|what| format!("cannot be read: {what}")));
    Ok(lines)
}

/// Imports everything. An error means that the import could not continue.
pub(crate) fn import(source: &Source, metadata: &Metadata) -> Result<Outcome> {
    let (namespaces, broken) = source.records()?;
    let mut outcome = Outcome { failures: broken, ..Outcome::default() };
    for namespace in namespaces {
        let name = namespace.name.clone();
        import_namespace(source, metadata, namespace, &mut outcome)
            .context(|| format!("take over namespace {name}"))?;
    }
    metadata.sync()?;
    Ok(outcome)
}

fn import_namespace(
    source: &Source,
    metadata: &Metadata,
    records: NamespaceRecords,
    outcome: &mut Outcome,
) -> Result<()> {
    let NamespaceRecords { name, labels, images, blobs, leases, containers, broken, lost } = records;
    outcome.containers_left += containers;
    outcome.failures.extend(broken.into_iter().map(|what| format!("{name}: {what}")));
    match metadata.namespaces().create(&name, labels) {
        Err(error) if !error.is(ErrorKind::AlreadyExists) => return Err(error),
        _ => {}
    }
    let caller = Caller::new(name.clone());
    let mut needs = Needs::default();
    let mut failed = lost;
    for blob in blobs {
        let digest = blob.digest.clone();
        needs.add(&digest, &blob.labels);
        let failures = outcome.failures.len();
        note(
            outcome,
            &name,
            &format!("blob {digest}"),
            import_blob(source, metadata, &caller, blob),
            |outcome, size| {
                outcome.blobs += 1;
                outcome.bytes += size;
            },
        )?;
        if outcome.failures.len() > failures {
            failed.push(digest);
        }
    }
    let lacking = needs.lacking(&failed);
    for image in images {
        let what = format!("image {}", image.name);
        note(outcome, &name, &what, import_image(metadata, &caller, image, &lacking), |outcome, ()| {
            outcome.images += 1;
        })?;
    }
    for lease in leases {
        outcome.resources_left += lease.left;
        let what = format!("lease {}", lease.id);
        note(outcome, &name, &what, import_lease(metadata, &name, lease), |outcome, ()| {
            outcome.leases += 1;
        })?;
    }
    Ok(())
}

/// Counts the outcome of one record. A fault in the other containerd's data is recorded and skipped; one in ours ends
/// the import.
fn note<T>(
    outcome: &mut Outcome,
    namespace: &Namespace,
    what: &str,
    done: Result<Option<T>>,
    count: impl FnOnce(&mut Outcome, T),
) -> Result<()> {
    match done {
        Ok(Some(done)) => count(outcome, done),
        Ok(None) => outcome.present += 1,
        Err(error) if error.is(ErrorKind::ResourceExhausted) || error.is(ErrorKind::Internal) => {
            return Err(error.context(what.to_owned()));
        }
        Err(error) => outcome.failures.push(format!("{namespace}: {what}: {}", error.chain())),
    }
    Ok(())
}

/// References between blobs, by the labels that containerd's garbage collector follows.
#[derive(Default)]
struct Needs(BTreeMap<Digest, Vec<Digest>>);

impl Needs {
    fn add(&mut self, digest: &Digest, labels: &Labels) {
        let needed = labels.iter().filter(|(key, _)| key.starts_with(CONTENT));
        for needed in needed.filter_map(|(_, value)| value.parse().ok()) {
            self.0.entry(needed).or_default().push(digest.clone());
        }
    }

    /// The failed blobs and all that refer to them, each with one of the failed.
    fn lacking(&self, failed: &[Digest]) -> BTreeMap<Digest, Digest> {
        let mut lacking = BTreeMap::new();
        let mut pending: Vec<_> = failed.iter().map(|failed| (failed, failed)).collect();
        while let Some((digest, lost)) = pending.pop() {
            if lacking.insert(digest.clone(), lost.clone()).is_none() {
                pending.extend(self.0.get(digest).into_iter().flatten().map(|needing| (needing, lost)));
            }
        }
        lacking
    }
}

/// Copies a blob and hashes it. `None` if it exists here.
fn import_blob(
    source: &Source,
    metadata: &Metadata,
    caller: &Caller,
    blob: BlobRecord,
) -> Result<Option<u64>> {
    let BlobRecord { digest, size, labels, times } = blob;
    let content = metadata.content(caller);
    if content.info(&digest).is_ok() {
        return Ok(None);
    }
    let mut file = open_blob(source, &digest, size)?;
    let reference = IngestRef::new(format!("import-{digest}"))?;
    let expected = Expected::new(digest.clone(), size);
    let mut writer = content.begin(&reference, expected.clone())?.dated(times.created, times.updated);
    if !writer.is_shared() {
        if writer.offset() > 0 {
            // Left by an earlier attempt: start over, so that the hash covers a single read.
            writer.truncate()?;
        }
        let mut buffer = vec![0; CHUNK_LEN];
        loop {
            let len = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => len,
                Err(error) => {
                    // Otherwise the ingest would be kept for a day.
                    writer.abort()?;
                    return Err(unreadable("read", &source.blob(&digest), error));
                }
            };
            writer.write(&buffer[..len])?;
        }
    }
    // Snapshots are recreated.
    let labels = labels.into_iter().filter(|(key, _)| !key.starts_with(SNAPSHOT)).collect();
    match writer.commit(expected, labels) {
        Ok(_) => Ok(Some(size)),
        Err(error) if error.is(ErrorKind::FailedPrecondition) => {
            // Otherwise the ingest would be kept for a day.
            content.abort_unwritten(&reference)?;
            Err(Error::data_loss("its bytes are not those of its digest").with_source(error))
        }
        Err(error) => Err(error),
    }
}

/// Opens a blob's file. `DataLoss` if it does not exist or its size differs from the record.
fn open_blob(source: &Source, digest: &Digest, size: u64) -> Result<File> {
    let path = source.blob(digest);
    let file = File::open(&path).map_err(|error| match error.kind() {
        IoErrorKind::NotFound => Error::data_loss(format!("its bytes are missing: {}", path.display())),
        _ => unreadable("open", &path, error),
    })?;
    let len = file.metadata().map_err(|error| unreadable("look at", &path, error))?.len();
    match len == size {
        true => Ok(file),
        false => {
            Err(Error::data_loss(format!("{} has {len} bytes, and its record says {size}", path.display())))
        }
    }
}

/// A read error of the other containerd's disk, which must not be taken for an error of ours.
fn unreadable(what: &str, path: &Path, error: std::io::Error) -> Error {
    Error::unavailable(format!("{what} {}", path.display())).with_source(error)
}

fn import_image(
    metadata: &Metadata,
    caller: &Caller,
    image: ImageRecord,
    lacking: &BTreeMap<Digest, Digest>,
) -> Result<Option<()>> {
    let ImageRecord { name, labels, target, times } = image;
    // A partial image, as after a pull for one platform, is fine; without its target there is no image.
    metadata.content(caller).info(&target.digest).context(|| "its target was not taken over")?;
    let images = metadata.images(caller);
    match images.get(&name) {
        Ok(there) if there.target.digest == target.digest => return Ok(None),
        Ok(there) => {
            return Err(Error::already_exists(format!("the name stands for {} here", there.target.digest)));
        }
        Err(error) if error.is(ErrorKind::NotFound) => {}
        Err(error) => return Err(error),
    }
    if let Some(lost) = lacking.get(&target.digest) {
        return Err(Error::data_loss(format!(
            "it lacks blob {lost}, which was not taken over: pull it here, or pull it there anew and call this again"
        )));
    }
    let image = Image { name, labels, target, created: times.created, updated: times.updated };
    images.take_over(image).map(|_| Some(()))
}

fn import_lease(metadata: &Metadata, namespace: &Namespace, lease: LeaseRecord) -> Result<Option<()>> {
    let LeaseRecord { id, labels, created, resources, .. } = lease;
    if is_over(&labels) {
        return Ok(None);
    }
    let taken = metadata.leases(namespace).take_over(Lease { id, labels, created }, &resources)?;
    Ok(taken.then_some(()))
}

fn is_over(labels: &Labels) -> bool {
    let expiry: Option<Timestamp> = labels.get(EXPIRE).and_then(|text| text.parse().ok());
    expiry.is_some_and(|expiry| expiry <= Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_that_refer_to_a_failed_blob_fail_too() {
        let [index, whole, broken, layer, other] =
            ["index", "whole", "broken", "layer", "other"].map(|name| Digest::of(name.as_bytes()));
        let mut needs = Needs::default();
        let mut add = |digest: &Digest, needed: &[&Digest]| {
            let label = |(at, needed): (usize, &&Digest)| (format!("{CONTENT}.{at}"), needed.to_string());
            needs.add(digest, &needed.iter().enumerate().map(label).collect());
        };
        // Not a valid image, but possible in the labels: the index refers to itself.
        add(&index, &[&whole, &broken, &index]);
        add(&whole, &[&other]);
        add(&broken, &[&layer, &other]);
        let lacking = needs.lacking(std::slice::from_ref(&layer));
        let expected = [&index, &broken, &layer].map(|digest| (digest.clone(), layer.clone()));
        assert_eq!(lacking, BTreeMap::from(expected));
        assert!(needs.lacking(&[]).is_empty());
    }
}
