//! The cgroup hierarchies of the host, and the caller's position in them.
//!
//! ```text
//! /proc/self/mountinfo   32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu   ─┐
//! /proc/self/cgroup      1:cpu:/user                                                  ─┴▶ Hierarchy
//! ```
//!
//! The list of mounts grows with the containers of a host, so it is read only if a hierarchy is not at its usual path
//! below `/sys/fs/cgroup`.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;
use types::{Context as _, Error, Result};

use super::{Cgroup, Member, clean, file, found};
use crate::mount::{MountPoint, mount_point};

/// The cgroup versions of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
    /// Controllers in version 1, and a version 2 tree beside them.
    Hybrid,
}

/// The version of a hierarchy, and for version 1 its controllers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Controllers as the kernel lists them, or one `name=…` for a hierarchy without any.
    V1(Vec<String>),
    Unified,
}

impl Kind {
    /// As in `/proc/self/cgroup`: `cpu,cpuacct`, `name=systemd`; empty for version 2.
    pub fn name(&self) -> String {
        match self {
            Kind::V1(controllers) => controllers.join(","),
            Kind::Unified => String::new(),
        }
    }

    /// The reverse of [`Kind::name`].
    pub fn from_name(name: &str) -> Kind {
        match name {
            "" => Kind::Unified,
            _ => Kind::V1(name.split(',').map(str::to_owned).collect()),
        }
    }

    pub fn is_unified(&self) -> bool {
        *self == Kind::Unified
    }

    /// Whether a hierarchy of version 1 has this controller.
    pub fn has(&self, controller: &str) -> bool {
        matches!(self, Kind::V1(controllers) if controllers.iter().any(|has| has == controller))
    }
}

/// A mounted cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    pub kind: Kind,
    pub mountpoint: PathBuf,
    /// The caller's cgroup, relative to `mountpoint`.
    pub own: PathBuf,
}

/// The hierarchies of the host, version 1 first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchies {
    trees: Vec<Hierarchy>,
    /// The host's version, also if these are a part of its hierarchies.
    version: Version,
}

impl Hierarchies {
    /// The hierarchies mounted in the caller's mount namespace.
    pub fn detect() -> Result<Hierarchies> {
        Hierarchies::find(&read_own()?)
    }

    /// Version 2, which clone3(2) can put a process into, if the host has it; and those of version 1, which are looked
    /// up when they are needed. A path means the same in either part as in the whole.
    pub fn detect_unified() -> Result<(Hierarchies, Rest)> {
        let own = read_own()?;
        if let Some(unified) = usual_unified(&own, root_at) {
            return Ok((unified, Rest { own, found: None }));
        }
        let whole = Hierarchies::find(&own)?;
        let (v2, v1) = whole.trees.into_iter().partition(|hierarchy| hierarchy.kind.is_unified());
        let part = |trees| Hierarchies { trees, version: whole.version };
        Ok((part(v2), Rest { own, found: Some(part(v1)) }))
    }

    /// The hierarchies in the text of `/proc/self/cgroup`.
    fn find(own: &str) -> Result<Hierarchies> {
        if let Some(found) = usual(own, root_at) {
            return Ok(Hierarchies::of(found));
        }
        let mounts = crate::procfs::read_own("/proc/self/mountinfo");
        let mounts = mounts.context(|| "read /proc/self/mountinfo")?;
        let found = parse(&mounts, own);
        if found.is_empty() {
            return Err(Error::failed_precondition("no cgroup file system is mounted on this host"));
        }
        Ok(Hierarchies::of(found))
    }

