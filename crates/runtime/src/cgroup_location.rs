//! Where a container's cgroup is, or will be, in the hierarchies of the host.

use linux::cgroup::{Cgroup, Hierarchies, Rest, Scope};
use types::spec::runtime::Spec;
use types::{Result, UnlessGone};

/// The path of a container's cgroup, in each hierarchy.
pub(crate) struct CgroupLocation {
    pub(crate) path: String,
    /// Version 2, or no hierarchy.
    pub(crate) unified: Hierarchies,
    /// The hierarchies of version 1.
    pub(crate) rest: Rest,
}

impl CgroupLocation {
    /// The cgroup that the spec names, or else one named by the container's id.
    pub(crate) fn of(spec: &Spec, id: &str) -> Result<CgroupLocation> {
        let path = spec.linux.as_ref().map(|linux| linux.cgroups_path.clone());
        let path = path.filter(|path| !path.is_empty()).unwrap_or_else(|| format!("/{id}"));
        CgroupLocation::new(path)
    }

    /// The cgroup of a scope of systemd's.
    pub(crate) fn of_scope(scope: &Scope) -> Result<CgroupLocation> {
        CgroupLocation::new(scope.path())
    }

    fn new(path: String) -> Result<CgroupLocation> {
        let (unified, rest) = Hierarchies::detect_unified()?;
        Ok(CgroupLocation { path, unified, rest })
    }

    /// All hierarchies of the host.
    pub(crate) fn trees(&self) -> Result<Hierarchies> {
        Ok(self.rest.find()?.and(&self.unified))
    }

    /// Whether the cgroup exists in any hierarchy.
    pub(crate) fn is_there(&self) -> Result<bool> {
        self.trees()?.having(&self.path).map(|found| !found.is_empty())
    }

    /// What its creation is called in errors.
    pub(crate) fn what(&self) -> String {
        format!("create cgroup {}", self.path)
    }

    /// The cgroup, once it is made. None if none may be made.
    pub(crate) fn open(&self) -> Result<Option<Cgroup>> {
        self.trees()?.open(&self.path).unless_gone()
    }
}
