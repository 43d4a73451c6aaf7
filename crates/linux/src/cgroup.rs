//! Control groups: version 1, version 2, and both at once.
//!
//! ```text
//! Hierarchies::detect ─▶ Cgroup::create("/hoist/<id>") ─▶ one directory per hierarchy
//!                            │ apply(limits)
//!                            │ entry() ─▶ the new process enters by itself, before it executes
//!                            │ stats, freeze/thaw, update, watch_oom, processes
//!                            └ kill ─▶ delete
//! ```
//!
//! A host has version 1 (a tree per controller), version 2 (one tree), or *hybrid*: controllers in
//! version 1 trees beside a version 2 tree without them. In the hybrid case a [`Cgroup`] has a directory
//! in the version 2 tree too: it cannot limit anything, but it freezes, kills and tells when it is
//! empty, which version 1 cannot.
//!
//! Invariants
//! - Files are opened beneath a descriptor of the cgroup's own directory, so that an operation never affects a later
//!   cgroup of the same name.
//! - A limit that cannot be set is an error that names file and value. Only kernel memory is ignored, as the
//!   specification says.
//! - Moving *another* process costs the kernel a grace period of milliseconds; a thread that moves itself
//!   ([`Entry::enter`]) costs none. Starting a container takes the second way.

mod below;
mod delegate;
mod devices;
mod file;
mod freeze;
mod hierarchy;
mod limits_v1;
mod limits_v2;
mod oom;
mod pressure;
mod remove;
mod stats;
mod systemd;
mod unit_properties;
mod update;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use types::spec::runtime::LinuxResources;
use types::{Context, Error, ErrorKind, Result};

use crate::idmap;

pub use self::hierarchy::{Hierarchies, Hierarchy, Kind, Rest, Version};
pub use self::oom::{Oom, OomWatch};
pub use self::pressure::{Pressure, Stall};
pub use self::stats::{
    Counters, Cpu, Cpuset, Hugetlb, Io, IoEntry, Limited, Memory, MemoryEvents, Pids, Rdma, RdmaEntry, Stats,
    Throttling,
};
pub use self::systemd::{Instance, Scope, stop_scope, update_scope};
pub use self::unit_properties::PREFIX as UNIT_PROPERTY_ANNOTATIONS;

/// Whether the caller is root in the initial user namespace, whom the kernel refuses no change of cgroups.
fn is_privileged() -> bool {
    rustix::process::geteuid().is_root() && !idmap::in_user_namespace()
}

/// A cgroup: the directories of one name in every hierarchy of the host.
pub struct Cgroup {
    members: Vec<Member>,
}

/// Device and inode number of a directory.
pub type Inode = (u64, u64);

/// The directory of a cgroup in one hierarchy.
struct Member {
    kind: Kind,
    /// For messages, and for removal.
    path: PathBuf,
    /// `O_PATH`.
    dir: OwnedFd,
    /// Created by [`Cgroup::create`]; false if it existed before.
    is_new: bool,
    /// Records of writes while a change can still be undone.
    written: RefCell<Option<Vec<update::Written>>>,
}

impl Cgroup {
    /// Makes the cgroup in every hierarchy.
    ///
    /// An absolute path is relative to the root of each hierarchy, a relative one to the caller's own cgroup.
    /// `FailedPrecondition` if the cgroup exists and has processes. A caller without privileges, or root of a user
    /// namespace, gets a cgroup without the hierarchies that it may not write to, and its processes stay where they are
    /// in those.
    pub fn create(path: &str) -> Result<Cgroup> {
        Hierarchies::detect()?.create(path)
    }

    /// Creates the cgroup if missing, for several owners: others may have processes in it, or create it at the same
    /// moment.
    pub fn share(path: &str) -> Result<Cgroup> {
        Hierarchies::detect()?.adopt(path)
    }

    /// The cgroup at this path, if at least one hierarchy has it; otherwise `NotFound`.
    pub fn open(path: &str) -> Result<Cgroup> {
        Hierarchies::detect()?.open(path)
    }

