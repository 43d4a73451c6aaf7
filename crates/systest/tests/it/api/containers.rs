//! `containerd.services.containers.v1`

use api::grpc::containers::containers_client::ContainersClient;
use api::grpc::containers::{
    Container, CreateContainerRequest, DeleteContainerRequest, GetContainerRequest, ListContainersRequest,
    Runtime, UpdateContainerRequest,
};
use api::grpc::types::Any;
use tonic::Code;

use super::walk::{
    BAD_FILTERS, BROKEN, BROKEN_THERE, Difference, SAME, Side, There, all, ask, covers, differs, differs_in,
    map, mask, within,
};

const DIFFERENCES: &[Difference] = &[
    differs_in(
        2,
        "no spec",
        There::Code(Code::Ok),
        "a pointer to nothing in an interface is something there",
    ),
    differs_in(
        2,
        "update to no spec",
        There::Code(Code::Ok),
        "a pointer to nothing in an interface is something there",
    ),
    differs("a label without a key", There::Code(Code::Unknown), "the same refusal, without a class"),
    BROKEN_THERE,
];

fn any(text: &str) -> Any {
    Any { type_url: "example.org/thing".into(), value: text.as_bytes().to_vec() }
}

pub(super) fn container(id: &str) -> Container {
    Container {
        id: id.into(),
        runtime: Some(Runtime { name: "io.containerd.example.v1".into(), options: None }),
        spec: Some(any("spec")),
        ..Container::default()
    }
}

fn create(container: Container) -> CreateContainerRequest {
    CreateContainerRequest { container: Some(container) }
}

fn get(id: &str) -> GetContainerRequest {
    GetContainerRequest { id: id.into() }
}

fn delete(id: &str) -> DeleteContainerRequest {
    DeleteContainerRequest { id: id.into() }
}

#[test]
fn containers_walked() {
    let methods = &[
        "Containers.Get",
        "Containers.List",
        "Containers.ListStream",
        "Containers.Create",
        "Containers.Update",
        "Containers.Delete",
    ];
    covers(methods).walk(DIFFERENCES, async |side| {
        what_is_made_is_checked(side).await;
        masks_say_what_changes(side).await;
        filters_choose(side).await;
        what_is_deleted_is_gone(side).await;
    });
}

/// What does not fit into one message comes in many.
#[test]
fn a_list_that_is_longer_than_a_message_is_refused_and_streamed() {
    covers(&["Containers.List", "Containers.ListStream"]).well().walk(SAME, async |side| {
        let client = || {
            // Larger than the daemon may send.
            ContainersClient::new(side.channel()).max_decoding_message_size(64 << 20)
        };
        for number in 0..20 {
            let spec = Some(any(&"x".repeat(1 << 20)));
            let large = Container { spec, ..container(&format!("large{number}")) };
            side.ok("create", client().create(ask(create(large)))).await;
        }
        let mut large = client();
        let answer = large.list(ask(ListContainersRequest::default()));
        side.refused("list what is longer than a message", answer, Code::ResourceExhausted, "").await;
        let one = ListContainersRequest { filters: vec!["id==large7".into()] };
        side.is("some are listed", side.ok("list one", client().list(ask(one))).await.containers.len(), 1);
        let all =
            side.ok("stream a list", all(client().list_stream(ask(ListContainersRequest::default())))).await;
        let sizes = all.iter().filter_map(|answer| answer.container.as_ref()?.spec.as_ref());
        side.is("all are streamed", sizes.filter(|spec| spec.value.len() == 1 << 20).count(), 20);
    });
}

