//! `containerd.services.containers.v1`: records of containers. Running containers: `tasks`.

use api::grpc::containers::containers_server::Containers;
use api::grpc::containers::{
    Container as Wire, CreateContainerRequest, CreateContainerResponse, DeleteContainerRequest,
    GetContainerRequest, GetContainerResponse, ListContainerMessage, ListContainersRequest,
    ListContainersResponse, Runtime as WireRuntime, UpdateContainerRequest, UpdateContainerResponse,
};
use api::grpc::encoded::{Encoded, Fields};
use engine::Engine;
use metadata::{Container, Metadata, Runtime, StoredContainer};
use tonic::{Request, Response, Status};
use types::{ContainerId, Filters, Timestamp};

use super::{
    Answer, Answers, blocking, caller, changed, container_id, convert, identifier, known, required, status,
    stream_of, too_long,
};

pub(super) struct Service {
    pub(super) metadata: Metadata,
    /// Deletes records of the engine's containers, which have resources besides their records.
    pub(super) engine: Engine,
    /// Longest list response, in bytes.
    pub(super) list_limit: usize,
}

#[tonic::async_trait]
impl Containers for Service {
    async fn get(&self, request: Request<GetContainerRequest>) -> Answer<GetContainerResponse> {
        let caller = caller(&request)?;
        let id = container_id(&caller, &request.into_inner().id)?;
        let containers = self.metadata.containers(caller);
        let container = blocking(move || containers.get(&id)).await?;
        Ok(Response::new(GetContainerResponse { container: Some(wire(container)) }))
    }

    async fn list(&self, request: Request<ListContainersRequest>) -> Answer<Encoded<ListContainersResponse>> {
        let containers = self.metadata.containers(caller(&request)?);
        let filters = Filters::parse(&request.into_inner().filters).map_err(status)?;
        let limit = self.list_limit;
        let found = blocking(move || {
            let mut found = Encoded::up_to(limit);
            containers
                .visit(&filters, |container| found.push(1, |to| encode(&container, to)).map_err(too_long))?;
            Ok(found)
        });
        found.await?.into_response().map_err(|error| status(too_long(error)))
    }

    type ListStreamStream = Answers<ListContainerMessage>;

    /// One container per message, because specs are large.
    async fn list_stream(&self, request: Request<ListContainersRequest>) -> Answer<Self::ListStreamStream> {
        let containers = self.metadata.containers(caller(&request)?);
        let filters = Filters::parse(&request.into_inner().filters).map_err(status)?;
        let found = blocking(move || containers.list(&filters)).await?;
        let message = |container| ListContainerMessage { container: Some(wire(container)) };
        Ok(Response::new(stream_of(found.into_iter().map(message).collect())))
    }

    async fn create(&self, request: Request<CreateContainerRequest>) -> Answer<CreateContainerResponse> {
        let containers = self.metadata.containers(caller(&request)?);
        let container = required(request.into_inner().container, "container")?;
        let id = identifier("create container failed validation: container.ID: ", &container.id)?;
        let container = own(id, container);
        let container = containers
            .ready_create(container)
            .map_err(|error| status(error.context("create container failed validation")))?;
        let container = changed(container).await?;
        Ok(Response::new(CreateContainerResponse { container: Some(wire(container)) }))
    }

    async fn update(&self, request: Request<UpdateContainerRequest>) -> Answer<UpdateContainerResponse> {
        let containers = self.metadata.containers(caller(&request)?);
        let request = request.into_inner();
        let container = required(request.container, "container")?;
        if container.id.is_empty() {
            return Err(Status::invalid_argument("Container.ID required"));
        }
        let id = known(ContainerId::new(&container.id), || format!("container {:?}", container.id))?;
        let container = own(id, container);
        let paths = convert::paths(request.update_mask);
        let container = blocking(move || containers.update(&container, &paths)).await?;
        Ok(Response::new(UpdateContainerResponse { container: Some(wire(container)) }))
    }

