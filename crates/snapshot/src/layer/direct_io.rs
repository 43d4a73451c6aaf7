//! Decides whether a mounted image reads its archives through the page cache or by direct I/O.
//!
//! An archive that was just written is in the page cache, and reading it from there takes no disk access. For an
//! archive that is not, the cache is a disadvantage: a page of a file spans two pages of the archive, both of which are
//! cached, and the kernel hands such reads to a kernel thread, which waits for a processor (`bench/README.md`, "Files
//! of a container").
//!
//! So the archives are checked when an image is mounted, each time that a container starts on it, and when the daemon
//! is idle, until the mount is switched to direct I/O. It is not switched back: the pages of files are cached in any
//! case.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use stdx::Mutex;
use types::{ErrorKind, Result};

use super::mounting::{Backing, is_in_memory, probe, read_directly};

/// Most mounts that are remembered, before all are forgotten and checked anew.
const KNOWN_MAX: usize = 4096;

pub(super) struct DirectIo {
    /// The directory of all snapshots, where direct I/O is probed.
    root: PathBuf,
    backing: Backing,
    /// Mount points, with the largest archive of each mount that uses the page cache; `None` for direct I/O.
    known: Mutex<BTreeMap<PathBuf, Option<PathBuf>>>,
    /// Whether kernel and disk support direct I/O, once it was probed.
    is_supported: Mutex<Option<bool>>,
}

impl DirectIo {
    pub(super) fn new(root: &Path, backing: Backing) -> DirectIo {
        DirectIo { root: root.to_owned(), backing, known: Mutex::default(), is_supported: Mutex::default() }
    }

    /// The backing for the mount of an image with this largest archive.
    pub(super) fn backing(&self, largest: &Path) -> Result<Backing> {
        match self.backing == Backing::Files && !is_in_memory(largest)? && self.is_supported()? {
            true => Ok(Backing::FilesDirectly),
            false => Ok(self.backing),
        }
    }

    /// Records how an image was mounted.
    pub(super) fn mounted(&self, target: &Path, largest: &Path, backing: Backing) {
        if self.backing == Backing::Files {
            let through = (backing != Backing::FilesDirectly).then(|| largest.to_owned());
            let mut known = self.known.lock();
            if known.len() >= KNOWN_MAX {
                known.clear();
            }
            known.insert(target.to_owned(), through);
        }
    }

    /// Switches a mounted image to direct I/O if its largest archive is not cached any more.
    pub(super) fn recheck(&self, target: &Path, largest: &Path) -> Result<()> {
        if self.backing != Backing::Files || self.known.lock().get(target).is_some_and(Option::is_none) {
            return Ok(());
        }
        let backing = self.backing(largest)?;
        if backing == Backing::FilesDirectly {
            read_directly(target)?;
        }
        self.mounted(target, largest, backing);
        Ok(())
    }

    /// Checks all mounted images. Those that are unmounted by now are forgotten.
    pub(super) fn recheck_all(&self) {
        let through: Vec<(PathBuf, PathBuf)> = {
            let known = self.known.lock();
            known.iter().filter_map(|(target, largest)| Some((target.clone(), largest.clone()?))).collect()
        };
        for (target, largest) in through {
            if self.recheck(&target, &largest).is_err() {
                self.known.lock().remove(&target);
            }
        }
    }

    fn is_supported(&self) -> Result<bool> {
        if let Some(known) = *self.is_supported.lock() {
            return Ok(known);
        }
        let is_supported = match probe(&self.root, Backing::FilesDirectly) {
            Err(error) if error.is(ErrorKind::Unimplemented) => false,
            // The disk is full: the next call probes again.
            Err(error) if error.is(ErrorKind::ResourceExhausted) => return Ok(false),
            probed => probed.map(|()| true)?,
        };
        *self.is_supported.lock() = Some(is_supported);
        Ok(is_supported)
    }
}
