//! Processes: made by clone3(2), and referred to by pidfd, as a pid may be reused.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal, waitid,
};
use types::{Context, Error, ErrorKind, Result};

/// Bounds of [`kill_tree`]: how often descendants are searched, and how many are killed, so that a process that forks
/// without end cannot keep it busy for ever.
const TREE_ROUNDS_MAX: usize = 64;
const TREE_MAX: usize = 1024;
/// How long an ended thread may still be counted, on a busy host.
const ENDING_MAX: Duration = Duration::from_secs(1);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    Code(u8),
    Signal(u8),
}

impl ExitStatus {
    /// As shells and runtimes report it: 128 + n for signal n.
    pub fn code(self) -> u32 {
        match self {
            ExitStatus::Code(code) => code.into(),
            ExitStatus::Signal(signal) => 128 + u32::from(signal),
        }
    }
}

/// A handle of a process, which stays valid when its pid is reused.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for PidFd {
    fn from(fd: OwnedFd) -> PidFd {
        PidFd(fd)
    }
}

impl From<PidFd> for OwnedFd {
    fn from(pidfd: PidFd) -> OwnedFd {
        pidfd.0
    }
}

impl PidFd {
    /// `NotFound` if there is no such process.
    pub fn open(pid: u32) -> Result<PidFd> {
        let what = || format!("open process {pid}");
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let number = number.ok_or_else(|| Error::invalid_argument(what()))?;
        match pidfd_open(number, PidfdFlags::empty()) {
            Ok(fd) => Ok(PidFd(fd)),
            // For a process that is being reaped, and for a thread, kernels return one of these errors.
            Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => {
                Err(Error::not_found(format!("process {pid} is gone")))
            }
            Err(errno) => Err(io::Error::from(errno)).context(what),
        }
    }

