//! `ctr tasks checkpoint`: an image of a running container, assembled as containerd's clients do.
//!
//! ```text
//! index ─▶ criu's archive, the container's spec          from the daemon
//!      ├─▶ the container's image
//!      └─▶ the layer of the container's changes
//! ```

use std::collections::BTreeMap;
use std::future::Future;

use api::grpc::containers::Container;
use api::grpc::images::Image;
use api::grpc::snapshots::StatSnapshotRequest;
use api::grpc::tasks::{CheckpointTaskRequest, GetRequest, PauseTaskRequest, ResumeTaskRequest};
use api::grpc::types::{Descriptor as Wire, Status};
use api::shim::pack;
use api::shim::runc::CheckpointOptions;
use serde_json::{Value, json};
use types::descriptor::media_type::{OCI_INDEX, OCI_LAYER_GZIP};
use types::label::gc::CONTENT;
use types::{Context, ErrorKind, Result, Timestamp};

use super::command::{Call, Flag};
use super::connection::{Answer, Connection, present};
use super::{containers, content, images, layers, leases, snapshots, table, tasks};

pub(super) const FLAGS: &[Flag] = &[
    Flag::switch("exit", "end the container after the checkpoint"),
    Flag::value("image-path", "write criu's files to this folder instead of an image"),
    Flag::value("work-path", "a folder for criu's log"),
];

pub(super) async fn checkpoint(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let id = call.word(0, "container id")?;
    let path = |flag: &str| match call.value(flag) {
        Some(path) => std::path::absolute(path).context(|| format!("--{flag} {path}")),
        None => Ok(std::path::PathBuf::new()),
    };
    let options = CheckpointOptions {
        exit: call.is("exit"),
        image_path: path("image-path")?.display().to_string(),
        work_path: path("work-path")?.display().to_string(),
        ..CheckpointOptions::default()
    };
    let (held, lease) = leases::hold(&connection).await?;
    let made = async {
        let container = containers::get(&held, id).await?;
        let ends = options.exit;
        while_paused(&held, id, ends, write(&held, &container, options)).await
    };
    let made = made.await;
    leases::release(&connection, lease).await?;
    table::lines(made?);
    Ok(0)
}

/// Runs `work` while the container is paused, so that the checkpoint's memory and files are consistent. `ends` if the
/// task ends with the checkpoint.
pub(super) async fn while_paused<T>(
    connection: &Connection,
    id: &str,
    ends: bool,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut client = tasks::client(connection);
    let container_id = id.to_owned();
    let asked = GetRequest { container_id: container_id.clone(), exec_id: String::new() };
    let process = present(client.get(connection.request(asked)?).await.answer()?.process, "process")?;
    let is_paused_already = process.status() == Status::Paused;
    if !is_paused_already {
        let pause = PauseTaskRequest { container_id: container_id.clone() };
        client.pause(connection.request(pause)?).await.answer()?;
    }
    let made = work.await;
    if !is_paused_already {
        let resume = connection.request(ResumeTaskRequest { container_id })?;
        let resumed = client.resume(resume).await.answer();
        // A task that has ended with the checkpoint cannot be resumed.
        if made.is_ok() && !ends {
            resumed?;
        }
    }
    made
}

/// Writes the checkpoint. Returns the name of the image, if it gets one.
async fn write(
    connection: &Connection,
    container: &Container,
    options: CheckpointOptions,
) -> Result<Option<String>> {
    let is_image = options.image_path.is_empty();
    let mut parts = processes(connection, container, &options).await?;
    if !is_image {
        return Ok(None);
    }
    if !container.image.is_empty() {
        match images::get(connection, &container.image).await {
            Ok(image) => parts.extend(image.target),
            Err(error) if error.is(ErrorKind::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    if !container.snapshot_key.is_empty() {
        parts.push(changes(connection, container).await?);
    }
    let name = format!("containerd.io/checkpoint/{}:{}", container.id, time_for_tag());
    let target = index(connection, &container.id, &parts, [].into()).await?;
    let image = Image { name: name.clone(), target: Some(target), ..Image::default() };
    images::put(connection, image, true).await?;
    Ok(Some(name))
}

/// The descriptors of the archive of the container's processes, and of its spec, which the runtime writes.
pub(super) async fn processes(
    connection: &Connection,
    container: &Container,
    options: &CheckpointOptions,
) -> Result<Vec<Wire>> {
    let request = CheckpointTaskRequest {
        container_id: container.id.clone(),
        options: Some(pack(options)),
        ..CheckpointTaskRequest::default()
    };
    Ok(tasks::client(connection).checkpoint(connection.request(request)?).await.answer()?.descriptors)
}

/// Stores the index of the parts, whose labels retain them.
pub(super) async fn index(
    connection: &Connection,
    id: &str,
    parts: &[Wire],
    annotations: BTreeMap<&str, &str>,
) -> Result<Wire> {
    let entry = |part: &Wire| json!({"mediaType": part.media_type, "digest": part.digest, "size": part.size});
    let manifests: Vec<Value> = parts.iter().map(entry).collect();
    let mut index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
    if !annotations.is_empty() {
        index["annotations"] = json!(annotations);
    }
    let label = |(at, part): (usize, &Wire)| (format!("{CONTENT}.{at}"), part.digest.clone());
    let labels: BTreeMap<String, String> = parts.iter().enumerate().map(label).collect();
    let reference = format!("checkpoint-{id}-{}", std::process::id());
    blob(connection, OCI_INDEX, &reference, index.to_string().as_bytes(), labels).await
}

/// Stores a blob and returns its descriptor.
pub(super) async fn blob(
    connection: &Connection,
    media_type: &str,
    reference: &str,
    bytes: &[u8],
    labels: BTreeMap<String, String>,
) -> Result<Wire> {
    let digest = content::put(connection, reference, bytes, labels).await?;
    let size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
    Ok(Wire { media_type: media_type.to_owned(), digest, size, ..Wire::default() })
}

/// Stores the layer of a container's changes.
pub(super) async fn changes(connection: &Connection, container: &Container) -> Result<Wire> {
    let (snapshotter, key) = (container.snapshotter.clone(), container.snapshot_key.clone());
    let stat = StatSnapshotRequest { snapshotter: snapshotter.clone(), key: key.clone() };
    let stat = snapshots::client(connection).stat(connection.request(stat)?).await.answer()?;
    let parent = present(stat.info, "snapshot")?.parent;
    let layer_options =
        layers::LayerOptions { media_type: OCI_LAYER_GZIP.to_owned(), ..layers::LayerOptions::default() };
    layers::between(
        connection,
        &snapshotter,
        Some(parent).filter(|parent| !parent.is_empty()),
        key,
        layer_options,
    )
    .await
}

/// The current time in a form that a tag may contain: without colons.
fn time_for_tag() -> String {
    let now = Timestamp::now().to_string();
    now.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect()
}
