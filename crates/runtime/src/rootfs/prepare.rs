//! The parent's part of the container's mounts: it parses their options and opens their sources.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use linux::beneath;
use linux::idmap::Owners;
use linux::mount::{self, Bind, Options, Propagation};
use linux::ns::NsKind;
use rustix::fs::OFlags;
use types::spec::runtime::{IdMapping, Linux, Mount, Spec};
use types::{Context, Error, ErrorKind, Result};

use super::{Root, host_propagation, stage};
use crate::plan::Namespaces;

/// A mount of the spec, with its source opened by the parent.
pub(crate) struct PreparedMount {
    pub(crate) spec: Mount,
    pub(super) options: Options,
    pub(super) source: Option<Source>,
}

/// The source of a bind mount.
pub(super) enum Source {
    /// Cloned before any namespace is left.
    Tree(OwnedFd),
    /// The same, mounted in the [`MountStage`](super::MountStage) under this number.
    Staged(usize),
    /// For a caller that may not mount: cloned by the child, which may, in its copy of the caller's tree.
    Path { path: PathBuf, recursive: bool },
    /// In the root: cloned by the child in the order of the mounts, as earlier mounts of the container may lie there.
    Inside(Inside),
}

/// A source in the container's root.
pub(super) struct Inside {
    /// Relative to the root.
    path: PathBuf,
    recursive: bool,
    /// The user namespace that maps its owners, and whether the map applies to submounts too.
    owners: Option<(OwnedFd, bool)>,
    /// The caller's clone, for a child in a user namespace that may not look there itself.
    seen_before: Option<OwnedFd>,
}

impl Inside {
    /// Clones the source beneath the root: a link leads to a path in it, or nowhere.
    fn open(&self, root: &Root) -> Result<OwnedFd> {
        let found = match (root.inside.open_at(&self.path, OFlags::PATH), &self.seen_before) {
            (Err(error), Some(seen)) if error.is(ErrorKind::PermissionDenied) => {
                return seen.try_clone().context(|| "keep the source");
            }
            (found, _) => found?,
        };
        let tree = mount::clone_tree(found.as_fd(), Path::new(""), self.recursive)?;
        if let Some((owners, recursive)) = &self.owners {
            mount::set_idmap(tree.as_fd(), owners.as_fd(), *recursive)?;
        }
        Ok(tree)
    }
}

impl PreparedMount {
    /// Whether making it takes memory or a device, which must count against the container's limits.
    pub(super) fn uses_limited_resources(&self) -> bool {
        let is_kernels = ["proc", "sysfs", "tmpfs", "mqueue", "devpts"].contains(&self.spec.kind.as_str());
        self.options.copy_up || self.source.is_none() && !is_kernels
    }

    /// The source of a bind mount, not mounted yet; None for other mounts. `root` is the container's, as far as it is
    /// built.
    pub(super) fn open_source(&self, root: &Root) -> Result<Option<OwnedFd>> {
        match &self.source {
            None => Ok(None),
            Some(Source::Tree(tree)) => tree.try_clone().context(|| "keep the source").map(Some),
            Some(Source::Path { path, recursive }) => mount::clone_path(path, *recursive).map(Some),
            Some(Source::Staged(number)) => stage::take(*number).map(Some),
            Some(Source::Inside(inside)) => inside.open(root).map(Some),
        }
    }
}

/// Parses all options, and opens the sources of bind mounts in the parent, except those in the root.
pub(crate) fn prepare(
    spec: &Spec,
    bundle: &Path,
    rootfs: &Path,
    namespaces: &Namespaces,
) -> Result<Vec<PreparedMount>> {
    let host_propagation = host_propagation(spec)?;
    let roots = root_paths(spec, bundle, rootfs);
    let prepare = Prepare { bundle, roots, namespaces, linux: spec.linux.as_ref(), host_propagation };
    spec.mounts.iter().map(|mount| prepare.one(mount)).collect()
}

/// Moves the trees that the caller cloned out of the mounts, to be staged.
pub(crate) fn stage_mounts(mounts: &mut [PreparedMount]) -> Vec<OwnedFd> {
    let mut trees = Vec::new();
    for mount in mounts {
        mount.source = match mount.source.take() {
            Some(Source::Tree(tree)) => {
                trees.push(tree);
                Some(Source::Staged(trees.len() - 1))
            }
            other => other,
        };
    }
    trees
}

