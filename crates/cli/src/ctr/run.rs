//! `ctr run` and `ctr containers create`: creates a container record, its snapshot, and for `run` a task.

use std::collections::BTreeMap;
use std::path::Path;

use api::grpc::containers::{Container, CreateContainerRequest, Runtime};
use api::grpc::introspection::PluginsRequest;
use api::grpc::snapshots::{MountsRequest, PrepareSnapshotRequest, ViewSnapshotRequest};
use api::shim::pack;
use api::shim::runc::{ConfigPath, Options};
use linux::beneath::Root as Tree;
use prost_types::Any;
use types::label::LABEL_LEN_MAX;
use types::spec::image::ExecConfig;
use types::spec::runtime::User;
use types::{Context, Error, Result};

use super::command::{Call, Command, Flag};
use super::connection::{Answer, Connection, service};
use super::tasks::Attended;
use super::{cni, containers, images, layers, leases, snapshots, spec, tasks, transfer};

pub(super) const RUNTIME: &str = "io.containerd.runc.v2";
/// The capability of snapshotters that map owners of files, and the labels that give them the maps.
const REMAP: &str = "remap-ids";
const UID_MAP: &str = "containerd.io/snapshot/uidmapping";
const GID_MAP: &str = "containerd.io/snapshot/gidmapping";
/// The label with the signal that asks the container to stop.
const STOP_SIGNAL: &str = "io.containerd.image.config.stop-signal";
/// The prefixes of labels that control containerd and its CRI plugin.
const RESERVED: [&str; 2] = ["containerd.io/", "io.cri-containerd"];
pub(super) const SPEC_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

macro_rules! flags {
    ($($own:expr),* $(,)?) => {
        &[
            $($own,)*
            Flag::value("snapshotter", "the snapshotter [$CONTAINERD_SNAPSHOTTER]"),
            Flag::value("snapshotter-label", "a label for the container's snapshot"),
            Flag::value("config,c", "a file with the OCI spec; then the only word is the ID"),
            Flag::value("cwd", "the working directory"),
            Flag::value("env", "an environment variable, as NAME=VALUE"),
            Flag::value("env-file", "a file of environment variables"),
            Flag::value("label", "a label for the container"),
            Flag::value("annotation", "an annotation of the OCI spec"),
            Flag::value("mount", "a mount, as type=bind,src=/a,dst=/b,options=rbind:ro"),
            Flag::switch("net-host", "use the host's network"),
            Flag::switch("privileged", "grant all capabilities, and access to all devices of this machine"),
            Flag::switch("privileged-without-host-devices", "with --privileged, but without those devices"),
            Flag::switch("read-only", "mount the root file system read-only"),
            Flag::value("runtime", "the runtime [io.containerd.runc.v2]"),
            Flag::switch("tty,t", "allocate a terminal"),
            Flag::value("with-ns", "a namespace to join, as TYPE:PATH"),
            Flag::value("pid-file", "write the pid to this file"),
            Flag::switch("allow-new-privs", "let programs gain privileges"),
            Flag::value("memory-limit", "the memory limit in bytes"),
            Flag::value("device", "a device of this machine, or a CDI device VENDOR/CLASS=NAME"),
            Flag::value("gpus", "a GPU of nvidia.com/gpu (CDI) by its number, or all"),
            Flag::value("cap-add", "add a capability"),
            Flag::value("cap-drop", "drop a capability"),
            Flag::switch("seccomp", "use the default seccomp filter"),
            Flag::value("seccomp-profile", "with --seccomp, a file with another seccomp filter"),
            Flag::value("apparmor-profile", "a loaded AppArmor profile"),
            Flag::value("apparmor-default-profile", "load the default AppArmor profile under this name"),
            Flag::value("rdt-class", "the class of service (CLOS) of caches and memory bandwidth"),
            Flag::value("runtime-config-path", "a file that the runtime reads"),
            Flag::switch("no-pivot", "do not use pivot_root"),
            Flag::switch("rootfs", "the first word is a folder with a root file system, not an image"),
            Flag::value("cpuset-cpus", "the processors that it runs on, as 0-2,4"),
            Flag::value("cpuset-mems", "the NUMA nodes whose memory it uses, as 0-1"),
            Flag::value("rlimit-nofile", "the limit of open files for each process, as SOFT:HARD [1024]"),
            Flag::value("cpu-quota", "microseconds of processor time in each period"),
            Flag::value("cpu-period", "microseconds"),
            Flag::value("rootfs-propagation", "the propagation of the root file system's mounts"),
            Flag::value("user,u", "the user, as NAME|UID[:NAME|GID]; without it the image's"),
            Flag::value("hostname", "its host name"),
            Flag::value("sandbox", "the sandbox of the container"),
            transfer::SYNC_FS,
            Flag::value("cgroup", "its cgroup"),
            Flag::value("platform", "the image for this platform"),
            Flag::value("runc-binary", "the OCI runtime to call"),
            Flag::value("runc-root", "the OCI runtime's state directory"),
            Flag::switch("runc-systemd-cgroup", "let systemd manage cgroups"),
        ]
    };
}

