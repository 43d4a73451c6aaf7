//! Processes: made with clone3(2), named by pidfd, never by a number that could be another's by now.

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

/// How often descendants of a process are looked for, and how many are ended: those of one that makes them without end, too,
/// but not for ever.
const TREE_ROUNDS_MAX: usize = 64;
const TREE_MAX: usize = 1024;
/// How long a thread that has ended is counted at the most, on a host that has much to do.
const ENDING_MAX: Duration = Duration::from_secs(1);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    Code(u8),
    Signal(u8),
}

impl ExitStatus {
    /// As shells and runtimes number it: 128 + n for signal n.
    pub fn code(self) -> u32 {
        match self {
            ExitStatus::Code(code) => code.into(),
            ExitStatus::Signal(signal) => 128 + u32::from(signal),
        }
    }
}

/// A process that can be signalled and waited for, even when its number has been given to another.
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
            // A process that is being reaped, and a thread, are no processes: kernels call them invalid or not there.
            Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => {
                Err(Error::not_found(format!("process {pid} is gone")))
            }
            Err(errno) => Err(io::Error::from(errno)).context(what),
        }
    }

    /// `NotFound` if the process has ended.
    pub fn signal(&self, signal: u32) -> Result<()> {
        let what = || format!("send signal {signal}");
        // Real-time signals have numbers that rustix does not name.
        match send_signal(self.as_fd(), signal) {
            Ok(()) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                Err(Error::not_found("process already finished"))
            }
            Err(error) => Err(error).context(what),
        }
    }

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

    /// Kills a child and reaps it. One that the kernel does not let go within a second, as in a read from a file
    /// server that is gone, is left to whoever reaps its parent's children.
    pub fn end(&self) {
        const LETS_GO_MAX: Duration = Duration::from_secs(1);
        // It may have ended already.
        let _ = self.kill();
        if wait_readable(self.as_fd(), Some(LETS_GO_MAX)).unwrap_or(false) {
            let _ = self.wait();
        }
    }

    /// Reaps a child that has ended; none while it runs.
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

    /// A copy of a descriptor that the process has under this number (pidfd_getfd(2)). Needs the right to
    /// trace it.
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

/// What clone3 made of the caller.
pub enum Cloned {
    Parent { pid: u32, pidfd: PidFd },
    Child,
}