/// Takes the trees from the stage, before the calling process leaves the mount namespace that has it.
pub(crate) fn take_staged(mounts: &mut [PreparedMount]) -> Result<()> {
    for mount in mounts {
        if let Some(Source::Staged(number)) = mount.source {
            mount.source = Some(Source::Tree(stage::take(number)?));
        }
    }
    Ok(())
}

/// Makes destinations relative to the root that begin with the root's path on the host, as runc does: some callers
/// write them so. Others stay as they are.
pub(crate) fn strip_root(spec: &mut Spec, bundle: &Path, rootfs: &Path) {
    let roots = root_paths(spec, bundle, rootfs);
    for mount in &mut spec.mounts {
        if let Some(inside) = inside_root(&roots, Path::new(&mount.destination)) {
            mount.destination = inside.display().to_string();
        }
    }
}

/// The paths of the root on the host: resolved, and as the bundle names it.
fn root_paths(spec: &Spec, bundle: &Path, rootfs: &Path) -> [PathBuf; 2] {
    let named = spec.root.as_ref().map(|root| bundle.join(&root.path));
    [clean(rootfs), clean(named.as_deref().unwrap_or(rootfs))]
}

/// The path seen from the root of an absolute host path, compared by names only. None if the root is `/`, where the two
/// cannot be told apart.
fn inside_root(roots: &[PathBuf], path: &Path) -> Option<PathBuf> {
    if !path.is_absolute() {
        return None;
    }
    let path = clean(path);
    let roots = roots.iter().filter(|root| root.parent().is_some());
    let rest = roots.filter_map(|root| path.strip_prefix(root).ok()).next()?;
    Some(Path::new("/").join(rest))
}

/// An absolute path without `.` and `..`, by names only.
fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => drop(cleaned.pop()),
            _ => {}
        }
    }
    cleaned
}

struct Prepare<'a> {
    bundle: &'a Path,
    roots: [PathBuf; 2],
    namespaces: &'a Namespaces,
    linux: Option<&'a Linux>,
    host_propagation: Propagation,
}

