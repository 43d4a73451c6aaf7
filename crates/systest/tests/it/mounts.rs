//! Mounts that are made ahead, by containerd's mounts service and for tasks whose root file systems need them.

use std::fs;
use std::path::Path;
use std::process::Command;

use api::grpc::containers::containers_client::ContainersClient;
use api::grpc::containers::{
    Container, CreateContainerRequest, DeleteContainerRequest, Runtime as ContainerRuntime,
};
use api::grpc::introspection::PluginsRequest;
use api::grpc::introspection::introspection_client::IntrospectionClient;
use api::grpc::leases::leases_client::LeasesClient;
use api::grpc::leases::{CreateRequest, DeleteRequest, ListResourcesRequest};
use api::grpc::mounts::mounts_client::MountsClient;
use api::grpc::mounts::{ActivateRequest, DeactivateRequest, InfoRequest, ListRequest, UpdateRequest};
use api::grpc::tasks::tasks_client::TasksClient;
use api::grpc::tasks::{CreateTaskRequest, DeleteTaskRequest, StartRequest, WaitRequest};
use api::grpc::types::{ActivationInfo, Any, Mount};
use serde_json::json;
use testkit::{Daemon, is_root};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::api::walk::covers;
use crate::typed::{ask, code, on};

const RUNTIME: &str = "io.containerd.hoist.v2";

struct Mounts(MountsClient<Channel>);

impl Mounts {
    fn new(channel: &Channel) -> Mounts {
        Mounts(MountsClient::new(channel.clone()))
    }

    async fn activate(
        &mut self,
        name: &str,
        mounts: &[Mount],
        temporary: bool,
    ) -> Result<ActivationInfo, Status> {
        let request = ActivateRequest {
            name: name.into(),
            mounts: mounts.to_vec(),
            labels: [("test".into(), name.into())].into(),
            temporary,
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

    /// Names.
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

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        r#type: kind.into(),
        source: source.into(),
        target: String::new(),
        options: options.iter().map(ToString::to_string).collect(),
    }
}

/// One mount that is made, and one that is left and shows it.
fn shown(directory: &Path) -> [Mount; 2] {
    let source = directory.display().to_string();
    [mount("bind", &source, &["rbind"]), mount("format/bind", "{{ mount 0 }}", &["rbind", "ro"])]
}

fn is_mounted(point: &str) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("a kernel with proc");
    table.lines().any(|line| line.split(' ').nth(4) == Some(point))
}

