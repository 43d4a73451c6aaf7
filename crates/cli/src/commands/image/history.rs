//! `history`: shows the build steps of an image.

use api::engine::ImageCall;
use clap::Args;
use client::Client;
use serde_json::Value;
use types::Result;

use super::SHOWN_AS_IT_IS_HERE;
use crate::commands::list;
use crate::listing::{Listing, MISSING};
use crate::output::{self, size, text};
use crate::parse::refused;

/// The number of letters of a command that a table shows.
const COMMAND_LEN: usize = 45;

#[derive(Args)]
pub(crate) struct Flags {
    /// Sizes and ages in words; `--human=false` for bytes and times
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    human: bool,
    #[arg(long = "platform", hide = true, value_parser = refused(SHOWN_AS_IT_IS_HERE))]
    _platform: Option<String>,
    #[command(flatten)]
    listing: Listing,
    /// Name or id
    image: String,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let mut answer = client.call(&ImageCall::History { name: flags.image.clone() }.into()).await?;
    for row in answer.as_array_mut().into_iter().flatten() {
        show(row, &flags);
    }
    let columns: &[output::Column] = &[
        ("IMAGE", |row| text(row, "ID")),
        ("CREATED", |row| text(row, "CreatedSince")),
        ("CREATED BY", |row| text(row, "CreatedBy")),
        ("SIZE", |row| text(row, "Size")),
        ("COMMENT", |row| text(row, "Comment")),
    ];
    flags.listing.print(list(&answer), columns)?;
    Ok(0)
}

/// Adds the fields of Docker's templates to a row.
fn show(row: &mut Value, flags: &Flags) {
    let age = output::since(row, "Created").map_or_else(|| "N/A".to_owned(), |age| format!("{age} ago"));
    let created = text(row, "Created");
    row["CreatedSince"] = if flags.human { age } else { created.clone() }.into();
    row["CreatedAt"] = created.into();
    if flags.human {
        row["Size"] = size(row["Size"].as_u64().unwrap_or(0)).into();
    }
    let id = text(row, "Id");
    row["ID"] = if id == MISSING { id } else { flags.listing.id(id) }.into();
    let command = text(row, "CreatedBy").replace(['\n', '\t'], " ");
    row["CreatedBy"] = flags.listing.cut(command, COMMAND_LEN).into();
}
