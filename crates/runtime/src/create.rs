//! The parent's side of creating a container.
//!
//! ```text
//! read spec ─▶ state directory ─▶ cgroup of version 2 ─▶ open descriptors ─▶ clone ─┬─▶ (child: init)
//!                                                                                   │
//!                      Cgroup ◀── limits ◀── cgroups of version 1 ◀── Go ◀── id maps
//!                        │
//!                        └▶ Filter ─▶ [RunHooks] ─▶ [Console] ─▶ Ready ─▶ state file
//! ```
//!
//! The child builds its root while the parent makes the cgroups of version 1, sets limits and compiles the seccomp
//! filter: see `supplies`.
//!
//! If any step fails the child is killed, and everything made so far is removed.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use linux::cgroup::{Cgroup, Entry, Hierarchies, Instance, Scope};
use linux::idmap;
use linux::ns::NsKind;
use linux::process::{Cloned, PidFd};
use linux::procfs::Proc;
use types::spec::runtime::{IdMapping, IntelRdt, Linux, Mount, Spec};
use types::{Context, Error, ErrorKind, Result};

use crate::cgroup_fallback::without_cgroup;
use crate::cgroup_location::CgroupLocation;
use crate::cgroup_note::{CgroupNote, PLANNED_CGROUP};
use crate::channel::{Channel, Message};
use crate::container::Container;
use crate::fork::Fork;
use crate::labels::{Labels, MountLabel};
use crate::plan::{Namespaces, Stdio, doubts, read_spec, real_path, rootfs_path};
use crate::program::{self, ProcessSetup};
use crate::rootfs::{self, MountStage, PreparedMount};
use crate::start::Start;
use crate::state::{FILTER, NOTICES_SOCKET, State, StateDir, Status};
use crate::steps::Steps;
use crate::supervisor::Supervisor;
use crate::{hooks, init, net_devices, resctrl};

/// Options of a creation, beside the bundle.
pub struct CreateOptions<'a> {
    pub id: &'a str,
    /// Directory of `config.json`.
    pub bundle: &'a Path,
    /// The directory that holds the containers' state directories.
    pub state_root: &'a Path,
    pub stdio: Stdio,
    /// The systemd instance that makes the cgroup; without one the runtime makes it in the file system.
    pub systemd: Option<Instance>,
    /// Moves the root instead of pivoting, for roots on a ramdisk.
    pub no_pivot: bool,
    pub no_new_keyring: bool,
    /// Descriptors from 3 on that the program inherits.
    pub preserve_fds: u32,
    /// For the program, beside what the spec gives it: `NAME=VALUE`.
    pub environment: Vec<String>,
    /// Gives the program a socket for sd_notify(3): see [`Container::listen_for_notices`].
    pub takes_notices: bool,
    pub steps: Steps,
}

/// A container whose first process waits to be started.
pub struct Created {
    pub container: Container,
    pub pid: u32,
    /// The first process, which is a child of the caller.
    pub pidfd: PidFd,
    /// The terminal's master, with [`Stdio::Terminal`].
    pub console: Option<OwnedFd>,
    /// Deviations from the spec that do not keep the container from running.
    pub warnings: Vec<String>,
}

/// Programs that drive runc match on its beginning.
const FROZEN: &str =
    "container's cgroup unexpectedly frozen: it, or a cgroup above it, is frozen; thaw that first";

/// Directory in the container of the socket for [`CreateOptions::takes_notices`], the same as runc's.
pub(crate) const NOTICES_INSIDE: &str = "/run/notify";

/// All that the child needs, prepared before the clone.
pub(crate) struct Plan {
    pub(crate) id: String,
    pub(crate) spec: Spec,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    pub(crate) namespaces: Namespaces,
    pub(crate) mounts: Vec<PreparedMount>,
    pub(crate) stage: Option<MountStage>,
    pub(crate) cgroup: CgroupLocation,
    pub(crate) setup: ProcessSetup,
    pub(crate) mount_label: Option<MountLabel>,
    pub(crate) supervisor: Option<Supervisor>,
    /// Features of the spec that this host lacks.
    pub(crate) warnings: Vec<String>,
    /// The scope that systemd makes once the child exists, and puts it into before it goes on.
    pub(crate) scope: Option<Scope>,
    pub(crate) start: Start,
    pub(crate) stdio: Stdio,
    pub(crate) no_pivot: bool,
    /// Name of the session keyring; without one the child keeps the caller's.
    pub(crate) keyring: Option<String>,
    pub(crate) preserve_fds: u32,
}

