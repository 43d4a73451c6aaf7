//! Diagnosis of a repository: each of its hosts, and its answer.

use http::header::ACCEPT;
use http::{HeaderValue, StatusCode, Version};
use types::{Error, Result};

use crate::challenge::Challenge;
use crate::endpoint::Endpoint;
use crate::host::{Capability, Host};
use crate::remote::{DOCUMENTS, Remote};
use crate::request::{Request, Target};
use crate::transport::RetryPolicy;

/// One host, in the order in which they are asked.
#[derive(Debug)]
pub struct Explained {
    pub host: Host,
    /// A readable name.
    pub name: String,
    /// `https://host`, with the scheme that it speaks.
    pub origin: String,
    /// The proxy in front of it.
    pub proxy: Option<String>,
    /// It failed a short while ago, so other hosts are asked before it.
    pub is_resting: bool,
    /// The authentication that it requires.
    pub wants: Option<AuthScheme>,
    pub answer: Result<HostAnswer>,
}

#[derive(Debug)]
pub enum AuthScheme {
    Basic,
    /// A token from this realm.
    Bearer(String),
}

#[derive(Debug)]
pub struct HostAnswer {
    pub version: Version,
    pub status: StatusCode,
    /// The digest of the requested document, as the host reports it.
    pub digest: Option<String>,
}

impl Remote {
    /// Asks every host once, also after one has answered.
    pub async fn explain(&self) -> Vec<Explained> {
        let mut explained = Vec::new();
        for endpoint in self.all_endpoints() {
            let is_resting = endpoint.is_resting();
            let answer = ask(endpoint, self.reference().object()).await;
            let wants = endpoint.challenge().map(|challenge| match challenge {
                Challenge::Basic => AuthScheme::Basic,
                Challenge::Bearer { realm, .. } => AuthScheme::Bearer(realm),
            });
            let origin = endpoint.origin().await.to_owned();
            explained.push(Explained {
                host: endpoint.host().clone(),
                name: endpoint.name().to_owned(),
                proxy: endpoint.proxy().await,
                origin,
                is_resting,
                wants,
                answer,
            });
        }
        explained
    }
}

/// Requests the reference's document; from a host that may not be asked for it, only the API's root.
async fn ask(endpoint: &std::sync::Arc<Endpoint>, object: String) -> Result<HostAnswer> {
    let pulls = endpoint.host().can(Capability::Pull) || endpoint.host().can(Capability::Resolve);
    let request = match pulls {
        true => Request::get(format!("manifests/{object}"), Capability::Pull)
            .header(ACCEPT, HeaderValue::from_static(DOCUMENTS)),
        false => Request { target: Target::Registry, ..Request::get("", Capability::Pull) },
    };
    let answer = endpoint.send_with(&request, RetryPolicy::once()).await?.checked().await?;
    let digest = answer.headers().get("docker-content-digest").map(|value| {
        let text = value.to_str().map_err(|_| Error::data_loss("the digest is not text"));
        text.and_then(str::parse::<types::Digest>).map(|digest| digest.to_string())
    });
    Ok(HostAnswer { version: answer.version(), status: answer.status(), digest: digest.transpose()? })
}
