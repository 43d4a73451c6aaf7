//! Pushes blobs and documents to a repository: only what it lacks, and no byte twice if the registry supports that.
//!
//! ```text
//! HEAD blob ──200──▶ it exists
//!   └404─▶ POST uploads?mount&from ──201──▶ mounted from another repository
//!            └202 Location─▶ PUT whole ──201──▶ uploaded
//!                              ├ broke ─▶ GET Location: which offset? ─▶ PATCH the rest ─▶ PUT
//!                              │            └404─▶ HEAD blob: does it exist? ─▶ POST again
//!                              └ 413 ───▶ PATCH chunk by chunk ─▶ PUT
//! ```
//!
//! If the registry has forgotten the upload, or does not report its offset, the blob is sent from the beginning
//! (distribution-spec 1.1, "Pushing Blobs").

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use tokio::sync::mpsc;
use types::{Descriptor, Digest, Error, ErrorKind, Result};

use crate::endpoint::{Answer, Endpoint};
use crate::host::Capability;
use crate::remote::Remote;
use crate::request::{Body, Opener, Request};
use crate::transport::{is_transient, is_transient_status, is_unavailable, pause};

/// Bytes of a chunk, for registries that do not take a blob in one request. Some proxies in front of registries limit
/// bodies to 100 MB; no known one refuses this.
const CHUNK_LEN: u64 = 32 << 20;
/// Upper bound of the minimum chunk length that a registry may ask for.
const CHUNK_LEN_MAX: u64 = 1 << 30;
/// Failures of an upload in a row, without progress in between, at most.
const FAILURES_MAX: u32 = 5;

const CHUNK_LEN_MIN: HeaderName = HeaderName::from_static("oci-chunk-min-length");
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Opens a range of a blob, each time it is called. The sender stops when the receiver is dropped.
pub type Ranges = Arc<dyn Fn(Range<u64>) -> mpsc::Receiver<io::Result<Bytes>> + Send + Sync>;

/// A repository to push to: the first of its hosts with the capability.
#[derive(Clone)]
pub struct Push {
    endpoint: Arc<Endpoint>,
}

/// How the repository got a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    Existed,
    /// From this repository of the same registry.
    Mounted(String),
    Uploaded,
}

/// An upload in progress.
struct Upload<'a> {
    descriptor: &'a Descriptor,
    location: String,
    /// Bytes that the registry has.
    offset: u64,
    /// Length of its chunks; `None` for one request.
    chunk_len: Option<u64>,
    chunk_len_min: u64,
}

impl Push {
    pub fn new(remote: &Remote) -> Result<Push> {
        let endpoint = remote.endpoints(Capability::Push).into_iter().next();
        let endpoint = endpoint.ok_or_else(|| {
            let name = remote.reference().name();
            Error::failed_precondition(format!("no host of {name} has the capability push in its hosts.toml"))
        })?;
        Ok(Push { endpoint })
    }

    /// A readable name of the registry.
    pub fn host(&self) -> &str {
        self.endpoint.name()
    }

    pub(crate) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Pushes a blob unless the repository has it. `sources` are other repositories of the registry that have it,
    /// best first: the first is tried for a mount.
    pub async fn blob(&self, descriptor: &Descriptor, sources: &[String], bytes: &Ranges) -> Result<Sent> {
        let digest = &descriptor.digest;
        let pushed = async {
            if self.has(&format!("blobs/{digest}")).await? {
                return Ok(Sent::Existed);
            }
            let begun = match sources.first() {
                None => self.begin().await?,
                Some(source) => match self.mount(digest, source).await? {
                    Mount::Done => return Ok(Sent::Mounted(source.clone())),
                    Mount::Begun(begun) => begun,
                    Mount::Refused => self.begin().await?,
                },
            };
            self.upload(descriptor, begun, bytes).await?;
            Ok(Sent::Uploaded)
        };
        pushed.await.map_err(|error: Error| error.context(format!("push blob {digest}")))
    }

    /// Whether the repository has a manifest or index.
    pub async fn has_document(&self, digest: &Digest) -> Result<bool> {
        self.has(&format!("manifests/{digest}")).await
    }

    /// Pushes a manifest or index under its digest or a tag. Returns whether the registry recorded it as a referrer
    /// of its subject.
    pub async fn document(&self, object: &str, kind: &str, bytes: Vec<u8>) -> Result<bool> {
        let digest = Digest::of(&bytes);
        let kind = HeaderValue::from_str(kind)
            .map_err(|_| Error::invalid_argument(format!("{kind:?} is no media type")))?;
        let request = Request::new(Method::PUT, format!("manifests/{object}"), Capability::Push)
            .header(CONTENT_TYPE, kind)
            .body(Body::Bytes(bytes.into()));
        let stored = async { self.endpoint.send(&request).await?.checked().await };
        let answer = stored.await.map_err(|error| error.context(format!("push manifest {object}")))?;
        match text(answer.headers(), &CONTENT_DIGEST) {
            // A digest of another algorithm cannot be compared.
            Some(other) if other.starts_with("sha256:") && other != digest.to_string() => {
                Err(Error::data_loss(format!(
                    "{} stored manifest {other} when {digest} was pushed",
                    self.endpoint.name()
                )))
            }
            _ => Ok(answer.headers().contains_key(SUBJECT)),
        }
    }