async fn what_is_made_is_checked(side: &Side<'_>) {
    let mut containers = ContainersClient::new(side.channel());
    let required = "namespace is required";
    let answer = containers.get(within(None, get("a")));
    side.refused("get without a namespace", answer, Code::FailedPrecondition, required).await;
    let answer = containers.list(within(None, ListContainersRequest::default()));
    side.refused("list without a namespace", answer, Code::FailedPrecondition, required).await;
    let answer = all(containers.list_stream(within(None, ListContainersRequest::default())));
    side.refused("stream a list without a namespace", answer, Code::FailedPrecondition, required).await;
    let answer = containers.create(within(None, create(container("a"))));
    side.refused("create without a namespace", answer, Code::FailedPrecondition, required).await;
    let answer = containers.delete(within(None, delete("a")));
    side.refused("delete without a namespace", answer, Code::FailedPrecondition, required).await;

    for id in ["", ".", "-a", "a-", "a..b", "a/b", "a b", "ä", &"x".repeat(77)] {
        let answer = containers.create(ask(create(container(id))));
        side.refused("an id that is none", answer, Code::InvalidArgument, "").await;
    }
    let nameless = Container { runtime: Some(Runtime::default()), ..container("a") };
    let answer = containers.create(ask(create(nameless)));
    side.refused("a runtime without a name", answer, Code::InvalidArgument, "Runtime.Name").await;
    let answer = containers.create(ask(create(Container { runtime: None, ..container("a") })));
    side.refused("no runtime", answer, Code::InvalidArgument, "Runtime.Name").await;
    let answer = containers.create(ask(create(Container { spec: None, ..container("a") })));
    side.refused("no spec", answer, Code::InvalidArgument, "Spec must be set").await;
    if side.is_modern() && !side.is_ours() {
        side.ok("delete what it made", containers.delete(ask(delete("a")))).await;
    }
    let keyed = Container { snapshot_key: "key".into(), ..container("a") };
    let answer = containers.create(ask(create(keyed)));
    side.refused("a snapshot of no snapshotter", answer, Code::InvalidArgument, "Snapshotter must be set")
        .await;
    let nameless = Container { extensions: [(String::new(), any("x"))].into(), ..container("a") };
    let answer = containers.create(ask(create(nameless)));
    side.refused("an extension without a name", answer, Code::InvalidArgument, "xtension").await;
    let long = Container { labels: map(&[("key", &"v".repeat(4094))]), ..container("a") };
    let answer = containers.create(ask(create(long)));
    side.refused("a label that is too long", answer, Code::InvalidArgument, "label key and value").await;
    if side.is_ours() {
        let answer = containers.create(ask(CreateContainerRequest::default()));
        side.refused("a creation of nothing", answer, Code::InvalidArgument, "container is required").await;
    }

    let keyless = Container { labels: map(&[("", "v")]), ..container("a") };
    let answer = containers.create(ask(create(keyless)));
    side.refused("a label without a key", answer, Code::InvalidArgument, "key").await;
    let bare = Container {
        spec: Some(Any::default()),
        extensions: [("typeless".into(), Any { type_url: String::new(), ..any("x") })].into(),
        ..container("bare")
    };
    let made = side.ok("create with a spec of nothing", containers.create(ask(create(bare.clone())))).await;
    let made = made.container.unwrap_or_default();
    side.is("a spec of nothing is one", made.spec, bare.spec);
    side.is("an extension need not have a type", made.extensions, bare.extensions);
    side.ok("delete it", containers.delete(ask(delete("bare")))).await;

    let full = Container {
        labels: map(&[("kept", "yes"), ("none", "")]),
        image: "redis:7".into(),
        sandbox: if side.is_modern() { "pod".into() } else { String::new() },
        runtime: Some(Runtime { name: "io.containerd.example.v1".into(), options: Some(any("options")) }),
        snapshotter: "overlayfs".into(),
        snapshot_key: "key".into(),
        extensions: [("more".into(), any("extension"))].into(),
        ..container("full")
    };
    side.ok("create", containers.create(ask(create(full.clone())))).await;
    let found = side.ok("get", containers.get(ask(get("full")))).await.container.expect("a container");
    side.is(
        "times are the daemon's",
        found.created_at.is_some() && found.created_at == found.updated_at,
        true,
    );
    let expected = Container {
        labels: map(&[("kept", "yes")]),
        created_at: found.created_at,
        updated_at: found.updated_at,
        ..full.clone()
    };
    side.is("all is kept", found, expected);
    let answer = containers.create(ask(create(full)));
    side.refused("an id that is taken", answer, Code::AlreadyExists, "container \"full\"").await;
    let answer = containers.get(ask(get("none")));
    side.refused("get what is not there", answer, Code::NotFound, "container \"none\"").await;
    let answer = containers.get(within(Some("other"), get("full")));
    side.refused("a container of another namespace", answer, Code::NotFound, "container \"full\"").await;
}

/// A case, its mask, and what that makes of the container, given the update.
type Step = (&'static str, &'static str, fn(&mut Container, &Container));

