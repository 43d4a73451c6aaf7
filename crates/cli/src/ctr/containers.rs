//! `ctr containers`: container records.

use api::grpc::containers::containers_client::ContainersClient;
use api::grpc::containers::{
    Container, DeleteContainerRequest, GetContainerRequest, ListContainersRequest, UpdateContainerRequest,
};
use api::grpc::snapshots::RemoveSnapshotRequest;
use client::Channel;
use prost_types::FieldMask;
use serde_json::{Value, json};
use types::{ErrorKind, Result};

use super::command::{Call, Command, Flag, shown};
use super::connection::{Answer, Connection, present, service};
use super::{restore, run, schema, snapshots, table, tasks};
use crate::output::said;

pub(super) const VERBS: &[Command] = &[
    Command::new(
        "checkpoint",
        "[flags] CONTAINER REF",
        "checkpoint a container to an image",
        restore::CHECKPOINT_FLAGS,
        |call| Box::pin(restore::checkpoint(call)),
    ),
    Command {
        is_program: true,
        ..Command::new(
            "create",
            "[flags] Image|RootFS CONTAINER [COMMAND] [ARG...]",
            "create a container",
            run::CREATE_FLAGS,
            |call| Box::pin(run::create(call)),
        )
    },
    Command::new(
        "delete|del|remove|rm",
        "[flags] CONTAINER [CONTAINER, ...]",
        "delete containers",
        &[Flag::switch("keep-snapshot", "keep the container's snapshot")],
        |call| Box::pin(delete(call)),
    ),
    Command::new(
        "info",
        "CONTAINER",
        "show a container",
        &[Flag::switch("spec", "print only its OCI spec")],
        |call| Box::pin(info(call)),
    ),
    Command::new(
        "list|ls",
        "[flags] [<filter>, ...]",
        "list containers",
        &[Flag::switch("quiet,q", "print only the ids")],
        |call| Box::pin(list(call)),
    ),
    Command::new(
        "restore",
        "[flags] CONTAINER REF",
        "restore a container from a checkpoint, and start it",
        restore::RESTORE_FLAGS,
        |call| Box::pin(restore::restore(call)),
    ),
    Command::new("label", "CONTAINER [<key>=<value>, ...]", "set and clear labels", &[], |call| {
        Box::pin(label(call))
    }),
];

pub(super) fn client(connection: &Connection) -> ContainersClient<Channel> {
    service!(connection, containers::containers_client::ContainersClient)
}

pub(super) async fn get(connection: &Connection, id: &str) -> Result<Container> {
    let request = connection.request(GetContainerRequest { id: id.to_owned() })?;
    present(client(connection).get(request).await.answer()?.container, "container")
}

async fn list(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let request = connection.request(ListContainersRequest { filters: call.words().to_vec() })?;
    let containers = client(&connection).list(request).await.answer()?.containers;
    if call.is("quiet") {
        table::lines(containers.iter().map(|container| &container.id));
        return Ok(0);
    }
    let row = |container: &Container| {
        let image = if container.image.is_empty() { "-".to_owned() } else { container.image.clone() };
        vec![container.id.clone(), image, container.runtime.clone().unwrap_or_default().name]
    };
    table::print(&["CONTAINER", "IMAGE", "RUNTIME"], &containers.iter().map(row).collect::<Vec<_>>());
    Ok(0)
}

async fn info(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let container = get(&connection, call.word(0, "container id")?).await?;
    let spec = container.spec.as_ref().map_or(Value::Null, schema::any);
    if call.is("spec") {
        table::json(&spec);
        return Ok(0);
    }
    let runtime = container.runtime.unwrap_or_default();
    let extensions = container.extensions.iter().map(|(key, value)| (key.clone(), schema::any(value)));
    let labels = container.labels.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
    table::json(&json!({
        "ID": container.id,
        "Labels": schema::map_or_null(&labels),
        "Image": container.image,
        "Runtime": {"Name": runtime.name, "Options": runtime.options.as_ref().map_or(Value::Null, schema::any)},
        "SnapshotKey": container.snapshot_key,
        "Snapshotter": container.snapshotter,
        "CreatedAt": table::time(container.created_at.as_ref()),
        "UpdatedAt": table::time(container.updated_at.as_ref()),
        "Extensions": schema::map_or_null(&extensions.collect()),
        "Spec": spec,
    }));
    Ok(0)
}

async fn delete(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let mut code = 0;
    for id in call.words_from(0, "container id")? {
        if let Err(error) = remove(&connection, id, call.is("keep-snapshot")).await {
            eprintln!("ctr: failed to delete container {id:?}: {}", said(&error));
            code = 1;
        }
    }
    Ok(code)
}

/// Removes a container that does not run, and unless `keep_snapshot` its snapshot.
pub(super) async fn remove(connection: &Connection, id: &str, keep_snapshot: bool) -> Result<()> {
    let container = get(connection, id).await?;
    tasks::delete_stopped(connection, id).await?;
    if !keep_snapshot && !container.snapshot_key.is_empty() {
        let Container { snapshotter, snapshot_key: key, .. } = container;
        let request = connection.request(RemoveSnapshotRequest { snapshotter, key })?;
        match snapshots::client(connection).remove(request).await.answer() {
            Err(error) if !error.is(ErrorKind::NotFound) => return Err(error),
            _ => {}
        }
    }
    let request = connection.request(DeleteContainerRequest { id: id.to_owned() })?;
    client(connection).delete(request).await.answer()
}

async fn label(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let id = call.word(0, "container id")?.to_owned();
    let labels = Call::labels(&call.words()[1..]);
    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    let request = UpdateContainerRequest {
        container: Some(Container { id, labels, ..Container::default() }),
        update_mask: Some(FieldMask { paths }),
    };
    let updated = client(&connection).update(connection.request(request)?).await.answer()?;
    table::lines([shown(&present(updated.container, "container")?.labels)]);
    Ok(0)
}
