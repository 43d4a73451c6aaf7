//! The user's credentials for registries, from the files and helpers of the user's session.
//!
//! The daemon tells under which names credentials for the hosts that it would ask may be stored. The client looks up
//! only these, and sends only what it finds, for one call.

use std::collections::HashMap;
use std::env::var_os;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use api::engine::{Call, Keyring, RegistryCall};
use client::Client;
use registry::{Credentials, DockerConfig, Found};
use types::{Error, Reference, Result};

/// The directory of Docker's config.json, if the command line names one.
static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// Uses this directory instead of DOCKER_CONFIG, to look up logins and to store them. Only the first call has an
/// effect.
pub(crate) fn keep_in(folder: PathBuf) {
    let _ = FOLDER.set(folder);
}

/// Credentials for a pull, and where they were found.
#[derive(Default)]
pub(crate) struct ForPull {
    pub(crate) keyring: Keyring,
    /// For each host, in the daemon's order, where its credentials are stored.
    pub(crate) origins: Vec<Option<String>>,
}

/// The credentials for all hosts that the daemon may ask for an image.
pub(crate) async fn for_pull(client: &Client, reference: &Reference) -> Result<ForPull> {
    let configs = configs()?;
    let registry = reference.host().to_owned();
    let answer = client.call(&Call::Registry(RegistryCall::Logins { registry })).await?;
    let hosts: Vec<Vec<String>> = serde_json::from_value(answer)
        .map_err(|error| Error::internal("the daemon's list of hosts is malformed").with_source(error))?;
    let mut known: HashMap<&str, Option<String>> = HashMap::new();
    let mut found = ForPull::default();
    for names in &hosts {
        let mut origin = None;
        for name in names {
            if !known.contains_key(name.as_str()) {
                let credentials = find(&configs, name, reference.repository()).await?;
                known.insert(name, credentials.as_ref().map(|found| found.kept_in.to_string()));
                if let Some(credentials) = credentials {
                    found.keyring.insert(name.clone(), wire(credentials.credentials));
                }
            }
            origin = known[name.as_str()].clone();
            if origin.is_some() {
                break;
            }
        }
        found.origins.push(origin);
    }
    Ok(found)
}

/// The name of the registry that the user means: an address such as `https://HOST/v1/` is accepted for a name.
pub(crate) fn registry_name(server: Option<&str>) -> Result<String> {
    let Some(server) = server else { return Ok("docker.io".into()) };
    let bare = server.strip_prefix("https://").or_else(|| server.strip_prefix("http://")).unwrap_or(server);
    let host = bare.split('/').next().unwrap_or_default().to_ascii_lowercase();
    let host = match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    };
    // It is a registry's name if the parser takes it for the host of an image.
    match format!("{host}/x").parse::<Reference>() {
        Ok(reference) if reference.host() == host => Ok(host.to_owned()),
        _ => Err(Error::invalid_argument(format!(
            "{server:?} is not the name of a registry: expected a host such as registry.example or localhost:5000"
        ))),
    }
}

/// The path of Docker's config.json, where logins are stored.
pub(crate) fn docker_file() -> Result<PathBuf> {
    let named = || var_os("DOCKER_CONFIG").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let folder = FOLDER.get().cloned().or_else(named);
    let folder = folder.or_else(|| std::env::home_dir().map(|home| home.join(".docker")));
    let folder = folder.ok_or_else(|| {
        Error::failed_precondition("there is no home directory to keep logins in; set DOCKER_CONFIG")
    })?;
    Ok(folder.join("config.json"))
}

/// The sources of credentials: Docker's variable, Docker's file, podman's files. The first with an entry is used.
fn configs() -> Result<Vec<DockerConfig>> {
    let mut configs = Vec::new();
    if let Some(text) = std::env::var("DOCKER_AUTH_CONFIG").ok().filter(|text| !text.is_empty()) {
        configs.push(DockerConfig::parse(Path::new("DOCKER_AUTH_CONFIG"), text.as_bytes())?);
    }
    let docker = docker_file().ok();
    let podman = var_os("REGISTRY_AUTH_FILE").map(PathBuf::from);
    let session = var_os("XDG_RUNTIME_DIR").map(|dir| Path::new(&dir).join("containers/auth.json"));
    let home = std::env::home_dir().map(|home| home.join(".config/containers/auth.json"));
    for file in [docker, podman, session, home].into_iter().flatten() {
        configs.push(DockerConfig::read(&file)?);
    }
    Ok(configs)
}

async fn find(configs: &[DockerConfig], registry: &str, repository: &str) -> Result<Option<Found>> {
    for config in configs {
        if let Some(found) = config.find(registry, repository).await? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn wire(credentials: Credentials) -> api::engine::Credentials {
    let nobody = api::engine::Credentials::default();
    match credentials {
        Credentials::Password { user, password } => api::engine::Credentials { user, password, ..nobody },
        Credentials::IdentityToken(identity_token) => api::engine::Credentials { identity_token, ..nobody },
        Credentials::RegistryToken(registry_token) => api::engine::Credentials { registry_token, ..nobody },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_known_by_names_and_addresses() {
        for (server, name) in [
            ("docker.io", "docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("Registry.Example", "registry.example"),
            ("http://localhost:5000/", "localhost:5000"),
            ("ghcr.io/some/image", "ghcr.io"),
        ] {
            assert_eq!(registry_name(Some(server)).unwrap(), name, "{server}");
        }
        assert_eq!(registry_name(None).unwrap(), "docker.io");
        for none in ["", "somebody", "a b.example", "https://", "x:y"] {
            assert!(registry_name(Some(none)).is_err(), "{none}");
        }
    }
}
