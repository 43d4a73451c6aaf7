//! What a daemon has mounted, taken down once it has ended: so that its root directory can be deleted, or the disk that
//! this is on be taken away.
//!
//! ```text
//! the daemon ends ──▶ may anybody use a layer? ──no──▶ taken down
//!                              │yes
//!                              ▼
//!                        left for the next daemon, or for `hoist system unmount`
//! ```
//!
//! Layers lie mounted below the root directory, and what clients had activated below that of the state. Loop devices and
//! tables of the device mapper go with what is mounted from them. The next daemon mounts what it needs.
//!
//! A client that was told what to mount, and has not yet done it, would find empty directories. So a daemon that ends
//! leaves everything where it is while there is a snapshot that has mounts, or an activation, whosever it is.

use std::collections::HashSet;
use std::path::Path;

use linux::mount::{self, MountPoint};
use metadata::Metadata;
use mounts::Places;
use types::{Context, Error, Filters, Result};

use crate::config::Config;

/// Takes down all of it at the end of a daemon, unless somebody may use it. That it cannot be done is no failure of the
/// daemon's end.
pub(crate) fn unless_used(config: &Config, metadata: &Metadata) {
    let unmounted = match user(metadata) {
        Ok(Some(user)) => return tracing::info!("layers stay mounted for {user}"),
        Ok(None) => unmount(config),
        Err(error) => Err(error),
    };
    match unmounted {
        Ok(0) => {}
        Ok(count) => tracing::info!(count, "unmounted layers that nobody uses"),
        Err(error) => tracing::info!("layers stay mounted: {}", error.chain()),
    }
}

/// What may be mounted, or is to be.
fn user(metadata: &Metadata) -> Result<Option<String>> {
    let with_mounts = Filters::parse(&["kind!=committed"])?;
    for (namespace, _) in metadata.namespaces().list()? {
        if let Some((activation, _)) = metadata.activations(&namespace).all()?.first() {
            return Ok(Some(format!("the activation {} of namespace {namespace}", activation.name)));
        }
        for snapshotter in metadata.snapshotters() {
            let snapshots = metadata.snapshots(&namespace, snapshotter)?;
            if snapshots.is_elsewhere() {
                continue;
            }
            if let Some(snapshot) = snapshots.list(&with_mounts)?.first() {
                return Ok(Some(format!("the snapshot {} of namespace {namespace}", snapshot.key)));
            }
        }
    }
    Ok(None)
}

/// Takes down all of it, and says how many mounts that were. `FailedPrecondition` names what uses it: a container that
/// runs, or an image that is mounted elsewhere. No daemon may have the directories.
pub(crate) fn unmount(config: &Config) -> Result<usize> {
    let shims = task::shims_of(&config.address, &config.state.join("s"))?;
    if let Some(shim) = shims.first() {
        return Err(Error::failed_precondition(format!(
            "{shim}, has a container; start the daemon and stop it, as by: hoist stop {}",
            shim.id()
        )));
    }
    let canonical = |path: &Path| path.canonicalize().context(|| format!("open {}", path.display()));
    let (root, state) = (canonical(&config.root)?, canonical(&config.state)?);
    let (trees, activations, tasks) = (root.join("snapshots"), state.join("mounts"), state.join("tasks"));
    let is_ours = |point: &MountPoint| point.path.starts_with(&trees) || point.path.starts_with(&tasks);
    let points = mount::mount_points()?;
    let shown: HashSet<&str> =
        points.iter().filter(|point| is_ours(point)).map(|point| &*point.source).collect();
    // Where the trees are within the file system that holds them: a bind mount names that place.
    let holder = mount::mount_point_of(&trees)?;
    let inside = holder.and_then(|holder| {
        let below = trees.strip_prefix(&holder.path).ok()?;
        Some((holder.source, holder.root.join(below)))
    });
    let uses_ours = |point: &MountPoint| match point.kind.as_str() {
        "overlay" => point.superblock_options.contains(&*trees.to_string_lossy()),
        "erofs" => shown.contains(&*point.source),
        _ => inside
            .as_ref()
            .is_some_and(|(source, path)| point.source == *source && point.root.starts_with(path)),
    };
    let is_elsewhere = |point: &&MountPoint| !is_ours(point) && !point.path.starts_with(&activations);
    if let Some(point) = points.iter().filter(is_elsewhere).find(|point| uses_ours(point)) {
        return Err(Error::failed_precondition(format!(
            "files of {} are mounted on {}; unmount that first",
            root.display(),
            point.path.display()
        )));
    }
    let mut count = points.iter().filter(|point| point.path.starts_with(&activations)).count();
    // Activated mounts first: they are made of mounted layers.
    Places::open(&activations)?.sweep(&|| Ok(HashSet::new()))?;
    for point in points.iter().rev().filter(|point| is_ours(point)) {
        count += usize::from(mount::unmount_one(&point.path)?);
    }
    Ok(count)
}
