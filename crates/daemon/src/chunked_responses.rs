//! Sends large responses in the chunks in which they were encoded. tonic's codec would first copy them into one buffer:
//! for a response of 14 MB that is an eighth of its latency.

use std::convert::Infallible;

use api::grpc::encoded::Chunks;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body_util::StreamBody;
use hyper::body::Frame;
use tonic::body::Body;

/// The response, with its chunks in place of the empty message that stands for them.
pub(crate) fn with_chunks(mut response: Response<Body>) -> Response<Body> {
    let Some(chunks) = response.extensions_mut().remove::<Chunks>() else { return response };
    let well =
        HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
    let frames = chunks.into_frames().map(Frame::data).chain([Frame::trailers(well)]);
    response.map(|_| Body::new(StreamBody::new(tokio_stream::iter(frames.map(Ok::<_, Infallible>)))))
}
