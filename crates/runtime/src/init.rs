//! The child's side of making a container: from clone to exec. `docs/design/init.md` lists the steps.
//!
//! The process is a copy of its parent with one thread, in new namespaces, with the parent's descriptors.
//! It trusts nothing in the container's root: paths there are opened beneath the root's descriptor, and
//! nothing of the container runs before the last step.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use linux::ns::{self, NsKind};
use linux::process;
use linux::rtnetlink::{LOOPBACK, Route};
use serde_json::Value;
use types::spec::runtime::{Hook, Process, Spec};
use types::{Context, ErrorKind, Result};

use crate::channel::{Channel, Message};
use crate::create::{LatePlan, Plan};
use crate::plan::Stdio;
use crate::program::{Execution, ProcessSetup};
use crate::state::{State, Status};
use crate::steps::Steps;
use crate::supplies::{Supplies, parent_went_away};
use crate::{hooks, program, rootfs, scheduling};

/// Runs the steps; on failure reports to the parent and exits.
pub(crate) fn main(plan: Plan, channel: &Channel) -> ! {
    let outcome = run(plan, channel);
    let Err(error) = outcome;
    // After `Ready` the parent no longer listens; such a failure went through the start fifo. A filter may allow no
    // other system call for it.
    let _ = channel.write(&Message::Failed(error.kind(), error.chain()));
    process::exit_now(1)
}

fn run(mut plan: Plan, channel: &Channel) -> Result<Infallible> {
    process::die_with_parent(true)?;
    if plan.begins_with_go() {
        channel.wait_for_go().map_err(|_| parent_went_away())?;
    }
    if plan.namespaces.joined(NsKind::Mount).is_some() {
        rootfs::take_staged(&mut plan.mounts)?;
    }
    join_namespaces(&plan)?;
    if plan.namespaces.has(NsKind::User) {
        program::become_root_of_user_namespace()?;
    }
    // From here on the process may share its namespaces with others of the container. The change of user reset the
    // parent death signal.
    process::forbid_tracing()?;
    process::die_with_parent(true)?;
    rustix::process::setsid().map_err(io::Error::from).context(|| "begin a session")?;
    if let Some(keyring) = &plan.keyring {
        plan.setup.labels.apply_to_keys(&plan.setup.proc)?;
        program::new_keyring(keyring)?;
    }

    let supplies = Supplies::expect(channel, &plan.namespaces, plan.has_filter());
    let root = rootfs::build(&plan, channel, &supplies)?;
    let terminal = open_terminal(&plan.stdio, &root, channel)?;
    run_hooks_before_pivot(&plan, channel, &supplies)?;
    // While the host's `/etc/passwd`, from which the owner's name is read, is still reachable.
    let start_hooks = start_hooks(&plan);
    rootfs::enter(&plan, root)?;
    set_names(&plan.spec)?;
    // A sysctl may be one of a network device, which are there once the cgroup is entered.
    if plan.spec.linux.as_ref().is_some_and(|linux| !linux.net_devices.is_empty()) {
        supplies.enter_cgroup()?;
    }
    rootfs::restrict(&plan.spec, plan.mount_label.as_ref())?;
    supplies.enter_cgroup()?;
    scheduling::leave_callers_processors();

    let LatePlan { spec, stdio, start, setup, preserve_fds } = plan.into_late_plan();
    let container_process = spec.process.as_ref().expect("checked when the spec was read");
    set_streams(stdio, terminal, container_process)?;
    let [start_go, start_answer] = start.descriptors();
    let kept = [channel.as_fd(), start_go, start_answer, setup.proc.as_fd()];
    // SAFETY: the other descriptors belong to the parent's code, to which this process never returns.
    #[expect(unsafe_code, reason = "descriptors of the caller that must not reach the container")]
    unsafe {
        process::close_all_but(preserve_fds.saturating_add(3), &kept)?;
    }
    // Before the limits, which may leave no room for the filter.
    let setup = ProcessSetup { filter: supplies.into_filter()?, ..setup };
    // Both take further files.
    let lowers_files_late = setup.has_listener() || !start_hooks.hooks.is_empty();
    // The start fifos stay open over the change of user: a user that may write to them by path could start the
    // container.
    program::set_limits(container_process, 0, channel)?;
    if let Some(scheduler) = &container_process.scheduler {
        let resources = spec.linux.as_ref().and_then(|linux| linux.resources.as_ref());
        let processors = resources.and_then(|resources| resources.cpu.as_ref()).map_or("", |cpu| &cpu.cpus);
        scheduling::set_scheduler(0, scheduler, processors)?;
    }
    let is_shown = setup.is_shown;
    let unfiltered = program::become_user(container_process, setup)?;
    let program = program::find(container_process)?;
    let execution = Execution::prepare(program, container_process);
    process::reset_signals();
    process::exit_on_termination_signals();
    // A container outlives its creator.
    process::die_with_parent(false)?;
    if is_shown {
        // The change of user reset it, if it was allowed before.
        process::allow_tracing()?;
    }
    if !lowers_files_late {
        program::lower_file_limit(container_process)?;
    }
    unfiltered.load_filter(channel)?;
    // From here on only system calls are used that any filter needs to allow for a program to be executed.
    channel.write(&Message::Ready).context(|| "tell the parent")?;

    start.wait().context(|| "wait to be started")?;
    // From here on errors go to the caller of start.
    let ready = start_hooks.run(&execution).and_then(|()| match lowers_files_late {
        true => program::lower_file_limit(container_process),
        false => Ok(()),
    });
    let error = match ready {
        Ok(()) => execution.begin(),
        Err(error) => error,
    };
    start.answer(&format!("{}:{}", error.kind().code(), error.chain()));
    process::exit_now(match error.kind() {
        ErrorKind::NotFound => 127,
        ErrorKind::PermissionDenied => 126,
        _ => 1,
    })
}

