//! A host as one user accesses one repository on it: its URL, tokens and answers.
//!
//! ```text
//! request ─▶ with authorization for the last challenge ─▶ host
//!              401 with a challenge ─▶ token or password ─▶ once more, and that is the answer
//! ```
//!
//! The transport remembers a host's failures: the host rests, and others are asked before it.

use std::sync::Arc;

use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use hyper::body::Incoming;
use stdx::Mutex;
use tokio::sync::OnceCell;
use types::{Error, ErrorKind, Result};

use crate::challenge::Challenge;
use crate::credentials::Credentials;
use crate::host::{Capability, Host, Scheme};
use crate::http_trace::HttpTrace;
use crate::identity::Identity;
use crate::request::{Body, Request, Target};
use crate::token::{Scopes, Token, TokenKey};
use crate::transport::{Outgoing, Reply, RetryPolicy, Transport, error_text, read_body, retry_after};
use crate::url::{host_of, origin, resolve};

const TOKEN_LEN_MAX: usize = 256 << 10;

/// One of the hosts behind a [`Remote`](crate::Remote).
pub struct Endpoint {
    transport: Arc<Transport>,
    host: Host,
    /// The registry's name in references.
    registry: String,
    /// Empty for requests about the whole registry.
    repository: String,
    identity: Identity,
    /// Receives requests and answers.
    trace: Option<HttpTrace>,
    /// Capabilities for which another host comes after this one.
    followed: Vec<Capability>,
    /// `https://host`, once the scheme is known.
    origin: OnceCell<String>,
    /// The last challenge.
    challenge: Mutex<Option<Challenge>>,
    /// Held while fetching a token, so that concurrent requests share it.
    fetching: tokio::sync::Mutex<()>,
}

/// A host's answer to a request.
pub struct Answer {
    endpoint: Arc<Endpoint>,
    reply: Reply,
    /// What was requested, for messages.
    object: String,
    capability: Capability,
}

impl Answer {
    pub fn status(&self) -> StatusCode {
        self.reply.response.status()
    }

    pub fn headers(&self) -> &HeaderMap {
        self.reply.response.headers()
    }

    /// The HTTP version of the response.
    pub fn version(&self) -> http::Version {
        self.reply.response.version()
    }

    /// The `Content-Length` of the response.
    pub fn content_length(&self) -> Option<u64> {
        self.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    /// The URL that answered, after all redirects.
    pub fn address(&self) -> &Uri {
        &self.reply.address
    }

    /// Resolves a URL in the answer, relative to the URL that answered (RFC 9110, 10.2.2).
    pub(crate) fn resolve_url(&self, address: &str) -> Result<String> {
        let whole = resolve(self.address(), address);
        let whole =
            whole.map_err(|error| error.context(format!("{} led to {address:?}", self.endpoint.name())))?;
        Ok(whole.to_string())
    }

    /// The host that answered: follow-up requests go there.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    pub fn into_body(self) -> Incoming {
        self.reply.response.into_body()
    }

    /// Turns an unsuccessful answer into an error that says what to do.
    pub async fn checked(self) -> Result<Answer> {
        if self.status().is_success() {
            return Ok(self);
        }
        let (status, endpoint) = (self.status(), self.endpoint);
        let who = match endpoint.is_elsewhere(&self.reply.address).await {
            true => format!("{}, to which {} led,", host_of(&self.reply.address), endpoint.name()),
            false => endpoint.name().to_owned(),
        };
        let words = error_text(self.reply.response).await;
        endpoint.show(words.as_bytes());
        Err(endpoint.refusal(status, &who, &words, &self.object, self.capability))
    }
}

/// The authorization of a request.
#[derive(Default)]
struct Authorization {
    header: Option<String>,
    /// Key of the token in it, to drop the token if it is refused.
    key: Option<TokenKey>,
}

