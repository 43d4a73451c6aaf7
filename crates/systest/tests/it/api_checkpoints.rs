//! Checkpoints through containerd's API: the files that a runtime writes become blobs, and a shim gets them back as
//! files. The kernel may be too new for criu, so a fake runtime takes the checkpoint.

use std::fs;
use std::path::{Path, PathBuf};

use api::grpc::containers::containers_client::ContainersClient;
use api::grpc::containers::{Container, CreateContainerRequest, Runtime};
use api::grpc::content::ReadContentRequest;
use api::grpc::content::content_client::ContentClient;
use api::grpc::event::ContentCreate;
use api::grpc::leases::CreateRequest;
use api::grpc::leases::leases_client::LeasesClient;
use api::grpc::tasks::tasks_client::TasksClient;
use api::grpc::tasks::{
    CheckpointTaskRequest, CreateTaskRequest, DeleteTaskRequest, KillRequest, StartRequest, WaitRequest,
};
use api::grpc::types::{Any, Descriptor};
use api::shim::events::{TaskCheckpointed, TaskCreate};
use api::shim::runc::{CheckpointOptions, Options};
use api::shim::{pack, unpack};
use prost::Message;
use serde_json::{Value, json};
use testkit::{Daemon, Registry, eventually, images, is_root, run};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::api::walk::covers;
use crate::typed::{ask, code, events, on};

const IMAGES: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";

/// A runtime that wraps runc: `checkpoint` writes a file in place of criu's images, and `restore` starts a new
/// container if that file is there.
fn runtime(dir: &Path) -> String {
    let program = dir.join("runtime");
    let script = format!(
        "#!/bin/sh\n\
         case \"$*\" in *' checkpoint '*)\n\
             [ -e {dir}/refuses ] && {{ echo criu says no >&2; exit 1; }}\n\
             for word; do [ \"$before\" = --image-path ] && images=$word; before=$word; done\n\
             mkdir -p $images/deeper && echo state > $images/deeper/core.img; exit 0;;\n\
         *' restore '*)\n\
             for word; do\n\
                 case \"$before\" in\n\
                     --image-path) images=$word;;\n\
                     --bundle) bundle=$word;;\n\
                     --pid-file) pid=$word;;\n\
                     --root) root=$word;;\n\
                 esac\n\
                 before=$word\n\
             done\n\
             grep -q state $images/deeper/core.img || exit 1\n\
             /usr/sbin/runc --root $root create --bundle $bundle --pid-file $pid $before || exit 1\n\
             exec /usr/sbin/runc --root $root start $before;;\n\
         esac\n\
         exec /usr/sbin/runc \"$@\"\n",
        dir = dir.display()
    );
    testkit::executable(&program, &script);
    program.display().to_string()
}

async fn create(channel: &Channel, dir: &Path, id: &str) {
    let root = dir.join("root");
    for folder in ["bin", "proc", "dev"] {
        fs::create_dir_all(root.join(folder)).expect("a writable directory");
    }
    if !root.join("bin/busybox").exists() {
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    }
    let mut process = testkit::process("");
    process["args"] = json!(["/bin/busybox", "sleep", "1000"]);
    let document = json!({
        "ociVersion": "1.1.0",
        "process": process,
        "root": { "path": root, "readonly": true },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }] },
    });
    let spec = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
        value: document.to_string().into_bytes(),
    };
    let options = Options {
        binary_name: runtime(dir),
        root: dir.join("runtime-state").display().to_string(),
        ..Options::default()
    };
    let container = Container {
        id: id.into(),
        runtime: Some(Runtime { name: "io.containerd.hoist.v2".into(), options: Some(pack(&options)) }),
        spec: Some(spec),
        ..Container::default()
    };
    let create = CreateContainerRequest { container: Some(container) };
    ContainersClient::new(channel.clone()).create(ask(create)).await.expect("a container");
}

