//! What is asked of a host, and the bytes that go with it.
//!
//! A request may be sent more than once: after a challenge, along a redirect, to the next host. So a body is
//! something that can be opened again, not something that is used up.

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

/// A request to whichever host has the capability.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    pub target: Target,
    pub headers: HeaderMap,
    pub body: Body,
    pub capability: Capability,
    /// Repositories of the same registry that are read besides our own: for mounts from one to the other.
    pub reads: Vec<String>,
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub enum Target {
    /// `/v2/`: whether there is a registry, and whether it knows us.
    Registry,
    /// Below the repository: `blobs/sha256:…`.
    Repository(String),
    /// What a `Location` header said. Only the host that said it can be asked.
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

    /// A request to where an earlier answer's `Location` pointed.
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

    /// Whether sending it twice is the same as sending it once, so that a broken connection is no reason to
    /// give up. The bytes of an upload are not: whoever sends them asks how far they came.
    pub(crate) fn is_repeatable(&self) -> bool {
        match self.method {
            Method::GET | Method::HEAD => true,
            Method::POST => matches!(self.body, Body::Empty),
            Method::PUT => matches!(self.body, Body::Bytes(_)),
            _ => false,
        }
    }
}

/// What goes with a request.
#[derive(Clone)]
pub enum Body {
    Empty,
    Bytes(Bytes),
    Stream { len: u64, open: Opener },
}

/// Gives the bytes of a body from its beginning, each time it is called. The sender of the channel ends when
/// nobody listens.
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
    /// The body as it is sent once, and how far that is.
    pub(crate) fn open(&self) -> (Sending, Sent) {
        let source = match self {
            Body::Empty => Source::Whole(None),
            Body::Bytes(bytes) => Source::Whole(Some(bytes.clone()).filter(|bytes| !bytes.is_empty())),
            Body::Stream { len, open } => Source::Parts { receive: open(), left: *len },
        };
        let sent = Sent::default();
        // Nobody asks for the parts of what has none.
        sent.whole.store(matches!(source, Source::Whole(None)), Ordering::Relaxed);
        (Sending { source, sent: sent.clone() }, sent)
    }
}

/// How far a body was taken by who sends it. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Sent {
    moved: Arc<AtomicBool>,
    whole: Arc<AtomicBool>,
}

impl Sent {
    /// Whether a part of it was taken since the last time that this was asked.
    pub(crate) fn has_moved(&self) -> bool {
        self.moved.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Relaxed)
    }
}

/// A body on its way out.
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
