//! `images` and `image ls`: images as a table.

use api::engine::ImageCall;
use clap::Args;
use client::Client;
use serde_json::Value;
use types::Result;

use crate::commands::list;
use crate::output::{self, rows, short, size, text};

#[derive(Args)]
pub(crate) struct Flags {
    #[arg(long, short)]
    quiet: bool,
    #[arg(long)]
    digests: bool,
    #[arg(long)]
    no_trunc: bool,
    #[arg(long)]
    format: Option<String>,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let Flags { quiet, digests, no_trunc, format } = flags;
    let mut answer = client.call(&ImageCall::List.into()).await?;
    for row in answer.as_array_mut().into_iter().flatten() {
        row["CreatedSince"] =
            output::since(row, "CreatedAt").map_or_else(|| "N/A".into(), |age| format!("{age} ago")).into();
        row["Size"] = size(row["SizeBytes"].as_u64().unwrap_or(0)).into();
        if !no_trunc {
            row["ID"] = short(&text(row, "ID")).into();
        }
    }
    if quiet {
        list(&answer).iter().for_each(|row| println!("{}", text(row, "ID")));
        return Ok(0);
    }
    let mut columns: Vec<output::Column> =
        vec![("REPOSITORY", |row| text(row, "Repository")), ("TAG", |row| text(row, "Tag"))];
    if digests {
        columns.push(("DIGEST", |row| text(row, "Digest")));
    }
    columns.extend([
        ("IMAGE ID", (|row: &Value| text(row, "ID")) as fn(&Value) -> String),
        ("CREATED", |row| text(row, "CreatedSince")),
        ("SIZE", |row| text(row, "Size")),
    ]);
    rows(list(&answer), &columns, format.as_deref())?;
    Ok(0)
}