/// The part of the plan that is still needed once the root is built.
pub(crate) struct LatePlan {
    pub(crate) spec: Spec,
    pub(crate) stdio: Stdio,
    pub(crate) start: Start,
    pub(crate) setup: ProcessSetup,
    pub(crate) preserve_fds: u32,
}

impl Plan {
    pub(crate) fn has_filter(&self) -> bool {
        self.spec.linux.as_ref().is_some_and(|linux| linux.seccomp.is_some())
    }

    /// Whether the child first waits for the parent: it cannot go on without the id maps, which the parent writes. The
    /// rest of the external setup is complete when the child enters its cgroup.
    pub(crate) fn begins_with_go(&self) -> bool {
        self.namespaces.is_new(NsKind::User)
    }

    /// Drops everything else that the plan holds of the host, descriptors above all.
    pub(crate) fn into_late_plan(self) -> LatePlan {
        LatePlan {
            spec: self.spec,
            stdio: self.stdio,
            start: self.start,
            setup: self.setup,
            preserve_fds: self.preserve_fds,
        }
    }
}

/// Creates a container, up to the point where its program would be executed.
pub(crate) fn create(options: CreateOptions<'_>) -> Result<Created> {
    let what = format!("create container {}", options.id);
    let bundle = real_path(options.bundle, "bundle")?;
    let mut spec = read_spec(&bundle)?;
    let dir = StateDir::create(options.state_root, options.id)?;
    let made =
        add_to_spec(&mut spec, &options, &dir).and_then(|()| Maker::new(&dir).make(options, spec, bundle));
    made.map_err(|error| {
        // If this fails, the next create with this id reports the directory.
        let _ = dir.remove();
        error.context(what)
    })
}

/// Adds the caller's environment and the notification socket to the spec.
fn add_to_spec(spec: &mut Spec, options: &CreateOptions<'_>, dir: &StateDir) -> Result<()> {
    let Some(process) = &mut spec.process else { return Ok(()) };
    process.env.extend_from_slice(&options.environment);
    if options.takes_notices {
        process.env.push(format!("NOTIFY_SOCKET={NOTICES_INSIDE}/{NOTICES_SOCKET}"));
        spec.mounts.push(mount_of_notices(dir)?);
    }
    Ok(())
}

/// The mount by which the container sees its notification socket.
pub(crate) fn mount_of_notices(dir: &StateDir) -> Result<Mount> {
    Ok(Mount {
        destination: NOTICES_INSIDE.to_owned(),
        source: dir.make_notices()?.to_string_lossy().into_owned(),
        options: ["bind", "nosuid", "nodev", "noexec", "ro"].map(str::to_owned).to_vec(),
        ..Mount::default()
    })
}

/// Everything that is made on the host for a container, to be undone if the creation fails.
pub(crate) struct Maker<'a> {
    dir: &'a StateDir,
    /// The part of it that is made so far.
    cgroup: Option<Cgroup>,
    /// Whether directories that existed before may have this container's limits.
    is_limited: bool,
    /// Set once systemd has started it.
    scope: Option<Scope>,
    resctrl: Option<PathBuf>,
    resctrl_groups: Vec<PathBuf>,
    steps: Steps,
}

impl<'a> Maker<'a> {
    pub(crate) fn new(dir: &'a StateDir) -> Maker<'a> {
        Maker {
            dir,
            cgroup: None,
            is_limited: false,
            scope: None,
            resctrl: None,
            resctrl_groups: Vec::new(),
            steps: Steps::default(),
        }
    }

    pub(crate) fn dir(&self) -> &'a StateDir {
        self.dir
    }

