//! An existing container: queries and operations.

use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use linux::cgroup::{self, Cgroup, Instance, Stats};
use linux::process::{PidFd, wait_readable};
use linux::signal::SIGKILL;
use types::spec::runtime::{Hooks, IntelRdt, LinuxResources, Process, Spec};
use types::{Context, Error, ErrorKind, Result, UnlessGone};

use crate::checkpoint::{self, CheckpointOptions};
use crate::create::{self, CreateOptions, Created};
use crate::exec::{self, Exec, ExecOptions};
use crate::plan::read_spec;
use crate::restore::{self, RestoreOptions};
use crate::start::{START, Starter};
use crate::state::{PAUSED, State, StateDir, Status, check_id};
use crate::steps::Steps;
use crate::{cgroup_note, hooks, resctrl};

/// How long `start` waits for execve(2), which may be slow, as from a network file system.
const EXECUTE_MAX: Duration = Duration::from_secs(5);

/// How long a killed first process may take to end.
const END_MAX: Duration = Duration::from_secs(10);

/// A handle. It holds no descriptor: every call asks the kernel anew.
#[derive(Clone, Debug)]
pub struct Container {
    dir: StateDir,
    state: Box<State>,
    steps: Steps,
}

impl Container {
    /// Creates a container from a bundle, up to the point where its program would be executed.
    ///
    /// The calling process must have a single thread. `InvalidArgument` if `config.json` is invalid, `AlreadyExists` if
    /// the id is taken, `NotFound` or `PermissionDenied` if the program cannot be executed. After an error nothing is
    /// left behind.
    pub fn create(options: CreateOptions<'_>) -> Result<Created> {
        create::create(options)
    }

    /// Loads a container. `NotFound` if there is none of this id, `FailedPrecondition` if its creation was cut off.
    pub fn load(state_root: &Path, id: &str) -> Result<Container> {
        let dir = StateDir::open(state_root, id)?;
        let state = dir.try_read()?;
        let state = state.ok_or_else(|| {
            Error::failed_precondition(format!("container {id} was never finished; delete it"))
        })?;
        Ok(Container::from_parts(dir, state))
    }

    /// Removes the remains of a creation that was cut off. `NotFound` if there are none.
    pub fn remove_unfinished(state_root: &Path, id: &str) -> Result<()> {
        let dir = StateDir::open(state_root, id)?;
        match dir.try_read()? {
            Some(_) => Err(Error::failed_precondition(format!("container {id} is complete"))),
            None => {
                cgroup_note::remove_cgroup(&dir)
                    .map_err(|error| error.context(format!("remove unfinished container {id}")))?;
                dir.remove()
            }
        }
    }

