//! Incremental deletion of trees.
//!
//! Removing a snapshot is a rename; deleting its files takes time in proportion to their number. The deletion asks its
//! caller after each file whether to go on, so that the caller can yield the disk in between.
//!
//! A large file is truncated piece by piece from its end, if it has no other name and is not open elsewhere: deleting
//! it at once would take time in proportion to its size. A file that another process reads stays whole for it, and is
//! unlinked at once.
//!
//! Trees are untrusted, and may still be in use: links are not followed, mounts in a tree are not touched, and a tree
//! may be deeper than there are descriptors. A directory that is too deep is moved to the top, and deleted from there.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat2, renameat, unlinkat};
use rustix::io::Errno;
use types::{Context, Result};

use crate::tree::open_directory;

/// The most directories that are open at once.
const DEPTH_MAX: usize = 32;

/// Bytes that one step frees of a file.
pub const PIECE_LEN: u64 = 64 << 20;

/// Deletes a file or a directory tree, until `go_on` returns false. Returns whether it is gone. Mounts inside stay, and
/// are an error.
pub fn delete(path: &Path, go_on: &dyn Fn() -> bool) -> Result<bool> {
    let delete = || {
        let Some(top) = open_directory(CWD, path)? else { return delete_file(path, go_on) };
        match empty_all(top.as_fd(), go_on)? {
            true => gone(unlinkat(CWD, path, AtFlags::REMOVEDIR)).map(|()| true),
            false => Ok(false),
        }
    };
    delete().map_err(io::Error::from).context(|| format!("delete {}", path.display()))
}

/// Deletes a file or a link, if it exists: by its directory, from where a mount on it is seen as one.
fn delete_file(path: &Path, go_on: &dyn Fn() -> bool) -> Result<bool, Errno> {
    let name = path.file_name().and_then(|name| CString::new(name.as_bytes()).ok()).ok_or(Errno::INVAL)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match rustix::fs::openat(CWD, parent, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(true),
        opened => opened?,
    };
    match shorten(parent.as_fd(), &name, go_on)? {
        true => gone(unlinkat(&parent, &name, AtFlags::empty())).map(|()| true),
        false => Ok(false),
    }
}

/// Deletes the content of a directory, until `go_on` returns false. Returns whether it is empty. Mounts inside stay,
/// and are an error.
pub fn empty(directory: BorrowedFd<'_>, go_on: &dyn Fn() -> bool) -> io::Result<bool> {
    Ok(empty_all(directory, go_on)?)
}

fn empty_all(top: BorrowedFd<'_>, go_on: &dyn Fn() -> bool) -> Result<bool, Errno> {
    let mut removal = Removal { top, moved: 0, go_on };
    loop {
        let before = removal.moved;
        if !removal.empty(top, 0)? {
            return Ok(false);
        }
        // Directories moved to the top may have been missed by this pass.
        if removal.moved == before {
            return Ok(true);
        }
    }
}

struct Removal<'a> {
    top: BorrowedFd<'a>,
    /// The number of directories that were moved to the top.
    moved: u64,
    go_on: &'a dyn Fn() -> bool,
}

impl Removal<'_> {
    /// Returns whether the directory was completed.
    fn empty(&mut self, directory: BorrowedFd<'_>, depth: usize) -> Result<bool, Errno> {
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if !shorten(directory, name, self.go_on)? {
                return Ok(false);
            }
            let is_gone = match unlinkat(directory, name, AtFlags::empty()) {
                Err(Errno::ISDIR) => self.delete_directory(directory, name, depth)?,
                deleted => gone(deleted).map(|()| true)?,
            };
            if !is_gone || !(self.go_on)() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn delete_directory(&mut self, parent: BorrowedFd<'_>, name: &CStr, depth: usize) -> Result<bool, Errno> {
        if depth == DEPTH_MAX {
            return self.move_to_top(parent, name).map(|()| true);
        }
        let Some(directory) = open_inside(parent, name)? else { return Ok(true) };
        if !self.empty(directory.as_fd(), depth + 1)? {
            return Ok(false);
        }
        gone(unlinkat(parent, name, AtFlags::REMOVEDIR)).map(|()| true)
    }

    fn move_to_top(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        loop {
            self.moved += 1;
            let new = CString::new(format!("deep.{}", self.moved)).expect("no zero in it");
            match renameat(parent, name, self.top, &new) {
                // The tree has a file of this name.
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                moved => return gone(moved),
            }
        }
    }
}