async fn checkpoint(channel: &Channel, id: &str, image_path: &str) -> Result<Vec<Descriptor>, Status> {
    let options = CheckpointOptions { image_path: image_path.into(), ..CheckpointOptions::default() };
    let request = CheckpointTaskRequest {
        container_id: id.into(),
        options: Some(pack(&options)),
        ..CheckpointTaskRequest::default()
    };
    let mut request = ask(request);
    request.metadata_mut().insert(api::grpc::LEASE_KEY, "held".parse().expect("plain text"));
    Ok(TasksClient::new(channel.clone()).checkpoint(request).await?.into_inner().descriptors)
}

async fn read(channel: &Channel, digest: &str) -> Vec<u8> {
    let request = ReadContentRequest { digest: digest.into(), offset: 0, size: 0 };
    let mut stream = ContentClient::new(channel.clone()).read(ask(request)).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        bytes.extend_from_slice(&message.data);
    }
    bytes
}

/// Files and directories of one kind in the daemon's directory of checkpoints.
fn left(daemon: &Daemon, kind: &str) -> usize {
    let found = fs::read_dir(daemon.root().join("checkpoints").join(kind));
    found.map_or(0, |entries| {
        entries
            .flatten()
            .filter(|entry| kind == "taken" || fs::read_dir(entry.path()).unwrap().count() > 0)
            .count()
    })
}

