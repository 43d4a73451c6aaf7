//! Trees of files, copied with all that the kernel keeps of them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, mknodat, utimensat};

/// Copies a directory to a path where nothing is, with owners, modes, times, extended attributes, devices and
/// hard links. Sockets, which belong to processes, are left out.
///
/// No link inside `from` is followed, but nobody may change either tree meanwhile.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    let mut links = BTreeMap::new();
    copy_into(from, to, &mut links)?;
    copy_metadata(from, to, &fs::metadata(from)?)
}

fn copy_into(from: &Path, to: &Path, links: &mut BTreeMap<(u64, u64), PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let metadata = entry.metadata()?;
        if !metadata.is_dir() && metadata.nlink() > 1 {
            if let Some(first) = links.get(&(metadata.dev(), metadata.ino())) {
                fs::hard_link(first, &target)?;
                continue;
            }
            links.insert((metadata.dev(), metadata.ino()), target.clone());
        }
        let kind = metadata.file_type();
        if kind.is_dir() {
            fs::create_dir(&target)?;
            copy_into(&source, &target, links)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_file() {
            // copy_file_range or reflink, where the file system has it.
            fs::copy(&source, &target)?;
        } else if kind.is_fifo() || kind.is_char_device() || kind.is_block_device() {
            let kind = FileType::from_raw_mode(metadata.mode());
            mknodat(CWD, &target, kind, Mode::from_raw_mode(metadata.mode() & 0o7777), metadata.rdev())?;
        } else {
            continue; // a socket belongs to a process, not to a tree
        }
        copy_metadata(&source, &target, &metadata)?;
    }
    Ok(())
}

fn copy_metadata(from: &Path, to: &Path, metadata: &fs::Metadata) -> io::Result<()> {
    lchown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    if !metadata.is_symlink() {
        fs::set_permissions(to, metadata.permissions())?;
    }
    copy_attributes(from, to)?;
    let time = |seconds, nanos| Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps {
        last_access: time(metadata.atime(), metadata.atime_nsec()),
        last_modification: time(metadata.mtime(), metadata.mtime_nsec()),
    };
    Ok(utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn copy_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let mut names = vec![0; 64 * 1024];
    let len = match rustix::fs::llistxattr(from, &mut names) {
        Err(rustix::io::Errno::NOTSUP) => return Ok(()),
        other => other?,
    };
    let mut value = vec![0; 64 * 1024];
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let len = rustix::fs::lgetxattr(from, name, &mut value)?;
        rustix::fs::lsetxattr(to, name, &value[..len], rustix::fs::XattrFlags::empty())?;
    }
    Ok(())
}
