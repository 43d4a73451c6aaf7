//! `ctr tasks checkpoint`: an image of a container as it runs, as containerd's clients put it together.
//!
//! ```text
//! index ─▶ what criu wrote, the container's spec        from the daemon
//!      ├─▶ the image that it was made from
//!      └─▶ the layer of what it has changed
//! ```

use std::collections::BTreeMap;

use api::grpc::containers::Container;
use api::grpc::images::Image;
use api::grpc::snapshots::StatSnapshotRequest;
use api::grpc::tasks::{CheckpointTaskRequest, GetRequest, PauseTaskRequest, ResumeTaskRequest};
use api::grpc::types::{Descriptor as Wire, Status};
use api::shim::pack;
use api::shim::runc::CheckpointOptions;
use serde_json::{Value, json};
use types::descriptor::media_type::{OCI_INDEX, OCI_LAYER_GZIP};
use types::{Context, ErrorKind, Result, Timestamp};

use super::command::{Call, Flag};
use super::connection::{Answer, Connection, present};
use super::{containers, content, images, layers, leases, snapshots, table, tasks};

pub(super) const FLAGS: &[Flag] = &[
    Flag::switch("exit", "end the container when it is written"),
    Flag::value("image-path", "a folder for what criu writes, in place of an image"),
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
    let made = still(&held, id, options).await;
    leases::release(&connection, lease).await?;
    table::lines(made?);
    Ok(0)
}

/// Holds the container still meanwhile, so that its memory and its files belong together. Gives the image's name.
async fn still(connection: &Connection, id: &str, options: CheckpointOptions) -> Result<Option<String>> {
    let container = containers::get(connection, id).await?;
    let mut client = tasks::client(connection);
    let container_id = id.to_owned();
    let asked = GetRequest { container_id: container_id.clone(), exec_id: String::new() };
    let process = present(client.get(connection.request(asked)?).await.answer()?.process, "process")?;
    let is_paused_already = process.status() == Status::Paused;
    if !is_paused_already {
        let pause = PauseTaskRequest { container_id: container_id.clone() };
        client.pause(connection.request(pause)?).await.answer()?;
    }
    let ends = options.exit;
    let made = write(connection, &container, options).await;
    if !is_paused_already {
        let resume = connection.request(ResumeTaskRequest { container_id })?;
        let resumed = client.resume(resume).await.answer();
        // One that has ended cannot go on, and need not.
        if made.is_ok() && !ends {
            resumed?;
        }
    }
    made
}

async fn write(
    connection: &Connection,
    container: &Container,
    options: CheckpointOptions,
) -> Result<Option<String>> {
    let is_image = options.image_path.is_empty();
    let request = CheckpointTaskRequest {
        container_id: container.id.clone(),
        options: Some(pack(&options)),
        ..CheckpointTaskRequest::default()
    };
    let written = tasks::client(connection).checkpoint(connection.request(request)?).await.answer()?;
    if !is_image {
        return Ok(None);
    }
    let mut parts = written.descriptors;
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
    let entry = |part: &Wire| json!({"mediaType": part.media_type, "digest": part.digest, "size": part.size});
    let manifests: Vec<Value> = parts.iter().map(entry).collect();
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}).to_string();
    let label =
        |(at, part): (usize, &Wire)| (format!("containerd.io/gc.ref.content.{at}"), part.digest.clone());
    let labels: BTreeMap<String, String> = parts.iter().enumerate().map(label).collect();
    let reference = format!("checkpoint-{}-{}", container.id, std::process::id());
    let digest = content::put(connection, &reference, index.as_bytes(), labels).await?;
    let name = format!("containerd.io/checkpoint/{}:{}", container.id, stamp());
    let size = i64::try_from(index.len()).unwrap_or(i64::MAX);
    let target = Wire { media_type: OCI_INDEX.to_owned(), digest, size, ..Wire::default() };
    let image = Image { name: name.clone(), target: Some(target), ..Image::default() };
    images::put(connection, image, true).await?;
    Ok(Some(name))
}

/// The layer of what a container has changed.
async fn changes(connection: &Connection, container: &Container) -> Result<Wire> {
    let (snapshotter, key) = (container.snapshotter.clone(), container.snapshot_key.clone());
    let stat = StatSnapshotRequest { snapshotter: snapshotter.clone(), key: key.clone() };
    let stat = snapshots::client(connection).stat(connection.request(stat)?).await.answer()?;
    let parent = present(stat.info, "snapshot")?.parent;
    let wish = layers::Wish { media_type: OCI_LAYER_GZIP.to_owned(), ..layers::Wish::default() };
    layers::between(connection, &snapshotter, Some(parent).filter(|parent| !parent.is_empty()), key, wish)
        .await
}

/// The time as it may stand in a tag: no colons.
fn stamp() -> String {
    let now = Timestamp::now().to_string();
    now.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect()
}
