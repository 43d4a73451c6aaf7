//! `containerd-shim-chroot-v1`: a runtime as a program of its own, the simplest that is honest.
//!
//! ```text
//! daemon ── exec `start` ─▶ start ── exec `serve` ─▶ the shim ── exec `init` ─▶ a process of the container
//!        ◀─ its address ──────┘                         │
//!        ── ttrpc: containerd.task.v3.Task ────────────▶│
//!        ◀─ ttrpc: Events.Forward ──────────────────────┘
//!        ── exec `delete` ─▶ ends what a shim that died left
//! ```
//!
//! It isolates nothing. A container is the processes whose root is its root file system, and of its OCI spec only
//! the program counts: `args`, `env`, `cwd`, and one uid and gid. No namespace, no limit, no mount of the spec, no
//! terminal: what would need one of them is refused or not there. `docs/extend/runtime.md` walks through it.
#![forbid(unsafe_code)]

mod container;
mod events;
mod init;
mod process;
mod service;
mod start;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use types::{Context, Error, Result};

/// What daemons put on the command line, with one dash.
#[derive(Default)]
struct Flags {
    namespace: String,
    /// Of the daemon's gRPC socket.
    address: String,
    id: String,
    /// Without the flag the current directory.
    bundle: PathBuf,
}

fn main() {
    if let Err(error) = run() {
        log(&error);
        std::process::exit(1);
    }
}

fn run() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let mut flags = Flags::default();
    while let Some(argument) = arguments.next() {
        match argument.to_str().unwrap_or_default() {
            "start" => return start::start(&flags),
            "serve" => return service::serve(&flags),
            "delete" => return start::delete(&flags),
            "init" => return init::init(&arguments.collect::<Vec<_>>()),
            "-info" => return start::info(),
            "-debug" => {}
            flag => {
                let value = arguments.next().ok_or_else(|| unknown(flag))?;
                flags.set(flag, value)?;
            }
        }
    }
    Err(Error::invalid_argument("expected start, delete or -info; a daemon calls this program"))
}

impl Flags {
    fn set(&mut self, flag: &str, value: OsString) -> Result<()> {
        let text = value.to_string_lossy().into_owned();
        match flag {
            "-namespace" => self.namespace = text,
            "-address" => self.address = text,
            "-id" => self.id = text,
            "-bundle" => self.bundle = value.into(),
            // A program that publishes events for shims that know no ttrpc.
            "-publish-binary" => {}
            _ => return Err(unknown(flag)),
        }
        Ok(())
    }

    fn bundle(&self) -> Result<PathBuf> {
        std::path::absolute(self.bundle.join(".")).context(|| "find the bundle")
    }
}

fn unknown(flag: &str) -> Error {
    Error::invalid_argument(format!("argument {flag:?} is not known, or has no value"))
}

/// To standard error, which may be a pipe that nobody empties: then the line is lost.
fn log(error: &Error) {
    let _lost = writeln!(std::io::stderr(), "containerd-shim-chroot-v1: {}", error.chain());
}