    /// The container's cgroup, once it is made.
    pub(crate) fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    fn make(mut self, options: CreateOptions<'_>, spec: Spec, bundle: PathBuf) -> Result<Created> {
        self.steps = options.steps.clone();
        let made = self.plan(options, spec, bundle).and_then(|plan| self.carry_out(plan));
        if made.is_err() {
            self.undo();
        }
        made
    }

    /// Removes everything that was made. The first process is already dead; later errors are dropped in favour of the
    /// first one.
    pub(crate) fn undo(&self) {
        if let Some(cgroup) = &self.cgroup {
            // The cgroup was empty, so all its processes are the container's.
            let _ = cgroup.kill();
            let _ = match &self.scope {
                Some(scope) => scope.stop().and_then(|()| cgroup.delete()),
                None => cgroup.delete_new(),
            };
            // Directories that existed before stay; their next user must not inherit this container's limits.
            if self.is_limited {
                let _ = cgroup.recreate_found();
            }
        }
        if let Some(group) = &self.resctrl {
            let _ = resctrl::remove(group);
        }
    }

    fn plan(&mut self, options: CreateOptions<'_>, mut spec: Spec, bundle: PathBuf) -> Result<Plan> {
        let rootfs = rootfs_path(&spec, &bundle)?;
        rootfs::strip_root(&mut spec, &bundle, &rootfs);
        let none = Linux::default();
        let linux = spec.linux.as_ref().unwrap_or(&none);
        let namespaces = Namespaces::of(&spec)?;
        let scope = options.systemd.map(|instance| Scope::parse(&linux.cgroups_path, options.id, instance));
        let scope = scope.transpose()?;
        let cgroup = match &scope {
            Some(scope) => CgroupLocation::of_scope(scope)?,
            None => CgroupLocation::of(&spec, options.id)?,
        };
        self.tell_places(&namespaces, &cgroup, scope.as_ref());
        if scope.is_none() {
            self.begin_cgroup(&cgroup)?;
        }
        let mut mounts = rootfs::prepare(&spec, &bundle, &rootfs, &namespaces)?;
        let stage = self.stage_mounts(&mut mounts, &namespaces, &rootfs);
        let process = spec.process.as_ref().expect("checked when the spec was read");
        let (labels, mut warnings) = Labels::of(process);
        warnings.extend(doubts(&spec));
        let supervisor = linux.seccomp.as_ref().map_or(Ok(None), Supervisor::of)?;
        let setup = ProcessSetup {
            proc: Proc::open()?,
            labels,
            filter: None,
            is_shown: namespaces.is_new(NsKind::Pid) && !rustix::process::geteuid().is_root(),
            personality: linux.personality.clone(),
            memory_policy: linux.memory_policy.clone(),
        };
        Ok(Plan {
            id: options.id.to_owned(),
            rootfs,
            namespaces,
            mounts,
            stage,
            cgroup,
            scope,
            setup,
            mount_label: MountLabel::of(&spec),
            supervisor,
            warnings,
            start: Start::make(self.dir)?,
            stdio: options.stdio,
            no_pivot: options.no_pivot,
            keyring: (!options.no_new_keyring).then(|| program::keyring_name(options.id)).transpose()?,
            preserve_fds: options.preserve_fds,
            spec,
            bundle,
        })
    }

    /// Moves the cloned trees of bind mounts to a stage of their own, if the kernel has to lock them for the
    /// container's user namespace.
    fn stage_mounts(
        &self,
        mounts: &mut [PreparedMount],
        namespaces: &Namespaces,
        rootfs: &Path,
    ) -> Option<MountStage> {
        if !namespaces.has(NsKind::User) {
            return None;
        }
        let root = namespaces.is_new(NsKind::Mount).then(|| rootfs.to_owned());
        MountStage::of(self.dir.path(""), root, rootfs::stage_mounts(mounts))
    }