impl Endpoint {
    pub(crate) fn new(
        transport: Arc<Transport>,
        host: Host,
        registry: &str,
        repository: &str,
        identity: Identity,
        trace: Option<HttpTrace>,
        followed: Vec<Capability>,
    ) -> Endpoint {
        Endpoint {
            transport,
            host,
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            identity,
            trace,
            followed,
            origin: OnceCell::new(),
            challenge: Mutex::default(),
            fetching: tokio::sync::Mutex::default(),
        }
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    /// A readable name: the registry's name in references, or a mirror's address.
    pub fn name(&self) -> &str {
        self.host.name(&self.registry)
    }

    /// The last challenge, if there was one.
    pub(crate) fn challenge(&self) -> Option<Challenge> {
        self.challenge.lock().clone()
    }

    /// Shows a received document in the trace.
    pub(crate) fn show(&self, document: &[u8]) {
        if let Some(trace) = &self.trace {
            trace.document(document);
        }
    }

    /// Whether it failed a short while ago, so that other hosts are asked before it.
    pub fn is_resting(&self) -> bool {
        self.transport.is_resting(&self.host.authority)
    }

    /// Lets it rest, for failures that only the caller notices: slowness, or wrong bytes.
    pub fn rest(&self) {
        self.transport.rest(&self.host.authority, None);
    }

    /// Sends a request to this host, with the authorization it requires. An unsuccessful status is an answer too: see
    /// [`Answer::checked`].
    pub async fn send(self: &Arc<Endpoint>, request: &Request) -> Result<Answer> {
        // A push goes to one host, even if others have the capability.
        let is_followed =
            request.capability != Capability::Push && self.followed.contains(&request.capability);
        let retry = if is_followed { self.transport.mirror_retry() } else { RetryPolicy::LAST };
        self.send_with(request, retry).await
    }

    /// As [`Endpoint::send`]; an unsuccessful answer is an error.
    pub(crate) async fn ask(self: &Arc<Endpoint>, request: &Request) -> Result<Answer> {
        self.send(request).await?.checked().await
    }

    pub(crate) async fn send_with(
        self: &Arc<Endpoint>,
        request: &Request,
        retry: RetryPolicy,
    ) -> Result<Answer> {
        let authority = &self.host.authority;
        let reply = match Box::pin(self.authorized(request, retry)).await {
            Ok(reply) => reply,
            Err(error) => {
                if error.is(ErrorKind::Unavailable) || error.is(ErrorKind::DeadlineExceeded) {
                    self.transport.rest(authority, None);
                }
                return Err(error);
            }
        };
        let status = reply.response.status();
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            self.transport.rest(authority, retry_after(reply.response.headers()));
        } else {
            self.transport.wake(authority);
        }
        let (object, capability) = (object(request), request.capability);
        Ok(Answer { endpoint: self.clone(), reply, object, capability })
    }

    async fn authorized(&self, request: &Request, retry: RetryPolicy) -> Result<Reply> {
        let shown = match (self.challenge(), self.identity.known()) {
            (Some(challenge), _) => self.answer_to(&challenge, request, retry).await?,
            (None, Some(Credentials::RegistryToken(token))) => {
                Authorization { header: Some(format!("Bearer {token}")), key: None }
            }
            (None, _) => Authorization::default(),
        };
        let reply = self.once(request, shown.header.as_deref(), retry).await?;
        if reply.response.status() != StatusCode::UNAUTHORIZED {
            return Ok(reply);
        }
        // Only this host may ask for its credentials, not one that it redirects to.
        if self.is_elsewhere(&reply.address).await {
            return Ok(reply);
        }
        let headers = reply.response.headers().get_all(WWW_AUTHENTICATE);
        let asked: Vec<&str> = headers.iter().filter_map(|value| value.to_str().ok()).collect();
        let Some(challenge) = Challenge::parse(&asked) else { return Ok(reply) };
        if let Some(refused) = &shown.key {
            self.transport.tokens.drop(refused);
        }
        self.identity.learn(&self.host.authority, &asked).await?;
        // A challenge that includes another repository's scope is valid for this request only.
        if request.reads.is_empty() {
            *self.challenge.lock() = Some(challenge.clone());
        }
        let fresh = self.answer_to(&challenge, request, retry).await?;
        // The same authorization would be refused again.
        if fresh.header.is_none() || fresh.header == shown.header {
            return Ok(reply);
        }
        self.once(request, fresh.header.as_deref(), retry).await
    }

