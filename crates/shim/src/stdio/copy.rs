//! Non-blocking copies from one descriptor to another.
//!
//! ```text
//!            ┌──── nothing to read ───▶ Wants::Source
//! advance ───┼──── sink is full ──────▶ Wants::Sink
//!            ├──── turn is used up ───▶ Wants::Turn
//!            └──── end of file ───────▶ Wants::Nothing, for ever
//! ```
//!
//! Between two pipes the kernel moves the pages (splice(2)). Everything else goes through the loop's buffer, also the
//! output of a console, of which each short read would take a page of the pipe. Bytes that could not be written stay in
//! `pending`, or with the reader that is behind, and no more is read until they are written.
//!
//! Attached clients can write to an input beside its source. The input ends with its source, which is read last.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::io::Errno;
use rustix::pipe::SpliceFlags;
use types::Timestamp;

use super::Stream;
use super::json_log::{JsonLog, Pieces};
use super::readers::Readers;

/// Bytes moved before others get their turn.
const TURN: usize = 1 << 20;
/// The buffer for a process's last output.
const LAST_LEN: usize = 4 << 10;
/// Bytes of one splice(2): a pipe's usual capacity.
const SPLICE_LEN: usize = 64 << 10;

pub(crate) struct Copy {
    source: OwnedFd,
    /// Inputs of attached clients.
    attached_inputs: Vec<OwnedFd>,
    sink: Sink,
    pending: Vec<u8>,
    /// Both ends are pipes, and splice(2) has worked so far.
    spliced: bool,
    ended: bool,
}

pub(crate) enum Sink {
    /// A pipe, fifo or console that may be full.
    Pipe(OwnedFd),
    File(File),
    Json(JsonSink),
    /// The reader is gone; bytes are dropped, so that the writer does not notice.
    Nowhere,
}

pub(crate) struct JsonSink {
    pub log: Rc<RefCell<JsonLog>>,
    pub stream: Stream,
    pub pieces: Pieces,
    pub readers: Readers,
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
    /// `source`, and `sink` if it is a pipe, must be non-blocking.
    pub(crate) fn new(source: OwnedFd, sink: Sink) -> Copy {
        let spliced = matches!(sink, Sink::Pipe(_));
        Copy { source, attached_inputs: Vec::new(), sink, pending: Vec::new(), spliced, ended: false }
    }

    /// A copy of a console's output. The same holds for its descriptors.
    pub(crate) fn of_console(console: OwnedFd, sink: Sink) -> Copy {
        Copy { spliced: false, ..Copy::new(console, sink) }
    }

    /// The descriptors to poll for [`Wants::Source`].
    pub(crate) fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(&self.source).chain(&self.attached_inputs).map(AsFd::as_fd)
    }

    /// Adds the input of an attached client, until the client closes it. It must be non-blocking.
    pub(crate) fn attach_input(&mut self, attached_input: OwnedFd) {
        self.attached_inputs.push(attached_input);
    }

    pub(crate) fn attached_inputs(&self) -> usize {
        self.attached_inputs.len()
    }

    /// The attached readers, if the sink is a log.
    pub(crate) fn readers(&mut self) -> Option<&mut Readers> {
        match &mut self.sink {
            Sink::Json(json) => Some(&mut json.readers),
            Sink::Pipe(_) | Sink::File(_) | Sink::Nowhere => None,
        }
    }

    /// The descriptor to poll for [`Wants::Sink`].
    pub(crate) fn sink(&self) -> Option<BorrowedFd<'_>> {
        match &self.sink {
            Sink::Pipe(fd) => Some(fd.as_fd()),
            Sink::Json(json) => json.readers.behind(),
            Sink::File(_) | Sink::Nowhere => None,
        }
    }

    /// Copies what can be copied now. An input whose reader is gone ends; an output continues, and its bytes are
    /// dropped.
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
        if let Sink::Json(json) = &mut self.sink
            && !json.readers.catch_up()
        {
            return Ok(Step::Waits(Wants::Sink));
        }
        if let Some(len) = self.read_attached_inputs(buffer)? {
            return Ok(Step::Moved(len));
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
            // A console fails so when its last user is gone; other failures end the stream as well.
            Err(_) => Ok(Step::End),
        }
    }

    /// The next bytes of an attached client; None if there are none.
    fn read_attached_inputs(&mut self, buffer: &mut [u8]) -> rustix::io::Result<Option<usize>> {
        let mut index = 0;
        while let Some(attached_input) = self.attached_inputs.get(index) {
            match rustix::io::read(attached_input, &mut *buffer) {
                Ok(len @ 1..) => {
                    self.write(&buffer[..len])?;
                    return Ok(Some(len));
                }
                Err(Errno::AGAIN) => index += 1,
                Err(Errno::INTR) => {}
                Ok(0) | Err(_) => drop(self.attached_inputs.remove(index)),
            }
        }
        Ok(None)
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
            // One of the two is not ready; if the source has bytes it is the sink.
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
                // A full disk must not stop the container: bytes that do not fit are dropped.
                let _lost = file.write_all(bytes);
                bytes.len()
            }
            Sink::Json(json) => {
                json.write(bytes);
                bytes.len()
            }
        };
        self.pending.extend_from_slice(&bytes[taken..]);
        Ok(())
    }

    fn lose_sink(&mut self) {
        self.pending = Vec::new();
        self.sink = Sink::Nowhere;
    }

    /// Ends a log's output: what the source still has is written to the log, without waiting for attached readers.
    pub(crate) fn leave(&mut self) {
        let Some(readers) = self.readers() else { return };
        *readers = Readers::default();
        let _wants = self.advance(false, &mut [0; LAST_LEN]);
        if !self.ended {
            self.end();
        }
    }

    /// Closes both ends, after a last incomplete line is written.
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

