//! From stream URIs to descriptors: first the client's side ([`Outside::open`], which may fail before there is a
//! container), then the container's side. In between a worker waits until clients have opened their outputs
//! ([`Outside::wait_for_readers`]).

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, inotify};
use rustix::pipe::{PipeFlags, pipe_with};
use types::{Context, Error, Result};

use super::copy::{Copy, JsonSink, Sink};
use super::json_log::{JsonLog, Pieces};
use super::readers::Readers;
use super::target::{JsonFile, Target};
use super::{ATTACHED_MAX, Stream};
use crate::log_driver::{Driver, DriverPipes};

/// How long to wait for clients to open their outputs.
const READERS_LIMIT: Duration = Duration::from_secs(1);

/// The standard streams as the request names them.
#[derive(Clone, Debug, Default)]
pub(crate) struct StdioConfig {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// The owner of the streams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    pub namespace: &'a str,
    pub container: &'a str,
    /// Owner of the pipes.
    pub uid: u32,
    pub gid: u32,
}

/// The container's ends.
pub(crate) struct Ends {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

impl Ends {
    pub(crate) fn each(&self) -> [BorrowedFd<'_>; 3] {
        [self.stdin.as_fd(), self.stdout.as_fd(), self.stderr.as_fd()]
    }

    pub(crate) fn try_clone(&self) -> Result<Ends> {
        let copy = |end: &OwnedFd| end.try_clone().context(|| "duplicate a stream");
        Ok(Ends { stdin: copy(&self.stdin)?, stdout: copy(&self.stdout)?, stderr: copy(&self.stderr)? })
    }
}

/// The shim's side of the streams while the process lives.
#[derive(Default)]
pub(crate) struct Inside {
    pub copies: [Option<Copy>; 3],
    /// A writing end of the client's stdin fifo: the container's input ends only after `CloseIO`, even if clients close
    /// their ends.
    pub stdin_held: Option<OwnedFd>,
    pub console: Option<Console>,
    /// The log driver that gets the output.
    pub driver: Option<Driver>,
}

impl Inside {
    /// Attaches a client to the streams. A stream that the process has closed ends at once for the client.
    ///
    /// `FailedPrecondition` if the output is not logged; `ResourceExhausted` if too many clients are attached.
    pub(crate) fn join(&mut self, joining: Joining) -> Result<()> {
        let [stdin, stdout, stderr] = &mut self.copies;
        let mut free = Vec::new();
        for (copy, reader) in [stdout, stderr].into_iter().zip(joining.readers) {
            let (Some(copy), Some(reader)) = (copy, reader) else { continue };
            let readers = copy.readers().ok_or_else(|| {
                Error::failed_precondition("its output is not logged: it goes to the client that started it")
            })?;
            free.push((readers, reader));
        }
        let typing = stdin.as_mut().zip(joining.attached_input);
        let is_full = free.iter_mut().any(|(readers, _)| readers.count() >= ATTACHED_MAX)
            || typing.as_ref().is_some_and(|(copy, _)| copy.attached_inputs() >= ATTACHED_MAX);
        if is_full {
            return Err(Error::resource_exhausted(format!(
                "{ATTACHED_MAX} clients are attached already: detach one"
            )));
        }
        free.into_iter().for_each(|(readers, reader)| readers.add(reader));
        if let Some((copy, attached_input)) = typing {
            copy.attach_input(attached_input);
        }
        Ok(())
    }
}

/// The master of a terminal.
pub(crate) struct Console(pub OwnedFd);

impl Console {
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let size = rustix::termios::Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.0, size)
            .map_err(io::Error::from)
            .context(|| "resize the terminal")
    }
}

/// The client's side of the streams, opened.
pub(crate) struct Outside {
    stdin: Option<Input>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
    driver: Option<Driver>,
    unread: Vec<Unread>,
}

struct Input {
    source: OwnedFd,
    held: Option<OwnedFd>,
}

/// A client's output fifo that has no reader yet.
struct Unread {
    stream: Stream,
    path: PathBuf,
    /// A client blocks in open(2) until there is a writer. This end reports readers, as the shim has no reading end.
    writer: OwnedFd,
    /// An inotify(7) descriptor that reports opens.
    opened: OwnedFd,
}

