//! The foreground: until the container's process ends, signals that we get go to it, bytes go between our
//! streams and its terminal, and who waits for it to be ready is told.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use linux::process::{ExitStatus, PidFd};
use linux::signal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use types::{Context, ErrorKind, Result};

use super::activation::Readiness;

/// Signals that are passed on: they wait here from before the process is made, so that none is lost.
pub(super) struct Signals(OwnedFd);

impl Signals {
    pub(super) fn take() -> Result<Signals> {
        signal::forwarded_signals().map(Signals)
    }
}

/// Waits for a child's end, and carries signals, and bytes if it has a terminal.
pub(super) fn attend(
    signals: &Signals,
    console: Option<OwnedFd>,
    readiness: Option<Readiness>,
    pidfd: &PidFd,
) -> Result<ExitStatus> {
    let raw = console.as_ref().map(Raw::enter).transpose()?;
    carry(signals, console.as_ref(), readiness, pidfd).context(|| "attend the process")?;
    drop(raw);
    pidfd.wait()
}

fn carry(
    signals: &Signals,
    master: Option<&OwnedFd>,
    mut readiness: Option<Readiness>,
    pidfd: &PidFd,
) -> io::Result<()> {
    let stdin = io::stdin();
    let (mut stdin_open, mut master_open) = (master.is_some(), master.is_some());
    loop {
        let wish = |open: bool| if open { PollFlags::IN } else { PollFlags::empty() };
        let mut waited = [
            PollFd::new(pidfd, PollFlags::IN),
            PollFd::new(&signals.0, PollFlags::IN),
            PollFd::from_borrowed_fd(stdin.as_fd(), wish(stdin_open)),
            // Without a terminal the pidfd stands in for one.
            PollFd::from_borrowed_fd(master.map_or(pidfd.as_fd(), AsFd::as_fd), wish(master_open)),
            PollFd::from_borrowed_fd(
                readiness.as_ref().map_or(pidfd.as_fd(), AsFd::as_fd),
                wish(readiness.is_some()),
            ),
        ];
        match poll(&mut waited, None) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        let [ended, signalled, from_us, from_container, noticed] = waited.map(|fd| !fd.revents().is_empty());
        if signalled {
            pass_on(signals, master, pidfd)?;
        }
        if let Some(master) = master {
            if master_open && from_container {
                master_open = copy(master.as_fd(), io::stdout().as_fd())?;
            }
            if stdin_open && from_us {
                stdin_open = copy(stdin.as_fd(), master.as_fd())?;
            }
        }
        // Who watches this service watches us. That nobody can be told is no reason to end.
        if noticed && readiness.as_ref().is_some_and(|it| it.pass_on(std::process::id()).unwrap_or(true)) {
            readiness = None;
        }
        // What the process wrote before its end comes first.
        if ended && !(master_open && from_container) {
            return Ok(());
        }
    }
}

fn pass_on(signals: &Signals, master: Option<&OwnedFd>, pidfd: &PidFd) -> io::Result<()> {
    while let Some(signal) = signal::next(&signals.0)? {
        if signal == signal::Signal::WINDOW {
            if let (Some(master), Ok(size)) = (master, tcgetwinsize(io::stdin())) {
                // A terminal whose process has ended needs no size.
                let _ = linux::tty::resize(master.as_fd(), size.ws_row, size.ws_col);
            }
            continue;
        }
        match pidfd.signal(signal.number().unsigned_abs()) {
            Err(error) if !error.is(ErrorKind::NotFound) => return Err(io::Error::other(error)),
            _ => {}
        }
    }
    Ok(())
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
    fn enter(master: &OwnedFd) -> Result<Raw> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(Raw { before: None });
        }
        let enter = || -> io::Result<Termios> {
            let before = tcgetattr(&stdin)?;
            let mut raw = before.clone();
            raw.make_raw();
            tcsetattr(&stdin, OptionalActions::Now, &raw)?;
            Ok(before)
        };
        let before = enter().context(|| "put the terminal into raw mode")?;
        if let Ok(size) = tcgetwinsize(&stdin) {
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
