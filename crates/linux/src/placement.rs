//! Placement of directories on disk.

use std::path::Path;

use rustix::fs::{CWD, IFlags, Mode, OFlags, ioctl_getflags, ioctl_setflags, openat};

/// Marks a directory whose subdirectories are unrelated (chattr(1), attribute T). ext4 then places each in a block
/// group of its own; otherwise all their files crowd into one. With many short-lived files that costs time: a free
/// inode is searched behind all used ones there, and without a journal also behind those freed within the last minute,
/// one by one.
///
/// Errors are ignored: on other file systems, and if one refuses, nothing changes.
pub fn scatter(directory: &Path) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(directory) = openat(CWD, directory, flags, Mode::empty()) else { return };
    if let Ok(flags) = ioctl_getflags(&directory)
        && !flags.contains(IFlags::TOPDIR)
    {
        let _a_hint = ioctl_setflags(&directory, flags | IFlags::TOPDIR);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_marked_where_it_can_be() {
        let directory = tempfile::tempdir().unwrap();
        let flags = || {
            let opened = openat(CWD, directory.path(), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            ioctl_getflags(opened.unwrap())
        };
        let Ok(before) = flags() else {
            eprintln!("skipped: {} is on a file system without attributes", directory.path().display());
            return;
        };
        scatter(directory.path());
        scatter(directory.path());
        let after = flags().unwrap();
        assert_eq!(after.difference(IFlags::TOPDIR), before);
        // EXT4_SUPER_MAGIC (statfs(2)).
        let is_ext4 = rustix::fs::statfs(directory.path()).unwrap().f_type == 0xef53;
        assert!(after.contains(IFlags::TOPDIR) || !is_ext4);
    }

    #[test]
    fn scatter_ignores_a_missing_directory() {
        let directory = tempfile::tempdir().unwrap();
        scatter(&directory.path().join("nothing"));
        assert!(std::fs::read_dir(directory.path()).unwrap().next().is_none());
    }
}
