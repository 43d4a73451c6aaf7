//! Snapshots as full copies: `ROOT/ID/` is the tree. For file systems that overlayfs cannot stand on.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, lchown, symlink};
use std::path::{Path, PathBuf};

use kv::Db;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, mknodat, utimensat};
use types::{Context, Error, Labels, Mount, Result};

use crate::records::{Chain, Records, count};
use crate::{CommitOptions, Kind, Snapshot, Snapshotter, Usage};

/// The copying snapshotter, which containerd calls `native`.
pub struct Native {
    records: Records,
}

impl Native {
    pub const NAME: &'static str = "native";

    /// Opens the snapshots below `root`, whose records are in `db`.
    pub fn open(root: &Path, db: Db) -> Result<Native> {
        Ok(Native { records: Records::open(Native::NAME, root, db)? })
    }

    fn create(&self, key: &str, parent: Option<&str>, kind: Kind, labels: Labels) -> Result<Vec<Mount>> {
        let chain = self.records.create(key, parent, kind, labels, |directory, chain| {
            let what = || format!("make {}", directory.display());
            match chain.parents.first() {
                // A view needs no copy of its own: nobody writes to it.
                Some(nearest) if kind == Kind::Active => {
                    copy_tree(&self.records.directory(*nearest), directory).context(what)
                }
                _ => fs::create_dir(directory).context(what),
            }
        })?;
        Ok(self.recipe(&chain))
    }

    fn recipe(&self, chain: &Chain) -> Vec<Mount> {
        let (id, access) = match (chain.kind, chain.parents.first()) {
            (Kind::View, Some(nearest)) => (*nearest, "ro"),
            (Kind::View, None) => (chain.id, "ro"),
            _ => (chain.id, "rw"),
        };
        let source = self.records.directory(id).display().to_string();
        let options = vec![access.to_owned(), "rbind".to_owned()];
        vec![Mount { kind: "bind".into(), source, target: String::new(), options }]
    }
}

impl Snapshotter for Native {
    fn stat(&self, key: &str) -> Result<Snapshot> {
        self.records.stat(key)
    }

    fn update(&self, key: &str, labels: Labels) -> Result<()> {
        self.records.update(key, labels)
    }

    fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        Ok(self.recipe(&self.records.chain(key)?))
    }

    fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.create(key, parent, Kind::Active, labels)
    }

    fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.create(key, parent, Kind::View, labels)
    }

    fn commit(&self, name: &str, key: &str, options: CommitOptions) -> Result<()> {
        let record = self.records.get(key)?;
        if options.parent.is_some() && options.parent != record.parent {
            // A copy that was made without its parent lacks the parent's files.
            return Err(Error::unimplemented("the native snapshotter gives no parent at commit"));
        }
        let usage = count(&self.records.directory(record.id))?;
        self.records.commit(name, key, options, usage)
    }

    fn remove(&self, key: &str) -> Result<()> {
        self.records.remove(key)
    }

    fn usage(&self, key: &str) -> Result<Usage> {
        let record = self.records.get(key)?;
        match record.kind {
            Kind::Committed => Ok(record.usage),
            _ => count(&self.records.directory(record.id)),
        }
    }

    fn list(&self) -> Result<Vec<Snapshot>> {
        self.records.list()
    }

    fn sync(&self) -> Result<()> {
        self.records.sync_files()
    }

    fn cleanup(&self) -> Result<()> {
        self.records.cleanup(|_| Ok(()))
    }
}

/// Copies a tree with owners, modes, times, extended attributes, devices and hard links.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    let mut links = BTreeMap::new();
    copy_into(from, to, &mut links)?;
    copy_metadata(from, to, &fs::symlink_metadata(from)?)
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
