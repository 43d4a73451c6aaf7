//! `ctr snapshots diff` and `ctr snapshots unpack`: layers from snapshots, and snapshots from layers.

use std::collections::BTreeMap;

use api::grpc::content::{Info as BlobInfo, UpdateRequest};
use api::grpc::diff::{ApplyRequest, DiffRequest};
use api::grpc::snapshots::{
    CommitSnapshotRequest, Kind, MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
    StatSnapshotRequest, ViewSnapshotRequest,
};
use api::grpc::types::{Descriptor as Wire, Mount};
use image::Node;
use prost_types::FieldMask;
use types::descriptor::media_type::{OCI_LAYER_GZIP, is_index, is_manifest};
use types::label::gc;
use types::spec::image::Manifest;
use types::{Context, Descriptor, Error, ErrorKind, Platform, Result};

use super::command::{Call, Flag};
use super::connection::{Answer, Connection, present, service};
use super::{content, images, leases, snapshots, table};

pub(super) const DIFF_FLAGS: &[Flag] = &[
    Flag::value("media-type", "the layer's media type [application/vnd.oci.image.layer.v1.tar+gzip]"),
    Flag::value("ref", "the reference of the ingest"),
    Flag::switch("keep", "keep the layer in the content store until you delete it"),
    Flag::value("label", "a label for the layer"),
];

/// Writes the layer between two snapshots, or between a snapshot and its parent, to standard output.
pub(super) async fn diff(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let (held, lease) = leases::hold(&connection).await?;
    let made = diff_of(&call, &held).await;
    if let Ok(layer) = made.as_ref()
        && call.is("keep")
    {
        // The label retains the layer after the lease is released.
        let now = types::Timestamp::now().to_string();
        set_label(&held, &layer.digest, gc::ROOT, &now).await?;
    }
    let written = match &made {
        Ok(layer) => content::copy(&held, &layer.digest, std::io::stdout().lock()).await,
        Err(_) => Ok(()),
    };
    leases::release(&connection, lease).await?;
    made?;
    written.map(|()| 0)
}

async fn diff_of(call: &Call, connection: &Connection) -> Result<Wire> {
    let snapshotter = snapshots::named(call);
    let first = call.word(0, "snapshot id")?.to_owned();
    let (below, above) = match call.words().get(1) {
        Some(second) => (Some(first), second.clone()),
        None => {
            let stat = StatSnapshotRequest { snapshotter: snapshotter.clone(), key: first.clone() };
            let stat = snapshots::client(connection).stat(connection.request(stat)?).await.answer()?;
            (Some(present(stat.info, "snapshot")?.parent).filter(|parent| !parent.is_empty()), first)
        }
    };
    let layer_options = LayerOptions {
        media_type: call.value("media-type").unwrap_or(OCI_LAYER_GZIP).to_owned(),
        reference: call.value("ref").unwrap_or_default().to_owned(),
        labels: Call::labels(call.values("label")),
    };
    between(connection, &snapshotter, below, above, layer_options).await
}

/// Options of a new layer.
#[derive(Default)]
pub(super) struct LayerOptions {
    pub(super) media_type: String,
    /// The reference of the ingest; empty is one that the daemon makes up.
    pub(super) reference: String,
    pub(super) labels: BTreeMap<String, String>,
}

/// Has the daemon make the layer between a lower snapshot, or nothing, and an upper one.
pub(super) async fn between(
    connection: &Connection,
    snapshotter: &str,
    below: Option<String>,
    above: String,
    layer_options: LayerOptions,
) -> Result<Wire> {
    let mut views = Vec::new();
    let mounted = async {
        let left = match &below {
            Some(below) => mounts(connection, snapshotter, below, &mut views).await?,
            None => Vec::new(),
        };
        Ok::<_, Error>((left, mounts(connection, snapshotter, &above, &mut views).await?))
    };
    let compared = match mounted.await {
        Ok((left, right)) => {
            let request = DiffRequest {
                left,
                right,
                media_type: layer_options.media_type,
                r#ref: layer_options.reference,
                labels: layer_options.labels,
                source_date_epoch: None,
            };
            let mut client = service!(connection, diff::diff_client::DiffClient);
            client.diff(connection.request(request)?).await.answer()
        }
        Err(error) => Err(error),
    };
    for key in views {
        let remove = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key };
        snapshots::client(connection).remove(connection.request(remove)?).await.answer()?;
    }
    present(compared?.diff, "layer")
}

/// The mounts of a snapshot. For a committed one a view is created, whose key is noted.
async fn mounts(
    connection: &Connection,
    snapshotter: &str,
    key: &str,
    views: &mut Vec<String>,
) -> Result<Vec<Mount>> {
    let mut client = snapshots::client(connection);
    let stat = StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
    let info = present(client.stat(connection.request(stat)?).await.answer()?.info, "snapshot")?;
    if info.kind() != Kind::Committed {
        let mounts = MountsRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
        return Ok(client.mounts(connection.request(mounts)?).await.answer()?.mounts);
    }
    let view = format!("{key}-view-key-{}-{}", std::process::id(), views.len());
    let request = ViewSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: view.clone(),
        parent: key.to_owned(),
        labels: [].into(),
    };
    let mounts = client.view(connection.request(request)?).await.answer()?.mounts;
    views.push(view);
    Ok(mounts)
}

