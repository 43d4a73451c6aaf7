//! `grpc.health.v1`: a daemon that answers is well.

use api::grpc::health::health_server::Health;
use api::grpc::health::{HealthCheckRequest, HealthCheckResponse};
use tonic::{Request, Response};

use super::{Answer, Answers, stream_of};

/// `SERVING`
const SERVING: i32 = 1;

pub(super) struct Service;

#[tonic::async_trait]
impl Health for Service {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Answer<HealthCheckResponse> {
        Ok(Response::new(HealthCheckResponse { status: SERVING }))
    }

    type WatchStream = Answers<HealthCheckResponse>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Answer<Self::WatchStream> {
        Ok(Response::new(stream_of(vec![HealthCheckResponse { status: SERVING }])))
    }
}
