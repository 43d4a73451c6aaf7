//! `diff` and `image diff`: the files that differ between two images, or between a container and its image.

use api::engine::{ChangedPath, Changes, Follow};
use clap::Args;
use client::Client;
use serde_json::Value;
use types::Result;

use crate::output::{self, printable, size, text};

#[derive(Args)]
pub(crate) struct OfContainer {
    /// `json`, `table TEMPLATE`, or a template
    #[arg(long)]
    format: Option<String>,
    /// Name or id
    container: String,
}

#[derive(Args)]
pub(crate) struct OfImages {
    /// `json`, `table TEMPLATE`, or a template
    #[arg(long)]
    format: Option<String>,
    /// Name or id
    from: String,
    /// Name or id
    to: String,
}

/// Prints `A`, `C` or `D` and a path on each line, as Docker does.
pub(super) async fn of_container(client: &Client, flags: OfContainer) -> Result<u8> {
    let rows = collect(client, Changes::Container { id: flags.container }).await?;
    match flags.format.filter(|format| !format.is_empty()) {
        None => {
            let line = |row| println!("{} {}", text(row, "Kind"), printable(&text(row, "Path")));
            rows.iter().for_each(line);
        }
        Some(format) => output::rows(&rows, &[], Some(&format))?,
    }
    Ok(0)
}

pub(super) async fn of_images(client: &Client, flags: OfImages) -> Result<u8> {
    let rows = collect(client, Changes::Images { from: flags.from, to: flags.to }).await?;
    let columns: &[output::Column] = &[
        ("CHANGE", |row| {
            let word = match row["Kind"].as_str() {
                Some("A") => "added",
                Some("D") => "removed",
                _ => "changed",
            };
            word.to_owned()
        }),
        ("BEFORE", |row| row["SizeBefore"].as_u64().map(size).unwrap_or_default()),
        ("SIZE", |row| row["Size"].as_u64().map(size).unwrap_or_default()),
        ("PATH", |row| text(row, "Path")),
    ];
    output::rows(&rows, columns, flags.format.as_deref())?;
    Ok(0)
}

/// All changes, sorted by path.
async fn collect(client: &Client, of: Changes) -> Result<Vec<Value>> {
    let mut answers = client.follow(&Follow::Changes(of)).await?;
    let mut changes: Vec<ChangedPath> = Vec::new();
    while let Some(change) = answers.next().await? {
        changes.push(change);
    }
    changes.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(changes.iter().map(|change| serde_json::to_value(change).expect("plain data")).collect())
}
