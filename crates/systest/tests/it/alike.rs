//! What a client leaves in the store: the same `ctr` commands run against Hoist's daemon and containerd, and after each
//! one the records of both are compared, with all their labels.
//!
//! Each scene has its own namespace. Times are not compared, nor the labels that name the repositories to which a blob
//! was pushed: Hoist records these too, so that a push to the same registry need not send the blob again, while
//! containerd records only pulls.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use api::grpc::containers::ListContainersRequest;
use api::grpc::containers::containers_client::ContainersClient;
use api::grpc::content::ListContentRequest;
use api::grpc::content::content_client::ContentClient;
use api::grpc::images::ListImagesRequest;
use api::grpc::images::images_client::ImagesClient;
use api::grpc::leases::leases_client::LeasesClient;
use api::grpc::leases::{CreateRequest, DeleteRequest, ListRequest, ListResourcesRequest};
use api::grpc::snapshots::ListSnapshotsRequest;
use api::grpc::snapshots::snapshots_client::SnapshotsClient;
use serde_json::json;
use testkit::layout::{archive_of, tar_entry, tar_of};
use testkit::{Containerd, Daemon, Layout, Registry, digest_of, images, is_root, run};
use tonic::transport::Channel;
use types::Digest;

use crate::api::walk::{all, within};
use crate::power::gzip;

/// Images and archives of all kinds, in a registry and in files.
struct Stock {
    registry: Registry,
    _layout: Layout,
    /// Two small images under a name each, a nested index and an artifact.
    names: Vec<String>,
    archive: String,
    /// What `docker save` writes of two images that share a layer: of all their layers plain, and of some in gzip.
    docker: [String; 2],
    /// Keys of the topmost snapshots, and digests that commands name.
    manifest: String,
    layer: String,
}

impl Stock {
    fn new() -> Stock {
        let (layout, registry) = (Layout::new(), Registry::start());
        let shared = layout.layer("shared", 10_000);
        let both = ["amd64", "arm64"].map(|architecture| {
            let own = layout.layer(architecture, 10_000);
            let mut image = layout.image(architecture, &[shared.clone(), own]);
            image["platform"] = json!({"os": "linux", "architecture": architecture});
            image
        });
        let multi = layout.index(&both);
        let alone = layout.image("amd64", std::slice::from_ref(&shared));
        let nested = layout.index(&[both[0].clone(), multi.clone()]);
        let artifact = layout.artifact("application/vnd.example.thing", &both[0], "a thing");
        let mut names = Vec::new();
        for (name, document) in [("multi", &multi), ("alone", &alone), ("artifact", &artifact)] {
            layout.tag(document, name);
            names.push(registry.push(layout.path(), name, &format!("some/{name}:1")));
        }
        // skopeo cannot push an index inside an index, so the inner one is pushed before and the outer one put beside
        // it.
        registry.push(layout.path(), "multi", "some/nested:inner");
        let url = format!("http://{}/v2/some/nested/manifests/1", registry.host());
        let who = format!("{}:{}", Registry::USER, Registry::PASSWORD);
        let kind = "Content-Type: application/vnd.oci.image.index.v1+json";
        let bytes = format!("@{}", layout.blob_path(&nested).display());
        let put = ["-fsS", "-u", &who, "-X", "PUT", "-H", kind, "--data-binary", &bytes, &url];
        run(std::process::Command::new("curl").args(put)).ok();
        names.push(format!("{}/some/nested:1", registry.host()));
        // The archive has the images alone.
        let whole = Layout::new();
        let images = ["amd64", "arm64"].map(|architecture| {
            let mut image = whole.image(architecture, &[whole.layer(architecture, 10_000)]);
            image["platform"] = json!({"os": "linux", "architecture": architecture});
            image
        });
        whole.tag(&whole.index(&images), "example.com/archived:1");
        let archive = layout.path().join("all.tar");
        whole.archive(&archive);
        Stock {
            names,
            archive: archive.display().to_string(),
            docker: [false, true].map(|is_packed| {
                let path = layout.path().join(format!("docker-{is_packed}.tar"));
                fs::write(&path, docker_archive(is_packed)).expect("a writable directory");
                path.display().to_string()
            }),
            manifest: digest_of(&alone),
            layer: digest_of(&shared),
            registry,
            _layout: layout,
        }
    }

