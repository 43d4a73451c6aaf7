//! Events: which topics each call publishes, in which order and with which content, compared between Hoist and
//! containerd.

use std::fs;
use std::process::Command;

use api::grpc::containers::containers_client::ContainersClient;
use api::grpc::containers::{Container, DeleteContainerRequest, UpdateContainerRequest};
use api::grpc::content::content_client::ContentClient;
use api::grpc::content::{DeleteContentRequest, WriteAction, WriteContentRequest};
use api::grpc::event;
use api::grpc::events::events_client::EventsClient;
use api::grpc::images::images_client::ImagesClient;
use api::grpc::images::{CreateImageRequest, DeleteImageRequest, Image, UpdateImageRequest};
use api::grpc::leases::leases_client::LeasesClient;
use api::grpc::leases::{CreateRequest, DeleteRequest};
use api::grpc::namespaces::namespaces_client::NamespacesClient;
use api::grpc::namespaces::{
    CreateNamespaceRequest, DeleteNamespaceRequest, Namespace, UpdateNamespaceRequest,
};
use api::grpc::snapshots::snapshots_client::SnapshotsClient;
use api::grpc::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
    ViewSnapshotRequest,
};
use api::grpc::tasks::tasks_client::TasksClient;
use api::grpc::tasks::{
    CreateTaskRequest, DeleteProcessRequest, DeleteTaskRequest, PauseTaskRequest, ResumeTaskRequest,
};
use api::grpc::types::{Any, Descriptor, Envelope};
use api::shim::runc::Options;
use api::shim::{events as task, pack, unpack};
use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use testkit::{Daemon, Registry, images, is_root};
use tonic::Streaming;

use super::events::{listen, publish};
use super::tasks::{create, exec, kill, limited_record, record, record_with, root, start};
use super::walk::{Difference, Side, There, all, ask, covers, differs_in, map, mask};
use crate::cgroups::HIERARCHIES;

const DIFFERENCES: &[Difference] = &[
    differs_in(
        1,
        "what is told of namespaces",
        There::Value("[\"default /namespaces/create"),
        "it tells the new namespace's events in the caller's",
    ),
    differs_in(
        1,
        "what is told of blobs and images",
        There::Value("[\"default /images/create"),
        "it does not tell of new blobs",
    ),
    differs_in(
        1,
        "what is told of snapshots",
        There::Value("[\"default /snapshot/prepare \\\"told-one\\\" \\\"\\\" \\\"\\\"\""),
        "it does not tell which snapshotter it was",
    ),
];

const DIFFERENCES_OF_A_PULL: &[Difference] = &[
    differs_in(1, "what a client's pull tells of blobs", There::Value("0"), "it does not tell of new blobs"),
    differs_in(
        1,
        "what a client's pull tells besides",
        There::Value("/snapshot/commit \\\"extract 1\\\" \\\"1\\\" \\\"\\\"\""),
        "it does not tell which snapshotter it was",
    ),
];

/// Who hears everything that is told.
struct Listener<'s, 'd> {
    side: &'s Side<'d>,
    stream: Streaming<Envelope>,
}

impl Listener<'_, '_> {
    /// The next event, which is no mark; nor the deletion of a task, where that may be lost.
    async fn next(&mut self, case: &'static str) -> Envelope {
        loop {
            match self.stream.message().await {
                Ok(Some(event)) if event.topic.starts_with("/mark/") || self.may_lose(&event.topic) => {}
                Ok(Some(event)) => return event,
                other => panic!("{case}: {other:?}"),
            }
        }
    }

    /// The shim of containerd 2.x may end before it has told of a deletion.
    fn may_lose(&self, topic: &str) -> bool {
        !self.side.is_ours() && self.side.is_modern() && topic == "/tasks/delete"
    }

    /// What was told since the last time: this, in this order. Shims tell in their own time, so it is waited for.
    async fn hears(&mut self, case: &'static str, expected: &str) {
        let side = self.side;
        let heard = tokio::time::timeout(testkit::DEADLINE, async { shown(&self.next(case).await) });
        side.is(case, heard.await.unwrap_or_default(), expected.to_owned());
    }

