//! `containerd.services.{streaming,transfer}.v1`: refused requests, and an image that is pulled, tagged, pushed,
//! exported and imported, compared with containerd. More tests of transfers are in [`super`] and `platforms.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use api::grpc::content::InfoRequest;
use api::grpc::content::content_client::ContentClient;
use api::grpc::images::images_client::ImagesClient;
use api::grpc::images::{DeleteImageRequest, GetImageRequest, Image, ListImagesRequest};
use api::grpc::snapshots::ListSnapshotsRequest;
use api::grpc::snapshots::snapshots_client::SnapshotsClient;
use api::grpc::streaming::StreamInit;
use api::grpc::streaming::streaming_client::StreamingClient;
use api::grpc::transfer::transfer_client::TransferClient;
use api::grpc::transfer::{
    Data, ImageExportStream, ImageImportStream, ImageReference, ImageStore, OciRegistry, Progress,
    TransferOptions, TransferRequest, UnpackConfiguration, WindowUpdate,
};
use api::grpc::types::{Any, Descriptor};
use api::shim::{pack, unpack};
use serde_json::{Value, json};
use testkit::{Layout, Registry, digest_of, images, is_root, run};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status, Streaming};

use super::store;
use crate::platforms::{platform, send_all};

use super::walk::{Difference, Side, There, Watched, all, ask, covers, differs_in, map, within};

const DIFFERENCES: &[Difference] = &[
    differs_in(2, "a stream without a namespace", There::Code(Code::Ok), "nobody finds it there"),
    differs_in(2, "a name that is taken", There::Code(Code::Unknown), "the same refusal, without a class"),
    differs_in(
        2,
        "a stream that begins with something else",
        There::Code(Code::Unknown),
        "the same refusal, without a class",
    ),
];

/// Says the name of a stream, and waits for the answer.
async fn open(
    side: &Side<'_>,
    namespace: Option<&str>,
    first: Any,
) -> Result<(mpsc::Sender<Any>, Streaming<Any>), Status> {
    let (send, receive) = mpsc::channel(16);
    send.send(first).await.expect("room for one");
    let mut streams = StreamingClient::new(side.channel());
    let mut incoming = streams.stream(within(namespace, ReceiverStream::new(receive))).await?.into_inner();
    incoming.message().await?.ok_or_else(|| Status::unknown("it ended without an answer"))?;
    Ok((send, incoming))
}

fn named(id: &str) -> Any {
    pack(&StreamInit { id: id.into() })
}

async fn transfer(
    mut client: TransferClient<Watched>,
    source: Any,
    destination: Any,
    progress: &str,
) -> Result<Response<()>, Status> {
    let options = (!progress.is_empty()).then(|| TransferOptions { progress_stream: progress.into() });
    let request = TransferRequest { source: Some(source), destination: Some(destination), options };
    client.transfer(ask(request)).await
}

#[test]
fn transfers_walked() {
    if !is_root("snapshots") {
        return;
    }
    let (registry, other) = (Registry::start(), Registry::start());
    let reference = registry.push(&images::busybox(), images::TAG, "busybox:1");
    covers(&["Streaming.Stream", "Transfer.Transfer"]).walk_since(2, DIFFERENCES, async |side| {
        streams_are_named(side).await;
        // Each begins with a repository of its own.
        let folder = if side.is_ours() { "ours" } else { "theirs" };
        let copy = format!("{}/{folder}/busybox:1", other.host());
        an_image_moves(side, &reference, &copy).await;
    });
}

async fn streams_are_named(side: &Side<'_>) {
    let required = "namespace is required";
    let answer = open(side, None, named("one"));
    side.refused("a stream without a namespace", answer, Code::FailedPrecondition, required).await;
    let kept = open(side, Some("default"), named("one")).await;
    side.is("a stream by its name", kept.is_ok(), true);
    let answer = open(side, Some("default"), named("one"));
    side.refused("a name that is taken", answer, Code::AlreadyExists, "").await;
    side.is("the same in another namespace", open(side, Some("other"), named("one")).await.is_ok(), true);
    let answer = open(side, Some("default"), pack(&Data::default()));
    side.refused("a stream that begins with something else", answer, Code::InvalidArgument, "").await;
}

