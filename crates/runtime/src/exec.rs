//! The parent's side of exec: a further process in a running container.
//!
//! ```text
//! parent ─ clone ─▶ intermediate process: waits for Go, enters (see `entering`)
//!    ▲                             └─ clone ─▶ process: waits for Go ─▶ exec
//!    ├── [Console] [Warning] [Listener] Pid ───┘        │
//!    └───────────────── [Listener] Failed | end of file ┘
//! ```
//!
//! The process gets the container's seccomp filter, and joins its namespaces by a pidfd of the first process, so that a
//! reused pid cannot lead elsewhere. Unlike create there is no start: the program has begun when exec closes the
//! channel.
//!
//! A process in the container that may trace the new one can take its end of the channel. So messages count only if the
//! kernel says that they come from the intermediate process, which no container sees, and after `Pid` only those of the
//! process.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use linux::cgroup::{Cgroup, Entry};
use linux::ns::NsKind;
use linux::process::{self, Cloned, PidFd};
use linux::procfs::Proc;
use linux::seccomp;
use types::spec::runtime::Process;
use types::{Context, Error, Result, UnlessGone};

use crate::channel::{Channel, Message};
use crate::container::Container;
use crate::entering::{self, Plan};
use crate::labels::Labels;
use crate::plan::{Stdio, capabilities_left_out, check_process};
use crate::program::{self, Filter, ProcessSetup};
use crate::state::{FILTER, Status};
use crate::supervisor::Supervisor;
use crate::{resctrl, scheduling};

/// How long a new process may take to execute its program. The container's root may stop it on the way, which must not
/// block the caller.
const ENTER_MAX: Duration = Duration::from_secs(10);

/// Messages of a cloned process: of its filter's listener, and of its failure.
const MESSAGES_MAX: usize = 2;

/// runc's words, which programs that drive it match on.
const PAUSED: &str = "cannot exec in a paused container; resume it first, or use --ignore-paused";

/// Options of a further process, beside its description.
pub struct ExecOptions {
    pub stdio: Stdio,
    /// Descriptors from 3 on that the program inherits.
    pub preserve_fds: u32,
    /// Also in a paused container, where the process stops at once.
    pub ignore_paused: bool,
    /// Cgroups below the container's own that the process is put into, by hierarchy; without one it is put into the
    /// container's.
    pub cgroups: Vec<SubCgroup>,
}

impl ExecOptions {
    /// These streams, and defaults otherwise.
    pub fn new(stdio: Stdio) -> ExecOptions {
        ExecOptions { stdio, preserve_fds: 0, ignore_paused: false, cgroups: Vec::new() }
    }
}

/// A cgroup below a container's own, as `[CONTROLLER[,CONTROLLER]:]PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubCgroup {
    /// Only in the hierarchies of these controllers, of version 1; in all if empty.
    controllers: Vec<String>,
    path: PathBuf,
}

impl FromStr for SubCgroup {
    type Err = Error;

    fn from_str(text: &str) -> Result<SubCgroup> {
        let (controllers, path) = match text.split_once(':') {
            Some((controllers, path)) => (controllers.split(',').map(str::to_owned).collect(), path),
            None => (Vec::new(), text),
        };
        let wrong =
            |why: &str| Err(Error::invalid_argument(format!("bad sub cgroup path {text:?}: it {why}")));
        if controllers.iter().any(String::is_empty) {
            return wrong("has a controller without a name");
        }
        let path = Path::new(path);
        if !path.components().all(|part| matches!(part, Component::Normal(_) | Component::RootDir)) {
            return wrong("has a part \"..\"");
        }
        Ok(SubCgroup { controllers, path: path.strip_prefix("/").unwrap_or(path).to_owned() })
    }
}

