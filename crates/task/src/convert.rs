//! Conversions between this crate's types and the messages of the task API.

use api::shim::task::StateResponse;
use api::shim::types as wire;
use prost_types::Any;
use types::{ContainerId, ExecId, Mount, Opaque, Timestamp};

use crate::{Exit, Io, Process, Status};

pub(crate) fn any(opaque: Opaque) -> Any {
    Any { type_url: opaque.type_url, value: opaque.value }
}

pub(crate) fn opaque(any: Any) -> Opaque {
    Opaque { type_url: any.type_url, value: any.value }
}

pub(crate) fn mount(mount: Mount) -> wire::Mount {
    wire::Mount { r#type: mount.kind, source: mount.source, target: mount.target, options: mount.options }
}

pub(crate) fn timestamp(timestamp: prost_types::Timestamp) -> Timestamp {
    Timestamp { seconds: timestamp.seconds, nanos: u32::try_from(timestamp.nanos).unwrap_or(0) }
}

pub(crate) fn wire_timestamp(timestamp: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: timestamp.seconds, nanos: i32::try_from(timestamp.nanos).unwrap_or(0) }
}

pub(crate) fn exit(pid: u32, status: u32, at: Option<prost_types::Timestamp>) -> Exit {
    Exit { pid, status, at: at.map(timestamp).unwrap_or_default() }
}

pub(crate) fn process(container: &ContainerId, exec: Option<&ExecId>, state: StateResponse) -> Process {
    let status = status(state.status());
    Process {
        container: container.clone(),
        exec: exec.cloned(),
        pid: state.pid,
        status,
        io: Io { stdin: state.stdin, stdout: state.stdout, stderr: state.stderr, terminal: state.terminal },
        exit: (status == Status::Stopped).then(|| exit(state.pid, state.exit_status, state.exited_at)),
    }
}

fn status(status: wire::Status) -> Status {
    match status {
        wire::Status::Unknown => Status::Unknown,
        wire::Status::Created => Status::Created,
        wire::Status::Running => Status::Running,
        wire::Status::Stopped => Status::Stopped,
        wire::Status::Paused => Status::Paused,
        wire::Status::Pausing => Status::Pausing,
    }
}