/// All steps that are told until the stream ends.
async fn steps(mut incoming: Streaming<Any>) -> Vec<Progress> {
    let mut steps = Vec::new();
    while let Ok(Some(message)) = incoming.message().await {
        steps.extend(unpack::<Progress>(&message).and_then(Result::ok));
    }
    steps
}

fn owned((kind, event): (&str, &str)) -> (String, String) {
    (kind.to_owned(), event.to_owned())
}

/// The last that is told of each kind of parts of an image with one manifest. Each is below what names it, and waits
/// first.
fn told_of_parts(
    side: &Side<'_>,
    told: &[Progress],
    image: &str,
    manifest: &str,
) -> BTreeMap<String, String> {
    let (mut ends, mut counts) = (BTreeMap::new(), BTreeMap::new());
    for step in told.iter().filter(|step| step.name.contains("-sha256:")) {
        let before = counts.insert(&step.name, step.progress).unwrap_or(0);
        let grows = (before..=step.total).contains(&step.progress);
        side.is("what is there of a part grows, up to all of it", (&step.event, grows), (&step.event, true));
        let (kind, digest) = step.name.split_once('-').unwrap_or_default();
        let desc = step.desc.clone().unwrap_or_default();
        side.is("a part says what it is", (desc.digest.as_str(), desc.size), (digest, step.total));
        let above = if kind == "manifest" { image.to_owned() } else { format!("manifest-{manifest}") };
        if ends.insert(kind.to_owned(), step.event.clone()).is_none() {
            side.is("a part waits at first", &*step.event, "waiting");
            side.is("what names a part", step.parents.clone(), vec![above]);
        } else if step.event == "already exists" {
            side.is("it is said once", step.parents.is_empty(), true);
        } else {
            side.is("and is still below it", step.parents.clone(), vec![above]);
        }
    }
    ends
}

/// The image of a name in a registry.
fn far(reference: &str) -> Any {
    pack(&OciRegistry { reference: reference.into(), resolver: None })
}

async fn an_image_moves(side: &Side<'_>, reference: &str, copy: &str) {
    let client = TransferClient::new(side.channel());
    nothing_moves_that_is_not_there(side, &client, reference).await;
    let target = pulls_are_told(side, &client, reference).await;
    pushes_are_told(side, &client, [reference, copy], &target.digest).await;
    archives_are_told(side, &client, reference).await;
    let inspect = ["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &format!("docker://{copy}")];
    let found = run(std::process::Command::new("skopeo").args(inspect)).ok();
    side.is("it is there", found.text(), target.digest.as_str());
}

async fn nothing_moves_that_is_not_there(side: &Side<'_>, client: &TransferClient<Watched>, reference: &str) {
    let moved = |source: Any, destination: Any, progress: &'static str| {
        transfer(client.clone(), source, destination, progress)
    };
    let answer = moved(store("none"), store("other"), "");
    side.refused("what is not there", answer, Code::NotFound, "none").await;
    let answer = moved(far(reference), pack(&Data::default()), "");
    side.refused("to what is no place", answer, Code::Unimplemented, "").await;
    let answer = moved(pack(&Data::default()), store("other"), "");
    side.refused("from what is no place", answer, Code::Unimplemented, "").await;
    let answer = moved(far(&format!("{reference}-none")), store("none:1"), "");
    side.refused("from a registry that lacks it", answer, Code::NotFound, "").await;
    let request = TransferRequest { source: Some(store("none")), ..TransferRequest::default() };
    if side.is_ours() {
        let mut client = client.clone();
        let answer = client.transfer(ask(request));
        side.refused("to nowhere", answer, Code::InvalidArgument, "").await;
        let unheard = Any { type_url: "example.com/Unheard".into(), ..Any::default() };
        let answer = moved(unheard, store("other"), "");
        side.refused("from what nobody knows", answer, Code::Unimplemented, "example.com/Unheard").await;
    }
    let answer = moved(far(reference), store("unheard:1"), "unopened");
    side.refused("with a stream that nobody opened", answer, Code::NotFound, "").await;
    let nobodys = ImageImportStream { stream: "unopened".into(), ..ImageImportStream::default() };
    let answer = moved(pack(&nobodys), store("unheard:1"), "");
    side.refused("from a stream that nobody opened", answer, Code::NotFound, "").await;
}