    /// The cgroup with the directories that [`Cgroup::locations`] returned, perhaps in another process.
    pub fn open_locations(locations: &BTreeMap<String, PathBuf>) -> Result<Cgroup> {
        let mut members = Vec::with_capacity(locations.len());
        for (name, path) in locations {
            match Member::open(Kind::from_name(name), path.clone()) {
                Ok(member) => members.push(member),
                Err(error) if error.is(ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        found(members, "of the container")
    }

    /// Directories by hierarchy (`cpu,cpuacct`, `name=systemd`; empty for version 2), by which a state file finds the
    /// cgroup again.
    pub fn locations(&self) -> BTreeMap<String, PathBuf> {
        self.members.iter().map(|member| (member.kind.name(), member.path.clone())).collect()
    }

    /// Identifies each directory, also against a later one at the same path, by the keys of [`Cgroup::locations`].
    pub fn inodes(&self) -> Result<BTreeMap<String, Inode>> {
        self.members.iter().map(|member| Ok((member.kind.name(), member.inode()?))).collect()
    }

    /// Keeps only directories that match these [`Cgroup::inodes`], or are not in them. `NotFound` if none is left.
    pub fn only(self, inodes: &BTreeMap<String, Inode>) -> Result<Cgroup> {
        let mut kept = Vec::with_capacity(self.members.len());
        for member in self.members {
            let own = member.inode()?;
            if inodes.get(&member.kind.name()).is_none_or(|known| *known == own) {
                kept.push(member);
            }
        }
        found(kept, "of the container")
    }

    /// Version 2 only, version 1 only, or both.
    pub fn version(&self) -> Version {
        let has_v1 = self.members.iter().any(|member| !member.kind.is_unified());
        match (has_v1, self.unified().is_some()) {
            (true, true) => Version::Hybrid,
            (true, false) => Version::V1,
            (false, _) => Version::V2,
        }
    }

    /// Sets all limits and device rules of a new cgroup.
    ///
    /// Device rules start from "deny all". Those that every container gets (`/dev/null`, …, and mknod(2)) come last,
    /// whatever the list says.
    pub fn apply(&self, resources: &LinuxResources) -> Result<()> {
        devices::restrict(self, resources)?;
        self.set_limits(resources)
    }

    /// Sets the given limits; other limits and device rules stay. If one is refused, none is changed.
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        update::all_or_nothing(self, || self.set_limits(resources))
    }

    /// The limits of an update, completed where two belong together and one is missing: quota and period, memory and
    /// memory with swap. `made_with` are the limits that the cgroup was created with.
    pub fn completed(
        &self,
        resources: &LinuxResources,
        made_with: &LinuxResources,
    ) -> Result<LinuxResources> {
        update::completed(self, resources, made_with)
    }

    fn set_limits(&self, resources: &LinuxResources) -> Result<()> {
        match self.version() {
            Version::V2 => limits_v2::apply(self, resources),
            Version::V1 | Version::Hybrid => limits_v1::apply(self, resources),
        }
    }

    /// Descriptors by which a new process enters.
    pub fn entry(&self) -> Result<Entry> {
        let unified = match self.unified() {
            Some(member) => {
                let read = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let dir = rustix::fs::openat(&member.dir, ".", read, Mode::empty()).map_err(io::Error::from);
                Some(dir.context(|| format!("open {}", member.path.display()))?)
            }
            None => None,
        };
        Ok(Entry { v1: self.tasks()?, unified })
    }

    /// The descriptors of version 1 in [`Cgroup::entry`].
    pub fn tasks(&self) -> Result<Vec<OwnedFd>> {
        let v1 = self.members.iter().filter(|member| !member.kind.is_unified());
        v1.map(|member| member.open_file("tasks", OFlags::WRONLY)).collect()
    }

    /// The directory of version 2, which `clone3` takes with `CLONE_INTO_CGROUP`.
    pub fn unified_dir(&self) -> Option<BorrowedFd<'_>> {
        self.unified().map(|member| member.dir.as_fd())
    }

    /// The path of that directory.
    pub fn unified_path(&self) -> Option<&Path> {
        self.unified().map(|member| member.path.as_path())
    }

    /// Adds the directories of another cgroup, which has the same path in later hierarchies.
    pub fn and(mut self, other: Cgroup) -> Cgroup {
        self.members.extend(other.members);
        self
    }

    /// Descriptors for a process that enters after the first one, which may have divided the cgroup meanwhile.
    pub fn entry_with(&self, first: u32) -> Result<Entry> {
        delegate::entry_with(self, first)
    }

    /// Allows a user to divide the cgroup further. Version 2 only; without effect in version 1.
    pub fn delegate(&self, uid: u32) -> Result<()> {
        delegate::delegate(self, uid)
    }

    /// Moves a process, with all its threads, in every hierarchy. Slow: see the module's documentation.
    pub fn add(&self, pid: u32) -> Result<()> {
        self.members.iter().try_for_each(|member| member.write("cgroup.procs", &pid.to_string()))
    }

    /// The processes in it and in cgroups below it, in no particular order.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        let member = self.unified().or_else(|| self.members.first());
        if let Some(member) = member {
            file::processes(member.dir.as_fd(), &member.path, &mut pids)?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Whether it, and all below it, has no processes; waits up to two seconds for processes that are ending.
    pub fn wait_until_empty(&self) -> Result<bool> {
        remove::wait_until_empty(self)
    }

    /// Freezes every process until [`Cgroup::thaw`]. Returns when all are frozen; fails, with none frozen, if that
    /// takes longer than a second or two.
    pub fn freeze(&self) -> Result<()> {
        freeze::freeze(self)
    }

    /// Thaws the processes. No error if they were not frozen.
    pub fn thaw(&self) -> Result<()> {
        freeze::thaw(self)
    }

    /// Whether it is frozen.
    pub fn is_frozen(&self) -> Result<bool> {
        freeze::is_frozen(self)
    }

    /// Whether an empty cgroup would freeze a process that enters: it, or one above it, is frozen.
    pub fn freezes_new_processes(&self) -> Result<bool> {
        freeze::freezes_new_processes(self)
    }

    /// Sends `SIGKILL` to every process in it and below it, frozen ones too. Does not wait for their end.
    pub fn kill(&self) -> Result<()> {
        freeze::kill(self)
    }

    /// Thaws the freezer of version 1, so that killed processes can end. This thaws all other processes too. No error
    /// if it was not frozen.
    pub fn thaw_killed(&self) -> Result<()> {
        freeze::thaw_v1(self)
    }

    /// Sends a signal to every process in it and below it.
    pub fn signal(&self, number: u32) -> Result<()> {
        freeze::signal(self, number).map(drop)
    }

    /// Resource usage.
    pub fn stats(&self) -> Result<Stats> {
        stats::read(self)
    }

    /// The processors and memory nodes that its processes may use.
    pub fn cpuset(&self) -> Result<Cpuset> {
        stats::cpuset(self)
    }

    /// A descriptor that becomes readable when the kernel runs out of memory for this cgroup.
    pub fn watch_oom(&self) -> Result<OomWatch> {
        OomWatch::new(self)
    }

    /// Removes the directories, the deepest first. Waits up to two seconds for processes that are ending;
    /// `FailedPrecondition` if some stay. No error if there is nothing to remove.
    pub fn delete(&self) -> Result<()> {
        remove::remove(self)
    }

    /// As [`Cgroup::delete`], for directories that [`Cgroup::create`] created. Those that existed before stay.
    pub fn delete_new(&self) -> Result<()> {
        remove::remove_new(self)
    }

    /// Recreates the directories that existed before [`Cgroup::create`], which resets their limits. Those that have
    /// processes or children by now stay as they are.
    pub fn recreate_found(&self) -> Result<()> {
        remove::recreate_found(self)
    }

    /// Without the hierarchies of these names ([`Hierarchies::having`]).
    #[must_use]
    pub fn without(mut self, names: &[String]) -> Cgroup {
        self.members.retain(|member| !names.contains(&member.kind.name()));
        self
    }

    /// The names of the hierarchies in which the directory existed before [`Cgroup::create`].
    pub fn found(&self) -> impl Iterator<Item = String> {
        self.members.iter().filter(|member| !member.is_new).map(|member| member.kind.name())
    }

    /// Removes its empty directories. Others stay: no error.
    pub fn remove_if_empty(&self) -> Result<()> {
        remove::remove_if_empty(self)
    }

    fn unified(&self) -> Option<&Member> {
        self.members.iter().find(|member| member.kind.is_unified())
    }

    /// The directory in the hierarchy of this version 1 controller.
    fn controller(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.kind.has(name))
    }
}

fn found(members: Vec<Member>, path: &str) -> Result<Cgroup> {
    if members.is_empty() {
        return Err(Error::not_found(format!("cgroup {path} is in no hierarchy")));
    }
    Ok(Cgroup { members })
}

/// Descriptors of a cgroup, opened beforehand, so that the process that enters needs no path, no memory and no
/// privilege.
pub struct Entry {
    v1: Vec<OwnedFd>,
    unified: Option<OwnedFd>,
}

impl Entry {
    /// The directory for `clone3` with `CLONE_INTO_CGROUP`. None without version 2.
    pub fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(AsFd::as_fd)
    }

