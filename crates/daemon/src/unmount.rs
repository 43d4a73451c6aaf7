//! Unmounts what the daemon has mounted after it has ended, so that its root directory can be deleted or its disk
//! removed.
//!
//! ```text
//! the daemon ends ──▶ might a client use a layer? ──no──▶ unmount
//!                              │yes
//!                              ▼
//!                        left for the next daemon, or for `hoist system unmount`
//! ```
//!
//! Layers are mounted below the root directory, and activated mounts below the state directory. Loop devices and
//! device-mapper tables are removed with the mounts that use them. The next daemon mounts again what it needs.
//!
//! A client that has received mounts but has not made them yet would find empty directories. Therefore nothing is
//! unmounted while there is an uncommitted snapshot or an activation, of any client.

use std::collections::HashSet;
use std::path::Path;

use linux::mount::{self, MountPoint};
use metadata::Metadata;
use mounts::Places;
use types::{Context, Error, Filters, Result};

use crate::config::Config;

/// Unmounts everything at the end of a daemon, unless a client might use it. Errors are only logged.
pub(crate) fn unless_used(config: &Config, metadata: &Metadata) {
    let unmounted = match user(metadata) {
        Ok(Some(user)) => return tracing::info!("layers stay mounted for {user}"),
        Ok(None) => unmount(config),
        Err(error) => Err(error),
    };
    match unmounted {
        Ok(0) => {}
        Ok(count) => tracing::info!(count, "unmounted unused layers"),
        Err(error) => tracing::info!("layers stay mounted: {}", error.chain()),
    }
}

/// A snapshot or activation whose mounts a client might use.
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

/// Unmounts everything and returns the number of mounts. `FailedPrecondition` names what uses them: a running
/// container, or a mounted image. The caller must hold the daemon's locks.
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
    // The directory of layers relative to the root of its file system: bind mounts are listed with that path.
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
    // Activated mounts first, because they are made of mounted layers.
    Places::open(&activations)?.sweep(&|| Ok(HashSet::new()))?;
    for point in points.iter().rev().filter(|point| is_ours(point)) {
        count += usize::from(mount::unmount_one(&point.path)?);
    }
    Ok(count)
}
