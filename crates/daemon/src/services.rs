//! The API: one file a service, each converting, calling, converting back.
//!
//! What they share is [`status`]: errors on the wire.

mod engine;
mod health;
mod version;

use std::pin::Pin;

use api::grpc::MESSAGE_BYTES_MAX;
use tokio_stream::Stream;
use tonic::{Code, Status};
use types::Error;

use crate::server::Router;
use crate::wiring::Parts;

type Answer<T> = Result<tonic::Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

macro_rules! sized {
    ($server:path, $service:expr) => {{
        use $server as Server;
        Server::new($service)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }};
}

/// Everything that is served.
pub(crate) fn router(parts: &Parts) -> Router {
    use api::grpc;
    Router::default()
        .add(sized!(grpc::health::health_server::HealthServer, health::Service))
        .add(sized!(grpc::version::version_server::VersionServer, version::Service))
        .add(sized!(api::engine::engine_server::EngineServer, engine::Service(parts.engine.clone())))
}

/// An error on the wire. The one place where kinds become codes; they share their numbers.
fn status(error: Error) -> Status {
    Status::new(Code::from_i32(error.kind().code()), error.chain())
}

/// What has been said already, as a stream.
fn stream_of<T: Send + 'static>(items: Vec<T>) -> Answers<T> {
    Box::pin(tokio_stream::iter(items.into_iter().map(Ok)))
}
