//! `hoist.engine.v1.Engine`, the API of the command line: containers with names, logs and restart policies.
//!
//! The service has two gRPC calls, which carry JSON documents: `Call` has one answer, `Follow` a stream of answers. The
//! requests are [`Call`] and [`Follow`]; the answers have the shape of Docker's API. JSON is fine here, as only people
//! and scripts call it, and never at high rates: a container's bytes go through named pipes of the client, not through
//! the daemon.

mod copy;
mod image;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use copy::{Copy, FileStat};
pub use image::{ChangedPath, Changes, Commit, ImageCall, ImageFollow, ImageStep};

/// A request or an answer, as JSON in UTF-8.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Document {
    #[prost(bytes = "vec", tag = "1")]
    pub json: Vec<u8>,
}

/// A request with one answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "question", rename_all = "kebab-case")]
pub enum Call {
    /// The daemon's version and root directory, and the number of containers and images.
    Info,
    Create(Box<Create>),
    Start {
        id: String,
        streams: Streams,
    },
    Stop {
        id: String,
        timeout_seconds: Option<u64>,
        signal: Option<String>,
    },
    Kill {
        id: String,
        signal: String,
    },
    Remove {
        id: String,
        force: bool,
        /// Also removes the container's anonymous volumes.
        #[serde(default)]
        volumes: bool,
    },
    /// Renames a container.
    Rename {
        id: String,
        name: String,
    },
    /// Changes limits and the restart policy of a container, which may be running.
    Update {
        id: String,
        update: Update,
    },
    /// The processes of a running container, in the format of ps(1) with these options: an object of `Titles` and
    /// `Processes`.
    Top {
        id: String,
        options: Vec<String>,
    },
    Pause {
        id: String,
    },
    Unpause {
        id: String,
    },
    /// A row for each container, newest first. Without `all`, `last` or a filter on the state, only running containers.
    List {
        all: bool,
        /// `KEY=VALUE`, as Docker's: values of one key are alternatives, except that labels must all match.
        #[serde(default)]
        filters: Vec<String>,
        /// Only this many of the newest containers, running or not.
        #[serde(default)]
        last: Option<u64>,
        /// Also computes the disk usage of each container's file system.
        #[serde(default)]
        sizes: bool,
    },
    Inspect {
        id: String,
        /// Also computes the disk usage of the container's file system.
        #[serde(default)]
        sizes: bool,
    },
    /// Attaches a client to a running container, through named pipes whose other ends the client has open.
    Attach {
        id: String,
        streams: Streams,
    },
    Exec(Box<Exec>),
    /// The file at a path of a container: a [`FileStat`].
    StatFile {
        id: String,
        path: String,
    },
    Commit(Box<Commit>),
    Resize {
        id: String,
        exec: Option<String>,
        rows: u16,
        columns: u16,
    },
    CloseStdin {
        id: String,
        exec: Option<String>,
    },
    /// Resource usage of the named containers; without names, of all running containers, or with `all` of every one.
    Stats {
        ids: Vec<String>,
        #[serde(default)]
        all: bool,
    },
    Image(ImageCall),
    Registry(RegistryCall),
    Volume(VolumeCall),
    Network(NetworkCall),
    /// Removes containers that do not run, and collects garbage.
    Prune {
        /// `KEY=VALUE` with the keys `until`, `label` and `label!`.
        #[serde(default)]
        filters: Vec<String>,
    },
    /// Disk usage by kind of object; with `verbose`, of each image, container and volume.
    DiskUsage {
        #[serde(default)]
        verbose: bool,
    },
    Check {
        repair: bool,
    },
}

/// Requests about registries.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "about-registry", rename_all = "kebab-case")]
pub enum RegistryCall {
    /// The names under which credentials for the registry's hosts may be stored, in the order in which hosts are tried:
    /// a list of lists. In each inner list the first name with credentials counts.
    Logins { registry: String },
    /// Whether the registry accepts these credentials.
    CheckLogin { registry: String, credentials: Credentials },
    /// The answer of each host of the registry to a request for the image.
    Explain { reference: String, credentials: Keyring },
    /// The list of a repository's tags.
    Tags { reference: String, credentials: Keyring },
}

/// Requests about volumes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "about-volume", rename_all = "kebab-case")]
pub enum VolumeCall {
    /// Creates a volume. One that exists is left as it is.
    Create {
        name: Option<String>,
        #[serde(default)]
        labels: BTreeMap<String, String>,
    },
    List {
        /// `KEY=VALUE` with the keys `dangling`, `driver`, `label`, `label!` and `name`.
        #[serde(default)]
        filters: Vec<String>,
    },
    Inspect {
        name: String,
    },
    /// Removes a volume. With `force`, a volume that does not exist is no error.
    Remove {
        name: String,
        force: bool,
    },
    /// Removes volumes that no container uses: anonymous ones, or with `all` every one.
    Prune {
        all: bool,
        /// `KEY=VALUE` with the keys `label` and `label!`.
        #[serde(default)]
        filters: Vec<String>,
    },
}

