//! The client of registries (distribution-spec 1.1): resolve a name, fetch manifests and blobs.
//!
//! ```text
//! Remote ─▶ resolve() ─▶ descriptor + document
//!        ├▶ blob(descriptor, offset) ─▶ chunks; a body that breaks off is taken up where it ended
//!        │    └ Sources: whom else to ask when the bytes were wrong
//!        ├▶ referrers(digest) ─▶ descriptors
//!        ├▶ tags() ─▶ tags
//!        └▶ send(Request) ─▶ Endpoints in order, each a Host with tokens ─▶ Answer, and who gave it
//! Push   ─▶ blob(descriptor, bytes), document(name, bytes)
//! Connections ─▶ download(address) ─▶ the bytes of a file that is no registry's
//! ```
//!
//! It streams and does not store: whoever takes the bytes checks their digest. Documents and small blobs are
//! checked here. Credentials go to the registry's own host only, never along a redirect to another.
#![forbid(unsafe_code)]

mod blob;
mod challenge;
mod credentials;
mod dial;
mod docker_config;
mod download;
mod endpoint;
mod explain;
mod host;
mod hosts;
mod hosts_toml;
mod http_trace;
mod identity;
mod percent;
mod proxy;
mod push;
mod referrers;
mod remote;
mod request;
mod sources;
mod tags;
mod tls;
mod token;
mod transport;

pub use blob::{BlobStream, Pace};
pub use credentials::{Credentials, Keyring};
pub use docker_config::{DockerConfig, Found, KeptIn};
pub use download::Download;
pub use endpoint::{Answer, Endpoint};
pub use explain::{Explained, Said, Wanted};
pub use host::{Capability, Host, Scheme};
pub use http_trace::{HttpTrace, TraceOptions};
pub use identity::{CredentialRequest, CredentialSource};
pub use proxy::Proxies;
pub use push::{Push, Ranges, Sent};
pub use remote::{CallerOptions, Connections, Options, Remote, Resolved};
pub use request::{Body, Opener, Request, Target};
pub use sources::{Brought, Sources};
pub use tls::Tls;

/// Parsers of foreign text, for those who try what they do with any.
#[doc(hidden)]
pub mod parsers {
    use std::path::Path;

    use types::Result;

    pub fn hosts_toml(text: &str) -> Result<()> {
        crate::hosts_toml::HostsToml::parse(text, Path::new("hosts.toml")).map(drop)
    }

    /// Whether the value of a `WWW-Authenticate` header is understood.
    pub fn challenge(text: &str) -> bool {
        crate::challenge::Challenge::parse(&[text]).is_some()
    }
}
