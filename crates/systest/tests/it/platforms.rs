//! Images of several platforms through containerd's transfer service: pulled, unpacked, pushed, exported and imported
//! together, and under several names.

use std::path::Path;
use std::time::Duration;

use api::grpc::content::content_client::ContentClient;
use api::grpc::content::{DeleteContentRequest, InfoRequest};
use api::grpc::diff::DiffRequest;
use api::grpc::diff::diff_client::DiffClient;
use api::grpc::event::ContentCreate;
use api::grpc::events::SubscribeRequest;
use api::grpc::events::events_client::EventsClient;
use api::grpc::images::images_client::ImagesClient;
use api::grpc::images::{DeleteImageRequest, GetImageRequest, ListImagesRequest};
use api::grpc::snapshots::ListSnapshotsRequest;
use api::grpc::snapshots::snapshots_client::SnapshotsClient;
use api::grpc::streaming::StreamInit;
use api::grpc::streaming::streaming_client::StreamingClient;
use api::grpc::transfer::transfer_client::TransferClient;
use api::grpc::transfer::{
    Data, ImageExportStream, ImageImportStream, ImageReference, ImageStore, OciRegistry, TransferRequest,
    UnpackConfiguration, WindowUpdate,
};
use api::grpc::types::{Any, Mount, Platform};
use api::shim::{pack, unpack};
use serde_json::{Value, json};
use testkit::layout::tar_of;
use testkit::{Daemon, Layout, Registry, digest_of, is_root, run};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::typed::{ask, code, events, on};

/// An index of three platforms with one layer each, and what is in it.
fn three() -> (Layout, Value, [Value; 3]) {
    let layout = Layout::new();
    let image =
        |architecture: &str| layout.image_of(architecture, &[tar_of(&[("file", architecture)])], &json!({}));
    let images = ["amd64", "arm64", "s390x"].map(image);
    let index = layout.index(&images);
    layout.tag(&index, "three:1");
    (layout, index, images)
}

pub(crate) fn platform(architecture: &str) -> Platform {
    Platform { os: "linux".into(), architecture: architecture.into(), ..Platform::default() }
}

fn unpacked(architecture: &str) -> UnpackConfiguration {
    UnpackConfiguration { platform: Some(platform(architecture)), snapshotter: String::new() }
}

async fn transfer(channel: &Channel, source: Any, destination: Any) -> Result<(), Status> {
    let request = TransferRequest { source: Some(source), destination: Some(destination), options: None };
    TransferClient::new(channel.clone()).transfer(ask(request)).await.map(drop)
}

fn registry(reference: &str) -> Any {
    pack(&OciRegistry { reference: reference.into(), resolver: None })
}

/// The blob of a manifest's only layer.
fn layer(layout: &Layout, manifest: &Value) -> String {
    let bytes = std::fs::read(layout.blob_path(manifest)).expect("a blob of ours");
    let manifest: Value = serde_json::from_slice(&bytes).expect("a manifest of ours");
    digest_of(&manifest["layers"][0])
}

async fn is_here(channel: &Channel, digest: &str) -> bool {
    let info = InfoRequest { digest: digest.into() };
    code(ContentClient::new(channel.clone()).info(ask(info))).await == Code::Ok
}

async fn trees(channel: &Channel) -> usize {
    let list = ListSnapshotsRequest { snapshotter: "overlayfs".into(), filters: Vec::new() };
    let mut list = SnapshotsClient::new(channel.clone()).list(ask(list)).await.unwrap().into_inner();
    let mut count = 0;
    while let Some(batch) = list.message().await.unwrap() {
        count += batch.info.len();
    }
    count
}

async fn target(channel: &Channel, name: &str) -> Result<String, Status> {
    let get = GetImageRequest { name: name.into() };
    let image = ImagesClient::new(channel.clone()).get(ask(get)).await?.into_inner().image;
    Ok(image.expect("an image").target.expect("a target").digest)
}

async fn remove_all(channel: &Channel) {
    let mut images = ImagesClient::new(channel.clone());
    let mut all = images.list(ask(ListImagesRequest::default())).await.unwrap().into_inner().images;
    // First those that would go with another.
    all.sort_by_key(|image| !image.labels.contains_key("containerd.io/gc.bref.image"));
    for image in all {
        let delete = DeleteImageRequest { name: image.name, sync: true, ..DeleteImageRequest::default() };
        images.delete(ask(delete)).await.unwrap();
    }
}