    async fn once(&self, request: &Request, shown: Option<&str>, retry: RetryPolicy) -> Result<Reply> {
        let origin = self.origin().await;
        let url = match &request.target {
            Target::Registry => format!("{origin}{}/", self.host.path),
            Target::Repository(path) => format!("{origin}{}/{}/{path}", self.host.path, self.repository),
            Target::Location(location) => resolve(&parse(origin)?, location)?.to_string(),
        };
        let url = if self.host.is_told(&self.registry) && !matches!(request.target, Target::Location(_)) {
            let separator = if url.contains('?') { '&' } else { '?' };
            format!("{url}{separator}ns={}", self.registry)
        } else {
            url
        };
        let mut private = self.host.headers.clone();
        set_authorization(&mut private, shown)?;
        let outgoing = Outgoing {
            method: &request.method,
            url: &parse(&url)?,
            headers: &request.headers,
            private: &private,
            origin: origin.to_owned(),
            body: &request.body,
            is_body_private: false,
            is_repeatable: request.is_repeatable(),
            tls: &self.host.tls,
            dial_timeout: self.host.dial_timeout,
            retry,
            trace: self.trace.as_ref(),
        };
        self.transport.send(&outgoing).await
    }

    /// The host's origin. A registry on a loopback address may do without TLS, as with Docker.
    pub(crate) async fn origin(&self) -> &str {
        let authority = &self.host.authority;
        let find = async {
            let plain = match self.host.scheme {
                Scheme::Https => false,
                Scheme::Http => true,
                Scheme::Either => !self.transport.speaks_tls(authority, &self.host.tls).await,
            };
            let address = format!("{}://{authority}", if plain { "http" } else { "https" });
            // Normalized, as it is compared with the origins of answers.
            parse(&address).map_or(address, |address| origin(&address))
        };
        self.origin.get_or_init(|| find).await
    }

    /// Whether a URL has another origin than this host.
    async fn is_elsewhere(&self, address: &Uri) -> bool {
        origin(address) != self.origin().await
    }

    pub(crate) async fn proxy(&self) -> Option<String> {
        let address = parse(self.origin().await).ok()?;
        self.transport.proxy(&address)
    }

    /// The authorization that answers a challenge; empty if there are no credentials for it.
    async fn answer_to(
        &self,
        challenge: &Challenge,
        request: &Request,
        retry: RetryPolicy,
    ) -> Result<Authorization> {
        if let Some(Credentials::RegistryToken(token)) = self.identity.known() {
            return Ok(Authorization { header: Some(format!("Bearer {token}")), key: None });
        }
        let Challenge::Bearer { realm, service, scope } = challenge else {
            let header = self.identity.known().and_then(Credentials::basic);
            return Ok(Authorization { header, key: None });
        };
        let mut scopes = Scopes::default();
        if !self.repository.is_empty() {
            scopes.add(format!("repository:{}", self.repository), request.capability.actions());
        }
        for other in &request.reads {
            scopes.add(format!("repository:{other}"), "pull");
        }
        scopes.add_text(scope.as_deref().unwrap_or_default());
        let key = TokenKey {
            realm: realm.clone(),
            service: service.clone(),
            scopes,
            credentials: self.identity.known().cloned(),
        };
        let token = self.token(&key, retry).await?;
        Ok(Authorization { header: Some(format!("Bearer {token}")), key: Some(key) })
    }