/// Gives what the image is.
async fn pulls_are_told(side: &Side<'_>, client: &TransferClient<Watched>, reference: &str) -> Descriptor {
    let moved = |source: Any, destination: Any, progress: &'static str| {
        transfer(client.clone(), source, destination, progress)
    };
    let image = async |case: &'static str, name: &str| -> Image {
        let request = ask(GetImageRequest { name: name.into() });
        side.ok(case, ImagesClient::new(side.channel()).get(request)).await.image.expect("an image")
    };
    let (send, told) = open(side, Some("default"), named("told")).await.expect("a stream");
    let unpacked = ImageStore {
        name: reference.into(),
        unpacks: vec![UnpackConfiguration {
            platform: Some(platform("amd64")),
            snapshotter: "overlayfs".into(),
        }],
        ..ImageStore::default()
    };
    let pulling = async {
        side.ok("pull", moved(far(reference), pack(&unpacked), "told")).await;
        drop(send);
    };
    let ((), told) = tokio::join!(pulling, steps(told));
    let pulled = image("it is here", reference).await;
    // Whoever shows it goes by the name, from the first that is known of it to the end.
    let of_image = told.iter().filter(|step| step.name == reference);
    let target = pulled.target.clone().unwrap_or_default();
    let described = of_image.clone().filter(|step| {
        let descriptor = step.desc.clone().unwrap_or_default();
        (descriptor.digest, descriptor.media_type, descriptor.size)
            == (target.digest.clone(), target.media_type.clone(), target.size)
    });
    side.is("every step of it says what it is", described.count(), of_image.clone().count());
    let events: Vec<&str> = of_image.map(|step| step.event.as_str()).collect();
    side.is("it begins", events.first().copied(), Some("fetching image content"));
    side.is("it ends", events.last().copied(), Some("saved"));
    let of_all = told.iter().filter(|step| step.name.is_empty()).map(|step| step.event.as_str());
    let expected = ["Resolving from", "Pulling from", "Completed pull from"];
    let expected = expected.map(|what| format!("{what} OCI Registry ({reference})"));
    side.is("what is told of all of a pull", of_all.collect::<Vec<_>>(), expected.to_vec());
    let ends = told_of_parts(side, &told, reference, &target.digest);
    let expected = [("manifest", "complete"), ("config", "complete"), ("layer", "extracted")].map(owned);
    side.is("how a pull ends for its parts", ends, BTreeMap::from(expected));
    let (send, told) = open(side, Some("default"), named("told again")).await.expect("a stream");
    let pulling = async {
        side.ok("pull again", moved(far(reference), pack(&unpacked), "told again")).await;
        drop(send);
    };
    let ((), told) = tokio::join!(pulling, steps(told));
    let ends = told_of_parts(side, &told, reference, &target.digest);
    let expected = ["manifest", "config"].map(|kind| owned((kind, "already exists")));
    side.is("how one ends that was here", ends, BTreeMap::from(expected));
    let mut trees = SnapshotsClient::new(side.channel());
    let list = ListSnapshotsRequest { snapshotter: "overlayfs".into(), ..ListSnapshotsRequest::default() };
    let trees = side.ok("list trees", all(trees.list(ask(list)))).await;
    for tree in trees.into_iter().flat_map(|message| message.info) {
        let labels = map(&[
            ("containerd.io/snapshot.ref", &tree.name),
            ("containerd.io/snapshot/diff-id", &tree.name),
        ]);
        side.is("the only layer's tree is labelled", tree.labels, labels);
    }
    side.ok("tag", moved(store(reference), store("docker.io/library/tagged:1"), "")).await;
    let tagged = image("by its other name too", "docker.io/library/tagged:1").await;
    side.is("the same image", tagged.target.as_ref(), pulled.target.as_ref());
    target
}

