//! `grpc.health.v1`: a daemon that responds is healthy, and so are all of its services.

use api::grpc::health::health_server::Health;
use api::grpc::health::{HealthCheckRequest, HealthCheckResponse, ServingStatus};
use api::services::SERVICES;
use tokio_stream::StreamExt;
use tonic::{Request, Response, Status};

use super::{Answer, Answers};

pub(super) struct Service;

#[tonic::async_trait]
impl Health for Service {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Answer<HealthCheckResponse> {
        let service = &request.get_ref().service;
        if !is_served(service) {
            return Err(Status::not_found(format!("unknown service {service:?}")));
        }
        Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() }))
    }

    type WatchStream = Answers<HealthCheckResponse>;

    /// Sends the state once; it never changes, and the stream ends with the daemon.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Answer<Self::WatchStream> {
        let is_served = is_served(&request.get_ref().service);
        let status = if is_served { ServingStatus::Serving } else { ServingStatus::ServiceUnknown };
        let first = tokio_stream::once(Ok(HealthCheckResponse { status: status.into() }));
        Ok(Response::new(Box::pin(first.chain(tokio_stream::pending()))))
    }
}

/// An empty name means the whole daemon.
fn is_served(service: &str) -> bool {
    let is_it = |(package, name, ..): &(&str, &str, &str, &[_])| {
        service.strip_prefix(package).and_then(|rest| rest.strip_prefix('.')) == Some(*name)
    };
    service.is_empty() || SERVICES.iter().any(is_it)
}
