//! Access to single objects of registries, directly and not through the daemon: `content fetch-object`, `fetch-blob`,
//! `push-object`, and `content fetch --metadata-only`.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use api::grpc::content::{Info, InfoRequest, ReadContentRequest, UpdateRequest};
use api::grpc::images::Image;
use api::grpc::types::Descriptor as Wire;
use bytes::Bytes;
use image::Node;
use prost_types::FieldMask;
use registry::{Capability, Push, Ranges, Remote, Request, Resolved, Sent};
use tokio::sync::mpsc;
use types::descriptor::media_type;
use types::{Context, Descriptor, Digest, Error, ErrorKind, Hasher, Labels, Result};

use super::command::{Call, Flag};
use super::connection::{Answer, Connection, present, service};
use super::registries::{DirectRegistry, registry_flags};
use super::{content, images, leases, table};

/// The number of a blob's chunks that wait to be sent to the registry.
const CHUNKS_WAITING: usize = 4;
/// The depth of nested indexes that is followed.
const DEPTH_MAX: usize = 8;

pub(super) const FLAGS: &[Flag] = registry_flags![];
pub(super) const BLOB_FLAGS: &[Flag] =
    registry_flags![Flag::value("media-type", "the media type to request")];

/// Writes the object of a reference to standard output: a document, or by its digest a blob.
pub(super) async fn fetch_object(call: Call) -> Result<u8> {
    let own = DirectRegistry::of(&call, call.word(0, "remote")?)?;
    let written = write_named(&own).await;
    own.shown().await;
    written.map(|()| 0)
}

async fn write_named(own: &DirectRegistry) -> Result<()> {
    // Try the blob first: some registries fail if they are asked for a manifest with the digest of a blob.
    if let Some(digest) = own.reference.digest() {
        match write_blob(&own.remote, digest).await {
            Err(error) if error.is(ErrorKind::NotFound) => {}
            written => return written,
        }
    }
    write(&resolve(own).await?.bytes)
}

/// Resolves the reference, with an error text that scripts look for.
async fn resolve(own: &DirectRegistry) -> Result<Resolved> {
    own.remote.resolve().await.map_err(|error| match error.kind() {
        kind @ ErrorKind::NotFound => Error::new(kind, format!("{}: not found", error.chain())),
        _ => error,
    })
}

/// Writes blobs to standard output by their digests, one after the other.
pub(super) async fn fetch_blob(call: Call) -> Result<u8> {
    let own = DirectRegistry::of(&call, call.word(0, "remote")?)?;
    let is_document = call.value("media-type").is_some_and(media_type::is_document);
    let written = async {
        for digest in call.words_from(1, "digest")? {
            let digest: Digest = digest.parse()?;
            if is_document {
                let named = Descriptor::new(media_type::OCI_MANIFEST, digest, 0);
                write(&own.remote.manifest(&named).await?)?;
            } else {
                write_blob(&own.remote, &digest).await?;
            }
        }
        Ok(())
    };
    let written = written.await;
    own.shown().await;
    written.map(|()| 0)
}

fn write(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).context(|| "write to standard output")
}

async fn write_blob(remote: &Remote, digest: &Digest) -> Result<()> {
    let answer = remote.send(&Request::head(format!("blobs/{digest}"), Capability::Pull)).await?;
    let size = answer.content_length().ok_or_else(|| {
        Error::unavailable(format!(
            "{} does not report the length of blob {digest}",
            answer.endpoint().name()
        ))
    })?;
    let kind = answer.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let mut stream = remote.blob(&Descriptor::new(kind, digest.clone(), size), 0).await?;
    let mut hasher = Hasher::new(digest.algorithm());
    while let Some(chunk) = stream.next().await? {
        hasher.update(&chunk);
        write(&chunk)?;
    }
    expect(digest, hasher)
}

