//! `containerd.services.leases.v1`

use api::grpc::leases::leases_client::LeasesClient;
use api::grpc::leases::{
    AddResourceRequest, CreateRequest, DeleteRequest, DeleteResourceRequest, ListRequest,
    ListResourcesRequest, Resource,
};
use tonic::Code;
use types::Digest;

use super::walk::{
    BAD_FILTERS, BROKEN, BROKEN_THERE, Difference, Side, There, ask, covers, differs, map, within,
};

const DIFFERENCES: &[Difference] = &[
    differs("a label that is too long", There::Code(Code::Ok), "labels of leases are not checked there"),
    differs("a label without a key", There::Code(Code::Unknown), "the same refusal, without a class"),
    differs("add what has no name", There::Code(Code::Unknown), "the same refusal, without a class"),
    BROKEN_THERE,
];

fn create(id: &str, labels: &[(&str, &str)]) -> CreateRequest {
    CreateRequest { id: id.into(), labels: map(labels) }
}

fn delete(id: &str) -> DeleteRequest {
    DeleteRequest { id: id.into(), sync: false }
}

fn resource(kind: &str, id: &str) -> Option<Resource> {
    Some(Resource { id: id.into(), r#type: kind.into() })
}

#[test]
fn leases_walked() {
    let methods = &[
        "Leases.Create",
        "Leases.Delete",
        "Leases.List",
        "Leases.AddResource",
        "Leases.DeleteResource",
        "Leases.ListResources",
    ];
    covers(methods).walk(DIFFERENCES, async |side| {
        leases_come_and_go(side).await;
        leases_hold_what_they_are_told(side).await;
    });
}

async fn leases_come_and_go(side: &Side<'_>) {
    let mut leases = LeasesClient::new(side.channel());
    let (code, words) = (Code::FailedPrecondition, "namespace is required");
    let answer = leases.create(within(None, create("a", &[])));
    side.refused("create without a namespace", answer, code, words).await;
    let answer = leases.list(within(None, ListRequest::default()));
    side.refused("list without a namespace", answer, code, words).await;
    let answer = leases.delete(within(None, delete("a")));
    side.refused("delete without a namespace", answer, code, words).await;

    let labels = [("tier", "gold"), ("none", "")];
    let made =
        side.ok("create", leases.create(ask(create("first", &labels)))).await.lease.unwrap_or_default();
    side.is("a lease has a time", (made.id.as_str(), made.created_at.is_some()), ("first", true));
    let free = side.ok("create without a name", leases.create(ask(create("", &[])))).await;
    let free = free.lease.unwrap_or_default().id;
    side.is("a lease without a name gets one", free.is_empty(), false);
    let strange = "a/b c:1";
    side.ok("create with any name", leases.create(ask(create(strange, &[])))).await;
    let answer = leases.create(ask(create("first", &[])));
    side.refused("a name that is taken", answer, Code::AlreadyExists, "first").await;
    let answer = leases.create(ask(create("long", &[("key", &"v".repeat(4094))])));
    side.refused("a label that is too long", answer, Code::InvalidArgument, "label key and value").await;

    let answer = leases.create(ask(create("keyless", &[("", "v")])));
    side.refused("a label without a key", answer, Code::InvalidArgument, "key").await;
    let long = "l".repeat(20_000);
    side.ok("create with a long name", leases.create(ask(create(&long, &[])))).await;
    side.ok("delete it", leases.delete(ask(delete(&long)))).await;
    side.refused("delete without a name", leases.delete(ask(delete(""))), Code::NotFound, "").await;

    for (filters, expected) in [
        (vec!["id==first"], vec!["first"]),
        (vec!["labels.tier"], vec!["first"]),
        (vec!["labels.tier==gold", "id==\"a/b c:1\""], vec![strange, "first"]),
        // A lease that got a name has one that may begin with any digit.
        (vec!["id~=^first,labels.tier!=gold"], vec![]),
    ] {
        let list = ListRequest { filters: filters.iter().map(ToString::to_string).collect() };
        let found = side.ok("list", leases.list(ask(list))).await.leases;
        let found: Vec<String> = found.into_iter().map(|lease| lease.id).collect();
        let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
        side.is("filters choose", (&filters, found), (&filters, expected));
    }
    for (case, filter) in BAD_FILTERS.iter().chain([&BROKEN]) {
        let answer = leases.list(ask(ListRequest { filters: vec![(*filter).into()] }));
        side.refused(case, answer, Code::InvalidArgument, "").await;
    }
    let found = side
        .ok("list in another namespace", leases.list(within(Some("other"), ListRequest::default())))
        .await;
    side.is("leases are of a namespace", found.leases.len(), 0);
    let answer = leases.delete(within(Some("other"), delete("first")));
    side.refused("delete in another namespace", answer, Code::NotFound, "first").await;
    side.ok("delete", leases.delete(ask(delete(strange)))).await;
    side.ok("delete and wait", leases.delete(ask(DeleteRequest { id: free, sync: true }))).await;
    side.refused("delete what is not there", leases.delete(ask(delete(strange))), Code::NotFound, strange)
        .await;
}

async fn leases_hold_what_they_are_told(side: &Side<'_>) {
    let mut leases = LeasesClient::new(side.channel());
    let digest = Digest::of(b"held").to_string();
    let add = |lease: &str, resource| ask(AddResourceRequest { id: lease.into(), resource });
    let mut held =
        vec![("content", digest.as_str()), ("ingests", "some/ref"), ("snapshots/overlayfs", "some key")];
    if side.is_modern() {
        held.insert(1, ("images", "some:name"));
    }
    for &(kind, id) in &held {
        side.ok("add", leases.add_resource(add("first", resource(kind, id)))).await;
        side.ok("add again", leases.add_resource(add("first", resource(kind, id)))).await;
    }
    let list = |lease: &str| ask(ListResourcesRequest { id: lease.into() });
    let found = side.ok("list resources", leases.list_resources(list("first"))).await.resources;
    let mut found: Vec<(String, String)> = found.into_iter().map(|found| (found.r#type, found.id)).collect();
    found.sort();
    let expected: Vec<_> = held.iter().map(|(kind, id)| ((*kind).to_owned(), (*id).to_owned())).collect();
    side.is("what was added is held", found, expected);

    let none = resource("content", &digest);
    let answer = leases.add_resource(add("none", none.clone()));
    side.refused("add to what is not there", answer, Code::NotFound, "none").await;
    for what in [resource("content", "no digest"), resource("volumes", "x")] {
        let answer = leases.add_resource(add("none", what));
        side.refused("add what is none to what is not there", answer, Code::NotFound, "none").await;
    }
    let answer = leases.list_resources(list("none"));
    side.refused("list what is not there", answer, Code::NotFound, "none").await;
    let answer = leases.add_resource(add("first", resource("content", "no digest")));
    side.refused("add what is no digest", answer, Code::InvalidArgument, "").await;
    for (kind, code) in [
        ("", Code::Unimplemented),
        ("volumes", Code::Unimplemented),
        ("a/b/c", Code::Unimplemented),
        ("content/x", Code::InvalidArgument),
        ("ingests/x", Code::InvalidArgument),
        ("snapshots", Code::InvalidArgument),
        ("snapshots/a/b", Code::InvalidArgument),
    ] {
        let answer = leases.add_resource(add("first", resource(kind, "x")));
        side.refused("add what has no such type", answer, code, "resource").await;
    }
    let mut nameless = vec![("ingests", ""), ("snapshots/overlayfs", ""), ("snapshots/", "x")];
    if side.is_modern() {
        nameless.push(("images", ""));
    }
    for (kind, id) in nameless {
        let answer = leases.add_resource(add("first", resource(kind, id)));
        side.refused("add what has no name", answer, Code::InvalidArgument, "").await;
    }
    let remove = |lease: &str, resource| ask(DeleteResourceRequest { id: lease.into(), resource });
    let answer = leases.delete_resource(remove("none", none.clone()));
    side.refused("take from what is not there", answer, Code::NotFound, "none").await;
    let answer = leases.delete_resource(remove("none", resource("volumes", "x")));
    side.refused("take what is none from what is not there", answer, Code::NotFound, "none").await;
    let answer = leases.delete_resource(remove("first", resource("volumes", "x")));
    side.refused("take what has no such type", answer, Code::Unimplemented, "").await;
    let answer = leases.delete_resource(remove("first", resource("content", "no digest")));
    side.refused("take what is no digest", answer, Code::InvalidArgument, "").await;
    side.ok("take", leases.delete_resource(remove("first", none.clone()))).await;
    side.ok("take again", leases.delete_resource(remove("first", none))).await;
    let found = side.ok("list resources", leases.list_resources(list("first"))).await.resources;
    side.is("what was taken is held no more", found.len(), held.len() - 1);
    side.ok("delete", leases.delete(ask(delete("first")))).await;
    let answer = leases.list_resources(list("first"));
    side.refused("list what was deleted", answer, Code::NotFound, "first").await;
}
