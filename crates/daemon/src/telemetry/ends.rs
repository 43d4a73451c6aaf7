//! Detects how a call ends: by trailers, by a response of headers only, or by a disconnected client.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::{HeaderMap, Response};
use hyper::body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

/// Receives the status of a call. If it is dropped before, the client has disconnected.
pub(crate) trait End: Send + Unpin + 'static {
    fn end(&mut self, code: Code);
}

/// Wraps the response to report the call's end.
pub(crate) fn until_end(response: Response<Body>, mut call: impl End) -> Response<Body> {
    if let Some(code) = code(response.headers()) {
        call.end(code);
        return response;
    }
    response.map(|body| Body::new(Followed { body, call }))
}

fn code(headers: &HeaderMap) -> Option<Code> {
    Status::from_header_map(headers).map(|status| status.code())
}

/// A body that is watched for trailers.
struct Followed<E> {
    body: Body,
    call: E,
}

impl<E: End> hyper::body::Body for Followed<E> {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(code) = frame.trailers_ref().and_then(code) {
                    self.call.end(code);
                }
            }
            Poll::Ready(Some(Err(status))) => self.call.end(status.code()),
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