async fn pushes_are_told(
    side: &Side<'_>,
    client: &TransferClient<Watched>,
    [reference, copy]: [&str; 2],
    manifest: &str,
) {
    for (name, blobs) in [("first", "complete"), ("again", "already exists")] {
        let (send, told) = open(side, Some("default"), named(name)).await.expect("a stream");
        let pushing = async {
            side.ok("push", transfer(client.clone(), store(reference), far(copy), name)).await;
            drop(send);
        };
        let ((), told) = tokio::join!(pushing, steps(told));
        let whole: Vec<&Progress> = told.iter().filter(|step| step.name == reference).collect();
        let events: Vec<&str> = whole.iter().map(|step| step.event.as_str()).collect();
        side.is("of the image", events, vec!["pushing content", "pushed content"]);
        let digests = whole.iter().map(|step| step.desc.clone().unwrap_or_default().digest);
        side.is("and what it is", digests.collect::<Vec<_>>(), vec![manifest, manifest]);
        let of_all = told.iter().filter(|step| step.name.is_empty()).map(|step| step.event.as_str());
        let ends = ["Pushing", "Completed push"].map(|what| format!("{what} to OCI Registry ({copy})"));
        side.is("of all", of_all.collect::<Vec<_>>(), ends.to_vec());
        let parts = told.iter().filter(|step| !step.name.is_empty() && step.name != reference);
        let (mut ends, mut counts) = (BTreeMap::new(), BTreeMap::new());
        for step in parts {
            let before = counts.insert(&step.name, step.progress).unwrap_or(0);
            let grows = (before..=step.total).contains(&step.progress);
            side.is("what went of a part grows, up to all of it", (&step.event, grows), (&step.event, true));
            let (kind, digest) = step.name.split_once('-').unwrap_or_default();
            side.is("a part says what it is", step.desc.clone().unwrap_or_default().digest, digest);
            let first = ends.entry(kind.to_owned()).or_insert((step.event.clone(), String::new()));
            first.1.clone_from(&step.event);
        }
        let end = |event: &str| ("waiting".to_owned(), event.to_owned());
        // Whether the manifest is looked for or sent again, it is there then.
        let has_manifest = ends.remove("manifest").is_some_and(|(first, _)| first == "waiting");
        side.is("its manifest", has_manifest, true);
        let expected = ["config", "layer"].map(|kind| (kind.to_owned(), end(blobs)));
        side.is("its parts", ends, BTreeMap::from(expected));
        let is_moving = |step: &Progress| step.event == "uploading" && step.progress > 0;
        if side.is_ours() && name == "first" {
            // containerd looks now and then, and may have missed it.
            side.is("of a layer it is told how far it is", told.iter().any(is_moving), true);
        }
    }
}

/// An archive, until its stream ends; containerd leaves that open, so that what is `exported` ends where an archive does.
async fn take_archive(
    (send, mut incoming): (mpsc::Sender<Any>, Streaming<Any>),
    mut exported: oneshot::Receiver<()>,
) -> Vec<u8> {
    const END: [u8; 1024] = [0; 1024];
    let mut archive = Vec::new();
    let mut is_exported = false;
    send.send(pack(&WindowUpdate { update: 1 << 24 })).await.expect("the stream is open");
    while !(is_exported && archive.ends_with(&END)) {
        tokio::select! {
            message = incoming.message() => match message {
                Ok(Some(message)) => archive.extend(unpack::<Data>(&message).unwrap().unwrap().data),
                Ok(None) | Err(_) => break,
            },
            _ = &mut exported, if !is_exported => is_exported = true,
        }
    }
    archive
}

/// An export and an import are told as a whole, and an import of what it names.
async fn archives_are_told(side: &Side<'_>, client: &TransferClient<Watched>, reference: &str) {
    let (send, told) = open(side, Some("default"), named("told of an export")).await.expect("a stream");
    let archive = open(side, Some("default"), named("exported")).await.expect("a stream");
    let to = ImageExportStream { stream: "exported".into(), ..ImageExportStream::default() };
    let (exported, is_exported) = oneshot::channel();
    let exporting = async {
        let answer = transfer(client.clone(), store(reference), pack(&to), "told of an export");
        side.ok("export", answer).await;
        drop((send, exported));
    };
    let ((), archive, told) = tokio::join!(exporting, take_archive(archive, is_exported), steps(told));
    let events: Vec<&str> = told.iter().map(|step| step.event.as_str()).collect();
    side.is("what is told of an export", events, vec!["Exporting", "Completed export"]);

    let (send, told) = open(side, Some("default"), named("told of an import")).await.expect("a stream");
    let stream = open(side, Some("default"), named("imported")).await.expect("a stream");
    let from = ImageImportStream { stream: "imported".into(), ..ImageImportStream::default() };
    let importing = async {
        let answer = transfer(client.clone(), pack(&from), store("index:1"), "told of an import");
        side.ok("import what was exported", answer).await;
        drop(send);
    };
    let ((), (), told) = tokio::join!(importing, send_all(stream, archive), steps(told));
    let events: Vec<_> = told.iter().map(|step| (step.event.as_str(), step.name.as_str())).collect();
    let expected = vec![("Importing", ""), ("saved", "index:1"), ("Completed import", "")];
    side.is("what is told of an import", events, expected);
    let saved = told.iter().find_map(|step| step.desc.clone()).unwrap_or_default();
    let get = ask(GetImageRequest { name: "index:1".into() });
    let found = side.ok("get what was saved", ImagesClient::new(side.channel()).get(get)).await;
    let found = found.image.unwrap_or_default().target.unwrap_or_default();
    side.is("and what it is", (saved.digest, saved.size), (found.digest, found.size));
}

