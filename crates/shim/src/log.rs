//! The shim's own log: lines to the fifo `log` of its bundle, which the daemon reads.
//!
//! Without a reader lines are dropped; the shim neither waits nor fails.

use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use rustix::fs::OFlags;
use types::Timestamp;

pub(crate) struct Log {
    path: PathBuf,
    fifo: Option<File>,
    debug: bool,
}

impl Log {
    pub(crate) fn new(path: PathBuf, debug: bool) -> Log {
        Log { path, fifo: None, debug }
    }

    pub(crate) fn debug(&mut self, message: impl Display) {
        if self.debug {
            self.line("debug", &message);
        }
    }

    pub(crate) fn warn(&mut self, message: impl Display) {
        self.line("warning", &message);
    }

    fn line(&mut self, level: &str, message: &dyn Display) {
        let line = format!("time=\"{}\" level={level} msg={:?}\n", Timestamp::now(), message.to_string());
        // The old reader may be gone and a new one there, so a failed write is tried once more.
        for _ in 0..2 {
            if self.fifo.is_none() {
                let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits();
                self.fifo = OpenOptions::new().write(true).custom_flags(flags as i32).open(&self.path).ok();
            }
            let Some(fifo) = &mut self.fifo else { return };
            match fifo.write_all(line.as_bytes()) {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => self.fifo = None,
                _ => return,
            }
        }
    }
}