/// Checks the digest of a downloaded blob, which the client does not check while streaming.
fn expect(digest: &Digest, hasher: Hasher) -> Result<()> {
    let found = hasher.finish();
    if found == *digest {
        return Ok(());
    }
    Err(Error::data_loss(format!("the registry gave blob {found} when asked for {digest}; do not use it")))
}

/// Pushes a local blob, or a local document under the given name.
pub(super) async fn push_object(call: Call) -> Result<u8> {
    let digest: Digest = call.word(1, "object")?.parse()?;
    let kind = call.word(2, "type")?.to_owned();
    let connection = call.connect().await?;
    let own = DirectRegistry::of(&call, call.word(0, "remote")?)?;
    let pushed = push(&connection, &own, digest.clone(), &kind).await;
    own.shown().await;
    pushed?;
    table::lines([format!("Pushed {digest} {kind}")]);
    Ok(0)
}

async fn push(connection: &Connection, own: &DirectRegistry, digest: Digest, kind: &str) -> Result<()> {
    let there = || Error::already_exists(format!("content {digest} on remote: already exists"));
    let request = connection.request(InfoRequest { digest: digest.to_string() })?;
    let mut blobs = service!(connection, content::content_client::ContentClient);
    let info = present(blobs.info(request).await.answer()?.info, "blob")?;
    let push = Push::new(&own.remote)?;
    if !media_type::is_document(kind) {
        let size = u64::try_from(info.size).unwrap_or(0);
        let descriptor = Descriptor::new(kind, digest.clone(), size);
        return match push.blob(&descriptor, &[], &ranges(connection, &digest)).await? {
            Sent::Existed => Err(there()),
            Sent::Mounted(_) | Sent::Uploaded => Ok(()),
        };
    }
    match own.remote.resolve().await {
        Ok(named) if named.descriptor.digest == digest => return Err(there()),
        Err(error) if !error.is(ErrorKind::NotFound) => return Err(error),
        // The name does not exist, or has another target, which is replaced.
        _ => {}
    }
    let bytes = content::read(connection, &digest.to_string()).await?;
    push.document(&own.reference.object(), kind, bytes).await.map(drop)
}

/// A reader of ranges of a local blob.
fn ranges(connection: &Connection, digest: &Digest) -> Ranges {
    let (connection, digest) = (connection.clone(), digest.to_string());
    Arc::new(move |range: Range<u64>| {
        let (chunks, receive) = mpsc::channel(CHUNKS_WAITING);
        let (connection, digest) = (connection.clone(), digest.clone());
        tokio::spawn(async move {
            if let Err(error) = send_range(&connection, digest, range, &chunks).await {
                let _ = chunks.send(Err(std::io::Error::other(error))).await;
            }
        });
        receive
    })
}

