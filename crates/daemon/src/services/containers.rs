//! `containerd.services.containers.v1`: records of containers. Those that run are tasks.

use api::grpc::containers::containers_server::Containers;
use api::grpc::containers::{
    Container as Wire, CreateContainerRequest, CreateContainerResponse, DeleteContainerRequest,
    GetContainerRequest, GetContainerResponse, ListContainerMessage, ListContainersRequest,
    ListContainersResponse, Runtime as WireRuntime, UpdateContainerRequest, UpdateContainerResponse,
};
use metadata::{Container, Metadata, Runtime};
use tonic::{Request, Response, Status};
use types::{ContainerId, Filters, Timestamp};

use super::{Answer, Answers, blocking, caller, convert, required, status, stream_of};

pub(super) struct Service(pub(super) Metadata);

impl Service {
    async fn find(&self, request: Request<ListContainersRequest>) -> Result<Vec<Wire>, Status> {
        let containers = self.0.containers(caller(&request)?);
        let filters = Filters::parse(&request.into_inner().filters).map_err(status)?;
        let found = blocking(move || containers.list(&filters)).await?;
        Ok(found.into_iter().map(wire).collect())
    }
}

#[tonic::async_trait]
impl Containers for Service {
    async fn get(&self, request: Request<GetContainerRequest>) -> Answer<GetContainerResponse> {
        let containers = self.0.containers(caller(&request)?);
        let id = ContainerId::new(request.into_inner().id).map_err(status)?;
        let container = blocking(move || containers.get(&id)).await?;
        Ok(Response::new(GetContainerResponse { container: Some(wire(container)) }))
    }

    async fn list(&self, request: Request<ListContainersRequest>) -> Answer<ListContainersResponse> {
        Ok(Response::new(ListContainersResponse { containers: self.find(request).await? }))
    }

    type ListStreamStream = Answers<ListContainerMessage>;

    /// One container a message, as specs are large.
    async fn list_stream(&self, request: Request<ListContainersRequest>) -> Answer<Self::ListStreamStream> {
        let message = |container| ListContainerMessage { container: Some(container) };
        let messages = self.find(request).await?.into_iter().map(message).collect();
        Ok(Response::new(stream_of(messages)))
    }

    async fn create(&self, request: Request<CreateContainerRequest>) -> Answer<CreateContainerResponse> {
        let containers = self.0.containers(caller(&request)?);
        let container = own(required(request.into_inner().container, "container")?)?;
        let container = blocking(move || containers.create(container)).await?;
        Ok(Response::new(CreateContainerResponse { container: Some(wire(container)) }))
    }

    async fn update(&self, request: Request<UpdateContainerRequest>) -> Answer<UpdateContainerResponse> {
        let containers = self.0.containers(caller(&request)?);
        let request = request.into_inner();
        let container = own(required(request.container, "container")?)?;
        let paths = convert::paths(request.update_mask);
        let container = blocking(move || containers.update(&container, &paths)).await?;
        Ok(Response::new(UpdateContainerResponse { container: Some(wire(container)) }))
    }

    async fn delete(&self, request: Request<DeleteContainerRequest>) -> Answer<()> {
        let containers = self.0.containers(caller(&request)?);
        let id = ContainerId::new(request.into_inner().id).map_err(status)?;
        blocking(move || containers.delete(&id)).await.map(Response::new)
    }
}

fn wire(container: Container) -> Wire {
    let Container { id, labels, image, runtime, spec, snapshotter, snapshot_key, .. } = container;
    let extensions = container.extensions.into_iter().map(|(name, value)| (name, convert::any(value)));
    Wire {
        id: id.into(),
        labels,
        image,
        runtime: Some(WireRuntime { name: runtime.name, options: runtime.options.map(convert::any) }),
        spec: spec.map(convert::any),
        snapshotter,
        snapshot_key,
        created_at: convert::timestamp(container.created),
        updated_at: convert::timestamp(container.updated),
        extensions: extensions.collect(),
        sandbox: container.sandbox_id,
    }
}

fn own(container: Wire) -> Result<Container, Status> {
    let Wire { id, labels, image, runtime, spec, snapshotter, snapshot_key, .. } = container;
    let runtime = runtime.unwrap_or_default();
    let extensions = container.extensions.into_iter().map(|(name, value)| (name, convert::opaque(value)));
    Ok(Container {
        id: ContainerId::new(id).map_err(status)?,
        labels,
        image,
        runtime: Runtime { name: runtime.name, options: runtime.options.map(convert::opaque) },
        spec: spec.map(convert::opaque),
        snapshotter,
        snapshot_key,
        sandbox_id: container.sandbox,
        extensions: extensions.collect(),
        created: Timestamp::default(),
        updated: Timestamp::default(),
    })
}
