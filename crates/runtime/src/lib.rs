//! The OCI runtime: makes containers out of bundles (runtime-spec 1.3).
//!
//! ```text
//! create ──▶ created ──start──▶ running ◀──resume── paused
//!    │          │                  │ ──pause──────────▶
//!    └ error    └──────kill────────┴──▶ stopped ──delete──▶ gone
//! ```
//!
//! A library for the shim, and `runc`'s command line ([`cli`]). Whoever calls [`Container::create`] or
//! [`Container::exec`] must have a single thread: both fork, and the child goes on in this code until it
//! executes the container's program (`docs/design/init.md` lists each of its steps).
//!
//! Running containers are written into files and come back from there with the help of criu
//! ([`Container::checkpoint`], [`Container::restore`]).
//!
//! Reading order: [`container`](crate::Container) is the life of a container, [`create`] and `init` are the
//! two sides of making it, `rootfs` its file systems, `program` what every process goes through.

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
