//! `image prune`: removes unused images.

use api::engine::ImageCall;
use clap::Args;
use client::Client;
use types::Result;

use super::remove;
use crate::commands::confirm;
use crate::output::size;

#[derive(Args)]
pub(crate) struct Flags {
    /// Also images with names, if no container was made from them
    #[arg(long, short)]
    all: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    force: bool,
    /// until=TIME|AGE, label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let Flags { all, force, filter } = flags;
    let what = if all { "every image that no container was made from" } else { "every image without a name" };
    let of_them = if filter.is_empty() { String::new() } else { format!(" that fits {}", filter.join(", ")) };
    if !force && !confirm(&format!("This removes {what}{of_them}."))? {
        return Ok(1);
    }
    let removed = client.call(&ImageCall::Prune { all, filters: filter }.into()).await?;
    remove::print(&removed);
    println!("Total reclaimed space: {}", size(removed["SpaceReclaimed"].as_u64().unwrap_or(0)));
    Ok(0)
}
