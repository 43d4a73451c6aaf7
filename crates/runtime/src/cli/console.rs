//! The foreground: bytes between our streams and the container's terminal, until its process ends.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use linux::process::{ExitStatus, PidFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use types::{Context, Result};

/// Waits for a child's end, and carries bytes if it has a terminal.
pub(super) fn attend(console: Option<OwnedFd>, pidfd: &PidFd) -> Result<ExitStatus> {
    let Some(master) = console else { return pidfd.wait() };
    let stdin = io::stdin();
    let raw = Raw::enter(stdin.as_fd(), &master)?;
    carry(stdin.as_fd(), &master, pidfd).context(|| "carry bytes to the terminal")?;
    drop(raw);
    pidfd.wait()
}

fn carry(stdin: BorrowedFd<'_>, master: &OwnedFd, pidfd: &PidFd) -> io::Result<()> {
    let mut stdin_open = true;
    loop {
        let mut waited = [
            PollFd::new(master, PollFlags::IN),
            PollFd::new(pidfd, PollFlags::IN),
            PollFd::from_borrowed_fd(stdin, if stdin_open { PollFlags::IN } else { PollFlags::empty() }),
        ];
        match poll(&mut waited, None) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        let [from_container, ended, from_us] = waited.map(|fd| fd.revents());
        if !from_container.is_empty() && !copy(master.as_fd(), io::stdout().as_fd())? {
            return Ok(());
        }
        if stdin_open && !from_us.is_empty() {
            stdin_open = copy(stdin, master.as_fd())?;
        }
        if !ended.is_empty() && from_container.is_empty() {
            return Ok(());
        }
    }
}

/// False at the end. A terminal whose other end is closed answers EIO.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<bool> {
    let mut buffer = [0; 8192];
    let len = match rustix::io::read(from, &mut buffer) {
        Ok(0) | Err(Errno::IO) => return Ok(false),
        other => other?,
    };
    let mut rest = &buffer[..len];
    while !rest.is_empty() {
        match rustix::io::write(to, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(true)
}

/// Our own terminal in raw mode, until dropped.
struct Raw {
    before: Option<Termios>,
}

impl Raw {
    fn enter(stdin: BorrowedFd<'_>, master: &OwnedFd) -> Result<Raw> {
        if !io::stdin().is_terminal() {
            return Ok(Raw { before: None });
        }
        let enter = || -> io::Result<Termios> {
            let before = tcgetattr(stdin)?;
            let mut raw = before.clone();
            raw.make_raw();
            tcsetattr(stdin, OptionalActions::Now, &raw)?;
            Ok(before)
        };
        let before = enter().context(|| "put the terminal into raw mode")?;
        if let Ok(size) = tcgetwinsize(stdin) {
            linux::tty::resize(master.as_fd(), size.ws_row, size.ws_col)?;
        }
        Ok(Raw { before: Some(before) })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // The user's terminal may be gone; then there is nothing to restore.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}
