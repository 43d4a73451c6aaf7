//! What a task is asked for and what it answers, as plain data.

use std::path::PathBuf;

use stdx::Laps;
use types::{ContainerId, ExecId, Labels, Mount, Opaque, Timestamp};

use crate::Endpoint;

/// What makes a container run.
#[derive(Clone, Debug, Default)]
pub struct Create {
    /// The OCI runtime spec, as JSON.
    pub spec: Vec<u8>,
    /// Mounts that make the root file system, in order. Empty where the spec names a directory.
    pub rootfs: Vec<Mount>,
    pub io: Io,
    /// `io.containerd.<name>.<version>`, or the absolute path of a shim.
    pub runtime: String,
    /// Where a shim listens that takes the container, such as that of a sandbox. `None` starts one.
    pub shim: Option<Endpoint>,
    /// For the shim to read.
    pub options: Option<Opaque>,
    /// Images of a process to restore instead of starting one.
    pub checkpoint: Option<PathBuf>,
    /// Told when a step is done.
    pub laps: Laps,
}

/// Where a process's streams go: paths of named pipes, or URIs that the shim knows. Empty is nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Io {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// How large a terminal is, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    pub rows: u32,
    pub columns: u32,
}

/// A further process in a running container.
#[derive(Clone, Debug, Default)]
pub struct Exec {
    /// The OCI `process`, as the caller's `Any` of JSON.
    pub spec: Opaque,
    pub io: Io,
}

/// What a shim's program says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct RuntimeInfo {
    pub name: String,
    pub version: String,
    pub revision: String,
    pub options: Option<Opaque>,
    /// The OCI runtime's `features` document.
    pub features: Option<Opaque>,
    pub annotations: Labels,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// 0 where nobody knows it any more.
    pub pid: u32,
    /// The exit code; 128 + n after signal n.
    pub status: u32,
    pub at: Timestamp,
}

/// A process as its shim sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    pub container: ContainerId,
    /// `None` is the container's first process.
    pub exec: Option<ExecId>,
    pub pid: u32,
    pub status: Status,
    pub io: Io,
    /// Set once the status is `Stopped`.
    pub exit: Option<Exit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The shim did not answer. The process may well run.
    Unknown,
    Created,
    Running,
    Stopped,
    Paused,
    Pausing,
}

/// A process id in a container, with what the shim says about it.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessId {
    pub pid: u32,
    pub details: Option<Opaque>,
}
