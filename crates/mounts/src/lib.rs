//! The mount manager: activates sets of mounts ahead of their use, and unmounts them when they are not needed any more.
//!
//! ```text
//! mounts ──plan──▶ steps before (fill in, mkdir, mkfs) ──▶ mounted in a place ─┐
//!            └────▶ the rest, filled in ────────────────────────────────────────┴─▶ activation (a record)
//!
//! deactivate, or garbage collection (lease gone, container gone, …) ──▶ record removed ──▶ unmounted
//! ```
//!
//! It corresponds to containerd's mount manager. A snapshotter may return mounts of types that the kernel does not
//! know, or that need other mounts first; the client that starts a container gets mounts that any runtime can perform.
//!
//! Invariants
//! - A place has a record with its number before anything is mounted in it, so a place without a record is garbage.
//! - A complete record has all its mounts. A restart compares the records with the kernel's mount table: incomplete
//!   activations are unmounted and forgotten, as all are after a reboot.
//! - A mount in use is not unmounted, so that a second activation of a name never makes a second loop device of a file.
#![forbid(unsafe_code)]

mod fuse;
mod places;
mod plan;
mod prepare;
mod template;
mod verity;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};

use metadata::{Activation, ActiveMount, Caller, Metadata};
use stdx::{Condvar, Mutex};
use types::{Context, Error, Filters, Labels, Mount, Namespace, Result};

pub use places::Places;
use plan::{Plan, Planned, Step};
use prepare::Roots;

/// Most mounts of an activation, as in containerd.
const MOUNTS_MAX: usize = 255;

/// How a set of mounts is activated.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub labels: Labels,
    /// Whether all mounts are activated; the client then gets a bind mount of the last.
    pub is_all: bool,
    /// Types that the client handles itself: `loop`, or `format/*` for a step.
    pub allowed: Vec<String>,
    /// Whether FUSE mounts are activated here, for a client that does not call mount programs.
    pub makes_fuse: bool,
    /// Whether all mounts are read-only, and no directories or file systems are created: those missing are `NotFound`.
    pub is_read_only: bool,
}

/// The activations of this daemon. Clones share them.
#[derive(Clone)]
pub struct Mounts(Arc<Inner>);

struct Inner {
    metadata: Metadata,
    places: Places,
    roots: Roots,
    busy: Busy,
}

impl Mounts {
    /// A mount manager that creates directories and file systems for mounts only beneath `root` and in mounts of its
    /// own.
    pub fn new(metadata: Metadata, places: Places, root: &Path) -> Result<Mounts> {
        let root = root.canonicalize().context(|| format!("open {}", root.display()))?;
        let roots = Roots(vec![places.directory().to_owned(), root]);
        Ok(Mounts(Arc::new(Inner { metadata, places, roots, busy: Busy::default() })))
    }

    /// Whether some of these mounts must be activated before a client can perform the others.
    pub fn are_needed_for(mounts: &[Mount]) -> bool {
        Plan::new(mounts.to_vec(), &Options { makes_fuse: true, ..Options::default() }).is_some()
    }

    /// Compares the records of an earlier daemon with the mount table. Must be called before any other method.
    pub fn reconcile(&self) -> Result<()> {
        let Inner { metadata, places, .. } = &*self.0;
        let points: HashSet<PathBuf> =
            linux::mount::mount_points()?.into_iter().map(|mount| mount.path).collect();
        for (namespace, _) in metadata.namespaces().list()? {
            let activations = metadata.activations(&namespace);
            for (activation, is_complete) in activations.all()? {
                if !is_complete || !places::is_whole(&activation, &points)? {
                    activations.remove(&activation.name)?;
                }
            }
        }
        places.sweep(&|| self.numbers())
    }

    fn numbers(&self) -> Result<HashSet<u64>> {
        let metadata = &self.0.metadata;
        let mut numbers = HashSet::new();
        for (namespace, _) in metadata.namespaces().list()? {
            let all = metadata.activations(&namespace).all()?;
            numbers.extend(all.into_iter().map(|(activation, _)| activation.number));
        }
        Ok(numbers)
    }

    /// Activates mounts under a name. `Unimplemented` if none of them needs it, so that the client can perform them
    /// itself; `AlreadyExists` if the name is taken.
    pub fn activate(
        &self,
        caller: &Caller,
        name: &str,
        mounts: Vec<Mount>,
        options: Options,
    ) -> Result<Activation> {
        if mounts.len() > MOUNTS_MAX {
            let count = mounts.len();
            return Err(Error::invalid_argument(format!(
                "{count} mounts, at most {MOUNTS_MAX} are activated"
            )));
        }
        let plan = Plan::new(mounts, &options).ok_or_else(|| {
            Error::unimplemented(format!(
                "activate {name:?}: nothing is to be done here, mount them as they are"
            ))
        })?;
        let _alone = self.0.busy.enter(&caller.namespace, name);
        let activations = self.0.metadata.activations(caller);
        let number = activations.begin(name, options.labels.clone())?;
        let finished = self
            .carry_out(number, plan, &options)
            .and_then(|(active, system)| activations.finish(name, number, active, system));
        finished.map_err(|error| {
            // Mounts that cannot be unmounted now are garbage for the next collection. The record may be gone.
            let _ = self.0.places.take_down(number);
            let _ = activations.remove(name);
            error.context(format!("activate {name:?}"))
        })
    }

