//! Workflows that move images: from a registry or an archive into the content store, on to snapshots, and back out.
//!
//! ```text
//! pull    lease ─▶ resolve ─▶ documents ─▶ layers, some at a time:
//!            network ─▶ content (hash) ─┬─▶ blob
//!                                       └─▶ inflate ─▶ hash ─▶ tree without a parent
//!         ─▶ trees get their parents, lowest first ─▶ image record ─▶ lease dropped
//! push    document with its descendants ─▶ blobs ─▶ documents, children first ─▶ the tag
//! import  archive ─▶ content ─▶ as pull from there
//! export  documents and layers ─▶ archive, under a lease
//! layer   two trees ─▶ their difference ─▶ content
//! commit  an image, and the layer of the changes on top of it ─▶ another image
//! ```
//!
//! Invariants
//! - Nothing becomes visible before its digest was verified: neither blobs nor trees.
//! - The leftovers of a failed workflow are held by its lease and are collected when that expires; a partial blob is
//!   resumed where it ended.
//! - A blob that several pulls need at once is fetched by one of them.
//! - Stores block, so they are called on threads of their own, behind bounded channels.
#![forbid(unsafe_code)]

mod admission;
mod clients;
mod commit;
mod contents;
mod convert;
mod download;
mod export;
mod files;
mod flight;
mod import;
mod kept;
mod layer;
mod layer_slot;
mod layers;
mod pull;
mod push;
mod reading;
mod retention;
mod source;
mod unpack;
mod verify;
mod window;

pub use admission::Admission;
pub use clients::with_client;
pub use commit::{Commit, NewImage, with_view};
pub use contents::{Contents, Part, Summary, Variant, config, contents};
pub use convert::{Conversion, Format, convert};
pub use export::{ExportOptions, Platforms, export};
pub use files::{ImageFile, files};
pub use flight::Flights;
pub use import::{
    BaseName, DigestNames, ImportOptions, NameRule, TreeConfig, import, import_stream, import_tree,
};
pub use layer::{Layer, LayerRequest, layer_compression, store_layer};
pub use layer_slot::layers_at_once;
pub use pull::{PullRequest, Unpack, WantedPlatforms, ingest_name, pull};
pub use push::{PushPart, PushProgress, PushRequest, Scope, push};
pub use reading::open_blob;
pub use retention::{RETENTION_LABEL, Retained, Retention, Retentions, retain};
pub use unpack::{Described, describe, unpack};
pub use verify::{Checked, Damaged, Remotes, Verdict, What, damaged, verify};

use std::num::NonZeroUsize;
use std::time::Duration;

use metadata::{Caller, Metadata, Workflow};
use tokio::sync::mpsc;
use types::label::gc::EXPIRE;
use types::{Descriptor, Digest, Error, Labels, LeaseId, Result, Timestamp};

use self::layer_slot::LayerSlots;
use self::push::Uploads;

/// Limits on concurrent transfers, of all pulls or pushes of a daemon together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtOnce {
    /// Layers fetched at once; [`layers_at_once`] at most.
    pub downloads: NonZeroUsize,
    /// Blobs sent at once to one registry.
    pub uploads: NonZeroUsize,
}

impl Default for AtOnce {
    fn default() -> AtOnce {
        const THREE: NonZeroUsize = NonZeroUsize::new(3).expect("it is not 0");
        AtOnce { downloads: THREE, uploads: THREE }
    }
}

/// The slots of [`AtOnce`], granted in the order of arrival. Clones share them.
#[derive(Clone)]
pub struct Slots {
    layers: LayerSlots,
    uploads: Uploads,
}

impl Slots {
    pub fn new(at_once: AtOnce) -> Slots {
        Slots {
            layers: LayerSlots::new(at_once.downloads.get().min(layers_at_once())),
            uploads: Uploads::new(at_once.uploads.get()),
        }
    }
}

impl Default for Slots {
    fn default() -> Slots {
        Slots::new(AtOnce::default())
    }
}

