//! `ps`: containers as a table.

use api::engine::Call;
use clap::Args;
use client::Client;
use types::Result;

use crate::commands::list;
use crate::listing::Listing;
use crate::output::{self, status, text};

/// Letters of a command that a table has room for.
const COMMAND_LEN: usize = 20;

#[derive(Args)]
pub(crate) struct Flags {
    /// Those that do not run too
    #[arg(long, short)]
    all: bool,
    #[command(flatten)]
    listing: Listing,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let Flags { all, listing } = flags;
    let mut answer = client.call(&Call::List { all }).await?;
    for row in answer.as_array_mut().into_iter().flatten() {
        row["Status"] = status(row).into();
        row["RunningFor"] = format!("{} ago", output::since(row, "CreatedAt").unwrap_or_default()).into();
        row["ID"] = listing.id(text(row, "ID")).into();
        row["Command"] = format!("\"{}\"", listing.cut(text(row, "Command"), COMMAND_LEN)).into();
    }
    let columns: &[output::Column] = &[
        ("CONTAINER ID", |row| text(row, "ID")),
        ("IMAGE", |row| text(row, "Image")),
        ("COMMAND", |row| text(row, "Command")),
        ("CREATED", |row| text(row, "RunningFor")),
        ("STATUS", |row| text(row, "Status")),
        ("PORTS", |row| text(row, "Ports")),
        ("NAMES", |row| text(row, "Names")),
    ];
    listing.print(list(&answer), columns)?;
    Ok(0)
}
