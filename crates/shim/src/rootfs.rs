//! The root file system of a bundle: mounted from the recipe that came with `Create`.

use std::path::Path;

use api::shim::types::Mount;
use types::{Context, Result};

/// Mounts `recipe` on `bundle/rootfs`. An empty recipe means that the root is there already.
pub(crate) fn mount(bundle: &Path, recipe: &[Mount]) -> Result<()> {
    if recipe.is_empty() {
        return Ok(());
    }
    let target = bundle.join("rootfs");
    std::fs::create_dir_all(&target).context(|| format!("make {}", target.display()))?;
    let recipe: Vec<types::Mount> = recipe
        .iter()
        .map(|mount| types::Mount {
            kind: mount.r#type.clone(),
            source: mount.source.clone(),
            target: mount.target.clone(),
            options: mount.options.clone(),
        })
        .collect();
    linux::mount::mount_all(&recipe, &target)
        .context(|| format!("mount the root file system on {}", target.display()))
}

/// Unmounts whatever is on `bundle/rootfs`. No error if nothing is.
pub(crate) fn unmount(bundle: &Path) -> Result<()> {
    let target = bundle.join("rootfs");
    linux::mount::unmount_all(&target).context(|| format!("unmount {}", target.display()))
}
