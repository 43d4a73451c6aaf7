//! Signals as descriptors.
#![expect(unsafe_code, reason = "signal masks and signalfd have no safe wrapper in rustix")]

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use types::{Context, Error, Result};

/// A descriptor that becomes readable when a child changes its state.
///
/// Blocks `SIGCHLD` in the calling thread: programs that are started afterwards inherit the mask, and must reset it.
pub fn child_signals() -> Result<OwnedFd> {
    descriptor(&[libc::SIGCHLD])
}

/// Reverts the blocking of [`child_signals`], in a forked copy of the process.
pub fn unblock_child_signals() -> Result<()> {
    // SAFETY: `set` is initialised by sigemptyset before anything reads it, and outlives the calls.
    let result = unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()).context(|| "unblock SIGCHLD") }
}

/// A descriptor that becomes readable when a signal arrives that is to be forwarded to the caller's program: all but
/// those that are about the caller itself. [`next`] takes them.
///
/// Blocks them in the calling thread, as [`child_signals`] does.
pub fn forwarded_signals() -> Result<OwnedFd> {
    const OUR_OWN: [i32; 8] = [
        libc::SIGCHLD,
        libc::SIGPIPE,
        libc::SIGURG,
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGILL,
        libc::SIGFPE,
        libc::SIGABRT,
    ];
    let signals: Vec<i32> = (1..=64).filter(|signal| !OUR_OWN.contains(signal)).collect();
    descriptor(&signals)
}

/// Makes the calling process, and its forked copies, ignore `SIGUSR1`. containerd's programs answer it with a dump of
/// their threads, and an operator who sends it to all of them must not end this one. It is caught, and neither blocked
/// nor ignored, as programs would inherit that (execve(2)). A handler that is installed later takes its place.
pub fn ignore_usr1() {
    extern "C" fn pass(_signal: libc::c_int) {}
    // SAFETY: a handler that does nothing may run anywhere (signal-safety(7)). Calls that it interrupts go on (signal(2)).
    unsafe { libc::signal(libc::SIGUSR1, pass as *const () as libc::sighandler_t) };
}

fn descriptor(signals: &[i32]) -> Result<OwnedFd> {
    // SAFETY: `set` is initialised by sigemptyset before anything reads it, and outlives the calls;
    // a descriptor that signalfd returns is new and nobody else's.
    let fd = unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        for signal in signals {
            // The C library reserves two real-time signals, and refuses them.
            libc::sigaddset(&mut set, *signal);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error()).context(|| "block signals");
        }
        let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error()).context(|| "open a signalfd");
        }
        OwnedFd::from_raw_fd(fd)
    };
    Ok(fd)
}

/// Takes the next pending signal of a descriptor of this module.
pub fn next(signals: impl AsFd) -> io::Result<Option<Signal>> {
    // `struct signalfd_siginfo`, which begins with the number.
    let mut buffer = [0; 128];
    match rustix::io::read(&signals, &mut buffer) {
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        other => {
            other?;
            let [a, b, c, d, ..] = buffer;
            Ok(Some(Signal(u32::from_ne_bytes([a, b, c, d]).cast_signed())))
        }
    }
}

/// Takes all pending signals, so that the descriptor is quiet until the next one.
pub fn drain(signals: impl AsFd) {
    let mut buffer = [0; 8 * 128];
    while let Ok(1..) = rustix::io::read(&signals, &mut buffer) {}
}

/// The number of [`Signal::KILL`], for calls of runtimes and shims, which pass numbers.
pub const SIGKILL: u32 = libc::SIGKILL.cast_unsigned();

/// A signal's number, real-time signals included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(i32);

impl Signal {
    pub const KILL: Signal = Signal(libc::SIGKILL);
    pub const TERM: Signal = Signal(libc::SIGTERM);
    /// SIGWINCH: the terminal's size has changed.
    pub const WINDOW: Signal = Signal(libc::SIGWINCH);

    /// `InvalidArgument` for numbers that are no signal.
    pub fn new(number: u32) -> Result<Signal> {
        let number = i32::try_from(number).ok().filter(|number| (1..=64).contains(number));
        number.map(Signal).ok_or_else(|| Error::invalid_argument("signal numbers are 1 to 64"))
    }

    /// `KILL`, `SIGKILL`, `kill`, `9`, `SIGRTMIN+3` or `SIGRTMAX-1` (signal(7)).
    pub fn parse(word: &str) -> Result<Signal> {
        const NAMES: [&str; 31] = [
            "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
            "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU",
            "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
        ];
        if let Ok(number) = word.parse() {
            return Signal::new(number);
        }
        let upper = word.to_ascii_uppercase();
        let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
        let found = (1..).zip(NAMES).find(|(_, name)| *name == bare).map(|(number, _)| Signal(number));
        let found = found.or_else(|| Signal::real_time(bare));
        found.ok_or_else(|| Error::invalid_argument(format!("invalid signal: {word}")))
    }

    /// Real-time signals, which are counted from either end. The first two are the C library's.
    fn real_time(bare: &str) -> Option<Signal> {
        const RANGE: std::ops::RangeInclusive<i32> = 34..=64;
        let number = match (bare.strip_prefix("RTMIN"), bare.strip_prefix("RTMAX")) {
            (Some(""), _) => *RANGE.start(),
            (_, Some("")) => *RANGE.end(),
            (Some(above), _) => RANGE.start() + above.strip_prefix('+')?.parse::<u8>().ok().map(i32::from)?,
            (_, Some(below)) => RANGE.end() - below.strip_prefix('-')?.parse::<u8>().ok().map(i32::from)?,
            (None, None) => return None,
        };
        RANGE.contains(&number).then_some(Signal(number))
    }

    pub fn number(self) -> i32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;
    use crate::process::PidFd;

    #[test]
    fn sigusr1_is_ignored_and_still_ends_started_programs() {
        ignore_usr1();
        let own = PidFd::open(std::process::id()).unwrap();
        own.signal(libc::SIGUSR1.cast_unsigned()).unwrap();
        let ended = Command::new("sh").args(["-c", "kill -USR1 $$"]).status().unwrap();
        assert_eq!(ended.signal(), Some(libc::SIGUSR1));
    }
}
