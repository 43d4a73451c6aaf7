//! `containerd.services.sandbox.v1`: records of sandboxes and the controllers that run them. Not in containerd 1.6.
#![allow(clippy::needless_update, reason = "requests differ in what else they have")]

use api::grpc::event::{SandboxCreate, SandboxExit, SandboxStart};
use api::grpc::events::events_client::EventsClient;
use api::grpc::sandbox::controller::controller_client::ControllerClient;
use api::grpc::sandbox::controller::{
    ControllerCreateRequest, ControllerMetricsRequest, ControllerPlatformRequest, ControllerShutdownRequest,
    ControllerStartRequest, ControllerStatusRequest, ControllerStopRequest, ControllerUpdateRequest,
    ControllerWaitRequest,
};
use api::grpc::sandbox::store_client::StoreClient;
use api::grpc::sandbox::{
    Runtime, Sandbox, StoreCreateRequest, StoreDeleteRequest, StoreGetRequest, StoreListRequest,
    StoreUpdateRequest,
};
use api::grpc::types::Any;
use api::shim::pack;
use serde_json::json;
use testkit::is_root;
use tonic::Code;

use super::events::listen;
use super::walk::{BAD_FILTERS, Difference, SAME, Side, There, covers, differs_in, map, within};
use crate::cgroups::HIERARCHIES;
use crate::typed::ask;

/// containerd's own shim does not serve sandboxes, so ours does there too.
const RUNTIME: &str = "io.containerd.hoist.v2";

/// What containerd does not look at in sandboxes.
const DIFFERENCES: &[Difference] = &[
    differs_in(
        2,
        "a label that is too long",
        There::Code(Code::Ok),
        "labels of sandboxes are not checked there",
    ),
    differs_in(
        2,
        "an extension without a name",
        There::Code(Code::Unknown),
        "the same refusal, without a class",
    ),
];

/// A mask, and what it makes of a sandbox, given the update.
type Step = (&'static str, fn(&mut Sandbox, &Sandbox));

fn any(text: &str) -> Any {
    Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
        value: text.as_bytes().to_vec(),
    }
}

fn spec(id: &str) -> String {
    let cgroup = format!("/hoist-walk-{}-{id}", std::process::id());
    let document = json!({
        "ociVersion": "1.1.0",
        "linux": { "namespaces": [{ "type": "ipc" }], "cgroupsPath": cgroup },
    });
    document.to_string()
}

fn sandbox(id: &str) -> Sandbox {
    Sandbox {
        sandbox_id: id.into(),
        runtime: Some(Runtime { name: RUNTIME.into(), options: None }),
        spec: Some(any(&spec(id))),
        sandboxer: "shim".into(),
        ..Sandbox::default()
    }
}

fn create(sandbox: Sandbox) -> StoreCreateRequest {
    StoreCreateRequest { sandbox: Some(sandbox) }
}

fn get(id: &str) -> StoreGetRequest {
    StoreGetRequest { sandbox_id: id.into() }
}

fn delete(id: &str) -> StoreDeleteRequest {
    StoreDeleteRequest { sandbox_id: id.into() }
}

fn update(sandbox: Sandbox, fields: &[&str]) -> StoreUpdateRequest {
    StoreUpdateRequest { sandbox: Some(sandbox), fields: fields.iter().map(ToString::to_string).collect() }
}

#[test]
fn sandbox_store_walked() {
    let methods = &["Store.Create", "Store.Update", "Store.Delete", "Store.List", "Store.Get"];
    covers(methods).walk_since(2, DIFFERENCES, async |side| {
        records_are_looked_at(side).await;
        let mut store = StoreClient::new(side.channel());
        let first = Sandbox {
            labels: map(&[("app", "web")]),
            extensions: [("x".into(), any("1"))].into(),
            ..sandbox("pod")
        };
        side.ok("create", store.create(ask(create(first.clone())))).await;
        side.refused(
            "an id that is taken",
            store.create(ask(create(first.clone()))),
            Code::AlreadyExists,
            "pod",
        )
        .await;
        let expected = masks_choose_fields(side, first).await;
        filters_choose_sandboxes(side).await;
        let found = side.ok("get", store.get(ask(get("pod")))).await.sandbox.unwrap_or_default();
        side.is("all is kept", found, expected);
        side.ok("delete", store.delete(ask(delete("pod")))).await;
        side.refused("delete what is not there", store.delete(ask(delete("pod"))), Code::NotFound, "pod")
            .await;
        side.refused("get what is not there", store.get(ask(get("pod"))), Code::NotFound, "pod").await;
    });
}

