//! Reading a blob for a caller that may be cancelled.

use ::content::BlobReader;
use stdx::{CancelToken, Cancelled};
use types::{Error, Result};

/// Fails reads once the caller is cancelled.
pub(super) struct CancellableReader {
    pub(super) reader: Box<dyn BlobReader>,
    pub(super) cancel: CancelToken,
}

impl std::io::Read for CancellableReader {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        self.cancel.check()?;
        self.reader.read(bytes)
    }
}

impl BlobReader for CancellableReader {
    fn size(&self) -> u64 {
        self.reader.size()
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<usize> {
        self.cancel.check().map_err(cancelled)?;
        self.reader.read_at(bytes, offset)
    }

    fn as_file(&self) -> Option<&std::fs::File> {
        self.reader.as_file()
    }
}

pub(super) fn cancelled(cancelled: Cancelled) -> Error {
    Error::cancelled(cancelled.to_string())
}