impl SubCgroup {
    /// Whether it is for the hierarchy of this name (`cpu,cpuacct`; empty for version 2).
    fn is_in(&self, tree: &str) -> bool {
        let has = |controller: &String| tree.split(',').any(|name| name == controller);
        self.controllers.is_empty() || self.controllers.iter().any(has)
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

/// Starts a further process in a container.
pub(crate) fn exec(container: &Container, process: &Process, options: ExecOptions) -> Result<Exec> {
    check_process(process)?;
    let process = &container.state().complete(process);
    match container.status()? {
        Status::Running | Status::Created => {}
        Status::Paused if options.ignore_paused => {}
        Status::Paused => return Err(Error::failed_precondition(PAUSED)),
        _ => return Err(Error::failed_precondition("cannot exec in a stopped container")),
    }
    start(container, process, options)
}

fn start(container: &Container, process: &Process, options: ExecOptions) -> Result<Exec> {
    let state = container.state();
    let init = container.open_init()?;
    let kinds = foreign_namespaces(state.pid)?;
    let entry = find_entry(container, &options.cgroups)?;
    // What was read from `/proc` by pid is the first process's only if it is still alive now: the pid may have been
    // reused, even by a process of the host.
    if init.has_ended() {
        return Err(Error::not_found("process already finished"));
    }
    let (labels, mut warnings) = Labels::of(process);
    warnings.extend(capabilities_left_out(process));
    let plan = Plan {
        process,
        kinds,
        init,
        entry,
        setup: ProcessSetup {
            proc: Proc::open()?,
            labels,
            filter: read_filter(container)?,
            // The container's other processes see it.
            is_shown: false,
            personality: state.personality.clone(),
            memory_policy: state.memory_policy.clone(),
        },
        keyring: state.keyring(),
        options,
    };
    let (mut ours, theirs) = Channel::pair()?;
    // Its affinity must be set before it enters the cgroup.
    let cgroup = plan.entry.as_ref().and_then(Entry::unified).filter(|_| process.exec_cpu_affinity.is_none());
    // SAFETY: the caller of `Container::exec` has a single thread (its documentation demands it), and the
    // child ends in `entering::main`, which never returns.
    #[expect(unsafe_code, reason = "the one place where a further process is cloned")]
    let intermediate = match unsafe { process::clone_process(0, cgroup) }.map_err(entering::limit_error)? {
        Cloned::Child => {
            drop(ours);
            entering::main(plan, &theirs)
        }
        Cloned::Parent { pid, pidfd } => IntermediateProcess { pid, pidfd },
    };
    drop((plan, theirs));
    ours.limit(ENTER_MAX);
    let started = run_intermediate(container, process, &mut ours, &intermediate, warnings);
    // Its work is done, or has failed. Killed, so that it blocks nobody if the container's root has stopped it.
    intermediate.pidfd.end();
    // If the child reported a failure of its own, that is the cause.
    started.map_err(|error| ours.explain(error))
}

/// The process that enters the container, and clones the process there.
struct IntermediateProcess {
    pid: u32,
    pidfd: PidFd,
}

fn run_intermediate(
    container: &Container,
    process: &Process,
    channel: &mut Channel,
    intermediate: &IntermediateProcess,
    mut warnings: Vec<String>,
) -> Result<Exec> {
    warnings.extend(program::set_oom_score(intermediate.pid, process)?);
    // A resctrl group that was removed in the meantime has no processes.
    resctrl::put(&container.state().resctrl_groups, intermediate.pid).unless_gone()?;
    program::make_room_for_limits(intermediate.pid, process, entering::SIBLINGS);
    channel.accept_only_from(intermediate.pid);
    channel.send(&Message::Go)?;
    let (mut console, mut listener) = (None, None);
    let pid = loop {
        match channel.receive()? {
            Some(Message::Console(master)) => console = Some(master),
            Some(Message::Warning(words)) => warnings.push(words),
            // From a filter that is loaded before the clone.
            Some(Message::Listener(number)) => {
                listener = Some(Supervisor::listener_of(&intermediate.pidfd, number)?);
                channel.send(&Message::Go)?;
            }
            Some(Message::Pid(pid)) => break pid,
            Some(Message::Failed(kind, words)) => return Err(Error::new(kind, words)),
            None => return Err(Error::aborted("the new process was ended on its way into the container")),
            Some(_) => return Err(unexpected_message()),
        }
    };
    // The intermediate process made it, so the pid is true, and only the parent reaps it, so that the pid cannot be
    // reused. It ends if it is not told to go on.
    channel.accept_only_from(pid);
    let exec = Exec { pid, pidfd: PidFd::open(pid)?, console, warnings };
    match release(container, process, channel, &exec, listener) {
        Ok(()) => Ok(exec),
        Err(error) => {
            exec.pidfd.end();
            Err(error)
        }
    }
}

/// Lets the waiting process execute its program. `listener` is that of its filter, if one is loaded already.
fn release(
    container: &Container,
    process: &Process,
    channel: &mut Channel,
    exec: &Exec,
    listener: Option<OwnedFd>,
) -> Result<()> {
    // A clone may reset it (`SCHED_FLAG_RESET_ON_FORK`), or fail because of it (`SCHED_DEADLINE`).
    if let Some(scheduler) = &process.scheduler {
        scheduling::set_scheduler(exec.pid, scheduler, "")?;
    }
    if let Some(listener) = listener {
        supervise(container, exec, listener, channel)?;
    }
    channel.send(&Message::Go)?;
    for _ in 0..MESSAGES_MAX {
        match channel.receive()? {
            Some(Message::Listener(number)) => {
                supervise(container, exec, Supervisor::listener_of(&exec.pidfd, number)?, channel)?;
                channel.send(&Message::Go)?;
            }
            Some(Message::Failed(kind, words)) => return Err(Error::new(kind, words)),
            // The channel is close-on-exec: the program was executed.
            None => return Ok(()),
            Some(_) => return Err(unexpected_message()),
        }
    }
    Err(unexpected_message())
}

/// Hands the listener of the process to the supervisor of the container's filter.
fn supervise(container: &Container, exec: &Exec, listener: OwnedFd, channel: &mut Channel) -> Result<()> {
    let supervisor = container.state().supervisor.as_ref();
    let supervisor = supervisor.ok_or_else(|| Error::internal("a seccomp listener without a supervisor"))?;
    supervisor.hand_over(exec.pid, listener.as_fd(), &container.state().document(Status::Running))?;
    // The supervisor's time is not the process's: its limit begins anew.
    channel.limit(ENTER_MAX);
    Ok(())
}

fn unexpected_message() -> Error {
    Error::internal("the new process sent an unexpected message")
}

/// The entry to the container's cgroup, or to those below it that were asked for.
fn find_entry(container: &Container, below: &[SubCgroup]) -> Result<Option<Entry>> {
    let state = container.state();
    if state.cgroups.is_empty() {
        return Ok(None);
    }
    let locations = locations(&state.cgroups, below)?;
    check_named(&locations, below)?;
    let cgroup = Cgroup::open_locations(&locations)?;
    // Unless one is named in version 2, a process joins the first one if that has divided the container's cgroup, which
    // then takes no processes itself.
    let is_named = below.iter().any(|sub| sub.is_in(""));
    if is_named { cgroup.entry() } else { cgroup.entry_with(state.pid) }.map(Some)
}

/// `NotFound` if a named cgroup does not exist: the process would escape its limits. Beside hierarchies of version 1,
/// that of version 2 has no controllers, and may lack the cgroup.
fn check_named(locations: &BTreeMap<String, PathBuf>, below: &[SubCgroup]) -> Result<()> {
    for (tree, place) in locations {
        let may_lack = |sub: &SubCgroup| tree.is_empty() && locations.len() > 1 && sub.controllers.is_empty();
        let is_named = below.iter().any(|sub| sub.is_in(tree) && !may_lack(sub));
        if is_named && !place.is_dir() {
            // Programs that drive runc match on its beginning.
            return Err(Error::not_found(format!(
                "error adding pid of the new process to cgroup {}: no such file or directory: the container has none of \
                 this name in the tree {tree:?}; make it, or name another with --cgroup",
                place.display()
            )));
        }
    }
    Ok(())
}

/// The directories of the container's cgroup, or below it where asked for.
fn locations(own: &BTreeMap<String, PathBuf>, below: &[SubCgroup]) -> Result<BTreeMap<String, PathBuf>> {
    for controller in below.iter().flat_map(|sub| &sub.controllers) {
        if !own.keys().any(|tree| tree.split(',').any(|name| name == controller)) {
            return Err(Error::invalid_argument(format!(
                "unknown controller {controller:?}: the container has no cgroup of it; it has {:?}",
                own.keys().collect::<Vec<_>>()
            )));
        }
    }
    let mut places = BTreeMap::new();
    for (tree, path) in own {
        let mut meant = below.iter().filter(|sub| sub.is_in(tree));
        let place = meant.next().map_or_else(|| path.clone(), |sub| path.join(&sub.path));
        if meant.next().is_some() {
            return Err(Error::invalid_argument(format!(
                "more than one cgroup is named in the tree {tree:?}"
            )));
        }
        places.insert(tree.clone(), place);
    }
    Ok(places)
}

/// The namespaces in which the container's first process differs from the caller.
fn foreign_namespaces(pid: u32) -> Result<Vec<NsKind>> {
    let mut kinds = Vec::new();
    for kind in NsKind::ALL {
        let name = kind.file_name();
        let link = |owner: &str| fs::read_link(format!("/proc/{owner}/ns/{name}"));
        match (link(&pid.to_string()), link("self")) {
            (Ok(theirs), Ok(ours)) if theirs != ours => kinds.push(kind),
            (Ok(_), Ok(_)) => {}
            // This kernel lacks the kind.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(below: &[&str], expected: [&str; 3]) {
        let own = ["", "cpu,cpuacct", "memory"].map(|tree| (tree.to_owned(), PathBuf::from("/t/own")));
        let below: Result<Vec<SubCgroup>> = below.iter().map(|text| text.parse()).collect();
        match below.and_then(|below| locations(&own.into(), &below)) {
            Ok(found) => {
                let expected = expected.map(|sub| Path::new("/t/own").join(sub));
                assert_eq!(found.into_values().collect::<Vec<_>>(), expected);
            }
            Err(error) => {
                assert!(!expected[0].is_empty() && error.chain().contains(expected[0]), "{error:?}");
            }
        }
    }

    #[test]
    fn cgroups_are_named_tree_by_tree() {
        check(&[], ["", "", ""]);
        check(&["/one"], ["one", "one", "one"]);
        check(&["one/two"], ["one/two"; 3]);
        check(&["cpu:a", "memory:/b"], ["", "a", "b"]);
        check(&["cpuacct,memory:a"], ["", "a", "a"]);
        for (wrong, words) in [
            (&["../up"][..], "has a part"),
            (&["cpu:a/../.."], "has a part"),
            (&[":a"], "without a name"),
            (&["cpu,:a"], "without a name"),
            (&["nosuch:a"], "unknown controller \"nosuch\""),
            (&["a", "b"], "more than one"),
            (&["a", "cpu:b"], "more than one"),
            (&["cpu:a", "cpuacct:b"], "more than one"),
        ] {
            check(wrong, [words, "", ""]);
        }
    }
}