impl Outside {
    /// Opens everything that `config` names.
    ///
    /// `NotFound` for a missing fifo; `Unimplemented` for an unknown scheme.
    pub(crate) fn open(config: &StdioConfig, owner: Owner<'_>) -> Result<Outside> {
        let stdin = open_input(Target::parse(&config.stdin)?).context(|| "open stdin")?;
        let stdout = Target::parse(&config.stdout)?;
        let stderr = if config.terminal { Target::Null } else { Target::parse(&config.stderr)? };
        let mut outside = Outside { stdin, stdout: None, stderr: None, driver: None, unread: Vec::new() };
        if let Target::Driver { program, args, ready } = &stdout {
            let (driver, pipes) = Driver::start(program, args, *ready, owner)?;
            outside.driver = Some(driver);
            outside.take_driver_pipes(pipes, &stderr);
        } else {
            outside.stdout = outside.open_output(stdout.clone(), Stream::Stdout).context(|| "open stdout")?;
        }
        if outside.stderr.is_none() {
            outside.stderr = outside.open_stderr(stderr, &stdout).context(|| "open stderr")?;
        }
        Ok(outside)
    }

    /// Descriptors that the wait for readers needs; empty if every output has its reader.
    pub(crate) fn unread(&self) -> Vec<BorrowedFd<'_>> {
        self.unread.iter().flat_map(|fifo| [fifo.writer.as_fd(), fifo.opened.as_fd()]).collect()
    }

    /// Blocks until clients have opened their outputs, or a timeout is over.
    ///
    /// containerd's clients open their ends on a thread, and close those that are not open yet once the process has
    /// ended. On a busy machine a short process ends first, and its output would be lost. containerd's shim waits too,
    /// without a limit.
    pub(crate) fn wait_for_readers(&self) {
        let until = Instant::now() + READERS_LIMIT;
        for fifo in &self.unread {
            fifo.wait_for_reader(until);
        }
    }

    /// Opens the remaining outputs without a reader: from here on nothing waits for one.
    pub(crate) fn settle(mut self) -> Result<Outside> {
        for Unread { stream, path, writer, .. } in std::mem::take(&mut self.unread) {
            let sink = Some(Sink::Pipe(open(&path, OFlags::RDWR)?));
            // Closed last: a reader that sees no writer in between would read the end of file.
            drop(writer);
            match stream {
                Stream::Stderr => self.stderr = sink,
                _ => self.stdout = sink,
            }
        }
        Ok(self)
    }

    fn take_driver_pipes(&mut self, pipes: DriverPipes, stderr: &Target) {
        self.stdout = Some(Sink::Pipe(pipes.stdout));
        if matches!(stderr, Target::Driver { .. }) {
            self.stderr = Some(Sink::Pipe(pipes.stderr));
        }
    }

    /// Two streams to one log share its file, so that rotation works.
    fn open_stderr(&mut self, stderr: Target, stdout: &Target) -> Result<Option<Sink>> {
        match (&stderr, stdout, &self.stdout) {
            (Target::JsonFile(second), Target::JsonFile(first), Some(Sink::Json(sink)))
                if second.path == first.path =>
            {
                Ok(Some(json_sink(sink.log.clone(), Stream::Stderr, second)))
            }
            (Target::Driver { .. }, _, _) => {
                Err(Error::invalid_argument("stderr can go to a log driver only together with stdout"))
            }
            _ => self.open_output(stderr, Stream::Stderr),
        }
    }

    /// None for a stream to `/dev/null`, or one that still waits for its reader.
    fn open_output(&mut self, target: Target, stream: Stream) -> Result<Option<Sink>> {
        Ok(match target {
            Target::Null => None,
            Target::Path(path) if is_fifo(&path)? => self.open_fifo(path, stream)?.map(Sink::Pipe),
            Target::Path(path) => Some(Sink::File(open(&path, OFlags::WRONLY | OFlags::APPEND)?.into())),
            // Not for reading, so that a write fails once the client has left, which may be by now.
            Target::Once(path) => open(&path, OFlags::WRONLY).ok().map(Sink::Pipe),
            Target::File(path) => {
                // As containerd's shim does for this scheme.
                if let Some(folder) = path.parent() {
                    std::fs::create_dir_all(folder).context(|| format!("create {}", folder.display()))?;
                }
                Some(Sink::File(append(&path).context(|| format!("open {}", path.display()))?))
            }
            Target::JsonFile(config) => {
                let log = Rc::new(RefCell::new(JsonLog::open(config.clone())?));
                Some(json_sink(log, stream, &config))
            }
            Target::Driver { .. } => {
                return Err(Error::invalid_argument("a log driver takes stdout and stderr together"));
            }
        })
    }

    /// Opens a client's fifo, if it has a reader or cannot be watched.
    fn open_fifo(&mut self, path: PathBuf, stream: Stream) -> Result<Option<OwnedFd>> {
        // Kept until the other end is open: a reader that sees no writer in between would read the end of file.
        let writer = open(&path, OFlags::WRONLY);
        if writer.is_err()
            && let Ok(unread) = Unread::watch(&path, stream)
        {
            self.unread.push(unread);
            return Ok(None);
        }
        // Also for reading: then neither open(2) nor write(2) depends on a reader.
        open(&path, OFlags::RDWR).map(Some)
    }

    /// The container's ends, None with a terminal, and the shim's side, to be completed once the process exists.
    pub(crate) fn split(self, terminal: bool, owner: Owner<'_>) -> Result<(Option<Ends>, Streams)> {
        if terminal {
            return Ok((None, Streams::Unjoined(self)));
        }
        let (ends, inside) = self.into_pipes(owner)?;
        Ok((Some(ends), Streams::Joined(Box::new(inside))))
    }

    /// Connects the streams by pipes; a missing stream is `/dev/null` in the container.
    fn into_pipes(self, owner: Owner<'_>) -> Result<(Ends, Inside)> {
        let mut inside = Inside { driver: self.driver, ..Inside::default() };
        let stdin = match self.stdin {
            None => null()?,
            Some(Input { source, held }) => {
                let (theirs, ours) = pipe(owner)?;
                set_nonblocking(&ours)?;
                inside.copies[0] = Some(Copy::new(source, Sink::Pipe(ours)));
                inside.stdin_held = held;
                theirs
            }
        };
        let mut output = |stream: Stream, sink: Option<Sink>| match sink {
            None => null(),
            Some(sink) => {
                let (ours, theirs) = pipe(owner)?;
                set_nonblocking(&ours)?;
                inside.copies[stream as usize] = Some(Copy::new(ours, sink));
                Ok(theirs)
            }
        };
        let stdout = output(Stream::Stdout, self.stdout)?;
        let stderr = output(Stream::Stderr, self.stderr)?;
        Ok((Ends { stdin, stdout, stderr }, inside))
    }

    /// Connects the streams to the master of a terminal.
    fn into_console(self, console: OwnedFd) -> Result<Inside> {
        let mut inside = Inside { driver: self.driver, ..Inside::default() };
        let another = || console.try_clone().context(|| "duplicate the console");
        set_nonblocking(&console)?;
        if let Some(Input { source, held }) = self.stdin {
            inside.copies[0] = Some(Copy::new(source, Sink::Pipe(another()?)));
            inside.stdin_held = held;
        }
        // The output is always read, or the container blocks once the terminal's buffer is full.
        let sink = self.stdout.unwrap_or(Sink::Nowhere);
        inside.copies[1] = Some(Copy::of_console(another()?, sink));
        inside.console = Some(Console(console));
        Ok(inside)
    }
}

