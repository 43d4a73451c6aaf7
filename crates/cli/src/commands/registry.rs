//! Registries: pull, push and credentials.

mod explain;
mod login;
pub(super) mod logout;
pub(crate) mod pull;
pub(crate) mod push;

use clap::{Args, Subcommand};
use client::Client;
use types::{Error, Reference, Result};

// A flag of Docker's without effect here, as Hoist does not use that kind of signature; `[policy]` in the daemon's
// configuration checks others. No doc comment: clap would use it as the help of each command that has the group.
#[derive(Args)]
pub(crate) struct TrustFlag {
    #[arg(long = "disable-content-trust", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    _disable_content_trust: Option<bool>,
}

/// Parses a repository's name for `--all-tags`, which must have no tag.
fn repository(name: &str) -> Result<Reference> {
    let reference: Reference = name.parse()?;
    // The parser adds a default tag, so look for one in the text.
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
    /// Show the hosts that a pull would ask, the credentials, and each host's answer
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
