//! A reader and a writer of tar archives.
//!
//! The reader understands ustar, GNU and PAX (POSIX.1-2001), with long names, large numbers, extended attributes and
//! all forms of sparse files. A size in a PAX record always overrides the header's and bounds the entry: readers that
//! disagree on it can be made to see different files (CVE-2025-62518). A malformed record is an error; a record whose
//! key is not UTF-8 is ignored like any unknown key.

mod header;
mod pax;
mod reader;
mod writer;

pub use reader::{Entry, Kind, Reader};
pub use writer::Writer;

/// Bytes of a block: headers are blocks, and data is padded to whole ones.
pub(crate) const BLOCK: usize = 512;
