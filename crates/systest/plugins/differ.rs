//! `example-differ SOCKET DAEMON-SOCKET`: a differ for layers of a media type of its own: a note, which becomes the
//! file `NOTE` of the tree, and is made of that again.
//!
//! ```text
//! daemon ── Apply(descriptor, mounts) ─▶ differ ── Content.Read ──▶ daemon
//!        ◀─ descriptor of the layer ─────── │ writes the tree
//!        ── Diff(mounts, mounts) ───────▶ differ ── Content.Write ─▶ daemon
//!        ◀─ descriptor of the blob ──────── │ reads the tree
//! ```
//!
//! What it does not know it refuses with `Unimplemented`, and the next differ is asked. `docs/extend/differ.md` walks
//! through it.

mod serve;

use std::path::{Path, PathBuf};

use api::grpc::content::content_client::ContentClient;
use api::grpc::content::{ReadContentRequest, WriteAction, WriteContentRequest};
use api::grpc::diff::diff_server::{Diff, DiffServer};
use api::grpc::diff::*;
use api::grpc::types::{Descriptor, Mount};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use types::Digest;

const NOTE: &str = "application/vnd.example.note";
const PLAIN_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

struct Notes {
    daemon: PathBuf,
}

impl Notes {
    /// Reads a blob from the daemon, in the namespace and the lease of the original call.
    async fn fetch(&self, digest: &str, metadata: &MetadataMap) -> Result<Vec<u8>, Status> {
        let read = ReadContentRequest { digest: digest.to_owned(), ..Default::default() };
        let mut content = ContentClient::new(client::lazy_channel(&self.daemon));
        let (mut pieces, mut bytes) =
            (content.read(on_behalf_of(metadata, read)).await?.into_inner(), Vec::new());
        while let Some(piece) = pieces.message().await? {
            bytes.extend_from_slice(&piece.data);
        }
        Ok(bytes)
    }

    /// Stores a blob in the daemon, in the namespace and the lease of the original call.
    async fn store(&self, note: Vec<u8>, asked: &DiffRequest, metadata: &MetadataMap) -> Result<(), Status> {
        let digest = Digest::of(&note).to_string();
        let message = WriteContentRequest {
            action: WriteAction::Commit.into(),
            r#ref: if asked.r#ref.is_empty() { format!("note-{digest}") } else { asked.r#ref.clone() },
            total: note.len() as i64,
            expected: digest,
            data: note.into(),
            labels: asked.labels.clone(),
            ..Default::default()
        };
        let mut content = ContentClient::new(client::lazy_channel(&self.daemon));
        let written = content.write(on_behalf_of(metadata, tokio_stream::iter([message]))).await;
        let done = match written {
            Ok(mut answers) => answers.get_mut().message().await.map(drop),
            Err(refused) => Err(refused),
        };
        match done {
            Err(refused) if refused.code() == tonic::Code::AlreadyExists => Ok(()),
            done => done,
        }
    }
}

/// A request with the namespace and the lease of another call's metadata.
fn on_behalf_of<T>(metadata: &MetadataMap, message: T) -> Request<T> {
    let mut request = Request::new(message);
    for key in [api::grpc::NAMESPACE_KEY, api::grpc::LEASE_KEY] {
        if let Some(value) = metadata.get(key) {
            request.metadata_mut().insert(key, value.clone());
        }
    }
    request
}

/// The directory that the mounts show. Mounts other than one bind mount would have to be mounted first.
fn directory(mounts: &[Mount]) -> Result<&Path, Status> {
    let [tree] = mounts else {
        return Err(Status::unimplemented("a tree that is not one directory"));
    };
    if !tree.options.iter().any(|option| option == "bind" || option == "rbind") {
        return Err(Status::unimplemented(format!("a tree of type {:?}", tree.r#type)));
    }
    Ok(Path::new(&tree.source))
}

#[tonic::async_trait]
impl Diff for Notes {
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let layer = request.get_ref().diff.clone().unwrap_or_default();
        if layer.media_type != NOTE {
            return Err(Status::unimplemented(format!("media type {:?}", layer.media_type)));
        }
        let tree = directory(&request.get_ref().mounts)?;
        let note = self.fetch(&layer.digest, request.metadata()).await?;
        std::fs::write(tree.join("NOTE"), &note).map_err(|error| Status::internal(error.to_string()))?;
        let applied = Descriptor {
            media_type: PLAIN_LAYER.into(),
            digest: Digest::of(&note).to_string(),
            size: note.len() as i64,
            ..Descriptor::default()
        };
        Ok(Response::new(ApplyResponse { applied: Some(applied) }))
    }

    async fn diff(&self, request: Request<DiffRequest>) -> Result<Response<DiffResponse>, Status> {
        let asked = request.get_ref();
        if asked.media_type != NOTE {
            return Err(Status::unimplemented(format!("media type {:?}", asked.media_type)));
        }
        let note = std::fs::read(directory(&asked.right)?.join("NOTE"))
            .map_err(|error| Status::invalid_argument(format!("a tree without a note: {error}")))?;
        let made = Descriptor {
            media_type: NOTE.into(),
            digest: Digest::of(&note).to_string(),
            size: note.len() as i64,
            ..Descriptor::default()
        };
        self.store(note, asked, request.metadata()).await?;
        Ok(Response::new(DiffResponse { diff: Some(made) }))
    }
}

fn main() -> std::io::Result<()> {
    let [socket, daemon] = serve::paths("example-differ SOCKET DAEMON-SOCKET");
    serve::serve(&socket, DiffServer::new(Notes { daemon }))
}
