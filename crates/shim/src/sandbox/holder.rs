//! The holder: a process that keeps those namespaces of a pod alive that the shim cannot be in: a user namespace, in
//! which it would have no rights on the host, and a pid namespace, which needs a first process.
//!
//! ```text
//! shim ── clone ─▶ holder: waits for id maps ─▶ root of its namespaces ─▶ names, sysctls ─▶ empty root ─▶ no rights
//!      ◀── ready ──────────────────────────────────────────────────────────────────────────────────────────────┘
//!      ── recorded ─▶ outlives the shim, reaps orphans
//! ```
//!
//! It is a copy of the shim that executes no program. Containers in its namespaces cannot inspect it or use its files:
//! it is not dumpable, its root is an empty directory, and it has no open descriptor. Its memory belongs to the host's
//! user namespace, so that `CAP_SYS_PTRACE` in the pod's does not help. In a pod without a user namespace, a container
//! with that capability can trace it nevertheless; so it gives up every right: it has no capability, and may make only
//! the system calls that it needs to wait. It also overwrites the shim's environment and arguments. It ends with the
//! pod.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use linux::beneath::Root;
use linux::cap;
use linux::idmap;
use linux::mount::{self, Options, Propagation};
use linux::ns::NsKind;
use linux::process::{self, PidFd};
use linux::seccomp;
use rustix::mount::UnmountFlags;
use types::spec::runtime::{IdMapping, LinuxSeccomp, SeccompArg, SeccompRule};
use types::{Context, Error, Result};

const GO: &[u8] = b"g";
const READY: &[u8] = b"r";
/// The system calls that remain allowed: to answer, to be released, and to wait.
const CALLS: [&str; 18] = [
    "read",
    "recvfrom",
    "write",
    "sendto",
    "close",
    "brk",
    "mmap",
    "mremap",
    "munmap",
    "madvise",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "restart_syscall",
    "pause",
    "ppoll",
    "exit",
    "exit_group",
];
/// `prctl(PR_SET_PDEATHSIG)`.
const SET_PARENT_DEATH_SIGNAL: u64 = 1;
/// Bytes of an error message.
const WORDS_LEN_MAX: usize = 4096;

/// The holder's process. Killed when dropped.
pub(super) struct Holder {
    pid: u32,
    process: PidFd,
    socket: UnixStream,
}

/// Parameters of a holder.
pub(super) struct HolderOptions<'a> {
    /// Namespaces to make, owned by the new user namespace if there is one.
    pub kinds: &'a [NsKind],
    pub uids: &'a [IdMapping],
    pub gids: &'a [IdMapping],
    /// A directory to mount its empty root on, in its own mount namespace.
    pub place: &'a Path,
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.process.end();
    }
}

impl Holder {
    /// Starts a holder. It runs `settle` in the new namespaces, as their root.
    pub(super) fn start(hold: &HolderOptions<'_>, settle: impl FnOnce() -> Result<()>) -> Result<Holder> {
        let (socket, theirs) = UnixStream::pair().context(|| "make a socket pair")?;
        let flags =
            hold.kinds.iter().fold(NsKind::Mount.clone_flag(), |flags, kind| flags | kind.clone_flag());
        let work = |socket| holder_main(hold, settle, UnixStream::from(socket));
        let (pid, process) = process::stay_in_copy(flags, theirs.into(), Box::new(work))?;
        let holder = Holder { pid, process, socket };
        holder.await_ready(hold)?;
        Ok(holder)
    }

