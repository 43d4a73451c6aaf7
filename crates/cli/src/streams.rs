//! The streams of a container that we are attached to: named pipes, and our terminal in raw mode.
//!
//! ```text
//! our stdin ─▶ pipe ─▶ shim ─▶ container ─▶ shim ─┬▶ pipe ─▶ our stdout
//!                                                └▶ pipe ─▶ our stderr
//! ```
//!
//! The pipes lie in a folder that only we can enter, and go with us. Those of one who has gone can be joined by others.
//!
//! The folder is beside the daemon's socket, where we may make one: that is a place which we and the daemon see alike, also from
//! a service that has a `/tmp` of its own.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use api::engine::{PIPES_PREFIX, Streams};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, FileType, FlockOperation, Mode, OFlags, flock, mknodat};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use types::{Context, Result};

use crate::keys::{DetachKeys, Sieve};
use crate::lost_output;

/// A folder that only we can enter, deleted with all in it when dropped.
pub(crate) struct PrivateFolder {
    path: PathBuf,
    /// Held, so that the daemon takes away what is left of those who were killed, and of nobody else.
    _lock: File,
}

impl PrivateFolder {
    /// Makes it beside the socket of a daemon, or if we may not, where temporary files are.
    pub(crate) fn create(socket: &Path) -> Result<PrivateFolder> {
        let beside = socket.parent().and_then(|folder| std::path::absolute(folder).ok());
        match beside.map(|folder| PrivateFolder::create_in(&folder)) {
            Some(Ok(made)) => Ok(made),
            _ => PrivateFolder::create_in(&std::env::temp_dir()),
        }
    }

    pub(crate) fn create_in(place: &Path) -> Result<PrivateFolder> {
        let path = place.join(format!("{PIPES_PREFIX}{}", linux::random::hex(8)?));
        let about = || format!("create {}", path.display());
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&path).context(about)?;
        let lock = File::open(&path).context(about)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from).context(about)?;
        Ok(PrivateFolder { path, _lock: lock })
    }

    /// Makes a named pipe in it.
    pub(crate) fn pipe(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .map_err(io::Error::from)
            .context(|| format!("make a pipe at {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Opens an end of a pipe, whether or not somebody has the other.
pub(crate) fn open_pipe(path: &Path, flags: OFlags) -> Result<File> {
    // Without the other end, a blocking open would wait for it.
    let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from);
    let file = File::from(opened.context(|| format!("open {}", path.display()))?);
    rustix::io::ioctl_fionbio(&file, false).map_err(io::Error::from).context(|| "open a pipe")?;
    Ok(file)
}

/// Before the first writer has come, a read would find the end.
pub(crate) fn wait_for_writer(pipe: &File) -> Result<()> {
    let mut fds = [PollFd::new(pipe, PollFlags::IN)];
    poll(&mut fds, None).map_err(io::Error::from).context(|| "wait for the daemon").map(drop)
}

/// The pipe for our input.
enum Input {
    /// Both its ends are ours until somebody reads it: to the shim it has a writer when it looks.
    Own {
        path: PathBuf,
        ends: File,
    },
    Joined(pipe::Sender),
}

impl Input {
    /// The writing end alone: what we write is refused from when nobody else reads it.
    fn writer(self) -> io::Result<pipe::Sender> {
        match self {
            Input::Own { path, ends } => {
                let to = pipe::OpenOptions::new().open_sender(path)?;
                drop(ends);
                Ok(to)
            }
            Input::Joined(to) => Ok(to),
        }
    }
}

/// How our input came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fed {
    End,
    /// The detach keys were typed.
    Detached,
    /// Nobody takes it.
    Refused,
}

/// Pipes to a process and from it.
pub(crate) struct Attached {
    /// Of pipes that we made; deleted when we are done with it.
    folder: Option<PrivateFolder>,
    stdin: Option<Input>,
    outputs: Vec<JoinHandle<()>>,
    /// The first of our outputs that takes no more, and why.
    lost: watch::Receiver<Option<Lost>>,
    pub(crate) streams: Streams,
}

/// An output of ours that takes no more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lost {
    errno: i32,
    to: Out,
}

impl Lost {
    /// Whoever read it has left.
    pub(crate) fn is_unread(self) -> bool {
        self.errno == Errno::PIPE.raw_os_error()
    }

    /// See [`lost_output::code_of`].
    pub(crate) fn code(self, program: &str) -> u8 {
        let stream = match self.to {
            Out::Stdout => "standard output",
            Out::Stderr => "standard error",
        };
        lost_output::code_of(program, &io::Error::from_raw_os_error(self.errno), stream)
    }
}

impl Attached {
    /// Makes the pipes in a folder and opens our ends.
    pub(crate) fn prepare(folder: PrivateFolder, interactive: bool, tty: bool) -> Result<Attached> {
        Attached::prepare_some(folder, interactive, tty, [true, true])
    }

