//! `containerd.services.mounts.v1`: activated mounts, which the daemon makes and keeps.

use api::grpc::mounts::mounts_server::Mounts as Served;
use api::grpc::mounts::{
    ActivateRequest, ActivateResponse, DeactivateRequest, InfoRequest, InfoResponse, ListMessage,
    ListRequest, UpdateRequest, UpdateResponse,
};
use api::grpc::types::{ActivationInfo, ActiveMount};
use metadata::Activation;
use mounts::{Mounts, Options};
use tonic::{Request, Response};
use types::Filters;

use super::{Answer, Answers, blocking, caller, convert, required, status, stream_of};

pub(super) struct Service(pub(super) Mounts);

#[tonic::async_trait]
impl Served for Service {
    async fn activate(&self, request: Request<ActivateRequest>) -> Answer<ActivateResponse> {
        let (mounts, caller) = (self.0.clone(), caller(&request)?);
        let ActivateRequest { name, mounts: wanted, labels, temporary } = request.into_inner();
        let options = Options { labels, is_all: temporary, ..Options::default() };
        let wanted = convert::own_mounts(wanted);
        let activation = blocking(move || mounts.activate(&caller, &name, wanted, options)).await?;
        Ok(Response::new(ActivateResponse { info: Some(wire(activation)) }))
    }

    async fn deactivate(&self, request: Request<DeactivateRequest>) -> Answer<()> {
        let (mounts, caller) = (self.0.clone(), caller(&request)?);
        let name = request.into_inner().name;
        blocking(move || mounts.deactivate(&caller, &name)).await.map(Response::new)
    }

    async fn info(&self, request: Request<InfoRequest>) -> Answer<InfoResponse> {
        let (mounts, caller) = (self.0.clone(), caller(&request)?);
        let name = request.into_inner().name;
        let activation = blocking(move || mounts.find(&caller, &name)).await?;
        Ok(Response::new(InfoResponse { info: Some(wire(activation)) }))
    }

    async fn update(&self, request: Request<UpdateRequest>) -> Answer<UpdateResponse> {
        let (mounts, caller) = (self.0.clone(), caller(&request)?);
        let UpdateRequest { info, update_mask } = request.into_inner();
        let (ActivationInfo { name, labels, .. }, paths) =
            (required(info, "info")?, convert::paths(update_mask));
        let activation = blocking(move || mounts.update(&caller, &name, &labels, &paths)).await?;
        Ok(Response::new(UpdateResponse { info: Some(wire(activation)) }))
    }

    type ListStream = Answers<ListMessage>;

    async fn list(&self, request: Request<ListRequest>) -> Answer<Self::ListStream> {
        let (mounts, caller) = (self.0.clone(), caller(&request)?);
        let filters = Filters::parse(&request.into_inner().filters).map_err(status)?;
        let found = blocking(move || mounts.list(&caller, &filters)).await?;
        let message = |activation| ListMessage { info: Some(wire(activation)) };
        Ok(Response::new(stream_of(found.into_iter().map(message).collect())))
    }
}

fn wire(activation: Activation) -> ActivationInfo {
    let active = |active: metadata::ActiveMount| ActiveMount {
        mount: convert::mounts(vec![active.mount]).pop(),
        mounted_at: convert::timestamp(active.mounted),
        mount_point: active.point,
        ..ActiveMount::default()
    };
    ActivationInfo {
        name: activation.name,
        active: activation.active.into_iter().map(active).collect(),
        system: convert::mounts(activation.system),
        labels: activation.labels,
    }
}
