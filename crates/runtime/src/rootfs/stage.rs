//! A stage for the trees of bind mounts that a container with its own user namespace gets.
//!
//! The kernel locks the attributes of mounts (`ro`, `nosuid`, …) only when it copies them to a mount namespace of
//! another user namespace (mount_namespaces(7)). A tree that the caller clones and hands over is not locked, so that
//! the container's root could clear `ro`. So these trees are mounted in a mount namespace between the caller's and the
//! child's, and the child clones them from its copy of that.
//!
//! ```text
//! parent: clones trees ─▶ intermediate: new mount namespace, staged as 0, 1, … ─ clone ─▶ child: clones 0, 1, …
//! ```
//!
//! The root comes from the stage too, cloned before the stage is there: a root that contains `place`, as the host's `/`
//! does, would show the trees once more, without the options that the spec gives them. Neither can a locked mount be
//! unmounted alone, nor can a locked one that is unbindable be left out of a recursive bind mount.
//!
//! A child that joins a mount namespace is born in such a copy too, and clones the trees before it goes: so they stay
//! locked. The root is the one that it finds there.
//!
//! The stage is the working directory of the intermediate process, and so of the child, which might not be allowed to
//! reach it by path.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use linux::beneath;
use linux::mount::{self, Options, Propagation};
use linux::ns::{self, NsKind};
use types::{Context, Result};

use super::is_directory;

/// The name of the root on the stage.
const ROOT: &str = "root";

pub(crate) struct MountStage {
    place: PathBuf,
    root: Option<PathBuf>,
    trees: Vec<OwnedFd>,
}

impl MountStage {
    /// Stages trees that are not mounted yet; None without trees. `place` is a directory of the host that the child
    /// does not need: in its copy the stage covers it. `root` is the directory of the container's root, unless that is in
    /// another mount namespace.
    pub(crate) fn of(place: PathBuf, root: Option<PathBuf>, trees: Vec<OwnedFd>) -> Option<MountStage> {
        (!trees.is_empty()).then_some(MountStage { place, root, trees })
    }

    /// Whether the root is there.
    pub(super) fn has_root(&self) -> bool {
        self.root.is_some()
    }

    /// Moves the calling process into a new mount namespace, and to the stage there.
    pub(crate) fn set_up(&self) -> Result<()> {
        ns::unshare(&[NsKind::Mount])?;
        // Mounts made here do not propagate to the host.
        let host = beneath::Root::open(Path::new("/"))?;
        mount::set_propagation(host.as_fd(), Propagation::Slave, true)?;
        let root = self.root.as_deref().map(|root| mount::clone_path(root, true)).transpose()?;
        let place = beneath::Root::open(&self.place)?;
        let words = Options { data: vec!["mode=755".to_owned()], ..Options::default() };
        let stage = mount::new_filesystem("tmpfs", "tmpfs", &words)?;
        mount::attach(stage.as_fd(), place.as_fd())?;
        let stage = beneath::Root::from_fd(stage, &self.place);
        if let Some(root) = root {
            mount::attach(root.as_fd(), stage.make_dirs(Path::new(ROOT), 0o755)?.as_fd())?;
        }
        for (number, tree) in self.trees.iter().enumerate() {
            let name = number.to_string();
            let target = if is_directory(tree)? {
                stage.make_dirs(Path::new(&name), 0o755)?
            } else {
                stage.make_file(Path::new(&name), 0o644)?
            };
            mount::attach(tree.as_fd(), target.as_fd())?;
        }
        rustix::process::fchdir(&stage).map_err(io::Error::from).context(|| "enter the stage")
    }
}

/// A clone of a staged tree, not mounted yet. The stage must be the working directory.
pub(super) fn take(number: usize) -> Result<OwnedFd> {
    mount::clone_path(Path::new(&number.to_string()), true)
}

/// The same of the container's root.
pub(super) fn take_root() -> Result<OwnedFd> {
    mount::clone_path(Path::new(ROOT), true)
}
