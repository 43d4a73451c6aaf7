//! systemd's socket activation (sd_listen_fds(3)) and readiness notification (sd_notify(3)), passed on to and from the
//! container's program.
//!
//! ```text
//! program ── READY=1 ─▶ ROOT/ID/notify/notify.sock ─ runtime ── READY=1, MAINPID, BARRIER ─▶ $NOTIFY_SOCKET
//! ```
//!
//! Other notifications of the program are dropped: they would be about processes, and rights, of the host.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use linux::fd_passing::send_with_fd;
use linux::process::PidFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use types::{Context, Result};

use crate::Container;

/// Bytes that are read of a message.
const MESSAGE_LEN_MAX: usize = 4096;

/// How long to wait until systemd has handled the messages before a barrier.
const BARRIER_MAX: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// How many listening sockets this process was given, from descriptor 3 on, and the variables that tell the container's
/// program of them. They say that its pid is 1, as runc assumes too.
pub(super) fn sockets() -> (u32, Vec<String>) {
    let variable = |name: &str| std::env::var(name).ok();
    let is_ours = variable("LISTEN_PID").is_some_and(|pid| pid == std::process::id().to_string());
    let count = variable("LISTEN_FDS").and_then(|count| count.parse::<u16>().ok()).filter(|count| *count > 0);
    match count.filter(|_| is_ours) {
        None => (0, Vec::new()),
        Some(count) => {
            let mut told = vec![format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()];
            told.extend(variable("LISTEN_FDNAMES").map(|names| format!("LISTEN_FDNAMES={names}")));
            (count.into(), told)
        }
    }
}

/// The address of the service manager that awaits readiness; none if the variable is empty.
fn supervisor() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())
}

/// Whether a service manager awaits readiness.
pub(super) fn is_awaited() -> bool {
    supervisor().is_some()
}

/// The container's notification socket, and the service manager's address.
pub(super) struct Readiness {
    socket: UnixDatagram,
    supervisor: OsString,
}

impl AsFd for Readiness {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Readiness {
    /// Listens if readiness is awaited and the container was created for that. To be called before the program starts.
    pub(super) fn listen(container: &Container) -> Result<Option<Readiness>> {
        let Some(supervisor) = supervisor() else { return Ok(None) };
        Ok(container.listen_for_notices()?.map(|socket| Readiness { socket, supervisor }))
    }

    /// Receives a message, and notifies the service manager if it is about readiness, with `main` as the main process
    /// of the service. True if it was.
    pub(super) fn pass_on(&self, main: u32) -> Result<bool> {
        let mut message = [0; MESSAGE_LEN_MAX];
        let len = self.socket.recv(&mut message).context(|| "receive from the container's program")?;
        let ready = message[..len].split(|byte| *byte == b'\n').find(|line| line.starts_with(b"READY="));
        let Some(ready) = ready else { return Ok(false) };
        self.tell(ready, main).context(|| format!("notify {}", self.supervisor.to_string_lossy()))?;
        Ok(true)
    }

    /// Notifies the service manager of a restored program: it has reported readiness before the checkpoint, if it ever
    /// does.
    pub(super) fn was_given(&self, main: u32) -> Result<()> {
        let what = || format!("notify {}", self.supervisor.to_string_lossy());
        self.tell(b"READY=1", main).context(what)
    }

    fn tell(&self, ready: &[u8], main: u32) -> io::Result<()> {
        let to = UnixDatagram::unbound()?;
        to.connect_addr(&address(&self.supervisor)?)?;
        to.send(ready)?;
        to.send(format!("MAINPID={main}").as_bytes())?;
        // A sender that is not the service's main process may exit only once systemd has handled its messages.
        let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        send_with_fd(to.as_fd(), b"BARRIER=1", theirs.as_fd())?;
        drop(theirs);
        loop {
            match poll(&mut [PollFd::new(&ours, PollFlags::empty())], Some(&BARRIER_MAX)) {
                Err(Errno::INTR) => {}
                other => return Ok(other.map(drop)?),
            }
        }
    }

    /// Forwards until the program is ready, or has ended.
    pub(super) fn wait(self, main: u32, program: &PidFd) -> Result<()> {
        loop {
            let mut waited = [PollFd::new(&self.socket, PollFlags::IN), PollFd::new(program, PollFlags::IN)];
            match poll(&mut waited, None) {
                Err(Errno::INTR) => continue,
                other => other.map_err(io::Error::from).context(|| "wait for the container's program")?,
            };
            let [heard, ended] = waited.map(|fd| !fd.revents().is_empty());
            // Messages sent before the end still count.
            if heard && self.pass_on(main)? || ended && !heard {
                return Ok(());
            }
        }
    }
}

/// A path, or with a leading `@` a name in the abstract namespace (unix(7)).
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(name),
    }
}