    /// `NotFound` if the process has ended.
    pub fn signal(&self, signal: u32) -> Result<()> {
        let what = || format!("send signal {signal}");
        // rustix does not name real-time signals.
        match send_signal(self.as_fd(), signal) {
            Ok(()) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                Err(Error::not_found("process already finished"))
            }
            Err(error) => Err(error).context(what),
        }
    }

    /// Sends `SIGKILL`. `NotFound` once the process has ended and was reaped.
    pub fn kill(&self) -> Result<()> {
        match pidfd_send_signal(&self.0, Signal::KILL) {
            Ok(()) => Ok(()),
            Err(Errno::SRCH) => Err(Error::not_found("process already finished")),
            Err(errno) => Err(io::Error::from(errno)).context(|| "kill process"),
        }
    }

    /// Waits for the end of a child, and reaps it.
    pub fn wait(&self) -> Result<ExitStatus> {
        loop {
            match self.wait_with(WaitIdOptions::EXITED) {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Kills a child and reaps it. A child that the kernel does not let die within a second, as in a read from a dead
    /// file server, is left to whatever reaps the children of the calling process later.
    pub fn end(&self) {
        const LETS_GO_MAX: Duration = Duration::from_secs(1);
        // It may have ended already.
        let _ = self.kill();
        if wait_readable(self.as_fd(), Some(LETS_GO_MAX)).unwrap_or(false) {
            let _ = self.wait();
        }
    }

    /// Reaps a child that has ended; None while it runs.
    pub fn try_wait(&self) -> Result<Option<ExitStatus>> {
        self.wait_with(WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }

    fn wait_with(&self, options: WaitIdOptions) -> Result<Option<ExitStatus>> {
        match waitid(WaitId::PidFd(self.0.as_fd()), options) {
            Ok(status) => Ok(status.and_then(|status| exit_status(&status))),
            Err(Errno::INTR) => Ok(None),
            Err(errno) => Err(io::Error::from(errno)).context(|| "wait for process"),
        }
    }

    /// Duplicates a descriptor of the process by its number (pidfd_getfd(2)). Needs the right to trace the process.
    pub fn descriptor(&self, number: i32) -> Result<OwnedFd> {
        rustix::process::pidfd_getfd(&self.0, number, rustix::process::PidfdGetfdFlags::empty())
            .map_err(io::Error::from)
            .context(|| format!("copy descriptor {number} of the process"))
    }

    /// True once the process has ended, child or not.
    pub fn has_ended(&self) -> bool {
        match send_signal(self.as_fd(), 0) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => true,
            // A pidfd is readable when its process is a zombie or gone.
            _ => wait_readable(self.as_fd(), Some(Duration::ZERO)).unwrap_or(false),
        }
    }
}

fn exit_status(status: &WaitIdStatus) -> Option<ExitStatus> {
    let byte = |number: i32| u8::try_from(number & 0xff).expect("masked");
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(ExitStatus::Code(byte(code))),
        (None, Some(signal)) => Some(ExitStatus::Signal(byte(signal))),
        (None, None) => None,
    }
}

#[expect(unsafe_code, reason = "rustix sends named signals only")]
fn send_signal(pidfd: BorrowedFd<'_>, signal: u32) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo makes the kernel fill in its own.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Which side of a clone the caller is on.
pub enum Cloned {
    Parent { pid: u32, pidfd: PidFd },
    Child,
}

/// Forks the calling process with new namespaces (`CLONE_NEW…`), optionally directly into a cgroup of version 2.
///
/// # Safety
///
/// The caller must have a single thread: the child has a copy of everything, locks that other threads
/// held included. The child must end by executing a program or by [`exit_now`].
#[expect(unsafe_code, reason = "the caller's promise is passed on")]
pub unsafe fn clone_process(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned> {
    // SAFETY: the caller promises the same.
    unsafe { clone3(namespaces, cgroup) }
}

/// Like [`clone_process`], but the new process is a child of the caller's parent (`CLONE_PARENT`): the caller gets its
/// pid, the child None. It uses clone(2), as seccomp filters cannot inspect the arguments of clone3, and refuse it.
///
/// # Safety
///
/// As for [`clone_process`].
#[expect(unsafe_code, reason = "the clone of libc wants a stack of the child's own")]
pub unsafe fn clone_sibling(namespaces: u64) -> Result<Option<u32>> {
    // Its end is signalled to the parent like the caller's. The order of the following arguments differs between
    // architectures, but all are zero.
    let flags = namespaces | CLONE_SIBLING;
    // SAFETY: numbers only, and without CLONE_VM the child runs on a copy of this stack. What the child may do is the
    // caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, 0_u64, 0_u64, 0_u64, 0_u64) };
    match u32::try_from(result) {
        Ok(0) => Ok(None),
        Ok(pid) => Ok(Some(pid)),
        Err(_) => Err(clone_error(io::Error::last_os_error())),
    }
}

/// The flags of [`clone_sibling`], beside namespaces.
pub const CLONE_SIBLING: u64 = libc::CLONE_PARENT as u64;

fn clone_error(error: io::Error) -> Error {
    let kind = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EUSERS | libc::EAGAIN) => ErrorKind::ResourceExhausted,
        _ => error.kind().into(),
    };
    Error::new(kind, "clone process").with_source(error)
}

/// # Safety
///
/// As for [`clone_process`].
#[expect(unsafe_code, reason = "clone3 has no wrapper in libc")]
unsafe fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned> {
    const CLONE_PIDFD: u64 = 0x1000;
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    #[repr(C)]
    #[derive(Default)]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    let mut pidfd: libc::c_int = -1;
    let mut args = CloneArgs {
        flags: flags | CLONE_PIDFD,
        pidfd: (&raw mut pidfd).expose_provenance() as u64,
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(cgroup.as_raw_fd()).expect("an open fd");
    }
    // SAFETY: without CLONE_VM the child runs on a copy of this stack; the kernel writes one int through
    // `pidfd`, which lives across the call. What the child may do is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match result {
        0 => Ok(Cloned::Child),
        1.. => {
            // SAFETY: the kernel has just made this descriptor for us.
            let pidfd = PidFd(unsafe { OwnedFd::from_raw_fd(pidfd) });
            Ok(Cloned::Parent { pid: u32::try_from(result).expect("pids are positive"), pidfd })
        }
        _ => Err(clone_error(io::Error::last_os_error())),
    }
}