    /// The commands of each scene; `major` is the client's.
    fn scenes(&self, major: u32, copies: &str) -> Vec<(String, Vec<Vec<String>>)> {
        let mut scenes = Vec::new();
        let mut scene = |name: &str, commands: &[&[&str]]| {
            let commands = commands.iter().map(|words| words.iter().map(ToString::to_string).collect());
            scenes.push((name.to_owned(), commands.collect()));
        };
        let [multi, alone, artifact, nested] = &self.names[..] else { panic!("four images") };
        let pull = ["images", "pull", "--plain-http"];
        let ways: &[&[&str]] = if major == 1 { &[&[]] } else { &[&[], &["--local"]] };
        for (at, way) in ways.iter().enumerate() {
            for (kind, name) in [("multi", multi), ("alone", alone), ("nested", nested)] {
                let pull = [&pull[..], way, &[name]].concat();
                scene(&format!("pull-{kind}-{at}"), &[&pull, &pull]);
            }
            let all = [&pull[..], way, &["--all-platforms", multi]].concat();
            let one = [&pull[..], way, &["--platform", "linux/arm64", multi]].concat();
            let labelled = [&pull[..], way, &["--label", "mine=1", alone]].concat();
            scene(&format!("pull-all-{at}"), &[&all]);
            scene(&format!("pull-one-{at}"), &[&one, &all]);
            scene(&format!("pull-labelled-{at}"), &[&labelled]);
            let copy = format!("{}/copies/{copies}:{at}", self.registry.host());
            let push = [&["images", "push", "--plain-http"][..], way, &[&copy, alone]].concat();
            let pull = [&pull[..], way, &[alone]].concat();
            scene(&format!("push-{at}"), &[&pull, &push, &push]);
            let import = |flags: &[&'static str]| {
                let words = [&["images", "import"][..], way, flags].concat();
                [&words[..], &[self.archive.as_str()]].concat()
            };
            scene(&format!("import-{at}"), &[&import(&[]), &import(&[])]);
            let docker = |flags: &[&'static str], archive: &str| -> Vec<String> {
                let words = [&["images", "import"][..], way, flags, &[archive]].concat();
                words.into_iter().map(str::to_owned).collect()
            };
            let [plain, packed] = &self.docker;
            let saved = images::busybox_archive().display().to_string();
            for (kind, flags, archives) in [
                ("saved", &[][..], &[&saved][..]),
                ("plain", &[], &[plain, plain]),
                // The second time, the store has what the archive has in another form.
                ("both", &[], &[packed, plain]),
                ("digests", &["--digests"], &[packed]),
                ("index", &["--index-name", "example.com/index:1"], &[packed]),
                ("all", &["--all-platforms"], &[packed]),
            ] {
                let commands: Vec<Vec<String>> =
                    archives.iter().map(|archive| docker(flags, archive)).collect();
                let commands: Vec<Vec<&str>> =
                    commands.iter().map(|words| words.iter().map(String::as_str).collect()).collect();
                let commands: Vec<&[&str]> = commands.iter().map(Vec::as_slice).collect();
                scene(&format!("docker-{kind}-{at}"), &commands);
            }
            scene(&format!("import-packed-{at}"), &[&import(&["--no-unpack"])]);
            scene(&format!("import-digests-{at}"), &[&import(&["--digests"])]);
            scene(&format!("import-index-{at}"), &[&import(&["--index-name", "example.com/index:1"])]);
        }
        let fetch = ["content", "fetch", "--plain-http"];
        scene("fetch", &[&[&fetch[..], &[multi]].concat()]);
        scene("fetch-all", &[&[&fetch[..], &["--all-platforms", nested]].concat()]);
        scene("fetch-artifact", &[&[&fetch[..], &[artifact]].concat()]);
        let pull_alone = [&pull[..], &[alone]].concat();
        scene(
            "records",
            &[
                &pull_alone,
                &["images", "tag", alone, "example.com/tagged:1"],
                &["images", "label", "example.com/tagged:1", "a=b"],
                &["content", "label", &self.layer, "c=d"],
                &["snapshots", "prepare", "work", &self.layer],
                &["snapshots", "label", "work", "e=f"],
                &["snapshots", "view", "looked", &self.layer],
                &["snapshots", "commit", "worked", "work"],
                &["snapshots", "rm", "looked"],
                &["leases", "create", "--id", "held", "g=h"],
                &["containers", "create", "--label", "i=j", alone, "box", "true"],
                &["containers", "label", "box", "k=l"],
                &["images", "convert", "--uncompress", alone, "example.com/plain:1"],
                &["containers", "rm", "box"],
                &["leases", "rm", "held"],
                &["images", "rm", "--sync", alone, "example.com/tagged:1", "example.com/plain:1"],
            ],
        );
        scene(
            "unpack",
            &[
                &[&fetch[..], &[alone]].concat(),
                &["images", "unpack", alone],
                &["snapshots", "unpack", &self.manifest],
            ],
        );
        scenes
    }
}

