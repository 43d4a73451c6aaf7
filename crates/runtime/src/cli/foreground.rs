//! The foreground of `run`, `exec` and `restore`: until the container's process ends, this process forwards signals to
//! it, relays its terminal, and passes on its readiness.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use linux::process::{ExitStatus, PidFd};
use linux::signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, OutputModes, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use types::{Context, ErrorKind, Result};

use super::activation::Readiness;

/// Signals to forward, blocked from before the process is made, so that none is lost.
pub(super) struct Signals(OwnedFd);

impl Signals {
    pub(super) fn take() -> Result<Signals> {
        signal::forwarded_signals().map(Signals)
    }
}

/// Forwards signals, and relays the terminal if there is one, until the child ends.
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
    let (stdin, stdout) = (io::stdin(), io::stdout());
    if let Some(master) = master {
        // A program that does not read its terminal must not keep this process from signals and its end.
        rustix::io::ioctl_fionbio(master, true)?;
    }
    let (mut input, mut output) = (Flow::new(master.is_some()), Flow::new(master.is_some()));
    let mut has_ended = false;
    loop {
        let on_master = output.wish_to_read() | input.wish_to_write();
        let mut waited = [
            waited(pidfd.as_fd(), if has_ended { PollFlags::empty() } else { PollFlags::IN }, pidfd),
            waited(signals.0.as_fd(), PollFlags::IN, pidfd),
            waited(stdin.as_fd(), input.wish_to_read(), pidfd),
            waited(master.map_or(pidfd.as_fd(), AsFd::as_fd), on_master, pidfd),
            waited(stdout.as_fd(), output.wish_to_write(), pidfd),
            waited(
                readiness.as_ref().map_or(pidfd.as_fd(), AsFd::as_fd),
                if readiness.is_some() { PollFlags::IN } else { PollFlags::empty() },
                pidfd,
            ),
        ];
        // The process's last output is in the terminal by now, and is still relayed.
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let timeout = (has_ended && output.wish_to_write().is_empty()).then_some(&at_once);
        match poll(&mut waited, timeout) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        // Input for a terminal whose other end is closed is dropped: a write would neither succeed nor fail.
        if has_ended || waited[3].revents().contains(PollFlags::HUP) {
            input = Flow::new(false);
        }
        let [ended, signalled, from_us, at_master, to_us, noticed] =
            waited.map(|fd| !fd.revents().is_empty());
        if signalled {
            pass_on(signals, master, pidfd)?;
        }
        if let Some(master) = master {
            if from_us {
                input.read(stdin.as_fd())?;
            }
            if at_master {
                input.write(master.as_fd())?;
                output.read(master.as_fd())?;
            }
            if to_us {
                output.write(stdout.as_fd())?;
            }
        }
        // With a service manager this process is the main one. A failed notification does not end the relay.
        if noticed && readiness.as_ref().is_some_and(|it| it.pass_on(std::process::id()).unwrap_or(true)) {
            readiness = None;
        }
        if has_ended && !at_master && output.wish_to_write().is_empty() {
            return Ok(());
        }
        has_ended |= ended;
    }
}

/// What to poll a descriptor for. Without any interest, poll(2) would still report a closed peer again and again; then
/// the pidfd stands in for it.
fn waited<'a>(fd: BorrowedFd<'a>, wish: PollFlags, pidfd: &'a PidFd) -> PollFd<'a> {
    PollFd::from_borrowed_fd(if wish.is_empty() { pidfd.as_fd() } else { fd }, wish)
}

/// A relay from one descriptor to another, both non-blocking.
struct Flow {
    /// Bytes that were read and are not written yet.
    rest: Vec<u8>,
    is_open: bool,
    /// The output is closed: input is read, so that its writer goes on, and dropped.
    is_lost: bool,
}

impl Flow {
    /// Bytes of one write, which a pipe takes as a whole or not at all (`PIPE_BUF`).
    const CHUNK: usize = 4096;

    fn new(is_open: bool) -> Flow {
        Flow { rest: Vec::new(), is_open, is_lost: false }
    }

    fn wish_to_read(&self) -> PollFlags {
        if self.is_open && self.rest.is_empty() { PollFlags::IN } else { PollFlags::empty() }
    }

    fn wish_to_write(&self) -> PollFlags {
        if self.rest.is_empty() { PollFlags::empty() } else { PollFlags::OUT }
    }

    /// A terminal whose other end is closed fails with EIO.
    fn read(&mut self, from: BorrowedFd<'_>) -> io::Result<()> {
        if self.wish_to_read().is_empty() {
            return Ok(());
        }
        let mut buffer = [0; Flow::CHUNK];
        match rustix::io::read(from, &mut buffer) {
            Ok(0) | Err(Errno::IO) => self.is_open = false,
            Err(Errno::INTR | Errno::AGAIN) => {}
            read => {
                let len = read?;
                if !self.is_lost {
                    self.rest.extend_from_slice(&buffer[..len]);
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, to: BorrowedFd<'_>) -> io::Result<()> {
        if self.rest.is_empty() {
            return Ok(());
        }
        match rustix::io::write(to, &self.rest) {
            // A terminal whose other end is closed.
            Err(Errno::IO) => *self = Flow::new(false),
            Err(Errno::PIPE) => {
                self.rest.clear();
                self.is_lost = true;
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            written => drop(self.rest.drain(..written?)),
        }
        Ok(())
    }
}

fn pass_on(signals: &Signals, master: Option<&OwnedFd>, pidfd: &PidFd) -> io::Result<()> {
    while let Some(signal) = signal::next(&signals.0)? {
        if signal == signal::Signal::WINDOW {
            if let (Some(master), Ok(size)) = (master, tcgetwinsize(io::stdin())) {
                // The process of the terminal may have ended.
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

/// The caller's terminal in raw mode, except for the translation of line ends, until dropped.
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
            // The container's terminal does not translate line ends: see `Stdio::Terminal`.
            raw.output_modes.insert(OutputModes::OPOST);
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
            // The caller's terminal may be gone; then there is nothing to restore.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}
