//! How exec enters a container: the code of its child processes.
//!
//! ```text
//! intermediate: Go ─▶ cgroup ─▶ namespaces ─▶ keyring, streams ─▶ close fds ─▶ limits, user, capabilities ─▶ filter
//!               ─▶ clone a sibling, send its Pid ─▶ exit
//! process:      Go ─▶ session, terminal ─▶ exec
//! ```
//!
//! A process in the container that has `CAP_SYS_PTRACE`, and no user namespace of its own, can trace every process that
//! it sees: those of its pid namespace, which a process is only in from its clone on. So the process is cloned when
//! everything it has is already the container's: root, namespaces, descriptors, user, capabilities, filter. The
//! container never sees the intermediate process.
//!
//! The exception are seccomp filters that would forbid the clone or setsid(2), or would ask a supervisor that does not
//! know of the process yet. Such a process loads its filter itself, as its last step.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use linux::beneath::Root;
use linux::cgroup::Entry;
use linux::ns::{self, NsKind};
use linux::process::{self, CLONE_SIBLING, PidFd};
use linux::tty::{self, Pty};
use rustix::fs::OFlags;
use types::spec::runtime::Process;
use types::{Context, Error, ErrorKind, Result};

use crate::channel::{Channel, Message};
use crate::exec::ExecOptions;
use crate::plan::Stdio;
use crate::program::{self, Execution, Filter, ProcessSetup};
use crate::scheduling;

/// How many processes the intermediate process makes.
pub(crate) const SIBLINGS: u64 = 1;

/// All that is needed to enter, opened and looked up beforehand.
pub(crate) struct Plan<'a> {
    pub(crate) process: &'a Process,
    pub(crate) init: PidFd,
    /// Namespaces to join.
    pub(crate) kinds: Vec<NsKind>,
    /// None if the container has no cgroup.
    pub(crate) entry: Option<Entry>,
    pub(crate) setup: ProcessSetup,
    pub(crate) keyring: Option<String>,
    pub(crate) options: ExecOptions,
}

/// Enters; on failure reports to the parent and exits.
pub(crate) fn main(plan: Plan<'_>, channel: &Channel) -> ! {
    let Err(error) = run(plan, channel);
    // The parent may have died.
    let _ = channel.write(&Message::Failed(error.kind(), error.chain()));
    process::exit_now(match error.kind() {
        ErrorKind::NotFound => 127,
        ErrorKind::PermissionDenied => 126,
        _ => 1,
    })
}

fn run(plan: Plan<'_>, channel: &Channel) -> Result<Infallible> {
    match channel.receive()? {
        Some(Message::Go) => {}
        _ => return Err(Error::aborted("the parent went away")),
    }
    // The container's processes must not trace this one. Not earlier, as a user may not set the oom score of a process
    // that is not dumpable, not even its own.
    process::forbid_tracing()?;
    enter_cgroup(&plan)?;
    if !plan.kinds.is_empty() {
        ns::join_process(plan.init.as_fd(), &plan.kinds)?;
    }
    if plan.kinds.contains(&NsKind::User) {
        program::become_root_of_user_namespace()?;
        process::forbid_tracing()?;
    }
    if let Some(keyring) = &plan.keyring {
        plan.setup.labels.apply_to_keys(&plan.setup.proc)?;
        program::join_keyring(keyring)?;
    }
    let Plan { process, init, entry, setup, options, .. } = plan;
    drop((init, entry));
    let ExecOptions { stdio, preserve_fds, .. } = options;
    let has_terminal = matches!(stdio, Stdio::Terminal { .. });
    set_streams(stdio, process, channel)?;
    let kept = [channel.as_fd(), setup.proc.as_fd()];
    // SAFETY: the other descriptors belong to the parent's code, to which this process never returns.
    #[expect(unsafe_code, reason = "descriptors of the caller that must not reach the container")]
    unsafe {
        process::close_all_but(preserve_fds.saturating_add(3), &kept)?;
    }
    program::set_limits(process, SIBLINGS, channel)?;
    let is_filter_first =
        setup.filter.as_ref().is_none_or(|filter| allows_sibling(filter, process, has_terminal));
    let has_listener = setup.has_listener();
    let unfiltered = program::become_user(process, setup)?;
    let execution = Execution::prepare(program::find(process)?, process);
    process::reset_signals();
    if !has_listener {
        program::lower_file_limit(process)?;
    }
    if is_filter_first {
        unfiltered.load_filter(channel)?;
        become_sibling(process, channel, has_terminal)?;
    } else {
        become_sibling(process, channel, has_terminal)?;
        unfiltered.load_filter(channel)?;
    }
    if has_listener {
        program::lower_file_limit(process)?;
    }
    Err(execution.begin())
}

/// Adds which limits forbid a further process.
pub(crate) fn limit_error(error: Error) -> Error {
    if !error.is(ErrorKind::ResourceExhausted) {
        return error;
    }
    error.context(
        "there is no room for another process: the container's limit (pids.max) and the user's (RLIMIT_NPROC) must have \
         room for two more; update --pids-limit raises the first",
    )
}