    fn await_ready(&self, hold: &HolderOptions<'_>) -> Result<()> {
        if hold.kinds.contains(&NsKind::User) {
            idmap::write(self.pid, hold.uids, hold.gids)?;
        }
        let mut socket = &self.socket;
        socket.write_all(GO).context(|| "let the holder of the pod's namespaces go on")?;
        let mut answer = vec![0; WORDS_LEN_MAX];
        let len = socket.read(&mut answer).context(|| "hear from the holder of the pod's namespaces")?;
        match &answer[..len] {
            READY => Ok(()),
            [] => Err(Error::internal("the holder of the pod's namespaces ended before it was ready")),
            words => Err(Error::failed_precondition(String::from_utf8_lossy(words))),
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets the holder outlive the shim, once it is recorded so that `delete` can end it.
    pub(super) fn release(&self) -> Result<()> {
        (&self.socket).write_all(GO).context(|| "release the holder of the pod's namespaces")
    }
}

/// The holder's main function.
fn holder_main(
    hold: &HolderOptions<'_>,
    settle: impl FnOnce() -> Result<()>,
    mut socket: UnixStream,
) -> Result<()> {
    let ready = prepare(hold, settle, &mut socket);
    let words = ready.as_ref().err().map(Error::chain);
    let said = words.as_ref().map_or(READY, |words| words.as_bytes());
    socket.write_all(&said[..said.len().min(WORDS_LEN_MAX)]).context(|| "tell the shim")?;
    ready?;
    wait_for_go(&mut socket)?;
    process::die_with_parent(false)
}

fn prepare(
    hold: &HolderOptions<'_>,
    settle: impl FnOnce() -> Result<()>,
    socket: &mut UnixStream,
) -> Result<()> {
    wait_for_go(socket)?;
    if hold.kinds.contains(&NsKind::User) {
        become_root()?;
        // The change of user has reset both.
        process::forbid_tracing()?;
        process::die_with_parent(true)?;
    }
    rustix::process::setsid().map_err(std::io::Error::from).context(|| "begin a session")?;
    settle()?;
    // Compiled before, as that may need system calls which are forbidden then.
    let filter = seccomp::compile(&calls())?;
    leave_host(hold.place)?;
    give_up_rights(&filter)
}

fn wait_for_go(socket: &mut UnixStream) -> Result<()> {
    match socket.read(&mut [0]) {
        Ok(1) => Ok(()),
        _ => Err(Error::aborted("the shim went away")),
    }
}

fn become_root() -> Result<()> {
    let become_root = || {
        rustix::thread::set_thread_groups(&[])?;
        let (uid, gid) = (rustix::process::Uid::ROOT, rustix::process::Gid::ROOT);
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)
    };
    become_root().map_err(std::io::Error::from).context(|| "become root of the pod's user namespace")
}

/// Moves into an empty directory, with no path to the host's tree.
fn leave_host(place: &Path) -> Result<()> {
    let host = Root::open(Path::new("/"))?;
    mount::set_propagation(host.as_fd(), Propagation::Private, true)?;
    let options = ["ro", "nosuid", "nodev", "noexec", "size=4k", "nr_inodes=1"].map(str::to_owned);
    let empty = mount::new_filesystem("tmpfs", "tmpfs", &Options::parse(&options))?;
    mount::attach(empty.as_fd(), Root::open(place)?.as_fd())?;
    let enter = || {
        rustix::process::fchdir(&empty)?;
        rustix::process::pivot_root(".", ".")?;
        rustix::process::fchdir(&host)?;
        rustix::mount::unmount(".", UnmountFlags::DETACH)?;
        rustix::process::chdir("/")
    };
    enter().map_err(std::io::Error::from).context(|| "leave the host's file systems")
}

/// Drops all rights, so that tracing the holder gains nothing: the system calls that are left are harmless.
fn give_up_rights(filter: &seccomp::Program) -> Result<()> {
    cap::drop_all()?;
    process::forbid_new_privileges()?;
    seccomp::load(filter).context(|| "filter the holder's system calls").map(drop)
}

fn calls() -> LinuxSeccomp {
    let rule = |names: &[&str], args| SeccompRule {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        action: "SCMP_ACT_ALLOW".into(),
        errno_ret: None,
        args,
    };
    let release =
        SeccompArg { index: 0, value: SET_PARENT_DEATH_SIGNAL, value_two: 0, op: "SCMP_CMP_EQ".into() };
    LinuxSeccomp {
        default_action: "SCMP_ACT_ERRNO".into(),
        syscalls: vec![rule(&CALLS, Vec::new()), rule(&["prctl"], vec![release])],
        ..LinuxSeccomp::default()
    }
}