    /// The same of the deletion of a task.
    async fn hears_of_deletion(&mut self, case: &'static str, expected: &str) {
        if !self.may_lose("/tasks/delete") {
            self.hears(case, expected).await;
        }
    }

    /// The same of several, until one of each of these topics was told. What is told again and again in a row counts
    /// once.
    async fn hears_all(&mut self, case: &'static str, topics: &[&str], expected: &[&str]) {
        let side = self.side;
        let mut missing = topics.to_vec();
        let heard = tokio::time::timeout(testkit::DEADLINE, async {
            let mut heard = Vec::new();
            while !missing.is_empty() {
                let event = self.next(case).await;
                missing.retain(|topic| *topic != event.topic);
                heard.push(shown(&event));
            }
            heard.dedup();
            heard
        });
        let expected: Vec<_> = expected.iter().map(ToString::to_string).collect();
        side.is(case, heard.await.unwrap_or_default(), expected);
    }

    /// The same of what the daemon tells by itself, before it answers.
    async fn has_heard(&mut self, case: &'static str, expected: &[&str]) {
        let heard = self.heard().await;
        self.side.is(case, heard, expected.iter().map(ToString::to_string).collect::<Vec<_>>());
    }

    /// What the daemon has told by itself since the last time.
    async fn heard(&mut self) -> Vec<String> {
        let mut events = EventsClient::new(self.side.channel());
        self.side.ok("publish a mark", events.publish(ask(publish("/mark/end")))).await;
        let mut heard = Vec::new();
        while let Ok(Some(event)) = self.stream.message().await {
            match event.topic.as_str() {
                "/mark/end" => break,
                "/mark/begin" => {}
                topic if self.may_lose(topic) => {}
                _ => heard.push(shown(&event)),
            }
        }
        heard
    }
}

/// Namespace, topic and content of an event, without what differs from run to run: of pids and times whether there is one.
fn shown(envelope: &Envelope) -> String {
    let Envelope { namespace, topic, event, timestamp } = envelope;
    let any = event.clone().unwrap_or_default();
    let content = content(topic, &any).unwrap_or_else(|| format!("{} is not known", any.type_url));
    let time = if timestamp.is_some() { "" } else { " without a time" };
    format!("{namespace} {topic} {content}{time}")
}

fn content(topic: &str, any: &Any) -> Option<String> {
    macro_rules! of {
        ($kind:ty, $event:ident => $($part:expr),+) => {{
            let $event = unpack::<$kind>(any)?.ok()?;
            [$(format!("{:?}", $part)),+].join(" ")
        }};
    }
    Some(match topic {
        "/namespaces/create" => of!(event::NamespaceCreate, event => event.name, event.labels),
        "/namespaces/update" => of!(event::NamespaceUpdate, event => event.name, event.labels),
        "/namespaces/delete" => of!(event::NamespaceDelete, event => event.name),
        "/images/create" => of!(event::ImageCreate, event => event.name, event.labels),
        "/images/update" => of!(event::ImageUpdate, event => event.name, event.labels),
        "/images/delete" => of!(event::ImageDelete, event => event.name),
        "/containers/create" => {
            of!(event::ContainerCreate, event => event.id, event.image, runtime_of(event.runtime))
        }
        "/containers/update" => {
            of!(event::ContainerUpdate, event => event.id, event.image, event.labels, event.snapshot_key)
        }
        "/containers/delete" => of!(event::ContainerDelete, event => event.id),
        "/content/create" => of!(event::ContentCreate, event => event.digest, event.size),
        "/content/delete" => of!(event::ContentDelete, event => event.digest),
        "/snapshot/prepare" => {
            of!(event::SnapshotPrepare, event => event.key, event.parent, event.snapshotter)
        }
        "/snapshot/commit" => {
            of!(event::SnapshotCommit, event => event.key, event.name, event.snapshotter)
        }
        "/snapshot/remove" => of!(event::SnapshotRemove, event => event.key, event.snapshotter),
        "/tasks/create" => of!(
            task::TaskCreate,
            event => event.container_id,
            name_of(&event.bundle),
            event.rootfs.iter().map(mount).collect::<Vec<_>>(),
            io_of(event.io),
            event.checkpoint,
            event.pid > 0
        ),
        "/tasks/start" => of!(task::TaskStart, event => event.container_id, event.pid > 0),
        "/tasks/exec-added" => of!(task::TaskExecAdded, event => event.container_id, event.exec_id),
        "/tasks/exec-started" => {
            of!(task::TaskExecStarted, event => event.container_id, event.exec_id, event.pid > 0)
        }
        "/tasks/oom" => of!(task::TaskOom, event => event.container_id),
        "/tasks/paused" => of!(task::TaskPaused, event => event.container_id),
        "/tasks/resumed" => of!(task::TaskResumed, event => event.container_id),
        "/tasks/exit" => of!(
            task::TaskExit,
            event => event.container_id,
            event.id,
            event.pid > 0,
            event.exit_status,
            event.exited_at.is_some()
        ),
        "/tasks/delete" => of!(
            task::TaskDelete,
            event => event.container_id,
            event.id,
            event.pid > 0,
            event.exit_status,
            event.exited_at.is_some()
        ),
        _ => return None,
    })
}

