//! Bytes from one descriptor to another, as far as both are ready.
//!
//! ```text
//!            ┌──── nothing to read ───▶ Wants::Source
//! advance ───┼──── nobody reads ──────▶ Wants::Sink
//!            ├──── enough for a turn ─▶ Wants::Turn
//!            └──── end ───────────────▶ Wants::Nothing, for ever
//! ```
//!
//! Between two pipes the kernel moves the pages (`splice`); everything else goes through the loop's
//! buffer. What was read and could not be written stays in `pending`, and no more is read until it
//! is gone.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;
use types::Timestamp;

use super::Stream;
use super::json_log::{JsonLog, Pieces};

/// Bytes moved before others get their turn.
const TURN: usize = 1 << 20;
/// Asked of one `splice`: a pipe's usual capacity.
const SPLICE_LEN: usize = 64 << 10;

pub(crate) struct Copy {
    source: OwnedFd,
    sink: Sink,
    pending: Vec<u8>,
    /// Both ends are pipes and the kernel has not refused yet.
    spliced: bool,
    ended: bool,
}

pub(crate) enum Sink {
    /// A pipe, fifo or console that may be full.
    Pipe(OwnedFd),
    File(File),
    Json(JsonSink),
    /// The reader is gone; the writer shall not notice.
    Nowhere,
}

pub(crate) struct JsonSink {
    pub log: Rc<RefCell<JsonLog>>,
    pub stream: Stream,
    pub pieces: Pieces,
    pub attach: Option<Attach>,
}

/// A fifo that gets the bytes as well, while someone reads it.
pub(crate) struct Attach {
    path: PathBuf,
    fifo: Option<OwnedFd>,
}

/// What a copy waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wants {
    Source,
    Sink,
    Turn,
    Nothing,
}

impl Copy {
    /// `source`, and `sink` if it is a pipe, must not block.
    pub(crate) fn new(source: OwnedFd, sink: Sink) -> Copy {
        let spliced = matches!(sink, Sink::Pipe(_));
        Copy { source, sink, pending: Vec::new(), spliced, ended: false }
    }

    pub(crate) fn source(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }

    /// The descriptor that [`Wants::Sink`] is about.
    pub(crate) fn sink(&self) -> Option<BorrowedFd<'_>> {
        match &self.sink {
            Sink::Pipe(fd) => Some(fd.as_fd()),
            Sink::Json(json) => json.attach.as_ref()?.fifo.as_ref().map(AsFd::as_fd),
            Sink::File(_) | Sink::Nowhere => None,
        }
    }

    /// Moves what can be moved now. An input whose reader is gone ends; an output goes on, unheard.
    pub(crate) fn advance(&mut self, is_input: bool, buffer: &mut [u8]) -> Wants {
        let mut moved = 0;
        while moved < TURN && !self.ended {
            match self.step(buffer) {
                Ok(Step::Moved(len)) => moved += len,
                Ok(Step::Waits(wants)) => return wants,
                Ok(Step::End) => self.end(),
                Err(Errno::INTR) => {}
                Err(_) if is_input => self.end(),
                Err(_) => self.lose_sink(),
            }
        }
        if self.ended { Wants::Nothing } else { Wants::Turn }
    }

    fn step(&mut self, buffer: &mut [u8]) -> rustix::io::Result<Step> {
        if !self.pending.is_empty() {
            return self.flush();
        }
        if self.spliced {
            return self.splice();
        }
        match rustix::io::read(&self.source, &mut *buffer) {
            Ok(0) => Ok(Step::End),
            Ok(len) => {
                self.write(&buffer[..len])?;
                Ok(Step::Moved(len))
            }
            Err(Errno::AGAIN) => Ok(Step::Waits(Wants::Source)),
            Err(Errno::INTR) => Err(Errno::INTR),
            // A console says so when its last user is gone; other failures end the stream as well.
            Err(_) => Ok(Step::End),
        }
    }

    fn splice(&mut self) -> rustix::io::Result<Step> {
        let Sink::Pipe(sink) = &self.sink else {
            self.spliced = false;
            return Ok(Step::Moved(0));
        };
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        match rustix::pipe::splice(&self.source, None, sink, None, SPLICE_LEN, flags) {
            Ok(0) => Ok(Step::End),
            Ok(len) => Ok(Step::Moved(len)),
            // One of the two is not ready; with bytes in the source it is the sink.
            Err(Errno::AGAIN) => match rustix::io::ioctl_fionread(&self.source) {
                Ok(0) | Err(_) => Ok(Step::Waits(Wants::Source)),
                Ok(_) => Ok(Step::Waits(Wants::Sink)),
            },
            Err(Errno::INVAL | Errno::IO) => {
                self.spliced = false;
                Ok(Step::Moved(0))
            }
            Err(error) => Err(error),
        }
    }

    fn flush(&mut self) -> rustix::io::Result<Step> {
        let Some(sink) = self.sink() else {
            self.pending.clear();
            return Ok(Step::Moved(0));
        };
        match rustix::io::write(sink, &self.pending) {
            Ok(len) => {
                self.pending.drain(..len);
                self.pending.shrink_to(0);
                Ok(Step::Moved(len))
            }
            Err(Errno::AGAIN) => Ok(Step::Waits(Wants::Sink)),
            Err(error) => Err(error),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> rustix::io::Result<()> {
        let taken = match &mut self.sink {
            Sink::Nowhere => bytes.len(),
            Sink::Pipe(fd) => write_some(fd.as_fd(), bytes)?,
            Sink::File(file) => {
                // A full disk must not stop the container; what does not fit is lost.
                let _lost = file.write_all(bytes);
                bytes.len()
            }
            Sink::Json(json) => json.write(bytes),
        };
        self.pending.extend_from_slice(&bytes[taken..]);
        Ok(())
    }

    fn lose_sink(&mut self) {
        self.pending = Vec::new();
        match &mut self.sink {
            Sink::Json(json) => json.detach(),
            sink => *sink = Sink::Nowhere,
        }
    }

    /// Closes both ends, after the last words are written.
    fn end(&mut self) {
        if let Sink::Json(json) = &mut self.sink {
            json.finish();
        }
        self.ended = true;
    }
}

enum Step {
    Moved(usize),
    Waits(Wants),
    End,
}

/// As much as fits now.
fn write_some(fd: BorrowedFd<'_>, bytes: &[u8]) -> rustix::io::Result<usize> {
    match rustix::io::write(fd, bytes) {
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        other => other,
    }
}

impl JsonSink {
    /// Logs all bytes; returns how many of them the attached reader took (all, if there is none).
    fn write(&mut self, bytes: &[u8]) -> usize {
        let (log, stream) = (&self.log, self.stream);
        // As with plain files: a full disk must not stop the container.
        let _lost: io::Result<()> =
            self.pieces.push(bytes, |pieces| log.borrow_mut().write(stream, Timestamp::now(), pieces));
        let Some(attach) = &mut self.attach else { return bytes.len() };
        let Some(fifo) = attach.reader() else { return bytes.len() };
        write_some(fifo, bytes).unwrap_or_else(|_| {
            attach.fifo = None;
            bytes.len()
        })
    }

    fn finish(&mut self) {
        if let Some(rest) = self.pieces.finish() {
            let _lost =
                self.log.borrow_mut().write(self.stream, Timestamp::now(), std::iter::once(rest.as_slice()));
        }
    }

    fn detach(&mut self) {
        if let Some(attach) = &mut self.attach {
            attach.fifo = None;
        }
    }
}

impl Attach {
    pub(crate) fn new(path: PathBuf) -> Attach {
        let mut attach = Attach { path, fifo: None };
        attach.reader();
        attach
    }

    /// The fifo, if someone has it open for reading.
    fn reader(&mut self) -> Option<BorrowedFd<'_>> {
        if self.fifo.is_none() {
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
            self.fifo = rustix::fs::open(&self.path, flags, Mode::empty()).ok();
        }
        self.fifo.as_ref().map(AsFd::as_fd)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::super::target::JsonFile;
    use super::*;

    fn pipe() -> (File, OwnedFd) {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        (reader.into(), writer)
    }

    fn advance(copy: &mut Copy) -> Wants {
        copy.advance(false, &mut [0; 4096])
    }

    #[test]
    fn a_reader_that_left_does_not_stop_an_output_but_ends_an_input() {
        for is_input in [false, true] {
            let (source, writer) = pipe();
            let (reader, sink) = pipe();
            drop(reader);
            let mut copy = Copy::new(source.into(), Sink::Pipe(sink));
            File::from(writer.try_clone().unwrap()).write_all(b"hello").unwrap();
            let wants = copy.advance(is_input, &mut [0; 100]);
            assert_eq!(wants, if is_input { Wants::Nothing } else { Wants::Source });
        }
    }

    #[test]
    fn a_log_tees_to_whoever_attaches() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("attach");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .unwrap();
        let path = directory.path().join("log");
        let config = JsonFile { path: path.clone(), size_max: None, files_max: 1, attach: None };
        let log = Rc::new(RefCell::new(JsonLog::open(config).unwrap()));
        let attach = Some(Attach::new(fifo.clone()));
        let sink = JsonSink { log, stream: Stream::Stdout, pieces: Pieces::default(), attach };
        let (source, writer) = pipe();
        let mut writer = File::from(writer);
        let mut copy = Copy::new(source.into(), Sink::Json(sink));

        writer.write_all(b"before\n").unwrap();
        assert_eq!(advance(&mut copy), Wants::Source);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut reader = File::from(rustix::fs::open(&fifo, flags, Mode::empty()).unwrap());
        writer.write_all(b"during\n").unwrap();
        assert_eq!(advance(&mut copy), Wants::Source);
        let mut seen = [0; 100];
        let len = reader.read(&mut seen).unwrap();
        assert_eq!(&seen[..len], b"during\n");
        drop(reader);
        writer.write_all(b"after").unwrap();
        assert_eq!(advance(&mut copy), Wants::Source);
        drop(writer);
        assert_eq!(advance(&mut copy), Wants::Nothing);

        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<&str> = text.lines().map(|line| &line[..line.find(',').unwrap()]).collect();
        assert_eq!(lines, [r#"{"log":"before\n""#, r#"{"log":"during\n""#, r#"{"log":"after""#]);
    }
}
