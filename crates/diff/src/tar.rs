//! Tar archives: reading what others wrote, and writing our own.
//!
//! Read are ustar, GNU and PAX (POSIX.1-2001), with long names, large numbers, extended attributes and all
//! forms of sparse files. A size in a PAX record always wins over the header's and bounds the entry: readers
//! that disagree on that can be made to see different files (CVE-2025-62518). A record that is malformed is
//! an error, never skipped; one whose key is no UTF-8 is of a key that is not known.

mod header;
mod pax;
mod reader;
mod writer;

pub use reader::{Entry, Kind, Reader};
pub use writer::Writer;

/// Headers and padding come in blocks of this size.
pub(crate) const BLOCK: usize = 512;
