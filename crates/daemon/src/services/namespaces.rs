//! `containerd.services.namespaces.v1`

use std::borrow::Cow;

use api::grpc::namespaces::namespaces_server::Namespaces;
use api::grpc::namespaces::{
    CreateNamespaceRequest, CreateNamespaceResponse, DeleteNamespaceRequest, GetNamespaceRequest,
    GetNamespaceResponse, ListNamespacesRequest, ListNamespacesResponse, Namespace as Wire,
    UpdateNamespaceRequest, UpdateNamespaceResponse,
};
use metadata::Metadata;
use tonic::{Request, Response};
use types::filter::present;
use types::{ErrorKind, FieldPath, Fields, Filters, Labels, Namespace};

use super::{Answer, blocking, convert, identifier, known, required, status};

pub(super) struct Service(pub(super) Metadata);

#[tonic::async_trait]
impl Namespaces for Service {
    /// An unknown namespace has no labels: clients look for defaults in the labels before they create anything in their
    /// namespace. The same goes for an invalid name.
    async fn get(&self, request: Request<GetNamespaceRequest>) -> Answer<GetNamespaceResponse> {
        let name = request.into_inner().name;
        let Ok(name) = Namespace::new(&name) else {
            let namespace = Some(Wire { name, ..Wire::default() });
            return Ok(Response::new(GetNamespaceResponse { namespace }));
        };
        let metadata = self.0.clone();
        let namespace = blocking(move || match metadata.namespaces().get(&name) {
            Err(error) if error.is(ErrorKind::NotFound) => Ok(wire((name, Labels::new()))),
            labels => labels.map(|labels| wire((name, labels))),
        });
        Ok(Response::new(GetNamespaceResponse { namespace: Some(namespace.await?) }))
    }

    /// containerd ignores the filter; we apply it.
    async fn list(&self, request: Request<ListNamespacesRequest>) -> Answer<ListNamespacesResponse> {
        let filters = Filters::parse(&[request.into_inner().filter]).map_err(status)?;
        let metadata = self.0.clone();
        let found = blocking(move || metadata.namespaces().list()).await?.into_iter().map(wire);
        let namespaces = found.filter(|namespace| filters.matches(&Named(namespace))).collect();
        Ok(Response::new(ListNamespacesResponse { namespaces }))
    }

    async fn create(&self, request: Request<CreateNamespaceRequest>) -> Answer<CreateNamespaceResponse> {
        let asked = required(request.into_inner().namespace, "namespace")?;
        let name: Namespace = identifier("", &asked.name)?;
        let (metadata, labels) = (self.0.clone(), asked.labels.clone());
        blocking(move || metadata.namespaces().create(&name, labels)).await?;
        Ok(Response::new(CreateNamespaceResponse { namespace: Some(asked) }))
    }

    async fn update(&self, request: Request<UpdateNamespaceRequest>) -> Answer<UpdateNamespaceResponse> {
        let request = request.into_inner();
        let asked = required(request.namespace, "namespace")?;
        let name: Namespace = identifier("", &asked.name)?;
        let (metadata, paths) = (self.0.clone(), convert::paths(request.update_mask));
        let updated = blocking(move || {
            let labels = metadata.namespaces().update(&name, &asked.labels, &paths)?;
            Ok(wire((name, labels)))
        });
        Ok(Response::new(UpdateNamespaceResponse { namespace: Some(updated.await?) }))
    }

    async fn delete(&self, request: Request<DeleteNamespaceRequest>) -> Answer<()> {
        let name = request.into_inner().name;
        let name = known(Namespace::new(&name), || format!("namespace {name:?}"))?;
        let metadata = self.0.clone();
        blocking(move || metadata.namespaces().delete(&name)).await.map(Response::new)
    }
}

/// A namespace's fields for filters.
struct Named<'a>(&'a Wire);

impl Fields for Named<'_> {
    fn field(&self, path: &FieldPath) -> Option<Cow<'_, str>> {
        match path.head() {
            "name" => present(&self.0.name),
            "labels" => path.label(&self.0.labels),
            _ => None,
        }
    }
}

fn wire((name, labels): (Namespace, Labels)) -> Wire {
    Wire { name: name.into(), labels }
}