/// Requests about networks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "about-network", rename_all = "kebab-case")]
pub enum NetworkCall {
    List {
        /// `KEY=VALUE` with the keys `driver`, `id` and `name` (patterns), `scope`, `type`, `dangling` and `label`.
        #[serde(default)]
        filters: Vec<String>,
    },
    Inspect {
        name: String,
    },
}

/// Credentials, by the host that they are for.
pub type Keyring = BTreeMap<String, Credentials>;

/// A client's credentials for a registry: a name and a password, or one of the tokens.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Credentials {
    pub user: String,
    pub password: String,
    pub identity_token: String,
    pub registry_token: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({:?})", self.user)
    }
}

/// A request with a stream of answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "question", rename_all = "kebab-case")]
pub enum Follow {
    /// Pulls an image. Answers with [`PullStep`]s, the last of which is `Done`.
    Pull { reference: String, platform: Option<String>, credentials: Keyring },
    /// Pushes an image. Answers with [`PushStep`]s, the last of which is `Done`.
    Push {
        reference: String,
        all_platforms: bool,
        /// Pushes these platforms, all of which must be present; empty is every platform that is present.
        #[serde(default)]
        platforms: Vec<String>,
        referrers: bool,
        credentials: Keyring,
    },
    /// Waits for the end of a process. Answers with one [`Exited`].
    Wait { id: String, exec: Option<String> },
    /// Answers with [`ImageStep`]s, the last of which is `Done`.
    Image(ImageFollow),
    /// Answers with [`LogLine`]s.
    Logs(Logs),
    /// Answers with [`ChangedPath`]s.
    Changes(Changes),
    /// Answers with an empty document when the copy is complete.
    Copy(Copy),
    /// Events of containers and images, in Docker's format: [`Happened`].
    Events(Events),
}

/// A selection of events.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Events {
    /// `KEY=VALUE` with the keys `container`, `event`, `image`, `label` and `type`. Values of one key are alternatives.
    pub filters: Vec<String>,
    /// The start: a time, seconds since 1970, or a duration before now. Events in the daemon's history come first, then
    /// new ones. Without `since` and `until` only new events.
    pub since: Option<String>,
    /// The end, in the same forms. Without `since`, the whole history up to it.
    pub until: Option<String>,
}

/// A selection of a container's log lines.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Logs {
    pub id: String,
    /// Also sends new lines, until the container ends.
    pub follow: bool,
    /// Begins this many lines before the end.
    pub tail: Option<u64>,
    /// Only lines written between these times: each a time, seconds since 1970, or a duration before now.
    pub since: Option<String>,
    pub until: Option<String>,
}

/// The prefix of the folders with clients' named pipes beside the daemon's socket. A client holds a lock (flock(2)) on
/// its folder while it is in use; the daemon deletes folders without one.
pub const PIPES_PREFIX: &str = "hoist-";

/// Named pipes of the client, by absolute path. An empty path means that the stream is not attached.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Streams {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
}

/// The configuration of a new container. Empty and absent fields leave the choice to the image or the runtime.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Create {
    pub image: String,
    /// `OS/ARCHITECTURE[/VARIANT]`, of an image for several platforms; absent is this machine's.
    pub platform: Option<String>,
    /// The snapshotter of the container's root file system; absent is the daemon's default.
    pub snapshotter: Option<String>,
    pub name: Option<String>,
    pub command: Vec<String>,
    pub entrypoint: Option<String>,
    pub env: Vec<String>,
    pub workdir: Option<String>,
    pub user: Option<String>,
    pub hostname: Option<String>,
    pub tty: bool,
    pub interactive: bool,
    /// The container's input ends when the first attached client's input ends.
    pub stdin_once: bool,
    pub auto_remove: bool,
    pub read_only: bool,
    pub privileged: bool,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub memory: Option<i64>,
    /// Thousandths of a processor.
    pub milli_cpus: Option<u64>,
    pub pids_limit: Option<i64>,
    pub mounts: Vec<Mount>,
    pub network: String,
    pub ports: Vec<Port>,
    /// Publishes every port that the image exposes, each on a free port of this machine.
    pub publish_all: bool,
    pub restart: Restart,
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Extras::are_none")]
    pub extras: Extras,
    /// Also starts the container.
    pub start: bool,
    pub streams: Streams,
    /// When the client was started, in nanoseconds since 1970, for the image `hello`, which prints how long a start
    /// takes.
    pub called_at: Option<u64>,
}

