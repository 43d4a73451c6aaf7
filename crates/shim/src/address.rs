//! The shim's socket path: containerd's rule, by which the shim of a pod is found by the pod's id.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use types::{Context, Digest, Error, Result};

use crate::publisher;

/// containerd's directory of shim sockets.
pub(crate) const SOCKET_DIR: &str = "/run/containerd/s";
/// The length of `sun_path` without its final zero.
const PATH_LEN_MAX: usize = 107;

/// `socket_dir/sha256(daemon's address / namespace / group)`. A client chooses the group, which must not lead to a shim
/// of another namespace.
pub(crate) fn path(socket_dir: &Path, daemon: &str, namespace: &str, group: &str) -> Result<PathBuf> {
    if group.contains('/') || matches!(group, "." | "..") {
        return Err(Error::invalid_argument(format!(
            "{group:?} is no valid group name: it must be one path component"
        )));
    }
    let name = Path::new(daemon).join(namespace).join(group);
    let digest = Digest::of(name.as_os_str().as_encoded_bytes());
    let path = socket_dir.join(digest.hex());
    if path.as_os_str().len() > PATH_LEN_MAX {
        return Err(Error::invalid_argument(format!(
            "socket path {} is longer than {PATH_LEN_MAX} bytes; choose a shorter socket directory",
            path.display()
        )));
    }
    Ok(path)
}

/// Listens at the path, and replaces the socket of a dead shim. `None` if a live shim listens there.
///
/// Containers of one pod may be started at the same moment; the directory's lock makes sure that one of them listens.
pub(crate) fn claim(path: &Path) -> Result<Option<UnixListener>> {
    let about = || format!("listen on {}", path.display());
    let directory = path.parent().unwrap_or(Path::new("/"));
    // Not readable for others, who could hold the lock for ever.
    DirBuilder::new().recursive(true).mode(0o711).create(directory).context(about)?;
    let lock = std::fs::File::open(directory).context(about)?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(std::io::Error::from).context(about)?;
    match publisher::connect(path) {
        // A shim whose backlog is full is alive.
        Ok(_) | Err(Errno::AGAIN) => Ok(None),
        Err(Errno::CONNREFUSED | Errno::NOENT) => listen(path).map(Some),
        // The path's state is unknown; it stays.
        Err(errno) => Err(std::io::Error::from(errno)).context(about),
    }
}

fn listen(path: &Path) -> Result<UnixListener> {
    let about = || format!("listen on {}", path.display());
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context(about),
        _ => {}
    }
    let listener = UnixListener::bind(path).context(about)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).context(about)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_that_of_containerd() {
        // printf %s /run/containerd/containerd.sock/k8s.io/pod | sha256sum
        let path = path(Path::new("/s"), "/run/containerd/containerd.sock", "k8s.io", "pod").unwrap();
        assert_eq!(path, Path::new("/s").join(EXPECTED));
    }

    const EXPECTED: &str = "b9cab8e84f817f3c3bb561c7ea8dcbfba051d5d8f56ec2c3f204bc387d13f7d0";

    #[test]
    fn a_group_is_of_its_namespace() {
        for group in ["/run/hoist/hoist.sock/other/pod", "../other/pod", "..", "."] {
            let refused = path(Path::new("/s"), "/run/hoist/hoist.sock", "mine", group).unwrap_err();
            assert!(refused.message().contains(group), "{refused}");
        }
        assert!(path(Path::new("/s"), "/run/hoist/hoist.sock", "mine", "pod..a").is_ok());
    }

    #[test]
    fn of_shims_that_start_at_once_one_listens() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s/1");
        let claims: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| claim(&path).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(claims.iter().flatten().count(), 1);
        assert!(claim(&path).unwrap().is_none());
        drop(claims);
        assert!(claim(&path).unwrap().is_some(), "a socket that nobody listens on is taken over");
    }

    #[test]
    fn other_users_cannot_lock_the_socket_directory() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        claim(&directory.path().join("s/1")).unwrap();
        let mode = std::fs::metadata(directory.path().join("s")).unwrap().permissions().mode();
        assert_eq!(mode & 0o066, 0, "{mode:o}");
    }

    #[test]
    fn a_path_that_is_no_shims_socket_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("1");
        // A datagram socket refuses stream connections, and is in use.
        let _somebody = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        assert!(claim(&path).is_err());
        assert!(path.exists());
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_refused() {
        assert!(path(&PathBuf::from(format!("/{}", "x".repeat(50))), "/d", "n", "g").is_err());
    }
}
