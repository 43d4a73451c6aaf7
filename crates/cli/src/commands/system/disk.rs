//! `system df`: shows disk usage, by kind or for each object.

use api::engine::Call;
use clap::Args;
use client::Client;
use serde_json::{Value, json};
use types::Result;

use crate::commands::{container, image, list};
use crate::listing::Listing;
use crate::output::{self, rows, size, text};
use crate::template;

#[derive(Args)]
pub(crate) struct Flags {
    /// Show each image, container and volume
    #[arg(long, short)]
    verbose: bool,
    /// `json`, `table TEMPLATE`, or a template; with -v of one document with Images, Containers and Volumes
    #[arg(long)]
    format: Option<String>,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let format = flags.format.as_deref();
    let answer = client.call(&Call::DiskUsage { verbose: flags.verbose }).await?;
    if flags.verbose {
        each(answer, format)?;
    } else {
        kinds(answer, format)?;
    }
    Ok(0)
}

fn kinds(mut answer: Value, format: Option<&str>) -> Result<()> {
    for row in answer.as_array_mut().into_iter().flatten() {
        let number = |key: &str| row[key].as_u64().unwrap_or(0);
        let (bytes, reclaimable) = (number("SizeBytes"), number("ReclaimableBytes"));
        // A share of zero bytes is undefined.
        let share = (reclaimable * 100).checked_div(bytes).map(|share| format!(" ({share}%)"));
        row["Size"] = size(bytes).into();
        row["Reclaimable"] = format!("{}{}", size(reclaimable), share.unwrap_or_default()).into();
    }
    let columns: &[output::Column] = &[
        ("TYPE", |row| text(row, "Type")),
        ("TOTAL", |row| text(row, "TotalCount")),
        ("ACTIVE", |row| text(row, "Active")),
        ("SIZE", |row| text(row, "Size")),
        ("RECLAIMABLE", |row| text(row, "Reclaimable")),
    ];
    rows(list(&answer), columns, format)?;
    // Bytes that recipes replace: blobs that are made again on demand.
    let saved: u64 = list(&answer).iter().filter_map(|row| row["SavedBytes"].as_u64()).sum();
    if format.is_none_or(str::is_empty) && saved > 0 {
        println!("\nRecipes save {}", size(saved));
    }
    Ok(())
}

const IMAGES: &[output::Column] = &[
    ("REPOSITORY", |row| text(row, "Repository")),
    ("TAG", |row| text(row, "Tag")),
    ("IMAGE ID", |row| text(row, "ID")),
    ("CREATED", |row| text(row, "CreatedSince")),
    ("SIZE", |row| text(row, "Size")),
    ("SHARED SIZE", |row| text(row, "SharedSize")),
    ("UNIQUE SIZE", |row| text(row, "UniqueSize")),
    ("CONTAINERS", |row| text(row, "Containers")),
];

const CONTAINERS: &[output::Column] = &[
    ("CONTAINER ID", |row| text(row, "ID")),
    ("IMAGE", |row| text(row, "Image")),
    ("COMMAND", |row| text(row, "Command")),
    ("LOCAL VOLUMES", |row| text(row, "LocalVolumes")),
    ("SIZE", |row| text(row, "Size")),
    ("CREATED", |row| text(row, "RunningFor")),
    ("STATUS", |row| text(row, "Status")),
    ("NAMES", |row| text(row, "Names")),
];

const VOLUMES: &[output::Column] = &[
    ("VOLUME NAME", |row| text(row, "Name")),
    ("LINKS", |row| text(row, "Links")),
    ("SIZE", |row| text(row, "Size")),
];

fn each(mut answer: Value, format: Option<&str>) -> Result<()> {
    let listing = Listing::default();
    let bytes = |row: &Value, key: &str| Value::from(size(row[key].as_u64().unwrap_or(0)));
    for row in answer["Images"].as_array_mut().into_iter().flatten() {
        image::show(row, &listing);
        row["Size"] = bytes(row, "DiskBytes");
        row["SharedSize"] = bytes(row, "SharedBytes");
        row["UniqueSize"] = bytes(row, "UniqueBytes");
        row["Containers"] = text(row, "Containers").into();
    }
    for row in answer["Containers"].as_array_mut().into_iter().flatten() {
        container::show(row, &listing);
        // The image's size is shown with the image.
        row["Size"] = bytes(row, "SizeRw");
    }
    for row in answer["Volumes"].as_array_mut().into_iter().flatten() {
        row["Size"] = bytes(row, "SizeBytes");
        row["Links"] = text(row, "Links").into();
    }
    // Hoist builds no images.
    answer["BuildCache"] = json!([]);
    match format {
        None | Some("" | "table") => {
            for (title, of, columns) in [
                ("Images", "Images", IMAGES),
                ("\nContainers", "Containers", CONTAINERS),
                ("\nLocal Volumes", "Volumes", VOLUMES),
            ] {
                println!("{title} space usage:\n");
                rows(list(&answer[of]), columns, None)?;
            }
        }
        Some("json") => println!("{answer}"),
        Some(format) => println!("{}", template::render(format, &answer)?),
    }
    Ok(())
}
