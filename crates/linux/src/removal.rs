//! Deleting trees, a while at a time.
//!
//! Taking a snapshot out of the way is a rename; deleting its files takes as long as there are many. Whoever
//! asks for that is asked after each one whether to go on, so that it can leave the disk to others in between.
//!
//! Trees are somebody else's work, and may still be in use: nothing is reached through a link, and a tree may be
//! deeper than there are descriptors. What is too deep is moved to the top and deleted from there.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, renameat, unlinkat};
use rustix::io::Errno;
use types::{Context, Result};

use crate::tree::open_directory;

/// Directories that are open at once.
const DEPTH_MAX: usize = 32;

/// Deletes a directory with all that is in it, until `go_on` says no. Whether it is gone.
pub fn delete(path: &Path, go_on: &dyn Fn() -> bool) -> Result<bool> {
    let delete = || {
        let Some(top) = open_directory(CWD, path)? else {
            // A link or a file in its place, if anything.
            return gone(unlinkat(CWD, path, AtFlags::empty())).map(|()| true);
        };
        let mut removal = Removal { top: top.as_fd(), moved: 0, go_on };
        loop {
            let before = removal.moved;
            if !removal.empty(removal.top, 0)? {
                return Ok(false);
            }
            // What was moved to the top meanwhile may not have been met.
            if removal.moved == before {
                return gone(unlinkat(CWD, path, AtFlags::REMOVEDIR)).map(|()| true);
            }
        }
    };
    delete().map_err(io::Error::from).context(|| format!("delete {}", path.display()))
}

struct Removal<'a> {
    top: BorrowedFd<'a>,
    /// Directories that were too deep.
    moved: u64,
    go_on: &'a dyn Fn() -> bool,
}

impl Removal<'_> {
    /// Whether it came to the end.
    fn empty(&mut self, directory: BorrowedFd<'_>, depth: usize) -> Result<bool, Errno> {
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
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
        let Some(directory) = open_directory(parent, name)? else { return Ok(true) };
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
                // Somebody's file is called so.
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                moved => return gone(moved),
            }
        }
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
        // A link in the place of a tree is no tree.
        symlink(&kept, &tree).unwrap();
        delete(&tree, &|| true).unwrap();
        assert!(kept.join("file").exists());
    }

    /// As deep as containers can make them, which is deeper than there are descriptors or room on a stack.
    #[test]
    fn trees_may_be_deep() {
        const DEPTH: usize = 2000;
        let dir = tempfile::TempDir::new().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        // A name that is in the way of what is moved to the top.
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
