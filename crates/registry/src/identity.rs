//! Who we are to a host: known beforehand, or asked of somebody when the host wants to know.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::OnceCell;
use types::Result;

use crate::credentials::Credentials;

type Asked = Pin<Box<dyn Future<Output = Result<Option<Credentials>>> + Send>>;

/// Somebody who knows the credentials for hosts, or knows that there are none.
#[derive(Clone)]
pub struct Asker(Arc<dyn Fn(Question) -> Asked + Send + Sync>);

/// A host that wants to know who we are.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// As it stands in its address, with its port if it has one: Docker Hub is `registry-1.docker.io`.
    pub host: String,
    /// What it said, as it said it: the values of `WWW-Authenticate`.
    pub challenges: Vec<String>,
}

impl Asker {
    pub fn new<F>(ask: impl Fn(Question) -> F + Send + Sync + 'static) -> Asker
    where
        F: Future<Output = Result<Option<Credentials>>> + Send + 'static,
    {
        Asker(Arc::new(move |question| Box::pin(ask(question))))
    }
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asker")
    }
}

/// Who we are to one host. It is asked for once.
pub(crate) struct Identity {
    known: OnceCell<Option<Credentials>>,
    asker: Option<Asker>,
}

impl Identity {
    /// Nobody is asked for what is known.
    pub(crate) fn new(credentials: Option<Credentials>, asker: Option<Asker>) -> Identity {
        let known = if credentials.is_none() && asker.is_some() { None } else { Some(credentials) };
        Identity { known: OnceCell::new_with(known), asker }
    }

    pub(crate) fn known(&self) -> Option<&Credentials> {
        self.known.get()?.as_ref()
    }

    /// Sees to it that all that can be known is known.
    pub(crate) async fn learn(&self, host: &str, challenges: &[&str]) -> Result<()> {
        let Some(asker) = &self.asker else { return Ok(()) };
        let challenges = challenges.iter().map(|challenge| (*challenge).to_owned()).collect();
        let ask = || (asker.0)(Question { host: host.to_owned(), challenges });
        self.known.get_or_try_init(ask).await.map(drop)
    }
}
