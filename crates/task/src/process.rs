//! Requests to a task and its answers, as plain data.

use std::path::PathBuf;

use stdx::Laps;
use types::{ContainerId, ExecId, Labels, Mount, Opaque, Timestamp};

use crate::Endpoint;

/// Everything needed to create a container's task.
#[derive(Clone, Debug, Default)]
pub struct Create {
    /// The OCI runtime spec, as JSON.
    pub spec: Vec<u8>,
    /// Mounts that make the root file system, in order. Empty where the spec names a directory.
    pub rootfs: Vec<Mount>,
    pub io: Io,
    /// `io.containerd.<name>.<version>`, or the absolute path of a shim.
    pub runtime: String,
    /// Address of an existing shim, such as a sandbox's, that is to run the container. `None` starts a shim.
    pub shim: Option<Endpoint>,
    /// Runtime options, passed to the shim unread.
    pub options: Option<Opaque>,
    /// Directory with the checkpoint images of a process to restore instead of starting one.
    pub checkpoint: Option<PathBuf>,
    /// Records when each step is done.
    pub laps: Laps,
}

/// Where a process's streams are connected: paths of named pipes, or URIs that the shim knows. Empty: not connected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Io {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    pub rows: u32,
    pub columns: u32,
}

/// An additional process (exec) for a running container.
#[derive(Clone, Debug, Default)]
pub struct Exec {
    /// The OCI `process`, as the caller's `Any` of JSON.
    pub spec: Opaque,
    pub io: Io,
}

/// What a shim's program reports about itself and its OCI runtime.
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
    /// 0 if it is no longer known.
    pub pid: u32,
    /// The exit code, or 128 + n if signal n killed the process.
    pub status: u32,
    pub at: Timestamp,
}

/// A process's state as its shim reports it.
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

/// A process in a container, with what the shim reports about it.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessId {
    pub pid: u32,
    pub details: Option<Opaque>,
}
