//! Unpacked layers that are kept as archives: verified, and restored when they are damaged.
//!
//! A layer's blob determines its files, so a damaged archive is replaced from the blob, and a damaged metadata image
//! is rebuilt from the archive. Nothing is removed before the right bytes are on disk.
//!
//! For layers that are unpacked to directories there is nothing to compare with but the number of their files.

use std::io::{self, Read};

use bytes::Bytes;
use diff::spans::{Record, Spans};
use diff::{Limits, Origin, reread, store};
use metadata::{Caller, LayerSource, Metadata};
use registry::Remote;
use snapshot::LayerFiles;
use tokio::sync::mpsc;
use types::spec::image::Manifest;
use types::{Context, Descriptor, Digest, Error, ErrorKind, Hasher, Result, UnlessGone};

use crate::blocking;
use crate::unpack::{artifact_type, open_layer, read};

/// Chunks of a layer that wait for the disk at most.
const CHUNKS_WAITING: usize = 16;

/// An unpacked layer of an image.
pub(crate) struct Unpacked {
    /// Its index, from the lowest.
    pub(crate) at: usize,
    pub(crate) snapshotter: String,
    /// The chain id.
    pub(crate) name: String,
    /// `None` if it is a directory of files.
    pub(crate) kept: Option<Kept>,
}

/// A layer of an image, kept as an archive by the snapshot of its chain id.
#[derive(Clone)]
pub(crate) struct Kept {
    metadata: Metadata,
    caller: Caller,
    snapshotter: String,
    /// The chain id.
    name: String,
    diff_id: Digest,
    files: LayerFiles,
}

/// The result of verifying a layer.
pub(crate) enum Found {
    Good,
    /// The archive was right; the metadata image was wrong and has been rebuilt.
    Mended,
    /// The archive is damaged; the error says how.
    Lost(Error),
}

/// The unpacked layers of an image, by snapshotter and lowest first; none if the store does not have its config.
pub(crate) fn unpacked(metadata: &Metadata, caller: &Caller, manifest: &Manifest) -> Result<Vec<Unpacked>> {
    if artifact_type(metadata, manifest).is_some() {
        return Ok(Vec::new());
    }
    let bytes = read(metadata, caller, &manifest.config.digest).unless_gone()?;
    let Some(bytes) = bytes else { return Ok(Vec::new()) };
    let config = image::parse_config(&bytes, manifest.layers.len())?;
    let chain = image::chain_ids(&config.rootfs.diff_ids);
    let mut found = Vec::new();
    for snapshotter in metadata.snapshotters() {
        let snapshots = metadata.snapshots(caller, snapshotter)?;
        for (at, name) in chain.iter().enumerate() {
            if snapshots.stat(&name.to_string()).unless_gone()?.is_none() {
                continue;
            }
            let kept = Kept::find(metadata, caller, snapshotter, name, &config.rootfs.diff_ids[at])?;
            let (snapshotter, name) = (snapshotter.to_owned(), name.to_string());
            found.push(Unpacked { at, snapshotter, name, kept });
        }
    }
    Ok(found)
}

impl Kept {
    /// `None` if the layer is not unpacked, or not kept as an archive.
    pub(crate) fn find(
        metadata: &Metadata,
        caller: &Caller,
        snapshotter: &str,
        chain: &Digest,
        diff_id: &Digest,
    ) -> Result<Option<Kept>> {
        let name = chain.to_string();
        let files = metadata.snapshots(caller, snapshotter)?.kept_layer(&name).unless_gone()?.flatten();
        Ok(files.map(|files| Kept {
            metadata: metadata.clone(),
            caller: caller.clone(),
            snapshotter: snapshotter.to_owned(),
            name,
            diff_id: diff_id.clone(),
            files,
        }))
    }

    pub(crate) fn files(&self) -> &LayerFiles {
        &self.files
    }

    /// Bytes of its data file; 0 if that is missing.
    pub(crate) fn len(&self) -> u64 {
        std::fs::metadata(&self.files.data).map_or(0, |data| data.len())
    }