pub(super) const CREATE_FLAGS: &[Flag] = flags![];

pub(super) const COMMAND: Command = Command {
    is_program: true,
    ..Command::new(
        "run",
        "[flags] Image|RootFS ID [COMMAND] [ARG...], or --config FILE ID",
        "run a container",
        flags![
            Flag::switch("rm", "remove the container when it ends"),
            Flag::switch("null-io", "discard input and output"),
            Flag::value("log-uri", "where output goes, as file:///… or binary:///…"),
            Flag::switch("detach,d", "do not attach"),
            Flag::value("fifo-dir", "no effect"),
            Flag::switch("cni", "attach the machine's CNI network"),
            Flag::value("uidmap", "a user namespace with these ids, as INSIDE:OUTSIDE:COUNT; with --gidmap"),
            Flag::value("gidmap", "the same for groups"),
            Flag::switch(
                "remap-labels",
                "owners by labels for the snapshotter, also where it does not say that it can"
            ),
            Flag::value("cpus", "how many processors"),
            Flag::value("cpu-shares", "the share of processors [1024]"),
            Flag::value("dump-config", "write the OCI spec to this file"),
        ],
        |call| Box::pin(run(call)),
    )
};

pub(super) async fn create(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    make(&call, &connection).await?;
    Ok(0)
}

async fn run(call: Call) -> Result<u8> {
    let (detach, remove) = (call.is("detach"), call.is("rm"));
    if detach && remove {
        return Err(Error::invalid_argument("flags --detach and --rm cannot be specified together"));
    }
    if call.is("cni") && call.is("net-host") {
        return Err(Error::invalid_argument(
            "--cni is for a network of its own, and --net-host for that of this machine",
        ));
    }
    let connection = call.connect().await?;
    let id = make(&call, &connection).await?;
    let ran = tasks::start_new(&call, &connection, &id).await;
    if remove && !matches!(ran, Ok(Attended::Detached(_))) {
        let removed = containers::remove(&connection, &id, false).await;
        return ran.and_then(|stayed| removed.map(|()| stayed.code()));
    }
    ran.map(Attended::code)
}

/// Creates the record and the snapshot. Returns the container's id.
async fn make(call: &Call, connection: &Connection) -> Result<String> {
    let (lease, lease_id) = leases::hold(connection).await?;
    let made = make_held(call, &lease).await;
    // The container record retains its snapshot from here on.
    let released = leases::release(connection, lease_id).await;
    made.and_then(|id| released.map(|()| id))
}

async fn make_held(call: &Call, connection: &Connection) -> Result<String> {
    if let Some(file) = call.value("config") {
        return make_of_file(call, connection, file).await;
    }
    let (image, id) = (call.word(0, "image or rootfs")?, call.word(1, "container id")?.to_owned());
    let is_folder = call.is("rootfs");
    let snapshotter = if is_folder { String::new() } else { snapshots::of_images(call, connection).await? };
    let mut labels = Call::labels(call.values("label"));
    let mut config = ExecConfig::default();
    let mut parent = String::new();
    let absolute;
    let mut rootfs = None;
    if is_folder {
        absolute = std::path::absolute(image).context(|| format!("find {image}"))?.display().to_string();
        rootfs = Some(absolute.as_str());
    } else {
        let record = images::get(connection, image).await?;
        let (target, platform) = (record.target.unwrap_or_default(), images::platform(call)?);
        let tree = images::Tree::of(connection, &target, &platform).await?;
        let (Some(chain_id), Some(found)) = (tree.chain_id, tree.config) else {
            return Err(Error::failed_precondition(format!(
                "image {image} is not here for this platform; pull it first"
            )));
        };
        layers::unpack_if_needed(connection, &snapshotter, &target, &platform, &chain_id).await?;
        (parent, config) = (chain_id, found);
        labels = of_image(&record.labels, &config, labels);
    }
    let wanted = call.value("user").unwrap_or(&config.user).to_owned();
    let user = user(connection, &wanted, rootfs, &snapshotter, &parent, &id).await?;
    let (namespace, command) = (connection.namespace.as_str(), call.words().get(2..).unwrap_or_default());
    let inputs = spec::Inputs { namespace, id: &id, command, image: &config, user, rootfs };
    let spec = serde_json::to_vec(&spec::build(call, inputs)?).expect("a spec has a JSON form");
    if !is_folder {
        let request = PrepareSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: id.clone(),
            parent,
            labels: tree_labels(call, connection, &snapshotter).await?,
        };
        snapshots::client(connection).prepare(connection.request(request)?).await.answer()?;
    }
    let container = Container {
        snapshot_key: if is_folder { String::new() } else { id.clone() },
        id,
        labels,
        image: if is_folder { String::new() } else { image.to_owned() },
        spec: Some(Any { type_url: SPEC_URL.to_owned(), value: spec }),
        snapshotter,
        ..Container::default()
    };
    record(call, connection, container).await
}

