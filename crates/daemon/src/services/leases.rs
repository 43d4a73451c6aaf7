//! `containerd.services.leases.v1`

use api::grpc::leases::leases_server::Leases as Served;
use api::grpc::leases::{
    AddResourceRequest, CreateRequest, CreateResponse, DeleteRequest, DeleteResourceRequest, Lease as Wire,
    ListRequest, ListResourcesRequest, ListResourcesResponse, ListResponse, Resource as WireResource,
};
use metadata::{Lease, Leases, Metadata, Resource};
use tonic::{Request, Response, Status};
use types::{Filters, LeaseId};

use super::{Answer, blocking, caller, changed, convert, known, required, status};
use crate::identity;

pub(super) struct Service(pub(super) Metadata);

#[tonic::async_trait]
impl Served for Service {
    async fn create(&self, request: Request<CreateRequest>) -> Answer<CreateResponse> {
        let leases = self.0.leases(caller(&request)?);
        let CreateRequest { id, labels } = request.into_inner();
        let id = if id.is_empty() { identity::random_uuid().map_err(status)? } else { id };
        let id = LeaseId::new(id).map_err(status)?;
        let lease = changed(leases.ready_create(id, labels).map_err(status)?).await?;
        Ok(Response::new(CreateResponse { lease: Some(wire(lease)) }))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Answer<()> {
        let leases = self.0.leases(caller(&request)?);
        let DeleteRequest { id, sync } = request.into_inner();
        let id = known(LeaseId::new(&id), || absent(&id))?;
        changed(leases.ready_delete(id)).await?;
        if sync {
            let metadata = self.0.clone();
            blocking(move || metadata.collect()).await?;
        }
        Ok(Response::new(()))
    }

    async fn list(&self, request: Request<ListRequest>) -> Answer<ListResponse> {
        let leases = self.0.leases(caller(&request)?);
        let filters = Filters::parse(&request.into_inner().filters).map_err(status)?;
        let found = blocking(move || leases.list(&filters)).await?;
        Ok(Response::new(ListResponse { leases: found.into_iter().map(wire).collect() }))
    }

    async fn add_resource(&self, request: Request<AddResourceRequest>) -> Answer<()> {
        let leases = self.0.leases(caller(&request)?);
        let AddResourceRequest { id, resource } = request.into_inner();
        let id = known(LeaseId::new(&id), || absent(&id))?;
        let resource = own(&leases, &id, resource).await?;
        changed(leases.ready_add(id, resource)).await.map(Response::new)
    }

    async fn delete_resource(&self, request: Request<DeleteResourceRequest>) -> Answer<()> {
        let leases = self.0.leases(caller(&request)?);
        let DeleteResourceRequest { id, resource } = request.into_inner();
        let id = known(LeaseId::new(&id), || absent(&id))?;
        let resource = own(&leases, &id, resource).await?;
        changed(leases.ready_remove(id, resource)).await.map(Response::new)
    }

    async fn list_resources(&self, request: Request<ListResourcesRequest>) -> Answer<ListResourcesResponse> {
        let leases = self.0.leases(caller(&request)?);
        let id = request.into_inner().id;
        let id = known(LeaseId::new(&id), || absent(&id))?;
        let found = blocking(move || leases.resources(&id)).await?;
        let wire = |resource: &Resource| WireResource { id: resource.id(), r#type: resource.kind() };
        Ok(Response::new(ListResourcesResponse { resources: found.iter().map(wire).collect() }))
    }
}

fn absent(id: &str) -> String {
    format!("lease {id:?}")
}

fn wire(lease: Lease) -> Wire {
    Wire { id: lease.id.into(), created_at: convert::timestamp(lease.created), labels: lease.labels }
}

/// The resource of a request. If it is none, and the lease does not exist either, the error is about the lease.
async fn own(leases: &Leases, id: &LeaseId, resource: Option<WireResource>) -> Result<Resource, Status> {
    let resource = required(resource, "resource")?;
    let parsed = Resource::parse(&resource.r#type, &resource.id);
    if parsed.is_err() {
        let (leases, id) = (leases.clone(), id.clone());
        blocking(move || leases.get(&id)).await?;
    }
    parsed.map_err(status)
}
