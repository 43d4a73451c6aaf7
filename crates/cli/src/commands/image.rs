//! Images: the noun `image`, and Docker's plain commands for the same.

mod archive;
mod list;

use api::engine::ImageCall;
use clap::{Args, Subcommand};
use client::Client;
use types::Result;

use super::each;

/// The commands that have a place of their own beside `image`.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// List images
    Images(list::Flags),
    /// Give an image another name
    Tag(Tag),
    /// Remove images
    Rmi(Remove),
    /// Load images from an archive: an OCI layout, or what `docker save` writes
    Load(archive::Load),
    /// Make an image of one layer from a tar of a root file system
    Import(archive::Import),
    /// Save images to an archive: an OCI layout that `docker load` reads too
    Save(archive::Save),
    /// Images
    #[command(subcommand)]
    Image(Noun),
}

#[derive(Subcommand)]
pub(crate) enum Noun {
    /// List images
    #[command(alias = "list")]
    Ls(list::Flags),
    /// Give an image another name
    Tag(Tag),
    /// Remove images
    #[command(alias = "remove")]
    Rm(Remove),
    /// Load images from an archive: an OCI layout, or what `docker save` writes
    Load(archive::Load),
    /// Make an image of one layer from a tar of a root file system
    Import(archive::Import),
    /// Save images to an archive: an OCI layout that `docker load` reads too
    Save(archive::Save),
    /// Fetch an image
    Pull(super::registry::pull::Flags),
    /// Show everything about images
    Inspect(super::inspect::Flags),
}

#[derive(Args)]
pub(crate) struct Tag {
    /// Name or id
    source: String,
    /// NAME[:TAG]
    target: String,
}

#[derive(Args)]
pub(crate) struct Remove {
    #[arg(long, short)]
    force: bool,
    #[arg(required = true)]
    images: Vec<String>,
}

pub(super) async fn run(client: &Client, command: Command) -> Result<u8> {
    let noun = match command {
        Command::Images(flags) => Noun::Ls(flags),
        Command::Tag(flags) => Noun::Tag(flags),
        Command::Rmi(flags) => Noun::Rm(flags),
        Command::Load(flags) => Noun::Load(flags),
        Command::Import(flags) => Noun::Import(flags),
        Command::Save(flags) => Noun::Save(flags),
        Command::Image(noun) => noun,
    };
    match noun {
        Noun::Ls(flags) => list::run(client, flags).await,
        Noun::Tag(Tag { source, target }) => {
            client.call(&ImageCall::Tag { source, target }.into()).await?;
            Ok(0)
        }
        Noun::Rm(Remove { force, images }) => {
            let remove = async |name| client.call(&ImageCall::Remove { name, force }.into()).await;
            each(&images, remove).await
        }
        Noun::Load(flags) => archive::load(client, flags).await,
        Noun::Import(flags) => archive::import(client, flags).await,
        Noun::Save(flags) => archive::save(client, flags).await,
        Noun::Pull(flags) => super::registry::pull::run(client, flags).await,
        Noun::Inspect(flags) => super::inspect::images(client, flags).await,
    }
}
