//! Restoring a container from a [`checkpoint`](crate::checkpoint).
//!
//! ```text
//! parent: spec ─▶ state directory ─▶ cgroup ─▶ clone, new mounts ─▶ Go ─▶ request ─▶ hooks, terminal ─▶ state file
//!                                               └▶ cgroup ─▶ mount points, root ─▶ streams ─▶ criu ─▶ first process
//! ```
//!
//! The mounts that criu needs are made in a private mount namespace, so that none is left behind. The processes that it
//! restores are children of the caller.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use linux::beneath;
use linux::cgroup::{Cgroup, Entry, Instance, Scope};
use linux::mount::{self, Propagation};
use linux::ns::NsKind;
use linux::process::PidFd;
use linux::rtnetlink::{LOOPBACK, Route};
use types::spec::runtime::Spec;
use types::{Context, Error, Result};

use crate::cgroup_fallback::without_cgroup;
use crate::cgroup_location::CgroupLocation;
use crate::checkpoint::{
    CriuOptions, DESCRIPTORS, check_attributes, check_targets, external_mounts_of, external_name,
    joined_namespaces, resolved,
};
use crate::container::Container;
use crate::create::{Created, Maker, compile_filter, mount_of_notices, run_host_hooks};
use crate::criu::{
    CgroupMode, CgroupRoot, CloneOptions, ClonedCriu, Criu, ExternalMount, Features, ImageDirs, InheritedFd,
    JoinedNamespace, Kind, Options, Request,
};
use crate::plan::{Namespaces, Stdio, read_spec, real_path, rootfs_path};
use crate::program;
use crate::rootfs::{self, PreparedMount};
use crate::state::{NOTICES, State, StateDir};
use crate::steps::Steps;
use crate::supervisor::Supervisor;

const LOG: &str = "restore.log";

/// Options of a restore, beside the bundle and the images.
pub struct RestoreOptions<'a> {
    pub id: &'a str,
    /// Directory of `config.json`.
    pub bundle: &'a Path,
    /// The directory that holds the containers' state directories.
    pub state_root: &'a Path,
    /// [`Stdio::Terminal`] if the first process had one.
    pub stdio: Stdio,
    /// The systemd instance that makes the cgroup; without one the runtime makes it in the file system.
    pub systemd: Option<Instance>,
    pub criu: CriuOptions,
    /// Gives the program a socket for sd_notify(3), as [`crate::CreateOptions::takes_notices`]. A container that had
    /// one before always gets one.
    pub takes_notices: bool,
    /// An AppArmor or SELinux label in place of that in the images: `apparmor:NAME`, `selinux:LABEL`.
    pub lsm_profile: Option<String>,
    /// The mounts' label in place of that in the images.
    pub lsm_mount_context: Option<String>,
}

pub(crate) fn restore(options: RestoreOptions<'_>) -> Result<Created> {
    let what = format!("restore container {}", options.id);
    let bundle = real_path(options.bundle, "bundle")?;
    let mut spec = read_spec(&bundle)?;
    Criu::check()?;
    if options.criu.lazy_pages {
        Criu::check_features(Features { mem_track: None, lazy_pages: Some(true) })?;
    }
    let dir = StateDir::create(options.state_root, options.id)?;
    let mut maker = Maker::new(&dir);
    let make = || {
        if options.takes_notices || options.criu.images.join(NOTICES).exists() {
            spec.mounts.push(mount_of_notices(&dir)?);
        }
        Restore::plan(&mut maker, options, spec, bundle)?.make(&mut maker)
    };
    let made = make();
    made.map_err(|error| {
        maker.undo();
        // If this fails, the next create with this id reports the directory.
        let _ = dir.remove();
        error.context(what)
    })
}

