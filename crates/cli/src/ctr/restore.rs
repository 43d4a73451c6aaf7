//! `ctr containers checkpoint` and `restore`: a checkpoint image of a container, and a container from one.
//!
//! ```text
//! index ─▶ the options of the runtime, the spec
//!      ├─▶ --image: the container's image
//!      ├─▶ --rw:    the layer of the container's changes
//!      └─▶ --task:  criu's archive of the processes, and its options
//! ```
//!
//! As containerd's client does, the index has the names of image, runtime and snapshotter.

use std::collections::BTreeMap;

use api::grpc::containers::{Container, CreateContainerRequest, Runtime};
use api::grpc::diff::ApplyRequest;
use api::grpc::diff::diff_client::DiffClient;
use api::grpc::images::Image;
use api::grpc::snapshots::PrepareSnapshotRequest;
use api::grpc::tasks::GetRequest;
use api::grpc::types::Descriptor as Wire;
use api::shim::pack;
use api::shim::runc::CheckpointOptions;
use prost::Message;
use prost_types::Any;
use types::descriptor::media_type::OCI_LAYER_GZIP;
use types::spec::image::Index;
use types::{Descriptor, Error, ErrorKind, Platform, Result, UnlessGone};

use super::checkpoint::{blob, changes, index, processes, while_paused};
use super::command::{Call, Flag};
use super::connection::{Answer, Connection, service};
use super::{containers, content, images, leases, snapshots, tasks, transfer};

pub(super) const CHECKPOINT_FLAGS: &[Flag] = &[
    Flag::switch("rw", "include the container's changes"),
    Flag::switch("image", "include the container's image"),
    Flag::switch("task", "include its processes"),
];

pub(super) const RESTORE_FLAGS: &[Flag] =
    &[Flag::switch("rw", "restore the container's changes"), Flag::switch("live", "restore its processes")];

/// Annotations of the index.
const IMAGE_NAME: &str = "org.opencontainers.image.ref.name";
const RUNTIME: &str = "io.containerd.checkpoint.runtime";
const SNAPSHOTTER: &str = "io.containerd.checkpoint.snapshotter";

/// The media types of its parts.
const PROCESSES: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";
const SPEC: &str = "application/vnd.containerd.container.checkpoint.config.v1+proto";
const OPTIONS: &str = "application/vnd.containerd.container.checkpoint.options.v1+proto";
const RUNTIME_OPTIONS: &str = "application/vnd.containerd.container.checkpoint.runtime.options+proto";

/// The parts to write.
struct Parts {
    changes: bool,
    image: bool,
    processes: bool,
}

pub(super) async fn checkpoint(call: Call) -> Result<u8> {
    let (id, name) = (call.word(0, "container id")?, call.word(1, "ref")?);
    let parts = Parts { changes: call.is("rw"), image: call.is("image"), processes: call.is("task") };
    let connection = call.connect().await?;
    let (held, lease) = leases::hold(&connection).await?;
    let made = async {
        let container = containers::get(&held, id).await?;
        let write = write(&held, &container, name, &parts);
        if has_task(&held, id).await? { while_paused(&held, id, false, write).await } else { write.await }
    };
    let made = made.await;
    leases::release(&connection, lease).await?;
    made.map(|()| 0)
}

async fn has_task(connection: &Connection, id: &str) -> Result<bool> {
    let request = connection.request(GetRequest { container_id: id.to_owned(), exec_id: String::new() })?;
    Ok(tasks::client(connection).get(request).await.answer().unless_gone()?.is_some())
}

async fn write(connection: &Connection, container: &Container, name: &str, parts: &Parts) -> Result<()> {
    let id = &container.id;
    let image = images::get(connection, &container.image).await?;
    let runtime = container.runtime.clone().unwrap_or_default();
    let mut written = Vec::new();
    if let Some(options) = runtime.options.filter(|options| !options.value.is_empty()) {
        let bytes = options.encode_to_vec();
        let reference = format!("{id}-runtime-options");
        written.push(blob(connection, RUNTIME_OPTIONS, &reference, &bytes, [].into()).await?);
    }
    if parts.image {
        written.extend(image.target);
    }
    if parts.changes {
        written.push(changes(connection, container).await?);
    }
    if parts.processes {
        let options = CheckpointOptions { file_locks: true, ..CheckpointOptions::default() };
        written.extend(processes(connection, container, &options).await?);
        let (bytes, reference) = (pack(&options).encode_to_vec(), format!("{id}-checkpoint-options"));
        written.push(blob(connection, OPTIONS, &reference, &bytes, [].into()).await?);
    } else {
        // With `--task` the daemon writes the spec; a restore needs it in any case.
        let bytes = container.spec.clone().unwrap_or_default().encode_to_vec();
        written.push(blob(connection, SPEC, &format!("{id}-spec"), &bytes, [].into()).await?);
    }
    let annotations = BTreeMap::from([
        (IMAGE_NAME, image.name.as_str()),
        (RUNTIME, runtime.name.as_str()),
        (SNAPSHOTTER, container.snapshotter.as_str()),
    ]);
    let target = index(connection, id, &written, annotations).await?;
    let image = Image { name: name.to_owned(), target: Some(target), ..Image::default() };
    images::put(connection, image, false).await
}

