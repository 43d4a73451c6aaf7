//! `hoist.engine.v1.Engine`: containers as people know them, with names, logs and restart policies.
//!
//! Two calls carry JSON documents: `Call` a question and its answer, `Follow` a question and a stream of
//! answers. The questions are [`Call`] and [`Follow`]; answers are documents in the shape that Docker's users
//! know. JSON, because everything here is for people and scripts, and none of it is hot: bytes of containers
//! go through pipes that the caller names, never through the daemon.

mod copy;
mod image;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use copy::{Copy, FileStat};
pub use image::{ChangedPath, Changes, Commit, ImageCall, ImageFollow, ImageStep};

/// Either direction: UTF-8 JSON.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Document {
    #[prost(bytes = "vec", tag = "1")]
    pub json: Vec<u8>,
}

/// A question with one answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "question", rename_all = "kebab-case")]
pub enum Call {
    /// Version, root, counts.
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
        /// With the volumes that have no name.
        #[serde(default)]
        volumes: bool,
    },
    /// Gives it another name.
    Rename {
        id: String,
        name: String,
    },
    /// Changes limits and the restart policy, also of one that runs.
    Update {
        id: String,
        update: Update,
    },
    /// The processes of one that runs, as ps(1) shows them with these options: an object of `Titles` and `Processes`.
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
    /// A row for each, the last that was made first. Those that run, without `all` and without another choice.
    List {
        all: bool,
        /// `KEY=VALUE`, as Docker's: those of one key are alternatives, but labels must all be there.
        #[serde(default)]
        filters: Vec<String>,
        /// So many of those that were made last, whether they run or not.
        #[serde(default)]
        last: Option<u64>,
        /// With what their trees take.
        #[serde(default)]
        sizes: bool,
    },
    Inspect {
        id: String,
        /// With what its tree takes.
        #[serde(default)]
        sizes: bool,
    },
    /// Lets somebody look at a container that runs, and type, through pipes whose other ends they have open.
    Attach {
        id: String,
        streams: Streams,
    },
    Exec(Box<Exec>),
    /// What is at a path of a container: a [`FileStat`].
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
    /// A sample of each that is named; without names, of those that run, or of all.
    Stats {
        ids: Vec<String>,
        #[serde(default)]
        all: bool,
    },
    Image(ImageCall),
    Registry(RegistryCall),
    Volume(VolumeCall),
    Network(NetworkCall),
    /// Removes containers that do not run, and collects.
    Prune {
        /// `KEY=VALUE`: until, label, `label!`.
        #[serde(default)]
        filters: Vec<String>,
    },
    /// Rows of kinds; with `verbose`, lists of images, containers and volumes.
    DiskUsage {
        #[serde(default)]
        verbose: bool,
    },
    Check {
        repair: bool,
    },
}

/// Questions about registries.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "about-registry", rename_all = "kebab-case")]
pub enum RegistryCall {
    /// The names by which people log in to the hosts of a registry, in the order in which they are asked: a
    /// list of lists, of which the first name with credentials counts.
    Logins { registry: String },
    /// Whether the registry takes these credentials.
    CheckLogin { registry: String, credentials: Credentials },
    /// What each host says when it is asked for an image.
    Explain { reference: String, credentials: Keyring },
    /// The tags of a repository: a list.
    Tags { reference: String, credentials: Keyring },
}

/// Questions about volumes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "about-volume", rename_all = "kebab-case")]
pub enum VolumeCall {
    /// One that is there already is left as it is.
    Create {
        name: Option<String>,
        #[serde(default)]
        labels: BTreeMap<String, String>,
    },
    List {
        /// `KEY=VALUE`: dangling, driver, label, `label!`, name.
        #[serde(default)]
        filters: Vec<String>,
    },
    Inspect {
        name: String,
    },
    /// With `force`, one that is not there is no error.
    Remove {
        name: String,
        force: bool,
    },
    /// Those that no container uses: without a name, or all.
    Prune {
        all: bool,
        /// `KEY=VALUE`: label, `label!`.
        #[serde(default)]
        filters: Vec<String>,
    },
}

/// Questions about networks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "about-network", rename_all = "kebab-case")]
pub enum NetworkCall {
    List {
        /// `KEY=VALUE`: driver, id, name (patterns), scope, type, dangling, label.
        #[serde(default)]
        filters: Vec<String>,
    },
    Inspect {
        name: String,
    },
}

/// Credentials by host.
pub type Keyring = BTreeMap<String, Credentials>;

/// Who somebody is to a registry: a name and a password, or one of the tokens.
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

