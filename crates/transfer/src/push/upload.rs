//! Carries out the plan of a push: uploads blobs, then documents.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use registry::{Push, Ranges};
use stdx::Mutex;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use types::{Descriptor, Digest, Error, Reference, Result};

use super::PushProgress;
use super::plan::{Document, Plan, Stores, subject_of};
use crate::reading::open_blob;
use crate::source::Source;
use crate::{Slots, blocking};

/// Bytes per read, and how many such pieces wait for the network.
const PIECE_LEN: usize = 256 << 10;
const PIECES_WAITING: usize = 4;

/// Blobs sent at once, counted per registry: a registry that stalls holds its slots until its timeouts, but no push
/// to another registry waits for it.
#[derive(Clone)]
pub(crate) struct Uploads {
    at_once: usize,
    /// Registries with uploads in progress or waiting.
    registries: Arc<Mutex<BTreeMap<String, Weak<Semaphore>>>>,
}

impl Uploads {
    pub(crate) fn new(at_once: usize) -> Uploads {
        Uploads { at_once, registries: Arc::default() }
    }

    /// The slots of a registry.
    fn to(&self, registry: &str) -> Arc<Semaphore> {
        let mut registries = self.registries.lock();
        if let Some(slots) = registries.get(registry).and_then(Weak::upgrade) {
            return slots;
        }
        registries.retain(|_, slots| slots.strong_count() > 0);
        let slots = Arc::new(Semaphore::new(self.at_once));
        registries.insert(registry.to_owned(), Arc::downgrade(&slots));
        slots
    }
}

/// Uploads plans to a repository.
#[derive(Clone)]
pub(super) struct Uploader {
    pub(super) stores: Stores,
    pub(super) push: Push,
    pub(super) report: Option<mpsc::Sender<PushProgress>>,
    pub(super) to: Reference,
    pub(super) slots: Slots,
}

impl Uploader {
    /// Uploads everything, and tags the root.
    pub(super) async fn deliver(&self, plan: &Plan, tag: Option<&str>) -> Result<Descriptor> {
        self.tell(PushProgress::Parts(plan.parts.clone()));
        self.send_blobs(&plan.blobs).await?;
        let (root, below) = plan.documents.split_last().expect("a plan has a root");
        for document in below {
            let existed = self.push.has_document(&document.descriptor.digest).await?;
            if !existed {
                self.send_document(document, None).await?;
            }
            self.tell(PushProgress::Document { document: Box::new(document.descriptor.clone()), existed });
        }
        self.send_document(root, tag).await?;
        self.tell(PushProgress::Document { document: Box::new(root.descriptor.clone()), existed: false });
        Ok(root.descriptor.clone())
    }

    async fn send_blobs(&self, blobs: &[Descriptor]) -> Result<()> {
        let mut seen = BTreeSet::new();
        let blobs: Vec<&Descriptor> = blobs.iter().filter(|blob| seen.insert(&blob.digest)).collect();
        let mut working = JoinSet::new();
        for blob in blobs {
            let (uploader, blob) = (self.clone(), blob.clone());
            let slots = self.slots.uploads.to(self.push.host());
            working.spawn(async move {
                let _slot = slots.acquire_owned().await.expect("nobody closes it");
                uploader.send_blob(&blob).await
            });
        }
        while let Some(joined) = working.join_next().await {
            // Dropping the set cancels the others.
            joined.map_err(Error::broke_down("a blob"))??;
        }
        Ok(())
    }

    async fn send_blob(&self, blob: &Descriptor) -> Result<()> {
        let (stores, digest) = (self.stores.clone(), blob.digest.clone());
        let labels = blocking(move || stores.metadata.content(&stores.caller).info(&digest)).await?.labels;
        let sources = Source::of(&self.to).others(&labels);
        let ranges = self.stores.ranges(blob, self.report.clone());
        let how = self.push.blob(blob, &sources, &ranges).await?;
        let (uploader, digest) = (self.clone(), blob.digest.clone());
        blocking(move || {
            Source::of(&uploader.to).note(&uploader.stores.metadata, &uploader.stores.caller, &digest)
        })
        .await?;
        self.tell(PushProgress::Sent { digest: blob.digest.clone(), how });
        Ok(())
    }

    async fn send_document(&self, document: &Document, tag: Option<&str>) -> Result<()> {
        let Descriptor { media_type: kind, digest, .. } = &document.descriptor;
        let object = tag.map_or_else(|| digest.to_string(), str::to_owned);
        let is_noted = self.push.document(&object, kind, document.bytes.to_vec()).await?;
        match subject_of(&document.descriptor, &document.bytes)? {
            Some(subject) if !is_noted => {
                let referrer = as_referrer(document)?;
                self.push.note_referrer(&subject.digest, referrer).await
            }
            _ => Ok(()),
        }
    }

    pub(super) fn tell(&self, progress: PushProgress) {
        tell(self.report.as_ref(), progress);
    }
}

