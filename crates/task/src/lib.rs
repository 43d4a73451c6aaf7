//! The daemon's side of shims: starting them, talking to them, finding them again.
//!
//! ```text
//! create ──▶ bundle ──▶ shim `start` ──▶ connect ──▶ Create ──▶ [Task] ──delete──▶ gone
//!                                                      │
//! load ────▶ bundle ──▶ connect ───────────────────────┘
//!               └──▶ shim is dead ──▶ shim `delete` ──▶ exit and delete events ──▶ gone
//! ```
//!
//! A [`Sandboxes`] entry is a shim too, which runs the tasks of a pod.
//!
//! Knows processes, not images: a root file system comes as a list of mounts, a container as its OCI
//! spec.
//!
//! Invariants
//! - The shim owns the task. What the daemon knows can be had again from the shim and the bundle, so
//!   the daemon may die at any instruction.
//! - Only a shim that is known to be dead is cleaned up after. One that does not answer is `Unknown`
//!   and left alone.
//! - A task is in the map from before its shim starts until after its bundle is gone, so two callers
//!   never work on one id.
//!
//! What is in a bundle: `docs/design/tasks.md`.
#![forbid(unsafe_code)]

mod bootstrap;
mod bundle;
mod cgroup;
mod connection;
mod convert;
mod creating;
mod forward;
mod process;
mod program;
mod sandbox;
mod shims;
mod strays;
mod task;

pub use forward::serve as serve_events;
pub use process::{Create, Exec, Exit, Io, Process, ProcessId, RuntimeInfo, Status, TerminalSize};
pub use program::OUR_RUNTIME;
pub use sandbox::{
    CreateSandbox, Endpoint, SandboxExit, SandboxMetrics, SandboxStart, SandboxStatus, Sandboxes,
};
pub use shims::{Config, Ended, Limits, Shims};
pub use strays::{Stray, shims_of};
pub use task::Task;
