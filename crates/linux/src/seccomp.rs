//! System call filters (seccomp(2)): from a profile of the OCI spec to a program of the kernel.
//!
//! ```text
//! LinuxSeccomp ─ compile ─▶ Program ─ load ─▶ the calling thread, and all it becomes
//!
//! architecture? ─┬▶ x86_64: number? ─▶ binary search over ranges ─▶ verdict, or tests of arguments
//!                ├▶ x86:    …
//!                └▶ another: kill
//! ```
//!
//! Profiles are interpreted as by runc and libseccomp:
//! - names that a kernel or an architecture lacks are ignored;
//! - calls newer than any that the profile names return `ENOSYS`, so that programs fall back, unless the default is to
//!   allow;
//! - a rule without argument tests beats rules with tests; rules with tests are tried in order, and a rule that tests
//!   one argument twice holds if any of its tests does;
//! - rules with the default's action are ignored.

mod assemble;
mod compile;
mod judge;
mod numbers;
mod profile;

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};

use types::{Error, Result};

pub use self::compile::{ACTIONS, FLAGS, architecture_names, compile, operators};
pub use self::profile::default_profile;

/// An architecture, as in `SCMP_ARCH_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Architecture {
    X86_64,
    X86,
    X32,
    Aarch64,
    Arm,
    Riscv64,
}

/// An instruction of a filter: `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    operand: u32,
}

/// A compiled filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    instructions: Vec<Instruction>,
    flags: u32,
}

/// `SECCOMP_FILTER_FLAG_*` (`linux/seccomp.h`).
mod flag {
    pub(super) const TSYNC: u32 = 1;
    pub(super) const LOG: u32 = 1 << 1;
    pub(super) const SPEC_ALLOW: u32 = 1 << 2;
    pub(super) const NEW_LISTENER: u32 = 1 << 3;
    pub(super) const TSYNC_ESRCH: u32 = 1 << 4;
    pub(super) const WAIT_KILLABLE_RECV: u32 = 1 << 5;
}

impl Program {
    /// Number of instructions. The kernel accepts up to 4096.
    pub fn len(&self) -> usize {
        self.instructions.len()
    }

    /// Whether there are no instructions.
    pub fn is_empty(&self) -> bool {
        self.instructions.is_empty()
    }

    /// Whether [`load`] will return a listener for a supervisor.
    pub fn has_listener(&self) -> bool {
        self.flags & flag::NEW_LISTENER != 0
    }

    /// Encodes flags, and eight bytes for each instruction, in native byte order: for files on this machine only.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 + 8 * self.instructions.len());
        bytes.extend_from_slice(&self.flags.to_ne_bytes());
        for step in &self.instructions {
            bytes.extend_from_slice(&step.code.to_ne_bytes());
            bytes.extend_from_slice(&[step.if_true, step.if_false]);
            bytes.extend_from_slice(&step.operand.to_ne_bytes());
        }
        bytes
    }

    /// The reverse of [`Program::to_bytes`]. The kernel checks the instructions when they are loaded.
    pub fn from_bytes(bytes: &[u8]) -> Result<Program> {
        let damaged = || Error::data_loss("compiled system call filter is damaged");
        let (flags, steps) = bytes.split_first_chunk().ok_or_else(damaged)?;
        let (steps, rest) = steps.as_chunks::<8>();
        if steps.is_empty() || !rest.is_empty() {
            return Err(damaged());
        }
        let instructions = steps.iter().map(|[c0, c1, if_true, if_false, operand @ ..]| Instruction {
            code: u16::from_ne_bytes([*c0, *c1]),
            if_true: *if_true,
            if_false: *if_false,
            operand: u32::from_ne_bytes(*operand),
        });
        Ok(Program { instructions: instructions.collect(), flags: u32::from_ne_bytes(*flags) })
    }
}

/// Loads a filter for the calling thread (with the flag TSYNC, for all threads), and returns its listener if it has
/// one.
///
/// The thread must have `no_new_privs` or `CAP_SYS_ADMIN`. Allocates nothing, so it may run between clone and exec.
#[expect(unsafe_code, reason = "seccomp(2) has no safe face")]
pub fn load(program: &Program) -> io::Result<Option<OwnedFd>> {
    let len =
        libc::c_ushort::try_from(program.instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let steps = libc::sock_fprog { len, filter: program.instructions.as_ptr().cast_mut().cast() };
    // SAFETY: `steps` points to as many instructions as it says, laid out as the kernel's, and the kernel
    // only reads them. A non-negative answer with NEW_LISTENER is a new descriptor, which is ours.
    unsafe {
        let answer =
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, program.flags, &raw const steps);
        match i32::try_from(answer) {
            Ok(fd) if fd >= 0 && program.has_listener() => Ok(Some(OwnedFd::from_raw_fd(fd))),
            Ok(0) => Ok(None),
            // With TSYNC: the id of a thread that could not be synchronized.
            Ok(thread) if thread > 0 => Err(io::ErrorKind::ResourceBusy.into()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
