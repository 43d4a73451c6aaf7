//! Views: a container's file system as the container sees it, for copying files.
//!
//! ```text
//! running       /proc/PID/root of its first process, with everything that it has mounted
//! not running   its snapshot with the volumes that the path needs, mounted in a mount namespace that is dropped with
//!               the view; the container's lock is held
//! ```
//!
//! Nothing of the container is executed or loaded, and no process enters it: the kernel resolves names beneath a
//! descriptor of its root. That the pid is the container's is verified before and after opening the root.

mod needed;

use std::cell::Cell;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use linux::beneath::Root;
use linux::mount::{self, Attributes, Options, Propagation};
use linux::ns::{self, NsKind};
use linux::process::PidFd;
use linux::tree_mounts::{grounded, read_only, throwaway};
use metadata::Container;
use rustix::fs::{FileType, Mode, OFlags};
use task::{Status, Task};
use types::spec::runtime::Spec;
use types::{Context, Error, ErrorKind, Mount, Result, UnlessGone};

use crate::Engine;
use crate::container_locks::{ContainerLock, Copies, CopyHandle};
use crate::names::short;
use crate::record::Extension;

pub(crate) use needed::Reach;

/// What a view is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

pub(crate) struct View {
    pub(crate) root: Root,
    /// The container's name, for messages.
    pub(crate) name: String,
    /// The first process, if the container runs.
    process: Option<PidFd>,
    // Drop order matters: unmount before the container may be started.
    _mounts: Option<OwnedFd>,
    _lock: Option<ContainerLock>,
}

impl View {
    /// `Aborted` once the container has ended: its mounts are gone, and the rest is not what the copy began with.
    pub(crate) fn check(&self) -> Result<()> {
        match &self.process {
            Some(process) if process.has_ended() => Err(Error::aborted(format!(
                "container {} has ended meanwhile, and not all was copied: copy again",
                self.name
            ))),
            _ => Ok(()),
        }
    }
}

impl Engine {
    /// A view of a container that does not run holds its lock, and other calls may cancel it through `handle`.
    pub(crate) async fn view(
        &self,
        text: &str,
        access: Access,
        reach: Reach,
        handle: &CopyHandle,
    ) -> Result<(Container, View)> {
        let (container, extension) = self.find_own(text).await?;
        let name = &extension.name;
        let mut has_waited = false;
        let lock = loop {
            if let Some(task) = self.task_of(&container.id)? {
                if let Some(view) = self.view_of_task(&task, name).await? {
                    return Ok((container, view));
                }
                if has_waited {
                    return Err(Error::unavailable(format!(
                        "container {name} is neither running nor stopped: see the daemon's log, and try again"
                    )));
                }
                // A start holds the lock, and the watcher settles the end of a container that has just ended.
                drop(self.0.locks.lock_with(container.id.as_str(), Copies::Wait).await?);
                if task.state_or_unknown().await.is_ok_and(|process| process.status == Status::Stopped) {
                    self.wait_for_end(&container.id).await?;
                }
                has_waited = true;
                continue;
            }
            let lock = self.0.locks.lock_with(container.id.as_str(), Copies::Wait).await?;
            if self.task_of(&container.id)?.is_none() {
                lock.copies(handle);
                break lock;
            }
        };
        let (record, own) = (container.clone(), extension.clone());
        // The lock is held until the blocking work is done, even if the call is cancelled: no other call may mount the
        // snapshot.
        let assembled = self.blocking(move |engine| {
            let (root, mounts) = engine.assemble(&record, &own, access, &reach)?;
            Ok((root, mounts, lock))
        });
        let (root, mounts, lock) = assembled.await?;
        let name = extension.name;
        Ok((container, View { root, name, process: None, _mounts: Some(mounts), _lock: Some(lock) }))
    }

