//! Where a process's input comes from and where its output goes.
//!
//! ```text
//!   client                      shim                        container
//!   fifo ──────────────▶ copy ──────────▶ pipe or console ──▶ stdin
//!   fifo, file, driver ◀─ copy ◀───────── pipe or console ◀── stdout, stderr
//! ```
//!
//! - [`target`]: the URIs of containerd, and ours, parsed.
//! - [`copy`]: bytes from one descriptor to another, never waiting.
//! - [`json_log`]: Docker's `json-file` lines, with rotation; [`readers`]: who looks at them as they come.
//! - [`open`]: from targets to the ends that the container gets and the copies that stay here.
//!
//! Invariants
//! - A reader that is slow holds up its container, never the shim; what is read and not yet written
//!   is at most one buffer per stream, and of a log one per reader, of whom there are [`ATTACHED_MAX`] at most.
//! - The container never holds a descriptor of a client's fifo or of a log file.

pub(crate) mod copy;
pub(crate) mod json_log;
pub(crate) mod open;
pub(crate) mod readers;
pub(crate) mod target;

pub(crate) use copy::{Copy, Wants};
pub(crate) use open::{Ends, StdioConfig};

/// How many may look at a process at once, or type.
pub(crate) const ATTACHED_MAX: usize = 16;

/// One of the three standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stream {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
}

impl Stream {
    pub(crate) const ALL: [Stream; 3] = [Stream::Stdin, Stream::Stdout, Stream::Stderr];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Stream::Stdin => "stdin",
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}