/// Writes as much as fits.
fn write_some(fd: BorrowedFd<'_>, bytes: &[u8]) -> rustix::io::Result<usize> {
    match rustix::io::write(fd, bytes) {
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        other => other,
    }
}

impl JsonSink {
    fn write(&mut self, bytes: &[u8]) {
        let (log, stream) = (&self.log, self.stream);
        // As with plain files, a full disk must not stop the container.
        let _lost: io::Result<()> =
            self.pieces.push(bytes, |pieces| log.borrow_mut().write(stream, Timestamp::now(), pieces));
        self.readers.send(bytes);
    }

    fn finish(&mut self) {
        if let Some(rest) = self.pieces.finish() {
            let _lost =
                self.log.borrow_mut().write(self.stream, Timestamp::now(), std::iter::once(rest.as_slice()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::path::Path;

    use rustix::event::{PollFd, PollFlags};
    use rustix::pipe::{PipeFlags, pipe_with};
    use rustix::pty::{self, OpenptFlags};

    use super::super::target::JsonFile;
    use super::*;

    fn pipe() -> (File, OwnedFd) {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        (reader.into(), writer)
    }

    /// Waits until the other end of a pipe is closed: children that other tests fork have a copy until they exec.
    fn wait_for_the_last(end: BorrowedFd<'_>) {
        let mut end = [PollFd::from_borrowed_fd(end, PollFlags::empty())];
        rustix::event::poll(&mut end, None).unwrap();
        assert!(end[0].revents().intersects(PollFlags::HUP | PollFlags::ERR));
    }

    /// Closes a copy's writer, and waits until no child holds it.
    fn drop_for_all(writer: impl Into<OwnedFd>, copy: &Copy) {
        drop(writer.into());
        wait_for_the_last(copy.sources().next().unwrap());
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
            wait_for_the_last(sink.as_fd());
            let mut copy = Copy::new(source.into(), Sink::Pipe(sink));
            File::from(writer.try_clone().unwrap()).write_all(b"hello").unwrap();
            let wants = copy.advance(is_input, &mut [0; 100]);
            assert_eq!(wants, if is_input { Wants::Nothing } else { Wants::Source });
        }
    }

    /// Without a reader, a pipe holds 16 pages, and many more lines.
    #[test]
    fn the_lines_of_a_console_fill_no_page_each() {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let console = pty::openpt(flags).unwrap();
        pty::unlockpt(&console).unwrap();
        let name = pty::ptsname(&console, Vec::new()).unwrap();
        let mut program = File::options().write(true).open(name.to_str().unwrap()).unwrap();
        rustix::io::ioctl_fionbio(&console, true).unwrap();
        let (mut reader, sink) = pipe();
        let mut copy = Copy::of_console(console, Sink::Pipe(sink));
        for _ in 0..200 {
            program.write_all(b"line\n").unwrap();
            assert_eq!(advance(&mut copy), Wants::Source);
        }
        assert_eq!(read(&mut reader), "line\r\n".repeat(200));
    }

    fn json_copy(path: &Path) -> (Copy, File) {
        let config = JsonFile { path: path.to_owned(), size_max: None, files_max: 1, attach: None };
        let log = Rc::new(RefCell::new(JsonLog::open(config).unwrap()));
        let readers = Readers::default();
        let sink = JsonSink { log, stream: Stream::Stdout, pieces: Pieces::default(), readers };
        let (source, writer) = pipe();
        (Copy::new(source.into(), Sink::Json(sink)), writer.into())
    }

    fn read(reader: &mut File) -> String {
        let mut text = vec![0; 1 << 20];
        let len = reader.read(&mut text).unwrap();
        String::from_utf8(text[..len].to_vec()).unwrap()
    }

    #[test]
    fn a_log_copies_its_lines_to_all_attached_readers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let (mut copy, mut writer) = json_copy(&path);
        let mut say = |text: &str, copy: &mut Copy| {
            writer.write_all(text.as_bytes()).unwrap();
            assert_eq!(advance(copy), Wants::Source);
        };
        let come = |copy: &mut Copy| {
            let (reader, end) = pipe();
            copy.readers().unwrap().add(end);
            reader
        };
        say("before\n", &mut copy);
        let mut first = come(&mut copy);
        say("one\n", &mut copy);
        let mut second = come(&mut copy);
        say("two\n", &mut copy);
        assert_eq!((read(&mut first), read(&mut second)), ("one\ntwo\n".to_owned(), "two\n".to_owned()));
        drop(first);
        say("three\n", &mut copy);
        assert_eq!(read(&mut second), "three\n", "who leaves takes nobody along");
        drop(second);
        // A process that another test has just forked holds the reader's end, too, until it executes its program.
        let mut last = String::new();
        while last.is_empty() || copy.readers().unwrap().count() > 0 {
            say("after", &mut copy);
            last += "after";
        }
        drop_for_all(writer, &copy);
        assert_eq!(advance(&mut copy), Wants::Nothing);

        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<&str> = text.lines().map(|line| &line[8..line.find(',').unwrap() - 1]).collect();
        assert_eq!(lines, ["before\\n", "one\\n", "two\\n", "three\\n", &last]);
    }

    /// Both readers are full, and each is waited for.
    #[test]
    fn a_slow_reader_gets_everything_and_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let (mut copy, mut writer) = json_copy(&directory.path().join("log"));
        let mut readers = [0, 1].map(|_| {
            let (reader, end) = pipe();
            copy.readers().unwrap().add(end);
            reader
        });
        // More than the pipes' capacity.
        let (mut said, mut wants) = (0, Wants::Source);
        while wants == Wants::Source {
            writer.write_all(&[b'x'; 4096]).unwrap();
            said += 4096;
            wants = advance(&mut copy);
        }
        assert_eq!(wants, Wants::Sink);
        let mut seen = [0; 2];
        for (reader, seen) in readers.iter_mut().zip(&mut seen) {
            assert_eq!(advance(&mut copy), Wants::Sink, "one who has room does not make it go on");
            *seen += read(reader).len();
        }
        assert_eq!(advance(&mut copy), Wants::Source);
        for (reader, seen) in readers.iter_mut().zip(&mut seen) {
            *seen += read(reader).len();
        }
        assert_eq!(seen, [said; 2]);
    }

    /// A reader that takes nothing, such as a stopped terminal, does not lose the log's last lines.
    #[test]
    fn a_reader_that_takes_nothing_costs_the_log_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let (mut copy, mut writer) = json_copy(&path);
        let (_reader, end) = pipe();
        copy.readers().unwrap().add(end);
        let line = format!("{}\n", "x".repeat(4095));
        let mut wants = Wants::Source;
        while wants == Wants::Source {
            writer.write_all(line.as_bytes()).unwrap();
            wants = advance(&mut copy);
        }
        assert_eq!(wants, Wants::Sink);
        writer.write_all(b"the last\nwords").unwrap();
        assert_eq!(advance(&mut copy), Wants::Sink, "it is waited for");
        copy.leave();
        let text = std::fs::read_to_string(path).unwrap();
        let last: Vec<&str> = text.lines().rev().take(2).collect();
        assert!(last[0].contains("words") && last[1].contains("the last"), "{last:?}");
        copy.leave();
    }