/// Forks the calling process with namespaces of its own (`CLONE_NEW…`), optionally right into a cgroup of
/// version 2.
///
/// # Safety
///
/// The caller must have a single thread: the child has a copy of everything, locks that other threads
/// held included. The child must end by executing a program or by [`exit_now`].
#[expect(unsafe_code, reason = "the caller's promise is passed on")]
pub unsafe fn clone_process(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned> {
    // SAFETY: the caller promises what is asked for.
    unsafe { clone3(namespaces, cgroup) }
}

/// Like [`clone_process`], but what is born is a child of the caller's parent (`CLONE_PARENT`): to the caller it is
/// only a number, None in the child. With clone(2), since filters of system calls cannot look into what clone3 is asked
/// for, and refuse it.
///
/// # Safety
///
/// As for [`clone_process`].
#[expect(unsafe_code, reason = "the clone of libc wants a stack of the child's own")]
pub unsafe fn clone_sibling(namespaces: u64) -> Result<Option<u32>> {
    // The parent is told of its end by the signal by which it is told of ours. The order of what follows is not the
    // same everywhere, but none of it is asked for.
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

/// What [`clone_sibling`] asks for, beside namespaces.
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

/// Runs `work` in a copy of the calling process, which ends when it returns, and is killed if the caller ends first.
///
/// The copy leads a process group, is the parent of what its descendants leave, and has no descriptor from 3 on but
/// those in `kept`: all that `work` has of the caller. `FailedPrecondition` if the caller has several threads.
#[expect(unsafe_code, reason = "a copy of a process with one thread may do what the process may")]
pub fn run_in_copy(kept: &[BorrowedFd<'_>], work: Box<dyn FnOnce() + '_>) -> Result<u32> {
    check_alone()?;
    let original = rustix::process::getpid();
    // SAFETY: there is one thread, and the child ends below.
    match unsafe { clone_process(0, None) }? {
        Cloned::Parent { pid, .. } => {
            // Both do it, so that it is done before either goes on. The child may be faster, or gone.
            let _ = rustix::process::setpgid(Pid::from_raw(pid.cast_signed()), None);
            Ok(pid)
        }
        Cloned::Child => {
            let ready = || {
                die_with_parent(true)?;
                if rustix::process::getppid() != Some(original) {
                    return Err(Error::failed_precondition("the caller ended before its copy began"));
                }
                // What the caller waits for in its own way is not what the copy's programs are to begin with.
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

/// Runs `work` in a copy of the calling process that has namespaces of its own (`CLONE_NEW…`), and that stays, without
/// doing anything, if it succeeds: processes that are left to it are reaped by the kernel. Otherwise it ends.
///
/// It has no descriptor but `door`, neither arguments nor environment of the caller's, is killed if the caller ends first
/// until `work` decides otherwise, and cannot be traced. `FailedPrecondition` if the caller has several threads.
#[expect(unsafe_code, reason = "a copy of a process with one thread may do what the process may")]
pub fn stay_in_copy(
    namespaces: u64,
    door: OwnedFd,
    work: Box<dyn FnOnce(OwnedFd) -> Result<()> + '_>,
) -> Result<(u32, PidFd)> {
    check_alone()?;
    // SAFETY: there is one thread, and the child ends below.
    match unsafe { clone_process(namespaces, None) }? {
        Cloned::Parent { pid, pidfd } => Ok((pid, pidfd)),
        Cloned::Child => {
            let begin = || {
                forbid_tracing()?;
                // SAFETY: `work` takes nothing from there, and nobody else comes after it.
                unsafe { forget_beginnings() }?;
                die_with_parent(true)?;
                // SAFETY: `work` has no other descriptor, and nobody else comes after it.
                unsafe { close_all_but(0, &[door.as_fd()]) }?;
                work(door)
            };
            // A panic must not unwind into what is the caller's.
            match std::panic::catch_unwind(std::panic::AssertUnwindSafe(begin)) {
                Ok(Ok(())) => idle(),
                _ => exit_now(1),
            }
        }
    }
}

/// Overwrites the arguments and the environment that the program was begun with, for whoever may look into it all the
/// same (`arg_start` to `env_end` of proc_pid_stat(5)).
///
/// # Safety
///
/// Nobody has a reference to them, and none of them is asked for again.
#[expect(unsafe_code, reason = "the memory is not Rust's")]
unsafe fn forget_beginnings() -> Result<()> {
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

/// Does nothing for ever. Children that end are reaped by the kernel (wait(2), "SIG_IGN"), and a question does not end it
/// ([`crate::signal::pass_over_question`]).
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

/// A thread that was joined is counted until the kernel is done with it, which may be a moment later.
fn check_alone() -> Result<()> {
    let begun = Instant::now();
    // One entry a thread, beside the directory itself and its parent (proc(5)).
    while std::fs::metadata("/proc/self/task").context(|| "count threads")?.nlink() > 3 {
        if begun.elapsed() > ENDING_MAX {
            return Err(Error::failed_precondition("a process with several threads cannot go on as two"));
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// Kills the processes of a group, of which nothing may be left.
pub fn kill_group(leader: u32) {
    if let Some(leader) = Pid::from_raw(leader.cast_signed()) {
        let _ = rustix::process::kill_process_group(leader, Signal::KILL);
    }
}

/// Kills a process with those of its group, if it leads one, and its descendants in whatever groups and sessions they have
/// made for themselves. What is left: one whose parent had ended before belongs to whoever adopted it (`credentials(7)`).
///
/// They are stopped before they are killed, until no further ones are found, so that nobody makes one meanwhile. A number
/// is used only by way of a descriptor, of which it was found out after it was opened whose child it is.
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

/// Of processes that this one sees.
fn numbers() -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// proc_pid_stat(5): its name, in parentheses, may have any letters.
fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let behind = stat.iter().rposition(|letter| *letter == b')')?;
    let rest = std::str::from_utf8(&stat[behind + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Waits until a descriptor is readable, as a pidfd is when its process has ended. False if the time ran
/// out first; signals do not shorten it.
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

/// Ends the calling process without running what a normal exit would run.
#[expect(unsafe_code, reason = "the child of a fork must not run the parent's exit handlers")]
pub fn exit_now(code: i32) -> ! {
    // SAFETY: a number goes in, and no memory of ours is touched; it does not return unless a filter refuses it.
    unsafe { libc::syscall(libc::SYS_exit_group, code) };
    // A filter may refuse even that, and the C library would ask for ever. An instruction that the processor refuses
    // ends the process too.
    std::process::abort()
}

/// Orphans of our descendants become our children (`PR_SET_CHILD_SUBREAPER`).
pub fn become_subreaper() -> Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1).context(|| "become subreaper")
}

/// Keeps others from tracing this process and from looking into its `/proc` folder.
pub fn forbid_tracing() -> Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0).context(|| "prctl(PR_SET_DUMPABLE)")
}

/// Takes [`forbid_tracing`] back: who has the same user, or the user namespace, may trace this process, as it may others.
pub fn allow_tracing() -> Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 1).context(|| "prctl(PR_SET_DUMPABLE)")
}

/// No program that this process executes gains privileges (`no_new_privs`).
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

/// Marks all descriptors from `first` on close-on-exec: those that others left open to us are not for the
/// programs that we start.
#[expect(unsafe_code, reason = "nothing safe offers close_range")]
pub fn keep_from_programs(first: u32) -> Result<()> {
    let flag = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: numbers only, and no descriptor is closed.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flag) };
    if result < 0 { Err(io::Error::last_os_error()).context(|| "close_range") } else { Ok(()) }
}

/// Closes all descriptors from `first` on but those in `kept`.
///
/// What is marked close-on-exec is closed too late for a path that leads through it: the kernel looks the
/// program up first (CVE-2024-21626).
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

/// Gives every signal its default action and unblocks all, as a new program expects to find them.
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

/// Has the signals by which programs are asked to end do so, for who waits as the first process of a pid namespace, to
/// which they would do nothing (pid_namespaces(7)). As a shell does, the exit code is 128 and the signal's number. A
/// program that is executed gets them back as they were.
#[expect(unsafe_code, reason = "signal actions have no safe wrapper in rustix")]
pub fn end_when_asked() {
    extern "C" fn end(number: libc::c_int) {
        // SAFETY: _exit may be called from a handler (signal-safety(7)).
        unsafe { libc::_exit(128 + number) }
    }
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
        // SAFETY: the handler calls what handlers may.
        unsafe { libc::signal(signal, end as *const () as libc::sighandler_t) };
    }
}

/// Has a write to a pipe that nobody reads fail instead of ending the process.
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

    /// A shell that has made two sessions, one below the other, and a program in its own group whose parent has ended.
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
        // One that is gone has no tree.
        kill_tree(child.id(), root);
    }

    /// The tests' own threads are in the way of more; the shim's tests see it work.
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
