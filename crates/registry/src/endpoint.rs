//! A host as one user speaks to it about one repository: its address, its tokens, its answers.

use std::sync::{Arc, Mutex, PoisonError};

use http::header::{AUTHORIZATION, CONTENT_LENGTH, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Response, StatusCode, Uri};
use hyper::body::Incoming;
use tokio::sync::OnceCell;
use types::{Error, Reference, Result};

use crate::auth::{Challenge, Credentials, token_of, token_url};
use crate::host::{Host, Scheme};
use crate::request::{Request, Target};
use crate::transport::{Outgoing, Reply, Transport, error_text, read_body, resolve};

const TOKEN_LEN_MAX: usize = 256 << 10;

/// One of the hosts behind a [`Remote`](crate::Remote).
pub struct Endpoint {
    transport: Arc<Transport>,
    reference: Reference,
    host: Host,
    /// `https://host`, once it is known how the host is spoken to.
    origin: OnceCell<String>,
    credentials: Option<Credentials>,
    /// The header that was accepted last.
    authorization: Mutex<Option<String>>,
}

/// What a host said.
pub struct Answer {
    endpoint: Arc<Endpoint>,
    reply: Reply,
    /// What was asked for, for messages.
    object: String,
}

impl Answer {
    pub fn status(&self) -> StatusCode {
        self.reply.response.status()
    }

    pub fn headers(&self) -> &HeaderMap {
        self.reply.response.headers()
    }

    /// The length of the body that the host announces.
    pub fn content_length(&self) -> Option<u64> {
        self.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    /// Where it came from, at the end of all redirects.
    pub fn address(&self) -> &Uri {
        &self.reply.address
    }

    /// Who said it: whatever follows from the answer goes there.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    pub fn into_body(self) -> Incoming {
        self.reply.response.into_body()
    }

    /// Turns an answer that is no success into an error that says what to do.
    pub async fn checked(self) -> Result<Answer> {
        if self.status().is_success() {
            return Ok(self);
        }
        Err(self.endpoint.refusal(&self.object, self.reply.response).await)
    }
}