/// The streams of a process that is being created; a terminal's master is only known afterwards.
pub(crate) enum Streams {
    Joined(Box<Inside>),
    Unjoined(Outside),
}

impl Streams {
    pub(crate) fn join(self, console: Option<OwnedFd>) -> Result<Inside> {
        match (self, console) {
            (Streams::Joined(inside), _) => Ok(*inside),
            (Streams::Unjoined(outside), Some(console)) => outside.into_console(console),
            (Streams::Unjoined(_), None) => Err(Error::internal("the runtime gave no console")),
        }
    }
}

fn open_input(target: Target) -> Result<Option<Input>> {
    let path = match target {
        Target::Null => return Ok(None),
        Target::Once(path) => return Ok(Some(Input { source: open(&path, OFlags::RDONLY)?, held: None })),
        Target::Path(path) | Target::File(path) => path,
        Target::Driver { .. } | Target::JsonFile(_) => {
            return Err(Error::invalid_argument("a log cannot be read as stdin"));
        }
    };
    let source = open(&path, OFlags::RDONLY)?;
    let held = if is_fifo(&path)? { Some(open(&path, OFlags::WRONLY)?) } else { None };
    Ok(Some(Input { source, held }))
}

impl Unread {
    fn watch(path: &Path, stream: Stream) -> Result<Unread> {
        let about = || "watch a fifo";
        let opened = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map_err(io::Error::from)
            .context(about)?;
        inotify::add_watch(&opened, path, inotify::WatchFlags::OPEN)
            .map_err(io::Error::from)
            .context(about)?;
        let both = open(path, OFlags::RDWR)?;
        let writer = open(path, OFlags::WRONLY)?;
        drop(both);
        Ok(Unread { stream, path: path.to_owned(), writer, opened })
    }

