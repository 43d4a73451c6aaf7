//! `containerd.services.diff.v1`: applies layers to mounts, and creates layers from the difference of mounts.
//!
//! A layer for a new snapshot of ours may be stored as an archive; all others are unpacked. Mounts are detached, so
//! that a daemon that dies half way leaves none behind. Mounts that need a mount manager are activated for the duration
//! of the call.

use std::io::Read;
use std::os::fd::AsFd;

use api::grpc::diff::diff_client::DiffClient;
use api::grpc::diff::diff_server::Diff;
use api::grpc::diff::{ApplyRequest, ApplyResponse, DiffRequest, DiffResponse};
use diff::spans::Record;
use diff::{ApplyOptions, Limits, Origin, Trees, Whiteouts};
use metadata::{Caller, Metadata, StreamProcessors};
use mounts::{Mounts, Options};
use rustix::fs::syncfs;
use snapshot::{LayerFiles, Target};
use tonic::{Code, Request, Response, Status};
use transfer::{LayerRequest, layer_compression, store_layer};
use types::descriptor::media_type;
use types::{Context, Descriptor, Digest, IngestRef, Mount, Result};

use crate::config::ProxyKind;
use crate::processors::Processors;
use crate::proxy::{self, LONG, Plugin};
use crate::wiring::Parts;

use super::{Answer, blocking, caller, convert, required, status};

pub(super) struct Service {
    metadata: Metadata,
    mounts: Mounts,
    /// In the order in which they are tried.
    differs: Vec<Differ>,
    processors: Processors,
}

enum Differ {
    Walking,
    Proxy(Plugin),
}

impl Service {
    pub(super) fn new(parts: &Parts) -> Service {
        let differ = |name: &String| match parts.proxy(ProxyKind::Diff, name) {
            Some(plugin) => Differ::Proxy(plugin.clone()),
            None => Differ::Walking,
        };
        Service {
            metadata: parts.metadata.clone(),
            mounts: parts.mounts.clone(),
            differs: parts.differs.iter().map(differ).collect(),
            processors: parts.processors.clone(),
        }
    }

    async fn apply_here(&self, caller: &Caller, request: ApplyRequest) -> Result<ApplyResponse, Status> {
        let layer = convert::own_descriptor(required(request.diff, "diff")?).map_err(status)?;
        let (trees, metadata, caller) = (self.trees(caller, false), self.metadata.clone(), caller.clone());
        let (processors, payloads) = (self.processors.clone(), request.payloads);
        let mounts = convert::own_mounts(request.mounts);
        let is_processed = processors.names(&layer.media_type).is_some();
        let apply = move || {
            let source = metadata.content(&caller).reader(&layer.digest);
            // A stream processor's output does not have the spans of the blob.
            let blob = (!is_processed).then_some(&layer.digest);
            source
                .and_then(|source| processors.open_with(&layer.media_type, Box::new(source), &payloads))
                .and_then(|source| trees.with(&mounts, |mounts| apply(&metadata, blob, source, mounts)))
                .context(|| format!("apply layer {}", layer.digest))
        };
        let applied = match is_processed {
            // A stream processor may be slow.
            true => transfer::with_client(apply).await.map_err(status)?,
            false => blocking(apply).await?,
        };
        Ok(ApplyResponse { applied: Some(convert::descriptor(&applied)) })
    }

    fn trees(&self, caller: &Caller, is_read_only: bool) -> Activated {
        let (metadata, mounts) = (self.metadata.clone(), self.mounts.clone());
        Activated { metadata, mounts, caller: caller.clone(), is_read_only }
    }