/// Options of a new container that are rarely used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Extras {
    pub ulimits: Vec<Ulimit>,
    /// Bytes of `/dev/shm`.
    pub shm_bytes: Option<i64>,
    pub sysctls: BTreeMap<String, String>,
    pub devices: Vec<Device>,
    /// CDI devices (Container Device Interface): `VENDOR/CLASS=NAME`.
    pub cdi: Vec<String>,
    /// The PID namespace: `host`, `container:ID`, or empty for a private one.
    pub pid: String,
    /// The IPC namespace: `host`, or a private one.
    pub ipc: String,
    /// Docker's security options: `no-new-privileges`, `seccomp=unconfined`, `seccomp={…}` with a profile as JSON,
    /// `apparmor=PROFILE`, `systempaths=unconfined`.
    pub security: Vec<String>,
    /// The UTS namespace: `host`, or a private one.
    pub uts: String,
    pub domainname: String,
    /// Annotations of the OCI spec, for runtimes and hooks.
    pub annotations: BTreeMap<String, String>,
    /// The parent cgroup, as a path from the root of the hierarchies; empty is the engine's default.
    pub cgroup_parent: String,
    /// Device cgroup rules, for devices that the container creates itself: `c 1:3 rwm`, `b *:* r`.
    pub device_rules: Vec<String>,
    /// Swappiness of its memory, from 0 to 100. Cgroup v1 only.
    pub swappiness: Option<u64>,
    /// Out of memory, its processes wait instead of being killed. Cgroup v1 only.
    pub oom_kill_disable: bool,
    /// The MAC address of its interface on the bridge, as `02:00:00:00:00:01`.
    pub mac_address: String,
    /// The shim, by its name as a containerd runtime.
    pub runtime: String,
    pub oom_score_adj: Option<i32>,
    pub cpu_shares: Option<u64>,
    /// Microseconds of `cpu_quota`'s period; a negative quota is unlimited.
    pub cpu_period: Option<u64>,
    pub cpu_quota: Option<i64>,
    /// The processors that it may use, as `0-2,7` (cpuset(7)).
    pub cpuset: String,
    /// The NUMA nodes whose memory it may use, as `0-2,7`.
    pub cpuset_mems: String,
    /// Relative share of disk IO, from 10 to 1000.
    pub blkio_weight: Option<u16>,
    /// Soft limit: bytes that it keeps when the machine is short of memory.
    pub memory_reservation: Option<i64>,
    /// Bytes of memory and swap together; -1 is unlimited, absent is twice the memory limit.
    pub memory_swap: Option<i64>,
    pub stop_signal: Option<String>,
    /// Entries of `/etc/hosts`: a name, and an address or `host-gateway`.
    pub hosts: Vec<(String, String)>,
    pub dns: Dns,
    /// Runs `hello` as an init process that reaps zombies and forwards signals.
    pub init: bool,
    /// Overrides of the image's health check.
    pub health: Option<Health>,
    /// Additional groups of its user: names in the image's group(5), or numbers.
    pub groups: Vec<String>,
    /// Exposed ports besides those of the image: `80`, `80/udp`, `8000-8010/tcp`.
    pub exposed: Vec<String>,
    /// The default timeout of a stop, in seconds; negative is none, absent is Docker's 10.
    pub stop_timeout: Option<i64>,
    /// Containers whose volumes and bind mounts it also mounts: `NAME[:ro|:rw]`.
    pub volumes_from: Vec<String>,
    pub log: Log,
}

/// The logging of a container's output.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Log {
    /// `json-file`, `local` or `none`; empty is `json-file`.
    pub driver: String,
    /// Docker's options `max-size` and `max-file`.
    pub options: BTreeMap<String, String>,
}

impl Extras {
    /// Whether all are unset, so that records need not store them.
    fn are_none(&self) -> bool {
        *self == Extras::default()
    }
}

/// Overrides of an image's health check. Absent and zero fields are those of the image, or Docker's defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// No health check, even if the image has one.
    pub is_off: bool,
    /// The probe: a command line for the shell.
    pub command: Option<String>,
    /// The pause between two probes, in nanoseconds like the times below.
    pub interval: i64,
    /// The timeout of a probe, which fails then.
    pub timeout: i64,
    /// The time after the start in which failures are not counted.
    pub start_period: i64,
    /// The pause between probes in that time.
    pub start_interval: i64,
    /// The number of consecutive failures that make the container unhealthy.
    pub retries: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ulimit {
    /// The resource of setrlimit(2), in lowercase and without `RLIMIT_`.
    pub name: String,
    /// Absent is unlimited.
    pub soft: Option<u64>,
    pub hard: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// A path on this machine.
    pub source: String,
    pub target: String,
    /// The allowed access: letters of `rwm` (read, write, mknod).
    pub access: String,
}