    async fn has(&self, path: &str) -> Result<bool> {
        let answer = self.endpoint.send(&Request::head(path, Capability::Push)).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(false),
            _ => answer.checked().await.map(|_| true),
        }
    }

    async fn begin(&self) -> Result<UploadSession> {
        let request = Request::new(Method::POST, "blobs/uploads/", Capability::Push);
        UploadSession::of(&self.endpoint.send(&request).await?.checked().await?)
    }

    async fn mount(&self, digest: &Digest, source: &str) -> Result<Mount> {
        let path = format!("blobs/uploads/?mount={digest}&from={source}");
        let mut request = Request::new(Method::POST, path, Capability::Push);
        request.reads.push(source.to_owned());
        let answer = match self.endpoint.send(&request).await {
            // Without read access to the source, some registries give no token at all, instead of one for less.
            Err(error) if error.is(ErrorKind::Unauthenticated) || error.is(ErrorKind::PermissionDenied) => {
                return Ok(Mount::Refused);
            }
            answer => answer?,
        };
        match answer.status() {
            StatusCode::CREATED => Ok(Mount::Done),
            StatusCode::ACCEPTED => UploadSession::of(&answer).map(Mount::Begun),
            // Without read access to the source, a normal upload may still be allowed.
            status if status.is_client_error() => Ok(Mount::Refused),
            _ => UploadSession::of(&answer.checked().await?).map(Mount::Begun),
        }
    }

    async fn upload(&self, descriptor: &Descriptor, begun: UploadSession, bytes: &Ranges) -> Result<()> {
        let UploadSession { location, chunk_len_min } = begun;
        let mut upload = Upload { descriptor, location, offset: 0, chunk_len: None, chunk_len_min };
        let (mut failures, mut furthest) = (0, 0);
        loop {
            let before = upload.offset;
            let failure = match self.step(&mut upload, bytes).await {
                Ok(Step::Done) => return Ok(()),
                Ok(Step::InChunks) => continue,
                Ok(Step::Sent) if upload.offset > before => continue,
                Ok(Step::Sent) => self.stalled(&upload),
                Err(error) => error,
            };
            if !is_transient(&failure) || failures >= FAILURES_MAX {
                return Err(failure);
            }
            tokio::time::sleep(pause(failures)).await;
            failures += 1;
            if let Recovered::Stored = self.recover_with_retries(&mut upload, &mut failures).await? {
                return Ok(());
            }
            if upload.offset > furthest {
                (furthest, failures) = (upload.offset, 0);
            }
        }
    }

    fn stalled(&self, upload: &Upload<'_>) -> Error {
        let (name, offset, size) = (self.endpoint.name(), upload.offset, upload.descriptor.size);
        Error::unavailable(format!("{name} takes chunks, and has no byte more: {offset} of {size}"))
    }

    /// Sends the next piece.
    async fn step(&self, upload: &mut Upload<'_>, bytes: &Ranges) -> Result<Step> {
        let size = upload.descriptor.size;
        let closing = |body| {
            let mark = if upload.location.contains('?') { '&' } else { '?' };
            let location = format!("{}{mark}digest={}", upload.location, upload.descriptor.digest);
            octets(Request::at(Method::PUT, location, Capability::Push)).body(body)
        };
        if upload.offset == 0 && upload.chunk_len.is_none() {
            let answer = self.endpoint.send(&closing(stream(bytes, 0..size))).await?;
            if answer.status() == StatusCode::PAYLOAD_TOO_LARGE && size > CHUNK_LEN.max(upload.chunk_len_min)
            {
                upload.chunk_len = Some(CHUNK_LEN.max(upload.chunk_len_min));
                return Ok(match self.recover(upload).await? {
                    Recovered::Stored => Step::Done,
                    Recovered::Upload => Step::InChunks,
                });
            }
            self.accepted(answer).await?;
            return Ok(Step::Done);
        }
        if upload.offset >= size {
            let answer = self.endpoint.send(&closing(Body::Empty)).await?;
            self.accepted(answer).await?;
            return Ok(Step::Done);
        }
        let end = upload.chunk_len.map_or(size, |len| size.min(upload.offset + len));
        let range = format!("{}-{}", upload.offset, end - 1);
        let request = octets(Request::at(Method::PATCH, upload.location.clone(), Capability::Push))
            .header(CONTENT_RANGE, HeaderValue::from_str(&range).expect("plain text"))
            .body(stream(bytes, upload.offset..end));
        let answer = self.accepted(self.endpoint.send(&request).await?).await?;
        upload.location = location(&answer)?;
        let offset = received(&answer).unwrap_or(end);
        if offset > end {
            return Err(Error::unavailable(format!(
                "{} says that it has {offset} bytes, more than it was sent: {end} of {size}",
                self.endpoint.name()
            )));
        }
        upload.offset = offset;
        Ok(Step::Sent)
    }

    /// As `recover`, for a registry that may be unavailable for a while: each time counts as a failure.
    async fn recover_with_retries(&self, upload: &mut Upload<'_>, failures: &mut u32) -> Result<Recovered> {
        loop {
            match self.recover(upload).await {
                Err(error) if is_unavailable(&error) && *failures < FAILURES_MAX => {
                    tokio::time::sleep(pause(*failures)).await;
                    *failures += 1;
                }
                recovered => return recovered,
            }
        }
    }

    /// Asks for the offset of an upload. If the registry does not know it, checks whether it has the blob, as only
    /// its answer may have been lost; else begins another upload.
    async fn recover(&self, upload: &mut Upload<'_>) -> Result<Recovered> {
        let request = Request::at(Method::GET, upload.location.clone(), Capability::Push);
        let mut answer = self.endpoint.send(&request).await?;
        if is_transient_status(answer.status()) {
            answer = answer.checked().await?;
        }
        if answer.status().is_success()
            && let Some(offset) = received(&answer).filter(|offset| *offset <= upload.descriptor.size)
        {
            upload.offset = offset;
            // Some registries omit an unchanged Location.
            upload.location = location(&answer).unwrap_or_else(|_| upload.location.clone());
            return Ok(Recovered::Upload);
        }
        if self.has(&format!("blobs/{}", upload.descriptor.digest)).await? {
            return Ok(Recovered::Stored);
        }
        upload.location = self.begin().await?.location;
        upload.offset = 0;
        Ok(Recovered::Upload)
    }

    /// Checks the answer to a piece. `Unavailable`, so that the upload is recovered, if the registry has lost it or
    /// is at another offset.
    async fn accepted(&self, answer: Answer) -> Result<Answer> {
        match answer.status() {
            status @ (StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE) => Err(Error::unavailable(
                format!("{} lost track of the upload: {status}", self.endpoint.name()),
            )),
            // A refused request is not sent again.
            status if is_refusal(status) => {
                let name = self.endpoint.name().to_owned();
                answer.checked().await.map_err(|error| {
                    Error::failed_precondition(format!("{name} does not take it: {}", error.chain()))
                })
            }
            _ => answer.checked().await,
        }
    }
}

