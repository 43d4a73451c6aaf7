//! Log drivers: programs named by `binary://` that take a container's output.
//!
//! The program reads stdout and stderr from descriptors 3 and 4, and closes 5 (or writes to it) when it is ready; the
//! container does not start before that. A `binary-v2://` program must write a byte, as closing the pipe may also mean
//! that it died.
//!
//! ```text
//! start ──▶ running ──streams end──▶ leaving ──12 s──▶ SIGTERM ──12 s──▶ SIGKILL
//!                                       └── exits by itself: gone
//! ```

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use linux::process::wait_readable;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use types::{Context, Error, Result};

use crate::stdio::open::Owner;
use crate::stdio::target::Ready;

/// How long a driver may take to become ready.
const READY_MAX: Duration = Duration::from_secs(10);

/// How long a driver may take to write the rest of its input, and again to obey SIGTERM.
const LEAVE_MAX: Duration = Duration::from_secs(12);

/// A running driver. Dropped, it gets SIGTERM, as when its container could not be created.
pub(crate) struct Driver {
    process: Process,
}

/// A driver whose streams have ended.
pub(crate) struct Leaving {
    process: Process,
    deadline: Instant,
    next: Signal,
}

/// By pidfd: the loop reaps every child, so that a pid may be reused.
struct Process(OwnedFd);

impl Process {
    fn signal(&self, signal: Signal) {
        // An error means that it has ended.
        let _gone = pidfd_send_signal(&self.0, signal);
    }
}

impl Drop for Process {
    /// Ends a driver that nothing waits for any more, and that might wait for ever.
    fn drop(&mut self) {
        self.signal(Signal::TERM);
    }
}

/// The writing ends of the driver's pipes.
pub(crate) struct DriverPipes {
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

impl Driver {
    /// Starts the program, and waits until it is ready.
    pub(crate) fn start(
        program: &Path,
        args: &[String],
        ready_by: Ready,
        owner: Owner<'_>,
    ) -> Result<(Driver, DriverPipes)> {
        let about = || format!("start log driver {}", program.display());
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(std::io::Error::from).context(about);
        let (stdout_theirs, stdout) = pipe()?;
        let (stderr_theirs, stderr) = pipe()?;
        let (ready, ready_theirs) = pipe()?;
        for end in [&stdout, &stderr] {
            rustix::io::ioctl_fionbio(end, true).map_err(std::io::Error::from).context(about)?;
        }
        let mut command = Command::new(program);
        command
            .args(args)
            .env("CONTAINER_ID", owner.container)
            .env("CONTAINER_NAMESPACE", owner.namespace)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let descriptors = vec![(stdout_theirs, 3), (stderr_theirs, 4), (ready_theirs, 5)];
        let child = linux::spawn::with_descriptors(command, descriptors).context(about)?;
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
            .map_err(std::io::Error::from)
            .context(about)?;
        let driver = Driver { process: Process(process) };
        if let Err(error) = wait_ready(ready, ready_by) {
            driver.process.signal(Signal::KILL);
            return Err(error).context(about);
        }
        Ok((driver, DriverPipes { stdout, stderr }))
    }
}

impl Driver {
    /// To be called once its pipes are closed.
    pub(crate) fn leave(self) -> Leaving {
        Leaving { process: self.process, deadline: Instant::now() + LEAVE_MAX, next: Signal::TERM }
    }
}

impl Leaving {
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether it is still running. Signals it at its deadline.
    pub(crate) fn is_running(&mut self) -> bool {
        let now = Instant::now();
        if has_ended(self.process.0.as_fd(), 0) {
            return false;
        }
        if now >= self.deadline {
            self.process.signal(self.next);
            self.deadline = now + LEAVE_MAX;
            self.next = Signal::KILL;
        }
        true
    }
}

/// Waits until all have ended, and signals them at their deadlines.
pub(crate) fn wait_for_exit(mut drivers: Vec<Leaving>) {
    while let Some(driver) = drivers.first() {
        // For a second at most: another driver's deadline may come before this one ends.
        has_ended(driver.process.0.as_fd(), 1);
        drivers.retain_mut(Leaving::is_running);
    }
}

/// Whether a process has ended, waiting up to so many seconds: its pidfd is readable then.
fn has_ended(process: std::os::fd::BorrowedFd<'_>, seconds: i64) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(process, PollFlags::IN)];
    matches!(rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })), Ok(1..))
}

fn wait_ready(ready: OwnedFd, ready_by: Ready) -> Result<()> {
    if !wait_readable(ready.as_fd(), Some(READY_MAX)).context(|| "wait for the ready pipe")? {
        return Err(Error::deadline_exceeded(format!("not ready after {READY_MAX:?}")));
    }
    let len = std::fs::File::from(ready).read(&mut [0]).context(|| "read the ready pipe")?;
    match (ready_by, len) {
        (Ready::Writes, 0) => {
            Err(Error::unavailable("it did not say that it is ready, and closed the pipe or ended"))
        }
        _ => Ok(()),
    }
}