impl Endpoint {
    pub(crate) fn new(
        transport: Arc<Transport>,
        reference: Reference,
        host: Host,
        credentials: Option<Credentials>,
    ) -> Endpoint {
        Endpoint {
            transport,
            reference,
            host,
            origin: OnceCell::new(),
            credentials,
            authorization: Mutex::new(None),
        }
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    /// As people know it: the registry by the name in the reference, a mirror by its address.
    pub fn name(&self) -> &str {
        if self.host.is_mirror { &self.host.authority } else { self.reference.host() }
    }

    /// Sends a request to this host, with whatever authorization it wants. Any answer is an answer: see
    /// [`Answer::checked`].
    pub async fn send(self: &Arc<Endpoint>, request: &Request) -> Result<Answer> {
        let answer = self.authorized(request).await.map_err(|error| self.context(error))?;
        Ok(Answer { endpoint: self.clone(), reply: answer, object: object(request) })
    }

    async fn authorized(&self, request: &Request) -> Result<Reply> {
        let known = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let reply = self.once(request, known.as_deref()).await?;
        if reply.response.status() != StatusCode::UNAUTHORIZED {
            return Ok(reply);
        }
        let headers = reply.response.headers().get_all(WWW_AUTHENTICATE);
        let asked: Vec<&str> = headers.iter().filter_map(|value| value.to_str().ok()).collect();
        let Some(challenge) = Challenge::parse(&asked) else { return Ok(reply) };
        let Some(fresh) = self.authorize(&challenge, request).await? else { return Ok(reply) };
        let again = self.once(request, Some(&fresh)).await?;
        if again.response.status() != StatusCode::UNAUTHORIZED {
            *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(fresh);
        }
        Ok(again)
    }

    async fn once(&self, request: &Request, authorization: Option<&str>) -> Result<Reply> {
        let origin = self.origin().await;
        let url = match &request.target {
            Target::Repository(path) => {
                let mut url = format!("{origin}{}/{}/{path}", self.host.path, self.reference.repository());
                if self.host.is_mirror {
                    url.push(if url.contains('?') { '&' } else { '?' });
                    url.push_str("ns=");
                    url.push_str(self.reference.host());
                }
                url.parse().map_err(|error| Error::invalid_argument(url.clone()).with_source(error))?
            }
            Target::Location(location) => resolve(&origin.parse().expect("checked"), location)?,
        };
        let mut private = self.host.headers.clone();
        set_authorization(&mut private, authorization)?;
        let outgoing = Outgoing {
            method: &request.method,
            url: &url,
            headers: &request.headers,
            private: &private,
            origin: origin.to_owned(),
            body: &request.body,
            is_repeatable: request.is_repeatable(),
        };
        self.transport.send(&outgoing).await
    }

    /// Where the host is. Registries of this machine may do without TLS, as Docker lets them.
    async fn origin(&self) -> &str {
        let authority = &self.host.authority;
        let find = async {
            let plain = match self.host.scheme {
                Scheme::Https => false,
                Scheme::Http => true,
                Scheme::Either => !self.transport.speaks_tls(authority).await,
            };
            format!("{}://{authority}", if plain { "http" } else { "https" })
        };
        self.origin.get_or_init(|| find).await
    }

    /// The header that answers a challenge; none if we have nothing to answer with.
    async fn authorize(&self, challenge: &Challenge, request: &Request) -> Result<Option<String>> {
        let (realm, service, scope) = match challenge {
            Challenge::Basic => return Ok(self.credentials.as_ref().map(Credentials::basic)),
            Challenge::Bearer { realm, service, scope } => (realm, service, scope),
        };
        let own = format!("repository:{}:{}", self.reference.repository(), request.capability.actions());
        let mut scopes = vec![scope.clone().unwrap_or(own)];
        scopes.extend(request.reads.iter().map(|other| format!("repository:{other}:pull")));
        let url = token_url(realm, service.as_deref(), &scopes);
        // A registry that speaks TLS must not send passwords into the open.
        if self.origin().await.starts_with("https://") && !url.starts_with("https://") {
            return Err(Error::permission_denied(format!(
                "{} asks for a token from {realm}, which is not https",
                self.name()
            )));
        }
        let url: Uri = url
            .parse()
            .map_err(|error| Error::unavailable(format!("invalid realm {realm:?}")).with_source(error))?;
        let mut private = HeaderMap::new();
        set_authorization(&mut private, self.credentials.as_ref().map(Credentials::basic).as_deref())?;
        let reply = self.transport.send(&Outgoing::get(&url, &HeaderMap::new(), &private)).await?;
        let answer = reply.response;
        if !answer.status().is_success() {
            let status = answer.status();
            let words = error_text(answer).await;
            return Err(Error::unauthenticated(format!(
                "{realm} gives no token for {}: {status} {words}",
                self.reference.name()
            )));
        }
        let body = read_body(answer.into_body(), TOKEN_LEN_MAX).await?;
        let token = token_of(&body)
            .ok_or_else(|| Error::unauthenticated(format!("{realm} answered without a token")))?;
        Ok(Some(format!("Bearer {token}")))
    }

    /// What an answer that is no success means.
    async fn refusal(&self, object: &str, answer: Response<Incoming>) -> Error {
        let status = answer.status();
        let words = error_text(answer).await;
        let (name, host) = (self.reference.name(), self.name());
        match status {
            StatusCode::NOT_FOUND => Error::not_found(format!("{host} has no {object} in {name}: {words}")),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let who =
                    if self.credentials.is_some() { "these credentials" } else { "without credentials" };
                Error::permission_denied(format!(
                    "pull access denied for {name} ({who}): {status} {words}; the repository may not exist, or may need a login"
                ))
            }
            StatusCode::TOO_MANY_REQUESTS => {
                Error::resource_exhausted(format!("{host} takes no more requests for now: {words}"))
            }
            _ => Error::unavailable(format!(
                "{host} answered {status} when asked for {object} in {name}: {words}"
            )),
        }
    }

    pub(crate) fn context(&self, error: Error) -> Error {
        error.context(format!("ask {} for {}", self.name(), self.reference.name()))
    }
}

/// What a request is about: the last part of its path.
fn object(request: &Request) -> String {
    let path = match &request.target {
        Target::Repository(path) | Target::Location(path) => path,
    };
    let path = path.split('?').next().unwrap_or_default();
    path.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default().to_owned()
}

fn set_authorization(headers: &mut HeaderMap, value: Option<&str>) -> Result<()> {
    let Some(value) = value else { return Ok(()) };
    let mut value = HeaderValue::from_str(value)
        .map_err(|_| Error::invalid_argument("credentials contain control characters"))?;
    value.set_sensitive(true);
    headers.insert(AUTHORIZATION, value);
    Ok(())
}