    /// Moves the calling thread in all hierarchies of version 1; the process must have no other thread.
    ///
    /// Allocates nothing, so it may run between clone and exec. Version 2 is entered by
    /// [`Entry::unified`], or by [`Entry::enter_unified`].
    pub fn enter(&self) -> io::Result<()> {
        for tasks in &self.v1 {
            rustix::io::write(tasks, b"0")?;
        }
        Ok(())
    }

    /// Moves the calling process in the version 2 tree. Not needed after `CLONE_INTO_CGROUP`.
    pub fn enter_unified(&self) -> io::Result<()> {
        let Some(dir) = &self.unified else { return Ok(()) };
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let procs = rustix::fs::openat(dir, "cgroup.procs", flags, Mode::empty())?;
        rustix::io::write(procs, b"0")?;
        Ok(())
    }

    /// From the descriptors of [`Cgroup::tasks`], perhaps of another process.
    pub fn of_tasks(v1: Vec<OwnedFd>) -> Entry {
        Entry { v1, unified: None }
    }

    /// Every descriptor, for a process that must keep them open across `exec` or close all others.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.v1.iter().chain(&self.unified).map(AsFd::as_fd)
    }

    /// The `tasks` files of version 1: `0` written by a thread moves that thread.
    pub fn tasks(&self) -> &[OwnedFd] {
        &self.v1
    }
}

