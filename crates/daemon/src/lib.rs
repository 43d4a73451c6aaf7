//! The daemon: wires all components and serves the API.
//!
//! ```text
//! args ─▶ config ─▶ log ─▶ lock ─▶ wiring ─▶ listen ─▶ serve ─▶ drain
//! ```
//!
//! - [`config`]: the configuration as written and as used.
//! - `wiring`: creates the components and connects them.
//! - `services`: one file per gRPC service: convert the request, call, convert the result.
//! - `streams`: streams that clients open and other calls refer to.
//! - `server`: HTTP/2 on a unix socket, without a web framework.
//! - `telemetry`: metrics, thread states, profiles.
//! - `traces`: spans of calls, sent to a collector.
//! - `import`: imports another containerd's images.
//! - `publish`, `oci_hook`: containerd's commands that are not the daemon.
//! - `background`: tasks that run as long as the daemon, which exits if one of them panics.
//! - `collector`: schedules garbage collection.
//! - `idle`: releases resources of an idle daemon.
//! - `restart_monitor`: restarts containers of other clients.
//! - `pipes`: removes pipes of clients that were killed.
//! - `task_resources`: what a task has besides its shim: mounts of its root, and checkpoint images (`checkpoint`).
//!
//! Invariants
//! - The daemon may be killed at any instruction. State that is only in memory can be recovered from disk, shims or the
//!   kernel.
//! - Stores block; services call them on the blocking pool, never on a worker thread.
//! - A call that the daemon does not serve returns `Unimplemented`.
//!
//! Start-up, and the files on disk: `docs/design/daemon.md`.
#![forbid(unsafe_code)]

mod args;
mod authority_stream;
mod background;
mod blocking;
mod checkpoint;
mod chunked_responses;
mod collector;
pub mod config;
mod differs;
mod events;
mod identity;
mod idle;
mod import;
mod listen;
mod lock;
mod log;
mod notify;
mod oci_hook;
mod oversized;
mod pipes;
mod probes;
mod processors;
mod programs;
mod proxy;
mod publish;
mod restart_monitor;
mod retainer;
mod run;
mod server;
mod services;
mod streams;
mod task_resources;
mod telemetry;
mod traces;
mod unmount;
mod wiring;

pub use programs::{Embedded, Programs};
pub use run::main;