    fn tell_places(&self, namespaces: &Namespaces, cgroup: &CgroupLocation, scope: Option<&Scope>) {
        let new: Vec<_> = namespaces.new.iter().map(|kind| kind.name()).collect();
        let joined: Vec<_> = namespaces.joined.iter().map(|(kind, _)| kind.name()).collect();
        self.steps.tell(format_args!("namespaces: new {new:?}, joined {joined:?}"));
        match scope {
            Some(scope) => self.steps.tell(format_args!("cgroup {} of scope {}", cgroup.path, scope.name())),
            None => self.steps.tell(format_args!("cgroup {}", cgroup.path)),
        }
    }

    /// Makes the whole cgroup, with its limits. None for a caller without privileges that may not write to any
    /// hierarchy.
    pub(crate) fn make_cgroup(
        &mut self,
        place: &CgroupLocation,
        spec: &Spec,
        namespaces: &Namespaces,
    ) -> Result<Option<Entry>> {
        self.begin_cgroup(place)?;
        self.complete_cgroup(place)?;
        self.limit_cgroup(place, spec, namespaces)?;
        self.cgroup.as_ref().map(Cgroup::entry).transpose()
    }

    /// Makes the directory of version 2, which clone3(2) can put a process into.
    fn begin_cgroup(&mut self, place: &CgroupLocation) -> Result<()> {
        // Whether the other hierarchies have a cgroup of this name is not known yet.
        self.make_part(place, &place.unified, place.rest.names().map(str::to_owned).collect())
    }

    /// Makes the directories of version 1.
    fn complete_cgroup(&mut self, place: &CgroupLocation) -> Result<()> {
        let found = self.cgroup.iter().flat_map(Cgroup::found).collect();
        self.make_part(place, &place.rest.find()?, found)
    }

    /// Makes the cgroup in some hierarchies. From then on its processes count as the container's, except in `others`.
    /// `FailedPrecondition` if it is frozen: the container would never begin.
    fn make_part(
        &mut self,
        place: &CgroupLocation,
        trees: &Hierarchies,
        mut others: Vec<String>,
    ) -> Result<()> {
        if trees.is_empty() {
            return Ok(());
        }
        others.extend(trees.having(&place.path).context(|| place.what())?);
        CgroupNote { path: place.path.clone(), found: others }.plan(self.dir)?;
        let made = trees.create(&place.path).and_then(|made| match made.freezes_new_processes() {
            Ok(false) => Ok(made),
            // The frozen ancestor may belong to another container, so it is not thawed.
            frozen => {
                let _ = made.delete_new();
                frozen.and_then(|_| Err(Error::failed_precondition(FROZEN)))
            }
        });
        self.keep_cgroup(place, made)?;
        CgroupNote::own(self.dir)
    }

    fn limit_cgroup(&mut self, place: &CgroupLocation, spec: &Spec, namespaces: &Namespaces) -> Result<()> {
        let Some(cgroup) = &self.cgroup else { return Ok(()) };
        self.is_limited = true;
        // Even without limits, the container may use only its own devices.
        let resources = spec.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
        cgroup.apply(&resources).context(|| format!("limit cgroup {}", place.path))?;
        self.delegate(spec, namespaces)
    }

    /// Has systemd make the scope, with the first process in it.
    pub(crate) fn start_scope(
        &mut self,
        scope: &Scope,
        spec: &Spec,
        namespaces: &Namespaces,
        first: u32,
    ) -> Result<()> {
        let place = CgroupLocation::of_scope(scope)?;
        // The note makes sure that the cgroup can be found after a crash.
        let found = place.trees()?.having(&place.path).context(|| place.what())?;
        CgroupNote { path: place.path.clone(), found }.plan(self.dir)?;
        let resources = spec.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
        self.keep_cgroup(&place, scope.start(&resources, &spec.annotations, first))?;
        CgroupNote::own(self.dir)?;
        self.scope = Some(scope.clone());
        self.delegate(spec, namespaces)
    }

