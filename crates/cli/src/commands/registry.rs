//! Registries: what comes from them and goes to them, and who we are there.

mod explain;
mod login;
pub(super) mod logout;
pub(crate) mod pull;
pub(crate) mod push;

use clap::Subcommand;
use client::Client;
use types::Result;

#[derive(Subcommand)]
#[command(defer = true)]
pub(crate) enum Command {
    /// Fetch an image
    Pull(pull::Flags),
    /// Send an image to its registry
    Push(push::Flags),
    /// Log in to a registry
    Login(login::Flags),
    /// Log out from a registry
    Logout(logout::Flags),
    /// Look into how registries are reached
    #[command(subcommand)]
    Registry(Registry),
}

#[derive(Subcommand)]
#[command(defer = true)]
pub(crate) enum Registry {
    /// Show whom a pull would ask, as whom, and what each says
    Explain(explain::Flags),
}

pub(super) async fn run(client: &Client, command: Command) -> Result<u8> {
    match command {
        Command::Pull(flags) => pull::run(client, flags).await,
        Command::Push(flags) => push::run(client, flags).await,
        Command::Login(flags) => login::run(client, flags).await,
        Command::Logout(flags) => logout::run(flags).await,
        Command::Registry(Registry::Explain(flags)) => explain::run(client, flags).await,
    }
}
