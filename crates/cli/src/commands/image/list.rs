//! `images` and `image ls`: images as a table, or as trees of platforms.

use api::engine::ImageCall;
use clap::Args;
use client::Client;
use serde_json::Value;
use types::Result;

use crate::commands::list;
use crate::output::{self, rows, short, size, text};

#[derive(Args)]
pub(crate) struct Flags {
    /// Those without a name too
    #[arg(long, short)]
    all: bool,
    /// Ids only
    #[arg(long, short)]
    quiet: bool,
    #[arg(long)]
    digests: bool,
    #[arg(long)]
    no_trunc: bool,
    /// dangling=true, label=KEY[=VALUE], before=IMAGE, since=IMAGE, reference=PATTERN, until=TIME|AGE
    #[arg(long, short)]
    filter: Vec<String>,
    /// The platforms of each image, and which of them are here
    #[arg(long, conflicts_with_all = ["quiet", "digests", "format"])]
    tree: bool,
    /// `json`, `table TEMPLATE`, or a template
    #[arg(long)]
    format: Option<String>,
    /// Those whose names fit: NAME[:TAG], with * and ?
    pattern: Option<String>,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let Flags { all, quiet, digests, no_trunc, mut filter, tree, format, pattern } = flags;
    filter.extend(pattern.map(|pattern| format!("reference={pattern}")));
    let mut answer = client.call(&ImageCall::List { filters: filter, all, tree }.into()).await?;
    for row in answer.as_array_mut().into_iter().flatten() {
        row["CreatedSince"] =
            output::since(row, "CreatedAt").map_or_else(|| "N/A".into(), |age| format!("{age} ago")).into();
        row["Size"] = size(row["SizeBytes"].as_u64().unwrap_or(0)).into();
        if !no_trunc {
            row["ID"] = short(&text(row, "ID")).into();
        }
    }
    if quiet {
        let mut ids: Vec<String> = list(&answer).iter().map(|row| text(row, "ID")).collect();
        ids.dedup();
        ids.iter().for_each(|id| println!("{id}"));
        return Ok(0);
    }
    if tree {
        trees(list(&answer), no_trunc)?;
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

/// A line for each image, and below it one for each of its manifests.
fn trees(images: &[Value], no_trunc: bool) -> Result<()> {
    let mut lines: Vec<Value> = Vec::new();
    for image in images {
        let name = format!("{}:{}", text(image, "Repository"), text(image, "Tag"));
        lines.push(serde_json::json!({"Name": name, "ID": image["ID"], "Size": image["Size"], "State": ""}));
        let platforms = list(&image["Platforms"]);
        for (at, platform) in platforms.iter().enumerate() {
            let branch = if at + 1 == platforms.len() { "└─" } else { "├─" };
            let what = match platform["Kind"].as_str() {
                Some("attestation") => "attestation".to_owned(),
                Some("artifact") => format!("artifact {}", text(platform, "ArtifactType")),
                _ => platform["Platform"].as_str().unwrap_or("unknown platform").to_owned(),
            };
            let digest = text(platform, "Digest");
            lines.push(serde_json::json!({
                "Name": format!("{branch} {what}"),
                "ID": if no_trunc { digest } else { short(&digest) },
                "Size": platform["SizeBytes"].as_u64().filter(|bytes| *bytes > 0).map(size),
                "State": platform["State"],
            }));
        }
    }
    let columns: &[output::Column] = &[
        ("IMAGE", |row| text(row, "Name")),
        ("ID", |row| text(row, "ID")),
        ("SIZE", |row| text(row, "Size")),
        ("STATE", |row| text(row, "State")),
    ];
    rows(&lines, columns, None)
}