    /// Records what was made of the cgroup.
    fn keep_cgroup(&mut self, place: &CgroupLocation, made: Result<Cgroup>) -> Result<()> {
        let made = made
            .inspect_err(|_| {
                // It may be another container's, which a later deletion must not touch.
                let _ = fs::remove_file(self.dir.path(PLANNED_CGROUP));
            })
            .context(|| place.what())?;
        let whole = match self.cgroup.take() {
            Some(unified) => made.and(unified),
            None => made,
        };
        self.cgroup = (!whole.locations().is_empty()).then_some(whole);
        Ok(())
    }

    fn delegate(&self, spec: &Spec, namespaces: &Namespaces) -> Result<()> {
        match (&self.cgroup, cgroup_owner(spec, namespaces)) {
            (Some(cgroup), Some(uid)) => {
                cgroup.delegate(uid).context(|| format!("delegate the cgroup to user {uid}"))
            }
            _ => Ok(()),
        }
    }

    /// Explains why a process cannot be cloned into the cgroup: the caller also needs the right to write to the common
    /// ancestor of both cgroups (cgroups(7), "Delegation containment").
    fn why_no_clone(&self, error: Error) -> Error {
        match self.cgroup.as_ref().and_then(Cgroup::unified_path) {
            Some(path) if error.is(ErrorKind::PermissionDenied) => error.context(format!(
                "begin in cgroup {}, to which this user may not move its processes: name one beside its own as \
                 cgroupsPath, or none",
                path.display()
            )),
            _ => error,
        }
    }

    fn carry_out(&mut self, plan: Plan) -> Result<Created> {
        let (mut ours, theirs) = Channel::pair()?;
        // The kernel locks what it copies, also for a child that leaves the copy for a mount namespace that it joins.
        let copy = if plan.stage.is_some() { NsKind::Mount.clone_flag() } else { 0 };
        let fork = Fork {
            user: plan.namespaces.joined(NsKind::User),
            pid: plan.namespaces.joined(NsKind::Pid),
            joined: &plan.namespaces.joined,
            new: clone_flags(&plan.namespaces) | copy,
            cgroup: self.cgroup.as_ref().and_then(Cgroup::unified_dir),
            stage: plan.stage.as_ref(),
        };
        // SAFETY: the caller of `Container::create` has a single thread (its documentation demands it), and
        // the child ends in `init::main`, which never returns.
        #[expect(unsafe_code, reason = "the one place where a container's first process is cloned")]
        let cloned = unsafe { fork.clone() };
        let cloned = cloned.map_err(|error| self.why_no_clone(error))?;
        let (pid, pidfd) = match cloned {
            Cloned::Child => {
                drop(ours);
                init::main(plan, &theirs)
            }
            Cloned::Parent { pid, pidfd } => (pid, pidfd),
        };
        drop(theirs);
        self.steps.tell(format_args!("the first process is {pid}"));
        // In a shared pid namespace another process may have taken the child's end of the channel.
        ours.accept_only_from(pid);
        match self.prepare_child(plan, &ours, pid, &pidfd) {
            Ok(ReadyChild { console, warnings, state }) => {
                let container = Container::from_parts(self.dir.clone(), state).with_steps(self.steps.clone());
                Ok(Created { container, pid, pidfd, console, warnings })
            }
            Err(error) => {
                pidfd.end();
                // If the child reported a failure of its own, that is the cause.
                Err(ours.explain(error))
            }
        }
    }

    /// Gives the child what it needs, in the order in which it asks for it, until it is ready.
    fn prepare_child(
        &mut self,
        mut plan: Plan,
        channel: &Channel,
        pid: u32,
        pidfd: &PidFd,
    ) -> Result<ReadyChild> {
        let mut ready = ReadyChild {
            console: None,
            warnings: plan.warnings.clone(),
            state: State::new(&plan.id, pid, &plan.bundle, &plan.rootfs),
        };
        if plan.namespaces.joined(NsKind::User).is_some() {
            take_maps(&mut plan.spec, pid)?;
        }
        self.configure(&plan, pid, &mut ready)?;
        if plan.begins_with_go() {
            channel.send(&Message::Go)?;
        }
        self.send_cgroup(&plan, channel, pid, &mut ready)?;
        if let Some(filter) = compile_filter(self.dir, &plan.spec)? {
            channel.send_unless_closed(&Message::Filter(filter))?;
        }
        self.draft_state(&plan, &mut ready.state)?;
        let tight = program::tight_limits(&plan.spec);
        // Freed here while the child is busy.
        drop(plan);
        self.answer(channel, pid, pidfd, &mut ready, tight)?;
        self.dir.publish_state()?;
        self.steps.tell(format_args!("process {pid} waits to be started"));
        Ok(ready)
    }

