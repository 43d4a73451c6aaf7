//! Pseudo-terminals (pty(7)).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::termios::{OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr};
use types::{Context, Error, Result};

/// The magic number of devpts (`linux/magic.h`).
const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;

/// Both ends of a pseudo-terminal.
#[derive(Debug)]
pub struct Pty {
    pub master: OwnedFd,
    pub slave: OwnedFd,
    /// The number below `/dev/pts`.
    pub number: u32,
}

impl Pty {
    /// Opens a terminal in the devpts instance whose `ptmx` is named beneath `dir`.
    ///
    /// The instance may be in a hostile root, so the opened file is checked to be a terminal of devpts before it is
    /// used, and the slave is opened through the master, not by a path.
    pub fn open(dir: BorrowedFd<'_>, ptmx: &str) -> Result<Pty> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let master = openat(dir, ptmx, flags | OFlags::NOFOLLOW, Mode::empty()).map_err(io::Error::from);
        let master = master.context(|| format!("open terminal {ptmx}"))?;
        let kind = rustix::fs::fstatfs(&master)
            .map_err(io::Error::from)
            .context(|| "fstatfs of the terminal")?
            .f_type;
        if u64::try_from(kind).ok() != Some(DEVPTS_SUPER_MAGIC) {
            return Err(Error::permission_denied(format!(
                "{ptmx} of the container is not on a devpts file system"
            )));
        }
        rustix::pty::unlockpt(&master).map_err(io::Error::from).context(|| "unlock terminal")?;
        let slave = rustix::pty::ioctl_tiocgptpeer(
            &master,
            rustix::pty::OpenptFlags::RDWR
                | rustix::pty::OpenptFlags::NOCTTY
                | rustix::pty::OpenptFlags::CLOEXEC,
        );
        let slave = slave.map_err(io::Error::from).context(|| "open the terminal's other end")?;
        let number = number(master.as_fd()).context(|| "ask for the terminal's number")?;
        Ok(Pty { master, slave, number })
    }
}

#[expect(unsafe_code, reason = "rustix gives the number only as a path")]
fn number(master: BorrowedFd<'_>) -> io::Result<u32> {
    use std::os::fd::AsRawFd;
    let mut number: libc::c_uint = 0;
    // SAFETY: TIOCGPTN writes one unsigned int, which lives across the call.
    let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw mut number) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(number) }
}

/// Turns the translation of line ends off (`ONLCR` of termios(3)).
pub fn keep_line_ends(terminal: BorrowedFd<'_>) -> Result<()> {
    let change = || -> io::Result<()> {
        let mut modes = tcgetattr(terminal)?;
        modes.output_modes.remove(OutputModes::ONLCR);
        Ok(tcsetattr(terminal, OptionalActions::Now, &modes)?)
    };
    change().context(|| "set up the terminal")
}

/// Sets the size of a terminal, in characters.
pub fn resize(terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size).map_err(io::Error::from).context(|| "resize terminal")
}

/// The ioctl(2) request of [`control`]: `TIOCSCTTY` (`asm-generic/ioctls.h`).
pub const CONTROL: u64 = 0x540e;

/// Makes the terminal the controlling one of the calling process, which must lead a session without one.
pub fn control(terminal: BorrowedFd<'_>) -> Result<()> {
    rustix::process::ioctl_tiocsctty(terminal)
        .map_err(io::Error::from)
        .context(|| "take the controlling terminal")
}
