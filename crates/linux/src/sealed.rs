//! Running from a copy of our own program that no one can write to.
//!
//! A process that enters a container can be made to show its program to the container
//! (`/proc/PID/exe`), which could then overwrite it on the host: CVE-2019-5736. So whoever enters
//! containers first executes itself anew from a detached, read-only bind mount of its own file: the same
//! pages of memory, but no path by which they could be opened for writing.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use types::{Context, Error, Result};

use crate::mount;

/// Tells the second start from the first. Removed from the environment once read.
const MARK: &str = "_HOIST_SEALED";

/// True in a process that [`reexecute`] started; clears the mark, so that it is not passed on.
pub fn is_sealed() -> bool {
    let sealed = std::env::var_os(MARK).is_some();
    if sealed && let Ok(mount) = rustix::fs::statvfs("/proc/self/exe") {
        return mount.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
    }
    false
}

/// Executes the calling program again, with the same arguments, from a read-only mount. Returns only on
/// failure.
pub fn reexecute() -> Error {
    match open_program() {
        Ok(program) => {
            let args = strings(std::env::args_os());
            let environment = std::env::vars_os().map(|(key, value)| {
                let mut entry = key;
                entry.push("=");
                entry.push(value);
                entry
            });
            let environment = strings(environment.chain([OsString::from(format!("{MARK}=1"))]));
            let error = execute_fd(&program, &args, &environment);
            Error::new(error.kind().into(), "execute our own program from a read-only mount")
                .with_source(error)
        }
        Err(error) => error,
    }
}

/// The calling program on a read-only mount that is nowhere else: to execute as `/proc/self/fd/N`.
pub fn open_program() -> Result<OwnedFd> {
    // Through the link, so that a program replaced on disk is not picked up half way.
    let tree = mount::clone_path(Path::new("/proc/self/exe"), false)?;
    mount::set_attributes(tree.as_fd(), mount::Attributes::READ_ONLY, false)?;
    // O_PATH of the mount is enough to execute; a plain descriptor makes scripts work too, but we are none.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(crate::beneath::proc_path(tree.as_fd()), flags, Mode::empty())
        .map_err(io::Error::from)
        .context(|| "open our own program on a read-only mount")
}

fn strings(words: impl Iterator<Item = OsString>) -> Vec<CString> {
    words
        .map(|word| CString::new(word.into_vec()).expect("arguments and environment have no zero bytes"))
        .collect()
}

#[expect(unsafe_code, reason = "execveat takes arrays of pointers")]
fn execute_fd(program: &OwnedFd, args: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, environment) = (pointers(args), pointers(environment));
    // SAFETY: both arrays end in null and point to strings that live across the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}