    /// Writes the state to its draft, which no reader sees before the child is ready.
    fn draft_state(&self, plan: &Plan, state: &mut State) -> Result<()> {
        state.identify()?;
        state.supervisor.clone_from(&plan.supervisor);
        state.no_new_keyring = plan.keyring.is_none();
        state.keyring_name.clone_from(&plan.keyring);
        self.note(state, &plan.spec, &plan.namespaces)?;
        self.dir.draft(state)
    }

    /// Answers the child until it is ready. `tight` names limits that may be too small for the child, for the error if
    /// it ends.
    fn answer(
        &self,
        channel: &Channel,
        pid: u32,
        pidfd: &PidFd,
        ready: &mut ReadyChild,
        tight: Option<String>,
    ) -> Result<()> {
        loop {
            match channel.receive()? {
                Some(Message::RunHooks) => {
                    run_host_hooks(&ready.state, &self.steps)?;
                    channel.send(&Message::Go)?;
                }
                Some(Message::Console(master)) => ready.console = Some(master),
                Some(Message::Warning(words)) => ready.warnings.push(words),
                Some(Message::Listener(number)) => {
                    let supervisor = ready.state.supervisor.as_ref();
                    let supervisor = supervisor
                        .ok_or_else(|| Error::internal("a seccomp listener without a supervisor"))?;
                    let listener = Supervisor::listener_of(pidfd, number)?;
                    supervisor.hand_over(pid, listener.as_fd(), &ready.state.document(Status::Creating))?;
                    channel.send(&Message::Go)?;
                }
                Some(Message::Ready) => return Ok(()),
                Some(Message::Failed(kind, words)) => return Err(Error::new(kind, words)),
                // Messages that only the parent sends, and those of exec and criu.
                Some(
                    Message::Go
                    | Message::Cgroup(_)
                    | Message::Filter(_)
                    | Message::Pid(_)
                    | Message::Socket(_),
                ) => {
                    return Err(Error::internal("the container's first process sent an unexpected message"));
                }
                None => return Err(ended_early(tight)),
            }
        }
    }

    /// Sets up the child from outside, before it enters its cgroup.
    fn configure(&mut self, plan: &Plan, pid: u32, ready: &mut ReadyChild) -> Result<()> {
        let none = Linux::default();
        let linux = plan.spec.linux.as_ref().unwrap_or(&none);
        if plan.namespaces.is_new(NsKind::User) {
            idmap::write(pid, &linux.uid_mappings, &linux.gid_mappings)?;
        }
        let process = plan.spec.process.as_ref().expect("checked when the spec was read");
        ready.warnings.extend(program::set_oom_score(pid, process)?);
        program::make_room_for_limits(pid, process, 0);
        if let Some(wanted) = &linux.intel_rdt {
            self.enter_clos(&plan.id, wanted, pid)?;
        }
        net_devices::give(&linux.net_devices, &plan.namespaces, pid)
    }

    /// Makes the rest of the cgroup, sets limits, and sends the child the descriptors by which it enters.
    fn send_cgroup(
        &mut self,
        plan: &Plan,
        channel: &Channel,
        pid: u32,
        ready: &mut ReadyChild,
    ) -> Result<()> {
        let cgroup_fds = match &plan.scope {
            // systemd moves the child into the scope by itself.
            Some(scope) => {
                self.start_scope(scope, &plan.spec, &plan.namespaces, pid)?;
                Vec::new()
            }
            None => {
                self.complete_cgroup(&plan.cgroup)?;
                self.limit_cgroup(&plan.cgroup, &plan.spec, &plan.namespaces)?;
                self.cgroup.as_ref().map_or(Ok(Vec::new()), Cgroup::tasks)?
            }
        };
        if self.cgroup.is_none() {
            ready.warnings.extend(without_cgroup(&plan.spec)?);
        }
        channel.send_unless_closed(&Message::Cgroup(cgroup_fds))
    }