    fn carry_out(
        &self,
        number: u64,
        plan: Plan,
        options: &Options,
    ) -> Result<(Vec<ActiveMount>, Vec<Mount>)> {
        let is_read_only = options.is_read_only;
        let Plan { here, next, rest } = plan;
        let mut active = Vec::new();
        for (index, planned) in here.into_iter().enumerate() {
            let mut mount = self.prepare(planned, &active, is_read_only)?;
            if is_read_only {
                mount.options.push("ro".to_owned());
            }
            active.push(self.0.places.mount(number, index, mount).context(|| format!("mount {index}"))?);
        }
        let next = next.map(|planned| self.prepare(planned, &active, is_read_only)).transpose()?;
        let mut system: Vec<Mount> = next.into_iter().chain(rest).collect();
        if options.is_all
            && let Some(last) = active.last()
        {
            system.push(bound(last));
        }
        Ok((active, system))
    }

    fn prepare(&self, planned: Planned, before: &[ActiveMount], is_read_only: bool) -> Result<Mount> {
        let Planned { steps, mut mount } = planned;
        for step in steps {
            mount = match step {
                Step::Format => template::fill_mount(mount, before)?,
                _ if is_read_only => prepare::nothing(mount),
                Step::Mkfs => prepare::mkfs(mount, &self.0.roots)?,
                Step::Mkdir => prepare::mkdir(mount, &self.0.roots)?,
            };
        }
        Ok(mount)
    }

    /// Unmounts an activation, from its last mount to the first. `FailedPrecondition` if one is in use: if it is the
    /// last one, all mounts and the name stay.
    pub fn deactivate(&self, caller: &Caller, name: &str) -> Result<()> {
        let _alone = self.0.busy.enter(&caller.namespace, name);
        let activations = self.0.metadata.activations(caller);
        let activation = activations.get(name)?;
        let taken = self.0.places.take_down(activation.number);
        let last = activation.active.last().map(|active| Path::new(&active.point));
        if taken.is_ok() || last.is_none_or(is_gone) {
            activations.remove(name)?;
        }
        taken.context(|| format!("deactivate {name:?}"))
    }

    pub fn find(&self, caller: &Caller, name: &str) -> Result<Activation> {
        self.0.metadata.activations(caller).get(name)
    }

    pub fn list(&self, caller: &Caller, filters: &Filters) -> Result<Vec<Activation>> {
        self.0.metadata.activations(caller).list(filters)
    }

    /// Replaces all labels, or those that `paths` name.
    pub fn update(
        &self,
        caller: &Caller,
        name: &str,
        labels: &Labels,
        paths: &[String],
    ) -> Result<Activation> {
        let _alone = self.0.busy.enter(&caller.namespace, name);
        let activations = self.0.metadata.activations(caller);
        activations.get(name)?;
        activations.update(name, labels, paths)
    }
}

/// The mounts of an activation that a client has to perform: a bind mount of the last one if none is left.
pub fn left(activation: Activation) -> Vec<Mount> {
    match activation.active.last() {
        Some(last) if activation.system.is_empty() => vec![bound(last)],
        _ => activation.system,
    }
}

/// A bind mount of an active mount.
fn bound(active: &ActiveMount) -> Mount {
    Mount {
        kind: "bind".to_owned(),
        source: active.point.clone(),
        target: String::new(),
        options: vec!["rbind".to_owned()],
    }
}

/// The names that threads work on. A second thread waits.
#[derive(Default)]
struct Busy {
    names: Mutex<HashSet<(Namespace, String)>>,
    left: Condvar,
}

impl Busy {
    fn enter(&self, namespace: &Namespace, name: &str) -> Alone<'_> {
        let key = (namespace.clone(), name.to_owned());
        let mut names = self.lock();
        while !names.insert(key.clone()) {
            names = self.left.wait(names);
        }
        Alone { busy: self, key }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<(Namespace, String)>> {
        self.names.lock()
    }
}

struct Alone<'b> {
    busy: &'b Busy,
    key: (Namespace, String),
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.busy.lock().remove(&self.key);
        self.busy.left.notify_all();
    }
}

/// Whether a path does not exist. readlink(2) does not ask the mounted file system, whose FUSE program may hang.
fn is_gone(point: &Path) -> bool {
    std::fs::read_link(point).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}
