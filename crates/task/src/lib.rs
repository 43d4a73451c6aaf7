//! The daemon's side of shims: starts them, calls them, and reconnects to them after a restart.
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
//! This crate knows processes, not images: callers pass the root file system as a list of mounts and the container as
//! its OCI spec.
//!
//! Invariants
//! - The shim owns the task. Whatever the daemon knows can be recovered from the shim and the bundle, so the daemon may
//!   die at any instruction.
//! - Only a shim known to be dead is cleaned up after. A task whose shim does not answer has the state `Unknown` and is
//!   left alone.
//! - A task is in the map from before its shim starts until after its bundle is removed, so two callers never work on
//!   one id.
//!
//! What is in a bundle: `docs/design/tasks.md`.
#![forbid(unsafe_code)]

mod bootstrap;
mod bundle;
mod cgroup;
mod config;
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

pub use config::{Config, Limits};
pub use forward::serve as serve_events;
pub use process::{Create, Exec, Exit, Io, Process, ProcessId, RuntimeInfo, Status, TerminalSize};
pub use program::OUR_RUNTIME;
pub use sandbox::{
    CreateSandbox, Endpoint, SandboxExit, SandboxMetrics, SandboxStart, SandboxStatus, Sandboxes,
};
pub use shims::{Ended, Shims};
pub use strays::{Stray, shims_of};
pub use task::Task;
