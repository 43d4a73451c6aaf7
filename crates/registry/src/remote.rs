//! A repository of a registry, spoken to on behalf of one user.

use std::sync::{Arc, Mutex, PoisonError};

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use hyper::body::Incoming;
use tokio::sync::OnceCell;
use types::descriptor::media_type;
use types::{Descriptor, Digest, Error, Hasher, Reference, Result};

use crate::auth::{Challenge, Credentials, token_of, token_url};
use crate::blob::BlobStream;
use crate::transport::{Transport, error_text, is_loopback, read_body};

/// Bytes of a manifest or index.
const DOCUMENT_LEN_MAX: usize = 8 << 20;
const TOKEN_LEN_MAX: usize = 256 << 10;

/// What a name stands for.
#[derive(Clone, Debug)]
pub struct Resolved {
    pub descriptor: Descriptor,
    /// The document itself: its digest is checked.
    pub bytes: Vec<u8>,
}

/// A repository. Clones share connections and tokens.
#[derive(Clone)]
pub struct Remote {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    transport: Arc<Transport>,
    reference: Reference,
    /// Host and port to talk to.
    host: String,
    /// `https://host/v2/repository`, once it is known how the host is spoken to.
    base: OnceCell<String>,
    credentials: Option<Credentials>,
    /// The header that was accepted last.
    authorization: Mutex<Option<String>>,
}

/// Connections, shared by all pulls.
#[derive(Clone)]
pub struct Connections(Arc<Transport>);

impl Default for Connections {
    fn default() -> Connections {
        Connections(Arc::new(Transport::new()))
    }
}

impl Remote {
    pub fn new(reference: &Reference, credentials: Option<Credentials>) -> Remote {
        Remote::with_connections(&Connections::default(), reference, credentials)
    }

    pub fn with_connections(
        connections: &Connections,
        reference: &Reference,
        credentials: Option<Credentials>,
    ) -> Remote {
        let host = match reference.host() {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let shared = Shared {
            transport: connections.0.clone(),
            reference: reference.clone(),
            host: host.to_owned(),
            base: OnceCell::new(),
            credentials,
            authorization: Mutex::new(None),
        };
        Remote { shared: Arc::new(shared) }
    }

    /// Where the repository is. Registries of this machine may do without TLS, as Docker lets them.
    async fn base(&self) -> &str {
        let shared = &self.shared;
        let find = async {
            let plain = is_loopback(&shared.host) && !shared.transport.speaks_tls(&shared.host).await;
            let scheme = if plain { "http" } else { "https" };
            format!("{scheme}://{}/v2/{}", shared.host, shared.reference.repository())
        };
        shared.base.get_or_init(|| find).await
    }

    /// Asks what the reference stands for. `NotFound` and `PermissionDenied` name host and repository.
    pub async fn resolve(&self) -> Result<Resolved> {
        let object = self.shared.reference.object();
        self.document(&object, self.shared.reference.digest()).await
    }

    /// Fetches a manifest or index by its digest.
    pub async fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        if descriptor.size > DOCUMENT_LEN_MAX as u64 {
            return Err(Error::invalid_argument(format!(
                "manifest {} of {} bytes is too large",
                descriptor.digest, descriptor.size
            )));
        }
        let resolved = self.document(&descriptor.digest.to_string(), Some(&descriptor.digest)).await?;
        Ok(resolved.bytes)
    }

    /// A blob's bytes from an offset on. They are not checked here.
    pub async fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<BlobStream> {
        BlobStream::open(self.clone(), descriptor.clone(), offset).await
    }

    async fn document(&self, object: &str, expected: Option<&Digest>) -> Result<Resolved> {
        let mut headers = HeaderMap::new();
        let kinds = [
            media_type::OCI_INDEX,
            media_type::OCI_MANIFEST,
            media_type::DOCKER_MANIFEST_LIST,
            media_type::DOCKER_MANIFEST,
            "*/*;q=0.1",
        ];
        headers.insert(ACCEPT, HeaderValue::from_str(&kinds.join(", ")).expect("plain text"));
        let answer = self.get(&format!("manifests/{object}"), headers).await?;
        let answer = self.checked(answer, object).await?;
        let kind =
            answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_owned();
        let announced = content_length(answer.headers());
        if announced.is_some_and(|len| len > DOCUMENT_LEN_MAX as u64) {
            return Err(Error::resource_exhausted(format!(
                "{}: the manifest is larger than 8 MiB",
                self.shared.reference
            )));
        }
        let bytes = read_body(answer.into_body(), DOCUMENT_LEN_MAX)
            .await
            .map_err(|error| error.context(format!("read manifest of {}", self.shared.reference)))?;
        let algorithm = expected.map_or(types::Algorithm::Sha256, Digest::algorithm);
        let mut hasher = Hasher::new(algorithm);
        hasher.update(&bytes);
        let digest = hasher.finish();
        if expected.is_some_and(|expected| *expected != digest) {
            return Err(Error::data_loss(format!(
                "{} answered with a manifest of digest {digest} when asked for {object}",
                self.shared.reference.host()
            )));
        }
        let descriptor = Descriptor::new(kind, digest, bytes.len() as u64);
        Ok(Resolved { descriptor, bytes })
    }

