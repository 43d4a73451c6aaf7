//! The streams of a container that this client is attached to: named pipes, and our terminal in raw mode.
//!
//! ```text
//! our stdin ─▶ pipe ─▶ shim ─▶ container ─▶ shim ─┬▶ pipe ─▶ our stdout
//!                                                └▶ pipe ─▶ our stderr
//! ```
//!
//! The pipes lie in a [`PrivateFolder`] and are deleted with it. Another client can attach to the pipes of one that has
//! gone.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use api::engine::Streams;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use types::{Context, Result};

use crate::keys::{DetachFilter, DetachKeys};
use crate::lost_output;
use crate::private_folder::PrivateFolder;

/// Opens an end of a pipe, whether or not the other end is open.
pub(crate) fn open_pipe(path: &Path, flags: OFlags) -> Result<File> {
    // A blocking open would wait for the other end (fifo(7)).
    let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from);
    let file = File::from(opened.context(|| format!("open {}", path.display()))?);
    rustix::io::ioctl_fionbio(&file, false).map_err(io::Error::from).context(|| "open a pipe")?;
    Ok(file)
}

/// Waits until a writer has opened the pipe: before, a read would return the end of the file.
pub(crate) fn wait_for_writer(pipe: &File) -> Result<()> {
    let mut fds = [PollFd::new(pipe, PollFlags::IN)];
    poll(&mut fds, None).map_err(io::Error::from).context(|| "wait for the daemon").map(drop)
}

/// The pipe of our input.
enum Input {
    /// A pipe of our own. We hold both ends until the shim reads, so that the shim finds a writer when it opens the
    /// pipe.
    Own {
        path: PathBuf,
        ends: File,
    },
    Joined(pipe::Sender),
}

impl Input {
    /// The writing end. Without our reading end, writes fail once no other process reads.
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

/// How our input ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InputOutcome {
    End,
    /// The user typed the detach keys.
    Detached,
    /// No process reads the pipe.
    Refused,
}

/// The pipes to and from a process.
pub(crate) struct Attached {
    /// The folder of pipes that we created.
    folder: Option<PrivateFolder>,
    stdin: Option<Input>,
    outputs: Vec<JoinHandle<()>>,
    /// The first of our outputs to which a write failed, and the error.
    lost: watch::Receiver<Option<WriteFailure>>,
    pub(crate) streams: Streams,
}

/// A failed write to one of our outputs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteFailure {
    errno: i32,
    to: Out,
}

impl WriteFailure {
    /// Whether the reader of our output has gone.
    pub(crate) fn is_broken_pipe(self) -> bool {
        self.errno == Errno::PIPE.raw_os_error()
    }

    /// The exit code. See [`lost_output::code_of`].
    pub(crate) fn code(self, program: &str) -> u8 {
        let stream = match self.to {
            Out::Stdout => "standard output",
            Out::Stderr => "standard error",
        };
        lost_output::code_of(program, &io::Error::from_raw_os_error(self.errno), stream)
    }
}

impl Attached {
    /// Creates the pipes in a folder and opens our ends.
    pub(crate) fn prepare(folder: PrivateFolder, interactive: bool, tty: bool) -> Result<Attached> {
        Attached::prepare_some(folder, interactive, tty, [true, true])
    }

    /// As [`Attached::prepare`], with only those of standard output and standard error that are to be shown. A terminal
    /// has one stream for both.
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

    /// Attaches to the pipes of another client. A path that is no pipe, or has no process at the other end, is left
    /// out.
    pub(crate) fn join(streams: Streams) -> Attached {
        let (tell, lost) = watch::channel(None);
        let copy = |path: &str, to: Out| {
            let from = open_pipe(Path::new(path), OFlags::RDONLY).ok()?;
            let tell = tell.clone();
            // On a blocking thread: polling a pipe does not report a writer that had gone before we opened it.
            Some(tokio::task::spawn_blocking(move || copy_joined(from, to, &tell)))
        };
        let outputs = [copy(&streams.stdout, Out::Stdout), copy(&streams.stderr, Out::Stderr)];
        let outputs = outputs.into_iter().flatten().collect();
        let stdin = pipe::OpenOptions::new().open_sender(&streams.stdin).ok().map(Input::Joined);
        Attached { folder: None, stdin, outputs, lost, streams }
    }