/// What is no sandbox does not come into the store.
async fn records_are_looked_at(side: &Side<'_>) {
    let mut store = StoreClient::new(side.channel());
    let (code, words) = (Code::FailedPrecondition, "namespace is required");
    let answer = store.create(within(None, create(sandbox("pod"))));
    side.refused("create without a namespace", answer, code, words).await;
    let answer = store.list(within(None, StoreListRequest::default()));
    side.refused("list without a namespace", answer, code, words).await;
    for id in ["", "-a", "a/b", &"x".repeat(77)] {
        let answer = store.create(ask(create(sandbox(id))));
        side.refused("an id that is none", answer, Code::InvalidArgument, "").await;
        side.refused("get an id that is none", store.get(ask(get(id))), Code::NotFound, "").await;
        side.refused("delete an id that is none", store.delete(ask(delete(id))), Code::NotFound, "").await;
    }
    // What is not there, here and below, breaks 2.3 down.
    if side.is_ours() {
        let answer = store.create(ask(StoreCreateRequest::default()));
        side.refused("a creation of nothing", answer, Code::InvalidArgument, "sandbox").await;
    }
    let nameless = Sandbox { extensions: [(String::new(), any("x"))].into(), ..sandbox("nameless") };
    let answer = store.create(ask(create(nameless)));
    side.refused("an extension without a name", answer, Code::InvalidArgument, "xtension").await;
    let long = Sandbox { labels: map(&[("key", &"v".repeat(4094))]), ..sandbox("long") };
    let answer = store.create(ask(create(long)));
    side.refused("a label that is too long", answer, Code::InvalidArgument, "label key and value").await;
    if side.is_ours() {
        let nameless = Sandbox { runtime: None, ..sandbox("pod") };
        let answer = store.create(ask(create(nameless)));
        side.refused("no runtime", answer, Code::InvalidArgument, "untime").await;
    } else {
        side.ok("delete what it made", store.delete(ask(delete("long")))).await;
    }
}

/// Gives the sandbox as it is after all updates.
async fn masks_choose_fields(side: &Side<'_>, first: Sandbox) -> Sandbox {
    let mut store = StoreClient::new(side.channel());
    let other = Sandbox {
        labels: map(&[("tier", "front")]),
        extensions: [("x".into(), any("2")), ("y".into(), any("2"))].into(),
        spec: Some(any("{}")),
        ..first.clone()
    };
    let mut expected = first;
    let steps: &[Step] = &[
        ("labels.tier", |now, _| drop(now.labels.insert("tier".into(), "front".into()))),
        ("labels", |now, other| now.labels = other.labels.clone()),
        ("extensions.y", |now, _| drop(now.extensions.insert("y".into(), any("2")))),
        ("extensions", |now, other| now.extensions = other.extensions.clone()),
        ("spec", |now, other| now.spec = other.spec.clone()),
        ("runtime", |now, other| now.runtime = other.runtime.clone()),
    ];
    for (path, apply) in steps {
        let changed = side.ok("update", store.update(ask(update(other.clone(), &[path])))).await;
        let changed = changed.sandbox.unwrap_or_default();
        apply(&mut expected, &other);
        (expected.created_at, expected.updated_at) = (changed.created_at, changed.updated_at);
        side.is("what the mask says changes", (path, changed), (path, expected.clone()));
    }
    let answer = store.update(ask(update(other.clone(), &["sandboxer"])));
    side.refused("a field that does not change", answer, Code::InvalidArgument, "sandboxer").await;
    let moved = Sandbox { runtime: Some(Runtime { name: "other".into(), options: None }), ..other.clone() };
    side.refused("another runtime", store.update(ask(update(moved, &[]))), Code::InvalidArgument, "").await;
    let answer = store.update(ask(update(sandbox("none"), &["labels"])));
    side.refused("update what is not there", answer, Code::NotFound, "none").await;
    expected
}