    /// Records in the state what was made for the container, and what further processes get.
    pub(crate) fn note(&self, state: &mut State, spec: &Spec, namespaces: &Namespaces) -> Result<()> {
        state.cgroups = self.cgroup.as_ref().map(Cgroup::locations).unwrap_or_default();
        state.cgroup_inodes = self.cgroup.as_ref().map_or_else(|| Ok(BTreeMap::new()), Cgroup::inodes)?;
        state.has_own_pids = Some(namespaces.is_new(NsKind::Pid));
        state.systemd_scope = self.scope.as_ref().map(|scope| scope.name().to_owned());
        state.systemd_sockets = match &self.scope {
            Some(scope) => scope.instance().sockets().to_vec(),
            None => Vec::new(),
        };
        state.resctrl.clone_from(&self.resctrl);
        state.resctrl_groups.clone_from(&self.resctrl_groups);
        state.note(spec);
        Ok(())
    }

    /// Puts the process into its resctrl group, which is made if missing.
    pub(crate) fn enter_clos(&mut self, id: &str, wanted: &IntelRdt, pid: u32) -> Result<()> {
        let root = resctrl::mounted().context(|| "linux.intelRdt")?;
        let clos = resctrl::Clos::prepare(&root, id, wanted).context(|| "linux.intelRdt")?;
        self.resctrl.clone_from(&clos.own);
        self.resctrl_groups = clos.groups();
        clos.add(pid).context(|| "linux.intelRdt")
    }
}

fn ended_early(tight: Option<String>) -> Error {
    let what = "the container's first process ended before it was ready";
    match tight {
        Some(limits) => Error::new(
            ErrorKind::ResourceExhausted,
            format!("{what}: it may be one of these limits that is too small: {limits}"),
        ),
        None => Error::internal(what),
    }
}

struct ReadyChild {
    console: Option<OwnedFd>,
    warnings: Vec<String>,
    state: State,
}

/// Takes the id maps of a joined user namespace for the container's. `InvalidArgument` if the spec has other maps: its
/// author would get files of the wrong owners.
fn take_maps(spec: &mut Spec, pid: u32) -> Result<()> {
    let Some(linux) = &mut spec.linux else { return Ok(()) };
    let sorted = |maps: &[IdMapping]| {
        let mut maps = maps.to_vec();
        maps.sort_by_key(|map| map.container_id);
        maps
    };
    let found = idmap::of(pid)?;
    let says_nothing = linux.uid_mappings.is_empty() && linux.gid_mappings.is_empty();
    let says_the_same = || {
        sorted(&linux.uid_mappings) == sorted(&found.uids)
            && sorted(&linux.gid_mappings) == sorted(&found.gids)
    };
    if !says_nothing && !says_the_same() {
        return Err(Error::invalid_argument(
            "uidMappings and gidMappings are other maps than the user namespace that is joined has: leave them out",
        ));
    }
    (linux.uid_mappings, linux.gid_mappings) = (found.uids, found.gids);
    Ok(())
}

/// The host uid of the container's user, if the container has its cgroup mounted writable.
fn cgroup_owner(spec: &Spec, namespaces: &Namespaces) -> Option<u32> {
    let is_writable = |mount: &Mount| {
        matches!(mount.kind.as_str(), "cgroup" | "cgroup2")
            && !mount.options.iter().any(|option| option == "ro")
    };
    if !namespaces.is_new(NsKind::Cgroup) || !spec.mounts.iter().any(is_writable) {
        return None;
    }
    let uid = spec.process.as_ref()?.user.uid;
    let maps = spec.linux.as_ref().map_or(&[][..], |linux| &linux.uid_mappings);
    if maps.is_empty() {
        return Some(uid);
    }
    maps.iter().find_map(|map| {
        let offset = uid.checked_sub(map.container_id).filter(|offset| *offset < map.size)?;
        map.host_id.checked_add(offset)
    })
}