/// A question with many answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "question", rename_all = "kebab-case")]
pub enum Follow {
    /// [`PullStep`]s, the last of which is `Done`.
    Pull { reference: String, platform: Option<String>, credentials: Keyring },
    /// [`PushStep`]s, the last of which is `Done`.
    Push {
        reference: String,
        all_platforms: bool,
        /// These alone, and each must be here; those that are here if it is empty.
        #[serde(default)]
        platforms: Vec<String>,
        referrers: bool,
        credentials: Keyring,
    },
    /// One [`Exited`].
    Wait { id: String, exec: Option<String> },
    /// [`ImageStep`]s, the last of which is `Done`.
    Image(ImageFollow),
    /// [`LogLine`]s.
    Logs(Logs),
    /// [`ChangedPath`]s.
    Changes(Changes),
    /// An empty document once it is done.
    Copy(Copy),
    /// What happens to containers and images, in Docker's shape: [`Happened`].
    Events(Events),
}

/// Which events.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Events {
    /// `KEY=VALUE`: container, event, image, label, type. Those of one key are alternatives.
    pub filters: Vec<String>,
    /// Of those that are kept, and then as they come: a time, seconds since 1970, or how long ago. Without either, those that
    /// come alone.
    pub since: Option<String>,
    /// The end; without `since`, of all that are kept.
    pub until: Option<String>,
}

/// Which lines of a container's output.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Logs {
    pub id: String,
    /// On as they come, until it ends.
    pub follow: bool,
    /// So many before the end.
    pub tail: Option<u64>,
    /// Of those, written not before and not after: a time, seconds since 1970, or how long ago.
    pub since: Option<String>,
    pub until: Option<String>,
}

/// How the names of folders begin in which clients have their pipes, where those lie beside the daemon's socket. Who has made
/// one holds its lock (flock(2)) for as long as it is in use.
pub const PIPES_PREFIX: &str = "hoist-";

/// Pipes of the caller, by absolute path. Empty is nowhere.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Streams {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
}

/// What a container is made with. Empty and none are the image's or the runtime's choice.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Create {
    pub image: String,
    /// `OS/ARCHITECTURE[/VARIANT]`, for an image that is for several; none is this machine's.
    pub platform: Option<String>,
    /// Who keeps its root file system.
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
    /// Its input ends with that of the first who types.
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
    /// Whatever port the image exposes is published as well, on any port that is free.
    pub publish_all: bool,
    pub restart: Restart,
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Extras::are_none")]
    pub extras: Extras,
    /// Starts it at once.
    pub start: bool,
    pub streams: Streams,
    /// When the caller was called, in nanoseconds since 1970: told to the image `hello`.
    pub called_at: Option<u64>,
}

/// What few containers ask for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Extras {
    pub ulimits: Vec<Ulimit>,
    /// Bytes of `/dev/shm`.
    pub shm_bytes: Option<i64>,
    pub sysctls: BTreeMap<String, String>,
    pub devices: Vec<Device>,
    /// Devices by what their makers say of them (Container Device Interface): `VENDOR/CLASS=NAME`.
    pub cdi: Vec<String>,
    /// Whose processes it sees: `host`, `container:ID`, or its own.
    pub pid: String,
    /// Whose shared memory and queues it has: `host`, or its own.
    pub ipc: String,
    /// In Docker's words: `no-new-privileges`, `seccomp=unconfined`, `seccomp={…}` with a profile as JSON,
    /// `apparmor=PROFILE`, `systempaths=unconfined`.
    pub security: Vec<String>,
    /// Whose names of host and domain it has: `host`, or its own.
    pub uts: String,
    pub domainname: String,
    /// For runtimes and hooks, in its spec.
    pub annotations: BTreeMap<String, String>,
    /// The cgroup in which its own is, from the hierarchies' roots; the engine's choice if it is empty.
    pub cgroup_parent: String,
    /// What it may do with devices that it makes itself: `c 1:3 rwm`, `b *:* r`.
    pub device_rules: Vec<String>,
    /// From 0 to 100: how readily its memory goes to swap. Cgroups of version 1 alone.
    pub swappiness: Option<u64>,
    /// It waits for memory and is not killed for want of it. Cgroups of version 1 alone.
    pub oom_kill_disable: bool,
    /// Of its interface on the bridge, as `02:00:00:00:00:01`.
    pub mac_address: String,
    /// The shim, by its name as a runtime of containerd.
    pub runtime: String,
    pub oom_score_adj: Option<i32>,
    pub cpu_shares: Option<u64>,
    /// Microseconds, of each of which it may use `cpu_quota`; below zero is no limit.
    pub cpu_period: Option<u64>,
    pub cpu_quota: Option<i64>,
    /// Processors, as `0-2,7`.
    pub cpuset: String,
    /// Memory of processors, by the numbers of its nodes.
    pub cpuset_mems: String,
    /// Its part where disks are busy, from 10 to 1000.
    pub blkio_weight: Option<u16>,
    /// Bytes that it keeps where memory is short.
    pub memory_reservation: Option<i64>,
    /// Bytes of memory and swap together; -1 is no limit, none twice those of memory.
    pub memory_swap: Option<i64>,
    pub stop_signal: Option<String>,
    /// Names with their addresses, or with `host-gateway`.
    pub hosts: Vec<(String, String)>,
    pub dns: Dns,
    /// Its first process is one of ours, which reaps and passes signals on.
    pub init: bool,
    /// What differs from how the image has its health looked after.
    pub health: Option<Health>,
    /// Groups that its user is in as well: names that the image knows, or numbers.
    pub groups: Vec<String>,
    /// Ports that it has for others, beside those of its image: `80`, `80/udp`, `8000-8010/tcp`.
    pub exposed: Vec<String>,
    /// Seconds that it has to stop in, where nobody says otherwise; below zero is for ever, none Docker's 10.
    pub stop_timeout: Option<i64>,
    /// Containers whose volumes, and paths of the machine, it has too: `NAME[:ro|:rw]`.
    pub volumes_from: Vec<String>,
    pub log: Log,
}

