//! Requests to a host, and their bodies.
//!
//! A request may be sent several times: after a challenge, along a redirect, to the next host. So a body can be
//! opened again.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method};
use hyper::body::{Frame, SizeHint};
use tokio::sync::mpsc;

use crate::host::Capability;

/// A request to any host with the capability.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    pub target: Target,
    pub headers: HeaderMap,
    pub body: Body,
    pub capability: Capability,
    /// Further repositories of the registry that need read access: the sources of mounts.
    pub reads: Vec<String>,
}

/// The URL of a request, relative to a host.
#[derive(Clone, Debug)]
pub enum Target {
    /// `/v2/`: whether the host is a registry and accepts the credentials.
    Registry,
    /// Below the repository: `blobs/sha256:…`.
    Repository(String),
    /// The value of a `Location` header, for the host that sent it.
    Location(String),
}

impl Request {
    /// A request below the repository: `manifests/latest`, `blobs/sha256:…`.
    pub fn new(method: Method, path: impl Into<String>, capability: Capability) -> Request {
        Request {
            method,
            target: Target::Repository(path.into()),
            headers: HeaderMap::new(),
            body: Body::Empty,
            capability,
            reads: Vec::new(),
        }
    }

    pub fn get(path: impl Into<String>, capability: Capability) -> Request {
        Request::new(Method::GET, path, capability)
    }

    pub fn head(path: impl Into<String>, capability: Capability) -> Request {
        Request::new(Method::HEAD, path, capability)
    }

    /// A request to the `Location` of an earlier answer.
    pub fn at(method: Method, location: impl Into<String>, capability: Capability) -> Request {
        Request { target: Target::Location(location.into()), ..Request::new(method, "", capability) }
    }

    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Request {
        self.headers.insert(name, value);
        self
    }

    #[must_use]
    pub fn body(self, body: Body) -> Request {
        Request { body, ..self }
    }

    /// Whether the request is idempotent, so that it can be repeated after a broken connection. Pieces of an upload
    /// are not: the client first asks for the upload's offset.
    pub(crate) fn is_repeatable(&self) -> bool {
        match self.method {
            Method::GET | Method::HEAD => true,
            Method::POST => matches!(self.body, Body::Empty),
            Method::PUT => matches!(self.body, Body::Bytes(_)),
            _ => false,
        }
    }
}

/// The body of a request.
#[derive(Clone)]
pub enum Body {
    Empty,
    Bytes(Bytes),
    Stream { len: u64, open: Opener },
}

/// Opens the bytes of a body from the beginning, each time it is called. The sender stops when the receiver is
/// dropped.
pub type Opener = Arc<dyn Fn() -> mpsc::Receiver<io::Result<Bytes>> + Send + Sync>;

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Body::Empty => f.write_str("Empty"),
            Body::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Body::Stream { len, .. } => write!(f, "Stream({len})"),
        }
    }
}

impl Body {
    /// Opens the body for one attempt, with a handle on its progress.
    pub(crate) fn open(&self) -> (Sending, Sent) {
        let source = match self {
            Body::Empty => Source::Whole(None),
            Body::Bytes(bytes) => Source::Whole(Some(bytes.clone()).filter(|bytes| !bytes.is_empty())),
            Body::Stream { len, open } => Source::Parts { receive: open(), left: *len },
        };
        let sent = Sent::default();
        // An empty body is never polled.
        sent.whole.store(matches!(source, Source::Whole(None)), Ordering::Relaxed);
        (Sending { source, sent: sent.clone() }, sent)
    }
}

/// The progress of sending a body. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Sent {
    moved: Arc<AtomicBool>,
    whole: Arc<AtomicBool>,
}

impl Sent {
    /// Whether bytes were sent since the last call.
    pub(crate) fn has_moved(&self) -> bool {
        self.moved.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Relaxed)
    }
}

/// A body that is being sent.
pub(crate) struct Sending {
    source: Source,
    sent: Sent,
}

enum Source {
    Whole(Option<Bytes>),
    Parts { receive: mpsc::Receiver<io::Result<Bytes>>, left: u64 },
}

impl hyper::body::Body for Sending {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let part = match &mut self.source {
            Source::Whole(bytes) => bytes.take().map(Ok),
            Source::Parts { left: 0, .. } => None,
            Source::Parts { receive, left } => match ready!(receive.poll_recv(context)) {
                Some(Ok(bytes)) if bytes.len() as u64 <= *left => {
                    *left -= bytes.len() as u64;
                    Some(Ok(bytes))
                }
                Some(Ok(_)) => Some(Err(io::Error::other("there are more bytes than were announced"))),
                Some(Err(error)) => Some(Err(error)),
                None => Some(Err(io::Error::other("there are fewer bytes than were announced"))),
            },
        };
        self.sent.moved.store(true, Ordering::Relaxed);
        if self.is_end_stream() {
            self.sent.whole.store(true, Ordering::Relaxed);
        }
        Poll::Ready(part.map(|part| part.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.source, Source::Whole(None) | Source::Parts { left: 0, .. })
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match &self.source {
            Source::Whole(bytes) => bytes.as_ref().map_or(0, |bytes| bytes.len() as u64),
            Source::Parts { left, .. } => *left,
        })
    }
}
