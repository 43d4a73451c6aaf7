//! A host that can be asked for a repository: the registry itself, or a mirror of it.
//!
//! ```text
//! https://mirror.example:5000/path   scheme, authority, path
//!         capabilities               what it is asked for, and what it is not
//!         headers                    what every request to it carries
//!         tls                        who vouches for it, and who we are
//! ```

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::tls::Tls;
use http::HeaderMap;

/// For a connection to be made, unless `hosts.toml` says otherwise.
pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// The same for a mirror, after which somebody else can be asked.
pub(crate) const MIRROR_DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// How a host is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Https,
    Http,
    /// TLS if the host answers in it, else without: for registries of this machine.
    Either,
}

impl Scheme {
    /// Name and port in the form that is the same for all that mean the same host: in small letters, and without the
    /// port that is meant where none is written.
    pub(crate) fn plain_authority(self, authority: &str) -> String {
        let usual = if self == Scheme::Http { ":80" } else { ":443" };
        let small = authority.to_ascii_lowercase();
        small.strip_suffix(usual).unwrap_or(&small).to_owned()
    }
}

/// What a host may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Documents and blobs by their digest.
    Pull,
    /// The digest that a tag stands for. Whoever answers this is trusted with the choice.
    Resolve,
    Push,
    /// What refers to a manifest.
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

    /// The actions that a token must allow.
    pub(crate) fn actions(self) -> &'static str {
        match self {
            Capability::Push => "pull,push",
            _ => "pull",
        }
    }
}

/// Where and how requests are sent.
#[derive(Clone, Debug)]
pub struct Host {
    pub scheme: Scheme,
    /// Name and port, as they stand in an address.
    pub authority: String,
    /// Before the repository's name: `/v2`, unless something else is asked for.
    pub path: String,
    pub capabilities: Vec<Capability>,
    /// Sent to this host only, never along a redirect to another.
    pub headers: HeaderMap,
    /// It stands in for the registry, which comes after it.
    pub is_mirror: bool,
    pub tls: Tls,
    pub dial_timeout: Duration,
    /// The file or directory that says all this; none if nobody says anything.
    pub source: Option<PathBuf>,
}

impl Host {
    /// A registry by its name in references.
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

    /// As people know it: the registry by its name in references, a mirror by its address.
    pub fn name<'a>(&'a self, registry: &'a str) -> &'a str {
        if self.is_mirror { &self.authority } else { registry }
    }

    /// The names under which credentials for it may be kept, the first that has some counts. What people
    /// have for a registry is for the server that stands in its file, and not for its mirrors.
    pub fn login_names<'a>(&'a self, registry: &'a str) -> Vec<&'a str> {
        if self.is_mirror { vec![&self.authority] } else { vec![&self.authority, registry] }
    }

    /// Whether it goes by another name than the registry, so that it must be told for which it is asked.
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
    fn this_machine_is_known_by_its_names() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "[::1]:5000", "127.1.2.3"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["docker.io", "10.0.0.1:5000", "localhost.example", "127.0.0.1.example"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
