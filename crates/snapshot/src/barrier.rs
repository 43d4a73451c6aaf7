//! Files before records: what was written is on disk before it is recorded.
//!
//! ```text
//! open ─▶ files are written, by anybody ─▶ wait ─▶ records
//! ```
//!
//! The kernel tells of a write that the disk refused once to each descriptor that was open by then, and of one that nobody was
//! told of to the first that is opened later. Whoever opens his only when he waits may come second, and hears of nothing
//! (Linux, `lib/errseq.c`). So a barrier is opened before the first file is written.

use std::fmt;
use std::fs::File;
use std::path::Path;

use types::{Context, Result};

/// One for all files of a file system. By default one that has nothing to wait for.
#[derive(Default)]
pub struct Barrier(Option<Wait>);

type Wait = Box<dyn Fn() -> Result<()> + Send + Sync>;

impl Barrier {
    /// For the file system of a directory.
    pub fn open(directory: &Path) -> Result<Barrier> {
        let directory = File::open(directory)
            .context(|| format!("open {}, to have it on disk later", directory.display()))?;
        Ok(Barrier::by(move || {
            rustix::fs::syncfs(&directory)
                .map_err(std::io::Error::from)
                .context(|| "have the files of snapshots on disk")
        }))
    }

    /// One that is waited for so.
    pub fn by(wait: impl Fn() -> Result<()> + Send + Sync + 'static) -> Barrier {
        Barrier(Some(Box::new(wait)))
    }

    /// Returns when all that was written before is on disk. An error if any of what was written since it was opened is
    /// lost.
    pub fn wait(&self) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |wait| wait())
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Barrier").finish_non_exhaustive()
    }
}
