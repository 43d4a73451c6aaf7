//! Images: the noun `image`, and Docker's top-level commands for images.

mod archive;
mod convert;
mod files;
mod history;
mod list;
pub(crate) mod long;
mod mount;
mod prune;
mod referrers;
mod remove;
pub(super) use self::archive::receive;
pub(super) use self::remove::print as print_removed;
mod verify;

pub(super) use self::list::show;

use api::engine::ImageCall;
use clap::{Args, Subcommand};
use client::Client;
use types::Result;

use super::absent;
use crate::interrupt::unless_interrupted;

/// Why `--platform` is refused when an image is shown.
pub(super) const SHOWN_AS_IT_IS_HERE: &str = "an image is shown for this machine's platform, or for one that is here; \
                                              `hoist images --tree` shows all of them";

/// The commands that also exist at the top level.
#[derive(Subcommand)]
#[command(defer = true)]
pub(crate) enum Command {
    /// List images; U marks images that containers use
    Images(list::Flags),
    /// Give an image another name
    Tag(Tag),
    /// Remove images
    Rmi(remove::Flags),
    /// Load images from an archive: an OCI layout, or what `docker save` writes
    Load(archive::Load),
    /// Make an image of one layer from a tar of a root file system
    Import(archive::Import),
    /// Save images to an archive: an OCI layout that `docker load` reads too
    Save(archive::Save),
    /// Show the build steps of an image
    History(history::Flags),
    /// Images
    #[command(subcommand)]
    Image(Noun),
}

#[derive(Subcommand)]
#[command(defer = true)]
pub(crate) enum Noun {
    /// List images; U marks images that containers use
    #[command(alias = "list")]
    Ls(list::Flags),
    /// Give an image another name
    Tag(Tag),
    /// Remove images
    #[command(alias = "remove")]
    Rm(remove::Flags),
    /// Load images from an archive: an OCI layout, or what `docker save` writes
    Load(archive::Load),
    /// Make an image of one layer from a tar of a root file system
    Import(archive::Import),
    /// Save images to an archive: an OCI layout that `docker load` reads too
    Save(archive::Save),
    /// Fetch an image
    Pull(super::registry::pull::Flags),
    /// Send an image to its registry
    Push(super::registry::push::Flags),
    /// Show what refers to an image in its registry
    Referrers(referrers::Flags),
    /// Show the build steps of an image
    History(history::Flags),
    /// List the files of an image, without a container
    LsFiles(files::Flags),
    /// Mount an image read-only, or list what is mounted
    Mount(mount::Mount),
    /// Unmount images, by path
    #[command(alias = "umount")]
    Unmount(mount::Unmount),
    /// Make an image with another compression, format or set of platforms
    Convert(convert::Flags),
    /// Check stored content against its digests, and fetch corrupt content again
    Verify(verify::Flags),
    /// Remove unused images
    Prune(prune::Flags),
    /// Show everything about images
    Inspect(super::inspect::ImageFlags),
    /// Show which files differ between two images
    Diff(super::changes::OfImages),
    #[command(hide = true, about = absent::BUILD)]
    Build(absent::Words),
}

#[derive(Args)]
pub(crate) struct Tag {
    /// Name or id
    source: String,
    /// NAME[:TAG]
    target: String,
}

pub(super) async fn run(client: &Client, command: Command) -> Result<u8> {
    let noun = match command {
        Command::Images(flags) => Noun::Ls(flags),
        Command::Tag(flags) => Noun::Tag(flags),
        Command::Rmi(flags) => Noun::Rm(flags),
        Command::Load(flags) => Noun::Load(flags),
        Command::Import(flags) => Noun::Import(flags),
        Command::Save(flags) => Noun::Save(flags),
        Command::History(flags) => Noun::History(flags),
        Command::Image(noun) => noun,
    };
    match noun {
        Noun::Ls(flags) => list::run(client, flags).await,
        Noun::Tag(Tag { source, target }) => {
            client.call(&ImageCall::Tag { source, target }.into()).await?;
            Ok(0)
        }
        Noun::Rm(flags) => remove::run(client, flags).await,
        Noun::History(flags) => history::run(client, flags).await,
        Noun::LsFiles(flags) => files::run(client, flags).await,
        Noun::Mount(flags) => mount::mount(client, flags).await,
        Noun::Unmount(flags) => mount::unmount(client, flags).await,
        Noun::Convert(flags) => convert::run(client, flags).await,
        Noun::Verify(flags) => verify::run(client, flags).await,
        Noun::Prune(flags) => prune::run(client, flags).await,
        Noun::Load(flags) => unless_interrupted(archive::load(client, flags)).await,
        Noun::Import(flags) => unless_interrupted(archive::import(client, flags)).await,
        Noun::Save(flags) => unless_interrupted(archive::save(client, flags)).await,
        Noun::Pull(flags) => super::registry::pull::run(client, flags).await,
        Noun::Push(flags) => super::registry::push::run(client, flags).await,
        Noun::Referrers(flags) => referrers::run(client, flags).await,
        Noun::Inspect(flags) => super::inspect::images(client, flags).await,
        Noun::Diff(flags) => super::changes::of_images(client, flags).await,
        // `absent::refusal` has refused it before.
        Noun::Build(_) => Ok(0),
    }
}
