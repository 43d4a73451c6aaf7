//! What happens when a repository is asked for: each of its hosts, and what it said to us.

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
    /// As people know it.
    pub name: String,
    /// `https://host`, as it turned out.
    pub origin: String,
    /// The proxy between it and us.
    pub proxy: Option<String>,
    /// It failed a short while ago, so others are asked before it.
    pub is_resting: bool,
    /// What it wants to know of us.
    pub wants: Option<Wanted>,
    pub answer: Result<Said>,
}

#[derive(Debug)]
pub enum Wanted {
    Basic,
    /// A token from here.
    Bearer(String),
}

#[derive(Debug)]
pub struct Said {
    pub version: Version,
    pub status: StatusCode,
    /// The digest of what was asked for, as the host has it.
    pub digest: Option<String>,
}

impl Remote {
    /// Asks every host once, and goes on where one fails.
    pub async fn explain(&self) -> Vec<Explained> {
        let mut explained = Vec::new();
        for endpoint in self.all_endpoints() {
            let is_resting = endpoint.is_resting();
            let answer = ask(endpoint, self.reference().object()).await;
            let wants = endpoint.challenge().map(|challenge| match challenge {
                Challenge::Basic => Wanted::Basic,
                Challenge::Bearer { realm, .. } => Wanted::Bearer(realm),
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

/// Asks for what the reference names; a host that may not be asked for that, whether it is there.
async fn ask(endpoint: &std::sync::Arc<Endpoint>, object: String) -> Result<Said> {
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
    Ok(Said { version: answer.version(), status: answer.status(), digest: digest.transpose()? })
}