    /// The ids below a state root.
    pub fn list(state_root: &Path) -> Result<Vec<String>> {
        let entries = match std::fs::read_dir(state_root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context(|| format!("read {}", state_root.display())),
        };
        let mut ids: Vec<String> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                // State directories are never links.
                entry.file_type().ok()?.is_dir().then(|| entry.file_name().into_string().ok())?
            })
            .filter(|name| check_id(name).is_ok())
            .collect();
        ids.sort();
        Ok(ids)
    }

    pub(crate) fn from_parts(dir: StateDir, state: State) -> Container {
        Container { dir, state: Box::new(state), steps: Steps::default() }
    }

    /// The same handle, which reports its steps from here on.
    #[must_use]
    pub fn with_steps(self, steps: Steps) -> Container {
        Container { steps, ..self }
    }

    pub fn id(&self) -> &str {
        &self.state.id
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn dir(&self) -> &StateDir {
        &self.dir
    }

    /// The container's status, read from the kernel each time.
    pub fn status(&self) -> Result<Status> {
        if !self.state.is_alive()? {
            return Ok(Status::Stopped);
        }
        let has = |name: &str| {
            let found = self.dir.path(name).try_exists();
            found.context(|| format!("look whether container {} was started", self.id()))
        };
        let is_unstarted = has(START)?;
        // Reading the freezer's state costs time on the path of `start`, so only containers that can be frozen are
        // asked.
        let may_be_frozen = !is_unstarted || has(PAUSED)?;
        if may_be_frozen && self.cgroup().and_then(|cgroup| cgroup.is_frozen()).unwrap_or(false) {
            return Ok(Status::Paused);
        }
        Ok(if is_unstarted { Status::Created } else { Status::Running })
    }

    /// Executes the container's program, and waits a few seconds at most for execve(2) to return. `NotFound` or
    /// `PermissionDenied` if a file or a right is missing; `FailedPrecondition` if the container is not in the state
    /// created.
    pub fn start(&self) -> Result<()> {
        let what = || format!("start container {}", self.id());
        match self.status()? {
            Status::Created => {}
            status => {
                let why = match status {
                    Status::Paused => "it is paused, and not in the state created; resume it first",
                    Status::Stopped => "it has stopped, and is not in the state created",
                    _ => "it is not in the state created",
                };
                return Err(Error::failed_precondition(format!("{}: {why}", what())));
            }
        }
        let starter = Starter::open(&self.dir).map_err(|error| error.context(what()))?;
        let hooks = self.state.hooks()?;
        // Taken before the container runs: a running container still marked as created could be deleted without force.
        starter.take(&self.dir).context(what)?;
        self.steps.tell(format_args!("{}: process {} goes on to its program", what(), self.state.pid));
        // A program that fails to execute after the wait ends as a process that exits with an error.
        let patience = hooks.start_container.is_empty().then_some(EXECUTE_MAX);
        let answer = starter.go(patience).map_err(|error| error.context(what()))?;
        if let Some((code, words)) = answer.split_once(':') {
            let kind = code.parse().map_or(ErrorKind::Unknown, ErrorKind::from_code);
            return Err(Error::new(kind, words.to_owned()).context(what()));
        }
        self.steps.tell(format_args!("{}: the program is executed", what()));
        self.run_poststart_hooks(&hooks)
    }

    /// Binds the socket on which the program of a container created with [`CreateOptions::takes_notices`] reports its
    /// readiness (sd_notify(3)). To be called before the start. None for other containers.
    pub fn listen_for_notices(&self) -> Result<Option<UnixDatagram>> {
        self.dir.bind_notices()
    }

    fn run_poststart_hooks(&self, hooks: &Hooks) -> Result<()> {
        if hooks.poststart.is_empty() {
            return Ok(());
        }
        let document = self.state.document(Status::Running);
        let run = hooks::run("poststart", &hooks.poststart, &self.state.bundle, &document, &self.steps);
        run.inspect_err(|_| {
            // A container whose hook fails is stopped (`runtime.md`, "Lifecycle"). It may have ended already.
            let _ = self.kill(SIGKILL, false);
        })
    }

    /// Starts a further process. The calling process must have a single thread.
    pub fn exec(&self, process: &Process, options: ExecOptions) -> Result<Exec> {
        exec::exec(self, process, options)
    }

    /// Sends a signal to the first process, or to every process of the container. `NotFound` if it has ended.
    pub fn kill(&self, signal: u32, all: bool) -> Result<()> {
        let what = || format!("kill container {}", self.id());
        let whom = if all || signal == SIGKILL { "all its processes" } else { "its first process" };
        self.steps.tell(format_args!("{}: signal {signal} to {whom}", what()));
        if all {
            return self.signal_all(signal).map_err(|error| error.context(what()));
        }
        if signal == SIGKILL {
            return self.kill_with_others().map_err(|error| error.context(what()));
        }
        self.open_init()?.signal(signal).map_err(|error| error.context(what()))
    }

    fn signal_all(&self, signal: u32) -> Result<()> {
        if self.has_left_its_cgroup()? {
            return Ok(());
        }
        match self.cgroup() {
            Ok(cgroup) if signal == SIGKILL => cgroup.kill().and_then(|()| self.kill_init()),
            Ok(cgroup) => cgroup.signal(signal),
            // A container that was made without privileges may have no cgroup; then only its first process is known.
            Err(error) if error.is(ErrorKind::NotFound) => {
                match self.open_init().and_then(|init| init.signal(signal)) {
                    Err(error) if error.is(ErrorKind::NotFound) => Ok(()),
                    signalled => signalled,
                }
            }
            Err(error) => Err(error),
        }
    }

    /// As runc does: without a pid namespace of its own, the others would outlive the first process. `NotFound` if
    /// there is no process left.
    fn kill_with_others(&self) -> Result<()> {
        if self.has_left_its_cgroup()? {
            return self.open_init().map(drop);
        }
        let first = self.open_init().and_then(|init| init.kill());
        let others = self.cgroup().and_then(|cgroup| {
            let are_there = !cgroup.processes()?.is_empty();
            cgroup.kill()?;
            // The signals are sent; a freezer that cannot be thawed is no failure.
            let _ = cgroup.thaw_killed();
            Ok(are_there)
        });
        match (first, others) {
            (Err(error), Ok(true)) if error.is(ErrorKind::NotFound) => Ok(()),
            // Without a cgroup, or one that the user may not write to, only the first process can be signalled.
            (Ok(()), Err(error))
                if !error.is(ErrorKind::NotFound) && !error.is(ErrorKind::PermissionDenied) =>
            {
                Err(error)
            }
            (first, _) => first,
        }
    }

    /// Whether none of the container's processes can be in its cgroup, which may be another container's by now: in a
    /// pid namespace of its own, all have ended with the first process (pid_namespaces(7)).
    fn has_left_its_cgroup(&self) -> Result<bool> {
        Ok(self.state.has_own_pids == Some(true) && !self.state.is_alive()?)
    }

    /// The first process may have moved to another cgroup, out of reach of a kill by cgroup. No error if it has ended.
    fn kill_init(&self) -> Result<()> {
        self.open_init().and_then(|init| init.kill()).unless_gone().map(drop)
    }

    /// Freezes all processes. `FailedPrecondition` if the container is paused already, or has stopped.
    pub fn pause(&self) -> Result<()> {
        match self.status()? {
            Status::Running => self.cgroup()?.freeze(),
            // As runc does. `start` then waits until the container is resumed.
            Status::Created => {
                self.dir.write_file(PAUSED, b"")?;
                self.cgroup()?.freeze()
            }
            Status::Paused => {
                Err(Error::failed_precondition(format!("container {} is already paused", self.id())))
            }
            _ => Err(Error::failed_precondition(format!("container {} is not running", self.id()))),
        }
    }

    /// Thaws all processes. `FailedPrecondition` if the container is not paused.
    pub fn resume(&self) -> Result<()> {
        match self.status()? {
            Status::Paused => {
                self.cgroup()?.thaw()?;
                // Most containers have no such file; one left behind only costs a look at the freezer.
                let _ = std::fs::remove_file(self.dir.path(PAUSED));
                Ok(())
            }
            _ => Err(Error::failed_precondition(format!("container {} is not paused", self.id()))),
        }
    }

    /// Changes limits. Limits that are not given stay, and so do all if one is refused. `FailedPrecondition` if the
    /// container has stopped.
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        let update = || {
            if self.status()? == Status::Stopped {
                return Err(Error::failed_precondition("it has stopped: container not running"));
            }
            let cgroup = self.cgroup()?;
            // The bundle may be changed or gone once the container is made.
            let made_with = self.spec().ok().and_then(|spec| spec.linux?.resources).unwrap_or_default();
            let resources = cgroup.completed(resources, &made_with)?;
            match &self.state.systemd_scope {
                Some(scope) => cgroup::update_scope(&self.systemd(), scope, &cgroup, &resources),
                None => cgroup.update(&resources),
            }
        };
        update().map_err(|error| error.context(format!("update container {}", self.id())))
    }

    /// Changes the schemata of cache and memory bandwidth (resctrl); an empty text leaves one as it is. A container
    /// without a resctrl group gets one.
    pub fn update_shares(&self, l3_cache: &str, memory_bandwidth: &str) -> Result<()> {
        let update = || {
            let root = resctrl::mounted()?;
            let before = self.spec()?.linux.and_then(|linux| linux.intel_rdt);
            let has_clos = before.is_some() || self.state.resctrl.is_some();
            let wanted = IntelRdt {
                l3_cache_schema: l3_cache.to_owned(),
                mem_bw_schema: memory_bandwidth.to_owned(),
                schemata: Vec::new(),
                ..before.unwrap_or_default()
            };
            if has_clos {
                return resctrl::change(&root, self.id(), &wanted);
            }
            let clos = resctrl::Clos::prepare(&root, self.id(), &wanted)?;
            // The state is written first, so that a deletion removes the group.
            self.dir.write(&State {
                resctrl: clos.own.clone(),
                resctrl_groups: clos.groups(),
                ..(*self.state).clone()
            })?;
            self.pids()?.into_iter().try_for_each(|pid| clos.add(pid))
        };
        update()
            .map_err(|error: Error| error.context(format!("update the shares of container {}", self.id())))
    }

    /// The schemata and usage of the container's resctrl group. None without a group.
    pub(crate) fn shares(&self) -> Result<Option<resctrl::Figures>> {
        let wanted = self.spec()?.linux.and_then(|linux| linux.intel_rdt);
        if wanted.is_none() && self.state.resctrl.is_none() {
            return Ok(None);
        }
        resctrl::mounted()
            .and_then(|root| resctrl::Figures::read(&root, self.id(), &wanted.unwrap_or_default()))
            .map(Some)
            .map_err(|error| error.context(format!("look at the shares of container {}", self.id())))
    }

    /// Resource usage of the container's cgroup. `NotFound` if it is gone.
    pub fn stats(&self) -> Result<Stats> {
        self.cgroup()?.stats()
    }

    /// Writes the processes of a container as images into a directory by criu, which then kills them unless asked
    /// otherwise. The calling process must have a single thread.
    ///
    /// `FailedPrecondition` if the container does not run, or criu is missing; `Unknown` if criu, or this kernel,
    /// cannot do it: then the message says why, and the container keeps running.
    pub fn checkpoint(&self, options: CheckpointOptions) -> Result<()> {
        checkpoint::checkpoint(self, options)
    }

    /// Creates a container whose processes continue from a checkpoint. They are children of the calling process, which
    /// must have a single thread. After an error nothing is left behind.
    pub fn restore(options: RestoreOptions<'_>) -> Result<Created> {
        restore::restore(options)
    }

    /// All processes of the container, as pids in the caller's pid namespace.
    pub fn pids(&self) -> Result<Vec<u32>> {
        self.cgroup()?.processes()
    }

    /// The container's cgroup. `NotFound` if it is gone, also if another one was made at its path since.
    pub fn cgroup(&self) -> Result<Cgroup> {
        Cgroup::open_locations(&self.state.cgroups)?.only(&self.state.cgroup_inodes)
    }

    /// The spec in the container's bundle.
    pub fn spec(&self) -> Result<Spec> {
        read_spec(&self.state.bundle)
    }

    /// Removes a stopped container, with its cgroup and state; with `force` a running one is killed first.
    ///
    /// `FailedPrecondition` if it runs. Returns the errors of poststop hooks, which do not stop the deletion.
    pub fn delete(self, force: bool) -> Result<Vec<Error>> {
        self.remove(force)?;
        // Poststop hooks come last (`runtime.md`, "Lifecycle"): nothing is left of the container if they are cut off.
        let hooks = self.state.hooks().unwrap_or_default();
        Ok(match &hooks.poststop[..] {
            [] => Vec::new(),
            poststop => {
                let document = self.state.document(Status::Stopped);
                hooks::run_all("poststop", poststop, &self.state.bundle, &document, &self.steps)
            }
        })
    }

    /// As [`Container::delete`] with `force`, but without hooks: completes a deletion that was cut off.
    pub fn take_down(self) -> Result<()> {
        self.remove(true)
    }

    fn remove(&self, force: bool) -> Result<()> {
        let what = format!("delete container {}", self.id());
        let status = self.status()?;
        self.steps.tell(format_args!("{what}: it is {}", status.name()));
        match status {
            Status::Stopped => {}
            // A container that was never started has nothing to lose.
            Status::Created => self.end()?,
            status if !force => {
                return Err(Error::failed_precondition(format!(
                    "{what}: it is {}; stop it first",
                    status.name()
                )));
            }
            _ => self.end()?,
        }
        match self.cgroup() {
            // Processes found in the cgroup of an ended container are another's, which was given the same cgroup since.
            Ok(cgroup) if self.has_left_its_cgroup()? && !cgroup.wait_until_empty()? => {
                self.steps.tell(format_args!("{what}: its cgroup is left to others, who are in it"));
            }
            Ok(cgroup) => {
                // Without a pid namespace of its own, processes can outlive the first one.
                if !cgroup.processes()?.is_empty() {
                    cgroup.kill()?;
                }
                if let Some(scope) = &self.state.systemd_scope {
                    cgroup::stop_scope(&self.systemd(), scope)
                        .map_err(|error| error.context(what.clone()))?;
                }
                cgroup.delete().map_err(|error| error.context(what.clone()))?;
                self.steps.tell(format_args!("{what}: its cgroup is gone"));
            }
            // systemd removes the empty cgroup of a scope by itself.
            Err(error) if error.is(ErrorKind::NotFound) => {}
            Err(error) => return Err(error.context(what.clone())),
        }
        if let Some(group) = &self.state.resctrl {
            resctrl::remove(group).map_err(|error| error.context(what))?;
        }
        self.dir.remove()
    }

    /// The systemd instance that made the container's scope, if it has one.
    fn systemd(&self) -> Instance {
        Instance::at(&self.state.systemd_sockets)
    }

    /// Kills all processes, and waits for the first one's end.
    fn end(&self) -> Result<()> {
        let Some(init) = self.open_init().unless_gone()? else { return Ok(()) };
        // A container made without privileges may have no cgroup; it ends with its first process.
        if let Some(cgroup) = self.cgroup().unless_gone()? {
            cgroup.kill()?;
            // A frozen process would not die in version 1.
            let _ = cgroup.thaw();
        }
        self.kill_init()?;
        let ended = wait_readable(init.as_fd(), Some(END_MAX));
        if !ended.context(|| "wait for the container's first process")? {
            return Err(Error::deadline_exceeded(format!("container {} does not end", self.id())));
        }
        Ok(())
    }

    /// The first process. `NotFound` if it has ended, even if its pid was reused.
    pub(crate) fn open_init(&self) -> Result<PidFd> {
        let init = PidFd::open(self.state.pid)?;
        // Opened first and checked second, so that the pidfd is of the process that was checked.
        if self.state.is_alive()? { Ok(init) } else { Err(Error::not_found("process already finished")) }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process in a new cgroup; None where no cgroup can be made.
    fn live_in(path: &str) -> Option<(Cgroup, Child)> {
        let Ok(cgroup) = Cgroup::create(path) else {
            eprintln!("skipped: no rights to make cgroups");
            return None;
        };
        let process = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        cgroup.add(process.id()).unwrap();
        Some((cgroup, process))
    }

    /// A container whose process has ended.
    fn ended(root: &Path, tell: impl FnOnce(&mut State)) -> Container {
        let mut process = Command::new("true").spawn().unwrap();
        process.wait().unwrap();
        let mut state = State::new("one", process.id(), root, root);
        tell(&mut state);
        Container::from_parts(StateDir::create(root, "one").unwrap(), state)
    }

    #[track_caller]
    fn check_alive(cgroup: &Cgroup, mut process: Child) {
        assert_eq!(cgroup.processes().unwrap(), [process.id()]);
        drop(process.stdin.take());
        assert_eq!(process.wait().unwrap().code(), Some(0), "it ends of itself");
        cgroup.delete().unwrap();
    }

    #[test]
    fn delete_spares_processes_that_entered_the_cgroup_after_the_end() {
        let path = format!("/hoist-after-{}", std::process::id());
        let Some((cgroup, process)) = live_in(&path) else { return };
        let root = tempfile::tempdir().unwrap();
        let container = ended(root.path(), |state| {
            state.has_own_pids = Some(true);
            (state.cgroups, state.cgroup_inodes) = (cgroup.locations(), cgroup.inodes().unwrap());
        });
        assert!(container.kill(SIGKILL, false).unwrap_err().is(ErrorKind::NotFound));
        container.kill(SIGKILL, true).unwrap();
        container.take_down().unwrap();
        assert!(StateDir::open(root.path(), "one").unwrap_err().is(ErrorKind::NotFound));
        check_alive(&cgroup, process);
    }

    #[test]
    fn delete_spares_processes_of_a_cgroup_made_later_at_the_path() {
        let path = format!("/hoist-later-{}", std::process::id());
        let Ok(first) = Cgroup::create(&path) else {
            eprintln!("skipped: no rights to make cgroups");
            return;
        };
        let (cgroups, inodes) = (first.locations(), first.inodes().unwrap());
        first.delete().unwrap();
        let Some((cgroup, process)) = live_in(&path) else { return };
        let root = tempfile::tempdir().unwrap();
        let container = ended(root.path(), |state| {
            state.has_own_pids = Some(false);
            (state.cgroups, state.cgroup_inodes) = (cgroups, inodes);
        });
        assert!(container.cgroup().err().is_some_and(|error| error.is(ErrorKind::NotFound)));
        container.kill(SIGKILL, true).unwrap();
        container.take_down().unwrap();
        check_alive(&cgroup, process);
    }
}
