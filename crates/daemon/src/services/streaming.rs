//! `containerd.services.streaming.v1`: streams that other calls refer to.

use api::grpc::streaming::StreamInit;
use api::grpc::streaming::streaming_server::Streaming;
use api::shim::unpack;
use prost_types::Any;
use tonic::{Request, Response, Status};

use super::{Answer, Answers, caller, status};
use crate::streams::Streams;

pub(super) struct Service(pub(super) Streams);

#[tonic::async_trait]
impl Streaming for Service {
    type StreamStream = Answers<Any>;

    async fn stream(&self, request: Request<tonic::Streaming<Any>>) -> Answer<Self::StreamStream> {
        let caller = caller(&request)?;
        let mut incoming = request.into_inner();
        let first = incoming.message().await?;
        let named = first.as_ref().and_then(unpack::<StreamInit>);
        let Some(Ok(StreamInit { id })) = named else {
            return Err(Status::invalid_argument("a stream begins with its name, a StreamInit"));
        };
        let outgoing = self.0.open(&caller, &id, incoming).map_err(status)?;
        Ok(Response::new(Box::pin(outgoing)))
    }
}
