//! `hoist`: every part of the runtime but the shim, in one program.
//!
//! Which part runs is decided by the name the program was called by, then by the first word:
//!
//! ```text
//! hoistd, containerd      ─▶ daemon
//! runc                    ─▶ OCI runtime
//! hoist daemon …          ─▶ daemon
//! hoist runtime …         ─▶ OCI runtime
//! hoist …                 ─▶ command line
//! ```
//!
//! The choice is made before any thread starts: the OCI runtime clones and must be alone.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

mod embedded;

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let called = args.first().map(Path::new).and_then(Path::file_name).unwrap_or_default().to_owned();
    let first_word = args.get(1).cloned().unwrap_or_default();

    let part = match (called.to_str(), first_word.to_str()) {
        (Some("hoistd" | "containerd"), _) => Part::Daemon,
        (Some("runc"), _) => Part::Runtime,
        (_, Some("daemon")) => {
            args.remove(1);
            Part::Daemon
        }
        (_, Some("runtime")) => {
            args.remove(1);
            Part::Runtime
        }
        _ => Part::CommandLine,
    };
    match part {
        Part::Daemon => daemon::main(args, embedded::programs()),
        Part::Runtime => runtime::cli::main(args),
        Part::CommandLine => cli::main(args),
    }
}

enum Part {
    CommandLine,
    Daemon,
    Runtime,
}
