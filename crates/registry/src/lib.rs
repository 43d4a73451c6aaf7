//! A client of registries (distribution-spec 1.1): resolves names, fetches and pushes manifests and blobs.
//!
//! ```text
//! Remote ─▶ resolve() ─▶ descriptor + document
//!        ├▶ blob(descriptor, offset) ─▶ chunks; a broken body is resumed where it ended
//!        │    └ Sources: the hosts to ask after wrong bytes
//!        ├▶ referrers(digest) ─▶ descriptors
//!        ├▶ tags() ─▶ tags
//!        └▶ send(Request) ─▶ Endpoints in order, each a Host with tokens ─▶ Answer, and its Endpoint
//! Push   ─▶ blob(descriptor, bytes), document(name, bytes)
//! Connections ─▶ download(url) ─▶ the bytes of any file
//! ```
//!
//! It streams and does not store: the caller of [`Remote::blob`] checks the digest. Documents and small blobs are
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
mod url;

pub use blob::{BlobStream, Pace};
pub use credentials::{Credentials, Keyring};
pub use docker_config::{DockerConfig, Found, KeptIn};
pub use download::Download;
pub use endpoint::{Answer, Endpoint};
pub use explain::{AuthScheme, Explained, HostAnswer};
pub use host::{Capability, Host, Scheme};
pub use http_trace::{HttpTrace, TraceOptions};
pub use identity::{CredentialRequest, CredentialSource};
pub use proxy::Proxies;
pub use push::{Push, Ranges, Sent};
pub use remote::{CallerOptions, Connections, Options, Remote, Resolved};
pub use request::{Body, Opener, Request, Target};
pub use sources::{FetchAttempt, Sources};
pub use tls::Tls;

/// Parsers of foreign text, for fuzzing.
#[doc(hidden)]
pub mod parsers {
    use std::path::Path;

    use types::Result;

    pub fn hosts_toml(text: &str) -> Result<()> {
        crate::hosts_toml::HostsToml::parse(text, Path::new("hosts.toml")).map(drop)
    }

    /// Whether the value of a `WWW-Authenticate` header has a supported challenge.
    pub fn challenge(text: &str) -> bool {
        crate::challenge::Challenge::parse(&[text]).is_some()
    }
}
