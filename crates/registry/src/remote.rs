//! A repository, behind the hosts that may have it.

use std::sync::Arc;

use http::HeaderValue;
use http::header::{ACCEPT, CONTENT_TYPE};
use types::descriptor::media_type;
use types::{Descriptor, Digest, Error, Hasher, Reference, Result};

use crate::auth::Credentials;
use crate::blob::BlobStream;
use crate::endpoint::{Answer, Endpoint};
use crate::host::{Capability, Host};
use crate::request::Request;
use crate::transport::{Transport, read_body};

/// Bytes of a manifest or index.
const DOCUMENT_LEN_MAX: usize = 8 << 20;

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
    shared: Arc<Shared>,
}

struct Shared {
    reference: Reference,
    /// In the order in which they are asked.
    endpoints: Vec<Arc<Endpoint>>,
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
        let endpoint =
            Endpoint::new(connections.0.clone(), reference.clone(), Host::upstream(reference), credentials);
        let shared = Shared { reference: reference.clone(), endpoints: vec![Arc::new(endpoint)] };
        Remote { shared: Arc::new(shared) }
    }

    pub fn reference(&self) -> &Reference {
        &self.shared.reference
    }

    /// The hosts that may be asked for something, in order.
    pub fn endpoints(&self, capability: Capability) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.shared.endpoints.iter().filter(move |endpoint| endpoint.host().can(capability))
    }

    /// Sends a request to the hosts in order, until one answers it with success. The answer tells which.
    pub async fn send(&self, request: &Request) -> Result<Answer> {
        let mut failure = None;
        for endpoint in self.endpoints(request.capability) {
            let answered = match endpoint.send(request).await {
                Ok(answer) => answer.checked().await,
                Err(error) => Err(error),
            };
            match answered {
                Ok(answer) => return Ok(answer),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| {
            let (name, capability) = (self.shared.reference.name(), request.capability.as_str());
            Error::failed_precondition(format!("no host of {name} is allowed to {capability}"))
        }))
    }

    /// Asks what the reference stands for. `NotFound` and `PermissionDenied` name host and repository.
    pub async fn resolve(&self) -> Result<Resolved> {
        let reference = &self.shared.reference;
        let capability = if reference.digest().is_some() { Capability::Pull } else { Capability::Resolve };
        self.document(&reference.object(), reference.digest(), capability).await
    }

    /// Fetches a manifest or index by its digest.
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

    /// A blob's bytes from an offset on. They are not checked here.
    pub async fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<BlobStream> {
        BlobStream::open(self.clone(), descriptor.clone(), offset).await
    }

    async fn document(
        &self,
        object: &str,
        expected: Option<&Digest>,
        capability: Capability,
    ) -> Result<Resolved> {
        let kinds = [
            media_type::OCI_INDEX,
            media_type::OCI_MANIFEST,
            media_type::DOCKER_MANIFEST_LIST,
            media_type::DOCKER_MANIFEST,
            "*/*;q=0.1",
        ];
        let kinds = HeaderValue::from_str(&kinds.join(", ")).expect("plain text");
        let request = Request::get(format!("manifests/{object}"), capability).header(ACCEPT, kinds);
        let answer = self.send(&request).await?;
        let host = answer.endpoint().name().to_owned();
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
