//! A process's standard streams: sources of its input and sinks of its output.
//!
//! ```text
//!   client                      shim                        container
//!   fifo ──────────────▶ copy ──────────▶ pipe or console ──▶ stdin
//!   fifo, file, driver ◀─ copy ◀───────── pipe or console ◀── stdout, stderr
//! ```
//!
//! - [`target`]: the stream URIs, containerd's and Hoist's, parsed.
//! - [`copy`]: non-blocking copies from one descriptor to another.
//! - [`json_log`]: Docker's `json-file` lines, with rotation; [`readers`]: clients that follow a logged output.
//! - [`open`]: from targets to the container's ends and the shim's copies.
//!
//! Invariants
//! - A slow reader blocks its container, never the shim; buffered bytes are at most one buffer for each stream, and one
//!   for each reader of a log, of which there are at most [`ATTACHED_MAX`].
//! - The container never holds a descriptor of a client's fifo or of a log file.

pub(crate) mod copy;
pub(crate) mod json_log;
pub(crate) mod open;
pub(crate) mod readers;
pub(crate) mod target;

pub(crate) use copy::{Copy, Wants};
pub(crate) use open::{Ends, StdioConfig};

/// How many clients may be attached to a process.
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
