//! Canonical names of registries and repositories, however they are written.
//!
//! ```text
//! QUAY.IO/team/app  quay.io:443/team/app                  quay.io/team/app
//! registry-1.docker.io/library/redis  docker.io:443/redis docker.io/library/redis
//! ```
//!
//! Another spelling of a host, which DNS and the default HTTPS port allow, must not bypass a rule. Signatures name
//! repositories by any alias, too: to cosign, Docker Hub is `index.docker.io`.

use std::net::Ipv6Addr;

use types::{Error, Reference, Result};

/// Other host names of Docker Hub.
const DOCKER_ALIASES: [&str; 3] = ["index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"];

/// The canonical host and repository of a reference.
pub(crate) fn of(reference: &Reference) -> String {
    full(format!("{}/{}", host(reference.host()), reference.repository()))
}

/// Adds the `library/` that names of Docker's official images may omit.
pub(crate) fn full(place: String) -> String {
    match place.strip_prefix("docker.io/") {
        Some(alone) if !alone.contains('/') => format!("docker.io/library/{alone}"),
        _ => place,
    }
}

/// The canonical form of a scope: a registry's host, alone or with a path. `InvalidArgument` if it is neither.
pub(crate) fn of_scope(scope: &str) -> Result<String> {
    let below = format!("{scope}/any/any");
    // The scope must remain the prefix after [`Reference`] fills in defaults.
    let is_full = |reference: &Reference| {
        below.split_once('/').is_some_and(|(_, repository)| reference.repository() == repository)
    };
    let place = below.parse::<Reference>().ok().filter(is_full).map(|reference| of(&reference));
    place.and_then(|place| place.strip_suffix("/any/any").map(str::to_owned)).ok_or_else(|| {
        Error::invalid_argument(format!(
            "{scope:?} is neither a registry such as quay.io nor a repository with its registry such as quay.io/team/app"
        ))
    })
}

fn host(written: &str) -> String {
    let written = written.to_ascii_lowercase();
    let (name, port) = match written.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port.parse::<u16>().ok()),
        _ => (written.as_str(), None),
    };
    let six = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let name = match six.and_then(|six| six.parse::<Ipv6Addr>().ok()) {
        Some(six) => format!("[{six}]"),
        None if DOCKER_ALIASES.contains(&name) => "docker.io".to_owned(),
        None => name.to_owned(),
    };
    match port {
        // Loopback registries may be contacted without TLS.
        Some(80) if is_local(&name) => name,
        None | Some(443) => name,
        Some(port) => format!("{name}:{port}"),
    }
}

fn is_local(name: &str) -> bool {
    let address = name.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    name == "localhost" || address.is_ok_and(|address| address.is_loopback())
}
