//! Log drivers: programs named by `binary://` that take a container's output.
//!
//! The program gets stdout and stderr to read as descriptors 3 and 4, and closes (or writes to) 5
//! when it is ready; the container does not start before that.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal};
use types::{Context, Error, Result};

use crate::stdio::open::Owner;

/// How long a driver may take to get ready.
const READY_MAX: Duration = Duration::from_secs(10);

pub(crate) struct Driver {
    pid: Pid,
}

/// The ends we write to.
pub(crate) struct DriverPipes {
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

impl Driver {
    /// Starts the program and waits until it is ready.
    pub(crate) fn start(program: &Path, args: &[String], owner: Owner<'_>) -> Result<(Driver, DriverPipes)> {
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
        let driver = Driver { pid: Pid::from_child(&child) };
        wait_ready(ready).context(about)?;
        Ok((driver, DriverPipes { stdout, stderr }))
    }
}

impl Drop for Driver {
    /// Its pipes are closed by now. The loop reaps it.
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _gone = rustix::process::kill_process(self.pid, Signal::TERM);
    }
}

fn wait_ready(ready: OwnedFd) -> Result<()> {
    let mut fds = [PollFd::new(&ready, PollFlags::IN)];
    let timeout = Timespec { tv_sec: READY_MAX.as_secs() as i64, tv_nsec: 0 };
    match rustix::event::poll(&mut fds, Some(&timeout)) {
        Ok(0) => Err(Error::deadline_exceeded(format!("not ready after {READY_MAX:?}"))),
        Ok(_) => {
            // A byte or the end of the pipe: both say ready.
            let _ready = std::fs::File::from(ready).read(&mut [0]).context(|| "read the ready pipe")?;
            Ok(())
        }
        Err(error) => Err(std::io::Error::from(error)).context(|| "wait for the ready pipe"),
    }
}