#[test]
fn several_platforms_are_pulled_and_unpacked_at_once() {
    if !is_root("unpacking") {
        return;
    }
    let (layout, index, images) = three();
    let from = Registry::start();
    let reference = from.push(layout.path(), "three:1", "three:1");
    let daemon = Daemon::start();
    let layers: Vec<String> = images.iter().map(|image| layer(&layout, image)).collect();
    on(&daemon, async |channel| {
        // Layers that are here, manifests that are here, trees.
        let check = async |store: ImageStore, expected: ([bool; 3], [bool; 3], usize)| {
            let shown = format!("{store:?}");
            transfer(&channel, registry(&reference), pack(&store)).await.unwrap();
            let mut found = ([false; 3], [false; 3], 0);
            for at in 0..3 {
                found.0[at] = is_here(&channel, &layers[at]).await;
                found.1[at] = is_here(&channel, &digest_of(&images[at])).await;
            }
            found.2 = trees(&channel).await;
            assert_eq!(found, expected, "{shown}");
            assert_eq!(target(&channel, "here:1").await.unwrap(), digest_of(&index));
            assert_eq!(
                code(target(&channel, &reference)).await,
                Code::NotFound,
                "only the name that was asked for"
            );
            remove_all(&channel).await;
            assert_eq!(trees(&channel).await, 0);
        };
        let store = |platforms: &[&str], unpacks: &[&str], all_metadata| ImageStore {
            name: "here:1".into(),
            platforms: platforms.iter().map(|name| platform(name)).collect(),
            unpacks: unpacks.iter().map(|name| unpacked(name)).collect(),
            all_metadata,
            ..ImageStore::default()
        };
        check(store(&[], &[], false), ([true; 3], [true; 3], 0)).await;
        let two = [true, false, true];
        check(store(&["amd64", "s390x"], &["amd64", "s390x"], false), (two, two, 2)).await;
        let one = [false, true, false];
        check(store(&["arm64"], &["arm64"], false), (one, one, 1)).await;
        check(store(&["arm64"], &[], true), (one, [true; 3], 0)).await;
        check(store(&["arm64", "riscv64"], &["arm64"], false), (one, one, 1)).await;
        let first = [true, false, false];
        let limited = ImageStore { manifest_limit: 1, ..store(&["amd64", "s390x"], &[], false) };
        check(limited, (first, first, 0)).await;
        let limited = ImageStore { manifest_limit: 2, ..store(&[], &[], false) };
        check(limited, ([true, true, false], [true, true, false], 0)).await;

        let missing = transfer(&channel, registry(&reference), pack(&store(&["riscv64"], &[], false)));
        let refused = missing.await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        assert!(refused.message().contains("linux/s390x"), "{refused}");
    });
}

/// As those of images whose layers are EROFS are marked.
#[test]
fn a_variant_with_features_comes_to_those_who_ask_for_them() {
    if !is_root("unpacking") {
        return;
    }
    let layout = Layout::new();
    let image = |name: &str| layout.image_of("amd64", &[tar_of(&[("file", name)])], &json!({}));
    let (mut marked, plain) = (image("marked"), image("plain"));
    marked["platform"]["os.features"] = json!(["erofs"]);
    layout.tag(&layout.index(&[marked.clone(), plain.clone()]), "two:1");
    let from = Registry::start();
    let reference = from.push(layout.path(), "two:1", "two:1");
    let daemon = Daemon::start();
    on(&daemon, async |channel| {
        for (features, expected) in [(&[][..], &plain), (&["erofs"], &marked), (&["other"], &plain)] {
            let os_features = features.iter().map(ToString::to_string).collect();
            let platform = Platform { os_features, ..platform("amd64") };
            let unpack = UnpackConfiguration { platform: Some(platform.clone()), snapshotter: String::new() };
            let store = ImageStore {
                name: "here:1".into(),
                platforms: vec![platform],
                unpacks: vec![unpack],
                ..ImageStore::default()
            };
            transfer(&channel, registry(&reference), pack(&store)).await.unwrap();
            for image in [&marked, &plain] {
                let is_expected = image == expected;
                assert_eq!(is_here(&channel, &digest_of(image)).await, is_expected, "{features:?}");
            }
            assert_eq!(trees(&channel).await, 1);
            remove_all(&channel).await;
        }
    });
    let pull = |platform: &str| daemon.hoist(["pull", "--platform", platform, &reference]);
    pull("linux(+erofs)/amd64").ok();
    pull("linux(+erofs)/arm64").expect_code(1).expect_stderr("there is linux(+erofs)/amd64, linux/amd64");
}

