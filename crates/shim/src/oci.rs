//! The OCI runtime behind a container: the one that is built in, or a program like runc.

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

/// A container of either runtime.
pub(crate) enum Oci {
    Embedded(EmbeddedRuntime),
    Command(CommandRuntime),
    /// None yet: its processes are in a checkpoint. Empty once it was tried to bring them back.
    Frozen(Option<Box<Frozen>>),
}

/// What a container is brought back from when it is started.
pub(crate) struct Frozen {
    /// The directory of the images.
    pub images: PathBuf,
    pub pending: PendingCreate,
    pub outside: Outside,
}

/// What a container is made from.
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

/// What a process gets as its standard streams.
pub(crate) enum Stdio {
    Pipes(Ends),
    Terminal,
}

/// A container that waits to be started.
pub(crate) struct Created {
    pub oci: Oci,
    pub pid: Pid,
    /// Present when a terminal was asked for.
    pub console: Option<OwnedFd>,
    /// What could not be done as the spec says, and was done otherwise.
    pub warnings: Vec<String>,
    pub owns_pids: bool,
}

/// A further process, running.
pub(crate) struct Executed {
    pub pid: Pid,
    /// Present when a terminal was asked for.
    pub console: Option<OwnedFd>,
    pub warnings: Vec<String>,
}

impl Created {
    /// What a worker tells of it.
    pub(crate) fn into_done(self) -> Done {
        Done { pid: pid_number(self.pid), console: self.console, warnings: self.warnings }
    }

    /// A container that a worker has made.
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

/// Where the runtime keeps its state: below the option `root`, or in a place of its own.
pub(crate) fn state_root(options: &Options, bundle: &Path, namespace: &str) -> PathBuf {
    match (options.root.as_str(), is_embedded(options)) {
        ("", true) => EmbeddedRuntime::default_root(bundle),
        ("", false) => Path::new("/run/containerd/runc").join(namespace),
        (root, _) => Path::new(root).join(namespace),
    }
}

/// Where criu keeps its log if no call says otherwise.
fn criu_work(options: &Options, bundle: &Path) -> PathBuf {
    match options.criu_work_path.as_str() {
        "" => bundle.join("criu-work"),
        path => PathBuf::from(path),
    }
}

/// Whether what the runtime does with a container may wait for somebody else: the runtime itself, or hooks and whom a
/// seccomp filter asks. criu is waited for in any case.
pub(crate) fn waits_for_others(options: &Options, bundle: &Path) -> bool {
    !is_embedded(options) || runtime::waits_for_others(bundle)
}

/// `NotFound` if the runtime is not there.
pub(crate) fn look_for(options: &Options) -> Result<()> {
    if is_embedded(options) { Ok(()) } else { CommandRuntime::look_for(&options.binary_name) }
}

/// A program is used only where one is named.
fn is_embedded(options: &Options) -> bool {
    options.binary_name.is_empty()
}

/// Whether a process is the first of a pid namespace below ours, so that the kernel ends all in it with the process. That
/// of another container is none.
fn owns_pids(pid: Pid) -> bool {
    // Unknown is no: then what the first process leaves is ended by the shim.
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    numbers.split_whitespace().skip(1).last() == Some("1")
}

/// What a container in a checkpoint cannot do.
fn not_started() -> Error {
    Error::failed_precondition("the container was not restored from its checkpoint yet; start it")
}

impl Oci {
    /// Brings a container back from the images in a directory. It runs when this returns.
    pub(crate) fn restore(create: Create<'_>, images: &Path, stdio: Stdio) -> Result<Created> {
        if is_embedded(create.options) {
            EmbeddedRuntime::restore(create, images, stdio)
        } else {
            CommandRuntime::restore(create, images, stdio)
        }
    }

    /// Makes the container up to the point where its program would start.
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

    /// Ends a further process whose start was cut off, and removes what that has left.
    pub(crate) fn end_exec(&mut self, exec_id: &str) -> Result<()> {
        match self {
            Oci::Command(runtime) => runtime.end_exec(exec_id),
            // These leave no files behind for a process that was not started.
            Oci::Embedded(_) | Oci::Frozen(_) => Ok(()),
        }
    }

    /// `NotFound` if the process is gone.
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

    /// Writes the processes' state as images into a directory, by criu.
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

    /// Takes down what is left, killing what still runs.
    /// Answers with warnings: what went wrong and kept nothing from being taken down.
    pub(crate) fn delete(&mut self, by_worker: bool) -> Result<Vec<String>> {
        match self {
            Oci::Embedded(runtime) => runtime.delete(),
            Oci::Command(runtime) => runtime.delete(by_worker).map(|()| Vec::new()),
            Oci::Frozen(_) => Ok(Vec::new()),
        }
    }
}

/// Takes down a container whose shim is gone.
pub(crate) fn delete_orphan(id: &str, bundle: &Path, record: &crate::record::RuntimeRecord) -> Result<()> {
    if record.binary.is_empty() {
        EmbeddedRuntime::delete_orphan(id, &record.root)
    } else {
        CommandRuntime::load(id, bundle, record).delete_rest()
    }
}

/// Takes down what a worker left that ended half way. The loop does it, so there are no hooks, and a bound.
pub(crate) fn take_down(id: &str, bundle: &Path, record: &crate::record::RuntimeRecord) -> Result<()> {
    if record.binary.is_empty() {
        EmbeddedRuntime::take_down(id, &record.root)
    } else {
        CommandRuntime::load(id, bundle, record).delete_rest()
    }
}
