//! The daemon: where all parts are put together and served.
//!
//! ```text
//! args ─▶ config ─▶ log ─▶ lock ─▶ wiring ─▶ listen ─▶ serve ─▶ drain
//! ```
//!
//! - [`config`]: the file as written and as used.
//! - `wiring`: which part gets which other part.
//! - `services`: one file for each gRPC service: convert, call, convert.
//! - `streams`: streams that clients open and other calls name.
//! - `server`: HTTP/2 on a unix socket, without a framework in between.
//! - `telemetry`: figures, and what the daemon's threads do.
//! - `traces`: what calls consisted of, for a collector.
//! - `import`: what another containerd has.
//! - `publish`, `oci_hook`: small commands of containerd's that are no daemon.
//! - `background`: tasks that go on as long as the daemon, which ends if one of them breaks down.
//! - `collector`: when garbage is collected.
//! - `idle`: memory that is given back when nobody asks for anything.
//! - `restart_monitor`: containers of other clients that are started again.
//! - `pipes`: what clients that were killed left beside the socket.
//! - `task_resources`: what a task has beside its shim: mounts of its root, and images of a checkpoint (`checkpoint`).
//!
//! Invariants
//! - The daemon may be killed at any instruction. What it holds in memory alone is what can be had
//!   again from disk, from shims or from the kernel.
//! - Stores block; a service calls them on the blocking pool, never on a worker.
//! - A call that the daemon does not serve answers `Unimplemented`.
//!
//! How it starts, and what is where on disk: `docs/design/daemon.md`.
#![forbid(unsafe_code)]

mod args;
mod aside;
mod authority_stream;
mod background;
mod checkpoint;
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
mod long_answers;
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