    async fn diff_here(&self, caller: &Caller, request: DiffRequest) -> Result<DiffResponse, Status> {
        let (activated, metadata, caller) = (self.trees(caller, true), self.metadata.clone(), caller.clone());
        let DiffRequest { left, right, media_type, r#ref, labels, source_date_epoch } = request;
        let (left, right) = (convert::own_mounts(left), convert::own_mounts(right));
        let reference = (!r#ref.is_empty()).then(|| IngestRef::new(r#ref)).transpose().map_err(status)?;
        let media_type =
            if media_type.is_empty() { media_type::OCI_LAYER_GZIP.to_owned() } else { media_type };
        let request = LayerRequest {
            compression: layer_compression(&media_type).map_err(status)?,
            media_type,
            reference,
            labels,
            source_date_epoch: source_date_epoch.map(convert::own_timestamp),
        };
        let layer = blocking(move || {
            let compare = |left: &[Mount], right: &[Mount]| {
                store_layer(&metadata, &caller, &Trees::open(left, right)?, request)
            };
            activated
                .with(&left, |left| activated.with(&right, |right| compare(left, right)))
                .context(|| "compare trees")
        });
        Ok(DiffResponse { diff: Some(convert::descriptor(&layer.await?.descriptor)) })
    }
}

#[tonic::async_trait]
impl Diff for Service {
    async fn apply(&self, request: Request<ApplyRequest>) -> Answer<ApplyResponse> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let mut answer = Err(nobody());
        for differ in &self.differs {
            answer = match differ {
                Differ::Walking => self.apply_here(&caller, request.clone()).await,
                Differ::Proxy(plugin) => {
                    let mut client = proxy::client!(DiffClient, plugin.channel());
                    let asked = client.apply(proxy::request_of(&caller, request.clone()));
                    plugin.call(LONG, asked).await.map(Response::into_inner).map_err(status)
                }
            };
            if !is_unknown(&answer) {
                break;
            }
        }
        answer.map(Response::new)
    }

    async fn diff(&self, request: Request<DiffRequest>) -> Answer<DiffResponse> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let mut answer = Err(nobody());
        for differ in &self.differs {
            answer = match differ {
                Differ::Walking => self.diff_here(&caller, request.clone()).await,
                Differ::Proxy(plugin) => {
                    let mut client = proxy::client!(DiffClient, plugin.channel());
                    let asked = client.diff(proxy::request_of(&caller, request.clone()));
                    plugin.call(LONG, asked).await.map(Response::into_inner).map_err(status)
                }
            };
            if !is_unknown(&answer) {
                break;
            }
        }
        answer.map(Response::new)
    }
}

/// Whether the next differ must be tried.
fn is_unknown<T>(answer: &Result<T, Status>) -> bool {
    answer.as_ref().is_err_and(|status| status.code() == Code::Unimplemented)
}

fn nobody() -> Status {
    Status::unimplemented("there is no differ")
}

/// Prepares mounts of any type, including those that need the mount manager.
struct Activated {
    metadata: Metadata,
    mounts: Mounts,
    caller: Caller,
    is_read_only: bool,
}

impl Activated {
    /// Passes mounts to `work` that mount(2) can make.
    fn with<T>(&self, mounts: &[Mount], work: impl FnOnce(&[Mount]) -> Result<T>) -> Result<T> {
        if !Mounts::are_needed_for(mounts) {
            return work(mounts);
        }
        // Resources that `work` creates belong to the caller's lease, the mounts to their own.
        transfer::under_lease(&self.metadata, &self.caller, |leased| {
            let name = leased.lease.as_ref().map(ToString::to_string).unwrap_or_default();
            let options = Options { makes_fuse: true, is_read_only: self.is_read_only, ..Options::default() };
            let activation = self.mounts.activate(leased, &name, mounts.to_vec(), options)?;
            let worked = work(&mounts::left(activation));
            if let Err(error) = self.mounts.deactivate(leased, &name) {
                // The next garbage collection retries, because the lease is gone.
                tracing::warn!("take down the mounts of a tree: {}", error.chain());
            }
            worked
        })
    }
}

