//! The parent's side of a container's birth.
//!
//! ```text
//! read spec ─▶ state directory ─▶ cgroup ─▶ open descriptors ─▶ clone ─┬─▶ (child: init)
//!                                                                     │
//!   state file ◀── Ready ◀── [Console] ◀── [RunHooks] ◀── Go ◀── id maps
//! ```
//!
//! If any step fails the child is killed and everything made so far is removed.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use linux::cgroup::{Cgroup, Entry};
use linux::ns::NsKind;
use linux::process::{Cloned, PidFd, clone_process};
use linux::{idmap, ns};
use types::spec::runtime::{Mount, Spec};
use types::{Context, Error, Result};

use crate::channel::{Channel, Message};
use crate::container::Container;
use crate::plan::{Namespaces, Stdio, read_spec, rootfs_path};
use crate::program::Filter;
use crate::rootfs::{self, PreparedMount};
use crate::state::{CGROUP, FILTER, START, State, StateDir, Status};
use crate::{hooks, init};

/// What a container is made with, beside its bundle.
pub struct CreateOptions<'a> {
    pub id: &'a str,
    /// Directory of `config.json`.
    pub bundle: &'a Path,
    /// Where the states of containers are kept.
    pub state_root: &'a Path,
    pub stdio: Stdio,
    /// Cgroups by systemd's D-Bus interface instead of by the file system.
    pub systemd_cgroup: bool,
    /// Moves the root instead of pivoting, for roots on a ramdisk.
    pub no_pivot: bool,
    pub no_new_keyring: bool,
    /// Descriptors from 3 on that the program inherits.
    pub preserve_fds: u32,
}

/// A container whose first process waits to be started.
pub struct Created {
    pub container: Container,
    pub pid: u32,
    /// The first process, which is a child of the caller.
    pub pidfd: PidFd,
    /// The terminal's master, with [`Stdio::Terminal`].
    pub console: Option<OwnedFd>,
    /// What could not be done as the spec says, and was done otherwise.
    pub warnings: Vec<String>,
}

/// All that the child needs, made before it is born.
pub(crate) struct Plan {
    pub(crate) id: String,
    pub(crate) spec: Spec,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    pub(crate) namespaces: Namespaces,
    pub(crate) mounts: Vec<PreparedMount>,
    pub(crate) cgroup: Option<Cgroup>,
    pub(crate) entry: Option<Entry>,
    pub(crate) filter: Option<Filter>,
    pub(crate) start: UnixListener,
    pub(crate) stdio: Stdio,
    pub(crate) no_pivot: bool,
    pub(crate) no_new_keyring: bool,
    pub(crate) preserve_fds: u32,
}

/// Makes a container up to the point where its program would be executed.
pub(crate) fn create(options: CreateOptions<'_>) -> Result<Created> {
    let what = format!("create container {}", options.id);
    if options.systemd_cgroup {
        return Err(Error::unimplemented(format!(
            "{what}: the systemd cgroup driver; use the cgroupfs driver"
        )));
    }
    let bundle =
        options.bundle.canonicalize().context(|| format!("open bundle {}", options.bundle.display()))?;
    let spec = read_spec(&bundle)?;
    let dir = StateDir::create(options.state_root, options.id)?;
    let made = Maker { dir: &dir, cgroup: None }.make(options, spec, bundle);
    made.map_err(|error| {
        // What stays behind is named in the error of the next create with this id.
        let _ = dir.remove();
        error.context(what)
    })
}

struct Maker<'a> {
    dir: &'a StateDir,
    /// Kept for removal: the plan owns another handle.
    cgroup: Option<Cgroup>,
}

