//! `export`: writes a container's files as a tar archive.

use std::path::PathBuf;

use api::engine::{Copy, Follow};
use clap::Args;
use client::Client;
use serde_json::Value;
use types::{Error, Result};

use crate::commands::image::receive;

#[derive(Args)]
pub(crate) struct Flags {
    /// Write to a file instead of standard output
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Name or id
    container: String,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let Flags { output, container: id } = flags;
    if let Some(path) = output.as_ref().filter(|path| path.is_dir() || path.as_os_str().is_empty()) {
        return Err(Error::invalid_argument(format!("-o {}: expected a file", path.display())));
    }
    let ask = async |pipe| {
        let mut answers = client.follow(&Follow::Copy(Copy::Export { id, pipe })).await?;
        let done = answers.next::<Value>().await?;
        done.map(drop).ok_or_else(|| Error::unavailable("the daemon stopped in the middle of the archive"))
    };
    receive(client, "Exporting", output, ask).await
}