const DIFFERENCES_OF_LABELS: &[Difference] = &[differs_in(
    2,
    "of a layer that was here",
    There::Value(": \"some/second\""),
    "it does not note where else a layer is that it need not fetch",
)];

/// What a pull writes beside what it brings: where it came from, and what a name is given.
#[test]
fn labels_of_pulls_walked() {
    if !is_root("snapshots") {
        return;
    }
    let layout = Layout::new();
    let layer = layout.layer("file", 1000);
    let manifest = layout.image("amd64", std::slice::from_ref(&layer));
    layout.tag(&manifest, "labels");
    let read = fs::read(layout.blob_path(&manifest)).expect("it was written");
    let config: Value = serde_json::from_slice(&read).expect("a manifest");
    let [manifest, config, layer] = [&manifest, &config["config"], &layer].map(digest_of);
    let registries = [Registry::start(), Registry::start()];
    let pushed = |registry: &Registry, name| registry.push(layout.path(), "labels", name);
    // One host by two ports, and not in the order of the alphabet.
    let references = [pushed(&registries[0], "some/second:1"), pushed(&registries[1], "first:1")];
    let host = registries[0].host();
    let host = host.rsplit_once(':').expect("a port").0;
    covers(&["Transfer.Transfer", "Images.Get", "Content.Info"]).well().walk_since(
        2,
        DIFFERENCES_OF_LABELS,
        async |side| {
            let blob = async |digest: &str| {
                let mut client = ContentClient::new(side.channel());
                let info = client.info(ask(InfoRequest { digest: digest.into() }));
                side.ok("a blob", info).await.info.expect("an info").labels
            };
            let image = async || {
                let mut client = ImagesClient::new(side.channel());
                let image = client.get(ask(GetImageRequest { name: "named:1".into() }));
                side.ok("the image", image).await.image.expect("an image")
            };
            let moved = async |case: &'static str, source: Any, labels: &[(&str, &str)]| {
                let unpack = UnpackConfiguration {
                    platform: Some(platform("amd64")),
                    snapshotter: "overlayfs".into(),
                };
                let to = ImageStore {
                    name: "named:1".into(),
                    labels: map(labels),
                    unpacks: vec![unpack],
                    ..ImageStore::default()
                };
                let client = TransferClient::new(side.channel());
                side.ok(case, transfer(client, source, pack(&to), "")).await;
            };
            let far = |at: usize| pack(&OciRegistry { reference: references[at].clone(), resolver: None });

            let came_from = format!("containerd.io/distribution.source.{host}");
            moved("pull", far(0), &[("both", "first"), ("first", "alone")]).await;
            let pulled = image().await;
            side.is("as the first pull says", &pulled.labels, &map(&[("both", "first"), ("first", "alone")]));
            for (repositories, of_layer) in
                [("some/second", "of a layer"), ("first,some/second", "of a layer that was here")]
            {
                let source = (came_from.as_str(), repositories);
                let below = [
                    ("containerd.io/gc.ref.content.config", &*config),
                    ("containerd.io/gc.ref.content.l.0", &layer),
                ];
                side.is("of a manifest", blob(&manifest).await, map(&[below[0], below[1], source]));
                let tree = ("containerd.io/gc.ref.snapshot.overlayfs", &*layer);
                side.is("of a config", blob(&config).await, map(&[source, tree]));
                let unpacked = ("containerd.io/uncompressed", &*layer);
                side.is(of_layer, blob(&layer).await, map(&[source, unpacked]));
                moved("pull from the other", far(1), &[("both", "second")]).await;
            }
            let again = image().await;
            side.is("as the last pull says", &again.labels, &map(&[("both", "second")]));
            side.is("made when it was", again.created_at, pulled.created_at);
            side.is("and named later", again.updated_at != pulled.updated_at, true);
            moved("tag", store("named:1"), &[("tag", "too")]).await;
            side.is("as the tag says", image().await.labels, map(&[("tag", "too")]));
            moved("pull without a word", far(0), &[]).await;
            side.is("nothing was said", image().await.labels, map(&[]));
        },
    );
}