    /// Bytes of the data file within which the archive ends; zeros may follow it.
    pub(crate) fn archive_len(&self) -> u64 {
        self.len().min(diff::ARCHIVE_LEN_MAX)
    }

    /// Reads the whole layer, and rebuilds its metadata image if that is wrong.
    pub(crate) fn check(&self) -> Result<Found> {
        let tree = match self.files.open_data().and_then(|data| reread(&data, &self.diff_id)) {
            Err(error) if error.is(ErrorKind::DataLoss) => return Ok(Found::Lost(error)),
            tree => tree?,
        };
        let is_right = self.files.is_image_of(&tree)?;
        if is_right && self.files.is_as_recorded()? {
            return Ok(Found::Good);
        }
        if !is_right {
            self.files.replace_image(&tree)?;
        }
        self.mended()?;
        Ok(Found::Mended)
    }

    /// Removes the image made of this layer and those below, if it is wrong. Returns whether it was.
    pub(crate) fn mend_derived(&self) -> Result<bool> {
        self.metadata.snapshots(&self.caller, &self.snapshotter)?.mend_derived(&self.name)
    }

    /// Whether the record of its blob's spans is intact, or missing.
    pub(crate) fn is_record_right(&self) -> Result<bool> {
        let Some(record) = self.files.open_record()? else { return Ok(true) };
        let checked = Spans::read(&record).and_then(|spans| {
            spans.check_windows(&record)?;
            Ok(*spans.diff_id() == self.diff_id)
        });
        match checked {
            Err(error) if error.is(ErrorKind::DataLoss) => Ok(false),
            checked => checked,
        }
    }

    /// Restores the layer from its blob, which the store must have.
    pub(crate) fn replace(&self, blob: &Descriptor) -> Result<()> {
        let source = open_layer(&self.metadata, &self.caller, blob)?;
        let is_processed = self.metadata.processors().names(&blob.media_type).is_some();
        let origin = if is_processed { Origin::Coming } else { Origin::Stored };
        self.replace_from(&blob.digest, source, origin)
    }

    /// `source` may be the blob, or what stream processors make of it.
    fn replace_from(&self, digest: &Digest, source: LayerSource, origin: Origin) -> Result<()> {
        let limits = Limits { origin, ..Limits::default() };
        let replaced = self.files.replace(|new| {
            let record = new.record.map(|to| Record { blob: digest, to });
            let mut source = Hashed { blob: source, hasher: Hasher::new(digest.algorithm()) };
            let stored = store(&mut source, limits, new.data, record)?;
            if let Some(record) = new.record
                && source.finish()? != *digest
            {
                // The same archive in another compression: its spans are not those of the blob.
                record.set_len(0).context(|| "drop the record of its spans")?;
            }
            if stored.diff_id != self.diff_id {
                let message =
                    format!("it unpacks to {}, the image's config says {}", stored.diff_id, self.diff_id);
                return Err(Error::data_loss(message));
            }
            Ok(stored.tree)
        });
        if replaced.is_err() {
            self.metadata.snapshots(&self.caller, &self.snapshotter)?.set_aside();
        }
        replaced?;
        self.mended()
    }

