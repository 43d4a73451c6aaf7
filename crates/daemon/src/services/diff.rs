//! `containerd.services.diff.v1`: layers onto trees, and trees to layers.
//!
//! A layer for a new snapshot of ours is kept as it came, if that takes it so; all others are unpacked. Trees
//! are mounted where nobody sees them, so a daemon that dies half way leaves no mount behind.

use std::io::Read;
use std::os::fd::AsFd;

use api::grpc::diff::diff_server::Diff;
use api::grpc::diff::{ApplyRequest, ApplyResponse, DiffRequest, DiffResponse};
use diff::{ApplyOptions, Limits, Trees, Whiteouts};
use metadata::{Caller, Metadata};
use rustix::fs::syncfs;
use snapshot::{LayerFiles, Target};
use tonic::{Request, Response};
use transfer::{LayerRequest, store_layer};
use types::descriptor::media_type;
use types::{Context, Descriptor, Digest, Error, IngestRef, Mount, Result};

use super::{Answer, blocking, caller, convert, required, status};

pub(super) struct Service(pub(super) Metadata);

#[tonic::async_trait]
impl Diff for Service {
    async fn apply(&self, request: Request<ApplyRequest>) -> Answer<ApplyResponse> {
        let (metadata, caller) = (self.0.clone(), caller(&request)?);
        let request = request.into_inner();
        let layer = convert::own_descriptor(required(request.diff, "diff")?).map_err(status)?;
        let mounts = convert::own_mounts(request.mounts);
        let applied = blocking(move || apply(&metadata, &caller, &layer, &mounts)).await?;
        Ok(Response::new(ApplyResponse { applied: Some(convert::descriptor(&applied)) }))
    }

    async fn diff(&self, request: Request<DiffRequest>) -> Answer<DiffResponse> {
        let (metadata, caller) = (self.0.clone(), caller(&request)?);
        let DiffRequest { left, right, media_type, r#ref, labels, source_date_epoch } = request.into_inner();
        let (left, right) = (convert::own_mounts(left), convert::own_mounts(right));
        let reference = (!r#ref.is_empty()).then(|| IngestRef::new(r#ref)).transpose().map_err(status)?;
        let request = LayerRequest {
            media_type: if media_type.is_empty() { media_type::OCI_LAYER_GZIP.into() } else { media_type },
            reference,
            labels,
            source_date_epoch: source_date_epoch.map(convert::own_timestamp),
        };
        let layer = blocking(move || {
            let trees = Trees::open(&left, &right).context(|| "compare trees")?;
            store_layer(&metadata, &caller, &trees, request).context(|| "compare trees")
        });
        Ok(Response::new(DiffResponse { diff: Some(convert::descriptor(&layer.await?.descriptor)) }))
    }
}

/// Applies a layer and describes the plain archive that it was.
fn apply(metadata: &Metadata, caller: &Caller, layer: &Descriptor, mounts: &[Mount]) -> Result<Descriptor> {
    let what = || format!("apply layer {}", layer.digest);
    if !media_type::is_layer(&layer.media_type) || layer.media_type.ends_with("+encrypted") {
        return Err(Error::unimplemented(format!("{}: media type {:?}", what(), layer.media_type)));
    }
    let source = metadata.content(caller).reader(&layer.digest).context(what)?;
    let (diff_id, size) = match metadata.target(mounts).context(what)? {
        Some(Target::Layer(files)) => keep(source, &files),
        Some(Target::Tree(mounts)) => unpack(source, &mounts),
        None => unpack(source, mounts),
    }
    .context(what)?;
    Ok(Descriptor::new(media_type::OCI_LAYER, diff_id, size))
}

/// Keeps a layer as it came, where the snapshot takes it so. It is on disk then.
fn keep(source: impl Read + Send, files: &LayerFiles) -> Result<(Digest, u64)> {
    let mut described = None;
    files.write_durably(|data| {
        let stored = diff::store(source, Limits::default(), data)?;
        described = Some((stored.diff_id, stored.size));
        Ok(stored.tree)
    })?;
    Ok(described.expect("it was stored"))
}

/// Unpacks a layer onto a tree.
fn unpack(source: impl Read + Send, mounts: &[Mount]) -> Result<(Digest, u64)> {
    let tree = linux::mount::open_recipe(mounts)?;
    // Deletions are carried out: what lies below the mount writes them down in its own way.
    let options = ApplyOptions { whiteouts: Whiteouts::Remove, limits: Limits::default() };
    let applied = diff::apply(source, options, tree.as_fd())?;
    // Asked for or not: a commit makes a record that outlives a power cut, so its files must.
    syncfs(&tree).map_err(std::io::Error::from).context(|| "sync the files of a layer")?;
    Ok((applied.diff_id, applied.size))
}
