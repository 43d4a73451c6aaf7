//! The child's side of a container's birth: from clone to exec. `docs/design/init.md` lists the steps.
//!
//! The process is a copy of its parent with one thread, in new namespaces, with the parent's descriptors.
//! It trusts nothing in the container's root: paths there are opened beneath the root's descriptor, and
//! nothing of the container runs before the last step.

use std::convert::Infallible;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use linux::ns::{self, NsKind};
use linux::process;
use types::spec::runtime::{Process, Spec};
use types::{Context, Error, ErrorKind, Result};

use crate::channel::{Channel, Message};
use crate::create::Plan;
use crate::plan::Stdio;
use crate::state::{State, Status};
use crate::{hooks, program, rootfs};

/// Runs the steps; on failure tells the parent and ends.
pub(crate) fn main(plan: Plan, channel: &Channel) -> ! {
    let outcome = run(plan, channel);
    let Err(error) = outcome;
    // Nobody listens any more if the failure came after Ready; then it went through the start socket.
    let _ = channel.send(&Message::Failed(error.kind(), error.chain()));
    process::exit_now(1)
}

fn run(plan: Plan, channel: &Channel) -> Result<Infallible> {
    process::die_with_parent(true)?;
    // From the parent: the way in is free.
    match channel.receive()? {
        Some(Message::Go) => {}
        _ => return Err(Error::aborted("the parent went away")),
    }
    if let Some(entry) = &plan.entry {
        entry.enter().context(|| "enter the cgroup")?;
    }
    join_namespaces(&plan)?;
    become_root_of_user_namespace(&plan)?;
    rustix::process::setsid().map_err(io::Error::from).context(|| "begin a session")?;
    if !plan.no_new_keyring {
        program::new_keyring(&plan.id)?;
    }

    let spec = &plan.spec;
    let container_process = spec.process.as_ref().expect("checked when the spec was read");
    let root = rootfs::build(&plan, channel)?;
    let terminal = open_terminal(&plan.stdio, &root, channel)?;
    run_hooks_before_pivot(&plan, channel)?;
    rootfs::enter(&plan, root)?;
    set_names(spec)?;
    rootfs::restrict(spec)?;

    set_streams(&plan.stdio, terminal.as_ref(), container_process)?;
    // The listener outlives the change of user: whoever may reach its path may start the container.
    let start = plan.start.try_clone().context(|| "keep the start socket")?;
    process::close_on_exec_from(3 + plan.preserve_fds)?;
    set_personality(spec)?;
    // With hooks to run the user is changed after them, since they run as who we are now.
    let start_hooks = spec.hooks.as_ref().map_or(&[][..], |hooks| &hooks.start_container);
    let checked = if start_hooks.is_empty() {
        program::become_user(container_process, plan.filter.as_ref(), channel)?;
        Some(program::find(container_process)?)
    } else {
        None
    };
    process::reset_signals();
    // A container outlives whoever made it.
    process::die_with_parent(false)?;
    channel.send(&Message::Ready)?;

    // From here on the one who starts us is told how it went.
    let (mut starter, _) = start.accept().context(|| "wait to be started")?;
    let Err(error) = finish(&plan, start_hooks, checked, container_process, channel);
    let _ = write!(starter, "{}:{}", error.kind().code(), error.chain());
    process::exit_now(match error.kind() {
        ErrorKind::NotFound => 127,
        ErrorKind::PermissionDenied => 126,
        _ => 1,
    })
}

fn finish(
    plan: &Plan,
    start_hooks: &[types::spec::runtime::Hook],
    checked: Option<std::ffi::CString>,
    container_process: &Process,
    channel: &Channel,
) -> Result<Infallible> {
    let program = match checked {
        Some(program) => program,
        None => {
            let mut state = State::new(&plan.id, std::process::id(), &plan.bundle, &plan.rootfs)?;
            state.annotations.clone_from(&plan.spec.annotations);
            hooks::run("startContainer", start_hooks, &state.document(Status::Created))?;
            program::become_user(container_process, plan.filter.as_ref(), channel)?;
            program::find(container_process)?
        }
    };
    Err(program::execute(&program, container_process))
}

/// Joins what exists and makes what clone could not.
fn join_namespaces(plan: &Plan) -> Result<()> {
    for (kind, file) in &plan.namespaces.joined {
        // The pid namespace was joined by the parent, for us.
        if *kind != NsKind::Pid {
            ns::join(file.as_fd(), *kind)?;
        }
    }
    if plan.namespaces.is_new(NsKind::Cgroup) {
        ns::unshare(&[NsKind::Cgroup])?;
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

/// In a user namespace whoever is 0 may do what follows.
#[expect(unsafe_code, reason = "the raw system calls, which change this thread only: there is no other")]
fn become_root_of_user_namespace(plan: &Plan) -> Result<()> {
    if !plan.namespaces.has(NsKind::User) {
        return Ok(());
    }
    // SAFETY: numbers only.
    let failed = unsafe {
        libc::syscall(libc::SYS_setresgid, 0, 0, 0) < 0 || libc::syscall(libc::SYS_setresuid, 0, 0, 0) < 0
    };
    if failed {
        return Err(io::Error::last_os_error()).context(|| "become root of the user namespace");
    }
    // The change of user made us untraceable by our own namespace, /proc/self included.
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

fn run_hooks_before_pivot(plan: &Plan, channel: &Channel) -> Result<()> {
    let Some(all) = &plan.spec.hooks else { return Ok(()) };
    if !(all.prestart.is_empty() && all.create_runtime.is_empty()) {
        channel.send(&Message::RunHooks)?;
        match channel.receive()? {
            Some(Message::Go) => {}
            _ => return Err(Error::aborted("the parent went away")),
        }
    }
    if !all.create_container.is_empty() {
        let mut state = State::new(&plan.id, std::process::id(), &plan.bundle, &plan.rootfs)?;
        state.annotations.clone_from(&plan.spec.annotations);
        hooks::run("createContainer", &all.create_container, &state.document(Status::Creating))?;
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

fn set_streams(stdio: &Stdio, terminal: Option<&OwnedFd>, container_process: &Process) -> Result<()> {
    match (stdio, terminal) {
        (Stdio::Terminal { size }, Some(slave)) => program::take_terminal(slave, container_process, *size),
        (Stdio::Pipes { stdin, stdout, stderr }, _) => {
            program::set_streams(stdin.as_fd(), stdout.as_fd(), stderr.as_fd())
        }
        _ => Ok(()),
    }
}

#[expect(unsafe_code, reason = "personality has no wrapper in rustix")]
fn set_personality(spec: &Spec) -> Result<()> {
    let Some(personality) = spec.linux.as_ref().and_then(|linux| linux.personality.as_ref()) else {
        return Ok(());
    };
    let domain = match personality.domain.as_str() {
        "LINUX" => 0,
        "LINUX32" => 8,
        other => return Err(Error::invalid_argument(format!("unknown personality {other:?}"))),
    };
    if !personality.flags.is_empty() {
        return Err(Error::invalid_argument("personality.flags are not defined by the specification"));
    }
    // SAFETY: a number only.
    if unsafe { libc::personality(domain) } < 0 {
        return Err(io::Error::last_os_error()).context(|| "set personality");
    }
    Ok(())
}
