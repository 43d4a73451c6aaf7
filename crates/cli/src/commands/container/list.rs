//! `ps`: containers as a table.

use api::engine::Call;
use clap::Args;
use client::Client;
use types::Result;

use crate::commands::list;
use crate::output::{self, rows, short, status, text};

#[derive(Args)]
pub(crate) struct Flags {
    /// Those that do not run too
    #[arg(long, short)]
    all: bool,
    /// Ids only
    #[arg(long, short)]
    quiet: bool,
    #[arg(long)]
    no_trunc: bool,
    /// `json`, `table TEMPLATE`, or a template
    #[arg(long)]
    format: Option<String>,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let Flags { all, quiet, no_trunc, format } = flags;
    let mut answer = client.call(&Call::List { all }).await?;
    for row in answer.as_array_mut().into_iter().flatten() {
        row["Status"] = status(row).into();
        row["RunningFor"] = format!("{} ago", output::since(row, "CreatedAt").unwrap_or_default()).into();
        if !no_trunc {
            row["ID"] = short(&text(row, "ID")).into();
            let command = text(row, "Command");
            let cut: String = command.chars().take(19).collect();
            row["Command"] =
                if cut == command { format!("\"{command}\"") } else { format!("\"{cut}…\"") }.into();
        }
    }
    if quiet {
        list(&answer).iter().for_each(|row| println!("{}", text(row, "ID")));
        return Ok(0);
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
    rows(list(&answer), columns, format.as_deref())?;
    Ok(0)
}