/// The last part of a path, whose others differ from run to run.
fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

fn mount(mount: &api::shim::types::Mount) -> String {
    format!("{} {} {:?} {}", mount.r#type, name_of(&mount.source), mount.target, mount.options.join(","))
}

/// The runtime by its options; its name is another on each side.
fn runtime_of(runtime: Option<event::ContainerRuntime>) -> String {
    let event::ContainerRuntime { name, options } = runtime.unwrap_or_default();
    let name = name.replace(".hoist.", ".own.").replace(".runc.", ".own.");
    format!("{name} {:?}", options.map(|Any { type_url, value }| (type_url, value)))
}

/// Streams by the last parts of their places.
fn io_of(io: Option<task::TaskIo>) -> Option<[String; 4]> {
    let place = |place: &str| match place.split_once("://") {
        Some((kind, path)) => format!("{kind} {}", name_of(path)),
        None => name_of(place).to_owned(),
    };
    io.map(|io| [place(&io.stdin), place(&io.stdout), place(&io.stderr), io.terminal.to_string()])
}

#[test]
fn what_is_done_is_told_in_its_order() {
    if !is_root("a container") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    covers(&["Events.Subscribe"]).well().walk(DIFFERENCES, async |side| {
        let stream = listen(&EventsClient::new(side.channel()), &[]).await;
        let mut listener = Listener { side, stream };
        namespaces_and_leases(&mut listener).await;
        blobs_and_images(&mut listener).await;
        snapshots(&mut listener).await;
        a_container(&mut listener).await;
        out_of_memory(&mut listener).await;
        a_dead_shim(&mut listener).await;
        listener.has_heard("nothing else is told", &[]).await;
    });
}

async fn namespaces_and_leases(listener: &mut Listener<'_, '_>) {
    let side = listener.side;
    let mut namespaces = NamespacesClient::new(side.channel());
    let named = |labels: &[(&str, &str)]| Some(Namespace { name: "told".into(), labels: map(labels) });
    let create = CreateNamespaceRequest { namespace: named(&[("a", "1")]) };
    side.ok("create a namespace", namespaces.create(ask(create))).await;
    let update = UpdateNamespaceRequest { namespace: named(&[("b", "2")]), update_mask: mask(&["labels.b"]) };
    side.ok("update a namespace", namespaces.update(ask(update))).await;
    let delete = DeleteNamespaceRequest { name: "told".into() };
    side.ok("delete a namespace", namespaces.delete(ask(delete))).await;
    let told = [
        "told /namespaces/create \"told\" {\"a\": \"1\"}",
        "told /namespaces/update \"told\" {\"b\": \"2\"}",
        "told /namespaces/delete \"told\"",
    ];
    listener.has_heard("what is told of namespaces", &told).await;

    let mut leases = LeasesClient::new(side.channel());
    let create = CreateRequest { id: "told".into(), ..CreateRequest::default() };
    side.ok("create a lease", leases.create(ask(create))).await;
    side.ok("delete a lease", leases.delete(ask(DeleteRequest { id: "told".into(), sync: false }))).await;
}

async fn blobs_and_images(listener: &mut Listener<'_, '_>) {
    let side = listener.side;
    let mut content = ContentClient::new(side.channel());
    let digest = types::Digest::of(b"told").to_string();
    let whole = WriteContentRequest {
        action: WriteAction::Commit.into(),
        r#ref: "told".into(),
        data: "told".into(),
        ..WriteContentRequest::default()
    };
    side.ok("write a blob", all(content.write(ask(tokio_stream::iter([whole]))))).await;

    let mut images = ImagesClient::new(side.channel());
    let target = Descriptor {
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        digest: digest.clone(),
        size: 4,
        ..Descriptor::default()
    };
    let image = |labels: &[(&str, &str)]| {
        Some(Image {
            name: "told:1".into(),
            labels: map(labels),
            target: Some(target.clone()),
            ..Image::default()
        })
    };
    let create = CreateImageRequest { image: image(&[("a", "1")]), ..CreateImageRequest::default() };
    side.ok("create an image", images.create(ask(create))).await;
    let update = UpdateImageRequest {
        image: image(&[("b", "2")]),
        update_mask: mask(&["labels.b"]),
        ..UpdateImageRequest::default()
    };
    side.ok("update an image", images.update(ask(update))).await;
    let delete = DeleteImageRequest { name: "told:1".into(), ..DeleteImageRequest::default() };
    side.ok("delete an image", images.delete(ask(delete))).await;
    side.ok("delete a blob", content.delete(ask(DeleteContentRequest { digest }))).await;
    let blob = types::Digest::of(b"told").to_string();
    let told = [
        &*format!("default /content/create {blob:?} 4"),
        "default /images/create \"told:1\" {\"a\": \"1\"}",
        "default /images/update \"told:1\" {\"a\": \"1\", \"b\": \"2\"}",
        "default /images/delete \"told:1\"",
        &format!("default /content/delete {blob:?}"),
    ];
    listener.has_heard("what is told of blobs and images", &told).await;
}

async fn snapshots(listener: &mut Listener<'_, '_>) {
    let side = listener.side;
    let mut snapshots = SnapshotsClient::new(side.channel());
    let snapshotter = || "overlayfs".to_owned();
    let prepare = |key: &str, parent: &str| PrepareSnapshotRequest {
        snapshotter: snapshotter(),
        key: key.into(),
        parent: parent.into(),
        ..PrepareSnapshotRequest::default()
    };
    side.ok("prepare", snapshots.prepare(ask(prepare("told-one", "")))).await;
    let commit = CommitSnapshotRequest {
        snapshotter: snapshotter(),
        name: "told-done".into(),
        key: "told-one".into(),
        ..CommitSnapshotRequest::default()
    };
    side.ok("commit", snapshots.commit(ask(commit))).await;
    let view = ViewSnapshotRequest {
        snapshotter: snapshotter(),
        key: "told-view".into(),
        parent: "told-done".into(),
        ..ViewSnapshotRequest::default()
    };
    side.ok("view", snapshots.view(ask(view))).await;
    side.ok("prepare another", snapshots.prepare(ask(prepare("told-two", "told-done")))).await;
    for key in ["told-view", "told-two", "told-done"] {
        let remove = RemoveSnapshotRequest { snapshotter: snapshotter(), key: key.into() };
        side.ok("remove", snapshots.remove(ask(remove))).await;
    }
    let told = [
        "default /snapshot/prepare \"told-one\" \"\" \"overlayfs\"",
        "default /snapshot/commit \"told-one\" \"told-done\" \"overlayfs\"",
        "default /snapshot/prepare \"told-two\" \"told-done\" \"overlayfs\"",
        "default /snapshot/remove \"told-view\" \"overlayfs\"",
        "default /snapshot/remove \"told-two\" \"overlayfs\"",
        "default /snapshot/remove \"told-done\" \"overlayfs\"",
    ];
    listener.has_heard("what is told of snapshots", &told).await;
}

async fn a_container(listener: &mut Listener<'_, '_>) {
    let side = listener.side;
    let mut containers = ContainersClient::new(side.channel());
    let options = Options { no_new_keyring: true, ..Options::default() };
    record_with(side, "told", "sleep 1000", Some(pack(&options))).await;
    let container = Container { id: "told".into(), labels: map(&[("a", "1")]), ..Container::default() };
    let update = UpdateContainerRequest { container: Some(container), update_mask: mask(&["labels.a"]) };
    side.ok("update a container", containers.update(ask(update))).await;
    let told = [
        "default /containers/create \"told\" \"\" \"io.containerd.own.v2 Some((\\\"containerd.runc.v1.Options\\\", [16, 1]))\"",
        "default /containers/update \"told\" \"\" {\"a\": \"1\"} \"\"",
    ];
    listener.has_heard("what is told of records", &told).await;

    let mut tasks = TasksClient::new(side.channel());
    let stdin = side.dir().join("told-in");
    mkfifoat(CWD, &stdin, Mode::RUSR | Mode::WUSR).expect("a writable directory");
    let request = CreateTaskRequest {
        stdin: stdin.display().to_string(),
        stdout: format!("file://{}", side.dir().join("told-out").display()),
        stderr: format!("file://{}", side.dir().join("told-err").display()),
        ..create("told", root(side.dir()))
    };
    side.ok("create", tasks.create(ask(request))).await;
    listener.hears("created", &created("told", ["told-in", "file told-out", "file told-err", "false"])).await;
    side.ok("start", tasks.start(ask(start("told", "")))).await;
    listener.hears("started", "default /tasks/start \"told\" true").await;
    side.ok("exec", tasks.exec(ask(exec("told", "more", "sleep 1000")))).await;
    listener.hears("a process more", "default /tasks/exec-added \"told\" \"more\"").await;
    side.ok("start a process", tasks.start(ask(start("told", "more")))).await;
    listener.hears("it is started", "default /tasks/exec-started \"told\" \"more\" true").await;
    side.ok("pause", tasks.pause(ask(PauseTaskRequest { container_id: "told".into() }))).await;
    listener.hears("paused", "default /tasks/paused \"told\"").await;
    side.ok("resume", tasks.resume(ask(ResumeTaskRequest { container_id: "told".into() }))).await;
    listener.hears("resumed", "default /tasks/resumed \"told\"").await;
    side.ok("kill a process", tasks.kill(ask(kill("told", "more")))).await;
    listener.hears("a process ends", "default /tasks/exit \"told\" \"more\" true 137 true").await;
    let delete = DeleteProcessRequest { container_id: "told".into(), exec_id: "more".into() };
    side.ok("delete a process", tasks.delete_process(ask(delete))).await;
    side.ok("kill", tasks.kill(ask(kill("told", "")))).await;
    listener.hears("ended", "default /tasks/exit \"told\" \"told\" true 137 true").await;
    side.ok("delete", tasks.delete(ask(DeleteTaskRequest { container_id: "told".into() }))).await;
    listener.hears_of_deletion("deleted", "default /tasks/delete \"told\" \"\" true 137 true").await;
    let delete = DeleteContainerRequest { id: "told".into() };
    side.ok("delete a container", containers.delete(ask(delete))).await;
    listener.hears("the record goes", "default /containers/delete \"told\"").await;
}

async fn out_of_memory(listener: &mut Listener<'_, '_>) {
    let side = listener.side;
    let limit = 16 << 20;
    let resources = json!({"memory": {"limit": limit, "swap": limit}});
    limited_record(side, "full", "all=memory; while :; do all=$all$all; done", resources).await;
    let mut tasks = TasksClient::new(side.channel());
    side.ok("create", tasks.create(ask(create("full", root(side.dir()))))).await;
    side.ok("start", tasks.start(ask(start("full", "")))).await;
    let told = [
        "default /containers/create \"full\" \"\" \"io.containerd.own.v2 None\"",
        &created("full", ["", "", "", "false"]),
        "default /tasks/start \"full\" true",
        "default /tasks/oom \"full\"",
        "default /tasks/exit \"full\" \"full\" true 137 true",
    ];
    listener.hears_all("out of memory", &["/tasks/oom", "/tasks/exit"], &told).await;
    side.ok("delete", tasks.delete(ask(DeleteTaskRequest { container_id: "full".into() }))).await;
    listener
        .hears_of_deletion("nothing is told again", "default /tasks/delete \"full\" \"\" true 137 true")
        .await;
}

/// What it did not live to tell is told by the daemon.
async fn a_dead_shim(listener: &mut Listener<'_, '_>) {
    let side = listener.side;
    record(side, "lost", "exec sleep 1000").await;
    let mut tasks = TasksClient::new(side.channel());
    let made = side.ok("create", tasks.create(ask(create("lost", root(side.dir()))))).await;
    side.ok("start", tasks.start(ask(start("lost", "")))).await;
    kill_process(shim_of(made.pid), Signal::KILL).expect("it runs");
    let told = [
        "default /containers/create \"lost\" \"\" \"io.containerd.own.v2 None\"",
        &created("lost", ["", "", "", "false"]),
        "default /tasks/start \"lost\" true",
        "default /tasks/exit \"lost\" \"lost\" true 137 true",
    ];
    listener.hears_all("a shim dies", &["/tasks/exit"], &told).await;
    listener
        .hears_of_deletion("its task goes with it", "default /tasks/delete \"lost\" \"\" true 137 true")
        .await;
}

/// The shim of a container by its first process, whose parent it is.
fn shim_of(pid: u32) -> Pid {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("the kernel's format");
    parent.trim().parse().ok().and_then(Pid::from_raw).expect("a pid")
}

/// What is told of a new task, by the name of its container and its streams.
fn created(id: &str, io: [&str; 4]) -> String {
    format!(
        "default /tasks/create {id:?} {id:?} [\"bind busybox-root \\\"\\\" rbind,rw\"] {:?} \"\" true",
        Some(io)
    )
}

/// Four layers, a manifest and a configuration.
const BLOBS: usize = 6;

#[test]
fn what_a_pull_makes_is_told_in_its_order() {
    if !is_root("snapshots") {
        return;
    }
    let registry = Registry::start();
    registry.push(&images::four_layers(), images::TAG, "pulled");
    let image = format!("{}/pulled:latest", registry.host());
    covers(&["Events.Subscribe"]).well().walk(DIFFERENCES_OF_A_PULL, async |side| {
        let stream = listen(&EventsClient::new(side.channel()), &[]).await;
        let mut listener = Listener { side, stream };
        let socket = side.dir().join(if side.is_ours() { "hoist.sock" } else { "c.sock" });
        let mut pull = Command::new("ctr");
        pull.arg("--address").arg(socket).args(["images", "pull", "--plain-http", &image]);
        tokio::task::spawn_blocking(move || testkit::run(&mut pull).ok()).await.expect("ctr pulls");
        let heard = listener.heard().await;
        // They come side by side.
        let blobs = heard.iter().take_while(|told| told.contains(" /content/create ")).count();
        side.is("what a client's pull tells of blobs", blobs, BLOBS);
        let told = [
            &*format!("default /images/create {image:?} {{}}"),
            "default /snapshot/prepare \"extract 1\" \"\" \"overlayfs\"",
            "default /snapshot/commit \"extract 1\" \"1\" \"overlayfs\"",
            "default /snapshot/prepare \"extract 2\" \"1\" \"overlayfs\"",
            "default /snapshot/commit \"extract 2\" \"2\" \"overlayfs\"",
            "default /snapshot/prepare \"extract 3\" \"2\" \"overlayfs\"",
            "default /snapshot/commit \"extract 3\" \"3\" \"overlayfs\"",
            "default /snapshot/prepare \"extract 4\" \"3\" \"overlayfs\"",
            "default /snapshot/commit \"extract 4\" \"4\" \"overlayfs\"",
        ];
        let heard: Vec<_> = numbered(&heard[blobs..]);
        side.is("what a client's pull tells besides", heard, told.map(ToOwned::to_owned).to_vec());
    });
}

/// Layers are unpacked side by side, each without a parent, and become each other's parents in their order.
#[test]
fn what_our_own_pull_makes_is_told_in_its_order() {
    if !is_root("snapshots") {
        return;
    }
    let registry = Registry::start();
    registry.push(&images::four_layers(), images::TAG, "pulled");
    let image = format!("{}/pulled:latest", registry.host());
    let daemon = Daemon::start();
    covers(&["Events.Subscribe"]).well().alone(&daemon, &async |side: &Side<'_>| {
        let stream = listen(&EventsClient::new(side.channel()), &[]).await;
        let mut listener = Listener { side, stream };
        let mut pull = daemon.command(["pull", &image]);
        tokio::task::spawn_blocking(move || testkit::run(&mut pull).ok()).await.expect("hoist pulls");
        let mut heard = listener.heard().await;
        let pulled = heard.pop().unwrap_or_default();
        side.is("what people did is told after it", pulled.contains(" /hoist/told "), true);
        side.is(
            "the image is told last",
            heard.pop(),
            Some(format!("default /images/create {image:?} {{}}")),
        );
        let of = |topic: &str| heard.iter().filter(|told| told.contains(topic)).count();
        let counts = (of(" /content/create "), of(" /snapshot/prepare "), of(" /snapshot/commit "));
        side.is("what our own pull tells", counts, (BLOBS, 4, 4));
        let mut snapshots = SnapshotsClient::new(side.channel());
        let mut committed = vec![String::new()];
        for (at, told) in heard.iter().enumerate().filter(|(_, told)| told.contains(" /snapshot/commit ")) {
            let [_, key, _, name, ..] = told.split('"').collect::<Vec<_>>()[..] else { panic!("{told}") };
            let prepared = format!("default /snapshot/prepare {key:?} \"\" \"overlayfs\"");
            side.is("it was prepared before", heard[..at].contains(&prepared), true);
            let stat = StatSnapshotRequest { snapshotter: "overlayfs".into(), key: name.into() };
            let parent = side.ok("stat", snapshots.stat(ask(stat))).await.info.unwrap_or_default().parent;
            side.is("its parent was committed before", committed.last(), Some(&parent));
            committed.push(name.to_owned());
        }
    });
}

/// With a number for each digest, in the order in which they are told, and without what is random in keys.
fn numbered(told: &[String]) -> Vec<String> {
    let mut digests: Vec<String> = Vec::new();
    let mut number = |word: &str| {
        let at = digests.iter().position(|digest| digest == word).unwrap_or_else(|| {
            digests.push(word.to_owned());
            digests.len() - 1
        });
        (at + 1).to_string()
    };
    let mut word = |word: &str| {
        let (head, bare) = word.split_at(word.find(|char| char != '"').unwrap_or(word.len()));
        if bare.starts_with("extract-") {
            return format!("{head}extract");
        }
        match bare.strip_suffix('"').filter(|bare| bare.starts_with("sha256:")) {
            Some(digest) => format!("{head}{}\"", number(digest)),
            None => word.to_owned(),
        }
    };
    told.iter().map(|told| told.split(' ').map(&mut word).collect::<Vec<_>>().join(" ")).collect()
}
