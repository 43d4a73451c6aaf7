//! Registries: what comes from them and goes to them, and who we are there.

mod explain;
mod login;
pub(super) mod logout;
pub(crate) mod pull;
pub(crate) mod push;

use clap::{Args, Subcommand};
use client::Client;
use types::{Error, Reference, Result};

// A flag of Docker's that says what is so here: nobody looks for signatures of that kind, nor signs so. `[policy]` of the
// daemon does. A doc comment would become the help of each command that has it.
#[derive(Args)]
pub(crate) struct TrustFlag {
    #[arg(long = "disable-content-trust", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    _disable_content_trust: Option<bool>,
}

/// A repository as `--all-tags` wants it named: without a tag.
fn repository(name: &str) -> Result<Reference> {
    let reference: Reference = name.parse()?;
    // Where nobody gave a tag there is none behind the last name.
    if name.rsplit('/').next().is_some_and(|last| last.contains([':', '@'])) {
        return Err(Error::invalid_argument("tag can't be used with --all-tags/-a"));
    }
    Ok(reference)
}

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