#[test]
fn activations_are_made_found_changed_and_taken_down() {
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
        let system = [mount("bind", "/", &["rbind"])];
        assert_eq!(code(mounts.activate("one", &system, false)).await, Code::Unimplemented);
        assert_eq!(code(mounts.activate("one", &[], true)).await, Code::Unimplemented);
        assert_eq!(code(mounts.activate("", &shown(&directory), false)).await, Code::InvalidArgument);
        let wrong = [mount("format/bind", "{{ mount 0 }}", &[])];
        assert_eq!(code(mounts.activate("one", &wrong, false)).await, Code::InvalidArgument);
        let missing = [mount("bind", "/no/such", &["rbind"])];
        assert_eq!(code(mounts.activate("one", &missing, true)).await, Code::NotFound);
        let unnamed = Request::new(InfoRequest { name: "one".into() });
        assert_eq!(code(mounts.0.info(unnamed)).await, Code::FailedPrecondition);
        for name in ["one", ""] {
            assert_eq!(code(mounts.info(name)).await, Code::NotFound);
            assert_eq!(code(mounts.deactivate(name)).await, Code::NotFound);
            assert_eq!(code(mounts.update(name, ("a", "b"), "labels")).await, Code::NotFound);
        }
        assert_eq!(mounts.list(&[]).await, Vec::<String>::new());

        // A lease keeps them: a collection comes soon, as much has changed.
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
        assert_eq!(code(mounts.activate("one", &shown(&directory), false)).await, Code::AlreadyExists);
        assert_eq!(mounts.info("one").await.unwrap(), made);
        let resources = ListResourcesRequest { id: "held".into() };
        let resources = leases.list_resources(ask(resources)).await.unwrap().into_inner().resources;
        assert_eq!((resources[0].r#type.as_str(), resources[0].id.as_str()), ("mounts", "one"));

        for (filter, expected) in [("name==one", 1), ("labels.test==one", 1), ("labels.test==two", 0)] {
            assert_eq!(mounts.list(&[filter]).await.len(), expected, "{filter}");
        }
        let request = ListRequest { filters: vec!["name==".into()] };
        assert_eq!(code(mounts.0.list(ask(request))).await, Code::InvalidArgument);
        let updated = mounts.update("one", ("more", "1"), "labels.more").await.unwrap();
        assert_eq!(updated.labels.len(), 2);
        assert_eq!(code(mounts.update("one", ("a", "b"), "active")).await, Code::InvalidArgument);

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

    // A daemon that dies leaves them, and the next one knows them.
    daemon.kill();
    assert!(is_mounted(&point));
    daemon.start_again();
    on(&daemon, async |channel| {
        let mut mounts = Mounts::new(&channel);
        assert_eq!(mounts.info("one").await.unwrap().active[0].mount_point, point);
        // While somebody uses them they stay.
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
    if !is_root("mounts") {
        return;
    }
    if Command::new("mkfs.ext4").arg("-V").output().is_err() {
        println!("skipped: mkfs.ext4 is not installed");
        return;
    }
    let daemon = Daemon::start();
    let lower = daemon.dir().join("lower");
    for folder in ["bin", "proc", "dev", "sys"] {
        fs::create_dir_all(lower.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", lower.join("bin/busybox")).expect("busybox-static is installed");
    let disk = daemon.root().join("disk.img").display().to_string();
    let rootfs = [
        mount("mkfs/loop", &disk, &["X-containerd.mkfs.size=16MiB"]),
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
    ];
    on(&daemon, async |channel| {
        let mut mounts = Mounts::new(&channel);
        let first = "echo written > /kept; cat /kept";
        run(&channel, &mut mounts, "on-disk-one", first, &rootfs).await;
        assert_eq!(code(mounts.info("on-disk-one")).await, Code::NotFound, "the task is gone");
        // What the first wrote is on the disk, which the second has.
        run(&channel, &mut mounts, "on-disk-two", "grep -q written /kept", &rootfs).await;

        // What cannot be started leaves nothing mounted.
        create(&channel, "broken", &["/no/such/program"]).await;
        let refused = create_task(&channel, "broken", &rootfs).await;
        assert!(refused.is_err());
        assert_eq!(mounts.list(&[]).await, Vec::<String>::new());

        // A container that goes takes what is mounted for it.
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

async fn create(channel: &Channel, id: &str, args: &[&str]) {
    let mut process = testkit::process("");
    process["args"] = json!(args);
    let document = json!({
        "ociVersion": "1.1.0",
        "process": process,
        "root": { "path": "rootfs" },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }] },
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

/// Runs a script on a root file system to its good end.
async fn run(channel: &Channel, mounts: &mut Mounts, id: &str, script: &str, rootfs: &[Mount]) {
    create(channel, id, &["/bin/busybox", "sh", "-c", script]).await;
    create_task(channel, id, rootfs).await.expect("a task");
    let active = mounts.info(id).await.expect("made for the task");
    assert_eq!((active.active.len(), active.labels.len()), (2, 1), "{active:?}");
    let mut tasks = TasksClient::new(channel.clone());
    let wait = WaitRequest { container_id: id.into(), ..WaitRequest::default() };
    tasks.start(ask(StartRequest { container_id: id.into(), ..StartRequest::default() })).await.unwrap();
    assert_eq!(tasks.wait(ask(wait)).await.unwrap().into_inner().exit_status, 0, "{script}");
    tasks.delete(ask(DeleteTaskRequest { container_id: id.into() })).await.unwrap();
}