/// Runs `work` in a forked copy of the calling process, which exits when it returns, and is killed if the caller dies
/// first.
///
/// The copy leads a process group, is the subreaper of its descendants, and has no descriptor from 3 on but those in
/// `kept`. `FailedPrecondition` if the caller has several threads.
#[expect(unsafe_code, reason = "a copy of a process with one thread may do what the process may")]
pub fn run_in_copy(kept: &[BorrowedFd<'_>], work: Box<dyn FnOnce() + '_>) -> Result<u32> {
    check_single_threaded()?;
    let original = rustix::process::getpid();
    // SAFETY: there is one thread, and the child ends below.
    match unsafe { clone_process(0, None) }? {
        Cloned::Parent { pid, .. } => {
            // Both sides set it, so that it is set before either goes on. The child may have done so, or be gone.
            let _ = rustix::process::setpgid(Pid::from_raw(pid.cast_signed()), None);
            Ok(pid)
        }
        Cloned::Child => {
            let ready = || {
                die_with_parent(true)?;
                if rustix::process::getppid() != Some(original) {
                    return Err(Error::failed_precondition("the caller ended before its copy began"));
                }
                // The copy's programs must not inherit the caller's blocked signals.
                crate::signal::unblock_child_signals()?;
                become_subreaper()?;
                let _ = rustix::process::setpgid(None, None);
                // SAFETY: `work` has no other descriptors, and nobody else comes after it.
                unsafe { close_all_but(3, kept) }
            };
            // A panic must not unwind into what is the caller's.
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ready().map(|()| work())));
            exit_now(i32::from(!matches!(done, Ok(Ok(())))))
        }
    }
}

/// Runs `work` in a forked copy of the calling process with new namespaces (`CLONE_NEW…`). If it succeeds the copy
/// stays, idle, and its orphans are reaped by the kernel. Otherwise it exits.
///
/// The copy has no descriptor but `kept`, neither arguments nor environment of the caller's, is killed if the caller
/// dies first until `work` decides otherwise, and cannot be traced. `FailedPrecondition` if the caller has several
/// threads.
#[expect(unsafe_code, reason = "a copy of a process with one thread may do what the process may")]
pub fn stay_in_copy(
    namespaces: u64,
    kept: OwnedFd,
    work: Box<dyn FnOnce(OwnedFd) -> Result<()> + '_>,
) -> Result<(u32, PidFd)> {
    check_single_threaded()?;
    // SAFETY: there is one thread, and the child ends below.
    match unsafe { clone_process(namespaces, None) }? {
        Cloned::Parent { pid, pidfd } => Ok((pid, pidfd)),
        Cloned::Child => {
            let begin = || {
                forbid_tracing()?;
                // SAFETY: `work` takes nothing from there, and nobody else comes after it.
                unsafe { overwrite_arguments() }?;
                die_with_parent(true)?;
                // SAFETY: `work` has no other descriptor, and nobody else comes after it.
                unsafe { close_all_but(0, &[kept.as_fd()]) }?;
                work(kept)
            };
            // A panic must not unwind into what is the caller's.
            match std::panic::catch_unwind(std::panic::AssertUnwindSafe(begin)) {
                Ok(Ok(())) => idle(),
                _ => exit_now(1),
            }
        }
    }
}