    /// A view of the snapshot alone, without other mounts. Locks as [`Engine::view`]. A running container goes on, and
    /// its concurrent changes may or may not be seen.
    pub(crate) async fn view_of_tree(&self, text: &str, handle: &CopyHandle) -> Result<(Container, View)> {
        let (container, extension) = self.find_own(text).await?;
        let mut lock = None;
        if self.task_of(&container.id)?.is_none() {
            let taken = self.0.locks.lock_with(container.id.as_str(), Copies::Wait).await?;
            // If it was started meanwhile, its watcher needs the lock.
            if self.task_of(&container.id)?.is_none() {
                taken.copies(handle);
                lock = Some(taken);
            }
        }
        let reach = Reach { path: PathBuf::from("/"), follows: false, beneath: false };
        let (record, own) = (container.clone(), extension.clone());
        let assembled = self.blocking(move |engine| {
            let (root, mounts) = engine.assemble(&record, &own, Access::Read, &reach)?;
            Ok((root, mounts, lock))
        });
        let (root, mounts, lock) = assembled.await?;
        Ok((
            container,
            View { root, name: extension.name, process: None, _mounts: Some(mounts), _lock: lock },
        ))
    }

    /// `None` unless it runs.
    async fn view_of_task(&self, task: &Task, name: &str) -> Result<Option<View>> {
        let found = self.root_of_task(task, name).await?;
        Ok(found.map(|(process, root)| {
            let root = Root::from_fd(root, Path::new(name));
            View { root, name: name.to_owned(), process: Some(process), _mounts: None, _lock: None }
        }))
    }

    /// The first process of a container, and its root. `None` unless it runs.
    pub(crate) async fn root_of_task(&self, task: &Task, name: &str) -> Result<Option<(PidFd, OwnedFd)>> {
        self.open_of_task(task, name, open_root).await
    }

    /// Opens something of a container's first process by its pid; `None` unless it runs.
    pub(crate) async fn open_of_task(
        &self,
        task: &Task,
        name: &str,
        open: fn(u32) -> Result<OwnedFd>,
    ) -> Result<Option<(PidFd, OwnedFd)>> {
        let runs = |status| matches!(status, Status::Running | Status::Paused | Status::Pausing);
        let before = task.state_or_unknown().await?;
        if before.status == Status::Unknown {
            return Err(Error::unavailable(format!("it is not known whether container {name} runs")));
        }
        if !runs(before.status) {
            return Ok(None);
        }
        let pid = before.pid;
        let opened = self
            .blocking(move |_| {
                let process = PidFd::open(pid)?;
                Ok((process, open(pid)?))
            })
            .await;
        let after = task.state_or_unknown().await?;
        // A pid is only certain not to be reused if the shim still has not seen the process end.
        let is_its = runs(after.status) && after.pid == pid;
        match opened {
            Ok((process, root)) if is_its && !process.has_ended() => Ok(Some((process, root))),
            Err(error) if is_its && !error.is(ErrorKind::NotFound) => Err(error),
            _ => Ok(None),
        }
    }

    /// Mounts the snapshot of a container that does not run, with those of its mounts that the path needs.
    fn assemble(
        &self,
        container: &Container,
        extension: &Extension,
        access: Access,
        reach: &Reach,
    ) -> Result<(Root, OwnedFd)> {
        let (_, tree) = self.tree_of(container)?;
        let tree = grounded(tree, &self.0.ground);
        let what = || format!("mount the tree of container {}", short(&container.id));
        let make = |tree: Vec<Mount>, access| {
            let (place, binds) = (&self.parts().state, binds(container));
            let is_read_only = extension.create.read_only;
            // In a thread of its own, which enters the new mount namespace.
            let made = std::thread::scope(|scope| {
                scope.spawn(|| mount_view(&tree, &binds, place, (access, reach), is_read_only)).join()
            });
            made.unwrap_or_else(|_| Err(Error::internal("the thread panicked")))
                .map_err(|error| error.context(what()))
        };
        if access == Access::Read
            && let Some(made) = make(read_only(&tree), access)?
        {
            return Ok(made);
        }
        let tree = if extension.create.auto_remove { throwaway(tree)? } else { tree };
        Ok(make(tree, Access::Write)?.expect("its places are made"))
    }
}

