//! From the names of standard streams to descriptors: first what is outside ([`Outside::open`], which
//! may fail before there is a container), then what the container gets.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, inotify};
use rustix::pipe::{PipeFlags, pipe_with};
use types::{Context, Error, Result};

use super::Stream;
use super::copy::{Attach, Copy, JsonSink, Sink};
use super::json_log::{JsonLog, Pieces};
use super::target::{JsonFile, Target};
use crate::log_driver::{Driver, DriverPipes};

/// How long a client's ends of outputs are waited for. Others in the pod wait as long, so it is not long.
const READERS_LIMIT: Duration = Duration::from_secs(1);

/// The standard streams as a client asked for them.
#[derive(Clone, Debug, Default)]
pub(crate) struct StdioConfig {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// Who the streams belong to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    pub namespace: &'a str,
    pub container: &'a str,
    /// Owner of the pipes, where it is not root.
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

/// What stays in the shim while the process lives.
#[derive(Default)]
pub(crate) struct Inside {
    pub copies: [Option<Copy>; 3],
    /// Our own writing end of the client's stdin: the container sees the end of its input only after
    /// `CloseIO`, however often clients come and go.
    pub stdin_held: Option<OwnedFd>,
    pub console: Option<Console>,
    /// Reads what the streams write to it.
    pub driver: Option<Driver>,
}

/// The controlling end of a terminal.
pub(crate) struct Console(pub OwnedFd);

impl Console {
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let size = rustix::termios::Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.0, size)
            .map_err(io::Error::from)
            .context(|| "resize the terminal")
    }
}

/// The far ends of a process's streams, open.
pub(crate) struct Outside {
    stdin: Option<Input>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
    driver: Option<Driver>,
}

struct Input {
    source: OwnedFd,
    held: Option<OwnedFd>,
}

impl Outside {
    /// Opens everything that `config` names.
    ///
    /// `NotFound` for a fifo that is not there; `Unimplemented` for a scheme we do not have.
    pub(crate) fn open(config: &StdioConfig, owner: Owner<'_>) -> Result<Outside> {
        let until = Instant::now() + READERS_LIMIT;
        let stdin = open_input(Target::parse(&config.stdin)?).context(|| "open stdin")?;
        let stdout = Target::parse(&config.stdout)?;
        let stderr = if config.terminal { Target::Null } else { Target::parse(&config.stderr)? };
        let mut outside = Outside { stdin, stdout: None, stderr: None, driver: None };
        if let Target::Driver { program, args } = &stdout {
            let (driver, pipes) = Driver::start(program, args, owner)?;
            outside.driver = Some(driver);
            outside.take_driver_pipes(pipes, &stderr);
        } else {
            outside.stdout = open_output(stdout.clone(), Stream::Stdout, until).context(|| "open stdout")?;
        }
        if outside.stderr.is_none() {
            outside.stderr = outside.open_stderr(stderr, &stdout, until).context(|| "open stderr")?;
        }
        Ok(outside)
    }

    fn take_driver_pipes(&mut self, pipes: DriverPipes, stderr: &Target) {
        self.stdout = Some(Sink::Pipe(pipes.stdout));
        if matches!(stderr, Target::Driver { .. }) {
            self.stderr = Some(Sink::Pipe(pipes.stderr));
        }
    }

    /// Two streams that go to one log share its file, so that rotation stays whole.
    fn open_stderr(&self, stderr: Target, stdout: &Target, until: Instant) -> Result<Option<Sink>> {
        match (&stderr, stdout, &self.stdout) {
            (Target::JsonFile(second), Target::JsonFile(first), Some(Sink::Json(sink)))
                if second.path == first.path =>
            {
                Ok(Some(json_sink(sink.log.clone(), Stream::Stderr, second)))
            }
            (Target::Driver { .. }, _, _) => {
                Err(Error::invalid_argument("stderr can go to a log driver only together with stdout"))
            }
            _ => open_output(stderr, Stream::Stderr, until),
        }
    }

    /// What a process is to be given, none for a terminal, and what joins it to these ends once it is there.
    pub(crate) fn split(self, terminal: bool, owner: Owner<'_>) -> Result<(Option<Ends>, Streams)> {
        if terminal {
            return Ok((None, Streams::Unjoined(self)));
        }
        let (ends, inside) = self.into_pipes(owner)?;
        Ok((Some(ends), Streams::Joined(inside)))
    }

    /// Joins the streams to pipes; a stream that goes nowhere is `/dev/null` in the container.
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

    /// Joins the streams to the controlling end of a terminal.
    fn into_console(self, console: OwnedFd) -> Result<Inside> {
        let mut inside = Inside { driver: self.driver, ..Inside::default() };
        let another = || console.try_clone().context(|| "duplicate the console");
        set_nonblocking(&console)?;
        if let Some(Input { source, held }) = self.stdin {
            inside.copies[0] = Some(Copy::new(source, Sink::Pipe(another()?)));
            inside.stdin_held = held;
        }
        // Someone has to read, or the container blocks as soon as the terminal's buffer is full.
        let sink = self.stdout.unwrap_or(Sink::Nowhere);
        inside.copies[1] = Some(Copy::new(another()?, sink));
        inside.console = Some(Console(console));
        Ok(inside)
    }
}

/// The streams of a process on its way: a terminal comes from the process itself.
pub(crate) enum Streams {
    Joined(Inside),
    Unjoined(Outside),
}

