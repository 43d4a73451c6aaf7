//! Mounts activated by containerd's mounts service, and by tasks whose root file systems need them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use api::grpc::containers::containers_client::ContainersClient;
use api::grpc::containers::{
    Container, CreateContainerRequest, DeleteContainerRequest, Runtime as ContainerRuntime,
};
use api::grpc::content::content_client::ContentClient;
use api::grpc::content::{ReadContentRequest, WriteAction, WriteContentRequest};
use api::grpc::diff::diff_client::DiffClient;
use api::grpc::diff::{ApplyRequest, DiffRequest};
use api::grpc::introspection::PluginsRequest;
use api::grpc::introspection::introspection_client::IntrospectionClient;
use api::grpc::leases::leases_client::LeasesClient;
use api::grpc::leases::{CreateRequest, DeleteRequest, ListResourcesRequest};
use api::grpc::mounts::mounts_client::MountsClient;
use api::grpc::mounts::{ActivateRequest, DeactivateRequest, InfoRequest, ListRequest, UpdateRequest};
use api::grpc::tasks::tasks_client::TasksClient;
use api::grpc::tasks::{CreateTaskRequest, DeleteTaskRequest, StartRequest, WaitRequest};
use api::grpc::types::{ActivationInfo, Any, Descriptor, Mount};
use serde_json::{Value, json};
use testkit::layout::tar_of;
use testkit::{DEADLINE, Daemon, eventually, is_root, run as command};
use tokio::task::spawn_blocking;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::api::walk::covers;
use crate::shim_waits::Waiter;
use crate::typed::{ask, code, on};

const RUNTIME: &str = "io.containerd.hoist.v2";

struct Mounts(MountsClient<Channel>);

impl Mounts {
    fn new(channel: &Channel) -> Mounts {
        Mounts(MountsClient::new(channel.clone()))
    }

    async fn activate(&mut self, name: &str, mounts: &[Mount]) -> Result<ActivationInfo, Status> {
        let request = ActivateRequest {
            name: name.into(),
            mounts: mounts.to_vec(),
            // Garbage collection keeps it.
            labels: [("test".into(), name.into()), ("containerd.io/gc.root".into(), "now".into())].into(),
            temporary: false,
        };
        Ok(self.0.activate(ask(request)).await?.into_inner().info.expect("an activation"))
    }

    async fn deactivate(&mut self, name: &str) -> Result<(), Status> {
        self.0.deactivate(ask(DeactivateRequest { name: name.into() })).await.map(drop)
    }

    async fn info(&mut self, name: &str) -> Result<ActivationInfo, Status> {
        let answer = self.0.info(ask(InfoRequest { name: name.into() })).await?;
        Ok(answer.into_inner().info.expect("an activation"))
    }

    async fn update(
        &mut self,
        name: &str,
        label: (&str, &str),
        path: &str,
    ) -> Result<ActivationInfo, Status> {
        let info = ActivationInfo {
            name: name.into(),
            labels: [(label.0.into(), label.1.into())].into(),
            ..ActivationInfo::default()
        };
        let mask = prost_types::FieldMask { paths: vec![path.into()] };
        let request = UpdateRequest { info: Some(info), update_mask: Some(mask) };
        Ok(self.0.update(ask(request)).await?.into_inner().info.expect("an activation"))
    }

    /// The names of the active mounts.
    async fn list(&mut self, filters: &[&str]) -> Vec<String> {
        let filters = filters.iter().map(ToString::to_string).collect();
        let mut stream = self.0.list(ask(ListRequest { filters })).await.expect("a list").into_inner();
        let mut names = Vec::new();
        while let Some(message) = stream.message().await.expect("a list") {
            names.push(message.info.expect("an activation").name);
        }
        names
    }
}

pub(crate) fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        r#type: kind.into(),
        source: source.into(),
        target: String::new(),
        options: options.iter().map(ToString::to_string).collect(),
    }
}

/// A bind mount to be made, and one that is returned and shows the first.
pub(crate) fn shown(directory: &Path) -> [Mount; 2] {
    let source = directory.display().to_string();
    [mount("bind", &source, &["rbind"]), mount("format/bind", "{{ mount 0 }}", &["rbind", "ro"])]
}

pub(crate) fn is_mounted(point: &str) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("a kernel with proc");
    table.lines().any(|line| line.split(' ').nth(4) == Some(point))
}

