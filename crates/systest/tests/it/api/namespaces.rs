//! `containerd.services.namespaces.v1`: tenants. Its calls need no namespace.

use api::grpc::containers::containers_client::ContainersClient;
use api::grpc::containers::{CreateContainerRequest, DeleteContainerRequest};
use api::grpc::content::content_client::ContentClient;
use api::grpc::content::{DeleteContentRequest, WriteAction, WriteContentRequest};
use api::grpc::images::images_client::ImagesClient;
use api::grpc::images::{CreateImageRequest, DeleteImageRequest, Image};
use api::grpc::namespaces::namespaces_client::NamespacesClient;
use api::grpc::namespaces::{
    CreateNamespaceRequest, DeleteNamespaceRequest, GetNamespaceRequest, ListNamespacesRequest, Namespace,
    UpdateNamespaceRequest,
};
use api::grpc::snapshots::snapshots_client::SnapshotsClient;
use api::grpc::snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest};
use api::grpc::types::Descriptor;
use tonic::{Code, Request};
use types::Digest;

use super::containers::container;
use super::walk::{BAD_FILTERS, Difference, LabelStep, Side, There, all, covers, differs, map, mask, within};

const DIFFERENCES: &[Difference] = &[
    differs("filters choose", There::Value("second"), "it does not look at the filter"),
    differs("a filter that is none", There::Code(Code::Ok), "it does not look at the filter"),
];

fn namespace(name: &str, labels: &[(&str, &str)]) -> Option<Namespace> {
    Some(Namespace { name: name.into(), labels: map(labels) })
}

fn get(name: &str) -> Request<GetNamespaceRequest> {
    Request::new(GetNamespaceRequest { name: name.into() })
}

fn delete(name: &str) -> Request<DeleteNamespaceRequest> {
    within(Some("default"), DeleteNamespaceRequest { name: name.into() })
}

#[test]
fn namespaces_walked() {
    let methods =
        &["Namespaces.Get", "Namespaces.List", "Namespaces.Create", "Namespaces.Update", "Namespaces.Delete"];
    covers(methods).walk(DIFFERENCES, async |side| {
        namespaces_come_with_labels(side).await;
        namespaces_go_when_they_are_empty(side).await;
    });
}

async fn namespaces_come_with_labels(side: &Side<'_>) {
    let mut namespaces = NamespacesClient::new(side.channel());
    // No namespace is asked for; 1.6 needs one for what it tells.
    let create = |name: &str, labels: &[(&str, &str)]| {
        within(Some("default"), CreateNamespaceRequest { namespace: namespace(name, labels) })
    };
    if side.is_modern() {
        let create = Request::new(CreateNamespaceRequest { namespace: namespace("without", &[]) });
        side.ok("create in no namespace", namespaces.create(create)).await;
        let delete = Request::new(DeleteNamespaceRequest { name: "without".into() });
        side.ok("delete in no namespace", namespaces.delete(delete)).await;
    }
    side.ok("create", namespaces.create(create("tenant", &[("a", "1"), ("b.c", "2")]))).await;
    let found = side.ok("get", namespaces.get(get("tenant"))).await.namespace;
    side.is("labels are kept", found, namespace("tenant", &[("a", "1"), ("b.c", "2")]));
    let found = side.ok("get what is not there", namespaces.get(get("nobody"))).await.namespace;
    side.is("one that is not there has no labels", found, namespace("nobody", &[]));
    for name in ["", "a/b", &"x".repeat(77)] {
        let found = side.ok("get what cannot be there", namespaces.get(get(name))).await.namespace;
        side.is("one that cannot be there has no labels", found, namespace(name, &[]));
        let answer = namespaces.delete(delete(name));
        side.refused("delete what cannot be there", answer, Code::NotFound, name).await;
    }
    let answer = namespaces.create(create("tenant", &[]));
    side.refused("a name that is taken", answer, Code::AlreadyExists, "tenant").await;
    for name in ["", "-a", "a/b", "a..b", &"x".repeat(77)] {
        let answer = namespaces.create(create(name, &[]));
        side.refused("create what is no name", answer, Code::InvalidArgument, "").await;
    }
    let answer = namespaces.create(create("long", &[("key", &"v".repeat(4094))]));
    side.refused("a label that is too long", answer, Code::InvalidArgument, "label key and value").await;
    if side.is_ours() {
        let answer = namespaces.create(Request::new(CreateNamespaceRequest::default()));
        side.refused("create nothing", answer, Code::InvalidArgument, "namespace is required").await;
    }

    let update = |name: &str, labels: &[(&str, &str)], paths: &[&str]| {
        let update_mask = mask(paths).filter(|mask| !mask.paths.is_empty());
        within(Some("default"), UpdateNamespaceRequest { namespace: namespace(name, labels), update_mask })
    };
    let steps: &[LabelStep<'_>] = &[
        (&[("a", "9"), ("b.c", "9")], &["labels.b.c"], &[("a", "1"), ("b.c", "9")]),
        (&[("a", "")], &["labels.a"], &[("b.c", "9")]),
        (&[("tier", "gold")], &["labels"], &[("tier", "gold")]),
    ];
    // containerd changes labels one by one, or all of them without a mask.
    let steps = if side.is_ours() { steps } else { &steps[..2] };
    for (labels, paths, expected) in steps {
        side.ok("update", namespaces.update(update("tenant", labels, paths))).await;
        let found = side.ok("get", namespaces.get(get("tenant"))).await.namespace;
        side.is("labels change as the mask says", (paths, found), (paths, namespace("tenant", expected)));
    }
    side.ok("update all", namespaces.update(update("tenant", &[("all", "1")], &[]))).await;
    let found = side.ok("get", namespaces.get(get("tenant"))).await.namespace;
    side.is("without a mask labels are set", found, namespace("tenant", &[("all", "1")]));
    for path in ["name", "label", ""] {
        let answer = namespaces.update(update("tenant", &[], &[path]));
        side.refused("a field that does not change", answer, Code::InvalidArgument, "").await;
    }
    // Clients set the defaults of a namespace before there is anything in it.
    side.ok("update what is not there", namespaces.update(update("new", &[("a", "1")], &["labels.a"]))).await;
    let found = side.ok("get", namespaces.get(get("new"))).await.namespace;
    side.is("a label makes a namespace", found, namespace("new", &[("a", "1")]));
    side.ok("delete what it made", namespaces.delete(delete("new"))).await;

    let list = |filter: &str| Request::new(ListNamespacesRequest { filter: filter.into() });
    side.ok("create another", namespaces.create(create("second", &[]))).await;
    let found = side.ok("list", namespaces.list(list(""))).await.namespaces;
    let found: Vec<String> =
        found.into_iter().map(|found| found.name).filter(|name| name != "default").collect();
    side.is("all are listed", found, vec!["second".to_owned(), "tenant".to_owned()]);
    for (filter, expected) in
        [("name==second", vec!["second"]), ("labels.all==1", vec!["tenant"]), ("name~=^x", vec![])]
    {
        let found = side.ok("list some", namespaces.list(list(filter))).await.namespaces;
        let found = found.into_iter().map(|found| found.name).filter(|name| name != "default");
        let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
        side.is("filters choose", found.collect::<Vec<_>>(), expected);
    }
    for (case, filter) in BAD_FILTERS {
        side.refused(case, namespaces.list(list(filter)), Code::InvalidArgument, "").await;
    }
    side.ok("delete", namespaces.delete(delete("second"))).await;
}

