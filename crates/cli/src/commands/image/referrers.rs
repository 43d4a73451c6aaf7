//! `image referrers`: shows the manifests in a registry that refer to an image.

use api::engine::ImageCall;
use clap::Args;
use client::Client;
use types::Result;

use crate::commands::list;
use crate::credentials;
use crate::output::{self, rows, size, text};

#[derive(Args)]
pub(crate) struct Flags {
    /// Only this artifact type
    #[arg(long)]
    artifact_type: Option<String>,
    /// `json`, `table TEMPLATE`, or a template
    #[arg(long)]
    format: Option<String>,
    /// The image's name in its registry
    image: String,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let Flags { artifact_type, format, image } = flags;
    let credentials = credentials::for_pull(client, &image.parse()?).await?.keyring;
    let call = ImageCall::Referrers { reference: image, artifact_type, credentials };
    let answer = client.call(&call.into()).await?;
    let columns: &[output::Column] = &[
        ("DIGEST", |row| text(row, "Digest")),
        ("ARTIFACT TYPE", |row| text(row, "ArtifactType")),
        ("SIZE", |row| size(row["Size"].as_u64().unwrap_or(0))),
    ];
    rows(list(&answer), columns, format.as_deref())?;
    Ok(0)
}
