//! Mounts that stay: sets of mounts that are made ahead for whoever uses them, and taken down when nobody does.
//!
//! ```text
//! mounts ──plan──▶ steps before (fill in, mkdir, mkfs) ──▶ mounted in a place ─┐
//!            └────▶ the rest, filled in ────────────────────────────────────────┴─▶ activation (a record)
//!
//! deactivate, or collection (lease gone, container gone, …) ──▶ record removed ──▶ taken down
//! ```
//!
//! This is containerd's mount manager: snapshotters may answer mounts that the kernel does not know, or that need
//! mounts before them, and who starts a container gets mounts that any runtime carries out.
//!
//! Invariants
//! - A place has a record with its number before anything is mounted there, so what no record has is nobody's.
//! - A record that is complete has all its mounts. A restart compares both with the kernel's table: what is not
//!   whole is taken down and forgotten, as after a reboot all is.
//! - Nothing is unmounted while somebody uses it, so a file that is shown as a device is never shown a second time
//!   by a second activation of its name.
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

/// Mounts in one activation, as many as containerd records.
const MOUNTS_MAX: usize = 255;

/// How a set of mounts is activated.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub labels: Labels,
    /// All mounts are made here, and what is left to do is a bind mount of the last.
    pub is_all: bool,
    /// Kinds that whoever uses the mounts takes care of: `loop`, or `format/*` for a step.
    pub allowed: Vec<String>,
    /// Kinds of FUSE are made here: whoever uses the mounts calls no programs.
    pub makes_fuse: bool,
    /// Nothing is made or written: what is not there is not found, and what is mounted is read-only.
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
    /// `root` is the directory beneath which mounts may have directories and file systems made, besides the
    /// mounts themselves.
    pub fn new(metadata: Metadata, places: Places, root: &Path) -> Result<Mounts> {
        let root = root.canonicalize().context(|| format!("open {}", root.display()))?;
        let roots = Roots(vec![places.directory().to_owned(), root]);
        Ok(Mounts(Arc::new(Inner { metadata, places, roots, busy: Busy::default() })))
    }

    /// Whether mounts are such that some may have to be activated before the others can be made.
    pub fn are_needed_for(mounts: &[Mount]) -> bool {
        Plan::new(mounts.to_vec(), &Options { makes_fuse: true, ..Options::default() }).is_some()
    }

    /// Compares what an earlier daemon recorded with what is mounted. Before anything else is called.
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

    /// Makes mounts and gives them a name. `Unimplemented` if there is nothing to do here, so that the caller may
    /// mount them as they are; `AlreadyExists` if the name is taken.
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
            // What cannot be taken down now is nobody's, and is by the next collection. The record may be gone.
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

    /// Takes mounts down. `FailedPrecondition` while somebody uses them: if that is the last one, all stay and so
    /// does the name.
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

    /// Replaces labels, those that `paths` name or all.
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

/// What is left to mount of an activation; its last mount, if nothing is.
pub fn left(activation: Activation) -> Vec<Mount> {
    match activation.active.last() {
        Some(last) if activation.system.is_empty() => vec![bound(last)],
        _ => activation.system,
    }
}

/// A mount of ours, as a mount that shows it.
fn bound(active: &ActiveMount) -> Mount {
    Mount {
        kind: "bind".to_owned(),
        source: active.point.clone(),
        target: String::new(),
        options: vec!["rbind".to_owned()],
    }
}

/// Names that somebody works on. Others wait for them.
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
/// Whether nothing is there, said without asking what is mounted there, which may never answer.
fn is_gone(point: &Path) -> bool {
    std::fs::read_link(point).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}
