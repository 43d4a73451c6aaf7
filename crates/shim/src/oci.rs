//! The OCI runtime of a container: the embedded one, or a program like runc.

mod command;
mod embedded;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use api::shim::runc::{CheckpointOptions, Options};
use linux::cgroup::{Cgroup, OomWatch, Stats};
use linux::signal::Signal;
use rustix::process::Pid;
use types::{Error, Result};

use crate::sandbox::PendingCreate;
use crate::stdio::Ends;
use crate::stdio::open::Outside;
use crate::worker::Done;
use command::CommandRuntime;
use embedded::EmbeddedRuntime;
pub(crate) use embedded::process;

/// A container's runtime.
pub(crate) enum Oci {
    Embedded(EmbeddedRuntime),
    Command(CommandRuntime),
    /// Not created yet: its processes are in a checkpoint. None once a restore was tried.
    Frozen(Option<Box<Frozen>>),
}

/// What a checkpointed container is restored from when it is started.
pub(crate) struct Frozen {
    /// The directory of the images.
    pub images: PathBuf,
    pub pending: PendingCreate,
    pub outside: Outside,
}

/// Parameters of a creation.
#[derive(Clone, Copy)]
pub(crate) struct Create<'a> {
    pub id: &'a str,
    pub bundle: &'a Path,
    /// The runtime's state directory.
    pub root: &'a Path,
    pub options: &'a Options,
}

/// A further process.
#[derive(Clone, Copy)]
pub(crate) struct Exec<'a> {
    pub exec_id: &'a str,
    /// The OCI `process` as JSON.
    pub spec: &'a [u8],
}

/// Standard streams of a new process.
pub(crate) enum Stdio {
    Pipes(Ends),
    Terminal,
}

/// A created container that was not started yet.
pub(crate) struct Created {
    pub oci: Oci,
    pub pid: Pid,
    /// The terminal's master, if one was asked for.
    pub console: Option<OwnedFd>,
    /// Deviations from the spec that do not keep the container from running.
    pub warnings: Vec<String>,
    pub owns_pids: bool,
}

/// A running further process.
pub(crate) struct Executed {
    pub pid: Pid,
    /// The terminal's master, if one was asked for.
    pub console: Option<OwnedFd>,
    pub warnings: Vec<String>,
}

impl Created {
    /// The report that a worker sends.
    pub(crate) fn into_done(self) -> Done {
        Done { pid: pid_number(self.pid), console: self.console, warnings: self.warnings }
    }

    /// The container that a worker has reported.
    pub(crate) fn from_done(create: Create<'_>, done: Done) -> Result<Created> {
        let pid = pid(done.pid)?;
        let oci = if is_embedded(create.options) {
            Oci::Embedded(EmbeddedRuntime::find(create)?)
        } else {
            Oci::Command(CommandRuntime::find(create, pid))
        };
        Ok(Created { oci, pid, console: done.console, warnings: done.warnings, owns_pids: owns_pids(pid) })
    }
}

impl Executed {
    pub(crate) fn into_done(self) -> Done {
        Done { pid: pid_number(self.pid), console: self.console, warnings: self.warnings }
    }

    pub(crate) fn from_done(done: Done) -> Result<Executed> {
        Ok(Executed { pid: pid(done.pid)?, console: done.console, warnings: done.warnings })
    }
}

pub(crate) fn pid_number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().cast_unsigned()
}

fn pid(number: u32) -> Result<Pid> {
    let pid = i32::try_from(number).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| Error::internal(format!("{number} is no pid")))
}

impl From<Option<Ends>> for Stdio {
    fn from(ends: Option<Ends>) -> Stdio {
        ends.map_or(Stdio::Terminal, Stdio::Pipes)
    }
}

/// The runtime's state directory: below the option `root`, or the runtime's default.
pub(crate) fn state_root(options: &Options, bundle: &Path, namespace: &str) -> PathBuf {
    match (options.root.as_str(), is_embedded(options)) {
        ("", true) => EmbeddedRuntime::default_root(bundle),
        ("", false) => Path::new("/run/containerd/runc").join(namespace),
        (root, _) => Path::new(root).join(namespace),
    }
}

/// criu's default log directory.
fn criu_work(options: &Options, bundle: &Path) -> PathBuf {
    match options.criu_work_path.as_str() {
        "" => bundle.join("criu-work"),
        path => PathBuf::from(path),
    }
}

/// Whether the runtime's work on a container may block on other programs: on a runtime that options name, on hooks, or
/// on the supervisor of a seccomp filter. criu always blocks.
pub(crate) fn waits_for_others(options: &Options, bundle: &Path) -> bool {
    !is_embedded(options) || runtime::waits_for_others(bundle)
}

/// Checks that the runtime exists; `NotFound` if not.
pub(crate) fn look_for(options: &Options) -> Result<()> {
    if is_embedded(options) { Ok(()) } else { CommandRuntime::look_for(&options.binary_name) }
}

/// The embedded runtime is used unless options name a program.
fn is_embedded(options: &Options) -> bool {
    options.binary_name.is_empty()
}

/// Whether a process is the first of its own pid namespace below the shim's, so that the kernel kills all others in it
/// with the process. False if it joined another container's.
fn owns_pids(pid: Pid) -> bool {
    // Unknown counts as no: then the shim kills the processes that the first one leaves.
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    numbers.split_whitespace().skip(1).last() == Some("1")
}

/// The error of calls that a checkpointed container cannot serve.
fn not_started() -> Error {
    Error::failed_precondition("the container was not restored from its checkpoint yet; start it")
}