/// A container's labels, as containerd's: those of the image's config, overridden by those of the image record,
/// overridden by its own. Labels of an image's config that would control the daemon, or are invalid, are left out:
/// images are untrusted.
fn of_image(
    record: &BTreeMap<String, String>,
    config: &ExecConfig,
    own: BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let is_free = |key: &str| !RESERVED.iter().any(|prefix| key.starts_with(prefix));
    let said = config.labels.iter().filter(|(key, _)| is_free(key)).chain(record);
    let fits = |(key, value): &(&String, &String)| key.len() + value.len() <= LABEL_LEN_MAX;
    let mut labels: BTreeMap<String, String> =
        said.filter(fits).map(|(key, value)| (key.clone(), value.clone())).collect();
    labels.extend(own);
    let signal = if config.stop_signal.is_empty() { "SIGTERM" } else { &config.stop_signal };
    labels.entry(STOP_SIGNAL.to_owned()).or_insert_with(|| signal.to_owned());
    labels
}

/// Creates a container from the spec in a file, which also names its root file system: without an image or a snapshot.
async fn make_of_file(call: &Call, connection: &Connection, file: &str) -> Result<String> {
    let id = call.word(0, "container id")?.to_owned();
    if call.words().len() > 1 {
        return Err(Error::invalid_argument(format!(
            "--config {file}: the file says what is run and on what, so give the container's id and nothing more"
        )));
    }
    let labels = Call::labels(call.values("label"));
    let value = spec::of_file(Path::new(file), &labels)?;
    let container = Container {
        id,
        labels,
        spec: Some(Any { type_url: SPEC_URL.to_owned(), value }),
        ..Container::default()
    };
    record(call, connection, container).await
}

/// Adds the runtime to a container record and stores it. Returns its id.
async fn record(call: &Call, connection: &Connection, mut container: Container) -> Result<String> {
    container.runtime = Some(Runtime {
        name: call.value("runtime").unwrap_or(RUNTIME).to_owned(),
        options: runtime_options(call)?,
    });
    if call.is("cni") {
        cni::note(&mut container);
    }
    call.value("sandbox").unwrap_or_default().clone_into(&mut container.sandbox);
    let id = container.id.clone();
    // Before the record is stored: otherwise a container would remain if the file cannot be written.
    if let Some(file) = call.value("dump-config") {
        let what = || format!("--dump-config {file}");
        let spec = container.spec.as_ref().map(|spec| spec.value.as_slice()).unwrap_or_default();
        let spec: serde_json::Value =
            serde_json::from_slice(spec).map_err(|error| Error::internal(what()).with_source(error))?;
        std::fs::write(file, format!("{spec:#}")).context(what)?;
    }
    let request = connection.request(CreateContainerRequest { container: Some(container) })?;
    containers::client(connection).create(request).await.answer()?;
    Ok(id)
}

