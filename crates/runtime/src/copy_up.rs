//! `tmpcopyup`: a tmpfs starts with a copy of the directory that it covers.
//!
//! The directory is in the image, or on a volume that other containers write to, and the host's tree is still
//! reachable. So every entry is opened by a single name relative to an open directory, with `O_PATH`; its type is read
//! from the descriptor, and the data from that same file. A link is copied and never followed.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use linux::beneath::{self, proc_path};
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fchmod, fchown, mkdirat, openat,
    readlinkat, symlinkat,
};
use types::{Context, Result};

/// Copies the entries of one directory into another, which is empty and only this process's.
pub(crate) fn copy_up(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    copy_entries(from, to).context(|| "copy the covered directory into the tmpfs")
}

fn copy_entries(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let from = open_directory(from)?;
    for entry in Dir::read_from(&from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy_entry(from.as_fd(), to, name)?;
        }
    }
    Ok(())
}

fn copy_entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let source = openat(from, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = beneath::stat(source.as_fd())?;
    let target = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            mkdirat(to, name, Mode::RWXU)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let target = openat(to, name, flags, Mode::empty())?;
            copy_entries(source.as_fd(), target.as_fd())?;
            target
        }
        FileType::RegularFile => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut target = File::from(openat(to, name, flags, Mode::RUSR | Mode::WUSR)?);
            io::copy(&mut File::open(proc_path(source.as_fd()))?, &mut target)?;
            target.into()
        }
        FileType::Symlink => {
            symlinkat(readlinkat(&source, c"", Vec::new())?, to, name)?;
            let (uid, gid) = owner(&stat);
            return Ok(chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?);
        }
        _ => return Ok(()),
    };
    let (uid, gid) = owner(&stat);
    fchown(&target, Some(uid), Some(gid))?;
    // After the owner: chown(2) clears the setuid and setgid bits.
    Ok(fchmod(&target, Mode::from_raw_mode(stat.st_mode & 0o7777))?)
}

fn open_directory(directory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(directory, c".", flags, Mode::empty())?)
}

fn owner(stat: &Stat) -> (Uid, Gid) {
    (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn open(path: &std::path::Path) -> OwnedFd {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).unwrap()
    }

    #[test]
    fn a_tree_is_copied_with_modes_and_links() {
        let dir = tempfile::TempDir::new().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("a/b/file"), "text").unwrap();
        fs::set_permissions(from.join("a/b/file"), fs::Permissions::from_mode(0o4750)).unwrap();
        fs::set_permissions(from.join("a"), fs::Permissions::from_mode(0o1777)).unwrap();
        symlink("/etc/shadow", from.join("link")).unwrap();
        let fifo = rustix::fs::mknodat(
            rustix::fs::CWD,
            from.join("fifo"),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        );
        fifo.unwrap();
        copy_up(open(&from).as_fd(), open(&to).as_fd()).unwrap();
        assert_eq!(fs::read_to_string(to.join("a/b/file")).unwrap(), "text");
        assert_eq!(fs::metadata(to.join("a/b/file")).unwrap().mode() & 0o7777, 0o4750);
        assert_eq!(fs::metadata(to.join("a")).unwrap().mode() & 0o7777, 0o1777);
        assert_eq!(fs::read_link(to.join("link")).unwrap().to_str(), Some("/etc/shadow"));
        assert!(!to.join("fifo").exists());
    }

    /// Another container with the same volume replaces a directory by a link to a host path.
    #[test]
    fn a_directory_that_becomes_a_link_is_not_followed() {
        let dir = tempfile::TempDir::new().unwrap();
        let (from, host) = (dir.path().join("from"), dir.path().join("host"));
        for path in [&from.join("dir"), &host] {
            fs::create_dir_all(path).unwrap();
        }
        fs::write(host.join("secret"), "of the host").unwrap();
        symlink(&host, dir.path().join("link")).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let (name, aside) = (from.join("dir"), dir.path().join("link"));
                    let exchange = rustix::fs::RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(rustix::fs::CWD, name, rustix::fs::CWD, aside, exchange)
                        .unwrap();
                }
            });
            for round in 0..2000 {
                let to = dir.path().join(format!("to{round}"));
                fs::create_dir(&to).unwrap();
                // An entry that vanished meanwhile is an error, which is fine here.
                let _ = copy_up(open(&from).as_fd(), open(&to).as_fd());
                let leaked = to.join("dir/secret").exists() && !to.join("dir").is_symlink();
                if leaked {
                    stop.store(true, Ordering::Relaxed);
                    panic!("a file of the host was copied in round {round}");
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