async fn send_range(
    connection: &Connection,
    digest: String,
    range: Range<u64>,
    chunks: &mpsc::Sender<std::io::Result<Bytes>>,
) -> Result<()> {
    let number = |at: u64| i64::try_from(at).unwrap_or(i64::MAX);
    let request =
        ReadContentRequest { digest, offset: number(range.start), size: number(range.end - range.start) };
    let mut blobs = service!(connection, content::content_client::ContentClient);
    let mut stream = blobs.read(connection.request(request)?).await.answer()?;
    while let Some(message) = stream.message().await.map_err(|status| client::error(&status))? {
        if chunks.send(Ok(message.data)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Stores the documents and configs of an image for all its platforms, without layers, and creates the image record.
pub(super) async fn fetch_metadata(call: &Call, connection: &Connection, reference: &str) -> Result<()> {
    let own = DirectRegistry::of(call, reference)?;
    let (lease, lease_id) = leases::hold(connection).await?;
    let fetched = fetch_held(&lease, &own).await;
    let named = match fetched {
        Ok(target) => {
            let image = Image {
                name: reference.to_owned(),
                labels: Call::labels(call.values("label")),
                target: Some(target),
                ..Image::default()
            };
            images::put(connection, image, true).await
        }
        Err(error) => Err(error),
    };
    // The image record retains them from here on.
    let released = leases::release(connection, lease_id).await;
    own.shown().await;
    named.and(released)
}

async fn fetch_held(lease: &Connection, own: &DirectRegistry) -> Result<Wire> {
    let Resolved { descriptor, bytes } = resolve(own).await?;
    let target = Wire {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        annotations: BTreeMap::new(),
    };
    let fetch = Fetch { connection: lease, own };
    fetch.document(descriptor, Some(bytes), DEPTH_MAX).await?;
    Ok(target)
}

struct Fetch<'a> {
    connection: &'a Connection,
    own: &'a DirectRegistry,
}

impl Fetch<'_> {
    /// Fetches a document and the documents and configs that it references.
    fn document(
        &self,
        descriptor: Descriptor,
        bytes: Option<Vec<u8>>,
        depth: usize,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<()>> + '_>> {
        Box::pin(async move {
            let bytes = match bytes {
                Some(bytes) => bytes,
                None => self.own.remote.manifest(&descriptor).await?,
            };
            let node = Node::parse(&descriptor.media_type, &bytes)?;
            self.store(&bytes, node.reference_labels()).await?;
            match node {
                Node::Manifest(manifest) => self.config(&manifest.config).await,
                Node::Index(_) if depth == 0 => Err(Error::invalid_argument(format!(
                    "{}: indexes are nested more than {DEPTH_MAX} deep",
                    self.own.reference
                ))),
                Node::Index(index) => {
                    let documents = index.manifests.into_iter();
                    for child in documents.filter(|child| media_type::is_document(&child.media_type)) {
                        self.document(child, None, depth - 1).await?;
                    }
                    Ok(())
                }
            }
        })
    }

    async fn config(&self, descriptor: &Descriptor) -> Result<()> {
        // The config is held in memory.
        const CONFIG_LEN_MAX: u64 = 8 << 20;
        if descriptor.size > CONFIG_LEN_MAX {
            return Err(Error::invalid_argument(format!(
                "config {} of {} bytes is too large",
                descriptor.digest, descriptor.size
            )));
        }
        let mut stream = self.own.remote.blob(descriptor, 0).await?;
        let mut hasher = Hasher::new(descriptor.digest.algorithm());
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await? {
            hasher.update(&chunk);
            bytes.extend_from_slice(&chunk);
        }
        expect(&descriptor.digest, hasher)?;
        self.store(&bytes, Labels::new()).await
    }

    /// Stores a document with the source label that a pull sets.
    async fn store(&self, bytes: &[u8], mut labels: Labels) -> Result<()> {
        let reference = &self.own.reference;
        let host = reference.host();
        let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _)) => address,
            None => host.split_once(':').map_or(host, |(name, _)| name),
        };
        let source = format!("containerd.io/distribution.source.{name}");
        labels.insert(source.clone(), reference.repository().to_owned());
        let key = format!("ctr-fetch-{}-{}", std::process::id(), Digest::of(bytes));
        let digest = content::put(self.connection, &key, bytes, labels.clone()).await?;
        // An existing blob keeps its labels. It may come from several repositories, which its source label lists.
        let mut blobs = service!(self.connection, content::content_client::ContentClient);
        let request = self.connection.request(InfoRequest { digest: digest.clone() })?;
        let before = present(blobs.info(request).await.answer()?.info, "blob")?.labels;
        if let Some(known) = before.get(&source).filter(|known| !known.is_empty()) {
            let is_known = known.split(',').any(|repository| repository == reference.repository());
            let both = format!("{known},{}", reference.repository());
            labels.insert(source, if is_known { known.clone() } else { both });
        }
        let update = UpdateRequest {
            update_mask: Some(FieldMask {
                paths: labels.keys().map(|label| format!("labels.{label}")).collect(),
            }),
            info: Some(Info { digest, labels, ..Info::default() }),
        };
        blobs.update(self.connection.request(update)?).await.answer().map(drop)
    }
}
