//! `ctr sandboxes`: sandboxes, run by the controller that the namespace selects.

use std::collections::BTreeMap;

use api::grpc::sandbox::controller::{
    ControllerCreateRequest, ControllerShutdownRequest, ControllerStartRequest, ControllerStopRequest,
};
use api::grpc::sandbox::{
    Runtime, Sandbox, StoreCreateRequest, StoreDeleteRequest, StoreGetRequest, StoreListRequest,
};
use prost_types::Any;
use serde_json::{Value, json};
use types::spec::runtime::Spec;
use types::{Context, Error, ErrorKind, Result, Timestamp, UnlessGone};

use super::command::{Call, Command, Flag};
use super::connection::{Answer, Connection, present, service};
use super::run::{RUNTIME, SPEC_URL};
use super::{events, namespaces, schema, table};
use crate::output::said;

/// The default controller, and the namespace label that selects another (containerd's
/// `defaults.DefaultSandboxerNSLabel`).
const SANDBOXER: &str = "shim";
const SANDBOXER_LABEL: &str = "containerd.io/defaults/sandboxer";

pub(super) const VERBS: &[Command] = &[
    Command::new(
        "run|create|c|r",
        "[flags] <pod-config.json> <sandbox-id>",
        "start a sandbox",
        &[Flag::value("runtime", "the runtime [io.containerd.runc.v2]")],
        |call| Box::pin(run(call)),
    ),
    Command::new(
        "list|ls",
        "[flags]",
        "list sandboxes",
        &[Flag::value("filters", "only sandboxes that match the filter")],
        |call| Box::pin(list(call)),
    ),
    Command::new(
        "remove|rm",
        "[flags] <id> [<id>, ...]",
        "stop and remove sandboxes",
        &[Flag::switch("force,f", "also remove sandboxes that cannot be stopped")],
        |call| Box::pin(remove(call)),
    ),
    Command::new("info|i", "<sandbox id>", "show a sandbox", &[], |call| Box::pin(info(call))),
];

async fn run(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let (file, id) = (call.word(0, "pod config")?, call.word(1, "sandbox id")?);
    let what = || format!("read the sandbox's config {file}");
    let spec = std::fs::read(file).context(what)?;
    serde_json::from_slice::<Spec>(&spec)
        .map_err(|error| Error::invalid_argument(what()).with_source(error))?;
    let labels = namespaces::labels(&connection).await?;
    let chosen = labels.get(SANDBOXER_LABEL).filter(|name| !name.is_empty());
    let now = Timestamp::now();
    let now = prost_types::Timestamp { seconds: now.seconds, nanos: now.nanos.cast_signed() };
    let sandbox = Sandbox {
        sandbox_id: id.to_owned(),
        runtime: Some(Runtime { name: call.value("runtime").unwrap_or(RUNTIME).to_owned(), options: None }),
        spec: Some(Any { type_url: SPEC_URL.to_owned(), value: spec }),
        created_at: Some(now),
        updated_at: Some(now),
        sandboxer: chosen.map_or(SANDBOXER, String::as_str).to_owned(),
        ..Sandbox::default()
    };
    let request = StoreCreateRequest { sandbox: Some(sandbox.clone()) };
    let mut store = service!(connection, sandbox::store_client::StoreClient);
    store.create(connection.request(request)?).await.answer().context(|| "failed to create new sandbox")?;
    let mut controller = service!(connection, sandbox::controller::controller_client::ControllerClient);
    let sandboxer = sandbox.sandboxer.clone();
    let request = ControllerCreateRequest {
        sandbox_id: id.to_owned(),
        sandboxer: sandboxer.clone(),
        sandbox: Some(sandbox),
        ..ControllerCreateRequest::default()
    };
    if let Err(error) = controller.create(connection.request(request)?).await.answer() {
        // Do not shut the sandbox down: it may belong to another client that has no record of it.
        let error = take_back(error, id, forget(&connection, id)).await;
        return Err(error.context(format!("failed to create sandbox with {sandboxer} sandboxer")));
    }
    let request = ControllerStartRequest { sandbox_id: id.to_owned(), sandboxer: sandboxer.clone() };
    if let Err(error) = controller.start(connection.request(request)?).await.answer() {
        return Err(take_back(error, id, end(&connection, id, sandboxer)).await.context("failed to start"));
    }
    table::lines([id]);
    Ok(0)
}