/// Overwrites the arguments and the environment of the program, which a process that can read its memory would see
/// (`arg_start` to `env_end` of proc_pid_stat(5)).
///
/// # Safety
///
/// No reference to them exists, and they are not read again.
#[expect(unsafe_code, reason = "the memory is not Rust's")]
unsafe fn overwrite_arguments() -> Result<()> {
    let stat = std::fs::read_to_string("/proc/self/stat").context(|| "read /proc/self/stat")?;
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().skip(45);
    let places: Vec<usize> = fields.map_while(|field| field.parse().ok()).take(4).collect();
    let [arguments, arguments_end, environment, environment_end] = places[..] else {
        return Err(Error::internal("/proc/self/stat is not as proc_pid_stat(5) says"));
    };
    for (start, end) in [(arguments, arguments_end), (environment, environment_end)] {
        let place = std::ptr::with_exposed_provenance_mut::<u8>(start);
        // SAFETY: the kernel has put them there, on the writable stack, for this process alone.
        unsafe { place.write_bytes(0, end.saturating_sub(start)) };
    }
    Ok(())
}

/// Sleeps for ever. Children are reaped by the kernel (wait(2), "SIG_IGN"), and SIGUSR1 does not end it
/// ([`crate::signal::ignore_usr1`]).
#[expect(unsafe_code, reason = "signal actions have no safe wrapper in rustix")]
fn idle() -> ! {
    reset_signals();
    // SAFETY: SIG_IGN needs no handler to stay alive; pause has no arguments.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        libc::signal(libc::SIGUSR1, libc::SIG_IGN);
        loop {
            libc::pause();
        }
    }
}

/// A joined thread may be counted for a moment until the kernel has removed it.
fn check_single_threaded() -> Result<()> {
    let begun = Instant::now();
    // One entry for each thread, beside the directory itself and its parent (proc(5)).
    while std::fs::metadata("/proc/self/task").context(|| "count threads")?.nlink() > 3 {
        if begun.elapsed() > ENDING_MAX {
            return Err(Error::failed_precondition("a process with several threads cannot go on as two"));
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// Kills the processes of a group, which may be empty.
pub fn kill_group(leader: u32) {
    if let Some(leader) = Pid::from_raw(leader.cast_signed()) {
        let _ = rustix::process::kill_process_group(leader, Signal::KILL);
    }
}

/// Kills a process with its process group, if it leads one, and its descendants in whatever groups and sessions they
/// are. Orphans that were reparented before are not found (credentials(7)).
///
/// Processes are stopped first, until no further ones are found, so that none forks meanwhile. A pid is only used
/// through a pidfd whose parent was checked after it was opened.
pub fn kill_tree(number: u32, root: PidFd) {
    let stop = |process: &PidFd| process.signal(Signal::STOP.as_raw().cast_unsigned()).is_ok();
    if !stop(&root) {
        return;
    }
    let mut tree = vec![(number, root)];
    for _ in 0..TREE_ROUNDS_MAX {
        let before = tree.len();
        for further in numbers() {
            let has = |number: u32| tree.iter().any(|(ours, _)| *ours == number);
            let is_child = || parent(further).is_some_and(has);
            if tree.len() < TREE_MAX
                && !has(further)
                && is_child()
                && let Ok(process) = PidFd::open(further)
                && is_child()
                && stop(&process)
            {
                tree.push((further, process));
            }
        }
        if tree.len() == before {
            break;
        }
    }
    let leader = Pid::from_raw(number.cast_signed());
    if leader.is_some_and(|leader| rustix::process::getpgid(Some(leader)) == Ok(leader)) {
        kill_group(number);
    }
    for (_, process) in &tree {
        let _ = process.kill();
    }
}

/// The pids of all processes in `/proc`.
fn numbers() -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// proc_pid_stat(5): the command name, in parentheses, may contain anything.
fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let behind = stat.iter().rposition(|letter| *letter == b')')?;
    let rest = std::str::from_utf8(&stat[behind + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Waits until a descriptor is readable, as a pidfd is when its process has ended. False after the timeout; signals do
/// not shorten it.
pub fn wait_readable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<bool> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map(Timespec::try_from).transpose().map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], left.as_ref()) {
            Err(Errno::INTR) => {}
            other => return Ok(other? > 0),
        }
    }
}

/// Exits without running exit handlers.
#[expect(unsafe_code, reason = "the child of a fork must not run the parent's exit handlers")]
pub fn exit_now(code: i32) -> ! {
    // SAFETY: a number goes in, and no memory of ours is touched; it does not return unless a filter refuses it.
    unsafe { libc::syscall(libc::SYS_exit_group, code) };
    // A seccomp filter may refuse even that, and the C library would retry for ever. An invalid instruction ends the
    // process too.
    std::process::abort()
}

/// Makes this process the parent of its descendants' orphans (`PR_SET_CHILD_SUBREAPER`).
pub fn become_subreaper() -> Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1).context(|| "become subreaper")
}

