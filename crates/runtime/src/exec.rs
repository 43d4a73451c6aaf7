//! A further process in a container that runs.
//!
//! ```text
//! parent: clone (see `fork`) ─▶ Go                      child: cgroup ─▶ other namespaces ─▶ user, limits,
//!         ◀── [Console] ◀── [Warning] ◀── Failed | the end      capabilities, filter ─▶ exec
//! ```
//!
//! The process gets the container's own filter and namespaces, taken from its first process by pidfd, so
//! that a pid that was given to another cannot lead elsewhere. There is no waiting for a start: the end of
//! the channel, which exec closes, is the program's beginning.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};
use std::time::Duration;

use linux::cgroup::{Cgroup, Entry};
use linux::ns::{self, NsKind};
use linux::process::{self, Cloned, PidFd};
use linux::procfs::Proc;
use linux::seccomp;
use linux::tty::Pty;
use rustix::fs::OFlags;
use types::spec::runtime::Process;
use types::{Context, Error, ErrorKind, Result};

use crate::channel::{Channel, Message};
use crate::container::Container;
use crate::fork::Fork;
use crate::labels::Labels;
use crate::plan::{Stdio, check_process};
use crate::program::{self, Filter, Outfit};
use crate::scheduling;
use crate::state::{FILTER, Status};

/// How long a new process may take to its program. The container's root may stop it on its way, and must not
/// hold up the caller, who has to be able to end the container.
const RAISE_MAX: Duration = Duration::from_secs(5);

/// What a further process is started with, beside its description.
pub struct ExecOptions {
    pub stdio: Stdio,
    /// Descriptors from 3 on that the program inherits.
    pub preserve_fds: u32,
    /// Starts it in a paused container too, where it stops at once.
    pub ignore_paused: bool,
    /// Cgroup below the container's own to put it into; empty is that one.
    pub cgroup: String,
}

impl ExecOptions {
    /// With these streams, and nothing else out of the ordinary.
    pub fn new(stdio: Stdio) -> ExecOptions {
        ExecOptions { stdio, preserve_fds: 0, ignore_paused: false, cgroup: String::new() }
    }
}

/// A further process, running.
pub struct Exec {
    pub pid: u32,
    /// A child of the caller.
    pub pidfd: PidFd,
    /// The terminal's master, with [`Stdio::Terminal`].
    pub console: Option<OwnedFd>,
    pub warnings: Vec<String>,
}

struct Plan<'a> {
    process: &'a Process,
    init: PidFd,
    /// Namespaces that the new process joins by itself: those it is not born into.
    kinds: Vec<NsKind>,
    is_in_user_namespace: bool,
    /// None where the container could be given no cgroup.
    entry: Option<Entry>,
    outfit: Outfit,
    keyring: Option<String>,
    options: ExecOptions,
}

pub(crate) fn exec(container: &Container, process: &Process, options: ExecOptions) -> Result<Exec> {
    let what = || format!("exec in container {}", container.id());
    check_process(process).map_err(|error| error.context(what()))?;
    match container.status()? {
        Status::Running | Status::Created => {}
        Status::Paused if options.ignore_paused => {}
        Status::Paused => return Err(Error::failed_precondition(format!("{}: it is paused", what()))),
        _ => {
            return Err(Error::failed_precondition(format!(
                "{}: cannot exec in a stopped container",
                what()
            )));
        }
    }
    start(container, process, options).map_err(|error| error.context(what()))
}