    #[test]
    fn attached_clients_write_to_an_input_that_ends_with_its_source() {
        let ((source, writer), (mut reader, sink)) = (pipe(), pipe());
        let mut copy = Copy::new(source.into(), Sink::Pipe(sink));
        let advance = |copy: &mut Copy| copy.advance(true, &mut [0; 4096]);
        let come = |copy: &mut Copy| {
            let (source, writer) = pipe();
            copy.attach_input(source.into());
            File::from(writer)
        };
        let (mut first, mut second) = (come(&mut copy), come(&mut copy));
        assert_eq!(advance(&mut copy), Wants::Source, "nobody has typed");
        second.write_all(b"second").unwrap();
        assert_eq!(advance(&mut copy), Wants::Source);
        drop(second);
        File::from(writer.try_clone().unwrap()).write_all(b" own").unwrap();
        assert_eq!(advance(&mut copy), Wants::Source);
        assert_eq!((read(&mut reader), copy.attached_inputs()), ("second own".to_owned(), 1));
        first.write_all(b" last").unwrap();
        drop_for_all(writer, &copy);
        assert_eq!(advance(&mut copy), Wants::Nothing, "its source has ended, after what was typed");
        assert_eq!(read(&mut reader), " last");
        drop(copy);
        wait_for_the_last(reader.as_fd());
        assert_eq!(read(&mut reader), "", "and so has the input");
    }
}
