//! One daemon for a directory.

use std::fs::{DirBuilder, File};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use types::{Context, Error, Result};

/// Held as long as the daemon uses a directory; given up by the kernel when it dies.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Makes the directory if need be and takes it. `FailedPrecondition` if another daemon has it.
    pub(crate) fn take(dir: &Path) -> Result<Lock> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(dir)
            .context(|| format!("create {}", dir.display()))?;
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
                return Err(Error::failed_precondition(format!(
                    "{} is in use by a running daemon (pid {}); stop it or choose another directory",
                    dir.display(),
                    owner.trim()
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
    fn a_second_daemon_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b");
        let first = Lock::take(&root).unwrap();
        let error = Lock::take(&root).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        assert!(error.chain().contains(&std::process::id().to_string()), "{error:?}");
        drop(first);
        Lock::take(&root).unwrap();
    }
}