    async fn token(&self, key: &TokenKey, retry: RetryPolicy) -> Result<String> {
        if let Some(token) = self.transport.tokens.find(key) {
            return Ok(token);
        }
        let _turn = self.fetching.lock().await;
        if let Some(token) = self.transport.tokens.find(key) {
            return Ok(token);
        }
        let realm = &key.realm;
        // A registry with TLS must not cause passwords to be sent unencrypted.
        if self.origin().await.starts_with("https://") && !realm.starts_with("https://") {
            return Err(Error::permission_denied(format!(
                "{} asks for a token from {realm}, which is not https",
                self.name()
            )));
        }
        let is_identity = matches!(key.credentials, Some(Credentials::IdentityToken(_)));
        let mut reply = self.ask_for_token(key, is_identity, retry).await?;
        let status = reply.response.status();
        let is_unknown = matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED);
        if is_unknown && !is_identity && key.form().is_some() {
            reply = self.ask_for_token(key, true, retry).await?;
        }
        let status = reply.response.status();
        if !status.is_success() {
            let words = error_text(reply.response).await;
            return Err(self.no_token(realm, status, &words));
        }
        let body = read_body(reply.response.into_body(), TOKEN_LEN_MAX).await?;
        let token = Token::parse(&body)
            .ok_or_else(|| Error::unauthenticated(format!("{realm} answered without a token")))?;
        self.transport.tokens.keep(key.clone(), &token);
        Ok(token.value)
    }

    async fn ask_for_token(&self, key: &TokenKey, by_form: bool, retry: RetryPolicy) -> Result<Reply> {
        let form = key.form().filter(|_| by_form);
        let is_body_private = form.is_some();
        let url = if form.is_some() { key.realm.clone() } else { key.url() };
        let url: Uri = url.parse().map_err(|error| {
            Error::unavailable(format!("invalid realm {:?}", key.realm)).with_source(error)
        })?;
        let (mut headers, mut private) = (HeaderMap::new(), HeaderMap::new());
        let (method, body) = match form {
            Some(form) => {
                let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
                headers.insert(CONTENT_TYPE, kind);
                (Method::POST, Body::Bytes(form.into()))
            }
            None => {
                set_authorization(
                    &mut private,
                    key.credentials.as_ref().and_then(Credentials::basic).as_deref(),
                )?;
                (Method::GET, Body::Empty)
            }
        };
        let is_elsewhere = self.is_elsewhere(&url).await;
        let outgoing = Outgoing {
            method: &method,
            url: &url,
            headers: &headers,
            private: &private,
            origin: origin(&url),
            body: &body,
            is_body_private,
            is_repeatable: true,
            tls: &if is_elsewhere { self.host.tls.without_client() } else { self.host.tls.clone() },
            dial_timeout: self.host.dial_timeout,
            retry,
            trace: self.trace.as_ref(),
        };
        self.transport.send(&outgoing).await
    }

    fn no_token(&self, realm: &str, status: StatusCode, words: &str) -> Error {
        let (said, what) = (said(words), self.what());
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                Error::unauthenticated(format!(
                    "{realm} gives no token for {what} {}: {status}{said}; {}",
                    self.as_whom(),
                    self.way_in()
                ))
            }
            _ => Error::unavailable(format!("{realm} gives no token for {what}: {status}{said}")),
        }
    }

    /// The error for an unsuccessful answer, with advice.
    fn refusal(
        &self,
        status: StatusCode,
        who: &str,
        words: &str,
        object: &str,
        capability: Capability,
    ) -> Error {
        let (said, what) = (said(words), self.what());
        match status {
            StatusCode::NOT_FOUND => {
                Error::not_found(format!("{who} has no {object} in {what}{said}; check the name and the tag"))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::permission_denied(format!(
                "{} access denied for {what} {}: {who} said {status}{said}; the repository may not exist, or may need \
                 a login: {}",
                if capability == Capability::Push { "push" } else { "pull" },
                self.as_whom(),
                self.way_in()
            )),
            StatusCode::TOO_MANY_REQUESTS => Error::resource_exhausted(format!(
                "{who} takes no more requests for now{said}; try again later, or log in if you are not"
            )),
            _ => {
                Error::unavailable(format!("{who} answered {status} when asked for {object} in {what}{said}"))
            }
        }
    }

    /// Registry and repository.
    fn what(&self) -> String {
        if self.repository.is_empty() {
            self.registry.clone()
        } else {
            format!("{}/{}", self.registry, self.repository)
        }
    }

    fn as_whom(&self) -> String {
        match self.identity.known() {
            Some(Credentials::Password { user, .. }) => format!("as {user}"),
            Some(_) => "with a token".into(),
            None => "without credentials".into(),
        }
    }

    fn way_in(&self) -> String {
        format!("hoist login {}", self.name())
    }
}

/// The registry's message, if any, as the end of a sentence.
fn said(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!(": {words}") }
}

fn parse(url: &str) -> Result<Uri> {
    url.parse().map_err(|error| Error::invalid_argument(format!("invalid address {url}")).with_source(error))
}

/// What a request is for: the last component of its path.
fn object(request: &Request) -> String {
    let path = match &request.target {
        Target::Registry => "",
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
