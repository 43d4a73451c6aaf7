//! `image verify`: checks stored content against its digests, and repairs it.

use std::collections::BTreeSet;

use api::engine::{Follow, ImageCall, ImageFollow, Keyring};
use clap::Args;
use client::Client;
use serde_json::Value;
use types::{Reference, Result};

use super::long;
use crate::commands::list;
use crate::credentials;
use crate::output::{self, rows, size, text};

#[derive(Args)]
pub(crate) struct Flags {
    /// Show all content, not only what is or was corrupt
    #[arg(long, short)]
    all: bool,
    /// Without a progress bar
    #[arg(long, short)]
    quiet: bool,
    /// `json`, `table TEMPLATE`, or a template
    #[arg(long)]
    format: Option<String>,
    /// Names or ids [default: all images]
    images: Vec<String>,
}

/// Exits with 1 if corrupt content could not be repaired.
pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let Flags { all, quiet, format, images } = flags;
    let credentials = keyring(client, &images).await?;
    let follow = Follow::Image(ImageFollow::Verify { names: images, credentials });
    let (answer, mut found) = long::follow(client, &follow, quiet).await?;
    found.retain(|row| all || (row["State"] != "good" && row["State"] != "not seen"));
    let columns: &[output::Column] = &[
        ("IMAGE", |row| text(row, "Image")),
        ("WHAT", |row| text(row, "What")),
        ("DIGEST", |row| text(row, "Digest")),
        ("SIZE", |row| size(row["Size"].as_u64().unwrap_or(0))),
        ("STATE", |row| text(row, "State")),
        ("DETAIL", |row| text(row, "Detail")),
    ];
    if !found.is_empty() || format.is_some() {
        rows(&found, columns, format.as_deref())?;
    }
    if format.is_none() {
        summary("blobs", &answer["Blobs"]);
        if answer["Layers"]["Count"] != 0 {
            summary("unpacked layers", &answer["Layers"]);
        }
    }
    Ok(u8::from(answer["Blobs"]["Broken"] != 0 || answer["Layers"]["Broken"] != 0))
}

fn summary(what: &str, of: &Value) {
    let count = |key: &str| of[key].as_u64().unwrap_or(0);
    let (mended, broken, unseen) = (count("Mended"), count("Broken"), count("Unseen"));
    let all = count("Count") - unseen;
    if all > 0 {
        let good = all - mended - broken;
        println!("{all} {what} of {}: {good} good, {mended} mended, {broken} broken", size(count("Bytes")));
    }
    if unseen > 0 {
        println!("{unseen} {what} are directories: their files were counted, nothing says what is in them");
    }
}

/// The credentials for the registries of these images, or of all images.
async fn keyring(client: &Client, images: &[String]) -> Result<Keyring> {
    let all = || async {
        let question = ImageCall::List { filters: Vec::new(), all: false, tree: false, sizes: false };
        let rows = client.call(&question.into()).await?;
        Ok(list(&rows).iter().map(|row| text(row, "Repository")).collect())
    };
    let names: Vec<String> = if images.is_empty() { all().await? } else { images.to_vec() };
    let (mut keyring, mut known) = (Keyring::new(), BTreeSet::new());
    for name in names {
        // An id names no registry.
        let Ok(reference) = name.parse::<Reference>() else { continue };
        if known.insert(reference.host().to_owned()) {
            keyring.extend(credentials::for_pull(client, &reference).await?.keyring);
        }
    }
    Ok(keyring)
}