impl Streams {
    pub(crate) fn join(self, console: Option<OwnedFd>) -> Result<Inside> {
        match (self, console) {
            (Streams::Joined(inside), _) => Ok(inside),
            (Streams::Unjoined(outside), Some(console)) => outside.into_console(console),
            (Streams::Unjoined(_), None) => Err(Error::internal("the runtime gave no console")),
        }
    }
}

fn open_input(target: Target) -> Result<Option<Input>> {
    let path = match target {
        Target::Null => return Ok(None),
        Target::Path(path) | Target::File(path) => path,
        Target::Driver { .. } | Target::JsonFile(_) => {
            return Err(Error::invalid_argument("a log cannot be read as stdin"));
        }
    };
    let source = open(&path, OFlags::RDONLY)?;
    let held = if is_fifo(&path)? { Some(open(&path, OFlags::WRONLY)?) } else { None };
    Ok(Some(Input { source, held }))
}

fn open_output(target: Target, stream: Stream, until: Instant) -> Result<Option<Sink>> {
    Ok(match target {
        Target::Null => None,
        Target::Path(path) if is_fifo(&path)? => Some(Sink::Pipe(open_fifo(&path, until)?)),
        Target::Path(path) => Some(Sink::File(open(&path, OFlags::WRONLY | OFlags::APPEND)?.into())),
        Target::File(path) => Some(Sink::File(append(&path).context(|| format!("open {}", path.display()))?)),
        Target::JsonFile(config) => {
            let log = Rc::new(RefCell::new(JsonLog::open(config.clone())?));
            Some(json_sink(log, stream, &config))
        }
        Target::Driver { .. } => {
            return Err(Error::invalid_argument("a log driver takes stdout and stderr together"));
        }
    })
}

/// Opens a client's fifo once somebody reads it, or is about to, or a while is over.
///
/// containerd's clients open their ends on a thread of its own and give up what is not open yet once the process has
/// ended. On a busy machine that is after a short process, whose output nobody would see. containerd's shim waits too,
/// without an end.
fn open_fifo(path: &Path, until: Instant) -> Result<OwnedFd> {
    // Kept until the other one is open: a reader that sees no writer in between takes it for the end.
    let _writer = match open(path, OFlags::WRONLY) {
        Ok(writer) => Some(writer),
        // Nobody reads. That somebody does cannot always be waited for, and nothing needs it.
        Err(_) => wait_for_reader(path, until).ok().map(|(writer, _)| writer),
    };
    // Open for reading as well: then neither opening nor writing depends on a reader.
    open(path, OFlags::RDWR)
}

/// Waits until somebody has opened a fifo for reading. Gives the end that was opened for that, and whether somebody
/// came.
fn wait_for_reader(path: &Path, until: Instant) -> Result<(OwnedFd, bool)> {
    let opened = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .map_err(io::Error::from)
        .context(|| "watch a fifo")?;
    inotify::add_watch(&opened, path, inotify::WatchFlags::OPEN)
        .map_err(io::Error::from)
        .context(|| "watch a fifo")?;
    // Who opens it to read waits for a writer in turn. With the reading end closed, this one knows of readers.
    let both = open(path, OFlags::RDWR)?;
    let writer = open(path, OFlags::WRONLY)?;
    drop(both);
    loop {
        let mut end = [PollFd::new(&writer, PollFlags::OUT)];
        let asked = poll(&mut end, Some(&Timespec::default()));
        let has_reader = asked.is_ok() && !end[0].revents().contains(PollFlags::ERR);
        let rest = until.checked_duration_since(Instant::now());
        let (false, Some(rest)) = (has_reader, rest) else { return Ok((writer, has_reader)) };
        let rest = Timespec::try_from(rest).unwrap_or_default();
        let mut news = [PollFd::new(&opened, PollFlags::IN)];
        let _woken_or_over = poll(&mut news, Some(&rest));
        // What has happened is seen from the fifo itself.
        let _all = rustix::io::read(&opened, &mut [0; 4096]);
    }
}

fn json_sink(log: Rc<RefCell<JsonLog>>, stream: Stream, config: &JsonFile) -> Sink {
    let attach = config.attach.clone().map(Attach::new);
    Sink::Json(JsonSink { log, stream, pieces: Pieces::default(), attach })
}

/// A file to write to the end of, made if it is not there. A fifo that nobody reads is an error: nothing is waited
/// for, neither here nor later.
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

/// Reading and writing end.
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

    fn fifo(directory: &Path) -> std::path::PathBuf {
        let path = directory.join("fifo");
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        path
    }

    fn in_a_minute() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// Each meets the writer at another moment: on its way into the fifo, in its first read, before either.
    #[test]
    fn a_reader_misses_nothing_whenever_it_comes() {
        let directory = tempfile::tempdir().unwrap();
        let path = fifo(directory.path());
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
                let writer = open_fifo(path, in_a_minute()).unwrap();
                rustix::io::write(&writer, b"said").unwrap();
                has_come.recv().unwrap();
                drop(writer);
                reader.join().unwrap().unwrap()
            });
            assert_eq!(text, "said");
        }
    }

    #[test]
    fn a_reader_that_is_there_is_seen_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = fifo(directory.path());
        let _reader = open(&path, OFlags::RDONLY).unwrap();
        assert!(wait_for_reader(&path, Instant::now()).unwrap().1);
    }

    #[test]
    fn nobody_is_not_waited_for_without_an_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = fifo(directory.path());
        assert!(!wait_for_reader(&path, Instant::now() + Duration::from_millis(20)).unwrap().1);
        drop(open_fifo(&path, Instant::now()).unwrap());
        assert!(open(&path, OFlags::WRONLY).is_err(), "nothing is left open");
    }
}
