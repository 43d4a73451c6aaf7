//! `containerd.services.diff.v1`: layers onto trees.
//!
//! The tree is mounted where nobody sees it, so a daemon that dies half way leaves no mount behind.

use std::os::fd::AsFd;

use api::grpc::diff::diff_server::Diff;
use api::grpc::diff::{ApplyRequest, ApplyResponse, DiffRequest, DiffResponse};
use diff::{ApplyOptions, Limits, Whiteouts};
use metadata::{Caller, Metadata};
use rustix::fs::syncfs;
use tonic::{Request, Response, Status};
use types::descriptor::media_type;
use types::{Context, Descriptor, Error, Mount, Result};

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

    async fn diff(&self, _: Request<DiffRequest>) -> Answer<DiffResponse> {
        Err(Status::unimplemented("layers are not made from trees yet"))
    }
}

/// Applies a layer and describes the plain archive that it was.
fn apply(metadata: &Metadata, caller: &Caller, layer: &Descriptor, mounts: &[Mount]) -> Result<Descriptor> {
    let what = || format!("apply layer {}", layer.digest);
    if !media_type::is_layer(&layer.media_type) || layer.media_type.ends_with("+encrypted") {
        return Err(Error::unimplemented(format!("{}: media type {:?}", what(), layer.media_type)));
    }
    let source = metadata.content(caller).reader(&layer.digest).context(what)?;
    let tree = linux::mount::open_recipe(mounts).context(what)?;
    // Deletions are carried out: what lies below the mount writes them down in its own way.
    let options = ApplyOptions { whiteouts: Whiteouts::Remove, limits: Limits::default() };
    let applied = diff::apply(source, options, tree.as_fd()).context(what)?;
    // Asked for or not: a commit makes a record that outlives a power cut, so its files must.
    syncfs(&tree).map_err(std::io::Error::from).context(|| "sync the files of a layer")?;
    Ok(Descriptor::new(media_type::OCI_LAYER, applied.diff_id, applied.size))
}