/// Whether the registry refuses the request as such.
fn is_refusal(status: StatusCode) -> bool {
    let others = [
        StatusCode::UNAUTHORIZED,
        StatusCode::FORBIDDEN,
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::TOO_MANY_REQUESTS,
    ];
    status.is_client_error() && !others.contains(&status)
}

/// The result of sending a piece.
enum Step {
    /// It was the last one.
    Done,
    /// The registry accepted it, by its own account.
    Sent,
    /// It was too large: continue in chunks.
    InChunks,
}

/// What a registry has after an upload broke.
enum Recovered {
    /// The whole blob.
    Stored,
    /// As much of it as the upload's offset says.
    Upload,
}

enum Mount {
    Done,
    /// Not mounted; the registry began this upload instead.
    Begun(UploadSession),
    Refused,
}

/// The URL of an upload, and its minimum chunk length.
struct UploadSession {
    location: String,
    chunk_len_min: u64,
}

impl UploadSession {
    fn of(answer: &Answer) -> Result<UploadSession> {
        let chunk_len_min = number(answer.headers(), &CHUNK_LEN_MIN).unwrap_or(0).min(CHUNK_LEN_MAX);
        Ok(UploadSession { location: location(answer)?, chunk_len_min })
    }
}

fn octets(request: Request) -> Request {
    request.header(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
}

fn stream(bytes: &Ranges, range: Range<u64>) -> Body {
    if range.is_empty() {
        return Body::Empty;
    }
    let (bytes, len) = (bytes.clone(), range.end - range.start);
    let open: Opener = Arc::new(move || bytes(range.clone()));
    Body::Stream { len, open }
}

/// The URL at which the upload continues.
fn location(answer: &Answer) -> Result<String> {
    let location = text(answer.headers(), &LOCATION).ok_or_else(|| {
        Error::unavailable(format!(
            "{} began an upload and did not say where: no Location",
            answer.endpoint().name()
        ))
    })?;
    answer.resolve_url(location)
}

/// How many bytes the registry has: `Range: 0-N`. `0-0` may mean none or one byte, and is read as none.
fn received(answer: &Answer) -> Option<u64> {
    let range = text(answer.headers(), &RANGE)?;
    let last: u64 = range.strip_prefix("bytes=").unwrap_or(range).strip_prefix("0-")?.trim().parse().ok()?;
    Some(if last == 0 { 0 } else { last.checked_add(1)? })
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    text(headers, name)?.trim().parse().ok()
}
