//! The start of a created container, and its outcome.
//!
//! ```text
//! starter ── a byte ─▶ start ─▶ first process
//!         ◀─ an error, or end of file at exec ─ start.answer ◀─
//! ```
//!
//! Two fifos. The first process opens them before it loads its filter, under which it then needs only read(2) and
//! write(2): a socket would need accept4(2), which many filters forbid.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use linux::process::wait_readable;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use types::{Context, Error, Result};

use crate::state::StateDir;

/// Exists until the container is started.
pub(crate) const START: &str = "start";
const ANSWER: &str = "start.answer";

/// The first process's side.
pub(crate) struct Start {
    go: OwnedFd,
    answer: OwnedFd,
}

impl Start {
    pub(crate) fn make(dir: &StateDir) -> Result<Start> {
        let make = |name: &str| {
            let path = dir.path(name);
            let mode = Mode::RUSR | Mode::WUSR;
            let made = mknodat(CWD, &path, FileType::Fifo, mode, 0).map_err(io::Error::from);
            made.and_then(|()| open(&path, OFlags::RDWR)).context(|| format!("make {}", path.display()))
        };
        Ok(Start { go: make(START)?, answer: make(ANSWER)? })
    }

    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.go.as_fd(), self.answer.as_fd()]
    }

    /// Waits to be started.
    pub(crate) fn wait(&self) -> io::Result<()> {
        rustix::io::retry_on_intr(|| rustix::io::read(&self.go, &mut [0; 1]))?;
        Ok(())
    }

    /// Reports why the program is not executed.
    pub(crate) fn answer(&self, words: &str) {
        // The starter may have given up waiting.
        let _ = rustix::io::write(&self.answer, words.as_bytes());
    }
}

/// The side of the caller of start.
pub(crate) struct Starter {
    go: OwnedFd,
    answer: File,
}

impl Starter {
    pub(crate) fn open(dir: &StateDir) -> Result<Starter> {
        let open = |name: &str, flags: OFlags| {
            let path = dir.path(name);
            open(&path, flags | OFlags::NONBLOCK).context(|| format!("open {}", path.display()))
        };
        // Also for reading, so that the fifo always has a reader.
        Ok(Starter { answer: open(ANSWER, OFlags::RDONLY)?.into(), go: open(START, OFlags::RDWR)? })
    }

    /// Claims the start: a second starter fails from here on.
    pub(crate) fn take(&self, dir: &StateDir) -> io::Result<()> {
        fs::remove_file(dir.path(START))?;
        fs::remove_file(dir.path(ANSWER))
    }

    /// Lets the first process go on. Returns its error; empty if its program has begun, or may still begin when
    /// `patience` is over. `FailedPrecondition` if it had ended before.
    pub(crate) fn go(mut self, patience: Option<Duration>) -> Result<String> {
        let what = || "start the first process";
        let deadline = patience.map(|patience| Instant::now() + patience);
        rustix::io::write(&self.go, b"g").map_err(io::Error::from).context(what)?;
        let mut said = Vec::new();
        loop {
            match self.answer.read_to_end(&mut said) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => {
                    other.context(what)?;
                    break;
                }
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if !wait_readable(self.answer.as_fd(), left).context(what)? {
                return Ok(String::new());
            }
        }
        let is_unread = rustix::io::ioctl_fionread(&self.go).map_err(io::Error::from).context(what)? > 0;
        if is_unread {
            return Err(Error::failed_precondition("its first process was ended before its program began"));
        }
        Ok(String::from_utf8_lossy(&said).into_owned())
    }
}

fn open(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, flags | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use types::ErrorKind;

    use super::*;

    /// Runs `act` as the first process, and returns the starter's result.
    fn start(act: impl FnOnce(Start) + Send) -> Result<String> {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::create(root.path(), "one").unwrap();
        let first = Start::make(&dir).unwrap();
        let starter = Starter::open(&dir).unwrap();
        starter.take(&dir).unwrap();
        assert!(starter.take(&dir).is_err(), "it is started once");
        assert_eq!(fs::read_dir(dir.path("")).unwrap().count(), 0);
        thread::scope(|scope| {
            scope.spawn(|| act(first));
            starter.go(None)
        })
    }

    #[test]
    fn an_end_of_file_without_an_error_means_that_the_program_runs() {
        assert_eq!(start(|first| first.wait().unwrap()).unwrap(), "");
    }

    #[test]
    fn start_returns_the_error_of_the_first_process() {
        let said = start(|first| {
            first.wait().unwrap();
            first.answer("5:no such file");
        });
        assert_eq!(said.unwrap(), "5:no such file");
    }

    #[test]
    fn start_fails_if_the_first_process_has_ended() {
        assert_eq!(start(drop).unwrap_err().kind(), ErrorKind::FailedPrecondition);
    }

    #[test]
    fn start_does_not_wait_longer_than_its_limit() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::create(root.path(), "one").unwrap();
        let first = Start::make(&dir).unwrap();
        let starter = Starter::open(&dir).unwrap();
        assert_eq!(starter.go(Some(Duration::ZERO)).unwrap(), "");
        first.wait().unwrap();
    }
}
