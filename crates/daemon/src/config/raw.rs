//! The configuration as written. The names here are the keys of the file, their defaults are the
//! defaults of the daemon, and their comments are its manual.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Layers, Level, LogFormat};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    /// Further files, whose values count before those here: paths, from this file's folder, with `*` and `?` in
    /// the name. Without it, those of `conf.d/` beside the default file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub imports: Vec<String>,
    /// Images, containers, volumes: what outlives a reboot.
    pub root: PathBuf,
    /// Sockets, bundles, network namespaces: what a reboot clears.
    pub state: PathBuf,
    /// How likely the kernel is to kill the daemon for want of memory: from -1000, never, to 1000; 0 leaves it as
    /// it is.
    pub oom_score: i32,
    /// The snapshotter for calls that name none: `overlayfs` or `native`.
    pub snapshotter: String,
    /// A file of rules about which images may come in; without it all may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PathBuf>,
    pub snapshots: Snapshots,
    pub grpc: Grpc,
    pub metrics: Metrics,
    pub debug: Debug,
    pub log: Log,
    pub metadata: Metadata,
    pub network: Network,
    pub registry: Registry,
    pub gc: Gc,
    pub restart: Restart,
    pub image_verifiers: ImageVerifiers,
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
    /// The socket's owner; without it the daemon's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
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
    /// The socket's owner; without it the daemon's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
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
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    pub level: Level,
    pub format: LogFormat,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metadata {
    /// Memory for pages of the database.
    pub cache_mib: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Name of the bridge of the default network.
    pub bridge: String,
    /// Its range; without it the first free one of a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageVerifiers {
    /// Programs that are asked about every image, by containerd's protocol; empty for none.
    pub bin_dir: PathBuf,
    /// How many of them are asked at most; -1 for all.
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
    /// So many deletions make one run; 0 for one.
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
            snapshotter: "overlayfs".into(),
            snapshots: Snapshots::default(),
            policy: None,
            grpc: Grpc::default(),
            metrics: Metrics::default(),
            debug: Debug::default(),
            log: Log::default(),
            metadata: Metadata::default(),
            network: Network::default(),
            registry: Registry::default(),
            gc: Gc::default(),
            restart: Restart::default(),
            image_verifiers: ImageVerifiers::default(),
        }
    }
}

impl Default for Grpc {
    fn default() -> Grpc {
        Grpc { address: None, mode: "0660".into(), uid: None, gid: None }
    }
}

impl Default for Restart {
    fn default() -> Restart {
        Restart { interval: "10s".into() }
    }
}

impl Default for Snapshots {
    fn default() -> Snapshots {
        Snapshots { layers: Layers::Auto }
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