impl Member {
    fn open(kind: Kind, path: PathBuf) -> Result<Member> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let dir = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(io::Error::from)
            .context(|| format!("open cgroup {}", path.display()))?;
        Ok(Member { kind, path, dir, is_new: false, written: RefCell::default() })
    }

    fn inode(&self) -> Result<Inode> {
        let stat = rustix::fs::fstat(&self.dir).map_err(io::Error::from);
        stat.map(|stat| (stat.st_dev, stat.st_ino)).context(|| format!("look at {}", self.path.display()))
    }

    fn open_file(&self, name: &str, flags: OFlags) -> Result<OwnedFd> {
        file::open(self.dir.as_fd(), name, flags).context(|| format!("open {}", self.file(name).display()))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn has_file(&self, name: &str) -> bool {
        rustix::fs::accessat(&self.dir, name, rustix::fs::Access::EXISTS, rustix::fs::AtFlags::empty())
            .is_ok()
    }

    fn read(&self, name: &str) -> Result<String> {
        file::read(self.dir.as_fd(), name).context(|| format!("read {}", self.file(name).display()))
    }

    /// The text of a file; None if this kernel or this controller lacks it.
    fn read_optional(&self, name: &str) -> Result<Option<String>> {
        match self.read(name) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.is(ErrorKind::NotFound) || file::is_unsupported(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The number in a file: 0 if there is no such file, `u64::MAX` for `max`.
    fn read_number(&self, name: &str) -> Result<u64> {
        Ok(self.read_optional(name)?.map_or(0, |text| file::number(&text)))
    }

    fn write(&self, name: &str, value: &str) -> Result<()> {
        self.try_write(name, value).context(|| self.cannot_write(name, value))
    }

    fn try_write(&self, name: &str, value: &str) -> io::Result<()> {
        let is_noted = self.written.borrow().is_some();
        let note = is_noted.then(|| update::Written::note(self, name, value)).flatten();
        file::write(self.dir.as_fd(), name, value)?;
        if let Some(written) = &mut *self.written.borrow_mut() {
            written.extend(note);
        }
        Ok(())
    }

    fn cannot_write(&self, name: &str, value: &str) -> String {
        format!("write {value:?} to {}", self.file(name).display())
    }
}

/// The mounts by which a runtime makes a container's `cgroup` file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerMounts {
    /// A new mount of `cgroup2`, or a bind mount of this directory where the container shares the host's
    /// cgroup namespace.
    Unified { source: PathBuf },
    /// A `tmpfs` with a directory per tree.
    V1(Vec<TreeMount>),
}

/// One tree in a container's `/sys/fs/cgroup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeMount {
    /// Name of the directory beneath the target: `cpu,cpuacct`, `systemd`, `unified`.
    pub directory: String,
    /// The container's own directory, to bind mount where it shares the host's cgroup namespace.
    pub source: PathBuf,
    /// File system type for a new mount in a cgroup namespace of its own: `cgroup` or `cgroup2`.
    pub kind: &'static str,
    /// Names that lead to `directory` by symbolic link: `cpu` and `cpuacct` to `cpu,cpuacct`.
    pub links: Vec<String>,
}

