//! `create` and `run`: their shared flags, and the handover of a new container to the caller.

use std::fs;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use linux::fd_passing::send_with_fd;
use types::{Context, Error, Result};

use super::activation::{Readiness, is_awaited, sockets};
use super::args::Args;
use super::{Cli, exit_code, foreground};
use crate::{Container, CreateOptions, Created, Stdio};

/// Flags by which a new process is handed to the caller. `exec` has them too.
pub(super) struct HandOver {
    console_socket: Option<String>,
    pidfd_socket: Option<String>,
    pid_file: Option<String>,
}

impl HandOver {
    pub(super) fn read(args: &mut Args) -> HandOver {
        let mut path = |name: &str| args.value(&[name]).filter(|path| !path.is_empty());
        HandOver {
            console_socket: path("--console-socket"),
            pidfd_socket: path("--pidfd-socket"),
            pid_file: path("--pid-file"),
        }
    }

    /// Checks that a terminal of a detached process has a receiver, and that a receiver has a terminal to get.
    pub(super) fn check(&self, terminal: bool, detach: bool) -> Result<()> {
        match (terminal, detach, &self.console_socket) {
            (true, true, None) => {
                Err(Error::invalid_argument("a terminal needs --console-socket when the process is detached"))
            }
            (false, _, Some(_)) => {
                Err(Error::invalid_argument("--console-socket is of no use without a terminal"))
            }
            _ => Ok(()),
        }
    }

    /// Hands over what the flags ask for, the pid file last: a caller that waits for it finds the rest done.
    pub(super) fn carry_out(
        &self,
        console: Option<BorrowedFd<'_>>,
        pidfd: BorrowedFd<'_>,
        pid: u32,
    ) -> Result<()> {
        if let (Some(master), Some(socket)) = (console, &self.console_socket) {
            send(socket, b"/dev/ptmx", master).context(|| "send the terminal")?;
        }
        if let Some(socket) = &self.pidfd_socket {
            send(socket, b"pidfd", pidfd).context(|| "send the pidfd")?;
        }
        self.pid_file.as_ref().map_or(Ok(()), |path| write_pid(path, pid))
    }

    /// The standard streams of a process; in the foreground, this process relays its terminal.
    pub(super) fn stdio(&self, has_terminal: bool, is_detached: bool) -> Stdio {
        let is_relayed = !is_detached && !self.gives_console_away();
        if has_terminal { Stdio::Terminal { size: None, is_relayed } } else { Stdio::Inherit }
    }

    /// Whether the terminal was sent to the console socket.
    pub(super) fn gives_console_away(&self) -> bool {
        self.console_socket.is_some()
    }
}

fn send(socket: &str, name: &[u8], fd: BorrowedFd<'_>) -> Result<()> {
    let stream = UnixStream::connect(socket).context(|| format!("connect to {socket}"))?;
    send_with_fd(stream.as_fd(), name, fd).context(|| format!("send a descriptor to {socket}"))
}

/// Writes the pid file atomically: a caller that waits for it never reads it half written. A device, such as the null
/// device, or a fifo is written to and not replaced.
fn write_pid(path: &str, pid: u32) -> Result<()> {
    let what = || format!("write {path}");
    if fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        return fs::OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|mut file| file.write_all(pid.to_string().as_bytes()))
            .context(what);
    }
    let draft = format!("{path}.draft");
    fs::write(&draft, pid.to_string()).context(|| format!("write {draft}"))?;
    fs::rename(&draft, path).context(what)
}

/// Flags that `create` and `run` share.
struct CreateFlags {
    bundle: PathBuf,
    hand_over: HandOver,
    no_pivot: bool,
    no_new_keyring: bool,
    preserve_fds: u32,
    id: String,
}

impl CreateFlags {
    fn read(args: &mut Args) -> Result<CreateFlags> {
        let flags = CreateFlags {
            bundle: args.bundle(),
            hand_over: HandOver::read(args),
            no_pivot: args.flag(&["--no-pivot"]),
            no_new_keyring: args.flag(&["--no-new-keyring"]),
            preserve_fds: args.number(&["--preserve-fds"])?.unwrap_or(0),
            id: args.id()?,
        };
        args.end()?;
        Ok(flags)
    }
}

impl Cli<'_> {
    pub(super) fn create(&self, args: &mut Args) -> Result<()> {
        let flags = CreateFlags::read(args)?;
        self.create_container(&flags, true).map(drop)
    }

    pub(super) fn run(&self, args: &mut Args) -> Result<ExitCode> {
        let detach = args.flag(&["-d", "--detach"]);
        let keep = args.flag(&["--keep"]);
        // Accepted and ignored: orphans of the container end with its pid namespace, whoever reaps them.
        args.flag(&["--no-subreaper"]);
        let flags = CreateFlags::read(args)?;
        let signals = (!detach).then(foreground::Signals::take).transpose()?;
        let created = self.create_container(&flags, detach)?;
        let started = Readiness::listen(&created.container)
            .and_then(|readiness| created.container.start().map(|()| readiness));
        let readiness = match started {
            Ok(readiness) => readiness,
            Err(error) => {
                self.take_down(created.container)?;
                return Err(error);
            }
        };
        let Some(signals) = signals else {
            // The service manager cannot be told; the container runs all the same.
            if let Some(Err(error)) = readiness.map(|readiness| readiness.wait(created.pid, &created.pidfd)) {
                self.log.warning(&error.chain());
            }
            return Ok(ExitCode::SUCCESS);
        };
        let status = foreground::attend(&signals, created.console, readiness, &created.pidfd);
        if let Ok(status) = &status {
            self.log.debug(&format!("process {} has ended: {status:?}", created.pid));
        }
        if !keep || status.is_err() {
            self.take_down(created.container)?;
        }
        status.map(exit_code)
    }

    /// Creates the container, hands it over, and logs its warnings.
    fn create_container(&self, flags: &CreateFlags, detach: bool) -> Result<Created> {
        let terminal = read_terminal(&flags.bundle)?;
        flags.hand_over.check(terminal, detach)?;
        let (sockets, environment) = sockets();
        let preserve_fds = self.preserve(flags.preserve_fds, sockets)?;
        let mut created = Container::create(CreateOptions {
            id: &flags.id,
            bundle: &flags.bundle,
            state_root: &self.root,
            stdio: flags.hand_over.stdio(terminal, detach),
            systemd: self.systemd()?,
            no_pivot: flags.no_pivot,
            no_new_keyring: flags.no_new_keyring,
            preserve_fds,
            environment,
            takes_notices: is_awaited(),
            steps: self.log.steps(),
        })?;
        created.warnings.iter().for_each(|words| self.log.warning(words));
        let console = created.console.as_ref().map(AsFd::as_fd);
        if let Err(error) = flags.hand_over.carry_out(console, created.pidfd.as_fd(), created.pid) {
            // No caller knows of the container yet.
            self.take_down(created.container)?;
            return Err(error);
        }
        if flags.hand_over.gives_console_away() {
            created.console = None;
        }
        Ok(created)
    }
}

pub(super) fn read_terminal(bundle: &Path) -> Result<bool> {
    let spec = crate::plan::read_spec(bundle)?;
    Ok(spec.process.is_some_and(|process| process.terminal))
}
