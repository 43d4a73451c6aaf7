//! A private folder: for the pipes to a container, for archives on their way, and for files that only the daemon or an
//! editor is to read.
//!
//! It lies beside the daemon's socket, if we may create it there: this path means the same to us and to the daemon, even
//! if the daemon's service has a private `/tmp`.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use api::engine::PIPES_PREFIX;
use rustix::fs::{CWD, FileType, FlockOperation, Mode, flock, mknodat};
use types::{Context, Result};

/// A folder with mode 0700, deleted with its content when dropped.
pub(crate) struct PrivateFolder {
    path: PathBuf,
    /// A lock on the folder: the daemon deletes folders that no process has locked, as their client was killed.
    _lock: File,
}

impl PrivateFolder {
    /// Creates the folder beside the daemon's socket, or if that is not permitted, in the temporary directory.
    pub(crate) fn create(socket: &Path) -> Result<PrivateFolder> {
        let beside = socket.parent().and_then(|folder| std::path::absolute(folder).ok());
        match beside.map(|folder| PrivateFolder::create_in(&folder)) {
            Some(Ok(made)) => Ok(made),
            _ => PrivateFolder::create_in(&std::env::temp_dir()),
        }
    }

    pub(crate) fn create_in(place: &Path) -> Result<PrivateFolder> {
        let path = place.join(format!("{PIPES_PREFIX}{}", linux::random::hex(8)?));
        let about = || format!("create {}", path.display());
        DirBuilder::new().mode(0o700).create(&path).context(about)?;
        let lock = File::open(&path).context(about)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from).context(about)?;
        Ok(PrivateFolder { path, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Creates a named pipe in the folder.
    pub(crate) fn pipe(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .map_err(io::Error::from)
            .context(|| format!("make a pipe at {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        // What cannot be deleted is left to the daemon, or to the system's cleanup of temporary files.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_private_folder_lies_beside_the_socket_and_goes_with_its_content() {
        let state = tempfile::tempdir().unwrap();
        let folder = PrivateFolder::create(&state.path().join("hoist.sock")).unwrap();
        let path = folder.path().to_owned();
        assert_eq!(path.parent(), Some(state.path()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700);
        let other = File::open(&path).unwrap();
        assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_err(), "its client lives");
        folder.pipe("stdin").unwrap();
        fs::write(path.join("blob"), "text").unwrap();
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn a_private_folder_lies_elsewhere_if_the_socket_has_no_directory() {
        let state = tempfile::tempdir().unwrap();
        let folder = PrivateFolder::create(&state.path().join("none/hoist.sock")).unwrap();
        assert_eq!(folder.path().parent(), Some(&*std::env::temp_dir()));
    }
}
