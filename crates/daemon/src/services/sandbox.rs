//! `containerd.services.sandbox.v1.Store`: records of sandboxes. Running sandboxes: [`super::controller`].

use api::grpc::sandbox::store_server::Store;
use api::grpc::sandbox::{
    Runtime as WireRuntime, Sandbox as Wire, StoreCreateRequest, StoreCreateResponse, StoreDeleteRequest,
    StoreDeleteResponse, StoreGetRequest, StoreGetResponse, StoreListRequest, StoreListResponse,
    StoreUpdateRequest, StoreUpdateResponse,
};
use metadata::{Metadata, Runtime, Sandbox};
use tonic::{Request, Response, Status};
use types::{Filters, SandboxId, Timestamp};

use super::{Answer, blocking, caller, convert, identifier, known, required, status};

pub(super) struct Service(pub(super) Metadata);

#[tonic::async_trait]
impl Store for Service {
    async fn create(&self, request: Request<StoreCreateRequest>) -> Answer<StoreCreateResponse> {
        let sandboxes = self.0.sandboxes(caller(&request)?);
        let sandbox = own(required(request.into_inner().sandbox, "sandbox")?)?;
        let sandbox = blocking(move || sandboxes.create(sandbox)).await?;
        Ok(Response::new(StoreCreateResponse { sandbox: Some(wire(sandbox)) }))
    }

    async fn update(&self, request: Request<StoreUpdateRequest>) -> Answer<StoreUpdateResponse> {
        let sandboxes = self.0.sandboxes(caller(&request)?);
        let StoreUpdateRequest { sandbox, fields } = request.into_inner();
        let sandbox = required(sandbox, "sandbox")?;
        known(SandboxId::new(&sandbox.sandbox_id), || absent(&sandbox.sandbox_id))?;
        let sandbox = own(sandbox)?;
        let sandbox = blocking(move || sandboxes.update(&sandbox, &fields)).await?;
        Ok(Response::new(StoreUpdateResponse { sandbox: Some(wire(sandbox)) }))
    }

    async fn delete(&self, request: Request<StoreDeleteRequest>) -> Answer<StoreDeleteResponse> {
        let sandboxes = self.0.sandboxes(caller(&request)?);
        let id = request.into_inner().sandbox_id;
        let id = known(SandboxId::new(&id), || absent(&id))?;
        blocking(move || sandboxes.delete(&id)).await?;
        Ok(Response::new(StoreDeleteResponse {}))
    }

    async fn list(&self, request: Request<StoreListRequest>) -> Answer<StoreListResponse> {
        let sandboxes = self.0.sandboxes(caller(&request)?);
        let filters = Filters::parse(&request.into_inner().filters).map_err(status)?;
        let found = blocking(move || sandboxes.list(&filters)).await?;
        Ok(Response::new(StoreListResponse { list: found.into_iter().map(wire).collect() }))
    }

    async fn get(&self, request: Request<StoreGetRequest>) -> Answer<StoreGetResponse> {
        let sandboxes = self.0.sandboxes(caller(&request)?);
        let id = request.into_inner().sandbox_id;
        let id = known(SandboxId::new(&id), || absent(&id))?;
        let sandbox = blocking(move || sandboxes.get(&id)).await?;
        Ok(Response::new(StoreGetResponse { sandbox: Some(wire(sandbox)) }))
    }
}

fn absent(id: &str) -> String {
    format!("sandbox {id:?}")
}

fn wire(sandbox: Sandbox) -> Wire {
    let Sandbox { id, labels, runtime, spec, sandboxer, extensions, created, updated } = sandbox;
    let extensions = extensions.into_iter().map(|(name, value)| (name, convert::any(value)));
    Wire {
        sandbox_id: id.into(),
        runtime: Some(WireRuntime { name: runtime.name, options: runtime.options.map(convert::any) }),
        spec: spec.map(convert::any),
        labels,
        created_at: convert::timestamp(created),
        updated_at: convert::timestamp(updated),
        extensions: extensions.collect(),
        sandboxer,
    }
}

pub(super) fn own(sandbox: Wire) -> Result<Sandbox, Status> {
    let Wire { sandbox_id, runtime, spec, labels, extensions, sandboxer, .. } = sandbox;
    let runtime = runtime.unwrap_or_default();
    let extensions = extensions.into_iter().map(|(name, value)| (name, convert::opaque(value)));
    Ok(Sandbox {
        id: identifier("failed to validate sandbox: invalid sandbox ID: ", &sandbox_id)?,
        labels,
        runtime: Runtime { name: runtime.name, options: runtime.options.map(convert::opaque) },
        spec: spec.map(convert::opaque),
        sandboxer,
        extensions: extensions.collect(),
        created: Timestamp::default(),
        updated: Timestamp::default(),
    })
}
