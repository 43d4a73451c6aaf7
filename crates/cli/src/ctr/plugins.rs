//! `ctr plugins`.

use api::grpc::introspection::{Plugin, PluginInfoRequest, PluginsRequest};
use api::shim::introspection::{RuntimeInfo, RuntimeRequest};
use api::shim::{pack, unpack};
use serde_json::{Value, json};
use types::{Error, Result};

use super::command::{Call, Command, Flag};
use super::connection::{Answer, present, service};
use super::{run, schema, table};

pub(super) const VERBS: &[Command] = &[
    Command::new(
        "list|ls",
        "[<filter>, ...]",
        "lists plugins",
        &[
            Flag::switch("quiet,q", "print only the plugin ids"),
            Flag::switch("detailed,d", "print everything about each plugin"),
        ],
        |call| Box::pin(list(call)),
    ),
    Command::new(
        "inspect-runtime",
        "[flags]",
        "show a runtime's information",
        &[
            Flag::value("runtime", "its name or the path of its shim [io.containerd.runc.v2]"),
            Flag::value("runtime-config-path", "a file that the runtime reads"),
            Flag::value("runc-binary", "the OCI runtime to call"),
            Flag::value("runc-root", "the OCI runtime's state directory"),
            Flag::switch("runc-systemd-cgroup", "let systemd manage cgroups"),
        ],
        |call| Box::pin(inspect_runtime(call)),
    ),
];

/// Prints a runtime's information, which the daemon gets from the runtime's shim.
async fn inspect_runtime(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let asked = RuntimeRequest {
        runtime_path: call.value("runtime").unwrap_or(run::RUNTIME).to_owned(),
        options: run::runtime_options(&call)?,
    };
    let request = PluginInfoRequest {
        r#type: "io.containerd.runtime.v2".to_owned(),
        id: "task".to_owned(),
        options: Some(pack(&asked)),
    };
    let mut client = service!(connection, introspection::introspection_client::IntrospectionClient);
    let answer = client.plugin_info(connection.request(request)?).await.answer()?;
    let extra = present(answer.extra, "information of a runtime")?;
    let info = unpack::<RuntimeInfo>(&extra).and_then(Result::ok);
    let info = info.ok_or_else(|| {
        Error::internal(format!("the daemon answered with {:?} in place of a RuntimeInfo", extra.type_url))
    })?;
    let version = info.version.unwrap_or_default();
    let annotations = if info.annotations.is_empty() { Value::Null } else { json!(info.annotations) };
    table::json(&json!({
        "Name": info.name,
        "Version": {"Version": version.version, "Revision": version.revision},
        "Options": info.options.as_ref().map_or(Value::Null, schema::any),
        "Features": info.features.as_ref().map_or(Value::Null, schema::any),
        "Annotations": annotations,
    }));
    Ok(0)
}

async fn list(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let mut client = service!(connection, introspection::introspection_client::IntrospectionClient);
    let request = PluginsRequest { filters: call.words().to_vec() };
    let plugins = client.plugins(request).await.answer()?.plugins;
    if call.is("quiet") {
        table::lines(plugins.iter().map(|plugin| &plugin.id));
    } else if call.is("detailed") {
        plugins.iter().for_each(describe);
    } else {
        let row = |plugin: &Plugin| {
            let platforms = platforms(plugin);
            let platforms = if platforms.is_empty() { "-".to_owned() } else { platforms };
            let status = match &plugin.init_err {
                None => "ok",
                // A plugin that is not applicable on this machine reports this code.
                Some(error) if error.code == i32::from(tonic::Code::Unimplemented) => "skip",
                Some(_) => "error",
            };
            vec![plugin.r#type.clone(), plugin.id.clone(), platforms, status.to_owned()]
        };
        let rows: Vec<_> = plugins.iter().map(row).collect();
        table::print(&["TYPE", "ID", "PLATFORMS", "STATUS"], &rows);
    }
    Ok(0)
}

fn describe(plugin: &Plugin) {
    let mut lines =
        vec![format!("Type:          {}", plugin.r#type), format!("ID:            {}", plugin.id)];
    if !plugin.requires.is_empty() {
        lines.push("Requires:".to_owned());
        lines.extend(plugin.requires.iter().map(|kind| format!("               {kind}")));
    }
    if !plugin.platforms.is_empty() {
        lines.push(format!("Platforms:     {}", platforms(plugin)));
    }
    if !plugin.exports.is_empty() {
        lines.push("Exports:".to_owned());
        lines.extend(plugin.exports.iter().map(|(key, value)| format!("               {key}  {value}")));
    }
    if !plugin.capabilities.is_empty() {
        lines.push(format!("Capabilities:  {}", plugin.capabilities.join(",")));
    }
    if let Some(error) = &plugin.init_err {
        lines.push(format!("Error:         {} ({})", error.message, error.code));
    }
    lines.push(String::new());
    table::lines(lines);
}

fn platforms(plugin: &Plugin) -> String {
    let each = plugin.platforms.iter().map(|platform| match platform.variant.as_str() {
        "" => format!("{}/{}", platform.os, platform.architecture),
        variant => format!("{}/{}/{variant}", platform.os, platform.architecture),
    });
    each.collect::<Vec<_>>().join(",")
}
