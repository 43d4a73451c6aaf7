//! A repository, and the hosts that serve it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use stdx::Mutex;
use types::{Descriptor, Digest, Error, ErrorKind, Hasher, Reference, Result};

use crate::blob::BlobStream;
use crate::credentials::{Credentials, Keyring};
use crate::endpoint::{Answer, Endpoint};
use crate::host::{Capability, Host, Scheme};
use crate::hosts::hosts;
use crate::http_trace::HttpTrace;
use crate::identity::{CredentialSource, Identity};
use crate::proxy::Proxies;
use crate::request::{Request, Target};
use crate::transport::{Transport, read_body};

/// Bytes of a manifest or index at most.
const DOCUMENT_LEN_MAX: usize = 8 << 20;
/// Accepted media types. Any other is accepted last, so that its name is known when it is refused.
pub(crate) const DOCUMENTS: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

/// The document that a name resolves to.
#[derive(Clone, Debug)]
pub struct Resolved {
    pub descriptor: Descriptor,
    /// The document; its digest has been checked.
    pub bytes: Vec<u8>,
}

/// A repository. Clones share connections and tokens.
#[derive(Clone)]
pub struct Remote {
    shared: Arc<Shared>,
}

struct Shared {
    reference: Reference,
    /// In the order of the configuration.
    endpoints: Vec<Arc<Endpoint>>,
}

/// Shared by all pulls and pushes: connections, tokens, and what was learned about hosts.
#[derive(Clone)]
pub struct Connections(Arc<Common>);

struct Common {
    directories: Mutex<Vec<PathBuf>>,
    transport: Arc<Transport>,
}

/// One caller's options for requests, in addition to the configuration of hosts.
#[derive(Clone, Debug, Default)]
pub struct CallerOptions {
    /// Sent to each host before its own headers; never along a redirect to another.
    pub headers: HeaderMap,
    /// For a registry that no file configures.
    pub default_scheme: Option<Scheme>,
    /// Asked for credentials that the keyring does not have, when a host challenges.
    pub credential_source: Option<CredentialSource>,
    /// Receives requests and answers.
    pub trace: Option<HttpTrace>,
}

/// How registries are found and reached.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directories with a directory for each registry, such as `/etc/hoist/certs.d`.
    pub directories: Vec<PathBuf>,
    pub proxies: Proxies,
    /// How long to wait for a host if another one can be asked after it.
    pub mirror_timeout: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            directories: Vec::new(),
            proxies: Proxies::default(),
            mirror_timeout: Duration::from_secs(10),
        }
    }
}

impl Default for Connections {
    fn default() -> Connections {
        Connections::new(Options::default())
    }
}

impl Connections {
    pub fn new(options: Options) -> Connections {
        let Options { directories, proxies, mirror_timeout } = options;
        let transport = Arc::new(Transport::new(proxies, mirror_timeout));
        Connections(Arc::new(Common { directories: Mutex::new(directories), transport }))
    }

    /// Sets other directories and another timeout. Requests in progress go on unchanged.
    pub fn reconfigure(&self, directories: Vec<PathBuf>, mirror_timeout: Duration) {
        *self.0.directories.lock() = directories;
        self.0.transport.set_mirror_timeout(mirror_timeout);
    }

    /// The same connections with other directories, for a caller that names its own.
    #[must_use]
    pub fn with_directories(&self, directories: Vec<PathBuf>) -> Connections {
        let transport = self.0.transport.clone();
        Connections(Arc::new(Common { directories: Mutex::new(directories), transport }))
    }

    pub(crate) fn transport(&self) -> &Transport {
        &self.0.transport
    }

    /// The hosts of a registry, in order, by the configuration of this moment.
    pub fn hosts(&self, registry: &str) -> Result<Vec<Host>> {
        let directories = self.0.directories.lock().clone();
        hosts(&directories, registry)
    }

    /// A repository, served by the hosts that the configuration names.
    pub fn remote(&self, reference: &Reference, keyring: &Keyring) -> Result<Remote> {
        self.remote_with(reference, keyring, &CallerOptions::default())
    }

    /// As [`Connections::remote`], with a caller's options.
    pub fn remote_with(
        &self,
        reference: &Reference,
        keyring: &Keyring,
        options: &CallerOptions,
    ) -> Result<Remote> {
        let endpoints = self.endpoints(reference.host(), reference.repository(), keyring, options)?;
        Ok(Remote { shared: Arc::new(Shared { reference: reference.clone(), endpoints }) })
    }

