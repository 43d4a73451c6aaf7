//! `hoist`: every part of the runtime but the shim, in one program.
//!
//! Which part runs is decided by the name the program was called by, then by the first word:
//!
//! ```text
//! hoistd, containerd      ─▶ daemon
//! runc, hoist-runtime     ─▶ OCI runtime
//! ctr                     ─▶ containerd's command line
//! hoist daemon …          ─▶ daemon
//! hoist --address SOCKET publish …  ─▶ daemon, whose program shims know by its path alone
//! hoist system import-containerd …, hoist system unmount …  ─▶ daemon, since no other runs then
//! hoist runtime …         ─▶ OCI runtime
//! hoist ctr …             ─▶ containerd's command line
//! hoist …                 ─▶ command line
//! ```
//!
//! The choice is made before any thread starts: the OCI runtime clones and must be alone.
//!
//! `cargo xtask build` links the C library into it, so that the one file runs on every distribution.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

mod embedded;

fn main() -> ExitCode {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    linux::names::resolve_without_plugins();

    let mut args: Vec<OsString> = std::env::args_os().collect();
    let called = args.first().map(Path::new).and_then(Path::file_name).unwrap_or_default().to_owned();
    let first_word = args.get(1).cloned().unwrap_or_default();

    let part = match (called.to_str(), first_word.to_str()) {
        (Some("hoistd" | "containerd"), _) => Part::Daemon,
        _ if runtime::cli::is_called(&args) => Part::Runtime,
        (Some("ctr"), _) => Part::Ctr,
        // So it is called by shims, who know the daemon's program by its path alone.
        (_, Some("--address")) if args.get(3).is_some_and(|word| word == "publish") => Part::Daemon,
        (_, Some("daemon")) => {
            args.remove(1);
            Part::Daemon
        }
        (_, Some("system"))
            if args.get(2).is_some_and(|word| word == "import-containerd" || word == "unmount") =>
        {
            args.remove(1);
            Part::Daemon
        }
        (_, Some("ctr")) => {
            args.remove(1);
            Part::Ctr
        }
        (_, Some("runtime")) => {
            args.remove(1);
            Part::Runtime
        }
        _ => Part::CommandLine,
    };
    match part {
        Part::Daemon => daemon::main(args, embedded::programs()),
        // The shim is that too, and starts in a tenth of the time.
        Part::Runtime => match embedded::programs().shim {
            Some(small) => runtime::cli::main_in(small.bytes, args),
            None => runtime::cli::main(args),
        },
        Part::CommandLine => cli::main(args),
        Part::Ctr => cli::ctr::main(args),
    }
}

enum Part {
    CommandLine,
    Ctr,
    Daemon,
    Runtime,
}
