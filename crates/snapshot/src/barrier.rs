//! Files before records: the files of a snapshot are on disk before the record that refers to them.
//!
//! ```text
//! open ─▶ files are written, by any process ─▶ wait ─▶ records
//! ```
//!
//! The kernel reports a failed writeback once to each descriptor that was open at the time, or, if none has seen it, to
//! the first one opened later. A descriptor that is opened only for syncfs(2) may be the second, and misses the error
//! (Linux, `lib/errseq.c`). So a barrier must be opened before the first file is written.

use std::fmt;
use std::fs::File;
use std::path::Path;

use types::{Context, Result};

/// Waits until files are on disk. The default has nothing to wait for.
#[derive(Default)]
pub struct Barrier(Option<Wait>);

type Wait = Box<dyn Fn() -> Result<()> + Send + Sync>;

impl Barrier {
    /// A barrier for all files of a directory's file system.
    pub fn open(directory: &Path) -> Result<Barrier> {
        let directory = File::open(directory)
            .context(|| format!("open {}, to have it on disk later", directory.display()))?;
        Ok(Barrier::by(move || {
            rustix::fs::syncfs(&directory)
                .map_err(std::io::Error::from)
                .context(|| "have the files of snapshots on disk")
        }))
    }

    /// A barrier whose [`Barrier::wait`] calls this function.
    pub fn by(wait: impl Fn() -> Result<()> + Send + Sync + 'static) -> Barrier {
        Barrier(Some(Box::new(wait)))
    }

    /// Returns when all that was written before the call is on disk. An error if a write since the barrier was opened
    /// was lost.
    pub fn wait(&self) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |wait| wait())
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Barrier").finish_non_exhaustive()
    }
}
