//! `ctr info` and `ctr deprecations`: information about the daemon.

use api::grpc::introspection::{DeprecationWarning, ServerResponse};
use serde_json::{Value, json};
use types::Result;

use super::command::{Call, Command, Flag};
use super::connection::{Answer, service};
use super::table;

pub(super) const INFO: Command =
    Command::new("info", "", "show information about the daemon", &[], |call| Box::pin(info(call)));

pub(super) const DEPRECATIONS: Command = Command::group(
    "deprecations",
    "deprecated features in use",
    &[Command::new(
        "list",
        "[flags]",
        "list the daemon's deprecation warnings",
        &[Flag::value("format", "default or json")],
        |call| Box::pin(list(call)),
    )],
);

async fn server(call: &Call) -> Result<ServerResponse> {
    let connection = call.connect().await?;
    let mut client = service!(connection, introspection::introspection_client::IntrospectionClient);
    client.server(()).await.answer()
}

async fn info(call: Call) -> Result<u8> {
    let server = server(&call).await?;
    let mut shown = json!({"uuid": server.uuid, "pid": server.pid, "pidns": server.pidns});
    // Go omits empty fields.
    if !server.deprecations.is_empty() {
        let warning = |warning: &DeprecationWarning| {
            let at = warning.last_occurrence.unwrap_or_default();
            let at = json!({"seconds": at.seconds, "nanos": at.nanos});
            json!({"id": warning.id, "message": warning.message, "last_occurrence": at})
        };
        shown["deprecations"] = server.deprecations.iter().map(warning).collect();
    }
    table::json(&json!({ "server": shown }));
    Ok(0)
}

async fn list(call: Call) -> Result<u8> {
    let warnings = server(&call).await?.deprecations;
    if warnings.is_empty() {
        return Ok(0);
    }
    let last = |warning: &DeprecationWarning| table::time(warning.last_occurrence.as_ref());
    if call.value("format") == Some("json") {
        let warning = |warning: &DeprecationWarning| {
            let last = last(warning);
            json!({"id": warning.id, "message": warning.message, "lastOccurrence": last})
        };
        table::json(&warnings.iter().map(warning).collect::<Value>());
    } else {
        let row =
            |warning: &DeprecationWarning| vec![warning.id.clone(), last(warning), warning.message.clone()];
        table::print(&["ID", "LAST OCCURRENCE", "MESSAGE"], &warnings.iter().map(row).collect::<Vec<_>>());
    }
    Ok(0)
}