impl ContainerMounts {
    /// The container's directory in the tree of version 2, which may stand beside those of version 1.
    pub fn unified(&self) -> Option<&Path> {
        match self {
            ContainerMounts::Unified { source } => Some(source),
            ContainerMounts::V1(trees) => {
                trees.iter().find(|tree| tree.kind == "cgroup2").map(|tree| &*tree.source)
            }
        }
    }
}

impl Cgroup {
    /// The cgroup mounts of a container.
    pub fn mounts_for_container(&self) -> ContainerMounts {
        match (self.version(), self.unified()) {
            (Version::V2, Some(unified)) => ContainerMounts::Unified { source: unified.path.clone() },
            _ => ContainerMounts::V1(self.members.iter().map(TreeMount::of).collect()),
        }
    }
}

impl TreeMount {
    fn of(member: &Member) -> TreeMount {
        let name = member.kind.name();
        let source = member.path.clone();
        match &member.kind {
            Kind::Unified => {
                TreeMount { directory: "unified".to_owned(), source, kind: "cgroup2", links: Vec::new() }
            }
            Kind::V1(controllers) => {
                let named = name.strip_prefix("name=");
                let links = if controllers.len() > 1 { controllers.clone() } else { Vec::new() };
                TreeMount { directory: named.unwrap_or(&name).to_owned(), source, kind: "cgroup", links }
            }
        }
    }
}

/// Checks a cgroup path: no `..`, and not the root; drops empty and `.` parts.
fn clean(path: &str) -> Result<PathBuf> {
    let relative = Path::new(path);
    let mut cleaned = PathBuf::new();
    for part in relative.components() {
        match part {
            std::path::Component::Normal(part) => cleaned.push(part),
            std::path::Component::RootDir | std::path::Component::CurDir => {}
            std::path::Component::ParentDir | std::path::Component::Prefix(_) => {
                return Err(Error::invalid_argument(format!("cgroup path {path:?} has a part \"..\"")));
            }
        }
    }
    if cleaned.as_os_str().is_empty() {
        return Err(Error::invalid_argument(format!("cgroup path {path:?} names the root of the hierarchy")));
    }
    Ok(cleaned)
}