    /// The same, of standard output and standard error those that are to be shown. A terminal has one for both.
    pub(crate) fn prepare_some(
        folder: PrivateFolder,
        interactive: bool,
        tty: bool,
        shown: [bool; 2],
    ) -> Result<Attached> {
        let reader = |path: &PathBuf| {
            let opened = pipe::OpenOptions::new().open_receiver(path);
            opened.context(|| format!("open {}", path.display()))
        };
        let stdin = interactive.then(|| folder.pipe("stdin")).transpose()?;
        let ends = stdin.as_ref().map(|path| open_pipe(path, OFlags::RDWR)).transpose()?;
        let stdout = (shown[0] || tty).then(|| folder.pipe("stdout")).transpose()?;
        let stderr = (shown[1] && !tty).then(|| folder.pipe("stderr")).transpose()?;
        let show =
            |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        let streams = Streams { stdin: show(&stdin), stdout: show(&stdout), stderr: show(&stderr) };
        let (tell, lost) = watch::channel(None);
        let mut outputs = Vec::new();
        for (path, to) in [(&stdout, Out::Stdout), (&stderr, Out::Stderr)] {
            if let Some(path) = path {
                outputs.push(tokio::spawn(copy_out(reader(path)?, to, tell.clone())));
            }
        }
        let stdin = stdin.zip(ends).map(|(path, ends)| Input::Own { path, ends });
        Ok(Attached { folder: Some(folder), stdin, outputs, lost, streams })
    }

    /// Joins the pipes that another made. What is no pipe, or has nobody at its other end, is left out.
    pub(crate) fn join(streams: Streams) -> Attached {
        let (tell, lost) = watch::channel(None);
        let copy = |path: &str, to: Out| {
            let from = open_pipe(Path::new(path), OFlags::RDONLY).ok()?;
            let tell = tell.clone();
            // On a thread that waits: a pipe that is watched would not tell that its writer had gone before we came.
            Some(tokio::task::spawn_blocking(move || copy_joined(from, to, &tell)))
        };
        let outputs = [copy(&streams.stdout, Out::Stdout), copy(&streams.stderr, Out::Stderr)];
        let outputs = outputs.into_iter().flatten().collect();
        let stdin = pipe::OpenOptions::new().open_sender(&streams.stdin).ok().map(Input::Joined);
        Attached { folder: None, stdin, outputs, lost, streams }
    }

    /// Whether we made the pipes.
    pub(crate) fn is_own(&self) -> bool {
        self.folder.is_some()
    }

    /// Sends our standard input in, until it ends or the keys are typed, once somebody reads it.
    pub(crate) fn feed(&mut self, keys: Option<DetachKeys>) -> Option<JoinHandle<Fed>> {
        let input = self.stdin.take()?;
        Some(tokio::spawn(async move { copy_in(input, keys).await.unwrap_or(Fed::Refused) }))
    }

    /// Waits until everything that was written has been shown, or cannot be.
    pub(crate) async fn drain(self) -> Option<Lost> {
        // A copy that broke down has shown what it could.
        for output in self.outputs {
            let _ = output.await;
        }
        *self.lost.borrow()
    }

    /// Waits until one of our outputs takes no more.
    pub(crate) fn lost(&self) -> impl Future<Output = Lost> + use<> {
        let mut lost = self.lost.clone();
        async move {
            match lost.wait_for(Option::is_some).await.map(|lost| *lost) {
                Ok(Some(lost)) => lost,
                // All was copied.
                _ => std::future::pending().await,
            }
        }
    }

    /// Leaves without waiting, as after a failure.
    pub(crate) fn abandon(self) {
        self.stop();
    }

    /// Gives up waiting for somebody at the other ends.
    pub(crate) fn stop(&self) {
        self.outputs.iter().for_each(JoinHandle::abort);
    }
}

#[derive(Clone, Copy, Debug)]
enum Out {
    Stdout,
    Stderr,
}

async fn copy_out(mut from: pipe::Receiver, to: Out, tell: watch::Sender<Option<Lost>>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(len @ 1..) = from.read(&mut buffer).await {
        if !is_shown(&buffer[..len], to, &tell) {
            return;
        }
    }
}

fn copy_joined(mut from: File, to: Out, tell: &watch::Sender<Option<Lost>>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        if !is_shown(&buffer[..len], to, tell) {
            return;
        }
    }
}

/// Whether an output of ours took the bytes. Else it is told why not.
fn is_shown(bytes: &[u8], to: Out, tell: &watch::Sender<Option<Lost>>) -> bool {
    let written = match to {
        Out::Stdout => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(bytes).and_then(|()| stdout.flush())
        }
        Out::Stderr => io::stderr().lock().write_all(bytes),
    };
    let Err(error) = written else { return true };
    let lost = Lost { errno: error.raw_os_error().unwrap_or_default(), to };
    tell.send_if_modified(|first| first.replace(lost).is_none());
    false
}

async fn copy_in(input: Input, keys: Option<DetachKeys>) -> io::Result<Fed> {
    let mut to = input.writer()?;
    let mut sieve = keys.map(Sieve::new);
    let mut from = tokio::io::stdin();
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let len = from.read(&mut buffer).await?;
        if len == 0 {
            return Ok(Fed::End);
        }
        match &mut sieve {
            Some(sieve) => {
                let (onward, detached) = sieve.pass(&buffer[..len]);
                to.write_all(&onward).await?;
                if detached {
                    return Ok(Fed::Detached);
                }
            }
            None => to.write_all(&buffer[..len]).await?,
        }
    }
}

/// Our terminal in raw mode, until dropped.
pub(crate) struct Raw(Option<Termios>);

impl Raw {
    pub(crate) fn enter() -> Result<Raw> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(Raw(None));
        }
        let enter = || -> io::Result<Termios> {
            let before = tcgetattr(stdin.as_fd())?;
            let mut raw = before.clone();
            raw.make_raw();
            tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw)?;
            Ok(before)
        };
        Ok(Raw(Some(enter().context(|| "put the terminal into raw mode")?)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // The terminal may be gone; then there is nothing to restore.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Rows and columns of our terminal.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())).ok()?;
    (size.ws_row > 0).then_some((size.ws_row, size.ws_col))
}