/// Opens a directory of the tree; None if it is gone. `EXDEV` if it is a mount point, also of the same file system.
fn open_inside(parent: BorrowedFd<'_>, name: &CStr) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat2(parent, name, flags, Mode::empty(), ResolveFlags::NO_XDEV) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        opened => opened.map(Some),
    }
}

/// Truncates a large file to what one step frees. Returns whether it got that far.
fn shorten(directory: BorrowedFd<'_>, name: &CStr, go_on: &dyn Fn() -> bool) -> Result<bool, Errno> {
    let Some((file, mut len, step)) = large(directory, name) else { return Ok(true) };
    while len > step {
        len -= step;
        rustix::fs::ftruncate(&file, len)?;
        if !go_on() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A file that is larger than a piece and unused elsewhere, with its length, and the length of a step: holes are
/// skipped with what surrounds them. Any other file is deleted as a whole, and one that is mounted here not at all.
fn large(directory: BorrowedFd<'_>, name: &CStr) -> Option<(OwnedFd, u64, u64)> {
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let pieces = u64::try_from(stat.st_blocks).ok()? * 512 / PIECE_LEN;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_nlink != 1 || pieces == 0 {
        return None;
    }
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat2(directory, name, flags, Mode::empty(), ResolveFlags::NO_XDEV).ok()?;
    let len = u64::try_from(stat.st_size).ok()?;
    is_open_here_alone(&file).then(|| (file, len, (len / pieces).max(PIECE_LEN)))
}

/// Whether the file is open nowhere else, not even mapped: the kernel checks this before it grants a write lease
/// (fcntl(2), "Leases").
#[expect(unsafe_code, reason = "rustix has no leases")]
fn is_open_here_alone(file: &OwnedFd) -> bool {
    /// `linux/fcntl.h`; libc lacks it.
    const F_SETSIG: libc::c_int = 10;
    // The lease is released at once; if the file is opened in between, the signal is one that is ignored.
    // SAFETY: these commands of fcntl read no memory, and the descriptor is open.
    unsafe {
        let set = |command, value: libc::c_int| libc::fcntl(file.as_raw_fd(), command, value) == 0;
        set(F_SETSIG, libc::SIGURG)
            && set(libc::F_SETLEASE, libc::F_WRLCK)
            && set(libc::F_SETLEASE, libc::F_UNLCK)
    }
}

fn gone(deleted: Result<(), Errno>) -> Result<(), Errno> {
    match deleted {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::{Mode, mkdirat};

    use super::*;

    #[test]
    fn files_of_every_kind_go_and_links_are_not_followed() {
        let dir = tempfile::TempDir::new().unwrap();
        let (kept, tree) = (dir.path().join("kept"), dir.path().join("tree"));
        for path in [&kept, &tree, &tree.join("a"), &tree.join("a/b")] {
            fs::create_dir(path).unwrap();
        }
        fs::write(kept.join("file"), "kept").unwrap();
        for name in ["1", "a/2", "a/b/3"] {
            fs::write(tree.join(name), "").unwrap();
        }
        symlink(&kept, tree.join("a/link")).unwrap();
        let link = dir.path().join("link");
        symlink(&kept, &link).unwrap();
        assert!(delete(&link, &|| true).unwrap() && link.symlink_metadata().is_err());
        let mut turns = 0;
        while !delete(&tree, &|| false).unwrap() {
            turns += 1;
        }
        assert!(!tree.exists());
        assert_eq!(fs::read_to_string(kept.join("file")).unwrap(), "kept");
        assert_eq!(turns, 6, "asked after each");
        assert!(delete(&tree, &|| false).unwrap(), "it is gone");
        // A symlink in place of a tree is removed, not followed.
        symlink(&kept, &tree).unwrap();
        delete(&tree, &|| true).unwrap();
        assert!(kept.join("file").exists());
    }

    #[test]
    fn mounts_inside_a_tree_are_not_deleted() {
        if !stdx::testing::is_root("a mount") {
            return;
        }
        let dir = tempfile::TempDir::new().unwrap();
        let (kept, tree) = (dir.path().join("kept"), dir.path().join("tree"));
        let place = tree.join("a/place");
        fs::create_dir(&kept).unwrap();
        fs::create_dir_all(&place).unwrap();
        fs::write(kept.join("file"), "kept").unwrap();
        // Of the same file system, so that the device number does not tell.
        let bind = types::Mount {
            kind: "bind".into(),
            source: kept.display().to_string(),
            target: String::new(),
            options: vec!["rbind".into()],
        };
        crate::mount::mount_all(&[bind], &place).unwrap();
        let deleted = delete(&tree, &|| true);
        crate::mount::unmount_all(&place).unwrap();
        assert_eq!(fs::read_to_string(kept.join("file")).unwrap(), "kept");
        assert!(deleted.is_err(), "{deleted:?}");
        assert!(delete(&tree, &|| true).unwrap(), "and goes with the next try");
    }

    /// A file of three pieces, each of which takes a turn.
    fn three_pieces(path: &Path) -> fs::File {
        let file = fs::File::create(path).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 3 * PIECE_LEN).unwrap();
        file
    }

    #[test]
    fn a_large_file_that_is_mounted_in_a_tree_stays_whole() {
        if !stdx::testing::is_root("a mount") {
            return;
        }
        let dir = tempfile::TempDir::new_in("/var/tmp").unwrap();
        let (kept, tree) = (dir.path().join("kept"), dir.path().join("tree"));
        let place = tree.join("place");
        fs::create_dir(&tree).unwrap();
        fs::write(&place, "").unwrap();
        drop(three_pieces(&kept));
        rustix::mount::mount_bind(&kept, &place).unwrap();
        let deleted = [delete(&tree, &|| true), delete(&place, &|| true)];
        crate::mount::unmount_all(&place).unwrap();
        assert_eq!(kept.metadata().unwrap().len(), 3 * PIECE_LEN);
        assert!(deleted.iter().all(Result::is_err), "{deleted:?}");
        assert!(delete(&tree, &|| true).unwrap(), "and goes with the next try");
    }

    fn turns(tree: &Path) -> usize {
        let mut turns = 1;
        while !delete(tree, &|| false).unwrap() {
            turns += 1;
        }
        turns
    }

    #[test]
    fn large_files_are_deleted_piece_by_piece_unless_they_are_in_use() {
        let dir = tempfile::TempDir::new_in("/var/tmp").unwrap();
        let (tree, kept) = (dir.path().join("tree"), dir.path().join("kept"));
        let begin = || {
            fs::create_dir(&tree).unwrap();
            three_pieces(&tree.join("file"))
        };
        drop(begin());
        assert_eq!(turns(&tree), 4, "two pieces, the file, the directory");

        // A reader keeps the whole file.
        let file = begin();
        let reader = fs::File::open(tree.join("file")).unwrap();
        drop(file);
        assert_eq!(turns(&tree), 2);
        assert_eq!(reader.metadata().unwrap().len(), 3 * PIECE_LEN);

        // A hard link keeps the whole file.
        drop(begin());
        fs::hard_link(tree.join("file"), &kept).unwrap();
        assert_eq!(turns(&tree), 2);
        assert_eq!(kept.metadata().unwrap().len(), 3 * PIECE_LEN);

        // Holes take few steps, however long they are.
        begin().set_len(1 << 40).unwrap();
        let turns = turns(&tree);
        assert!((3..64).contains(&turns), "{turns}");
    }

    /// As deep as containers can make them: deeper than the limits of descriptors and stack.
    #[test]
    fn trees_may_be_deep() {
        const DEPTH: usize = 2000;
        let dir = tempfile::TempDir::new().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        // Names that collide with directories moved to the top.
        fs::create_dir_all(tree.join("deep.1/full")).unwrap();
        fs::write(tree.join("deep.2"), "").unwrap();
        let mut at = open_directory(CWD, &tree).unwrap().unwrap();
        for _ in 0..DEPTH {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = open_directory(&at, "d").unwrap().unwrap();
        }
        drop(at);
        assert!(delete(&tree, &|| true).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
