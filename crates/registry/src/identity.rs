//! Who we are to a host: known beforehand, or asked of somebody when the host wants to know.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::OnceCell;
use types::Result;

use crate::credentials::Credentials;

type Answer = Pin<Box<dyn Future<Output = Result<Option<Credentials>>> + Send>>;

/// Somebody who knows the credentials for hosts, or knows that there are none.
#[derive(Clone)]
pub struct CredentialSource(Arc<dyn Fn(CredentialRequest) -> Answer + Send + Sync>);

/// A host that wants to know who we are.
#[derive(Clone, Debug, PartialEq)]
pub struct CredentialRequest {
    /// As it stands in its address, with its port if it has one: Docker Hub is `registry-1.docker.io`.
    pub host: String,
    /// What it said, as it said it: the values of `WWW-Authenticate`.
    pub challenges: Vec<String>,
}

impl CredentialSource {
    pub fn new<F>(ask: impl Fn(CredentialRequest) -> F + Send + Sync + 'static) -> CredentialSource
    where
        F: Future<Output = Result<Option<Credentials>>> + Send + 'static,
    {
        CredentialSource(Arc::new(move |request| Box::pin(ask(request))))
    }
}

impl fmt::Debug for CredentialSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CredentialSource")
    }
}

/// Who we are to one host. It is asked for once.
pub(crate) struct Identity {
    known: OnceCell<Option<Credentials>>,
    source: Option<CredentialSource>,
}

impl Identity {
    /// Nobody is asked for what is known.
    pub(crate) fn new(credentials: Option<Credentials>, source: Option<CredentialSource>) -> Identity {
        let known = if credentials.is_none() && source.is_some() { None } else { Some(credentials) };
        Identity { known: OnceCell::new_with(known), source }
    }

    pub(crate) fn known(&self) -> Option<&Credentials> {
        self.known.get()?.as_ref()
    }

    /// Sees to it that all that can be known is known.
    pub(crate) async fn learn(&self, host: &str, challenges: &[&str]) -> Result<()> {
        let Some(source) = &self.source else { return Ok(()) };
        let challenges = challenges.iter().map(|challenge| (*challenge).to_owned()).collect();
        let ask = || (source.0)(CredentialRequest { host: host.to_owned(), challenges });
        self.known.get_or_try_init(ask).await.map(drop)
    }
}