/// The bind mounts of a container in order: destination and mount.
fn binds(container: &Container) -> Vec<(PathBuf, Mount)> {
    let spec = container.spec.as_ref().and_then(|spec| serde_json::from_slice::<Spec>(&spec.value).ok());
    let mounts = spec.map(|spec| spec.mounts).unwrap_or_default().into_iter();
    let binds = mounts.filter(|mount| mount.kind == "bind");
    binds
        .map(|mount| {
            let bind = Mount {
                kind: mount.kind,
                source: mount.source,
                target: String::new(),
                options: mount.options,
            };
            (PathBuf::from(mount.destination), bind)
        })
        .collect()
}

/// Mounts the snapshot and the mounts that the path needs in a new mount namespace, which the result keeps alive.
/// `None` if a mount point is missing and must not be made. `is_read_only`: the snapshot itself is read-only.
fn mount_view(
    tree: &[Mount],
    binds: &[(PathBuf, Mount)],
    place: &Path,
    (access, reach): (Access, &Reach),
    is_read_only: bool,
) -> Result<Option<(Root, OwnedFd)>> {
    ns::unshare(&[NsKind::Mount])?;
    // Unmounts propagate from the host into this namespace, but not back.
    let slash = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let slash = slash.map_err(std::io::Error::from).context(|| "open /")?;
    mount::set_propagation(slash.as_fd(), Propagation::Slave, true)?;
    // Sources are resolved outside, where the snapshot is not mounted: its symlinks would lead elsewhere on the host.
    let outside = own_namespace()?;
    ns::unshare(&[NsKind::Mount])?;
    let inside = own_namespace()?;
    mount::mount_all(tree, place)?;
    let root = Root::open(place)?;
    let is_incomplete = Cell::new(false);
    let destinations: Vec<&Path> = binds.iter().map(|(destination, _)| destination.as_path()).collect();
    needed::attach(&root, &destinations, reach, |number| {
        let (destination, bind) = &binds[number];
        ns::join(outside.as_fd(), NsKind::Mount)?;
        let mount = mount::detached(bind, &Options::parse(&bind.options));
        ns::join(inside.as_fd(), NsKind::Mount)?;
        // A missing source directory does not prevent the other mounts.
        let Some(mount) = mount.unless_gone()? else { return Ok(()) };
        // Mounts made below it must not propagate to the host.
        mount::set_propagation(mount.as_fd(), Propagation::Private, true)?;
        let at = match root.find(destination, OFlags::PATH)? {
            Some(at) => at,
            None if access == Access::Read => {
                is_incomplete.set(true);
                return Ok(());
            }
            None => make_place(&root, destination, &mount)?,
        };
        mount::attach(mount.as_fd(), at.as_fd())
    })?;
    if is_incomplete.get() {
        return Ok(None);
    }
    if is_read_only {
        mount::set_attributes(root.as_fd(), Attributes::READ_ONLY, false)?;
    }
    Ok(Some((root, inside)))
}

fn own_namespace() -> Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/mnt").context(|| "open the namespace of mounts")?.into())
}

/// Creates a mount point as the runtime would.
fn make_place(root: &Root, destination: &Path, mount: &OwnedFd) -> Result<OwnedFd> {
    let stat = linux::beneath::stat(mount.as_fd()).context(|| "look at a mount")?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => root.make_dirs(destination, 0o755),
        _ => root.make_file(destination, 0o644),
    }
}

/// The root of a process, as the process sees it.
fn open_root(pid: u32) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/root");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(&path, flags, Mode::empty())
        .map_err(std::io::Error::from)
        .context(|| format!("open {path}"))
}