/// What becomes of a container's output.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Log {
    /// `json-file`, `local` or `none`; empty is the first.
    pub driver: String,
    /// `max-size` and `max-file`, in Docker's words.
    pub options: BTreeMap<String, String>,
}

impl Extras {
    /// For records, of which most have none.
    fn are_none(&self) -> bool {
        *self == Extras::default()
    }
}

/// How it is found out whether a container is well. None, and zero, are the image's choice, or Docker's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// Nobody looks after it.
    pub is_off: bool,
    /// For the shell.
    pub command: Option<String>,
    /// From the end of a probe to the next, in nanoseconds as those that follow.
    pub interval: i64,
    /// After it a probe counts as failed.
    pub timeout: i64,
    /// So long after its start failures do not count.
    pub start_period: i64,
    /// Between probes in that time.
    pub start_interval: i64,
    /// So many failures in a row are too many.
    pub retries: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ulimit {
    /// As in setrlimit(2), in small letters and without `RLIMIT_`.
    pub name: String,
    /// None is no limit.
    pub soft: Option<u64>,
    pub hard: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// A path of this machine.
    pub source: String,
    pub target: String,
    /// Of `rwm`.
    pub access: String,
}

/// Who resolves names, in place of who does for the machine (resolv.conf(5)).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    pub servers: Vec<String>,
    /// `.` is none.
    pub search: Vec<String>,
    pub options: Vec<String>,
}

/// The answer to [`Create`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Created {
    #[serde(rename = "Id")]
    pub id: String,
    /// Where the daemon's time went, in order; with all of it.
    #[serde(rename = "Laps", default)]
    pub laps: Vec<Lap>,
    /// What was asked for and has no effect on this machine.
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
    /// A path of this machine, or a volume's name: empty for one that is made for this container alone.
    pub source: String,
    pub target: String,
    pub read_only: bool,
    /// Beside those that its kind has: of a tmpfs as mount(8) knows them, of a bind how it propagates.
    pub options: Vec<String>,
    /// Of a bind: a directory is made where there is nothing.
    pub make_source: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Port {
    pub host_ip: String,
    pub host_port: Option<u16>,
    /// Of those from `host_port` to this one any that is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_port_last: Option<u16>,
    pub container_port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
}

/// When a container is started again by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    #[default]
    No,
    Always,
    UnlessStopped,
    /// At most so often; 0 is for ever.
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
    /// Nobody will wait for its end, which is forgotten.
    #[serde(default)]
    pub detach: bool,
    pub streams: Streams,
}

/// What becomes other than it was; none leaves it, and so do zero and the empty word.
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

/// How a process ended.
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

/// An event, as Docker tells it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Happened {
    #[serde(rename = "Type")]
    pub kind: String,
    #[serde(rename = "Action")]
    pub action: String,
    #[serde(rename = "Actor")]
    pub actor: Actor,
    pub scope: String,
    /// Seconds, and nanoseconds, since 1970.
    pub time: i64,
    #[serde(rename = "timeNano")]
    pub time_nano: i64,
}

/// Whom an event is about, with what is known of it: name, image, labels, exit code.
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
    /// A platform that is not here, and so does not go.
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
    /// The repository had it.
    Existed {
        digest: String,
    },
    /// Another repository of the registry had it.
    Mounted {
        digest: String,
        from: String,
    },
    /// An image that refers to the one that is pushed.
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