/// Compiles the seccomp filter once, for exec too, and returns its file, open for reading. None without a filter.
pub(crate) fn compile_filter(dir: &StateDir, spec: &Spec) -> Result<Option<OwnedFd>> {
    let Some(profile) = spec.linux.as_ref().and_then(|linux| linux.seccomp.as_ref()) else { return Ok(None) };
    let program = linux::seccomp::compile(profile).context(|| "compile the seccomp profile")?;
    dir.write_file(FILTER, &program.to_bytes())?;
    let path = dir.path(FILTER);
    let file = fs::File::open(&path).context(|| format!("open {}", path.display()))?;
    Ok(Some(file.into()))
}

/// The namespaces that clone(2) makes. The child makes the cgroup namespace, once it is in its cgroup, and the time
/// namespace, once its offsets are written.
fn clone_flags(namespaces: &Namespaces) -> u64 {
    let cloned = namespaces.new.iter().filter(|kind| !matches!(kind, NsKind::Cgroup | NsKind::Time));
    cloned.fold(0, |flags, kind| flags | kind.clone_flag())
}

/// Runs the hooks of the host's namespaces, once the container's mounts are done.
pub(crate) fn run_host_hooks(state: &State, steps: &Steps) -> Result<()> {
    let all = state.hooks()?;
    if all.prestart.is_empty() && all.create_runtime.is_empty() {
        return Ok(());
    }
    let document = state.document(Status::Creating);
    hooks::run("prestart", &all.prestart, &state.bundle, &document, steps)?;
    hooks::run("createRuntime", &all.create_runtime, &state.bundle, &document, steps)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::thread;

    use super::*;
    use crate::cgroup_note;

    #[test]
    fn a_first_process_that_ends_early_or_breaks_the_protocol_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::create(root.path(), "one").unwrap();
        let (maker, pid) = (Maker::new(&dir), std::process::id());
        let pidfd = PidFd::open(pid).unwrap();
        let check = |word: Option<Message>, tight: Option<&str>, kind: ErrorKind, expected: &str| {
            let (ours, theirs) = Channel::pair().unwrap();
            if let Some(word) = word {
                theirs.send(&word).unwrap();
            }
            drop(theirs);
            let state = State::new("one", pid, root.path(), root.path());
            let mut ready = ReadyChild { console: None, warnings: Vec::new(), state };
            let answered = maker.answer(&ours, pid, &pidfd, &mut ready, tight.map(str::to_owned));
            let error = answered.expect_err("it is not ready");
            assert!(error.is(kind) && error.message().contains(expected), "{error}");
        };
        check(None, None, ErrorKind::Internal, "ended before it was ready");
        check(None, Some("9 bytes of memory"), ErrorKind::ResourceExhausted, "9 bytes of memory");
        check(Some(Message::Go), Some("9 bytes of memory"), ErrorKind::Internal, "unexpected message");
        check(Some(Message::Pid(1)), None, ErrorKind::Internal, "unexpected message");
    }

    /// The process is cloned into the directory of version 2 before those of version 1 exist.
    #[test]
    fn undo_kills_the_processes_of_a_half_made_cgroup() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::create(root.path(), "one").unwrap();
        let id = format!("hoist-half-{}", std::process::id());
        let place = CgroupLocation::of(&Spec::default(), &id).unwrap();
        let mut maker = Maker::new(&dir);
        maker.begin_cgroup(&place).unwrap();
        let Some(half) = maker.cgroup() else {
            eprintln!("skipped: no rights to make cgroups, or none of version 2");
            return;
        };
        let mut process = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        half.add(process.id()).unwrap();
        let end_of_input = process.stdin.take();
        let waiter = thread::spawn(move || process.wait().unwrap());
        cgroup_note::remove_cgroup(&dir).unwrap();
        let left = place.open().unwrap().is_some();
        drop(end_of_input);
        assert!(!waiter.join().unwrap().success(), "it is killed");
        assert!(!left, "nothing of the cgroup is left");
    }
}