/// Forbids tracing of this process, and access to its `/proc` directory (`PR_SET_DUMPABLE`).
pub fn forbid_tracing() -> Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0).context(|| "prctl(PR_SET_DUMPABLE)")
}

/// Reverts [`forbid_tracing`]: processes of the same user, or of the user namespace, may trace this one.
pub fn allow_tracing() -> Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 1).context(|| "prctl(PR_SET_DUMPABLE)")
}

/// Programs that this process executes gain no privileges (`no_new_privs`).
pub fn forbid_new_privileges() -> Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).context(|| "prctl(PR_SET_NO_NEW_PRIVS)")
}

/// Whether this process is killed when its parent dies. Survives exec unless ids change.
pub fn die_with_parent(die: bool) -> Result<()> {
    let signal = if die { libc::SIGKILL.cast_unsigned() } else { 0 };
    prctl(libc::PR_SET_PDEATHSIG, u64::from(signal)).context(|| "prctl(PR_SET_PDEATHSIG)")
}

#[expect(unsafe_code, reason = "these options of prctl take numbers only")]
fn prctl(option: libc::c_int, value: u64) -> io::Result<()> {
    // SAFETY: no option used in this module takes a pointer.
    let result = unsafe { libc::prctl(option, value, 0_u64, 0_u64, 0_u64) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Marks all descriptors from `first` on close-on-exec, so that programs do not inherit descriptors that this process
/// inherited.
#[expect(unsafe_code, reason = "nothing safe offers close_range")]
pub fn keep_from_programs(first: u32) -> Result<()> {
    let flag = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: numbers only, and no descriptor is closed.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flag) };
    if result < 0 { Err(io::Error::last_os_error()).context(|| "close_range") } else { Ok(()) }
}

/// Closes all descriptors from `first` on, except `kept`.
///
/// Close-on-exec comes too late for a path that leads through a descriptor: execve(2) looks up the program first
/// (CVE-2024-21626).
///
/// # Safety
///
/// Nothing that owned one of the closed descriptors may be used or dropped afterwards. The child of a fork
/// that never returns to its parent's code keeps to that.
#[expect(unsafe_code, reason = "descriptors are closed behind the backs of their owners")]
pub unsafe fn close_all_but(first: u32, kept: &[BorrowedFd<'_>]) -> Result<()> {
    let close = |from: u32, to: u32| {
        // SAFETY: numbers only; whose they were is the caller's promise.
        let result = unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
        if result < 0 { Err(io::Error::last_os_error()).context(|| "close_range") } else { Ok(()) }
    };
    let numbers = kept.iter().filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok());
    let mut numbers: Vec<u32> = numbers.filter(|number| *number >= first).collect();
    numbers.sort_unstable();
    let mut next = first;
    for number in numbers {
        if number > next {
            close(next, number - 1)?;
        }
        next = number + 1;
    }
    close(next, u32::MAX)
}

