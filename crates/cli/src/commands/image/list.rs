//! `images` and `image ls`: images as a table, or as trees of platforms.

use api::engine::ImageCall;
use clap::Args;
use client::Client;
use serde_json::Value;
use types::Result;

use crate::commands::list;
use crate::listing::Listing;
use crate::output::{self, rows, size, text};

#[derive(Args)]
pub(crate) struct Flags {
    /// Also images without a name
    #[arg(long, short)]
    all: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// dangling=true, label=KEY[=VALUE], before=IMAGE, since=IMAGE, reference=PATTERN, until=TIME|AGE
    #[arg(long, short, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Show the platforms of each image, and whether they are present
    #[arg(long, conflicts_with_all = ["quiet", "digests", "format"])]
    tree: bool,
    #[command(flatten)]
    listing: Listing,
    /// Only matching names: NAME[:TAG], with * and ?
    pattern: Option<String>,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let Flags { all, digests, mut filter, tree, listing, pattern } = flags;
    filter.extend(pattern.map(|pattern| format!("reference={pattern}")));
    // As with Docker, any flag about the output selects the older table.
    let is_plain = listing.is_plain() && !digests && !tree;
    let question = ImageCall::List { filters: filter, all, tree, sizes: is_plain };
    let mut answer = client.call(&question.into()).await?;
    for row in answer.as_array_mut().into_iter().flatten() {
        show(row, &listing);
    }
    if tree {
        trees(list(&answer), &listing)?;
        return Ok(0);
    }
    let mut columns: Vec<output::Column> = if is_plain {
        vec![
            ("IMAGE", name),
            ("ID", |row| text(row, "ID")),
            ("DISK USAGE", |row| row["DiskBytes"].as_u64().map_or_else(|| "?".to_owned(), size)),
            ("CONTENT SIZE", |row| size(row["ContentBytes"].as_u64().unwrap_or(0))),
            ("EXTRA", |row| if row["InUse"] == true { "U".into() } else { String::new() }),
        ]
    } else {
        vec![("REPOSITORY", |row| text(row, "Repository")), ("TAG", |row| text(row, "Tag"))]
    };
    if digests {
        columns.push(("DIGEST", |row| text(row, "Digest")));
    }
    if !is_plain {
        columns.extend([
            ("IMAGE ID", (|row: &Value| text(row, "ID")) as fn(&Value) -> String),
            ("CREATED", |row| text(row, "CreatedSince")),
            ("SIZE", |row| text(row, "Size")),
        ]);
    }
    listing.print(list(&answer), &columns)?;
    Ok(0)
}

/// Adds the fields of Docker's templates to a row.
pub(crate) fn show(row: &mut Value, listing: &Listing) {
    row["CreatedSince"] =
        output::since(row, "CreatedAt").map_or_else(|| "N/A".into(), |age| format!("{age} ago")).into();
    row["CreatedAt"] = output::created_at(row).into();
    row["Size"] = size(row["SizeBytes"].as_u64().unwrap_or(0)).into();
    row["ID"] = listing.id(text(row, "ID")).into();
}

/// The name in Docker's table: `busybox:latest`.
fn name(row: &Value) -> String {
    match (text(row, "Repository"), text(row, "Tag")) {
        (repository, _) if repository == "<none>" => "<untagged>".into(),
        (repository, tag) if tag == "<none>" => format!("{repository}@{}", text(row, "Digest")),
        (repository, tag) => format!("{repository}:{tag}"),
    }
}

/// Prints a line for each image, and below it one for each of its manifests.
fn trees(images: &[Value], listing: &Listing) -> Result<()> {
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
            lines.push(serde_json::json!({
                "Name": format!("{branch} {what}"),
                "ID": listing.id(text(platform, "Digest")),
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