async fn masks_say_what_changes(side: &Side<'_>) {
    let mut containers = ContainersClient::new(side.channel());
    let update = |container: Container, paths: &[&str]| {
        let update_mask = mask(paths).filter(|mask| !mask.paths.is_empty());
        ask(UpdateContainerRequest { container: Some(container), update_mask })
    };
    let first = Container {
        labels: map(&[("a", "1"), ("b.c", "2")]),
        image: "one".into(),
        snapshotter: "native".into(),
        snapshot_key: "first".into(),
        extensions: [("x".into(), any("1")), ("y".into(), any("2"))].into(),
        ..container("masked")
    };
    side.ok("create", containers.create(ask(create(first.clone())))).await;
    let other = Container {
        labels: map(&[("a", "9"), ("b.c", "9")]),
        image: "two".into(),
        spec: Some(any("another")),
        snapshot_key: "second".into(),
        extensions: [("x".into(), any("9")), ("z".into(), any("9"))].into(),
        ..first.clone()
    };
    let mut expected = first.clone();
    let steps: &[Step] = &[
        ("one label", "labels.b.c", |now, _| drop(now.labels.insert("b.c".into(), "9".into()))),
        ("all labels", "labels", |now, other| now.labels = other.labels.clone()),
        ("the image", "image", |now, other| now.image = other.image.clone()),
        ("the spec", "spec", |now, other| now.spec = other.spec.clone()),
        ("the snapshot", "snapshotkey", |now, other| now.snapshot_key = other.snapshot_key.clone()),
        ("one extension", "extensions.x", |now, _| drop(now.extensions.insert("x".into(), any("9")))),
        ("all extensions", "extensions", |now, other| now.extensions = other.extensions.clone()),
    ];
    for (case, path, apply) in steps {
        let changed = side.ok(case, containers.update(update(other.clone(), &[path]))).await;
        let changed = changed.container.expect("a container");
        apply(&mut expected, &other);
        expected.created_at = changed.created_at;
        expected.updated_at = changed.updated_at;
        side.is(case, changed, expected.clone());
    }
    let changed = side.ok("all at once", containers.update(update(first.clone(), &[]))).await;
    let changed = changed.container.expect("a container");
    let plain = Container { created_at: None, updated_at: None, ..changed };
    side.is("without a mask all changes", plain, first.clone());

    let answer = containers.update(update(other.clone(), &["extensions."]));
    side.refused("an extension without a name", answer, Code::InvalidArgument, "xtension").await;
    for path in ["id", "runtime", "runtime.name", "snapshotter", "label", "created_at", ""] {
        let answer = containers.update(update(other.clone(), &[path]));
        side.refused("a field that does not change", answer, Code::InvalidArgument, "").await;
    }
    let moved = Container { snapshotter: "overlayfs".into(), ..first.clone() };
    let answer = containers.update(update(moved, &[]));
    side.refused("another snapshotter", answer, Code::InvalidArgument, "immutable").await;
    let moved = Container {
        runtime: Some(Runtime { name: "io.containerd.other.v1".into(), options: None }),
        ..first.clone()
    };
    let answer = containers.update(update(moved, &[]));
    side.refused("another runtime", answer, Code::InvalidArgument, "immutable").await;
    let answer = containers.update(update(container("none"), &["labels"]));
    side.refused("update what is not there", answer, Code::NotFound, "container \"none\"").await;
    let answer = containers.update(update(container("a/b"), &["labels"]));
    side.refused("update what cannot be there", answer, Code::NotFound, "a/b").await;
    let answer = containers.update(update(container(""), &["labels"]));
    side.refused("update without an id", answer, Code::InvalidArgument, "").await;
    let answer = containers.update(update(Container { spec: None, ..first.clone() }, &["spec"]));
    side.refused("update to no spec", answer, Code::InvalidArgument, "Spec must be set").await;
    if side.is_ours() {
        let answer = containers.update(ask(UpdateContainerRequest::default()));
        side.refused("update nothing", answer, Code::InvalidArgument, "container is required").await;
    }
}

async fn filters_choose(side: &Side<'_>) {
    let mut containers = ContainersClient::new(side.channel());
    let labelled = Container { labels: map(&[("tier", "gold")]), image: "nginx".into(), ..container("web") };
    side.ok("create", containers.create(ask(create(labelled)))).await;
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &["full", "masked", "web"]),
        (&["id==web"], &["web"]),
        (&["id~=^[fm]"], &["full", "masked"]),
        (&["image==nginx"], &["web"]),
        (&["runtime.name==io.containerd.example.v1,labels.tier"], &["web"]),
        (&["labels.tier==gold", "id==full"], &["full", "web"]),
        (&["labels.tier!=gold"], &["full", "masked"]),
        (&["image"], &["full", "masked", "web"]),
    ];
    for (filters, expected) in cases {
        let list = ListContainersRequest { filters: filters.iter().map(ToString::to_string).collect() };
        let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
        let found = side.ok("list", containers.list(ask(list.clone()))).await.containers;
        let found: Vec<String> = found.into_iter().map(|container| container.id).collect();
        side.is("filters choose", (filters, found), (filters, expected.clone()));
        let found = side.ok("stream a list", all(containers.list_stream(ask(list)))).await;
        let found = found.into_iter().filter_map(|message| message.container);
        let found: Vec<String> = found.map(|container| container.id).collect();
        side.is("filters choose in a stream", (filters, found), (filters, expected));
    }
    for (case, filter) in BAD_FILTERS.iter().chain([&BROKEN]) {
        let list = ListContainersRequest { filters: vec![(*filter).into()] };
        side.refused(case, containers.list(ask(list.clone())), Code::InvalidArgument, "").await;
        side.refused(case, all(containers.list_stream(ask(list))), Code::InvalidArgument, "").await;
    }
}

async fn what_is_deleted_is_gone(side: &Side<'_>) {
    let mut containers = ContainersClient::new(side.channel());
    let answer = containers.delete(within(Some("other"), delete("web")));
    side.refused("delete in another namespace", answer, Code::NotFound, "web").await;
    side.ok("delete", containers.delete(ask(delete("web")))).await;
    let answer = containers.get(ask(get("web")));
    side.refused("get what was deleted", answer, Code::NotFound, "container \"web\"").await;
    let answer = containers.delete(ask(delete("web")));
    side.refused("delete what is not there", answer, Code::NotFound, "web").await;
}
