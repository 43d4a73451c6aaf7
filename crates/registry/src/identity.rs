//! The credentials for one host: known beforehand, or requested from the caller when the host challenges.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::OnceCell;
use types::Result;

use crate::credentials::Credentials;

type Answer = Pin<Box<dyn Future<Output = Result<Option<Credentials>>> + Send>>;

/// A callback that returns the credentials for a host, or `None` if there are none.
#[derive(Clone)]
pub struct CredentialSource(Arc<dyn Fn(CredentialRequest) -> Answer + Send + Sync>);

/// A host that requires credentials.
#[derive(Clone, Debug, PartialEq)]
pub struct CredentialRequest {
    /// Host name and port as in its URL: Docker Hub is `registry-1.docker.io`.
    pub host: String,
    /// The values of its `WWW-Authenticate` headers.
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

/// The credentials for one host. The source is asked at most once.
pub(crate) struct Identity {
    known: OnceCell<Option<Credentials>>,
    source: Option<CredentialSource>,
}

impl Identity {
    /// The source is asked only if `credentials` is `None`.
    pub(crate) fn new(credentials: Option<Credentials>, source: Option<CredentialSource>) -> Identity {
        let known = if credentials.is_none() && source.is_some() { None } else { Some(credentials) };
        Identity { known: OnceCell::new_with(known), source }
    }

    pub(crate) fn known(&self) -> Option<&Credentials> {
        self.known.get()?.as_ref()
    }

    /// Asks the source, unless the credentials are known.
    pub(crate) async fn learn(&self, host: &str, challenges: &[&str]) -> Result<()> {
        let Some(source) = &self.source else { return Ok(()) };
        let challenges = challenges.iter().map(|challenge| (*challenge).to_owned()).collect();
        let ask = || (source.0)(CredentialRequest { host: host.to_owned(), challenges });
        self.known.get_or_try_init(ask).await.map(drop)
    }
}