    /// Waits until a client has opened it for reading. False after the deadline.
    fn wait_for_reader(&self, until: Instant) -> bool {
        loop {
            let mut end = [PollFd::new(&self.writer, PollFlags::OUT)];
            let asked = poll(&mut end, Some(&Timespec::default()));
            let has_reader = asked.is_ok() && !end[0].revents().contains(PollFlags::ERR);
            let rest = until.checked_duration_since(Instant::now());
            let (false, Some(rest)) = (has_reader, rest) else { return has_reader };
            let rest = Timespec::try_from(rest).unwrap_or_default();
            let mut news = [PollFd::new(&self.opened, PollFlags::IN)];
            let _woken_or_over = poll(&mut news, Some(&rest));
            // Drains the events; the fifo itself tells the state.
            let _all = rustix::io::read(&self.opened, &mut [0; 4096]);
        }
    }
}

fn json_sink(log: Rc<RefCell<JsonLog>>, stream: Stream, config: &JsonFile) -> Sink {
    let mut readers = Readers::default();
    // The client that named it may have gone.
    if let Some(reader) = config.attach.as_ref().and_then(|path| open(path, OFlags::WRONLY).ok()) {
        readers.add(reader);
    }
    Sink::Json(JsonSink { log, stream, pieces: Pieces::default(), readers })
}

/// Pipes of a client that attaches to a running process.
pub(crate) struct Joining {
    pub attached_input: Option<OwnedFd>,
    /// Stdout and stderr.
    pub readers: [Option<OwnedFd>; 2],
}

impl Joining {
    /// Opens the shim's ends. Fails if the client's end of one is closed.
    pub(crate) fn open(stdin: &str, stdout: &str, stderr: &str) -> Result<Joining> {
        let fifo = |path: &str, access: OFlags| {
            if path.is_empty() {
                return Ok(None);
            }
            let path = Path::new(path);
            if !is_fifo(path)? {
                return Err(Error::invalid_argument(format!("{} is not a named pipe", path.display())));
            }
            open(path, access).map(Some)
        };
        let reader = |path: &str| fifo(path, OFlags::WRONLY);
        Ok(Joining {
            attached_input: fifo(stdin, OFlags::RDONLY)?,
            readers: [reader(stdout)?, reader(stderr)?],
        })
    }
}

/// Opens a file for appending, and creates it if missing. A fifo without a reader is an error; nothing blocks on it,
/// now or later.
pub(super) fn append(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o640).custom_flags(flags.bits().cast_signed()).open(path)
}

fn open(path: &Path, access: OFlags) -> Result<OwnedFd> {
    let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(io::Error::from)
        .context(|| format!("open {}", path.display()))
}

fn is_fifo(path: &Path) -> Result<bool> {
    let metadata = std::fs::metadata(path).context(|| format!("look at {}", path.display()))?;
    Ok(metadata.file_type().is_fifo())
}

fn null() -> Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/null").context(|| "open /dev/null")?;
    Ok(file.into())
}

/// The reading and the writing end.
fn pipe(owner: Owner<'_>) -> Result<(OwnedFd, OwnedFd)> {
    let ends = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from).context(|| "make a pipe")?;
    if owner.uid != 0 || owner.gid != 0 {
        let (uid, gid) = (rustix::fs::Uid::from_raw(owner.uid), rustix::fs::Gid::from_raw(owner.gid));
        rustix::fs::fchown(&ends.0, Some(uid), Some(gid))
            .map_err(io::Error::from)
            .context(|| "give a pipe to the container's user")?;
    }
    Ok(ends)
}