    async fn delete(&self, request: Request<DeleteContainerRequest>) -> Answer<()> {
        let caller = caller(&request)?;
        let id = request.into_inner().id;
        let id = known(ContainerId::new(&id), || format!("container {id}"))?;
        if self.engine.owns(&caller.namespace, &id) {
            let engine = self.engine.clone();
            // In a task of its own, so that the deletion continues if the client disconnects.
            let deleted = tokio::spawn(async move { engine.delete_record(id).await }).await;
            return deleted
                .map_err(|panic| Status::internal(format!("the call broke down: {panic}")))?
                .map(Response::new)
                .map_err(status);
        }
        changed(self.metadata.containers(caller).ready_delete(id)).await.map(Response::new)
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

/// Encodes what [`wire`] would convert, directly from a stored record, for lists.
fn encode(container: &StoredContainer<'_>, to: &mut Fields<'_>) {
    to.text(1, container.id);
    container.labels.bytes().for_each(|(key, value)| to.entry(2, key, value));
    to.text(3, container.image);
    to.message(4, |runtime| {
        runtime.text(1, container.runtime);
        encode_any(container.runtime_options, 2, runtime);
    });
    encode_any(container.spec, 5, to);
    to.text(6, container.snapshotter);
    to.text(7, container.snapshot_key);
    convert::encode_timestamp(container.created, 8, to);
    convert::encode_timestamp(container.updated, 9, to);
    for (name, value) in &container.extensions {
        to.message(10, |entry| {
            entry.text(1, name);
            encode_any(Some(*value), 2, entry);
        });
    }
    to.text(11, container.sandbox_id);
}

fn encode_any(any: Option<(&str, &[u8])>, number: u32, to: &mut Fields<'_>) {
    if let Some((type_url, value)) = any {
        to.message(number, |any| {
            any.text(1, type_url);
            any.bytes(2, value);
        });
    }
}

fn own(id: ContainerId, container: Wire) -> Container {
    let Wire { labels, image, runtime, spec, snapshotter, snapshot_key, .. } = container;
    let runtime = runtime.unwrap_or_default();
    let extensions = container.extensions.into_iter().map(|(name, value)| (name, convert::opaque(value)));
    Container {
        id,
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
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use types::{Labels, Opaque};

    use super::*;

    fn lent(opaque: &Opaque) -> (&str, &[u8]) {
        (&opaque.type_url, &opaque.value)
    }

    #[test]
    fn an_encoded_list_equals_its_encoded_messages() {
        let opaque = |value: &[u8]| Opaque { type_url: "t".into(), value: value.to_vec() };
        let plain = Container {
            id: ContainerId::new("c").unwrap(),
            labels: Labels::new(),
            image: String::new(),
            runtime: Runtime::default(),
            spec: None,
            snapshotter: String::new(),
            snapshot_key: String::new(),
            sandbox_id: String::new(),
            extensions: std::collections::BTreeMap::new(),
            created: Timestamp::default(),
            updated: Timestamp::default(),
        };
        let full = Container {
            labels: Labels::from([("a".into(), "b".into()), ("c".into(), String::new())]),
            image: "i".into(),
            runtime: Runtime { name: "r".into(), options: Some(opaque(b"")) },
            spec: Some(opaque(&[b' '; 1000])),
            snapshotter: "s".into(),
            snapshot_key: "k".into(),
            sandbox_id: "b".into(),
            extensions: [("e".to_owned(), opaque(b"x")), ("f".to_owned(), opaque(b""))].into(),
            created: Timestamp { seconds: 1, nanos: 2 },
            ..plain.clone()
        };
        let (mut encoded, mut containers) = (Encoded::<ListContainersResponse>::default(), Vec::new());
        for container in [plain, full] {
            let labels = convert::tests::Stored::of(&container.labels);
            let stored = StoredContainer {
                id: container.id.as_str(),
                created: container.created,
                updated: container.updated,
                labels: labels.labels(),
                image: &container.image,
                runtime: &container.runtime.name,
                runtime_options: container.runtime.options.as_ref().map(lent),
                spec: container.spec.as_ref().map(lent),
                snapshotter: &container.snapshotter,
                snapshot_key: &container.snapshot_key,
                sandbox_id: &container.sandbox_id,
                extensions: container.extensions.iter().map(|(name, value)| (&**name, lent(value))).collect(),
            };
            encoded.push(1, |to| encode(&stored, to)).unwrap();
            containers.push(wire(container.clone()));
        }
        assert_eq!(encoded.into_bytes(), ListContainersResponse { containers }.encode_to_vec());
    }
}
