//! Files before records: what was written is on disk before it is recorded.
//!
//! ```text
//! open ─▶ files are written, by anybody ─▶ wait ─▶ records
//! ```
//!
//! The kernel tells of a write that the disk refused once to each descriptor that was open by then, and of one that nobody was
//! told of to the first that is opened later. Whoever opens his only when he waits may come second, and hears of nothing
//! (Linux, `lib/errseq.c`). So a barrier is opened before the first file is written.

use std::fs::File;
use std::path::Path;

use types::{Context, Result};

/// One for all files of a file system. By default one that has nothing to wait for.
#[derive(Debug, Default)]
pub struct Barrier(Option<File>);

impl Barrier {
    /// For the file system of a directory.
    pub fn open(directory: &Path) -> Result<Barrier> {
        let directory = File::open(directory)
            .context(|| format!("open {}, to have it on disk later", directory.display()))?;
        Ok(Barrier(Some(directory)))
    }

    /// Returns when all that was written before is on disk. An error if any of what was written since it was opened is
    /// lost.
    pub fn wait(&self) -> Result<()> {
        let Some(directory) = &self.0 else { return Ok(()) };
        rustix::fs::syncfs(directory)
            .map_err(std::io::Error::from)
            .context(|| "have the files of snapshots on disk")
    }
}
