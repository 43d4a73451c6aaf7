//! Containers of the embedded runtime (crate `runtime`).
//!
//! It clones this very process: the shim has one thread and runs from a sealed copy, as the runtime requires of its
//! caller. Containers' processes are children of the shim from the start: none is reparented, and no pid is passed
//! through a file.

use std::path::{Path, PathBuf};

use api::shim::runc::{CheckpointOptions, Options};
use linux::cgroup::{Cgroup, Instance};
use linux::signal::Signal;
use runtime::{Container, CreateOptions, CriuOptions, ExecOptions, RestoreOptions};
use types::spec::runtime::{LinuxResources, Process};
use types::{Error, ErrorKind, Result};

use super::{Create, Created, Exec, Executed, Oci, Stdio, criu_work, owns_pids, pid};

pub(crate) struct EmbeddedRuntime {
    container: Container,
    /// The default directory of criu's log.
    criu_work: PathBuf,
}

impl EmbeddedRuntime {
    pub(crate) fn create(create: Create<'_>, stdio: Stdio) -> Result<Created> {
        let made = Container::create(CreateOptions {
            id: create.id,
            bundle: create.bundle,
            state_root: create.root,
            stdio: streams(stdio),
            systemd: systemd(create.options)?,
            no_pivot: create.options.no_pivot_root,
            no_new_keyring: create.options.no_new_keyring,
            preserve_fds: 0,
            environment: Vec::new(),
            takes_notices: false,
            steps: runtime::Steps::default(),
        })?;
        Self::created(create, made)
    }

    pub(crate) fn restore(create: Create<'_>, images: &Path, stdio: Stdio) -> Result<Created> {
        let criu = CriuOptions {
            work: Some(criu_work(create.options, create.bundle)),
            // The options under which the checkpoint was made are not known, so all are allowed.
            tcp_established: true,
            external_unix_sockets: true,
            file_locks: true,
            ..CriuOptions::new(images)
        };
        let made = Container::restore(RestoreOptions {
            id: create.id,
            bundle: create.bundle,
            state_root: create.root,
            stdio: streams(stdio),
            systemd: systemd(create.options)?,
            criu,
            takes_notices: false,
            lsm_profile: None,
            lsm_mount_context: None,
        })?;
        Self::created(create, made)
    }

    /// A container that another process has made.
    pub(crate) fn find(create: Create<'_>) -> Result<EmbeddedRuntime> {
        let container = Container::load(create.root, create.id)?;
        Ok(EmbeddedRuntime { container, criu_work: criu_work(create.options, create.bundle) })
    }

    fn created(create: Create<'_>, made: runtime::Created) -> Result<Created> {
        let pid = pid(made.pid)?;
        let criu_work = criu_work(create.options, create.bundle);
        Ok(Created {
            oci: Oci::Embedded(EmbeddedRuntime { container: made.container, criu_work }),
            pid,
            console: made.console,
            warnings: made.warnings,
            owns_pids: owns_pids(pid),
        })
    }

    pub(crate) fn start(&self) -> Result<()> {
        self.container.start()
    }

    pub(crate) fn exec(&self, exec: Exec<'_>, stdio: Stdio) -> Result<Executed> {
        let process = process(exec.spec)?;
        let made = self.container.exec(&process, ExecOptions::new(streams(stdio)))?;
        Ok(Executed { pid: pid(made.pid)?, console: made.console, warnings: made.warnings })
    }

    pub(crate) fn kill(&self, signal: Signal, all: bool) -> Result<()> {
        self.container.kill(signal.number().unsigned_abs(), all)
    }

    pub(crate) fn pause(&self) -> Result<()> {
        self.container.pause()
    }

    pub(crate) fn resume(&self) -> Result<()> {
        self.container.resume()
    }

    pub(crate) fn update(&self, resources: &[u8]) -> Result<()> {
        self.container.update(&parse::<LinuxResources>("resources", resources)?)
    }

    pub(crate) fn checkpoint(&self, images: &Path, options: &CheckpointOptions) -> Result<()> {
        for name in &options.empty_namespaces {
            runtime::check_empty_namespace(name)?;
        }
        let work = match options.work_path.as_str() {
            "" => self.criu_work.clone(),
            path => PathBuf::from(path),
        };
        let criu = CriuOptions {
            work: Some(work),
            tcp_established: options.open_tcp,
            external_unix_sockets: options.external_unix_sockets,
            shell_job: options.terminal,
            file_locks: options.file_locks,
            cgroups: options.cgroups_mode.parse()?,
            ..CriuOptions::new(images)
        };
        self.container.checkpoint(runtime::CheckpointOptions {
            leave_running: !options.exit,
            parent: Some(&options.parent_path).filter(|path| !path.is_empty()).map(PathBuf::from),
            ..runtime::CheckpointOptions::new(criu)
        })
    }

    pub(crate) fn pids(&self) -> Result<Vec<u32>> {
        self.container.pids()
    }

    pub(crate) fn cgroup(&self) -> Result<Cgroup> {
        self.container.cgroup()
    }

    pub(crate) fn delete(&self) -> Result<Vec<String>> {
        let state = self.container.clone();
        let failed = state.delete(true)?;
        Ok(failed.iter().map(Error::chain).collect())
    }

    /// The default state directory of a container: in the bundle, so that it is removed with it, and two daemons never
    /// share one.
    pub(crate) fn default_root(bundle: &Path) -> PathBuf {
        bundle.join("runtime")
    }

    /// Removes a container whose shim is dead, complete or not.
    pub(crate) fn delete_orphan(id: &str, root: &Path) -> Result<()> {
        Self::delete_rest(id, root, |container| container.delete(true).map(drop))
    }

    /// Removes the remains of a worker, without hooks, on which the loop would block.
    pub(crate) fn take_down(id: &str, root: &Path) -> Result<()> {
        Self::delete_rest(id, root, Container::take_down)
    }

    fn delete_rest(id: &str, root: &Path, delete: impl FnOnce(Container) -> Result<()>) -> Result<()> {
        match Container::load(root, id) {
            Ok(container) => delete(container),
            Err(error) if error.is(ErrorKind::NotFound) => Ok(()),
            Err(error) if error.is(ErrorKind::FailedPrecondition) => Container::remove_unfinished(root, id),
            Err(error) => Err(error),
        }
    }
}

/// The systemd instance that makes cgroups, if the options ask for that.
fn systemd(options: &Options) -> Result<Option<Instance>> {
    let ask = || Instance::of_caller(|variable| std::env::var_os(variable));
    options.systemd_cgroup.then(ask).transpose()
}

fn streams(stdio: Stdio) -> runtime::Stdio {
    match stdio {
        Stdio::Pipes(ends) => {
            runtime::Stdio::Pipes { stdin: ends.stdin, stdout: ends.stdout, stderr: ends.stderr }
        }
        Stdio::Terminal => runtime::Stdio::Terminal { size: None, is_relayed: false },
    }
}

/// Parses an OCI `process`.
pub(crate) fn process(json: &[u8]) -> Result<Process> {
    parse("process spec", json)
}

fn parse<T: serde::de::DeserializeOwned>(what: &str, json: &[u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(|error| {
        Error::invalid_argument(format!("the {what} is not as the OCI says")).with_source(error)
    })
}