#[test]
fn activations_outlive_the_daemon_and_go_with_their_lease() {
    covers(&["Mounts.Activate", "Mounts.Deactivate", "Mounts.Info", "Mounts.Update", "Mounts.List"]);
    if !is_root("mounts") {
        return;
    }
    let mut daemon = Daemon::start();
    let directory = daemon.dir().join("shown");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("file"), "shown").unwrap();
    let point = on(&daemon, async |channel| {
        let mut mounts = Mounts::new(&channel);
        assert_eq!(mounts.list(&[]).await, Vec::<String>::new());

        // A lease keeps the mounts. Garbage collection runs soon, after so many changes.
        let mut leases = LeasesClient::new(channel.clone());
        let lease = CreateRequest { id: "held".into(), ..CreateRequest::default() };
        leases.create(ask(lease)).await.unwrap();
        let request = ActivateRequest {
            name: "one".into(),
            mounts: shown(&directory).to_vec(),
            labels: [("test".into(), "one".into())].into(),
            temporary: false,
        };
        let mut leased = ask(request);
        leased.metadata_mut().insert(api::grpc::LEASE_KEY, "held".parse().unwrap());
        let made = mounts.0.activate(leased).await.unwrap().into_inner().info.unwrap();
        assert_eq!((made.name.as_str(), made.active.len(), made.system.len()), ("one", 1, 1), "{made:?}");
        let active = &made.active[0];
        assert_eq!(active.mount.as_ref(), Some(&shown(&directory)[0]));
        assert!(active.mounted_at.is_some() && is_mounted(&active.mount_point));
        assert_eq!((made.system[0].r#type.as_str(), &made.system[0].source), ("bind", &active.mount_point));
        assert_eq!(mounts.info("one").await.unwrap(), made);
        let resources = ListResourcesRequest { id: "held".into() };
        let resources = leases.list_resources(ask(resources)).await.unwrap().into_inner().resources;
        assert_eq!((resources[0].r#type.as_str(), resources[0].id.as_str()), ("mounts", "one"));

        let updated = mounts.update("one", ("more", "1"), "labels.more").await.unwrap();
        assert_eq!(updated.labels.len(), 2);
        let mut introspection = IntrospectionClient::new(channel.clone());
        let filters = vec!["type~=mount".into(), "id==mounts".into()];
        let plugins =
            introspection.plugins(ask(PluginsRequest { filters })).await.unwrap().into_inner().plugins;
        let plugins: Vec<_> =
            plugins.iter().map(|plugin| (plugin.r#type.as_str(), plugin.id.as_str())).collect();
        assert_eq!(
            plugins,
            [
                ("io.containerd.grpc.v1", "mounts"),
                ("io.containerd.mount-handler.v1", "erofs"),
                ("io.containerd.mount-handler.v1", "loop"),
                ("io.containerd.mount-manager.v1", "bolt"),
            ]
        );
        made.active[0].mount_point.clone()
    });

    // Mounts survive a killed daemon, and the next daemon knows them.
    daemon.kill();
    assert!(is_mounted(&point));
    daemon.start_again();
    on(&daemon, async |channel| {
        let mut mounts = Mounts::new(&channel);
        assert_eq!(mounts.info("one").await.unwrap().active[0].mount_point, point);
        // A mount in use stays.
        let open = fs::File::open(Path::new(&point).join("file")).unwrap();
        let busy = mounts.deactivate("one").await.unwrap_err();
        assert_eq!(busy.code(), Code::FailedPrecondition);
        assert!(busy.message().contains("in use"), "{busy}");
        assert_eq!(mounts.list(&[]).await, ["one"]);
        drop(open);

        let mut leases = LeasesClient::new(channel.clone());
        leases.delete(ask(DeleteRequest { id: "held".into(), sync: true })).await.unwrap();
        assert_eq!(mounts.list(&[]).await, Vec::<String>::new());
        assert!(!is_mounted(&point), "collected, and taken down before the call was answered");
        assert_eq!(fs::read_dir(daemon.state().join("mounts")).unwrap().count(), 0);
    });
}

#[test]
fn a_task_gets_a_root_file_system_that_needs_a_disk_before_it() {
    if !can_make_disks() {
        return;
    }
    let daemon = Daemon::start();
    let lower = busybox_root(&daemon);
    let disk = daemon.root().join("disk.img").display().to_string();
    let rootfs = above_on_a_disk(&disk, &lower);
    on(&daemon, async |channel| {
        let mut mounts = Mounts::new(&channel);
        let first = "echo written > /kept; cat /kept";
        run(&channel, &mut mounts, "on-disk-one", first, &rootfs).await;
        assert_eq!(code(mounts.info("on-disk-one")).await, Code::NotFound, "the task is gone");
        // The second container reads from the disk what the first has written.
        run(&channel, &mut mounts, "on-disk-two", "grep -q written /kept", &rootfs).await;

        // A failed start leaves nothing mounted.
        create(&channel, "broken", &["/no/such/program"]).await;
        let refused = create_task(&channel, "broken", &rootfs).await;
        assert!(refused.is_err());
        assert_eq!(mounts.list(&[]).await, Vec::<String>::new());

        // A container's removal also deactivates its mounts.
        create(&channel, "left", &["/bin/busybox", "true"]).await;
        let labels = [("containerd.io/gc.bref.container".into(), "left".into())].into();
        let request =
            ActivateRequest { name: "left".into(), mounts: shown(&lower).to_vec(), labels, temporary: false };
        mounts.0.activate(ask(request)).await.unwrap();
        let delete = DeleteContainerRequest { id: "left".into() };
        ContainersClient::new(channel.clone()).delete(ask(delete)).await.unwrap();
        let mut leases = LeasesClient::new(channel.clone());
        leases.create(ask(CreateRequest { id: "x".into(), ..CreateRequest::default() })).await.unwrap();
        leases.delete(ask(DeleteRequest { id: "x".into(), sync: true })).await.unwrap();
        assert_eq!(mounts.list(&[]).await, Vec::<String>::new());
    });
}

/// The client cancels its call, but the clean-up of the task continues.
#[test]
fn what_was_mounted_for_a_task_goes_also_if_nobody_waits_for_its_deletion() {
    if !can_make_disks() {
        return;
    }
    let daemon = Daemon::start();
    let (lower, waiter) = (busybox_root(&daemon), Waiter::below(daemon.dir(), "after"));
    let rootfs = above_on_a_disk(&daemon.root().join("disk.img").display().to_string(), &lower);
    on(&daemon, async |channel| {
        let mut mounts = Mounts::new(&channel);
        let hooks = json!({ "poststop": waiter.hook() });
        create_with(&channel, "slow", &["/bin/busybox", "true"], &hooks).await;
        create_task(&channel, "slow", &rootfs).await.expect("a task");
        let mut tasks = TasksClient::new(channel.clone());
        let id = || "slow".to_owned();
        tasks.start(ask(StartRequest { container_id: id(), ..StartRequest::default() })).await.unwrap();
        tasks.wait(ask(WaitRequest { container_id: id(), ..WaitRequest::default() })).await.unwrap();
        let waits = {
            let waiter = waiter.clone();
            spawn_blocking(move || waiter.is_there())
        };
        tokio::select! {
            deleted = tasks.delete(ask(DeleteTaskRequest { container_id: id() })) => panic!("{deleted:?}"),
            waits = waits => waits.expect("it waits"),
        }
        // The client has sent its cancellation by now.
        assert_eq!(mounts.list(&[]).await, ["slow"]);
        waiter.open_door();
        let points = || fs::read_dir(daemon.state().join("mounts")).expect("it is there").count();
        eventually("what was mounted for it is gone", || (points() == 0).then_some(()));
        // The record is removed last.
        let gone = async { while !mounts.list(&[]).await.is_empty() {} };
        tokio::time::timeout(DEADLINE, gone).await.expect("its record goes too");
    });
}

/// Whether the host has the programs for it. If not, prints what is missing.
fn can_make_disks() -> bool {
    let has_program = Command::new("mkfs.ext4").arg("-V").output().is_ok();
    if !has_program {
        println!("skipped: mkfs.ext4 is not installed");
    }
    has_program && is_root("mounts")
}

/// A root file system of an overlay, whose upper directory is on a new disk.
fn above_on_a_disk(disk: &str, lower: &Path) -> [Mount; 3] {
    [
        mount("mkfs/loop", disk, &["X-containerd.mkfs.size=16MiB"]),
        mount("format/ext4", "{{ mount 0 }}", &[]),
        mount(
            "format/mkdir/overlay",
            "overlay",
            &[
                "X-containerd.mkdir.path={{ mount 1 }}/upper:0755",
                "X-containerd.mkdir.path={{ mount 1 }}/work:0700",
                &format!("lowerdir={}", lower.display()),
                "upperdir={{ mount 1 }}/upper",
                "workdir={{ mount 1 }}/work",
            ],
        ),
    ]
}

/// A disk that is made, a file system on it, and directories in that: the last one is a tree.
fn on_a_disk(disk: &str) -> Vec<Mount> {
    vec![
        mount("mkfs/loop", disk, &["X-containerd.mkfs.size=16MiB"]),
        mount("format/ext4", "{{ mount 0 }}", &[]),
        mount(
            "format/mkdir/bind",
            "{{ mount 1 }}/tree",
            &["X-containerd.mkdir.path={{ mount 1 }}/tree:0755", "rbind"],
        ),
    ]
}

#[test]
fn layers_are_applied_to_trees_that_need_mounts_before_and_read_from_them() {
    if !can_make_disks() {
        return;
    }
    let daemon = Daemon::start();
    let on_disk = on_a_disk(&daemon.root().join("disk.img").display().to_string());
    let layer = tar_of(&[("greeting", "hello"), ("dir/other", "there")]);
    on(&daemon, async |channel| {
        let stored = put(&channel, &layer).await;
        let mut diffs = DiffClient::new(channel.clone());
        let apply =
            ApplyRequest { diff: Some(stored.clone()), mounts: on_disk.clone(), ..ApplyRequest::default() };
        let applied = diffs.apply(ask(apply.clone())).await.unwrap().into_inner().applied.unwrap();
        assert_eq!(applied.digest, stored.digest);
        let mut mounts = Mounts::new(&channel);
        assert_eq!(mounts.list(&[]).await, Vec::<String>::new(), "for the call only");
        let places = || fs::read_dir(daemon.state().join("mounts")).unwrap().count();
        assert_eq!(places(), 0);

        let compare = |right: Vec<Mount>| DiffRequest {
            right,
            media_type: "application/vnd.oci.image.layer.v1.tar".into(),
            labels: [("containerd.io/gc.root".into(), "now".into())].into(),
            ..DiffRequest::default()
        };
        let written = diffs.diff(ask(compare(on_disk.clone()))).await.unwrap().into_inner().diff.unwrap();
        let bytes = blob(&channel, &written.digest).await;
        let names = String::from_utf8_lossy(&bytes).into_owned();
        assert!(names.contains("greeting") && names.contains("dir/other"), "{} bytes", bytes.len());
        assert_eq!((mounts.list(&[]).await.len(), places()), (0, 0));

        // Mounts that cannot be made are an error, and nothing stays mounted.
        let missing = on_a_disk(&daemon.root().join("other.img").display().to_string());
        assert_eq!(code(diffs.diff(ask(compare(missing)))).await, Code::NotFound);
        let wrong = [mount("format/bind", "{{ mount 0 }}", &[])];
        let wrong = ApplyRequest { mounts: wrong.to_vec(), ..apply };
        assert_eq!(code(diffs.apply(ask(wrong))).await, Code::InvalidArgument);
        assert_eq!((mounts.list(&[]).await.len(), places()), (0, 0));
    });
}

/// Makes a root file system with busybox.
fn busybox_root(daemon: &Daemon) -> PathBuf {
    let root = daemon.dir().join("lower");
    for folder in ["bin", "proc", "dev", "sys"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    root
}

/// Writes a layer as a blob.
pub(crate) async fn put(channel: &Channel, layer: &[u8]) -> Descriptor {
    let digest = types::Digest::of(layer).to_string();
    let whole = WriteContentRequest {
        action: WriteAction::Commit.into(),
        r#ref: "layer".into(),
        expected: digest.clone(),
        data: layer.to_vec().into(),
        labels: [("containerd.io/gc.root".into(), "now".into())].into(),
        ..WriteContentRequest::default()
    };
    let mut content = ContentClient::new(channel.clone());
    let mut answers = content.write(ask(tokio_stream::iter([whole]))).await.expect("a write").into_inner();
    while answers.message().await.expect("a write").is_some() {}
    let size = i64::try_from(layer.len()).expect("a short layer");
    let media_type = "application/vnd.oci.image.layer.v1.tar".into();
    Descriptor { media_type, digest, size, ..Descriptor::default() }
}

async fn blob(channel: &Channel, digest: &str) -> Vec<u8> {
    let request = ReadContentRequest { digest: digest.into(), ..ReadContentRequest::default() };
    let mut content = ContentClient::new(channel.clone());
    let mut answers = content.read(ask(request)).await.expect("a blob").into_inner();
    let mut bytes = Vec::new();
    while let Some(message) = answers.message().await.expect("a blob") {
        bytes.extend_from_slice(&message.data);
    }
    bytes
}

#[test]
fn a_task_gets_a_root_file_system_that_a_program_shows() {
    if !is_root("mounts") {
        return;
    }
    let is_there = |program: &str| Command::new(program).arg("-V").output().is_ok();
    if !is_there("bindfs") || !is_there("mount.fuse3") {
        println!("skipped: bindfs or fuse3 is not installed");
        return;
    }
    let daemon = Daemon::start();
    let lower = busybox_root(&daemon);
    let rootfs = [mount("fuse3.bindfs", &lower.display().to_string(), &["allow_other"])];
    on(&daemon, async |channel| {
        let mut mounts = Mounts::new(&channel);
        create(&channel, "shown", &["/bin/busybox", "sh", "-c", "echo written > /kept"]).await;
        create_task(&channel, "shown", &rootfs).await.expect("a task");
        assert_eq!(mounts.info("shown").await.expect("made for the task").active.len(), 1);
        assert_eq!(finish(&channel, "shown").await, 0);
        assert_eq!(code(mounts.info("shown")).await, Code::NotFound, "the task is gone");
        assert_eq!(fs::read_to_string(lower.join("kept")).unwrap(), "written\n");
    });
}

/// Whether programs and kernel support dm-verity. If not, prints what is missing.
fn can_check_images() -> bool {
    for program in ["mkfs.erofs", "veritysetup"] {
        if Command::new(program).arg("--help").output().is_err() {
            println!("skipped: {program} is not installed");
            return false;
        }
    }
    if !Path::new("/dev/mapper/control").exists() {
        assert!(std::env::var_os("HOIST_GUEST").is_none(), "the guest has one");
        println!("skipped: the kernel has no device mapper (guest:: has one)");
        return false;
    }
    true
}

/// An EROFS image of a file, followed by its hash tree, and the content of the file.
fn checked_image(daemon: &Daemon, name: &str) -> (PathBuf, Vec<u8>) {
    let tree = daemon.dir().join(format!("{name}-tree"));
    fs::create_dir(&tree).unwrap();
    let content: Vec<u8> =
        (0..64 * 1024_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(tree.join("file"), &content).unwrap();
    let image = daemon.dir().join(name);
    command(Command::new("mkfs.erofs").arg("--quiet").arg(&image).arg(&tree)).ok();
    let len = fs::metadata(&image).unwrap().len().next_multiple_of(4096);
    fs::File::options().write(true).open(&image).unwrap().set_len(len).unwrap();
    let formatted = command(
        Command::new("veritysetup")
            .args(["format", &format!("--hash-offset={len}"), &format!("--data-blocks={}", len / 4096)])
            .args([&image, &image]),
    );
    let said = formatted.ok().stdout;
    let hash =
        said.lines().find_map(|line| line.strip_prefix("Root hash:")).expect("a root hash").trim().to_owned();
    let hashes = json!({ "roothash": hash, "hashoffset": len }).to_string();
    fs::write(format!("{}.dmverity", image.display()), hashes).unwrap();
    (image, content)
}

#[test]
fn an_image_is_checked_while_it_is_read() {
    if !is_root("mounts") || !can_check_images() {
        return;
    }
    let devices = || -> Vec<String> {
        let entries = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().file_name());
        entries.filter_map(|name| name.into_string().ok()).filter(|name| name.starts_with("dm-")).collect()
    };
    let before = devices();
    let mut daemon = Daemon::start();
    let (image, content) = checked_image(&daemon, "good");
    let checked = |image: &Path, hashes: &str| {
        let option = format!("X-containerd.dmverity={hashes}");
        [
            mount("erofs", &image.display().to_string(), &["ro", "loop", &option]),
            mount("format/bind", "{{ mount 0 }}", &["rbind", "ro"]),
        ]
    };
    let whole = checked(&image, &image.display().to_string());
    let point = on(&daemon, async |channel| {
        let made = Mounts::new(&channel).activate("good", &whole).await.unwrap();
        made.active[0].mount_point.clone()
    });
    assert_eq!(fs::read(Path::new(&point).join("file")).unwrap(), content);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(4) == Some(&point)).expect("it is mounted");
    assert!(line.contains("- erofs /dev/dm-"), "{line}");

    // The device outlives the daemon, and is removed with its mount.
    daemon.kill();
    daemon.start_again();
    on(&daemon, async |channel| {
        let mut mounts = Mounts::new(&channel);
        assert_eq!(mounts.info("good").await.unwrap().active[0].mount_point, point);
        mounts.deactivate("good").await.unwrap();
        eventually("the device is gone", || (devices() == before).then_some(()));
        assert_eq!(fs::read_dir(daemon.state().join("mounts")).unwrap().count(), 0);

        // A changed byte is an error when it is read.
        let (image, content) = checked_image(&daemon, "bad");
        let mut bytes = fs::read(&image).unwrap();
        let at = bytes.windows(64).position(|found| found == &content[4096..4160]).expect("the file's bytes");
        bytes[at] ^= 1;
        fs::write(&image, &bytes).unwrap();
        let made = mounts.activate("bad", &checked(&image, &image.display().to_string())).await.unwrap();
        assert!(fs::read(Path::new(&made.active[0].mount_point).join("file")).is_err());
        mounts.deactivate("bad").await.unwrap();

        // With another root hash, every read is an error.
        let other = daemon.dir().join("other.dmverity").display().to_string();
        let len = fs::metadata(format!("{}-tree/file", image.display())).unwrap().len();
        let said: Value =
            serde_json::from_slice(&fs::read(format!("{}.dmverity", image.display())).unwrap()).unwrap();
        assert!(said["hashoffset"].as_u64().unwrap() > len);
        fs::write(
            &other,
            json!({ "roothash": "00".repeat(32), "hashoffset": said["hashoffset"] }).to_string(),
        )
        .unwrap();
        assert!(mounts.activate("other", &checked(&image, &other)).await.is_err());
        eventually("no device stays", || (devices() == before).then_some(()));
        assert_eq!(fs::read_dir(daemon.state().join("mounts")).unwrap().count(), 0);
    });
}

async fn create(channel: &Channel, id: &str, args: &[&str]) {
    create_with(channel, id, args, &json!({})).await;
}

async fn create_with(channel: &Channel, id: &str, args: &[&str], hooks: &Value) {
    let mut process = testkit::process("");
    process["args"] = json!(args);
    let document = json!({
        "ociVersion": "1.1.0",
        "process": process,
        "root": { "path": "rootfs" },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }] },
        "hooks": hooks,
    });
    let spec = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
        value: document.to_string().into_bytes(),
    };
    let container = Container {
        id: id.into(),
        runtime: Some(ContainerRuntime { name: RUNTIME.into(), options: None }),
        spec: Some(spec),
        ..Container::default()
    };
    let create = CreateContainerRequest { container: Some(container) };
    ContainersClient::new(channel.clone()).create(ask(create)).await.expect("a container");
}

async fn create_task(channel: &Channel, id: &str, rootfs: &[Mount]) -> Result<u32, Status> {
    let request = CreateTaskRequest {
        container_id: id.into(),
        rootfs: rootfs.to_vec(),
        ..CreateTaskRequest::default()
    };
    Ok(TasksClient::new(channel.clone()).create(ask(request)).await?.into_inner().pid)
}

/// Runs a script that succeeds in a container with this root file system.
async fn run(channel: &Channel, mounts: &mut Mounts, id: &str, script: &str, rootfs: &[Mount]) {
    create(channel, id, &["/bin/busybox", "sh", "-c", script]).await;
    create_task(channel, id, rootfs).await.expect("a task");
    let active = mounts.info(id).await.expect("made for the task");
    assert_eq!((active.active.len(), active.labels.len()), (2, 1), "{active:?}");
    assert_eq!(finish(channel, id).await, 0, "{script}");
}

/// Starts a task, waits for its end, deletes it, and returns its exit status.
async fn finish(channel: &Channel, id: &str) -> u32 {
    let mut tasks = TasksClient::new(channel.clone());
    let wait = WaitRequest { container_id: id.into(), ..WaitRequest::default() };
    tasks.start(ask(StartRequest { container_id: id.into(), ..StartRequest::default() })).await.unwrap();
    let status = tasks.wait(ask(wait)).await.unwrap().into_inner().exit_status;
    tasks.delete(ask(DeleteTaskRequest { container_id: id.into() })).await.unwrap();
    status
}