async fn namespaces_go_when_they_are_empty(side: &Side<'_>) {
    let mut namespaces = NamespacesClient::new(side.channel());
    let mut images = ImagesClient::new(side.channel());
    let target = Descriptor {
        media_type: "x/y".into(),
        digest: format!("sha256:{:064x}", 1),
        size: 1,
        ..Descriptor::default()
    };
    let image = Image { name: "left".into(), target: Some(target), ..Image::default() };
    let create = CreateImageRequest { image: Some(image), source_date_epoch: None };
    side.ok("make an image", images.create(within(Some("tenant"), create))).await;
    let answer = namespaces.delete(delete("tenant"));
    side.refused("delete what has images", answer, Code::FailedPrecondition, "must be empty").await;
    let remove = DeleteImageRequest { name: "left".into(), ..DeleteImageRequest::default() };
    side.ok("delete the image", images.delete(within(Some("tenant"), remove))).await;
    a_namespace_with_anything_else_stays(side).await;
    side.ok("delete what is empty", namespaces.delete(delete("tenant"))).await;
    let answer = namespaces.delete(delete("tenant"));
    side.refused("delete what is not there", answer, Code::NotFound, "tenant").await;
}

/// Of each kind by itself.
async fn a_namespace_with_anything_else_stays(side: &Side<'_>) {
    let mut namespaces = NamespacesClient::new(side.channel());
    let code = Code::FailedPrecondition;
    // No lease of this namespace holds what is made in it.
    let labels = || map(&[("containerd.io/gc.root", "now")]);

    let mut content = ContentClient::new(side.channel());
    let (text, digest) = ("left", Digest::of(b"left").to_string());
    let write = WriteContentRequest {
        action: WriteAction::Commit.into(),
        r#ref: "left".into(),
        total: text.len() as i64,
        expected: digest.clone(),
        data: text.into(),
        labels: labels(),
        ..WriteContentRequest::default()
    };
    let write = within(Some("tenant"), tokio_stream::iter([write]));
    side.ok("write a blob", all(content.write(write))).await;
    side.refused("delete what has blobs", namespaces.delete(delete("tenant")), code, "has blobs").await;
    let remove = within(Some("tenant"), DeleteContentRequest { digest });
    side.ok("delete the blob", content.delete(remove)).await;

    let mut containers = ContainersClient::new(side.channel());
    let create = CreateContainerRequest { container: Some(container("left")) };
    side.ok("make a container", containers.create(within(Some("tenant"), create))).await;
    let answer = namespaces.delete(delete("tenant"));
    side.refused("delete what has containers", answer, code, "has containers").await;
    let remove = within(Some("tenant"), DeleteContainerRequest { id: "left".into() });
    side.ok("delete the container", containers.delete(remove)).await;

    let mut snapshots = SnapshotsClient::new(side.channel());
    let (snapshotter, key) = (|| "native".to_owned(), || "left".to_owned());
    let (parent, labels) = (String::new(), labels());
    let prepare = PrepareSnapshotRequest { snapshotter: snapshotter(), key: key(), parent, labels };
    side.ok("make a snapshot", snapshots.prepare(within(Some("tenant"), prepare))).await;
    let answer = namespaces.delete(delete("tenant"));
    side.refused("delete what has snapshots", answer, code, "has snapshots on \"native\"").await;
    let remove = RemoveSnapshotRequest { snapshotter: snapshotter(), key: key() };
    side.ok("delete the snapshot", snapshots.remove(within(Some("tenant"), remove))).await;
}