/// Clones a sibling and goes on as that: a process of the container, with its own session. The sibling waits until the
/// parent has its pid.
fn become_sibling(process: &Process, channel: &Channel, has_terminal: bool) -> Result<()> {
    // SAFETY: this process is a copy of a single thread, and ends in `main`.
    #[expect(unsafe_code, reason = "the one place where a process is born into a container that runs")]
    if let Some(pid) = unsafe { process::clone_sibling(0) }.map_err(limit_error)? {
        // If the message is lost, the sibling is never told to go on, and ends.
        let _ = channel.write(&Message::Pid(pid));
        process::exit_now(0)
    }
    channel.wait_for_go().context(|| "wait for the parent")?;
    program::lower_process_limit(process)?;
    rustix::process::setsid().map_err(io::Error::from).context(|| "begin a session")?;
    if has_terminal { tty::control(io::stdin().as_fd()) } else { Ok(()) }
}

/// Whether a filter allows the system calls between it and the program.
fn allows_sibling(filter: &Filter, process: &Process, has_terminal: bool) -> bool {
    let calls = &filter.program;
    let terminal = [io::stdin().as_raw_fd().unsigned_abs().into(), tty::CONTROL, 0, 0, 0, 0];
    (!calls.has_listener() || is_silent_before_clone(filter, process))
        && calls.allows(libc::SYS_clone, [CLONE_SIBLING, 0, 0, 0, 0, 0])
        && calls.allows(libc::SYS_setsid, [0; 6])
        && (!has_terminal || calls.allows(libc::SYS_ioctl, terminal))
        && (program::process_limit(process).is_none() || calls.allows(libc::SYS_prlimit64, [0; 6]))
}

/// Whether a filter asks its supervisor nothing before the clone. Only then can the supervisor know the process that it
/// answers for; the intermediate process would wait for ever. What remains is to hear that the parent has the listener,
/// to give up the capability to load a filter, to close descriptors, to allocate and free memory, and to exit.
fn is_silent_before_clone(filter: &Filter, process: &Process) -> bool {
    const LEFT: [libc::c_long; 9] = [
        libc::SYS_read,
        libc::SYS_close,
        libc::SYS_brk,
        libc::SYS_madvise,
        libc::SYS_mmap,
        // The heap of the shim grows by it (`linux::heap::DenseHeap`).
        libc::SYS_mprotect,
        libc::SYS_mremap,
        libc::SYS_munmap,
        libc::SYS_exit_group,
    ];
    let asks_nothing = |call: libc::c_long| filter.program.allows(call, [0; 6]);
    (process.no_new_privileges || asks_nothing(libc::SYS_capset)) && LEFT.into_iter().all(asks_nothing)
}

/// Enters the cgroup, with the CPU affinity for before and after (`execCPUAffinity`).
fn enter_cgroup(plan: &Plan<'_>) -> Result<()> {
    let enter = || match &plan.entry {
        Some(entry) => entry.enter().context(|| "enter the cgroup"),
        None => Ok(()),
    };
    let Some(affinity) = &plan.process.exec_cpu_affinity else {
        enter()?;
        scheduling::leave_callers_processors();
        return Ok(());
    };
    scheduling::set_processors(&affinity.initial)?;
    enter()?;
    if let Some(entry) = &plan.entry {
        entry.enter_unified().context(|| "enter the cgroup")?;
    }
    scheduling::set_processors(&affinity.last)
}

fn set_streams(stdio: Stdio, process: &Process, channel: &Channel) -> Result<()> {
    match stdio {
        Stdio::Terminal { size, is_relayed } => {
            // The container's processes may have replaced it by a symbolic link.
            let root = Root::open(Path::new("/"))?;
            let pts = root.open_at(Path::new("/dev/pts"), OFlags::PATH | OFlags::DIRECTORY)?;
            let pty = Pty::open(pts.as_fd(), "ptmx")?;
            channel.send(&Message::Console(pty.master))?;
            if is_relayed {
                tty::keep_line_ends(pty.slave.as_fd())?;
            }
            program::set_terminal(&pty.slave, process, size)
        }
        Stdio::Pipes { stdin, stdout, stderr } => {
            program::set_streams(stdin.as_fd(), stdout.as_fd(), stderr.as_fd())?;
            program::take_null_from_inside()
        }
        Stdio::Inherit => program::take_null_from_inside(),
    }
}

#[cfg(test)]
mod tests {
    use linux::seccomp;
    use types::spec::runtime::{LinuxSeccomp, SeccompRule};

    use super::*;

    /// The supervisor gets the listener after the clone: what asked it before would never be answered.
    #[test]
    fn a_filter_that_asks_before_the_clone_is_loaded_after_it() {
        let is_loaded_before = |call: &str, no_new_privileges: bool| {
            let rule = SeccompRule {
                names: vec![call.into()],
                action: "SCMP_ACT_NOTIFY".into(),
                ..SeccompRule::default()
            };
            let profile = LinuxSeccomp {
                default_action: "SCMP_ACT_ALLOW".into(),
                syscalls: vec![rule],
                ..LinuxSeccomp::default()
            };
            let filter = Filter { program: seccomp::compile(&profile).unwrap() };
            allows_sibling(&filter, &Process { no_new_privileges, ..Process::default() }, false)
        };
        for no_new_privileges in [true, false] {
            assert!(is_loaded_before("mkdirat", no_new_privileges));
            assert!(is_loaded_before("ioctl", no_new_privileges), "without a terminal");
        }
        assert!(is_loaded_before("capset", true));
        assert!(!is_loaded_before("capset", false));
        for call in ["read", "mmap", "mprotect", "mremap", "close", "clone", "setsid"] {
            assert!(!is_loaded_before(call, true), "{call}");
        }
    }
}