    /// Whether a registry accepts these credentials. One without authentication accepts any.
    pub async fn check_login(&self, registry: &str, credentials: Credentials) -> Result<()> {
        let keyring = Keyring::from([(registry.to_owned(), credentials)]);
        let endpoints = self.endpoints(registry, "", &keyring, &CallerOptions::default())?;
        let own = endpoints.iter().rfind(|endpoint| !endpoint.host().is_mirror).or(endpoints.last());
        let own = own.expect("a registry has a host");
        let request = Request { target: Target::Registry, ..Request::get("", Capability::Pull) };
        let answer = own.send(&request).await?;
        match answer.status() {
            // Some registries do not implement the API's root.
            StatusCode::NOT_FOUND => Ok(()),
            StatusCode::UNAUTHORIZED => {
                Err(Error::unauthenticated(format!("{registry} does not take this name and password")))
            }
            _ => answer.checked().await.map(drop),
        }
    }

    fn endpoints(
        &self,
        registry: &str,
        repository: &str,
        keyring: &Keyring,
        options: &CallerOptions,
    ) -> Result<Vec<Arc<Endpoint>>> {
        let mut hosts = self.hosts(registry)?;
        hosts.iter_mut().for_each(|host| options.apply(host));
        let endpoint = |(at, host): (usize, &Host)| {
            let after = &hosts[at + 1..];
            let followed = Capability::ALL
                .into_iter()
                .filter(|capability| after.iter().any(|other| other.can(*capability)));
            let credentials =
                host.login_names(registry).into_iter().find_map(|name| keyring.get(name)).cloned();
            let (transport, followed) = (self.0.transport.clone(), followed.collect());
            let identity = Identity::new(credentials, options.credential_source.clone());
            let trace = options.trace.clone();
            Arc::new(Endpoint::new(transport, host.clone(), registry, repository, identity, trace, followed))
        };
        Ok(hosts.iter().enumerate().map(endpoint).collect())
    }
}

impl CallerOptions {
    fn apply(&self, host: &mut Host) {
        let mut headers = self.headers.clone();
        for (name, value) in &host.headers {
            headers.append(name, value.clone());
        }
        host.headers = headers;
        if let Some(scheme) = self.default_scheme.filter(|_| host.source.is_none()) {
            host.scheme = scheme;
        }
    }
}

impl Remote {
    /// A repository without any configuration.
    pub fn new(reference: &Reference, credentials: Option<Credentials>) -> Remote {
        let keyring = credentials.map(|credentials| (reference.host().to_owned(), credentials));
        let remote = Connections::default().remote(reference, &keyring.into_iter().collect());
        remote.expect("no file is read")
    }

    pub fn reference(&self) -> &Reference {
        &self.shared.reference
    }

    /// The hosts with a capability, in order, those that failed a short while ago last. For a push the order never
    /// changes.
    pub fn endpoints(&self, capability: Capability) -> Vec<Arc<Endpoint>> {
        let able = self.shared.endpoints.iter().filter(|endpoint| endpoint.host().can(capability)).cloned();
        if capability == Capability::Push {
            return able.collect();
        }
        let (resting, mut ready): (Vec<_>, Vec<_>) = able.partition(|endpoint| endpoint.is_resting());
        ready.extend(resting);
        ready
    }

    /// All hosts, in the order of the configuration.
    pub(crate) fn all_endpoints(&self) -> &[Arc<Endpoint>] {
        &self.shared.endpoints
    }

    /// Sends a request to the hosts in order, until one succeeds. The answer has the host.
    pub async fn send(&self, request: &Request) -> Result<Answer> {
        let mut failures = Vec::new();
        for endpoint in self.endpoints(request.capability) {
            match endpoint.ask(request).await {
                Ok(answer) => return Ok(answer),
                Err(error) => failures.push((endpoint, error)),
            }
        }
        Err(self.all_failed(failures, request.capability))
    }

    /// Combines the errors of all hosts: the registry's own is the main one, the mirrors' precede it.
    pub(crate) fn all_failed(
        &self,
        mut failures: Vec<(Arc<Endpoint>, Error)>,
        capability: Capability,
    ) -> Error {
        let own = failures.iter().position(|(endpoint, _)| !endpoint.host().is_mirror);
        let main = own.or(failures.len().checked_sub(1)).map(|at| failures.remove(at).1);
        let Some(main) = main else {
            let (name, capability) = (self.shared.reference.name(), capability.as_str());
            return Error::failed_precondition(format!(
                "no host of {name} has the capability {capability} in its hosts.toml"
            ));
        };
        combine_errors(failures.into_iter().map(|(_, error)| error).collect(), main)
    }

