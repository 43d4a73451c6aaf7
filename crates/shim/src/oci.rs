//! The OCI runtime behind a container: the one that is built in, or a program like runc.

mod command;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use api::shim::runc::Options;
use linux::cgroup::{OomWatch, Stats};
use linux::signal::Signal;
use rustix::process::Pid;
use types::{Error, Result};

use crate::stdio::Ends;
use command::CommandRuntime;

/// A container of either runtime.
pub(crate) enum Oci {
    Command(CommandRuntime),
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
    pub owns_pids: bool,
}

impl Created {
    pub(crate) fn take_console(&mut self) -> Result<OwnedFd> {
        self.console.take().ok_or_else(|| Error::internal("the runtime gave no console"))
    }
}

/// Where the runtime keeps its state: the option `root`, or a place of its own per namespace.
pub(crate) fn state_root(options: &Options, namespace: &str) -> PathBuf {
    let root = if options.root.is_empty() { "/run/containerd/runc" } else { &options.root };
    Path::new(root).join(namespace)
}

impl Oci {
    /// Makes the container up to the point where its program would start.
    pub(crate) fn create(create: Create<'_>, stdio: Stdio) -> Result<Created> {
        CommandRuntime::create(create, stdio)
    }

    pub(crate) fn start(&mut self) -> Result<()> {
        match self {
            Oci::Command(runtime) => runtime.start(),
        }
    }

    pub(crate) fn exec(&mut self, exec: Exec<'_>, stdio: Stdio) -> Result<(Pid, Option<OwnedFd>)> {
        match self {
            Oci::Command(runtime) => runtime.exec(exec, stdio),
        }
    }

    /// `NotFound` if the process is gone.
    pub(crate) fn kill(&mut self, signal: Signal) -> Result<()> {
        match self {
            Oci::Command(runtime) => runtime.kill(signal, false),
        }
    }

    pub(crate) fn kill_all(&mut self, signal: Signal) -> Result<()> {
        match self {
            Oci::Command(runtime) => runtime.kill(signal, true),
        }
    }

    pub(crate) fn pause(&mut self) -> Result<()> {
        match self {
            Oci::Command(runtime) => runtime.pause(),
        }
    }

    pub(crate) fn resume(&mut self) -> Result<()> {
        match self {
            Oci::Command(runtime) => runtime.resume(),
        }
    }

    /// `resources` is the OCI `linux.resources` as JSON.
    pub(crate) fn update(&mut self, resources: &[u8]) -> Result<()> {
        match self {
            Oci::Command(runtime) => runtime.update(resources),
        }
    }

    pub(crate) fn pids(&self) -> Result<Vec<u32>> {
        match self {
            Oci::Command(runtime) => runtime.pids(),
        }
    }

    pub(crate) fn stats(&self) -> Result<Stats> {
        match self {
            Oci::Command(runtime) => runtime.cgroup()?.stats(),
        }
    }

    pub(crate) fn watch_oom(&self) -> Result<OomWatch> {
        match self {
            Oci::Command(runtime) => runtime.cgroup()?.watch_oom(),
        }
    }

    /// Takes down what is left, killing what still runs.
    pub(crate) fn delete(&mut self) -> Result<()> {
        match self {
            Oci::Command(runtime) => runtime.delete(),
        }
    }
}

/// Takes down a container whose shim is gone.
pub(crate) fn delete_orphan(id: &str, bundle: &Path, record: &crate::record::RuntimeRecord) -> Result<()> {
    CommandRuntime::load(id, bundle, record).delete()
}
