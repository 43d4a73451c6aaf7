//! A further process in a container that runs.
//!
//! ```text
//! parent: join pid namespace ─▶ clone ─▶ go back        child: cgroup ─▶ other namespaces ─▶ user, limits,
//!         ◀── [Console] ◀── [Warning] ◀── Ready | Failed        capabilities, filter ─▶ exec
//! ```
//!
//! The process gets the container's own filter and namespaces, taken from its first process by pidfd, so
//! that a pid that was given to another cannot lead elsewhere. There is no waiting for a start: `Ready` is
//! the closing of the channel by exec.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use linux::cgroup::{Cgroup, Entry};
use linux::ns::{self, NsKind};
use linux::process::{self, Cloned, PidFd, clone_process};
use linux::seccomp;
use linux::tty::Pty;
use types::spec::runtime::Process;
use types::{Context, Error, ErrorKind, Result};

use crate::channel::{Channel, Message};
use crate::container::Container;
use crate::plan::{Stdio, check_process};
use crate::program::{self, Filter};
use crate::state::{FILTER, Status};

/// How long a new process may take to its program. The container's root may stop it on its way, and must not
/// hold up the caller, who has to be able to end the container.
const RAISE_MAX: Duration = Duration::from_secs(5);

/// What a further process is started with, beside its description.
pub struct ExecOptions {
    pub stdio: Stdio,
    /// Descriptors from 3 on that the program inherits.
    pub preserve_fds: u32,
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
    kinds: Vec<NsKind>,
    entry: Entry,
    filter: Option<Filter>,
    options: ExecOptions,
}

pub(crate) fn exec(container: &Container, process: &Process, options: ExecOptions) -> Result<Exec> {
    let what = || format!("exec in container {}", container.id());
    check_process(process).map_err(|error| error.context(what()))?;
    match container.status()? {
        Status::Running | Status::Created => {}
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
    let init = container.open_init()?;
    let cgroup = Cgroup::open_locations(&container.state().cgroups)?;
    let plan = Plan {
        process,
        kinds: foreign_namespaces(container.state().pid)?,
        init,
        entry: cgroup.entry_beside(container.state().pid)?,
        filter: read_filter(container)?,
        options,
    };
    let (ours, theirs) = Channel::pair()?;
    ours.limit(RAISE_MAX)?;
    let own_pid_namespace = fs::File::open("/proc/self/ns/pid").context(|| "open our own pid namespace")?;
    let enters_pids = plan.kinds.contains(&NsKind::Pid);
    if enters_pids {
        ns::join_process(plan.init.as_fd(), &[NsKind::Pid])?;
    }
    // SAFETY: the caller of `Container::exec` has a single thread (its documentation demands it), and the
    // child ends in `child`, which never returns.
    #[expect(unsafe_code, reason = "the one place where a further process is cloned")]
    let cloned = unsafe { clone_process(0, plan.entry.unified()) };
    if matches!(cloned, Ok(Cloned::Child)) {
        drop(ours);
        child(plan, &theirs);
    }
    if enters_pids {
        ns::join(own_pid_namespace.as_fd(), NsKind::Pid)?;
    }
    drop(theirs);
    let Cloned::Parent { pid, pidfd } = cloned? else { unreachable!("the child does not return") };
    let mut exec = Exec { pid, pidfd, console: None, warnings: Vec::new() };
    match raise(&ours, &mut exec) {
        Ok(()) => Ok(exec),
        Err(error) => {
            // It may have ended already.
            let _ = exec.pidfd.kill();
            let _ = exec.pidfd.wait();
            Err(error)
        }
    }
}

fn raise(channel: &Channel, exec: &mut Exec) -> Result<()> {
    loop {
        match channel.receive()? {
            Some(Message::Console(master)) => exec.console = Some(master),
            Some(Message::Warning(words)) => exec.warnings.push(words),
            Some(Message::Failed(kind, words)) => return Err(Error::new(kind, words)),
            // The channel is close-on-exec: its end is the program's beginning.
            None => return Ok(()),
            Some(_) => return Err(Error::internal("the new process sent nonsense")),
        }
    }
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
    plan.entry.enter().context(|| "enter the cgroup")?;
    let kinds: Vec<NsKind> = plan.kinds.iter().copied().filter(|kind| *kind != NsKind::Pid).collect();
    if !kinds.is_empty() {
        ns::join_process(plan.init.as_fd(), &kinds)?;
    }
    rustix::process::setsid().map_err(io::Error::from).context(|| "begin a session")?;
    match &plan.options.stdio {
        Stdio::Terminal { size } => {
            let pts = linux::beneath::Root::open(Path::new("/dev/pts"))?;
            let pty = Pty::open(pts.as_fd(), "ptmx")?;
            channel.send(&Message::Console(pty.master))?;
            program::take_terminal(&pty.slave, plan.process, *size)?;
        }
        Stdio::Pipes { stdin, stdout, stderr } => {
            program::set_streams(stdin.as_fd(), stdout.as_fd(), stderr.as_fd())?;
        }
        Stdio::Inherit => {}
    }
    process::close_on_exec_from(3 + plan.options.preserve_fds)?;
    program::become_user(plan.process, plan.filter.as_ref(), channel)?;
    let program = program::find(plan.process)?;
    process::reset_signals();
    Err(program::execute(&program, plan.process))
}