/// Gives every signal its default action, and unblocks all, as a new program expects.
#[expect(unsafe_code, reason = "signal actions have no safe wrapper in rustix")]
pub fn reset_signals() {
    // SAFETY: SIG_DFL needs no handler to stay alive; numbers that cannot be set are refused harmlessly.
    // The set is initialised by sigemptyset before it is read.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Makes the termination signals end this process while it waits as a pid namespace's first process, which ignores them
/// by default (pid_namespaces(7)). As with shells, the exit code is 128 and the signal's number. A program that is
/// executed gets the default actions.
#[expect(unsafe_code, reason = "signal actions have no safe wrapper in rustix")]
pub fn exit_on_termination_signals() {
    extern "C" fn end(number: libc::c_int) {
        // SAFETY: _exit may be called from a handler (signal-safety(7)).
        unsafe { libc::_exit(128 + number) }
    }
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
        // SAFETY: the handler calls what handlers may.
        unsafe { libc::signal(signal, end as *const () as libc::sighandler_t) };
    }
}

/// Makes a write to a broken pipe fail instead of ending the process.
#[expect(unsafe_code, reason = "signal actions have no safe wrapper in rustix")]
pub fn ignore_broken_pipes() {
    // SAFETY: SIG_IGN needs no handler to stay alive.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Executes a program in place of the calling one. Returns only on failure.
#[expect(unsafe_code, reason = "execve takes arrays of pointers")]
pub fn execute(path: &std::ffi::CStr, args: &[std::ffi::CString], env: &[std::ffi::CString]) -> io::Error {
    let pointers = |strings: &[std::ffi::CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end in null and point to strings that live across the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::zombie_processes, reason = "reaped by its descriptor, which is what is tested")]
    fn a_child_is_signalled_and_reaped_by_its_descriptor() {
        let child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pidfd = PidFd::open(child.id()).unwrap();
        assert!(!pidfd.has_ended());
        assert_eq!(pidfd.try_wait().unwrap(), None);
        pidfd.signal(15).unwrap();
        assert_eq!(pidfd.wait().unwrap(), ExitStatus::Signal(15));
        assert_eq!(pidfd.signal(15).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(pidfd.has_ended());
    }

    #[test]
    fn a_thread_is_no_process() {
        let opened = std::thread::spawn(|| PidFd::open(rustix::thread::gettid().as_raw_pid().unsigned_abs()));
        assert_eq!(opened.join().unwrap().unwrap_err().kind(), ErrorKind::NotFound);
    }

    /// A shell with two nested sessions, and a program in its own group whose parent has ended.
    #[test]
    #[expect(clippy::zombie_processes, reason = "reaped by its descriptor")]
    fn a_tree_is_killed_across_sessions() {
        use std::io::Read as _;
        use std::os::unix::process::CommandExt as _;
        // All of them hold the pipe open.
        let script = "setsid sh -c 'setsid sleep 1000 & echo; wait' & (sleep 1000 &); echo; wait";
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script]).process_group(0).stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (mut said, mut begun) = (child.stdout.take().unwrap(), [0; 2]);
        said.read_exact(&mut begun).unwrap();
        let root = PidFd::open(child.id()).unwrap();
        kill_tree(child.id(), PidFd::open(child.id()).unwrap());
        assert_eq!(root.wait().unwrap(), ExitStatus::Signal(9));
        assert!(
            wait_readable(said.as_fd(), Some(Duration::from_secs(10))).unwrap(),
            "somebody holds the pipe"
        );
        assert_eq!(said.read(&mut begun).unwrap(), 0);
        // A process that has ended has no tree.
        kill_tree(child.id(), root);
    }

    /// The test harness has threads, which prevent more; the shim's tests cover success.
    #[test]
    fn a_process_with_threads_is_not_copied() {
        let refused = std::thread::spawn(|| run_in_copy(&[], Box::new(|| ())).unwrap_err()).join().unwrap();
        assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    }

    #[test]
    fn exit_codes_are_those_of_shells() {
        assert_eq!(ExitStatus::Code(3).code(), 3);
        assert_eq!(ExitStatus::Signal(9).code(), 137);
    }
}