/// DNS settings, instead of those of the machine (resolv.conf(5)).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    pub servers: Vec<String>,
    /// `.` is no search domain.
    pub search: Vec<String>,
    pub options: Vec<String>,
}

/// The answer to [`Create`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Created {
    #[serde(rename = "Id")]
    pub id: String,
    /// The steps of the daemon's work and their durations, in order. They add up to all of its time.
    #[serde(rename = "Laps", default)]
    pub laps: Vec<Lap>,
    /// Requested options that have no effect on this machine.
    #[serde(rename = "Warnings", default)]
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lap {
    pub step: String,
    pub microseconds: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// `bind`, `volume` or `tmpfs`.
    pub kind: String,
    /// A path on this machine, or a volume's name. Empty is an anonymous volume.
    pub source: String,
    pub target: String,
    pub read_only: bool,
    /// Further options: for a tmpfs those of mount(8), for a bind its propagation.
    pub options: Vec<String>,
    /// For a bind: creates a missing source directory.
    pub make_source: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Port {
    pub host_ip: String,
    pub host_port: Option<u16>,
    /// The end of a range: any free port from `host_port` to this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_port_last: Option<u16>,
    pub container_port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
}

/// The restart policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    #[default]
    No,
    Always,
    UnlessStopped,
    /// The most restarts; 0 is unlimited.
    OnFailure(u64),
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Exec {
    pub id: String,
    pub command: Vec<String>,
    pub env: Vec<String>,
    pub workdir: Option<String>,
    pub user: Option<String>,
    pub tty: bool,
    pub privileged: bool,
    /// No client waits for the process, so its exit code is not kept.
    #[serde(default)]
    pub detach: bool,
    pub streams: Streams,
}

/// New values for a container's limits. Absent, zero and empty fields leave the old ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Update {
    pub memory: Option<i64>,
    /// Memory and swap together; -1 is no limit.
    pub memory_swap: Option<i64>,
    pub memory_reservation: Option<i64>,
    /// Thousandths of a processor.
    pub milli_cpus: Option<u64>,
    pub cpu_shares: Option<u64>,
    pub cpu_period: Option<u64>,
    pub cpu_quota: Option<i64>,
    pub cpuset: String,
    pub cpuset_mems: String,
    pub blkio_weight: Option<u16>,
    pub pids_limit: Option<i64>,
    pub restart: Option<Restart>,
}

/// The end of a process.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Exited {
    pub code: u32,
}

/// A line of a container's output.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogLine {
    pub log: String,
    pub stream: String,
    pub time: String,
}

/// An event, in the format of Docker's API.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Happened {
    #[serde(rename = "Type")]
    pub kind: String,
    #[serde(rename = "Action")]
    pub action: String,
    #[serde(rename = "Actor")]
    pub actor: Actor,
    pub scope: String,
    /// Seconds since 1970, and below nanoseconds since 1970.
    pub time: i64,
    #[serde(rename = "timeNano")]
    pub time_nano: i64,
}

/// The object of an event, with what is known about it: name, image, labels, exit code.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Actor {
    #[serde(rename = "ID")]
    pub id: String,
    pub attributes: BTreeMap<String, String>,
}

/// A step of a pull.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum PullStep {
    Resolved { name: String, digest: String },
    Layers { layers: Vec<(String, u64)> },
    Downloading { digest: String, current: u64 },
    Extracting { digest: String },
    LayerDone { digest: String },
    LayerExists { digest: String },
    Done { name: String, digest: String },
    Failed { code: i32, message: String },
}

/// A step of a push.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum PushStep {
    /// A platform that is not present locally and is not pushed.
    LeftOut {
        what: String,
    },
    Blobs {
        blobs: Vec<(String, u64)>,
    },
    Sending {
        digest: String,
        current: u64,
    },
    Sent {
        digest: String,
    },
    /// The repository had the blob.
    Existed {
        digest: String,
    },
    /// The registry mounted the blob from another repository.
    Mounted {
        digest: String,
        from: String,
    },
    /// Also pushed: an image that refers to the pushed one.
    Referrer {
        digest: String,
    },
    Done {
        name: String,
        digest: String,
        size: u64,
    },
}

#[cfg(feature = "grpc")]
crate::grpc::service!("hoist.engine.v1.Engine");