/// Unpacks the image with a digest to snapshots.
pub(super) async fn unpack(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let digest = call.word(0, "digest")?;
    let request = connection.request(api::grpc::images::ListImagesRequest::default())?;
    let found = images::client(&connection).list(request).await.answer()?.images;
    let target = found.into_iter().filter_map(|image| image.target).find(|target| target.digest == digest);
    let target = target
        .ok_or_else(|| Error::not_found(format!("no image has the digest {digest}: manifest not found")))?;
    let snapshotter = snapshots::of_images(&call, &connection).await?;
    let (held, lease) = leases::hold(&connection).await?;
    let unpacked = unpack_target(&held, &snapshotter, &target, &Platform::host()).await;
    leases::release(&connection, lease).await?;
    table::lines(unpacked?);
    Ok(0)
}

/// Unpacks an image that is present, unless it is unpacked already, as containerd's `ctr` does before it uses one.
/// `chain_id` is the key of the topmost snapshot.
pub(super) async fn unpack_if_needed(
    connection: &Connection,
    snapshotter: &str,
    target: &Wire,
    platform: &Platform,
    chain_id: &str,
) -> Result<()> {
    if images::is_there(connection, snapshotter, chain_id).await? {
        return Ok(());
    }
    let (held, lease) = leases::hold(connection).await?;
    // Boxed: it is rarely needed, and large.
    let unpacked = Box::pin(unpack_target(&held, snapshotter, target, platform)).await;
    let released = leases::release(connection, lease).await;
    unpacked.and(released)
}

/// Unpacks an image. Returns the key of the topmost snapshot; `None` for an image without layers.
async fn unpack_target(
    connection: &Connection,
    snapshotter: &str,
    target: &Wire,
    platform: &Platform,
) -> Result<Option<String>> {
    let manifest = manifest_of(connection, target, platform).await?;
    let config = content::read(connection, &manifest.config.digest.to_string()).await?;
    let diff_ids = image::parse_config(&config, manifest.layers.len())?.rootfs.diff_ids;
    let chain = image::chain_ids(&diff_ids);
    for (at, layer) in manifest.layers.iter().enumerate() {
        let name = chain[at].to_string();
        if images::is_there(connection, snapshotter, &name).await? {
            continue;
        }
        let parent = at.checked_sub(1).map(|below| chain[below].to_string()).unwrap_or_default();
        let key = format!("extract-{}-{at} {name}", std::process::id());
        let applied = apply(connection, snapshotter, (&key, &parent), layer).await;
        let is_right = applied.as_ref().is_ok_and(|digest| *digest == diff_ids[at].to_string());
        if !is_right {
            let remove = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key };
            // The first error is returned. If the removal fails, the snapshot goes with the lease.
            let _ = snapshots::client(connection).remove(connection.request(remove)?).await;
            let digest = applied.context(|| format!("unpack layer {}", layer.digest))?;
            return Err(Error::data_loss(format!(
                "layer {} unpacks to {digest}, the image's config says {}",
                layer.digest, diff_ids[at]
            )));
        }
        let commit = CommitSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            name,
            key,
            ..CommitSnapshotRequest::default()
        };
        match snapshots::client(connection).commit(connection.request(commit)?).await.answer() {
            // Another client has unpacked the layer meanwhile.
            Err(error) if error.is(ErrorKind::AlreadyExists) => {}
            committed => committed?,
        }
    }
    let Some(top) = chain.last().map(ToString::to_string) else { return Ok(None) };
    let key = format!("{}{snapshotter}", gc::SNAPSHOT);
    set_label(connection, &manifest.config.digest.to_string(), &key, &top).await?;
    Ok(Some(top))
}

/// Unpacks one layer and returns its diff id, the digest of its uncompressed tar.
async fn apply(
    connection: &Connection,
    snapshotter: &str,
    (key, parent): (&str, &str),
    layer: &Descriptor,
) -> Result<String> {
    let prepare = PrepareSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
        parent: parent.to_owned(),
        labels: [].into(),
    };
    let mounts = snapshots::client(connection).prepare(connection.request(prepare)?).await.answer()?.mounts;
    let diff = Wire {
        media_type: layer.media_type.clone(),
        digest: layer.digest.to_string(),
        size: i64::try_from(layer.size).unwrap_or(i64::MAX),
        annotations: layer.annotations.clone(),
    };
    let request = ApplyRequest { diff: Some(diff), mounts, ..ApplyRequest::default() };
    let mut client = service!(connection, diff::diff_client::DiffClient);
    Ok(present(client.apply(connection.request(request)?).await.answer()?.applied, "layer")?.digest)
}

/// The manifest for a platform.
async fn manifest_of(connection: &Connection, target: &Wire, platform: &Platform) -> Result<Manifest> {
    let (mut kind, mut digest) = (target.media_type.clone(), target.digest.clone());
    for _ in 0..=image::INDEX_DEPTH_MAX {
        if !is_index(&kind) && !is_manifest(&kind) {
            break;
        }
        match Node::parse(&kind, &content::read(connection, &digest).await?)? {
            Node::Manifest(manifest) => return Ok(*manifest),
            Node::Index(index) => {
                let told = images::platforms_of_index(connection, &index).await?;
                let chosen = image::choose(&index, platform, &told)?;
                (kind, digest) = (chosen.media_type.clone(), chosen.digest.to_string());
            }
        }
    }
    Err(Error::failed_precondition(format!("{digest} is of type {kind}: this is not an image")))
}

async fn set_label(connection: &Connection, digest: &str, key: &str, value: &str) -> Result<()> {
    let labels = [(key.to_owned(), value.to_owned())].into();
    let request = UpdateRequest {
        info: Some(BlobInfo { digest: digest.to_owned(), labels, ..BlobInfo::default() }),
        update_mask: Some(FieldMask { paths: vec![format!("labels.{key}")] }),
    };
    let mut client = service!(connection, content::content_client::ContentClient);
    client.update(connection.request(request)?).await.answer().map(drop)
}