    fn of(trees: Vec<Hierarchy>) -> Hierarchies {
        let unified = trees.iter().filter(|hierarchy| hierarchy.kind.is_unified()).count();
        let version = match (unified, trees.len() - unified) {
            (0, _) => Version::V1,
            (_, 0) => Version::V2,
            _ => Version::Hybrid,
        };
        Hierarchies { trees, version }
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// Adds other hierarchies of the same host.
    #[must_use]
    pub fn and(mut self, others: &Hierarchies) -> Hierarchies {
        self.trees.extend_from_slice(&others.trees);
        self
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.trees.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Hierarchy> {
        self.trees.iter()
    }

    /// The controllers that can set limits here.
    pub fn controllers(&self) -> Vec<String> {
        let mut all = Vec::new();
        for hierarchy in &self.trees {
            match &hierarchy.kind {
                Kind::V1(controllers) => {
                    all.extend(controllers.iter().filter(|name| !name.starts_with("name=")).cloned());
                }
                Kind::Unified => {
                    let list = fs::read_to_string(hierarchy.mountpoint.join("cgroup.controllers"));
                    all.extend(list.unwrap_or_default().split_whitespace().map(str::to_owned));
                }
            }
        }
        all
    }

    /// See [`Cgroup::create`].
    pub fn create(&self, path: &str) -> Result<Cgroup> {
        self.make(path, Occupied::Refuse)
    }

    /// The hierarchies, by [`Kind::name`], that have a cgroup of this path.
    pub fn having(&self, path: &str) -> Result<Vec<String>> {
        let cleaned = clean(path)?;
        let has = |hierarchy: &&Hierarchy| {
            hierarchy.mountpoint.join(self.place(hierarchy, path, &cleaned)).is_dir()
        };
        Ok(self.iter().filter(has).map(|hierarchy| hierarchy.kind.name()).collect())
    }

    /// Creates the cgroup where it is missing, and accepts one that exists with processes.
    pub(super) fn adopt(&self, path: &str) -> Result<Cgroup> {
        self.make(path, Occupied::Accept)
    }

    fn make(&self, path: &str, occupied: Occupied) -> Result<Cgroup> {
        let cleaned = clean(path)?;
        let mut made = Vec::with_capacity(self.trees.len());
        let mut refused = false;
        for hierarchy in &self.trees {
            let relative = self.place(hierarchy, path, &cleaned);
            match hierarchy.create(&relative, occupied) {
                Ok(member) => made.push(member),
                Err(error) if is_refusal(&error) && !super::is_privileged() => {
                    refused = true;
                }
                Err(error) => return Err(undo(made, error)),
            }
        }
        // In a hierarchy that the caller may not write to, its processes stay in the caller's cgroup.
        let may_be_none = refused || self.trees.is_empty();
        if made.is_empty() && may_be_none { Ok(Cgroup { members: made }) } else { found(made, path) }
    }

    /// See [`Cgroup::open`].
    pub fn open(&self, path: &str) -> Result<Cgroup> {
        let cleaned = clean(path)?;
        let mut members = Vec::with_capacity(self.trees.len());
        for hierarchy in &self.trees {
            let full = hierarchy.mountpoint.join(self.place(hierarchy, path, &cleaned));
            match Member::open(hierarchy.kind.clone(), full) {
                Ok(member) => members.push(member),
                Err(error) if error.is(types::ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        found(members, path)
    }

    /// The path in a hierarchy of a path given to [`Cgroup::create`].
    fn place(&self, hierarchy: &Hierarchy, path: &str, cleaned: &Path) -> PathBuf {
        if path.starts_with('/') {
            return cleaned.to_owned();
        }
        let own = match self.version() {
            // A cgroup with processes cannot have limited children, so a relative path is a sibling.
            Version::V2 => hierarchy.own.parent().unwrap_or(Path::new("")),
            Version::V1 | Version::Hybrid => &hierarchy.own,
        };
        own.join(cleaned)
    }
}

/// The hierarchies of version 1: see [`Hierarchies::detect_unified`].
pub struct Rest {
    /// The text of `/proc/self/cgroup`.
    own: String,
    found: Option<Hierarchies>,
}

impl Rest {
    /// The names of all hierarchies that may be mounted ([`Kind::name`]).
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.own.lines().filter_map(name_and_path).map(|(name, _)| name).filter(|name| !name.is_empty())
    }

    /// The mounted ones. They differ from earlier only if the caller was moved meanwhile.
    pub fn find(&self) -> Result<Hierarchies> {
        let mut found = match &self.found {
            Some(found) => return Ok(found.clone()),
            None => Hierarchies::find(&self.own)?,
        };
        found.trees.retain(|hierarchy| !hierarchy.kind.is_unified());
        Ok(found)
    }
}

fn read_own() -> Result<String> {
    crate::procfs::read_own("/proc/self/cgroup").context(|| "read /proc/self/cgroup")
}

/// Parses a line of `/proc/self/cgroup` (cgroups(7)).
fn name_and_path(line: &str) -> Option<(&str, &str)> {
    let mut parts = line.splitn(3, ':').skip(1);
    Some((parts.next()?, parts.next()?))
}

/// What to do if the cgroup to create has processes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Occupied {
    Refuse,
    Accept,
}

impl Hierarchy {
    /// Creates the directory and its parents. After an error it is removed, if it was created.
    fn create(&self, relative: &Path, occupied: Occupied) -> Result<Member> {
        let full = self.mountpoint.join(relative);
        let is_new = self.make(relative).context(|| format!("create cgroup {}", full.display()))?;
        self.put_into_use(relative, &full, is_new, occupied).inspect_err(|_| {
            if is_new {
                // By its path, as this process may have run out of descriptors.
                let _ = fs::remove_dir(&full);
            }
        })
    }

    /// Opens an existing directory, and prepares it for processes.
    fn put_into_use(&self, relative: &Path, full: &Path, is_new: bool, occupied: Occupied) -> Result<Member> {
        if self.kind.is_unified() {
            self.delegate(relative)?;
        }
        let member = Member { is_new, ..Member::open(self.kind.clone(), full.to_owned())? };
        if !is_new {
            // Refused here if the caller may not move processes into it, rather than at the clone.
            member.open_file("cgroup.procs", OFlags::WRONLY)?;
        }
        if self.kind.has("cpuset") {
            self.fill_cpuset(&member, relative)?;
        }
        if !is_new && occupied == Occupied::Refuse {
            // Descendants count too: they would be killed with it.
            let mut pids = Vec::new();
            file::processes(member.dir.as_fd(), &member.path, &mut pids)?;
            if !pids.is_empty() {
                let path = member.path.display();
                return Err(Error::failed_precondition(format!(
                    "container's cgroup is not empty: {path} has processes already"
                )));
            }
        }
        Ok(member)
    }

    /// True if the last directory was created, false if it existed.
    fn make(&self, relative: &Path) -> io::Result<bool> {
        match fs::create_dir(self.mountpoint.join(relative)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parent = relative.parent().ok_or(error)?;
                self.make(parent)?;
                if self.kind.has("cpuset") {
                    self.inherit_cpuset_below(parent);
                }
                self.make(relative)
            }
            Err(error) => Err(error),
        }
    }

    /// Enables, in every ancestor, the host's controllers for its children. One that cannot be enabled is reported when
    /// a limit needs it.
    fn delegate(&self, relative: &Path) -> Result<()> {
        let root = Member::open(Kind::Unified, self.mountpoint.clone())?;
        let controllers = root.read("cgroup.controllers")?;
        let controllers: Vec<&str> = controllers.split_whitespace().collect();
        if controllers.is_empty() {
            return Ok(());
        }
        let all: String = controllers.iter().map(|name| format!("+{name} ")).collect();
        let mut lacking = Vec::new();
        for relative in relative.ancestors().skip(1) {
            let member = Member::open(Kind::Unified, self.mountpoint.join(relative))?;
            let has = member.read("cgroup.subtree_control")?;
            if controllers.iter().all(|name| has.split(' ').any(|has| has == *name)) {
                // No ancestor has more than its parent enables.
                break;
            }
            lacking.push(member);
        }
        for member in lacking.into_iter().rev() {
            if member.try_write("cgroup.subtree_control", all.trim_end()).is_err() {
                for name in &controllers {
                    let _ = member.try_write("cgroup.subtree_control", &format!("+{name}"));
                }
            }
        }
        Ok(())
    }

    /// A new cpuset of version 1 is empty, and takes no process until it has its parent's values.
    fn fill_cpuset(&self, member: &Member, relative: &Path) -> Result<()> {
        let mut empty = Vec::new();
        for name in ["cpuset.cpus", "cpuset.mems"] {
            if member.read(name)?.is_empty() {
                empty.push(name);
            }
        }
        if empty.is_empty() {
            return Ok(());
        }
        let parent = relative.parent().unwrap_or(Path::new(""));
        let above = Member::open(self.kind.clone(), self.mountpoint.join(parent))?;
        if !parent.as_os_str().is_empty() {
            self.fill_cpuset(&above, parent)?;
        }
        empty.into_iter().try_for_each(|name| member.write(name, &above.read(name)?))
    }

    /// Has a parent cgroup pass on its cpuset to new children.
    ///
    /// Writing a cpuset makes the kernel rebuild its scheduling domains, close to a millisecond a container, during
    /// which all wait. A child created with its parent's values (cgroup-v1/cgroups.rst, "clone_children") needs no
    /// write. Errors are ignored here, and reported when the child is filled.
    fn inherit_cpuset_below(&self, relative: &Path) {
        let Ok(member) = Member::open(self.kind.clone(), self.mountpoint.join(relative)) else { return };
        if self.fill_cpuset(&member, relative).is_ok() {
            let _ = member.try_write("cgroup.clone_children", "1");
        }
    }
}

fn is_refusal(error: &Error) -> bool {
    error.is(types::ErrorKind::PermissionDenied) || file::has_errno(error, Errno::ROFS)
}

/// Removes what was created before the error. Errors of the removal are dropped.
fn undo(made: Vec<Member>, error: Error) -> Error {
    let _ = Cgroup { members: made }.delete_new();
    error
}

/// The hierarchies of `/proc/self/cgroup`, if each is at its usual path: version 1 by its controllers or its name,
/// version 2 in `unified` beside them or alone. `root_at` returns the version of the hierarchy whose root is at a path.
fn usual(own: &str, root_at: impl Fn(&Path) -> Option<Version>) -> Option<Vec<Hierarchy>> {
    let is_alone = root_at(Path::new(USUAL_PLACE)) == Some(Version::V2);
    let found: Option<Vec<Hierarchy>> =
        own.lines().rev().map(|line| usual_tree(line, is_alone, &root_at)).collect();
    let mut found = found.filter(|found| !found.is_empty())?;
    found.sort_by_key(|hierarchy| hierarchy.kind.is_unified());
    Some(found)
}

/// Version 2, if it is at its usual path; of the others only one is checked, which tells whether they are mounted.
fn usual_unified(own: &str, root_at: impl Fn(&Path) -> Option<Version>) -> Option<Hierarchies> {
    let is_alone = root_at(Path::new(USUAL_PLACE)) == Some(Version::V2);
    let is_unified = |line: &&str| name_and_path(line).is_some_and(|(name, _)| name.is_empty());
    let (unified, others): (Vec<&str>, Vec<&str>) = own.lines().partition(is_unified);
    let unified = usual_tree(unified.first()?, is_alone, &root_at)?;
    let version = match others.first() {
        None => Version::V2,
        Some(other) => usual_tree(other, is_alone, &root_at).map(|_| Version::Hybrid)?,
    };
    Some(Hierarchies { trees: vec![unified], version })
}

const USUAL_PLACE: &str = "/sys/fs/cgroup";

/// The hierarchy of a line of `/proc/self/cgroup`. If version 2 `is_alone` it is mounted at the common path.
fn usual_tree(line: &str, is_alone: bool, root_at: &impl Fn(&Path) -> Option<Version>) -> Option<Hierarchy> {
    let (name, path) = name_and_path(line)?;
    let place = Path::new(USUAL_PLACE);
    let (mountpoint, version) = match name {
        "" if is_alone => (place.to_owned(), Version::V2),
        "" => (place.join("unified"), Version::V2),
        _ => (place.join(name.strip_prefix("name=").unwrap_or(name)), Version::V1),
    };
    // Seen from inside a cgroup namespace, or from outside of it, a path does not start at the hierarchy's root.
    if root_at(&mountpoint) != Some(version) || path.starts_with("/..") {
        return None;
    }
    let own = PathBuf::from(path.trim_matches('/'));
    Some(Hierarchy { kind: Kind::from_name(name), mountpoint, own })
}

/// See [`usual`]. The root of a hierarchy has inode 1; a bind mount of a part begins with another.
fn root_at(path: &Path) -> Option<Version> {
    const ROOT_INODE: u64 = 1;
    let kind = rustix::fs::statfs(path).ok()?.f_type;
    let version = match u64::try_from(kind).ok()? {
        // `CGROUP_SUPER_MAGIC` and `CGROUP2_SUPER_MAGIC` (`linux/magic.h`).
        0x0027_e0eb => Version::V1,
        0x6367_7270 => Version::V2,
        _ => return None,
    };
    (rustix::fs::stat(path).ok()?.st_ino == ROOT_INODE).then_some(version)
}

fn parse(mountinfo: &str, own: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    let is_of_cgroups = |mount: &MountPoint| matches!(mount.kind.as_str(), "cgroup" | "cgroup2");
    let mounts = mountinfo.lines().filter_map(|line| mount_point(line.as_bytes()));
    for mount in mounts.filter(is_of_cgroups) {
        let Some(hierarchy) = join(&mount, own) else { continue };
        // A hierarchy may be mounted twice, as in a container's rootfs; the host's usual path wins.
        match found.iter_mut().find(|other| other.kind == hierarchy.kind) {
            Some(other) if !other.mountpoint.starts_with("/sys/fs/cgroup") => *other = hierarchy,
            Some(_) => {}
            None => found.push(hierarchy),
        }
    }
    found.sort_by_key(|hierarchy| hierarchy.kind.is_unified());
    found
}

/// A mount, and the line of `/proc/self/cgroup` that belongs to it.
fn join(mount: &MountPoint, own: &str) -> Option<Hierarchy> {
    let has = |wanted: &str| mount.superblock_options.split(',').any(|option| option == wanted);
    let (controllers, path) =
        own.lines().filter_map(name_and_path).find(|(controllers, _)| match mount.kind.as_str() {
            "cgroup2" => controllers.is_empty(),
            _ => !controllers.is_empty() && controllers.split(',').all(has),
        })?;
    let own = Path::new(path).strip_prefix(&mount.root).unwrap_or(Path::new(""));
    Some(Hierarchy {
        kind: Kind::from_name(controllers),
        mountpoint: mount.path.clone(),
        own: own.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two hierarchies of version 1, and version 2 beside them, at their usual paths.
    fn hybrid(path: &Path) -> Option<Version> {
        match path.to_str() {
            Some("/sys/fs/cgroup/unified") => Some(Version::V2),
            Some("/sys/fs/cgroup/cpu,cpuacct" | "/sys/fs/cgroup/systemd") => Some(Version::V1),
            _ => None,
        }
    }

    #[test]
    fn hybrid_hosts_have_both_kinds() {
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:3 - cgroup cgroup rw,cpu,cpuacct\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
            50 31 0:29 / /var/lib/x/rootfs/sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct";
        let own = "2:cpu,cpuacct:/a/b\n1:name=systemd:/\n0::/init.scope\n";
        let found = Hierarchies::of(parse(mounts, own));
        assert_eq!(found.version(), Version::Hybrid);
        let names: Vec<(String, &str, &str)> = found
            .iter()
            .map(|h| (h.kind.name(), h.mountpoint.to_str().unwrap(), h.own.to_str().unwrap()))
            .collect();
        assert_eq!(
            names,
            [
                ("cpu,cpuacct".to_owned(), "/sys/fs/cgroup/cpu,cpuacct", "a/b"),
                ("name=systemd".to_owned(), "/sys/fs/cgroup/systemd", ""),
                (String::new(), "/sys/fs/cgroup/unified", "init.scope"),
            ]
        );
    }

    #[test]
    fn trees_in_their_usual_places_are_found_without_the_list_of_mounts() {
        let own = "2:cpu,cpuacct:/a/b\n1:name=systemd:/\n0::/init.scope\n";
        let found = usual(own, hybrid).unwrap();
        let names =
            found.iter().map(|h| (h.kind.name(), h.mountpoint.to_str().unwrap(), h.own.to_str().unwrap()));
        assert_eq!(
            names.collect::<Vec<_>>(),
            [
                ("name=systemd".to_owned(), "/sys/fs/cgroup/systemd", ""),
                ("cpu,cpuacct".to_owned(), "/sys/fs/cgroup/cpu,cpuacct", "a/b"),
                (String::new(), "/sys/fs/cgroup/unified", "init.scope"),
            ]
        );
        // One hierarchy elsewhere, and a view from inside a namespace.
        assert_eq!(usual("3:pids:/\n0::/\n", hybrid), None);
        assert_eq!(usual("1:name=systemd:/../..\n", hybrid), None);
        let pure = |path: &Path| (path == Path::new("/sys/fs/cgroup")).then_some(Version::V2);
        assert_eq!(usual("0::/user\n", pure).unwrap()[0].mountpoint, Path::new("/sys/fs/cgroup"));
        assert_eq!(usual("1:pids:/\n0::/user\n", pure), None);
    }

    #[test]
    fn the_tree_of_version_2_is_found_before_the_others() {
        let own = "2:cpu,cpuacct:/a/b\n1:name=systemd:/\n0::/init.scope\n";
        let found = usual_unified(own, hybrid).unwrap();
        assert_eq!(found.version(), Version::Hybrid);
        let places: Vec<&Path> = found.iter().map(|tree| tree.mountpoint.as_path()).collect();
        assert_eq!(places, [Path::new("/sys/fs/cgroup/unified")]);
        let rest = Rest { own: own.to_owned(), found: None };
        assert_eq!(rest.names().collect::<Vec<_>>(), ["cpu,cpuacct", "name=systemd"]);
        let pure = |path: &Path| (path == Path::new("/sys/fs/cgroup")).then_some(Version::V2);
        assert_eq!(usual_unified("0::/user\n", pure).unwrap().version(), Version::V2);
        // Others are not mounted, or there is no version 2.
        assert_eq!(usual_unified("1:pids:/\n0::/user\n", pure), None);
        assert_eq!(usual_unified("1:name=systemd:/\n", hybrid), None);
    }

    #[test]
    fn version_1_and_version_2_are_all_hierarchies_of_this_host() {
        let whole = Hierarchies::detect().unwrap();
        let (unified, rest) = Hierarchies::detect_unified().unwrap();
        let others = rest.find().unwrap();
        assert!(others.iter().all(|tree| rest.names().any(|name| name == tree.kind.name())));
        assert_eq!((unified.version(), others.version()), (whole.version(), whole.version()));
        let parts: Vec<&Hierarchy> = others.iter().chain(unified.iter()).collect();
        assert_eq!(parts, whole.iter().collect::<Vec<_>>());
    }

    #[test]
    fn usual_hierarchy_paths_agree_with_mountinfo() {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let mut listed = parse(&fs::read_to_string("/proc/self/mountinfo").unwrap(), &own);
        let Some(mut found) = usual(&own, root_at) else {
            println!("skipped: the trees of this host are in other places");
            return;
        };
        let by_name = |hierarchy: &Hierarchy| hierarchy.kind.name();
        listed.sort_by_key(by_name);
        found.sort_by_key(by_name);
        assert_eq!(found, listed);
    }

    #[test]
    fn a_tree_mounted_from_within_counts_from_its_root() {
        let mounts = "9 1 0:2 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw";
        let found = parse(mounts, "0::/docker/abc/sub\n");
        assert_eq!(found[0].own, Path::new("sub"));
    }

    #[test]
    fn relative_paths_are_siblings_in_v2_and_children_in_v1() {
        let v2 = Hierarchies::of(parse("9 1 0:2 / /sys/fs/cgroup rw - cgroup2 c rw", "0::/user/session\n"));
        assert_eq!(v2.place(&v2.trees[0], "box", Path::new("box")), Path::new("user/box"));
        assert_eq!(v2.place(&v2.trees[0], "/box", Path::new("box")), Path::new("box"));
        let v1 =
            Hierarchies::of(parse("9 1 0:2 / /sys/fs/cgroup/pids rw - cgroup c rw,pids", "1:pids:/user\n"));
        assert_eq!(v1.place(&v1.trees[0], "box", Path::new("box")), Path::new("user/box"));
        let mounts = "9 1 0:2 / /sys/fs/cgroup/pids rw - cgroup c rw,pids\n\
            10 1 0:3 / /sys/fs/cgroup/unified rw - cgroup2 c rw";
        let both = Hierarchies::of(parse(mounts, "1:pids:/user\n0::/own\n"));
        assert_eq!(both.place(&both.trees[0], "box", Path::new("box")), Path::new("user/box"));
        assert_eq!(both.place(&both.trees[1], "box", Path::new("box")), Path::new("own/box"));
    }

    #[test]
    fn a_tree_of_which_a_part_is_mounted_counts_from_there() {
        let own = |root: &str, path: &str| {
            let mounts = format!("9 1 0:3 {root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw");
            parse(&mounts, &format!("0::{path}\n"))[0].own.to_str().unwrap().to_owned()
        };
        assert_eq!(own("/", "/a/b"), "a/b");
        assert_eq!(own("/a", "/a/b"), "b");
        assert_eq!(own("/a", "/a"), "");
        assert_eq!(own(r"/a\040b", "/a b/c"), "c");
        assert_eq!(own("/a", "/ab"), "", "of another");
    }
}
