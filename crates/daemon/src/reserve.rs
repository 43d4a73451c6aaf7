//! Room that is kept for a disk that is full.
//!
//! Whoever makes room deletes records, and takes some for that himself, as does a database that is opened after its
//! process was killed. So a few MiB are kept while there is plenty, and are given up by a daemon that starts on a full disk:
//!
//! ```text
//! ROOT/reserve     nothing that anybody reads; there or not
//!
//!                  ┌── 64 MiB free ──▶ made
//! a start ─▶ open ─┤
//!                  └── not open, or less than 1 MiB free ──▶ given up, opened again
//! ```

use std::fs::{self, File};
use std::io;
use std::path::Path;

use kv::Db;
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use types::{Context, ErrorKind, Result};

const FILE: &str = "reserve";
const LEN: u64 = 4 << 20;
/// Free bytes from which on it is made, and below which the disk is as good as full.
const PLENTY: u64 = 64 << 20;
const FULL: u64 = 1 << 20;

/// Opens the records of a root directory, which is what needs the room.
pub(crate) fn open(root: &Path, options: kv::Options) -> Result<Db> {
    let path = root.join("meta.db");
    let open = || Db::open(&path, options);
    let db = match open() {
        Err(error) if error.is(ErrorKind::ResourceExhausted) && give_up(root)? => open()?,
        opened => opened?,
    };
    let kept = free(root).and_then(|free| match free {
        PLENTY.. => make(root),
        FULL.. => Ok(()),
        _ => give_up(root).map(drop),
    });
    // It is no condition for anything.
    if let Err(error) = kept {
        tracing::warn!("{}", error.chain());
    }
    Ok(db)
}

/// Bytes that the file system of `root` has for us.
fn free(root: &Path) -> Result<u64> {
    let found = statvfs(root).map_err(io::Error::from).context(|| format!("look at {}", root.display()))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

fn make(root: &Path) -> Result<()> {
    let path = root.join(FILE);
    if fs::metadata(&path).is_ok_and(|found| found.len() >= LEN) {
        return Ok(());
    }
    let made = File::create(&path).and_then(|file| Ok(fallocate(&file, FallocateFlags::empty(), 0, LEN)?));
    // Half of it is no use; and where it cannot be had without being written there is none.
    made.or_else(|error| fs::remove_file(&path).and(Err(error)))
        .context(|| format!("keep room in {}", path.display()))
}

/// Whether there was one.
fn give_up(root: &Path) -> Result<bool> {
    let path = root.join(FILE);
    match fs::remove_file(&path) {
        Ok(()) => {
            tracing::warn!("the disk is full: {} was kept for that, and is given up", path.display());
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context(|| format!("remove {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_once_and_given_up_once() {
        let root = tempfile::TempDir::new().unwrap();
        let look = || fs::metadata(root.path().join(FILE)).map(|found| found.len());
        let db = open(root.path(), kv::Options::default()).unwrap();
        assert_eq!(look().unwrap(), LEN);
        make(root.path()).unwrap();
        assert!(give_up(root.path()).unwrap() && !give_up(root.path()).unwrap());
        drop(db);
        // Half of one is made whole.
        fs::write(root.path().join(FILE), "x").unwrap();
        drop(open(root.path(), kv::Options::default()).unwrap());
        assert_eq!(look().unwrap(), LEN);
    }

    #[test]
    fn a_database_that_needs_room_gets_what_was_kept() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: a disk of its own needs root");
            return;
        }
        let root = tempfile::TempDir::new().unwrap();
        let disk = types::Mount {
            kind: "tmpfs".into(),
            source: "tmpfs".into(),
            target: String::new(),
            options: vec!["size=8m".into()],
        };
        linux::mount::mount_all(&[disk], root.path()).unwrap();
        make(root.path()).unwrap();
        let filled = fs::write(root.path().join("filler"), vec![1; 8 << 20]).unwrap_err();
        assert_eq!(filled.kind(), io::ErrorKind::StorageFull);
        assert!(Db::open(root.path().join("meta.db"), kv::Options::default()).is_err(), "there is no room");
        let opened = open(root.path(), kv::Options::default()).map(drop);
        let is_given_up = !root.path().join(FILE).exists();
        linux::mount::unmount_all(root.path()).unwrap();
        opened.unwrap();
        assert!(is_given_up);
    }
}
