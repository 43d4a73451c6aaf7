//! The configuration as written. The names here are the keys of the file, the defaults are the daemon's defaults, and
//! the comments are its manual, from which `cargo xtask config` generates `docs/config.md`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use api::grpc::MESSAGE_BYTES_MAX;
use serde::{Deserialize, Serialize};

use super::plugins::{LOCAL_STORE, WALKING};
use super::{DirectReads, Layers, Level, LogFormat, ProxyKind, Sharing, Unpacked};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    /// Additional files, whose values override those here: paths, relative to this file's directory, with `*`, `?` and
    /// `[a-z]` as patterns in names. Without it, the files of `conf.d/` beside the default file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub imports: Vec<String>,
    /// Directory for persistent data: images, containers, volumes.
    pub root: PathBuf,
    /// Directory for what a reboot clears: sockets, bundles, network namespaces.
    pub state: PathBuf,
    /// The daemon's OOM score adjustment (proc_pid_oom_score_adj(5)): from -1000, never killed, to 1000; 0 leaves it
    /// unchanged.
    pub oom_score: i32,
    /// The cgroup that the daemon moves to when it starts, relative to the cgroup root: `/system/hoist`. Created if it
    /// does not exist, and never removed. Without it the daemon stays in the cgroup it was started in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// The default snapshotter: `overlayfs`, `native` (full copies) or the name of a proxy plugin. `auto` is
    /// `overlayfs` if the kernel supports overlays on the root's file system, otherwise `native`.
    pub snapshotter: String,
    /// Absolute path of a policy file with rules about which images may enter the store; without it all may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PathBuf>,
    /// Plugins without which the daemon must not start, by the names that `ctr plugins ls` shows:
    /// `io.containerd.snapshotter.v1.zfs`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub required_plugins: Vec<String>,
    /// Plugins to disable, by the same names: services of the API (`io.containerd.grpc.v1.tasks`), what only these need
    /// (`…transfer.v1.local`, `…streaming.v1.manager`, `…sandbox.store.v1.local`),
    /// `io.containerd.monitor.container.v1.restart`, `io.containerd.snapshotter.v1.native`. Others cannot be disabled,
    /// which causes a warning.
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
    /// Programs that serve one of containerd's services for the daemon, by plugin name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub proxy_plugins: BTreeMap<String, ProxyPlugin>,
    /// Programs that convert layers of one media type to another, by an id of your choice.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub stream_processors: BTreeMap<String, StreamProcessor>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Content {
    /// The content store: `content`, in the root directory, or the name of a proxy plugin.
    pub store: String,
    /// What happens to the blob of a layer after it is unpacked: `keep`; `recipe`, which rebuilds it on demand from the
    /// layer and a much smaller recipe; or `drop`, after which a push or export of the image needs another pull. The
    /// label `hoist.content/unpacked` of a namespace overrides it.
    pub unpacked: Unpacked,
    /// Whether a namespace gets a blob that another one has by naming its digest: `shared`; or, `isolated`, only if the
    /// other has the label `containerd.io/namespace.shareable=true`, and otherwise must receive the bytes.
    pub sharing: Sharing,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Diff {
    /// The differs that apply and create layers for clients: `walking`, which is built in, and names of proxy plugins.
    /// They are tried in this order until one supports the media type.
    pub default: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyPlugin {
    /// `snapshot`, `content`, `diff` or `sandbox`.
    pub r#type: ProxyKind,
    /// The unix socket it serves on.
    pub address: PathBuf,
    /// The platform it supports, `OS/ARCHITECTURE`; without it the host's.
    #[serde(default)]
    pub platform: String,
    /// Values that it exports to clients.
    #[serde(default)]
    pub exports: BTreeMap<String, String>,
    /// Such as `rebase`: it can set a snapshot's parent at commit.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Time limit of short calls, such as lookups. Long-running calls have no such limit, but fail if the plugin stops
    /// responding to health checks. Without it `30s`.
    #[serde(default = "thirty_seconds")]
    pub timeout: String,
}

fn thirty_seconds() -> String {
    "30s".into()
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StreamProcessor {
    /// Media types that it accepts on standard input.
    pub accepts: Vec<String>,
    /// The media type that it writes to standard output.
    pub returns: String,
    /// The program.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// `NAME=VALUE`, added to the daemon's environment.
    pub env: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Directories with a subdirectory for each registry (`hosts.toml`, certificates): a list, or a string with colons
    /// as separators. They are read again for each pull.
    pub config_path: Paths,
    /// How long a host may not respond before the next mirror is tried.
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
    /// The API's socket; without it `hoist.sock` in the state directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<PathBuf>,
    /// The socket's mode, in octal.
    pub mode: String,
    /// The socket's owner, by uid; without it the daemon's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The socket's group, by gid; without it the daemon's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// TCP address on which the API is served as well, such as `127.0.0.1:2375`; empty for none. Clients have root's
    /// power over the host, so an address that others can reach needs `tcp_tls_ca`.
    pub tcp_address: String,
    /// File with the server's certificate; without it there is no TLS.
    pub tcp_tls_cert: String,
    /// File with the key of that certificate.
    pub tcp_tls_key: String,
    /// File with the CA certificates that clients' certificates must be signed by; without it clients need none.
    pub tcp_tls_ca: String,
    /// The common name that clients' certificates must have. Not supported: a configuration that sets it is refused.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tcp_tls_common_name: String,
    /// Maximum length of a received message, in bytes.
    pub max_recv_message_size: u32,
    /// Maximum length of a sent message, in bytes.
    pub max_send_message_size: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ttrpc {
    /// The socket on which shims publish events; without it that of the API, with the suffix `.ttrpc`. Running shims
    /// keep using the socket that they were started with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<PathBuf>,
    /// The socket's owner, by uid; without it the daemon's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The socket's group, by gid; without it the daemon's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Transfer {
    /// Layers that all pulls together fetch at once; 0 for the maximum, which is 8 per processor but at most 16.
    pub max_concurrent_downloads: u32,
    /// Blobs that all pushes together send to one registry at once; 0 for the same maximum.
    pub max_concurrent_uploaded_layers: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shims {
    /// `NAME=VALUE`, added to the daemon's environment for shims that are started from then on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// How long to wait for a shim to accept a connection; 0 for no limit.
    pub load_timeout: String,
    /// How long to wait for the state of a process; 0 for no limit.
    pub state_timeout: String,
    /// How long to wait for the metrics of a container; 0 for no limit.
    pub stats_timeout: String,
    /// How long to wait for the exit of a shim that is no longer needed; 0 for no limit.
    pub shutdown_timeout: String,
    /// How long the clean-up after a dead shim may take; 0 for no limit.
    pub cleanup_timeout: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Address on which metrics are served for Prometheus, such as `127.0.0.1:1338`; empty for none.
    pub address: String,
    /// Whether the durations of calls are measured as well.
    pub grpc_histogram: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Debug {
    /// Socket for debugging, which serves thread states and profiles; without it there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<PathBuf>,
    /// The socket's owner, by uid; without it the daemon's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The socket's group, by gid; without it the daemon's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Otlp {
    /// The collector for traces of calls, pulls and starts, such as `http://127.0.0.1:4318`; empty for none.
    /// OpenTelemetry's environment variables (`OTEL_EXPORTER_OTLP_ENDPOINT` and others) override the values here.
    pub endpoint: String,
    /// `http/protobuf` or `grpc`.
    pub protocol: String,
    /// File with CA certificates to trust for a collector at `https://`, in addition to the system's.
    pub ca: String,
    /// The daemon's service name in traces.
    pub service_name: String,
    /// Fraction of traces that are exported, from 0 to 1.
    pub sampling_ratio: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Restart {
    /// How long a container of another client that should run may be down, at most, before it is restarted.
    pub interval: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Snapshots {
    /// How layers of pulled or loaded images are stored: as `archives`, which the kernel mounts with an EROFS image of
    /// their metadata (Linux 6.12), as `directories`, or `auto`: as archives if the kernel supports it. Existing layers
    /// are not converted.
    pub layers: Layers,
    /// Whether a layer that is stored as an archive gets a record of the spans of its blob, by which single files can
    /// be extracted from a part of the blob. It takes about a hundredth of the blob's size.
    pub spans: bool,
    /// Whether the kernel verifies the files of layers that are stored as archives (fs-verity), so that reading a
    /// corrupted byte is an error. The file system of the root directory must have been created with this feature.
    pub verity: bool,
    /// Whether archives are read without the page cache (Linux 6.13): what containers read is then in memory only once,
    /// and random reads are as fast as from directories. `auto` does so once an archive is no longer cached from its
    /// pull, on kernels known to support it reliably.
    pub direct_reads: DirectReads,
    /// Whether archives are mounted through loop devices even if the kernel can mount files directly. Kernels before
    /// Linux 6.12, and releases that are not known to read files reliably (docs/operate/storage.md), always use loop devices.
    pub loop_devices: bool,
    /// Additional mount options of containers' overlays, such as `volatile`, for the overlay snapshotter.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mount_options: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `trace`, `debug`, `info`, `warn` or `error`.
    pub level: Level,
    /// `text` or `json`.
    pub format: LogFormat,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metadata {
    /// Page cache of the metadata database, in MiB.
    pub cache_mib: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Name of the default network's bridge.
    pub bridge: String,
    /// Its subnet, such as `10.88.0.0/16`; without it the first /16 of 172.30, 172.29, 172.28, 10.201, 10.202 and
    /// 10.203 in which the host has no address and to which it has no route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// MTU of containers' interfaces, in bytes; without it the kernel's default, 1500.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageVerifiers {
    /// Directory of programs that verify every image, by containerd's protocol; empty for none.
    pub bin_dir: PathBuf,
    /// How many of them are run at most; negative for all.
    pub max_verifiers: i64,
    /// How long each may take; one that takes longer rejects the image.
    pub per_verifier_timeout: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gc {
    /// Delay of the first garbage collection after the daemon's start.
    pub startup_delay: String,
    /// Delay of a garbage collection after a deletion.
    pub schedule_delay: String,
    /// Number of deletions that trigger a garbage collection; 0 means one. Fewer are collected within a minute.
    pub deletion_threshold: u64,
    /// Number of changes that trigger a garbage collection without a deletion; 0 for never.
    pub mutation_threshold: u64,
    /// Largest fraction of time that garbage collections may take.
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
