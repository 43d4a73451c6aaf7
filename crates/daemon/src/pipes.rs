//! Removes the pipes that killed clients left beside our socket.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use api::engine::PIPES_PREFIX;
use rustix::fs::{FlockOperation, OFlags, flock};
use types::{Context, Result};

/// Removes the directories whose client is dead. A failure is only logged.
pub(crate) fn sweep(folder: &Path) {
    if let Err(error) = remove_dead(folder) {
        tracing::warn!("remove what clients left in {}: {}", folder.display(), error.chain());
    }
}

fn remove_dead(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).context(|| "read it")? {
        let entry = entry.context(|| "read it")?;
        let name = entry.file_name().into_string().unwrap_or_default();
        let number = name.strip_prefix(PIPES_PREFIX).unwrap_or_default();
        if number.len() != 16 || !number.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            continue;
        }
        let path = entry.path();
        let mut options = File::options();
        // Skips symlinks and files: they are not clients' directories.
        let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits();
        let Ok(lock) = options.read(true).custom_flags(flags.cast_signed()).open(&path) else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            // Its client lives.
            continue;
        }
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).context(|| format!("remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipe_directories_of_dead_clients_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("stdout"), "").unwrap();
            File::open(dir.path().join(name)).unwrap()
        };
        let living = make("hoist-0000000000000001");
        flock(&living, FlockOperation::LockExclusive).unwrap();
        drop((make("hoist-0000000000000002"), make("hoist-tasks")));
        fs::write(dir.path().join("hoist-0000000000000003"), "no folder").unwrap();
        std::os::unix::fs::symlink("hoist-tasks", dir.path().join("hoist-0000000000000004")).unwrap();
        remove_dead(dir.path()).unwrap();
        let left = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut left: Vec<_> = left.map(|name| name.into_string().unwrap()).collect();
        left.sort();
        assert_eq!(
            left,
            ["hoist-0000000000000001", "hoist-0000000000000003", "hoist-0000000000000004", "hoist-tasks"]
        );
        assert!(dir.path().join("hoist-tasks/stdout").exists());
        drop(living);
        remove_dead(dir.path()).unwrap();
        assert!(!dir.path().join("hoist-0000000000000001").exists());
    }
}