#[test]
fn what_a_runtime_writes_is_stored_and_handed_to_the_next() {
    covers(&["Tasks.Checkpoint", "Tasks.Create"]);
    if !is_root("a container") {
        return;
    }
    let daemon = Daemon::start();
    on(&daemon, async |channel| {
        let mut leases = LeasesClient::new(channel.clone());
        leases.create(ask(CreateRequest { id: "held".into(), ..CreateRequest::default() })).await.unwrap();
        create(&channel, daemon.dir(), "frozen-one").await;
        let mut tasks = TasksClient::new(channel.clone());
        let request = CreateTaskRequest { container_id: "frozen-one".into(), ..CreateTaskRequest::default() };
        tasks.create(ask(request)).await.unwrap();
        tasks
            .start(ask(StartRequest { container_id: "frozen-one".into(), ..StartRequest::default() }))
            .await
            .unwrap();

        let mut told = events(&channel, &["/tasks/checkpointed"]).await;
        let mut taken = async || {
            let told = told.message().await.unwrap().unwrap();
            assert_eq!((told.namespace.as_str(), told.topic.as_str()), ("default", "/tasks/checkpointed"));
            let taken = unpack::<TaskCheckpointed>(&told.event.unwrap()).unwrap().unwrap();
            assert_eq!(taken.container_id, "frozen-one");
            taken.checkpoint
        };
        let mut blobs = events(&channel, &["/content/create"]).await;
        let stored = checkpoint(&channel, "frozen-one", "").await.unwrap();
        for expected in &stored {
            let told = blobs.message().await.unwrap().unwrap().event.unwrap();
            let told = unpack::<ContentCreate>(&told).unwrap().unwrap();
            assert_eq!(
                (told.digest, told.media_type),
                (expected.digest.clone(), expected.media_type.clone())
            );
        }
        // The path of the runtime's image directory, which is removed once the blobs are stored.
        let place = PathBuf::from(taken().await);
        assert_eq!(place.parent(), Some(&*daemon.root().join("checkpoints/taken")));
        let [images, spec] = &stored[..] else { panic!("{stored:?}") };
        assert_eq!(images.media_type, IMAGES);
        let tar = daemon.dir().join("images.tar");
        fs::write(&tar, read(&channel, &images.digest).await).unwrap();
        let listed = run(std::process::Command::new("tar").arg("-tf").arg(&tar)).ok().stdout;
        assert_eq!(listed, "deeper/\ndeeper/core.img\n");
        let spec = Any::decode(read(&channel, &spec.digest).await.as_slice()).unwrap();
        assert!(String::from_utf8_lossy(&spec.value).contains("sleep"));

        let own = daemon.dir().join("images").display().to_string();
        assert_eq!(checkpoint(&channel, "frozen-one", &own).await.unwrap(), []);
        assert_eq!(taken().await, own);
        assert_eq!(fs::read_to_string(Path::new(&own).join("deeper/core.img")).unwrap(), "state\n");
        assert_eq!(code(checkpoint(&channel, "frozen-one", "images")).await, Code::InvalidArgument);
        assert_eq!(code(checkpoint(&channel, "none", "")).await, Code::NotFound);
        fs::write(daemon.dir().join("refuses"), "").unwrap();
        let refused = checkpoint(&channel, "frozen-one", "").await.unwrap_err();
        assert!(refused.message().contains("criu says no"), "{refused}");
        assert_eq!(left(&daemon, "taken"), 0, "nothing is left where criu wrote");

        create(&channel, daemon.dir(), "frozen-two").await;
        let restore = async |descriptor: Descriptor| {
            let mut tasks = TasksClient::new(channel.clone());
            let request = CreateTaskRequest {
                container_id: "frozen-two".into(),
                checkpoint: Some(descriptor),
                ..CreateTaskRequest::default()
            };
            tasks.create(ask(request)).await.map(drop)
        };
        let other = Descriptor { media_type: "text/plain".into(), ..images.clone() };
        assert_eq!(code(restore(other)).await, Code::InvalidArgument);
        let missing = Descriptor { digest: format!("sha256:{}", "0".repeat(64)), ..images.clone() };
        assert_eq!(code(restore(missing)).await, Code::NotFound);
        assert_eq!(left(&daemon, "restored"), 0);
        let mut told = events(&channel, &["/tasks/create"]).await;
        restore(images.clone()).await.unwrap();
        let given = daemon.root().join("checkpoints/restored/default/frozen-two/deeper/core.img");
        assert_eq!(fs::read_to_string(&given).unwrap(), "state\n");
        assert_eq!(code(restore(images.clone())).await, Code::AlreadyExists);
        let created = told.message().await.unwrap().unwrap().event.unwrap();
        let created = unpack::<TaskCreate>(&created).unwrap().unwrap();
        assert_eq!(Path::new(&created.checkpoint), given.parent().and_then(Path::parent).unwrap());
        // The restored files stay as long as the task.
        let two = || "frozen-two".to_owned();
        let start = StartRequest { container_id: two(), ..StartRequest::default() };
        tasks.start(ask(start)).await.unwrap();
        assert!(given.exists());
        let kill = KillRequest { container_id: two(), signal: 9, ..KillRequest::default() };
        tasks.kill(ask(kill)).await.unwrap();
        let wait = WaitRequest { container_id: two(), ..WaitRequest::default() };
        assert_eq!(tasks.wait(ask(wait)).await.unwrap().into_inner().exit_status, 137);
        tasks.delete(ask(DeleteTaskRequest { container_id: two() })).await.unwrap();
        assert_eq!(left(&daemon, "restored"), 0, "nothing is left of what was restored");

        let kill = KillRequest { container_id: "frozen-one".into(), signal: 9, ..KillRequest::default() };
        tasks.kill(ask(kill)).await.unwrap();
        tasks
            .wait(ask(WaitRequest { container_id: "frozen-one".into(), ..WaitRequest::default() }))
            .await
            .unwrap();
        tasks.delete(ask(DeleteTaskRequest { container_id: "frozen-one".into() })).await.unwrap();
    });
}