    /// A request with whatever authorization the registry wants.
    pub(crate) async fn get(&self, path: &str, mut headers: HeaderMap) -> Result<Response<Incoming>> {
        let shared = &self.shared;
        let url = format!("{}/{path}", self.base().await);
        let known = shared.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        set_authorization(&mut headers, known.as_deref())?;
        let answer =
            shared.transport.send(Method::GET, &url, &headers).await.map_err(|error| self.context(error))?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let asked: Vec<&str> = answer
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        let Some(challenge) = Challenge::parse(&asked) else { return Ok(answer) };
        let Some(fresh) = self.authorize(&challenge).await? else { return Ok(answer) };
        set_authorization(&mut headers, Some(&fresh))?;
        let again =
            shared.transport.send(Method::GET, &url, &headers).await.map_err(|error| self.context(error))?;
        if again.status() != StatusCode::UNAUTHORIZED {
            *shared.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(fresh);
        }
        Ok(again)
    }

    /// The header that answers a challenge; none if we have nothing to answer with.
    async fn authorize(&self, challenge: &Challenge) -> Result<Option<String>> {
        let shared = &self.shared;
        let (realm, service, scope) = match challenge {
            Challenge::Basic => return Ok(shared.credentials.as_ref().map(Credentials::basic)),
            Challenge::Bearer { realm, service, scope } => (realm, service, scope),
        };
        let own_scope = format!("repository:{}:pull", shared.reference.repository());
        let url = token_url(realm, service.as_deref(), scope.as_deref().unwrap_or(&own_scope));
        // A registry that speaks TLS must not send passwords into the open.
        if self.base().await.starts_with("https://") && !url.starts_with("https://") {
            return Err(Error::permission_denied(format!(
                "{} asks for a token from {realm}, which is not https",
                shared.reference.host()
            )));
        }
        let mut headers = HeaderMap::new();
        set_authorization(&mut headers, shared.credentials.as_ref().map(Credentials::basic).as_deref())?;
        let answer =
            shared.transport.send(Method::GET, &url, &headers).await.map_err(|error| self.context(error))?;
        if !answer.status().is_success() {
            let status = answer.status();
            let words = error_text(answer).await;
            return Err(Error::unauthenticated(format!(
                "{realm} gives no token for {}: {status} {words}",
                shared.reference.name()
            )));
        }
        let body = read_body(answer.into_body(), TOKEN_LEN_MAX).await?;
        let token = token_of(&body)
            .ok_or_else(|| Error::unauthenticated(format!("{realm} answered without a token")))?;
        Ok(Some(format!("Bearer {token}")))
    }

    /// Turns an answer that is no success into an error that says what to do.
    pub(crate) async fn checked(
        &self,
        answer: Response<Incoming>,
        object: &str,
    ) -> Result<Response<Incoming>> {
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let words = error_text(answer).await;
        let reference = &self.shared.reference;
        let (name, host) = (reference.name(), reference.host());
        Err(match status {
            StatusCode::NOT_FOUND => Error::not_found(format!("{host} has no {object} in {name}: {words}")),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let who = if self.shared.credentials.is_some() {
                    "these credentials"
                } else {
                    "without credentials"
                };
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
        })
    }

    pub(crate) fn context(&self, error: Error) -> Error {
        error.context(format!("ask {} for {}", self.shared.reference.host(), self.shared.reference.name()))
    }
}

pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn set_authorization(headers: &mut HeaderMap, value: Option<&str>) -> Result<()> {
    let Some(value) = value else { return Ok(()) };
    let mut value = HeaderValue::from_str(value)
        .map_err(|_| Error::invalid_argument("credentials contain control characters"))?;
    value.set_sensitive(true);
    headers.insert(AUTHORIZATION, value);
    Ok(())
}
