//! `hoist logout`: removes the credentials that `hoist login` or `docker login` stored.

use clap::Args;
use registry::DockerConfig;
use types::Result;

use crate::credentials;

#[derive(Args)]
pub(crate) struct Flags {
    /// The registry's host [default: Docker Hub]
    server: Option<String>,
}

pub(in crate::commands) async fn run(flags: Flags) -> Result<u8> {
    let registry = credentials::registry_name(flags.server.as_deref())?;
    let mut config = DockerConfig::read(&credentials::docker_file()?)?;
    if config.erase(&registry).await? {
        println!("Removing login credentials for {registry}");
    } else {
        println!("Not logged in to {registry}");
    }
    Ok(0)
}