    /// The same repository, served by one of its hosts.
    pub(crate) fn where_only(&self, host: Arc<Endpoint>) -> Remote {
        self.behind(vec![host])
    }

    /// The same repository, served by its other hosts.
    pub(crate) fn where_not(&self, host: &Arc<Endpoint>) -> Remote {
        let others = self.shared.endpoints.iter().filter(|other| !Arc::ptr_eq(other, host));
        self.behind(others.cloned().collect())
    }

    fn behind(&self, endpoints: Vec<Arc<Endpoint>>) -> Remote {
        Remote { shared: Arc::new(Shared { reference: self.shared.reference.clone(), endpoints }) }
    }

    /// Resolves the reference. `NotFound` and `PermissionDenied` name host and repository.
    pub async fn resolve(&self) -> Result<Resolved> {
        let reference = &self.shared.reference;
        let capability = if reference.digest().is_some() { Capability::Pull } else { Capability::Resolve };
        self.document(&reference.object(), reference.digest(), capability).await
    }

    /// Resolves another tag of the repository.
    pub async fn resolve_tag(&self, tag: &str) -> Result<Resolved> {
        self.document(tag, None, Capability::Resolve).await
    }

    /// Fetches a manifest or index by its digest, which is checked.
    pub async fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        if descriptor.size > DOCUMENT_LEN_MAX as u64 {
            return Err(Error::invalid_argument(format!(
                "manifest {} of {} bytes is too large",
                descriptor.digest, descriptor.size
            )));
        }
        let digest = &descriptor.digest;
        let resolved = self.document(&digest.to_string(), Some(digest), Capability::Pull).await?;
        Ok(resolved.bytes)
    }

    /// Fetches a blob from an offset on. The caller checks the digest.
    pub async fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<BlobStream> {
        BlobStream::open(self.clone(), descriptor.clone(), offset).await
    }

    async fn document(
        &self,
        object: &str,
        expected: Option<&Digest>,
        capability: Capability,
    ) -> Result<Resolved> {
        let kinds = HeaderValue::from_static(DOCUMENTS);
        let request = Request::get(format!("manifests/{object}"), capability).header(ACCEPT, kinds);
        let mut failures = Vec::new();
        for endpoint in self.endpoints(capability) {
            let read = match endpoint.ask(&request).await {
                Ok(answer) => self.read_document(answer, object, expected).await,
                Err(error) => Err(error),
            };
            match read {
                Ok(resolved) => return Ok(resolved),
                Err(error) => {
                    if error.is(ErrorKind::DataLoss) {
                        endpoint.rest();
                    }
                    failures.push((endpoint, error));
                }
            }
        }
        Err(self.all_failed(failures, capability))
    }

    async fn read_document(
        &self,
        answer: Answer,
        object: &str,
        expected: Option<&Digest>,
    ) -> Result<Resolved> {
        let endpoint = answer.endpoint().clone();
        let host = endpoint.name();
        let kind =
            answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_owned();
        if answer.content_length().is_some_and(|len| len > DOCUMENT_LEN_MAX as u64) {
            return Err(Error::resource_exhausted(format!(
                "{}: the manifest is larger than 8 MiB",
                self.shared.reference
            )));
        }
        let bytes = read_body(answer.into_body(), DOCUMENT_LEN_MAX)
            .await
            .map_err(|error| error.context(format!("read manifest of {}", self.shared.reference)))?;
        endpoint.show(&bytes);
        let algorithm = expected.map_or(types::Algorithm::Sha256, Digest::algorithm);
        let mut hasher = Hasher::new(algorithm);
        hasher.update(&bytes);
        let digest = hasher.finish();
        if expected.is_some_and(|expected| *expected != digest) {
            return Err(Error::data_loss(format!(
                "{host} answered with a manifest of digest {digest} when asked for {object}"
            )));
        }
        let descriptor = Descriptor::new(kind, digest, bytes.len() as u64);
        Ok(Resolved { descriptor, bytes })
    }
}

/// The main failure, preceded by the others.
pub(crate) fn combine_errors(before: Vec<Error>, main: Error) -> Error {
    let before: Vec<String> = before.iter().map(Error::chain).collect();
    if before.is_empty() { main } else { main.context(format!("first, {}; then", before.join("; "))) }
}
