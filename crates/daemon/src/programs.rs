//! Programs embedded in ours, which are executed from disk.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use stdx::{Durable, replace};
use types::{Context, Result};

/// The programs embedded at build time. `None` was not embedded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Programs {
    pub shim: Option<Embedded>,
    pub hello: Option<Embedded>,
}

/// An embedded program.
#[derive(Clone, Copy, Debug)]
pub struct Embedded {
    pub bytes: &'static [u8],
    /// Part of its hash, computed at build time, so that the daemon need not read the bytes at each start.
    pub version: &'static str,
}

/// Writes a program to `root/bin/<version>/<name>`, unless it exists.
///
/// Each version is a file of its own, so that a running shim keeps the one it was started from.
pub(crate) fn unpack(root: &Path, name: &str, program: Embedded) -> Result<PathBuf> {
    let dir = root.join("bin").join(program.version);
    let path = dir.join(name);
    let there = fs::metadata(&path).is_ok_and(|found| found.len() == program.bytes.len() as u64);
    if there {
        return Ok(path);
    }
    write(&dir, name, program.bytes)
}

/// Writes a program atomically: a running one of this name keeps its old file.
pub(crate) fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let path = dir.join(name);
    let about = || format!("write {}", path.display());
    DirBuilder::new().recursive(true).mode(0o755).create(dir).context(about)?;
    replace(&path, bytes, 0o755, Durable::Now).context(about)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const ONE: Embedded = Embedded { bytes: b"one", version: "1" };
    const TWO: Embedded = Embedded { bytes: b"two", version: "2" };

    #[test]
    fn a_program_is_written_once_for_each_of_its_versions() {
        let dir = tempfile::tempdir().unwrap();
        let path = unpack(dir.path(), "tool", ONE).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o111, 0o111);
        assert_eq!(unpack(dir.path(), "tool", ONE).unwrap(), path);
        assert_ne!(unpack(dir.path(), "tool", TWO).unwrap(), path);
    }
}