/// How long the lease of an unfinished workflow keeps what it made.
const LEASE_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Progress of a layer or document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    Resolved {
        name: String,
        target: Box<Descriptor>,
    },
    /// A document is needed: the target, or a child of `above`.
    Document {
        document: Box<Descriptor>,
        above: Option<Box<Descriptor>>,
    },
    /// A document is in the content store.
    Stored {
        digest: Digest,
        /// Whether it was before.
        existed: bool,
    },
    /// The layers of an image, lowest first, or other blobs that a document references.
    Layers {
        layers: Vec<Descriptor>,
        of: Box<Descriptor>,
        /// How many of the layers, from the lowest, have their trees already: see [`Progress::Exists`].
        unpacked: usize,
    },
    Downloading {
        digest: Digest,
        current: u64,
    },
    Extracting {
        digest: Digest,
    },
    Done {
        digest: Digest,
    },
    /// It existed before.
    Exists {
        digest: Digest,
    },
}

/// Receives progress. A full or closed channel does not stop the workflow.
pub type Report = mpsc::Sender<Progress>;

fn tell(report: Option<&Report>, progress: Progress) {
    if let Some(report) = report {
        // Dropped if the receiver is too slow or gone: late progress is worth nothing.
        let _ = report.try_send(progress);
    }
}

/// A descriptor without annotations, platform and other fields that its parent adds.
fn plain(descriptor: &Descriptor) -> Descriptor {
    Descriptor::new(descriptor.media_type.clone(), descriptor.digest.clone(), descriptor.size)
}

/// Adds labels to a blob.
fn add_labels(content: &metadata::Content, digest: &Digest, labels: &Labels) -> Result<()> {
    if labels.is_empty() {
        // An update without field paths would replace all labels.
        return Ok(());
    }
    let paths: Vec<String> = labels.keys().map(|key| format!("labels.{key}")).collect();
    content.update(digest, labels, &paths).map(drop)
}

/// A lease for as long as a workflow runs. Dropped without [`Lease::end`] it stays until it expires.
///
/// Writes of its caller are relaxed: they need be on disk only when the lease ends or an image gets its name, so
/// there is one sync instead of one per record.
struct Lease {
    metadata: Metadata,
    caller: Caller,
    id: LeaseId,
    _workflow: Workflow,
}

impl Lease {
    fn begin(metadata: &Metadata, caller: &Caller) -> Result<Lease> {
        let id = LeaseId::new(random_name("transfer")?)?;
        let expiry = Timestamp::now().plus(LEASE_LIFE).to_string();
        let labels = Labels::from([(EXPIRE.to_owned(), expiry)]);
        let caller = caller.clone().relaxed();
        let workflow = metadata.leases(&caller).create_for_workflow(&id, labels)?;
        let caller = caller.with_lease(id.clone());
        Ok(Lease { metadata: metadata.clone(), caller, id, _workflow: workflow })
    }

    /// Runs `work` under a lease. What `work` stored and no record references is collected afterwards; if it fails,
    /// so is everything.
    fn hold<T>(metadata: &Metadata, caller: &Caller, work: impl FnOnce(&Caller) -> Result<T>) -> Result<T> {
        let lease = Lease::begin(metadata, caller)?;
        let worked = work(&lease.caller);
        if worked.is_err() {
            // The error of `work` counts; what cannot be removed now expires.
            let _ = lease.abort_ingests();
            let _ = lease.end();
            return worked;
        }
        lease.end()?;
        worked
    }

    fn abort_ingests(&self) -> Result<()> {
        let content = self.metadata.content(&self.caller);
        for resource in self.metadata.leases(&self.caller).resources(&self.id)? {
            if let metadata::Resource::Ingest(reference) = resource {
                content.abort_unwritten(&reference)?;
            }
        }
        Ok(())
    }

    fn end(self) -> Result<()> {
        self.metadata.leases(self.caller.namespace.clone()).delete(&self.id)
    }
}

/// Runs `work` under a lease that ends with it, whether it succeeds or fails.
pub fn under_lease<T>(
    metadata: &Metadata,
    caller: &Caller,
    work: impl FnOnce(&Caller) -> Result<T>,
) -> Result<T> {
    Lease::hold(metadata, caller, work)
}

/// A unique name.
fn random_name(kind: &str) -> Result<String> {
    Ok(format!("{kind}-{}", linux::random::hex(8)?))
}

/// Runs blocking work on a blocking thread.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    stdx::blocking(work).await.map_err(Error::broke_down("a transfer"))?
}

/// Writes into an ingest.
struct IngestSink<'a>(&'a mut metadata::ContentWriter);

impl std::io::Write for IngestSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes).map_err(std::io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
