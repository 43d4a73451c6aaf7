//! `ps`: containers as a table.

use api::engine::Call;
use clap::Args;
use client::Client;
use serde_json::Value;
use types::Result;

use crate::commands::list;
use crate::listing::Listing;
use crate::output::{self, status, text};

/// The number of letters of a command and of a mount that a table shows.
const COMMAND_LEN: usize = 20;
const MOUNT_LEN: usize = 15;

#[derive(Args)]
pub(crate) struct Flags {
    /// Also containers that do not run
    #[arg(long, short)]
    all: bool,
    /// name, id (patterns), label=KEY[=VALUE], status, health, exited=CODE, ancestor=IMAGE, volume, network, publish=PORT,
    /// expose=PORT, before=CONTAINER, since=CONTAINER
    #[arg(long, short, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Only this many of the newest containers, running or not
    #[arg(long, short = 'n', allow_negative_numbers = true, value_name = "COUNT")]
    last: Option<i64>,
    /// Only the newest container
    #[arg(long, short, conflicts_with = "last")]
    latest: bool,
    /// Show disk usage: what the container wrote, and with its image
    #[arg(long, short)]
    size: bool,
    #[command(flatten)]
    listing: Listing,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let Flags { all, filter, last, latest, size, listing } = flags;
    let sizes = size || listing.asks_for("Size");
    // Docker's default is -1, which means all.
    let last = if latest { Some(1) } else { last.and_then(|last| u64::try_from(last).ok()) };
    let mut answer = client.call(&Call::List { all, filters: filter, last, sizes }).await?;
    for row in answer.as_array_mut().into_iter().flatten() {
        show(row, &listing);
    }
    let mut columns: Vec<output::Column> = vec![
        ("CONTAINER ID", |row| text(row, "ID")),
        ("IMAGE", |row| text(row, "Image")),
        ("COMMAND", |row| text(row, "Command")),
        ("CREATED", |row| text(row, "RunningFor")),
        ("STATUS", |row| text(row, "Status")),
        ("PORTS", |row| text(row, "Ports")),
        ("NAMES", |row| text(row, "Names")),
    ];
    if size {
        columns.push(("SIZE", |row| text(row, "Size")));
    }
    listing.print(list(&answer), &columns)?;
    Ok(0)
}

/// Adds the fields of Docker's templates to a row.
pub(crate) fn show(row: &mut Value, listing: &Listing) {
    row["Status"] = status(row).into();
    row["RunningFor"] = format!("{} ago", output::since(row, "CreatedAt").unwrap_or_default()).into();
    row["CreatedAt"] = output::created_at(row).into();
    row["LocalVolumes"] = text(row, "LocalVolumes").into();
    row["ID"] = listing.id(text(row, "ID")).into();
    row["Command"] = output::quoted(&listing.cut(text(row, "Command"), COMMAND_LEN)).into();
    output::show_labels(row);
    let mounts: Vec<String> = list(&row["Mounts"])
        .iter()
        .map(|mount| listing.cut(mount.as_str().unwrap_or_default().to_owned(), MOUNT_LEN))
        .collect();
    row["Mounts"] = mounts.join(",").into();
    // Docker shows a size of 0 unless sizes are requested.
    row["Size"] = match (row["SizeRw"].as_u64(), row["SizeRootFs"].as_u64()) {
        (Some(own), Some(all)) => format!("{} (virtual {})", output::size(own), output::size(all)),
        _ => output::size(0),
    }
    .into();
}