/// An archive in the form of `docker save` before Docker 25, with a layer twice and an image with two names.
fn docker_archive(is_packed: bool) -> Vec<u8> {
    let plain = ["shared", "first", "second"].map(|name| tar_of(&[(name, name)]));
    let mut files = plain.clone();
    if is_packed {
        files[0] = gzip(&plain[0]);
        files[2] = gzip(&plain[2]);
    }
    let mut entries = Vec::new();
    for (at, file) in files.iter().enumerate() {
        entries.push(tar_entry(&format!("{at}/layer.tar"), b'0', "", file));
    }
    let mut manifest = Vec::new();
    for (name, layers, tags) in [
        ("first", &[0, 1, 0][..], &["docker/first:1", "example.com/docker/first"][..]),
        ("second", &[0, 2], &["docker/second:2"]),
    ] {
        let diff_ids: Vec<String> = layers.iter().map(|at| Digest::of(&plain[*at]).to_string()).collect();
        let paths: Vec<String> = layers.iter().map(|at| format!("{at}/layer.tar")).collect();
        let rootfs = json!({"type": "layers", "diff_ids": diff_ids});
        let config =
            json!({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).to_string();
        entries.push(tar_entry(&format!("{name}.json"), b'0', "", config.as_bytes()));
        manifest.push(json!({"Config": format!("{name}.json"), "RepoTags": tags, "Layers": paths}));
    }
    let manifest = json!(manifest).to_string();
    entries.push(tar_entry("manifest.json", b'0', "", manifest.as_bytes()));
    archive_of(&entries)
}

/// All records of a namespace after a garbage collection, one per line.
async fn records(channel: &Channel, namespace: &str) -> Vec<String> {
    let ask = Some(namespace);
    let mut leases = LeasesClient::new(channel.clone());
    let id = || "of-the-test".to_owned();
    let create = CreateRequest { id: id(), ..CreateRequest::default() };
    leases.create(within(ask, create)).await.expect("a lease");
    leases.delete(within(ask, DeleteRequest { id: id(), sync: true })).await.expect("a collection");
    let mut records = Vec::new();
    let blobs = ContentClient::new(channel.clone()).list(within(ask, ListContentRequest::default())).await;
    let blobs = all(async { blobs }).await.expect("blobs").into_inner();
    for blob in blobs.into_iter().flat_map(|message| message.info) {
        records.push(format!("blob {} {}", blob.digest, shown(&blob.labels)));
    }
    let images = ImagesClient::new(channel.clone()).list(within(ask, ListImagesRequest::default())).await;
    for image in images.expect("images").into_inner().images {
        let target = image.target.unwrap_or_default();
        let of_target = shown(&target.annotations);
        let target = format!("{} {} {}", target.media_type, target.digest, target.size);
        records.push(format!("image {} {target} {of_target} {}", image.name, shown(&image.labels)));
    }
    let list = ListSnapshotsRequest { snapshotter: "overlayfs".into(), ..ListSnapshotsRequest::default() };
    let trees = SnapshotsClient::new(channel.clone()).list(within(ask, list)).await;
    let trees = all(async { trees }).await.expect("trees").into_inner();
    for tree in trees.into_iter().flat_map(|message| message.info) {
        let labels = shown(&tree.labels);
        records.push(format!("tree {} of {:?} on {:?} {labels}", tree.name, tree.kind, tree.parent));
    }
    let list = within(ask, ListContainersRequest::default());
    let containers = ContainersClient::new(channel.clone()).list(list).await.expect("containers");
    for container in containers.into_inner().containers {
        let runtime = container.runtime.unwrap_or_default();
        let options = runtime.options.map(|options| options.type_url);
        let extensions: Vec<&String> = container.extensions.keys().collect();
        records.push(format!(
            "container {} of {} in {}:{} by {} {options:?} {extensions:?} {:?} {}",
            container.id,
            container.image,
            container.snapshotter,
            container.snapshot_key,
            runtime.name,
            container.spec.map(|spec| spec.type_url),
            shown(&container.labels)
        ));
    }
    let listed = leases.list(within(ask, ListRequest::default())).await.expect("leases").into_inner();
    for lease in listed.leases {
        let request = within(ask, ListResourcesRequest { id: lease.id.clone() });
        let held = leases.list_resources(request).await.expect("resources").into_inner().resources;
        let held: Vec<String> = held.into_iter().map(|one| format!("{}:{}", one.r#type, one.id)).collect();
        records.push(format!("lease {} {} {held:?}", lease.id, shown(&lease.labels)));
    }
    records.sort();
    records
}

/// Labels without times, and without the repositories to which the test pushes.
fn shown(labels: &BTreeMap<String, String>) -> String {
    let is_time = |key: &str| matches!(key, "containerd.io/gc.expire" | "containerd.io/gc.root");
    let shown = labels.iter().map(|(key, value)| match is_time(key) {
        true => format!("{key}=TIME"),
        false => {
            format!("{key}={}", value.trim_start_matches("copies/one,").trim_start_matches("copies/two,"))
        }
    });
    shown.collect::<Vec<_>>().join(" ")
}

/// The result of a command, and the records after it.
struct Step {
    command: String,
    code: i32,
    said: String,
    records: Vec<String>,
}

fn play(socket: &Path, scenes: &[(String, Vec<Vec<String>>)]) -> Vec<Step> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let channel = runtime.block_on(client::channel(socket)).expect("the daemon listens");
    let mut steps = Vec::new();
    for (scene, commands) in scenes {
        for words in commands {
            let words: Vec<&str> =
                ["-n", scene].into_iter().chain(words.iter().map(String::as_str)).collect();
            let done = run(&mut Containerd::client(socket, &words));
            steps.push(Step {
                command: words.join(" "),
                code: done.code,
                said: done.stderr.clone(),
                records: runtime.block_on(records(&channel, scene)),
            });
        }
    }
    steps
}

#[test]
fn what_a_client_leaves_is_the_same() {
    if !is_root("snapshots") {
        return;
    }
    let Some(containerd) = Containerd::start() else { return };
    let (stock, daemon) = (Stock::new(), Daemon::start());
    let ours = play(&daemon.socket(), &stock.scenes(containerd.major(), "one"));
    let theirs = play(&containerd.socket(), &stock.scenes(containerd.major(), "two"));
    let mut differences = Vec::new();
    for (ours, theirs) in ours.iter().zip(&theirs) {
        if (ours.code == 0) != (theirs.code == 0) {
            differences.push(format!("{}: {} {}, {}", ours.command, ours.code, ours.said, theirs.code));
        }
        let less = |from: &[String], other: &[String], mark| -> Vec<String> {
            let only = from.iter().filter(|line| !other.contains(line));
            only.map(|line| format!("{}: {mark} {line}", ours.command)).collect()
        };
        differences.extend(less(&theirs.records, &ours.records, "containerd"));
        differences.extend(less(&ours.records, &theirs.records, "hoist"));
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
