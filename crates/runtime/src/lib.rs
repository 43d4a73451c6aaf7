//! The OCI runtime: creates and runs containers from bundles (runtime-spec 1.3).
//!
//! ```text
//! create ──▶ created ──start──▶ running ◀──resume── paused
//!    │          │                  │ ──pause──────────▶
//!    └ error    └──────kill────────┴──▶ stopped ──delete──▶ gone
//! ```
//!
//! Used as a library by the shim, and as `runc`'s command line ([`cli`]). Callers of [`Container::create`] and
//! [`Container::exec`] must have a single thread: both fork, and the child continues in this code until it executes the
//! container's program (`docs/design/init.md` lists its steps).
//!
//! Running containers can be checkpointed to files and restored with criu ([`Container::checkpoint`],
//! [`Container::restore`]).
//!
//! Reading order: [`container`](crate::Container) is the life of a container, [`create`] and `init` are the two sides
//! of its creation, `rootfs` its file systems, `program` the last steps that every process takes.

mod cgroup_fallback;
mod cgroup_location;
mod cgroup_note;
mod channel;
mod checkpoint;
pub mod cli;
mod container;
mod copy_up;
mod create;
mod criu;
mod entering;
mod exec;
mod fork;
mod hooks;
mod init;
mod labels;
mod net_devices;
mod plan;
mod program;
mod resctrl;
mod restore;
mod rootfs;
mod scheduling;
mod start;
mod state;
mod steps;
mod supervisor;
mod supplies;

pub use checkpoint::{CheckpointOptions, CriuOptions, check_empty_namespace};
pub use container::Container;
pub use create::{CreateOptions, Created};
pub use criu::CgroupMode;
pub use exec::{Exec, ExecOptions, SubCgroup};
pub use plan::{Stdio, check_sysctl, sysctl_path, waits_for_others};
pub use restore::RestoreOptions;
pub use state::{State, Status};
pub use steps::Steps;
pub use supervisor::Supervisor;
