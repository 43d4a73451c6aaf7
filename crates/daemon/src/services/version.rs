//! `containerd.services.version.v1`

use api::grpc::version::VersionResponse;
use api::grpc::version::version_server::Version;
use tonic::{Request, Response};

use super::Answer;
use crate::identity;

pub(super) struct Service;

#[tonic::async_trait]
impl Version for Service {
    async fn version(&self, _: Request<()>) -> Answer<VersionResponse> {
        let (version, revision) = (identity::VERSION.to_owned(), identity::OWN_VERSION.to_owned());
        Ok(Response::new(VersionResponse { version, revision }))
    }
}