impl Oci {
    /// Restores a container from the images in a directory. It is running when this returns.
    pub(crate) fn restore(create: Create<'_>, images: &Path, stdio: Stdio) -> Result<Created> {
        if is_embedded(create.options) {
            EmbeddedRuntime::restore(create, images, stdio)
        } else {
            CommandRuntime::restore(create, images, stdio)
        }
    }

    /// Creates the container, up to the point where its program would start.
    pub(crate) fn create(create: Create<'_>, stdio: Stdio) -> Result<Created> {
        if is_embedded(create.options) {
            EmbeddedRuntime::create(create, stdio)
        } else {
            CommandRuntime::create(create, stdio)
        }
    }

    pub(crate) fn start(&mut self) -> Result<()> {
        match self {
            Oci::Embedded(runtime) => runtime.start(),
            Oci::Command(runtime) => runtime.start(),
            Oci::Frozen(_) => Err(not_started()),
        }
    }

    pub(crate) fn exec(&mut self, exec: Exec<'_>, stdio: Stdio) -> Result<Executed> {
        match self {
            Oci::Embedded(runtime) => runtime.exec(exec, stdio),
            Oci::Command(runtime) => runtime.exec(exec, stdio),
            Oci::Frozen(_) => Err(not_started()),
        }
    }

    /// Kills a further process whose start was cut off, and removes its files.
    pub(crate) fn end_exec(&mut self, exec_id: &str) -> Result<()> {
        match self {
            Oci::Command(runtime) => runtime.end_exec(exec_id),
            // These leave no files behind.
            Oci::Embedded(_) | Oci::Frozen(_) => Ok(()),
        }
    }

    /// `NotFound` if the process has ended.
    pub(crate) fn kill(&mut self, signal: Signal) -> Result<()> {
        match self {
            Oci::Embedded(runtime) => runtime.kill(signal, false),
            Oci::Command(runtime) => runtime.kill(signal, false),
            Oci::Frozen(_) => Err(not_started()),
        }
    }

    pub(crate) fn kill_all(&mut self, signal: Signal) -> Result<()> {
        match self {
            Oci::Embedded(runtime) => runtime.kill(signal, true),
            Oci::Command(runtime) => runtime.kill(signal, true),
            Oci::Frozen(_) => Err(not_started()),
        }
    }

    pub(crate) fn pause(&mut self) -> Result<()> {
        match self {
            Oci::Embedded(runtime) => runtime.pause(),
            Oci::Command(runtime) => runtime.pause(),
            Oci::Frozen(_) => Err(not_started()),
        }
    }

    pub(crate) fn resume(&mut self) -> Result<()> {
        match self {
            Oci::Embedded(runtime) => runtime.resume(),
            Oci::Command(runtime) => runtime.resume(),
            Oci::Frozen(_) => Err(not_started()),
        }
    }

    /// `resources` is the OCI `linux.resources` as JSON.
    pub(crate) fn update(&mut self, resources: &[u8]) -> Result<()> {
        match self {
            Oci::Embedded(runtime) => runtime.update(resources),
            Oci::Command(runtime) => runtime.update(resources),
            Oci::Frozen(_) => Err(not_started()),
        }
    }

    /// Writes the container's processes to a directory as images, by criu.
    pub(crate) fn checkpoint(&mut self, images: &Path, options: &CheckpointOptions) -> Result<()> {
        match self {
            Oci::Embedded(runtime) => runtime.checkpoint(images, options),
            Oci::Command(runtime) => runtime.checkpoint(images, options),
            Oci::Frozen(_) => Err(not_started()),
        }
    }

    pub(crate) fn pids(&self) -> Result<Vec<u32>> {
        match self {
            Oci::Embedded(runtime) => runtime.pids(),
            Oci::Command(runtime) => runtime.pids(),
            Oci::Frozen(_) => Ok(Vec::new()),
        }
    }

    pub(crate) fn stats(&self) -> Result<Stats> {
        self.cgroup()?.stats()
    }

    pub(crate) fn watch_oom(&self) -> Result<OomWatch> {
        self.cgroup()?.watch_oom()
    }

    pub(crate) fn cgroup(&self) -> Result<Cgroup> {
        match self {
            Oci::Embedded(runtime) => runtime.cgroup(),
            Oci::Command(runtime) => runtime.cgroup(),
            Oci::Frozen(_) => Err(not_started()),
        }
    }

    /// Removes the container, after killing its processes. Returns warnings: errors that did not stop the deletion.
    pub(crate) fn delete(&mut self, by_worker: bool) -> Result<Vec<String>> {
        match self {
            Oci::Embedded(runtime) => runtime.delete(),
            Oci::Command(runtime) => runtime.delete(by_worker).map(|()| Vec::new()),
            Oci::Frozen(_) => Ok(Vec::new()),
        }
    }
}

/// Removes a container whose shim is dead.
pub(crate) fn delete_orphan(id: &str, bundle: &Path, record: &crate::record::RuntimeRecord) -> Result<()> {
    if record.binary.is_empty() {
        EmbeddedRuntime::delete_orphan(id, &record.root)
    } else {
        CommandRuntime::load(id, bundle, record).delete_rest()
    }
}

/// Removes the remains of a worker that died. The loop calls it, so it runs no hooks, and is bounded in time.
pub(crate) fn take_down(id: &str, bundle: &Path, record: &crate::record::RuntimeRecord) -> Result<()> {
    if record.binary.is_empty() {
        EmbeddedRuntime::take_down(id, &record.root)
    } else {
        CommandRuntime::load(id, bundle, record).delete_rest()
    }
}