    /// Whether we created the pipes.
    pub(crate) fn is_own(&self) -> bool {
        self.folder.is_some()
    }

    /// Begins to copy our standard input to the process, until its end or the detach keys.
    pub(crate) fn feed(&mut self, keys: Option<DetachKeys>) -> Option<JoinHandle<InputOutcome>> {
        let input = self.stdin.take()?;
        Some(tokio::spawn(async move { copy_in(input, keys).await.unwrap_or(InputOutcome::Refused) }))
    }

    /// Waits until all output has been copied, or a write failed.
    pub(crate) async fn drain(self) -> Option<WriteFailure> {
        // A copy task that panicked has shown what it could.
        for output in self.outputs {
            let _ = output.await;
        }
        *self.lost.borrow()
    }

    /// Waits until a write to one of our outputs fails.
    pub(crate) fn lost(&self) -> impl Future<Output = WriteFailure> + use<> {
        let mut lost = self.lost.clone();
        async move {
            match lost.wait_for(Option::is_some).await.map(|lost| *lost) {
                Ok(Some(lost)) => lost,
                // All output was copied without an error.
                _ => std::future::pending().await,
            }
        }
    }

    /// Stops without waiting for the rest of the output, as after a failure.
    pub(crate) fn abandon(self) {
        self.stop();
    }

    /// Stops copying output.
    pub(crate) fn stop(&self) {
        self.outputs.iter().for_each(JoinHandle::abort);
    }
}

#[derive(Clone, Copy, Debug)]
enum Out {
    Stdout,
    Stderr,
}

async fn copy_out(mut from: pipe::Receiver, to: Out, tell: watch::Sender<Option<WriteFailure>>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(len @ 1..) = from.read(&mut buffer).await {
        if !is_shown(&buffer[..len], to, &tell) {
            return;
        }
    }
}

fn copy_joined(mut from: File, to: Out, tell: &watch::Sender<Option<WriteFailure>>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        if !is_shown(&buffer[..len], to, tell) {
            return;
        }
    }
}

/// Writes bytes to our output. Returns whether it succeeded; an error is sent to `tell`.
fn is_shown(bytes: &[u8], to: Out, tell: &watch::Sender<Option<WriteFailure>>) -> bool {
    let written = match to {
        Out::Stdout => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(bytes).and_then(|()| stdout.flush())
        }
        Out::Stderr => io::stderr().lock().write_all(bytes),
    };
    let Err(error) = written else { return true };
    let lost = WriteFailure { errno: error.raw_os_error().unwrap_or_default(), to };
    tell.send_if_modified(|first| first.replace(lost).is_none());
    false
}

async fn copy_in(input: Input, keys: Option<DetachKeys>) -> io::Result<InputOutcome> {
    let mut to = input.writer()?;
    let mut sieve = keys.map(DetachFilter::new);
    let mut from = tokio::io::stdin();
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let len = from.read(&mut buffer).await?;
        if len == 0 {
            return Ok(InputOutcome::End);
        }
        match &mut sieve {
            Some(sieve) => {
                let (onward, detached) = sieve.pass(&buffer[..len]);
                to.write_all(&onward).await?;
                if detached {
                    return Ok(InputOutcome::Detached);
                }
            }
            None => to.write_all(&buffer[..len]).await?,
        }
    }
}

/// Raw mode of our terminal, until dropped.
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
            // If the terminal is gone, there is nothing to restore.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// The rows and columns of our terminal.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())).ok()?;
    (size.ws_row > 0).then_some((size.ws_row, size.ws_col))
}
