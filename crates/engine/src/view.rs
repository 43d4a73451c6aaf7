//! The tree of a container as the container sees it, to copy files out of it and into it.
//!
//! ```text
//! it runs       /proc/PID/root of its first process: all that it has mounted is there
//! it does not   its tree and those of its volumes that the path leads to, mounted in a namespace of mounts that goes
//!               with the view; nobody starts it
//! ```
//!
//! Nothing enters the container, and nothing of it is run or loaded: names are looked up beneath a descriptor of its root,
//! by the kernel. The process of a number is known to be the container's before and after its root was opened.

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
use crate::names::short;
use crate::record::Extension;
use crate::turns::{Copies, CopyHandle, Turn};

pub(crate) use needed::Reach;

/// What a view is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

pub(crate) struct View {
    pub(crate) root: Root,
    /// For messages.
    pub(crate) name: String,
    /// The first process of a container that runs.
    process: Option<PidFd>,
    // In this order: what is mounted goes before the container may be started.
    _mounts: Option<OwnedFd>,
    _turn: Option<Turn>,
}

impl View {
    /// `Aborted` once the container has ended: its mounts are gone, and the rest is not what it saw.
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
    /// Of one that does not run the view has the turn, and others may end what `handle` stands for.
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
        let turn = loop {
            if let Some(task) = self.task_of(&container.id)? {
                if let Some(view) = self.view_of_task(&task, name).await? {
                    return Ok((container, view));
                }
                if has_waited {
                    return Err(Error::unavailable(format!(
                        "container {name} is neither running nor stopped: see the daemon's log, and try again"
                    )));
                }
                // Whoever starts it has the turn, and the end of one that has just ended is settled by its watcher.
                drop(self.0.turns.take_from(container.id.as_str(), Copies::Wait).await?);
                if task.state_or_unknown().await.is_ok_and(|process| process.status == Status::Stopped) {
                    self.wait_for_end(&container.id).await?;
                }
                has_waited = true;
                continue;
            }
            let turn = self.0.turns.take_from(container.id.as_str(), Copies::Wait).await?;
            if self.task_of(&container.id)?.is_none() {
                turn.copies(handle);
                break turn;
            }
        };
        let (record, own) = (container.clone(), extension.clone());
        // The turn ends with the work, whoever goes away meanwhile: nobody else may mount the tree.
        let assembled = self.blocking(move |engine| {
            let (root, mounts) = engine.assemble(&record, &own, access, &reach)?;
            Ok((root, mounts, turn))
        });
        let (root, mounts, turn) = assembled.await?;
        let name = extension.name;
        Ok((container, View { root, name, process: None, _mounts: Some(mounts), _turn: Some(turn) }))
    }

    /// The tree alone, without what is mounted in it. Of one that does not run as [`Engine::view`]; one that runs goes on, and
    /// what it changes meanwhile is seen or not.
    pub(crate) async fn view_of_tree(&self, text: &str, handle: &CopyHandle) -> Result<(Container, View)> {
        let (container, extension) = self.find_own(text).await?;
        let mut turn = None;
        if self.task_of(&container.id)?.is_none() {
            let taken = self.0.turns.take_from(container.id.as_str(), Copies::Wait).await?;
            // Who has started it meanwhile needs the turn for its end.
            if self.task_of(&container.id)?.is_none() {
                taken.copies(handle);
                turn = Some(taken);
            }
        }
        let reach = Reach { path: PathBuf::from("/"), follows: false, beneath: false };
        let (record, own) = (container.clone(), extension.clone());
        let assembled = self.blocking(move |engine| {
            let (root, mounts) = engine.assemble(&record, &own, Access::Read, &reach)?;
            Ok((root, mounts, turn))
        });
        let (root, mounts, turn) = assembled.await?;
        Ok((
            container,
            View { root, name: extension.name, process: None, _mounts: Some(mounts), _turn: turn },
        ))
    }

    /// None unless it runs.
    async fn view_of_task(&self, task: &Task, name: &str) -> Result<Option<View>> {
        let found = self.root_of_task(task, name).await?;
        Ok(found.map(|(process, root)| {
            let root = Root::from_fd(root, Path::new(name));
            View { root, name: name.to_owned(), process: Some(process), _mounts: None, _turn: None }
        }))
    }

    /// The first process of a container, and its root as it sees it. None unless it runs.
    pub(crate) async fn root_of_task(&self, task: &Task, name: &str) -> Result<Option<(PidFd, OwnedFd)>> {
        self.open_of_task(task, name, open_root).await
    }

    /// Opens something of the first process of a container, by its number; none of one that does not run.
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
        // Only a process that its shim has not seen end still has its number for certain.
        let is_its = runs(after.status) && after.pid == pid;
        match opened {
            Ok((process, root)) if is_its && !process.has_ended() => Ok(Some((process, root))),
            Err(error) if is_its && !error.is(ErrorKind::NotFound) => Err(error),
            _ => Ok(None),
        }
    }

    /// Mounts the tree of a container that does not run, with what it would have mounted where that is looked for.
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
            let is_shut = extension.create.read_only;
            // In a thread of its own, which has the namespace.
            let made = std::thread::scope(|scope| {
                scope.spawn(|| put_together(&tree, &binds, place, (access, reach), is_shut)).join()
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

/// What a container has mounted of this machine, in order: where, and what.
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

/// Mounts the tree, and what the path leads to, where nobody else sees it. The namespace holds it. None if a place to
/// mount on is missing, and is not to be made. `is_shut`: the tree itself cannot be written to.
fn put_together(
    tree: &[Mount],
    binds: &[(PathBuf, Mount)],
    place: &Path,
    (access, reach): (Access, &Reach),
    is_shut: bool,
) -> Result<Option<(Root, OwnedFd)>> {
    ns::unshare(&[NsKind::Mount])?;
    // What is unmounted elsewhere is unmounted here, but not the other way.
    let slash = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let slash = slash.map_err(std::io::Error::from).context(|| "open /")?;
    mount::set_propagation(slash.as_fd(), Propagation::Slave, true)?;
    // Sources are looked up where the tree is not mounted: its links would lead to other places of the machine.
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
        // A directory of this machine that is gone takes nothing else with it.
        let Some(mount) = mount.unless_gone()? else { return Ok(()) };
        // What is mounted in it must not appear on the machine.
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
    if is_shut {
        mount::set_attributes(root.as_fd(), Attributes::READ_ONLY, false)?;
    }
    Ok(Some((root, inside)))
}

fn own_namespace() -> Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/mnt").context(|| "open the namespace of mounts")?.into())
}

/// As the runtime does before it mounts.
fn make_place(root: &Root, destination: &Path, mount: &OwnedFd) -> Result<OwnedFd> {
    let stat = linux::beneath::stat(mount.as_fd()).context(|| "look at a mount")?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => root.make_dirs(destination, 0o755),
        _ => root.make_file(destination, 0o644),
    }
}

/// The root of a process, as it sees it.
fn open_root(pid: u32) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/root");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(&path, flags, Mode::empty())
        .map_err(std::io::Error::from)
        .context(|| format!("open {path}"))
}
