//! The first process of a container that asks for one (`run --init`): it starts the program, forwards signals to it,
//! reaps orphans, and exits with the program's exit code.
//!
//! ```text
//! init (1) ──▶ program (a group of its own, in the foreground of the terminal)
//!    ▲  │          │
//!    │  └─ signals ┘
//!    └──── ends of all processes whose parents are gone
//! ```
//!
//! The kernel delivers no signal to a pid namespace's first process that has no handler for it, and makes that process
//! the parent of orphans (pid_namespaces(7)). Few programs are written for either. This mode runs if the program is
//! called [`NAME`], with the container's program and its arguments.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, ExitCode};

use linux::process::PidFd;
use linux::{signal, spawn};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::WaitOptions;
use types::{Context, Result};

/// The name by which the runtime calls this program in containers.
const NAME: &str = "hoist-init";
/// Exit codes as shells have them: the program was not found, cannot be executed, or init itself failed.
const NOT_FOUND: u8 = 127;
const NOT_RUN: u8 = 126;
const FAILED: u8 = 125;

/// Whether this program was called as init.
pub(crate) fn is_called(program: &OsString) -> bool {
    Path::new(program).file_name().is_some_and(|name| name == NAME)
}

/// `args` are the program and its arguments, perhaps after `--`.
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    let args = args.strip_prefix(&["--".into()][..]).unwrap_or(args);
    let Some((program, arguments)) = args.split_first() else {
        eprintln!("{NAME}: the program to run is missing");
        return ExitCode::from(FAILED);
    };
    match run(program, arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{NAME}: {}", error.chain());
            ExitCode::from(FAILED)
        }
    }
}

fn run(program: &OsString, arguments: &[OsString]) -> Result<u8> {
    // From here on no signal is lost: those that come before the program runs stay pending.
    let (signals, children) = (signal::forwarded_signals()?, signal::child_signals()?);
    let mut command = Command::new(program);
    command.args(arguments);
    let child = match spawn::in_foreground(command) {
        Ok(child) => child.id(),
        Err(error) => {
            eprintln!("{NAME}: execute {}: {error}", program.display());
            return Ok(if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { NOT_RUN });
        }
    };
    let program = PidFd::open(child)?;
    loop {
        let mut wanted = [&signals, &children].map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN));
        match rustix::event::poll(&mut wanted, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(std::io::Error::from(error)).context(|| "wait for signals"),
        }
        while let Some(signal) = signal::next(&signals).context(|| "read a signal")? {
            // The program may have ended just now.
            let _gone = program.signal(signal.number().unsigned_abs());
        }
        signal::drain(&children);
        if let Some(code) = reap(child)? {
            return Ok(code);
        }
    }
}

/// Reaps all children that have ended; returns the program's exit code if it was among them.
fn reap(program: u32) -> Result<Option<u8>> {
    let mut code = None;
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get().unsigned_abs() == program => {
                let signal = || status.terminating_signal().map(|signal| 128 + signal);
                code = status.exit_status().or_else(signal).and_then(|code| u8::try_from(code).ok());
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(Errno::CHILD) => return Ok(code),
            Err(Errno::INTR) => {}
            Err(error) => return Err(std::io::Error::from(error)).context(|| "reap a process"),
        }
    }
}