fn set_nonblocking(fd: &OwnedFd) -> Result<()> {
    rustix::io::ioctl_fionbio(fd, true).map_err(io::Error::from).context(|| "make a stream non-blocking")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn fifo(directory: &Path) -> PathBuf {
        let path = directory.join("fifo");
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        path
    }

    fn outside(fifo: &Path) -> Outside {
        let config = StdioConfig { stdout: fifo.display().to_string(), ..StdioConfig::default() };
        let owner = Owner { namespace: "test", container: "c", uid: 0, gid: 0 };
        Outside::open(&config, owner).unwrap()
    }

    /// Readers come at different moments: while the fifo is opened, before the first read, or later.
    #[test]
    fn a_reader_misses_nothing_whenever_it_comes() {
        let directory = tempfile::tempdir().unwrap();
        let path = fifo(directory.path());
        let in_a_minute = Instant::now() + Duration::from_secs(60);
        for _ in 0..300 {
            let text = std::thread::scope(|scope| {
                // Waits for a writer, as clients do.
                let (come, has_come) = std::sync::mpsc::channel();
                let path = &path;
                let reader = scope.spawn(move || {
                    let mut text = String::new();
                    let mut fifo = File::open(path).unwrap();
                    come.send(()).unwrap();
                    fifo.read_to_string(&mut text).map(|_| text)
                });
                let outside = outside(path);
                assert!(outside.unread.iter().all(|fifo| fifo.wait_for_reader(in_a_minute)));
                let outside = outside.settle().unwrap();
                let Some(Sink::Pipe(writer)) = &outside.stdout else { panic!("a fifo is a pipe") };
                rustix::io::write(writer, b"said").unwrap();
                has_come.recv().unwrap();
                drop(outside);
                reader.join().unwrap().unwrap()
            });
            assert_eq!(text, "said");
        }
    }

    #[test]
    fn a_reader_that_is_there_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = fifo(directory.path());
        let unread = Unread::watch(&path, Stream::Stdout).unwrap();
        let _reader = open(&path, OFlags::RDONLY).unwrap();
        assert!(unread.wait_for_reader(Instant::now()), "it came in between");
        assert!(outside(&path).unread().is_empty());
    }

    #[test]
    fn the_wait_for_a_reader_has_an_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = fifo(directory.path());
        let outside = outside(&path);
        assert!(!outside.unread().is_empty());
        assert!(!outside.unread[0].wait_for_reader(Instant::now() + Duration::from_millis(20)));
        assert!(matches!(outside.settle().unwrap().stdout, Some(Sink::Pipe(_))), "nothing needs a reader");
        assert!(open(&path, OFlags::WRONLY).is_err(), "nothing is left open");
    }

    /// A client that has left makes room, even if nothing was written since.
    #[test]
    fn attach_is_refused_beyond_the_limit_of_readers() {
        let directory = tempfile::tempdir().unwrap();
        let log = format!("json-file://{}", directory.path().join("log").display());
        let config = StdioConfig { stdout: log.clone(), stderr: log, ..StdioConfig::default() };
        let owner = Owner { namespace: "test", container: "c", uid: 0, gid: 0 };
        let (_ends, mut inside) = Outside::open(&config, owner).unwrap().into_pipes(owner).unwrap();
        let path = fifo(directory.path());
        let mut join = |path: &Path| {
            let reader = open(path, OFlags::RDONLY).unwrap();
            let joining = Joining::open("", &path.display().to_string(), "").unwrap();
            inside.join(joining).map(|()| reader)
        };
        // They share a pipe, and so leave together.
        let readers: Vec<OwnedFd> = (0..ATTACHED_MAX).map(|_| join(&path).unwrap()).collect();
        assert_eq!(join(&path).unwrap_err().kind(), types::ErrorKind::ResourceExhausted);
        drop(readers);
        let another = tempfile::tempdir().unwrap();
        join(&fifo(another.path())).unwrap();
        let gone = Joining::open("", &path.display().to_string(), "").map(drop);
        assert!(gone.is_err(), "nobody reads it");
    }

    #[test]
    fn attach_is_refused_if_the_output_is_not_logged() {
        let directory = tempfile::tempdir().unwrap();
        let path = fifo(directory.path());
        let _reader = open(&path, OFlags::RDONLY).unwrap();
        let owner = Owner { namespace: "test", container: "c", uid: 0, gid: 0 };
        let (_ends, mut inside) = outside(&path).settle().unwrap().into_pipes(owner).unwrap();
        let path = path.display().to_string();
        let refused = inside.join(Joining::open("", &path, "").unwrap()).unwrap_err();
        assert_eq!(refused.kind(), types::ErrorKind::FailedPrecondition);
    }
}
