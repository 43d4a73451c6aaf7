//! `example-differ SOCKET DAEMON-SOCKET`: a differ for layers of a media type of its own: a note, which becomes the
//! file `NOTE` of the tree.
//!
//! ```text
//! daemon ── Apply(descriptor, mounts) ─▶ differ ── Content.Read ─▶ daemon
//!        ◀─ descriptor of the layer ─────── │ writes the tree
//! ```
//!
//! What it does not know it refuses with `Unimplemented`, and the next differ is asked. `docs/extend/differ.md` walks
//! through it.

mod serve;

use std::path::{Path, PathBuf};

use api::grpc::content::ReadContentRequest;
use api::grpc::content::content_client::ContentClient;
use api::grpc::diff::diff_server::{Diff, DiffServer};
use api::grpc::diff::*;
use api::grpc::types::Descriptor;
use tonic::{Request, Response, Status};
use types::Digest;

const NOTE: &str = "application/vnd.example.note";
const PLAIN_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

struct Notes {
    daemon: PathBuf,
}

impl Notes {
    /// The blob, on behalf of whoever asked for the layer.
    async fn fetch(&self, digest: &str, metadata: &tonic::metadata::MetadataMap) -> Result<Vec<u8>, Status> {
        let mut read = Request::new(ReadContentRequest { digest: digest.to_owned(), ..Default::default() });
        for key in [api::grpc::NAMESPACE_KEY, api::grpc::LEASE_KEY] {
            if let Some(value) = metadata.get(key) {
                read.metadata_mut().insert(key, value.clone());
            }
        }
        let mut content = ContentClient::new(client::lazy_channel(&self.daemon));
        let (mut pieces, mut bytes) = (content.read(read).await?.into_inner(), Vec::new());
        while let Some(piece) = pieces.message().await? {
            bytes.extend_from_slice(&piece.data);
        }
        Ok(bytes)
    }
}

#[tonic::async_trait]
impl Diff for Notes {
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let layer = request.get_ref().diff.clone().unwrap_or_default();
        if layer.media_type != NOTE {
            return Err(Status::unimplemented(format!("media type {:?}", layer.media_type)));
        }
        // Trees of other kinds would have to be mounted first.
        let [tree] = request.get_ref().mounts.as_slice() else {
            return Err(Status::unimplemented("a tree that is not one directory"));
        };
        if !tree.options.iter().any(|option| option == "bind" || option == "rbind") {
            return Err(Status::unimplemented(format!("a tree of type {:?}", tree.r#type)));
        }
        let note = self.fetch(&layer.digest, request.metadata()).await?;
        std::fs::write(Path::new(&tree.source).join("NOTE"), &note)
            .map_err(|error| Status::internal(error.to_string()))?;
        let applied = Descriptor {
            media_type: PLAIN_LAYER.into(),
            digest: Digest::of(&note).to_string(),
            size: note.len() as i64,
            ..Descriptor::default()
        };
        Ok(Response::new(ApplyResponse { applied: Some(applied) }))
    }

    async fn diff(&self, _: Request<DiffRequest>) -> Result<Response<DiffResponse>, Status> {
        Err(Status::unimplemented("notes are not made from trees"))
    }
}

fn main() -> std::io::Result<()> {
    let [socket, daemon] = serve::paths("example-differ SOCKET DAEMON-SOCKET");
    serve::serve(&socket, DiffServer::new(Notes { daemon }))
}