pub(super) async fn restore(call: Call) -> Result<u8> {
    let (id, name) = (call.word(0, "container id")?, call.word(1, "ref")?);
    let connection = call.connect().await?;
    let target = found(&call, &connection, name).await?.target.unwrap_or_default();
    let bytes = content::read(&connection, &target.digest).await?;
    let index: Index = serde_json::from_slice(&bytes)
        .map_err(|error| Error::invalid_argument(format!("{name} is no index")).with_source(error))?;
    let processes = if call.is("live") { Some(part(&index, PROCESSES)?) } else { None };
    let (held, lease) = leases::hold(&connection).await?;
    let made = make(&held, id, &index, call.is("rw")).await;
    // The container record retains its snapshot from here on.
    leases::release(&connection, lease).await?;
    made?;
    let processes = processes.map(|part| Wire {
        media_type: part.media_type.clone(),
        digest: part.digest.to_string(),
        size: i64::try_from(part.size).unwrap_or(i64::MAX),
        ..Wire::default()
    });
    tasks::start_from_checkpoint(&call, &connection, id, processes).await
}

/// The checkpoint image, which is pulled if it is missing, as containerd's `ctr` does. A name without a registry cannot
/// be pulled.
async fn found(call: &Call, connection: &Connection, name: &str) -> Result<Image> {
    match images::get(connection, name).await {
        Err(error) if error.is(ErrorKind::NotFound) && name.contains('/') => {
            transfer::fetch_whole(call, connection, name).await?;
            images::get(connection, name).await
        }
        found => found,
    }
}

/// Creates the container record and its snapshot.
async fn make(connection: &Connection, id: &str, index: &Index, with_changes: bool) -> Result<()> {
    let said = |key: &str, what: &str| {
        let said = index.annotations.get(key).filter(|said| !said.is_empty());
        said.ok_or_else(|| Error::not_found(format!("{what} not found in index")))
    };
    let (image, runtime) = (said(IMAGE_NAME, "image name")?, said(RUNTIME, "runtime")?);
    let snapshotter = said(SNAPSHOTTER, "snapshotter")?.clone();
    let spec = any(connection, part(index, SPEC)?).await?;
    let options = match part(index, RUNTIME_OPTIONS) {
        Ok(part) => Some(any(connection, part).await?),
        Err(_) => None,
    };
    let changes = if with_changes { Some(part(index, OCI_LAYER_GZIP)?) } else { None };
    let target = images::get(connection, image).await?.target.unwrap_or_default();
    let tree = images::Tree::of(connection, &target, &Platform::host()).await?;
    let parent = tree.chain_id.ok_or_else(|| {
        Error::failed_precondition(format!("image {image} is not here for this platform; pull it first"))
    })?;
    let request = PrepareSnapshotRequest {
        snapshotter: snapshotter.clone(),
        key: id.to_owned(),
        parent,
        labels: [].into(),
    };
    let prepared = snapshots::client(connection).prepare(connection.request(request)?).await.answer()?;
    if let Some(layer) = changes {
        let diff = Wire {
            media_type: layer.media_type.clone(),
            digest: layer.digest.to_string(),
            size: i64::try_from(layer.size).unwrap_or(i64::MAX),
            ..Wire::default()
        };
        let request = ApplyRequest { diff: Some(diff), mounts: prepared.mounts, ..ApplyRequest::default() };
        let mut client: DiffClient<_> = service!(connection, diff::diff_client::DiffClient);
        client.apply(connection.request(request)?).await.answer()?;
    }
    let container = Container {
        id: id.to_owned(),
        image: image.clone(),
        runtime: Some(Runtime { name: runtime.clone(), options }),
        spec: Some(spec),
        snapshot_key: id.to_owned(),
        snapshotter,
        ..Container::default()
    };
    let request = connection.request(CreateContainerRequest { container: Some(container) })?;
    containers::client(connection).create(request).await.answer().map(drop)
}

fn part<'i>(index: &'i Index, media_type: &str) -> Result<&'i Descriptor> {
    let found = index.manifests.iter().find(|part| part.media_type == media_type);
    found.ok_or_else(|| Error::not_found(format!("media type not found: the checkpoint has no {media_type}")))
}

async fn any(connection: &Connection, part: &Descriptor) -> Result<Any> {
    let bytes = content::read(connection, &part.digest.to_string()).await?;
    Any::decode(bytes.as_slice())
        .map_err(|error| Error::invalid_argument(format!("read {}", part.media_type)).with_source(error))
}
