//! The configuration as written. The names here are the keys of the file, their defaults are the
//! defaults of the daemon, and their comments are its manual, of which `cargo xtask config` makes `docs/config.md`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use api::grpc::MESSAGE_BYTES_MAX;
use serde::{Deserialize, Serialize};

use super::plugins::{LOCAL_STORE, WALKING};
use super::{DirectReads, Layers, Level, LogFormat, ProxyKind, Sharing, Unpacked};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    /// Further files, whose values count before those here: paths, from this file's folder, with `*`, `?` and
    /// `[a-z]` in their names. Without it, those of `conf.d/` beside the default file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub imports: Vec<String>,
    /// Images, containers, volumes: what outlives a reboot.
    pub root: PathBuf,
    /// Sockets, bundles, network namespaces: what a reboot clears.
    pub state: PathBuf,
    /// How likely the kernel is to kill the daemon for want of memory: from -1000, never, to 1000; 0 leaves it as
    /// it is.
    pub oom_score: i32,
    /// The cgroup that the daemon moves to at its start, from the root of cgroups: `/system/hoist`. It is made if it is not
    /// there, and stays. Without it the daemon stays where it was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// The snapshotter for calls that name none: `overlayfs`, `native` (full copies) or the name of a proxy plugin. `auto` is
    /// `overlayfs` where the kernel makes overlays on the root's file system, and `native` elsewhere.
    pub snapshotter: String,
    /// The absolute path of a file of rules about which images may come in; without it all may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PathBuf>,
    /// Plugins without which the daemon is not to start, as `ctr plugins ls` shows them: `io.containerd.snapshotter.v1.zfs`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub required_plugins: Vec<String>,
    /// Plugins that the daemon is to do without, by the same names: services of the API (`io.containerd.grpc.v1.tasks`) and
    /// what only they stand on (`…transfer.v1.local`, `…streaming.v1.manager`, `…sandbox.store.v1.local`),
    /// `io.containerd.monitor.container.v1.restart`, `io.containerd.snapshotter.v1.native`. The others are needed, which a
    /// warning says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disabled_plugins: Vec<String>,
    pub snapshots: Snapshots,
    pub grpc: Grpc,
    pub ttrpc: Ttrpc,
    pub metrics: Metrics,
    pub debug: Debug,
    pub otlp: Otlp,
    pub log: Log,
    pub metadata: Metadata,
    pub network: Network,
    pub registry: Registry,
    pub transfer: Transfer,
    pub shims: Shims,
    pub gc: Gc,
    pub restart: Restart,
    pub image_verifiers: ImageVerifiers,
    pub content: Content,
    pub diff: Diff,
    /// Programs that serve one of containerd's services for the daemon, by the name under which they are used.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub proxy_plugins: BTreeMap<String, ProxyPlugin>,
    /// Programs that turn layers of one media type into layers of another, by a name of their own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub stream_processors: BTreeMap<String, StreamProcessor>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Content {
    /// Where blobs are: `content`, in the root directory, or the name of a proxy plugin.
    pub store: String,
    /// What becomes of the blob of a layer once that is unpacked: `keep`; `recipe`, which makes it again when it is
    /// asked for, from the layer and a recipe that is much smaller; or `drop`, after which a push or an export of
    /// the image needs another pull. A namespace's label `hoist.content/unpacked` says so for itself.
    pub unpacked: Unpacked,
    /// Whether naming the digest of a blob that another namespace has is enough to have it too: `shared`; or only if
    /// that one has the label `containerd.io/namespace.shareable=true`, and else the bytes must be brought: `isolated`.
    pub sharing: Sharing,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Diff {
    /// Who applies and makes layers for clients: `walking`, which is built in, and names of proxy plugins. Each is
    /// asked until one knows how.
    pub default: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyPlugin {
    /// `snapshot`, `content`, `diff` or `sandbox`.
    pub r#type: ProxyKind,
    /// The unix socket on which it serves.
    pub address: PathBuf,
    /// `OS/ARCHITECTURE` for which it works; without it the host's.
    #[serde(default)]
    pub platform: String,
    /// What clients are told of it.
    #[serde(default)]
    pub exports: BTreeMap<String, String>,
    /// Such as `rebase`: a snapshot gets its parent when it is committed.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// How long it may take to look something up or to note something. What takes long by nature has no such limit;
    /// but a plugin that gives no sign of life is not waited for. Without it `30s`.
    #[serde(default = "thirty_seconds")]
    pub timeout: String,
}

fn thirty_seconds() -> String {
    "30s".into()
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StreamProcessor {
    /// Media types that it takes on standard input.
    pub accepts: Vec<String>,
    /// The media type that it writes to standard output.
    pub returns: String,
    /// The program.
    pub path: PathBuf,
    /// What it is called with.
    pub args: Vec<String>,
    /// `NAME=VALUE`, besides the daemon's own.
    pub env: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Directories with a directory for each registry (`hosts.toml`, certificates): a list, or one string with
    /// colons between them. They are read anew for each pull.
    pub config_path: Paths,
    /// How long a host may be silent after which another can be asked.
    pub mirror_timeout: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a path, several with colons between them, or a list of paths")]
pub enum Paths {
    Joined(String),
    List(Vec<String>),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Grpc {
    /// The socket; without it `hoist.sock` in the state directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<PathBuf>,
    /// The socket's mode, in octal.
    pub mode: String,
    /// The socket's owner, by its number; without it the daemon's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The socket's group, by its number; without it the daemon's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Where calls are served besides, such as `127.0.0.1:2375`; empty for nowhere. Whoever reaches it is root here, so
    /// an address that others reach needs `tcp_tls_ca`.
    pub tcp_address: String,
    /// A file with the certificate that is shown there; without it there is no TLS.
    pub tcp_tls_cert: String,
    /// A file with the key of that certificate.
    pub tcp_tls_key: String,
    /// A file with the authorities of which a client's certificate must be; without it clients need none.
    pub tcp_tls_ca: String,
    /// A name that clients' certificates must have. It is not looked at, so whoever gives one is refused.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tcp_tls_common_name: String,
    /// Bytes of the longest message that is taken.
    pub max_recv_message_size: u32,
    /// Bytes of the longest message that is sent.
    pub max_send_message_size: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ttrpc {
    /// The socket on which shims say what happens; without it that of calls, with `.ttrpc` at its end. Shims that an earlier
    /// daemon left speak to the one that they were started with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<PathBuf>,
    /// The socket's owner, by its number; without it the daemon's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The socket's group, by its number; without it the daemon's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Transfer {
    /// Layers that all pulls together fetch at once; 0 for as many as there may be, which is 8 for each processor and 16 at
    /// most.
    pub max_concurrent_downloads: u32,
    /// Blobs that all pushes together send to one registry at once; 0 for as many.
    pub max_concurrent_uploaded_layers: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shims {
    /// `NAME=VALUE`, besides the daemon's own: variables of shims that are started from then on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// How long a shim is waited for until it takes a connection; 0 for as long as it takes.
    pub load_timeout: String,
    /// The same until it says how a process is.
    pub state_timeout: String,
    /// The same until it says how its container's resources are used.
    pub stats_timeout: String,
    /// The same until it goes when it is needed no more.
    pub shutdown_timeout: String,
    /// How long a shim's program may take to end what a dead shim left.
    pub cleanup_timeout: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Where figures are served for Prometheus, such as `127.0.0.1:1338`; empty for nowhere.
    pub address: String,
    /// Whether the times of calls are counted too.
    pub grpc_histogram: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Debug {
    /// A socket that tells what the daemon's threads do and what memory they use; without it there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<PathBuf>,
    /// The socket's owner, by its number; without it the daemon's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The socket's group, by its number; without it the daemon's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Otlp {
    /// The collector that takes traces of calls, pulls and starts, such as `http://127.0.0.1:4318`; empty for none.
    /// The variables of OpenTelemetry (`OTEL_EXPORTER_OTLP_ENDPOINT` and others) count before what is here.
    pub endpoint: String,
    /// `http/protobuf` or `grpc`.
    pub protocol: String,
    /// A file with certificates of authorities that vouch for a collector at `https://`, besides those of the system.
    pub ca: String,
    /// What the daemon is called in traces.
    pub service_name: String,
    /// The share of traces that are told, from 0 to 1.
    pub sampling_ratio: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Restart {
    /// How long a container that other clients made and that should run may be down, at most, before it is
    /// started again.
    pub interval: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Snapshots {
    /// How layers of images that are pulled or loaded are kept: as `archives`, which the kernel mounts with
    /// an EROFS image of their metadata (Linux 6.12), as `directories`, or `auto`: as archives where the
    /// kernel can. What is there stays as it is.
    pub layers: Layers,
    /// Whether a layer that is kept as an archive gets a record of the spans of its blob: what makes single files of
    /// it from a part of the blob. It takes about a hundredth of what the blob does.
    pub spans: bool,
    /// Whether the kernel watches over the files of layers that are kept as archives (fs-verity), so that a byte that
    /// rotted is an error to whoever reads it. The file system of the root directory must have been made for it.
    pub verity: bool,
    /// Whether archives are read past the kernel's memory of files (Linux 6.13): what containers read is then in memory
    /// once and not twice, and single pages come from the disk as fast as from directories. `auto` is once they are not
    /// in that memory, where a pull has just written them, on kernels that are known to do it soundly.
    pub direct_reads: DirectReads,
    /// Whether the kernel is shown archives as loop devices, as it is before Linux 6.12 and by releases that are not known
    /// to read files soundly (docs/operate/storage.md), also where it mounts files themselves.
    pub loop_devices: bool,
    /// What overlays of containers are mounted with besides, such as `volatile`, for the overlay snapshotter.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mount_options: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// How much is told: `trace`, `debug`, `info`, `warn` or `error`.
    pub level: Level,
    /// How lines are written: `text` or `json`.
    pub format: LogFormat,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metadata {
    /// MiB of memory for pages of the database.
    pub cache_mib: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Name of the bridge of the default network.
    pub bridge: String,
    /// Its range, such as `10.88.0.0/16`; without it the first of 172.30, 172.29, 172.28, 10.201, 10.202 and 10.203, each
    /// /16, that the machine has no address in and no route to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// Bytes of the longest packet of containers' interfaces; without it the kernel's 1500.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageVerifiers {
    /// Programs that are asked about every image, by containerd's protocol; empty for none.
    pub bin_dir: PathBuf,
    /// How many of them are asked at most; below 0 for all.
    pub max_verifiers: i64,
    /// How long each may take; one that takes longer rejects the image.
    pub per_verifier_timeout: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gc {
    /// When the first collection runs.
    pub startup_delay: String,
    /// How long after a deletion one runs.
    pub schedule_delay: String,
    /// So many deletions make one run; 0 for one. Fewer wait for at most a minute.
    pub deletion_threshold: u64,
    /// So many changes make one run without a deletion; 0 for never.
    pub mutation_threshold: u64,
    /// The largest share of time that collections may take.
    pub pause_threshold: f64,
}

impl Default for Raw {
    fn default() -> Raw {
        Raw {
            imports: Vec::new(),
            root: "/var/lib/hoist".into(),
            state: "/run/hoist".into(),
            oom_score: 0,
            cgroup: None,
            snapshotter: super::plugins::AUTO.into(),
            required_plugins: Vec::new(),
            disabled_plugins: Vec::new(),
            snapshots: Snapshots::default(),
            policy: None,
            grpc: Grpc::default(),
            ttrpc: Ttrpc::default(),
            metrics: Metrics::default(),
            debug: Debug::default(),
            otlp: Otlp::default(),
            log: Log::default(),
            metadata: Metadata::default(),
            network: Network::default(),
            registry: Registry::default(),
            transfer: Transfer::default(),
            shims: Shims::default(),
            gc: Gc::default(),
            restart: Restart::default(),
            image_verifiers: ImageVerifiers::default(),
            content: Content::default(),
            diff: Diff::default(),
            proxy_plugins: BTreeMap::new(),
            stream_processors: BTreeMap::new(),
        }
    }
}

impl Default for Content {
    fn default() -> Content {
        Content { store: LOCAL_STORE.into(), unpacked: Unpacked::Keep, sharing: Sharing::Shared }
    }
}

impl Default for Diff {
    fn default() -> Diff {
        Diff { default: vec![WALKING.into()] }
    }
}

impl Default for Grpc {
    fn default() -> Grpc {
        Grpc {
            address: None,
            mode: "0660".into(),
            uid: None,
            gid: None,
            tcp_address: String::new(),
            tcp_tls_cert: String::new(),
            tcp_tls_key: String::new(),
            tcp_tls_ca: String::new(),
            tcp_tls_common_name: String::new(),
            max_recv_message_size: MESSAGE_BYTES_MAX as u32,
            max_send_message_size: MESSAGE_BYTES_MAX as u32,
        }
    }
}

impl Default for Transfer {
    fn default() -> Transfer {
        Transfer { max_concurrent_downloads: 3, max_concurrent_uploaded_layers: 3 }
    }
}

impl Default for Shims {
    fn default() -> Shims {
        Shims {
            env: Vec::new(),
            load_timeout: "5s".into(),
            state_timeout: "2s".into(),
            stats_timeout: "2s".into(),
            shutdown_timeout: "3s".into(),
            cleanup_timeout: "10s".into(),
        }
    }
}

impl Default for Otlp {
    fn default() -> Otlp {
        Otlp {
            endpoint: String::new(),
            protocol: "http/protobuf".into(),
            ca: String::new(),
            service_name: "hoist".into(),
            sampling_ratio: 1.0,
        }
    }
}

impl Default for Restart {
    fn default() -> Restart {
        Restart { interval: "10s".into() }
    }
}

impl Default for Snapshots {
    fn default() -> Snapshots {
        Snapshots {
            layers: Layers::Auto,
            spans: true,
            verity: false,
            direct_reads: DirectReads::Auto,
            loop_devices: false,
            mount_options: Vec::new(),
        }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log { level: Level::Info, format: LogFormat::Text }
    }
}

impl Default for Metadata {
    fn default() -> Metadata {
        Metadata { cache_mib: 8 }
    }
}

impl Default for Network {
    fn default() -> Network {
        Network { bridge: network::Config::default().bridge, subnet: None, mtu: None }
    }
}

impl Default for Registry {
    fn default() -> Registry {
        let directories = ["/etc/hoist/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"];
        Registry {
            config_path: Paths::List(directories.map(str::to_owned).to_vec()),
            mirror_timeout: "10s".into(),
        }
    }
}

impl Default for ImageVerifiers {
    fn default() -> ImageVerifiers {
        ImageVerifiers {
            bin_dir: "/opt/containerd/image-verifier/bin".into(),
            max_verifiers: 10,
            per_verifier_timeout: "10s".into(),
        }
    }
}

impl Default for Gc {
    fn default() -> Gc {
        Gc {
            startup_delay: "100ms".into(),
            schedule_delay: "1s".into(),
            deletion_threshold: 0,
            mutation_threshold: 100,
            pause_threshold: 0.02,
        }
    }
}

impl Raw {
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("tables, strings and numbers have a TOML form")
    }
}