#[test]
fn ctr_makes_an_image_of_a_container_as_it_runs() {
    covers(&["Tasks.Checkpoint", "Tasks.Create"]);
    if !is_root("a container") {
        return;
    }
    let daemon = Daemon::start();
    let archive = daemon.dir().join("busybox.tar");
    images::archive(&images::busybox(), "oci-archive", "busybox:1", &archive);
    daemon.own_ctr(["images", "import", &archive.display().to_string()]).ok();
    let program = runtime(daemon.dir());
    let script = "echo made > /made-here; exec sleep 1000";
    let image = "busybox:1";
    let flags =
        ["run", "-d", "--runtime", "io.containerd.hoist.v2", "--runc-binary", &program, "--runc-root"];
    let state = daemon.dir().join("state").display().to_string();
    let words = [&state, image, "frozen-three", "sh", "-c", script];
    daemon.own_ctr(flags.into_iter().chain(words)).ok();
    eventually("it has written its file", || {
        let seen =
            daemon.own_ctr(["tasks", "exec", "--exec-id", "look", "frozen-three", "cat", "/made-here"]);
        (seen.code == 0).then_some(())
    });
    let name = daemon.own_ctr(["tasks", "checkpoint", "frozen-three"]).ok().text().to_owned();
    assert!(name.starts_with("containerd.io/checkpoint/frozen-three:"), "{name}");
    let listed = daemon.own_ctr(["images", "ls", &format!("name=={name}")]).ok().stdout;
    let digest = listed.split_whitespace().find(|word| word.starts_with("sha256:")).expect("an index");
    let index: Value = serde_json::from_str(&daemon.own_ctr(["content", "get", digest]).ok().stdout).unwrap();
    let parts = index["manifests"].as_array().unwrap();
    let kinds: Vec<&str> = parts.iter().map(|part| part["mediaType"].as_str().unwrap()).collect();
    assert_eq!(kinds.len(), 4, "{kinds:?}");
    assert_eq!((kinds[0], kinds[3]), (IMAGES, "application/vnd.oci.image.layer.v1.tar+gzip"));
    let layer = daemon.dir().join("layer.tar");
    let file = fs::File::create(&layer).unwrap();
    let get = ["content", "get", parts[3]["digest"].as_str().unwrap()];
    assert!(daemon.own_ctr_command(get).stdout(file).status().unwrap().success());
    assert_eq!(run(std::process::Command::new("tar").arg("-tf").arg(&layer)).ok().stdout, "made-here\n");
    let running = daemon.own_ctr(["tasks", "ls"]).ok().stdout;
    assert!(running.contains("RUNNING"), "it goes on: {running}");

    let own = daemon.dir().join("images").display().to_string();
    let nameless = daemon.own_ctr(["tasks", "checkpoint", "--image-path", &own, "frozen-three"]).ok();
    assert_eq!(nameless.text(), "");
    assert!(Path::new(&own).join("deeper/core.img").exists());
    fs::write(daemon.dir().join("refuses"), "").unwrap();
    let refused = daemon.own_ctr(["tasks", "checkpoint", "frozen-three"]);
    assert!(refused.code != 0 && refused.stderr.contains("criu says no"), "{refused}");
    assert!(daemon.own_ctr(["tasks", "ls"]).ok().stdout.contains("RUNNING"), "it goes on");
    daemon.own_ctr(["tasks", "rm", "-f", "frozen-three"]);
}

