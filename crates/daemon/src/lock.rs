//! A lock that keeps a second daemon from using the same directory.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use types::{Context, Error, Result};

/// Held while the daemon uses a directory; the kernel releases it when the daemon dies.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Creates the directory with this mode, if needed, and locks it. `FailedPrecondition` if another daemon has the
    /// lock.
    pub(crate) fn take(dir: &Path, mode: u32) -> Result<Lock> {
        let about = || format!("create {}", dir.display());
        DirBuilder::new().recursive(true).mode(mode).create(dir).context(about)?;
        // An existing directory may have a more permissive mode.
        let now = fs::metadata(dir).context(about)?.permissions().mode();
        if now & 0o777 & !mode != 0 {
            fs::set_permissions(dir, Permissions::from_mode(now & mode)).context(about)?;
        }
        let path = dir.join("daemon.lock");
        let about = || format!("open {}", path.display());
        let mut options = File::options();
        let mut file = options
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .context(about)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut owner = String::new();
                file.read_to_string(&mut owner).context(about)?;
                let (dir, owner) = (dir.display(), owner.trim());
                return Err(Error::failed_precondition(format!(
                    "{dir} is in use by a running daemon (pid {owner}); stop it by systemctl stop hoist, or by kill {owner} if \
                     it is no service (containers go on), or choose another directory"
                )));
            }
            Err(error) => {
                return Err(std::io::Error::from(error)).context(|| format!("lock {}", path.display()));
            }
        }
        file.set_len(0).context(about)?;
        writeln!(file, "{}", std::process::id()).context(about)?;
        Ok(Lock { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::ErrorKind;

    #[test]
    fn a_directory_that_was_open_to_others_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |dir: &Path| fs::metadata(dir).unwrap().permissions().mode() & 0o777;
        for (before, asked, after) in [(0o755, 0o700, 0o700), (0o755, 0o711, 0o711), (0o700, 0o711, 0o700)] {
            fs::set_permissions(dir.path(), Permissions::from_mode(before)).unwrap();
            Lock::take(dir.path(), asked).unwrap();
            assert_eq!(mode(dir.path()), after, "{before:o} {asked:o}");
        }
    }

    #[test]
    fn a_second_daemon_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b");
        let first = Lock::take(&root, 0o700).unwrap();
        let error = Lock::take(&root, 0o700).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        let way_out = format!("kill {} if it is no service (containers go on)", std::process::id());
        assert!(error.chain().contains(&way_out), "{error:?}");
        drop(first);
        Lock::take(&root, 0o700).unwrap();
    }
}