async fn filters_choose_sandboxes(side: &Side<'_>) {
    let mut store = StoreClient::new(side.channel());
    side.ok("create another", store.create(ask(create(sandbox("second"))))).await;
    for (filter, expected) in
        [("", vec!["pod", "second"]), ("labels.tier==front", vec!["pod"]), ("id~=^s", vec!["second"])]
    {
        let list = StoreListRequest { filters: vec![filter.into()] };
        let found = side.ok("list", store.list(ask(list))).await.list;
        let found: Vec<String> = found.into_iter().map(|sandbox| sandbox.sandbox_id).collect();
        let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
        side.is("filters choose", (filter, found), (filter, expected));
    }
    for (case, filter) in BAD_FILTERS {
        let answer = store.list(ask(StoreListRequest { filters: vec![(*filter).into()] }));
        side.refused(case, answer, Code::InvalidArgument, "").await;
    }
}

const DIFFERENCES_OF_UPDATES: &[Difference] = &[differs_in(
    2,
    "an update of a long label",
    There::Code(Code::Ok),
    "labels of sandboxes are not checked there",
)];

/// What each mask makes of each field, also where the update says nothing of it.
#[test]
fn sandbox_updates_walked() {
    covers(&["Store.Create", "Store.Update", "Store.Get"]).well().walk_since(
        2,
        DIFFERENCES_OF_UPDATES,
        async |side| {
            let mut store = StoreClient::new(side.channel());
            let first = Sandbox {
                labels: map(&[("app", "web"), ("tier", "front")]),
                extensions: [("x".into(), any("1")), ("y".into(), any("1"))].into(),
                ..sandbox("pod")
            };
            let made =
                side.ok("create", store.create(ask(create(first.clone())))).await.sandbox.expect("a sandbox");
            let runtime = first.runtime.clone();
            let unspoken = Sandbox { sandbox_id: "pod".into(), runtime, ..Sandbox::default() };
            let answer = store.update(within(None, update(first.clone(), &[])));
            let required = "namespace is required";
            side.refused("without a namespace", answer, Code::FailedPrecondition, required).await;
            for id in ["", "a/b", "none"] {
                let other = Sandbox { sandbox_id: id.into(), ..first.clone() };
                let answer = store.update(ask(update(other, &["labels"])));
                side.refused("an id that is not there", answer, Code::NotFound, "").await;
            }
            for path in ["id", "created_at", "sandboxer", "label", "runtime.name", "spec.value", ""] {
                let answer = store.update(ask(update(first.clone(), &["labels", path])));
                let words = format!("cannot update {path:?} field on sandbox \"pod\"");
                side.refused("a field that does not change", answer, Code::InvalidArgument, &words).await;
            }
            // containerd breaks down.
            if side.is_ours() {
                let nameless = Sandbox { runtime: None, ..unspoken.clone() };
                let answer = store.update(ask(update(nameless, &[])));
                side.refused("all, without a runtime", answer, Code::InvalidArgument, "immutable").await;
            }
            let long = Sandbox { labels: map(&[("key", &"v".repeat(4094))]), ..first.clone() };
            let answer = store.update(ask(update(long, &["labels.key"])));
            side.refused("an update of a long label", answer, Code::InvalidArgument, "label").await;
            let answer = store.update(ask(update(unspoken.clone(), &["labels.key"])));
            side.ok("a label that is not named goes", answer).await;

            let other = Sandbox {
                runtime: Some(Runtime { name: "io.containerd.other.v2".into(), options: Some(any("o")) }),
                sandboxer: "other".into(),
                ..unspoken.clone()
            };
            let steps: &[(&[&str], Step)] = &[
                (&["labels.app"], ("labels.app", |now, _| drop(now.labels.remove("app")))),
                (&["extensions.y"], ("extensions.y", |now, _| drop(now.extensions.remove("y")))),
                (
                    &["labels", "extensions"],
                    ("both", |now, _| {
                        now.labels.clear();
                        now.extensions.clear();
                    }),
                ),
                (&["runtime"], ("runtime", |now, other| now.runtime.clone_from(&other.runtime))),
                (&["spec"], ("spec", |now, _| now.spec = None)),
                (&[], ("all", |_, _| ())),
            ];
            let mut expected = made;
            // What an update leaves out is answered there as gone, and kept.
            let is_walked = |name: &str| side.is_ours() || ["labels.app", "runtime"].contains(&name);
            for (fields, (name, apply)) in steps.iter().filter(|(_, (name, _))| is_walked(name)) {
                let changed = side.ok("update", store.update(ask(update(other.clone(), fields)))).await;
                let changed = changed.sandbox.unwrap_or_default();
                apply(&mut expected, &other);
                side.is("it is younger", changed.updated_at != expected.updated_at, true);
                expected.updated_at = changed.updated_at;
                side.is("what is named changes", (name, &changed), (name, &expected));
                let kept = side.ok("get", store.get(ask(get("pod")))).await.sandbox;
                side.is("and is kept", kept.as_ref(), Some(&changed));
            }
        },
    );
}

