//! `port`: shows where a container's ports are published.

use api::engine::Call;
use clap::Args;
use client::Client;
use serde_json::Value;
use types::{Error, Result};

use crate::commands::list;
use crate::output::text;

#[derive(Args)]
pub(crate) struct Flags {
    /// Name or id
    container: String,
    /// Only this port: PORT[/udp]
    port: Option<String>,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let answer = client.call(&Call::Inspect { id: flags.container.clone(), sizes: false }).await?;
    let ports = answer["NetworkSettings"]["Ports"].as_object().cloned().unwrap_or_default();
    let Some(wanted) = flags.port else {
        let mut lines: Vec<String> = ports
            .iter()
            .flat_map(|(inside, bindings)| {
                list(bindings).iter().map(move |binding| format!("{inside} -> {}", outside(binding)))
            })
            .collect();
        lines.sort_unstable();
        lines.iter().for_each(|line| println!("{line}"));
        return Ok(0);
    };
    let inside = if wanted.contains('/') { wanted.clone() } else { format!("{wanted}/tcp") };
    let (number, protocol) = inside.split_once('/').unwrap_or_default();
    if number.parse::<u16>().is_err() || !["tcp", "udp"].contains(&protocol) {
        return Err(Error::invalid_argument(format!("invalid port {wanted:?}: expected PORT[/udp]")));
    }
    let Some(bindings) = ports.get(&inside).filter(|bindings| !list(bindings).is_empty()) else {
        return Err(Error::not_found(format!("no public port '{inside}' published for {}", flags.container)));
    };
    list(bindings).iter().for_each(|binding| println!("{}", outside(binding)));
    Ok(0)
}

fn outside(binding: &Value) -> String {
    format!("{}:{}", text(binding, "HostIp"), text(binding, "HostPort"))
}