impl Prepare<'_> {
    fn one(&self, spec: &Mount) -> Result<PreparedMount> {
        let what = || format!("mount {:?} to {:?}", spec.source, spec.destination);
        let mut options = Options::parse(&spec.options);
        let is_bind = spec.kind == "bind" || options.bind != Bind::No;
        let is_mapped =
            options.idmap.is_some() || !spec.uid_mappings.is_empty() || !spec.gid_mappings.is_empty();
        if !is_bind {
            if is_mapped {
                return Err(Error::invalid_argument(format!("{}: only bind mounts can map owners", what())));
            }
            return Ok(PreparedMount { spec: spec.clone(), options, source: None });
        }
        if options.bind == Bind::No {
            options.bind = Bind::Single;
        }
        if let Some(first) = options.foreign_to_bind() {
            return Err(Error::invalid_argument(format!(
                "{}: {first:?} is no option of a bind mount",
                what()
            )));
        }
        if options.remount {
            return Ok(PreparedMount { spec: spec.clone(), options, source: None });
        }
        let path = self.bundle.join(&spec.source);
        let recursive = options.bind == Bind::Recursive;
        let in_user_namespace = self.namespaces.has(NsKind::User);
        let inside = inside_root(&self.roots, &path);
        // Mapping owners for a child in a user namespace needs the caller.
        if let Some(inside) = &inside
            && !(is_mapped && in_user_namespace)
        {
            let owners = is_mapped.then(|| self.owner_maps(spec)).transpose().context(what)?;
            let owners = owners.map(|owners| (owners, options.idmap == Some(true)));
            // If the child needs what the caller could not open, the child reports why.
            let seen = if in_user_namespace { self.clone_inside(inside, recursive).ok() } else { None };
            let inside = Inside { path: inside.clone(), recursive, owners, seen_before: seen };
            return Ok(PreparedMount { spec: spec.clone(), options, source: Some(Source::Inside(inside)) });
        }
        let cloned = match &inside {
            Some(inside) => self.clone_inside(inside, recursive),
            None => mount::clone_path(&path, recursive),
        };
        let source = match cloned {
            Err(error) if error.is(ErrorKind::PermissionDenied) && in_user_namespace => {
                Source::Path { path, recursive }
            }
            other => Source::Tree(other.context(what)?),
        };
        if let Source::Tree(tree) = &source {
            // As if it came from the container's copy of the host's tree. Otherwise mounts inside of it would propagate
            // to the host.
            mount::set_propagation(tree.as_fd(), self.host_propagation, true).context(what)?;
        }
        match &source {
            Source::Tree(tree) if is_mapped => {
                let maps = self.owner_maps(spec).context(what)?;
                mount::set_idmap(tree.as_fd(), maps.as_fd(), options.idmap == Some(true)).context(what)?;
            }
            Source::Path { .. } if is_mapped => {
                return Err(Error::permission_denied(format!("{}: only root can map owners", what())));
            }
            _ => {}
        }
        Ok(PreparedMount { spec: spec.clone(), options, source: Some(source) })
    }

    /// The caller's view of the path, without the container's mounts. Links of the image do not lead out of the root.
    fn clone_inside(&self, inside: &Path, recursive: bool) -> Result<OwnedFd> {
        let found = beneath::Root::open(&self.roots[0])?.open_at(inside, OFlags::PATH)?;
        let tree = mount::clone_tree(found.as_fd(), Path::new(""), recursive)?;
        mount::set_propagation(tree.as_fd(), self.host_propagation, true)?;
        Ok(tree)
    }

    /// A user namespace with the id maps of a mount: its own, or else the container's.
    fn owner_maps(&self, spec: &Mount) -> Result<OwnedFd> {
        if !spec.uid_mappings.is_empty() || !spec.gid_mappings.is_empty() {
            return user_namespace(&spec.uid_mappings, &spec.gid_mappings);
        }
        match (self.namespaces.joined(NsKind::User), self.linux) {
            (Some(joined), _) => joined.try_clone_to_owned().context(|| "keep the user namespace"),
            (None, Some(linux)) if self.namespaces.is_new(NsKind::User) => {
                user_namespace(&linux.uid_mappings, &linux.gid_mappings)
            }
            _ => Err(Error::invalid_argument(
                "owners can be mapped by uidMappings of the mount, or by the container's user namespace",
            )),
        }
    }
}

fn user_namespace(uids: &[IdMapping], gids: &[IdMapping]) -> Result<OwnedFd> {
    linux::idmap::namespace(&Owners { uids: uids.to_vec(), gids: gids.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_host_are_taken_from_the_root() {
        let roots = [PathBuf::from("/b/rootfs"), PathBuf::from("/link/rootfs")];
        let inside = |path: &str| inside_root(&roots, Path::new(path)).map(|path| path.display().to_string());
        for (path, expected) in [
            ("/b/rootfs", Some("/")),
            ("/b//rootfs/./mnt/", Some("/mnt")),
            ("/b/rootfs/a/../c", Some("/c")),
            ("/x/../../b/rootfs/c", Some("/c")),
            ("/link/rootfs/c/d", Some("/c/d")),
            ("/b/rootfs/../c", None),
            ("/b/rootfs2/c", None),
            ("/b", None),
            ("b/rootfs/c", None),
        ] {
            assert_eq!(inside(path).as_deref(), expected, "{path}");
        }
        assert_eq!(inside_root(&["/".into(), "/".into()], Path::new("/c")), None);
    }

    #[test]
    fn destinations_outside_of_the_root_stay_as_they_are() {
        let mount = |destination: &str| Mount { destination: destination.into(), ..Mount::default() };
        let mut spec = Spec {
            mounts: ["/b/rootfs/mnt", "/b/rootfs", "/b/rootfs/..", "mnt//x", "/b/../mnt"].map(mount).to_vec(),
            ..Spec::default()
        };
        strip_root(&mut spec, Path::new("/b"), Path::new("/b/rootfs"));
        let said: Vec<&str> = spec.mounts.iter().map(|mount| mount.destination.as_str()).collect();
        assert_eq!(said, ["/mnt", "/", "/b/rootfs/..", "mnt//x", "/b/../mnt"]);
    }
}
