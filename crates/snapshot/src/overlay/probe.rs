//! Probes whether overlayfs works here: some kernels lack it, and some file systems cannot hold its upper directory
//! (another overlay, NFS).

use std::fs;
use std::io;
use std::path::Path;

use linux::mount::{Options, new_filesystem};
use rustix::fs::{AtFlags, unlinkat};
use rustix::io::Errno;
use types::{Context, Error, Result};

/// Checks that this kernel mounts overlays of directories below `root`. `Unimplemented` if not, with the kernel's
/// reason.
pub fn probe(root: &Path) -> Result<()> {
    let dir = root.join("probe.overlay");
    // Removes the leftovers of an interrupted probe.
    let cleared = clear(&dir);
    let probed = cleared.and_then(|()| write_probe(&dir)).and_then(|()| mount_probe(&dir));
    // Also after a failure: without overlayfs, nothing else would clear this directory.
    let left = clear(&dir);
    probed.and(left).map_err(|error| error.context(format!("probe in {}", root.display())))
}

fn clear(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Writes the directories to mount. Failing to do so says nothing about overlayfs.
fn write_probe(dir: &Path) -> Result<()> {
    for name in ["lower", "upper", "work"] {
        let path = dir.join(name);
        fs::create_dir_all(&path).context(|| format!("create {}", path.display()))?;
    }
    fs::write(dir.join("lower/file"), "").context(|| "write a file")
}

fn mount_probe(dir: &Path) -> Result<()> {
    let layer = |option: &str, name: &str| format!("{option}={}", dir.join(name).display());
    let layers = vec![layer("lowerdir", "lower"), layer("upperdir", "upper"), layer("workdir", "work")];
    let mounted = new_filesystem("overlay", "overlay", &Options::parse(&layers));
    // Deleting a file of a lower layer creates a device node in the upper one, for which a process may lack the rights.
    let deleted = mounted.and_then(|mount| {
        unlinkat(&mount, "file", AtFlags::empty())
            .map_err(io::Error::from)
            .context(|| "delete a file of a lower layer")
    });
    deleted.map_err(|error| match errno_of(&error) {
        Some(Errno::NODEV | Errno::INVAL | Errno::PERM | Errno::OPNOTSUPP) => {
            Error::unimplemented("the kernel makes no overlays here").with_source(error)
        }
        // Other errors may be temporary.
        _ => error,
    })
}

fn errno_of(error: &Error) -> Option<Errno> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Errno::from_io_error(error);
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn leftovers_of_an_interrupted_probe_do_not_change_its_result() {
        let dir = tempfile::TempDir::new().unwrap();
        let before = probe(dir.path()).map_err(|error| error.kind());
        fs::create_dir_all(dir.path().join("probe.overlay/upper")).unwrap();
        let whiteout = dir.path().join("probe.overlay/upper/file");
        let made = std::process::Command::new("mknod").arg(whiteout).args(["c", "0", "0"]).status();
        assert!(made.is_ok_and(|status| status.success()), "run the tests as root");
        assert_eq!(probe(dir.path()).map_err(|error| error.kind()), before);
        assert!(!dir.path().join("probe.overlay").exists());
    }

    /// An overlay cannot hold the upper directory of another.
    #[test]
    fn a_probe_without_overlayfs_leaves_nothing() {
        let dir = tempfile::TempDir::new().unwrap();
        write_probe(dir.path()).unwrap();
        let layer = |option: &str, name: &str| format!("{option}={}", dir.path().join(name).display());
        let layers = [layer("lowerdir", "lower"), layer("upperdir", "upper"), layer("workdir", "work")];
        let overlay =
            new_filesystem("overlay", "overlay", &Options::parse(&layers)).expect("run the tests as root");
        let root = PathBuf::from(format!("/proc/self/fd/{}", overlay.as_raw_fd()));
        assert_eq!(probe(&root).unwrap_err().kind(), types::ErrorKind::Unimplemented);
        assert!(!root.join("probe.overlay").exists());
    }
}
