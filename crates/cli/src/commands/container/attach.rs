//! `attach`: attaches to a running container, beside any other clients.

use std::io::IsTerminal;

use api::engine::Call;
use clap::Args;
use client::Client;
use serde_json::Value;
use types::{Error, Result};

use super::attend::{DetachFlags, Process, SignalFlags};
use crate::output::text;
use crate::streams;

#[derive(Args)]
pub(crate) struct Flags {
    /// Do not send standard input
    #[arg(long)]
    no_stdin: bool,
    #[command(flatten)]
    leaving: DetachFlags,
    #[command(flatten)]
    passing: SignalFlags,
    /// Name or id
    container: String,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let container = client.call(&Call::Inspect { id: flags.container, sizes: false }).await?;
    join(client, &container, !flags.no_stdin, flags.leaving, flags.passing).await
}

/// Attaches to a running container, which `inspect` describes, until it ends.
pub(super) async fn join(
    client: &Client,
    container: &Value,
    types: bool,
    leaving: DetachFlags,
    passing: SignalFlags,
) -> Result<u8> {
    let config = &container["Config"];
    let (id, tty) = (text(container, "Id"), config["Tty"] == true);
    let types = types && config["OpenStdin"] == true;
    if tty && types && !std::io::stdin().is_terminal() {
        return Err(Error::invalid_argument(
            "the input device is not a terminal; use --no-stdin to attach without input",
        ));
    }
    if tty && let Some((rows, columns)) = streams::size() {
        // A full-screen program redraws only when the terminal's size changes: set another size first, then ours.
        let (rows, columns) = (rows.saturating_add(1), columns.saturating_add(1));
        let _ = client.call(&Call::Resize { id: id.clone(), exec: None, rows, columns }).await;
    }
    let process = Process {
        container: &id,
        exec: None,
        tty,
        ends_input: config["StdinOnce"] == true && !tty,
        detach_keys: leaving.detach_keys,
        takes_signals: passing.sig_proxy && !tty,
    };
    process.begin(client, types, |streams| Call::Attach { id: id.clone(), streams }).await
}