/// Hooks that run in the container, as its user, right before its program, and their state document.
struct StartHooks {
    hooks: Vec<Hook>,
    state: Value,
}

fn start_hooks(plan: &Plan) -> StartHooks {
    match plan.spec.hooks.as_ref().map(|hooks| &hooks.start_container[..]) {
        None | Some([]) => StartHooks { hooks: Vec::new(), state: Value::Null },
        Some(hooks) => StartHooks { hooks: hooks.to_vec(), state: document(plan, Status::Created) },
    }
}

impl StartHooks {
    /// A hook without an environment of its own has the program's.
    fn run(mut self, execution: &Execution) -> Result<()> {
        if self.hooks.is_empty() {
            return Ok(());
        }
        for hook in self.hooks.iter_mut().filter(|hook| hook.env.is_empty()) {
            hook.env = execution.environment();
        }
        process::ignore_broken_pipes();
        // The log's path would be looked up in the container here.
        let unheard = Steps::default();
        hooks::run("startContainer", &self.hooks, std::path::Path::new("/"), &self.state, &unheard)?;
        process::reset_signals();
        process::exit_on_termination_signals();
        Ok(())
    }
}

/// The state document for hooks that run in the container, with the pid that the process has there.
fn document(plan: &Plan, status: Status) -> Value {
    let mut state = State::new(&plan.id, std::process::id(), &plan.bundle, &plan.rootfs);
    state.annotations.clone_from(&plan.spec.annotations);
    state.document(status)
}

/// Joins namespaces, and makes those that clone could not, except the cgroup namespace: see [`Supplies`].
fn join_namespaces(plan: &Plan) -> Result<()> {
    let mut left = Vec::new();
    // Checked before a mount namespace is joined, whose `/proc` cannot be trusted.
    for (kind, file) in &plan.namespaces.joined {
        // The process was cloned into these two, and with a user namespace into others: see `fork`.
        let is_in = matches!(kind, NsKind::Pid | NsKind::User)
            || plan.namespaces.has(NsKind::User) && ns::is_current(file.as_fd(), *kind)?;
        if !is_in {
            left.push((kind, file));
        }
    }
    left.into_iter().try_for_each(|(kind, file)| ns::join(file.as_fd(), *kind))?;
    if plan.namespaces.is_new(NsKind::Network) {
        // The specification does not ask for it, but under every runtime programs reach themselves at 127.0.0.1.
        Route::open()?.set_up(LOOPBACK).context(|| "bring up the loopback of the new network")?;
    }
    if plan.namespaces.is_new(NsKind::Time) {
        ns::unshare(&[NsKind::Time])?;
        write_time_offsets(&plan.spec)?;
        let own = fs::File::open("/proc/self/ns/time_for_children").context(|| "open the time namespace")?;
        ns::join(own.as_fd(), NsKind::Time)?;
    }
    Ok(())
}

fn write_time_offsets(spec: &Spec) -> Result<()> {
    let offsets = spec.linux.as_ref().map(|linux| &linux.time_offsets);
    for (clock, offset) in offsets.into_iter().flatten() {
        let line = format!("{clock} {} {}", offset.secs, offset.nanosecs);
        fs::write("/proc/self/timens_offsets", &line).context(|| format!("set time offset {line:?}"))?;
    }
    Ok(())
}

fn open_terminal(stdio: &Stdio, root: &rootfs::Root, channel: &Channel) -> Result<Option<OwnedFd>> {
    if !matches!(stdio, Stdio::Terminal { .. }) {
        return Ok(None);
    }
    let pty = root.open_terminal()?;
    channel.send(&Message::Console(pty.master))?;
    Ok(Some(pty.slave))
}

fn run_hooks_before_pivot(plan: &Plan, channel: &Channel, supplies: &Supplies<'_>) -> Result<()> {
    let Some(all) = &plan.spec.hooks else { return Ok(()) };
    if !(all.prestart.is_empty() && all.create_runtime.is_empty() && all.create_container.is_empty()) {
        supplies.complete()?;
    }
    if !(all.prestart.is_empty() && all.create_runtime.is_empty()) {
        channel.send(&Message::RunHooks)?;
        channel.wait_for_go().map_err(|_| parent_went_away())?;
    }
    if !all.create_container.is_empty() {
        let document = document(plan, Status::Creating);
        hooks::run("createContainer", &all.create_container, &plan.rootfs, &document, &Steps::default())?;
    }
    Ok(())
}

fn set_names(spec: &Spec) -> Result<()> {
    if !spec.hostname.is_empty() {
        rustix::system::sethostname(spec.hostname.as_bytes())
            .map_err(io::Error::from)
            .context(|| format!("set hostname {}", spec.hostname))?;
    }
    if !spec.domainname.is_empty() {
        rustix::system::setdomainname(spec.domainname.as_bytes())
            .map_err(io::Error::from)
            .context(|| format!("set domain name {}", spec.domainname))?;
    }
    Ok(())
}

fn set_streams(stdio: Stdio, terminal: Option<OwnedFd>, container_process: &Process) -> Result<()> {
    match (stdio, terminal) {
        (Stdio::Terminal { size, is_relayed }, Some(slave)) => {
            linux::tty::control(slave.as_fd())?;
            if is_relayed {
                linux::tty::keep_line_ends(slave.as_fd())?;
            }
            program::set_terminal(&slave, container_process, size)
        }
        (Stdio::Pipes { stdin, stdout, stderr }, _) => {
            program::set_streams(stdin.as_fd(), stdout.as_fd(), stderr.as_fd())?;
            program::take_null_from_inside()
        }
        _ => program::take_null_from_inside(),
    }
}