/// Removes the record of a sandbox that its controller refused, and returns the refusal. containerd's `ctr` leaves the
/// record, which blocks the next attempt. The record stays if the controller may have created the sandbox all the same.
async fn take_back(error: Error, id: &str, taken_back: impl Future<Output = Result<()>>) -> Error {
    let is_open = [ErrorKind::Unavailable, ErrorKind::DeadlineExceeded, ErrorKind::Cancelled];
    let why = if is_open.contains(&error.kind()) {
        Some("what became of it is not known".to_owned())
    } else {
        taken_back.await.err().map(|left| said(&left))
    };
    if let Some(why) = why {
        eprintln!("ctr: sandbox {id} stays recorded: {why}; ctr sandboxes rm {id} removes it");
    }
    error
}

async fn list(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let request = StoreListRequest { filters: call.values("filters").to_vec() };
    let mut store = service!(connection, sandbox::store_client::StoreClient);
    let found = store.list(connection.request(request)?).await.answer()?.list;
    let row = |sandbox: &Sandbox| {
        let runtime = sandbox.runtime.as_ref().map(|runtime| runtime.name.clone()).unwrap_or_default();
        vec![sandbox.sandbox_id.clone(), events::go_time(sandbox.created_at.as_ref()), runtime]
    };
    table::print(&["ID", "CREATED", "RUNTIME"], &found.iter().map(row).collect::<Vec<_>>());
    Ok(0)
}

/// As with containerd's, a sandbox that cannot be removed is reported and skipped.
async fn remove(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    for id in call.words() {
        if let Err(error) = remove_one(&connection, id, call.is("force")).await {
            eprintln!("ctr: failed to remove sandbox {id}: {}", said(&error));
        }
    }
    Ok(0)
}

async fn remove_one(connection: &Connection, id: &str, force: bool) -> Result<()> {
    let sandboxer = get(connection, id).await?.sandboxer;
    let mut controller = service!(connection, sandbox::controller::controller_client::ControllerClient);
    let sandbox_id = id.to_owned();
    let request = ControllerStopRequest { sandbox_id, sandboxer: sandboxer.clone(), timeout_secs: 0 };
    if let Err(error) = controller.stop(connection.request(request)?).await.answer() {
        if !force {
            return Err(error.context("failed to stop it"));
        }
        eprintln!("ctr: failed to stop sandbox {id}: {}", said(&error));
    }
    end(connection, id, sandboxer).await
}

/// Shuts a sandbox down, if it exists, and removes its record.
async fn end(connection: &Connection, id: &str, sandboxer: String) -> Result<()> {
    let mut controller = service!(connection, sandbox::controller::controller_client::ControllerClient);
    let request = ControllerShutdownRequest { sandbox_id: id.to_owned(), sandboxer };
    controller.shutdown(connection.request(request)?).await.answer().unless_gone()?;
    forget(connection, id).await
}

/// Removes the record of a sandbox, if it exists.
async fn forget(connection: &Connection, id: &str) -> Result<()> {
    let request = StoreDeleteRequest { sandbox_id: id.to_owned() };
    let mut store = service!(connection, sandbox::store_client::StoreClient);
    store.delete(connection.request(request)?).await.answer().unless_gone()?;
    Ok(())
}

async fn info(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let sandbox = get(&connection, call.word(0, "sandbox id")?).await?;
    let runtime = sandbox.runtime.unwrap_or_default();
    let extensions = sandbox.extensions.iter().map(|(key, value)| (key.clone(), schema::any(value)));
    let labels: BTreeMap<String, Value> =
        sandbox.labels.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
    table::json(&json!({
        "ID": sandbox.sandbox_id,
        "Labels": schema::map_or_null(&labels),
        "Runtime": {"Name": runtime.name, "Options": runtime.options.as_ref().map_or(Value::Null, schema::any)},
        "Spec": sandbox.spec.as_ref().map_or(Value::Null, schema::any),
        "Sandboxer": sandbox.sandboxer,
        "CreatedAt": table::time(sandbox.created_at.as_ref()),
        "UpdatedAt": table::time(sandbox.updated_at.as_ref()),
        "Extensions": schema::map_or_null(&extensions.collect()),
    }));
    Ok(0)
}

async fn get(connection: &Connection, id: &str) -> Result<Sandbox> {
    let request = StoreGetRequest { sandbox_id: id.to_owned() };
    let mut store = service!(connection, sandbox::store_client::StoreClient);
    let found = store.get(connection.request(request)?).await.answer();
    present(found.context(|| format!("failed to load sandbox {id}"))?.sandbox, "sandbox")
}