const DIFFERENCES_OF_CONTROLLERS: &[Difference] = &[
    differs_in(
        2,
        "the status of what is gone",
        There::Code(Code::Ok),
        "one that is not there has ended there",
    ),
    differs_in(2, "it says where it is", There::Value("(true, true)"), "it leaves out the address"),
    differs_in(
        2,
        "start by an id that is none",
        There::Code(Code::Unknown),
        "ids are looked at when a sandbox is created only",
    ),
    differs_in(
        2,
        "stop by an id that is none",
        There::Code(Code::Ok),
        "ids are looked at when a sandbox is created only",
    ),
    differs_in(
        2,
        "wait by an id that is none",
        There::Code(Code::NotFound),
        "ids are looked at when a sandbox is created only",
    ),
    differs_in(
        2,
        "status by an id that is none",
        There::Code(Code::Ok),
        "ids are looked at when a sandbox is created only",
    ),
    differs_in(
        2,
        "metrics by an id that is none",
        There::Code(Code::NotFound),
        "ids are looked at when a sandbox is created only",
    ),
    differs_in(
        2,
        "shutdown by an id that is none",
        There::Code(Code::NotFound),
        "ids are looked at when a sandbox is created only",
    ),
    differs_in(
        2,
        "create what is not there",
        There::Code(Code::Unknown),
        "a sandbox need not be in the store",
    ),
    differs_in(2, "start what is not there", There::Code(Code::Unknown), "the same refusal, without a class"),
    differs_in(2, "status what is not there", There::Code(Code::Ok), "one that is not there has ended there"),
    differs_in(2, "an update to nothing", There::Code(Code::Unknown), "the same refusal, without a class"),
    differs_in(
        2,
        "an update of what is not there",
        There::Code(Code::Ok),
        "nothing is done there, whatever is asked",
    ),
    differs_in(
        2,
        "platform without a controller",
        There::Code(Code::Unimplemented),
        "the method is declared there, and not served",
    ),
    differs_in(
        2,
        "platform with a controller that is none",
        There::Code(Code::Unimplemented),
        "the method is declared there, and not served",
    ),
    differs_in(
        2,
        "platform by an id that is none",
        There::Code(Code::Unimplemented),
        "the method is declared there, and not served",
    ),
    differs_in(
        2,
        "platform what is not there",
        There::Code(Code::Unimplemented),
        "the method is declared there, and not served",
    ),
];

#[test]
fn sandbox_controller_walked() {
    if !is_root("a sandbox") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    let methods = &[
        "Controller.Create",
        "Controller.Start",
        "Controller.Platform",
        "Controller.Stop",
        "Controller.Wait",
        "Controller.Status",
        "Controller.Shutdown",
        "Controller.Metrics",
        "Controller.Update",
    ];
    covers(methods).walk_since(2, DIFFERENCES_OF_CONTROLLERS, async |side| {
        controllers_are_named(side).await;
        a_sandbox_comes_and_goes(side).await;
    });
}

macro_rules! of {
    ($request:ident, $id:expr, $sandboxer:expr) => {
        ask($request { sandbox_id: $id.into(), sandboxer: $sandboxer.into(), ..$request::default() })
    };
}

