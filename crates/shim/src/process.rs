//! A process of a container: its first one, or one that `Exec` added.
//!
//! ```text
//! Added ──start──▶ Running ──exit──▶ Stopped      (an exec)
//! Created ─start─▶ Running ──exit──▶ Stopped      (the first process)
//!    └──────────── exit ────────────────▲
//! Frozen ──start─▶ Running ──exit──▶ Stopped      (one in a checkpoint)
//! ```

use rustix::process::Pid;
use types::Timestamp;

use crate::service::ReplyTo;
use crate::stdio::StdioConfig;
use crate::stdio::open::Inside;

/// The loop's key of a process. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ProcessKey(pub u32);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// The exit code, or 128 plus the signal that killed it.
    pub status: u32,
    pub at: Timestamp,
}

impl Exit {
    /// Of a process that never ran.
    pub(crate) const NEVER: Exit = Exit { status: 0, at: Timestamp::NEVER };
}

#[derive(Clone, Debug)]
pub(crate) enum Stage {
    /// Added by `Exec`, not started: the OCI `process` as JSON.
    Added {
        spec: Vec<u8>,
        /// A start failed. It may be tried again, but a `Wait` is answered at once.
        failed: bool,
    },
    /// In a checkpoint, from which `Start` restores it.
    Frozen,
    Created {
        pid: Pid,
    },
    Running {
        pid: Pid,
    },
    Stopped {
        pid: Option<Pid>,
        exit: Exit,
    },
}

pub(crate) struct Process {
    pub container: String,
    /// Empty for the first process.
    pub exec_id: String,
    pub stage: Stage,
    pub config: StdioConfig,
    pub stdio: Inside,
    /// Pending `Wait` calls.
    pub waiting: Vec<ReplyTo>,
}

impl Process {
    pub(crate) fn pid(&self) -> Option<Pid> {
        match self.stage {
            Stage::Added { .. } | Stage::Frozen => None,
            Stage::Created { pid } | Stage::Running { pid } => Some(pid),
            Stage::Stopped { pid, .. } => pid,
        }
    }

    /// The pid on the wire; 0 if there is none.
    pub(crate) fn pid_number(&self) -> u32 {
        self.pid().map_or(0, |pid| pid.as_raw_nonzero().get() as u32)
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        match self.stage {
            Stage::Stopped { exit, .. } => Some(exit),
            _ => None,
        }
    }

    /// The time of its end, for the wire.
    pub(crate) fn exited_at(&self) -> Timestamp {
        self.exit().unwrap_or(Exit::NEVER).at
    }

    pub(crate) fn is_alive(&self) -> bool {
        matches!(self.stage, Stage::Created { .. } | Stage::Running { .. })
    }

    /// The id in events: the container's for its first process.
    pub(crate) fn event_id(&self) -> &str {
        if self.exec_id.is_empty() { &self.container } else { &self.exec_id }
    }

    /// Whether output is still being copied.
    pub(crate) fn has_output(&self) -> bool {
        self.stdio.copies[1].is_some() || self.stdio.copies[2].is_some()
    }
}
