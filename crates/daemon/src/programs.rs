//! Programs that travel inside ours and are run from disk.

use std::fs::{self, DirBuilder};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use types::{Context, Result};

/// Programs as they were embedded when this one was built. `None` was not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Programs {
    pub shim: Option<&'static [u8]>,
    pub hello: Option<&'static [u8]>,
}

/// Writes a program to `root/bin/<start of its hash>/<name>`, unless it is there.
///
/// A new version has a new hash, so a shim that runs keeps the file it was started from.
pub(crate) fn unpack(root: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let hash: String = Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let dir = root.join("bin").join(hash);
    let path = dir.join(name);
    let there = fs::metadata(&path).is_ok_and(|found| found.len() == bytes.len() as u64);
    if there {
        return Ok(path);
    }
    write(&dir, name, bytes)
}

/// Writes a program, whole or not at all: one that runs under this name goes on with what it was.
pub(crate) fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let path = dir.join(name);
    let about = || format!("write {}", path.display());
    DirBuilder::new().recursive(true).mode(0o755).create(dir).context(about)?;
    let draft = dir.join(format!(".{name}"));
    let mut options = fs::File::options();
    let mut file = options.create(true).write(true).truncate(true).mode(0o755).open(&draft).context(about)?;
    file.write_all(bytes).context(about)?;
    file.sync_all().context(about)?;
    drop(file);
    fs::rename(&draft, &path).context(about)?;
    fs::File::open(dir).and_then(|dir| dir.sync_all()).context(about)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_program_is_written_once_for_each_of_its_versions() {
        let dir = tempfile::tempdir().unwrap();
        let path = unpack(dir.path(), "tool", b"one").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o111, 0o111);
        assert_eq!(unpack(dir.path(), "tool", b"one").unwrap(), path);
        assert_ne!(unpack(dir.path(), "tool", b"two").unwrap(), path);
    }
}