/// Every call says who runs the sandbox, and which one it is.
async fn controllers_are_named(side: &Side<'_>) {
    let mut controller = ControllerClient::new(side.channel());
    let without = ControllerCreateRequest {
        sandbox_id: "pod".into(),
        sandbox: Some(sandbox("pod")),
        sandboxer: "shim".into(),
        ..Default::default()
    };
    let answer = controller.create(within(None, without));
    side.refused("create without a namespace", answer, Code::FailedPrecondition, "namespace is required")
        .await;
    macro_rules! each {
        ($($method:ident $request:ident;)+) => { $(
            let answer = controller.$method(of!($request, "pod", ""));
            let case = concat!(stringify!($method), " without a controller");
            side.refused(case, answer, Code::InvalidArgument, "controller").await;
            let answer = controller.$method(of!($request, "pod", "none"));
            let case = concat!(stringify!($method), " with a controller that is none");
            side.refused(case, answer, Code::NotFound, "none").await;
            let answer = controller.$method(of!($request, "a/b", "shim"));
            let case = concat!(stringify!($method), " by an id that is none");
            side.refused(case, answer, Code::InvalidArgument, "a/b").await;
        )+ };
    }
    each! {
        create ControllerCreateRequest;
        start ControllerStartRequest;
        platform ControllerPlatformRequest;
        stop ControllerStopRequest;
        wait ControllerWaitRequest;
        status ControllerStatusRequest;
        metrics ControllerMetricsRequest;
        shutdown ControllerShutdownRequest;
    }
    macro_rules! missing {
        ($($method:ident $request:ident;)+) => { $(
            let answer = controller.$method(of!($request, "none", "shim"));
            let case = concat!(stringify!($method), " what is not there");
            side.refused(case, answer, Code::NotFound, "").await;
        )+ };
    }
    missing! {
        create ControllerCreateRequest;
        start ControllerStartRequest;
        platform ControllerPlatformRequest;
        wait ControllerWaitRequest;
        status ControllerStatusRequest;
        metrics ControllerMetricsRequest;
        shutdown ControllerShutdownRequest;
    }
    side.ok("stop what is not there", controller.stop(of!(ControllerStopRequest, "none", "shim"))).await;
}

async fn a_sandbox_comes_and_goes(side: &Side<'_>) {
    let mut controller = ControllerClient::new(side.channel());
    let creation = || ControllerCreateRequest {
        sandbox_id: "pod".into(),
        sandbox: Some(sandbox("pod")),
        sandboxer: "shim".into(),
        ..ControllerCreateRequest::default()
    };
    let made = side.ok("create", controller.create(ask(creation()))).await;
    side.is("it has its name", made.sandbox_id, "pod");
    side.refused("create it again", controller.create(ask(creation())), Code::AlreadyExists, "pod").await;
    let started = side.ok("start", controller.start(of!(ControllerStartRequest, "pod", "shim"))).await;
    side.is("it says where it is", (started.pid > 0, started.address.is_empty()), (true, false));
    // containerd takes it down for that.
    if side.is_ours() {
        let answer = controller.start(of!(ControllerStartRequest, "pod", "shim"));
        side.refused("start it again", answer, Code::FailedPrecondition, "pod").await;
    }
    if side.is_ours() {
        let answer = controller.platform(of!(ControllerPlatformRequest, "pod", "shim"));
        let found = side.ok("platform", answer).await.platform;
        side.is("it runs programs of", found.map(|platform| platform.os), Some("linux".to_owned()));
    }
    let found = side.ok("status", controller.status(of!(ControllerStatusRequest, "pod", "shim"))).await;
    side.is("it is ready", (found.state.as_str(), found.pid), ("SANDBOX_READY", started.pid));
    let times = (found.created_at.map(|at| at.seconds > 0), found.exited_at.map(|at| at.seconds));
    side.is("it was made, and has not ended", times, (Some(true), Some(0)));
    let found = side.ok("metrics", controller.metrics(of!(ControllerMetricsRequest, "pod", "shim"))).await;
    side.is("its figures", found.metrics.map(|metrics| metrics.id), Some("pod".to_owned()));
    let told = |id: &str, sandboxer: &str, sandbox: Option<Sandbox>| {
        let (sandbox_id, fields) = (id.into(), vec!["labels".into()]);
        ask(ControllerUpdateRequest { sandbox_id, sandboxer: sandboxer.into(), sandbox, fields })
    };
    side.ok("update", controller.update(told("pod", "shim", Some(sandbox("pod"))))).await;
    let answer = controller.update(told("pod", "", Some(sandbox("pod"))));
    side.refused("an update without a controller", answer, Code::InvalidArgument, "controller").await;
    let answer = controller.update(told("pod", "none", Some(sandbox("pod"))));
    side.refused("an update by a controller that is none", answer, Code::NotFound, "none").await;
    let answer = controller.update(told("pod", "shim", None));
    side.refused("an update to nothing", answer, Code::InvalidArgument, "sandbox").await;
    let answer = controller.update(told("none", "shim", Some(sandbox("none"))));
    side.refused("an update of what is not there", answer, Code::NotFound, "none").await;
    let mut waiting = controller.clone();
    let waiting = tokio::spawn(async move { waiting.wait(of!(ControllerWaitRequest, "pod", "shim")).await });
    side.ok("stop", controller.stop(of!(ControllerStopRequest, "pod", "shim"))).await;
    let exit = waiting.await.expect("no panic").expect("it ends").into_inner();
    side.is("its end is told", exit.exited_at.is_some(), true);
    side.ok("wait for what has ended", controller.wait(of!(ControllerWaitRequest, "pod", "shim"))).await;
    let ended = side.ok("status", controller.status(of!(ControllerStatusRequest, "pod", "shim"))).await;
    side.is("it is not ready", ended.state.as_str(), "SANDBOX_NOTREADY");
    side.is("it says when it ended", ended.exited_at, exit.exited_at);
    side.ok("shut down", controller.shutdown(of!(ControllerShutdownRequest, "pod", "shim"))).await;
    let answer = controller.status(of!(ControllerStatusRequest, "pod", "shim"));
    side.refused("the status of what is gone", answer, Code::NotFound, "pod").await;
}

