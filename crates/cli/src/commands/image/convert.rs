//! `image convert`: makes an image with another compression, format or set of platforms.

use api::engine::{Follow, ImageFollow};
use clap::{Args, ValueEnum};
use client::Client;
use types::Result;

use super::long;
use crate::output::text;

#[derive(Args)]
pub(crate) struct Flags {
    /// The compression of layers [default: unchanged]
    #[arg(long, value_enum)]
    compression: Option<Compression>,
    /// The format, which determines the media types [default: unchanged]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Only these platforms
    #[arg(long, value_delimiter = ',', conflicts_with = "all_platforms")]
    platform: Vec<String>,
    /// All platforms, which must be present
    #[arg(long)]
    all_platforms: bool,
    /// Without a progress bar
    #[arg(long, short)]
    quiet: bool,
    /// Name or id
    source: String,
    /// NAME[:TAG]
    target: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Oci,
    Docker,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let compression = flags.compression.map(|compression| match compression {
        Compression::None => "none",
        Compression::Gzip => "gzip",
        Compression::Zstd => "zstd",
    });
    let format = flags.format.map(|format| match format {
        Format::Oci => "oci",
        Format::Docker => "docker",
    });
    let follow = ImageFollow::Convert {
        namespace: None,
        source: flags.source,
        target: flags.target,
        compression: compression.map(str::to_owned),
        format: format.map(str::to_owned),
        platforms: flags.platform,
        all_platforms: flags.all_platforms,
    };
    let (answer, _) = long::follow(client, &Follow::Image(follow), flags.quiet).await?;
    println!("{}", text(&answer, "Digest"));
    Ok(0)
}