struct Restore<'a> {
    options: RestoreOptions<'a>,
    spec: Spec,
    bundle: PathBuf,
    rootfs: PathBuf,
    namespaces: Namespaces,
    mounts: Vec<PreparedMount>,
    entry: Option<Entry>,
    /// Name of the session keyring.
    keyring: String,
    warnings: Vec<String>,
}

impl<'a> Restore<'a> {
    fn plan(
        maker: &mut Maker<'_>,
        options: RestoreOptions<'a>,
        mut spec: Spec,
        bundle: PathBuf,
    ) -> Result<Restore<'a>> {
        let rootfs = rootfs_path(&spec, &bundle)?;
        rootfs::strip_root(&mut spec, &bundle, &rootfs);
        let namespaces = Namespaces::of(&spec)?;
        if namespaces.joined(NsKind::Cgroup).is_some() {
            return Err(Error::unimplemented("criu cannot join a cgroup namespace"));
        }
        compile_filter(maker.dir(), &spec)?;
        let entry = if options.systemd.is_some() {
            None
        } else {
            let place = CgroupLocation::of(&spec, options.id)?;
            // Checked before this creation makes it.
            if options.criu.cgroups == CgroupMode::Strict && place.is_there()? {
                return Err(Error::failed_precondition(
                    "the container's cgroup is there already, and cgroups are managed strictly; remove it, or choose \
                     soft or full",
                ));
            }
            maker.make_cgroup(&place, &spec, &namespaces)?
        };
        let mounts = rootfs::prepare(&spec, &bundle, &rootfs, &namespaces)?;
        let mut warnings = Vec::new();
        if options.systemd.is_none() && maker.cgroup().is_none() {
            warnings.extend(without_cgroup(&spec)?);
        }
        let keyring = program::keyring_name(options.id)?;
        Ok(Restore { options, spec, bundle, rootfs, namespaces, mounts, entry, keyring, warnings })
    }

    fn make(self, maker: &mut Maker<'_>) -> Result<Created> {
        let mut dirs = ImageDirs::open(&self.options.criu.images, self.options.criu.work.as_deref(), LOG)?;
        let inherited = self.namespaces.joined.iter().filter(|(kind, _)| external_name(*kind).is_some());
        let inherited: Vec<BorrowedFd<'_>> = inherited.map(|(_, file)| file.as_fd()).collect();
        let clone_options = CloneOptions {
            namespaces: NsKind::Mount.clone_flag(),
            cgroup: self.entry.as_ref().and_then(Entry::unified),
            inherited: &inherited,
            dirs: Some(&mut dirs),
        };
        let cloned = Criu::clone(clone_options, || self.prepare())?;
        let (state, console) = self.converse(maker, &dirs, cloned)?;
        let pid = state.pid;
        let pidfd = PidFd::open(pid)?;
        let container = Container::from_parts(maker.dir().clone(), state);
        Ok(Created { container, pid, pidfd, console, warnings: self.warnings })
    }

    /// The child's side: prepares the environment for criu.
    fn prepare(&self) -> Result<()> {
        // criu does not dump keyrings; the restored processes get this one. A further process in a user namespace does
        // not find it there, and makes one.
        program::new_keyring(&self.keyring)?;
        if let Some(entry) = &self.entry {
            entry.enter().context(|| "enter the cgroup")?;
        }
        self.prepare_root()?;
        match &self.options.stdio {
            Stdio::Pipes { stdin, stdout, stderr } => {
                program::set_streams(stdin.as_fd(), stdout.as_fd(), stderr.as_fd())
            }
            // The restored process opens its own terminal.
            Stdio::Terminal { .. } => {
                let null = fs::File::options().read(true).write(true).open("/dev/null");
                let null = null.context(|| "open /dev/null")?;
                program::set_streams(null.as_fd(), null.as_fd(), null.as_fd())
            }
            Stdio::Inherit => Ok(()),
        }
    }

    /// Makes the root a mount of its own, which criu requires, with a mount point for each mount in it.
    fn prepare_root(&self) -> Result<()> {
        // Mounts made here are not propagated to the host.
        let host = beneath::Root::open(Path::new("/"))?;
        mount::set_propagation(host.as_fd(), Propagation::Slave, true)?;
        // Mount points inside of bind mounts need those mounts, which criu will make again.
        let scratch = rootfs::bind_root(&self.rootfs, Propagation::Slave)?;
        for mount in &self.mounts {
            rootfs::make_mount_point(&scratch, mount, &self.spec).map_err(|error| {
                error.context(format!("make a place for the mount at {}", mount.spec.destination))
            })?;
        }
        rustix::mount::unmount(beneath::proc_path(scratch.as_fd()), rustix::mount::UnmountFlags::DETACH)
            .map_err(io::Error::from)
            .context(|| "unmount the root again")?;
        drop(scratch);
        rootfs::bind_root(&self.rootfs, Propagation::Slave).map(drop)
    }

    fn converse(
        &self,
        maker: &mut Maker<'_>,
        dirs: &ImageDirs,
        cloned: ClonedCriu,
    ) -> Result<(State, Option<OwnedFd>)> {
        let pid = cloned.pid;
        let mut state = State::new(self.options.id, pid, &self.bundle, &self.rootfs);
        state.keyring_name = Some(self.keyring.clone());
        // For exec, whose processes load the filter with a listener of their own.
        let filter = self.spec.linux.as_ref().and_then(|linux| linux.seccomp.as_ref());
        state.supervisor = filter.map_or(Ok(None), Supervisor::of)?;
        self.configure(maker, pid, &mut state)?;
        let criu = cloned.execute()?;
        let options = self.request(maker, dirs, pid)?;
        let request = Request { opts: Some(options), ..Request::new(Kind::Restore) };
        let mut console = None;
        let asked = criu.ask(&request, |notice| match notice.step.as_str() {
            "setup-namespaces" => {
                state.pid = notice.pid;
                self.bring_loopback_up(notice.pid)?;
                run_host_hooks(&state, &Steps::default())
            }
            // The first process exists, and does not run yet.
            "post-restore" => {
                state.pid = notice.pid;
                state.identify()?;
                let root = PathBuf::from(format!("/proc/{}/root", notice.pid));
                check_attributes(&self.spec, &beneath::Root::open(&root)?)?;
                maker.dir().write(&state)
            }
            "orphan-pts-master" => {
                console = notice.descriptor;
                Ok(())
            }
            _ => Ok(()),
        });
        asked.map_err(|error| dirs.explain(error))?;
        criu.finish()?;
        if state.started_at_ticks == 0 {
            return Err(Error::internal("criu reported no restored process"));
        }
        Ok((state, console))
    }

    /// A new network namespace is empty, and sockets that listen at 127.0.0.1 are restored in it before the container
    /// runs.
    fn bring_loopback_up(&self, pid: u32) -> Result<()> {
        if !self.namespaces.is_new(NsKind::Network) {
            return Ok(());
        }
        let path = format!("/proc/{pid}/ns/net");
        let network = fs::File::open(&path).context(|| format!("open {path}"))?;
        Route::open_in(network.as_fd())?
            .set_up(LOOPBACK)
            .context(|| "bring up the loopback of the restored network")
    }

    /// Sets up criu, and thereby the processes that it restores, from outside.
    fn configure(&self, maker: &mut Maker<'_>, pid: u32, state: &mut State) -> Result<()> {
        if let Some(instance) = &self.options.systemd {
            let path = self.spec.linux.as_ref().map_or("", |linux| &linux.cgroups_path);
            let scope = Scope::parse(path, self.options.id, instance.clone())?;
            maker.start_scope(&scope, &self.spec, &self.namespaces, pid)?;
        }
        let wanted = self.spec.linux.as_ref().and_then(|linux| linux.intel_rdt.as_ref());
        if let Some(wanted) = wanted {
            maker.enter_clos(self.options.id, wanted, pid)?;
        }
        maker.note(state, &self.spec, &self.namespaces)
    }

    fn request(&self, maker: &Maker<'_>, dirs: &ImageDirs, criu: u32) -> Result<Options> {
        let mut inherit_fd = self.inherited_streams()?;
        let mut join_ns = Vec::new();
        for (kind, path) in joined_namespaces(&self.spec)? {
            match (external_name(kind), self.namespaces.joined(kind)) {
                (Some(name), Some(file)) => {
                    inherit_fd.push(InheritedFd { key: name.to_owned(), fd: file.as_raw_fd() });
                }
                _ => join_ns.push(JoinedNamespace { kind: kind.file_name().to_owned(), file: path }),
            }
        }
        let mode = match self.options.criu.cgroups {
            // The container's cgroup was made just now; criu would refuse it as an existing one.
            CgroupMode::Strict => CgroupMode::Full,
            mode => mode,
        };
        Ok(Options {
            manage_cgroups_mode: Some(mode.into()),
            root: Some(self.rootfs.to_string_lossy().into_owned()),
            evasive_devices: Some(true),
            rst_sibling: Some(true),
            ext_mnt: self.external_mounts(maker)?,
            cg_root: cgroups_of(criu)?,
            inherit_fd,
            join_ns,
            lsm_profile: self.options.lsm_profile.clone(),
            lsm_mount_context: self.options.lsm_mount_context.clone(),
            ..self.options.criu.request(dirs, LOG, &self.spec)
        })
    }

    fn external_mounts(&self, maker: &Maker<'_>) -> Result<Vec<ExternalMount>> {
        let root = beneath::Root::open(&self.rootfs)?;
        let cgroups = maker.cgroup().map(Cgroup::mounts_for_container);
        let mut found: Vec<ExternalMount> = external_mounts_of(&self.spec, cgroups)
            .into_iter()
            .map(|(target, source)| ExternalMount {
                key: resolved(&root, &target),
                value: self.bundle.join(source).to_string_lossy().into_owned(),
            })
            .collect();
        let masks = self.spec.linux.as_ref().is_some_and(|linux| !linux.masked_paths.is_empty());
        if masks && !found.iter().any(|mount| mount.key == "/dev/null") {
            found.push(ExternalMount { key: "/dev/null".to_owned(), value: "/dev/null".to_owned() });
        }
        check_targets(&found)?;
        Ok(found)
    }

    /// Pipes that were the first process's standard streams: criu replaces them by its own streams, wherever in the
    /// container they are open.
    fn inherited_streams(&self) -> Result<Vec<InheritedFd>> {
        let path = self.options.criu.images.join(DESCRIPTORS);
        let bytes = fs::read(&path)
            .context(|| format!("read {}; a checkpoint of a container has this file", path.display()))?;
        let names: Vec<String> = serde_json::from_slice(&bytes)
            .map_err(|error| Error::data_loss(format!("read {}", path.display())).with_source(error))?;
        let streams = (0..3).zip(names).filter(|(_, name)| name.starts_with("pipe:"));
        Ok(streams.map(|(fd, key)| InheritedFd { key, fd }).collect())
    }
}

/// The cgroups of a process, which criu puts in place of those in the images.
fn cgroups_of(pid: u32) -> Result<Vec<CgroupRoot>> {
    let path = format!("/proc/{pid}/cgroup");
    let text = fs::read_to_string(&path).context(|| format!("read {path}"))?;
    let roots = text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some(CgroupRoot { controllers: Some(fields.next()?.to_owned()), path: fields.next()?.to_owned() })
    });
    Ok(roots.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn criu_is_given_cgroups_by_controllers() {
        let roots = cgroups_of(std::process::id()).unwrap();
        assert!(!roots.is_empty());
        assert!(roots.iter().all(|root| root.path.starts_with('/')), "{roots:?}");
    }
}