/// The labels of the container's snapshot. They map owners of files if the container has a user namespace.
async fn tree_labels(
    call: &Call,
    connection: &Connection,
    snapshotter: &str,
) -> Result<BTreeMap<String, String>> {
    let mut labels = Call::labels(call.values("snapshotter-label"));
    if spec::id_maps(call)?.is_none() {
        return Ok(labels);
    }
    if !call.is("remap-labels") {
        let mut client = service!(connection, introspection::introspection_client::IntrospectionClient);
        let filters = vec![format!("type==io.containerd.snapshotter.v1,id=={snapshotter}")];
        let plugins = client.plugins(connection.request(PluginsRequest { filters })?).await.answer()?.plugins;
        if !plugins.iter().any(|plugin| plugin.capabilities.iter().any(|known| known == REMAP)) {
            return Err(Error::failed_precondition(format!(
                "--uidmap: snapshotter {snapshotter:?} does not say that it shows owners through a map; take another, or \
                 --remap-labels if it does"
            )));
        }
    }
    for (flag, label) in [("uidmap", UID_MAP), ("gidmap", GID_MAP)] {
        labels.insert(label.to_owned(), call.value(flag).unwrap_or_default().to_owned());
    }
    Ok(labels)
}

/// The runtime's options, from flags that not every command has.
pub(super) fn runtime_options(call: &Call) -> Result<Option<Any>> {
    let options = Options {
        binary_name: call.value("runc-binary").unwrap_or_default().to_owned(),
        root: call.value("runc-root").unwrap_or_default().to_owned(),
        systemd_cgroup: call.is("runc-systemd-cgroup"),
        no_pivot_root: call.is("no-pivot"),
        ..Options::default()
    };
    let is_of_runc = options != Options::default();
    match call.value("runtime-config-path") {
        Some(_) if is_of_runc => Err(Error::invalid_argument(
            "--runtime-config-path is for runtimes that are no runc, and --runc-… and --no-pivot for those that are",
        )),
        Some(path) => Ok(Some(pack(&ConfigPath { config_path: path.to_owned() }))),
        None => Ok(is_of_runc.then(|| pack(&options))),
    }
}

/// The user of the process. A name is looked up in the snapshot, which is mounted read-only only if it is needed.
async fn user(
    connection: &Connection,
    text: &str,
    rootfs: Option<&str>,
    snapshotter: &str,
    parent: &str,
    id: &str,
) -> Result<User> {
    if let Some(rootfs) = rootfs {
        return spec::user(text, || Tree::open(Path::new(rootfs)));
    }
    // A number needs no lookup.
    if let Ok(user) = spec::user(text, || Err(Error::unavailable("not looked into"))) {
        return Ok(user);
    }
    let key = format!("{id}-users-{}", std::process::id());
    let request = ViewSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.clone(),
        parent: parent.to_owned(),
        labels: [].into(),
    };
    let mounts = snapshots::client(connection).view(connection.request(request)?).await.answer()?.mounts;
    let found = spec::user(text, || {
        let tree = linux::mount::open_to_read(&images::own_mounts(mounts))?;
        Ok(Tree::from_fd(tree, Path::new("the container's root")))
    });
    let request = api::grpc::snapshots::RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key };
    let removed = snapshots::client(connection).remove(connection.request(request)?).await.answer();
    found.and_then(|user| removed.map(|()| user))
}

/// The mounts of a container's root file system: none if the spec names a folder.
pub(super) async fn rootfs(
    connection: &Connection,
    container: &Container,
) -> Result<Vec<api::grpc::types::Mount>> {
    if container.snapshot_key.is_empty() {
        return Ok(Vec::new());
    }
    let (snapshotter, key) = (container.snapshotter.clone(), container.snapshot_key.clone());
    let request = connection.request(MountsRequest { snapshotter, key })?;
    Ok(snapshots::client(connection).mounts(request).await.answer()?.mounts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_images_that_control_the_daemon_are_left_out() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let config = ExecConfig {
            labels: map(&[
                ("a", "config"),
                ("b", "config"),
                ("c", "config"),
                ("containerd.io/gc.root", "x"),
                ("io.cri-containerd.kind", "x"),
                ("long", &"x".repeat(LABEL_LEN_MAX)),
            ]),
            ..ExecConfig::default()
        };
        let record = map(&[("b", "record"), ("c", "record")]);
        let expected = [("a", "config"), ("b", "record"), ("c", "own"), (STOP_SIGNAL, "SIGTERM")];
        assert_eq!(of_image(&record, &config, map(&[("c", "own")])), map(&expected));
        let config = ExecConfig { stop_signal: "SIGQUIT".to_owned(), ..ExecConfig::default() };
        assert_eq!(of_image(&map(&[]), &config, map(&[])), map(&[(STOP_SIGNAL, "SIGQUIT")]));
    }
}