/// Applies a layer and returns the descriptor of its uncompressed archive. `blob` is the digest of `source`, or `None`
/// for the output of a stream processor.
fn apply(
    metadata: &Metadata,
    blob: Option<&Digest>,
    source: impl Read + Send,
    mounts: &[Mount],
) -> Result<Descriptor> {
    let upper = upper_alone(mounts);
    // The mounted file system records deletions in its own way, so whiteouts are applied as deletions.
    let (whiteouts, mounts) = match &upper {
        Some(upper) => (Whiteouts::Overlay, std::slice::from_ref(upper)),
        None => (Whiteouts::Remove, mounts),
    };
    let target = metadata.target(mounts)?;
    let limits = Limits { origin: origin(blob.is_some(), target.is_some()), ..Limits::default() };
    let options = ApplyOptions { whiteouts, limits };
    let (diff_id, size) = match target {
        Some(Target::Layer(files)) => keep(blob, source, limits, &files),
        Some(Target::Tree(mounts)) => unpack(source, options, &mounts),
        None => unpack(source, options, mounts),
    }?;
    Ok(Descriptor::new(media_type::OCI_LAYER, diff_id, size))
}

/// Which permit a layer needs. A stream processor or the file system of another snapshotter may stall, like a registry;
/// layers from the local store for our own snapshotters are not to wait behind these.
fn origin(is_stored: bool, is_for_ours: bool) -> Origin {
    if is_stored && is_for_ours { Origin::Stored } else { Origin::Coming }
}

/// The upper directory of an overlay without lower layers, which cannot be mounted: containerd's client (from 2.4)
/// requests a snapshot in this form if it sets the parent at commit. Deleted files are in the parent then, so deletions
/// are recorded as overlayfs whiteouts.
fn upper_alone(mounts: &[Mount]) -> Option<Mount> {
    let [overlay] = mounts else { return None };
    let has_lower = overlay.options.iter().any(|word| word.starts_with("lowerdir"));
    if overlay.kind != "overlay" || has_lower {
        return None;
    }
    let (upper, mut options): (Vec<_>, Vec<_>) =
        overlay.options.iter().cloned().partition(|word| word.starts_with("upperdir="));
    let [upper] = &upper[..] else { return None };
    let source = upper.strip_prefix("upperdir=")?.to_owned();
    options.push("rbind".to_owned());
    Some(Mount { kind: "bind".to_owned(), source, target: overlay.target.clone(), options })
}

/// Stores a layer as an archive if the snapshot supports that. Durable on return.
fn keep(
    blob: Option<&Digest>,
    source: impl Read + Send,
    limits: Limits,
    files: &LayerFiles,
) -> Result<(Digest, u64)> {
    let mut described = None;
    files.write_durably(|new| {
        let record = blob.zip(new.record).map(|(blob, to)| Record { blob, to });
        let stored = diff::store(source, limits, new.data, record)?;
        described = Some((stored.diff_id, stored.size));
        Ok(stored.tree)
    })?;
    Ok(described.expect("it was stored"))
}

/// Unpacks a layer to a mounted tree.
fn unpack(source: impl Read + Send, options: ApplyOptions, mounts: &[Mount]) -> Result<(Digest, u64)> {
    let tree = linux::mount::open_mounts(&linux::tree_mounts::durable(mounts.to_vec()))?;
    let applied = diff::apply(source, options, tree.as_fd())?;
    // Whether requested or not: a commit makes a durable record, so the files must be durable as well.
    syncfs(&tree).map_err(std::io::Error::from).context(|| "sync the files of a layer")?;
    Ok((applied.diff_id, applied.size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_layers_from_our_disk_to_our_disk_are_waited_for_by_those() {
        assert_eq!(origin(true, true), Origin::Stored);
        for (is_stored, is_for_ours) in [(true, false), (false, true), (false, false)] {
            assert_eq!(origin(is_stored, is_for_ours), Origin::Coming, "{is_stored} {is_for_ours}");
        }
    }
}
