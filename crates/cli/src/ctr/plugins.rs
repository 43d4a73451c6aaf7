//! `ctr plugins`.

use api::grpc::introspection::{Plugin, PluginsRequest};
use types::Result;

use super::command::{Call, Command, Flag};
use super::connection::{Answer, service};
use super::table;

pub(super) const VERBS: &[Command] = &[Command::new(
    "list|ls",
    "[<filter>, ...]",
    "lists plugins",
    &[
        Flag::switch("quiet,q", "print only the plugin ids"),
        Flag::switch("detailed,d", "print everything about each plugin"),
    ],
    |call| Box::pin(list(call)),
)];

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
                // A plugin that has nothing to do here says so.
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