fn start(container: &Container, process: &Process, options: ExecOptions) -> Result<Exec> {
    let state = container.state();
    let init = container.open_init()?;
    let kinds = foreign_namespaces(state.pid)?;
    let is_in_user_namespace = kinds.contains(&NsKind::User);
    let is_in_pid_namespace = kinds.contains(&NsKind::Pid);
    let entry = find_entry(container, &options.cgroup)?;
    // What was found by number is the first process's only if that had not ended before: another may have
    // the number by now, one of the host's even.
    if init.has_ended() {
        return Err(Error::not_found("process already finished"));
    }
    let (labels, warnings) = Labels::of(process);
    let plan = Plan {
        process,
        kinds: kinds.into_iter().filter(|kind| !matches!(kind, NsKind::User | NsKind::Pid)).collect(),
        is_in_user_namespace,
        init,
        entry,
        outfit: Outfit {
            proc: Proc::open()?,
            labels,
            filter: read_filter(container)?,
            personality: state.personality.clone(),
            memory_policy: state.memory_policy.clone(),
        },
        keyring: state.keyring(),
        options,
    };
    let (ours, theirs) = Channel::pair()?;
    ours.limit(RAISE_MAX)?;
    let fork = Fork {
        user: is_in_user_namespace.then(|| plan.init.as_fd()),
        pid: is_in_pid_namespace.then(|| plan.init.as_fd()),
        new: 0,
        // Its first processors are those of before the cgroup.
        cgroup: plan.entry.as_ref().and_then(Entry::unified).filter(|_| process.exec_cpu_affinity.is_none()),
    };
    // SAFETY: the caller of `Container::exec` has a single thread (its documentation demands it), and the
    // child ends in `child`, which never returns.
    #[expect(unsafe_code, reason = "the one place where a further process is cloned")]
    let cloned = unsafe { fork.clone() };
    let (pid, pidfd) = match cloned? {
        Cloned::Child => {
            drop(ours);
            child(plan, &theirs)
        }
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop(theirs);
    let mut exec = Exec { pid, pidfd, console: None, warnings };
    match raise(container, process, &ours, &mut exec) {
        Ok(()) => Ok(exec),
        Err(error) => {
            exec.pidfd.end();
            // It may have failed before that; then that comes first.
            Err(ours.explain(error))
        }
    }
}

fn raise(container: &Container, process: &Process, channel: &Channel, exec: &mut Exec) -> Result<()> {
    exec.warnings.extend(program::set_oom_score(exec.pid, process)?);
    channel.send(&Message::Go)?;
    loop {
        match channel.receive()? {
            Some(Message::Console(master)) => exec.console = Some(master),
            Some(Message::Warning(words)) => exec.warnings.push(words),
            Some(Message::Listener(number)) => {
                let supervisor = container.state().supervisor.as_ref();
                let supervisor = supervisor.ok_or_else(|| Error::internal("a listener for nobody"))?;
                let document = container.state().document(Status::Running);
                supervisor.hand_over(exec.pid, &exec.pidfd, number, &document)?;
                channel.send(&Message::Go)?;
            }
            Some(Message::Failed(kind, words)) => return Err(Error::new(kind, words)),
            // The channel is close-on-exec: its end is the program's beginning.
            None => return Ok(()),
            Some(_) => return Err(Error::internal("the new process sent nonsense")),
        }
    }
}

/// The way into the container's cgroup, or into one that somebody made below it.
fn find_entry(container: &Container, below: &str) -> Result<Option<Entry>> {
    let state = container.state();
    if state.cgroups.is_empty() {
        return Ok(None);
    }
    if below.is_empty() {
        return Cgroup::open_locations(&state.cgroups)?.entry_beside(state.pid).map(Some);
    }
    let below = Path::new(below);
    if !below.components().all(|part| matches!(part, Component::Normal(_) | Component::RootDir)) {
        return Err(Error::invalid_argument(format!("cgroup {} has a part \"..\"", below.display())));
    }
    let below = below.strip_prefix("/").unwrap_or(below);
    let locations = state.cgroups.iter().map(|(name, path)| (name.clone(), path.join(below)));
    Cgroup::open_locations(&locations.collect())?.entry().map(Some)
}

/// The namespaces in which the container's first process differs from us.
fn foreign_namespaces(pid: u32) -> Result<Vec<NsKind>> {
    let mut kinds = Vec::new();
    for kind in NsKind::ALL {
        let name = kind.file_name();
        let link = |owner: &str| fs::read_link(format!("/proc/{owner}/ns/{name}"));
        match (link(&pid.to_string()), link("self")) {
            (Ok(theirs), Ok(ours)) if theirs != ours => kinds.push(kind),
            (Ok(_), Ok(_)) => {}
            // A kernel without this kind.
            (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
            (Err(error), _) => {
                return Err(error).context(|| format!("read {name} namespace of process {pid}"));
            }
            (_, Err(error)) => return Err(error).context(|| format!("read our own {name} namespace")),
        }
    }
    Ok(kinds)
}

fn read_filter(container: &Container) -> Result<Option<Filter>> {
    let path = container.dir().path(FILTER);
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(Filter { program: seccomp::Program::from_bytes(&bytes)? })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(|| format!("read {}", path.display())),
    }
}

fn child(plan: Plan<'_>, channel: &Channel) -> ! {
    let Err(error) = run(plan, channel);
    // Nobody listens any more if the parent died.
    let _ = channel.send(&Message::Failed(error.kind(), error.chain()));
    process::exit_now(match error.kind() {
        ErrorKind::NotFound => 127,
        ErrorKind::PermissionDenied => 126,
        _ => 1,
    })
}

fn run(plan: Plan<'_>, channel: &Channel) -> Result<Infallible> {
    // Those in the container must not look into this process, which has the host's files open and the host's rights, and
    // is among their pids already. Who has CAP_SYS_PTRACE without a user namespace of its own still can, until the
    // namespaces are joined: see docs/design/init.md.
    process::forbid_tracing()?;
    match channel.receive()? {
        Some(Message::Go) => {}
        _ => return Err(Error::aborted("the parent went away")),
    }
    enter_cgroup(&plan)?;
    if !plan.kinds.is_empty() {
        ns::join_process(plan.init.as_fd(), &plan.kinds)?;
    }
    if plan.is_in_user_namespace {
        program::become_root_of_user_namespace()?;
        process::forbid_tracing()?;
    }
    rustix::process::setsid().map_err(io::Error::from).context(|| "begin a session")?;
    if let Some(keyring) = &plan.keyring {
        plan.outfit.labels.apply_to_keys(&plan.outfit.proc)?;
        program::join_keyring(keyring)?;
    }
    let Plan { process, init, entry, outfit, options, .. } = plan;
    drop((init, entry));
    set_streams(options.stdio, process, channel)?;
    let kept = [channel.as_fd(), outfit.proc.as_fd()];
    // SAFETY: whatever else is open belongs to the parent's code, to which this process never returns.
    #[expect(unsafe_code, reason = "descriptors of the caller that must not reach the container")]
    unsafe {
        process::close_all_but(3 + options.preserve_fds, &kept)?;
    }
    program::become_user(process, outfit, channel)?;
    let program = program::find(process)?;
    process::reset_signals();
    Err(program::execute(&program, process))
}

/// Enters the cgroup, with the processors that the process has before and after (`execCPUAffinity`).
fn enter_cgroup(plan: &Plan<'_>) -> Result<()> {
    let enter = || match &plan.entry {
        Some(entry) => entry.enter().context(|| "enter the cgroup"),
        None => Ok(()),
    };
    let Some(affinity) = &plan.process.exec_cpu_affinity else { return enter() };
    scheduling::set_processors(&affinity.initial)?;
    enter()?;
    if let Some(entry) = &plan.entry {
        entry.enter_unified().context(|| "enter the cgroup")?;
    }
    scheduling::set_processors(&affinity.last)
}

fn set_streams(stdio: Stdio, process: &Process, channel: &Channel) -> Result<()> {
    match stdio {
        Stdio::Terminal { size } => {
            // The container's processes may have put a link there.
            let root = linux::beneath::Root::open(Path::new("/"))?;
            let pts = root.open_at(Path::new("/dev/pts"), OFlags::PATH | OFlags::DIRECTORY)?;
            let pty = Pty::open(pts.as_fd(), "ptmx")?;
            channel.send(&Message::Console(pty.master))?;
            program::take_terminal(&pty.slave, process, size)
        }
        Stdio::Pipes { stdin, stdout, stderr } => {
            program::set_streams(stdin.as_fd(), stdout.as_fd(), stderr.as_fd())?;
            program::take_null_from_inside()
        }
        Stdio::Inherit => program::take_null_from_inside(),
    }
}
