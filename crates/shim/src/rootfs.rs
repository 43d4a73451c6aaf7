//! The root file system of a bundle, from the mounts of a `Create` request.

use std::path::Path;

use api::shim::types::Mount;
use types::{Context, Result};

/// Mounts `mounts` on `bundle/rootfs`. Without mounts the root exists already.
pub(crate) fn mount(bundle: &Path, mounts: &[Mount]) -> Result<()> {
    if mounts.is_empty() {
        return Ok(());
    }
    let target = bundle.join("rootfs");
    std::fs::create_dir_all(&target).context(|| format!("make {}", target.display()))?;
    let mounts: Vec<types::Mount> = mounts
        .iter()
        .map(|mount| types::Mount {
            kind: mount.r#type.clone(),
            source: mount.source.clone(),
            target: mount.target.clone(),
            options: mount.options.clone(),
        })
        .collect();
    linux::mount::mount_all(&mounts, &target)
        .context(|| format!("mount the root file system on {}", target.display()))
}

/// Unmounts everything at `bundle/rootfs`. No error if nothing is mounted.
pub(crate) fn unmount(bundle: &Path) -> Result<()> {
    let target = bundle.join("rootfs");
    linux::mount::unmount_all(&target).context(|| format!("unmount {}", target.display()))
}
