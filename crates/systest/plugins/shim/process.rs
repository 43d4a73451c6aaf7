//! A process of the container: its first, or one of `Exec`.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use api::shim::types::Status;
use linux::process::PidFd;
use prost_types::Timestamp;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use types::spec::runtime::Process as Program;
use types::{Context, Error, Result};

/// How long a process may take to become its program.
const START_MAX: Duration = Duration::from_secs(5);

pub(crate) struct Process {
    program: Program,
    pub(crate) io: Io,
    /// The socket to `init`, which waits on it for the start, and reports on it why it cannot execute the program.
    gate: Option<UnixStream>,
    spawned: Option<Spawned>,
    /// Whether the client has called `CloseIO`.
    stdin_ends: bool,
    pub(crate) ended: watch::Sender<Option<Ended>>,
}

/// Fifos, which the daemon or its client has made, or `file://` and a path. Empty is nowhere.
#[derive(Clone, Default)]
pub(crate) struct Io {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

struct Spawned {
    pid: u32,
    handle: PidFd,
    /// A writer of standard input: it keeps the end of input from coming before `CloseIO`, when clients come and go.
    stdin: Option<File>,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Ended {
    /// The exit code; 128 + n after signal n.
    pub(crate) status: u32,
    pub(crate) at: Timestamp,
}

impl Process {
    pub(crate) fn new(program: Program, io: Io) -> Result<Process> {
        if program.terminal {
            return Err(Error::unimplemented("terminals; start it without one"));
        }
        if program.args.is_empty() {
            return Err(Error::invalid_argument("the process has no args"));
        }
        Ok(Process {
            program,
            io,
            gate: None,
            spawned: None,
            stdin_ends: false,
            ended: watch::Sender::new(None),
        })
    }

    pub(crate) fn status(&self) -> Status {
        match (&self.spawned, &self.gate) {
            _ if self.ended.borrow().is_some() => Status::Stopped,
            (Some(_), None) => Status::Running,
            _ => Status::Created,
        }
    }

    /// 0 before it is spawned.
    pub(crate) fn pid(&self) -> u32 {
        self.spawned.as_ref().map_or(0, |spawned| spawned.pid)
    }

    /// Spawns `init`, which waits to be started.
    pub(crate) fn spawn(&mut self, bundle: &Path) -> Result<Child> {
        let (program, io) = (&self.program, &self.io);
        // Opens both ends of each fifo, so that no open waits for a client, and clients may come and go.
        let stdin = if io.stdin.is_empty() { None } else { Some(open_both(&io.stdin)?) };
        let (ours, theirs) = UnixStream::pair().context(|| "make a gate")?;
        let mut command = Command::new("/proc/self/exe");
        command.arg("init").arg(bundle.join("rootfs")).arg(&program.cwd);
        command.args([program.user.uid, program.user.gid].map(|id| id.to_string()));
        command.arg(&io.stdin).args(&program.args).current_dir("/").env_clear();
        command.envs(program.env.iter().filter_map(|variable| variable.split_once('=')));
        command.stdin(OwnedFd::from(theirs)).stdout(output(&io.stdout)?).stderr(output(&io.stderr)?);
        let child = command.spawn().context(|| "spawn a process")?;
        let pid = child.id().ok_or_else(|| Error::internal("a new process has no id"))?;
        self.gate = Some(ours);
        self.spawned = Some(Spawned { pid, handle: PidFd::open(pid)?, stdin });
        Ok(child)
    }

    /// Lets `init` go on. Returns once it executes the program, which closes the gate.
    pub(crate) fn start(&mut self) -> Result<()> {
        let gate = self.gate.take();
        let mut gate = gate.ok_or_else(|| Error::failed_precondition("the process was started already"))?;
        gate.set_read_timeout(Some(START_MAX)).context(|| "start the process")?;
        gate.write_all(b"!").context(|| "start the process")?;
        let mut refused = String::new();
        gate.read_to_string(&mut refused).context(|| "wait for the process to start")?;
        if !refused.is_empty() {
            return Err(Error::invalid_argument(refused));
        }
        if self.stdin_ends {
            self.close_stdin();
        }
        Ok(())
    }

    /// `NotFound` if it has ended.
    pub(crate) fn signal(&self, signal: u32) -> Result<()> {
        let spawned = self.spawned.as_ref();
        spawned.ok_or_else(|| Error::failed_precondition("process not started"))?.handle.signal(signal)
    }

    /// Before the start, input that was written by then stays for the program to read.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin_ends = true;
        if let (Some(spawned), None) = (&mut self.spawned, &self.gate) {
            spawned.stdin = None;
        }
    }
}

fn output(path: &str) -> Result<Stdio> {
    if path.is_empty() {
        return Ok(Stdio::null());
    }
    match path.split_once("://") {
        None => open_both(path).map(Stdio::from),
        Some(("file", path)) => {
            let file = File::options().create(true).append(true).open(path);
            file.map(Stdio::from).context(|| format!("open {path}"))
        }
        Some((scheme, _)) => {
            Err(Error::unimplemented(format!("output to {scheme}:// (fifos and file:// only)")))
        }
    }
}

fn open_both(fifo: &str) -> Result<File> {
    File::options().read(true).write(true).open(fifo).context(|| format!("open {fifo}"))
}