/// What archives are called after, in the walk of their names.
const BASE: &str = "example.com/foo/bar";

/// Names in an archive: of containerd, of the image spec, and whether it is the second image.
const NAMES: &[(&str, &str, bool)] = &[
    ("", "latest", false),
    ("", "example.com/foo/bar:1", false),
    ("", "example.com/foo/bar@whole", false),
    ("", "example.com/foo/bar/baz:1", false),
    ("", "example.com/foo/barbaz:1", true),
    ("", "busybox:3", true),
    ("", "", true),
    ("example.com/other:2", "2", true),
    ("short:1", "", true),
];

/// An archive with two small images under all those names; their digests, and that of its index.
fn named_archive(names: &[(&str, &str, bool)]) -> (Vec<u8>, [String; 3]) {
    let layout = Layout::new();
    let both = ["first", "second"].map(|name| layout.image("amd64", &[layout.layer(name, 1000)]));
    let named = names.iter().map(|(full, short, is_second)| -> Value {
        let mut image = both[usize::from(*is_second)].clone();
        let names = [("io.containerd.image.name", full), ("org.opencontainers.image.ref.name", short)];
        let names: BTreeMap<_, _> = names.into_iter().filter(|(_, name)| !name.is_empty()).collect();
        image["annotations"] = json!(names);
        image
    });
    let index = json!({"schemaVersion": 2, "manifests": named.collect::<Vec<_>>()}).to_string();
    fs::write(layout.path().join("index.json"), &index).expect("a writable directory");
    let [first, second] = both.each_ref().map(digest_of);
    let archive = layout.path().join("all.tar");
    layout.archive(&archive);
    let whole = types::Digest::of(index.as_bytes()).to_string();
    (fs::read(archive).expect("it was written"), [first, second, whole])
}

fn base(name: &str) -> ImageReference {
    ImageReference { name: name.into(), is_prefix: true, ..ImageReference::default() }
}

/// Sends an archive.
async fn import(side: &Side<'_>, archive: &[u8], to: ImageStore) -> Result<Response<()>, Status> {
    static STREAMS: AtomicU32 = AtomicU32::new(0);
    let name = format!("import-{}", STREAMS.fetch_add(1, Ordering::Relaxed));
    let stream = open(side, Some("default"), named(&name)).await?;
    let from = ImageImportStream { stream: name, ..ImageImportStream::default() };
    let client = TransferClient::new(side.channel());
    tokio::join!(transfer(client, pack(&from), pack(&to), ""), send_all(stream, archive.to_vec())).0
}

/// Takes all images away, and gives what they were.
async fn take(side: &Side<'_>) -> Vec<Image> {
    let mut client = ImagesClient::new(side.channel());
    let mut listed = side.ok("list images", client.list(ask(ListImagesRequest::default()))).await.images;
    // First those that would go with another.
    listed.sort_by_key(|image| !image.labels.contains_key("containerd.io/gc.bref.image"));
    for image in &listed {
        let delete = DeleteImageRequest { name: image.name.clone(), ..DeleteImageRequest::default() };
        side.ok("delete an image", client.delete(ask(delete))).await;
    }
    listed
}

fn sorted<T: Ord>(mut all: Vec<T>) -> Vec<T> {
    all.sort();
    all
}

const DIFFERENCES_OF_NAMES: &[Difference] = &[differs_in(
    2,
    "an archive of which nothing is wanted",
    There::Code(Code::Ok),
    "it keeps nothing, and says so in its log",
)];

