//! Registries: what comes from them and goes to them, and who we are there.

pub(crate) mod pull;

use clap::Subcommand;
use client::Client;
use types::Result;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Fetch an image
    Pull(pull::Flags),
}

pub(super) async fn run(client: &Client, command: Command) -> Result<u8> {
    match command {
        Command::Pull(flags) => pull::run(client, flags).await,
    }
}
