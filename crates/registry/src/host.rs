//! A host of a repository: the registry itself, or a mirror of it.
//!
//! ```text
//! https://mirror.example:5000/path   scheme, authority, path
//!         capabilities               what it may be asked for
//!         headers                    sent with every request to it
//!         tls                        its certificate authorities, and client certificates
//! ```

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::tls::Tls;
use http::HeaderMap;

/// Default connect timeout, unless `hosts.toml` sets one.
pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// As `DIAL_TIMEOUT`, for a mirror, after which another host can be asked.
pub(crate) const MIRROR_DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// The URL scheme of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Https,
    Http,
    /// https if the host speaks TLS, else http: for registries on loopback addresses.
    Either,
}

impl Scheme {
    /// Normalizes host name and port, so that equal hosts compare equal: in lower case, and without the default port.
    pub(crate) fn plain_authority(self, authority: &str) -> String {
        let usual = if self == Scheme::Http { ":80" } else { ":443" };
        let small = authority.to_ascii_lowercase();
        small.strip_suffix(usual).unwrap_or(&small).to_owned()
    }
}

/// A kind of request that a host may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Manifests and blobs by their digest.
    Pull,
    /// The digest of a tag. The host is trusted with the choice.
    Resolve,
    Push,
    /// The referrers of a manifest.
    Referrers,
}

impl Capability {
    pub const ALL: [Capability; 4] =
        [Capability::Pull, Capability::Resolve, Capability::Push, Capability::Referrers];

    pub fn as_str(self) -> &'static str {
        match self {
            Capability::Pull => "pull",
            Capability::Resolve => "resolve",
            Capability::Push => "push",
            Capability::Referrers => "referrers",
        }
    }

    /// The token actions that requests of this kind need.
    pub(crate) fn actions(self) -> &'static str {
        match self {
            Capability::Push => "pull,push",
            _ => "pull",
        }
    }
}

/// Where and how to send requests.
#[derive(Clone, Debug)]
pub struct Host {
    pub scheme: Scheme,
    /// Host name and port.
    pub authority: String,
    /// URL path before the repository's name: `/v2`, unless `override_path` is set.
    pub path: String,
    pub capabilities: Vec<Capability>,
    /// Sent to this host only, never along a redirect to another.
    pub headers: HeaderMap,
    /// Whether it is a mirror, asked before the registry.
    pub is_mirror: bool,
    pub tls: Tls,
    pub dial_timeout: Duration,
    /// The file or directory of this configuration; `None` for defaults.
    pub source: Option<PathBuf>,
}

impl Host {
    /// A registry, by its name in references.
    pub fn upstream(registry: &str) -> Host {
        let authority = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        Host {
            scheme: if is_loopback(authority) { Scheme::Either } else { Scheme::Https },
            authority: authority.to_owned(),
            path: "/v2".to_owned(),
            capabilities: Capability::ALL.to_vec(),
            headers: HeaderMap::new(),
            is_mirror: false,
            tls: Tls::default(),
            dial_timeout: DIAL_TIMEOUT,
            source: None,
        }
    }

    /// A readable name: the registry's name in references, or a mirror's address.
    pub fn name<'a>(&'a self, registry: &'a str) -> &'a str {
        if self.is_mirror { &self.authority } else { registry }
    }

    /// The names under which a keyring may have its credentials; the first one found counts. A registry's credentials
    /// are also used for the `server` of its hosts.toml, but not for its mirrors.
    pub fn login_names<'a>(&'a self, registry: &'a str) -> Vec<&'a str> {
        if self.is_mirror { vec![&self.authority] } else { vec![&self.authority, registry] }
    }

    /// Whether its address differs from the registry's, so that requests need the `ns` parameter.
    pub(crate) fn is_told(&self, registry: &str) -> bool {
        self.authority != Host::upstream(registry).authority
    }

    pub fn can(&self, capability: Capability) -> bool {
        self.capabilities.contains(&capability)
    }
}

pub(crate) fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_matches(['[', ']']);
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_hosts_are_recognized() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "[::1]:5000", "127.1.2.3"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["docker.io", "10.0.0.1:5000", "localhost.example", "127.0.0.1.example"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
