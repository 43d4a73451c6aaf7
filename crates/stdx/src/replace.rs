//! Files that are there whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Whether a file is worth something after a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durable {
    /// It and its name are on the disk before anybody is told of it.
    Now,
    /// The disk is not waited for. A power cut may leave the file before, this one, or an empty one.
    No,
}

/// Puts a file with these bytes in the place of the one of that name, or makes it. Who reads meanwhile finds the old
/// one or the new one; who has the old one open keeps it. The mode is cut by the process's umask.
///
/// The bytes are written beside it first, to `.NAME.draft`. What a crash leaves of that is in the way of nobody, and
/// goes with the next call. A name has one writer at a time.
///
/// # Errors
/// What the file system says. The old file is there still, but for a failure to sync the directory.
pub fn replace(path: &Path, bytes: &[u8], mode: u32, durable: Durable) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ErrorKind::InvalidInput.into());
    };
    // That of a name alone is the working directory.
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
        // A program that is open for writing cannot be run.
        drop(file);
        fs::rename(&draft, path)
    });
    if written.is_err() {
        // On a full disk it would take what is left, for nobody. It is not there if it could not be made.
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
    fn what_a_crash_left_is_neither_written_to_nor_kept() {
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
    fn what_cannot_take_the_place_leaves_it_as_it_was() {
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
