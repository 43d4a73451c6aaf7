//! Atomic replacement of files.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Whether a file survives a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durable {
    /// The file and its name are on disk (fsync(2)) before the call returns.
    Now,
    /// No sync. After a power cut the old file, the new one or an empty one is there.
    No,
}

/// Creates a file with these bytes, or replaces the one of that name atomically. A concurrent reader sees the old file
/// or the new one; one that has the old file open keeps it. The umask applies to the mode.
///
/// The bytes are first written to `.NAME.draft` beside it. A draft that a crash left behind is removed by the next
/// call. Each name may have one writer at a time.
///
/// # Errors
/// The file system's error. The old file is still there, unless it was the sync of the directory that failed.
pub fn replace(path: &Path, bytes: &[u8], mode: u32, durable: Durable) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ErrorKind::InvalidInput.into());
    };
    // The parent of a bare file name is empty: it means the working directory.
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let mut draft = OsString::from(".");
    draft.push(name);
    draft.push(".draft");
    let draft = directory.join(draft);
    let make = || File::options().write(true).create_new(true).mode(mode).open(&draft);
    let made = match make() {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            fs::remove_file(&draft).and_then(|()| make())
        }
        made => made,
    };
    let written = made.and_then(|mut file| {
        file.write_all(bytes)?;
        if durable == Durable::Now {
            file.sync_all()?;
        }
        // A program that is still open for writing cannot be executed (ETXTBSY).
        drop(file);
        fs::rename(&draft, path)
    });
    if written.is_err() {
        // On a full disk the draft would keep its space. There is none if it could not be created.
        let _ = fs::remove_file(&draft);
    }
    written?;
    match durable {
        Durable::Now => File::open(directory)?.sync_all(),
        Durable::No => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names(directory: &Path) -> Vec<OsString> {
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn a_file_is_made_and_replaced_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for durable in [Durable::Now, Durable::No] {
            replace(&path, b"old", 0o600, durable).unwrap();
            let mut reader = File::open(&path).unwrap();
            replace(&path, b"new", 0o700, durable).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"new");
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
            let mut kept = String::new();
            reader.read_to_string(&mut kept).unwrap();
            assert_eq!(kept, "old", "who reads the old one keeps it");
            assert_eq!(names(directory.path()), ["file"]);
        }
    }

    #[test]
    fn a_draft_that_a_crash_left_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("file"), directory.path().join("other"));
        fs::write(&other, "of somebody else").unwrap();
        std::os::unix::fs::symlink(&other, directory.path().join(".file.draft")).unwrap();
        replace(&path, b"whole", 0o600, Durable::No).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::read(&other).unwrap(), b"of somebody else");
        assert_eq!(names(directory.path()).len(), 2);
    }

    #[test]
    fn a_failed_replace_leaves_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("directory");
        fs::create_dir(&path).unwrap();
        assert!(replace(&path, b"bytes", 0o600, Durable::Now).is_err());
        assert!(path.is_dir());
        assert_eq!(names(directory.path()), ["directory"]);
        assert_eq!(
            replace(Path::new("/"), b"bytes", 0o600, Durable::No).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
        let missing = replace(&directory.path().join("no/file"), b"bytes", 0o600, Durable::No).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    }
}
