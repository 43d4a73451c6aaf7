//! `hoist registry explain`: shows the hosts that a pull would ask, the credentials, and each host's answer.

use api::engine::{Call, RegistryCall};
use clap::Args;
use client::Client;
use serde_json::{Value, json};
use types::{Reference, Result};

use crate::credentials;
use crate::output::{Column, rows, text};

#[derive(Args)]
pub(crate) struct Flags {
    /// `json`, `table TEMPLATE`, or a template
    #[arg(long)]
    format: Option<String>,
    /// The image's name
    image: String,
}

const COLUMNS: &[Column] = &[
    ("ORDER", |row| text(row, "Order")),
    ("HOST", |row| text(row, "Address")),
    ("ROLE", |row| text(row, "Role")),
    ("FOR", |row| list(row, "Capabilities")),
    ("TLS", |row| text(row, "Tls")),
    ("AUTH", |row| text(row, "Auth")),
    ("CREDENTIALS", |row| or(text(row, "CredentialsFrom"), "none")),
    ("CONFIGURED BY", |row| or(text(row, "ConfiguredBy"), "default")),
    ("ANSWER", answer),
];

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let reference: Reference = flags.image.parse()?;
    let found = credentials::for_pull(client, &reference).await?;
    let question = RegistryCall::Explain { reference: flags.image, credentials: found.keyring };
    let mut answer = client.call(&Call::Registry(question)).await?;
    let hosts = answer.as_array_mut().map(std::mem::take).unwrap_or_default();
    let complete = |(at, mut row): (usize, Value)| {
        row["Order"] = json!(at + 1);
        row["CredentialsFrom"] = json!(found.origins.get(at).cloned().flatten());
        row
    };
    let hosts: Vec<Value> = hosts.into_iter().enumerate().map(complete).collect();
    rows(&hosts, COLUMNS, flags.format.as_deref())?;
    // A pull succeeds if one host has the image.
    let has_it = hosts.iter().any(|row| row["Error"].is_null());
    Ok(u8::from(!has_it))
}

fn answer(row: &Value) -> String {
    let said = match row["Error"].as_str() {
        Some(error) => error.to_owned(),
        None => {
            let digest = or(text(row, "Digest"), "");
            format!("{} {} {digest}", text(row, "Protocol"), text(row, "Status")).trim_end().to_owned()
        }
    };
    let rest = if row["Resting"] == true { "asked last, for it failed; " } else { "" };
    let proxy = row["Proxy"].as_str().map(|proxy| format!("through {proxy}; ")).unwrap_or_default();
    format!("{rest}{proxy}{said}")
}

fn list(row: &Value, key: &str) -> String {
    let items = row[key].as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
}

fn or(text: String, other: &str) -> String {
    if text.is_empty() { other.to_owned() } else { text }
}