#[test]
fn names_of_archives_walked() {
    if !is_root("snapshots") {
        return;
    }
    let (archive, [first, second, whole]) = named_archive(NAMES);
    let [first, second, whole] = [first, second, whole].map(|digest| format!("{BASE}@{digest}"));
    let (unwanted, _) = named_archive(&[("", "example.com/foo/barbaz:1", false)]);
    let docker = tempfile::NamedTempFile::new().expect("a temporary file");
    images::archive(&images::busybox(), "docker-archive", "busybox:5", docker.path());
    let docker = fs::read(docker.path()).expect("it was written");
    let wanted = ["latest", "1"].map(|tag| format!("{BASE}:{tag}"));
    let wanted = wanted.into_iter().chain([format!("{BASE}@whole"), format!("{BASE}/baz:1")]);
    let wanted: Vec<String> = wanted.collect();
    let free = ImageReference { allow_overwrite: true, ..base("import-2026") };
    let with_digests = ImageReference { add_digest: true, ..base(BASE) };
    let for_nameless = ImageReference { skip_named_digest: true, ..with_digests.clone() };
    let extra = ImageReference { name: "extra:1".into(), ..ImageReference::default() };
    let texts = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let and = |more: &[&str]| [wanted.clone(), texts(more)].concat();
    let free_names = [
        "import-2026:latest",
        "example.com/foo/bar:1",
        "example.com/foo/bar@whole",
        "example.com/foo/bar/baz:1",
        "example.com/foo/barbaz:1",
        "busybox:3",
        "example.com/other:2",
        "short:1",
    ];
    let cases = [
        ("what begins so, up to the end of a word", "", vec![base(BASE)], wanted.clone()),
        ("what begins otherwise too", "", vec![free], texts(&free_names)),
        ("with digests", "", vec![with_digests], and(&[&first, &second, &whole])),
        ("with digests for what has no name", "", vec![for_nameless], and(&[&second, &whole])),
        ("the index alone", "index:1", vec![], texts(&["index:1"])),
        ("the index and its images", "index:1", vec![base(BASE)], and(&["index:1"])),
        ("a further name for the index", "", vec![extra], texts(&["extra:1"])),
    ];
    covers(&["Streaming.Stream", "Transfer.Transfer", "Images.List", "Images.Delete"]).well().walk_since(
        2,
        DIFFERENCES_OF_NAMES,
        async |side| {
            for (case, name, references, expected) in &cases {
                let to = ImageStore {
                    name: (*name).into(),
                    extra_references: references.clone(),
                    labels: map(&[("from", "archive")]),
                    ..ImageStore::default()
                };
                side.ok("import", import(side, &archive, to)).await;
                let found = take(side).await;
                let names = found.iter().map(|image| image.name.clone()).collect();
                side.is(case, sorted(names), sorted(expected.clone()));
                // What is beside a name goes with it.
                for image in found {
                    let beside = image.labels.get("containerd.io/gc.bref.image").map(String::as_str);
                    let expected = Some(*name).filter(|name| !name.is_empty() && image.name != *name);
                    side.is(
                        "labels",
                        (image.labels.get("from").map(String::as_str), beside),
                        (Some("archive"), expected),
                    );
                    if image.name == format!("{BASE}:latest") {
                        let tag = image.target.unwrap_or_default().annotations;
                        let tag = tag.get("org.opencontainers.image.ref.name").map(String::as_str);
                        side.is("what the archive says of it is kept", tag, Some("latest"));
                    }
                }
            }
            let to = ImageStore { extra_references: vec![base(BASE)], ..ImageStore::default() };
            let answer = import(side, &unwanted, to);
            side.refused("an archive of which nothing is wanted", answer, Code::NotFound, BASE).await;
            take(side).await;

            for (name, expected) in [
                ("docker.io/library/busybox", vec!["docker.io/library/busybox:5", "index:1"]),
                ("docker.io/library/busy", vec!["index:1"]),
            ] {
                let extra_references = vec![base(name)];
                let to = ImageStore { name: "index:1".into(), extra_references, ..ImageStore::default() };
                side.ok("import what docker saved", import(side, &docker, to)).await;
                let names = take(side).await.into_iter().map(|image| image.name).collect();
                side.is("an archive of docker's", sorted::<String>(names), expected);
            }
        },
    );
}