impl Maker<'_> {
    fn make(mut self, options: CreateOptions<'_>, spec: Spec, bundle: PathBuf) -> Result<Created> {
        let made = self.plan(options, spec, bundle).and_then(|plan| self.give_birth(plan));
        if made.is_err()
            && let Some(cgroup) = &self.cgroup
        {
            // Its processes are killed by now; the error that counts is the first one.
            let _ = cgroup.kill();
            let _ = cgroup.delete();
        }
        made
    }

    fn plan(&mut self, options: CreateOptions<'_>, spec: Spec, bundle: PathBuf) -> Result<Plan> {
        let rootfs = rootfs_path(&spec, &bundle)?;
        let linux = spec.linux.clone().unwrap_or_default();
        let namespaces = Namespaces::of(&linux.namespaces)?;
        let filter = compile_filter(self.dir, &spec)?;
        let cgroups_path = if linux.cgroups_path.is_empty() {
            format!("/{}", options.id)
        } else {
            linux.cgroups_path.clone()
        };
        self.dir.write_file(CGROUP, cgroups_path.as_bytes())?;
        let cgroup = Cgroup::create(&cgroups_path)
            .inspect_err(|_| {
                // It may be another's, which whoever removes this container must not touch.
                let _ = fs::remove_file(self.dir.path(CGROUP));
            })
            .context(|| format!("create cgroup {cgroups_path}"))?;
        let locations = cgroup.locations();
        self.cgroup = Some(Cgroup::open_locations(&locations)?);
        if let Some(resources) = &linux.resources {
            cgroup.apply(resources).context(|| format!("limit cgroup {cgroups_path}"))?;
        }
        if let Some(uid) = cgroup_owner(&spec, &namespaces) {
            cgroup.delegate(uid).context(|| format!("delegate cgroup {cgroups_path}"))?;
        }
        let entry = cgroup.entry()?;
        let mounts = rootfs::prepare(&spec, &bundle, &namespaces)?;
        Ok(Plan {
            id: options.id.to_owned(),
            rootfs,
            namespaces,
            mounts,
            cgroup: Some(cgroup),
            entry: Some(entry),
            filter,
            start: listen(self.dir)?,
            stdio: options.stdio,
            no_pivot: options.no_pivot,
            no_new_keyring: options.no_new_keyring,
            preserve_fds: options.preserve_fds,
            spec,
            bundle,
        })
    }

    fn give_birth(&self, plan: Plan) -> Result<Created> {
        let (ours, theirs) = Channel::pair()?;
        let restore = join_pid_namespace(&plan.namespaces)?;
        let flags = clone_flags(&plan.namespaces);
        let into = plan.entry.as_ref().and_then(Entry::unified);
        // SAFETY: the caller of `Container::create` has a single thread (its documentation demands it), and
        // the child ends in `init::main`, which never returns.
        #[expect(unsafe_code, reason = "the one place where a container's first process is cloned")]
        let cloned = unsafe { clone_process(flags, into) };
        let (pid, pidfd) = match cloned? {
            Cloned::Child => {
                drop(ours);
                init::main(plan, &theirs)
            }
            Cloned::Parent { pid, pidfd } => (pid, pidfd),
        };
        drop(theirs);
        restore_pid_namespace(restore)?;
        let raised = self.raise(&plan, &ours, pid);
        match raised {
            Ok(Raised { console, warnings, state }) => {
                let container = Container::from_parts(self.dir.clone(), state);
                Ok(Created { container, pid, pidfd, console, warnings })
            }
            Err(error) => {
                // It may have ended already.
                let _ = pidfd.kill();
                let _ = pidfd.wait();
                Err(error)
            }
        }
    }

    /// Answers the child until it is ready.
    fn raise(&self, plan: &Plan, channel: &Channel, pid: u32) -> Result<Raised> {
        let linux = plan.spec.linux.as_ref();
        if plan.namespaces.is_new(NsKind::User) {
            let (uids, gids) =
                linux.map_or((&[][..], &[][..]), |linux| (&linux.uid_mappings, &linux.gid_mappings));
            idmap::write(pid, uids, gids)?;
        }
        let mut state = State::new(&plan.id, pid, &plan.bundle, &plan.rootfs)?;
        state.cgroups = plan.cgroup.as_ref().map(Cgroup::locations).unwrap_or_default();
        state.annotations.clone_from(&plan.spec.annotations);
        channel.send(&Message::Go)?;

        let mut raised = Raised { console: None, warnings: Vec::new(), state };
        loop {
            match channel.receive()? {
                Some(Message::RunHooks) => {
                    run_host_hooks(&plan.spec, &raised.state)?;
                    channel.send(&Message::Go)?;
                }
                Some(Message::Console(master)) => raised.console = Some(master),
                Some(Message::Warning(words)) => raised.warnings.push(words),
                Some(Message::Ready) => break,
                Some(Message::Failed(kind, words)) => return Err(Error::new(kind, words)),
                Some(Message::Go) | None => {
                    return Err(Error::internal("the container's first process ended before it was ready"));
                }
            }
        }
        self.dir.write(&raised.state)?;
        Ok(raised)
    }
}

struct Raised {
    console: Option<OwnedFd>,
    warnings: Vec<String>,
    state: State,
}

/// The host's number for the container's user, if it can reach its cgroup and may write there.
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

/// Compiles the filter once and keeps it for exec.
fn compile_filter(dir: &StateDir, spec: &Spec) -> Result<Option<Filter>> {
    let Some(profile) = spec.linux.as_ref().and_then(|linux| linux.seccomp.as_ref()) else { return Ok(None) };
    let program = linux::seccomp::compile(profile).context(|| "compile the seccomp profile")?;
    dir.write_file(FILTER, &program.to_bytes())?;
    Ok(Some(Filter { program }))
}

/// The socket on which the first process waits to be started. Bound through the directory's descriptor,
/// since the path may be longer than a socket's address.
fn listen(dir: &StateDir) -> Result<UnixListener> {
    let path = dir.path(START);
    let folder = fs::File::open(dir.path("")).context(|| format!("open {}", dir.path("").display()))?;
    let short = linux::beneath::proc_path(folder.as_fd()).join(START);
    UnixListener::bind(short).context(|| format!("listen on {}", path.display()))
}

/// Namespaces that clone makes. The cgroup namespace is made by the child, once it is in its cgroup; the
/// time namespace, once its offsets are written.
fn clone_flags(namespaces: &Namespaces) -> u64 {
    let cloned = namespaces.new.iter().filter(|kind| !matches!(kind, NsKind::Cgroup | NsKind::Time));
    cloned.fold(0, |flags, kind| flags | kind.clone_flag())
}

/// A pid namespace is entered by the children of whoever joins it: so the parent joins, clones, and goes
/// back. Returns the way back.
pub(crate) fn join_pid_namespace(namespaces: &Namespaces) -> Result<Option<OwnedFd>> {
    let Some((_, target)) = namespaces.joined.iter().find(|(kind, _)| *kind == NsKind::Pid) else {
        return Ok(None);
    };
    let own = fs::File::open("/proc/self/ns/pid").context(|| "open our own pid namespace")?;
    ns::join(target.as_fd(), NsKind::Pid)?;
    Ok(Some(own.into()))
}

pub(crate) fn restore_pid_namespace(own: Option<OwnedFd>) -> Result<()> {
    own.map_or(Ok(()), |own| ns::join(own.as_fd(), NsKind::Pid))
}

/// Hooks that run in the host's namespaces, with the container's mounts in place.
fn run_host_hooks(spec: &Spec, state: &State) -> Result<()> {
    let Some(all) = &spec.hooks else { return Ok(()) };
    let document = state.document(Status::Creating);
    hooks::run("prestart", &all.prestart, &document)?;
    hooks::run("createRuntime", &all.create_runtime, &document)
}