impl Stores {
    /// A source of ranges of a blob for the upload, which reports progress.
    fn ranges(&self, blob: &Descriptor, report: Option<mpsc::Sender<PushProgress>>) -> Ranges {
        let (stores, digest) = (self.clone(), blob.digest.clone());
        Arc::new(move |range| {
            let (send, receive) = mpsc::channel(PIECES_WAITING);
            let (stores, digest, report) = (stores.clone(), digest.clone(), report.clone());
            // Ends when the receiver is dropped, which the upload does.
            tokio::spawn(async move {
                if let Err(error) = stores.read_range(&digest, range, &send, report.as_ref()).await {
                    let _ = send.send(Err(io::Error::other(error))).await;
                }
            });
            receive
        })
    }

    /// Reads piece by piece, so that no thread blocks on the network.
    async fn read_range(
        &self,
        digest: &Digest,
        range: Range<u64>,
        to: &mpsc::Sender<io::Result<Bytes>>,
        report: Option<&mpsc::Sender<PushProgress>>,
    ) -> Result<()> {
        let reader = open_blob(&self.metadata.content(&self.caller), digest).await?;
        let mut at = range.start;
        while at < range.end {
            let len = usize::try_from(range.end - at).unwrap_or(PIECE_LEN).min(PIECE_LEN);
            let reader = reader.clone();
            let piece = blocking(move || {
                let mut piece = vec![0; len];
                let read = reader.read_at(&mut piece, at)?;
                Ok((read == len).then_some(piece))
            });
            let piece = piece.await?.ok_or_else(|| {
                Error::data_loss(format!("blob {digest} is shorter on disk than its record says"))
            })?;
            if to.send(Ok(piece.into())).await.is_err() {
                return Ok(());
            }
            at += len as u64;
            tell(report, PushProgress::Sending { digest: digest.clone(), current: at });
        }
        Ok(())
    }
}

fn tell(report: Option<&mpsc::Sender<PushProgress>>, progress: PushProgress) {
    if let Some(report) = report {
        // Dropped if the receiver is too slow or gone: late progress is worth nothing.
        let _ = report.try_send(progress);
    }
}

/// A document's descriptor in the referrers list of its subject (distribution-spec 1.1, "Listing Referrers").
fn as_referrer(document: &Document) -> Result<Descriptor> {
    let mut referrer = document.descriptor.clone();
    (referrer.artifact_type, referrer.annotations) =
        match image::Node::parse(&referrer.media_type, &document.bytes)? {
            image::Node::Manifest(manifest) => {
                (Some(manifest.artifact_type.unwrap_or(manifest.config.media_type)), manifest.annotations)
            }
            image::Node::Index(index) => (index.artifact_type, index.annotations),
        };
    Ok(referrer)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use content::{Expected, LocalStore};
    use kv::Db;
    use metadata::{Caller, Metadata};
    use types::descriptor::media_type;
    use types::{Labels, Namespace};

    use super::*;

    /// A content store with one blob of these bytes.
    fn stores(dir: &std::path::Path, bytes: &[u8]) -> (Stores, Descriptor) {
        let db = Db::open(dir.join("meta.db"), kv::Options::default()).unwrap();
        let store = Arc::new(LocalStore::open(dir.join("content")).unwrap());
        let metadata = Metadata::open(db, store, BTreeMap::new(), metadata::Options::default()).unwrap();
        let caller = Caller::new(Namespace::new("default").unwrap());
        let blob = Descriptor::new(media_type::OCI_LAYER, Digest::of(bytes), bytes.len() as u64);
        let expected = Expected::new(blob.digest.clone(), blob.size);
        let mut writer = metadata.content(&caller).begin(&"blob".parse().unwrap(), expected.clone()).unwrap();
        writer.write(bytes).unwrap();
        writer.commit(expected, Labels::new()).unwrap();
        (Stores { metadata, caller }, blob)
    }

    #[test]
    fn a_registry_that_keeps_its_slots_keeps_none_of_another() {
        let uploads = Uploads::new(2);
        let is_free = |registry: &str| uploads.to(registry).try_acquire_owned().is_ok();
        let silent = [uploads.to("silent.example"), uploads.clone().to("silent.example")];
        let kept = silent.map(|slots| slots.try_acquire_owned().unwrap());
        assert!(!is_free("silent.example"), "the slots are those of all pushes");
        assert!(is_free("other.example"));
        drop(kept);
        assert!(is_free("silent.example"));
        assert!(is_free("third.example"));
        assert_eq!(uploads.registries.lock().len(), 1, "those that nobody sends to are forgotten");
    }

    #[test]
    fn a_registry_that_takes_nothing_holds_no_thread() {
        let dir = tempfile::TempDir::new().unwrap();
        let bytes = testkit::noise("blob", 3 * PIECES_WAITING * PIECE_LEN + 1000);
        let (stores, blob) = stores(dir.path(), &bytes);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let pushes = async {
            let ranges = stores.ranges(&blob, None);
            let mut slow: Vec<_> = (0..4).map(|_| ranges(0..blob.size)).collect();
            for network in &mut slow {
                network.recv().await.expect("a piece").unwrap();
            }
            let mut quick = ranges(1000..blob.size);
            let mut sent = Vec::new();
            while let Some(piece) = quick.recv().await {
                sent.extend_from_slice(&piece.unwrap());
            }
            assert!(sent == bytes[1000..]);
            blocking(|| Ok(())).await.unwrap();
        };
        let pushed = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), pushes).await });
        pushed.expect("others have their turn");
    }
}
