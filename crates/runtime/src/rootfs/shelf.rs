//! Where the child of a user namespace finds what its bind mounts show.
//!
//! The kernel locks what mounts have (`ro`, `nosuid`, …) when it copies them for a mount namespace of another user namespace
//! (mount_namespaces(7)), and at no other time. A tree that the caller has cloned and hands over has no locks, so that root
//! of the container could write to what is read-only on the host. So these trees are mounted in a namespace between the
//! caller's and the child's, and the child takes from its copy of that.
//!
//! ```text
//! parent: clones trees ─▶ go-between: own mount namespace, a shelf with 0, 1, … ─ clone ─▶ child: clones 0, 1, … of its copy
//! ```
//!
//! The shelf is the working directory of the go-between, and with that of the child, who might not be allowed to walk there.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use linux::beneath;
use linux::mount::{self, Options, Propagation};
use linux::ns::{self, NsKind};
use types::{Context, Result};

use super::is_directory;

pub(crate) struct Shelf {
    place: PathBuf,
    trees: Vec<OwnedFd>,
}

impl Shelf {
    /// Of trees that are mounted nowhere yet; none without trees. `place` is a directory of the host that the child does not
    /// look into: in its copy the shelf lies over it.
    pub(crate) fn of(place: PathBuf, trees: Vec<OwnedFd>) -> Option<Shelf> {
        (!trees.is_empty()).then_some(Shelf { place, trees })
    }

    /// Moves the calling process into a mount namespace of its own, and to the shelf there.
    pub(crate) fn set_up(&self) -> Result<()> {
        ns::unshare(&[NsKind::Mount])?;
        // Nothing that is mounted here is seen on the host.
        let host = beneath::Root::open(Path::new("/"))?;
        mount::set_propagation(host.as_fd(), Propagation::Slave, true)?;
        let place = beneath::Root::open(&self.place)?;
        let words = Options { data: vec!["mode=755".to_owned()], ..Options::default() };
        let shelf = mount::new_filesystem("tmpfs", "tmpfs", &words)?;
        mount::attach(shelf.as_fd(), place.as_fd())?;
        let shelf = beneath::Root::from_fd(shelf, &self.place);
        for (number, tree) in self.trees.iter().enumerate() {
            let name = number.to_string();
            let target = if is_directory(tree)? {
                shelf.make_dirs(Path::new(&name), 0o755)?
            } else {
                shelf.make_file(Path::new(&name), 0o644)?
            };
            mount::attach(tree.as_fd(), target.as_fd())?;
        }
        rustix::process::fchdir(&shelf).map_err(io::Error::from).context(|| "enter the shelf")
    }
}

/// A tree of the shelf that the calling process is at, mounted nowhere yet.
pub(super) fn take(number: usize) -> Result<OwnedFd> {
    mount::clone_path(Path::new(&number.to_string()), true)
}
