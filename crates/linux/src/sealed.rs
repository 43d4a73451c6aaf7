//! Execution from a copy of this program that cannot be written to.
//!
//! A container can open the program of a process that enters it (`/proc/PID/exe`), and could overwrite it on the host:
//! CVE-2019-5736. So a program that enters containers first executes itself again from a detached, read-only bind mount
//! of its file: the same pages of memory, but without a path to open them for writing.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, memfd_create};
use types::{Context, Error, ErrorKind, Result};

use crate::mount;

/// No writes, and no change of the seals.
const SEALS: SealFlags =
    SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// Marks the second start. Removed from the environment once read.
const MARK: &str = "_HOIST_SEALED";

/// Returns in a process whose program cannot be written to; otherwise executes the calling program again, with the same
/// arguments, from a sealed copy.
///
/// The caller must have a single thread.
pub fn ensure() -> Result<()> {
    if std::env::var_os(MARK).is_none() {
        return Err(reexecute());
    }
    clear_mark();
    // Not retried: that might loop for ever.
    check().context(|| format!("{MARK} is set"))
}

/// Fails if this process's program could be written to.
pub fn check() -> Result<()> {
    if is_sealed() {
        return Ok(());
    }
    Err(Error::failed_precondition(
        "this program can be written to, and must not be what enters containers (CVE-2019-5736)",
    ))
}

/// Whether this is the second start of [`ensure`].
pub fn is_marked() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Executes a program from sealed memory, as [`ensure`] requires, in place of the calling one. Returns only on failure,
/// with the calling program unchanged.
pub fn execute_in_memory(program: &[u8], args: &[OsString]) -> Error {
    let memory = in_memory(|file| file.write_all(program)).context(|| "write a program to memory");
    match memory {
        Ok(memory) => execute_marked(&memory, args.iter().cloned()),
        Err(error) => error,
    }
}

fn is_sealed() -> bool {
    let on_read_only_mount = rustix::fs::statvfs("/proc/self/exe")
        .is_ok_and(|mount| mount.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    let is_sealed_copy = || -> io::Result<bool> {
        let program = rustix::fs::open("/proc/self/exe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(rustix::fs::fcntl_get_seals(program)?.contains(SEALS))
    };
    on_read_only_mount || is_sealed_copy().unwrap_or(false)
}

#[expect(unsafe_code, reason = "the environment is changed")]
fn clear_mark() {
    // SAFETY: whoever calls `ensure` has a single thread (its documentation demands it).
    unsafe { std::env::remove_var(MARK) };
}

/// Returns only on failure.
fn reexecute() -> Error {
    match open_program() {
        Ok(program) => execute_marked(&program, std::env::args_os()),
        Err(error) => error,
    }
}

fn execute_marked(program: &OwnedFd, args: impl Iterator<Item = OsString>) -> Error {
    let environment = std::env::vars_os().map(|(key, value)| {
        let mut entry = key;
        entry.push("=");
        entry.push(value);
        entry
    });
    let environment = strings(environment.chain([OsString::from(format!("{MARK}=1"))]));
    let error = execute_fd(program, &strings(args), &environment);
    Error::new(error.kind().into(), "execute our own program from where nobody can write to it")
        .with_source(error)
}

/// The calling program, to be executed as `/proc/self/fd/N`, in a form that cannot be written to: on a detached
/// read-only mount, or, for a caller that may not mount, as a sealed copy in memory.
pub fn open_program() -> Result<OwnedFd> {
    match open_on_read_only_mount() {
        Err(error) if error.is(ErrorKind::PermissionDenied) => copy_to_memory(),
        other => other,
    }
}

fn open_on_read_only_mount() -> Result<OwnedFd> {
    // Through the link, so that a program that was replaced on disk is not mixed with this one.
    let tree = mount::clone_path(Path::new("/proc/self/exe"), false)?;
    mount::set_attributes(tree.as_fd(), mount::Attributes::READ_ONLY, false)?;
    // `O_PATH` would be enough to execute a binary.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(crate::beneath::proc_path(tree.as_fd()), flags, Mode::empty())
        .map_err(io::Error::from)
        .context(|| "open our own program on a read-only mount")
}

fn copy_to_memory() -> Result<OwnedFd> {
    let copy = in_memory(|file| io::copy(&mut File::open("/proc/self/exe")?, file).map(drop));
    copy.context(|| "copy our own program to memory")
}

/// A sealed file in memory, filled by `fill`.
fn in_memory(fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Since Linux 6.3 executable memory must be requested (memfd_create(2)).
    let memory = match memfd_create("hoist", flags | MemfdFlags::from_bits_retain(libc::MFD_EXEC)) {
        Err(rustix::io::Errno::INVAL) => memfd_create("hoist", flags)?,
        other => other?,
    };
    let mut memory = File::from(memory);
    fill(&mut memory)?;
    rustix::fs::fcntl_add_seals(&memory, SEALS)?;
    Ok(memory.into())
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
