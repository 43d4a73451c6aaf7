//! `image ls-files`: lists the files of an image without a container.

use std::io::{BufWriter, Write};

use api::engine::{Follow, ImageFollow, ImageStep};
use clap::Args;
use client::Client;
use serde_json::Value;
use types::{Context, Error, Result};

use crate::output::{printable, size, text};
use crate::template;

#[derive(Args)]
pub(crate) struct Flags {
    /// `json`, or a template
    #[arg(long)]
    format: Option<String>,
    /// Sizes in bytes
    #[arg(long, short)]
    bytes: bool,
    /// Only files of this layer, counted from 0, the lowest
    #[arg(long)]
    layer: Option<u64>,
    /// Name or id
    image: String,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let follow = Follow::Image(ImageFollow::Files { name: flags.image.clone() });
    let mut answers = client.follow(&follow).await?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut headed = flags.format.as_deref().is_some_and(|format| !format.is_empty());
    while let Some(step) = answers.next::<ImageStep>().await? {
        match step {
            ImageStep::Rows { rows } => {
                let wanted = |row: &&Value| flags.layer.is_none_or(|layer| row["Layer"] == layer);
                for row in rows.iter().filter(wanted) {
                    if !std::mem::replace(&mut headed, true) {
                        writeln!(out, "{}", line("MODE", "UID:GID", "SIZE", "LAYER", "PATH"))
                            .context(|| "print")?;
                    }
                    let line = shown(row, &flags)?;
                    // The reader, such as a pager, has ended.
                    if writeln!(out, "{line}").is_err() {
                        return Ok(0);
                    }
                }
            }
            ImageStep::Done { .. } => return out.flush().context(|| "print").map(|()| 0),
            ImageStep::Progress { .. } => {}
        }
    }
    Err(Error::unavailable("the daemon stopped in the middle of the list"))
}

fn shown(row: &Value, flags: &Flags) -> Result<String> {
    match flags.format.as_deref().filter(|format| !format.is_empty()) {
        Some("json") => return Ok(row.to_string()),
        Some(format) => return template::render(format, row),
        None => {}
    }
    let bytes = row["Size"].as_u64().unwrap_or(0);
    let bytes = if flags.bytes { bytes.to_string() } else { size(bytes) };
    let target = row["Target"].as_str().map(|target| format!(" -> {target}")).unwrap_or_default();
    let owner = format!("{}:{}", text(row, "Uid"), text(row, "Gid"));
    let path = format!("{}{target}", text(row, "Path"));
    Ok(line(&text(row, "Mode"), &owner, &bytes, &text(row, "Layer"), &printable(&path)))
}

/// A line with columns of fixed width, as rows are printed when they arrive.
fn line(mode: &str, owner: &str, bytes: &str, layer: &str, path: &str) -> String {
    format!("{mode:<10}   {owner:<11}   {bytes:>10}   {layer:>5}   {path}")
}