#[test]
fn ctr_makes_a_container_of_a_checkpoint() {
    if !is_root("a container") {
        return;
    }
    let registry = Registry::start();
    let daemon = Daemon::start();
    let archive = daemon.dir().join("busybox.tar");
    images::archive(&images::busybox(), "oci-archive", "busybox:1", &archive);
    daemon.own_ctr(["images", "import", &archive.display().to_string()]).ok();
    let program = runtime(daemon.dir());
    let image = "busybox:1";
    let state = daemon.dir().join("state").display().to_string();
    let flags = ["run", "-d", "--runtime", "io.containerd.hoist.v2", "--runc-binary", &program];
    let script = "echo made > /made-here; exec sleep 1000";
    let words = ["--runc-root", &state, image, "before", "sh", "-c", script];
    daemon.own_ctr(flags.into_iter().chain(words)).ok();
    let reads = |id: &str, path: &str| {
        let words = ["tasks", "exec", "--exec-id", "look", id, "cat", path];
        daemon.own_ctr(words)
    };
    eventually("it has written its file", || (reads("before", "/made-here").code == 0).then_some(()));

    let whole = ["containers", "checkpoint", "--rw", "--image", "--task", "before", "whole:1"];
    assert_eq!(daemon.own_ctr(whole).ok().text(), "");
    let twice = daemon.own_ctr(whole);
    assert!(twice.code != 0 && twice.stderr.contains("already exists"), "{twice}");
    daemon.own_ctr(["containers", "checkpoint", "--rw", "before", "still:1"]).ok();
    daemon.own_ctr(["containers", "checkpoint", "before", "bare:1"]).ok();
    assert!(daemon.own_ctr(["tasks", "ls"]).ok().stdout.contains("RUNNING"), "it goes on");

    let listed = daemon.own_ctr(["images", "ls", "name==whole:1"]).ok().stdout;
    let digest = listed.split_whitespace().find(|word| word.starts_with("sha256:")).expect("an index");
    let index: Value = serde_json::from_str(&daemon.own_ctr(["content", "get", digest]).ok().stdout).unwrap();
    assert_eq!(
        index["annotations"],
        json!({
            "io.containerd.checkpoint.runtime": "io.containerd.hoist.v2",
            "io.containerd.checkpoint.snapshotter": "overlayfs",
            "org.opencontainers.image.ref.name": image,
        })
    );
    let kinds: Vec<&str> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| part["mediaType"].as_str().unwrap())
        .collect();
    let of_criu = "application/vnd.containerd.container.checkpoint";
    assert_eq!(kinds[0], format!("{of_criu}.runtime.options+proto"));
    assert_eq!(kinds[2..4], ["application/vnd.oci.image.layer.v1.tar+gzip", IMAGES]);
    assert_eq!(kinds[4..], [format!("{of_criu}.config.v1+proto"), format!("{of_criu}.options.v1+proto")]);

    // The checkpoint keeps all its content after the container is removed.
    daemon.own_ctr(["tasks", "rm", "-f", "before"]);
    daemon.own_ctr(["containers", "rm", "before"]).ok();
    let restore = |words: &[&str]| daemon.own_ctr([&["containers", "restore"][..], words].concat());
    restore(&["--rw", "--live", "after", "whole:1"]).ok();
    assert_eq!(reads("after", "/made-here").ok().text(), "made");
    restore(&["--rw", "again", "still:1"]).ok();
    assert_eq!(reads("again", "/made-here").ok().text(), "made");
    let spec = daemon.own_ctr(["containers", "info", "--spec", "again"]).ok().stdout;
    assert!(spec.contains("made-here"), "{spec}");

    // A push and a pull move the checkpoint as one image.
    let frozen = format!("{}/frozen/whole:1", registry.host());
    daemon.own_ctr(["images", "tag", "whole:1", &frozen]).ok();
    daemon.hoist(["push", &frozen]).ok();
    daemon.own_ctr(["images", "rm", "--sync", &frozen, "whole:1"]).ok();
    assert!(daemon.own_ctr(["content", "get", digest]).code != 0, "nothing of it is here");
    restore(&["--rw", "--live", "fetched", &frozen]).ok();
    assert_eq!(reads("fetched", "/made-here").ok().text(), "made");

    // The daemon pulls the image that the checkpoint lacks, and has the same image then.
    let remote = registry.push(&images::busybox(), images::TAG, "busybox") + ":latest";
    let other = restore(&["none", &remote]);
    assert!(other.code != 0 && other.stderr.contains("image name not found in index"), "{other}");
    assert!(daemon.own_ctr(["images", "ls", "-q"]).ok().stdout.contains(&remote));
    let missing = restore(&["none", &format!("{}/none:1", registry.host())]);
    assert!(missing.code != 0 && missing.stderr.contains("not found"), "{missing}");

    let missing = restore(&["--live", "none", "still:1"]);
    assert!(missing.code != 0 && missing.stderr.contains("media type not found"), "{missing}");
    let missing = restore(&["--rw", "none", "bare:1"]);
    assert!(missing.code != 0 && missing.stderr.contains("media type not found"), "{missing}");
    let missing = restore(&["none", "none:1"]);
    assert!(missing.code != 0 && missing.stderr.contains("not found"), "{missing}");
    let left = daemon.own_ctr(["containers", "ls", "-q"]).ok().stdout;
    assert_eq!(left.lines().collect::<Vec<_>>(), ["after", "again", "fetched"]);
    for id in ["after", "again", "fetched"] {
        daemon.own_ctr(["tasks", "rm", "-f", id]);
    }
}
