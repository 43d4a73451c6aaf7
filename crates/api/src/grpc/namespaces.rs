//! `containerd.services.namespaces.v1`: namespaces, which isolate tenants.

use std::collections::BTreeMap;

use prost_types::FieldMask;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Namespace {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct GetNamespaceRequest {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct GetNamespaceResponse {
    #[prost(message, optional, tag = "1")]
    pub namespace: Option<Namespace>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListNamespacesRequest {
    #[prost(string, tag = "1")]
    pub filter: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListNamespacesResponse {
    #[prost(message, repeated, tag = "1")]
    pub namespaces: Vec<Namespace>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateNamespaceRequest {
    #[prost(message, optional, tag = "1")]
    pub namespace: Option<Namespace>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateNamespaceResponse {
    #[prost(message, optional, tag = "1")]
    pub namespace: Option<Namespace>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateNamespaceRequest {
    #[prost(message, optional, tag = "1")]
    pub namespace: Option<Namespace>,
    #[prost(message, optional, tag = "2")]
    pub update_mask: Option<FieldMask>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateNamespaceResponse {
    #[prost(message, optional, tag = "1")]
    pub namespace: Option<Namespace>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteNamespaceRequest {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[cfg(feature = "grpc")]
super::service!("containerd.services.namespaces.v1.Namespaces");