#[test]
fn pulled_blobs_are_told_with_their_types() {
    let (layout, ..) = three();
    let from = Registry::start();
    let reference = from.push(layout.path(), "three:1", "three:1");
    let daemon = Daemon::start();
    on(&daemon, async |channel| {
        let mut told = events(&channel, &["/content/create"]).await;
        let store =
            ImageStore { name: "x:1".into(), platforms: vec![platform("s390x")], ..ImageStore::default() };
        transfer(&channel, registry(&reference), pack(&store)).await.unwrap();
        let mut kinds = Vec::new();
        for _ in 0..4 {
            let event = told.message().await.unwrap().unwrap().event.unwrap();
            let created = unpack::<ContentCreate>(&event).unwrap().unwrap();
            kinds.push(created.media_type.rsplit('.').next().unwrap().to_owned());
        }
        assert_eq!(kinds, ["v1+json", "v1+json", "v1+json", "tar"]);
    });
}

/// Of what is made here too, where the type is known that it is to have.
#[test]
fn blobs_that_are_made_are_told_with_their_types() {
    if !is_root("mounts") {
        return;
    }
    let daemon = Daemon::start();
    let tree = |name: &str| {
        let tree = daemon.dir().join(name);
        std::fs::create_dir(&tree).expect("a writable directory");
        let source = tree.display().to_string();
        vec![Mount {
            r#type: "bind".into(),
            source,
            options: vec!["ro".into(), "rbind".into()],
            ..Mount::default()
        }]
    };
    let (left, right) = (tree("left"), tree("right"));
    std::fs::write(daemon.dir().join("right/file"), "new").expect("a writable directory");
    on(&daemon, async |channel| {
        let mut told = events(&channel, &["/content/create"]).await;
        for (wanted, made) in [
            ("", "application/vnd.oci.image.layer.v1.tar+gzip"),
            ("application/vnd.oci.image.layer.v1.tar+zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
        ] {
            let compare = DiffRequest {
                left: left.clone(),
                right: right.clone(),
                media_type: wanted.into(),
                ..DiffRequest::default()
            };
            DiffClient::new(channel.clone()).diff(ask(compare)).await.unwrap();
            let event = told.message().await.unwrap().unwrap().event.unwrap();
            let created = unpack::<ContentCreate>(&event).unwrap().unwrap();
            assert_eq!(created.media_type, made);
        }
        // By their type they are heard of, too.
        let mut layers = EventsClient::new(channel.clone());
        let filters = vec!["event.mediaType~=\"tar$\"".to_owned()];
        let mut layers = layers.subscribe(ask(SubscribeRequest { filters })).await.unwrap().into_inner();
        let plain = "application/vnd.oci.image.layer.v1.tar";
        for media_type in ["", plain] {
            let (left, right) = (left.clone(), right.clone());
            let compare =
                DiffRequest { left, right, media_type: media_type.into(), ..DiffRequest::default() };
            DiffClient::new(channel.clone()).diff(ask(compare)).await.unwrap();
        }
        let event = layers.message().await.unwrap().unwrap().event.unwrap();
        assert_eq!(unpack::<ContentCreate>(&event).unwrap().unwrap().media_type, plain);
    });
}

#[test]
fn further_names_go_with_the_first() {
    let (layout, index, _) = three();
    let from = Registry::start();
    let reference = from.push(layout.path(), "three:1", "three:1");
    let daemon = Daemon::start();
    on(&daemon, async |channel| {
        let by = |name: &str, is_prefix, add_digest| ImageReference {
            name: name.into(),
            is_prefix,
            add_digest,
            ..ImageReference::default()
        };
        let store = ImageStore {
            name: "first:1".into(),
            extra_references: vec![
                by("second:1", false, false),
                by("third", true, true),
                by("no", true, false),
            ],
            ..ImageStore::default()
        };
        let third = format!("third@{}", digest_of(&index));
        for source in
            [registry(&reference), pack(&ImageStore { name: "origin:1".into(), ..ImageStore::default() })]
        {
            if source.type_url.contains("ImageStore") {
                let origin = ImageStore { name: "origin:1".into(), ..ImageStore::default() };
                transfer(&channel, registry(&reference), pack(&origin)).await.unwrap();
            }
            transfer(&channel, source, pack(&store)).await.unwrap();
            for name in ["first:1", "second:1", &third] {
                assert_eq!(target(&channel, name).await.unwrap(), digest_of(&index), "{name}");
            }
            assert_eq!(code(target(&channel, "no")).await, Code::NotFound);
            let delete =
                DeleteImageRequest { name: "first:1".into(), sync: true, ..DeleteImageRequest::default() };
            ImagesClient::new(channel.clone()).delete(ask(delete)).await.unwrap();
            for name in ["second:1", &third] {
                assert_eq!(code(target(&channel, name)).await, Code::NotFound, "{name} goes with it");
            }
        }
        let nameless = transfer(
            &channel,
            pack(&ImageStore { name: "origin:1".into(), ..ImageStore::default() }),
            pack(&ImageStore::default()),
        );
        assert_eq!(code(nameless).await, Code::NotFound);
    });
}

#[test]
fn chosen_platforms_are_pushed() {
    let (layout, index, images) = three();
    let (from, to) = (Registry::start(), Registry::start());
    let reference = from.push(layout.path(), "three:1", "three:1");
    let daemon = Daemon::start();
    on(&daemon, async |channel| {
        let all = ImageStore { name: "three:1".into(), ..ImageStore::default() };
        transfer(&channel, registry(&reference), pack(&all)).await.unwrap();
        let push = async |tag: &str, platforms: &[&str]| {
            let platforms = platforms.iter().map(|name| platform(name)).collect();
            let store = ImageStore { name: "three:1".into(), platforms, ..ImageStore::default() };
            transfer(&channel, pack(&store), registry(&format!("{}/copy:{tag}", to.host()))).await
        };
        push("all", &[]).await.unwrap();
        push("one", &["s390x"]).await.unwrap();
        push("two", &["amd64", "s390x"]).await.unwrap();
        assert_eq!(code(push("none", &["riscv64"])).await, Code::NotFound);
    });
    let inspect = |tag: &str| {
        let name = format!("docker://{}/copy:{tag}", to.host());
        run(std::process::Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false", &name]))
            .ok()
            .stdout
    };
    let digest = |text: &str| types::Digest::of(text.as_bytes()).to_string();
    assert_eq!(digest(&inspect("all")), digest_of(&index));
    assert_eq!(digest(&inspect("one")), digest_of(&images[2]), "the manifest that it is");
    let two: Value = serde_json::from_str(&inspect("two")).unwrap();
    let children: Vec<String> = two["manifests"].as_array().unwrap().iter().map(digest_of).collect();
    assert_eq!(children, [digest_of(&images[0]), digest_of(&images[2])]);
}

/// A stream that was opened under a name.
async fn open(channel: &Channel, name: &str) -> (mpsc::Sender<Any>, Streaming<Any>) {
    let (send, receive) = mpsc::channel(16);
    send.send(pack(&StreamInit { id: name.into() })).await.expect("room for one");
    let mut client = StreamingClient::new(channel.clone());
    let mut incoming = client.stream(ask(ReceiverStream::new(receive))).await.expect("a stream").into_inner();
    incoming.message().await.expect("a stream").expect("an acknowledgement");
    (send, incoming)
}

pub(crate) async fn send_all((send, mut incoming): (mpsc::Sender<Any>, Streaming<Any>), bytes: Vec<u8>) {
    let mut left = bytes::Bytes::from(bytes);
    while !left.is_empty() {
        let Ok(Some(message)) = incoming.message().await else { return };
        let Some(Ok(window)) = unpack::<WindowUpdate>(&message) else { continue };
        let mut window = usize::try_from(window.update).unwrap();
        while window > 0 && !left.is_empty() {
            let data = left.split_to(left.len().min(window).min(32 << 10));
            window -= data.len();
            if send.send(pack(&Data { data })).await.is_err() {
                return;
            }
        }
    }
    drop(send);
    while let Ok(Some(_)) = incoming.message().await {}
}

pub(crate) async fn take_all((send, mut incoming): (mpsc::Sender<Any>, Streaming<Any>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    send.send(pack(&WindowUpdate { update: 1 << 24 })).await.unwrap();
    while let Ok(Some(message)) = incoming.message().await {
        bytes.extend_from_slice(&unpack::<Data>(&message).unwrap().unwrap().data);
    }
    bytes
}

async fn export(channel: &Channel, to: ImageExportStream) -> Result<Vec<u8>, Status> {
    let store = ImageStore { name: "three:1".into(), ..ImageStore::default() };
    export_from(channel, store, to).await
}

async fn export_from(channel: &Channel, from: ImageStore, to: ImageExportStream) -> Result<Vec<u8>, Status> {
    let stream = open(channel, "export").await;
    let store = pack(&from);
    let to = pack(&ImageExportStream { stream: "export".into(), ..to });
    let (moved, bytes) = tokio::join!(transfer(channel, store, to), take_all(stream));
    moved.map(|()| bytes)
}

async fn import(
    channel: &Channel,
    bytes: Vec<u8>,
    force_compress: bool,
    to: ImageStore,
) -> Result<(), Status> {
    let stream = open(channel, "import").await;
    let from = ImageImportStream { stream: "import".into(), force_compress, ..ImageImportStream::default() };
    let (moved, ()) = tokio::join!(transfer(channel, pack(&from), pack(&to)), send_all(stream, bytes));
    moved
}

/// Names of files in an archive.
fn files(dir: &Path, archive: &[u8]) -> Vec<String> {
    let path = dir.join("listed.tar");
    std::fs::write(&path, archive).expect("a writable directory");
    let listed = run(std::process::Command::new("tar").arg("-tf").arg(&path)).ok();
    listed.stdout.lines().map(str::to_owned).collect()
}

#[test]
fn several_platforms_are_exported_and_imported() {
    if !is_root("unpacking") {
        return;
    }
    let (layout, index, images) = three();
    let from = Registry::start();
    let reference = from.push(layout.path(), "three:1", "three:1");
    let daemon = Daemon::start();
    on(&daemon, async |channel| {
        let all = ImageStore { name: "three:1".into(), ..ImageStore::default() };
        transfer(&channel, registry(&reference), pack(&all)).await.unwrap();
        let path = |digest: &str| format!("blobs/{}", digest.replace(':', "/"));
        let layers: Vec<String> = images.iter().map(|image| path(&layer(&layout, image))).collect();
        let has = |archive: &[u8]| {
            let files = files(daemon.dir(), archive);
            let layers = layers.iter().map(|layer| files.contains(layer)).collect::<Vec<_>>();
            (layers, files.contains(&"manifest.json".to_owned()))
        };
        let whole =
            export(&channel, ImageExportStream { all_platforms: true, ..ImageExportStream::default() });
        let whole = whole.await.unwrap();
        assert_eq!(has(&whole), (vec![true; 3], true));
        let two = ImageExportStream {
            platforms: vec![platform("amd64"), platform("s390x")],
            skip_compatibility_manifest: true,
            ..ImageExportStream::default()
        };
        assert_eq!(has(&export(&channel, two).await.unwrap()), (vec![true, false, true], false));
        let none = ImageExportStream {
            platforms: vec![platform("amd64"), platform("riscv64")],
            ..ImageExportStream::default()
        };
        assert_eq!(code(export(&channel, none)).await, Code::NotFound);

        // All that is named goes, and what is no name is refused.
        let second = ImageStore { name: "second:1".into(), ..ImageStore::default() };
        transfer(&channel, pack(&all), pack(&second)).await.unwrap();
        let beside = |is_prefix| ImageStore {
            extra_references: vec![ImageReference {
                name: "second:1".into(),
                is_prefix,
                ..ImageReference::default()
            }],
            ..all.clone()
        };
        let to = || ImageExportStream { all_platforms: true, ..ImageExportStream::default() };
        let both = export_from(&channel, beside(false), to()).await.unwrap();
        std::fs::write(daemon.dir().join("both.tar"), both).unwrap();
        let listed = run(std::process::Command::new("tar")
            .args(["-xOf", "both.tar", "index.json"])
            .current_dir(daemon.dir()));
        let listed = listed.ok().stdout;
        assert!(listed.contains("three:1") && listed.contains("second:1"), "{listed}");
        assert_eq!(code(export_from(&channel, beside(true), to())).await, Code::Unimplemented);

        // Back, under two rules and a name for the whole, for two platforms.
        remove_all(&channel).await;
        let prefix = |name: &str, add_digest| ImageReference {
            name: name.into(),
            is_prefix: true,
            add_digest,
            ..ImageReference::default()
        };
        let to = ImageStore {
            name: "the-index:1".into(),
            extra_references: vec![prefix("three", true), prefix("nothing-like-it", false)],
            unpacks: vec![unpacked("arm64"), unpacked("s390x")],
            labels: [("from".into(), "archive".into())].into(),
            ..ImageStore::default()
        };
        import(&channel, whole.clone(), false, to).await.unwrap();
        assert_eq!(trees(&channel).await, 2);
        assert!(target(&channel, "the-index:1").await.is_ok());
        let mut images = ImagesClient::new(channel.clone());
        let all = images.list(ask(ListImagesRequest::default())).await.unwrap().into_inner().images;
        let mut names: Vec<&str> = all.iter().map(|image| image.name.as_str()).collect();
        names.sort_unstable();
        let [by_digest, whole_by_digest] =
            [digest_of(&index), target(&channel, "the-index:1").await.unwrap()]
                .map(|digest| format!("three@{digest}"));
        let mut expected = ["the-index:1", "three:1", &by_digest, &whole_by_digest];
        expected.sort_unstable();
        assert_eq!(names, expected);
        assert!(all.iter().all(|image| image.labels["from"] == "archive"));

        // As containerd's command line does: a prefix for what is a tag only, and other names as they are.
        remove_all(&channel).await;
        let free = ImageReference { allow_overwrite: true, ..prefix("import-2026-11-26", false) };
        let to = ImageStore { extra_references: vec![free], ..ImageStore::default() };
        import(&channel, whole, false, to).await.unwrap();
        assert!(target(&channel, "three:1").await.is_ok());
    });
}

/// Layers that only their vendors may hand out: they are in an export as all others, or left out if the client says so.
#[test]
fn layers_of_vendors_are_left_out_of_an_export_that_is_to_be_handed_on() {
    let daemon = Daemon::start();
    let layout = Layout::new();
    let tars = ["ours", "theirs"].map(|name| tar_of(&[(name, name)]));
    let diff_ids = tars.each_ref().map(|tar| types::Digest::of(tar).to_string());
    let [ours, theirs] = [("", &tars[0]), ("nondistributable.", &tars[1])]
        .map(|(which, tar)| layout.blob(&format!("application/vnd.oci.image.layer.{which}v1.tar"), tar));
    let config = json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let image = layout.image_of_blobs(&[ours.clone(), theirs.clone()], &config);
    layout.tag(&image, "three:1");
    let archive = daemon.dir().join("layout.tar");
    layout.archive(&archive);
    let bytes = std::fs::read(&archive).unwrap();
    on(&daemon, async |channel| {
        let to = ImageStore { name: "three:1".into(), ..ImageStore::default() };
        import(&channel, bytes, false, to).await.unwrap();
        let export = async |skip_non_distributable| {
            let to = ImageExportStream { skip_non_distributable, ..ImageExportStream::default() };
            let files = files(daemon.dir(), &export(&channel, to).await?);
            let path = |blob: &Value| format!("blobs/{}", digest_of(blob).replace(':', "/"));
            Ok::<_, Status>([&image, &ours, &theirs].map(|blob| files.contains(&path(blob))))
        };
        assert_eq!(export(false).await.unwrap(), [true, true, true]);
        assert_eq!(export(true).await.unwrap(), [true, true, false], "and the manifest is as it was");
        let digest = digest_of(&theirs);
        let mut content = ContentClient::new(channel.clone());
        content.delete(ask(DeleteContentRequest { digest: digest.clone() })).await.unwrap();
        assert_eq!(export(true).await.unwrap(), [true, true, false], "nobody needs it");
        let refused = export(false).await.unwrap_err();
        assert!(refused.code() == Code::NotFound && refused.message().contains(&digest), "{refused}");
    });
}

#[test]
fn plain_layers_are_compressed_on_the_way_in_if_the_client_says_so() {
    let daemon = Daemon::start();
    let layout = Layout::new();
    layout.tag(&layout.image_of("amd64", &[tar_of(&[("file", "plain")])], &json!({})), "plain:1");
    let archive = daemon.dir().join("docker.tar");
    let from = format!("oci:{}:plain:1", layout.path().display());
    let to = format!("docker-archive:{}:plain:1", archive.display());
    run(std::process::Command::new("skopeo").args(["--insecure-policy", "copy", "--quiet", &from, &to])).ok();
    let bytes = std::fs::read(&archive).unwrap();
    on(&daemon, async |channel| {
        for (force_compress, expected) in [(false, "tar"), (true, "tar.gzip")] {
            import(&channel, bytes.clone(), force_compress, ImageStore::default()).await.unwrap();
            let name = "docker.io/library/plain:1";
            let digest = target(&channel, name).await.unwrap();
            let manifest = daemon.root().join("content/blobs").join(digest.replace(':', "/"));
            let manifest = std::fs::read_to_string(&manifest).expect("a blob of the store");
            let manifest: Value = serde_json::from_str(&manifest).unwrap();
            let kind = manifest["layers"][0]["mediaType"].as_str().unwrap();
            assert_eq!(kind, format!("application/vnd.docker.image.rootfs.diff.{expected}"));
            assert!(is_here(&channel, &digest_of(&manifest["layers"][0])).await);
        }
        daemon.hoist(["image", "verify", "plain:1"]).ok();
    });
}

#[test]
fn an_imported_stream_comes_back_from_an_exported_one() {
    let daemon = Daemon::start();
    on(&daemon, async |channel| {
        let (to, from) = (open(&channel, "to").await, open(&channel, "from").await);
        let sent: Vec<u8> = (0..300_000_u32).map(|number| (number % 251) as u8).collect();
        let source = pack(&ImageImportStream { stream: "to".into(), ..ImageImportStream::default() });
        let destination = pack(&ImageExportStream { stream: "from".into(), ..ImageExportStream::default() });
        let (moved, (), came) =
            tokio::join!(transfer(&channel, source, destination), send_all(to, sent.clone()), take_all(from));
        moved.unwrap();
        assert!(came == sent, "{} bytes of {}", came.len(), sent.len());
    });
}

/// More archives than a daemon has threads.
const SILENT: usize = 200;
/// For answers that are there at once, if they come at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

#[test]
fn clients_that_never_send_their_archives_hold_up_nobody_else() {
    let daemon = Daemon::start();
    on(&daemon, async |channel| {
        let mut imports = JoinSet::new();
        let (begun, mut begins) = mpsc::unbounded_channel();
        for number in 0..SILENT {
            let name = format!("silent {number}");
            let (send, mut incoming) = open(&channel, &name).await;
            let (channel, begun) = (channel.clone(), begun.clone());
            imports.spawn(async move {
                let source = pack(&ImageImportStream { stream: name, ..ImageImportStream::default() });
                let asks = async {
                    while let Ok(Some(_)) = incoming.message().await {
                        begun.send(()).expect("the test listens");
                    }
                };
                let (_given_up, ()) =
                    tokio::join!(transfer(&channel, source, pack(&ImageStore::default())), asks);
                drop(send);
            });
        }
        // Each asks for its bytes when it begins.
        for _ in 0..32 {
            begins.recv().await.expect("imports begin");
        }
        let mut images = ImagesClient::new(channel.clone());
        let listed = images.list(ask(ListImagesRequest::default()));
        tokio::time::timeout(ANSWER_TIMEOUT, listed).await.expect("the others are served").expect("a list");

        // Who goes away gives back what it held.
        imports.shutdown().await;
        let bytes = tar_of(&[("file", "no image")]);
        let moved = import(&channel, bytes, false, ImageStore::default());
        let moved = tokio::time::timeout(ANSWER_TIMEOUT, moved).await.expect("there is a place again");
        assert_eq!(moved.expect_err("it is refused").code(), Code::InvalidArgument);
    });
}