/// Somebody waits: containerd tells of an end when it answers those.
#[test]
fn what_becomes_of_a_sandbox_is_told_in_its_order() {
    if !is_root("a sandbox") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    covers(&["Events.Subscribe"]).well().walk_since(2, SAME, async |side| {
        let mut told = listen(&EventsClient::new(side.channel()), &["topic~=/^.sandboxes/"]).await;
        let mut controller = ControllerClient::new(side.channel());
        let creation = ControllerCreateRequest {
            sandbox_id: "told".into(),
            sandbox: Some(sandbox("told")),
            sandboxer: "shim".into(),
            ..ControllerCreateRequest::default()
        };
        side.ok("create", controller.create(ask(creation))).await;
        side.ok("start", controller.start(of!(ControllerStartRequest, "told", "shim"))).await;
        let mut waiting = controller.clone();
        let waiting =
            tokio::spawn(async move { waiting.wait(of!(ControllerWaitRequest, "told", "shim")).await });
        side.ok("stop", controller.stop(of!(ControllerStopRequest, "told", "shim"))).await;
        let exit = waiting.await.expect("no panic").expect("it ends").into_inner();
        let expected = [
            ("/sandboxes/create", pack(&SandboxCreate { sandbox_id: "told".into() })),
            ("/sandboxes/start", pack(&SandboxStart { sandbox_id: "told".into() })),
            (
                "/sandboxes/exit",
                pack(&SandboxExit {
                    sandbox_id: "told".into(),
                    exit_status: exit.exit_status,
                    exited_at: exit.exited_at,
                }),
            ),
        ];
        for (topic, event) in expected {
            let heard = loop {
                let heard = tokio::time::timeout(testkit::DEADLINE, told.message()).await;
                let heard = heard.expect("an event").expect("the stream lasts").expect("an event");
                if !heard.topic.starts_with("/mark/") {
                    break heard;
                }
            };
            side.is("where it is told", (&*heard.namespace, &*heard.topic), ("default", topic));
            side.is("what is told", (topic, heard.event), (topic, Some(event)));
        }
        side.ok("shut down", controller.shutdown(of!(ControllerShutdownRequest, "told", "shim"))).await;
    });
}
