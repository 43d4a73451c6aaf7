//! Through the kernel's memory of files, or past it.
//!
//! An archive that was just written is in that memory, and reading it from there takes no disk. One that is not comes from
//! the disk, and then the memory is in the way: a page of a file lies in two pages of the archive, both are kept, and
//! the kernel hands such reads to a thread of its own, which waits for a processor (`bench/README.md`, "Files of a container").
//!
//! So it is looked at when an image is mounted, each time that a container starts on it, and when the daemon comes to rest,
//! until it is read past that memory. It stays so then: what containers read is kept in any case.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use stdx::Mutex;
use types::{ErrorKind, Result};

use super::mounting::{Backing, is_in_memory, probe, read_directly};

/// Mounts that are remembered, before all are forgotten and looked at anew.
const KNOWN_MAX: usize = 4096;

pub(super) struct Reading {
    /// The directory of all snapshots, where it is tried what the kernel can.
    root: PathBuf,
    backing: Backing,
    /// Where mounts are, and the largest archive of each that is read through that memory.
    known: Mutex<BTreeMap<PathBuf, Option<PathBuf>>>,
    /// Whether kernel and disk can, once somebody wanted to know.
    can: Mutex<Option<bool>>,
}

impl Reading {
    pub(super) fn new(root: &Path, backing: Backing) -> Reading {
        Reading { root: root.to_owned(), backing, known: Mutex::default(), can: Mutex::default() }
    }

    /// How an image is to be mounted whose largest archive is given.
    pub(super) fn backing(&self, largest: &Path) -> Result<Backing> {
        match self.backing == Backing::Files && !is_in_memory(largest)? && self.can()? {
            true => Ok(Backing::FilesDirectly),
            false => Ok(self.backing),
        }
    }

    /// Notes how it was mounted.
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

    /// Looks again at an image that is mounted.
    pub(super) fn look(&self, target: &Path, largest: &Path) -> Result<()> {
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

    /// Looks again at all of them. Those that are no more are forgotten.
    pub(super) fn look_at_all(&self) {
        let through: Vec<(PathBuf, PathBuf)> = {
            let known = self.known.lock();
            known.iter().filter_map(|(target, largest)| Some((target.clone(), largest.clone()?))).collect()
        };
        for (target, largest) in through {
            if self.look(&target, &largest).is_err() {
                self.known.lock().remove(&target);
            }
        }
    }

    fn can(&self) -> Result<bool> {
        if let Some(known) = *self.can.lock() {
            return Ok(known);
        }
        let can = match probe(&self.root, Backing::FilesDirectly) {
            Err(error) if error.is(ErrorKind::Unimplemented) => false,
            // For want of room: it is tried again.
            Err(error) if error.is(ErrorKind::ResourceExhausted) => return Ok(false),
            probed => probed.map(|()| true)?,
        };
        *self.can.lock() = Some(can);
        Ok(can)
    }
}