    /// Restores the layer from a registry.
    pub(crate) async fn fetch(&self, blob: &Descriptor, remote: &Remote) -> Result<()> {
        let mut stream = remote.blob(blob, 0).await?;
        let (send, receive) = mpsc::channel(CHUNKS_WAITING);
        let kept = self.clone();
        let wanted = blob.clone();
        let chunks = Chunks { receive, current: Bytes::new() };
        let stored = tokio::spawn(blocking(move || {
            let source = kept.metadata.processors().open(&wanted, Box::new(chunks))?;
            kept.replace_from(&wanted.digest, source, Origin::Coming)
        }));
        let mut fetched = Ok(());
        loop {
            match stream.next().await {
                Ok(Some(chunk)) => {
                    if send.send(Ok(chunk)).await.is_err() {
                        break; // the storing side says why
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    // So that the archive does not look complete.
                    let _ = send.send(Err(io::ErrorKind::UnexpectedEof)).await;
                    fetched = Err(error);
                    break;
                }
            }
        }
        drop(send);
        let stored = stored
            .await
            .unwrap_or_else(|panic| Err(Error::internal("storing a layer broke down").with_source(panic)));
        fetched.and(stored)
    }

    fn mended(&self) -> Result<()> {
        self.metadata.snapshots(&self.caller, &self.snapshotter)?.layer_mended(&self.name)
    }
}

/// Hashes a blob while it is read.
struct Hashed<R> {
    blob: R,
    hasher: Hasher,
}

impl<R: Read> Hashed<R> {
    /// Reads the rest of the blob. Returns the digest of all of it.
    fn finish(mut self) -> Result<Digest> {
        io::copy(&mut self, &mut io::sink()).context(|| "read a blob to its end")?;
        Ok(self.hasher.finish())
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.blob.read(buffer)?;
        self.hasher.update(&buffer[..len]);
        Ok(len)
    }
}

/// The chunks of a registry's answer, as a blocking reader.
struct Chunks {
    receive: mpsc::Receiver<Result<Bytes, io::ErrorKind>>,
    current: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receive.blocking_recv() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(0),
            }
        }
        let len = buffer.len().min(self.current.len());
        buffer[..len].copy_from_slice(&self.current.split_to(len));
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write;
    use std::sync::Arc;

    use content::LocalStore;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use kv::Db;
    use snapshot::{LayerForm, Overlay, Snapshotter};
    use testkit::layout::tar_of;
    use types::{Labels, Namespace};

    use super::*;

    fn gzip(plain: &[u8], level: u32) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    /// A registry may serve the same archive in another compression.
    #[test]
    fn spans_are_recorded_of_the_blob_itself_only() {
        let dir = tempfile::TempDir::new().unwrap();
        let db = Db::open(dir.path().join("meta.db"), kv::Options { cache_bytes: 1 << 20, verify: false });
        let db = db.unwrap();
        let content = Arc::new(LocalStore::open(dir.path().join("content")).unwrap());
        let options = snapshot::Options::new(LayerForm::Archives);
        let overlay = Overlay::open(&dir.path().join("trees"), db.clone(), options).unwrap();
        let overlay: Arc<dyn Snapshotter> = Arc::new(overlay.recording_spans(true));
        let snapshotters = BTreeMap::from([(Overlay::NAME.to_owned(), overlay)]);
        let metadata = Metadata::open(db, content, snapshotters, metadata::Options::default()).unwrap();
        let caller = Caller::new(Namespace::new("test").unwrap());

        let plain = tar_of(&[("file", &"all the same ".repeat(1000))]);
        let (blob, other) = (gzip(&plain, 9), gzip(&plain, 0));
        let (digest, diff_id) = (Digest::of(&blob), Digest::of(&plain));
        let snapshots = metadata.snapshots(&caller, Overlay::NAME).unwrap();
        snapshots.prepare("extract", None, Labels::new()).unwrap();
        let files = snapshots.layer_files("extract").unwrap().unwrap();
        files
            .write(|new| store(&blob[..], Limits::default(), new.data, None).map(|stored| stored.tree))
            .unwrap();
        snapshots.commit(&diff_id.to_string(), "extract", Labels::new(), None).unwrap();
        let kept = Kept::find(&metadata, &caller, Overlay::NAME, &diff_id, &diff_id).unwrap().unwrap();

        // An existing layer is not stored again.
        for (bytes, has_record) in [(&other, false), (&blob, true), (&other, true)] {
            let source = Box::new(io::Cursor::new(bytes.clone()));
            kept.replace_from(&digest, source, Origin::Stored).unwrap();
            assert!(matches!(kept.check().unwrap(), Found::Good));
            assert_eq!(kept.files().open_record().unwrap().is_some(), has_record);
            assert!(kept.is_record_right().unwrap());
        }
    }
}
